//! What fits into a tunnel, what is told to those whose frames do not, and streams that find out by themselves. Tenants
//! have the MTU of the underlay here, 1500, so that nothing fits by chance.

use crate::support::fabric::{BLUE, Fabric, Family, Footing, GREEN, PINK, RED, Tenant};
use crate::support::host::Host;
use crate::support::lab::{Seat, eventually};
use crate::support::traffic::{await_ping, iperf3};

/// What outer headers take of an underlay packet: IP, UDP and VXLAN, or GRE with a key, and the inner Ethernet header.
const IPV4: u16 = 20;
const IPV6: u16 = 40;
const VXLAN: u16 = 8 + 8 + 14;
const GENEVE: u16 = 8 + 8 + 14;
const GRE: u16 = 8 + 14;
const UNDERLAY: u16 = 1500;

/// IP and ICMP headers in front of ping's payload.
const PING4: u16 = 20 + 8;
const PING6: u16 = 40 + 8;

fn ipv6(number: u8) -> String {
    format!("fd00::{number}")
}

/// Gives a VM the MTU of the underlay, and an IPv6 address.
fn prepare(fabric: &Fabric, tenant: &Tenant, number: u8) {
    let vm = fabric.vm(tenant, number);
    vm.set_mtu(&fabric.node(number).ns, UNDERLAY);
    vm.ns.sysctl("net/ipv6/conf/eth0/disable_ipv6", "0");
    vm.ns.ip(&format!("addr add {}/64 dev eth0 nodad", ipv6(number)));
}

/// What ping says of one packet of so many bytes that must not be fragmented.
fn ping_of(vm: &Host, to: &str, payload: u16) -> String {
    let output = vm.ns.output(&format!("ping -n -c 1 -W 1 -M do -s {payload} {to}"));
    [output.stdout, output.stderr].iter().map(|said| String::from_utf8_lossy(said).into_owned()).collect()
}

/// One byte more than fits is answered with what does, and that arrives.
fn assert_told(vm: &Host, to: &str, (mtu, headers): (u16, u16)) {
    let (v4, v6) = (format!("Frag needed and DF set (mtu = {mtu})"), format!("Packet too big: mtu={mtu}"));
    eventually(&format!("{} is told that {mtu} bytes and no more fit on the way to {to}", vm.port), || {
        // Who knows asks nobody. (An answer that took more than a second was believed, but not shown.)
        vm.ns.ip("route flush cache");
        vm.ns.ip("-6 route flush cache");
        let said = ping_of(vm, to, mtu - headers + 1);
        assert!(!said.contains("1 received"), "{said}");
        said.contains(&v4) || said.contains(&v6)
    });
    eventually(&format!("{mtu} bytes from {} to {to} arrive", vm.port), || {
        ping_of(vm, to, mtu - headers).contains("1 received")
    });
}

fn assert_stream(from: &Host, to: &Host, options: &str) {
    let end = &iperf3(from, to, &format!("-n 8M {options}"))["end"];
    let received = end["sum_received"]["bytes"].as_u64();
    assert!(
        received > Some(1 << 20),
        "{received:?} bytes from {} to {} with {options:?}",
        from.port,
        to.port
    );
}

fn assert_sizes(fabric: &Fabric, tenant: &Tenant, mtu: u16) {
    [1, 2].iter().for_each(|number| prepare(fabric, tenant, *number));
    for (from, to) in [(1, 2), (2, 1)] {
        let (vm, other) = (fabric.vm(tenant, from), fabric.vm(tenant, to));
        await_ping(vm, other.ip);
        assert_told(vm, &other.ip.to_string(), (mtu, PING4));
        eventually("IPv6 neighbours find each other", || ping_of(vm, &ipv6(to), 56).contains("1 received"));
        assert_told(vm, &ipv6(to), (mtu, PING6));
        // The streams shall find out for themselves.
        vm.ns.ip("route flush cache");
    }
    let (from, to) = (fabric.vm(tenant, 1), fabric.vm(tenant, 2));
    assert_stream(from, to, "");
    assert_stream(from, to, "--reverse");
    // We cut no packet, even where a router might: it is dropped, and that is counted.
    let before = over_mtu(fabric, tenant);
    from.ns.ip("route flush cache");
    from.ns.output(&format!("ping -n -q -c 1 -W 1 -M dont -s {} {}", UNDERLAY - PING4, to.ip));
    eventually("a packet too long is counted", || over_mtu(fabric, tenant) > before);
}

/// How many frames that were too long came from the first VM.
fn over_mtu(fabric: &Fabric, tenant: &Tenant) -> u64 {
    fabric.node(1).daemon.port(&fabric.vm(tenant, 1).port)["drops"]["over-mtu"].as_u64().unwrap_or(0)
}

#[test]
fn over_ipv4_what_does_not_fit_is_told_and_streams_flow() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::new(&[Footing::Vtep, Footing::Internal], &[&RED, &PINK, &GREEN, &BLUE]);
    for (tenant, header) in [(&RED, VXLAN), (&PINK, VXLAN), (&GREEN, GRE), (&BLUE, GENEVE)] {
        assert_sizes(&fabric, tenant, UNDERLAY - IPV4 - header);
    }
    fabric.assert_balance();
}

/// The kernel of the first hypervisor knows the way, and not what is in the packets.
#[test]
fn through_the_hosts_stack_what_does_not_fit_is_told_and_streams_flow() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::new(&[Footing::Host, Footing::Vtep], &[&RED, &PINK, &GREEN, &BLUE]);
    for (tenant, header) in [(&RED, VXLAN), (&PINK, VXLAN), (&GREEN, GRE), (&BLUE, GENEVE)] {
        assert_sizes(&fabric, tenant, UNDERLAY - IPV4 - header);
    }
    fabric.assert_balance();
}

#[test]
fn over_ipv6_what_does_not_fit_is_told_and_streams_flow() {
    let Some(_seat) = Seat::take() else { return };
    let fabric = Fabric::over(Family::V6, &[Footing::Vtep, Footing::Internal], &[&RED, &PINK, &BLUE]);
    for (tenant, header) in [(&RED, VXLAN), (&PINK, VXLAN), (&BLUE, GENEVE)] {
        assert_sizes(&fabric, tenant, UNDERLAY - IPV6 - header);
    }
    fabric.assert_balance();
}
