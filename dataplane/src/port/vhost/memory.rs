//! The guest's memory as the frontend shares it: regions of files, mapped, and addresses in them.
//!
//! Whoever shares a file can shorten it, and the next touch of a page behind its end is a SIGBUS. [`fault`] survives it: it
//! puts empty pages of our own in place of the region, marks it torn and goes on. The ring finds the mark after its batch
//! ([`GuestMemory::is_torn`]).
//!
//! An address is looked up once or twice per descriptor: one subtraction and one comparison for the largest region, where nearly
//! all buffers are, and as much again for each further one, at most [`SLOTS_MAX`].
//!
//! [`fault`]: super::fault

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use super::fault::{Mapping, MappingError, any_torn};

/// The most regions of a guest: what `VHOST_USER_GET_MAX_MEM_SLOTS` answers. QEMU has up to 509 and takes ours for its
/// limit; but a guest should not have us look through so many for each descriptor.
pub const SLOTS_MAX: usize = 32;

/// Memory cannot be mapped or used.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A region cannot be mapped.
    #[error("memory region at {guest:#x}: {source}")]
    Region {
        /// Its guest physical address.
        guest: u64,
        /// Why.
        source: MappingError,
    },
    /// A dirty log cannot be mapped.
    #[error("dirty log: {0}")]
    Log(MappingError),
    /// A region does not end.
    #[error("memory region of {len:#x} bytes at {address:#x} wraps around")]
    Wraps {
        /// To the guest or to the frontend.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// Two regions claim an address.
    #[error("memory regions overlap at {0:#x}")]
    Overlap(u64),
    /// There is no such region to remove.
    #[error("no memory region of {len:#x} bytes at {guest:#x}")]
    Unknown {
        /// Its guest physical address.
        guest: u64,
        /// Bytes.
        len: u64,
    },
    /// More than we take.
    #[error("{0} memory regions, more than {SLOTS_MAX}: give the VM its memory in fewer parts")]
    Slots(usize),
}

/// Where a region is to the guest, to the frontend, and in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Its guest physical address.
    pub guest: u64,
    /// Bytes; at least 1.
    pub len: u64,
    /// Its address in the frontend's process.
    pub user: u64,
    /// Where in the file it begins.
    pub offset: u64,
}

impl RegionSpec {
    /// Does it end before the addresses do?
    fn check(self) -> Result<RegionSpec, MemoryError> {
        let wraps = |address: &u64| address.checked_add(self.len).is_none();
        match [self.guest, self.user].into_iter().find(wraps) {
            Some(address) => Err(MemoryError::Wraps { address, len: self.len }),
            None => Ok(self),
        }
    }
}

/// One region, mapped as long as this lives.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    mapping: Mapping,
}

impl Region {
    /// Maps it, readable and writable. The file may be a memfd, in hugetlbfs, in tmpfs or on a disk; its offset need not be a
    /// multiple of a page.
    ///
    /// # Errors
    /// [`MemoryError::Region`], [`MemoryError::Wraps`].
    pub fn map(file: File, spec: RegionSpec) -> Result<Arc<Region>, MemoryError> {
        let RegionSpec { guest, len, offset, .. } = spec.check()?;
        let mapping =
            Mapping::new(file, offset, len).map_err(|source| MemoryError::Region { guest, source })?;
        Ok(Arc::new(Region { spec, mapping }))
    }

    /// Where it is.
    pub fn spec(&self) -> RegionSpec {
        self.spec
    }

    /// Did the frontend take a part of it away?
    #[inline]
    pub fn is_torn(&self) -> bool {
        self.mapping.is_torn()
    }
}

/// Contiguous bytes of the guest's memory in ours. Valid as long as the [`GuestMemory`] it came from; the guest reads and
/// writes them at any time, so there never is a reference to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where.
    pub base: NonNull<u8>,
    /// How many; at least 1.
    pub len: usize,
}

/// A region as the search for an address sees it.
#[derive(Debug, Clone, Copy)]
struct Place {
    guest: u64,
    len: u64,
    base: NonNull<u8>,
}

// SAFETY: the address of a mapping, which every thread may use: all access is through raw pointers.
#[allow(unsafe_code)]
unsafe impl Send for Place {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Place {}

impl Place {
    const NONE: Place = Place { guest: 0, len: 0, base: NonNull::dangling() };

    fn of(region: &Region) -> Place {
        let RegionSpec { guest, len, .. } = region.spec;
        Place { guest, len, base: region.mapping.base() }
    }

    /// As [`GuestMemory::at`]. An address in front of the region wraps to an offset behind its end.
    #[inline]
    #[allow(unsafe_code)]
    fn at(&self, guest: u64, len: usize) -> Option<Span> {
        let offset = guest.wrapping_sub(self.guest);
        if offset >= self.len {
            return None;
        }
        let len = len.min((self.len - offset) as usize);
        // SAFETY: the offset is below the length of the mapping that begins at the base.
        Some(Span { base: unsafe { self.base.add(offset as usize) }, len })
    }
}

/// All regions of a guest. Immutable: a change of regions is another one.
#[derive(Debug)]
pub struct GuestMemory {
    /// The largest region; where there is none one without bytes.
    largest: Place,
    /// The others, larger ones first.
    others: Box<[Place]>,
    /// By guest address.
    regions: Vec<Arc<Region>>,
}

impl Default for GuestMemory {
    fn default() -> GuestMemory {
        GuestMemory { largest: Place::NONE, others: Box::default(), regions: Vec::new() }
    }
}

impl GuestMemory {
    /// Of regions in any order.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`], [`MemoryError::Slots`].
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<GuestMemory, MemoryError> {
        if regions.len() > SLOTS_MAX {
            return Err(MemoryError::Slots(regions.len()));
        }
        check_apart(&regions, |spec| spec.guest)?;
        check_apart(&regions, |spec| spec.user)?;
        regions.sort_unstable_by_key(|region| region.spec.guest);
        let mut places: Vec<Place> = regions.iter().map(|region| Place::of(region)).collect();
        places.sort_by_key(|place| std::cmp::Reverse(place.len));
        let mut places = places.into_iter();
        let largest = places.next().unwrap_or(Place::NONE);
        Ok(GuestMemory { largest, others: places.collect(), regions })
    }

    /// This memory and one region more.
    ///
    /// # Errors
    /// As [`GuestMemory::new`].
    pub fn with(&self, region: Arc<Region>) -> Result<GuestMemory, MemoryError> {
        GuestMemory::new(self.regions.iter().cloned().chain([region]).collect())
    }

    /// This memory without the region of `len` bytes at a guest physical address.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`] if there is none.
    pub fn without(&self, guest: u64, len: u64) -> Result<GuestMemory, MemoryError> {
        let is_it = |region: &Arc<Region>| (region.spec.guest, region.spec.len) == (guest, len);
        let Some(gone) = self.regions.iter().position(is_it) else {
            return Err(MemoryError::Unknown { guest, len });
        };
        let mut regions = self.regions.clone();
        regions.remove(gone);
        GuestMemory::new(regions)
    }

    /// Its regions, by guest address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Bytes of all regions.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().fold(0, |sum, region| sum.saturating_add(region.spec.len))
    }

    /// The first bytes of `len` (at least 1) at a guest physical address: all, or up to the end of a region, where the
    /// next may go on. `None`: outside.
    #[inline]
    pub fn at(&self, guest: u64, len: usize) -> Option<Span> {
        self.largest.at(guest, len).or_else(|| self.at_others(guest, len))
    }

    #[inline(never)]
    fn at_others(&self, guest: u64, len: usize) -> Option<Span> {
        self.others.iter().find_map(|place| place.at(guest, len))
    }

    /// `len` bytes at an address of the frontend, contiguous, in one region. `None`: outside.
    pub fn at_user(&self, user: u64, len: usize) -> Option<NonNull<u8>> {
        let span = self.at(self.guest_of(user)?, len)?;
        (span.len == len).then_some(span.base)
    }

    /// The guest physical address of an address of the frontend.
    pub fn guest_of(&self, user: u64) -> Option<u64> {
        let in_region = |region: &Arc<Region>| {
            let offset = user.wrapping_sub(region.spec.user);
            (offset < region.spec.len).then(|| region.spec.guest + offset)
        };
        self.regions.iter().find_map(in_region)
    }

    /// Did the frontend take memory away that it had shared? One load, as long as none of any guest did.
    #[inline]
    pub fn is_torn(&self) -> bool {
        any_torn() && self.regions.iter().any(|region| region.is_torn())
    }
}

/// Sees that, by this address of theirs, each region ends before the next begins.
fn check_apart(regions: &[Arc<Region>], address: impl Fn(RegionSpec) -> u64) -> Result<(), MemoryError> {
    let mut ranges: Vec<_> = regions.iter().map(|r| (address(r.spec), r.spec.len)).collect();
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[1].0 - pair[0].0 < pair[0].1) {
        Some(pair) => Err(MemoryError::Overlap(pair[1].0)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
