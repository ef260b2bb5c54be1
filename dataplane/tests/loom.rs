//! Model checks of the lock-free parts: every interleaving that the memory model allows.
//!
//! `cargo test -p dataplane --features loom --test loom --release`
#![cfg(feature = "loom")]

use arrayvec::ArrayVec;
use dataplane::frame::stack::Stack;
use dataplane::port::vhost::door::Door;
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

/// One takes a chunk while another takes both and gives them back in the order that would deceive a stack without a count.
#[test]
fn a_free_chunk_is_taken_by_one() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let stack = Arc::new(Stack::full(2));
        let taken = Arc::new([0, 1].map(|_| loom::cell::UnsafeCell::new(0)));
        // Who else has it would be found here.
        let touch =
            |taken: &[loom::cell::UnsafeCell<i32>; 2], number: u32| taken[number as usize].with_mut(|_| ());
        let other = thread::spawn({
            let (stack, taken) = (Arc::clone(&stack), Arc::clone(&taken));
            move || {
                let both = [stack.pop(), stack.pop()];
                both.into_iter().flatten().for_each(|number| touch(&taken, number));
                both.into_iter().flatten().for_each(|number| stack.push(number));
            }
        });
        if let Some(number) = stack.pop() {
            touch(&taken, number);
            stack.push(number);
        }
        other.join().unwrap();
        let mut left = [stack.pop(), stack.pop()];
        left.sort_unstable();
        assert_eq!((left, stack.pop(), stack.count()), ([Some(0), Some(1)], None, 0));
    });
}

#[test]
fn handed_off_values_arrive_once_and_in_order() {
    loom::model(|| {
        let (mut tx, mut rx) = handoff::ring(2);
        let sender = thread::spawn(move || {
            tx.send_each(&mut [Box::new(0)].into_iter());
            let mut more = [Box::new(1), Box::new(2)].into_iter();
            tx.send_each(&mut more);
            3 - more.len() as u32
        });
        let (mut received, mut some) = (Vec::new(), ArrayVec::<Box<u32>, 2>::new());
        for _ in 0..2 {
            rx.recv_into(&mut some);
            received.extend(some.drain(..).map(|value| *value));
        }
        let sent = sender.join().unwrap();
        while !rx.is_empty() {
            rx.recv_into(&mut some);
            received.extend(some.drain(..).map(|value| *value));
        }
        assert_eq!(received, (0..sent).collect::<Vec<_>>());
    });
}

#[test]
fn the_closer_is_never_inside_together_with_the_visitor() {
    loom::model(|| {
        let door = Door::new(0u32);
        let mut visitor = door.visitor().unwrap();
        let poller = thread::spawn(move || {
            // The content is a cell of loom's, which fails the model if the closer may touch it at the same time.
            (0..2).filter(|_| visitor.enter().map(|mut room| *room += 1).is_some()).count()
        });
        *door.close() += 10;
        let visits = poller.join().unwrap() as u32;
        assert_eq!(*door.close(), 10 + visits, "nothing is overwritten");
    });
}

#[test]
fn a_door_kept_shut_stays_shut_and_closers_come_one_after_the_other() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let door = Door::new(0u32);
        let mut visitor = door.visitor().unwrap();
        let other = thread::spawn({
            let door = std::sync::Arc::clone(&door);
            move || {
                let mut room = door.close();
                *room += 1;
                room.keep_shut();
            }
        });
        let visited = visitor.enter().map(|mut room| *room += 10).is_some();
        other.join().unwrap();
        assert!(visitor.enter().is_none(), "kept shut");
        assert_eq!(*door.close(), if visited { 11 } else { 1 });
        assert!(visitor.enter().is_some(), "open again");
    });
}
