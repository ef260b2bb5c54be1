//! Devices that answer each chain with its own bytes, filled up with zeros.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::super::memory::Block;
use super::super::*;
use crate::virtio::layout::{
    AVAIL, EVENT_DESC, EVENT_DISABLE, INDIRECT, NEXT, PackedDescriptor, USED, UsedElement, WRITE,
};

/// A device, of the format of its ring.
pub(super) struct Mirror {
    memory: SharedMemory,
    shape: Shape,
    side: Side,
}

enum Side {
    Split(Box<Queue>, GuestMemoryMmap, Block),
    Packed(Packed),
}

/// What a serve did.
pub(super) struct Served {
    pub(super) chains: usize,
    pub(super) call: bool,
}

/// Address, bytes, and whether the device writes them.
type Piece = (u64, u32, bool);

/// A chain taken: its name, descriptors of the ring, and bytes written.
struct Taken {
    id: u16,
    descriptors: u16,
    written: u32,
}

impl Mirror {
    pub(super) fn new(memory: &SharedMemory, ring: &DriverRing) -> Mirror {
        let (shape, places) = (ring.shape(), ring.places());
        let side = match ring {
            DriverRing::Split(_) => split(memory, shape, places),
            DriverRing::Packed(_) => Side::Packed(Packed::new(memory, shape, places)),
        };
        Mirror { memory: memory.clone(), shape, side }
    }

    /// Takes up to so many chains and gives them back: the newest first, or in order by the last alone.
    pub(super) fn serve(&mut self, most: usize) -> Served {
        self.wake();
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(next) = self.take()
        {
            taken.push(next);
        }
        let chains = taken.len();
        if !self.shape.features.has(Features::IN_ORDER) {
            taken.reverse();
            taken.into_iter().for_each(|one| self.give(&[one]));
        } else if chains > 0 {
            self.give(&taken);
        }
        Served { chains, call: self.wants_call() }
    }

    fn wake(&mut self) {
        match &mut self.side {
            Side::Split(queue, mapped, _) => queue.disable_notification(mapped).unwrap(),
            Side::Packed(packed) => packed.device.release16(2, EVENT_DISABLE),
        }
    }

    /// Asks for a kick. True if there is work already.
    pub(super) fn sleep(&mut self) -> bool {
        match &mut self.side {
            Side::Split(queue, mapped, _) => queue.enable_notification(mapped).unwrap(),
            Side::Packed(packed) => {
                packed.device.release16(0, packed.next | u16::from(packed.next_wrap) << 15);
                packed
                    .device
                    .release16(2, if self.shape.features.has(Features::EVENT_IDX) { EVENT_DESC } else { 0 });
                packed.peek().is_some()
            }
        }
    }

    pub(super) fn has_work(&self) -> bool {
        match &self.side {
            Side::Split(queue, mapped, _) => {
                queue.avail_idx(mapped, Ordering::Acquire).unwrap().0 != queue.next_avail()
            }
            Side::Packed(packed) => packed.peek().is_some(),
        }
    }

    fn take(&mut self) -> Option<Taken> {
        let (id, descriptors, buffers) = match &mut self.side {
            Side::Split(queue, mapped, _) => {
                let chain = queue.pop_descriptor_chain(&*mapped)?;
                let buffer =
                    |at: virtio_queue::desc::split::Descriptor| (at.addr().0, at.len(), at.is_write_only());
                (chain.head_index(), 1, chain.map(buffer).collect::<Vec<Piece>>())
            }
            Side::Packed(packed) => packed.take(&self.memory)?,
        };
        Some(Taken { id, descriptors, written: mirror(&self.memory, &buffers) })
    }

    /// Gives these back, by an entry for the last of them.
    fn give(&mut self, chains: &[Taken]) {
        let last = &chains[chains.len() - 1];
        match &mut self.side {
            Side::Split(queue, mapped, _) if chains.len() == 1 => {
                queue.add_used(mapped, last.id, last.written).unwrap();
            }
            Side::Split(queue, _, used) => {
                let next = queue.next_used();
                let element = UsedElement { id: u32::from(last.id), len: last.written };
                used.put(4 + 8 * usize::from(next % self.shape.size), element);
                queue.set_next_used(next.wrapping_add(chains.len() as u16));
                used.release16(2, queue.next_used());
            }
            Side::Packed(packed) => {
                packed.give(last, chains.iter().map(|chain| chain.descriptors).sum());
            }
        }
    }

    fn wants_call(&mut self) -> bool {
        match &mut self.side {
            // It does not know of the entries that were skipped.
            Side::Split(..) if self.shape.features.has(Features::IN_ORDER) => true,
            Side::Split(queue, mapped, _) => queue.needs_notification(mapped).unwrap(),
            Side::Packed(packed) => packed.wants_call(),
        }
    }
}

fn split(memory: &SharedMemory, shape: Shape, places: Places) -> Side {
    let range = |region: &std::sync::Arc<super::super::memory::Region>| {
        let (spec, file) = (region.spec(), region.file().try_clone().unwrap());
        (GuestAddress(spec.guest), spec.len as usize, Some(FileOffset::new(file, spec.offset)))
    };
    let ranges: Vec<_> = memory.regions().iter().map(range).collect();
    let mapped = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
    let mut queue = Queue::new(shape.size).unwrap();
    let half = |at: u64| (Some(at as u32), Some((at >> 32) as u32));
    let [descriptors, driver, device] = [places.descriptors, places.driver, places.device].map(half);
    queue.set_desc_table_address(descriptors.0, descriptors.1);
    queue.set_avail_ring_address(driver.0, driver.1);
    queue.set_used_ring_address(device.0, device.1);
    queue.set_event_idx(shape.features.has(Features::EVENT_IDX));
    queue.set_ready(true);
    assert!(queue.is_valid(&mapped));
    let used = memory.block_at(places.device, crate::virtio::layout::used_len(shape.size)).unwrap();
    Side::Split(Box::new(queue), mapped, used)
}

/// Copies what can be read into what can be written; how much that is.
fn mirror(memory: &SharedMemory, buffers: &[Piece]) -> u32 {
    let mut bytes = Vec::new();
    for &(addr, len, _) in buffers.iter().filter(|buffer| !buffer.2) {
        let from = bytes.len();
        bytes.resize(from + len as usize, 0);
        memory.read(addr, &mut bytes[from..]);
    }
    let room: u32 = buffers.iter().filter(|buffer| buffer.2).map(|buffer| buffer.1).sum();
    bytes.resize(room as usize, 0);
    let mut rest = &bytes[..];
    for &(addr, len, _) in buffers.iter().filter(|buffer| buffer.2) {
        let (now, later) = rest.split_at(len as usize);
        memory.write(addr, now);
        rest = later;
    }
    room
}

/// The shortest device for a packed ring.
struct Packed {
    size: u16,
    event: bool,
    ring: Block,
    driver: Block,
    device: Block,
    next: u16,
    next_wrap: bool,
    used: u16,
    used_wrap: bool,
    given: u16,
}

impl Packed {
    fn new(memory: &SharedMemory, shape: Shape, places: Places) -> Packed {
        let block = |guest, len| memory.block_at(guest, len).unwrap();
        Packed {
            size: shape.size,
            event: shape.features.has(Features::EVENT_IDX),
            ring: block(places.descriptors, 16 * usize::from(shape.size)),
            driver: block(places.driver, 4),
            device: block(places.device, 4),
            next: 0,
            next_wrap: true,
            used: 0,
            used_wrap: true,
            given: 0,
        }
    }

    fn peek(&self) -> Option<PackedDescriptor> {
        let at = 16 * usize::from(self.next);
        let flags = self.ring.acquire16(at + 14);
        let available = (flags & AVAIL != 0) == self.next_wrap && (flags & USED != 0) != self.next_wrap;
        available.then(|| self.ring.get(at))
    }

    fn take(&mut self, memory: &SharedMemory) -> Option<(u16, u16, Vec<Piece>)> {
        let (mut buffers, mut count) = (Vec::new(), 0);
        loop {
            let one = match self.peek() {
                Some(one) => one,
                None => {
                    assert_eq!(count, 0, "half a chain was made available");
                    return None;
                }
            };
            (self.next, count) = (self.next + 1, count + 1);
            if self.next == self.size {
                (self.next, self.next_wrap) = (0, !self.next_wrap);
            }
            let mut push = |one: PackedDescriptor| buffers.push((one.addr, one.len, one.flags & WRITE != 0));
            match one.flags & INDIRECT {
                0 => push(one),
                _ => {
                    let table = memory.block_at(one.addr, one.len as usize).unwrap();
                    (0..one.len as usize / 16).for_each(|entry| push(table.get(16 * entry)));
                }
            }
            if one.flags & NEXT == 0 {
                return Some((one.id, count, buffers));
            }
        }
    }

    fn give(&mut self, last: &Taken, descriptors: u16) {
        let at = 16 * usize::from(self.used);
        self.ring.put(at + 8, last.written);
        self.ring.put(at + 12, last.id);
        self.ring.release16(at + 14, WRITE | if self.used_wrap { AVAIL | USED } else { 0 });
        self.used += descriptors;
        self.given += descriptors;
        if self.used >= self.size {
            (self.used, self.used_wrap) = (self.used - self.size, !self.used_wrap);
        }
    }

    fn wants_call(&mut self) -> bool {
        let given = std::mem::take(&mut self.given);
        let (event, flags) = (self.driver.acquire16(0), self.driver.acquire16(2));
        if !self.event || flags != EVENT_DESC {
            return flags != EVENT_DISABLE;
        }
        // Entries from the waited-for to the next, once around at most.
        let (place, wrap) = (event & 0x7fff, event >> 15 == 1);
        let distance = self.used + if wrap == self.used_wrap { 0 } else { self.size };
        distance.checked_sub(place).is_some_and(|distance| 0 < distance && distance <= given)
    }
}
