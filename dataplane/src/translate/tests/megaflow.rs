//! A decision is for every frame that agrees in the bits that were looked at: found out by frames that differ in all others.

use flowtable::field::Field;
use flowtable::id::Place;
use flowtable::key::FlowKey;
use flowtable::mask::Mask;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::lab::{Draft, Lab, in_mode, ip, mac};
use crate::tables::{PriorityTags, SnoopingConfig, VlanMode};
use crate::translate::{Silent, translate};

/// Ports of the bridge of VMs, and of the underlay, that the tables below may have.
const PORTS: &[&str] = &[
    "eth1", "vtep0", "vm1", "vm2", "q", "t", "eth2", "r1", "vx0", "gre0", "p2p", "keyless", "here", "there",
];

/// How many choices there are.
pub(super) const BITS: u32 = 18;

/// What differs from one set of tables to the next.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) bits: u32,
    tos: &'static str,
    ttl: &'static str,
    carrier: &'static str,
}

impl Shape {
    fn is(&self, bit: u32) -> bool {
        self.bits >> bit & 1 != 0
    }

    pub(super) fn draw(&self, draft: &mut Draft) {
        let outer = format!("{} {} {}", self.tos, self.ttl, self.carrier);
        draft.bridge("phy");
        draft.port("eth1");
        draft.endpoint("vtep0", &["192.0.2.1/24", "2001:db8::1/64"]);
        if self.is(0) {
            draft.entry("vtep0").vlan = in_mode(VlanMode::Access, 1);
        }
        for vtep in ["192.0.2.2", "192.0.2.3", "2001:db8::2"] {
            if self.is(1) {
                draft.neighbour("vtep0", vtep);
            }
        }
        draft.port("there");
        draft.bridge("int");
        draft.access("vm1", 1).vlan.priority_tags = PriorityTags::IfNonzero;
        draft.access("vm2", 2).protected = self.is(2);
        draft.port("q").vlan = in_mode(VlanMode::Dot1qTunnel, 2);
        draft.port("t");
        draft.port("eth2");
        draft.joined("r1", 4096);
        draft.tunnel("vx0", &format!("vxlan key=flow {outer}"));
        draft.tunnel("gre0", &format!("gre key=flow {outer}"));
        draft.tunnel("p2p", &format!("vxlan remote=192.0.2.3 key=2 {outer}"));
        draft.tunnel("keyless", &format!("gre remote=192.0.2.2 {outer}"));
        draft.port("here");
        if self.is(3) {
            draft.patch("here", "there");
        }
        if self.is(4) {
            draft.bridges[1].snooping = Some(SnoopingConfig {
                size: 16,
                age: std::time::Duration::from_secs(300),
                flood_unregistered: self.is(5),
            });
        }
        self.draw_segments(draft);
        if self.is(13) {
            draft.access("late", 1);
        }
        if self.is(14) {
            draft.route("10.0.0.0/8", "vtep0", "192.0.2.3");
        }
    }

    fn draw_segments(&self, draft: &mut Draft) {
        let vteps = if self.is(15) { "192.0.2.2" } else { "192.0.2.2 2001:db8::2" };
        let id = if self.is(16) { 3 } else { 1 };
        let blue = draft.segment("blue", 1, &format!("vx0 {id} {vteps}"));
        blue.strict_peers = self.is(6);
        blue.learning = self.is(7);
        if self.is(8) {
            blue.neighbours = [(ip("10.0.0.2"), mac(2)), (ip("fe80::2"), mac(2))].into_iter().collect();
        }
        draft.segment("red", 2, if self.is(9) { "gre0 2 192.0.2.3" } else { "eth2 2" });
        draft.segment("none", 4096, if self.is(10) { "vx0 2 192.0.2.3" } else { "eth2 3" });
        if self.is(17) {
            draft.underlay.path_mtus.insert(ip("192.0.2.3"), 1400);
        }
        if self.is(11) {
            draft.segment("flat", 3, "eth2 0");
        }
        if self.is(12) {
            let tunnel = draft.id("vx0");
            draft.station(1, mac(2), Place::Vtep { tunnel, address: ip("192.0.2.3") });
        }
    }
}

pub(super) fn shape() -> impl Strategy<Value = Shape> {
    let tos = select(vec!["tos=0", "tos=184", "tos=inherit"]);
    let (ttl, carrier) = (select(vec!["ttl=64", "ttl=inherit"]), select(vec!["", "host"]));
    (0u32..1 << BITS, tos, ttl, carrier).prop_map(|(bits, tos, ttl, carrier)| Shape {
        bits,
        tos,
        ttl,
        carrier,
    })
}

fn addresses() -> impl Strategy<Value = String> {
    let src =
        select(vec!["02:00:00:00:00:01", "02:00:00:00:00:02", "02:ff:00:00:00:02", "01:00:5e:00:00:01"]);
    let dst = select(vec![
        "02:00:00:00:00:01",
        "02:00:00:00:00:02",
        "02:ff:00:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "33:33:00:00:00:02",
        "01:80:c2:00:00:00",
    ]);
    (src, dst).prop_map(|(src, dst)| format!("dl_src={src},dl_dst={dst}"))
}

fn tags() -> impl Strategy<Value = String> {
    let none = Just(String::new()).boxed();
    let one = (0u16..5, 0u8..3).prop_map(|(vid, pcp)| format!(",dl_vlan={vid},dl_vlan_pcp={pcp}"));
    let two = (one.clone(), 0u16..4).prop_map(|(outer, vid)| format!("{outer},dl_vlan1={vid}"));
    prop_oneof![3 => none, 2 => one, 1 => two]
}

fn packet() -> impl Strategy<Value = String> {
    let marks = (0u8..3, 0u8..4, 1u8..3)
        .prop_map(|(tos, ecn, ttl)| format!("nw_tos={},nw_ecn={ecn},nw_ttl={ttl}", tos * 4));
    let address = || select(vec!["192.0.2.1", "192.0.2.2", "10.0.0.1", "10.0.0.2", "239.1.1.1", "0.0.0.0"]);
    let address6 = || select(vec!["2001:db8::1", "fe80::2", "fe80::1", "::"]);
    let udp = (marks.clone(), address(), select(vec![4789, 53]), select(vec!["no", "first"])).prop_map(
        |(marks, dst, port, frag)| format!("udp,{marks},nw_dst={dst},udp_dst={port},nw_frag={frag}"),
    );
    let gre =
        (marks.clone(), address()).prop_map(|(marks, dst)| format!("ip,{marks},nw_proto=47,nw_dst={dst}"));
    let igmp =
        select(vec![0x11, 0x16, 0x17]).prop_map(|kind| format!("igmp,nw_dst=239.1.1.1,igmp_type={kind}"));
    let udp6 =
        (marks, address6()).prop_map(|(marks, dst)| format!("udp6,{marks},ipv6_dst={dst},udp_dst=4789"));
    let nd = (address6(), address6(), 135u8..137)
        .prop_map(|(src, target, kind)| format!("icmp6,ipv6_src={src},icmp_type={kind},nd_target={target}"));
    let arp = (address(), address(), 1u8..3)
        .prop_map(|(src, target, op)| format!("arp,arp_op={op},arp_spa={src},arp_tpa={target}"));
    prop_oneof![udp, gre, igmp, udp6, nd, arp]
}

fn tunnelled() -> impl Strategy<Value = String> {
    let vtep = select(vec!["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::2"]);
    let flags = select(vec!["key", "0", "key|oam", "key|df"]);
    let outer = (vtep, 0u32..4, 0u8..4, flags).prop_map(|(vtep, id, ecn, flags)| {
        format!(",tun_src={vtep},tun_dst=192.0.2.1,tun_id={id},tun_tos={ecn},tun_flags={flags}")
    });
    prop_oneof![1 => Just(String::new()), 1 => outer]
}

pub(super) fn frame() -> impl Strategy<Value = String> {
    let parts = (select(PORTS.to_vec()), addresses(), tags(), packet(), tunnelled());
    parts.prop_map(|(port, addresses, tags, packet, tunnelled)| {
        // Only what comes out of a tunnel has been in one.
        let of_tunnel = ["vx0", "gre0", "p2p", "keyless"].contains(&port);
        let tunnelled = if of_tunnel { tunnelled } else { String::new() };
        format!("in_port={port},{addresses}{tags},{packet}{tunnelled}")
    })
}

/// Takes a field over from another key.
type Take = fn(FlowKey, &FlowKey) -> FlowKey;

/// One for each field that some stage looks at, or that it should not.
const TAKES: &[Take] = &[
    |key, other| key.with(Field::EthSrc, other.eth_src()),
    |key, other| key.with(Field::EthDst, other.eth_dst()),
    |key, other| key.with(Field::OuterTci, other.outer_tci()),
    |key, other| key.with(Field::InnerTci, other.inner_tci()),
    |key, other| key.with(Field::EthType, other.eth_type()),
    |key, other| key.with(Field::IpProto, other.ip_proto()),
    |key, other| key.with(Field::IpFrag, other.ip_frag()),
    |key, other| key.with(Field::IpDscp, other.ip_dscp()),
    |key, other| key.with(Field::IpEcn, other.ip_ecn()),
    |key, other| key.with(Field::IpTtl, other.ip_ttl()),
    |key, other| key.with(Field::Ipv4Dst, other.ip_dst()),
    |key, other| key.with(Field::Ipv6Src, other.ipv6_src()),
    |key, other| key.with(Field::Ipv6Dst, other.ipv6_dst()),
    |key, other| key.with(Field::L4Dst, other.l4_dst()),
    |key, other| key.with(Field::ArpOp, other.arp_op()),
    |key, other| key.with(Field::ArpSpa, other.arp_spa()),
    |key, other| key.with(Field::ArpTpa, other.arp_tpa()),
    |key, other| key.with(Field::NdTarget, other.nd_target()),
    |key, other| key.with(Field::TunId, other.tun_id()),
    |key, other| key.with(Field::TunSrc, other.tun_src()),
    |key, other| key.with(Field::TunTos, other.tun_tos()),
    |key, other| key.with(Field::TunFlags, other.tun_flags()),
];

/// The key with all of the other's fields that the mask leaves free.
fn mixed(key: FlowKey, mask: &Mask, other: &FlowKey) -> FlowKey {
    TAKES.iter().fold(key, |mixed, take| {
        let next = take(mixed, other);
        if next.masked(mask) == key.masked(mask) { next } else { mixed }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_that_agree_in_what_was_looked_at_have_one_fate(
        shape in shape(),
        frames in proptest::collection::vec(frame(), 2..12),
        pick in any::<Index>(),
    ) {
        let lab = Lab::new(|draft| shape.draw(draft));
        frames.iter().for_each(|frame| drop(lab.send(frame)));
        let other = &frames[pick.index(frames.len())];
        for frame in &frames {
            let decision = lab.decide(frame);
            let key = mixed(lab.key(frame), &decision.mask, &lab.key(other));
            prop_assert_eq!(translate(lab.view(), &key, &mut Silent), decision, "{} like {}", frame, other);
        }
    }
}
