//! Outer headers of a tunnelled frame: what they say, and where the inner frame stands.
//!
//! The idea: every byte in front of the inner frame is checked once, and what is left is a value and two
//! offsets; nothing is moved. VXLAN (RFC 7348), GRE (RFC 2784, RFC 2890) and Geneve (RFC 8926), over IPv4 or IPv6,
//! behind up to two VLAN tags; IPv6 extension headers are passed over, fragments are refused (RFC 7348 section
//! 4.3 lets us). Cost: constant (at most eight IPv6 extension headers and 63 Geneve options), but for a
//! checksum over the payload, one pass over it.
//!
//! # Checksums that are not there yet
//! A frame that never saw a wire may leave the outer checksum to a card. Linux has four ways (its
//! Documentation/networking/checksum-offloads.rst), and the frame's [`Offload`] tells them apart:
//!
//! * The partial checksum is that of the outer header: it will be good by construction.
//! * It is that of an inner header ("local checksum offload"): the outer checksum is right already for the frame
//!   that the card will complete. What the card stores makes its part of the frame sum up to the complement
//!   of the partial sum that stands there, so the part need not be looked at.
//! * The frame is to be cut: the outer checksum is made for each segment (`udp_set_csum`, `gre_build_header`).
//! * As the second, but nobody says so, as with AF_XDP (see [`is_partial`]): found by looking at the inner frame,
//!   once the outer checksum turned out to be wrong.

use std::net::Ipv6Addr;

use thiserror::Error;

use crate::checksum::{Sum, is_partial};
use crate::field::{EtherType, IpProto};
use crate::offload::{Csum, Gso, Offload};
use crate::offsets::{ETHERNET, Fragment, walk};
use crate::tunnel::TunnelKind;
use crate::wire::geneve::{self, Geneve, GeneveError};
use crate::wire::gre::{self, Gre, GreError};
use crate::wire::vxlan::{self, Vxlan, VxlanError};

/// Bytes of a UDP header.
const UDP: usize = 8;
/// "Don't fragment" in the upper octet of IPv4 flags and fragment offset.
const DF: u8 = 0x40;

/// A frame that is no tunnelled frame of the kind that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecapError {
    /// No IP header, or one that lies about lengths.
    #[error("frame of type {0} has no sane IP header")]
    NotIp(EtherType),
    /// The IP packet carries something else, or no whole header of it.
    #[error("IP packet of protocol {0} has no whole header that a tunnel has")]
    Protocol(IpProto),
    /// A part of a packet.
    #[error(
        "tunnelled packet is a fragment: make the MTU of the underlay larger, or that of the ports smaller"
    )]
    Fragment,
    /// A UDP length that is too small, or beyond the packet.
    #[error("UDP length {len} does not fit into a packet with room for {room}")]
    UdpLength {
        /// What the header says.
        len: usize,
        /// Bytes of the packet from the UDP header on.
        room: usize,
    },
    /// The IPv4 header was damaged.
    #[error("outer IPv4 header has a wrong checksum")]
    HeaderChecksum,
    /// The UDP or GRE packet was damaged.
    #[error("outer UDP or GRE checksum is wrong")]
    Checksum,
    /// The datagram is several (UDP GSO), each with a tunnel header of its own.
    #[error("datagram is to be cut before it is decapsulated")]
    Uncut,
    /// The inner frame has no whole Ethernet header.
    #[error("inner frame of {0} bytes is shorter than an Ethernet header of 14")]
    Inner(usize),
    /// The VXLAN header.
    #[error(transparent)]
    Vxlan(#[from] VxlanError),
    /// The GRE header.
    #[error(transparent)]
    Gre(#[from] GreError),
    /// The Geneve header.
    #[error(transparent)]
    Geneve(#[from] GeneveError),
}

/// What the outer headers say, and where the inner frame stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decapped {
    /// The VNI or GRE key; `None` for GRE without a key.
    pub id: Option<u32>,
    /// The VTEP that sent the frame. An IPv4 address is mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2): so it is made
    /// in registers, whatever the family.
    pub src: Ipv6Addr,
    /// The VTEP that it was sent to; likewise.
    pub dst: Ipv6Addr,
    /// IPv4 TOS or IPv6 traffic class, with the ECN bits.
    pub tos: u8,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// Don't fragment; false for IPv6.
    pub df: bool,
    /// There was a UDP or GRE checksum.
    pub csum: bool,
    /// A control message (Geneve): not for the inner network.
    pub oam: bool,
    /// Where the inner Ethernet header begins: bytes to take off the front. A partial checksum that began
    /// before is done with them.
    pub inner_at: usize,
    /// Where the inner frame ends: the rest is padding. At least 14 behind `inner_at`, at most the frame's length.
    pub inner_end: usize,
}

/// Reads the outer headers of the frames that most are: VXLAN in IPv4 behind an untagged Ethernet header, without options, a UDP
/// checksum or work left to do, and with nothing amiss. `None` of any other, which [`decap`] may well read.
///
/// Nothing is looked at twice, and where this is inlined what it found stays in registers: that is why it is not a part of
/// [`decap`].
#[inline(always)]
pub fn plain(frame: &[u8], kind: TunnelKind, offload: Offload) -> Option<Decapped> {
    if kind != TunnelKind::Vxlan || offload.gso != Gso::None {
        return None;
    }
    const L4: usize = ETHERNET + 20;
    const INNER: usize = L4 + UDP + vxlan::HEADER;
    let headers: &[u8; INNER] = frame.first_chunk()?;
    let start = word(headers, 8) as u32; // type, version, TOS
    let lengths = word(headers, 16); // length, identification, flags and offset, TTL, protocol
    let ends = word(headers, 26);
    let udp = word(headers, 34) as u32; // length, checksum
    let tunnel = word(headers, 42); // flags, VNI
    let ip: &[u8; 20] = headers[ETHERNET..].first_chunk()?;
    let (len, room) = ((udp >> 16) as usize, (lengths >> 48) as usize);
    let known = start & 0xffff_ff00 == 0x0800_4500
        && lengths as u32 & 0x3fff_00ff == u32::from(IpProto::UDP.0)
        && udp & 0xffff == 0
        && vxlan::has_plain_vni((tunnel >> 56) as u8);
    let sane = len >= UDP + vxlan::HEADER + ETHERNET && 20 + len <= room && ETHERNET + room <= frame.len();
    (known && sane && Sum::of(ip).verifies()).then(|| Decapped {
        id: Some((tunnel >> 8) as u32 & 0xff_ffff),
        src: mapped((ends >> 32) as u32),
        dst: mapped(ends as u32),
        tos: start as u8,
        ttl: (lengths >> 8) as u8,
        df: lengths & u64::from(DF) << 24 != 0,
        csum: false,
        oam: false,
        inner_at: INNER,
        inner_end: L4 + len,
    })
}

/// Eight octets at `at`, the first one the most significant.
#[inline(always)]
fn word<const N: usize>(octets: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| octets[at + i]))
}

/// Reads the outer headers of a frame on which `offload` is left to do.
///
/// The UDP port is not looked at: it is how the caller knows which kind to expect.
///
/// # Errors
/// [`DecapError`]: drop the frame.
#[inline(never)]
pub fn decap(frame: &[u8], kind: TunnelKind, offload: Offload) -> Result<Decapped, DecapError> {
    let outer = network(frame)?;
    let Network { proto, addresses, l4, end, src, dst, hop: Hop { tos, ttl, df } } = outer;
    if proto != kind.proto() {
        return Err(DecapError::Protocol(proto));
    }
    let Tunnel { id, csum, oam, headers, len } = tunnel(kind, &frame[l4..end])?;
    let (inner_at, inner_end) = (l4 + headers, l4 + len);
    if len - headers < ETHERNET {
        return Err(DecapError::Inner(len - headers));
    }
    if offload.gso != Gso::None && starts_at(offload.csum, l4) {
        return Err(DecapError::Uncut);
    }
    if csum {
        let pseudo = match kind {
            TunnelKind::Gre => Sum::default(),
            TunnelKind::Vxlan | TunnelKind::Geneve => Sum::pseudo_header(addresses, IpProto::UDP, len),
        };
        let covered = Covered { frame: &frame[..inner_end], at: l4, inner_at, pseudo };
        covered.is_intact(offload).then_some(()).ok_or(DecapError::Checksum)?;
    }
    Ok(Decapped { id, src, dst, tos, ttl, df, csum, oam, inner_at, inner_end })
}

/// A sound IP header that begins no fragment.
struct Network<'a> {
    proto: IpProto,
    /// The addresses as they stand there.
    addresses: &'a [u8],
    /// Where that begins which the packet carries.
    l4: usize,
    /// Where the packet ends; not before.
    end: usize,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop: Hop,
}

#[inline(always)]
fn mapped(ipv4: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xffff_0000_0000 | u128::from(ipv4))
}

/// Any IP header.
fn network(frame: &[u8]) -> Result<Network<'_>, DecapError> {
    let offsets = walk(frame).map_err(|_| DecapError::NotIp(EtherType::default()))?;
    let not_ip = DecapError::NotIp(offsets.ether_type);
    let (ip, addresses) = offsets.ip.zip(offsets.addresses(frame)).ok_or(not_ip)?;
    if ip.fragment != Fragment::No {
        return Err(DecapError::Fragment);
    }
    let l4 = ip.l4().ok_or(DecapError::Protocol(ip.proto))?;
    let hop = hop(offsets.ether_type, &frame[ip.l3()..l4])?;
    let (v4, v6) = (addresses.as_chunks::<4>().0, addresses.as_chunks::<16>().0);
    let (src, dst) = match (v4, v6) {
        (_, [src, dst]) => ((*src).into(), (*dst).into()),
        ([src, dst], _) => (mapped(u32::from_be_bytes(*src)), mapped(u32::from_be_bytes(*dst))),
        _ => return Err(not_ip),
    };
    Ok(Network { proto: ip.proto, addresses, l4, end: ip.end(), src, dst, hop })
}

/// What every router of the underlay looks at.
struct Hop {
    tos: u8,
    ttl: u8,
    df: bool,
}

/// `header` is the whole IP header, with options or extensions.
#[inline]
fn hop(ether_type: EtherType, header: &[u8]) -> Result<Hop, DecapError> {
    let not_ip = DecapError::NotIp(ether_type);
    if ether_type == EtherType::IPV6 {
        let [first, second, .., ttl] = header.first_chunk::<8>().ok_or(not_ip)?;
        return Ok(Hop { tos: first << 4 | second >> 4, ttl: *ttl, df: false });
    }
    let (fixed, options) = header.split_first_chunk::<20>().ok_or(not_ip)?;
    // Almost none has options, and the sum of 20 bytes takes no loop.
    let options = if options.is_empty() { Sum::default() } else { Sum::of(options) };
    if !(Sum::of(fixed) + options).verifies() {
        return Err(DecapError::HeaderChecksum);
    }
    Ok(Hop { tos: fixed[1], ttl: fixed[8], df: fixed[6] & DF != 0 })
}

/// What the tunnel's own headers say.
struct Tunnel {
    id: Option<u32>,
    csum: bool,
    oam: bool,
    /// Bytes of UDP or GRE header and all that follows in front of the inner frame.
    headers: usize,
    /// Bytes of all from there on to the end of the inner frame; not less.
    len: usize,
}

/// The tunnel in a UDP or GRE packet and whatever follows it.
#[inline]
fn tunnel(kind: TunnelKind, message: &[u8]) -> Result<Tunnel, DecapError> {
    match kind {
        TunnelKind::Vxlan => {
            let (udp, payload) = udp(message)?;
            let repr = vxlan::Repr::parse(&Vxlan::new(payload)?)?;
            Ok(Tunnel { id: Some(repr.vni.get()), headers: UDP + vxlan::HEADER, ..udp })
        }
        TunnelKind::Geneve => {
            let (udp, payload) = udp(message)?;
            let header = Geneve::new(payload)?;
            let repr = geneve::Repr::parse(&header)?;
            Ok(Tunnel { id: Some(repr.vni.get()), oam: repr.oam, headers: UDP + header.header_len(), ..udp })
        }
        TunnelKind::Gre => {
            let header = Gre::new(message)?;
            let gre::Repr { key, checksum: csum, .. } = gre::Repr::parse(&header)?;
            let (headers, len) = (header.header_len(), message.len());
            Ok(Tunnel { id: key.map(|key| key.0), csum, oam: false, headers, len })
        }
    }
}

/// What the UDP header at the start of `message` says, and its payload.
#[inline]
fn udp(message: &[u8]) -> Result<(Tunnel, &[u8]), DecapError> {
    let room = message.len();
    let header: &[u8; UDP] = message.first_chunk().ok_or(DecapError::Protocol(IpProto::UDP))?;
    let [.., len_high, len_low, csum_high, csum_low] = *header;
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    let payload = message.get(UDP..len).ok_or(DecapError::UdpLength { len, room })?;
    let csum = [csum_high, csum_low] != [0, 0];
    Ok((Tunnel { id: None, csum, oam: false, headers: UDP, len }, payload))
}

/// All that an outer checksum covers.
struct Covered<'a> {
    /// The frame up to the end of that.
    frame: &'a [u8],
    /// Where the UDP or GRE header begins.
    at: usize,
    /// Where the inner frame begins.
    inner_at: usize,
    /// The sum of the pseudo header, if there is one.
    pseudo: Sum,
}

impl Covered<'_> {
    /// Whether the checksum is right, or will be (see the head of this file).
    #[inline]
    fn is_intact(&self, offload: Offload) -> bool {
        match (offload.gso, offload.csum) {
            (Gso::None, Csum::None) => self.sum_verifies() || self.is_unsaid(),
            (Gso::None, csum) => starts_at(csum, self.at) || self.verifies_with(csum),
            _ => true,
        }
    }

    fn sum_verifies(&self) -> bool {
        (self.pseudo + Sum::of(&self.frame[self.at..])).verifies()
    }

    /// Whether the checksum will be right once a card has completed that of the inner frame.
    fn verifies_with(&self, inner: Csum) -> bool {
        let Csum::Partial { start, offset } = inner else { return false };
        let headers = self.frame.get(self.at..start.into()).filter(|headers| headers.len() % 2 == 0);
        let field = self.frame.get(usize::from(start) + usize::from(offset)..).and_then(<[u8]>::first_chunk);
        let (Some(headers), Some([a, b])) = (headers, field) else { return false };
        (self.pseudo + Sum::of(headers) + Sum::of(&[!a, !b])).verifies()
    }

    /// As [`Covered::verifies_with`], if the inner frame looks as if its checksum was left to a card.
    #[cold]
    fn is_unsaid(&self) -> bool {
        let inner = &self.frame[self.inner_at..];
        let csum = walk(inner).ok().and_then(|offsets| is_partial(inner, &offsets));
        let offload = csum.and_then(|csum| Offload { csum, gso: Gso::None }.shifted(self.inner_at as isize));
        offload.is_some_and(|offload| self.verifies_with(offload.csum))
    }
}

#[inline]
fn starts_at(csum: Csum, at: usize) -> bool {
    matches!(csum, Csum::Partial { start, .. } if usize::from(start) == at)
}

#[cfg(test)]
mod tests;
