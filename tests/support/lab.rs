//! What every test in namespaces begins with, and how it waits.

use std::process::Child;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a condition may take that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How many tests run at once: each has a daemon and traffic, and the machine may have two cores.
const SEATS: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The right to run; given back when dropped.
pub struct Seat(usize);

impl Seat {
    /// Waits for one. `None`, and says why, if the tests are not run by root: namespaces, AF_XDP and AF_PACKET
    /// are root's.
    pub fn take() -> Option<Seat> {
        Seat::wait(1)
    }

    /// Waits for all of them: nothing runs beside a test that has two machines, or that measures time.
    pub fn take_all() -> Option<Seat> {
        Seat::wait(SEATS)
    }

    fn wait(seats: usize) -> Option<Seat> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: not root, so no namespaces, AF_XDP or AF_PACKET");
            return None;
        }
        let mut taken = lock();
        while *taken + seats > SEATS {
            taken = FREED.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += seats;
        Some(Seat(seats))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *lock() -= self.0;
        FREED.notify_all();
    }
}

fn lock() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `done`; panics after [`PATIENCE`].
pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    within(PATIENCE, what, done);
}

/// Waits until `done`; panics after `limit`.
pub fn within(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that does not outlive the test, however that ends.
pub struct Leashed(pub Child);

impl Drop for Leashed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
