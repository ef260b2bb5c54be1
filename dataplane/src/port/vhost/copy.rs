//! Bytes between the guest's memory and ours.
//!
//! The guest writes its memory whenever it likes, so nothing here makes a reference to it, and what decides something is
//! read once: behind each read stands a fence for the compiler, so that it cannot read again instead of remembering.
//!
//! Most frames are short. Up to [`WIDE`] bytes are moved by a few loads and stores of 16 bytes that may overlap, in
//! line, where a call of the C library's `memcpy` would cost more than the bytes.

#![allow(unsafe_code)]

use std::ptr::copy_nonoverlapping;
use std::sync::atomic::{Ordering, compiler_fence};

/// Bytes of a line of the cache.
pub(super) const LINE: usize = 64;
/// The most bytes that are moved in line.
const WIDE: usize = 128;

/// Copies `len` bytes.
///
/// # Safety
/// As [`copy_nonoverlapping`]; one of both may be shared with a guest.
#[inline(always)]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: each block lies in the first `len` bytes, by the branch it stands in.
    unsafe {
        match len {
            65..=WIDE => ends::<64>(from, to, len),
            33..=64 => ends::<32>(from, to, len),
            16..=32 => ends::<16>(from, to, len),
            _ => copy_nonoverlapping(from, to, len),
        }
    }
}

/// The first and the last `N` bytes of `len`, which are all if `len` is from `N` to `2 * N`.
///
/// # Safety
/// As [`copy`].
#[inline(always)]
unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: `len` is at least `N`.
    unsafe {
        copy_nonoverlapping(from, to, N);
        copy_nonoverlapping(from.add(len - N), to.add(len - N), N);
    }
}

/// Reads a value of any alignment, once.
///
/// # Safety
/// `from` has the bytes of a `T`, and any bytes are one.
#[inline(always)]
pub(super) unsafe fn read<T: Copy>(from: *const u8) -> T {
    // SAFETY: the caller's word.
    let value = unsafe { from.cast::<T>().read_unaligned() };
    compiler_fence(Ordering::SeqCst);
    value
}

/// Asks for a line, to read it.
#[inline(always)]
pub(in crate::port) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is allowed and changes nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for a line, to write it. In assembly, since the compiler makes a prefetch to read of it where it does not know
/// whether the processor has this one; one that has not does nothing instead.
#[inline(always)]
pub(super) fn prefetch_to_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_is_copied_whole_and_nothing_beside_it() {
        let from: Vec<u8> = (0..300).map(|i| i as u8 | 1).collect();
        for len in 0..300 {
            let mut to = vec![0; 302];
            // SAFETY: both vectors have that many bytes.
            unsafe { copy(from.as_ptr(), to.as_mut_ptr().add(1), len) };
            assert_eq!((to[0], &to[1..=len], to[len + 1]), (0, &from[..len], 0));
        }
    }
}
