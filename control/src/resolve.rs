//! The names in a bridge: which port, which segment, which tunnel is meant. What checks find wrong and what
//! compiling takes for granted is decided in one place, here.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use dataplane::port::vhost::Role;
use dataplane::tunnel::Carrier;
use encap::field::VlanId;
use encap::tunnel::TunnelKind;

use crate::config::{
    BridgeConfig, Config, FdbConfig, PortConfig, PortKind, SegmentConfig, SegmentKind, SwitchConfig,
    tunnel_name,
};
use crate::problem::did_you_mean;

/// The ports and segments of a bridge. Lookups are O(1).
pub(crate) struct Names<'a> {
    bridge: &'a BridgeConfig,
    ports: HashMap<&'a str, &'a PortConfig>,
    segments: HashMap<&'a str, &'a SegmentConfig>,
    by_vlan: BTreeMap<VlanId, &'a SegmentConfig>,
    flow_based: BTreeMap<TunnelKind, Vec<&'a PortConfig>>,
}

impl<'a> Names<'a> {
    /// Of two with one name, or one VLAN, the first counts.
    pub fn new(bridge: &'a BridgeConfig) -> Self {
        let mut names = Names {
            bridge,
            ports: HashMap::new(),
            segments: HashMap::new(),
            by_vlan: BTreeMap::new(),
            flow_based: BTreeMap::new(),
        };
        for port in &bridge.ports {
            names.ports.entry(&port.name).or_insert(port);
            if let Some(kind) = port.tunnel_kind().filter(|_| port.is_flow_based()) {
                names.flow_based.entry(kind).or_default().push(port);
            }
        }
        for segment in &bridge.segments {
            names.segments.entry(&segment.name).or_insert(segment);
            segment.vlan.into_iter().for_each(|vlan| {
                names.by_vlan.entry(vlan).or_insert(segment);
            });
        }
        names
    }

    /// A port of the bridge.
    ///
    /// # Errors
    /// `which bridge … does not have`, with the likeliest.
    pub fn port(&self, name: &str) -> Result<&'a PortConfig, String> {
        self.ports.get(name).copied().ok_or_else(|| {
            let hint = did_you_mean(name, self.bridge.ports.iter().map(|port| port.name.as_str()));
            format!("port `{name}`, which bridge `{}` does not have{hint}", self.bridge.name)
        })
    }

    /// A segment of the bridge.
    ///
    /// # Errors
    /// As [`Names::port`].
    pub fn segment(&self, name: &str) -> Result<&'a SegmentConfig, String> {
        self.segments.get(name).copied().ok_or_else(|| {
            let hint = did_you_mean(name, self.bridge.segments.iter().map(|segment| segment.name.as_str()));
            format!("segment `{name}`, which bridge `{}` does not have{hint}", self.bridge.name)
        })
    }

    /// The segment with a local VLAN.
    pub fn in_vlan(&self, vlan: VlanId) -> Option<&'a SegmentConfig> {
        self.by_vlan.get(&vlan).copied()
    }

    /// The segment of a static entry: by name, or by VLAN if one has it.
    pub fn segment_of(&self, entry: &FdbConfig) -> Option<&'a SegmentConfig> {
        match &entry.segment {
            Some(name) => self.segments.get(name.as_str()).copied(),
            None => self.in_vlan(entry.vlan.unwrap_or(VlanId::NONE)),
        }
    }

    /// Where a static entry is.
    ///
    /// # Errors
    /// As [`Names::segment`].
    pub fn domain(&self, entry: &FdbConfig) -> Result<Domain<'a>, String> {
        let Some(name) = &entry.segment else { return Ok(Domain::Vlan(entry.vlan.unwrap_or(VlanId::NONE))) };
        let segment = self.segment(name)?;
        Ok(segment.vlan.map_or(Domain::Segment(&segment.name), Domain::Vlan))
    }

    /// The tunnel port that carries a segment, which is of a tunnel's kind.
    ///
    /// # Errors
    /// What is wrong, with the cure.
    pub fn tunnel(&self, segment: &SegmentConfig) -> Result<&'a PortConfig, String> {
        let (name, bridge) = (&segment.name, &self.bridge.name);
        let SegmentKind::Tunnel(kind) = segment.kind else {
            return Err(format!("segment `{name}` is of type {}, which has no tunnel", segment.kind.name()));
        };
        let kind_name = tunnel_name(kind);
        let Some(wanted) = &segment.tunnel else {
            let all = self.flow_based.get(&kind).map_or(&[][..], Vec::as_slice);
            return match all {
                [one] => Ok(one),
                [] => Err(format!(
                    "segment `{name}` needs a tunnel port; add one of type {kind_name} with key = \"flow\" to bridge \
                     `{bridge}`"
                )),
                [first, second, ..] => Err(format!(
                    "segment `{name}` may ride on tunnel ports `{}` or `{}`; say which with `tunnel`",
                    first.name, second.name
                )),
            };
        };
        let port = self.port(wanted).map_err(|error| format!("segment `{name}` rides on {error}"))?;
        match port.tunnel_kind() {
            Some(other) if other == kind && port.is_flow_based() => Ok(port),
            Some(other) if other == kind => Err(format!(
                "segment `{name}` rides on tunnel port `{wanted}`, which carries one key only; set its key to \"flow\""
            )),
            Some(other) => Err(format!(
                "segment `{name}` is of type {kind_name}, and its tunnel `{wanted}` of type {}",
                tunnel_name(other)
            )),
            None => Err(format!("segment `{name}` rides on port `{wanted}`, which is no tunnel port")),
        }
    }
}

/// Where in a bridge an address is known: a segment has one such name, whichever way it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Domain<'a> {
    /// A VLAN, whether or not a segment has it.
    Vlan(VlanId),
    /// A segment without a local VLAN.
    Segment(&'a str),
}

impl fmt::Display for Domain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Domain::Vlan(vlan) => write!(f, "VLAN {vlan}"),
            Domain::Segment(name) => write!(f, "segment `{name}`"),
        }
    }
}

/// Addresses of ours that the configuration gives.
pub(crate) struct Own<'a> {
    /// On VTEP ports, and by which.
    pub endpoints: BTreeMap<IpAddr, &'a str>,
    /// Those, and `local-ip` of tunnel ports.
    pub all: BTreeMap<IpAddr, &'a str>,
    has_vtep: bool,
}

impl<'a> Own<'a> {
    /// Of a whole configuration.
    pub fn new(config: &'a Config) -> Self {
        let ports = || config.bridges.iter().flat_map(|bridge| &bridge.ports);
        let (mut endpoints, mut all) = (BTreeMap::new(), BTreeMap::new());
        for port in ports() {
            let name = port.name.as_str();
            for cidr in port.addresses.iter().filter(|_| port.kind == PortKind::Vtep) {
                endpoints.entry(cidr.address).or_insert(name);
            }
            all.extend(port.tunnel.local.map(|local| (local, name)));
        }
        all.extend(endpoints.iter().map(|(address, port)| (*address, *port)));
        Own { has_vtep: ports().any(|port| port.kind == PortKind::Vtep), endpoints, all }
    }

    /// Who carries the outer frames of a tunnel port: as configured; else this switch, if it has the address.
    pub fn carrier(&self, port: &PortConfig) -> Carrier {
        let ours = port.tunnel.local.map_or(self.has_vtep, |local| self.endpoints.contains_key(&local));
        port.tunnel.underlay.unwrap_or(if ours { Carrier::Switch } else { Carrier::Host })
    }
}

/// The VTEP port whose network holds an address.
pub(crate) fn vtep_towards(config: &Config, address: IpAddr) -> Option<&PortConfig> {
    let ports = config.bridges.iter().flat_map(|bridge| &bridge.ports);
    let vteps = ports.filter(|port| port.kind == PortKind::Vtep);
    let networks = vteps.flat_map(|port| port.addresses.iter().map(move |cidr| (port, cidr.network)));
    let holding = networks.filter(|(_, network)| network.contains(address));
    holding.max_by_key(|(_, network)| network.prefix_len()).map(|(port, _)| port)
}

/// The socket of a vhost-user port. One that we make without a `vhost-sock-dir` is where the control socket is, which the
/// command line may have put elsewhere: then the path is relative to that directory.
pub(crate) fn vhost_socket(switch: &SwitchConfig, port: &PortConfig) -> Option<PathBuf> {
    match port.kind {
        PortKind::Vhost(Role::Server) => {
            Some(switch.vhost_sock_dir.as_deref().unwrap_or(Path::new("")).join(&port.name))
        }
        PortKind::Vhost(Role::Client) => port.vhost_server_path.clone(),
        _ => None,
    }
}
