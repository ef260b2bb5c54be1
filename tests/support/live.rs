//! A switch in memory whose two pollers have threads, with cables to the test as a [`Rack`](crate::rack::Rack) has them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use control::compile::compile;
use control::config;
use control::model::Model;
use dataplane::frame::{FramePool, Memory, PoolConfig};
use dataplane::port::Port;
use dataplane::port::memory::{MemoryPort, Peer, waking_pair};
use dataplane::switch::{Switch, SwitchConfig};
use dataplane::underlay::Underlay;
use encap::field::MacAddr;
use flowtable::id::PortId;

use crate::rack::{self, CABLE};

/// Frames a cable holds.
pub const LONG_CABLE: usize = 8 * CABLE;

/// Where the first of two pollers is, and the second.
pub fn two_cores() -> SwitchConfig {
    SwitchConfig { cores: vec![0, 1], ..SwitchConfig::default() }
}

/// A running switch, at first without cables.
pub struct Live {
    /// The switch, as control sees it.
    pub switch: Switch,
    /// What it works by.
    pub model: Model,
    pool: Arc<FramePool>,
    /// The far ends of its cables, by port.
    pub peers: BTreeMap<String, Peer>,
    neighbours: BTreeMap<(String, IpAddr), MacAddr>,
}

impl Live {
    /// One with this configuration, whose endpoints know these addresses.
    pub fn start(config: &str, neighbours: &[(&str, IpAddr, MacAddr)]) -> Live {
        let pool = FramePool::new(PoolConfig { small: 16_384, big: 16, memory: Memory::Plain }).unwrap();
        let switch = Switch::start(two_cores(), Arc::clone(&pool)).unwrap();
        let (model, peers) = (Model::default(), BTreeMap::new());
        let neighbours = neighbours.iter().map(|(port, ip, mac)| (((*port).to_owned(), *ip), *mac)).collect();
        let mut live = Live { switch, model, pool, peers, neighbours };
        live.publish(config);
        live
    }

    /// Works by another configuration from here on; cables stay as they are.
    pub fn publish(&mut self, config: &str) {
        self.model = self.model.change(config::parse(config).unwrap()).unwrap();
        let mut compiled = compile(&self.model);
        let neighbours = rack::neighbours(&self.model, &self.neighbours);
        compiled.tables.underlay = Arc::new(Underlay { neighbours, ..rack::underlay(&compiled) });
        self.switch.publish(compiled.tables);
    }

    /// The port's id.
    pub fn id(&self, port: &str) -> PortId {
        self.model.port(port).unwrap_or_else(|| panic!("no port {port}")).id
    }

    /// Gives a port a new cable, whose near end `wrap` may wrap, at the poller of a core or wherever the switch likes.
    pub fn plug(&mut self, port: &str, core: Option<usize>, wrap: impl FnOnce(MemoryPort) -> Box<dyn Port>) {
        let (end, peer) = waking_pair(&self.pool, LONG_CABLE).unwrap();
        self.switch.attach(self.id(port), vec![wrap(end)], &[core]);
        self.peers.insert(port.to_owned(), peer);
    }

    /// Sends a frame into a port; false if its cable is full.
    pub fn inject(&mut self, port: &str, frame: &[u8]) -> bool {
        self.peers.get_mut(port).unwrap().inject(frame)
    }

    /// What came out of a port.
    pub fn drain(&mut self, port: &str) -> Vec<Vec<u8>> {
        self.peers.get_mut(port).unwrap().drain().into_iter().map(|delivered| delivered.bytes).collect()
    }
}
