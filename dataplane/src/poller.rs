//! The poller: one thread, one core, one loop. Everything a frame meets between two ports is called from here.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam::channel::Receiver;
use crossbeam::utils::CachePadded;
use flowtable::action::DropReason;
use flowtable::exact::ExactCache;
use flowtable::field::Field;
use flowtable::flow::{Birth, Decision, Flow};
use flowtable::id::PortId;
use flowtable::intern::ActionLists;
use flowtable::key::{FlowKey, TunnelFields};
use flowtable::megaflow::{FlowRef, Inserted, Reader};
use flowtable::places::Places;
use flowtable::time::Instant;

use crate::batch::{BATCH, Batch, Keys, extract_each};
use crate::execute::{Origin, execute};
use crate::frame::Frame;
use crate::handoff;
use crate::inner::Inner;
use crate::port::Port;
use crate::publish::Subscriber;
use crate::revalidate::{Pace, Revalidator, holds};
use crate::shared::{Event, Shared};
use crate::snapshot::Snapshot;
use crate::stats::PollerCounters;
use crate::translate::{Silent, View, translate};
use crate::upcall;
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
    lists: ActionLists,
    reader: Reader,
    revalidator: Revalidator,
    counters: Arc<CachePadded<PollerCounters>>,
    housekept: Instant,
    /// Room for inner frames, to change places with the wires' when those are decided.
    spare: Option<Box<Inner>>,
}

/// Frames without a cached flow, each with its place in the batch.
type Missed = ArrayVec<(usize, Frame), BATCH>;

impl Poller {
    /// Puts one together.
    pub fn new(parts: Parts) -> Self {
        let Parts { index, shared, subscriber, wires, inbox, tasks, caches, max_idle } = parts;
        Poller {
            index,
            subscriber,
            wires,
            inbox,
            tasks,
            caches,
            exact: ExactCache::new(),
            lists: ActionLists::default(),
            reader: shared.megaflows.reader(),
            revalidator: Revalidator::new(max_idle),
            counters: Arc::clone(shared.registry.poller(index)),
            housekept: Instant::ZERO,
            spare: None,
            shared,
        }
    }

    /// One turn of the loop. `ready` are the places of the queues to ask. Returns how many frames moved.
    pub fn turn(&mut self, now: Instant, ready: &[usize]) -> usize {
        self.reader.quiesce();
        self.run_tasks();
        self.refresh();
        let mut batch = Batch::new();
        let mut moved = self.receive_parcels(PARCELS);
        for &place in ready {
            if let Some(port) = self.wires.receive(place, &mut batch) {
                moved += batch.len();
                self.process(Arrival { port, place, now, depth: 0 }, &mut batch);
            }
        }
        self.wires.flush();
        self.upkeep(now, if moved == 0 { Pace::Idle } else { Pace::Busy });
        self.counters.turns.add(1);
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
        for ring in &mut self.inbox {
            while let Some((port, frame)) = ring.recv() {
                self.wires.drop_frame(port, frame, DropReason::PortDown);
            }
        }
    }

    /// Frames waiting in rings to this poller.
    pub fn held(&self) -> u64 {
        self.inbox.iter().map(|ring| ring.len() as u64).sum()
    }

    fn run_tasks(&mut self) {
        while let Ok(task) = self.tasks.try_recv() {
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

    /// Sends all frames that other pollers have handed over until now.
    pub fn send_parcels(&mut self) {
        self.receive_parcels(usize::MAX);
        self.wires.flush();
    }

    /// Takes up to `most` frames from each of the other pollers, of those that are there.
    fn receive_parcels(&mut self, most: usize) -> usize {
        let mut received = 0;
        for ring in &mut self.inbox {
            let waiting = ring.len().min(most);
            for (port, frame) in std::iter::from_fn(|| ring.recv()).take(waiting) {
                received += 1;
                self.wires.send(port, &mut Batch::from_iter([frame]));
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
        let mut keys = Keys::new();
        let sound = extract_each(batch, arrival.port, &mut keys);
        for (key, (port, outer)) in keys.iter_mut().zip(outers) {
            *key = key.with(Field::InPort, *port);
            key.set_tunnel(outer);
        }
        let mut missed = Missed::new();
        match self.caches {
            Caches::On => self.hits(arrival, (&keys, sound), batch, &mut missed),
            Caches::Off => missed.extend(batch.drain(..).enumerate()),
        }
        for (place, frame) in missed {
            match sound.contains(place) {
                true => self.miss(arrival, &keys[place], frame),
                false => self.wires.drop_frame(arrival.port, frame, DropReason::Malformed),
            }
        }
    }

    /// Executes all frames that a cache knows; neighbours of one flow make a group. The others go to `missed`.
    fn hits(
        &mut self,
        arrival: Arrival,
        (keys, sound): (&Keys, Places),
        batch: &mut Batch,
        missed: &mut Missed,
    ) {
        let generation = self.subscriber.current().generation;
        let hashes: ArrayVec<u64, BATCH> = keys.iter().map(|key| self.reader.hash(key)).collect();
        let mut flows = [None; BATCH];
        let flows = &mut flows[..keys.len()];
        let mut unknown = sound;
        for place in sound {
            if let Some(flow) = self.exact.get(&keys[place], hashes[place], generation) {
                flows[place] = Some(Arc::as_ref(flow));
                unknown.remove(place);
            }
        }
        let mut found = ArrayVec::<(u64, FlowRef<'_>), BATCH>::new();
        self.reader.lookup_each(keys, unknown, |place, flow| {
            if flow.generation() == generation {
                flow.prefetch(self.index);
                flows[place] = Some(flow.get());
                found.push((hashes[place], flow));
            }
        });
        let mut frames = batch.drain(..);
        let mut group = Batch::new();
        let mut at = 0;
        for run in flows.chunk_by(|a, b| same(*a, *b)) {
            let first = at;
            at += run.len();
            let Some(flow) = run[0] else {
                missed.extend((first..).zip(frames.by_ref()).take(run.len()));
                continue;
            };
            group.extend(frames.by_ref().take(run.len()));
            let bytes = group.iter().map(|frame| frame.len() as u64).sum();
            let tcp_flags = keys[first..at].iter().fold(0, |flags, key| flags | key.tcp_flags().get());
            flow.stats(self.index).add(group.len() as u64, bytes, tcp_flags, arrival.now);
            let origin = Origin { port: flow.in_port, keys: &keys[first..at] };
            arrival.account(origin.port, (group.len(), bytes), &self.wires);
            execute(&flow.decision.actions, origin, &mut group, &mut self.wires);
        }
        let hits = keys.len() - missed.len();
        self.counters.megaflow_hits.add(found.len() as u64);
        self.counters.exact_hits.add((hits - found.len()) as u64);
        for (hash, flow) in found {
            self.exact.insert(hash, || flow.share());
        }
    }

    /// A frame that no cache knew when its batch was classified.
    fn miss(&mut self, arrival: Arrival, key: &FlowKey, frame: Frame) {
        let snapshot = self.subscriber.current().clone();
        let view = View { snapshot: &snapshot, now: arrival.now };
        if self.caches == Caches::On {
            if let Some(flow) = self.current_flow(key, view) {
                return self.follow(&flow, arrival, key, frame);
            }
            let rate = snapshot.tables.port(arrival.port).map_or(0, |p| p.upcall_rate);
            if !self.wires.may_upcall(arrival.place, rate, arrival.now) {
                return self.wires.drop_frame(arrival.port, frame, DropReason::UpcallBudget);
            }
        }
        self.counters.upcalls.add(1);
        let decision = translate(view, key, &mut Silent);
        self.shared.changed(upcall::apply(&decision.effects, &snapshot, frame.bytes(), arrival.now));
        self.shared.resolve(&decision.effects);
        match self.caches == Caches::On && decision.cacheable {
            true => {
                let flow = self.install(key, decision, view);
                self.follow(&flow, arrival, key, frame);
            }
            false => self.execute_one(&decision, arrival, key, frame),
        }
    }

    /// The flow that an earlier frame of the batch, or another poller, has installed since; or one of an older
    /// generation, if it holds for this one too.
    fn current_flow(&mut self, key: &FlowKey, view: View<'_>) -> Option<Arc<Flow>> {
        let flow = self.reader.lookup(key)?.share();
        if flow.generation() == view.snapshot.generation {
            return Some(flow);
        }
        self.counters.revalidated.add(1);
        if holds(&flow, view) {
            flow.confirm(view.snapshot.generation);
            return Some(flow);
        }
        self.shared.megaflows.remove(&flow);
        None
    }

    fn install(&mut self, key: &FlowKey, mut decision: Decision, view: View<'_>) -> Arc<Flow> {
        decision.actions = self.lists.share(decision.actions);
        let port = decision.in_port;
        let pollers = self.shared.wakers.len();
        let birth = Birth { generation: view.snapshot.generation, pollers, now: view.now };
        let flow = Arc::new(Flow::new(key, port, decision, birth));
        match self.shared.megaflows.insert(Arc::clone(&flow)) {
            Inserted::Installed | Inserted::Replaced(_) | Inserted::Evicted(_) => {
                self.revalidator.adopt(Arc::clone(&flow))
            }
            _ => self.counters.not_installed.add(1),
        }
        flow
    }

    fn follow(&mut self, flow: &Flow, arrival: Arrival, key: &FlowKey, frame: Frame) {
        flow.stats(self.index).add(1, frame.len() as u64, key.tcp_flags().get(), arrival.now);
        self.execute_one(&flow.decision, arrival, key, frame);
    }

    fn execute_one(&mut self, decision: &Decision, arrival: Arrival, key: &FlowKey, frame: Frame) {
        let origin = Origin { port: decision.in_port, keys: std::slice::from_ref(key) };
        arrival.account(origin.port, (1, frame.len() as u64), &self.wires);
        execute(&decision.actions, origin, &mut Batch::from_iter([frame]), &mut self.wires);
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
        let again = self.revalidator.advance(view, pace, &self.shared);
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

/// Are both the same flow, or both none?
fn same(a: Option<&Flow>, b: Option<&Flow>) -> bool {
    a.map(std::ptr::from_ref) == b.map(std::ptr::from_ref)
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
    /// Counts frames, of so many bytes in all, that came out of a tunnel on its port; others were counted when they were
    /// received.
    #[inline]
    fn account(&self, port: PortId, (frames, bytes): (usize, u64), wires: &Wires) {
        if self.depth > 0 {
            let counters = wires.counters(port);
            counters.decapped_frames.add(frames as u64);
            counters.decapped_bytes.add(bytes);
        }
    }
}
