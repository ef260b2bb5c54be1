//! The driver's side as a port: so a switch, or a bench, can sit where the guest would (what DPDK calls virtio-user).

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::EventFd;

use super::header::Header;
use super::pair::Pair;
use crate::batch::Batch;
use crate::frame::{Frame, FrameCache};
use crate::port::{Counters, Offloads, Port, PortError, Readiness, Sent};
use crate::virtio::features::Features;

/// One queue pair as a port. The session shares the pair, to move it to another backend; a batch costs an uncontended lock.
#[derive(Debug)]
pub struct VirtioUser {
    pair: Arc<Mutex<Pair>>,
    call: Arc<EventFd>,
    counters: Counters,
}

impl VirtioUser {
    /// A port; asks the device not to call until it is armed.
    pub fn new(pair: Arc<Mutex<Pair>>) -> VirtioUser {
        let call = {
            let mut pair = lock(&pair);
            pair.receive.ring.disable_calls();
            pair.transmit.ring.disable_calls();
            Arc::clone(pair.receive.call())
        };
        VirtioUser { pair, call, counters: Counters::default() }
    }
}

/// A pair outlives the panic of another who had it.
pub fn lock(pair: &Mutex<Pair>) -> MutexGuard<'_, Pair> {
    pair.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port for VirtioUser {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        let mut pair = lock(&self.pair);
        let mut arrived = false;
        while !batch.is_full()
            && let Some(header) = pair.arrived()
        {
            arrived = true;
            batch.extend(copy(&pair, &header, frames, &mut self.counters));
            pair.recycle();
        }
        if arrived {
            pair.refill();
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let mut pair = lock(&self.pair);
        let (mut sent, mut done) = (Sent::default(), 0);
        for frame in batch.iter() {
            if pair.send(&Header::of(&frame.offload, frame.bytes()), frame.bytes()) {
                sent.count(frame);
            } else if pair.fits(frame.len()) {
                break;
            }
            done += 1;
        }
        pair.flush();
        batch.drain(..done).for_each(|frame| frames.free(frame));
        Ok(sent)
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Ring(self.call.as_fd())
    }

    fn arm(&mut self) -> bool {
        lock(&self.pair).receive.ring.enable_calls()
    }

    fn disarm(&mut self) {
        lock(&self.pair).receive.ring.disable_calls();
        // Nothing to read (EAGAIN) if something else woke the poller.
        let _ = self.call.read();
    }

    fn offloads(&self) -> Offloads {
        let features = lock(&self.pair).shape().ring.features;
        let csum = features.has(Features::CSUM);
        Offloads {
            csum,
            tso: csum && features.has(Features::HOST_TSO4 | Features::HOST_TSO6),
            uso: csum && features.has(Features::HOST_USO),
        }
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}

/// The frame that has arrived.
fn copy(pair: &Pair, header: &Header, frames: &mut FrameCache, counters: &mut Counters) -> Option<Frame> {
    let len = pair.arrived_len();
    let Some(mut frame) = frames.alloc_for(len) else {
        counters.rx_missed += 1;
        return None;
    };
    frame.set_len(len);
    pair.copy(frame.bytes_mut());
    let offload = header.left_to_do(frame.bytes());
    if let Ok(offload) = offload {
        frame.offload = offload;
        return Some(frame);
    }
    counters.rx_errors += 1;
    frames.free(frame);
    None
}
