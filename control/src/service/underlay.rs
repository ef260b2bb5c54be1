//! What operators ask of the underlay, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::tables::PortKind;
use dataplane::tunnel::{Carrier, Tunnel};
use dataplane::underlay::{Hop, Route};
use encap::field::MacAddr;
use encap::tunnel::TunnelKind;
use flowtable::id::PortId;
use flowtable::lpm::Prefix;

use super::Service;
use crate::api::report::{EndpointReport, HolderReport, NeighbourReport, PathReport, UnderlayReport};
use crate::host::kernel::{Kernel, Neighbour};
use crate::host::neighbours::{Entry, State};

/// A route as the tables have it.
pub struct RouteEntry {
    /// Where to.
    pub to: Prefix,
    /// How.
    pub route: Route,
    /// The address frames are sent from.
    pub source: Option<IpAddr>,
    /// Is it configured?
    pub configured: bool,
}

/// What takes tunnel frames in: all tunnel ports of one kind and UDP port on our own underlay.
pub struct Listener {
    /// The first of them.
    pub port: PortId,
    /// VXLAN, GRE or Geneve.
    pub kind: TunnelKind,
    /// The UDP port; 0 for GRE.
    pub dst_port: u16,
    /// How many they are.
    pub ports: usize,
}

impl Service {
    /// Endpoints, neighbours, path MTUs.
    pub fn underlay_report(&self) -> UnderlayReport {
        let map = self.survey.map();
        let endpoints: BTreeMap<_, _> = map.endpoints.iter().collect();
        let endpoint = |(port, endpoint): (&PortId, &dataplane::underlay::Endpoint)| EndpointReport {
            port: self.port_name(*port),
            bridge: self.bridge_of(*port),
            mac: endpoint.mac.to_string(),
            addresses: endpoint.addresses.iter().map(IpAddr::to_string).collect(),
            holder: self.holder(*port),
        };
        let paths: BTreeMap<_, _> = map.path_mtus.iter().collect();
        let path = |(to, mtu): (&IpAddr, &u16)| PathReport { to: to.to_string(), mtu: *mtu };
        UnderlayReport {
            endpoints: endpoints.into_iter().map(endpoint).collect(),
            neighbours: self.neighbour_reports(),
            paths: paths.into_iter().map(path).collect(),
        }
    }

    fn holder(&self, port: PortId) -> HolderReport {
        match self.survey.plan().endpoints.contains_key(&port) {
            true => HolderReport::Sluice,
            false => HolderReport::Kernel,
        }
    }

    fn neighbour_reports(&self) -> Vec<NeighbourReport> {
        let report = |port, address: IpAddr, mac: Option<MacAddr>| NeighbourReport {
            port: self.port_name(port),
            bridge: self.bridge_of(port),
            address: address.to_string(),
            mac: mac.map(|mac| mac.to_string()),
            state: String::new(),
            age_s: None,
        };
        let (found, now) = self.survey.endpoints().neighbours();
        let found = found.into_iter().map(|(port, address, entry)| {
            let (state, age_s) = (state_name(&entry).to_owned(), Some(now.since(entry.confirmed).as_secs()));
            ((port, address), NeighbourReport { state, age_s, ..report(port, address, entry.mac) })
        });
        let told =
            self.survey.kernel().into_iter().flat_map(|kernel: &Kernel| kernel.host().all_neighbours());
        let told = told.map(|(port, address, known)| {
            let state = kernel_state_name(known).to_owned();
            ((port, address), NeighbourReport { state, ..report(port, address, known.mac) })
        });
        found.chain(told).collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// Known neighbours: address, MAC address, bridge.
    pub fn known_neighbours(&self) -> Vec<(IpAddr, MacAddr, String)> {
        let known: BTreeMap<_, _> = self.survey.map().neighbours.iter().collect();
        let line =
            |(&(port, address), &mac): (&(PortId, IpAddr), &MacAddr)| (address, mac, self.bridge_of(port));
        known.into_iter().map(line).collect()
    }

    /// Our own addresses, with the port that has each.
    pub fn own_addresses(&self) -> BTreeMap<IpAddr, (PortId, MacAddr)> {
        let endpoints = self.survey.map().endpoints.iter();
        endpoints.flat_map(|(port, e)| e.addresses.iter().map(move |a| (*a, (*port, e.mac)))).collect()
    }

    /// The routes in force, the longest prefixes first.
    pub fn route_entries(&self) -> Vec<RouteEntry> {
        let map = self.survey.map();
        let configured: BTreeSet<Prefix> = self.model.config().routes.iter().map(|route| route.to).collect();
        let first = |route: &Route, to: Prefix| {
            let addresses = &map.endpoints.get(&route.endpoint)?.addresses;
            addresses.iter().find(|address| address.is_ipv4() == to.address().is_ipv4()).copied()
        };
        let entry = |(to, route): (Prefix, &Route)| RouteEntry {
            to,
            route: *route,
            source: route.source.or_else(|| first(route, to)),
            configured: configured.contains(&to),
        };
        let mut all: Vec<RouteEntry> = map.routes.iter().map(entry).collect();
        let width = |to: Prefix| {
            if to.address().is_ipv4() { 96 + u16::from(to.prefix_len()) } else { to.prefix_len().into() }
        };
        all.sort_by_key(|entry| (std::cmp::Reverse(width(entry.to)), entry.to));
        all
    }

    /// The way to a destination, and the name of the port it leaves by.
    pub fn way_to(&self, address: IpAddr) -> Option<(Hop, Option<IpAddr>, String)> {
        let map = self.survey.map();
        let via = map.routes.lookup(address)?.via;
        let hop = map.hop(address, None)?;
        Some((hop, via, self.port_name(hop.endpoint)))
    }

    /// What takes tunnel frames in, by port.
    pub fn listeners(&self) -> Vec<Listener> {
        let snapshot = self.switch.snapshot();
        let mut all: BTreeMap<PortId, Listener> = BTreeMap::new();
        for entry in snapshot.tables.ports.iter().flatten() {
            let PortKind::Tunnel(Tunnel { kind, dst_port, listener, carrier: Carrier::Switch, .. }) =
                entry.kind
            else {
                continue;
            };
            let first = Listener { port: listener, kind, dst_port, ports: 0 };
            all.entry(listener).or_insert(first).ports += 1;
        }
        all.into_values().collect()
    }

    /// Says who has an address, in place of asking. The bridge may be named, or the endpoint's port.
    ///
    /// # Errors
    /// One line, if there is no such endpoint or the kernel holds it.
    pub fn set_neighbour(&self, name: &str, address: IpAddr, mac: MacAddr) -> Result<(), String> {
        let port = self.endpoint_named(name, address)?;
        match self.survey.endpoints().set_neighbour(port, address, mac) {
            true => Ok(()),
            false => {
                let port = self.port_name(port);
                Err(format!(
                    "the kernel has the addresses of {port}; use `ip neigh replace {address} lladdr {mac} dev {port}`"
                ))
            }
        }
    }

    /// The endpoint of this name or in the bridge of this name; the one nearest to `address` if there are several.
    ///
    /// # Errors
    /// One line, if there is none.
    pub fn endpoint_named(&self, name: &str, address: IpAddr) -> Result<PortId, String> {
        let map = self.survey.map();
        let near = map.routes.lookup(address).map(|route| route.endpoint);
        let named = |port: &&PortId| self.port_name(**port) == name || self.bridge_of(**port) == name;
        let candidates: BTreeSet<PortId> = map.endpoints.keys().filter(named).copied().collect();
        let found = near.filter(|port| candidates.contains(port)).or(candidates.first().copied());
        found.ok_or_else(|| {
            format!("no port with addresses of ours is called {name}, or in a bridge of that name")
        })
    }

    /// Forgets the neighbours that were found; those of the kernel's are its own.
    pub fn flush_neighbours(&self) {
        self.survey.endpoints().flush_neighbours();
    }

    /// A port's name.
    pub fn port_name(&self, port: PortId) -> String {
        let found = self.model.ports().find(|candidate| candidate.id == port);
        found.map_or_else(|| port.to_string(), |port| port.config.name.clone())
    }

    fn bridge_of(&self, port: PortId) -> String {
        let found = self.model.ports().find(|candidate| candidate.id == port);
        found.map_or_else(String::new, |port| self.bridge_name(port.bridge))
    }
}

/// In the words of ip-neighbour(8).
fn state_name(entry: &Entry) -> &'static str {
    match (entry.state, entry.mac) {
        (State::Asking { .. }, None) => "incomplete",
        (State::Asking { .. }, Some(_)) => "probe",
        (State::Reachable(_), _) => "reachable",
        (State::Failed(_), _) => "failed",
        (State::Fixed, _) => "permanent",
    }
}

fn kernel_state_name(known: Neighbour) -> &'static str {
    match known.state {
        libc::NUD_INCOMPLETE => "incomplete",
        libc::NUD_REACHABLE => "reachable",
        libc::NUD_STALE => "stale",
        libc::NUD_DELAY => "delay",
        libc::NUD_PROBE => "probe",
        libc::NUD_FAILED => "failed",
        libc::NUD_NOARP => "noarp",
        libc::NUD_PERMANENT => "permanent",
        _ => "none",
    }
}
