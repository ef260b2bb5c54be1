//! One poller's wires: the queues it owns, and an outbox for every port it may send to.
//!
//! A frame for a port waits in the port's outbox until the batch is through, then leaves in one `tx`: by a
//! queue of our own, or handed to the poller that owns one. What the port has no room for is dropped and
//! counted; nothing waits. A frame that came out of a tunnel waits among the inner frames until the batch is decided,
//! then is decided itself.

mod outbox;
mod queue;
mod spread;

use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam::utils::CachePadded;
use encap::gso;
use flowtable::action::DropReason;
use flowtable::id::PortId;
use flowtable::time::Instant;

use self::outbox::Outbox;
pub use self::outbox::Route;
pub use self::queue::Queue;
use crate::batch::{BATCH, Batch, Leaving};
use crate::frame::{Frame, FrameCache};
use crate::handoff;
use crate::inner::Inner;
use crate::offload;
use crate::perf::{Stage, Stopwatch};
use crate::port::{Offloads, PortError};
use crate::stats::{PollerCounters, PortCounters};
use crate::waker::Waker;

/// A frame on its way to another poller's port.
pub type Parcel = (PortId, Frame);

/// How many senders of too long frames are told so between two refills. At two a second that is Linux's default limit
/// for all ICMP messages of a host (`net.ipv4.icmp_msgs_per_sec`, 1,000).
const COMPLAINTS: u32 = 500;

/// The way out by a queue of our own.
#[derive(Debug, Clone, Copy)]
struct Exit {
    port: PortId,
    place: usize,
}

/// A poller's connection to the others.
pub struct Peer {
    /// Our end of the ring to it.
    pub ring: handoff::Sender<Parcel>,
    /// Its bell.
    pub waker: Arc<Waker>,
}

/// The queues and outboxes of one poller.
pub struct Wires {
    /// The queues it owns. A place, once used, stays (empty) so that routes keep their meaning.
    pub queues: Vec<Option<Queue>>,
    /// Its stock of frames.
    pub frames: FrameCache,
    /// Ports that went away since the last look: (port, why).
    pub gone: Vec<(PortId, PortError)>,
    /// What came out of tunnels and is to be decided anew.
    pub inner: Box<Inner>,
    /// Places of queues that are armed still, and are not to be after this turn: something was sent by them, or they told of
    /// something. Each once.
    pub roused: Vec<usize>,
    /// Senders that may still be told that a frame was too long.
    complaints: u32,
    version: u64,
    outboxes: Vec<Option<Box<Outbox>>>,
    /// An empty batch, to change places with a pending one that is to be sent: a kilobyte that is not copied.
    spare: Option<Box<Batch>>,
    dirty: Vec<PortId>,
    peers: Vec<Option<Peer>>,
    counters: Arc<CachePadded<PollerCounters>>,
    nowhere: Arc<PortCounters>,
    /// Goes along with what is done to a batch.
    pub stopwatch: Stopwatch,
}

impl Wires {
    /// Wires without queues. `peers` is indexed by poller; our own place is empty. Drops that no port answers
    /// for are counted on `nowhere`.
    pub fn new(
        frames: FrameCache,
        peers: Vec<Option<Peer>>,
        counters: Arc<CachePadded<PollerCounters>>,
        nowhere: Arc<PortCounters>,
    ) -> Self {
        Wires {
            queues: Vec::new(),
            frames,
            gone: Vec::new(),
            inner: Box::default(),
            roused: Vec::new(),
            complaints: COMPLAINTS,
            version: 0,
            outboxes: Vec::new(),
            spare: None,
            dirty: Vec::new(),
            peers,
            stopwatch: Stopwatch::new(Arc::clone(&counters)),
            counters,
            nowhere,
        }
    }

    /// Makes the port known; `counters` are this poller's for it.
    pub fn add_port(&mut self, port: PortId, mtu: u16, counters: Arc<PortCounters>) {
        if self.outboxes.len() <= port.index() {
            self.outboxes.resize_with(port.index() + 1, || None);
        }
        let outbox = Outbox { route: Route::None, mtu, pending: Box::default(), work: 0, counters };
        self.outboxes[port.index()] = Some(Box::new(outbox));
    }

    /// Sends what waits for the port and forgets it.
    pub fn remove_port(&mut self, port: PortId) {
        self.flush_port(port);
        self.dirty.retain(|p| *p != port);
        if let Some(outbox) = self.outboxes.get_mut(port.index()) {
            *outbox = None;
        }
    }

    /// Is the port known?
    pub fn knows(&self, port: PortId) -> bool {
        self.outbox(port).is_some()
    }

    /// Sets how frames get to the port.
    pub fn set_route(&mut self, port: PortId, route: Route) {
        self.flush_port(port);
        if let Some(outbox) = self.outbox_mut(port) {
            outbox.route = route;
        }
    }

    /// Sets the longest layer-3 packet the port sends.
    pub fn set_mtu(&mut self, port: PortId, mtu: u16) {
        if let Some(outbox) = self.outbox_mut(port) {
            outbox.mtu = mtu;
        }
    }

    /// This poller's counters of a port.
    pub fn counters(&self, port: PortId) -> &Arc<PortCounters> {
        self.outbox(port).map_or(&self.nowhere, |o| &o.counters)
    }

    /// The place of a queue of ours.
    pub fn place_of(&self, port: PortId, index: u16) -> Option<usize> {
        self.queues.iter().position(|q| q.as_ref().is_some_and(|q| q.port == port && q.index == index))
    }

    /// The place of some queue of ours of this port.
    pub fn own_place(&self, port: PortId) -> Option<usize> {
        self.queues.iter().position(|q| q.as_ref().is_some_and(|q| q.port == port))
    }

    /// Counts changes of the set of queues that can be asked.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Gives a queue away.
    pub fn take_queue(&mut self, place: usize) -> Option<Queue> {
        self.version += 1;
        self.queues.get_mut(place)?.take()
    }

    /// Takes a queue in; its place.
    pub fn add_queue(&mut self, queue: Queue) -> usize {
        self.version += 1;
        match self.queues.iter().position(Option::is_none) {
            Some(place) => {
                self.queues[place] = Some(queue);
                place
            }
            None => {
                self.queues.push(Some(queue));
                self.queues.len() - 1
            }
        }
    }

    /// Drops a frame on behalf of a port.
    #[inline]
    pub fn drop_frame(&mut self, port: PortId, frame: Frame, reason: DropReason) {
        self.counters(port).drops[reason as usize].add(1);
        self.frames.free(frame);
    }

    /// A copy of a frame. Without memory for it the copy counts as made and dropped.
    pub fn copy(&mut self, port: PortId, frame: &Frame) -> Option<Frame> {
        self.counters.created.add(1);
        let copy = self.frames.copy(frame);
        if copy.is_none() {
            self.counters(port).drops[DropReason::NoFrame as usize].add(1);
        }
        copy
    }

    /// May one more sender be told that its frame was too long?
    pub fn may_complain(&self) -> bool {
        self.complaints > 0
    }

    /// Sends such a message, a frame made here.
    pub fn complain(&mut self, port: PortId, message: Frame) {
        self.complaints = self.complaints.saturating_sub(1);
        self.counters.created.add(1);
        self.send(port, &mut Batch::from_iter([message]));
    }

    /// Lets senders be told again: to be called twice a second.
    pub fn refill_complaints(&mut self) {
        self.complaints = COMPLAINTS;
    }

    /// Puts frames into the port's outbox; `frames` is empty after.
    pub fn send(&mut self, port: PortId, frames: &mut Batch) {
        let n = frames.len();
        self.send_next(port, &mut Leaving::of(frames), n);
    }

    /// Puts what another poller handed over into the outboxes; neighbours for one port together.
    pub fn send_parcels(&mut self, parcels: &mut ArrayVec<Parcel, BATCH>) {
        let mut run = Batch::new();
        let mut to = None;
        for (port, frame) in parcels.drain(..) {
            if let Some(other) = to.replace(port).filter(|other| *other != port) {
                self.send(other, &mut run);
            }
            run.push(frame);
        }
        if let Some(port) = to {
            self.send(port, &mut run);
        }
    }

    /// Puts the next `n` frames of a batch into the port's outbox.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline]
    pub fn send_next(&mut self, port: PortId, frames: &mut Leaving<'_>, n: usize) {
        let mut left = n;
        while left > 0 {
            let Some(Some(outbox)) = self.outboxes.get_mut(port.index()) else {
                return self.drop_all(port, &mut frames.take(left), DropReason::PortDown);
            };
            if !outbox.accepts(&frames.rest()[..left]) {
                return self.refuse(port, frames.take(left));
            }
            let was_empty = outbox.pending.is_empty();
            let fit = left.min(outbox.pending.remaining_capacity());
            frames.move_to(fit, &mut outbox.pending);
            left -= fit;
            if outbox.pending.is_full() {
                self.flush_port(port);
            } else if was_empty {
                self.dirty.push(port);
            }
        }
    }

    /// Drops the frames that exceed the port's MTU, and cannot be cut shorter; sends the others.
    #[cold]
    fn refuse(&mut self, port: PortId, frames: Batch) {
        let mut kept = Batch::new();
        for mut frame in frames {
            match self.outbox(port).is_some_and(|outbox| !outbox.shortens(&mut frame)) {
                true => self.drop_frame(port, frame, DropReason::OverMtu),
                false => kept.push(frame),
            }
        }
        self.send(port, &mut kept);
    }

    /// Empties all outboxes.
    pub fn flush(&mut self) {
        while let Some(port) = self.dirty.pop() {
            self.flush_port(port);
        }
    }

    fn flush_port(&mut self, port: PortId) {
        let empty = self.spare.take().unwrap_or_default();
        let Some(outbox) = self.outbox_mut(port) else { return };
        let mut pending = std::mem::replace(&mut outbox.pending, empty);
        let work = std::mem::take(&mut outbox.work);
        match &outbox.route {
            _ if pending.is_empty() => {}
            &Route::Own(place) if work == 0 => self.put(Exit { port, place }, &mut pending),
            &Route::Own(place) => self.transmit(Exit { port, place }, &mut pending),
            Route::Spread(places) => {
                let places = Arc::clone(places);
                self.spread(port, &places, &mut pending);
            }
            &Route::Via(poller) => self.hand_off(poller, port, &mut pending),
            Route::None => self.drop_all(port, &mut pending, DropReason::PortDown),
        }
        self.spare = Some(pending);
    }

    /// Drops frames on behalf of a port; `batch` is empty after.
    pub fn drop_all(&mut self, port: PortId, batch: &mut Batch, reason: DropReason) {
        batch.drain(..).for_each(|frame| self.drop_frame(port, frame, reason));
    }

    fn hand_off(&mut self, poller: usize, port: PortId, batch: &mut Batch) {
        let mut parcels = batch.drain(..).map(|frame| (port, frame));
        if let Some(peer) = &mut self.peers[poller] {
            peer.ring.send_each(&mut parcels);
            peer.waker.wake();
        }
        for (port, frame) in parcels {
            self.drop_frame(port, frame, DropReason::HandoffFull);
        }
    }

    /// Sends by a queue of our own, after doing what its port cannot do.
    fn transmit(&mut self, exit: Exit, batch: &mut Batch) {
        let queue = self.queues.get(exit.place).and_then(Option::as_ref);
        let offers = queue.map_or(Offloads::default(), |queue| queue.io.offloads());
        if batch.iter().all(|frame| offload::fits(frame.offload, offers)) {
            return self.put(exit, batch);
        }
        let mut ready = Batch::new();
        for mut frame in batch.drain(..) {
            if offload::fits(frame.offload, offers) {
                self.add_ready(exit, &mut ready, frame);
            } else if frame.offload.gso == encap::offload::Gso::None {
                match offload::complete(&mut frame) {
                    Ok(()) => self.add_ready(exit, &mut ready, frame),
                    Err(_) => self.drop_frame(exit.port, frame, DropReason::Unsupported),
                }
            } else {
                self.cut(exit.port, frame, |wires, segment| wires.add_ready(exit, &mut ready, segment));
            }
        }
        self.put(exit, &mut ready);
    }

    fn add_ready(&mut self, exit: Exit, ready: &mut Batch, frame: Frame) {
        ready.push(frame);
        if ready.is_full() {
            self.put(exit, ready);
        }
    }

    /// Cuts a GSO frame into what the wire carries: one frame becomes as many as there are segments, which are complete
    /// and come one by one. Those there is no memory for are drops of `port`.
    pub fn cut(&mut self, port: PortId, frame: Frame, mut each: impl FnMut(&mut Wires, Frame)) {
        let bytes = frame.bytes();
        let Ok(segments) = gso::segments(bytes, frame.offload) else {
            return self.drop_frame(port, frame, DropReason::Unsupported);
        };
        let count = segments.count();
        self.counters.created.add(count as u64 - 1);
        for index in 0..count {
            let Some(mut segment) = self.frames.alloc_for(segments.frame_len(index)) else {
                self.counters(port).drops[DropReason::NoFrame as usize].add(1);
                continue;
            };
            segment.set_len(segments.frame_len(index));
            segments.write(index, segment.bytes_mut());
            segment.entropy = frame.entropy;
            each(self, segment);
        }
        self.frames.free(frame);
    }

    fn put(&mut self, Exit { port, place }: Exit, batch: &mut Batch) {
        let offered = batch.len();
        let sent = match self.queues.get_mut(place) {
            Some(Some(queue)) if queue.up => {
                let is_armed = queue.armed;
                let before = self.stopwatch.enter(Stage::Send);
                let sent = queue.io.tx(&mut self.frames, batch);
                self.stopwatch.enter(before);
                if is_armed {
                    // Who gets frames soon answers; and what is sent may want to be looked after (AF_XDP's completions).
                    self.rouse(place);
                }
                sent
            }
            _ => return self.drop_all(port, batch, DropReason::PortDown),
        };
        let consumed = offered - batch.len();
        match sent {
            Ok(sent) => {
                let counters = self.counters(port);
                counters.tx_frames.add(sent.frames.into());
                counters.tx_bytes.add(sent.bytes);
                counters.drops[DropReason::TxError as usize].add((consumed - sent.frames as usize) as u64);
                self.drop_all(port, batch, DropReason::TxFull);
            }
            Err(error) => {
                self.counters(port).drops[DropReason::TxError as usize].add(consumed as u64);
                self.drop_all(port, batch, DropReason::PortDown);
                self.fail(place, error);
            }
        }
    }

    /// Receives from a queue of our own and counts.
    pub fn receive(&mut self, place: usize, batch: &mut Batch) -> Option<PortId> {
        let Some(Some(queue)) = self.queues.get_mut(place) else { return None };
        if !queue.up {
            return None;
        }
        let port = queue.port;
        let result = queue.io.rx(&mut self.frames, batch);
        queue.gave = batch.len();
        if !batch.is_empty() {
            let counters = self.counters(port);
            counters.rx_frames.add(batch.len() as u64);
            counters.rx_bytes.add(batch.iter().map(|f| f.len() as u64).sum());
        }
        if let Err(error) = result {
            self.fail(place, error);
        }
        Some(port)
    }

    /// Has a queue be asked again from the next turn on, if it is armed.
    #[cold]
    pub fn rouse(&mut self, place: usize) {
        let is_armed = self.queues.get(place).and_then(Option::as_ref).is_some_and(|queue| queue.armed);
        if is_armed && !self.roused.contains(&place) {
            self.roused.push(place);
        }
    }

    /// Takes an upcall token of the port behind a queue.
    pub fn may_upcall(&mut self, place: usize, rate: u32, now: Instant) -> bool {
        match self.queues.get_mut(place) {
            Some(Some(queue)) => queue.budget.take(rate, now),
            _ => true,
        }
    }

    /// Adds what the devices lost since the last time to our counters.
    pub fn collect_losses(&mut self) {
        for queue in self.queues.iter_mut().flatten() {
            let lost = queue.io.counters();
            let before = std::mem::replace(&mut queue.lost, lost);
            let outbox = self.outboxes.get(queue.port.index()).and_then(Option::as_ref);
            let counters = outbox.map_or(&self.nowhere, |o| &o.counters);
            counters.rx_missed.add(lost.rx_missed.saturating_sub(before.rx_missed));
            counters.rx_errors.add(lost.rx_errors.saturating_sub(before.rx_errors));
        }
    }

    fn fail(&mut self, place: usize, error: PortError) {
        if let Some(Some(queue)) = self.queues.get_mut(place) {
            queue.up = false;
            self.version += 1;
            self.gone.push((queue.port, error));
        }
    }

    fn outbox(&self, port: PortId) -> Option<&Outbox> {
        self.outboxes.get(port.index())?.as_deref()
    }

    fn outbox_mut(&mut self, port: PortId) -> Option<&mut Outbox> {
        self.outboxes.get_mut(port.index())?.as_deref_mut()
    }
}
