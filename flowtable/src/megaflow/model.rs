//! Model checking: `cargo test -p flowtable --features loom --release model`.
//!
//! Every flow has a share that the model keeps, so that a count of one says that the table has freed it.

use loom::thread;

use super::*;
use crate::action::{Action, DropReason};
use crate::flow::{Amendment, Birth, DEAD, Decision};
use crate::intern::Interner;
use crate::key::FlowKey;
use crate::list::List;
use crate::time::Instant;

fn flow(word: u64) -> Flow {
    flow_by(&mut Interner::default(), word)
}

fn flow_by(interner: &mut Interner, word: u64) -> Flow {
    let mut key = FlowKey::default();
    key.0[0] = word;
    let decision = Decision {
        mask: Mask(std::array::from_fn(|i| if i == 0 { u64::MAX } else { 0 })),
        actions: [Action::Drop(DropReason::NoDestination)].into(),
        effects: Box::new([]),
        in_port: PortId(1),
        depends: 0,
        rests_on: Default::default(),
        cacheable: true,
    };
    interner.flow(&key, decision, Birth { generation: 1, pollers: 1, now: Instant::ZERO })
}

fn table(flows: &[Flow]) -> Arc<Megaflows> {
    let table = Arc::new(Megaflows::new(Limits { flows: 16, masks: 1 }));
    flows.iter().for_each(|flow| assert!(matches!(table.insert(flow.clone()), Inserted::Installed)));
    table
}

/// Looks a key up, lets the others run, and asserts that what was found is not freed meanwhile.
fn look(reader: &Reader, key: &FlowKey) -> Option<Flow> {
    let found = reader.lookup(key)?;
    thread::yield_now();
    let share = found.share();
    assert!(share.shares() > 2, "the model's, ours, and the table's or its limbo's");
    Some(share)
}

/// Runs `read` beside `write`.
fn beside(before: &[Flow], read: impl FnOnce(Reader) + 'static, write: impl FnOnce(&Megaflows)) {
    let table = table(before);
    let reader = table.reader();
    let reading = thread::spawn(move || read(reader));
    write(&table);
    reading.join().unwrap();
    table.reclaim(usize::MAX);
    assert_eq!(table.snapshot().len(), table.len());
}

#[test]
fn a_removed_flow_is_found_or_not_but_never_freed_under_a_reader() {
    loom::model(|| {
        let old = flow(1);
        let key = old.key();
        let keep = old.clone();
        let read = move |mut reader: Reader| {
            let first = look(&reader, &key).is_some();
            reader.quiesce();
            let second = look(&reader, &key).is_some();
            assert!(first || !second, "what was gone does not come back");
        };
        beside(&[old], read, |table| assert_eq!(table.remove(&keep), Removed::Removed));
        assert_eq!(keep.shares(), 1, "freed in the end");
    });
}

#[test]
fn a_replaced_flow_or_its_successor_is_always_found() {
    loom::model(|| {
        let (old, new) = (flow(1), flow(1));
        let key = old.key();
        let (keep_old, keep_new) = (old.clone(), new.clone());
        let news = new.clone();
        let read = move |mut reader: Reader| {
            let first = look(&reader, &key).expect("one of the two is there");
            reader.quiesce();
            let second = look(&reader, &key).expect("one of the two is there");
            assert!(first != news || second == news, "time runs forward");
        };
        beside(&[old], read, |table| assert!(matches!(table.insert(new), Inserted::Replaced(_))));
        assert_eq!(keep_old.shares(), 1);
        drop(keep_new);
    });
}

#[test]
fn a_flow_is_found_while_its_shard_is_copied() {
    loom::model(|| {
        let flows: Vec<_> = (1..4).map(flow).collect();
        let keep = flows.clone();
        let key = flows[1].key();
        let read = move |reader: Reader| assert!(look(&reader, &key).is_some());
        beside(&flows, read, |table| assert!(matches!(table.insert(flow(4)), Inserted::Installed)));
        drop(keep);
    });
}

#[test]
fn two_writers_and_a_reader_agree() {
    loom::model(|| {
        let table = table(&[]);
        let news: Vec<_> = (1..3).map(flow).collect();
        let writers: Vec<_> = news
            .iter()
            .map(|new| {
                let (table, new) = (Arc::clone(&table), new.clone());
                thread::spawn(move || matches!(table.insert(new), Inserted::Installed))
            })
            .collect();
        let reader = table.reader();
        let _ = look(&reader, &news[0].key());
        let installed: Vec<bool> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        for (new, installed) in news.iter().zip(&installed) {
            assert_eq!(reader.lookup(&new.key()).is_some(), *installed, "busy, or there");
        }
        assert!(installed.contains(&true));
    });
}

/// What a flow does by the tables of a generation.
fn does(generation: u64) -> List<Action> {
    [Action::Output(PortId(generation as u32))].into()
}

fn amendment(generation: u64) -> Amendment {
    Amendment { actions: does(generation), depends: generation, rests_on: Default::default() }
}

#[test]
fn nobody_follows_by_one_generation_what_was_decided_by_another() {
    loom::model(|| {
        let table = table(&[]);
        let owner = table.reader();
        let flow = flow_by(&mut Interner::at(owner.home()), 1);
        let (reader, theirs) = (table.reader(), flow.clone());
        let expected = [flow.actions(), does(2)];
        let reading = thread::spawn(move || {
            for generation in [1, 2] {
                if theirs.generation() == generation
                    && let Some(actions) = reader.actions_at(&theirs, generation)
                {
                    assert_eq!(*actions, *expected[generation as usize - 1]);
                }
            }
            // The reader stays a member until what was retired is handed over.
            reader
        });
        assert!(owner.amend(&flow, (1, 2), amendment(2)));
        drop(reading.join().unwrap());
        assert_eq!((flow.generation(), flow.depends()), (2, 2));
    });
}

/// What a flow did is not freed under who reads it.
#[test]
fn what_an_amended_flow_did_is_kept_for_its_readers() {
    loom::model(|| {
        let table = table(&[]);
        let mut owner = table.reader();
        let mut interner = Interner::at(owner.home());
        let flow = flow_by(&mut interner, 1);
        drop(interner); // which has a share
        let before = flow.actions();
        let (mut reader, theirs, list) = (table.reader(), flow.clone(), before.clone());
        let reading = thread::spawn(move || {
            if let Some(actions) = reader.actions(&theirs)
                && std::ptr::eq(actions, &*list)
            {
                thread::yield_now();
                assert!(list.shares() > 2, "ours, the model's, and the flow's or the limbo's");
            }
            reader.quiesce();
        });
        assert!(owner.amend(&flow, (1, 2), amendment(2)));
        owner.quiesce();
        table.reclaim(usize::MAX);
        reading.join().unwrap();
        owner.quiesce();
        table.reclaim(usize::MAX);
        assert_eq!(before.shares(), 1, "freed in the end");
    });
}

/// A flow that is removed while it is amended stays so.
#[test]
fn a_flow_that_is_removed_meanwhile_stays_dead() {
    loom::model(|| {
        let table = table(&[]);
        let owner = table.reader();
        let flow = flow_by(&mut Interner::at(owner.home()), 1);
        assert!(matches!(table.insert(flow.clone()), Inserted::Installed));
        let (theirs, removed) = (Arc::clone(&table), flow.clone());
        let removing = thread::spawn(move || theirs.remove(&removed));
        let amended = owner.amend(&flow, (1, 2), amendment(2));
        let _ = amended && flow.confirm(2, 3);
        removing.join().unwrap();
        assert_eq!(flow.generation(), DEAD);
    });
}
