//! Rings that are armed: turned by hand, in a time of our own, and by threads that would hang if a wake-up got lost.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::watch::LOOK;
use super::*;
use crate::batch::Batch;
use crate::frame::{FrameCache, FramePool, Memory, PoolConfig};
use crate::port::memory::{MemoryPort, Peer, waking_pair};
use crate::port::rig::numbered;
use crate::port::{Port, PortError, Readiness, Sent};
use crate::switch::{Switch, SwitchConfig};
use flowtable::id::PortId;

/// Longer than a ring without frames is asked.
const QUIET: Duration = Duration::from_micros(60);
/// Much shorter.
const TICK: Duration = Duration::from_micros(10);

/// How often a port was asked, and armed; and what came first since it was armed.
#[derive(Default)]
struct Asked {
    rx: AtomicU64,
    arm: AtomicU64,
    steps: Mutex<Vec<Step>>,
}

/// What is done to a port after it was armed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Received,
    Sent,
    Disarmed,
}

impl Asked {
    fn rx(&self) -> u64 {
        self.rx.load(Ordering::Relaxed)
    }

    fn arm(&self) -> u64 {
        self.arm.load(Ordering::Relaxed)
    }

    fn note(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }

    fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }
}

/// A port that counts what it is asked, and after each frame it gives, if it is a spring, gives another.
struct Counted {
    port: MemoryPort,
    spring: Option<Peer>,
    asked: Arc<Asked>,
}

impl Port for Counted {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.asked.rx.fetch_add(1, Ordering::Relaxed);
        self.asked.note(Step::Received);
        if let Some(spring) = &mut self.spring {
            assert!(spring.inject(&numbered(0, 60)));
        }
        self.port.rx(frames, batch)
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.asked.note(Step::Sent);
        self.port.tx(frames, batch)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.port.readiness()
    }

    fn arm(&mut self) -> bool {
        self.asked.arm.fetch_add(1, Ordering::Relaxed);
        self.asked.steps.lock().unwrap().clear();
        self.port.arm()
    }

    fn disarm(&mut self) {
        self.asked.note(Step::Disarmed);
        self.port.disarm();
    }

    fn close(&mut self, frames: &mut FrameCache) {
        self.port.close(frames);
    }
}

fn pool() -> Arc<FramePool> {
    FramePool::new(PoolConfig { small: 4096, big: 2, memory: Memory::Plain }).unwrap()
}

/// Attaches a port that counts.
fn attach(switch: &Switch, pool: &Arc<FramePool>, port: u32) -> (Peer, Arc<Asked>) {
    let (end, peer) = waking_pair(pool, 64).unwrap();
    let asked = Arc::<Asked>::default();
    let counted = Counted { port: end, spring: None, asked: Arc::clone(&asked) };
    switch.attach(PortId(port), vec![Box::new(counted)], &[]);
    (peer, asked)
}

/// Attaches a port that never runs dry.
fn attach_spring(switch: &Switch, pool: &Arc<FramePool>, port: u32) -> Arc<Asked> {
    let (end, peer) = waking_pair(pool, 64).unwrap();
    let asked = Arc::<Asked>::default();
    let counted = Counted { port: end, spring: Some(peer), asked: Arc::clone(&asked) };
    switch.attach(PortId(port), vec![Box::new(counted)], &[]);
    asked
}

/// Pollers turned by hand, each as its thread would.
struct Lab {
    switch: Switch,
    pool: Arc<FramePool>,
    now: Instant,
    idle: Idle,
    pollers: Vec<(Poller, Watch, usize)>,
}

impl Lab {
    fn new(cores: Vec<usize>, idle: Idle) -> Lab {
        let pool = pool();
        let config = SwitchConfig { cores, idle, ..SwitchConfig::default() };
        let (switch, pollers) = Switch::assemble(config, Arc::clone(&pool)).unwrap();
        let watched = pollers.into_iter().map(|mut poller| {
            let watch = Watch::new(&mut poller, idle, Instant::ZERO).unwrap();
            (poller, watch, 0)
        });
        let pollers = watched.collect();
        Lab { switch, pool, now: Instant::ZERO, idle, pollers }
    }

    /// One turn of each poller, and then some time.
    fn turn(&mut self, time: Duration) {
        let (now, idle) = (self.now, self.idle);
        for (poller, watch, moved) in &mut self.pollers {
            if !watch.is_current(poller) {
                *watch = Watch::new(poller, idle, now).unwrap();
            }
            let mut ready = Vec::new();
            watch.next(poller, (now, *moved), &mut ready);
            *moved = poller.turn(now, &ready);
            watch.settle(poller, now);
        }
        self.now = now + time;
    }

    fn received(&self, port: u32) -> u64 {
        self.switch.port_stats(PortId(port)).rx_frames
    }
}

#[test]
fn a_quiet_ring_is_not_asked_until_it_tells() {
    let mut lab = Lab::new(vec![0], Idle::Adaptive);
    let (mut peer, asked) = attach(&lab.switch, &lab.pool, 0);
    lab.turn(TICK);
    (0..4).for_each(|_| lab.turn(TICK));
    assert_eq!((asked.rx(), asked.arm()), (4, 0));
    lab.turn(QUIET);
    lab.turn(TICK);
    let armed = asked.rx();
    assert_eq!(asked.arm(), 1);
    (0..100).for_each(|_| lab.turn(QUIET));
    assert_eq!((asked.rx(), asked.arm()), (armed, 1), "an idle ring costs nothing");
    assert!(peer.inject(&numbered(0, 60)));
    lab.turn(TICK);
    assert_eq!((asked.rx(), lab.received(0)), (armed + 1, 1));
}

#[test]
fn a_ring_with_a_frame_now_and_then_is_asked_in_every_turn() {
    let mut lab = Lab::new(vec![0], Idle::Adaptive);
    let (mut peer, asked) = attach(&lab.switch, &lab.pool, 0);
    lab.turn(TICK);
    for turn in 0..1000 {
        if turn % 4 == 0 {
            assert!(peer.inject(&numbered(turn, 60)));
        }
        lab.turn(TICK);
    }
    assert_eq!((asked.rx(), asked.arm(), lab.received(0)), (1000, 0, 250));
}

#[test]
fn a_busy_poller_looks_now_and_then_who_else_has_something() {
    let mut lab = Lab::new(vec![0], Idle::Adaptive);
    let (mut peer, asked) = attach(&lab.switch, &lab.pool, 0);
    let spring = attach_spring(&lab.switch, &lab.pool, 1);
    (0..10).for_each(|_| lab.turn(TICK));
    assert_eq!((asked.arm(), spring.arm()), (1, 0));
    let before = asked.rx();
    lab.turn(LOOK / 4);
    assert!(peer.inject(&numbered(0, 60)));
    lab.turn(LOOK / 4);
    lab.turn(LOOK / 4);
    assert_eq!(asked.rx(), before, "not yet: that would be a system call a turn");
    lab.turn(LOOK / 4);
    lab.turn(LOOK / 4);
    assert_eq!((asked.rx(), lab.received(0)), (before + 1, 1));
}

#[test]
fn a_ring_is_asked_again_when_something_is_sent_to_it() {
    let mut lab = Lab::new(vec![0], Idle::Adaptive);
    let (mut peer, asked) = attach(&lab.switch, &lab.pool, 0);
    (0..3).for_each(|_| lab.turn(QUIET));
    let before = asked.rx();
    assert_eq!(asked.arm(), 1);
    let wires = &mut lab.pollers[0].0.wires;
    let frame = wires.frames.from_bytes(&numbered(0, 60)).unwrap();
    wires.send(PortId(0), &mut Batch::from_iter([frame]));
    (0..3).for_each(|_| lab.turn(TICK));
    assert_eq!((asked.rx(), peer.drain().len()), (before + 2, 1));
    (0..10).for_each(|_| lab.turn(TICK));
    assert_eq!(asked.arm(), 2, "quiet once more");
}

#[test]
fn a_first_frame_does_not_wait_for_rings_to_be_disarmed() {
    let mut lab = Lab::new(vec![0], Idle::Adaptive);
    let (mut peer, asked) = attach(&lab.switch, &lab.pool, 0);
    (0..3).for_each(|_| lab.turn(QUIET));
    assert_eq!((asked.arm(), asked.steps()), (1, vec![]));
    assert!(peer.inject(&numbered(0, 60)));
    lab.turn(TICK);
    assert_eq!((asked.arm(), asked.steps()), (1, vec![Step::Received, Step::Disarmed]));
    (0..2).for_each(|_| lab.turn(QUIET));
    assert_eq!((asked.arm(), asked.steps()), (2, vec![]));
    let wires = &mut lab.pollers[0].0.wires;
    let frame = wires.frames.from_bytes(&numbered(0, 60)).unwrap();
    wires.send(PortId(0), &mut Batch::from_iter([frame]));
    lab.turn(TICK);
    assert_eq!((asked.arm(), asked.steps()), (2, vec![Step::Sent, Step::Disarmed]));
}

#[test]
fn who_spins_never_arms() {
    let mut lab = Lab::new(vec![0], Idle::Spin);
    let (_peer, asked) = attach(&lab.switch, &lab.pool, 0);
    lab.turn(QUIET);
    (0..100).for_each(|_| lab.turn(QUIET));
    assert_eq!((asked.rx(), asked.arm()), (100, 0));
}

#[test]
fn an_armed_ring_stays_armed_while_others_come_and_when_it_moves() {
    let mut lab = Lab::new(vec![0, 1], Idle::Adaptive);
    let (mut peer, asked) = attach(&lab.switch, &lab.pool, 0);
    (0..3).for_each(|_| lab.turn(QUIET));
    let before = asked.rx();
    assert_eq!(asked.arm(), 1);
    for round in 1..20 {
        // It told nobody yet when the watch is made anew, and when it moves.
        let tells = round % 2 == 0;
        tells.then(|| assert!(peer.inject(&numbered(0, 60))));
        let _other = attach(&lab.switch, &lab.pool, round);
        lab.switch.place(PortId(0), 0, round as usize % 2).unwrap();
        (0..20).for_each(|_| lab.turn(TICK));
        assert_eq!(lab.received(0), u64::from(round / 2), "round {round}");
        if round == 1 {
            assert_eq!((asked.rx(), asked.arm()), (before, 1), "nothing came");
        }
    }
}

#[test]
fn a_peer_that_goes_is_noticed_by_a_ring_that_is_armed() {
    let mut lab = Lab::new(vec![0], Idle::Adaptive);
    let (peer, asked) = attach(&lab.switch, &lab.pool, 0);
    (0..3).for_each(|_| lab.turn(QUIET));
    assert_eq!(asked.arm(), 1);
    drop(peer);
    (0..2).for_each(|_| lab.turn(TICK));
    assert_eq!(lab.switch.events().try_iter().count(), 1);
}

/// Numbers that nobody guesses (Marsaglia's xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn live(cores: Vec<usize>) -> (Switch, Arc<FramePool>) {
    let pool = pool();
    let config = SwitchConfig { cores, ..SwitchConfig::default() };
    (Switch::start(config, Arc::clone(&pool)).unwrap(), pool)
}

/// Waits without sleep: what comes next is to come soon.
#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Sends so many frames, each when the one before was received and a moment passed: just when the poller may be about to
/// arm the ring, or to sleep.
fn nag(switch: &Switch, port: u32, (peer, frames): (&mut Peer, u64)) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ u64::from(port));
    for frame in 0..frames {
        assert!(peer.inject(&numbered(0, 60)));
        eventually("a frame to be received", || switch.port_stats(PortId(port)).rx_frames == frame + 1);
        let (begin, pause) = (std::time::Instant::now(), dice.below(150));
        while begin.elapsed() < Duration::from_micros(pause) {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    let (switch, pool) = live(vec![0]);
    let mut ports: Vec<_> = (0..3).map(|port| attach(&switch, &pool, port)).collect();
    std::thread::scope(|scope| {
        for (port, (peer, _)) in (0..).zip(&mut ports) {
            let switch = &switch;
            scope.spawn(move || nag(switch, port, (peer, 3000)));
        }
    });
    assert!(ports.iter().all(|(_, asked)| asked.arm() > 10), "the rings were armed at times");
}

#[test]
fn no_wake_up_is_lost_when_queues_move_and_others_come_and_go() {
    let (switch, pool) = live(vec![0, 1]);
    let mut ports: Vec<_> = (0..2).map(|port| attach(&switch, &pool, port)).collect();
    std::thread::scope(|scope| {
        let naggers: Vec<_> = (0..)
            .zip(&mut ports)
            .map(|(port, (peer, _))| {
                let switch = &switch;
                scope.spawn(move || nag(switch, port, (peer, 2000)))
            })
            .collect();
        let mut dice = Dice(7);
        while !naggers.iter().all(|nagger| nagger.is_finished()) {
            switch.place(PortId(dice.below(2) as u32), 0, dice.below(2) as usize).unwrap();
            let _other = attach(&switch, &pool, 2 + dice.below(2) as u32);
        }
    });
}

#[test]
fn an_idle_ring_is_not_asked_while_another_is_busy() {
    let (switch, pool) = live(vec![0]);
    let (mut peer, asked) = attach(&switch, &pool, 0);
    let spring = attach_spring(&switch, &pool, 1);
    let turns = || switch.pollers()[0].counters.turns.get();
    for frame in 0..20 {
        eventually("a thousand turns in which the idle ring is not asked", || {
            let (begin, before) = (turns(), asked.rx());
            eventually("turns", || turns() > begin + 1000);
            asked.rx() == before
        });
        assert!(peer.inject(&numbered(0, 60)));
        eventually("its frame", || switch.port_stats(PortId(0)).rx_frames == frame + 1);
    }
    assert_eq!(spring.arm(), 0, "a busy ring is never armed");
}
