//! Model checking: `cargo test -p flowtable --features loom --release model`.
//!
//! Every flow has a share that the model keeps, so that a count of one says that the table has freed it.

use loom::thread;

use super::*;
use crate::action::{Action, DropReason};
use crate::flow::{Birth, Decision};
use crate::key::FlowKey;
use crate::time::Instant;

fn flow(word: u64) -> Flow {
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
    Flow::new(&key, decision, Birth { generation: 1, pollers: 1, now: Instant::ZERO })
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
