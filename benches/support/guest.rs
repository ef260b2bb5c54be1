//! One virtio ring of a guest, with both its ends. The driver here is the least there can be: buffers stay where they are, and it
//! only makes them available again. Rings have 256 entries, mergeable buffers and event indices, and no guest wants to
//! be called.

#![allow(unsafe_code)]

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;

use dataplane::batch::{BATCH, Batch};
use dataplane::frame::FrameCache;
use dataplane::port::Counters;
use dataplane::port::vhost::memory::{GuestMemory, Region, RegionSpec};
use dataplane::port::vhost::places::Places;
use dataplane::port::vhost::ring::{Parts, Ring, Setup, Witness};
use dataplane::virtio::NET_HEADER;
use dataplane::virtio::features::Features;
use dataplane::virtio::layout::{AVAIL, USED, WRITE};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SIZE: u16 = 256;
/// Where the parts of a ring, and its buffers, are in its guest's memory.
const DESCRIPTORS: u64 = 0;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x4000;
const BUFFERS: u64 = 0x10_000;
const BUFFER: u64 = 2048;
const MEMORY: u64 = BUFFERS + BUFFER * SIZE as u64;
/// What a mergeable receive buffer has; transmit buffers are as long as their frame.
const ROOM: u32 = 1536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Split,
    Packed,
}

/// One ring of a guest.
pub struct Guest {
    ring: Ring,
    memory: Arc<GuestMemory>,
    format: Format,
    flags: u16,
    len: u32,
    /// The next entry, and the wrap counter.
    next: u16,
    wrap: bool,
}

impl Guest {
    /// One that it sends frames of so many bytes by.
    pub fn sending(format: Format, len: usize) -> Guest {
        Guest::new(format, 0, (NET_HEADER + len) as u32)
    }

    /// One that it receives by.
    pub fn receiving(format: Format) -> Guest {
        Guest::new(format, WRITE, ROOM)
    }

    /// With all descriptors laid: `flags` say whose buffers they are, `len` how long.
    fn new(format: Format, flags: u16, len: u32) -> Guest {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).expect("memory"));
        file.set_len(MEMORY).expect("memory");
        let spec = RegionSpec { guest: 0, len: MEMORY, user: 0, offset: 0 };
        let region = Region::map(file, spec).expect("a region");
        let memory = Arc::new(GuestMemory::new(vec![region]).expect("a memory"));
        let ring = Ring::start(setup(format, Arc::clone(&memory))).expect("a ring");
        let guest = Guest { ring, memory, format, flags, len, next: 0, wrap: true };
        for index in 0..SIZE {
            let at = DESCRIPTORS + 16 * u64::from(index);
            guest.store(at, BUFFERS + BUFFER * u64::from(index));
            if format == Format::Split {
                guest.store(at + 8, u64::from(len) | u64::from(flags) << 32);
                guest.store(DRIVER + 4 + 2 * u64::from(index), index);
            }
        }
        // An event far behind, or event suppression: it does not want to be called.
        guest.store(DRIVER + 4 + 2 * u64::from(SIZE), 0x8000u16);
        if format == Format::Packed {
            guest.store(DRIVER, 1u32 << 16);
        }
        guest
    }

    /// Takes a batch of frames out of the ring.
    pub fn receive(&mut self, frames: &mut FrameCache, batch: &mut Batch) {
        self.refill();
        self.ring.receive(frames, batch, &mut Counters::default()).expect("a sound ring");
        assert_eq!(batch.len(), BATCH);
    }

    /// Puts a batch of frames into it.
    pub fn send(&mut self, frames: &mut FrameCache, batch: &mut Batch) {
        self.refill();
        let sent = self.ring.send(frames, batch).expect("a sound ring");
        assert_eq!(black_box(sent).frames, BATCH as u32);
    }

    fn store<T>(&self, at: u64, value: T) {
        let span = self.memory.at(at, size_of::<T>()).expect("an address of the guest");
        // SAFETY: the span has the bytes of a `T`, which the device's side only reads by raw pointers too.
        unsafe { span.base.as_ptr().cast::<T>().write_volatile(value) };
    }

    /// Makes a batch of buffers available, once more.
    fn refill(&mut self) {
        match self.format {
            Format::Split => {
                self.next = self.next.wrapping_add(BATCH as u16);
                self.store(DRIVER + 2, self.next);
            }
            Format::Packed => {
                let whose = if self.wrap { AVAIL } else { USED };
                for index in self.next..self.next + BATCH as u16 {
                    let rest = u64::from(index) << 32 | u64::from(self.flags | whose) << 48;
                    self.store(DESCRIPTORS + 16 * u64::from(index) + 8, u64::from(self.len) | rest);
                }
                self.next += BATCH as u16;
                if self.next == SIZE {
                    (self.next, self.wrap) = (0, !self.wrap);
                }
            }
        }
    }
}

fn setup(format: Format, memory: Arc<GuestMemory>) -> Setup {
    let modern = Features::VERSION_1 | Features::MRG_RXBUF | Features::EVENT_IDX | Features::INDIRECT_DESC;
    let call = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("a descriptor");
    Setup {
        memory,
        parts: Parts { descriptors: DESCRIPTORS, available: DRIVER, used: DEVICE, log: None },
        size: SIZE,
        witness: Witness::Frontend,
        base: if format == Format::Packed { 0x8000_8000 } else { 0 },
        features: if format == Format::Packed { modern | Features::RING_PACKED } else { modern },
        call: Some(Arc::new(call)),
        log: None,
        inflight: None,
        keeper: Places::private().ok().map(|places| places.keeper(0)),
    }
}
