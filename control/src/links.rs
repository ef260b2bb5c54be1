//! The kernel's interfaces, as rtnetlink(7) reports them: no polling, no asking by name.
//!
//! A dump at the start, then RTM_NEWLINK and RTM_DELLINK as they happen. When the kernel had to drop messages
//! (ENOBUFS) the dump is repeated, and what differs from what we knew counts as changed. Cost: one message per
//! change; one dump, a millisecond per thousand interfaces, per overrun.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use encap::field::MacAddr;
use netlink_packet_route::link::{LinkFlags, LinkHeader, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use thiserror::Error;

use crate::netlink::{DUMPS, Netlink, Object, Received, is_overrun};

/// The kernel does not tell us about interfaces.
#[derive(Debug, Error)]
#[error("cannot watch network interfaces: {0}")]
pub struct LinksError(#[from] io::Error);

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number; an interface made again under its old name has a new one.
    pub index: u32,
    /// Its name, which may change.
    pub name: String,
    /// Set up by the administrator (IFF_UP).
    pub up: bool,
    /// It has a carrier (IFF_RUNNING).
    pub running: bool,
    /// In bytes of layer 3.
    pub mtu: u32,
    /// Its address, if it has one of six bytes.
    pub mac: Option<MacAddr>,
}

type Table = BTreeMap<u32, Link>;

/// What one netlink message says.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    New(Link),
    Del(u32),
}

/// All interfaces of this network namespace, and the socket that keeps them current.
pub struct Links {
    netlink: Netlink,
    table: Table,
    numbers: BTreeMap<String, u32>,
    /// Messages were lost and the dump that makes up for it is still due.
    stale: bool,
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}

impl Links {
    /// Subscribes, then dumps, so that nothing is missed between the two.
    ///
    /// # Errors
    /// [`LinksError`] if the kernel gives no such socket.
    pub fn open() -> Result<Self, LinksError> {
        let netlink = Netlink::open(&[libc::RTNLGRP_LINK])?;
        let mut links = Links { netlink, table: Table::new(), numbers: BTreeMap::new(), stale: true };
        links.refresh()?;
        Ok(links)
    }

    /// The interface with this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&Link> {
        self.table.get(self.numbers.get(name)?)
    }

    /// Takes in what the kernel reported, and returns the names it concerns: those of interfaces that came,
    /// went, changed or were renamed (then both).
    ///
    /// # Errors
    /// [`LinksError`] if the socket broke, or a dump did not end; the next call tries again.
    pub fn refresh(&mut self) -> Result<BTreeSet<String>, LinksError> {
        let mut changed = BTreeSet::new();
        loop {
            if self.stale {
                changed.extend(self.resync()?);
            }
            match self.netlink.receive() {
                Ok(received) => {
                    let notices = received.iter().filter_map(notice);
                    notices.for_each(|n| apply(&mut self.table, n, &mut changed));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if is_overrun(&e) => self.stale = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        if !changed.is_empty() {
            self.number();
        }
        Ok(changed)
    }

    fn number(&mut self) {
        self.numbers = self.table.values().map(|link| (link.name.clone(), link.index)).collect();
    }

    fn resync(&mut self) -> Result<BTreeSet<String>, LinksError> {
        let mut fresh = Table::new();
        for _ in 0..DUMPS {
            fresh.clear();
            if self.dump(&mut fresh)? {
                break;
            }
        }
        let changed = differences(&self.table, &fresh);
        self.table = fresh;
        self.stale = false;
        Ok(changed)
    }

    /// Fills `fresh`; false if something was missed meanwhile.
    fn dump(&mut self, fresh: &mut Table) -> Result<bool, LinksError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut ignored = BTreeSet::new();
        let take =
            |object: &Object| object_notice(object).into_iter().for_each(|n| apply(fresh, n, &mut ignored));
        Ok(self.netlink.dump(&request, take)?)
    }
}

fn apply(table: &mut Table, notice: Notice, changed: &mut BTreeSet<String>) {
    let before = match notice {
        Notice::New(link) if table.get(&link.index) == Some(&link) => None,
        Notice::New(link) => {
            changed.insert(link.name.clone());
            table.insert(link.index, link)
        }
        Notice::Del(index) => table.remove(&index),
    };
    changed.extend(before.map(|link| link.name));
}

fn differences(old: &Table, new: &Table) -> BTreeSet<String> {
    let gone = old.iter().filter(|(index, link)| new.get(index) != Some(link));
    let come = new.iter().filter(|(index, link)| old.get(index) != Some(link));
    gone.chain(come).map(|(_, link)| link.name.clone()).collect()
}

fn notice(received: &Received) -> Option<Notice> {
    match received {
        Received::Object(object) => object_notice(object),
        Received::Done | Received::Interrupted => None,
    }
}

fn object_notice(object: &Object) -> Option<Notice> {
    match object.kind {
        libc::RTM_NEWLINK => link(object).map(Notice::New),
        libc::RTM_DELLINK => link(object).map(|link| Notice::Del(link.index)),
        _ => None,
    }
}

/// Messages of the bridge family say that a port joined or left a Linux bridge, not that it came or went.
fn link(object: &Object) -> Option<Link> {
    let header = LinkHeader::parse(&object.payload).ok()?;
    if header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let (mut name, mut mtu, mut mac) = (None, 0, None);
    for (kind, value) in object.attributes(LINK_HEADER) {
        match kind {
            libc::IFLA_IFNAME => name = value.split(|b| *b == 0).next().map(<[u8]>::to_vec),
            libc::IFLA_MTU => mtu = value.try_into().map_or(0, u32::from_ne_bytes),
            libc::IFLA_ADDRESS => mac = value.try_into().ok().map(MacAddr),
            _ => {}
        }
    }
    Some(Link {
        index: header.index,
        name: String::from_utf8_lossy(&name?).into_owned(),
        up: header.flags.contains(LinkFlags::Up),
        running: header.flags.contains(LinkFlags::Running),
        mtu,
        mac,
    })
}

/// sizeof(struct ifinfomsg).
const LINK_HEADER: usize = 16;

#[cfg(test)]
mod tests {
    use netlink_packet_core::{
        NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLMSG_DONE, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    };
    use netlink_packet_route::link::LinkAttribute;

    use super::*;
    use crate::netlink::split;

    fn notices(datagram: &[u8]) -> Vec<Notice> {
        split(datagram).iter().filter_map(notice).collect()
    }

    fn bytes(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn eth1(family: AddressFamily) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.interface_family = family;
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        let mac = LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]);
        message.attributes = vec![LinkAttribute::IfName("eth1".into()), LinkAttribute::Mtu(9000), mac];
        message
    }

    #[test]
    fn links_are_read_and_deleted_by_number() {
        let new = bytes(RouteNetlinkMessage::NewLink(eth1(AddressFamily::Unspec)), 0);
        let del = bytes(RouteNetlinkMessage::DelLink(eth1(AddressFamily::Unspec)), 0);
        let mac = Some(MacAddr([2, 0, 0, 0, 0, 7]));
        let link = Link { index: 7, name: "eth1".into(), up: true, running: false, mtu: 9000, mac };
        assert_eq!(notices(&[new, del].concat()), [Notice::New(link), Notice::Del(7)]);
    }

    #[test]
    fn leaving_a_linux_bridge_is_not_vanishing() {
        let left = bytes(RouteNetlinkMessage::DelLink(eth1(AddressFamily::Bridge)), 0);
        assert_eq!(notices(&left), []);
    }

    #[test]
    fn an_interrupted_dump_says_so_before_it_is_done() {
        let flags = NLM_F_MULTIPART | NLM_F_DUMP_INTR;
        let mut done = bytes(RouteNetlinkMessage::NewLink(eth1(AddressFamily::Unspec)), flags);
        done[4..6].copy_from_slice(&NLMSG_DONE.to_ne_bytes());
        assert_eq!(split(&done), [Received::Interrupted, Received::Done]);
    }

    #[test]
    fn cut_and_broken_messages_are_ignored() {
        let new = bytes(RouteNetlinkMessage::NewLink(eth1(AddressFamily::Unspec)), 0);
        for end in 0..new.len() {
            assert_eq!(notices(&new[..end]), [], "cut at {end}");
        }
        for at in 0..new.len() {
            let mut broken = new.clone();
            broken[at] ^= 0xff;
            notices(&broken);
        }
    }
}
