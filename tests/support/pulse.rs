//! How long nobody answered: echo requests every few milliseconds, and the longest time between two answers.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::host::Host;
use super::lab::{Leashed, within};

/// Echo requests on their way, until stopped.
pub struct Pulse {
    ping: Leashed,
    dir: TempDir,
}

impl Pulse {
    /// Sends an echo request of `size` bytes from a host every `interval`.
    pub fn start(from: &Host, to: Ipv4Addr, interval: Duration, size: usize) -> Pulse {
        let dir = TempDir::with_prefix("sluice-test-pulse-").expect("a directory");
        let answers = File::create(dir.path().join("answers")).expect("a file");
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "ping", "-n", "-D", "-i", &interval.as_secs_f64().to_string()]);
        command.args(["-s", &size.to_string(), &to.to_string()]);
        command.stdin(Stdio::null()).stdout(answers).stderr(Stdio::null());
        Pulse { ping: Leashed(from.ns.run(|| command.spawn().expect("stdbuf and ping"))), dir }
    }

    /// When the answers came, in seconds since the epoch.
    fn answers(&self) -> Vec<f64> {
        let text = fs::read_to_string(self.dir.path().join("answers")).expect("what ping said");
        let time = |line: &str| line.strip_prefix('[')?.split_once("] ")?.0.parse().ok();
        text.lines().filter(|line| line.contains("bytes from")).filter_map(time).collect()
    }

    /// How many answers have come.
    pub fn count(&self) -> usize {
        self.answers().len()
    }

    /// Waits until `n` more have come than had when called.
    pub fn await_more(&self, n: usize, limit: Duration) {
        let goal = self.count() + n;
        within(limit, &format!("{n} more answers"), || self.count() >= goal);
    }

    /// The longest time between two answers, from when there had been `n` on.
    pub fn gap_since(&self, n: usize) -> Duration {
        let answers = self.answers();
        let gaps = answers.windows(2).skip(n.saturating_sub(1)).map(|pair| pair[1] - pair[0]);
        Duration::from_secs_f64(gaps.fold(0.0, f64::max))
    }

    /// Stops, and says how long the longest time between two answers was.
    pub fn stop(mut self) -> Duration {
        kill(Pid::from_raw(self.ping.0.id() as i32), Signal::SIGINT).expect("our own child");
        self.ping.0.wait().expect("its status");
        self.gap_since(0)
    }
}
