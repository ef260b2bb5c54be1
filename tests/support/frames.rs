//! Frames for tests, built by etherparse so that the switch does not judge itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use encap::field::{EtherType, MacAddr};
use encap::offload::Csum;
use etherparse::checksum::Sum16BitWords;
use etherparse::igmp::UnknownHeader;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType as Type, IgmpType, IpHeaders, IpNumber, Ipv4Extensions,
    Ipv4Header, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep, TcpHeader,
};

/// Bytes in front of a tag.
const ADDRESSES: usize = 12;
/// Bytes of an Ethernet header and an IPv4 header without options.
const L4: usize = 34;

/// The address of host `n`.
pub const fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

/// The IPv4 address of host `n`.
pub const fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn ethernet(src: MacAddr, dst: MacAddr) -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(src.0, dst.0)
}

/// A UDP datagram.
pub fn frame(src: MacAddr, dst: MacAddr) -> Vec<u8> {
    udp((src, 4000), (dst, 53), b"sixteen byteload")
}

/// A UDP datagram from host to host.
pub fn unicast(from: u8, to: u8) -> Vec<u8> {
    frame(mac(from), mac(to))
}

/// A broadcast from a host.
pub fn broadcast(from: u8) -> Vec<u8> {
    frame(mac(from), MacAddr::BROADCAST)
}

/// A UDP datagram between ports of the hosts that the last octets of the addresses name.
pub fn udp(src: (MacAddr, u16), dst: (MacAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let ends = (ip(src.0.0[5]).octets(), ip(dst.0.0[5]).octets());
    let packet = ethernet(src.0, dst.0).ipv4(ends.0, ends.1, 64).udp(src.1, dst.1);
    packet.write(&mut frame, payload).expect("a datagram that fits");
    frame
}

/// A TCP segment from host to host.
pub fn tcp((from, src_port): (u8, u16), (to, dst_port): (u8, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet(mac(from), mac(to)).ipv4(ip(from).octets(), ip(to).octets(), 64);
    let mut header = TcpHeader::new(src_port, dst_port, 0x1000_0000, 8192);
    (header.ack, header.psh) = (true, true);
    packet.tcp_header(header).write(&mut frame, payload).expect("a segment that fits");
    frame
}

/// A TCP segment over IPv6 from host to host.
pub fn tcp6(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet(mac(from), mac(to)).ipv6(link_local(from).octets(), link_local(to).octets(), 64);
    packet.tcp(40000, 80, 7, 8192).ack(1).write(&mut frame, payload).expect("a segment that fits");
    frame
}

/// The IPv6 link-local address of host `n`.
pub fn link_local(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n.into())
}

/// An IPv4 frame as a sender with checksum offload leaves it: the pseudo header's sum in place of the
/// transport checksum, which is `offset` bytes into its header (16 for TCP, 6 for UDP).
pub fn partial(mut frame: Vec<u8>, offset: u16) -> (Vec<u8>, Csum) {
    let (proto, len) = (frame[23], ((frame.len() - L4) as u32).to_be_bytes());
    let sum = Sum16BitWords::new().add_slice(&frame[26..L4]).add_2bytes([0, proto]).add_slice(&len);
    let field = L4 + usize::from(offset);
    frame[field..field + 2].copy_from_slice(&(!sum.ones_complement()).to_ne_bytes());
    (frame, Csum::Partial { start: L4 as u16, offset })
}

/// The frame with one more tag in front of those it has.
pub fn with_tag(frame: &[u8], tpid: EtherType, tci: u16) -> Vec<u8> {
    let ([a, b], [c, d]) = (tpid.0.to_be_bytes(), tci.to_be_bytes());
    [&frame[..ADDRESSES], &[a, b, c, d], &frame[ADDRESSES..]].concat()
}

/// The frame in a VLAN: with an 802.1Q tag in front.
pub fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    with_tag(frame, EtherType::VLAN, tci)
}

/// The announcement of a host that has moved: an ARP request for its own address.
pub fn gratuitous_arp(host: u8) -> Vec<u8> {
    let (mac, ip) = (mac(host), ip(host).octets());
    let packet =
        ArpPacket::new(ArpHardwareId::ETHERNET, Type::IPV4, ArpOperation::REQUEST, &mac.0, &ip, &[0; 6], &ip);
    let mut frame = Vec::new();
    ethernet(mac, MacAddr::BROADCAST)
        .arp(packet.expect("addresses that fit"))
        .write(&mut frame)
        .expect("a frame");
    frame
}

/// The Ethernet address of an IPv4 group (RFC 1112 section 6.4).
pub fn group_mac(group: Ipv4Addr) -> MacAddr {
    let [_, b, c, d] = group.octets();
    MacAddr([0x01, 0x00, 0x5e, b & 0x7f, c, d])
}

/// A datagram from a host to a group.
pub fn multicast(from: u8, group: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet(mac(from), group_mac(group)).ipv4(ip(from).octets(), group.octets(), 8);
    packet.udp(5000, 5001).write(&mut frame, b"a picture").expect("a datagram that fits");
    frame
}

/// An IGMP message: type, last four bytes of its header, what follows it; in a packet from `src` to `dst`, with
/// the router alert option (RFC 2236 section 2).
pub fn igmp((src, dst): (Ipv4Addr, Ipv4Addr), kind: u8, last: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut header =
        Ipv4Header::new(0, 1, IpNumber::IGMP, src.octets(), dst.octets()).expect("an empty payload fits");
    header.options = (&[0x94, 4, 0, 0][..]).try_into().expect("a whole word");
    let message = UnknownHeader { igmp_type: kind, raw_byte_1: 0, raw_bytes_4_7: last };
    let source = MacAddr([2, 0, 0, 0, 0, src.octets()[3]]);
    let packet = ethernet(source, group_mac(dst)).ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()));
    let mut frame = Vec::new();
    packet.igmp(IgmpType::Unknown(message)).write(&mut frame, body).expect("a message that fits");
    frame
}

/// The Ethernet address of an IPv6 group (RFC 2464 section 7).
pub fn group6_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// A datagram from a host to an IPv6 group.
pub fn multicast6(from: u8, group: Ipv6Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ethernet(mac(from), group6_mac(group)).ipv6(link_local(from).octets(), group.octets(), 8);
    packet.udp(5000, 5001).write(&mut frame, b"a picture").expect("a datagram that fits");
    frame
}

/// An MLD message: type, last four bytes of its header, what follows it; behind the router alert option
/// (RFC 2710 section 3).
pub fn mld((src, dst): (Ipv6Addr, Ipv6Addr), kind: u8, last: [u8; 4], body: &[u8]) -> Vec<u8> {
    let header =
        Ipv6Header { source: src.octets(), destination: dst.octets(), hop_limit: 1, ..Ipv6Header::default() };
    let alert = Ipv6RawExtHeader::new_raw(IpNumber::IPV6_ICMP, &[5, 2, 0, 0, 1, 0]).expect("one unit");
    let extensions = Ipv6Extensions { hop_by_hop_options: Some(alert), ..Ipv6Extensions::default() };
    let source = MacAddr([2, 0, 0, 0, 0, src.octets()[15]]);
    let packet = ethernet(source, group6_mac(dst)).ip(IpHeaders::Ipv6(header, extensions));
    let mut frame = Vec::new();
    packet.icmpv6_raw(kind, 0, last).write(&mut frame, body).expect("a message that fits");
    frame
}
