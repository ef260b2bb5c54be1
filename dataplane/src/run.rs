//! A poller's thread: which queues to ask in a turn, and when to sleep.
//!
//! What gives frames is asked in every turn, what does not is asked when epoll tells of it ([`watch`]). With nothing to do
//! for a while the thread sleeps on everything that could bring work, so an idle switch costs nothing, and an idle
//! queue costs a busy one nothing.

#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flowtable::time::Instant;

use self::watch::Watch;
use crate::poller::Poller;
use crate::stats::cycles;

/// What a poller does with nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Idle {
    /// Spins for [`PATIENCE`], then sleeps until something happens.
    #[default]
    Adaptive,
    /// Spins for ever: for benchmarks, and for those who pay for the last microsecond with a core.
    Spin,
}

/// How long an adaptive poller looks for work before it sleeps, and for how long it asks a ring that gives nothing. About
/// what a sleep and a wake-up cost, so that waiting never costs more than twice the best choice; and a ring with a frame
/// every few microseconds is never left, for which its sender would pay with a system call (a VM: with an exit) a frame.
pub const PATIENCE: Duration = Duration::from_micros(50);
/// Time since the switch was made.
#[derive(Debug, Clone, Copy)]
pub struct Clock(std::time::Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Clock(std::time::Instant::now())
    }

    /// Now.
    #[inline]
    pub fn now(&self) -> Instant {
        Instant::from_nanos(self.0.elapsed().as_nanos() as u64)
    }
}

/// Runs the poller until `stop` is set and its bell rung.
pub fn run(mut poller: Poller, idle: Idle, clock: Clock, stop: &Arc<AtomicBool>) {
    let mut ready = Vec::new();
    let mut watch = match Watch::new(&mut poller, idle, clock.now()) {
        Ok(watch) => watch,
        Err(error) => return tracing::error!("poller {} cannot watch its queues: {error}", poller.index()),
    };
    let (mut moved, mut last_work) = (0, clock.now());
    let mut refused = None;
    while !stop.load(Ordering::Relaxed) {
        let begin = cycles();
        let now = clock.now();
        if !watch.is_current(&poller) {
            match Watch::new(&mut poller, idle, now) {
                Ok(new) => watch = new,
                // Tried again in every turn, told once.
                Err(error) if refused.replace(poller.wires.version()) != Some(poller.wires.version()) => {
                    tracing::error!("poller {} cannot watch its queues: {error}", poller.index());
                }
                Err(_) => {}
            }
        }
        watch.next(&mut poller, (now, moved), &mut ready);
        moved = poller.turn(now, &ready);
        watch.settle(&mut poller, now);
        let spent = cycles().wrapping_sub(begin);
        match moved {
            0 => poller.counters().idle_cycles.add(spent),
            _ => {
                poller.counters().busy_cycles.add(spent);
                last_work = now;
            }
        }
        if watch.may_sleep() && now.since(last_work) > PATIENCE {
            moved = doze(&mut poller, &mut watch, clock, stop);
        }
    }
    poller.close();
}

/// Sleeps, unless work came in while lying down. Returns how many tell of work, so that nobody is asked again who has some
/// before what they tell of is done: a first frame has no time for that, for after a sleep each system call takes some microseconds.
///
/// No wake-up is lost, for everybody who brings work first leaves it and then looks whether we want to be told, and we do
/// it the other way round: lie down and arm every ring, each with a full fence behind, then look. Whoever left his work
/// before we looked is seen; whoever did after sees that he is to ring, and what he rings (the bell, a ring's descriptor)
/// stays readable until we are up and take notice: there is no moment at which it could be missed. A queue that takes a
/// call has a descriptor that is readable while there is work, which needs no such care.
fn doze(poller: &mut Poller, watch: &mut Watch, clock: Clock, stop: &AtomicBool) -> usize {
    if !watch.is_current(poller) {
        return 0;
    }
    let mut count = 0;
    let waker = Arc::clone(&poller.shared().wakers[poller.index()]);
    waker.lie_down();
    let is_quiet = watch.arm_all(poller);
    if is_quiet && !poller.has_work() && !stop.load(Ordering::Relaxed) {
        poller.counters().sleeps.add(1);
        let timeout = poller.patience();
        let told = poller.park(|| watch.wait(timeout));
        if watch::has_bell(&told) {
            waker.hush();
        }
        watch.tell(poller, &told, clock.now());
        count = told.len();
    }
    waker.get_up();
    count
}
