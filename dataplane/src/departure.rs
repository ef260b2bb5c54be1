//! A batch on its way to the outboxes: neighbours that go the same way leave together, whatever their flows.
//!
//! Of the batch, in this order, some frames have left, some wait for others of their way, and the rest is still to be
//! decided. So a frame moves once, from the batch to an outbox, and where thousands of flows leave by one port its
//! outbox is touched once a batch (bench `forward`, `l2/1000`).

use flowtable::action::DropReason;
use flowtable::id::PortId;

use crate::batch::{Batch, Leaving};
use crate::frame::Frame;
use crate::wires::Wires;

/// Where frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Out by a port.
    Out(PortId),
    /// Back into the pipeline: they came out of a tunnel.
    In,
}

/// A batch on its way. Empty it before it goes: [`Departure::take_one`] until there is nothing, and [`Departure::leave`].
pub struct Departure<'b> {
    frames: Leaving<'b>,
    way: Way,
    /// How many wait to go that way.
    waiting: usize,
}

impl<'b> Departure<'b> {
    /// Of all frames of a batch.
    #[inline]
    pub fn of(batch: &'b mut Batch) -> Self {
        Departure { frames: Leaving::of(batch), way: Way::In, waiting: 0 }
    }

    /// The next `n` that are not decided.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline]
    pub fn run(&mut self, n: usize) -> &mut [Frame] {
        &mut self.frames.rest()[self.waiting..][..n]
    }

    /// Decides that the next `n` go this way.
    #[inline]
    pub fn send(&mut self, way: Way, n: usize, wires: &mut Wires) {
        if way != self.way {
            self.leave(wires);
            self.way = way;
        }
        self.waiting += n;
    }

    /// Has those leave that wait.
    #[inline(never)]
    pub fn leave(&mut self, wires: &mut Wires) {
        match (std::mem::take(&mut self.waiting), self.way) {
            (0, _) => {}
            (n, Way::Out(port)) => wires.send_next(port, &mut self.frames, n),
            (n, Way::In) => self.frames.move_to(n, &mut wires.inner.frames),
        }
    }

    /// Takes the next `n` out.
    pub fn take(&mut self, n: usize, wires: &mut Wires) -> Batch {
        self.leave(wires);
        self.frames.take(n)
    }

    /// Takes the next one out.
    pub fn take_one(&mut self, wires: &mut Wires) -> Option<Frame> {
        self.leave(wires);
        self.frames.take_one()
    }

    /// Drops the next one on behalf of a port.
    #[cold]
    pub fn drop_next(&mut self, port: PortId, reason: DropReason, wires: &mut Wires) {
        if let Some(frame) = self.take_one(wires) {
            wires.drop_frame(port, frame, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flowtable::time::Instant;
    use proptest::prelude::*;

    use super::*;
    use crate::budget::Budget;
    use crate::frame::{FrameCache, FramePool, Memory, PoolConfig};
    use crate::port::memory::{Peer, pair};
    use crate::stats::Registry;
    use crate::wires::{Queue, Route};

    const PORTS: [PortId; 2] = [PortId(0), PortId(1)];

    /// Wires with a cable at each port.
    fn wired(pool: &Arc<FramePool>, registry: &Registry) -> (Wires, [Peer; 2]) {
        let cache = FrameCache::new(Arc::clone(pool));
        let counters = Arc::clone(registry.poller(0));
        let mut wires = Wires::new(cache, vec![None], counters, registry.nowhere());
        let peers = PORTS.map(|port| {
            let (io, peer) = pair(pool, 64);
            wires.add_port(port, u16::MAX, registry.port_counters(port));
            let queue = Queue::new(port, 0, Box::new(io), Budget::new(0, Instant::ZERO));
            let place = wires.add_queue(queue);
            wires.set_route(port, Route::Own(place));
            peer
        });
        (wires, peers)
    }

    proptest! {
        #[test]
        fn each_frame_goes_its_way_in_order(fates in prop::collection::vec(0usize..5, 0..=32)) {
            let pool = FramePool::new(PoolConfig { small: 64, big: 1, memory: Memory::Plain }).unwrap();
            let registry = Registry::new(1);
            let (mut wires, mut peers) = wired(&pool, &registry);
            let mut batch: Batch = (0..fates.len() as u8).map(|n| wires.frames.from_bytes(&[n; 60]).unwrap()).collect();
            let mut taken = Batch::new();
            let mut departure = Departure::of(&mut batch);
            for (n, fate) in fates.iter().enumerate() {
                prop_assert_eq!(departure.run(1)[0].bytes()[0], n as u8);
                match fate {
                    0 | 1 => departure.send(Way::Out(PORTS[*fate]), 1, &mut wires),
                    2 => departure.send(Way::In, 1, &mut wires),
                    3 => taken.extend(departure.take(1, &mut wires)),
                    _ => departure.drop_next(PORTS[0], DropReason::Unsupported, &mut wires),
                }
            }
            prop_assert!(departure.take_one(&mut wires).is_none());
            prop_assert!(batch.is_empty());
            wires.flush();
            let with = |fate| -> Vec<u8> { (0..).zip(&fates).filter(|(_, f)| **f == fate).map(|(n, _)| n).collect() };
            for (fate, peer) in peers.iter_mut().enumerate() {
                prop_assert!(peer.drain().iter().map(|frame| frame.bytes[0]).eq(with(fate)));
            }
            let first = |frame: &Frame| frame.bytes()[0];
            prop_assert!(wires.inner.frames.iter().map(first).eq(with(2)));
            prop_assert!(taken.iter().map(first).eq(with(3)));
            prop_assert_eq!(registry.port(PORTS[0]).dropped(DropReason::Unsupported), with(4).len() as u64);
            let mut inner = std::mem::take(&mut wires.inner);
            wires.frames.free_all(&mut inner.frames);
            wires.frames.free_all(&mut taken);
            drop((wires, peers));
            prop_assert_eq!(pool.available().0, 64);
        }
    }
}
