//! Free chunks, which any thread takes and gives back without a lock: a stack (Treiber's), so that the chunk that was given back
//! last is taken first. What of the pool's memory was ever touched is what was in use at once, and it is warm: a queue goes
//! round all of it (ten AF_PACKET ports that carry TCP: 16 MiB of big frames instead of some 5).
//!
//! A take or a return costs two atomic operations that others may have to repeat. The number in the head counts both, so that one who
//! was held up between his look and his change notices whatever happened meanwhile, unless it is 2³² of them.

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// The part of a word that says which chunk is on top, from 1; 0 is none.
const TOP: u64 = 0xffff_ffff;
/// One more change.
const CHANGE: u64 = 1 << 32;

/// A stack of different numbers below a limit.
#[derive(Debug)]
pub struct Stack {
    head: CachePadded<AtomicU64>,
    len: AtomicUsize,
    /// Under each number the next, from 1.
    below: Box<[AtomicU64]>,
}

impl Stack {
    /// All numbers below `count`.
    pub fn full(count: u32) -> Stack {
        let below = (0..count).map(|number| AtomicU64::new(number.into())).collect();
        let head = CachePadded::new(AtomicU64::new(count.into()));
        Stack { head, len: AtomicUsize::new(count as usize), below }
    }

    /// How many there were a moment ago.
    pub fn count(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Takes one, if there is any.
    pub fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let number = (head & TOP).checked_sub(1)?;
            let next = self.below[number as usize].load(Ordering::Relaxed);
            match self.change(head, next) {
                Ok(()) => {
                    self.len.fetch_sub(1, Ordering::Relaxed);
                    return Some(number as u32);
                }
                Err(now) => head = now,
            }
        }
    }

    /// Puts one back that was taken.
    ///
    /// # Panics
    /// If it is not below the limit, or none was taken.
    pub fn push(&self, number: u32) {
        // Before anybody can take it, or it could be fewer than none.
        let before = self.len.fetch_add(1, Ordering::Relaxed);
        assert!(before < self.below.len(), "a chunk was given back twice");
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.below[number as usize].store(head & TOP, Ordering::Relaxed);
            match self.change(head, u64::from(number) + 1) {
                Ok(()) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Makes another the top, if nothing has changed since the look; else what there is now.
    fn change(&self, seen: u64, top: u64) -> Result<(), u64> {
        let new = (seen & !TOP).wrapping_add(CHANGE) | top;
        self.head.compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_last_is_taken_first() {
        let stack = Stack::full(3);
        assert_eq!([stack.pop(), stack.pop()], [Some(2), Some(1)]);
        [2, 1].into_iter().for_each(|number| stack.push(number));
        assert_eq!(stack.count(), 3);
        assert_eq!([(); 4].map(|()| stack.pop()), [Some(1), Some(2), Some(0), None]);
        assert_eq!((stack.count(), Stack::full(0).pop()), (0, None));
    }

    #[test]
    fn each_is_one_threads_at_a_time() {
        use std::sync::atomic::AtomicBool;

        let stack = Stack::full(4);
        let taken = [(); 4].map(|()| AtomicBool::new(false));
        let work = || {
            for _ in 0..50_000 {
                let Some(number) = stack.pop() else { continue };
                assert!(!taken[number as usize].swap(true, Ordering::AcqRel));
                taken[number as usize].store(false, Ordering::Release);
                stack.push(number);
            }
        };
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(work))));
        assert_eq!(stack.count(), 4);
    }
}
