//! What was learned outlives the tables it was learned under, as far as it is still true.

use std::sync::Arc;

use flowtable::fdb::{self, Fdb};
use flowtable::id::{BridgeId, PortId, Station};
use flowtable::mcast::{self, McastTable};

use crate::snapshot::{Learned, Snapshot};
use crate::tables::{Bridge, Tables};

/// Groups a bridge without snooping may hold: none are ever reported to it.
const NO_SNOOPING: mcast::Limits = mcast::Limits { size: 0, age: std::time::Duration::ZERO };

/// The learned state for new tables: that of the bridges that stay, without what ports no longer carry.
pub fn carry_over(old: &Snapshot, new: &Tables) -> Vec<Option<Arc<Learned>>> {
    let bridges = new.bridges.iter().enumerate();
    bridges.map(|(index, bridge)| Some(learned(old, new, BridgeId(index as u32), bridge.as_ref()?))).collect()
}

fn learned(old: &Snapshot, new: &Tables, id: BridgeId, bridge: &Bridge) -> Arc<Learned> {
    let fdb_limits = fdb::Limits { size: bridge.fdb.size, age: bridge.fdb.age };
    let snooping = bridge.snooping.map_or(NO_SNOOPING, |s| mcast::Limits { size: s.size, age: s.age });
    let stays = old.tables.bridge(id).is_some_and(|b| b.name == bridge.name);
    let learned = match old.learned(id) {
        Some(learned) if stays => {
            changed_ports(&old.tables, new).for_each(|port| {
                learned.fdb().flush(Some(port));
                learned.mcast().flush(Some(port));
            });
            Arc::clone(learned)
        }
        _ => Arc::new(Learned::new(Fdb::new(fdb_limits), McastTable::new(snooping))),
    };
    let entries: Vec<_> =
        bridge.static_fdb.iter().map(|e| (Station { segment: e.vlan.into(), mac: e.mac }, e.port)).collect();
    learned.fdb().set_limits(fdb_limits);
    learned.fdb().set_static(&entries);
    learned.mcast().set_limits(snooping);
    learned
}

/// Forgets once more what [`carry_over`] forgot: a poller may have learned it again by the old tables, before it
/// took the new ones. Dependency bits of what changed.
pub fn forget_changed(old: &Tables, new: &Snapshot) -> u64 {
    changed_ports(old, &new.tables).fold(0, |changed, port| {
        new.learned.iter().flatten().fold(changed, |changed, learned| {
            changed | learned.fdb().flush(Some(port)).changed | learned.mcast().flush(Some(port))
        })
    })
}

/// Ports that are gone, moved to another bridge, or carry other VLANs now.
fn changed_ports<'a>(old: &'a Tables, new: &'a Tables) -> impl Iterator<Item = PortId> + 'a {
    (0..old.ports.len() as u32).map(PortId).filter(|&port| match (old.port(port), new.port(port)) {
        (Some(old), Some(new)) => old.bridge != new.bridge || old.vlan != new.vlan,
        (Some(_), None) => true,
        (None, _) => false,
    })
}
