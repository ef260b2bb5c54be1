//! A netlink socket that hears rtnetlink(7) notifications and dumps tables: what the kernel's links, addresses, routes
//! and neighbours have in common.
//!
//! Only the attributes that are needed are read, so that an odd one elsewhere cannot hide an object.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Receive buffer: some thousand changes while we are busy.
const BUFFER: usize = 4 << 20;
/// How long the kernel may take for one message of a dump, in ms.
const DUMP_PATIENCE: u16 = 5_000;
/// A dump that changed under our feet is to be repeated; after this many times the last one must do.
pub const DUMPS: usize = 8;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A message about an object.
    Object(Object),
    /// The dump is over.
    Done,
    /// The dump may have missed a change.
    Interrupted,
}

/// One message: RTM_NEWLINK and the like, and what follows the netlink header.
#[derive(Debug, PartialEq, Eq)]
pub struct Object {
    /// Its type.
    pub kind: u16,
    /// The family's header and attributes.
    pub payload: Vec<u8>,
}

impl Object {
    /// The attributes behind a header of so many bytes: type and value. What cannot be parsed ends them.
    pub fn attributes(&self, header: usize) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = self.payload.get(header..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (len, kind) = (half(rest, 0)?, half(rest, 2)?);
            let value = rest.get(4..len.into())?;
            rest = &rest[usize::from(len).next_multiple_of(4).min(rest.len())..];
            // The two highest bits say how the value is written (NLA_TYPE_MASK).
            Some((kind & 0x3fff, value))
        })
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The socket.
pub struct Netlink {
    socket: Socket,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// Subscribes to these groups (`RTNLGRP_*`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_rx_buf_sz(BUFFER as i32)?;
        groups.iter().try_for_each(|group| socket.add_membership(*group))?;
        socket.set_non_blocking(true)?;
        Ok(Netlink { socket })
    }

    /// Sends one request.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// One datagram.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; ENOBUFS if some were lost, which a dump makes up for.
    pub fn receive(&self) -> io::Result<Vec<Received>> {
        let (datagram, from) = self.socket.recv_from_full()?;
        // Anybody may send to a netlink socket; only the kernel is port 0.
        Ok(if from.port_number() == 0 { split(&datagram) } else { Vec::new() })
    }

    /// Takes all objects that the request names, and whatever is notified meanwhile, in order. False if something was
    /// missed: see [`DUMPS`].
    ///
    /// # Errors
    /// What the kernel says, or that it does not end.
    pub fn dump(&self, request: &RouteNetlinkMessage, mut take: impl FnMut(&Object)) -> io::Result<bool> {
        self.send(request.clone(), NLM_F_DUMP)?;
        let mut whole = true;
        loop {
            self.wait()?;
            match self.receive() {
                Ok(received) => {
                    for received in received {
                        match received {
                            Received::Done => return Ok(whole),
                            Received::Interrupted => whole = false,
                            Received::Object(object) => take(&object),
                        }
                    }
                }
                Err(e) if is_overrun(&e) => whole = false,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(DUMP_PATIENCE)) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not finish listing them")),
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Were messages lost?
pub fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// The messages of one datagram. What cannot be parsed ends it.
pub fn split(mut datagram: &[u8]) -> Vec<Received> {
    let mut found = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(&datagram) {
        found.push(match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => Received::Done,
            kind => Received::Object(Object { kind, payload: message.payload().to_vec() }),
        });
        if message.flags() & NLM_F_DUMP_INTR != 0 {
            found.push(Received::Interrupted);
        }
        let aligned = (message.length() as usize).next_multiple_of(4).min(datagram.len());
        datagram = &datagram[aligned..];
    }
    // What interrupted a dump must be known before the dump's end is.
    found.sort_by_key(|received| *received == Received::Done);
    found
}
