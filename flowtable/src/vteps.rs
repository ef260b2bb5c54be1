//! Remote tunnel endpoints of one bridge's segments, as decapsulated frames show them: who has sent into a segment gets
//! what the segment floods (data-plane learning, RFC 7348 section 4.1, without its multicast).
//!
//! Learning an endpoint takes constant time but for the O(log segments) that ranks the segments by size. When a segment
//! has too many it loses the one not seen for longest; when the table is full, the segment that has most does. So who
//! can forge addresses in one segment cannot make another forget.
//!
//! Changes answer with dependency bits, as the FDB's do: one per segment, for whoever asked for all its endpoints.

use std::net::IpAddr;
use std::time::Duration;

use crate::aged::{self, Aged};
use crate::fdb::Flushed;
use crate::flow::dependency;
use crate::id::SegmentId;
use crate::time::Instant;

/// How big a table may get and how old its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most endpoints of one segment: each gets a copy of what the segment floods.
    pub per_segment: usize,
    /// The most entries; an endpoint has one in each of its segments.
    pub size: usize,
    /// After how long an endpoint that is not seen goes.
    pub age: Duration,
}

/// An endpoint of a segment, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The segment.
    pub segment: SegmentId,
    /// The endpoint's address.
    pub address: IpAddr,
    /// Since when it was not seen.
    pub age: Duration,
}

type Slot = aged::Entry<(SegmentId, IpAddr), SegmentId, ()>;

impl aged::Group for SegmentId {
    type Owner = SegmentId;

    fn owner(self) -> SegmentId {
        self
    }
}

/// The table of one bridge.
#[derive(Debug)]
pub struct Vteps {
    limits: Limits,
    members: Aged<(SegmentId, IpAddr), SegmentId, ()>,
}

impl Vteps {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Vteps { limits, members: Aged::new() }
    }

    /// The dependency bit of whoever asks for a segment's endpoints.
    #[inline]
    pub fn dependency(segment: SegmentId) -> u64 {
        dependency(!u64::from(segment.0)) // unlike the first of its FDB entries
    }

    /// The endpoints of a segment that are not too old, sorted. O(n log n) in how many it has.
    pub fn of(&self, segment: SegmentId, now: Instant) -> Vec<IpAddr> {
        let fresh = self.members.members(segment).filter(|slot| !self.is_old(slot, now));
        let mut addresses: Vec<IpAddr> = fresh.map(|slot| slot.key.1).collect();
        addresses.sort_unstable();
        addresses
    }

    /// Are these, sorted, what [`Vteps::of`] would say?
    pub fn are(&self, segment: SegmentId, now: Instant, addresses: &[IpAddr]) -> bool {
        let fresh = || self.members.members(segment).filter(|slot| !self.is_old(slot, now));
        fresh().count() == addresses.len() && fresh().all(|slot| addresses.binary_search(&slot.key.1).is_ok())
    }

    /// A frame of the segment came from `address`. Dependency bits of what changed; 0 if nothing but age.
    pub fn learn(&mut self, segment: SegmentId, address: IpAddr, now: Instant) -> u64 {
        if let Some(at) = self.members.find((segment, address)) {
            let was_old = self.is_old(self.members.get(at), now);
            self.members.touch(at, now);
            return if was_old { Self::dependency(segment) } else { 0 };
        }
        if self.limits.per_segment == 0 || self.limits.size == 0 {
            return 0;
        }
        let evicted = if self.members.held(segment) >= self.limits.per_segment {
            self.evict(segment)
        } else if self.len() >= self.limits.size {
            self.members.largest().map_or(0, |largest| self.evict(largest))
        } else {
            0
        };
        self.members.insert(Slot { key: (segment, address), value: (), group: Some(segment), seen: now });
        evicted | Self::dependency(segment)
    }

    /// The endpoint was seen in the segment at `when`, if it is known there.
    pub fn refresh(&mut self, segment: SegmentId, address: IpAddr, when: Instant) {
        if let Some(at) = self.members.find((segment, address))
            && self.members.get(at).seen < when
        {
            self.members.touch(at, when);
        }
    }

    /// Removes an endpoint from every segment. Visits the whole table.
    pub fn remove(&mut self, address: IpAddr) -> Flushed {
        let gone: Vec<u32> =
            self.members.iter().filter(|(_, slot)| slot.key.1 == address).map(|(at, _)| at).collect();
        let count = gone.len();
        Flushed { count, changed: gone.into_iter().fold(0, |bits, at| bits | self.remove_slot(at)) }
    }

    /// Removes all endpoints, or those of one segment.
    pub fn flush(&mut self, segment: Option<SegmentId>) -> Flushed {
        let segments: Vec<SegmentId> = match segment {
            Some(segment) => vec![segment],
            None => self.members.groups().collect(),
        };
        let mut flushed = Flushed::default();
        for segment in segments {
            flushed.count += self.members.held(segment);
            while self.members.held(segment) > 0 {
                flushed.changed |= self.evict(segment);
            }
        }
        flushed
    }

    /// Looks at the next `budget` places of the table and removes endpoints that are too old. Dependency bits of what
    /// changed. A round through the table takes at most three places for each entry that it ever held at once.
    pub fn expire(&mut self, now: Instant, budget: usize) -> u64 {
        let mut changed = 0;
        for _ in 0..budget.min(self.members.round()) {
            if let Some(at) = self.members.step()
                && self.is_old(self.members.get(at), now)
            {
                changed |= self.remove_slot(at);
            }
        }
        changed
    }

    /// All endpoints that are not too old, in no order.
    pub fn entries(&self, now: Instant) -> impl Iterator<Item = Entry> + '_ {
        let slots = self.members.iter().map(|(_, slot)| slot).filter(move |slot| !self.is_old(slot, now));
        slots.map(move |slot| {
            let (segment, address) = slot.key;
            Entry { segment, address, age: now.since(slot.seen) }
        })
    }

    /// How many entries there are, old ones included.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_old(&self, slot: &Slot, now: Instant) -> bool {
        now.since(slot.seen) > self.limits.age
    }

    fn evict(&mut self, segment: SegmentId) -> u64 {
        self.members.oldest(segment).map_or(0, |at| self.remove_slot(at))
    }

    fn remove_slot(&mut self, at: u32) -> u64 {
        let (segment, _) = self.members.get(at).key;
        self.members.remove(at);
        Self::dependency(segment)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { per_segment: 4, size: 8, age: Duration::from_secs(300) };
    const BLUE: SegmentId = SegmentId(1);
    const RED: SegmentId = SegmentId(5000);

    fn vtep(n: u8) -> IpAddr {
        if n.is_multiple_of(2) {
            [192, 0, 2, n].into()
        } else {
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()].into()
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    /// Endpoints 0 to `n` - 1 show up.
    fn learn(vteps: &mut Vteps, segment: SegmentId, n: u8, now: Instant) {
        for n in 0..n {
            vteps.learn(segment, vtep(n), now);
        }
    }

    #[test]
    fn an_endpoint_is_learned_refreshed_and_forgotten() {
        let mut vteps = Vteps::new(LIMITS);
        assert_eq!(vteps.learn(BLUE, vtep(2), at(0)), Vteps::dependency(BLUE));
        assert_eq!(vteps.learn(BLUE, vtep(2), at(100)), 0, "a refresh changes no decision");
        vteps.refresh(BLUE, vtep(2), at(200));
        vteps.refresh(BLUE, vtep(4), at(200)); // unknown, and stays so
        assert_eq!((vteps.of(BLUE, at(500)), vteps.of(RED, at(500))), (vec![vtep(2)], vec![]));
        assert!(vteps.of(BLUE, at(501)).is_empty(), "too old, though not yet swept");
        assert_eq!(vteps.expire(at(501), 100), Vteps::dependency(BLUE));
        assert!(vteps.is_empty());
    }

    #[test]
    fn one_that_comes_back_after_too_long_counts_as_new() {
        let mut vteps = Vteps::new(LIMITS);
        vteps.learn(BLUE, vtep(2), at(0));
        assert_eq!(vteps.learn(BLUE, vtep(2), at(301)), Vteps::dependency(BLUE));
    }

    #[test]
    fn a_segment_has_its_limit_and_forgets_its_own() {
        let mut vteps = Vteps::new(LIMITS);
        learn(&mut vteps, BLUE, 4, at(0));
        learn(&mut vteps, RED, 1, at(0));
        vteps.refresh(BLUE, vtep(0), at(5));
        assert_eq!(vteps.learn(BLUE, vtep(9), at(6)), Vteps::dependency(BLUE));
        assert_eq!(vteps.of(BLUE, at(6)), [vtep(0), vtep(2), vtep(3), vtep(9)], "sorted, IPv4 first");
        assert_eq!(vteps.of(RED, at(6)), [vtep(0)]);
    }

    #[test]
    fn in_a_full_table_the_biggest_segment_makes_room() {
        let mut vteps = Vteps::new(LIMITS);
        for (segment, n) in [(RED, 2), (BLUE, 4), (SegmentId(3), 2)] {
            learn(&mut vteps, segment, n, at(0));
        }
        let changed = vteps.learn(SegmentId(4), vtep(0), at(3));
        assert_eq!(changed, Vteps::dependency(SegmentId(4)) | Vteps::dependency(BLUE));
        assert_eq!((vteps.len(), vteps.of(BLUE, at(3)).len(), vteps.of(RED, at(3)).len()), (8, 3, 2));
    }

    #[test]
    fn a_dead_endpoint_leaves_every_segment() {
        let mut vteps = Vteps::new(LIMITS);
        for segment in [BLUE, RED] {
            learn(&mut vteps, segment, 2, at(0));
        }
        let changed = Vteps::dependency(BLUE) | Vteps::dependency(RED);
        assert_eq!(vteps.remove(vtep(0)), Flushed { count: 2, changed });
        assert_eq!(vteps.flush(Some(RED)), Flushed { count: 1, changed: Vteps::dependency(RED) });
        assert_eq!(vteps.flush(None), Flushed { count: 1, changed: Vteps::dependency(BLUE) });
        assert_eq!(vteps.entries(at(0)).count(), 0);
    }

    #[test]
    fn a_table_without_room_learns_nothing() {
        for limits in [Limits { per_segment: 0, ..LIMITS }, Limits { size: 0, ..LIMITS }] {
            let mut vteps = Vteps::new(limits);
            assert_eq!((vteps.learn(BLUE, vtep(1), at(9)), vteps.len()), (0, 0));
        }
    }

    /// Endpoints, with when each was last seen.
    type Model = Vec<(SegmentId, IpAddr, Instant)>;

    fn fresh(model: &Model, segment: SegmentId, now: Instant) -> Vec<IpAddr> {
        let is_fresh = |e: &&(SegmentId, IpAddr, Instant)| e.0 == segment && now.since(e.2) <= LIMITS.age;
        let mut addresses: Vec<_> = model.iter().filter(is_fresh).map(|e| e.1).collect();
        addresses.sort();
        addresses
    }

    /// Takes out the entry of the segment that was seen longest ago: the list is in that order.
    fn forget(model: &mut Model, segment: SegmentId) {
        let oldest = model.iter().position(|e| e.0 == segment).expect("an entry");
        model.remove(oldest);
    }

    fn held(model: &Model, segment: SegmentId) -> usize {
        model.iter().filter(|e| e.0 == segment).count()
    }

    fn model_learn(model: &mut Model, segment: SegmentId, address: IpAddr, now: Instant) {
        if let Some(i) = model.iter().position(|e| (e.0, e.1) == (segment, address)) {
            model.remove(i);
        } else if held(model, segment) >= LIMITS.per_segment {
            forget(model, segment);
        } else if model.len() >= LIMITS.size {
            let most = model.iter().map(|e| (held(model, e.0), e.0)).max().expect("it is full");
            forget(model, most.1);
        }
        model.push((segment, address, now));
    }

    proptest! {
        /// Against a plain list: who is known, and that a change never goes unreported.
        #[test]
        fn the_table_is_a_bounded_map(
            steps in proptest::collection::vec((0u32..4, 0u8..7, 0u8..10, 0u64..100), 1..150),
        ) {
            let mut vteps = Vteps::new(LIMITS);
            let mut model = Model::new();
            let mut now = at(0);
            for (segment, n, what, wait) in steps {
                let (segment, address) = (SegmentId(segment), vtep(n));
                let before: Vec<_> = (0..4).map(|s| vteps.of(SegmentId(s), now)).collect();
                let waited = now + Duration::from_secs(wait);
                let changed = match what {
                    0 => {
                        model.retain(|e| e.1 != address);
                        vteps.remove(address).changed
                    }
                    1 => {
                        model.retain(|e| e.0 != segment);
                        vteps.flush(Some(segment)).changed
                    }
                    2 => {
                        now = waited;
                        model.retain(|e| now.since(e.2) <= LIMITS.age);
                        vteps.expire(now, 1000)
                    }
                    _ => {
                        model_learn(&mut model, segment, address, now);
                        vteps.learn(segment, address, now)
                    }
                };
                for (s, was) in (0..4).map(SegmentId).zip(before) {
                    let is = vteps.of(s, now);
                    prop_assert_eq!(&is, &fresh(&model, s, now));
                    prop_assert!(is == was || changed & Vteps::dependency(s) != 0);
                }
                prop_assert_eq!(vteps.len(), model.len());
                let entries: usize = (0..4).map(|s| vteps.of(SegmentId(s), now).len()).sum();
                prop_assert_eq!(vteps.entries(now).count(), entries);
            }
        }
    }
}
