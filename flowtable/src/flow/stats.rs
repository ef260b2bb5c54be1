//! What is counted of a flow.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::time::Instant;

/// One poller's counters of a flow: a single writer, many readers, no read-modify-write.
#[derive(Debug, Default)]
#[repr(C)]
pub struct FlowStats {
    pub(super) frames: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Of poller 0 also when the flow was made, until it is used.
    pub(super) used: AtomicU64,
    pub(super) tcp_flags: AtomicU32,
    /// Of poller 0: how many shares of the flow there are. Here, for here is room.
    pub(super) shares: AtomicU32,
}

impl FlowStats {
    /// Poller 0's, of a flow made now, of which there is one share.
    pub(super) fn first(now: Instant) -> Self {
        let (used, shares) = (AtomicU64::new(now.as_nanos()), AtomicU32::new(1));
        FlowStats { used, shares, ..FlowStats::default() }
    }

    /// Adds `frames` of `bytes` in all, seen at `now`. Only the poller that owns this slot may call it.
    #[inline]
    pub fn add(&self, frames: u64, bytes: u64, tcp_flags: u16, now: Instant) {
        self.frames.store(self.frames.load(Ordering::Relaxed) + frames, Ordering::Relaxed);
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
        self.used.store(now.as_nanos(), Ordering::Relaxed);
        if tcp_flags != 0 {
            let flags = self.tcp_flags.load(Ordering::Relaxed) | u32::from(tcp_flags);
            self.tcp_flags.store(flags, Ordering::Relaxed);
        }
    }
}

/// The sum over all pollers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowTotals {
    /// Frames.
    pub frames: u64,
    /// Bytes, without preamble and FCS.
    pub bytes: u64,
    /// The last use; `None` if never used.
    pub used: Option<Instant>,
    /// All TCP flags seen, OR-ed.
    pub tcp_flags: u16,
}
