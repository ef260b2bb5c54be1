//! The readers' side: each searches the subtables in the order in which it has hit them.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::iter;
use std::sync::Arc;

use super::heads::Looks;
use super::subtable::{Garbage, SHARDS, Subtable};
use super::{LIMBO, Megaflows, RECLAIM};
use crate::action::Action;
use crate::epoch::Member;
use crate::flow::{Amendment, Flow, FlowRef, Home, Seat};
use crate::key::FlowKey;
use crate::list::List;
use crate::places::Places;
use crate::sync::Ordering;

/// Lookups between two rankings of the masks; a ranking sorts as many numbers as there are masks.
const RANK_EVERY: u32 = 1 << 16;

/// A thread's view of the table.
///
/// A poller has one for its life, [quiesces](Reader::quiesce) once per poll and [parks](Reader::park) when it
/// sleeps: a reader that does neither keeps everything from being freed. What it found borrows the reader, so
/// it cannot be kept beyond either.
#[derive(Debug)]
pub struct Reader {
    table: Arc<Megaflows>,
    member: Member,
    /// The version that `order` belongs to.
    version: u64,
    /// The taken slots, most often hit first.
    order: Vec<usize>,
    /// What any of the masks looks at.
    looks: Looks,
    /// Hits by slot, fading.
    hits: Box<[Cell<u32>]>,
    lookups: Cell<u32>,
    /// Whose counters a hit will change.
    seat: Seat,
    /// What amended flows did before.
    retired: RefCell<Vec<List<Action>>>,
}

/// How many pairs of neighbours say for a batch whether it is worth to compare all (bench `forward`: `l2/1000`).
const SAMPLES: usize = 4;

/// The most lists that the limbo gets at once: who frees them holds the lock.
const HANDED: usize = 4096;

/// How far a visit of all flows has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    slot: usize,
    shard: usize,
}

impl Reader {
    pub(super) fn new(table: Arc<Megaflows>) -> Self {
        let member = table.epoch.join();
        let hits = vec![Cell::new(0); table.slots.len()].into();
        let (order, looks, lookups) = (Vec::new(), Looks::of(iter::empty()), Cell::new(0));
        let (seat, retired) = (Seat { index: 0, pollers: 1 }, RefCell::default());
        let mut reader = Reader { table, member, version: 0, order, looks, hits, lookups, seat, retired };
        reader.rank();
        reader
    }

    /// For a poller that counts on the flows that it finds.
    pub fn counting(mut self, seat: Seat) -> Self {
        self.seat = seat;
        self
    }

    /// Where it counts.
    #[inline]
    pub fn seat(&self) -> Seat {
        self.seat
    }

    /// Whose flows this reader may amend: those of its poller, made by an [`Interner`](crate::intern::Interner) at this home.
    pub fn home(&self) -> Home {
        Home { epoch: Arc::clone(&self.table.epoch), poller: self.seat.index }
    }

    /// Is it a flow that this reader may amend?
    #[inline]
    pub fn owns(&self, flow: &Flow) -> bool {
        flow.lives_at(&self.table.epoch, self.seat.index)
    }

    /// What a flow of this table does; `None` if it is of another. It may be amended meanwhile.
    #[inline]
    pub fn actions<'r>(&'r self, flow: &'r Flow) -> Option<&'r [Action]> {
        flow.read(&self.member)
    }

    /// For flows of what [kind](List::kind) the list is by which a flow of this table goes: of one that the flow is of for ever, or
    /// zero, for any.
    #[inline]
    pub fn kind(&self, flow: &Flow) -> u64 {
        flow.kind(&self.member)
    }

    /// What a flow of this table, which was of this [generation](Flow::generation) when the caller looked, does by the tables of
    /// it; `None` if it is not of this generation any more. Who has not looked before may get what it did by the one before.
    #[inline]
    pub fn actions_at<'r>(&'r self, flow: &'r Flow, generation: u64) -> Option<&'r [Action]> {
        let actions = self.actions(flow)?;
        flow.is_of(generation).then_some(actions)
    }

    /// Has a flow that it [owns](Reader::owns), and that was checked against generation `from`, do something else from
    /// generation `to` on, neither [dead](crate::flow::DEAD). False if it cannot: somebody else confirmed or removed it, or
    /// some reader lets go of nothing, and what flows did before is as much already as there may be flows.
    pub fn amend(&self, flow: &Flow, (from, to): (u64, u64), now: Amendment) -> bool {
        let waiting = self.retired.borrow().len();
        if !self.owns(flow) || waiting >= self.table.limits.flows + LIMBO {
            return false;
        }
        // SAFETY: the flow has our table's home. What it did goes into the limbo; or it is dropped, but then the limbo gets another
        // share of the same list later than it was unlinked here.
        let Some(before) = (unsafe { flow.amend((from, to), now) }) else { return false };
        let mut retired = self.retired.borrow_mut();
        if retired.last().is_none_or(|last| !last.is_same(&before)) {
            retired.push(before);
        }
        true
    }

    /// Gives the limbo what amended flows did before, unless somebody is writing, or the limbo is behind: then it waits here.
    #[cold]
    fn retire(&mut self) {
        let Ok(mut state) = self.table.state.try_lock() else { return };
        state.limbo.reclaim(RECLAIM);
        if state.limbo.len() < LIMBO {
            let retired = self.retired.get_mut();
            let rest = retired.len().saturating_sub(HANDED);
            state.limbo.retire(Garbage::Lists(retired.split_off(rest)));
        }
    }

    /// The flow that matches `key`.
    ///
    /// It may be outdated, or removed while we looked: follow it only if its generation is the current one.
    #[inline]
    pub fn lookup(&self, key: &FlowKey) -> Option<FlowRef<'_>> {
        self.lookups.set(self.lookups.get().wrapping_add(1));
        if self.version == self.table.version.load(Ordering::Acquire) {
            self.order.iter().find_map(|slot| self.lookup_in(*slot, key))
        } else {
            // A mask came or went in this poll: search what there is, in any order, until the next `quiesce`.
            (0..self.hits.len()).find_map(|slot| self.lookup_in(slot, key))
        }
    }

    /// As [`Reader::lookup`], for all of `keys` that are `wanted`; those found come one by
    /// one, with their place. Many together cost less than one by one: their cache misses overlap.
    #[inline]
    pub fn lookup_each<'r>(
        &'r self,
        keys: &[FlowKey; Places::MAX],
        mut wanted: Places,
        mut found: impl FnMut(usize, FlowRef<'r>),
    ) {
        self.lookups.set(self.lookups.get().wrapping_add(wanted.len() as u32));
        if self.version != self.table.version.load(Ordering::Acquire) {
            return wanted
                .for_each(|place| self.lookup(&keys[place]).into_iter().for_each(|flow| found(place, flow)));
        }
        for &slot in &self.order {
            if wanted.is_empty() {
                return;
            }
            let Some(subtable) = self.subtable(slot) else { continue };
            let before = wanted.len();
            subtable.find_each((keys, self.seat), &mut wanted, &mut found);
            let hits = self.hits[slot].get().saturating_add((before - wanted.len()) as u32);
            self.hits[slot].set(hits);
        }
    }

    /// Hashes those bits that any of the masks looked at when this reader last ranked them, of those of these keys (with nothing
    /// behind their first `used` words) that are `wanted`; the hashes come one by one, with their place. So keys that differ elsewhere only have the same hash, as they have the same flow.
    #[inline]
    pub fn hash_each(
        &self,
        keys: (&[FlowKey; Places::MAX], usize),
        wanted: Places,
        hashed: impl FnMut(usize, u64),
    ) {
        self.looks.hash_each(keys, wanted, hashed);
    }

    /// Of these keys (at most [`Places::MAX`], with nothing behind their first `used` words) that are `sound`, those that some mask may tell from the one before, and those
    /// behind one that is not sound. The others have the flow of the one before, if this reader [covers](Reader::covers) it.
    ///
    /// Where a few samples say that neighbours differ, all do; and where a mask came or went in this poll: who follows a head
    /// that this reader does not cover would have to be decided behind later frames of the same flow. Cost: for each key, or
    /// else for the samples, the words that any mask looks at.
    #[inline]
    pub fn heads(&self, (keys, used): (&[FlowKey], usize), sound: Places) -> Places {
        if self.version != self.table.version.load(Ordering::Acquire) {
            return sound;
        }
        let follows = |place: &usize| !self.looks.tell(&keys[place - 1], &keys[*place]);
        if (1..keys.len()).step_by((keys.len() / SAMPLES).max(1)).any(|place| follows(&place)) {
            let followers = sound.next_ones().without(self.looks.told((keys, used)));
            return sound.without(followers);
        }
        sound
    }

    /// Did this reader know the flow's mask when it last ranked them?
    #[inline]
    pub fn covers(&self, flow: &Flow) -> bool {
        self.looks.union.covers(flow.mask())
    }

    #[inline]
    fn lookup_in(&self, slot: usize, key: &FlowKey) -> Option<FlowRef<'_>> {
        let found = self.subtable(slot)?.find(key)?;
        self.hits[slot].set(self.hits[slot].get().saturating_add(1));
        Some(found)
    }

    #[inline]
    fn subtable(&self, slot: usize) -> Option<&Subtable> {
        // SAFETY: the member is online while it is not borrowed mutably, and it is borrowed with `self`.
        unsafe { self.table.subtable(slot) }
    }

    /// Visits flows from `cursor` on, shard by shard, until `budget` flows and shards were visited; says
    /// where to go on, or that it is through. It exceeds the budget by less than one shard.
    ///
    /// A flow that is there from the first visit to the last is visited once, whatever comes and goes
    /// meanwhile.
    pub fn visit(&self, mut cursor: Cursor, budget: usize, mut f: impl FnMut(FlowRef<'_>)) -> Option<Cursor> {
        let mut spent = 0;
        while cursor.slot < self.hits.len() {
            if spent >= budget {
                return Some(cursor);
            }
            spent += 1;
            if let Some(subtable) = self.subtable(cursor.slot) {
                subtable.flows(cursor.shard).for_each(|flow| {
                    spent += 1;
                    f(flow);
                });
                cursor.shard += 1;
            }
            if cursor.shard == SHARDS || self.subtable(cursor.slot).is_none() {
                cursor = Cursor { slot: cursor.slot + 1, shard: 0 };
            }
        }
        None
    }

    /// Says that nothing is held, once per poll; and now and then ranks the masks.
    #[inline]
    pub fn quiesce(&mut self) {
        if !self.retired.get_mut().is_empty() {
            self.retire();
        }
        self.member.quiesce();
        let outdated = self.version != self.table.version.load(Ordering::Relaxed);
        if outdated || self.lookups.get() >= RANK_EVERY {
            self.rank();
        }
    }

    /// Runs `sleep` while holding up nobody.
    pub fn park<R>(&mut self, sleep: impl FnOnce() -> R) -> R {
        self.member.park(sleep)
    }

    /// The table it reads.
    pub fn table(&self) -> &Arc<Megaflows> {
        &self.table
    }

    /// Puts the slots in the order of their hits; lets old hits fade.
    fn rank(&mut self) {
        self.version = self.table.version.load(Ordering::Acquire);
        let taken = (0..self.hits.len()).filter(|slot| self.subtable(*slot).is_some());
        self.order = taken.collect();
        let masks = self.order.iter().filter_map(|slot| self.subtable(*slot)).map(Subtable::mask);
        self.looks = Looks::of(masks);
        self.order.sort_unstable_by_key(|slot| Reverse(self.hits[*slot].get()));
        if self.lookups.replace(0) >= RANK_EVERY {
            self.hits.iter().for_each(|hits| hits.set(hits.get() / 2));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.retired.get_mut().is_empty() {
            let retired = Garbage::Lists(self.retired.take());
            self.table.lock().state.limbo.retire(retired);
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::super::tests::{ROOMY, flow, key, mask};
    use super::*;

    #[test]
    fn only_heads_differ_in_what_masks_look_at() {
        let table = Arc::new(Megaflows::new(ROOMY));
        let (known, new) =
            (flow(&key(&[(1, 1)]), &mask(&[(1, 3)]), 1), flow(&key(&[(2, 1)]), &mask(&[(2, 3)]), 1));
        table.insert(known.clone());
        let mut reader = table.reader();
        let keys = [0, 1, 1, 3, 2, 2].map(|n| key(&[(1, n), (2, n)]));
        let all = Places::first(6);
        assert!(reader.heads((&keys, 3), all).eq([0, 1, 3, 4]));
        let sound = all.without(Places::first(2).without(Places::first(1)));
        assert!(reader.heads((&keys, 3), sound).eq([0, 2, 3, 4]));
        assert!(reader.covers(&known) && !reader.covers(&new));
        table.insert(new.clone());
        assert_eq!(reader.heads((&keys, 3), all), all, "until it knows all masks");
        reader.quiesce();
        assert!(reader.covers(&new) && reader.heads((&keys, 3), all).eq([0, 1, 3, 4]));
    }

    #[test]
    fn the_mask_that_is_hit_is_searched_first() {
        let table = Arc::new(Megaflows::new(ROOMY));
        (0..8).for_each(|i| drop(table.insert(flow(&key(&[(i, 1)]), &mask(&[(i, 1)]), 1))));
        let mut reader = table.reader();
        let hot = key(&[(5, 1)]);
        let slot = reader.order.iter().copied().find(|slot| reader.lookup_in(*slot, &hot).is_some()).unwrap();
        while reader.order[0] != slot {
            assert!(reader.lookup(&hot).is_some());
            reader.quiesce();
        }
    }
}
