//! What an endpoint reads on its wire and says there: ARP (RFC 826, RFC 5227), neighbour discovery (RFC 4861) and the
//! messages of path MTU discovery (RFC 1191, RFC 8201).
//!
//! [`read`] looks at each byte at most twice (checksums); whatever does not parse says nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::field::MacAddr;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable,
    Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv6Packet,
    Ipv6Repr, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

/// Ethernet header bytes.
pub const ETHERNET: usize = 14;

/// What a frame says to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// `asker` wants to know who has `target` (ARP request, neighbour solicitation).
    Question {
        /// The address asked for.
        target: IpAddr,
        /// Who asks; an unspecified address is one who wants to take `target` for itself.
        asker: IpAddr,
        /// Where the answer goes; `None`: to all nodes.
        mac: Option<MacAddr>,
    },
    /// `mac` has `address` (ARP reply, neighbour advertisement).
    Answer {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        mac: MacAddr,
        /// How far it is to be believed.
        weight: Weight,
    },
    /// A packet of ours did not fit (ICMP type 3 code 4, ICMPv6 type 2).
    TooBig(TooBig),
}

/// How far an answer is to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It answers a question, to us alone.
    Solicited,
    /// Nobody asked, but it says that it holds whatever was known before (gratuitous ARP, override flag).
    Override,
    /// Nobody asked.
    Hint,
}

/// A packet of ours did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig {
    /// Our address.
    pub local: IpAddr,
    /// Where it was going.
    pub remote: IpAddr,
    /// The UDP port it was going to; `None`: it was GRE.
    pub udp_port: Option<u16>,
    /// How long it was, as an IP packet. Bytes.
    pub len: u32,
    /// What would have fitted. Bytes.
    pub mtu: u32,
}

/// What a frame, its Ethernet header first, says.
pub fn read(frame: &[u8]) -> Option<Said> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        EthernetProtocol::Arp => {
            let to_one = ethernet.dst_addr().is_unicast();
            read_arp(ethernet.payload(), if to_one { Weight::Solicited } else { Weight::Override })
        }
        EthernetProtocol::Ipv4 => read_ipv4(ethernet.payload()),
        EthernetProtocol::Ipv6 => read_ipv6(ethernet.payload(), station(ethernet.src_addr())),
        _ => None,
    }
}

/// A gratuitous ARP, request or reply, says who has the sender's address.
fn read_arp(packet: &[u8], weight: Weight) -> Option<Said> {
    let repr = ArpRepr::parse(&ArpPacket::new_checked(packet).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = repr
    else {
        return None;
    };
    let mac = station(source_hardware_addr)?;
    let (sender, target) = (IpAddr::V4(source_protocol_addr), IpAddr::V4(target_protocol_addr));
    match operation {
        ArpOperation::Request if sender == target => {
            Some(Said::Answer { address: sender, mac, weight: Weight::Override })
        }
        ArpOperation::Request => Some(Said::Question { target, asker: sender, mac: Some(mac) }),
        ArpOperation::Reply => Some(Said::Answer { address: sender, mac, weight }),
        ArpOperation::Unknown(_) => None,
    }
}

fn read_ipv4(packet: &[u8]) -> Option<Said> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    let whole = !ip.more_frags() && ip.frag_offset() == 0 && ip.verify_checksum();
    if ip.next_header() != IpProtocol::Icmp || !whole {
        return None;
    }
    let icmp = Icmpv4Packet::new_checked(ip.payload()).ok()?;
    let fragmentation = u8::from(Icmpv4DstUnreachable::FragRequired);
    let too_big = icmp.msg_type() == Icmpv4Message::DstUnreachable && icmp.msg_code() == fragmentation;
    if !too_big || !icmp.verify_checksum() {
        return None;
    }
    // RFC 1191 section 4: the next-hop MTU is in the low half of the word that RFC 792 left unused.
    let mtu = u16::from_be_bytes(ip.payload().get(6..8)?.try_into().ok()?);
    quoted_v4(ip.payload().get(8..)?, mtu.into())
}

/// The start of our packet, as the message quotes it: the IP header and eight bytes at least (RFC 792).
fn quoted_v4(quote: &[u8], mtu: u32) -> Option<Said> {
    let header = usize::from(quote.first()? & 0xf) * 4;
    if quote[0] >> 4 != 4 || header < 20 || quote.len() < header + 8 {
        return None;
    }
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&quote[at..at + 4]).expect("four bytes"));
    Some(Said::TooBig(TooBig {
        local: address(12),
        remote: address(16),
        udp_port: udp_port(quote[9], &quote[header..])?,
        len: u16::from_be_bytes([quote[2], quote[3]]).into(),
        mtu,
    }))
}

/// The destination port of UDP, none for GRE; nothing else can be ours.
fn udp_port(protocol: u8, payload: &[u8]) -> Option<Option<u16>> {
    match IpProtocol::from(protocol) {
        IpProtocol::Udp => Some(Some(u16::from_be_bytes([payload[2], payload[3]]))),
        IpProtocol::Unknown(GRE) => Some(None),
        _ => None,
    }
}

/// IP protocol 47.
const GRE: u8 = 47;

fn read_ipv6(packet: &[u8], sender: Option<MacAddr>) -> Option<Said> {
    let packet = Ipv6Packet::new_checked(packet).ok()?;
    let ip = Ipv6Repr::parse(&packet).ok()?;
    if ip.next_header != IpProtocol::Icmpv6 {
        return None;
    }
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    match icmp.msg_type() {
        Icmpv6Message::PktTooBig if icmp.verify_checksum(&ip.src_addr, &ip.dst_addr) => {
            quoted_v6(packet.payload().get(8..)?, icmp.pkt_too_big_mtu())
        }
        // RFC 4861 section 7.1: a hop limit of 255 proves that no router passed it on.
        Icmpv6Message::NeighborSolicit | Icmpv6Message::NeighborAdvert if ip.hop_limit == 255 => {
            let repr = Icmpv6Repr::parse(&ip.src_addr, &ip.dst_addr, &icmp, &ChecksumCapabilities::default());
            let Icmpv6Repr::Ndisc(repr) = repr.ok()? else { return None };
            read_discovery(&ip, repr, sender)
        }
        _ => None,
    }
}

fn quoted_v6(quote: &[u8], mtu: u32) -> Option<Said> {
    if quote.len() < 48 || quote[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&quote[at..at + 16]).expect("sixteen bytes"));
    Some(Said::TooBig(TooBig {
        local: address(8),
        remote: address(24),
        udp_port: udp_port(quote[6], &quote[40..])?,
        len: 40 + u32::from(u16::from_be_bytes([quote[4], quote[5]])),
        mtu,
    }))
}

fn read_discovery(ip: &Ipv6Repr, repr: NdiscRepr, sender: Option<MacAddr>) -> Option<Said> {
    match repr {
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            let (target, asker) = (IpAddr::V6(target_addr), IpAddr::V6(ip.src_addr));
            // Who asks us alone has our MAC address already, and may leave its own out (section 4.3).
            let sender = sender.filter(|_| !ip.dst_addr.is_multicast());
            let mac = lladdr.and_then(|raw| option(&raw)).or(sender);
            let sound = mac.is_some() || ip.src_addr.is_unspecified();
            sound.then_some(Said::Question { target, asker, mac })
        }
        NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } => {
            let weight = if flags.contains(NdiscNeighborFlags::SOLICITED) && !ip.dst_addr.is_multicast() {
                Weight::Solicited
            } else if flags.contains(NdiscNeighborFlags::OVERRIDE) {
                Weight::Override
            } else {
                Weight::Hint
            };
            let mac = option(&lladdr?)?;
            Some(Said::Answer { address: target_addr.into(), mac, weight })
        }
        _ => None,
    }
}

/// A link-layer address option that holds the address of one station.
fn option(raw: &RawHardwareAddress) -> Option<MacAddr> {
    station(EthernetAddress(raw.as_bytes().get(..6)?.try_into().ok()?))
}

fn station(address: EthernetAddress) -> Option<MacAddr> {
    (address.is_unicast() && address.0 != [0; 6]).then_some(MacAddr(address.0))
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker {
    /// MAC address.
    pub mac: MacAddr,
    /// IP address.
    pub address: IpAddr,
}

/// Asks who has `target`: everybody, or the one that had it last. `None` if the addresses are of two families.
pub fn question(speaker: Speaker, target: IpAddr, to: Option<MacAddr>) -> Option<Vec<u8>> {
    match (speaker.address, target) {
        (IpAddr::V4(own), IpAddr::V4(target)) => {
            let repr = arp(ArpOperation::Request, (speaker.mac, own), (MacAddr([0; 6]), target));
            Some(arp_frame(repr, (to.unwrap_or(MacAddr::BROADCAST), speaker.mac)))
        }
        (IpAddr::V6(own), IpAddr::V6(target)) => {
            let lladdr = Some(EthernetAddress(speaker.mac.0).into());
            let solicit = NdiscRepr::NeighborSolicit { target_addr: target, lladdr };
            let group = solicited_node(target);
            let (mac, dst) = to.map_or((multicast(group), group), |mac| (mac, target));
            Some(discovery_frame((speaker.mac, own), (mac, dst), solicit))
        }
        _ => None,
    }
}

/// Answers that the speaker has the address: to the asker, or to all if it has none yet.
pub fn answer(speaker: Speaker, asker: IpAddr, to: Option<MacAddr>) -> Option<Vec<u8>> {
    match (speaker.address, asker) {
        (IpAddr::V4(own), IpAddr::V4(asker)) => {
            let mac = to?;
            let repr = arp(ArpOperation::Reply, (speaker.mac, own), (mac, asker));
            Some(arp_frame(repr, (mac, speaker.mac)))
        }
        (IpAddr::V6(own), IpAddr::V6(asker)) => {
            let nobody = asker.is_unspecified();
            let solicited = if nobody { NdiscNeighborFlags::empty() } else { NdiscNeighborFlags::SOLICITED };
            let advert = advert(speaker.mac, own, solicited | NdiscNeighborFlags::OVERRIDE);
            let dst = if nobody { ALL_NODES } else { asker };
            let mac = if nobody { multicast(ALL_NODES) } else { to? };
            Some(discovery_frame((speaker.mac, own), (mac, dst), advert))
        }
        _ => None,
    }
}

/// Tells everybody that the speaker has the address (RFC 5227 section 2.3, RFC 4861 section 7.2.6).
pub fn announcement(speaker: Speaker) -> Vec<u8> {
    match speaker.address {
        IpAddr::V4(own) => {
            let repr = arp(ArpOperation::Request, (speaker.mac, own), (MacAddr([0; 6]), own));
            arp_frame(repr, (MacAddr::BROADCAST, speaker.mac))
        }
        IpAddr::V6(own) => {
            let advert = advert(speaker.mac, own, NdiscNeighborFlags::OVERRIDE);
            discovery_frame((speaker.mac, own), (multicast(ALL_NODES), ALL_NODES), advert)
        }
    }
}

/// `payload` behind an Ethernet header.
pub fn ethernet(dst: MacAddr, src: MacAddr, payload: &[u8]) -> Vec<u8> {
    let protocol = match payload.first().map(|byte| byte >> 4) {
        Some(6) => EthernetProtocol::Ipv6,
        _ => EthernetProtocol::Ipv4,
    };
    framed((dst, src), protocol, payload.len(), |buffer| buffer.copy_from_slice(payload))
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// RFC 4291 section 2.7.1.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let low = address.to_bits() & 0xff_ffff;
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low)
}

/// RFC 2464 section 7.
fn multicast(group: Ipv6Addr) -> MacAddr {
    let o = group.octets();
    MacAddr([0x33, 0x33, o[12], o[13], o[14], o[15]])
}

fn arp(operation: ArpOperation, from: (MacAddr, Ipv4Addr), to: (MacAddr, Ipv4Addr)) -> ArpRepr {
    ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(from.0.0),
        source_protocol_addr: from.1,
        target_hardware_addr: EthernetAddress(to.0.0),
        target_protocol_addr: to.1,
    }
}

fn arp_frame(repr: ArpRepr, stations: (MacAddr, MacAddr)) -> Vec<u8> {
    framed(stations, EthernetProtocol::Arp, repr.buffer_len(), |buffer| {
        repr.emit(&mut ArpPacket::new_unchecked(buffer));
    })
}

fn advert(mac: MacAddr, target_addr: Ipv6Addr, flags: NdiscNeighborFlags) -> NdiscRepr<'static> {
    NdiscRepr::NeighborAdvert { flags, target_addr, lladdr: Some(EthernetAddress(mac.0).into()) }
}

fn discovery_frame(from: (MacAddr, Ipv6Addr), to: (MacAddr, Ipv6Addr), repr: NdiscRepr) -> Vec<u8> {
    let icmp = Icmpv6Repr::Ndisc(repr);
    let ip = Ipv6Repr {
        src_addr: from.1,
        dst_addr: to.1,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit: 255,
    };
    framed((to.0, from.0), EthernetProtocol::Ipv6, ip.buffer_len() + icmp.buffer_len(), |buffer| {
        let mut packet = Ipv6Packet::new_unchecked(buffer);
        ip.emit(&mut packet);
        let mut icmp_packet = Icmpv6Packet::new_unchecked(packet.payload_mut());
        icmp.emit(&ip.src_addr, &ip.dst_addr, &mut icmp_packet, &ChecksumCapabilities::default());
    })
}

fn framed(
    (dst, src): (MacAddr, MacAddr),
    protocol: EthernetProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_dst_addr(EthernetAddress(dst.0));
    frame.set_src_addr(EthernetAddress(src.0));
    frame.set_ethertype(protocol);
    fill(frame.payload_mut());
    bytes
}
