//! Rules of segments, and of what is said about stations in them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use dataplane::tables::VlanSet;
use encap::field::{MacAddr, VlanId};

use super::Check;
use crate::config::{
    BridgeConfig, Entity, FdbConfig, PortConfig, PortKind, SegmentConfig, SegmentKind, VNI_MAX,
};
use crate::resolve::Domain;

/// Who has what only one segment of a bridge can have.
#[derive(Default)]
struct Taken<'a> {
    vlans: BTreeMap<VlanId, &'a str>,
    keys: HashMap<(&'a str, u32), &'a str>,
    wires: HashMap<(&'a str, u32), &'a str>,
}

/// The keys given that say which VLANs a port carries.
pub(super) fn vlan_settings(port: &PortConfig) -> impl Iterator<Item = &'static [&'static str]> + use<> {
    let given: [(bool, &'static [&'static str]); 5] = [
        (port.segment.is_some(), &["segment"]),
        (port.tag.is_some(), &["tag"]),
        (port.trunks != VlanSet::empty(), &["trunks"]),
        (port.vlan_mode.is_some(), &["vlan-mode"]),
        (port.cvlans != VlanSet::empty(), &["cvlans"]),
    ];
    given.into_iter().filter(|(given, _)| *given).map(|(_, keys)| keys)
}

impl<'a> Check<'a> {
    /// Segments have names of their own over all bridges: commands name them by nothing else.
    pub(super) fn segment_names(&mut self) {
        let mut seen: HashMap<&str, &str> = HashMap::new();
        for (b, bridge) in self.config.bridges.iter().enumerate() {
            for (s, segment) in bridge.segments.iter().enumerate().filter(|(_, s)| !s.name.is_empty()) {
                if let Some(owner) = seen.insert(&segment.name, &bridge.name) {
                    let message = format!(
                        "segment `{}` is defined twice, it is in bridge `{owner}` already",
                        segment.name
                    );
                    self.report(Entity::Segment(b, s), &["name"], message);
                }
            }
        }
    }

    /// Everything about a bridge's segments, and the stations in them.
    pub(super) fn segments(&mut self, b: usize, bridge: &'a BridgeConfig) {
        let mut taken = Taken::default();
        for (s, segment) in bridge.segments.iter().enumerate() {
            let entity = Entity::Segment(b, s);
            self.local_vlan((entity, segment), &mut taken);
            self.belongs(entity, segment);
            self.id(entity, segment);
            match segment.kind {
                SegmentKind::Local => {}
                SegmentKind::Vlan | SegmentKind::Flat => self.provider((b, entity), segment, &mut taken),
                SegmentKind::Tunnel(_) => self.tunnelled((b, entity), segment, &mut taken),
            }
        }
        self.uplinks(b, bridge);
        self.fdb(b, bridge);
        self.neighbours(b, bridge);
    }

    fn local_vlan(&mut self, (entity, segment): (Entity, &'a SegmentConfig), taken: &mut Taken<'a>) {
        let Some(vlan) = segment.vlan else { return };
        if let Some(other) = taken.vlans.insert(vlan, &segment.name) {
            let message = format!("segments `{other}` and `{}` have one local VLAN {vlan}", segment.name);
            self.report(entity, &["vlan"], message);
        }
    }

    /// Keys that a segment of this type cannot have.
    fn belongs(&mut self, entity: Entity, segment: &SegmentConfig) {
        let (in_tunnel, on_wire) = match segment.kind {
            SegmentKind::Tunnel(_) => (true, false),
            SegmentKind::Vlan | SegmentKind::Flat => (false, true),
            SegmentKind::Local => (false, false),
        };
        let given: [(bool, &'static [&'static str]); 4] = [
            (segment.tunnel.is_some() && !in_tunnel, &["tunnel", "type"]),
            (!segment.vteps.is_empty() && !in_tunnel, &["vteps", "type"]),
            (segment.strict_peers && !in_tunnel, &["strict-peers", "type"]),
            (segment.uplink.is_some() && !on_wire, &["uplink", "type"]),
        ];
        for (_, keys) in given.into_iter().filter(|(given, _)| *given) {
            let message = format!(
                "segment `{}` is of type {}, which has no `{}`",
                segment.name,
                segment.kind.name(),
                keys[0]
            );
            self.report(entity, keys, message);
        }
    }

    fn id(&mut self, entity: Entity, segment: &SegmentConfig) {
        let (name, kind) = (&segment.name, segment.kind.name());
        let (what, range) = match segment.kind {
            SegmentKind::Tunnel(encap::tunnel::TunnelKind::Gre) => ("its key", 0..=u32::MAX),
            SegmentKind::Tunnel(_) => ("its VNI", 0..=VNI_MAX),
            SegmentKind::Vlan => ("the provider's VLAN", 1..=4094),
            SegmentKind::Flat | SegmentKind::Local => {
                if segment.id.is_some() {
                    let message = format!("segment `{name}` is of type {kind}, which has no `id`");
                    self.report(entity, &["id", "type"], message);
                }
                return;
            }
        };
        let message = match segment.id {
            None => format!("segment `{name}` is of type {kind}, expected {what} as `id`"),
            Some(id) if !range.contains(&id) => {
                let (low, high) = range.into_inner();
                format!(
                    "id {id} of segment `{name}` of type {kind} is out of range, expected {low} to {high}"
                )
            }
            Some(_) => return,
        };
        self.report(entity, &["id", "type"], message);
    }

    fn provider(&mut self, (b, entity): (usize, Entity), segment: &'a SegmentConfig, taken: &mut Taken<'a>) {
        let name = &segment.name;
        let Some(uplink) = &segment.uplink else {
            let message =
                format!("segment `{name}` is of type {}, expected its `uplink`", segment.kind.name());
            return self.report(entity, &["uplink", "type"], message);
        };
        match self.names[b].port(uplink) {
            Err(error) => {
                return self.report(entity, &["uplink"], format!("segment `{name}` is on {error}"));
            }
            Ok(port) if matches!(port.kind, PortKind::Tunnel(_) | PortKind::Vtep) => {
                let message =
                    format!("segment `{name}` is on port `{uplink}`, which is no wire but a tunnel's end");
                return self.report(entity, &["uplink"], message);
            }
            Ok(_) => {}
        }
        let id = segment.id.filter(|_| segment.kind == SegmentKind::Vlan).unwrap_or(0);
        if let Some(other) = taken.wires.insert((uplink, id), name) {
            let what = if id == 0 { "flat".to_owned() } else { format!("VLAN {id}") };
            let message = format!("segments `{other}` and `{name}` are both {what} on uplink `{uplink}`");
            self.report(entity, &["id", "uplink"], message);
        }
    }

    fn tunnelled(&mut self, (b, entity): (usize, Entity), segment: &'a SegmentConfig, taken: &mut Taken<'a>) {
        let tunnel = match self.names[b].tunnel(segment) {
            Ok(tunnel) => tunnel,
            Err(error) => return self.report(entity, &["tunnel", "type"], error),
        };
        let name = &segment.name;
        if let Some(id) = segment.id
            && let Some(other) = taken.keys.insert((&tunnel.name, id), name)
        {
            let message =
                format!("segments `{other}` and `{name}` have one id {id} on tunnel port `{}`", tunnel.name);
            self.report(entity, &["id", "tunnel"], message);
        }
        if let Some(remote) = tunnel.tunnel.fixed_remote().filter(|_| !segment.vteps.is_empty()) {
            let message = format!(
                "segment `{name}` has `vteps`, and its tunnel port `{}` leads to {remote} only; leave `vteps` out, or set \
                 its remote-ip to \"flow\"",
                tunnel.name
            );
            self.report(entity, &["vteps", "tunnel"], message);
        }
        for vtep in &segment.vteps {
            if let Err(error) = self.vtep(*vtep, tunnel) {
                self.report(entity, &["vteps"], format!("{error}, in segment `{name}`"));
            }
        }
    }

    /// Can frames for this endpoint go into this tunnel?
    fn vtep(&self, vtep: IpAddr, tunnel: &PortConfig) -> Result<(), String> {
        if let Some(owner) = self.own.all.get(&vtep) {
            return Err(format!("VTEP {vtep} is our own address, of port `{owner}`: a tunnel loop"));
        }
        match tunnel.tunnel.local.filter(|local| local.is_ipv4() != vtep.is_ipv4()) {
            Some(local) => Err(format!(
                "VTEP {vtep} and local-ip {local} of tunnel port `{}` are of different families",
                tunnel.name
            )),
            None => Ok(()),
        }
    }

    /// Which VLANs an uplink carries follows from the segments on it.
    fn uplinks(&mut self, b: usize, bridge: &'a BridgeConfig) {
        let user = |segment: &'a SegmentConfig| Some((segment.uplink.as_deref()?, segment.name.as_str()));
        let users: HashMap<&str, &str> = bridge.segments.iter().filter_map(user).collect();
        for (p, port) in bridge.ports.iter().enumerate() {
            let (Some(segment), Some(keys)) = (users.get(port.name.as_str()), vlan_settings(port).next())
            else {
                continue;
            };
            let message = format!(
                "port `{}` is the uplink of segment `{segment}`: it carries the VLANs of its segments; leave `{}` out",
                port.name, keys[0]
            );
            self.report(Entity::Port(b, p), keys, message);
        }
    }

    /// A port that joins a segment has that VLAN, or none.
    pub(super) fn joined(&mut self, (b, entity): (usize, Entity), port: &PortConfig) {
        let Some(name) = &port.segment else { return };
        if let Err(error) = self.names[b].segment(name) {
            return self.report(entity, &["segment"], format!("port `{}` joins {error}", port.name));
        }
        if let Some(keys) = vlan_settings(port).find(|keys| keys[0] != "segment") {
            let message = format!(
                "port `{}` joins segment `{name}` and has `{}`; leave one of the two out",
                port.name, keys[0]
            );
            self.report(entity, keys, message);
        }
    }

    fn fdb(&mut self, b: usize, bridge: &'a BridgeConfig) {
        let mut seen: HashSet<(Domain, MacAddr)> = HashSet::new();
        for (f, entry) in bridge.fdb.iter().enumerate() {
            let entity = Entity::Fdb(b, f);
            let Some(domain) = self.domain((b, entity), entry) else { continue };
            if !seen.insert((domain, entry.mac)) {
                let message = format!("static entry {} in {domain} is given twice", entry.mac);
                self.report(entity, &["mac", "vlan", "segment"], message);
            }
            if let Err((key, error)) = self.place(b, entry) {
                self.report(entity, key, format!("static entry {} {error}", entry.mac));
            }
        }
    }

    fn domain(&mut self, (b, entity): (usize, Entity), entry: &'a FdbConfig) -> Option<Domain<'a>> {
        let mac = entry.mac;
        if let (Some(segment), Some(vlan)) = (&entry.segment, entry.vlan) {
            let message =
                format!("static entry {mac} is in segment `{segment}` and in VLAN {vlan}; leave one out");
            self.report(entity, &["vlan", "segment"], message);
            return None;
        }
        let domain = self.names[b].domain(entry);
        domain
            .map_err(|error| self.report(entity, &["segment"], format!("static entry {mac} is in {error}")))
            .ok()
    }

    /// Does a static entry lead somewhere?
    fn place(&self, b: usize, entry: &FdbConfig) -> Result<(), (&'static [&'static str], String)> {
        match (&entry.port, entry.vtep) {
            (Some(port), None) => {
                let port =
                    self.names[b].port(port).map_err(|error| (&["port"][..], format!("is for {error}")))?;
                if port.is_flow_based() && port.tunnel.fixed_remote().is_none() {
                    let message = format!(
                        "is behind tunnel port `{}`; say behind which endpoint with `vtep`",
                        port.name
                    );
                    return Err((&["port"], message));
                }
                Ok(())
            }
            (None, Some(vtep)) => self.vtep_place(b, (entry, vtep)).map_err(|error| (&["vtep"][..], error)),
            (Some(_), Some(_)) => {
                Err((&["vtep", "port"], "has a `port` and a `vtep`; leave one out".to_owned()))
            }
            (None, None) => Err((&["mac"], "is nowhere, expected its `port` or `vtep`".to_owned())),
        }
    }

    fn vtep_place(&self, b: usize, (entry, vtep): (&FdbConfig, IpAddr)) -> Result<(), String> {
        let behind = |error| format!("is behind VTEP {vtep}: {error}");
        let names = &self.names[b];
        let vlan = entry.vlan.unwrap_or(VlanId::NONE);
        let segment = names.segment_of(entry).ok_or_else(|| behind(format!("no segment has VLAN {vlan}")))?;
        let tunnel = names.tunnel(segment).map_err(behind)?;
        if let Some(remote) = tunnel.tunnel.fixed_remote().filter(|remote| *remote != vtep) {
            return Err(behind(format!("tunnel port `{}` leads to {remote} only", tunnel.name)));
        }
        self.vtep(vtep, tunnel).map_err(behind)
    }

    fn neighbours(&mut self, b: usize, bridge: &'a BridgeConfig) {
        let mut seen: HashMap<(&str, IpAddr), MacAddr> = HashMap::new();
        for (n, entry) in bridge.neighbours.iter().enumerate() {
            let (entity, address) = (Entity::Neigh(b, n), entry.address);
            if let Err(error) = self.names[b].segment(&entry.segment) {
                self.report(entity, &["segment"], format!("neighbour {address} is in {error}"));
            }
            if let Some(other) = seen.insert((&entry.segment, address), entry.mac) {
                let message = format!(
                    "{address} in segment `{}` is {other}'s already, and {} claims it",
                    entry.segment, entry.mac
                );
                self.report(entity, &["address", "segment"], message);
            }
        }
    }
}
