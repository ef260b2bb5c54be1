use std::net::IpAddr;

use etherparse::{IpHeaders, Ipv4Options};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::checksum::{UDP_FIELD, complete_partial};
use crate::packets::{self, Transport};
use crate::template::tests::{any_outer, encapsulated, example, over_ipv6};
use crate::template::{Outer as Headers, Template};

fn no_offload(frame: &[u8], kind: TunnelKind) -> Result<Decapped, DecapError> {
    decap(frame, kind, Offload::NONE)
}

fn with(csum: Csum) -> Offload {
    Offload { csum, gso: Gso::None }
}

/// What must come out of a tunnel into which an inner frame of `len` bytes went.
fn expected(headers: &Headers, len: usize) -> Decapped {
    let inner_at = Template::new(headers).unwrap().len();
    let &Headers { id, src, dst, tos, ttl, df, csum, .. } = headers;
    let df = df && src.is_ipv4();
    let [src, dst] = [src, dst].map(|ip| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    });
    Decapped { id, src, dst, tos, ttl, df, csum, oam: false, inner_at, inner_end: inner_at + len }
}

/// Where the UDP or GRE header begins.
fn l4(headers: &Headers) -> usize {
    Template::new(headers).unwrap().len() - Template::new(headers).unwrap().l3_len()
        + if headers.src.is_ipv4() { 20 } else { 40 }
}

/// Where the inner frame begins.
fn headers_end(headers: &Headers) -> usize {
    Template::new(headers).unwrap().len()
}

fn inner() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![packets::packet(64).prop_map(|packet| packet.bytes()), vec(any::<u8>(), 14..100)]
}

/// An inner frame whose checksum is left to a card in a tunnel whose checksum is right for the completed
/// frame, as Linux leaves it (`lco_csum`), and that partial checksum.
fn local_checksum_offload(headers: &Headers, packet: &packets::Packet) -> (Vec<u8>, Csum) {
    let (left, csum) = packet.left_to_a_card();
    let mut inner = left.clone();
    complete_partial(&mut inner, csum).unwrap();
    let mut frame = encapsulated(headers, &inner, 0);
    let at = frame.len() - left.len();
    frame[at..].copy_from_slice(&left);
    (frame, with(csum).shifted(at as isize).unwrap().csum)
}

proptest! {
    #[test]
    fn the_plain_are_read_as_any(
        headers in any_outer(), inner in inner(), plain_in in any::<bool>(), len in any::<prop::sample::Index>(),
        spoils in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let headers = if plain_in { example() } else { headers };
        let mut frame = encapsulated(&headers, &inner, 0);
        prop_assert!(!plain_in || plain(&frame, TunnelKind::Vxlan, Offload::NONE).is_some());
        spoils.iter().for_each(|(at, octet)| *at.get_mut(&mut frame[..headers_end(&headers)]) = *octet);
        let cut = len.index(2 * frame.len()).min(frame.len());
        for frame in [&frame[..], &frame[..cut]] {
            for kind in TunnelKind::ALL {
                let read = plain(frame, kind, Offload::NONE);
                prop_assert!(read.is_none() || read == decap(frame, kind, Offload::NONE).ok());
            }
        }
    }

    #[test]
    fn what_went_in_comes_out(
        headers in any_outer(), inner in inner(), entropy in any::<u16>(), padding in vec(any::<u8>(), 0..8)
    ) {
        let frame = [encapsulated(&headers, &inner, entropy), padding].concat();
        let decapped = no_offload(&frame, headers.kind);
        prop_assert_eq!(decapped, Ok(expected(&headers, inner.len())));
        let Decapped { inner_at, inner_end, .. } = decapped.unwrap();
        prop_assert_eq!(&frame[inner_at..inner_end], &inner[..]);
    }

    #[test]
    fn truncated_frames_are_an_error(headers in any_outer(), inner in vec(any::<u8>(), 14..30)) {
        let frame = encapsulated(&headers, &inner, 0);
        for len in 0..frame.len() {
            prop_assert!(no_offload(&frame[..len], headers.kind).is_err(), "{} bytes", len);
        }
    }

    #[test]
    fn truncated_packets_are_an_error(headers in any_outer(), len in 0usize..14) {
        // Headers without a lie, but too little in them.
        let frame = encapsulated(&headers, &vec![0; len], 0);
        prop_assert_eq!(no_offload(&frame, headers.kind), Err(DecapError::Inner(len)));
    }

    #[test]
    fn damage_is_noticed_where_there_is_a_checksum(
        headers in any_outer(), inner in inner(), at in any::<prop::sample::Index>(), bit in 0u8..8
    ) {
        let headers = Headers { csum: true, ..headers };
        let mut frame = encapsulated(&headers, &inner, 0);
        let l4 = l4(&headers);
        let at = l4 + at.index(frame.len() - l4);
        frame[at] ^= 1 << bit;
        prop_assert_ne!(no_offload(&frame, headers.kind), Ok(expected(&headers, inner.len())));
    }

    #[test]
    fn damage_of_the_ipv4_header_is_noticed(outer in any_outer(), at in 0usize..20, bit in 0u8..8) {
        let headers = Headers { src: [192, 0, 2, 1].into(), dst: [192, 0, 2, 2].into(), ..outer };
        let mut frame = encapsulated(&headers, &[0; 60], 0);
        frame[l4(&headers) - 20 + at] ^= 1 << bit;
        prop_assert!(no_offload(&frame, headers.kind).is_err());
    }

    #[test]
    fn a_checksum_for_the_completed_inner_frame_is_right(
        headers in any_outer(), packet in packets::for_a_card(64)
    ) {
        let headers = Headers { csum: true, ..headers };
        let (mut frame, csum) = local_checksum_offload(&headers, &packet);
        let expected = expected(&headers, packet.bytes().len());
        let last_of_the_headers = expected.inner_at - 1;
        let expected = Ok(expected);
        prop_assert_eq!(decap(&frame, headers.kind, with(csum)), expected);
        prop_assert_eq!(no_offload(&frame, headers.kind), expected, "nobody said so");
        frame[last_of_the_headers] ^= 1;
        prop_assert_ne!(decap(&frame, headers.kind, with(csum)), expected);
        prop_assert_ne!(no_offload(&frame, headers.kind), expected);
    }

    #[test]
    fn any_bytes_are_read_within_bounds(
        headers in any_outer(), mut frame in vec(any::<u8>(), 1..200), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        start in 0u16..300, offset in 0u16..300, keep in 0usize..80
    ) {
        let template = encapsulated(&headers, &[0; 14], 0);
        let keep = keep.min(frame.len()).min(template.len());
        frame[..keep].copy_from_slice(&template[..keep]);
        for (at, octet) in damage {
            let at = at.index(frame.len());
            frame[at] = octet;
        }
        for offload in [Offload::NONE, with(Csum::Partial { start, offset })] {
            for kind in TunnelKind::ALL {
                if let Ok(Decapped { inner_at, inner_end, .. }) = decap(&frame, kind, offload) {
                    prop_assert!(inner_at + ETHERNET <= inner_end && inner_end <= frame.len());
                }
            }
        }
    }
}

#[test]
fn a_checksum_that_a_card_will_make_is_good() {
    for headers in [example(), over_ipv6(example())] {
        let headers = Headers { csum: true, ..headers };
        let mut frame = encapsulated(&headers, &packets::example().bytes(), 0);
        let field = l4(&headers) + UDP_FIELD;
        frame[field] ^= 0xff;
        let start = l4(&headers) as u16;
        let left = with(Csum::Partial { start, offset: UDP_FIELD as u16 });
        assert!(decap(&frame, TunnelKind::Vxlan, left).is_ok());
        assert_eq!(no_offload(&frame, TunnelKind::Vxlan), Err(DecapError::Checksum));
        let elsewhere = with(Csum::Partial { start: start + 8, offset: UDP_FIELD as u16 });
        assert_eq!(decap(&frame, TunnelKind::Vxlan, elsewhere), Err(DecapError::Checksum));
    }
}

#[test]
fn a_big_frame_has_no_checksum_yet() {
    for kind in TunnelKind::ALL {
        let headers = Headers { csum: true, kind, ..example() };
        let template = Template::new(&headers).unwrap();
        let mut packet = packets::tcp_example();
        packet.payload = vec![7; 65535 - template.l3_len() - packet.l4() - 20];
        let (mut frame, csum) = local_checksum_offload(&headers, &packet);
        assert_eq!(frame.len(), 14 + 65535);
        let field = l4(&headers) + if kind == TunnelKind::Gre { 4 } else { UDP_FIELD };
        frame[field] ^= 0xff;
        let gso = Gso::Tcp4 { mss: 1400 };
        let expected = Ok(expected(&headers, frame.len() - template.len()));
        assert_eq!(decap(&frame, kind, Offload { csum, gso }), expected);
        assert_eq!(decap(&frame, kind, with(csum)), Err(DecapError::Checksum));
    }
}

#[test]
fn datagrams_in_one_are_cut_first() {
    let frame = encapsulated(&example(), &packets::example().bytes(), 0);
    let csum = Csum::Partial { start: l4(&example()) as u16, offset: UDP_FIELD as u16 };
    let offload = Offload { csum, gso: Gso::Udp { size: 40 } };
    assert_eq!(decap(&frame, TunnelKind::Vxlan, offload), Err(DecapError::Uncut));
}

#[test]
fn udp_over_ipv6_needs_no_checksum() {
    let frame = encapsulated(&over_ipv6(example()), &[0; 14], 0);
    assert_eq!(no_offload(&frame, TunnelKind::Vxlan).map(|decapped| decapped.csum), Ok(false));
}

#[test]
fn a_wrong_udp_length_is_an_error_unless_it_only_leaves_something_over() {
    let frame = encapsulated(&example(), &[0; 20], 0);
    let with_len = |len: u8| {
        let mut frame = frame.clone();
        frame[14 + 20 + 5] = len;
        no_offload(&frame, TunnelKind::Vxlan)
    };
    assert_eq!(with_len(37), Err(DecapError::UdpLength { len: 37, room: 36 }));
    assert_eq!(with_len(35).map(|decapped| decapped.inner_end), Ok(frame.len() - 1));
    assert_eq!(with_len(16), Err(DecapError::Inner(0)));
    assert_eq!(with_len(15), Err(DecapError::Vxlan(VxlanError::Truncated(7))));
    assert_eq!(with_len(7), Err(DecapError::UdpLength { len: 7, room: 36 }));
    assert_eq!(with_len(0), Err(DecapError::UdpLength { len: 0, room: 36 }), "no jumbograms");
}

/// The example's inner frame and headers in packets that etherparse makes: IPv4 with options, or extension headers.
#[test]
fn options_and_extension_headers_are_passed_over() {
    let message = &encapsulated(&example(), &[0; 14], 0)[14 + 20 + 8..];
    let packet = packets::Packet { payload: message.to_vec(), ..packets::example() };
    let packets = |ip| packets::Packet { ip, transport: Transport::Udp, ..packet.clone() };
    proptest!(|(ip in prop_oneof![packets::ipv4(), packets::ipv6()])| {
        let packet = packets(ip);
        let decapped = no_offload(&packet.bytes(), TunnelKind::Vxlan).unwrap();
        prop_assert_eq!((decapped.id, decapped.inner_at), (example().id, packet.l4() + 16));
        prop_assert!(decapped.csum);
    });
    let IpHeaders::Ipv4(mut header, extensions) = packet.ip.clone() else { unreachable!("IPv4") };
    header.options = Ipv4Options::try_from(&[1u8; 4][..]).unwrap();
    let mut frame = packets(IpHeaders::Ipv4(header, extensions)).bytes();
    frame[14 + 20] = 0;
    assert_eq!(no_offload(&frame, TunnelKind::Vxlan), Err(DecapError::HeaderChecksum));
}

#[test]
fn fragments_are_refused() {
    proptest!(|(mut packet in packets::fragment())| {
        packet.tags.clear();
        packet.transport = Transport::Udp;
        packet.payload = encapsulated(&example(), &[0; 14], 0)[14 + 20 + 8..].to_vec();
        let whole = match &packet.ip {
            IpHeaders::Ipv4(header, _) => !header.more_fragments && header.fragment_offset.value() == 0,
            IpHeaders::Ipv6(_, extensions) => !extensions.fragment.as_ref().unwrap().is_fragmenting_payload(),
        };
        let decapped = no_offload(&packet.bytes(), TunnelKind::Vxlan);
        prop_assert_eq!(decapped.err(), (!whole).then_some(DecapError::Fragment));
    });
}

#[test]
fn other_packets_are_refused() {
    let frame = |kind| encapsulated(&Headers { kind, ..example() }, &[0; 60], 0);
    let (vxlan, gre) = (frame(TunnelKind::Vxlan), frame(TunnelKind::Gre));
    assert_eq!(no_offload(&gre, TunnelKind::Vxlan), Err(DecapError::Protocol(IpProto::GRE)));
    assert_eq!(no_offload(&vxlan, TunnelKind::Gre), Err(DecapError::Protocol(IpProto::UDP)));
    assert_eq!(
        no_offload(&vxlan, TunnelKind::Geneve),
        Err(DecapError::Geneve(GeneveError::Protocol(EtherType(0))))
    );
    let mut arp = vxlan;
    arp[13] = 6;
    assert_eq!(no_offload(&arp, TunnelKind::Vxlan), Err(DecapError::NotIp(EtherType::ARP)));
}

#[test]
fn control_messages_are_told() {
    let headers = Headers { kind: TunnelKind::Geneve, ..example() };
    let mut frame = encapsulated(&headers, &[0; 14], 0);
    frame[14 + 20 + 8 + 1] = 0x80;
    assert_eq!(no_offload(&frame, TunnelKind::Geneve), Ok(Decapped { oam: true, ..expected(&headers, 14) }));
}
