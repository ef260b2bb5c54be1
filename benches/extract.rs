//! How long does it take to make a key of a frame, to hash it, and to add what a tunnel said?

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flowtable::extract::extract;
use flowtable::field::TunnelFlags;
use flowtable::id::PortId;
use flowtable::key::{Hop, TunnelFields};
use flowtable::keys::Keys;
use flowtable::places::Places;

const UDP: u8 = 17;
const TCP: u8 = 6;

/// Addresses, these tags, and a payload of this type.
fn ethernet(tags: &[(u16, u16)], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for (tpid, tci) in tags {
        frame.extend([tpid.to_be_bytes(), tci.to_be_bytes()].concat());
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet of `len` bytes to `port`.
fn ipv4(proto: u8, port: u16, len: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((len as u16).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([0x0f, 0xa0]);
    packet.extend(port.to_be_bytes());
    packet.resize(len, 0x50);
    packet
}

/// An IPv6 packet of `len` bytes with UDP in it.
fn ipv6(len: usize) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((len as u16 - 40).to_be_bytes());
    packet.extend([UDP, 64]);
    packet.extend([0xfe; 32]);
    packet.resize(len, 0x50);
    packet
}

fn arp(len: usize) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.resize(28, 2);
    packet.resize(len, 0);
    packet
}

fn cases(size: usize) -> Vec<(&'static str, Vec<u8>)> {
    let l3 = size.max(62) - 14; // IPv6 and UDP take 62 bytes
    vec![
        ("udp4", ethernet(&[], 0x0800, &ipv4(UDP, 53, size - 14))),
        ("tcp4", ethernet(&[], 0x0800, &ipv4(TCP, 80, size - 14))),
        ("udp6", ethernet(&[], 0x86dd, &ipv6(l3))),
        ("arp", ethernet(&[], 0x0806, &arp(size - 14))),
        ("vlan", ethernet(&[(0x8100, 10)], 0x0800, &ipv4(UDP, 53, size - 18))),
        ("qinq", ethernet(&[(0x88a8, 10), (0x8100, 20)], 0x0800, &ipv4(UDP, 53, size - 22))),
        ("vxlan", ethernet(&[], 0x0800, &ipv4(UDP, 4789, size - 14))),
    ]
}

fn keys(c: &mut Criterion) {
    let mut group = c.benchmark_group("extract");
    group.throughput(Throughput::Elements(1));
    for size in [60, 1514] {
        for (case, frame) in cases(size) {
            let key = extract(&frame, PortId(1)).expect("a whole Ethernet header");
            assert_eq!(key.ip_proto().0 != 0, case != "arp", "{case} is not what its name says");
            group.bench_with_input(BenchmarkId::new(case, size), &frame, |b, frame| {
                b.iter(|| extract(black_box(frame), PortId(1)));
            });
        }
    }
    group.finish();
}

/// The keys of a whole batch, into room that is kept, as the switch extracts them.
fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(Places::MAX as u64));
    for (case, frame) in cases(60) {
        let frames: Vec<_> = (0..Places::MAX).map(|_| frame.clone()).collect();
        let mut keys = Box::new(Keys::default());
        group.bench_function(case, |b| {
            b.iter(|| keys.extract(black_box(&frames).iter().map(|frame| &frame[..]), PortId(1)));
        });
        assert_eq!(keys[7], extract(&frame, PortId(1)).expect("a whole Ethernet header"));
    }
    group.finish();
}

/// What decapsulation adds to a key.
fn tunnel(c: &mut Criterion) {
    let frame = ethernet(&[], 0x0800, &ipv4(TCP, 80, 46));
    let mut key = extract(&frame, PortId(1)).expect("a whole Ethernet header");
    let ends = [1, 2].map(|n| Ipv4Addr::new(192, 0, 2, n).to_ipv6_mapped());
    let outer = TunnelFields::new(Some(5001), ends, Hop { tos: 0, ttl: 64, flags: TunnelFlags::NONE });
    let mut group = c.benchmark_group("key");
    group.throughput(Throughput::Elements(1));
    group.bench_function("set-tunnel", |b| b.iter(|| black_box(&mut key).set_tunnel(black_box(&outer))));
    group.finish();
}

fn hash(c: &mut Criterion) {
    let frame = ethernet(&[], 0x0800, &ipv4(TCP, 80, 46));
    let key = extract(&frame, PortId(1)).expect("a whole Ethernet header");
    let mut group = c.benchmark_group("hash");
    group.throughput(Throughput::Elements(1));
    group.bench_function("key/160", |b| b.iter(|| black_box(&key).hash()));
    group.bench_function("under-l2-mask/24", |b| {
        let words = [(0, u64::MAX), (1, u64::MAX), (2, u64::MAX)];
        b.iter(|| black_box(&key).hash_under(black_box(words)));
    });
    for (case, frame) in cases(60) {
        let key = extract(&frame, PortId(1)).expect("a whole Ethernet header");
        group.bench_function(BenchmarkId::new("flow", case), |b| b.iter(|| black_box(&key).flow_hash()));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50);
    targets = keys, batches, tunnel, hash
}
criterion_main!(benches);
