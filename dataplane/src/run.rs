//! A poller's thread: which queues to ask in a turn, and when to sleep.
//!
//! Queues whose emptiness costs nothing to see (rings in shared memory) are asked in every turn. Queues that
//! take a system call are asked when epoll says so, and while they keep giving. With nothing to do for a
//! while the thread sleeps on everything that could bring work, so an idle switch costs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flowtable::time::Instant;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::poller::Poller;
use crate::port::Readiness;
use crate::stats::cycles;
use crate::wires::Queue;

/// What a poller does with nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Idle {
    /// Spins for [`PATIENCE`], then sleeps until something happens.
    #[default]
    Adaptive,
    /// Spins for ever: for benchmarks, and for those who pay for the last microsecond with a core.
    Spin,
}

/// How long an adaptive poller looks for work before it sleeps. About what a sleep and a wake-up cost, so
/// that waiting never costs more than twice the best choice.
pub const PATIENCE: Duration = Duration::from_micros(50);
/// Events taken from epoll at a time.
const EVENTS: usize = 64;
/// The event of the bell, not of a queue.
const NO_QUEUE: u64 = u64::MAX;

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

/// Which queues of a poller to ask, and what to sleep on.
struct Watch {
    /// Queues that take a system call to ask.
    calls: Epoll,
    /// Everything: `calls`, the rings' descriptors, the bell.
    all: Epoll,
    /// Places of queues asked in every turn.
    always: Vec<usize>,
    /// Is there any queue in `calls`?
    has_calls: bool,
    /// May the poller sleep: does every queue have a descriptor?
    may_sleep: bool,
    /// The version of the wires this was made for.
    version: u64,
}

impl Watch {
    fn new(poller: &Poller) -> nix::Result<Self> {
        let calls = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let all = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = |data| EpollEvent::new(EpollFlags::EPOLLIN, data);
        all.add(poller.shared().wakers[poller.index()].fd(), readable(NO_QUEUE))?;
        all.add(&calls.0, readable(NO_QUEUE))?;
        let version = poller.wires.version();
        let mut watch = Watch { calls, all, always: Vec::new(), has_calls: false, may_sleep: true, version };
        for (place, queue) in poller.wires.queues.iter().enumerate() {
            if let Some(queue) = queue.as_ref().filter(|q| q.up) {
                watch.add(place, queue)?;
            }
        }
        Ok(watch)
    }

    fn add(&mut self, place: usize, queue: &Queue) -> nix::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, place as u64);
        match queue.io.readiness() {
            Readiness::Ring(fd) => {
                self.always.push(place);
                self.all.add(fd, event)
            }
            Readiness::Call(fd) => {
                self.has_calls = true;
                self.calls.add(fd, event)
            }
            Readiness::Unknown => {
                self.always.push(place);
                self.may_sleep = false;
                Ok(())
            }
        }
    }

    /// The places to ask in the next turn.
    fn ready(&self, poller: &Poller, ready: &mut Vec<usize>) {
        ready.clear();
        ready.extend(&self.always);
        if !self.has_calls {
            return;
        }
        let hot = |place: &usize| {
            poller.wires.queues.get(*place).is_some_and(|q| q.as_ref().is_some_and(|q| q.hot))
        };
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = self.calls.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let told = events[..count].iter().map(|event| event.data() as usize);
        ready.extend(told.filter(|place| !hot(place)));
        ready.extend((0..poller.wires.queues.len()).filter(hot).filter(|place| !self.always.contains(place)));
    }

    /// Sleeps until something happens or `timeout` is over.
    fn sleep(&self, timeout: Duration) {
        let mut events = [EpollEvent::empty(); 1];
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::NONE);
        // EINTR is a reason to look around like any other.
        let _ = self.all.wait(&mut events, timeout);
    }
}

/// Runs the poller until `stop` is set and its bell rung.
pub fn run(mut poller: Poller, idle: Idle, clock: Clock, stop: &Arc<AtomicBool>) {
    let mut ready = Vec::new();
    let mut watch = match Watch::new(&poller) {
        Ok(watch) => watch,
        Err(error) => return tracing::error!("poller {} cannot watch its queues: {error}", poller.index()),
    };
    let mut last_work = clock.now();
    let mut refused = None;
    while !stop.load(Ordering::Relaxed) {
        if watch.version != poller.wires.version() {
            match Watch::new(&poller) {
                Ok(new) => watch = new,
                // Tried again in every turn, told once.
                Err(error) if refused.replace(poller.wires.version()) != Some(poller.wires.version()) => {
                    tracing::error!("poller {} cannot watch its queues: {error}", poller.index());
                }
                Err(_) => {}
            }
        }
        let begin = cycles();
        let now = clock.now();
        watch.ready(&poller, &mut ready);
        let moved = poller.turn(now, &ready);
        let spent = cycles().wrapping_sub(begin);
        match moved {
            0 => poller.counters().idle_cycles.add(spent),
            _ => {
                poller.counters().busy_cycles.add(spent);
                last_work = now;
            }
        }
        if idle == Idle::Adaptive && watch.may_sleep && now.since(last_work) > PATIENCE {
            doze(&mut poller, &watch, stop);
        }
    }
    poller.close();
}

/// Sleeps, unless work came in while lying down.
fn doze(poller: &mut Poller, watch: &Watch, stop: &AtomicBool) {
    let waker = Arc::clone(&poller.shared().wakers[poller.index()]);
    waker.lie_down();
    let is_called = poller.has_work() || stop.load(Ordering::Relaxed);
    if !is_called && watch.version == poller.wires.version() {
        poller.counters().sleeps.add(1);
        let timeout = poller.patience();
        poller.park(|| watch.sleep(timeout));
    }
    waker.get_up();
}
