//! The place of a packed ring.
//!
//! Entries are not those of the ring, which a driver may overwrite while a chain is in flight: each descriptor that is taken
//! gets a free entry. The free ones are a list; what is at its front moves only when a batch is through ([`Packed::publish`]).

use std::mem::{offset_of, size_of};

use super::cells::{Cells, Number};
use super::{Format, InflightError, Past, Queue, VERSION};
use crate::virtio::layout::{AVAIL, PackedDescriptor, USED};

/// `QueueRegionPacked`, without its entries, which follow.
#[repr(C, align(8))]
pub struct QueueRegion {
    pub features: u64,
    pub version: u16,
    pub desc_num: u16,
    pub free_head: u16,
    pub old_free_head: u16,
    pub used_idx: u16,
    pub old_used_idx: u16,
    pub used_wrap_counter: u8,
    pub old_used_wrap_counter: u8,
    pub padding: [u8; 7],
}

/// `DescStatePacked`: an entry.
#[repr(C)]
pub struct DescState {
    pub inflight: u8,
    pub padding: u8,
    pub next: u16,
    pub last: u16,
    pub num: u16,
    pub counter: u64,
    pub id: u16,
    pub flags: u16,
    pub len: u32,
    pub addr: u64,
}

const _: () = assert!(size_of::<QueueRegion>() == 32 && size_of::<DescState>() == 32);

/// A place in a packed ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackedPlace {
    /// Of the descriptor.
    pub index: u16,
    /// The wrap counter there.
    pub wrap: bool,
}

impl PackedPlace {
    /// So many descriptors further, at most `ring`, the entries of the ring.
    #[inline]
    pub fn after(self, count: u16, ring: u16) -> PackedPlace {
        let index = u32::from(self.index) + u32::from(count);
        match index.checked_sub(ring.into()) {
            Some(index) => PackedPlace { index: index as u16, wrap: !self.wrap },
            None => PackedPlace { index: index as u16, ..self },
        }
    }
}

/// What changes with a batch.
#[derive(Debug, Clone, Copy)]
struct State {
    /// The first free entry; behind the last one: none.
    free: u16,
    used: PackedPlace,
}

/// Where the places of both states are, which are written at once. The specification has them one after the other: but between
/// index and wrap counter of the old one there is a moment where a descriptor that the last lap left inside of a chain looks as
/// if the batch had not reached the ring.
const USED_WORD: usize = offset_of!(QueueRegion, used_idx);

const _: () = assert!(
    USED_WORD.is_multiple_of(8)
        && offset_of!(QueueRegion, old_used_idx) == USED_WORD + 2
        && offset_of!(QueueRegion, used_wrap_counter) == USED_WORD + 4
        && offset_of!(QueueRegion, old_used_wrap_counter) == USED_WORD + 5
);

/// The places of the states as they are when the batch is through and until then.
fn used_word(new: PackedPlace, old: PackedPlace) -> u64 {
    let (new_index, old_index) = (u64::from(new.index), u64::from(old.index));
    new_index | old_index << 16 | u64::from(new.wrap) << 32 | u64::from(old.wrap) << 40
}

/// The reverse of [`used_word`].
fn used_places(word: u64) -> (PackedPlace, PackedPlace) {
    let place = |index: u32, wrap: u32| PackedPlace {
        index: (word >> index) as u16,
        wrap: (word >> wrap) as u8 != 0,
    };
    (place(0, 32), place(16, 40))
}

/// A chain that was taken and not given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// To say [`Packed::done`] of.
    pub entry: u16,
    /// Its descriptors as they were in the ring, at least 1.
    pub descriptors: Vec<PackedDescriptor>,
}

/// What whoever had the ring before has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Where the next used descriptor goes.
    pub used: PackedPlace,
    /// In the order in which they were made available. The next available descriptor is behind all of theirs.
    ///
    /// Of a batch that did not reach the ring, all used descriptors but the first may be there already. So their
    /// descriptors have to be written to the ring again, from `used` on, as available, before any is given back.
    pub chains: Vec<Taken>,
}

/// A chain in flight.
#[derive(Debug, Clone, Copy, Default)]
struct Chain {
    /// The entry of its last descriptor.
    last: u16,
    /// Descriptors.
    count: u16,
}

/// The chains of a packed ring that are in flight, each by its first entry.
#[derive(Debug)]
pub struct Packed {
    cells: Cells,
    /// Entries of the ring; the region may have more.
    ring: u16,
    /// How many chains there were.
    counter: u64,
    state: State,
    /// What the region has as `next`.
    next: Vec<u16>,
    /// By first entry.
    chains: Vec<Chain>,
    /// First entries of the chains to give back with the next batch.
    batch: Vec<u16>,
}

impl Packed {
    /// What is to be done after whoever had the ring before. `start` is where a ring begins whose region nobody has
    /// used; `flags` gives the flags of a descriptor of the ring, at an index below the size of the region.
    ///
    /// # Errors
    /// Any of [`InflightError`] about what is in a region. It is of no use then, and the ring better started without.
    pub fn recover(
        queue: Queue,
        start: PackedPlace,
        flags: impl FnOnce(u16) -> u16,
    ) -> Result<(Packed, Recovered), InflightError> {
        let (size, ring) = (queue.size, queue.ring);
        let (cells, past) = queue.open(Format::Packed)?;
        let mut packed = Packed {
            cells,
            ring,
            counter: 0,
            state: State { free: 0, used: start },
            next: (1..=size).collect(),
            chains: vec![Chain::default(); size.into()],
            batch: Vec::with_capacity(size.into()),
        };
        let chains = match past {
            Past::Unused => packed.clear(),
            Past::Used => {
                packed.end_batch(flags)?;
                packed.in_flight()?
            }
        };
        let used = packed.state.used;
        Ok((packed, Recovered { used, chains }))
    }

    /// A region that nobody has used, and so no chains. The version comes last.
    fn clear(&self) -> Vec<Taken> {
        for (entry, &next) in (0..).zip(&self.next) {
            self.put_entry(entry, offset_of!(DescState, inflight), 0u8);
            self.put_entry(entry, offset_of!(DescState, next), next);
        }
        self.cells.put(offset_of!(QueueRegion, features), 0u64);
        self.cells.put(offset_of!(QueueRegion, desc_num), self.next.len() as u16);
        self.put_state();
        self.cells.put(offset_of!(QueueRegion, version), VERSION);
        Vec::new()
    }

    /// Does what was left to do of a batch that reached the ring, and undoes one that did not. A batch writes the flags of its
    /// first descriptor last, so they say which it is.
    fn end_batch(&mut self, flags: impl FnOnce(u16) -> u16) -> Result<(), InflightError> {
        let (new, old) = used_places(self.cells.get(USED_WORD));
        if let Some(place) = [new, old].iter().find(|place| place.index >= self.ring) {
            return Err(InflightError::Broken(place.index));
        }
        let reached = new != old && flags(old.index) & (AVAIL | USED) != available(old.wrap);
        self.state = match reached {
            true => State { free: self.cells.get(offset_of!(QueueRegion, free_head)), used: new },
            false => State { free: self.cells.get(offset_of!(QueueRegion, old_free_head)), used: old },
        };
        self.put_state();
        Ok(())
    }

    /// What is neither free nor half taken, in order.
    fn in_flight(&mut self) -> Result<Vec<Taken>, InflightError> {
        let mut seen = vec![false; self.next.len()];
        let mut free = self.state.free;
        while usize::from(free) < seen.len() {
            visit(&mut seen, free)?;
            self.put_entry(free, offset_of!(DescState, inflight), 0u8);
            free = self.follow(free);
        }
        let marked = |&head: &u16| self.get_entry::<u8>(head, offset_of!(DescState, inflight)) != 0;
        let with_counter = |head| (self.get_entry::<u64>(head, offset_of!(DescState, counter)), head);
        let mut heads: Vec<_> = (0..seen.len() as u16).filter(marked).map(with_counter).collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        heads.into_iter().map(|(_, head)| self.taken(head, &mut seen)).collect()
    }

    /// A chain and its descriptors.
    fn taken(&mut self, head: u16, seen: &mut [bool]) -> Result<Taken, InflightError> {
        let count: u16 = self.get_entry(head, offset_of!(DescState, num));
        let (mut last, mut next) = (head, head);
        let mut descriptors = Vec::new();
        for _ in 0..count {
            visit(seen, next)?;
            descriptors.push(self.descriptor(next));
            last = next;
            next = self.follow(next);
        }
        if descriptors.is_empty() {
            return Err(InflightError::Broken(head));
        }
        self.chains[usize::from(head)] = Chain { last, count };
        Ok(Taken { entry: head, descriptors })
    }

    /// The next of a list, by the region, and from now on by us.
    fn follow(&mut self, entry: u16) -> u16 {
        let next = self.get_entry(entry, offset_of!(DescState, next));
        self.next[usize::from(entry)] = next;
        next
    }

    fn descriptor(&self, entry: u16) -> PackedDescriptor {
        PackedDescriptor {
            addr: self.get_entry(entry, offset_of!(DescState, addr)),
            len: self.get_entry(entry, offset_of!(DescState, len)),
            id: self.get_entry(entry, offset_of!(DescState, id)),
            flags: self.get_entry(entry, offset_of!(DescState, flags)),
        }
    }

    /// A chain was taken from the ring, with these descriptors, and nothing done with it yet: to say [`Packed::done`] of.
    /// `None` if it has no descriptor, or all chains in flight together have more than the ring.
    #[inline]
    pub fn begin(&mut self, descriptors: &[PackedDescriptor]) -> Option<u16> {
        let head = self.state.free;
        let last = self.entries(head, descriptors.len())?;
        self.put_entry(head, offset_of!(DescState, num), 0u16);
        self.put_entry(head, offset_of!(DescState, counter), self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.put_entry(head, offset_of!(DescState, inflight), 1u8);
        for (count, descriptor) in (1u16..).zip(descriptors) {
            let free = self.state.free;
            if free == last {
                self.put_entry(head, offset_of!(DescState, last), last);
            }
            self.put_entry(head, offset_of!(DescState, num), count);
            self.put_entry(free, offset_of!(DescState, addr), descriptor.addr);
            self.put_entry(free, offset_of!(DescState, len), descriptor.len);
            self.put_entry(free, offset_of!(DescState, flags), descriptor.flags);
            self.put_entry(free, offset_of!(DescState, id), descriptor.id);
            self.state.free = self.next[usize::from(free)];
            self.cells.put(offset_of!(QueueRegion, free_head), self.state.free);
        }
        self.cells.put(offset_of!(QueueRegion, old_free_head), self.state.free);
        self.chains[usize::from(head)] = Chain { last, count: descriptors.len() as u16 };
        Some(head)
    }

    /// The last of `count` free entries, if there are so many.
    #[inline]
    fn entries(&self, first: u16, count: usize) -> Option<u16> {
        self.next.get(usize::from(first))?;
        let step = |entry: u16, _| {
            let next = self.next[usize::from(entry)];
            (usize::from(next) < self.next.len()).then_some(next)
        };
        (1..count).try_fold(first, step).filter(|_| count > 0)
    }

    /// A chain, by what [`Packed::begin`] said, that goes back with the next batch.
    #[inline]
    pub fn done(&mut self, entry: u16) {
        if usize::from(entry) < self.chains.len() {
            self.batch.push(entry);
        }
    }

    /// Gives the chains that are done back: `store` writes the flags of the used descriptors, those of the first one last.
    #[inline]
    pub fn publish(&mut self, store: impl FnOnce()) {
        let old = self.state.used;
        for &head in &self.batch {
            let Chain { last, count } = self.chains[usize::from(head)];
            self.put_entry(last, offset_of!(DescState, next), self.state.free);
            self.next[usize::from(last)] = self.state.free;
            self.state.free = head;
            self.cells.put(offset_of!(QueueRegion, free_head), head);
            self.state.used = self.state.used.after(count, self.ring);
        }
        self.cells.put(USED_WORD, used_word(self.state.used, old));
        store();
        for &head in &self.batch {
            self.put_entry(head, offset_of!(DescState, inflight), 0u8);
        }
        self.put_state();
        self.batch.clear();
    }

    /// Did the frontend take the region away? Then it tells a successor nothing.
    pub fn is_torn(&self) -> bool {
        self.cells.is_torn()
    }

    /// No batch is under way.
    #[inline]
    fn put_state(&self) {
        self.cells.put(offset_of!(QueueRegion, free_head), self.state.free);
        self.cells.put(offset_of!(QueueRegion, old_free_head), self.state.free);
        self.cells.put(USED_WORD, used_word(self.state.used, self.state.used));
    }

    #[inline]
    fn get_entry<N: Number>(&self, entry: u16, field: usize) -> N {
        self.cells.get(size_of::<QueueRegion>() + usize::from(entry) * size_of::<DescState>() + field)
    }

    #[inline]
    fn put_entry<N: Number>(&self, entry: u16, field: usize, value: N) {
        self.cells.put(size_of::<QueueRegion>() + usize::from(entry) * size_of::<DescState>() + field, value);
    }
}

/// The bits of a descriptor that the driver made available and that is not used (virtio 1.2 section 2.8.1).
fn available(wrap: bool) -> u16 {
    if wrap { AVAIL } else { USED }
}

/// Each entry is visited once, or the lists are broken.
fn visit(seen: &mut [bool], entry: u16) -> Result<(), InflightError> {
    match seen.get_mut(usize::from(entry)) {
        Some(seen) if !*seen => {
            *seen = true;
            Ok(())
        }
        _ => Err(InflightError::Broken(entry)),
    }
}
