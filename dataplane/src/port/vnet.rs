//! `struct virtio_net_hdr`, the ten bytes in front of a frame in which Linux and guests say what is left to do
//! on it (virtio 1.2 section 5.1.6.2; TAP's `IFF_VNET_HDR`, AF_PACKET's `PACKET_VNET_HDR`).
//!
//! What comes in is hostile: [`parse`] refuses a header that does not fit its frame, so that whoever completes
//! the checksum or cuts the frame may trust the [`Offload`]. Both directions cost a few loads and stores.
//!
//! Fields are in the byte order of the machine, as the kernel's legacy interfaces have them.
//! UDP fragmentation offload (`GSO_UDP`), which Linux gave up in 2017, is refused: no port asks for it.

use encap::offload::{Csum, Gso, Offload};
use thiserror::Error;

use super::Counters;
use crate::frame::Frame;

/// Bytes of a header.
pub const LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: somebody checked the sum; we do not use it.
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// With TCP only: the first segment alone keeps the CWR flag (RFC 3168 section 6.1.2).
const GSO_ECN: u8 = 0x80;

const ETHERNET: usize = 14;
const UDP: usize = 8;
const TCP: usize = 20;
/// Where in a TCP header: the data offset (upper four bits), the flags, the checksum.
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CSUM: u16 = 16;
/// Where in a UDP header the checksum is.
const UDP_CSUM: u16 = 6;
const TCP_CWR: u8 = 0x80;

/// A header that does not describe its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VnetError {
    /// Flags that were not negotiated.
    #[error("vnet header has unknown flags {0:#04x}")]
    Flags(u8),
    /// A kind of segmentation that was not negotiated (UFO among them).
    #[error("vnet header asks for unknown segmentation {0:#04x}")]
    Gso(u8),
    /// Segments of no bytes.
    #[error("vnet header asks for segments of zero bytes")]
    SegmentSize,
    /// Segmentation needs the place of the transport header.
    #[error("vnet header asks for segmentation {0:#04x} without a partial checksum of that protocol")]
    GsoWithoutCsum(u8),
    /// The checksum lies outside the frame.
    #[error("vnet header puts the checksum at {start} + {offset} in a frame of {len} bytes")]
    Outside {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// The frame's length.
        len: usize,
    },
}

/// Reads the header of `frame` (Ethernet header first, VLAN tags in place).
///
/// What it returns fits the frame: the checksum field, and the transport header of a GSO frame, lie inside.
///
/// # Errors
/// [`VnetError`]: the frame is to be dropped.
pub fn parse(header: &[u8; LEN], frame: &[u8]) -> Result<Offload, VnetError> {
    let [flags, gso_type] = [header[0], header[1]];
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    if flags & !(NEEDS_CSUM | DATA_VALID) != 0 {
        return Err(VnetError::Flags(flags));
    }
    let csum = match flags & NEEDS_CSUM {
        0 => Csum::None,
        _ => csum(word(6), word(8), frame.len())?,
    };
    let gso = match gso_type {
        GSO_NONE => Gso::None,
        _ => gso(gso_type, word(4), csum)?,
    };
    if let (Gso::Tcp4 { .. } | Gso::Tcp6 { .. }, Csum::Partial { start, offset }) = (gso, csum) {
        fits(start, offset, TCP, frame.len())?;
    }
    Ok(Offload { csum, gso })
}

fn csum(start: u16, offset: u16, len: usize) -> Result<Csum, VnetError> {
    if usize::from(start) < ETHERNET {
        return Err(VnetError::Outside { start, offset, len });
    }
    fits(start, offset, usize::from(offset) + 2, len)?;
    Ok(Csum::Partial { start, offset })
}

/// Are there `need` bytes from `start` on?
fn fits(start: u16, offset: u16, need: usize, len: usize) -> Result<(), VnetError> {
    let inside = usize::from(start) + need <= len;
    inside.then_some(()).ok_or(VnetError::Outside { start, offset, len })
}

fn gso(kind: u8, size: u16, csum: Csum) -> Result<Gso, VnetError> {
    let (gso, field) = match kind & !GSO_ECN {
        GSO_TCPV4 => (Gso::Tcp4 { mss: size }, TCP_CSUM),
        GSO_TCPV6 => (Gso::Tcp6 { mss: size }, TCP_CSUM),
        GSO_UDP_L4 if kind & GSO_ECN == 0 => (Gso::Udp { size }, UDP_CSUM),
        _ => return Err(VnetError::Gso(kind)),
    };
    match csum {
        _ if size == 0 => Err(VnetError::SegmentSize),
        Csum::Partial { offset, .. } if offset == field => Ok(gso),
        _ => Err(VnetError::GsoWithoutCsum(kind)),
    }
}

/// Writes the header that tells the other side what is left to do on `frame`.
pub fn emit(offload: &Offload, frame: &[u8]) -> [u8; LEN] {
    let mut header = [0; LEN];
    let Csum::Partial { start, offset } = offload.csum else { return header };
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..10].copy_from_slice(&offset.to_ne_bytes());
    let transport = frame.get(usize::from(start)..).unwrap_or_default();
    let (kind, size, header_len) = match offload.gso {
        Gso::None => return header,
        Gso::Tcp4 { mss } => (GSO_TCPV4 | ecn(transport), mss, tcp_len(transport)),
        Gso::Tcp6 { mss } => (GSO_TCPV6 | ecn(transport), mss, tcp_len(transport)),
        Gso::Udp { size } => (GSO_UDP_L4, size, UDP),
    };
    let headers = (usize::from(start) + header_len).min(frame.len()) as u16;
    header[1] = kind;
    header[2..4].copy_from_slice(&headers.to_ne_bytes());
    header[4..6].copy_from_slice(&size.to_ne_bytes());
    header
}

/// Finishes a frame of `len` bytes that the kernel has written into its room, and its header.
/// `false`: it was longer than the room, or its header lies; it is counted, and to be freed.
pub(super) fn arrive(frame: &mut Frame, len: usize, header: &[u8; LEN], counters: &mut Counters) -> bool {
    if len > frame.room() {
        let lost = if frame.chunk().is_big() { &mut counters.rx_errors } else { &mut counters.rx_missed };
        *lost += 1;
        return false;
    }
    frame.set_len(len);
    let parsed = parse(header, frame.bytes());
    match parsed {
        Ok(offload) => frame.offload = offload,
        Err(_) => counters.rx_errors += 1,
    }
    parsed.is_ok()
}

/// The ECN bit, from the one place that cannot contradict it: the CWR flag of the segment itself. So an
/// [`Offload`] need not carry it (Linux sets it by the same rule, `tcp_gro_complete`).
fn ecn(tcp: &[u8]) -> u8 {
    let cwr = tcp.get(TCP_FLAGS).is_some_and(|flags| flags & TCP_CWR != 0);
    if cwr { GSO_ECN } else { 0 }
}

fn tcp_len(tcp: &[u8]) -> usize {
    tcp.get(TCP_DATA_OFFSET).map_or(TCP, |word| usize::from(word >> 4) * 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(flags: u8, gso: u8, size: u16, (start, offset): (u16, u16)) -> [u8; LEN] {
        let mut header = [flags, gso, 0, 0, 0, 0, 0, 0, 0, 0];
        header[4..6].copy_from_slice(&size.to_ne_bytes());
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..10].copy_from_slice(&offset.to_ne_bytes());
        header
    }

    #[test]
    fn what_lies_is_refused() {
        let frame = [0; 60];
        let refused = |header| parse(&header, &frame).unwrap_err();
        assert_eq!(refused(header(4, 0, 0, (0, 0))), VnetError::Flags(4));
        assert_eq!(refused(header(1, 3, 100, (34, 6))), VnetError::Gso(3));
        assert_eq!(refused(header(1, GSO_UDP_L4 | GSO_ECN, 100, (34, 6))), VnetError::Gso(0x85));
        assert_eq!(refused(header(1, 1, 0, (34, 16))), VnetError::SegmentSize);
        assert_eq!(refused(header(0, 1, 100, (0, 0))), VnetError::GsoWithoutCsum(1));
        assert_eq!(refused(header(1, 1, 100, (34, 6))), VnetError::GsoWithoutCsum(1));
        for (start, offset) in [(13, 6), (43, 16), (60, 0), (0xffff, 0xffff)] {
            assert_eq!(
                refused(header(1, 0, 0, (start, offset))),
                VnetError::Outside { start, offset, len: 60 }
            );
        }
        assert!(matches!(refused(header(1, 1, 100, (41, 16))), VnetError::Outside { start: 41, .. }));
    }

    #[test]
    fn a_checksum_somebody_verified_leaves_nothing_to_do() {
        assert_eq!(parse(&header(DATA_VALID, 0, 0, (0, 0)), &[0; 60]), Ok(Offload::NONE));
    }

    #[test]
    fn the_ecn_bit_follows_the_cwr_flag() {
        let offload =
            Offload { csum: Csum::Partial { start: 38, offset: TCP_CSUM }, gso: Gso::Tcp4 { mss: 1400 } };
        let mut frame = [0u8; 200];
        frame[38 + TCP_DATA_OFFSET] = 8 << 4;
        assert_eq!(emit(&offload, &frame)[1], GSO_TCPV4);
        assert_eq!(emit(&offload, &frame)[2..4], 70u16.to_ne_bytes());
        frame[38 + TCP_FLAGS] = TCP_CWR | 0x10;
        assert_eq!(emit(&offload, &frame)[1], GSO_TCPV4 | GSO_ECN);
        assert_eq!(parse(&emit(&offload, &frame), &frame), Ok(offload));
    }

    fn offload() -> impl Strategy<Value = Offload> {
        let size = 1..=u16::MAX;
        (14u16..1000, 0u16..100, size, 0u8..5).prop_map(|(start, offset, size, kind)| {
            let partial = |offset| Csum::Partial { start, offset };
            match kind {
                0 => Offload::NONE,
                1 => Offload { csum: partial(offset), gso: Gso::None },
                2 => Offload { csum: partial(TCP_CSUM), gso: Gso::Tcp4 { mss: size } },
                3 => Offload { csum: partial(TCP_CSUM), gso: Gso::Tcp6 { mss: size } },
                _ => Offload { csum: partial(UDP_CSUM), gso: Gso::Udp { size } },
            }
        })
    }

    proptest! {
        #[test]
        fn parse_undoes_emit(offload in offload(), byte: u8) {
            let frame = [byte; 1200];
            prop_assert_eq!(parse(&emit(&offload, &frame), &frame), Ok(offload));
        }

        #[test]
        fn any_header_is_refused_or_fits_the_frame(mut header: [u8; LEN], small: bool, len in 0usize..200) {
            if small {
                // Most random headers are refused at the first field: these get further.
                header[0] &= 3;
                header[1] &= 5;
                [header[7], header[9]] = [0, 0];
            }
            let frame = vec![0xff; len];
            if let Ok(offload) = parse(&header, &frame) {
                prop_assert_eq!(parse(&emit(&offload, &frame), &frame), Ok(offload));
                if let Csum::Partial { start, offset } = offload.csum {
                    prop_assert!(usize::from(start) + usize::from(offset) + 2 <= len);
                }
            }
        }
    }
}
