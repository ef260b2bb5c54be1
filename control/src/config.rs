//! The configuration file as typed values: what the operator wrote, defaults filled in, nothing resolved.
//!
//! `CONFIG.md` beside this crate describes every key. Names and defaults are those of the Open_vSwitch schema
//! (ovs-vswitchd.conf.db(5)).

pub mod file;
mod keys;
mod leaf;
mod overlay;
mod read;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use dataplane::port::vhost::Role;
use dataplane::tables::{PriorityTags, VlanMode, VlanSet};
use dataplane::virtio::PAIRS_MAX;
use encap::field::{EtherType, MacAddr, VlanId};
use encap::tunnel::TunnelKind;

use crate::problem::Problems;

pub(crate) use keys::{BRIDGE, PORT, SEGMENT};
pub(crate) use leaf::overlay::read_prefix;
pub(crate) use leaf::{SOCKET_PATH_MAX, ranges};
pub use overlay::*;
pub(crate) use read::{Entity, Key, Shape, canonical, unknown_key};

/// Reads a configuration for this machine. See [`parse_on`].
///
/// # Errors
/// Everything that is wrong with it, each with line and column and what was expected.
pub fn parse(text: &str) -> Result<Config, Problems> {
    parse_on(text, &Machine::current())
}

/// Reads a configuration for a given machine. Linear in the text, but for the names in it, which are sorted.
///
/// # Errors
/// Everything that is wrong with it, each with line and column and what was expected.
pub fn parse_on(text: &str, machine: &Machine) -> Result<Config, Problems> {
    read::config(text, machine)
}

/// What a configuration may use of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The cores the process may run on, ascending.
    pub cores: Vec<usize>,
}

impl Machine {
    /// This machine, as far as the process may use it (sched_getaffinity(2) of its first thread).
    pub fn current() -> Self {
        let allowed = nix::sched::sched_getaffinity(nix::unistd::getpid());
        let cores: Vec<usize> = match allowed {
            Ok(set) => {
                (0..nix::sched::CpuSet::count()).filter(|core| set.is_set(*core) == Ok(true)).collect()
            }
            Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
        };
        Machine { cores }
    }
}

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[switch]`
    pub switch: SwitchConfig,
    /// `[pool]`
    pub pool: PoolConfig,
    /// `[[route]]`, in the order of the file.
    pub routes: Vec<RouteConfig>,
    /// `[[bridge]]`, in the order of the file.
    pub bridges: Vec<BridgeConfig>,
}

/// What holds for the whole daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct SwitchConfig {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Where the sockets of vhost-user ports are that we make; `None`: where the control socket is.
    pub vhost_sock_dir: Option<PathBuf>,
    /// Cores that run a poller each, at least one.
    pub cores: Vec<usize>,
    /// What a poller without frames does.
    pub idle: Idle,
    /// Megaflows at most.
    pub flow_limit: usize,
    /// Distinct masks at most.
    pub mask_limit: usize,
    /// How long a megaflow may stay unused.
    pub max_idle: Duration,
    /// False: every frame is translated.
    pub caches: bool,
    /// The most detailed level that is logged.
    pub log: tracing::Level,
}

/// What a poller without frames does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Spins while busy, sleeps while quiet.
    Adaptive,
    /// Spins always.
    Spin,
}

/// The frame pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Frames of 2 KiB.
    pub frames: u32,
    /// Frames of 68 KiB.
    pub big_frames: u32,
}

/// One bridge.
#[derive(Debug, Clone, PartialEq)]
pub struct BridgeConfig {
    /// Unique over all bridges and ports, except for the bridge's own internal port.
    pub name: String,
    /// How long an unused FDB entry stays.
    pub mac_aging_time: Duration,
    /// FDB entries at most.
    pub mac_table_size: usize,
    /// Forward reserved group addresses.
    pub forward_bpdu: bool,
    /// VLANs without learning.
    pub flood_vlans: VlanSet,
    /// IGMP and MLD snooping.
    pub mcast_snooping_enable: bool,
    /// Groups at most.
    pub mcast_snooping_table_size: usize,
    /// How long a membership without reports stays.
    pub mcast_snooping_aging_time: Duration,
    /// Groups nobody joined go to queriers only.
    pub mcast_snooping_disable_flood_unregistered: bool,
    /// The OpenFlow datapath id, not zero; `None`: derived from the name.
    pub datapath_id: Option<u64>,
    /// Segments, in the order of the file.
    pub segments: Vec<SegmentConfig>,
    /// Static FDB entries.
    pub fdb: Vec<FdbConfig>,
    /// Who has which address.
    pub neighbours: Vec<NeighConfig>,
    /// `[[bridge.port]]`, in the order of the file.
    pub ports: Vec<PortConfig>,
}

/// A static FDB entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdbConfig {
    /// A unicast address.
    pub mac: MacAddr,
    /// The VLAN; `None`: that of the segment, or 0 where the bridge uses none.
    pub vlan: Option<VlanId>,
    /// The segment, instead of a VLAN.
    pub segment: Option<String>,
    /// A port of the same bridge.
    pub port: Option<String>,
    /// Another endpoint of the segment's tunnel, instead of a port.
    pub vtep: Option<IpAddr>,
}

/// One port.
#[derive(Debug, Clone, PartialEq)]
pub struct PortConfig {
    /// Unique over all bridges and ports; the name of a netdev, but for patch, tunnel, VTEP and vhost-user ports.
    pub name: String,
    /// What it is attached to.
    pub kind: PortKind,
    /// The patch port at the other end.
    pub peer: Option<String>,
    /// The socket that a VM makes for us.
    pub vhost_server_path: Option<PathBuf>,
    /// The segment it joins.
    pub segment: Option<String>,
    /// Addresses of ours, if it is a VTEP.
    pub addresses: Vec<Cidr>,
    /// What only tunnel ports have.
    pub tunnel: TunnelConfig,
    /// Access, native or service VLAN.
    pub tag: Option<VlanId>,
    /// VLANs a trunk carries; empty: all.
    pub trunks: VlanSet,
    /// `None`: access with a tag, trunk without; see [`PortConfig::effective_vlan_mode`].
    pub vlan_mode: Option<VlanMode>,
    /// Customer VLANs a dot1q-tunnel takes; empty: all.
    pub cvlans: VlanSet,
    /// TPID of the service tag of a dot1q-tunnel: [`EtherType::QINQ`] or [`EtherType::VLAN`].
    pub qinq_ethtype: EtherType,
    /// Tags with VLAN 0 on output.
    pub priority_tags: PriorityTags,
    /// Exchanges no frames with other protected ports.
    pub protected: bool,
    /// Gets all multicast traffic.
    pub mcast_snooping_flood: bool,
    /// Gets all membership reports.
    pub mcast_snooping_flood_reports: bool,
    /// Requested OpenFlow port number, 1 to 65,279.
    pub ofport: Option<u16>,
    /// Requested MTU in bytes of layer 3, 68 to 65,535.
    pub mtu: Option<u16>,
    /// Requested address of an internal or VTEP port.
    pub mac: Option<MacAddr>,
    /// Receive queues, 1 to 256; see [`PortConfig::effective_queues`].
    pub queues: Option<u16>,
    /// Queues that must be polled on a certain core: `(queue, core)`.
    pub rxq_affinity: Vec<(u16, usize)>,
    /// Where an AF_XDP port's program runs.
    pub xdp_mode: XdpMode,
    /// Upcalls per second it may cause; 0: no limit.
    pub upcall_rate: u32,
}

/// What a port is attached to (`type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// A netdev, over AF_XDP if possible, else AF_PACKET.
    System,
    /// A netdev over AF_XDP.
    Afxdp,
    /// A netdev over AF_PACKET.
    Afpacket,
    /// A TAP device the switch makes.
    Internal,
    /// A patch port of another bridge.
    Patch,
    /// Other tunnel endpoints.
    Tunnel(TunnelKind),
    /// The switch's own stack, which has addresses in the underlay.
    Vtep,
    /// A VM's network card.
    Vhost(Role),
}

/// Where an AF_XDP port's program runs (`xdp-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver if it can, else in the stack.
    BestEffort,
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
}

impl PortConfig {
    /// `vlan-mode`, or what OVS takes it for where it is not given: access with a tag, trunk without.
    pub fn effective_vlan_mode(&self) -> VlanMode {
        let default = if self.tag.is_some() { VlanMode::Access } else { VlanMode::Trunk };
        self.vlan_mode.unwrap_or(default)
    }

    /// `queues`, or its default; of a vhost-user port the most queue pairs a guest may have.
    pub fn effective_queues(&self) -> u16 {
        self.queues.unwrap_or(if matches!(self.kind, PortKind::Vhost(_)) { PAIRS_MAX } else { 1 })
    }
}

impl Default for SwitchConfig {
    /// One poller on core 0.
    fn default() -> Self {
        SwitchConfig {
            socket: PathBuf::from("/run/sluice/sluice.sock"),
            vhost_sock_dir: None,
            cores: vec![0],
            idle: Idle::Adaptive,
            flow_limit: 200_000,
            mask_limit: 128,
            max_idle: Duration::from_secs(10),
            caches: true,
            log: tracing::Level::INFO,
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        PoolConfig { frames: 16_384, big_frames: 256 }
    }
}

impl Default for BridgeConfig {
    fn default() -> Self {
        BridgeConfig {
            name: String::new(),
            mac_aging_time: Duration::from_secs(300),
            mac_table_size: 8192,
            forward_bpdu: false,
            flood_vlans: VlanSet::empty(),
            mcast_snooping_enable: false,
            mcast_snooping_table_size: 2048,
            mcast_snooping_aging_time: Duration::from_secs(300),
            mcast_snooping_disable_flood_unregistered: false,
            datapath_id: None,
            segments: Vec::new(),
            fdb: Vec::new(),
            neighbours: Vec::new(),
            ports: Vec::new(),
        }
    }
}

impl Default for PortConfig {
    fn default() -> Self {
        PortConfig {
            name: String::new(),
            kind: PortKind::System,
            peer: None,
            vhost_server_path: None,
            segment: None,
            addresses: Vec::new(),
            tunnel: TunnelConfig::NONE,
            tag: None,
            trunks: VlanSet::empty(),
            vlan_mode: None,
            cvlans: VlanSet::empty(),
            qinq_ethtype: EtherType::QINQ,
            priority_tags: PriorityTags::Never,
            protected: false,
            mcast_snooping_flood: false,
            mcast_snooping_flood_reports: false,
            ofport: None,
            mtu: None,
            mac: None,
            queues: None,
            rxq_affinity: Vec::new(),
            xdp_mode: XdpMode::BestEffort,
            upcall_rate: 100_000,
        }
    }
}

#[cfg(test)]
mod tests;
