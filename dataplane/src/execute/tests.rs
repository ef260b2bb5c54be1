//! Actions between memory ports: what comes out, and that every frame is accounted for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ::encap::checksum::Sum;
use ::encap::decap::decap;
use ::encap::field::{EtherType, IpProto};
use ::encap::offload::{Csum, Gso};
use ::encap::offsets::walk;
use ::encap::template::{Outer, Template};
use ::encap::tunnel::TunnelKind;
use arrayvec::ArrayVec;
use etherparse::PacketBuilder;
use flowtable::action::{Complaint, Encap};
use flowtable::extract::extract;
use flowtable::field::TunnelFlags;
use flowtable::key::{Hop, TunnelFields};
use flowtable::time::Instant;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::budget::Budget;
use crate::frame::{FrameCache, FramePool, Memory, PoolConfig};
use crate::port::memory::{Delivered, Peer, pair};
use crate::port::{Counters, Port, PortError, Readiness, Sent};
use crate::stats::{PortStats, Registry};
use crate::wires::{Queue, Route};

/// Where frames come in.
const IN: PortId = PortId(0);
/// Two ports of the underlay.
const OUT: [PortId; 2] = [PortId(1), PortId(2)];
const TUNNEL: PortId = PortId(3);
const LISTENER: PortId = PortId(4);

const SRC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DST: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// One poller's wires with a cable on each of three ports.
struct Lab {
    wires: Wires,
    cables: Vec<Peer>,
    registry: Registry,
    pool: Arc<FramePool>,
}

impl Lab {
    fn new() -> Lab {
        let pool = FramePool::new(PoolConfig { small: 2048, big: 16, memory: Memory::Plain }).unwrap();
        let registry = Registry::new(1);
        let (frames, counters) = (FrameCache::new(Arc::clone(&pool)), Arc::clone(registry.poller(0)));
        let mut wires = Wires::new(frames, vec![None], counters, registry.nowhere());
        let mut cables = Vec::new();
        for port in [IN, OUT[0], OUT[1], TUNNEL, LISTENER] {
            wires.add_port(port, u16::MAX, registry.port_counters(port));
            if port != TUNNEL && port != LISTENER {
                let (io, cable) = pair(&pool, 1100);
                let budget = Budget::new(0, Instant::ZERO);
                let place = wires.add_queue(Queue::new(port, 0, Box::new(io), budget));
                wires.set_route(port, Route::Own(place));
                cables.push(cable);
            }
        }
        Lab { wires, cables, registry, pool }
    }

    /// Lets frames come in by port `IN` and executes `actions` on them.
    fn run(&mut self, actions: &[Action], frames: &[(&[u8], Offload)]) {
        frames.iter().for_each(|(bytes, offload)| assert!(self.cables[0].inject_offload(bytes, *offload)));
        let mut group = Batch::new();
        self.wires.receive(0, &mut group).unwrap();
        self.execute(actions, &mut group);
    }

    fn execute(&mut self, actions: &[Action], group: &mut Batch) {
        let keys: Vec<_> = group.iter().map(|frame| extract(frame.bytes(), IN).unwrap()).collect();
        execute(actions, Origin { port: IN, keys: &keys }, group, &mut self.wires);
        assert!(group.is_empty());
        self.wires.flush();
    }

    fn out(&mut self, port: PortId) -> Vec<Delivered> {
        self.cables[port.index()].drain()
    }

    /// What lost its outer headers, and what they said.
    fn inner(&mut self) -> Vec<(Delivered, TunnelFields)> {
        let frames: Vec<_> = self.wires.inner.frames.drain(..).collect();
        let outers: Vec<_> = self.wires.inner.outers.drain(..).collect();
        let copied = |(frame, (port, outer)): (Frame, (PortId, TunnelFields))| {
            assert_eq!(port, LISTENER);
            let delivered = Delivered { bytes: frame.bytes().to_vec(), offload: frame.offload };
            self.wires.drop_frame(LISTENER, frame, DropReason::NoDestination);
            (delivered, outer)
        };
        frames.into_iter().zip(outers).map(copied).collect()
    }

    fn stats(&self, port: PortId) -> PortStats {
        self.registry.port(port)
    }

    fn created(&self) -> u64 {
        self.registry.poller(0).created.get()
    }

    /// Every frame is accounted for, and every chunk comes back. What cables still hold is theirs.
    #[track_caller]
    fn audit(mut self) {
        self.cables.iter_mut().for_each(|cable| drop(cable.drain()));
        let ledger = self.registry.ledger(0);
        assert!(ledger.balances(), "{ledger:?}");
        drop((self.wires, self.cables));
        assert_eq!(self.pool.available(), (2048, 16));
    }
}

fn outer(kind: TunnelKind) -> Outer {
    Outer {
        kind,
        id: Some(7),
        eth_src: MacAddr([2, 0, 0, 0, 1, 1]),
        eth_dst: MacAddr([2, 0, 0, 0, 1, 2]),
        tags: ArrayVec::new(),
        src: Ipv4Addr::new(192, 0, 2, 1).into(),
        dst: Ipv4Addr::new(192, 0, 2, 2).into(),
        tos: 0,
        ttl: 64,
        df: true,
        dst_port: kind.default_port().unwrap_or(0),
        csum: false,
    }
}

fn way(outer: &Outer, output: PortId) -> Encap {
    let template = Template::new(outer).unwrap();
    Encap { tunnel: TUNNEL, template, output, frame_max: 1450, complaint: None }
}

fn tunnel(way: Encap) -> Action {
    Action::Encap(Box::new(way))
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(SRC, DST).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1000, 2000);
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder =
        PacketBuilder::ethernet2(SRC, DST).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1000, 80, 5, 9000);
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// The same with its transport checksum left to a card.
fn left(mut frame: Vec<u8>) -> (Vec<u8>, Offload) {
    let offsets = walk(&frame).unwrap();
    let ip = offsets.ip.unwrap();
    let (l4, proto) = (ip.l4().unwrap(), ip.proto);
    let field = if proto == IpProto::TCP { 16 } else { 6 };
    let sum = Sum::pseudo_header(offsets.addresses(&frame).unwrap(), proto, ip.end() - l4);
    frame[l4 + field..][..2].copy_from_slice(&sum.partial());
    let csum = Csum::Partial { start: l4 as u16, offset: field as u16 };
    (frame, Offload { csum, gso: Gso::None })
}

/// Is the transport checksum right?
fn is_whole(frame: &[u8]) -> bool {
    let offsets = walk(frame).unwrap();
    let ip = offsets.ip.unwrap();
    let l4 = ip.l4().unwrap();
    let pseudo = Sum::pseudo_header(offsets.addresses(frame).unwrap(), ip.proto, ip.end() - l4);
    (pseudo + Sum::of(&frame[l4..ip.end()])).verifies()
}

#[track_caller]
fn inside(frame: &[u8], kind: TunnelKind) -> Vec<u8> {
    let outer = decap(frame, kind, Offload::NONE).unwrap();
    frame[outer.inner_at..outer.inner_end].to_vec()
}

fn outers() -> impl Iterator<Item = Outer> {
    let v6 = |n| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n));
    let both = move |outer: Outer| [outer.clone(), Outer { src: v6(1), dst: v6(2), ..outer }];
    let sums = |outer: Outer| [false, true].map(|csum| Outer { csum, ..outer.clone() });
    TunnelKind::ALL.into_iter().map(outer).flat_map(both).flat_map(sums)
}

/// As it stands in a key.
fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[test]
fn in_and_out_of_every_tunnel() {
    for outer in outers() {
        let mut lab = Lab::new();
        let frames = [udp(b""), udp(b"some"), tcp(&[7; 1000])];
        let given: Vec<_> = frames.iter().map(|bytes| (&bytes[..], Offload::NONE)).collect();
        lab.run(&[tunnel(way(&outer, OUT[0]))], &given);
        let sent = lab.out(OUT[0]);
        assert_eq!(sent.len(), 3);
        for (sent, frame) in sent.iter().zip(&frames) {
            // Ethernet pads what is shorter.
            let padded = [&sent.bytes[..], &[0; 9]].concat();
            lab.run(&[Action::Decap { kind: outer.kind, listener: LISTENER }], &[(&padded, Offload::NONE)]);
            let inner = lab.inner();
            let flag = |set, flag| if set { flag } else { TunnelFlags::NONE };
            let flags = flag(outer.src.is_ipv4(), TunnelFlags::DF) | flag(outer.csum, TunnelFlags::CSUM);
            let said = TunnelFields::new(
                Some(7),
                [outer.src, outer.dst].map(mapped),
                Hop { tos: 0, ttl: 64, flags },
            );
            assert_eq!(inner, [(Delivered { bytes: frame.clone(), offload: Offload::NONE }, said)]);
        }
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        let stats = lab.stats(TUNNEL);
        assert_eq!((stats.encapped_frames, stats.encapped_bytes), (3, bytes));
        assert_eq!((stats.of_tunnel().tx_frames, stats.of_tunnel().tx_bytes), (3, bytes));
        lab.audit();
    }
}

#[test]
fn several_ways_out_get_a_copy_each() {
    let mut lab = Lab::new();
    let ways = [TunnelKind::Vxlan, TunnelKind::Gre].map(outer);
    let actions = [tunnel(way(&ways[0], OUT[0])), Action::Output(OUT[1]), tunnel(way(&ways[1], OUT[0]))];
    let frames = [udp(b"one"), udp(b"two")];
    lab.run(&actions, &[(&frames[0], Offload::NONE), (&frames[1], Offload::NONE)]);
    let tunnelled: Vec<_> = lab.out(OUT[0]).into_iter().map(|sent| sent.bytes).collect();
    let kinds = [TunnelKind::Vxlan, TunnelKind::Vxlan, TunnelKind::Gre, TunnelKind::Gre];
    let got: Vec<_> = tunnelled.iter().zip(kinds).map(|(bytes, kind)| inside(bytes, kind)).collect();
    assert_eq!(got, [&frames[0], &frames[1], &frames[0], &frames[1]].map(Clone::clone));
    assert_eq!(lab.out(OUT[1]).len(), 2);
    assert_eq!(lab.created(), 4);
    lab.audit();
}

#[test]
fn a_frame_that_cannot_be_changed_leaves_the_others_in_their_places() {
    let tagged = |n: u8| [&udp(&[n])[..12], &[0x81, 0, 0, 7], &udp(&[n])[12..]].concat();
    for change in [Action::PopVlan, Action::SetVid(VlanId::new(9).unwrap())] {
        let mut lab = Lab::new();
        let frames = [tagged(0), udp(b"no tag"), tagged(1), tagged(2), udp(b"nor here")];
        let frames: Vec<_> = frames.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
        lab.run(&[change, Action::Output(OUT[0])], &frames);
        assert!(lab.out(OUT[0]).iter().map(|sent| sent.bytes.last().copied()).eq([0, 1, 2].map(Some)));
        assert_eq!(lab.stats(IN).dropped(DropReason::Unsupported), 2);
        lab.audit();
    }
}

#[test]
fn out_and_in_get_a_copy_each() {
    let mut lab = Lab::new();
    let outer = outer(TunnelKind::Geneve);
    lab.run(&[tunnel(way(&outer, OUT[0]))], &[(&udp(b"x"), Offload::NONE)]);
    let sent = lab.out(OUT[0]).remove(0).bytes;
    let actions = [Action::Output(OUT[1]), Action::Decap { kind: outer.kind, listener: LISTENER }];
    lab.run(&actions, &[(&sent, Offload::NONE)]);
    assert_eq!(lab.out(OUT[1])[0].bytes, sent);
    assert_eq!(lab.inner()[0].0.bytes, udp(b"x"));
    lab.audit();
}

#[test]
fn the_source_port_is_the_flows() {
    let mut lab = Lab::new();
    let outer = outer(TunnelKind::Vxlan);
    let ports = |lab: &mut Lab| -> Vec<[u8; 2]> {
        lab.out(OUT[0]).iter().map(|sent| [sent.bytes[34], sent.bytes[35]]).collect()
    };
    let flow = |n: u8| [&udp(b"x")[..34], &[n, n], &udp(b"x")[36..]].concat();
    let frames: Vec<_> = (0..16).map(flow).collect();
    let given: Vec<_> = frames.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
    lab.run(&[tunnel(way(&outer, OUT[0]))], &given);
    let first = ports(&mut lab);
    lab.run(&[Action::Output(OUT[1]), tunnel(way(&outer, OUT[0]))], &given);
    assert_eq!(ports(&mut lab), first);
    let mut distinct = first;
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 12, "{distinct:?}");
    lab.audit();
}

#[test]
fn a_flow_keeps_its_source_port_when_another_frame_is_dropped() {
    let mut lab = Lab::new();
    let outer = outer(TunnelKind::Vxlan);
    let tag = VlanTag { tpid: EtherType::VLAN, tci: 5 };
    let actions = [Action::PushVlan(tag), tunnel(way(&outer, OUT[0]))];
    let mut last = None;
    for with_cramped in [true, false] {
        (0..2).for_each(|_| assert!(lab.cables[0].inject(&udp(b"x"))));
        let mut group = Batch::new();
        lab.wires.receive(0, &mut group);
        if with_cramped {
            // The tag finds no room in front of the first.
            let headroom = group[0].headroom();
            group[0].push_front(headroom).unwrap().fill(2);
        }
        lab.execute(&actions, &mut group);
        let port = lab.out(OUT[0]).pop().unwrap().bytes[34..36].to_vec();
        assert!(last.replace(port.clone()).is_none_or(|last| last == port));
    }
    assert_eq!(lab.stats(IN).dropped(DropReason::Unsupported), 1);
    lab.audit();
}

#[test]
fn a_partial_checksum_rides_along_or_is_completed() {
    for outer in outers() {
        for frame in [tcp(b"some payload"), udp(b"odd")] {
            let mut lab = Lab::new();
            let (bytes, offload) = left(frame.clone());
            // The cable takes no offload: what rode along is completed on the way out.
            lab.run(&[tunnel(way(&outer, OUT[0]))], &[(&bytes, offload)]);
            let sent = lab.out(OUT[0]).remove(0);
            assert_eq!(sent.offload, Offload::NONE);
            let inner = inside(&sent.bytes, outer.kind);
            assert!(is_whole(&inner), "{outer:?}");
            assert_eq!(inner, frame);
            lab.audit();
        }
    }
}

#[test]
fn an_offload_that_lies_is_no_panic() {
    for csum in [false, true] {
        let mut lab = Lab::new();
        let outer = Outer { csum, ..outer(TunnelKind::Vxlan) };
        let lie = Offload { csum: Csum::Partial { start: 900, offset: 6 }, gso: Gso::None };
        let far = Offload { csum: Csum::Partial { start: u16::MAX, offset: 6 }, gso: Gso::None };
        let big = Offload { gso: Gso::Tcp4 { mss: 100 }, ..lie };
        let frame = udp(b"x");
        lab.run(&[tunnel(way(&outer, OUT[0]))], &[(&frame, lie), (&frame, far), (&frame, big)]);
        assert!(lab.out(OUT[0]).is_empty());
        let stats = lab.registry.total();
        assert_eq!(stats.dropped(DropReason::Unsupported), 3);
        lab.audit();
    }
}

#[test]
fn big_tcp_is_cut_to_what_the_tunnel_carries() {
    for outer in outers() {
        for (mss, frame_max, count) in
            [(1448, 1450, 8), (1000, 1450, 10), (500, 1450, 20), (u16::MAX, 1450, 8)]
        {
            let mut lab = Lab::new();
            let payload: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
            let (bytes, offload) = left(tcp(&payload));
            let offload = Offload { gso: Gso::Tcp4 { mss }, ..offload };
            let way = Encap { frame_max, ..way(&outer, OUT[0]) };
            lab.run(
                &[Action::Output(OUT[1]), tunnel(way)],
                &[(&bytes, offload), (&udp(b"x"), Offload::NONE)],
            );
            let sent = lab.out(OUT[0]);
            let mut got = Vec::new();
            for segment in &sent[..count] {
                let inner = inside(&segment.bytes, outer.kind);
                assert!(is_whole(&inner) && inner.len() <= usize::from(frame_max));
                got.extend_from_slice(&inner[54..]);
                assert_eq!(segment.bytes[34..36], sent[0].bytes[34..36], "one flow, one source port");
            }
            assert!(got == payload);
            assert_eq!(inside(&sent[count].bytes, outer.kind), udp(b"x"));
            assert_eq!(sent.len(), count + 1);
            assert_eq!(lab.stats(TUNNEL).encapped_frames, sent.len() as u64);
            lab.audit();
        }
    }
}

#[test]
fn the_sender_of_too_long_a_frame_is_told() {
    let tag = VlanTag { tpid: EtherType::VLAN, tci: 0x6005 };
    let complaint = |pop, push| Some(Complaint { port: IN, pop, push });
    let long = tcp(&[7; 1500]);
    for (actions, complaint, l2) in [
        (vec![], complaint(0, None), 14),
        (vec![Action::PushVlan(tag)], complaint(1, None), 14),
        (vec![], complaint(0, Some(tag)), 18),
    ] {
        let mut lab = Lab::new();
        let pushed = 4 * actions.len() as u16;
        let way = Encap { complaint, ..way(&outer(TunnelKind::Vxlan), OUT[0]) };
        let actions = [&actions[..], &[tunnel(way)]].concat();
        lab.run(&actions, &[(&long, Offload::NONE), (&udp(b"short"), Offload::NONE)]);
        assert_eq!(lab.out(OUT[0]).len(), 1);
        let told = lab.out(IN).remove(0).bytes;
        assert_eq!((&told[..6], &told[6..12]), (&SRC[..], &DST[..]));
        // Destination unreachable, fragmentation needed: the MTU is that of the packet, without any tag.
        assert_eq!(told[l2 + 20..l2 + 22], [3, 4]);
        assert_eq!(told[l2 + 26..l2 + 28], (1450 - 14 - pushed).to_be_bytes());
        assert_eq!(told[l2 + 28..][..20], long[14..34]);
        assert_eq!(walk(&told).unwrap().tags, if l2 == 18 { 1 } else { 0 });
        assert_eq!(lab.stats(IN).dropped(DropReason::OverMtu), 1);
        lab.audit();
    }
}

#[test]
fn senders_are_told_so_often() {
    let mut lab = Lab::new();
    let complaint = Some(Complaint { port: IN, pop: 0, push: None });
    let way = Encap { complaint, ..way(&outer(TunnelKind::Vxlan), OUT[0]) };
    let long = tcp(&[7; 1500]);
    let no_ip = [&long[..12], &[0x88, 0xb5], &long[14..]].concat();
    let many = |lab: &mut Lab, frame: &[u8]| {
        (0..32).for_each(|_| lab.run(&[tunnel(way.clone())], &[(frame, Offload::NONE); 32]));
        lab.out(IN).len()
    };
    // Nobody is told in vain.
    assert_eq!(many(&mut lab, &no_ip), 0);
    assert_eq!(many(&mut lab, &long), 500);
    lab.wires.refill_complaints();
    assert_eq!(many(&mut lab, &long), 500);
    assert_eq!(lab.stats(IN).dropped(DropReason::OverMtu), 3 * 1024);
    lab.audit();
}

#[test]
fn a_big_datagram_is_cut_or_refused() {
    let mut lab = Lab::new();
    let (bytes, offload) = left(udp(&[7; 4000]));
    let complaint = Some(Complaint { port: IN, pop: 0, push: None });
    let way = Encap { complaint, ..way(&outer(TunnelKind::Vxlan), OUT[0]) };
    let sized = |size| Offload { gso: Gso::Udp { size }, ..offload };
    lab.run(&[tunnel(way)], &[(&bytes, sized(1000)), (&bytes, sized(1420))]);
    assert_eq!(lab.out(OUT[0]).len(), 4);
    assert_eq!(lab.stats(IN).dropped(DropReason::OverMtu), 1);
    lab.audit();
}

#[test]
fn a_frame_without_headroom_moves() {
    let mut lab = Lab::new();
    let outer = outer(TunnelKind::Vxlan);
    assert!(lab.cables[0].inject(&udp(b"no room")));
    let mut group = Batch::new();
    lab.wires.receive(0, &mut group);
    let headroom = group[0].headroom();
    group[0].push_front(headroom - 10).unwrap();
    let len = group[0].len();
    let bytes = [&SRC[..], &DST, &[0x88, 0xb5], &vec![3; len - 14]].concat();
    group[0].bytes_mut().copy_from_slice(&bytes);
    lab.execute(&[tunnel(way(&outer, OUT[0]))], &mut group);
    assert_eq!(inside(&lab.out(OUT[0])[0].bytes, outer.kind), bytes);
    assert_eq!(lab.created(), 0);
    lab.audit();
}

#[test]
fn questions_become_answers() {
    let mut lab = Lab::new();
    let mut request = [&[0xff; 6][..], &SRC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    request.extend([&SRC[..], &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]].concat());
    let padded = [&request[..], &[0; 18]].concat();
    let actions = [Action::Answer(MacAddr(DST)), Action::Output(IN)];
    lab.run(&actions, &[(&padded, Offload::NONE), (&udp(b"no question"), Offload::NONE)]);
    let mut answer = [&SRC[..], &DST, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
    answer.extend([&DST[..], &[10, 0, 0, 2], &SRC, &[10, 0, 0, 1]].concat());
    assert_eq!(lab.out(IN), [Delivered { bytes: answer, offload: Offload::NONE }]);
    assert_eq!(lab.stats(IN).dropped(DropReason::Unsupported), 1);
    lab.audit();
}

#[test]
fn congestion_is_marked() {
    let mut lab = Lab::new();
    let (bytes, offload) = left(tcp(b"x"));
    lab.run(&[Action::SetEcn(3), Action::Output(OUT[0])], &[(&bytes, offload)]);
    let got = lab.out(OUT[0]).remove(0).bytes;
    assert_eq!(got[15], 3);
    assert!(Sum::of(&got[14..34]).verifies() && is_whole(&got));
    lab.audit();
}

/// The headers of a tunnelled frame, then `change`s of single octets.
fn changed(kind: TunnelKind, changes: &[(usize, u8)]) -> Vec<u8> {
    let template = Template::new(&outer(kind)).unwrap();
    let mut frame = [&vec![0; template.len()][..], &udp(b"inside")].concat();
    template.write(&mut frame, 0).unwrap();
    changes.iter().for_each(|(at, octet)| frame[*at] = *octet);
    frame
}

#[test]
fn what_is_no_tunnelled_frame_is_a_counted_drop() {
    let (vxlan, gre, geneve) = (TunnelKind::Vxlan, TunnelKind::Gre, TunnelKind::Geneve);
    for (kind, changes, reason) in [
        (vxlan, &[(42, 0)][..], DropReason::TunnelProtocol),
        (vxlan, &[(42, 0x0c)], DropReason::TunnelProtocol),
        (vxlan, &[(38, 9)], DropReason::TunnelMalformed),
        (vxlan, &[(24, 0), (25, 0)], DropReason::TunnelChecksum),
        (vxlan, &[(40, 1)], DropReason::TunnelChecksum),
        (gre, &[(35, 1)], DropReason::TunnelProtocol),
        (gre, &[(36, 8), (37, 0)], DropReason::TunnelProtocol),
        (gre, &[(36, 0x88), (37, 0xbe)], DropReason::TunnelProtocol),
        (geneve, &[(42, 0x40)], DropReason::TunnelProtocol),
        (geneve, &[(42, 63)], DropReason::TunnelMalformed),
        // One option, made of what was the inner Ethernet header: critical.
        (geneve, &[(42, 1), (52, 0x80), (53, 0)], DropReason::TunnelOption),
    ] {
        let mut lab = Lab::new();
        let frame = changed(kind, changes);
        lab.run(&[Action::Decap { kind, listener: LISTENER }], &[(&frame, Offload::NONE)]);
        let dropped = lab.stats(IN).drops;
        assert_eq!(dropped[reason as usize], 1, "{kind} {changes:?}: {dropped:?}");
        assert!(lab.inner().is_empty());
        lab.audit();
    }
}

#[test]
fn a_checksum_left_to_a_card_is_the_outer_or_the_inner() {
    let outer = outer(TunnelKind::Vxlan);
    let template = Template::new(&outer).unwrap();
    let (inner, offload) = left(tcp(b"x"));
    let mut frame = [&vec![0; template.len()][..], &inner].concat();
    template.write(&mut frame, 0).unwrap();
    let outer_csum = Offload { csum: Csum::Partial { start: 34, offset: 6 }, gso: Gso::None };
    let inner_csum = offload.shifted(template.len() as isize).unwrap();
    let big = Offload { gso: Gso::Tcp4 { mss: 500 }, ..inner_csum };
    let mut lab = Lab::new();
    let actions = [Action::Decap { kind: outer.kind, listener: LISTENER }];
    lab.run(&actions, &[(&frame, outer_csum), (&frame, inner_csum), (&frame, big), (&frame, Offload::NONE)]);
    let got: Vec<_> = lab.inner().into_iter().map(|(inner, _)| inner.offload).collect();
    let cut = Offload { gso: big.gso, ..offload };
    assert_eq!(got, [Offload::NONE, offload, cut, Offload::NONE]);
    // From where nobody tells, we look ourselves.
    let mut silent = lab.wires.frames.from_bytes(&frame).unwrap();
    silent.unsaid = true;
    lab.wires.counters(IN).rx_frames.add(1);
    lab.execute(&actions, &mut Batch::from_iter([silent]));
    assert_eq!(lab.inner()[0].0.offload, offload);
    lab.audit();
}

#[test]
fn big_tcp_that_nobody_tells_of_is_cut() {
    let outer = outer(TunnelKind::Gre);
    let template = Template::new(&outer).unwrap();
    for (payload, segments) in [(1430 - 40, 1), (1430 - 39, 2), (20_000, 15)] {
        let (inner, _) = left(tcp(&vec![7; payload]));
        let mut frame = [&vec![0; template.len()][..], &inner].concat();
        template.write(&mut frame, 0).unwrap();
        let mut lab = Lab::new();
        let mut silent = lab.wires.frames.from_bytes(&frame).unwrap();
        silent.unsaid = true;
        lab.wires.counters(IN).rx_frames.add(1);
        let actions = [Action::Decap { kind: outer.kind, listener: LISTENER }];
        lab.execute(&actions, &mut Batch::from_iter([silent]));
        let mut group: Batch = lab.wires.inner.frames.drain(..).collect();
        lab.wires.inner.outers.clear();
        lab.execute(&[Action::Output(OUT[0])], &mut group);
        let sent = lab.out(OUT[0]);
        assert_eq!(sent.len(), segments);
        assert!(sent.iter().all(|segment| is_whole(&segment.bytes)));
        lab.audit();
    }
}

proptest! {
    #[test]
    fn hostile_frames_are_stripped_or_dropped(
        (kind, changes) in (0usize..3, vec((0usize..90, any::<u8>()), 0..4)),
        cut in prop_oneof![Just(0), 0usize..100],
        (start, offset) in (0u16..120, 0u16..20),
        (partial, unsaid, gso) in any::<(bool, bool, bool)>(),
    ) {
        let kind = TunnelKind::ALL[kind];
        let mut frame = changed(kind, &[]);
        let len = frame.len();
        changes.iter().for_each(|(at, octet)| frame[at % len] = *octet);
        frame.truncate((frame.len() - cut.min(frame.len())).max(14));
        let csum = if partial { Csum::Partial { start, offset } } else { Csum::None };
        let gso = if gso && partial { Gso::Tcp4 { mss: start } } else { Gso::None };
        let mut lab = Lab::new();
        let offload = Offload { csum, gso };
        prop_assert!(lab.cables[0].inject_offload(&frame, offload));
        let mut group = Batch::new();
        lab.wires.receive(0, &mut group);
        group[0].unsaid = unsaid;
        lab.execute(&[Action::Decap { kind, listener: LISTENER }], &mut group);
        // Whatever is left of it goes into the next tunnel.
        let mut group: Batch = lab.wires.inner.frames.drain(..).collect();
        lab.wires.inner.outers.clear();
        lab.execute(&[tunnel(way(&outer(kind), OUT[0]))], &mut group);
        lab.audit();
    }
}

/// A device that has lost so many frames.
struct Losing(u64);

impl Port for Losing {
    fn rx(&mut self, _: &mut FrameCache, _: &mut Batch) -> Result<(), PortError> {
        Ok(())
    }

    fn tx(&mut self, _: &mut FrameCache, _: &mut Batch) -> Result<Sent, PortError> {
        Ok(Sent::default())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Unknown
    }

    fn counters(&mut self) -> Counters {
        Counters { rx_missed: self.0, rx_errors: 2 * self.0 }
    }
}

#[test]
fn what_several_queues_of_a_port_lost_is_added_up_and_stays() {
    let mut lab = Lab::new();
    let losing = |lost| Queue::new(IN, 1, Box::new(Losing(lost)), Budget::new(0, Instant::ZERO));
    let places = [3, 4].map(|lost| lab.wires.add_queue(losing(lost)));
    (0..2).for_each(|_| lab.wires.collect_losses());
    assert_eq!((lab.stats(IN).rx_missed, lab.stats(IN).rx_errors), (7, 14));
    // Queues that come in their place begin to count anew.
    places.iter().for_each(|place| assert!(lab.wires.take_queue(*place).is_some()));
    lab.wires.add_queue(losing(1));
    lab.wires.collect_losses();
    assert_eq!((lab.stats(IN).rx_missed, lab.stats(IN).rx_errors), (8, 16));
}
