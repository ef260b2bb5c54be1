//! `afpacket` ports: any network device, through an AF_PACKET socket (packet(7)).
//!
//! `PACKET_VNET_HDR` keeps the checksum and segmentation work of frames from the same machine (veth, bridges)
//! as it is, and lets the kernel do what we leave to it, with the device's offloads or in software. The VLAN
//! tag that the kernel moves out of each frame it receives is put back. Up to 32 frames cross per system
//! call; each costs one copy. Where GSO frames came lately, ends of frames are received where they are to stay, in big
//! frames, and fewer at a time; the first of them costs a second copy.
//!
//! Two things to know:
//!
//! * **The host's own stack sees what arrives, too**, as with Open vSwitch's userspace datapath: a copy goes
//!   to the socket and the frame goes on. A device without an address answers little by itself; to keep
//!   everything from the host, drop it behind the socket:
//!   `tc qdisc add dev NAME clsact; tc filter add dev NAME ingress matchall action drop`.
//! * Frames go out through the device's queueing discipline, so that traffic control works
//!   (no `PACKET_QDISC_BYPASS`). The kernel takes a frame 4 bytes over the MTU only if its outer tag is
//!   802.1Q: for full-size 802.1ad frames raise the device's MTU by 4.

use std::os::fd::{AsFd, OwnedFd};

use encap::field::VlanTag;
use nix::errno::Errno;
use nix::net::if_::InterfaceFlags;
use thiserror::Error;

use self::socket::Arrival;
use super::netdev::{Netdev, NetdevError};
use super::overflow::{self, Overflow};
use super::sockopt::Failure;
use super::{Counters, Offloads, Port, PortError, Readiness, Sent, vnet};
use crate::batch::Batch;
use crate::frame::{Frame, FrameCache, HEADROOM, SMALL};

mod socket;
#[cfg(test)]
mod tests;

/// The most queues of one device: sockets that share its traffic (`PACKET_FANOUT_MAX` of old kernels).
pub const QUEUES_MAX: u16 = 256;

/// How many frames are received at a time where they are long: half a megabyte of them, which is sent again before it
/// leaves a core's cache. The stock of big frames that a thread keeps is as large.
const LONG_BATCH: usize = 8;

/// The device cannot be used.
#[derive(Debug, Error)]
pub enum PacketError {
    /// No permission.
    #[error("no permission to open a packet socket on {name}; run as root or with CAP_NET_RAW")]
    Forbidden {
        /// The interface.
        name: String,
    },
    /// It is set down.
    #[error("interface {name} is down; set it up with `ip link set {name} up`")]
    Down {
        /// The interface.
        name: String,
    },
    /// More sockets than can share a device.
    #[error("interface {name} cannot have {queues} queues, expected 1 to {QUEUES_MAX}")]
    Queues {
        /// The interface.
        name: String,
        /// How many were asked for.
        queues: u16,
    },
    /// The kernel said no.
    #[error("cannot {what} on the packet socket of {name}: {source}")]
    Refused {
        /// The interface.
        name: String,
        /// What was tried, with the cure where there is one.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// The device is missing or carries no Ethernet.
    #[error(transparent)]
    Device(#[from] NetdevError),
}

/// Attaches to the interface, in the network namespace of the calling thread: one port per queue, over which
/// the kernel spreads what arrives by flow. It is promiscuous until the ports are dropped.
///
/// # Errors
/// [`PacketError`]; nothing is left behind.
pub fn open(name: &str, queues: u16) -> Result<Vec<PacketPort>, PacketError> {
    let device = Netdev::open(name)?;
    device.mac()?;
    if !(1..=QUEUES_MAX).contains(&queues) {
        return Err(PacketError::Queues { name: name.into(), queues });
    }
    if !device.flags()?.contains(InterfaceFlags::IFF_UP) {
        return Err(PacketError::Down { name: name.into() });
    }
    let index = device.index()?;
    let refused = |failure: Failure| match failure.errno {
        Errno::EPERM | Errno::EACCES => PacketError::Forbidden { name: name.into() },
        Errno::ENODEV | Errno::ENXIO => NetdevError::Missing(name.into()).into(),
        Errno::ENETDOWN => PacketError::Down { name: name.into() },
        source => PacketError::Refused { name: name.into(), what: failure.what, source },
    };
    let sockets = (0..queues).map(|_| socket::open(index)).collect::<Result<Vec<_>, _>>().map_err(refused)?;
    if queues > 1 {
        socket::share(&sockets).map_err(refused)?;
    }
    sockets.iter().try_for_each(socket::unmute).map_err(refused)?;
    let offloads = Offloads { csum: true, tso: true, uso: socket::takes_udp_gso() };
    let port =
        |socket| PacketPort { socket, offloads, expects: Expects::Short, counters: Counters::default() };
    Ok(sockets.into_iter().map(port).collect())
}

/// What came last, and so will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// Frames that small ones have room for.
    Short,
    /// Others, too.
    Long,
}

/// One socket on a network device.
#[derive(Debug)]
pub struct PacketPort {
    socket: OwnedFd,
    offloads: Offloads,
    expects: Expects,
    counters: Counters,
}

impl PacketPort {
    /// Receives by frames whose ends land in the thread's overflow.
    fn receive_short(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), Errno> {
        let mut small = allot(frames, batch.remaining_capacity());
        Overflow::with(|overflow| {
            let received = socket::receive(&self.socket, &mut small, overflow.parts_mut());
            let arrivals = received.as_deref().unwrap_or_default();
            self.expect(arrivals);
            let unused = small.drain(arrivals.len()..);
            unused.for_each(|frame| frames.free(frame));
            for (place, (frame, arrival)) in small.drain(..).zip(arrivals).enumerate() {
                let frame = overflow::join(frame, arrival.len, overflow.of(place), frames);
                batch.extend(self.accept(frame, arrival, frames));
            }
            received.map(drop)
        })
    }

    /// Receives by frames whose ends land in big ones.
    fn receive_long(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), Errno> {
        let room = batch.remaining_capacity().min(LONG_BATCH);
        let mut big: Batch = (0..room).map_while(|_| frames.alloc_big()).collect();
        if big.is_empty() && room != 0 {
            return self.receive_short(frames, batch);
        }
        let mut small = allot(frames, big.len());
        let split = SMALL - HEADROOM;
        let tails = big.iter_mut().map(|frame| &mut frame.room_mut()[split..]);
        let received = socket::receive(&self.socket, &mut small, tails);
        let arrivals = received.as_deref().unwrap_or_default();
        self.expect(arrivals);
        // The other way round: the frame that was taken first, and is in the cache, is taken first again.
        let unused = big.drain(arrivals.len()..).rev().chain(small.drain(arrivals.len()..));
        unused.for_each(|frame| frames.free(frame));
        for ((small, big), arrival) in small.drain(..).zip(big.drain(..)).zip(arrivals) {
            let frame = overflow::unite(small, arrival.len, big, frames);
            batch.extend(self.accept(frame, arrival, frames));
        }
        received.map(drop)
    }

    fn expect(&mut self, arrivals: &[Arrival]) {
        if let [_, ..] = arrivals {
            let is_long = arrivals.iter().any(|arrival| arrival.len > SMALL - HEADROOM);
            self.expects = if is_long { Expects::Long } else { Expects::Short };
        }
    }

    /// Finishes a frame that has arrived. `None`: it had to be dropped, and is counted.
    fn accept(&mut self, mut frame: Frame, arrival: &Arrival, frames: &mut FrameCache) -> Option<Frame> {
        let whole = vnet::arrive(&mut frame, arrival.len, &arrival.header, &mut self.counters);
        if whole && arrival.tag.is_none_or(|tag| restore(tag, &mut frame)) {
            return Some(frame);
        }
        frames.free(frame);
        None
    }

    /// Receiving failed: is it the device, or a frame that the kernel cannot describe to us?
    fn receive_failed(&mut self, errno: Errno) -> Result<(), PortError> {
        match errno {
            Errno::EAGAIN | Errno::EINTR => Ok(()),
            errno if is_gone(errno) => Err(PortError::Gone(errno.into())),
            _ => {
                self.counters.rx_errors += 1;
                Ok(())
            }
        }
    }
}

/// Small frames to receive into: as many as asked for, if there are.
fn allot(frames: &mut FrameCache, count: usize) -> Batch {
    (0..count).map_while(|_| frames.alloc()).collect()
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV)
}

/// Puts a tag where it was before the kernel took it out: behind the addresses. `false` if the frame has none.
fn restore(tag: VlanTag, frame: &mut Frame) -> bool {
    if frame.len() < 12 {
        return false;
    }
    let Some(bytes) = frame.push_front(4) else { return false };
    bytes.copy_within(4..16, 0);
    bytes[12..14].copy_from_slice(&tag.tpid.0.to_be_bytes());
    bytes[14..16].copy_from_slice(&tag.tci.to_be_bytes());
    true
}

impl Port for PacketPort {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        let received = match self.expects {
            Expects::Short => self.receive_short(frames, batch),
            Expects::Long => self.receive_long(frames, batch),
        };
        received.or_else(|errno| self.receive_failed(errno))
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let mut sent = Sent::default();
        let mut done = 0;
        while done < batch.len() {
            match socket::send(&self.socket, &batch[done..]) {
                Ok(count) => {
                    batch[done..done + count].iter().for_each(|frame| sent.count(frame));
                    done += count;
                }
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => break,
                Err(Errno::EINTR) => {}
                Err(errno) if is_gone(errno) && done == 0 => return Err(PortError::Gone(errno.into())),
                // What was sent is reported first; the next call tells that the device is gone.
                Err(errno) if is_gone(errno) => break,
                // The frame's own fault: too long, or an offload that does not fit it.
                Err(_) => done += 1,
            }
        }
        batch.drain(..done).for_each(|frame| frames.free(frame));
        Ok(sent)
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Call(self.socket.as_fd())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn counters(&mut self) -> Counters {
        self.counters.rx_missed += socket::losses(&self.socket);
        self.counters
    }
}
