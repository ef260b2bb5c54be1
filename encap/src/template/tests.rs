//! Against headers that etherparse writes, and the views of `wire`.

use etherparse::{
    IpDscp, IpEcn, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::offsets::{ETHERNET, TAG};
use crate::packets;

/// Every kind over either family, with 0 to 2 tags.
pub fn any_outer() -> impl Strategy<Value = Outer> {
    let kind = prop::sample::select(&TunnelKind::ALL);
    let id = (option::of(any::<u32>()), any::<bool>());
    let ends = prop_oneof![
        any::<[[u8; 4]; 2]>().prop_map(|ends| ends.map(IpAddr::from)),
        any::<[[u8; 16]; 2]>().prop_map(|ends| ends.map(IpAddr::from)),
    ];
    let rest = (any::<[u8; 2]>(), any::<[bool; 2]>(), any::<u16>(), any::<[[u8; 6]; 2]>());
    (kind, id, ends, vec(packets::tag(), 0..=2), rest).prop_map(|(kind, (id, zero), ends, tags, rest)| {
        let ([tos, ttl], [df, csum], dst_port, macs) = rest;
        let id = match kind {
            TunnelKind::Gre => id.map(|id| if zero { 0 } else { id }),
            _ => Some(id.unwrap_or_default() >> 8),
        };
        let [eth_src, eth_dst] = macs.map(MacAddr);
        let ([src, dst], tags) = (ends, tags.into_iter().collect());
        Outer { kind, id, eth_src, eth_dst, tags, src, dst, tos, ttl, df, dst_port, csum }
    })
}

/// The same every time: VXLAN over IPv4, not summed.
pub fn example() -> Outer {
    Outer {
        kind: TunnelKind::Vxlan,
        id: Some(0x12_3456),
        eth_src: MacAddr([2, 0, 0, 0, 0, 1]),
        eth_dst: MacAddr([2, 0, 0, 0, 0, 2]),
        tags: ArrayVec::new(),
        src: IpAddr::from([192, 0, 2, 1]),
        dst: IpAddr::from([192, 0, 2, 2]),
        tos: 0,
        ttl: 64,
        df: true,
        dst_port: 4789,
        csum: false,
    }
}

/// The example with other addresses, the last of their networks.
pub fn over_ipv6(outer: Outer) -> Outer {
    let address = |n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
    Outer { src: address(1), dst: address(2), ..outer }
}

/// The inner frame in a tunnel.
pub fn encapsulated(outer: &Outer, inner: &[u8], entropy: u16) -> Vec<u8> {
    let template = Template::new(outer).unwrap();
    let mut frame = vec![0xee; template.len()];
    frame.extend(inner);
    template.write(&mut frame, entropy).unwrap();
    frame
}

/// What etherparse and the tunnels' `Repr`s make of it. The identification is not theirs to choose.
fn reference(outer: &Outer, inner: &[u8], entropy: u16, identification: u16) -> Vec<u8> {
    let ip = match (outer.src, outer.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let proto = IpNumber(outer.kind.proto().0);
            let mut ip = Ipv4Header::new(0, outer.ttl, proto, src.octets(), dst.octets()).unwrap();
            ip.dscp = IpDscp::try_new(outer.tos >> 2).unwrap();
            ip.ecn = IpEcn::try_new(outer.tos & 3).unwrap();
            (ip.dont_fragment, ip.identification) = (outer.df, identification);
            IpHeaders::Ipv4(ip, Ipv4Extensions::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (source, destination) = (src.octets(), dst.octets());
            let (traffic_class, hop_limit) = (outer.tos, outer.ttl);
            let ip = Ipv6Header { source, destination, traffic_class, hop_limit, ..Ipv6Header::default() };
            IpHeaders::Ipv6(ip, Ipv6Extensions::default())
        }
        _ => unreachable!("ends of one family"),
    };
    let ip = PacketBuilder::ethernet2(outer.eth_src.0, outer.eth_dst.0).ip(ip);
    let vni = Vni::new(outer.id.unwrap_or_default());
    let udp = |ip: etherparse::PacketBuilderStep<_>, header: [u8; 8]| {
        let mut frame = Vec::new();
        let port = 49152 + entropy % 16384;
        ip.udp(port, outer.dst_port).write(&mut frame, &[&header, inner].concat()).unwrap();
        let field = frame.len() - inner.len() - header.len() - 2;
        frame[field..field + 2].iter_mut().for_each(|octet| *octet *= u8::from(outer.csum));
        frame
    };
    let mut frame = match outer.kind {
        TunnelKind::Vxlan => udp(ip, vxlan::Repr { vni: vni.unwrap() }.emit()),
        TunnelKind::Geneve => udp(ip, geneve::Repr { vni: vni.unwrap(), oam: false }.emit()),
        TunnelKind::Gre => {
            let repr = gre::Repr { key: outer.id.map(GreKey), sequence: None, checksum: outer.csum };
            let mut message = [&vec![0; repr.header_len()], inner].concat();
            repr.emit(&mut message);
            let mut frame = Vec::new();
            ip.write(&mut frame, IpNumber::GRE, &message).unwrap();
            frame
        }
    };
    for tag in outer.tags.iter().rev() {
        let (tpid, tci) = (tag.tpid.0.to_be_bytes(), tag.tci.to_be_bytes());
        frame.splice(12..12, tpid.into_iter().chain(tci));
    }
    frame
}

fn identification_of(outer: &Outer, frame: &[u8]) -> u16 {
    let at = ETHERNET + TAG * outer.tags.len() + 4;
    if outer.src.is_ipv4() { u16::from_be_bytes([frame[at], frame[at + 1]]) } else { 0 }
}

proptest! {
    #[test]
    fn headers_are_those_of_etherparse_and_repr(
        outer in any_outer(), inner in vec(any::<u8>(), 0..300), entropy in any::<u16>()
    ) {
        let frame = encapsulated(&outer, &inner, entropy);
        let identification = identification_of(&outer, &frame);
        prop_assert!(!outer.df || identification == 0);
        prop_assert_eq!(&frame, &reference(&outer, &inner, entropy, identification));
        let template = Template::new(&outer).unwrap();
        prop_assert_eq!(template.outer(), &outer);
        prop_assert_eq!(template.len(), frame.len() - inner.len());
        prop_assert_eq!(template.l3_len(), template.len() - ETHERNET - TAG * outer.tags.len());
    }
}

#[test]
fn the_overhead_everyone_knows() {
    let l3_len = |outer: Outer| Template::new(&outer).unwrap().l3_len();
    assert_eq!(l3_len(example()), 20 + 8 + 8);
    assert_eq!(l3_len(over_ipv6(example())), 40 + 8 + 8);
    let gre = Outer { kind: TunnelKind::Gre, ..example() };
    assert_eq!(l3_len(gre.clone()), 20 + 8);
    assert_eq!(l3_len(Outer { id: None, ..gre.clone() }), 20 + 4);
    assert_eq!(l3_len(Outer { csum: true, ..gre }), 20 + 12);
}

#[test]
fn without_df_the_parts_of_two_frames_are_not_taken_for_each_other() {
    let outer = Outer { df: false, ..example() };
    // Frames of one TCP connection, one segment after the other.
    let frame = |n: u16| {
        let mut packet = packets::tcp_example();
        let IpHeaders::Ipv4(ip, _) = &mut packet.ip else { unreachable!("IPv4") };
        ip.identification = n;
        let packets::Transport::Tcp(tcp) = &mut packet.transport else { unreachable!("TCP") };
        tcp.sequence_number = u32::from(n) * 1448;
        encapsulated(&outer, &packet.bytes(), 0)
    };
    let mut numbers: Vec<_> = (0..256).map(|n| identification_of(&outer, &frame(n))).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert!(numbers.len() > 250, "{} of 256 are different", numbers.len());
}

#[test]
fn what_ip_has_no_room_for_is_refused() {
    let template = Template::new(&example()).unwrap();
    let mut frame = vec![0; ETHERNET + 65535];
    assert_eq!(template.write(&mut frame, 0), Ok(()));
    let mut longer = vec![0; ETHERNET + 65536];
    assert_eq!(template.write(&mut longer, 0), Err(TooLong(65536)));
    assert!(longer.iter().all(|octet| *octet == 0));
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let refused = |outer: Outer| Template::new(&outer).unwrap_err();
    assert_eq!(refused(Outer { id: None, ..example() }), TemplateError::NoVni(TunnelKind::Vxlan));
    let large = Outer { kind: TunnelKind::Geneve, id: Some(1 << 24), ..example() };
    assert_eq!(refused(large), TemplateError::Field(FieldError::Vni(1 << 24)));
    let (src, dst) = (example().src, over_ipv6(example()).dst);
    assert_eq!(refused(Outer { dst, ..example() }), TemplateError::Families { src, dst });
}
