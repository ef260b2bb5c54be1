//! Changes of the same queues from several threads.

use std::thread;

use super::*;
use crate::frame::{Memory, PoolConfig};
use crate::port::memory::pair;
use crate::port::rig::wait;

const PORT: PortId = PortId(3);

fn pool() -> Arc<FramePool> {
    FramePool::new(PoolConfig { small: 256, big: 2, memory: Memory::Plain }).unwrap()
}

fn two_cores() -> SwitchConfig {
    SwitchConfig { cores: vec![0, 1], ..SwitchConfig::default() }
}

/// As many queues, with nobody at the other end of their cables.
fn queues(pool: &Arc<FramePool>, count: usize) -> Vec<Box<dyn Port>> {
    (0..count).map(|_| Box::new(pair(pool, 8).0) as Box<dyn Port>).collect()
}

/// Which queues each poller is said to have.
fn said(switch: &Switch) -> Vec<Vec<(PortId, u16)>> {
    switch.pollers().into_iter().map(|poller| poller.queues).collect()
}

#[test]
fn a_move_beside_an_attachment_waits_and_what_is_said_is_so() {
    let pool = pool();
    let (switch, mut pollers) = Switch::assemble(two_cores(), Arc::clone(&pool)).unwrap();
    let early = thread::scope(|scope| {
        // It stops behind the first queue's place, where it looks into the tables.
        let published = switch.lock_published();
        scope.spawn(|| switch.attach(PORT, queues(&pool, 2), &[Some(0), Some(0)]));
        wait("a place for the first queue", || (said(&switch)[0].len() == 1).then_some(()));
        let (done, moved) = bounded(1);
        scope.spawn({
            let switch = &switch;
            move || done.send(switch.place(PORT, 0, 1))
        });
        let early = moved.recv_timeout(Duration::from_millis(100));
        drop(published);
        early
    });
    for index in [0, 1, 0, 1] {
        pollers[index].turn(Instant::ZERO, &[]);
    }
    let have = |poller: &Poller| {
        let queues = poller.wires.queues.iter().flatten();
        queues.map(|queue| (queue.port, queue.index)).collect::<Vec<_>>()
    };
    assert_eq!(pollers.iter().map(have).collect::<Vec<_>>(), said(&switch));
    assert_eq!(said(&switch), [vec![(PORT, 1)], vec![(PORT, 0)]]);
    assert!(early.is_err(), "a queue was moved that its poller did not have yet");
}

#[test]
fn who_asks_for_pollers_does_not_wait_for_a_move() {
    let pool = pool();
    let switch = Switch::start(two_cores(), Arc::clone(&pool)).unwrap();
    switch.attach(PORT, queues(&pool, 1), &[Some(0)]);
    let ((begin, begun), (hold, held)) = (bounded(1), bounded::<()>(0));
    switch.tell(0, move |_| {
        let _ = begin.send(());
        let _ = held.recv();
    });
    begun.recv().unwrap();
    thread::scope(|scope| {
        let switch = &switch;
        let place = scope.spawn(|| switch.place(PORT, 0, 1));
        wait("the move", || (!switch.tasks[0].is_empty()).then_some(()));
        let (answer, answers) = bounded(1);
        scope.spawn(move || answer.send(said(switch)));
        let said = answers.recv_timeout(TIMEOUT / 2);
        drop(hold);
        assert_eq!(said.expect("an answer"), [vec![(PORT, 0)], vec![]]);
        place.join().unwrap().unwrap();
    });
    assert_eq!(said(&switch), [vec![], vec![(PORT, 0)]]);
}
