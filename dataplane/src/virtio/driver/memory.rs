//! Memory to share with a device: memfds, mapped, with guest physical addresses that are neither offsets nor ours.
//!
//! All access is by copies and atomics through raw pointers, since the device reads and writes it at any time.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use thiserror::Error;

use crate::port::vhost::memory::RegionSpec;
use crate::virtio::layout::{Descriptor, EventSuppression, PackedDescriptor, UsedElement};

/// Memory cannot be made.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The kernel gives none.
    #[error("cannot share {len} bytes of memory: {source}")]
    Map {
        /// How many.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// All of it is handed out.
    #[error("no region has {0} bytes left")]
    Full(usize),
}

/// A region to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Its guest physical address.
    pub guest: u64,
    /// Bytes, of whole pages.
    pub len: usize,
    /// Where in its file it begins, of whole pages.
    pub offset: usize,
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    layout: Layout,
    file: File,
    taken: AtomicUsize,
}

// SAFETY: the mapping belongs to this value alone, and is only touched by atomics and copies that allow for others.
#[allow(unsafe_code)]
unsafe impl Send for Region {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Region {}

impl Region {
    /// Maps a new memfd.
    ///
    /// # Errors
    /// [`MemoryError::Map`].
    pub fn new(layout: Layout) -> Result<Arc<Region>, MemoryError> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"guest", flags).map(File::from).map_err(|errno| failed(layout, errno))?;
        file.set_len((layout.offset + layout.len) as u64)
            .map_err(|source| MemoryError::Map { len: layout.len, source })?;
        Region::of(file, layout)
    }

    /// Maps a file that is long enough (of hugetlbfs, say).
    ///
    /// # Errors
    /// [`MemoryError::Map`].
    #[allow(unsafe_code)]
    pub fn of(file: File, layout: Layout) -> Result<Arc<Region>, MemoryError> {
        let len = NonZeroUsize::new(layout.len).expect("a region has bytes");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, layout.offset as i64) };
        let base = base.map_err(|errno| failed(layout, errno))?.cast();
        Ok(Arc::new(Region { base, layout, file, taken: AtomicUsize::new(0) }))
    }

    /// Where it is to the guest, to us and in its file.
    pub fn spec(&self) -> RegionSpec {
        RegionSpec {
            guest: self.layout.guest,
            len: self.layout.len as u64,
            user: self.base.as_ptr() as u64,
            offset: self.layout.offset as u64,
        }
    }

    /// The file to share.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Leaves its file only so many bytes: whoever touches one behind gets a SIGBUS, we too.
    ///
    /// # Errors
    /// The kernel's.
    pub fn truncate(&self, len: u64) -> io::Result<()> {
        Ok(nix::unistd::ftruncate(self.file.as_fd(), len as i64)?)
    }

    /// Where a part of it begins, if there are `len` bytes.
    #[inline]
    fn find(&self, guest: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(guest.checked_sub(self.layout.guest)?).ok()?;
        (offset < self.layout.len && len <= self.layout.len - offset).then_some(offset)
    }

    fn take(&self, len: usize, align: usize) -> Option<u64> {
        let next = |taken: usize| {
            let end = taken.next_multiple_of(align).checked_add(len)?;
            (end <= self.layout.len).then_some(end)
        };
        let before = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(self.layout.guest + before.next_multiple_of(align) as u64)
    }

    #[allow(unsafe_code)]
    fn pointer(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset + len <= self.layout.len, "{len} bytes at {offset} of {:?}", self.layout);
        // SAFETY: inside the mapping, as was just asserted.
        unsafe { self.base.add(offset) }
    }
}

fn failed(layout: Layout, errno: nix::Error) -> MemoryError {
    MemoryError::Map { len: layout.len, source: errno.into() }
}

#[allow(unsafe_code)]
impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this base and length; blocks and memories hold the region alive.
        let _ = unsafe { munmap(self.base.cast(), self.layout.len) };
    }
}

/// All memory of a guest. Cheap to clone; a change of regions is another one.
#[derive(Debug, Clone, Default)]
pub struct SharedMemory {
    regions: Vec<Arc<Region>>,
}

impl SharedMemory {
    /// One memfd per region.
    ///
    /// # Errors
    /// [`MemoryError::Map`].
    pub fn new(layouts: &[Layout]) -> Result<SharedMemory, MemoryError> {
        let regions = layouts.iter().map(|&layout| Region::new(layout)).collect::<Result<_, _>>()?;
        Ok(SharedMemory { regions })
    }

    /// One region of `len` bytes, 3 GiB into the guest.
    ///
    /// # Errors
    /// [`MemoryError::Map`].
    pub fn of_len(len: usize) -> Result<SharedMemory, MemoryError> {
        let len = len.next_multiple_of(PAGE);
        SharedMemory::new(&[Layout { guest: 0xc000_0000, len, offset: PAGE }])
    }

    /// With one more region.
    #[must_use]
    pub fn with(&self, region: Arc<Region>) -> SharedMemory {
        let mut regions = self.regions.clone();
        regions.push(region);
        SharedMemory { regions }
    }

    /// Without the region at this place in the list.
    #[must_use]
    pub fn without(&self, place: usize) -> SharedMemory {
        let mut regions = self.regions.clone();
        regions.remove(place);
        SharedMemory { regions }
    }

    /// Its regions.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Hands out `len` bytes that nobody has yet, of the first region with room; never taken back.
    ///
    /// # Errors
    /// [`MemoryError::Full`].
    pub fn take(&self, len: usize, align: usize) -> Result<u64, MemoryError> {
        self.regions.iter().find_map(|region| region.take(len, align)).ok_or(MemoryError::Full(len))
    }

    /// The same as a block.
    ///
    /// # Errors
    /// [`MemoryError::Full`].
    pub fn block(&self, len: usize, align: usize) -> Result<Block, MemoryError> {
        let guest = self.take(len, align)?;
        Ok(self.block_at(guest, len).expect("what is handed out lies in one region"))
    }

    /// `len` contiguous bytes at a guest physical address.
    pub fn block_at(&self, guest: u64, len: usize) -> Option<Block> {
        let found = |region: &Arc<Region>| {
            let offset = region.find(guest, len)?;
            Some(Block { base: region.pointer(offset, len), region: Arc::clone(region), guest, len })
        };
        self.regions.iter().find_map(found)
    }

    /// The address behind its last byte.
    pub fn end(&self) -> u64 {
        self.regions.iter().map(|region| region.spec().guest + region.spec().len).max().unwrap_or(0)
    }

    /// The address in our process of a guest physical address, as `VHOST_USER_SET_VRING_ADDR` wants it.
    pub fn user_of(&self, guest: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| Some(region.spec().user + region.find(guest, 1)? as u64))
    }

    /// Copies `bytes` to a guest physical address, across regions.
    ///
    /// # Panics
    /// If that is outside.
    #[inline]
    #[allow(unsafe_code)]
    pub fn write(&self, mut guest: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (to, most) = self.run(guest);
            let len = most.min(bytes.len());
            // SAFETY: `run` found `most` bytes there; the source is a slice of ours, outside the mapping.
            unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), len) };
            (guest, bytes) = (guest + len as u64, &bytes[len..]);
        }
    }

    /// Copies bytes from a guest physical address, across regions.
    ///
    /// # Panics
    /// If that is outside.
    #[inline]
    #[allow(unsafe_code)]
    pub fn read(&self, mut guest: u64, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let (from, most) = self.run(guest);
            let len = most.min(bytes.len());
            // SAFETY: `run` found `most` bytes there; the target is a slice of ours, outside the mapping.
            unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from.as_ptr(), len) };
            (guest, bytes) = (guest + len as u64, &mut bytes[len..]);
        }
    }

    /// The bytes from `guest` on to the end of its region.
    #[inline]
    fn run(&self, guest: u64) -> (NonNull<u8>, usize) {
        let found = |region: &Arc<Region>| {
            let offset = region.find(guest, 1)?;
            Some((region.pointer(offset, 1), region.layout.len - offset))
        };
        self.regions.iter().find_map(found).unwrap_or_else(|| panic!("{guest:#x} is no memory of the guest"))
    }
}

/// The smallest page there is.
pub const PAGE: usize = 4096;

/// Values without padding, of which any bytes are one.
///
/// # Safety
/// That must be so.
#[allow(unsafe_code)]
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ty),*) => {$(
        // SAFETY: integers without padding, `repr(C)`.
        #[allow(unsafe_code)]
        unsafe impl Plain for $name {}
    )*};
}

plain!(u8, u16, u32, u64, Descriptor, UsedElement, PackedDescriptor, EventSuppression);

/// Contiguous bytes of shared memory.
#[derive(Debug, Clone)]
pub struct Block {
    base: NonNull<u8>,
    region: Arc<Region>,
    guest: u64,
    len: usize,
}

// SAFETY: a block is a pointer into a region that it holds alive, and touches it by copies and atomics only.
#[allow(unsafe_code)]
unsafe impl Send for Block {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Block {}

#[allow(unsafe_code)]
impl Block {
    /// Its guest physical address.
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// The region it lies in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Writes a value at an offset.
    ///
    /// # Panics
    /// If that is outside, here and below.
    #[inline]
    pub fn put<T: Plain>(&self, offset: usize, value: T) {
        let at = self.pointer(offset, size_of::<T>());
        // SAFETY: inside the block; unaligned stores are allowed, and any bytes are a `T`.
        unsafe { at.cast::<T>().write_unaligned(value) };
    }

    /// Reads a value at an offset.
    #[inline]
    pub fn get<T: Plain>(&self, offset: usize) -> T {
        let at = self.pointer(offset, size_of::<T>());
        // SAFETY: as for `put`.
        unsafe { at.cast::<T>().read_unaligned() }
    }

    /// Stores 16 bits, after all that was written before.
    #[inline]
    pub fn release16(&self, offset: usize, value: u16) {
        // SAFETY: inside the block and aligned; the reference does not outlive the statement.
        unsafe { AtomicU16::from_ptr(self.aligned(offset)) }.store(value, Ordering::Release);
    }

    /// Loads 16 bits, before all that is read after.
    #[inline]
    pub fn acquire16(&self, offset: usize) -> u16 {
        // SAFETY: as for `release16`.
        unsafe { AtomicU16::from_ptr(self.aligned(offset)) }.load(Ordering::Acquire)
    }

    /// Stores 32 bits at once.
    #[inline]
    pub fn release32(&self, offset: usize, value: u32) {
        // SAFETY: as for `release16`.
        unsafe { AtomicU32::from_ptr(self.aligned(offset)) }.store(value, Ordering::Release);
    }

    /// Loads 32 bits at once.
    #[inline]
    pub fn acquire32(&self, offset: usize) -> u32 {
        // SAFETY: as for `release16`.
        unsafe { AtomicU32::from_ptr(self.aligned(offset)) }.load(Ordering::Acquire)
    }

    /// Takes 32 bits and leaves zeros, at once.
    pub fn take32(&self, offset: usize) -> u32 {
        // SAFETY: as for `release16`.
        unsafe { AtomicU32::from_ptr(self.aligned(offset)) }.swap(0, Ordering::AcqRel)
    }

    #[inline]
    fn aligned<T>(&self, offset: usize) -> *mut T {
        let at = self.pointer(offset, size_of::<T>()).cast::<T>();
        assert!(at.is_aligned(), "offset {offset} is not aligned");
        at.as_ptr()
    }

    #[inline]
    fn pointer(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset + len <= self.len, "{len} bytes at {offset} of a block of {}", self.len);
        // SAFETY: inside the block, as was just asserted.
        unsafe { self.base.add(offset) }
    }
}
