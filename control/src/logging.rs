//! The log: lines on standard error, its level changeable while the daemon runs.
//!
//! Under systemd the journal has its own clock, and a pipe or file wants no colours.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Registry, fmt, reload};

/// The running log.
#[derive(Debug, Clone)]
pub struct Log(reload::Handle<LevelFilter, Registry>);

impl Log {
    /// Starts logging. There is one log per process: later calls only set its level.
    pub fn start(level: Level) -> Log {
        static LOG: OnceLock<Log> = OnceLock::new();
        let log = LOG.get_or_init(Log::init);
        log.set(level);
        log.clone()
    }

    fn init() -> Log {
        let (filter, handle) = reload::Layer::new(LevelFilter::INFO);
        let terminal = std::io::stderr().is_terminal();
        let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(terminal).with_target(false);
        let registry = tracing_subscriber::registry().with(filter);
        // Fails only where somebody else logs already; then what we log goes there.
        let _ = if std::env::var_os("JOURNAL_STREAM").is_some() {
            registry.with(lines.without_time()).try_init()
        } else {
            registry.with(lines).try_init()
        };
        Log(handle)
    }

    /// The most detailed level that is logged.
    pub fn level(&self) -> Level {
        self.0.clone_current().and_then(LevelFilter::into_level).unwrap_or(Level::ERROR)
    }

    /// Changes the level.
    pub fn set(&self, level: Level) {
        let _ = self.0.reload(LevelFilter::from_level(level));
    }
}
