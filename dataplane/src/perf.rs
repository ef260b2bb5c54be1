//! Where a poller's cycles go, stage by stage.
//!
//! A [`Stopwatch`] goes along with every 64th turn of the loop and notes the time stamp counter where one stage ends and
//! another begins. In the other turns a stage's border costs one branch, always the same way; so it is never switched
//! off, and what it costs is lost in the noise of `benches/forward`.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::batch::BATCH;
use crate::stats::{Counter, PollerCounters, cycles};

/// One turn in so many is measured.
const EVERY: u32 = 64;

/// What a poller does with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Takes frames from a queue.
    Receive,
    /// Reads their headers into keys.
    Extract,
    /// Finds their flows in the caches.
    Lookup,
    /// Edits them, puts on and takes off outer headers, sorts them by port.
    Execute,
    /// Translates what no cache knew, remembers it, and does it.
    Upcall,
    /// Gives them to the port they leave by.
    Send,
    /// Everything else in a turn: mail, tasks, revalidation, expiry, counters.
    Upkeep,
}

impl Stage {
    /// All of them, in the order of their numbers.
    pub const ALL: [Stage; 7] = [
        Stage::Receive,
        Stage::Extract,
        Stage::Lookup,
        Stage::Execute,
        Stage::Upcall,
        Stage::Send,
        Stage::Upkeep,
    ];

    /// As people are told.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Receive => "receive",
            Stage::Extract => "extract",
            Stage::Lookup => "lookup",
            Stage::Execute => "execute",
            Stage::Upcall => "upcall",
            Stage::Send => "send",
            Stage::Upkeep => "upkeep",
        }
    }
}

/// The classes of batches by size: each begins where the one before ends, the last is full batches.
pub const BATCH_SIZES: [usize; 6] = [1, 2, 4, 8, 16, BATCH];

/// What a poller found out about itself.
#[derive(Debug, Default)]
pub struct Perf {
    /// Cycles of the time stamp counter by [`Stage`], in the turns that were measured.
    pub stages: [Counter; Stage::ALL.len()],
    /// Frames received in those turns.
    pub measured_frames: Counter,
    /// Batches by size: those with at least as many frames as [`BATCH_SIZES`] says, and fewer than the next class.
    pub batch_sizes: [Counter; BATCH_SIZES.len()],
    /// Cycles of all upcalls.
    pub upcall_cycles: Counter,
}

impl Perf {
    /// Counts a batch.
    #[inline]
    pub fn batch(&self, frames: usize) {
        let class = frames.max(1).ilog2() as usize;
        self.batch_sizes[class.min(BATCH_SIZES.len() - 1)].add(1);
    }
}

/// Measures one turn in so many; one per poller.
pub struct Stopwatch {
    counters: Arc<CachePadded<PollerCounters>>,
    /// Turns until the next that is measured.
    countdown: u32,
    running: bool,
    stage: Stage,
    since: u64,
    spent: [u64; Stage::ALL.len()],
}

impl Stopwatch {
    /// One that writes into these counters.
    pub fn new(counters: Arc<CachePadded<PollerCounters>>) -> Self {
        let spent = [0; Stage::ALL.len()];
        Stopwatch { counters, countdown: EVERY, running: false, stage: Stage::Upkeep, since: 0, spent }
    }

    /// A turn begins, with upkeep.
    #[inline]
    pub fn begin(&mut self) {
        self.countdown -= 1;
        if self.countdown == 0 {
            self.countdown = EVERY;
            self.running = true;
            (self.stage, self.since, self.spent) = (Stage::Upkeep, cycles(), [0; Stage::ALL.len()]);
        }
    }

    /// From here on it is this stage; what it was before, to go back to.
    #[inline]
    pub fn enter(&mut self, stage: Stage) -> Stage {
        if self.running { self.change(stage) } else { stage }
    }

    #[cold]
    fn change(&mut self, stage: Stage) -> Stage {
        let now = cycles();
        self.spent[self.stage as usize] += now.wrapping_sub(self.since);
        self.since = now;
        std::mem::replace(&mut self.stage, stage)
    }

    /// The turn ends; it moved so many frames. One that moved none tells nothing about frames.
    #[inline]
    pub fn end(&mut self, frames: usize) {
        if self.running {
            self.finish(frames);
        }
    }

    #[cold]
    fn finish(&mut self, frames: usize) {
        self.change(Stage::Upkeep);
        self.running = false;
        if frames > 0 {
            let perf = &self.counters.perf;
            perf.stages.iter().zip(self.spent).for_each(|(counter, spent)| counter.add(spent));
            perf.measured_frames.add(frames as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopwatch() -> (Stopwatch, Arc<CachePadded<PollerCounters>>) {
        let counters: Arc<CachePadded<PollerCounters>> = Arc::default();
        (Stopwatch::new(Arc::clone(&counters)), counters)
    }

    #[test]
    fn stages_are_numbered_in_order() {
        assert!(Stage::ALL.iter().enumerate().all(|(i, stage)| *stage as usize == i));
    }

    #[test]
    fn every_size_has_its_class() {
        let (_, counters) = stopwatch();
        (1..=BATCH).for_each(|frames| counters.perf.batch(frames));
        let counted: Vec<u64> = counters.perf.batch_sizes.iter().map(Counter::get).collect();
        assert_eq!(counted, [1, 2, 4, 8, 16, 1]);
    }

    #[test]
    fn one_turn_in_many_is_measured_and_all_of_it() {
        let (mut stopwatch, counters) = stopwatch();
        for _ in 0..3 * EVERY {
            stopwatch.begin();
            let before = cycles();
            assert_eq!(
                stopwatch.enter(Stage::Receive),
                if stopwatch.running { Stage::Upkeep } else { Stage::Receive }
            );
            let outer = stopwatch.enter(Stage::Execute);
            let inner = stopwatch.enter(Stage::Send);
            while cycles() == before {}
            stopwatch.enter(inner);
            stopwatch.enter(outer);
            stopwatch.end(5);
        }
        let spent = |stage: Stage| counters.perf.stages[stage as usize].get();
        assert_eq!(counters.perf.measured_frames.get(), 15);
        assert!(spent(Stage::Send) > 0 && spent(Stage::Extract) == 0 && spent(Stage::Upcall) == 0);
    }

    #[test]
    fn a_turn_without_frames_does_not_count() {
        let (mut stopwatch, counters) = stopwatch();
        for _ in 0..EVERY {
            stopwatch.begin();
            stopwatch.end(0);
        }
        assert!(counters.perf.stages.iter().all(|stage| stage.get() == 0));
    }
}
