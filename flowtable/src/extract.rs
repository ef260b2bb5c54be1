//! Bytes to key: what a frame says about itself, as far as it can be believed.
//!
//! The walk of [`encap::offsets`] finds the headers, this module copies their fields into the key's words. As
//! in Open vSwitch's `miniflow_extract`, what is truncated or lies about its length is absent, so its fields
//! are zero, and bytes behind the end that the IP header states (Ethernet padding) do not exist. Only a frame
//! without a whole Ethernet header is an error.
//!
//! Frames with TCP, UDP or SCTP in plain IPv4 do not take the walk: [`Keys`](crate::keys::Keys) reads each of their bytes once.
//!
//! Worst case: the walk's, and [`MAX_ND_OPTIONS`] options of a neighbour discovery message.

#[cfg(target_arch = "x86_64")]
pub(crate) mod wide;

use encap::field::{EtherType, IpProto, MacAddr};
use encap::offsets::{ETHERNET, Ip, Malformed, TAG, walk};

use crate::field::{Value, VlanTci};
use crate::id::PortId;
use crate::key::{FlowKey, WORDS};

/// Options that are read of a neighbour solicitation or advertisement; RFC 4861 and RFC 3971 define six.
pub const MAX_ND_OPTIONS: usize = 8;

/// How ARP for IPv4 over Ethernet begins (RFC 826); any other has no fields.
const ARP_FOR_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// How many words, from the first on, any IPv4 frame may have. The others are those of ARP, IPv6 and tunnels.
pub(crate) const LOW: usize = 7;

/// The key of a frame that came in on `in_port`; its tunnel fields are zero.
///
/// # Errors
/// [`Malformed`] if the frame is shorter than an Ethernet header.
#[inline]
pub fn extract(frame: &[u8], in_port: PortId) -> Result<FlowKey, Malformed> {
    let mut key = FlowKey::default();
    walked(&mut key.0, frame, in_port)?;
    Ok(key)
}

/// The least total length of an IPv4 packet without options that has the ports of such a protocol and all of its header; of the
/// other protocols, more than any has.
static LEAST: [u32; 256] = {
    let mut least = [u32::MAX; 256];
    least[IpProto::TCP.0 as usize] = 20 + 20;
    least[IpProto::UDP.0 as usize] = 20 + 8;
    least[IpProto::SCTP.0 as usize] = 20 + 12;
    least
};

/// Writes the words of a frame with TCP, UDP or SCTP in plain IPv4 behind at most one tag, from the first to [`LOW`], and says
/// true; or false of any other frame, which may be just as sound. Most frames are plain.
#[inline(always)]
pub(crate) fn plain(words: &mut [u64; WORDS], frame: &[u8], in_port: PortId) -> bool {
    const TAGGED: usize = ETHERNET + TAG;
    let port = u64::from(in_port.0) << 32;
    // Most are untagged, and their type is looked at with the version.
    if ipv4::<ETHERNET>(words, frame, port) {
        return true;
    }
    match frame.get(ETHERNET - 2..ETHERNET) {
        Some([0x81, 0x00] | [0x88, 0xa8]) => ipv4::<TAGGED>(words, frame, port | tag(frame, 0)),
        _ => false,
    }
}

/// As [`plain`], if the IPv4 header is at `L3`. Each byte is loaded once and in its place, and no branch depends on what
/// differs between plain frames.
#[inline(always)]
fn ipv4<const L3: usize>(words: &mut [u64; WORDS], frame: &[u8], first: u64) -> bool {
    // TCP's flags are the last that may be looked at.
    let Some((headers, packet)) = frame.first_chunk::<ETHERNET>().zip(frame.get(L3..)) else { return false };
    let Some(packet_start) = packet.first_chunk::<34>() else { return false };
    let (dst, src) = (word(headers, 0), half(headers, 8));
    let start = half(&frame[L3 - 2..], 0); // type, version, TOS
    let lengths = word(packet_start, 2); // length, identification, flags and offset, TTL, protocol
    let (len, proto) = ((lengths >> 48) as usize, lengths as u8);
    let known = start & 0xffff_ff00 == 0x0800_4500 && lengths & 0x3fff_0000 == 0;
    if !(known && len >= LEAST[usize::from(proto)] as usize && len <= packet.len()) {
        return false;
    }
    let flags = u16::from_be_bytes([packet_start[32], packet_start[33]]) & 0xfff;
    let flags = if proto == IpProto::TCP.0 { flags } else { 0 };
    let octets = (start & 0xff) << 8 | lengths >> 8 & 0xff;
    words[0] = first;
    words[1] = dst & !0xffff | u64::from(EtherType::IPV4.0);
    words[2] = dst << 48 | src << 16 | u64::from(proto) << 8;
    words[3] = word(packet_start, 12);
    words[4] = half(packet_start, 20) << 32 | u64::from(flags) << 16 | octets;
    words[5] = 0;
    words[6] = 0;
    true
}

/// Four octets at `at`, the first one the most significant.
#[inline(always)]
fn half(octets: &[u8], at: usize) -> u64 {
    octets[at..].first_chunk().map_or(0, |octets| u32::from_be_bytes(*octets).into())
}

/// Writes the words of whatever frame. Words from [`LOW`] on are zero before; those that the frame does not have stay so.
#[inline]
pub(crate) fn walked(words: &mut [u64; WORDS], frame: &[u8], in_port: PortId) -> Result<(), Malformed> {
    let header: &[u8; ETHERNET] = frame.first_chunk().ok_or(Malformed(frame.len()))?;
    let offsets = walk(frame)?;
    words[0] = u64::from(in_port.0) << 32;
    words[1] = word(header, 0) & !0xffff | u64::from(offsets.ether_type.0);
    words[2] = word(header, 6) & !0xffff;
    words[3..LOW].fill(0);
    if offsets.tags > 0 {
        words[0] |= tag(frame, 0);
    }
    if offsets.tags > 1 {
        words[5] = tag(frame, 1) << 32;
    }
    match offsets.ip {
        Some(ip) => network(words, frame, &ip, offsets.ether_type),
        None => no_ip(words, &frame[offsets.payload()..], offsets.ether_type),
    }
    Ok(())
}

/// Eight octets at `at`, the first one the most significant.
#[inline(always)]
fn word<const N: usize>(octets: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| octets[at + i]))
}

/// TPID and control word of tag `i`, which the walk found.
#[inline(always)]
fn tag(frame: &[u8], i: usize) -> u64 {
    let tag = frame[ETHERNET - 2 + i * TAG..].first_chunk().map_or(0, |tag| u32::from_be_bytes(*tag));
    u64::from(tag | u32::from(VlanTci::PRESENT))
}

#[inline(always)]
fn network(words: &mut [u64; WORDS], frame: &[u8], ip: &Ip, ether_type: EtherType) {
    words[2] |= u64::from(ip.proto.0) << 8 | ip.fragment.to_bits() as u64;
    let packet = &frame[ip.l3()..ip.end()];
    if ether_type == EtherType::IPV4 {
        let Some(header) = packet.first_chunk::<20>() else { return };
        words[3] = word(header, 12);
        words[4] = u64::from(header[1]) << 8 | u64::from(header[8]);
    } else {
        let Some(header) = packet.first_chunk::<40>() else { return };
        let first = word(header, 0) >> 32;
        words[4] = (first >> 20 & 0xff) << 8 | u64::from(header[7]);
        words[5] |= first & 0xf_ffff;
        (words[7], words[8]) = (word(header, 8), word(header, 16));
        (words[9], words[10]) = (word(header, 24), word(header, 32));
    }
    if let Some(l4) = ip.l4() {
        transport(words, &frame[l4..ip.end()], ip.proto, ether_type);
    }
}

/// The fields of a transport header that the walk found to be complete.
#[inline(always)]
fn transport(words: &mut [u64; WORDS], segment: &[u8], proto: IpProto, ether_type: EtherType) {
    let Some(start) = segment.first_chunk::<8>() else { return };
    let ports = word(start, 0) & !0xffff_ffff;
    let type_and_code = u64::from(start[0]) << 48 | u64::from(start[1]) << 32;
    match (proto, ether_type) {
        (IpProto::TCP, _) => {
            let Some(header) = segment.first_chunk::<20>() else { return };
            let flags = u64::from(header[12] & 0xf) << 8 | u64::from(header[13]);
            words[4] |= ports | flags << 16;
        }
        (IpProto::UDP | IpProto::SCTP, _) => words[4] |= ports,
        (IpProto::ICMP | IpProto::IGMP, EtherType::IPV4) => words[4] |= type_and_code,
        (IpProto::ICMPV6, EtherType::IPV6) => {
            words[4] |= type_and_code;
            if let Some(neighbour) = neighbour(segment) {
                [words[11], words[12], words[13], words[14]] = neighbour;
            }
        }
        _ => {}
    }
}

/// Target (two words) and link-layer addresses of a neighbour solicitation or advertisement (RFC 4861 sections
/// 4.3, 4.4). One that gives the same address twice is not believed at all, as in OVS.
fn neighbour(message: &[u8]) -> Option<[u64; 4]> {
    if !matches!(message[..2], [135 | 136, 0]) {
        return None;
    }
    let target: &[u8; 16] = message[8..].first_chunk()?;
    let [source_lla, target_lla] = link_layer_addresses(&message[24..])?;
    Some([word(target, 0), word(target, 8), source_lla.to_u64() << 16, target_lla.to_u64() << 16])
}

/// The source and target link-layer address options, zero where missing; `None` if one is there twice.
fn link_layer_addresses(mut options: &[u8]) -> Option<[MacAddr; 2]> {
    let mut found = [MacAddr::default(); 2];
    for _ in 0..MAX_ND_OPTIONS {
        let Some((&[kind, units, a, b, c, d, e, f], _)) = options.split_first_chunk() else { break };
        let len = usize::from(units) * 8;
        if len == 0 || len > options.len() {
            break;
        }
        if let (1 | 2, 8) = (kind, len) {
            let slot = &mut found[usize::from(kind) - 1];
            if *slot != MacAddr::default() {
                return None;
            }
            *slot = MacAddr([a, b, c, d, e, f]);
        }
        options = &options[len..];
    }
    Some(found)
}

/// What is in a frame that carries no (sane) IP.
#[inline(always)]
fn no_ip(words: &mut [u64; WORDS], payload: &[u8], ether_type: EtherType) {
    match ether_type {
        EtherType::ARP | EtherType::RARP => {
            let Some(packet) = payload.first_chunk::<28>() else { return };
            if packet[..6] == ARP_FOR_IPV4 {
                words[2] |= if packet[6] == 0 { u64::from(packet[7]) << 8 } else { 0 };
                words[3] = word(packet, 14) & !0xffff_ffff | word(packet, 20) & 0xffff_ffff;
                words[13] = word(packet, 8) & !0xffff;
                words[14] = word(packet, 18) & !0xffff;
            }
        }
        EtherType::MPLS | EtherType::MPLS_MULTICAST => {
            words[6] |= payload.first_chunk().map_or(0, |entry| u32::from_be_bytes(*entry).into());
        }
        _ => {}
    }
}
