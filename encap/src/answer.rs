//! Answering in the name of a station who has an address: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861).
//!
//! The idea: a switch that knows a segment's stations need not flood their questions. The answer goes to the
//! Ethernet source of the question with its VLAN tags, and says what the station would say; so do Linux
//! (`br_arp_send`, `br_nd_send`) and OVN. Question in, answer out: the frame is left as it is.
//!
//! *Which* questions to answer is the caller's decision: not those by which a station announces itself
//! (gratuitous ARP: the sender's address is the target) or looks for duplicates (ARP probe: from 0.0.0.0),
//! which others want to see. A duplicate check in IPv6, from `::`, is refused here because there is nobody to
//! answer. Nor a solicitation for a router: the advertisement says that the station is none, and hosts then
//! stop using it as one (RFC 4861 section 7.2.5).
//!
//! Cost: constant but for the options of a solicitation, of eight bytes or more each, and its checksum.

use std::net::Ipv6Addr;

use thiserror::Error;

use crate::checksum::Sum;
use crate::field::{EtherType, IpProto, MacAddr};
use crate::offsets::walk;
use crate::reply::{self, L2, MAX_L2};

/// The most bytes of an answer: those of a neighbour advertisement behind two tags.
pub const MAX_LEN: usize = MAX_L2 + IPV6 + ADVERTISEMENT;

const IPV6: usize = 40;
/// ICMPv6 header, target, and the option with its link-layer address (RFC 4861 section 4.4).
const ADVERTISEMENT: usize = 8 + 16 + 8;

/// An ARP request of IPv4 over Ethernet, up to the sender's address.
const ARP_REQUEST: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 1];
/// The reply to it.
const ARP_REPLY: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 2];

/// ICMPv6 types.
const SOLICIT: u8 = 135;
const ADVERTISE: u8 = 136;
/// Flags of an advertisement: it was asked for, and it replaces what the asker knew.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// The option with the address of the target, and its length in units of eight bytes.
const TARGET_LINK_LAYER: [u8; 2] = [2, 1];

/// A frame that cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AnswerError {
    /// Neither ARP nor IPv6 in Ethernet II with at most two tags.
    #[error("frame of type {0} is neither ARP nor IPv6 in Ethernet II")]
    Type(EtherType),
    /// It came from a group of stations.
    #[error("question comes from the group address {0}")]
    Sender(MacAddr),
    /// It ends before its fixed part does.
    #[error("question of {0} bytes is truncated")]
    Truncated(usize),
    /// ARP about other addresses, or no request.
    #[error("ARP header {0:02x?} is not that of a request for IPv4 over Ethernet, {ARP_REQUEST:02x?}")]
    Arp([u8; 8]),
    /// The IPv6 header names something else. Solicitations have no extension headers (RFC 6980 section 5).
    #[error("IPv6 next header {0} is not ICMPv6, 58")]
    NextHeader(IpProto),
    /// The ICMPv6 header names something else.
    #[error("ICMPv6 type {kind}, code {code} is no neighbour solicitation, 135 and 0")]
    Message {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
    },
    /// It crossed a router, or was made by someone who is not on the link.
    #[error("neighbour solicitation has hop limit {0}, expected 255")]
    HopLimit(u8),
    /// It was damaged on its way.
    #[error("neighbour solicitation has a wrong checksum")]
    Checksum,
    /// An option without length, or one that ends behind the message.
    #[error("neighbour solicitation has an option of {0} times eight bytes")]
    Option(u8),
    /// A check for duplicates (`::`), or a lie.
    #[error("neighbour solicitation comes from {0}, where nobody can be answered")]
    Source(Ipv6Addr),
    /// Nobody has a group address.
    #[error("neighbour solicitation asks for {0}, which is not one station's")]
    Target(Ipv6Addr),
}

/// Writes the answer to an ARP request for an IPv4 address, or to a neighbour solicitation: the station `mac` has
/// it. Returns the answer's length in bytes, without padding.
///
/// A neighbour is advertised as solicited and overriding. A solicitation's checksum may be a partial one, for the
/// same reason as in [`crate::checksum::is_partial`].
///
/// # Errors
/// [`AnswerError`]: this is no such request, or none that RFC 4861 section 7.1.1 calls valid.
pub fn reply(frame: &[u8], mac: MacAddr, out: &mut [u8; MAX_LEN]) -> Result<usize, AnswerError> {
    let offsets = walk(frame).map_err(|_| AnswerError::Truncated(frame.len()))?;
    let l2 = L2::new(frame, &offsets).ok_or(AnswerError::Type(offsets.ether_type))?;
    if l2.src().is_multicast() {
        return Err(AnswerError::Sender(l2.src()));
    }
    let l3 = &frame[offsets.payload()..];
    match (offsets.ether_type, offsets.ip) {
        (EtherType::ARP, _) => arp(l2, l3, mac, out),
        (EtherType::IPV6, Some(ip)) => neighbour(l2, &frame[ip.l3()..ip.end()], mac, out),
        (EtherType::IPV6, None) => Err(AnswerError::Truncated(l3.len())),
        (other, _) => Err(AnswerError::Type(other)),
    }
}

fn arp(l2: L2, request: &[u8], mac: MacAddr, out: &mut [u8]) -> Result<usize, AnswerError> {
    let truncated = AnswerError::Truncated(request.len());
    let (header, addresses) = request.split_first_chunk().ok_or(truncated)?;
    let addresses: &[u8; 20] = addresses.first_chunk().ok_or(truncated)?;
    if *header != ARP_REQUEST {
        return Err(AnswerError::Arp(*header));
    }
    let (sender, target) = (&addresses[..10], &addresses[16..]);
    Ok(l2.reply(mac, &[&ARP_REPLY, &mac.0, target, sender], out))
}

fn neighbour(l2: L2, packet: &[u8], mac: MacAddr, out: &mut [u8]) -> Result<usize, AnswerError> {
    let Solicitation { source, target } = Solicitation::parse(packet)?;
    let message = [ADVERTISE, 0, 0, 0, SOLICITED | OVERRIDE, 0, 0, 0];
    let mut body = [0; ADVERTISEMENT - 8];
    body[..16].copy_from_slice(&target.octets());
    body[16..18].copy_from_slice(&TARGET_LINK_LAYER);
    body[18..].copy_from_slice(&mac.0);
    let (ip, message) = reply::icmpv6(target.octets(), source.octets(), message, &body);
    Ok(l2.reply(mac, &[&ip, &message, &body], out))
}

/// What a valid neighbour solicitation says: this one asks for that one.
struct Solicitation {
    source: Ipv6Addr,
    target: Ipv6Addr,
}

impl Solicitation {
    /// Reads an IPv6 packet.
    fn parse(packet: &[u8]) -> Result<Self, AnswerError> {
        let truncated = AnswerError::Truncated(packet.len());
        let (header, message) = packet.split_first_chunk::<IPV6>().ok_or(truncated)?;
        if header[6] != IpProto::ICMPV6.0 {
            return Err(AnswerError::NextHeader(IpProto(header[6])));
        }
        let (fixed, options) = message.split_first_chunk::<24>().ok_or(truncated)?;
        if fixed[..2] != [SOLICIT, 0] {
            return Err(AnswerError::Message { kind: fixed[0], code: fixed[1] });
        }
        if header[7] != 255 {
            return Err(AnswerError::HopLimit(header[7]));
        }
        let pseudo = Sum::pseudo_header(&header[8..], IpProto::ICMPV6, message.len());
        if !(pseudo + Sum::of(message)).verifies() && fixed[2..4] != pseudo.partial() {
            return Err(AnswerError::Checksum);
        }
        check_options(options)?;
        let source = individual(&header[8..24]).map_err(AnswerError::Source)?;
        let target = individual(&fixed[8..24]).map_err(AnswerError::Target)?;
        Ok(Solicitation { source, target })
    }
}

/// The address, if it is one station's.
fn individual(octets: &[u8]) -> Result<Ipv6Addr, Ipv6Addr> {
    let address = octets.first_chunk::<16>().map_or(Ipv6Addr::UNSPECIFIED, |octets| Ipv6Addr::from(*octets));
    if reply::is_individual(address.into()) { Ok(address) } else { Err(address) }
}

/// Checks that the options fill what is left of a message (RFC 4861 section 4.6).
fn check_options(mut options: &[u8]) -> Result<(), AnswerError> {
    loop {
        options = match *options {
            [] => return Ok(()),
            [_] | [_, 0, ..] => return Err(AnswerError::Option(0)),
            [_, len, ..] => options.get(usize::from(len) * 8..).ok_or(AnswerError::Option(len))?,
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, Icmpv6Repr, Ipv6Packet, Ipv6Repr,
        NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
    };

    use super::*;
    use crate::field::VlanTag;
    use crate::packets;

    const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const FROM: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const WHO: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    /// The solicited-node group of [`WHO`].
    const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);

    /// An Ethernet header with these tags in front of `l3`.
    fn framed(tags: &[VlanTag], ether_type: EtherType, l3: &[u8]) -> Vec<u8> {
        let mut frame = [&[0xff; 6], &ASKER[..]].concat();
        for tag in tags {
            frame.extend(tag.tpid.0.to_be_bytes());
            frame.extend(tag.tci.to_be_bytes());
        }
        frame.extend(ether_type.0.to_be_bytes());
        frame.extend(l3);
        frame
    }

    fn answered(frame: &[u8]) -> Result<Vec<u8>, AnswerError> {
        let mut out = [0xee; MAX_LEN];
        let len = reply(frame, STATION, &mut out)?;
        assert!(out[len..].iter().all(|octet| *octet == 0xee), "wrote behind the end");
        Ok(out[..len].to_vec())
    }

    /// The layer 3 of the answer to a question with this L2 header, which is checked.
    fn l3_of_answer(frame: &[u8], l3: usize) -> Result<Vec<u8>, AnswerError> {
        let answer = answered(frame)?;
        assert_eq!(answer[..12], [ASKER, STATION.0].concat());
        assert_eq!(answer[12..l3], frame[12..l3], "tags and type");
        Ok(answer[l3..].to_vec())
    }

    /// What smoltcp asks.
    fn arp_request(from: [u8; 4], who: [u8; 4]) -> [u8; 28] {
        let mut bytes = [0; 28];
        let request = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(ASKER),
            source_protocol_addr: from.into(),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: who.into(),
        };
        request.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        bytes
    }

    /// What etherparse makes of a solicitation with these options.
    fn solicitation(from: Ipv6Addr, who: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let ip = PacketBuilder::ipv6(from.octets(), GROUP.octets(), 255);
        let body = [&who.octets(), options].concat();
        ip.icmpv6_raw(135, 0, [0; 4]).write(&mut packet, &body).unwrap();
        packet
    }

    /// The advertisement that smoltcp reads. It checks lengths and checksum.
    fn read(packet: &[u8]) -> (Ipv6Repr, NdiscRepr<'_>) {
        let packet = Ipv6Packet::new_checked(packet).unwrap();
        let ip = Ipv6Repr::parse(&packet).unwrap();
        let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        let checks = ChecksumCapabilities::default();
        let Icmpv6Repr::Ndisc(message) =
            Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &icmp, &checks).unwrap()
        else {
            panic!("no neighbour discovery")
        };
        (ip, message)
    }

    fn options() -> impl Strategy<Value = Vec<u8>> {
        let option = (any::<u8>(), 1u8..4).prop_map(|(kind, len)| {
            let mut option = vec![7; usize::from(len) * 8];
            option[..2].copy_from_slice(&[kind, len]);
            option
        });
        vec(option, 0..4).prop_map(|options| options.concat())
    }

    proptest! {
        #[test]
        fn smoltcp_understands_arp_answers(
            from in any::<[u8; 4]>(), who in any::<[u8; 4]>(), tags in vec(packets::tag(), 0..=2), padding in 0usize..20
        ) {
            let mut frame = framed(&tags, EtherType::ARP, &arp_request(from, who));
            frame.resize(frame.len() + padding, 0);
            let l3 = l3_of_answer(&frame, 14 + 4 * tags.len()).unwrap();
            prop_assert_eq!(l3.len(), 28);
            let expected = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: EthernetAddress(STATION.0),
                source_protocol_addr: who.into(),
                target_hardware_addr: EthernetAddress(ASKER),
                target_protocol_addr: from.into(),
            };
            prop_assert_eq!(ArpRepr::parse(&ArpPacket::new_checked(&l3).unwrap()), Ok(expected));
        }

        #[test]
        fn smoltcp_understands_advertisements(
            from in any::<[u8; 16]>(), who in any::<[u8; 16]>(), tags in vec(packets::tag(), 0..=2), options in options()
        ) {
            let (from, who) = (Ipv6Addr::from(from), Ipv6Addr::from(who));
            let frame = framed(&tags, EtherType::IPV6, &solicitation(from, who, &options));
            let l3 = match l3_of_answer(&frame, 14 + 4 * tags.len()) {
                Err(AnswerError::Source(source)) => {
                    prop_assert!(source == from && from.is_multicast());
                    return Ok(());
                }
                Err(AnswerError::Target(target)) => {
                    prop_assert!(target == who && who.is_multicast());
                    return Ok(());
                }
                answer => answer.unwrap(),
            };
            let (ip, message) = read(&l3);
            prop_assert_eq!((ip.src_addr, ip.dst_addr, ip.hop_limit), (who, from, 255));
            prop_assert_eq!(ip.payload_len + 40, l3.len());
            let lladdr = Some(RawHardwareAddress::from_bytes(&STATION.0));
            let flags = NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE;
            prop_assert_eq!(message, NdiscRepr::NeighborAdvert { flags, target_addr: who, lladdr });
        }

        #[test]
        fn truncated_questions_are_not_answered(cut in any::<prop::sample::Index>(), options in options()) {
            let questions = [
                framed(&[], EtherType::ARP, &arp_request([10, 0, 0, 1], [10, 0, 0, 2])),
                framed(&[], EtherType::IPV6, &solicitation(FROM, WHO, &options)),
            ];
            for frame in questions {
                let cut = cut.index(frame.len());
                prop_assert!(matches!(answered(&frame[..cut]), Err(AnswerError::Truncated(len)) if len <= cut));
            }
        }

        #[test]
        fn damaged_solicitations_are_not_answered(at in 8usize..72, bit in 0u8..8) {
            let mut packet = solicitation(FROM, WHO, &[1, 1, 2, 0, 0, 0, 0, 1]);
            packet[at] ^= 1 << bit;
            let error = answered(&framed(&[], EtherType::IPV6, &packet)).unwrap_err();
            let is_noticed = matches!(error, AnswerError::Checksum | AnswerError::Message { .. });
            prop_assert!(is_noticed, "{error}");
        }

        #[test]
        fn hostile_questions_do_no_harm(
            tags in vec(packets::tag(), 0..=3),
            options in vec(prop_oneof![0u8..4, any::<u8>()], 0..40),
            noise in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            is_arp in any::<bool>(),
        ) {
            let mut frame = match is_arp {
                true => framed(&tags, EtherType::ARP, &arp_request([10, 0, 0, 1], [10, 0, 0, 2])),
                false => framed(&tags, EtherType::IPV6, &solicitation(FROM, WHO, &options)),
            };
            noise.iter().for_each(|(at, octet)| *at.get_mut(&mut frame[..]) = *octet);
            let before = answered(&frame);
            frame.extend([0; 3]);
            prop_assert!(before.is_err() || answered(&frame) == before, "padding matters");
        }
    }

    #[test]
    fn an_arp_answer_byte_by_byte() {
        let tag = VlanTag { tpid: EtherType::VLAN, tci: 0x6065 };
        let frame = framed(&[tag], EtherType::ARP, &arp_request([10, 0, 0, 1], [10, 0, 0, 2]));
        let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0x00, 0x60, 0x65, 0x08, 0x06];
        let station = [2, 0, 0, 0, 0, 2, 10, 0, 0, 2];
        let asker = [2, 0, 0, 0, 0, 1, 10, 0, 0, 1];
        let expected = [&ethernet[..], &[0, 1, 8, 0, 6, 4, 0, 2], &station, &asker].concat();
        assert_eq!(answered(&frame), Ok(expected));
    }

    #[test]
    fn an_advertisement_byte_by_byte() {
        let answer = answered(&framed(&[], EtherType::IPV6, &solicitation(FROM, WHO, &[]))).unwrap();
        assert_eq!(answer[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(answer[22..54], [WHO.octets(), FROM.octets()].concat());
        assert_eq!((&answer[54..56], &answer[58..62]), (&[136, 0][..], &[0x60, 0, 0, 0][..]));
        assert_eq!(answer[62..], [&WHO.octets()[..], &[2, 1, 2, 0, 0, 0, 0, 2]].concat());
        // 2 * fe80 + 1 + 2 (addresses) + 20 + 3a (pseudo header) + 8800 + 6000 + fe80 + 2 + 201 + 200 + 2 (message)
        assert_eq!(answer[56..58], (!0xe7e5u16).to_be_bytes());
    }

    #[test]
    fn only_arp_requests_are_answered() {
        let request = arp_request([10, 0, 0, 1], [10, 0, 0, 2]);
        for at in 0..8 {
            let mut other = request;
            other[at] ^= 2;
            let header = *other.first_chunk().unwrap();
            assert_eq!(answered(&framed(&[], EtherType::ARP, &other)), Err(AnswerError::Arp(header)));
        }
    }

    #[test]
    fn invalid_solicitations_are_not_answered() {
        let error = |packet: &[u8]| answered(&framed(&[], EtherType::IPV6, packet)).unwrap_err();
        let asking = |from, who| error(&solicitation(from, who, &[]));
        let unspecified = Ipv6Addr::UNSPECIFIED;
        assert_eq!(asking(unspecified, WHO), AnswerError::Source(unspecified), "duplicate address detection");
        assert_eq!(asking(FROM, GROUP), AnswerError::Target(GROUP));
        assert_eq!(error(&solicitation(FROM, WHO, &[1, 0, 0, 0, 0, 0, 0, 0])), AnswerError::Option(0));
        assert_eq!(error(&solicitation(FROM, WHO, &[1, 2, 0, 0, 0, 0, 0, 0])), AnswerError::Option(2));
        assert_eq!(error(&solicitation(FROM, WHO, &[1])), AnswerError::Option(0));
        let mut forwarded = solicitation(FROM, WHO, &[]);
        forwarded[7] = 254;
        assert_eq!(error(&forwarded), AnswerError::HopLimit(254));
        let mut udp = solicitation(FROM, WHO, &[]);
        udp[6] = 17;
        assert_eq!(error(&udp), AnswerError::NextHeader(IpProto::UDP));
        let mut advertisement = solicitation(FROM, WHO, &[]);
        advertisement[40] = 136;
        assert_eq!(error(&advertisement), AnswerError::Message { kind: 136, code: 0 });
    }

    #[test]
    fn a_checksum_left_to_a_card_is_right() {
        let mut packet = solicitation(FROM, WHO, &[]);
        let expected = answered(&framed(&[], EtherType::IPV6, &packet));
        let pseudo = Sum::pseudo_header(&packet[8..40], IpProto::ICMPV6, packet.len() - 40);
        packet[42..44].copy_from_slice(&pseudo.partial());
        assert_eq!(answered(&framed(&[], EtherType::IPV6, &packet)), expected);
        assert!(expected.is_ok());
    }

    #[test]
    fn what_asks_for_no_address_is_not_answered() {
        assert_eq!(answered(&packets::example().bytes()), Err(AnswerError::Type(EtherType::IPV4)));
        assert_eq!(answered(&[2; 13]), Err(AnswerError::Truncated(13)));
        let request = arp_request([10, 0, 0, 1], [10, 0, 0, 2]);
        let mut frame = framed(&[], EtherType::ARP, &request);
        frame[6] |= 1;
        assert_eq!(answered(&frame), Err(AnswerError::Sender(MacAddr([3, 0, 0, 0, 0, 1]))));
        let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 0x08, 0x06][..], &request].concat();
        assert_eq!(answered(&framed(&[], EtherType(36), &snap)), Err(AnswerError::Type(EtherType::ARP)));
        let tag = VlanTag { tpid: EtherType::VLAN, tci: 1 };
        let frame = framed(&[tag; 3], EtherType::ARP, &request);
        assert_eq!(answered(&frame), Err(AnswerError::Type(EtherType::VLAN)));
    }
}
