//! A queue pair of a network card from the driver's side (virtio 1.2 section 5.1): sends frames as chains of any shape,
//! receives them into chains of any shape, merged or not.
//!
//! Costs one copy of a frame, and allocates nothing for one.

use std::collections::VecDeque;

use super::header::Header;
use super::memory::SharedMemory;
use super::queue::{Queue, QueueError, Slots};
use super::{Access, Buffer, Form, Shape};
use crate::virtio::NET_HEADER;
use crate::virtio::features::Features;

/// Bytes between the pieces of a chain, which nobody may touch.
const GAP: usize = 16;
/// What they hold.
const POISON: u8 = 0xe7;

/// How chains are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chains {
    /// Lengths of the pieces but the last, in bytes from the header on. None: header and frame are one piece. `[12]`: the header is a
    /// piece of its own. A piece that would be empty, since the frame ends before, is left out.
    pub cuts: Vec<usize>,
    /// In the ring or in a table.
    pub form: Form,
    /// Bytes of a chain at most, header included: of a received one all that the device may write.
    pub room: usize,
    /// Where the buffers are, if not anywhere.
    pub at: Option<u64>,
}

impl Chains {
    /// Chains of one piece of `room` bytes.
    pub fn of(room: usize) -> Chains {
        Chains { cuts: Vec::new(), form: Form::Direct, room, at: None }
    }

    /// The slots that hold such chains.
    fn slots(&self) -> Slots {
        let len = self.room + GAP * (self.cuts.len() + 1);
        Slots { len: len.next_multiple_of(64), at: self.at }
    }

    /// The pieces of `len` bytes that begin at `slot`.
    #[inline]
    fn lay(&self, slot: u64, mut len: usize, mut piece: impl FnMut(u64, usize)) {
        let mut at = slot;
        let lengths = self.cuts.iter().copied().chain([usize::MAX]);
        for length in lengths {
            let length = length.min(len);
            if length > 0 {
                piece(at, length);
            }
            at += (length + GAP) as u64;
            len -= length;
        }
    }
}

/// A pair to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairShape {
    /// Of both rings.
    pub ring: Shape,
    /// Of received frames.
    pub receive: Chains,
    /// Of sent frames.
    pub transmit: Chains,
}

impl PairShape {
    /// Rings of `size`, frames of up to 2 KiB, merged up to 64 KiB if the features say so.
    pub fn plain(size: u16, features: Features) -> PairShape {
        let ring = Shape { size, table: 0, features };
        PairShape { ring, receive: Chains::of(2048), transmit: Chains::of(2048) }
    }
}

/// A frame with its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// In front.
    pub header: Header,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// A queue pair.
#[derive(Debug)]
pub struct Pair {
    /// The driver's receive queue.
    pub receive: Queue,
    /// The driver's transmit queue.
    pub transmit: Queue,
    shape: PairShape,
    header: usize,
    chain: Vec<Buffer>,
    /// Chains that came back and that no frame was made of yet: slot, and bytes written.
    returned: VecDeque<(u64, usize)>,
    /// Pieces of the frame at hand, without its header: address and bytes.
    pieces: Vec<(u64, usize)>,
    /// How many of `returned` it is in.
    buffers: usize,
}

impl Pair {
    /// A pair, with an empty receive ring.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn new(memory: &SharedMemory, shape: PairShape) -> Result<Pair, QueueError> {
        let receive = Queue::new(memory, shape.ring, shape.receive.slots())?;
        let transmit = Queue::new(memory, shape.ring, shape.transmit.slots())?;
        let size = usize::from(shape.ring.size);
        Ok(Pair {
            receive,
            transmit,
            header: Header::len_of(shape.ring.features),
            shape,
            chain: Vec::with_capacity(64),
            returned: VecDeque::with_capacity(size),
            pieces: Vec::with_capacity(64 * 4),
            buffers: 0,
        })
    }

    /// What it was made as.
    pub fn shape(&self) -> &PairShape {
        &self.shape
    }

    /// Other chains from now on.
    ///
    /// # Panics
    /// If they do not fit into the slots there are.
    pub fn set_transmit(&mut self, chains: Chains) {
        assert!(
            chains.slots().len <= self.transmit.slot_len(),
            "{chains:?} in slots of {}",
            self.transmit.slot_len()
        );
        self.shape.transmit = chains;
    }

    /// Adds a frame to send, which the device sees after [`Pair::flush`]. `false`: the ring is full, or the frame too long.
    #[inline]
    #[must_use = "a full ring takes nothing"]
    pub fn send(&mut self, header: &Header, frame: &[u8]) -> bool {
        let len = self.header + frame.len();
        if !self.fits(frame.len()) {
            return false;
        }
        if self.transmit.ring.free() == 0 {
            self.reclaim();
        }
        let Some(slot) = self.transmit.next_slot() else { return false };
        let (memory, bytes) = (self.transmit.memory(), header.bytes());
        let (chain, mut rest) = (&mut self.chain, (&bytes[..self.header], frame));
        chain.clear();
        self.shape.transmit.lay(slot, len, |at, length| {
            rest = write_both(memory, at, length, rest);
            chain.push(Buffer::read(at, length as u32));
        });
        if self.transmit.add(&self.chain, self.shape.transmit.form).is_some() {
            return true;
        }
        // Some descriptors are free, but too few.
        self.reclaim() > 0 && self.send(header, frame)
    }

    /// Makes what was sent visible to the device, and kicks if it wants to know.
    #[inline]
    pub fn flush(&mut self) {
        self.transmit.publish();
    }

    /// Takes back the chains that were sent; how many.
    pub fn reclaim(&mut self) -> usize {
        let mut count = 0;
        while let Some((_, slot)) = self.transmit.used() {
            self.transmit.give_back(slot);
            count += 1;
        }
        count
    }

    /// Gives the device all the receive buffers there are.
    pub fn refill(&mut self) {
        while let Some(slot) = self.receive.next_slot() {
            self.chain.clear();
            let chain = &mut self.chain;
            let each = |at, len| chain.push(Buffer { addr: at, len: len as u32, access: Access::Write });
            self.shape.receive.lay(slot, self.shape.receive.room, each);
            if self.receive.add(&self.chain, self.shape.receive.form).is_none() {
                break;
            }
        }
        self.receive.publish();
    }

    /// The next frame's header, once all of it has come. To be followed by [`Pair::copy`] and [`Pair::recycle`]. Chains that come
    /// back empty, as from a device that does not know what was in them, are dropped as Linux does.
    ///
    /// # Panics
    /// If the device wrote less than a header, or merged what must not be, or nothing.
    pub fn arrived(&mut self) -> Option<Header> {
        self.take_returned(1).then_some(())?;
        while let (slot, 0) = self.returned[0] {
            self.returned.pop_front();
            self.receive.give_back(slot);
            self.take_returned(1).then_some(())?;
        }
        let (slot, written) = self.returned[0];
        assert!(written >= self.header, "{written} bytes, a header has {}", self.header);
        let header = self.read_header(slot);
        let merged = self.shape.ring.features.has(Features::MRG_RXBUF);
        let buffers = if merged { usize::from(header.buffers) } else { 1 };
        assert!(buffers > 0, "{header:?}");
        // DPDK leaves a zero where section 5.1.6.4.1 wants a one, and nobody minds.
        assert!(merged || header.buffers <= 1, "{header:?} without MRG_RXBUF");
        self.take_returned(buffers).then_some(())?;
        self.buffers = buffers;
        self.list_pieces();
        Some(header)
    }

    /// Takes what came back until there are so many.
    #[inline]
    fn take_returned(&mut self, want: usize) -> bool {
        while self.returned.len() < want
            && let Some((used, slot)) = self.receive.used()
        {
            let (written, room) = (used.written as usize, self.shape.receive.room);
            assert!(written <= room, "{written} bytes in a chain of {room}");
            self.returned.push_back((slot, written));
        }
        self.returned.len() >= want
    }

    #[inline]
    fn read_header(&self, slot: u64) -> Header {
        let (mut bytes, mut have) = ([0; NET_HEADER], 0);
        self.shape.receive.lay(slot, self.header, |at, len| {
            self.receive.memory().read(at, &mut bytes[have..have + len]);
            have += len;
        });
        Header::parse(&bytes)
    }

    #[inline]
    fn list_pieces(&mut self) {
        let (pieces, mut skip) = (&mut self.pieces, self.header);
        pieces.clear();
        for &(slot, written) in self.returned.iter().take(self.buffers) {
            self.shape.receive.lay(slot, written, |at, len| {
                let header = skip.min(len);
                skip -= header;
                if len > header {
                    pieces.push((at + header as u64, len - header));
                }
            });
        }
    }

    /// Could a frame of so many bytes ever be sent?
    pub fn fits(&self, len: usize) -> bool {
        self.header + len <= self.shape.transmit.room
    }

    /// Bytes of the frame that has arrived.
    #[inline]
    pub fn arrived_len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.1).sum()
    }

    /// Copies the frame that has arrived.
    ///
    /// # Panics
    /// If `bytes` are not as many as [`Pair::arrived_len`].
    #[inline]
    pub fn copy(&self, mut bytes: &mut [u8]) {
        for &(at, len) in &self.pieces {
            let (now, later) = bytes.split_at_mut(len);
            self.receive.memory().read(at, now);
            bytes = later;
        }
        assert!(bytes.is_empty(), "{} bytes too many", bytes.len());
    }

    /// The frame's buffers may be used again, by the next [`Pair::refill`].
    #[inline]
    pub fn recycle(&mut self) {
        for (slot, _) in self.returned.drain(..std::mem::take(&mut self.buffers)) {
            self.receive.give_back(slot);
        }
    }

    /// The next frame as bytes; gives its buffers back to the device.
    ///
    /// # Panics
    /// As [`Pair::arrived`].
    pub fn receive(&mut self) -> Option<Received> {
        let header = self.arrived()?;
        let mut bytes = vec![0; self.arrived_len()];
        self.copy(&mut bytes);
        self.recycle();
        self.refill();
        Some(Received { header, bytes })
    }

    /// Forgets all chains of both rings, as a driver that resets its device.
    pub fn reset(&mut self) {
        self.receive.reset();
        self.transmit.reset();
        self.returned.clear();
        self.buffers = 0;
    }

    /// Fills all slots and gaps of the receive queue, so that [`Pair::gaps_are_clean`] can tell.
    pub fn poison_gaps(&mut self) {
        self.each_gap(|memory, at| memory.write(at, &[POISON; GAP]));
    }

    /// Has nobody written between the pieces of receive chains?
    pub fn gaps_are_clean(&self) -> bool {
        let mut clean = true;
        self.each_gap(|memory, at| {
            let mut gap = [0; GAP];
            memory.read(at, &mut gap);
            clean &= gap == [POISON; GAP];
        });
        clean
    }

    fn each_gap(&self, mut each: impl FnMut(&SharedMemory, u64)) {
        let chains = &self.shape.receive;
        for slot in self.receive.slots() {
            chains.lay(slot, chains.room, |at, len| each(self.receive.memory(), at + len as u64));
        }
    }
}

/// Writes the next `len` bytes of header and frame; what is left of both.
#[inline]
fn write_both<'a>(
    memory: &SharedMemory,
    at: u64,
    len: usize,
    (header, frame): (&'a [u8], &'a [u8]),
) -> (&'a [u8], &'a [u8]) {
    let (first, header) = header.split_at(header.len().min(len));
    let (second, frame) = frame.split_at(len - first.len());
    memory.write(at, first);
    memory.write(at + first.len() as u64, second);
    (header, frame)
}
