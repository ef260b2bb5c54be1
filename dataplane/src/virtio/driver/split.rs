//! A split ring from the driver's side (virtio 1.2 section 2.7).
//!
//! Free descriptors are a list through a table of our own. With `IN_ORDER` the list is a circle, as section 2.7.5.1 wants,
//! and the device may give back several chains by the last of them (section 2.7.9).

use std::sync::atomic::{Ordering, fence};

use super::memory::{Block, MemoryError, SharedMemory};
use super::raw::Raw;
use super::record::{Chain, Record, room, writable};
use super::{Access, Buffer, Form, Full, Places, Shape, Token, Used, passed};
use crate::virtio::features::Features;
use crate::virtio::layout::{
    Descriptor, INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, UsedElement, WRITE, available_len, descriptors_len,
    used_len,
};

/// Where `idx` and the ring are in either area.
const INDEX: usize = 2;
const ENTRIES: usize = 4;
const DESCRIPTOR: usize = size_of::<Descriptor>();
const ELEMENT: usize = size_of::<UsedElement>();

/// A split ring.
#[derive(Debug)]
pub struct SplitRing {
    shape: Shape,
    descriptors: Block,
    available: Block,
    used: Block,
    tables: Option<Block>,
    record: Record,
    /// The free descriptor behind each.
    links: Vec<u16>,
    first_free: u16,
    free: u16,
    added: u16,
    published: u16,
    kicked: u16,
    taken: u16,
    /// With IN_ORDER: the oldest chain with the device, and the last of those that it gave back at once.
    oldest: u16,
    batch: Option<UsedElement>,
}

impl SplitRing {
    pub(super) fn new(memory: &SharedMemory, shape: Shape) -> Result<SplitRing, MemoryError> {
        let tables = usize::from(shape.size) * usize::from(shape.table) * DESCRIPTOR;
        let mut ring = SplitRing {
            shape,
            descriptors: memory.block(descriptors_len(shape.size), 16)?,
            available: memory.block(available_len(shape.size), 2)?,
            used: memory.block(used_len(shape.size), 4)?,
            tables: (tables > 0).then(|| memory.block(tables, 16)).transpose()?,
            record: Record::new(shape.size),
            links: vec![0; usize::from(shape.size)],
            first_free: 0,
            free: 0,
            added: 0,
            published: 0,
            kicked: 0,
            taken: 0,
            oldest: 0,
            batch: None,
        };
        ring.reset();
        Ok(ring)
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    pub(super) fn raw(&self) -> Raw {
        Raw {
            descriptors: self.descriptors.clone(),
            driver: self.available.clone(),
            device: self.used.clone(),
        }
    }

    pub(super) fn places(&self) -> Places {
        Places {
            descriptors: self.descriptors.guest(),
            driver: self.available.guest(),
            device: self.used.guest(),
        }
    }

    #[inline]
    pub(super) fn free(&self) -> u16 {
        self.free
    }

    #[inline]
    pub(super) fn add(&mut self, chain: &[Buffer], form: Form) -> Result<Token, Full> {
        let need = if form == Form::Indirect { 1 } else { chain.len() };
        room(chain.len(), need, (self.free, self.shape.table))?;
        let head = self.first_free;
        let tail = match form {
            Form::Direct => self.write_chain(chain),
            Form::Indirect => self.write_indirect(chain),
        };
        self.first_free = self.links[usize::from(tail)];
        self.free -= need as u16;
        self.record.put(head, Chain { descriptors: need as u16, tail, writable: writable(chain) });
        self.available.put(ENTRIES + 2 * self.place(self.added), head);
        self.added = self.added.wrapping_add(1);
        Ok(Token(head))
    }

    /// Writes the chain into free descriptors; the last of them.
    fn write_chain(&mut self, chain: &[Buffer]) -> u16 {
        let (mut at, last) = (self.first_free, chain.len() - 1);
        for (place, buffer) in chain.iter().enumerate() {
            let next = self.links[usize::from(at)];
            let flags = if place == last { 0 } else { NEXT };
            self.descriptors.put(usize::from(at) * DESCRIPTOR, descriptor(buffer, flags, next));
            if place != last {
                at = next;
            }
        }
        at
    }

    /// Writes the chain into the table of the first free descriptor.
    fn write_indirect(&mut self, chain: &[Buffer]) -> u16 {
        let at = self.first_free;
        let tables = self.tables.as_ref().expect("`room` knows that there are tables");
        let table = usize::from(at) * usize::from(self.shape.table) * DESCRIPTOR;
        for (place, buffer) in chain.iter().enumerate() {
            let flags = if place + 1 == chain.len() { 0 } else { NEXT };
            let next = if flags == NEXT { place as u16 + 1 } else { 0 };
            tables.put(table + place * DESCRIPTOR, descriptor(buffer, flags, next));
        }
        let len = (chain.len() * DESCRIPTOR) as u32;
        let entry = Descriptor { addr: tables.guest() + table as u64, len, flags: INDIRECT, next: 0 };
        self.descriptors.put(usize::from(at) * DESCRIPTOR, entry);
        at
    }

    #[inline]
    pub(super) fn publish(&mut self) {
        self.published = self.added;
        self.available.release16(INDEX, self.published);
    }

    #[inline]
    pub(super) fn wants_kick(&mut self) -> bool {
        // The index before the device's wish: it does it the other way round before it sleeps.
        fence(Ordering::SeqCst);
        let (old, new) = (std::mem::replace(&mut self.kicked, self.published), self.published);
        match self.has_event() {
            true => passed(self.used.acquire16(self.device_event()), new, old),
            false => old != new && self.used.acquire16(0) & NO_NOTIFY == 0,
        }
    }

    #[inline]
    pub(super) fn used(&mut self) -> Option<Used> {
        if self.shape.features.has(Features::IN_ORDER) {
            return self.used_in_order();
        }
        let element = self.next_used()?;
        self.taken = self.taken.wrapping_add(1);
        let (token, chain) = self.record.take(element.id);
        self.links[usize::from(chain.tail)] = self.first_free;
        self.first_free = token.0;
        self.free += chain.descriptors;
        Some(Used { token, written: element.len })
    }

    fn used_in_order(&mut self) -> Option<Used> {
        let element = match self.batch.take() {
            Some(element) => element,
            None => self.next_used()?,
        };
        self.taken = self.taken.wrapping_add(1);
        let (token, chain) = self.record.take(u32::from(self.oldest));
        self.oldest = self.links[usize::from(chain.tail)];
        self.free += chain.descriptors;
        let is_last = u32::from(token.0) == element.id;
        if !is_last {
            self.batch = Some(element);
        }
        Some(Used { token, written: if is_last { element.len } else { chain.writable } })
    }

    #[inline]
    fn next_used(&self) -> Option<UsedElement> {
        let more = self.used.acquire16(INDEX) != self.taken;
        more.then(|| self.used.get(ENTRIES + ELEMENT * self.place(self.taken)))
    }

    pub(super) fn enable_calls(&mut self) -> bool {
        match self.has_event() {
            true => self.available.release16(self.driver_event(), self.taken),
            false => self.available.release16(0, 0),
        }
        // The wish before the index: the device does it the other way round.
        fence(Ordering::SeqCst);
        self.batch.is_some() || self.next_used().is_some()
    }

    pub(super) fn disable_calls(&mut self) {
        match self.has_event() {
            // As far away as can be.
            true => self.available.release16(self.driver_event(), self.taken.wrapping_sub(1)),
            false => self.available.release16(0, NO_INTERRUPT),
        }
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.used.acquire16(INDEX))
    }

    pub(super) fn reset(&mut self) {
        let size = self.shape.size;
        (0..available_len(size)).for_each(|at| self.available.put(at, 0u8));
        (0..used_len(size)).for_each(|at| self.used.put(at, 0u8));
        self.record.clear();
        (0..size).for_each(|at| self.links[usize::from(at)] = (at + 1) % size);
        (self.first_free, self.free, self.oldest, self.batch) = (0, size, 0, None);
        (self.added, self.published, self.kicked, self.taken) = (0, 0, 0, 0);
    }

    #[inline]
    fn place(&self, index: u16) -> usize {
        usize::from(index & (self.shape.size - 1))
    }

    #[inline]
    fn has_event(&self) -> bool {
        self.shape.features.has(Features::EVENT_IDX)
    }

    /// Where `used_event` is in the driver's area.
    fn driver_event(&self) -> usize {
        ENTRIES + 2 * usize::from(self.shape.size)
    }

    /// Where `avail_event` is in the device's area.
    fn device_event(&self) -> usize {
        ENTRIES + ELEMENT * usize::from(self.shape.size)
    }
}

#[inline]
fn descriptor(buffer: &Buffer, flags: u16, next: u16) -> Descriptor {
    let access = if buffer.access == Access::Write { WRITE } else { 0 };
    Descriptor { addr: buffer.addr, len: buffer.len, flags: flags | access, next }
}
