//! VLANs apart on one switch, together over trunks: to another Sluice and to Linux bridges.

use crate::support::daemon::Daemon;
use crate::support::host::Site;
use crate::support::lab::Seat;
use crate::support::traffic::{assert_apart, await_ping, tcp};

const MIB: usize = 1 << 20;

/// Two sites: hosts 1 and 3 are in VLAN 10, hosts 2 and 4 in VLAN 20.
fn two_sites() -> (Site, Site) {
    (Site::numbered(1..=2), Site::numbered(3..=4))
}

fn left(site: &Site, kind: &str) -> Daemon {
    site.start(&[
        &format!("p1 {kind} tag = 10"),
        &format!("p2 {kind} tag = 20"),
        &format!("trunk {kind} trunks = [10, 20]"),
    ])
}

fn right(site: &Site, kind: &str) -> Daemon {
    site.start(&[
        &format!("p3 {kind} tag = 10"),
        &format!("p4 {kind} tag = 20"),
        &format!("trunk {kind} trunks = [10, 20]"),
    ])
}

/// Each host reaches the other one of its VLAN, and neither of the two of the other VLAN.
fn assert_two_vlans(near: &Site, far: &Site) {
    for vlan in [0, 1] {
        let (here, there) = (&near.hosts[vlan], &far.hosts[vlan]);
        await_ping(here, there.ip);
        tcp(here, there, 2 * MIB);
        tcp(there, here, 2 * MIB);
        assert_apart(here, near.hosts[1 - vlan].ip);
        assert_apart(here, far.hosts[1 - vlan].ip);
    }
}

#[test]
fn access_ports_of_different_vlans_are_apart() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(4);
    let _daemon = site.start(&[
        "p1 afxdp tag = 10",
        "p2 afpacket tag = 20",
        "p3 afpacket tag = 10",
        "p4 afxdp tag = 20",
    ]);
    for (a, b, apart) in [(0, 2, 1), (1, 3, 2), (2, 0, 3), (3, 1, 0)] {
        await_ping(&site.hosts[a], site.hosts[b].ip);
        assert_apart(&site.hosts[a], site.hosts[apart].ip);
    }
}

#[test]
fn an_afxdp_trunk_joins_two_switches() {
    let Some(_seat) = Seat::take() else { return };
    let (near, far) = two_sites();
    near.join(&far, "trunk");
    let _daemons = (left(&near, "afxdp"), right(&far, "afxdp"));
    assert_two_vlans(&near, &far);
}

#[test]
fn an_afpacket_trunk_joins_two_switches() {
    let Some(_seat) = Seat::take() else { return };
    let (near, far) = two_sites();
    near.join(&far, "trunk");
    let _daemons = (left(&near, "afpacket"), right(&far, "afpacket"));
    assert_two_vlans(&near, &far);
}

/// The peer switch in the middle of the trunk knows no VLANs and must forward tags as they are. Its kernel
/// keeps them beside the frames on the way.
#[test]
fn a_trunk_crosses_a_linux_bridge() {
    let Some(_seat) = Seat::take() else { return };
    let (near, far, middle) = (Site::numbered(1..=2), Site::numbered(3..=4), Site::new(0));
    middle.switch.ip_batch("link add name peer type bridge\nlink set peer up");
    for (site, end) in [(&near, "near"), (&far, "far")] {
        middle.switch.ip(&format!("link add {end} type veth peer name trunk netns {}", site.switch.path()));
        middle.switch.ip_batch(&format!("link set {end} master peer\nlink set {end} up"));
        site.switch.ip("link set trunk up");
    }
    let _daemons = (left(&near, "afxdp"), right(&far, "afpacket"));
    assert_two_vlans(&near, &far);
}

/// The peer switch at the far end of the trunk is a Linux bridge with access ports of its own.
#[test]
fn a_linux_bridge_with_vlan_filtering_is_a_peer() {
    let Some(_seat) = Seat::take() else { return };
    let (near, far) = two_sites();
    let made = far.switch.output("ip link add name peer type bridge vlan_filtering 1 vlan_default_pvid 0");
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        eprintln!("skipped: this kernel's bridges cannot filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING): {why}");
        return;
    }
    near.join(&far, "trunk");
    far.switch.ip("link set peer up");
    for (port, vlans) in
        [("trunk", "10"), ("trunk", "20"), ("p3", "10 pvid untagged"), ("p4", "20 pvid untagged")]
    {
        far.switch.ip(&format!("link set {port} master peer"));
        far.switch.sh(&format!("bridge vlan add dev {port} vid {vlans}"));
    }
    let _daemon = left(&near, "afxdp");
    assert_two_vlans(&near, &far);
}
