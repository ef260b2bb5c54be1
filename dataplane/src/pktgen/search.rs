//! Throughput as RFC 2544 section 26.1 defines it: the highest rate at which no frame is lost.
//!
//! A trial sends at a rate for a while and counts. The first is as fast as it gets; if that loses nothing it is the answer. Else
//! the answer is between the fastest trial that passed and the slowest that failed, and each trial halves what is between, until
//! that is less than the precision. A trial's rate is what was really sent, not what was wished. One that loses nothing but did not
//! reach its rate (the generator's core was taken from it, or the port took no more) is made once more; then that
//! rate counts as too high.
//!
//! On a machine that is not ours alone a trial may fail for what a neighbour did. *Loss verification* (ETSI GS NFV-TST 009, section
//! 12.3) makes one that failed again, a few times at most, and lets the rate pass if one of them does. RFC 2544 knows nothing of it.

/// A trial.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Trial {
    /// What was to be sent, per second; `None`: as fast as it gets.
    pub wished: Option<f64>,
    /// What was, per second.
    pub rate: f64,
    /// Frames sent.
    pub sent: u64,
    /// Of them never came.
    pub lost: u64,
}

impl Trial {
    /// The fraction that was lost, 0 to 1; all of nothing.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 { 1.0 } else { self.lost as f64 / self.sent as f64 }
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// The loss that passes, 0 to 1: RFC 2544 has 0.
    pub loss: f64,
    /// How near to the answer, as a fraction of it: above 0.
    pub precision: f64,
    /// The rate to begin with; `None`: as fast as it gets.
    pub most: Option<f64>,
    /// How often a trial that failed is made again: 0 as RFC 2544 has it.
    pub again: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// The fastest trial that passed; `None` if none did.
    pub best: Option<Trial>,
    /// All, in order.
    pub trials: Vec<Trial>,
}

/// Rates at most: each halves what is left, and beyond 2^30 there is none.
const RATES_MAX: usize = 30;

/// Searches. `attempt` makes a trial of a rate.
///
/// # Errors
/// That of a trial.
pub fn search<E>(goal: Goal, attempt: impl FnMut(Option<f64>) -> Result<Trial, E>) -> Result<Found, E> {
    let mut series = Series { goal, attempt, found: Found::default() };
    let first = series.attempt(goal.most)?;
    if first.loss() <= goal.loss {
        return Ok(series.found);
    }
    let (mut low, mut high, mut missed, mut rates) = (0.0, first.rate, None, 1);
    while high - low > goal.precision * high && high > 1.0 && rates < RATES_MAX {
        let rate = (low + high) / 2.0;
        let trial = series.attempt(Some(rate))?;
        rates += 1;
        if trial.loss() > goal.loss {
            high = rate;
        } else if trial.rate >= rate * (1.0 - goal.precision) {
            (low, missed) = (rate, None);
        } else if missed == Some(rate) {
            high = rate;
        } else {
            missed = Some(rate);
        }
    }
    Ok(series.found)
}

/// A search under way.
struct Series<F> {
    goal: Goal,
    attempt: F,
    found: Found,
}

impl<F> Series<F> {
    /// Tries a rate: the first trial that passes, or the last.
    fn attempt<E>(&mut self, rate: Option<f64>) -> Result<Trial, E>
    where
        F: FnMut(Option<f64>) -> Result<Trial, E>,
    {
        let mut trial = Trial::default();
        for _ in 0..=self.goal.again {
            trial = (self.attempt)(rate)?;
            self.found.trials.push(trial);
            if trial.loss() <= self.goal.loss {
                let is_best = self.found.best.is_none_or(|best| trial.rate > best.rate);
                self.found.best = if is_best { Some(trial) } else { self.found.best };
                break;
            }
        }
        Ok(trial)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// A device that forwards up to `capacity` frames per second, behind a port that sends `port` at most.
    fn device(capacity: f64, port: f64) -> impl FnMut(Option<f64>) -> Result<Trial, Infallible> {
        move |wished| {
            let rate = wished.unwrap_or(f64::MAX).min(port);
            let (sent, got) = ((2.0 * rate) as u64, (2.0 * rate.min(capacity)) as u64);
            Ok(Trial { wished, rate, sent, lost: sent - got })
        }
    }

    proptest! {
        #[test]
        fn it_finds_where_loss_begins(capacity in 1e3f64..1e7, port in 1e3f64..2e7, precision in 0.001f64..0.1) {
            let goal = Goal { loss: 0.0, precision, most: None, again: 0 };
            let Ok(found) = search(goal, device(capacity, port));
            let (best, expected) = (found.best.unwrap().rate, capacity.min(port));
            prop_assert!(best <= expected + 1.0 && best >= expected * (1.0 - precision) - 1.0, "{best} for {expected}");
            prop_assert!(found.trials.len() <= 2 + (port / capacity / precision).log2().max(1.0) as usize, "{found:?}");
        }

        #[test]
        fn some_loss_may_pass(capacity in 1e4f64..1e6, loss in 0.001f64..0.2) {
            let goal = Goal { loss, precision: 0.001, most: Some(1e7), again: 0 };
            let Ok(found) = search(goal, device(capacity, 1e8));
            // So much more may come in that the fraction of it is lost.
            let expected = capacity / (1.0 - loss);
            let best = found.best.unwrap();
            prop_assert!((best.rate / expected - 1.0).abs() < 0.002, "{best:?} for {expected}");
            prop_assert!(best.loss() <= loss);
        }
    }

    #[test]
    fn a_rate_that_cannot_be_reached_is_tried_twice_and_given_up() {
        // Loses at full speed; with a schedule it comes to 100,000 at most.
        let paced = |wished: Option<f64>| {
            let rate = wished.map_or(1e6, |rate| rate.min(1e5));
            Ok::<_, Infallible>(Trial { wished, rate, sent: rate as u64, lost: u64::from(wished.is_none()) })
        };
        let Ok(found) = search(Goal { loss: 0.0, precision: 0.01, most: None, again: 0 }, paced);
        assert_eq!(found.best.unwrap().rate, 1e5);
        let wishes: Vec<_> = found.trials.iter().skip(1).take(3).map(|trial| trial.wished.unwrap()).collect();
        assert_eq!(wishes, [5e5, 5e5, 2.5e5]);
        assert!(found.trials.len() < 20, "{found:?}");
    }

    proptest! {
        #[test]
        fn bad_luck_once_a_rate_costs_nothing_where_trials_are_made_again(capacity in 1e4f64..1e6, unlucky in any::<u64>()) {
            let mut device = device(capacity, 2e6);
            let (mut trials, mut spoilt) = (0, None);
            // Once at each rate, by chance, a frame is lost for nothing.
            let found = search(Goal { loss: 0.0, precision: 0.01, most: None, again: 1 }, |rate| {
                let Ok(trial) = device(rate);
                trials += 1;
                let is_spoilt = unlucky >> (trials % 64) & 1 == 1 && spoilt != Some(rate);
                spoilt = Some(rate);
                Ok::<_, Infallible>(Trial { lost: trial.lost + u64::from(is_spoilt), ..trial })
            });
            let Ok(found) = found;
            let best = found.best.unwrap().rate;
            prop_assert!(best <= capacity + 1.0 && best >= capacity * 0.99 - 1.0, "{best} for {capacity}");
            prop_assert_eq!(found.trials.len(), trials);
        }
    }

    #[test]
    fn what_forwards_nothing_has_no_throughput() {
        let goal = Goal { loss: 0.0, precision: 0.01, most: None, again: 0 };
        let Ok(found) = search(goal, device(0.0, 1e6));
        assert_eq!(found.best, None);
        assert!(found.trials.len() <= RATES_MAX);
    }

    #[test]
    fn the_error_of_a_trial_ends_the_search() {
        let goal = Goal { loss: 0.0, precision: 0.01, most: None, again: 0 };
        assert_eq!(search(goal, |_| Err::<Trial, _>("gone")), Err("gone"));
    }
}
