//! Questions that the switch answers, and those that it must let through.

use super::lab::{Draft, Lab, ip, mac};
use super::{out_of, overlay};

/// Host 2 of segment blue has 10.0.0.2 and fe80::2, says the controller.
fn populated(draft: &mut Draft) {
    overlay(draft);
    draft.port("eth2");
    draft.segment("wire", 8, "eth2 101");
    for segment in ["blue", "wire"] {
        let known = [(ip("10.0.0.2"), mac(2)), (ip("fe80::2"), mac(2))];
        draft.named(segment).neighbours = known.into_iter().collect();
    }
    draft.port("t");
}

/// A question of host 1 to everybody.
fn arp(port: &str, rest: &str) -> String {
    format!("in_port={port},arp,arp_op=1,dl_src=02:00:00:00:00:01,dl_dst=ff:ff:ff:ff:ff:ff,{rest}")
}

fn solicitation(rest: &str) -> String {
    format!("in_port=vm1,icmp6,icmp_type=135,dl_src=02:00:00:00:00:01,dl_dst=33:33:ff:00:00:02,{rest}")
}

const FLOOD: &str = "vx0:5001>192.0.2.2@eth1,vx0:5001>192.0.2.3@eth1,vm3,push_vlan(vid=1,pcp=0),t";

#[test]
fn who_asks_for_a_known_address_is_answered_and_nobody_else_asked() {
    let lab = Lab::new(populated);
    let question = "arp_spa=10.0.0.1,arp_tpa=10.0.0.2";
    assert_eq!(lab.brief(&arp("vm1", question)), "answer(02:00:00:00:00:02),vm1");
    assert_eq!(
        lab.brief(&solicitation("ipv6_src=fe80::1,nd_target=fe80::2")),
        "answer(02:00:00:00:00:02),vm1"
    );
    assert_eq!(lab.decide(&arp("vm1", question)).effects.len(), 1, "where the asker is, is learned");
    // With the tags it came with.
    assert_eq!(lab.brief(&arp("t", &format!("{question},dl_vlan=1"))), "answer(02:00:00:00:00:02),t");
}

#[test]
fn other_questions_go_their_way() {
    let lab = Lab::new(populated);
    let cases = [
        ("an address nobody told of", "arp_spa=10.0.0.1,arp_tpa=10.0.0.3"),
        ("an announcement", "arp_spa=10.0.0.2,arp_tpa=10.0.0.2"),
        ("a probe", "arp_spa=0.0.0.0,arp_tpa=10.0.0.2"),
    ];
    for (what, rest) in cases {
        assert_eq!(lab.brief(&arp("vm1", rest)), FLOOD, "{what}");
    }
    let question = arp("vm1", "arp_spa=10.0.0.1,arp_tpa=10.0.0.2");
    assert_eq!(lab.brief(&question.replace("arp_op=1", "arp_op=2")), FLOOD, "a reply");
    assert_eq!(lab.brief(&question.replace("00:01,", "00:02,")), FLOOD, "the owner's own");
    assert_eq!(
        lab.brief(&question.replace("in_port=vm1", "in_port=vm2")),
        "gre0:7>192.0.2.2@eth1,push_vlan(vid=2,pcp=0),t",
        "another tenant's"
    );
    let unicast = question.replace("ff:ff:ff:ff:ff:ff", "02:00:00:00:00:02");
    assert_eq!(lab.brief(&unicast), FLOOD, "is the owner still there?");
    let nd = [
        ("a check for duplicates", "ipv6_src=::,nd_target=fe80::2"),
        ("an address nobody told of", "ipv6_src=fe80::1,nd_target=fe80::3"),
    ];
    for (what, rest) in nd {
        assert_eq!(lab.brief(&solicitation(rest)), FLOOD, "{what}");
    }
    let advertisement = solicitation("ipv6_src=fe80::1,nd_target=fe80::2").replace("=135", "=136");
    assert_eq!(lab.brief(&advertisement), FLOOD);
}

/// Each switch answers its own stations: else all of them would answer each question on a shared wire.
#[test]
fn only_who_is_on_this_switch_is_answered() {
    let lab = Lab::new(populated);
    let question = "arp_spa=10.0.0.1,arp_tpa=10.0.0.2";
    assert_eq!(lab.brief(&arp("eth2", &format!("{question},dl_vlan=101"))), "set(vlan(vid=8)),t");
    let tunnelled = arp("vx0", question).replace("in_port=vx0", &out_of("vx0", "192.0.2.2", 5001));
    assert_eq!(lab.brief(&tunnelled), "vm1,vm3,push_vlan(vid=1,pcp=0),t");
}

#[test]
fn a_segment_that_the_controller_knows_all_of_floods_nothing() {
    let lab = Lab::new(|draft| {
        populated(draft);
        let tunnel = draft.id("vx0");
        let place = flowtable::id::Place::Vtep { tunnel, address: ip("192.0.2.3") };
        draft.station(1, mac(2), place);
    });
    assert_eq!(lab.brief(&arp("vm1", "arp_spa=10.0.0.1,arp_tpa=10.0.0.2")), "answer(02:00:00:00:00:02),vm1");
    let packet = "in_port=vm1,ip,nw_dst=10.0.0.2,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02";
    assert_eq!(lab.brief(packet), "vx0:5001>192.0.2.3@eth1");
}
