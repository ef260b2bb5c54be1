//! What stands on the wire of the underlay, field by field, when one hypervisor sends.

use std::collections::BTreeSet;

use encap::field::MacAddr;
use etherparse::{IpFragOffset, Ipv4Header, Ipv6Header};

use super::outer::{Outer, geneve, gre, gre_summed};
use super::{TUNNELS, endpoint_mac, node, node_over, v4, v6};
use crate::frames::{broadcast, frame, gratuitous_arp, mac, tcp, tcp6, udp};
use crate::rack::{Rack, both_ways};

/// One hypervisor with a segment of each kind, whose tunnel ports have `options`, and a VM in each.
fn config(options: &str, vtep: std::net::IpAddr) -> String {
    let kinds = [("vx", "vxlan"), ("gre", "gre"), ("gnv", "geneve")];
    let segment =
        |(_, kind)| format!("{{ name = 's-{kind}', type = '{kind}', id = 5001, vteps = ['{vtep}'] }},");
    let ports = |(port, kind)| {
        let tunnel = format!("name = '{port}', type = '{kind}', remote-ip = 'flow', key = 'flow'");
        format!("{{ {tunnel}{options} }}, {{ name = 'vm-{kind}', segment = 's-{kind}' }},")
    };
    let (segments, ports): (String, String) = (kinds.map(segment).concat(), kinds.map(ports).concat());
    node_over("", 1, &segments, &ports)
}

/// Plays a scenario with hypervisor 2 on the wire.
#[track_caller]
fn play(config: &str, scenario: impl Fn(&mut Rack)) {
    both_ways(config, |rack| {
        rack.neighbour("vtep1", v4(2), endpoint_mac(2));
        rack.neighbour("vtep1", v6(2), endpoint_mac(2));
        scenario(rack);
    });
}

/// What a VM's frame becomes on the wire: the outer headers and the inner frame, which must be the VM's.
#[track_caller]
fn sent(rack: &mut Rack, vm: &str, frame: &[u8], header: usize) -> Outer {
    let out = rack.send(vm, &[frame.to_vec()]);
    assert_eq!((out.len(), out.get("eth1").map(Vec::len)), (1, Some(1)), "{out:?}\n{rack:?}");
    let (outer, inner) = Outer::open(&out["eth1"][0], header);
    assert_eq!(inner, frame);
    outer
}

fn kinds() -> [(&'static str, Outer); 3] {
    [
        ("vm-vxlan", Outer::vxlan(1, 2, 5001)),
        ("vm-gre", Outer::gre(1, 2, Some(5001))),
        ("vm-geneve", Outer::geneve(1, 2, 5001)),
    ]
}

#[test]
fn each_kind_over_ipv4_and_ipv6() {
    for (vtep, ips, udp_csum) in [(v4(2), (v4(1), v4(2)), false), (v6(2), (v6(1), v6(2)), true)] {
        play(&config("", vtep), |rack| {
            for (vm, outer) in kinds() {
                // Open vSwitch, too, sums by default where the network layer does not: over IPv6.
                let csum = udp_csum && outer.ports.is_some();
                let expected = Outer { ips, csum, df: vtep.is_ipv4(), ..outer };
                for frame in
                    [broadcast(1), gratuitous_arp(1), tcp((1, 5), (2, 6), b"odd"), tcp6(1, 2, &[7; 900])]
                {
                    let got = sent(rack, vm, &frame, expected.header.len());
                    assert_eq!(got.any_source(), expected, "{vm}");
                }
            }
        });
    }
}

#[test]
fn checksums_are_made_if_wished_for_and_left_out_if_not() {
    for vtep in [v4(2), v6(2)] {
        for wish in [true, false] {
            play(&config(&format!(", csum = {wish}"), vtep), |rack| {
                for (vm, outer) in kinds() {
                    let is_gre = outer.ports.is_none();
                    let header = if is_gre && wish { gre_summed(5001, None) } else { outer.header };
                    let got = sent(rack, vm, &udp((mac(1), 1), (mac(2), 2), &[0x55; 333]), header.len());
                    assert_eq!((got.csum, got.header), (wish && !is_gre, header), "{vm}");
                }
            });
        }
    }
}

/// The frame with this TOS and TTL (traffic class and hop limit) in its IP header.
fn marked(mut frame: Vec<u8>, tos: u8, ttl: u8) -> Vec<u8> {
    match frame[12..14] {
        [0x08, 0x00] => {
            let (mut header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
            (header.dscp, header.ecn) = ((tos >> 2).try_into().unwrap(), (tos & 3).try_into().unwrap());
            header.time_to_live = ttl;
            header.header_checksum = header.calc_header_checksum();
            frame.splice(14..34, header.to_bytes());
        }
        _ => {
            let (mut header, _) = Ipv6Header::from_slice(&frame[14..]).unwrap();
            (header.traffic_class, header.hop_limit) = (tos, ttl);
            frame.splice(14..54, header.to_bytes());
        }
    }
    frame
}

/// TOS and TTL as configured; ECN as RFC 6040 section 4.1 has it: copied.
#[test]
fn tos_and_ttl_are_set_or_inherited_and_congestion_is_told() {
    // Options, and for inner (TOS, TTL) = (0xb9, 17) the outer ones.
    let cases = [
        ("", (0x01, 64)),
        (", tos = 0x20", (0x21, 64)),
        (", tos = 0x23, ttl = 1", (0x21, 1)),
        (", tos = 'inherit', ttl = 255", (0xb9, 255)),
        (", ttl = 'inherit'", (0x01, 17)),
        (", tos = 'inherit', ttl = 'inherit', df-default = false", (0xb9, 17)),
    ];
    for vtep in [v4(2), v6(2)] {
        for (options, (tos, ttl)) in cases {
            play(&config(options, vtep), |rack| {
                for (vm, outer) in kinds() {
                    for inner in [broadcast(1), tcp6(1, 2, b"six")] {
                        let got = sent(rack, vm, &marked(inner, 0xb9, 17), outer.header.len());
                        let df = vtep.is_ipv4() && !options.contains("df");
                        assert_eq!((got.tos, got.ttl, got.df), (tos, ttl, df), "{options} {vm}");
                    }
                    // What is no IP has nothing to inherit.
                    let got = sent(rack, vm, &gratuitous_arp(1), outer.header.len());
                    let set =
                        |configured, inherited: u8| if options.contains(configured) { inherited } else { 0 };
                    let tos = tos & 0xfc & !set("tos = 'inherit'", 0xff);
                    let ttl = if options.contains("ttl = 'inherit'") { 64 } else { ttl };
                    assert_eq!((got.tos, got.ttl), (tos, ttl), "{options} {vm}");
                }
            });
        }
    }
}

#[test]
fn every_congestion_mark_is_copied_out() {
    play(&config(", tos = 0x28", v4(2)), |rack| {
        for ecn in 0..4 {
            for (vm, outer) in kinds() {
                let got = sent(rack, vm, &marked(broadcast(1), 0xfc | ecn, 9), outer.header.len());
                assert_eq!(got.tos, 0x28 | ecn);
            }
        }
    });
}

fn source(rack: &mut Rack, frame: &[u8]) -> u16 {
    sent(rack, "vm-vxlan", frame, 8).ports.unwrap().0
}

/// RFC 7348 section 5: so that the underlay's routers spread flows and keep each on one path.
#[test]
fn the_udp_source_port_tells_flows_apart_and_stays_with_each() {
    play(&config("", v4(2)), |rack| {
        let mut ports = BTreeSet::new();
        for port in 0..200 {
            let connection = |bytes: &[u8]| udp((mac(1), 1000 + port), (mac(2), 53), bytes);
            let first = source(rack, &connection(b"a"));
            assert!(first >= 49152, "{first} is none of the dynamic ports");
            assert_eq!(first, source(rack, &connection(b"another, longer")));
            ports.insert(first);
        }
        assert!(ports.len() > 190, "{} ports for 200 connections", ports.len());
        // All parts of a datagram take one way, though only the first has ports.
        let part = |offset: u16, more: bool| {
            let mut frame = udp((mac(1), 7), (mac(2), 8), &[1; 64]);
            let (mut header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
            (header.fragment_offset, header.more_fragments) = (IpFragOffset::try_new(offset).unwrap(), more);
            header.header_checksum = header.calc_header_checksum();
            frame.splice(14..34, header.to_bytes());
            frame
        };
        let parts = [part(0, true), part(9, true), part(18, false)].map(|part| source(rack, &part));
        assert!(parts.iter().all(|port| *port == parts[0]), "{parts:?}");
        let by_mac: BTreeSet<u16> = (1..50).map(|n| source(rack, &gratuitous_arp(n))).collect();
        assert!(by_mac.len() > 45, "{} ports for 49 stations", by_mac.len());
    });
}

#[test]
fn the_outer_frame_is_tagged_as_the_endpoint_is_and_goes_to_the_next_hop() {
    let segment = "{ name = 's', type = 'vxlan', id = 5001, vteps = ['198.51.100.7'] }";
    let route = "route = [{ to = '198.51.100.0/24', via = '192.0.2.2' }]\n";
    let ports = format!("{TUNNELS} {{ name = 'vm', segment = 's' }}");
    let config = route.to_owned() + &node_over(", tag = 42", 1, segment, &ports);
    play(&config, |rack| {
        let ips = (v4(1), [198, 51, 100, 7].into());
        let expected = Outer { vlan: Some(42), ips, ..Outer::vxlan(1, 2, 5001) };
        assert_eq!(sent(rack, "vm", &broadcast(1), 8).any_source(), expected);
    });
}

#[test]
fn point_to_point_tunnels_send_their_key_or_none_and_the_tenants_tags() {
    for (tunnel, header) in [
        ("type = 'gre'", gre(None)),
        ("type = 'gre', key = 0", gre(Some(0))),
        ("type = 'gre', key = 4294967295", gre(Some(u32::MAX))),
        ("type = 'gre', key = 9, csum = true", gre_summed(9, None)),
        ("type = 'vxlan'", super::outer::vxlan(0)),
        ("type = 'vxlan', key = 16777215", super::outer::vxlan(0xff_ffff)),
        ("type = 'geneve', key = 3", geneve(3, &[])),
    ] {
        let tunnel = format!("{{ name = 'p2p', {tunnel}, remote-ip = '192.0.2.2', trunks = [10] }},");
        let config = node_over("", 1, "", &format!("{tunnel} {{ name = 'vm', tag = 10 }}"));
        play(&config, |rack| {
            let inner = crate::frames::tagged(&broadcast(1), 10);
            let out = rack.send("vm", &[broadcast(1)]);
            let (outer, got) = Outer::open(&out["eth1"][0], header.len());
            assert_eq!((outer.header, got), (header.clone(), inner), "{tunnel}");
        });
    }
}

#[test]
fn another_udp_port_and_address_are_used_if_configured() {
    let segment = "{ name = 's', type = 'vxlan', id = 5001, vteps = ['192.0.2.2'] }";
    let tunnel = "{ name = 'vx', type = 'vxlan', remote-ip = 'flow', key = 'flow', dst-port = 8472, local-ip = '192.0.2.99' },";
    let config = node_over("", 1, segment, &format!("{tunnel} {{ name = 'vm', segment = 's' }}"));
    let config = config.replace("'192.0.2.1/24'", "'192.0.2.1/24', '192.0.2.99/24'");
    play(&config, |rack| {
        let got = sent(rack, "vm", &broadcast(1), 8).any_source();
        let ports = Some((50000, 8472));
        let ips = ([192, 0, 2, 99].into(), v4(2));
        assert_eq!(got, Outer { ports, ips, ..Outer::vxlan(1, 2, 5001) });
        // What comes in must be to that address and port, too.
        let to = |ips, ports| Outer { ips, ports, ..Outer::vxlan(2, 1, 5001) }.wrap(&frame(mac(2), mac(1)));
        let mine = (v4(2), [192, 0, 2, 99].into());
        rack.expect("eth1", &to(mine, ports), &[("vm", &frame(mac(2), mac(1)))]);
        rack.expect_at("eth1", &to(mine, Some((50000, 4789))), &["vtep1"]);
        rack.expect_drop("eth1", &to((v4(2), v4(1)), ports), flowtable::action::DropReason::UnknownSegment);
    });
}

/// A segment's VLAN on a provider's wire, inside, and at the port of a VM.
#[test]
fn a_provider_vlan_is_retagged_both_ways_and_keeps_its_priority() {
    let segments = "
        { name = 'p', vlan = 1, type = 'vlan', id = 101, uplink = 'eth2' },
        { name = 'q', type = 'vlan', id = 102, uplink = 'eth2' },
        { name = 'f', vlan = 3, type = 'flat', uplink = 'eth2' },";
    let ports = "{ name = 'eth2' }, { name = 'p1', tag = 1 }, { name = 't', trunks = [1, 3, 101] },
        { name = 'q1', segment = 'q' }, { name = 'f1', segment = 'f' }";
    let with = |frame: &[u8], tci| crate::frames::tagged(frame, tci);
    play(&node(1, segments, ports), |rack| {
        let one = broadcast(1);
        rack.expect("p1", &one, &[("eth2", &with(&one, 101)), ("t", &with(&one, 1))]);
        rack.expect("eth2", &with(&one, 101), &[("p1", &one), ("t", &with(&one, 1))]);
        rack.expect("eth2", &with(&one, 0xb065), &[("p1", &one), ("t", &with(&one, 0xb001))]);
        rack.expect("t", &with(&one, 0xe001), &[("p1", &one), ("eth2", &with(&one, 0xe065))]);
        rack.expect("q1", &one, &[("eth2", &with(&one, 102))]);
        rack.expect("eth2", &with(&one, 0xb066), &[("q1", &one)]);
        rack.expect("f1", &one, &[("eth2", &one), ("t", &with(&one, 3))]);
        rack.expect("eth2", &one, &[("f1", &one), ("t", &with(&one, 3))]);
        // The wire carries what is mapped: not our own VLANs, and not what a trunk of ours has under that number.
        for vlan in [1, 2, 3, 100, 103] {
            rack.expect_drop("eth2", &with(&one, vlan), flowtable::action::DropReason::Vlan);
        }
        rack.expect_at("t", &with(&one, 101), &[]);
        let away = MacAddr([2, 9, 9, 9, 9, 9]);
        rack.expect_at("t", &with(&frame(mac(1), away), 101), &[]);
    });
}
