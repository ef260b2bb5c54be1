//! Endpoints whose addresses the kernel holds: `internal` ports of ours on which somebody configured addresses.
//!
//! The kernel is their host: it answers ARP, resolves next hops and has the routes (rtnetlink(7)). It tells of every
//! change; whom it does not know yet it is asked to look for, with NTF_USE, which is what a packet of its own would do. A
//! neighbour that it has not heard of for a while (NUD_STALE) and that we use is asked for again, so that it stays
//! checked.
//!
//! Cost: one message per change; one dump of addresses, neighbours and routes when a port comes, and one of the routes
//! when one of ours changes.

mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use dataplane::underlay::Route;
use encap::field::MacAddr;
use flowtable::id::PortId;
use flowtable::lpm::Prefix;
use flowtable::time::Instant;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use thiserror::Error;

use crate::config::Cidr;
use crate::netlink::{DUMPS, Netlink, Object, Received, is_overrun};
use objects::{Fact, Nexthop, read};

/// When the kernel is told again to look for those that it did not find and that are wanted all the time.
const REST: Duration = Duration::from_secs(30);
/// Neighbours that are kept checked, at most.
const LIMIT: usize = 4096;

/// The kernel does not tell us.
#[derive(Debug, Error)]
#[error("cannot watch addresses, routes and neighbours: {0}")]
pub struct KernelError(#[from] io::Error);

/// A route of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Where to.
    pub to: Prefix,
    /// How.
    pub route: Route,
    /// Less is better.
    pub metric: u32,
}

/// A neighbour of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address, if it holds.
    pub mac: Option<MacAddr>,
    /// `NUD_*`.
    pub state: u16,
}

/// A device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    port: PortId,
    mac: MacAddr,
}

/// What the kernel knows about devices of ours.
#[derive(Debug, Default)]
pub struct Host {
    devices: BTreeMap<u32, Device>,
    addresses: BTreeMap<u32, Vec<Cidr>>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    routes: Vec<(Prefix, u32, Nexthop)>,
}

impl Host {
    /// Devices, with their addresses: the kernel's first comes first.
    pub fn endpoints(&self) -> impl Iterator<Item = (PortId, MacAddr, Vec<Cidr>)> {
        let addresses = |index| self.addresses.get(index).cloned().unwrap_or_default();
        self.devices.iter().map(move |(index, device)| (device.port, device.mac, addresses(index)))
    }

    /// Neighbours whose MAC address is known.
    pub fn neighbours(&self) -> impl Iterator<Item = ((PortId, IpAddr), MacAddr)> {
        self.all_neighbours().filter_map(|(port, address, n)| Some(((port, address), n.mac?)))
    }

    /// Neighbours, whatever is known of them.
    pub fn all_neighbours(&self) -> impl Iterator<Item = (PortId, IpAddr, Neighbour)> {
        let port = |index| self.devices.get(index).map(|device| device.port);
        self.neighbours.iter().filter_map(move |((index, a), n)| Some((port(index)?, *a, *n)))
    }

    /// Routes by devices of ours, the better of two to the same network first.
    pub fn routes(&self) -> impl Iterator<Item = Way> {
        self.routes.iter().filter_map(|(to, metric, hop)| {
            let endpoint = self.devices.get(&hop.device)?.port;
            let route = Route { endpoint, via: hop.via, source: hop.source };
            Some(Way { to: *to, route, metric: *metric })
        })
    }

    /// True if it changes what is known.
    fn learn(&mut self, fact: Fact) -> bool {
        match fact {
            Fact::Address { device, cidr, gone } => {
                let all = self.addresses.entry(device).or_default();
                let before = all.len();
                match all.iter().position(|known| *known == cidr) {
                    Some(at) if gone => drop(all.remove(at)),
                    None if !gone => all.push(cidr),
                    _ => {}
                }
                before != all.len()
            }
            Fact::Neighbour { device, address, known: None } => {
                self.neighbours.remove(&(device, address)).is_some()
            }
            Fact::Neighbour { device, address, known: Some(known) } => {
                self.devices.contains_key(&device)
                    && self.neighbours.insert((device, address), known) != Some(known)
            }
            Fact::Route { .. } => false,
        }
    }

    /// Is this about a route of ours, or one to the same network?
    fn concerns(&self, fact: &Fact) -> bool {
        let Fact::Route { to, hops, .. } = fact else { return false };
        hops.iter().any(|hop| self.devices.contains_key(&hop.device))
            || self.routes.iter().any(|(known, ..)| known == to)
    }
}

/// The kernel's tables, kept current, and questions to it.
pub struct Kernel {
    netlink: Netlink,
    /// Complaints about questions must not be taken for the end of a dump.
    questions: Netlink,
    host: Host,
    /// Everything must be read anew.
    stale: bool,
    /// Next hops to be known at all times.
    kept: BTreeSet<(u32, IpAddr)>,
    /// Next hops in use.
    used: BTreeSet<(u32, IpAddr)>,
    retry: Option<Instant>,
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}

impl Kernel {
    /// Subscribes. Nothing is read before [`Kernel::follow`] says which devices are ours.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel gives no such socket.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Kernel {
            netlink: Netlink::open(&[
                libc::RTNLGRP_IPV4_IFADDR,
                libc::RTNLGRP_IPV6_IFADDR,
                libc::RTNLGRP_IPV4_ROUTE,
                libc::RTNLGRP_IPV6_ROUTE,
                libc::RTNLGRP_NEIGH,
            ])?,
            questions: Netlink::open(&[])?,
            host: Host::default(),
            stale: false,
            kept: BTreeSet::new(),
            used: BTreeSet::new(),
            retry: None,
        })
    }

    /// What the kernel knows.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Which devices are ours, by the kernel's number. True if they are others than before.
    pub fn follow(&mut self, devices: impl IntoIterator<Item = (u32, PortId, MacAddr)>) -> bool {
        let devices = devices.into_iter().map(|(index, port, mac)| (index, Device { port, mac }));
        let devices: BTreeMap<u32, Device> = devices.collect();
        self.stale |= devices.keys().any(|index| !self.host.devices.contains_key(index));
        let changed = devices != self.host.devices;
        self.host.devices = devices;
        changed
    }

    /// Takes in what the kernel reported; true if it changes what is known.
    ///
    /// # Errors
    /// [`KernelError`] if the socket broke, or a dump did not end; the next call tries again.
    pub fn refresh(&mut self) -> Result<bool, KernelError> {
        let (mut changed, mut routes) = (false, false);
        loop {
            if self.stale {
                self.read_all()?;
                changed = true;
            }
            match self.netlink.receive() {
                Ok(received) => {
                    for fact in received.iter().filter_map(objects) {
                        routes |= self.host.concerns(&fact);
                        self.keep_checked(&fact);
                        changed |= self.host.learn(fact);
                    }
                }
                Err(e) if is_overrun(&e) => self.stale = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && routes => {
                    routes = false;
                    self.read_routes()?;
                    changed = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn read_all(&mut self) -> Result<(), KernelError> {
        self.host.addresses.clear();
        self.host.neighbours.clear();
        self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        self.dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
        self.read_routes()?;
        self.stale = false;
        self.used.retain(|(index, _)| self.host.devices.contains_key(index));
        Ok(())
    }

    /// Objects that are learned twice are no harm: one that went meanwhile is known to have gone.
    fn dump(&mut self, request: &RouteNetlinkMessage) -> Result<(), KernelError> {
        for _ in 0..DUMPS {
            let host = &mut self.host;
            let learn = |object: &Object| {
                if let Some(fact) = read(object) {
                    host.learn(fact);
                }
            };
            if self.netlink.dump(request, learn)? {
                break;
            }
        }
        Ok(())
    }

    fn read_routes(&mut self) -> Result<(), KernelError> {
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let mut routes = Vec::new();
        for _ in 0..DUMPS {
            routes.clear();
            let host = &mut self.host;
            let take = |object: &Object| match read(object) {
                Some(Fact::Route { to, metric, hops, gone: false }) => {
                    let ours = hops.into_iter().find(|hop| host.devices.contains_key(&hop.device));
                    routes.extend(ours.map(|hop| (to, metric, hop)));
                }
                Some(Fact::Route { to, metric, hops, gone: true }) => {
                    routes.retain(|(t, m, hop)| (*t, *m) != (to, metric) || !hops.contains(hop));
                }
                Some(fact) => _ = host.learn(fact),
                None => {}
            };
            if self.netlink.dump(&request, take)? {
                break;
            }
        }
        routes.sort_by_key(|(_, metric, _)| *metric);
        self.host.routes = routes;
        Ok(())
    }

    /// Which next hops are to be known at all times, by port.
    pub fn keep(&mut self, hops: &BTreeMap<PortId, BTreeSet<IpAddr>>, now: Instant) {
        let numbers = self.host.devices.iter().map(|(index, device)| (device.port, *index));
        let numbers: BTreeMap<PortId, u32> = numbers.collect();
        let hops = hops.iter().filter_map(|(port, hops)| Some((*numbers.get(port)?, hops)));
        let kept: BTreeSet<_> =
            hops.flat_map(|(index, hops)| hops.iter().map(move |hop| (index, *hop))).collect();
        if kept != self.kept {
            self.kept = kept;
            self.used.extend(self.kept.iter().copied());
            self.ask_again(now);
        }
    }

    /// A frame waits for this next hop.
    pub fn resolve(&mut self, port: PortId, address: IpAddr) {
        let index = self.host.devices.iter().find(|(_, device)| device.port == port).map(|(index, _)| *index);
        let Some(index) = index else { return };
        if self.used.len() < LIMIT {
            self.used.insert((index, address));
        }
        self.ask((index, address));
    }

    /// Does what is due.
    pub fn turn(&mut self, now: Instant) {
        if self.retry.is_some_and(|at| at <= now) {
            self.ask_again(now);
        }
    }

    /// When [`Kernel::turn`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    fn ask_again(&mut self, now: Instant) {
        let unknown =
            self.kept.iter().filter(|hop| self.host.neighbours.get(hop).is_none_or(|n| n.mac.is_none()));
        let unknown: Vec<_> = unknown.copied().collect();
        self.retry = (!unknown.is_empty()).then(|| now + REST);
        unknown.into_iter().for_each(|hop| self.ask(hop));
    }

    /// A neighbour in use must not grow stale; one that is gone is no longer in use, unless it is wanted all the time.
    fn keep_checked(&mut self, fact: &Fact) {
        let Fact::Neighbour { device, address, known } = fact else { return };
        let hop = (*device, *address);
        match known {
            Some(Neighbour { state: libc::NUD_STALE, .. }) if self.used.contains(&hop) => self.ask(hop),
            Some(Neighbour { state: libc::NUD_FAILED, .. }) | None if !self.kept.contains(&hop) => {
                self.used.remove(&hop);
            }
            _ => {}
        }
    }

    fn ask(&self, (device, address): (u32, IpAddr)) {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = device;
        message.header.flags = NeighbourFlags::Use;
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let address = match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message.attributes.push(NeighbourAttribute::Destination(address));
        // What was refused before is of no interest.
        while self.questions.receive().is_ok() {}
        if let Err(error) = self.questions.send(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE) {
            tracing::debug!("cannot ask the kernel for a neighbour: {error}");
        }
    }
}

fn objects(received: &Received) -> Option<Fact> {
    match received {
        Received::Object(object) => read(object),
        Received::Done | Received::Interrupted => None,
    }
}
