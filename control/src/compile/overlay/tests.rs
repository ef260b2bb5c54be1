use dataplane::tables::{PortKind as Kind, VlanMode};
use dataplane::tunnel::{Arrival, Key};
use proptest::prelude::*;

use super::*;
use crate::compile::{AttachKind, Compiled, compile};
use crate::config::parse;

fn compiled(text: &str) -> (Model, Compiled) {
    let model = Model::new(parse(text).unwrap_or_else(|problems| panic!("{problems}"))).unwrap();
    let compiled = compile(&model);
    (model, compiled)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const NET: &str = r#"
[[route]]
to = "0.0.0.0/0"
via = "192.0.2.254"
[[bridge]]
name = "phy"
port = [{ name = "eth1" }, { name = "vtep0", type = "vtep", address = ["192.0.2.1/24"], mtu = 1600 }]
[[bridge]]
name = "int"
segment = [
  { name = "blue", vlan = 1, type = "vxlan", id = 5001, vteps = ["192.0.2.3", "192.0.2.2"], strict-peers = true },
  { name = "red", type = "vxlan", id = 5002, learning = false },
  { name = "six", vlan = 6, type = "geneve", id = 5003, vteps = ["2001:db8::2"] },
  { name = "prov", vlan = 2, type = "vlan", id = 101, uplink = "eth2" },
  { name = "flat", vlan = 3, type = "flat", uplink = "eth2" },
  { name = "loc", vlan = 4, type = "local" },
]
fdb = [
  { mac = "02:00:00:00:00:05", segment = "blue", vtep = "192.0.2.9" },
  { mac = "02:00:00:00:00:06", segment = "red", port = "vm2" },
]
neigh = [{ segment = "blue", address = "10.0.0.5", mac = "02:00:00:00:00:05" }]
port = [
  { name = "vm1", segment = "blue" }, { name = "vm2", segment = "red" }, { name = "eth2" },
  { name = "vx0", type = "vxlan", remote-ip = "flow", key = "flow", local-ip = "192.0.2.1", tos = "inherit" },
  { name = "vx1", type = "vxlan", remote-ip = "198.51.100.7", local-ip = "198.51.100.1" },
  { name = "gn0", type = "geneve", remote-ip = "flow", key = "flow" },
  { name = "gre0", type = "gre", remote-ip = "192.0.2.8", tag = 9, underlay = "host" },
]
"#;

fn tunnel(model: &Model, compiled: &Compiled, name: &str) -> Tunnel {
    match compiled.tables.port(model.port(name).unwrap().id).unwrap().kind {
        Kind::Tunnel(tunnel) => tunnel,
        other => panic!("{other:?}"),
    }
}

#[test]
fn segments_are_what_the_file_says() {
    let (model, compiled) = compiled(NET);
    let int = model.bridge("int").unwrap().id;
    let id = |port: &str| model.port(port).unwrap().id;
    let segments = &compiled.tables.segments;
    let blue = segments.get(int, SegmentId(1)).unwrap();
    let network = Network::Tunnel {
        port: id("vx0"),
        id: 5001,
        vteps: vec![ip("192.0.2.2"), ip("192.0.2.3")],
        peers: vec![ip("192.0.2.2"), ip("192.0.2.3"), ip("192.0.2.9")],
    };
    assert_eq!((&blue.network, blue.learning, blue.strict_peers), (&network, true, true));
    assert_eq!(blue.neighbours[&ip("10.0.0.5")], MacAddr([2, 0, 0, 0, 0, 5]));
    let red = segments.in_tunnel(id("vx0"), 5002).unwrap();
    assert_eq!((red.name.as_str(), red.id, red.learning), ("red", SegmentId(4096), false));
    let on_wire = |vlan| segments.on_wire(id("eth2"), VlanId::from_tci(vlan)).map(|s| s.name.as_str());
    assert_eq!([on_wire(101), on_wire(0), on_wire(2)], [Some("prov"), Some("flat"), None]);
    assert!(segments.is_uplink(id("eth2")) && !segments.is_uplink(id("vm1")));
    assert_eq!(segments.get(int, SegmentId(4)).unwrap().network, Network::Local);
}

#[test]
fn ports_join_segments_with_a_vlan_or_without() {
    let (model, compiled) = compiled(NET);
    let entry = |name: &str| compiled.tables.port(model.port(name).unwrap().id).unwrap();
    let vm1 = entry("vm1");
    assert_eq!((vm1.segment, vm1.vlan.mode, vm1.vlan.tag.get()), (None, VlanMode::Access, 1));
    assert_eq!(entry("vm2").segment, Some(SegmentId(4096)));
}

#[test]
fn tunnel_ports_have_their_options_and_the_defaults_of_open_vswitch() {
    let (model, compiled) = compiled(NET);
    let id = |port: &str| model.port(port).unwrap().id;
    let vx0 = Tunnel {
        kind: TunnelKind::Vxlan,
        dst_port: 4789,
        listener: id("vx0").min(id("vx1")),
        remote: None,
        local: Some(ip("192.0.2.1")),
        key: Key::Flow,
        tos: Tos::Inherit,
        ttl: Some(64),
        df: true,
        csum: false,
        carrier: Carrier::Switch,
    };
    assert_eq!(tunnel(&model, &compiled, "vx0"), vx0);
    let vx1 = tunnel(&model, &compiled, "vx1");
    assert_eq!((vx1.key, vx1.carrier, vx1.listener), (Key::Fixed(0), Carrier::Host, vx0.listener));
    let gn0 = tunnel(&model, &compiled, "gn0");
    assert_eq!((gn0.dst_port, gn0.csum, gn0.carrier), (6081, true, Carrier::Switch), "IPv6 wants checksums");
    let gre0 = tunnel(&model, &compiled, "gre0");
    assert_eq!((gre0.dst_port, gre0.key, gre0.carrier), (0, Key::Absent, Carrier::Host));
    let arrival = Arrival {
        listener: vx0.listener,
        local: ip("198.51.100.1"),
        remote: ip("198.51.100.7"),
        key: Some(0),
    };
    assert_eq!(compiled.tables.tunnels.find(arrival), Some(id("vx1")));
}

#[test]
fn sockets_are_the_listeners_and_only_where_the_host_carries() {
    let (model, compiled) = compiled(NET);
    let id = |port: &str| model.port(port).unwrap().id;
    let kind = |port| compiled.attachments.get(&port).map(|attachment| attachment.kind.clone());
    let sockets =
        |kind, dst_port, local| Some(AttachKind::HostTunnel(host::Request { kind, dst_port, local }));
    let listener = tunnel(&model, &compiled, "vx1").listener;
    assert_eq!(kind(listener), sockets(TunnelKind::Vxlan, 4789, Some(ip("198.51.100.1"))));
    assert_eq!(kind(id("gre0")), sockets(TunnelKind::Gre, 0, None));
    assert_eq!(kind(id("gn0")), None, "the switch carries it");
    assert_eq!(kind(id("vx0").max(id("vx1"))), None, "no listener");
    assert_eq!(kind(id("vtep0")), Some(AttachKind::Vtep));
}

#[test]
fn static_entries_lead_to_ports_and_endpoints() {
    let (model, compiled) = compiled(NET);
    let id = |port: &str| model.port(port).unwrap().id;
    let int = compiled.tables.bridge(model.bridge("int").unwrap().id).unwrap();
    let behind = Place::Vtep { tunnel: id("vx0"), address: ip("192.0.2.9") };
    let entry = |segment, last, place| StaticEntry {
        segment: SegmentId(segment),
        mac: MacAddr([2, 0, 0, 0, 0, last]),
        place,
    };
    assert_eq!(int.static_fdb, [entry(1, 5, behind), entry(4096, 6, Place::Port(id("vm2")))]);
}

#[test]
fn what_is_configured_of_the_underlay() {
    let (model, compiled) = compiled(NET);
    let vtep0 = model.port("vtep0").unwrap().id;
    let endpoint = &compiled.endpoints[&vtep0];
    assert_eq!((endpoint.addresses[0].to_string(), endpoint.mtu), ("192.0.2.1/24".to_owned(), 1600));
    assert!(!endpoint.mac.is_multicast());
    let other = compiled_mac(&NET.replace("192.0.2.1", "192.0.2.77"));
    assert_ne!(endpoint.mac, other, "another host has another address");
    let route = |via: Option<&str>, source: Option<&str>| Route {
        endpoint: vtep0,
        via: via.map(ip),
        source: source.map(ip),
    };
    let prefix = |text| config::read_prefix(text).unwrap();
    let expected = [
        (prefix("0.0.0.0/0"), route(Some("192.0.2.254"), None)),
        (prefix("192.0.2.0/24"), route(None, Some("192.0.2.1"))),
    ];
    assert_eq!(compiled.routes, expected);
}

fn compiled_mac(text: &str) -> MacAddr {
    compiled(text).1.endpoints.values().next().unwrap().mac
}

fn distinct<T: Ord>(mut all: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    all.all(|one| seen.insert(one))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Names, local VLANs (or none) and VNIs in any combination: what is accepted has one segment for each of them.
    #[test]
    fn whatever_is_accepted_is_found_by_everything(
        segments in prop::collection::vec((0..12u8, prop::option::of(1..6u16), 1..12u32), 1..10),
    ) {
        let lines = segments.iter().map(|(name, vlan, id)| {
            let vlan = vlan.map_or(String::new(), |vlan| format!("vlan = {vlan}, "));
            format!("  {{ name = 's{name}', {vlan}type = 'vxlan', id = {id} }},\n")
        });
        let text = format!(
            "[[bridge]]\nname = 'b'\nsegment = [\n{}]\nport = [{{ name = 'vx', type = 'vxlan', remote-ip = 'flow', key = 'flow' }}]\n",
            lines.collect::<String>()
        );
        let sound = distinct(segments.iter().map(|s| s.0))
            && distinct(segments.iter().filter_map(|s| s.1))
            && distinct(segments.iter().map(|s| s.2));
        let parsed = parse(&text);
        prop_assert_eq!(parsed.is_ok(), sound, "{}", text);
        let Ok(config) = parsed else { return Ok(()) };
        let model = Model::new(config).unwrap();
        let (tables, bridge) = (compile(&model).tables, model.bridge("b").unwrap().id);
        let port = model.port("vx").unwrap().id;
        for (name, vlan, id) in &segments {
            let found = tables.segments.in_tunnel(port, *id).unwrap();
            prop_assert_eq!(&found.name, &format!("s{name}"));
            prop_assert_eq!(found.id.vlan().map(VlanId::get), *vlan);
            prop_assert_eq!(tables.segments.get(bridge, found.id), Some(found));
        }
    }
}
