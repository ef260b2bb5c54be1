//! Where frames wait for a port, and how they get there.

use std::sync::Arc;

use encap::gso;

use crate::batch::Batch;
use crate::frame::Frame;
use crate::offload;
use crate::stats::PortCounters;

/// Bytes of Ethernet header in front of what an MTU counts.
const ETHERNET: usize = 14;

/// How frames get to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// By our own queue, by its place in `queues`.
    Own(usize),
    /// By several queues of our own, by their places: each flow by one of them.
    Spread(Arc<[usize]>),
    /// Through the poller with this index.
    Via(usize),
    /// Not at all: it has no queue.
    None,
}

/// Frames waiting for a port.
pub(super) struct Outbox {
    pub(super) route: Route,
    pub(super) mtu: u16,
    pub(super) pending: Box<Batch>,
    /// What is left to do on any of these: `Offload::kinds`.
    pub(super) work: u16,
    pub(super) counters: Arc<PortCounters>,
}

impl Outbox {
    /// Does the frame exceed the port's MTU?
    #[inline]
    fn refuses(&self, frame: &Frame) -> bool {
        frame.len() > ETHERNET + usize::from(self.mtu) && offload::exceeds(frame, self.mtu)
    }

    /// Takes note of what is left to do on these frames, that are to be sent; false if the port's MTU refuses any of them.
    /// Of all the lengths are looked at and whether there is work, but mostly nothing else.
    #[inline]
    pub(super) fn accepts(&mut self, frames: &[Frame]) -> bool {
        let look = |(longest, work), frame: &Frame| (frame.len().max(longest), work | frame.offload.kinds());
        let (longest, work) = frames.iter().fold((0, 0), look);
        self.work |= work;
        longest <= ETHERNET + usize::from(self.mtu) || !frames.iter().any(|frame| self.refuses(frame))
    }

    /// Does the frame, after all, not exceed the port's MTU? Where nobody told how long its segments are, that was a guess
    /// ([`offload::unsaid`]), and they may be shorter.
    pub(super) fn shortens(&self, frame: &mut Frame) -> bool {
        if frame.unsaid
            && let Some(offload) = gso::fit(frame.bytes(), frame.offload, self.mtu.into())
        {
            frame.offload = offload;
        }
        !self.refuses(frame)
    }
}
