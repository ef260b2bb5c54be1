//! What arrives by a ring: no system call, unless a frame is longer than a slot.
//!
//! Such a frame waits whole in the socket's own queue (`PACKET_COPY_THRESH`), in the same order; its slot says so and holds
//! its place. So each frame is copied by us once: a short one out of its slot, by whoever made it hot there, a long one by
//! the kernel to where it is to stay.

use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use encap::field::{EtherType, VlanTag};
use libc::tpacket2_hdr as Header;
use nix::errno::Errno;

use super::slots::{FREE, SLOT, Slots};
use crate::port::sockopt::Failure;
use crate::port::vnet;

/// Slots of a ring: a megabyte, or what comes in 0.8 ms at 600,000 frames a second. Twice as many would lose less when a neighbour
/// takes the core (`wires/rfc2544-60`: 0.25 for 0.14 Mpps, in turns), but all of it is the kernel's memory and there from the start: ten
/// ports would take 62 MiB for 52.
const COUNT: usize = 512;

/// What a slot tells of a frame.
pub(super) struct Announced<'a> {
    /// Its length, wherever it is.
    pub len: usize,
    pub header: [u8; vnet::LEN],
    /// The outer tag, which is not among the bytes.
    pub tag: Option<VlanTag>,
    pub body: Body<'a>,
}

/// Where a frame's bytes are.
pub(super) enum Body<'a> {
    /// In the slot.
    Here(&'a [u8]),
    /// In the socket's queue, next.
    Queued,
    /// Nowhere any more: the queue was full. Or the slot makes no sense.
    Lost,
}

/// A ring for receiving.
#[derive(Debug)]
pub(super) struct Inward {
    slots: Slots,
    /// The slot to be filled next.
    next: usize,
    /// Has anything come since this was last asked?
    came: bool,
}

impl Inward {
    /// Gives the socket a ring. It must not be bound yet.
    pub fn new(socket: &OwnedFd) -> Result<Inward, Failure> {
        Ok(Inward { slots: Slots::map(socket, libc::PACKET_RX_RING, COUNT)?, next: 0, came: false })
    }

    /// The next frame that has arrived.
    #[inline]
    pub fn peek(&self) -> Option<Announced<'_>> {
        let status = self.slots.status(self.next);
        (status != FREE).then(|| announced(status, self.slots.bytes(self.next)))
    }

    /// How many frames wait to be received.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        let places = std::iter::successors(Some(self.next), |place| Some(self.slots.after(*place)));
        places.take(COUNT).take_while(|place| self.slots.status(*place) != FREE).count()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.slots.status(self.next) == FREE
    }

    /// Gives the slot of the frame that `peek` tells of back.
    #[inline]
    pub fn advance(&mut self) {
        self.came = true;
        self.slots.set_status(self.next, FREE);
        self.next = self.slots.after(self.next);
    }

    /// Is the ring stuck for ever, seeing that `lost` frames found no room since this was last asked? One that has been empty all the
    /// while has room. But kernels (at least up to Linux 6.18, `tpacket_rcv`) reserve a slot for a frame, find that they cannot
    /// describe its segmentation (SCTP's, or UDP fragmentation), drop it and never use the slot again.
    pub fn is_stuck(&mut self, lost: u64) -> bool {
        let came = std::mem::take(&mut self.came);
        lost > 0 && !came && self.is_empty()
    }

    /// Has the kernel put what arrives into the socket's queue, as soon as it has let go of the ring. That takes it milliseconds,
    /// some tens at worst (`synchronize_net`), for which no other port of the caller shall wait: a thread does.
    ///
    /// # Errors
    /// If there is no descriptor or thread left: nothing arrives by the socket any more.
    pub fn leave(self, socket: &OwnedFd) -> Result<JoinHandle<Result<(), Errno>>, Errno> {
        let thread = thread::Builder::new().name("unring".to_owned());
        let leaving = socket.try_clone().and_then(|socket| thread.spawn(move || self.slots.give_up(&socket)));
        leaving.map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))
    }
}

/// Reads a slot. A frame lies behind its segmentation header, both where the kernel says.
fn announced(status: u32, slot: &[u8; SLOT]) -> Announced<'_> {
    let [len, kept] = [offset_of!(Header, tp_len), offset_of!(Header, tp_snaplen)].map(|at| word(slot, at));
    let at = usize::from(half(slot, offset_of!(Header, tp_mac)));
    let header = at.checked_sub(vnet::LEN).and_then(|start| slot.get(start..at)?.try_into().ok());
    let bytes = slot.get(at..).and_then(|rest| rest.get(..len));
    let body = match (bytes, header) {
        _ if status & libc::TP_STATUS_COPY != 0 => Body::Queued,
        (Some(bytes), Some(_)) if kept == len => Body::Here(bytes),
        _ => Body::Lost,
    };
    Announced { len, header: header.unwrap_or_default(), tag: tag(status, slot), body }
}

/// The tag that the kernel took out.
fn tag(status: u32, slot: &[u8; SLOT]) -> Option<VlanTag> {
    let tpid = match status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => EtherType::VLAN,
        _ => EtherType(half(slot, offset_of!(Header, tp_vlan_tpid))),
    };
    let tci = half(slot, offset_of!(Header, tp_vlan_tci));
    (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(VlanTag { tpid, tci })
}

fn word(slot: &[u8; SLOT], at: usize) -> usize {
    u32::from_ne_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]) as usize
}

fn half(slot: &[u8; SLOT], at: usize) -> u16 {
    u16::from_ne_bytes([slot[at], slot[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot with a frame of 60 bytes at 76.
    fn slot() -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        slot[4..8].copy_from_slice(&60u32.to_ne_bytes());
        slot[8..12].copy_from_slice(&60u32.to_ne_bytes());
        slot[12..14].copy_from_slice(&76u16.to_ne_bytes());
        slot[76..136].fill(7);
        slot
    }

    #[test]
    fn a_slot_that_makes_no_sense_is_lost_and_not_read_beyond() {
        let is_lost = |slot: &[u8; SLOT]| matches!(announced(1, slot).body, Body::Lost);
        assert!(matches!(announced(1, &slot()).body, Body::Here([7, .., 7])));
        for (at, value) in
            [(4, 61u32), (4, u32::MAX), (8, 59), (8, u32::MAX), (12, 0), (12, 9), (12, 0xffff), (12, 2000)]
        {
            let mut slot = slot();
            slot[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            assert!(is_lost(&slot), "{value} at {at}");
        }
        let mut both = slot();
        for at in [4, 8] {
            both[at..at + 4].copy_from_slice(&1973u32.to_ne_bytes());
        }
        assert!(is_lost(&both));
        both[4..12].copy_from_slice(&[1972u32.to_ne_bytes(); 2].concat());
        assert!(!is_lost(&both));
    }
}
