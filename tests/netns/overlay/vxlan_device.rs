//! Linux's own vxlan device at the other end, with all its offloads on.

use crate::rig::assert_reach;
use crate::support::fabric::{Fabric, Family, Footing, PINK, RED};
use crate::support::host::Host;
use crate::support::lab::{Seat, eventually};
use crate::support::namespace::Namespace;
use crate::support::peers::{TENANT_MTU, vtep};
use crate::support::traffic::{await_ping, iperf3, tcp_between};

/// A vxlan device with `settings` in the namespace of hypervisor `number`. With it that is a host.
fn device(ns: Namespace, number: u8, settings: &str) -> Host {
    ns.ip_batch(&format!(
        "link add vx0 mtu {TENANT_MTU} type vxlan dstport 4789 dev uplink {settings}\n\
         addr add 10.9.0.{number}/16 dev vx0\n\
         link set vx0 up"
    ));
    Host { ns, port: "vx0".into(), ip: [10, 9, 0, number].into() }
}

fn mac(device: &Host) -> String {
    device.ns.ip_json("link show dev vx0")[0]["address"].as_str().expect("an address").to_owned()
}

fn ends(family: Family, local: u8, remote: u8) -> String {
    format!("local {} remote {}", family.address(local), family.address(remote))
}

fn streams(vm: &Host, device: &Host) {
    assert_reach(vm, device);
    for options in ["-n 8M", "-n 8M --reverse"] {
        let end = &iperf3(vm, device, options)["end"];
        let received = end["sum_received"]["bytes"].as_u64();
        assert!(received > Some(1 << 20), "{options}: {end}");
    }
}

/// Two tenants on one hypervisor, whose ports are of both kinds, and a device for each.
fn devices_interoperate(family: Family, footing: Footing) {
    let mut fabric = Fabric::beside(2, (family, &[footing]), &[&RED, &PINK]);
    let mut strangers = fabric.strangers.drain(..);
    let mut far = |number, vni| {
        let ns = strangers.next().expect("two strangers");
        device(ns, number, &format!("id {vni} {}", ends(family, number, 1)))
    };
    let (red, pink) = (far(2, 5001), far(3, 5002));
    drop(strangers);
    streams(fabric.vm(&RED, 1), &red);
    streams(fabric.vm(&PINK, 1), &pink);
    assert!(!fabric.vm(&RED, 1).pings(pink.ip) && !fabric.vm(&PINK, 1).pings(red.ip), "tenants meet");
    fabric.assert_balance();
}

#[test]
fn a_vxlan_device_interoperates_over_ipv4() {
    let Some(_seat) = Seat::take() else { return };
    devices_interoperate(Family::V4, Footing::Vtep);
    devices_interoperate(Family::V4, Footing::Internal);
    devices_interoperate(Family::V4, Footing::Host);
}

#[test]
fn a_vxlan_device_interoperates_over_ipv6() {
    let Some(_seat) = Seat::take() else { return };
    devices_interoperate(Family::V6, Footing::Vtep);
    devices_interoperate(Family::V6, Footing::Internal);
    devices_interoperate(Family::V6, Footing::Host);
}

/// The switch is told of no VTEP and the device of no remote end: each knows the other from what it got.
#[test]
fn endpoints_that_nobody_configured_are_learned() {
    let Some(_seat) = Seat::take() else { return };
    let mut fabric = Fabric::beside(2, (Family::V4, &[Footing::Vtep]), &[&RED]);
    let untold = fabric.strangers.pop().expect("hypervisor 3");
    let told = fabric.strangers.pop().expect("hypervisor 2");
    let (node, vm) = (fabric.node(1), fabric.vm(&RED, 1));
    node.daemon.ask("segment set red vteps=[]");
    let told = device(told, 2, &format!("id 5001 {}", ends(Family::V4, 2, 1)));
    assert!(!vm.pings(told.ip), "frames went to a VTEP that nobody named");
    await_ping(&told, vm.ip);
    // Now it is known, and gets what all must get.
    vm.ns.ip("neigh flush all");
    streams(vm, &told);
    let segment = node.daemon.ask("segment show br-int")[0].take();
    assert_eq!(segment["vteps"][0]["address"], "192.0.2.2", "{segment}");

    let untold = device(untold, 3, &format!("id 5001 local {}", vtep(3)));
    assert!(!untold.pings(vm.ip), "the device found its way without having heard of anybody");
    node.daemon.ask("segment set red vteps=[\"192.0.2.3\"]");
    await_ping(vm, untold.ip);
    streams(vm, &untold);
    assert_eq!(node.place(&RED, &mac(&untold)), Some(("vxlan0".to_owned(), Some(vtep(3).into()))));
    fabric.assert_balance();
}

/// With everything told beforehand nothing needs to be flooded, not even ARP: the VTEP is none of the segment's.
#[test]
fn stations_that_the_controller_names_need_no_flood() {
    let Some(_seat) = Seat::take() else { return };
    let mut fabric = Fabric::beside(1, (Family::V4, &[Footing::Internal]), &[&RED]);
    let far = fabric.strangers.pop().expect("hypervisor 2");
    let (node, vm) = (fabric.node(1), fabric.vm(&RED, 1));
    let far = device(far, 2, &format!("id 5001 nolearning local {}", vtep(2)));
    far.ns.sh(&format!("bridge fdb append {} dev vx0 dst {}", vm.mac(), node.address()));
    far.ns.ip(&format!("neigh add {} lladdr {} dev vx0 nud permanent", vm.ip, vm.mac()));
    node.daemon.ask("segment set red vteps=[] learning=false strict-peers=true");
    assert!(!vm.pings(far.ip), "frames went to a VTEP that nobody named");
    node.daemon.ask(&format!("fdb add br-int {} segment=red vtep={}", mac(&far), vtep(2)));
    node.daemon.ask(&format!("neigh add br-int {} segment=red mac={}", far.ip, mac(&far)));
    streams(vm, &far);
    let shown = node.daemon.ask("neigh show br-int").to_string();
    assert!(shown.contains(&mac(&far)), "{shown}");
    node.daemon.ask(&format!("fdb del br-int {} segment=red", mac(&far)));
    eventually("a VTEP that is none of the segment's any more is not heard", || {
        far.pings(vm.ip);
        node.daemon.ask("drops").to_string().contains("unknown-vtep")
    });
    fabric.assert_balance();
}

/// Tenants may have tunnels of their own. Where nobody tells what their kernels left undone, in frames in frames, it
/// is found.
#[test]
fn a_tenant_has_tunnels_in_the_tunnel() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::new(&[Footing::Vtep, Footing::Internal], &[&RED]);
    for (own, other) in [(1, 2), (2, 1)] {
        let (vm, remote) = (fabric.vm(&RED, own), fabric.vm(&RED, other).ip);
        vm.ns.ip_batch(&format!(
            "link add vx0 mtu {} type vxlan id 9 dstport 8472 local {} remote {remote} dev eth0\n\
             addr add 10.99.0.{own}/24 dev vx0\n\
             link set vx0 up",
            TENANT_MTU - 50,
            vm.ip
        ));
    }
    for (from, to) in [(1, 2), (2, 1)] {
        let ip = [10, 99, 0, to].into();
        await_ping(fabric.vm(&RED, from), ip);
        tcp_between(&fabric.vm(&RED, from).ns, &fabric.vm(&RED, to).ns, ip, 4 << 20);
    }
    fabric.assert_balance();
}
