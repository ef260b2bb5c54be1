//! Packed rings (virtio 1.2 section 2.8): one ring of descriptors, which the driver makes available and the device overwrites
//! as used.
//!
//! Two flag bits of a descriptor say whose it is, by a wrap counter that each side turns over with each round. A chain lies
//! in a row, and one used descriptor at its first place stands for all of it. The used descriptors of a batch are written
//! as they come, but for the flags of the first: the driver waits there, so it sees all of them or none. Each store is a release,
//! so whoever is killed has done those up to one of them ([`resume`], and without a record [`recover`]).

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::chain::{Chain, Chains, Direction, Pieces, Plain, Run, Stop, Table};
use super::inflight::{self, InflightError};
use super::log::DirtyLog;
use super::memory::GuestMemory;
use super::places::{Identity, Keeper, LastBatch};
use super::ring::{Fault, Parts, SetupError, Witness};
use super::split::{is_passed, part};
use crate::virtio::RING_MAX;
use crate::virtio::features::Features;
use crate::virtio::layout::{
    AVAIL, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, EventSuppression, INDIRECT, NEXT, PackedDescriptor, USED,
    WRITE,
};

mod recover;
mod resume;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = size_of::<PackedDescriptor>();
/// Where the flags are in the second word of a descriptor.
const FLAGS: u32 = 48;

/// A place in the ring, in one of its rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    index: u16,
    /// The wrap counter.
    wrap: bool,
}

impl Place {
    /// As in an event suppression structure, and in either half of `VHOST_USER_SET_VRING_BASE`.
    pub(super) fn of(bits: u16) -> Place {
        Place { index: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }

    pub(super) fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// `slots` further in a ring of `size`, at most once around.
    #[inline(always)]
    fn behind(self, slots: u16, size: u16) -> Place {
        let index = u32::from(self.index) + u32::from(slots);
        match index.checked_sub(size.into()) {
            None => Place { index: index as u16, wrap: self.wrap },
            Some(index) => Place { index: index as u16, wrap: !self.wrap },
        }
    }

    /// The flags of a descriptor here that is available.
    #[inline(always)]
    fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// The flags of a descriptor here that is used.
    #[inline(always)]
    fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// Where to look for a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    place: Place,
    /// Places between those that the guest knows to be used and this; a round at most.
    ahead: u16,
}

/// A packed ring. Its pointers are good as long as the memory of its [`Pieces`].
pub(super) struct Packed {
    ring: NonNull<u8>,
    /// When the driver wants to be called.
    driver: NonNull<u8>,
    /// When we want to be kicked.
    device: NonNull<u8>,
    size: u16,
    /// The next place to take from and to give back at.
    next: Place,
    /// The first place given back and not shown, and the second word to write there.
    first: Option<(Place, u64)>,
    /// Places given back and not shown; at most all, whatever the guest writes meanwhile.
    given: u16,
    event_idx: bool,
    in_order: bool,
    /// The guest physical addresses of the ring and of the device's event suppression, if writes are logged.
    log: Option<(u64, u64)>,
    inflight: Option<Box<inflight::Packed>>,
    /// Where the last batch is written down, if there is no such record.
    keeper: Option<Keeper>,
    /// The chains that are in flight, by the name that the record has for them. Those that whoever had the ring before left
    /// are here before they are looked at.
    taken: VecDeque<u16>,
}

// SAFETY: the pointers are to memory that outlives this, shared with the guest in any case.
unsafe impl Send for Packed {}

impl Packed {
    /// Finds the parts; `next` is where to go on.
    pub(super) fn start(
        memory: &GuestMemory,
        parts: Parts,
        (size, next): (u16, Place),
        features: Features,
    ) -> Result<Packed, SetupError> {
        if !(1..=RING_MAX).contains(&size) {
            return Err(SetupError::Size(size));
        }
        if next.index >= size {
            return Err(SetupError::Base(next.index));
        }
        let part = |user, len, align| part(memory, user, (len, align));
        let ring_guest = memory.guest_of(parts.descriptors).ok_or(SetupError::Address(parts.descriptors))?;
        let mut packed = Packed {
            ring: part(parts.descriptors, DESCRIPTOR * usize::from(size), 16)?,
            driver: part(parts.available, size_of::<EventSuppression>(), 4)?,
            device: part(parts.used, size_of::<EventSuppression>(), 4)?,
            size,
            next,
            first: None,
            given: 0,
            event_idx: features.has(Features::EVENT_IDX),
            in_order: features.has(Features::IN_ORDER),
            // The frontend gives one address only, which QEMU takes from the device's event suppression (`used_phys` of
            // hw/virtio/vhost.c); the ring's is its own.
            log: parts.log.map(|log| (ring_guest, log)),
            inflight: None,
            keeper: None,
            taken: VecDeque::new(),
        };
        packed.disarm(None);
        Ok(packed)
    }

    /// Goes on where somebody else was killed, by the frontend's record. Chains that were left are made available again.
    pub(super) fn recover(&mut self, queue: inflight::Queue) -> Result<(), InflightError> {
        let Place { index, wrap } = self.next;
        let flags = |index| if index < self.size { self.descriptor(index).flags } else { 0 };
        let start = inflight::PackedPlace { index, wrap };
        let (inflight, recovered) = inflight::Packed::recover(queue, start, flags)?;
        let mut place = Place { index: recovered.used.index, wrap: recovered.used.wrap };
        if place.index >= self.size {
            return Err(InflightError::Broken(place.index));
        }
        self.next = place;
        let descriptors = recovered.chains.iter().flat_map(|chain| &chain.descriptors);
        for left in descriptors.take(self.size.into()) {
            let flags = left.flags & !(AVAIL | USED) | place.available();
            let rest = u64::from(left.len) | u64::from(left.id) << 32 | u64::from(flags) << FLAGS;
            self.word(place.index, 0).store(left.addr, Ordering::Relaxed);
            self.word(place.index, 1).store(rest, Ordering::Release);
            place = place.behind(1, self.size);
        }
        self.taken = recovered.chains.iter().map(|chain| chain.entry).collect();
        self.inflight = Some(Box::new(inflight));
        Ok(())
    }

    /// Goes on where the frontend says, or where somebody else was killed: by what that one wrote down if the ring agrees, else by
    /// the ring alone.
    pub(super) fn go_on(
        &mut self,
        kept: Option<(Keeper, Identity)>,
        witness: Witness,
        log: Option<&DirtyLog>,
    ) {
        let (keeper, ring) = kept.unzip();
        let last = keeper.as_ref().zip(ring).and_then(|(keeper, ring)| keeper.last(ring));
        self.keeper = keeper;
        if witness == Witness::Frontend && !last.is_some_and(|last| self.resume(last, log)) {
            self.find_place(log);
        }
        let is_written =
            |keeper: &Keeper, ring| keeper.last(ring).is_some_and(|last| last.to == self.next.bits());
        if let Some((keeper, ring)) = self.keeper.as_ref().zip(ring)
            && !is_written(keeper, ring)
        {
            keeper.begin(ring, self.next.bits());
        }
    }

    /// One half of the descriptor at a place.
    #[inline(always)]
    fn word(&self, index: u16, half: usize) -> &AtomicU64 {
        debug_assert!(index < self.size);
        // SAFETY: the ring has `size` descriptors and is aligned. An atomic may be shared with the guest.
        unsafe {
            AtomicU64::from_ptr(self.ring.as_ptr().add(usize::from(index) * DESCRIPTOR + 8 * half).cast())
        }
    }

    /// The descriptor at a place: flags, id and length at once, and after them the address.
    #[inline(always)]
    fn descriptor(&self, index: u16) -> PackedDescriptor {
        let rest = self.word(index, 1).load(Ordering::Acquire);
        unpack([self.word(index, 0).load(Ordering::Relaxed), rest])
    }

    /// Event suppression of either side.
    fn event(&self, side: NonNull<u8>) -> &AtomicU32 {
        // SAFETY: both are four bytes, aligned; an atomic may be shared with the guest.
        unsafe { AtomicU32::from_ptr(side.as_ptr().cast()) }
    }

    fn is_available(&self, place: Place, flags: u16) -> bool {
        flags & (AVAIL | USED) == place.available()
    }

    /// Adds all of an indirect table, whose entries lie in a row (section 2.8.7).
    fn walk_table(&self, descriptor: PackedDescriptor, pieces: &mut Pieces) -> Result<(), Fault> {
        let table = Table::of(&pieces.memory, (descriptor.addr, descriptor.len), self.size)?;
        for index in 0..table.entries {
            let entry = unpack(table.entry(&pieces.memory, index)?);
            if entry.flags & INDIRECT != 0 {
                return Err(Fault::Indirect { len: entry.len });
            }
            // DPDK's driver marks the headers in the tables of its transmit ring as ours to write (up to 22.11 at least;
            // DPDK's own device does not look). We only read them.
            let flags = match pieces.direction {
                Direction::FromGuest => entry.flags & !WRITE,
                Direction::ToGuest => entry.flags,
            };
            pieces.add((entry.addr, entry.len), flags, index)?;
        }
        Ok(())
    }

    /// Asks the guest to kick at its next chain. True if there is one already.
    pub(super) fn arm(&mut self, log: Option<&DirtyLog>) -> bool {
        let flags = if self.event_idx { EVENT_DESC } else { EVENT_ENABLE };
        self.suppress(EventSuppression { place: self.next.bits(), flags }, log);
        fence(Ordering::SeqCst);
        self.is_available(self.next, self.descriptor(self.next.index).flags)
    }

    /// Asks the guest not to kick.
    pub(super) fn disarm(&mut self, log: Option<&DirtyLog>) {
        self.suppress(EventSuppression { place: 0, flags: EVENT_DISABLE }, log);
    }

    fn suppress(&self, ours: EventSuppression, log: Option<&DirtyLog>) {
        let word = u32::from(ours.place) | u32::from(ours.flags) << 16;
        self.event(self.device).store(word, Ordering::Release);
        if let (Some(log), Some((_, device))) = (log, self.log) {
            log.mark(device, size_of::<EventSuppression>());
        }
    }

    /// Where to go on, as `VHOST_USER_GET_VRING_BASE` tells it: for taking and for giving back.
    pub(super) fn base(&self) -> u32 {
        u32::from(self.next.bits()) | u32::from(self.next.bits()) << 16
    }

    /// Logs the descriptors from a place up to the next.
    #[cold]
    fn mark(&self, from: Place, log: &DirtyLog) {
        let Some((ring, _)) = self.log else { return };
        let len = DESCRIPTOR * usize::from(self.size);
        let at = DESCRIPTOR * usize::from(from.index);
        match from.wrap == self.next.wrap {
            true => log.mark(ring + at as u64, DESCRIPTOR * usize::from(self.next.index) - at),
            false => log.mark(ring, len),
        }
    }
}

impl Chains for Packed {
    type Cursor = Cursor;

    #[inline(always)]
    fn cursor(&self) -> Cursor {
        Cursor { place: self.next, ahead: self.given }
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
        let mut place = self.next;
        for count in 0..most.min(usize::from(self.size - self.given)) {
            let PackedDescriptor { addr: guest, len, id, flags } = self.descriptor(place.index);
            if !self.is_available(place, flags) {
                return Stop::Enough;
            }
            if flags & (NEXT | INDIRECT | WRITE) != pieces.direction.flags() || !fits(count, len) {
                return Stop::Walk;
            }
            match pieces.memory.at(guest, len as usize) {
                Some(span) if span.len == len as usize => {
                    pieces.ask(span);
                    run.push(Plain { base: span.base, guest, len, id });
                }
                _ => return Stop::Walk,
            }
            place = place.behind(1, self.size);
        }
        Stop::Enough
    }

    fn walk(&mut self, cursor: &mut Cursor, pieces: &mut Pieces) -> Result<Option<Chain>, Fault> {
        let Cursor { mut place, ahead } = *cursor;
        let head = place.index;
        let mut descriptor = self.descriptor(head);
        if ahead == self.size || !self.is_available(place, descriptor.flags) {
            return Ok(None);
        }
        pieces.begin_chain();
        for slots in 1..=self.size - ahead {
            if descriptor.flags & INDIRECT != 0 {
                if descriptor.flags & NEXT != 0 {
                    return Err(Fault::Indirect { len: descriptor.len });
                }
                self.walk_table(descriptor, pieces)?;
            } else {
                pieces.add((descriptor.addr, descriptor.len), descriptor.flags, place.index)?;
            }
            place = place.behind(1, self.size);
            if descriptor.flags & NEXT == 0 {
                *cursor = Cursor { place, ahead: ahead + slots };
                return Ok(Some(Chain { id: descriptor.id, slots, len: pieces.chain_len() }));
            }
            descriptor = self.descriptor(place.index);
        }
        Err(Fault::ChainLength(head))
    }

    fn begin(&mut self, chains: &[Chain]) {
        let Some(mut inflight) = self.inflight.take() else { return };
        let mut place = self.next;
        for (count, chain) in chains.iter().enumerate() {
            let places = (0..chain.slots).map(|slot| place.behind(slot, self.size).index);
            if count >= self.taken.len() {
                let descriptors: Vec<_> = places.map(|index| self.descriptor(index)).collect();
                // More in flight than the record has room for: not of a frontend that keeps its word. They go untracked.
                self.taken.push_back(inflight.begin(&descriptors).unwrap_or(u16::MAX));
            }
            place = place.behind(chain.slots, self.size);
        }
        self.inflight = Some(inflight);
    }

    #[inline(always)]
    fn give_back(&mut self, chain: Chain, written: u32) {
        let place = self.next;
        let word = used_word(place, chain.id, written);
        match self.first {
            None => self.first = Some((place, word)),
            Some(_) => self.word(place.index, 1).store(word, Ordering::Release),
        }
        self.next = place.behind(chain.slots, self.size);
        self.given += chain.slots;
        if let Some(inflight) = &mut self.inflight
            && let Some(entry) = self.taken.pop_front()
        {
            inflight.done(entry);
        }
    }

    #[inline(always)]
    fn give_back_run(&mut self, run: &[Plain], written: impl Fn(usize) -> u32) {
        debug_assert!(run.is_empty() || self.inflight.is_none());
        let (mut place, mut first) = (self.next, self.first);
        for (count, plain) in run.iter().enumerate() {
            let word = used_word(place, plain.id, written(count));
            match first {
                None => first = Some((place, word)),
                Some(_) => self.word(place.index, 1).store(word, Ordering::Release),
            }
            place = place.behind(1, self.size);
        }
        (self.next, self.first) = (place, first);
        self.given += run.len() as u16;
    }

    #[inline(always)]
    fn publish(&mut self, log: Option<&DirtyLog>) -> u16 {
        let Some((place, word)) = self.first.take() else { return 0 };
        if let Some(keeper) = &self.keeper {
            keeper.put(LastBatch { from: place.bits(), to: self.next.bits() });
        }
        let mut inflight = self.inflight.take();
        let store = || self.word(place.index, 1).store(word, Ordering::Release);
        match &mut inflight {
            None => store(),
            Some(inflight) => inflight.publish(store),
        }
        self.inflight = inflight;
        if let Some(log) = log {
            self.mark(place, log);
        }
        std::mem::take(&mut self.given)
    }

    #[inline(always)]
    fn wants_call(&self, count: u16) -> bool {
        let theirs = self.event(self.driver).load(Ordering::Acquire);
        match (theirs >> 16) as u16 & 3 {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => {
                let place = Place::of(theirs as u16);
                let round = if place.wrap == self.next.wrap { 0 } else { self.size };
                is_passed(place.index.wrapping_sub(round), self.next.index, count)
            }
            _ => true,
        }
    }
}

/// The second word of a descriptor that is used.
#[inline(always)]
fn used_word(place: Place, id: u16, written: u32) -> u64 {
    let flags = place.used() | if written == 0 { 0 } else { WRITE };
    u64::from(written) | u64::from(id) << 32 | u64::from(flags) << FLAGS
}

/// The two words of a descriptor.
#[inline(always)]
fn unpack([addr, rest]: [u64; 2]) -> PackedDescriptor {
    PackedDescriptor { addr, len: rest as u32, id: (rest >> 32) as u16, flags: (rest >> FLAGS) as u16 }
}
