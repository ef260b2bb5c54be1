//! An allocator for those who ask who shares what with whom: each thread has an arena, and no two blocks share a line.
//!
//! With one that people use, two threads may write one line because their blocks happen to be neighbours, or may not, from run to
//! run. Here an address tells which thread made the block, and whether it asked for lines of its own; so whether it *can*
//! have such a neighbour can be seen in any run. Nothing is used again, so this is for short lives.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What who wants lines of its own aligns to, at least.
const LINE: usize = 64;
/// What blocks are aligned to: two lines, since some processors fetch them in pairs.
const OWN: usize = 128;
/// Arenas of threads; the last is for blocks with lines of their own.
const THREADS: usize = 3;
/// Bytes of an arena.
const SIZE: usize = 1 << 30;

/// Where the arenas begin; zero before they are wanted.
static BASE: AtomicUsize = AtomicUsize::new(0);
/// Bytes used of each.
static USED: [AtomicUsize; THREADS + 1] = [const { AtomicUsize::new(0) }; THREADS + 1];

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(0) };
}

/// The allocator; the system's before [`open`].
pub struct Arenas;

/// From now on each thread allocates in its arena, that of thread 0 unless it [says](enter) otherwise. Where they begin.
pub fn open() -> usize {
    let layout = Layout::from_size_align(SIZE * (THREADS + 1), OWN).expect("a size");
    // SAFETY: the layout is not empty.
    let base = unsafe { System.alloc(layout) }.addr();
    assert_ne!(base, 0, "no room for arenas");
    BASE.store(base, Ordering::Release);
    base
}

/// This thread has that arena.
pub fn enter(thread: usize) {
    assert!(thread < THREADS, "thread {thread} of {THREADS}");
    THREAD.set(thread);
}

/// The thread that made the block at an address, if arenas begin at `base`; `None` if that is no block, or has lines of its own.
pub fn maker(base: u64, address: u64) -> Option<usize> {
    let arena = address.checked_sub(base)? as usize / SIZE;
    (arena < THREADS).then_some(arena)
}

// SAFETY: blocks are disjoint pieces of what the system gave, as long and as aligned as asked for, and never reused.
unsafe impl GlobalAlloc for Arenas {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = BASE.load(Ordering::Acquire);
        if base == 0 || layout.align() > OWN {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        }
        let arena = if layout.align() >= LINE { THREADS } else { THREAD.get() };
        let at = USED[arena].fetch_add(layout.size().next_multiple_of(OWN), Ordering::Relaxed);
        match at + layout.size() <= SIZE {
            true => std::ptr::with_exposed_provenance_mut(base + arena * SIZE + at),
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let base = BASE.load(Ordering::Acquire);
        let ours = base != 0 && (base..base + SIZE * (THREADS + 1)).contains(&block.addr());
        if !ours {
            // SAFETY: it came from there, by the caller's promise with this layout.
            unsafe { System.dealloc(block, layout) };
        }
    }
}
