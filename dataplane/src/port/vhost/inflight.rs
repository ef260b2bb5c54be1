//! Which chains are with us, in memory of the frontend that outlives us (vhost-user, "Inflight I/O tracking"): so a
//! successor after kill -9 knows what to give back.
//!
//! Layouts: `QueueRegionSplit` and `QueueRegionPacked` of the specification. A region has the places of all queues, one
//! behind the other, each rounded up to 64 bytes as DPDK has it.
//!
//! A ring tells its [`Split`] or [`Packed`] of each chain before it uses it (`begin`) and when it is through with it (`done`),
//! and gives a batch back inside of `publish`, which does what has to be done before and after. The stores to the region are
//! in the order of the specification, so that whatever store was the last one before the process died, `recover` finds each
//! chain either given back or in flight. They cost no fence: a process that is killed loses none of the stores before.
//!
//! While a ring runs the region is written and never read: what the frontend puts there reaches us in `recover` only, which
//! checks it. That costs a look at each entry, all else a few stores per descriptor.

mod cells;
mod packed;
mod split;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

use self::cells::Cells;
pub use self::packed::{Packed, PackedPlace, Recovered, Taken};
pub use self::split::Split;
use super::fault::{Mapping, MappingError};
use crate::virtio::{PAIRS_MAX, RING_MAX};

/// The version of the layout; 0 is a region that nobody has used.
const VERSION: u16 = 1;

/// What the place of each queue is rounded up to, in bytes.
const ALIGN: u64 = 64;

/// A region cannot be used.
#[derive(Debug, Error)]
pub enum InflightError {
    /// It cannot be made.
    #[error("cannot make an inflight region: {0}")]
    Create(io::Error),
    /// It cannot be mapped.
    #[error("inflight region: {0}")]
    Map(MappingError),
    /// Not a number of queues that a device has.
    #[error("inflight region of {0} queues, expected 1 to {max}", max = QUEUES_MAX)]
    Queues(u16),
    /// Not a size of a ring.
    #[error("inflight region for rings of {0} entries, expected 1 to {RING_MAX}")]
    RingSize(u16),
    /// Smaller than its queues.
    #[error("inflight region of {have} bytes, its queues need {need}")]
    Short {
        /// Bytes.
        have: u64,
        /// Bytes.
        need: u64,
    },
    /// Its numbers would lie across words.
    #[error("inflight region at offset {0} of its file, expected a multiple of 8")]
    Offset(u64),
    /// A queue that is not in it.
    #[error("queue {queue} with {size} entries is not in the inflight region")]
    Queue {
        /// Which.
        queue: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// Made for the other format of rings.
    #[error("inflight region is for {0:?} rings")]
    Format(Format),
    /// Written by who knows what.
    #[error("version {0} of an inflight region, expected {VERSION}")]
    Version(u16),
    /// For a ring of another size.
    #[error("inflight region has {have} entries for a queue that it says has {expected}")]
    Entries {
        /// Entries, as it says itself.
        have: u16,
        /// As the frontend says.
        expected: u16,
    },
    /// It is not of this ring.
    #[error("the ring is at used index {ring}, its inflight region at {region}: they do not belong together")]
    UsedIndex {
        /// Of the ring.
        ring: u16,
        /// Of the region.
        region: u16,
    },
    /// A list in it leads nowhere.
    #[error("inflight region is broken at entry {0}")]
    Broken(u16),
}

/// The most queues of a region: all pairs and the control queue.
const QUEUES_MAX: u16 = 2 * PAIRS_MAX + 1;

/// A format of rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// virtio 1.2 section 2.7.
    Split,
    /// virtio 1.2 section 2.8.
    Packed,
}

/// What a region is for (`VhostUserInflight`, and the negotiated format).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Of all its rings.
    pub format: Format,
    /// Queues, counting each ring; at least 1.
    pub queues: u16,
    /// Entries of each ring, at least 1.
    pub size: u16,
}

impl Layout {
    /// Bytes of a region: what `VHOST_USER_GET_INFLIGHT_FD` answers as `mmap_size`.
    ///
    /// # Errors
    /// [`InflightError::Queues`], [`InflightError::RingSize`].
    pub fn bytes(self) -> Result<u64, InflightError> {
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(InflightError::Queues(self.queues));
        }
        if !(1..=RING_MAX).contains(&self.size) {
            return Err(InflightError::RingSize(self.size));
        }
        Ok(u64::from(self.queues) * self.stride())
    }

    /// Bytes of a queue's place.
    fn stride(self) -> u64 {
        let (header, entry) = match self.format {
            Format::Split => (size_of::<split::QueueRegion>(), size_of::<split::DescState>()),
            Format::Packed => (size_of::<packed::QueueRegion>(), size_of::<packed::DescState>()),
        };
        (header as u64 + u64::from(self.size) * entry as u64).next_multiple_of(ALIGN)
    }

    /// Makes a region that nobody has used: its file, which does not change its size any more, and its bytes, from the
    /// start of the file.
    ///
    /// # Errors
    /// As [`Layout::bytes`]; [`InflightError::Create`].
    pub fn create(self) -> Result<(File, u64), InflightError> {
        let bytes = self.bytes()?;
        let make = || {
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            let file = File::from(memfd_create("vhost-inflight", flags)?);
            file.set_len(bytes)?;
            let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
            Ok(file)
        };
        Ok((make().map_err(InflightError::Create)?, bytes))
    }
}

/// A mapped region of all queues of a device.
#[derive(Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
    layout: Layout,
}

impl Region {
    /// Maps `len` bytes at `offset` of the file (`VHOST_USER_SET_INFLIGHT_FD`).
    ///
    /// # Errors
    /// Any of [`InflightError`] but those of a queue.
    pub fn map(file: File, offset: u64, len: u64, layout: Layout) -> Result<Region, InflightError> {
        let need = layout.bytes()?;
        if len < need {
            return Err(InflightError::Short { have: len, need });
        }
        if !offset.is_multiple_of(8) {
            return Err(InflightError::Offset(offset));
        }
        let mapping = Mapping::new(file, offset, need).map_err(InflightError::Map)?;
        Ok(Region { mapping: Arc::new(mapping), layout })
    }

    /// The place of a queue (receive 0, transmit 0, receive 1, ...) whose ring has `size` entries.
    ///
    /// # Errors
    /// [`InflightError::Queue`] if there is none, or it has fewer.
    pub fn queue(&self, queue: u16, size: u16) -> Result<Queue, InflightError> {
        if queue >= self.layout.queues || size > self.layout.size {
            return Err(InflightError::Queue { queue, size });
        }
        let stride = self.layout.stride() as usize;
        let cells = Cells::new(Arc::clone(&self.mapping), usize::from(queue) * stride, stride);
        Ok(Queue { cells, format: self.layout.format, size: self.layout.size, ring: size })
    }
}

/// The place of one queue, before its ring starts.
#[derive(Debug)]
pub struct Queue {
    cells: Cells,
    format: Format,
    /// Entries of the place.
    size: u16,
    /// Entries of the ring, which may be fewer.
    ring: u16,
}

impl Queue {
    /// Its cells, and whether it was used before.
    fn open(self, format: Format) -> Result<(Cells, Past), InflightError> {
        if self.format != format {
            return Err(InflightError::Format(self.format));
        }
        // Both formats begin alike.
        let version = self.cells.get(std::mem::offset_of!(split::QueueRegion, version));
        let have = self.cells.get(std::mem::offset_of!(split::QueueRegion, desc_num));
        match version {
            0 => Ok((self.cells, Past::Unused)),
            VERSION if have == self.size => Ok((self.cells, Past::Used)),
            VERSION => Err(InflightError::Entries { have, expected: self.size }),
            _ => Err(InflightError::Version(version)),
        }
    }
}

/// Was there a process before us?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    Used,
    Unused,
}
