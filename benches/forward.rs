//! What does a frame cost from port to port, through the whole poller?
//!
//! A [`dataplane::pktgen::reel::Player`] plays the part of looping pcap and null device at once: `rx` takes a frame from the pool and copies the
//! next bytes of its list into it, `tx` frees what it gets. So each frame pays for an allocation, a copy and a free, as
//! in the measurements of other switches that we compare with. One iteration is one turn of the poller with the
//! clock read that its thread does before: 32 frames. The `circulate` cases have neither allocation nor copy:
//! what a memory port's peer gets it puts back.
//!
//! In tunnel cases a VM's port is in a segment that reaches beyond an uplink in another bridge: `encap` cases go from the VM to
//! the uplink, `decap` cases the other way. Their size is that of the inner frame, their flows are as those of `l2`.
//!
//! `tuples` are flows between one pair of stations: what OVS is measured with, port to port or NORMAL. A case whose name ends so
//! has these, others have a pair of stations for each flow. `retag` goes from a VLAN to the provider's that stands for it.
//!
//! Names are `forward/case/size`: flows, ports of a flood, or bytes; frames received are the throughput. Beside
//! criterion's own figures each case prints TSC cycles of the poller per frame: the best of many short windows and the median.

use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::batch::BATCH;
use dataplane::pktgen::frames::shuffled;
use dataplane::port::memory::{Peer, pair};
use dataplane::stats::cycles;
use encap::tunnel::TunnelKind;

#[path = "support/rig.rs"]
mod rig;

use rig::{Datagram, Overlay, Rig, SHORT, bridge, hellos, pairs, reel, station, tagged};

/// Port `a`, where frames come in, and `b`, where most go.
const TWO: &str = "a\nb";
const SIZES: [u32; 4] = [1, 1_000, 100_000, 1_000_000];
/// Turns between two looks at the cycle counter: short, so that some windows have the core for themselves.
const WINDOW: u64 = 256;
/// Flows that come by turns where their number is not the question.
const SOME: u32 = 32;

/// One question: what stands on the wire, and how many copies of a frame shall leave.
struct Case {
    /// The configuration, with ports `a` and `b`.
    config: String,
    /// What port `b` sends first, so that its stations are known.
    hello: Vec<Vec<u8>>,
    /// What port `a` sends for ever.
    frames: Vec<Vec<u8>>,
    copies: u64,
}

impl Case {
    /// Attaches every port to something, after it was learned who is behind port `b`, has every flow known, and sees that
    /// frames come out as they should.
    fn play(self) -> Rig {
        let mut rig = Rig::new(&self.config);
        rig.learn(&self.hello);
        let others = (2..).map(|n| format!("port{n}")).take_while(|name| self.config.contains(name));
        others.for_each(|port| rig.attach(&port, Box::new(reel(&[]))));
        rig.warm_up(&self.frames);
        let before = rig.switch.total_stats().tx_frames;
        let moved = rig.turn() as u64;
        assert_eq!(rig.switch.total_stats().tx_frames - before, moved * self.copies);
        rig
    }
}

/// As [`pairs`], but all flows are between two stations and differ in IP address and UDP port.
fn tuples(flows: u32) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (from, to) = (station(0xa, 0), station(0xb, 0));
    let frame = |flow| Datagram { from, to, flow, len: SHORT }.bytes();
    (shuffled(flows).into_iter().map(frame).collect(), hellos(1))
}

/// The frames with a VLAN tag, if they shall have one.
fn all_tagged(frames: Vec<Vec<u8>>, vlan: Option<u16>) -> Vec<Vec<u8>> {
    let Some(vlan) = vlan else { return frames };
    frames.iter().map(|frame| tagged(frame, vlan)).collect()
}

/// A memory port on either side, and frames that go round: what comes out of `b` is put back into `a`.
struct Circle {
    rig: Rig,
    peers: [Peer; 2],
}

impl Circle {
    fn new(flows: u32) -> Circle {
        let (frames, _) = pairs(flows, SHORT);
        let mut rig = Rig::new(&bridge(TWO));
        let pool = Arc::clone(rig.poller.wires.frames.pool());
        let ((a, mut peer_a), (b, mut peer_b)) = (pair(&pool, 2048), pair(&pool, 2048));
        rig.attach("a", Box::new(a));
        rig.attach("b", Box::new(b));
        hellos(flows).iter().for_each(|hello| assert!(peer_b.inject(hello)));
        while rig.turn() > 0 {}
        assert_eq!(peer_a.drain().len(), flows as usize);
        let in_flight = frames.len().max(2 * BATCH);
        frames.iter().cycle().take(in_flight).for_each(|frame| assert!(peer_a.inject(frame)));
        let mut circle = Circle { rig, peers: [peer_a, peer_b] };
        (0..=in_flight / BATCH).for_each(|_| assert_eq!(circle.turn(), BATCH));
        circle
    }

    fn turn(&mut self) -> usize {
        let moved = self.rig.turn();
        while let Some(frame) = self.peers[1].take() {
            self.peers[0].put(frame).expect("as many as came out");
        }
        moved
    }
}

/// Measures `turn`, which moves a batch of frames; prints cycles beside time. Whose turn it is gets made only when
/// it is asked for, and before the clock runs: a table of a million flows takes seconds.
fn measure<T>(
    c: &mut Criterion,
    (case, size): (&str, u32),
    make: impl FnOnce() -> T,
    mut turn: impl FnMut(&mut T) -> usize,
) {
    let mut group = c.benchmark_group("forward");
    group.throughput(Throughput::Elements(BATCH as u64));
    let (mut make, mut made) = (Some(make), None);
    let mut windows = Vec::new();
    group.bench_function(BenchmarkId::new(case, size), |b| {
        let rig = made.get_or_insert_with(|| make.take().expect("made once")());
        b.iter_custom(|turns| {
            let start = Instant::now();
            for window in (0..turns).step_by(WINDOW as usize) {
                let begin = cycles();
                let frames: usize = (window..turns.min(window + WINDOW)).map(|_| turn(rig)).sum();
                windows.push((cycles() - begin) as f64 / frames as f64);
            }
            start.elapsed()
        });
    });
    group.finish();
    windows.sort_by(f64::total_cmp);
    if let Some(best) = windows.first() {
        let median = windows[windows.len() / 2];
        println!("forward/{case}/{size}: {best:.0} cycles per frame, median {median:.0}");
    }
}

/// Measures what happens to `frames` of port `a` once the senders of `hello` are known behind port `b`.
fn pass(c: &mut Criterion, name: (&str, u32), case: impl FnOnce() -> Case) {
    measure(c, name, || case().play(), Rig::turn);
}

fn switching(c: &mut Criterion) {
    let plain = |(frames, hello)| Case { config: bridge(TWO), hello, frames, copies: 1 };
    for flows in SIZES {
        pass(c, ("l2", flows), || plain(pairs(flows, SHORT)));
    }
    for flows in SIZES {
        pass(c, ("tuples", flows), || plain(tuples(flows)));
    }
    for len in [SHORT, 1514] {
        pass(c, ("bytes", len as u32), || plain(pairs(SOME, len)));
    }
    for ports in [4, 32] {
        pass(c, ("flood", ports), || {
            let more: String = (2..=ports).map(|n| format!("\nport{n}")).collect();
            Case {
                config: bridge(&format!("a\nb{more}")),
                hello: Vec::new(),
                copies: ports.into(),
                ..plain(tuples(SOME))
            }
        });
    }
    for flows in [1, 1_000] {
        measure(c, ("circulate", flows), || Circle::new(flows), Circle::turn);
    }
}

/// Who talks to whom in cases where each number of flows is asked in two ways: what is behind their names, and how many.
const TRAFFIC: [(&str, Traffic, &[u32]); 2] =
    [("", |flows| pairs(flows, SHORT), &[1, 1_000, 100_000]), ("-tuples", tuples, &[1_000, 1_000_000])];

/// Frames of so many flows, and the hellos of their receivers.
type Traffic = fn(u32) -> (Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Asks for each traffic and number of flows.
fn pass_all(c: &mut Criterion, name: &str, case: impl Fn(Vec<Vec<u8>>, Vec<Vec<u8>>) -> Case) {
    for (traffic, frames, sizes) in TRAFFIC {
        for &flows in sizes {
            let name = format!("{name}{traffic}");
            pass(c, (&name, flows), || {
                let (frames, hello) = frames(flows);
                case(frames, hello)
            });
        }
    }
}

/// A bridge whose port `b` carries VLAN 1 as the provider's VLAN 101.
fn provider() -> String {
    let segment = "segment = [{ name = 's1', vlan = 1, type = 'vlan', id = 101, uplink = 'b' }]";
    bridge("a trunks = [1]\nb").replacen("\n[[", &format!("\n{segment}\n[["), 1)
}

fn vlans(c: &mut Criterion) {
    let mut ask = |name, config: &str, tags: [Option<u16>; 2], copies| {
        pass_all(c, name, |frames, hello| Case {
            config: config.to_owned(),
            frames: all_tagged(frames, tags[0]),
            hello: all_tagged(hello, tags[1]),
            copies,
        });
    };
    ask("access", &bridge("a tag = 10\nb tag = 10"), [None, None], 1);
    ask("push", &bridge("a tag = 10\nb trunks = [10]"), [None, Some(10)], 1);
    ask("pop", &bridge("a trunks = [10]\nb tag = 10"), [Some(10), None], 1);
    ask("retag", &provider(), [Some(1), Some(101)], 1);
    // An access port takes no frame of another VLAN.
    ask("drop", &bridge("a tag = 10\nb tag = 10"), [Some(20), None], 0);
}

fn tunnels(c: &mut Criterion) {
    const ID: u32 = 5001;
    for kind in TunnelKind::ALL {
        let overlay = |vm, wire| Overlay { kind, ids: &[ID], vm, wire };
        let encap = |frames, hello: Vec<Vec<u8>>| {
            let overlay = overlay("a", "b");
            Case { config: overlay.config(), hello: overlay.far(ID, &hello), frames, copies: 1 }
        };
        let decap = |frames: Vec<Vec<u8>>, hello| {
            let overlay = overlay("b", "a");
            Case { config: overlay.config(), hello, frames: overlay.far(ID, &frames), copies: 1 }
        };
        pass_all(c, &format!("{kind}-encap"), encap);
        pass_all(c, &format!("{kind}-decap"), decap);
    }
}

criterion_group!(benches, switching, vlans, tunnels);
criterion_main!(benches);
