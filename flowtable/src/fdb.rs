//! The forwarding database of one bridge: in which segment a MAC address lives behind which port
//! (IEEE 802.1D/Q learning, as ovs-vswitchd.conf.db(5) bounds it).
//!
//! Entries lie in a slab, found by hash; the entries of each port form a list from the least to the most
//! recently seen. So lookup, learning and a move take constant time, and when the table is full the port that
//! holds most loses its oldest entry in O(log ports): one tenant can fill only what others leave free.
//!
//! Every change answers with the [`dependency`] bits of the entries it touched, so that the flows that looked
//! them up can be translated again.

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::flow::dependency;
use crate::id::{PortId, Station};
use crate::time::Instant;

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
    pub port: PortId,
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

/// No slot: the end of a list.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Slot {
    station: Station,
    port: PortId,
    seen: Instant,
    origin: Origin,
    older: u32,
    newer: u32,
}

/// The learned entries of one port, by age. Static entries are in no list.
#[derive(Debug, Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
    len: usize,
}

const EMPTY: List = List { oldest: NONE, newest: NONE, len: 0 };

/// The table of one bridge.
#[derive(Debug)]
pub struct Fdb {
    limits: Limits,
    hasher: DefaultHashBuilder,
    index: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    ports: HashMap<PortId, List>,
    /// Ports by how many entries they hold.
    holders: BTreeSet<(usize, PortId)>,
    counters: Counters,
}

impl Fdb {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Fdb {
            limits,
            hasher: DefaultHashBuilder::default(),
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            ports: HashMap::new(),
            holders: BTreeSet::new(),
            counters: Counters::default(),
        }
    }

    /// The dependency bit of whoever looks this station up.
    #[inline]
    pub fn dependency(station: Station) -> u64 {
        dependency(station.mac.to_u64() ^ u64::from(station.segment.0) << 48)
    }

    /// Where the station lives, unless its entry is too old.
    #[inline]
    pub fn lookup(&self, station: Station, now: Instant) -> Option<PortId> {
        let slot = &self.slots[self.find(station)? as usize];
        (!self.is_old(slot, now)).then_some(slot.port)
    }

    /// Does the station have a static entry?
    pub fn is_static(&self, station: Station) -> bool {
        self.find(station).is_some_and(|at| self.slots[at as usize].origin == Origin::Static)
    }

    /// A frame from the station came in by `port`. Dependency bits of what changed; 0 if nothing but age.
    pub fn learn(&mut self, station: Station, port: PortId, now: Instant) -> u64 {
        let Some(at) = self.find(station) else {
            if self.index.len() >= self.limits.size && self.holders.is_empty() {
                return 0; // full of static entries
            }
            let evicted = self.make_room();
            self.counters.learned += 1;
            self.insert(station, port, now, Origin::Learned);
            return evicted | Self::dependency(station);
        };
        let slot = self.slots[at as usize];
        let was_old = self.is_old(&slot, now);
        match slot.origin {
            Origin::Static => {
                self.counters.static_moves += u64::from(slot.port != port);
                return 0;
            }
            Origin::Learned if slot.port == port => self.touch(at, now),
            Origin::Learned => {
                self.unlink(at);
                self.slots[at as usize].port = port;
                self.slots[at as usize].seen = now;
                self.link(at);
            }
        }
        self.counters.moved += u64::from(slot.port != port);
        if slot.port != port || was_old { Self::dependency(station) } else { 0 }
    }

    /// The station was seen at `when` where it is known to be.
    pub fn refresh(&mut self, station: Station, when: Instant) {
        let Some(at) = self.find(station) else { return };
        let slot = &self.slots[at as usize];
        if slot.origin == Origin::Learned && slot.seen < when {
            self.touch(at, when);
        }
    }

    /// Makes these the static entries, in place of those before. Dependency bits of what changed.
    pub fn set_static(&mut self, entries: &[(Station, PortId)]) -> u64 {
        let stale = |slot: &Slot| !entries.contains(&(slot.station, slot.port));
        let old: Vec<u32> =
            self.all().filter(|(_, s)| s.origin == Origin::Static && stale(s)).map(|(at, _)| at).collect();
        let mut changed = old.into_iter().fold(0, |bits, at| bits | self.remove_slot(at));
        for &(station, port) in entries {
            match self.find(station) {
                Some(at) if self.slots[at as usize].origin == Origin::Static => continue,
                Some(at) => changed |= self.remove_slot(at),
                None => changed |= self.make_room(),
            }
            self.insert(station, port, Instant::ZERO, Origin::Static);
            changed |= Self::dependency(station);
        }
        changed
    }

    /// Removes a learned entry. Its dependency bit; 0 if there is none.
    pub fn remove(&mut self, station: Station) -> u64 {
        match self.find(station) {
            Some(at) if self.slots[at as usize].origin == Origin::Learned => self.remove_slot(at),
            _ => 0,
        }
    }

    /// Removes all learned entries, or those of one port.
    pub fn flush(&mut self, port: Option<PortId>) -> Flushed {
        let ports: Vec<PortId> = match port {
            Some(port) => vec![port],
            None => self.ports.keys().copied().collect(),
        };
        let mut flushed = Flushed::default();
        for port in ports {
            while let Some(at) = self.oldest_of(port) {
                flushed.changed |= self.remove_slot(at);
                flushed.count += 1;
            }
        }
        flushed
    }

    /// Removes at most `budget` entries that are too old. Their dependency bits. O(ports + removed).
    pub fn expire(&mut self, now: Instant, budget: usize) -> u64 {
        let ports: Vec<PortId> = self.ports.keys().copied().collect();
        let (mut changed, mut left) = (0, budget);
        for port in ports {
            while let Some(at) = self.oldest_of(port) {
                if left == 0 || !self.is_old(&self.slots[at as usize], now) {
                    break;
                }
                changed |= self.remove_slot(at);
                self.counters.expired += 1;
                left -= 1;
            }
        }
        changed
    }

    /// Changes the limits; entries above them go. Their dependency bits.
    pub fn set_limits(&mut self, limits: Limits) -> u64 {
        self.limits = limits;
        let mut changed = 0;
        while self.index.len() > limits.size {
            match self.evict() {
                0 => break,
                bits => changed |= bits,
            }
        }
        changed
    }

    /// All entries that are not too old, in no order.
    pub fn entries(&self, now: Instant) -> impl Iterator<Item = Entry> + '_ {
        self.all().filter(move |(_, slot)| !self.is_old(slot, now)).map(move |(_, slot)| Entry {
            station: slot.station,
            port: slot.port,
            age: if slot.origin == Origin::Static { Duration::ZERO } else { now.since(slot.seen) },
            origin: slot.origin,
        })
    }

    /// How many entries there are, old ones included.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn is_old(&self, slot: &Slot, now: Instant) -> bool {
        slot.origin == Origin::Learned && now.since(slot.seen) > self.limits.age
    }

    fn all(&self) -> impl Iterator<Item = (u32, &Slot)> + '_ {
        self.index.iter().map(|&at| (at, &self.slots[at as usize]))
    }

    #[inline]
    fn find(&self, station: Station) -> Option<u32> {
        let hash = self.hasher.hash_one(station);
        self.index.find(hash, |&at| self.slots[at as usize].station == station).copied()
    }

    fn insert(&mut self, station: Station, port: PortId, seen: Instant, origin: Origin) {
        let slot = Slot { station, port, seen, origin, older: NONE, newer: NONE };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        let hash = |at: &u32| hasher.hash_one(slots[*at as usize].station);
        self.index.insert_unique(hash(&at), at, hash);
        self.link(at);
    }

    fn remove_slot(&mut self, at: u32) -> u64 {
        let station = self.slots[at as usize].station;
        self.unlink(at);
        let hash = self.hasher.hash_one(station);
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == at) {
            entry.remove();
        }
        self.free.push(at);
        Self::dependency(station)
    }

    fn make_room(&mut self) -> u64 {
        if self.index.len() >= self.limits.size { self.evict() } else { 0 }
    }

    /// The port that holds most loses its oldest entry.
    fn evict(&mut self) -> u64 {
        let Some(&(_, port)) = self.holders.last() else { return 0 };
        let Some(at) = self.oldest_of(port) else { return 0 };
        self.counters.evicted += 1;
        self.remove_slot(at)
    }

    fn oldest_of(&self, port: PortId) -> Option<u32> {
        self.ports.get(&port).map(|list| list.oldest)
    }

    fn list(&self, port: PortId) -> List {
        self.ports.get(&port).copied().unwrap_or(EMPTY)
    }

    /// Puts a slot at the young end of its port's list.
    fn link(&mut self, at: u32) {
        let Slot { port, origin, .. } = self.slots[at as usize];
        if origin == Origin::Learned {
            let list = self.append(self.list(port), at);
            self.store(port, list);
        }
    }

    fn unlink(&mut self, at: u32) {
        let Slot { port, origin, .. } = self.slots[at as usize];
        if origin == Origin::Learned {
            let list = self.detach(self.list(port), at);
            self.store(port, list);
        }
    }

    /// Notes that a learned slot was seen. Its port holds as many as before.
    fn touch(&mut self, at: u32, seen: Instant) {
        let slot = &mut self.slots[at as usize];
        slot.seen = seen;
        let port = slot.port;
        let list = self.detach(self.list(port), at);
        let list = self.append(list, at);
        self.ports.insert(port, list);
    }

    fn append(&mut self, list: List, at: u32) -> List {
        self.slots[at as usize].older = list.newest;
        self.slots[at as usize].newer = NONE;
        let oldest = match list.newest {
            NONE => at,
            newest => {
                self.slots[newest as usize].newer = at;
                list.oldest
            }
        };
        List { oldest, newest: at, len: list.len + 1 }
    }

    fn detach(&mut self, list: List, at: u32) -> List {
        let Slot { older, newer, .. } = self.slots[at as usize];
        let mut list = List { len: list.len - 1, ..list };
        match older {
            NONE => list.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => list.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        list
    }

    fn store(&mut self, port: PortId, list: List) {
        let old = match list.len {
            0 => self.ports.remove(&port),
            _ => self.ports.insert(port, list),
        };
        self.holders.remove(&(old.map_or(0, |l| l.len), port));
        if list.len > 0 {
            self.holders.insert((list.len, port));
        }
    }
}

#[cfg(test)]
mod tests {
    use encap::field::MacAddr;
    use proptest::prelude::*;

    use super::*;
    use crate::id::SegmentId;

    const LIMITS: Limits = Limits { size: 8, age: Duration::from_secs(300) };

    fn station(n: u64) -> Station {
        Station { segment: SegmentId((n % 3) as u32), mac: MacAddr::from_u64(0x0200_0000_0000 + n) }
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_station_is_learned_refreshed_and_forgotten() {
        let mut fdb = Fdb::new(LIMITS);
        assert_eq!(fdb.learn(station(1), PortId(1), at(0)), Fdb::dependency(station(1)));
        assert_eq!(fdb.learn(station(1), PortId(1), at(200)), 0, "a refresh changes no decision");
        assert_eq!(fdb.lookup(station(1), at(500)), Some(PortId(1)));
        assert_eq!(fdb.lookup(station(1), at(501)), None, "too old, though not yet swept");
        assert_ne!(fdb.expire(at(501), 10), 0);
        assert!(fdb.is_empty());
    }

    #[test]
    fn a_station_moves_and_an_old_one_counts_as_new() {
        let mut fdb = Fdb::new(LIMITS);
        fdb.learn(station(1), PortId(1), at(0));
        assert_ne!(fdb.learn(station(1), PortId(2), at(1)), 0);
        assert_eq!((fdb.lookup(station(1), at(1)), fdb.counters().moved), (Some(PortId(2)), 1));
        assert_ne!(fdb.learn(station(1), PortId(2), at(1000)), 0, "flows may have decided by its absence");
    }

    #[test]
    fn the_port_that_holds_most_loses_its_oldest_entry() {
        let mut fdb = Fdb::new(LIMITS);
        fdb.learn(station(100), PortId(1), at(0));
        for n in 0..7 {
            fdb.learn(station(n), PortId(2), at(n + 1));
        }
        fdb.refresh(station(0), at(9));
        fdb.learn(station(101), PortId(3), at(10));
        assert_eq!(fdb.lookup(station(1), at(10)), None, "the oldest of port 2");
        assert_eq!(fdb.lookup(station(100), at(10)), Some(PortId(1)), "older, but of a small holder");
        assert_eq!((fdb.len(), fdb.counters().evicted), (8, 1));
    }

    #[test]
    fn static_entries_neither_age_nor_move_nor_make_room() {
        let mut fdb = Fdb::new(LIMITS);
        fdb.learn(station(1), PortId(1), at(0));
        assert_ne!(fdb.set_static(&[(station(1), PortId(9)), (station(2), PortId(9))]), 0);
        assert_eq!(fdb.learn(station(1), PortId(1), at(1)), 0);
        assert_eq!((fdb.lookup(station(1), at(9999)), fdb.counters().static_moves), (Some(PortId(9)), 1));
        for n in 10..30 {
            fdb.learn(station(n), PortId(2), at(2));
        }
        assert_eq!(fdb.flush(None).count, 6);
        assert_eq!(fdb.len(), 2);
        assert_ne!(fdb.set_static(&[(station(2), PortId(9))]), 0);
        assert_eq!(fdb.lookup(station(1), at(3)), None);
    }

    #[test]
    fn a_table_full_of_static_entries_learns_nothing() {
        let mut fdb = Fdb::new(LIMITS);
        let entries: Vec<_> = (0..8).map(|n| (station(n), PortId(1))).collect();
        fdb.set_static(&entries);
        assert_eq!((fdb.learn(station(9), PortId(2), at(0)), fdb.len()), (0, 8));
    }

    #[test]
    fn limits_shrink_a_table_at_once() {
        let mut fdb = Fdb::new(LIMITS);
        for n in 0..8 {
            fdb.learn(station(n), PortId(n as u32 % 2), at(n));
        }
        assert_ne!(fdb.set_limits(Limits { size: 3, ..LIMITS }), 0);
        assert_eq!(fdb.len(), 3);
    }

    proptest! {
        /// Against a plain list: what is known, where, and that a change never goes unreported.
        #[test]
        fn the_table_is_a_bounded_map(steps in proptest::collection::vec((0u64..20, 0u32..4, 0u64..200), 1..200)) {
            let mut fdb = Fdb::new(LIMITS);
            let mut now = at(0);
            for (n, port, wait) in steps {
                now = now + Duration::from_secs(wait);
                let before: Vec<_> = (0..20).map(|i| fdb.lookup(station(i), now)).collect();
                let changed = match port {
                    3 => fdb.expire(now, 2) | fdb.flush(Some(PortId(n as u32 % 3))).changed,
                    _ => fdb.learn(station(n), PortId(port), now),
                };
                for (i, was) in (0..20).zip(before) {
                    let is = fdb.lookup(station(i), now);
                    prop_assert!(is == was || changed & Fdb::dependency(station(i)) != 0);
                }
                prop_assert!(port == 3 || fdb.lookup(station(n), now) == Some(PortId(port)));
                prop_assert!(fdb.len() <= LIMITS.size);
                let held: usize = fdb.ports.values().map(|l| l.len).sum();
                prop_assert_eq!((held, fdb.holders.len()), (fdb.len(), fdb.ports.len()));
                prop_assert_eq!(fdb.entries(Instant::ZERO).count(), fdb.len());
            }
        }
    }
}
