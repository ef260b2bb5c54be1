//! Every kind of port, alone and mixed, with whole streams through it.

use std::net::Ipv4Addr;

use crate::support::daemon::{Daemon, address_internal, bridge};
use crate::support::host::Site;
use crate::support::lab::{Seat, eventually};
use crate::support::traffic::{await_ping, tcp, tcp_between};

const MIB: usize = 1 << 20;
const INTERNAL: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);

/// How `ip link` shows an attached XDP program: 1 native, 2 generic (linux/if_link.h, XDP_ATTACHED_*).
fn xdp_mode(site: &Site, port: &str) -> Option<u64> {
    site.switch.ip_json(&format!("link show dev {port}"))[0]["xdp"]["mode"].as_u64()
}

fn afxdp_carries_streams(mode: &str, shown: u64) {
    let site = Site::new(2);
    let setting = format!("xdp-mode = \"{mode}\"");
    let mut daemon = site.start(&[&format!("p1 afxdp {setting}"), &format!("p2 afxdp {setting}")]);
    assert_eq!(xdp_mode(&site, "p1"), Some(shown));
    site.assert_mesh(8 * MIB);
    assert!(daemon.stop().success());
    assert_eq!(xdp_mode(&site, "p1"), None, "the XDP program outlived the daemon");
}

#[test]
fn afxdp_native_carries_streams_and_leaves_no_program() {
    let Some(_seat) = Seat::take() else { return };
    afxdp_carries_streams("native", 1);
}

#[test]
fn afxdp_generic_carries_streams_and_leaves_no_program() {
    let Some(_seat) = Seat::take() else { return };
    afxdp_carries_streams("generic", 2);
}

#[test]
fn afpacket_carries_streams() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let _daemon = site.start(&["p1 afpacket", "p2 afpacket"]);
    site.assert_mesh(8 * MIB);
}

#[test]
fn kinds_of_port_mix_in_one_bridge() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    let _daemon =
        site.start(&["p1 afxdp", "p2 afxdp xdp-mode = \"generic\"", "p3 afpacket", "int0 internal"]);
    address_internal(&site.switch, "int0", INTERNAL);
    site.assert_mesh(2 * MIB);
    for host in &site.hosts {
        await_ping(host, INTERNAL);
        tcp_between(&host.ns, &site.switch, INTERNAL, 2 * MIB);
        tcp_between(&site.switch, &host.ns, host.ip, 2 * MIB);
    }
}

#[test]
fn internal_ports_appear_as_asked_and_go_with_the_daemon() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(0);
    let mut daemon = site.start(&["int0 internal mtu = 1400; mac = \"02:00:00:00:00:77\""]);
    eventually("int0 appears", || site.switch.has_link("int0"));
    let link = site.switch.ip_json("link show dev int0");
    assert_eq!(link[0]["mtu"], 1400);
    assert_eq!(link[0]["address"], "02:00:00:00:00:77");
    assert!(link[0]["flags"].as_array().is_some_and(|flags| flags.iter().any(|f| f == "UP")), "{link}");
    assert!(daemon.stop().success());
    assert!(!site.switch.has_link("int0"), "int0 outlived the daemon");
}

#[test]
fn type_system_picks_afxdp_and_says_so() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let daemon = site.start(&["p1 system", "p2 system"]);
    site.assert_mesh(MIB);
    assert!(xdp_mode(&site, "p1").is_some(), "no XDP program on p1");
    assert_eq!(daemon.port("p1")["obtained"], "afxdp native");
}

#[test]
fn veth_with_checksum_offload_works_over_afxdp() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let _daemon = site.start(&["p1 afxdp", "p2 afxdp"]);
    let features = site.hosts[0].ns.sh("ethtool -k eth0");
    assert!(features.contains("tx-checksumming: on"), "{features}");
    site.assert_mesh(4 * MIB);
}

#[test]
fn jumbo_frames_cross_whole() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    site.hosts.iter().for_each(|host| host.set_mtu(&site.switch, 9000));
    let _daemon = site.start(&["p1 afxdp", "p2 afxdp", "p3 afpacket"]);
    site.assert_mesh(4 * MIB);
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let (from, to) = (&site.hosts[from], &site.hosts[to]);
        let what = format!("9000 bytes from {} to {}", from.port, to.port);
        eventually(&what, || from.pings_whole(to.ip, 9000 - 28));
    }
}

#[test]
fn a_frame_over_the_mtu_of_its_way_out_is_dropped_and_counted() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    site.hosts[0].set_mtu(&site.switch, 3000);
    let daemon = site.start(&["p1 afpacket", "p2 afpacket"]);
    await_ping(&site.hosts[0], site.hosts[1].ip);
    assert!(!site.hosts[0].pings_whole(site.hosts[1].ip, 2500));
    eventually("it is counted", || daemon.ask("drops").to_string().contains("mtu"));
}

#[test]
fn patch_ports_join_bridges() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let first = bridge(&["p1 afpacket tag = 7", "to-br1 patch peer = \"to-br0\""]);
    let second =
        bridge(&["p2 afxdp tag = 7", "to-br0 patch peer = \"to-br1\""]).replace("br0\"\n\n", "br1\"\n\n");
    let _daemon = Daemon::start(&site.switch, &format!("{first}\n{second}"));
    await_ping(&site.hosts[0], site.hosts[1].ip);
    tcp(&site.hosts[0], &site.hosts[1], MIB);
}
