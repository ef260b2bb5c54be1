//! The segmentation map: which tenant network a frame on a wire belongs to, and how it is called there.
//!
//! A segment is a layer-2 domain of one bridge. What Open vSwitch needs flow rules for in `br-int`, `br-tun` and
//! `br-eth1` is one entry here: local VLAN (or none) ↔ VNI, GRE key, or provider VLAN.

use std::collections::HashMap;
use std::net::IpAddr;

use encap::field::{MacAddr, VlanId};
use flowtable::id::{BridgeId, PortId, SegmentId};

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its name, for people.
    pub name: String,
    /// Its bridge.
    pub bridge: BridgeId,
    /// Its number in the bridge: the local VLAN, or one that is none.
    pub id: SegmentId,
    /// How it reaches beyond this switch.
    pub network: Network,
    /// Are MAC addresses behind other endpoints, and those endpoints, learned from what they send?
    pub learning: bool,
    /// Is what comes from an address that is none of the peers dropped?
    pub strict_peers: bool,
    /// Who has which address: asked for in ARP or neighbour discovery, the switch answers.
    pub neighbours: HashMap<IpAddr, MacAddr>,
}

impl Segment {
    /// Is what was learned of this segment still true of it in its `new` form: is it the same network beyond this switch,
    /// and may everybody be in it who was?
    pub fn lives_on_in(&self, new: &Segment) -> bool {
        let same = match (&self.network, &new.network) {
            (
                Network::Tunnel { port, id, vteps, peers },
                Network::Tunnel { port: p, id: i, vteps: v, peers: q },
            ) => {
                let may_stay = !new.strict_peers || self.strict_peers && keeps(peers, q);
                (port, id) == (p, i) && may_stay && keeps(vteps, v)
            }
            (old, new) => old == new,
        };
        same && self.learning == new.learning
    }
}

/// Is everybody in `new` who was in `old`? Of equal ones that is found out at once.
fn keeps(old: &[IpAddr], new: &[IpAddr]) -> bool {
    old == new || old.iter().all(|address| new.contains(address))
}

/// How a segment reaches beyond this switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Not at all.
    Local,
    /// In tunnels to other endpoints.
    Tunnel {
        /// The flow-based tunnel port.
        port: PortId,
        /// VNI (24 bits) or GRE key (32 bits).
        id: u32,
        /// Who gets what all must get; without our own addresses.
        vteps: Vec<IpAddr>,
        /// Who may send with `strict_peers`: `vteps`, and those that static FDB entries name. Sorted.
        peers: Vec<IpAddr>,
    },
    /// As a VLAN of a shared wire.
    Provider {
        /// The port on that wire.
        uplink: PortId,
        /// The VLAN there; [`VlanId::NONE`]: untagged (a flat network).
        vlan: VlanId,
    },
}

/// Places in a list. The standard hasher would be a third of a translation, which asks for segments up to eight times
/// (bench `upcall`); this one is keyed as well.
type Index<K> = HashMap<K, usize, foldhash::fast::RandomState>;

/// All segments, by everything they are looked up by. Lookups are O(1).
#[derive(Debug, Default)]
pub struct Segments {
    all: Vec<Segment>,
    by_id: Index<(BridgeId, SegmentId)>,
    by_key: Index<(PortId, u32)>,
    by_wire: Index<(PortId, VlanId)>,
    uplinks: Index<PortId>,
}

impl Segments {
    /// The map of these segments, which control has found to be free of contradictions.
    pub fn new(all: Vec<Segment>) -> Self {
        let mut map = Segments::default();
        for (at, segment) in all.iter().enumerate() {
            map.by_id.insert((segment.bridge, segment.id), at);
            match segment.network {
                Network::Local => {}
                Network::Tunnel { port, id, .. } => drop(map.by_key.insert((port, id), at)),
                Network::Provider { uplink, vlan } => {
                    map.by_wire.insert((uplink, vlan), at);
                    *map.uplinks.entry(uplink).or_default() += 1;
                }
            }
        }
        Segments { all, ..map }
    }

    /// The segment with this number, if it is configured: a VLAN may do without.
    #[inline]
    pub fn get(&self, bridge: BridgeId, id: SegmentId) -> Option<&Segment> {
        self.by_id.get(&(bridge, id)).map(|&at| &self.all[at])
    }

    /// The segment that a flow-based tunnel port carries under this VNI or key.
    #[inline]
    pub fn in_tunnel(&self, port: PortId, id: u32) -> Option<&Segment> {
        self.by_key.get(&(port, id)).map(|&at| &self.all[at])
    }

    /// The segment that is this VLAN ([`VlanId::NONE`]: untagged) on the wire behind a port.
    #[inline]
    pub fn on_wire(&self, uplink: PortId, vlan: VlanId) -> Option<&Segment> {
        self.by_wire.get(&(uplink, vlan)).map(|&at| &self.all[at])
    }

    /// Is this a port to a provider's wire? It carries mapped VLANs only.
    #[inline]
    pub fn is_uplink(&self, port: PortId) -> bool {
        self.uplinks.contains_key(&port)
    }

    /// All, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.all.iter()
    }
}
