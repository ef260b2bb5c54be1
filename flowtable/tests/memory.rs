//! How much memory a million flows take: the growth of this very process.

use std::sync::Arc;

use encap::field::{EtherType, MacAddr};
use flowtable::action::{Action, Effect};
use flowtable::field::Field;
use flowtable::flow::{Birth, Decision, Flow};
use flowtable::grounds::Ground;
use flowtable::id::{BridgeId, PortId, SegmentId, Station};
use flowtable::intern::Interner;
use flowtable::key::FlowKey;
use flowtable::mask::Probe;
use flowtable::megaflow::{Inserted, Limits, Megaflows};
use flowtable::time::Instant;

const FLOWS: u64 = 1_000_000;
const MIB: usize = 1 << 20;
/// What a poller's `Vec` of all flows and the rest of a switch may need beside.
const LIMIT: usize = 256 * MIB;

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    statm.split(' ').nth(1).expect("a second number").parse::<usize>().expect("pages") * 4096
}

/// A flow as switching makes them: between one of a thousand stations on a trunk port and one of a thousand others.
fn switched(interner: &mut Interner, n: u64) -> Flow {
    let mac = MacAddr::from_u64(0x0200_0000_0000 + n / 1000);
    let key = FlowKey::default()
        .with(Field::InPort, PortId((n / 1000 % 64) as u32))
        .with(Field::EthSrc, mac)
        .with(Field::EthDst, MacAddr::from_u64(0x0600_0000_0000 + n % 1000))
        .with(Field::EthType, EtherType::IPV4);
    let mut probe = Probe::new(&key);
    let (_, _, _, _) = (probe.in_port(), probe.vlan_vid(0), probe.eth_src(), probe.eth_dst());
    let station = Station { segment: SegmentId(0), mac };
    let decision = Decision {
        actions: [Action::Output(PortId((n % 64) as u32))].into(),
        mask: *probe.mask(),
        effects: Box::new([Effect::Learn { bridge: BridgeId(0), station, place: key.in_port().into() }]),
        depends: n,
        rests_on: [Ground::Port(key.in_port()), Ground::Bridge(BridgeId(0))].into_iter().collect(),
        in_port: key.in_port(),
        cacheable: true,
    };
    interner.flow(&key, decision, Birth { generation: 1, pollers: 1, now: Instant::ZERO })
}

#[test]
fn a_million_flows_fit_and_go_again() {
    let table = Arc::new(Megaflows::new(Limits { flows: FLOWS as usize, masks: 8 }));
    let mut interner = Interner::default();
    let before = resident();
    let flows: Vec<Flow> = (0..FLOWS).map(|n| switched(&mut interner, n)).collect();
    flows.iter().for_each(|flow| assert!(matches!(table.insert(flow.clone()), Inserted::Installed)));
    let grown = resident() - before;
    assert!(grown < LIMIT, "{} bytes a flow", grown / FLOWS as usize);
    table.clear();
    table.reclaim(usize::MAX);
    assert!(flows.iter().all(|flow| flow.shares() == 1));
    drop(flows);
    let left = resident().saturating_sub(before);
    assert!(left < LIMIT / 8, "{left} bytes are left of {grown}");
}
