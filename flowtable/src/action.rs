//! What to do with a frame, and what to remember because of it: closed enums, decided once per flow.

use encap::field::{VlanId, VlanTag};

use crate::id::{BridgeId, PortId, SegmentId, Station};

/// One step of a flow. Steps run in order on the same frame; `Output` leaves the frame to the steps behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send the frame, as it is now, to a port.
    Output(PortId),
    /// Put a tag in front of the tags that are there.
    PushVlan(VlanTag),
    /// Take the outermost tag off.
    PopVlan,
    /// Change the VLAN id of the outermost tag; priority and drop-eligible stay.
    SetVid(VlanId),
    /// Count the frame as dropped for this reason. Always alone.
    Drop(DropReason),
}

/// A change of learned state that a flow causes, applied when it is made and again while it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// `station` lives behind `port`.
    Learn {
        /// The bridge that learns.
        bridge: BridgeId,
        /// The frame's source, in its segment.
        station: Station,
        /// Where the frame came in.
        port: PortId,
    },
    /// The frame is IGMP or MLD: read its payload into the multicast table. Never cached.
    Snoop {
        /// The bridge that snoops.
        bridge: BridgeId,
        /// The segment the frame belongs to.
        segment: SegmentId,
        /// Where the frame came in.
        port: PortId,
    },
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a frame was dropped. Closed: every frame that does not leave has exactly one of these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The name in counters, logs and `sluice drops`.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than an Ethernet header, or longer than the switch carries.
    Malformed => "malformed",
    /// The source address is a group address (IEEE 802.3 forbids it).
    SourceMulticast => "source-multicast",
    /// To an address that is for bridges, such as `01:80:c2:00:00:0x`, while `forward-bpdu` is off.
    Reserved => "reserved-address",
    /// The port, on the way in or out, does not carry this VLAN (802.1Q filtering).
    Vlan => "vlan",
    /// Nobody but the ingress port would get it.
    NoDestination => "no-destination",
    /// Between two `protected` ports.
    Protected => "protected",
    /// The `dot1q-tunnel` port does not carry this customer VLAN.
    CustomerVlan => "customer-vlan",
    /// Patch ports form a loop, or the pipeline is deeper than its limit.
    TooDeep => "too-deep",
    /// Arrived on a port that no bridge has (it was removed a moment ago).
    NoPort => "no-port",
    /// Bigger than the egress port's MTU and not to be cut.
    OverMtu => "over-mtu",
    /// The egress port is down or gone.
    PortDown => "port-down",
    /// The egress queue had no room.
    TxFull => "tx-full",
    /// The kernel refused the frame.
    TxError => "tx-error",
    /// The hand-off queue to the egress port's poller had no room.
    HandoffFull => "handoff-full",
    /// The frame pool was empty when a copy was due.
    NoFrame => "no-frame",
    /// The port spent its upcall budget.
    UpcallBudget => "upcall-budget",
    /// An action the frame cannot take (no headroom, or an offload that cannot be completed).
    Unsupported => "unsupported",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_in_order_and_have_distinct_names() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(DropReason::ALL.iter().filter(|r| r.name() == reason.name()).count(), 1);
        }
    }
}
