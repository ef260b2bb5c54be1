//! Ports: where frames enter and leave. One file per kind, two verbs for all.

pub mod host;
mod linkstats;
pub mod lossy;
pub mod memory;
pub mod netdev;
mod overflow;
pub mod packet;
pub mod pcap;
#[cfg(test)]
pub(crate) mod rig;
mod sockopt;
pub mod tap;
pub mod vhost;
pub mod vnet;
pub mod xdp;

use std::os::fd::BorrowedFd;

use crossbeam::utils::CachePadded;
use thiserror::Error;

use crate::batch::Batch;
use crate::frame::{Frame, FrameCache};

/// How many frames longer than a small chunk are received at a time: a quarter of a megabyte of TCP, which is sent again before it
/// leaves a core's cache. `wires/tcp-from-host` and `tcp-host`, in turns with a whole batch by TAP and eight by AF_PACKET: 1.14 and
/// 1.06, most of it where the cores share no cache; with eight by both 1.04 and 1.03, with one 1.06 and 0.99.
const LONG_BATCH: usize = 4;

/// One queue of an attachment, owned by one poller at a time.
///
/// A port with four queues is four of these. Frames never wait inside a port for anything but the kernel.
pub trait Port: Send {
    /// Appends frames that have arrived to `batch`, at most until it is full; does not block.
    ///
    /// # Errors
    /// [`PortError::Gone`] once the interface is gone or down: the poller then stops asking until control
    /// attaches the port again.
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError>;

    /// Sends frames from the front of `batch`, in order; does not block. What stays in the batch had no room.
    /// A frame the kernel refuses for its own sake is freed and not counted as sent. Only frames whose
    /// offload is within [`Port::offloads`] are given to it. Behind a full batch a port may expect more, and leave without it
    /// only when `rx` was called twice, or `arm`.
    ///
    /// # Errors
    /// [`PortError::Gone`] as for `rx`; the frames not yet sent stay in the batch.
    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError>;

    /// How a poller learns that `rx` has something.
    fn readiness(&self) -> Readiness<'_> {
        Readiness::Unknown
    }

    /// The poller will not ask for a while: the descriptor of [`Readiness::Ring`] is to tell of the next frame. True if there
    /// is one already, or another reason to be asked on; then the poller disarms the queue and asks.
    ///
    /// Whoever sends leaves his frame first and then looks whether to tell. So this first says that it wants to be told, and
    /// then, behind a full fence, looks for frames. From then on a frame makes the descriptor readable, until `disarm`. A
    /// descriptor that is readable whenever there is a frame (AF_XDP) needs nothing of this.
    ///
    /// A queue may be armed for long, is then not asked at all, and goes to another poller as it is. If what is behind
    /// it changes meanwhile (a guest's rings start anew), it stays armed, and if a frame may have come the descriptor tells.
    fn arm(&mut self) -> bool {
        false
    }

    /// The poller asks by itself again: nobody need tell it. What the descriptor told is done with: it is readable again
    /// only for what comes once the queue is armed (once more, at most, for a sender who was about to tell). Also called on a
    /// queue that is not armed.
    fn disarm(&mut self) {}

    /// What a frame may leave to this port.
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    /// What the kernel or the device lost before we saw it, since the port was made.
    fn counters(&mut self) -> Counters {
        Counters::default()
    }

    /// Gives all chunks that are still in rings back, before the port is dropped.
    fn close(&mut self, frames: &mut FrameCache) {
        let _ = frames;
    }
}

/// A queue to be attached, with lines of its own: queues are made one behind the other by who opens a port, and written for each
/// batch by different pollers, so two must not be neighbours in a line (bench `sharing`).
pub fn boxed<P: Port + 'static>(queue: P) -> Box<dyn Port> {
    Box::new(CachePadded::new(queue))
}

impl<P: Port> Port for CachePadded<P> {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        (**self).rx(frames, batch)
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        (**self).tx(frames, batch)
    }

    fn readiness(&self) -> Readiness<'_> {
        (**self).readiness()
    }

    fn arm(&mut self) -> bool {
        (**self).arm()
    }

    fn disarm(&mut self) {
        (**self).disarm();
    }

    fn offloads(&self) -> Offloads {
        (**self).offloads()
    }

    fn counters(&mut self) -> Counters {
        (**self).counters()
    }

    fn close(&mut self, frames: &mut FrameCache) {
        (**self).close(frames);
    }
}

/// How a poller learns that a queue has frames.
#[derive(Debug, Clone, Copy)]
pub enum Readiness<'a> {
    /// `rx` sees it in shared memory, without a system call; the descriptor tells of the next frame while the queue is
    /// armed ([`Port::arm`]). The poller asks while there is traffic, and arms the queue once there is none.
    Ring(BorrowedFd<'a>),
    /// `rx` takes a system call; the descriptor polls readable when it is worth one.
    Call(BorrowedFd<'a>),
    /// Only by asking: a poller with such a queue never sleeps.
    Unknown,
}

/// What one `tx` put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Frames (a GSO frame is one).
    pub frames: u32,
    /// Bytes, without FCS.
    pub bytes: u64,
}

impl Sent {
    /// Counts one more frame.
    #[inline]
    pub(crate) fn count(&mut self, frame: &Frame) {
        self.frames += 1;
        self.bytes += frame.len() as u64;
    }
}

/// Offloads that a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Completes partial checksums.
    pub csum: bool,
    /// Cuts TCP over IPv4 and IPv6 (needs `csum`).
    pub tso: bool,
    /// Cuts UDP (needs `csum`).
    pub uso: bool,
}

/// Losses below the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames that arrived while there was no room for them.
    pub rx_missed: u64,
    /// Frames that arrived broken or longer than the port takes.
    pub rx_errors: u64,
}

/// A port stopped working.
#[derive(Debug, Error)]
pub enum PortError {
    /// The interface was removed, or set down.
    #[error("interface is gone or down: {0}")]
    Gone(std::io::Error),
}
