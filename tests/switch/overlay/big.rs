//! What is too long for a tunnel, and what a sender left to a card on its way through one.

use dataplane::port::Offloads;
use encap::field::MacAddr;
use encap::offload::{Csum, Gso, Offload};
use etherparse::checksum::Sum16BitWords;
use etherparse::{Icmpv4Type, Icmpv6Type, Ipv4Header, NetSlice, SlicedPacket, TransportSlice, icmpv4};
use flowtable::action::DropReason;

use super::outer::{Outer, gre_summed};
use super::{TUNNELS, endpoint_mac, node_over, v4, v6};
use crate::fabric;
use crate::frames::{broadcast, ip, link_local, mac, partial, tagged, tcp, tcp6, udp};
use crate::rack::{Rack, both_ways};

const ALL: Offloads = Offloads { csum: true, tso: true, uso: true };

/// Kinds of tunnel, and how many bytes of IPv4 packet an inner IP packet spends on its way: outer IP header, UDP, tunnel
/// header, inner Ethernet header.
const KINDS: [(&str, u16); 3] =
    [("vxlan", 20 + 8 + 8 + 14), ("gre", 20 + 8 + 14), ("geneve", 20 + 8 + 8 + 14)];
/// How much longer an IPv6 header is.
const V6_MORE: u16 = 20;

/// Hypervisor 1 with a segment that reaches hypervisor 2; `a` and `b` are access ports, `t` a trunk.
fn config(kind: &str, vtep: std::net::IpAddr, more: &str) -> String {
    let segment = format!("{{ name = 's', vlan = 10, type = '{kind}', id = 7, vteps = ['{vtep}'] }}");
    let vms = "{ name = 'a', segment = 's', mtu = 9000 }, { name = 'b', tag = 10, mtu = 9000 },
        { name = 't', trunks = [10], mtu = 9000 },";
    node_over(more, 1, &segment, &format!("{TUNNELS}{vms}"))
}

/// Plays a scenario with hypervisor 2 on the wire, behind which [`STRANGER`] lives; VMs take and leave everything to do.
#[track_caller]
fn play(config: &str, scenario: impl Fn(&mut Rack)) {
    both_ways(config, |rack| {
        [v4(2), v6(2)].into_iter().for_each(|vtep| rack.neighbour("vtep1", vtep, endpoint_mac(2)));
        ["a", "b", "t"].into_iter().for_each(|port| offload(rack, port, ALL));
        scenario(rack);
    });
}

fn offload(rack: &mut Rack, port: &str, takes: Offloads) {
    rack.plug(port, |mut port| {
        port.set_offloads(takes);
        Box::new(port)
    });
}

/// What hypervisor 2 sends.
fn from_there(kind: &str) -> Outer {
    match kind {
        "vxlan" => Outer::vxlan(2, 1, 7),
        "gre" => Outer::gre(2, 1, Some(7)),
        _ => Outer::geneve(2, 1, 7),
    }
}

/// Makes station 2 known to live at hypervisor 2.
fn teach(rack: &mut Rack, kind: &str) {
    rack.send("eth1", &[from_there(kind).wrap(&broadcast(2))]);
}

/// A UDP datagram of host 1 to host 2 in an IPv4 packet of this length.
fn datagram(packet: u16, dont_fragment: bool) -> Vec<u8> {
    let mut frame = udp((mac(1), 1), (mac(2), 2), &vec![0x5a; usize::from(packet) - 28]);
    let (mut header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    header.dont_fragment = dont_fragment;
    header.header_checksum = header.calc_header_checksum();
    frame.splice(14..34, header.to_bytes());
    frame
}

/// A TCP segment of host 1 to host 2 in an IPv6 packet of this length.
fn segment6(packet: u16) -> Vec<u8> {
    tcp6(1, 2, &vec![0x5a; usize::from(packet) - 60])
}

/// The MTU that a message to host 1 tells, which must be sound and about `frame`.
#[track_caller]
fn told(message: &[u8], frame: &[u8]) -> u32 {
    let packet = SlicedPacket::from_ethernet(message).unwrap();
    assert_eq!((&message[..6], &message[6..12]), (&frame[6..12], &frame[..6]), "the way back");
    match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(net), TransportSlice::Icmpv4(icmp)) => {
            let header = net.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            assert_eq!((header.source_addr(), header.destination_addr()), (ip(2), ip(1)));
            assert_eq!(Sum16BitWords::new().add_slice(icmp.slice()).ones_complement(), 0, "checksum");
            assert!(icmp.payload().len() >= 28 && frame[14..].starts_with(icmp.payload()), "quote");
            let Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            }) = icmp.icmp_type()
            else {
                panic!("{:?}", icmp.icmp_type())
            };
            next_hop_mtu.into()
        }
        (NetSlice::Ipv6(net), TransportSlice::Icmpv6(icmp)) => {
            let header = net.header();
            let ends = (header.source_addr(), header.destination_addr());
            assert_eq!(ends, (link_local(2), link_local(1)));
            assert!(icmp.is_checksum_valid(ends.0.octets(), ends.1.octets()), "checksum");
            assert!(icmp.payload().len() >= 48 && frame[14..].starts_with(icmp.payload()), "quote");
            let Icmpv6Type::PacketTooBig { mtu } = icmp.icmp_type() else { panic!("{:?}", icmp.icmp_type()) };
            mtu
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_fits_goes_and_what_does_not_is_told_how_much_would() {
    for (kind, cost) in KINDS {
        for (vtep, settings, most) in [
            (v4(2), "", 1500 - cost),
            (v6(2), "", 1500 - cost - V6_MORE),
            // Tags do not count, here as at any port; a smaller endpoint does.
            (v4(2), ", tag = 42", 1500 - cost),
            (v4(2), ", mtu = 1400", 1400 - cost),
        ] {
            play(&config(kind, vtep, settings), |rack| {
                let ips = if vtep.is_ipv4() { (v4(2), v4(1)) } else { (v6(2), v6(1)) };
                let vlan = settings.contains("tag").then_some(42);
                let hello = Outer { vlan, ips, ..from_there(kind) };
                rack.send("eth1", &[hello.wrap(&broadcast(2))]);
                let out = rack.send("a", &[datagram(most, true), datagram(most, false), segment6(most)]);
                assert_eq!((out.len(), out["eth1"].len()), (1, 3), "{kind} {vtep} {settings} {rack:?}");
                for frame in [datagram(most + 1, true), segment6(most + 1), datagram(9000, true)] {
                    for (port, tag) in [("a", None), ("b", None), ("t", Some(0x600a))] {
                        let sent = tag.map_or_else(|| frame.clone(), |tci| tagged(&frame, tci));
                        let before = rack.switch.total_stats().dropped(DropReason::OverMtu);
                        let out = rack.send(port, &[sent]);
                        assert_eq!(
                            (out.len(), out.get(port).map(Vec::len)),
                            (1, Some(1)),
                            "{out:?}\n{rack:?}"
                        );
                        let message = match tag {
                            Some(_) => {
                                assert_eq!(out[port][0][12..14], [0x81, 0x00], "{out:?}");
                                assert_eq!(
                                    u16::from_be_bytes([out[port][0][14], out[port][0][15]]) & 0xfff,
                                    10
                                );
                                [&out[port][0][..12], &out[port][0][16..]].concat()
                            }
                            None => out[port][0].clone(),
                        };
                        assert_eq!(told(&message, &frame), u32::from(most), "{kind} {vtep} {settings}");
                        assert_eq!(rack.switch.total_stats().dropped(DropReason::OverMtu), before + 1);
                    }
                }
                // Nobody fragments, outside or inside.
                rack.expect_drop("a", &datagram(most + 1, false), DropReason::OverMtu);
                let mut arp = crate::frames::gratuitous_arp(1);
                arp[..6].copy_from_slice(&mac(2).0);
                arp.resize(14 + usize::from(most) + 1, 0);
                rack.expect_drop("a", &arp, DropReason::OverMtu);
            });
        }
    }
}

#[test]
fn a_path_that_carries_less_than_our_wire_is_respected() {
    play(&config("vxlan", v4(2), ""), |rack| {
        teach(rack, "vxlan");
        rack.path_mtu(v4(2), 1300);
        assert_eq!(rack.send("a", &[datagram(1250, true)])["eth1"].len(), 1);
        let frame = datagram(1251, true);
        assert_eq!(told(&rack.send("a", std::slice::from_ref(&frame))["a"][0], &frame), 1250);
        rack.path_mtu(v4(2), 9000);
        assert_eq!(rack.send("a", &[datagram(1450, true)])["eth1"].len(), 1);
        assert!(!rack.send("a", &[datagram(1451, true)]).contains_key("eth1"));
    });
}

/// The message about a flooded frame goes back though others got it; none is about a group's.
#[test]
fn a_flood_reaches_those_for_whom_it_is_not_too_long() {
    play(&config("vxlan", v4(2), ""), |rack| {
        let frame = datagram(1451, true);
        let out = rack.send("a", std::slice::from_ref(&frame));
        assert_eq!(out.keys().collect::<Vec<_>>(), ["a", "b", "t"]);
        assert_eq!((&out["b"][0], &out["t"][0]), (&frame, &tagged(&frame, 10)));
        assert_eq!(told(&out["a"][0], &frame), 1450);
        let to_all = [&MacAddr::BROADCAST.0[..], &frame[6..]].concat();
        assert_eq!(rack.send("a", &[to_all]).keys().collect::<Vec<_>>(), ["b", "t"]);
    });
}

pub fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}

/// The payload of a frame of host 1 whose checksums are right.
#[track_caller]
fn checked(frame: &[u8]) -> Vec<u8> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(net), TransportSlice::Tcp(tcp)) => {
            let header = net.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(header.source, header.destination).unwrap());
            tcp.payload().to_vec()
        }
        (NetSlice::Ipv6(net), TransportSlice::Tcp(tcp)) => {
            let header = net.header().to_header();
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(header.source, header.destination).unwrap());
            tcp.payload().to_vec()
        }
        (NetSlice::Ipv4(net), TransportSlice::Udp(udp)) => {
            let header = net.header().to_header();
            let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), sum);
            udp.payload().to_vec()
        }
        other => panic!("{other:?}"),
    }
}

/// A frame that stands for many, as its sender leaves it, and how much of its payload a segment may have inside IPv4
/// tunnels of the kinds.
fn giants() -> [(Vec<u8>, Offload, [usize; 3]); 3] {
    let bytes = payload(40_000);
    let (frame, csum) = partial(tcp((1, 40000), (2, 80), &bytes), 16);
    let tcp4 = (frame, Offload { csum, gso: Gso::Tcp4 { mss: 1460 } }, [1410, 1418, 1410]);
    let frame = tcp6(1, 2, &bytes);
    let csum = Csum::Partial { start: 54, offset: 16 };
    let tcp6 = (left_to_do6(frame), Offload { csum, gso: Gso::Tcp6 { mss: 1000 } }, [1000; 3]);
    let (frame, csum) = partial(udp((mac(1), 1), (mac(2), 2), &bytes), 6);
    [tcp4, tcp6, (frame, Offload { csum, gso: Gso::Udp { size: 1200 } }, [1200; 3])]
}

/// A TCP segment over IPv6 with the pseudo header's sum in place of its checksum.
fn left_to_do6(mut frame: Vec<u8>) -> Vec<u8> {
    let len = ((frame.len() - 54) as u32).to_be_bytes();
    let sum = Sum16BitWords::new().add_slice(&frame[22..54]).add_2bytes([0, 6]).add_slice(&len);
    frame[70..72].copy_from_slice(&(!sum.ones_complement()).to_ne_bytes());
    frame
}

#[test]
fn a_giant_is_cut_inside_and_each_part_has_outer_headers_of_its_own() {
    for (at, (kind, _)) in KINDS.into_iter().enumerate() {
        for csum in [false, true] {
            let config =
                config(kind, v4(2), "").replace("key = \"flow\"", &format!("key = 'flow', csum = {csum}"));
            play(&config, |rack| {
                teach(rack, kind);
                for (frame, work, most) in giants() {
                    let out = rack.send_offload("a", &frame, work);
                    let header = if kind == "gre" && csum { gre_summed(7, None).len() } else { 8 };
                    // A checksum in the GRE header is four bytes more.
                    let most = if header > 8 { most[at].min(1414) } else { most[at] };
                    let parts: Vec<(Outer, Vec<u8>)> =
                        out["eth1"].iter().map(|d| Outer::open(&d.bytes, header)).collect();
                    assert_eq!((out.len(), parts.len()), (1, 40_000_usize.div_ceil(most)));
                    assert!(
                        parts
                            .iter()
                            .all(|(outer, _)| *outer == parts[0].0 && outer.csum == (csum && kind != "gre"))
                    );
                    let cut: Vec<u8> = parts.iter().flat_map(|(_, inner)| checked(inner)).collect();
                    assert!(cut == payload(40_000), "another payload");
                    let tallest = out["eth1"].iter().map(|d| d.bytes.len()).max();
                    assert!(tallest <= Some(1514), "{tallest:?}");
                }
            });
        }
    }
}

#[test]
fn a_datagram_cannot_be_cut_shorter_and_a_lie_is_no_frame() {
    play(&config("vxlan", v4(2), ""), |rack| {
        teach(rack, "vxlan");
        let (frame, csum) = partial(udp((mac(1), 1), (mac(2), 2), &payload(10_000)), 6);
        let work = |size| Offload { csum, gso: Gso::Udp { size } };
        assert_eq!(rack.send_offload("a", &frame, work(1422))["eth1"].len(), 8);
        let before = rack.switch.total_stats();
        assert!(!rack.send_offload("a", &frame, work(1423)).contains_key("eth1"));
        let (frame, csum) = partial(tcp((1, 1), (2, 2), &payload(10_000)), 16);
        let lies = [Gso::Tcp6 { mss: 1000 }, Gso::Udp { size: 1000 }, Gso::Tcp4 { mss: 0 }];
        for gso in lies {
            assert!(rack.send_offload("a", &frame, Offload { csum, gso }).is_empty(), "{gso:?}");
        }
        let after = rack.switch.total_stats();
        let dropped = |reason| after.dropped(reason) - before.dropped(reason);
        assert_eq!([DropReason::OverMtu, DropReason::Unsupported].map(dropped), [1, 3], "{rack:?}");
    });
}

/// What is left to do on the inner frame stays so, if the port takes it and no outer checksum covers it.
#[test]
fn a_partial_checksum_travels_with_the_inner_frame_or_is_completed() {
    let whole = tcp((1, 40000), (2, 80), &payload(333));
    let (frame, csum) = partial(whole.clone(), 16);
    let work = Offload { csum, gso: Gso::None };
    for (kind, cost) in KINDS {
        for outer_sum in [false, true] {
            let config = config(kind, v4(2), "")
                .replace("key = \"flow\"", &format!("key = 'flow', csum = {outer_sum}"));
            play(&config, |rack| {
                teach(rack, kind);
                let header = if kind == "gre" && outer_sum { 12 } else { 8 };
                let open = |rack: &mut Rack| {
                    let out = rack.send_offload("a", &frame, work);
                    (out["eth1"][0].offload, Outer::open(&out["eth1"][0].bytes, header).1)
                };
                assert_eq!(open(rack), (Offload::NONE, whole.clone()), "{kind}");
                offload(rack, "eth1", ALL);
                let travels = (work.shifted(cost as isize).unwrap(), frame.clone());
                let completed = (Offload::NONE, whole.clone());
                assert_eq!(open(rack), if outer_sum { completed } else { travels }, "{kind} {outer_sum}");
            });
        }
    }
}

#[test]
fn what_the_other_side_left_to_do_arrives_as_such_or_is_done() {
    let whole = tcp((2, 40000), (9, 80), &payload(333));
    let (frame, csum) = partial(whole.clone(), 16);
    let work = Offload { csum, gso: Gso::None };
    let giant = partial(tcp((2, 40000), (9, 80), &payload(20_000)), 16).0;
    let giant_work = Offload { csum, gso: Gso::Tcp4 { mss: 1400 } };
    play(&config("vxlan", v4(2), ""), |rack| {
        offload(rack, "b", Offloads::default());
        for outer_sum in [false, true] {
            let outer = Outer { csum: outer_sum, ..Outer::vxlan(2, 1, 7) };
            // An outer checksum is that of the completed frame (local checksum offload).
            let mut bytes = outer.wrap(&whole);
            let at = bytes.len() - whole.len();
            bytes[at..].copy_from_slice(&frame);
            let out = rack.send_offload("eth1", &bytes, work.shifted(50).unwrap());
            assert_eq!((&out["a"][0].bytes, out["a"][0].offload), (&frame, work));
            assert_eq!((&out["b"][0].bytes, out["b"][0].offload), (&whole, Offload::NONE));
            // The outer checksum itself is left to do: it is good by construction.
            if outer_sum {
                let mut bytes = outer.wrap(&whole);
                bytes[40..42].copy_from_slice(&[0x12, 0x34]);
                let outer_work = Offload { csum: Csum::Partial { start: 34, offset: 6 }, gso: Gso::None };
                let out = rack.send_offload("eth1", &bytes, outer_work);
                assert_eq!((&out["a"][0].bytes, out["a"][0].offload), (&whole, Offload::NONE));
                rack.expect_drop("eth1", &bytes, DropReason::TunnelChecksum);
            }
            let out = rack.send_offload("eth1", &outer.wrap(&giant), giant_work.shifted(50).unwrap());
            assert_eq!((&out["a"][0].bytes, out["a"][0].offload), (&giant, giant_work));
            let cut: Vec<u8> = out["b"].iter().flat_map(|part| checked(&part.bytes)).collect();
            assert!(cut == payload(20_000), "another payload");
        }
    });
}

/// A VM's giant on one hypervisor is the same bytes for the VM on the other.
#[test]
fn giants_cross_from_hypervisor_to_hypervisor() {
    for (kind, _) in KINDS {
        let config = |(here, there): (u8, u8)| {
            let segment = format!("{{ name = 's', type = '{kind}', id = 7, vteps = ['{}'] }}", v6(there));
            node_over("", here, &segment, &format!("{TUNNELS} {{ name = 'vm{here}', segment = 's' }}"))
        };
        fabric::both_ways(&[config((1, 2)), config((2, 1))], &["eth1"], |fabric| {
            fabric.send("vm2", &[broadcast(2)]);
            for (frame, work, _) in giants() {
                assert!(fabric.racks[0].cable("vm1").inject_offload(&frame, work));
                fabric.settle();
                let out = fabric.racks[1].drain();
                let got: Vec<u8> = out["vm2"].iter().flat_map(|part| checked(&part.bytes)).collect();
                assert!(got == payload(40_000) && out["vm2"].len() > 27, "another payload");
            }
        });
    }
}
