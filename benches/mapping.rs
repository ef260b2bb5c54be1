//! How long does it take to renumber a segment while flows are cached and frames flow?
//!
//! So many flows of a VM that is in ten segments, or in one, go through VXLAN tunnels, each with a cached decision; then one
//! segment gets another VNI, and nine in ten flows rest on nothing that was changed, or all do. Printed are the time from `publish` until the poller works by it (then the command returns, and no
//! frame leaves with the old number), the time until every cached flow was looked at again, and the frames per second
//! before, meanwhile, in the whole first second, and in each tenth of it, when the poller gets as many as it can take. Medians.
//!
//! Names are `mapping/case/flows`, the case `renumber` (one segment of ten) or `renumber-all` (the only one); criterion's time is that until every flow was looked at.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use encap::tunnel::TunnelKind;

#[path = "support/rig.rs"]
mod rig;

use rig::{Overlay, Rig, SHORT, pairs, reel, tagged};

const FLOWS: [u32; 3] = [10_000, 100_000, 1_000_000];
/// The cases: how many segments there are.
const CASES: [(&str, usize); 2] = [("renumber", 10), ("renumber-all", 1)];
/// The VNIs of all segments; that of the first is taken by turns.
const VNIS: [[u32; 10]; 2] = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1000, 2, 3, 4, 5, 6, 7, 8, 9, 10]];
/// Turns of the poller by which its rate is told while nothing changes.
const STEADY: usize = 10_000;
/// In what time all flows are to be looked at, with a fifth fewer frames at most.
const SECOND: Duration = Duration::from_secs(1);
/// Into how many windows it is divided.
const WINDOWS: usize = 10;

fn overlay(segments: usize, turn: usize) -> Overlay<'static> {
    Overlay { kind: TunnelKind::Vxlan, ids: &VNIS[turn % 2][..segments], vm: "a", wire: "b" }
}

/// A switch that forwards so many flows, each between stations of its own in one of the segments.
struct Busy {
    rig: Rig,
    segments: usize,
    /// Changes so far.
    changes: usize,
    seen: Vec<Change>,
}

/// What a change was like.
struct Change {
    taken: Duration,
    looked_at: Duration,
    /// Frames per second.
    before: f64,
    meanwhile: f64,
    /// In the first second after the change, and in each tenth of it.
    second: f64,
    tenths: [f64; WINDOWS],
}

/// Frames that moved since a moment, by windows of time.
struct Tally {
    begin: Instant,
    windows: [usize; WINDOWS],
}

impl Tally {
    fn since(begin: Instant) -> Tally {
        Tally { begin, windows: [0; WINDOWS] }
    }

    /// Counts frames that moved just now; false when the second is over.
    fn add(&mut self, moved: usize) -> bool {
        let window = (self.begin.elapsed().as_nanos() * WINDOWS as u128 / SECOND.as_nanos()) as usize;
        self.windows.get_mut(window).map(|frames| *frames += moved).is_some()
    }

    fn all(&self) -> usize {
        self.windows.iter().sum()
    }

    /// Frames per second in each window.
    fn rates(&self) -> [f64; WINDOWS] {
        self.windows.map(|frames| (frames * WINDOWS) as f64 / SECOND.as_secs_f64())
    }
}

impl Busy {
    fn new(segments: usize, flows: u32) -> Busy {
        let overlay = overlay(segments, 0);
        let mut rig = Rig::new(&overlay.config());
        let (frames, hello) = pairs(flows, SHORT);
        let hellos: Vec<_> = overlay.ids.iter().flat_map(|id| overlay.far(*id, &hello)).collect();
        rig.attach("b", Box::new(reel(&hellos)));
        (0..hellos.len()).step_by(32).for_each(|_| assert!(rig.turn() > 0));
        rig.attach("b", Box::new(reel(&[])));
        let vlans = (1..=segments as u16).cycle();
        let frames: Vec<_> = match segments {
            1 => frames,
            _ => frames.iter().zip(vlans).map(|(frame, vlan)| tagged(frame, vlan)).collect(),
        };
        rig.attach("a", Box::new(reel(&frames)));
        (0..2 * frames.len()).step_by(32).for_each(|_| assert!(rig.turn() > 0));
        rig.catch_up();
        assert!(rig.switch.flows().len() >= flows as usize, "{} flows", rig.switch.flows().len());
        Busy { rig, segments, changes: 0, seen: Vec::new() }
    }

    /// Renumbers the segment; how long it takes until all flows were looked at.
    fn renumber(&mut self) -> Duration {
        let begin = Instant::now();
        let moved: usize = (0..STEADY).map(|_| self.rig.turn()).sum();
        let before = moved as f64 / begin.elapsed().as_secs_f64();
        self.rig.catch_up();
        self.changes += 1;
        let tables = self.rig.change(&overlay(self.segments, self.changes).config()).tables;
        let begin = Instant::now();
        self.rig.switch.publish(tables);
        let (first, mut tally) = (self.rig.turn(), Tally::since(begin));
        let taken = begin.elapsed();
        let (mut moved, mut goes_on) = (first, tally.add(first));
        while self.rig.poller.has_work() {
            let now = self.rig.turn();
            (moved, goes_on) = (moved + now, tally.add(now));
        }
        let looked_at = begin.elapsed();
        let meanwhile = moved as f64 / looked_at.as_secs_f64();
        while goes_on {
            goes_on = tally.add(self.rig.turn());
        }
        let (second, tenths) = (tally.all() as f64 / SECOND.as_secs_f64(), tally.rates());
        self.seen.push(Change { taken, looked_at, before, meanwhile, second, tenths });
        looked_at
    }

    fn median(&self, of: impl Fn(&Change) -> f64) -> f64 {
        let mut all: Vec<f64> = self.seen.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

fn renumber(c: &mut Criterion) {
    let mut group = c.benchmark_group("mapping");
    group.sample_size(10).warm_up_time(Duration::from_millis(100));
    let cases = CASES.iter().flat_map(|case| FLOWS.map(|flows| (*case, flows)));
    for ((case, segments), flows) in cases {
        let mut busy = None;
        group.bench_function(BenchmarkId::new(case, flows), |b| {
            let busy = busy.get_or_insert_with(|| Busy::new(segments, flows));
            b.iter_custom(|changes| (0..changes).map(|_| busy.renumber()).sum());
        });
        if let Some(busy) = busy {
            let ms = |of: fn(&Change) -> Duration| busy.median(|change| of(change).as_secs_f64() * 1e3);
            println!(
                "mapping/{case}/{flows}: in force after {:.3} ms, all flows looked at after {:.1} ms; \
                 {:.2} million frames per second before, {:.2} meanwhile, {:.2} in the first second, by tenths {}",
                ms(|change| change.taken),
                ms(|change| change.looked_at),
                busy.median(|change| change.before) / 1e6,
                busy.median(|change| change.meanwhile) / 1e6,
                busy.median(|change| change.second) / 1e6,
                (0..WINDOWS)
                    .map(|n| format!("{:.1}", busy.median(|change| change.tenths[n]) / 1e6))
                    .collect::<Vec<_>>()
                    .join(" "),
            );
        }
    }
    group.finish();
}

criterion_group!(benches, renumber);
criterion_main!(benches);
