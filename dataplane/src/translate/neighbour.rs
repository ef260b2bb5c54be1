//! The responder: who asks for an address that the controller has told us of gets the answer from the switch, and the
//! question goes no further (ARP: RFC 826; neighbour discovery: RFC 4861). What `arp_responder` flows do for Neutron.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::field::{EtherType, IpProto, MacAddr};

use super::{Steps, Walk};
use crate::segment::Segment;

/// A request (RFC 826).
const ARP_REQUEST: u8 = 1;
/// A neighbour solicitation (RFC 4861 section 4.3).
const SOLICITATION: u8 = 135;

impl<S: Steps> Walk<'_, S> {
    /// The address that a broadcast question is for, if the segment knows it.
    pub(super) fn known_neighbour(&mut self, segment: &Segment) -> Option<MacAddr> {
        if segment.neighbours.is_empty() || !self.probe.eth_dst_is_multicast() {
            return None;
        }
        let target = match self.probe.eth_type() {
            EtherType::ARP => self.arp_target(),
            EtherType::IPV6 => self.solicited(),
            _ => None,
        }?;
        // Who asks for his own address (to defend it, or to see that nobody else has it) is let through.
        let mac = *segment.neighbours.get(&target)?;
        (mac != self.probe.eth_src()).then_some(mac)
    }

    /// The address an ARP request asks for; not that of a probe (RFC 5227) or an announcement.
    fn arp_target(&mut self) -> Option<IpAddr> {
        if self.probe.arp_op() != ARP_REQUEST {
            return None;
        }
        let (sender, target) = (self.probe.arp_spa(), self.probe.arp_tpa());
        (sender != Ipv4Addr::UNSPECIFIED && sender != target).then_some(target.into())
    }

    /// The address a solicitation asks for; not that of duplicate address detection (RFC 4862 section 5.4).
    fn solicited(&mut self) -> Option<IpAddr> {
        if self.probe.ip_proto() != IpProto::ICMPV6 || self.probe.icmpv6_type() != SOLICITATION {
            return None;
        }
        (self.probe.ipv6_src() != Ipv6Addr::UNSPECIFIED).then(|| self.probe.nd_target().into())
    }
}
