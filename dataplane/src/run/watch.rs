//! Which queues of a poller to ask in a turn, and what tells of the others.
//!
//! Three kinds. A queue that takes a system call to ask ([`Readiness::Call`]) is asked when epoll told of it, and again
//! while it fills batches. A ring ([`Readiness::Ring`]) that gave something lately is asked in every turn and its sender
//! rings no bell; one that was [`PATIENCE`] without a frame is *armed*: its sender rings, epoll tells, and until then it
//! is not touched. The rest is asked always.
//!
//! Cost of a turn: one look at each ring that is asked anyway, and at most every [`LOOK`] a system call, if there is
//! anything that epoll might tell of. A queue that is armed or waits costs a turn nothing, so a poller may have hundreds.
//! To arm a ring costs a system call, and so does to ask it again. Its descriptor is with epoll only while it is armed:
//! an AF_XDP socket that anybody waits for wakes him for every frame that it has sent, and each time it has received
//! (`sock_wfree`, `sock_def_readable` in a profile).

use std::time::Duration;

use arrayvec::ArrayVec;
use flowtable::time::Instant;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Idle, PATIENCE};
use crate::batch::BATCH;
use crate::poller::Poller;
use crate::port::Readiness;
use crate::wires::Queue;

/// How often a poller that has other work asks epoll, at most: what a first frame waits longer for being told of rather than
/// looked for. A look takes some 480 cycles (`epoll_wait` that finds nothing; Linux 6.18 on an AMD EPYC), so this is at most one
/// part in forty of the poller's time.
pub const LOOK: Duration = Duration::from_micros(8);
/// Events taken from epoll at a time.
const EVENTS: usize = 64;
/// The event of the bell, not of a queue.
const BELL: u64 = u64::MAX;
/// In the event of a ring, beside its place.
const RING: u64 = 1 << 32;

/// What epoll told.
pub type Told = ArrayVec<u64, EVENTS>;

/// Did the poller's bell ring?
pub fn has_bell(told: &Told) -> bool {
    told.contains(&BELL)
}

/// A ring that is asked in every turn.
#[derive(Debug, Clone, Copy)]
struct Ring {
    place: usize,
    /// When it last gave something, or epoll told of it.
    gave: Instant,
}

/// The queues of a poller, by how they are asked.
pub struct Watch {
    /// The bell, all that take a call, and the rings: those armed may tell.
    epoll: Epoll,
    /// Places of queues that say nothing by themselves.
    always: Vec<usize>,
    /// Rings that are not armed.
    rings: Vec<Ring>,
    /// Places of queues that take a call and are worth it in the next turn.
    calls: Vec<usize>,
    /// Of how many queues epoll may tell.
    watched: usize,
    /// When epoll was last asked.
    looked: Instant,
    idle: Idle,
    /// The version of the wires this was made for.
    version: u64,
}

impl Watch {
    /// Sorts the queues of a poller. Those that were armed, here or where they come from, stay armed.
    ///
    /// # Errors
    /// The kernel's, if it has no room for another epoll, or does not take a descriptor.
    pub fn new(poller: &mut Poller, idle: Idle, now: Instant) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(poller.shared().wakers[poller.index()].fd(), EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let (always, rings, calls) = Default::default();
        let version = poller.wires.version();
        let mut watch = Watch { epoll, always, rings, calls, watched: 0, looked: now, idle, version };
        let wires = &mut poller.wires;
        // Nobody has settled these. Until it is sure that there is a watch they are asked in every turn.
        for &place in &wires.roused {
            wires.queues[place].iter_mut().for_each(Queue::disarm);
        }
        for (place, queue) in wires.queues.iter_mut().enumerate() {
            if let Some(queue) = queue.as_mut().filter(|q| q.up) {
                watch.add(place, queue, now)?;
            }
        }
        wires.roused.clear();
        Ok(watch)
    }

    fn add(&mut self, place: usize, queue: &mut Queue, now: Instant) -> nix::Result<()> {
        match queue.io.readiness() {
            Readiness::Ring(fd) if queue.armed => {
                // Adding a descriptor looks at it: what it told nobody yet it tells now.
                self.epoll.add(fd, ring_event(place))?;
                self.watched += 1;
            }
            Readiness::Ring(_) => {
                queue.disarm();
                self.rings.push(Ring { place, gave: now });
            }
            Readiness::Call(fd) => {
                self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
                self.watched += 1;
            }
            Readiness::Unknown => self.always.push(place),
        }
        Ok(())
    }

    /// Was it made for these queues?
    pub fn is_current(&self, poller: &Poller) -> bool {
        self.version == poller.wires.version()
    }

    /// May the poller sleep: does every queue have a descriptor?
    pub fn may_sleep(&self) -> bool {
        self.always.is_empty() && self.idle == Idle::Adaptive
    }

    /// The places to ask in the next turn. `moved` is how many frames the last one moved, or how many have told of some since:
    /// if none, there is time to look who else has something.
    pub fn next(&mut self, poller: &mut Poller, (now, moved): (Instant, usize), ready: &mut Vec<usize>) {
        if self.watched > 0 && (moved == 0 || self.has_none(poller) || now.since(self.looked) >= LOOK) {
            let told = self.wait(Duration::ZERO);
            self.tell(poller, &told, now);
        }
        ready.clear();
        ready.extend(&self.always);
        ready.extend(self.rings.iter().map(|ring| ring.place));
        ready.extend(&self.calls);
        ready.extend(&poller.wires.roused);
    }

    /// Is nobody worth asking but those epoll may tell of?
    fn has_none(&self, poller: &Poller) -> bool {
        let no_rings = self.rings.is_empty() && poller.wires.roused.is_empty();
        no_rings && self.calls.is_empty() && self.always.is_empty()
    }

    /// After a turn: arms rings that were quiet for long enough, and asks again what has more. Places mean nothing once
    /// the queues are others, and the next watch sorts them anew.
    pub fn settle(&mut self, poller: &mut Poller, now: Instant) {
        if !self.is_current(poller) {
            return;
        }
        let gave = |place: usize| poller.wires.queues[place].as_ref().map_or(0, |queue| queue.gave);
        self.calls.retain(|place| gave(*place) == BATCH);
        let mut is_quiet = false;
        for ring in &mut self.rings {
            match gave(ring.place) {
                0 => is_quiet |= now.since(ring.gave) > PATIENCE,
                _ => ring.gave = now,
            }
        }
        if is_quiet && self.idle == Idle::Adaptive {
            self.arm(poller, |ring| now.since(ring.gave) > PATIENCE);
        }
        for place in poller.wires.roused.drain(..) {
            if let Some(queue) = poller.wires.queues[place].as_mut().filter(|queue| queue.armed) {
                self.watched -= 1;
                forget(&self.epoll, queue);
                queue.disarm();
                self.rings.push(Ring { place, gave: now });
            }
        }
    }

    /// Arms the rings of which `which` is true. Those that have something already, in spite of it, are asked on.
    #[cold]
    fn arm(&mut self, poller: &mut Poller, which: impl Fn(&Ring) -> bool) {
        let Watch { rings, epoll, watched, .. } = self;
        rings.retain(|ring| {
            let Some(queue) = &mut poller.wires.queues[ring.place] else { return false };
            let is_armed = which(ring) && arm(epoll, ring.place, queue);
            *watched += usize::from(is_armed);
            !is_armed
        });
    }

    /// Arms all rings; false if one has something.
    pub fn arm_all(&mut self, poller: &mut Poller) -> bool {
        self.arm(poller, |_| true);
        self.rings.is_empty()
    }

    /// Waits until something happens or `timeout` is over.
    pub fn wait(&self, timeout: Duration) -> Told {
        let mut events = [EpollEvent::empty(); EVENTS];
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::NONE);
        // EINTR is a reason to look around like any other.
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        events[..count].iter().map(EpollEvent::data).collect()
    }

    /// Asks in the next turn what epoll told of. Rings are disarmed only after that turn ([`Watch::settle`]): it takes two system
    /// calls, 10 µs after a sleep, and who told has a frame that waits.
    pub fn tell(&mut self, poller: &mut Poller, told: &Told, now: Instant) {
        self.looked = now;
        for &event in told.iter().filter(|event| **event != BELL) {
            let place = event as u32 as usize;
            if event & RING == 0 {
                if !self.calls.contains(&place) {
                    self.calls.push(place);
                }
            } else {
                poller.wires.rouse(place);
            }
        }
    }
}

/// Takes a ring's descriptor from epoll.
fn forget(epoll: &Epoll, queue: &Queue) {
    if let Readiness::Ring(fd) = queue.io.readiness() {
        // One that is not there is what we want.
        let _ = epoll.delete(fd);
    }
}

fn ring_event(place: usize) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, RING | place as u64)
}

/// Arms a ring, unless it has something already.
///
/// First the ring, then its descriptor: what the sender rings between the two leaves the descriptor readable, and to add
/// it is to look at it.
fn arm(epoll: &Epoll, place: usize, queue: &mut Queue) -> bool {
    if !queue.arm() {
        return false;
    }
    let Readiness::Ring(fd) = queue.io.readiness() else { return false };
    let is_added = epoll.add(fd, ring_event(place)).is_ok();
    if !is_added {
        queue.disarm();
    }
    is_added
}
