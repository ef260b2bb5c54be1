//! A port of which several queues are ours: by which of them a frame leaves.
//!
//! All frames of a flow leave by the same queue, in order, as long as the queues are the same; flows are spread evenly. A flow
//! is what [`FlowKey::flow_hash`] takes for one: all fragments of a datagram are of one flow, and so are a GSO frame and its
//! segments. (Open vSwitch calls this `tx-steering=hash`.) Each poller that has queues of a port spreads over its own.
//!
//! Cost: a frame's headers are read once more, and a batch whose frames leave by several queues is parted, a copy of 32 bytes
//! a frame for each of these queues at worst. Ports with one queue never come here.
//!
//! [`FlowKey::flow_hash`]: flowtable::key::FlowKey::flow_hash

use std::sync::Arc;

use arrayvec::ArrayVec;
use flowtable::id::PortId;
use flowtable::keys::Keys;

use super::{Exit, Route, Wires};
use crate::batch::{BATCH, Batch, extract_each};
use crate::frame::Frame;

impl Wires {
    /// Has frames get to the port by our own queues of it; false, and nothing changes, if there is none.
    pub fn route_own(&mut self, port: PortId) -> bool {
        let own = self.queues.iter().enumerate().filter_map(|(place, queue)| Some((place, queue.as_ref()?)));
        let mut own: Vec<_> =
            own.filter(|(_, q)| q.port == port).map(|(place, q)| (q.index, place)).collect();
        own.sort_unstable();
        match own[..] {
            [] => return false,
            [(_, place)] => self.set_route(port, Route::Own(place)),
            _ => self.set_route(port, Route::Spread(own.into_iter().map(|(_, place)| place).collect())),
        }
        true
    }

    /// Sends each frame by the queue of its flow.
    pub(super) fn spread(&mut self, port: PortId, places: &Arc<[usize]>, batch: &mut Batch) {
        let chosen = choose(batch, places);
        if chosen.iter().all(|place| *place == chosen[0]) {
            return self.transmit(Exit { port, place: chosen[0] }, batch);
        }
        let mut rest: ArrayVec<(usize, Frame), BATCH> = chosen.into_iter().zip(batch.drain(..)).collect();
        while let Some((place, _)) = rest.first() {
            let exit = Exit { port, place: *place };
            for (place, frame) in std::mem::take(&mut rest) {
                match place == exit.place {
                    true => batch.push(frame),
                    false => rest.push((place, frame)),
                }
            }
            self.transmit(exit, batch);
        }
    }
}

/// Of these places, that for the flow of each frame.
fn choose(batch: &Batch, places: &[usize]) -> ArrayVec<usize, BATCH> {
    let mut keys = Keys::default();
    // What is no frame has the key of nothing, and a place as well.
    extract_each(batch, PortId::default(), &mut keys);
    // The upper bits of the product: as even as a remainder, without a division.
    let share = |hash: u32| ((u64::from(hash) * places.len() as u64) >> 32) as usize;
    keys.iter().map(|key| places[share(key.flow_hash())]).collect()
}
