//! A generator of frames and the sink that counts them, in the terms of the kernel's pktgen, on one thread.
//!
//! What is sent ([`terms`], [`frames`], or a [`reel`] of frames from a file) carries a [`stamp`]; what comes back is held
//! against it: lost, reordered, duplicated ([`sequence`]), how long it took ([`meter`]). An [`exchange`] does that over ports of
//! any kind ([`cable`]) at a [`pace`], a [`search`] finds the rate at which nothing is lost (RFC 2544), and a [`circuit`] measures a switch in memory,
//! without wires.

pub mod announce;
pub mod cable;
pub mod circuit;
pub mod exchange;
pub mod frames;
pub mod meter;
pub mod pace;
pub mod reel;
pub mod residents;
pub mod search;
pub mod sequence;
pub mod stamp;
pub mod terms;

use std::time::Duration;

/// How things are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Since the start.
    pub elapsed: Duration,
    /// Frames sent.
    pub sent: u64,
    /// Frames that came back.
    pub received: u64,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On.
    GoOn,
    /// Enough.
    Stop,
}

/// Is told now and then how things are.
pub type Observer<'a> = &'a mut dyn FnMut(Progress) -> Verdict;

/// When it is enough: after the first of these, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Until {
    /// So many frames are sent.
    pub count: Option<u64>,
    /// So much time has passed.
    pub time: Option<Duration>,
}

impl Until {
    /// Is it?
    pub fn is_over(&self, elapsed: Duration, sent: u64) -> bool {
        self.count.is_some_and(|count| sent >= count) || self.time.is_some_and(|time| elapsed >= time)
    }
}
