//! Outer frames built and taken apart by etherparse, so that the switch does not judge itself.

use std::net::IpAddr;

use encap::field::MacAddr;
use etherparse::checksum::Sum16BitWords;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header, NetSlice,
    PacketBuilder, SlicedPacket, TransportSlice, VlanId,
};

use super::{endpoint_mac, v4};

/// What stands in front of an inner frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outer {
    /// Source and destination.
    pub macs: (MacAddr, MacAddr),
    /// The VLAN of the underlay.
    pub vlan: Option<u16>,
    /// Source and destination.
    pub ips: (IpAddr, IpAddr),
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Of IPv4.
    pub df: bool,
    /// Source and destination; `None` for GRE.
    pub ports: Option<(u16, u16)>,
    /// Has the UDP header a checksum? That of GRE is in its header, and zero here.
    pub csum: bool,
    /// That of VXLAN, GRE or Geneve.
    pub header: Vec<u8>,
}

/// A VXLAN header (RFC 7348 section 5).
pub fn vxlan(vni: u32) -> Vec<u8> {
    [[8, 0, 0, 0], (vni << 8).to_be_bytes()].concat()
}

/// A Geneve header (RFC 8926 section 3.4) with options.
pub fn geneve(vni: u32, options: &[u8]) -> Vec<u8> {
    let critical = options.get(2).is_some_and(|kind| kind & 0x80 != 0);
    let flags = if critical { 0x40 } else { 0 };
    [&[(options.len() / 4) as u8, flags, 0x65, 0x58], &(vni << 8).to_be_bytes()[..], options].concat()
}

/// A GRE header (RFC 2890) of an Ethernet frame.
pub fn gre(key: Option<u32>) -> Vec<u8> {
    let mut header = vec![if key.is_some() { 0x20 } else { 0 }, 0, 0x65, 0x58];
    header.extend(key.into_iter().flat_map(u32::to_be_bytes));
    header
}

/// The same with a checksum, to be filled in, and a sequence number if there shall be one.
pub fn gre_summed(key: u32, sequence: Option<u32>) -> Vec<u8> {
    let flags = if sequence.is_some() { 0xb0 } else { 0xa0 };
    let mut header = [&[flags, 0, 0x65, 0x58, 0, 0, 0, 0], &key.to_be_bytes()[..]].concat();
    header.extend(sequence.into_iter().flat_map(u32::to_be_bytes));
    header
}

impl Outer {
    /// From hypervisor to hypervisor over IPv4, with a VXLAN header of this VNI.
    pub fn vxlan(from: u8, to: u8, vni: u32) -> Outer {
        Outer {
            macs: (endpoint_mac(from), endpoint_mac(to)),
            vlan: None,
            ips: (v4(from), v4(to)),
            tos: 0,
            ttl: 64,
            df: true,
            ports: Some((50000, 4789)),
            csum: false,
            header: vxlan(vni),
        }
    }

    /// The same with a GRE header.
    pub fn gre(from: u8, to: u8, key: Option<u32>) -> Outer {
        Outer { ports: None, header: gre(key), ..Outer::vxlan(from, to, 0) }
    }

    /// The same with a Geneve header.
    pub fn geneve(from: u8, to: u8, vni: u32) -> Outer {
        Outer { ports: Some((50000, 6081)), header: geneve(vni, &[]), ..Outer::vxlan(from, to, 0) }
    }

    /// The frame.
    pub fn wrap(&self, inner: &[u8]) -> Vec<u8> {
        let payload = [&self.header[..], inner].concat();
        let ethernet = PacketBuilder::ethernet2(self.macs.0.0, self.macs.1.0);
        let mut frame = Vec::new();
        let ip = match self.vlan {
            Some(vlan) => ethernet.single_vlan(VlanId::try_new(vlan).unwrap()).ip(self.ip()),
            None => ethernet.ip(self.ip()),
        };
        match self.ports {
            Some((src, dst)) => ip.udp(src, dst).write(&mut frame, &payload).unwrap(),
            None => ip.write(&mut frame, IpNumber::GRE, &gre_filled(&payload)).unwrap(),
        }
        if self.ports.is_some() && !self.csum {
            let end = frame.len() - payload.len();
            frame[end - 2..end].fill(0);
        }
        frame
    }

    fn ip(&self) -> IpHeaders {
        match self.ips {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header =
                    Ipv4Header::new(0, self.ttl, IpNumber::UDP, src.octets(), dst.octets()).unwrap();
                header.dscp = (self.tos >> 2).try_into().unwrap();
                header.ecn = (self.tos & 3).try_into().unwrap();
                header.dont_fragment = self.df;
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::ZERO,
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                },
                Ipv6Extensions::default(),
            ),
            ips => panic!("{ips:?} mix families"),
        }
    }

    /// Takes a frame apart, whose lengths and checksums must be right and whose tunnel header has `len` bytes; the inner
    /// frame.
    #[track_caller]
    pub fn open(frame: &[u8], len: usize) -> (Outer, Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let vlan = packet.vlan_ids().first().map(|id| id.value());
        let (ips, tos, ttl, df) = match packet.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                let ips = (header.source_addr().into(), header.destination_addr().into());
                let tos = header.dcp().value() << 2 | header.ecn().value();
                (ips, tos, header.ttl(), header.dont_fragment())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                let ips = (header.source_addr().into(), header.destination_addr().into());
                (ips, header.traffic_class(), header.hop_limit(), false)
            }
            NetSlice::Arp(_) => panic!("no IP"),
        };
        let (ports, csum, payload) = match &packet.transport {
            Some(TransportSlice::Udp(udp)) => {
                assert!(udp.checksum() == 0 || udp.checksum() == udp_sum(&packet), "wrong checksum");
                let ports = (udp.source_port(), udp.destination_port());
                (Some(ports), udp.checksum() != 0, udp.payload().to_vec())
            }
            _ => {
                let payload = packet.ip_payload().expect("a payload").payload;
                (None, false, gre_emptied(payload))
            }
        };
        let macs = (address(frame, 6), address(frame, 0));
        let (header, inner) = payload.split_at(len);
        (Outer { macs, vlan, ips, tos, ttl, df, ports, csum, header: header.to_vec() }, inner.to_vec())
    }

    /// The same, whatever the entropy of its UDP source port.
    pub fn any_source(mut self) -> Outer {
        self.ports = self.ports.map(|(_, dst)| (50000, dst));
        self
    }
}

fn address(frame: &[u8], at: usize) -> MacAddr {
    MacAddr(frame[at..at + 6].try_into().unwrap())
}

fn udp_sum(packet: &SlicedPacket<'_>) -> u16 {
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("no UDP") };
    let sum = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()),
        NetSlice::Ipv6(ip) => udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
        NetSlice::Arp(_) => panic!("no IP"),
    };
    sum.unwrap()
}

fn has_gre_sum(payload: &[u8]) -> bool {
    payload[0] & 0x80 != 0
}

/// With its checksum, if it has room for one.
fn gre_filled(payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    if has_gre_sum(&payload) {
        let sum = Sum16BitWords::new().add_slice(&payload).ones_complement();
        payload[4..6].copy_from_slice(&sum.to_ne_bytes());
    }
    payload
}

/// With zero for its checksum, which must be right.
fn gre_emptied(payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    if has_gre_sum(&payload) {
        assert_eq!(Sum16BitWords::new().add_slice(&payload).ones_complement(), 0, "wrong checksum");
        payload[4..6].fill(0);
    }
    payload
}
