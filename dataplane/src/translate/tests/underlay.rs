//! The way of outer frames: routes, next hops, the bridges under the tunnels, and what must not happen there.

use flowtable::action::Effect;
use flowtable::fdb::Fdb;
use flowtable::id::{SegmentId, Station};

use super::lab::{Draft, Lab, card, in_mode, mac};
use super::{FROM_2, TO_ALL, out_of, overlay};
use crate::tables::VlanMode;
use crate::translate::{Silent, translate};
use crate::upcall;

fn vm1() -> String {
    format!("in_port=vm1,{TO_ALL}")
}

/// The addresses somebody must ask for.
fn wanted(lab: &Lab, frame: &str) -> Vec<String> {
    let effects = lab.decide(frame).effects;
    let wanted = effects.iter().filter_map(|effect| match effect {
        Effect::Resolve { address, .. } => Some(address.to_string()),
        _ => None,
    });
    wanted.collect()
}

#[test]
fn a_next_hop_that_is_not_known_is_asked_for() {
    let mut lab = Lab::new(|draft| {
        overlay(draft);
        draft.underlay.neighbours.clear();
    });
    assert_eq!(lab.brief("in_port=vm2,dl_dst=ff:ff:ff:ff:ff:ff"), "drop(no-neighbour)");
    assert_eq!(wanted(&lab, &vm1()), ["192.0.2.2", "192.0.2.3"]);
    assert_eq!(lab.brief(&vm1()), "vm3", "who can be reached is");
    lab.change(|draft| draft.neighbour("vtep0", "192.0.2.3"));
    assert_eq!(lab.brief(&vm1()), "vx0:5001>192.0.2.3@eth1,vm3");
    assert_eq!(wanted(&lab, &vm1()), ["192.0.2.2"]);
}

#[test]
fn a_vtep_behind_a_router_is_reached_by_the_longest_route() {
    let mut lab = Lab::new(overlay);
    lab.change(|draft| {
        draft.segments.truncate(0);
        draft.segment("blue", 1, "vx0 5001 198.51.100.1 203.0.113.1");
    });
    assert_eq!(lab.brief(&vm1()), "vm3");
    assert_eq!(lab.brief("in_port=vm3,dl_dst=02:00:00:00:00:77"), "vm1");
    lab.change(|draft| {
        draft.route("0.0.0.0/0", "vtep0", "192.0.2.2");
        draft.route("203.0.113.0/24", "vtep0", "192.0.2.254");
    });
    assert_eq!(lab.brief(&vm1()), "vx0:5001>198.51.100.1@eth1,vm3");
    assert_eq!(wanted(&lab, &vm1()), ["192.0.2.254"]);
    assert!(lab.actions(&vm1()).contains(&format!("eth(dst={},", card("192.0.2.2"))), "the router's card");
}

#[test]
fn without_a_route_nothing_leaves() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.routes.clear();
    });
    assert_eq!(lab.brief(&format!("in_port=vm2,{TO_ALL}")), "drop(no-route)");
    assert_eq!(wanted(&lab, &vm1()), [""; 0]);
}

#[test]
fn our_own_address_is_no_vtep() {
    let mut lab = Lab::new(overlay);
    lab.change(|draft| {
        draft.segments.clear();
        draft.segment("blue", 1, "vx0 5001 192.0.2.1");
        draft.segment("red", 2, "gre0 7 192.0.2.1 192.0.2.2");
    });
    assert_eq!(lab.brief(&vm1()), "vm3");
    assert_eq!(lab.brief(&format!("in_port=vm2,{TO_ALL}")), "gre0:7>192.0.2.2@eth1");
}

#[test]
fn the_underlay_bridge_sends_outer_frames_as_it_sends_all() {
    let mut lab = Lab::new(overlay);
    lab.change(|draft| {
        draft.port("eth9");
        draft.rehome("eth9", "phy");
    });
    let gre = format!("in_port=vm2,{TO_ALL}");
    assert_eq!(lab.brief(&gre), "gre0:7>192.0.2.2@eth1,gre0:7>192.0.2.2@eth9", "flooded");
    let before = lab.decide(&gre).depends;
    lab.send(&format!("in_port=eth9,dl_src={},dl_dst=ff:ff:ff:ff:ff:ff", card("192.0.2.2")));
    assert_eq!(lab.brief(&gre), "gre0:7>192.0.2.2@eth9", "learned");
    let station = Station { segment: SegmentId(0), mac: card("192.0.2.2") };
    let bit = Fdb::dependency(station);
    assert_eq!(before & bit, bit, "so that a cached flow is looked at again");
}

/// The decision that nothing leaves depends on where the next hop was learned to be, too.
#[test]
fn a_way_that_leads_nowhere_is_looked_for_again_when_stations_move() {
    let lab = Lab::new(overlay);
    let gre = format!("in_port=vm2,{TO_ALL}");
    // The next hop, it seems, is the endpoint itself.
    lab.send(&format!("in_port=vtep0,dl_src={},dl_dst=ff:ff:ff:ff:ff:ff", card("192.0.2.2")));
    assert_eq!(lab.brief(&gre), "drop(no-destination)");
    let depends = lab.decide(&gre).depends;
    let key = lab.key(&format!("in_port=eth1,dl_src={},dl_dst=ff:ff:ff:ff:ff:ff", card("192.0.2.2")));
    let moved = translate(lab.view(), &key, &mut Silent).effects;
    let changed = upcall::apply(&moved, &lab.snapshot, &[], lab.now);
    assert_ne!(depends & changed, 0);
    assert_eq!(lab.brief(&gre), "gre0:7>192.0.2.2@eth1");
}

/// The uplink is in a bridge of its own, behind a patch port.
fn two_storeys(draft: &mut Draft) {
    overlay(draft);
    draft.port("down");
    draft.bridge("ex");
    draft.port("vm9");
    draft.port("up");
    draft.rehome("down", "phy");
    draft.rehome("eth1", "ex");
    draft.patch("down", "up");
}

/// Else what the wire sends to the endpoint would be flooded there once the endpoint's last words are forgotten.
#[test]
fn outer_frames_teach_other_bridges_where_the_endpoint_is() {
    let lab = Lab::new(two_storeys);
    let reply = format!("in_port=eth1,udp,udp_dst=4789,nw_dst=192.0.2.1,dl_dst={}", card("192.0.2.1"));
    assert_eq!(lab.brief(&reply), "vm9,tnl_pop(vx0)");
    lab.send(&vm1());
    assert_eq!(lab.brief(&reply), "tnl_pop(vx0)");
    let learned = lab.snapshot.learned[0].as_ref().unwrap();
    assert!(learned.fdb().is_empty(), "in its own bridge that need not be learned");
}

#[test]
fn nobody_takes_an_endpoints_address() {
    let lab = Lab::new(overlay);
    let ours = card("192.0.2.1");
    lab.send(&format!("in_port=eth1,dl_src={ours},dl_dst=ff:ff:ff:ff:ff:ff"));
    let frame = format!("in_port=eth1,udp,udp_dst=4789,nw_dst=192.0.2.1,dl_src={},dl_dst={ours}", mac(9));
    assert_eq!(lab.brief(&frame), "tnl_pop(vx0)");
    // In another segment it is an address like any other.
    lab.send(&format!("in_port=vm3,dl_src={ours},dl_dst=ff:ff:ff:ff:ff:ff"));
    assert_eq!(lab.brief(&format!("in_port=vm1,dl_dst={ours}")), "vm3");
}

#[test]
fn an_address_may_be_that_of_endpoints_in_several_bridges_and_vlans() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.bridge("phy2");
        draft.port("eth2");
        for (name, vlan) in [("vtep7", 7), ("vtep8", 8)] {
            draft.endpoint(name, &["192.0.2.9/24"]).vlan = in_mode(VlanMode::Access, vlan);
        }
    });
    let ours = card("192.0.2.9");
    let frame = |vlan| format!("in_port=eth2,dl_vlan={vlan},dl_src={},dl_dst={ours}", mac(9));
    assert_eq!(lab.brief(&frame(7)), "pop_vlan,vtep7");
    assert_eq!(lab.brief(&frame(8)), "pop_vlan,vtep8");
}

/// Two point-to-point tunnels in the bridge of their own underlay: outer frames flood, but not into tunnels again.
#[test]
fn tunnels_are_not_nested_on_their_way_out() {
    let lab = Lab::new(|draft| {
        draft.bridge("all");
        draft.port("eth1");
        draft.endpoint("vtep0", &["192.0.2.1/24"]);
        draft.port("vm1");
        for n in 2..10 {
            draft.neighbour("vtep0", &format!("192.0.2.{n}"));
            draft.tunnel(&format!("p{n}"), &format!("vxlan remote=192.0.2.{n} key={n}"));
        }
    });
    let broadcast = lab.brief("in_port=vm1,dl_src=02:00:00:00:00:01,dl_dst=ff:ff:ff:ff:ff:ff");
    for n in 2..10 {
        let once = format!("p{n}:{n}>192.0.2.{n}@eth1");
        assert_eq!(broadcast.matches(&once).count(), 1, "{broadcast}");
    }
    // The next hop, it seems, is behind a tunnel: of which it is the far end.
    lab.send(&format!(
        "in_port=p2,tun_id=2,tun_src=192.0.2.2,tun_dst=192.0.2.1,tun_flags=key,dl_src={},dl_dst=ff:ff:ff:ff:ff:ff",
        card("192.0.2.2")
    ));
    lab.send(&format!("{},{FROM_2}", out_of("p2", "192.0.2.2", 2)));
    let unicast = "in_port=vm1,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02";
    assert_eq!(lab.brief(unicast), "drop(tunnel-loop)");
}

/// Each bridge on the way adds a service tag: more than outer headers can have.
#[test]
fn outer_frames_have_at_most_two_tags() {
    let service = || in_mode(VlanMode::Dot1qTunnel, 5);
    let lab = Lab::new(|draft| {
        draft.bridge("int");
        draft.port("vm1");
        draft.tunnel("p2p", "vxlan remote=192.0.2.2");
        draft.bridge("b0");
        draft.endpoint("vtep0", &["192.0.2.1/24"]).vlan = service();
        draft.neighbour("vtep0", "192.0.2.2");
        draft.port("down0");
        for n in 1..3 {
            draft.bridge(&format!("b{n}"));
            draft.port(&format!("up{n}")).vlan = service();
            draft.port(&format!("down{n}"));
        }
        draft.patch("down0", "up1");
        draft.patch("down1", "up2");
    });
    assert_eq!(lab.brief(&vm1()), "drop(tunnel-loop)", "{}", lab.steps(&vm1()));
}

#[test]
fn a_loop_of_patch_ports_under_a_tunnel_ends() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        for (a, b) in [("l1", "l2"), ("l3", "l4"), ("l5", "l6")] {
            for name in [a, b] {
                draft.port(name);
                draft.rehome(name, "phy");
            }
            draft.patch(a, b);
        }
    });
    assert_eq!(lab.brief(&vm1()), "drop(too-deep)");
}

#[test]
fn endpoints_of_both_families_serve_one_segment() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.segments.clear();
        draft.segment("blue", 1, "vx0 5001 192.0.2.2 2001:db8::2");
    });
    assert_eq!(lab.brief(&vm1()), "vx0:5001>192.0.2.2@eth1,vx0:5001>2001:db8::2@eth1,vm3");
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "2001:db8::2", 5001)));
    assert_eq!(
        lab.brief("in_port=vm1,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02"),
        "vx0:5001>2001:db8::2@eth1"
    );
}

/// What takes time in the square of their number does not end.
#[test]
fn a_segment_may_have_a_thousand_vteps() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        draft.route("10.0.0.0/8", "vtep0", "192.0.2.2");
        let vteps: Vec<String> = (0..1000).map(|n| format!("10.0.{}.{}", n / 250, n % 250 + 1)).collect();
        draft.segments.clear();
        draft.segment("blue", 1, &format!("vx0 5001 {}", vteps.join(" ")));
    });
    assert_eq!(lab.decide(&vm1()).actions.len(), 1001);
}

#[test]
fn forged_vteps_raise_few_questions() {
    let lab = Lab::new(|draft| {
        draft.bridge("wide");
        draft.endpoint("vtep1", &["10.0.0.1/8"]);
        overlay(draft);
    });
    for n in 2..250 {
        lab.send(&format!("{},{FROM_2}", out_of("vx0", &format!("10.0.0.{n}"), 5001)));
    }
    let asked = wanted(&lab, &vm1());
    assert!((10..=32).contains(&asked.len()), "{} of 248 are asked for", asked.len());
    assert_eq!(lab.decide(&vm1()).actions.len(), 3, "and who can be reached is");
    let back = "in_port=vm1,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02";
    assert_eq!(wanted(&lab, back), ["10.0.0.249"], "the one that a frame is for always is");
}
