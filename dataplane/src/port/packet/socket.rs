//! The system calls of a packet socket (packet(7), `linux/if_packet.h`, recvmmsg(2), sendmmsg(2)).

#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use arrayvec::ArrayVec;
use encap::field::{EtherType, VlanTag};
use nix::errno::Errno;

use super::inward::Inward;
use super::outward::Outward;
use crate::batch::BATCH;
use crate::frame::Frame;
use crate::port::sockopt::{self, Failure, failed, get, set};
use crate::port::vnet;

/// One received frame: its bytes lie in the small frame and, what that has no room for, in the overflow.
pub(super) struct Arrival {
    /// The frame's length, also if it was cut.
    pub len: usize,
    pub header: [u8; vnet::LEN],
    /// The outer tag, which is not among the bytes.
    pub tag: Option<VlanTag>,
}

/// A control message as the kernel writes it, and nothing else (cmsg(3)).
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    auxdata: libc::tpacket_auxdata,
}

impl Control {
    /// The tag that the kernel took out.
    fn tag(&self, written: usize) -> Option<VlanTag> {
        let is_auxdata = written >= size_of::<libc::cmsghdr>() + size_of::<libc::tpacket_auxdata>()
            && self.header.cmsg_level == libc::SOL_PACKET
            && self.header.cmsg_type == libc::PACKET_AUXDATA;
        let status = if is_auxdata { self.auxdata.tp_status } else { 0 };
        let tpid = match status & libc::TP_STATUS_VLAN_TPID_VALID {
            0 => EtherType::VLAN,
            _ => EtherType(self.auxdata.tp_vlan_tpid),
        };
        (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(VlanTag { tpid, tci: self.auxdata.tp_vlan_tci })
    }
}

/// A socket that gets all that the interface receives, by its ring, once it is unmuted, and nothing that it sends. It
/// starts mute because sockets that are to share an interface get a copy each of everything until they do.
pub(super) fn open(index: u32) -> Result<(OwnedFd, Inward), Failure> {
    let socket = raw()?;
    option(&socket, libc::PACKET_AUXDATA, "switch on VLAN metadata")?;
    option(&socket, libc::PACKET_IGNORE_OUTGOING, "ignore our own frames")?;
    option(&socket, libc::PACKET_COPY_THRESH, "keep what is longer than a slot")?;
    let ring = Inward::new(&socket)?;
    let member = libc::packet_mreq {
        mr_ifindex: index.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member)
        .map_err(failed("make the interface promiscuous"))?;
    sockopt::mute(&socket).map_err(failed("attach a filter"))?;
    bind(&socket, (index, libc::ETH_P_ALL)).map_err(failed("bind to the interface"))?;
    Ok((socket, ring))
}

/// A socket that sends by its ring on an interface with this MTU. It cannot send otherwise, and gets nothing.
pub(super) fn open_outward(index: u32, mtu: u32) -> Result<Outward, Failure> {
    let socket = raw()?;
    option(&socket, libc::PACKET_LOSS, "skip what is wrong")?;
    bind(&socket, (index, 0)).map_err(failed("bind to the interface"))?;
    Outward::new(socket, mtu)
}

/// A socket without an interface. All frames have a segmentation header in front, and rings slots of the second version.
fn raw() -> Result<OwnedFd, Failure> {
    // Protocol 0: nothing arrives before the socket is bound to its interface.
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }).map_err(failed("open"))?;
    // SAFETY: the descriptor was just opened and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    option(&socket, libc::PACKET_VNET_HDR, "switch on checksum and segmentation metadata")?;
    let version = libc::tpacket_versions::TPACKET_V2 as c_int;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, &version)
        .map_err(failed("choose the kind of ring"))?;
    sockopt::enlarge_buffers(&socket)?;
    Ok(socket)
}

/// Switches an option on.
fn option(socket: &OwnedFd, option: c_int, what: &'static str) -> Result<(), Failure> {
    set(socket, libc::SOL_PACKET, option, &1).map_err(failed(what))
}

/// Binds to an interface and what it receives of this protocol; 0 is none.
fn bind(socket: &OwnedFd, (index, protocol): (u32, c_int)) -> Result<(), Errno> {
    // SAFETY: a sockaddr_ll is integers only: all zero is a value of it.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is one sockaddr_ll of that length.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), len) }).map(drop)
}

/// Lets the sockets share what arrives, by flow.
pub(super) fn share<'a>(sockets: impl Iterator<Item = &'a OwnedFd>) -> Result<(), Failure> {
    let kind = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    let mut group = 0;
    let mut unique = libc::PACKET_FANOUT_FLAG_UNIQUEID;
    for socket in sockets {
        set(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &(group | (kind | unique) << 16))
            .map_err(failed("share the interface among queues (Linux 5.16 can; else set queues to 1)"))?;
        if unique != 0 {
            unique = 0;
            let id: c_uint = get(socket, libc::SOL_PACKET, libc::PACKET_FANOUT)
                .map_err(failed("read the number of the group"))?;
            group = id & 0xffff;
        }
    }
    Ok(())
}

/// Lets frames in from now on.
pub(super) fn unmute(socket: &OwnedFd) -> Result<(), Failure> {
    set(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0).map_err(failed("detach the filter"))
}

/// Is anything wrong with the socket: with its interface, that is? It is told once.
pub(super) fn check(socket: &OwnedFd) -> Result<(), Errno> {
    match get(socket, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// Frames lost for want of room since the last call.
pub(super) fn losses(socket: &OwnedFd) -> u64 {
    get(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)
        .map_or(0, |stats: libc::tpacket_stats| stats.tp_drops.into())
}

/// True if the kernel cuts UDP for us: since Linux 6.2. There is no way to ask it but its version.
pub(super) fn takes_udp_gso() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

/// Receives as many frames as have arrived, at most one into each of `small`, and its end into the tail of the same place;
/// does not block.
pub(super) fn receive<'a>(
    socket: &OwnedFd,
    small: &mut [Frame],
    tails: impl Iterator<Item = &'a mut [u8]>,
) -> Result<ArrayVec<Arrival, BATCH>, Errno> {
    // SAFETY: both are integers and pointers only: all zero is a value of them.
    let (control, message): (Control, libc::mmsghdr) = unsafe { std::mem::zeroed() };
    let mut headers = [[0; vnet::LEN]; BATCH];
    let mut controls = [control; BATCH];
    let mut slices: ArrayVec<[libc::iovec; 3], BATCH> = ArrayVec::new();
    let mut messages: ArrayVec<libc::mmsghdr, BATCH> = ArrayVec::new();
    let parts = small.iter_mut().zip(headers.iter_mut().zip(tails));
    slices.extend(parts.map(|(frame, (header, rest))| [header, frame.room_mut(), rest].map(slice_mut)));
    messages.extend(slices.iter_mut().zip(&mut controls).map(|(slices, control)| {
        let mut message = message;
        message.msg_hdr.msg_iov = slices.as_mut_ptr();
        message.msg_hdr.msg_iovlen = slices.len() as _;
        message.msg_hdr.msg_control = ptr::from_mut(control).cast();
        message.msg_hdr.msg_controllen = size_of::<Control>() as _;
        message
    }));
    // SAFETY: each message points to three writable slices and a control buffer, all of which outlive the call.
    let count = unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as c_uint,
            flags,
            ptr::null_mut(),
        )
    };
    let count = Errno::result(count)? as usize;
    let arrived = messages[..count].iter().zip(headers.iter().zip(&controls));
    Ok(arrived
        .map(|(message, (header, control))| Arrival {
            len: (message.msg_len as usize).saturating_sub(vnet::LEN),
            header: *header,
            tag: control.tag(message.msg_hdr.msg_controllen),
        })
        .collect())
}

/// Sends frames in order, at most [`BATCH`]; does not block. Returns how many the kernel took, at least one.
pub(super) fn send(socket: &OwnedFd, frames: &[Frame]) -> Result<usize, Errno> {
    // SAFETY: integers and pointers only: all zero is a value of it.
    let message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    let mut headers: ArrayVec<[u8; vnet::LEN], BATCH> = ArrayVec::new();
    let mut slices: ArrayVec<[libc::iovec; 2], BATCH> = ArrayVec::new();
    let mut messages: ArrayVec<libc::mmsghdr, BATCH> = ArrayVec::new();
    let frames = &frames[..frames.len().min(BATCH)];
    headers.extend(frames.iter().map(|frame| vnet::emit(&frame.offload, frame.bytes())));
    slices.extend(headers.iter().zip(frames).map(|(header, frame)| [slice(header), slice(frame.bytes())]));
    messages.extend(slices.iter_mut().map(|slices| {
        let mut message = message;
        message.msg_hdr.msg_iov = slices.as_mut_ptr();
        message.msg_hdr.msg_iovlen = slices.len() as _;
        message
    }));
    // SAFETY: each message points to two readable slices, which outlive the call.
    let count = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as c_uint,
            libc::MSG_DONTWAIT,
        )
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
