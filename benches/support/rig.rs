//! A switch with one poller that a bench turns itself, or several, and what its ports bring.

use std::net::IpAddr;
use std::sync::Arc;

use control::compile::{Compiled, compile};
use control::config;
use control::model::Model;
use dataplane::batch::BATCH;
use dataplane::frame::{FramePool, Memory, PoolConfig};
use dataplane::pktgen::frames::shuffled;
use dataplane::pktgen::reel::Player;
use dataplane::poller::Poller;
use dataplane::port::Port;
use dataplane::run::Clock;
use dataplane::switch::{Switch, SwitchConfig};
use dataplane::underlay::{Endpoint, Underlay};
use encap::field::MacAddr;
use encap::template::{Outer, Template};
use encap::tunnel::TunnelKind;
use flowtable::id::PortId;

/// The shortest frame there is, without FCS.
pub const SHORT: usize = 60;

/// A port that plays these frames for ever, and frees what it gets.
pub fn reel(frames: &[Vec<u8>]) -> Player {
    Player::new(frames.iter().collect())
}

/// One bridge; `ports` are lines `name settings`.
#[allow(dead_code, reason = "not every bench has a bridge like this")]
pub fn bridge(ports: &str) -> String {
    let mut text = String::from("[[bridge]]\nname = \"br0\"\nmac-table-size = 1000000\n");
    for port in ports.lines() {
        let (name, settings) = port.split_once(' ').unwrap_or((port, ""));
        text += &format!("[[bridge.port]]\nname = \"{name}\"\nupcall-rate = 0\n{settings}\n");
    }
    text
}

/// The station `n` behind port `a` or `b`.
pub fn station(port: u8, n: u32) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | u64::from(port) << 32 | u64::from(n))
}

/// A UDP datagram over IPv4 in a frame of `len` bytes.
pub struct Datagram {
    /// Sender.
    pub from: MacAddr,
    /// Receiver.
    pub to: MacAddr,
    /// Source port and, above its 16 bits, the low bits of the source address.
    pub flow: u32,
    /// Bytes.
    pub len: usize,
}

impl Datagram {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.to.0, self.from.0].concat();
        bytes.extend([0x08, 0x00]);
        let packet = (self.len - bytes.len()) as u16;
        let [high, low] = packet.to_be_bytes();
        bytes.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        bytes.extend([10, 1, (self.flow >> 24) as u8, (self.flow >> 16) as u8, 10, 2, 0, 1]);
        bytes.extend((self.flow as u16).to_be_bytes());
        bytes.extend([0, 53]);
        bytes.extend((packet - 20).to_be_bytes());
        bytes.resize(self.len, 0);
        bytes
    }
}

/// Frames of `flows` flows in an order that no prefetcher guesses, and the hellos of their receivers: every flow
/// has a pair of stations of its own.
pub fn pairs(flows: u32, len: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let side = f64::from(flows).sqrt().ceil() as u32;
    let frame = |n: u32| {
        let (from, to) = (station(0xa, n / side), station(0xb, n % side));
        Datagram { from, to, flow: n, len }.bytes()
    };
    (shuffled(flows).into_iter().map(frame).collect(), hellos(side))
}

/// The frame with a VLAN tag.
#[allow(dead_code, reason = "not every bench has tags")]
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}

/// A broadcast of each of so many stations behind port `b`.
pub fn hellos(stations: u32) -> Vec<Vec<u8>> {
    let to = MacAddr([0xff; 6]);
    let hello = |n| Datagram { from: station(0xb, n), to, flow: 0, len: SHORT }.bytes();
    (0..stations).map(hello).collect()
}

/// A switch with one poller, turned by hand.
pub struct Rig {
    /// The switch.
    pub switch: Switch,
    /// Its poller.
    pub poller: Poller,
    /// Its time.
    pub clock: Clock,
    model: Model,
    /// All queues.
    places: Vec<usize>,
}

impl Rig {
    /// A switch with this configuration and nothing attached.
    pub fn new(config: &str) -> Rig {
        Rig::crew(config, 1).0
    }

    /// A switch with so many pollers, on cores 0, 1 …: the first is the rig's, the others turn elsewhere.
    pub fn crew(config: &str, pollers: usize) -> (Rig, Vec<Poller>) {
        let pool =
            FramePool::new(PoolConfig { small: 16_384, big: 16, memory: Memory::Plain }).expect("memory");
        let cores = (0..pollers).collect();
        let settings = SwitchConfig { cores, flows: 2 << 20, ..SwitchConfig::default() };
        let (switch, mut pollers) = Switch::assemble(settings, pool).expect("a switch");
        let others = pollers.split_off(1);
        let poller = pollers.pop().expect("one poller");
        let model = Model::default();
        let mut rig = Rig { switch, poller, clock: Clock::start(), model, places: Vec::new() };
        let compiled = rig.change(config);
        rig.switch.publish(compiled.tables);
        (rig, others)
    }

    /// What another configuration compiles to; it counts once it is published.
    pub fn change(&mut self, config: &str) -> Compiled {
        self.model = self.model.change(config::parse(config).expect("a good file")).expect("a good model");
        let mut compiled = compile(&self.model);
        compiled.tables.underlay = Arc::new(self.underlay(&compiled));
        compiled
    }

    /// What is configured, and the other end of tunnels as a neighbour of every endpoint.
    fn underlay(&self, compiled: &Compiled) -> Underlay {
        let Outer { dst, eth_dst, .. } = outer(TunnelKind::Vxlan, 0);
        let addresses = |endpoint: &control::compile::Endpoint| -> Vec<IpAddr> {
            endpoint.addresses.iter().map(|cidr| cidr.address).collect()
        };
        let endpoints = compiled.endpoints.iter();
        Underlay {
            endpoints: endpoints
                .clone()
                .map(|(id, e)| (*id, Endpoint { mac: e.mac, addresses: addresses(e) }))
                .collect(),
            routes: compiled.routes.iter().copied().collect(),
            neighbours: endpoints.map(|(id, _)| ((*id, dst), eth_dst)).collect(),
            ..Underlay::default()
        }
    }

    /// A port's id.
    pub fn id(&self, port: &str) -> PortId {
        self.model.port(port).unwrap_or_else(|| panic!("no port {port}")).id
    }

    /// Attaches a port to something else.
    pub fn attach(&mut self, port: &str, io: Box<dyn Port>) {
        self.switch.attach(self.id(port), vec![io], &[]);
        self.poller.turn(self.clock.now(), &[]);
        self.places = (0..self.poller.wires.queues.len()).collect();
    }

    /// Port `b` tells who is behind it, and from then on takes what comes.
    #[allow(dead_code, reason = "not every bench has a port like this")]
    pub fn learn(&mut self, hello: &[Vec<u8>]) {
        self.attach("b", Box::new(reel(hello)));
        (0..hello.len().div_ceil(BATCH)).for_each(|_| assert!(self.turn() > 0));
        self.attach("b", Box::new(reel(&[])));
    }

    /// Port `a` plays these frames. Passes all of them twice, so that every flow is in the caches that it will be found in, and
    /// goes on until what changed by that was revalidated.
    #[allow(dead_code, reason = "not every bench knows its flows before")]
    pub fn warm_up(&mut self, frames: &[Vec<u8>]) {
        self.attach("a", Box::new(reel(frames)));
        (0..2 * frames.len().div_ceil(BATCH)).for_each(|_| assert_eq!(self.turn(), BATCH));
        self.catch_up();
        let upcalls = self.poller.counters().upcalls.get();
        assert_eq!(self.turn(), BATCH);
        assert_eq!(self.poller.counters().upcalls.get(), upcalls, "a flow was not cached");
    }

    /// What the poller's thread does again and again; how many frames moved.
    pub fn turn(&mut self) -> usize {
        self.poller.turn(self.clock.now(), &self.places)
    }

    /// Turns until all that changed was looked at; how many frames moved.
    pub fn catch_up(&mut self) -> usize {
        let mut moved = 0;
        while self.poller.has_work() {
            moved += self.turn();
        }
        moved
    }
}

/// What stands in front of frames in a tunnel from here to the other end, in the segment with this id.
fn outer(kind: TunnelKind, id: u32) -> Outer {
    Outer {
        kind,
        id: Some(id),
        eth_src: MacAddr([2, 0, 0, 0, 0xaa, 1]),
        eth_dst: MacAddr([2, 0, 0, 0, 0xaa, 2]),
        tags: Default::default(),
        src: [192, 0, 2, 1].into(),
        dst: [192, 0, 2, 2].into(),
        tos: 0,
        ttl: 64,
        df: true,
        dst_port: kind.default_port().unwrap_or(0),
        csum: false,
    }
}

/// Segments in tunnels of one kind: what the bridge of the VMs and that of the uplink have.
pub struct Overlay<'a> {
    /// The kind.
    pub kind: TunnelKind,
    /// Their numbers on the wire; locally they are VLANs 1, 2 …
    pub ids: &'a [u32],
    /// A port that is in all of them, tagged unless there is only one.
    pub vm: &'a str,
    /// The uplink.
    pub wire: &'a str,
}

impl Overlay<'_> {
    /// The configuration.
    pub fn config(&self) -> String {
        let Overlay { kind, ids, vm, wire } = self;
        let Outer { src, eth_src, dst, .. } = outer(*kind, 0);
        let segment = |(vlan, id)| {
            format!("{{ name = 's{vlan}', vlan = {vlan}, type = '{kind}', id = {id}, vteps = ['{dst}'] }},")
        };
        let segments: String = (1..).zip(*ids).map(segment).collect();
        let vlans = if ids.len() == 1 { "tag = 1" } else { "trunks = []" };
        format!(
            "bridge = [
                {{ name = 'br-phy', port = [
                    {{ name = '{wire}', upcall-rate = 0 }},
                    {{ name = 'vtep', type = 'vtep', mac = '{eth_src}', address = ['{src}/24'] }},
                ] }},
                {{ name = 'br-int', mac-table-size = 1000000, segment = [{segments}], port = [
                    {{ name = 'tunnel', type = '{kind}', remote-ip = 'flow', key = 'flow' }},
                    {{ name = '{vm}', upcall-rate = 0, {vlans} }},
                ] }},
            ]"
        )
    }

    /// These frames of a segment as the other end sends them.
    pub fn far(&self, id: u32, inner: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let ours = outer(self.kind, id);
        let (eth_src, eth_dst, src, dst) = (ours.eth_dst, ours.eth_src, ours.dst, ours.src);
        let template =
            Template::new(&Outer { eth_src, eth_dst, src, dst, ..ours }).expect("headers that can be");
        let wrap = |(inner, flow): (&Vec<u8>, u32)| {
            let mut frame = [&vec![0; template.len()][..], inner].concat();
            template.write(&mut frame, flow as u16).expect("a frame that fits");
            frame
        };
        inner.iter().zip(0..).map(wrap).collect()
    }
}
