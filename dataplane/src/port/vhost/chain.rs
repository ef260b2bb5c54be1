//! Chains of descriptors as a frame's bytes: what both formats of rings have in common.
//!
//! A format ([`Chains`]) finds chains and gives them back. Most chains are *plain*: one descriptor, no table, in one piece of
//! the guest's memory. Those are looked up a batch at a time ([`Chains::plain`]). The others are *walked* one by one into
//! [`Pieces`].
//!
//! A walk costs at most [`LINKS_MAX`] steps.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use arrayvec::ArrayVec;

use super::copy::{LINE, copy, prefetch, prefetch_to_write, read};
use super::log::DirtyLog;
use super::memory::{GuestMemory, Span};
use super::ring::Fault;
use crate::batch::BATCH;
use crate::virtio::NET_HEADER;
use crate::virtio::layout::{Descriptor, WRITE};

/// The most buffers of a chain, in its ring and in its table, as for QEMU (`VIRTQUEUE_MAX_SIZE`) and Linux (`UIO_MAXIOV`). A
/// ring may have more entries, but a guest that has us look at each for one frame holds up everybody else.
const LINKS_MAX: u16 = 1024;

/// Who writes the buffers of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The guest: its transmit ring.
    FromGuest,
    /// We: its receive ring.
    ToGuest,
}

impl Direction {
    /// The flags of a plain descriptor.
    #[inline(always)]
    pub(super) fn flags(self) -> u16 {
        match self {
            Direction::FromGuest => 0,
            Direction::ToGuest => WRITE,
        }
    }
}

/// A chain that is with us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// The driver's name for it: a split ring's first descriptor, or the buffer id of a packed ring.
    pub id: u16,
    /// Entries of the ring that it takes.
    pub slots: u16,
    /// Bytes of its buffers.
    pub len: u64,
}

/// A plain chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain {
    /// Its buffer in our memory.
    pub base: NonNull<u8>,
    /// Its buffer in the guest's.
    pub guest: u64,
    /// Bytes; at least 1.
    pub len: u32,
    /// As [`Chain::id`].
    pub id: u16,
}

/// Plain chains, one behind the other.
pub(super) type Run = ArrayVec<Plain, BATCH>;

/// Why there are no more plain chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// As many as were asked for, or no more chains at all.
    Enough,
    /// The next chain is to be walked.
    Walk,
}

/// A ring of either format. Chains are given back in the order in which they came (which is all that IN_ORDER asks for,
/// virtio 1.2 sections 2.7.9 and 2.8.8), so one position is both where we read and where we write.
pub(super) trait Chains {
    /// A position in the ring.
    type Cursor: Copy;

    /// The next chain's position.
    fn cursor(&self) -> Self::Cursor;

    /// Adds the next chains to an empty `run`, at most `most`, up to the first that is not plain or whose length
    /// `fits` (by its place in the run) does not like. They are not taken. A ring that tracks what is in flight has none.
    fn plain(
        &mut self,
        most: usize,
        pieces: &Pieces,
        run: &mut Run,
        fits: impl Fn(usize, u32) -> bool,
    ) -> Stop;

    /// Adds the chain at the cursor to the pieces, and moves the cursor behind it. It is not taken. `None`: there is none.
    ///
    /// # Errors
    /// [`Fault`]; the pieces are of no use then.
    fn walk(&mut self, cursor: &mut Self::Cursor, pieces: &mut Pieces) -> Result<Option<Chain>, Fault>;

    /// The next chains are about to be used: for a frontend that keeps track of what is in flight.
    fn begin(&mut self, chains: &[Chain]);

    /// Takes the next chain and gives it back, with so many bytes written. The guest sees it once it is published.
    fn give_back(&mut self, chain: Chain, written: u32);

    /// The same for all chains of (the front of) the run that [`Chains::plain`] found last. `written` is by place in the run.
    fn give_back_run(&mut self, run: &[Plain], written: impl Fn(usize) -> u32);

    /// Shows the guest what was given back since the last time: how many entries of the ring.
    fn publish(&mut self, log: Option<&DirtyLog>) -> u16;

    /// Does the guest want to be told of the `count` entries that were published last? A fence stands between.
    fn wants_call(&self, count: u16) -> bool;
}

/// A contiguous part of a chain.
#[derive(Debug, Clone, Copy)]
struct Piece {
    base: NonNull<u8>,
    guest: u64,
    len: usize,
}

// SAFETY: a piece is where bytes are, in a mapping that does not belong to a thread.
unsafe impl Send for Piece {}

/// The buffers of chains in our memory, in order.
pub(super) struct Pieces {
    /// Where they lie. As long as this lives the pieces do.
    pub memory: std::sync::Arc<GuestMemory>,
    pub direction: Direction,
    list: Vec<Piece>,
    /// Bytes in the list.
    stored: usize,
    /// Bytes that are wanted; no more are looked up.
    wanted: usize,
    /// Bytes of the chain that is being walked; 32 bits times a chain's length do not overflow it.
    chain: u64,
    /// Buffers of that chain.
    links: u16,
    /// Descriptors looked at in this batch.
    steps: usize,
    /// The piece to go on with, and bytes of it that are done.
    at: (usize, usize),
}

impl Pieces {
    pub(super) fn new(memory: std::sync::Arc<GuestMemory>, direction: Direction) -> Pieces {
        Pieces {
            memory,
            direction,
            list: Vec::with_capacity(64),
            stored: 0,
            wanted: 0,
            chain: 0,
            links: 0,
            steps: 0,
            at: (0, 0),
        }
    }

    /// Asks for the lines of a plain chain's buffer that are touched first, so that they come while descriptors are read.
    ///
    /// DPDK's driver puts the header at the end of one line and the frame at the begin of the next; Linux's has both in one.
    /// A header for the guest is mostly the same as the last that stood there, and then only read.
    #[inline(always)]
    pub(super) fn ask(&self, span: Span) {
        let base = span.base.as_ptr();
        prefetch(base);
        match self.direction {
            Direction::FromGuest => prefetch(base.wrapping_add(LINE.min(span.len - 1))),
            Direction::ToGuest => prefetch_to_write(base.wrapping_add(NET_HEADER)),
        }
    }

    /// Forgets all; of what comes now, the first `wanted` bytes are to be used.
    pub(super) fn begin(&mut self, wanted: usize) {
        self.list.clear();
        (self.stored, self.wanted, self.at) = (0, wanted, (0, 0));
    }

    /// Bytes that are there, at most those wanted.
    pub(super) fn stored(&self) -> usize {
        self.stored
    }

    /// Were more than `most` descriptors looked at in this batch?
    pub(super) fn is_tired(&self, most: usize) -> bool {
        self.steps > most
    }

    /// Begins another batch.
    pub(super) fn rest(&mut self) {
        self.steps = 0;
    }

    /// Another chain begins.
    pub(super) fn begin_chain(&mut self) {
        (self.chain, self.links) = (0, 0);
    }

    /// Bytes of the chain that was added last.
    pub(super) fn chain_len(&self) -> u64 {
        self.chain
    }

    /// Adds a buffer, given as address and length: descriptor `index` has it.
    pub(super) fn add(&mut self, (addr, len): (u64, u32), flags: u16, index: u16) -> Result<(), Fault> {
        self.steps += 1;
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Fault::ChainLength(index));
        }
        if flags & WRITE != self.direction.flags() {
            return Err(Fault::Direction(index));
        }
        self.chain += u64::from(len);
        let mut left = (len as usize).min(self.wanted - self.stored);
        let mut guest = addr;
        while left > 0 {
            let outside = Fault::Address { guest: addr, len };
            let span = self.memory.at(guest, left).ok_or(outside)?;
            self.list.push(Piece { base: span.base, guest, len: span.len });
            (self.stored, left) = (self.stored + span.len, left - span.len);
            guest = guest.checked_add(span.len as u64).ok_or(outside)?;
        }
        Ok(())
    }

    /// The next bytes go to `to`, whose room is `len`; there are that many.
    ///
    /// # Safety
    /// `to` has room for them, which is not the guest's.
    pub(super) unsafe fn take(&mut self, to: *mut u8, len: usize) {
        // SAFETY: `each` gives places of live pieces, and the caller has the room.
        self.each(len, |piece, done, part| unsafe { copy(piece, to.add(done), part) });
    }

    /// The next bytes come from `bytes`; there is room for them.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        // SAFETY: `each` gives places of live pieces; `bytes` are not the guest's.
        self.each(bytes.len(), |piece, done, part| unsafe { copy(bytes.as_ptr().add(done), piece, part) });
    }

    /// The next `len` bytes, piece by piece: where they lie, how many came before, how many they are.
    fn each(&mut self, len: usize, mut part: impl FnMut(*mut u8, usize, usize)) {
        let (mut index, mut skip) = self.at;
        let mut done = 0;
        while done < len {
            let piece = self.list[index];
            let now = (piece.len - skip).min(len - done);
            // SAFETY: `skip` bytes of the piece are done, and it is longer.
            part(unsafe { piece.base.as_ptr().add(skip) }, done, now);
            (done, skip) = (done + now, skip + now);
            if skip == piece.len {
                (index, skip) = (index + 1, 0);
            }
        }
        self.at = (index, skip);
    }

    /// Logs all pieces as written.
    pub(super) fn mark(&self, log: &DirtyLog) {
        self.list.iter().for_each(|piece| log.mark(piece.guest, piece.len));
    }
}

/// An indirect table.
pub(super) struct Table {
    guest: u64,
    /// Its address in our memory, if it is in one piece.
    base: Option<NonNull<u8>>,
    /// Descriptors in it.
    pub entries: u16,
}

impl Table {
    /// The table that a descriptor of a ring of `size` entries refers to.
    pub(super) fn of(memory: &GuestMemory, (guest, len): (u64, u32), size: u16) -> Result<Table, Fault> {
        let entries = len / size_of::<Descriptor>() as u32;
        if entries == 0 || entries > size.into() || len % size_of::<Descriptor>() as u32 != 0 {
            return Err(Fault::Indirect { len });
        }
        let outside = Fault::Address { guest, len };
        guest.checked_add(len.into()).ok_or(outside)?;
        let span = memory.at(guest, len as usize).ok_or(outside)?;
        let base = (span.len == len as usize).then_some(span.base);
        Ok(Table { guest, base, entries: entries as u16 })
    }

    /// The two words of entry `index`, which is less than `entries`.
    pub(super) fn entry(&self, memory: &GuestMemory, index: u16) -> Result<[u64; 2], Fault> {
        debug_assert!(index < self.entries);
        let at = usize::from(index) * size_of::<Descriptor>();
        match self.base {
            // SAFETY: the table is in one piece there, and the index in the table.
            Some(base) => Ok(unsafe { read(base.as_ptr().add(at)) }),
            None => scattered(memory, self.guest + at as u64),
        }
    }
}

/// A descriptor that may lie across the end of a region.
#[cold]
fn scattered(memory: &GuestMemory, guest: u64) -> Result<[u64; 2], Fault> {
    let mut words = [0u64; 2];
    let mut done = 0;
    while done < size_of_val(&words) {
        let left = size_of_val(&words) - done;
        let outside = Fault::Address { guest, len: size_of_val(&words) as u32 };
        let span = memory.at(guest + done as u64, left).ok_or(outside)?;
        // SAFETY: the span has its bytes, and the words have room for what is left.
        unsafe { copy(span.base.as_ptr(), words.as_mut_ptr().cast::<u8>().add(done), span.len) };
        done += span.len;
    }
    Ok(words)
}
