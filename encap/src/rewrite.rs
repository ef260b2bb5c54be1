//! Edits of a frame in place.
//!
//! VLAN tags (IEEE 802.1Q section 9.3) stand between the MAC addresses and the EtherType, and no checksum
//! covers them: pushing and popping move the twelve bytes of addresses, not the frame. Cost: constant. Frames
//! that cannot be edited so are left as they are.

use thiserror::Error;

use crate::field::{EtherType, VlanId, VlanTag};
use crate::offsets::{ETHERNET, TAG};

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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::packets;

    fn vid() -> impl Strategy<Value = VlanId> {
        (0u16..4096).prop_map(|id| VlanId::new(id).unwrap())
    }

    /// The frame with four bytes of old content in front, then the tag.
    fn pushed(frame: &[u8], tag: VlanTag) -> Vec<u8> {
        let mut longer = [&[0xee; TAG], frame].concat();
        push_vlan(&mut longer, tag).unwrap();
        longer
    }

    proptest! {
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
    fn a_frame_too_short_for_a_tag_gets_none() {
        let mut frame = [1; 17];
        assert_eq!(push_vlan(&mut frame, VlanTag::default()), Err(RewriteError::TooShort(17)));
        assert_eq!(frame, [1; 17]);
    }
}
