//! Frames out of chains and into chains, a batch at a time, for either format of rings.
//!
//! Plain chains go through in runs: all descriptors of a run are read and their buffers asked for before the first byte is
//! copied. A chain that is not plain is walked, and then the next run begins.
//!
//! The guest sees nothing of a batch before all of it is done, and is called at most once. What a run gives back is written
//! behind its copies, by positions in registers: to read the position from the ring again after each frame waited, by a store
//! that could not be forwarded, for all stores to the guest's lines before it (72 % of the samples of `tx` in testpmd's loop
//! of 60 bytes were at that load).
//!
//! Worst case: a batch looks at twice [`STEPS_MAX`] descriptors and one chain more.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nix::sys::eventfd::EventFd;

use super::call;
use super::chain::{Chain, Chains, Direction, Pieces, Plain, Run, Stop};
use super::copy::{copy, read};
use super::log::DirtyLog;
use super::ring::{Fault, Setup};
use crate::batch::Batch;
use crate::frame::{BIG, Frame, FrameCache, HEADROOM, SMALL};
use crate::port::{Counters, Sent, vnet};
use crate::virtio::NET_HEADER;
use crate::virtio::features::Features;

/// The shortest frame: an Ethernet header.
const FRAME_MIN: usize = 14;
/// The longest frame that a run takes: what a small chunk holds.
const PLAIN_MAX: usize = SMALL - HEADROOM;
/// The longest frame.
const FRAME_MAX: usize = BIG - HEADROOM;
/// Descriptors of walked chains that a batch looks at before it ends early: no guest shall hold the poller up. A batch of
/// frames of 64 KiB in pages has 32 times 17.
const STEPS_MAX: usize = 2048;
/// The most chains that a frame may lie in: 68 bytes each for the longest. A guest with shorter buffers gets no long frames.
const CHAINS_MAX: usize = 1024;

/// Where frames come from, and where those that did not arrive are counted.
pub(super) struct Pool<'a> {
    pub frames: &'a mut FrameCache,
    pub counters: &'a mut Counters,
}

/// What became of a chain, or of a frame.
enum Done {
    /// It went its way.
    Moved,
    /// It cannot, ever.
    Dropped,
    /// It cannot yet.
    Waits,
}

/// All of a ring but its format.
pub(super) struct Transfer {
    pieces: Pieces,
    /// The chains of a frame that is being sent.
    chains: Vec<Chain>,
    /// Bytes of the net header.
    header: usize,
    mergeable: bool,
    size: u16,
    call: Option<Arc<EventFd>>,
    calls: u64,
    log: Option<Arc<DirtyLog>>,
}

impl Transfer {
    pub(super) fn new(setup: Setup) -> Transfer {
        let features = setup.features;
        let mergeable = features.has(Features::MRG_RXBUF);
        let header = if mergeable || features.has(Features::VERSION_1) { NET_HEADER } else { vnet::LEN };
        Transfer {
            pieces: Pieces::new(setup.memory, Direction::FromGuest),
            chains: Vec::with_capacity(CHAINS_MAX.min(setup.size.into())),
            header,
            mergeable,
            size: setup.size,
            call: setup.call,
            calls: 0,
            log: setup.log,
        }
    }

    pub(super) fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    /// See [`super::ring::Ring::receive`].
    pub(super) fn receive<C: Chains>(
        &mut self,
        ring: &mut C,
        mut pool: Pool,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        self.pieces.direction = Direction::FromGuest;
        let mut left = batch.remaining_capacity();
        let mut walked = Ok(());
        while left > 0 {
            let (taken, stop) = self.receive_run(ring, &mut pool, (batch, left));
            left -= taken;
            if stop == Stop::Enough {
                break;
            }
            match self.receive_walked(ring, &mut pool, batch) {
                Ok(Done::Waits) => break,
                Ok(_) => left -= 1,
                Err(fault) => {
                    walked = Err(fault);
                    break;
                }
            }
        }
        self.finish(ring, walked)
    }

    /// Receives plain chains, at most `left`. Returns how many.
    #[inline(always)]
    fn receive_run<C: Chains>(
        &mut self,
        ring: &mut C,
        pool: &mut Pool,
        (batch, left): (&mut Batch, usize),
    ) -> (usize, Stop) {
        let header = self.header;
        let lens = (header + FRAME_MIN) as u32..=(header + PLAIN_MAX) as u32;
        let mut run = Run::new();
        let stop = ring.plain(left, &self.pieces, &mut run, |_, len| lens.contains(&len));
        let mut taken = 0;
        for plain in &run {
            let Some(mut frame) = pool.frames.alloc() else { break };
            taken += 1;
            // SAFETY: the buffer is longer than its header, and no longer than header and room of the frame.
            let said = unsafe { fill(&mut frame, plain, header) };
            if said.is_empty() || describe(&mut frame, said) {
                batch.push(frame);
            } else {
                pool.counters.rx_errors += 1;
                pool.frames.free(frame);
            }
        }
        ring.give_back_run(&run[..taken], |_| 0);
        (taken, if taken < run.len() { Stop::Enough } else { stop })
    }

    /// Receives one chain of any kind.
    #[inline(never)]
    fn receive_walked<C: Chains>(
        &mut self,
        ring: &mut C,
        pool: &mut Pool,
        batch: &mut Batch,
    ) -> Result<Done, Fault> {
        self.pieces.begin(self.header + FRAME_MAX);
        if self.pieces.is_tired(STEPS_MAX) {
            return Ok(Done::Waits);
        }
        let Some(chain) = ring.walk(&mut ring.cursor(), &mut self.pieces)? else { return Ok(Done::Waits) };
        let len =
            (chain.len as usize).checked_sub(self.header).filter(|len| (FRAME_MIN..=FRAME_MAX).contains(len));
        let Some(len) = len else {
            ring.begin(&[chain]);
            pool.counters.rx_errors += 1;
            ring.give_back(chain, 0);
            return Ok(Done::Dropped);
        };
        let Some(mut frame) = pool.frames.alloc_for(len) else { return Ok(Done::Waits) };
        ring.begin(&[chain]);
        let header = self.gather(&mut frame, len);
        ring.give_back(chain, 0);
        match vnet::parse(&header, frame.bytes()) {
            Ok(work) => {
                frame.offload = work;
                batch.push(frame);
                Ok(Done::Moved)
            }
            Err(_) => {
                pool.counters.rx_errors += 1;
                pool.frames.free(frame);
                Ok(Done::Dropped)
            }
        }
    }

    /// Copies header and frame out of the pieces, which have that many bytes.
    fn gather(&mut self, frame: &mut Frame, len: usize) -> [u8; vnet::LEN] {
        let mut header = [0; NET_HEADER];
        frame.set_len(len);
        // SAFETY: the header is at most as long as its array, and the frame as long as was set.
        unsafe {
            self.pieces.take(header.as_mut_ptr(), self.header);
            self.pieces.take(frame.bytes_mut().as_mut_ptr(), len);
        }
        *header.first_chunk().expect("the longer of both kinds of header")
    }

    /// See [`super::ring::Ring::send`].
    pub(super) fn send<C: Chains>(
        &mut self,
        ring: &mut C,
        frames: &mut FrameCache,
        batch: &mut Batch,
    ) -> Result<Sent, Fault> {
        self.pieces.direction = Direction::ToGuest;
        let (mut sent, mut done) = (Sent::default(), 0);
        let mut walked = Ok(());
        while done < batch.len() {
            let (count, stop) = self.send_run(ring, &batch[done..], &mut sent);
            done += count;
            if stop == Stop::Enough {
                break;
            }
            match self.send_walked(ring, &batch[done]) {
                Ok(Done::Waits) => break,
                Ok(Done::Moved) => sent.count(&batch[done]),
                Ok(Done::Dropped) => {}
                Err(fault) => {
                    walked = Err(fault);
                    break;
                }
            }
            done += 1;
        }
        batch.drain(..done).for_each(|frame| frames.free(frame));
        self.finish(ring, walked).map(|()| sent)
    }

    /// Sends frames into plain chains. Returns how many.
    #[inline(always)]
    fn send_run<C: Chains>(&mut self, ring: &mut C, batch: &[Frame], sent: &mut Sent) -> (usize, Stop) {
        let header = self.header;
        let mut run = Run::new();
        let stop = ring.plain(batch.len(), &self.pieces, &mut run, |place, len| {
            len as usize >= header + batch[place].len()
        });
        for (plain, frame) in run.iter().zip(batch) {
            // SAFETY: the buffer is as long as header and frame, at least.
            unsafe { empty(frame, plain, header) };
            sent.count(frame);
        }
        ring.give_back_run(&run, |place| (header + batch[place].len()) as u32);
        if let Some(log) = &self.log {
            run.iter().zip(batch).for_each(|(plain, frame)| log.mark(plain.guest, header + frame.len()));
        }
        (run.len(), stop)
    }

    /// Sends one frame into chains of any kind: all of it, or nothing.
    #[inline(never)]
    fn send_walked<C: Chains>(&mut self, ring: &mut C, frame: &Frame) -> Result<Done, Fault> {
        let wanted = self.header + frame.len();
        if self.pieces.is_tired(STEPS_MAX) {
            return Ok(Done::Waits);
        }
        self.pieces.begin(wanted);
        self.chains.clear();
        let (mut cursor, mut slots) = (ring.cursor(), 0);
        while self.pieces.stored() < wanted {
            // A frame that the whole ring, or the only chain, cannot hold will never fit.
            let is_endless = self.chains.len() == CHAINS_MAX || self.pieces.is_tired(2 * STEPS_MAX);
            if is_endless || slots >= usize::from(self.size) {
                return Ok(Done::Dropped);
            }
            let Some(chain) = ring.walk(&mut cursor, &mut self.pieces)? else { return Ok(Done::Waits) };
            self.chains.push(chain);
            slots += usize::from(chain.slots);
            if !self.mergeable && self.pieces.stored() < wanted {
                return Ok(Done::Dropped);
            }
        }
        ring.begin(&self.chains);
        self.scatter(frame);
        let mut left = wanted as u64;
        for &chain in &self.chains {
            let written = left.min(chain.len);
            ring.give_back(chain, written as u32);
            left -= written;
        }
        Ok(Done::Moved)
    }

    /// Copies header and frame into the pieces.
    fn scatter(&mut self, frame: &Frame) {
        let mut header = [0; NET_HEADER];
        if !frame.offload.is_none() {
            header[..vnet::LEN].copy_from_slice(&vnet::emit(&frame.offload, frame.bytes()));
        }
        header[vnet::LEN..].copy_from_slice(&(self.chains.len() as u16).to_le_bytes());
        self.pieces.put(&header[..self.header]);
        self.pieces.put(frame.bytes());
        if let Some(log) = &self.log {
            self.pieces.mark(log);
        }
    }

    /// Ends a batch: shows it to the guest, calls it if it wants, and looks whether its memory is still there.
    #[inline(always)]
    fn finish<C: Chains>(&mut self, ring: &mut C, walked: Result<(), Fault>) -> Result<(), Fault> {
        self.pieces.rest();
        let count = ring.publish(self.log.as_deref());
        if let Some(call) = self.call.as_ref().filter(|_| count > 0) {
            // The guest says what it wants and then looks what was used; we do it the other way round.
            fence(Ordering::SeqCst);
            if ring.wants_call(count) {
                self.calls += 1;
                call::signal(call);
            }
        }
        // Whatever else we found, we found it in pages of our own.
        if self.pieces.memory.is_torn() { Err(Fault::Torn) } else { walked }
    }
}

/// The ten bytes of a header as they were read, once.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Said(u64, u16);

impl Said {
    /// A header for a frame on which nothing is left to do.
    const NOTHING: Said = Said(0, 0);

    /// No flags, no segmentation: the other fields mean nothing.
    #[inline(always)]
    fn is_empty(self) -> bool {
        self.0.to_ne_bytes()[..2] == [0, 0]
    }

    fn bytes(self) -> [u8; vnet::LEN] {
        let mut bytes = [0; vnet::LEN];
        bytes[..8].copy_from_slice(&self.0.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.1.to_ne_bytes());
        bytes
    }

    fn of(bytes: [u8; vnet::LEN]) -> Said {
        let [a, b, c, d, e, f, g, h, i, j] = bytes;
        Said(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u16::from_ne_bytes([i, j]))
    }
}

/// Copies a plain chain into a new frame. Returns its header.
///
/// # Safety
/// The buffer has at least `header` bytes, and at most as many more as the frame has room.
#[inline(always)]
unsafe fn fill(frame: &mut Frame, plain: &Plain, header: usize) -> Said {
    let len = plain.len as usize - header;
    let from = plain.base.as_ptr();
    frame.set_len(len);
    // SAFETY: the caller's word; a header has ten bytes or more.
    unsafe {
        copy(from.add(header), frame.room_mut().as_mut_ptr(), len);
        Said(read(from), read(from.add(8)))
    }
}

/// Notes what a header leaves to do; false if it lies.
#[inline(never)]
fn describe(frame: &mut Frame, said: Said) -> bool {
    let parsed = vnet::parse(&said.bytes(), frame.bytes());
    if let Ok(work) = parsed {
        frame.offload = work;
    }
    parsed.is_ok()
}

/// Copies a frame and its header into a plain chain.
///
/// A header that stands there already is not written again: where it has a line for itself the guest keeps that line, and
/// neither waits for the other.
///
/// # Safety
/// The buffer is long enough.
#[inline(always)]
unsafe fn empty(frame: &Frame, plain: &Plain, header: usize) {
    let to = plain.base.as_ptr();
    let said = match frame.offload.is_none() {
        true => Said::NOTHING,
        false => Said::of(vnet::emit(&frame.offload, frame.bytes())),
    };
    // SAFETY: the caller's word.
    unsafe {
        copy(frame.bytes().as_ptr(), to.add(header), frame.len());
        write_unlike(to, said.0);
        let [csum, offset] = said.1.to_ne_bytes();
        match header {
            NET_HEADER => write_unlike(to.add(8), u32::from_ne_bytes([csum, offset, 1, 0])),
            _ => write_unlike(to.add(8), said.1),
        }
    }
}

/// Writes a value, unless it stands there.
///
/// # Safety
/// `to` has room for it, and any bytes are one.
#[inline(always)]
unsafe fn write_unlike<T: Copy + PartialEq>(to: *mut u8, value: T) {
    // SAFETY: the caller's word.
    unsafe {
        if read::<T>(to) != value {
            to.cast::<T>().write_unaligned(value);
        }
    }
}
