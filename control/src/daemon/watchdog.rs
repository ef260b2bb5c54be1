//! systemd's watchdog (sd_watchdog_enabled(3)), kept quiet only while every poller really turns.

use std::time::{Duration, Instant};

use dataplane::switch::Switch;
use sd_notify::NotifyState;

use super::notify;

/// How long pollers may take to answer: a turn is microseconds, a sleeping one is woken.
const ANSWER: Duration = Duration::from_secs(1);

/// When to tell systemd next.
pub struct Watchdog {
    interval: Duration,
    next: Instant,
}

impl Watchdog {
    /// If systemd watches this process: twice per interval, as sd_watchdog_enabled(3) recommends.
    pub fn new() -> Option<Watchdog> {
        let interval = sd_notify::watchdog_enabled()? / 2;
        Some(Watchdog { interval, next: Instant::now() })
    }

    /// When [`Watchdog::turn`] is due.
    pub fn deadline(&self) -> Instant {
        self.next
    }

    /// Tells systemd, if it is time and the pollers answer.
    pub fn turn(&mut self, now: Instant, switch: &Switch) {
        if now < self.next {
            return;
        }
        self.next = now + self.interval;
        if switch.is_alive(ANSWER.min(self.interval)) {
            notify(NotifyState::Watchdog);
        } else {
            tracing::error!("a poller does not turn; systemd is not told that all is well");
        }
    }
}
