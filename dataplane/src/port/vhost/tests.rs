//! Sessions against rust-vmm's frontend, and against none.

mod frames;
mod guest;
mod roles;
mod rude;

use std::path::PathBuf;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use super::*;
use crate::batch::Batch;
use crate::frame::FrameCache;
use crate::port::Port;
use crate::port::rig::{self, wait};

/// A port, what a poller has of it, and where.
struct Bench {
    port: VhostUser,
    queues: Vec<VhostQueue>,
    epoch: u64,
    frames: FrameCache,
    path: PathBuf,
    _dir: TempDir,
}

impl Bench {
    fn new(role: Role) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm");
        Bench { port: open(&path, role), queues: vec![], epoch: 0, frames: rig::pool().1, path, _dir: dir }
    }

    /// Waits until so many pairs run, and attaches them.
    fn attach(&mut self, pairs: u16) {
        wait("the queues", || (self.port.status().pairs == pairs).then_some(()));
        self.epoch = self.port.status().epoch;
        self.queues = self.port.queues();
        assert_eq!(self.queues.len(), usize::from(pairs));
    }

    /// The next frame from the guest.
    fn rx(&mut self) -> Vec<u8> {
        wait("a frame from the guest", || {
            rig::receive(&mut self.queues[0], &mut self.frames, |_| true).map(|frame| frame.bytes)
        })
    }

    /// Does the guest take the frame?
    fn tx(&mut self, frame: &[u8]) -> bool {
        let mut batch = Batch::new();
        batch.push(self.frames.from_bytes(frame).unwrap());
        let sent = self.queues[0].tx(&mut self.frames, &mut batch).unwrap();
        batch.drain(..).for_each(|frame| self.frames.free(frame));
        sent.frames == 1
    }

    /// Would a poller that sleeps be awake?
    fn wakes(&self) -> bool {
        let fd = rig::descriptor(&self.queues[0]);
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }

    /// Waits for a reset; what was said of it.
    fn reset(&self) -> String {
        wait("a reset", || {
            let status = self.port.status();
            (status.resets > 0 && !status.connected).then_some(())?;
            status.last_error
        })
    }
}

/// The least time that something takes: how long it takes once says little on a machine that does other things, too.
fn quickest(mut once: impl FnMut() -> Duration) -> Duration {
    (0..3).map(|_| once()).min().unwrap()
}

/// How long a port takes to be gone.
fn dropped(port: VhostUser) -> Duration {
    let began = Instant::now();
    drop(port);
    began.elapsed()
}

fn open(path: &std::path::Path, role: Role) -> VhostUser {
    let request = Request { name: "vm".into(), path: path.to_owned(), role, pairs: 2, mtu: 1500 };
    VhostUser::start(request, Box::new(|| {})).unwrap()
}
