//! A flow: key under mask, what to do, what to remember, how much it was used, and how current it is.
//!
//! A million of them shall fit in a few hundred megabytes and cost a frame few cache misses, so a flow is one row of a table,
//! which [`Flow`] counts the users of as an `Arc` does:
//!
//! | part | what |
//! | --- | --- |
//! | a line | what a hit reads: generation, key, what to do with the frame |
//! | a column for each poller | its counters: no two pollers write the same line, nor one beside it |
//! | one | what no frame asks for |
//! | after these | words of the key that the line has no room for |
//!
//! One poller alone has nobody to keep away from: then line and columns are one block, and the processor, which fetches
//! the second line with the first, saves it a twentieth (bench `forward`, l2/1000).
//!
//! Of the key there are the first three words in the line, which are what switching looks at, with or without a tag; of the
//! others those that the mask looks at. What flows have in common is shared ([`Interner`]): the mask, lists of actions, effects.
//!
//! A flow that is decided otherwise, for the same frames, is *amended* where it lies ([`course`]): its counters, its place in
//! the table and in caches stay.
//!
//! A switched flow is 128 bytes; it was five allocations and 600 bytes, of which a hit needed five lines in as many pages. A
//! million of them with their links take 174 MiB (`tests/memory.rs`; 880 MiB before), and finding and counting a frame's
//! flow among 100,000 takes 93 cycles (best; median 144) instead of 224 (302), among a million 132 (146) instead of 272 (312):
//! bench `lookup`, caches/batch.
#![allow(unsafe_code)]

mod course;
mod stats;
#[cfg(test)]
mod tests;

use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::{BitOr, Deref};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

pub use self::course::Amendment;
use self::course::{Course, Notes};
pub use self::stats::{FlowStats, FlowTotals};
use crate::action::{Action, Effect};
use crate::blocks::{self, COLUMNS_MAX, prefetch};
use crate::epoch::{Epoch, Member};
use crate::grounds::Grounds;
use crate::id::PortId;
use crate::intern::Interner;
use crate::key::{FlowKey, WORDS};
use crate::list::List;
use crate::mask::Mask;
use crate::megaflow::Reader;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::time::Instant;

/// What `translate` decided: everything about a flow but its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What happens to a frame; at least one. Flows may share a list.
    pub actions: List<Action>,
    /// The bits that were looked at.
    pub mask: Mask,
    /// What is remembered because of it.
    pub effects: Box<[Effect]>,
    /// Which learned entries were looked up, as a 64-bit Bloom filter of [`dependency`] bits: a change of
    /// any of them asks for this flow to be translated again.
    pub depends: u64,
    /// What of the configuration was looked at: a change of any of it asks for the same.
    pub rests_on: Grounds,
    /// The port the frame came in by: that of its key, or the tunnel port which its outer headers name. Its budget pays.
    pub in_port: PortId,
    /// May the decision be cached? Not when every frame of the flow must be read (IGMP, MLD).
    pub cacheable: bool,
}

/// The Bloom bit of one learned entry, from any hash of its name.
#[inline]
pub const fn dependency(hash: u64) -> u64 {
    1 << (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// The generation of a flow that was removed: no published generation has this number.
pub const DEAD: u64 = 0;

/// The generation of a flow that is being amended just now: no published generation has this number either.
const AMENDED: u64 = u64::MAX;

/// The most pollers that can count on a flow.
pub const MAX_POLLERS: usize = 500;

/// What all flows of one mask have in common.
#[derive(Debug)]
pub struct Shape {
    pub(crate) mask: Mask,
    /// Behind the first [`INLINE`]: the words of the mask that are not zero, with their indexes, ascending.
    far: Box<[(usize, u64)]>,
    /// How many pollers may count on such a flow.
    pollers: usize,
    /// Who may amend it.
    home: Option<Home>,
}

impl Shape {
    pub(crate) fn new(mask: &Mask, pollers: usize) -> Self {
        assert!((1..=MAX_POLLERS).contains(&pollers), "{pollers} pollers: expected 1 to {MAX_POLLERS}");
        let far = mask.nonzero().filter(|(i, _)| *i >= INLINE).collect();
        Shape { mask: *mask, far, pollers, home: None }
    }

    /// Of flows that have a home.
    pub(crate) fn at(self, home: Option<Home>) -> Self {
        Shape { home, ..self }
    }

    pub(crate) fn is_of(&self, mask: &Mask, pollers: usize) -> bool {
        self.mask == *mask && self.pollers == pollers
    }

    /// Columns of a flow. First come the pollers', then what lies aside.
    fn columns(&self) -> usize {
        self.pollers + 1 + self.far.len().div_ceil(COLUMN_WORDS)
    }
}

/// Whose flows they are: one poller's alone may amend them. Whoever reads what they do is a member of the epoch of their table.
#[derive(Debug, Clone)]
pub struct Home {
    pub(crate) epoch: Arc<Epoch>,
    pub(crate) poller: usize,
}

/// Bytes of a column. Loom's atomics are bigger, and its models have one poller.
const COLUMN: usize = if cfg!(feature = "loom") { 1024 } else { blocks::COLUMN };
/// Words of the key in the line, its first, and in each column that has some.
const INLINE: usize = 3;
const COLUMN_WORDS: usize = COLUMN / size_of::<u64>();

/// The line of a flow.
#[repr(C, align(64))]
pub(crate) struct Head {
    generation: AtomicU64,
    shape: Arc<Shape>,
    in_port: PortId,
    course: Course,
    /// The address of the epoch that keeps what the flow did before it was amended; zero if it never is.
    home: usize,
    /// The first of the masked key.
    words: [u64; INLINE],
}

/// What no frame asks for.
struct Aside {
    effects: Option<List<Effect>>,
    notes: Notes,
}

#[cfg(not(feature = "loom"))]
const _: () = assert!(size_of::<Head>() == 64 && size_of::<Aside>() == COLUMN);
const _: () = assert!(size_of::<Aside>() <= COLUMN && size_of::<FlowStats>() <= COLUMN);
const _: () = assert!(MAX_POLLERS + 1 + WORDS.div_ceil(COLUMN_WORDS) <= COLUMNS_MAX);

/// What a flow owns may go from thread to thread; the compiler cannot see it behind the pointers.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<(Arc<Shape>, List<Action>, List<Effect>)>();
};

/// Who counts on a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Which poller.
    pub index: usize,
    /// Of how many, those that the flows were made for.
    pub pollers: usize,
}

/// Where a column of a flow for so many pollers is. Reads nothing.
#[inline]
fn column(flow: NonNull<Head>, pollers: usize, column: usize) -> *const u8 {
    match pollers {
        1 => flow.as_ptr().cast_const().wrapping_add(1).cast::<u8>().wrapping_add(column * COLUMN),
        _ => blocks::column(flow.as_ptr(), column),
    }
}

/// A cached decision, or rather a share of it: clones are the same flow.
#[repr(transparent)]
pub struct Flow(NonNull<Head>);

// SAFETY: a flow is atomics and values that are `Send` and `Sync` and do not change; its users are counted atomically.
unsafe impl Send for Flow {}
// SAFETY: as above.
unsafe impl Sync for Flow {}

impl Flow {
    /// A flow for `key` under `decision`, valid for `generation` (not [`DEAD`]), that shares with no other.
    ///
    /// # Panics
    /// Without pollers, or with more than [`MAX_POLLERS`].
    pub fn new(key: &FlowKey, decision: Decision, birth: Birth) -> Self {
        Interner::default().flow(key, decision, birth)
    }

    /// A flow of parts.
    pub(crate) fn assemble(key: &FlowKey, parts: Parts, birth: Birth) -> Self {
        let Parts { shape, actions, effects, depends, rests_on, in_port } = parts;
        let masked = |i: usize, mask: u64| key.words()[i] & mask;
        let words = std::array::from_fn(|i| masked(i, shape.mask.words()[i]));
        let stats = FlowStats::first(birth.now);
        let pollers = shape.pollers;
        let columns = shape.columns();
        let flow = Flow(match pollers {
            1 => blocks::allocate(size_of::<Head>() + columns * COLUMN).cast(),
            _ => blocks::allocate_row(columns).cast(),
        });
        let head = Head {
            generation: AtomicU64::new(birth.generation),
            home: shape.home.as_ref().map_or(0, |home| home.epoch.address()),
            shape,
            in_port,
            course: Course::new(actions),
            words,
        };
        // SAFETY: the row has a column for what lies aside, one for each poller and enough for these words, each aligned to its
        // size, and is ours alone.
        unsafe {
            flow.0.write(head);
            flow.column::<FlowStats>(0).write(stats);
            (1..pollers).for_each(|poller| flow.column::<FlowStats>(poller).write(FlowStats::default()));
            let notes = Notes::new(depends, rests_on);
            flow.column::<Aside>(pollers).write(Aside { effects, notes });
            for (n, far) in flow.head().shape.far.chunks(COLUMN_WORDS).enumerate() {
                let to = flow.column::<u64>(pollers + 1 + n);
                far.iter().enumerate().for_each(|(at, &(i, mask))| to.add(at).write(masked(i, mask)));
            }
        }
        flow
    }

    /// Where a column is; it depends on the shape, and the words stored, which there are.
    #[inline]
    fn column<T>(&self, column: usize) -> *mut T {
        self::column(self.0, self.head().shape.pollers, column).cast_mut().cast()
    }

    #[inline]
    fn head(&self) -> &Head {
        // SAFETY: the row is not freed before the last user is gone, and what changes in it is atomic.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn aside(&self) -> &Aside {
        // SAFETY: as of the head. Each flow has this column.
        unsafe { &*self.column(self.head().shape.pollers) }
    }

    /// How many shares there are; with poller 0's counters, for there is room.
    #[inline]
    fn share_count(&self) -> &AtomicU32 {
        &self.stats(0).shares
    }

    /// The words behind the first that the mask looks at, with their indexes, and the flow's own for them, by columns.
    #[inline(always)]
    fn far(&self) -> impl Iterator<Item = (&[(usize, u64)], &[u64])> {
        let shape = &*self.head().shape;
        let together = if shape.pollers == 1 { WORDS } else { COLUMN_WORDS }; // columns of a block lie side by side
        shape.far.chunks(together).enumerate().map(|(n, far)| {
            let own = self.column::<u64>(shape.pollers + 1 + n);
            // SAFETY: for as many words there are columns from this one on, and they do not change.
            (far, unsafe { std::slice::from_raw_parts(own, far.len()) })
        })
    }

    /// Is this the flow of a frame with this key: do they agree in what the decision looked at? Cost: the words
    /// of the mask that are not zero.
    #[inline]
    pub fn matches(&self, key: &FlowKey) -> bool {
        self.agrees(&self.head().shape, key)
    }

    /// As [`Flow::matches`], for who has the flow's shape, or one of the same mask, at hand.
    #[inline]
    pub(crate) fn agrees(&self, shape: &Shape, key: &FlowKey) -> bool {
        let (own, mask, key_words) = (&self.head().words, shape.mask.words(), key.words());
        let differing = (0..INLINE).fold(0, |all, n| all | (key_words[n] & mask[n]) ^ own[n]);
        differing == 0 && (shape.far.is_empty() || self.agrees_far(key))
    }

    /// Do they agree behind the first words? Not inlined: where it was the others, which are most, took 27 instructions
    /// more (bench `forward`, l2/1000). No branch for a word: of those that get here nearly all agree in all (`vxlan-decap/1000`).
    #[inline(never)]
    fn agrees_far(&self, key: &FlowKey) -> bool {
        let differs = |(&(i, mask), own): (&(usize, u64), &u64)| (key.words()[i] & mask) ^ own;
        self.far().all(|(far, own)| far.iter().zip(own).map(differs).fold(0, u64::bitor) == 0)
    }

    /// The key, masked.
    pub fn key(&self) -> FlowKey {
        let mut key = FlowKey::default();
        key.0[..INLINE].copy_from_slice(&self.head().words);
        let far = self.far().flat_map(|(far, own)| far.iter().zip(own));
        far.for_each(|((i, _), own)| key.0[*i] = *own);
        key
    }

    /// The bits that were looked at.
    #[inline]
    pub fn mask(&self) -> &Mask {
        &self.head().shape.mask
    }

    /// What happens to a frame; at least one. For who is no member of the table's epoch: others have
    /// [`Reader::actions`](crate::megaflow::Reader::actions). Waits for a lock.
    pub fn actions(&self) -> List<Action> {
        let home = self.head().shape.home.as_ref();
        let member = home.map(|home| home.epoch.join());
        // SAFETY: the flow has no home, so that its course does not change, or we are a member of the epoch.
        let actions = unsafe { self.head().course.share() };
        drop(member);
        actions
    }

    /// What happens to a frame, for a member of the epoch of the flow's table; `None` for one of another.
    #[inline]
    pub(crate) fn read<'r>(&'r self, member: &'r Member) -> Option<&'r [Action]> {
        let home = self.head().home;
        // SAFETY: while the member is borrowed it is online; and what the flow does is its own, or kept by the epoch, for that
        // long at least.
        (home == member.epoch() || home == 0).then(|| unsafe { self.head().course.actions() })
    }

    /// The [kind](List::kind) of the list of what happens, for a member of the epoch of the flow's table; zero for one of another.
    #[inline]
    pub(crate) fn kind(&self, member: &Member) -> u64 {
        let home = self.head().home;
        // SAFETY: as in `read`.
        if home == member.epoch() || home == 0 { unsafe { self.head().course.kind() } } else { 0 }
    }

    /// Is it still checked against this generation? To be asked after [`Flow::read`]: then what was read was for this one, if
    /// the flow was of this one before, too.
    #[inline]
    pub(crate) fn is_of(&self, generation: u64) -> bool {
        self.head().generation.load(Ordering::Relaxed) == generation
    }

    /// May this poller amend it, which is in the table with this epoch?
    #[inline]
    pub(crate) fn lives_at(&self, epoch: &Arc<Epoch>, poller: usize) -> bool {
        let home = self.head().shape.home.as_ref();
        home.is_some_and(|home| home.poller == poller && Arc::ptr_eq(&home.epoch, epoch))
    }

    /// Has it do something else from generation `to` on. Nothing is done, and nothing returned, if it is not of generation
    /// `from` any more. Who reads it meanwhile sees what it did, with `from`, or what it does, with `to`.
    ///
    /// # Safety
    /// The flow has a home, and what it did, which is returned, is not let go of before the epoch has passed.
    pub(crate) unsafe fn amend(&self, (from, to): (u64, u64), now: Amendment) -> Option<List<Action>> {
        if [from, to].iter().any(|generation| [DEAD, AMENDED].contains(generation)) {
            return None;
        }
        let head = self.head();
        head.generation.compare_exchange(from, AMENDED, Ordering::Acquire, Ordering::Relaxed).ok()?;
        fence(Ordering::Release); // whoever sees any of what follows sees that the flow is not of `from` any more
        self.aside().notes.set(now.depends, now.rests_on);
        // SAFETY: nobody else amends it: only who made it AMENDED, which it is not from DEAD on. The rest is the caller's promise.
        let before = unsafe { head.course.exchange(now.actions) };
        // If it was killed meanwhile it stays dead.
        let _ = head.generation.compare_exchange(AMENDED, to, Ordering::Release, Ordering::Relaxed);
        Some(before)
    }

    /// What is remembered because of it.
    pub fn effects(&self) -> &[Effect] {
        self.aside().effects.as_deref().unwrap_or_default()
    }

    /// The same, as it is shared; `None` if it is nothing.
    #[inline]
    pub fn taught(&self) -> Option<&List<Effect>> {
        self.aside().effects.as_ref()
    }

    /// Which learned entries were looked up: [`Decision::depends`].
    #[inline]
    pub fn depends(&self) -> u64 {
        self.aside().notes.depends()
    }

    /// What of the configuration was looked at: [`Decision::rests_on`].
    #[inline]
    pub fn rests_on(&self) -> Grounds {
        self.aside().notes.rests_on()
    }

    /// Where its frames come in: the port whose budget pays for it.
    #[inline]
    pub fn in_port(&self) -> PortId {
        self.head().in_port
    }

    /// A copy of the decision.
    pub fn decision(&self) -> Decision {
        Decision {
            actions: self.actions(),
            mask: *self.mask(),
            effects: self.effects().into(),
            depends: self.depends(),
            rests_on: self.rests_on(),
            in_port: self.in_port(),
            cacheable: true,
        }
    }

    /// Would this decision make the same flow of its key? While somebody amends it the answer is of no worth.
    pub fn is_by(&self, decision: &Decision, reader: &Reader) -> bool {
        let Decision { actions, mask, effects, depends, rests_on, in_port, cacheable } = decision;
        *cacheable
            && (*depends, *rests_on, *in_port) == (self.depends(), self.rests_on(), self.in_port())
            && mask == self.mask()
            && reader.actions(self).is_some_and(|own| **actions == *own)
            && **effects == *self.effects()
    }

    /// The generation of the tables the decision was last checked against; [`DEAD`] after removal.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.head().generation.load(Ordering::Acquire)
    }

    /// Says that the decision, which was checked against generation `from`, holds for `to` too. False if it is not of `from`
    /// any more: then what was just read of it may be of another. And if that is newer: who is behind does not take others back.
    pub fn confirm(&self, from: u64, to: u64) -> bool {
        if from == DEAD || from > to {
            return false;
        }
        fence(Ordering::Acquire); // what was read of it was of `from`, if it still is
        self.head().generation.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Takes the flow out of use: nobody who still holds it will follow it.
    pub fn kill(&self) {
        // Not a mere store: it is before or behind each step of who amends or confirms it.
        self.head().generation.swap(DEAD, Ordering::AcqRel);
    }

    /// The counters of poller `index`.
    ///
    /// # Panics
    /// If there is no such poller.
    #[inline]
    pub fn stats(&self, index: usize) -> &FlowStats {
        assert!(index < self.head().shape.pollers, "poller {index} is one too many");
        // SAFETY: the column is there, and holds such counters.
        unsafe { &*self.column(index) }
    }

    fn all_stats(&self) -> impl Iterator<Item = &FlowStats> {
        (0..self.head().shape.pollers).map(|poller| self.stats(poller))
    }

    /// The sum of all pollers' counters.
    pub fn totals(&self) -> FlowTotals {
        self.all_stats().fold(FlowTotals::default(), |t, s| {
            let frames = s.frames.load(Ordering::Relaxed);
            let used = (frames > 0).then(|| Instant::from_nanos(s.used.load(Ordering::Relaxed)));
            FlowTotals {
                frames: t.frames + frames,
                bytes: t.bytes + s.bytes.load(Ordering::Relaxed),
                used: t.used.max(used),
                tcp_flags: t.tcp_flags | s.tcp_flags.load(Ordering::Relaxed) as u16,
            }
        })
    }

    /// When it was last used or, if never, made.
    pub fn last_use(&self) -> Instant {
        let used = self.all_stats().map(|stats| stats.used.load(Ordering::Relaxed)).max();
        Instant::from_nanos(used.unwrap_or(0))
    }

    /// How many shares of it there are, the table's and its limbo's too.
    pub fn shares(&self) -> usize {
        self.share_count().load(Ordering::Acquire) as usize
    }

    /// The address of the flow, for a link that keeps this share.
    pub(crate) fn into_raw(self) -> NonNull<Head> {
        let at = self.0;
        std::mem::forget(self);
        at
    }

    /// The share that a link kept.
    ///
    /// # Safety
    /// It comes from [`Flow::into_raw`], and the link is gone.
    pub(crate) unsafe fn from_raw(at: NonNull<Head>) -> Flow {
        Flow(at)
    }
}

impl Clone for Flow {
    fn clone(&self) -> Self {
        // As `Arc`: who has one share may make others, and there are never so many that the count wraps.
        if self.share_count().fetch_add(1, Ordering::Relaxed) > u32::MAX / 2 {
            std::process::abort();
        }
        Flow(self.0)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if self.share_count().fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        std::sync::atomic::fence(Ordering::Acquire); // what others did with it is over
        let columns = self.head().shape.columns();
        let pollers = self.head().shape.pollers;
        // SAFETY: this was the last share. What lies aside and the head are dropped once, and the row, of which the rest needs
        // no drop, was allocated for so many pollers with so many columns.
        unsafe {
            self.column::<Aside>(pollers).drop_in_place();
            self.0.drop_in_place();
            match pollers {
                1 => blocks::free(self.0.cast(), size_of::<Head>() + columns * COLUMN),
                _ => blocks::free_row(self.0.cast(), columns),
            }
        }
    }
}

/// Is it the same flow?
impl PartialEq for Flow {
    #[inline]
    fn eq(&self, other: &Flow) -> bool {
        self.0 == other.0
    }
}

impl Eq for Flow {}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow")
            .field("key", &self.key())
            .field("decision", &self.decision())
            .field("generation", &self.generation())
            .field("totals", &self.totals())
            .finish()
    }
}

/// A flow that somebody else keeps a share of for as long as `'r`: the table, for a reader that found it there; a cache.
///
/// It may have been removed since ([`Flow::generation`] says so), but it is not freed while this exists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FlowRef<'r> {
    at: NonNull<Head>,
    keeper: PhantomData<&'r Flow>,
}

impl<'r> FlowRef<'r> {
    /// # Safety
    /// It comes from [`Flow::into_raw`], and the link keeps its share for all of `'r`.
    #[inline]
    pub(crate) unsafe fn new(at: NonNull<Head>) -> Self {
        FlowRef { at, keeper: PhantomData }
    }

    /// A share of the flow, to keep beyond the poll.
    pub fn share(self) -> Flow {
        self.deref().clone()
    }

    /// Asks for the memory that a hit of this poller takes.
    #[inline]
    pub fn prefetch(self, seat: Seat) {
        prefetch(self.at.as_ptr());
        prefetch(column(self.at, seat.pollers, seat.index));
    }

    /// Asks for the memory that upkeep takes, of a flow for as many pollers as `other` is.
    #[inline]
    pub fn prefetch_as(self, other: &Flow) {
        let pollers = other.head().shape.pollers;
        self.prefetch(Seat { index: 0, pollers });
        prefetch(column(self.at, pollers, pollers));
    }
}

impl<'r> From<&'r Flow> for FlowRef<'r> {
    #[inline]
    fn from(flow: &'r Flow) -> Self {
        FlowRef { at: flow.0, keeper: PhantomData }
    }
}

impl Deref for FlowRef<'_> {
    type Target = Flow;

    #[inline]
    fn deref(&self) -> &Flow {
        // SAFETY: a `Flow` is such a pointer and nothing else; a share is kept for longer than this exists; and a
        // reference to a flow does not drop it.
        unsafe { NonNull::from(&self.at).cast::<Flow>().as_ref() }
    }
}

impl fmt::Debug for FlowRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// What a flow is made of.
pub(crate) struct Parts {
    pub(crate) shape: Arc<Shape>,
    pub(crate) actions: List<Action>,
    pub(crate) effects: Option<List<Effect>>,
    pub(crate) depends: u64,
    pub(crate) rests_on: Grounds,
    pub(crate) in_port: PortId,
}

/// The circumstances of a flow's making.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    /// The generation of the tables it was translated against.
    pub generation: u64,
    /// How many pollers may count on it.
    pub pollers: usize,
    /// Now.
    pub now: Instant,
}
