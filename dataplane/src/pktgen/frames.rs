//! The frames that are sent: valid UDP datagrams over IPv4 or IPv6, in any order of many flows.
//!
//! The idea: all headers of a flow are written once, with sums of what does not change; a frame then costs a copy of them, a
//! stamp of 18 bytes, and the UDP checksum that follows from it (RFC 1624 in the simplest of its forms: sums of parts add up).
//! Flows come by turns in an order that was shuffled once, so that no prefetcher of a switch's processor guesses what comes next.

use std::net::IpAddr;

use encap::checksum::{Sum, UDP_FIELD};
use encap::field::{EtherType, IpProto};
use encap::template::{Outer, Template, TemplateError};
use encap::tunnel::TunnelKind;
use thiserror::Error;

use super::stamp::{Form, Stamp, Token};
use super::terms::{Terms, TermsError};
use crate::frame::Frame;

/// Bytes of a UDP header.
const UDP: usize = 8;
/// Hops that a frame may take, as Linux has it.
const TTL: u8 = 64;

/// Frames that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FramesError {
    /// See there.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// The outer headers cannot be.
    #[error(transparent)]
    Outer(#[from] TemplateError),
    /// The outer packet would be longer than any.
    #[error("frame of {0} bytes has no room for outer headers in an IP packet; make it shorter")]
    TooLong(usize),
}

/// How frames are to be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamping {
    /// Each has a stamp with this token, if there is room.
    By(Token),
    /// All of a flow are the same.
    Plain,
}

/// All frames there are, to be written one by one.
#[derive(Debug, Clone)]
pub struct Frames {
    /// Of all flows, one behind the other.
    headers: Vec<u8>,
    /// Per flow, of all that the UDP checksum covers but the stamp.
    sums: Vec<Sum>,
    /// Flows by turn.
    order: Vec<u32>,
    header_len: usize,
    len: usize,
    stamping: Stamping,
    form: Form,
}

impl Frames {
    /// Builds the headers of all flows: 46 to 140 bytes each.
    ///
    /// # Errors
    /// [`FramesError`].
    pub fn new(terms: &Terms, stamping: Stamping) -> Result<Frames, FramesError> {
        let terms = terms.clone().settled()?;
        let flows = terms.flows.unwrap_or(1);
        let (mut headers, mut sums) = (Vec::new(), Vec::new());
        for flow in 0..flows {
            let (header, sum) = inner(&terms, flow);
            match &terms.vxlan {
                Some(_) => headers.extend(outer(&terms, flow, &header)?),
                None => headers.extend(header),
            }
            sums.push(sum);
        }
        let header_len = headers.len() / flows as usize;
        let len = header_len + terms.size - terms.headers();
        let order = shuffled(flows as u32);
        let mut frames = Frames { headers, sums, order, header_len, len, stamping, form: Form::None };
        frames.set_stamping(stamping);
        Ok(frames)
    }

    /// Other stamps from now on.
    pub fn set_stamping(&mut self, stamping: Stamping) {
        self.form = match stamping {
            Stamping::By(_) => Form::fitting(self.len - self.header_len),
            Stamping::Plain => Form::None,
        };
        self.stamping = stamping;
    }

    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.order.len()
    }

    /// Bytes of each frame.
    pub fn frame_len(&self) -> usize {
        self.len
    }

    /// What stamps there are.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Of which flow the frame with this sequence number is, by turn and not by address, and which of that flow, from 0.
    #[inline]
    pub fn place(&self, sequence: u64) -> (usize, u64) {
        let flows = self.order.len() as u64;
        match flows {
            1 => (0, sequence),
            _ => ((sequence % flows) as usize, sequence / flows),
        }
    }

    /// Writes the frame with this stamp.
    ///
    /// # Panics
    /// If `frame` has less room than [`Frames::frame_len`].
    #[inline]
    pub fn write(&self, stamp: Stamp, frame: &mut Frame) {
        frame.set_len(self.len);
        self.write_bytes(stamp, frame.bytes_mut());
    }

    /// As [`Frames::write`], into as many bytes as a frame has.
    ///
    /// # Panics
    /// If these are not as many.
    #[inline]
    pub fn write_bytes(&self, stamp: Stamp, bytes: &mut [u8]) {
        let flow = self.order[self.place(stamp.sequence).0] as usize;
        let headers = &self.headers[flow * self.header_len..][..self.header_len];
        let (front, payload) = bytes.split_at_mut(self.header_len);
        front.copy_from_slice(headers);
        let mut sum = self.sums[flow];
        let (stamped, rest) = payload.split_at_mut(self.form.len());
        if let (Stamping::By(token), false) = (self.stamping, stamped.is_empty()) {
            stamped.copy_from_slice(&stamp.emit(token)[..stamped.len()]);
            sum = sum + Sum::of(stamped);
        }
        rest.fill(0);
        front[self.header_len - UDP + UDP_FIELD..].copy_from_slice(&sum.checksum_not_zero());
    }
}

/// Headers of a flow, without outer ones, and the sum of its datagram without payload.
fn inner(terms: &Terms, flow: u64) -> (Vec<u8>, Sum) {
    let (udp_src, n) = (terms.udp_src.get(flow), flow / terms.udp_src.count());
    let (src, n) = (terms.src.get(n), n / terms.src.count());
    let (udp_dst, n) = (terms.udp_dst.get(n), n / terms.udp_dst.count());
    let dst = terms.dst.get(n);
    let (src_mac, dst_mac) =
        (terms.src_macs.get(flow), terms.dst_macs.get(flow / u64::from(terms.src_macs.count())));
    let mut bytes = [dst_mac.0, src_mac.0].concat();
    if let Some(tag) = terms.tag {
        bytes.extend([tag.tpid.0.to_be_bytes(), tag.tci.to_be_bytes()].concat());
    }
    let datagram = terms.size - terms.headers() + UDP;
    let (ether_type, packet) = ip(src, dst, datagram);
    bytes.extend(ether_type.0.to_be_bytes());
    let addresses = if src.is_ipv4() { &packet[12..20] } else { &packet[8..40] };
    let ports = [udp_src, udp_dst, datagram as u16, 0];
    let udp: Vec<u8> = ports.iter().flat_map(|word| word.to_be_bytes()).collect();
    let sum = Sum::pseudo_header(addresses, IpProto::UDP, datagram) + Sum::of(&udp);
    bytes.extend(packet);
    bytes.extend(udp);
    (bytes, sum)
}

/// The IP header of a datagram of so many bytes.
fn ip(src: IpAddr, dst: IpAddr, datagram: usize) -> (EtherType, Vec<u8>) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [high, low] = (datagram as u16 + 20).to_be_bytes();
            // An atomic datagram needs no identification (RFC 6864 section 4.1).
            let fixed = [0x45, 0, high, low, 0, 0, 0x40, 0, TTL, IpProto::UDP.0, 0, 0];
            let mut header = [&fixed[..], &src.octets(), &dst.octets()].concat();
            let checksum = Sum::of(&header).checksum();
            header[10..12].copy_from_slice(&checksum);
            (EtherType::IPV4, header)
        }
        (src, dst) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let [high, low] = (datagram as u16).to_be_bytes();
            let fixed = [0x60, 0, 0, 0, high, low, IpProto::UDP.0, TTL];
            (EtherType::IPV6, [&fixed[..], &octets(src), &octets(dst)].concat())
        }
    }
}

/// Headers with the outer ones in front. These say nothing of the payload but its length.
fn outer(terms: &Terms, flow: u64, header: &[u8]) -> Result<Vec<u8>, FramesError> {
    let Some(vxlan) = &terms.vxlan else { return Ok(header.to_vec()) };
    let template = Template::new(&Outer {
        kind: TunnelKind::Vxlan,
        id: Some(vxlan.vni.get()),
        eth_src: vxlan.src_mac,
        eth_dst: vxlan.dst_mac,
        tags: Default::default(),
        src: vxlan.src,
        dst: vxlan.dst,
        tos: 0,
        ttl: TTL,
        df: true,
        dst_port: vxlan.dst_port,
        csum: false,
    })?;
    let mut frame = vec![0; template.len() + terms.size];
    frame[template.len()..][..header.len()].copy_from_slice(header);
    // Neighbouring flows are to have source ports far apart (Knuth's multiplicative hash).
    let entropy = (flow as u32).wrapping_mul(0x9e37_79b1) >> 16;
    template.write(&mut frame, entropy as u16).map_err(|_| FramesError::TooLong(terms.size))?;
    frame.truncate(template.len() + header.len());
    Ok(frame)
}

/// The numbers below `n`, shuffled (Fisher, Yates; the random numbers are Marsaglia's xorshift64): always the same way.
pub fn shuffled(n: u32) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..n).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for i in (1..numbers.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(i, (state % (i as u64 + 1)) as usize);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use encap::field::{MacAddr, Pcp, VlanId, VlanTag, Vni};
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::super::terms::{Addresses, Macs, Ports, Vxlan};
    use super::*;

    const TOKEN: Token = Token([1, 2, 3, 4]);

    fn bytes(frames: &Frames, sequence: u64) -> Vec<u8> {
        let mut bytes = vec![0xa5; frames.frame_len()];
        frames.write_bytes(Stamp { sequence, sent: 77 }, &mut bytes);
        bytes
    }

    /// Checks lengths and checksums as somebody else computes them; gives the 5-tuple.
    fn tuple(frame: &[u8]) -> (IpAddr, IpAddr, u16, u16) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP in {packet:?}") };
        let header = udp.to_header();
        assert_eq!(usize::from(header.length), 8 + udp.payload().len());
        let (addresses, sum): ((IpAddr, IpAddr), _) = match packet.net {
            Some(NetSlice::Ipv4(v4)) => {
                let v4 = v4.header().to_header();
                assert_eq!(v4.header_checksum, v4.calc_header_checksum());
                let sum = header.calc_checksum_ipv4(&v4, udp.payload()).unwrap();
                ((v4.source.into(), v4.destination.into()), sum)
            }
            Some(NetSlice::Ipv6(v6)) => {
                let v6 = v6.header().to_header();
                (
                    (v6.source.into(), v6.destination.into()),
                    header.calc_checksum_ipv6(&v6, udp.payload()).unwrap(),
                )
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(header.checksum, sum);
        (addresses.0, addresses.1, header.source_port, header.destination_port)
    }

    fn addresses() -> impl Strategy<Value = [Addresses; 2]> {
        let four =
            |a: u16, b: u8| Addresses::new([10, 0, 0, 0].into(), [10, 0, (a % 4) as u8, b].into()).unwrap();
        let six = |a: u16| {
            let first = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
            Addresses::new(first.into(), (first.to_bits() + u128::from(a)).to_be_bytes().into()).unwrap()
        };
        prop_oneof![
            (any::<u16>(), any::<u8>()).prop_map(move |(a, b)| [four(a, b), four(0, b % 3)]),
            any::<u16>().prop_map(move |a| [six(a), six(a % 5)]),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_is_valid_and_flows_differ(
            size in 70usize..1600, ports in (0u16..1000, 0u16..3), [src, dst] in addresses(), vlan: bool, flows in 1u64..40,
        ) {
            let tag = VlanTag::new(EtherType::VLAN, VlanId::new(7).unwrap(), Pcp::new(3).unwrap());
            let terms = Terms {
                size, src, dst,
                udp_src: Ports::new(5, 5 + ports.0).unwrap(),
                udp_dst: Ports::new(9, 9 + ports.1).unwrap(),
                tag: vlan.then_some(tag),
                ..Terms::plain()
            };
            let there_are = terms.clone().settled().map_or(0, |terms| terms.flows.unwrap());
            prop_assume!(there_are > 1);
            let flows = flows.min(there_are);
            let frames = Frames::new(&Terms { flows: Some(flows), ..terms }, Stamping::By(TOKEN)).unwrap();
            prop_assert_eq!(frames.frame_len(), size);
            let tuples: BTreeSet<_> = (0..flows).map(|n| tuple(&bytes(&frames, n))).collect();
            prop_assert_eq!(tuples.len() as u64, flows);
            prop_assert_eq!(tuple(&bytes(&frames, 3)), tuple(&bytes(&frames, 3 + flows)));
        }
    }

    #[test]
    fn frames_of_60_bytes_have_a_whole_stamp() {
        let frames = Frames::new(&Terms::plain(), Stamping::By(TOKEN)).unwrap();
        let frame = bytes(&frames, 5);
        assert_eq!(frame[42..], Stamp { sequence: 5, sent: 77 }.emit(TOKEN));
        assert_eq!((frames.form(), frames.flows(), frames.place(9)), (Form::Whole, 1, (0, 9)));
        let tag = VlanTag::new(EtherType::VLAN, VlanId::new(7).unwrap(), Pcp::new(0).unwrap());
        let tagged = Frames::new(&Terms { tag: Some(tag), ..Terms::plain() }, Stamping::By(TOKEN)).unwrap();
        assert_eq!((tagged.form(), tagged.frame_len()), (Form::Untimed, 60));
        let plain = Frames::new(&Terms::plain(), Stamping::Plain).unwrap();
        assert_eq!(bytes(&plain, 5)[42..], [0; 18]);
        tuple(&bytes(&plain, 5));
    }

    #[test]
    fn stations_are_pairs() {
        let macs = |last| Macs::new(MacAddr([2, 0, 0, 0, last, 0]), 10).unwrap();
        let terms = Terms { flows: Some(100), src_macs: macs(1), dst_macs: macs(2), ..Terms::plain() };
        let frames = Frames::new(&terms, Stamping::Plain).unwrap();
        let pairs: BTreeSet<Vec<u8>> = (0..100).map(|n| bytes(&frames, n)[..12].to_vec()).collect();
        assert_eq!(pairs.len(), 100);
        assert_eq!((frames.place(100), frames.place(257)), ((0, 1), (57, 2)));
    }

    #[test]
    fn outer_headers_are_those_of_the_other_end() {
        let vxlan = Vxlan {
            vni: Vni::new(42).unwrap(),
            src_mac: MacAddr([2; 6]),
            dst_mac: MacAddr([4; 6]),
            src: [192, 0, 2, 2].into(),
            dst: [192, 0, 2, 1].into(),
            dst_port: 4789,
        };
        let terms = Terms { vxlan: Some(vxlan), flows: Some(50), ..Terms::plain() };
        let frames = Frames::new(&terms, Stamping::By(TOKEN)).unwrap();
        let mut ports = BTreeSet::new();
        for sequence in 0..50 {
            let frame = bytes(&frames, sequence);
            assert_eq!(frame.len(), 110);
            let outer = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Udp(udp)) = outer.transport else { panic!("{outer:?}") };
            assert_eq!((udp.destination_port(), usize::from(udp.length())), (4789, 8 + 8 + 60));
            assert_eq!(udp.payload()[..8], [8, 0, 0, 0, 0, 0, 42, 0]);
            ports.insert(udp.source_port());
            tuple(&udp.payload()[8..]);
        }
        assert!(ports.len() > 40, "{ports:?}");
    }
}
