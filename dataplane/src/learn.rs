//! What was learned outlives the tables it was learned under, as far as it is still true.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flowtable::fdb::{self, Fdb};
use flowtable::id::{BridgeId, Place, PortId, SegmentId, Station};
use flowtable::mcast::{self, McastTable};
use flowtable::time::Instant;
use flowtable::vteps::{self, Vteps};

use crate::changes::{self, Touched};
use crate::segment::{Network, Segment};
use crate::snapshot::{Learned, Snapshot};
use crate::tables::{Bridge, PortEntry, Tables};

/// How many endpoints may be learned: a segment on a thousand hypervisors, a bridge full of such segments.
const VTEPS: vteps::Limits = vteps::Limits { per_segment: 1024, size: 65_536, age: Duration::from_secs(300) };

/// Groups a bridge without snooping may hold: none are ever reported to it.
const NO_SNOOPING: mcast::Limits = mcast::Limits { size: 0, age: std::time::Duration::ZERO };

/// The snapshot that follows one, with new tables: what was learned stays with the bridges that stay, but for what ports
/// no longer carry.
pub fn succeed(old: &Snapshot, tables: Tables) -> Snapshot {
    let mut touched = Touched { learned: 0, grounds: changes::between(&old.tables, &tables) };
    let mut carry = |(index, bridge): (usize, &Option<Bridge>)| {
        let (learned, changed) = carry_over(old, &tables, BridgeId(index as u32), bridge.as_ref()?);
        touched.learned |= changed;
        Some(learned)
    };
    let learned = tables.bridges.iter().enumerate().map(&mut carry).collect();
    let history = old.history.then(touched);
    Snapshot { generation: old.generation + 1, tables, learned, history }
}

/// What a bridge of the new tables knows from the beginning, and the dependency bits of what was changed for it.
fn carry_over(old: &Snapshot, new: &Tables, id: BridgeId, bridge: &Bridge) -> (Arc<Learned>, u64) {
    let mut changed = 0;
    let fdb_limits = fdb::Limits { size: bridge.fdb.size, age: bridge.fdb.age };
    let snooping = bridge.snooping.map_or(NO_SNOOPING, |s| mcast::Limits { size: s.size, age: s.age });
    let stays = old.tables.bridge(id).is_some_and(|b| b.name == bridge.name);
    let learned = match old.learned(id) {
        Some(learned) if stays => {
            changed_ports(&old.tables, new).for_each(|port| {
                changed |= learned.fdb().flush(Some(port)).changed;
                changed |= learned.mcast().flush(Some(port));
            });
            // Who looked there looked at the segment, too, which changed: no need to concern others by the bits they share.
            forget_remote(learned, id, &moved_segments(&old.tables, new));
            Arc::clone(learned)
        }
        _ => Arc::new(Learned::new(Fdb::new(fdb_limits), McastTable::new(snooping), Vteps::new(VTEPS))),
    };
    let entries: Vec<_> =
        bridge.static_fdb.iter().map(|e| (Station { segment: e.segment, mac: e.mac }, e.place)).collect();
    let was_closed = learned.fdb().is_closed();
    changed |= learned.fdb().set_limits(fdb_limits);
    changed |= learned.fdb().set_static(&entries);
    if was_closed && !learned.fdb().is_closed() {
        // Flows of stations that there was no room for must teach them now, whoever these are.
        changed = u64::MAX;
    }
    changed |= learned.mcast().set_limits(snooping);
    (learned, changed)
}

/// Forgets once more what [`succeed`] forgot: a poller may have learned it again by the old tables, before it
/// took the new ones. Dependency bits of what changed.
pub fn forget_changed(old: &Tables, new: &Snapshot) -> u64 {
    let ports = changed_ports(old, &new.tables).fold(0, |changed, port| {
        new.learned.iter().flatten().fold(changed, |changed, learned| {
            changed | learned.fdb().flush(Some(port)).changed | learned.mcast().flush(Some(port))
        })
    });
    let moved = moved_segments(old, &new.tables);
    let bridges = new.learned.iter().enumerate();
    bridges.fold(ports, |changed, (index, learned)| {
        let id = BridgeId(index as u32);
        changed | learned.as_ref().map_or(0, |learned| forget_remote(learned, id, &moved))
    })
}

/// Segments that are gone, or that are another network beyond this switch than they were, and the uplinks they had.
fn moved_segments(old: &Tables, new: &Tables) -> HashMap<(BridgeId, SegmentId), Option<PortId>> {
    if Arc::ptr_eq(&old.segments, &new.segments) {
        return HashMap::new();
    }
    let uplink = |segment: &Segment| match segment.network {
        Network::Provider { uplink, .. } => Some(uplink),
        Network::Tunnel { .. } | Network::Local => None,
    };
    let is_other =
        |old: &&Segment| !new.segments.get(old.bridge, old.id).is_some_and(|new| old.lives_on_in(new));
    let moved = old.segments.iter().filter(is_other);
    moved.map(|segment| ((segment.bridge, segment.id), uplink(segment))).collect()
}

/// Forgets who lives beyond this switch in these segments. Dependency bits. O(entries of the bridge + segments).
fn forget_remote(
    learned: &Learned,
    bridge: BridgeId,
    moved: &HashMap<(BridgeId, SegmentId), Option<PortId>>,
) -> u64 {
    if moved.is_empty() {
        return 0;
    }
    let is_remote = |entry: &fdb::Entry| {
        let uplink = moved.get(&(bridge, entry.station.segment));
        uplink.is_some_and(|uplink| match entry.place {
            Place::Vtep { .. } => true,
            Place::Port(port) => Some(port) == *uplink,
        })
    };
    let mut fdb = learned.fdb();
    // At no time is an entry too old to be told.
    let stations: Vec<Station> =
        fdb.entries(Instant::ZERO).filter(is_remote).map(|entry| entry.station).collect();
    let bits = stations.into_iter().fold(0, |bits, station| bits | fdb.remove(station));
    drop(fdb);
    let mut vteps = learned.vteps();
    let segments = moved.keys().filter(|(owner, _)| *owner == bridge).map(|(_, segment)| *segment);
    segments.fold(bits, |bits, segment| bits | vteps.flush(Some(segment)).changed)
}

/// Ports that are gone, moved to another bridge, lead elsewhere, or carry other segments now.
fn changed_ports<'a>(old: &'a Tables, new: &'a Tables) -> impl Iterator<Item = PortId> + 'a {
    (0..old.ports.len() as u32).map(PortId).filter(|&port| match (old.port(port), new.port(port)) {
        (Some(old), Some(new)) => {
            let carried = |entry: &PortEntry| (entry.bridge, entry.segment, entry.kind);
            carried(old) != carried(new) || old.vlan != new.vlan
        }
        (Some(_), None) => true,
        (None, _) => false,
    })
}
