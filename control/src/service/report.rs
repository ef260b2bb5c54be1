//! What operators ask of the running switch, as values.

use std::collections::BTreeMap;

use dataplane::port::vhost::Role;
use dataplane::switch::Learn;
use dataplane::tables::{VlanConfig, VlanMode, VlanSet};
use dataplane::tunnel::Carrier;
use flowtable::action::DropReason;
use flowtable::field::{Field, TunnelFlags};
use flowtable::flow::Flow;
use flowtable::id::{BridgeId, Place, PortId, SegmentId};
use flowtable::key::FlowKey;
use flowtable::text;
use flowtable::{fdb, mcast};

use super::Service;
use super::overlay::tunnel_text;
use super::ports::State;
use crate::api::report::*;
use crate::config::{PortKind, ranges, tunnel_name};
use crate::model::{Bridge, LOCAL, Port};

impl Service {
    /// Everything at a glance.
    pub fn overview(&self) -> Overview {
        Overview {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            config: self.file.display().to_string(),
            uptime_s: self.started.elapsed().as_secs(),
            generation: self.generation,
            flow_cache: self.flow_cache_report(),
            umem_refused: self.pool.umem_refused().map(str::to_owned),
            bridges: self.bridge_reports(),
            ports: self.port_reports(),
        }
    }

    fn flow_cache_report(&self) -> FlowCacheReport {
        let table = self.switch.megaflows();
        let (limits, counters) = (table.limits(), table.counters());
        FlowCacheReport {
            flows: table.len(),
            flow_limit: limits.flows,
            masks: table.masks(),
            mask_limit: limits.masks,
            evicted: counters.evicted,
            refused_full: counters.full,
            refused_masks: counters.mask_limit,
        }
    }

    /// The conservation law, taken while the pollers stand still.
    pub fn ledger_report(&self) -> LedgerReport {
        let ledger = self.switch.ledger();
        LedgerReport {
            received: ledger.rx,
            created: ledger.created,
            sent: ledger.tx,
            dropped: ledger.dropped,
            held: ledger.held,
            balances: ledger.balances(),
        }
    }

    /// Every bridge.
    pub fn bridge_reports(&self) -> Vec<BridgeReport> {
        let report = |bridge: Bridge| BridgeReport {
            name: bridge.config.name.clone(),
            datapath_id: format!("{:016x}", self.tables.bridge(bridge.id).map_or(0, |b| b.datapath_id)),
            ports: bridge.config.ports.iter().map(|port| port.name.clone()).collect(),
            mac_entries: self.switch.fdb(bridge.id).len(),
            mac_table_size: bridge.config.mac_table_size,
            mac_aging_time: bridge.config.mac_aging_time.as_secs(),
            mcast_snooping_enable: bridge.config.mcast_snooping_enable,
            forward_bpdu: bridge.config.forward_bpdu,
            flood_vlans: bridge.config.flood_vlans.iter().map(|vlan| vlan.get()).collect(),
        };
        self.model.bridges().map(report).collect()
    }

    /// Every port.
    pub fn port_reports(&self) -> Vec<PortReport> {
        self.model.ports().map(|port| self.port_report(&port)).collect()
    }

    fn port_report(&self, port: &Port) -> PortReport {
        let stats = self.switch.port_stats(port.id);
        let is_tunnel = matches!(port.config.kind, PortKind::Tunnel(_));
        let stats = if is_tunnel { stats.of_tunnel() } else { stats };
        let Condition { state, obtained, because, error, queues } = self.condition(port);
        let drops = DropReason::ALL.iter().map(|reason| (reason.name().to_owned(), stats.dropped(*reason)));
        let attached = !matches!(port.config.kind, PortKind::Patch | PortKind::Tunnel(_));
        let mtu = self
            .devices
            .mtus
            .get(&port.id)
            .copied()
            .or(port.config.mtu)
            .unwrap_or(crate::compile::DEFAULT_MTU);
        PortReport {
            name: port.config.name.clone(),
            bridge: self.bridge_name(port.bridge),
            ofport: port.ofport,
            asked: kind_name(port.config.kind).to_owned(),
            obtained,
            because,
            state,
            error,
            mtu: attached.then_some(mtu),
            vlan: self.vlan_text(port),
            queues,
            rx: Traffic { frames: stats.rx_frames, bytes: stats.rx_bytes },
            tx: Traffic { frames: stats.tx_frames, bytes: stats.tx_bytes },
            rx_missed: stats.rx_missed,
            rx_errors: stats.rx_errors,
            drops: drops.filter(|(_, frames)| *frames > 0).collect(),
            vhost: self.ports.vhost_report(port.id),
        }
    }

    /// What a port carries: its VLANs, or the segments that name it.
    fn vlan_text(&self, port: &Port) -> String {
        let Some(entry) = self.tables.port(port.id) else { return String::new() };
        match &port.config.segment {
            Some(segment) => format!("segment {segment}"),
            None if port.config.is_flow_based() || self.tables.segments.is_uplink(port.id) => {
                "segments".to_owned()
            }
            None => vlan_text(&entry.vlan),
        }
    }

    /// How a tunnel port is. What rides on the host's stack is as the listener's sockets are.
    fn tunnel_condition(&self, port: &Port) -> Option<Condition> {
        let (obtained, carrier, listener) = tunnel_text(&self.tables, port.id)?;
        let error = match self.ports.state(listener) {
            Some(State::Down(error) | State::Failed(error)) if carrier == Carrier::Host => {
                Some(error.clone())
            }
            _ => None,
        };
        let state = if error.is_some() { PortState::Error } else { PortState::Up };
        Some(Condition::without_device(state, Some(obtained), error))
    }

    fn condition(&self, port: &Port) -> Condition {
        if let Some(condition) = self.tunnel_condition(port) {
            return condition;
        }
        match self.ports.state(port.id).cloned() {
            Some(State::Up { obtained, because, queues }) => {
                Condition { state: PortState::Up, obtained: Some(obtained), because, error: None, queues }
            }
            Some(State::Down(error) | State::Awaiting(error)) => {
                Condition::without_device(PortState::Down, None, Some(error))
            }
            Some(State::Failed(error)) => Condition::without_device(PortState::Error, None, Some(error)),
            None => match self.model.peer(port) {
                Some(peer) => {
                    let obtained = format!("patch to {}", peer.config.name);
                    Condition::without_device(PortState::Up, Some(obtained), None)
                }
                None => {
                    let peer = port.config.peer.as_deref().unwrap_or_default();
                    let error = format!("no patch port \"{peer}\" yet; the port comes up when there is one");
                    Condition::without_device(PortState::Down, None, Some(error))
                }
            },
        }
    }

    /// The megaflows whose text contains `filter`.
    pub fn flow_reports(&self, filter: &str) -> Vec<FlowReport> {
        let now = self.switch.now();
        let all = self.names();
        let names = |port| all.get(&port).map(|name| name.to_string());
        let report = |flow: &Flow| {
            let totals = flow.totals();
            FlowReport {
                matches: text::print(&flow.key(), flow.mask(), &names),
                actions: text::print_actions(&flow.actions(), &names),
                frames: totals.frames,
                bytes: totals.bytes,
                used_s: totals.used.map(|used| now.since(used).as_secs_f64()),
            }
        };
        let flows = self.switch.flows();
        let reports = flows.iter().map(report);
        reports.filter(|f| f.matches.contains(filter) || f.actions.contains(filter)).collect()
    }

    /// What a bridge learned and was told. What lives behind a port that is gone is left out.
    pub fn fdb_reports(&self, bridge: &Bridge) -> Vec<FdbReport> {
        let ports = self.ports_of(bridge);
        let report = |entry: fdb::Entry| {
            let port = ports.get(&entry.place.port())?;
            Some(FdbReport {
                bridge: bridge.config.name.clone(),
                vlan: entry.station.segment.0,
                segment: self.segment_name(bridge, entry.station.segment),
                mac: entry.station.mac.to_string(),
                port: port.config.name.clone(),
                vtep: match entry.place {
                    Place::Vtep { address, .. } => Some(address.to_string()),
                    Place::Port(_) => None,
                },
                ofport: port.ofport,
                age_s: (entry.origin == fdb::Origin::Learned).then_some(entry.age.as_secs()),
            })
        };
        self.switch.fdb(bridge.id).into_iter().filter_map(report).collect()
    }

    /// The groups and queriers a bridge knows.
    pub fn mdb_reports(&self, bridge: &Bridge) -> Vec<MdbReport> {
        let ports = self.ports_of(bridge);
        let report = |entry: mcast::Entry| {
            let port = ports.get(&entry.port)?;
            Some(MdbReport {
                bridge: bridge.config.name.clone(),
                vlan: entry.segment.0,
                segment: self.segment_name(bridge, entry.segment),
                group: entry.group.map(|group| group.to_string()),
                port: port.config.name.clone(),
                ofport: port.ofport,
                age_s: entry.age.as_secs(),
            })
        };
        self.switch.mdb(bridge.id).into_iter().filter_map(report).collect()
    }

    fn segment_name(&self, bridge: &Bridge, segment: SegmentId) -> Option<String> {
        self.tables.segments.get(bridge.id, segment).map(|segment| segment.name.clone())
    }

    fn ports_of(&self, bridge: &Bridge) -> BTreeMap<PortId, Port<'_>> {
        self.model.ports().filter(|port| port.bridge == bridge.id).map(|port| (port.id, port)).collect()
    }

    /// Explains what happens to a frame that enters `bridge`.
    ///
    /// # Errors
    /// One line, if `flow` is no flow text or names no port of the bridge.
    pub fn explain(&self, bridge: &Bridge, flow: &str, learn: Learn) -> Result<TraceReport, String> {
        let bad = |e: &dyn std::fmt::Display| format!("Bad openflow flow syntax: {flow}: {e}");
        let numbered = self.with_port_ids(bridge, flow).map_err(|e| bad(&e))?;
        let (mut key, _) = text::parse(&numbered, &|_| None).map_err(|e| bad(&e))?;
        if ["tun_id=", "tunnel_id="].iter().any(|id| numbered.contains(id)) {
            key = key.with(Field::TunFlags, key.tun_flags() | TunnelFlags::KEY);
        }
        let key = self.as_it_arrives(key)?;
        let all = self.names();
        let names = |port| all.get(&port).map(|name| name.to_string());
        let trace = self.switch.trace(&key, learn);
        let step = |step: dataplane::trace::Step| StepReport { depth: step.depth, text: step.text };
        Ok(TraceReport {
            flow: text::print_key(&key, &names),
            steps: trace.steps.into_iter().map(step).collect(),
            megaflow: text::print(&key, &trace.decision.mask, &names),
            actions: text::print_actions(&trace.decision.actions, &names),
        })
    }

    /// A key as a poller has it: a frame that comes out of a tunnel comes in by the listener.
    fn as_it_arrives(&self, key: FlowKey) -> Result<FlowKey, String> {
        let Some((_, carrier, listener)) = tunnel_text(&self.tables, key.in_port()) else { return Ok(key) };
        if carrier == Carrier::Switch && key.tun_dst().is_unspecified() {
            let cure =
                "say which with tun_src, tun_dst and tun_id, or trace the outer frame where it comes in";
            return Err(format!("frames come in by a tunnel port from behind outer headers; {cure}"));
        }
        Ok(key.with(Field::InPort, listener))
    }

    /// Dropped frames by port and reason; those that no port of today answers for come last, as of port `-`.
    pub fn drop_reports(&self) -> Vec<DropReport> {
        let mut rest = self.switch.total_stats().drops;
        let mut reports = Vec::new();
        for port in self.model.ports() {
            let drops = self.switch.port_stats(port.id).drops;
            rest.iter_mut().zip(drops).for_each(|(rest, frames)| *rest = rest.saturating_sub(frames));
            reports.extend(drop_rows(&port.config.name, &drops));
        }
        reports.extend(drop_rows("-", &rest));
        reports
    }

    /// The names of all ports.
    pub fn names(&self) -> BTreeMap<PortId, &str> {
        self.model.ports().map(|port| (port.id, port.config.name.as_str())).collect()
    }

    /// The flow with its `in_port`, an OpenFlow number or a name, as an id, which is what flow text has.
    fn with_port_ids(&self, bridge: &Bridge, flow: &str) -> Result<String, String> {
        let mut found = false;
        let item = |item: &str| {
            let Some(name) = item.strip_prefix("in_port=") else { return Ok(item.to_owned()) };
            found = true;
            let port = self.port_in(bridge, name);
            let port = port.ok_or_else(|| format!("bridge {} has no port \"{name}\"", bridge.config.name))?;
            Ok(format!("in_port={port}"))
        };
        let items = flow.split(|c: char| c == ',' || c.is_whitespace()).map(item);
        let text = items.collect::<Result<Vec<_>, String>>()?.join(",");
        if found {
            Ok(text)
        } else {
            Err("it does not say where the frame comes in; add in_port=PORT".to_owned())
        }
    }

    /// A bridge's port by OpenFlow number (or `LOCAL`) or name.
    fn port_in(&self, bridge: &Bridge, name: &str) -> Option<PortId> {
        let number = if name == "LOCAL" { Some(LOCAL) } else { name.parse().ok() };
        let fits = |port: &Port| port.config.name == name || Some(port.ofport) == number;
        self.model.ports().find(|port| port.bridge == bridge.id && fits(port)).map(|port| port.id)
    }

    pub(super) fn bridge_name(&self, bridge: BridgeId) -> String {
        self.model.bridges().find(|b| b.id == bridge).map_or_else(String::new, |b| b.config.name.clone())
    }
}

/// The reasons for which frames were dropped, of counts by the number of their reason.
fn drop_rows<'a>(port: &'a str, drops: &'a [u64]) -> impl Iterator<Item = DropReport> + 'a {
    let counted = DropReason::ALL.iter().zip(drops).filter(|(_, frames)| **frames > 0);
    counted.map(move |(reason, frames)| DropReport {
        port: port.to_owned(),
        reason: reason.name().to_owned(),
        frames: *frames,
    })
}

/// Whether a port works.
struct Condition {
    state: PortState,
    obtained: Option<String>,
    because: Option<String>,
    error: Option<String>,
    queues: usize,
}

impl Condition {
    fn without_device(state: PortState, obtained: Option<String>, error: Option<String>) -> Self {
        Condition { state, obtained, because: None, error, queues: 0 }
    }
}

fn kind_name(kind: PortKind) -> &'static str {
    match kind {
        PortKind::System => "system",
        PortKind::Afxdp => "afxdp",
        PortKind::Afpacket => "afpacket",
        PortKind::Internal => "internal",
        PortKind::Patch => "patch",
        PortKind::Tunnel(kind) => tunnel_name(kind),
        PortKind::Vtep => "vtep",
        PortKind::Vhost(Role::Server) => "dpdkvhostuser",
        PortKind::Vhost(Role::Client) => "dpdkvhostuserclient",
    }
}

/// `access 10`, `trunk`, `native-untagged 10 trunks 20-29, 40`.
fn vlan_text(vlan: &VlanConfig) -> String {
    let (mode, has_tag) = match vlan.mode {
        VlanMode::Access => ("access", true),
        VlanMode::Trunk => ("trunk", false),
        VlanMode::NativeTagged => ("native-tagged", true),
        VlanMode::NativeUntagged => ("native-untagged", true),
        VlanMode::Dot1qTunnel => ("dot1q-tunnel", true),
    };
    let mut text = mode.to_owned();
    if has_tag {
        text += &format!(" {}", vlan.tag.get());
    }
    let carried = match vlan.mode {
        VlanMode::Access => None,
        VlanMode::Dot1qTunnel => Some(("cvlans", &vlan.cvlans)),
        _ => Some(("trunks", &vlan.trunks)),
    };
    for (name, set) in carried.into_iter().filter(|(_, set)| **set != VlanSet::all()) {
        text += &format!(" {name} {}", ranges(set.iter().map(|vlan| vlan.get().into())));
    }
    text
}

#[cfg(test)]
mod tests {
    use dataplane::tables::PriorityTags;
    use encap::field::{EtherType, VlanId};

    use super::*;

    fn set(vlans: &[u16]) -> VlanSet {
        vlans.iter().map(|vlan| VlanId::from_tci(*vlan)).collect()
    }

    #[test]
    fn vlans_read_as_they_are_configured() {
        let vlan = |mode, tag, trunks: &[u16]| {
            vlan_text(&VlanConfig {
                mode,
                tag: VlanId::from_tci(tag),
                trunks: if trunks.is_empty() { VlanSet::all() } else { set(trunks) },
                cvlans: set(&[7]),
                qinq_ethtype: EtherType::QINQ,
                priority_tags: PriorityTags::Never,
            })
        };
        assert_eq!(vlan(VlanMode::Access, 10, &[]), "access 10");
        assert_eq!(vlan(VlanMode::Trunk, 0, &[]), "trunk");
        assert_eq!(vlan(VlanMode::NativeUntagged, 1, &[1, 2, 3, 7]), "native-untagged 1 trunks 1-3, 7");
        assert_eq!(vlan(VlanMode::Dot1qTunnel, 5, &[]), "dot1q-tunnel 5 cvlans 7");
    }
}
