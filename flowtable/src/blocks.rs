//! Memory for flows and their buckets: blocks of few sizes, side by side in huge pages.
//!
//! A table of a million flows is looked into at random, so every cache line of it that a frame needs is a miss, and in pages
//! of 4 KiB each would cost a walk through the page tables too. So blocks are cut out of chunks of 2 MiB, one
//! size per chunk, aligned to cache lines, and nothing lies between them. The first chunk of a size is not a huge page, for a
//! small table shall be small; the kernel is asked to make the others huge (`madvise`), and they go back to it when they
//! are empty.
//!
//! Cost: a lock that is held for some tens of instructions, and a search among the chunks of that size; a new chunk
//! is a system call, and the kernel clears it.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// Bytes of a chunk: a huge page of x86-64 and of most others.
const CHUNK: usize = 2 << 20;
/// Blocks are aligned to cache lines, and so are their sizes.
const LINE: usize = 64;
/// Up to here there is a size for every multiple of a line; above, every power of two.
const SMALL: usize = 2048;
/// The biggest block that shares a chunk.
const LARGE: usize = CHUNK / 2;
/// How many sizes there are.
const SIZES: usize = SMALL / LINE + (LARGE / SMALL).ilog2() as usize;

/// No block.
const NONE: u32 = u32::MAX;

static SHELVES: [Mutex<Shelf>; SIZES] = [const { Mutex::new(Shelf::new()) }; SIZES];

/// A block of at least `size` bytes, aligned to a cache line, with anything in it.
pub(crate) fn allocate(size: usize) -> NonNull<u8> {
    match Size::of(size) {
        Some(size) => shelf(size, |shelf| shelf.take(size.bytes)),
        None => map(whole(size), Pages::Huge),
    }
}

/// Gives a block back.
///
/// # Safety
/// It is from [`allocate`], for this size, and nobody will use it again.
pub(crate) unsafe fn free(block: NonNull<u8>, size: usize) {
    match Size::of(size) {
        // SAFETY: it is of this shelf, as the size says, and free.
        Some(size) => shelf(size, |shelf| unsafe { shelf.put(block, size.bytes) }),
        // SAFETY: such a block is a mapping of its own.
        None => unsafe { unmap(block, whole(size)) },
    }
}

/// Asks for a cache line. Any address will do: one that is not mapped is ignored.
#[inline]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing that a program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

fn shelf<R>(size: Size, f: impl FnOnce(&mut Shelf) -> R) -> R {
    f(&mut SHELVES[size.index].lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a block that shares no chunk takes.
fn whole(size: usize) -> usize {
    size.next_multiple_of(CHUNK)
}

/// A size of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    index: usize,
    bytes: usize,
}

impl Size {
    /// The smallest that holds so many bytes; `None` if that needs chunks of its own.
    fn of(bytes: usize) -> Option<Size> {
        let lines = bytes.div_ceil(LINE).max(1);
        if lines * LINE <= SMALL {
            return Some(Size { index: lines - 1, bytes: lines * LINE });
        }
        let bytes = bytes.next_power_of_two();
        let index = SMALL / LINE + (bytes / SMALL).ilog2() as usize - 1;
        (bytes <= LARGE).then_some(Size { index, bytes })
    }
}

/// The chunks of one size.
struct Shelf {
    /// By address.
    chunks: BTreeMap<usize, Chunk>,
    /// The addresses of those with a free block.
    roomy: Vec<usize>,
}

/// What is known of a chunk. A free block holds the number of the next one.
struct Chunk {
    at: NonNull<u8>,
    used: u32,
    /// Blocks from this one on have never been used.
    fresh: u32,
    /// The first free block of those before.
    free: u32,
}

// SAFETY: whoever has the shelf has all that is free in its chunks, and touches nothing else there.
unsafe impl Send for Chunk {}

impl Chunk {
    fn is_full(&self, bytes: usize) -> bool {
        self.used as usize == CHUNK / bytes
    }

    fn block(&self, n: u32, bytes: usize) -> NonNull<u8> {
        debug_assert!((n as usize) < CHUNK / bytes);
        // SAFETY: as many blocks fit the chunk.
        unsafe { self.at.add(n as usize * bytes) }
    }

    /// Takes a block out of a chunk that is not full.
    fn take(&mut self, bytes: usize) -> NonNull<u8> {
        self.used += 1;
        if self.free == NONE {
            self.fresh += 1;
            return self.block(self.fresh - 1, bytes);
        }
        let block = self.block(self.free, bytes);
        // SAFETY: a free block before `fresh` is ours and holds the number that `put` wrote.
        self.free = unsafe { block.cast::<u32>().read() };
        block
    }

    /// # Safety
    /// The block is of this chunk, and nobody uses it.
    unsafe fn put(&mut self, block: NonNull<u8>, bytes: usize) {
        // SAFETY: it is ours now, aligned to a line and at least that long.
        unsafe { block.cast::<u32>().write(self.free) };
        self.free = ((block.addr().get() - self.at.addr().get()) / bytes) as u32;
        self.used -= 1;
    }
}

impl Shelf {
    const fn new() -> Self {
        Shelf { chunks: BTreeMap::new(), roomy: Vec::new() }
    }

    fn take(&mut self, bytes: usize) -> NonNull<u8> {
        let address = self.roomy.last().copied().unwrap_or_else(|| self.add_chunk());
        let chunk = self.chunks.get_mut(&address).expect("a roomy chunk is there");
        let block = chunk.take(bytes);
        if chunk.is_full(bytes) {
            self.roomy.pop();
        }
        block
    }

    /// # Safety
    /// The block is of this size, and nobody uses it.
    unsafe fn put(&mut self, block: NonNull<u8>, bytes: usize) {
        let address = block.addr().get() & !(CHUNK - 1);
        let chunk = self.chunks.get_mut(&address).expect("the block is of this size");
        if chunk.is_full(bytes) {
            self.roomy.push(address);
        }
        // SAFETY: the chunk is the one at the block's address; the rest is the caller's promise.
        unsafe { chunk.put(block, bytes) };
        if chunk.used == 0 && self.roomy.len() > 1 {
            self.remove_chunk(address);
        }
    }

    fn add_chunk(&mut self) -> usize {
        let at = map(CHUNK, if self.chunks.is_empty() { Pages::Plain } else { Pages::Huge });
        let address = at.addr().get();
        self.chunks.insert(address, Chunk { at, used: 0, fresh: 0, free: NONE });
        self.roomy.push(address);
        address
    }

    /// Gives an empty chunk back to the kernel.
    fn remove_chunk(&mut self, address: usize) {
        self.roomy.retain(|roomy| *roomy != address);
        let chunk = self.chunks.remove(&address).expect("it was there a moment ago");
        // SAFETY: none of its blocks is in use.
        unsafe { unmap(chunk.at, CHUNK) };
    }
}

/// What pages memory shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    Plain,
    Huge,
}

/// Fresh memory, a multiple of [`CHUNK`] long and aligned to it.
fn map(len: usize, pages: Pages) -> NonNull<u8> {
    let failed =
        || -> ! { handle_alloc_error(Layout::from_size_align(len, CHUNK).expect("a length below 2^63")) };
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, wherever the kernel likes, touches nothing that is there.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len + CHUNK, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        failed();
    }
    let before = start.align_offset(CHUNK);
    // SAFETY: both ends are of the mapping just made, and multiples of a page. The advice may be refused: then the pages
    // stay small.
    unsafe {
        let at = start.byte_add(before);
        if before > 0 {
            libc::munmap(start, before);
        }
        libc::munmap(at.byte_add(len), CHUNK - before);
        if pages == Pages::Huge {
            libc::madvise(at, len, libc::MADV_HUGEPAGE);
        }
        NonNull::new(at.cast()).unwrap_or_else(|| failed())
    }
}

/// # Safety
/// It was made by [`map`] with this length, and nobody uses it.
unsafe fn unmap(at: NonNull<u8>, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(at.as_ptr().cast(), len) };
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn sizes_are_the_smallest_that_hold() {
        for bytes in (1..=LARGE).step_by(61) {
            let size = Size::of(bytes).unwrap();
            assert!(size.bytes >= bytes && size.index < SIZES && Size::of(size.bytes) == Some(size));
            assert!(size.bytes < bytes + LINE || size.bytes < 2 * bytes && bytes > SMALL - LINE);
        }
        assert_eq!(Size::of(LARGE + 1), None);
        let indexes: HashSet<usize> = (1..=LARGE).step_by(64).map(|n| Size::of(n).unwrap().index).collect();
        assert_eq!(indexes.len(), SIZES);
    }

    /// A shelf of blocks of so many bytes, and as many blocks as were asked for, each filled with its number.
    fn filled(bytes: usize, count: usize) -> (Shelf, Vec<NonNull<u8>>) {
        let mut shelf = Shelf::new();
        let blocks: Vec<_> = (0..count).map(|_| shelf.take(bytes)).collect();
        for (n, block) in blocks.iter().enumerate() {
            // SAFETY: the block is ours, and so long.
            unsafe { block.write_bytes(n as u8, bytes) };
        }
        (shelf, blocks)
    }

    #[test]
    fn blocks_overlap_nowhere_and_are_used_again() {
        const BYTES: usize = 192;
        let (mut shelf, blocks) = filled(BYTES, 3 * (CHUNK / BYTES) + 1);
        assert_eq!(shelf.chunks.len(), 4);
        for (n, block) in blocks.iter().enumerate() {
            assert!(block.addr().get().is_multiple_of(LINE));
            // SAFETY: the block is ours, and was written.
            assert!((0..BYTES).all(|i| unsafe { block.add(i).read() } == n as u8));
        }
        let (odd, even): (Vec<_>, Vec<_>) = blocks.iter().enumerate().partition(|(n, _)| n % 2 == 1);
        // SAFETY: they are of this shelf, and not used again.
        odd.iter().for_each(|(_, block)| unsafe { shelf.put(**block, BYTES) });
        let again: HashSet<_> = odd.iter().map(|_| shelf.take(BYTES)).collect();
        assert!(odd.iter().all(|(_, block)| again.contains(*block)));
        // SAFETY: as before.
        odd.iter().chain(&even).for_each(|(_, block)| unsafe { shelf.put(**block, BYTES) });
        assert_eq!((shelf.chunks.len(), shelf.roomy.len()), (1, 1), "one is kept");
        assert!(shelf.chunks.values().all(|chunk| chunk.used == 0));
    }

    #[test]
    fn big_blocks_have_chunks_of_their_own() {
        let size = 3 * CHUNK - 5;
        let block = allocate(size);
        assert!(block.addr().get().is_multiple_of(CHUNK));
        // SAFETY: the block is ours, so long, and freed once.
        unsafe {
            block.write_bytes(1, size);
            free(block, size);
        }
    }
}
