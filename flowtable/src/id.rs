//! Small identifiers: dense numbers the control plane hands out, never seen on a wire.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

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

/// A tenant's layer-2 domain inside one bridge. Segment n below [`SegmentId::VLANS`] is VLAN n; those above have no
/// local VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// How many segments are VLANs.
    pub const VLANS: u32 = 4096;

    /// The local VLAN; `None` for a segment without one.
    #[inline]
    pub fn vlan(self) -> Option<VlanId> {
        (self.0 < Self::VLANS).then(|| VlanId::from_tci(self.0 as u16))
    }
}

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    /// The segment.
    pub segment: SegmentId,
    /// The address.
    pub mac: MacAddr,
}

/// In two words, of which a hasher takes less time than of so many octets.
impl Hash for Station {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mac.to_u64());
        state.write_u32(self.segment.0);
    }
}

/// Where a station lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Behind a port.
    Port(PortId),
    /// Behind another tunnel endpoint.
    Vtep {
        /// The tunnel port that leads there.
        tunnel: PortId,
        /// The endpoint's address in the underlay.
        address: IpAddr,
    },
}

impl Place {
    /// The port that leads there.
    #[inline]
    pub const fn port(self) -> PortId {
        match self {
            Place::Port(port) | Place::Vtep { tunnel: port, .. } => port,
        }
    }
}

impl From<PortId> for Place {
    fn from(port: PortId) -> Self {
        Place::Port(port)
    }
}
