//! The control socket's clients: each is read and written without blocking, one request at a time.
//!
//! Whoever connects can cost the daemon at most this: one of [`CLIENTS`] places, one request of
//! [`LIMIT`](super::message::LIMIT) bytes, one reply. A client is not read while its reply is unsent; one that
//! stops in the middle of either for [`PATIENCE`] is closed; when all places are taken, the client that has been
//! quiet longest makes room.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use serde_json::Value;

use super::Answer;
use super::message::{MessageError, Reply, Request, Splitter};

/// The most clients at once.
pub const CLIENTS: usize = 64;
/// How long a client may leave a request or a reply half done.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long no client is accepted after accept(2) failed for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Who answers requests.
pub type Respond<'a> = &'a mut dyn FnMut(&Request) -> Answer;

struct Client {
    stream: UnixStream,
    splitter: Splitter,
    reply: Vec<u8>,
    sent: usize,
    /// The last time a byte moved.
    active: Instant,
    /// No more will be read: the client said so, or sent garbage.
    finished: bool,
}

impl Client {
    fn new(stream: UnixStream, now: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let splitter = Splitter::default();
        Ok(Client { stream, splitter, reply: Vec::new(), sent: 0, active: now, finished: false })
    }

    fn is_writing(&self) -> bool {
        self.sent < self.reply.len()
    }

    /// Can it go on without the kernel?
    fn is_ready(&self) -> bool {
        !self.is_writing() && (self.finished || self.splitter.is_ready())
    }

    /// When its patience ends, if it is in the middle of something.
    fn deadline(&self) -> Option<Instant> {
        (self.is_writing() || self.splitter.is_partial()).then(|| self.active + PATIENCE)
    }

    /// Moves what can be moved. An error ends the client.
    fn turn(&mut self, now: Instant, respond: Respond) -> io::Result<()> {
        self.write(now)?;
        if self.is_writing() {
            return self.check_patience(now);
        }
        match self.read(now).and_then(|()| self.splitter.next_request()) {
            Ok(Some(request)) => self.reply(Reply::new(request.id.clone(), respond(&request)), now),
            Ok(None) if self.finished => Err(ErrorKind::UnexpectedEof.into()),
            Ok(None) => self.check_patience(now),
            Err(error) => {
                self.finished = true;
                self.splitter = Splitter::default();
                self.reply(Reply::new(Value::Null, Err(error.to_string())), now)
            }
        }
    }

    fn check_patience(&self, now: Instant) -> io::Result<()> {
        if self.deadline().is_some_and(|end| end <= now) { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    fn read(&mut self, now: Instant) -> Result<(), MessageError> {
        if self.splitter.is_ready() || self.finished {
            return Ok(());
        }
        let mut chunk = [0; 16384];
        match self.stream.read(&mut chunk) {
            Ok(n) if n > 0 => {
                self.active = now;
                self.splitter.push(&chunk[..n])
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Ok(_) | Err(_) => {
                self.finished = true;
                Ok(())
            }
        }
    }

    fn reply(&mut self, reply: Reply, now: Instant) -> io::Result<()> {
        self.reply = reply.to_bytes();
        self.sent = 0;
        self.active = now;
        self.write(now)
    }

    fn write(&mut self, now: Instant) -> io::Result<()> {
        while self.is_writing() {
            match self.stream.write(&self.reply[self.sent..]) {
                Ok(n) => {
                    self.sent += n;
                    self.active = now;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.reply = Vec::new();
        self.sent = 0;
        Ok(())
    }
}

/// The listening socket and its clients.
pub struct Server {
    listener: UnixListener,
    clients: Vec<Client>,
    accept_from: Option<Instant>,
}

impl Server {
    /// Serves who connects to `listener`, which must not block.
    pub fn new(listener: UnixListener) -> Self {
        Server { listener, clients: Vec::new(), accept_from: None }
    }

    /// What to wait for before the next [`Server::turn`].
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let accepting = self.accept_from.is_none().then(|| (self.listener.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter().filter_map(|client| {
            let flags = match client {
                c if c.is_writing() => PollFlags::POLLOUT,
                c if c.finished => return None,
                _ => PollFlags::POLLIN,
            };
            Some((client.stream.as_fd(), flags))
        });
        accepting.into_iter().chain(clients)
    }

    /// How long to wait at most; `None`: for as long as nothing happens.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        if self.clients.iter().any(Client::is_ready) {
            return Some(Duration::ZERO);
        }
        let ends = self.clients.iter().filter_map(Client::deadline).chain(self.accept_from);
        ends.min().map(|end| end.saturating_duration_since(now))
    }

    /// Accepts who waits, and gives every client that can move one request.
    pub fn turn(&mut self, now: Instant, respond: Respond) {
        self.accept(now);
        self.clients.retain_mut(|client| client.turn(now, respond).is_ok());
    }

    /// Sends what is left of replies, briefly waiting for each client, before the daemon ends.
    pub fn finish(mut self) {
        for client in self.clients.iter_mut().filter(|c| c.is_writing()) {
            let _ = client.stream.set_nonblocking(false);
            let _ = client.stream.set_write_timeout(Some(Duration::from_millis(200)));
            let _ = client.stream.write_all(&client.reply[client.sent..]);
        }
    }

    fn accept(&mut self, now: Instant) {
        if self.accept_from.is_some_and(|from| now < from) {
            return;
        }
        self.accept_from = None;
        loop {
            match self.listener.accept().and_then(|(stream, _)| Client::new(stream, now)) {
                Ok(client) => self.admit(client),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => {
                    tracing::warn!("cannot accept a client of the control socket: {e}");
                    self.accept_from = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, client: Client) {
        if self.clients.len() >= CLIENTS {
            let quietest = (0..self.clients.len()).min_by_key(|i| self.clients[*i].active);
            quietest.map(|i| self.clients.remove(i));
        }
        self.clients.push(client);
    }
}
