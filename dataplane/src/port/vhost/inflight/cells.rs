//! Numbers in memory that a frontend may read and write at any time.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::port::vhost::fault::Mapping;

/// A part of a mapping as numbers, aligned, at offsets in bytes. An offset outside of it reads 0 and is not written.
#[derive(Debug)]
pub struct Cells {
    mapping: Arc<Mapping>,
    from: usize,
    len: usize,
}

impl Cells {
    /// `len` bytes of a mapping.
    pub fn new(mapping: Arc<Mapping>, from: usize, len: usize) -> Cells {
        assert!(from.checked_add(len).is_some_and(|end| end <= mapping.len()), "cells in the mapping");
        Cells { mapping, from, len }
    }

    /// Reads a number.
    #[inline]
    pub fn get<N: Number>(&self, offset: usize) -> N {
        // SAFETY: `find` gives aligned bytes of the mapping, which lives as long as `self`.
        self.find::<N>(offset).map_or(N::default(), |at| unsafe { N::load(at) })
    }

    /// Writes a number, after all that was written before.
    #[inline]
    pub fn put<N: Number>(&self, offset: usize, value: N) {
        #[cfg(test)]
        super::tests::store();
        if let Some(at) = self.find::<N>(offset) {
            // SAFETY: as above.
            unsafe { N::store(at, value) };
        }
    }

    #[inline]
    fn find<N: Number>(&self, offset: usize) -> Option<*mut N> {
        let fits = offset.checked_add(size_of::<N>()).is_some_and(|end| end <= self.len);
        // SAFETY: `new` saw that the part is in the mapping, and the offset is in the part.
        let at = unsafe { self.mapping.base().as_ptr().add(self.from + if fits { offset } else { 0 }) };
        (fits && at.addr().is_multiple_of(size_of::<N>())).then_some(at.cast())
    }

    /// Did the frontend take a part of the memory away?
    pub fn is_torn(&self) -> bool {
        self.mapping.is_torn()
    }
}

/// A number that is read and written whole.
pub trait Number: Copy + Default {
    /// # Safety
    /// `at` is aligned and valid, and whoever else uses it does so atomically.
    unsafe fn load(at: *mut Self) -> Self;
    /// # Safety
    /// As [`Number::load`].
    unsafe fn store(at: *mut Self, value: Self);
}

macro_rules! numbers {
    ($($number:ty = $atomic:ty),*) => {$(
        impl Number for $number {
            #[inline]
            unsafe fn load(at: *mut Self) -> Self {
                // SAFETY: the caller's.
                unsafe { <$atomic>::from_ptr(at) }.load(Ordering::Acquire)
            }

            #[inline]
            unsafe fn store(at: *mut Self, value: Self) {
                // SAFETY: the caller's.
                unsafe { <$atomic>::from_ptr(at) }.store(value, Ordering::Release);
            }
        }
    )*};
}

numbers!(u8 = AtomicU8, u16 = AtomicU16, u32 = AtomicU32, u64 = AtomicU64);
