//! Segments, tunnel ports, and what the configuration says of the underlay.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use dataplane::port::host;
use dataplane::segment::{Network, Segment, Segments};
use dataplane::tables::StaticEntry;
use dataplane::tunnel::{Carrier, Tos, Tunnel};
use dataplane::underlay::Route;
use encap::field::{MacAddr, VlanId};
use encap::tunnel::TunnelKind;
use flowtable::id::{BridgeId, Place, PortId, SegmentId};
use flowtable::lpm::Prefix;

use super::{local_address, port_kind};
use crate::config::{self, Cidr, FdbConfig, PortConfig, PortKind, SegmentKind, Ttl};
use crate::model::{Model, Port};
use crate::resolve::{Names, Own, vtep_towards};

/// The outer time to live where none is configured, as Linux's for its own packets.
const DEFAULT_TTL: u8 = 64;

/// A port whose addresses in the underlay are configured: `type = "vtep"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The port's own MAC address.
    pub mac: MacAddr,
    /// In the order of the configuration.
    pub addresses: Vec<Cidr>,
    /// The longest IP packet it sends, in bytes.
    pub mtu: u16,
}

/// What is known of a whole model before any one port is compiled.
pub(super) struct Overlay<'a> {
    model: &'a Model,
    names: BTreeMap<BridgeId, Names<'a>>,
    own: Own<'a>,
    /// The first port of each kind and UDP port.
    listeners: BTreeMap<(TunnelKind, u16), PortId>,
    /// Tunnel ports that lead to IPv6 endpoints.
    ipv6: BTreeSet<&'a str>,
}

impl<'a> Overlay<'a> {
    pub fn new(model: &'a Model) -> Self {
        let names = model.bridges().map(|bridge| (bridge.id, Names::new(bridge.config)));
        let mut overlay = Overlay {
            model,
            names: names.collect(),
            own: Own::new(model.config()),
            listeners: BTreeMap::new(),
            ipv6: BTreeSet::new(),
        };
        for port in model.ports() {
            let Some(kind) = port.config.tunnel_kind() else { continue };
            let first = overlay.listeners.entry((kind, port.config.tunnel.port(kind))).or_insert(port.id);
            *first = port.id.min(*first);
            let ends = [port.config.tunnel.local, port.config.tunnel.fixed_remote()];
            if ends.into_iter().flatten().any(|end| end.is_ipv6()) {
                overlay.ipv6.insert(&port.config.name);
            }
        }
        for segment in model.segments().filter(|segment| segment.config.vteps.iter().any(IpAddr::is_ipv6)) {
            let tunnel = overlay.names[&segment.bridge].tunnel(segment.config);
            overlay.ipv6.extend(tunnel.ok().map(|port| port.name.as_str()));
        }
        overlay
    }

    /// How a tunnel port wraps frames.
    pub fn tunnel(&self, port: &PortConfig, kind: TunnelKind) -> Tunnel {
        let config = &port.tunnel;
        let dst_port = config.port(kind);
        Tunnel {
            kind,
            dst_port,
            listener: self.listeners[&(kind, dst_port)],
            remote: config.fixed_remote(),
            local: config.local,
            key: config.wire_key(kind),
            tos: config.tos.unwrap_or(Tos::Fixed(0)),
            ttl: match config.ttl {
                Some(Ttl::Inherit) => None,
                Some(Ttl::Fixed(ttl)) => Some(ttl),
                None => Some(DEFAULT_TTL),
            },
            df: config.df.unwrap_or(true),
            csum: config.csum.unwrap_or(kind != TunnelKind::Gre && self.ipv6.contains(port.name.as_str())),
            carrier: self.own.carrier(port),
        }
    }

    /// The sockets in the host's stack that are to be open, by the port that has them. Tunnels that share them share the
    /// address they listen on, if it is one.
    pub fn host_listeners(&self) -> BTreeMap<PortId, host::Request> {
        let mut sockets: BTreeMap<PortId, host::Request> = BTreeMap::new();
        for port in self.model.ports() {
            let Some(kind) = port.config.tunnel_kind() else { continue };
            let Tunnel { dst_port, listener, local, carrier, .. } = self.tunnel(port.config, kind);
            if carrier == Carrier::Host {
                let request = host::Request { kind, dst_port, local };
                let shared = sockets.entry(listener).or_insert(request);
                shared.local = shared.local.filter(|shared| Some(*shared) == local);
            }
        }
        sockets
    }

    /// The segment a port joined.
    pub fn joined(&self, port: &PortConfig) -> Option<crate::model::Segment<'a>> {
        self.model.segment(port.segment.as_deref()?)
    }

    /// The segmentation map. O(segments).
    pub fn segments(&self) -> Segments {
        let mut neighbours: HashMap<&str, HashMap<IpAddr, MacAddr>> = HashMap::new();
        for entry in self.model.bridges().flat_map(|bridge| &bridge.config.neighbours) {
            neighbours.entry(&entry.segment).or_default().insert(entry.address, entry.mac);
        }
        let mut told = self.told_peers();
        let segment = |segment: crate::model::Segment| {
            let config = segment.config;
            let told = told.remove(config.name.as_str()).unwrap_or_default();
            Some(Segment {
                name: config.name.clone(),
                bridge: segment.bridge,
                id: segment.id,
                network: self.network(&segment, told)?,
                learning: config.learning,
                strict_peers: config.strict_peers,
                neighbours: neighbours.remove(config.name.as_str()).unwrap_or_default(),
            })
        };
        Segments::new(self.model.segments().filter_map(segment).collect())
    }

    /// The endpoints that static FDB entries name, by segment. O(entries).
    fn told_peers(&self) -> HashMap<&'a str, Vec<IpAddr>> {
        let mut told: HashMap<&str, Vec<IpAddr>> = HashMap::new();
        for bridge in self.model.bridges() {
            for entry in &bridge.config.fdb {
                if let (Some(vtep), Some(segment)) = (entry.vtep, self.names[&bridge.id].segment_of(entry)) {
                    told.entry(&segment.name).or_default().push(vtep);
                }
            }
        }
        told
    }

    /// `peers`: endpoints of the segment besides its `vteps`.
    fn network(&self, segment: &crate::model::Segment, mut peers: Vec<IpAddr>) -> Option<Network> {
        let config = segment.config;
        Some(match config.kind {
            SegmentKind::Local => Network::Local,
            SegmentKind::Vlan | SegmentKind::Flat => {
                let vlan = config.id.and_then(|id| VlanId::new(id.try_into().ok()?).ok());
                let uplink = self.model.port(config.uplink.as_deref()?)?.id;
                Network::Provider { uplink, vlan: vlan.unwrap_or(VlanId::NONE) }
            }
            SegmentKind::Tunnel(_) => {
                let tunnel = self.names[&segment.bridge].tunnel(config).ok()?;
                let mut vteps: Vec<IpAddr> = config.vteps.clone();
                vteps.sort_unstable();
                peers.extend(vteps.iter().copied().chain(tunnel.tunnel.fixed_remote()));
                peers.sort_unstable();
                peers.dedup();
                Network::Tunnel { port: self.model.port(&tunnel.name)?.id, id: config.id?, vteps, peers }
            }
        })
    }

    /// A static entry of the FDB; `None` if what it leads to is not there (a patch port without peer).
    pub fn static_entry(&self, bridge: BridgeId, entry: &FdbConfig) -> Option<StaticEntry> {
        let names = &self.names[&bridge];
        let segment = match &entry.segment {
            Some(name) => self.model.segment(name)?.id,
            None => SegmentId::from(entry.vlan.unwrap_or(VlanId::NONE)),
        };
        let place = match (&entry.port, entry.vtep) {
            (Some(port), _) => self.place_at(&self.model.port(port)?)?,
            (None, Some(address)) => {
                let tunnel = names.tunnel(names.segment_of(entry)?).ok()?;
                Place::Vtep { tunnel: self.model.port(&tunnel.name)?.id, address }
            }
            (None, None) => return None,
        };
        Some(StaticEntry { segment, mac: entry.mac, place })
    }

    /// Behind a flow-based tunnel port with one remote endpoint is that endpoint.
    fn place_at(&self, port: &Port) -> Option<Place> {
        port_kind(self, port)?;
        Some(match port.config.tunnel.fixed_remote().filter(|_| port.config.is_flow_based()) {
            Some(address) => Place::Vtep { tunnel: port.id, address },
            None => Place::Port(port.id),
        })
    }

    pub fn model(&self) -> &'a Model {
        self.model
    }
}

/// Ports with configured addresses.
pub(super) fn endpoints(model: &Model) -> BTreeMap<PortId, Endpoint> {
    let endpoint = |port: Port| {
        let config = port.config;
        let mac = config.mac.unwrap_or_else(|| derived_mac(config));
        let mtu = config.mtu.unwrap_or(super::DEFAULT_MTU);
        (port.id, Endpoint { mac, addresses: config.addresses.clone(), mtu })
    };
    model.ports().filter(|port| port.config.kind == PortKind::Vtep).map(endpoint).collect()
}

/// A locally administered address that differs from host to host, as addresses in an underlay do.
fn derived_mac(port: &PortConfig) -> MacAddr {
    let text = port.addresses.iter().fold(port.name.clone(), |text, cidr| format!("{text} {cidr}"));
    MacAddr::from_u64(local_address(&text))
}

/// Configured routes, and the networks of configured addresses; each prefix once, the first counts.
pub(super) fn routes(model: &Model) -> Vec<(Prefix, Route)> {
    let connected = |port: Port| {
        let route = move |cidr: &Cidr| {
            (cidr.network, Route { endpoint: port.id, via: None, source: Some(cidr.address) })
        };
        port.config.addresses.iter().map(route).collect::<Vec<_>>()
    };
    let configured = |route: &config::RouteConfig| {
        let named = || model.port(route.port.as_deref()?);
        let towards = || model.port(&vtep_towards(model.config(), route.via?)?.name);
        let endpoint = named().or_else(towards)?.id;
        Some((route.to, Route { endpoint, via: route.via, source: None }))
    };
    let own = model.ports().filter(|port| port.config.kind == PortKind::Vtep).flat_map(connected);
    let mut seen = BTreeSet::new();
    let all = model.config().routes.iter().filter_map(configured).chain(own);
    all.filter(|(prefix, _)| seen.insert(*prefix)).collect()
}

#[cfg(test)]
mod tests;
