//! The driver's side of virtio-net: rings in memory of our own, offered to a vhost-user backend as QEMU or DPDK's
//! virtio-user do. The other side of [`crate::port::vhost`] as a first-class tool of tests and benches.
//!
//! From the bottom up: memory to share ([`memory`]), a ring in it of either format ([`split`], [`packed`]; virtio 1.2
//! sections 2.7 and 2.8), a ring with its buffers ([`queue`]), a network card ([`pair`]; section 5.1), the vhost-user session
//! ([`frontend`]) with what is left of it when something goes wrong ([`wire`]) or migrates ([`migration`]), and a port for
//! pollers ([`user`]). For hostile guests there is [`raw`].
//!
//! A device that breaks the rules is a panic, with what it did: whoever uses this tool wants to know.

pub mod frontend;
pub mod header;
pub mod memory;
pub mod migration;
pub mod packed;
pub mod pair;
pub mod queue;
pub mod raw;
mod record;
pub mod split;
pub mod user;
pub mod wire;

#[cfg(test)]
mod tests;

use thiserror::Error;

use self::memory::{MemoryError, SharedMemory};
use self::packed::PackedRing;
use self::raw::Raw;
use self::split::SplitRing;
use crate::virtio::features::Features;

/// Who uses a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads it.
    Read,
    /// The device writes it.
    Write,
}

/// A piece of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Whose turn it is.
    pub access: Access,
}

impl Buffer {
    /// One that the device reads.
    pub fn read(addr: u64, len: u32) -> Buffer {
        Buffer { addr, len, access: Access::Read }
    }

    /// One that the device writes.
    pub fn write(addr: u64, len: u32) -> Buffer {
        Buffer { addr, len, access: Access::Write }
    }
}

/// How a chain lies in its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A descriptor of the ring for each buffer.
    Direct,
    /// One descriptor, which refers to a table (needs `INDIRECT_DESC`).
    Indirect,
}

/// The driver's name of a chain that is with the device: less than the ring's size, and no other's until it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u16);

/// A chain that the device gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Which.
    pub token: Token,
    /// Bytes that the device says it wrote.
    pub written: u32,
}

/// The chain has no room in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("chain of {buffers} buffers, ring has {free} descriptors free and tables of {table}")]
pub struct Full {
    /// Buffers of the chain.
    pub buffers: usize,
    /// Descriptors that are free.
    pub free: u16,
    /// Entries of an indirect table.
    pub table: u16,
}

/// The ring to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Entries: a power of two, at most [`crate::virtio::RING_MAX`].
    pub size: u16,
    /// Entries of each token's indirect table; with 0 there are none.
    pub table: u16,
    /// What was negotiated: `RING_PACKED`, `EVENT_IDX` and `IN_ORDER` count.
    pub features: Features,
}

/// Where the parts of a ring are, as guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// The descriptors; of a packed ring, the ring.
    pub descriptors: u64,
    /// The driver's area: the available ring, or the driver's event suppression.
    pub driver: u64,
    /// The device's area: the used ring, or the device's event suppression.
    pub device: u64,
}

/// A ring of either format.
///
/// A chain is visible to the device once it is published, so that a batch costs one store. All calls cost the length of
/// their chain, and allocate nothing.
#[derive(Debug)]
pub enum DriverRing {
    /// Of virtio 1.2 section 2.7.
    Split(SplitRing),
    /// Of virtio 1.2 section 2.8.
    Packed(PackedRing),
}

macro_rules! either {
    ($self:ident, $ring:ident => $call:expr) => {
        match $self {
            DriverRing::Split($ring) => $call,
            DriverRing::Packed($ring) => $call,
        }
    };
}

impl DriverRing {
    /// An empty ring in `memory`.
    ///
    /// # Errors
    /// [`MemoryError::Full`].
    ///
    /// # Panics
    /// If the size is none.
    pub fn new(memory: &SharedMemory, shape: Shape) -> Result<DriverRing, MemoryError> {
        assert!(shape.size.is_power_of_two() && shape.size <= crate::virtio::RING_MAX, "{shape:?}");
        Ok(match shape.features.has(Features::RING_PACKED) {
            true => DriverRing::Packed(PackedRing::new(memory, shape)?),
            false => DriverRing::Split(SplitRing::new(memory, shape)?),
        })
    }

    /// Where it is.
    pub fn places(&self) -> Places {
        either!(self, ring => ring.places())
    }

    /// What it was made as.
    pub fn shape(&self) -> Shape {
        either!(self, ring => ring.shape())
    }

    /// To break its rules.
    pub fn raw(&self) -> Raw {
        either!(self, ring => ring.raw())
    }

    /// Descriptors that are free.
    #[inline]
    pub fn free(&self) -> u16 {
        either!(self, ring => ring.free())
    }

    /// Is no chain with the device?
    pub fn is_idle(&self) -> bool {
        self.free() == self.shape().size
    }

    /// Adds a chain, which the device sees once it is published.
    ///
    /// # Errors
    /// [`Full`].
    ///
    /// # Panics
    /// If the chain is empty.
    #[inline]
    pub fn add(&mut self, chain: &[Buffer], form: Form) -> Result<Token, Full> {
        either!(self, ring => ring.add(chain, form))
    }

    /// Makes the chains added so far available to the device.
    #[inline]
    pub fn publish(&mut self) {
        either!(self, ring => ring.publish())
    }

    /// Is the device to be kicked for the chains published since this was last asked?
    #[inline]
    pub fn wants_kick(&mut self) -> bool {
        either!(self, ring => ring.wants_kick())
    }

    /// The next chain that the device gave back.
    ///
    /// # Panics
    /// If the device gives back what it does not have.
    #[inline]
    pub fn used(&mut self) -> Option<Used> {
        either!(self, ring => ring.used())
    }

    /// Asks the device to call for the next chain it gives back. True if there is one already.
    pub fn enable_calls(&mut self) -> bool {
        either!(self, ring => ring.enable_calls())
    }

    /// Asks the device not to call.
    pub fn disable_calls(&mut self) {
        either!(self, ring => ring.disable_calls())
    }

    /// Where a device begins that takes over after another vanished: the first chain not given back, as in
    /// `VHOST_USER_SET_VRING_BASE`.
    ///
    /// For a split ring it is the used index (what QEMU sends after its backend was killed). A packed ring can only be taken over
    /// from a device that used its chains in order: others wrote over descriptors of chains that they still had.
    pub fn base(&self) -> u32 {
        either!(self, ring => ring.base())
    }

    /// Forgets all chains, as a driver that resets its device.
    pub fn reset(&mut self) {
        either!(self, ring => ring.reset())
    }
}

/// Did an index that went from `old` to `new` pass `event` (virtio 1.2 section 2.7.10.1, `vring_need_event`)?
#[inline]
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
