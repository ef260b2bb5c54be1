//! What all pollers of a switch share, and how little that is while frames flow.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::Sender;
use crossbeam::utils::CachePadded;
use flowtable::action::Effect;
use flowtable::id::PortId;
use flowtable::megaflow::Megaflows;

use crate::stats::Registry;
use crate::waker::Waker;

/// Addresses that control may be asked for at a time: what stands behind may be all that a scan of the tenants' calls for.
const QUESTIONS: usize = 4096;

/// Something control should know.
#[derive(Debug)]
pub enum Event {
    /// The interface behind a port is gone or down; its queues no longer receive.
    PortGone {
        /// The port.
        port: PortId,
        /// What the kernel said.
        error: String,
    },
    /// Frames wait for somebody to find out who has this address. Comes once, until [`Switch::resolved`].
    ///
    /// [`Switch::resolved`]: crate::switch::Switch::resolved
    Resolve {
        /// The port with our own address.
        endpoint: PortId,
        /// The next hop.
        address: IpAddr,
    },
}

/// Shared by all pollers and control.
pub struct Shared {
    /// The flow cache.
    pub megaflows: Arc<Megaflows>,
    /// All counters.
    pub registry: Registry,
    /// The pollers' bells.
    pub wakers: Vec<Arc<Waker>>,
    /// To control.
    pub events: Sender<Event>,
    /// Learned entries that changed and each poller has yet to revalidate, as dependency bits.
    changes: Vec<CachePadded<AtomicU64>>,
    /// What control was asked to resolve and has not answered.
    questions: Mutex<HashSet<(PortId, IpAddr)>>,
}

impl Shared {
    /// For the pollers behind `wakers`.
    pub fn new(megaflows: Arc<Megaflows>, wakers: Vec<Arc<Waker>>, events: Sender<Event>) -> Self {
        let changes = wakers.iter().map(|_| CachePadded::default()).collect();
        let registry = Registry::new(wakers.len());
        Shared { megaflows, registry, wakers, events, changes, questions: Mutex::default() }
    }

    /// Asks control for the addresses that a decision wants resolved, unless it was asked already. Beyond
    /// [`QUESTIONS`] a wish is forgotten: the flow will have it again.
    pub fn resolve(&self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Resolve { endpoint, address } = *effect {
                let mut questions = self.lock_questions();
                if questions.len() < QUESTIONS && questions.insert((endpoint, address)) {
                    let _ = self.events.send(Event::Resolve { endpoint, address });
                }
            }
        }
    }

    /// Lets control be asked for an address again.
    pub fn resolved(&self, endpoint: PortId, address: IpAddr) {
        self.lock_questions().remove(&(endpoint, address));
    }

    fn lock_questions(&self) -> MutexGuard<'_, HashSet<(PortId, IpAddr)>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learned entries changed: every poller has to look at the flows that depend on them.
    pub fn changed(&self, bits: u64) {
        if bits == 0 {
            return;
        }
        for (changes, waker) in self.changes.iter().zip(&self.wakers) {
            // A flood of new stations sets bits that are set already: look before writing a shared line.
            if changes.load(Ordering::Relaxed) & bits != bits {
                changes.fetch_or(bits, Ordering::AcqRel);
                waker.wake();
            }
        }
    }

    /// Takes the changes that a poller has to look at.
    #[inline]
    pub fn take_changes(&self, poller: usize) -> u64 {
        match self.changes[poller].load(Ordering::Relaxed) {
            0 => 0,
            _ => self.changes[poller].swap(0, Ordering::AcqRel),
        }
    }

    /// Does a poller have changes to look at?
    pub fn has_changes(&self, poller: usize) -> bool {
        self.changes[poller].load(Ordering::Acquire) != 0
    }
}
