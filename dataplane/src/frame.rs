//! Frames: owned bytes in one process-wide pool, with headroom in front.
//!
//! The pool has two classes. *Small* chunks of 2 KiB lie in the UMEM that every AF_XDP socket shares, so that
//! XDP to XDP forwarding moves a descriptor and no byte; where the kernel gives no UMEM they lie in plain
//! memory. *Big* chunks of 64 KiB and a little carry GSO and jumbo frames.
//!
//! A [`Frame`] is move-only and owns its chunk. It does not give the chunk back when dropped (that would cost
//! a pointer and a branch per frame): whoever ends a frame's life calls [`FrameCache::free`], and the tests'
//! conservation law finds whoever forgets.

mod cache;
mod chatter;
pub mod stack;
pub mod umem;

use std::ptr::NonNull;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use encap::offload::{Csum, Offload};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use thiserror::Error;

pub use self::cache::FrameCache;
use self::stack::Stack;
use self::umem::SharedUmem;

/// Bytes of a small chunk: one UMEM chunk.
pub const SMALL: usize = 2048;
/// Bytes of a big chunk: the largest GSO frame (65,535 bytes of IP, an Ethernet header, tags) and headroom.
pub const BIG: usize = 68 * 1024;
/// Free bytes in front of a new frame. The kernel puts AF_XDP frames at the same place
/// (`XDP_PACKET_HEADROOM`); the longest outer header, IPv6 + UDP + Geneve with options, fits.
pub const HEADROOM: usize = 256;

/// The longest frame in a small chunk.
const SMALL_ROOM: usize = SMALL - HEADROOM;
/// The longest frame there is.
const BIG_ROOM: usize = BIG - HEADROOM;
/// The bit of a chunk number that says it is a big one.
const BIG_BIT: u32 = 1 << 31;

/// The pool cannot be made.
#[derive(Debug, Error)]
pub enum PoolError {
    /// The kernel gives no memory.
    #[error("cannot map {bytes} bytes for the frame pool: {source}; lower `frames` in [pool]")]
    Map {
        /// How much was asked for.
        bytes: usize,
        /// What the kernel said.
        source: nix::Error,
    },
}

/// The size of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Small chunks, 2 KiB each.
    pub small: u32,
    /// Big chunks, 68 KiB each; memory is used only once they are.
    pub big: u32,
    /// Where the small chunks lie.
    pub memory: Memory,
}

/// Where a pool's small chunks lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// In a UMEM if the kernel allows, else in plain memory.
    Umem,
    /// In plain memory.
    Plain,
}

/// An anonymous mapping, unmapped when dropped.
struct Region {
    base: NonNull<u8>,
    len: usize,
}

#[allow(unsafe_code)]
impl Region {
    fn map(len: usize) -> Result<Self, PoolError> {
        let size = std::num::NonZeroUsize::new(len.max(1)).expect("at least one byte");
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let base = unsafe {
            mmap_anonymous(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        }
        .map_err(|source| PoolError::Map { bytes: len, source })?;
        Ok(Region { base: base.cast(), len: size.get() })
    }
}

#[allow(unsafe_code)]
impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this base and length, and frames do not outlive the pool.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// The memory of the small chunks.
enum Small {
    Umem(Arc<SharedUmem>),
    Plain(Region),
}

/// All frames of the process.
pub struct FramePool {
    small: Small,
    /// The first byte of the first of them.
    first: NonNull<u8>,
    big: Region,
    config: PoolConfig,
    free_small: ArrayQueue<u32>,
    /// By their places among the big ones.
    free_big: Stack,
    refused: Option<String>,
}

// SAFETY: the raw pointers are to memory the pool owns for its whole life; chunks are handed out one owner at
// a time through the free lists.
#[allow(unsafe_code)]
unsafe impl Send for FramePool {}
// SAFETY: as above; shared access only goes through the lock-free queues.
#[allow(unsafe_code)]
unsafe impl Sync for FramePool {}

impl FramePool {
    /// Makes a pool. With [`Memory::Umem`], a kernel that refuses a UMEM is no error: see
    /// [`FramePool::umem_refused`].
    ///
    /// # Errors
    /// [`PoolError::Map`] if there is not enough address space.
    pub fn new(config: PoolConfig) -> Result<Arc<Self>, PoolError> {
        let (small, refused) = match config.memory {
            Memory::Plain => (None, None),
            Memory::Umem => match SharedUmem::new(config.small) {
                Ok(umem) => (Some(Small::Umem(Arc::new(umem))), None),
                Err(why) => (None, Some(why)),
            },
        };
        let small = match small {
            Some(small) => small,
            None => Small::Plain(Region::map(config.small as usize * SMALL)?),
        };
        let first = match &small {
            Small::Umem(umem) => umem.base(),
            Small::Plain(region) => region.base,
        };
        let big = Region::map(config.big as usize * BIG)?;
        let free_small = ArrayQueue::new(config.small.max(1) as usize);
        let free_big = Stack::full(config.big);
        (0..config.small).for_each(|i| free_small.push(i).expect("sized for all"));
        Ok(Arc::new(FramePool { small, first, big, config, free_small, free_big, refused }))
    }

    /// Why there is no UMEM although one was asked for.
    pub fn umem_refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// The UMEM that AF_XDP sockets share, if there is one.
    pub fn umem(&self) -> Option<&Arc<SharedUmem>> {
        match &self.small {
            Small::Umem(umem) => Some(umem),
            Small::Plain(_) => None,
        }
    }

    /// The size it was made with.
    pub fn config(&self) -> PoolConfig {
        self.config
    }

    /// Is more than a quarter of the small chunks in the shared list? Then nobody lacks any soon.
    #[inline]
    pub fn has_plenty(&self) -> bool {
        self.free_small.len() > self.config.small as usize / 4
    }

    /// Is hardly any small chunk in the shared list, less than a sixteenth? Then who has some takes no more.
    #[inline]
    pub fn is_scarce(&self) -> bool {
        self.free_small.len() < self.config.small as usize / 16
    }

    /// Chunks in the shared lists now (small, big); those in thread caches are not among them.
    pub fn available(&self) -> (usize, usize) {
        (self.free_small.len(), self.free_big.count())
    }

    #[inline]
    #[allow(unsafe_code)]
    fn base(&self, chunk: Chunk) -> NonNull<u8> {
        match chunk.is_big() {
            // SAFETY: chunk numbers come from the free lists, so the result lies inside its region.
            true => unsafe { self.big.base.add(chunk.number() * BIG) },
            false => self.small_base(chunk.0),
        }
    }

    /// Where a small chunk begins.
    #[inline]
    #[allow(unsafe_code)]
    fn small_base(&self, chunk: u32) -> NonNull<u8> {
        // SAFETY: as in `base`.
        unsafe { self.first.add(chunk as usize * SMALL) }
    }

    fn take_big(&self) -> Option<u32> {
        self.free_big.pop().map(|number| number | BIG_BIT)
    }

    fn put(&self, chunk: Chunk) {
        match chunk.is_big() {
            true => self.free_big.push(chunk.0 & !BIG_BIT),
            false => self.free_small.push(chunk.0).expect("a chunk was given back twice"),
        }
    }
}

/// The number of a chunk, for rings that hold bare addresses while a frame is with the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk(pub(crate) u32);

impl Chunk {
    /// The small chunk that a UMEM address lies in.
    #[inline]
    pub fn of_umem(addr: usize) -> Chunk {
        Chunk((addr / SMALL) as u32)
    }

    /// A small chunk by its number.
    pub(crate) fn small(number: usize) -> Chunk {
        Chunk(number as u32)
    }

    /// Its number in its class, from 0.
    #[inline]
    pub(crate) fn number(self) -> usize {
        (self.0 & !BIG_BIT) as usize
    }

    /// Is it one of the 64 KiB class?
    #[inline]
    pub fn is_big(self) -> bool {
        self.0 & BIG_BIT != 0
    }

    #[inline]
    fn size(self) -> usize {
        if self.is_big() { BIG } else { SMALL }
    }
}

/// One frame: its bytes, from the destination address on, and what is left to do on them.
#[must_use = "a frame must go to a port or back to the pool"]
#[derive(Debug)]
pub struct Frame {
    base: NonNull<u8>,
    chunk: Chunk,
    len: u32,
    head: u16,
    /// Stands for the frame's flow in the outer headers of a tunnel; of no meaning before it is to enter one.
    pub entropy: u16,
    /// Checksum and segmentation work that the sender left to us.
    pub offload: Offload,
    /// Came from where nobody tells of partial checksums: there may be one behind headers not looked at yet.
    pub unsaid: bool,
}

/// Frames are moved a lot: in two vector registers.
const _: () = assert!(size_of::<Frame>() == 32);

// SAFETY: a frame is the only owner of its chunk.
#[allow(unsafe_code)]
unsafe impl Send for Frame {}

#[allow(unsafe_code)]
impl Frame {
    /// The bytes of the frame.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: head + len never exceed the chunk, and this frame owns the chunk.
        unsafe { std::slice::from_raw_parts(self.base.add(self.head as usize).as_ptr(), self.len as usize) }
    }

    /// The bytes of the frame, to edit in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it the only reference.
        unsafe {
            std::slice::from_raw_parts_mut(self.base.add(self.head as usize).as_ptr(), self.len as usize)
        }
    }

    /// All that the frame may grow into behind its head: the bytes a port reads into.
    #[inline]
    pub fn room_mut(&mut self) -> &mut [u8] {
        let room = self.room();
        // SAFETY: head + room is the end of the chunk.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(self.head as usize).as_ptr(), room) }
    }
}

impl Frame {
    /// Length in bytes, without FCS.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True for a frame just allocated.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Free bytes in front.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.head as usize
    }

    /// The longest length the frame can have with its head where it is.
    #[inline]
    pub fn room(&self) -> usize {
        self.chunk.size() - self.head as usize
    }

    /// The chunk it lies in.
    #[inline]
    pub fn chunk(&self) -> Chunk {
        self.chunk
    }

    /// Sets the length, as after reading into [`Frame::room_mut`].
    ///
    /// # Panics
    /// If `len` exceeds [`Frame::room`].
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.room(), "{len} bytes in a frame with room for {}", self.room());
        self.len = len as u32;
    }

    /// Makes the frame longer in front by `n` bytes of unspecified content. The offload moves along.
    /// `None`, and no change, if the headroom is too short.
    #[inline]
    pub fn push_front(&mut self, n: usize) -> Option<&mut [u8]> {
        let head = (self.head as usize).checked_sub(n)?;
        self.shift(n as isize)?;
        self.head = head as u16;
        self.len += n as u32;
        Some(self.bytes_mut())
    }

    /// Moves the bytes to where a new frame's begin, [`HEADROOM`] bytes in.
    ///
    /// # Panics
    /// If a small frame is too long for that.
    #[inline]
    pub(crate) fn settle(&mut self) {
        let (head, len) = (self.head as usize, self.len());
        if head != HEADROOM {
            self.head = 0;
            self.room_mut().copy_within(head..head + len, HEADROOM);
            self.head = HEADROOM as u16;
        }
    }

    /// Moves the offload along, where it is: most frames have none.
    #[inline]
    fn shift(&mut self, delta: isize) -> Option<()> {
        if let Csum::Partial { start, .. } = &mut self.offload.csum {
            *start = u16::try_from(*start as isize + delta).ok()?;
        }
        Some(())
    }

    /// Takes `n` bytes off the front. The offload moves along. `None`, and no change, if the frame is shorter, or would
    /// begin 64 KiB into its chunk or later.
    #[inline]
    pub fn pull_front(&mut self, n: usize) -> Option<&mut [u8]> {
        let len = self.len().checked_sub(n)?;
        let head = u16::try_from(self.headroom() + n).ok()?;
        self.shift(-(n as isize))?;
        self.head = head;
        self.len = len as u32;
        Some(self.bytes_mut())
    }
}
