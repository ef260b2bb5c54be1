//! A token bucket: how many upcalls a port may cause, so that one tenant cannot starve another.

use flowtable::time::Instant;

/// Tokens that come back at a fixed rate, up to a tenth of a second's worth.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// In billionths of a token.
    tokens: u64,
    filled: Instant,
}

const TOKEN: u64 = 1_000_000_000;

impl Budget {
    /// A full bucket.
    pub fn new(rate: u32, now: Instant) -> Self {
        Budget { tokens: Self::limit(rate), filled: now }
    }

    fn limit(rate: u32) -> u64 {
        (u64::from(rate) / 10).max(1) * TOKEN
    }

    /// Takes a token; false if there is none. `rate` is tokens per second, 0 for no limit.
    pub fn take(&mut self, rate: u32, now: Instant) -> bool {
        if rate == 0 {
            return true;
        }
        let elapsed = now.since(self.filled).as_nanos() as u64;
        self.filled = now;
        self.tokens = self.tokens.saturating_add(elapsed.saturating_mul(rate.into())).min(Self::limit(rate));
        let enough = self.tokens >= TOKEN;
        self.tokens -= if enough { TOKEN } else { 0 };
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let mut budget = Budget::new(1000, Instant::ZERO);
        let burst = (0..1000).filter(|_| budget.take(1000, Instant::ZERO)).count();
        assert_eq!(burst, 100);
        let second: usize = (1..=1000)
            .map(|ms| Instant::ZERO + Duration::from_millis(ms))
            .map(|now| (0..5).filter(|_| budget.take(1000, now)).count())
            .sum();
        assert_eq!(second, 1000);
        assert!((0..1000).all(|_| budget.take(0, Instant::ZERO)));
    }
}
