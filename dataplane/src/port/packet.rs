//! `afpacket` ports: any network device, through an AF_PACKET socket (packet(7)).
//!
//! `PACKET_VNET_HDR` keeps the checksum and segmentation work of frames from the same machine (veth, bridges)
//! as it is, and lets the kernel do what we leave to it, with the device's offloads or in software. The VLAN
//! tag that the kernel moves out of each frame it receives is put back.
//!
//! Frames arrive in a ring of slots that is shared with the kernel (`inward`) and leave by another (`outward`), 1.25 MiB together for
//! a queue. What arrives while nobody asks waits in the first, 512 frames; what comes beyond that is lost, and counted. To receive takes no system call, to send takes one for up to 32 frames. GSO frames and others that are longer than a
//! slot take a call each to receive, and leave by sendmmsg(2). Each frame is copied once each way.
//!
//! What that won (`make bench`, `wires/forward-60`, beside recvmmsg(2) and sendmmsg(2)): receiving by a ring 1.6 times the
//! frames, sending by one another 1.3 times. TCP (`wires/tcp`) by some hundredths, for long frames are received where they stay.
//!
//! Three things to know:
//!
//! * **The host's own stack sees what arrives, too**, as with Open vSwitch's userspace datapath: a copy goes
//!   to the socket and the frame goes on. A device without an address answers little by itself; to keep
//!   everything from the host, drop it behind the socket:
//!   `tc qdisc add dev NAME clsact; tc filter add dev NAME ingress matchall action drop`.
//! * Frames go out through the device's queueing discipline, so that traffic control works
//!   (no `PACKET_QDISC_BYPASS`). The kernel takes a frame 4 bytes over the MTU only if its outer tag is
//!   802.1Q: for full-size 802.1ad frames raise the device's MTU by 4.
//! * The kernel's ring can get stuck by a frame that it cannot describe (`Inward::is_stuck`), which whoever is on the
//!   other end of a veth can send. That is found within a second; from then on the queue receives by recvmmsg(2).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{iter, slice};

use encap::field::VlanTag;
use nix::errno::Errno;
use nix::net::if_::InterfaceFlags;
use thiserror::Error;

use self::inward::{Announced, Body, Inward};
use self::outward::Outward;
use self::socket::Arrival;
use super::netdev::{Netdev, NetdevError};
use super::overflow::{self, Overflow};
use super::sockopt::Failure;
use super::{Counters, LONG_BATCH, Offloads, Port, PortError, Readiness, Sent, vnet};
use crate::batch::Batch;
use crate::frame::{Frame, FrameCache, HEADROOM, SMALL};

mod inward;
mod outward;
mod slots;
mod socket;
#[cfg(test)]
mod tests;

/// The most queues of one device: sockets that share its traffic (`PACKET_FANOUT_MAX` of old kernels).
pub const QUEUES_MAX: u16 = 256;

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
    let mtu = device.mtu()?;
    let sockets = (0..queues).map(|_| socket::open(index)).collect::<Result<Vec<_>, _>>().map_err(refused)?;
    if queues > 1 {
        socket::share(sockets.iter().map(|(socket, _)| socket)).map_err(refused)?;
    }
    let offloads = Offloads { csum: true, tso: true, uso: socket::takes_udp_gso() };
    let device = Arc::new(device);
    let port = |(socket, inward)| {
        let outward = socket::open_outward(index, mtu)?;
        socket::unmute(&socket)?;
        let (inward, device, counters) = (Some(inward), Arc::clone(&device), Counters::default());
        let (leaving, in_doubt, broken) = (None, true, None);
        Ok(PacketPort { socket, inward, leaving, outward, device, offloads, in_doubt, broken, counters })
    };
    sockets.into_iter().map(port).collect::<Result<_, _>>().map_err(refused)
}

/// One queue of a network device.
#[derive(Debug)]
pub struct PacketPort {
    /// All arrives here, and what is not for a ring leaves here.
    socket: OwnedFd,
    /// None once it got stuck.
    inward: Option<Inward>,
    /// Who has the kernel let go of a ring that got stuck.
    leaving: Option<JoinHandle<Result<(), Errno>>>,
    outward: Outward,
    device: Arc<Netdev>,
    offloads: Offloads,
    /// If nothing comes, is it for the device being gone? A ring does not tell.
    in_doubt: bool,
    /// Why the socket is of no use any more.
    broken: Option<Errno>,
    counters: Counters,
}

impl PacketPort {
    /// Receives by the ring.
    fn receive_slots(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), Errno> {
        let (mut taken, mut queued) = (0, 0);
        while !batch.is_full() && queued < LONG_BATCH {
            let Some(slot) = self.inward.as_ref().and_then(Inward::peek) else { break };
            queued += usize::from(matches!(slot.body, Body::Queued));
            match take(&self.socket, &slot, frames) {
                Taken::Whole(frame, arrival) => batch.extend(self.accept(frame, &arrival, frames)),
                Taken::Lost => self.counters.rx_missed += 1,
                Taken::Not => break,
                Taken::Refused(errno) => return Err(errno),
            }
            self.inward.as_mut().into_iter().for_each(Inward::advance);
            taken += 1;
        }
        let is_asked = taken == 0 && std::mem::take(&mut self.in_doubt);
        if is_asked { socket::check(&self.socket) } else { Ok(()) }
    }

    /// Receives by frames whose ends land in the thread's overflow.
    fn receive_queue(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), Errno> {
        let mut small: Batch = (0..batch.remaining_capacity()).map_while(|_| frames.alloc()).collect();
        Overflow::with(|overflow| {
            let received = socket::receive(&self.socket, &mut small, overflow.parts_mut());
            let arrivals = received.as_deref().unwrap_or_default();
            let unused = small.drain(arrivals.len()..);
            unused.for_each(|frame| frames.free(frame));
            for (place, (frame, arrival)) in small.drain(..).zip(arrivals).enumerate() {
                let frame = overflow::join(frame, arrival.len, overflow.of(place), frames);
                batch.extend(self.accept(frame, arrival, frames));
            }
            received.map(drop)
        })
    }

    /// Sends frames from the front, by the ring or not. Returns how many the kernel took, at least one.
    fn send(&mut self, frames: &[Frame]) -> Result<usize, Errno> {
        let takes = |frame: &Frame| self.outward.takes(frame);
        let fit = frames.iter().take_while(|frame| takes(frame)).count();
        if fit == 0 {
            let others = frames.iter().take_while(|frame| !takes(frame)).count();
            return socket::send(&self.socket, &frames[..others]);
        }
        match self.outward.send(&frames[..fit])? {
            // All slots are on their way, which is no reason to keep the others waiting.
            0 => socket::send(&self.socket, &frames[..fit]),
            taken => Ok(taken),
        }
    }

    /// Goes on without a ring that is stuck.
    #[cold]
    fn unring(&mut self) {
        match self.inward.take().map(|ring| ring.leave(&self.socket)) {
            Some(Ok(leaving)) => self.leaving = Some(leaving),
            Some(Err(errno)) => self.broken = Some(errno),
            None => {}
        }
    }

    /// Has the kernel let go of the ring meanwhile?
    fn follow_up(&mut self) {
        if let Some(leaving) = self.leaving.take_if(|leaving| leaving.is_finished()) {
            self.broken = leaving.join().unwrap_or(Err(Errno::ENXIO)).err();
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

/// What became of a frame that a slot tells of.
enum Taken {
    Whole(Frame, Arrival),
    /// It had to be dropped.
    Lost,
    /// It waits where it is: the pool is empty.
    Not,
    /// It waits where it is: the socket told of an error instead, once.
    Refused(Errno),
}

fn take(socket: &OwnedFd, slot: &Announced<'_>, frames: &mut FrameCache) -> Taken {
    match slot.body {
        Body::Here(bytes) => match frames.from_bytes(bytes) {
            Some(frame) => Taken::Whole(frame, Arrival { len: slot.len, header: slot.header, tag: slot.tag }),
            None if slot.len <= SMALL - HEADROOM => Taken::Not,
            None => Taken::Lost,
        },
        Body::Queued => take_queued(socket, slot.len, frames),
        Body::Lost => Taken::Lost,
    }
}

/// Takes the frame that is next in the socket's queue and has `len` bytes.
fn take_queued(socket: &OwnedFd, len: usize, frames: &mut FrameCache) -> Taken {
    // Without a big frame it must leave the queue all the same: into a small one, as far as it goes.
    let Some(mut frame) = frames.alloc_for(len).or_else(|| frames.alloc()) else { return Taken::Not };
    let received = socket::receive(socket, slice::from_mut(&mut frame), iter::once(&mut [][..]));
    let taken = match received.map(|mut arrivals| arrivals.pop()) {
        Ok(Some(arrival)) if arrival.len <= frame.room() => return Taken::Whole(frame, arrival),
        Err(errno) if is_gone(errno) => Taken::Refused(errno),
        _ => Taken::Lost,
    };
    frames.free(frame);
    taken
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
        if let Some(errno) = self.broken {
            return Err(PortError::Gone(errno.into()));
        }
        let received = match self.inward {
            Some(_) => self.receive_slots(frames, batch),
            None => self.receive_queue(frames, batch),
        };
        received.or_else(|errno| self.receive_failed(errno))
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let mut sent = Sent::default();
        let mut done = 0;
        while done < batch.len() {
            match self.send(&batch[done..]) {
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
        Readiness::Ring(self.socket.as_fd())
    }

    /// The descriptor may have told of an error instead of a frame.
    fn disarm(&mut self) {
        self.in_doubt = true;
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn counters(&mut self) -> Counters {
        let lost = socket::losses(&self.socket);
        self.counters.rx_missed += lost;
        self.in_doubt = true;
        if let Ok(mtu) = self.device.mtu() {
            self.outward.set_mtu(mtu);
        }
        if self.inward.as_mut().is_some_and(|ring| ring.is_stuck(lost)) {
            self.unring();
        }
        self.follow_up();
        self.counters
    }
}
