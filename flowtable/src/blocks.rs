//! Memory for flows and their buckets: blocks of few sizes, side by side in huge pages.
//!
//! A table of a million flows is looked into at random, so every cache line of it that a frame needs is a miss, and in pages
//! of 4 KiB each would cost a walk through the page tables too. So blocks are cut out of chunks of 2 MiB, one
//! size per chunk, aligned to cache lines, and nothing lies between them. The first chunk of a size is not a huge page, for a
//! small table shall be small; the kernel is asked to make the others huge (`madvise`), and they go back to it when they
//! are empty.
//!
//! What several threads use of many blocks, each a part of its own, is cut otherwise: into *rows*, a line each, that share a
//! table of [`ROWS`] with one column for each part ([`column`]). The lines lie side by side, and so does each column. A processor
//! that is asked for a line fetches its neighbours too: if another core is just writing these, both wait for each other as if it
//! were one line (bench `scaling`, queues/1000: two pollers forwarded 0.70 of twice one where each wrote a line of its own
//! behind a flow's first, 0.96 with their columns).
//!
//! Cost: a lock that is held for some tens of instructions, and a search among the chunks of that size; a new chunk
//! is a system call, and the kernel clears it.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// Rows of a table: so many that each column is a page. What a processor fetches unasked is of the same page, so in columns of half
/// a page, two in one, it found another's lines (bench `scaling`, queues/1000: 0.90).
const ROWS: usize = PAGE / COLUMN;
/// Bytes of a column in each row.
pub(crate) const COLUMN: usize = LINE / 2;
/// What the lines of a table take. A table begins at a multiple of that, so that an address tells the row.
const LINES: usize = ROWS * LINE;
/// The most columns of a table: it fits a chunk.
pub(crate) const COLUMNS_MAX: usize = 2 * (CHUNK / LINES - 1);
/// Bytes of a page.
const PAGE: usize = 4096;

static SHELVES: [Mutex<Shelf>; SIZES] = [const { Mutex::new(Shelf::new()) }; SIZES];
/// Of tables with two columns, four …
static TABLES: [Mutex<Shelf>; COLUMNS_MAX / 2] = [const { Mutex::new(Shelf::new()) }; COLUMNS_MAX / 2];

/// A block of at least `size` bytes, aligned to a cache line, with anything in it.
pub(crate) fn allocate(size: usize) -> NonNull<u8> {
    match Size::of(size) {
        Some(size) => lock(&SHELVES[size.index]).take(Cut::Blocks(size.bytes)),
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
        Some(size) => unsafe { lock(&SHELVES[size.index]).put(block, Cut::Blocks(size.bytes)) },
        // SAFETY: such a block is a mapping of its own.
        None => unsafe { unmap(block, whole(size)) },
    }
}

/// A row of a table with so many columns: its first line, with anything in it.
///
/// # Panics
/// With more than [`COLUMNS_MAX`].
pub(crate) fn allocate_row(columns: usize) -> NonNull<u8> {
    let (table, cut) = table(columns);
    lock(table).take(cut)
}

/// Gives a row back.
///
/// # Safety
/// It is from [`allocate_row`], with so many columns, and nobody will use it again.
pub(crate) unsafe fn free_row(row: NonNull<u8>, columns: usize) {
    let (table, cut) = table(columns);
    // SAFETY: it is of this shelf, as the columns say, and free.
    unsafe { lock(table).put(row, cut) };
}

/// Where a column of a row is, [`COLUMN`] bytes. Reads nothing.
#[inline]
pub(crate) fn column<T>(row: *const T, column: usize) -> *const u8 {
    // Rows are a line apart at the begin of a table, and half as much in the columns.
    let before = row.addr() % LINES / (LINE / COLUMN);
    row.cast::<u8>().wrapping_add(LINES + column * PAGE - before)
}

/// The shelf of such tables, and what they are like: columns come in pairs, that each table begins where it should.
fn table(columns: usize) -> (&'static Mutex<Shelf>, Cut) {
    let pairs = columns.div_ceil(2).max(1);
    (&TABLES[pairs - 1], Cut::Rows((1 + pairs) * LINES))
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
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

/// How a chunk is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Into blocks of so many bytes.
    Blocks(usize),
    /// Into tables of so many bytes, each of [`ROWS`] rows.
    Rows(usize),
}

impl Cut {
    /// How many pieces of a chunk there are.
    fn count(self) -> usize {
        match self {
            Cut::Blocks(bytes) => CHUNK / bytes,
            Cut::Rows(bytes) => CHUNK / bytes * ROWS,
        }
    }

    /// Where piece `n` begins.
    fn offset(self, n: usize) -> usize {
        match self {
            Cut::Blocks(bytes) => n * bytes,
            Cut::Rows(bytes) => n / ROWS * bytes + n % ROWS * LINE,
        }
    }

    /// Which piece begins there.
    fn number(self, offset: usize) -> usize {
        match self {
            Cut::Blocks(bytes) => offset / bytes,
            Cut::Rows(bytes) => offset / bytes * ROWS + offset % bytes / LINE,
        }
    }
}

/// The chunks of one cut.
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
    fn is_full(&self, cut: Cut) -> bool {
        self.used as usize == cut.count()
    }

    fn block(&self, n: u32, cut: Cut) -> NonNull<u8> {
        debug_assert!((n as usize) < cut.count());
        // SAFETY: as many blocks fit the chunk.
        unsafe { self.at.add(cut.offset(n as usize)) }
    }

    /// Takes a block out of a chunk that is not full.
    fn take(&mut self, cut: Cut) -> NonNull<u8> {
        self.used += 1;
        if self.free == NONE {
            self.fresh += 1;
            return self.block(self.fresh - 1, cut);
        }
        let block = self.block(self.free, cut);
        // SAFETY: a free block before `fresh` is ours and holds the number that `put` wrote.
        self.free = unsafe { block.cast::<u32>().read() };
        block
    }

    /// # Safety
    /// The block is of this chunk, and nobody uses it.
    unsafe fn put(&mut self, block: NonNull<u8>, cut: Cut) {
        // SAFETY: it is ours now, aligned to a line and at least one long.
        unsafe { block.cast::<u32>().write(self.free) };
        self.free = cut.number(block.addr().get() - self.at.addr().get()) as u32;
        self.used -= 1;
    }
}

impl Shelf {
    const fn new() -> Self {
        Shelf { chunks: BTreeMap::new(), roomy: Vec::new() }
    }

    fn take(&mut self, cut: Cut) -> NonNull<u8> {
        let address = self.roomy.last().copied().unwrap_or_else(|| self.add_chunk());
        let chunk = self.chunks.get_mut(&address).expect("a roomy chunk is there");
        let block = chunk.take(cut);
        if chunk.is_full(cut) {
            self.roomy.pop();
        }
        block
    }

    /// # Safety
    /// The block is of this cut, and nobody uses it.
    unsafe fn put(&mut self, block: NonNull<u8>, cut: Cut) {
        let address = block.addr().get() & !(CHUNK - 1);
        let chunk = self.chunks.get_mut(&address).expect("the block is of this cut");
        if chunk.is_full(cut) {
            self.roomy.push(address);
        }
        // SAFETY: the chunk is the one at the block's address; the rest is the caller's promise.
        unsafe { chunk.put(block, cut) };
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
        let blocks: Vec<_> = (0..count).map(|_| shelf.take(Cut::Blocks(bytes))).collect();
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
        odd.iter().for_each(|(_, block)| unsafe { shelf.put(**block, Cut::Blocks(BYTES)) });
        let again: HashSet<_> = odd.iter().map(|_| shelf.take(Cut::Blocks(BYTES))).collect();
        assert!(odd.iter().all(|(_, block)| again.contains(*block)));
        // SAFETY: as before.
        odd.iter().chain(&even).for_each(|(_, block)| unsafe { shelf.put(**block, Cut::Blocks(BYTES)) });
        assert_eq!((shelf.chunks.len(), shelf.roomy.len()), (1, 1), "one is kept");
        assert!(shelf.chunks.values().all(|chunk| chunk.used == 0));
    }

    #[test]
    fn rows_have_columns_of_their_own() {
        const COLUMNS: usize = 3;
        let (mut shelf, (_, cut)) = (Shelf::new(), table(COLUMNS));
        let rows: Vec<_> = (0..cut.count() + 1).map(|_| shelf.take(cut)).collect();
        let parts = |row: &NonNull<u8>| {
            let row = row.as_ptr();
            let columns = (0..COLUMNS).map(move |n| (column(row, n).cast_mut(), COLUMN));
            [(row, LINE)].into_iter().chain(columns)
        };
        for (part, (at, bytes)) in rows.iter().flat_map(parts).enumerate() {
            // SAFETY: it is ours, and so long.
            unsafe { at.write_bytes(part as u8, bytes) };
        }
        for (part, (at, bytes)) in rows.iter().flat_map(parts).enumerate() {
            assert!(
                at.addr().is_multiple_of(bytes) && at.addr() / CHUNK == rows[part / 4].addr().get() / CHUNK
            );
            // SAFETY: it is ours, and was written.
            assert!((0..bytes).all(|i| unsafe { at.add(i).read() } == part as u8));
        }
        // SAFETY: they are of this shelf, and not used again.
        rows.iter().for_each(|row| unsafe { shelf.put(*row, cut) });
        assert_eq!((shelf.chunks.len(), shelf.roomy.len()), (1, 1), "one is kept");
        assert_eq!(shelf.chunks.values().map(|chunk| chunk.used).sum::<u32>(), 0);
    }

    #[test]
    fn columns_of_neighbours_lie_side_by_side() {
        let mut shelf = Shelf::new();
        let (_, cut) = table(COLUMNS_MAX);
        let rows: Vec<_> = (0..ROWS).map(|_| shelf.take(cut)).collect();
        for pair in rows.windows(2) {
            let [a, b] = [pair[0].as_ptr(), pair[1].as_ptr()];
            assert_eq!(b.addr() - a.addr(), LINE);
            for n in [0, 1, COLUMNS_MAX - 1] {
                assert_eq!(column(b, n).addr() - column(a, n).addr(), COLUMN);
            }
        }
        let last = column(rows[ROWS - 1].as_ptr(), COLUMNS_MAX - 1).addr() + COLUMN;
        assert_eq!(last, rows[0].addr().get() + CHUNK);
        // SAFETY: they are of this shelf, and not used again.
        rows.iter().for_each(|row| unsafe { shelf.put(*row, cut) });
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
