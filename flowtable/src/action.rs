//! What to do with a frame, and what to remember because of it: closed enums, decided once per flow.

use std::net::IpAddr;

use encap::field::{MacAddr, VlanId, VlanTag};
use encap::template::Template;
use encap::tunnel::TunnelKind;

use crate::id::{BridgeId, Place, PortId, SegmentId, Station};

/// One step of a flow. Steps run in order on the same frame; `Output` and `Encap` leave the frame to the steps
/// behind them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send the frame, as it is now, to a port.
    Output(PortId),
    /// Send the frame, as it is now, through a tunnel.
    Encap(Box<Encap>),
    /// Put a tag in front of the tags that are there.
    PushVlan(VlanTag),
    /// Take the outermost tag off.
    PopVlan,
    /// Change the VLAN id of the outermost tag; priority and drop-eligible stay.
    SetVid(VlanId),
    /// Set the congestion notification of the IP header, 0 to 3 (RFC 6040).
    SetEcn(u8),
    /// Turn the frame, which asks who has an address, into the answer (ARP or neighbour discovery): this station has it.
    Answer(MacAddr),
    /// Take the outer headers off, read what they say, and decide anew by the inner frame. Always last.
    Decap {
        /// What the outer headers are.
        kind: TunnelKind,
        /// The port the inner frame comes in by: the first of the tunnel ports with this kind and UDP port.
        listener: PortId,
    },
    /// Count the frame as dropped for this reason. Always alone.
    Drop(DropReason),
}

/// One way through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Encap {
    /// The tunnel port, which counts the frame.
    pub tunnel: PortId,
    /// The outer headers.
    pub template: Template,
    /// The port the outer frame leaves by.
    pub output: PortId,
    /// The longest inner frame, Ethernet header and tags included, that the underlay carries whole. Bytes.
    pub frame_max: u16,
    /// Where the sender of a longer one is told so (RFC 1191, RFC 8201); `None`: nowhere.
    pub complaint: Option<Complaint>,
}

/// How a message about a frame gets back to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Complaint {
    /// The port the frame came in by.
    pub port: PortId,
    /// How many tags the frame gained on its way, which the message must lose.
    pub pop: u8,
    /// The VLAN tag the frame lost on its way, which the message must have.
    pub push: Option<VlanTag>,
}

/// A change of learned state that a flow causes, applied when it is made and again while it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// `station` lives at `place`.
    Learn {
        /// The bridge that learns.
        bridge: BridgeId,
        /// The frame's source, in its segment.
        station: Station,
        /// Where the frame came from.
        place: Place,
    },
    /// Somebody must ask the underlay who has this address.
    Resolve {
        /// The port with our own address.
        endpoint: PortId,
        /// The next hop.
        address: IpAddr,
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
    /// The outer headers of a tunnelled frame are truncated, lie about a length, or are fragmented.
    TunnelMalformed => "tunnel-malformed",
    /// A checksum of the outer headers is wrong.
    TunnelChecksum => "tunnel-checksum",
    /// The tunnel header is of a version, or carries something, that is not ours (VXLAN-GPE, ERSPAN ...).
    TunnelProtocol => "tunnel-protocol",
    /// A critical Geneve option is unknown (RFC 8926 section 3.5).
    TunnelOption => "tunnel-option",
    /// No tunnel port takes frames from this address with this key, or no segment has this id.
    UnknownSegment => "unknown-segment",
    /// The segment has `strict-peers`, and the sender is none of its VTEPs; or no host can have the sender's address.
    UnknownVtep => "unknown-vtep",
    /// The underlay marked congestion on a frame whose sender could not be told (RFC 6040 section 4.2).
    Congestion => "congestion",
    /// From a tunnel into a tunnel.
    SplitHorizon => "split-horizon",
    /// The tunnel leads to one of our own addresses.
    TunnelLoop => "tunnel-loop",
    /// There is no route to the VTEP.
    NoRoute => "no-route",
    /// The link-layer address of the next hop to the VTEP is not known (yet).
    NoNeighbour => "no-neighbour",
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
