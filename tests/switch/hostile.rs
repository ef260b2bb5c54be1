//! Frames that lie, end early, or never end: each is forwarded by its addresses and tags or is a counted drop,
//! and whether decisions are remembered makes no difference.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dataplane::port::Offloads;
use encap::field::{EtherType, MacAddr};
use encap::offload::{Csum, Gso, Offload};
use flowtable::action::DropReason;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::THREE;
use crate::frames::{
    broadcast, frame, gratuitous_arp, igmp, ip, link_local, mac, mld, multicast, tcp6, with_tag,
};
use crate::rack::both_ways;

#[test]
fn frames_without_a_whole_header_are_malformed() {
    both_ways(THREE, |rack| {
        for len in [0, 1, 6, 12, 13] {
            rack.expect_drop("a", &broadcast(1)[..len], DropReason::Malformed);
        }
        rack.expect_at("a", &broadcast(1)[..14], &["b", "c"]);
    });
}

#[test]
fn a_frame_that_ends_early_is_forwarded_by_what_is_there() {
    both_ways(THREE, |rack| {
        let frames = [broadcast(1), gratuitous_arp(1), with_tag(&broadcast(1), EtherType::QINQ, 7)];
        for frame in frames {
            (14..frame.len()).for_each(|len| rack.expect_at("a", &frame[..len], &["b", "c"]));
        }
    });
}

#[test]
fn a_stack_of_tags_is_forwarded_by_the_outermost() {
    let config = r#"
        [[bridge]]
        name = "br0"
        port = [{ name = "a" }, { name = "b", trunks = [9] }, { name = "c", tag = 9, vlan-mode = "dot1q-tunnel" }]
    "#;
    both_ways(config, |rack| {
        let stack =
            |tags: u16| (0..tags).fold(broadcast(1), |frame, vid| with_tag(&frame, EtherType::VLAN, vid));
        let (ten, nine) = (stack(10), stack(9));
        rack.expect("a", &ten, &[("b", &ten), ("c", &nine)]);
        rack.expect_drop("a", &stack(11), DropReason::NoDestination);
        let out = with_tag(&ten, EtherType::QINQ, 9);
        rack.expect("c", &ten, &[("a", &out), ("b", &out)]);
    });
}

#[test]
fn the_longest_frames_cross_where_the_mtu_allows() {
    both_ways(&THREE.replace("{ name = \"b\" }", "{ name = \"b\", mtu = 65535 }"), |rack| {
        let mut long = broadcast(1);
        long.resize(14 + 65_535, 0xab);
        rack.expect_at("a", &long, &["b"]);
        long.push(0);
        rack.expect("a", &long, &[]);
        assert!(!rack.cable("a").inject(&vec![0; 70_000]), "longer than any frame");
    });
}

/// An IPv6 packet to all with this next header and payload.
fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&MacAddr::BROADCAST.0[..], &mac(1).0, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, 64]);
    frame.extend(link_local(1).octets());
    frame.extend(link_local(2).octets());
    frame.extend(payload);
    frame
}

#[test]
fn options_extension_headers_and_fragments_are_forwarded() {
    both_ways(&THREE.replace("name = \"br0\"", "name = \"br0\"\nmcast-snooping-enable = true"), |rack| {
        let mut options = broadcast(1);
        options[14] = 0x4f;
        rack.expect_at("a", &options, &["b", "c"]);
        for fragment in [0x20u8, 0x3f, 0x1f, 0xff] {
            let mut frame = broadcast(1);
            frame[20] = fragment;
            rack.expect_at("a", &frame, &["b", "c"]);
            let mut report = igmp((ip(2), Ipv4Addr::new(239, 0, 0, 1)), 0x16, [239, 0, 0, 1], &[]);
            report[20] = fragment;
            rack.send("b", &[report]);
        }
        for headers in [1, 6, 8, 9, 40] {
            let chain: Vec<u8> = (0..headers).flat_map(|_| [60, 0, 1, 4, 0, 0, 0, 0]).collect();
            rack.expect_at("a", &ipv6(60, &chain), &["b", "c"]);
            rack.expect_at("a", &ipv6(0, &chain[..chain.len() - 3]), &["b", "c"]);
        }
        for lie in [[44, 255], [43, 255], [51, 0]] {
            rack.expect_at("a", &ipv6(lie[0], &[6, lie[1], 0, 1, 0, 0, 0, 0]), &["b", "c"]);
        }
    });
}

/// Everything that a decision may look at, in two bridges.
const RICH: &str = r#"
    [[bridge]]
    name = "br0"
    mcast-snooping-enable = true
    mcast-snooping-aging-time = 20
    mac-aging-time = 20
    flood-vlans = [3]
    port = [
        { name = "t" },
        { name = "a", tag = 1, protected = true },
        { name = "n", tag = 2, vlan-mode = "native-untagged", trunks = [1], priority-tags = "if-nonzero" },
        { name = "q", tag = 2, vlan-mode = "dot1q-tunnel", cvlans = [0, 1], protected = true },
        { name = "up", type = "patch", peer = "down", tag = 1 },
    ]
    [[bridge]]
    name = "br1"
    forward-bpdu = true
    port = [
        { name = "down", type = "patch", peer = "up", tag = 4 },
        { name = "x", tag = 4, priority-tags = "always" },
        { name = "y", vlan-mode = "native-tagged", tag = 4, mtu = 70 },
    ]
"#;

#[derive(Debug, Clone)]
enum Step {
    Frame(&'static str, Vec<u8>, Offload),
    Wait(u64),
}

fn address() -> impl Strategy<Value = MacAddr> {
    let odd = [MacAddr::BROADCAST, MacAddr([1, 0x80, 0xc2, 0, 0, 0]), MacAddr([1, 0, 0x5e, 1, 1, 1])];
    prop_oneof![6 => (1u8..16).prop_map(mac), 1 => proptest::sample::select(odd.to_vec())]
}

fn group() -> impl Strategy<Value = Ipv4Addr> {
    (1u8..3).prop_map(|n| Ipv4Addr::new(239, 1, 1, n))
}

/// IGMP and MLD of every kind, some of it to the wrong group or with lengths that lie.
fn membership() -> impl Strategy<Value = Vec<u8>> {
    let kinds4 = proptest::sample::select(vec![0x11u8, 0x12, 0x16, 0x17, 0x22, 0x13]);
    let kinds6 = proptest::sample::select(vec![130u8, 131, 132, 143, 135]);
    let body = || vec(prop_oneof![Just(0u8), 1..5u8, any::<u8>()], 0..24);
    let group6 = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 1);
    prop_oneof![
        (1u8..5, group(), kinds4, body()).prop_map(|(host, group, kind, body)| igmp(
            (ip(host), group),
            kind,
            group.octets(),
            &body
        )),
        (1u8..5, kinds6, body()).prop_map(move |(host, kind, body)| {
            mld((link_local(host), group6), kind, [0, 0, 0, 1], &[&group6.octets()[..], &body].concat())
        }),
    ]
}

fn plain() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (address(), address()).prop_map(|(src, dst)| frame(src, dst)),
        2 => (1u8..5, group()).prop_map(|(host, group)| multicast(host, group)),
        2 => membership(),
        1 => (1u8..5, 1u8..5).prop_map(|(from, to)| tcp6(from, to, b"payload")),
        1 => (1u8..5).prop_map(gratuitous_arp),
        1 => vec(any::<u8>(), 0..80),
    ]
}

/// A plain frame with up to ten tags, whole, cut, grown, or with one octet changed.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tpid = prop_oneof![3 => Just(EtherType::VLAN), 1 => Just(EtherType::QINQ)];
    let tag = (tpid, 0u16..5, prop_oneof![Just(0u16), Just(0x6000), Just(0xf000)]);
    let tags = prop_oneof![3 => vec(tag.clone(), 0..3), 1 => vec(tag, 3..10)];
    let change = (any::<proptest::sample::Index>(), 1u8..=255, 0u8..8);
    (plain(), tags, change).prop_map(|(frame, tags, (at, flip, how))| {
        let add = |frame: Vec<u8>, (tpid, vid, priority)| with_tag(&frame, tpid, vid | priority);
        let tagged = if frame.len() < 14 { frame } else { tags.into_iter().fold(frame, add) };
        let mut frame = tagged;
        match how {
            0 => frame.truncate(at.index(frame.len() + 1)),
            1 if !frame.is_empty() => {
                let at = at.index(frame.len());
                frame[at] ^= flip;
            }
            2 => frame.resize(frame.len() + usize::from(flip), flip),
            _ => {}
        }
        frame
    })
}

/// Work left to a card, hardly ever with sense.
fn offload() -> impl Strategy<Value = Offload> {
    let partial = (proptest::sample::select(vec![0u16, 14, 34, 38, 54, 200]), 0u16..20);
    let csum = partial.prop_map(|(start, offset)| Csum::Partial { start, offset });
    let size = 1u16..100;
    let gso = prop_oneof![
        Just(Gso::None),
        size.clone().prop_map(|mss| Gso::Tcp4 { mss }),
        size.clone().prop_map(|mss| Gso::Tcp6 { mss }),
        size.prop_map(|size| Gso::Udp { size }),
    ];
    let work = (csum, gso).prop_map(|(csum, gso)| Offload { csum, gso });
    prop_oneof![2 => Just(Offload::NONE), 1 => work]
}

/// Few different frames in many steps, so that most meet a cached decision, and often one that is out of date.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = proptest::sample::select(vec!["t", "a", "n", "q", "x", "y"]);
    let wait = proptest::sample::select(vec![1u64, 5, 11, 21]);
    vec((any_frame(), offload()), 1..12).prop_flat_map(move |frames| {
        let frame = (port.clone(), proptest::sample::select(frames));
        let frame = frame.prop_map(|(port, (bytes, offload))| Step::Frame(port, bytes, offload));
        vec(prop_oneof![16 => frame, 1 => wait.clone().prop_map(Step::Wait)], 1..150)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Conservation, and caches on as off, whatever comes in ([`both_ways`] looks).
    #[test]
    fn whatever_comes_in_is_accounted_for_and_caches_change_nothing(steps in steps()) {
        both_ways(RICH, |rack| {
            for (port, takes) in [("t", true), ("n", false)] {
                rack.plug(port, |mut port| {
                    port.set_offloads(Offloads { csum: true, tso: takes, uso: takes });
                    Box::new(port)
                });
            }
            for step in &steps {
                match step {
                    Step::Frame(port, bytes, offload) => {
                        assert!(rack.cable(port).inject_offload(bytes, *offload));
                        rack.settle();
                        rack.drain();
                    }
                    Step::Wait(seconds) => rack.wait(Duration::from_secs(*seconds)),
                }
            }
        });
    }
}

/// A frame without a key must not pass for the one whose key is all zeros.
#[test]
fn a_runt_does_not_follow_the_flow_of_zeros() {
    both_ways(THREE, |rack| {
        let mut zeros = [0; 60];
        zeros[12] = 0x08;
        rack.send("a", &[zeros.to_vec()]);
        rack.expect_drop("a", &zeros, DropReason::NoDestination);
        rack.expect_drop("a", &zeros[..13], DropReason::Malformed);
    });
}
