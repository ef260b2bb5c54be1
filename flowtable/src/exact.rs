//! The exact-match cache of one poller: from the hash of a whole key straight to its flow.
//!
//! Four entries to a set, a set to a cache line. An entry is the 64-bit hash of a key and its flow; what a
//! hit has to prove, that the flow is the key's, the flow itself tells: the key under the flow's mask is the
//! flow's key. So the cache needs no copy of the key, and 8,192 entries are 128 KiB: a second-level cache
//! holds them.
//!
//! When more keys come than it can hold, replacing entries would only move the misses around and dirty the
//! flows' reference counts. So a full set takes one newcomer in a hundred: keys of many frames get
//! in, the others pass by. And when few find what they look for here, most batches do not even ask
//! ([`ExactCache::is_awake`]): then this cache only costs.
//!
//! Cost: `get` reads one set and one flow; `insert` one set; nothing allocates.

use std::cell::Cell;
use std::num::NonZeroU32;

use crate::blocks::prefetch;
use crate::flow::{DEAD, Flow, FlowRef, Seat};
use crate::key::FlowKey;
use crate::places::Places;
#[cfg(target_arch = "x86_64")]
use crate::wide;

/// How many entries there are.
const ENTRIES: usize = 8192;

/// Entries of a set.
const WAYS: usize = 4;

/// A newcomer replaces an entry of a full set once in so many times. Bench `lookup caches/skewed`; also what
/// OVS does by default (ovs-vswitchd.conf.db(5), `emc-insert-inv-prob`).
const ADMIT: u32 = 100;

/// Keys that are looked for between two looks at how many were found. Long enough for a working set that has just become
/// small to get in past [`ADMIT`].
const WINDOW: u32 = 1 << 17;
/// A window in which not one in so many was found is followed by sleep. Bench `forward`, l2/100000, in a noisy hour: 136 cycles
/// a frame at best, 277 in the median; 165 and 372 if it never sleeps.
const WORTH: u32 = 8;
/// So many windows long.
const SLEEP: u32 = 7;

/// Entries that share a line: hashes of keys, and their flows. Where the flow was let go of the hash stays, so no hash but
/// that of new sets, zero, is there twice, and of these the first counts.
#[derive(Debug, Clone, Default)]
#[repr(align(64))]
struct Set {
    hashes: [u64; WAYS],
    flows: [Option<Flow>; WAYS],
}

impl Set {
    /// The first way that has this hash. No branch: which it is cannot be foretold (bench `forward`, l2/1000).
    #[inline]
    fn way(&self, hash: u64) -> Option<usize> {
        let is = |way: usize| u32::from(self.hashes[way] == hash) << way;
        let ways = NonZeroU32::new((0..WAYS).fold(0, |ways, way| ways | is(way)))?;
        Some(ways.trailing_zeros() as usize)
    }

    /// As [`Set::way`], all at a time: 6 instructions instead of 17.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    fn way_wide(&self, hash: u64) -> Option<usize> {
        use std::arch::x86_64::{
            _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_movemask_pd, _mm256_set1_epi64x,
        };
        let same = _mm256_cmpeq_epi64(wide::words(&self.hashes, 0), _mm256_set1_epi64x(hash.cast_signed()));
        let ways = NonZeroU32::new(_mm256_movemask_pd(_mm256_castsi256_pd(same)).cast_unsigned())?;
        Some(ways.trailing_zeros() as usize)
    }

    fn put(&mut self, way: usize, hash: u64, flow: Flow) {
        (self.hashes[way], self.flows[way]) = (hash, Some(flow));
    }
}

/// For each place, the flow that may be its key's.
type Candidates<'c> = [Option<FlowRef<'c>>; Places::MAX];

/// The cache.
#[derive(Debug)]
pub struct ExactCache {
    sets: Box<[Set; ENTRIES / WAYS]>,
    /// Counts newcomers to full sets.
    newcomers: u32,
    /// The set that the sweep comes to next.
    swept: usize,
    /// Keys looked for and found in this window.
    asked: u32,
    found: Cell<u32>,
    /// Keys that will pass before the next window begins.
    asleep: u32,
}

impl Default for ExactCache {
    fn default() -> Self {
        Self::new()
    }
}

impl ExactCache {
    /// An empty cache.
    pub fn new() -> Self {
        let sets = vec![Set::default(); ENTRIES / WAYS].try_into().expect("as many");
        ExactCache { sets, newcomers: 0, swept: 0, asked: 0, found: Cell::new(0), asleep: 0 }
    }

    /// Is it worth asking for the next keys, so many? To be called once for each batch. If not, what was found elsewhere
    /// need not be inserted either.
    #[inline]
    pub fn is_awake(&mut self, keys: usize) -> bool {
        if self.asleep > 0 {
            self.asleep = self.asleep.saturating_sub(keys as u32);
            return false;
        }
        self.asked += keys as u32;
        if self.asked >= WINDOW {
            if self.found.get() < self.asked / WORTH {
                self.asleep = SLEEP * WINDOW;
            }
            self.asked = 0;
            self.found.set(0);
        }
        true
    }

    /// The flow of `key`, whose [hash](FlowKey::hash) is `hash`, if it is cached and was last confirmed for
    /// `generation`.
    #[inline]
    pub fn get(&self, key: &FlowKey, hash: u64, generation: u64) -> Option<FlowRef<'_>> {
        let flow = self.candidate(hash)?;
        (flow.generation() == generation && flow.matches(key)).then_some(flow)
    }

    /// Asks for the memory where this hash may lie.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(self.set(hash));
    }

    /// As [`ExactCache::get`], for all of `keys` that are `wanted`, with their hashes, which the caller has
    /// [asked](ExactCache::prefetch) for; those found come one by one, with their place. Memory of flows, the counters at this
    /// seat too, is asked for before it is needed.
    #[inline]
    pub fn get_each<'c>(
        &'c self,
        (keys, hashes): (&[FlowKey; Places::MAX], &[u64; Places::MAX]),
        (generation, seat): (u64, Seat),
        wanted: &mut Places,
        mut found: impl FnMut(usize, FlowRef<'c>),
    ) {
        let before = wanted.len();
        let candidates = self.candidates(hashes, *wanted, seat);
        for place in *wanted {
            let is = |flow: &FlowRef<'_>| flow.generation() == generation && flow.matches(&keys[place]);
            if let Some(flow) = candidates[place].filter(is) {
                wanted.remove(place);
                found(place, flow);
            }
        }
        self.found.set(self.found.get() + (before - wanted.len()) as u32);
    }

    #[inline]
    #[allow(unsafe_code)]
    fn candidates(&self, hashes: &[u64; Places::MAX], wanted: Places, seat: Seat) -> Candidates<'_> {
        #[cfg(target_arch = "x86_64")]
        if wide::is_there() {
            // SAFETY: the processor has what it needs.
            return unsafe { self.candidates_wide(hashes, wanted, seat) };
        }
        self.candidates_by((hashes, wanted), seat, Set::way)
    }

    /// As [`ExactCache::candidates`], on a processor that [can](wide::is_there).
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    fn candidates_wide(&self, hashes: &[u64; Places::MAX], wanted: Places, seat: Seat) -> Candidates<'_> {
        self.candidates_by((hashes, wanted), seat, |set, hash| set.way_wide(hash))
    }

    /// As [`ExactCache::candidates`], where `way` finds a hash in a set.
    #[inline(always)]
    fn candidates_by(
        &self,
        (hashes, wanted): (&[u64; Places::MAX], Places),
        seat: Seat,
        way: impl Fn(&Set, u64) -> Option<usize>,
    ) -> Candidates<'_> {
        let mut candidates = [None; Places::MAX];
        for place in wanted {
            let set = self.set(hashes[place]);
            let candidate = way(set, hashes[place]).and_then(|way| set.flows[way % WAYS].as_ref());
            if let Some(flow) = candidate.map(FlowRef::from) {
                flow.prefetch(seat);
                candidates[place] = Some(flow);
            }
        }
        candidates
    }

    #[inline]
    fn candidate(&self, hash: u64) -> Option<FlowRef<'_>> {
        let set = self.set(hash);
        set.flows[set.way(hash)?].as_ref().map(FlowRef::from)
    }

    #[inline]
    fn set(&self, hash: u64) -> &Set {
        &self.sets[Self::index(hash)]
    }

    /// Caches the flow of a key that `get` did not find, if it may come in; only then `flow` is asked for a
    /// share of it.
    #[inline]
    pub fn insert(&mut self, hash: u64, flow: impl FnOnce() -> Flow) {
        let set = &mut self.sets[Self::index(hash)];
        let free = || set.flows.iter().position(Option::is_none);
        if let Some(way) = set.way(hash).or_else(free) {
            return set.put(way, hash, flow());
        }
        self.newcomers = self.newcomers.wrapping_add(1);
        if self.newcomers.is_multiple_of(ADMIT) {
            // Bits that did not choose the set.
            set.put((hash >> 32) as usize % WAYS, hash, flow());
        }
    }

    /// Lets go of the dead flows among the next `entries` entries, so that they are freed. Reads each flow
    /// there.
    pub fn sweep(&mut self, entries: usize) {
        for _ in 0..entries.div_ceil(WAYS).min(self.sets.len()) {
            let dead = |flow: &mut Flow| flow.generation() == DEAD;
            self.sets[self.swept].flows.iter_mut().for_each(|flow| drop(flow.take_if(dead)));
            self.swept = (self.swept + 1) % self.sets.len();
        }
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        self.sets.fill(Set::default());
    }

    /// How many entries are taken. Visits all.
    pub fn len(&self) -> usize {
        self.sets.iter().flat_map(|set| &set.flows).flatten().count()
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

    fn flow(n: u64) -> Flow {
        let decision = Decision {
            mask: Mask::EXACT,
            actions: [Action::Drop(DropReason::NoDestination)].into(),
            effects: Box::new([]),
            in_port: PortId(1),
            depends: 0,
            rests_on: Default::default(),
            cacheable: true,
        };
        let birth = Birth { generation: 7, pollers: 1, now: Instant::ZERO };
        Flow::new(&key(n), decision, birth)
    }

    const ALONE: Seat = Seat { index: 0, pollers: 1 };

    fn insert(cache: &mut ExactCache, n: u64) -> Flow {
        let flow = flow(n);
        cache.insert(key(n).hash(), || flow.clone());
        flow
    }

    fn get(cache: &ExactCache, n: u64) -> Option<FlowRef<'_>> {
        cache.get(&key(n), key(n).hash(), 7)
    }

    #[test]
    fn stale_and_dead_flows_miss() {
        let mut cache = ExactCache::new();
        let cached = insert(&mut cache, 1);
        assert!(get(&cache, 1).is_some_and(|found| found == FlowRef::from(&cached)));
        assert!(cache.get(&key(1), key(1).hash(), 8).is_none());
        assert!(cached.confirm(7, 8));
        assert!(cache.get(&key(1), key(1).hash(), 8).is_some());
        cached.kill();
        assert!(cache.get(&key(1), key(1).hash(), 8).is_none());
    }

    #[test]
    fn equal_hashes_do_not_deceive_it() {
        let mut cache = ExactCache::new();
        let cached = flow(1);
        cache.insert(5, || cached.clone());
        assert!(cache.get(&key(1), 5, 7).is_some());
        assert!(cache.get(&key(2), 5, 7).is_none());
    }

    #[test]
    fn a_newer_flow_of_the_same_key_takes_the_place_of_the_old() {
        let mut cache = ExactCache::new();
        let old = insert(&mut cache, 1);
        let new = insert(&mut cache, 1);
        assert_eq!((cache.len(), old.shares()), (1, 1));
        assert!(get(&cache, 1).is_some_and(|found| found == FlowRef::from(&new)));
    }

    #[test]
    fn the_sweep_frees_what_is_dead_and_nothing_else() {
        let mut cache = ExactCache::new();
        let flows: Vec<_> = (0..100).map(|n| insert(&mut cache, n)).collect();
        flows.iter().step_by(2).for_each(|flow| flow.kill());
        (0..ENTRIES / 64).for_each(|_| cache.sweep(64));
        for (n, flow) in flows.iter().enumerate() {
            assert_eq!(flow.shares(), 1 + n % 2);
        }
        cache.clear();
        assert!(cache.is_empty() && flows.iter().all(|flow| flow.shares() == 1));
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

    #[test]
    fn it_sleeps_while_few_find_anything_and_wakes_up_again() {
        let mut cache = ExactCache::new();
        let awake = |cache: &mut ExactCache, keys: u32, found: u32| {
            for n in 0..keys {
                if cache.is_awake(1) {
                    cache.found.set(cache.found.get() + u32::from(n % 100 < found));
                }
            }
            cache.is_awake(1)
        };
        assert!(awake(&mut cache, 2 * WINDOW, 50));
        assert!(!awake(&mut cache, 2 * WINDOW, 5), "not worth it");
        assert!(awake(&mut cache, SLEEP * WINDOW - WINDOW / 2, 5), "but looks again");
        assert!(awake(&mut cache, 10 * WINDOW, 90));
    }

    #[test]
    fn many_are_found_as_one_by_one() {
        let mut cache = ExactCache::new();
        let flows: Vec<_> = (0..32).step_by(3).map(|n| insert(&mut cache, n)).collect();
        flows[1].kill();
        let keys: [FlowKey; 32] = std::array::from_fn(|n| key(n as u64));
        let hashes: [u64; 32] = std::array::from_fn(|n| keys[n].hash());
        let (mut wanted, mut found) = (Places::first(32), Vec::new());
        wanted.remove(0);
        cache.get_each((&keys, &hashes), (7, ALONE), &mut wanted, |place, flow| {
            found.push((place, flow.share()))
        });
        let expected: Vec<_> = (2..).zip(&flows[2..]).map(|(n, flow)| (3 * n, flow.clone())).collect();
        assert_eq!(found, expected);
        assert!(wanted.eq((1..32).filter(|place| place % 3 != 0 || *place == 3)));
    }

    proptest! {
        #[test]
        fn wide_or_not_it_finds_the_same(ns in prop::collection::vec(0u64..64, 1..20)) {
            // All in one set.
            let hash = |n: u64| n % 9 * (ENTRIES / WAYS) as u64;
            let mut cache = ExactCache::new();
            ns.iter().for_each(|n| cache.insert(hash(*n), || flow(*n)));
            let hashes: [u64; Places::MAX] = std::array::from_fn(|n| hash(n as u64));
            let wanted = Places::first(Places::MAX).without(Places::first(3));
            let found = cache.candidates(&hashes, wanted, ALONE);
            prop_assert_eq!(found, cache.candidates_by((&hashes, wanted), ALONE, Set::way));
            prop_assert!(found[..3].iter().all(Option::is_none) && found.iter().flatten().count() > 0);
        }

        #[test]
        fn it_never_gives_another_keys_flow(ns in prop::collection::vec(0u64..64, 1..200)) {
            let mut cache = ExactCache::new();
            for n in ns {
                prop_assert!(get(&cache, n).is_none_or(|found| found.key() == key(n)));
                // Few hashes for many keys: collisions are the rule.
                cache.insert(n % 5, || flow(n));
                prop_assert!(cache.get(&key(n), n % 5, 7).is_some_and(|found| found.key() == key(n)));
            }
        }
    }
}
