use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
};

use super::super::neighbours::State;
use super::*;

const NOW: Instant = Instant::from_nanos(1 << 40);
const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xaa]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xbb]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    let (address, len) = text.split_once('/').unwrap();
    let address = ip(address);
    Cidr { address, network: Prefix::new(address, len.parse().unwrap()).unwrap() }
}

fn identity() -> Identity {
    Identity { mac: OURS, addresses: vec![cidr("192.0.2.1/24"), cidr("2001:db8::1/64")] }
}

/// An endpoint that has said who it is.
fn stack() -> Stack {
    let mut stack = Stack::new(identity(), NOW);
    (0..3).for_each(|s| _ = stack.turn(NOW + PAUSE * s));
    drop(stack.outgoing());
    stack
}

fn peer(address: &str) -> Speaker {
    Speaker { mac: PEER, address: ip(address) }
}

/// What the endpoint says to a frame, if it says one thing.
fn reply(stack: &mut Stack, frame: &[u8]) -> Option<Vec<u8>> {
    assert_eq!(stack.receive(frame, NOW), None);
    let all: Vec<_> = stack.outgoing().collect();
    assert!(all.len() < 2);
    all.into_iter().next()
}

/// Destination and source.
fn stations(frame: &[u8]) -> (MacAddr, MacAddr) {
    (MacAddr(frame[..6].try_into().unwrap()), MacAddr(frame[6..12].try_into().unwrap()))
}

fn packet(protocol: EthernetProtocol, dst: MacAddr, len: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_dst_addr(EthernetAddress(dst.0));
    frame.set_src_addr(EthernetAddress(PEER.0));
    frame.set_ethertype(protocol);
    fill(frame.payload_mut());
    bytes
}

fn icmp_v4(dst: MacAddr, to: &str, icmp: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) = (ip("203.0.113.9"), ip(to)) else { unreachable!() };
    let repr =
        Ipv4Repr { src_addr, dst_addr, next_header: IpProtocol::Icmp, payload_len: icmp.len(), hop_limit: 9 };
    packet(EthernetProtocol::Ipv4, dst, 20 + icmp.len(), |buffer| {
        let mut packet = Ipv4Packet::new_unchecked(buffer);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        packet.payload_mut().copy_from_slice(icmp);
    })
}

fn ping_v4(to: &str) -> Vec<u8> {
    let repr = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: &[0x5a; 56] };
    let mut icmp = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut icmp), &ChecksumCapabilities::default());
    icmp_v4(OURS, to, &icmp)
}

fn icmp_v6(dst: MacAddr, to: &str, icmp: &[u8]) -> Vec<u8> {
    let (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) = (ip("2001:db8:ffff::9"), ip(to)) else {
        unreachable!()
    };
    let repr = Ipv6Repr {
        src_addr,
        dst_addr,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.len(),
        hop_limit: 9,
    };
    packet(EthernetProtocol::Ipv6, dst, 40 + icmp.len(), |buffer| {
        let mut packet = Ipv6Packet::new_unchecked(buffer);
        repr.emit(&mut packet);
        packet.payload_mut().copy_from_slice(icmp);
        Icmpv6Packet::new_unchecked(packet.payload_mut()).fill_checksum(&src_addr, &dst_addr);
    })
}

fn ping_v6(to: &str) -> Vec<u8> {
    icmp_v6(OURS, to, &[&[128, 0, 0, 0, 0, 7, 0, 1], &[0x5a; 56][..]].concat())
}

#[test]
fn it_announces_its_addresses_three_times() {
    let mut stack = Stack::new(identity(), NOW);
    for n in 0..3u32 {
        let now = NOW + PAUSE * n;
        assert_eq!(stack.deadline(), Some(now));
        stack.turn(now);
        let said: Vec<_> = stack.outgoing().map(|frame| wire::read(&frame)).collect();
        let ours = |address| Some(Said::Answer { address, mac: OURS, weight: Weight::Override });
        let link_local = link_local(OURS).address;
        assert_eq!(said, [ours(ip("192.0.2.1")), ours(ip("2001:db8::1")), ours(link_local)]);
    }
    assert_eq!((stack.turn(NOW + PAUSE * 9), stack.outgoing().count(), stack.deadline()), (false, 0, None));
    stack.identify(identity(), NOW);
    assert_eq!(stack.deadline(), None, "it is who it was");
    stack.identify(Identity { addresses: vec![cidr("192.0.2.7/24")], ..identity() }, NOW);
    stack.turn(NOW);
    assert_eq!(stack.outgoing().count(), 1, "another address, and no IPv6");
}

#[test]
fn it_answers_who_asks_for_an_address_of_its_own() {
    for (ours, theirs) in
        [("192.0.2.1", "192.0.2.9"), ("2001:db8::1", "2001:db8::9"), ("2001:db8::1", "fe80::9")]
    {
        for to in [None, Some(OURS)] {
            let question = wire::question(peer(theirs), ip(ours), to).unwrap();
            let answer = reply(&mut stack(), &question).unwrap();
            assert_eq!(stations(&answer), (PEER, OURS));
            let expected = Said::Answer { address: ip(ours), mac: OURS, weight: Weight::Solicited };
            assert_eq!(wire::read(&answer), Some(expected));
        }
    }
    let other = wire::question(peer("192.0.2.9"), ip("192.0.2.8"), None).unwrap();
    assert_eq!(reply(&mut stack(), &other), None);
}

#[test]
fn it_defends_an_address_that_somebody_wants_to_take() {
    let probe = wire::question(peer("0.0.0.0"), ip("192.0.2.1"), None).unwrap();
    assert!(matches!(
        wire::read(&reply(&mut stack(), &probe).unwrap()),
        Some(Said::Answer { mac: OURS, .. })
    ));
    // Duplicate address detection has no source address, and no source link-layer address either.
    let probe = without_option(wire::question(peer("::"), ip("2001:db8::1"), None).unwrap());
    let answer = reply(&mut stack(), &probe).unwrap();
    assert_eq!(stations(&answer).0, MacAddr([0x33, 0x33, 0, 0, 0, 1]));
    let expected = Said::Answer { address: ip("2001:db8::1"), mac: OURS, weight: Weight::Override };
    assert_eq!(wire::read(&answer), Some(expected));
}

/// A neighbour solicitation without its option.
fn without_option(mut question: Vec<u8>) -> Vec<u8> {
    question.truncate(ETHERNET + 40 + 24);
    question[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&24u16.to_be_bytes());
    let (ip, icmp) = question[ETHERNET..].split_at_mut(40);
    let ip = Ipv6Packet::new_unchecked(ip);
    Icmpv6Packet::new_unchecked(icmp).fill_checksum(&ip.src_addr(), &ip.dst_addr());
    question
}

#[test]
fn who_asks_us_alone_need_not_say_where_it_is() {
    let ask = |to| without_option(wire::question(peer("2001:db8::9"), ip("2001:db8::1"), to).unwrap());
    assert_eq!(stations(&reply(&mut stack(), &ask(Some(OURS))).unwrap()), (PEER, OURS));
    assert_eq!(reply(&mut stack(), &ask(None)), None, "RFC 4861 section 4.3");
}

#[test]
fn it_answers_pings_to_the_station_they_came_from() {
    let answer = reply(&mut stack(), &ping_v4("192.0.2.1")).unwrap();
    assert_eq!(stations(&answer), (PEER, OURS));
    let packet = Ipv4Packet::new_checked(&answer[ETHERNET..]).unwrap();
    assert!(packet.verify_checksum() && packet.dst_addr() == ip("203.0.113.9"));
    let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
    let repr = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).unwrap();
    assert_eq!(repr, Icmpv4Repr::EchoReply { ident: 7, seq_no: 1, data: &[0x5a; 56] });

    let answer = reply(&mut stack(), &ping_v6("2001:db8::1")).unwrap();
    assert_eq!(stations(&answer), (PEER, OURS));
    let packet = Ipv6Packet::new_checked(&answer[ETHERNET..]).unwrap();
    let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    let repr = Icmpv6Repr::parse(&src, &dst, &icmp, &ChecksumCapabilities::default()).unwrap();
    assert_eq!(repr, Icmpv6Repr::EchoReply { ident: 7, seq_no: 1, data: &[0x5a; 56] });
}

#[test]
fn it_keeps_silent_to_pings_that_are_not_for_it_alone() {
    for (dst, to) in [
        (OURS, "192.0.2.2"),
        (MacAddr::BROADCAST, "192.0.2.1"),
        (MacAddr::BROADCAST, "192.0.2.255"),
        (PEER, "192.0.2.1"),
    ] {
        let mut ping = ping_v4(to);
        ping[..6].copy_from_slice(&dst.0);
        assert_eq!(reply(&mut stack(), &ping), None, "{dst} {to}");
    }
    assert_eq!(reply(&mut stack(), &ping_v6("2001:db8::2")), None);
}

#[test]
fn it_learns_whom_it_asked_for() {
    for (address, other) in [("192.0.2.9", "192.0.2.8"), ("2001:db8::9", "2001:db8::8")] {
        let mut stack = stack();
        let question = stack.neighbours.ask(ip(address), NOW);
        stack.put(question);
        let asked = stack.outgoing().next().unwrap();
        let Some(Said::Question { target, asker, mac }) = wire::read(&asked) else { panic!("{asked:x?}") };
        assert_eq!((target, mac, stations(&asked).0.is_multicast()), (ip(address), Some(OURS), true));
        let answer = wire::answer(peer(address), asker, mac).unwrap();
        assert_eq!(stack.receive(&answer, NOW), Some(News::Neighbour));
        assert_eq!(stack.receive(&answer, NOW), None, "that is known");
        assert_eq!(stack.neighbours.known().collect::<Vec<_>>(), [(ip(address), PEER)]);
        let unasked = wire::answer(peer(other), asker, mac).unwrap();
        assert_eq!(stack.receive(&unasked, NOW), None);
        assert_eq!(stack.neighbours.iter().count(), 1);
    }
}

#[test]
fn a_neighbour_that_moved_says_so_to_all() {
    for address in ["192.0.2.9", "2001:db8::9"] {
        let mut stack = stack();
        let _ = stack.neighbours.ask(ip(address), NOW);
        stack.receive(&wire::announcement(peer(address)), NOW);
        let moved = Speaker { mac: MacAddr([2, 0, 0, 0, 0, 0xcc]), address: ip(address) };
        let later = NOW + Duration::from_secs(5);
        assert_eq!(stack.receive(&wire::announcement(moved), later), Some(News::Neighbour));
        assert_eq!(stack.neighbours.known().next(), Some((ip(address), moved.mac)));
    }
}

#[test]
fn who_asks_us_tells_its_new_mac() {
    let mut stack = stack();
    stack.neighbours.fix(ip("192.0.2.7"), OURS, NOW);
    let _ = stack.neighbours.ask(ip("192.0.2.9"), NOW);
    let question = wire::question(peer("192.0.2.9"), ip("192.0.2.1"), None).unwrap();
    assert_eq!(stack.receive(&question, NOW), Some(News::Neighbour));
    let entry = *stack.neighbours.iter().find(|(a, _)| *a == ip("192.0.2.9")).unwrap().1;
    assert!(entry.mac == Some(PEER) && matches!(entry.state, State::Reachable(_)));
}

#[test]
fn another_station_with_our_address_is_news_and_changes_nothing() {
    for address in ["192.0.2.1", "2001:db8::1"] {
        let mut stack = stack();
        let conflict = Some(News::Conflict { address: ip(address), mac: PEER });
        assert_eq!(stack.receive(&wire::announcement(peer(address)), NOW), conflict);
        assert_eq!((stack.outgoing().count(), stack.neighbours.iter().count()), (0, 0));
    }
    let own = wire::announcement(Speaker { mac: OURS, address: ip("192.0.2.1") });
    assert_eq!(stack().receive(&own, NOW), None, "our own words, come back");
}

/// What a router sends when `quoted` (an IP packet) did not fit.
fn too_big(quoted: &[u8], mtu: u16) -> Vec<u8> {
    if quoted[0] >> 4 == 4 {
        let mut icmp = vec![3, 4, 0, 0, 0, 0];
        icmp.extend(mtu.to_be_bytes());
        icmp.extend(&quoted[..28]);
        Icmpv4Packet::new_unchecked(&mut icmp).fill_checksum();
        icmp_v4(OURS, "192.0.2.1", &icmp)
    } else {
        let mut icmp = vec![2, 0, 0, 0];
        icmp.extend(u32::from(mtu).to_be_bytes());
        icmp.extend(&quoted[..48]);
        icmp_v6(OURS, "2001:db8::1", &icmp)
    }
}

fn outer_v4(src: &str, dst: &str, protocol: u8, port: u16) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (ip(src), ip(dst)) else { unreachable!() };
    let [high, low] = port.to_be_bytes();
    let header = [0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    [&header[..], &src.octets(), &dst.octets(), &[0xc0, 0, high, low, 0, 0, 0, 0]].concat()
}

fn outer_v6(src: &str, dst: &str, protocol: u8, port: u16) -> Vec<u8> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (ip(src), ip(dst)) else { unreachable!() };
    let [high, low] = port.to_be_bytes();
    let header = [0x60, 0, 0, 0, 0x05, 0xb4, protocol, 64];
    [&header[..], &src.octets(), &dst.octets(), &[0xc0, 0, high, low, 0, 0, 0, 0]].concat()
}

#[test]
fn it_hears_that_a_packet_of_ours_was_too_big() {
    let v4 = outer_v4("192.0.2.1", "198.51.100.2", 17, 4789);
    let message = TooBig {
        local: ip("192.0.2.1"),
        remote: ip("198.51.100.2"),
        udp_port: Some(4789),
        len: 1500,
        mtu: 1400,
    };
    assert_eq!(stack().receive(&too_big(&v4, 1400), NOW), Some(News::TooBig(message)));
    let gre = outer_v4("192.0.2.1", "198.51.100.2", 47, 0);
    let expected = TooBig { udp_port: None, ..message };
    assert_eq!(stack().receive(&too_big(&gre, 1400), NOW), Some(News::TooBig(expected)));
    let v6 = outer_v6("2001:db8::1", "2001:db8:1::2", 17, 6081);
    let message =
        TooBig { local: ip("2001:db8::1"), remote: ip("2001:db8:1::2"), udp_port: Some(6081), ..message };
    assert_eq!(stack().receive(&too_big(&v6, 1400), NOW), Some(News::TooBig(message)));
}

#[test]
fn it_does_not_believe_that_a_packet_of_others_was() {
    for quoted in [
        outer_v4("192.0.2.2", "198.51.100.2", 17, 4789),
        outer_v4("192.0.2.1", "198.51.100.2", 6, 4789),
        outer_v6("2001:db8::2", "2001:db8:1::2", 17, 6081),
    ] {
        assert_eq!(stack().receive(&too_big(&quoted, 1400), NOW), None);
    }
    let mut broken = too_big(&outer_v4("192.0.2.1", "198.51.100.2", 17, 4789), 1400);
    broken[ETHERNET + 20 + 7] ^= 1;
    assert_eq!(stack().receive(&broken, NOW), None, "its checksum is wrong");
}

#[test]
fn discovery_from_beyond_a_router_is_ignored() {
    for at in [
        wire::announcement(peer("2001:db8::9")),
        wire::question(peer("2001:db8::9"), ip("2001:db8::1"), None).unwrap(),
    ] {
        let mut frame = at;
        frame[ETHERNET + 7] = 254;
        let mut stack = stack();
        let _ = stack.neighbours.ask(ip("2001:db8::9"), NOW);
        assert_eq!((stack.receive(&frame, NOW), stack.outgoing().count()), (None, 0));
    }
}

/// Frames that are nearly sound.
fn sound() -> Vec<Vec<u8>> {
    vec![
        wire::announcement(peer("192.0.2.9")),
        wire::announcement(peer("2001:db8::9")),
        wire::question(peer("192.0.2.9"), ip("192.0.2.1"), None).unwrap(),
        wire::question(peer("2001:db8::9"), ip("2001:db8::1"), None).unwrap(),
        wire::answer(peer("192.0.2.9"), ip("192.0.2.1"), Some(OURS)).unwrap(),
        ping_v4("192.0.2.1"),
        ping_v6("2001:db8::1"),
        too_big(&outer_v4("192.0.2.1", "198.51.100.2", 17, 4789), 1400),
        too_big(&outer_v6("2001:db8::1", "2001:db8:1::2", 17, 6081), 1400),
    ]
}

proptest! {
    /// Hostile bytes: no panic, at most one answer, no longer than what asked for it but for an ICMP header, and no
    /// neighbour that nobody asked for.
    #[test]
    fn hostile_frames_cost_little(
        which in 0usize..9,
        cut in 0usize..200,
        edits in proptest::collection::vec((0usize..160, any::<u8>()), 0..8),
        to_us in any::<bool>(),
    ) {
        let mut frame = sound()[which].clone();
        for (at, byte) in edits {
            let len = frame.len();
            frame[at % len] = byte;
        }
        frame.truncate(frame.len().saturating_sub(cut.saturating_sub(100)));
        if to_us && frame.len() >= 6 {
            frame[..6].copy_from_slice(&OURS.0);
        }
        let mut stack = stack();
        stack.receive(&frame, NOW);
        let answers: Vec<_> = stack.outgoing().collect();
        prop_assert!(answers.len() <= 1);
        prop_assert!(answers.iter().all(|answer| answer.len() <= frame.len().max(86) + 48));
        prop_assert_eq!(stack.neighbours.iter().count(), 0);
    }

    /// The same of bytes without any sense.
    #[test]
    fn noise_costs_little(mut frame in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..4) {
        let kinds = [[8, 0], [8, 6], [0x86, 0xdd], [0, 0]];
        if frame.len() > 15 {
            frame[..6].copy_from_slice(&OURS.0);
            frame[12..14].copy_from_slice(&kinds[kind]);
            frame[14] = if kind == 0 { 0x45 } else { 0x60 };
        }
        let mut stack = stack();
        stack.receive(&frame, NOW);
        prop_assert!(stack.outgoing().count() <= 1);
        prop_assert_eq!(stack.neighbours.iter().count(), 0);
    }
}
