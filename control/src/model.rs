//! What is meant: a configuration without errors, whose bridges, ports and segments have lasting identities.
//!
//! One [`Model`] follows another by [`Model::change`]. What keeps its name (a port or segment: and its bridge)
//! keeps its id and its OpenFlow port number. The id of what is gone leaves a hole; it comes back only in a later
//! change, after [`REST`] more ids were freed, oldest first. By then whoever watched the port by its id has
//! seen it go, and the tables stay as long as the most ports there ever were at a time, plus `REST`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use flowtable::id::{BridgeId, PortId, SegmentId};

use crate::check;
use crate::config::{BridgeConfig, Config, PortConfig, PortKind, SegmentConfig};
use crate::problem::{Problem, Problems};

/// The OpenFlow number of a bridge's own port (`OFPP_LOCAL`).
pub const LOCAL: u16 = 65_534;
/// How many freed ids rest before the oldest is used again.
pub const REST: usize = 1024;

/// A configuration and the identities of what it names.
#[derive(Debug, Clone, Default)]
pub struct Model {
    config: Config,
    bridges: Ids<String>,
    ports: Ids<(String, String)>,
    /// Of segments without a local VLAN; [`SegmentId::VLANS`] more than here.
    segments: Ids<(String, String)>,
    by_name: BTreeMap<String, Slot>,
    segments_by_name: BTreeMap<String, SegmentSlot>,
}

/// A bridge of a model.
#[derive(Debug, Clone, Copy)]
pub struct Bridge<'a> {
    /// Its id.
    pub id: BridgeId,
    /// Its settings, and its ports'.
    pub config: &'a BridgeConfig,
}

/// A port of a model.
#[derive(Debug, Clone, Copy)]
pub struct Port<'a> {
    /// Its id.
    pub id: PortId,
    /// The bridge it belongs to.
    pub bridge: BridgeId,
    /// Its OpenFlow port number in that bridge; [`LOCAL`] for the bridge's own.
    pub ofport: u16,
    /// Its settings.
    pub config: &'a PortConfig,
}

/// A segment of a model.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Its number in the bridge: the local VLAN, or one that is none.
    pub id: SegmentId,
    /// The bridge it belongs to.
    pub bridge: BridgeId,
    /// Its settings.
    pub config: &'a SegmentConfig,
}

/// Where a segment's settings are, and who it is.
#[derive(Debug, Clone, Copy)]
struct SegmentSlot {
    id: SegmentId,
    bridge: BridgeId,
    at: (usize, usize),
}

/// Where a port's settings are, and who it is.
#[derive(Debug, Clone, Copy)]
struct Slot {
    id: PortId,
    bridge: BridgeId,
    ofport: u16,
    at: (usize, usize),
}

impl Model {
    /// A first model.
    ///
    /// # Errors
    /// What is wrong between the values of `config`; nothing if it comes from [`crate::config::parse`].
    pub fn new(config: Config) -> Result<Model, Problems> {
        Model::default().change(config)
    }

    /// The model that follows this one.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn change(&self, config: Config) -> Result<Model, Problems> {
        let problems: Vec<Problem> =
            check::findings(&config).into_iter().map(|finding| Problem::new(finding.message)).collect();
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let bridges = self.bridges.renew(config.bridges.iter().map(|bridge| bridge.name.clone()).collect());
        let ports = self.ports.renew(config.bridges.iter().flat_map(port_keys).collect());
        let segments = self.segments.renew(config.bridges.iter().flat_map(segment_keys).collect());
        let (mut by_name, mut segments_by_name) = (BTreeMap::new(), BTreeMap::new());
        for (b, bridge) in config.bridges.iter().enumerate() {
            let bridge_id = BridgeId(bridges.taken[&bridge.name]);
            let ofports = self.ofports(bridge);
            for (p, (key, ofport)) in port_keys(bridge).zip(ofports).enumerate() {
                let id = PortId(ports.taken[&key]);
                by_name.insert(key.1, Slot { id, bridge: bridge_id, ofport, at: (b, p) });
            }
            for (s, segment) in bridge.segments.iter().enumerate() {
                let id = segment_id(&segments, bridge, segment);
                segments_by_name
                    .insert(segment.name.clone(), SegmentSlot { id, bridge: bridge_id, at: (b, s) });
            }
        }
        Ok(Model { config, bridges, ports, segments, by_name, segments_by_name })
    }

    /// The configuration it stands for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The bridges, in the order of the configuration.
    pub fn bridges(&self) -> impl Iterator<Item = Bridge<'_>> {
        self.config
            .bridges
            .iter()
            .map(|config| Bridge { id: BridgeId(self.bridges.taken[&config.name]), config })
    }

    /// The bridge of this name. O(bridges).
    pub fn bridge(&self, name: &str) -> Option<Bridge<'_>> {
        self.bridges().find(|bridge| bridge.config.name == name)
    }

    /// The ports of all bridges, in the order of their names.
    pub fn ports(&self) -> impl Iterator<Item = Port<'_>> {
        self.by_name.values().map(|slot| self.view(slot))
    }

    /// The port of this name. O(log ports).
    pub fn port(&self, name: &str) -> Option<Port<'_>> {
        self.by_name.get(name).map(|slot| self.view(slot))
    }

    /// The other end of a patch port, if there is one yet.
    pub fn peer(&self, port: &Port<'_>) -> Option<Port<'_>> {
        let peer = port.config.peer.as_ref().filter(|_| port.config.kind == PortKind::Patch)?;
        self.port(peer)
    }

    /// The segments of all bridges, in the order of their names.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.segments_by_name.values().map(|slot| self.segment_view(slot))
    }

    /// The segment of this name. O(log segments).
    pub fn segment(&self, name: &str) -> Option<Segment<'_>> {
        self.segments_by_name.get(name).map(|slot| self.segment_view(slot))
    }

    fn segment_view(&self, slot: &SegmentSlot) -> Segment<'_> {
        let (b, s) = slot.at;
        Segment { id: slot.id, bridge: slot.bridge, config: &self.config.bridges[b].segments[s] }
    }

    fn view(&self, slot: &Slot) -> Port<'_> {
        let (b, p) = slot.at;
        Port {
            id: slot.id,
            bridge: slot.bridge,
            ofport: slot.ofport,
            config: &self.config.bridges[b].ports[p],
        }
    }

    /// The OpenFlow numbers of a bridge's ports, in their order: what is requested; else what it was, unless
    /// somebody requests that now; else the lowest that is free.
    fn ofports(&self, bridge: &BridgeConfig) -> Vec<u16> {
        let mut taken: BTreeSet<u16> = bridge.ports.iter().filter_map(|port| port.ofport).collect();
        let mut keep = |port: &PortConfig| {
            if check::is_local(bridge, port) {
                return Some(LOCAL);
            }
            let before = || self.ofport_before(bridge, port).filter(|number| taken.insert(*number));
            port.ofport.or_else(before)
        };
        let kept: Vec<Option<u16>> = bridge.ports.iter().map(&mut keep).collect();
        let mut free = (1..).filter(|number| !taken.contains(number));
        kept.into_iter().map(|number| number.or_else(|| free.next()).unwrap_or(LOCAL)).collect()
    }

    fn ofport_before(&self, bridge: &BridgeConfig, port: &PortConfig) -> Option<u16> {
        let slot = self.by_name.get(&port.name)?;
        let stayed = self.config.bridges[slot.at.0].name == bridge.name;
        Some(slot.ofport).filter(|number| stayed && *number != LOCAL)
    }
}

/// A port is the same if it has the same name in a bridge of the same name.
fn port_keys(bridge: &BridgeConfig) -> impl Iterator<Item = (String, String)> + '_ {
    bridge.ports.iter().map(|port| (bridge.name.clone(), port.name.clone()))
}

/// Segments without a local VLAN, named as ports are.
fn segment_keys(bridge: &BridgeConfig) -> impl Iterator<Item = (String, String)> + '_ {
    let without = bridge.segments.iter().filter(|segment| segment.vlan.is_none());
    without.map(|segment| (bridge.name.clone(), segment.name.clone()))
}

fn segment_id(ids: &Ids<(String, String)>, bridge: &BridgeConfig, segment: &SegmentConfig) -> SegmentId {
    let number = || ids.taken[&(bridge.name.clone(), segment.name.clone())] + SegmentId::VLANS;
    segment.vlan.map_or_else(|| SegmentId(number()), SegmentId::from)
}

/// Small numbers for names.
#[derive(Debug, Clone)]
struct Ids<K> {
    taken: HashMap<K, u32>,
    /// Oldest first.
    freed: VecDeque<u32>,
    /// No number from here on was ever taken.
    next: u32,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        Ids { taken: HashMap::new(), freed: VecDeque::new(), next: 0 }
    }
}

impl<K: Eq + Hash> Ids<K> {
    /// Numbers for `names`, which are distinct; those that had one keep it.
    fn renew(&self, names: Vec<K>) -> Ids<K> {
        let taken = HashMap::with_capacity(names.len());
        let mut ids = Ids { taken, freed: self.freed.clone(), next: self.next };
        for name in names {
            let id = self.taken.get(&name).copied().unwrap_or_else(|| ids.fresh());
            ids.taken.insert(name, id);
        }
        let gone = self.taken.iter().filter(|(name, _)| !ids.taken.contains_key(*name));
        let gone: BTreeSet<u32> = gone.map(|(_, id)| *id).collect();
        ids.freed.extend(gone);
        ids
    }

    fn fresh(&mut self) -> u32 {
        if self.freed.len() > REST
            && let Some(oldest) = self.freed.pop_front()
        {
            return oldest;
        }
        self.next += 1;
        self.next - 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config;

    fn model(text: &str) -> Model {
        Model::new(config::parse(text).unwrap()).unwrap()
    }

    fn change(model: &Model, text: &str) -> Model {
        model.change(config::parse(text).unwrap()).unwrap()
    }

    /// A bridge `b` with ports, each a name and perhaps `:` and the OpenFlow number it asks for.
    fn bridge(ports: &str) -> String {
        let port = |port: &str| match port.split_once(':') {
            Some((name, ofport)) => format!("{{ name = '{name}', ofport = {ofport} }}"),
            None if port == "b" => "{ name = 'b', type = 'internal' }".to_owned(),
            None => format!("{{ name = '{port}' }}"),
        };
        let ports: Vec<String> = ports.split_whitespace().map(port).collect();
        format!("bridge = [{{ name = 'b', port = [{}] }}]", ports.join(", "))
    }

    fn ofports(model: &Model) -> Vec<(&str, u16)> {
        model.ports().map(|port| (port.config.name.as_str(), port.ofport)).collect()
    }

    fn id(model: &Model, port: &str) -> u32 {
        model.port(port).unwrap().id.0
    }

    #[test]
    fn openflow_numbers_are_requested_kept_or_the_lowest() {
        let first = model(&bridge("x y:1 b z"));
        assert_eq!(ofports(&first), [("b", LOCAL), ("x", 2), ("y", 1), ("z", 3)]);
        let second = change(&first, &bridge("w y z b"));
        assert_eq!(ofports(&second), [("b", LOCAL), ("w", 2), ("y", 1), ("z", 3)]);
        let third = change(&second, &bridge("w:3 y z"));
        assert_eq!(ofports(&third), [("w", 3), ("y", 1), ("z", 2)]);
    }

    #[test]
    fn what_stays_keeps_its_id_and_what_goes_leaves_a_hole() {
        let first = model(&bridge("x y z"));
        let second = change(&first, &bridge("v z x"));
        assert_eq!(
            (id(&second, "x"), id(&second, "z"), id(&second, "v")),
            (id(&first, "x"), id(&first, "z"), 3)
        );
        let third = change(&second, &bridge("y"));
        assert_eq!(id(&third, "y"), 4);
        assert_eq!(first.bridge("b").unwrap().id, third.bridge("b").unwrap().id);
    }

    #[test]
    fn a_port_that_moves_to_another_bridge_is_another() {
        let at = |ports: [&str; 2]| {
            let [b, c] = ports;
            format!("bridge = [{{ name = 'b', port = [{b}] }}, {{ name = 'c', port = [{c}] }}]")
        };
        let first = model(&at(["{ name = 'x', ofport = 9 }", ""]));
        let second = change(&first, &at(["", "{ name = 'x' }"]));
        assert_ne!(id(&first, "x"), id(&second, "x"));
        assert_eq!(second.port("x").unwrap().ofport, 1);
        assert_eq!(second.port("x").unwrap().bridge, second.bridge("c").unwrap().id);
    }

    #[test]
    fn freed_ids_rest_before_they_come_back() {
        let mut model = model(&bridge("p0"));
        let mut last_seen = BTreeMap::new();
        for round in 1..3 * REST {
            model = change(&model, &bridge(&format!("p{round}")));
            let id = id(&model, &format!("p{round}"));
            if let Some(before) = last_seen.insert(id, round) {
                assert!(round - before > REST, "id {id} in rounds {before} and {round}");
            }
        }
        assert!(last_seen.len() <= REST + 3, "{}", last_seen.len());
    }

    #[test]
    fn segments_are_their_vlan_or_a_number_that_lasts() {
        let segments = |names: &str| {
            let segment = |name: &str| match name.split_once(':') {
                Some((name, vlan)) => format!("{{ name = '{name}', vlan = {vlan}, type = 'local' }}"),
                None => format!("{{ name = '{name}', type = 'local' }}"),
            };
            let segments: Vec<String> = names.split_whitespace().map(segment).collect();
            format!("bridge = [{{ name = 'b', segment = [{}] }}]", segments.join(", "))
        };
        let ids = |model: &Model| -> Vec<(String, u32)> {
            model.segments().map(|segment| (segment.config.name.clone(), segment.id.0)).collect()
        };
        let named = |all: &[(&str, u32)]| -> Vec<(String, u32)> {
            all.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect()
        };
        let first = model(&segments("x y:7 z"));
        assert_eq!(ids(&first), named(&[("x", 4096), ("y", 7), ("z", 4097)]));
        let second = change(&first, &segments("y z w x:9"));
        assert_eq!(ids(&second), named(&[("w", 4099), ("x", 9), ("y", 4098), ("z", 4097)]));
        assert_eq!(second.segment("w").unwrap().bridge, second.bridge("b").unwrap().id);
        assert!(second.segment("nosuch").is_none());
    }

    #[test]
    fn what_breaks_a_rule_is_no_model() {
        let mut config = config::parse(&bridge("x y")).unwrap();
        config.bridges[0].ports[1].name = "x".into();
        let problems = Model::new(config).unwrap_err();
        assert_eq!(problems.to_string(), "port `x` is defined twice, it is in bridge `b` already");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn ids_and_numbers_are_unique_and_lasting(
            rounds in prop::collection::vec(prop::collection::btree_map(0..8u8, prop::option::of(1..5u16), 0..8), 1..12),
        ) {
            let mut model = Model::default();
            for ports in rounds {
                let mut asked = BTreeSet::new();
                let port = |(name, ofport): (u8, Option<u16>)| match ofport.filter(|ofport| asked.insert(*ofport)) {
                    Some(ofport) => format!("p{name}:{ofport} "),
                    None => format!("p{name} "),
                };
                let next = change(&model, &bridge(&ports.into_iter().map(port).collect::<String>()));
                let ids: BTreeSet<PortId> = next.ports().map(|port| port.id).collect();
                let numbers: BTreeSet<u16> = next.ports().map(|port| port.ofport).collect();
                prop_assert_eq!((ids.len(), numbers.len()), (next.ports().count(), next.ports().count()));
                for port in next.ports() {
                    if let Some(ofport) = port.config.ofport {
                        prop_assert_eq!(port.ofport, ofport);
                    }
                    if let Some(old) = model.port(&port.config.name) {
                        prop_assert_eq!(old.id, port.id);
                        let stays = port.ofport == old.ofport;
                        prop_assert!(stays || port.config.ofport.is_some() || asked.contains(&old.ofport));
                    } else {
                        prop_assert!(model.ports().all(|old| old.id != port.id));
                    }
                }
                model = next;
            }
        }
    }
}
