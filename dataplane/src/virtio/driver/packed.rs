//! A packed ring from the driver's side (virtio 1.2 section 2.8).
//!
//! A batch becomes available at once: the flags of its first descriptor are written last. With `IN_ORDER` a chain's id is
//! the place of its first descriptor, and the device may give back several chains by the last of them.

use std::sync::atomic::{Ordering, fence};

use super::memory::{Block, MemoryError, SharedMemory};
use super::raw::Raw;
use super::record::{Chain, Record, room, writable};
use super::{Access, Buffer, Form, Full, Places, Shape, Token, Used, passed};
use crate::virtio::features::Features;
use crate::virtio::layout::{
    AVAIL, EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, INDIRECT, NEXT, PackedDescriptor, USED, WRITE,
};

const DESCRIPTOR: usize = size_of::<PackedDescriptor>();
/// Where the parts of a descriptor are.
const ADDR: usize = 0;
const LEN: usize = 8;
const ID: usize = 12;
const FLAGS: usize = 14;
/// Bytes of `struct pvirtq_event_suppress`, and where its flags are.
const SUPPRESSION: usize = 4;
const SUPPRESSION_FLAGS: usize = 2;

/// A place in the ring, and the wrap counter there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    place: u16,
    wrap: bool,
}

impl Cursor {
    const START: Cursor = Cursor { place: 0, wrap: true };

    #[inline]
    fn advance(&mut self, by: u16, size: u16) {
        let place = self.place + by;
        let over = place >= size;
        *self = Cursor { place: if over { place - size } else { place }, wrap: self.wrap ^ over };
    }

    /// With the wrap counter in bit 15.
    #[inline]
    fn word(self) -> u16 {
        self.place | u16::from(self.wrap) << 15
    }
}

/// A packed ring.
#[derive(Debug)]
pub struct PackedRing {
    shape: Shape,
    ring: Block,
    driver: Block,
    device: Block,
    tables: Option<Block>,
    record: Record,
    /// Free ids; with IN_ORDER there is no such list.
    ids: Vec<u16>,
    free: u16,
    next: Cursor,
    taken: Cursor,
    /// The first chain not published yet, and what its first descriptor's flags will be.
    waiting: Option<(u16, u16)>,
    /// Descriptors published since `wants_kick`.
    published: u16,
    unpublished: u16,
    /// With IN_ORDER: the last of the chains that came back at once, and what was written to it.
    batch: Option<(u16, u32)>,
}

impl PackedRing {
    pub(super) fn new(memory: &SharedMemory, shape: Shape) -> Result<PackedRing, MemoryError> {
        let tables = usize::from(shape.size) * usize::from(shape.table) * DESCRIPTOR;
        let mut ring = PackedRing {
            shape,
            ring: memory.block(usize::from(shape.size) * DESCRIPTOR, 16)?,
            driver: memory.block(SUPPRESSION, 4)?,
            device: memory.block(SUPPRESSION, 4)?,
            tables: (tables > 0).then(|| memory.block(tables, 16)).transpose()?,
            record: Record::new(shape.size),
            ids: Vec::with_capacity(usize::from(shape.size)),
            free: 0,
            next: Cursor::START,
            taken: Cursor::START,
            waiting: None,
            published: 0,
            unpublished: 0,
            batch: None,
        };
        ring.reset();
        Ok(ring)
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    pub(super) fn raw(&self) -> Raw {
        Raw { descriptors: self.ring.clone(), driver: self.driver.clone(), device: self.device.clone() }
    }

    pub(super) fn places(&self) -> Places {
        Places { descriptors: self.ring.guest(), driver: self.driver.guest(), device: self.device.guest() }
    }

    #[inline]
    pub(super) fn free(&self) -> u16 {
        self.free
    }

    #[inline]
    pub(super) fn add(&mut self, chain: &[Buffer], form: Form) -> Result<Token, Full> {
        let need = if form == Form::Indirect { 1 } else { chain.len() };
        room(chain.len(), need, (self.free, self.shape.table))?;
        let id = self.take_id();
        match form {
            Form::Direct => self.write_chain(chain, id),
            Form::Indirect => self.write_indirect(chain, id),
        }
        self.free -= need as u16;
        self.unpublished += need as u16;
        self.record.put(id, Chain { descriptors: need as u16, tail: 0, writable: writable(chain) });
        Ok(Token(id))
    }

    fn take_id(&mut self) -> u16 {
        match self.in_order() {
            true => self.next.place,
            false => self.ids.pop().expect("there are as many ids as descriptors"),
        }
    }

    fn write_chain(&mut self, chain: &[Buffer], id: u16) {
        for (place, buffer) in chain.iter().enumerate() {
            let next = if place + 1 == chain.len() { 0 } else { NEXT };
            self.write(PackedDescriptor {
                addr: buffer.addr,
                len: buffer.len,
                id,
                flags: next | access(buffer),
            });
        }
    }

    fn write_indirect(&mut self, chain: &[Buffer], id: u16) {
        let tables = self.tables.as_ref().expect("`room` knows that there are tables");
        let table = usize::from(id) * usize::from(self.shape.table) * DESCRIPTOR;
        for (place, buffer) in chain.iter().enumerate() {
            let entry = PackedDescriptor { addr: buffer.addr, len: buffer.len, id: 0, flags: access(buffer) };
            tables.put(table + place * DESCRIPTOR, entry);
        }
        let (addr, len) = (tables.guest() + table as u64, (chain.len() * DESCRIPTOR) as u32);
        self.write(PackedDescriptor { addr, len, id, flags: INDIRECT });
    }

    /// Writes the next descriptor; the flags of the first that waits only when it is published.
    #[inline]
    fn write(&mut self, descriptor: PackedDescriptor) {
        let at = usize::from(self.next.place) * DESCRIPTOR;
        let flags = descriptor.flags | if self.next.wrap { AVAIL } else { USED };
        if self.waiting.is_none() {
            self.ring.put(at + ADDR, descriptor.addr);
            self.ring.put(at + LEN, descriptor.len);
            self.ring.put(at + ID, descriptor.id);
            self.waiting = Some((self.next.place, flags));
        } else {
            self.ring.put(at, PackedDescriptor { flags, ..descriptor });
        }
        self.next.advance(1, self.shape.size);
    }

    #[inline]
    pub(super) fn publish(&mut self) {
        if let Some((place, flags)) = self.waiting.take() {
            self.ring.release16(usize::from(place) * DESCRIPTOR + FLAGS, flags);
        }
        // Once around is all there is to tell.
        self.published = (self.published + std::mem::take(&mut self.unpublished)).min(self.shape.size);
    }

    #[inline]
    pub(super) fn wants_kick(&mut self) -> bool {
        // The flags before the device's wish: it does it the other way round before it sleeps.
        fence(Ordering::SeqCst);
        let published = std::mem::take(&mut self.published);
        let wish = self.device.acquire32(0);
        let (event, flags) = (wish as u16, (wish >> 16) as u16);
        match flags {
            _ if published == 0 => false,
            EVENT_DESC => self.reached(event, published),
            flags => flags != EVENT_DISABLE,
        }
    }

    /// Is the descriptor that the device waits for among the last published?
    fn reached(&self, event: u16, published: u16) -> bool {
        // What waits for `publish` lies between those and `next`.
        let new = self.next.place.wrapping_sub(self.unpublished);
        let old = new.wrapping_sub(published);
        let (place, wrap) = (event & !(1 << 15), event >> 15 == 1);
        let place = if wrap == self.next.wrap { place } else { place.wrapping_sub(self.shape.size) };
        passed(place, new, old)
    }

    #[inline]
    pub(super) fn used(&mut self) -> Option<Used> {
        let (id, written) = match self.batch.take() {
            Some(batch) => batch,
            None => self.used_at(self.taken)?,
        };
        let first = if self.in_order() { self.taken.place } else { id };
        let (token, chain) = self.record.take(u32::from(first));
        self.taken.advance(chain.descriptors, self.shape.size);
        self.free += chain.descriptors;
        match self.in_order() {
            false => self.ids.push(id),
            true if first != id => {
                self.batch = Some((id, written));
                return Some(Used { token, written: chain.writable });
            }
            true => {}
        }
        Some(Used { token, written })
    }

    #[inline]
    fn used_at(&self, cursor: Cursor) -> Option<(u16, u32)> {
        let at = usize::from(cursor.place) * DESCRIPTOR;
        let flags = self.ring.acquire16(at + FLAGS);
        let [avail, used] = [flags & AVAIL != 0, flags & USED != 0];
        if avail != used || used != cursor.wrap {
            return None;
        }
        // Without WRITE the length means nothing (section 2.8.21.3).
        let written = if flags & WRITE != 0 { self.ring.get::<u32>(at + LEN) } else { 0 };
        Some((self.ring.get(at + ID), written))
    }

    pub(super) fn enable_calls(&mut self) -> bool {
        let flags = if self.shape.features.has(Features::EVENT_IDX) { EVENT_DESC } else { EVENT_ENABLE };
        self.driver.release32(0, u32::from(self.taken.word()) | u32::from(flags) << 16);
        // The wish before the flags: the device does it the other way round.
        fence(Ordering::SeqCst);
        self.batch.is_some() || self.used_at(self.taken).is_some()
    }

    pub(super) fn disable_calls(&mut self) {
        self.driver.release16(SUPPRESSION_FLAGS, EVENT_DISABLE);
    }

    pub(super) fn base(&self) -> u32 {
        let (mut at, mut batch) = (self.taken, self.batch);
        while let Some((id, _)) = batch.or_else(|| self.used_at(at)) {
            let first = if self.in_order() { at.place } else { id };
            at.advance(self.record.descriptors(first), self.shape.size);
            batch = (first != id).then_some((id, 0));
        }
        let word = u32::from(at.word());
        word | word << 16
    }

    pub(super) fn reset(&mut self) {
        let size = self.shape.size;
        (0..usize::from(size) * DESCRIPTOR).for_each(|at| self.ring.put(at, 0u8));
        self.driver.release32(0, 0);
        self.device.release32(0, 0);
        self.record.clear();
        self.ids.clear();
        self.ids.extend((0..size).rev());
        (self.free, self.next, self.taken) = (size, Cursor::START, Cursor::START);
        (self.waiting, self.published, self.unpublished, self.batch) = (None, 0, 0, None);
    }

    #[inline]
    fn in_order(&self) -> bool {
        self.shape.features.has(Features::IN_ORDER)
    }
}

#[inline]
fn access(buffer: &Buffer) -> u16 {
    if buffer.access == Access::Write { WRITE } else { 0 }
}
