//! The thread of a port: finds a frontend, talks with it, and again.
//!
//! It sleeps unless a frontend says something (a server without one wakes each second to look whether its socket is still
//! there), and a frontend that comes and goes as fast as it can gets [`INTERVAL`]s, and few lines in the log.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use tracing::{info, warn};

use super::conversation::{Conversation, End, timeout};
use super::device::Device;
use super::lanes::{Lanes, lock};
use super::places::Places;
use super::relay::Refusal;
use super::signal::Alarm;
use super::socket::{self, Listener};
use super::{Request, Status};

/// How long a frontend may take for one message. All of QEMU's and DPDK's are one system call.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// After a reset: whatever broke the rules would most likely do it again at once.
const RESET_PAUSE: Duration = Duration::from_secs(1);
/// From one connection to the next, at least.
const INTERVAL: Duration = Duration::from_millis(50);
/// The first time that a client waits before it tries again, doubled each time up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(10);
/// A try costs some microseconds, and a VM should not wait for its network.
const RETRY_MOST: Duration = Duration::from_millis(250);
/// How often a server that waits looks whether its socket still has a name: a look costs some microseconds.
const LOOK: Duration = Duration::from_secs(1);
/// Queues come one by one when a guest starts: the log has them when there were no more for so long.
const SETTLED: Duration = Duration::from_millis(100);
/// Lines to the log that one port may write in [`LOG_WINDOW`].
const LOG_LINES: u32 = 20;
/// See [`LOG_LINES`].
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// What a session and the port's owner share.
pub(super) struct Shared {
    pub(super) lanes: Arc<Mutex<Lanes>>,
    pub(super) alarm: Arc<Alarm>,
    status: Mutex<Status>,
    /// The connection, for who wants to end it from outside.
    line: Mutex<Option<UnixStream>>,
    changed: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    pub(super) fn new(pairs: u16, changed: Box<dyn Fn() + Send + Sync>) -> io::Result<Arc<Shared>> {
        Ok(Arc::new(Shared {
            lanes: Arc::new(Lanes::new(pairs)),
            alarm: Arc::new(Alarm::new()?),
            status: Mutex::default(),
            line: Mutex::default(),
            changed,
        }))
    }

    pub(super) fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    fn set(&self, change: impl FnOnce(&mut Status)) {
        let mut status = lock(&self.status);
        let before = status.clone();
        change(&mut status);
        let is_other = *status != before;
        drop(status);
        if is_other {
            (self.changed)();
        }
    }

    /// Ends the session from outside, whatever it is doing.
    pub(super) fn stop(&self) {
        self.alarm.stop();
        if let Some(line) = &*lock(&self.line) {
            let _ = line.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// How frontends are found.
pub(super) enum Finder {
    /// They come to us.
    Server(Listener),
    /// We go to them, and wait so long before the next try.
    Client(Duration),
}

/// What the thread does.
pub(super) struct Session {
    request: Request,
    shared: Arc<Shared>,
    finder: Finder,
    places: Arc<Places>,
    log: Log,
    /// When the queues became others that the log does not have yet.
    unsaid: Option<Instant>,
}

impl Session {
    pub(super) fn new(request: Request, shared: Arc<Shared>, finder: Finder, places: Places) -> Session {
        let (log, places) = (Log::new(&request.name), Arc::new(places));
        Session { request, shared, finder, places, log, unsaid: None }
    }

    /// Until it is stopped.
    pub(super) fn run(mut self) {
        while let Some(stream) = self.find() {
            let began = Instant::now();
            let pause = match self.talk(&stream) {
                End::Stopped => return,
                End::Gone => INTERVAL.saturating_sub(began.elapsed()),
                End::Fault(_) => RESET_PAUSE,
            };
            drop(stream);
            self.pause(pause);
        }
    }

    /// The next frontend; `None` when told to stop.
    fn find(&mut self) -> Option<UnixStream> {
        while !self.shared.alarm.is_stopped() {
            match self.try_to_find() {
                Ok(Some(stream)) => return Some(stream),
                Ok(None) => {}
                Err(error) => {
                    let place = self.request.path.display();
                    let error = format!("{place}: {error}");
                    self.shared.set(|status| status.last_error = Some(error));
                    self.back_off();
                }
            }
        }
        None
    }

    fn try_to_find(&mut self) -> io::Result<Option<UnixStream>> {
        match &mut self.finder {
            Finder::Client(wait) => {
                let stream = socket::connect(&self.request.path)?;
                *wait = RETRY_FIRST;
                Ok(Some(stream))
            }
            Finder::Server(listener) => {
                let (socket, alarm) = (listener.listener.as_fd(), self.shared.alarm.fd());
                if !wait_for(&[socket, alarm], LOOK) {
                    return self.listen_again().map(|()| None);
                }
                self.shared.alarm.take_fault();
                match listener.accept() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                    accepted => accepted.map(Some),
                }
            }
        }
    }

    /// Makes a server's socket anew if it is no longer where frontends look for it. (OVS and DPDK do not notice.)
    fn listen_again(&mut self) -> io::Result<()> {
        let Finder::Server(listener) = &mut self.finder else { return Ok(()) };
        if listener.is_there() {
            return Ok(());
        }
        *listener = Listener::bind(&self.request.path)?;
        let Request { name, path, .. } = &self.request;
        self.log.write(|| warn!(port = name, "vhost-user: {} was gone and is made anew", path.display()));
        self.shared.set(|status| status.last_error = None);
        Ok(())
    }

    fn back_off(&mut self) {
        let wait = match &mut self.finder {
            Finder::Client(wait) => std::mem::replace(wait, (*wait * 2).min(RETRY_MOST)),
            Finder::Server(_) => RETRY_MOST,
        };
        self.pause(wait);
    }

    /// Waits, unless told to stop.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.shared.alarm.is_stopped() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            wait_for(&[self.shared.alarm.fd()], left);
            // A fault of the guest of before.
            self.shared.alarm.take_fault();
        }
    }

    fn talk(&mut self, stream: &UnixStream) -> End {
        self.begin(stream);
        let shared = Arc::clone(&self.shared);
        let Request { pairs, mtu, .. } = self.request;
        let device = Arc::new(Mutex::new(Device::new(
            pairs,
            mtu,
            Arc::clone(&shared.lanes),
            Arc::clone(&self.places),
        )));
        let talk = Conversation { stream, alarm: &shared.alarm, device: &device, patience: PATIENCE };
        let end = talk.run(|device, refusal| self.tell(device, refusal));
        lock(&device).close();
        self.end(&end);
        end
    }

    fn begin(&mut self, stream: &UnixStream) {
        *lock(&self.shared.line) = stream.try_clone().ok();
        if self.shared.alarm.is_stopped() {
            // Whoever stopped us found no line to shut.
            self.shared.stop();
        }
        let name = self.log.name.clone();
        self.log.write(|| info!(port = name, "vhost-user: a frontend is connected"));
        self.shared.set(|status| {
            status.connected = true;
            status.connections += 1;
            status.last_error = None;
        });
    }

    /// Passes on what a message changed. How long until there is more to tell.
    fn tell(&mut self, device: &Device, refusal: Option<Refusal>) -> Option<Duration> {
        let name = self.log.name.clone();
        if let Some(refusal) = refusal {
            self.log.write(|| warn!(port = name, "vhost-user: refused {refusal}"));
        }
        let (epoch, running) = {
            let lanes = lock(&self.shared.lanes);
            (lanes.epoch(), lanes.running())
        };
        let pairs = running.pairs.count_ones() as u16;
        if epoch != self.shared.status().epoch {
            self.unsaid = Some(Instant::now());
        }
        if self.unsaid.is_some_and(|since| since.elapsed() >= SETTLED) {
            self.unsaid = None;
            let (features, rings, memory) = (device.state.acked, device.sizes(), device.memory());
            self.log.write(|| info!(port = name, pairs, ?rings, memory, %features, "vhost-user: queues"));
        }
        self.shared.set(|status| {
            status.pairs = pairs;
            status.epoch = epoch;
            status.features = device.state.acked;
            status.protocol_features = device.state.protocol;
            status.rings = device.sizes();
            status.memory = device.memory();
        });
        self.unsaid.map(|since| SETTLED.saturating_sub(since.elapsed()))
    }

    fn end(&mut self, end: &End) {
        *lock(&self.shared.line) = None;
        self.unsaid = None;
        let name = self.log.name.clone();
        match end {
            End::Fault(reason) => self.log.write(|| warn!(port = name, "vhost-user: reset: {reason}")),
            End::Gone | End::Stopped => {
                self.log.write(|| info!(port = name, "vhost-user: the frontend is gone"));
            }
        }
        let epoch = lock(&self.shared.lanes).epoch();
        self.shared.set(|status| {
            let Status { connections, resets, .. } = *status;
            *status = Status { epoch, connections, resets, ..Status::default() };
            if let End::Fault(reason) = end {
                status.resets += 1;
                status.last_error = Some(format!("reset: {reason}"));
            }
        });
    }
}

/// Waits for one of these; false if none came in time.
fn wait_for(fds: &[BorrowedFd<'_>], left: Duration) -> bool {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    poll(&mut fds, timeout(Some(left))).is_ok_and(|ready| ready > 0)
}

impl Finder {
    pub(super) fn client() -> Finder {
        Finder::Client(RETRY_FIRST)
    }
}

/// What a port may say.
struct Log {
    name: String,
    since: Instant,
    lines: u32,
}

impl Log {
    fn new(port: &str) -> Log {
        Log { name: port.to_owned(), since: Instant::now(), lines: 0 }
    }

    /// Writes a line, unless there were too many lately.
    fn write(&mut self, line: impl FnOnce()) {
        if self.since.elapsed() >= LOG_WINDOW {
            if let Some(unsaid @ 1..) = self.lines.checked_sub(LOG_LINES) {
                info!(port = self.name, "vhost-user: {unsaid} lines not logged");
            }
            (self.since, self.lines) = (Instant::now(), 0);
        }
        self.lines += 1;
        if self.lines <= LOG_LINES {
            line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_says_no_more_than_its_share() {
        let mut log = Log::new("vm");
        let mut written = 0;
        (0..100).for_each(|_| log.write(|| written += 1));
        assert_eq!(written, LOG_LINES);
        log.since -= LOG_WINDOW;
        log.write(|| written += 1);
        assert_eq!((written, log.lines), (LOG_LINES + 1, 1));
    }
}
