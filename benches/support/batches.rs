//! Work on a batch of frames, in time and in cycles.

use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use dataplane::stats::cycles;

/// Frames of a batch.
pub const BATCH: usize = 32;
/// Batches between two looks at the cycle counter: short, so that some windows have the core for themselves.
const WINDOW: u64 = 256;

/// Measures `work`, which does one thing to each of [`BATCH`] frames; prints TSC cycles per frame beside
/// criterion's time, the best of many windows and the median.
pub fn measure(c: &mut Criterion, (group, case, size): (&str, &str, usize), mut work: impl FnMut()) {
    let mut windows = Vec::new();
    let mut criterion = c.benchmark_group(group);
    criterion.throughput(Throughput::Elements(BATCH as u64));
    criterion.bench_function(BenchmarkId::new(case, size), |b| {
        b.iter_custom(|batches| {
            let start = Instant::now();
            for window in (0..batches).step_by(WINDOW as usize) {
                let count = WINDOW.min(batches - window);
                let begin = cycles();
                (0..count).for_each(|_| work());
                windows.push((cycles() - begin) as f64 / (count as usize * BATCH) as f64);
            }
            start.elapsed()
        });
    });
    criterion.finish();
    windows.sort_by(f64::total_cmp);
    if let Some(best) = windows.first() {
        let median = windows[windows.len() / 2];
        println!("{group}/{case}/{size}: {best:.1} cycles per frame, median {median:.1}");
    }
}
