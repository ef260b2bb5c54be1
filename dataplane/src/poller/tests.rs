//! Frames out of tunnels, and questions for the underlay: one bridge with a wire, an endpoint and a VXLAN port.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use arrayvec::ArrayVec;
use encap::field::{EtherType, MacAddr, VlanId};
use encap::template::{Outer, Template};
use encap::tunnel::TunnelKind;
use flowtable::flow::{Birth, Flow};
use flowtable::id::{BridgeId, SegmentId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::frame::{FramePool, Memory, PoolConfig};
use crate::port::memory::{Peer, pair};
use crate::switch::{Switch, SwitchConfig};
use crate::tables::{
    Bridge, FdbConfig, PortEntry, PortKind, PriorityTags, StaticEntry, Tables, VlanConfig, VlanMode, VlanSet,
};
use crate::tunnel::{Carrier, Key, Tos, Tunnel, Tunnels};
use crate::underlay::{Endpoint, Route, Underlay};

const WIRE: PortId = PortId(0);
const ENDPOINT: PortId = PortId(1);
const VXLAN: PortId = PortId(2);

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// The endpoint's address, and that of a station on the wire.
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
/// Behind the tunnel.
const REMOTE: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

const TUNNEL: Tunnel = Tunnel {
    kind: TunnelKind::Vxlan,
    dst_port: 4789,
    listener: VXLAN,
    remote: Some(THERE),
    local: None,
    key: Key::Fixed(7),
    tos: Tos::Fixed(0),
    ttl: Some(64),
    df: true,
    csum: false,
    carrier: Carrier::Switch,
};

fn entry(name: &str, kind: PortKind) -> PortEntry {
    PortEntry {
        name: name.into(),
        bridge: BridgeId(0),
        ofport: 1,
        kind,
        vlan: VlanConfig {
            mode: VlanMode::Trunk,
            tag: VlanId::NONE,
            trunks: VlanSet::all(),
            cvlans: VlanSet::all(),
            qinq_ethtype: EtherType::QINQ,
            priority_tags: PriorityTags::Never,
        },
        segment: None,
        protected: false,
        mcast_flood: false,
        mcast_flood_reports: false,
        mtu: 1500,
        upcall_rate: 0,
    }
}

fn tables() -> Tables {
    let place = |mac, port: PortId| StaticEntry { segment: SegmentId(0), mac, place: port.into() };
    let bridge = Bridge {
        name: "br0".into(),
        ports: vec![WIRE, ENDPOINT, VXLAN],
        forward_bpdu: false,
        flood_vlans: VlanSet::empty(),
        fdb: FdbConfig { age: Duration::from_secs(300), size: 1000 },
        snooping: None,
        datapath_id: 1,
        static_fdb: vec![place(STATION, WIRE), place(REMOTE, VXLAN), place(MAC, ENDPOINT)],
    };
    let ports =
        [("wire", PortKind::Attached), ("vtep", PortKind::Attached), ("vx", PortKind::Tunnel(TUNNEL))];
    let prefix = flowtable::lpm::Prefix::new(THERE, 24).unwrap();
    let route = Route { endpoint: ENDPOINT, via: None, source: None };
    let underlay = Underlay {
        endpoints: [(ENDPOINT, Endpoint { mac: MAC, addresses: vec![HERE] })].into(),
        routes: [(prefix, route)].into_iter().collect(),
        ..Underlay::default()
    };
    Tables {
        bridges: vec![Some(bridge)],
        ports: ports.into_iter().map(|(name, kind)| Some(entry(name, kind))).collect(),
        tunnels: Arc::new(Tunnels::new([(VXLAN, TUNNEL)])),
        underlay: Arc::new(underlay),
        ..Tables::default()
    }
}

/// A switch with one poller, turned by hand, with a cable on the wire's port and on the endpoint's.
struct Lab {
    switch: Switch,
    poller: Poller,
    wire: Peer,
    endpoint: Peer,
    now: Instant,
}

impl Lab {
    fn new(caches: Caches) -> Lab {
        let pool = FramePool::new(PoolConfig { small: 1024, big: 8, memory: Memory::Plain }).unwrap();
        let config = SwitchConfig { caches, ..SwitchConfig::default() };
        let (switch, mut pollers) = Switch::assemble(config, Arc::clone(&pool)).unwrap();
        switch.publish(tables());
        let [wire, endpoint] = [WIRE, ENDPOINT].map(|port| {
            let (io, peer) = pair(&pool, 64);
            switch.attach(port, vec![Box::new(io)], &[]);
            peer
        });
        let mut lab = Lab { switch, poller: pollers.remove(0), wire, endpoint, now: Instant::ZERO };
        lab.turn();
        lab
    }

    fn turn(&mut self) {
        self.poller.turn(self.now, &[0, 1]);
    }

    /// Lets these frames arrive together; what comes out on the wire.
    fn send(&mut self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        frames.iter().for_each(|frame| assert!(self.wire.inject(frame)));
        self.turn();
        self.wire.drain().into_iter().map(|delivered| delivered.bytes).collect()
    }

    fn dropped(&self, port: PortId, reason: DropReason) -> u64 {
        self.switch.port_stats(port).dropped(reason)
    }

    /// The addresses that control was asked for.
    fn questions(&self) -> Vec<(PortId, IpAddr)> {
        let question = |event| match event {
            Event::Resolve { endpoint, address } => (endpoint, address),
            Event::PortGone { .. } => panic!("no port went"),
        };
        self.switch.events().try_iter().map(question).collect()
    }
}

fn plain(to: MacAddr) -> Vec<u8> {
    [&to.0[..], &REMOTE.0, &[0x88, 0xb5], b"the payload of a frame that is longer than it must be"].concat()
}

/// The frame in so many VXLAN headers.
fn nested(frame: Vec<u8>, depth: usize) -> Vec<u8> {
    let outer = Outer {
        kind: TunnelKind::Vxlan,
        id: Some(7),
        eth_src: MacAddr([2, 0, 0, 0, 0, 0xc]),
        eth_dst: MAC,
        tags: ArrayVec::new(),
        src: THERE,
        dst: HERE,
        tos: 0,
        ttl: 64,
        df: true,
        dst_port: 4789,
        csum: false,
    };
    let template = Template::new(&outer).unwrap();
    (0..depth).fold(frame, |frame, _| {
        let mut longer = [&vec![0; template.len()][..], &frame].concat();
        template.write(&mut longer, 0).unwrap();
        longer
    })
}

#[test]
fn tunnels_in_tunnels_are_left_one_by_one() {
    for caches in [Caches::On, Caches::Off] {
        let mut lab = Lab::new(caches);
        let frames: Vec<_> = (0..7).map(|depth| nested(plain(STATION), depth)).collect();
        for round in 1..4 {
            // In a batch the shallow come first.
            assert_eq!(lab.send(&frames[1..]), vec![plain(STATION); 4]);
            assert_eq!(lab.dropped(WIRE, DropReason::TooDeep), 2 * round);
            let stats = lab.switch.port_stats(VXLAN);
            // One for each tunnel that a frame came out of, up to the fourth.
            assert_eq!(stats.decapped_frames, round * (1 + 2 + 3 + 4 + 4 + 4));
            assert_eq!(lab.poller.counters().inner.get(), stats.decapped_frames);
            assert_eq!((stats.rx_frames, stats.of_tunnel().rx_frames), (0, stats.decapped_frames));
            let ledger = lab.switch.ledger();
            assert!(ledger.balances(), "{ledger:?}");
        }
    }
}

#[test]
fn a_batch_stays_a_batch() {
    let mut lab = Lab::new(Caches::On);
    let frames: Vec<_> = (0..BATCH as u8).map(|n| [nested(plain(STATION), 1), vec![n]].concat()).collect();
    (0..3).for_each(|_| assert_eq!(lab.send(&frames).len(), BATCH));
    let counters = lab.poller.counters();
    // The first of each kind made the flow. After that one look at the caches serves the whole batch, twice.
    assert_eq!((counters.upcalls.get(), counters.batches.get()), (2, 3));
    assert_eq!(counters.exact_hits.get() + counters.megaflow_hits.get(), 4 * BATCH as u64);
}

/// Batches of few kinds of frames.
fn batches() -> impl Strategy<Value = Vec<Vec<Train>>> {
    vec(train(), 1..8).prop_flat_map(|trains| {
        let train = (select(trains), any::<bool>()).prop_map(|((mut frame, times), is_foreign)| {
            // In the outermost tunnel, the VNI.
            frame.get_mut(48).filter(|_| is_foreign).into_iter().for_each(|octet| *octet ^= 1);
            (frame, times)
        });
        vec(vec(train, 1..20), 1..8)
    })
}

/// A frame, and how often it comes.
type Train = (Vec<u8>, usize);

/// A frame of any kind of key, in so many tunnels. None goes to where another comes from, so that it
/// does not matter which frames of a batch are decided first.
fn train() -> impl Strategy<Value = Train> {
    let ipv4 = |proto, rest: &[u8]| {
        let mut packet = [&[8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto, 0, 0][..], &[1; 8], rest].concat();
        packet[3 + 2] = packet.len() as u8 - 2;
        packet
    };
    let payloads = vec![
        ipv4(17, &[0, 1, 0, 2, 0, 8, 0, 0]),
        ipv4(6, &[[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]].concat()),
        ipv4(1, &[8; 8]),
        [&[0x81, 0, 0, 5][..], &ipv4(17, &[0; 8])].concat(),
        [&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255][..], &[3; 32], &[135, 0], &[4; 22], &[1, 1], &[5; 6]]
            .concat(),
        [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..], &[5; 20]].concat(),
        [&[0x88, 0x47][..], &[6; 30]].concat(),
        vec![0x88, 0xb5, 1],
        vec![],
    ];
    let to = select(vec![STATION, REMOTE, MAC, MacAddr::BROADCAST, MacAddr([2, 0, 0, 0, 0, 0x77])]);
    let inner = (to, select(payloads), any::<prop::sample::Index>(), 0u8..3);
    let train = (inner, select(vec![0, 0, 0, 1, 1, 2, 5]), select(vec![1usize, 1, 2, 5]));
    train.prop_map(|((to, payload, at, change), depth, times)| {
        let src = MacAddr([2, 0, 0, 0, 1, depth as u8]);
        let mut frame = [&to.0[..], &src.0, &payload].concat();
        // Behind the addresses, or in a runt nothing.
        if let Some(rest) = frame.get_mut(12..).filter(|rest| !rest.is_empty()) {
            rest[at.index(rest.len())] ^= change;
        }
        (nested(frame, depth), times)
    })
}

proptest! {
    /// Mixed batches, whose keys take each other's place: what leaves, and every counter of every port.
    #[test]
    fn caches_change_nothing_but_the_order(batches in batches()) {
        let [on, off] = [Caches::On, Caches::Off].map(|caches| {
            let mut lab = Lab::new(caches);
            let mut left = Vec::new();
            for trains in &batches {
                let frames: Vec<_> =
                    trains.iter().flat_map(|(frame, times)| vec![frame.clone(); *times]).take(BATCH).collect();
                let mut sent = lab.send(&frames);
                sent.sort_unstable();
                let mut carried: Vec<_> = lab.endpoint.drain().into_iter().map(|frame| frame.bytes).collect();
                carried.sort_unstable();
                left.push((sent, carried));
            }
            assert!(lab.switch.ledger().balances(), "{:?}", lab.switch.ledger());
            (left, [WIRE, ENDPOINT, VXLAN].map(|port| lab.switch.port_stats(port)))
        });
        prop_assert_eq!(on, off);
    }
}

#[test]
fn what_is_dropped_on_its_way_is_the_tunnels() {
    let mut lab = Lab::new(Caches::On);
    assert_eq!(lab.send(&[nested(plain(MacAddr([1, 0x80, 0xc2, 0, 0, 0])), 1)]), [] as [Vec<u8>; 0]);
    assert_eq!(lab.dropped(VXLAN, DropReason::Reserved), 1);
    let mut broken = nested(plain(STATION), 1);
    broken[42] = 0;
    lab.send(&[broken]);
    assert_eq!(lab.dropped(WIRE, DropReason::TunnelProtocol), 1);
}

#[test]
fn control_is_asked_once_until_it_answers() {
    let mut lab = Lab::new(Caches::On);
    let frame = [&REMOTE.0[..], &STATION.0, &[0x88, 0xb5], &[0; 46]].concat();
    let send = |lab: &mut Lab| {
        assert!(lab.send(std::slice::from_ref(&frame)).is_empty());
        lab.now = lab.now + Duration::from_millis(400);
    };
    (0..10).for_each(|_| send(&mut lab));
    assert_eq!(lab.questions(), [(ENDPOINT, THERE)]);
    assert_eq!(lab.dropped(WIRE, DropReason::NoNeighbour), 10);
    for _ in 0..3 {
        lab.switch.resolved(ENDPOINT, THERE);
        (0..10).for_each(|_| send(&mut lab));
        assert_eq!(lab.questions(), [(ENDPOINT, THERE)], "while frames want it, and once");
    }
    // Nobody wants it any more.
    lab.now = lab.now + Duration::from_secs(5);
    lab.turn();
    lab.switch.resolved(ENDPOINT, THERE);
    (0..10).for_each(|_| {
        lab.now = lab.now + Duration::from_secs(1);
        lab.turn();
    });
    assert_eq!(lab.questions(), []);
}

/// As [`tables`], with this budget of the wire and this number in the tunnel.
fn numbered(rate: u32, vni: u32) -> Tables {
    let mut tables = tables();
    let tunnel = Tunnel { key: Key::Fixed(vni), ..TUNNEL };
    tables.ports[VXLAN.index()] = Some(entry("vx", PortKind::Tunnel(tunnel)));
    tables.ports[WIRE.index()].as_mut().unwrap().upcall_rate = rate;
    let neighbours = [((ENDPOINT, THERE), STATION)].into();
    tables.underlay = Arc::new(Underlay { neighbours, ..(*tables.underlay).clone() });
    tables
}

/// A frame of station `n` to the one behind the tunnel.
fn from(n: u8) -> Vec<u8> {
    let mut frame = plain(REMOTE);
    frame[11] = n;
    frame
}

fn vnis(frames: Vec<Vec<u8>>) -> Vec<u8> {
    frames.iter().map(|frame| frame[48]).collect()
}

/// A switch with a flow for each of these senders, whose frames leave with number 7.
fn acquainted(upcall_rate: u32, senders: Range<u8>) -> (Lab, Vec<Vec<u8>>) {
    let mut lab = Lab::new(Caches::On);
    lab.switch.publish(numbered(upcall_rate, 7));
    let frames: Vec<_> = senders.map(from).collect();
    assert_eq!(vnis(lab.send(&frames)), vec![7; frames.len()]);
    (lab, frames)
}

#[test]
fn flows_that_the_operator_changes_cost_nobody_his_upcalls() {
    let (mut lab, frames) = acquainted(0, 50..70);
    lab.switch.publish(numbered(1, 8));
    assert_eq!(vnis(lab.send(&frames)), [8; 20]);
    let strangers: Vec<_> = (70..90).map(from).collect();
    assert_eq!(vnis(lab.send(&strangers)), [8], "who is new pays");
    assert_eq!(lab.dropped(WIRE, DropReason::UpcallBudget), 19);
}

#[test]
fn flows_that_the_tables_move_stay_where_they_are_and_count_on() {
    let (mut lab, frames) = acquainted(0, 50..70);
    let (flows, upcalls) = (lab.switch.flows(), lab.poller.counters().upcalls.get());
    assert_eq!(flows.len(), 20);
    for round in 1..4 {
        lab.switch.publish(numbered(0, 7 + u32::from(round)));
        // The first half has frames, the others are found in the background.
        let sent = lab.send(&frames[..10]);
        assert_eq!(vnis(sent), [7 + round; 10]);
        while lab.poller.has_work() {
            lab.turn();
        }
        let current = lab.poller.snapshot().generation;
        assert!(flows.iter().all(|flow| flow.generation() == current), "{flows:?}");
        let frames = |flow: &Flow| flow.totals().frames;
        assert_eq!(flows.iter().map(frames).sum::<u64>(), 20 + 10 * u64::from(round));
    }
    assert!(lab.switch.flows().iter().all(|flow| flows.contains(flow)));
    assert_eq!(vnis(lab.send(&frames)), [10; 20]);
    assert_eq!(lab.poller.counters().upcalls.get(), upcalls);
}

#[test]
fn frames_do_not_wait_until_another_poller_amends_their_flows() {
    let (mut lab, frames) = acquainted(0, 50..80);
    // The same flows, but not this poller's.
    for flow in lab.switch.flows() {
        let birth = Birth { generation: flow.generation(), pollers: 1, now: lab.now };
        lab.poller.shared().megaflows.insert(Flow::new(&flow.key(), flow.decision(), birth));
    }
    let (flows, upcalls) = (lab.switch.flows(), lab.poller.counters().upcalls.get());
    lab.switch.publish(numbered(0, 8));
    // A stranger's is the precedent for all.
    assert_eq!(vnis(lab.send(&[from(49)])), [8]);
    assert_eq!(vnis(lab.send(&frames)), [8; 30]);
    let current = lab.poller.snapshot().generation;
    assert!(flows.iter().all(|flow| flow.generation() != current), "{flows:?}");
    assert_eq!(flows.iter().map(|flow| flow.totals().frames).sum::<u64>(), 30);
    assert_eq!(lab.poller.counters().upcalls.get(), upcalls + 1);
    assert!(lab.switch.ledger().balances());
}

#[test]
fn who_is_over_budget_has_no_dead_flow_decided_anew() {
    let (mut lab, _) = acquainted(1, 50..51);
    // Removed, but the table could not let go of it.
    lab.switch.flows().iter().for_each(Flow::kill);
    let translated = lab.poller.counters().revalidated.get();
    assert_eq!(vnis(lab.send(&[from(50)])), [] as [u8; 0]);
    assert_eq!(lab.dropped(WIRE, DropReason::UpcallBudget), 1);
    assert_eq!(lab.poller.counters().revalidated.get(), translated);
    lab.now = lab.now + Duration::from_secs(2);
    assert_eq!(vnis(lab.send(&[from(50)])), [7], "when it may");
    assert_eq!(lab.switch.flows().len(), 1);
}

#[test]
fn a_flow_by_newer_tables_is_left_alone() {
    let (mut lab, _) = acquainted(1, 50..51);
    let [flow] = &lab.switch.flows()[..] else { panic!("one flow") };
    let current = flow.generation();
    // As another poller does that has them already. That costs the port nothing, which may have no other flow now.
    assert!(flow.confirm(current, current + 1));
    assert_eq!(vnis(lab.send(&[from(50)])), [7]);
    assert_eq!(flow.generation(), current + 1);
    assert!(lab.switch.flows().contains(flow), "nor is there another in its place");
}
