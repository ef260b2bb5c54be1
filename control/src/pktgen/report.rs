//! What `sluice pktgen` says: JSON with names that stay, or a table.

use std::fmt::Write;

use dataplane::pktgen::circuit::Cost;
use dataplane::pktgen::exchange::{Outcome, Source};
use dataplane::pktgen::meter;
use dataplane::pktgen::search::Found;
use dataplane::pktgen::stamp::Form;
use serde::Serialize;

use super::Request;
use crate::render::count;

/// The answer.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where frames were sent.
    pub tx: String,
    /// Where they came out.
    pub rx: String,
    /// Bytes of a frame without FCS, outer headers included; of a file the longest.
    pub frame_bytes: usize,
    /// Flows; of a file its frames.
    pub flows: usize,
    /// Frames sent.
    pub sent: u64,
    /// Frames that came, duplicates too.
    pub received: u64,
    /// Frames that never came.
    pub lost: u64,
    /// Frames that came behind one of their flow that was sent later; null where frames have no numbers.
    pub reordered: Option<u64>,
    /// Frames that came again; null where frames have no numbers.
    pub duplicated: Option<u64>,
    /// Frames that came and are not ours.
    pub foreign: u64,
    /// Frames sent per second.
    pub tx_pps: Spread,
    /// Frames received per second.
    pub rx_pps: Spread,
    /// Null where frames have no time.
    pub latency_us: Option<Quantiles>,
    /// Only of `memory` ports.
    #[serde(flatten)]
    pub cost: Option<CostReport>,
    /// Only of a search.
    #[serde(flatten)]
    pub search: Option<SearchReport>,
    /// What was not measured, and why.
    pub notes: Vec<String>,
}

/// Best and median of the windows.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Spread {
    /// The best window.
    pub best: f64,
    /// The one in the middle.
    pub median: f64,
}

/// Microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs)] // the names say it
pub struct Quantiles {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
    /// Frames.
    pub samples: u64,
}

/// What frames cost a switch in memory.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CostReport {
    /// TSC cycles of the poller for each frame that came in, allocation, copy and free included.
    pub cycles_per_frame: Spread,
    /// Millions of frames per second that came out, median.
    pub rx_mpps: f64,
    /// Frames of the measurement whose flow was not in the cache.
    pub upcalls: u64,
}

/// What a search found.
#[derive(Debug, Clone, Serialize)]
pub struct SearchReport {
    /// Frames per second; null if every trial lost too many.
    pub throughput_pps: Option<f64>,
    /// All trials, in order.
    pub trials: Vec<TrialReport>,
}

/// One trial.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TrialReport {
    /// Frames per second that were wished for; null: as fast as it gets.
    pub wished_pps: Option<f64>,
    /// Frames per second that were sent.
    pub tx_pps: f64,
    /// Frames sent.
    pub sent: u64,
    /// Of them never came.
    pub lost: u64,
}

impl From<meter::Spread> for Spread {
    fn from(spread: meter::Spread) -> Spread {
        Spread { best: spread.best, median: spread.median }
    }
}

impl From<meter::Quantiles> for Quantiles {
    fn from(quantiles: meter::Quantiles) -> Quantiles {
        let meter::Quantiles { min, p50, p90, p99, p99_9, max, samples } = quantiles;
        Quantiles { min, p50, p90, p99, p99_9, max, samples }
    }
}

impl Report {
    /// One that says what is sent, and nothing of what came of it.
    pub fn new(request: &Request, source: &Source) -> Report {
        let rx = request.rx.as_ref().unwrap_or(&request.tx).to_string();
        let (frame_bytes, flows) = match source {
            Source::Made(frames) => (frames.frame_len(), frames.flows()),
            Source::Played(player) => (player.reel().longest(), player.reel().frames()),
        };
        let none = Spread::default();
        Report {
            tx: request.tx.to_string(),
            rx,
            frame_bytes,
            flows,
            sent: 0,
            received: 0,
            lost: 0,
            reordered: None,
            duplicated: None,
            foreign: 0,
            tx_pps: none,
            rx_pps: none,
            latency_us: None,
            cost: None,
            search: None,
            notes: Vec::new(),
        }
    }

    /// With what came of an exchange, and what its frames had no room for.
    pub fn with(self, outcome: Outcome, form: Form) -> Report {
        let note = match form {
            Form::Whole => None,
            Form::Untimed => Some(
                "no latency: the payload of such short frames has no room for a time (18 bytes); make --pkt-size larger",
            ),
            Form::None => Some(
                "frames are only counted: they carry no numbers, so that order, duplicates and latency are unknown and frames of others count as ours",
            ),
        };
        Report {
            sent: outcome.sent,
            received: outcome.received,
            lost: outcome.lost,
            reordered: outcome.reordered,
            duplicated: outcome.duplicated,
            foreign: outcome.foreign,
            tx_pps: outcome.tx.into(),
            rx_pps: outcome.rx.into(),
            latency_us: outcome.latency.map(Quantiles::from),
            notes: note.into_iter().map(str::to_owned).collect(),
            ..self
        }
    }

    /// With what frames cost a switch in this process.
    pub fn with_cost(mut self, cost: Cost) -> Report {
        self.notes.push(
            "memory ports: frames are alike and only counted; order, duplicates and latency are not measured"
                .to_owned(),
        );
        if cost.upcalls > 0 {
            self.notes.push(format!(
                "{} frames were upcalls: not all flows stayed in the cache; see upcall-rate, flow-limit",
                cost.upcalls
            ));
        }
        let of_switch = CostReport {
            cycles_per_frame: cost.cycles.into(),
            rx_mpps: cost.rx.median / 1e6,
            upcalls: cost.upcalls,
        };
        Report {
            sent: cost.sent,
            received: cost.received,
            lost: cost.sent.saturating_sub(cost.received),
            tx_pps: cost.tx.into(),
            rx_pps: cost.rx.into(),
            cost: Some(of_switch),
            ..self
        }
    }

    /// With all trials of a search; the rest is of the one that it ended with.
    pub fn with_search(self, found: &Found) -> Report {
        let trial = |trial: &dataplane::pktgen::search::Trial| TrialReport {
            wished_pps: trial.wished,
            tx_pps: trial.rate,
            sent: trial.sent,
            lost: trial.lost,
        };
        let search = SearchReport {
            throughput_pps: found.best.map(|best| best.rate),
            trials: found.trials.iter().map(trial).collect(),
        };
        Report { search: Some(search), ..self }
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<18}{value}");
        };
        line("from, to", format!("{} → {}", self.tx, self.rx));
        line("frames", format!("{} bytes, {} flows", self.frame_bytes, count(self.flows as u64)));
        line("sent", count(self.sent));
        line("received", count(self.received));
        let share = self.lost as f64 / self.sent.max(1) as f64 * 100.0;
        line("lost", format!("{} ({share:.4} %)", count(self.lost)));
        let known = |number: Option<u64>| number.map_or("not measured".to_owned(), count);
        line("reordered", known(self.reordered));
        line("duplicated", known(self.duplicated));
        if self.foreign > 0 {
            line("not ours", count(self.foreign));
        }
        line("sent per second", self.tx_pps.render());
        line("received", self.rx_pps.render());
        if let Some(latency) = self.latency_us {
            line("latency, µs", latency.render());
        }
        if let Some(cost) = self.cost {
            let Spread { best, median } = cost.cycles_per_frame;
            line("cycles per frame", format!("best {best:.0}, median {median:.0}"));
        }
        text += &self.search.as_ref().map_or_else(String::new, SearchReport::render);
        self.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        text
    }
}

impl Spread {
    fn render(self) -> String {
        format!("best {}, median {}", count(self.best as u64), count(self.median as u64))
    }
}

impl Quantiles {
    fn render(self) -> String {
        let Quantiles { min, p50, p90, p99, p99_9, max, samples } = self;
        format!(
            "min {min:.1}, p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p99_9:.1}, max {max:.1} ({} frames)",
            count(samples)
        )
    }
}

impl SearchReport {
    fn render(&self) -> String {
        let mut text = String::new();
        for trial in &self.trials {
            let wished = trial.wished_pps.map_or("all it can".to_owned(), |pps| count(pps as u64));
            let (pps, lost) = (count(trial.tx_pps as u64), count(trial.lost));
            let _ = writeln!(text, "{:<18}{wished} wished, {pps} sent per second, {lost} lost", "trial");
        }
        let found = self.throughput_pps.map_or("none: every trial lost frames".to_owned(), |pps| {
            format!("{} frames per second", count(pps as u64))
        });
        let _ = writeln!(text, "{:<18}{found}", "throughput");
        text
    }
}
