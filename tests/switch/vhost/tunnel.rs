//! VMs whose network goes through tunnels.

use std::net::IpAddr;

use encap::offload::{Gso, Offload};

use super::giants::{Giant, checked, giants};
use super::vm::{ALL, BARE, Build, Vm};
use super::{Vms, drain, plain, send};
use crate::fabric::{self, Fabric};
use crate::frames::{broadcast, partial, tcp, unicast};
use crate::overlay::big::payload;
use crate::overlay::outer::Outer;
use crate::overlay::{TUNNELS, endpoint_mac, node_over, v4, v6};
use crate::rack::both_ways;

/// Kinds of tunnel, and the length of their headers.
const KINDS: [(&str, usize); 3] = [("vxlan", 8), ("gre", 8), ("geneve", 8)];

/// Hypervisor `number` with VM ports `vm` and `other` in a segment that reaches the other one.
fn config(kind: &str, number: u8, vtep: IpAddr) -> String {
    let segment = format!("{{ name = 's', vlan = 10, type = '{kind}', id = 7, vteps = ['{vtep}'] }}");
    let port = |name| format!("{{ name = '{name}{number}', segment = 's', mtu = 9000 }}, ");
    node_over("", number, &segment, &format!("{TUNNELS}{}{}", port("vm"), port("other")))
}

fn from_there(kind: &str) -> Outer {
    match kind {
        "vxlan" => Outer::vxlan(2, 1, 7),
        "gre" => Outer::gre(2, 1, Some(7)),
        _ => Outer::geneve(2, 1, 7),
    }
}

/// Do its segments fit into a tunnel? Those of TCP are cut shorter, datagrams cannot be.
fn fits(giant: &Giant) -> bool {
    !matches!(giant.work.gso, Gso::Udp { size: 1300.. })
}

#[test]
fn giants_and_checksums_of_guests_are_done_inside_tunnels() {
    for (kind, header) in KINDS {
        for vtep in [v4(2), v6(2)] {
            both_ways(&config(kind, 1, vtep), |rack| {
                rack.neighbour("vtep1", vtep, endpoint_mac(2));
                let vms: Vms = [("vm1", ALL), ("other1", BARE)]
                    .map(|(port, f)| (port, Vm::new(rack, port, &Build::of(f))))
                    .into();
                let ips = if vtep.is_ipv4() { (v4(2), v4(1)) } else { (v6(2), v6(1)) };
                // What comes through the tunnel.
                let inner = broadcast(2);
                let outer = Outer { ips, csum: false, ..from_there(kind) };
                let outer = Outer { csum: vtep.is_ipv6() && outer.ports.is_some(), ..outer };
                assert!(rack.cable("eth1").inject(&outer.wrap(&inner)));
                rack.settle();
                let out = drain(rack, &vms);
                assert!(out.len() == 2 && out.values().all(|got| *got == [plain(&inner)]), "{kind}: {out:?}");
                // What goes into it.
                for giant in giants() {
                    let out = send(rack, &vms, "vm1", &giant.frame, giant.work);
                    if !fits(&giant) {
                        // The guest is told (ICMP, ICMPv6).
                        assert_eq!((out.len(), out["vm1"].len()), (1, 1), "{kind} {rack:?}");
                        continue;
                    }
                    assert_eq!(out.keys().collect::<Vec<_>>(), ["eth1"], "{kind} {rack:?}");
                    let tallest = out["eth1"].iter().map(|segment| segment.bytes.len()).max();
                    assert!(tallest <= Some(1514) && out["eth1"].iter().all(|s| s.offload.is_none()));
                    let inner = out["eth1"].iter().map(|segment| Outer::open(&segment.bytes, header).1);
                    let cut: Vec<u8> = inner.flat_map(|inner| checked(&inner).0).collect();
                    assert!(cut == giant.payload, "{kind}: another payload of {:?}", giant.work);
                }
                let whole = tcp((1, 40_000), (2, 80), &payload(900));
                let (frame, csum) = partial(whole.clone(), 16);
                let out = send(rack, &vms, "vm1", &frame, Offload { csum, ..Offload::NONE });
                assert_eq!(Outer::open(&out["eth1"][0].bytes, header).1, whole);
            });
        }
    }
}

/// Two hypervisors, two guests, and the network between them.
#[test]
fn guests_talk_through_two_switches() {
    for (kind, _) in KINDS {
        let configs = [config(kind, 1, v4(2)), config(kind, 2, v4(1))];
        fabric::both_ways(&configs, &["eth1"], |fabric| {
            let vms = [1, 2].map(|number| {
                let build = if number == 1 { Build::of(ALL) } else { Build::of(ALL).packed() };
                let port = if number == 1 { "vm1" } else { "vm2" };
                Vm::new(&mut fabric.racks[number - 1], port, &build)
            });
            let cross = |fabric: &mut Fabric, from: usize, frame: &[u8], work: Offload| {
                vms[from].send(frame, work);
                fabric.settle();
                fabric.racks.iter_mut().for_each(|rack| drop(rack.drain()));
                vms[1 - from].take()
            };
            assert_eq!(cross(fabric, 1, &broadcast(2), Offload::NONE), [plain(&broadcast(2))]);
            assert_eq!(cross(fabric, 0, &unicast(1, 2), Offload::NONE), [plain(&unicast(1, 2))]);
            assert_eq!(cross(fabric, 1, &unicast(2, 1), Offload::NONE), [plain(&unicast(2, 1))]);
            for giant in giants().into_iter().filter(fits) {
                let got = cross(fabric, 0, &giant.frame, giant.work);
                let cut: Vec<u8> = got.iter().flat_map(|segment| checked(&segment.bytes).0).collect();
                assert!(cut == giant.payload, "{kind}: another payload of {:?}", giant.work);
            }
        });
    }
}
