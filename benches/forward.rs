//! What does a frame cost from port to port, through the whole poller?
//!
//! A [`Reel`] plays the part of looping pcap and null device at once: `rx` takes a frame from the pool and copies the
//! next bytes of its list into it, `tx` frees what it gets. So each frame pays for an allocation, a copy and a free, as
//! in the measurements of other switches that we compare with. One iteration is one turn of the poller with the
//! clock read that its thread does before: 32 frames. The `circulate` cases have neither allocation nor copy:
//! what a memory port's peer gets it puts back.
//!
//! Names are `forward/case/size`: flows, ports of a flood, or bytes; frames received are the throughput. Beside
//! criterion's own figures each case prints TSC cycles of the poller per frame: the best of many short windows and the median.

use std::sync::Arc;
use std::time::Instant;

use control::compile::compile;
use control::config;
use control::model::Model;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::batch::{BATCH, Batch};
use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig};
use dataplane::poller::Poller;
use dataplane::port::memory::{Peer, pair};
use dataplane::port::{Port, PortError, Sent};
use dataplane::run::Clock;
use dataplane::stats::{PortStats, cycles};
use dataplane::switch::{Switch, SwitchConfig};
use encap::field::MacAddr;
use flowtable::id::{BridgeId, PortId};

/// Port `a`, where frames come in, and `b`, where most go.
const TWO: &str = "a\nb";
const SIZES: [u32; 4] = [1, 1_000, 100_000, 1_000_000];
/// The shortest frame there is, without FCS.
const SHORT: usize = 60;
/// Turns between two looks at the cycle counter: short, so that some windows have the core for themselves.
const WINDOW: u64 = 256;
/// Flows that come by turns where their number is not the question.
const SOME: u32 = 32;

/// Frames of one length, one behind the other, to be received again and again; sent ones are freed.
struct Reel {
    bytes: Vec<u8>,
    len: usize,
    at: usize,
}

impl Reel {
    fn new(frames: &[Vec<u8>]) -> Self {
        Reel { bytes: frames.concat(), len: frames.first().map_or(0, Vec::len), at: 0 }
    }
}

impl Port for Reel {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        while self.len > 0 && !batch.is_full() {
            batch.push(frames.from_bytes(&self.bytes[self.at..self.at + self.len]).expect("a frame"));
            self.at += self.len;
            if self.at == self.bytes.len() {
                self.at = 0;
            }
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let bytes = batch.iter().map(|frame| frame.len() as u64).sum();
        let sent = Sent { frames: batch.len() as u32, bytes };
        batch.drain(..).for_each(|frame| frames.free(frame));
        Ok(sent)
    }
}

/// The station `n` behind port `a` or `b`.
fn station(port: u8, n: u32) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | u64::from(port) << 32 | u64::from(n))
}

/// A UDP datagram over IPv4 in a frame of `len` bytes.
struct Datagram {
    from: MacAddr,
    to: MacAddr,
    /// Source port and, above its 16 bits, the low bits of the source address.
    flow: u32,
    len: usize,
}

impl Datagram {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.to.0, self.from.0].concat();
        bytes.extend([0x08, 0x00]);
        let packet = (self.len - bytes.len()) as u16;
        let [high, low] = packet.to_be_bytes();
        bytes.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        bytes.extend([10, 1, (self.flow >> 24) as u8, (self.flow >> 16) as u8, 10, 2, 0, 1]);
        bytes.extend((self.flow as u16).to_be_bytes());
        bytes.extend([0, 53]);
        bytes.extend((packet - 20).to_be_bytes());
        bytes.resize(self.len, 0);
        bytes
    }
}

/// One question: what stands on the wire, and how many copies of a frame shall leave.
struct Case {
    ports: String,
    /// What port `b` sends first, so that its stations are known.
    hello: Vec<Vec<u8>>,
    /// What port `a` sends for ever.
    frames: Vec<Vec<u8>>,
    copies: u64,
}

/// Frames of `flows` flows in an order that no prefetcher guesses, and the hellos of their receivers: every flow
/// has a pair of stations of its own.
fn pairs(flows: u32, len: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let side = f64::from(flows).sqrt().ceil() as u32;
    let frame = |n: u32| {
        let (from, to) = (station(0xa, n / side), station(0xb, n % side));
        Datagram { from, to, flow: n, len }.bytes()
    };
    (shuffled(flows).into_iter().map(frame).collect(), hellos(side))
}

/// As [`pairs`], but all flows are between two stations and differ in IP address and UDP port.
fn tuples(flows: u32) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (from, to) = (station(0xa, 0), station(0xb, 0));
    let frame = |flow| Datagram { from, to, flow, len: SHORT }.bytes();
    (shuffled(flows).into_iter().map(frame).collect(), hellos(1))
}

/// The frames with a VLAN tag, if they shall have one.
fn tagged(frames: Vec<Vec<u8>>, vlan: Option<u16>) -> Vec<Vec<u8>> {
    let Some(vlan) = vlan else { return frames };
    let tag = |frame: &Vec<u8>| [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat();
    frames.iter().map(tag).collect()
}

fn hellos(stations: u32) -> Vec<Vec<u8>> {
    let to = MacAddr([0xff; 6]);
    let hello = |n| Datagram { from: station(0xb, n), to, flow: 0, len: SHORT }.bytes();
    (0..stations).map(hello).collect()
}

/// The numbers below `n`, shuffled (Fisher, Yates; the random numbers are Marsaglia's xorshift64).
fn shuffled(n: u32) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..n).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for i in (1..numbers.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(i, (state % (i as u64 + 1)) as usize);
    }
    numbers
}

/// A switch with one poller, turned by hand.
struct Rig {
    switch: Switch,
    poller: Poller,
    pool: Arc<FramePool>,
    clock: Clock,
    places: Vec<usize>,
    ids: Vec<PortId>,
}

impl Rig {
    /// `ports` are lines `name settings`; all are in one bridge.
    fn new(ports: &str) -> Rig {
        let mut text = String::from("[[bridge]]\nname = \"br0\"\nmac-table-size = 1000000\n");
        for port in ports.lines() {
            let (name, settings) = port.split_once(' ').unwrap_or((port, ""));
            text += &format!("[[bridge.port]]\nname = \"{name}\"\nupcall-rate = 0\n{settings}\n");
        }
        let model = Model::new(config::parse(&text).expect("a good file")).expect("a good model");
        let pool =
            FramePool::new(PoolConfig { small: 16_384, big: 16, memory: Memory::Plain }).expect("memory");
        let settings = SwitchConfig { flows: 2 << 20, ..SwitchConfig::default() };
        let (switch, mut pollers) = Switch::assemble(settings, Arc::clone(&pool)).expect("a switch");
        let poller = pollers.pop().expect("one poller");
        switch.publish(compile(&model).tables);
        let name = |port: &str| port.split(' ').next().unwrap_or(port).to_owned();
        let ids = ports.lines().map(|port| model.port(&name(port)).expect("it is there").id).collect();
        let places = Vec::new();
        Rig { switch, poller, pool, clock: Clock::start(), places, ids }
    }

    /// Attaches every port to something, after it learned who is behind port `b`.
    fn play(case: Case) -> Rig {
        let mut rig = Rig::new(&case.ports);
        let laps = case.hello.len().div_ceil(BATCH);
        rig.attach(1, Box::new(Reel::new(&case.hello)));
        (0..laps).for_each(|_| assert!(rig.turn() > 0));
        assert_eq!(rig.switch.fdb(BridgeId(0)).len(), case.hello.len());
        for port in 1..rig.ids.len() {
            rig.attach(port, Box::new(Reel::new(&[])));
        }
        rig.attach(0, Box::new(Reel::new(&case.frames)));
        rig.warm_up(case.frames.len(), case.copies);
        rig
    }

    fn attach(&mut self, port: usize, io: Box<dyn Port>) {
        self.switch.attach(self.ids[port], vec![io], &[]);
        self.poller.turn(self.clock.now(), &[]);
        self.places = (0..self.poller.wires.queues.len()).collect();
    }

    /// What the poller's thread does again and again; how many frames moved.
    fn turn(&mut self) -> usize {
        self.poller.turn(self.clock.now(), &self.places)
    }

    /// Passes all frames once, so that every flow is known, and goes on until what changed by that was revalidated;
    /// then sees that they come out as they should.
    fn warm_up(&mut self, frames: usize, copies: u64) {
        (0..frames.div_ceil(BATCH)).for_each(|_| assert_eq!(self.turn(), BATCH));
        while self.poller.has_work() {
            self.turn();
        }
        let (before, upcalls) = (self.switch.total_stats(), self.poller.counters().upcalls.get());
        let moved = self.turn() as u64;
        let after = self.switch.total_stats();
        let sent = |stats: &PortStats| stats.tx_frames;
        assert_eq!((moved, sent(&after) - sent(&before)), (BATCH as u64, BATCH as u64 * copies));
        assert_eq!(self.poller.counters().upcalls.get(), upcalls, "a flow was not cached");
    }
}

/// A memory port on either side, and frames that go round: what comes out of `b` is put back into `a`.
struct Circle {
    rig: Rig,
    peers: [Peer; 2],
}

impl Circle {
    fn new(flows: u32) -> Circle {
        let (frames, _) = pairs(flows, SHORT);
        let mut rig = Rig::new(TWO);
        let ((a, mut peer_a), (b, mut peer_b)) = (pair(&rig.pool, 2048), pair(&rig.pool, 2048));
        rig.attach(0, Box::new(a));
        rig.attach(1, Box::new(b));
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
    measure(c, name, || Rig::play(case()), Rig::turn);
}

fn switching(c: &mut Criterion) {
    let plain = |(frames, hello)| Case { ports: TWO.into(), hello, frames, copies: 1 };
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
            let more: String = (1..ports).map(|n| format!("\nport{n}")).collect();
            Case {
                ports: format!("a\nb{more}"),
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

fn vlans(c: &mut Criterion) {
    for flows in [1, 1_000] {
        let case = |ports: &str, tags: [Option<u16>; 2], copies| {
            let (frames, hello) = pairs(flows, SHORT);
            Case {
                ports: ports.into(),
                frames: tagged(frames, tags[0]),
                hello: tagged(hello, tags[1]),
                copies,
            }
        };
        pass(c, ("access", flows), || case("a tag = 10\nb tag = 10", [None, None], 1));
        pass(c, ("push", flows), || case("a tag = 10\nb trunks = [10]", [None, Some(10)], 1));
        pass(c, ("pop", flows), || case("a trunks = [10]\nb tag = 10", [Some(10), None], 1));
        // An access port takes no frame of another VLAN.
        pass(c, ("drop", flows), || case("a tag = 10\nb tag = 10", [Some(20), None], 0));
    }
}

criterion_group!(benches, switching, vlans);
criterion_main!(benches);
