//! What values must be together: the rules that no single key can break.
//!
//! `findings` are errors: a configuration that has any is never applied. [`warnings`] are legal, and likely
//! not meant.

mod segments;
mod tunnels;
mod vhost;
mod warn;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dataplane::tables::VlanMode;

use crate::config::{BridgeConfig, Config, Entity, PortConfig, PortKind};
use crate::resolve::{Names, Own};

pub use warn::warnings;

/// OpenFlow port numbers of a bridge, not counting its own port (ovs-vswitchd.conf.db(5), `ofport`).
const OFPORTS: usize = 65_279;
/// Frames that a poller keeps for itself: its cache and the batches it works on.
const FRAMES_PER_POLLER: usize = 1024;
/// Frames that an AF_XDP queue cannot do with less of: two batches to receive into, and while those are on
/// their way two more. The queues of all ports get half of the pool.
const FRAMES_PER_XDP_QUEUE: usize = 64;

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The table that breaks it.
    pub entity: Entity,
    /// The keys of that table that the rule looked at; the finding is shown at the first.
    pub keys: &'static [&'static str],
    /// What is wrong and what was expected.
    pub message: String,
}

/// Everything that is wrong between the values of `config`. O(n log n) in bridges, ports, segments and entries.
pub(crate) fn findings(config: &Config) -> Vec<Finding> {
    let (own, names) = (Own::new(config), config.bridges.iter().map(Names::new).collect());
    let mut check = Check { config, own, names, ports: HashMap::new(), findings: Vec::new() };
    check.pool();
    check.names();
    check.addresses();
    check.routes();
    check.tunnels();
    check.vhost();
    check.segment_names();
    for (b, bridge) in config.bridges.iter().enumerate() {
        check.bridge(b, bridge);
        check.segments(b, bridge);
        for (p, port) in bridge.ports.iter().enumerate() {
            let entity = Entity::Port(b, p);
            check.vlan(entity, port);
            check.joined((b, entity), port);
            check.peer(b, entity, port);
            check.affinity(entity, port);
        }
    }
    check.findings
}

struct Check<'a> {
    config: &'a Config,
    own: Own<'a>,
    /// By the number of their bridge.
    names: Vec<Names<'a>>,
    /// The bridge and the settings of each port, by its name.
    ports: HashMap<&'a str, (usize, &'a PortConfig)>,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn report(&mut self, entity: Entity, keys: &'static [&'static str], message: String) {
        self.findings.push(Finding { entity, keys, message });
    }

    fn pool(&mut self) {
        let (pollers, have) = (self.config.switch.cores.len(), self.config.pool.frames);
        let queues = xdp_queues(self.config, |kind| kind == PortKind::Afxdp);
        let need = frames_needed(pollers, queues * FRAMES_PER_XDP_QUEUE);
        if (have as usize) < need {
            let message = format!(
                "{have} frames are too few for {pollers} pollers and {queues} afxdp queues, expected at least {need}"
            );
            self.report(Entity::Pool, &["frames"], message);
        }
    }

    fn names(&mut self) {
        let mut bridges = BTreeSet::new();
        let mut datapaths = BTreeMap::new();
        for (b, bridge) in
            self.config.bridges.iter().enumerate().filter(|(_, bridge)| !bridge.name.is_empty())
        {
            let entity = Entity::Bridge(b);
            if !bridges.insert(bridge.name.as_str()) {
                self.report(entity, &["name"], format!("bridge `{}` is defined twice", bridge.name));
            }
            let Some(id) = bridge.datapath_id else { continue };
            if let Some(other) = datapaths.insert(id, &bridge.name) {
                let message = format!("bridges `{other}` and `{}` have one datapath-id", bridge.name);
                self.report(entity, &["datapath-id"], message);
            }
        }
        for (b, bridge) in self.config.bridges.iter().enumerate() {
            for (p, port) in bridge.ports.iter().enumerate().filter(|(_, port)| !port.name.is_empty()) {
                self.port_name(Entity::Port(b, p), port, &bridges);
                self.ports.entry(&port.name).or_insert((b, port));
            }
        }
    }

    fn port_name(&mut self, entity: Entity, port: &PortConfig, bridges: &BTreeSet<&str>) {
        let (name, config) = (&port.name, self.config);
        if let Some((b, _)) = self.ports.get(name.as_str()) {
            let owner = &config.bridges[*b].name;
            let message = format!("port `{name}` is defined twice, it is in bridge `{owner}` already");
            return self.report(entity, &["name"], message);
        }
        let Entity::Port(b, _) = entity else { return };
        if config.bridges[b].name == *name && port.kind != PortKind::Internal {
            let message = format!("port `{name}` has its bridge's name, expected type internal for it");
            self.report(entity, &["name", "type"], message);
        } else if config.bridges[b].name != *name && bridges.contains(name.as_str()) {
            self.report(entity, &["name"], format!("port `{name}` has another bridge's name"));
        }
    }

    fn bridge(&mut self, b: usize, bridge: &'a BridgeConfig) {
        if bridge.ports.len() > OFPORTS {
            let message = format!(
                "bridge `{}` has {} ports, expected at most {OFPORTS}",
                bridge.name,
                bridge.ports.len()
            );
            self.report(Entity::Bridge(b), &["port"], message);
        }
        let mut taken = BTreeMap::new();
        for (p, port) in bridge.ports.iter().enumerate() {
            let Some(ofport) = port.ofport else { continue };
            let entity = Entity::Port(b, p);
            if is_local(bridge, port) {
                let message = format!("port `{}` is its bridge's own, its ofport is always 65534", port.name);
                self.report(entity, &["ofport", "name"], message);
            } else if let Some(other) = taken.insert(ofport, &port.name) {
                let message =
                    format!("ofport {ofport} is port `{other}`'s in bridge `{}` already", bridge.name);
                self.report(entity, &["ofport"], message);
            }
        }
    }

    fn vlan(&mut self, entity: Entity, port: &PortConfig) {
        let name = &port.name;
        match (port.effective_vlan_mode(), port.tag) {
            (VlanMode::Trunk, Some(_)) => {
                let cure = "leave `tag` out, or choose vlan-mode native-tagged or native-untagged";
                self.report(
                    entity,
                    &["tag", "vlan-mode"],
                    format!("port `{name}` is a trunk with a tag; {cure}"),
                );
            }
            (VlanMode::Dot1qTunnel, None) => {
                let message = format!("port `{name}` is a dot1q-tunnel, expected its service VLAN as `tag`");
                self.report(entity, &["vlan-mode", "tag"], message);
            }
            _ => {}
        }
    }

    /// A peer that does not exist is no error: two bridges get their patch ports one after the other.
    fn peer(&mut self, b: usize, entity: Entity, port: &PortConfig) {
        let name = &port.name;
        let message = match (port.kind, &port.peer) {
            (PortKind::Patch, None) => format!("patch port `{name}` has no `peer`"),
            (PortKind::Patch, Some(peer)) => match self.ports.get(peer.as_str()) {
                Some((_, other)) if other.kind != PortKind::Patch => {
                    format!("the peer `{peer}` of patch port `{name}` is no patch port")
                }
                Some((at, _)) if *at == b => {
                    format!("the peer `{peer}` of patch port `{name}` is in the same bridge")
                }
                Some((_, other)) if other.peer.as_ref().is_some_and(|back| back != name) => {
                    format!(
                        "the peer `{peer}` of patch port `{name}` has another peer itself, expected `{name}`"
                    )
                }
                _ => return,
            },
            (_, Some(_)) => format!("port `{name}` has a `peer` and is no patch port"),
            (_, None) => return,
        };
        self.report(entity, &["peer", "type"], message);
    }

    fn affinity(&mut self, entity: Entity, port: &PortConfig) {
        for (queue, core) in &port.rxq_affinity {
            if *queue >= port.effective_queues() {
                let message = format!(
                    "port `{}` has no queue {queue}, expected one below `queues`, which is {}",
                    port.name,
                    port.effective_queues()
                );
                self.report(entity, &["rxq-affinity", "queues"], message);
            }
            if !self.config.switch.cores.contains(core) {
                let message = format!(
                    "no poller runs on core {core} for queue {queue} of port `{}`; add it to `cores` in [switch]",
                    port.name
                );
                self.report(entity, &["rxq-affinity"], message);
            }
        }
    }
}

/// Is it the internal port that is named like its bridge, `OFPP_LOCAL`?
pub(crate) fn is_local(bridge: &BridgeConfig, port: &PortConfig) -> bool {
    port.kind == PortKind::Internal && port.name == bridge.name
}

/// Receive queues of ports whose kind is one of `kinds`.
pub(crate) fn xdp_queues(config: &Config, kinds: impl Fn(PortKind) -> bool) -> usize {
    let ports = config.bridges.iter().flat_map(|bridge| &bridge.ports);
    ports.filter(|port| kinds(port.kind)).map(|port| usize::from(port.effective_queues())).sum()
}

/// The frames a pool must have for so many pollers, if AF_XDP queues are to receive into so many.
pub(crate) fn frames_needed(pollers: usize, receiving: usize) -> usize {
    pollers * FRAMES_PER_POLLER + 2 * receiving
}
