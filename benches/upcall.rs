//! What does a new flow cost: its first frame, received, looked up in vain, translated, remembered and sent?
//!
//! Every flow has a pair of stations of its own, all of which are known, so nothing is learned but that they are still there.
//! The flow table is empty at first and is forgotten when all flows were seen, so its growth is part of the cost. As in bench
//! `forward` each frame pays for an allocation, a copy and a free.
//!
//! Names are `upcall/case/flows`; flows are the throughput. Beside criterion's own figures each case prints TSC cycles of
//! the poller per new flow: the best of many short windows and the median.

use std::collections::BTreeSet;
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
    /// Where the frames come in.
    port: &'static str,
    frames: Vec<Vec<u8>>,
    /// Cycles per flow, by window.
    seen: Vec<f64>,
}

impl Fresh {
    /// A flow each for these `frames` that come in by `port`; `hello` is what their receivers behind the other one send.
    fn new(
        config: String,
        (port, frames): (&'static str, Vec<Vec<u8>>),
        (other, hello): (&str, &[Vec<u8>]),
    ) -> Fresh {
        let mut fresh = Fresh { rig: Rig::new(&config), config, port, frames, seen: Vec::new() };
        fresh.play(other, hello);
        // Their senders become known by the first frames, which teach more than later ones.
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
        self.rig.attach(self.port, Box::new(reel(&frames)));
        let mut taken = Duration::ZERO;
        for _ in 0..frames.len() / BATCH / WINDOW {
            let (begin, from) = (Instant::now(), cycles());
            (0..WINDOW).for_each(|_| assert_eq!(self.rig.turn(), BATCH));
            self.seen.push((cycles() - from) as f64 / (WINDOW * BATCH) as f64);
            taken += begin.elapsed();
        }
        let (made, upcalls) = (self.rig.switch.flows().len(), self.rig.poller.counters().upcalls.get());
        assert!(made >= frames.len() / BATCH / WINDOW * WINDOW * BATCH, "{made} flows by {upcalls} upcalls");
        self.rig.attach(self.port, Box::new(reel(&[])));
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

/// The frame the other way.
fn answer(frame: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6], &frame[12..]].concat()
}

/// A broadcast of each of the senders of these.
fn hellos_of(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let senders: BTreeSet<&[u8]> = frames.iter().map(|frame| &frame[6..12]).collect();
    senders.into_iter().map(|sender| [&[0xff; 6], sender, &frames[0][12..]].concat()).collect()
}

fn upcall(c: &mut Criterion) {
    let mut group = c.benchmark_group("upcall");
    group.sample_size(10);
    let overlay = Overlay { kind: TunnelKind::Vxlan, ids: &[1], vm: "a", wire: "b" };
    for flows in FLOWS {
        let (there, from_b) = pairs(flows, SHORT);
        let (back, from_a) = (there.iter().map(|frame| answer(frame)).collect::<Vec<_>>(), hellos_of(&there));
        let l2 = || Fresh::new(BRIDGE.into(), ("a", there.clone()), ("b", &from_b));
        let encap = || Fresh::new(overlay.config(), ("a", there.clone()), ("b", &overlay.far(1, &from_b)));
        let decap = || Fresh::new(overlay.config(), ("b", overlay.far(1, &back)), ("a", &from_a));
        let cases: [(&str, &dyn Fn() -> Fresh); 3] =
            [("l2", &l2), ("vxlan-encap", &encap), ("vxlan-decap", &decap)];
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
