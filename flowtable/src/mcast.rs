//! The multicast table of one bridge: who wants which group, and where the queriers are, as IGMP and MLD
//! snooping learn it (RFC 4541; limits and times as in ovs-vswitchd.conf.db(5)).
//!
//! Lookup takes constant time and a copy of the group's ports. When the table is full the group that was
//! reported longest ago goes, in O(log groups). Changes answer with dependency bits, as the FDB's do.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::flow::dependency;
use crate::id::{PortId, SegmentId};
use crate::time::Instant;

/// A multicast group address.
pub type Group = IpAddr;

/// How long a port counts as leading to a querier after its last query (`MCAST_MROUTER_PORT_IDLE_TIME` in OVS).
pub const QUERIER_AGE: Duration = Duration::from_secs(180);

/// How big a table may get and how old its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most groups.
    pub size: usize,
    /// After how long a membership that is not reported goes.
    pub age: Duration,
}

/// A port's part in a group, or as the way to a querier, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The segment.
    pub segment: SegmentId,
    /// The group; `None` for a querier.
    pub group: Option<Group>,
    /// The port.
    pub port: PortId,
    /// Since when it was not heard of.
    pub age: Duration,
}

/// Ports and when each was last heard of.
type Ports = Vec<(PortId, Instant)>;

/// The members of a group.
#[derive(Debug, Default)]
struct Members {
    ports: Ports,
    /// The last report: its place in `order`.
    reported: Instant,
}

/// The table of one bridge.
#[derive(Debug)]
pub struct McastTable {
    limits: Limits,
    groups: HashMap<(SegmentId, Group), Members>,
    /// Groups by their last report.
    order: BTreeSet<(Instant, SegmentId, Group)>,
    queriers: HashMap<SegmentId, Ports>,
}

impl McastTable {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        McastTable { limits, groups: HashMap::new(), order: BTreeSet::new(), queriers: HashMap::new() }
    }

    /// The dependency bit of whoever looks this group up.
    pub fn dependency(segment: SegmentId, group: Group) -> u64 {
        bit((segment, group))
    }

    /// The dependency bit of whoever looks for queriers.
    pub fn querier_dependency(segment: SegmentId) -> u64 {
        bit(segment)
    }

    /// The ports that want a group; `None` if nobody reported it.
    pub fn lookup(&self, segment: SegmentId, group: Group, now: Instant) -> Option<Vec<PortId>> {
        let members = self.groups.get(&(segment, group))?;
        let ports = fresh(&members.ports, now, self.limits.age);
        (!ports.is_empty()).then_some(ports)
    }

    /// The ports that lead to queriers.
    pub fn queriers(&self, segment: SegmentId, now: Instant) -> Vec<PortId> {
        self.queriers.get(&segment).map_or_else(Vec::new, |ports| fresh(ports, now, QUERIER_AGE))
    }

    /// Somebody behind `port` wants the group. Dependency bits of what changed.
    pub fn report(&mut self, segment: SegmentId, group: Group, port: PortId, now: Instant) -> u64 {
        let mut changed = 0;
        if !self.groups.contains_key(&(segment, group)) && self.groups.len() >= self.limits.size {
            changed |= self.evict();
        }
        let members = self.groups.entry((segment, group)).or_default();
        self.order.remove(&(members.reported, segment, group));
        self.order.insert((now, segment, group));
        members.reported = now;
        let is_news = hear(&mut members.ports, port, now, self.limits.age);
        changed | if is_news { Self::dependency(segment, group) } else { 0 }
    }

    /// Nobody behind `port` wants the group any more. Dependency bits of what changed.
    pub fn leave(&mut self, segment: SegmentId, group: Group, port: PortId) -> u64 {
        let Some(members) = self.groups.get_mut(&(segment, group)) else { return 0 };
        let before = members.ports.len();
        members.ports.retain(|(p, _)| *p != port);
        if members.ports.len() == before {
            return 0;
        }
        if members.ports.is_empty() {
            self.remove(segment, group);
        }
        Self::dependency(segment, group)
    }

    /// A query came in by `port`. Dependency bits of what changed.
    pub fn query(&mut self, segment: SegmentId, port: PortId, now: Instant) -> u64 {
        let is_news = hear(self.queriers.entry(segment).or_default(), port, now, QUERIER_AGE);
        if is_news { Self::querier_dependency(segment) } else { 0 }
    }

    /// Removes what is too old, looking at no more than `budget` groups. Dependency bits of what changed.
    pub fn expire(&mut self, now: Instant, budget: usize) -> u64 {
        let age = self.limits.age;
        let old = |(_, heard): &(PortId, Instant), age| now.since(*heard) > age;
        let candidates: Vec<_> = self.order.iter().take(budget).map(|&(_, s, g)| (s, g)).collect();
        let mut changed = 0;
        for (segment, group) in candidates {
            let Some(members) = self.groups.get_mut(&(segment, group)) else { continue };
            let before = members.ports.len();
            members.ports.retain(|port| !old(port, age));
            if members.ports.len() != before {
                changed |= Self::dependency(segment, group);
            }
            if members.ports.is_empty() {
                self.remove(segment, group);
            }
        }
        self.queriers.retain(|segment, ports| {
            let before = ports.len();
            ports.retain(|port| !old(port, QUERIER_AGE));
            if ports.len() != before {
                changed |= Self::querier_dependency(*segment);
            }
            !ports.is_empty()
        });
        changed
    }

    /// Forgets a port, or everything. Dependency bits of what changed.
    pub fn flush(&mut self, port: Option<PortId>) -> u64 {
        let gone: Vec<_> = self.groups.keys().copied().collect();
        let ports_of = |members: &Members| members.ports.iter().map(|(p, _)| *p).collect::<Vec<_>>();
        let mut changed = 0;
        for (segment, group) in gone {
            let members = self.groups.get(&(segment, group)).map(ports_of).unwrap_or_default();
            for member in members.into_iter().filter(|m| port.is_none_or(|p| p == *m)) {
                changed |= self.leave(segment, group, member);
            }
        }
        self.queriers.retain(|segment, ports| {
            let before = ports.len();
            ports.retain(|(p, _)| port.is_some_and(|gone| gone != *p));
            if ports.len() != before {
                changed |= Self::querier_dependency(*segment);
            }
            !ports.is_empty()
        });
        changed
    }

    /// Changes the limits; the oldest groups above them go. Dependency bits of what changed.
    pub fn set_limits(&mut self, limits: Limits) -> u64 {
        self.limits = limits;
        let above = self.groups.len().saturating_sub(limits.size);
        (0..above).fold(0, |changed, _| changed | self.evict())
    }

    /// All members and queriers that are not too old, in no order.
    pub fn entries(&self, now: Instant) -> impl Iterator<Item = Entry> + '_ {
        let entry = move |segment, group, &(port, heard): &(PortId, Instant)| {
            let age = now.since(heard);
            Entry { segment, group, port, age }
        };
        let members = self.groups.iter().flat_map(move |(&(segment, group), members)| {
            members.ports.iter().map(move |port| entry(segment, Some(group), port))
        });
        let queriers = self.queriers.iter();
        let queriers =
            queriers.flat_map(move |(&segment, ports)| ports.iter().map(move |p| entry(segment, None, p)));
        let limit = |e: &Entry| if e.group.is_some() { self.limits.age } else { QUERIER_AGE };
        members.chain(queriers).filter(move |e| e.age <= limit(e))
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// True without groups.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn remove(&mut self, segment: SegmentId, group: Group) {
        if let Some(members) = self.groups.remove(&(segment, group)) {
            self.order.remove(&(members.reported, segment, group));
        }
    }

    fn evict(&mut self) -> u64 {
        let Some(&(_, segment, group)) = self.order.first() else { return 0 };
        self.remove(segment, group);
        Self::dependency(segment, group)
    }
}

/// A dependency bit must be the same for every table and run, so its hash has no random seed.
fn bit(name: impl Hash) -> u64 {
    dependency(FixedState::with_seed(0).hash_one(name))
}

fn fresh(ports: &Ports, now: Instant, age: Duration) -> Vec<PortId> {
    ports.iter().filter(|(_, heard)| now.since(*heard) <= age).map(|(port, _)| *port).collect()
}

/// Notes that a port was heard of. True if it was not fresh before.
fn hear(ports: &mut Ports, port: PortId, now: Instant, age: Duration) -> bool {
    match ports.iter_mut().find(|(p, _)| *p == port) {
        Some((_, heard)) => now.since(std::mem::replace(heard, now)) > age,
        None => {
            ports.push((port, now));
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VLAN: SegmentId = SegmentId(10);
    const LIMITS: Limits = Limits { size: 4, age: Duration::from_secs(300) };

    fn group(n: u8) -> Group {
        IpAddr::from([239, 1, 1, n])
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn members_join_stay_by_reporting_and_leave() {
        let mut table = McastTable::new(LIMITS);
        assert_eq!(table.lookup(VLAN, group(1), at(0)), None);
        assert_ne!(table.report(VLAN, group(1), PortId(1), at(0)), 0);
        assert_ne!(table.report(VLAN, group(1), PortId(2), at(100)), 0);
        assert_eq!(table.report(VLAN, group(1), PortId(1), at(200)), 0, "nothing new");
        assert_eq!(table.lookup(VLAN, group(1), at(401)), Some(vec![PortId(1)]));
        assert_eq!(table.lookup(SegmentId(11), group(1), at(0)), None, "another VLAN");
        assert_ne!(table.leave(VLAN, group(1), PortId(1)), 0);
        assert_eq!(table.leave(VLAN, group(1), PortId(1)), 0);
        assert_ne!(table.expire(at(401), 10), 0);
        assert!(table.is_empty() && table.order.is_empty());
    }

    #[test]
    fn queriers_are_remembered_for_three_minutes() {
        let mut table = McastTable::new(LIMITS);
        assert_ne!(table.query(VLAN, PortId(3), at(0)), 0);
        assert_eq!(table.query(VLAN, PortId(3), at(60)), 0);
        assert_eq!(table.queriers(VLAN, at(240)), [PortId(3)]);
        assert_eq!(table.queriers(VLAN, at(241)), []);
        assert_ne!(table.expire(at(241), 10), 0);
    }

    #[test]
    fn a_full_table_forgets_the_group_reported_longest_ago() {
        let mut table = McastTable::new(LIMITS);
        for n in 1..=4 {
            table.report(VLAN, group(n), PortId(1), at(n.into()));
        }
        table.report(VLAN, group(1), PortId(1), at(5));
        assert_ne!(
            table.report(VLAN, group(9), PortId(1), at(6)) & McastTable::dependency(VLAN, group(2)),
            0
        );
        assert_eq!(table.lookup(VLAN, group(2), at(6)), None);
        assert!(table.lookup(VLAN, group(1), at(6)).is_some());
        assert_eq!((table.len(), table.order.len()), (4, 4));
    }

    #[test]
    fn a_port_that_goes_leaves_everything() {
        let mut table = McastTable::new(LIMITS);
        table.report(VLAN, group(1), PortId(1), at(0));
        table.report(VLAN, group(1), PortId(2), at(0));
        table.query(VLAN, PortId(1), at(0));
        assert_ne!(table.flush(Some(PortId(1))), 0);
        assert_eq!(table.lookup(VLAN, group(1), at(0)), Some(vec![PortId(2)]));
        assert_eq!(table.queriers(VLAN, at(0)), []);
        assert_ne!(table.flush(None), 0);
        assert_eq!(table.entries(at(0)).count(), 0);
    }
}
