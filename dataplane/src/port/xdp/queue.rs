//! One queue: frames between a socket's rings and batches.
//!
//! Small frames are received and sent in place. A frame that lies in several chunks is gathered into a big one,
//! and a big one is cut over several chunks: one copy each. xsk-rs has descriptors only for where a chunk's data
//! begins, so a frame whose head was moved (a VLAN tag pushed or popped) is moved back before it is sent.
//!
//! Behind a full batch there are likely more frames. In copy mode, where the kernel sends only when it is called, up to
//! [`GATHERED`] descriptors wait for each other then, two turns at the longest: a call sends them all (Linux 6.17).
//!
//! What arrives while nobody asks waits in the chunks that the queue has lent for receiving: its share of the pool
//! ([`SharedUmem::share`], 512 of the default one) and, once it was found with a backlog ([`BACKLOG`]), by and by up to
//! [`SharedUmem::ample_share`], 2,048, as long as the pool has plenty, until it had none for ten seconds. What comes beyond that is
//! lost, and counted. One that had no backlog does not tie down what others may need: chunks come back from the kernel only with a
//! frame in them. (What that won: `make bench`, `wires/rfc2544-60`, median of eight
//! rounds in turns on a shared machine: 0.16 Mpps without, 0.47 with it, Open vSwitch 0.45.)

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arrayvec::ArrayVec;
use nix::errno::Errno;
use xsk_rs::FrameDesc;

use super::lent::Lent;
use super::unfinished::{Uncuttable, Unfinished};
use crate::batch::{BATCH, Batch};
use crate::frame::umem::{Rings, SharedUmem, TX_RING};
use crate::frame::{Chunk, Frame, FrameCache, HEADROOM, SMALL};
use crate::port::vhost::copy::prefetch;
use crate::port::{Counters, PortError, Sent};

/// Bytes of a frame that one chunk holds.
pub const CHUNK_ROOM: usize = SMALL - HEADROOM;
/// The kernel takes no frame of more parts for sending (`MAX_SKB_FRAGS`, one of them is the head).
const MAX_PARTS: usize = 17;
/// `XDP_PKT_CONTD` of `linux/if_xdp.h`: the frame goes on in the next descriptor.
const CONTINUED: u32 = 1;
/// Descriptors that full batches may gather on the transmit ring before the kernel is told. A forwarder like
/// `benches/xdp_floor.rs` that takes 32, 64 and 128 at a time between veth pairs: 0.88, 0.97 and 0.93 Mpps.
const GATHERED: usize = 2 * BATCH;
/// Chunks that a queue lends for receiving though hardly any is left, since others hold what they were given when there were plenty.
const LEAST: usize = 2 * BATCH;
/// After so many full batches in a row a queue has a backlog: its poller was away for a while, as a neighbour of the core has
/// it be. How long it may be away without a loss is how much the queue holds.
const BACKLOG: u32 = 4;
/// After how many looks at its counters, two a second, a queue without a backlog holds no more than its share again: chunks that
/// come round less often are colder, and 100,000 frames a second wait for 0.3 µs longer (`make bench`, `wires/latency-100kpps`).
const CALM: u32 = 20;
/// After how many empty polls the interface is looked at: one system call in 256.
const LOOK_EVERY: u32 = 256;

/// After closing a zero-copy socket the kernel takes the chunks from the driver in the background
/// (`xp_release_deferred`), and nothing tells when it has.
const DRIVER_DRAINS: Duration = Duration::from_secs(1);

/// The rings of a queue, and the chunks that lie in them.
pub struct Queue {
    rings: Rings,
    umem: Arc<SharedUmem>,
    lent: Lent,
    /// Chunks lent for receiving.
    receiving: usize,
    /// Chunks to lend for receiving.
    goal: usize,
    /// Full batches that came in a row.
    full: u32,
    /// Looks at the counters since the last backlog.
    calm: u32,
    /// Chunks lent for sending.
    sending: usize,
    /// The kernel did not take all of the transmit ring.
    unsent: bool,
    held: Held,
    gather: Gather,
    unfinished: Option<Unfinished>,
    empty_polls: u32,
    gone: Option<Errno>,
    descs: [FrameDesc; BATCH],
    to_send: Vec<FrameDesc>,
    /// Frames lost for want of a big one.
    missed: u64,
    /// Frames longer than a big one, or several in one that cannot be told apart.
    broken: u64,
}

/// Descriptors on the transmit ring of which the kernel was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    None,
    /// So many, and the last came since the queue was asked.
    Fresh(usize),
    /// So many, and none came since.
    Stale(usize),
}

impl Held {
    fn count(self) -> usize {
        match self {
            Held::None => 0,
            Held::Fresh(count) | Held::Stale(count) => count,
        }
    }
}

/// A frame of several chunks, on its way in.
enum Gather {
    No,
    Frame(Frame),
    /// The rest of a frame there is no room for.
    Skip,
}

impl Queue {
    pub fn new(umem: Arc<SharedUmem>, rings: Rings, unfinished: Option<Unfinished>) -> Queue {
        Queue {
            rings,
            lent: Lent::new(umem.chunks()),
            goal: umem.share(),
            umem,
            receiving: 0,
            full: 0,
            calm: 0,
            sending: 0,
            unsent: false,
            held: Held::None,
            gather: Gather::No,
            unfinished,
            empty_polls: 0,
            gone: None,
            descs: [FrameDesc::default(); BATCH],
            to_send: Vec::with_capacity(TX_RING as usize),
            missed: 0,
            broken: 0,
        }
    }

    pub fn rings(&self) -> &Rings {
        &self.rings
    }

    pub fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.grow_stale();
        let room = batch.remaining_capacity();
        #[allow(unsafe_code)]
        // SAFETY: the descriptors are only written, and the ring is of the UMEM that they will belong to.
        let count = unsafe { self.rings.rx.consume(&mut self.descs[..room]) };
        let first = batch.len();
        for i in 0..count {
            let desc = self.descs[i];
            batch.extend(self.receive(frames, desc).inspect(|frame| prefetch(frame.bytes().as_ptr())));
        }
        self.grow(count);
        self.stock(frames);
        self.finish(frames, batch, first);
        if count == 0 && room != 0 { self.rest(frames) } else { Ok(()) }
    }

    /// The frame that ends with this descriptor.
    fn receive(&mut self, frames: &mut FrameCache, desc: FrameDesc) -> Option<Frame> {
        let chunk = Chunk::of_umem(desc.addr());
        if !self.lent.take_back(chunk) {
            return None;
        }
        self.receiving -= 1;
        #[allow(unsafe_code)]
        // SAFETY: the chunk was lent to the kernel, which is done with it: `lent` knows.
        let frame = unsafe { frames.reclaim(chunk, desc.addr() % SMALL, desc.lengths().data()) };
        match (&self.gather, desc.has_more_frames()) {
            (Gather::No, false) => Some(frame),
            (_, more) => self.gather(frames, frame, more),
        }
    }

    /// Finds what the senders of the frames from `first` on left to do; those of which that is not known are dropped.
    #[inline]
    fn finish(&mut self, frames: &mut FrameCache, batch: &mut Batch, first: usize) {
        let Some(unfinished) = self.unfinished else { return };
        let mut at = first;
        while let Some(frame) = batch.get_mut(at) {
            match unfinished.mark(frame) {
                Ok(()) => at += 1,
                Err(Uncuttable) => {
                    self.broken += 1;
                    frames.free(batch.remove(at));
                }
            }
        }
    }

    #[cold]
    fn gather(&mut self, frames: &mut FrameCache, part: Frame, more: bool) -> Option<Frame> {
        self.gather = match std::mem::replace(&mut self.gather, Gather::Skip) {
            Gather::No => match frames.alloc_big() {
                Some(whole) => self.append(frames, whole, &part),
                None => {
                    self.missed += 1;
                    Gather::Skip
                }
            },
            Gather::Frame(whole) => self.append(frames, whole, &part),
            Gather::Skip => Gather::Skip,
        };
        frames.free(part);
        if more {
            return None;
        }
        match std::mem::replace(&mut self.gather, Gather::No) {
            Gather::Frame(whole) => Some(whole),
            _ => None,
        }
    }

    fn append(&mut self, frames: &mut FrameCache, mut whole: Frame, part: &Frame) -> Gather {
        let (at, end) = (whole.len(), whole.len() + part.len());
        if end > whole.room() {
            self.broken += 1;
            frames.free(whole);
            return Gather::Skip;
        }
        whole.set_len(end);
        whole.bytes_mut()[at..].copy_from_slice(part.bytes());
        Gather::Frame(whole)
    }

    /// After reception of so many descriptors: a queue with a backlog is to hold a batch more for each that it gives.
    #[inline]
    fn grow(&mut self, count: usize) {
        self.full = if count == BATCH { self.full.saturating_add(1) } else { 0 };
        if self.full >= BACKLOG {
            self.goal = (self.goal + BATCH).min(self.umem.ample_share());
            self.calm = 0;
        }
    }

    /// Keeps the fill ring stocked with this socket's share of the pool, or with more if it needs that and nobody else does.
    fn stock(&mut self, frames: &mut FrameCache) {
        let goal = self.goal.min(self.umem.ample_share());
        while self.receiving + BATCH <= goal {
            let is_ample = self.receiving + BATCH > self.umem.share();
            if is_ample && !frames.pool().has_plenty() || self.receiving >= LEAST && frames.pool().is_scarce()
            {
                return;
            }
            let chunks: ArrayVec<Chunk, BATCH> =
                (0..BATCH).map_while(|_| frames.alloc()).map(FrameCache::release).collect();
            let descs: ArrayVec<FrameDesc, BATCH> = chunks.iter().map(|c| self.umem.desc(*c, 0)).collect();
            #[allow(unsafe_code)]
            // SAFETY: we own the chunks and give them away here.
            let taken = unsafe { self.rings.fill.produce(&descs) };
            if taken == 0 {
                chunks.into_iter().for_each(|c| frames.free_chunk(c));
                return;
            }
            chunks.iter().for_each(|c| self.lent.lend(*c));
            self.receiving += taken;
        }
    }

    /// Descriptors that wait to be received.
    #[cfg(test)]
    pub fn waiting(&mut self) -> usize {
        self.rings.rx.nb_avail_exact() as usize
    }

    /// Has the kernel no chunk to put a frame into?
    pub fn is_starved(&self) -> bool {
        self.receiving == 0
    }

    /// Is there something to send that the interface had no room for?
    pub fn is_behind(&self) -> bool {
        self.unsent
    }

    /// Nothing arrived: time for what can wait.
    fn rest(&mut self, frames: &mut FrameCache) -> Result<(), PortError> {
        self.reap(frames);
        self.empty_polls = self.empty_polls.wrapping_add(1);
        if self.unsent || self.empty_polls.is_multiple_of(LOOK_EVERY) {
            self.kick();
        }
        if self.rings.features.zero_copy && self.rings.fill.needs_wakeup() {
            self.rings.wake_receive();
        }
        self.alive()
    }

    fn alive(&self) -> Result<(), PortError> {
        self.gone.map_or(Ok(()), |errno| Err(PortError::Gone(errno.into())))
    }

    pub fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.alive()?;
        self.reap(frames);
        let is_full = batch.is_full();
        let mut room = self.room(batch.iter().map(parts).sum());
        let fits = |frame: &&Frame| {
            let rest = room.checked_sub(parts(frame));
            room = rest.unwrap_or(room);
            rest.is_some()
        };
        let count = batch.iter().take_while(fits).count();
        let mut sent = Sent::default();
        for frame in batch.drain(..count) {
            let len = frame.len();
            if self.place(frames, frame) {
                sent.frames += 1;
                sent.bytes += len as u64;
            }
        }
        self.submit();
        if !is_full || !self.holds_back() {
            self.release();
        }
        Ok(sent)
    }

    /// Are there so few descriptors on the ring that they can wait for more?
    fn holds_back(&self) -> bool {
        self.rings.sends_all && !self.rings.features.zero_copy && self.held.count() < GATHERED
    }

    /// What nothing was added to since this was called last is sent.
    #[inline]
    fn grow_stale(&mut self) {
        match self.held {
            Held::None => {}
            Held::Fresh(count) => self.held = Held::Stale(count),
            Held::Stale(_) => self.release(),
        }
    }

    /// Wakes the kernel if there is something it was not told of, and it wants to be woken.
    pub fn release(&mut self) {
        if self.held == Held::None {
            return;
        }
        self.held = Held::None;
        if !self.rings.features.zero_copy || self.rings.tx.needs_wakeup() {
            self.kick();
        }
    }

    /// Free slots of the transmit ring, if possible `wanted` of them.
    fn room(&mut self, wanted: usize) -> usize {
        let free = self.rings.tx.nb_free(wanted as u32) as usize;
        free.min((TX_RING as usize).saturating_sub(self.sending))
    }

    /// Makes the descriptors of a frame; false if it cannot be sent at all.
    fn place(&mut self, frames: &mut FrameCache, mut frame: Frame) -> bool {
        if parts(&frame) > 1 || frame.chunk().is_big() {
            return self.cut(frames, frame);
        }
        frame.settle();
        let len = frame.len();
        self.send_chunk(FrameCache::release(frame), len, 0);
        true
    }

    #[cold]
    fn cut(&mut self, frames: &mut FrameCache, frame: Frame) -> bool {
        let count = parts(&frame);
        let first = self.to_send.len();
        if count == 1 || (self.rings.features.multi_buffer && count <= MAX_PARTS) {
            for (i, bytes) in frame.bytes().chunks(CHUNK_ROOM).enumerate() {
                let Some(part) = frames.from_bytes(bytes) else { break };
                let options = if i + 1 < count { CONTINUED } else { 0 };
                self.send_chunk(FrameCache::release(part), bytes.len(), options);
            }
        }
        frames.free(frame);
        let whole = self.to_send.len() - first == count;
        if !whole {
            for desc in self.to_send.drain(first..) {
                let chunk = Chunk::of_umem(desc.addr());
                self.lent.take_back(chunk);
                self.sending -= 1;
                frames.free_chunk(chunk);
            }
        }
        whole
    }

    fn send_chunk(&mut self, chunk: Chunk, len: usize, options: u32) {
        let mut desc = self.umem.desc(chunk, len);
        desc.set_options(options);
        self.to_send.push(desc);
        self.lent.lend(chunk);
        self.sending += 1;
    }

    /// Puts the descriptors on the ring.
    fn submit(&mut self) {
        if self.to_send.is_empty() {
            return;
        }
        #[allow(unsafe_code)]
        // SAFETY: the chunks are owned, and `lent` has them from now on.
        let taken = unsafe { self.rings.tx.produce(&self.to_send) };
        debug_assert_eq!(taken, self.to_send.len(), "there was room");
        self.to_send.clear();
        self.held = Held::Fresh(self.held.count() + taken);
    }

    /// Takes back what was sent.
    fn reap(&mut self, frames: &mut FrameCache) {
        while self.sending != 0 {
            // SAFETY: the descriptors are only written, and the ring is of the UMEM that they will belong to.
            #[allow(unsafe_code)]
            let count = unsafe { self.rings.comp.consume(&mut self.descs) };
            for desc in &self.descs[..count] {
                let chunk = Chunk::of_umem(desc.addr());
                if self.lent.take_back(chunk) {
                    self.sending -= 1;
                    frames.free_chunk(chunk);
                }
            }
            if count < self.descs.len() {
                return;
            }
        }
    }

    /// Makes the kernel work on the transmit ring. In copy mode one call sends some frames and stops at one the
    /// interface drops, so we call as long as it goes on.
    fn kick(&mut self) {
        let mut free = self.rings.tx.nb_free_exact();
        loop {
            self.unsent = false;
            match self.rings.wake_transmit() {
                Ok(()) => return,
                Err(errno @ (Errno::ENXIO | Errno::ENETDOWN | Errno::ENODEV)) => {
                    self.gone = Some(errno);
                    return;
                }
                Err(_) => self.unsent = true,
            }
            let before = std::mem::replace(&mut free, self.rings.tx.nb_free_exact());
            if before == free {
                return;
            }
        }
    }

    /// Looks what was lost, which is done twice a second: so it tells how time goes by, too.
    pub fn counters(&mut self) -> Counters {
        self.calm = self.calm.saturating_add(1);
        if self.calm > CALM {
            self.goal = self.umem.share();
        }
        // What the fill ring lacked is in `rx_dropped` too, for copy mode; for zero-copy it is no count of frames.
        let kernel = self.rings.statistics();
        Counters {
            rx_missed: self.missed + kernel.rx_dropped + kernel.rx_ring_full,
            rx_errors: self.broken + kernel.rx_invalid_descs,
        }
    }

    /// Closes the socket and gives back what was in its rings. Takes tens of milliseconds and more.
    pub fn close(mut self, frames: &mut FrameCache) {
        self.release();
        let Queue { rings, lent, gather, .. } = self;
        let zero_copy = rings.features.zero_copy;
        drop(rings); // only now has the kernel no chunk any more
        if zero_copy {
            thread::sleep(DRIVER_DRAINS);
        }
        lent.iter().for_each(|chunk| frames.free_chunk(chunk));
        if let Gather::Frame(frame) = gather {
            frames.free(frame);
        }
    }
}

/// How many descriptors a frame takes.
#[inline]
fn parts(frame: &Frame) -> usize {
    frame.len().div_ceil(CHUNK_ROOM).max(1)
}
