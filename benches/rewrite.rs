//! What does an edit of a frame cost: VLAN tags, checksums, cutting?

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::checksum::{Sum, complete_partial, is_partial};
use encap::field::{EtherType, Pcp, VlanId, VlanTag};
use encap::offload::{Csum, Gso, Offload};
use encap::offsets::walk;
use encap::{gso, rewrite};

/// TCP over IPv4, `len` bytes with Ethernet header, whose checksum is left to a card.
fn tcp_frame(len: usize) -> (Vec<u8>, Csum) {
    let mut frame: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    let offsets = walk(&frame).expect("a whole header");
    let ip = offsets.ip.expect("an IPv4 header");
    let addresses = offsets.addresses(&frame).expect("an IPv4 header");
    let partial = Sum::pseudo_header(addresses, ip.proto, len - 34).partial();
    frame[50..52].copy_from_slice(&partial);
    (frame, Csum::Partial { start: 34, offset: 16 })
}

fn vlan(c: &mut Criterion) {
    let vid = VlanId::new(100).expect("in range");
    let tag = VlanTag::new(EtherType::VLAN, vid, Pcp::default());
    let mut group = c.benchmark_group("vlan");
    group.throughput(Throughput::Elements(1));
    for len in [64, 1500] {
        let (mut frame, _) = tcp_frame(len);
        rewrite::push_vlan(&mut frame, tag).expect("long enough");
        group.bench_function(BenchmarkId::new("push", len), |b| {
            b.iter(|| rewrite::push_vlan(black_box(&mut frame), black_box(tag)));
        });
        group.bench_function(BenchmarkId::new("set-vid", len), |b| {
            b.iter(|| rewrite::set_vid(black_box(&mut frame), black_box(vid)));
        });
        // Popping leaves the tag where it is, so the same frame can be popped again.
        group.bench_function(BenchmarkId::new("pop", len), |b| {
            b.iter(|| rewrite::pop_vlan(black_box(&mut frame)));
        });
    }
    group.finish();
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    group.throughput(Throughput::Elements(1));
    for len in [64, 1500, 65535] {
        let (frame, _) = tcp_frame(len);
        group.bench_function(BenchmarkId::new("sum", len), |b| b.iter(|| Sum::of(black_box(&frame))));
    }
    for len in [64, 1500] {
        let (mut frame, csum) = tcp_frame(len);
        let offsets = walk(&frame).expect("a whole header");
        group.bench_function(BenchmarkId::new("is-partial", len), |b| {
            b.iter(|| is_partial(black_box(&frame), black_box(&offsets)));
        });
        group.bench_function(BenchmarkId::new("complete-partial", len), |b| {
            b.iter(|| complete_partial(black_box(&mut frame), black_box(csum)));
        });
    }
    group.finish();
}

fn cut(c: &mut Criterion) {
    let mut group = c.benchmark_group("gso");
    let (frame, csum) = tcp_frame(65535);
    for mss in [536, 1448, 8948] {
        let offload = Offload { csum, gso: Gso::Tcp4 { mss } };
        let count = gso::segments(&frame, offload).expect("it fits").count();
        let mut out = vec![0; 16384];
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new(format!("cut-mss-{mss}"), frame.len()), |b| {
            b.iter(|| {
                let segments = gso::segments(black_box(&frame), offload).expect("it fits");
                for index in 0..segments.count() {
                    segments.write(index, black_box(&mut out[..segments.frame_len(index)]));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, vlan, checksum, cut);
criterion_main!(benches);
