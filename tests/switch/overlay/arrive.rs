//! What may come in from the underlay, and what becomes of it: hand-made outer frames, honest and hostile, to one
//! hypervisor.

use std::net::IpAddr;

use encap::field::MacAddr;
use etherparse::Ipv4Header;
use flowtable::action::DropReason::{self, *};
use proptest::prelude::*;

use super::outer::{Outer, geneve, gre, gre_summed, vxlan};
use super::{endpoint_mac, node, v4, v6};
use crate::frames::{broadcast, frame, mac, tagged, unicast};
use crate::rack::{Rack, both_ways};

/// A segment of each kind, and a VM in each.
fn config() -> String {
    let kinds = ["vxlan", "gre", "geneve"];
    let segment =
        |kind| format!("{{ name = 's-{kind}', type = '{kind}', id = 5001, vteps = ['{}'] }},", v4(2));
    let port = |kind| format!("{{ name = 'vm-{kind}', segment = 's-{kind}' }},");
    node(1, &kinds.map(segment).concat(), &kinds.map(port).concat())
}

#[track_caller]
fn play(config: &str, scenario: impl Fn(&mut Rack)) {
    both_ways(config, |rack| {
        rack.neighbour("vtep1", v4(2), endpoint_mac(2));
        scenario(rack);
    });
}

fn kinds() -> [(&'static str, Outer); 3] {
    [
        ("vm-vxlan", Outer::vxlan(2, 1, 5001)),
        ("vm-gre", Outer::gre(2, 1, Some(5001))),
        ("vm-geneve", Outer::geneve(2, 1, 5001)),
    ]
}

#[test]
fn the_inner_frame_arrives_as_it_was() {
    play(&config(), |rack| {
        for (vm, outer) in kinds() {
            let inner = broadcast(2);
            rack.expect("eth1", &outer.wrap(&inner), &[(vm, &inner)]);
            let over_ipv6 = Outer { ips: (v6(2), v6(1)), csum: outer.ports.is_some(), ..outer.clone() };
            rack.expect("eth1", &over_ipv6.wrap(&inner), &[(vm, &inner)]);
            // Summed or not, whatever we ourselves send (RFC 6936).
            for ips in [(v4(2), v4(1)), (v6(2), v6(1))] {
                let header =
                    if outer.ports.is_none() { gre_summed(5001, None) } else { outer.header.clone() };
                let summed = Outer { ips, csum: outer.ports.is_some(), header, ..outer.clone() };
                rack.expect("eth1", &summed.wrap(&inner), &[(vm, &inner)]);
                let bare = Outer { ips, csum: false, ..outer.clone() };
                rack.expect("eth1", &bare.wrap(&inner), &[(vm, &inner)]);
            }
            // What a card padded to 60 bytes, or more, is not part of the inner frame.
            let small = [&mac(1).0[..], &mac(2).0, &[0x08, 0x06]].concat();
            let padded = [outer.wrap(&small), vec![0; 33]].concat();
            rack.expect("eth1", &padded, &[(vm, &small)]);
        }
        let sequenced = Outer { header: gre_summed(5001, Some(77)), ..Outer::gre(2, 1, None) };
        rack.expect("eth1", &sequenced.wrap(&unicast(2, 9)), &[("vm-gre", &unicast(2, 9))]);
        // An option that may be ignored, of two words.
        let options = [0xff, 0xff, 0x01, 1, 1, 2, 3, 4];
        let optioned = Outer { header: geneve(5001, &options), ..Outer::geneve(2, 1, 0) };
        rack.expect("eth1", &optioned.wrap(&unicast(2, 9)), &[("vm-geneve", &unicast(2, 9))]);
    });
}

#[test]
fn ends_in_a_vlan_take_frames_of_that_vlan_only() {
    let config = config().replace("type = 'vtep',", "type = 'vtep', tag = 42,");
    play(&config, |rack| {
        for (vm, outer) in kinds() {
            let of = |vlan| Outer { vlan, ..outer.clone() }.wrap(&broadcast(2));
            rack.expect("eth1", &of(Some(42)), &[(vm, &broadcast(2))]);
            rack.expect_at("eth1", &of(Some(43)), &[]);
            rack.expect_at("eth1", &of(None), &[]);
        }
    });
}

/// With the bytes at a place of the frame, counted from the front, replaced.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// Untagged over IPv4: IP begins at 14, UDP or GRE at 34, VXLAN or Geneve at 42.
const IP: usize = 14;
const L4: usize = 34;
const HEADER: usize = 42;

/// With a new IPv4 header checksum.
fn resummed(mut frame: Vec<u8>) -> Vec<u8> {
    let (mut header, _) = Ipv4Header::from_slice(&frame[IP..]).unwrap();
    header.header_checksum = header.calc_header_checksum();
    frame.splice(IP..L4, header.to_bytes());
    frame
}

fn hostile() -> Vec<(&'static str, Vec<u8>, DropReason)> {
    let inner = broadcast(2);
    let [vx, gr, gn] = kinds().map(|(_, outer)| outer.wrap(&inner));
    let header = |outer: Outer, header| Outer { header, ..outer }.wrap(&inner);
    let vxlan_is = |bytes: Vec<u8>| header(Outer::vxlan(2, 1, 0), bytes);
    let gre_is = |bytes: Vec<u8>| header(Outer::gre(2, 1, None), bytes);
    let geneve_is = |bytes: Vec<u8>| header(Outer::geneve(2, 1, 0), bytes);
    let summed = Outer { csum: true, ..Outer::vxlan(2, 1, 5001) }.wrap(&inner);
    let gre_sum = gre_is(gre_summed(5001, None));
    let end = summed.len() - 1;
    vec![
        ("another VNI", vxlan_is(vxlan(5002)), UnknownSegment),
        ("another VNI, Geneve", geneve_is(geneve(5002, &[])), UnknownSegment),
        ("another key", gre_is(gre(Some(5002))), UnknownSegment),
        ("no key", gre_is(gre(None)), UnknownSegment),
        ("no I flag", with(vx.clone(), HEADER, &[0]), TunnelProtocol),
        ("VXLAN-GPE", with(vx.clone(), HEADER, &[0x0c, 0, 0, 3]), TunnelProtocol),
        (
            "VXLAN cut short",
            Outer { header: vec![8, 0, 0], ..Outer::vxlan(2, 1, 0) }.wrap(&[]),
            TunnelMalformed,
        ),
        ("GRE version 1", with(gr.clone(), L4 + 1, &[1]), TunnelProtocol),
        ("GRE routing", with(gr.clone(), L4, &[0x60]), TunnelProtocol),
        ("ERSPAN", gre_is(vec![0x10, 0, 0x88, 0xbe, 0, 0, 0, 1]), TunnelProtocol),
        ("ERSPAN III", gre_is(vec![0x10, 0, 0x22, 0xeb, 0, 0, 0, 1]), TunnelProtocol),
        ("IPv4 in GRE", gre_is(vec![0x20, 0, 0x08, 0x00, 0, 0, 0x13, 0x89]), TunnelProtocol),
        (
            "GRE checksum wrong",
            with(gre_sum.clone(), gre_sum.len() - 1, &[!gre_sum[gre_sum.len() - 1]]),
            TunnelChecksum,
        ),
        ("Geneve version 1", with(gn.clone(), HEADER, &[0x40]), TunnelProtocol),
        ("IPv4 in Geneve", with(gn.clone(), HEADER + 2, &[0x08, 0x00]), TunnelProtocol),
        ("critical option", geneve_is(geneve(5001, &[0, 1, 0x80, 1, 0, 0, 0, 0])), TunnelOption),
        ("option beyond the options", geneve_is(geneve(5001, &[0, 1, 1, 2, 0, 0, 0, 0])), TunnelMalformed),
        ("options beyond the frame", with(gn.clone(), HEADER, &[0x3f]), TunnelMalformed),
        ("UDP checksum wrong", with(summed.clone(), end, &[!summed[end]]), TunnelChecksum),
        ("UDP beyond the packet", with(vx.clone(), L4 + 4, &[0xff, 0xff]), TunnelMalformed),
        ("UDP shorter than its header", with(vx.clone(), L4 + 4, &[0, 7]), TunnelMalformed),
        ("IPv4 checksum wrong", with(vx.clone(), IP + 8, &[63]), TunnelChecksum),
        ("no inner frame", Outer::vxlan(2, 1, 5001).wrap(&[]), TunnelMalformed),
        ("half an inner header", Outer::gre(2, 1, Some(5001)).wrap(&inner[..13]), TunnelMalformed),
        ("tagged inside", Outer::vxlan(2, 1, 5001).wrap(&tagged(&inner, 5)), Vlan),
        (
            "from a group inside",
            Outer::vxlan(2, 1, 5001).wrap(&frame(MacAddr::BROADCAST, mac(1))),
            SourceMulticast,
        ),
        (
            "for bridges inside",
            Outer::vxlan(2, 1, 5001).wrap(&frame(mac(2), MacAddr([1, 0x80, 0xc2, 0, 0, 0]))),
            Reserved,
        ),
        (
            "from ourselves",
            Outer { ips: (v4(1), v4(1)), ..Outer::vxlan(2, 1, 5001) }.wrap(&inner),
            TunnelLoop,
        ),
    ]
}

#[test]
fn what_is_wrong_is_dropped_and_counted_by_its_reason() {
    play(&config(), |rack| {
        for (what, bytes, reason) in hostile() {
            eprintln!("{what}");
            rack.expect_drop("eth1", &bytes, reason);
        }
    });
}

/// A host on the underlay may speak to us of other things than tunnels: that goes to our own stack, parts included.
#[test]
fn what_is_no_tunnel_of_ours_goes_to_our_own_stack() {
    play(&config(), |rack| {
        let vx = Outer::vxlan(2, 1, 5001);
        let part = resummed(with(vx.wrap(&broadcast(2)), IP + 6, &[0x20, 0]));
        let rest = resummed(with(vx.wrap(&broadcast(2)), IP + 6, &[0, 9]));
        let arp = frame(endpoint_mac(2), MacAddr::BROADCAST);
        let other_address = Outer { ips: (v4(2), v4(77)), ..vx.clone() }.wrap(&broadcast(2));
        let other_port = Outer { ports: Some((4789, 4790)), ..vx }.wrap(&broadcast(2));
        for bytes in [part, rest, arp, other_address, other_port, frame(endpoint_mac(2), endpoint_mac(1))] {
            rack.expect_at("eth1", &bytes, &["vtep1"]);
        }
        // And what our own stack sends is switched as any station's.
        rack.expect_at("vtep1", &frame(endpoint_mac(1), endpoint_mac(2)), &["eth1"]);
        rack.expect_at("vtep1", &broadcast(1), &["eth1"]);
    });
}

#[test]
fn strict_peers_keeps_strangers_out_and_others_let_them_in() {
    let strict = config().replace("id = 5001,", "id = 5001, strict-peers = true,").replace(
        "name = 'br-int',",
        "name = 'br-int', fdb = [{ mac = '02:00:00:00:00:07', segment = 's-gre', vtep = '192.0.2.7' }],",
    );
    let from = |n: u8, outer: &Outer| Outer { ips: (v4(n), v4(1)), ..outer.clone() }.wrap(&broadcast(2));
    play(&strict, |rack| {
        for (vm, outer) in kinds() {
            rack.expect("eth1", &from(2, &outer), &[(vm, &broadcast(2))]);
            rack.expect_drop("eth1", &from(9, &outer), UnknownVtep);
            // A static entry's endpoint is known, in that segment only.
            match vm {
                "vm-gre" => rack.expect("eth1", &from(7, &outer), &[(vm, &broadcast(2))]),
                _ => rack.expect_drop("eth1", &from(7, &outer), UnknownVtep),
            }
        }
        rack.apply(&strict.replace("strict-peers = true,", ""));
        for (vm, outer) in kinds() {
            rack.expect("eth1", &from(9, &outer), &[(vm, &broadcast(2))]);
        }
    });
}

/// A segment without learning believes what it was told, and no frame.
#[test]
fn a_segment_without_learning_learns_neither_stations_nor_endpoints() {
    let taught = |learning| config().replace("id = 5001,", &format!("id = 5001, learning = {learning},"));
    for learning in [true, false] {
        play(&taught(learning), |rack| {
            let stranger = Outer { ips: (v4(9), v4(1)), ..Outer::vxlan(2, 1, 5001) };
            rack.neighbour("vtep1", v4(9), endpoint_mac(9));
            rack.expect("eth1", &stranger.wrap(&broadcast(2)), &[("vm-vxlan", &broadcast(2))]);
            let to = |rack: &mut Rack, frame: &[u8]| -> Vec<IpAddr> {
                let out = rack.send("vm-vxlan", &[frame.to_vec()]);
                out["eth1"].iter().map(|frame| Outer::open(frame, 8).0.ips.1).collect()
            };
            let (known, all) =
                if learning { (vec![v4(9)], vec![v4(2), v4(9)]) } else { (vec![v4(2)], vec![v4(2)]) };
            assert_eq!((to(rack, &unicast(1, 2)), to(rack, &broadcast(1))), (known, all), "{rack:?}");
        });
    }
}

/// RFC 6040 section 4.2, figure 4: what the inner packet says after, or that it is dropped. Rows are inner Not-ECT, ECT(1),
/// ECT(0), CE; columns outer Not-ECT, ECT(1), ECT(0), CE, as 0, 1, 2, 3 on the wire.
const CONGESTION: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

#[test]
fn congestion_in_the_underlay_is_told_the_receiver() {
    play(&config(), |rack| {
        for (inner_ecn, outcomes) in (0_u8..).zip(CONGESTION) {
            for (outer_ecn, outcome) in (0_u8..).zip(outcomes) {
                for (vm, outer) in kinds() {
                    let marked = |ecn| resummed(with(broadcast(2), IP + 1, &[0xb8 | ecn]));
                    let outer = Outer { tos: 0x40 | outer_ecn, ..outer }.wrap(&marked(inner_ecn));
                    match outcome {
                        Some(ecn) => rack.expect("eth1", &outer, &[(vm, &marked(ecn))]),
                        None => rack.expect_drop("eth1", &outer, Congestion),
                    }
                }
            }
        }
        // What is no IP has nowhere to say it, and is not at fault.
        let arp = crate::frames::gratuitous_arp(2);
        let outer = Outer { tos: 3, ..Outer::vxlan(2, 1, 5001) };
        rack.expect("eth1", &outer.wrap(&arp), &[("vm-vxlan", &arp)]);
    });
}

/// A tunnel in a tunnel: whoever is in the segment may carry what he likes.
#[test]
fn a_tenant_may_tunnel_too() {
    play(&config(), |rack| {
        let theirs = Outer::vxlan(7, 8, 9).wrap(&unicast(1, 2));
        let out = rack.send("vm-vxlan", std::slice::from_ref(&theirs));
        assert_eq!(Outer::open(&out["eth1"][0], 8).1, theirs);
        let in_ours = Outer::vxlan(2, 1, 5001).wrap(&theirs);
        rack.expect("eth1", &in_ours, &[("vm-vxlan", &theirs)]);
        // Even one that seems to be for us: a tenant's network is not the underlay.
        let in_ours = Outer::vxlan(2, 1, 5001).wrap(&Outer::vxlan(2, 1, 5001).wrap(&theirs));
        let inner = Outer::vxlan(2, 1, 5001).wrap(&theirs);
        rack.expect("eth1", &in_ours, &[("vm-vxlan", &inner)]);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damaged anywhere, cut anywhere: no panic, no frame lost count of, no difference that the caches make.
    #[test]
    fn no_damage_to_an_outer_frame_does_damage(
        kind in 0_usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        options in prop::collection::vec(any::<u8>(), 0..16),
    ) {
        let outer = kinds()[kind].1.clone();
        let options = &options[..options.len() / 4 * 4];
        let outer = match kind {
            2 => Outer { header: geneve(5001, options), ..outer },
            _ => outer,
        };
        let mut bytes = outer.wrap(&broadcast(2));
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let short = bytes[..cut.index(bytes.len() + 1)].to_vec();
        play(&config(), |rack| {
            for _ in 0..2 {
                rack.send("eth1", &[bytes.clone(), short.clone()]);
            }
        });
    }
}
