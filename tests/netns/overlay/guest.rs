//! A whole kernel of Debian's at the other end, without anything between: our ports are the TAP devices of its cards,
//! one for tunnels and one for a trunk of provider VLANs.

use crate::rig::{SLOWLY, assert_guest};
use crate::support::daemon::Daemon;
use crate::support::host::Site;
use crate::support::lab::{Seat, within};
use crate::support::peers::{TENANT_MTU, vtep};
use crate::support::vm::Vm;

const SWITCH: &str = r#"
[[bridge]]
name = "br-phy"
port = [
  { name = "tap0", type = "afpacket" },
  { name = "vtep0", type = "vtep", address = ["192.0.2.1/24"] },
]

[[bridge]]
name = "br-int"
segment = [
  { name = "red", vlan = 1, type = "vlan", id = 101, uplink = "tap1" },
  { name = "blue", vlan = 2, type = "vlan", id = 102, uplink = "tap1" },
  { name = "green", vlan = 3, type = "gre", id = 7, vteps = ["192.0.2.2"] },
  { name = "white", vlan = 4, type = "geneve", id = 7, vteps = ["192.0.2.2"] },
  { name = "black", vlan = 5, type = "vxlan", id = 7, vteps = ["192.0.2.2"] },
]
port = [
  { name = "tap1", type = "afpacket" },
  { name = "gre0", type = "gre", remote-ip = "flow", key = "flow" },
  { name = "geneve0", type = "geneve", remote-ip = "flow", key = "flow" },
  { name = "vxlan0", type = "vxlan", remote-ip = "flow", key = "flow" },
  { name = "p1", type = "afpacket", tag = 1 },
  { name = "p2", type = "afxdp", tag = 2 },
]
"#;

#[test]
fn a_whole_kernel_interoperates_over_tunnels_and_provider_vlans() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::numbered(1..=2);
    site.hosts.iter().for_each(|host| host.set_mtu(&site.switch, TENANT_MTU));
    let mut vm = Vm::boot(&site.switch, &["tap0", "tap1"]);
    let daemon = Daemon::start(&site.switch, SWITCH);
    vm.run(&format!("ip addr add {}/24 dev eth0 && ip link set eth0 up && ip link set eth1 up", vtep(2)));
    vm.run("iperf3 -s -D");
    within(SLOWLY, "iperf3 listens", || vm.run("ss -Hltn sport = :5201").contains("LISTEN"));

    let ends = format!("local {} remote {}", vtep(2), vtep(1));
    for (vlan, change, add) in [
        (3, "gre0 csum=", format!("type gretap {ends} key 7")),
        (3, "gre0 csum=true", format!("type gretap {ends} key 7 csum oseq")),
        (4, "geneve0 csum=", format!("type geneve id 7 remote {}", vtep(1))),
        (5, "vxlan0 csum=true", format!("type vxlan id 7 {ends} dstport 4789 udpcsum")),
    ] {
        daemon.ask(&format!("port set p1 tag={vlan}"));
        daemon.ask(&format!("tunnel set {change}"));
        vm.run(&format!("ip link add tun0 {add}"));
        assert_guest(&mut vm, "tun0", &site.hosts[0]);
    }

    // Provider VLAN 101 is local VLAN 1, and 102 is 2; the same address is two guests.
    for (local, provider) in [(1, 101), (2, 102)] {
        let port = format!("p{local}");
        daemon.ask(&format!("port set {port} tag={local}"));
        vm.run(&format!("ip link add link eth1 name eth1.{provider} type vlan id {provider}"));
        assert_guest(&mut vm, &format!("eth1.{provider}"), &site.hosts[local - 1]);
    }
    let ledger = daemon.ask("ledger");
    assert_eq!(ledger["balances"], true, "{ledger}");
}
