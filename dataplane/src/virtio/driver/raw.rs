//! A ring without its rules, for what a hostile guest does: any descriptor, index, flag, at any time.
//!
//! Which of these a ring has is a matter of its format; an area that ends before is a panic.

use super::memory::Block;
use crate::virtio::layout::{Descriptor, EventSuppression, PackedDescriptor, UsedElement};

/// The parts of a ring.
#[derive(Debug, Clone)]
pub struct Raw {
    /// The descriptors; of a packed ring, the ring.
    pub descriptors: Block,
    /// What the driver writes: the available ring, or its event suppression.
    pub driver: Block,
    /// What the device writes: the used ring, or its event suppression.
    pub device: Block,
}

impl Raw {
    /// Split rings: a descriptor.
    pub fn set_descriptor(&self, place: u16, descriptor: Descriptor) {
        self.descriptors.put(16 * usize::from(place), descriptor);
    }

    /// Split rings: what it is.
    pub fn descriptor(&self, place: u16) -> Descriptor {
        self.descriptors.get(16 * usize::from(place))
    }

    /// Split rings: the flags of the available ring.
    pub fn set_available_flags(&self, flags: u16) {
        self.driver.release16(0, flags);
    }

    /// Split rings: the available index.
    pub fn set_available_index(&self, index: u16) {
        self.driver.release16(2, index);
    }

    /// Split rings: the available index.
    pub fn available_index(&self) -> u16 {
        self.driver.acquire16(2)
    }

    /// Split rings: an entry of the available ring (one behind the last is `used_event`).
    pub fn set_available(&self, place: u16, head: u16) {
        self.driver.put(4 + 2 * usize::from(place), head);
    }

    /// Split rings: the used index.
    pub fn used_index(&self) -> u16 {
        self.device.acquire16(2)
    }

    /// Split rings: the used index, which only the device should write.
    pub fn set_used_index(&self, index: u16) {
        self.device.release16(2, index);
    }

    /// Split rings: an entry of the used ring.
    pub fn used(&self, place: u16) -> UsedElement {
        self.device.get(4 + 8 * usize::from(place))
    }

    /// Packed rings: a descriptor, its flags last.
    pub fn set_packed(&self, place: u16, descriptor: PackedDescriptor) {
        let at = 16 * usize::from(place);
        self.descriptors.put(at, descriptor.addr);
        self.descriptors.put(at + 8, descriptor.len);
        self.descriptors.put(at + 12, descriptor.id);
        self.descriptors.release16(at + 14, descriptor.flags);
    }

    /// Packed rings: what it is.
    pub fn packed(&self, place: u16) -> PackedDescriptor {
        let at = 16 * usize::from(place);
        let flags = self.descriptors.acquire16(at + 14);
        PackedDescriptor { flags, ..self.descriptors.get(at) }
    }

    /// Packed rings: when the driver wants to be called.
    pub fn set_suppression(&self, wish: EventSuppression) {
        self.driver.release32(0, u32::from(wish.place) | u32::from(wish.flags) << 16);
    }
}
