//! Addresses, routes and neighbours as rtnetlink(7) words them: `struct ifaddrmsg`, `rtmsg` and `ndmsg` with their
//! attributes.

use std::net::IpAddr;

use encap::field::MacAddr;
use flowtable::lpm::Prefix;

use super::Neighbour;
use crate::config::Cidr;
use crate::netlink::Object;

/// sizeof(struct ifaddrmsg), sizeof(struct rtmsg), sizeof(struct ndmsg), sizeof(struct rtnexthop).
const IFADDRMSG: usize = 8;
const RTMSG: usize = 12;
const NDMSG: usize = 12;
const RTNEXTHOP: usize = 8;
/// A route that was made of another for one destination; `RTM_F_CLONED` of linux/rtnetlink.h.
const RTM_F_CLONED: u32 = 0x200;

/// One next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nexthop {
    /// The kernel's number of the device.
    pub device: u32,
    /// The gateway; `None`: the destination itself.
    pub via: Option<IpAddr>,
    /// The source address the route asks for.
    pub source: Option<IpAddr>,
}

/// What one object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A device has an address, or no longer.
    Address {
        /// The kernel's number of the device.
        device: u32,
        /// The address.
        cidr: Cidr,
        /// No longer.
        gone: bool,
    },
    /// A neighbour.
    Neighbour {
        /// The kernel's number of the device.
        device: u32,
        /// Its address.
        address: IpAddr,
        /// What is known; `None`: nothing any more.
        known: Option<Neighbour>,
    },
    /// A unicast route of the main table.
    Route {
        /// Where to.
        to: Prefix,
        /// Less is better.
        metric: u32,
        /// The ways there; several for a multipath route.
        hops: Vec<Nexthop>,
        /// It was removed.
        gone: bool,
    },
}

/// What an object says, if it is one of these.
pub fn read(object: &Object) -> Option<Fact> {
    match object.kind {
        libc::RTM_NEWADDR | libc::RTM_DELADDR => address(object),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => neighbour(object),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => route(object),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// An address that is still being checked for duplicates, or has one, is not there yet.
fn address(object: &Object) -> Option<Fact> {
    let header = object.payload.get(..IFADDRMSG)?;
    let (len, mut flags, device) = (header[1], u32::from(header[2]), word(header, 4)?);
    let (mut address, mut local) = (None, None);
    for (kind, value) in object.attributes(IFADDRMSG) {
        match kind {
            libc::IFA_ADDRESS => address = ip(value),
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_FLAGS => flags = word(value, 0)?,
            _ => {}
        }
    }
    let unusable = flags & (libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED) != 0;
    let gone = object.kind == libc::RTM_DELADDR || unusable;
    // On a point-to-point link the one is the other end's (`ip address add LOCAL peer ADDRESS`).
    let address = local.or(address)?;
    let network = Prefix::new(address, len).ok()?;
    Some(Fact::Address { device, cidr: Cidr { address, network }, gone })
}

fn neighbour(object: &Object) -> Option<Fact> {
    let header = object.payload.get(..NDMSG)?;
    let family = i32::from(header[0]);
    if family != libc::AF_INET && family != libc::AF_INET6 {
        return None; // the forwarding table of a Linux bridge
    }
    let (device, state) = (word(header, 4)?, u16::from_ne_bytes([header[8], header[9]]));
    let (mut address, mut mac) = (None, None);
    for (kind, value) in object.attributes(NDMSG) {
        match kind {
            libc::NDA_DST => address = ip(value),
            libc::NDA_LLADDR => mac = value.try_into().ok().map(MacAddr),
            _ => {}
        }
    }
    // NUD_VALID of net/neighbour.h.
    let valid = libc::NUD_PERMANENT
        | libc::NUD_NOARP
        | libc::NUD_REACHABLE
        | libc::NUD_PROBE
        | libc::NUD_STALE
        | libc::NUD_DELAY;
    let mac = mac.filter(|_| state & valid != 0);
    let known = (object.kind == libc::RTM_NEWNEIGH).then_some(Neighbour { mac, state });
    Some(Fact::Neighbour { device, address: address?, known })
}

fn route(object: &Object) -> Option<Fact> {
    let header = object.payload.get(..RTMSG)?;
    let (family, len, kind) = (i32::from(header[0]), header[1], header[7]);
    let mut table = u32::from(header[4]);
    let unspecified: IpAddr = match family {
        libc::AF_INET => [0u8; 4].into(),
        libc::AF_INET6 => [0u8; 16].into(),
        _ => return None,
    };
    if kind != libc::RTN_UNICAST || word(header, 8)? & RTM_F_CLONED != 0 {
        return None;
    }
    let (mut to, mut metric, mut source) = (unspecified, 0, None);
    let mut hops = Vec::new();
    let (mut device, mut via) = (None, None);
    for (kind, value) in object.attributes(RTMSG) {
        match kind {
            libc::RTA_DST => to = ip(value)?,
            libc::RTA_TABLE => table = word(value, 0)?,
            libc::RTA_PRIORITY => metric = word(value, 0)?,
            libc::RTA_PREFSRC => source = ip(value),
            libc::RTA_OIF => device = word(value, 0),
            libc::RTA_MULTIPATH => hops.extend(multipath(value)),
            _ => via = via.or(gateway(kind, value)),
        }
    }
    if table != u32::from(libc::RT_TABLE_MAIN) {
        return None;
    }
    hops.extend(device.map(|device| Nexthop { device, via, source: None }));
    hops.iter_mut().for_each(|hop| hop.source = source);
    let gone = object.kind == libc::RTM_DELROUTE;
    Some(Fact::Route { to: Prefix::new(to, len).ok()?, metric, hops, gone })
}

/// RTA_VIA is a gateway of the other address family, behind two bytes that name it.
fn gateway(kind: u16, value: &[u8]) -> Option<IpAddr> {
    match kind {
        libc::RTA_GATEWAY => ip(value),
        RTA_VIA => ip(value.get(2..)?),
        _ => None,
    }
}

/// Of linux/rtnetlink.h.
const RTA_VIA: u16 = 18;

/// A row of `struct rtnexthop`, each with attributes of its own.
fn multipath(mut rest: &[u8]) -> Vec<Nexthop> {
    let mut hops = Vec::new();
    while let Some(header) = rest.get(..RTNEXTHOP) {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let (Some(device), Some(payload)) = (word(header, 4), rest.get(..len)) else { break };
        let entry = Object { kind: libc::RTM_NEWROUTE, payload: payload.to_vec() };
        let via = entry.attributes(RTNEXTHOP).find_map(|(kind, value)| gateway(kind, value));
        hops.push(Nexthop { device, via, source: None });
        if len < RTNEXTHOP {
            break;
        }
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
    hops
}

#[cfg(test)]
mod tests;
