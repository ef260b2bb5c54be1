//! Small identifiers: dense numbers the control plane hands out, never seen on a wire.

use std::fmt;

use encap::field::{MacAddr, VlanId};

/// A port of the switch: an index, unique over all bridges, stable while the port exists.
///
/// Not the OpenFlow port number, which is per bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PortId(pub u32);

impl PortId {
    /// The id as an index into a table of ports.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A bridge of the switch: an index, stable while the bridge exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BridgeId(pub u32);

impl BridgeId {
    /// The id as an index into a table of bridges.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A tenant's layer-2 domain inside one bridge. Segment n below 4096 is VLAN n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SegmentId(pub u32);

impl From<VlanId> for SegmentId {
    fn from(vlan: VlanId) -> Self {
        SegmentId(u32::from(vlan.get()))
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An address in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Station {
    /// The segment.
    pub segment: SegmentId,
    /// The address.
    pub mac: MacAddr,
}
