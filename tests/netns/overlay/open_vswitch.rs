//! Open vSwitch on its userspace datapath at the other end: every kind of tunnel, added and removed on both sides as an
//! operator would.

use crate::rig::assert_reach;
use crate::support::fabric::{Footing, give_addresses, hypervisor, vtep6};
use crate::support::host::Site;
use crate::support::lab::Seat;
use crate::support::peers::{Underlay, finish_checksums, open_vswitch, vsctl, vtep};
use crate::support::traffic::assert_apart;

/// Type, our settings, theirs.
const TUNNELS: [(&str, &str, &str); 8] = [
    ("gre", "key=7", "options:key=7"),
    ("gre", "", ""),
    ("gre", "key=0", "options:key=0"),
    ("gre", "key=4294967295 csum=true", "options:key=4294967295 options:csum=true"),
    ("vxlan", "key=7", "options:key=7"),
    (
        "vxlan",
        "key=16777215 dst-port=4790 csum=true",
        "options:key=16777215 options:dst_port=4790 options:csum=true",
    ),
    ("geneve", "key=7 tos=inherit ttl=inherit", "options:key=7 options:tos=inherit options:ttl=inherit"),
    (
        "geneve",
        "key=8 csum=true df-default=false",
        "options:key=8 options:csum=true options:df_default=false",
    ),
];

fn tunnels_interoperate(footing: Footing) {
    let (near, far) = (Site::numbered(1..=1), Site::numbered(2..=2));
    let _underlay = Underlay::between(&[&near.switch, &far.switch]);
    let daemon = hypervisor(&near, 1, (footing, &[r#"{ name = "p1", type = "afpacket" }"#]));
    let ovs = open_vswitch(&far, 2, &["p2"]);
    give_addresses(&far.switch, "br-phy", 2);
    // The kernel would leave to Open vSwitch what its datapath takes for done.
    finish_checksums(&near.switch, "uplink");
    let (from, to) = (&near.hosts[0], &far.hosts[0]);
    let six =
        ["vxlan", "geneve"].map(|kind| (kind, "key=9", "options:key=9", vtep6(1).into(), vtep6(2).into()));
    let four = TUNNELS.map(|(kind, ours, theirs)| (kind, ours, theirs, vtep(1).into(), vtep(2).into()));
    for (kind, ours, theirs, local, remote) in four.into_iter().chain(six) {
        let (local, remote): (std::net::IpAddr, std::net::IpAddr) = (local, remote);
        daemon.ask(&format!(
            "tunnel add br-int t0 type={kind} remote-ip={remote} local-ip={local} underlay={} {ours}",
            footing.carrier()
        ));
        vsctl(
            &ovs,
            &format!("add-port br-int t0 -- set interface t0 type={kind} options:remote_ip={local} {theirs}"),
        );
        eprintln!("{kind} {ours} to {remote}");
        assert_reach(from, to);
        vsctl(&ovs, "del-port t0");
        daemon.ask("tunnel del t0");
    }
    assert_apart(from, to.ip);
    let ledger = daemon.ask("ledger");
    assert_eq!(ledger["balances"], true, "{ledger}");
}

#[test]
fn every_tunnel_reaches_open_vswitch_from_our_own_stack() {
    let Some(_seat) = Seat::take() else { return };
    tunnels_interoperate(Footing::Vtep);
}

#[test]
fn every_tunnel_reaches_open_vswitch_from_the_hosts_stack() {
    let Some(_seat) = Seat::take() else { return };
    tunnels_interoperate(Footing::Host);
}

#[test]
fn every_tunnel_reaches_open_vswitch_from_an_internal_port() {
    let Some(_seat) = Seat::take() else { return };
    tunnels_interoperate(Footing::Internal);
}
