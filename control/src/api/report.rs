//! What the `sluice/...` verbs answer: the daemon writes these as JSON, the command line reads them back.
//!
//! Names are the output's contract: a field is added, never renamed. Counters are since the port, flow or
//! poller came to be.

mod poller;
mod underlay;
mod vhost;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use poller::*;
pub use underlay::*;
pub use vhost::*;

/// `sluice/show`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// Of the daemon.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// The configuration file.
    pub config: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// The number of the published tables.
    pub generation: u64,
    /// The flow cache.
    pub flow_cache: FlowCacheReport,
    /// Why AF_XDP frames are copied by the kernel: there is no shared UMEM.
    pub umem_refused: Option<String>,
    /// Every bridge.
    pub bridges: Vec<BridgeReport>,
    /// Every port.
    pub ports: Vec<PortReport>,
}

/// How full the flow cache is, and what it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCacheReport {
    /// Megaflows now.
    pub flows: usize,
    /// The most there may be.
    pub flow_limit: usize,
    /// Distinct masks now.
    pub masks: usize,
    /// The most there may be.
    pub mask_limit: usize,
    /// Flows of big holders that made room for those of smaller ones.
    pub evicted: u64,
    /// Flows not kept because the cache was full.
    pub refused_full: u64,
    /// Flows not kept because of their mask: somebody may be crafting keys.
    pub refused_masks: u64,
}

/// `sluice/ledger`: received + created = sent + dropped + held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReport {
    /// Frames received.
    pub received: u64,
    /// Frames made inside: copies for floods, segments of GSO frames.
    pub created: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames dropped, for any reason.
    pub dropped: u64,
    /// Frames on their way between pollers.
    pub held: u64,
    /// Does it add up?
    pub balances: bool,
}

/// One bridge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BridgeReport {
    /// Its name.
    pub name: String,
    /// 16 hex digits.
    pub datapath_id: String,
    /// Names of its ports.
    pub ports: Vec<String>,
    /// Entries in the FDB now.
    pub mac_entries: usize,
    /// At most.
    pub mac_table_size: usize,
    /// Seconds.
    pub mac_aging_time: u64,
    /// Is snooping on?
    pub mcast_snooping_enable: bool,
    /// Are reserved addresses forwarded?
    pub forward_bpdu: bool,
    /// VLANs without learning.
    pub flood_vlans: Vec<u16>,
}

/// How a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// Frames flow.
    Up,
    /// The interface is missing or set down, or no VM is there; the port comes up with it.
    Down,
    /// It could not be opened; tried again when the interface changes.
    Error,
}

/// Frames and bytes in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames; a GSO frame is one.
    pub frames: u64,
    /// Bytes without FCS.
    pub bytes: u64,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortReport {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// Its OpenFlow port number.
    pub ofport: u16,
    /// `type` as configured.
    pub asked: String,
    /// What it became: "afxdp native", "afpacket", "internal", "patch to NAME", "vhost-user split".
    pub obtained: Option<String>,
    /// Why not something better.
    pub because: Option<String>,
    /// How it is.
    pub state: PortState,
    /// What is wrong, unless it is up.
    pub error: Option<String>,
    /// Bytes of layer 3; `None`: patch ports have no limit.
    pub mtu: Option<u16>,
    /// VLAN mode and VLANs: "access 10", "trunk trunks 1-5, 7".
    pub vlan: String,
    /// Receive queues that are open.
    pub queues: usize,
    /// Received.
    pub rx: Traffic,
    /// Sent.
    pub tx: Traffic,
    /// Frames that arrived while there was no room.
    pub rx_missed: u64,
    /// Frames that arrived broken.
    pub rx_errors: u64,
    /// Dropped frames by reason, without the zeros.
    pub drops: BTreeMap<String, u64>,
    /// The VM, of a vhost-user port with a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost: Option<VhostReport>,
}

/// One FDB entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbReport {
    /// The bridge that knows it.
    pub bridge: String,
    /// VLAN; the number of a segment without one is 4096 or more.
    pub vlan: u32,
    /// The segment's name, if it is configured.
    pub segment: Option<String>,
    /// Address.
    pub mac: String,
    /// Where it lives.
    pub port: String,
    /// The endpoint it lives behind, if the port is a tunnel's.
    pub vtep: Option<String>,
    /// That port's OpenFlow number.
    pub ofport: u16,
    /// Seconds since it was last seen; `None`: static.
    pub age_s: Option<u64>,
}

/// One port that wants a multicast group, or leads to a querier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdbReport {
    /// The bridge that knows it.
    pub bridge: String,
    /// VLAN; the number of a segment without one is 4096 or more.
    pub vlan: u32,
    /// The segment's name, if it is configured.
    pub segment: Option<String>,
    /// Group address; `None`: a querier.
    pub group: Option<String>,
    /// The port.
    pub port: String,
    /// That port's OpenFlow number.
    pub ofport: u16,
    /// Seconds since the last report or query.
    pub age_s: u64,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// Its local VLAN; `None`: ports join by name.
    pub vlan: Option<u16>,
    /// Its number in the bridge: the VLAN, or 4096 and more.
    pub number: u32,
    /// `type`: vxlan, gre, geneve, vlan, flat or local.
    pub kind: String,
    /// VNI, key or provider VLAN.
    pub id: Option<u32>,
    /// The tunnel port or uplink.
    pub outside: Option<String>,
    /// Are addresses behind endpoints learned?
    pub learning: bool,
    /// Are frames of unknown endpoints dropped?
    pub strict_peers: bool,
    /// Endpoints that get what all must get.
    pub vteps: Vec<VtepReport>,
    /// Ports that joined it by name, or as access ports of its VLAN.
    pub ports: Vec<String>,
    /// Addresses in the FDB.
    pub stations: usize,
    /// Addresses for which the switch answers.
    pub neighbours: usize,
}

/// One endpoint of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VtepReport {
    /// Its address.
    pub address: String,
    /// Seconds since it was last seen; `None`: configured.
    pub age_s: Option<u64>,
}

/// One tunnel port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// vxlan, gre or geneve.
    pub kind: String,
    /// The address frames are sent from; `None`: what the route says.
    pub local: Option<String>,
    /// Where they go: an address, or "flow".
    pub remote: String,
    /// VNI or GRE key, "flow" or "none".
    pub key: String,
    /// UDP port; `None` for GRE.
    pub dst_port: Option<u16>,
    /// A TOS byte or "inherit".
    pub tos: String,
    /// A time to live or "inherit".
    pub ttl: String,
    /// Are outer packets not to be fragmented?
    pub df: bool,
    /// Have outer headers a checksum?
    pub csum: bool,
    /// Who carries outer frames: "switch" or "host".
    pub carrier: String,
    /// The first tunnel port of this kind and UDP port.
    pub listener: String,
    /// How many segments it carries.
    pub segments: usize,
    /// Frames that came out of it.
    pub rx: Traffic,
    /// Frames that went into it.
    pub tx: Traffic,
    /// Dropped frames by reason, without the zeros.
    pub drops: BTreeMap<String, u64>,
}

/// Who has an address: in a segment, where the switch answers for it, or in the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighReport {
    /// The bridge.
    pub bridge: String,
    /// The segment; `None`: it was found in the underlay.
    pub segment: Option<String>,
    /// The port of ours that found it, if it was.
    pub port: Option<String>,
    /// The address.
    pub address: String,
    /// Whose it is.
    pub mac: String,
}

/// One route of the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    /// Where to.
    pub to: String,
    /// The next hop; `None`: the destination itself.
    pub via: Option<String>,
    /// The port it leaves by.
    pub port: String,
    /// The address frames are sent from, if the route says.
    pub source: Option<String>,
    /// Who says so.
    pub origin: RouteOrigin,
}

/// Where a route comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteOrigin {
    /// The configuration.
    Configured,
    /// An address of ours is in that network.
    Connected,
    /// The kernel's routing table.
    Kernel,
}

/// One megaflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowReport {
    /// Key under mask, as flow text.
    pub matches: String,
    /// What happens to its frames.
    pub actions: String,
    /// Its frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds since the last one.
    pub used_s: Option<f64>,
}

/// One step of an explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// Indentation: 0 is the outermost stage.
    pub depth: usize,
    /// What was found.
    pub text: String,
}

/// `sluice/trace`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceReport {
    /// The key that was traced.
    pub flow: String,
    /// How the verdict came about.
    pub steps: Vec<StepReport>,
    /// The bits that mattered.
    pub megaflow: String,
    /// What would happen to the frame.
    pub actions: String,
}

/// Frames dropped for one reason on one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropReport {
    /// The port's name.
    pub port: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub frames: u64,
}

/// A port that is configured and does not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The port's name.
    pub port: String,
    /// What is wrong.
    pub error: String,
}

/// What a change of the configuration did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ApplyReport {
    /// Ports that were opened.
    pub opened: Vec<String>,
    /// Ports that were closed.
    pub closed: Vec<String>,
    /// Ports that were closed and opened again.
    pub reopened: Vec<String>,
    /// Ports that were not touched.
    pub untouched: usize,
    /// Settings that take a restart.
    pub needs_restart: Vec<String>,
    /// What is configured but does not work.
    pub troubles: Vec<Trouble>,
    /// What is legal, and likely not meant.
    pub warnings: Vec<String>,
}

/// `sluice/.../flush`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Entries that went.
    pub flushed: usize,
}

/// `sluice/log`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// The most detailed level that is logged.
    pub level: String,
}
