//! Memory shared with the kernel: a ring of slots with a status word each (`TPACKET_V2`, `Documentation/networking/
//! packet_mmap.rst` of the kernel).
//!
//! Only the kernel and we see it, but what stands in it is checked as if it came from outside. A slot is the kernel's or
//! ours by its status, which is written last and read first. Blocks of `TPACKET_V3` would spare us a status a frame, but
//! are given to us when they are full or a timer of milliseconds ends.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::port::sockopt::{Failure, failed, set};

/// Bytes of a slot: a frame of 1,972 bytes, without its outer tag, and what the kernel puts in front of it.
pub(super) const SLOT: usize = 2048;
/// Bytes that the kernel allocates in one piece, if it can.
const BLOCK: usize = 64 << 10;

/// The slot is free: the kernel may fill one of a ring for receiving, we one of a ring for sending.
pub(super) const FREE: u32 = libc::TP_STATUS_KERNEL;

/// The slots of one ring.
#[derive(Debug)]
pub(super) struct Slots {
    base: NonNull<u8>,
    count: usize,
}

// SAFETY: the mapping is this value's alone, and lives as long.
unsafe impl Send for Slots {}

impl Slots {
    /// Has the kernel make a ring, `PACKET_RX_RING` or `PACKET_TX_RING`, of `count` slots; that is a multiple of 32. The socket must
    /// have no other ring.
    pub fn map(socket: &OwnedFd, ring: c_int, count: usize) -> Result<Slots, Failure> {
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: (count * SLOT / BLOCK) as u32,
            tp_frame_size: SLOT as u32,
            tp_frame_nr: count as u32,
        };
        set(socket, libc::SOL_PACKET, ring, &request).map_err(failed("make a ring"))?;
        let len = NonZeroUsize::new(count * SLOT).expect("a ring has slots");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses aliases nothing.
        let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, socket, 0) };
        Ok(Slots { base: base.map_err(failed("map a ring"))?.cast(), count })
    }

    /// Unmaps the ring for receiving and has the kernel go on without it.
    pub fn give_up(self, socket: &OwnedFd) -> Result<(), Errno> {
        drop(self);
        let none = libc::tpacket_req { tp_block_size: 0, tp_block_nr: 0, tp_frame_size: 0, tp_frame_nr: 0 };
        set(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &none)
    }

    /// The place behind this one.
    #[inline]
    pub fn after(&self, place: usize) -> usize {
        if place + 1 == self.count { 0 } else { place + 1 }
    }

    /// Whose the slot is. What was written before it is seen after.
    #[inline]
    pub fn status(&self, place: usize) -> u32 {
        self.word(place).load(Ordering::Acquire)
    }

    /// Says whose the slot is, after all that was read and written in it.
    #[inline]
    pub fn set_status(&mut self, place: usize, status: u32) {
        self.word(place).store(status, Ordering::Release);
    }

    /// The bytes of a slot that is ours. Of one that is the kernel's they are of no meaning.
    #[inline]
    pub fn bytes(&self, place: usize) -> &[u8; SLOT] {
        // SAFETY: the slot lies in the mapping. The kernel writes to it only between our giving it away, by `&mut self`, and
        // the status that says that it is ours again.
        unsafe { self.slot(place).cast().as_ref() }
    }

    /// The bytes of a slot that is ours. Its status, the first of them, is for `set_status`.
    #[inline]
    pub fn bytes_mut(&mut self, place: usize) -> &mut [u8; SLOT] {
        // SAFETY: as in `bytes`, and `&mut self` makes it the only reference.
        unsafe { self.slot(place).cast().as_mut() }
    }

    fn word(&self, place: usize) -> &AtomicU32 {
        // SAFETY: each slot begins with its status, aligned by the slot's size.
        unsafe { self.slot(place).cast().as_ref() }
    }

    #[inline]
    fn slot(&self, place: usize) -> NonNull<u8> {
        assert!(place < self.count);
        // SAFETY: inside the mapping, which has `count` slots.
        unsafe { self.base.add(place * SLOT) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.cast(), self.count * SLOT) };
    }
}
