//! Everything that can be configured changes, one thing after the other, while stations come, move and go, and while somebody
//! still works by the tables before: who follows the flows that were not concerned does what a fresh decision would do.

use std::time::Duration;

use encap::field::{EtherType, MacAddr, VlanId};
use flowtable::action::Effect;
use flowtable::field::Field;
use flowtable::flow::{Birth, Decision, Flow};
use flowtable::id::{BridgeId, Place, PortId, SegmentId};
use flowtable::key::FlowKey;
use flowtable::megaflow::Reader;
use proptest::prelude::*;

use super::lab::{Draft, Lab, card, ip, mac, reader};
use super::megaflow::{Shape, frame, shape};
use crate::revalidate::amend::By;
use crate::revalidate::is_still_so;
use crate::segment::Network;
use crate::snapshot::Snapshot;
use crate::tables::{
    Bridge, PortEntry, PortKind, PriorityTags, SnoopingConfig, StaticEntry, VlanMode, VlanSet,
};
use crate::translate::precedent::Precedents;
use crate::translate::{Silent, View, translate};
use crate::tunnel::{Carrier, Key, Tos, Tunnel};
use crate::underlay::{Endpoint, Route};
use crate::upcall;

/// What changes, of whom, and to what.
type Change = (usize, usize, u8);

/// Changes something of one of many.
type Edit<T> = fn(&mut T, u8);

/// Each field of a port.
const PORT: &[Edit<PortEntry>] = &[
    |port, n| port.name = format!("port{n}"),
    |port, n| port.bridge = BridgeId(u32::from(n % 3)),
    |port, n| port.ofport = n.into(),
    |port, n| port.kind = PortKind::Patch { peer: PortId(u32::from(n % 15)) },
    |port, _| port.kind = PortKind::Attached,
    |port, n| port.vlan.mode = MODES[usize::from(n) % MODES.len()],
    |port, n| port.vlan.tag = vlan(n),
    |port, n| port.vlan.trunks = vlans(n),
    |port, n| port.vlan.cvlans = vlans(n),
    |port, n| port.vlan.qinq_ethtype = if n % 2 == 0 { EtherType::QINQ } else { EtherType::VLAN },
    |port, n| port.vlan.priority_tags = PRIORITY[usize::from(n) % PRIORITY.len()],
    |port, n| port.segment = (n % 2 == 0).then_some(SegmentId([1, 2, 4096][usize::from(n) % 3])),
    |port, _| port.protected ^= true,
    |port, _| port.mcast_flood ^= true,
    |port, _| port.mcast_flood_reports ^= true,
    |port, n| port.mtu = 1400 + u16::from(n),
    |port, n| port.upcall_rate = n.into(),
    |port, n| tunnel(port, |t| t.dst_port = 4789 + u16::from(n % 2)),
    |port, n| tunnel(port, |t| t.remote = (n % 2 == 0).then(|| vtep(n))),
    |port, n| tunnel(port, |t| t.local = (n % 2 == 0).then(|| ip("192.0.2.1"))),
    |port, n| tunnel(port, |t| t.key = [Key::Flow, Key::Fixed(n.into()), Key::Absent][usize::from(n) % 3]),
    |port, n| tunnel(port, |t| t.tos = if n % 2 == 0 { Tos::Inherit } else { Tos::Fixed(n) }),
    |port, n| tunnel(port, |t| t.ttl = (n % 2 == 0).then_some(n | 1)),
    |port, _| tunnel(port, |t| t.df ^= true),
    |port, _| tunnel(port, |t| t.csum ^= true),
    |port, n| tunnel(port, |t| t.carrier = if n % 2 == 0 { Carrier::Host } else { Carrier::Switch }),
];

/// Each field of a bridge.
const BRIDGE: &[Edit<Bridge>] = &[
    |bridge, n| bridge.name = format!("bridge{n}"),
    |bridge, n| _ = bridge.ports.pop_if(|_| n % 2 == 0),
    |bridge, n| bridge.ports.retain(|port| port.0 % 5 != u32::from(n % 5)),
    |bridge, n| bridge.ports.push(PortId(u32::from(n % 15))),
    |bridge, _| bridge.forward_bpdu ^= true,
    |bridge, n| bridge.flood_vlans = vlans(n),
    |bridge, n| bridge.fdb.age = Duration::from_secs(15 * u64::from(n)),
    |bridge, n| bridge.fdb.size = usize::from(n % 6),
    |bridge, n| bridge.datapath_id = n.into(),
    |bridge, n| {
        let size = usize::from(n % 4);
        bridge.snooping = (n % 3 != 0).then_some(SnoopingConfig {
            size,
            age: Duration::from_secs(10 * u64::from(n)),
            flood_unregistered: n % 2 == 0,
        });
    },
    |bridge, n| {
        let place = match n % 4 {
            0 => Place::Vtep { tunnel: PortId(9), address: vtep(n) },
            _ => Place::Port(PortId(u32::from(n % 15))),
        };
        let mac = if n % 7 == 0 { card("192.0.2.2") } else { mac(n % 3) };
        bridge.static_fdb.push(StaticEntry { segment: segment(n / 4), mac, place });
    },
    |bridge, _| _ = bridge.static_fdb.pop(),
    |bridge, n| rotate(&mut bridge.static_fdb, n),
];

/// The rest: what is there once, or comes and goes.
const DRAFT: &[Edit<Draft>] = &[
    |draft, n| _ = draft.gone.insert(PortId(u32::from(n % 15))),
    |draft, _| _ = draft.gone.pop_first(),
    |draft, _| _ = draft.gone.pop_last(),
    |draft, n| _ = draft.underlay.path_mtus.insert(vtep(n), 1300 + u16::from(n)),
    |draft, _| draft.underlay.path_mtus.clear(),
    |draft, n| _ = draft.underlay.neighbours.insert((PortId(1), vtep(n)), card("192.0.2.2")),
    |draft, n| _ = draft.underlay.neighbours.insert((PortId(1), vtep(n)), mac(n % 3)),
    |draft, n| _ = draft.underlay.neighbours.remove(&(PortId(1), vtep(n))),
    |draft, n| {
        let route = Route {
            endpoint: PortId(u32::from(n % 3)),
            via: (n % 2 == 0).then(|| vtep(n)),
            source: (n % 5 == 0).then(|| ip("192.0.2.9")),
        };
        let prefix = if n % 3 == 0 { "192.0.2.2/32" } else { "192.0.0.0/8" };
        let (address, len) = prefix.split_once('/').unwrap();
        let prefix = flowtable::lpm::Prefix::new(ip(address), len.parse().unwrap()).unwrap();
        draft.routes.insert(0, (prefix, route));
    },
    |draft, n| drop(draft.routes.drain(..draft.routes.len().min(usize::from(n % 3)))),
    |draft, n| {
        let addresses = [vec![], vec![ip("192.0.2.1")], vec![vtep(n), ip("2001:db8::1")]];
        let endpoint = Endpoint { mac: mac(n % 3), addresses: addresses[usize::from(n) % 3].clone() };
        draft.underlay.endpoints.insert(PortId(u32::from(n % 4)), endpoint);
    },
    |draft, n| _ = draft.underlay.endpoints.remove(&PortId(u32::from(n % 4))),
    |draft, n| rotate(&mut draft.segments, n),
    |draft, n| _ = draft.segments.pop_if(|_| n % 2 == 0),
    |draft, n| {
        let id = segment(n);
        if !draft.segments.iter().any(|s| s.id == id) {
            draft.segments.extend(draft.segments.first().cloned().map(|mut s| {
                (s.id, s.network) = (id, Network::Local);
                s
            }));
        }
    },
    |draft, n| each(draft, n, |s, n| s.name = format!("segment{n}")),
    |draft, n| each(draft, n, |s, n| s.bridge = BridgeId(u32::from(n % 2))),
    |draft, n| each(draft, n, |s, n| s.id = segment(n)),
    |draft, n| each(draft, n, |s, _| s.learning ^= true),
    |draft, n| each(draft, n, |s, _| s.strict_peers ^= true),
    |draft, n| each(draft, n, |s, n| _ = s.neighbours.insert(ip("10.0.0.2"), mac(n % 4))),
    |draft, n| each(draft, n, |s, _| s.neighbours.clear()),
    |draft, n| each(draft, n, |s, _| s.network = Network::Local),
    |draft, n| {
        each(draft, n, |s, n| {
            let (uplink, vlan) = (PortId([0, 7, 6][usize::from(n) % 3]), vlan(n / 3));
            s.network = Network::Provider { uplink, vlan };
        });
    },
    |draft, n| {
        each(draft, n, |s, n| {
            let (port, vteps) = (PortId(9 + u32::from(n % 2)), vec![vtep(n)]);
            s.network = Network::Tunnel { port, id: u32::from(n / 2 % 4), peers: vteps.clone(), vteps };
        });
    },
    |draft, n| {
        each(draft, n, |s, n| {
            if let Network::Tunnel { vteps, .. } = &mut s.network {
                vteps.push(vtep(n));
            }
        });
    },
    |draft, n| {
        each(draft, n, |s, n| {
            if let Network::Tunnel { peers, .. } = &mut s.network {
                *peers = if n % 2 == 0 { vec![] } else { vec![vtep(n)] };
            }
        });
    },
];

/// Frames of the kinds that chance seldom makes: of a group, of a wire's VLANs, out of and into tunnels.
const ALWAYS: &[&str] = &[
    "in_port=vm1,dl_src=02:00:00:00:00:01,dl_dst=01:00:5e:01:01:01,udp,nw_dst=239.1.1.1",
    "in_port=vm1,dl_src=02:00:00:00:00:01,dl_dst=ff:ff:ff:ff:ff:ff,udp,nw_dst=10.0.0.1",
    "in_port=eth2,dl_src=02:00:00:00:00:02,dl_dst=ff:ff:ff:ff:ff:ff,dl_vlan=1,udp,nw_dst=10.0.0.1",
    "in_port=vx0,dl_src=02:00:00:00:00:02,dl_dst=ff:ff:ff:ff:ff:ff,udp,tun_src=192.0.2.3,tun_dst=192.0.2.1,tun_id=1,tun_flags=key",
    "in_port=eth1,dl_src=02:ff:00:00:00:02,dl_dst=02:ff:00:00:00:01,udp,nw_dst=192.0.2.1,udp_dst=4789",
];

const MODES: [VlanMode; 5] = [
    VlanMode::Access,
    VlanMode::Trunk,
    VlanMode::NativeTagged,
    VlanMode::NativeUntagged,
    VlanMode::Dot1qTunnel,
];

const PRIORITY: [PriorityTags; 3] = [PriorityTags::Never, PriorityTags::IfNonzero, PriorityTags::Always];

fn vlan(n: u8) -> VlanId {
    VlanId::from_tci(u16::from(n % 4))
}

fn vlans(n: u8) -> VlanSet {
    (0..4u8).filter(|bit| n >> bit & 1 != 0).map(vlan).collect()
}

fn segment(n: u8) -> SegmentId {
    SegmentId([0, 1, 2, 3, 4096, 4097][usize::from(n) % 6])
}

fn vtep(n: u8) -> std::net::IpAddr {
    ip(["192.0.2.2", "192.0.2.3", "2001:db8::2", "192.0.2.1"][usize::from(n) % 4])
}

fn rotate<T>(list: &mut [T], n: u8) {
    list.rotate_left(usize::from(n).min(list.len()));
}

fn tunnel(port: &mut PortEntry, edit: impl FnOnce(&mut Tunnel)) {
    if let PortKind::Tunnel(tunnel) = &mut port.kind {
        edit(tunnel);
    }
}

/// Changes one of the segments. No two are to contradict each other: control sees to that.
fn each(draft: &mut Draft, n: u8, edit: Edit<crate::segment::Segment>) {
    let (at, before) = (usize::from(n), draft.segments.clone());
    let Some(at) = at.checked_rem(draft.segments.len()) else { return };
    edit(&mut draft.segments[at], n.wrapping_mul(37) >> 1);
    let changed = &draft.segments[at];
    let others = draft.segments.iter().enumerate().filter(|(other, _)| *other != at);
    let contradicts = others.map(|(_, other)| other).any(|other| {
        (other.bridge, other.id) == (changed.bridge, changed.id)
            || match (&other.network, &changed.network) {
                (Network::Tunnel { port: p, id: i, .. }, Network::Tunnel { port, id, .. }) => {
                    (p, i) == (port, id)
                }
                (a @ Network::Provider { .. }, b) => a == b,
                _ => false,
            }
    });
    if contradicts {
        draft.segments = before;
    }
}

fn edit(draft: &mut Draft, (what, who, how): Change) {
    let what = what % (PORT.len() + BRIDGE.len() + DRAFT.len());
    if let Some(edit) = PORT.get(what) {
        let at = who % draft.ports.len();
        return edit(&mut draft.ports[at], how);
    }
    match BRIDGE.get(what - PORT.len()) {
        Some(edit) => edit(&mut draft.bridges[who % 2], how),
        None => DRAFT[what - PORT.len() - BRIDGE.len()](draft, how),
    }
}

/// What happens from one look to the next.
#[derive(Debug, Clone)]
enum Event {
    /// A publication of some changes, with frames that a poller decides by the old tables meanwhile.
    Publish(Vec<Change>, Vec<usize>),
    /// A frame comes.
    Frame(usize),
    /// A port reports a group, or is found to lead to a querier.
    Report(u8),
    /// The operator has stations, or groups, forgotten.
    Flush(u8),
    /// Time passes, and what is too old goes.
    Wait(u8),
}

fn change() -> impl Strategy<Value = Change> {
    (0..PORT.len() + BRIDGE.len() + DRAFT.len(), 0usize..15, any::<u8>())
}

fn event() -> impl Strategy<Value = Event> {
    let publish = (proptest::collection::vec(change(), 1..4), proptest::collection::vec(0usize..24, 0..4));
    prop_oneof![
        8 => publish.prop_map(|(changes, frames)| Event::Publish(changes, frames)),
        6 => (0usize..24).prop_map(Event::Frame),
        2 => any::<u8>().prop_map(Event::Report),
        1 => any::<u8>().prop_map(Event::Flush),
        1 => any::<u8>().prop_map(Event::Wait),
    ]
}

/// A poller's flows, and what it still has to look at.
struct Cache {
    flows: Vec<Flow>,
    precedents: Precedents,
    reader: Reader,
    /// Flows that were amended.
    amended: usize,
}

impl Cache {
    fn new() -> Cache {
        let reader = reader();
        Cache { flows: Vec::new(), precedents: Precedents::at(reader.home()), reader, amended: 0 }
    }

    /// An upcall: what it teaches is learned, and the flow kept.
    fn upcall(&mut self, view: View<'_>, key: &FlowKey) {
        let decision = decide(&mut self.precedents, view, key);
        let changed = upcall::apply(&decision.effects, view.snapshot, &[], view.now);
        if decision.cacheable {
            let birth = Birth { generation: view.snapshot.generation, pollers: 1, now: view.now };
            self.flows.push(self.precedents.flow(key, decision, birth));
        }
        self.note(view, changed);
    }

    /// Learned entries changed: a round of the revalidator.
    fn note(&mut self, view: View<'_>, bits: u64) {
        if bits != 0 {
            self.precedents.unsettle();
        }
        self.flows.retain(|flow| {
            let mut today = || decide(&mut self.precedents, view, &flow.key());
            flow.depends() & bits == 0 || is_still_so(flow, &today(), view, &self.reader)
        });
    }

    /// A frame follows each flow that still holds, or that is amended; others are translated again.
    fn follow(&mut self, view: View<'_>) -> Result<(), TestCaseError> {
        let mut stale = Vec::new();
        for flow in &self.flows {
            let today = decide(&mut self.precedents, view, &flow.key());
            let mut by = By { precedents: &mut self.precedents, reader: &self.reader };
            let amended = !view.snapshot.holds(flow) && amend(&mut by, view, flow, &today);
            self.amended += usize::from(amended);
            if amended || view.snapshot.holds(flow) {
                prop_assert!(flow.is_by(&today, &self.reader), "followed: {:?}\ntoday: {:?}", flow, today);
                let taught = is_still_so(flow, &today, view, &self.reader) || may_not_teach(flow, view);
                prop_assert!(taught, "not taught any more: {:?}", flow);
            } else {
                stale.push(flow.key());
            }
        }
        self.flows.retain(|flow| view.snapshot.holds(flow));
        stale.iter().for_each(|key| self.upcall(view, key));
        Ok(())
    }
}

/// Amends a flow by what is there already, or else by what is decided today.
fn amend(by: &mut By<'_>, view: View<'_>, flow: &Flow, today: &Decision) -> bool {
    let key = flow.key();
    let followed = by.precedent(view, (flow, by.reader.kind(flow)), &key);
    if let Some(which) = followed {
        assert_eq!(by.precedents.actions(which), Some(&*today.actions), "{flow:?}");
    }
    followed.is_some_and(|which| by.follow(view, (flow, &key), which))
        || by.decision(view, (flow, flow.generation()), today)
}

/// What a poller decides, which must not differ by what it decided before; nor for another pair of stations, taken by turns.
fn decide(precedents: &mut Precedents, view: View<'_>, key: &FlowKey) -> Decision {
    let stations = [mac(1), mac(2), mac(3), mac(4), card("192.0.2.1"), MacAddr([0, 0xe0, 0x2b, 0, 0, 4])];
    let moment = view.now.as_nanos() ^ view.snapshot.generation << 32 ^ key.hash();
    let turn = (moment.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
    let (from, to) = (stations[turn % stations.len()], stations[turn / stations.len() % stations.len()]);
    for key in [key.with(Field::EthSrc, from).with(Field::EthDst, to), *key] {
        assert_eq!(precedents.decide(view, &key), translate(view, &key, &mut Silent), "{key:?}");
    }
    precedents.decide(view, key)
}

/// Is a table that the flow would teach full of static entries?
fn may_not_teach(flow: &Flow, view: View<'_>) -> bool {
    flow.effects().iter().any(|effect| {
        let Effect::Learn { bridge, .. } = *effect else { return false };
        view.snapshot.learned(bridge).is_none_or(|learned| learned.fdb().is_closed())
    })
}

fn report(snapshot: &Snapshot, n: u8, now: flowtable::time::Instant) -> u64 {
    let Some(learned) = snapshot.learned(BridgeId(u32::from(n % 2))) else { return 0 };
    let port = PortId(u32::from(n / 2 % 15));
    match n % 5 {
        0 => learned.mcast().query(segment(n), port, now),
        1 => learned.mcast().leave(segment(n), ip("239.1.1.1"), port),
        _ => learned.mcast().report(segment(n), ip("239.1.1.1"), port, now),
    }
}

fn flush(snapshot: &Snapshot, n: u8) -> u64 {
    let Some(learned) = snapshot.learned(BridgeId(u32::from(n % 2))) else { return 0 };
    match n % 3 {
        0 => learned.fdb().flush(None).changed,
        1 => learned.fdb().flush(Some(PortId(u32::from(n / 2 % 15)))).changed,
        _ => learned.mcast().flush(None),
    }
}

fn expire(view: View<'_>) -> u64 {
    view.snapshot.learned.iter().flatten().fold(0, |changed, learned| {
        changed
            | learned.fdb().expire(view.now, usize::MAX)
            | learned.mcast().expire(view.now, usize::MAX)
            | learned.vteps().expire(view.now, usize::MAX)
    })
}

/// Lets it happen, then has a frame follow each flow.
fn run(lab: &mut Lab, cache: &mut Cache, keys: &[FlowKey], event: Event) -> Result<(), TestCaseError> {
    let changed = match event {
        Event::Publish(changes, frames) => lab.change_while(
            |draft| changes.into_iter().for_each(|change| edit(draft, change)),
            |old| frames.iter().for_each(|at| cache.upcall(old.view(), &keys[at % keys.len()])),
        ),
        Event::Frame(at) => {
            cache.upcall(lab.view(), &keys[at % keys.len()]);
            0
        }
        Event::Report(n) => report(&lab.snapshot, n, lab.now),
        Event::Flush(n) => flush(&lab.snapshot, n),
        Event::Wait(n) => {
            lab.now = lab.now + Duration::from_secs(n.into());
            expire(lab.view())
        }
    };
    cache.note(lab.view(), changed);
    cache.follow(lab.view())
}

fn lab(shape: &Shape) -> Lab {
    Lab::new(|draft| {
        shape.draw(draft);
        draft.bridge("third");
    })
}

/// More or fewer cases than usual, for who has time.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_changes_a_followed_flow_does_what_a_fresh_decision_would(
        shape in shape(),
        frames in proptest::collection::vec(frame(), 4..24),
        events in proptest::collection::vec(event(), 1..40),
    ) {
        let mut lab = lab(&shape);
        let frames = frames.iter().map(String::as_str).chain(ALWAYS.iter().copied());
        let keys: Vec<FlowKey> = frames.map(|frame| lab.key(frame)).collect();
        let mut cache = Cache::new();
        keys.iter().for_each(|key| cache.upcall(lab.view(), key));
        for event in events {
            run(&mut lab, &mut cache, &keys, event)?;
        }
    }
}
