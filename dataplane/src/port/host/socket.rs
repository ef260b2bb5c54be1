//! The system calls: datagrams and raw packets in batches (udp(7), raw(7), recvmmsg(2), sendmmsg(2)).

#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use arrayvec::ArrayVec;
use encap::tunnel::TunnelKind;
use nix::errno::Errno;

use super::control::{Control, Fields, Name};
use crate::batch::BATCH;
use crate::frame::Frame;
use crate::port::overflow::Overflow;
use crate::port::sockopt::{self, Failure, failed, get, set};

/// `SO_MEMINFO` of `asm-generic/socket.h`, which libc does not have, and the numbers it gives (`linux/sock_diag.h`).
const SO_MEMINFO: c_int = 55;
const MEMINFO_VARS: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// What to open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub kind: TunnelKind,
    /// Where to listen, or (port 0) to send from.
    pub at: SocketAddr,
    pub csum: Sums,
}

/// What the kernel sums of what is sent. What arrives with a sum it always checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    None,
    Udp,
}

/// One packet that arrived: its bytes lie in the small frame and, what that has no room for, in the overflow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub len: usize,
    pub from: Option<SocketAddr>,
    pub fields: Fields,
}

/// One packet to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure<'a> {
    pub to: SocketAddr,
    pub fields: Fields,
    /// What stands behind the UDP header, or from the GRE header on.
    pub payload: &'a [u8],
}

/// A socket that tells all of the IP headers that a tunnel's user needs, and never has a packet fragmented.
pub(super) fn open(wanted: Wanted) -> Result<OwnedFd, Failure> {
    let Wanted { kind, at, csum } = wanted;
    let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (socket_kind, proto) = match kind {
        TunnelKind::Gre => (libc::SOCK_RAW, libc::IPPROTO_GRE),
        TunnelKind::Vxlan | TunnelKind::Geneve => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    };
    let flags = socket_kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let fd = Errno::result(unsafe { libc::socket(family, flags, proto) }).map_err(failed("open"))?;
    // SAFETY: the descriptor was just opened and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let is_udp = kind != TunnelKind::Gre;
    let options: &[(c_int, c_int, bool)] = match at {
        SocketAddr::V4(_) => &[
            (libc::IPPROTO_IP, libc::IP_PKTINFO, true),
            (libc::IPPROTO_IP, libc::IP_RECVTOS, true),
            (libc::IPPROTO_IP, libc::IP_RECVTTL, true),
            (libc::SOL_SOCKET, libc::SO_NO_CHECK, is_udp && csum == Sums::None),
        ],
        SocketAddr::V6(_) => &[
            // A raw socket is of one family anyway.
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, is_udp),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, true),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, true),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, true),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, true),
            // Tunnels may do without a checksum over IPv6 (RFC 6935).
            (libc::IPPROTO_UDP, libc::UDP_NO_CHECK6_RX, is_udp),
            (libc::IPPROTO_UDP, libc::UDP_NO_CHECK6_TX, is_udp && csum == Sums::None),
        ],
    };
    for &(level, option, _) in options.iter().filter(|(.., on)| *on) {
        set(&socket, level, option, &c_int::from(true)).map_err(failed("set an option"))?;
    }
    let (level, discover, always) = match at {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
    };
    set(&socket, level, discover, &always).map_err(failed("switch off fragmentation"))?;
    sockopt::enlarge_buffers(&socket)?;
    if is_udp && at.port() == 0 {
        sockopt::mute(&socket).map_err(failed("attach a filter"))?;
    }
    bind(&socket, at).map_err(failed("bind"))?;
    Ok(socket)
}

fn bind(socket: &OwnedFd, at: SocketAddr) -> Result<(), Errno> {
    let name = Name::of(at);
    let octets = name.octets();
    let len = octets.len() as libc::socklen_t;
    // SAFETY: the octets are a sockaddr_in or sockaddr_in6 of that length, aligned as `Name` is.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), octets.as_ptr().cast(), len) }).map(drop)
}

/// Packets lost for want of buffer, or found broken, since the socket was opened.
pub(super) fn losses(socket: &OwnedFd) -> u64 {
    let numbers = get::<[u32; MEMINFO_VARS]>(socket, libc::SOL_SOCKET, SO_MEMINFO);
    numbers.map_or(0, |numbers| numbers[MEMINFO_DROPS].into())
}

/// Receives as many packets as have arrived, at most one into each of `small`; does not block.
pub(super) fn receive(
    socket: &OwnedFd,
    small: &mut [Frame],
    overflow: &mut Overflow,
) -> Result<ArrayVec<Arrival, BATCH>, Errno> {
    // SAFETY: integers and pointers only: all zero is a value of it.
    let message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    let (mut names, mut controls) = ([Name::EMPTY; BATCH], [Control::EMPTY; BATCH]);
    let mut slices: ArrayVec<[libc::iovec; 2], BATCH> = ArrayVec::new();
    let mut messages: ArrayVec<libc::mmsghdr, BATCH> = ArrayVec::new();
    let parts = small.iter_mut().zip(overflow.parts_mut());
    slices.extend(parts.map(|(frame, rest)| [frame.room_mut(), rest].map(slice_mut)));
    let said = names.iter_mut().zip(&mut controls);
    messages.extend(slices.iter_mut().zip(said).map(|(slices, (name, control))| {
        let (name, control) = (name.room_mut(), control.room_mut());
        let mut message = message;
        message.msg_hdr.msg_name = name.as_mut_ptr().cast();
        message.msg_hdr.msg_namelen = name.len() as _;
        message.msg_hdr.msg_iov = slices.as_mut_ptr();
        message.msg_hdr.msg_iovlen = slices.len() as _;
        message.msg_hdr.msg_control = control.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = control.len() as _;
        message
    }));
    // SAFETY: each message points to a name, two writable slices and a control buffer, all of which outlive the call.
    let count = unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let len = messages.len() as c_uint;
        libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), len, flags, ptr::null_mut())
    };
    let count = Errno::result(count)? as usize;
    let arrived = messages[..count].iter().zip(names.iter().zip(&controls));
    Ok(arrived
        .map(|(message, (name, control))| Arrival {
            len: message.msg_len as usize,
            from: name.address(),
            fields: control.fields(message.msg_hdr.msg_controllen),
        })
        .collect())
}

/// Sends packets in order, at most [`BATCH`]; does not block. Returns how many the kernel took, at least one.
pub(super) fn send(socket: &OwnedFd, departures: &[Departure<'_>]) -> Result<usize, Errno> {
    // SAFETY: integers and pointers only: all zero is a value of it.
    let message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    let departures = &departures[..departures.len().min(BATCH)];
    let mut headers: ArrayVec<(Name, Control), BATCH> = ArrayVec::new();
    let mut slices: ArrayVec<libc::iovec, BATCH> = ArrayVec::new();
    let mut messages: ArrayVec<libc::mmsghdr, BATCH> = ArrayVec::new();
    headers.extend(departures.iter().map(|d| (Name::of(d.to), Control::asking(d.fields, d.to.ip()))));
    slices.extend(departures.iter().map(|departure| slice(departure.payload)));
    messages.extend(slices.iter_mut().zip(&headers).map(|(slice, (name, control))| {
        let (name, control) = (name.octets(), control.octets());
        let mut message = message;
        message.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = name.len() as _;
        message.msg_hdr.msg_iov = slice;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = control.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_controllen = control.len() as _;
        message
    }));
    // SAFETY: each message points to a name, a readable slice and control messages, which outlive the call and are
    // only read.
    let count = unsafe {
        let len = messages.len() as c_uint;
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), len, libc::MSG_DONTWAIT)
    };
    Errno::result(count).map(|count| count as usize)
}

fn slice_mut(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// The kernel only reads it.
fn slice(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}
