//! The peers of the overlay's tests, each against another: where they do not reach each other, neither would we.

use std::time::Duration;

use crate::support::host::{Host, Site};
use crate::support::lab::{Seat, within};
use crate::support::namespace::Namespace;
use crate::support::peers::{
    Underlay, finish_checksums, linux_bridge, open_vswitch, open_vswitch_tunnel, vsctl, vtep, vxlan_device,
};
use crate::support::traffic::{assert_apart, await_ping, iperf3, tcp};
use crate::support::vm::Vm;

const MIB: usize = 1 << 20;
/// What milliseconds may become in a machine whose processor is emulated on a loaded one.
pub(crate) const SLOWLY: Duration = Duration::from_secs(60);

/// Each reaches the other, and streams between them arrive whole.
pub(crate) fn assert_reach(from: &Host, to: &Host) {
    await_ping(from, to.ip);
    await_ping(to, from.ip);
    tcp(from, to, MIB);
    tcp(to, from, MIB);
}

#[test]
fn two_open_vswitches_reach_each_other_over_every_tunnel() {
    let Some(_seat) = Seat::take() else { return };
    let (near, far) = (Site::numbered(1..=1), Site::numbered(2..=2));
    let _underlay = Underlay::between(&[&near.switch, &far.switch]);
    let (left, right) = (open_vswitch(&near, 1, &["p1"]), open_vswitch(&far, 2, &["p2"]));
    assert_apart(&near.hosts[0], far.hosts[0].ip);
    for kind in ["gre", "vxlan", "geneve"] {
        open_vswitch_tunnel(&left, kind, 2, "options:key=7");
        open_vswitch_tunnel(&right, kind, 1, "options:key=7");
        assert_reach(&near.hosts[0], &far.hosts[0]);
        let end = &iperf3(&near.hosts[0], &far.hosts[0], "-t 1")["end"];
        assert!(end["sum_received"]["bytes"].as_u64() > Some(1 << 20), "{kind}: {end}");
        let listening = left.appctl("tnl/ports/show").expect("the tunnels' ports");
        assert!(listening.contains("_sys"), "{listening}");
        for ovs in [&left, &right] {
            vsctl(ovs, &format!("del-port {kind}0"));
        }
    }
}

#[test]
fn open_vswitch_reaches_a_vxlan_device() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::numbered(1..=1);
    let far = Host { ns: Namespace::new(), port: "vx0".into(), ip: [10, 9, 0, 2].into() };
    let _underlay = Underlay::between(&[&site.switch, &far.ns]);
    let ovs = open_vswitch(&site, 1, &["p1"]);
    open_vswitch_tunnel(&ovs, "vxlan", 2, "options:key=7");
    vxlan_device(&far.ns, 2, 1, 7);
    far.ns.ip(&format!("addr add {}/16 dev vx0", far.ip));
    finish_checksums(&far.ns, "uplink");
    assert_reach(&site.hosts[0], &far);
}

#[test]
fn open_vswitch_reaches_hosts_behind_a_vxlan_device() {
    let Some(_seat) = Seat::take() else { return };
    let (near, far) = (Site::numbered(1..=1), Site::numbered(2..=3));
    let _underlay = Underlay::between(&[&near.switch, &far.switch]);
    let ovs = open_vswitch(&near, 1, &["p1"]);
    open_vswitch_tunnel(&ovs, "vxlan", 2, "options:key=7");
    vxlan_device(&far.switch, 2, 1, 7);
    linux_bridge(&far, &["vx0"]);
    finish_checksums(&far.switch, "uplink");
    far.hosts.iter().for_each(|host| assert_reach(&near.hosts[0], host));
}

/// Gives an interface of the machine the address of host 9, and checks that it and `host` reach each other.
pub(crate) fn assert_guest(vm: &mut Vm, interface: &str, host: &Host) {
    let ip = [10, 9, 0, 9].into();
    vm.run(&format!("ip addr add {ip}/16 dev {interface} && ip link set {interface} mtu 1400 up"));
    within(SLOWLY, &format!("{interface} reaches {}", host.ip), || vm.pings(host.ip));
    await_ping(host, ip);
    for direction in ["", "--reverse"] {
        // Between two clients the server does not listen for a moment.
        let line = format!("timeout 20 iperf3 -n 1M -c {ip} {direction}");
        within(SLOWLY, &line, || host.ns.output(&line).status.success());
    }
    vm.run(&format!("ip link del {interface}"));
}

#[test]
fn a_whole_kernel_reaches_open_vswitch_over_gre_geneve_and_a_trunk() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::numbered(1..=2);
    let underlay = Underlay::between(&[&site.switch]);
    let mut vm = Vm::boot(&underlay.ns, &["tap0"]);
    underlay.take("tap0");
    let ovs = open_vswitch(&site, 1, &["p1", "p2 tag=10"]);
    vm.run(&format!("ethtool -K eth0 tx off && ip addr add {}/24 dev eth0 && ip link set eth0 up", vtep(2)));
    vm.run("iperf3 -s -D");
    within(SLOWLY, "iperf3 listens", || vm.run("ss -Hltn sport = :5201").contains("LISTEN"));

    let ends = format!("local {} remote {}", vtep(2), vtep(1));
    vm.run(&format!("ip link add gre1 type gretap {ends} key 7"));
    open_vswitch_tunnel(&ovs, "gre", 2, "options:key=7");
    assert_guest(&mut vm, "gre1", &site.hosts[0]);

    vm.run(&format!("ip link add geneve1 type geneve id 7 remote {}", vtep(1)));
    open_vswitch_tunnel(&ovs, "geneve", 2, "options:key=7");
    assert_guest(&mut vm, "geneve1", &site.hosts[0]);

    vm.run("ip link add link eth0 name eth0.10 type vlan id 10");
    vsctl(&ovs, "add-port br-int to-phy trunks=10 -- set interface to-phy type=patch options:peer=to-int");
    vsctl(&ovs, "add-port br-phy to-int trunks=10 -- set interface to-int type=patch options:peer=to-phy");
    assert_guest(&mut vm, "eth0.10", &site.hosts[1]);
}
