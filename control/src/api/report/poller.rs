//! What pollers do, and where their cycles go.

use serde::{Deserialize, Serialize};

/// One receive queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// The port's name.
    pub port: String,
    /// From 0.
    pub queue: u16,
}

/// One poller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PollerReport {
    /// The core it is pinned to.
    pub core: usize,
    /// What it polls.
    pub queues: Vec<QueueReport>,
    /// Batches with at least one frame.
    pub batches: u64,
    /// Frames received.
    pub frames: u64,
    /// TSC cycles in turns that moved frames.
    pub busy_cycles: u64,
    /// TSC cycles in turns that did not.
    pub idle_cycles: u64,
    /// `busy_cycles / frames`.
    pub busy_cycles_per_frame: Option<f64>,
    /// Frames that the exact-match cache knew.
    pub exact_hits: u64,
    /// Frames that a megaflow covered.
    pub megaflow_hits: u64,
    /// Frames that were translated.
    pub upcalls: u64,
    /// Time that all these were counted for. Seconds.
    pub seconds: f64,
    /// Frames out of tunnels, decided once more.
    pub inner_frames: u64,
    /// Flows translated again after a change.
    pub revalidated: u64,
    /// TSC cycles of all upcalls.
    pub upcall_cycles: u64,
    /// Batches by size.
    pub batch_sizes: Vec<BatchSize>,
    /// Frames received in the turns that were measured stage by stage: one turn in 64.
    pub measured_frames: u64,
    /// Where those turns went.
    pub stages: Vec<StageReport>,
}

/// Batches of a class of sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSize {
    /// Frames, at least; fewer than the next class has.
    pub frames: usize,
    /// How many such batches.
    pub batches: u64,
}

/// One stage of the poll loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReport {
    /// Its name.
    pub stage: String,
    /// TSC cycles in the turns that were measured.
    pub cycles: u64,
}

impl PollerReport {
    /// What happened since an earlier report of the same poller; nothing where it was another, before a restart.
    pub fn since(&self, before: &PollerReport) -> PollerReport {
        let (frames, busy_cycles) =
            (self.frames.saturating_sub(before.frames), self.busy_cycles.saturating_sub(before.busy_cycles));
        let sizes = self.batch_sizes.iter().zip(&before.batch_sizes);
        let stages = self.stages.iter().zip(&before.stages);
        PollerReport {
            core: self.core,
            queues: self.queues.clone(),
            batches: self.batches.saturating_sub(before.batches),
            frames,
            busy_cycles,
            idle_cycles: self.idle_cycles.saturating_sub(before.idle_cycles),
            busy_cycles_per_frame: (frames > 0).then(|| busy_cycles as f64 / frames as f64),
            exact_hits: self.exact_hits.saturating_sub(before.exact_hits),
            megaflow_hits: self.megaflow_hits.saturating_sub(before.megaflow_hits),
            upcalls: self.upcalls.saturating_sub(before.upcalls),
            seconds: (self.seconds - before.seconds).max(0.0),
            inner_frames: self.inner_frames.saturating_sub(before.inner_frames),
            revalidated: self.revalidated.saturating_sub(before.revalidated),
            upcall_cycles: self.upcall_cycles.saturating_sub(before.upcall_cycles),
            batch_sizes: sizes
                .map(|(now, then)| BatchSize {
                    batches: now.batches.saturating_sub(then.batches),
                    ..now.clone()
                })
                .collect(),
            measured_frames: self.measured_frames.saturating_sub(before.measured_frames),
            stages: stages
                .map(|(now, then)| StageReport {
                    cycles: now.cycles.saturating_sub(then.cycles),
                    ..now.clone()
                })
                .collect(),
        }
    }
}
