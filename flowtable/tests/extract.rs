//! Extraction against a slow one that etherparse does the parsing for.

use std::net::Ipv6Addr;

use encap::field::{EtherType, IpProto, MacAddr};
use encap::offsets::{Fragment, Malformed};
use etherparse::{ArpPacketSlice, LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, LinkSlice};
use flowtable::extract::extract;
use flowtable::field::{Field, TunnelFlags, VlanTci};
use flowtable::id::PortId;
use flowtable::key::{FlowKey, Hop, TunnelFields};
use flowtable::keys::Keys;
use flowtable::mask::Mask;
use flowtable::places::Places;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const PORT: PortId = PortId(7);

/// The same key by other means. What the lax parser calls incomplete is absent.
fn slow(frame: &[u8]) -> FlowKey {
    let lax = LaxSlicedPacket::from_ethernet(frame).expect("an Ethernet header");
    let Some(LinkSlice::Ethernet2(ethernet)) = &lax.link else { panic!("no Ethernet header") };
    let mut key = FlowKey::default()
        .with(Field::InPort, PORT)
        .with(Field::EthDst, MacAddr(ethernet.destination()))
        .with(Field::EthSrc, MacAddr(ethernet.source()));
    let mut ether_type = EtherType(ethernet.ether_type().0);
    let fields = [(Field::OuterTpid, Field::OuterTci), (Field::InnerTpid, Field::InnerTci)];
    for ((tpid, tci), ext) in fields.into_iter().zip(&lax.link_exts) {
        let LaxLinkExtSlice::Vlan(tag) = ext else { panic!("not a tag") };
        let [high, low, ..] = *tag.slice() else { panic!("short tag") };
        key = key.with(tpid, ether_type).with(tci, VlanTci::from_wire(u16::from_be_bytes([high, low])));
        ether_type = EtherType(tag.ether_type().0);
    }
    key = key.with(Field::EthType, ether_type);
    match &lax.net {
        Some(net) if lax.link_exts.len() <= 2 => network(key, net),
        _ => key,
    }
}

fn network(key: FlowKey, net: &LaxNetSlice<'_>) -> FlowKey {
    match net {
        LaxNetSlice::Arp(packet) => arp(key, packet),
        LaxNetSlice::Ipv4(ip) if ip.payload().incomplete => key,
        LaxNetSlice::Ipv4(ip) => {
            let (header, payload) = (ip.header(), ip.payload());
            let fragment = match (header.fragments_offset().value(), header.more_fragments()) {
                (0, false) => Fragment::No,
                (0, true) => Fragment::First,
                _ => Fragment::Later,
            };
            let key = key
                .with(Field::Ipv4Src, header.source_addr())
                .with(Field::Ipv4Dst, header.destination_addr())
                .with(Field::IpDscp, header.dcp().value())
                .with(Field::IpEcn, header.ecn().value())
                .with(Field::IpTtl, header.ttl())
                .with(Field::IpProto, IpProto(header.protocol().0))
                .with(Field::IpFrag, fragment);
            if fragment == Fragment::Later {
                key
            } else {
                transport(key, header.protocol().0, payload.payload)
            }
        }
        LaxNetSlice::Ipv6(ip) if ip.payload().incomplete => key,
        LaxNetSlice::Ipv6(ip) => {
            let (header, payload) = (ip.header(), ip.payload());
            assert!(!payload.fragmented, "not generated here");
            let key = key
                .with(Field::Ipv6Src, header.source_addr())
                .with(Field::Ipv6Dst, header.destination_addr())
                .with(Field::IpDscp, header.traffic_class() >> 2)
                .with(Field::IpEcn, header.traffic_class() & 3)
                .with(Field::Ipv6Label, u64::from(header.flow_label().value()))
                .with(Field::IpTtl, header.hop_limit())
                .with(Field::IpProto, IpProto(payload.ip_number.0));
            transport(key, payload.ip_number.0, payload.payload)
        }
    }
}

fn arp(key: FlowKey, packet: &ArpPacketSlice<'_>) -> FlowKey {
    let mac = |octets: &[u8]| MacAddr(octets.try_into().unwrap());
    let ip = |octets: &[u8]| std::net::Ipv4Addr::from(<[u8; 4]>::try_from(octets).unwrap());
    key.with(Field::ArpOp, u8::try_from(packet.operation().0).unwrap_or(0))
        .with(Field::ArpSpa, ip(packet.sender_protocol_addr()))
        .with(Field::ArpTpa, ip(packet.target_protocol_addr()))
        .with(Field::ArpSha, mac(packet.sender_hw_addr()))
        .with(Field::ArpTha, mac(packet.target_hw_addr()))
}

fn transport(key: FlowKey, proto: u8, payload: &[u8]) -> FlowKey {
    let ports = |key: FlowKey, source: u16, destination: u16| {
        key.with(Field::L4Src, u64::from(source)).with(Field::L4Dst, u64::from(destination))
    };
    match (proto, key.eth_type()) {
        (6, _) => match etherparse::TcpHeaderSlice::from_slice(payload) {
            Ok(tcp) => ports(key, tcp.source_port(), tcp.destination_port())
                .with(Field::TcpFlags, u64::from(u16::from_be_bytes([payload[12], payload[13]]) & 0xfff)),
            Err(_) => key,
        },
        (17, _) => match etherparse::UdpHeaderSlice::from_slice(payload) {
            Ok(udp) => ports(key, udp.source_port(), udp.destination_port()),
            Err(_) => key,
        },
        (132, _) if payload.len() >= 12 => ports(
            key,
            u16::from_be_bytes([payload[0], payload[1]]),
            u16::from_be_bytes([payload[2], payload[3]]),
        ),
        (1, EtherType::IPV4) => match etherparse::Icmpv4Slice::from_slice(payload) {
            Ok(icmp) => key.with(Field::IcmpType, icmp.type_u8()).with(Field::IcmpCode, icmp.code_u8()),
            Err(_) => key,
        },
        (2, EtherType::IPV4) if payload.len() >= 8 => {
            key.with(Field::IgmpType, payload[0]).with(Field::IgmpCode, payload[1])
        }
        (58, EtherType::IPV6) => match etherparse::Icmpv6Slice::from_slice(payload) {
            Ok(icmp) => neighbour(
                key.with(Field::Icmpv6Type, icmp.type_u8()).with(Field::Icmpv6Code, icmp.code_u8()),
                payload,
            ),
            Err(_) => key,
        },
        _ => key,
    }
}

/// Of neighbour discovery only the generated shape: a target and at most one option of eight octets.
fn neighbour(key: FlowKey, message: &[u8]) -> FlowKey {
    if !matches!(message[0], 135 | 136) || message[1] != 0 || message.len() < 24 {
        return key;
    }
    let target = <[u8; 16]>::try_from(&message[8..24]).unwrap();
    let key = key.with(Field::NdTarget, std::net::Ipv6Addr::from(target));
    match message[24..] {
        [1, 1, a, b, c, d, e, f, ..] => key.with(Field::NdSll, MacAddr([a, b, c, d, e, f])),
        [2, 1, a, b, c, d, e, f, ..] => key.with(Field::NdTll, MacAddr([a, b, c, d, e, f])),
        _ => key,
    }
}

/// A transport header (perhaps cut) of a protocol: random, but for what etherparse checks and we do not.
fn segment(proto: u8) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..64).prop_map(move |mut octets| {
        if let (6, Some(offset)) = (proto, octets.get_mut(12)) {
            *offset = *offset & 0xf | 0x50;
        }
        octets
    })
}

prop_compose! {
    /// A neighbour discovery message, or what looks like one.
    fn discovery()(
        start in select(&[[135u8, 0], [136, 0], [135, 1], [134, 0]][..]),
        rest in vec(any::<u8>(), 6..=22),
        option in prop_oneof![Just(vec![]), (1u8..=2, vec(any::<u8>(), 6)).prop_map(|(k, mac)| [vec![k, 1], mac].concat())],
    ) -> Vec<u8> {
        let option = if rest.len() == 22 { option } else { vec![] };
        [&start[..], &rest, &option].concat()
    }
}

fn ipv4() -> impl Strategy<Value = Vec<u8>> {
    let proto = select(&[1u8, 2, 6, 17, 47, 58, 132][..]);
    let header = (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<u8>(), any::<u8>());
    let fragment = prop_oneof![4 => Just(0u16), 1 => Just(0x2000), 1 => 1u16..0x4000];
    (proto.prop_flat_map(|p| (Just(p), segment(p))), header, fragment, 0usize..3).prop_map(
        |((proto, segment), (src, dst, tos, ttl), fragment, options)| {
            let len = (20 + options * 4 + segment.len()) as u16;
            let mut packet = vec![0x45 + options as u8, tos];
            packet.extend([len.to_be_bytes(), [0; 2], fragment.to_be_bytes()].concat());
            packet.extend([ttl, proto, 0, 0]);
            packet.extend([src, dst].concat());
            packet.extend(vec![1; options * 4]);
            [packet, segment].concat()
        },
    )
}

fn ipv6() -> impl Strategy<Value = Vec<u8>> {
    let proto = select(&[1u8, 6, 17, 58, 132, 59][..]);
    let message = proto.prop_flat_map(|p| (Just(p), segment(p)));
    let message = prop_oneof![message, discovery().prop_map(|d| (58, d))];
    (message, any::<[u8; 32]>(), any::<[u8; 4]>(), any::<bool>()).prop_map(
        |((proto, message), addresses, first, options)| {
            let extension: &[u8] = if options { &[proto, 0, 1, 4, 0, 0, 0, 0] } else { &[] };
            let len = (extension.len() + message.len()) as u16;
            let mut packet = vec![first[0] & 0xf | 0x60, first[1], first[2], first[3]];
            packet.extend(len.to_be_bytes());
            packet.extend([if options { 60 } else { proto }, 64]);
            [&packet[..], &addresses, extension, &message].concat()
        },
    )
}

fn arp_packet() -> impl Strategy<Value = Vec<u8>> {
    (0u16..300, vec(any::<u8>(), 20))
        .prop_map(|(op, rest)| [&[0, 1, 8, 0, 6, 4], &op.to_be_bytes()[..], &rest].concat())
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        ipv4().prop_map(|p| (0x0800u16, p)),
        ipv6().prop_map(|p| (0x86dd, p)),
        arp_packet().prop_map(|p| (0x0806, p)),
        vec(any::<u8>(), 0..30).prop_map(|p| (0x88cc, p)),
    ];
    let tags = vec((select(&[0x8100u16, 0x88a8][..]), any::<u16>()), 0..=3);
    (any::<[u8; 12]>(), tags, payload).prop_map(|(addresses, tags, (ether_type, payload))| {
        let mut frame = addresses.to_vec();
        tags.iter().for_each(|(tpid, tci)| frame.extend([tpid.to_be_bytes(), tci.to_be_bytes()].concat()));
        frame.extend(ether_type.to_be_bytes());
        [frame, payload].concat()
    })
}

proptest! {
    #[test]
    fn agrees_with_etherparse(frame in frame()) {
        prop_assert_eq!(extract(&frame, PORT), Ok(slow(&frame)));
    }

    #[test]
    fn padding_is_ignored(frame in frame(), padding in vec(any::<u8>(), 1..30)) {
        let key = extract(&frame, PORT).unwrap();
        prop_assume!(matches!(key.eth_type(), EtherType::IPV4 | EtherType::IPV6));
        prop_assert_eq!(extract(&[frame, padding].concat(), PORT), Ok(key));
    }

    #[test]
    fn a_cut_frame_has_what_is_left_of_it(frame in frame(), cut in any::<prop::sample::Index>()) {
        let len = cut.index(frame.len());
        let expected = if len < 14 { Err(Malformed(len)) } else { Ok(slow(&frame[..len])) };
        prop_assert_eq!(extract(&frame[..len], PORT), expected);
    }

    #[test]
    fn spoilt_frames_yield_canonical_keys(
        mut frame in frame(),
        spoils in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        spoils.iter().for_each(|(at, octet)| *at.get_mut(&mut frame) = *octet);
        let key = extract(&frame, PORT).unwrap();
        prop_assert_eq!(key.masked(&Mask::of_fields(&key)), key, "bits outside the fields it has");
        prop_assert_eq!(FlowKey::all_tcp_flags(&[key]), key.tcp_flags());
        prop_assert_eq!(extract(&frame, PORT), Ok(key));
    }
}

/// A frame, perhaps cut, padded, or with octets that lie.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let spoils = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.3, any::<prop::sample::Index>());
    (frame(), spoils, vec(any::<u8>(), 0..30), cut).prop_map(|(mut frame, spoils, padding, cut)| {
        // Most lies are told in the first headers.
        let start = frame.len().min(40);
        spoils.iter().for_each(|(at, octet)| *at.get_mut(&mut frame[..start]) = *octet);
        frame.extend(padding);
        frame.truncate(cut.map_or(frame.len(), |cut| cut.index(frame.len())));
        frame
    })
}

proptest! {
    #[test]
    fn the_keys_of_a_batch_are_those_of_its_frames(
        batches in vec((vec(hostile(), 0..40), prop::option::of(any::<[u8; 16]>())), 1..5)
    ) {
        let mut keys = Keys::default();
        for (frames, tunnel) in batches {
            let sound = keys.extract(frames.iter().map(|frame| &frame[..]), PORT);
            let hop = Hop { tos: 3, ttl: 9, flags: TunnelFlags::DF };
            let outer = tunnel.map(|ip| TunnelFields::new(Some(7), [ip, [9; 16]].map(Ipv6Addr::from), hop));
            keys.set_tunnels(outer.iter().cycle().map(|outer| (PortId(77), outer)));
            prop_assert_eq!(keys.len(), frames.len().min(Places::MAX));
            for (place, frame) in frames.iter().enumerate().take(Places::MAX) {
                let expected = extract(frame, PORT).ok().map(|key| outer.map_or(key, |outer| {
                    let mut key = key.with(Field::InPort, PortId(77));
                    key.set_tunnel(&outer);
                    key
                }));
                prop_assert_eq!(sound.contains(place), expected.is_some());
                prop_assert_eq!(sound.contains(place).then(|| keys[place]), expected);
            }
        }
    }
}

/// Ethernet, IPv6 and ICMPv6 neighbour solicitation for `fe80::2` with these options.
fn solicitation(options: &[u8]) -> FlowKey {
    let len = 24 + options.len() as u16;
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(len.to_be_bytes());
    frame.extend([58, 255]);
    frame.extend([0; 32]);
    frame.extend([135, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    frame.extend(options);
    extract(&frame, PORT).unwrap()
}

#[test]
fn neighbour_options_are_bounded_and_unique() {
    let source = [1, 1, 2, 0, 0, 0, 0, 5];
    let other = [14, 1, 0, 0, 0, 0, 0, 0];
    let mac = MacAddr([2, 0, 0, 0, 0, 5]);
    assert_eq!(solicitation(&source).nd_sll(), mac);
    assert_eq!(solicitation(&[&other.repeat(7)[..], &source].concat()).nd_sll(), mac);
    assert_eq!(solicitation(&[&other.repeat(8)[..], &source].concat()).nd_sll(), MacAddr::default());
    let twice = solicitation(&source.repeat(2));
    assert_eq!((twice.nd_target(), twice.nd_sll()), (std::net::Ipv6Addr::UNSPECIFIED, MacAddr::default()));
    assert_eq!(
        solicitation(&[1, 0, 2, 0, 0, 0, 0, 5]).nd_sll(),
        MacAddr::default(),
        "an option without length"
    );
    assert_eq!(
        solicitation(&[1, 2, 2, 0, 0, 0, 0, 5]).nd_sll(),
        MacAddr::default(),
        "an option behind the end"
    );
}

#[test]
fn arp_for_anything_but_ipv4_over_ethernet_has_no_fields() {
    let mut frame = vec![2; 12];
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([9; 20]);
    assert_eq!(extract(&frame, PORT).unwrap().arp_op(), 1);
    for at in 14..20 {
        let mut other = frame.clone();
        other[at] ^= 1;
        let key = extract(&other, PORT).unwrap();
        assert_eq!((key.arp_op(), key.arp_spa()), (0, std::net::Ipv4Addr::UNSPECIFIED), "octet {at}");
    }
}

#[test]
fn the_top_mpls_entry_is_read_and_no_further() {
    let mut frame = vec![2; 12];
    frame.extend([0x88, 0x47, 0x00, 0x06, 0x4b, 0x40, 0x45, 0, 0, 20]);
    let key = extract(&frame, PORT).unwrap();
    let label = (key.mpls_label().get(), key.mpls_tc(), key.mpls_bos(), key.mpls_ttl());
    assert_eq!(label, (100, 5, 1, 64));
    assert_eq!(extract(&frame[..17], PORT).unwrap().mpls_ttl(), 0);
}

#[test]
fn a_short_frame_is_an_error_that_says_its_length() {
    assert_eq!(extract(&[0; 13], PORT), Err(Malformed(13)));
    assert_eq!(extract(&[], PORT), Err(Malformed(0)));
}
