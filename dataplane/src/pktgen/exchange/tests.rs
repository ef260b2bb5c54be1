//! The sink's counts against what a witness saw, through ports with bad luck.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use encap::field::MacAddr;

use super::*;
use crate::frame::{FramePool, Memory, PoolConfig};
use crate::pktgen::reel::Reel;
use crate::pktgen::terms::{Addresses, Terms};
use crate::port::Sent;
use crate::port::lossy::{Lossy, Misfortune};
use crate::port::memory::{Peer, pair};

/// Takes what is sent and gives it back in the same order, and writes down what it gave.
struct Loop {
    port: Box<dyn Port>,
    peer: Peer,
}

impl Port for Loop {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        while let Some(frame) = self.peer.take() {
            self.peer.put(frame).expect("a queue as long as the other");
        }
        self.port.rx(frames, batch)
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.port.tx(frames, batch)
    }
}

/// Writes down which frames pass.
struct Witness {
    port: Box<dyn Port>,
    seen: Arc<Mutex<Vec<u64>>>,
}

impl Port for Witness {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.port.rx(frames, batch)?;
        let sequence = |bytes: &[u8]| bytes[46..52].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        self.seen.lock().unwrap().extend(batch.iter().map(|frame| sequence(frame.bytes())));
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.port.tx(frames, batch)
    }
}

fn stock() -> (Arc<FramePool>, FrameCache) {
    let pool = FramePool::new(PoolConfig { small: 4096, big: 16, memory: Memory::Plain }).unwrap();
    (pool.clone(), FrameCache::new(pool))
}

fn ends(tx: Box<dyn Port>, rx: Option<Box<dyn Port>>, frames: FrameCache) -> Ends {
    Ends { tx, rx, frames, near: Residents::default(), far: Residents::default() }
}

fn plan(count: u64) -> Plan {
    let until = Until { count: Some(count), time: None };
    let window = Duration::from_millis(250);
    Plan { until, rate: None, burst: BATCH, window, question: Question::HowMany }
}

fn made(flows: u64) -> Source {
    let terms = Terms { flows: Some(flows), ..Terms::plain() };
    Source::Made(Frames::new(&terms, Stamping::Plain).unwrap())
}

/// Sends through misfortune; what came of it, and what a witness saw come.
fn suffer(misfortune: Misfortune, flows: u64, count: u64) -> (Outcome, Vec<u64>) {
    let (pool, frames) = stock();
    let (port, peer) = pair(&pool, 1024);
    let port = Loop { port: Box::new(port), peer };
    let seen = Arc::default();
    let lossy = Lossy::new(Box::new(port), misfortune, 11);
    let port = Witness { port: Box::new(lossy), seen: Arc::clone(&seen) };
    let mut ends = ends(Box::new(port), None, frames);
    let outcome = exchange(&mut ends, &mut made(flows), plan(count), &mut |_| Verdict::GoOn).unwrap();
    drop(ends);
    assert_eq!(pool.available(), (4096, 16), "a frame was lost or kept");
    (outcome, Arc::try_unwrap(seen).unwrap().into_inner().unwrap())
}

#[test]
fn good_luck_loses_nothing() {
    let (outcome, seen) = suffer(Misfortune::default(), 10, 5000);
    assert_eq!((outcome.sent, outcome.received, outcome.lost), (5000, 5000, 0));
    assert_eq!((outcome.reordered, outcome.duplicated, outcome.foreign), (Some(0), Some(0), 0));
    assert_eq!(outcome.latency.unwrap().samples, 5000);
    assert_eq!(seen.len(), 5000);
}

#[test]
fn each_misfortune_is_counted_exactly() {
    let all = Misfortune { drop: 0.05, duplicate: 0.05, reorder: 0.05 };
    for (misfortune, flows) in [
        (Misfortune { drop: 0.1, ..Misfortune::default() }, 1),
        (Misfortune { duplicate: 0.1, ..Misfortune::default() }, 3),
        (Misfortune { reorder: 0.1, ..Misfortune::default() }, 1),
        (all, 1),
        (all, 2),
        (all, 100),
    ] {
        let (outcome, seen) = suffer(misfortune, flows, 10_000);
        let (mut highest, mut came) = (BTreeMap::new(), std::collections::BTreeSet::new());
        let (mut duplicated, mut reordered) = (0, 0);
        for sequence in &seen {
            let highest = highest.entry(sequence % flows).or_insert(*sequence);
            if !came.insert(*sequence) {
                duplicated += 1;
            } else if sequence < highest {
                reordered += 1;
            }
            *highest = (*highest).max(*sequence);
        }
        assert_eq!((outcome.sent, outcome.received), (10_000, seen.len() as u64));
        assert_eq!(outcome.lost, 10_000 - came.len() as u64);
        assert_eq!((outcome.duplicated, outcome.reordered), (Some(duplicated), Some(reordered)));
        let suffered = outcome.lost + duplicated + reordered;
        assert!(suffered > 100 || flows > 2, "{misfortune:?}: {outcome:?}");
    }
}

#[test]
fn what_is_not_ours_is_not_counted_as_ours() {
    let (pool, mut frames) = stock();
    let (port, mut peer) = pair(&pool, 64);
    let (sender, _far) = pair(&pool, 64);
    let stale = frames.from_bytes(&[7; 60]).unwrap();
    peer.put(stale).unwrap();
    let mut ends = ends(Box::new(sender), Some(Box::new(port)), frames);
    let mut observe = |_| {
        assert!(peer.inject(&[8; 60]));
        Verdict::Stop
    };
    let endless = Plan { until: Until::default(), question: Question::Exceeds(0.0), ..plan(0) };
    let outcome = exchange(&mut ends, &mut made(1), endless, &mut observe).unwrap();
    // The far end takes nothing, so its queue fills up.
    assert_eq!((outcome.sent, outcome.received, outcome.lost, outcome.foreign), (64, 0, 64, 1));
    assert_eq!(outcome.latency, None);
}

/// Loses one frame, if any; and once it was given more than a thousand, keeps all that it has for longer than a silence that ends
/// a run whose question is answered.
struct Held {
    port: Loop,
    loses: Option<u64>,
    given: u64,
    since: Option<Instant>,
}

impl Port for Held {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        let is_open = self.since.is_none_or(|since| since.elapsed() > 4 * SILENCE);
        if is_open { self.port.rx(frames, batch) } else { Ok(()) }
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let begin = self.given;
        self.given += batch.len() as u64;
        if self.given > 1000 {
            self.since = Some(Instant::now());
        }
        let lost = self.loses.filter(|lost| (begin..self.given).contains(lost));
        let lost = lost.map(|lost| batch.remove((lost - begin) as usize));
        let mut sent = self.port.tx(frames, batch)?;
        if let Some(frame) = lost {
            sent.count(&frame);
            frames.free(frame);
        }
        Ok(sent)
    }
}

/// What comes of 2,000 frames through it.
fn withhold(loses: Option<u64>, question: Question) -> Outcome {
    let (pool, frames) = stock();
    let (port, peer) = pair(&pool, 4096);
    let port = Held { port: Loop { port: Box::new(port), peer }, loses, given: 0, since: None };
    let mut ends = ends(Box::new(port), None, frames);
    exchange(&mut ends, &mut made(1), Plan { question, ..plan(2000) }, &mut |_| Verdict::GoOn).unwrap()
}

/// Are so many lost? Once of a few times: a machine that stands still outlasts any patience.
fn loses(many: impl Fn(u64) -> bool, loses: Option<u64>, question: Question) -> bool {
    (0..3).any(|_| many(withhold(loses, question).lost))
}

#[test]
fn who_is_only_late_is_waited_for_unless_the_question_is_answered() {
    for question in [Question::HowMany, Question::Exceeds(0.0)] {
        assert!(loses(|lost| lost == 0, None, question), "{question:?}");
    }
    assert!(loses(|lost| lost == 1, Some(7), Question::Exceeds(0.1)));
    for answered in [Question::HowMany, Question::Exceeds(0.0)] {
        assert!(loses(|lost| lost > 900, Some(7), answered), "{answered:?}");
    }
}

/// Keeps all that it has until it was given so many frames; then the machine stands still for as long as patience lasts, between two
/// looks, before anybody gets them.
struct Standstill {
    port: Loop,
    wanted: u64,
    looks: u32,
}

impl Port for Standstill {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.looks += u32::from(self.wanted == 0);
        match self.looks {
            ..2 => Ok(()),
            2 => {
                std::thread::sleep(PATIENCE);
                Ok(())
            }
            _ => self.port.rx(frames, batch),
        }
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let sent = self.port.tx(frames, batch)?;
        self.wanted -= u64::from(sent.frames);
        Ok(sent)
    }
}

#[test]
fn what_came_while_the_machine_stood_still_is_not_lost() {
    let (pool, frames) = stock();
    let (port, peer) = pair(&pool, 4096);
    let port = Standstill { port: Loop { port: Box::new(port), peer }, wanted: 2000, looks: 0 };
    let mut ends = ends(Box::new(port), None, frames);
    let outcome = exchange(&mut ends, &mut made(1), plan(2000), &mut |_| Verdict::GoOn).unwrap();
    assert_eq!((outcome.sent, outcome.lost), (2000, 0));
}

#[test]
fn frames_of_a_file_are_only_counted() {
    let (pool, frames) = stock();
    let (port, peer) = pair(&pool, 1024);
    let looped = Loop { port: Box::new(port), peer };
    let lossy = Lossy::new(Box::new(looped), Misfortune { drop: 0.1, ..Misfortune::default() }, 3);
    let mut ends = ends(Box::new(lossy), None, frames);
    let some = Frames::new(&Terms { flows: Some(7), ..Terms::plain() }, Stamping::Plain).unwrap();
    let mut source = Source::Played(Player::new(Reel::of(&some).unwrap()));
    let outcome = exchange(&mut ends, &mut source, plan(1000), &mut |_| Verdict::GoOn).unwrap();
    assert_eq!(outcome.sent, 1000);
    assert!((50..200).contains(&outcome.lost), "{outcome:?}");
    assert_eq!((outcome.received, outcome.reordered), (1000 - outcome.lost, None));
}

#[test]
fn a_rate_is_kept() {
    let (pool, frames) = stock();
    let (port, peer) = pair(&pool, 1024);
    let mut ends = ends(Box::new(Loop { port: Box::new(port), peer }), None, frames);
    let steady = Plan { rate: Some(10_000.0), burst: 1, ..plan(2000) };
    let outcome = exchange(&mut ends, &mut made(1), steady, &mut |_| Verdict::GoOn).unwrap();
    // A busy machine may be slower, never faster.
    assert!(outcome.mean <= 10_010.0 && outcome.lost == 0, "{outcome:?}");
}

#[test]
fn questions_are_answered_at_the_port_where_they_come() {
    let (pool, frames) = stock();
    let ((near, mut near_peer), (far, mut far_peer)) = (pair(&pool, 64), pair(&pool, 64));
    let mut ends = ends(Box::new(near), Some(Box::new(far)), frames);
    let address = |last| [198, 18, 0, last].into();
    ends.near.add(Addresses::new(address(1), address(9)).unwrap(), MacAddr([2, 0, 0, 0, 0, 1]));
    ends.far.add(Addresses::new(address(20), address(20)).unwrap(), MacAddr([2, 0, 0, 0, 0, 2]));
    let mut asked = 0;
    let mut observe = |_| {
        if asked == 0 {
            assert!(near_peer.inject(&question(9)) && near_peer.inject(&question(20)));
            assert!(far_peer.inject(&question(20)) && far_peer.inject(&question(9)));
        }
        asked += 1;
        if asked > 1 { Verdict::Stop } else { Verdict::GoOn }
    };
    let question = Question::Exceeds(0.0);
    let slow = Plan { until: Until::default(), rate: Some(1.0), question, ..plan(0) };
    let outcome = exchange(&mut ends, &mut made(1), slow, &mut observe).unwrap();
    assert_eq!(outcome.foreign, 1);
    let of = |peer: &mut Peer| {
        let all = peer.drain().into_iter().map(|delivered| delivered.bytes);
        all.filter(|bytes| bytes[12..14] == [0x08, 0x06])
            .map(|bytes| bytes[22..32].to_vec())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&mut near_peer), [[2, 0, 0, 0, 0, 1, 198, 18, 0, 9]]);
    assert_eq!(of(&mut far_peer), [[2, 0, 0, 0, 0, 2, 198, 18, 0, 20]]);
}

/// Who has 198.18.0.`last`?
fn question(last: u8) -> Vec<u8> {
    let from = [2, 0, 0, 0, 0, 7];
    let head = [&[0xff; 6][..], &from, &[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1], &from].concat();
    [&head[..], &[198, 18, 0, 77], &[0; 6], &[198, 18, 0, last], &[0; 18]].concat()
}
