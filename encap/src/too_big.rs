//! Telling the sender of a packet that it is too big for where it goes: ICMP "fragmentation needed" (RFC 792,
//! RFC 1191 section 4) and ICMPv6 "packet too big" (RFC 4443 section 3.2).
//!
//! The idea: a switch has no address of its own in a segment, so the message comes from the packet's destination,
//! and goes back by the Ethernet addresses it came with. So does Linux for tunnels under a bridge
//! (`iptunnel_pmtud_build_icmp` and its sister). It quotes as much as one may: 576 bytes in all in IPv4 (RFC
//! 1812 section 4.3.2.3), 1280 in IPv6 (RFC 4443 section 2.4). Cost: a copy and a sum of those.

use std::net::IpAddr;

use crate::field::{EtherType, IpProto};
use crate::offsets::walk;
use crate::reply::{self, L2, MAX_L2};

/// The most bytes of a message: one about IPv6 behind two tags.
pub const MAX_LEN: usize = MAX_L2 + MAX_V6;

/// The longest messages about IPv4 and IPv6, IP header included.
const MAX_V4: usize = 576;
const MAX_V6: usize = 1280;

/// What every link carries (RFC 791 section 3.2, RFC 8200 section 5): senders do not go below it, whatever we say.
const MIN_MTU_V4: u16 = 68;
const MIN_MTU_V6: u16 = 1280;

/// Writes a frame that tells the sender of `frame` that its IP packet is longer than `mtu` bytes, IP header
/// included. Returns the length of that frame, which has the same VLAN tags.
///
/// `None` if there is nothing to tell, as the packet fits into `mtu`, into 68 bytes (IPv4) or 1280 (IPv6); or
/// nobody to be told (RFC 1122 section 3.2.2, RFC 4443 section 2.4): it is no IP, or IPv4 that may be fragmented;
/// an ICMP error, a later fragment, truncated; or an address is that of a group.
pub fn reply(frame: &[u8], mtu: u16, out: &mut [u8; MAX_LEN]) -> Option<usize> {
    let offsets = walk(frame).ok()?;
    let l2 = L2::new(frame, &offsets).filter(|l2| !l2.src().is_multicast() && !l2.dst().is_multicast())?;
    let ip = offsets.ip?;
    if is_error(ip.proto, frame[ip.l4()?..ip.end()].first().copied()) {
        return None;
    }
    let packet = &frame[ip.l3()..ip.end()];
    match offsets.ether_type {
        EtherType::IPV4 => about_ipv4(l2, packet, mtu, out),
        _ => about_ipv6(l2, packet, mtu, out),
    }
}

/// True for messages that no error is to be reported about.
fn is_error(proto: IpProto, kind: Option<u8>) -> bool {
    match (proto, kind) {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        (IpProto::ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        // All errors, and redirect.
        (IpProto::ICMPV6, Some(kind)) => matches!(kind, 0..128 | 137),
        _ => false,
    }
}

fn about_ipv4(l2: L2, packet: &[u8], mtu: u16, out: &mut [u8; MAX_LEN]) -> Option<usize> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let dont_fragment = header[6] & 0x40 != 0;
    let mtu = mtu.max(MIN_MTU_V4);
    if !dont_fragment || packet.len() <= usize::from(mtu) {
        return None;
    }
    let (src, dst) = stations(&header[12..])?;
    let [high, low] = mtu.to_be_bytes();
    let quote = &packet[..packet.len().min(MAX_V4 - 28)];
    let (ip, message) = reply::icmpv4(dst, src, [3, 4, 0, 0, 0, 0, high, low], quote);
    Some(l2.reply(l2.dst(), &[&ip, &message, quote], out))
}

fn about_ipv6(l2: L2, packet: &[u8], mtu: u16, out: &mut [u8; MAX_LEN]) -> Option<usize> {
    let header: &[u8; 40] = packet.first_chunk()?;
    let mtu = mtu.max(MIN_MTU_V6);
    if packet.len() <= usize::from(mtu) {
        return None;
    }
    let (src, dst) = stations(&header[8..])?;
    let [high, low] = mtu.to_be_bytes();
    let quote = &packet[..packet.len().min(MAX_V6 - 48)];
    let (ip, message) = reply::icmpv6(dst, src, [2, 0, 0, 0, 0, 0, high, low], quote);
    Some(l2.reply(l2.dst(), &[&ip, &message, quote], out))
}

/// The source and destination address at the start of `addresses`, if both are of one station.
fn stations<const N: usize>(addresses: &[u8]) -> Option<([u8; N], [u8; N])>
where
    IpAddr: From<[u8; N]>,
{
    let (src, rest) = addresses.split_first_chunk()?;
    let (src, dst) = (*src, *rest.first_chunk()?);
    [src, dst].into_iter().all(|octets| reply::is_individual(octets.into())).then_some((src, dst))
}

#[cfg(test)]
mod tests {
    use etherparse::{IpHeaders, IpNumber, Ipv6RawExtHeader, TcpHeader};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        EthernetFrame, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet,
        IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
    };

    use super::*;
    use crate::packets::{self, Packet, Transport, over_ipv6};

    const V4: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];
    const V6: [[u8; 16]; 2] = [[0xfd; 16], [0xfe; 16]];

    /// The packet between two stations, not to be fragmented.
    fn between_stations(mut packet: Packet) -> Packet {
        match &mut packet.ip {
            IpHeaders::Ipv4(header, _) => {
                [header.source, header.destination] = V4;
                header.dont_fragment = true;
            }
            IpHeaders::Ipv6(header, _) => [header.source, header.destination] = V6,
        }
        packet
    }

    fn told(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
        let mut out = [0xee; MAX_LEN];
        let len = reply(frame, mtu, &mut out)?;
        assert!(out[len..].iter().all(|octet| *octet == 0xee), "wrote behind the end");
        Some(out[..len].to_vec())
    }

    /// What smoltcp reads: MTU and quote. It checks lengths and checksums.
    fn read(packet: &Packet, reply: &[u8]) -> (u32, Vec<u8>) {
        let sent = packet.bytes();
        let ethernet = EthernetFrame::new_checked(reply).unwrap();
        assert_eq!(ethernet.src_addr().as_bytes(), &sent[..6]);
        assert_eq!(ethernet.dst_addr().as_bytes(), &sent[6..12]);
        let l3 = packet.l3();
        assert_eq!(reply[12..l3], sent[12..l3], "tags and type");
        match packet.ip {
            IpHeaders::Ipv4(..) => read_ipv4(&reply[l3..]),
            IpHeaders::Ipv6(..) => read_ipv6(&reply[l3..]),
        }
    }

    fn read_ipv4(reply: &[u8]) -> (u32, Vec<u8>) {
        assert!(reply.len() <= 576);
        let packet = Ipv4Packet::new_checked(reply).unwrap();
        let ip = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
        assert_eq!([ip.dst_addr.octets(), ip.src_addr.octets()], V4);
        assert_eq!((ip.next_header, ip.payload_len + 20), (IpProtocol::Icmp, reply.len()));
        let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!(icmp.msg_type(), Icmpv4Message::DstUnreachable);
        assert_eq!(icmp.msg_code(), Icmpv4DstUnreachable::FragRequired.into());
        // smoltcp does not know RFC 1191: two unused bytes, then the MTU.
        assert_eq!(reply[24..26], [0, 0]);
        (u16::from_be_bytes([reply[26], reply[27]]).into(), icmp.data().to_vec())
    }

    fn read_ipv6(reply: &[u8]) -> (u32, Vec<u8>) {
        assert!(reply.len() <= 1280);
        let packet = Ipv6Packet::new_checked(reply).unwrap();
        let ip = Ipv6Repr::parse(&packet).unwrap();
        assert_eq!([ip.dst_addr.octets(), ip.src_addr.octets()], V6);
        assert_eq!((ip.next_header, ip.payload_len + 40), (IpProtocol::Icmpv6, reply.len()));
        let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
        assert!(icmp.verify_checksum(&ip.src_addr, &ip.dst_addr));
        assert_eq!((icmp.msg_type(), icmp.msg_code()), (Icmpv6Message::PktTooBig, 0));
        (icmp.pkt_too_big_mtu(), icmp.payload().to_vec())
    }

    proptest! {
        #[test]
        fn senders_are_told_what_smoltcp_reads(packet in packets::packet(1800), mtu in 0u16..1700, padding in 0usize..9) {
            let packet = between_stations(packet);
            let mut frame = packet.bytes();
            let sent = frame[packet.l3()..].to_vec();
            frame.extend(&[0xdd; 9][..padding]);
            let (least, quoted) = match packet.ip {
                IpHeaders::Ipv4(..) => (68, 576 - 28),
                IpHeaders::Ipv6(..) => (1280, 1280 - 48),
            };
            let mtu_told = mtu.max(least);
            let reply = told(&frame, mtu);
            prop_assert_eq!(reply.is_some(), packet.tags.len() <= 2 && sent.len() > mtu_told.into());
            let Some(reply) = reply else { return Ok(()) };
            let (mtu_read, quote) = read(&packet, &reply);
            prop_assert_eq!(mtu_read, u32::from(mtu_told));
            prop_assert_eq!(&quote[..], &sent[..sent.len().min(quoted)]);
        }

        #[test]
        fn nobody_is_told_about_a_message(packet in packets::packet(1800), mtu in 0u16..1000) {
            if let Some(reply) = told(&between_stations(packet).bytes(), mtu) {
                prop_assert_eq!(told(&reply, 68), None);
            }
        }

        #[test]
        fn fragments_are_told_once(packet in packets::fragment()) {
            let mut packet = between_stations(packet);
            packet.tags.truncate(2);
            packet.payload.resize(1500, 7);
            let offset = match &packet.ip {
                IpHeaders::Ipv4(header, _) => header.fragment_offset.value(),
                IpHeaders::Ipv6(_, extensions) => extensions.fragment.as_ref().unwrap().fragment_offset.value(),
            };
            prop_assert_eq!(told(&packet.bytes(), 1400).is_some(), offset == 0);
        }

        #[test]
        fn hostile_frames_do_no_harm(
            packet in packets::packet(1500),
            noise in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in prop_oneof![Just(0), 0usize..1600],
            mtu in any::<u16>(),
        ) {
            let mut frame = between_stations(packet).bytes();
            noise.iter().for_each(|(at, octet)| *at.get_mut(&mut frame[..]) = *octet);
            frame.truncate(frame.len().saturating_sub(cut));
            told(&frame, mtu);
        }
    }

    /// TCP of 1500 bytes over either.
    fn big() -> [Packet; 2] {
        let tcp = Transport::Tcp(TcpHeader::new(40000, 80, 1, 8192));
        let packet = Packet { transport: tcp, payload: vec![7; 1460], ..packets::example() };
        [packet.clone(), over_ipv6(packet)].map(between_stations)
    }

    #[test]
    fn only_stations_are_told() {
        for packet in big() {
            let frame = packet.bytes();
            assert!(told(&frame, 1450).is_some());
            let (src, dst) = match packet.ip {
                IpHeaders::Ipv4(..) => (26, 30),
                IpHeaders::Ipv6(..) => (22, 38),
            };
            let first_octets: &[u8] = if dst == 30 { &[0, 127, 224, 255] } else { &[0xff] };
            let mut changes: Vec<_> =
                first_octets.iter().flat_map(|octet| [(src, *octet), (dst, *octet)]).collect();
            changes.extend([(0, 0xff), (6, 3)]);
            for (at, octet) in changes {
                let mut frame = frame.clone();
                frame[at] = octet;
                assert_eq!(told(&frame, 1450), None, "{octet} at {at}");
            }
        }
        let [_, packet] = big();
        let mut frame = packet.bytes();
        frame[22..38].fill(0);
        assert_eq!(told(&frame, 1450), None, "from ::");
    }

    #[test]
    fn ipv4_that_may_be_fragmented_is_not_complained_about() {
        let [mut packet, _] = big();
        let IpHeaders::Ipv4(header, _) = &mut packet.ip else { unreachable!("just made") };
        header.dont_fragment = false;
        assert_eq!(told(&packet.bytes(), 1450), None);
    }

    #[test]
    fn errors_are_not_complained_about() {
        for mut packet in big() {
            packet.transport = Transport::Icmp;
            let mut frame = packet.bytes();
            let errors: Vec<u8> = match packet.ip {
                IpHeaders::Ipv4(..) => vec![3, 4, 5, 11, 12],
                IpHeaders::Ipv6(..) => (0..128).chain([137]).collect(),
            };
            for kind in 0..=255 {
                frame[packet.l4()] = kind;
                assert_eq!(told(&frame, 1450).is_none(), errors.contains(&kind), "type {kind}");
            }
        }
    }

    #[test]
    fn a_chain_that_hides_an_error_is_not_complained_about() {
        let [_, mut packet] = big();
        let IpHeaders::Ipv6(_, extensions) = &mut packet.ip else { unreachable!("just made") };
        let options = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[0; 6]).unwrap();
        extensions.hop_by_hop_options = Some(options);
        let mut frame = packet.bytes();
        assert!(told(&frame, 1450).is_some());
        frame[packet.l3() + 41] = 255;
        assert_eq!(told(&frame, 1450), None);
    }

    #[test]
    fn the_headers_byte_by_byte() {
        let [packet, _] = big();
        let reply = told(&packet.bytes(), 1450).unwrap();
        let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
        let ip = [0x45, 0, 0x02, 0x40, 0, 0, 0x40, 0, 255, 1, 0x65, 0xba, 10, 0, 0, 2, 10, 0, 0, 1];
        assert_eq!(reply[..34], [&ethernet[..], &ip].concat());
        assert_eq!((&reply[34..36], &reply[38..42]), (&[3, 4][..], &[0, 0, 0x05, 0xaa][..]));
        assert_eq!(reply.len(), 14 + 576);
    }
}
