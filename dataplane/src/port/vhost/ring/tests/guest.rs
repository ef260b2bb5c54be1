//! A guest whose rings are laid by hand: each field is written into the files that its memory is made of.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::eventfd::EfdFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::super::*;
use crate::port::vhost::memory::{Region, RegionSpec};
use crate::port::vhost::places::Places;
use crate::virtio::layout::{AVAIL, INDIRECT, NEXT, USED, WRITE};

/// Two regions that touch each other, then a hole.
pub(super) const BORDER: u64 = 0x20_000;
pub(super) const END: u64 = 0x60_000;
/// What the frontend adds to an address.
const USER: u64 = 0x7000_0000_0000;
/// Where the parts of the ring are. The descriptors of 1,024 entries fit.
pub(super) const DESCRIPTORS: u64 = 0x1000;
pub(super) const AVAILABLE: u64 = 0x6000;
pub(super) const USED_PART: u64 = 0x8000;
/// Where buffers are, so big, and far enough apart to lie in pages of their own.
pub(super) const BUFFERS: u64 = 0x10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Split,
    Packed,
}

pub(super) const BOTH: [Format; 2] = [Format::Split, Format::Packed];

/// A buffer: address, bytes.
pub(super) type Buffer = (u64, u32);

pub(super) struct Guest {
    pub files: [File; 2],
    pub memory: Arc<GuestMemory>,
    pub format: Format,
    pub size: u16,
    pub features: Features,
    pub call: Arc<EventFd>,
    /// [`WRITE`], or nothing: all its buffers are of one kind.
    pub direction: u16,
    /// Of a split ring the next free descriptor, of a packed one the next place.
    pub place: u16,
    pub wrap: bool,
    /// Of a split ring the available index, of a packed one the next id.
    pub count: u16,
    used: u16,
    used_wrap: bool,
    /// Places of chains that are with the device, first to last (packed rings).
    slots: std::collections::VecDeque<u16>,
}

impl Guest {
    pub(super) fn new(format: Format, size: u16, features: Features) -> Guest {
        let file = |len| {
            let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(len).unwrap();
            file
        };
        let files = [file(BORDER), file(END - BORDER)];
        let region = |file: &File, guest, len| {
            let spec = RegionSpec { guest, len, user: guest + USER, offset: 0 };
            Region::map(file.try_clone().unwrap(), spec).unwrap()
        };
        let regions = vec![region(&files[0], 0, BORDER), region(&files[1], BORDER, END - BORDER)];
        let packed = if format == Format::Packed { Features::RING_PACKED } else { Features::NONE };
        Guest {
            files,
            memory: Arc::new(GuestMemory::new(regions).unwrap()),
            format,
            size,
            features: features | packed,
            call: Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()),
            direction: 0,
            place: 0,
            wrap: true,
            count: 0,
            used: 0,
            used_wrap: true,
            slots: std::collections::VecDeque::new(),
        }
    }

    /// A guest whose buffers are there to be written.
    pub(super) fn receiving(format: Format, size: u16, features: Features) -> Guest {
        Guest { direction: WRITE, ..Guest::new(format, size, features) }
    }

    pub(super) fn setup(&self) -> Setup {
        Setup {
            memory: Arc::clone(&self.memory),
            parts: Parts {
                descriptors: DESCRIPTORS + USER,
                available: AVAILABLE + USER,
                used: USED_PART + USER,
                log: None,
            },
            size: self.size,
            base: match self.format {
                Format::Split => 0,
                Format::Packed => 0x8000_8000,
            },
            witness: Witness::Frontend,
            features: self.features,
            call: Some(Arc::clone(&self.call)),
            log: None,
            inflight: None,
            keeper: Places::private().ok().map(|places| places.keeper(0)),
        }
    }

    pub(super) fn ring(&self) -> Ring {
        Ring::start(self.setup()).unwrap()
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        let first = bytes.len().min(BORDER.saturating_sub(at) as usize);
        self.files[0].write_all_at(&bytes[..first], at).unwrap();
        if first < bytes.len() {
            self.files[1].write_all_at(&bytes[first..], at + first as u64 - BORDER).unwrap();
        }
    }

    pub(super) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let first = len.min(BORDER.saturating_sub(at) as usize);
        self.files[0].read_exact_at(&mut bytes[..first], at).unwrap();
        if first < len {
            self.files[1].read_exact_at(&mut bytes[first..], at + first as u64 - BORDER).unwrap();
        }
        bytes
    }

    pub(super) fn write16(&self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    pub(super) fn read16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    /// Sixteen bytes of a descriptor. The last fields are flags and next, or id and flags.
    pub(super) fn descriptor(&self, at: u64, (addr, len): Buffer, last: [u16; 2]) {
        let rest = u64::from(len) | u64::from(last[0]) << 32 | u64::from(last[1]) << 48;
        self.write(at, &[addr.to_le_bytes(), rest.to_le_bytes()].concat());
    }

    /// Makes a chain available.
    pub(super) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let flags = self.direction;
        self.offer_raw(&buffers.iter().map(|&buffer| (buffer, flags)).collect::<Vec<_>>())
    }

    /// Makes a chain available whose last descriptor refers to a table at `at` with `buffers`; `before` come first.
    pub(super) fn offer_table(&mut self, before: &[Buffer], at: u64, buffers: &[Buffer]) -> u16 {
        for (&buffer, index) in buffers.iter().zip(0u16..) {
            let next = if usize::from(index) + 1 < buffers.len() { NEXT } else { 0 };
            let last = match self.format {
                Format::Split => [self.direction | next, index + 1],
                Format::Packed => [0, self.direction],
            };
            self.descriptor(at + 16 * u64::from(index), buffer, last);
        }
        let mut chain: Vec<_> = before.iter().map(|&buffer| (buffer, self.direction)).collect();
        chain.push(((at, 16 * buffers.len() as u32), INDIRECT));
        self.offer_raw(&chain)
    }

    /// Makes a chain available whose descriptors have these flags, beside NEXT.
    pub(super) fn offer_raw(&mut self, chain: &[(Buffer, u16)]) -> u16 {
        match self.format {
            Format::Split => self.offer_split(chain),
            Format::Packed => self.offer_packed(chain),
        }
    }

    fn offer_split(&mut self, chain: &[(Buffer, u16)]) -> u16 {
        let head = self.place;
        for (index, &(buffer, flags)) in chain.iter().enumerate() {
            let next = (self.place + 1) % self.size;
            let more = if index + 1 < chain.len() { NEXT } else { 0 };
            self.descriptor(DESCRIPTORS + 16 * u64::from(self.place), buffer, [flags | more, next]);
            self.place = next;
        }
        self.write16(AVAILABLE + 4 + 2 * u64::from(self.count % self.size), head);
        self.count = self.count.wrapping_add(1);
        self.write16(AVAILABLE + 2, self.count);
        head
    }

    fn offer_packed(&mut self, chain: &[(Buffer, u16)]) -> u16 {
        let id = self.count;
        self.count = self.count.wrapping_add(1);
        for (index, &(buffer, flags)) in chain.iter().enumerate() {
            let more = if index + 1 < chain.len() { NEXT } else { 0 };
            let whose = if self.wrap { AVAIL } else { USED };
            self.descriptor(DESCRIPTORS + 16 * u64::from(self.place), buffer, [id, flags | more | whose]);
            self.place += 1;
            if self.place == self.size {
                (self.place, self.wrap) = (0, !self.wrap);
            }
        }
        self.slots.push_back(chain.len() as u16);
        id
    }

    /// Chains that were given back since the last time: their names and bytes written.
    pub(super) fn used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        match self.format {
            Format::Split => {
                while self.used != self.read16(USED_PART + 2) {
                    let element = self.read(USED_PART + 4 + 8 * u64::from(self.used % self.size), 8);
                    let half = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
                    used.push((half(0) as u16, half(4)));
                    self.used = self.used.wrapping_add(1);
                }
            }
            Format::Packed => {
                while let Some(slots) = self.slots.front().copied()
                    && let Some(element) = self.used_packed()
                {
                    used.push(element);
                    self.slots.pop_front();
                    self.used += slots;
                    if self.used >= self.size {
                        (self.used, self.used_wrap) = (self.used - self.size, !self.used_wrap);
                    }
                }
            }
        }
        used
    }

    fn used_packed(&self) -> Option<(u16, u32)> {
        let bytes = self.read(DESCRIPTORS + 16 * u64::from(self.used), 16);
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let mine = if self.used_wrap { AVAIL | USED } else { 0 };
        let is_used = half(14) & (AVAIL | USED) == mine;
        is_used.then(|| (half(12), u32::from(half(8)) | u32::from(half(10)) << 16))
    }

    /// How often it was called since the last time.
    pub(super) fn calls(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }
}
