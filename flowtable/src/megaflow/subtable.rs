//! All flows of one mask: a hash table that one writer changes while readers walk it.
//!
//! A subtable is a directory of [`SHARDS`] shards, chosen by the hash, so that growing moves a small part at
//! a time. A shard is an array of buckets of one cache line, each with five 32-bit hashes and five pointers
//! to flows. A flow lies in the bucket its hash names or in one of the next `PROBES` - 1`; every bucket
//! counts how many flows were passed on to its successors, so a search knows where to stop. Flows never move
//! inside a shard: a shard that gets too full or too empty is copied, published with one store, and the old
//! copy retired. That needs no look at a flow, because the buckets keep the hashes. Buckets and flows are in huge pages
//! as far as there are many (`blocks`).
//!
//! A lookup costs the hash, the bucket's cache line and the flow's; at most [`PROBES`] buckets. The hash is
//! multilinear (Lemire and Kaser, "Strongly universal string hashing is fast", 2014) with multipliers drawn
//! for each subtable, so nobody outside can make keys collide. Before it, a 64-bit filter is asked for the
//! first word, which has the ingress port: so the masks that one port's traffic has made cost the others'
//! lookups next to nothing.
//!
//! # The rule of protection
//! A `&'p Subtable` exists only where, for all of `'p`, an online [`Member`](crate::epoch::Member) is
//! borrowed or the writer's lock is held and nothing is reclaimed. Whatever can be reached from the subtable
//! is retired, not freed, when it is unlinked, so it stays valid for `'p` too. Whoever has the `&mut Limbo`
//! has the writer's lock: there is one limbo, and it lies inside.

use std::hash::BuildHasher;
use std::ptr::NonNull;

use super::buckets::{Buckets, Link, Shard, holding};
use crate::action::Action;
use crate::blocks::prefetch;
use crate::epoch::Limbo;
use crate::flow::{Flow, FlowRef, Seat, Shape};
use crate::key::FlowKey;
use crate::list::List;
use crate::mask::Mask;
use crate::places::Places;
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// Shards of a subtable, a power of two up to 64. At a million flows in one subtable a shard has 16,000 of
/// them.
pub(super) const SHARDS: usize = if cfg!(feature = "loom") { 1 } else { 64 };

/// What nobody outside can guess. (A model must take the same course each time.)
#[cfg(not(feature = "loom"))]
type Secret = std::hash::RandomState;
#[cfg(feature = "loom")]
type Secret = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

/// What a writer retires. It is only held, then dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "owned until no reader can hold it")]
pub(super) enum Garbage {
    Flow(Flow),
    Lists(Vec<List<Action>>),
    Buckets(Buckets),
    Subtable(Unlinked),
}

/// A subtable that was a box, is unlinked now, and becomes a box again to be dropped. Not a box in between: readers
/// still look at it, and a box says that nobody else does.
#[derive(Debug)]
pub(super) struct Unlinked(NonNull<Subtable>);

impl Unlinked {
    /// Takes what a link pointed to; `None` if it was null.
    ///
    /// # Safety
    /// The pointer comes from `Box::into_raw`, and the link to it is gone.
    pub(super) unsafe fn new(unlinked: *mut Subtable) -> Option<Self> {
        NonNull::new(unlinked).map(Unlinked)
    }
}

// SAFETY: it owns the subtable like a box does.
unsafe impl Send for Unlinked {}

impl Drop for Unlinked {
    fn drop(&mut self) {
        // SAFETY: the contract of `new`; and the limbo drops it when no reader is left.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// The flow's hash fits nowhere, in a table that is nearly empty: more than chance.
#[derive(Debug)]
pub(super) struct Crowded;

/// One word of a mask.
#[derive(Debug)]
struct Word {
    index: usize,
    mask: u64,
    multiplier: u64,
}

impl Word {
    #[inline]
    fn of(&self, key: &FlowKey) -> u64 {
        key.words()[self.index] & self.mask
    }
}

/// The hash of the words so far, as a sum of products.
#[derive(Default)]
struct Sum(u128);

impl Sum {
    #[inline]
    fn add(self, word: &Word, key: &FlowKey) -> Self {
        Sum(self.0.wrapping_add(u128::from(word.of(key)) * u128::from(word.multiplier)))
    }

    /// Folds the sum and lets its middle bits reach all others (a multiplication by the golden ratio).
    #[inline]
    fn finish(self) -> u64 {
        let folded = (self.0 ^ (self.0 >> 64)) as u64;
        let mixed = (folded ^ (folded >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    }
}

/// The flows of one mask.
#[derive(Debug)]
pub(super) struct Subtable {
    words: Box<[Word]>,
    /// The mask again, as flows are compared under it.
    shape: Shape,
    /// Which values of the first word occur, as a 64-bit filter. Bits stay set until the subtable is empty.
    guard: AtomicU64,
    shards: [Link; SHARDS],
    /// How many flows are in each shard. Only the writer asks.
    lens: [AtomicUsize; SHARDS],
    len: AtomicUsize,
}

impl Subtable {
    pub(super) fn new(mask: &Mask) -> Box<Self> {
        let secret = Secret::default();
        let word = |(index, mask)| Word { index, mask, multiplier: secret.hash_one(index) | 1 };
        Box::new(Subtable {
            words: mask.nonzero().map(word).collect(),
            shape: Shape::new(mask, 1),
            guard: AtomicU64::new(0),
            shards: std::array::from_fn(|_| Link::empty()),
            lens: std::array::from_fn(|_| AtomicUsize::new(0)),
            len: AtomicUsize::new(0),
        })
    }

    /// How many flows it has.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The mask of all its flows.
    pub(super) fn mask(&self) -> &Mask {
        &self.shape.mask
    }

    /// The flow that matches `key`. The caller obeys the rule of protection by having `&self`.
    #[inline]
    pub(super) fn find(&self, key: &FlowKey) -> Option<FlowRef<'_>> {
        if self.guard.load(Ordering::Relaxed) & self.guard_bit(key) == 0 {
            return None;
        }
        self.find_hashed(self.hash(key), key)
    }

    #[inline]
    fn find_hashed(&self, hash: u64, key: &FlowKey) -> Option<FlowRef<'_>> {
        let (_, flow) = self.shard(hash)?.find(hash as u32, |flow| flow.agrees(&self.shape, key))?;
        Some(flow)
    }

    /// Looks up those of the keys that are `wanted`, gives what it finds to `found`, and leaves the rest wanted.
    ///
    /// The memory that all of them need, the counters at this seat too, is asked for before any of it is looked at: the
    /// latencies overlap.
    #[inline]
    pub(super) fn find_each<'s>(
        &'s self,
        (keys, seat): (&[FlowKey; Places::MAX], Seat),
        wanted: &mut Places,
        mut found: impl FnMut(usize, FlowRef<'s>),
    ) {
        let (mut hashes, mut firsts, mut likely) = ([0; Places::MAX], [None; Places::MAX], Places::NONE);
        for place in *wanted {
            if self.guard.load(Ordering::Relaxed) & self.guard_bit(&keys[place]) != 0 {
                hashes[place] = self.hash(&keys[place]);
                if let Some(shard) = self.shard(hashes[place]) {
                    let first = shard.first_bucket(hashes[place] as u32);
                    prefetch(first);
                    firsts[place] = Some(first);
                    likely.insert(place);
                }
            }
        }
        let mut candidates = [None; Places::MAX];
        for place in likely {
            let candidate = firsts[place].and_then(|first| first.candidate(hashes[place] as u32));
            if let Some(flow) = candidate {
                flow.prefetch(seat);
                candidates[place] = Some(flow);
            }
        }
        for place in likely {
            let key = &keys[place];
            let candidate = candidates[place].filter(|flow| flow.agrees(&self.shape, key));
            if let Some(flow) = candidate.or_else(|| self.find_hashed(hashes[place], key)) {
                wanted.remove(place);
                found(place, flow);
            }
        }
    }

    /// The bit of the guard that stands for the first word of `key`.
    #[inline]
    fn guard_bit(&self, key: &FlowKey) -> u64 {
        let product = self.words.first().map_or(0, |word| word.of(key).wrapping_mul(word.multiplier));
        1 << (product >> 58)
    }

    #[inline]
    fn hash(&self, key: &FlowKey) -> u64 {
        self.words.iter().fold(Sum::default(), |sum, word| sum.add(word, key)).finish()
    }

    #[inline]
    fn index(hash: u64) -> usize {
        (hash >> 58) as usize & (SHARDS - 1)
    }

    #[inline]
    fn shard(&self, hash: u64) -> Option<Shard<'_>> {
        self.shards[Self::index(hash)].shard()
    }

    /// Counts flows that came (one) or went (all ones) in a shard; how many there are now.
    fn count(&self, shard: usize, change: usize) -> usize {
        let add = |len: &AtomicUsize| {
            let now = len.load(Ordering::Relaxed).wrapping_add(change);
            len.store(now, Ordering::Relaxed);
            now
        };
        add(&self.len);
        add(&self.lens[shard])
    }

    /// Puts other buckets, or none, in the place of those of a shard.
    fn publish(&self, shard: usize, buckets: Option<Buckets>, limbo: &mut Limbo<Garbage>) {
        if let Some(old) = self.shards[shard].swap(buckets) {
            limbo.retire(Garbage::Buckets(old));
        }
    }

    /// Adds a flow with this key, which is not in the table. Worst case: a copy of its shard.
    pub(super) fn add(
        &self,
        (flow, key): (Flow, &FlowKey),
        limbo: &mut Limbo<Garbage>,
    ) -> Result<(), Crowded> {
        let guard = self.guard.load(Ordering::Relaxed) | self.guard_bit(key);
        self.guard.store(guard, Ordering::Relaxed);
        let (hash, flow) = (self.hash(key), flow.into_raw());
        let index = Self::index(hash);
        let (shard, len) = (self.shards[index].shard(), self.lens[index].load(Ordering::Relaxed) + 1);
        if !shard.is_some_and(|shard| !shard.is_full(len) && shard.link(hash as u32, flow)) {
            let all = shard.into_iter().flat_map(Shard::flows).chain([(hash as u32, flow)]);
            match holding(&all.collect::<Vec<_>>()) {
                Ok(copy) => self.publish(index, Some(copy), limbo),
                Err(crowded) => {
                    // SAFETY: no link has it, so the share is still ours.
                    drop(unsafe { Flow::from_raw(flow) });
                    return Err(crowded);
                }
            }
        }
        self.count(index, 1);
        Ok(())
    }

    /// Puts a flow with this key in the place of the one with the same, if there is one, and retires that.
    pub(super) fn replace(&self, (flow, key): (&Flow, &FlowKey), limbo: &mut Limbo<Garbage>) -> Option<Flow> {
        let hash = self.hash(key);
        let shard = self.shard(hash)?;
        let (place, _) = shard.find(hash as u32, |found| found.agrees(&self.shape, key))?;
        Some(retire(shard.exchange(hash as u32, &place, flow.clone().into_raw().as_ptr())?, limbo))
    }

    /// Unlinks and retires this very flow, if it is in the table. Worst case: a copy of its shard.
    pub(super) fn take(&self, flow: &Flow, limbo: &mut Limbo<Garbage>) -> Option<Flow> {
        let hash = self.hash(&flow.key());
        let index = Self::index(hash);
        let shard = self.shards[index].shard()?;
        let (place, _) = shard.find(hash as u32, |found| found == flow)?;
        let taken = shard.unlink(hash as u32, &place)?;
        let len = self.count(index, 1usize.wrapping_neg());
        if len == 0 {
            self.publish(index, None, limbo);
        } else if shard.is_sparse(len)
            && let Ok(copy) = holding(&shard.flows().collect::<Vec<_>>())
        {
            self.publish(index, Some(copy), limbo);
        }
        Some(retire(taken, limbo))
    }

    /// Unlinks, kills and retires every flow.
    pub(super) fn drain(&self, limbo: &mut Limbo<Garbage>) {
        for (index, link) in self.shards.iter().enumerate() {
            let flows: Vec<_> = link.shard().into_iter().flat_map(Shard::flows).collect();
            self.publish(index, None, limbo);
            for (_, flow) in flows {
                // SAFETY: the link that held the share is gone with its buckets, which own no flow.
                let flow = unsafe { Flow::from_raw(flow) };
                flow.kill();
                limbo.retire(Garbage::Flow(flow));
            }
            self.lens[index].store(0, Ordering::Relaxed);
        }
        self.len.store(0, Ordering::Relaxed);
    }

    /// The flows of one shard.
    pub(super) fn flows(&self, shard: usize) -> impl Iterator<Item = FlowRef<'_>> {
        let flows = self.shards[shard].shard().into_iter().flat_map(Shard::flows);
        // SAFETY: a linked flow is protected like the shard it was found in.
        flows.map(|(_, flow)| unsafe { FlowRef::new(flow) })
    }

    /// Some flow, chosen by `random`; rarely none although there are some. Looks at up to [`SHARDS`] links
    /// and 16 buckets: a shard is an eighth full at least, or has a single bucket.
    pub(super) fn draw(&self, random: u64) -> Option<FlowRef<'_>> {
        let start = random as usize;
        let Shard(buckets) = (0..SHARDS).find_map(|i| self.shards[(start + i) & (SHARDS - 1)].shard())?;
        let start = (random >> 8) as usize;
        let bucket = |i: usize| &buckets[(start + i) & (buckets.len() - 1)];
        let bucket = (0..16).map(bucket).find(|bucket| bucket.flows().next().is_some())?;
        let (_, flow) = bucket.flows().nth((random >> 40) as usize % bucket.flows().count())?;
        // SAFETY: a linked flow is protected like the bucket it was found in.
        Some(unsafe { FlowRef::new(flow) })
    }
}

impl Drop for Subtable {
    fn drop(&mut self) {
        for link in &self.shards {
            let Some(buckets) = link.swap(None) else { continue };
            // SAFETY: what is linked comes from `Flow::into_raw`; who drops the subtable is its last user, so no one will
            // follow the link again.
            buckets.shard().flows().for_each(|(_, flow)| drop(unsafe { Flow::from_raw(flow) }));
        }
    }
}

/// Gives the share of an unlinked flow to the limbo, and the caller one of its own.
fn retire(unlinked: Flow, limbo: &mut Limbo<Garbage>) -> Flow {
    limbo.retire(Garbage::Flow(unlinked.clone()));
    unlinked
}
