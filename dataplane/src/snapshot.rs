//! What a poller decides by: the published tables, and the state that the bridges learned.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowtable::fdb::Fdb;
use flowtable::flow::{DEAD, Flow};
use flowtable::id::BridgeId;
use flowtable::mcast::McastTable;
use flowtable::vteps::Vteps;

use crate::changes::History;
use crate::tables::Tables;

/// One generation of the tables. Immutable, but for what is learned, which it shares with its predecessor.
#[derive(Default)]
pub struct Snapshot {
    /// Counts publications from 1. Zero is [`flowtable::flow::DEAD`].
    pub generation: u64,
    /// What the operator decided.
    pub tables: Tables,
    /// What was learned, by [`BridgeId`].
    pub learned: Vec<Option<Arc<Learned>>>,
    /// What this publication and those before it changed.
    pub history: History,
}

impl Snapshot {
    /// What this bridge learned, if it exists.
    #[inline]
    pub fn learned(&self, bridge: BridgeId) -> Option<&Arc<Learned>> {
        self.learned.get(bridge.index())?.as_ref()
    }

    /// Was the flow checked against these tables, or does what has changed since then not concern it? Then it is
    /// confirmed for these.
    #[inline]
    pub fn holds(&self, flow: &Flow) -> bool {
        let generation = flow.generation();
        generation == self.generation || self.renew(flow, generation)
    }

    #[cold]
    fn renew(&self, flow: &Flow, generation: u64) -> bool {
        // Another poller may be ahead of us: what newer tables say is of no use to these.
        let publications = self.generation.checked_sub(generation);
        let holds = publications.is_some_and(|n| generation != DEAD && !self.history.concerns(flow, n));
        holds && flow.confirm(generation, self.generation)
    }
}

/// The learned state of one bridge.
///
/// Only the slow path looks here (upcalls, revalidation, control), one entry at a time, so a plain lock held
/// for a table access serves; a frame that hits a cache never comes near it.
pub struct Learned {
    fdb: Mutex<Fdb>,
    mcast: Mutex<McastTable>,
    vteps: Mutex<Vteps>,
}

impl Learned {
    /// Empty tables of the given kind.
    pub fn new(fdb: Fdb, mcast: McastTable, vteps: Vteps) -> Self {
        Learned { fdb: Mutex::new(fdb), mcast: Mutex::new(mcast), vteps: Mutex::new(vteps) }
    }

    /// The MAC table.
    pub fn fdb(&self) -> MutexGuard<'_, Fdb> {
        self.fdb.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The multicast table.
    pub fn mcast(&self) -> MutexGuard<'_, McastTable> {
        self.mcast.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tunnel endpoints that frames came from.
    pub fn vteps(&self) -> MutexGuard<'_, Vteps> {
        self.vteps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
