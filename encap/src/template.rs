//! Outer headers of a tunnel, prebuilt once per flow.
//!
//! The idea: of all that stands in front of an inner frame only its length and the entropy of its flow vary. The
//! rest is written and summed when the flow is made; a frame then costs a few fixed-size copies and the patching
//! of four fields: IP length and checksum, UDP length and source port. Where the headers are the usual ones (IPv4 with DF,
//! VXLAN or Geneve, no tag, no checksum) both are one: five stores of words made in registers. Only where an outer checksum is wanted is
//! the inner frame looked at, in one pass.
//!
//! VXLAN: RFC 7348 section 5. GRE: RFC 2784, RFC 2890. Geneve: RFC 8926. UDP checksum: zero if not wanted, over
//! IPv6 too (RFC 6935, RFC 6936). IPv4 identification: zero with DF, since such a datagram is never in parts
//! (RFC 6864 section 4.1). Without DF a router may cut it, and parts of different frames must not be taken for
//! each other (RFC 6864 section 4.3): there the identification is a hash of the inner frame's first 64 bytes,
//! which have its own identification, sequence numbers and checksums. So no state is kept, and two frames in
//! flight share one by chance only, as with random numbers.

#[cfg(test)]
pub(crate) mod tests;

use std::net::IpAddr;

use arrayvec::ArrayVec;
use thiserror::Error;

use crate::checksum::{Sum, UDP_FIELD};
use crate::field::{EtherType, FieldError, GreKey, IpProto, MacAddr, VlanTag, Vni};
use crate::offsets::{ETHERNET, MAX_TAGS};
use crate::tunnel::TunnelKind;
use crate::wire::{geneve, gre, vxlan};

const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
/// Two tags, IPv6, UDP and VXLAN are 78 bytes; GRE with checksum and key is no longer than UDP and VXLAN.
const MAX_HEADERS: usize = 80;
/// What is copied at once. The shortest headers, untagged IPv4 and GRE without key, are 38 bytes. Copies of this size
/// take 3 cycles of 16 less than one of whatever length (`benches/encap.rs`).
const CHUNK: usize = 32;
/// What stands in front of a frame that gets plain headers: untagged Ethernet, IPv4, UDP and VXLAN or Geneve.
const PLAIN: usize = 50;
/// The first of IANA's dynamic ports, which RFC 7348 section 5 recommends for UDP sources.
const DYNAMIC_PORTS: u16 = 49152;
/// "Don't fragment" in the upper octet of IPv4 flags and fragment offset.
const DF: u8 = 0x40;

/// Outer headers that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// A number that does not fit the field.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// VXLAN and Geneve have no way to say "no VNI".
    #[error("a {0} tunnel needs a VNI")]
    NoVni(TunnelKind),
    /// One end of the tunnel has an IPv4 address, the other an IPv6 address.
    #[error("tunnel from {src} to {dst} mixes address families")]
    Families {
        /// This end.
        src: IpAddr,
        /// The other.
        dst: IpAddr,
    },
}

/// A frame that would not fit into an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("encapsulated packet of {0} bytes is longer than 65535")]
pub struct TooLong(pub usize);

/// What shall stand in the outer headers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outer {
    /// The kind of tunnel.
    pub kind: TunnelKind,
    /// The VNI or GRE key. `None`: GRE without key.
    pub id: Option<u32>,
    /// This end's MAC address.
    pub eth_src: MacAddr,
    /// The next hop's MAC address.
    pub eth_dst: MacAddr,
    /// VLAN tags of the underlay, outermost first.
    pub tags: ArrayVec<VlanTag, { MAX_TAGS as usize }>,
    /// This end's address.
    pub src: IpAddr,
    /// The other end's address.
    pub dst: IpAddr,
    /// IPv4 TOS or IPv6 traffic class, with the ECN bits.
    pub tos: u8,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// Don't fragment. Over IPv6 no router fragments anyway.
    pub df: bool,
    /// The UDP port of the other end; GRE has none.
    pub dst_port: u16,
    /// Whether to sum the UDP or GRE packet.
    pub csum: bool,
}

/// What varies from frame to frame, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Shape {
    /// UDP over IPv4, and only lengths, the IPv4 checksum and the source port vary: most of what is sent.
    Plain,
    Udp4,
    Udp6,
    Gre4,
    Gre6,
}

/// Prebuilt outer headers. Two are equal if what stands in them is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    headers: [u8; MAX_HEADERS],
    len: u8,
    l3: u8,
    shape: Shape,
    /// The IPv4 header without total length and identification.
    l3_sum: Sum,
    /// UDP: pseudo header, destination port and what follows, without lengths and source port. GRE: the header.
    l4_sum: Sum,
    outer: Outer,
}

impl Template {
    /// Builds the headers.
    ///
    /// # Errors
    /// [`TemplateError`]: they cannot be.
    pub fn new(outer: &Outer) -> Result<Self, TemplateError> {
        let ip = ip_header(outer)?;
        let l4 = tunnel_header(outer)?;
        let l2 = ethernet_header(outer);
        let is_plain = outer.df && !outer.csum && l2.len() + ip.len() + l4.len() == PLAIN && ip.len() == IPV4;
        let shape = match (outer.kind, outer.src) {
            (TunnelKind::Vxlan | TunnelKind::Geneve, _) if is_plain => Shape::Plain,
            (TunnelKind::Gre, IpAddr::V4(_)) => Shape::Gre4,
            (TunnelKind::Gre, IpAddr::V6(_)) => Shape::Gre6,
            (_, IpAddr::V4(_)) => Shape::Udp4,
            (_, IpAddr::V6(_)) => Shape::Udp6,
        };
        let pseudo = match outer.kind {
            TunnelKind::Gre => Sum::default(),
            // Both IP headers end with the addresses; lengths are zero here.
            _ if ip.len() == IPV4 => Sum::pseudo_header(&ip[12..], IpProto::UDP, 0),
            _ => Sum::pseudo_header(&ip[8..], IpProto::UDP, 0),
        };
        let bytes = [&l2[..], &ip, &l4].concat();
        let mut headers = [0; MAX_HEADERS];
        headers[..bytes.len()].copy_from_slice(&bytes);
        Ok(Template {
            headers,
            len: bytes.len() as u8,
            l3: l2.len() as u8,
            shape,
            l3_sum: Sum::of(&ip),
            l4_sum: pseudo + Sum::of(&l4),
            outer: outer.clone(),
        })
    }

    /// What the headers say.
    pub fn outer(&self) -> &Outer {
        &self.outer
    }

    /// Bytes in front of the inner frame: 38 to 78.
    #[allow(clippy::len_without_is_empty)] // never empty
    #[inline]
    pub fn len(&self) -> usize {
        self.len.into()
    }

    /// Bytes from the outer IP header up to the inner Ethernet header, which an MTU must have room for: 24 to 56.
    #[inline]
    pub fn l3_len(&self) -> usize {
        (self.len - self.l3).into()
    }

    /// Whether [`Template::write`] sums the inner frame. A checksum in there that is left to a card must then be
    /// completed before, or the outer one would be wrong.
    #[inline]
    pub fn wants_checksum(&self) -> bool {
        self.outer.csum
    }

    /// Writes the headers into the first [`Template::len`] bytes of `frame`, whose rest is the inner frame: one, since
    /// what is to be cut gets headers for each segment. The low 14 bits of `entropy`, the same for all frames
    /// of a flow, make the UDP source port, which is 49152 to 65535.
    ///
    /// # Errors
    /// [`TooLong`], and no change: the lengths of 16 bits have no room for this frame.
    ///
    /// # Panics
    /// If `frame` is shorter than [`Template::len`].
    #[inline(always)]
    pub fn write(&self, frame: &mut [u8], entropy: u16) -> Result<(), TooLong> {
        let packet = frame.len().wrapping_sub(ETHERNET);
        match (self.shape, u16::try_from(packet), frame.first_chunk_mut()) {
            (Shape::Plain, Ok(total), Some(headers)) => {
                self.write_plain(headers, total, entropy);
                Ok(())
            }
            _ => self.write_any(frame, entropy),
        }
    }

    /// Headers of [`Shape::Plain`], patched in registers: five stores, and 10 cycles instead of 13
    /// (`vxlan-ipv4/60` in `benches/encap`).
    #[inline(always)]
    fn write_plain(&self, to: &mut [u8; PLAIN], total: u16, entropy: u16) {
        // The first octet is the lowest: so what varies is put in by shifts, in network order.
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| self.headers[at + i]));
        let network = |value: u16| u64::from(value.swap_bytes());
        let checksum = (self.l3_sum + Sum::of(&total.to_be_bytes())).checksum();
        let length = word(16) | network(total);
        let sum = word(24) | u64::from(u16::from_le_bytes(checksum));
        let ports = word(32) | network(DYNAMIC_PORTS | entropy) << 16 | network(total - IPV4 as u16) << 48;
        to[..16].copy_from_slice(&self.headers[..16]);
        to[34..].copy_from_slice(&self.headers[34..PLAIN]);
        to[16..24].copy_from_slice(&length.to_le_bytes());
        to[24..32].copy_from_slice(&sum.to_le_bytes());
        to[32..40].copy_from_slice(&ports.to_le_bytes());
    }

    #[inline(never)]
    fn write_any(&self, frame: &mut [u8], entropy: u16) -> Result<(), TooLong> {
        let (headers, inner) = frame.split_at_mut(self.len());
        let packet = self.l3_len() + inner.len();
        let total = u16::try_from(packet).map_err(|_| TooLong(packet))?;
        self.copy(headers);
        let packet = &mut headers[usize::from(self.l3)..];
        match self.shape {
            Shape::Plain | Shape::Udp4 => {
                self.udp(self.ipv4(packet, total, inner), total - IPV4 as u16, inner, entropy)
            }
            Shape::Udp6 => self.udp(ipv6(packet, total), total - IPV6 as u16, inner, entropy),
            Shape::Gre4 => self.gre(self.ipv4(packet, total, inner), inner),
            Shape::Gre6 => self.gre(ipv6(packet, total), inner),
        }
        Ok(())
    }

    /// Copies all headers: the first and the last bytes, which may overlap, and those between, if there are any.
    #[inline]
    fn copy(&self, to: &mut [u8]) {
        let from = &self.headers[..self.len()];
        chunk(to, 0).copy_from_slice(&from[..CHUNK]);
        if from.len() > 2 * CHUNK {
            chunk(to, CHUNK).copy_from_slice(&from[CHUNK..2 * CHUNK]);
        }
        let last = from.len() - CHUNK;
        chunk(to, last).copy_from_slice(&from[last..]);
    }

    /// Completes the IPv4 header in front of what it returns.
    #[inline]
    fn ipv4<'a>(&self, packet: &'a mut [u8], total: u16, inner: &[u8]) -> &'a mut [u8] {
        let (ip, rest) = split::<IPV4>(packet);
        let total = total.to_be_bytes();
        let mut sum = self.l3_sum + Sum::of(&total);
        if !self.outer.df {
            let identification = identification(inner);
            ip[4..6].copy_from_slice(&identification);
            sum = sum + Sum::of(&identification);
        }
        ip[2..4].copy_from_slice(&total);
        ip[10..12].copy_from_slice(&sum.checksum());
        rest
    }

    #[inline]
    fn udp(&self, packet: &mut [u8], len: u16, inner: &[u8], entropy: u16) {
        let (udp, _) = split::<UDP>(packet);
        let (port, len) = ((DYNAMIC_PORTS | entropy).to_be_bytes(), len.to_be_bytes());
        udp[..2].copy_from_slice(&port);
        udp[4..6].copy_from_slice(&len);
        if self.outer.csum {
            let length = Sum::of(&len); // once in the pseudo header, once in the header
            let sum = self.l4_sum + Sum::of(&port) + length + length + Sum::of(inner);
            udp[UDP_FIELD..].copy_from_slice(&sum.checksum_not_zero());
        }
    }

    #[inline]
    fn gre(&self, packet: &mut [u8], inner: &[u8]) {
        if self.outer.csum {
            let checksum = (self.l4_sum + Sum::of(inner)).checksum();
            packet[gre::CHECKSUM_FIELD..][..2].copy_from_slice(&checksum);
        }
    }
}

#[inline]
fn ipv6(packet: &mut [u8], total: u16) -> &mut [u8] {
    let (ip, rest) = split::<IPV6>(packet);
    ip[4..6].copy_from_slice(&(total - IPV6 as u16).to_be_bytes());
    rest
}

#[inline]
fn split<const N: usize>(packet: &mut [u8]) -> (&mut [u8; N], &mut [u8]) {
    packet.split_first_chunk_mut().expect("a template's headers have the parts of its shape")
}

#[inline]
fn chunk(to: &mut [u8], at: usize) -> &mut [u8; CHUNK] {
    to[at..].first_chunk_mut().expect("a template's headers are longer than a chunk")
}

/// A hash of the first 64 bytes. Not a sum: in an IP packet that barely varies, since its checksums make up
/// for all else.
fn identification(inner: &[u8]) -> [u8; 2] {
    let (words, _) = inner[..inner.len().min(64)].as_chunks::<8>();
    let mix =
        |hash: u64, word: &[u8; 8]| (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = words.iter().fold(0, |hash, word| mix(hash, word).rotate_left(29));
    ((hash >> 48) as u16 ^ hash as u16).to_be_bytes()
}

fn ethernet_header(outer: &Outer) -> Vec<u8> {
    let mut header = [outer.eth_dst.0, outer.eth_src.0].concat();
    for tag in &outer.tags {
        header.extend([tag.tpid.0.to_be_bytes(), tag.tci.to_be_bytes()].concat());
    }
    let ether_type = if outer.src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
    header.extend(ether_type.0.to_be_bytes());
    header
}

/// The IP header without lengths and checksum.
fn ip_header(outer: &Outer) -> Result<Vec<u8>, TemplateError> {
    let (tos, ttl, IpProto(proto)) = (outer.tos, outer.ttl, outer.kind.proto());
    match (outer.src, outer.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let flags = if outer.df { DF } else { 0 };
            let fixed = [0x45, tos, 0, 0, 0, 0, flags, 0, ttl, proto, 0, 0];
            Ok([&fixed[..], &src.octets(), &dst.octets()].concat())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let fixed = [0x60 | tos >> 4, tos << 4, 0, 0, 0, 0, proto, ttl];
            Ok([&fixed[..], &src.octets(), &dst.octets()].concat())
        }
        (src, dst) => Err(TemplateError::Families { src, dst }),
    }
}

/// The UDP header without source port, length and checksum, or nothing, and the tunnel's header.
fn tunnel_header(outer: &Outer) -> Result<Vec<u8>, TemplateError> {
    let vni = || outer.id.ok_or(TemplateError::NoVni(outer.kind)).and_then(|id| Ok(Vni::new(id)?));
    let [high, low] = outer.dst_port.to_be_bytes();
    let udp = |header| [[0, 0, high, low, 0, 0, 0, 0], header].concat();
    match outer.kind {
        TunnelKind::Vxlan => Ok(udp(vxlan::Repr { vni: vni()? }.emit())),
        TunnelKind::Geneve => Ok(udp(geneve::Repr { vni: vni()?, oam: false }.emit())),
        TunnelKind::Gre => {
            let repr = gre::Repr { key: outer.id.map(GreKey), sequence: None, checksum: outer.csum };
            let mut header = vec![0; repr.header_len()];
            repr.emit(&mut header);
            if outer.csum {
                header[gre::CHECKSUM_FIELD..][..2].fill(0);
            }
            Ok(header)
        }
    }
}
