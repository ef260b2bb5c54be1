//! Hand-off: a bounded ring between two pollers, for frames to a port that the other one owns.
//!
//! One sender, one receiver, no lock and no read-modify-write. Each side keeps a copy of the other's index
//! and looks at the real one only when the copy says that it has to wait, and each tells of a batch at a time what it
//! did: so the lines of the two indexes move between cores once per batch, not once per frame (bench `sharing`, `crossing`).
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use arrayvec::ArrayVec;
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
    /// Puts as many of the values into the ring as there is room for, and tells of all at once. Others are not asked for.
    #[inline]
    pub fn send_each(&mut self, values: &mut impl ExactSizeIterator<Item = T>) {
        let room = self.room(values.len());
        for value in values.take(room) {
            // SAFETY: the slot at `tail` is free (there is room) and only the sender writes free slots.
            self.ring.slot(self.tail).with_mut(|slot| unsafe { (*slot).write(value) });
            self.tail = self.tail.wrapping_add(1);
        }
        self.ring.tail.store(self.tail, Ordering::Release);
    }

    /// How many values there is room for; looks anew if it seems fewer than are wanted.
    #[inline]
    fn room(&mut self, wanted: usize) -> usize {
        let room = |sender: &Self| sender.ring.slots.len() - sender.tail.wrapping_sub(sender.head_seen);
        if room(self) < wanted {
            self.head_seen = self.ring.head.load(Ordering::Acquire);
        }
        room(self)
    }
}

impl<T: Send> Receiver<T> {
    /// Takes the oldest values, as many as `to` has room for, and tells of all at once.
    #[inline]
    pub fn recv_into<const N: usize>(&mut self, to: &mut ArrayVec<T, N>) {
        if self.tail_seen.wrapping_sub(self.head) < to.remaining_capacity() {
            self.tail_seen = self.ring.tail.load(Ordering::Acquire);
        }
        let count = self.tail_seen.wrapping_sub(self.head).min(to.remaining_capacity());
        for _ in 0..count {
            // SAFETY: the slot at `head` was filled before `tail` passed it, and only the receiver empties slots. Nothing
            // here panics before `head` is told: there is room for the value.
            to.push(self.ring.slot(self.head).with(|slot| unsafe { (*slot).assume_init_read() }));
            self.head = self.head.wrapping_add(1);
        }
        self.ring.head.store(self.head, Ordering::Release);
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
            let mut values = 0..100_000u32;
            while !values.is_empty() {
                let batch = values.start..values.end.min(values.start + 5);
                let mut rest = batch.clone();
                tx.send_each(&mut rest);
                values.start = rest.start;
                std::thread::yield_now();
            }
        });
        let (mut next, mut some) = (0, ArrayVec::<u32, 3>::new());
        while next < 100_000 {
            rx.recv_into(&mut some);
            for value in some.drain(..) {
                assert_eq!(value, next);
                next += 1;
            }
            std::thread::yield_now();
        }
        sender.join().unwrap();
        assert!(rx.is_empty());
    }

    #[test]
    fn a_full_ring_leaves_values_where_they_are_and_a_dropped_one_frees_what_is_left() {
        let value = std::sync::Arc::new(());
        let (mut tx, rx) = ring(2);
        let mut values = vec![value.clone(); 3].into_iter();
        tx.send_each(&mut values);
        assert_eq!((values.len(), rx.len()), (1, 2));
        drop((tx, rx, values));
        assert_eq!(std::sync::Arc::strong_count(&value), 1);
    }
}
