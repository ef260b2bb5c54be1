//! One connection, from the first message to the last.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::device::Device;
use super::inbox::{self, Inbox, InboxError, Mail, Message};
use super::lanes::lock;
use super::relay::{Refusal, Relay};
use super::signal::Alarm;

/// The most messages that are done in [`WINDOW`]; the next wait for its end. To start a guest of 16 pairs takes QEMU some
/// 300, and most of them have pollers wait at a door.
pub(super) const MESSAGES: u32 = 2000;
/// See [`MESSAGES`].
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The frontend left.
    Gone,
    /// We were told to stop.
    Stopped,
    /// The frontend or its guest broke the rules, and this is how.
    Fault(String),
}

impl From<InboxError> for End {
    fn from(error: InboxError) -> End {
        End::Fault(error.to_string())
    }
}

/// A frontend that we talk with.
pub(super) struct Conversation<'a> {
    pub(super) stream: &'a UnixStream,
    pub(super) alarm: &'a Alarm,
    pub(super) device: &'a Arc<Mutex<Device>>,
    /// How long a message may take from its first byte to its last, or an answer until it is read.
    pub(super) patience: Duration,
}

impl Conversation<'_> {
    /// Does what the frontend asks for until the end; tells after each message, and when it is told that there is more to tell.
    pub(super) fn run(&self, mut tell: impl FnMut(&Device, Option<Refusal>) -> Option<Duration>) -> End {
        let relay = Relay::new(Arc::clone(self.device));
        let mut relay = match relay {
            Ok(relay) => relay,
            Err(error) => return End::Fault(error.to_string()),
        };
        let (mut inbox, mut more) = (Inbox::default(), None);
        let (mut began, mut count) = (Instant::now(), 0);
        loop {
            if count == MESSAGES {
                let rest = WINDOW.saturating_sub(began.elapsed());
                if let Err(end) = self.wait(PollFlags::empty(), Some(rest)) {
                    return end;
                }
                (began, count) = (Instant::now(), 0);
            }
            count += 1;
            match self.step(&mut inbox, &mut relay, more) {
                Ok(refusal) => more = tell(&lock(self.device), refusal),
                Err(end) => return end,
            }
        }
    }

    /// Waits for something, at most so long, and does it.
    fn step(
        &self,
        inbox: &mut Inbox,
        relay: &mut Relay,
        most: Option<Duration>,
    ) -> Result<Option<Refusal>, End> {
        let left = self.left(inbox.since(), "stopped in the middle of a message")?;
        self.wait(PollFlags::POLLIN, left.into_iter().chain(most).min())?;
        let message = match inbox.look(self.stream)? {
            Mail::Message(message) => message,
            Mail::Nothing => return Ok(None),
            Mail::End => return Err(End::Gone),
        };
        let outcome = relay.handle(message);
        if let Some(refusal) = outcome.refusal.as_ref().filter(|_| outcome.is_fatal()) {
            return Err(End::Fault(refusal.to_string()));
        }
        self.answer(outcome.answer)?;
        Ok(outcome.refusal)
    }

    fn answer(&self, mut answer: Message) -> Result<(), End> {
        let since = Instant::now();
        loop {
            match inbox::send(self.stream, &mut answer) {
                Ok(()) if answer.bytes.is_empty() => return Ok(()),
                Ok(()) => self.wait(PollFlags::POLLOUT, self.left(Some(since), "does not read")?)?,
                // It left without waiting for it.
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(End::Gone),
                Err(errno) => return Err(InboxError::from(errno).into()),
            }
        }
    }

    /// How long we have patience yet with a frontend that began then.
    fn left(&self, since: Option<Instant>, what: &str) -> Result<Option<Duration>, End> {
        let left = since.map(|since| self.patience.saturating_sub(since.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(End::Fault(format!("the frontend {what}")));
        }
        Ok(left)
    }

    /// Waits for the socket or the alarm, at most so long.
    fn wait(&self, socket: PollFlags, most: Option<Duration>) -> Result<(), End> {
        let mut fds =
            [PollFd::new(self.stream.as_fd(), socket), PollFd::new(self.alarm.fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout(most)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(InboxError::from(errno).into()),
        }
        if self.alarm.is_stopped() {
            return Err(End::Stopped);
        }
        match self.alarm.take_fault().then(|| lock(self.device).fault()).flatten() {
            Some((pair, fault)) => Err(End::Fault(format!("queue pair {pair}: {fault}"))),
            None => Ok(()),
        }
    }
}

/// As poll(2) wants it: whole milliseconds, not fewer than asked for.
pub(super) fn timeout(left: Option<Duration>) -> PollTimeout {
    let millis = |left: Duration| u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
    left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(millis(left)).unwrap_or(PollTimeout::MAX))
}
