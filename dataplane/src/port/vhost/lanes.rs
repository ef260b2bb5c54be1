//! The doors of a port, one per queue pair, and which queues are behind them: what the session and control share.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use super::door::{Closed, Door};
use super::queue::{Pair, VhostQueue};
use super::signal::{Alarm, Sleep};
use crate::port::{Counters, Offloads};

/// One pair's door, and what its poller sleeps on.
struct Lane {
    door: Arc<Door<Pair>>,
    sleep: Option<Arc<Sleep>>,
    /// The guest's kicks, if its transmit ring runs and it kicks.
    kick: Option<Arc<EventFd>>,
}

impl Lane {
    fn new() -> Lane {
        Lane { door: Door::new(Pair::default()), sleep: None, kick: None }
    }

    /// Another door before the same pair: who had the key to the old one has no way in any more.
    fn change_door(&mut self) {
        let mut room = self.door.close();
        let pair = std::mem::take(&mut *room);
        room.keep_shut();
        self.door = Door::new(pair);
    }

    /// A queue for the pair: those before it are dead.
    fn queue(&mut self, alarm: &Arc<Alarm>, offloads: Offloads) -> Option<VhostQueue> {
        self.change_door();
        let sleep = Sleep::new().and_then(|sleep| {
            self.kick.as_ref().map_or(Ok(()), |kick| sleep.watch(kick))?;
            Ok(Arc::new(sleep))
        });
        self.sleep = sleep.ok();
        let visitor = self.door.visitor()?;
        let (alarm, sleep) = (Arc::clone(alarm), self.sleep.clone());
        Some(VhostQueue { visitor, sleep, alarm, offloads, counters: Counters::default() })
    }

    /// Nobody needs to wait for a pair that does not run: what its poller slept on is closed with the dead queue.
    fn rest(&mut self) {
        if let Some(sleep) = self.sleep.take() {
            sleep.ring();
        }
    }

    /// The pair's poller is woken by this from now on, and no more by what was there before.
    fn watch(&mut self, kick: Option<&Arc<EventFd>>) -> Result<(), Errno> {
        let old = std::mem::replace(&mut self.kick, kick.cloned());
        let is_same = match (&old, kick) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        let Some(sleep) = self.sleep.as_ref().filter(|_| !is_same) else { return Ok(()) };
        if let Some(old) = old {
            sleep.forget(&old);
        }
        kick.map_or(Ok(()), |new| sleep.watch(new))
    }
}

/// All of them.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    running: Running,
    epoch: u64,
}

/// Which pairs there are for the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Running {
    /// A bit for each pair that runs.
    pub(super) pairs: u32,
    /// What their guest takes.
    pub(super) offloads: Offloads,
}

impl Lanes {
    pub(super) fn new(pairs: u16) -> Mutex<Lanes> {
        let lanes = (0..pairs).map(|_| Lane::new()).collect();
        Mutex::new(Lanes { lanes, running: Running::default(), epoch: 0 })
    }

    /// Steps into the rooms of these pairs, once their pollers are out.
    pub(super) fn close(&self, pairs: Range<usize>) -> Vec<Closed<'_, Pair>> {
        self.lanes[pairs].iter().map(|lane| lane.door.close()).collect()
    }

    /// After a change: what a pair's poller is woken by. It is woken once, to look at what has changed.
    ///
    /// # Errors
    /// The kernel's, if the process may not watch another descriptor.
    pub(super) fn settle(&mut self, pair: usize, kick: Option<&Arc<EventFd>>) -> Result<(), Errno> {
        let lane = &mut self.lanes[pair];
        lane.watch(kick)?;
        if let Some(sleep) = &lane.sleep {
            sleep.ring();
        }
        Ok(())
    }

    /// After a change: which pairs run. If they are others, all queues given before are dead.
    pub(super) fn run(&mut self, running: Running) {
        if running == self.running {
            return;
        }
        self.running = running;
        self.epoch += 1;
        for (pair, lane) in self.lanes.iter_mut().enumerate() {
            lane.change_door();
            if running.pairs >> pair & 1 == 0 {
                lane.rest();
            }
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn running(&self) -> Running {
        self.running
    }

    /// The queues of the pairs that run.
    pub(super) fn queues(&mut self, alarm: &Arc<Alarm>) -> Vec<VhostQueue> {
        let Running { pairs, offloads } = self.running;
        let mut number = 0;
        let runs = |_: &&mut Lane| {
            number += 1;
            pairs >> (number - 1) & 1 == 1
        };
        self.lanes.iter_mut().filter(runs).filter_map(|lane| lane.queue(alarm, offloads)).collect()
    }
}

/// Locks what a session shares, whoever panicked with it: all of that is whole between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
