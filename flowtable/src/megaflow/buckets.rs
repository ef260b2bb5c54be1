//! The memory of a shard: buckets of one cache line, in which flows lie where their hash says, or soon after.
//!
//! Who may follow a link, [the subtable](super::subtable) says.

use std::ptr::{self, NonNull};

use super::subtable::Crowded;
use crate::blocks;
use crate::flow::{Flow, FlowRef, Head};
use crate::sync::{AtomicPtr, AtomicU32, Ordering};

/// Flows in a bucket: what fits a cache line.
const WAYS: usize = 5;

/// How many buckets a search visits at most.
const PROBES: usize = 8;

#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Bucket {
    hashes: [AtomicU32; WAYS],
    /// How many flows were passed on from here to later buckets.
    passed: AtomicU32,
    flows: [AtomicPtr<Head>; WAYS],
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

    /// Which ways have this hash, as bits. No branch: which way it is cannot be foretold (bench `forward`, l2/100000).
    #[inline]
    fn ways(&self, hash: u32) -> u32 {
        let is = |way: usize| u32::from(self.hashes[way].load(Ordering::Relaxed) == hash) << way;
        (0..WAYS).fold(0, |ways, way| ways | is(way))
    }

    #[inline]
    fn flow(&self, way: usize) -> Option<NonNull<Head>> {
        NonNull::new(self.flows[way].load(Ordering::Acquire))
    }

    /// The flow that a search for this hash, which begins here, will most likely find.
    #[inline]
    pub(super) fn candidate(&self, hash: u32) -> Option<FlowRef<'_>> {
        let ways = self.ways(hash);
        let flow = (ways != 0).then(|| self.flow(ways.trailing_zeros() as usize))??;
        // SAFETY: a linked flow is protected like the bucket it was found in.
        Some(unsafe { FlowRef::new(flow) })
    }

    /// The flows in it, with their hashes.
    pub(super) fn flows(&self) -> impl Iterator<Item = (u32, NonNull<Head>)> + '_ {
        (0..WAYS).filter_map(move |way| Some((self.hashes[way].load(Ordering::Relaxed), self.flow(way)?)))
    }
}

/// An array of buckets, a power of two of them: the memory of a shard. It points to flows but does not own them: the
/// subtable does. Not a box: readers look at it when it is unlinked, still.
#[derive(Debug)]
pub(super) struct Buckets {
    first: NonNull<Bucket>,
    order: usize,
}

// SAFETY: it owns the buckets like a box does.
unsafe impl Send for Buckets {}

impl Buckets {
    fn new(count: usize) -> Self {
        let first = blocks::allocate(count * size_of::<Bucket>()).cast::<Bucket>();
        for n in 0..count {
            // SAFETY: the block is ours and has room for so many.
            unsafe { first.add(n).write(Bucket::new()) };
        }
        Buckets { first, order: count.ilog2() as usize }
    }

    pub(super) fn shard(&self) -> Shard<'_> {
        // SAFETY: there are so many buckets, and they are ours.
        Shard(unsafe { std::slice::from_raw_parts(self.first.as_ptr(), 1 << self.order) })
    }
}

impl Drop for Buckets {
    fn drop(&mut self) {
        let buckets = ptr::slice_from_raw_parts_mut(self.first.as_ptr(), 1 << self.order);
        // SAFETY: they are ours, and nobody looks at them any more; the block was allocated for so many.
        unsafe {
            buckets.drop_in_place();
            blocks::free(self.first.cast(), size_of::<Bucket>() << self.order);
        }
    }
}

/// The link to the buckets of a shard: their address and, in the bits below a cache line, their number's logarithm. So a
/// search needs nothing but the link to find the bucket.
#[derive(Debug)]
pub(super) struct Link(AtomicPtr<Bucket>);

impl Link {
    const ORDER: usize = align_of::<Bucket>() - 1;

    pub(super) fn empty() -> Self {
        Link(AtomicPtr::new(ptr::null_mut()))
    }

    /// The shard, as protected as the subtable that the link is borrowed from.
    #[inline]
    pub(super) fn shard(&self) -> Option<Shard<'_>> {
        let link = self.0.load(Ordering::Acquire);
        let first = link.map_addr(|address| address & !Self::ORDER);
        let count = 1 << (link.addr() & Self::ORDER);
        // SAFETY: null, or made from buckets by `swap`, so many; retired, not freed, when they were replaced.
        (!first.is_null()).then(|| Shard(unsafe { std::slice::from_raw_parts(first, count) }))
    }

    /// Links other buckets, or none; gives those that were linked.
    pub(super) fn swap(&self, buckets: Option<Buckets>) -> Option<Buckets> {
        let link = buckets.map_or(ptr::null_mut(), |buckets| {
            let buckets = std::mem::ManuallyDrop::new(buckets);
            buckets.first.as_ptr().map_addr(|address| address | buckets.order)
        });
        let old = self.0.swap(link, Ordering::AcqRel);
        let first = NonNull::new(old.map_addr(|address| address & !Self::ORDER))?;
        Some(Buckets { first, order: old.addr() & Self::ORDER })
    }
}

/// The buckets of a shard, to be looked at and, by the writer, changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shard<'s>(pub(super) &'s [Bucket]);

/// Where a flow lies in a shard: a bucket by its distance from the first one to try, and a way in it.
pub(super) struct Place {
    distance: usize,
    way: usize,
}

impl<'s> Shard<'s> {
    /// The buckets where `hash` may lie, in order.
    #[inline]
    fn path(self, hash: u32) -> impl Iterator<Item = &'s Bucket> {
        let last = self.0.len() - 1;
        (0..PROBES.min(last + 1)).map(move |distance| &self.0[(hash as usize + distance) & last])
    }

    #[inline]
    pub(super) fn first_bucket(self, hash: u32) -> &'s Bucket {
        &self.0[hash as usize & (self.0.len() - 1)]
    }

    /// Finds the flow that has this hash and `is` the one.
    #[inline]
    pub(super) fn find(self, hash: u32, is: impl Fn(&Flow) -> bool) -> Option<(Place, FlowRef<'s>)> {
        for (distance, bucket) in self.path(hash).enumerate() {
            let mut ways = bucket.ways(hash);
            while ways != 0 {
                let way = ways.trailing_zeros() as usize;
                // SAFETY: a linked flow is protected like the shard it was found in.
                let flow = bucket.flow(way).map(|flow| unsafe { FlowRef::new(flow) });
                if let Some(flow) = flow.filter(|flow| is(flow)) {
                    return Some((Place { distance, way }, flow));
                }
                ways &= ways - 1;
            }
            if bucket.passed.load(Ordering::Relaxed) == 0 {
                return None;
            }
        }
        None
    }

    /// Links a flow in the first free way on its path; false if there is none.
    pub(super) fn link(self, hash: u32, flow: NonNull<Head>) -> bool {
        let free = |bucket: &Bucket| bucket.flows.iter().position(|f| f.load(Ordering::Relaxed).is_null());
        let place = self.path(hash).enumerate().find_map(|(d, bucket)| Some((d, bucket, free(bucket)?)));
        let Some((distance, bucket, way)) = place else { return false };
        self.path(hash).take(distance).for_each(|passed| passed.add_passed(1));
        bucket.hashes[way].store(hash, Ordering::Relaxed);
        bucket.flows[way].store(flow.as_ptr(), Ordering::Release); // the flow before the link
        true
    }

    /// Unlinks the flow at a place that [`Shard::find`] gave for this hash; its share goes to the caller.
    pub(super) fn unlink(self, hash: u32, place: &Place) -> Option<Flow> {
        self.path(hash).take(place.distance).for_each(|passed| passed.add_passed(1u32.wrapping_neg()));
        self.exchange(hash, place, ptr::null_mut())
    }

    /// Changes the link at a place that [`Shard::find`] gave for this hash; what was linked goes to the caller.
    pub(super) fn exchange(self, hash: u32, place: &Place, flow: *mut Head) -> Option<Flow> {
        let bucket = self.path(hash).nth(place.distance).expect("the place lies on the path");
        let old = bucket.flows[place.way].swap(flow, Ordering::AcqRel);
        // SAFETY: what is linked comes from `Flow::into_raw`, and this link is gone.
        NonNull::new(old).map(|old| unsafe { Flow::from_raw(old) })
    }

    pub(super) fn flows(self) -> impl Iterator<Item = (u32, NonNull<Head>)> + 's {
        self.0.iter().flat_map(Bucket::flows)
    }

    /// Would it be more than three quarters full with so many? Beyond this, paths get long.
    pub(super) fn is_full(self, flows: usize) -> bool {
        flows > self.0.len() * WAYS * 3 / 4
    }

    /// Would it be so empty with so many that a copy saves most of the memory?
    pub(super) fn is_sparse(self, flows: usize) -> bool {
        flows * 8 < self.0.len() * WAYS && self.0.len() > 1
    }
}

/// Buckets for these flows, at most half full, more room only where chance wants it.
pub(super) fn holding(flows: &[(u32, NonNull<Head>)]) -> Result<Buckets, Crowded> {
    let least = (flows.len() * 2).div_ceil(WAYS).next_power_of_two();
    let sizes = std::iter::successors(Some(least), |n| Some(n * 2)).take(4);
    let all = |buckets: &Buckets| flows.iter().all(|(hash, flow)| buckets.shard().link(*hash, *flow));
    sizes.map(Buckets::new).find(|buckets| all(buckets)).ok_or(Crowded)
}
