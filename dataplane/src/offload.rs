//! Doing in software what the egress port cannot: who needs it, and completing a checksum.

use encap::checksum;
use encap::field::EtherType;
use encap::gso;
use encap::offload::{Csum, Gso, Offload};

use crate::frame::Frame;
use crate::port::Offloads;

/// Can a port with these offloads take a frame as it is?
#[inline]
pub fn fits(work: Offload, port: Offloads) -> bool {
    let csum = work.csum == Csum::None || port.csum;
    let gso = match work.gso {
        Gso::None => true,
        Gso::Tcp4 { .. } | Gso::Tcp6 { .. } => port.tso,
        Gso::Udp { .. } => port.uso,
    };
    csum && gso
}

/// Completes a partial checksum.
///
/// # Errors
/// The frame, if the offload is a lie (it points outside the frame).
pub fn complete(mut frame: Frame) -> Result<Frame, Frame> {
    let csum = frame.offload.csum;
    match checksum::complete_partial(frame.bytes_mut(), csum) {
        Ok(()) => {
            frame.offload.csum = Csum::None;
            Ok(frame)
        }
        Err(_) => Err(frame),
    }
}

/// Is the layer-3 packet, or the largest segment it will be cut into, longer than `mtu` bytes?
pub fn exceeds(frame: &Frame, mtu: u16) -> bool {
    let bytes = frame.bytes();
    let len = match frame.offload.gso {
        Gso::None => bytes.len() - l3(bytes),
        _ => gso::segment_l3_len(bytes, frame.offload).unwrap_or(usize::MAX),
    };
    len > usize::from(mtu)
}

/// Where layer 3 begins: behind the addresses and all tags. At most the frame's length.
fn l3(bytes: &[u8]) -> usize {
    let tagged = |at: usize| {
        bytes.get(at..at + 2).is_some_and(|b| EtherType(u16::from_be_bytes([b[0], b[1]])).is_vlan())
    };
    let mut type_at = 12;
    while tagged(type_at) {
        type_at += 4;
    }
    (type_at + 2).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_3_begins_behind_all_tags() {
        let mut frame = vec![0; 12];
        for tags in 0..5 {
            let mut bytes = frame.clone();
            bytes.extend([0x08, 0x00, 1, 2, 3]);
            assert_eq!(l3(&bytes), 14 + 4 * tags);
            frame.extend([0x81, 0x00, 0, 1]);
        }
        assert_eq!(l3(&[0; 13]), 13);
    }

    #[test]
    fn a_port_takes_what_it_offers() {
        let csum = Offload { csum: Csum::Partial { start: 34, offset: 16 }, gso: Gso::None };
        let tso = Offload { gso: Gso::Tcp4 { mss: 1448 }, ..csum };
        let none = Offloads::default();
        let all = Offloads { csum: true, tso: true, uso: false };
        assert!(fits(Offload::NONE, none) && !fits(csum, none) && !fits(tso, none));
        assert!(fits(csum, all) && fits(tso, all));
        assert!(!fits(Offload { gso: Gso::Udp { size: 1200 }, ..csum }, all));
    }
}
