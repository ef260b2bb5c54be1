//! How a sleeping poller is woken, and what a waking costs whom: nothing while the poller is awake.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// One poller's bell.
pub struct Waker {
    asleep: AtomicBool,
    bell: EventFd,
}

impl Waker {
    /// A bell for a poller that is awake.
    ///
    /// # Errors
    /// The kernel's, if the process has no descriptor left.
    pub fn new() -> Result<Self, nix::Error> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Waker { asleep: AtomicBool::new(false), bell })
    }

    /// Wakes the poller if it sleeps. What the caller wrote before is seen by the poller after: either it
    /// looks once more before it sleeps, or it is told.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.ring();
        }
    }

    #[cold]
    fn ring(&self) {
        // A bell that rings already (EAGAIN) is as good.
        let _ = self.bell.write(1);
    }

    /// The poller is about to look for work a last time and then sleep.
    pub fn lie_down(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The poller is up again. A bell that was rung goes on ringing until it is hushed.
    pub fn get_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Silences the bell; a system call, for who knows that it rings.
    pub fn hush(&self) {
        let _ = self.bell.read();
    }

    /// To sleep on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
