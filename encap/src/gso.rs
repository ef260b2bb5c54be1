//! Cutting a big TCP or UDP frame into segments, for ports that cannot have it done by a card.
//!
//! The idea: all segments share their headers but for a few fields, so whatever of a checksum does not change
//! is summed once. A segment then costs one copy, one sum over its payload and the patching of at most six
//! fields. As Linux does in `tcp_gso_segment` and `__udp_gso_segment`: RFC 9293 sequence numbers; FIN and PSH on
//! the last segment only, CWR on the first only (RFC 3168 section 6.1.2); the IPv4 identification counts up.
//!
//! The frame is as hostile as its metadata. At most [`MAX_SEGMENTS`] come out of one frame, each with at most
//! [`MAX_HEADERS`] bytes in front of its payload.

use thiserror::Error;

use crate::checksum::{Sum, TCP_FIELD, UDP_FIELD};
use crate::field::{EtherType, IpProto};
use crate::offload::{Csum, Gso, Offload};
use crate::offsets::{Fragment, walk};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The most segments one frame becomes. 64 KiB at the smallest segment size that Linux negotiates
/// (`TCP_MIN_MSS`, 88, less 12 for timestamps) are 863; a smaller size is a way to make a switch work.
pub const MAX_SEGMENTS: usize = 1024;

/// The most bytes of headers that are repeated. Two tags, IPv4 and TCP with all options are 142; an IPv6 segment
/// routing header of sixteen hops has 264.
pub const MAX_HEADERS: usize = 512;

/// A frame that cannot be cut as its offload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GsoError {
    /// Nothing to cut.
    #[error("frame is not to be cut")]
    NotBig,
    /// The frame carries something else, or a fragment.
    #[error("frame to be cut as {0:?} has no such transport header")]
    Transport(Gso),
    /// What is left to do is not the checksum of the header that is repeated.
    #[error("frame to be cut leaves {0:?} instead of its transport checksum")]
    Checksum(Csum),
    /// A data offset that is too small, or beyond the packet.
    #[error("TCP header of {0} bytes does not fit into its packet")]
    TcpHeader(usize),
    /// More to repeat than anyone needs.
    #[error("headers of {0} bytes are more than {MAX_HEADERS}")]
    Headers(usize),
    /// Segments without payload, or too many.
    #[error("{payload} bytes in segments of {size} are more than {MAX_SEGMENTS} segments")]
    Size {
        /// Bytes to distribute.
        payload: usize,
        /// Bytes per segment.
        size: u16,
    },
}

/// The L3 length of the largest segment, IP header included: what an MTU limits.
///
/// # Errors
/// As [`segments`].
pub fn segment_l3_len(frame: &[u8], offload: Offload) -> Result<usize, GsoError> {
    let layout = Layout::new(frame, offload)?;
    Ok(layout.payload - layout.l3 + layout.size.min(layout.end - layout.payload))
}

/// The offload with which no segment's L3 length, IP header included, is above `l3_max` bytes: for a way that
/// carries less than the sender believed. TCP is a stream and can be cut shorter; to cut a datagram shorter
/// would be to make two of it.
///
/// `None` if offload and frame do not agree, or the frame cannot be cut so: UDP that is too long, no room
/// for payload behind the headers, or more than [`MAX_SEGMENTS`].
pub fn fit(frame: &[u8], offload: Offload, l3_max: usize) -> Option<Offload> {
    let layout = Layout::new(frame, offload).ok()?;
    let payload = layout.end - layout.payload;
    let room = l3_max.checked_sub(layout.payload - layout.l3)?;
    if layout.size.min(payload) <= room {
        return Some(offload);
    }
    let mss = u16::try_from(room).ok().filter(|mss| payload <= usize::from(*mss) * MAX_SEGMENTS)?;
    let gso = match offload.gso {
        Gso::Tcp4 { .. } => Gso::Tcp4 { mss },
        Gso::Tcp6 { .. } => Gso::Tcp6 { mss },
        Gso::Udp { .. } | Gso::None => return None,
    };
    Some(Offload { gso, ..offload })
}

/// Prepares to cut `frame`. VLAN tags and everything else in front of the payload is repeated.
///
/// # Errors
/// [`GsoError`]: offload and frame do not agree, or make no sense.
pub fn segments(frame: &[u8], offload: Offload) -> Result<Segments<'_>, GsoError> {
    Layout::new(frame, offload).map(|layout| Segments::new(frame, layout))
}

/// The transports that can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn checksum_field(self) -> usize {
        match self {
            Transport::Tcp => TCP_FIELD,
            Transport::Udp => UDP_FIELD,
        }
    }
}

/// Where the parts of a big frame are: `l3 < l4 < payload <= end`, all inside the frame, and `size > 0`.
#[derive(Debug, Clone, Copy)]
struct Layout {
    ether_type: EtherType,
    transport: Transport,
    l3: usize,
    l4: usize,
    payload: usize,
    end: usize,
    size: usize,
}

impl Layout {
    fn new(frame: &[u8], offload: Offload) -> Result<Layout, GsoError> {
        let no_such = GsoError::Transport(offload.gso);
        let offsets = walk(frame).map_err(|_| no_such)?;
        let ip = offsets.ip.filter(|ip| ip.fragment == Fragment::No).ok_or(no_such)?;
        let l4 = ip.l4().ok_or(no_such)?;
        let (transport, size) = match (offload.gso, offsets.ether_type, ip.proto) {
            (Gso::None, ..) => return Err(GsoError::NotBig),
            (Gso::Tcp4 { mss }, EtherType::IPV4, IpProto::TCP) => (Transport::Tcp, mss),
            (Gso::Tcp6 { mss }, EtherType::IPV6, IpProto::TCP) => (Transport::Tcp, mss),
            (Gso::Udp { size }, _, IpProto::UDP) => (Transport::Udp, size),
            _ => return Err(no_such),
        };
        let field = Csum::Partial { start: l4 as u16, offset: transport.checksum_field() as u16 };
        if offload.csum != field {
            return Err(GsoError::Checksum(offload.csum));
        }
        let header = match transport {
            Transport::Tcp => usize::from(frame[l4 + 12] >> 4) * 4,
            Transport::Udp => 8,
        };
        let (payload, end) = (l4 + header, ip.end());
        if transport == Transport::Tcp && (header < 20 || payload > end) {
            return Err(GsoError::TcpHeader(header));
        }
        if payload > MAX_HEADERS {
            return Err(GsoError::Headers(payload));
        }
        if usize::from(size) * MAX_SEGMENTS < (end - payload).max(1) {
            return Err(GsoError::Size { payload: end - payload, size });
        }
        let ether_type = offsets.ether_type;
        Ok(Layout { ether_type, transport, l3: ip.l3(), l4, payload, end, size: usize::from(size) })
    }
}

/// The segments of one frame, not yet written.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    frame: &'a [u8],
    layout: Layout,
    /// The IPv4 header without total length, identification and checksum.
    l3_sum: Sum,
    /// Pseudo header without length, transport header without what changes.
    l4_sum: Sum,
}

impl<'a> Segments<'a> {
    fn new(frame: &'a [u8], layout: Layout) -> Self {
        let Layout { l3, l4, payload, end, transport, .. } = layout;
        let (ip, header) = (&frame[l3..l4], &frame[l4..payload]);
        let l3_sum = Sum::of(&ip[..2]) + Sum::of(&ip[6..10]) + Sum::of(&ip[12..]);
        // The field holds the sum of the pseudo header: right even behind a routing header.
        let pseudo = Sum::of(&header[transport.checksum_field()..][..2]) - length(end - l4);
        let l4_sum = match transport {
            Transport::Tcp => {
                Sum::of(&header[..4])
                    + Sum::of(&header[8..12])
                    + Sum::of(&header[14..16])
                    + Sum::of(&header[18..])
            }
            Transport::Udp => Sum::of(&header[..4]),
        };
        Segments { frame, layout, l3_sum, l4_sum: pseudo + l4_sum }
    }

    /// How many there are: 1 to [`MAX_SEGMENTS`].
    #[inline]
    pub fn count(&self) -> usize {
        (self.layout.end - self.layout.payload).div_ceil(self.layout.size).max(1)
    }

    /// Bytes of segment `index`, headers included.
    ///
    /// # Panics
    /// From [`Segments::count`] on.
    #[inline]
    pub fn frame_len(&self, index: usize) -> usize {
        self.layout.payload + self.payload(index).len()
    }

    fn payload(&self, index: usize) -> &'a [u8] {
        assert!(index < self.count(), "segment {index} of {}", self.count());
        let start = self.layout.payload + index * self.layout.size;
        &self.frame[start..(start + self.layout.size).min(self.layout.end)]
    }

    /// Writes segment `index`, complete with checksums.
    ///
    /// # Panics
    /// From [`Segments::count`] on, and if `out` is not [`Segments::frame_len`] long.
    pub fn write(&self, index: usize, out: &mut [u8]) {
        let Layout { ether_type, transport, l3, l4, payload: headers, .. } = self.layout;
        let payload = self.payload(index);
        out[..headers].copy_from_slice(&self.frame[..headers]);
        out[headers..].copy_from_slice(payload);
        match ether_type {
            EtherType::IPV4 => self.patch_ipv4(index, &mut out[l3..]),
            _ => patch_ipv6(&mut out[l3..]),
        }
        let sum = self.l4_sum + length(out.len() - l4) + Sum::of(payload);
        match transport {
            Transport::Tcp => self.patch_tcp(index, &mut out[l4..headers], sum),
            Transport::Udp => patch_udp(&mut out[l4..], sum),
        }
    }

    fn patch_ipv4(&self, index: usize, packet: &mut [u8]) {
        let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(index as u16);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let sum = self.l3_sum + Sum::of(&packet[2..6]);
        packet[10..12].copy_from_slice(&sum.checksum());
    }

    fn patch_tcp(&self, index: usize, header: &mut [u8], sum: Sum) {
        let first = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let sequence = first.wrapping_add((index * self.layout.size) as u32);
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        if index > 0 {
            header[13] &= !CWR;
        }
        if index + 1 < self.count() {
            header[13] &= !(FIN | PSH);
        }
        let sum = sum + Sum::of(&header[4..8]) + Sum::of(&header[12..14]);
        header[TCP_FIELD..][..2].copy_from_slice(&sum.checksum());
    }
}

fn patch_ipv6(packet: &mut [u8]) {
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
}

fn patch_udp(datagram: &mut [u8], sum: Sum) {
    let len = datagram.len() as u16;
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    let sum = sum + length(datagram.len());
    datagram[UDP_FIELD..][..2].copy_from_slice(&sum.checksum_not_zero());
}

/// What a length adds to a sum.
fn length(len: usize) -> Sum {
    Sum::of(&(len as u32).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use etherparse::{IpHeaders, IpNumber, Ipv6RawExtHeader};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::packets::{self, Packet, over_ipv6};

    fn gso(packet: &Packet, size: u16) -> Gso {
        match (&packet.transport, &packet.ip) {
            (packets::Transport::Udp, _) => Gso::Udp { size },
            (_, IpHeaders::Ipv4(..)) => Gso::Tcp4 { mss: size },
            (_, IpHeaders::Ipv6(..)) => Gso::Tcp6 { mss: size },
        }
    }

    /// The segment that a sender without offload would have sent.
    fn expected(packet: &Packet, index: usize, size: usize) -> Vec<u8> {
        let mut segment = packet.clone();
        let chunks: Vec<_> = packet.payload.chunks(size).collect();
        let last = index + 1 >= chunks.len();
        segment.payload = chunks.get(index).map_or(Vec::new(), |chunk| chunk.to_vec());
        if let IpHeaders::Ipv4(header, _) = &mut segment.ip {
            header.identification = header.identification.wrapping_add(index as u16);
        }
        if let packets::Transport::Tcp(tcp) = &mut segment.transport {
            tcp.sequence_number = tcp.sequence_number.wrapping_add((index * size) as u32);
            (tcp.fin, tcp.psh) = (tcp.fin && last, tcp.psh && last);
            tcp.cwr &= index == 0;
        }
        segment.bytes()
    }

    fn check(packet: &Packet, size: u16) {
        let (mut frame, csum) = packet.left_to_a_card();
        frame.extend([0; 3]);
        let offload = Offload { csum, gso: gso(packet, size) };
        let segments = segments(&frame, offload).unwrap();
        assert_eq!(segments.count(), packet.payload.len().div_ceil(size.into()).max(1));
        let mut l3_len = 0;
        for index in 0..segments.count() {
            let mut out = vec![0xee; segments.frame_len(index)];
            segments.write(index, &mut out);
            assert_eq!(out, expected(packet, index, size.into()), "segment {index}");
            l3_len = l3_len.max(out.len() - packet.l3());
        }
        assert_eq!(segment_l3_len(&frame, offload), Ok(l3_len));
    }

    proptest! {
        #[test]
        fn segments_are_what_a_sender_without_offload_sends(packet in packets::for_a_card(3000), size in 60u16..2000) {
            check(&packet, size);
        }

        #[test]
        fn fitted_segments_fit(packet in packets::for_a_card(3000), size in 60u16..2000, l3_max in 40usize..2100) {
            let (frame, csum) = packet.left_to_a_card();
            let offload = Offload { csum, gso: gso(&packet, size) };
            let headers = frame.len() - packet.l3() - packet.payload.len();
            let room = l3_max.saturating_sub(headers);
            let Some(fitted) = fit(&frame, offload, l3_max) else {
                let is_udp = matches!(packet.transport, packets::Transport::Udp);
                let least = if is_udp { packet.payload.len().min(size.into()) } else { 1 };
                let pieces = packet.payload.len().div_ceil(room.max(1));
                prop_assert!(l3_max < headers || room < least || pieces > MAX_SEGMENTS);
                return Ok(());
            };
            let size = match packet.payload.len().min(size.into()) {
                longest if longest <= room => size,
                _ => room as u16,
            };
            prop_assert_eq!(fitted, Offload { csum, gso: gso(&packet, size) });
            prop_assert!(segment_l3_len(&frame, fitted).unwrap() <= l3_max);
            check(&packet, size);
        }

        #[test]
        fn hostile_frames_are_errors_or_cut_within_bounds(
            packet in packets::for_a_card(300),
            noise in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop_oneof![Just(0), 0usize..40],
            (size, exact) in (0u16..400, any::<bool>()),
            (start, offset) in (0u16..200, 0u16..20),
            l3_max in 0usize..500,
        ) {
            let (mut frame, csum) = packet.left_to_a_card();
            noise.iter().for_each(|(at, octet)| *at.get_mut(&mut frame[12..]) = *octet);
            frame.truncate(frame.len().saturating_sub(cut));
            let csum = if exact { csum } else { Csum::Partial { start, offset } };
            let offload = Offload { csum, gso: gso(&packet, size) };
            let offload = fit(&frame, offload, l3_max).unwrap_or(offload);
            let Ok(segments) = segments(&frame, offload) else { return Ok(()) };
            prop_assert!((1..=MAX_SEGMENTS).contains(&segments.count()));
            for index in 0..segments.count() {
                let mut out = vec![0; segments.frame_len(index)];
                segments.write(index, &mut out);
                prop_assert!(walk(&out).unwrap().ip.is_some());
            }
        }
    }

    #[test]
    fn sixty_four_kilobytes_of_every_kind() {
        let payload: Vec<u8> = (0..65000u32).map(|i| (i * 7) as u8).collect();
        let (tcp, udp) = (packets::tcp_example(), packets::example());
        for mut packet in [over_ipv6(tcp.clone()), over_ipv6(udp.clone()), tcp, udp] {
            packet.payload.clone_from(&payload);
            check(&packet, 1448);
            check(&packet, 64);
        }
    }

    #[test]
    fn metadata_that_does_not_fit_is_refused() {
        let packet = packets::example();
        let (frame, csum) = packet.left_to_a_card();
        let error = |csum, gso| segments(&frame, Offload { csum, gso }).unwrap_err();
        let udp = Gso::Udp { size: 4 };
        assert_eq!(error(csum, Gso::None), GsoError::NotBig);
        assert_eq!(error(csum, Gso::Udp { size: 0 }), GsoError::Size { payload: 7, size: 0 });
        assert_eq!(error(csum, Gso::Tcp4 { mss: 4 }), GsoError::Transport(Gso::Tcp4 { mss: 4 }));
        assert_eq!(error(Csum::None, udp), GsoError::Checksum(Csum::None));
        let elsewhere = Csum::Partial { start: 34, offset: 16 };
        assert_eq!(error(elsewhere, udp), GsoError::Checksum(elsewhere));
        assert_eq!(segments(&frame[..20], Offload { csum, gso: udp }).unwrap_err(), GsoError::Transport(udp));
    }

    #[test]
    fn what_fits_into_a_tunnel() {
        let mut packet = packets::tcp_example();
        packet.payload = vec![7; 60_000];
        let (frame, csum) = packet.left_to_a_card();
        let cut = |mss, l3_max| fit(&frame, Offload { csum, gso: Gso::Tcp4 { mss } }, l3_max).map(|o| o.gso);
        assert_eq!(cut(1460, 1500), Some(Gso::Tcp4 { mss: 1460 }));
        assert_eq!(cut(1460, 1450), Some(Gso::Tcp4 { mss: 1410 }), "through VXLAN");
        assert_eq!(cut(1460, 98), None, "1,035 segments");
        assert_eq!(cut(1460, 40), None, "nothing but headers");
        assert_eq!(cut(1460, 39), None);
        assert_eq!(fit(&frame, Offload { csum, gso: Gso::None }, 65_535), None, "nothing to cut");
    }

    #[test]
    fn datagrams_are_not_made_shorter() {
        let mut packet = packets::example();
        packet.payload = vec![7; 3000];
        let (frame, csum) = packet.left_to_a_card();
        let offload = Offload { csum, gso: Gso::Udp { size: 1400 } };
        assert_eq!(fit(&frame, offload, 1428), Some(offload));
        assert_eq!(fit(&frame, offload, 1427), None);
    }

    #[test]
    fn a_lying_tcp_header_is_refused() {
        let packet = packets::tcp_example();
        let (mut frame, csum) = packet.left_to_a_card();
        let offload = Offload { csum, gso: gso(&packet, 100) };
        for (data_offset, len) in [(0x40, 16), (0x70, 28), (0xf0, 60)] {
            frame[packet.l4() + 12] = data_offset;
            assert_eq!(segments(&frame, offload).unwrap_err(), GsoError::TcpHeader(len));
        }
    }

    #[test]
    fn the_headers_are_limited() {
        let mut packet = over_ipv6(packets::tcp_example());
        let IpHeaders::Ipv6(_, extensions) = &mut packet.ip else { unreachable!("just made") };
        extensions.hop_by_hop_options = Some(Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[0; 462]).unwrap());
        let (frame, csum) = packet.left_to_a_card();
        let error = segments(&frame, Offload { csum, gso: gso(&packet, 100) }).unwrap_err();
        assert_eq!(error, GsoError::Headers(14 + 40 + 464 + 20));
    }

    #[test]
    fn the_number_of_segments_is_limited() {
        let mut packet = packets::tcp_example();
        packet.payload = vec![0; 2 * MAX_SEGMENTS + 1];
        let (frame, csum) = packet.left_to_a_card();
        let cut = |mss| segments(&frame, Offload { csum, gso: Gso::Tcp4 { mss } }).map(|s| s.count());
        assert_eq!(cut(3), Ok(683));
        assert_eq!(cut(2), Err(GsoError::Size { payload: 2 * MAX_SEGMENTS + 1, size: 2 }));
    }
}
