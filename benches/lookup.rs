//! What does it cost to find the flow of a frame, in the caches alone and together?
//!
//! Names are `family/case/size`, size being flows. Keys are visited in random order, so that big tables cost
//! cache misses.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::field::{EtherType, IpProto, MacAddr};
use flowtable::action::Action;
use flowtable::exact::ExactCache;
use flowtable::field::{Field, L4Port};
use flowtable::flow::{Birth, Decision, Flow, FlowRef, Seat};
use flowtable::id::PortId;
use flowtable::intern::Interner;
use flowtable::key::{FlowKey, WORDS};
use flowtable::mask::{Mask, Probe};
use flowtable::megaflow::{Limits, Megaflows, Reader};
use flowtable::places::Places;
use flowtable::time::Instant;

#[path = "support/batches.rs"]
mod batches;

use batches::BATCH;

const SIZES: [u64; 4] = [1, 1_000, 100_000, 1_000_000];
const GENERATION: u64 = 1;

/// Key `n`: a TCP frame between hosts of its own, on one of 64 ports that all masks see.
fn key(n: u64) -> FlowKey {
    FlowKey::default()
        .with(Field::InPort, PortId((n / 64 % 64) as u32))
        .with(Field::EthSrc, MacAddr::from_u64(0x0200_0000_0000 + n))
        .with(Field::EthDst, MacAddr::from_u64(0x0600_0000_0000 + n / 7))
        .with(Field::EthType, EtherType::IPV4)
        .with(Field::IpProto, IpProto::TCP)
        .with(Field::Ipv4Src, std::net::Ipv4Addr::from_bits(0x0a00_0000 + n as u32))
        .with(Field::L4Dst, L4Port((n % 5) as u16))
}

/// Mask `i` of 64: what switching looks at, and any of six more fields.
fn mask(i: u64) -> Mask {
    let key = key(0);
    let mut probe = Probe::new(&key);
    let (_, _) = (probe.in_port(), probe.has_vlan(0));
    let (_, _) = (probe.eth_src(), probe.eth_dst());
    let more: [fn(&mut Probe<'_>) -> u64; 6] = [
        |p| p.ip_src().to_bits().into(),
        |p| p.ip_dst().to_bits().into(),
        |p| p.l4_src().0.into(),
        |p| p.l4_dst().0.into(),
        |p| p.ip_ttl().into(),
        |p| p.tun_id(),
    ];
    for (_, look) in more.iter().enumerate().filter(|(bit, _)| i >> bit & 1 != 0) {
        look(&mut probe);
    }
    *probe.mask()
}

fn flow(interner: &mut Interner, n: u64, mask: &Mask) -> Flow {
    let decision = Decision {
        mask: *mask,
        actions: [Action::Output(PortId(1))].into(),
        effects: Box::new([]),
        in_port: PortId(0),
        depends: 0,
        rests_on: Default::default(),
        cacheable: true,
    };
    let birth = Birth { generation: GENERATION, pollers: 1, now: Instant::ZERO };
    interner.flow(&key(n), decision, birth)
}

/// A table of `flows`, spread over `masks`.
fn table(flows: u64, masks: u64) -> Arc<Megaflows> {
    let table = Arc::new(Megaflows::new(Limits { flows: flows as usize, masks: masks as usize }));
    let masks: Vec<Mask> = (0..masks).map(mask).collect();
    let mut interner = Interner::default();
    for n in 0..flows {
        drop(table.insert(flow(&mut interner, n, &masks[(n % masks.len() as u64) as usize])));
    }
    assert_eq!(table.len(), flows as usize);
    table
}

/// Numbers below `n` in an order that no prefetcher guesses.
fn order(n: u64) -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((u128::from(state) * u128::from(n)) >> 64) as u64
    }
}

fn megaflow(c: &mut Criterion) {
    let mut group = c.benchmark_group("megaflow");
    group.throughput(Throughput::Elements(1));
    for flows in SIZES {
        for masks in [1, 8, 64] {
            if masks > flows {
                continue;
            }
            let table = table(flows, masks);
            let mut reader = table.reader();
            reader.quiesce();
            let mut next = order(flows);
            group.bench_function(BenchmarkId::new(format!("hit-{masks}-masks"), flows), |b| {
                b.iter(|| reader.lookup(&key(next())).expect("it is there").generation());
            });
            group.bench_function(BenchmarkId::new(format!("miss-{masks}-masks"), flows), |b| {
                b.iter(|| reader.lookup(&key(flows + next())).is_none());
            });
        }
    }
}

/// Inserting and removing, with what it takes to free.
fn change(c: &mut Criterion) {
    let mut group = c.benchmark_group("megaflow");
    group.throughput(Throughput::Elements(1));
    for flows in [1_000, 100_000] {
        let table = table(flows, 1);
        let (extra, mut interner) = (mask(0), Interner::default());
        group.bench_function(BenchmarkId::new("insert-remove", flows), |b| {
            b.iter(|| {
                let new = flow(&mut interner, flows + 1, &extra);
                black_box(table.insert(new.clone()));
                table.remove(&new)
            });
        });
    }
}

fn exact(c: &mut Criterion) {
    let mut group = c.benchmark_group("exact");
    group.throughput(Throughput::Elements(1));
    for flows in [1, 1_000, 8_000] {
        let (mut cache, mut interner) = (ExactCache::new(), Interner::default());
        for n in 0..flows {
            let flow = flow(&mut interner, n, &mask(0));
            cache.insert(key(n).hash(), || flow.clone());
        }
        let present: Vec<u64> =
            (0..flows).filter(|n| cache.get(&key(*n), key(*n).hash(), GENERATION).is_some()).collect();
        let mut next = order(present.len() as u64);
        group.bench_function(BenchmarkId::new("hit", flows), |b| {
            b.iter(|| {
                let key = key(present[next() as usize]);
                cache.get(&key, key.hash(), GENERATION).expect("it is there").generation()
            });
        });
        let mut next = order(flows);
        group.bench_function(BenchmarkId::new("miss", flows), |b| {
            b.iter(|| {
                let key = key(flows + next());
                cache.get(&key, key.hash(), GENERATION).is_none()
            });
        });
    }
}

/// Both caches, as a poller asks them: how the cost grows with the number of flows in use.
fn both(c: &mut Criterion) {
    let mut group = c.benchmark_group("caches");
    group.throughput(Throughput::Elements(1));
    for flows in [1, 1_000, 8_000, 16_000, 100_000, 1_000_000] {
        let table = table(flows, 8.min(flows));
        let mut reader = table.reader();
        reader.quiesce();
        for (case, skew) in [("uniform", 1), ("skewed", 3)] {
            let mut cache = ExactCache::new();
            let mut random = order(1 << 32);
            // The smallest of `skew` draws: some flows have many frames, most have few.
            let mut next = move || (0..skew).map(|_| random()).min().map_or(0, |least| (least * flows) >> 32);
            group.bench_function(BenchmarkId::new(case, flows), |b| {
                b.iter(|| {
                    let key = key(next());
                    let hash = key.hash();
                    if let Some(flow) = cache.get(&key, hash, GENERATION) {
                        return flow.generation();
                    }
                    let flow = reader.lookup(&key).expect("it is there");
                    cache.insert(hash, || flow.share());
                    flow.generation()
                });
            });
        }
    }
}

/// Batches of keys, drawn from `flows`, whose memory the prefetcher of the processor knows.
fn drawn(flows: u64) -> Vec<[FlowKey; BATCH]> {
    let mut next = order(flows);
    (0..4096).map(|_| std::array::from_fn(|_| key(next()))).collect()
}

/// What a poller does with a batch: both caches are asked for all keys at once, and what is found is counted.
fn ask(keys: &[FlowKey; BATCH], exact: &mut ExactCache, reader: &Reader) {
    let mut found: [Option<FlowRef<'_>>; BATCH] = [None; BATCH];
    let (mut wanted, mut hashes) = (Places::first(BATCH), [0; BATCH]);
    let awake = exact.is_awake(BATCH);
    if awake {
        reader.hash_each((keys, WORDS), wanted, |place, hash| {
            exact.prefetch(hash);
            hashes[place] = hash;
        });
        exact.get_each(
            (keys, &hashes),
            (GENERATION, Seat { index: 0, pollers: 1 }),
            &mut wanted,
            |at, flow| found[at] = Some(flow),
        );
    }
    reader.lookup_each(keys, wanted, |at, flow| found[at] = Some(flow));
    let flows = found.iter().map(|flow| flow.expect("it is there"));
    flows.clone().for_each(|flow| flow.stats(0).add(1, 60, 0, Instant::ZERO));
    black_box(flows.filter(|flow| matches!(reader.actions(flow), Some([Action::Output(_)]))).count());
    if awake {
        let newcomers: Vec<_> = wanted.filter_map(|at| Some((hashes[at], found[at]?.share()))).collect();
        newcomers.into_iter().for_each(|(hash, flow)| exact.insert(hash, || flow));
    }
}

/// Both caches, a batch at a time: what is left of the cache misses when they overlap.
fn batch(c: &mut Criterion) {
    for flows in SIZES {
        let table = table(flows, 1);
        let (mut exact, mut reader) = (ExactCache::new(), table.reader());
        reader.quiesce();
        let drawn = drawn(flows);
        let mut at = 0;
        batches::measure(c, ("caches", "batch", flows as usize), || {
            at = (at + 1) % drawn.len();
            ask(&drawn[at], &mut exact, &reader);
        });
    }
}

criterion_group!(benches, megaflow, change, exact, both, batch);
criterion_main!(benches);
