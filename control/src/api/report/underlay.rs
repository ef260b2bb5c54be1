//! What `sluice/underlay` answers.

use serde::{Deserialize, Serialize};

/// `sluice/underlay`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderlayReport {
    /// Ports with addresses of ours.
    pub endpoints: Vec<EndpointReport>,
    /// Who was looked for, found or not.
    pub neighbours: Vec<NeighbourReport>,
    /// Destinations whose path carries less than the first hop.
    pub paths: Vec<PathReport>,
}

/// A port with addresses of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// Its name.
    pub port: String,
    /// Its bridge.
    pub bridge: String,
    /// Its MAC address.
    pub mac: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Who is their host.
    pub holder: HolderReport,
}

/// Who answers for addresses of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HolderReport {
    /// They are configured, and the switch answers.
    Sluice,
    /// The kernel has them.
    Kernel,
}

/// A neighbour of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourReport {
    /// The endpoint's port.
    pub port: String,
    /// Its bridge.
    pub bridge: String,
    /// The neighbour's address.
    pub address: String,
    /// Its MAC address, if it is known.
    pub mac: Option<String>,
    /// In the words of ip-neighbour(8): incomplete, reachable, stale, delay, probe, failed, permanent.
    pub state: String,
    /// Seconds since it last answered, or was first asked; `None`: the kernel asks.
    pub age_s: Option<u64>,
}

/// A path that carries less than its first hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathReport {
    /// Where to.
    pub to: String,
    /// The longest IP packet, in bytes.
    pub mtu: u16,
}
