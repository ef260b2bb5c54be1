//! What the verbs answer about VMs at vhost-user ports.

use serde::{Deserialize, Serialize};

/// The session of a vhost-user port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostReport {
    /// The Unix socket.
    pub socket: String,
    /// "server": the switch makes the socket; "client": the VM does.
    pub role: String,
    /// Is a VM at the other end?
    pub connected: bool,
    /// Negotiated with the guest, as in "VERSION_1"; a bit without a name is "bit63".
    pub features: Vec<String>,
    /// Negotiated with QEMU, as in "MQ".
    pub protocol_features: Vec<String>,
    /// Queue pairs that the guest has enabled.
    pub pairs: u16,
    /// Entries of each ring that runs: receive 0, transmit 0, receive 1, ...
    pub rings: Vec<u16>,
    /// Bytes of the guest's memory that are mapped.
    pub memory: u64,
    /// Connections since the port was made.
    pub connections: u64,
    /// Of them those that the switch ended, because of a fault of the guest or of QEMU.
    pub resets: u64,
    /// Why no VM is connected, or why the last one was reset.
    pub last_error: Option<String>,
}
