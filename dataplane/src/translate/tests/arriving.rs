//! Out of tunnels: whose port, which segment, and what is refused.

use super::lab::{Lab, in_mode, ip, mac};
use super::{FROM_2, TO_2, TO_ALL, out_of, overlay};
use crate::tables::VlanMode;
use crate::underlay::Endpoint;

/// A frame from host 1 to everybody out of a tunnel.
fn frame(listener: &str, vtep: &str, id: u32) -> String {
    format!("{},{TO_ALL}", out_of(listener, vtep, id))
}

/// An outer frame to our endpoint.
fn outer(rest: &str) -> String {
    format!("in_port=eth1,dl_src=02:ff:00:00:00:02,dl_dst=02:ff:00:00:00:01,{rest}")
}

#[test]
fn outer_headers_come_off_at_the_endpoint() {
    let lab = Lab::new(overlay);
    let cases = [
        ("udp,nw_dst=192.0.2.1,udp_dst=4789", "tnl_pop(vx0)"),
        ("udp,nw_dst=192.0.2.1,udp_dst=6081", "tnl_pop(gnv0)"),
        ("ip,nw_proto=47,nw_dst=192.0.2.1", "tnl_pop(gre0)"),
        ("udp6,ipv6_dst=2001:db8::1,udp_dst=4789", "tnl_pop(vx0)"),
        ("ipv6,nw_proto=47,ipv6_dst=2001:db8::1", "tnl_pop(gre0)"),
        // What is no tunnel's is the endpoint's own.
        ("udp,nw_dst=192.0.2.1,udp_dst=53", "vtep0"),
        ("udp,nw_dst=192.0.2.99,udp_dst=4789", "vtep0"),
        ("tcp,nw_dst=192.0.2.1,tcp_dst=4789", "vtep0"),
        ("icmp,nw_dst=192.0.2.1", "vtep0"),
        ("arp,arp_tpa=192.0.2.1", "vtep0"),
        ("udp,nw_dst=192.0.2.1,udp_dst=4789,nw_frag=first", "vtep0"),
        ("udp,nw_dst=192.0.2.1,nw_frag=later", "vtep0"),
    ];
    for (rest, expected) in cases {
        assert_eq!(lab.brief(&outer(rest)), expected, "{rest}");
    }
}

#[test]
fn the_underlay_may_be_tagged() {
    let vxlan = |tags: &str| outer(&format!("udp,nw_dst=192.0.2.1,udp_dst=4789{tags}"));
    let mut lab = Lab::new(overlay);
    assert_eq!(lab.brief(&vxlan(",dl_vlan=7")), "tnl_pop(vx0)", "a trunk to the endpoint");
    lab.change(|draft| draft.entry("vtep0").vlan = in_mode(VlanMode::Access, 7));
    assert_eq!(lab.brief(&vxlan(",dl_vlan=7")), "tnl_pop(vx0)");
    assert_eq!(lab.brief(&vxlan("")), "drop(no-destination)", "not the endpoint's VLAN");
    assert!(lab.actions(&format!("in_port=vm2,{TO_ALL}")).contains("vlan(vid=7,pcp=0)"));
}

#[test]
fn little_is_looked_at_of_what_is_for_the_host_itself() {
    let lab = Lab::new(overlay);
    let looked_at = |rest: &str| {
        let key = lab.key(&outer(rest));
        let text = flowtable::text::print(&key, &lab.decide(&outer(rest)).mask, &|_| None);
        let at = text.find("dl_dst=02:ff:00:00:00:01").unwrap();
        (text.split(',').next().unwrap().to_owned(), text[at + 24..].to_owned())
    };
    assert_eq!(looked_at("tcp,nw_dst=192.0.2.1,tcp_dst=22"), ("tcp".into(), String::new()));
    assert_eq!(looked_at("udp,nw_dst=192.0.2.1,udp_dst=53"), ("udp".into(), ",tp_dst=53".into()));
    let tunnel = ("udp".into(), ",nw_dst=192.0.2.1,nw_frag=no,tp_dst=4789".into());
    assert_eq!(looked_at("udp,nw_dst=192.0.2.1,nw_tos=184,nw_ttl=3,udp_src=5,udp_dst=4789"), tunnel);
}

#[test]
fn what_the_hosts_sockets_took_loses_its_outer_headers_too() {
    let lab = Lab::new(|draft| {
        draft.bridge("int");
        draft.port("vm1");
        draft.tunnel("a", "geneve remote=198.51.100.7 key=1 host");
    });
    assert_eq!(lab.brief("in_port=a,udp,nw_dst=198.51.100.1,udp_dst=6081"), "tnl_pop(a)");
    let inner = "in_port=a,tun_id=1,tun_src=198.51.100.7,tun_dst=198.51.100.1,tun_flags=key";
    assert_eq!(lab.brief(&format!("{inner},{TO_ALL}")), "vm1");
}

#[test]
fn a_key_is_a_segment_of_its_own_port() {
    let lab = Lab::new(overlay);
    assert_eq!(lab.brief(&frame("vx0", "192.0.2.2", 5001)), "vm1,vm3");
    assert_eq!(lab.brief(&frame("gre0", "192.0.2.2", 7)), "vm2");
    assert_eq!(lab.brief(&frame("gnv0", "2001:db8::2", 9)), "vm4");
    for (listener, id) in [("vx0", 7), ("vx0", 9), ("gre0", 5001), ("gnv0", 0)] {
        assert_eq!(lab.brief(&frame(listener, "192.0.2.2", id)), "drop(unknown-segment)", "{listener} {id}");
    }
}

#[test]
fn a_frame_in_a_tunnel_has_no_vlan() {
    let lab = Lab::new(overlay);
    let tagged = |tags: &str| format!("{}{tags}", frame("vx0", "192.0.2.2", 5001));
    assert_eq!(lab.brief(&tagged(",dl_vlan=1")), "drop(vlan)");
    assert_eq!(lab.brief(&tagged(",dl_vlan=0,dl_vlan_pcp=5")), "pop_vlan,vm1,vm3", "but perhaps a priority");
    assert_eq!(lab.brief(&tagged(",dl_vlan=0,dl_vlan1=1")), "drop(no-destination)");
}

#[test]
fn nothing_from_a_tunnel_goes_into_a_tunnel() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.tunnel("p2p", "gre remote=192.0.2.4 key=42");
    });
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "192.0.2.3", 5001)));
    assert_eq!(lab.brief(&frame("vx0", "192.0.2.2", 5001)), "vm1,vm3", "nor to others of the segment");
    assert_eq!(lab.brief(&format!("{},{TO_2}", out_of("vx0", "192.0.2.2", 5001))), "drop(split-horizon)");
    let broadcast = format!("{},{TO_ALL},dl_vlan=1", out_of("gre0", "192.0.2.4", 42));
    assert_eq!(lab.brief(&broadcast), "pop_vlan,vm1,vm3", "point-to-point");
}

#[test]
fn nothing_from_a_tunnel_goes_into_a_tunnel_of_another_bridge() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.port("here");
        draft.bridge("other");
        draft.port("there");
        draft.access("vm9", 1);
        draft.tunnel("p2p", "vxlan remote=192.0.2.4 key=42 port=8472");
        draft.patch("here", "there");
    });
    assert_eq!(lab.brief(&frame("vx0", "192.0.2.2", 5001)), "vm1,vm3,vm9");
    let back =
        format!("in_port=p2p,tun_id=42,tun_src=192.0.2.4,tun_dst=192.0.2.1,tun_flags=key,dl_vlan=1,{TO_ALL}");
    assert_eq!(lab.brief(&back), "pop_vlan,vm1,vm3,vm9");
    lab.send(&format!(
        "in_port=p2p,tun_id=42,tun_src=192.0.2.4,tun_dst=192.0.2.1,tun_flags=key,dl_vlan=1,{FROM_2}"
    ));
    let unicast = format!("{},{TO_2}", out_of("vx0", "192.0.2.2", 5001));
    assert_eq!(lab.brief(&unicast), "drop(split-horizon)", "the reason in the other bridge is the frame's");
}

#[test]
fn strict_peers_let_only_vteps_of_the_segment_in() {
    let mut lab = Lab::new(overlay);
    assert_eq!(lab.brief(&frame("vx0", "192.0.2.9", 5001)), "vm1,vm3");
    lab.change(|draft| draft.named("blue").strict_peers = true);
    assert_eq!(lab.brief(&frame("vx0", "192.0.2.9", 5001)), "drop(unknown-vtep)");
    assert_eq!(lab.brief(&frame("vx0", "192.0.2.3", 5001)), "vm1,vm3");
    assert!(lab.decide(&frame("vx0", "192.0.2.9", 5001)).effects.is_empty(), "nothing is learned from it");
}

#[test]
fn the_one_remote_end_of_a_port_is_a_peer() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.tunnel("vx1", "vxlan key=flow remote=192.0.2.4");
        draft.access("vm5", 5);
        draft.segment("grey", 5, "vx1 77").strict_peers = true;
    });
    assert_eq!(lab.brief(&frame("vx0", "192.0.2.4", 77)), "vm5");
    assert_eq!(lab.brief(&frame("vx0", "192.0.2.3", 77)), "drop(unknown-segment)", "of vx0 there is none");
}

#[test]
fn a_segment_that_does_not_learn_is_taught_nothing() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.named("blue").learning = false;
    });
    assert!(lab.decide(&frame("vx0", "192.0.2.2", 5001)).effects.is_empty());
    assert_eq!(lab.decide(&format!("in_port=vm1,{TO_ALL}")).effects.len(), 1, "but by its own ports");
}

/// `tnl_find` of Open vSwitch: a key before any key, a remote end before any, a local end before any.
#[test]
fn of_ports_on_one_listener_the_most_specific_takes_a_frame() {
    let options = [
        "key=42 remote=192.0.2.2 local=192.0.2.1",
        "key=42 remote=192.0.2.2",
        "key=42 local=192.0.2.1",
        "key=42",
        "key=flow remote=192.0.2.2 local=192.0.2.1",
        "key=flow remote=192.0.2.2",
        "key=flow local=192.0.2.1",
        "key=flow",
    ];
    for (at, most) in options.iter().enumerate() {
        let lab = Lab::new(|draft| {
            draft.bridge("int");
            draft.tunnel("listener", "vxlan remote=203.0.113.9 key=1");
            for (n, options) in options[at..].iter().enumerate().rev() {
                draft.tunnel(&format!("p{n}"), &format!("vxlan {options}"));
                if options.contains("key=flow") {
                    draft.segment(&format!("s{n}"), n as u32 + 1, &format!("p{n} 42"));
                }
            }
        });
        let decision = lab.decide(&frame("listener", "192.0.2.2", 42));
        assert_eq!(decision.in_port, lab.id("p0"), "{most}");
    }
}

#[test]
fn ports_on_one_listener_tell_frames_apart() {
    let lab = Lab::new(|draft| {
        draft.bridge("int");
        draft.access("vm1", 1);
        draft.access("vm2", 2);
        draft.tunnel("flow", "gre key=flow");
        draft.tunnel("none", "gre remote=192.0.2.2").vlan.tag = encap::field::VlanId::NONE;
        draft.tunnel("zero", "gre remote=192.0.2.2 key=0");
        draft.segment("blue", 1, "flow 0 192.0.2.2 192.0.2.3");
    });
    let in_port = |frame: &str| lab.decide(frame).in_port;
    let keyless = format!("in_port=flow,tun_src=192.0.2.2,tun_dst=192.0.2.1,tun_flags=0,{TO_ALL}");
    assert_eq!(in_port(&keyless), lab.id("none"), "no key");
    assert_eq!(in_port(&frame("flow", "192.0.2.2", 0)), lab.id("zero"), "is not key 0");
    assert_eq!(lab.brief(&frame("flow", "192.0.2.3", 0)), "vm1", "which may be a segment's");
    let stranger = keyless.replace("192.0.2.2", "192.0.2.3");
    assert_eq!(lab.brief(&stranger), "drop(unknown-segment)");
}

/// RFC 6040 figure 4: rows are the inner field, columns the outer one; Not-ECT, ECT(0), ECT(1), CE.
#[test]
fn congestion_in_the_underlay_is_told_to_the_inner_packet() {
    let lab = Lab::new(overlay);
    let codes = [0u8, 2, 1, 3];
    let (same, lost) = ("vm1,vm3".to_owned(), "drop(congestion)".to_owned());
    let set = |ecn: u8| format!("set(ip(tos={ecn:#x}/0x3)),vm1,vm3");
    let rows = [
        [&same, &same, &same, &lost],
        [&same, &same, &set(1), &set(3)],
        [&same, &same, &same, &set(3)],
        [&same, &same, &same, &same],
    ];
    for (inner, row) in codes.iter().zip(rows) {
        for (outer, expected) in codes.iter().zip(row) {
            for ip in ["ip", "ipv6"] {
                let frame =
                    format!("{},tun_tos={outer},{ip},nw_ecn={inner}", frame("vx0", "192.0.2.2", 5001));
                assert_eq!(lab.brief(&frame), *expected, "{ip}, inner {inner}, outer {outer}");
            }
        }
    }
    let arp = format!("{},tun_tos=3,arp", frame("vx0", "192.0.2.2", 5001));
    assert_eq!(lab.brief(&arp), same, "ARP has no such field");
}

#[test]
fn what_comes_from_ourselves_is_a_loop() {
    let lab = Lab::new(overlay);
    let from = |src: &str, dst: &str| {
        lab.brief(&format!("in_port=vx0,tun_id=5001,tun_src={src},tun_dst={dst},tun_flags=key,{TO_ALL}"))
    };
    assert_eq!(from("192.0.2.1", "192.0.2.1"), "drop(tunnel-loop)");
    assert_eq!(from("2001:db8::1", "192.0.2.1"), "drop(tunnel-loop)");
    assert_eq!(from("198.51.100.1", "198.51.100.1"), "drop(tunnel-loop)", "an address of the host's");
}

#[test]
fn who_can_have_no_address_is_no_vtep() {
    let lab = Lab::new(overlay);
    for nobody in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1"] {
        assert_eq!(lab.brief(&frame("vx0", nobody, 5001)), "drop(unknown-vtep)", "{nobody}");
        assert!(lab.decide(&frame("vx0", nobody, 5001)).effects.is_empty(), "{nobody}");
    }
}

#[test]
fn a_control_message_of_geneve_is_not_for_the_segment() {
    let lab = Lab::new(overlay);
    let message = frame("gnv0", "2001:db8::2", 9).replace("tun_flags=key", "tun_flags=key|oam");
    assert_eq!(lab.brief(&message), "drop(tunnel-protocol)");
}

#[test]
fn a_tunnel_inside_a_tunnel_is_opened_where_it_ends() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.access("vtep1", 1);
        let endpoint = Endpoint { mac: mac(2), addresses: vec![ip("10.0.0.1")] };
        draft.underlay.endpoints.insert(draft.id("vtep1"), endpoint);
    });
    let inner = "udp,nw_dst=10.0.0.1,udp_dst=4789";
    assert_eq!(lab.brief(&format!("{},{TO_2},{inner}", out_of("vx0", "192.0.2.2", 5001))), "tnl_pop(vx0)");
    // Of another tenant's it is nothing but a packet.
    assert_eq!(lab.brief(&format!("{},{TO_2},{inner}", out_of("gre0", "192.0.2.2", 7))), "vm2");
}
