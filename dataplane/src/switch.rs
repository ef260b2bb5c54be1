//! The switch as control sees it: pollers, their queues, and the tables they work by.
//!
//! Nothing here touches a frame. What control wants of a poller it asks by a task, which the poller runs
//! between two turns.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use flowtable::action::Effect;
use flowtable::flow::Flow;
use flowtable::id::{BridgeId, PortId};
use flowtable::key::FlowKey;
use flowtable::megaflow::{Limits, Megaflows};
use flowtable::time::Instant;
use flowtable::{fdb, mcast};
use thiserror::Error;

use crate::budget::Budget;
use crate::frame::{FrameCache, FramePool};
use crate::handoff;
use crate::poller::{Caches, Parts, Poller, Task};
use crate::port::Port;
use crate::publish::{self, Published};
use crate::run::{Clock, Idle, run};
use crate::shared::{Event, Shared};
use crate::snapshot::Snapshot;
use crate::stats::{Ledger, PollerCounters, PortStats};
use crate::tables::Tables;
use crate::trace::{Trace, trace};
use crate::translate::View;
use crate::upcall;
use crate::waker::Waker;
use crate::wires::{Parcel, Peer, Queue, Route, Wires};

/// Frames that may wait between two pollers: eight batches for each of 16 ports.
const RING: usize = 4096;
/// How long control waits for a poller before it gives up: far more than any turn takes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How a switch is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchConfig {
    /// The cores to run a poller on; at least one.
    pub cores: Vec<usize>,
    /// What pollers do with nothing to do.
    pub idle: Idle,
    /// Are decisions remembered?
    pub caches: Caches,
    /// The most cached flows.
    pub flows: usize,
    /// The most distinct masks among them.
    pub masks: usize,
    /// After how long an unused flow goes.
    pub max_idle: Duration,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        SwitchConfig {
            cores: vec![0],
            idle: Idle::Adaptive,
            caches: Caches::On,
            flows: 200_000,
            masks: 128,
            max_idle: Duration::from_secs(10),
        }
    }
}

/// The switch cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No core to run on.
    #[error("no core to run a poller on; set `cores` to at least one")]
    NoCore,
    /// The kernel gives no eventfd or thread.
    #[error("cannot start poller {poller}: {source}")]
    Poller {
        /// Which.
        poller: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A queue cannot be moved.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlaceError {
    /// There is no such queue.
    #[error("port {port} has no queue {queue}")]
    NoQueue {
        /// The port.
        port: PortId,
        /// The queue.
        queue: u16,
    },
    /// No poller runs there.
    #[error("no poller runs on core {0}; add it to `cores`")]
    NoPoller(usize),
}

/// Does a trace leave learned state as it is?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learn {
    /// It learns like a real frame.
    Yes,
    /// It changes nothing.
    No,
}

/// One poller, for people.
#[derive(Debug)]
pub struct PollerReport {
    /// Its core.
    pub core: usize,
    /// Its queues, as (port, queue).
    pub queues: Vec<(PortId, u16)>,
    /// Its counters, live.
    pub counters: Arc<crossbeam::utils::CachePadded<PollerCounters>>,
}

/// A running switch.
pub struct Switch {
    config: SwitchConfig,
    clock: Clock,
    shared: Arc<Shared>,
    tasks: Vec<Sender<Task>>,
    published: Mutex<(Published<Snapshot>, publish::Arc<Snapshot>)>,
    /// Held by who changes which poller has which queue, to the end: one at a time.
    change: Mutex<()>,
    /// Which poller has which queue. Nobody waits for pollers who holds this.
    placement: Mutex<Placement>,
    events: Receiver<Event>,
    stop: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Switch {
    /// Makes a switch and starts its pollers, each pinned to its core.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: SwitchConfig, pool: Arc<FramePool>) -> Result<Self, StartError> {
        let (switch, pollers) = Self::assemble(config, pool)?;
        for poller in pollers {
            let (index, core) = (poller.index(), switch.config.cores[poller.index()]);
            let (idle, clock, stop) = (switch.config.idle, switch.clock, Arc::clone(&switch.stop));
            let body = move || {
                if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
                    tracing::warn!(
                        "poller {index} cannot be pinned to core {core}; it runs where the kernel likes"
                    );
                }
                run(poller, idle, clock, &stop);
            };
            let thread = std::thread::Builder::new().name(format!("poller{index}"));
            let thread = thread.spawn(body).map_err(|source| StartError::Poller { poller: index, source })?;
            switch.lock_threads().push(thread);
        }
        Ok(switch)
    }

    /// Makes a switch whose pollers the caller turns himself, in a time of his own: for tests and benches.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn assemble(config: SwitchConfig, pool: Arc<FramePool>) -> Result<(Self, Vec<Poller>), StartError> {
        let count = config.cores.len();
        if count == 0 {
            return Err(StartError::NoCore);
        }
        let wakers = (0..count).map(|poller| {
            Waker::new().map(Arc::new).map_err(|e| StartError::Poller { poller, source: e.into() })
        });
        let wakers = wakers.collect::<Result<Vec<_>, _>>()?;
        let (events, event_receiver) = unbounded();
        let megaflows = Arc::new(Megaflows::new(Limits { flows: config.flows, masks: config.masks }));
        let shared = Arc::new(Shared::new(megaflows, wakers, events));
        let first = publish::Arc::new(Snapshot { generation: 1, ..Snapshot::default() });
        let (published, subscribers) = publish::channel(first.clone(), count);
        let (tasks, task_receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded()).unzip();
        let (mut outgoing, mut incoming) = rings(&shared.wakers);
        let mut pollers = Vec::new();
        for (index, (subscriber, tasks)) in subscribers.into_iter().zip(task_receivers).enumerate() {
            let frames = FrameCache::new(Arc::clone(&pool));
            let peers = std::mem::take(&mut outgoing[index]);
            let counters = Arc::clone(shared.registry.poller(index));
            let wires = Wires::new(frames, peers, counters, shared.registry.nowhere());
            let inbox = std::mem::take(&mut incoming[index]);
            let (caches, max_idle, shared) = (config.caches, config.max_idle, Arc::clone(&shared));
            pollers.push(Poller::new(Parts {
                index,
                shared,
                subscriber,
                wires,
                inbox,
                tasks,
                caches,
                max_idle,
            }));
        }
        let switch = Switch {
            config,
            clock: Clock::start(),
            shared,
            tasks,
            published: Mutex::new((published, first)),
            change: Mutex::default(),
            placement: Mutex::default(),
            events: event_receiver,
            stop: Arc::default(),
            threads: Mutex::default(),
        };
        Ok((switch, pollers))
    }

    /// Puts new tables in force; their generation. Returns once every running poller works by them and has sent what the
    /// others handed to it before, so that no frame that was treated by the old ones leaves any more.
    pub fn publish(&self, tables: Tables) -> u64 {
        let mut published = self.lock_published();
        let old = published.1.clone();
        let new = publish::Arc::new(crate::learn::succeed(&old, tables));
        published.0.publish(&new);
        published.1 = new.clone();
        self.shared.wakers.iter().for_each(|w| w.wake());
        self.wait_until(|| published.0.oldest_in_use() >= new.generation);
        self.tell_all(Poller::send_parcels);
        self.shared.changed(crate::learn::forget_changed(&old.tables, &new));
        new.generation
    }

    /// Gives a port its queues, in place of any it had. `cores[i]` is where queue `i` shall be served; queues
    /// without a wish go where there are the fewest.
    pub fn attach(&self, port: PortId, queues: Vec<Box<dyn Port>>, cores: &[Option<usize>]) {
        let _change = self.lock_change();
        drop(self.withdraw(port));
        for (index, io) in queues.into_iter().enumerate() {
            let wish = cores.get(index).copied().flatten();
            let poller = wish.and_then(|core| self.poller_on(core)).unwrap_or_else(|| self.idlest());
            self.lock_placement().insert((port, index as u16), poller);
            let budget = Budget::new(self.upcall_rate(port), self.now());
            let queue = Queue::new(port, index as u16, io, budget);
            self.tell(poller, move |p| {
                p.know(port);
                p.wires.add_queue(queue);
            });
        }
        self.route(port, self.owners(port));
    }

    /// Takes a port's queues away and closes them. Returns when no running poller uses them any more.
    pub fn detach(&self, port: PortId) {
        let change = self.lock_change();
        let queues = self.withdraw(port);
        drop(change);
        // The kernel may take tens of milliseconds for each.
        drop(queues);
    }

    /// Takes a port's queues from the running pollers.
    fn withdraw(&self, port: PortId) -> Receiver<Box<dyn Port>> {
        self.lock_placement().retain(|(p, _), _| *p != port);
        self.tell_all(move |p| p.wires.set_route(port, Route::None));
        let (released, queues) = unbounded();
        self.tell_all(move |p| {
            for queue in p.release_queues(port) {
                // Without a receiver, in a switch turned by hand, the queue is dropped here.
                let _ = released.send(queue);
            }
        });
        queues
    }

    /// Forgets a port that is gone for good: its counters move to those of the whole switch.
    pub fn forget(&self, port: PortId) {
        self.detach(port);
        self.tell_all(move |p| p.wires.remove_port(port));
        self.shared.registry.forget(port);
    }

    /// Moves a queue to the poller on `core` while frames flow. We lose none, and none overtakes another: from before the
    /// first poller knows of the move until after the last one does, nobody receives, and what was under way between
    /// pollers leaves first. Frames wait in the rings of their ports meanwhile, as far as there is room, for as long as
    /// the slowest poller takes to turn a few times.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn place(&self, port: PortId, queue: u16, core: usize) -> Result<(), PlaceError> {
        let to = self.poller_on(core).ok_or(PlaceError::NoPoller(core))?;
        let _change = self.lock_change();
        let place = self.lock_placement().get(&(port, queue)).copied();
        let from = place.ok_or(PlaceError::NoQueue { port, queue })?;
        if from == to {
            return Ok(());
        }
        self.tell_all(Poller::pause);
        self.tell_all(Poller::send_parcels);
        // The queue travels as a task of its new owner.
        let (next, waker) = (self.tasks[to].clone(), Arc::clone(&self.shared.wakers[to]));
        self.tell(from, move |p| {
            let Some(moved) = p.wires.place_of(port, queue).and_then(|place| p.wires.take_queue(place))
            else {
                return;
            };
            let _ = next.send(Box::new(move |p: &mut Poller| {
                p.know(port);
                p.wires.add_queue(moved);
                p.wires.route_own(port);
            }));
            waker.wake();
        });
        self.barrier();
        self.lock_placement().insert((port, queue), to);
        self.route(port, self.owners(port));
        self.tell_all(Poller::resume);
        Ok(())
    }

    /// What control should know.
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// A port's counters, summed over pollers.
    pub fn port_stats(&self, port: PortId) -> PortStats {
        self.shared.registry.port(port)
    }

    /// The counters of all ports that ever were.
    pub fn total_stats(&self) -> PortStats {
        self.shared.registry.total()
    }

    /// The pollers.
    pub fn pollers(&self) -> Vec<PollerReport> {
        let placement = self.lock_placement();
        let queues = |index| placement.iter().filter(move |(_, p)| **p == index).map(|(queue, _)| *queue);
        let report = |(index, &core): (usize, &usize)| PollerReport {
            core,
            queues: queues(index).collect(),
            counters: Arc::clone(self.shared.registry.poller(index)),
        };
        self.config.cores.iter().enumerate().map(report).collect()
    }

    /// The flow cache.
    pub fn megaflows(&self) -> &Arc<Megaflows> {
        &self.shared.megaflows
    }

    /// The cached flows now.
    pub fn flows(&self) -> Vec<Flow> {
        self.shared.megaflows.snapshot()
    }

    /// Forgets all cached flows; how many there were.
    pub fn flush_flows(&self) -> usize {
        self.shared.megaflows.clear()
    }

    /// What a bridge learned.
    pub fn fdb(&self, bridge: BridgeId) -> Vec<fdb::Entry> {
        let now = self.now();
        self.snapshot().learned(bridge).map_or_else(Vec::new, |l| l.fdb().entries(now).collect())
    }

    /// Forgets what a bridge learned (of one port); how many entries.
    pub fn fdb_flush(&self, bridge: BridgeId, port: Option<PortId>) -> usize {
        let snapshot = self.snapshot();
        let Some(learned) = snapshot.learned(bridge) else { return 0 };
        let flushed = learned.fdb().flush(port);
        self.shared.changed(flushed.changed);
        flushed.count
    }

    /// The multicast groups a bridge knows.
    pub fn mdb(&self, bridge: BridgeId) -> Vec<mcast::Entry> {
        let now = self.now();
        self.snapshot().learned(bridge).map_or_else(Vec::new, |l| l.mcast().entries(now).collect())
    }

    /// Forgets the multicast groups a bridge knows.
    pub fn mdb_flush(&self, bridge: BridgeId) {
        if let Some(learned) = self.snapshot().learned(bridge) {
            let changed = learned.mcast().flush(None);
            self.shared.changed(changed);
        }
    }

    /// Explains what happens to a frame with this key.
    pub fn trace(&self, key: &FlowKey, learn: Learn) -> Trace {
        let snapshot = self.snapshot();
        let now = self.now();
        let trace = trace(View { snapshot: &snapshot, now }, key);
        if learn == Learn::Yes {
            // A key has no payload to read, so there is nothing to snoop.
            let effects: Vec<Effect> = trace.decision.effects.to_vec();
            self.shared.changed(upcall::apply(&effects, &snapshot, &[], now));
            self.shared.resolve(&effects);
        }
        trace
    }

    /// Whoever has the address was found, or given up on: [`Event::Resolve`] may come for it again.
    pub fn resolved(&self, endpoint: PortId, address: IpAddr) {
        self.shared.resolved(endpoint, address);
    }

    /// Now, in the time of the switch.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Do all pollers still turn? Waits for each to answer, at most `patience` in all.
    pub fn is_alive(&self, patience: Duration) -> bool {
        let (done, answers) = bounded(self.tasks.len());
        (0..self.tasks.len()).for_each(|index| {
            let done = done.clone();
            self.tell(index, move |_| {
                // Nobody listens any more if the patience ran out.
                let _ = done.send(());
            });
        });
        let deadline = std::time::Instant::now() + patience;
        self.tasks.iter().all(|_| answers.recv_deadline(deadline).is_ok())
    }

    /// Stops all pollers between two turns, takes the conservation law's sums, and lets them go on.
    pub fn ledger(&self) -> Ledger {
        // Held to the end: two who stop the pollers at once, each in another order, would wait for ever.
        let threads = self.lock_threads();
        let count = threads.len();
        let standing = Arc::new(Barrier::new(count + 1));
        let (held, answers) = bounded(count.max(1));
        let (resume, stopped) = bounded::<()>(0);
        for index in 0..count {
            let (standing, held, stopped) = (Arc::clone(&standing), held.clone(), stopped.clone());
            self.tell(index, move |p| {
                standing.wait();
                let _ = held.send(p.held());
                // Goes on when control drops its end.
                let _ = stopped.recv();
            });
        }
        standing.wait();
        let held = (0..count).filter_map(|_| answers.recv_timeout(TIMEOUT).ok()).sum();
        let ledger = self.shared.registry.ledger(held);
        drop(resume);
        ledger
    }

    /// What is in force, and what was learned under it.
    pub fn snapshot(&self) -> publish::Arc<Snapshot> {
        self.lock_published().1.clone()
    }

    fn upcall_rate(&self, port: PortId) -> u32 {
        self.snapshot().tables.port(port).map_or(0, |p| p.upcall_rate)
    }

    fn poller_on(&self, core: usize) -> Option<usize> {
        self.config.cores.iter().position(|c| *c == core)
    }

    /// The poller with the fewest queues.
    fn idlest(&self) -> usize {
        let placement = self.lock_placement();
        let load = |index: &usize| placement.values().filter(|p| *p == index).count();
        (0..self.tasks.len()).min_by_key(load).unwrap_or(0)
    }

    /// The pollers that have a queue of the port, by queue.
    fn owners(&self, port: PortId) -> Vec<usize> {
        self.lock_placement().range((port, 0)..=(port, u16::MAX)).map(|(_, poller)| *poller).collect()
    }

    /// Tells every poller how to reach the port: by queues of its own, else through one of the owners.
    fn route(&self, port: PortId, owners: Vec<usize>) {
        self.tell_all(move |p| {
            p.know(port);
            let via = owners.get(p.index() % owners.len().max(1)).copied();
            // Else the queue is still on its way here, and brings its route along.
            if !p.wires.route_own(port) && via != Some(p.index()) {
                p.wires.set_route(port, via.map_or(Route::None, Route::Via));
            }
        });
    }

    fn tell(&self, poller: usize, task: impl FnOnce(&mut Poller) + Send + 'static) {
        let _ = self.tasks[poller].send(Box::new(task));
        self.shared.wakers[poller].wake();
    }

    /// Has every poller run the task; waits until the running ones did.
    fn tell_all(&self, task: impl Fn(&mut Poller) + Send + Clone + 'static) {
        for index in 0..self.tasks.len() {
            let task = task.clone();
            self.tell(index, move |p| task(p));
        }
        self.barrier();
    }

    /// Waits until all running pollers did what they were told.
    fn barrier(&self) {
        if self.is_running() && !self.is_alive(TIMEOUT) {
            tracing::error!("a poller has not answered for {TIMEOUT:?}");
        }
    }

    fn wait_until(&self, done: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + TIMEOUT;
        while self.is_running() && !done() {
            if std::time::Instant::now() > deadline {
                return tracing::error!("a poller has not taken the new tables for {TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Do the pollers have threads of their own?
    fn is_running(&self) -> bool {
        !self.lock_threads().is_empty()
    }

    fn lock_published(&self) -> MutexGuard<'_, (Published<Snapshot>, publish::Arc<Snapshot>)> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_change(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_placement(&self) -> MutexGuard<'_, Placement> {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.shared.wakers.iter().for_each(|w| w.wake());
        for thread in self.lock_threads().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a poller had panicked");
            }
        }
    }
}

/// Which poller has each queue.
type Placement = BTreeMap<(PortId, u16), usize>;

/// A ring from every poller to every other: what each sends by, and what each receives from.
type Rings = (Vec<Vec<Option<Peer>>>, Vec<Vec<handoff::Receiver<Parcel>>>);

fn rings(wakers: &[Arc<Waker>]) -> Rings {
    let mut outgoing: Vec<Vec<Option<Peer>>> = Vec::new();
    let mut incoming: Vec<Vec<_>> = wakers.iter().map(|_| Vec::new()).collect();
    for from in 0..wakers.len() {
        let mut peers = Vec::new();
        for (to, waker) in wakers.iter().enumerate() {
            peers.push((from != to).then(|| {
                let (ring, receiver) = handoff::ring(RING);
                incoming[to].push(receiver);
                Peer { ring, waker: Arc::clone(waker) }
            }));
        }
        outgoing.push(peers);
    }
    (outgoing, incoming)
}
