//! What leaves by a ring: one system call for a run of frames, and nothing to describe them but the slots
//! (`PACKET_TX_RING`). Frames that need more than a slot are not for it.
//!
//! The kernel takes slots from the front and stops at one that it cannot send now. Those not taken are ours again after the
//! call, so nothing waits in the ring for us. With `PACKET_LOSS` it skips slots that it finds wrong, without a word; so what it might
//! find wrong is not put there.

#![allow(unsafe_code)]

use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use encap::offload::{Csum, Gso};
use libc::tpacket2_hdr as Header;
use nix::errno::Errno;

use super::slots::{FREE, SLOT, Slots};
use crate::frame::Frame;
use crate::port::sockopt::Failure;
use crate::port::vnet;

/// Slots of a ring: a quarter of a megabyte. A frame keeps its slot until it has left the device.
const COUNT: usize = 128;
/// Where in a slot a frame begins, behind its segmentation header (`tpacket_parse_header` of the kernel).
const START: usize = libc::TPACKET2_HDRLEN - size_of::<libc::sockaddr_ll>() + vnet::LEN;
/// The longest frame of a slot.
const ROOM: usize = SLOT - START;
/// An Ethernet header: the kernel sends nothing shorter.
const ETHERNET: usize = 14;
/// Where what the kernel is to sum begins, at the earliest (`virtio_net_hdr_to_skb`: behind as many bytes as an IPv4 header has).
const SUMMED: u16 = 20;

/// A socket that sends by a ring, and does nothing else.
#[derive(Debug)]
pub(super) struct Outward {
    socket: OwnedFd,
    slots: Slots,
    /// The slot that the kernel takes next.
    next: usize,
    /// The longest frame that the device takes, for the kernel does not look.
    longest: usize,
}

impl Outward {
    /// Gives a socket that is bound to a device with this MTU a ring.
    pub fn new(socket: OwnedFd, mtu: u32) -> Result<Outward, Failure> {
        let slots = Slots::map(&socket, libc::PACKET_TX_RING, COUNT)?;
        let mut outward = Outward { socket, slots, next: 0, longest: 0 };
        outward.set_mtu(mtu);
        Ok(outward)
    }

    /// Sets the MTU.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.longest = ROOM.min(mtu as usize + ETHERNET);
    }

    /// Is the frame for the ring?
    #[inline]
    pub fn takes(&self, frame: &Frame) -> bool {
        let is_sound = match frame.offload.csum {
            Csum::None => true,
            Csum::Partial { start, offset } => {
                start >= SUMMED && usize::from(start) + usize::from(offset) + 2 <= frame.len()
            }
        };
        frame.offload.gso == Gso::None && is_sound && (ETHERNET..=self.longest).contains(&frame.len())
    }

    /// Sends frames that the ring takes, in order; does not block. Returns how many the kernel took: none if all slots are
    /// still on their way.
    pub fn send(&mut self, frames: &[Frame]) -> Result<usize, Errno> {
        let mut end = self.next;
        let mut filled = 0;
        for frame in frames {
            if filled == COUNT || self.slots.status(end) != FREE {
                break;
            }
            self.fill(end, frame);
            end = self.slots.after(end);
            filled += 1;
        }
        if filled == 0 {
            return Ok(0);
        }
        let told = self.kick();
        match (self.take_back(filled), told) {
            (0, Err(errno)) => Err(errno),
            (taken, _) => Ok(taken),
        }
    }

    fn fill(&mut self, place: usize, frame: &Frame) {
        let len = frame.len();
        let mut header = vnet::emit(&frame.offload, frame.bytes());
        // That all of it is header has the kernel copy all of it, rather than refer to the slot's page.
        header[2..4].copy_from_slice(&(len as u16).to_ne_bytes());
        let slot = self.slots.bytes_mut(place);
        let at = offset_of!(Header, tp_len);
        slot[at..at + 4].copy_from_slice(&((vnet::LEN + len) as u32).to_ne_bytes());
        slot[START - vnet::LEN..START].copy_from_slice(&header);
        slot[START..START + len].copy_from_slice(frame.bytes());
        self.slots.set_status(place, libc::TP_STATUS_SEND_REQUEST);
    }

    /// Has the kernel send what is in the ring.
    fn kick(&self) -> Result<(), Errno> {
        // SAFETY: no memory is passed.
        Errno::result(unsafe { libc::send(self.socket.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT) })
            .map(drop)
    }

    /// Goes past the slots that the kernel took of those filled; the others are free again.
    fn take_back(&mut self, filled: usize) -> usize {
        let mut place = self.next;
        let mut taken = 0;
        for _ in 0..filled {
            if self.slots.status(place) == libc::TP_STATUS_SEND_REQUEST {
                self.slots.set_status(place, FREE);
            } else {
                taken += 1;
                self.next = self.slots.after(place);
            }
            place = self.slots.after(place);
        }
        taken
    }
}
