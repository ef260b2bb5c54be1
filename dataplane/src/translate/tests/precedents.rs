//! What was decided for a frame between two stations, and for whom else that holds. That it is always what a fresh decision
//! would be is shown in [`super::churn`].

use std::net::IpAddr;

use encap::field::{EtherType, MacAddr};
use flowtable::field::Field;
use flowtable::flow::Birth;
use flowtable::id::{BridgeId, PortId, SegmentId};
use flowtable::key::FlowKey;

use super::lab::{Lab, card, ip, mac};
use super::{TO_2, out_of, overlay};
use crate::segment::Network;
use crate::translate::precedent::Precedents;
use crate::translate::{Silent, translate};

/// Hosts 10 to 19 are in blue behind VTEP 192.0.2.2, 20 to 29 behind 192.0.2.3, and 30 to 39 are behind `vm1`.
fn taught() -> Lab {
    let lab = Lab::new(overlay);
    for n in 10..40 {
        let way = match n / 10 {
            1 => out_of("vx0", "192.0.2.2", 5001),
            2 => out_of("vx0", "192.0.2.3", 5001),
            _ => "in_port=vm1".into(),
        };
        lab.send(&format!("{way},dl_src={},dl_dst=ff:ff:ff:ff:ff:ff", mac(n)));
    }
    lab
}

fn between(key: FlowKey, (from, to): (u8, u8)) -> FlowKey {
    key.with(Field::EthSrc, mac(from)).with(Field::EthDst, mac(to))
}

/// How many precedents there are more when the frames were decided, as they should be.
#[track_caller]
fn more(precedents: &mut Precedents, lab: &Lab, keys: impl IntoIterator<Item = FlowKey>) -> usize {
    let before = precedents.count();
    for key in keys {
        assert_eq!(precedents.decide(lab.view(), &key), translate(lab.view(), &key, &mut Silent));
    }
    precedents.count() - before
}

#[test]
fn one_translation_serves_all_pairs_of_stations_that_live_at_the_same_places() {
    let (lab, mut precedents) = (taught(), Precedents::default());
    let from_vm = lab.key(&format!("in_port=vm1,{TO_2}"));
    let pairs = |to: u8| (30..40).flat_map(move |from| (to..to + 10).map(move |to| (from, to)));
    let out = |to| pairs(to).map(|pair| between(from_vm, pair)).collect::<Vec<_>>();
    assert_eq!(more(&mut precedents, &lab, out(10)), 1, "to one VTEP");
    assert_eq!(more(&mut precedents, &lab, out(20)), 1, "to another");
    assert_eq!(more(&mut precedents, &lab, out(40)), 1, "to whom nobody knows");
    assert_eq!(more(&mut precedents, &lab, out(10)), 0);
    let into = lab.key(&format!("{},{TO_2}", out_of("vx0", "192.0.2.2", 5001)));
    let back = pairs(10).map(|(vm, far)| between(into, (far, vm)));
    assert_eq!(more(&mut precedents, &lab, back), 1, "out of the tunnel");
}

#[test]
fn what_the_decision_looked_at_besides_is_told_apart() {
    let (lab, mut precedents) = (taught(), Precedents::default());
    let key = between(lab.key(&format!("in_port=vm1,{TO_2}")), (30, 10));
    let ip = key.with(Field::EthType, EtherType::IPV4);
    assert_eq!(more(&mut precedents, &lab, [key]), 1);
    assert_eq!(more(&mut precedents, &lab, [ip, ip.with(Field::IpEcn, 1u8), ip.with(Field::IpEcn, 2u8)]), 3);
    assert_eq!(more(&mut precedents, &lab, [ip.with(Field::IpTtl, 7u8)]), 0, "which nobody looks at");
}

#[test]
fn what_is_learned_or_published_meanwhile_counts() {
    let (mut lab, mut precedents) = (taught(), Precedents::default());
    let key = lab.key(&format!("in_port=vm1,{TO_2}"));
    let (to_far, to_nobody) = (between(key, (30, 10)), between(key, (30, 40)));
    more(&mut precedents, &lab, [to_far, to_nobody]);
    lab.send(&format!("in_port=vm3,dl_src={},dl_dst=ff:ff:ff:ff:ff:ff", mac(10)));
    assert_eq!(more(&mut precedents, &lab, [to_far]), 1, "it moved");
    let learned = lab.snapshot.learned(BridgeId(1)).unwrap();
    learned.vteps().learn(SegmentId(1), ip("192.0.2.9"), lab.now);
    let flood = precedents.decide(lab.view(), &to_nobody);
    assert_eq!(flood, translate(lab.view(), &to_nobody, &mut Silent), "one more gets what all get");
    lab.change(|draft| draft.entry("vm3").mtu = 1400);
    assert_eq!(precedents.decide(lab.view(), &to_far), translate(lab.view(), &to_far, &mut Silent));
    assert_eq!(precedents.count(), 1, "those of other tables are gone");
}

#[test]
fn addresses_that_are_somebodys_in_particular_are_no_precedent() {
    let (lab, mut precedents) = (taught(), Precedents::default());
    let key = between(lab.key(&format!("in_port=vm1,{TO_2}")), (30, 10));
    let odd = [
        card("192.0.2.1"),
        MacAddr([0xff; 6]),
        MacAddr([1, 0x80, 0xc2, 0, 0, 0]),
        MacAddr([0, 0xe0, 0x2b, 0, 0, 4]),
    ];
    let frames = odd.iter().flat_map(|mac| [Field::EthSrc, Field::EthDst].map(|at| key.with(at, *mac)));
    assert_eq!(more(&mut precedents, &lab, frames.chain([between(key, (30, 30))])), 0);
}

#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let lab = Lab::new(|draft| {
        overlay(draft);
        let all = || (2..200).map(|n| IpAddr::from([192, 0, 2, n]));
        let Network::Tunnel { vteps, .. } = &mut draft.named("blue").network else { panic!("blue") };
        *vteps = all().collect();
        draft.underlay.neighbours.extend(all().map(|vtep| ((PortId(1), vtep), card("192.0.2.2"))));
    });
    let mut precedents = Precedents::default();
    let key = between(lab.key(&format!("in_port=vm1,{TO_2}")), (30, 10));
    for n in 0x9000..0x9100 {
        let flood = precedents.decide(lab.view(), &key.with(Field::EthType, EtherType(n)));
        assert!(flood.actions.len() > 190);
    }
    assert!((1..8192 / 190).contains(&precedents.count()));
}

#[test]
fn what_was_asked_in_vain_takes_room_too() {
    let (lab, mut precedents) = (taught(), Precedents::default());
    let learned = lab.snapshot.learned(BridgeId(1)).unwrap();
    // Nobody knows where these are.
    (50..250).for_each(|n| _ = learned.vteps().learn(SegmentId(1), IpAddr::from([192, 0, 2, n]), lab.now));
    let key = between(lab.key(&format!("in_port=vm1,{TO_2}")), (30, 99));
    for n in 0x9000..0x9100 {
        let key = key.with(Field::EthType, EtherType(n));
        let flood = precedents.decide(lab.view(), &key);
        assert!(flood.actions.len() < 10);
        assert_eq!(flood, translate(lab.view(), &key, &mut Silent));
    }
    assert!((1..8192 / 200 + 1).contains(&precedents.count()));
}

/// What a flow does; the kind that its list is of.
fn kind(precedents: &mut Precedents, lab: &Lab, key: FlowKey) -> u64 {
    precedents.decide(lab.view(), &key).actions.kind()
}

#[test]
fn flows_are_of_a_kind_if_only_stations_and_tables_tell_them_apart() {
    let (mut lab, mut precedents) = (taught(), Precedents::default());
    let key = between(lab.key(&format!("in_port=vm1,{TO_2}")), (30, 10));
    let ours = kind(&mut precedents, &lab, key);
    assert_ne!(ours, 0);
    for pair in [(31, 10), (30, 11), (33, 20)] {
        assert_eq!(kind(&mut precedents, &lab, between(key, pair)), ours, "{pair:?}");
    }
    let ip = key.with(Field::EthType, EtherType::IPV4);
    let others = [ip, ip.with(Field::IpEcn, 1u8), between(lab.key(&format!("in_port=vm3,{TO_2}")), (30, 10))];
    for other in others {
        assert_ne!(kind(&mut precedents, &lab, other), ours);
    }
    lab.change(|draft| draft.entry("vm3").mtu = 1400);
    assert_eq!(kind(&mut precedents, &lab, key), ours, "whatever the tables");
    let all = between(key, (30, 0)).with(Field::EthDst, MacAddr([0xff; 6]));
    assert_eq!(kind(&mut precedents, &lab, all), 0, "not by a precedent");
    lab.change(|draft| drop(draft.underlay.endpoints.remove(&PortId(1))));
    assert_ne!(kind(&mut precedents, &lab, key), ours, "somebody may be special who was not");
}

#[test]
fn who_sends_ever_new_kinds_of_frames_has_few_lists_of_a_kind() {
    let (lab, mut precedents) = (taught(), Precedents::default());
    let key = between(lab.key(&format!("in_port=vm1,{TO_2}")), (30, 10));
    let keys = (0x9000..0x9fff).map(|n| key.with(Field::EthType, EtherType(n)));
    let of_kinds = keys.filter(|key| kind(&mut precedents, &lab, *key) != 0).count();
    assert!((1000..=2048).contains(&of_kinds), "{of_kinds}");
}

#[test]
fn nothing_is_translated_to_find_what_a_flow_follows() {
    let (mut lab, mut precedents) = (taught(), Precedents::default());
    let key = between(lab.key(&format!("in_port=vm1,{TO_2}")), (30, 10));
    let decision = precedents.decide(lab.view(), &key);
    let birth = Birth { generation: lab.snapshot.generation, pollers: 1, now: lab.now };
    let flow = precedents.flow(&key, decision.clone(), birth);
    lab.change(|draft| draft.entry("vm1").mtu = 1400);
    let kind = decision.actions.kind();
    assert_eq!(precedents.followed(lab.view(), (&flow, kind), &key), None, "there is no precedent yet");
    assert_eq!(precedents.count(), 0);
    let today = precedents.decide(lab.view(), &key);
    let which = precedents.followed(lab.view(), (&flow, kind), &key).unwrap();
    assert_eq!(precedents.actions(which), Some(&*today.actions));
}
