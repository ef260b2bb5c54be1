//! The fallback underlay: outer frames through the IP stack of the host.
//!
//! No network device is needed, so Sluice can join an overlay from any machine that has an IP address. The price, beside a
//! walk through the kernel's stack for each frame: up to 32 cross per system call, each is copied once, and a TCP
//! segment of a guest is cut before it leaves.
//!
//! VXLAN and Geneve are UDP sockets, GRE is a raw socket; one of each family listens. The sockets are all that differs from a
//! network device: in front of what arrives stand Ethernet, IP and UDP headers again, made from what the kernel says of the
//! real ones, and those of what leaves are taken off and become wishes. So the pipeline has one way of doing tunnels.
//!
//! * Outer packets are never fragmented (`IP_PMTUDISC_DO`); one that is too long for its path is refused, counted, and told
//!   of ([`Overlong`]), so that the next is known to be too long before it comes here.
//! * The UDP source port is one of [`EXITS`], chosen by the one the frame has: enough entropy for the queues of a card.
//! * What a kernel in the same machine (a container's) sends comes unfinished, as it crossed no wire: see [`Frame::unsaid`].

mod control;
mod overlong;
mod socket;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use encap::checksum::Sum;
use encap::field::EtherType;
use encap::offsets::walk;
use encap::tunnel::TunnelKind;
use flowtable::places::Places;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use thiserror::Error;

use self::control::Fields;
pub use self::overlong::{Overlong, path_mtu};
use self::socket::{Arrival, Departure, Sums, Wanted};
use super::overflow::{self, Overflow};
use super::sockopt::Failure;
use super::{Counters, Port, PortError, Readiness, Sent};
use crate::batch::{BATCH, Batch};
use crate::frame::{Frame, FrameCache};

/// How many UDP sockets, each with a port of its own, a family is sent by; as many again for what is to have a checksum. A
/// batch takes a system call for each of those that its flows choose.
const EXITS: usize = 8;

/// The Ethernet header of what arrives, without the type: from one made-up station to another.
const STATIONS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
const ETHERNET: usize = 14;
const UDP: usize = 8;

/// The sockets cannot be had.
#[derive(Debug, Error)]
pub enum HostError {
    /// No permission.
    #[error("no permission to open a raw socket for {0}; run as root or with CAP_NET_RAW")]
    Forbidden(TunnelKind),
    /// Somebody else listens there.
    #[error(
        "UDP port {0} is taken; remove the {1} device of the kernel or the switch that has it, or set another `dst-port`"
    )]
    Taken(u16, TunnelKind),
    /// The host does not have the address.
    #[error("the host has no address {0}; give it one, or set another `local-ip`")]
    NoAddress(IpAddr),
    /// The kernel said no.
    #[error("cannot {what} on a socket for {kind}: {source}")]
    Refused {
        /// The kind of tunnel.
        kind: TunnelKind,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

/// What to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The kind of tunnel.
    pub kind: TunnelKind,
    /// The UDP port to listen on; of no meaning for GRE.
    pub dst_port: u16,
    /// The only address to listen on. `None`: all of both families.
    pub local: Option<IpAddr>,
}

/// The sockets of one family.
#[derive(Debug)]
struct Family {
    is_ipv4: bool,
    listen: OwnedFd,
    /// What is sent by: [`EXITS`] that do not sum, and those that do. None: the socket that listens.
    exits: Vec<OwnedFd>,
}

/// All tunnels of one kind and UDP port, through the host's IP stack.
pub struct HostPort {
    request: Request,
    families: ArrayVec<Family, 2>,
    ready: Epoll,
    /// The family that is asked first, so that neither keeps the other from its turn.
    turn: usize,
    overlong: Arc<Overlong>,
    counters: Counters,
}

/// Opens the sockets, in the network namespace of the calling thread. Whose path a packet is too long for, `overlong` is told.
///
/// # Errors
/// [`HostError`]; nothing is left behind.
pub fn open(request: Request, overlong: &Arc<Overlong>) -> Result<HostPort, HostError> {
    let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let addresses = request.local.as_ref().map_or(&any[..], std::slice::from_ref);
    let epoll = |source| HostError::Refused { kind: request.kind, what: "wait", source };
    let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(epoll)?;
    let mut families = ArrayVec::new();
    for address in addresses {
        match Family::open(request, *address) {
            Ok(family) => {
                ready.add(&family.listen, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(epoll)?;
                families.push(family);
            }
            // A kernel without IPv6 carries IPv4.
            Err(failure) if failure.errno == Errno::EAFNOSUPPORT && !families.is_empty() => {}
            Err(failure) => return Err(refused(request, *address, failure)),
        }
    }
    let overlong = Arc::clone(overlong);
    Ok(HostPort { request, families, ready, turn: 0, overlong, counters: Counters::default() })
}

fn refused(request: Request, address: IpAddr, failure: Failure) -> HostError {
    let Request { kind, dst_port, .. } = request;
    match failure.errno {
        Errno::EPERM | Errno::EACCES => HostError::Forbidden(kind),
        Errno::EADDRINUSE => HostError::Taken(dst_port, kind),
        Errno::EADDRNOTAVAIL => HostError::NoAddress(address),
        source => HostError::Refused { kind, what: failure.what, source },
    }
}

impl Family {
    fn open(request: Request, address: IpAddr) -> Result<Family, Failure> {
        let Request { kind, dst_port, .. } = request;
        let open = |port, csum| socket::open(Wanted { kind, at: (address, port).into(), csum });
        let (listen, exits) = match kind {
            TunnelKind::Gre => (open(0, Sums::None)?, Vec::new()),
            TunnelKind::Vxlan | TunnelKind::Geneve => {
                let exits = (0..2 * EXITS).map(|n| open(0, if n < EXITS { Sums::None } else { Sums::Udp }));
                (open(dst_port, Sums::None)?, exits.collect::<Result<_, _>>()?)
            }
        };
        Ok(Family { is_ipv4: address.is_ipv4(), listen, exits })
    }

    /// The socket to send by.
    fn exit(&self, index: usize) -> &OwnedFd {
        self.exits.get(index).unwrap_or(&self.listen)
    }
}

/// A packet that shall leave.
struct Outgoing<'a> {
    departure: Departure<'a>,
    /// Which family and which of its sockets.
    by: (usize, usize),
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Sent,
    /// There was no room.
    Left,
    /// The kernel does not send it, or it is none to be sent.
    Refused,
}

impl HostPort {
    /// Makes a frame of what has arrived in `small`. `None`: it had to be dropped, and is counted.
    fn accept(
        &mut self,
        small: Frame,
        (arrival, rest): (&Arrival, &[u8]),
        frames: &mut FrameCache,
    ) -> Option<Frame> {
        let mut frame = overflow::join(small, arrival.len, rest, frames);
        if arrival.len > frame.room() {
            self.counters.rx_missed += 1;
        } else {
            frame.set_len(arrival.len);
            frame.unsaid = true;
            if wrap(&mut frame, self.request, arrival).is_some() {
                return Some(frame);
            }
            self.counters.rx_errors += 1;
        }
        frames.free(frame);
        None
    }

    /// The packet in a frame, without the headers that the kernel makes.
    fn outgoing<'a>(&self, frame: &'a [u8]) -> Option<Outgoing<'a>> {
        let offsets = walk(frame).ok()?;
        let ip = offsets.ip.filter(|ip| ip.proto == self.request.kind.proto())?;
        let (header, packet) = (&frame[ip.l3()..], &frame[ip.l4()?..ip.end()]);
        let (from, to, tos, ttl) = match offsets.ether_type {
            EtherType::IPV4 => {
                let [_, tos, _, _, _, _, _, _, ttl, _, _, _, a, b, c, d, e, f, g, h, ..] = *header else {
                    return None;
                };
                let [from, to] = [[a, b, c, d], [e, f, g, h]].map(IpAddr::from);
                (from, to, tos, ttl)
            }
            _ => {
                let (words, rest) = header.split_first_chunk::<8>()?;
                let (from, rest) = rest.split_first_chunk::<16>()?;
                let to = IpAddr::from(*rest.first_chunk::<16>()?);
                (IpAddr::from(*from), to, words[0] << 4 | words[1] >> 4, words[7])
            }
        };
        let (port, exit, payload) = match self.request.kind {
            TunnelKind::Gre => (0, 0, packet),
            TunnelKind::Vxlan | TunnelKind::Geneve => {
                let (&[_, entropy, high, low, _, _, csum @ ..], payload) =
                    packet.split_first_chunk::<UDP>()?;
                let summed = if csum == [0, 0] { 0 } else { EXITS };
                (u16::from_be_bytes([high, low]), summed + usize::from(entropy) % EXITS, payload)
            }
        };
        let family = self.families.iter().position(|family| family.is_ipv4 == to.is_ipv4())?;
        let fields = Fields { local: Some(from).filter(|from| !from.is_unspecified()), tos, ttl };
        let departure = Departure { to: (to, port).into(), fields, payload };
        Some(Outgoing { departure, by: (family, exit) })
    }

    /// Sends packets by one socket; says of each what became of it.
    fn send_by(
        &self,
        (family, exit): (usize, usize),
        departures: &[Departure<'_>],
        mut tell: impl FnMut(usize, Fate),
    ) {
        let socket = self.families[family].exit(exit);
        let mut done = 0;
        while done < departures.len() {
            match socket::send(socket, &departures[done..]) {
                Ok(count) => {
                    (done..done + count).for_each(|place| tell(place, Fate::Sent));
                    done += count;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => {
                    return (done..departures.len()).for_each(|place| tell(place, Fate::Left));
                }
                // Too long for its path, or no way there.
                Err(errno) => {
                    if errno == Errno::EMSGSIZE {
                        self.overlong.add(departures[done].to.ip());
                    }
                    tell(done, Fate::Refused);
                    done += 1;
                }
            }
        }
    }

    /// Sends what a batch holds, by socket: the frames of a flow stay in order, as they have the same.
    fn send(&self, batch: &Batch) -> [Fate; BATCH] {
        let mut fates = [Fate::Refused; BATCH];
        let packets: ArrayVec<_, BATCH> = batch.iter().map(|frame| self.outgoing(frame.bytes())).collect();
        let mut waiting = Places::first(batch.len());
        while let Some(first) = waiting.next() {
            let Some(Outgoing { by, departure }) = &packets[first] else { continue };
            let (mut places, mut departures) = (ArrayVec::<_, BATCH>::new(), ArrayVec::<_, BATCH>::new());
            places.push(first);
            departures.push(*departure);
            for place in waiting {
                if let Some(other) = packets[place].as_ref().filter(|other| other.by == *by) {
                    waiting.remove(place);
                    places.push(place);
                    departures.push(other.departure);
                }
            }
            self.send_by(*by, &departures, |index, fate| fates[places[index]] = fate);
        }
        fates
    }
}

/// Puts headers in front of what arrived.
fn wrap(frame: &mut Frame, request: Request, arrival: &Arrival) -> Option<()> {
    let Fields { local, tos, ttl } = arrival.fields;
    let from = arrival.from?;
    let is_gre = request.kind == TunnelKind::Gre;
    // A raw IPv4 socket gives the IP header, too (raw(7)).
    if is_gre && from.is_ipv4() {
        return ethernet(frame, EtherType::IPV4);
    }
    if !is_gre {
        let len = u16::try_from(UDP + frame.len()).ok()?;
        let header = frame.push_front(UDP)?.first_chunk_mut::<UDP>()?;
        let words = [from.port(), request.dst_port, len, 0];
        header
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip(words)
            .for_each(|(octets, word): (&mut [u8; 2], u16)| *octets = word.to_be_bytes());
    }
    let proto = request.kind.proto().0;
    match (from.ip(), local?) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [high, low] = u16::try_from(20 + frame.len()).ok()?.to_be_bytes();
            let header = frame.push_front(20)?.first_chunk_mut::<20>()?;
            header[..12].copy_from_slice(&[0x45, tos, high, low, 0, 0, 0, 0, ttl, proto, 0, 0]);
            header[12..16].copy_from_slice(&src.octets());
            header[16..].copy_from_slice(&dst.octets());
            let checksum = Sum::of(header).checksum();
            header[10..12].copy_from_slice(&checksum);
            ethernet(frame, EtherType::IPV4)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let [high, low] = u16::try_from(frame.len()).ok()?.to_be_bytes();
            let header = frame.push_front(40)?.first_chunk_mut::<40>()?;
            header[..8].copy_from_slice(&[0x60 | tos >> 4, tos << 4, 0, 0, high, low, proto, ttl]);
            header[8..24].copy_from_slice(&src.octets());
            header[24..].copy_from_slice(&dst.octets());
            ethernet(frame, EtherType::IPV6)
        }
        _ => None,
    }
}

fn ethernet(frame: &mut Frame, ether_type: EtherType) -> Option<()> {
    let header = frame.push_front(ETHERNET)?;
    header[..12].copy_from_slice(&STATIONS);
    header[12..ETHERNET].copy_from_slice(&ether_type.0.to_be_bytes());
    Some(())
}

impl Port for HostPort {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.turn = self.turn.wrapping_add(1);
        for turn in 0..self.families.len() {
            let family = (self.turn + turn) % self.families.len();
            let mut small: Batch = (0..batch.remaining_capacity()).map_while(|_| frames.alloc()).collect();
            Overflow::with(|overflow| {
                let received = socket::receive(&self.families[family].listen, &mut small, overflow);
                let arrivals = match &received {
                    Ok(arrivals) => &arrivals[..],
                    Err(Errno::EAGAIN | Errno::EINTR) => &[],
                    Err(_) => {
                        self.counters.rx_errors += 1;
                        &[]
                    }
                };
                small.drain(arrivals.len()..).for_each(|frame| frames.free(frame));
                for (place, (frame, arrival)) in small.drain(..).zip(arrivals).enumerate() {
                    batch.extend(self.accept(frame, (arrival, overflow.of(place)), frames));
                }
            });
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let fates = self.send(batch);
        let mut sent = Sent::default();
        for (frame, fate) in std::mem::take(batch).into_iter().zip(fates) {
            if fate == Fate::Sent {
                sent.count(&frame);
            }
            match fate {
                Fate::Left => batch.push(frame),
                Fate::Sent | Fate::Refused => frames.free(frame),
            }
        }
        Ok(sent)
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Call(self.ready.0.as_fd())
    }

    fn counters(&mut self) -> Counters {
        let lost: u64 = self.families.iter().map(|family| socket::losses(&family.listen)).sum();
        Counters { rx_missed: self.counters.rx_missed + lost, ..self.counters }
    }
}
