//! The forwarding database of one bridge: in which segment a MAC address lives behind which port or VTEP
//! (IEEE 802.1D/Q learning, as ovs-vswitchd.conf.db(5) bounds it).
//!
//! Lookup and learning take constant time, a move O(log (ports × segments)). When the table is full the port that holds most
//! loses the oldest entry of the segment that has most there, in as much time: one tenant can fill only what others leave
//! free, beside them on a tunnel port or an uplink, too. All VTEPs behind one tunnel port count as that port's.
//!
//! Every change answers with the [`dependency`] bits of the entries it touched, so that the flows that looked
//! them up can be translated again.

use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;

use crate::aged::{self, Aged};
use crate::flow::dependency;
use crate::id::{Place, PortId, SegmentId, Station};
use crate::time::Instant;

/// A station seen again within this time is as young as before: of many new flows of a station few move it in the list of
/// its segment.
const GRAIN: Duration = Duration::from_millis(100);

/// How big a table may get and how old its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most entries, static ones included.
    pub size: usize,
    /// After how long an entry that is not seen goes.
    pub age: Duration,
}

/// How an entry came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From a frame.
    Learned,
    /// From the operator: it does not age, move, or make room.
    Static,
}

/// An entry, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub station: Station,
    /// Where.
    pub place: Place,
    /// Since when it was not seen; zero for static entries.
    pub age: Duration,
    /// How it came to be.
    pub origin: Origin,
}

/// What happened to a table since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Entries learned.
    pub learned: u64,
    /// Entries that changed their port.
    pub moved: u64,
    /// Entries that aged out.
    pub expired: u64,
    /// Entries that made room for others.
    pub evicted: u64,
    /// Frames from a static address on another port.
    pub static_moves: u64,
}

/// What a flush removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flushed {
    /// How many entries.
    pub count: usize,
    /// Their dependency bits.
    pub changed: u64,
}

/// The stations of a segment behind a port.
type Share = (PortId, SegmentId);

type Slot = aged::Entry<Station, Share, Place>;

impl aged::Group for Share {
    type Owner = PortId;

    fn owner(self) -> PortId {
        self.0
    }
}

/// The table of one bridge.
#[derive(Debug)]
pub struct Fdb {
    limits: Limits,
    /// Learned entries are in the list of their port and segment, static ones in none.
    stations: Aged<Station, Share, Place>,
    counters: Counters,
}

impl Fdb {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Fdb { limits, stations: Aged::new(), counters: Counters::default() }
    }

    /// The dependency bit of whoever looks this station up.
    #[inline]
    pub fn dependency(station: Station) -> u64 {
        dependency(station.mac.to_u64() ^ u64::from(station.segment.0) << 48)
    }

    /// Where the station lives, unless its entry is too old.
    #[inline]
    pub fn lookup(&self, station: Station, now: Instant) -> Option<Place> {
        let slot = self.stations.get(self.stations.find(station)?);
        (!self.is_old(slot, now)).then_some(slot.value)
    }

    /// Does the station have a static entry?
    pub fn is_static(&self, station: Station) -> bool {
        self.stations.find(station).is_some_and(|at| self.stations.get(at).group.is_none())
    }

    /// Is the table full of static entries, so that nobody can be learned?
    pub fn is_closed(&self) -> bool {
        self.len() >= self.limits.size && self.stations.largest().is_none()
    }

    /// A frame from the station came from `place`. Dependency bits of what changed; 0 if nothing but age.
    pub fn learn(&mut self, station: Station, place: Place, now: Instant) -> u64 {
        let Some(at) = self.stations.find(station) else {
            if self.is_closed() {
                return 0;
            }
            let evicted = self.make_room();
            self.counters.learned += 1;
            self.stations.insert(learned(station, place, now));
            return evicted | Self::dependency(station);
        };
        let slot = *self.stations.get(at);
        let is_move = slot.value != place;
        if slot.group.is_none() {
            self.counters.static_moves += u64::from(is_move);
            return 0;
        }
        if is_move {
            self.counters.moved += 1;
            self.stations.replace(at, learned(station, place, now));
        } else if now.since(slot.seen) >= GRAIN {
            self.stations.touch(at, now);
        }
        if is_move || self.is_old(&slot, now) { Self::dependency(station) } else { 0 }
    }

    /// The station was seen at `when` where it is known to be.
    pub fn refresh(&mut self, station: Station, when: Instant) {
        let Some(at) = self.stations.find(station) else { return };
        let slot = self.stations.get(at);
        if slot.group.is_some() && slot.seen < when {
            self.stations.touch(at, when);
        }
    }

    /// Makes these the static entries, in place of those before; of two for the same station the first counts.
    /// Dependency bits of what changed. O(entries + table).
    pub fn set_static(&mut self, entries: &[(Station, Place)]) -> u64 {
        let mut wanted = HashMap::with_capacity(entries.len());
        for &(station, place) in entries {
            wanted.entry(station).or_insert(place);
        }
        let mut changed = self
            .remove_where(|slot| slot.group.is_none() && wanted.get(&slot.key) != Some(&slot.value))
            .changed;
        for (station, place) in wanted {
            match self.stations.find(station) {
                Some(at) if self.stations.get(at).group.is_none() => continue,
                Some(at) => changed |= self.remove_slot(at),
                None => changed |= self.make_room(),
            }
            let slot = Slot { group: None, ..learned(station, place, Instant::ZERO) };
            self.stations.insert(slot);
            changed |= Self::dependency(station);
        }
        changed
    }

    /// Removes a learned entry. Its dependency bit; 0 if there is none.
    pub fn remove(&mut self, station: Station) -> u64 {
        match self.stations.find(station) {
            Some(at) if self.stations.get(at).group.is_some() => self.remove_slot(at),
            _ => 0,
        }
    }

    /// Removes all learned entries, or those of one port.
    pub fn flush(&mut self, port: Option<PortId>) -> Flushed {
        let mut flushed = Flushed::default();
        loop {
            let share = port.map_or_else(|| self.stations.largest(), |port| self.stations.group_of(port));
            let Some(at) = share.and_then(|share| self.stations.oldest(share)) else { return flushed };
            flushed.changed |= self.remove_slot(at);
            flushed.count += 1;
        }
    }

    /// Removes the learned entries behind a VTEP, whatever tunnel port leads there. Visits the whole table.
    pub fn flush_vtep(&mut self, vtep: IpAddr) -> Flushed {
        self.remove_where(|slot| {
            slot.group.is_some() && matches!(slot.value, Place::Vtep { address, .. } if address == vtep)
        })
    }

    /// Looks at the next places of the table, `budget` or a 64th of all, and removes learned entries that are too old.
    /// Dependency bits of what changed. There are at most three places for each entry that it ever held at once.
    pub fn expire(&mut self, now: Instant, budget: usize) -> u64 {
        let round = self.stations.round();
        let mut changed = 0;
        for _ in 0..budget.max(round / 64).min(round) {
            if let Some(at) = self.stations.step()
                && self.is_old(self.stations.get(at), now)
            {
                changed |= self.remove_slot(at);
                self.counters.expired += 1;
            }
        }
        changed
    }

    /// Changes the limits; entries above them go. Their dependency bits.
    pub fn set_limits(&mut self, limits: Limits) -> u64 {
        self.limits = limits;
        let mut changed = 0;
        while self.len() > limits.size {
            match self.evict() {
                0 => break,
                bits => changed |= bits,
            }
        }
        changed
    }

    /// All entries that are not too old, in no order.
    pub fn entries(&self, now: Instant) -> impl Iterator<Item = Entry> + '_ {
        let slots = self.stations.iter().map(|(_, slot)| slot).filter(move |slot| !self.is_old(slot, now));
        slots.map(move |slot| Entry {
            station: slot.key,
            place: slot.value,
            age: if slot.group.is_none() { Duration::ZERO } else { now.since(slot.seen) },
            origin: if slot.group.is_none() { Origin::Static } else { Origin::Learned },
        })
    }

    /// How many entries there are, old ones included.
    pub fn len(&self) -> usize {
        self.stations.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn is_old(&self, slot: &Slot, now: Instant) -> bool {
        slot.group.is_some() && now.since(slot.seen) > self.limits.age
    }

    fn remove_where(&mut self, is_wrong: impl Fn(&Slot) -> bool) -> Flushed {
        let wrong: Vec<u32> =
            self.stations.iter().filter(|(_, slot)| is_wrong(slot)).map(|(at, _)| at).collect();
        let count = wrong.len();
        Flushed { count, changed: wrong.into_iter().fold(0, |bits, at| bits | self.remove_slot(at)) }
    }

    fn remove_slot(&mut self, at: u32) -> u64 {
        let station = self.stations.get(at).key;
        self.stations.remove(at);
        Self::dependency(station)
    }

    fn make_room(&mut self) -> u64 {
        if self.len() >= self.limits.size { self.evict() } else { 0 }
    }

    /// The port that holds most loses the oldest entry of its biggest segment.
    fn evict(&mut self) -> u64 {
        let Some(at) = self.stations.largest().and_then(|share| self.stations.oldest(share)) else {
            return 0;
        };
        self.counters.evicted += 1;
        self.remove_slot(at)
    }
}

fn learned(station: Station, place: Place, seen: Instant) -> Slot {
    Slot { key: station, value: place, group: Some((place.port(), station.segment)), seen }
}

#[cfg(test)]
mod tests {
    use encap::field::MacAddr;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { size: 8, age: Duration::from_secs(300) };

    fn station(n: u64) -> Station {
        Station { segment: SegmentId((n % 3) as u32), mac: MacAddr::from_u64(0x0200_0000_0000 + n) }
    }

    fn port(n: u32) -> Place {
        Place::Port(PortId(n))
    }

    /// Endpoint `n` behind tunnel port 5.
    fn vtep(n: u8) -> Place {
        Place::Vtep { tunnel: PortId(5), address: [192, 0, 2, n].into() }
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_station_is_learned_refreshed_and_forgotten() {
        let mut fdb = Fdb::new(LIMITS);
        assert_eq!(fdb.learn(station(1), port(1), at(0)), Fdb::dependency(station(1)));
        assert_eq!(fdb.learn(station(1), port(1), at(200)), 0, "a refresh changes no decision");
        assert_eq!(fdb.lookup(station(1), at(500)), Some(port(1)));
        assert_eq!(fdb.lookup(station(1), at(501)), None, "too old, though not yet swept");
        assert_ne!(fdb.expire(at(501), 10), 0);
        assert!(fdb.is_empty());
    }

    #[test]
    fn a_station_moves_and_an_old_one_counts_as_new() {
        let mut fdb = Fdb::new(LIMITS);
        fdb.learn(station(1), port(1), at(0));
        assert_ne!(fdb.learn(station(1), port(2), at(1)), 0);
        assert_eq!((fdb.lookup(station(1), at(1)), fdb.counters().moved), (Some(port(2)), 1));
        assert_ne!(fdb.learn(station(1), port(2), at(1000)), 0, "flows may have decided by its absence");
    }

    #[test]
    fn a_station_moves_between_ports_and_vteps() {
        let mut fdb = Fdb::new(LIMITS);
        for place in [port(1), vtep(1), vtep(2), port(5), vtep(1)] {
            assert_eq!(fdb.learn(station(1), place, at(0)), Fdb::dependency(station(1)), "{place:?}");
            assert_eq!(fdb.learn(station(1), place, at(1)), 0, "{place:?}");
            assert_eq!(fdb.lookup(station(1), at(1)), Some(place));
        }
        assert_eq!((fdb.len(), fdb.counters().moved), (1, 4));
    }

    #[test]
    fn a_vtep_that_goes_takes_its_stations_and_a_tunnel_port_all_of_its_vteps() {
        let mut fdb = Fdb::new(LIMITS);
        fdb.set_static(&[(station(9), vtep(1))]);
        for (n, place) in [(1, vtep(1)), (2, vtep(1)), (3, vtep(2)), (4, port(1))] {
            fdb.learn(station(n), place, at(0));
        }
        let changed = Fdb::dependency(station(1)) | Fdb::dependency(station(2));
        assert_eq!(fdb.flush_vtep([192, 0, 2, 1].into()), Flushed { count: 2, changed });
        assert_eq!(fdb.flush_vtep([192, 0, 2, 1].into()), Flushed::default());
        assert_eq!(fdb.flush(Some(PortId(5))).count, 1);
        assert_eq!(
            (fdb.lookup(station(4), at(0)), fdb.lookup(station(9), at(0))),
            (Some(port(1)), Some(vtep(1)))
        );
    }

    /// What takes quadratic time does not end.
    #[test]
    fn a_controller_may_know_every_station() {
        let mut fdb = Fdb::new(Limits { size: 200_000, ..LIMITS });
        let mut entries: Vec<_> = (0..100_000).map(|n| (station(n), vtep((n % 100) as u8))).collect();
        fdb.set_static(&entries);
        assert_eq!(fdb.set_static(&entries), 0, "nothing changed");
        entries[77].1 = vtep(200);
        assert_eq!(fdb.set_static(&entries), Fdb::dependency(station(77)));
        entries.truncate(50_000);
        entries.push((station(1), vtep(201)));
        fdb.set_static(&entries);
        assert_eq!((fdb.len(), fdb.lookup(station(1), at(0))), (50_000, Some(vtep(1))), "the first counts");
    }

    #[test]
    fn the_port_that_holds_most_loses_its_oldest_entry() {
        let mut fdb = Fdb::new(LIMITS);
        fdb.learn(station(100), port(1), at(0));
        for n in 0..7 {
            fdb.learn(station(n), port(2), at(n + 1));
        }
        fdb.refresh(station(0), at(9));
        fdb.learn(station(101), port(3), at(10));
        assert_eq!(
            fdb.lookup(station(3), at(10)),
            None,
            "the oldest of port 2, in the segment that has most there"
        );
        assert_eq!(fdb.lookup(station(100), at(10)), Some(port(1)), "older, but of a small holder");
        assert_eq!((fdb.len(), fdb.counters().evicted), (8, 1));
    }

    #[test]
    fn beside_others_on_a_tunnel_port_a_tenant_pushes_out_its_own() {
        let mut fdb = Fdb::new(LIMITS);
        let tenant = |segment, n| Station { segment: SegmentId(segment), mac: station(n).mac };
        fdb.learn(tenant(1, 0), port(1), at(0));
        fdb.learn(tenant(1, 1), vtep(1), at(0));
        fdb.learn(tenant(2, 1), vtep(1), at(0));
        (10..40).for_each(|n| _ = fdb.learn(tenant(3, n), vtep(n as u8 % 2), at(n)));
        let known = |station| fdb.lookup(station, at(40)).is_some();
        assert!(known(tenant(1, 0)) && known(tenant(1, 1)) && known(tenant(2, 1)));
        assert_eq!((fdb.len(), fdb.counters().evicted), (8, 25));
        // Who has many segments is not spared for having little in each.
        (50..60).for_each(|n| _ = fdb.learn(tenant(n, 1), vtep(1), at(n.into())));
        assert_eq!(fdb.lookup(tenant(1, 0), at(60)), Some(port(1)));
    }

    #[test]
    fn static_entries_neither_age_nor_move_nor_make_room() {
        let mut fdb = Fdb::new(LIMITS);
        fdb.learn(station(1), port(1), at(0));
        assert_ne!(fdb.set_static(&[(station(1), port(9)), (station(2), port(9))]), 0);
        assert_eq!(fdb.learn(station(1), port(1), at(1)), 0);
        assert_eq!((fdb.lookup(station(1), at(9999)), fdb.counters().static_moves), (Some(port(9)), 1));
        for n in 10..30 {
            fdb.learn(station(n), port(2), at(2));
        }
        assert_eq!(fdb.flush(None).count, 6);
        assert_eq!(fdb.len(), 2);
        assert_ne!(fdb.set_static(&[(station(2), port(9))]), 0);
        assert_eq!(fdb.lookup(station(1), at(3)), None);
    }

    #[test]
    fn a_table_full_of_static_entries_learns_nothing() {
        let mut fdb = Fdb::new(LIMITS);
        let entries: Vec<_> = (0..8).map(|n| (station(n), port(1))).collect();
        fdb.set_static(&entries);
        assert_eq!((fdb.learn(station(9), port(2), at(0)), fdb.len(), fdb.is_closed()), (0, 8, true));
        fdb.set_static(&entries[1..]);
        assert!(!fdb.is_closed());
        fdb.learn(station(9), port(2), at(0));
        assert_eq!((fdb.len(), fdb.is_closed()), (8, false), "who was learned makes room");
    }

    #[test]
    fn limits_shrink_a_table_at_once() {
        let mut fdb = Fdb::new(LIMITS);
        for n in 0..8 {
            fdb.learn(station(n), port(n as u32 % 2), at(n));
        }
        assert_ne!(fdb.set_limits(Limits { size: 3, ..LIMITS }), 0);
        assert_eq!(fdb.len(), 3);
    }

    proptest! {
        /// Against a plain list: what is known, where, and that a change never goes unreported.
        #[test]
        fn the_table_is_a_bounded_map(steps in proptest::collection::vec((0u64..20, 0usize..6, 0u64..200), 1..200)) {
            let places = [port(0), port(1), vtep(1), vtep(2)];
            let mut fdb = Fdb::new(LIMITS);
            let mut now = at(0);
            for (n, by, wait) in steps {
                now = now + Duration::from_secs(wait);
                let before: Vec<_> = (0..20).map(|i| fdb.lookup(station(i), now)).collect();
                let changed = match by {
                    4 => fdb.expire(now, 2) | fdb.flush(Some(PortId(n as u32 % 6))).changed,
                    5 => fdb.flush_vtep([192, 0, 2, 1].into()).changed,
                    _ => fdb.learn(station(n), places[by], now),
                };
                for (i, was) in (0..20).zip(before) {
                    let is = fdb.lookup(station(i), now);
                    prop_assert!(is == was || changed & Fdb::dependency(station(i)) != 0);
                }
                prop_assert!(by >= 4 || fdb.lookup(station(n), now) == Some(places[by]));
                prop_assert!(by != 5 || fdb.entries(now).all(|e| e.place != vtep(1)));
                prop_assert!(fdb.len() <= LIMITS.size);
                let held: usize = fdb.stations.groups().map(|share| fdb.stations.held(share)).sum();
                prop_assert_eq!(held, fdb.len());
                prop_assert_eq!(fdb.entries(Instant::ZERO).count(), fdb.len());
            }
        }
    }
}
