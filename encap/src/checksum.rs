//! Internet checksums: ones-complement sums (RFC 1071), their incremental update (RFC 1624), and the partial
//! checksums that a sender leaves to its network card (virtio 1.2 section 5.1.6.2).
//!
//! The idea: a [`Sum`] is a number modulo 2^16 - 1, kept in 32 bits and in the byte order of the machine (RFC
//! 1071 section 2 (B)), so that sums of parts add up in any order and nothing is swapped. Cost: one pass over
//! the bytes.

use std::ops::{Add, Sub};

use thiserror::Error;

use crate::field::IpProto;
use crate::offload::Csum;
use crate::offsets::{Fragment, Offsets};

/// A checksum field, as it stands on the wire.
pub type Field = [u8; 2];

/// Bytes from the start of a TCP header to its checksum.
pub const TCP_FIELD: usize = 16;
/// Bytes from the start of a UDP header to its checksum.
pub const UDP_FIELD: usize = 6;

/// A partial checksum that cannot be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChecksumError {
    /// The field lies, or the sum begins, behind the end of the frame.
    #[error("checksum field at {start} + {offset} is outside the frame of {len} bytes")]
    Outside {
        /// Where the sum begins.
        start: u16,
        /// The field, from there.
        offset: u16,
        /// The frame's length.
        len: usize,
    },
}

/// A ones-complement sum of 16-bit words. Zero only if all words were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sum(u32);

impl Sum {
    /// The sum of bytes that begin at an even offset of what is summed. A last odd byte is padded with zero.
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        // Words of 32 bits into 64: no carry to care about below 16 GiB, and the compiler uses vectors.
        let (words, rest) = bytes.as_chunks::<4>();
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Sum::fold(sum) + Sum(u32::from_ne_bytes(last))
    }

    /// The sum of the pseudo header of TCP, UDP (RFC 9293 section 3.1) and, over IPv6, ICMPv6 (RFC 8200
    /// section 8.1). `addresses` are source and destination as they stand in the IP header, `len` is the bytes
    /// of transport header and payload.
    #[inline]
    pub fn pseudo_header(addresses: &[u8], proto: IpProto, len: usize) -> Sum {
        let words = [0, 0, 0, proto.0];
        Sum::of(addresses) + Sum::of(&words) + Sum::of(&(len as u32).to_be_bytes())
    }

    /// What belongs into the checksum field if this is the sum of all else.
    #[inline]
    pub fn checksum(self) -> Field {
        (!self.word()).to_ne_bytes()
    }

    /// As [`Sum::checksum`], but never zero: where zero means "no checksum" (UDP, RFC 768), all ones say the
    /// same and are as good for everyone else.
    #[inline]
    pub fn checksum_not_zero(self) -> Field {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            field => field,
        }
    }

    /// What a sender leaves in the field for a network card, if this is the sum of the pseudo header.
    #[inline]
    pub fn partial(self) -> Field {
        self.word().to_ne_bytes()
    }

    /// True if this, the sum of all that a checksum covers and of the checksum, says that nothing changed.
    #[inline]
    pub fn verifies(self) -> bool {
        self.word() == 0xffff
    }

    #[inline]
    fn word(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        (once + (once >> 16)) as u16
    }

    #[inline]
    fn fold(sum: u64) -> Sum {
        Sum(sum as u32) + Sum((sum >> 32) as u32)
    }
}

impl Add for Sum {
    type Output = Sum;

    #[inline]
    fn add(self, other: Sum) -> Sum {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Sum(sum + u32::from(carry))
    }
}

impl Sub for Sum {
    type Output = Sum;

    #[inline]
    fn sub(self, other: Sum) -> Sum {
        self + Sum(!other.0)
    }
}

/// The checksum after covered bytes changed from `old` to `new` (RFC 1624, equation 3). Both begin at an even
/// offset. The same as a full sum, unless all covered bytes are now zero.
#[inline]
pub fn update(field: Field, old: &[u8], new: &[u8]) -> Field {
    (Sum::of(&[!field[0], !field[1]]) - Sum::of(old) + Sum::of(new)).checksum()
}

/// Completes a partial checksum in place; a frame without one stays as it is.
///
/// As Linux does, a checksum of zero becomes all ones whatever the protocol.
///
/// # Errors
/// [`ChecksumError::Outside`], and no change, if the field is not inside the frame.
#[inline]
pub fn complete_partial(frame: &mut [u8], csum: Csum) -> Result<(), ChecksumError> {
    let Csum::Partial { start, offset } = csum else { return Ok(()) };
    let len = frame.len();
    let covered = frame.get_mut(usize::from(start)..).unwrap_or_default();
    let checksum = Sum::of(covered).checksum_not_zero();
    let field = covered.get_mut(usize::from(offset)..).and_then(|rest| rest.first_chunk_mut());
    *field.ok_or(ChecksumError::Outside { start, offset, len })? = checksum;
    Ok(())
}

/// Finds a partial checksum that nothing announces: Linux leaves the sum of the pseudo header in the checksum
/// field of TCP and UDP (`CHECKSUM_PARTIAL`), and AF_XDP does not say for which frames.
///
/// It is right to complete every frame this returns, even one that has a full checksum which equals the
/// pseudo header's sum by chance. Let `p` be the sum of the pseudo header and `d` that of the rest, without
/// the field: a full checksum is `!(p + d)`, and what completing stores is `!(field + d)`. Where `field == p`
/// these are one and the same. (A corrupted frame passes once in 65,535, as any corruption does.)
///
/// Not found: IPv6 with a routing header, whose pseudo header has the last destination.
#[inline]
pub fn is_partial(frame: &[u8], offsets: &Offsets) -> Option<Csum> {
    let ip = offsets.ip.filter(|ip| ip.fragment == Fragment::No)?;
    let offset = field_offset(ip.proto)?;
    let l4 = ip.l4()?;
    let addresses = offsets.addresses(frame)?;
    let field = frame.get(l4 + offset..)?.first_chunk::<2>()?;
    let partial = Sum::pseudo_header(addresses, ip.proto, ip.end() - l4).partial();
    // Completing sums up to the end of the frame: padding must not count.
    let padding = frame.get(ip.end()..)?;
    (*field == partial && padding.iter().all(|octet| *octet == 0))
        .then_some(Csum::Partial { start: l4 as u16, offset: offset as u16 })
}

/// Bytes from the start of the transport header to its checksum, for the protocols that cards complete.
#[inline]
fn field_offset(proto: IpProto) -> Option<usize> {
    match proto {
        IpProto::TCP => Some(TCP_FIELD),
        IpProto::UDP => Some(UDP_FIELD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::checksum::Sum16BitWords;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::offsets::walk;
    use crate::packets::{self, Packet, Transport};

    proptest! {
        #[test]
        fn sums_are_those_of_etherparse(bytes in vec(any::<u8>(), 0..200)) {
            let expected = Sum16BitWords::new().add_slice(&bytes).ones_complement();
            prop_assert_eq!(Sum::of(&bytes).checksum(), expected.to_ne_bytes());
        }

        #[test]
        fn sums_of_parts_add_up(bytes in vec(any::<u8>(), 0..200), at in 0usize..100) {
            let (front, back) = bytes.split_at((at * 2).min(bytes.len() & !1));
            prop_assert_eq!((Sum::of(front) + Sum::of(back)).checksum(), Sum::of(&bytes).checksum());
            let without = (Sum::of(&bytes) - Sum::of(back)).word() % 0xffff;
            prop_assert_eq!(without, Sum::of(front).word() % 0xffff);
        }

        #[test]
        fn incremental_is_full(mut bytes in vec(any::<u8>(), 8..64), new in any::<[u8; 4]>(), at in 0usize..3) {
            bytes[7] |= 1; // RFC 1624 is about headers, which are never all zero
            let at = at * 2;
            let before = Sum::of(&bytes).checksum();
            let old: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            bytes[at..at + 4].copy_from_slice(&new);
            bytes[7] |= 1;
            let new: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            prop_assert_eq!(update(before, &old, &new), Sum::of(&bytes).checksum());
        }

        #[test]
        fn completing_restores_the_checksum(packet in packets::for_a_card(300)) {
            let (mut frame, csum) = packet.left_to_a_card();
            prop_assert_eq!(is_partial(&frame, &walk(&frame).unwrap()), Some(csum));
            complete_partial(&mut frame, csum).unwrap();
            prop_assert!(sum_of(&frame, &packet).verifies());
            if let Transport::Udp = packet.transport {
                // Not so for TCP: etherparse writes its zero as zero, we as all ones.
                prop_assert_eq!(frame, packet.bytes());
            }
        }

        #[test]
        fn completing_a_chance_match_changes_nothing(packet in packets::for_a_card(300)) {
            // Make the full checksum equal the pseudo header's by choosing the last payload word.
            let mut packet = packet;
            packet.payload.resize(packet.payload.len() & !1, 0);
            packet.payload.extend([0, 0]);
            let (mut frame, csum) = packet.left_to_a_card();
            let Csum::Partial { start, .. } = csum else { unreachable!("just made") };
            let len = frame.len();
            let rest = Sum::of(&frame[usize::from(start)..]);
            let pseudo = pseudo_of(&frame, &packet);
            // A full checksum makes pseudo + rest + word zero.
            let word = (Sum::default() - pseudo - rest).partial();
            frame[len - 2..].copy_from_slice(&word);
            prop_assert!(sum_of(&frame, &packet).verifies(), "a full checksum");
            let before = frame.clone();
            prop_assert_eq!(is_partial(&frame, &walk(&frame).unwrap()), Some(csum));
            complete_partial(&mut frame, csum).unwrap();
            prop_assert_eq!(frame, before);
        }

        #[test]
        fn completing_hostile_offsets_is_an_error_or_inside(
            mut frame in vec(any::<u8>(), 0..100), start in 0u16..120, offset in prop_oneof![0u16..120, any::<u16>()]
        ) {
            let before = frame.clone();
            let len = frame.len();
            let inside = usize::from(start) + usize::from(offset) + 2 <= len;
            match complete_partial(&mut frame, Csum::Partial { start, offset }) {
                Ok(()) => prop_assert!(inside),
                Err(error) => {
                    prop_assert_eq!(error, ChecksumError::Outside { start, offset, len });
                    prop_assert!(!inside && frame == before);
                }
            }
        }
    }

    fn pseudo_of(frame: &[u8], packet: &Packet) -> Sum {
        let offsets = walk(frame).unwrap();
        let addresses = offsets.addresses(frame).unwrap();
        Sum::pseudo_header(addresses, offsets.ip.unwrap().proto, frame.len() - packet.l4())
    }

    /// The sum of all that the transport checksum covers.
    fn sum_of(frame: &[u8], packet: &Packet) -> Sum {
        pseudo_of(frame, packet) + Sum::of(&frame[packet.l4()..])
    }

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), [0xdd, 0xf2]);
        assert_eq!(sum.checksum(), [!0xdd, !0xf2]);
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        // HC = 0xdd2f, m = 0x5555, m' = 0x3285 gives 0x0000, where equation 2 would give 0xffff.
        assert_eq!(update([0xdd, 0x2f], &[0x55, 0x55], &[0x32, 0x85]), [0, 0]);
    }

    #[test]
    fn zero_is_sent_as_all_ones() {
        let mut frame = [0xff, 0xff, 0, 0];
        complete_partial(&mut frame, Csum::Partial { start: 0, offset: 2 }).unwrap();
        assert_eq!(frame, [0xff; 4]);
    }

    #[test]
    fn padding_that_would_be_summed_is_no_partial_checksum() {
        let ip = packets::example();
        let (mut frame, csum) = ip.left_to_a_card();
        let offsets = walk(&frame).unwrap();
        frame.extend([0, 0, 0]);
        assert_eq!(is_partial(&frame, &offsets), Some(csum));
        frame.push(1);
        assert_eq!(is_partial(&frame, &offsets), None);
    }

    #[test]
    fn full_checksums_are_not_partial() {
        let frame = packets::example().bytes();
        assert_eq!(is_partial(&frame, &walk(&frame).unwrap()), None);
    }
}
