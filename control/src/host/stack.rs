//! One endpoint: a MAC address, some IP addresses, and all that a host must say to be one, in virtual time.
//!
//! smoltcp is its IP layer: it answers ICMP echo requests and complains about ports where nobody listens. ARP and
//! neighbour discovery are ours, so that the data plane has the table that they make. An answer to an IP packet goes back
//! to the station the packet came from, which needs no table at all.
//!
//! Every frame costs one parse and at most one answer, which is no longer than the frame.

use std::net::IpAddr;
use std::time::Duration;

use encap::field::MacAddr;
use flowtable::lpm::Prefix;
use flowtable::time::Instant;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::neighbours::{Neighbours, Question};
use super::wire::{self, ETHERNET, Said, Speaker, TooBig, Weight};
use crate::config::Cidr;

/// How often an endpoint announces itself, and how long it waits in between (RFC 5227 section 2.3, RFC 4861 section
/// 7.2.6: a few, as frames get lost).
const ANNOUNCEMENTS: u8 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// The most addresses of an endpoint: what smoltcp is built for (`iface-max-addr-count-8`), less the link-local one.
pub const ADDRESSES: usize = 7;

/// Who an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its addresses; [`ADDRESSES`] of them count.
    pub addresses: Vec<Cidr>,
}

impl Identity {
    /// The addresses, and the link-local one that everybody who speaks IPv6 has (RFC 4291 section 2.8).
    fn all(&self) -> impl Iterator<Item = Cidr> {
        let configured = self.addresses.iter().copied().take(ADDRESSES);
        let v6 = self.addresses.iter().any(|cidr| cidr.address.is_ipv6());
        configured.chain(v6.then(|| link_local(self.mac)))
    }

    fn has(&self, address: IpAddr) -> bool {
        self.all().any(|cidr| cidr.address == address)
    }

    /// Who speaks to `target`: an address of the same network if there is one, else of the same family.
    fn speaker(&self, target: IpAddr) -> Option<Speaker> {
        let family = || self.all().filter(|cidr| cidr.address.is_ipv4() == target.is_ipv4());
        let cidr = family().find(|cidr| cidr.network.contains(target)).or_else(|| family().next())?;
        Some(Speaker { mac: self.mac, address: cidr.address })
    }
}

/// RFC 4291, appendix A.
fn link_local(mac: MacAddr) -> Cidr {
    let m = mac.0;
    let address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]];
    let address = IpAddr::from(address);
    Cidr { address, network: Prefix::new(address, 64).expect("IPv6 has 128 bits") }
}

/// What a frame changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// What the data plane goes by: a neighbour's MAC address.
    Neighbour,
    /// A packet of ours did not fit.
    TooBig(TooBig),
    /// Another station has an address of ours.
    Conflict {
        /// The address.
        address: IpAddr,
        /// The other station.
        mac: MacAddr,
    },
}

/// An endpoint.
pub struct Stack {
    identity: Identity,
    /// The neighbours.
    pub neighbours: Neighbours,
    interface: Interface,
    line: Line,
    /// How many are left, and when the next is due.
    announcements: (u8, Instant),
    outgoing: Vec<Vec<u8>>,
}

impl Stack {
    /// An endpoint that is about to announce itself.
    pub fn new(identity: Identity, now: Instant) -> Self {
        let mut line = Line::default();
        let interface = Interface::new(Config::new(HardwareAddress::Ip), &mut line, time(now));
        let mut stack = Stack {
            identity: Identity { mac: identity.mac, addresses: Vec::new() },
            neighbours: Neighbours::default(),
            interface,
            line,
            announcements: (0, now),
            outgoing: Vec::new(),
        };
        stack.identify(identity, now);
        stack
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// It is somebody else from now on.
    pub fn identify(&mut self, identity: Identity, now: Instant) {
        if identity == self.identity {
            return;
        }
        self.identity = identity;
        let cidr = |cidr: Cidr| IpCidr::new(cidr.address.into(), cidr.network.prefix_len());
        let cidrs: Vec<IpCidr> = self.identity.all().map(cidr).collect();
        self.interface.update_ip_addrs(|all| {
            all.clear();
            all.extend(cidrs);
        });
        self.announce(now);
    }

    /// Begins to announce itself.
    pub fn announce(&mut self, now: Instant) {
        self.announcements = (ANNOUNCEMENTS, now);
    }

    /// Frames to send.
    pub fn outgoing(&mut self) -> impl Iterator<Item = Vec<u8>> {
        self.outgoing.drain(..)
    }

    /// Puts questions about neighbours.
    pub fn put(&mut self, questions: impl IntoIterator<Item = Question>) {
        for Question { target, to } in questions {
            let frame = self.identity.speaker(target).and_then(|speaker| wire::question(speaker, target, to));
            self.outgoing.extend(frame);
        }
    }

    /// A frame came.
    pub fn receive(&mut self, frame: &[u8], now: Instant) -> Option<News> {
        match wire::read(frame) {
            Some(Said::Question { target, asker, mac }) => self.asked(target, (asker, mac), now),
            Some(Said::Answer { address, mac, weight }) => self.heard(address, mac, weight, now),
            Some(Said::TooBig(message)) => {
                let ours = self.identity.has(message.local) && self.is_to_us(frame);
                ours.then_some(News::TooBig(message))
            }
            None => {
                self.receive_packet(frame, now);
                None
            }
        }
    }

    fn asked(
        &mut self,
        target: IpAddr,
        (asker, mac): (IpAddr, Option<MacAddr>),
        now: Instant,
    ) -> Option<News> {
        if mac == Some(self.identity.mac) {
            return None;
        }
        if self.identity.has(target) {
            let speaker = Speaker { mac: self.identity.mac, address: target };
            self.outgoing.extend(wire::answer(speaker, asker, mac));
        }
        // Who asks says who it is (RFC 826, RFC 4861 section 7.2.3).
        self.heard(asker, mac?, Weight::Override, now)
    }

    fn heard(&mut self, address: IpAddr, mac: MacAddr, weight: Weight, now: Instant) -> Option<News> {
        if mac == self.identity.mac {
            return None;
        }
        if self.identity.has(address) {
            return Some(News::Conflict { address, mac });
        }
        self.neighbours.heard(address, mac, weight, now).then_some(News::Neighbour)
    }

    fn is_to_us(&self, frame: &[u8]) -> bool {
        frame.get(..6) == Some(&self.identity.mac.0[..])
    }

    /// What is sent to us alone is smoltcp's; what is sent to all it need not see.
    fn receive_packet(&mut self, frame: &[u8], now: Instant) {
        let Some(packet) = frame.get(ETHERNET..).filter(|_| self.is_to_us(frame) && is_ip(frame)) else {
            return;
        };
        let sender = MacAddr(frame[6..12].try_into().expect("six bytes"));
        if sender.is_multicast() || sender == self.identity.mac {
            return;
        }
        self.line.incoming = Some(packet.to_vec());
        let mut sockets = SocketSet::new(Vec::new());
        while self.interface.poll_ingress_single(time(now), &mut self.line, &mut sockets)
            != PollIngressSingleResult::None
        {}
        let mac = self.identity.mac;
        self.outgoing.extend(self.line.outgoing.drain(..).map(|packet| wire::ethernet(sender, mac, &packet)));
    }

    /// Does what is due. True if a neighbour was lost or given up.
    pub fn turn(&mut self, now: Instant) -> bool {
        let (left, at) = self.announcements;
        if left > 0 && at <= now {
            self.announcements = (left - 1, now + PAUSE);
            let speaker = |cidr: Cidr| Speaker { mac: self.identity.mac, address: cidr.address };
            self.outgoing.extend(self.identity.all().map(|cidr| wire::announcement(speaker(cidr))));
        }
        let (questions, lost) = self.neighbours.turn(now);
        self.put(questions);
        lost
    }

    /// When [`Stack::turn`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let (left, at) = self.announcements;
        (left > 0).then_some(at).into_iter().chain(self.neighbours.deadline()).min()
    }
}

/// IPv4 or IPv6, by EtherType and version alike.
fn is_ip(frame: &[u8]) -> bool {
    matches!(
        (&frame[12..14], frame.get(14).map(|byte| byte >> 4)),
        ([8, 0], Some(4)) | ([0x86, 0xdd], Some(6))
    )
}

fn time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros((now.as_nanos() / 1000) as i64)
}

/// smoltcp's device: one packet in, answers out.
#[derive(Default)]
struct Line {
    incoming: Option<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

impl Device for Line {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        Some((Incoming(self.incoming.take()?), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // Whatever fitted on its way here fits on its way back.
        capabilities.max_transmission_unit = usize::from(u16::MAX);
        capabilities
    }
}

struct Incoming(Vec<u8>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Outgoing<'a>(&'a mut Vec<Vec<u8>>);

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

#[cfg(test)]
mod tests;
