//! Tables by name, and questions to them in flow text.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use encap::field::{EtherType, MacAddr, VlanId};
use encap::tunnel::TunnelKind;
use flowtable::action::Action;
use flowtable::flow::Decision;
use flowtable::id::{BridgeId, Place, PortId, SegmentId};
use flowtable::key::FlowKey;
use flowtable::lpm::Prefix;
use flowtable::megaflow::{Limits, Megaflows, Reader};
use flowtable::text;
use flowtable::time::Instant;

use crate::learn;
use crate::segment::{Network, Segment, Segments};
use crate::snapshot::Snapshot;
use crate::tables::{
    Bridge, FdbConfig, PortEntry, PortKind, PriorityTags, StaticEntry, Tables, VlanConfig, VlanMode, VlanSet,
};
use crate::trace::trace;
use crate::translate::{Silent, View, translate};
use crate::tunnel::{Carrier, Key, Tos, Tunnel, Tunnels};
use crate::underlay::{Endpoint, Route, Underlay};
use crate::upcall;

/// What tables are made of.
#[derive(Clone, Default)]
pub struct Draft {
    pub bridges: Vec<Bridge>,
    pub ports: Vec<PortEntry>,
    pub segments: Vec<Segment>,
    pub underlay: Underlay,
    pub routes: Vec<(Prefix, Route)>,
    /// Ports whose ids are free: their entries are out of the tables, until they come back.
    pub gone: BTreeSet<PortId>,
}

/// Published tables, what was learned under them, and the time.
pub struct Lab {
    pub snapshot: Snapshot,
    pub now: Instant,
    draft: Draft,
}

/// The address of an endpoint's, or a neighbour's, card.
pub fn card(address: &str) -> MacAddr {
    let last = match ip(address) {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => 0x60 + v6.octets()[15],
    };
    MacAddr([2, 0xff, 0, 0, 0, last])
}

/// A reader, of no table in particular.
pub fn reader() -> Reader {
    Arc::new(Megaflows::new(Limits { flows: 1, masks: 1 })).reader()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

pub fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn vlan(vid: u16) -> VlanId {
    VlanId::from_tci(vid)
}

fn prefix(text: &str) -> Prefix {
    let (address, len) = text.split_once('/').unwrap_or_else(|| panic!("{text} is no prefix"));
    Prefix::new(ip(address), len.parse().unwrap()).unwrap()
}

/// All VLANs, but for what the mode says of this one.
pub fn in_mode(mode: VlanMode, tag: u16) -> VlanConfig {
    VlanConfig {
        mode,
        tag: vlan(tag),
        trunks: VlanSet::all(),
        cvlans: VlanSet::all(),
        qinq_ethtype: EtherType::QINQ,
        priority_tags: PriorityTags::Never,
    }
}

impl Draft {
    /// A bridge; the ports that follow are its.
    pub fn bridge(&mut self, name: &str) -> &mut Bridge {
        self.bridges.push(Bridge {
            name: name.to_owned(),
            ports: Vec::new(),
            forward_bpdu: false,
            flood_vlans: VlanSet::empty(),
            fdb: FdbConfig { age: Duration::from_secs(300), size: 8192 },
            snooping: None,
            datapath_id: 0,
            static_fdb: Vec::new(),
        });
        self.bridges.last_mut().unwrap()
    }

    /// A trunk of all VLANs.
    pub fn port(&mut self, name: &str) -> &mut PortEntry {
        let (id, bridge) = (self.ports.len() as u32, self.bridges.len() as u32 - 1);
        self.bridges.last_mut().unwrap().ports.push(PortId(id));
        self.ports.push(PortEntry {
            name: name.to_owned(),
            bridge: BridgeId(bridge),
            ofport: 1,
            kind: PortKind::Attached,
            vlan: in_mode(VlanMode::Trunk, 0),
            segment: None,
            protected: false,
            mcast_flood: false,
            mcast_flood_reports: false,
            mtu: 1500,
            upcall_rate: 0,
        });
        self.ports.last_mut().unwrap()
    }

    /// A port in one VLAN, untagged.
    pub fn access(&mut self, name: &str, tag: u16) -> &mut PortEntry {
        let port = self.port(name);
        port.vlan = in_mode(VlanMode::Access, tag);
        port
    }

    /// A port of a segment without local VLAN.
    pub fn joined(&mut self, name: &str, segment: u32) -> &mut PortEntry {
        let port = self.port(name);
        port.segment = Some(SegmentId(segment));
        port
    }

    /// Puts a port into another bridge.
    pub fn rehome(&mut self, port: &str, bridge: &str) {
        let id = self.id(port);
        let to = self.bridges.iter().position(|b| b.name == bridge).unwrap();
        self.bridges.iter_mut().for_each(|b| b.ports.retain(|port| *port != id));
        self.bridges[to].ports.push(id);
        self.ports[id.index()].bridge = BridgeId(to as u32);
    }

    /// Connects two ports, be they of different bridges.
    pub fn patch(&mut self, a: &str, b: &str) {
        let [a, b] = [a, b].map(|name| self.id(name));
        self.ports[a.index()].kind = PortKind::Patch { peer: b };
        self.ports[b.index()].kind = PortKind::Patch { peer: a };
    }

    /// A port with addresses of ours, and the routes to their networks.
    pub fn endpoint(&mut self, name: &str, networks: &[&str]) -> &mut PortEntry {
        let id = PortId(self.ports.len() as u32);
        let addresses: Vec<&str> = networks.iter().map(|n| n.split_once('/').unwrap().0).collect();
        let route = Route { endpoint: id, via: None, source: None };
        self.routes.extend(networks.iter().map(|n| (prefix(n), route)));
        let endpoint =
            Endpoint { mac: card(addresses[0]), addresses: addresses.iter().map(|a| ip(a)).collect() };
        self.underlay.endpoints.insert(id, endpoint);
        self.port(name)
    }

    /// A router towards a network.
    pub fn route(&mut self, to: &str, endpoint: &str, via: &str) {
        let route = Route { endpoint: self.id(endpoint), via: Some(ip(via)), source: None };
        self.routes.push((prefix(to), route));
    }

    /// Somebody whose card is known.
    pub fn neighbour(&mut self, endpoint: &str, address: &str) {
        self.underlay.neighbours.insert((self.id(endpoint), ip(address)), card(address));
    }

    /// A tunnel port: its kind, and options in the words of Open vSwitch.
    pub fn tunnel(&mut self, name: &str, options: &str) -> &mut PortEntry {
        let (kind, options) = options.split_once(' ').unwrap_or((options, ""));
        let kind = TunnelKind::ALL.into_iter().find(|k| k.to_string() == kind).unwrap();
        let mut tunnel = Tunnel {
            kind,
            dst_port: kind.default_port().unwrap_or(0),
            listener: PortId(0), // found by `tables`
            remote: None,
            local: None,
            key: if kind == TunnelKind::Gre { Key::Absent } else { Key::Fixed(0) },
            tos: Tos::Fixed(0),
            ttl: Some(64),
            df: true,
            csum: false,
            carrier: Carrier::Switch,
        };
        options.split_whitespace().for_each(|option| set(&mut tunnel, option));
        let port = self.port(name);
        (port.kind, port.mtu) = (PortKind::Tunnel(tunnel), u16::MAX);
        port
    }

    /// A segment of the newest bridge: `local`, `TUNNEL ID [VTEP]...`, or `UPLINK VLAN`. Numbers from 4096 on are no VLANs.
    pub fn segment(&mut self, name: &str, id: u32, network: &str) -> &mut Segment {
        let words: Vec<&str> = network.split_whitespace().collect();
        let port = || self.id(words[0]);
        let network = match words[..] {
            ["local"] => Network::Local,
            [_, number, ref vteps @ ..] => match self.ports[port().index()].kind {
                PortKind::Tunnel(_) => {
                    let vteps: Vec<IpAddr> = vteps.iter().map(|vtep| ip(vtep)).collect();
                    Network::Tunnel { port: port(), id: number.parse().unwrap(), peers: vteps.clone(), vteps }
                }
                _ => Network::Provider { uplink: port(), vlan: vlan(number.parse().unwrap()) },
            },
            _ => panic!("{network} is no network"),
        };
        self.segments.push(Segment {
            name: name.to_owned(),
            bridge: BridgeId(self.bridges.len() as u32 - 1),
            id: SegmentId(id),
            network,
            learning: true,
            strict_peers: false,
            neighbours: HashMap::new(),
        });
        self.segments.last_mut().unwrap()
    }

    pub fn entry(&mut self, port: &str) -> &mut PortEntry {
        let id = self.id(port);
        &mut self.ports[id.index()]
    }

    /// A static FDB entry of the newest bridge.
    pub fn station(&mut self, segment: u32, mac: MacAddr, place: Place) {
        let entry = StaticEntry { segment: SegmentId(segment), mac, place };
        self.bridges.last_mut().unwrap().static_fdb.push(entry);
    }

    pub fn named(&mut self, segment: &str) -> &mut Segment {
        self.segments.iter_mut().find(|s| s.name == segment).unwrap()
    }

    pub fn id(&self, port: &str) -> PortId {
        self.find(port).unwrap_or_else(|| panic!("no port {port}"))
    }

    fn find(&self, port: &str) -> Option<PortId> {
        self.ports.iter().position(|p| p.name == port).map(|at| PortId(at as u32))
    }

    fn tables(&self) -> Tables {
        let mut ports = self.ports.clone();
        let mut listeners: HashMap<(TunnelKind, u16), PortId> = HashMap::new();
        let mut tunnels = Vec::new();
        for (at, port) in ports.iter_mut().enumerate() {
            let id = PortId(at as u32);
            if let PortKind::Tunnel(tunnel) = &mut port.kind
                && !self.gone.contains(&id)
            {
                tunnel.listener = *listeners.entry((tunnel.kind, tunnel.dst_port)).or_insert(id);
                tunnels.push((id, *tunnel));
            }
        }
        let routes = self.routes.iter().copied().collect();
        Tables {
            bridges: self.bridges.iter().cloned().map(Some).collect(),
            ports: (0..)
                .map(PortId)
                .zip(ports)
                .map(|(id, port)| (!self.gone.contains(&id)).then_some(port))
                .collect(),
            segments: Arc::new(Segments::new(self.segments.clone())),
            tunnels: Arc::new(Tunnels::new(tunnels)),
            underlay: Arc::new(Underlay { routes, ..self.underlay.clone() }),
        }
    }
}

fn set(tunnel: &mut Tunnel, option: &str) {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    match (name, value) {
        ("key", "flow") => tunnel.key = Key::Flow,
        ("key", key) => tunnel.key = Key::Fixed(key.parse().unwrap()),
        ("remote", remote) => tunnel.remote = Some(ip(remote)),
        ("local", local) => tunnel.local = Some(ip(local)),
        ("port", port) => tunnel.dst_port = port.parse().unwrap(),
        ("tos", "inherit") => tunnel.tos = Tos::Inherit,
        ("tos", tos) => tunnel.tos = Tos::Fixed(tos.parse().unwrap()),
        ("ttl", "inherit") => tunnel.ttl = None,
        ("ttl", ttl) => tunnel.ttl = Some(ttl.parse().unwrap()),
        ("df", df) => tunnel.df = df == "true",
        ("csum", csum) => tunnel.csum = csum == "true",
        ("host", "") => tunnel.carrier = Carrier::Host,
        _ => panic!("no tunnel option {option}"),
    }
}

impl Lab {
    pub fn new(draw: impl FnOnce(&mut Draft)) -> Lab {
        let mut lab = Lab { snapshot: Snapshot::default(), now: Instant::ZERO, draft: Draft::default() };
        lab.change(draw);
        lab
    }

    /// Publishes tables that differ from those in force, as the switch does. Dependency bits of what a poller learned by the
    /// old ones meanwhile.
    pub fn change(&mut self, draw: impl FnOnce(&mut Draft)) -> u64 {
        self.change_while(draw, |_| ())
    }

    /// As [`Lab::change`], while somebody still works by the old tables.
    pub fn change_while(&mut self, draw: impl FnOnce(&mut Draft), lag: impl FnOnce(&Lab)) -> u64 {
        draw(&mut self.draft);
        let tables = self.draft.tables();
        let new = learn::succeed(&self.snapshot, tables);
        lag(self);
        let old = std::mem::replace(&mut self.snapshot, new);
        learn::forget_changed(&old.tables, &self.snapshot)
    }

    pub fn view(&self) -> View<'_> {
        View { snapshot: &self.snapshot, now: self.now }
    }

    pub fn id(&self, port: &str) -> PortId {
        self.draft.id(port)
    }

    pub fn key(&self, text: &str) -> FlowKey {
        let (key, _) =
            text::parse(text, &|name| self.draft.find(name)).unwrap_or_else(|e| panic!("{text}: {e}"));
        key
    }

    /// What happens to such a frame; and the same must happen to its key under the mask.
    #[track_caller]
    pub fn decide(&self, frame: &str) -> Decision {
        let key = self.key(frame);
        let decision = translate(self.view(), &key, &mut Silent);
        let masked = translate(self.view(), &key.masked(&decision.mask), &mut Silent);
        assert_eq!(masked, decision, "{frame} under its mask");
        decision
    }

    /// The actions, in full.
    #[track_caller]
    pub fn actions(&self, frame: &str) -> String {
        text::print_actions(&self.decide(frame).actions, &|port| self.name(port))
    }

    /// The actions, ways into tunnels in brief: `TUNNEL:ID>VTEP@PORT`.
    #[track_caller]
    pub fn brief(&self, frame: &str) -> String {
        let one = |action: &Action| match action {
            Action::Encap(encap) => {
                let outer = encap.template.outer();
                let id = outer.id.map_or(String::new(), |id| format!(":{id}"));
                let [tunnel, output] = [encap.tunnel, encap.output].map(|port| self.name(port).unwrap());
                format!("{tunnel}{id}>{}@{output}", outer.dst)
            }
            action => text::print_actions(std::slice::from_ref(action), &|port| self.name(port)),
        };
        self.decide(frame).actions.iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// The same, and what the frame teaches is learned.
    #[track_caller]
    pub fn send(&self, frame: &str) -> String {
        upcall::apply(&self.decide(frame).effects, &self.snapshot, &[], self.now);
        self.brief(frame)
    }

    /// What `sluice trace` says.
    pub fn steps(&self, frame: &str) -> String {
        let steps = trace(self.view(), &self.key(frame)).steps;
        steps.iter().map(|step| format!("{}{}\n", "  ".repeat(step.depth), step.text)).collect()
    }

    fn name(&self, port: PortId) -> Option<String> {
        self.snapshot.tables.port(port).map(|entry| entry.name.clone())
    }
}
