//! A queue pair as a poller sees it: a [`Port`] that steps through a door for each batch.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::door::Visitor;
use super::ring::{Fault, Ring};
use super::signal::{Alarm, Sleep};
use crate::batch::Batch;
use crate::frame::FrameCache;
use crate::port::{Counters, Offloads, Port, PortError, Readiness, Sent};
use crate::virtio::features::Features;

/// What stands behind a door: the rings of a pair, and what the poller and the session tell each other.
#[derive(Default)]
pub(super) struct Pair {
    /// The guest's receive ring, if it runs.
    pub(super) receive: Option<Ring>,
    /// The guest's transmit ring, if it runs.
    pub(super) transmit: Option<Ring>,
    /// Whether the guest kicks when it has made frames available.
    pub(super) kicks: Kicks,
    /// A frame to take from the guest that it did not send.
    pub(super) announcement: Option<Box<[u8]>>,
    /// The guest broke a ring: neither is used any more.
    pub(super) fault: Option<Fault>,
}

/// How the guest tells of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kicks {
    /// By its eventfd.
    #[default]
    Yes,
    /// Not at all: who wants to know has to look.
    No,
}

impl Pair {
    /// Does the guest have both rings?
    pub(super) fn runs(&self) -> bool {
        self.receive.is_some() && self.transmit.is_some()
    }

    fn take(
        &mut self,
        frames: &mut FrameCache,
        batch: &mut Batch,
        counters: &mut Counters,
    ) -> Result<(), Fault> {
        if self.announcement.is_some() && !batch.is_full() {
            let frame = self.announcement.take().and_then(|bytes| frames.from_bytes(&bytes));
            batch.extend(frame);
        }
        match &mut self.transmit {
            Some(ring) if self.fault.is_none() => ring.receive(frames, batch, counters),
            _ => Ok(()),
        }
    }

    fn put(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, Fault> {
        match &mut self.receive {
            Some(ring) if self.fault.is_none() => ring.send(frames, batch),
            _ => Ok(Sent::default()),
        }
    }

    /// As [`Port::arm`].
    fn arm(&mut self) -> bool {
        if self.announcement.is_some() {
            return true;
        }
        match &mut self.transmit {
            Some(_) if self.fault.is_some() => false,
            Some(ring) => ring.arm() || self.kicks == Kicks::No,
            None => false,
        }
    }
}

/// What the frames to a guest may leave to it: it takes what it has negotiated, all of a kind or none.
pub(super) fn offloads(features: Features) -> Offloads {
    let csum = features.has(Features::GUEST_CSUM);
    let tso = Features::GUEST_TSO4 | Features::GUEST_TSO6 | Features::GUEST_ECN;
    let uso = Features::GUEST_USO4 | Features::GUEST_USO6;
    Offloads { csum, tso: csum && features.has(tso), uso: csum && features.has(uso) }
}

/// One queue pair: frames arrive by the guest's transmit ring and leave by its receive ring.
///
/// The guest's receive ring is never armed: a frame that finds no buffer is dropped, and nobody waits for one.
pub struct VhostQueue {
    pub(super) visitor: Visitor<Pair>,
    /// `None`: there was no descriptor left for it, and the poller does not sleep.
    pub(super) sleep: Option<Arc<Sleep>>,
    pub(super) alarm: Arc<Alarm>,
    pub(super) offloads: Offloads,
    pub(super) counters: Counters,
}

impl VhostQueue {
    fn hush(&self) {
        if let Some(sleep) = &self.sleep {
            sleep.hush();
        }
    }
}

/// The pair is of no use any more; the session will reset the port.
#[cold]
fn condemn(pair: &mut Pair, fault: Fault, alarm: &Alarm) {
    pair.fault = Some(fault);
    alarm.fault();
}

impl Port for VhostQueue {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        if let Some(mut pair) = self.visitor.enter()
            && let Err(fault) = pair.take(frames, batch, &mut self.counters)
        {
            condemn(&mut pair, fault, &self.alarm);
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let Some(mut pair) = self.visitor.enter() else { return Ok(Sent::default()) };
        Ok(pair.put(frames, batch).unwrap_or_else(|fault| {
            condemn(&mut pair, fault, &self.alarm);
            Sent::default()
        }))
    }

    fn readiness(&self) -> Readiness<'_> {
        let fd = self.sleep.as_ref().map(|sleep| sleep.fd());
        fd.map_or(Readiness::Unknown, |fd: BorrowedFd<'_>| Readiness::Ring(fd))
    }

    fn arm(&mut self) -> bool {
        // Before the ring is looked at: what is signalled from now on wakes.
        self.hush();
        // While the door is closed there is nothing to arm: who opens it rings the bell.
        self.visitor.enter().is_some_and(|mut pair| pair.arm())
    }

    fn disarm(&mut self) {
        if let Some(mut pair) = self.visitor.enter()
            && let Some(ring) = &mut pair.transmit
        {
            ring.disarm();
        }
        self.hush();
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_what_it_takes_all_of() {
        let tcp = Features::GUEST_TSO4 | Features::GUEST_TSO6 | Features::GUEST_ECN;
        let udp = Features::GUEST_USO4 | Features::GUEST_USO6;
        let csum = Features::GUEST_CSUM;
        let all = Offloads { csum: true, tso: true, uso: true };
        assert_eq!(offloads(csum | tcp | udp), all);
        assert_eq!(offloads(tcp | udp), Offloads::default());
        assert_eq!(offloads(csum | tcp), Offloads { uso: false, ..all });
        let partial = csum | tcp.without(Features::GUEST_ECN) | Features::GUEST_USO4;
        assert_eq!(offloads(partial), Offloads { csum: true, ..Offloads::default() });
    }
}
