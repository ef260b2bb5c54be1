//! Whole hosts around the switch: they resolve addresses, answer echo requests and carry streams.

use std::time::Duration;

use dataplane::batch::Batch;
use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig};
use dataplane::port::Port;
use dataplane::port::lossy::{Lossy, Misfortune};
use dataplane::port::memory::{MemoryPort, pair};
use encap::field::VlanId;
use flowtable::time::Instant;

use crate::THREE;
use crate::frames::mac;
use crate::guest::{Guest, play};
use crate::rack::both_ways;

/// Two guests on one cable, without a switch: the guests themselves work.
#[test]
fn guests_ping_and_stream() {
    let pool = FramePool::new(PoolConfig { small: 1024, big: 4, memory: Memory::Plain }).unwrap();
    let mut cache = FrameCache::new(pool.clone());
    let ((mut a, peer_a), (mut b, peer_b)) = (pair(&pool, 64), pair(&pool, 64));
    let first = Guest::new(peer_a, mac(1), &["10.0.0.1/24", "fd00::1/64"]);
    let second = Guest::new(peer_b, mac(2), &["10.0.0.2/24", "fd00::2/64"]);
    let vlan = VlanId::new(7).unwrap();
    let mut guests = [first.tagged(vlan), second.tagged(vlan)];
    let mut cross = |from: &mut MemoryPort, to: &mut MemoryPort| {
        let mut batch = Batch::new();
        from.rx(&mut cache, &mut batch).unwrap();
        to.tx(&mut cache, &mut batch).unwrap();
        batch.into_iter().for_each(|frame| cache.free(frame));
    };
    let mut cable = |_| {
        cross(&mut a, &mut b);
        cross(&mut b, &mut a);
    };
    guests[0].ping("10.0.0.2");
    guests[1].ping("fd00::1");
    let answered = |guests: &[Guest]| guests.iter().all(|guest| guest.answers() == 1);
    let now = play(&mut guests, (Instant::ZERO, Duration::from_secs(5)), &mut cable, answered);
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    guests[1].listen(80);
    guests[0].send("10.0.0.2", 80, &bytes);
    let arrived = |guests: &[Guest]| guests[1].received().len() == bytes.len();
    play(&mut guests, (now, Duration::from_secs(60)), &mut cable, arrived);
    assert!(guests[1].received() == bytes);
}

const TWO_VLANS: &str = r#"
[[bridge]]
name = "br0"
[[bridge.port]]
name = "a"
tag = 10
[[bridge.port]]
name = "b"
tag = 10
[[bridge.port]]
name = "c"
tag = 20
[[bridge.port]]
name = "t"
trunks = [10, 20]
"#;

#[test]
fn guests_reach_each_other_inside_a_vlan_only() {
    both_ways(TWO_VLANS, |rack| {
        let mut guests = [
            Guest::new(rack.take_cable("a"), mac(1), &["10.0.0.1/24"]),
            Guest::new(rack.take_cable("b"), mac(2), &["10.0.0.2/24"]),
            Guest::new(rack.take_cable("c"), mac(3), &["10.0.0.3/24"]),
            Guest::new(rack.take_cable("t"), mac(4), &["10.0.0.4/24"]).tagged(VlanId::new(20).unwrap()),
        ];
        guests[0].ping("10.0.0.2");
        guests[1].ping("10.0.0.3");
        guests[2].ping("10.0.0.4");
        let mut turn = |now| {
            rack.now = now;
            rack.settle();
        };
        let answered = |guests: &[Guest]| guests[0].answers() == 1 && guests[2].answers() == 1;
        play(&mut guests, (Instant::ZERO, Duration::from_secs(5)), &mut turn, answered);
        assert_eq!(guests[1].answers(), 0, "another VLAN");
    });
}

/// A stream over wires that lose, repeat and reorder: the switch adds nothing to that, and loses count of nothing.
#[test]
fn a_stream_survives_bad_luck() {
    both_ways(THREE, |rack| {
        let luck = Misfortune { drop: 0.02, duplicate: 0.02, reorder: 0.02 };
        rack.plug("a", |port| Box::new(Lossy::new(Box::new(port), luck, 1)));
        rack.plug("b", |port| Box::new(Lossy::new(Box::new(port), luck, 2)));
        let mut guests = [
            Guest::new(rack.take_cable("a"), mac(1), &["10.0.0.1/24"]),
            Guest::new(rack.take_cable("b"), mac(2), &["10.0.0.2/24"]),
        ];
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 253) as u8).collect();
        guests[1].listen(80);
        guests[0].send("10.0.0.2", 80, &bytes);
        let mut turn = |now| {
            rack.now = now;
            rack.settle();
        };
        let arrived = |guests: &[Guest]| guests[1].received().len() == bytes.len();
        play(&mut guests, (Instant::ZERO, Duration::from_secs(600)), &mut turn, arrived);
        assert!(guests[1].received() == bytes);
    });
}
