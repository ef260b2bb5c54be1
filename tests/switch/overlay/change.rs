//! What changes while frames flow: where VMs live, how segments are mapped, who is on the underlay.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dataplane::batch::Batch;
use dataplane::frame::FrameCache;
use dataplane::port::memory::MemoryPort;
use dataplane::port::{Port, PortError, Readiness, Sent};
use dataplane::shared::Event;
use encap::field::MacAddr;
use flowtable::action::DropReason::*;
use flowtable::id::Place;

use super::outer::Outer;
use super::{endpoint_mac, node, v4};
use crate::fabric::{self, Fabric};
use crate::frames::{broadcast, frame, gratuitous_arp, mac, tagged, unicast};
use crate::live::Live;
use crate::rack::{self, Rack};

/// How a segment reaches the other hypervisors.
const KINDS: [&str; 5] = [
    "type = 'vxlan', id = 7",
    "type = 'gre', id = 7",
    "type = 'geneve', id = 7",
    "type = 'vlan', id = 101, uplink = 'eth2'",
    "type = 'flat', uplink = 'eth2'",
];

/// Three hypervisors, each with these VMs in the one segment.
fn three(kind: &str, vms: [&str; 3]) -> [String; 3] {
    [1, 2, 3].map(|number: u8| {
        let others: Vec<String> = (1..=3).filter(|n| *n != number).map(|n| format!("'{}'", v4(n))).collect();
        let vteps = match kind.contains("uplink") {
            true => String::new(),
            false => format!(", vteps = [{}]", others.join(", ")),
        };
        let segment = format!("{{ name = 's', vlan = {number}, {kind}{vteps} }}");
        let port = |name: &str| format!("{{ name = '{name}', tag = {number} }},");
        let ports: String = vms[usize::from(number) - 1].split_whitespace().map(port).collect();
        let uplink = if kind.contains("uplink") { "{ name = 'eth2' }," } else { "" };
        node(number, &segment, &(ports + uplink))
    })
}

/// Where a rack believes a station to be.
fn places(fabric: &Fabric, station: MacAddr) -> Vec<Vec<Place>> {
    let of = |rack: &Rack| {
        let entries = rack.fdb("br-int").into_iter();
        entries.filter(|entry| entry.station.mac == station).map(|entry| entry.place).collect()
    };
    fabric.racks.iter().map(of).collect()
}

/// The old port goes, or both are there for a while; the VM announces itself by RARP, ARP, or just speaks.
#[test]
fn a_vm_that_moves_is_found_at_once_and_nowhere_else() {
    let rarp = frame(mac(1), MacAddr::BROADCAST);
    for kind in KINDS {
        for (announcement, stays) in [(rarp.clone(), true), (gratuitous_arp(1), false)] {
            let before = three(kind, ["old w1", "w2 new", "w3"]);
            let after = three(kind, [if stays { "old w1" } else { "w1" }, "w2 new", "w3"]);
            fabric::both_ways(&before, &["eth1", "eth2"], |fabric| {
                fabric.send("old", &[broadcast(1)]);
                for (watcher, n) in [("w1", 11), ("w2", 12), ("w3", 13)] {
                    fabric.send(watcher, &[broadcast(n)]);
                    fabric.expect_at(watcher, &unicast(n, 1), &["old"]);
                }
                fabric.expect_at("old", &unicast(1, 13), &["w3"]);
                (0..3).for_each(|rack| fabric.apply(rack, &after[rack]));
                fabric.send("new", std::slice::from_ref(&announcement));
                for (watcher, n) in [("w1", 11), ("w2", 12), ("w3", 13)] {
                    fabric.expect_at(watcher, &unicast(n, 1), &["new"]);
                    fabric.expect_at("new", &unicast(1, n), &[watcher]);
                }
                let places = places(fabric, mac(1));
                assert!(places.iter().all(|places| places.len() == 1), "{places:?}\n{fabric:?}");
                assert_eq!(places[1], [Place::Port(fabric.racks[1].id("new"))]);
                if stays {
                    // And back, by an ordinary frame.
                    fabric.send("old", &[broadcast(1)]);
                    fabric.expect_at("w3", &unicast(13, 1), &["old"]);
                    fabric.expect_at("w2", &unicast(12, 1), &["old"]);
                }
            });
        }
    }
}

#[test]
fn a_vtep_that_is_removed_gets_nothing_more() {
    for kind in &KINDS[..3] {
        let all = three(kind, ["w1", "w2", "w3"]);
        let without = all[0].replace(", '192.0.2.3'", "");
        fabric::both_ways(&all, &["eth1"], |fabric| {
            ["w1", "w2", "w3"].into_iter().zip(1..).for_each(|(w, n)| drop(fabric.send(w, &[broadcast(n)])));
            fabric.expect_at("w1", &unicast(1, 3), &["w3"]);
            fabric.expect_at("w1", &broadcast(1), &["w2", "w3"]);
            fabric.apply(0, &without);
            // The other one knows where that lives, but is no relay.
            fabric.expect_drop("w1", &unicast(1, 3), SplitHorizon);
            fabric.expect_at("w1", &broadcast(1), &["w2"]);
            // It still sends to us, and so is learned; with strict peers it is not.
            fabric.apply(0, &without.replace("{ name = 's',", "{ name = 's', strict-peers = true,"));
            fabric.expect_at("w3", &broadcast(3), &["w2"]);
            assert_eq!(fabric.dropped(UnknownVtep), 3);
            fabric.expect_drop("w1", &unicast(1, 3), SplitHorizon);
            fabric.apply(0, &without);
            fabric.expect_at("w3", &broadcast(3), &["w1", "w2"]);
            fabric.expect_at("w1", &unicast(1, 3), &["w3"]);
            fabric.expect_at("w1", &broadcast(1), &["w2", "w3"]);
        });
    }
}

/// Nobody said that it died: what it taught goes by age.
#[test]
fn a_learned_vtep_that_falls_silent_is_forgotten() {
    let all = three(KINDS[0], ["w1", "w2", "w3"]);
    let mut configs = all.clone();
    configs[0] = all[0].replace(", '192.0.2.3'", "");
    fabric::both_ways(&configs, &["eth1"], |fabric| {
        fabric.send("w3", &[broadcast(3)]);
        fabric.expect_at("w1", &broadcast(1), &["w2", "w3"]);
        for _ in 0..70 {
            fabric.wait(Duration::from_secs(5));
            fabric.send("w1", &[broadcast(1)]);
        }
        fabric.expect_at("w1", &broadcast(1), &["w2"]);
        fabric.expect_at("w1", &unicast(1, 3), &["w2"]);
    });
}

/// One hypervisor with a segment of each kind.
fn one(ids: [u32; 5]) -> String {
    let [a, b, c, d, e] = ids;
    let segments = format!(
        "{{ name = 'a', vlan = 1, type = 'vxlan', id = {a}, vteps = ['192.0.2.2'] }},
         {{ name = 'b', vlan = 2, type = 'gre', id = {b}, vteps = ['192.0.2.2'] }},
         {{ name = 'c', vlan = 3, type = 'geneve', id = {c}, vteps = ['192.0.2.2'] }},
         {{ name = 'd', vlan = 4, type = 'vlan', id = {d}, uplink = 'eth2' }},
         {{ name = 'e', type = 'vxlan', id = {e}, vteps = ['192.0.2.2'] }},"
    );
    let vms = ["a", "b", "c", "d", "e"].map(|name| format!("{{ name = 'vm-{name}', segment = '{name}' }},"));
    node(1, &segments, &(vms.concat() + "{ name = 'eth2' }"))
}

/// What a frame of each VM is on the wire, by wire and segment.
fn mapped(ids: [u32; 5], frame: &[u8], towards: (u8, u8)) -> [(&'static str, &'static str, Vec<u8>); 5] {
    let (from, to) = towards;
    [
        ("vm-a", "eth1", Outer::vxlan(from, to, ids[0]).wrap(frame)),
        ("vm-b", "eth1", Outer::gre(from, to, Some(ids[1])).wrap(frame)),
        ("vm-c", "eth1", Outer::geneve(from, to, ids[2]).wrap(frame)),
        ("vm-d", "eth2", tagged(frame, ids[3] as u16)),
        ("vm-e", "eth1", Outer::vxlan(from, to, ids[4]).wrap(frame)),
    ]
}

/// The frame with the UDP source port that [`Outer`] has.
fn any_source(wire: &str, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if wire == "eth1" && frame[23] == 17 {
        frame[34..36].copy_from_slice(&50000_u16.to_be_bytes());
    }
    frame
}

#[track_caller]
fn expect_mapped(rack: &mut Rack, ids: [u32; 5]) {
    let (there, back) = (broadcast(1), broadcast(2));
    for _ in 0..3 {
        for (vm, wire, bytes) in mapped(ids, &there, (1, 2)) {
            let out = rack.send(vm, std::slice::from_ref(&there));
            assert_eq!((out.len(), out[wire].len()), (1, 1), "{out:?}");
            assert!(
                any_source(wire, &out[wire][0]) == bytes,
                "{vm} of {ids:?}: {}",
                rack::hex(&out[wire][0])
            );
        }
    }
    for (vm, wire, bytes) in mapped(ids, &back, (2, 1)) {
        rack.expect(wire, &bytes, &[(vm, &back)]);
    }
}

#[test]
fn a_new_number_holds_from_the_next_frame_on_both_ways() {
    let first = [5001, 5001, 5001, 101, 5002];
    rack::both_ways(&one(first), |rack| {
        rack.neighbour("vtep1", v4(2), endpoint_mac(2));
        expect_mapped(rack, first);
        // One, all, and two that change places.
        let mut old = first;
        for ids in [[6001, 5001, 5001, 101, 5002], [6002, 0, 16_777_215, 4094, 1], [1, u32::MAX, 0, 1, 6002]]
        {
            // Some wait in the ports meanwhile: what comes out after is new, what came in under the old number is not let in.
            for (vm, wire, _) in mapped(old, &broadcast(1), (1, 2)) {
                assert!((0..20).all(|_| rack.cable(vm).inject(&broadcast(1))));
                assert_eq!(rack.cable(wire).drain(), []);
            }
            rack.apply(&one(ids));
            let out = rack.drain();
            let expected: Vec<_> =
                mapped(ids, &broadcast(1), (1, 2)).into_iter().map(|(_, _, bytes)| bytes).collect();
            for (wire, frames) in &out {
                assert!(
                    frames.iter().all(|frame| expected.contains(&any_source(wire, &frame.bytes))),
                    "{rack:?}"
                );
            }
            assert_eq!((out["eth1"].len(), out["eth2"].len()), (80, 20));
            expect_mapped(rack, ids);
            let stays = mapped(ids, &broadcast(2), (2, 1)).map(|(_, wire, bytes)| (wire, bytes));
            for (_, wire, bytes) in mapped(old, &broadcast(2), (2, 1)) {
                if !stays.contains(&(wire, bytes.clone())) {
                    rack.expect_drop(wire, &bytes, if wire == "eth2" { Vlan } else { UnknownSegment });
                }
            }
            old = ids;
        }
    });
}

#[test]
fn a_segment_changes_its_local_vlan_or_kind_and_goes_and_comes() {
    let ports = "{ name = 'vm1', tag = 1 }, { name = 'vm2', tag = 2 }, { name = 'eth2' }";
    let with = |segment: &str| node(1, segment, ports);
    let vxlan = "{ name = 's', vlan = 1, type = 'vxlan', id = 7, vteps = ['192.0.2.2'] },";
    let keep_eth2 = "{ name = 'other', vlan = 9, type = 'flat', uplink = 'eth2' },";
    let config = |segment: &str| with(&format!("{segment}{keep_eth2}"));
    let in_vxlan = Outer::vxlan(2, 1, 7).wrap(&broadcast(2));
    rack::both_ways(&config(vxlan), |rack| {
        rack.neighbour("vtep1", v4(2), endpoint_mac(2));
        let leaves = |rack: &mut Rack, vm: &str| rack.send(vm, &[broadcast(1)]).contains_key("eth1");
        rack.expect("eth1", &in_vxlan, &[("vm1", &broadcast(2))]);
        assert!(leaves(rack, "vm1") && !leaves(rack, "vm2"));
        rack.apply(&config(&vxlan.replace("vlan = 1", "vlan = 2")));
        rack.expect("eth1", &in_vxlan, &[("vm2", &broadcast(2))]);
        assert!(!leaves(rack, "vm1") && leaves(rack, "vm2"));
        rack.apply(&config(""));
        rack.expect_drop("eth1", &in_vxlan, UnknownSegment);
        assert!(!leaves(rack, "vm1") && !leaves(rack, "vm2"));
        rack.apply(&config("{ name = 's', vlan = 1, type = 'vlan', id = 101, uplink = 'eth2' },"));
        rack.expect_drop("eth1", &in_vxlan, UnknownSegment);
        rack.expect("vm1", &broadcast(1), &[("eth2", &tagged(&broadcast(1), 101))]);
        rack.apply(&config("{ name = 's', vlan = 1, type = 'local' },"));
        rack.expect_drop("vm1", &broadcast(1), NoDestination);
        rack.apply(&config(vxlan));
        rack.expect("eth1", &in_vxlan, &[("vm1", &broadcast(2))]);
        assert!(leaves(rack, "vm1"));
    });
}

/// Who was learned under the old number is not believed to be under the new one.
#[test]
fn a_renumbered_segment_forgets_who_was_beyond_the_tunnel_and_keeps_who_is_here() {
    let config = |id: u32| {
        let segment =
            format!("{{ name = 's', type = 'vxlan', id = {id}, vteps = ['192.0.2.2', '192.0.2.3'] }}");
        node(1, &segment, "{ name = 'a', segment = 's' }, { name = 'b', segment = 's' }")
    };
    rack::both_ways(&config(7), |rack| {
        [2, 3].into_iter().for_each(|n| rack.neighbour("vtep1", v4(n), endpoint_mac(n)));
        rack.send("b", &[broadcast(8)]);
        rack.send("eth1", &[Outer::vxlan(2, 1, 7).wrap(&broadcast(2))]);
        let copies = |rack: &mut Rack, frame| rack.send("a", &[frame]).get("eth1").map_or(0, Vec::len);
        assert_eq!((copies(rack, unicast(1, 2)), copies(rack, unicast(1, 8))), (1, 0));
        rack.apply(&config(8));
        assert_eq!((copies(rack, unicast(1, 2)), copies(rack, unicast(1, 8))), (2, 0), "{rack:?}");
    });
}

#[test]
fn frames_wait_for_no_neighbour_and_control_is_asked_once() {
    let segment = "{ name = 's', type = 'vxlan', id = 7, vteps = ['192.0.2.2'] }";
    rack::both_ways(&node(1, segment, "{ name = 'vm', segment = 's' }"), |rack| {
        rack.expect_drop("vm", &broadcast(1), NoNeighbour);
        let vtep = rack.id("vtep1");
        let questions = |rack: &Rack| {
            let events = rack.switch.events().try_iter();
            let is_it = |event: &Event| matches!(event, Event::Resolve { endpoint, address } if (*endpoint, *address) == (vtep, v4(2)));
            events.inspect(|event| assert!(is_it(event), "{event:?}")).count()
        };
        assert_eq!(questions(rack), 1);
        rack.expect_drop("vm", &unicast(1, 9), NoNeighbour);
        assert_eq!(questions(rack), 0);
        rack.switch.resolved(vtep, v4(2));
        rack.expect_drop("vm", &unicast(1, 10), NoNeighbour);
        assert_eq!(questions(rack), 1);
        // Then it is found, moves to another card, and changes its way.
        for card in [endpoint_mac(2), endpoint_mac(77)] {
            rack.neighbour("vtep1", v4(2), card);
            let out = rack.send("vm", &[broadcast(1)]);
            assert_eq!(Outer::open(&out["eth1"][0], 8).0.macs, (endpoint_mac(1), card));
        }
    });
}

#[test]
fn without_a_route_nothing_leaves_and_with_one_it_does() {
    let segment = "{ name = 's', type = 'gre', id = 7, vteps = ['198.51.100.7', '2001:db8:9::7'] }";
    let config = node(1, segment, "{ name = 'vm', segment = 's' }");
    rack::both_ways(&config, |rack| {
        rack.neighbour("vtep1", v4(2), endpoint_mac(2));
        rack.expect_drop("vm", &broadcast(1), NoRoute);
        rack.apply(&format!("route = [{{ to = '198.51.100.0/24', via = '192.0.2.2' }}]\n{config}"));
        let out = rack.send("vm", &[broadcast(1)]);
        assert_eq!(out["eth1"].len(), 1, "who can be reached is reached");
        rack.apply(&config);
        rack.expect_drop("vm", &broadcast(1), NoRoute);
    });
}

/// A port that takes its time to send, so that frames wait for it.
struct Slow(MemoryPort);

impl Port for Slow {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.0.rx(frames, batch)
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        std::thread::sleep(Duration::from_millis(1));
        self.0.tx(frames, batch)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.0.readiness()
    }

    fn arm(&mut self) -> bool {
        self.0.arm()
    }

    fn disarm(&mut self) {
        self.0.disarm();
    }

    fn close(&mut self, frames: &mut FrameCache) {
        self.0.close(frames);
    }
}

/// The promise to the operator: once the command has returned, no frame leaves with the old number, whichever
/// poller it was under way in.
#[test]
fn no_frame_leaves_with_the_old_number_after_publish_returned() {
    let config = |vni: u32| {
        let segment = format!("{{ name = 's', type = 'vxlan', id = {vni}, vteps = ['192.0.2.2'] }}");
        node(1, &segment, "{ name = 'vm', segment = 's', upcall-rate = 0 }")
    };
    let mut live = Live::start(&config(1), &[("vtep1", v4(2), endpoint_mac(2))]);
    live.plug("vtep1", Some(0), |port| Box::new(port));
    live.plug("vm", Some(0), |port| Box::new(port));
    live.plug("eth1", Some(1), |port| Box::new(Slow(port)));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut vm = live.peers.remove("vm").unwrap();
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if !vm.inject(&broadcast(1)) {
                    std::thread::yield_now();
                }
            }
        });
        let _guard = Finish(done);
        for vni in 2..12 {
            live.publish(&config(vni));
            // What left before.
            live.drain("eth1");
            let mut seen = 0;
            while seen < 200 {
                for frame in live.drain("eth1") {
                    assert_eq!(
                        Outer::open(&frame, 8).0.header,
                        super::outer::vxlan(vni),
                        "after {seen} frames"
                    );
                    seen += 1;
                }
            }
        }
    });
    assert!(live.switch.ledger().balances());
}

/// Says that it is over, also if a test fails.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
