//! Guests in memory: a whole IP host (smoltcp) at the far end of a memory port, in virtual time.
//!
//! A guest resolves addresses (ARP, ND), answers echo requests, and carries a TCP stream. [`play`] lets guests
//! and switch take turns until something has happened, and moves the clock only when everybody is waiting.

use std::collections::VecDeque;
use std::time::Duration;

use dataplane::port::memory::Peer;
use encap::field::{MacAddr, VlanId};
use flowtable::time::Instant;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr,
};

/// The echo identifier of all guests; each has an address of its own.
const IDENT: u16 = 0x5b1c;
/// Bytes of an echo's payload.
const ECHO: [u8; 32] = *b"as many bytes as ping would send";
/// Bytes of buffer per direction of a stream.
const WINDOW: usize = 64 * 1024;
/// The Ethernet header's two addresses, behind which a tag is put.
const ADDRESSES: usize = 12;

/// A host.
pub struct Guest {
    cable: Cable,
    iface: Interface,
    sockets: SocketSet<'static>,
    echo: SocketHandle,
    stream: SocketHandle,
    outbox: VecDeque<u8>,
    inbox: Vec<u8>,
    answers: usize,
}

impl Guest {
    /// A host with this MAC and these addresses (`"10.0.0.1/24"`, `"fd00::1/64"`) behind `peer`.
    pub fn new(peer: Peer, mac: MacAddr, addresses: &[&str]) -> Guest {
        let mut cable = Cable { peer, tag: None, arrived: VecDeque::new() };
        let hardware = HardwareAddress::Ethernet(EthernetAddress(mac.0));
        let mut iface = Interface::new(Config::new(hardware), &mut cable, SmolInstant::ZERO);
        iface.update_ip_addrs(|list| {
            addresses
                .iter()
                .for_each(|a| list.push(a.parse::<IpCidr>().expect(a)).expect("room for the address"));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let (echo, stream) = (sockets.add(echo_socket()), sockets.add(stream_socket()));
        Guest { cable, iface, sockets, echo, stream, outbox: VecDeque::new(), inbox: Vec::new(), answers: 0 }
    }

    /// The host, behind a trunk: it tags all it sends with `vlan` and hears that VLAN only.
    pub fn tagged(mut self, vlan: VlanId) -> Guest {
        self.cable.tag = Some(vlan);
        self
    }

    /// Sends an echo request, once the address is resolved.
    pub fn ping(&mut self, to: &str) {
        let to: IpAddress = to.parse().expect(to);
        let request = self.echo_request(to);
        self.sockets.get_mut::<icmp::Socket>(self.echo).send_slice(&request, to).expect("room for a request");
    }

    /// How many echo replies came.
    pub fn answers(&self) -> usize {
        self.answers
    }

    /// Waits for a TCP connection.
    pub fn listen(&mut self, port: u16) {
        self.sockets.get_mut::<tcp::Socket>(self.stream).listen(port).expect("a stream not in use");
    }

    /// Opens a TCP connection and sends all of `bytes` over it.
    pub fn send(&mut self, to: &str, port: u16, bytes: &[u8]) {
        let to: IpAddress = to.parse().expect(to);
        let stream = self.sockets.get_mut::<tcp::Socket>(self.stream);
        stream.connect(self.iface.context(), (to, port), 49152).expect("a stream not in use");
        self.outbox.extend(bytes);
    }

    /// What came over the TCP connection so far.
    pub fn received(&self) -> &[u8] {
        &self.inbox
    }

    /// Lets the host work at `now`; did anything move?
    pub fn poll(&mut self, now: Instant) -> bool {
        let mut moved = self.cable.collect();
        let now = smol(now);
        while self.iface.poll(now, &mut self.cable, &mut self.sockets)
            == smoltcp::iface::PollResult::SocketStateChanged
        {
            self.collect_answers();
            self.pump();
            moved = true;
        }
        self.pump() | moved
    }

    /// How long until it wants to work again though nothing arrived.
    pub fn patience(&mut self, now: Instant) -> Option<Duration> {
        self.iface.poll_delay(smol(now), &self.sockets).map(Into::into)
    }

    fn echo_request(&self, to: IpAddress) -> Vec<u8> {
        let checksums = ChecksumCapabilities::default();
        match to {
            IpAddress::Ipv4(_) => {
                let repr = Icmpv4Repr::EchoRequest { ident: IDENT, seq_no: 0, data: &ECHO };
                let mut bytes = vec![0; repr.buffer_len()];
                repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksums);
                bytes
            }
            IpAddress::Ipv6(to) => {
                let repr = Icmpv6Repr::EchoRequest { ident: IDENT, seq_no: 0, data: &ECHO };
                let from = self.iface.get_source_address_ipv6(&to);
                let mut bytes = vec![0; repr.buffer_len()];
                repr.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(&mut bytes), &checksums);
                bytes
            }
        }
    }

    fn collect_answers(&mut self) {
        let echo = self.sockets.get_mut::<icmp::Socket>(self.echo);
        while let Ok((message, _)) = echo.recv() {
            // Type 0 and 129 are replies (RFC 792, RFC 4443); 0 and 129 only, for requests come here too.
            self.answers += usize::from(matches!(message[0], 0 | 129) && message.ends_with(&ECHO));
        }
    }

    /// Moves bytes between the stream's buffers and ours.
    fn pump(&mut self) -> bool {
        let stream = self.sockets.get_mut::<tcp::Socket>(self.stream);
        let mut moved = 0;
        if stream.can_send() {
            let sent = stream.send_slice(self.outbox.make_contiguous()).expect("an open stream");
            self.outbox.drain(..sent);
            moved += sent;
        }
        if stream.can_recv() {
            let taken = |bytes: &mut [u8]| (bytes.len(), bytes.to_vec());
            let bytes = stream.recv(taken).expect("an open stream");
            moved += bytes.len();
            self.inbox.extend(bytes);
        }
        moved > 0
    }
}

fn echo_socket() -> icmp::Socket<'static> {
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 16], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(IDENT)).expect("a fresh socket");
    socket
}

fn stream_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; WINDOW]);
    tcp::Socket::new(buffer(), buffer())
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros((now.as_nanos() / 1000) as i64)
}

/// Guests and switch take turns, `switch` running at the virtual time it is given, until `done`. Time stands
/// still while anything moves, and otherwise jumps to when somebody wants to go on. Returns the time.
///
/// # Panics
/// If `limit` of virtual time passes first.
pub fn play(
    guests: &mut [Guest],
    (begin, limit): (Instant, Duration),
    mut switch: impl FnMut(Instant),
    mut done: impl FnMut(&[Guest]) -> bool,
) -> Instant {
    let mut now = begin;
    while !done(guests) {
        assert!(now.since(begin) <= limit, "not within {limit:?} of virtual time");
        let moved = guests.iter_mut().fold(false, |moved, guest| guest.poll(now) | moved);
        switch(now);
        if !moved {
            let wanted = guests.iter_mut().filter_map(|guest| guest.patience(now)).min();
            now = now + wanted.unwrap_or(STEP).clamp(Duration::from_micros(1), STEP);
        }
    }
    now
}

/// The most that time jumps at once, so that the switch's own upkeep is not skipped.
const STEP: Duration = Duration::from_millis(10);

/// The guest's network card.
struct Cable {
    peer: Peer,
    tag: Option<VlanId>,
    arrived: VecDeque<Vec<u8>>,
}

impl Cable {
    /// Takes what the switch has sent; was there anything?
    fn collect(&mut self) -> bool {
        let tag = self.tag;
        let frames = self.peer.drain().into_iter().map(|delivered| delivered.bytes);
        let before = self.arrived.len();
        self.arrived.extend(frames.filter_map(|frame| match tag {
            Some(vlan) => untag(frame, vlan),
            None => Some(frame),
        }));
        self.arrived.len() > before
    }
}

/// The frame without its 802.1Q tag, if it has one of this VLAN.
fn untag(mut frame: Vec<u8>, vlan: VlanId) -> Option<Vec<u8>> {
    let tag = frame.get(ADDRESSES..ADDRESSES + 4)?;
    let ours = tag[..2] == [0x81, 0x00] && u16::from_be_bytes([tag[2], tag[3]]) & 0xfff == vlan.get();
    ours.then(|| {
        frame.drain(ADDRESSES..ADDRESSES + 4);
        frame
    })
}

impl Device for Cable {
    type RxToken<'a> = Arrival;
    type TxToken<'a> = Departure<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Arrival, Departure<'_>)> {
        let frame = self.arrived.pop_front()?;
        Some((Arrival(frame), Departure { peer: &mut self.peer, tag: self.tag }))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Departure<'_>> {
        Some(Departure { peer: &mut self.peer, tag: self.tag })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A frame that arrived.
pub struct Arrival(Vec<u8>);

impl RxToken for Arrival {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// The right to send a frame.
pub struct Departure<'a> {
    peer: &'a mut Peer,
    tag: Option<VlanId>,
}

impl TxToken for Departure<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        if let Some(vlan) = self.tag {
            let [high, low] = vlan.get().to_be_bytes();
            frame.splice(ADDRESSES..ADDRESSES, [0x81, 0x00, high, low]);
        }
        // A full wire loses the frame, as a wire does; the protocols above recover.
        let _ = self.peer.inject(&frame);
        result
    }
}
