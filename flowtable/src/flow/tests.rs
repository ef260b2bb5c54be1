use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::action::DropReason;
use crate::grounds::Ground;
use crate::megaflow::{Limits, Megaflows};

fn birth(pollers: usize) -> Birth {
    Birth { generation: 1, pollers, now: Instant::from_nanos(77) }
}

fn decision(mask: Mask, actions: &[Action]) -> Decision {
    Decision {
        mask,
        actions: actions.into(),
        effects: Box::new([Effect::Resolve { endpoint: PortId(4), address: [192, 0, 2, 1].into() }]),
        depends: 5,
        rests_on: Grounds::NONE,
        in_port: PortId(3),
        cacheable: true,
    }
}

/// A reader of no table in particular.
fn reader() -> Reader {
    Arc::new(Megaflows::new(Limits { flows: 1, masks: 1 })).reader()
}

fn words() -> impl Strategy<Value = [u64; WORDS]> {
    proptest::array::uniform20(prop_oneof![2 => Just(0), 1 => any::<u64>()])
}

proptest! {
    #[test]
    fn a_flow_tells_what_it_was_made_of(key in words(), mask in words(), pollers in 1usize..40) {
        let (key, mask) = (FlowKey(key), Mask(mask));
        let decision = decision(mask, &[Action::PopVlan, Action::Output(PortId(9))]);
        let flows = [(); 3].map(|()| Flow::new(&key, decision.clone(), birth(pollers)));
        let add = |n: usize, stats: &FlowStats| stats.add(1, n as u64, 1 << (n % 9), Instant::from_nanos(n as u64));
        flows.iter().for_each(|flow| (0..pollers).for_each(|i| add(i, flow.stats(i))));
        for flow in &flows {
            prop_assert_eq!((flow.key(), flow.generation()), (key.masked(&mask), 1), "nothing overlaps");
            prop_assert_eq!(flow.decision(), decision.clone());
            prop_assert!(flow.is_by(&decision, &reader()));
            prop_assert!(flow.matches(&key));
            prop_assert_eq!((flow.totals().frames, flow.shares()), (pollers as u64, 1));
            prop_assert_eq!(flow.totals().bytes, (pollers * (pollers - 1) / 2) as u64);
        }
    }

    #[test]
    fn it_matches_what_agrees_under_the_mask(key in words(), mask in words(), other in words(), mix in words()) {
        let (key, mask) = (FlowKey(key), Mask(mask));
        let other = FlowKey(std::array::from_fn(|i| key.0[i] ^ (other[i] & mix[i] & mask.0[(i + 1) % WORDS])));
        let flow = Flow::new(&key, decision(mask, &[Action::PopVlan]), birth(1));
        prop_assert_eq!(flow.matches(&other), key.masked(&mask) == other.masked(&mask));
    }
}

#[test]
fn counters_of_a_poller_are_next_to_nothing_that_another_touches() {
    let flows = [(); 64]
        .map(|()| Flow::new(&FlowKey::default(), decision(Mask::EMPTY, &[Action::PopVlan]), birth(2)));
    let line = |stats: &FlowStats| std::ptr::from_ref(stats).addr() / 64;
    let own: Vec<usize> = flows.iter().map(|flow| line(flow.stats(0))).collect();
    let others = flows.iter().flat_map(|flow| [line(flow.stats(1)), flow.0.addr().get() / 64]);
    let near = others.filter(|other| own.iter().any(|own| own.abs_diff(*other) <= 1)).count();
    assert!(near < flows.len() / 4, "{near}: columns of a table meet at their ends only");
}

#[test]
fn another_decision_makes_another_flow() {
    let known = decision(Mask::EXACT, &[Action::Output(PortId(1))]);
    let flow = Flow::new(&FlowKey::default(), known.clone(), birth(1));
    let others = [
        Decision { mask: Mask::EMPTY, ..known.clone() },
        Decision { actions: [Action::Output(PortId(2))].into(), ..known.clone() },
        Decision { effects: Box::new([]), ..known.clone() },
        Decision { depends: 6, ..known.clone() },
        Decision { rests_on: [Ground::Routes].into_iter().collect(), ..known.clone() },
        Decision { in_port: PortId(4), ..known.clone() },
        Decision { cacheable: false, ..known },
    ];
    assert!(others.iter().all(|other| !flow.is_by(other, &reader())));
}

#[test]
fn the_last_share_frees_what_the_flow_owns() {
    let actions: List<Action> = [Action::PopVlan, Action::Drop(DropReason::Vlan)].into();
    let decision = Decision { actions: actions.clone(), ..decision(Mask::EXACT, &[]) };
    let flow = Flow::new(&FlowKey([7; WORDS]), decision, birth(2));
    let share = flow.clone();
    assert!(flow.shares() == 2 && actions.is_shared());
    drop(flow);
    assert_eq!((share.shares(), share.key()), (1, FlowKey([7; WORDS])));
    drop(share);
    assert!(!actions.is_shared());
}

#[test]
fn what_was_never_used_was_last_used_when_it_was_made() {
    let flow = Flow::new(&FlowKey::default(), decision(Mask::EMPTY, &[Action::PopVlan]), birth(3));
    assert_eq!((flow.last_use(), flow.totals().used), (Instant::from_nanos(77), None));
    let later = Instant::from_nanos(77) + Duration::from_secs(1);
    flow.stats(2).add(1, 60, 0, later);
    assert_eq!((flow.last_use(), flow.totals().used), (later, Some(later)));
}

#[test]
fn nobody_confirms_a_flow_for_older_tables() {
    let flow = Flow::new(&FlowKey::default(), decision(Mask::EXACT, &[Action::PopVlan]), birth(1));
    assert!(flow.confirm(1, 1) && flow.confirm(1, 3));
    assert!(!flow.confirm(3, 2));
    assert_eq!(flow.generation(), 3);
}
