//! The endpoints whose addresses are configured, and the thread that is their host.
//!
//! The thread sleeps until the switch sends something to an endpoint, or a timer of one is due; idle it costs nothing. Of
//! what comes it takes [`BURST`] frames per endpoint, then rests for [`REST`]: a flood on the underlay takes a fraction of
//! a core, and what it has no room for the switch drops and counts at the endpoint's port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::frame::FramePool;
use dataplane::port::Port;
use dataplane::port::memory::{Peer, ringing_pair};
use dataplane::run::Clock;
use encap::field::MacAddr;
use flowtable::id::PortId;
use flowtable::time::Instant;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::neighbours::{Entry, Neighbours};
use super::path::{PathMtus, Traffic, Verdict};
use super::stack::{Identity, News, Stack};

/// Frames that may wait for an endpoint, or for the switch.
const QUEUE: usize = 512;
/// Frames of an endpoint that are looked at in one turn.
const BURST: usize = 128;
/// The pause after a turn that had more to do: 128 frames in 5 ms are some 25,000 per second.
const REST: Duration = Duration::from_millis(5);
/// Somebody else who has our address is complained about so often.
const COMPLAINT: Duration = Duration::from_secs(60);

/// What is wanted of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Who it is.
    pub identity: Identity,
    /// The next hops to be known at all times.
    pub next_hops: BTreeSet<IpAddr>,
}

/// What was found out.
#[derive(Debug, Default)]
pub struct Findings {
    /// MAC addresses of next hops.
    pub neighbours: HashMap<(PortId, IpAddr), MacAddr>,
    /// Longest packets.
    pub path_mtus: HashMap<IpAddr, u16>,
    /// Is there a message about packets to an endpoint that is not among the known ones?
    pub stranger: bool,
}

/// All endpoints with configured addresses.
pub struct Endpoints {
    shared: Arc<Shared>,
    pool: Arc<FramePool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    clock: Clock,
    /// Wakes the thread.
    bell: Arc<EventFd>,
    /// Readable when the findings changed.
    news: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    slots: BTreeMap<PortId, Slot>,
    traffic: Traffic,
    paths: PathMtus,
    /// Who was complained about, and when.
    conflicts: HashMap<IpAddr, (MacAddr, Instant)>,
    /// See [`Findings`].
    stranger: bool,
    closing: bool,
}

struct Slot {
    stack: Stack,
    next_hops: BTreeSet<IpAddr>,
    /// The cable, while the port is open.
    peer: Option<Peer>,
}

impl AsFd for Endpoints {
    /// Readable when the findings changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.news.as_fd()
    }
}

impl Endpoints {
    /// None yet; the thread starts with the first.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new(pool: Arc<FramePool>) -> io::Result<Self> {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let (bell, news) = (Arc::new(eventfd()?), eventfd()?);
        let shared = Shared { state: Mutex::default(), clock: Clock::start(), bell, news };
        Ok(Endpoints { shared: Arc::new(shared), pool, thread: Mutex::default() })
    }

    /// Which endpoints there shall be, and what packets of ours look like.
    pub fn demand(&self, demands: BTreeMap<PortId, Demand>, traffic: Traffic) {
        let now = self.shared.clock.now();
        let mut state = self.shared.lock();
        state.traffic = traffic;
        state.slots.retain(|port, _| demands.contains_key(port));
        for (port, Demand { identity, next_hops }) in demands {
            let slot = state.slots.entry(port).or_insert_with(|| Slot {
                stack: Stack::new(identity.clone(), now),
                next_hops: BTreeSet::new(),
                peer: None,
            });
            slot.stack.identify(identity, now);
            slot.next_hops = next_hops;
            slot.inquire(now);
        }
        drop(state);
        let _ = self.shared.bell.write(1);
    }

    /// Opens an endpoint's port: what the switch attaches. It must have been demanded.
    ///
    /// # Errors
    /// If there is no such endpoint, or the process has no descriptor or thread left.
    pub fn open(&self, port: PortId) -> io::Result<Box<dyn Port>> {
        let mut thread = self.lock_thread();
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("underlay".to_owned());
            *thread = Some(builder.spawn(move || serve(&shared))?);
        }
        drop(thread);
        let (end, peer) = ringing_pair(&self.pool, QUEUE, &self.shared.bell)?;
        let mut state = self.shared.lock();
        let slot = state.slots.get_mut(&port).ok_or(io::ErrorKind::NotFound)?;
        slot.peer = Some(peer);
        drop(state);
        self.wake();
        Ok(Box::new(end))
    }

    /// The wire is not what it was: all endpoints announce themselves, and ask again for whom they did not find.
    pub fn wake(&self) {
        let now = self.shared.clock.now();
        for slot in self.shared.lock().slots.values_mut().filter(|slot| slot.peer.is_some()) {
            slot.stack.announce(now);
            slot.stack.neighbours.again(now);
            slot.inquire(now);
        }
        let _ = self.shared.bell.write(1);
    }

    /// A frame waits for this next hop.
    pub fn resolve(&self, port: PortId, address: IpAddr) {
        let now = self.shared.clock.now();
        if let Some(slot) = self.shared.lock().slots.get_mut(&port).filter(|slot| slot.peer.is_some()) {
            let question = slot.stack.neighbours.ask(address, now);
            slot.stack.put(question);
        }
        let _ = self.shared.bell.write(1);
    }

    /// The operator says who has an address. False if there is no such endpoint.
    pub fn set_neighbour(&self, port: PortId, address: IpAddr, mac: MacAddr) -> bool {
        let now = self.shared.clock.now();
        let mut state = self.shared.lock();
        let slot = state.slots.get_mut(&port);
        let _ = self.shared.news.write(1);
        slot.map(|slot| slot.stack.neighbours.fix(address, mac, now)).is_some()
    }

    /// Forgets all neighbours, and asks for those that are wanted all the time.
    pub fn flush_neighbours(&self) {
        let now = self.shared.clock.now();
        for slot in self.shared.lock().slots.values_mut() {
            let questions = slot.stack.neighbours.flush(now);
            slot.stack.put(questions);
        }
        let _ = self.shared.news.write(1);
        let _ = self.shared.bell.write(1);
    }

    /// Did the findings change since this was last asked?
    pub fn has_news(&self) -> bool {
        self.shared.news.read().is_ok()
    }

    /// What was found out so far.
    pub fn findings(&self) -> Findings {
        let mut state = self.shared.lock();
        let known = |(port, slot): (&PortId, &Slot)| {
            let port = *port;
            let known: Vec<_> = slot.stack.neighbours.known().collect();
            known.into_iter().map(move |(address, mac)| ((port, address), mac))
        };
        let neighbours = state.slots.iter().flat_map(known).collect();
        let path_mtus = state.paths.iter().collect();
        Findings { neighbours, path_mtus, stranger: std::mem::take(&mut state.stranger) }
    }

    fn lock_thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All neighbours, and what time it is for them.
    pub fn neighbours(&self) -> (Vec<(PortId, IpAddr, Entry)>, Instant) {
        let state = self.shared.lock();
        let of = |neighbours: &Neighbours| neighbours.iter().map(|(a, e)| (a, *e)).collect::<Vec<_>>();
        let all = state.slots.iter().flat_map(|(port, slot)| {
            of(&slot.stack.neighbours).into_iter().map(|(address, entry)| (*port, address, entry))
        });
        (all.collect(), self.shared.clock.now())
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        let _ = self.shared.bell.write(1);
        let thread = self.lock_thread().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the underlay's thread had panicked");
        }
    }
}

/// The thread.
fn serve(shared: &Shared) {
    loop {
        // Before the queues are looked at, so that a frame that comes meanwhile wakes us again.
        let _ = shared.bell.read();
        let mut state = shared.lock();
        if state.closing {
            return;
        }
        let Turn { next, changed, busy } = state.turn(shared.clock.now());
        drop(state);
        if changed {
            let _ = shared.news.write(1);
        }
        if busy {
            std::thread::sleep(REST);
            continue;
        }
        let wait = next.map(|at| at.since(shared.clock.now()));
        let _ = poll(&mut [PollFd::new(shared.bell.as_fd(), PollFlags::POLLIN)], timeout(wait));
    }
}

/// In milliseconds, rounded up: to wake early would be to wake twice.
fn timeout(wait: Option<Duration>) -> PollTimeout {
    let Some(wait) = wait else { return PollTimeout::NONE };
    PollTimeout::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}

/// What came of a turn.
struct Turn {
    /// When a timer is due.
    next: Option<Instant>,
    /// Must the data plane know of something?
    changed: bool,
    /// Are there more frames?
    busy: bool,
}

impl State {
    fn turn(&mut self, now: Instant) -> Turn {
        let mut changed = self.paths.turn(now);
        let (mut busy, mut news) = (false, Vec::new());
        for slot in self.slots.values_mut() {
            busy |= slot.receive(now, &mut news);
            changed |= slot.stack.turn(now);
            slot.send();
        }
        changed |= news.into_iter().fold(false, |changed, news| self.take(news, now) | changed);
        let stacks = self.slots.values().filter(|slot| slot.peer.is_some());
        let next = stacks.filter_map(|slot| slot.stack.deadline()).chain(self.paths.deadline()).min();
        Turn { next, changed, busy }
    }

    /// True if the data plane must know.
    fn take(&mut self, news: News, now: Instant) -> bool {
        match news {
            News::Neighbour => true,
            News::TooBig(message) => match self.paths.told(message, &self.traffic, now) {
                Verdict::Ignored => false,
                Verdict::Changed => true,
                Verdict::Stranger => !std::mem::replace(&mut self.stranger, true),
            },
            News::Conflict { address, mac } => {
                let known = self.conflicts.insert(address, (mac, now));
                let told = known.is_some_and(|(_, at)| now.since(at) < COMPLAINT);
                if told {
                    self.conflicts.extend(known.map(|known| (address, known)));
                } else {
                    tracing::warn!("{mac} on the underlay has our address {address}, too");
                }
                false
            }
        }
    }
}

impl Slot {
    /// Asks for next hops it does not know, if there is a wire to ask on.
    fn inquire(&mut self, now: Instant) {
        if self.peer.is_some() {
            let questions = self.stack.neighbours.keep(self.next_hops.clone(), now);
            self.stack.put(questions);
        }
    }

    /// Takes a burst of frames; true if more may be waiting.
    fn receive(&mut self, now: Instant, news: &mut Vec<News>) -> bool {
        let Some(peer) = &mut self.peer else { return false };
        let frames = peer.receive(BURST);
        news.extend(frames.iter().filter_map(|delivered| self.stack.receive(&delivered.bytes, now)));
        frames.len() == BURST
    }

    fn send(&mut self) {
        let outgoing = self.stack.outgoing();
        match &mut self.peer {
            Some(peer) => {
                let lost = outgoing.filter(|frame| !peer.inject(frame)).count();
                if lost > 0 {
                    tracing::debug!("{lost} frames of an endpoint found no room in the switch");
                }
            }
            None => drop(outgoing),
        }
    }
}

#[cfg(test)]
mod tests;
