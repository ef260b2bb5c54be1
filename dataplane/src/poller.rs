//! The poller: one thread, one core, one loop. Everything a frame meets between two ports is called from here.

mod hits;
mod miss;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam::channel::Receiver;
use crossbeam::utils::CachePadded;
use flowtable::action::DropReason;
use flowtable::exact::ExactCache;
use flowtable::flow::Seat;
use flowtable::id::PortId;
use flowtable::key::TunnelFields;
use flowtable::keys::Keys;
use flowtable::megaflow::Reader;
use flowtable::places::Places;
use flowtable::time::Instant;

use self::hits::Count;
use crate::batch::{BATCH, Batch, extract_each};
use crate::frame::Frame;
use crate::handoff;
use crate::inner::Inner;
use crate::perf::Stage;
use crate::port::Port;
use crate::publish::Subscriber;
use crate::revalidate::{Pace, Revalidator, Site};
use crate::shared::{Event, Shared};
use crate::snapshot::Snapshot;
use crate::stats::PollerCounters;
use crate::translate::View;
use crate::wires::{Parcel, Wires};

/// Parcels taken from one peer per turn: a peer that floods us leaves time for our own queues.
const PARCELS: usize = 2 * BATCH;
/// How often device counters are read and learned entries expired.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// Entries expired per bridge and time.
const EXPIRE_STEP: usize = 4096;
/// How many tunnels, one in the other, a frame may come out of here: a tenant's own, in ours, in a provider's, and one
/// more.
const MAX_DEPTH: u8 = 4;
/// Entries of the exact-match cache looked at per housekeeping: all within four seconds.
const EXACT_STEP: usize = 1024;

/// Are decisions remembered?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Caches {
    /// Yes.
    #[default]
    On,
    /// No: every frame is translated. The output is the same, only slower.
    Off,
}

/// Something control asks a poller to do between two turns.
pub type Task = Box<dyn FnOnce(&mut Poller) + Send>;

/// What a poller is made of; see [`crate::switch`], which makes them.
pub struct Parts {
    /// Its index.
    pub index: usize,
    /// What it shares.
    pub shared: Arc<Shared>,
    /// Its mailbox.
    pub subscriber: Subscriber<Snapshot>,
    /// Its queues and outboxes.
    pub wires: Wires,
    /// Hand-off rings from the other pollers.
    pub inbox: Vec<handoff::Receiver<Parcel>>,
    /// Control's wishes.
    pub tasks: Receiver<Task>,
    /// Remember decisions?
    pub caches: Caches,
    /// After how long an unused flow goes.
    pub max_idle: Duration,
}

/// One poller.
pub struct Poller {
    index: usize,
    shared: Arc<Shared>,
    subscriber: Subscriber<Snapshot>,
    /// Its queues and outboxes.
    pub wires: Wires,
    inbox: Vec<handoff::Receiver<Parcel>>,
    tasks: Receiver<Task>,
    caches: Caches,
    exact: ExactCache,
    reader: Reader,
    revalidator: Revalidator,
    counters: Arc<CachePadded<PollerCounters>>,
    housekept: Instant,
    /// It receives nothing: frames wait in the rings of their ports.
    paused: bool,
    /// Room for inner frames, to change places with the wires' when those are decided.
    spare: Option<Box<Inner>>,
    /// The keys of the batch being decided; what is not zero in them is known, so they are kept.
    keys: Option<Box<Keys>>,
}

/// Parcels taken from a peer at a time.
type Parcels = ArrayVec<Parcel, BATCH>;

/// Frames without a cached flow, each with its place in the batch.
type Missed = ArrayVec<(usize, Frame), BATCH>;

impl Poller {
    /// Puts one together.
    pub fn new(parts: Parts) -> Self {
        let Parts { index, shared, subscriber, wires, inbox, tasks, caches, max_idle } = parts;
        let reader = shared.megaflows.reader().counting(Seat { index, pollers: shared.wakers.len() });
        Poller {
            index,
            subscriber,
            wires,
            inbox,
            tasks,
            caches,
            exact: ExactCache::new(),
            revalidator: Revalidator::new(max_idle, &reader),
            reader,
            counters: Arc::clone(shared.registry.poller(index)),
            housekept: Instant::ZERO,
            paused: false,
            spare: None,
            keys: None,
            shared,
        }
    }

    /// One turn of the loop. `ready` are the places of the queues to ask. Returns how many frames moved.
    pub fn turn(&mut self, now: Instant, ready: &[usize]) -> usize {
        self.wires.stopwatch.begin();
        self.reader.quiesce();
        self.run_tasks();
        self.refresh();
        let mut batch = Batch::new();
        let mut moved = self.receive_parcels(PARCELS);
        for &place in if self.paused { &[] } else { ready } {
            self.wires.stopwatch.enter(Stage::Receive);
            if let Some(port) = self.wires.receive(place, &mut batch) {
                moved += batch.len();
                self.process(Arrival { port, place, now, depth: 0 }, &mut batch);
            }
        }
        self.wires.stopwatch.enter(Stage::Upkeep);
        self.wires.flush();
        self.upkeep(now, if moved == 0 { Pace::Idle } else { Pace::Busy });
        self.counters.turns.add(1);
        self.wires.stopwatch.end(moved);
        moved
    }

    /// Its index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// What it shares.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Its counters.
    pub fn counters(&self) -> &PollerCounters {
        &self.counters
    }

    /// The tables it works by.
    pub fn snapshot(&self) -> &Snapshot {
        self.subscriber.current()
    }

    /// Is there something to do that no descriptor tells of?
    pub fn has_work(&self) -> bool {
        self.subscriber.has_mail()
            || !self.tasks.is_empty()
            || self.inbox.iter().any(|ring| !ring.is_empty())
            || self.shared.has_changes(self.index)
            || self.revalidator.is_behind()
    }

    /// How long it may sleep if no descriptor wakes it.
    pub fn patience(&self) -> Duration {
        if self.revalidator.has_flows() { HOUSEKEEPING } else { 2 * HOUSEKEEPING }
    }

    /// Sleeps by `sleep`, holding nothing back that others wait for.
    pub fn park<R>(&mut self, sleep: impl FnOnce() -> R) -> R {
        self.reader.park(sleep)
    }

    /// Makes a port known, with counters of our own.
    pub fn know(&mut self, port: PortId) {
        if !self.wires.knows(port) {
            let mtu = self.snapshot().tables.port(port).map_or(u16::MAX, |entry| entry.mtu);
            self.wires.add_port(port, mtu, self.shared.registry.port_counters(port));
        }
    }

    /// Gives up our queues of a port. Whoever gets them drops them: that may take the kernel tens of
    /// milliseconds, which no other port shall wait for.
    pub fn release_queues(&mut self, port: PortId) -> Vec<Box<dyn Port>> {
        let mut released = Vec::new();
        while let Some(mut queue) = self.wires.own_place(port).and_then(|place| self.wires.take_queue(place))
        {
            queue.io.close(&mut self.wires.frames);
            released.push(queue.io);
        }
        released
    }

    /// Closes all queues and frees all frames, for a poller about to end.
    pub fn close(&mut self) {
        self.wires.flush();
        for queue in &mut self.wires.queues {
            if let Some(mut queue) = queue.take() {
                queue.io.close(&mut self.wires.frames);
            }
        }
        let mut parcels = Parcels::new();
        for ring in &mut self.inbox {
            while !ring.is_empty() {
                ring.recv_into(&mut parcels);
                parcels
                    .drain(..)
                    .for_each(|(port, frame)| self.wires.drop_frame(port, frame, DropReason::PortDown));
            }
        }
    }

    /// Frames waiting in rings to this poller.
    pub fn held(&self) -> u64 {
        self.inbox.iter().map(|ring| ring.len() as u64).sum()
    }

    fn run_tasks(&mut self) {
        // A look, without the fence of an attempt to receive.
        while !self.tasks.is_empty()
            && let Ok(task) = self.tasks.try_recv()
        {
            task(self);
        }
    }

    /// Takes over newly published tables.
    fn refresh(&mut self) {
        if !self.subscriber.refresh() {
            return;
        }
        let snapshot = self.subscriber.current().clone();
        for (index, entry) in snapshot.tables.ports.iter().enumerate() {
            if let Some(entry) = entry {
                self.know(PortId(index as u32));
                self.wires.set_mtu(PortId(index as u32), entry.mtu);
            }
        }
        self.revalidator.note(0);
        self.subscriber.acknowledge(snapshot.generation);
    }

    /// Receives nothing until told to [`resume`](Self::resume); still sends what other pollers hand over.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Receives again.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Sends all frames that other pollers have handed over until now.
    pub fn send_parcels(&mut self) {
        self.receive_parcels(usize::MAX);
        self.wires.flush();
    }

    /// Takes up to `most` frames from each of the other pollers, of those that are there.
    fn receive_parcels(&mut self, most: usize) -> usize {
        let mut received = 0;
        let mut parcels = Parcels::new();
        for ring in &mut self.inbox {
            let waiting = ring.len().min(most);
            for _ in 0..waiting.div_ceil(BATCH) {
                ring.recv_into(&mut parcels);
                received += parcels.len();
                self.wires.send_parcels(&mut parcels);
            }
        }
        received
    }

    /// Carries a batch that arrived on one queue to its outboxes. What comes out of tunnels on the way is a batch again.
    fn process(&mut self, mut arrival: Arrival, batch: &mut Batch) {
        if batch.is_empty() {
            return;
        }
        self.counters.batches.add(1);
        self.counters.perf.batch(batch.len());
        self.counters.frames.add(batch.len() as u64);
        self.decide(arrival, batch, &[]);
        while !self.wires.inner.frames.is_empty() {
            arrival.depth += 1;
            let empty = self.spare.take().unwrap_or_default();
            let mut inner = std::mem::replace(&mut self.wires.inner, empty);
            if arrival.depth > MAX_DEPTH {
                self.wires.drop_all(arrival.port, &mut inner.frames, DropReason::TooDeep);
            } else {
                self.counters.inner.add(inner.frames.len() as u64);
                self.decide(arrival, &mut inner.frames, &inner.outers);
            }
            inner.outers.clear();
            self.spare = Some(inner);
        }
    }

    /// Finds out the fate of each frame and executes it. Those out of a tunnel have `outers`.
    fn decide(&mut self, arrival: Arrival, batch: &mut Batch, outers: &[(PortId, TunnelFields)]) {
        self.wires.stopwatch.enter(Stage::Extract);
        let mut keys = self.keys.take().unwrap_or_default();
        let sound = extract_each(batch, arrival.port, &mut keys);
        keys.set_tunnels(outers.iter().map(|(port, outer)| (*port, outer)));
        let mut missed = Missed::new();
        match self.caches {
            Caches::On => self.hits(arrival, (&keys, sound), batch, &mut missed),
            Caches::Off => missed.extend(batch.drain(..).enumerate()),
        }
        if !missed.is_empty() {
            self.wires.stopwatch.enter(Stage::Upcall);
            self.miss_each(arrival, (&keys, sound), &mut missed);
        }
        self.keys = Some(keys);
    }

    /// Decides, one by one, the frames that no cache knew.
    #[inline(never)]
    fn miss_each(&mut self, arrival: Arrival, (keys, sound): (&Keys, Places), missed: &mut Missed) {
        for (place, frame) in missed.drain(..) {
            match sound.contains(place) {
                true => self.miss(arrival, &keys[place], frame),
                false => self.wires.drop_frame(arrival.port, frame, DropReason::Malformed),
            }
        }
    }

    fn upkeep(&mut self, now: Instant, pace: Pace) {
        for (port, error) in std::mem::take(&mut self.wires.gone) {
            let _ = self.shared.events.send(Event::PortGone { port, error: error.to_string() });
        }
        match self.shared.take_changes(self.index) {
            0 => {}
            bits => self.revalidator.note(bits),
        }
        let view = View { snapshot: self.subscriber.current(), now };
        let site = Site { shared: &self.shared, reader: &self.reader };
        let again = self.revalidator.advance(view, pace, site);
        self.counters.revalidated.add(again);
        if now.since(self.housekept) >= HOUSEKEEPING {
            self.housekept = now;
            self.housekeep(now);
        }
    }

    fn housekeep(&mut self, now: Instant) {
        self.wires.collect_losses();
        self.wires.refill_complaints();
        self.exact.sweep(EXACT_STEP);
        self.counters.held.set(self.held());
        if self.index == 0 {
            for learned in self.subscriber.current().learned.iter().flatten() {
                let fdb = learned.fdb().expire(now, EXPIRE_STEP);
                let mcast = learned.mcast().expire(now, EXPIRE_STEP);
                let vteps = learned.vteps().expire(now, EXPIRE_STEP);
                self.shared.changed(fdb | mcast | vteps);
            }
        }
    }
}

/// Where and when a batch came in. What comes out of its frames' tunnels came in there, too: the queue's budget pays.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    port: PortId,
    /// The queue's place among ours.
    place: usize,
    now: Instant,
    /// How many tunnels the frames came out of here.
    depth: u8,
}

impl Arrival {
    /// Counts frames that came out of a tunnel on its port; others were counted when they were received.
    #[inline]
    fn account(&self, port: PortId, count: &Count, wires: &Wires) {
        if self.depth > 0 {
            let counters = wires.counters(port);
            counters.decapped_frames.add(count.frames);
            counters.decapped_bytes.add(count.bytes);
        }
    }
}
