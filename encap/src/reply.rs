//! A frame that goes back where another came from: its Ethernet header, and the headers of ICMP.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6Header};

use crate::checksum::Sum;
use crate::field::{IpProto, MacAddr};
use crate::offsets::{ETHERNET, MAX_TAGS, Offsets, TAG};

/// The most bytes of an Ethernet header with tags.
pub const MAX_L2: usize = ETHERNET + TAG * MAX_TAGS as usize;

/// Time to live and hop limit of what we say: neighbour discovery demands it (RFC 4861 section 7.1), and it
/// reaches as far as anything.
const HOPS: u8 = 255;

/// An Ethernet II header with its tags.
///
/// Contract: at least [`ETHERNET`] and at most [`MAX_L2`] bytes, so all accessors are infallible.
#[derive(Debug, Clone, Copy)]
pub struct L2<'a>(&'a [u8]);

impl<'a> L2<'a> {
    /// The header of a frame that was walked. `None` for 802.2 (RFC 1042), whose header has a length in it.
    pub fn new(frame: &'a [u8], offsets: &Offsets) -> Option<Self> {
        let len = ETHERNET + TAG * usize::from(offsets.tags);
        (offsets.payload() == len).then_some(L2(&frame[..len]))
    }

    pub fn dst(self) -> MacAddr {
        MacAddr([self.0[0], self.0[1], self.0[2], self.0[3], self.0[4], self.0[5]])
    }

    pub fn src(self) -> MacAddr {
        MacAddr([self.0[6], self.0[7], self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    /// Writes a frame from `src` to the sender of this one, with the same tags and type. Returns its length.
    ///
    /// # Panics
    /// If `out` is shorter than that.
    pub fn reply(self, src: MacAddr, parts: &[&[u8]], out: &mut [u8]) -> usize {
        let l2 = [&self.src().0[..], &src.0, &self.0[12..]];
        l2.iter().chain(parts).fold(0, |at, part| {
            out[at..at + part.len()].copy_from_slice(part);
            at + part.len()
        })
    }
}

/// True if it is the address of one station that others can reach: not that of a group, of "this host" or of the
/// loopback (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5), and not reserved.
pub fn is_individual(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets()[0], 1..=126 | 128..=223),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast()),
    }
}

/// The IPv4 header of an ICMP message, and the first eight bytes of the message (type, code, place of the
/// checksum, four more) with the checksum in its place. `body` is what follows them, at most 64,000 bytes.
pub fn icmpv4(src: [u8; 4], dst: [u8; 4], mut message: [u8; 8], body: &[u8]) -> ([u8; 20], [u8; 8]) {
    let mut header = Ipv4Header {
        total_len: (Ipv4Header::MIN_LEN + message.len() + body.len()) as u16,
        dont_fragment: true,
        time_to_live: HOPS,
        protocol: IpNumber::ICMP,
        source: src,
        destination: dst,
        ..Ipv4Header::default()
    };
    header.header_checksum = header.calc_header_checksum();
    let sum = Sum::of(&message) + Sum::of(body);
    message[2..4].copy_from_slice(&sum.checksum());
    let mut bytes = [0; Ipv4Header::MIN_LEN];
    bytes.copy_from_slice(&header.to_bytes());
    (bytes, message)
}

/// As [`icmpv4`], for ICMPv6.
pub fn icmpv6(src: [u8; 16], dst: [u8; 16], mut message: [u8; 8], body: &[u8]) -> ([u8; 40], [u8; 8]) {
    let len = message.len() + body.len();
    let header = Ipv6Header {
        payload_length: len as u16,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: HOPS,
        source: src,
        destination: dst,
        ..Ipv6Header::default()
    }
    .to_bytes();
    let sum = Sum::pseudo_header(&header[8..], IpProto::ICMPV6, len) + Sum::of(&message) + Sum::of(body);
    message[2..4].copy_from_slice(&sum.checksum());
    (header, message)
}
