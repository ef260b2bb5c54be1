//! vhost-user ports: a VM's network card in shared memory (the vhost-user protocol of QEMU's `docs/interop/vhost-user.rst`,
//! virtio 1.2 section 5.1).
//!
//! A *session* (a thread per port, [`session`]) holds the socket, negotiates and maps the guest's memory; a *device*
//! ([`device`]) is what it negotiated; its queue pairs stand behind a *door* each ([`door`]), through which a poller steps
//! for each batch and which the session closes while it changes something. The rings themselves are [`ring`].
//!
//! Everything in the guest's memory, and every message, is hostile: a ring that breaks the rules is a [`ring::Fault`], which
//! resets the port and nothing else.

mod announce;
mod backing;
mod call;
mod chain;
mod conversation;
pub(super) mod copy;
mod device;
pub mod door;
mod fault;
mod inbox;
pub mod inflight;
mod lanes;
pub mod log;
pub mod memory;
mod offer;
mod packed;
pub mod places;
mod queue;
mod relay;
mod requests;
pub mod ring;
mod session;
mod signal;
mod socket;
mod split;
#[cfg(test)]
mod tests;
mod transfer;
mod vring;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use thiserror::Error;

use self::conversation::{Conversation, End};
use self::device::Device;
use self::lanes::Lanes;
use self::places::{Places, PlacesError};
pub use self::queue::VhostQueue;
pub use self::session::PATIENCE;
use self::session::{Finder, Session, Shared};
use self::signal::Alarm;
use self::socket::Listener;
use crate::virtio::PAIRS_MAX;
use crate::virtio::features::Features;

/// Who makes the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We do, and wait for the VM (`dpdkvhostuser`).
    Server,
    /// The VM does, and we connect to it (`dpdkvhostuserclient`).
    Client,
}

/// A vhost-user port to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The port's name, for the log.
    pub name: String,
    /// The Unix socket.
    pub path: PathBuf,
    /// Who makes it.
    pub role: Role,
    /// The most queue pairs the guest may have, 1 to [`crate::virtio::PAIRS_MAX`].
    pub pairs: u16,
    /// The MTU to tell the guest, in bytes of layer 3.
    pub mtu: u16,
}

/// The port cannot be made.
#[derive(Debug, Error)]
pub enum VhostError {
    /// The socket cannot be made.
    #[error("cannot listen at {}: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No descriptors, or no thread.
    #[error("cannot start the session of a vhost-user port: {0}")]
    Resources(io::Error),
    /// No memory to keep places in.
    #[error("cannot keep the places of rings: {0}")]
    Places(#[from] PlacesError),
    /// Too many, or none.
    #[error("{0} queue pairs, expected 1 to {PAIRS_MAX}")]
    Pairs(u16),
}

/// A vhost-user port, connected or not. Dropping it ends the session and removes a socket of ours.
pub struct VhostUser {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// How a vhost-user port is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Is a frontend (QEMU) at the other end of the socket?
    pub connected: bool,
    /// Queue pairs that the guest has enabled; 0 until its driver runs.
    pub pairs: u16,
    /// Counts changes of the queues: with another one those that [`VhostUser::queues`] gave are dead.
    pub epoch: u64,
    /// What was negotiated with the guest.
    pub features: Features,
    /// What was negotiated with the frontend (`VHOST_USER_PROTOCOL_F_*`).
    pub protocol_features: u64,
    /// Entries of each ring that runs: receive 0, transmit 0, receive 1, ...
    pub rings: Vec<u16>,
    /// Bytes of the guest's memory that are mapped.
    pub memory: u64,
    /// Connections since the port was made.
    pub connections: u64,
    /// Of them those we ended, because of a fault of the guest or of the frontend.
    pub resets: u64,
    /// Why the port is not connected, or why it was last reset.
    pub last_error: Option<String>,
}

impl VhostUser {
    /// As [`VhostUser::start_at`], with places that end with the port.
    ///
    /// # Errors
    /// As there; [`VhostError::Places`].
    pub fn start(request: Request, changed: Box<dyn Fn() + Send + Sync>) -> Result<VhostUser, VhostError> {
        VhostUser::start_at(request, Places::private()?, changed)
    }

    /// Starts to listen, or to connect, and keeps in `places` where packed rings are. `changed` is called, by another thread, when [`VhostUser::status`] is another.
    ///
    /// # Errors
    /// [`VhostError`]; of a client, whose socket may come later, nothing but a lack of descriptors or threads is one.
    pub fn start_at(
        request: Request,
        places: Places,
        changed: Box<dyn Fn() + Send + Sync>,
    ) -> Result<VhostUser, VhostError> {
        if !(1..=PAIRS_MAX).contains(&request.pairs) {
            return Err(VhostError::Pairs(request.pairs));
        }
        let finder = match request.role {
            Role::Client => Finder::client(),
            Role::Server => Finder::Server(
                Listener::bind(&request.path)
                    .map_err(|source| VhostError::Listen { path: request.path.clone(), source })?,
            ),
        };
        let shared = Shared::new(request.pairs, changed).map_err(VhostError::Resources)?;
        // The kernel keeps 15 bytes of a thread's name.
        let thread = Builder::new().name(format!("vhost-{}", request.name).chars().take(15).collect());
        let session = Session::new(request, Arc::clone(&shared), finder, places);
        let thread = thread.spawn(|| session.run()).map_err(VhostError::Resources)?;
        Ok(VhostUser { shared, thread: Some(thread) })
    }

    /// How it is.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// The queues of all enabled pairs. Those given before are dead from then on.
    pub fn queues(&self) -> Vec<VhostQueue> {
        lanes::lock(&self.shared.lanes).queues(&self.shared.alarm)
    }
}

/// Talks with a frontend that is connected already, as a port with as many pairs as there can be, until it leaves. `patience`
/// is what [`PATIENCE`] is for a port. The guest's rings start and stop, but nobody polls them.
///
/// # Errors
/// How the frontend broke the rules.
pub fn converse(stream: &UnixStream, patience: Duration) -> Result<(), String> {
    let alarm = Alarm::new().map_err(|errno| errno.to_string())?;
    let places = Arc::new(Places::private().map_err(|error| error.to_string())?);
    let device = Device::new(PAIRS_MAX, u16::MAX, Arc::new(Lanes::new(PAIRS_MAX)), places);
    let device = Arc::new(Mutex::new(device));
    let end = Conversation { stream, alarm: &alarm, device: &device, patience }.run(|_, _| None);
    match end {
        End::Gone | End::Stopped => Ok(()),
        End::Fault(how) => Err(how),
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
