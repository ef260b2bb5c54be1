//! What a generator is plugged into: an interface, by AF_XDP or AF_PACKET, or a switch's vhost-user port, as whose guest it plays.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsFd;
use thiserror::Error;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::batch::Batch;
use crate::frame::{FrameCache, FramePool};
use crate::port::netdev::{Netdev, NetdevError};
use crate::port::packet::{self, PacketError};
use crate::port::xdp::{self, OpenError};
use crate::port::{Counters, Offloads, Port, PortError, Readiness, Sent};
use crate::virtio::NET_HEADER;
use crate::virtio::driver::frontend::{Frontend, FrontendError, Wish};
use crate::virtio::driver::memory::{MemoryError, SharedMemory};
use crate::virtio::driver::pair::{Chains, PairShape};
use crate::virtio::driver::user::VirtioUser;
use crate::virtio::features::Features;

/// Entries of a guest's rings: the most that QEMU gives a network card.
const RING: u16 = 1024;
/// Bytes of a guest's buffers, at least.
const BUFFER: usize = 2048;
/// What a guest of ours can do: what Linux's driver does with a ring, and no offloads.
const FEATURES: Features = Features(
    Features::VERSION_1.0
        | Features::MRG_RXBUF.0
        | Features::EVENT_IDX.0
        | Features::INDIRECT_DESC.0
        | Features::PROTOCOL_FEATURES.0,
);
/// Calls of `rx` between two looks whether the switch is still there.
const LOOK: u32 = 1 << 14;
/// How long a switch may take to connect to a socket of ours.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Who makes the socket of a vhost-user port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The switch: a `dpdkvhostuser` port.
    Client,
    /// We: a `dpdkvhostuserclient` port.
    Server,
}

/// What to plug into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cable {
    /// An interface, by AF_XDP.
    Afxdp(String),
    /// An interface, by AF_PACKET.
    Afpacket(String),
    /// A vhost-user socket.
    VhostUser(PathBuf, Role),
    /// A port of a switch in this process.
    Memory(String),
}

/// A port cannot be opened.
#[derive(Debug, Error)]
pub enum CableError {
    /// No such kind.
    #[error(
        "port {0:?} is none of afxdp:INTERFACE, afpacket:INTERFACE, vhost-user:SOCKET[,server], memory:NAME"
    )]
    Kind(String),
    /// The interface has no queues that can be asked for.
    #[error(transparent)]
    Device(#[from] NetdevError),
    /// AF_PACKET.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// AF_XDP.
    #[error("{0}; afpacket:{1} works with any interface")]
    Xdp(OpenError, String),
    /// More queues than anybody has.
    #[error("interface {0} has {1} queues, expected 1 to 65535")]
    Queues(String, u32),
    /// The socket cannot be made, or nobody comes.
    #[error(
        "cannot wait for a switch at {socket}: {source}; is a port of type dpdkvhostuserclient with this vhost-server-path in its bridge?"
    )]
    Listen {
        /// The socket.
        socket: String,
        /// Why not.
        source: io::Error,
    },
    /// Nobody listens.
    #[error(
        "cannot connect to {socket}: {source}; is the switch running, with a port of type dpdkvhostuser?"
    )]
    Connect {
        /// The socket.
        socket: String,
        /// Why not.
        source: io::Error,
    },
    /// The switch does not agree.
    #[error("switch at {0} refuses us: {1}")]
    Session(String, FrontendError),
    /// No memory to share.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Not a port by itself.
    #[error(
        "memory:{0} is a port of a switch in this process; both ports must be, and --config must say which switch"
    )]
    InProcess(String),
}

impl FromStr for Cable {
    type Err = CableError;

    fn from_str(text: &str) -> Result<Cable, CableError> {
        let wrong = || CableError::Kind(text.to_owned());
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
        match kind {
            "afxdp" => Ok(Cable::Afxdp(name.to_owned())),
            "afpacket" => Ok(Cable::Afpacket(name.to_owned())),
            "memory" => Ok(Cable::Memory(name.to_owned())),
            "vhost-user" => Ok(match name.strip_suffix(",server") {
                Some(path) => Cable::VhostUser(path.into(), Role::Server),
                None => Cable::VhostUser(name.into(), Role::Client),
            }),
            _ => Err(wrong()),
        }
    }
}

impl Display for Cable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cable::Afxdp(name) => write!(f, "afxdp:{name}"),
            Cable::Afpacket(name) => write!(f, "afpacket:{name}"),
            Cable::VhostUser(path, Role::Client) => write!(f, "vhost-user:{}", path.display()),
            Cable::VhostUser(path, Role::Server) => write!(f, "vhost-user:{},server", path.display()),
            Cable::Memory(name) => write!(f, "memory:{name}"),
        }
    }
}

impl Cable {
    /// Plugs in; frames will be of `len` bytes at most.
    ///
    /// # Errors
    /// [`CableError`].
    pub fn open(&self, pool: &Arc<FramePool>, len: usize) -> Result<Box<dyn Port>, CableError> {
        match self {
            Cable::Afxdp(name) => afxdp(name, pool),
            Cable::Afpacket(name) => Ok(bundle(packet::open(name, 1)?)),
            Cable::VhostUser(path, role) => Ok(Box::new(Guest::new(path, *role, len)?)),
            Cable::Memory(name) => Err(CableError::InProcess(name.clone())),
        }
    }
}

fn afxdp(name: &str, pool: &Arc<FramePool>) -> Result<Box<dyn Port>, CableError> {
    let queues = Netdev::open(name)?.queues()?;
    let queues = u16::try_from(queues).map_err(|_| CableError::Queues(name.to_owned(), queues))?;
    let request = xdp::Request { interface: name, queues, mode: None, patience: xdp::PATIENCE };
    let opened = xdp::open(pool, request).map_err(|error| CableError::Xdp(error, name.to_owned()))?;
    Ok(bundle(opened.ports))
}

/// All queues of an interface as one port.
fn bundle<P: Port + 'static>(mut queues: Vec<P>) -> Box<dyn Port> {
    match queues.len() {
        1 => Box::new(queues.remove(0)),
        _ => Box::new(Bundle { queues, next: 0 }),
    }
}

/// Queues of one interface: sends by the first, and asks one after the other.
struct Bundle<P> {
    queues: Vec<P>,
    next: usize,
}

impl<P: Port> Port for Bundle<P> {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        for _ in 0..self.queues.len() {
            self.next = (self.next + 1) % self.queues.len();
            self.queues[self.next].rx(frames, batch)?;
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.queues[0].tx(frames, batch)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.queues[0].readiness()
    }

    fn close(&mut self, frames: &mut FrameCache) {
        self.queues.iter_mut().for_each(|queue| queue.close(frames));
    }
}

/// A guest's card, with one queue pair, and its session.
struct Guest {
    card: VirtioUser,
    session: Frontend,
    /// Calls until the next look.
    look: u32,
    /// A socket of ours, to be removed.
    made: Option<PathBuf>,
}

impl Guest {
    fn new(path: &Path, role: Role, len: usize) -> Result<Guest, CableError> {
        let wish = wish(len)?;
        let socket = path.display().to_string();
        let failed = |error| CableError::Session(socket.clone(), error);
        let (session, made) = match role {
            Role::Client => {
                let stream = UnixStream::connect(path)
                    .map_err(|source| CableError::Connect { socket: socket.clone(), source })?;
                (Frontend::over(stream, wish).map_err(failed)?, None)
            }
            Role::Server => {
                let stream =
                    accept(path).map_err(|source| CableError::Listen { socket: socket.clone(), source })?;
                (Frontend::over(stream, wish).map_err(failed)?, Some(path.to_owned()))
            }
        };
        let card = VirtioUser::new(Arc::clone(&session.pairs()[0]));
        Ok(Guest { card, session, look: LOOK, made })
    }

    /// Has the switch hung up?
    #[cold]
    fn look(&mut self) -> Result<(), PortError> {
        self.look = LOOK;
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.session.wire().stream().as_raw_fd(), &mut [0], flags) {
            Ok(0) | Err(Errno::ECONNRESET) => {
                Err(PortError::Gone(io::Error::new(ErrorKind::NotConnected, "the switch hung up")))
            }
            _ => Ok(()),
        }
    }
}

/// Rings for frames of `len` bytes.
fn wish(len: usize) -> Result<Wish, CableError> {
    let room = (len + NET_HEADER).max(BUFFER).next_multiple_of(64);
    let transmit = Chains::of(room);
    let shape = PairShape { transmit, ..PairShape::plain(RING, FEATURES) };
    // Two rings, with their descriptors and what lies between buffers.
    let bytes = usize::from(RING) * (room + BUFFER + 1024);
    Ok(Wish {
        features: FEATURES,
        protocol: Protocol::REPLY_ACK | Protocol::MQ | Protocol::CONFIGURE_MEM_SLOTS,
        pairs: 1,
        shape,
        memory: SharedMemory::of_len(bytes.next_multiple_of(2 << 20))?,
    })
}

/// The first who connects to a socket that we make.
fn accept(path: &Path) -> io::Result<UnixStream> {
    let listener = match UnixListener::bind(path) {
        // Left by somebody who is gone?
        Err(e) if e.kind() == ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(io::Error::new(ErrorKind::TimedOut, "nobody connected within 30 s")),
            Ok(_) => return Ok(listener.accept()?.0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl Port for Guest {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.look -= 1;
        if self.look == 0 {
            self.look()?;
        }
        self.card.rx(frames, batch)
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.card.tx(frames, batch)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.card.readiness()
    }

    fn offloads(&self) -> Offloads {
        self.card.offloads()
    }

    fn counters(&mut self) -> Counters {
        self.card.counters()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cables_are_written_as_they_are_read() {
        for text in
            ["afxdp:eth0", "afpacket:eth0", "vhost-user:/run/a", "vhost-user:/run/a,server", "memory:a"]
        {
            assert_eq!(text.parse::<Cable>().unwrap().to_string(), text);
        }
        for text in ["eth0", "afxdp:", "tap:eth0", ""] {
            assert!(matches!(text.parse::<Cable>(), Err(CableError::Kind(_))), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_with_a_cure() {
        let pool = crate::port::rig::pool().0;
        let said = |text: &str| match text.parse::<Cable>().unwrap().open(&pool, 60) {
            Ok(_) => panic!("{text} was opened"),
            Err(error) => error.to_string(),
        };
        assert_eq!(
            said("afpacket:no-such-dev"),
            "interface no-such-dev does not exist; create it, or correct the name"
        );
        assert!(said("vhost-user:/nowhere/at/all").contains("is the switch running"));
        assert!(said("vhost-user:/nowhere/at/all,server").contains("vhost-server-path"));
        assert!(said("memory:a").contains("--config"));
    }
}
