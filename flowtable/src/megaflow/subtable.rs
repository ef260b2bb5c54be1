//! All flows of one mask: a hash table that one writer changes while readers walk it.
//!
//! A subtable is a directory of [`SHARDS`] shards, chosen by the hash, so that growing moves a small part at
//! a time. A shard is an array of buckets of one cache line, each with five 32-bit hashes and five pointers
//! to flows. A flow lies in the bucket its hash names or in one of the next [`PROBES`]` - 1`; every bucket
//! counts how many flows were passed on to its successors, so a search knows where to stop. Flows never move
//! inside a shard: a shard that gets too full or too empty is copied, published with one store, and the old
//! copy retired. That needs no look at a flow, because the buckets keep the hashes.
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
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::epoch::Limbo;
use crate::flow::Flow;
use crate::key::FlowKey;
use crate::mask::Mask;
use crate::places::Places;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Shards of a subtable, a power of two up to 64. At a million flows in one subtable a shard has 16,000 of
/// them.
pub(super) const SHARDS: usize = if cfg!(feature = "loom") { 1 } else { 64 };

/// Flows in a bucket: what fits a cache line.
const WAYS: usize = 5;

/// How many buckets a search visits at most.
const PROBES: usize = 8;

/// What nobody outside can guess. (A model must take the same course each time.)
#[cfg(not(feature = "loom"))]
type Secret = std::hash::RandomState;
#[cfg(feature = "loom")]
type Secret = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

/// A flow in the table, borrowed from the reader that found it.
///
/// It may have been removed since ([`Flow::generation`] says so), but it is not freed while this exists.
#[derive(Debug, Clone, Copy)]
pub struct FlowRef<'r> {
    flow: NonNull<Flow>,
    reader: PhantomData<&'r Flow>,
}

impl<'r> FlowRef<'r> {
    /// The flow, for as long as the reader is borrowed.
    #[inline]
    pub fn get(self) -> &'r Flow {
        // SAFETY: made only by this module, from a pointer that is protected for 'r.
        unsafe { self.flow.as_ref() }
    }

    /// A share of the flow, to keep beyond the poll.
    pub fn share(self) -> Arc<Flow> {
        // SAFETY: the pointer comes from `Arc::into_raw`, and the table or its limbo owns a count of it for
        // 'r.
        unsafe {
            Arc::increment_strong_count(self.flow.as_ptr());
            Arc::from_raw(self.flow.as_ptr())
        }
    }
}

impl Deref for FlowRef<'_> {
    type Target = Flow;

    #[inline]
    fn deref(&self) -> &Flow {
        self.get()
    }
}

impl FlowRef<'_> {
    /// Asks for the memory that executing the flow on this poller takes.
    #[inline]
    pub fn prefetch(self, poller: usize) {
        prefetch(self.get().stats(poller));
        prefetch(self.get().decision.actions.as_ptr());
    }
}

/// Asks for the cache lines of a flow that every frame of it needs.
#[inline]
fn prefetch_flow(flow: NonNull<Flow>) {
    prefetch(flow.as_ptr());
    prefetch(flow.as_ptr().cast::<u8>().wrapping_add(std::mem::offset_of!(Flow, decision)));
}

/// Asks for a cache line. Any address will do: one that is not mapped is ignored.
#[inline]
fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing that a program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// What a writer retires. It is only held, then dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "owned until no reader can hold it")]
pub(super) enum Garbage {
    Flow(Arc<Flow>),
    Shard(Unlinked<Shard>),
    Subtable(Unlinked<Subtable>),
}

/// What was a box, is unlinked now, and becomes a box again to be dropped. Not a box in between: readers
/// still look at it, and a box says that nobody else does.
#[derive(Debug)]
pub(super) struct Unlinked<T>(NonNull<T>);

impl<T> Unlinked<T> {
    /// Takes what a link pointed to; `None` if it was null.
    ///
    /// # Safety
    /// The pointer comes from `Box::into_raw`, and the link to it is gone.
    pub(super) unsafe fn new(unlinked: *mut T) -> Option<Self> {
        NonNull::new(unlinked).map(Unlinked)
    }
}

// SAFETY: it owns the value like a box does.
unsafe impl<T: Send> Send for Unlinked<T> {}

impl<T> Drop for Unlinked<T> {
    fn drop(&mut self) {
        // SAFETY: the contract of `new`; and the limbo drops it when no reader is left.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// The flow's hash fits nowhere, in a table that is nearly empty: more than chance.
#[derive(Debug)]
pub(super) struct Crowded;

#[derive(Debug)]
#[repr(align(64))]
struct Bucket {
    hashes: [AtomicU32; WAYS],
    /// How many flows were passed on from here to later buckets.
    passed: AtomicU32,
    flows: [AtomicPtr<Flow>; WAYS],
}

impl Bucket {
    fn new() -> Self {
        Bucket {
            hashes: std::array::from_fn(|_| AtomicU32::new(0)),
            passed: AtomicU32::new(0),
            flows: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }

    fn add_passed(&self, n: u32) {
        self.passed.store(self.passed.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The flows in it, with their hashes.
    fn flows(&self) -> impl Iterator<Item = (u32, NonNull<Flow>)> + '_ {
        let flow = |way: usize| NonNull::new(self.flows[way].load(Ordering::Acquire));
        (0..WAYS).filter_map(move |way| Some((self.hashes[way].load(Ordering::Relaxed), flow(way)?)))
    }
}

/// An array of buckets. It points to flows but does not own them: the subtable does.
#[derive(Debug)]
pub(super) struct Shard {
    buckets: Box<[Bucket]>,
    len: AtomicUsize,
}

/// Where a flow lies in a shard: a bucket by its distance from the first one to try, and a way in it.
struct Place {
    distance: usize,
    way: usize,
}

impl Shard {
    fn new(buckets: usize) -> Box<Self> {
        let buckets = (0..buckets).map(|_| Bucket::new()).collect();
        Box::new(Shard { buckets, len: AtomicUsize::new(0) })
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The buckets where `hash` may lie, in order.
    #[inline]
    fn path(&self, hash: u32) -> impl Iterator<Item = &Bucket> {
        let last = self.buckets.len() - 1;
        (0..PROBES.min(last + 1)).map(move |distance| &self.buckets[(hash as usize + distance) & last])
    }

    #[inline]
    fn first_bucket(&self, hash: u32) -> &Bucket {
        &self.buckets[hash as usize & (self.buckets.len() - 1)]
    }

    /// The flow that a search for this hash will most likely find.
    #[inline]
    fn candidate(&self, hash: u32) -> Option<NonNull<Flow>> {
        let bucket = self.first_bucket(hash);
        let way = (0..WAYS).find(|way| bucket.hashes[*way].load(Ordering::Relaxed) == hash)?;
        NonNull::new(bucket.flows[way].load(Ordering::Relaxed))
    }

    /// Finds the flow that has this hash and `is` the one.
    #[inline]
    fn find(&self, hash: u32, is: impl Fn(&Flow) -> bool) -> Option<(Place, NonNull<Flow>)> {
        for (distance, bucket) in self.path(hash).enumerate() {
            for way in 0..WAYS {
                if bucket.hashes[way].load(Ordering::Relaxed) != hash {
                    continue;
                }
                let flow = NonNull::new(bucket.flows[way].load(Ordering::Acquire));
                // SAFETY: a linked flow is protected like the shard it was found in.
                if let Some(flow) = flow.filter(|flow| is(unsafe { flow.as_ref() })) {
                    return Some((Place { distance, way }, flow));
                }
            }
            if bucket.passed.load(Ordering::Relaxed) == 0 {
                return None;
            }
        }
        None
    }

    /// Links a flow in the first free way on its path; false if there is none.
    fn link(&self, hash: u32, flow: NonNull<Flow>) -> bool {
        let free = |bucket: &Bucket| bucket.flows.iter().position(|f| f.load(Ordering::Relaxed).is_null());
        let place = self.path(hash).enumerate().find_map(|(d, bucket)| Some((d, bucket, free(bucket)?)));
        let Some((distance, bucket, way)) = place else { return false };
        self.path(hash).take(distance).for_each(|passed| passed.add_passed(1));
        bucket.hashes[way].store(hash, Ordering::Relaxed);
        bucket.flows[way].store(flow.as_ptr(), Ordering::Release); // the flow before the link
        self.len.store(self.len() + 1, Ordering::Relaxed);
        true
    }

    /// Unlinks the flow at a place that [`Shard::find`] gave for this hash.
    fn unlink(&self, hash: u32, place: &Place) {
        self.exchange(hash, place, ptr::null_mut());
        self.path(hash).take(place.distance).for_each(|passed| passed.add_passed(1u32.wrapping_neg()));
        self.len.store(self.len() - 1, Ordering::Relaxed);
    }

    /// Changes the link at a place that [`Shard::find`] gave for this hash.
    fn exchange(&self, hash: u32, place: &Place, flow: *mut Flow) {
        let bucket = self.path(hash).nth(place.distance).expect("the place lies on the path");
        bucket.flows[place.way].store(flow, Ordering::Release);
    }

    /// A shard of these flows, at most half full, more room only where chance wants it.
    fn holding(flows: &[(u32, NonNull<Flow>)]) -> Result<Box<Self>, Crowded> {
        let least = (flows.len() * 2).div_ceil(WAYS).next_power_of_two();
        let sizes = std::iter::successors(Some(least), |n| Some(n * 2)).take(4);
        let all = |shard: &Shard| flows.iter().all(|(hash, flow)| shard.link(*hash, *flow));
        sizes.map(Shard::new).find(|shard| all(shard)).ok_or(Crowded)
    }

    fn flows(&self) -> impl Iterator<Item = (u32, NonNull<Flow>)> + '_ {
        self.buckets.iter().flat_map(Bucket::flows)
    }

    /// Three quarters full: beyond this, paths get long.
    fn is_full(&self) -> bool {
        self.len() >= self.buckets.len() * WAYS * 3 / 4
    }

    /// So empty that a copy saves most of the memory.
    fn is_sparse(&self) -> bool {
        self.len() * 8 < self.buckets.len() * WAYS && self.buckets.len() > 1
    }
}

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
    shards: [AtomicPtr<Shard>; SHARDS],
    len: AtomicUsize,
    /// Which values of the first word occur, as a 64-bit filter. Bits stay set until the subtable is empty.
    guard: AtomicU64,
    /// The mask.
    pub(super) mask: Mask,
}

impl Subtable {
    pub(super) fn new(mask: &Mask) -> Box<Self> {
        let secret = Secret::default();
        let word = |(index, mask)| Word { index, mask, multiplier: secret.hash_one(index) | 1 };
        Box::new(Subtable {
            words: mask.nonzero().map(word).collect(),
            shards: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            len: AtomicUsize::new(0),
            guard: AtomicU64::new(0),
            mask: *mask,
        })
    }

    /// How many flows it has.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The flow that matches `key`. The caller obeys the rule of protection by having `&self`.
    #[inline]
    pub(super) fn find(&self, key: &FlowKey) -> Option<FlowRef<'_>> {
        if self.guard.load(Ordering::Relaxed) & self.guard_bit(key) == 0 {
            return None;
        }
        let hash = self.hash(key);
        let (_, flow) = self.shard(hash)?.find(hash as u32, |flow| self.matches(flow, key))?;
        Some(FlowRef { flow, reader: PhantomData })
    }

    /// Looks up those of the keys that are `wanted`, gives what it finds to `found`, and leaves the rest wanted.
    ///
    /// The memory that all of them need is asked for before any of it is looked at: the latencies overlap.
    #[inline]
    pub(super) fn find_each<'s>(
        &'s self,
        keys: &[FlowKey],
        wanted: &mut Places,
        mut found: impl FnMut(usize, FlowRef<'s>),
    ) {
        let (mut hashes, mut likely) = ([0; Places::MAX], Places::NONE);
        for place in *wanted {
            if self.guard.load(Ordering::Relaxed) & self.guard_bit(&keys[place]) != 0 {
                hashes[place] = self.hash(&keys[place]);
                if let Some(shard) = self.shard(hashes[place]) {
                    prefetch(shard.first_bucket(hashes[place] as u32));
                    likely.insert(place);
                }
            }
        }
        for place in likely {
            let candidate = self.shard(hashes[place]).and_then(|shard| shard.candidate(hashes[place] as u32));
            candidate.into_iter().for_each(prefetch_flow);
        }
        for place in likely {
            let (key, hash) = (&keys[place], hashes[place]);
            let flow =
                self.shard(hash).and_then(|shard| shard.find(hash as u32, |flow| self.matches(flow, key)));
            if let Some((_, flow)) = flow {
                wanted.remove(place);
                found(place, FlowRef { flow, reader: PhantomData });
            }
        }
    }

    #[inline]
    fn matches(&self, flow: &Flow, key: &FlowKey) -> bool {
        self.words.iter().all(|word| word.of(key) == flow.key.words()[word.index])
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
    fn slot(&self, hash: u64) -> &AtomicPtr<Shard> {
        &self.shards[(hash >> 58) as usize & (SHARDS - 1)]
    }

    #[inline]
    fn shard(&self, hash: u64) -> Option<&Shard> {
        Self::load(self.slot(hash))
    }

    #[inline]
    fn load(slot: &AtomicPtr<Shard>) -> Option<&Shard> {
        // SAFETY: null, or made from a box by `publish`; retired, not freed, when it was replaced; so it is
        // as protected as the subtable that `slot` is borrowed from.
        unsafe { slot.load(Ordering::Acquire).as_ref() }
    }

    /// Puts another shard, or none, in the place of one.
    fn publish(slot: &AtomicPtr<Shard>, shard: Option<Box<Shard>>, limbo: &mut Limbo<Garbage>) {
        let old = slot.swap(shard.map_or(ptr::null_mut(), Box::into_raw), Ordering::AcqRel);
        // SAFETY: only this function sets the link, from a box, and it has just cut it.
        if let Some(old) = unsafe { Unlinked::new(old) } {
            limbo.retire(Garbage::Shard(old));
        }
    }

    /// Adds a flow whose masked key is not in the table. Worst case: a copy of its shard.
    pub(super) fn add(&self, flow: Arc<Flow>, limbo: &mut Limbo<Garbage>) -> Result<(), Crowded> {
        self.guard.fetch_or(self.guard_bit(&flow.key), Ordering::Relaxed);
        let hash = self.hash(&flow.key);
        let flow = into_raw(flow);
        let slot = self.slot(hash);
        let shard = Self::load(slot);
        if !shard.is_some_and(|shard| !shard.is_full() && shard.link(hash as u32, flow)) {
            let all = shard.into_iter().flat_map(Shard::flows).chain([(hash as u32, flow)]);
            match Shard::holding(&all.collect::<Vec<_>>()) {
                Ok(copy) => Self::publish(slot, Some(copy), limbo),
                Err(crowded) => {
                    // SAFETY: the table has not linked it, so its count is still ours.
                    drop(unsafe { Arc::from_raw(flow.as_ptr()) });
                    return Err(crowded);
                }
            }
        }
        self.len.store(self.len() + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Puts a flow in the place of the one with the same masked key, if there is one, and retires that.
    pub(super) fn replace(&self, flow: &Arc<Flow>, limbo: &mut Limbo<Garbage>) -> Option<Arc<Flow>> {
        let hash = self.hash(&flow.key);
        let shard = self.shard(hash)?;
        let (place, old) = shard.find(hash as u32, |found| self.matches(found, &flow.key))?;
        shard.exchange(hash as u32, &place, into_raw(Arc::clone(flow)).as_ptr());
        Some(retire(old, limbo))
    }

    /// Unlinks and retires this very flow, if it is in the table. Worst case: a copy of its shard.
    pub(super) fn take(&self, flow: &Flow, limbo: &mut Limbo<Garbage>) -> Option<Arc<Flow>> {
        let hash = self.hash(&flow.key);
        let slot = self.slot(hash);
        let shard = Self::load(slot)?;
        let (place, found) = shard.find(hash as u32, |found| ptr::eq(found, flow))?;
        shard.unlink(hash as u32, &place);
        self.len.store(self.len() - 1, Ordering::Relaxed);
        if shard.len() == 0 {
            Self::publish(slot, None, limbo);
        } else if shard.is_sparse()
            && let Ok(copy) = Shard::holding(&shard.flows().collect::<Vec<_>>())
        {
            Self::publish(slot, Some(copy), limbo);
        }
        Some(retire(found, limbo))
    }

    /// Unlinks, kills and retires every flow.
    pub(super) fn drain(&self, limbo: &mut Limbo<Garbage>) {
        for slot in &self.shards {
            let flows: Vec<_> = Self::load(slot).into_iter().flat_map(Shard::flows).collect();
            Self::publish(slot, None, limbo);
            flows.into_iter().for_each(|(_, flow)| retire(flow, limbo).kill());
        }
        self.len.store(0, Ordering::Relaxed);
    }

    /// The flows of one shard.
    pub(super) fn flows(&self, shard: usize) -> impl Iterator<Item = FlowRef<'_>> {
        let flows = Self::load(&self.shards[shard]).into_iter().flat_map(Shard::flows);
        flows.map(|(_, flow)| FlowRef { flow, reader: PhantomData })
    }

    /// Some flow, chosen by `random`; rarely none although there are some. Looks at up to [`SHARDS`] links
    /// and 16 buckets: a shard is an eighth full at least, or has a single bucket.
    pub(super) fn draw(&self, random: u64) -> Option<FlowRef<'_>> {
        let start = random as usize;
        let shard = (0..SHARDS).find_map(|i| Self::load(&self.shards[(start + i) & (SHARDS - 1)]))?;
        let start = (random >> 8) as usize;
        let bucket = |i: usize| &shard.buckets[(start + i) & (shard.buckets.len() - 1)];
        let bucket = (0..16).map(bucket).find(|bucket| bucket.flows().next().is_some())?;
        let (_, flow) = bucket.flows().nth((random >> 40) as usize % bucket.flows().count())?;
        Some(FlowRef { flow, reader: PhantomData })
    }
}

impl Drop for Subtable {
    fn drop(&mut self) {
        for slot in &self.shards {
            let shard = slot.load(Ordering::Relaxed);
            if !shard.is_null() {
                // SAFETY: it came from `Box::into_raw`, and who drops the subtable is its last user.
                let shard = unsafe { Box::from_raw(shard) };
                // SAFETY: a linked flow carries one count from `Arc::into_raw`, and no one will follow the
                // link again.
                shard.flows().for_each(|(_, flow)| drop(unsafe { Arc::from_raw(flow.as_ptr()) }));
            }
        }
    }
}

/// Gives a count of a flow to the link that will hold the pointer.
fn into_raw(flow: Arc<Flow>) -> NonNull<Flow> {
    NonNull::new(Arc::into_raw(flow).cast_mut()).expect("an Arc is never null")
}

/// Gives the count of an unlinked flow to the limbo, and the caller one of its own.
fn retire(unlinked: NonNull<Flow>, limbo: &mut Limbo<Garbage>) -> Arc<Flow> {
    // SAFETY: the pointer comes from `into_raw`, and the link that held its count is gone.
    let flow = unsafe { Arc::from_raw(unlinked.as_ptr()) };
    limbo.retire(Garbage::Flow(Arc::clone(&flow)));
    flow
}
