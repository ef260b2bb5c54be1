//! Edits of a frame in place. Frames that cannot be edited so are left as they are.
//!
//! VLAN tags (IEEE 802.1Q section 9.3) stand between the MAC addresses and the EtherType, and no checksum
//! covers them: pushing and popping move the twelve bytes of addresses, not the frame. The IPv4 header has
//! one, which is updated by what changed (RFC 1624). Cost: constant, or one walk to the IP header.

use thiserror::Error;

use crate::checksum;
use crate::field::{EtherType, VlanId, VlanTag};
use crate::offsets::{ETHERNET, TAG, walk};

/// Bytes of both MAC addresses.
const ADDRESSES: usize = 12;

/// A frame that cannot be edited as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RewriteError {
    /// No room for an Ethernet header with a tag.
    #[error("frame of {0} bytes is shorter than an Ethernet header with a tag, 18")]
    TooShort(usize),
    /// No tag where one should be.
    #[error("frame has no VLAN tag but type {0}")]
    Untagged(EtherType),
    /// No whole IP header where one should be.
    #[error("frame of type {0} has no sane IPv4 or IPv6 header")]
    NoIp(EtherType),
}

/// An Ethernet header and one tag.
type Header = [u8; ETHERNET + TAG];

#[inline]
fn header(frame: &mut [u8]) -> Result<&mut Header, RewriteError> {
    let len = frame.len();
    frame.first_chunk_mut().ok_or(RewriteError::TooShort(len))
}

#[inline]
fn tagged(frame: &mut [u8]) -> Result<&mut Header, RewriteError> {
    let header = header(frame)?;
    let tpid = EtherType(u16::from_be_bytes([header[12], header[13]]));
    if tpid.is_vlan() { Ok(header) } else { Err(RewriteError::Untagged(tpid)) }
}

/// Puts a tag in front of those that are there. The frame was already made [`TAG`] bytes longer in front.
///
/// # Errors
/// [`RewriteError::TooShort`] below 18 bytes.
#[inline]
pub fn push_vlan(frame: &mut [u8], tag: VlanTag) -> Result<(), RewriteError> {
    let header = header(frame)?;
    header.copy_within(TAG..TAG + ADDRESSES, 0);
    header[12..14].copy_from_slice(&tag.tpid.0.to_be_bytes());
    header[14..16].copy_from_slice(&tag.tci.to_be_bytes());
    Ok(())
}

/// Takes the outermost tag off: afterwards the frame begins [`TAG`] bytes later, and the caller takes the
/// bytes before that, now of no meaning, off the front.
///
/// # Errors
/// [`RewriteError::TooShort`] below 18 bytes, [`RewriteError::Untagged`] without a tag.
#[inline]
pub fn pop_vlan(frame: &mut [u8]) -> Result<(), RewriteError> {
    tagged(frame)?.copy_within(..ADDRESSES, TAG);
    Ok(())
}

/// Changes the VLAN id of the outermost tag; priority and drop-eligible stay.
///
/// # Errors
/// [`RewriteError::TooShort`] below 18 bytes, [`RewriteError::Untagged`] without a tag.
#[inline]
pub fn set_vid(frame: &mut [u8], vid: VlanId) -> Result<(), RewriteError> {
    let header = tagged(frame)?;
    let [high, low] = vid.get().to_be_bytes();
    header[14] = header[14] & 0xf0 | high;
    header[15] = low;
    Ok(())
}

/// Sets the explicit congestion notification of the IP header behind up to two tags (RFC 3168 section 5, RFC 8200
/// section 7) to the two low bits of `ecn`. A wrong IPv4 checksum stays wrong.
///
/// # Errors
/// [`RewriteError::TooShort`] below 14 bytes, [`RewriteError::NoIp`] without a sane IP header.
#[inline]
pub fn set_ecn(frame: &mut [u8], ecn: u8) -> Result<(), RewriteError> {
    let offsets = walk(frame).map_err(|_| RewriteError::TooShort(frame.len()))?;
    let ip = offsets.ip.ok_or(RewriteError::NoIp(offsets.ether_type))?;
    let header = &mut frame[ip.l3()..];
    let old = [header[0], header[1]];
    if offsets.ether_type == EtherType::IPV4 {
        header[1] = header[1] & !3 | ecn & 3;
        let field = checksum::update([header[10], header[11]], &old, &header[..2]);
        header[10..12].copy_from_slice(&field);
    } else {
        header[1] = header[1] & !0x30 | (ecn & 3) << 4;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use etherparse::{IpDscp, IpEcn, IpHeaders};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::packets::{self, Packet};

    fn vid() -> impl Strategy<Value = VlanId> {
        (0u16..4096).prop_map(|id| VlanId::new(id).unwrap())
    }

    /// The frame with four bytes of old content in front, then the tag.
    fn pushed(frame: &[u8], tag: VlanTag) -> Vec<u8> {
        let mut longer = [&[0xee; TAG], frame].concat();
        push_vlan(&mut longer, tag).unwrap();
        longer
    }

    /// The packet with this DSCP and ECN.
    fn marked(mut packet: Packet, dscp: u8, ecn: u8) -> Packet {
        let (dscp, ecn) = (IpDscp::try_new(dscp).unwrap(), IpEcn::try_new(ecn).unwrap());
        match &mut packet.ip {
            IpHeaders::Ipv4(header, _) => (header.dscp, header.ecn) = (dscp, ecn),
            IpHeaders::Ipv6(header, _) => {
                header.set_dscp(dscp);
                header.set_ecn(ecn);
            }
        }
        packet
    }

    proptest! {
        #[test]
        fn set_ecn_is_what_etherparse_builds_anew(
            packet in packets::packet(64), dscp in 0u8..64, old in 0u8..4, ecn in any::<u8>()
        ) {
            let mut frame = marked(packet.clone(), dscp, old).bytes();
            let expected = match packet.tags.get(2) {
                None => (Ok(()), marked(packet, dscp, ecn & 3).bytes()),
                Some(third) => (Err(RewriteError::NoIp(third.tpid)), frame.clone()),
            };
            prop_assert_eq!((set_ecn(&mut frame, ecn), frame), expected);
        }

        #[test]
        fn set_ecn_changes_no_frame_that_is_cut(packet in packets::packet(8), cut in any::<prop::sample::Index>()) {
            let mut frame = packet.bytes();
            frame.truncate(cut.index(frame.len()));
            let before = frame.clone();
            prop_assert!(set_ecn(&mut frame, 3).is_err());
            prop_assert_eq!(frame, before);
        }

        #[test]
        fn push_writes_what_etherparse_reads(packet in packets::packet(64), tag in packets::tag()) {
            let (mut tagged, frame) = (packet.clone(), packet.bytes());
            tagged.tags.insert(0, tag);
            prop_assert_eq!(pushed(&frame, tag), tagged.bytes());
        }

        #[test]
        fn pop_after_push_is_identity(frame in vec(any::<u8>(), 14..80), tag in packets::tag()) {
            let mut longer = pushed(&frame, tag);
            pop_vlan(&mut longer).unwrap();
            prop_assert_eq!(&longer[TAG..], &frame[..]);
        }

        #[test]
        fn set_vid_keeps_all_else(frame in vec(any::<u8>(), 14..80), tag in packets::tag(), vid in vid()) {
            let mut retagged = pushed(&frame, tag);
            set_vid(&mut retagged, vid).unwrap();
            let tci = tag.tci & 0xf000 | vid.get();
            prop_assert_eq!(retagged, pushed(&frame, VlanTag { tpid: tag.tpid, tci }));
        }

        #[test]
        fn frames_without_a_tag_are_left_alone(frame in vec(any::<u8>(), 0..24), vid in vid()) {
            let mut after = frame.clone();
            let untagged = match frame.first_chunk::<18>() {
                None => RewriteError::TooShort(frame.len()),
                Some(header) => RewriteError::Untagged(EtherType(u16::from_be_bytes([header[12], header[13]]))),
            };
            prop_assume!(!matches!(untagged, RewriteError::Untagged(tpid) if tpid.is_vlan()));
            prop_assert_eq!(pop_vlan(&mut after), Err(untagged));
            prop_assert_eq!(set_vid(&mut after, vid), Err(untagged));
            prop_assert_eq!(after, frame);
        }
    }

    #[test]
    fn set_ecn_keeps_a_wrong_checksum_wrong() {
        let mut frame = packets::example().bytes();
        frame[24] ^= 1;
        set_ecn(&mut frame, 3).unwrap();
        assert_eq!(frame[15], 3);
        frame[24] ^= 1;
        assert_eq!(frame, marked(packets::example(), 0, 3).bytes());
    }

    #[test]
    fn only_ip_has_congestion_notification() {
        let mut frame = [0x08; 60];
        frame[13] = 0x06;
        assert_eq!(set_ecn(&mut frame, 3), Err(RewriteError::NoIp(EtherType::ARP)));
        assert_eq!(set_ecn(&mut frame[..13], 3), Err(RewriteError::TooShort(13)));
    }

    #[test]
    fn a_frame_too_short_for_a_tag_gets_none() {
        let mut frame = [1; 17];
        assert_eq!(push_vlan(&mut frame, VlanTag::default()), Err(RewriteError::TooShort(17)));
        assert_eq!(frame, [1; 17]);
    }
}
