//! A switch in this very thread: what does a frame cost it, with nothing around?
//!
//! One poller is turned by hand, as its thread would. One port gives frames of a [`Reel`] as fast as they are taken, all others free
//! what they get, so that a turn is 32 frames. Time is the processor's cycle counter around windows of turns: what an
//! interrupt, or another machine on the same core, takes from a window shows in the median and not in the best.

use std::time::{Duration, Instant};

use flowtable::id::PortId;

use super::meter::Spread;
use super::reel::{Player, Reel};
use super::{Observer, Progress, Until, Verdict};
use crate::batch::BATCH;
use crate::poller::Poller;
use crate::run::Clock;
use crate::stats::cycles;
use crate::switch::Switch;

/// Turns between two looks at the clock: some ten thousand frames, a millisecond.
const STRIDE: usize = 256;
/// How often all frames are passed, at most, until each flow is known.
const WARM_UPS: usize = 8;

/// A switch with one poller, where frames come in, and where they are to come out.
pub struct Circuit {
    switch: Switch,
    poller: Poller,
    clock: Clock,
    places: Vec<usize>,
    from: PortId,
    to: PortId,
}

/// What it cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Frames that came in.
    pub sent: u64,
    /// Frames that came out where they were to.
    pub received: u64,
    /// Cycles of the poller for each frame that came in.
    pub cycles: Spread,
    /// Frames per second that came in.
    pub tx: Spread,
    /// Frames per second that came out.
    pub rx: Spread,
    /// Decisions that were not remembered: 0 if each flow was known before.
    pub upcalls: u64,
}

/// Counters at one time.
#[derive(Debug, Clone, Copy)]
struct Look {
    sent: u64,
    received: u64,
    upcalls: u64,
}

impl Circuit {
    /// The switch, with tables in force and nothing attached, and its only poller.
    pub fn new(switch: Switch, poller: Poller, (from, to): (PortId, PortId)) -> Circuit {
        Circuit { switch, poller, clock: Clock::start(), places: Vec::new(), from, to }
    }

    /// Has these ports free what they get.
    pub fn ground(&mut self, ports: impl IntoIterator<Item = PortId>) {
        ports.into_iter().for_each(|port| self.attach(port, Reel::default()));
    }

    /// Plays a reel once from a port, then has the port free what it gets: so stations behind it are known.
    pub fn announce(&mut self, port: PortId, reel: Reel) {
        let turns = reel.frames().div_ceil(BATCH);
        self.attach(port, reel);
        self.turns(turns);
        self.attach(port, Reel::default());
    }

    /// Plays a reel from now on, where frames come in, until each flow is known, or does not get known.
    pub fn play(&mut self, reel: Reel) {
        let turns = reel.frames().div_ceil(BATCH);
        self.attach(self.from, reel);
        for _ in 0..WARM_UPS {
            let before = self.look().upcalls;
            self.turns(turns);
            while self.poller.has_work() {
                self.turn();
            }
            if self.look().upcalls == before {
                return;
            }
        }
    }

    fn attach(&mut self, port: PortId, reel: Reel) {
        self.switch.attach(port, vec![Box::new(Player::new(reel))], &[]);
        self.poller.turn(self.clock.now(), &[]);
        self.places = (0..self.poller.wires.queues.len()).collect();
    }

    /// What the poller's thread does again and again; how many frames moved.
    #[inline]
    pub fn turn(&mut self) -> usize {
        self.poller.turn(self.clock.now(), &self.places)
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    fn look(&self) -> Look {
        Look {
            sent: self.switch.port_stats(self.from).rx_frames,
            received: self.switch.port_stats(self.to).tx_frames,
            upcalls: self.poller.counters().upcalls.get(),
        }
    }

    /// Measures in windows of this length until it has been enough, or the observer says so.
    pub fn measure(&mut self, until: Until, window: Duration, observe: Observer<'_>) -> Cost {
        let (start, first) = (Instant::now(), self.look());
        let (mut per_frame, mut tx, mut rx) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = first;
        let mut verdict = Verdict::GoOn;
        while verdict == Verdict::GoOn && !until.is_over(start.elapsed(), last.sent - first.sent) {
            let (begin, begun) = (Instant::now(), cycles());
            while begin.elapsed() < window {
                self.turns(STRIDE);
            }
            let (spent, seconds) = (cycles().wrapping_sub(begun), begin.elapsed().as_secs_f64());
            let now = self.look();
            let (sent, received) = (now.sent - last.sent, now.received - last.received);
            per_frame.push(spent as f64 / sent.max(1) as f64);
            tx.push(sent as f64 / seconds);
            rx.push(received as f64 / seconds);
            last = now;
            verdict = observe(Progress {
                elapsed: start.elapsed(),
                sent: now.sent - first.sent,
                received: now.received - first.received,
            });
        }
        Cost {
            sent: last.sent - first.sent,
            received: last.received - first.received,
            cycles: Spread::lowest(&per_frame),
            tx: Spread::highest(&tx),
            rx: Spread::highest(&rx),
            upcalls: last.upcalls - first.upcalls,
        }
    }
}
