//! Frames that stand for many, as guests leave them, built by etherparse.

use encap::offload::{Csum, Gso, Offload};
use etherparse::checksum::Sum16BitWords;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use crate::frames::{link_local, mac, partial, tagged, tcp, tcp6, udp};
use crate::overlay::big::payload;

/// Where the headers of untagged IPv6 end.
const L4_V6: usize = 54;
/// The flag of RFC 3168 in byte 13 of a TCP header.
const CWR: u8 = 0x80;

/// A frame with what is left to do on it.
#[derive(Debug, Clone)]
pub struct Giant {
    /// The frame.
    pub frame: Vec<u8>,
    /// What is left to do.
    pub work: Offload,
    /// What it carries.
    pub payload: Vec<u8>,
    /// How much of that a segment has, at most.
    pub size: usize,
}

impl Giant {
    /// How many segments it stands for.
    pub fn segments(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// The same in a VLAN, by a tag of the guest's own.
    pub fn tagged(&self, tci: u16) -> Giant {
        Giant { frame: tagged(&self.frame, tci), work: self.work.shifted(4).unwrap(), ..self.clone() }
    }
}

/// Of host 1 to host 2: TCP and UDP over IPv4 and IPv6, as long as IP packets can be, shorter, and just a segment; TCP also
/// with the mark of a sender that has slowed down.
pub fn giants() -> Vec<Giant> {
    let mut all = vec![
        tcp4(65_495, 1448, 0),
        tcp4(65_495, 1448, CWR),
        tcp4(3000, 1000, CWR),
        tcp4(1449, 1448, 0),
        tcp6_of(65_515, 1428, 0),
        tcp6_of(65_515, 1428, CWR),
        tcp6_of(2900, 1000, CWR),
        udp4(65_507, 1472),
        udp4(2500, 1200),
        udp6(65_527, 1452),
    ];
    all.push(Giant { size: 536, ..tcp4(20_000, 536, 0) });
    all
}

/// TCP over IPv4.
pub fn tcp4(len: usize, mss: u16, flags: u8) -> Giant {
    let payload = payload(len);
    let (mut frame, csum) = partial(tcp((1, 40_000), (2, 80), &payload), 16);
    frame[34 + 13] |= flags;
    Giant { frame, work: Offload { csum, gso: Gso::Tcp4 { mss } }, payload, size: mss.into() }
}

fn udp4(len: usize, size: u16) -> Giant {
    let payload = payload(len);
    let (frame, csum) = partial(udp((mac(1), 4000), (mac(2), 53), &payload), 6);
    Giant { frame, work: Offload { csum, gso: Gso::Udp { size } }, payload, size: size.into() }
}

fn tcp6_of(len: usize, mss: u16, flags: u8) -> Giant {
    let payload = payload(len);
    let (mut frame, csum) = partial6(tcp6(1, 2, &payload), 6, 16);
    frame[L4_V6 + 13] |= flags;
    Giant { frame, work: Offload { csum, gso: Gso::Tcp6 { mss } }, payload, size: mss.into() }
}

fn udp6(len: usize, size: u16) -> Giant {
    let payload = payload(len);
    let (frame, csum) = partial6(datagram6(&payload), 17, 6);
    Giant { frame, work: Offload { csum, gso: Gso::Udp { size } }, payload, size: size.into() }
}

/// A UDP datagram over IPv6 of host 1 to host 2.
pub fn datagram6(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let ends = (link_local(1).octets(), link_local(2).octets());
    let packet = PacketBuilder::ethernet2(mac(1).0, mac(2).0).ipv6(ends.0, ends.1, 64).udp(4000, 53);
    packet.write(&mut frame, payload).unwrap();
    frame
}

/// As [`partial`], of IPv6.
pub fn partial6(mut frame: Vec<u8>, proto: u8, offset: u16) -> (Vec<u8>, Csum) {
    let len = ((frame.len() - L4_V6) as u32).to_be_bytes();
    let sum = Sum16BitWords::new().add_slice(&frame[22..L4_V6]).add_2bytes([0, proto]).add_slice(&len);
    let field = L4_V6 + usize::from(offset);
    frame[field..field + 2].copy_from_slice(&(!sum.ones_complement()).to_ne_bytes());
    (frame, Csum::Partial { start: L4_V6 as u16, offset })
}

/// The payload of a frame whose lengths and checksums, by etherparse's reckoning, are right; and whether it has CWR.
#[track_caller]
pub fn checked(frame: &[u8]) -> (Vec<u8>, bool) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), transport) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            match transport {
                TransportSlice::Tcp(tcp) => {
                    assert_eq!(Ok(tcp.checksum()), tcp.calc_checksum_ipv4(header.source, header.destination));
                    (tcp.payload().to_vec(), tcp.cwr())
                }
                TransportSlice::Udp(udp) => {
                    let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
                    assert_eq!(Ok(udp.checksum()), sum);
                    (udp.payload().to_vec(), false)
                }
                other => panic!("{other:?}"),
            }
        }
        (NetSlice::Ipv6(ip), transport) => {
            let header = ip.header().to_header();
            match transport {
                TransportSlice::Tcp(tcp) => {
                    assert_eq!(Ok(tcp.checksum()), tcp.calc_checksum_ipv6(header.source, header.destination));
                    (tcp.payload().to_vec(), tcp.cwr())
                }
                TransportSlice::Udp(udp) => {
                    let sum = udp.to_header().calc_checksum_ipv6(&header, udp.payload());
                    assert_eq!(Ok(udp.checksum()), sum);
                    (udp.payload().to_vec(), false)
                }
                other => panic!("{other:?}"),
            }
        }
        (other, _) => panic!("{other:?}"),
    }
}
