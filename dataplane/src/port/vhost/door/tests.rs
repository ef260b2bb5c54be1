use std::sync::atomic::AtomicU64;
use std::thread;

use super::*;

/// Counters that only who is alone keeps equal.
#[derive(Debug, Default)]
struct Room {
    one: u64,
    other: u64,
    closed: u64,
}

#[test]
fn who_closes_keeps_the_visitor_out_until_it_opens() {
    let door = Door::new(1);
    let mut visitor = door.visitor().unwrap();
    assert!(door.visitor().is_none(), "one visitor");
    *visitor.enter().unwrap() += 1;
    let mut closed = door.close();
    assert!(visitor.enter().is_none());
    *closed += 1;
    drop(closed);
    assert_eq!(*visitor.enter().unwrap(), 3);
    door.close().keep_shut();
    assert!(visitor.enter().is_none(), "kept shut");
    assert_eq!(*door.close(), 3, "opens it again");
    assert!(visitor.enter().is_some());
    drop(visitor);
    assert!(door.visitor().is_some());
}

#[test]
fn who_forgot_to_leave_is_outside_once_the_visitor_is_gone() {
    let door = Door::new(());
    let mut visitor = door.visitor().unwrap();
    std::mem::forget(visitor.enter());
    drop(visitor);
    door.close();
    assert!(door.visitor().unwrap().enter().is_some());
}

#[test]
fn the_closer_waits_for_the_batch_inside() {
    let door = Door::new(0);
    let mut visitor = door.visitor().unwrap();
    let mut inside = visitor.enter().unwrap();
    thread::scope(|scope| {
        let closer = scope.spawn(|| *door.close());
        while !door.closed.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        *inside = 7;
        assert!(!closer.is_finished());
        drop(inside);
        assert_eq!(closer.join().unwrap(), 7);
    });
}

#[test]
fn both_barriers_exclude() {
    // A kernel or a filter may not have the call; this one then tests the fence twice.
    for barrier in [Barrier::best(), Barrier::Fence] {
        stress(&Door::with_barrier(Room::default(), barrier));
    }
}

impl Room {
    /// What takes a while and must not be done by two.
    fn stay(&mut self) {
        assert_eq!(self.one, self.other, "somebody is inside");
        self.one += 1;
        (0..20).for_each(|_| std::hint::spin_loop());
        self.other += 1;
        assert_eq!(self.one, self.other, "somebody came in");
    }
}

/// A visitor as fast as it can, and two closers.
fn stress(door: &Arc<Door<Room>>) {
    const CLOSES: u64 = 5000;
    let left = AtomicU64::new(2);
    let mut visitor = door.visitor().unwrap();
    let mut visits = 0;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..CLOSES {
                    let mut room = door.close();
                    room.closed += 1;
                    room.stay();
                }
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while left.load(Ordering::Relaxed) > 0 {
            let Some(mut room) = visitor.enter() else { continue };
            visits += 1;
            room.stay();
        }
    });
    let room = door.close();
    assert_eq!((room.closed, room.one), (2 * CLOSES, 2 * CLOSES + visits));
    assert_eq!(room.other, room.one);
}

/// The core of it, in lockstep: of two that store each their own and then load the other's, one sees the other.
#[test]
fn one_of_two_sees_the_other() {
    const ROUNDS: u64 = 5000;
    let barrier = Barrier::best();
    let [turn, frequent, rare, seen] = [const { CachePadded::new(AtomicU64::new(0)) }; 4];
    let wait = |for_what: &AtomicU64, round| {
        for turn in 0.. {
            if for_what.load(Ordering::Acquire) >= round {
                break;
            }
            // The other may need our core.
            if turn < 200 { std::hint::spin_loop() } else { thread::yield_now() }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                wait(&turn, round);
                frequent.store(round, Ordering::Relaxed);
                barrier.frequent();
                let other = rare.load(Ordering::Relaxed);
                // In one number: the round, and whether the other was seen in it.
                seen.store(round << 1 | u64::from(other == round), Ordering::Release);
            }
        });
        for round in 1..=ROUNDS {
            turn.store(round, Ordering::Release);
            rare.store(round, Ordering::Relaxed);
            barrier.rare();
            let saw = frequent.load(Ordering::Relaxed) == round;
            wait(&seen, round << 1);
            let was_seen = seen.load(Ordering::Acquire) & 1 == 1;
            if !(saw || was_seen) {
                turn.store(ROUNDS, Ordering::Release); // the other must end
                panic!("in round {round} neither saw the other");
            }
        }
    });
}
