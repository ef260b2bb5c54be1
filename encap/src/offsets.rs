//! One walk over a frame: where L2, L3 and L4 begin.
//!
//! A switch must carry what it does not understand, so only a frame without a whole Ethernet header is
//! malformed. A truncated or lying IP header means that the frame has no [`Ip`] part; a truncated transport
//! header means that it has no L4 part (as Open vSwitch's `miniflow_extract` does, and ovs-fields(7) says).
//!
//! IEEE 802.3 and 802.1Q, RFC 1042 (SNAP), RFC 791, RFC 8200 section 4. Worst case: [`MAX_TAGS`] tags and
//! [`MAX_EXTENSIONS`] extension headers, one bounds check each; no byte behind the transport ports is read.

use etherparse::{IpAuthHeaderSlice, Ipv6FragmentHeaderSlice, Ipv6RawExtHeaderSlice};
use thiserror::Error;

use crate::field::{EtherType, IpProto};

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of one VLAN tag.
pub const TAG: usize = 4;
/// VLAN tags that are parsed; what lies behind more is opaque.
pub const MAX_TAGS: u8 = 2;
/// IPv6 extension headers that are parsed; RFC 8200 section 4.1 has use for six.
pub const MAX_EXTENSIONS: usize = 8;

/// Values below this in the type field are 802.3 lengths.
const MIN_TYPE: u16 = 0x600;
/// LLC DSAP, SSAP and control that announce SNAP, and the SNAP organization of Ethernet.
const SNAP: [u8; 6] = [0xaa, 0xaa, 0x03, 0, 0, 0];

/// The frame is shorter than an Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("frame of {0} bytes is shorter than an Ethernet header of 14")]
pub struct Malformed(pub usize);

/// Where the parts of one frame begin, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    /// VLAN tags parsed, 0 to [`MAX_TAGS`].
    pub tags: u8,
    /// The type behind the tags. [`EtherType::NOT_ETH_II`] for 802.3 frames without SNAP; the TPID of the
    /// next tag if there are more than [`MAX_TAGS`] or the tag is truncated.
    pub ether_type: EtherType,
    payload: u16,
    /// The IP header, if `ether_type` names one and it is sane.
    pub ip: Option<Ip>,
}

/// A sane IPv4 or IPv6 header (the frame's `ether_type` says which) and what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// The protocol; for IPv6 that behind the extension headers. A later IPv6 fragment has 44, as in
    /// ovs-fields(7), and a chain that breaks off has the header that is not there.
    pub proto: IpProto,
    /// Whether this is a part of a datagram only.
    pub fragment: Fragment,
    l3: u16,
    /// Zero: none.
    l4: u16,
    end: u32,
}

/// Which part of a datagram an IP packet holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fragment {
    /// All of it.
    #[default]
    No,
    /// The first part, with the transport header.
    First,
    /// A part without transport header.
    Later,
}

impl Offsets {
    /// Where that begins which `ether_type` names, at most the frame's length.
    #[inline]
    pub fn payload(&self) -> usize {
        self.payload as usize
    }

    /// Source and destination address of the IP header, as they stand there (8 or 32 bytes). `None` if there
    /// is none, or `frame` is shorter than the one that was walked.
    #[inline]
    pub fn addresses<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        let l3 = self.ip?.l3();
        match self.ether_type {
            EtherType::IPV4 => frame.get(l3 + 12..l3 + 20),
            _ => frame.get(l3 + 8..l3 + 40),
        }
    }
}

impl Ip {
    /// Where the IP header begins. At least its 20 (IPv6: 40) fixed bytes are there.
    #[inline]
    pub fn l3(&self) -> usize {
        self.l3 as usize
    }

    /// Where the transport header begins. `None` for a later fragment, a broken extension chain, or a TCP,
    /// UDP, SCTP, ICMP, ICMPv6 or IGMP header whose fixed part (20, 8, 12, 8, 8, 8 bytes) is not all there.
    #[inline]
    pub fn l4(&self) -> Option<usize> {
        (self.l4 != 0).then_some(self.l4 as usize)
    }

    /// Where the packet ends by the IP header's own length: at most the frame's length, less if the frame
    /// has Ethernet padding.
    #[inline]
    pub fn end(&self) -> usize {
        self.end as usize
    }
}

/// Finds the parts of a frame.
///
/// # Errors
/// [`Malformed`] below 14 bytes.
#[inline(always)]
pub fn walk(frame: &[u8]) -> Result<Offsets, Malformed> {
    let ether_type = type_at(frame, ETHERNET - 2).ok_or(Malformed(frame.len()))?;
    let l2 = match ether_type {
        EtherType::VLAN | EtherType::QINQ | EtherType(..MIN_TYPE) => tagged_or_llc(frame),
        _ => L2 { tags: 0, ether_type, payload: ETHERNET },
    };
    let ip = match l2.ether_type {
        EtherType::IPV4 => ipv4(frame, l2.payload),
        EtherType::IPV6 => ipv6(frame, l2.payload),
        _ => None,
    };
    Ok(Offsets { tags: l2.tags, ether_type: l2.ether_type, payload: l2.payload as u16, ip })
}

struct L2 {
    tags: u8,
    ether_type: EtherType,
    payload: usize,
}

/// The type field at an offset, if the frame is that long.
#[inline]
fn type_at(frame: &[u8], at: usize) -> Option<EtherType> {
    let octets = frame.get(at..at + 2)?;
    Some(EtherType(u16::from_be_bytes([octets[0], octets[1]])))
}

/// The L2 header of a frame whose first type is no plain EtherType.
fn tagged_or_llc(frame: &[u8]) -> L2 {
    let mut at = ETHERNET - 2;
    let mut tags = 0;
    let mut ether_type = type_at(frame, at).unwrap_or_default();
    while ether_type.is_vlan() && tags < MAX_TAGS {
        let Some(inner) = type_at(frame, at + TAG) else { break };
        ether_type = inner;
        at += TAG;
        tags += 1;
    }
    let payload = at + 2;
    if ether_type.0 >= MIN_TYPE {
        return L2 { tags, ether_type, payload };
    }
    match snap_type(&frame[payload..]) {
        Some(ether_type) => L2 { tags, ether_type, payload: payload + 8 },
        None => L2 { tags, ether_type: EtherType::NOT_ETH_II, payload },
    }
}

/// The type that an 802.2 SNAP header with organization 0 encapsulates.
fn snap_type(llc: &[u8]) -> Option<EtherType> {
    llc.starts_with(&SNAP).then(|| type_at(llc, 6)).flatten().filter(|t| t.0 >= MIN_TYPE)
}

#[inline]
fn ipv4(frame: &[u8], l3: usize) -> Option<Ip> {
    let header: &[u8; 20] = frame.get(l3..)?.first_chunk()?;
    let header_len = match header[0] {
        0x45 => 20,
        0x46..=0x4f => usize::from(header[0] & 0xf) * 4,
        _ => return None,
    };
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let end = l3 + total;
    if total < header_len || end > frame.len() {
        return None;
    }
    let proto = IpProto(header[9]);
    let fragment = fragment(u16::from_be_bytes([header[6], header[7]]) & 0x1fff, header[6] & 0x20 != 0);
    Some(Ip {
        proto,
        fragment,
        l3: l3 as u16,
        l4: l4(proto, fragment, l3 + header_len, end),
        end: end as u32,
    })
}

#[inline]
fn ipv6(frame: &[u8], l3: usize) -> Option<Ip> {
    let header: &[u8; 40] = frame.get(l3..)?.first_chunk()?;
    let end = l3 + 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 || end > frame.len() {
        return None;
    }
    let mut chain = Chain { proto: IpProto(header[6]), fragment: Fragment::No, at: Some(l3 + 40) };
    if is_extension(chain.proto) {
        chain.follow(&frame[..end]);
    }
    let Chain { proto, fragment, at } = chain;
    let l4 = at.map_or(0, |at| l4(proto, fragment, at, end));
    Some(Ip { proto, fragment, l3: l3 as u16, l4, end: end as u32 })
}

#[inline]
fn fragment(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

/// Where the transport header begins, or zero if it is not (all) there.
#[inline]
fn l4(proto: IpProto, fragment: Fragment, at: usize, end: usize) -> u16 {
    let fixed = match proto {
        IpProto::TCP => 20,
        IpProto::UDP | IpProto::ICMP | IpProto::ICMPV6 | IpProto::IGMP => 8,
        IpProto::SCTP => 12,
        _ => 0,
    };
    if fragment == Fragment::Later || at + fixed > end { 0 } else { at as u16 }
}

const HOP_BY_HOP: IpProto = IpProto(0);
const ROUTING: IpProto = IpProto(43);
const FRAGMENT: IpProto = IpProto(44);
const AUTHENTICATION: IpProto = IpProto(51);
const DESTINATION_OPTIONS: IpProto = IpProto(60);

#[inline]
fn is_extension(proto: IpProto) -> bool {
    matches!(proto, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// A walk along IPv6 extension headers: the header it stands at, and where, `None` once it cannot go on.
struct Chain {
    proto: IpProto,
    fragment: Fragment,
    at: Option<usize>,
}

impl Chain {
    fn follow(&mut self, packet: &[u8]) {
        for _ in 0..MAX_EXTENSIONS {
            let Some(at) = self.at.filter(|_| is_extension(self.proto)) else { return };
            self.at = self.step(&packet[at..]).map(|len| at + len);
        }
        self.at = self.at.filter(|_| !is_extension(self.proto));
    }

    /// Passes the header at the start of `rest` and gives its length; `None` if it is broken or says that
    /// this is a later fragment.
    fn step(&mut self, rest: &[u8]) -> Option<usize> {
        let (next, len) = match self.proto {
            FRAGMENT => {
                let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                self.fragment = fragment(header.fragment_offset().value(), header.more_fragments());
                if self.fragment == Fragment::Later {
                    return None;
                }
                (header.next_header(), header.slice().len())
            }
            AUTHENTICATION => {
                let header = IpAuthHeaderSlice::from_slice(rest).ok()?;
                (header.next_header(), header.slice().len())
            }
            _ => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                (header.next_header(), header.slice().len())
            }
        };
        self.proto = IpProto(next.0);
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{IpHeaders, LaxNetSlice, LaxSlicedPacket};
    use proptest::prelude::*;

    use super::*;
    use crate::packets::{self, Packet};

    fn ip_type(packet: &Packet) -> EtherType {
        match packet.ip {
            IpHeaders::Ipv4(..) => EtherType::IPV4,
            IpHeaders::Ipv6(..) => EtherType::IPV6,
        }
    }

    /// What etherparse says about the IP packet at the start of `l3`: what follows the headers, the protocol
    /// there, and whether that is a fragment.
    fn oracle(ether_type: EtherType, l3: &[u8]) -> (&[u8], IpProto, bool) {
        let sliced = LaxSlicedPacket::from_ether_type(etherparse::EtherType(ether_type.0), l3);
        let payload = match sliced.net.expect("an IP header") {
            LaxNetSlice::Ipv4(ip) => ip.payload().clone(),
            LaxNetSlice::Ipv6(ip) => ip.payload().clone(),
            LaxNetSlice::Arp(_) => unreachable!("asked for IP"),
        };
        (payload.payload, IpProto(payload.ip_number.0), payload.fragmented)
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(packet in packets::packet(64), padding in 0usize..8) {
            let mut frame = packet.bytes();
            let end = frame.len();
            frame.resize(end + padding, 0xee);
            let offsets = walk(&frame).unwrap();
            prop_assert_eq!(usize::from(offsets.tags), packet.tags.len().min(2));
            if packet.tags.len() > 2 {
                prop_assert_eq!((offsets.ether_type, offsets.ip), (packet.tags[2].tpid, None));
                return Ok(());
            }
            let ip = offsets.ip.unwrap();
            let (payload, proto, _) = oracle(offsets.ether_type, &frame[packet.l3()..]);
            prop_assert_eq!(offsets.ether_type, ip_type(&packet));
            prop_assert_eq!((offsets.payload(), ip.l3()), (packet.l3(), packet.l3()));
            prop_assert_eq!((ip.l4(), ip.end()), (Some(packet.l4()), end));
            prop_assert_eq!(&frame[packet.l4()..end], payload);
            prop_assert_eq!((ip.proto, ip.fragment), (proto, Fragment::No));
        }

        #[test]
        fn fragments_are_told_apart(mut packet in packets::fragment()) {
            packet.tags.truncate(2);
            let frame = packet.bytes();
            let ip = walk(&frame).unwrap().ip.unwrap();
            let (_, proto, fragmented) = oracle(ip_type(&packet), &frame[packet.l3()..]);
            prop_assert_eq!(ip.fragment != Fragment::No, fragmented);
            let offset = match &packet.ip {
                IpHeaders::Ipv4(header, _) => header.fragment_offset.value(),
                IpHeaders::Ipv6(_, extensions) => extensions.fragment.as_ref().unwrap().fragment_offset.value(),
            };
            prop_assert_eq!(ip.fragment == Fragment::Later, offset > 0);
            let ipv6_later = offset > 0 && ip_type(&packet) == EtherType::IPV6;
            prop_assert_eq!(ip.proto, if ipv6_later { FRAGMENT } else { proto });
            prop_assert_eq!(ip.l4().is_some(), offset == 0);
        }

        #[test]
        fn a_cut_frame_has_no_ip_part(mut packet in packets::packet(64), cut in any::<prop::sample::Index>()) {
            packet.tags.truncate(2);
            let frame = packet.bytes();
            let len = cut.index(frame.len());
            match walk(&frame[..len]) {
                Err(malformed) => prop_assert!(len < ETHERNET && malformed == Malformed(len)),
                Ok(offsets) => prop_assert!(len >= ETHERNET && offsets.ip.is_none()),
            }
        }

        #[test]
        fn any_bytes_are_walked_within_bounds(
            head in prop::collection::vec(any::<u8>(), 0..14),
            types in prop::collection::vec(prop::sample::select(&[0x81u8, 0, 0x88, 0xa8, 8, 0x86, 0xdd, 0x45, 0x60][..]), 0..12),
            tail in prop::collection::vec(prop_oneof![Just(0u8), Just(43), Just(44), Just(51), any::<u8>()], 0..200),
        ) {
            let frame = [head, types, tail].concat();
            let Ok(offsets) = walk(&frame) else { return Ok(()) };
            prop_assert!((ETHERNET..=frame.len()).contains(&offsets.payload()));
            if let Some(ip) = offsets.ip {
                prop_assert!(ip.l3() + 20 <= ip.end() && ip.end() <= frame.len());
                prop_assert!(ip.l4().is_none_or(|l4| ip.l3() + 20 <= l4 && l4 <= ip.end()));
            }
        }
    }

    /// An Ethernet header without a type, then `rest`.
    fn frame(rest: &[u8]) -> Vec<u8> {
        [&[2; 12], rest].concat()
    }

    #[test]
    fn llc_and_snap_as_ovs_fields_7_has_them() {
        let type_and_payload = |rest: &[u8]| {
            let offsets = walk(&frame(rest)).unwrap();
            (offsets.ether_type, offsets.payload())
        };
        let snap = [0, 40, 0xaa, 0xaa, 3, 0, 0, 0, 0x08, 0x06];
        assert_eq!(type_and_payload(&snap), (EtherType::ARP, 22));
        assert_eq!(type_and_payload(&[&[0x81, 0, 0, 5][..], &snap].concat()), (EtherType::ARP, 26));
        let no_snap = (EtherType::NOT_ETH_II, 14);
        assert_eq!(type_and_payload(&[0, 40, 0x42, 0x42, 3, 0, 0, 0, 0, 0]), no_snap, "LLC of STP");
        assert_eq!(type_and_payload(&[0, 40, 0xaa, 0xaa, 3, 0, 0, 0x0c, 0x20, 0]), no_snap, "organization");
        assert_eq!(type_and_payload(&[0, 40, 0xaa, 0xaa, 3, 0, 0, 0, 0x05, 0xff]), no_snap, "a length");
        assert_eq!(type_and_payload(&snap[..9]), no_snap, "truncated");
    }

    #[test]
    fn a_truncated_tag_is_the_ether_type() {
        let offsets = walk(&frame(&[0x81, 0, 0, 5, 8])).unwrap();
        assert_eq!((offsets.tags, offsets.ether_type, offsets.payload()), (0, EtherType::VLAN, 14));
    }

    /// IPv6 with these next-header values, all in 8-byte headers, and UDP's header behind them.
    fn ipv6_chain(chain: &[u8]) -> Ip {
        let len = chain.len() as u8 * 8;
        let mut rest = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, len, chain[0], 64];
        rest.extend([0; 32]);
        chain[1..].iter().for_each(|next| rest.extend([*next, 0, 0, 0, 0, 0, 0, 0]));
        rest.extend([0; 8]);
        walk(&frame(&rest)).unwrap().ip.unwrap()
    }

    #[test]
    fn extension_chains_are_bounded() {
        let ip = ipv6_chain(&[0, 60, 60, 60, 60, 60, 60, 60, 17]);
        assert_eq!((ip.proto, ip.l4()), (IpProto::UDP, Some(14 + 40 + 8 * 8)));
        let ip = ipv6_chain(&[0, 60, 60, 60, 60, 60, 60, 60, 60, 17]);
        assert_eq!((ip.proto, ip.l4()), (DESTINATION_OPTIONS, None));
        let ip = ipv6_chain(&[60]);
        assert_eq!((ip.proto, ip.l4()), (IpProto(0), None), "the chain breaks off behind its first header");
    }

    #[test]
    fn lying_ip_headers_are_not_there() {
        let packet = |l3: [u8; 4]| walk(&frame(&[&[8, 0][..], &l3, &[0; 16]].concat())).unwrap().ip;
        assert_eq!(packet([0x45, 0, 0, 20]).unwrap().end(), 34);
        assert_eq!(packet([0x45, 0, 0, 21]), None, "longer than the frame");
        assert_eq!(packet([0x45, 0, 0, 19]), None, "shorter than its header");
        assert_eq!(packet([0x46, 0, 0, 20]), None, "options behind its end");
        assert_eq!(packet([0x44, 0, 0, 20]), None, "no whole header");
        assert_eq!(packet([0x65, 0, 0, 20]), None, "another version");
    }
}
