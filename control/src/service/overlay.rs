//! What operators ask of segments, tunnels and the underlay, as values.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use dataplane::snapshot::Snapshot;
use dataplane::tables::{PortEntry, PortKind, Tables};
use dataplane::tunnel::{Carrier, Key, Tos, Tunnel};
use dataplane::underlay::Route;
use flowtable::action::DropReason;
use flowtable::fdb::{Counters, Origin};
use flowtable::id::{PortId, SegmentId};
use flowtable::lpm::Prefix;

use super::Service;
use crate::api::report::*;
use crate::config::{self, SegmentKind};
use crate::model::{Bridge, Port, Segment};
use crate::resolve::Names;

/// How full a bridge's FDB is, and how much it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbStats {
    /// Entries now.
    pub entries: usize,
    /// Entries at most.
    pub size: usize,
    /// Static ones of them.
    pub fixed: usize,
    /// Since the bridge came to be.
    pub counters: Counters,
}

impl Service {
    /// The segments of a bridge, in the order of the configuration. O(segments + ports + stations).
    pub fn segment_reports(&self, bridge: &Bridge) -> Vec<SegmentReport> {
        let names = Names::new(bridge.config);
        let mut stations: BTreeMap<SegmentId, usize> = BTreeMap::new();
        for entry in self.switch().fdb(bridge.id) {
            *stations.entry(entry.station.segment).or_default() += 1;
        }
        let mut learned = self.learned_vteps(bridge);
        let mut ports = self.members(bridge);
        let mut neighbours: HashMap<&str, usize> = HashMap::new();
        for entry in &bridge.config.neighbours {
            *neighbours.entry(&entry.segment).or_default() += 1;
        }
        let report = |config: &config::SegmentConfig| {
            let Segment { id, .. } = self.model().segment(&config.name)?;
            let tunnel = || Some(names.tunnel(config).ok()?.name.clone());
            let fixed = config.vteps.iter().map(|vtep| VtepReport { address: vtep.to_string(), age_s: None });
            let known: BTreeSet<&IpAddr> = config.vteps.iter().collect();
            let seen = learned.remove(&id).unwrap_or_default();
            let seen = seen.into_iter().filter(|(address, _)| !known.contains(address));
            let seen =
                seen.map(|(address, age)| VtepReport { address: address.to_string(), age_s: Some(age) });
            Some(SegmentReport {
                name: config.name.clone(),
                bridge: bridge.config.name.clone(),
                vlan: config.vlan.map(|vlan| vlan.get()),
                number: id.0,
                kind: config.kind.name().to_owned(),
                id: config.id,
                outside: config.uplink.clone().or_else(tunnel),
                learning: config.learning && matches!(config.kind, SegmentKind::Tunnel(_)),
                strict_peers: config.strict_peers,
                vteps: fixed.chain(seen).collect(),
                ports: ports.remove(&id).unwrap_or_default(),
                stations: stations.get(&id).copied().unwrap_or(0),
                neighbours: neighbours.get(config.name.as_str()).copied().unwrap_or(0),
            })
        };
        bridge.config.segments.iter().filter_map(report).collect()
    }

    /// Endpoints that segments learned, and how many seconds ago each was seen.
    fn learned_vteps(&self, bridge: &Bridge) -> BTreeMap<SegmentId, Vec<(IpAddr, u64)>> {
        let (snapshot, now) = (self.switch().snapshot(), self.switch().now());
        let mut all: BTreeMap<SegmentId, Vec<(IpAddr, u64)>> = BTreeMap::new();
        if let Some(learned) = snapshot.learned(bridge.id) {
            for entry in learned.vteps().entries(now) {
                all.entry(entry.segment).or_default().push((entry.address, entry.age.as_secs()));
            }
        }
        all.values_mut().for_each(|vteps| vteps.sort_unstable());
        all
    }

    /// Ports that are in one segment only.
    fn members(&self, bridge: &Bridge) -> BTreeMap<SegmentId, Vec<String>> {
        let mut all: BTreeMap<SegmentId, Vec<String>> = BTreeMap::new();
        for port in &bridge.config.ports {
            let joined = port.segment.as_deref().and_then(|name| self.model().segment(name));
            let access = port.effective_vlan_mode() == dataplane::tables::VlanMode::Access;
            let tag = || Some(SegmentId::from(port.tag.filter(|_| access)?));
            let segment = joined.map(|segment| segment.id).or_else(tag);
            segment.into_iter().for_each(|id| all.entry(id).or_default().push(port.name.clone()));
        }
        all
    }

    /// The tunnel ports, in the order of their names.
    pub fn tunnel_reports(&self) -> Vec<TunnelReport> {
        let snapshot = self.switch().snapshot();
        let mut carried: BTreeMap<PortId, usize> = BTreeMap::new();
        for segment in snapshot.tables.segments.iter() {
            if let dataplane::segment::Network::Tunnel { port, .. } = segment.network {
                *carried.entry(port).or_default() += 1;
            }
        }
        let names = self.names();
        let report = |port: Port| {
            let tunnel = tunnel_of(snapshot.tables.port(port.id)?)?;
            let stats = self.switch().port_stats(port.id).of_tunnel();
            let drops =
                DropReason::ALL.iter().map(|reason| (reason.name().to_owned(), stats.dropped(*reason)));
            let flow = || "flow".to_owned();
            Some(TunnelReport {
                name: port.config.name.clone(),
                bridge: self.bridge_name(port.bridge),
                kind: tunnel.kind.to_string(),
                local: tunnel.local.map(|local| local.to_string()),
                remote: tunnel.remote.map_or_else(flow, |remote| remote.to_string()),
                key: match tunnel.key {
                    Key::Absent => "none".to_owned(),
                    Key::Fixed(key) => key.to_string(),
                    Key::Flow => flow(),
                },
                dst_port: Some(tunnel.dst_port).filter(|port| *port != 0),
                tos: match tunnel.tos {
                    Tos::Fixed(tos) => tos.to_string(),
                    Tos::Inherit => "inherit".to_owned(),
                },
                ttl: tunnel.ttl.map_or_else(|| "inherit".to_owned(), |ttl| ttl.to_string()),
                df: tunnel.df,
                csum: tunnel.csum,
                carrier: carrier_name(tunnel.carrier).to_owned(),
                listener: names.get(&tunnel.listener).map_or_else(String::new, |name| (*name).to_owned()),
                segments: carried.get(&port.id).copied().unwrap_or(0),
                rx: Traffic { frames: stats.rx_frames, bytes: stats.rx_bytes },
                tx: Traffic { frames: stats.tx_frames, bytes: stats.tx_bytes },
                drops: drops.filter(|(_, frames)| *frames > 0).collect(),
            })
        };
        self.model().ports().filter_map(report).collect()
    }

    /// Who has which address: those the switch answers for, then those found in the underlay.
    pub fn neigh_reports(&self, only: Option<&Bridge>) -> Vec<NeighReport> {
        let wanted = |bridge: &Bridge| only.is_none_or(|only| only.id == bridge.id);
        let mut reports = Vec::new();
        for bridge in self.model().bridges().filter(wanted) {
            reports.extend(bridge.config.neighbours.iter().map(|entry| NeighReport {
                bridge: bridge.config.name.clone(),
                segment: Some(entry.segment.clone()),
                port: None,
                address: entry.address.to_string(),
                mac: entry.mac.to_string(),
            }));
        }
        let snapshot = self.switch().snapshot();
        // The kernel lists groups, too, whose addresses nobody had to find.
        let all = snapshot.tables.underlay.neighbours.iter();
        let found: BTreeMap<_, _> = all.filter(|((_, address), _)| !address.is_multicast()).collect();
        let report = |((port, address), mac): (&(PortId, IpAddr), _)| {
            let entry = snapshot.tables.port(*port)?;
            let bridge = self.model().bridges().find(|b| b.id == entry.bridge).filter(wanted)?;
            Some(NeighReport {
                bridge: bridge.config.name.clone(),
                segment: None,
                port: Some(entry.name.clone()),
                address: address.to_string(),
                mac: encap::field::MacAddr::to_string(mac),
            })
        };
        reports.extend(found.into_iter().filter_map(report));
        reports
    }

    /// The routes of the underlay, in the order of their prefixes.
    pub fn route_reports(&self) -> Vec<RouteReport> {
        let snapshot = self.switch().snapshot();
        let all: BTreeMap<Prefix, Route> =
            snapshot.tables.underlay.routes.iter().map(|(to, route)| (to, *route)).collect();
        all.into_iter().map(|(to, route)| self.route_report(&snapshot, (to, route))).collect()
    }

    fn route_report(&self, snapshot: &Snapshot, (to, route): (Prefix, Route)) -> RouteReport {
        let config = self.model().config();
        let ports = || config.bridges.iter().flat_map(|bridge| &bridge.ports);
        let origin = if config.routes.iter().any(|configured| configured.to == to) {
            RouteOrigin::Configured
        } else if ports().any(|port| port.addresses.iter().any(|cidr| cidr.network == to)) {
            RouteOrigin::Connected
        } else {
            RouteOrigin::Kernel
        };
        let port = snapshot.tables.port(route.endpoint);
        RouteReport {
            to: to.to_string(),
            via: route.via.map(|via| via.to_string()),
            port: port.map_or_else(String::new, |entry| entry.name.clone()),
            source: route.source.map(|source| source.to_string()),
            origin,
        }
    }

    /// How a bridge's FDB fares.
    pub fn fdb_stats(&self, bridge: &Bridge) -> FdbStats {
        let entries = self.switch().fdb(bridge.id);
        let snapshot = self.switch().snapshot();
        FdbStats {
            entries: entries.len(),
            size: bridge.config.mac_table_size,
            fixed: entries.iter().filter(|entry| entry.origin == Origin::Static).count(),
            counters: snapshot.learned(bridge.id).map_or_else(Counters::default, |l| l.fdb().counters()),
        }
    }
}

fn tunnel_of(entry: &PortEntry) -> Option<Tunnel> {
    match entry.kind {
        PortKind::Tunnel(tunnel) => Some(tunnel),
        PortKind::Attached | PortKind::Patch { .. } => None,
    }
}

/// Who carries outer frames, as in the file.
pub(super) fn carrier_name(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Switch => "switch",
        Carrier::Host => "host",
    }
}

/// What becomes of a tunnel port: `vxlan by this switch`.
pub(super) fn tunnel_text(tables: &Tables, port: PortId) -> Option<(String, Carrier, PortId)> {
    let tunnel = tunnel_of(tables.port(port)?)?;
    let by = match tunnel.carrier {
        Carrier::Switch => "this switch",
        Carrier::Host => "the host's stack",
    };
    Some((format!("{} by {by}", tunnel.kind), tunnel.carrier, tunnel.listener))
}
