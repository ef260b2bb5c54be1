//! Megaflows: the one flow table that all pollers share; readers take no lock.
//!
//! Tuple-space search (Srinivasan, Suri, Varghese, SIGCOMM 1999): one `subtable` per mask, searched in the
//! order in which each reader has hit them. The flows that `translate` makes are disjoint in effect (two that
//! match the same key decide the same), so the first match wins.
//!
//! There is one writer at a time. A poller only tries for its lock: while somebody else writes, the flow is
//! simply not cached ([`Inserted::Busy`]) and the next frame tries again. Control waits
//! ([`Megaflows::lock`]).
//!
//! | operation | worst case |
//! | --- | --- |
//! | lookup | masks × (hash + 8 buckets); a hit in the first of them: hash, bucket, flow |
//! | insert, remove | find the mask, 8 buckets; sometimes a copy of one shard: 1/64 of a mask's flows |
//! | insert when full | also 16 × (masks + 64 shards + 16 buckets) and a scan of one counter per port |
//! | reclaim | 8 frees per insert or remove |
//!
//! Limits: flows and masks. A mask whose last flow goes, goes too, so an explosion of masks heals by idle
//! timeout. When the table is full, who inserts takes the place of a port that holds more, never of one that
//! holds less: nobody pushes everybody else out.
#![allow(unsafe_code)]

mod buckets;
mod heads;
#[cfg(all(test, feature = "loom"))]
mod model;
mod reader;
mod subtable;
#[cfg(all(test, not(feature = "loom")))]
mod tests;

use std::cmp::Reverse;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::epoch::{Epoch, Limbo};
use crate::flow::{Flow, FlowRef};
use crate::id::PortId;
use crate::key::FlowKey;
use crate::mask::Mask;
use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};

pub use reader::{Cursor, Reader};
use subtable::{Crowded, Garbage, Subtable, Unlinked};

/// Flows looked at to find a victim. With 16, the chance to miss all of a port that holds a fifth of the
/// table is 3 %.
const DRAWS: usize = 16;

/// Objects freed by each insert or remove: more than one of them can retire.
const RECLAIM: usize = 8;

/// Objects that may wait for readers to let go of them, beside as many as the table has flows.
const LIMBO: usize = 1024;

/// How much a table may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows, at least 1. About as many removed ones may wait for a slow reader to let go of them.
    pub flows: usize,
    /// Different masks, at least 1: what a lookup that finds nothing costs.
    pub masks: usize,
}

/// What became of a flow that was to be inserted.
#[derive(Debug)]
pub enum Inserted {
    /// It is in the table.
    Installed,
    /// It is in the table, in the place of one with the same mask and masked key, which is dead now.
    Replaced(Flow),
    /// It is in the table, which was full: this one, of a port that held more, is dead now.
    Evicted(Flow),
    /// Not inserted: somebody else is writing.
    Busy,
    /// Not inserted: the table is full, and no port that was looked at holds more than this flow's. (Or as
    /// much as the table may hold was removed, and a reader does not let go of it.)
    Full,
    /// Not inserted: its mask would be one too many.
    MaskLimit,
}

/// What became of a flow that was to be removed. It is dead in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Removed,
    /// It was not in the table.
    Absent,
    /// It is still linked: somebody else is writing. Try again.
    Busy,
}

/// What inserts came to, since the table was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Flows evicted.
    pub evicted: u64,
    /// Inserts refused as [`Inserted::Full`].
    pub full: u64,
    /// Inserts refused as [`Inserted::MaskLimit`].
    pub mask_limit: u64,
    /// Inserts and removes refused because somebody else was writing.
    pub busy: u64,
}

/// The table.
#[derive(Debug)]
pub struct Megaflows {
    limits: Limits,
    slots: Box<[AtomicPtr<Subtable>]>,
    /// Changes whenever a mask comes or goes.
    version: AtomicU64,
    epoch: Arc<Epoch>,
    state: Mutex<State>,
    len: AtomicUsize,
    masks: AtomicUsize,
    evicted: AtomicU64,
    full: AtomicU64,
    mask_limit: AtomicU64,
    busy: AtomicU64,
}

/// What only the writer sees.
#[derive(Debug)]
struct State {
    limbo: Limbo<Garbage>,
    slot_of: HashMap<Mask, usize>,
    /// The slot that was looked for last.
    last: usize,
    /// Flows per port, by [`PortId`].
    held: Vec<usize>,
    random: u64,
}

impl State {
    fn held(&self, port: PortId) -> usize {
        self.held.get(port.index()).copied().unwrap_or(0)
    }

    fn count(&mut self, port: PortId) {
        if self.held.len() <= port.index() {
            self.held.resize(port.index() + 1, 0);
        }
        self.held[port.index()] += 1;
    }

    /// Marsaglia's xorshift64: whom to look at is no secret.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl Megaflows {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        let epoch = Epoch::new();
        let limbo = Limbo::new(Arc::clone(&epoch));
        let state = State {
            limbo,
            slot_of: HashMap::new(),
            last: 0,
            held: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        };
        Megaflows {
            limits,
            slots: (0..limits.masks).map(|_| AtomicPtr::default()).collect(),
            version: AtomicU64::new(0),
            epoch,
            state: Mutex::new(state),
            len: AtomicUsize::new(0),
            masks: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            full: AtomicU64::new(0),
            mask_limit: AtomicU64::new(0),
            busy: AtomicU64::new(0),
        }
    }

    /// A reader, for one thread.
    pub fn reader(self: &Arc<Self>) -> Reader {
        Reader::new(Arc::clone(self))
    }

    /// Inserts, unless somebody else is writing. Never waits.
    pub fn insert(&self, flow: Flow) -> Inserted {
        let Some(mut writer) = self.try_lock() else { return Inserted::Busy };
        let inserted = writer.insert(flow);
        writer.reclaim(RECLAIM);
        inserted
    }

    /// Kills a flow, and removes it unless somebody else is writing. Never waits.
    pub fn remove(&self, flow: &Flow) -> Removed {
        flow.kill();
        let Some(mut writer) = self.try_lock() else { return Removed::Busy };
        let removed = writer.remove(flow);
        writer.reclaim(RECLAIM);
        removed
    }

    /// Frees up to `budget` objects that no reader can hold any more, unless somebody is writing; says how
    /// many.
    pub fn reclaim(&self, budget: usize) -> usize {
        self.state.try_lock().map_or(0, |mut state| state.limbo.reclaim(budget))
    }

    /// Waits to be the writer. For threads that may wait; keep it short, for meanwhile nobody caches a flow.
    pub fn lock(&self) -> Writer<'_> {
        Writer { table: self, state: self.state.lock().expect("no writer panicked") }
    }

    /// Kills and removes every flow; says how many. Waits to be the writer.
    pub fn clear(&self) -> usize {
        self.lock().clear()
    }

    /// How many flows came in by this port. Waits to be the writer.
    pub fn port_len(&self, port: PortId) -> usize {
        self.lock().state.held(port)
    }

    fn try_lock(&self) -> Option<Writer<'_>> {
        let state = self.state.try_lock().ok();
        if state.is_none() {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        Some(Writer { table: self, state: state? })
    }

    /// Every flow, for a dump. Does not disturb the writer; what comes or goes meanwhile may be in it or not.
    pub fn snapshot(self: &Arc<Self>) -> Vec<Flow> {
        let mut reader = self.reader();
        let mut flows = Vec::with_capacity(self.len());
        let mut next = Some(Cursor::default());
        while let Some(cursor) = next {
            next = reader.visit(cursor, 4096, |flow| flows.push(flow.share()));
            reader.quiesce();
        }
        flows
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many masks there are.
    pub fn masks(&self) -> usize {
        self.masks.load(Ordering::Relaxed)
    }

    /// The limits it was made with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        Counters {
            evicted: self.evicted.load(Ordering::Relaxed),
            full: self.full.load(Ordering::Relaxed),
            mask_limit: self.mask_limit.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed),
        }
    }

    /// The subtable in a slot.
    ///
    /// # Safety
    /// For all of `'p` the caller borrows an online member of this table's epoch, or has the writer's lock
    /// and reclaims nothing: the rule of protection (see `subtable`).
    unsafe fn subtable<'p>(&self, slot: usize) -> Option<&'p Subtable> {
        // SAFETY: null, or made from a box by `Writer::attach`; retired, not freed, by `Writer::detach`.
        unsafe { self.slots[slot].load(Ordering::Acquire).as_ref() }
    }
}

impl Drop for Megaflows {
    fn drop(&mut self) {
        for slot in &self.slots {
            let subtable = slot.load(Ordering::Relaxed);
            if !subtable.is_null() {
                // SAFETY: it came from `Box::into_raw`; readers keep the table alive, so there are none.
                drop(unsafe { Box::from_raw(subtable) });
            }
        }
    }
}

/// The table, locked for writing.
#[derive(Debug)]
pub struct Writer<'t> {
    table: &'t Megaflows,
    state: MutexGuard<'t, State>,
}

impl<'t> Writer<'t> {
    /// Inserts a flow; never [`Inserted::Busy`].
    pub fn insert(&mut self, flow: Flow) -> Inserted {
        if self.state.limbo.len() >= self.table.limits.flows + LIMBO {
            return self.full(); // some reader holds on to what was removed: do not add to it
        }
        let (key, slot) = (flow.key(), self.slot_of(flow.mask()));
        if let Some(old) =
            slot.and_then(|slot| self.subtable(slot)?.replace((&flow, &key), &mut self.state.limbo))
        {
            old.kill();
            self.state.held[old.in_port().index()] -= 1;
            self.state.count(flow.in_port());
            return Inserted::Replaced(old);
        }
        if slot.is_none() && self.table.masks() >= self.table.limits.masks {
            self.table.mask_limit.fetch_add(1, Ordering::Relaxed);
            return Inserted::MaskLimit;
        }
        if self.table.len() < self.table.limits.flows {
            return self.add(flow, &key).map_or_else(|Crowded| self.full(), |()| Inserted::Installed);
        }
        let Some(old) = self.evict(flow.in_port()) else { return self.full() };
        self.add(flow, &key).map_or_else(|Crowded| self.full(), |()| Inserted::Evicted(old))
    }

    /// Kills and removes a flow; never [`Removed::Busy`].
    pub fn remove(&mut self, flow: &Flow) -> Removed {
        flow.kill();
        let Some(slot) = self.slot_of(flow.mask()) else { return Removed::Absent };
        let subtable = self.subtable(slot).expect("a known slot is taken");
        if subtable.take(flow, &mut self.state.limbo).is_none() {
            return Removed::Absent;
        }
        self.state.held[flow.in_port().index()] -= 1;
        self.table.len.fetch_sub(1, Ordering::Relaxed);
        if subtable.len() == 0 {
            self.detach(slot);
        }
        Removed::Removed
    }

    /// Kills and removes every flow; says how many.
    pub fn clear(&mut self) -> usize {
        for slot in 0..self.table.slots.len() {
            if let Some(subtable) = self.subtable(slot) {
                subtable.drain(&mut self.state.limbo);
                self.detach(slot);
            }
        }
        self.state.held.fill(0);
        self.table.len.swap(0, Ordering::Relaxed)
    }

    /// Frees up to `budget` objects that no reader can hold any more; says how many.
    pub fn reclaim(&mut self, budget: usize) -> usize {
        self.state.limbo.reclaim(budget)
    }

    /// How many flows came in by this port.
    pub fn port_len(&self, port: PortId) -> usize {
        self.state.held(port)
    }

    /// The subtable in a slot. For this module only: nobody keeps it when it reclaims or returns.
    fn subtable(&self, slot: usize) -> Option<&'t Subtable> {
        // SAFETY: the lock is held as long as `self` lives, and whoever gets this lets go of it before
        // anything is reclaimed.
        unsafe { self.table.subtable(slot) }
    }

    fn full(&self) -> Inserted {
        self.table.full.fetch_add(1, Ordering::Relaxed);
        Inserted::Full
    }

    /// The slot of the subtable of this mask. Most come one behind the other: then it is a comparison.
    fn slot_of(&mut self, mask: &Mask) -> Option<usize> {
        let last = self.state.last;
        if self.subtable(last).is_some_and(|subtable| subtable.mask() == mask) {
            return Some(last);
        }
        let slot = self.state.slot_of.get(mask).copied()?;
        self.state.last = slot;
        Some(slot)
    }

    /// Adds a flow whose masked key, which this is, is not in the table.
    fn add(&mut self, flow: Flow, key: &FlowKey) -> Result<(), Crowded> {
        let in_port = flow.in_port();
        match self.slot_of(flow.mask()) {
            Some(slot) => {
                let subtable = self.subtable(slot).expect("a known slot is taken");
                subtable.add((flow, key), &mut self.state.limbo)?;
            }
            None => self.attach(flow, key)?,
        }
        self.state.count(in_port);
        self.table.len.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a subtable for the first flow of a mask.
    fn attach(&mut self, flow: Flow, key: &FlowKey) -> Result<(), Crowded> {
        let mask = *flow.mask();
        let subtable = Subtable::new(&mask);
        subtable.add((flow, key), &mut self.state.limbo)?;
        let free = self.table.slots.iter().position(|slot| slot.load(Ordering::Relaxed).is_null());
        let slot = free.expect("there are as many slots as masks allowed");
        self.table.slots[slot].store(Box::into_raw(subtable), Ordering::Release); // the flow before the link
        self.state.slot_of.insert(mask, slot);
        self.table.masks.fetch_add(1, Ordering::Relaxed);
        self.table.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Unlinks an empty subtable.
    fn detach(&mut self, slot: usize) {
        let subtable = self.subtable(slot).expect("a known slot is taken");
        self.state.slot_of.remove(subtable.mask());
        let unlinked = self.table.slots[slot].swap(std::ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: only `attach` sets the link, from a box, and it has just been cut.
        let unlinked = unsafe { Unlinked::new(unlinked) };
        self.state.limbo.retire(Garbage::Subtable(unlinked.expect("it was there a moment ago")));
        self.table.masks.fetch_sub(1, Ordering::Relaxed);
        self.table.version.fetch_add(1, Ordering::Release);
    }

    /// Removes a flow of a port that holds more than `port` does: of the flows looked at, one of the biggest
    /// holder's, the one longest unused.
    fn evict(&mut self, port: PortId) -> Option<Flow> {
        let held = self.state.held(port);
        if self.state.held.iter().all(|other| *other <= held) {
            return None;
        }
        let draws: [u64; DRAWS] = std::array::from_fn(|_| self.state.draw());
        let victim = draws
            .iter()
            .filter_map(|random| self.pick(*random))
            .filter(|flow| self.state.held(flow.in_port()) > held)
            .max_by_key(|flow| (self.state.held(flow.in_port()), Reverse(flow.last_use())))?
            .share();
        self.remove(&victim);
        self.table.evicted.fetch_add(1, Ordering::Relaxed);
        Some(victim)
    }

    /// Some flow: all are about equally likely.
    fn pick(&self, random: u64) -> Option<FlowRef<'_>> {
        let mut nth = (random >> 32) as usize % self.table.len();
        for slot in 0..self.table.slots.len() {
            let Some(subtable) = self.subtable(slot) else { continue };
            if nth < subtable.len() {
                return subtable.draw(random);
            }
            nth -= subtable.len();
        }
        None
    }
}
