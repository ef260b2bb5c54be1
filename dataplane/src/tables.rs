//! The tables: everything `translate` may look at that the operator decides, as one immutable snapshot.
//!
//! Control compiles a new snapshot for every change and publishes it with a new generation; nobody edits one.

use std::sync::Arc;
use std::time::Duration;

use crate::segment::Segments;
use crate::tunnel::{Key, Tunnel, Tunnels};
use crate::underlay::Underlay;
use encap::field::{EtherType, MacAddr, VlanId};
use flowtable::id::{BridgeId, Place, PortId, SegmentId};

/// A snapshot. `bridges` and `ports` are indexed by [`BridgeId`] and [`PortId`]; removed ones leave a hole.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// By [`BridgeId`].
    pub bridges: Vec<Option<Bridge>>,
    /// By [`PortId`].
    pub ports: Vec<Option<PortEntry>>,
    /// The segmentation map. Shared, as it is big and seldom changes.
    pub segments: Arc<Segments>,
    /// Which tunnel port a decapsulated frame came in by.
    pub tunnels: Arc<Tunnels>,
    /// How outer frames reach their next hop.
    pub underlay: Arc<Underlay>,
}

impl Tables {
    /// The bridge with this id, if it exists.
    #[inline]
    pub fn bridge(&self, id: BridgeId) -> Option<&Bridge> {
        self.bridges.get(id.index())?.as_ref()
    }

    /// The port with this id, if it exists.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(id.index())?.as_ref()
    }
}

/// One bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name, for people.
    pub name: String,
    /// Its ports, in the order of their ids: who gets a flood.
    pub ports: Vec<PortId>,
    /// Forward frames to addresses that are for bridges like any others (`other_config:forward-bpdu`).
    pub forward_bpdu: bool,
    /// VLANs in which nothing is learned and everything floods (`flood_vlans`).
    pub flood_vlans: VlanSet,
    /// The learning table.
    pub fdb: FdbConfig,
    /// The multicast table; `None` with `mcast_snooping_enable` off.
    pub snooping: Option<SnoopingConfig>,
    /// 48-bit OpenFlow datapath id.
    pub datapath_id: u64,
    /// Entries that do not age and do not move.
    pub static_fdb: Vec<StaticEntry>,
}

/// Limits of a bridge's learning table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbConfig {
    /// After how long an unused entry goes (`other_config:mac-aging-time`, 15 s to 3,600 s, default 300 s).
    pub age: Duration,
    /// How many entries (`other_config:mac-table-size`, 10 to 1,000,000, default 8,192).
    pub size: usize,
}

/// A static FDB entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticEntry {
    /// The segment: a VLAN, or one without.
    pub segment: SegmentId,
    /// The address.
    pub mac: MacAddr,
    /// Where it lives.
    pub place: Place,
}

/// Multicast snooping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnoopingConfig {
    /// How many groups (`other_config:mcast-snooping-table-size`, default 2,048).
    pub size: usize,
    /// After how long a membership without reports goes (`other_config:mcast-snooping-aging-time`, 300 s).
    pub age: Duration,
    /// Send groups nobody joined to queriers only (`other_config:mcast-snooping-disable-flood-unregistered`).
    pub flood_unregistered: bool,
}

/// One port, as the slow path sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortEntry {
    /// Its name, for people.
    pub name: String,
    /// The bridge it belongs to.
    pub bridge: BridgeId,
    /// Its OpenFlow port number in that bridge, 1 to 0xfeff, or 0xfffe for the bridge's own.
    pub ofport: u16,
    /// Where its frames go.
    pub kind: PortKind,
    /// How it treats VLAN tags; of no meaning with a `segment`.
    pub vlan: VlanConfig,
    /// The one segment without local VLAN that it carries, untagged.
    pub segment: Option<SegmentId>,
    /// Never exchanges frames with another protected port (`protected`).
    pub protected: bool,
    /// Gets all multicast traffic (`other_config:mcast-snooping-flood`).
    pub mcast_flood: bool,
    /// Gets all membership reports (`other_config:mcast-snooping-flood-reports`).
    pub mcast_flood_reports: bool,
    /// The longest layer-3 packet it sends, in bytes: a frame may have an Ethernet header and tags on top.
    pub mtu: u16,
    /// Upcalls per second this port may cause; 0: no limit.
    pub upcall_rate: u32,
}

impl PortEntry {
    /// Is this a tunnel port that carries segments, each under its own key?
    pub fn is_flow_based(&self) -> bool {
        matches!(self.kind, PortKind::Tunnel(Tunnel { key: Key::Flow, .. }))
    }
}

/// Where a port's frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// To an attachment: queues owned by pollers.
    Attached,
    /// Into another bridge, as if received on the peer (`type=patch`, `options:peer`).
    Patch {
        /// The port at the other end.
        peer: PortId,
    },
    /// To another tunnel endpoint, behind outer headers (`type=vxlan`, `gre`, `geneve`).
    Tunnel(Tunnel),
}

/// How a port treats 802.1Q tags (ovs-vswitchd.conf.db(5), Port table, *VLAN Configuration*).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VlanConfig {
    /// `vlan_mode`.
    pub mode: VlanMode,
    /// `tag`: the access, native or service VLAN. [`VlanId::NONE`] in trunk mode.
    pub tag: VlanId,
    /// `trunks`; all VLANs if empty in the configuration.
    pub trunks: VlanSet,
    /// `cvlans`: customer VLANs a `dot1q-tunnel` port takes; all if empty in the configuration.
    pub cvlans: VlanSet,
    /// `other_config:qinq-ethtype`: the TPID a `dot1q-tunnel` port's service tag has on trunks.
    pub qinq_ethtype: EtherType,
    /// `other_config:priority-tags`.
    pub priority_tags: PriorityTags,
}

/// `vlan_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VlanMode {
    /// One VLAN, untagged.
    Access,
    /// Tagged only; untagged frames are VLAN 0.
    Trunk,
    /// A trunk, but for VLAN 0, whose untagged frames are VLAN `tag`; that VLAN leaves tagged.
    NativeTagged,
    /// The same, but that VLAN leaves untagged.
    NativeUntagged,
    /// Customer frames, tagged or not, travel inside service VLAN `tag`.
    Dot1qTunnel,
}

/// `other_config:priority-tags`: frames that leave without a VLAN may keep their priority in a tag with VLAN 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PriorityTags {
    /// No tag.
    Never,
    /// A tag if the priority is not zero.
    IfNonzero,
    /// A tag if the priority is not zero, or the frame came with one.
    Always,
}

/// A set of VLAN ids.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    /// No VLAN.
    pub fn empty() -> Self {
        VlanSet(Box::new([0; 64]))
    }

    /// Every VLAN, 0 to 4095.
    pub fn all() -> Self {
        VlanSet(Box::new([u64::MAX; 64]))
    }

    /// Adds one.
    pub fn insert(&mut self, vlan: VlanId) {
        self.0[usize::from(vlan.get()) / 64] |= 1 << (vlan.get() % 64);
    }

    /// Is it in?
    #[inline]
    pub fn contains(&self, vlan: VlanId) -> bool {
        self.0[usize::from(vlan.get()) / 64] >> (vlan.get() % 64) & 1 != 0
    }

    /// The ids in it, ascending.
    pub fn iter(&self) -> impl Iterator<Item = VlanId> + '_ {
        self.0.iter().enumerate().flat_map(|(word, &bits)| {
            // Each step takes the lowest bit off, so that a set of few costs little.
            let left = std::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
            let ids = left.take_while(|bits| *bits != 0).map(u64::trailing_zeros);
            ids.map(move |bit| VlanId::from_tci((64 * word) as u16 + bit as u16))
        })
    }
}

impl FromIterator<VlanId> for VlanSet {
    fn from_iter<I: IntoIterator<Item = VlanId>>(vlans: I) -> Self {
        let mut set = VlanSet::empty();
        vlans.into_iter().for_each(|v| set.insert(v));
        set
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter().map(VlanId::get)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_lists_what_is_in_it_ascending() {
        let ids = [0, 1, 63, 64, 100, 4094, 4095];
        let set: VlanSet = ids.iter().rev().map(|id| VlanId::from_tci(*id)).collect();
        assert_eq!(set.iter().map(VlanId::get).collect::<Vec<_>>(), ids);
        assert_eq!(VlanSet::all().iter().count(), 4096);
        assert_eq!(VlanSet::empty().iter().count(), 0);
    }
}
