//! From what is configured, what the kernel has and what was found out, to what the data plane goes by.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use dataplane::segment::{Network, Segments};
use dataplane::tables::{PortKind, Tables};
use dataplane::tunnel::{Carrier, Tunnel};
use dataplane::underlay::{Endpoint, Route, Underlay};
use encap::field::MacAddr;
use encap::tunnel::TunnelKind;
use flowtable::id::PortId;
use flowtable::lpm::{Lpm, Prefix};

use super::endpoints::{Demand, Findings};
use super::is_link_local;
use super::kernel::{Host, Way};
use super::path::Traffic;
use super::stack::Identity;
use crate::compile::{self, AttachKind, Compiled};
use crate::config::Cidr;

/// What a model says of the underlay.
pub fn plan(compiled: &Compiled) -> Plan {
    let endpoint = |(port, endpoint): (&PortId, &compile::Endpoint)| {
        (*port, Identity { mac: endpoint.mac, addresses: endpoint.addresses.clone() })
    };
    let internal = compiled.attachments.iter().filter(|(_, want)| want.kind == AttachKind::Internal);
    Plan {
        endpoints: compiled.endpoints.iter().map(endpoint).collect(),
        devices: internal.map(|(port, want)| (*port, want.name.clone())).collect(),
        routes: compiled.routes.clone(),
        traffic: traffic(&compiled.tables),
    }
}

/// What the configuration says of the underlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Endpoints with configured addresses.
    pub endpoints: BTreeMap<PortId, Identity>,
    /// Ports on which the kernel may have addresses: their devices.
    pub devices: BTreeMap<PortId, String>,
    /// The networks of configured addresses, and configured routes; of equal prefixes the last counts.
    pub routes: Vec<(Prefix, Route)>,
    /// What packets of our tunnels look like.
    pub traffic: Traffic,
}

/// What our tunnels on this switch's own underlay look like from the outside. O(segments × their endpoints).
pub fn traffic(tables: &Tables) -> Traffic {
    let carried = |port: PortId| match tables.port(port)?.kind {
        PortKind::Tunnel(tunnel) if tunnel.carrier == Carrier::Switch => Some(tunnel),
        _ => None,
    };
    let tunnels = (0..tables.ports.len()).filter_map(|i| carried(PortId(i as u32)));
    let mut traffic = Traffic::default();
    for Tunnel { kind, dst_port, remote, .. } in tunnels {
        traffic.protocols.insert((kind != TunnelKind::Gre).then_some(dst_port));
        traffic.remotes.extend(remote);
    }
    traffic.remotes.extend(peers(&tables.segments, |port| carried(port).is_some()));
    traffic
}

/// The endpoints that segments were told of.
fn peers(segments: &Segments, carried: impl Fn(PortId) -> bool) -> BTreeSet<IpAddr> {
    let peers = segments.iter().filter_map(|segment| match &segment.network {
        Network::Tunnel { port, peers, .. } if carried(*port) => Some(peers),
        _ => None,
    });
    peers.flatten().copied().collect()
}

/// The map of the underlay. Of several routes to a network a configured one counts first, then the kernel's with the
/// lowest metric.
pub fn underlay(plan: &Plan, kernel: Option<&Host>, findings: Findings) -> Underlay {
    let configured =
        plan.endpoints.iter().map(|(port, identity)| (*port, identity.mac, identity.addresses.clone()));
    let theirs = kernel.into_iter().flat_map(Host::endpoints).map(|(port, mac, mut addresses)| {
        addresses.retain(|cidr| !is_link_local(cidr.address));
        (port, mac, addresses)
    });
    let all: Vec<(PortId, MacAddr, Vec<Cidr>)> =
        configured.chain(theirs).filter(|(.., addresses)| !addresses.is_empty()).collect();
    let endpoint = |(port, mac, addresses): &(PortId, MacAddr, Vec<Cidr>)| {
        (*port, Endpoint { mac: *mac, addresses: addresses.iter().map(|cidr| cidr.address).collect() })
    };
    let endpoints: HashMap<PortId, Endpoint> = all.iter().map(endpoint).collect();
    let learned = kernel.into_iter().flat_map(Host::routes).map(|Way { to, route, .. }| (to, route));
    let routes = plan.routes.iter().rev().copied().chain(learned);
    let routes = routes.filter(|(_, route)| endpoints.contains_key(&route.endpoint));
    let routes: Lpm<Route> = routes.map(|(to, route)| (to, with_source(route, &all))).collect();
    let mut neighbours = findings.neighbours;
    neighbours.extend(kernel.into_iter().flat_map(Host::neighbours));
    Underlay { endpoints, routes, neighbours, path_mtus: findings.path_mtus }
}

/// A route that does not say from which address: that of the network which its next hop is in.
fn with_source(route: Route, all: &[(PortId, MacAddr, Vec<Cidr>)]) -> Route {
    let near = |via: IpAddr| {
        let (.., addresses) = all.iter().find(|(port, ..)| *port == route.endpoint)?;
        addresses.iter().find(|cidr| cidr.network.contains(via)).map(|cidr| cidr.address)
    };
    Route { source: route.source.or_else(|| near(route.via?)), ..route }
}

/// The next hops to these destinations, by the endpoint that reaches them.
pub fn next_hops(underlay: &Underlay, remotes: &BTreeSet<IpAddr>) -> BTreeMap<PortId, BTreeSet<IpAddr>> {
    let mut hops: BTreeMap<PortId, BTreeSet<IpAddr>> = BTreeMap::new();
    let found = remotes.iter().filter(|remote| underlay.owner(**remote).is_none());
    for hop in found.filter_map(|remote| underlay.hop(*remote, None)) {
        hops.entry(hop.endpoint).or_default().insert(hop.address);
    }
    hops
}

/// What is wanted of the endpoints with configured addresses.
pub fn demands(plan: &Plan, hops: &BTreeMap<PortId, BTreeSet<IpAddr>>) -> BTreeMap<PortId, Demand> {
    let demand = |(port, identity): (&PortId, &Identity)| {
        let next_hops = hops.get(port).cloned().unwrap_or_default();
        (*port, Demand { identity: identity.clone(), next_hops })
    };
    plan.endpoints.iter().map(demand).collect()
}

#[cfg(test)]
mod tests;
