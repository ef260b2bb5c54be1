//! What operators ask about pollers.

use dataplane::perf::{BATCH_SIZES, Perf, Stage};
use dataplane::switch;
use flowtable::id::PortId;

use super::Service;
use crate::api::report::{BatchSize, PollerReport, QueueReport, StageReport};

impl Service {
    /// The pollers, since the switch was started.
    pub fn poller_reports(&self) -> Vec<PollerReport> {
        let names = self.names();
        let seconds = self.started.elapsed().as_secs_f64();
        let queue = |(port, queue): &(PortId, u16)| {
            let port = names.get(port).map_or_else(|| port.to_string(), |name| name.to_string());
            QueueReport { port, queue: *queue }
        };
        let pollers = self.switch.pollers().into_iter();
        pollers.map(|p| report(&p, p.queues.iter().map(queue).collect(), seconds)).collect()
    }
}

fn report(poller: &switch::PollerReport, queues: Vec<QueueReport>, seconds: f64) -> PollerReport {
    let c = &poller.counters;
    let (frames, busy_cycles) = (c.frames.get(), c.busy_cycles.get());
    PollerReport {
        core: poller.core,
        queues,
        batches: c.batches.get(),
        frames,
        busy_cycles,
        idle_cycles: c.idle_cycles.get(),
        busy_cycles_per_frame: (frames > 0).then(|| busy_cycles as f64 / frames as f64),
        exact_hits: c.exact_hits.get(),
        megaflow_hits: c.megaflow_hits.get(),
        upcalls: c.upcalls.get(),
        seconds,
        inner_frames: c.inner.get(),
        revalidated: c.revalidated.get(),
        upcall_cycles: c.perf.upcall_cycles.get(),
        batch_sizes: batch_sizes(&c.perf),
        measured_frames: c.perf.measured_frames.get(),
        stages: stages(&c.perf),
    }
}

fn batch_sizes(perf: &Perf) -> Vec<BatchSize> {
    let classes = BATCH_SIZES.iter().zip(&perf.batch_sizes);
    classes.map(|(&frames, batches)| BatchSize { frames, batches: batches.get() }).collect()
}

fn stages(perf: &Perf) -> Vec<StageReport> {
    let stage = |stage: Stage| StageReport {
        stage: stage.name().to_owned(),
        cycles: perf.stages[stage as usize].get(),
    };
    Stage::ALL.into_iter().map(stage).collect()
}
