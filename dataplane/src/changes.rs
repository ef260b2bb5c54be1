//! What a publication changes, and whom that concerns.
//!
//! Every decision notes what it looked at, and every snapshot knows what the last publications changed, so a flow that a
//! change does not concern is confirmed for the new tables without being translated again: one look at its notes and one
//! store. That is what keeps a million cached flows of a thousand segments alive when one of these is renumbered (bench
//! `mapping`). In doubt a change concerns everybody.
//!
//! Comparing costs O(ports + segments + neighbours) per publication, a question of a flow O(1).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use arrayvec::ArrayVec;
use flowtable::flow::Flow;
use flowtable::grounds::{Ground, Grounds};
use flowtable::id::{BridgeId, PortId};

use crate::segment::{Network, Segment, Segments};
use crate::tables::{Bridge, Tables};
use crate::underlay::Underlay;

/// How many publications are remembered. A flow that was not looked at for longer is translated again.
const REMEMBERED: usize = 32;

/// What one publication changed, or some together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Touched {
    /// Dependency bits of learned entries.
    pub learned: u64,
    /// Configuration.
    pub grounds: Grounds,
}

impl Touched {
    /// May the decision be another one now?
    #[inline]
    pub fn concerns(&self, flow: &Flow) -> bool {
        self.learned & flow.depends() != 0 || self.grounds.meet(flow.rests_on())
    }

    fn and(mut self, other: Touched) -> Touched {
        self.learned |= other.learned;
        self.grounds |= other.grounds;
        self
    }
}

/// What the last publications changed.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The nth: what the n + 1 newest changed together.
    since: ArrayVec<Touched, REMEMBERED>,
}

impl History {
    /// This one, and one more publication.
    pub fn then(&self, touched: Touched) -> History {
        let older = self.since.iter().map(|older| touched.and(*older));
        History { since: std::iter::once(touched).chain(older).take(REMEMBERED).collect() }
    }

    /// Did any of the `publications` newest ones change what the flow rests on? A dead flow is concerned by all.
    #[inline]
    pub fn concerns(&self, flow: &Flow, publications: u64) -> bool {
        let Some(before) = publications.checked_sub(1) else { return false };
        let touched = usize::try_from(before).ok().and_then(|before| self.since.get(before));
        touched.is_none_or(|touched| touched.concerns(flow))
    }
}

/// What differs between two sets of tables.
pub fn between(old: &Tables, new: &Tables) -> Grounds {
    // In full, as below: what is added to the tables has to find its place here.
    let Tables { bridges: _, ports: _, segments: map, tunnels, underlay: ways } = new;
    let mut changed: Grounds = ports(old, new).chain(bridges(old, new)).collect();
    if !Arc::ptr_eq(&old.segments, map) {
        changed |= segments(&old.segments, map);
    }
    if !Arc::ptr_eq(&old.tunnels, tunnels) && old.tunnels != *tunnels {
        changed.add(Ground::Routes);
    }
    if !Arc::ptr_eq(&old.underlay, ways) {
        changed |= underlay(&old.underlay, ways);
    }
    changed
}

fn ports<'a>(old: &'a Tables, new: &'a Tables) -> impl Iterator<Item = Ground> + 'a {
    let ids = (0..old.ports.len().max(new.ports.len()) as u32).map(PortId);
    let differs = |id: &PortId| {
        old.port(*id) != new.port(*id) || old.segments.is_uplink(*id) != new.segments.is_uplink(*id)
    };
    ids.filter(differs).map(Ground::Port)
}

fn bridges<'a>(old: &'a Tables, new: &'a Tables) -> impl Iterator<Item = Ground> + 'a {
    let ids = (0..old.bridges.len().max(new.bridges.len()) as u32).map(BridgeId);
    ids.flat_map(|id| {
        let (old, new) = (old.bridge(id), new.bridge(id));
        let members = old.map(|bridge| &bridge.ports) != new.map(|bridge| &bridge.ports);
        let rest = old.map(traits) != new.map(traits);
        [members.then_some(Ground::Members(id)), rest.then_some(Ground::Bridge(id))].into_iter().flatten()
    })
}

/// What decisions look at of a bridge. Its static stations they find among those it learned.
fn traits(bridge: &Bridge) -> impl PartialEq + '_ {
    let Bridge { name, ports: _, forward_bpdu, flood_vlans, fdb, snooping, datapath_id: _, static_fdb: _ } =
        bridge;
    (name, forward_bpdu, flood_vlans, fdb, snooping)
}

fn segments(old: &Segments, new: &Segments) -> Grounds {
    let lost = old.iter().filter(|segment| new.get(segment.bridge, segment.id) != Some(segment));
    let won = new.iter().filter(|segment| old.get(segment.bridge, segment.id) != Some(segment));
    lost.chain(won).flat_map(grounds_of).collect()
}

/// All that a segment may be found by.
fn grounds_of(segment: &Segment) -> impl Iterator<Item = Ground> {
    let number = match segment.network {
        Network::Local => None,
        Network::Tunnel { port, id, .. } => Some(Ground::Number(port, id)),
        Network::Provider { uplink, vlan } => Some(Ground::Number(uplink, vlan.get().into())),
    };
    std::iter::once(Ground::Segment(segment.bridge, segment.id)).chain(number)
}

fn underlay(old: &Underlay, new: &Underlay) -> Grounds {
    let Underlay { endpoints, routes, neighbours, path_mtus } = new;
    let neighbours = differing(&old.neighbours, neighbours).map(|(_, address)| Ground::Host(*address));
    let paths = differing(&old.path_mtus, path_mtus).map(|address| Ground::Host(*address));
    let endpoints = (old.endpoints != *endpoints).then_some(Ground::Endpoints);
    let routes = (old.routes != *routes).then_some(Ground::Routes);
    neighbours.chain(paths).chain(endpoints).chain(routes).collect()
}

/// The keys that have not the same value in both.
fn differing<'a, K: Eq + Hash, V: PartialEq, S: BuildHasher>(
    old: &'a HashMap<K, V, S>,
    new: &'a HashMap<K, V, S>,
) -> impl Iterator<Item = &'a K> {
    let lost = old.iter().filter(|(key, value)| new.get(key) != Some(value));
    let won = new.keys().filter(|key| !old.contains_key(key));
    lost.map(|(key, _)| key).chain(won)
}
