//! A wire without a stack: sends and receives bare frames on a host's interface, tags and all.

use dataplane::batch::Batch;
use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig};
use dataplane::port::Port;
use dataplane::port::packet::{self, PacketPort};
use encap::field::MacAddr;

use super::host::Host;
use super::lab::eventually;
use super::namespace::Namespace;

/// The EtherType of our frames: IEEE 802's first local experimental one, which no stack speaks.
pub const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// The far end of a switch's port.
pub struct Wire {
    port: PacketPort,
    frames: FrameCache,
}

impl Wire {
    /// On `eth0` of a host.
    pub fn of(host: &Host) -> Wire {
        Wire::on(&host.ns, "eth0")
    }

    /// On any interface.
    pub fn on(namespace: &Namespace, interface: &str) -> Wire {
        let pool = FramePool::new(PoolConfig { small: 256, big: 4, memory: Memory::Plain }).expect("memory");
        let mut ports = namespace.run(|| packet::open(interface, 1)).expect("a packet socket");
        Wire { port: ports.remove(0), frames: FrameCache::new(pool) }
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: &[u8]) {
        let mut batch = Batch::new();
        batch.push(self.frames.from_bytes(frame).expect("room in the pool"));
        eventually("the wire takes a frame", || {
            self.port.tx(&mut self.frames, &mut batch).expect("the interface is up");
            batch.is_empty()
        });
    }

    /// All experimental frames that have arrived.
    pub fn arrived(&mut self) -> Vec<Vec<u8>> {
        self.seen().into_iter().filter(|frame| is_experiment(frame)).collect()
    }

    /// All frames that have arrived, a batch at most.
    pub fn seen(&mut self) -> Vec<Vec<u8>> {
        let mut batch = Batch::new();
        self.port.rx(&mut self.frames, &mut batch).expect("the interface is up");
        let frames = batch.iter().map(|frame| frame.bytes().to_vec()).collect();
        batch.into_iter().for_each(|frame| self.frames.free(frame));
        frames
    }

    /// The next experimental frame, once it arrives.
    pub fn next(&mut self) -> Vec<u8> {
        let mut got = Vec::new();
        eventually("an experimental frame arrives", || {
            got.extend(self.arrived());
            !got.is_empty()
        });
        got.remove(0)
    }
}

/// Is the EtherType, behind up to two tags, ours?
fn is_experiment(frame: &[u8]) -> bool {
    [12, 16, 20].iter().any(|at| frame.get(*at..at + 2) == Some(&EXPERIMENT))
}

/// A gratuitous ARP request (RFC 5227 section 3): everybody shall know where a host is.
pub fn announcement(host: &Host) -> Vec<u8> {
    let mac: MacAddr = host.mac().parse().expect("an address");
    let mut bytes = [&[255; 6][..], &mac.0].concat();
    // Type ARP; Ethernet, IPv4, lengths of both addresses, request (RFC 826).
    bytes.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    bytes.extend([&mac.0[..], &host.ip.octets(), &[0; 6], &host.ip.octets()].concat());
    bytes
}

/// An experimental frame from station `from` to station `to` (the last octet of their addresses; 255 is
/// everybody), with these 802.1Q tags, outermost first.
pub fn frame(from: u8, to: u8, tags: &[u16], payload: &[u8]) -> Vec<u8> {
    let station = |number: u8| if number == 255 { [255; 6] } else { [2, 0, 0, 0, 0xee, number] };
    let mut bytes = [station(to), station(from)].concat();
    tags.iter().for_each(|tci| bytes.extend([[0x81, 0x00], tci.to_be_bytes()].concat()));
    bytes.extend(EXPERIMENT);
    bytes.extend(payload);
    bytes
}
