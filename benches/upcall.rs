//! What does a new flow cost: its first frame, received, looked up in vain, translated, remembered and sent?
//!
//! Every flow has a pair of stations of its own, all of which are known, so nothing is learned but that they are still there.
//! The flow table is empty at first and is forgotten when all flows were seen, so its growth is part of the cost. As in bench
//! `forward` each frame pays for an allocation, a copy and a free.
//!
//! Names are `upcall/case/flows`; flows are the throughput. Beside criterion's own figures each case prints TSC cycles of
//! the poller per new flow: the best of many short windows and the median.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::batch::BATCH;
use dataplane::stats::cycles;
use encap::tunnel::TunnelKind;

#[path = "support/rig.rs"]
mod rig;

use rig::{Overlay, Rig, SHORT, pairs, reel};

const FLOWS: [u32; 2] = [10_240, 204_800];
/// Turns between two looks at the cycle counter.
const WINDOW: usize = 64;
/// One bridge from `a` to `b`.
const BRIDGE: &str = "bridge = [{ name = 'br0', mac-table-size = 1000000, port = [
    { name = 'a', upcall-rate = 0 }, { name = 'b', upcall-rate = 0 } ] }]";

/// A switch that knows all stations and no flow.
struct Fresh {
    rig: Rig,
    config: String,
    frames: Vec<Vec<u8>>,
    /// Cycles per flow, by window.
    seen: Vec<f64>,
}

impl Fresh {
    /// `wrap` makes what port `b` receives of what the stations behind it send.
    fn new(config: String, flows: u32, wrap: impl Fn(&[Vec<u8>]) -> Vec<Vec<u8>>) -> Fresh {
        let (frames, hello) = pairs(flows, SHORT);
        let mut fresh = Fresh { rig: Rig::new(&config), config, frames, seen: Vec::new() };
        fresh.play("b", &wrap(&hello));
        // Those behind `a` become known by the first frames, which teach more than later ones.
        fresh.all_flows();
        fresh.seen.clear();
        fresh
    }

    /// Lets the port send these, once.
    fn play(&mut self, port: &str, frames: &[Vec<u8>]) {
        self.rig.attach(port, Box::new(reel(frames)));
        (0..frames.len().div_ceil(BATCH)).for_each(|_| assert!(self.rig.turn() > 0));
        self.rig.attach(port, Box::new(reel(&[])));
    }

    /// Makes all flows, and forgets them; how long the making took.
    fn all_flows(&mut self) -> Duration {
        let frames = std::mem::take(&mut self.frames);
        self.rig.attach("a", Box::new(reel(&frames)));
        let mut taken = Duration::ZERO;
        for _ in 0..frames.len() / BATCH / WINDOW {
            let (begin, from) = (Instant::now(), cycles());
            (0..WINDOW).for_each(|_| assert_eq!(self.rig.turn(), BATCH));
            self.seen.push((cycles() - from) as f64 / (WINDOW * BATCH) as f64);
            taken += begin.elapsed();
        }
        let (made, upcalls) = (self.rig.switch.flows().len(), self.rig.poller.counters().upcalls.get());
        assert!(made >= frames.len() / BATCH / WINDOW * WINDOW * BATCH, "{made} flows by {upcalls} upcalls");
        self.rig.attach("a", Box::new(reel(&[])));
        self.rig.switch.flush_flows();
        // A change, so that the poller looks after its flows and lets go of the dead.
        let tables = self.rig.change(&self.config).tables;
        self.rig.switch.publish(tables);
        self.rig.turn();
        self.rig.catch_up();
        self.frames = frames;
        taken
    }
}

fn upcall(c: &mut Criterion) {
    let mut group = c.benchmark_group("upcall");
    group.sample_size(10);
    let overlay = Overlay { kind: TunnelKind::Vxlan, ids: &[1], vm: "a", wire: "b" };
    for flows in FLOWS {
        let l2 = || Fresh::new(BRIDGE.into(), flows, <[_]>::to_vec);
        let vxlan = || Fresh::new(overlay.config(), flows, |hello| overlay.far(1, hello));
        let cases: [(&str, &dyn Fn() -> Fresh); 2] = [("l2", &l2), ("vxlan-encap", &vxlan)];
        for (case, make) in cases {
            let mut fresh = None;
            group.throughput(Throughput::Elements(flows.into()));
            group.bench_function(BenchmarkId::new(case, flows), |b| {
                let fresh = fresh.get_or_insert_with(make);
                b.iter_custom(|times| (0..times).map(|_| fresh.all_flows()).sum());
            });
            if let Some(mut fresh) = fresh {
                fresh.seen.sort_by(f64::total_cmp);
                let (best, median) = (fresh.seen[0], fresh.seen[fresh.seen.len() / 2]);
                println!("upcall/{case}/{flows}: {best:.0} cycles per new flow at best, median {median:.0}");
            }
        }
    }
    group.finish();
}

criterion_group!(benches, upcall);
criterion_main!(benches);
