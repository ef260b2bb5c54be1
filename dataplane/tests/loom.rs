//! Model checks of the lock-free parts: every interleaving that the memory model allows.
//!
//! `cargo test -p dataplane --features loom --test loom --release`
#![cfg(feature = "loom")]

use dataplane::{handoff, publish};
use loom::sync::Arc;
use loom::thread;

#[test]
fn a_published_value_is_taken_whole_and_freed_once() {
    loom::model(|| {
        let first = Arc::new(0u32);
        let (published, mut subscribers) = publish::channel(first, 1);
        let mut subscriber = subscribers.pop().unwrap();
        let writer = thread::spawn(move || {
            published.publish(&Arc::new(1));
            published.publish(&Arc::new(2));
            published
        });
        let mut last = **subscriber.current();
        for _ in 0..2 {
            subscriber.refresh();
            let now = **subscriber.current();
            assert!(now >= last, "values go forward");
            last = now;
        }
        let published = writer.join().unwrap();
        subscriber.refresh();
        assert_eq!(**subscriber.current(), 2, "the newest value arrives");
        drop((published, subscriber));
    });
}

#[test]
fn an_acknowledged_generation_means_that_the_old_value_is_gone() {
    loom::model(|| {
        let first = Arc::new(0u32);
        let (published, mut subscribers) = publish::channel(Arc::clone(&first), 1);
        let mut subscriber = subscribers.pop().unwrap();
        let reader = thread::spawn(move || {
            if subscriber.refresh() {
                subscriber.acknowledge(1);
            }
            subscriber
        });
        published.publish(&Arc::new(1));
        if published.oldest_in_use() == 1 {
            assert_eq!(Arc::strong_count(&first), 1);
        }
        drop(reader.join().unwrap());
    });
}

#[test]
fn handed_off_values_arrive_once_and_in_order() {
    loom::model(|| {
        let (mut tx, mut rx) = handoff::ring(2);
        let sender = thread::spawn(move || {
            let mut sent = 0;
            for i in 0..3u32 {
                if tx.send(Box::new(i)).is_err() {
                    break;
                }
                sent += 1;
            }
            sent
        });
        let mut received = Vec::new();
        for _ in 0..2 {
            received.extend(rx.recv().map(|v| *v));
        }
        let sent = sender.join().unwrap();
        while let Some(value) = rx.recv() {
            received.push(*value);
        }
        assert_eq!(received, (0..sent).collect::<Vec<_>>());
    });
}
