//! The kernel's interfaces, as rtnetlink(7) reports them: no polling, no asking by name.
//!
//! A dump at the start, then RTM_NEWLINK and RTM_DELLINK as they happen. When the kernel had to drop messages
//! (ENOBUFS) the dump is repeated, and what differs from what we knew counts as changed. Cost: one message per
//! change; one dump, a millisecond per thousand interfaces, per overrun.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::link::{LinkFlags, LinkHeader, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

/// Receive buffer: some thousand changes while we are busy.
const BUFFER: usize = 4 << 20;
/// How long the kernel may take for one message of a dump, in ms.
const DUMP_PATIENCE: u16 = 5_000;
/// A dump that changed under our feet is repeated; after this many times the last one is taken.
const DUMPS: usize = 8;

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
}

type Table = BTreeMap<u32, Link>;

/// What one netlink message says.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    New(Link),
    Del(u32),
    /// The dump is over; it may have missed a change.
    Done,
    Interrupted,
    Other,
}

/// All interfaces of this network namespace, and the socket that keeps them current.
pub struct Links {
    socket: Socket,
    table: Table,
    numbers: BTreeMap<String, u32>,
    /// Messages were lost and the dump that makes up for it is still due.
    stale: bool,
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Links {
    /// Subscribes, then dumps, so that nothing is missed between the two.
    ///
    /// # Errors
    /// [`LinksError`] if the kernel gives no such socket.
    pub fn open() -> Result<Self, LinksError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_rx_buf_sz(BUFFER as i32)?;
        socket.add_membership(libc::RTNLGRP_LINK)?;
        socket.set_non_blocking(true)?;
        let mut links = Links { socket, table: Table::new(), numbers: BTreeMap::new(), stale: true };
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
            match self.receive() {
                Ok(notices) => notices.into_iter().for_each(|n| apply(&mut self.table, n, &mut changed)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => self.stale = true,
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
        self.request_dump()?;
        let (mut whole, mut ignored) = (true, BTreeSet::new());
        loop {
            self.wait()?;
            match self.receive() {
                Ok(notices) => {
                    for notice in notices {
                        match notice {
                            Notice::Done => return Ok(whole),
                            Notice::Interrupted => whole = false,
                            notice => apply(fresh, notice, &mut ignored),
                        }
                    }
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => whole = false,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn request_dump(&self) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_DUMP | NLM_F_REQUEST;
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(DUMP_PATIENCE)) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not finish listing them")),
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn receive(&self) -> io::Result<Vec<Notice>> {
        let (datagram, from) = self.socket.recv_from_full()?;
        // Anybody may send to a netlink socket; only the kernel is port 0.
        Ok(if from.port_number() == 0 { notices(&datagram) } else { Vec::new() })
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
        Notice::Done | Notice::Interrupted | Notice::Other => None,
    };
    changed.extend(before.map(|link| link.name));
}

fn differences(old: &Table, new: &Table) -> BTreeSet<String> {
    let gone = old.iter().filter(|(index, link)| new.get(index) != Some(link));
    let come = new.iter().filter(|(index, link)| old.get(index) != Some(link));
    gone.chain(come).map(|(_, link)| link.name.clone()).collect()
}

/// The messages of one datagram. What cannot be parsed ends it.
fn notices(mut datagram: &[u8]) -> Vec<Notice> {
    let mut found = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(&datagram) {
        found.push(notice(&message));
        if message.flags() & NLM_F_DUMP_INTR != 0 {
            found.push(Notice::Interrupted);
        }
        let aligned = (message.length() as usize).next_multiple_of(4).min(datagram.len());
        datagram = &datagram[aligned..];
    }
    // What interrupted a dump must be known before the dump's end is.
    found.sort_by_key(|n| *n == Notice::Done);
    found
}

fn notice(message: &NetlinkBuffer<&&[u8]>) -> Notice {
    match message.message_type() {
        NLMSG_DONE | NLMSG_ERROR => Notice::Done,
        libc::RTM_NEWLINK => link(message.payload()).map_or(Notice::Other, Notice::New),
        libc::RTM_DELLINK => link(message.payload()).map_or(Notice::Other, |link| Notice::Del(link.index)),
        _ => Notice::Other,
    }
}

/// Reads only the attributes we need, so that an odd one elsewhere cannot hide an interface. Messages of the
/// bridge family say that a port joined or left a Linux bridge, not that it came or went.
fn link(payload: &[u8]) -> Option<Link> {
    let header = LinkHeader::parse(payload).ok()?;
    if header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let (mut name, mut mtu) = (None, 0);
    for attribute in NlasIterator::new(payload.get(LINK_HEADER..)?).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_IFNAME => name = value.split(|b| *b == 0).next().map(<[u8]>::to_vec),
            libc::IFLA_MTU => mtu = value.try_into().map_or(0, u32::from_ne_bytes),
            _ => {}
        }
    }
    Some(Link {
        index: header.index,
        name: String::from_utf8_lossy(&name?).into_owned(),
        up: header.flags.contains(LinkFlags::Up),
        running: header.flags.contains(LinkFlags::Running),
        mtu,
    })
}

/// sizeof(struct ifinfomsg).
const LINK_HEADER: usize = 16;

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_MULTIPART;
    use netlink_packet_route::link::LinkAttribute;

    use super::*;

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
        message.attributes = vec![LinkAttribute::IfName("eth1".into()), LinkAttribute::Mtu(9000)];
        message
    }

    #[test]
    fn links_are_read_and_deleted_by_number() {
        let new = bytes(RouteNetlinkMessage::NewLink(eth1(AddressFamily::Unspec)), 0);
        let del = bytes(RouteNetlinkMessage::DelLink(eth1(AddressFamily::Unspec)), 0);
        let link = Link { index: 7, name: "eth1".into(), up: true, running: false, mtu: 9000 };
        assert_eq!(notices(&[new, del].concat()), [Notice::New(link), Notice::Del(7)]);
    }

    #[test]
    fn leaving_a_linux_bridge_is_not_vanishing() {
        let left = bytes(RouteNetlinkMessage::DelLink(eth1(AddressFamily::Bridge)), 0);
        assert_eq!(notices(&left), [Notice::Other]);
    }

    #[test]
    fn an_interrupted_dump_says_so_before_it_is_done() {
        let flags = NLM_F_MULTIPART | NLM_F_DUMP_INTR;
        let mut done = bytes(RouteNetlinkMessage::NewLink(eth1(AddressFamily::Unspec)), flags);
        done[4..6].copy_from_slice(&NLMSG_DONE.to_ne_bytes());
        assert_eq!(notices(&done), [Notice::Interrupted, Notice::Done]);
    }

    #[test]
    fn cut_and_broken_messages_are_ignored() {
        let new = bytes(RouteNetlinkMessage::NewLink(eth1(AddressFamily::Unspec)), 0);
        for end in 0..new.len() {
            assert!(!notices(&new[..end]).iter().any(|n| matches!(n, Notice::New(_))), "cut at {end}");
        }
        for at in 0..new.len() {
            let mut broken = new.clone();
            broken[at] ^= 0xff;
            notices(&broken);
        }
    }
}
