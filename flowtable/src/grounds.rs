//! What of the configuration a decision rests on: a small set that never says no where it should say yes.
//!
//! A change of the tables concerns only decisions that looked at something it changed. Each thing looked at is one of 128
//! bits. Ports and segments take them by turns, as they are numbered by turns: the first 40 ports and 64 segments have a bit
//! of their own each. That two things share a bit costs a needless second look at the flows of the one when the other
//! changes.

use std::net::IpAddr;
use std::ops::BitOrAssign;

use crate::flow::dependency;
use crate::id::{BridgeId, PortId, SegmentId};

/// Bits of ports.
const PORTS: u32 = 40;
/// Bits of bridges, and as many of their lists of ports.
const BRIDGES: u32 = 8;
/// Bits of other hosts in the underlay.
const HOSTS: u64 = 6;

/// A thing that a decision may rest on. That it is not there is a ground, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// A segment of a bridge.
    Segment(BridgeId, SegmentId),
    /// Which segment has this number on the wire, or in the tunnels, behind a port.
    Number(PortId, u32),
    /// A port.
    Port(PortId),
    /// A bridge, but for its ports.
    Bridge(BridgeId),
    /// Which ports a bridge has.
    Members(BridgeId),
    /// A neighbour of ours in the underlay, or what the path to an endpoint carries.
    Host(IpAddr),
    /// Our own addresses.
    Endpoints,
    /// Routes of the underlay, and which tunnels there are.
    Routes,
}

/// A set of grounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grounds {
    segments: u64,
    others: u64,
}

impl Grounds {
    /// Rests on nothing.
    pub const NONE: Grounds = Grounds { segments: 0, others: 0 };

    /// Adds one.
    #[inline]
    pub fn add(&mut self, ground: Ground) {
        match ground {
            Ground::Segment(bridge, segment) => self.segments |= 1 << (segment.0.wrapping_add(bridge.0) % 64),
            Ground::Number(port, number) => {
                self.segments |= dependency(u64::from(port.0) << 32 | u64::from(number))
            }
            Ground::Port(port) => self.others |= 1 << (port.0 % PORTS),
            Ground::Bridge(bridge) => self.others |= 1 << (PORTS + bridge.0 % BRIDGES),
            Ground::Members(bridge) => self.others |= 1 << (PORTS + BRIDGES + bridge.0 % BRIDGES),
            Ground::Host(address) => self.others |= 1 << (56 + host(address) % HOSTS),
            Ground::Endpoints => self.others |= 1 << 62,
            Ground::Routes => self.others |= 1 << 63,
        }
    }

    pub(crate) fn to_words(self) -> [u64; 2] {
        [self.segments, self.others]
    }

    pub(crate) fn from_words([segments, others]: [u64; 2]) -> Grounds {
        Grounds { segments, others }
    }

    /// May both have one in common?
    #[inline]
    pub fn meet(self, others: Grounds) -> bool {
        (self.segments & others.segments) | (self.others & others.others) != 0
    }
}

fn host(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits() as u64 ^ (v6.to_bits() >> 64) as u64,
    }
}

impl BitOrAssign for Grounds {
    #[inline]
    fn bitor_assign(&mut self, others: Grounds) {
        self.segments |= others.segments;
        self.others |= others.others;
    }
}

impl FromIterator<Ground> for Grounds {
    fn from_iter<I: IntoIterator<Item = Ground>>(grounds: I) -> Self {
        let mut set = Grounds::NONE;
        grounds.into_iter().for_each(|ground| set.add(ground));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(ground: Ground) -> Grounds {
        [ground].into_iter().collect()
    }

    #[test]
    fn the_first_of_each_kind_are_told_apart_and_none_is_forgotten() {
        let host = Ground::Host([192, 0, 2, 1].into());
        let mut all = vec![host, Ground::Endpoints, Ground::Routes];
        all.extend((0..40).map(|n| Ground::Port(PortId(n))));
        all.extend((0..8).flat_map(|n| [Ground::Bridge(BridgeId(n)), Ground::Members(BridgeId(n))]));
        all.extend((0..64).map(|n| Ground::Segment(BridgeId(0), SegmentId(n))));
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(only(*a).meet(only(*b)), i == j, "{a:?} and {b:?}");
            }
            assert!(!only(*a).meet(Grounds::NONE));
        }
        let whole: Grounds = all.iter().copied().collect();
        for n in [0, 40, 1 << 24, u32::MAX] {
            let more = [
                Ground::Number(PortId(n), n),
                Ground::Port(PortId(n)),
                Ground::Segment(BridgeId(n), SegmentId(n)),
                Ground::Members(BridgeId(n)),
            ];
            assert!(more.into_iter().all(|ground| whole.meet(only(ground))), "{n}");
        }
    }
}
