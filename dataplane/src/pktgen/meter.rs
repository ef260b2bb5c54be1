//! What is told at the end: rates by windows of time, latency by an HDR histogram.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Digits that a latency is known by: 1/1000 of it.
const DIGITS: u8 = 3;
/// The longest latency told apart: a minute. Longer ones are counted as that.
const LONGEST: u64 = 60_000_000_000;

/// Best and median of several windows. One number says little: the same case moves by a factor of two within seconds on
/// a machine that is not alone.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spread {
    /// The best window.
    pub best: f64,
    /// The one in the middle; of an even number the worse of the two.
    pub median: f64,
}

impl Spread {
    /// Of values of which the highest is the best.
    pub fn highest(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        Spread::of_sorted(&sorted)
    }

    /// Of values of which the lowest is the best.
    pub fn lowest(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Spread::of_sorted(&sorted)
    }

    fn of_sorted(sorted: &[f64]) -> Spread {
        let at = |place: usize| sorted.get(place).copied().unwrap_or(0.0);
        Spread { best: at(0), median: at(sorted.len() / 2) }
    }
}

/// A counter's rate, window by window.
#[derive(Debug, Clone)]
pub struct Rates {
    length: Duration,
    begin: Duration,
    count: u64,
    /// Per second.
    rates: Vec<f64>,
}

impl Rates {
    /// Windows of this length, the first of which begins now.
    pub fn new(length: Duration, now: Duration) -> Rates {
        Rates { length, begin: now, count: 0, rates: Vec::new() }
    }

    /// The counter is at `count` now. Ends the window if it is over.
    #[inline]
    pub fn look(&mut self, now: Duration, count: u64) {
        if now.saturating_sub(self.begin) >= self.length {
            self.close(now, count);
        }
    }

    /// The end: what is left counts as a window if it is the only one, or nearly as long as others.
    pub fn end(&mut self, now: Duration, count: u64) {
        let rest = now.saturating_sub(self.begin);
        if rest >= self.length.mul_f64(0.9) || (self.rates.is_empty() && rest > Duration::ZERO) {
            self.close(now, count);
        }
    }

    #[cold]
    fn close(&mut self, now: Duration, count: u64) {
        self.rates.push((count - self.count) as f64 / now.saturating_sub(self.begin).as_secs_f64());
        (self.begin, self.count) = (now, count);
    }

    /// Best and median.
    pub fn spread(&self) -> Spread {
        Spread::highest(&self.rates)
    }
}

/// How long frames took.
#[derive(Debug, Clone)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Latency(Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("bounds that a histogram can have"))
    }
}

/// The histogram in short, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Quantiles {
    /// The fastest.
    pub min: f64,
    /// Half took at most this.
    pub p50: f64,
    /// 9 of 10.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p99_9: f64,
    /// The slowest.
    pub max: f64,
    /// Frames measured.
    pub samples: u64,
}

impl Latency {
    /// A frame took so many nanoseconds.
    #[inline]
    pub fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    /// The histogram in short; `None` if nothing was measured.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        (!self.0.is_empty()).then(|| Quantiles {
            min: self.0.min() as f64 / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: self.0.max() as f64 / 1000.0,
            samples: self.0.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_say_best_and_median() {
        let values = [3.0, 1.0, 2.0, 5.0, 4.0];
        assert_eq!(Spread::highest(&values), Spread { best: 5.0, median: 3.0 });
        assert_eq!(Spread::lowest(&values[..4]), Spread { best: 1.0, median: 3.0 });
        assert_eq!(Spread::highest(&[]), Spread::default());
    }

    #[test]
    fn rates_are_those_of_whole_windows() {
        let ms = Duration::from_millis;
        let mut rates = Rates::new(ms(250), ms(1000));
        for n in 1..=80 {
            rates.look(ms(1000 + 10 * n), 10 * n);
        }
        rates.look(ms(1810), 2810);
        // The rest is too short to count.
        rates.end(ms(1900), 5000);
        assert_eq!(rates.spread(), Spread { best: 1000.0, median: 1000.0 });
        let mut short = Rates::new(ms(250), ms(0));
        short.end(ms(100), 50);
        assert_eq!(short.spread(), Spread { best: 500.0, median: 500.0 });
    }

    #[test]
    fn a_histogram_tells_quantiles_in_microseconds() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantiles(), None);
        (1..=1000).for_each(|n| latency.record(n * 1000));
        let quantiles = latency.quantiles().unwrap();
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.002;
        assert!(
            near(quantiles.p50, 500.0) && near(quantiles.p99, 990.0) && near(quantiles.max, 1000.0),
            "{quantiles:?}"
        );
        assert_eq!((quantiles.min, quantiles.samples), (1.0, 1000));
        latency.record(u64::MAX);
        assert!(latency.quantiles().unwrap().max >= 60e6);
    }
}
