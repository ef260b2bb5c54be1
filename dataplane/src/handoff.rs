//! Hand-off: a bounded ring between two pollers, for frames to a port that the other one owns.
//!
//! One sender, one receiver, no lock and no read-modify-write. Each side keeps a copy of the other's index
//! and looks at the real one only when the copy says "full" or "empty", so the two lines move between cores
//! once per ring's worth of frames rather than once per frame.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use crossbeam::utils::CachePadded;

#[cfg(not(feature = "loom"))]
use crate::sync::CellExt;
use crate::sync::{Arc, AtomicUsize, Ordering, UnsafeCell};

struct Ring<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// Next slot to read; written by the receiver only. Indices run freely and wrap by the mask.
    head: CachePadded<AtomicUsize>,
    /// Next slot to write; written by the sender only.
    tail: CachePadded<AtomicUsize>,
}

// SAFETY: a slot is touched by the sender before `tail` passes it and by the receiver after; the
// release/acquire pair on `tail` (and on `head`, for reuse) orders the two.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> Ring<T> {
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }

    fn len(&self) -> usize {
        self.tail.load(Ordering::Acquire).wrapping_sub(self.head.load(Ordering::Acquire))
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let (head, tail) = (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        let mut index = head;
        while index != tail {
            // SAFETY: slots from head to tail hold values nobody took, and nobody else is left.
            self.slot(index).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            index = index.wrapping_add(1);
        }
    }
}

/// The sending end.
pub struct Sender<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    head_seen: usize,
}

/// The receiving end.
pub struct Receiver<T> {
    ring: Arc<Ring<T>>,
    head: usize,
    tail_seen: usize,
}

/// A ring of `capacity` slots.
///
/// # Panics
/// If `capacity` is not a power of two.
pub fn ring<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity.is_power_of_two(), "a ring of {capacity} slots: not a power of two");
    let ring = Arc::new(Ring {
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
    });
    let receiver = Receiver { ring: Arc::clone(&ring), head: 0, tail_seen: 0 };
    (Sender { ring, tail: 0, head_seen: 0 }, receiver)
}

impl<T: Send> Sender<T> {
    /// Puts a value into the ring.
    ///
    /// # Errors
    /// Gives it back if the ring is full.
    #[inline]
    pub fn send(&mut self, value: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head_seen) == self.ring.slots.len() {
            self.head_seen = self.ring.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head_seen) == self.ring.slots.len() {
                return Err(value);
            }
        }
        // SAFETY: the slot at `tail` is free (checked above) and only the sender writes free slots.
        self.ring.slot(self.tail).with_mut(|slot| unsafe { (*slot).write(value) });
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.store(self.tail, Ordering::Release);
        Ok(())
    }
}

impl<T: Send> Receiver<T> {
    /// Takes the oldest value.
    #[inline]
    pub fn recv(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.ring.tail.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        // SAFETY: the slot at `head` was filled before `tail` passed it, and only the receiver empties slots.
        let value = self.ring.slot(self.head).with(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        self.ring.head.store(self.head, Ordering::Release);
        Some(value)
    }

    /// How many values wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// True if nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_in_order_across_threads() {
        let (mut tx, mut rx) = ring(8);
        let sender = std::thread::spawn(move || {
            for i in 0..100_000u64 {
                while tx.send(i).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < 100_000 {
            match rx.recv() {
                Some(value) => {
                    assert_eq!(value, next);
                    next += 1;
                }
                None => std::thread::yield_now(),
            }
        }
        sender.join().unwrap();
        assert!(rx.is_empty());
    }

    #[test]
    fn a_full_ring_gives_the_value_back_and_a_dropped_one_frees_what_is_left() {
        let value = std::sync::Arc::new(());
        let (mut tx, rx) = ring(2);
        assert!(tx.send(value.clone()).is_ok() && tx.send(value.clone()).is_ok());
        assert!(tx.send(value.clone()).is_err());
        drop((tx, rx));
        assert_eq!(std::sync::Arc::strong_count(&value), 1);
    }
}
