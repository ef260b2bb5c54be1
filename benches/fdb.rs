//! What does a learning table cost per frame, and per upkeep?
//!
//! Names are `family/case/size`, size being entries. Stations are visited in random order.

use std::net::IpAddr;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::field::MacAddr;
use flowtable::fdb::{Fdb, Limits};
use flowtable::id::{Place, PortId, SegmentId, Station};
use flowtable::time::Instant;

const SIZES: [u64; 2] = [1_000, 100_000];
const AGE: Duration = Duration::from_secs(300);

fn station(n: u64) -> Station {
    Station { segment: SegmentId((n % 8) as u32), mac: MacAddr::from_u64(0x0200_0000_0000 + n) }
}

fn place(n: u64) -> Place {
    Place::Port(PortId((n % 64) as u32))
}

/// Endpoint `n` behind the only tunnel port.
fn vtep(n: u64) -> Place {
    Place::Vtep { tunnel: PortId(64), address: IpAddr::from([192, 0, 2, (n % 64) as u8]) }
}

/// A full table of `size` entries on 64 ports.
fn table(size: u64) -> Fdb {
    let mut fdb = Fdb::new(Limits { size: size as usize, age: AGE });
    for n in 0..size {
        fdb.learn(station(n), place(n), Instant::ZERO);
    }
    fdb
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

fn fdb(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    group.throughput(Throughput::Elements(1));
    for size in SIZES {
        let mut fdb = table(size);
        let mut next = order(size);
        group.bench_function(BenchmarkId::new("lookup", size), |b| {
            b.iter(|| fdb.lookup(station(next()), Instant::ZERO));
        });
        group.bench_function(BenchmarkId::new("lookup-miss", size), |b| {
            b.iter(|| fdb.lookup(station(size + next()), Instant::ZERO));
        });
        group.bench_function(BenchmarkId::new("refresh", size), |b| {
            b.iter(|| {
                let n = next();
                fdb.learn(station(n), place(n), Instant::ZERO)
            });
        });
        let mut round = 0;
        group.bench_function(BenchmarkId::new("move", size), |b| {
            b.iter(|| {
                round += 1;
                let n = next();
                fdb.learn(station(n), place(n + round), Instant::ZERO)
            });
        });
        let mut new = size;
        group.bench_function(BenchmarkId::new("evict", size), |b| {
            b.iter(|| {
                new += 1;
                fdb.learn(station(new), place(new), Instant::ZERO)
            });
        });
    }
    group.finish();
}

/// A whole table at once, so that there is something to learn or to expire; reported per entry.
fn whole(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    for size in SIZES {
        group.throughput(Throughput::Elements(size));
        group.bench_function(BenchmarkId::new("learn", size), |b| {
            b.iter_batched(|| (), |()| table(size), BatchSize::LargeInput);
        });
        group.bench_function(BenchmarkId::new("expire", size), |b| {
            let late = Instant::ZERO + AGE + AGE;
            b.iter_batched_ref(|| table(size), |fdb| fdb.expire(late, size as usize), BatchSize::LargeInput);
        });
        let entries: Vec<(Station, Place)> = (0..size).map(|n| (station(n), vtep(n))).collect();
        group.bench_function(BenchmarkId::new("set-static", size), |b| {
            let fresh = || Fdb::new(Limits { size: size as usize, age: AGE });
            b.iter_batched_ref(fresh, |fdb| fdb.set_static(&entries), BatchSize::LargeInput);
        });
        let fdb = table(size);
        group.bench_function(BenchmarkId::new("show", size), |b| {
            b.iter(|| fdb.entries(Instant::ZERO).count());
        });
    }
    group.finish();
}

criterion_group!(benches, fdb, whole);
criterion_main!(benches);
