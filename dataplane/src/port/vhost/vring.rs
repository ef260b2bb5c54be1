//! One ring as the frontend describes it, piece by piece, until it can be started (vhost-user, "Starting and stopping rings").

use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use super::queue::Kicks;
use super::ring::{Parts, Witness};
use crate::virtio::features::Features;

/// How the guest kicks.
#[derive(Debug, Clone, Default)]
pub(super) enum Kick {
    /// It was not said yet: the ring is stopped.
    #[default]
    Unset,
    /// It does not: the ring is to be polled.
    Polled,
    /// By this.
    By(Arc<EventFd>),
}

/// Where a packed ring begins: both wrap counters are 1 (virtio 1.2 section 2.8.1).
const PACKED_BEGIN: u32 = 0x8000_8000;

/// One ring.
#[derive(Debug, Default)]
pub(super) struct Vring {
    /// Entries; 0: not said yet.
    pub(super) size: u16,
    /// Where it is.
    pub(super) parts: Option<Parts>,
    /// Where to begin, if it was said or the ring has run.
    base: Option<u32>,
    /// Who says so.
    pub(super) witness: Witness,
    pub(super) kick: Kick,
    pub(super) call: Option<Arc<EventFd>>,
    pub(super) error: Option<Arc<EventFd>>,
    /// By `VHOST_USER_SET_VRING_ENABLE`.
    pub(super) enabled: bool,
}

impl Vring {
    /// Was anything said of it that a ring depends on?
    pub(super) fn is_known(&self) -> bool {
        self.size > 0 || self.parts.is_some() || !matches!(self.kick, Kick::Unset)
    }

    /// Is all said that it takes, but whether it is enabled?
    pub(super) fn is_started(&self) -> bool {
        self.size > 0 && self.parts.is_some() && !matches!(self.kick, Kick::Unset)
    }

    /// The guest's driver is done with it.
    pub(super) fn stop(&mut self) {
        self.kick = Kick::Unset;
    }

    pub(super) fn begin_at(&mut self, base: u32, witness: Witness) {
        (self.base, self.witness) = (Some(base), witness);
    }

    /// Where to begin, or where it stopped.
    pub(super) fn base(&self, features: Features) -> u32 {
        let begin = if features.has(Features::RING_PACKED) { PACKED_BEGIN } else { 0 };
        self.base.unwrap_or(begin)
    }

    pub(super) fn kicks(&self) -> Kicks {
        match self.kick {
            Kick::By(_) => Kicks::Yes,
            Kick::Unset | Kick::Polled => Kicks::No,
        }
    }

    /// What to wait for.
    pub(super) fn kick(&self) -> Option<&Arc<EventFd>> {
        match &self.kick {
            Kick::By(eventfd) => Some(eventfd),
            Kick::Unset | Kick::Polled => None,
        }
    }
}
