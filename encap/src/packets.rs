//! Well-formed frames for property tests, built by etherparse so that the code under test does not judge
//! itself.

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder, TcpHeader,
    checksum::Sum16BitWords,
};
use proptest::prelude::*;
use proptest::{collection::vec, option};

use crate::field::{EtherType, VlanTag};
use crate::offload::Csum;

/// An IP packet in an Ethernet frame.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Outermost first.
    pub tags: Vec<VlanTag>,
    pub ip: IpHeaders,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone)]
pub enum Transport {
    Tcp(TcpHeader),
    Udp,
    Icmp,
}

impl Packet {
    /// The frame, with correct lengths and checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ip(self.ip.clone());
        match (&self.transport, &self.ip) {
            (Transport::Tcp(tcp), _) => ip.tcp_header(tcp.clone()).write(&mut frame, &self.payload),
            (Transport::Udp, _) => ip.udp(4000, 53).write(&mut frame, &self.payload),
            (_, IpHeaders::Ipv4(..)) => ip.icmpv4_echo_request(7, 1).write(&mut frame, &self.payload),
            (_, IpHeaders::Ipv6(..)) => ip.icmpv6_echo_request(7, 1).write(&mut frame, &self.payload),
        }
        .expect("a packet that can be built");
        for tag in self.tags.iter().rev() {
            let (tpid, tci) = (tag.tpid.0.to_be_bytes(), tag.tci.to_be_bytes());
            frame.splice(12..12, tpid.into_iter().chain(tci));
        }
        frame
    }

    /// The frame as Linux leaves it for a card, and where its partial checksum is. TCP and UDP only.
    pub fn left_to_a_card(&self) -> (Vec<u8>, Csum) {
        let mut frame = self.bytes();
        let (l4, len) = (self.l4(), frame.len());
        let (proto, offset) = match self.transport {
            Transport::Tcp(_) => (6, 16),
            Transport::Udp => (17, 6),
            Transport::Icmp => unreachable!("no card sums ICMP"),
        };
        let addresses = match &self.ip {
            IpHeaders::Ipv4(header, _) => [&header.source[..], &header.destination].concat(),
            IpHeaders::Ipv6(header, _) => [&header.source[..], &header.destination].concat(),
        };
        let length = ((len - l4) as u32).to_be_bytes();
        let sum = Sum16BitWords::new().add_slice(&addresses).add_2bytes([0, proto]).add_slice(&length);
        frame[l4 + offset..][..2].copy_from_slice(&(!sum.ones_complement()).to_ne_bytes());
        (frame, Csum::Partial { start: l4 as u16, offset: offset as u16 })
    }

    /// Bytes in front of the IP header.
    pub fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Bytes in front of the transport header.
    pub fn l4(&self) -> usize {
        self.l3() + self.ip.header_len()
    }
}

pub fn tag() -> impl Strategy<Value = VlanTag> {
    let tpid = prop_oneof![Just(EtherType::VLAN), Just(EtherType::QINQ)];
    (tpid, any::<u16>()).prop_map(|(tpid, tci)| VlanTag { tpid, tci })
}

/// IPv4 with options, not fragmented.
pub fn ipv4() -> impl Strategy<Value = IpHeaders> {
    (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<u16>(), 0usize..=10).prop_map(|(src, dst, id, words)| {
        let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, src, dst).expect("an empty payload fits");
        header.identification = id;
        header.options = Ipv4Options::try_from(&[1u8; 40][..words * 4]).expect("whole words of no-ops");
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    })
}

/// IPv6, with extension headers in half of the cases, not fragmented.
pub fn ipv6() -> impl Strategy<Value = IpHeaders> {
    let raw =
        || (0usize..4).prop_map(|n| Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[0; 64][..6 + 8 * n]).unwrap());
    let routing = (raw(), option::of(raw()))
        .prop_map(|(routing, options)| Ipv6RoutingExtensions { routing, final_destination_options: options });
    let auth = any::<[u8; 12]>().prop_map(|icv| IpAuthHeader::new(IpNumber::UDP, 1, 2, &icv).unwrap());
    let extensions = (option::of(raw()), option::of(raw()), option::of(routing), option::of(auth)).prop_map(
        |(hop_by_hop_options, destination_options, routing, auth)| Ipv6Extensions {
            hop_by_hop_options,
            destination_options,
            routing,
            auth,
            fragment: None,
        },
    );
    (any::<[u8; 16]>(), any::<[u8; 16]>(), option::of(extensions)).prop_map(|(src, dst, extensions)| {
        let header = Ipv6Header { source: src, destination: dst, hop_limit: 64, ..Default::default() };
        IpHeaders::Ipv6(header, extensions.unwrap_or_default())
    })
}

/// A TCP header with options and any flags.
pub fn tcp() -> impl Strategy<Value = TcpHeader> {
    (any::<u32>(), any::<u8>(), 0usize..=10).prop_map(|(seq, flags, words)| {
        let mut header = TcpHeader::new(40000, 80, seq, 8192);
        header.set_options_raw(&[1u8; 40][..words * 4]).expect("whole words of no-ops");
        (header.fin, header.psh, header.cwr) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        (header.ack, header.ece) = (flags & 8 != 0, flags & 16 != 0);
        header
    })
}

/// A whole packet with 0 to 3 tags and up to `payload` bytes behind the transport header.
pub fn packet(payload: usize) -> impl Strategy<Value = Packet> {
    let transport = prop_oneof![tcp().prop_map(Transport::Tcp), Just(Transport::Udp), Just(Transport::Icmp)];
    (vec(tag(), 0..=3), prop_oneof![ipv4(), ipv6()], transport, vec(any::<u8>(), 0..=payload))
        .prop_map(|(tags, ip, transport, payload)| Packet { tags, ip, transport, payload })
}

/// As [`packet`], but a fragment (or, one time in four, an atomic one: offset 0 and no more to come).
pub fn fragment() -> impl Strategy<Value = Packet> {
    let offset = prop_oneof![Just(0u16), 1..8192u16];
    (packet(64), offset, any::<bool>()).prop_map(|(mut packet, offset, more)| {
        let offset = IpFragOffset::try_new(offset).expect("13 bits");
        match &mut packet.ip {
            IpHeaders::Ipv4(header, _) => (header.fragment_offset, header.more_fragments) = (offset, more),
            IpHeaders::Ipv6(_, extensions) => {
                extensions.fragment = Some(Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, 9));
            }
        }
        packet
    })
}

/// TCP or UDP with at most two tags, so that a card finds what to do.
pub fn for_a_card(payload: usize) -> impl Strategy<Value = Packet> {
    let transport = prop_oneof![tcp().prop_map(Transport::Tcp), Just(Transport::Udp)];
    (packet(payload), transport).prop_map(|(mut packet, transport)| {
        packet.tags.truncate(2);
        packet.transport = transport;
        packet
    })
}

/// UDP over IPv4, untagged, the same every time.
pub fn example() -> Packet {
    let header =
        Ipv4Header::new(0, 64, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).expect("nothing to hold");
    let ip = IpHeaders::Ipv4(header, Ipv4Extensions::default());
    Packet { tags: Vec::new(), ip, transport: Transport::Udp, payload: b"example".to_vec() }
}

/// As [`example`], but TCP.
pub fn tcp_example() -> Packet {
    let mut tcp = TcpHeader::new(40000, 80, u32::MAX - 1000, 8192);
    (tcp.ack, tcp.psh, tcp.fin, tcp.cwr) = (true, true, true, true);
    Packet { transport: Transport::Tcp(tcp), ..example() }
}

/// The packet over IPv6.
pub fn over_ipv6(packet: Packet) -> Packet {
    let header = Ipv6Header { source: [0xfd; 16], destination: [0xfe; 16], ..Default::default() };
    Packet { ip: IpHeaders::Ipv6(header, Ipv6Extensions::default()), ..packet }
}
