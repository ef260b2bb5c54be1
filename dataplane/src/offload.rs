//! Doing in software what the egress port cannot: who needs it, and completing a checksum.

use encap::checksum::{self, ChecksumError, is_partial};
use encap::decap::decap;
use encap::field::{EtherType, IpProto};
use encap::gso;
use encap::offload::{Csum, Gso, Offload};
use encap::offsets::{Offsets, walk};
use encap::tunnel::TunnelKind;

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
/// If the offload is a lie (it points outside the frame).
pub fn complete(frame: &mut Frame) -> Result<(), ChecksumError> {
    let csum = frame.offload.csum;
    checksum::complete_partial(frame.bytes_mut(), csum)?;
    frame.offload.csum = Csum::None;
    Ok(())
}

/// The longest packet that is left as it is, and of the segments that a longer one is cut into: what an Ethernet of
/// 1,500 bytes carries in a VXLAN tunnel over IPv6, the costliest of the usual.
const USUAL_MTU: usize = 1500 - 70;

/// Frames in frames that are looked into: a tunnel, and one that its owner's tenant has in it.
const NESTED: usize = 2;

/// What is left to do on a frame that comes from where nobody tells.
///
/// A kernel in the same machine sums no checksum, and cuts no TCP segment, that a card could. The checksum can be seen
/// ([`left_undone`]); and where it was left, so was the cutting, and TCP can be cut anywhere.
pub fn unsaid(frame: &[u8]) -> Offload {
    let Ok(offsets) = walk(frame) else { return Offload::NONE };
    let csum = left_undone(frame).unwrap_or_default();
    let is_long = frame.len() - offsets.payload() > USUAL_MTU;
    let gso = if csum != Csum::None && is_long { tcp_gso(frame, &offsets, USUAL_MTU) } else { None };
    Offload { csum, gso: gso.unwrap_or_default() }
}

/// The partial checksum in a frame ([`is_partial`]): its own, or that of a frame in it, if its sender has tunnels.
///
/// Costs a walk over the headers of each, and a sum over what an outer checksum covers.
pub fn left_undone(frame: &[u8]) -> Option<Csum> {
    let mut at = 0;
    for _ in 0..=NESTED {
        let inner = &frame[at..];
        let offsets = walk(inner).ok()?;
        if let Some(csum) = is_partial(inner, &offsets) {
            return Offload { csum, gso: Gso::None }.shifted(at as isize).map(|found| found.csum);
        }
        at += decap(inner, tunnel(inner, &offsets)?, Offload::NONE).ok()?.inner_at;
    }
    None
}

/// What kind of tunnel a frame belongs to, by the usual UDP ports: IANA's, and Linux's own for VXLAN.
fn tunnel(frame: &[u8], offsets: &Offsets) -> Option<TunnelKind> {
    let ip = offsets.ip?;
    let dst_port = || frame.get(ip.l4()? + 2..)?.first_chunk().map(|port| u16::from_be_bytes(*port));
    match ip.proto {
        IpProto::GRE => Some(TunnelKind::Gre),
        IpProto::UDP => match dst_port()? {
            4789 | 8472 => Some(TunnelKind::Vxlan),
            6081 => Some(TunnelKind::Geneve),
            _ => None,
        },
        _ => None,
    }
}

/// How to cut a TCP packet into segments of at most `mtu` bytes, IP header included. `None` if it is none, or has longer
/// headers.
pub fn tcp_gso(frame: &[u8], offsets: &Offsets, mtu: usize) -> Option<Gso> {
    let ip = offsets.ip.filter(|ip| ip.proto == IpProto::TCP)?;
    let l4 = ip.l4()?;
    let tcp_header = usize::from(frame.get(l4 + 12)? >> 4) * 4;
    let mss = mtu.checked_sub(l4 - ip.l3() + tcp_header).filter(|&mss| mss != 0)?;
    let mss = u16::try_from(mss).ok()?;
    Some(if offsets.ether_type == EtherType::IPV4 { Gso::Tcp4 { mss } } else { Gso::Tcp6 { mss } })
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
pub fn l3(bytes: &[u8]) -> usize {
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
    use std::net::IpAddr;

    use arrayvec::ArrayVec;
    use encap::checksum::Sum;
    use encap::field::MacAddr;
    use encap::template::{Outer, Template};
    use etherparse::PacketBuilder;

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

    /// A frame in a tunnel of this kind.
    fn wrapped(kind: TunnelKind, inner: &[u8]) -> Vec<u8> {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let outer = Outer {
            kind,
            id: Some(7),
            eth_src: MacAddr([2, 0, 0, 0, 0, 1]),
            eth_dst: MacAddr([2, 0, 0, 0, 0, 2]),
            tags: ArrayVec::new(),
            src: address(1),
            dst: address(2),
            tos: 0,
            ttl: 64,
            df: true,
            dst_port: kind.default_port().unwrap_or(0),
            csum: false,
        };
        let template = Template::new(&outer).unwrap();
        let mut frame = [&vec![0; template.len()][..], inner].concat();
        template.write(&mut frame, 0).unwrap();
        frame
    }

    #[test]
    fn what_was_left_undone_is_found_in_tunnels_in_tunnels() {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let mut whole = Vec::new();
        builder.tcp(1000, 80, 5, 9000).write(&mut whole, b"x").unwrap();
        let mut partial = whole.clone();
        let sum = Sum::pseudo_header(&whole[26..34], IpProto::TCP, whole.len() - 34);
        partial[50..52].copy_from_slice(&sum.partial());
        for [near, far] in [[TunnelKind::Gre, TunnelKind::Vxlan], [TunnelKind::Geneve, TunnelKind::Gre]] {
            let once = wrapped(near, &partial);
            let twice = wrapped(far, &once);
            let thrice = wrapped(near, &twice);
            for frame in [&partial, &once, &twice] {
                let start = (frame.len() - partial.len() + 34) as u16;
                assert_eq!(left_undone(frame), Some(Csum::Partial { start, offset: 16 }));
            }
            assert_eq!(left_undone(&thrice), None, "there is an end to it");
            assert_eq!(left_undone(&wrapped(far, &wrapped(near, &whole))), None);
        }
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
