//! Segments, tunnels, and the addresses and routes under them, as the operator wrote them.

use std::fmt;
use std::net::IpAddr;

use dataplane::tunnel::{Carrier, Key, Tos};
use encap::field::{MacAddr, VlanId};
use encap::tunnel::TunnelKind;
use flowtable::lpm::Prefix;

use super::{PortConfig, PortKind};

/// The UDP port of VXLAN (RFC 7348 section 8).
pub const VXLAN_PORT: u16 = 4789;
/// The UDP port of Geneve (RFC 8926 section 3.3).
pub const GENEVE_PORT: u16 = 6081;
/// The highest VXLAN or Geneve network identifier.
pub const VNI_MAX: u32 = (1 << 24) - 1;

/// An address of ours and the network it is in: `192.0.2.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// The addresses that are reached without a router.
    pub network: Prefix,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.network.prefix_len())
    }
}

/// A route of the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    /// Where to.
    pub to: Prefix,
    /// The next hop; `None`: the destination itself.
    pub via: Option<IpAddr>,
    /// The port it leaves by; `None`: the `vtep` port whose network holds `via`.
    pub port: Option<String>,
}

impl Default for RouteConfig {
    /// To nowhere in particular: `to` is a required key.
    fn default() -> Self {
        let host = Prefix::new(IpAddr::from([0, 0, 0, 0]), 32).expect("IPv4 has 32 bits");
        RouteConfig { to: host, via: None, port: None }
    }
}

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentConfig {
    /// Unique over all bridges.
    pub name: String,
    /// The local VLAN; `None`: ports join by name.
    pub vlan: Option<VlanId>,
    /// How it reaches beyond this switch.
    pub kind: SegmentKind,
    /// VNI, GRE key or provider VLAN.
    pub id: Option<u32>,
    /// The flow-based tunnel port; `None`: the only one of its kind in the bridge.
    pub tunnel: Option<String>,
    /// The port to the provider's wire.
    pub uplink: Option<String>,
    /// Other endpoints that belong to it.
    pub vteps: Vec<IpAddr>,
    /// Learn what is behind other endpoints from what they send.
    pub learning: bool,
    /// Drop what does not come from one of `vteps`.
    pub strict_peers: bool,
}

impl Default for SegmentConfig {
    fn default() -> Self {
        SegmentConfig {
            name: String::new(),
            vlan: None,
            kind: SegmentKind::Local,
            id: None,
            tunnel: None,
            uplink: None,
            vteps: Vec::new(),
            learning: true,
            strict_peers: false,
        }
    }
}

/// How a segment reaches beyond this switch (`type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// In tunnels to other endpoints.
    Tunnel(TunnelKind),
    /// As a VLAN of the uplink.
    Vlan,
    /// Untagged on the uplink.
    Flat,
    /// Not at all.
    Local,
}

impl SegmentKind {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            SegmentKind::Tunnel(kind) => tunnel_name(kind),
            SegmentKind::Vlan => "vlan",
            SegmentKind::Flat => "flat",
            SegmentKind::Local => "local",
        }
    }
}

/// Who has an address in a segment: asked for it, the switch answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighConfig {
    /// A segment of the same bridge.
    pub segment: String,
    /// A unicast address.
    pub address: IpAddr,
    /// Whose it is.
    pub mac: MacAddr,
}

impl Default for NeighConfig {
    /// Nobody: every key is required.
    fn default() -> Self {
        NeighConfig { segment: String::new(), address: IpAddr::from([0, 0, 0, 0]), mac: MacAddr::default() }
    }
}

/// Where the frames of a tunnel port go (`remote-ip`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// To one endpoint.
    Fixed(IpAddr),
    /// To the endpoints of each segment.
    Flow,
}

/// The outer time to live (`ttl`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// 1 to 255.
    Fixed(u8),
    /// That of the inner packet.
    Inherit,
}

/// The keys that only tunnel ports have; `None` where one is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelConfig {
    /// `remote-ip`
    pub remote: Option<Remote>,
    /// `local-ip`
    pub local: Option<IpAddr>,
    /// `key`
    pub key: Key,
    /// `dst-port`
    pub dst_port: Option<u16>,
    /// `tos`
    pub tos: Option<Tos>,
    /// `ttl`
    pub ttl: Option<Ttl>,
    /// `df-default`
    pub df: Option<bool>,
    /// `csum`
    pub csum: Option<bool>,
    /// `underlay`
    pub underlay: Option<Carrier>,
}

impl TunnelConfig {
    /// No key given.
    pub const NONE: TunnelConfig = TunnelConfig {
        remote: None,
        local: None,
        key: Key::Absent,
        dst_port: None,
        tos: None,
        ttl: None,
        df: None,
        csum: None,
        underlay: None,
    };

    /// The other end, if it is one and the same for all frames.
    pub fn fixed_remote(&self) -> Option<IpAddr> {
        match self.remote {
            Some(Remote::Fixed(address)) => Some(address),
            _ => None,
        }
    }

    /// The UDP port, 0 for GRE.
    pub fn port(&self, kind: TunnelKind) -> u16 {
        match kind {
            TunnelKind::Vxlan => self.dst_port.unwrap_or(VXLAN_PORT),
            TunnelKind::Geneve => self.dst_port.unwrap_or(GENEVE_PORT),
            TunnelKind::Gre => 0,
        }
    }

    /// The key on the wire: VXLAN and Geneve have no frames without one.
    pub fn wire_key(&self, kind: TunnelKind) -> Key {
        match (self.key, kind) {
            (Key::Absent, TunnelKind::Vxlan | TunnelKind::Geneve) => Key::Fixed(0),
            (key, _) => key,
        }
    }
}

impl PortConfig {
    /// What kind of tunnel it is the port of.
    pub fn tunnel_kind(&self) -> Option<TunnelKind> {
        match self.kind {
            PortKind::Tunnel(kind) => Some(kind),
            _ => None,
        }
    }

    /// Does it carry segments (`key = "flow"`)?
    pub fn is_flow_based(&self) -> bool {
        self.tunnel_kind().is_some() && self.tunnel.key == Key::Flow
    }
}

/// The name of a kind in the file.
pub fn tunnel_name(kind: TunnelKind) -> &'static str {
    match kind {
        TunnelKind::Vxlan => "vxlan",
        TunnelKind::Gre => "gre",
        TunnelKind::Geneve => "geneve",
    }
}
