//! Into tunnels: to whom, and with what outer headers.

use encap::field::MacAddr;
use flowtable::action::{Action, Complaint, Encap};
use flowtable::id::Place;

use super::lab::{Draft, Lab, in_mode, ip, mac};
use super::{FROM_2, TO_2, TO_ALL, out_of, overlay};
use crate::tables::VlanMode;

/// The first way into a tunnel.
fn encap(lab: &Lab, frame: &str) -> Encap {
    let first = |action: &Action| match action {
        Action::Encap(encap) => Some(encap.as_ref().clone()),
        _ => None,
    };
    lab.decide(frame).actions.iter().find_map(first).unwrap_or_else(|| panic!("{}", lab.steps(frame)))
}

/// An endpoint, a VM, and a tunnel port with these options; as the tunnel is, so are its VMs: one VLAN.
fn point_to_point(options: &str) -> Lab {
    Lab::new(|draft| {
        draft.bridge("phy");
        draft.port("eth1");
        draft.endpoint("vtep0", &["192.0.2.1/24", "2001:db8::1/64"]);
        draft.neighbour("vtep0", "192.0.2.2");
        draft.neighbour("vtep0", "2001:db8::2");
        draft.bridge("int");
        draft.access("vm1", 5);
        draft.access("vm2", 6);
        draft.tunnel("p2p", options).vlan = in_mode(VlanMode::Access, 5);
    })
}

#[test]
fn what_all_must_get_each_vtep_of_the_segment_gets_once() {
    let lab = Lab::new(overlay);
    let blue = "vx0:5001>192.0.2.2@eth1,vx0:5001>192.0.2.3@eth1,vm3";
    assert_eq!(lab.brief(&format!("in_port=vm1,{TO_ALL}")), blue);
    assert_eq!(lab.brief(&format!("in_port=vm1,{TO_2}")), blue, "not known where");
    assert_eq!(lab.brief(&format!("in_port=vm2,{TO_ALL}")), "gre0:7>192.0.2.2@eth1");
    assert_eq!(lab.brief(&format!("in_port=vm4,{TO_ALL}")), "gnv0:9>2001:db8::2@eth1");
}

#[test]
fn vteps_that_sent_into_the_segment_get_what_all_must_get() {
    let lab = Lab::new(overlay);
    let broadcast = format!("in_port=vm1,{TO_ALL}");
    let before = lab.decide(&broadcast);
    let from = |vtep| lab.send(&format!("{},{FROM_2}", out_of("vx0", vtep, 5001)));
    from("192.0.2.4");
    from("192.0.2.3");
    assert_eq!(
        lab.brief(&broadcast),
        "vx0:5001>192.0.2.2@eth1,vx0:5001>192.0.2.3@eth1,vx0:5001>192.0.2.4@eth1,vm3",
        "those configured, and the new one once"
    );
    let learned = flowtable::vteps::Vteps::dependency(flowtable::id::SegmentId(1));
    assert_eq!(before.depends & learned, learned, "so that a cached flow is looked at again");
    assert_eq!(lab.brief(&format!("in_port=vm2,{TO_ALL}")), "gre0:7>192.0.2.2@eth1", "of that segment only");
}

#[test]
fn a_segment_that_does_not_learn_sends_to_its_list_only() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.named("blue").learning = false;
    });
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "192.0.2.4", 5001)));
    assert_eq!(
        lab.brief(&format!("in_port=vm1,{TO_2}")),
        "vx0:5001>192.0.2.2@eth1,vx0:5001>192.0.2.3@eth1,vm3"
    );
}

#[test]
fn a_station_behind_a_vtep_is_sent_to_there() {
    let mut lab = Lab::new(overlay);
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "192.0.2.3", 5001)));
    let to_2 = format!("in_port=vm1,{TO_2}");
    assert_eq!(lab.brief(&to_2), "vx0:5001>192.0.2.3@eth1");
    lab.change(|draft| {
        let tunnel = draft.id("vx0");
        draft.station(1, mac(2), Place::Vtep { tunnel, address: ip("192.0.2.4") });
    });
    assert_eq!(lab.brief(&to_2), "vx0:5001>192.0.2.4@eth1", "the controller knows better");
}

#[test]
fn a_station_that_migrates_here_is_here() {
    let lab = Lab::new(overlay);
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "192.0.2.3", 5001)));
    lab.send(&format!("in_port=vm3,{FROM_2}"));
    assert_eq!(lab.brief(&format!("in_port=vm1,{TO_2}")), "vm3");
}

#[test]
fn a_port_with_one_remote_end_has_no_other_vteps() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.tunnel("vx1", "vxlan key=flow remote=192.0.2.4 port=8472");
        draft.access("vm5", 5);
        draft.segment("grey", 5, "vx1 77");
    });
    assert_eq!(lab.brief(&format!("in_port=vm5,{TO_ALL}")), "vx1:77>192.0.2.4@eth1");
}

#[test]
fn every_kind_of_point_to_point_tunnel_has_its_outer_headers() {
    let cases = [
        (
            "vxlan remote=192.0.2.2 key=42",
            "ipv4(src=192.0.2.1,dst=192.0.2.2,tos=0x0,ttl=64,df),udp(dst=4789),vxlan(vni=0x2a)",
        ),
        (
            "vxlan remote=192.0.2.2 port=8472",
            "ipv4(src=192.0.2.1,dst=192.0.2.2,tos=0x0,ttl=64,df),udp(dst=8472),vxlan(vni=0x0)",
        ),
        (
            "vxlan remote=2001:db8::2 key=42 csum=true",
            "ipv6(src=2001:db8::1,dst=2001:db8::2,tclass=0x0,hlimit=64),udp(dst=4789,csum),vxlan(vni=0x2a)",
        ),
        ("gre remote=192.0.2.2", "ipv4(src=192.0.2.1,dst=192.0.2.2,tos=0x0,ttl=64,df),gre()"),
        (
            "gre remote=192.0.2.2 key=0 df=false",
            "ipv4(src=192.0.2.1,dst=192.0.2.2,tos=0x0,ttl=64),gre(key=0x0)",
        ),
        (
            "gre remote=2001:db8::2 key=4294967295 csum=true ttl=3",
            "ipv6(src=2001:db8::1,dst=2001:db8::2,tclass=0x0,hlimit=3),gre(csum,key=0xffffffff)",
        ),
        (
            "geneve remote=192.0.2.2 key=9 tos=184",
            "ipv4(src=192.0.2.1,dst=192.0.2.2,tos=0xb8,ttl=64,df),udp(dst=6081),geneve(vni=0x9)",
        ),
        (
            "geneve remote=2001:db8::2 key=9",
            "ipv6(src=2001:db8::1,dst=2001:db8::2,tclass=0x0,hlimit=64),udp(dst=6081),geneve(vni=0x9)",
        ),
    ];
    for (options, expected) in cases {
        let lab = point_to_point(options);
        let to = if options.contains("2001") { "62" } else { "02" };
        let eth = format!("eth(dst=02:ff:00:00:00:{to},src=02:ff:00:00:00:01)");
        let expected = format!("tnl_push(tnl_port(p2p),header({eth},{expected}),out_port(eth1))");
        assert_eq!(lab.actions(&format!("in_port=vm1,{TO_ALL}")), expected, "{options}");
        assert_eq!(lab.brief(&format!("in_port=vm2,{TO_ALL}")), "drop(no-destination)", "another VLAN");
    }
}

#[test]
fn a_point_to_point_port_has_the_modes_of_any_port() {
    let mut lab = point_to_point("vxlan remote=192.0.2.2 key=42");
    lab.change(|draft| draft.entry("p2p").vlan = in_mode(VlanMode::Trunk, 0));
    assert_eq!(lab.brief(&format!("in_port=vm1,{TO_ALL}")), "push_vlan(vid=5,pcp=0),p2p:42>192.0.2.2@eth1");
    assert_eq!(lab.brief(&format!("in_port=vm2,{TO_ALL}")), "push_vlan(vid=6,pcp=0),p2p:42>192.0.2.2@eth1");
}

#[test]
fn the_local_address_is_the_configured_one() {
    let lab = Lab::new(|draft| {
        draft.bridge("phy");
        draft.port("eth1");
        draft.endpoint("vtep0", &["192.0.2.1/24", "192.0.2.9/24"]);
        draft.neighbour("vtep0", "192.0.2.2");
        draft.tunnel("any", "vxlan remote=192.0.2.2");
        draft.bridge("int");
        draft.port("vm1");
        draft.tunnel("own", "vxlan remote=192.0.2.2 local=192.0.2.9");
        draft.tunnel("odd", "gre remote=192.0.2.2 local=2001:db8::1");
    });
    assert!(lab.actions(&format!("in_port=vm1,{TO_ALL}")).contains("src=192.0.2.9,dst=192.0.2.2"));
    assert!(lab.steps(&format!("in_port=vm1,{TO_ALL}")).contains("no route to 192.0.2.2 from 2001:db8::1"));
}

#[test]
fn tos_and_ttl_are_fixed_or_those_of_the_inner_packet() {
    let outer = |options: &str, frame: &str| {
        let lab = point_to_point(&format!("vxlan remote=192.0.2.2 {options}"));
        let template = encap(&lab, &format!("in_port=vm1,{TO_2},{frame}")).template;
        (template.outer().tos, template.outer().ttl)
    };
    let packet = "ip,nw_tos=184,nw_ecn=2,nw_ttl=7";
    assert_eq!(outer("", packet), (2, 64), "congestion notification is always copied");
    assert_eq!(outer("tos=35", packet), (34, 64), "it is not configured");
    assert_eq!(outer("tos=inherit", packet), (186, 64));
    assert_eq!(outer("ttl=inherit", packet), (2, 7));
    assert_eq!(outer("tos=inherit ttl=inherit", "ipv6,nw_tos=184,nw_ecn=3,nw_ttl=9"), (187, 9));
    assert_eq!(outer("tos=inherit ttl=inherit", "arp"), (0, 64), "ARP has neither");
}

#[test]
fn the_mask_has_what_the_outer_headers_take_from_the_inner_packet_and_no_more() {
    let looked_at = |options: &str| {
        let lab = point_to_point(&format!("vxlan remote=192.0.2.2 {options}"));
        let frame = format!("in_port=vm1,{TO_2},tcp,nw_tos=184,nw_ecn=2,nw_ttl=7,nw_dst=10.0.0.1,tp_dst=80");
        let decision = lab.decide(&frame);
        flowtable::text::print(&lab.key(&frame), &decision.mask, &|_| None)
    };
    let [fixed, inherited] = ["", "tos=inherit ttl=inherit"].map(looked_at);
    let common = "in_port=2,vlan_tci=0x0000/0x1000,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02";
    assert_eq!(fixed, format!("ip,{common},nw_ecn=2"));
    assert_eq!(inherited, format!("ip,{common},nw_tos=184,nw_ecn=2,nw_ttl=7"));
}

#[test]
fn a_frame_may_be_as_long_as_the_underlay_has_room_for() {
    let max = |options: &str, change: &dyn Fn(&mut Draft)| {
        let mut lab = point_to_point(options);
        lab.change(change);
        encap(&lab, &format!("in_port=vm1,{TO_2}")).frame_max
    };
    let none = |_: &mut Draft| {};
    // An inner IP packet is 14 bytes shorter than its frame: 1450, 1430, 1462, 1458.
    assert_eq!(max("vxlan remote=192.0.2.2", &none), 1464);
    assert_eq!(max("vxlan remote=2001:db8::2", &none), 1444);
    assert_eq!(max("gre remote=192.0.2.2", &none), 1476);
    assert_eq!(max("gre remote=192.0.2.2 key=1", &none), 1472);
    let jumbo = |draft: &mut Draft| draft.entry("eth1").mtu = 9000;
    assert_eq!(max("vxlan remote=192.0.2.2", &jumbo), 1464, "the endpoint's own");
    let both = |draft: &mut Draft| {
        draft.entry("eth1").mtu = 9000;
        draft.entry("vtep0").mtu = 9000;
    };
    assert_eq!(max("vxlan remote=192.0.2.2", &both), 8964);
    let path = |draft: &mut Draft| {
        both(draft);
        draft.underlay.path_mtus.insert(ip("192.0.2.2"), 1400);
    };
    assert_eq!(max("vxlan remote=192.0.2.2", &path), 1364, "as a router said");
    assert_eq!(max("vxlan remote=192.0.2.2 host", &none), 1464);
    assert_eq!(max("vxlan remote=192.0.2.2 host", &|draft| draft.entry("p2p").mtu = 1300), 1264);
    assert_eq!(max("vxlan remote=192.0.2.2 host", &path), 1364);
}

#[test]
fn who_sends_too_long_a_frame_is_told_with_the_tag_it_had() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.port("t");
    });
    let complaint = |frame: &str| encap(&lab, &format!("{frame},{TO_2}")).complaint.unwrap();
    let vm1 = lab.id("vm1");
    assert_eq!(complaint("in_port=vm1"), Complaint { port: vm1, pop: 0, push: None });
    let tagged = complaint("in_port=t,dl_vlan=1,dl_vlan_pcp=3");
    assert_eq!((tagged.port, tagged.pop), (lab.id("t"), 0));
    assert_eq!(tagged.push.map(|tag| tag.vid().get()), Some(1));
}

#[test]
fn a_vlan_inside_a_vlan_does_not_fit_into_a_segment() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.port("t");
    });
    assert_eq!(lab.brief(&format!("in_port=t,{TO_ALL},dl_vlan=1,dl_vlan1=7")), "drop(no-destination)");
}

#[test]
fn the_host_carries_outer_frames_by_the_listener() {
    let lab = Lab::new(|draft| {
        draft.bridge("int");
        draft.port("vm1");
        draft.tunnel("a", "vxlan remote=198.51.100.7 key=1 host");
        draft.tunnel("b", "vxlan remote=198.51.100.8 key=1 local=198.51.100.1 host");
    });
    assert_eq!(lab.brief(&format!("in_port=vm1,{TO_ALL}")), "a:1>198.51.100.7@a,b:1>198.51.100.8@a");
    let outer = encap(&lab, &format!("in_port=vm1,{TO_ALL}")).template.outer().clone();
    assert_eq!((outer.src, outer.eth_dst), (ip("0.0.0.0"), MacAddr::default()), "its stack knows better");
}
