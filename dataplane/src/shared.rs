//! What all pollers of a switch share, and how little that is while frames flow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::Sender;
use crossbeam::utils::CachePadded;
use flowtable::id::PortId;
use flowtable::megaflow::Megaflows;

use crate::stats::Registry;
use crate::waker::Waker;

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
}

impl Shared {
    /// For the pollers behind `wakers`.
    pub fn new(megaflows: Arc<Megaflows>, wakers: Vec<Arc<Waker>>, events: Sender<Event>) -> Self {
        let changes = wakers.iter().map(|_| CachePadded::default()).collect();
        Shared { megaflows, registry: Registry::new(wakers.len()), wakers, events, changes }
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
