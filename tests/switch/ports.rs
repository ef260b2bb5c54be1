//! Ports that are slow, vanish, come and go, while the others go on.

use dataplane::shared::Event;
use flowtable::action::DropReason;

use crate::THREE;
use crate::frames::{broadcast, unicast};
use crate::rack::{CABLE, Rack, both_ways};

#[test]
fn what_a_full_port_has_no_room_for_is_dropped_and_counted() {
    both_ways(THREE, |rack| {
        rack.send("b", &[broadcast(2)]);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        let inject = |rack: &mut Rack, count| {
            (0..count).for_each(|_| assert!(rack.cable("a").inject(&unicast(1, 2))));
            rack.settle();
        };
        inject(rack, CABLE);
        inject(rack, 100);
        assert_eq!(rack.stats("b").dropped(DropReason::TxFull), 100, "{rack:?}");
        assert_eq!(rack.drain()["b"].len(), CABLE);
        rack.audit();
        rack.expect_at("a", &unicast(1, 2), &["b"]);
    });
}

#[test]
fn a_flood_fills_one_port_and_reaches_the_others() {
    both_ways(THREE, |rack| {
        for _ in 0..2 {
            (0..CABLE).for_each(|_| assert!(rack.cable("a").inject(&broadcast(1))));
            rack.settle();
            assert_eq!(rack.cable("c").drain().len(), CABLE);
        }
        let full = [rack.stats("b"), rack.stats("c")].map(|stats| stats.dropped(DropReason::TxFull));
        assert_eq!(full, [CABLE as u64, 0], "{rack:?}");
    });
}

#[test]
fn a_port_that_vanishes_is_reported_and_comes_back() {
    both_ways(THREE, |rack| {
        rack.send("b", &[broadcast(2)]);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        drop(rack.take_cable("b"));
        rack.settle();
        let event = rack.switch.events().try_recv();
        assert!(matches!(event, Ok(Event::PortGone { port, .. }) if port == rack.id("b")), "{event:?}");
        rack.expect_drop("a", &unicast(1, 2), DropReason::PortDown);
        rack.expect_at("a", &broadcast(1), &["c"]);
        rack.plug("b", |port| Box::new(port));
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
    });
}

#[test]
fn a_detached_port_drops_what_is_for_it() {
    both_ways(THREE, |rack| {
        rack.send("b", &[broadcast(2)]);
        rack.switch.detach(rack.id("b"));
        rack.settle();
        rack.expect_drop("a", &unicast(1, 2), DropReason::PortDown);
    });
}

/// The same bridge with other neighbours.
fn with(ports: &str) -> String {
    format!("[[bridge]]\nname = 'br0'\nport = [{{ name = 'a' }}, {{ name = 'b' }}{ports}]")
}

#[test]
fn ports_come_and_go_and_the_others_lose_no_frame() {
    both_ways(THREE, |rack| {
        rack.send("b", &[broadcast(2)]);
        rack.expect_at("a", &unicast(1, 2), &["b"]);
        for ports in ["", ", { name = 'd' }, { name = 'e' }", ", { name = 'c' }", ", { name = 'd' }"] {
            (0..50).for_each(|_| assert!(rack.cable("a").inject(&unicast(1, 2))));
            rack.apply(&with(ports));
            assert_eq!(rack.drain().remove("b").map(|frames| frames.len()), Some(50), "{rack:?}");
        }
        rack.expect_at("a", &broadcast(1), &["b", "d"]);
    });
}

#[test]
fn a_port_that_is_removed_is_forgotten_by_the_table() {
    both_ways(THREE, |rack| {
        rack.send("c", &[broadcast(3)]);
        rack.expect_at("a", &unicast(1, 3), &["c"]);
        rack.apply(&with(""));
        rack.expect_at("a", &unicast(1, 3), &["b"]);
        assert!(rack.fdb("br0").iter().all(|entry| entry.place.port() == rack.id("a")), "{rack:?}");
        rack.apply(THREE);
        rack.expect_at("a", &unicast(1, 3), &["b", "c"]);
    });
}

#[test]
fn a_port_that_changes_its_bridge_takes_no_station_along() {
    both_ways(THREE, |rack| {
        rack.send("c", &[broadcast(3)]);
        rack.apply(&(with("") + "\n[[bridge]]\nname = 'br1'\nport = [{ name = 'c' }, { name = 'd' }]"));
        rack.expect_at("c", &broadcast(3), &["d"]);
        rack.expect_at("a", &unicast(1, 3), &["b"]);
    });
}
