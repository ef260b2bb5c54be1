//! When may memory be freed that readers reach without a lock? Once every reader has said that it holds
//! nothing.
//!
//! Quiescent-state based reclamation (McKenney and Slingwine 1998; Desnoyers et al., "User-Level
//! Implementations of Read-Copy Update", 2012). A writer unlinks an object and *retires* it into its
//! [`Limbo`]; that advances the epoch. A [`Member`] repeats the current epoch when it is *quiescent*, that is
//! between two polls, when it holds no reference. An object is freed when every member that is not parked has
//! repeated an epoch at least as new as the object's retirement.
//!
//! **Memory order.** Let U be the unlinking, A the advance to epoch e behind it, Q a member's `quiesce`.
//! * *A quiescent member cannot find the object any more.* Q loads e with acquire from A, a release: U
//!   happens before every later load of the member.
//! * *What it did with the object is over.* Q stores e with release behind all its earlier reads, and so does
//!   whoever parks or returns; the writer loads that with acquire before it frees.
//! * *A member that returns from parking* either is seen by the writer or sees U: each side has a
//!   sequentially consistent fence between its store (the member's epoch; U) and its load (the link; the
//!   member's epoch), so one of the two loads sees the other side's store. A new member comes from parking,
//!   too.
//!
//! Cost: `quiesce` is a load and a store, without a fence; retiring is one read-modify-write and a queue
//! push; [`Limbo::reclaim`] looks at each member once. A member that neither quiesces nor parks holds up
//! everything.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::sync::{AtomicU64, Mutex, Ordering, fence};

/// What a parked member announces: later than every epoch.
const PARKED: u64 = u64::MAX;

/// Objects that an empty limbo keeps room for.
const ROOM: usize = 4096;

/// The epoch a member has last seen, on a cache line of its own because its poller writes it all the time.
#[derive(Debug)]
#[repr(align(64))]
struct Seen(AtomicU64);

/// The epoch that writers and members share.
#[derive(Debug)]
pub struct Epoch {
    now: AtomicU64,
    members: Mutex<Vec<Arc<Seen>>>,
}

impl Epoch {
    /// An epoch without members.
    pub fn new() -> Arc<Self> {
        Arc::new(Epoch { now: AtomicU64::new(0), members: Mutex::new(Vec::new()) })
    }

    /// Where it lies: what tells it from others.
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Joins. The member is online: it holds up reclamation until it quiesces, parks or is dropped.
    pub fn join(self: &Arc<Self>) -> Member {
        let seen = Arc::new(Seen(AtomicU64::new(PARKED)));
        self.members.lock().expect("no code that panics runs under this lock").push(Arc::clone(&seen));
        let member = Member { epoch: Arc::clone(self), seen };
        member.go_online();
        member
    }

    /// The oldest epoch that a member may still be in; `None` if somebody is joining or leaving just now.
    fn oldest(&self) -> Option<u64> {
        fence(Ordering::SeqCst);
        let members = self.members.try_lock().ok()?;
        Some(members.iter().map(|seen| seen.0.load(Ordering::Acquire)).min().unwrap_or(PARKED))
    }
}

/// A thread that follows links without a lock.
///
/// While it is online (always, except inside [`Member::park`]), nothing that it can reach is freed before its
/// next [`Member::quiesce`]. Both take `&mut self`: hand out references that borrow the member, and the
/// compiler sees to it that none is left.
#[derive(Debug)]
pub struct Member {
    epoch: Arc<Epoch>,
    seen: Arc<Seen>,
}

impl Member {
    /// The [address](Epoch::address) of its epoch.
    #[inline]
    pub(crate) fn epoch(&self) -> usize {
        self.epoch.address()
    }

    /// Says that it holds nothing. Once per poll.
    #[inline]
    pub fn quiesce(&mut self) {
        self.seen.0.store(self.epoch.now.load(Ordering::Acquire), Ordering::Release);
    }

    /// Runs `sleep` while holding up nobody.
    pub fn park<R>(&mut self, sleep: impl FnOnce() -> R) -> R {
        struct Online<'a>(&'a Member);
        impl Drop for Online<'_> {
            fn drop(&mut self) {
                self.0.go_online();
            }
        }
        self.seen.0.store(PARKED, Ordering::Release);
        let _online = Online(self); // also when `sleep` panics: a parked member must never follow a link
        sleep()
    }

    fn go_online(&self) {
        self.seen.0.store(self.epoch.now.load(Ordering::Acquire), Ordering::Release);
        fence(Ordering::SeqCst);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.seen.0.store(PARKED, Ordering::Release);
        if let Ok(mut members) = self.epoch.members.lock() {
            members.retain(|seen| !Arc::ptr_eq(seen, &self.seen));
        }
    }
}

/// What a writer has unlinked and must not free yet, oldest first.
#[derive(Debug)]
pub struct Limbo<T> {
    epoch: Arc<Epoch>,
    retired: VecDeque<(u64, T)>,
    /// All members have repeated this epoch, or one behind it: what was retired until then stays free to go.
    passed: u64,
}

impl<T> Limbo<T> {
    /// An empty limbo.
    pub fn new(epoch: Arc<Epoch>) -> Self {
        Limbo { epoch, retired: VecDeque::new(), passed: 0 }
    }

    /// Takes an object that no new reader can find: the link to it is already gone.
    pub fn retire(&mut self, unlinked: T) {
        let epoch = self.epoch.now.fetch_add(1, Ordering::AcqRel) + 1;
        self.retired.push_back((epoch, unlinked));
    }

    /// Frees up to `budget` objects that no member can hold any more; says how many.
    pub fn reclaim(&mut self, budget: usize) -> usize {
        let Some((first, _)) = self.retired.front() else { return 0 };
        if *first > self.passed {
            let Some(oldest) = self.epoch.oldest() else { return 0 };
            // Without members online, what waits here; but who joins later may hold what is retired later.
            self.passed = oldest.min(self.retired.back().map_or(0, |(last, _)| *last));
        }
        let free = self.retired.iter().take(budget).take_while(|(epoch, _)| *epoch <= self.passed).count();
        self.retired.drain(..free);
        if self.retired.is_empty() {
            self.retired.shrink_to(ROOM);
        }
        free
    }

    /// How many objects wait.
    pub fn len(&self) -> usize {
        self.retired.len()
    }

    /// True if none waits.
    pub fn is_empty(&self) -> bool {
        self.retired.is_empty()
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_freed_before_every_member_is_quiescent() {
        let epoch = Epoch::new();
        let mut limbo = Limbo::new(Arc::clone(&epoch));
        let (mut a, mut b) = (epoch.join(), epoch.join());
        let object = Arc::new(());
        limbo.retire(Arc::clone(&object));
        assert_eq!(limbo.reclaim(9), 0);
        a.quiesce();
        assert_eq!(limbo.reclaim(9), 0);
        b.quiesce();
        assert_eq!(limbo.reclaim(9), 1);
        assert_eq!(Arc::strong_count(&object), 1);
    }

    #[test]
    fn a_parked_or_dropped_member_holds_up_nobody() {
        let epoch = Epoch::new();
        let mut limbo = Limbo::new(Arc::clone(&epoch));
        let (mut a, b) = (epoch.join(), epoch.join());
        limbo.retire(1);
        drop(b);
        assert_eq!(limbo.reclaim(9), 0);
        assert_eq!(a.park(|| limbo.reclaim(9)), 1);
        limbo.retire(2);
        assert_eq!(limbo.reclaim(9), 0, "a is back");
    }

    #[test]
    fn a_member_whose_sleep_panics_is_online_again() {
        let epoch = Epoch::new();
        let mut limbo = Limbo::new(Arc::clone(&epoch));
        let mut a = epoch.join();
        let asleep =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| a.park(|| panic!("in its sleep"))));
        assert!(asleep.is_err());
        limbo.retire(1);
        assert_eq!(limbo.reclaim(9), 0);
    }

    #[test]
    fn reclaim_keeps_its_budget_and_the_order() {
        let epoch = Epoch::new();
        let mut limbo = Limbo::new(Arc::clone(&epoch));
        let mut a = epoch.join();
        (0..3).for_each(|n| limbo.retire(n));
        a.quiesce();
        limbo.retire(3);
        assert_eq!((limbo.reclaim(2), limbo.len()), (2, 2));
        assert_eq!((limbo.reclaim(2), limbo.len()), (1, 1));
        a.quiesce();
        assert_eq!((limbo.reclaim(2), limbo.is_empty()), (1, true));
    }
}

/// Run with `cargo test -p flowtable --features loom --release model`.
#[cfg(all(test, feature = "loom"))]
mod model {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc as LoomArc;
    use loom::thread;

    use super::*;
    use crate::sync::AtomicUsize;

    /// An object whose freeing loom sees as a write: a read that is not ordered before it fails the model.
    struct Object(LoomArc<UnsafeCell<u32>>);

    impl Drop for Object {
        fn drop(&mut self) {
            self.0.with_mut(|_| ());
        }
    }

    /// Two objects and a link to the current one.
    struct World {
        cells: [LoomArc<UnsafeCell<u32>>; 2],
        link: AtomicUsize,
        epoch: Arc<Epoch>,
    }

    fn check(reader: fn(&World, Member)) {
        loom::model(move || {
            let world = LoomArc::new(World {
                cells: [LoomArc::new(UnsafeCell::new(0)), LoomArc::new(UnsafeCell::new(1))],
                link: AtomicUsize::new(0),
                epoch: Epoch::new(),
            });
            let member = world.epoch.join();
            let theirs = LoomArc::clone(&world);
            let reading = thread::spawn(move || reader(&theirs, member));
            let mut limbo = Limbo::new(Arc::clone(&world.epoch));
            let unlinked = Object(LoomArc::clone(&world.cells[0]));
            world.link.store(1, Ordering::Release);
            limbo.retire(unlinked);
            limbo.reclaim(1);
            reading.join().unwrap();
            limbo.reclaim(1);
            assert!(limbo.is_empty(), "the reader is gone");
        });
    }

    fn read(world: &World) {
        let at = world.link.load(Ordering::Acquire);
        world.cells[at].with(|_| thread::yield_now());
    }

    #[test]
    fn an_online_reader_never_reads_what_was_freed() {
        check(|world, mut member| {
            read(world);
            member.quiesce();
            read(world);
        });
    }

    #[test]
    fn a_reader_that_parks_between_reads_never_reads_what_was_freed() {
        check(|world, mut member| {
            read(world);
            member.park(|| ());
            read(world);
        });
    }

    #[test]
    fn a_reader_that_wakes_never_reads_what_was_freed() {
        check(|world, mut member| {
            member.park(|| ());
            read(world);
        });
    }

    #[test]
    fn a_reader_that_joins_late_never_reads_what_was_freed() {
        check(|world, member| {
            drop(member);
            let _member = world.epoch.join();
            read(world);
        });
    }
}
