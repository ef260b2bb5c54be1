//! When to send: evenly at a rate, or always.
//!
//! At time t since the start `rate * t` frames, and the first, are due. Who was held up catches up by at most one burst; what he
//! missed beyond is not sent at all, for a burst of a millisecond is another question than the one that was asked. The rate
//! that came of it is measured, not assumed.

use std::time::Duration;

/// A schedule.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Nanoseconds from a frame to the next; 0: no pause.
    gap: f64,
    /// Frames at once at most.
    burst: usize,
    /// When the first frame of those `sent` was due, in nanoseconds; moves when some are given up.
    origin: f64,
    /// Frames sent since.
    sent: u64,
}

impl Pace {
    /// As fast as it gets, `burst` frames at once.
    pub fn unlimited(burst: usize) -> Pace {
        Pace { gap: 0.0, burst, origin: 0.0, sent: 0 }
    }

    /// So many frames per second (above 0), from `start` on, at most `burst` at once.
    pub fn even(rate: f64, burst: usize, start: Duration) -> Pace {
        Pace { gap: 1e9 / rate, burst, origin: start.as_nanos() as f64, sent: 0 }
    }

    /// How many frames to send now; those that are sent are to be told by [`Pace::sent`].
    #[inline]
    pub fn due(&mut self, now: Duration) -> usize {
        if self.gap == 0.0 {
            return self.burst;
        }
        let elapsed = now.as_nanos() as f64 - self.origin;
        if elapsed < 0.0 {
            return 0;
        }
        let owed = ((elapsed / self.gap) as u64 + 1).saturating_sub(self.sent);
        if owed > self.burst as u64 {
            let missed = owed - self.burst as u64;
            self.origin += missed as f64 * self.gap;
            return self.burst;
        }
        owed as usize
    }

    /// So many were sent.
    #[inline]
    pub fn sent(&mut self, frames: usize) {
        self.sent += frames as u64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends all that is due at each of these times; how many that is, and the most at once.
    fn send(pace: &mut Pace, times: impl IntoIterator<Item = u64>) -> (u64, usize) {
        let (mut total, mut most) = (0, 0);
        for time in times {
            let due = pace.due(Duration::from_nanos(time));
            pace.sent(due);
            (total, most) = (total + due as u64, most.max(due));
        }
        (total, most)
    }

    proptest! {
        #[test]
        fn who_looks_often_enough_keeps_the_rate(rate in 1.0f64..5e6, start in 0u64..1 << 40) {
            let mut pace = Pace::even(rate, 32, Duration::from_nanos(start));
            // Looks ten times a frame, or every 100 ns.
            let step = ((1e8 / rate) as u64).max(100);
            let times = (0..10_000).map(|n| start + n * step);
            let (sent, most) = send(&mut pace, times);
            let expected = (9_999 * step) as f64 * rate / 1e9 + 1.0;
            prop_assert!((sent as f64 - expected).abs() <= 1.0, "{sent} instead of {expected}");
            prop_assert!(most <= 2, "{most} at once");
        }

        #[test]
        fn never_more_than_a_burst_and_never_more_than_the_rate(
            gaps in proptest::collection::vec(0u64..100_000, 1..200), burst in 1usize..=32,
        ) {
            let mut pace = Pace::even(1e6, burst, Duration::ZERO);
            let times: Vec<u64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let last = times[times.len() - 1];
            let (sent, most) = send(&mut pace, times);
            prop_assert!(most <= burst);
            prop_assert!(sent <= last / 1000 + 1, "{sent} in {last} ns");
        }
    }

    #[test]
    fn a_pause_is_caught_up_by_one_burst() {
        let mut pace = Pace::even(1e6, 8, Duration::ZERO);
        assert_eq!(send(&mut pace, [0, 1000, 2000]), (3, 1));
        assert_eq!(send(&mut pace, [1_000_000, 1_000_500, 1_001_000, 1_002_000]), (10, 8));
    }

    #[test]
    fn what_was_not_sent_is_due_again() {
        let mut pace = Pace::even(1e6, 8, Duration::ZERO);
        assert_eq!(pace.due(Duration::from_micros(3)), 4);
        pace.sent(1);
        assert_eq!(pace.due(Duration::from_micros(3)), 3);
        assert_eq!(Pace::unlimited(32).due(Duration::ZERO), 32);
    }
}
