//! A ring with its two bells and with a place for the buffers of each chain.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;

use super::memory::{MemoryError, SharedMemory};
use super::{Buffer, DriverRing, Form, Shape, Token, Used};
use crate::port::vhost::ring::Parts;

/// A queue cannot be made.
#[derive(Debug, Error)]
pub enum QueueError {
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// There is no descriptor for a bell.
    #[error("cannot make an eventfd: {0}")]
    Bell(io::Error),
}

/// The places of a queue's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// Bytes of each.
    pub len: usize,
    /// Where they begin, if not anywhere: at the seam of two regions, say.
    pub at: Option<u64>,
}

/// A queue from the driver's side.
#[derive(Debug)]
pub struct Queue {
    /// The ring itself.
    pub ring: DriverRing,
    memory: SharedMemory,
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
    base: u64,
    slot: usize,
    free: Vec<u16>,
    /// The slot of each chain with the device.
    slot_of: Vec<u16>,
}

impl Queue {
    /// A queue with as many slots as the ring has entries.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn new(memory: &SharedMemory, shape: Shape, slots: Slots) -> Result<Queue, QueueError> {
        let ring = DriverRing::new(memory, shape)?;
        let all = usize::from(shape.size) * slots.len;
        let base = match slots.at {
            Some(base) => base,
            None => memory.take(all, 64)?,
        };
        Ok(Queue {
            ring,
            memory: memory.clone(),
            kick: bell()?,
            call: bell()?,
            base,
            slot: slots.len,
            free: (0..shape.size).rev().collect(),
            slot_of: vec![0; usize::from(shape.size)],
        })
    }

    /// The memory that its buffers are in.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// The driver's bell to the device.
    pub fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// The device's bell to the driver.
    pub fn call(&self) -> &Arc<EventFd> {
        &self.call
    }

    /// The same, to wait for.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Where the ring is, as the device is told.
    pub fn parts(&self) -> Parts {
        let places = self.ring.places();
        let user = |guest| self.memory.user_of(guest).expect("rings lie in the guest's memory");
        Parts {
            descriptors: user(places.descriptors),
            available: user(places.driver),
            used: user(places.device),
            log: Some(places.device),
        }
    }

    /// Bytes of a slot.
    pub fn slot_len(&self) -> usize {
        self.slot
    }

    /// All slots, taken or not.
    pub(super) fn slots(&self) -> impl Iterator<Item = u64> {
        (0..self.ring.shape().size).map(|slot| self.guest_of(slot))
    }

    /// Where the next chain's buffers go. `None`: all slots are with the device.
    #[inline]
    pub(super) fn next_slot(&self) -> Option<u64> {
        self.free.last().map(|&slot| self.guest_of(slot))
    }

    #[inline]
    fn guest_of(&self, slot: u16) -> u64 {
        self.base + u64::from(slot) * self.slot as u64
    }

    /// Adds a chain that lies in [`Queue::next_slot`]. `None`: the ring is full.
    #[inline]
    pub(super) fn add(&mut self, chain: &[Buffer], form: Form) -> Option<Token> {
        let token = self.ring.add(chain, form).ok()?;
        self.slot_of[usize::from(token.0)] = self.free.pop().expect("there was a next slot");
        Some(token)
    }

    /// The next chain that came back, and where its slot is. The slot is still taken.
    #[inline]
    pub(super) fn used(&mut self) -> Option<(Used, u64)> {
        let used = self.ring.used()?;
        Some((used, self.guest_of(self.slot_of[usize::from(used.token.0)])))
    }

    /// The slot at this place may be used again.
    #[inline]
    pub(super) fn give_back(&mut self, slot: u64) {
        self.free.push(((slot - self.base) / self.slot as u64) as u16);
    }

    /// Makes all chains available, and kicks if the device wants to know.
    #[inline]
    pub fn publish(&mut self) {
        self.ring.publish();
        if self.ring.wants_kick() {
            self.ring_bell();
        }
    }

    /// Kicks, whether the device wants it or not: it may be another than before.
    pub fn ring_bell(&self) {
        // A bell that rings already is as good.
        let _ = self.kick.write(1);
    }

    /// Forgets all chains.
    pub(super) fn reset(&mut self) {
        self.ring.reset();
        self.free.clear();
        self.free.extend((0..self.ring.shape().size).rev());
    }
}

fn bell() -> Result<Arc<EventFd>, QueueError> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    EventFd::from_flags(flags).map(Arc::new).map_err(|errno| QueueError::Bell(errno.into()))
}
