//! What a translated frame teaches: its source's place, and the group memberships it tells of.

use std::net::IpAddr;

use encap::field::IpProto;
use encap::offsets::walk;
use encap::wire::membership::Membership;
use encap::wire::{igmp, mld};
use flowtable::action::Effect;
use flowtable::id::{BridgeId, Place, PortId, SegmentId};
use flowtable::mcast::McastTable;
use flowtable::time::Instant;

use crate::segment::Network;
use crate::snapshot::Snapshot;

/// Applies what a decision says about learned state. `bytes` is the frame, for messages that must be read.
/// Returns the dependency bits of all entries that changed.
pub fn apply(effects: &[Effect], snapshot: &Snapshot, bytes: &[u8], now: Instant) -> u64 {
    effects.iter().fold(0, |changed, effect| changed | apply_one(effect, snapshot, bytes, now))
}

fn apply_one(effect: &Effect, snapshot: &Snapshot, bytes: &[u8], now: Instant) -> u64 {
    match *effect {
        Effect::Learn { bridge, station, place } => {
            let vtep = vtep(snapshot, (bridge, station.segment), place);
            snapshot.learned(bridge).map_or(0, |learned| {
                let met = vtep.map_or(0, |vtep| learned.vteps().learn(station.segment, vtep, now));
                met | learned.fdb().learn(station, place, now)
            })
        }
        Effect::Resolve { .. } => 0,
        Effect::Snoop { bridge, segment, port } => {
            let Some(message) = read(bytes) else { return 0 };
            snapshot.learned(bridge).map_or(0, |learned| {
                Listener { table: &mut learned.mcast(), segment, port, now }.hear(message)
            })
        }
    }
}

/// The endpoint that a frame came from, unless the segment is configured to send there anyway.
fn vtep(snapshot: &Snapshot, (bridge, segment): (BridgeId, SegmentId), place: Place) -> Option<IpAddr> {
    let Place::Vtep { address, .. } = place else { return None };
    let segment = snapshot.tables.segments.get(bridge, segment)?;
    let Network::Tunnel { vteps, .. } = &segment.network else { return None };
    (!vteps.contains(&address)).then_some(address)
}

/// The membership message in a frame. `None` if it is broken: then it is forwarded, but not believed.
fn read(bytes: &[u8]) -> Option<Membership<'_>> {
    let ip = walk(bytes).ok()?.ip?;
    let message = &bytes[ip.l4()?..ip.end()];
    let (message, source) = match ip.proto {
        IpProto::IGMP => (igmp::parse(message).ok()?, &bytes[ip.l3() + 12..ip.l3() + 16]),
        IpProto::ICMPV6 => {
            let addresses = &bytes[ip.l3() + 8..ip.l3() + 40];
            (mld::parse(message, addresses).ok()?, &addresses[..16])
        }
        _ => return None,
    };
    // A query from 0.0.0.0 or :: is another snooping switch's, and no router is behind it (RFC 4541 section 2.1.1).
    let is_proxy_query = matches!(message, Membership::Query(_)) && source.iter().all(|octet| *octet == 0);
    (!is_proxy_query).then_some(message)
}

/// Where a message was heard.
struct Listener<'a> {
    table: &'a mut McastTable,
    segment: SegmentId,
    port: PortId,
    now: Instant,
}

impl Listener<'_> {
    fn hear(&mut self, message: Membership<'_>) -> u64 {
        let Listener { segment, port, now, .. } = *self;
        match message {
            Membership::Query(_) => self.table.query(segment, port, now),
            Membership::Report(group) => self.table.report(segment, group, port, now),
            Membership::Leave(group) => self.table.leave(segment, group, port),
            Membership::Records(records) => records.fold(0, |changed, record| {
                changed
                    | match record.is_leave() {
                        true => self.table.leave(segment, record.group, port),
                        false => self.table.report(segment, record.group, port, now),
                    }
            }),
        }
    }
}
