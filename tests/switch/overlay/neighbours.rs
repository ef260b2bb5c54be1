//! The responder: a segment whose stations are all known floods no questions.

use std::net::Ipv4Addr;
use std::time::Duration;

use encap::field::{MacAddr, VlanId};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use flowtable::action::DropReason;
use flowtable::time::Instant;

use super::outer::Outer;
use super::{endpoint_mac, node, v4};
use crate::fabric;
use crate::frames::{gratuitous_arp, ip, mac, tagged, unicast};
use crate::guest::{Guest, play};
use crate::rack::{Rack, both_ways};

/// Everybody in the segment is known to everybody, and nothing is learned.
fn populated((here, there): (u8, u8)) -> String {
    let segment = format!(
        "{{ name = 's', type = 'vxlan', id = 7, vteps = ['{0}'], learning = false, strict-peers = true }}",
        v4(there)
    );
    let entries: String = [here, there]
        .map(|n| {
            let (mac, segment) = (mac(n), "segment = 's'");
            format!(
                "{{ {segment}, address = '{}', mac = '{mac}' }}, {{ {segment}, address = 'fd00::{n}', mac = '{mac}' }},",
                ip(n)
            )
        })
        .concat();
    let fdb = format!("{{ mac = '{}', segment = 's', vtep = '{}' }}", mac(there), v4(there));
    let ports = format!("{{ name = 'vm{here}', segment = 's' }}, {{ name = 'w{here}', segment = 's' }}");
    let tables = format!("name = 'br-int', neigh = [{entries}], fdb = [{fdb}],");
    node(here, &segment, &ports).replace("name = 'br-int',", &tables)
}

#[test]
fn guests_meet_over_a_tunnel_and_nobody_else_hears_of_it() {
    fabric::both_ways(&[populated((1, 2)), populated((2, 1))], &["eth1"], |fabric| {
        let mut guest = |n: u8| {
            let peer = fabric.racks[usize::from(n) - 1].take_cable(&format!("vm{n}"));
            Guest::new(peer, mac(n), &[&format!("10.0.0.{n}/24"), &format!("fd00::{n}/64")])
        };
        let mut guests = [guest(1), guest(2)];
        guests[0].ping("10.0.0.2");
        guests[0].ping("fd00::2");
        guests[1].ping("10.0.0.1");
        guests[1].ping("fd00::1");
        let mut turn = |now| {
            fabric.set_time(now);
            fabric.settle();
        };
        let answered = |guests: &[Guest]| guests.iter().all(|guest| guest.answers() == 2);
        play(&mut guests, (Instant::ZERO, Duration::from_secs(5)), &mut turn, answered);
        for (at, watcher) in ["w1", "w2"].into_iter().enumerate() {
            let heard = fabric.racks[at].drain_port(watcher);
            let questions = |frame: &[u8]| {
                frame[12..14] == [0x08, 0x06]
                    || frame[12..14] == [0x86, 0xdd] && matches!(frame[54], 135 | 136)
            };
            assert!(!heard.iter().any(|frame| questions(&frame.bytes)), "{heard:?}");
        }
    });
}

/// An ARP request of host `from`.
fn request(from: u8, sender: Ipv4Addr, target: Ipv4Addr, to: MacAddr) -> Vec<u8> {
    arp(ArpOperation::REQUEST, (mac(from), sender), (MacAddr::default(), target), to)
}

fn arp(op: ArpOperation, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr), to: MacAddr) -> Vec<u8> {
    let (ips, macs) = ((sender.1.octets(), target.1.octets()), (sender.0.0, target.0.0));
    let packet =
        ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, op, &macs.0, &ips.0, &macs.1, &ips.1);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(macs.0, to.0).arp(packet.unwrap()).write(&mut frame).unwrap();
    frame
}

/// The segment with host 5 known at VTEP 2, and three ports: access, access and trunk.
fn one(neighbours: &str) -> String {
    let segment = "{ name = 's', vlan = 10, type = 'vxlan', id = 7, vteps = ['192.0.2.2'] }";
    let ports = "{ name = 'a', segment = 's' }, { name = 'b', tag = 10 }, { name = 't', trunks = [10] }";
    node(1, segment, ports).replace("name = 'br-int',", &format!("name = 'br-int', neigh = [{neighbours}],"))
}

const FIVE: &str = "{ segment = 's', address = '10.0.0.5', mac = '02:00:00:00:00:05' }";

#[track_caller]
fn with_peer(config: &str, scenario: impl Fn(&mut Rack)) {
    both_ways(config, |rack| {
        rack.neighbour("vtep1", v4(2), endpoint_mac(2));
        scenario(rack);
    });
}

fn heard(rack: &mut Rack, from: &str, frame: &[u8]) -> Vec<String> {
    rack.send(from, &[frame.to_vec()]).into_keys().collect()
}

#[test]
fn questions_for_the_known_are_answered_and_all_others_take_their_way() {
    with_peer(&one(FIVE), |rack| {
        let question = request(1, ip(1), ip(5), MacAddr::BROADCAST);
        let answer = arp(ArpOperation::REPLY, (mac(5), ip(5)), (mac(1), ip(1)), mac(1));
        rack.expect("a", &question, &[("a", &answer)]);
        rack.expect("t", &tagged(&question, 0x600a), &[("t", &tagged(&answer, 0x600a))]);
        let everybody = ["b", "eth1", "t"];
        let unspecified = Ipv4Addr::UNSPECIFIED;
        for frame in [
            // For somebody else; a probe; an announcement; a reply; what he asks for himself.
            request(1, ip(1), ip(6), MacAddr::BROADCAST),
            request(1, unspecified, ip(5), MacAddr::BROADCAST),
            gratuitous_arp(1),
            gratuitous_arp(5),
            arp(ArpOperation::REPLY, (mac(1), ip(1)), (mac(5), ip(5)), MacAddr::BROADCAST),
            request(5, ip(9), ip(5), MacAddr::BROADCAST),
        ] {
            assert_eq!(heard(rack, "a", &frame), everybody, "{frame:x?}");
        }
        // A question to one station is for that one: it tests whether it is there (RFC 1122 section 2.3.2.1).
        rack.send("b", &[unicast(5, 1)]);
        rack.expect_at("a", &request(1, ip(1), ip(5), mac(5)), &["b"]);
        // The other hypervisors answer for themselves.
        let theirs = Outer::vxlan(2, 1, 7).wrap(&request(2, ip(2), ip(5), MacAddr::BROADCAST));
        assert_eq!(heard(rack, "eth1", &theirs), ["a", "b", "t"]);
    });
}

#[test]
fn entries_come_change_and_go_at_once() {
    with_peer(&one(""), |rack| {
        let question = request(1, ip(1), ip(5), MacAddr::BROADCAST);
        assert_eq!(heard(rack, "a", &question), ["b", "eth1", "t"]);
        for n in [5, 7] {
            rack.apply(&one(&FIVE.replace("00:05'", &format!("00:0{n}'"))));
            let answer = arp(ArpOperation::REPLY, (mac(n), ip(5)), (mac(1), ip(1)), mac(1));
            rack.expect("a", &question, &[("a", &answer)]);
        }
        rack.apply(&one(""));
        assert_eq!(heard(rack, "a", &question), ["b", "eth1", "t"]);
    });
}

/// Duplicate address detection asks from nowhere and is let through; a guest behind a trunk resolves as any other.
#[test]
fn a_guest_on_a_trunk_is_answered_in_its_vlan() {
    let entries = "{ segment = 's', address = 'fd00::5', mac = '02:00:00:00:00:05' }, ".to_owned() + FIVE;
    with_peer(&one(&entries), |rack| {
        let vlan = VlanId::new(10).unwrap();
        let mut guests =
            [Guest::new(rack.take_cable("t"), mac(1), &["10.0.0.1/24", "fd00::1/64"]).tagged(vlan)];
        guests[0].ping("10.0.0.5");
        guests[0].ping("fd00::5");
        let echoes = std::cell::RefCell::new(Vec::new());
        let turn = |now| {
            rack.now = now;
            rack.settle();
            let sent = rack.drain_port("eth1").into_iter().map(|frame| Outer::open(&frame.bytes, 8).1);
            echoes.borrow_mut().extend(sent);
        };
        let asked = |_: &[Guest]| {
            let to_five = |frame: &&Vec<u8>| frame[..6] == mac(5).0;
            echoes.borrow().iter().filter(to_five).count() == 2
        };
        play(&mut guests, (Instant::ZERO, Duration::from_secs(5)), turn, asked);
        assert!(echoes.borrow().iter().all(|frame| frame[12..14] != [0x08, 0x06]), "{echoes:?}");
    });
}

/// Nothing is asked of those who cannot be: the answer would be the same, and wrong.
#[test]
fn neighbours_of_one_tenant_are_not_those_of_another() {
    let segments = "{ name = 's', type = 'local' }, { name = 'o', type = 'local' }";
    let ports = "{ name = 'a', segment = 's' }, { name = 'b', segment = 's' }, { name = 'c', segment = 'o' }, { name = 'd', segment = 'o' }";
    let config =
        node(1, segments, ports).replace("name = 'br-int',", &format!("name = 'br-int', neigh = [{FIVE}],"));
    both_ways(&config, |rack| {
        let question = request(1, ip(1), ip(5), MacAddr::BROADCAST);
        assert_eq!(heard(rack, "a", &question), ["a"]);
        rack.expect_at("c", &question, &["d"]);
        rack.expect_at("b", &request(1, ip(1), ip(6), MacAddr::BROADCAST), &["a"]);
        assert_eq!(rack.switch.total_stats().dropped(DropReason::NoDestination), 0);
    });
}
