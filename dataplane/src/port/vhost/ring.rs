//! The device's side of a ring: chains in, frames out, and the other way round.
//!
//! One file per format (`split`, `packed`); `transfer` does the same with a batch for both: look how many chains there are, read their descriptors, copy, give the chains back, and tell the guest if
//! it wants to be told.

use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use thiserror::Error;

use super::inflight;
use super::inflight::InflightError;
use super::log::DirtyLog;
use super::memory::GuestMemory;
use super::packed::{Packed, Place};
use super::places::{Identity, Keeper};
use super::split::Split;
use super::transfer::{Pool, Transfer};
use crate::batch::Batch;
use crate::frame::FrameCache;
use crate::port::{Counters, Sent};
use crate::virtio::features::Features;

/// The guest broke the rules of its ring: it is used no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// More chains than the ring has entries.
    #[error("available index jumped from {from} to {to} in a ring of {size}")]
    AvailableIndex {
        /// Where we are.
        from: u16,
        /// Where the guest says it is.
        to: u16,
        /// Entries.
        size: u16,
    },
    /// A descriptor that is none.
    #[error("descriptor {index} of {size}")]
    DescriptorIndex {
        /// Its index.
        index: u16,
        /// How many there are.
        size: u16,
    },
    /// A chain that is longer than its ring (it loops), or than any that other devices take.
    #[error("chain at descriptor {0} is longer than its ring, or has more than 1024 buffers")]
    ChainLength(u16),
    /// An indirect table of a size that is none, in an indirect table, or not at the end of its chain.
    #[error("indirect descriptor of {len} bytes, or inside another, or amid a chain")]
    Indirect {
        /// Bytes of the table.
        len: u32,
    },
    /// An address that is not the guest's.
    #[error("{len} bytes at {guest:#x} are outside the guest's memory")]
    Address {
        /// The guest physical address.
        guest: u64,
        /// Bytes.
        len: u32,
    },
    /// A buffer to write where one to read should be, or the other way round.
    #[error("descriptor {0} has the wrong direction")]
    Direction(u16),
    /// Memory was taken away that had been shared.
    #[error("the guest's memory shrank under us")]
    Torn,
}

/// A ring cannot be started as the frontend asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SetupError {
    /// Not a size of a ring.
    #[error("ring of {0} entries, expected 1 to 32768, and of a split ring a power of two")]
    Size(u16),
    /// A part of it is not in the guest's memory, or not aligned.
    #[error("ring at {0:#x} is outside the guest's memory or not aligned")]
    Address(u64),
    /// Not a place of a packed ring to begin at.
    #[error("ring cannot begin at {0}, behind its end")]
    Base(u16),
}

/// Where the parts of a ring are, as addresses of the frontend (`VHOST_USER_SET_VRING_ADDR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// The descriptors; of a packed ring, the ring.
    pub descriptors: u64,
    /// The available ring; of a packed ring, the driver's event suppression.
    pub available: u64,
    /// The used ring; of a packed ring, the device's event suppression.
    pub used: u64,
    /// The guest physical address of the used part to log writes to it under, if they are to be logged.
    pub log: Option<u64>,
}

/// Who says where a ring begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Witness {
    /// The frontend, which may not know.
    #[default]
    Frontend,
    /// The ring itself, which was ours until now.
    Ring,
}

/// All it takes to start a ring.
pub struct Setup {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Where it is.
    pub parts: Parts,
    /// Entries.
    pub size: u16,
    /// Where to begin (`VHOST_USER_SET_VRING_BASE`): of a packed ring the next available place in bits 0-14 with its wrap
    /// counter in 15, the next used in 16-30 with its wrap counter in 31; if the ring proves it wrong, as it does QEMU's after
    /// a kill, and has no inflight region, it is ignored. Of a split ring the next available entry, which its used index says as
    /// well, and that is what counts.
    pub base: u32,
    /// Who says so.
    pub witness: Witness,
    /// What was negotiated.
    pub features: Features,
    /// To call the guest by; `None`: it polls.
    pub call: Option<Arc<EventFd>>,
    /// Where writes to its memory are logged, while it migrates.
    pub log: Option<Arc<DirtyLog>>,
    /// Where chains in flight are written down, if the frontend wants that. If somebody had the ring before, the ring begins
    /// where that one was killed, whatever `base` says, with the chains that it left; a region that cannot be used is ignored.
    pub inflight: Option<inflight::Queue>,
    /// Where the place in a packed ring is written down, if there is no inflight region. If somebody had the ring before and was
    /// killed, it begins where that one was, whatever `base` says, unless the ring disagrees.
    pub keeper: Option<Keeper>,
}

/// A ring in use, of either format.
pub struct Ring {
    kind: Kind,
    transfer: Transfer,
}

enum Kind {
    Split(Split),
    Packed(Packed),
}

impl Ring {
    /// Finds its parts in the guest's memory. The guest is asked not to kick.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn start(mut setup: Setup) -> Result<Ring, SetupError> {
        let (inflight, keeper) = (setup.inflight.take(), setup.keeper.take());
        let Setup { ref memory, parts, size, base, witness, features, .. } = setup;
        let kind = match features.has(Features::RING_PACKED) {
            false => {
                let mut split = Split::start(memory, parts, size, features)?;
                inflight.map_or(Ok(()), |queue| split.recover(queue)).unwrap_or_else(untracked);
                Kind::Split(split)
            }
            true => {
                let mut packed = Packed::start(memory, parts, (size, Place::of(base as u16)), features)?;
                match inflight {
                    Some(queue) => packed.recover(queue).unwrap_or_else(untracked),
                    None => {
                        let ring = memory.guest_of(parts.descriptors).map(|guest| Identity { guest, size });
                        packed.go_on(keeper.zip(ring), witness, setup.log.as_deref());
                    }
                }
                Kind::Packed(packed)
            }
        };
        Ok(Ring { kind, transfer: Transfer::new(setup) })
    }

    /// The guest's transmit ring: appends the frames of its chains to `batch`, at most until it is full. Chains whose frame is
    /// broken are given back, and counted in `rx_errors`; without a free frame the chains stay.
    ///
    /// # Errors
    /// [`Fault`]; the frames before it are in the batch.
    pub fn receive(
        &mut self,
        frames: &mut FrameCache,
        batch: &mut Batch,
        counters: &mut Counters,
    ) -> Result<(), Fault> {
        let pool = Pool { frames, counters };
        match &mut self.kind {
            Kind::Split(split) => self.transfer.receive(split, pool, batch),
            Kind::Packed(packed) => self.transfer.receive(packed, pool, batch),
        }
    }

    /// The guest's receive ring: puts frames from the front of `batch` into its chains. What has no room stays in the batch.
    /// A frame that no chain of this guest could hold is freed, and not counted as sent.
    ///
    /// # Errors
    /// [`Fault`]; the frames not yet sent stay in the batch.
    pub fn send(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, Fault> {
        match &mut self.kind {
            Kind::Split(split) => self.transfer.send(split, frames, batch),
            Kind::Packed(packed) => self.transfer.send(packed, frames, batch),
        }
    }

    /// Asks the guest to kick at its next chain. True if there is one already.
    pub fn arm(&mut self) -> bool {
        let log = self.transfer.log();
        match &mut self.kind {
            Kind::Split(split) => split.arm(log),
            Kind::Packed(packed) => packed.arm(log),
        }
    }

    /// Asks the guest not to kick.
    pub fn disarm(&mut self) {
        let log = self.transfer.log();
        match &mut self.kind {
            Kind::Split(split) => split.disarm(log),
            Kind::Packed(packed) => packed.disarm(log),
        }
    }

    /// Where a successor would begin: what `VHOST_USER_GET_VRING_BASE` answers, as [`Setup::base`].
    pub fn base(&self) -> u32 {
        match &self.kind {
            Kind::Split(split) => split.base().into(),
            Kind::Packed(packed) => packed.base(),
        }
    }

    /// How often the guest was called, since the start.
    pub fn calls(&self) -> u64 {
        self.transfer.calls()
    }
}

fn untracked(why: InflightError) {
    tracing::warn!("vhost: ring runs without inflight region: {why}");
}

#[cfg(test)]
mod tests;
