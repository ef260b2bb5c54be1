//! Several pollers: frames handed from one to the other, queues moved while frames flow; and pollers with threads
//! of their own, which sleep and wake up.

use std::time::{Duration, Instant};

use dataplane::poller::Caches;
use dataplane::shared::Event;
use dataplane::switch::{PlaceError, SwitchConfig};
use flowtable::action::DropReason;
use flowtable::id::PortId;

use crate::THREE;
use crate::frames::{broadcast, mac, udp, unicast};
use crate::live::{Live, two_cores};
use crate::rack::{CABLE, Rack};

/// How long a condition may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two pollers turned by hand: `a` and `c` belong to the first, `b` to the second.
fn two_pollers(caches: Caches) -> Rack {
    Rack::with(THREE, SwitchConfig { caches, ..two_cores() })
}

#[test]
fn any_poller_sends_to_any_port() {
    for caches in [Caches::On, Caches::Off] {
        let mut rack = two_pollers(caches);
        let queues: Vec<usize> = rack.switch.pollers().iter().map(|poller| poller.queues.len()).collect();
        assert_eq!(queues, [2, 1]);
        rack.expect_at("a", &broadcast(1), &["b", "c"]);
        rack.expect_at("b", &unicast(2, 1), &["a"]);
        rack.expect_at("c", &unicast(3, 2), &["b"]);
        rack.expect_at("b", &broadcast(2), &["a", "c"]);
        rack.audit();
    }
}

#[test]
fn pollers_share_their_flows_and_what_they_learn() {
    let mut rack = two_pollers(Caches::On);
    rack.expect_at("b", &broadcast(2), &["a", "c"]);
    rack.expect_at("a", &unicast(1, 2), &["b"]);
    rack.expect_at("c", &broadcast(2), &["a", "b"]);
    rack.expect_at("a", &unicast(1, 2), &["c"]);
    rack.expect_at("b", &broadcast(2), &["a", "c"]);
    rack.expect_at("a", &unicast(1, 2), &["b"]);
    let core = |rack: &Rack, core| rack.switch.place(rack.id("a"), 0, core).unwrap();
    core(&rack, 1);
    rack.settle();
    let flows = rack.flows("a");
    rack.expect_at("a", &unicast(1, 2), &["b"]);
    assert_eq!(rack.flows("a").len(), flows.len(), "the other poller's flow serves\n{rack:?}");
    rack.audit();
}

#[test]
fn frames_between_pollers_are_held_and_accounted_for() {
    let mut rack = two_pollers(Caches::On);
    (0..40).for_each(|_| assert!(rack.cable("a").inject(&broadcast(1))));
    rack.turn(0);
    rack.turn(0);
    let ledger = rack.audit();
    assert_eq!((ledger.rx, ledger.created, ledger.tx, ledger.held), (40, 40, 40, 40), "{rack:?}");
    rack.turn(1);
    assert_eq!(rack.audit().held, 0);
    assert_eq!(rack.cable("b").drain().len(), 40);
}

#[test]
fn a_poller_that_does_not_keep_up_costs_counted_drops() {
    let mut rack = two_pollers(Caches::On);
    rack.send("b", &[broadcast(2)]);
    let mut sent = 0;
    while rack.stats("b").dropped(DropReason::HandoffFull) == 0 {
        (0..CABLE).for_each(|_| assert!(rack.cable("a").inject(&unicast(1, 2))));
        sent += CABLE as u64;
        while rack.turn(0) > 0 {}
        assert!(sent < 10_000, "{rack:?}");
    }
    let ledger = rack.audit();
    assert_eq!(ledger.held + rack.stats("b").dropped(DropReason::HandoffFull), sent, "{rack:?}");
    rack.settle();
    assert_eq!(rack.audit().held, 0);
}

#[test]
fn a_queue_moves_between_two_turns() {
    let mut rack = two_pollers(Caches::On);
    rack.send("b", &[broadcast(2)]);
    for round in 0..6 {
        (0..10).for_each(|_| assert!(rack.cable("a").inject(&unicast(1, 2))));
        rack.switch.place(rack.id("b"), 0, round % 2).unwrap();
        rack.switch.place(rack.id("a"), 0, round / 2 % 2).unwrap();
        rack.settle();
        assert_eq!(rack.cable("b").drain().len(), 10, "round {round}\n{rack:?}");
    }
    rack.audit();
    let (a, gone) = (rack.id("a"), PortId(99));
    assert_eq!(rack.switch.place(a, 0, 7), Err(PlaceError::NoPoller(7)));
    assert_eq!(rack.switch.place(a, 1, 0), Err(PlaceError::NoQueue { port: a, queue: 1 }));
    assert_eq!(rack.switch.place(gone, 0, 0), Err(PlaceError::NoQueue { port: gone, queue: 0 }));
}

/// A running switch with [`THREE`] ports of one bridge.
fn three() -> Live {
    let mut live = Live::start(THREE, &[]);
    ["a", "b", "c"].into_iter().for_each(|port| live.plug(port, None, |end| Box::new(end)));
    live
}

impl Live {
    /// Waits for this many frames out of a port.
    #[track_caller]
    fn await_frames(&mut self, port: &str, count: usize) {
        let mut got = 0;
        eventually("frames", || {
            got += self.drain(port).len();
            got >= count
        });
        assert_eq!(got, count);
    }

    /// How often each poller has turned, and slept.
    fn turns_and_sleeps(&self) -> Vec<(u64, u64)> {
        let pollers = self.switch.pollers();
        pollers.iter().map(|poller| (poller.counters.turns.get(), poller.counters.sleeps.get())).collect()
    }

    /// Waits until both pollers went to sleep once more.
    fn await_sleep(&self) {
        let before = self.turns_and_sleeps();
        eventually("sleep", || {
            self.turns_and_sleeps().iter().zip(&before).all(|(now, before)| now.1 > before.1)
        });
    }
}

#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

#[test]
fn queues_move_and_books_are_taken_while_frames_flow() {
    const FRAMES: u32 = 20_000;
    let mut live = three();
    assert!(live.inject("b", &broadcast(2)));
    live.await_frames("a", 1);
    let (a, b) = (live.id("a"), live.id("b"));
    let (mut sent, mut got) = (0, Vec::new());
    let mut next = 0;
    eventually("frames", || {
        while sent < FRAMES && sent as usize - got.len() < CABLE / 2 {
            let frame = udp((mac(1), 1), (mac(2), 2), &sent.to_be_bytes());
            sent += u32::from(live.inject("a", &frame));
        }
        let numbers =
            live.drain("b").into_iter().map(|frame| u32::from_be_bytes(*frame.last_chunk().unwrap()));
        got.extend(numbers);
        if got.len() >= next {
            next += FRAMES as usize / 20;
            live.switch.place(b, 0, next / 1000 % 2).unwrap();
            live.switch.place(a, 0, next / 2000 % 2).unwrap();
            let ledger = live.switch.ledger();
            assert!(ledger.balances(), "{ledger:?}");
        }
        got.len() >= FRAMES as usize
    });
    let drops = live.switch.total_stats();
    assert!(got.into_iter().eq(0..FRAMES), "each frame once, in order; drops: {drops:?}");
    let ledger = live.switch.ledger();
    assert!(ledger.balances() && ledger.held == 0, "{ledger:?}");
}

#[test]
fn idle_pollers_sleep_and_wake_up_for_a_frame() {
    let mut live = three();
    for port in ["a", "b", "c"] {
        let others: Vec<&str> = ["a", "b", "c"].into_iter().filter(|other| *other != port).collect();
        live.await_sleep();
        assert!(live.inject(port, &broadcast(1)));
        others.into_iter().for_each(|other| live.await_frames(other, 1));
    }
    live.await_sleep();
    let before = live.turns_and_sleeps();
    std::thread::sleep(Duration::from_millis(300));
    // A nap lasts half a second, and then a few turns over 50 µs follow: nowhere near what spinning takes.
    let turned = live.turns_and_sleeps().iter().zip(&before).map(|(now, before)| now.0 - before.0).max();
    assert!(turned < Some(3000), "{turned:?} turns in 300 ms with nothing to do");
}

#[test]
fn two_may_take_the_books_at_once() {
    let live = three();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..50).for_each(|_| assert!(live.switch.ledger().balances())));
        }
    });
    assert!(live.switch.is_alive(PATIENCE));
}

#[test]
fn a_running_switch_reports_a_port_that_vanishes() {
    let mut live = three();
    drop(live.peers.remove("b"));
    let event = live.switch.events().recv_timeout(PATIENCE);
    assert!(matches!(event, Ok(Event::PortGone { port, .. }) if port == live.id("b")), "{event:?}");
    assert!(live.inject("a", &broadcast(1)));
    live.await_frames("c", 1);
    eventually("drop", || live.switch.port_stats(live.id("b")).dropped(DropReason::PortDown) == 1);
    live.switch.detach(live.id("b"));
    assert!(live.switch.ledger().balances());
}

/// Frames of a port that go through a poller while the port is taken out of the tables teach nothing that stays.
#[test]
fn what_a_port_taught_goes_with_it_while_it_floods() {
    let without_c = THREE.replace(", { name = \"c\" }", "");
    let mut live = three();
    let bridge = live.model.bridge("br0").unwrap().id;
    for _ in 0..20 {
        live.publish(THREE);
        let c = live.id("c");
        live.plug("c", None, |end| Box::new(end));
        (0..CABLE).for_each(|n| assert!(live.inject("c", &broadcast(n as u8 | 1))));
        live.publish(&without_c);
        let known = live.switch.fdb(bridge);
        assert!(known.iter().all(|entry| entry.place.port() != c), "{known:?}");
        live.switch.forget(c);
        [live.drain("a"), live.drain("b")].into_iter().for_each(drop);
    }
    assert!(live.switch.ledger().balances());
}
