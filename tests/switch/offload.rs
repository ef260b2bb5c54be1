//! What a sender left to a card: frames with partial checksums and frames that stand for several, to ports that
//! take them and to ports that do not; and what is too long for a port.

use dataplane::port::Offloads;
use encap::field::EtherType;
use encap::offload::{Csum, Gso, Offload};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use flowtable::action::DropReason;

use crate::frames::{broadcast, mac, partial, tagged, tcp, udp, unicast, with_tag};
use crate::rack::{Rack, both_ways};

const ALL: Offloads = Offloads { csum: true, tso: true, uso: true };
const CSUM: Offloads = Offloads { csum: true, tso: false, uso: false };

/// `a` and `big` offload everything, `sum` checksums, `bare` and `t` nothing; all but the trunk in VLAN 10.
const CONFIG: &str = r#"
    [[bridge]]
    name = "br0"
    port = [
        { name = "a", tag = 10 },
        { name = "big", tag = 10 },
        { name = "sum", tag = 10 },
        { name = "bare", tag = 10 },
        { name = "t" },
    ]
"#;

fn plug(rack: &mut Rack) {
    [("a", ALL), ("big", ALL), ("sum", CSUM)].iter().for_each(|(port, takes)| offload(rack, port, *takes));
}

fn offload(rack: &mut Rack, port: &str, takes: Offloads) {
    rack.plug(port, |mut port| {
        port.set_offloads(takes);
        Box::new(port)
    });
}

/// The same work on a frame that has a tag more.
fn behind_tag(offload: Offload) -> Offload {
    offload.shifted(4).unwrap()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}

/// The payload of a segment whose lengths and checksums, by etherparse's reckoning, are right.
fn checked(frame: &[u8]) -> Vec<u8> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("no IPv4") };
    let header = ip.header();
    assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
    match packet.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            let sum = tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap();
            assert_eq!(tcp.checksum(), sum);
            tcp.payload().to_vec()
        }
        TransportSlice::Udp(udp) => {
            let header = header.to_header();
            assert_eq!(Ok(udp.checksum()), udp.to_header().calc_checksum_ipv4(&header, udp.payload()));
            udp.payload().to_vec()
        }
        other => panic!("{other:?}"),
    }
}

fn frames(
    rack: &mut Rack,
    from: &str,
    frame: &[u8],
    offload: Offload,
) -> impl Fn(&str) -> Vec<(Vec<u8>, Offload)> + use<> {
    assert!(rack.cable(from).inject_offload(frame, offload));
    rack.settle();
    let out = rack.drain();
    move |port| out.get(port).into_iter().flatten().map(|d| (d.bytes.clone(), d.offload)).collect()
}

#[test]
fn a_partial_checksum_is_completed_for_ports_that_cannot() {
    both_ways(CONFIG, |rack| {
        plug(rack);
        let segment = tcp((1, 40000), (2, 80), &payload(333));
        let datagram = udp((mac(1), 4000), (mac(2), 53), &payload(100));
        for (whole, offset) in [(segment, 16), (datagram, 6)] {
            let (frame, csum) = partial(whole.clone(), offset);
            assert_ne!(frame, whole);
            let work = Offload { csum, gso: Gso::None };
            let out = frames(rack, "a", &frame, work);
            assert_eq!(out("big"), [(frame.clone(), work)]);
            assert_eq!(out("sum"), [(frame, work)]);
            assert_eq!(out("bare"), [(whole.clone(), Offload::NONE)]);
            assert_eq!(out("t"), [(tagged(&whole, 10), Offload::NONE)]);
        }
    });
}

#[test]
fn offload_work_moves_along_with_tags() {
    both_ways(CONFIG, |rack| {
        plug(rack);
        offload(rack, "t", ALL);
        let (frame, csum) = partial(tcp((1, 40000), (2, 80), &payload(3000)), 16);
        let work = Offload { csum, gso: Gso::Tcp4 { mss: 1000 } };
        let out = frames(rack, "a", &frame, work);
        assert_eq!(out("t"), [(tagged(&frame, 10), behind_tag(work))]);
        let out = frames(rack, "t", &tagged(&frame, 10), behind_tag(work));
        assert_eq!(out("big"), [(frame, work)]);
    });
}

#[test]
fn a_big_frame_crosses_whole_or_is_cut() {
    let big = |udp_ports: bool, bytes: &[u8]| match udp_ports {
        true => (partial(udp((mac(1), 4000), (mac(2), 53), bytes), 6), Gso::Udp { size: 1200 }, 1200),
        false => (partial(tcp((1, 40000), (2, 80), bytes), 16), Gso::Tcp4 { mss: 1448 }, 1448),
    };
    both_ways(CONFIG, |rack| {
        plug(rack);
        for (is_udp, len) in [(false, 60_000), (false, 1449), (true, 30_000), (true, 100)] {
            let bytes = payload(len);
            let ((frame, csum), gso, size) = big(is_udp, &bytes);
            let work = Offload { csum, gso };
            let out = frames(rack, "a", &frame, work);
            assert_eq!(out("big"), [(frame, work)]);
            for (port, tag) in [("sum", 0), ("bare", 0), ("t", 4)] {
                let segments = out(port);
                assert_eq!(segments.len(), len.div_ceil(size), "{port}");
                assert!(segments.iter().all(|(bytes, rest)| bytes.len() <= 1514 + tag && rest.is_none()));
                let cut: Vec<u8> = segments.iter().flat_map(|(bytes, _)| checked(bytes)).collect();
                assert!(cut == bytes, "{port}: not the same payload");
            }
        }
    });
}

#[test]
fn an_offload_that_lies_is_dropped_where_it_would_have_to_be_done() {
    both_ways(CONFIG, |rack| {
        plug(rack);
        let (frame, csum) = partial(tcp((1, 40000), (2, 80), &payload(3000)), 16);
        let far = Csum::Partial { start: 60_000, offset: 16 };
        let lies = [
            Offload { csum: far, gso: Gso::None },
            Offload { csum: far, gso: Gso::Tcp4 { mss: 1000 } },
            Offload { csum, gso: Gso::Udp { size: 1000 } },
            Offload { csum, gso: Gso::Tcp6 { mss: 1000 } },
            Offload { csum: Csum::None, gso: Gso::Tcp4 { mss: 1000 } },
            Offload { csum, gso: Gso::Tcp4 { mss: 1 } },
        ];
        for lie in lies {
            let short = &frame[..if lie.gso == Gso::None { 500 } else { frame.len() }];
            let before = rack.switch.total_stats();
            let out = frames(rack, "a", short, lie);
            let after = rack.switch.total_stats();
            assert!(out("bare").is_empty() && out("t").is_empty(), "{lie:?}");
            let dropped = |reason| after.dropped(reason) - before.dropped(reason);
            assert!(
                dropped(DropReason::Unsupported) + dropped(DropReason::OverMtu) >= 2,
                "{lie:?}\n{rack:?}"
            );
        }
    });
}

/// `a` sends what it likes; `std` takes 1500 bytes of layer 3, `big` 9000.
const MTUS: &str = r#"
    [[bridge]]
    name = "br0"
    port = [{ name = "a", mtu = 9000 }, { name = "std" }, { name = "big", mtu = 9000 }]
"#;

/// A broadcast whose IP packet has this length.
fn long(l3: usize) -> Vec<u8> {
    let mut frame = broadcast(1);
    frame.resize(14 + l3, 0xee);
    frame
}

#[test]
fn a_port_sends_nothing_longer_than_its_mtu_and_tags_do_not_count() {
    both_ways(MTUS, |rack| {
        let (fits, over) = (long(1500), long(1501));
        rack.expect_at("a", &fits, &["std", "big"]);
        rack.expect_at("a", &tagged(&fits, 10), &["std", "big"]);
        rack.expect_at("a", &tagged(&with_tag(&fits, EtherType::QINQ, 5), 10), &["std", "big"]);
        for frame in [over.clone(), tagged(&over, 10), long(9000)] {
            let before = rack.stats("std").dropped(DropReason::OverMtu);
            rack.expect_at("a", &frame, &["big"]);
            assert_eq!(rack.stats("std").dropped(DropReason::OverMtu) - before, 3);
        }
        let over =
            [rack.stats("big").dropped(DropReason::OverMtu), rack.stats("std").dropped(DropReason::OverMtu)];
        rack.expect_at("a", &long(9001), &[]);
        let after =
            [rack.stats("big").dropped(DropReason::OverMtu), rack.stats("std").dropped(DropReason::OverMtu)];
        assert_eq!(after, over.map(|n| n + 3));
        rack.apply(&MTUS.replace("{ name = \"std\" }", "{ name = \"std\", mtu = 1501 }"));
        rack.expect_at("a", &long(1501), &["std", "big"]);
    });
}

#[test]
fn of_a_big_frame_the_segments_are_measured() {
    both_ways(MTUS, |rack| {
        offload(rack, "std", ALL);
        let (frame, csum) = partial(tcp((1, 40000), (2, 80), &payload(20_000)), 16);
        // 20 bytes of IP, 20 of TCP.
        let fits = Offload { csum, gso: Gso::Tcp4 { mss: 1460 } };
        let out = frames(rack, "a", &frame, fits);
        assert_eq!((out("std").len(), out("big").len()), (1, 14));
        let over = Offload { csum, gso: Gso::Tcp4 { mss: 1461 } };
        let out = frames(rack, "a", &frame, over);
        assert_eq!((out("std").len(), out("big").len()), (0, 14));
        assert_eq!(rack.stats("std").dropped(DropReason::OverMtu), 1);
    });
}

#[test]
fn a_known_station_behind_a_small_mtu_costs_a_counted_drop() {
    both_ways(MTUS, |rack| {
        rack.send("std", &[broadcast(2)]);
        let mut frame = unicast(1, 2);
        frame.resize(14 + 1501, 0);
        rack.expect_drop("a", &frame, DropReason::OverMtu);
    });
}
