//! `sluice run`: one thread that waits for signals, clients, interfaces and the data plane, and serves each in
//! turn. It never touches a frame; while it works, the pollers go on.

mod events;
mod watchdog;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sd_notify::NotifyState;
use thiserror::Error;

use self::events::Events;
use self::watchdog::Watchdog;
use crate::api::server::Server;
use crate::api::socket::{Claim, ClaimError};
use crate::api::{dispatch, verbs};
use crate::config;
use crate::logging::Log;
use crate::model::Model;
use crate::problem::Problems;
use crate::service::{Parts, Service, ServiceError};

/// The daemon cannot start, or cannot go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// The configuration cannot be read.
    #[error("cannot read {}: {source}; name the configuration file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The configuration is wrong.
    #[error("{}", .1.in_file(.0))]
    Config(PathBuf, Problems),
    /// The control socket cannot be had.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The switch cannot start.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The kernel refuses what every kernel gives.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was refused.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

fn refused<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> RunError {
    move |source| RunError::Kernel { what, source: source.into() }
}

/// What verbs act on: the switch, and whether it goes on.
pub struct Running {
    /// The switch.
    pub service: Service,
    stopping: bool,
}

impl Running {
    /// Ends the daemon when the current request is answered.
    pub fn stop(&mut self) {
        self.stopping = true;
    }
}

/// Is the switch until SIGTERM, SIGINT or the verb `exit`. `socket` overrules the configuration's.
///
/// # Errors
/// [`RunError`]; nothing is left behind.
pub fn run(file: &Path, socket: Option<&Path>) -> Result<(), RunError> {
    let read = |source| RunError::Read { path: file.to_owned(), source };
    let file = std::fs::canonicalize(file).map_err(read)?;
    let text = config::file::text(&file).map_err(|source| RunError::Read { path: file.clone(), source })?;
    let model = config::parse(&text).and_then(Model::new);
    let model = model.map_err(|problems| RunError::Config(file.clone(), problems))?;
    let socket = socket.unwrap_or(&model.config().switch.socket).to_owned();
    // Blocked before the first thread starts, so that every thread inherits it.
    let signals = signals().map_err(refused("take signals"))?;
    let log = Log::start(model.config().switch.log);
    let (claim, listener) = Claim::new(&socket)?;
    let service = Service::start(Parts { file, socket, model, log })?;
    let events = Events::forward(service.switch().events()).map_err(refused("watch the pollers"))?;
    let running = Running { service, stopping: false };
    let mut daemon =
        Daemon { running, server: Server::new(listener), signals, events, watchdog: Watchdog::new() };
    tracing::info!(socket = %claim.path().display(), "sluice {} is ready", env!("CARGO_PKG_VERSION"));
    notify(NotifyState::Ready);
    let end = daemon.serve();
    notify(NotifyState::Stopping);
    daemon.server.finish();
    daemon.running.service.stop();
    drop(claim);
    tracing::info!("bye");
    end
}

/// Tells systemd, if it wants to know.
fn notify(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}

fn signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| mask.add(signal));
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

struct Daemon {
    running: Running,
    server: Server,
    signals: SignalFd,
    events: Events,
    watchdog: Option<Watchdog>,
}

impl Daemon {
    fn serve(&mut self) -> Result<(), RunError> {
        while !self.running.stopping {
            self.wait()?;
            self.take_signals().map_err(refused("read signals"))?;
            let service = &mut self.running.service;
            self.events.drain().for_each(|event| service.on_event(event));
            service.on_links();
            service.on_guests();
            service.on_underlay();
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.turn(Instant::now(), service.switch());
            }
            let running = &mut self.running;
            self.server.turn(Instant::now(), &mut |request| dispatch(verbs::VERBS, running, request));
        }
        Ok(())
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Result<(), RunError> {
        let own = [self.signals.as_fd(), self.events.as_fd()].into_iter();
        let own = own.chain(self.running.service.interests()).map(|fd| (fd, PollFlags::POLLIN));
        let mut fds: Vec<PollFd> =
            own.chain(self.server.interests()).map(|(fd, on)| PollFd::new(fd, on)).collect();
        match poll(&mut fds, timeout(self.patience(Instant::now()))) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(refused("wait")(error)),
        }
    }

    fn patience(&self, now: Instant) -> Option<Duration> {
        let deadlines = [self.running.service.deadline(), self.watchdog.as_ref().map(Watchdog::deadline)];
        let waits = deadlines.into_iter().flatten().map(|at| at.saturating_duration_since(now));
        waits.chain(self.server.patience(now)).min()
    }

    fn take_signals(&mut self) -> nix::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            if info.ssi_signo == Signal::SIGHUP as u32 {
                match self.running.service.apply() {
                    Ok(_) => {}
                    Err(error) => tracing::error!("{error}"),
                }
            } else {
                self.running.stop();
            }
        }
        Ok(())
    }
}

/// In milliseconds, rounded up: to wake early would be to wake twice.
fn timeout(patience: Option<Duration>) -> PollTimeout {
    let Some(patience) = patience else { return PollTimeout::NONE };
    PollTimeout::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
}
