//! The exact-match cache of one poller: from the hash of a whole key straight to its flow.
//!
//! Four entries to a set, a set to a cache line. An entry is the 64-bit hash of a key and its flow; what a
//! hit has to prove, that the flow is the key's, the flow itself tells: the key under the flow's mask is the
//! flow's key. So the cache needs no copy of the key, and 8,192 entries are 128 KiB: a second-level cache
//! holds them.
//!
//! When more keys come than it can hold, replacing entries would only move the misses around and dirty the
//! flows' reference counts. So a full set takes one newcomer in a hundred: keys of many frames get
//! in, the others pass by.
//!
//! Cost: `get` reads one set and one flow; `insert` one set; nothing allocates.

use std::sync::Arc;

use crate::flow::{DEAD, Flow};
use crate::key::FlowKey;

/// How many entries there are.
const ENTRIES: usize = 8192;

/// Entries of a set.
const WAYS: usize = 4;

/// A newcomer replaces an entry of a full set once in so many times. Bench `lookup caches/skewed`; also what
/// OVS does by default (ovs-vswitchd.conf.db(5), `emc-insert-inv-prob`).
const ADMIT: u32 = 100;

/// A key's hash and its flow.
#[derive(Debug, Clone)]
struct Entry {
    hash: u64,
    flow: Arc<Flow>,
}

#[derive(Debug, Clone, Default)]
#[repr(align(64))]
struct Set([Option<Entry>; WAYS]);

/// The cache.
#[derive(Debug)]
pub struct ExactCache {
    sets: Box<[Set]>,
    /// Counts newcomers to full sets.
    newcomers: u32,
    /// The set that the sweep comes to next.
    swept: usize,
}

impl Default for ExactCache {
    fn default() -> Self {
        Self::new()
    }
}

impl ExactCache {
    /// An empty cache.
    pub fn new() -> Self {
        ExactCache { sets: vec![Set::default(); ENTRIES / WAYS].into(), newcomers: 0, swept: 0 }
    }

    /// The flow of `key`, whose [hash](FlowKey::hash) is `hash`, if it is cached and was last confirmed for
    /// `generation`.
    #[inline]
    pub fn get(&self, key: &FlowKey, hash: u64, generation: u64) -> Option<&Arc<Flow>> {
        let set = &self.sets[Self::index(hash)].0;
        let entry = set.iter().flatten().find(|entry| entry.hash == hash)?;
        let flow = &entry.flow;
        (flow.generation() == generation && flow.matches(key)).then_some(flow)
    }

    /// Caches the flow of a key that `get` did not find, if it may come in; only then `flow` is asked for a
    /// share of it.
    #[inline]
    pub fn insert(&mut self, hash: u64, flow: impl FnOnce() -> Arc<Flow>) {
        let set = &mut self.sets[Self::index(hash)].0;
        let same = set.iter().position(|entry| entry.as_ref().is_some_and(|entry| entry.hash == hash));
        let free = || set.iter().position(Option::is_none);
        if let Some(way) = same.or_else(free) {
            set[way] = Some(Entry { hash, flow: flow() });
            return;
        }
        self.newcomers = self.newcomers.wrapping_add(1);
        if self.newcomers.is_multiple_of(ADMIT) {
            // Bits that did not choose the set.
            set[(hash >> 32) as usize % WAYS] = Some(Entry { hash, flow: flow() });
        }
    }

    /// Lets go of the dead flows among the next `entries` entries, so that they are freed. Reads each flow
    /// there.
    pub fn sweep(&mut self, entries: usize) {
        for _ in 0..entries.div_ceil(WAYS).min(self.sets.len()) {
            let dead = |entry: &mut Entry| entry.flow.generation() == DEAD;
            self.sets[self.swept].0.iter_mut().for_each(|entry| drop(entry.take_if(dead)));
            self.swept = (self.swept + 1) % self.sets.len();
        }
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        self.sets.fill(Set::default());
    }

    /// How many entries are taken. Visits all.
    pub fn len(&self) -> usize {
        self.sets.iter().flat_map(|set| &set.0).flatten().count()
    }

    /// True if nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn index(hash: u64) -> usize {
        hash as usize % (ENTRIES / WAYS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::action::{Action, DropReason};
    use crate::flow::{Birth, Decision};
    use crate::id::PortId;
    use crate::mask::Mask;
    use crate::time::Instant;

    fn key(n: u64) -> FlowKey {
        let mut key = FlowKey::default();
        key.0[0] = n;
        key
    }

    fn flow(n: u64) -> Arc<Flow> {
        let decision = Decision {
            mask: Mask::EXACT,
            actions: [Action::Drop(DropReason::NoDestination)].into(),
            effects: Box::new([]),
            in_port: PortId(0),
            depends: 0,
            cacheable: true,
        };
        let birth = Birth { generation: 7, pollers: 1, now: Instant::ZERO };
        Arc::new(Flow::new(&key(n), PortId(1), decision, birth))
    }

    fn insert(cache: &mut ExactCache, n: u64) -> Arc<Flow> {
        let flow = flow(n);
        cache.insert(key(n).hash(), || Arc::clone(&flow));
        flow
    }

    fn get(cache: &ExactCache, n: u64) -> Option<&Arc<Flow>> {
        cache.get(&key(n), key(n).hash(), 7)
    }

    #[test]
    fn stale_and_dead_flows_miss() {
        let mut cache = ExactCache::new();
        let cached = insert(&mut cache, 1);
        assert!(get(&cache, 1).is_some_and(|found| Arc::ptr_eq(found, &cached)));
        assert!(cache.get(&key(1), key(1).hash(), 8).is_none());
        cached.confirm(8);
        assert!(cache.get(&key(1), key(1).hash(), 8).is_some());
        cached.kill();
        assert!(cache.get(&key(1), key(1).hash(), 8).is_none());
    }

    #[test]
    fn equal_hashes_do_not_deceive_it() {
        let mut cache = ExactCache::new();
        let cached = flow(1);
        cache.insert(5, || Arc::clone(&cached));
        assert!(cache.get(&key(1), 5, 7).is_some());
        assert!(cache.get(&key(2), 5, 7).is_none());
    }

    #[test]
    fn a_newer_flow_of_the_same_key_takes_the_place_of_the_old() {
        let mut cache = ExactCache::new();
        let old = insert(&mut cache, 1);
        let new = insert(&mut cache, 1);
        assert_eq!((cache.len(), Arc::strong_count(&old)), (1, 1));
        assert!(get(&cache, 1).is_some_and(|found| Arc::ptr_eq(found, &new)));
    }

    #[test]
    fn the_sweep_frees_what_is_dead_and_nothing_else() {
        let mut cache = ExactCache::new();
        let flows: Vec<_> = (0..100).map(|n| insert(&mut cache, n)).collect();
        flows.iter().step_by(2).for_each(|flow| flow.kill());
        (0..ENTRIES / 64).for_each(|_| cache.sweep(64));
        for (n, flow) in flows.iter().enumerate() {
            assert_eq!(Arc::strong_count(flow), 1 + n % 2);
        }
        cache.clear();
        assert!(cache.is_empty() && flows.iter().all(|flow| Arc::strong_count(flow) == 1));
    }

    #[test]
    fn a_crowd_passes_by_and_a_regular_gets_in() {
        let mut cache = ExactCache::new();
        (0..4 * ENTRIES as u64).for_each(|n| drop(insert(&mut cache, n)));
        let before: Vec<u64> = (0..4 * ENTRIES as u64).filter(|n| get(&cache, *n).is_some()).collect();
        (0..1000).for_each(|n| drop(insert(&mut cache, 1_000_000 + n)));
        let stayed = before.iter().filter(|n| get(&cache, **n).is_some()).count();
        assert!(before.len() - stayed <= 1000 / ADMIT as usize + 1, "{stayed} of {} stayed", before.len());
        let regular = (0..ADMIT + 1).any(|_| {
            insert(&mut cache, 2_000_000);
            get(&cache, 2_000_000).is_some()
        });
        assert!(regular);
    }

    proptest! {
        #[test]
        fn it_never_gives_another_keys_flow(ns in prop::collection::vec(0u64..64, 1..200)) {
            let mut cache = ExactCache::new();
            for n in ns {
                prop_assert!(get(&cache, n).is_none_or(|found| found.key == key(n)));
                // Few hashes for many keys: collisions are the rule.
                cache.insert(n % 5, || flow(n));
                prop_assert!(cache.get(&key(n), n % 5, 7).is_some_and(|found| found.key == key(n)));
            }
        }
    }
}
