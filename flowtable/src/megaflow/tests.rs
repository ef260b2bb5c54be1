//! The table against a linear scan, its limits, its fairness, and readers beside a writer.

use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::action::{Action, DropReason};
use crate::flow::{Amendment, Birth, DEAD, Decision, Seat};
use crate::grounds::Ground;
use crate::intern::Interner;
use crate::key::{FlowKey, WORDS};
use crate::list::List;
use crate::time::Instant;

pub(super) const ROOMY: Limits = Limits { flows: 100_000, masks: 128 };

pub(super) fn key(words: &[(usize, u64)]) -> FlowKey {
    let mut key = FlowKey::default();
    words.iter().for_each(|(i, word)| key.0[*i] = *word);
    key
}

pub(super) fn mask(words: &[(usize, u64)]) -> Mask {
    Mask(key(words).0)
}

pub(super) fn flow(key: &FlowKey, mask: &Mask, port: u32) -> Flow {
    let decision = Decision {
        mask: *mask,
        actions: [Action::Drop(DropReason::NoDestination)].into(),
        effects: Box::new([]),
        in_port: PortId(port),
        depends: 0,
        rests_on: Default::default(),
        cacheable: true,
    };
    let birth = Birth { generation: 1, pollers: 1, now: Instant::ZERO };
    Flow::new(key, decision, birth)
}

/// Flows that differ in word 0, which is all that their mask looks at.
fn one_word(n: u64, port: u32) -> Flow {
    flow(&key(&[(0, n)]), &mask(&[(0, u64::MAX)]), port)
}

fn used(flow: &Flow, nanos: u64) {
    flow.stats(0).add(1, 64, 0, Instant::from_nanos(nanos));
}

/// What every history must keep true.
fn check(table: &Arc<Megaflows>) {
    let flows = table.snapshot();
    assert_eq!(flows.len(), table.len());
    let masks: std::collections::HashSet<_> = flows.iter().map(|flow| *flow.mask()).collect();
    assert_eq!(masks.len(), table.masks());
    for port in 0..8 {
        let held = flows.iter().filter(|flow| flow.in_port() == PortId(port)).count();
        assert_eq!(table.port_len(PortId(port)), held);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(Mask, FlowKey, u32),
    Remove(usize),
    Lookup(FlowKey),
    Quiesce,
    Clear,
}

/// Keys and masks from a small world, so that histories collide in every way.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = prop::collection::vec(0u64..4, 4)
        .prop_map(|w| key(&[(0, w[0]), (3, w[1] << 60), (7, w[2]), (WORDS - 1, w[3])]));
    let bits = prop::sample::select(vec![0, 1, 3, u64::MAX]);
    let mask = prop::collection::vec(bits, 4)
        .prop_map(|w| mask(&[(0, w[0]), (3, w[1] << 60), (7, w[2]), (WORDS - 1, w[3])]));
    let step = prop_oneof![
        6 => (mask, key.clone(), 0u32..3).prop_map(|(m, k, p)| Step::Insert(m, k, p)),
        4 => any::<usize>().prop_map(Step::Remove),
        8 => key.prop_map(Step::Lookup),
        2 => Just(Step::Quiesce),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn megaflow_is_a_linear_scan(steps in steps()) {
        let table = Arc::new(Megaflows::new(ROOMY));
        let mut reader = table.reader();
        let mut scan: Vec<Flow> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(mask, key, port) => {
                    let new = flow(&key, &mask, port);
                    let same = scan.iter().position(|f| f.key() == new.key() && *f.mask() == mask);
                    match (table.insert(new.clone()), same) {
                        (Inserted::Installed, None) => {}
                        (Inserted::Replaced(old), Some(at)) => {
                            prop_assert!(old == scan.swap_remove(at));
                            prop_assert_eq!(old.generation(), DEAD);
                        }
                        (outcome, _) => prop_assert!(false, "{outcome:?}"),
                    }
                    scan.push(new);
                }
                Step::Remove(at) if !scan.is_empty() => {
                    let old = scan.swap_remove(at % scan.len());
                    prop_assert_eq!(table.remove(&old), Removed::Removed);
                    prop_assert_eq!(table.remove(&old), Removed::Absent);
                    prop_assert_eq!(old.generation(), DEAD);
                }
                Step::Remove(_) => {}
                Step::Lookup(key) => {
                    let matching = scan.iter().any(|f| key.masked(f.mask()) == f.key());
                    let found = reader.lookup(&key);
                    prop_assert_eq!(found.is_some(), matching);
                    if let Some(found) = found {
                        prop_assert_eq!(key.masked(found.mask()), found.key());
                        prop_assert!(scan.iter().any(|f| *f == found.share()));
                    }
                }
                Step::Quiesce => reader.quiesce(),
                Step::Clear => {
                    prop_assert_eq!(table.clear(), scan.len());
                    scan.clear();
                }
            }
            prop_assert_eq!(table.len(), scan.len());
        }
        check(&table);
        drop(reader);
        table.reclaim(usize::MAX);
        for flow in scan {
            table.lock().remove(&flow);
            table.reclaim(usize::MAX);
            prop_assert_eq!(flow.shares(), 1, "a removed flow is freed");
        }
        prop_assert_eq!(table.masks(), 0);
    }
}

#[test]
fn grows_and_shrinks_and_frees_everything() {
    let table = Arc::new(Megaflows::new(ROOMY));
    let reader = table.reader();
    let flows: Vec<_> = (0..20_000).map(|n| one_word(n, 1)).collect();
    for flow in &flows {
        assert!(matches!(table.insert(flow.clone()), Inserted::Installed));
    }
    assert!((0..20_000).all(|n| reader.lookup(&key(&[(0, n), (1, 9)])).is_some()));
    assert!(reader.lookup(&key(&[(0, 20_000)])).is_none());
    check(&table);
    for flow in &flows {
        assert_eq!(table.remove(flow), Removed::Removed);
    }
    assert_eq!((table.len(), table.masks()), (0, 0));
    assert!(flows[0].shares() > 1, "the reader holds up reclamation");
    drop(reader);
    table.reclaim(usize::MAX);
    assert!(flows.iter().all(|flow| flow.shares() == 1));
}

#[test]
fn dropping_the_table_frees_the_flows() {
    let table = Arc::new(Megaflows::new(ROOMY));
    let flows: Vec<_> = (0..100).map(|n| one_word(n, 1)).collect();
    flows.iter().for_each(|flow| drop(table.insert(flow.clone())));
    table.remove(&flows[7]);
    drop(table);
    assert!(flows.iter().all(|flow| flow.shares() == 1));
}

#[test]
fn a_mask_that_is_one_too_many_is_refused_until_another_goes() {
    let table = Arc::new(Megaflows::new(Limits { flows: 100, masks: 2 }));
    let by_word = |i| flow(&key(&[(i, 1)]), &mask(&[(i, 1)]), 1);
    let first = by_word(0);
    table.insert(first.clone());
    table.insert(by_word(1));
    assert!(matches!(table.insert(by_word(2)), Inserted::MaskLimit));
    assert_eq!(table.counters().mask_limit, 1);
    table.remove(&first);
    assert!(matches!(table.insert(by_word(2)), Inserted::Installed));
    check(&table);
}

#[test]
fn when_full_the_biggest_holder_loses_its_oldest() {
    let table = Arc::new(Megaflows::new(Limits { flows: 10, masks: 4 }));
    let theirs: Vec<_> = (0..10).map(|n| one_word(n, 1)).collect();
    for (age, flow) in theirs.iter().enumerate() {
        used(flow, 100 - age as u64);
        table.insert(flow.clone());
    }
    assert!(matches!(table.insert(one_word(10, 1)), Inserted::Full), "the biggest holder evicts nobody");
    for n in 11..16 {
        let Inserted::Evicted(old) = table.insert(one_word(n, 2)) else { panic!("port 2 holds fewer") };
        assert_eq!((old.in_port(), old.generation()), (PortId(1), DEAD));
        check(&table);
    }
    assert!(matches!(table.insert(one_word(16, 2)), Inserted::Full), "both hold five");
    assert!(matches!(table.insert(one_word(17, 3)), Inserted::Evicted(_)));
    assert_eq!(table.counters(), Counters { evicted: 6, full: 2, ..Counters::default() });
}

#[test]
fn the_victim_is_one_that_was_not_used_lately() {
    let table = Arc::new(Megaflows::new(Limits { flows: 100, masks: 4 }));
    for n in 0..100 {
        let flow = one_word(n, 1);
        used(&flow, n);
        table.insert(flow);
    }
    let mut ranks: Vec<u64> = (100..140)
        .map(|n| match table.insert(one_word(n, 2)) {
            Inserted::Evicted(old) => old.totals().used.unwrap().as_nanos(),
            outcome => panic!("{outcome:?}"),
        })
        .collect();
    ranks.sort_unstable();
    assert!(ranks[30] < 50, "three in four from the older half: {ranks:?}");
}

#[test]
fn a_reader_that_never_quiesces_cannot_make_the_table_grow_without_bound() {
    let table = Arc::new(Megaflows::new(Limits { flows: 100, masks: 4 }));
    let mut reader = table.reader();
    let same = key(&[(0, 1)]);
    let mut inserts = (0..100_000).map(|_| table.insert(flow(&same, &mask(&[(0, 1)]), 1)));
    assert!(inserts.any(|outcome| matches!(outcome, Inserted::Full)));
    reader.quiesce();
    table.reclaim(usize::MAX);
    assert!(matches!(table.insert(one_word(1, 1)), Inserted::Installed));
}

#[test]
fn who_writes_keeps_other_writers_out_but_no_reader() {
    let table = Arc::new(Megaflows::new(ROOMY));
    let reader = table.reader();
    let there = one_word(1, 1);
    table.insert(there.clone());
    let writer = table.lock();
    assert!(matches!(table.insert(one_word(2, 1)), Inserted::Busy));
    assert_eq!(table.remove(&there), Removed::Busy);
    assert_eq!(there.generation(), DEAD, "dead in any case");
    assert!(reader.lookup(&there.key()).is_some());
    assert_eq!(table.snapshot().len(), 1);
    drop(writer);
    assert_eq!(table.counters().busy, 2);
    assert_eq!(table.remove(&there), Removed::Removed);
}

#[test]
fn a_visit_in_small_steps_sees_what_stays_exactly_once() {
    let table = Arc::new(Megaflows::new(ROOMY));
    let stays: Vec<_> =
        (0..3000).map(|n| flow(&key(&[(n % 3, n as u64 / 3)]), &mask(&[(n % 3, u64::MAX)]), 1)).collect();
    stays.iter().for_each(|flow| drop(table.insert(flow.clone())));
    let mut reader = table.reader();
    let (mut seen, mut steps, mut next) = (Vec::new(), 0, Some(Cursor::default()));
    while let Some(cursor) = next {
        let mut this = 0;
        next = reader.visit(cursor, 10, |flow| {
            this += 1;
            seen.push(flow.share());
        });
        assert!(this < 100, "10 and a shard");
        let guest = one_word(10_000 + steps, 2);
        table.insert(guest);
        steps += 1;
        reader.quiesce();
    }
    for flow in &stays {
        assert_eq!(seen.iter().filter(|seen| *seen == flow).count(), 1);
    }
}

#[test]
fn readers_beside_a_writer_always_find_what_stays() {
    let table = Arc::new(Megaflows::new(ROOMY));
    let masks: Vec<_> = (1..5).map(|i| mask(&[(0, u64::MAX), (i, 1)])).collect();
    let stays: Vec<_> = (0..256).map(|n| flow(&key(&[(0, n)]), &masks[n as usize % 4], 1)).collect();
    stays.iter().for_each(|flow| drop(table.insert(flow.clone())));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = table.reader();
                while !done.load(Ordering::Relaxed) {
                    for n in 0..2048 {
                        let wanted = key(&[(0, n)]);
                        let found = reader.lookup(&wanted);
                        assert!(n >= 256 || found.is_some_and(|flow| flow.generation() != DEAD));
                        assert!(found.is_none_or(|flow| flow.key().words()[0] == n));
                    }
                    reader.park(|| ());
                    reader.quiesce();
                }
            });
        }
        for round in 0..20 {
            let guests: Vec<_> =
                (256..2048).map(|n| flow(&key(&[(0, n)]), &masks[(n + round) as usize % 4], 2)).collect();
            guests.iter().for_each(|flow| drop(table.insert(flow.clone())));
            guests.iter().for_each(|flow| assert_eq!(table.remove(flow), Removed::Removed));
        }
        done.store(true, Ordering::Relaxed);
    });
    check(&table);
    table.reclaim(usize::MAX);
    assert!(stays.iter().all(|flow| flow.shares() == 2), "theirs and ours");
}

/// A flow of this reader's poller, and what it is amended to.
fn amendable(reader: &Reader, n: u64) -> (Flow, Amendment) {
    let plain = one_word(n, 1);
    let birth = Birth { generation: 1, pollers: 2, now: Instant::from_nanos(5) };
    let flow = Interner::at(reader.home()).flow(&plain.key(), plain.decision(), birth);
    let actions = [Action::PopVlan, Action::Output(PortId(n as u32))].into();
    (flow, Amendment { actions, depends: 6, rests_on: [Ground::Routes].into_iter().collect() })
}

#[test]
fn an_amended_flow_stays_where_it_is_with_its_counters() {
    let table = Arc::new(Megaflows::new(ROOMY));
    let reader = table.reader().counting(Seat { index: 1, pollers: 2 });
    let (flow, now) = amendable(&reader, 7);
    table.insert(flow.clone());
    flow.stats(1).add(3, 180, 2, Instant::from_nanos(9));
    assert!(!reader.amend(&flow, (2, 3), now.clone()), "it is of another generation");
    assert!(!reader.amend(&flow, (1, DEAD), now.clone()));
    assert_eq!(reader.actions_at(&flow, 1), Some(&*flow.decision().actions));
    assert!(reader.amend(&flow, (1, 3), now.clone()));
    assert_eq!((reader.actions_at(&flow, 1), reader.actions_at(&flow, 3)), (None, Some(&*now.actions)));
    let expected =
        Decision { actions: now.actions, depends: 6, rests_on: now.rests_on, ..one_word(7, 1).decision() };
    assert!(flow.is_by(&expected, &reader));
    assert_eq!((flow.decision(), flow.totals().frames), (expected, 3));
    assert!(reader.lookup(&key(&[(0, 7)])).is_some_and(|found| *found == flow));
}

#[test]
fn only_the_poller_whose_flow_it_is_amends_it_and_nobody_a_dead_one() {
    let (table, other) = (Arc::new(Megaflows::new(ROOMY)), Arc::new(Megaflows::new(ROOMY)));
    let reader = table.reader().counting(Seat { index: 1, pollers: 2 });
    let (flow, now) = amendable(&reader, 7);
    for stranger in [table.reader(), other.reader().counting(Seat { index: 1, pollers: 2 })] {
        assert!(!stranger.amend(&flow, (1, 2), now.clone()));
    }
    assert!(other.reader().actions(&flow).is_none(), "nobody keeps for it what the flow did");
    let plain = one_word(8, 1);
    assert!(!reader.amend(&plain, (1, 2), now.clone()));
    assert!(reader.actions(&plain).is_some());
    flow.kill();
    assert!(!reader.amend(&flow, (DEAD, 2), now.clone()) && !reader.amend(&flow, (1, 2), now));
    assert!(!flow.confirm(1, 2) && !flow.confirm(DEAD, 2));
}

#[test]
fn what_amended_flows_did_is_freed_when_all_readers_have_passed() {
    let table = Arc::new(Megaflows::new(ROOMY));
    let (mut reader, mut slow) = (table.reader(), table.reader());
    let (flow, now) = amendable(&reader, 7);
    let before = flow.actions();
    assert!(reader.amend(&flow, (1, 2), now.clone()));
    reader.quiesce();
    table.reclaim(usize::MAX);
    assert!(before.is_shared(), "one reader may be reading it");
    slow.quiesce();
    reader.quiesce();
    table.reclaim(usize::MAX);
    assert!(!before.is_shared());
    assert!(reader.amend(&flow, (2, 3), now));
    drop((reader, slow));
    table.reclaim(usize::MAX);
    assert_eq!(flow.generation(), 3);
}

#[test]
fn a_reader_that_never_quiesces_cannot_make_what_flows_did_grow_without_bound() {
    let table = Arc::new(Megaflows::new(Limits { flows: 2, masks: 1 }));
    let (mut owner, mut slow) = (table.reader(), table.reader());
    let (flow, first) = amendable(&owner, 7);
    let mut amend_all = |from: u64| {
        (from..from + 10_000)
            .take_while(|from| {
                let now = Amendment { actions: does(*from), ..first.clone() };
                owner.quiesce();
                owner.amend(&flow, (*from, from + 1), now)
            })
            .count()
    };
    let amended = amend_all(1);
    assert!((LIMBO..=2 * LIMBO + 2).contains(&amended), "{amended}");
    slow.quiesce();
    assert!(table.reclaim(usize::MAX) >= LIMBO);
    assert_ne!(amend_all(1 + amended as u64), 0, "and goes on");
}

/// One poller amends all the time, others follow: what they do is of the generation that they follow by.
#[test]
fn readers_beside_who_amends_see_one_generation() {
    const GENERATIONS: u64 = if cfg!(miri) { 40 } else { 20_000 };
    let table = Arc::new(Megaflows::new(ROOMY));
    let mut owner = table.reader();
    let (flow, first) = amendable(&owner, 1);
    assert!(owner.amend(&flow, (1, 2), Amendment { actions: does(2), ..first.clone() }));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = table.reader();
                while !stop.load(Ordering::Relaxed) {
                    let generation = flow.generation();
                    // Not of one that is being amended just now.
                    if generation <= GENERATIONS
                        && let Some(actions) = reader.actions_at(&flow, generation)
                    {
                        assert_eq!(*actions, *does(generation));
                    }
                    assert!(matches!(*flow.actions(), [Action::Output(_)]));
                    reader.quiesce();
                }
            });
        }
        for generation in 3..GENERATIONS {
            let now = Amendment { actions: does(generation), ..first.clone() };
            assert!(owner.amend(&flow, (generation - 1, generation), now));
            owner.quiesce();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn does(generation: u64) -> List<Action> {
    [Action::Output(PortId(generation as u32))].into()
}
