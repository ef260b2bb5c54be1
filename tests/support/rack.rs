//! A switch in memory, in virtual time: bridges and ports by name, frames in and out by port, pollers turned
//! by hand.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use control::compile::{Compiled, compile};
use control::config;
use control::model::{self, Model};
use dataplane::frame::{FramePool, Memory, PoolConfig};
use dataplane::poller::{Caches, Poller};
use dataplane::port::Port;
use dataplane::port::memory::{Delivered, MemoryPort, Peer, pair};
use dataplane::stats::{Ledger, PortStats};
use dataplane::switch::{Switch, SwitchConfig};
use dataplane::underlay::{Endpoint, Underlay};
use encap::field::MacAddr;
use encap::offload::Offload;
use flowtable::action::DropReason;
use flowtable::flow::Flow;
use flowtable::id::{BridgeId, PortId};
use flowtable::time::Instant;
use flowtable::{fdb, mcast};

/// Frames a cable holds.
pub const CABLE: usize = 512;
/// The frames there are.
const POOL: PoolConfig = PoolConfig { small: 8192, big: 64, memory: Memory::Plain };
/// How often a frame that must always fare the same is sent: it misses, hits the flow table, and hits the
/// exact-match cache.
pub const TIMES: usize = 3;
/// The longest the clock jumps: how often the switch's housekeeping wants a turn.
pub const STEP: Duration = Duration::from_millis(500);

/// What came out, by port name; ports without a frame are left out.
pub type Out = BTreeMap<String, Vec<Vec<u8>>>;

/// A switch whose ports are cables to the test.
pub struct Rack {
    /// The switch, as control sees it.
    pub switch: Switch,
    /// Its pollers.
    pub pollers: Vec<Poller>,
    /// The time.
    pub now: Instant,
    model: Model,
    pool: Arc<FramePool>,
    cables: BTreeMap<String, Peer>,
    /// Who is on the wires behind endpoints, by the names of their ports.
    neighbours: BTreeMap<(String, IpAddr), MacAddr>,
    path_mtus: HashMap<IpAddr, u16>,
    /// All that came out so far.
    log: BTreeMap<String, Vec<Delivered>>,
}

/// What a scenario must leave behind whether decisions are remembered or not.
pub struct Outcome {
    delivered: BTreeMap<String, Vec<Delivered>>,
    counters: BTreeMap<String, PortStats>,
}

/// Plays a scenario with caches on and with caches off: every frame that comes out, and every counter of every
/// port, must be the same. Ends with the conservation law.
#[track_caller]
pub fn both_ways(config: &str, scenario: impl Fn(&mut Rack)) {
    let [on, off] = [Caches::On, Caches::Off].map(|caches| {
        let mut rack = Rack::new(config, caches);
        scenario(&mut rack);
        rack.audit();
        rack.outcome()
    });
    on.assert_same(&off);
}

impl Outcome {
    /// The same, to the last byte and the last count?
    #[track_caller]
    pub fn assert_same(&self, off: &Outcome) {
        for port in self.delivered.keys().chain(off.delivered.keys()) {
            let [on, off] = [self, off].map(|outcome| outcome.delivered.get(port).map_or(&[][..], |all| all));
            let same = on.iter().zip(off).take_while(|(on, off)| on == off).count();
            let [on, off] = [on, off].map(|all| all.get(same).map(|d| (hex(&d.bytes), d.offload)));
            assert_eq!(on, off, "frame {same} out of {port}, caches on and off");
        }
        assert_eq!(self.counters, off.counters, "caches on and off");
    }
}

impl Rack {
    /// A switch with this configuration and one poller; every port that is no patch port gets a cable.
    pub fn new(config: &str, caches: Caches) -> Rack {
        Rack::with(config, SwitchConfig { caches, ..SwitchConfig::default() })
    }

    /// The same, with these settings.
    pub fn with(config: &str, settings: SwitchConfig) -> Rack {
        let pool = FramePool::new(POOL).unwrap();
        let (switch, pollers) = Switch::assemble(settings, Arc::clone(&pool)).unwrap();
        let model = Model::new(parse(config)).unwrap();
        let mut rack = Rack {
            switch,
            pollers,
            now: Instant::ZERO,
            model,
            pool,
            cables: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            path_mtus: HashMap::new(),
            log: BTreeMap::new(),
        };
        let compiled = compile(&rack.model);
        rack.publish(compiled);
        rack
    }

    /// Tells who has an address on the wire behind an endpoint, as control does once it found out.
    pub fn neighbour(&mut self, endpoint: &str, address: IpAddr, mac: MacAddr) {
        self.neighbours.insert((endpoint.to_owned(), address), mac);
        self.publish(compile(&self.model));
    }

    /// Tells the longest packet, in bytes, that the path to an address carries.
    pub fn path_mtu(&mut self, address: IpAddr, mtu: u16) {
        self.path_mtus.insert(address, mtu);
        self.publish(compile(&self.model));
    }

    /// Addresses of ours in the underlay, with the port that has them and its MAC address.
    pub fn endpoints(&self) -> Vec<(String, IpAddr, MacAddr)> {
        let name = |id| self.model.ports().find(|port| port.id == id).map(|port| port.config.name.clone());
        let mut all = Vec::new();
        for (id, endpoint) in compile(&self.model).endpoints {
            let name = name(id).expect("a port of the model");
            all.extend(endpoint.addresses.iter().map(|cidr| (name.clone(), cidr.address, endpoint.mac)));
        }
        all
    }

    /// Applies another configuration, as `sluice apply` does.
    pub fn apply(&mut self, config: &str) {
        self.model = self.model.change(parse(config)).unwrap();
        let compiled = compile(&self.model);
        let gone: Vec<PortId> = self.attached().filter(|id| compiled.tables.port(*id).is_none()).collect();
        self.publish(compiled);
        gone.into_iter().for_each(|port| self.switch.forget(port));
        self.settle();
    }

    /// What `control::host` keeps: here every neighbour is known, or none.
    fn underlay(&self, compiled: &Compiled) -> Underlay {
        Underlay {
            neighbours: neighbours(&self.model, &self.neighbours),
            path_mtus: self.path_mtus.clone(),
            ..underlay(compiled)
        }
    }

    fn publish(&mut self, mut compiled: Compiled) {
        compiled.tables.underlay = Arc::new(self.underlay(&compiled));
        let names: BTreeMap<_, _> =
            compiled.attachments.iter().map(|(id, a)| (a.name.clone(), *id)).collect();
        self.switch.publish(compiled.tables);
        self.settle();
        self.cables.retain(|name, _| names.contains_key(name));
        for (name, id) in names {
            if self.attached().all(|attached| attached != id) {
                self.plug(&name, |port| Box::new(port));
            }
        }
    }

    /// The ports that have a queue.
    fn attached(&self) -> impl Iterator<Item = PortId> + use<> {
        self.switch.pollers().into_iter().flat_map(|poller| poller.queues).map(|(port, _)| port)
    }

    /// Gives a port a new cable, whose near end `wrap` may prepare or wrap.
    pub fn plug(&mut self, name: &str, wrap: impl FnOnce(MemoryPort) -> Box<dyn Port>) {
        let (port, peer) = pair(&self.pool, CABLE);
        self.switch.attach(self.id(name), vec![wrap(port)], &[]);
        self.settle();
        self.cables.insert(name.to_owned(), peer);
    }

    /// The port's id.
    pub fn id(&self, port: &str) -> PortId {
        self.model.port(port).unwrap_or_else(|| panic!("no port {port}")).id
    }

    /// The bridge's id.
    pub fn bridge(&self, bridge: &str) -> BridgeId {
        self.model.bridge(bridge).unwrap_or_else(|| panic!("no bridge {bridge}")).id
    }

    /// The far end of a port's cable.
    pub fn cable(&mut self, port: &str) -> &mut Peer {
        self.cables.get_mut(port).unwrap_or_else(|| panic!("no cable to {port}"))
    }

    /// Takes the far end, for a guest to hold, or to drop.
    pub fn take_cable(&mut self, port: &str) -> Peer {
        self.cables.remove(port).unwrap_or_else(|| panic!("no cable to {port}"))
    }

    /// Turns one poller once; how many frames moved.
    pub fn turn(&mut self, index: usize) -> usize {
        let poller = &mut self.pollers[index];
        let places: Vec<usize> = (0..poller.wires.queues.len()).collect();
        poller.turn(self.now, &places)
    }

    /// Turns the pollers until nothing moves any more.
    pub fn settle(&mut self) {
        loop {
            let moved: usize = (0..self.pollers.len()).map(|index| self.turn(index)).sum();
            if moved == 0 && !self.pollers.iter().any(Poller::has_work) {
                return;
            }
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + STEP);
            self.settle();
        }
    }

    /// Sends frames into a port, all at once; what came out.
    #[track_caller]
    pub fn send(&mut self, port: &str, frames: &[Vec<u8>]) -> Out {
        for frame in frames {
            assert!(self.cable(port).inject(frame), "{port} is full");
        }
        self.settle();
        let bytes = |frames: Vec<Delivered>| frames.into_iter().map(|delivered| delivered.bytes).collect();
        self.drain().into_iter().map(|(port, frames)| (port, bytes(frames))).collect()
    }

    /// Sends one frame on which something is left to do; what came out.
    #[track_caller]
    pub fn send_offload(
        &mut self,
        port: &str,
        frame: &[u8],
        work: Offload,
    ) -> BTreeMap<String, Vec<Delivered>> {
        assert!(self.cable(port).inject_offload(frame, work), "{port} is full");
        self.settle();
        self.drain()
    }

    /// Sends a frame into a port, [`TIMES`] times, one after the other: exactly these must come out each time.
    #[track_caller]
    pub fn expect(&mut self, from: &str, frame: &[u8], out: &[(&str, &[u8])]) {
        let mut expected = Out::new();
        for (port, frame) in out {
            expected.entry((*port).to_owned()).or_default().push(frame.to_vec());
        }
        for time in 1..=TIMES {
            let got = self.send(from, &[frame.to_vec()]);
            assert!(
                got == expected,
                "{} into {from}, time {time}, gives\n{}not\n{}{self:?}",
                hex(frame),
                table(&got),
                table(&expected)
            );
        }
    }

    /// The same, for a frame that comes out of some ports unchanged.
    #[track_caller]
    pub fn expect_at(&mut self, from: &str, frame: &[u8], to: &[&str]) {
        let out: Vec<_> = to.iter().map(|port| (*port, frame)).collect();
        self.expect(from, frame, &out);
    }

    /// The same, for a frame that comes out nowhere, for this reason.
    #[track_caller]
    pub fn expect_drop(&mut self, from: &str, frame: &[u8], reason: DropReason) {
        let before = self.switch.total_stats().dropped(reason);
        self.expect(from, frame, &[]);
        let dropped = self.switch.total_stats().dropped(reason) - before;
        assert!(dropped == TIMES as u64, "{} into {from}: not {reason:?}\n{self:?}", hex(frame));
    }

    /// What came out since the last look, by port name; ports without a frame are left out.
    pub fn drain(&mut self) -> BTreeMap<String, Vec<Delivered>> {
        let names: Vec<String> = self.cables.keys().cloned().collect();
        let new = names.into_iter().map(|name| (name.clone(), self.drain_port(&name)));
        new.filter(|(_, frames)| !frames.is_empty()).collect()
    }

    /// What came out of one port since the last look.
    pub fn drain_port(&mut self, port: &str) -> Vec<Delivered> {
        let frames = self.cable(port).drain();
        if !frames.is_empty() {
            self.log.entry(port.to_owned()).or_default().extend_from_slice(&frames);
        }
        frames
    }

    /// Is there such a port, with a cable?
    pub fn has_cable(&self, port: &str) -> bool {
        self.cables.contains_key(port)
    }

    /// The counters of a port.
    pub fn stats(&self, port: &str) -> PortStats {
        self.switch.port_stats(self.id(port))
    }

    /// The cached flows of a port.
    pub fn flows(&self, port: &str) -> Vec<Flow> {
        let port = self.id(port);
        self.switch.flows().into_iter().filter(|flow| flow.in_port() == port).collect()
    }

    /// What the bridge learned, at this time.
    pub fn fdb(&self, bridge: &str) -> Vec<fdb::Entry> {
        let learned = self.pollers[0].snapshot().learned(self.bridge(bridge));
        learned.map_or_else(Vec::new, |learned| learned.fdb().entries(self.now).collect())
    }

    /// The groups and queriers the bridge knows, at this time.
    pub fn mdb(&self, bridge: &str) -> Vec<mcast::Entry> {
        let learned = self.pollers[0].snapshot().learned(self.bridge(bridge));
        learned.map_or_else(Vec::new, |learned| learned.mcast().entries(self.now).collect())
    }

    /// The conservation law holds; the sums.
    #[track_caller]
    pub fn audit(&self) -> Ledger {
        let held: u64 = self.pollers.iter().map(Poller::held).sum();
        let ledger = Ledger { held, ..self.switch.ledger() };
        assert!(ledger.balances(), "{ledger:?}\n{self:?}");
        ledger
    }

    /// Takes the switch apart: no frame may be missing from the pool.
    pub fn outcome(mut self) -> Outcome {
        self.drain();
        let port = |port: model::Port<'_>| (port.config.name.clone(), self.switch.port_stats(port.id));
        let counters = self.model.ports().map(port).collect();
        self.pollers.iter_mut().for_each(Poller::close);
        let Rack { switch, pollers, cables, pool, log, .. } = self;
        drop((switch, pollers, cables));
        assert_eq!(pool.available(), (POOL.small as usize, POOL.big as usize), "frames are missing");
        Outcome { delivered: log, counters }
    }
}

/// What is configured of the underlay.
pub fn underlay(compiled: &Compiled) -> Underlay {
    let endpoint = |endpoint: &control::compile::Endpoint| Endpoint {
        mac: endpoint.mac,
        addresses: endpoint.addresses.iter().map(|cidr| cidr.address).collect(),
    };
    Underlay {
        endpoints: compiled.endpoints.iter().map(|(id, e)| (*id, endpoint(e))).collect(),
        routes: compiled.routes.iter().copied().collect(),
        ..Underlay::default()
    }
}

/// Who is behind endpoints, by the ids of their ports.
pub fn neighbours(
    model: &Model,
    known: &BTreeMap<(String, IpAddr), MacAddr>,
) -> HashMap<(PortId, IpAddr), MacAddr> {
    let id = |((port, address), mac): (&(String, IpAddr), &MacAddr)| {
        Some(((model.port(port)?.id, *address), *mac))
    };
    known.iter().filter_map(id).collect()
}

/// The whole switch, for a failed test.
impl fmt::Debug for Rack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "at {:?}", self.now)?;
        for port in self.model.ports() {
            let stats = self.switch.port_stats(port.id);
            let (name, PortStats { rx_frames, tx_frames, .. }) = (&port.config.name, stats);
            write!(f, "port {name} ({}): rx {rx_frames}, tx {tx_frames}", port.id)?;
            for reason in DropReason::ALL.iter().filter(|reason| stats.dropped(**reason) > 0) {
                write!(f, ", dropped {} {}", stats.dropped(*reason), reason.name())?;
            }
            writeln!(f)?;
        }
        for bridge in self.model.bridges() {
            let name = &bridge.config.name;
            self.fdb(name).iter().try_for_each(|entry| writeln!(f, "fdb {name}: {entry:?}"))?;
            self.mdb(name).iter().try_for_each(|entry| writeln!(f, "mdb {name}: {entry:?}"))?;
        }
        let names = |id: PortId| {
            let port = self.model.ports().find(|port| port.id == id);
            port.map(|port| port.config.name.clone())
        };
        for flow in self.switch.flows() {
            writeln!(f, "flow {}", flowtable::text::dump(&flow, self.now, &names))?;
        }
        Ok(())
    }
}

pub fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn table(out: &Out) -> String {
    let lines =
        out.iter().flat_map(|(port, frames)| frames.iter().map(move |f| format!("  {port}: {}\n", hex(f))));
    lines.collect()
}

fn parse(config: &str) -> config::Config {
    config::parse(config).unwrap_or_else(|problems| panic!("{problems}"))
}
