//! Split rings (virtio 1.2 section 2.7): a table of descriptors, a ring of heads that are available, and a ring of those that
//! were used.
//!
//! Both rings have indices that run freely over 16 bits. What is given back is written behind the used index, and becomes
//! visible when the index is stored, once per batch.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::chain::{Chain, Chains, Pieces, Plain, Run, Stop, Table};
use super::inflight::{self, InflightError};
use super::log::DirtyLog;
use super::memory::GuestMemory;
use super::ring::{Fault, Parts, SetupError};
use crate::virtio::features::Features;
use crate::virtio::layout::{
    Descriptor, INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, UsedElement, WRITE, available_len, descriptors_len,
    used_len,
};

/// Where the rings begin in the driver's and the device's area: behind flags and index.
const RING: usize = 4;
/// The index.
const INDEX: usize = 2;

/// A split ring. Its pointers are good as long as the memory of its [`Pieces`].
pub(super) struct Split {
    descriptors: NonNull<[u64; 2]>,
    available: NonNull<u8>,
    used: NonNull<u8>,
    size: u16,
    /// The next entry of both rings: what is taken is given back in order.
    next: u16,
    /// The used index as the guest has it.
    published: u16,
    /// The available index as it was last seen.
    seen: u16,
    event_idx: bool,
    /// The guest physical address of the used ring.
    log: Option<u64>,
    inflight: Option<inflight::Split>,
    /// Heads that whoever had the ring before left: they come first.
    again: VecDeque<u16>,
}

// SAFETY: the pointers are to memory that outlives this, shared with the guest in any case.
unsafe impl Send for Split {}

impl Split {
    /// Finds the parts. It goes on where the used index is: what was taken was given back in order, so the next chain is there,
    /// whatever the frontend says. Frontends say what they like when they come back to another backend: DPDK's virtio-user
    /// 0, cloud-hypervisor the available index. (DPDK's and QEMU's backends trust the used index for the same reason.)
    pub(super) fn start(
        memory: &GuestMemory,
        parts: Parts,
        size: u16,
        features: Features,
    ) -> Result<Split, SetupError> {
        if !size.is_power_of_two() || size > crate::virtio::RING_MAX {
            return Err(SetupError::Size(size));
        }
        let part = |user, len, align| part(memory, user, (len, align));
        let mut split = Split {
            descriptors: part(parts.descriptors, descriptors_len(size), 16)?.cast(),
            available: part(parts.available, available_len(size), 2)?,
            used: part(parts.used, used_len(size), 4)?,
            size,
            next: 0,
            published: 0,
            seen: 0,
            event_idx: features.has(Features::EVENT_IDX),
            log: parts.log,
            inflight: None,
            again: VecDeque::new(),
        };
        let next = split.field(split.used, INDEX).load(Ordering::Relaxed);
        (split.next, split.published, split.seen) = (next, next, next);
        split.disarm(None);
        Ok(split)
    }

    /// Goes on where somebody else was killed, by the frontend's record.
    pub(super) fn recover(&mut self, queue: inflight::Queue) -> Result<(), InflightError> {
        let (inflight, again) = inflight::Split::recover(queue, self.next)?;
        (self.inflight, self.again) = (Some(inflight), again.into());
        Ok(())
    }

    /// A 16-bit field at an offset of the driver's or the device's area.
    #[inline(always)]
    fn field(&self, area: NonNull<u8>, at: usize) -> &AtomicU16 {
        // SAFETY: callers give offsets inside the area, even ones; areas are aligned. An atomic may be shared with the guest.
        unsafe { AtomicU16::from_ptr(area.as_ptr().add(at).cast()) }
    }

    /// Descriptor `index`, which is one.
    #[inline(always)]
    fn descriptor(&self, index: u16) -> Descriptor {
        debug_assert!(index < self.size);
        // SAFETY: the table has `size` of them, and is aligned.
        unpack(unsafe { self.descriptors.as_ptr().add(index.into()).read_volatile() })
    }

    /// The head at an available entry.
    #[inline(always)]
    fn head(&self, entry: u16) -> u16 {
        let at = RING + 2 * usize::from(entry & (self.size - 1));
        self.field(self.available, at).load(Ordering::Relaxed)
    }

    /// Entries that are available from `entry` on; looks whether there are more if they are fewer than `most`.
    #[inline(always)]
    fn ready(&mut self, entry: u16, most: u16) -> Result<u16, Fault> {
        let known = self.seen.wrapping_sub(entry);
        if known >= most {
            return Ok(known);
        }
        let seen = self.field(self.available, INDEX).load(Ordering::Acquire);
        if seen.wrapping_sub(self.next) > self.size {
            return Err(Fault::AvailableIndex { from: self.next, to: seen, size: self.size });
        }
        // An index that went back, behind what was looked at already, is none either.
        if seen.wrapping_sub(self.next) < entry.wrapping_sub(self.next) {
            return Err(Fault::AvailableIndex { from: entry, to: seen, size: self.size });
        }
        self.seen = seen;
        Ok(seen.wrapping_sub(entry))
    }

    fn check(&self, index: u16) -> Result<u16, Fault> {
        if index < self.size { Ok(index) } else { Err(Fault::DescriptorIndex { index, size: self.size }) }
    }

    /// Adds all of an indirect table, whose entries are linked too (section 2.7.5.3).
    fn walk_table(&self, descriptor: Descriptor, pieces: &mut Pieces) -> Result<(), Fault> {
        let table = Table::of(&pieces.memory, (descriptor.addr, descriptor.len), self.size)?;
        let mut index = 0;
        for _ in 0..table.entries {
            let entry = unpack(table.entry(&pieces.memory, index)?);
            if entry.flags & INDIRECT != 0 {
                return Err(Fault::Indirect { len: entry.len });
            }
            pieces.add((entry.addr, entry.len), entry.flags, index)?;
            if entry.flags & NEXT == 0 {
                return Ok(());
            }
            index = entry.next;
            if index >= table.entries {
                return Err(Fault::DescriptorIndex { index, size: table.entries });
            }
        }
        Err(Fault::ChainLength(0))
    }

    /// Asks the guest to kick at its next chain. True if there is one already.
    pub(super) fn arm(&mut self, log: Option<&DirtyLog>) -> bool {
        match self.event_idx {
            true => self.field(self.used, self.avail_event()).store(self.next, Ordering::Relaxed),
            false => self.field(self.used, 0).store(0, Ordering::Relaxed),
        }
        self.mark(log, 0, used_len(self.size));
        fence(Ordering::SeqCst);
        self.field(self.available, INDEX).load(Ordering::Acquire) != self.next
    }

    /// Asks the guest not to kick. With EVENT_IDX the event stays behind: a kick every 65,536 chains is no harm.
    pub(super) fn disarm(&mut self, log: Option<&DirtyLog>) {
        if !self.event_idx {
            self.field(self.used, 0).store(NO_NOTIFY, Ordering::Relaxed);
            self.mark(log, 0, RING);
        }
    }

    /// The next available entry.
    pub(super) fn base(&self) -> u16 {
        self.next
    }

    /// Where in the device's area `avail_event` is.
    fn avail_event(&self) -> usize {
        used_len(self.size) - 2
    }

    fn mark(&self, log: Option<&DirtyLog>, at: usize, len: usize) {
        if let (Some(log), Some(guest)) = (log, self.log) {
            log.mark(guest.wrapping_add(at as u64), len);
        }
    }
}

impl Chains for Split {
    type Cursor = u16;

    #[inline(always)]
    fn cursor(&self) -> u16 {
        self.next
    }

    #[inline(always)]
    fn plain(
        &mut self,
        most: usize,
        pieces: &Pieces,
        run: &mut Run,
        fits: impl Fn(usize, u32) -> bool,
    ) -> Stop {
        if self.inflight.is_some() {
            return Stop::Walk;
        }
        // A fault is for `walk` to find again, and to tell.
        let Ok(ready) = self.ready(self.next, most as u16) else { return Stop::Walk };
        for place in 0..most.min(ready.into()) {
            let id = self.head(self.next.wrapping_add(place as u16));
            if id >= self.size {
                return Stop::Walk;
            }
            let Descriptor { addr: guest, len, flags, .. } = self.descriptor(id);
            if flags & (NEXT | INDIRECT | WRITE) != pieces.direction.flags() || !fits(place, len) {
                return Stop::Walk;
            }
            match pieces.memory.at(guest, len as usize) {
                Some(span) if span.len == len as usize => {
                    pieces.ask(span);
                    run.push(Plain { base: span.base, guest, len, id });
                }
                _ => return Stop::Walk,
            }
        }
        Stop::Enough
    }

    fn walk(&mut self, cursor: &mut u16, pieces: &mut Pieces) -> Result<Option<Chain>, Fault> {
        if self.ready(*cursor, 1)? == 0 {
            return Ok(None);
        }
        let left = self.again.get(cursor.wrapping_sub(self.next).into());
        let id = self.check(left.map_or_else(|| self.head(*cursor), |&head| head))?;
        let mut index = id;
        pieces.begin_chain();
        for slots in 1..=self.size {
            let descriptor = self.descriptor(index);
            if descriptor.flags & INDIRECT != 0 {
                if descriptor.flags & NEXT != 0 {
                    return Err(Fault::Indirect { len: descriptor.len });
                }
                self.walk_table(descriptor, pieces)?;
            } else {
                pieces.add((descriptor.addr, descriptor.len), descriptor.flags, index)?;
            }
            if descriptor.flags & NEXT == 0 {
                *cursor = cursor.wrapping_add(1);
                return Ok(Some(Chain { id, slots, len: pieces.chain_len() }));
            }
            index = self.check(descriptor.next)?;
        }
        Err(Fault::ChainLength(id))
    }

    fn begin(&mut self, chains: &[Chain]) {
        let Some(inflight) = &mut self.inflight else { return };
        chains.iter().skip(self.again.len()).for_each(|chain| inflight.begin(chain.id));
    }

    #[inline(always)]
    fn give_back(&mut self, chain: Chain, written: u32) {
        let at = RING + size_of::<UsedElement>() * usize::from(self.next & (self.size - 1));
        let element = u64::from(chain.id) | u64::from(written) << 32;
        // SAFETY: the entry lies in the used ring, which is aligned for its halves.
        unsafe { self.used.as_ptr().add(at).cast::<u64>().write_unaligned(element) };
        self.next = self.next.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.done(chain.id);
            self.again.pop_front();
        }
    }

    #[inline(always)]
    fn give_back_run(&mut self, run: &[Plain], written: impl Fn(usize) -> u32) {
        debug_assert!(run.is_empty() || self.inflight.is_none());
        let (used, mask) = (self.used.as_ptr(), usize::from(self.size) - 1);
        let first = usize::from(self.next);
        for (place, plain) in run.iter().enumerate() {
            let element = u64::from(plain.id) | u64::from(written(place)) << 32;
            let at = RING + size_of::<UsedElement>() * ((first + place) & mask);
            // SAFETY: as above.
            unsafe { used.add(at).cast::<u64>().write_unaligned(element) };
        }
        self.next = self.next.wrapping_add(run.len() as u16);
    }

    #[inline(always)]
    fn publish(&mut self, log: Option<&DirtyLog>) -> u16 {
        let count = self.next.wrapping_sub(self.published);
        if count != 0 {
            // SAFETY: as in `field`, which borrows too much.
            let index = unsafe { AtomicU16::from_ptr(self.used.as_ptr().add(INDEX).cast()) };
            let store = || index.store(self.next, Ordering::Release);
            match &mut self.inflight {
                None => store(),
                Some(inflight) => inflight.publish(store),
            }
            self.published = self.next;
            // The index comes with the ring: a page more or less costs less than finding out which.
            self.mark(log, 0, used_len(self.size));
        }
        count
    }

    #[inline(always)]
    fn wants_call(&self, count: u16) -> bool {
        if !self.event_idx {
            return self.field(self.available, 0).load(Ordering::Relaxed) & NO_INTERRUPT == 0;
        }
        let event = self.field(self.available, available_len(self.size) - 2).load(Ordering::Relaxed);
        is_passed(event, self.published, count)
    }
}

/// The two words of a descriptor.
#[inline(always)]
fn unpack([addr, rest]: [u64; 2]) -> Descriptor {
    Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
}

/// Does the entry `event` lie among the `count` before `new` (sections 2.7.7 and 2.7.10)?
#[inline(always)]
pub(super) fn is_passed(event: u16, new: u16, count: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < count
}

/// Where a part of a ring is: so many bytes at an address of the frontend's, aligned so.
pub(super) fn part(
    memory: &GuestMemory,
    user: u64,
    (len, align): (usize, usize),
) -> Result<NonNull<u8>, SetupError> {
    let found = memory.at_user(user, len).filter(|at| at.addr().get().is_multiple_of(align));
    found.ok_or(SetupError::Address(user))
}
