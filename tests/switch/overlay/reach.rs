//! Who hears whom: everybody in a segment, on whatever hypervisor, and nobody else.

use std::net::IpAddr;
use std::time::Duration;

use flowtable::action::DropReason;
use flowtable::time::Instant;
use proptest::prelude::*;

use super::{TUNNELS, node, node_over, v4, v6};
use crate::fabric::{Fabric, both_ways};
use crate::frames::{broadcast, mac, tagged, unicast};
use crate::guest::{Guest, play};

/// How the segment of each tenant reaches other hypervisors.
const KINDS: [&str; 6] = [
    "type = 'vxlan', id = 5001",
    "type = 'gre', id = 5001",
    "type = 'geneve', id = 5001",
    "type = 'vlan', id = 101, uplink = 'eth2'",
    "type = 'flat', uplink = 'eth3'",
    "type = 'local'",
];
const HOSTS: usize = 3;
pub const WIRES: [&str; 3] = ["eth1", "eth2", "eth3"];

/// A VM. Tenants call their VMs by the same addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    tenant: usize,
    host: usize,
    /// Its number among the VMs of its tenant, and so its addresses.
    nth: u8,
}

impl Vm {
    fn port(&self) -> String {
        format!("t{}-{}", self.tenant, self.nth)
    }

    fn hears(&self, other: &Vm) -> bool {
        let local = KINDS[self.tenant] == "type = 'local'";
        self != other && self.tenant == other.tenant && (!local || self.host == other.host)
    }
}

/// VMs at these places, each `(tenant, host)`.
pub fn vms(places: &[(usize, usize)]) -> Vec<Vm> {
    let mut count = [0; KINDS.len()];
    let vm = |&(tenant, host): &(usize, usize)| {
        count[tenant] += 1;
        Vm { tenant, host, nth: count[tenant] }
    };
    places.iter().map(vm).collect()
}

/// The local VLAN of a tenant: another on each hypervisor, and sometimes none.
fn local_vlan(tenant: usize, host: usize) -> Option<usize> {
    let vlan = 1 + (5 * tenant + 7 * host) % 29;
    (!(tenant + host).is_multiple_of(4)).then_some(vlan)
}

/// A hypervisor that has the segments its VMs are in; the VTEPs of a segment are those where it has VMs.
fn config(vms: &[Vm], host: usize) -> String {
    let here = |tenant| vms.iter().any(|vm| (vm.tenant, vm.host) == (tenant, host));
    let segment = |tenant: usize| {
        let lives = |other: &usize| vms.iter().any(|vm| (vm.tenant, vm.host) == (tenant, *other));
        let others = (0..HOSTS).filter(|other| *other != host && lives(other));
        let vteps: Vec<String> = others.map(|other| format!("'{}'", v4(1 + other as u8))).collect();
        let vteps = if tenant < 3 { format!(", vteps = [{}]", vteps.join(", ")) } else { String::new() };
        let vlan = local_vlan(tenant, host).map_or(String::new(), |vlan| format!(", vlan = {vlan}"));
        format!("{{ name = 's{tenant}', {}{vteps}{vlan} }},", KINDS[tenant])
    };
    let port = |vm: &Vm| match local_vlan(vm.tenant, host) {
        Some(vlan) if vm.nth.is_multiple_of(2) => format!("{{ name = '{}', tag = {vlan} }},", vm.port()),
        _ => format!("{{ name = '{}', segment = 's{}' }},", vm.port(), vm.tenant),
    };
    let segments: String = (0..KINDS.len()).filter(|tenant| here(*tenant)).map(segment).collect();
    let mut ports: String = vms.iter().filter(|vm| vm.host == host).map(port).collect();
    for (tenant, uplink) in [(3, "eth2"), (4, "eth3")] {
        ports += &if here(tenant) { format!("{{ name = '{uplink}' }},") } else { String::new() };
    }
    node(1 + host as u8, &segments, &ports)
}

pub fn configs(vms: &[Vm]) -> Vec<String> {
    (0..HOSTS).map(|host| config(vms, host)).collect()
}

/// Everybody broadcasts, then sends to everybody and to somebody who is not there.
pub fn all_talk(fabric: &mut Fabric, vms: &[Vm]) {
    for from in vms {
        let to: Vec<String> = vms.iter().filter(|to| from.hears(to)).map(Vm::port).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        fabric.expect_at(&from.port(), &broadcast(from.nth), &to);
        fabric.expect_at(&from.port(), &unicast(from.nth, 200), &to);
    }
    for from in vms {
        for to in vms.iter().filter(|to| from.hears(to)) {
            fabric.expect_at(&from.port(), &unicast(from.nth, to.nth), &[&to.port()]);
        }
    }
}

#[test]
fn tenants_of_all_kinds_share_three_hypervisors_and_hear_only_themselves() {
    let places: Vec<_> =
        (0..KINDS.len()).flat_map(|tenant| (0..HOSTS).map(move |host| (tenant, host))).collect();
    let vms = vms(&[&places[..], &places[..]].concat());
    both_ways(&configs(&vms), &WIRES, |fabric| all_talk(fabric, &vms));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn wherever_vms_live_they_hear_their_segment_once_and_nobody_else(
        places in prop::collection::vec((0..KINDS.len(), 0..HOSTS), 30),
    ) {
        let vms = vms(&places);
        both_ways(&configs(&vms), &WIRES, |fabric| all_talk(fabric, &vms));
    }
}

/// The segment of three hypervisors that send to these VTEPs.
fn triangle(vteps: [&[u8]; 3], address: impl Fn(u8) -> IpAddr) -> [String; 3] {
    [1, 2, 3].map(|number: u8| {
        let vteps: Vec<String> =
            vteps[usize::from(number) - 1].iter().map(|to| format!("'{}'", address(*to))).collect();
        format!("{{ name = 's', vlan = {number}, type = 'vxlan', id = 7, vteps = [{}] }}", vteps.join(", "))
    })
}

const MESH: [&[u8]; 3] = [&[2, 3], &[1, 3], &[1, 2]];

fn three(vteps: [&[u8]; 3]) -> Vec<String> {
    let segments = triangle(vteps, v4);
    (1..)
        .zip(&segments)
        .map(|(n, segment)| node(n, segment, &format!("{{ name = 'vm{n}', segment = 's' }}")))
        .collect()
}

#[test]
fn what_came_out_of_a_tunnel_goes_into_none() {
    both_ways(&three(MESH), &WIRES, |fabric| {
        fabric.expect_at("vm1", &broadcast(1), &["vm2", "vm3"]);
        fabric.expect_at("vm2", &unicast(2, 9), &["vm1", "vm3"]);
    });
    // The one in the middle knows both others, but is no relay.
    both_ways(&three([&[2], &[1, 3], &[2]]), &WIRES, |fabric| {
        fabric.expect_at("vm1", &broadcast(1), &["vm2"]);
        fabric.expect_at("vm3", &broadcast(3), &["vm2"]);
        fabric.expect_at("vm2", &broadcast(2), &["vm1", "vm3"]);
        // It knows where that lives: behind a tunnel.
        fabric.expect_drop("vm1", &unicast(1, 3), DropReason::SplitHorizon);
    });
}

#[test]
fn the_underlay_may_be_ipv6_or_a_vlan() {
    for (settings, address) in [("", v6 as fn(u8) -> IpAddr), (", tag = 42", v4), (", tag = 42", v6)] {
        let segments = triangle(MESH, address);
        let config = |number: u8| {
            let ports = format!("{TUNNELS} {{ name = 'vm{number}', segment = 's' }}");
            node_over(settings, number, &segments[usize::from(number) - 1], &ports)
        };
        both_ways(&[1, 2, 3].map(config), &WIRES, |fabric| {
            fabric.expect_at("vm1", &broadcast(1), &["vm2", "vm3"]);
            fabric.expect_at("vm2", &unicast(2, 1), &["vm1"]);
            fabric.expect_at("vm3", &unicast(3, 2), &["vm2"]);
        });
    }
}

/// Two hypervisors with a point-to-point tunnel, and ports on either side.
fn point_to_point(tunnel: &str, ports: &str) -> Vec<String> {
    let config = |(here, there): (u8, u8)| {
        let tunnel = format!("{{ name = 'p2p', remote-ip = '{}', {tunnel} }},", v4(there));
        node_over("", here, "", &format!("{tunnel}{}", ports.replace('#', &here.to_string())))
    };
    [(1, 2), (2, 1)].map(config).into()
}

#[test]
fn a_point_to_point_tunnel_is_a_port_like_any_other() {
    let ports =
        "{ name = 'a#', tag = 10 }, { name = 'b#', tag = 20 }, { name = 'c#', tag = 30 }, { name = 't#' }";
    for kind in ["type = 'vxlan', key = 7", "type = 'gre'", "type = 'gre', key = 0", "type = 'geneve'"] {
        both_ways(&point_to_point(&format!("{kind}, trunks = [10, 20]"), ports), &WIRES, |fabric| {
            // The trunk here, and the other side; VLAN 30 stays.
            let tagged_too = |fabric: &mut Fabric, from: &str, vlan, far: &[&str]| {
                let frame = broadcast(1);
                let out = fabric.send(from, std::slice::from_ref(&frame));
                let expected = far.iter().map(|port| {
                    let is_trunk = port.starts_with('t');
                    ((*port).to_owned(), vec![if is_trunk { tagged(&frame, vlan) } else { frame.clone() }])
                });
                assert_eq!(out, expected.collect(), "{fabric:?}");
            };
            tagged_too(fabric, "a1", 10, &["t1", "a2", "t2"]);
            tagged_too(fabric, "b2", 20, &["t2", "b1", "t1"]);
            tagged_too(fabric, "c1", 30, &["t1"]);
            // The priority survives, as does the drop-eligible bit.
            let out = fabric.send("t1", &[tagged(&unicast(9, 8), 0x700a)]);
            let expected =
                [("a1", unicast(9, 8)), ("a2", unicast(9, 8)), ("t2", tagged(&unicast(9, 8), 0x700a))];
            assert_eq!(
                out,
                expected.map(|(port, frame)| (port.to_owned(), vec![frame])).into(),
                "{fabric:?}"
            );
        });
        both_ways(&point_to_point(&format!("{kind}, tag = 20"), ports), &WIRES, |fabric| {
            fabric.send("b1", &[broadcast(1)]);
            let out = fabric.send("b2", &[unicast(2, 1)]);
            assert_eq!(out, [("b1".to_owned(), vec![unicast(2, 1)])].into(), "{fabric:?}");
            assert!(!fabric.send("a2", &[unicast(2, 1)]).contains_key("b1"));
        });
    }
}

/// The keys of tunnels between the same two are what tells them apart, and none is not zero.
#[test]
fn no_key_and_key_zero_are_different_tunnels() {
    let config = |(here, there): (u8, u8)| {
        let tunnel =
            |(name, key)| format!("{{ name = '{name}', type = 'gre', remote-ip = '{}', {key} }},", v4(there));
        let tunnels: String =
            [("none", "tag = 1"), ("zero", "tag = 2, key = 0"), ("one", "tag = 3, key = 1")]
                .map(tunnel)
                .concat();
        let vms: String =
            (1..=3).map(|vlan| format!("{{ name = 'vm{vlan}-{here}', tag = {vlan} }},")).collect();
        node_over("", here, "", &(tunnels + &vms))
    };
    both_ways(&[config((1, 2)), config((2, 1))], &WIRES, |fabric| {
        for vlan in 1..=3 {
            fabric.expect_at(&format!("vm{vlan}-1"), &broadcast(1), &[&format!("vm{vlan}-2")]);
            fabric.expect_at(&format!("vm{vlan}-2"), &unicast(2, 1), &[&format!("vm{vlan}-1")]);
        }
    });
}

#[test]
pub fn vms_on_two_hypervisors_resolve_ping_and_stream() {
    for segment in ["type = 'vxlan', id = 1", "type = 'gre', id = 0", "type = 'geneve', id = 16777215"] {
        let config = |(here, there): (u8, u8)| {
            let segment = format!("{{ name = 's', {segment}, vteps = ['{}'] }}", v4(there));
            let node = node_over(
                ", mtu = 1600",
                here,
                &segment,
                &format!("{TUNNELS} {{ name = 'vm{here}', segment = 's' }}"),
            );
            node.replace("{ name = 'eth1' }", "{ name = 'eth1', mtu = 1600 }")
        };
        both_ways(&[config((1, 2)), config((2, 1))], &WIRES, |fabric| {
            let mut guest = |n: u8| {
                let peer = fabric.racks[usize::from(n) - 1].take_cable(&format!("vm{n}"));
                Guest::new(peer, mac(n), &[&format!("10.0.0.{n}/24"), &format!("fd00::{n}/64")])
            };
            let mut guests = [guest(1), guest(2)];
            guests[0].ping("10.0.0.2");
            guests[1].ping("fd00::1");
            let mut turn = |now| {
                fabric.set_time(now);
                fabric.settle();
            };
            let answered = |guests: &[Guest]| guests.iter().all(|guest| guest.answers() == 1);
            let now = play(&mut guests, (Instant::ZERO, Duration::from_secs(5)), &mut turn, answered);
            let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
            guests[1].listen(80);
            guests[0].send("10.0.0.2", 80, &bytes);
            let arrived = |guests: &[Guest]| guests[1].received().len() == bytes.len();
            play(&mut guests, (now, Duration::from_secs(60)), &mut turn, arrived);
            assert!(guests[1].received() == bytes);
        });
    }
}
