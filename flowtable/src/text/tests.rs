//! What ovs-ofctl and dpctl of Open vSwitch 3.1 print for the same flow, and that parsing undoes printing.

use std::time::Duration;

use encap::field::{MacAddr, Pcp, VlanId, VlanTag};
use encap::template::{Outer, Template};
use encap::tunnel::TunnelKind;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::action::{Action, DropReason, Encap};
use crate::flow::{Birth, Decision, Flow};
use crate::mask::Probe;
use crate::time::Instant;

fn by_name(name: &str) -> Option<PortId> {
    ["br0", "eth0", "tap1"].iter().position(|n| *n == name).map(|i| PortId(i as u32))
}

fn names(port: PortId) -> Option<String> {
    ["br0", "eth0", "tap1"].get(port.index()).map(|n| (*n).to_owned())
}

fn no_names(_: PortId) -> Option<String> {
    None
}

/// Parses and prints again.
fn canonical(text: &str) -> String {
    let (key, mask) = parse(text, &by_name).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(key.masked(&mask), key, "{text}: value outside the mask");
    print(&key, &mask, &no_names)
}

fn error(text: &str) -> String {
    parse(text, &by_name).expect_err(text).to_string()
}

/// The key that a text gives in full.
fn key(text: &str) -> FlowKey {
    parse(text, &by_name).unwrap_or_else(|e| panic!("{text}: {e}")).0
}

prop_compose! {
    /// A key with random bits in the fields it has, and a mask of some of them with what those need.
    fn flow()(
        ether_type in prop_oneof![
            4 => select(&[0x0800u16, 0x86dd, 0x0806, 0x8035, 0x8847, 0x88cc, 0x05ff][..]),
            1 => any::<u16>(),
        ],
        proto in prop_oneof![4 => select(&[1u8, 2, 6, 17, 58, 132][..]), 1 => any::<u8>()],
        bits in prop::collection::vec(
            (
                prop_oneof![Just(0u128), any::<u128>(), (0..1u128 << 32).prop_map(|v4| 0xffff << 32 | v4)],
                prop_oneof![4 => Just(0u128), 2 => Just(u128::MAX), 1 => any::<u128>(),
                    1 => (1u32..128).prop_map(|n| u128::MAX << n), 1 => (1u32..32).prop_map(|n| u128::MAX << n)],
            ),
            Field::ALL.len(),
        ),
    ) -> (FlowKey, Mask) {
        let mut key = FlowKey::default();
        let mut mask = Mask::EMPTY;
        Field::EthType.or(&mut key.0, ether_type.into());
        if matches!(EtherType(ether_type), EtherType::IPV4 | EtherType::IPV6) {
            Field::IpProto.or(&mut key.0, proto.into());
        }
        for (field, (value, bits)) in Field::ALL.iter().zip(bits) {
            let needs = &field.spec().needs;
            if !field.exists_in(&key) {
                continue;
            }
            if !matches!(field, Field::EthType | Field::IpProto) {
                field.or(&mut key.0, value);
            }
            field.or(&mut mask.0, bits);
            if bits != 0 && !needs.types.is_empty() {
                Field::EthType.or(&mut mask.0, u128::MAX);
            }
            if bits != 0 && !needs.protos.is_empty() {
                Field::IpProto.or(&mut mask.0, u128::MAX);
            }
        }
        (key, mask)
    }
}

proptest! {
    #[test]
    fn parsing_undoes_printing((key, mask) in flow(), named in any::<bool>()) {
        let text = print(&key, &mask, if named { &names } else { &no_names });
        prop_assert_eq!(parse(&text, &by_name), Ok((key.masked(&mask), mask)), "{}", text);
    }

    #[test]
    fn a_printed_key_is_the_key((key, _) in flow()) {
        let text = print_key(&key, &names);
        let (parsed, _) = parse(&text, &by_name).unwrap();
        prop_assert_eq!(parsed, key, "{}", text);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[a-z_0-9=/:.,+|x -]{0,60}") {
        let _ = parse(&text, &by_name);
    }

    #[test]
    fn any_name_with_any_value_is_parsed_or_refused(field in select(Field::ALL), name in 0usize..3, value in "\\PC{0,20}") {
        let names = field.spec().names;
        let _ = parse(&format!("tcp,{}={value}", names[name % names.len()]), &by_name);
        let _ = parse(&format!("{}={value}", names[name % names.len()]), &by_name);
    }
}

#[test]
fn ovs_ofctl_prints_the_same() {
    for text in [
        "",
        "ip",
        "arp",
        "mpls,mpls_label=3",
        "tcp,in_port=1,dl_vlan=10,dl_vlan_pcp=3,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02,nw_src=10.0.0.0/24,tp_dst=80",
        "tcp,nw_src=10.0.0.0/24,nw_dst=10.0.0.1,tp_dst=0x8/0xfffc",
        "tcp,tcp_flags=+syn-ack",
        "tcp,tcp_flags=syn|psh",
        "tcp,tcp_flags=-ns+[200]",
        "tcp,tcp_flags=0",
        "ip,nw_tos=4,nw_ecn=0,nw_ttl=64",
        "ip,nw_frag=not_later",
        "ip,nw_frag=yes",
        "vlan_tci=0x1000/0x1000",
        "vlan_tci=0x0000/0x1000",
        "vlan_tci=0x0000",
        "dl_vlan_pcp=3",
        "icmp,icmp_type=8",
        "icmp6,icmp_type=135,icmp_code=0,nd_target=fe80::3",
        "arp,arp_spa=1.2.3.0/24,arp_op=1",
        "rarp,arp_spa=1.2.3.4",
        "arp,arp_sha=50:54:00:00:00:09",
        "ipv6,ipv6_src=fe80::/64,ipv6_label=0x00012",
        "dl_src=50:54:00:00:00:00/ff:ff:ff:00:00:00",
        "dl_type=0x05ff",
        "udp6,tp_src=5",
        "sctp,tp_dst=5",
        "tun_flags=+oam",
        "tun_src=1.0.0.0/8,tun_ipv6_dst=::5",
        "tun_id=0x64/0xff",
        "tun_id=0x0,tun_src=192.0.2.1,tun_dst=192.0.2.2,tun_tos=185,tun_ttl=64,tun_flags=+df-csum+key",
        "tun_ipv6_src=2001:db8::1,tun_ipv6_dst=2001:db8::/32,tun_tos=0x1/0x3,tun_flags=-key",
        "tun_flags=df|key",
        "tun_flags=0",
    ] {
        assert_eq!(canonical(text), text);
    }
}

#[test]
fn other_ways_to_say_it_mean_the_same() {
    for (text, expected) in [
        ("eth_type=0x0800,ip_proto=6,tp_dst=3", "tcp,tp_dst=3"),
        ("tp_dst=3,nw_proto=6,ip", "tcp,tp_dst=3"),
        ("tcp,tcp_dst=80", "tcp,tp_dst=80"),
        ("ip,udp_dst=53", "udp,tp_dst=53"),
        ("tcp6 tcp_dst=80  in_port=2", "tcp6,in_port=2,tp_dst=80"),
        ("nw_src=10.1.2.3/8", "ip,nw_src=10.0.0.0/8"),
        ("ip_src=10.0.0.1/255.0.255.0", "ip,nw_src=10.0.0.0/255.0.255.0"),
        ("ipv6_dst=fe80::1", "ipv6,ipv6_dst=fe80::1"),
        ("arp_spa=1.2.3.4,arp_op=2", "arp,arp_spa=1.2.3.4,arp_op=2"),
        ("arp,nw_proto=1,nw_src=1.2.3.4", "arp,arp_spa=1.2.3.4,arp_op=1"),
        ("icmpv6_type=135", "icmp6,icmp_type=135"),
        ("icmp6,icmp_type=135", "icmp6,icmp_type=135"),
        ("mpls_label=3", "mpls,mpls_label=3"),
        ("dl_vlan=0xffff", "vlan_tci=0x0000"),
        ("vlan_vid=0x100a/0x1fff", "dl_vlan=10"),
        ("vlan_vid=0x1000/0x1000", "vlan_tci=0x1000/0x1000"),
        ("vlan_pcp=3", "dl_vlan_pcp=3"),
        ("vlan_tci=0x700a", "dl_vlan=10,dl_vlan_pcp=3"),
        ("dl_vlan=10,vlan_tpid=0x88a8,dl_vlan1=20", "vlan_tpid=0x88a8,dl_vlan=10,dl_vlan1=20"),
        ("ip,ip_dscp=1", "ip,nw_tos=4"),
        ("tcp,tcp_flags=0x12", "tcp,tcp_flags=syn|ack"),
        ("tcp,tcp_flags=0x2/0x12", "tcp,tcp_flags=+syn-ack"),
        ("in_port=eth0", "in_port=1"),
        ("eth_dst=1:2:3:4:5:6/1:0:0:0:0:0", "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"),
        ("tunnel_id=5", "tun_id=0x5"),
        ("tcp,ip,nw_src=1.2.3.4,nw_src=1.2.3.4", "tcp,nw_src=1.2.3.4"),
    ] {
        assert_eq!(canonical(text), expected, "{text}");
    }
}

#[test]
fn errors_name_the_place_the_field_and_what_was_expected() {
    for (text, expected) in [
        ("ip,bogus=1", "column 4: unknown field `bogus`, expected a name from ovs-fields(7)"),
        ("nw_src", "column 1: `nw_src` has no value, expected nw_src=an IPv4 address"),
        ("tcp,nw_src=", "column 5: `nw_src` has no value"),
        ("tcp=1", "column 1: `tcp` takes no value"),
        (
            "in_port=1, dl_src=02:zz",
            "column 12: `02:zz` is no value of `dl_src`, expected a MAC address such as",
        ),
        ("nw_dst=10.0.0.0/33", "column 1: `10.0.0.0/33` is no value of `nw_dst`, expected an IPv4 address"),
        ("tcp,tp_dst=65536", "column 5: `65536` is no value of `tp_dst`, expected a number that fits"),
        ("dl_vlan=4096", "column 1: `4096` is no value of `dl_vlan`"),
        (
            "tcp,tcp_flags=+syn-bogus",
            "column 5: `+syn-bogus` is no value of `tcp_flags`, expected flags such as",
        ),
        ("ip,nw_tos=5", "column 4: `5` is no value of `nw_tos`, expected a number up to 252"),
        ("ip,ip_frag=maybe", "column 4: `maybe` is no value of `ip_frag`, expected no, yes, first, later"),
        ("in_port=eth9", "column 1: there is no port `eth9`, expected the name or the number of one"),
        ("tp_dst=80", "column 1: `tp_dst` needs tcp or tcp6 or udp or udp6 or sctp or sctp6"),
        ("ip,tp_dst=80", "column 4: `tp_dst` needs"),
        ("tcp_dst=80", "column 1: `tcp_dst` needs tcp or tcp6"),
        ("udp,tcp_dst=80", "column 5: `tcp_dst` needs tcp or tcp6"),
        ("nw_ttl=1", "column 1: `nw_ttl` needs ip or ipv6"),
        ("arp,ipv6_src=::1", "column 5: `ipv6_src` needs ipv6"),
        ("ip,arp", "column 4: `arp` contradicts the rest of the text"),
        ("nw_src=1.2.3.4,nw_src=1.2.3.5", "column 16: `nw_src` contradicts the rest of the text"),
    ] {
        let error = error(text);
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn a_key_is_printed_with_what_it_has() {
    let text = "tcp,in_port=eth0,vlan_tci=0x0000,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02,\
                nw_src=10.0.0.1,nw_dst=10.0.0.2,nw_ttl=64,tp_src=4000,tp_dst=80,tcp_flags=syn";
    assert_eq!(print_key(&key(text), &names), text);
    assert_eq!(
        print_key(&FlowKey::default(), &no_names),
        "in_port=0,vlan_tci=0x0000,dl_src=00:00:00:00:00:00,dl_dst=00:00:00:00:00:00,dl_type=0x0000"
    );
}

#[test]
fn actions_are_printed_as_ovs_does() {
    let tag = |tpid| VlanTag::new(tpid, VlanId::new(10).unwrap(), Pcp::new(3).unwrap());
    let actions = [
        Action::PushVlan(tag(EtherType::VLAN)),
        Action::Output(PortId(3)),
        Action::PopVlan,
        Action::Output(PortId(1)),
        Action::PushVlan(tag(EtherType::QINQ)),
        Action::SetVid(VlanId::new(7).unwrap()),
    ];
    assert_eq!(
        print_actions(&actions, &names),
        "push_vlan(vid=10,pcp=3),3,pop_vlan,eth0,push_vlan(tpid=0x88a8,vid=10,pcp=3),set(vlan(vid=7))"
    );
    assert_eq!(print_actions(&[Action::Drop(DropReason::NoDestination)], &names), "drop(no-destination)");
}

/// From 192.0.2.1 to 192.0.2.2, or their like in IPv6.
fn outer(kind: TunnelKind, id: Option<u32>, net: &str) -> Outer {
    Outer {
        kind,
        id,
        eth_src: MacAddr([2, 0, 0, 0, 0, 1]),
        eth_dst: MacAddr([2, 0, 0, 0, 0, 2]),
        tags: Default::default(),
        src: format!("{net}1").parse().expect(net),
        dst: format!("{net}2").parse().expect(net),
        tos: 0xb8,
        ttl: 64,
        df: true,
        dst_port: kind.default_port().unwrap_or(0),
        csum: false,
    }
}

/// A way through tunnel port 1.
fn tnl_push(outer: &Outer) -> String {
    let template = Template::new(outer).expect("headers that can be");
    let encap = Encap { tunnel: PortId(1), template, output: PortId(2), frame_max: 1464, complaint: None };
    print_actions(&[Action::Encap(Box::new(encap))], &names)
}

#[test]
fn outer_headers_are_printed_in_the_words_of_tnl_push() {
    let eth = "eth(dst=02:00:00:00:00:02,src=02:00:00:00:00:01)";
    let v4 = "ipv4(src=192.0.2.1,dst=192.0.2.2,tos=0xb8,ttl=64,df)";
    let v6 = "ipv6(src=2001:db8::1,dst=2001:db8::2,tclass=0xb8,hlimit=64)";
    let summed = |outer: Outer| Outer { csum: true, df: false, tos: 0, ..outer };
    let tag = VlanTag::new(EtherType::VLAN, VlanId::new(10).unwrap(), Pcp::new(3).unwrap());
    let tagged = |outer: Outer| Outer { tags: [tag].into_iter().collect(), ..outer };
    for (outer, expected) in [
        (
            outer(TunnelKind::Vxlan, Some(5001), "192.0.2."),
            format!("{eth},{v4},udp(dst=4789),vxlan(vni=0x1389)"),
        ),
        (
            tagged(outer(TunnelKind::Vxlan, Some(0), "2001:db8::")),
            format!("{eth},vlan(vid=10,pcp=3),{v6},udp(dst=4789),vxlan(vni=0x0)"),
        ),
        (
            summed(outer(TunnelKind::Geneve, Some(7), "192.0.2.")),
            format!(
                "{eth},ipv4(src=192.0.2.1,dst=192.0.2.2,tos=0x0,ttl=64),udp(dst=6081,csum),geneve(vni=0x7)"
            ),
        ),
        (outer(TunnelKind::Gre, None, "192.0.2."), format!("{eth},{v4},gre()")),
        (outer(TunnelKind::Gre, Some(0), "192.0.2."), format!("{eth},{v4},gre(key=0x0)")),
        (
            summed(outer(TunnelKind::Gre, Some(42), "192.0.2.")),
            format!("{eth},ipv4(src=192.0.2.1,dst=192.0.2.2,tos=0x0,ttl=64),gre(csum,key=0x2a)"),
        ),
    ] {
        let expected = format!("tnl_push(tnl_port(eth0),header({expected}),out_port(tap1))");
        assert_eq!(tnl_push(&outer), expected);
    }
}

#[test]
fn actions_of_tunnels_and_answers_are_printed() {
    let actions = [
        Action::Decap { kind: TunnelKind::Vxlan, listener: PortId(1) },
        Action::SetEcn(3),
        Action::Answer(MacAddr([2, 0, 0, 0, 0, 7])),
    ];
    assert_eq!(
        print_actions(&actions, &names),
        "tnl_pop(eth0),set(ip(tos=0x3/0x3)),answer(02:00:00:00:00:07)"
    );
}

fn flow_with(key: &FlowKey, mask: Mask, actions: &[Action]) -> Flow {
    let decision = Decision {
        mask,
        actions: actions.into(),
        effects: [].into(),
        depends: 0,
        rests_on: Default::default(),
        in_port: PortId(1),
        cacheable: true,
    };
    Flow::new(key, decision, Birth { generation: 1, pollers: 1, now: Instant::ZERO })
}

/// The dump of a flow for `text`'s key whose decision looked so.
fn dumped(text: &str, look: impl Fn(&mut Probe<'_>)) -> String {
    let key = key(text);
    let mut probe = Probe::new(&key);
    look(&mut probe);
    let flow = flow_with(&key, *probe.mask(), &[Action::Output(PortId(3))]);
    dump(&flow, Instant::ZERO, &no_names)
}

#[test]
fn dpctl_dump_flows_prints_the_same() {
    let l2 = |p: &mut Probe<'_>| {
        p.in_port();
        p.eth_src();
        p.eth_dst();
        p.ip_frag();
    };
    let start = "recirc_id(0),in_port(1),packet_type(ns=0,id=0),";
    let stats = ", packets:0, bytes:0, used:never, actions:3";
    let eth = "in_port=1,dl_src=50:54:00:00:00:09,dl_dst=50:54:00:00:00:0a,";
    let odp_eth = "eth(src=50:54:00:00:00:09,dst=50:54:00:00:00:0a),";
    assert_eq!(
        dumped(&format!("{eth}tcp,nw_src=10.0.0.2"), l2),
        format!("{start}{odp_eth}eth_type(0x0800),ipv4(frag=no){stats}")
    );
    let tagged = |p: &mut Probe<'_>| {
        l2(p);
        p.vlan_tag(0);
    };
    assert_eq!(
        dumped(&format!("{eth}vlan_tpid=0x8100,dl_vlan=10,dl_vlan_pcp=3,ip"), tagged),
        format!(
            "{start}{odp_eth}eth_type(0x8100),vlan(vid=10,pcp=3),encap(eth_type(0x0800),ipv4(frag=no)){stats}"
        )
    );
    let vid = |p: &mut Probe<'_>| {
        p.vlan_vid(0);
        p.vlan_tag(1);
        p.eth_type();
    };
    assert_eq!(
        dumped("dl_vlan=10,vlan_tpid1=0x8100,dl_vlan1=20,dl_type=0x05ff", vid),
        format!(
            "recirc_id(0),packet_type(ns=0,id=0),vlan(vid=10,pcp=0/0x0),\
             encap(eth_type(0x8100),vlan(vid=20,pcp=0),encap(eth_type(0/0xffff))){stats}"
        )
    );
    assert_eq!(
        dumped(&format!("{eth}icmp6,icmp_type=135,nd_target=fe80::3"), |p| {
            p.in_port();
            p.ip_frag();
            p.icmpv6_type();
            p.icmpv6_code();
            p.nd_target();
        }),
        format!(
            "{start}eth_type(0x86dd),ipv6(proto=58,frag=no),icmpv6(type=135,code=0),nd(target=fe80::3){stats}"
        )
    );
    assert_eq!(
        dumped(&format!("{eth}arp,arp_op=1,arp_spa=1.2.3.4"), |p| {
            p.in_port();
            p.arp_spa();
            p.arp_op();
        }),
        format!("{start}eth_type(0x0806),arp(sip=1.2.3.4,op=1){stats}")
    );
}

/// The dump of what `text` selects, without counters.
fn matched(text: &str) -> String {
    let (key, mask) = parse(text, &by_name).unwrap();
    let flow = flow_with(&key, mask, &[]);
    let text = dump(&flow, Instant::ZERO, &no_names);
    let text = text.strip_prefix("recirc_id(0),packet_type(ns=0,id=0),").expect(&text);
    text.strip_suffix(", packets:0, bytes:0, used:never, actions:").expect(text).to_owned()
}

#[test]
fn dpctl_spells_masks_out() {
    for (text, expected) in [
        (
            "tcp,nw_src=10.0.0.2/24,nw_dst=10.0.0.1,tp_dst=8/0xfffc",
            "eth_type(0x0800),ipv4(src=10.0.0.0/255.255.255.0,dst=10.0.0.1,proto=6),tcp(dst=8/0xfffc)",
        ),
        ("tcp,tcp_flags=+syn-ack", "eth_type(0x0800),ipv4(proto=6),tcp_flags(+syn-ack)"),
        ("tcp,tcp_flags=0xa", "eth_type(0x0800),ipv4(proto=6),tcp_flags(syn|psh)"),
        ("ip,nw_tos=4,nw_ecn=1,nw_ttl=64", "eth_type(0x0800),ipv4(tos=0x5,ttl=64)"),
        ("ip,nw_tos=0,nw_ecn=0", "eth_type(0x0800),ipv4(tos=0)"),
        ("ip,nw_tos=4", "eth_type(0x0800),ipv4(tos=0x4/0xfc)"),
        (
            "ipv6,ipv6_src=fe80::1/64,ipv6_label=0x12",
            "eth_type(0x86dd),ipv6(src=fe80::/ffff:ffff:ffff:ffff::,label=0x12)",
        ),
        ("dl_src=50:54:00:00:00:00/ff:ff:ff:00:00:00", "eth(src=50:54:00:00:00:00/ff:ff:ff:00:00:00)"),
        ("mpls,mpls_label=5", "eth_type(0x8847),mpls(label=5)"),
        ("udp6,tp_src=5", "eth_type(0x86dd),ipv6(proto=17),udp(src=5)"),
        ("icmp,icmp_type=8", "eth_type(0x0800),ipv4(proto=1),icmp(type=8)"),
    ] {
        assert_eq!(matched(text), expected, "{text}");
    }
}

#[test]
fn a_tunnel_comes_before_the_port() {
    let text = "tun_id=5,tun_src=192.0.2.1,tun_dst=192.0.2.2,tun_ttl=64,tun_flags=-df-csum+key,in_port=1";
    let (key, mask) = parse(text, &by_name).unwrap();
    let flow = flow_with(&key, mask, &[]);
    assert_eq!(
        dump(&flow, Instant::ZERO, &names),
        "recirc_id(0),tunnel(tun_id=0x5,src=192.0.2.1,dst=192.0.2.2,ttl=64,flags(-df-csum+key)),in_port(eth0),\
         packet_type(ns=0,id=0), packets:0, bytes:0, used:never, actions:"
    );
}

#[test]
fn a_tunnel_over_ipv6_and_its_congestion_bits() {
    let matched = |text| {
        let (key, mask) = parse(text, &by_name).unwrap();
        dump(&flow_with(&key, mask, &[]), Instant::ZERO, &no_names)
    };
    let text =
        matched("tun_id=0,tun_ipv6_src=2001:db8::1,tun_ipv6_dst=2001:db8::2,tun_tos=2/3,tun_flags=df|key");
    let expected =
        "recirc_id(0),tunnel(tun_id=0,ipv6_src=2001:db8::1,ipv6_dst=2001:db8::2,tos=0x2/0x3,flags(df|key)),";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn counters_are_printed_as_dpctl_does() {
    let key = key("tcp,in_port=1");
    let flow = flow_with(&key, Mask::EMPTY, &[Action::Drop(DropReason::Protected)]);
    flow.stats(0).add(10, 980, 0x1b, Instant::ZERO + Duration::from_millis(500));
    assert_eq!(
        dump(&flow, Instant::ZERO + Duration::from_millis(1704), &no_names),
        "recirc_id(0),packet_type(ns=0,id=0), packets:10, bytes:980, used:1.204s, flags:SFP., actions:drop(protected)"
    );
}
