use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane::segment::Segment;
use dataplane::tables::{PortEntry, VlanConfig, VlanMode, VlanSet};
use dataplane::tunnel::{Key, Tos};
use encap::field::{EtherType, VlanId};
use flowtable::id::{BridgeId, SegmentId};

use super::*;

const VTEP: PortId = PortId(1);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (address, len) = text.split_once('/').unwrap();
    Prefix::new(ip(address), len.parse().unwrap()).unwrap()
}

fn cidr(text: &str) -> Cidr {
    Cidr { address: ip(text.split_once('/').unwrap().0), network: prefix(text) }
}

fn plan() -> Plan {
    let addresses = vec![cidr("192.0.2.1/24"), cidr("198.51.100.1/24")];
    let connected = |text, own| (prefix(text), Route { endpoint: VTEP, via: None, source: Some(ip(own)) });
    let via = |to, via| (prefix(to), Route { endpoint: VTEP, via: Some(ip(via)), source: None });
    Plan {
        endpoints: [(VTEP, Identity { mac: MAC, addresses })].into(),
        routes: vec![
            connected("192.0.2.0/24", "192.0.2.1"),
            connected("198.51.100.0/24", "198.51.100.1"),
            via("203.0.113.0/24", "198.51.100.254"),
            (prefix("10.0.0.0/8"), Route { endpoint: PortId(9), via: None, source: None }),
        ],
        ..Plan::default()
    }
}

#[test]
fn a_route_leaves_from_the_network_of_its_next_hop() {
    let underlay = underlay(&plan(), None, Findings::default());
    let hop = underlay.hop(ip("203.0.113.5"), None).unwrap();
    assert_eq!((hop.endpoint, hop.mac), (VTEP, MAC));
    assert_eq!((hop.source, hop.address), (ip("198.51.100.1"), ip("198.51.100.254")));
    assert_eq!(underlay.hop(ip("192.0.2.9"), None).unwrap().source, ip("192.0.2.1"));
    assert_eq!(underlay.hop(ip("10.0.0.1"), None), None, "by a port without addresses");
}

#[test]
fn next_hops_are_asked_for_once_and_never_our_own() {
    let underlay = underlay(&plan(), None, Findings::default());
    let remotes = ["203.0.113.5", "203.0.113.6", "192.0.2.9", "192.0.2.1", "10.0.0.1"].map(ip).into();
    let hops = next_hops(&underlay, &remotes);
    assert_eq!(hops, [(VTEP, [ip("192.0.2.9"), ip("198.51.100.254")].into())].into());
    let demands = demands(&plan(), &hops);
    assert_eq!(demands[&VTEP].next_hops, hops[&VTEP]);
}

fn tunnel(kind: TunnelKind, remote: Option<IpAddr>, carrier: Carrier) -> Option<PortEntry> {
    let dst_port = if kind == TunnelKind::Gre { 0 } else { 4789 };
    let tunnel = Tunnel {
        kind,
        dst_port,
        listener: PortId(0),
        remote,
        local: None,
        key: Key::Flow,
        tos: Tos::Inherit,
        ttl: None,
        df: true,
        csum: false,
        carrier,
    };
    Some(PortEntry {
        name: "t".into(),
        bridge: BridgeId(0),
        ofport: 1,
        kind: PortKind::Tunnel(tunnel),
        vlan: VlanConfig {
            mode: VlanMode::Trunk,
            tag: VlanId::NONE,
            trunks: VlanSet::all(),
            cvlans: VlanSet::all(),
            qinq_ethtype: EtherType::QINQ,
            priority_tags: dataplane::tables::PriorityTags::Never,
        },
        segment: None,
        protected: false,
        mcast_flood: false,
        mcast_flood_reports: false,
        mtu: 1500,
        upcall_rate: 0,
    })
}

fn segment(port: u32, vtep: &str) -> Segment {
    Segment {
        name: vtep.into(),
        bridge: BridgeId(0),
        id: SegmentId(port),
        network: Network::Tunnel { port: PortId(port), id: port, vteps: vec![], peers: vec![ip(vtep)] },
        learning: true,
        strict_peers: false,
        neighbours: HashMap::new(),
    }
}

#[test]
fn our_traffic_is_that_of_tunnels_on_our_own_underlay() {
    let tables = Tables {
        ports: vec![
            tunnel(TunnelKind::Vxlan, None, Carrier::Switch),
            tunnel(TunnelKind::Gre, Some(ip("192.0.2.2")), Carrier::Switch),
            tunnel(TunnelKind::Geneve, Some(ip("192.0.2.6")), Carrier::Host),
        ],
        segments: Arc::new(Segments::new(vec![segment(0, "192.0.2.3"), segment(2, "192.0.2.7")])),
        ..Tables::default()
    };
    let traffic = traffic(&tables);
    assert_eq!(traffic.protocols, [None, Some(4789)].into());
    assert_eq!(traffic.remotes, [2, 3].map(|n| Ipv4Addr::new(192, 0, 2, n).into()).into());
}
