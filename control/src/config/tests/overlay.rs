//! Segments, tunnels, endpoints and routes in a file.

use dataplane::tunnel::{Carrier, Key, Tos};
use encap::tunnel::TunnelKind;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A bridge `br` with these ports and segments, and one with the endpoint 192.0.2.1 and 2001:db8::1.
fn net(segments: &str, ports: &str) -> String {
    format!(
        "[[bridge]]\nname = 'phy'\nport = [{{ name = 'vtep0', type = 'vtep', address = ['192.0.2.1/24', '2001:db8::1/64'] }}]\n\
         [[bridge]]\nname = 'br'\nsegment = [\n{segments}\n]\nport = [\n{ports}\n]\n"
    )
}

const VX: &str = "{ name = 'vx', type = 'vxlan', remote-ip = 'flow', key = 'flow' },";
const GRE: &str = "{ name = 'gre', type = 'gre', remote-ip = 'flow', key = 'flow' },";

/// What is wrong, without places.
#[track_caller]
fn wrong(text: &str, expected: &[&str]) {
    let problems = parse_on(text, &machine()).map(|_| ()).unwrap_err().0;
    let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(messages, expected, "\n{text}");
}

const EVERYTHING: &str = r#"
[[route]]
to = "0.0.0.0/0"
via = "192.0.2.254"
[[route]]
to = "2001:db8:1::/48"
port = "vtep0"

[[bridge]]
name = "phy"
port = [
  { name = "vtep0", type = "vtep", address = ["192.0.2.1/24", "2001:db8::1/64"], mac = "02:00:00:00:00:01", tag = 7 },
]

[[bridge]]
name = "int"
segment = [
  { name = "blue", vlan = 1, type = "vxlan", id = 0xffffff, vteps = ["192.0.2.2", "192.0.2.3"], learning = false,
    strict-peers = true, tunnel = "vx0" },
  { name = "5f0a3f3b-0b0e-4d0e-9d8e-000000000000", type = "gre", id = 4294967295 },
  { name = "prov", vlan = 2, type = "vlan", id = 101, uplink = "eth2" },
  { name = "flat", vlan = 3, type = "flat", uplink = "eth2" },
  { name = "loc", vlan = 4, type = "local" },
]
fdb = [
  { mac = "02:00:00:00:00:05", segment = "blue", vtep = "192.0.2.2" },
  { mac = "02:00:00:00:00:06", vlan = 1, port = "vm1" },
]
neigh = [{ segment = "blue", address = "2001:db8:5::5", mac = "02:00:00:00:00:05" }]
port = [
  { name = "vm1", tag = 1 },
  { name = "vm2", segment = "blue" },
  { name = "eth2" },
  { name = "vx0", type = "vxlan", remote_ip = "flow", key = "flow", local_ip = "192.0.2.1", dst_port = 8472,
    tos = "inherit", ttl = "inherit", df_default = false, csum = true, underlay = "host" },
  { name = "gre0", type = "gre", remote-ip = "flow", key = "flow" },
  { name = "p2p", type = "geneve", remote-ip = "2001:db8::7", key = 42, tag = 9, tos = 0x10, ttl = 3, underlay = "switch" },
]
"#;

#[test]
fn every_key_is_taken_in() {
    let config = read(EVERYTHING);
    let route = |to: &str, via: Option<&str>, port: Option<&str>| RouteConfig {
        to: read_prefix(to).unwrap(),
        via: via.map(ip),
        port: port.map(str::to_owned),
    };
    let routes =
        [route("0.0.0.0/0", Some("192.0.2.254"), None), route("2001:db8:1::/48", None, Some("vtep0"))];
    assert_eq!(config.routes, routes);
    let vtep = &config.bridges[0].ports[0];
    let addresses: Vec<String> = vtep.addresses.iter().map(Cidr::to_string).collect();
    assert_eq!(
        (vtep.kind, addresses),
        (PortKind::Vtep, vec!["192.0.2.1/24".into(), "2001:db8::1/64".into()])
    );
    let int = &config.bridges[1];
    let blue = SegmentConfig {
        name: "blue".into(),
        vlan: VlanId::new(1).ok(),
        kind: SegmentKind::Tunnel(TunnelKind::Vxlan),
        id: Some(VNI_MAX),
        tunnel: Some("vx0".into()),
        uplink: None,
        vteps: vec![ip("192.0.2.2"), ip("192.0.2.3")],
        learning: false,
        strict_peers: true,
    };
    assert_eq!(int.segments[0], blue);
    assert_eq!(int.segments[1].id, Some(u32::MAX));
    let kinds: Vec<SegmentKind> = int.segments[2..].iter().map(|segment| segment.kind).collect();
    assert_eq!(kinds, [SegmentKind::Vlan, SegmentKind::Flat, SegmentKind::Local]);
    assert_eq!(int.fdb[0].vtep, Some(ip("192.0.2.2")));
    assert_eq!((int.fdb[1].vlan, int.fdb[1].port.as_deref()), (VlanId::new(1).ok(), Some("vm1")));
    assert_eq!(
        (int.neighbours[0].segment.as_str(), int.neighbours[0].address),
        ("blue", ip("2001:db8:5::5"))
    );
    assert_eq!(int.ports[1].segment.as_deref(), Some("blue"));
    let vx0 = TunnelConfig {
        remote: Some(Remote::Flow),
        local: Some(ip("192.0.2.1")),
        key: Key::Flow,
        dst_port: Some(8472),
        tos: Some(Tos::Inherit),
        ttl: Some(Ttl::Inherit),
        df: Some(false),
        csum: Some(true),
        underlay: Some(Carrier::Host),
    };
    assert_eq!(int.ports[3].tunnel, vx0);
    let p2p = TunnelConfig {
        remote: Some(Remote::Fixed(ip("2001:db8::7"))),
        key: Key::Fixed(42),
        tos: Some(Tos::Fixed(0x10)),
        ttl: Some(Ttl::Fixed(3)),
        underlay: Some(Carrier::Switch),
        ..TunnelConfig::NONE
    };
    assert_eq!((int.ports[5].tunnel, int.ports[5].kind), (p2p, PortKind::Tunnel(TunnelKind::Geneve)));
}

#[test]
fn wrong_values_are_reported_with_what_was_expected() {
    reports(
        r#"[[route]]
to = "10.0.0.1/8"
via = "224.0.0.1"
[[bridge]]
name = "b"
segment = [
  { name = "a b", type = "vlxan", id = -1, vteps = ["192.0.2.2", "x", "192.0.2.2", 3], learning = 1 },
]
neigh = [{ segment = "s", address = "0.0.0.0", mac = "01:00:00:00:00:01" }]
port = [
  { name = "t", type = "vxlan", remote-ip = "flw", key = "flows", dst-port = 0, tos = 256, ttl = 0, underlay = "hst" },
  { name = "u", type = "vxlan", remote-ip = "255.255.255.255", key = 4294967296, local-ip = "fe80::1/64", ttl = "x" },
  { name = "v", type = "vtep", address = ["192.0.2.1", "192.0.2.1/33", 7] },
]
"#,
        &[
            "2:6: `to`: `10.0.0.1/8` has bits behind its prefix, expected 10.0.0.0/8",
            "3:7: `via`: 224.0.0.1 is no unicast address",
            "7:12: `name`: `a b` has ` ` in it, expected ASCII without spaces and without / : % , = \" `",
            "7:26: `type`: found the string `vlxan`, did you mean `vxlan`? expected one of vxlan, gre, geneve, vlan, flat, local",
            "7:40: `id`: -1 is out of range, expected 0 to 4294967295",
            "7:66: `vteps`: `x` is no IP address",
            "7:71: `vteps`: 192.0.2.2 is listed twice",
            "7:84: `vteps`: found an integer, expected an IP address as a string",
            "7:99: `learning`: found an integer, expected true or false",
            "9:22: neighbour 0.0.0.0 is in segment `s`, which bridge `b` does not have",
            "9:37: `address`: 0.0.0.0 is no unicast address",
            "9:54: `mac`: 01:00:00:00:00:01 is no unicast address",
            "11:45: `remote-ip`: `flw` is no IP address, expected one or \"flow\"",
            "11:58: `key`: found the string `flows`, expected an integer from 0 to 4294967295 or \"flow\"",
            "11:78: `dst-port`: 0 is out of range, expected 1 to 65535",
            "11:87: `tos`: 256 is out of range, expected 0 to 255",
            "11:98: `ttl`: 0 is out of range, expected 1 to 255",
            "11:112: `underlay`: found the string `hst`, did you mean `host`? expected one of switch, host",
            "12:45: `remote-ip`: 255.255.255.255 is no unicast address, expected one or \"flow\"",
            "12:70: `key`: 4294967296 is out of range, expected 0 to 4294967295",
            "12:93: `local-ip`: `fe80::1/64` is no IP address",
            "12:113: `ttl`: found the string `x`, expected an integer from 1 to 255 or \"inherit\"",
            "13:43: `address`: `192.0.2.1` is no address with a prefix length such as 192.0.2.0/24",
            "13:56: `address`: prefix length 33 is out of range for 192.0.2.1, expected 0 to 32",
            "13:72: `address`: found an integer, expected an address such as \"192.0.2.1/24\" as a string",
        ],
    );
}

#[test]
fn segments_do_not_share_what_only_one_can_have() {
    let segments = "{ name = 'a', vlan = 1, type = 'vxlan', id = 5 }, { name = 'b', vlan = 1, type = 'local' },
        { name = 'c', type = 'vxlan', id = 5 }, { name = 'd', type = 'vlan', id = 9, uplink = 'eth' },
        { name = 'e', type = 'vlan', id = 9, uplink = 'eth' }, { name = 'f', type = 'flat', uplink = 'eth' },
        { name = 'g', type = 'flat', uplink = 'eth' }, { name = 'a', type = 'local' }, { name = 'h', type = 'gre', id = 5 }";
    wrong(
        &net(segments, &format!("{VX} {GRE} {{ name = 'eth' }}")),
        &[
            "segments `a` and `b` have one local VLAN 1",
            "segments `a` and `c` have one id 5 on tunnel port `vx`",
            "segments `d` and `e` are both VLAN 9 on uplink `eth`",
            "segments `f` and `g` are both flat on uplink `eth`",
            "segment `a` is defined twice, it is in bridge `br` already",
        ],
    );
}

#[test]
fn segments_have_what_their_type_needs_and_nothing_else() {
    let segments = "{ name = 'a', type = 'vxlan' }, { name = 'b', type = 'vxlan', id = 16777216 },
        { name = 'c', type = 'vlan', uplink = 'eth' }, { name = 'd', type = 'vlan', id = 4095, uplink = 'eth' },
        { name = 'e', type = 'flat', id = 1 }, { name = 'f', type = 'local', vteps = ['192.0.2.2'], uplink = 'eth' },
        { name = 'g', type = 'vlan', id = 1, uplink = 'eht', tunnel = 'vx' }, { name = 'h', type = 'flat', uplink = 'vx' },
        { name = 'i', type = 'local', strict-peers = true }";
    wrong(
        &net(segments, &format!("{VX} {{ name = 'eth' }}")),
        &[
            "segment `a` is of type vxlan, expected its VNI as `id`",
            "id 16777216 of segment `b` of type vxlan is out of range, expected 0 to 16777215",
            "segment `c` is of type vlan, expected the provider's VLAN as `id`",
            "id 4095 of segment `d` of type vlan is out of range, expected 1 to 4094",
            "segment `e` is of type flat, expected its `uplink`",
            "segment `e` is of type flat, which has no `id`",
            "segment `f` is of type local, which has no `vteps`",
            "segment `f` is of type local, which has no `uplink`",
            "segment `g` is on port `eht`, which bridge `br` does not have, did you mean `eth`?",
            "segment `g` is of type vlan, which has no `tunnel`",
            "segment `h` is on port `vx`, which is no wire but a tunnel's end",
            "segment `i` is of type local, which has no `strict-peers`",
        ],
    );
}

#[test]
fn a_segment_rides_on_one_tunnel_port_of_its_kind() {
    let two = "{ name = 'vx2', type = 'vxlan', remote-ip = '192.0.2.9', key = 'flow' },
        { name = 'one', type = 'vxlan', remote-ip = '192.0.2.8', key = 8 }, { name = 'eth' }";
    let segments = "{ name = 'a', type = 'vxlan', id = 1 }, { name = 'b', type = 'geneve', id = 1 },
        { name = 'c', type = 'vxlan', id = 1, tunnel = 'one' }, { name = 'd', type = 'gre', id = 1, tunnel = 'vx' },
        { name = 'e', type = 'vxlan', id = 1, tunnel = 'eth' }, { name = 'f', type = 'vxlan', id = 1, tunnel = 'vy' },
        { name = 'g', type = 'vxlan', id = 1, tunnel = 'vx2', vteps = ['192.0.2.9'] }";
    wrong(
        &net(segments, &format!("{VX} {two}")),
        &[
            "segment `a` may ride on tunnel ports `vx` or `vx2`; say which with `tunnel`",
            "segment `b` needs a tunnel port; add one of type geneve with key = \"flow\" to bridge `br`",
            "segment `c` rides on tunnel port `one`, which carries one key only; set its key to \"flow\"",
            "segment `d` is of type gre, and its tunnel `vx` of type vxlan",
            "segment `e` rides on port `eth`, which is no tunnel port",
            "segment `f` rides on port `vy`, which bridge `br` does not have, did you mean `vx`?",
            "segment `g` has `vteps`, and its tunnel port `vx2` leads to 192.0.2.9 only; leave `vteps` out, or set its \
             remote-ip to \"flow\"",
        ],
    );
}

#[test]
fn ports_have_vlans_or_segments() {
    let ports = "{ name = 'eth', trunks = [5] }, { name = 'p', tag = 1, segment = 'a' }, { name = 'q', segment = 'b' },
        { name = 'vx', type = 'vxlan', remote-ip = 'flow', key = 'flow', tag = 1 }";
    wrong(
        &net("{ name = 'a', type = 'flat', uplink = 'eth' }", ports),
        &[
            "port `eth` is the uplink of segment `a`: it carries the VLANs of its segments; leave `trunks` out",
            "port `p` joins segment `a` and has `tag`; leave one of the two out",
            "port `q` joins segment `b`, which bridge `br` does not have",
            "tunnel port `vx` has key \"flow\": it carries the segments that name it, not VLANs; leave `tag` out",
        ],
    );
}

#[test]
fn tunnel_ports_are_whole_and_apart() {
    let ports = "{ name = 'a', type = 'vxlan' },
        { name = 'b', type = 'vxlan', remote-ip = 'flow', key = 7 },
        { name = 'c', type = 'gre', remote-ip = 'flow' },
        { name = 'd', type = 'gre', remote-ip = '192.0.2.2', dst-port = 9 },
        { name = 'e', type = 'geneve', remote-ip = '192.0.2.2', key = 16777216 },
        { name = 'f', type = 'vxlan', remote-ip = '2001:db8::2', local-ip = '192.0.2.1' },
        { name = 'g', type = 'vxlan', remote-ip = '192.0.2.1' },
        { name = 'h', type = 'vxlan', remote-ip = '192.0.2.3', key = 0, dst-port = 4789 },
        { name = 'i', type = 'vxlan', remote-ip = '192.0.2.3' },
        { name = 'j', type = 'gre', remote-ip = '192.0.2.3', key = 0 },
        { name = 'k', type = 'gre', remote-ip = '192.0.2.3' },
        { name = 'l', ttl = 3, csum = true, address = ['192.0.2.5/24'] },
        { name = 'm', type = 'vtep' },
        { name = 'n', type = 'vtep', address = ['192.0.2.1/25'] }";
    wrong(
        &net("", ports),
        &[
            "tunnel port `a` has no `remote-ip`, expected an address or \"flow\"",
            "tunnel port `b` has remote-ip \"flow\": segments say where frames go, so its key must be \"flow\", too; or \
             set remote-ip to an address",
            "tunnel port `c` has remote-ip \"flow\": segments say where frames go, so its key must be \"flow\", too; or \
             set remote-ip to an address",
            "port `d` has a `dst-port`, and GRE has no ports",
            "key 16777216 of port `e` is no geneve VNI, expected 0 to 16777215",
            "remote-ip 2001:db8::2 and local-ip 192.0.2.1 of tunnel port `f` are of different families",
            "remote-ip 192.0.2.1 of tunnel port `g` is our own address, of port `vtep0`: a tunnel loop",
            "tunnel ports `h` and `i` would take the same frames; give them different local-ip, remote-ip or key",
            "port `l` has `ttl` and is no tunnel port, expected type vxlan, gre or geneve",
            "port `l` has `csum` and is no tunnel port, expected type vxlan, gre or geneve",
            "port `l` has `address` and is no vtep; the kernel has a device's addresses",
            "port `m` is a vtep, expected its addresses such as address = [\"192.0.2.1/24\"]",
            "address 192.0.2.1 of port `n` is port `vtep0`'s already",
        ],
    );
}

#[test]
fn endpoints_of_segments_are_others_and_of_one_family() {
    let ports = "{ name = 'vx', type = 'vxlan', remote-ip = 'flow', key = 'flow', local-ip = '192.0.2.1' }";
    let vteps = "{ name = 'a', type = 'vxlan', id = 1, vteps = ['192.0.2.1', '2001:db8::1', '2001:db8::2', '192.0.2.2'] }";
    wrong(
        &net(vteps, ports),
        &[
            "VTEP 192.0.2.1 is our own address, of port `vtep0`: a tunnel loop, in segment `a`",
            "VTEP 2001:db8::1 is our own address, of port `vtep0`: a tunnel loop, in segment `a`",
            "VTEP 2001:db8::2 and local-ip 192.0.2.1 of tunnel port `vx` are of different families, in segment `a`",
        ],
    );
}

#[test]
fn stations_are_somewhere_once() {
    let segments = "{ name = 'a', vlan = 1, type = 'vxlan', id = 1 }, { name = 'l', type = 'local' }";
    let mac = "mac = '02:00:00:00:00:01'";
    let entries = [
        "segment = 'a', vtep = '192.0.2.2'",
        "vlan = 1, port = 'vm'",
        "segment = 'l', port = 'vm'",
        "segment = 'l', vtep = '192.0.2.2'",
        "vlan = 7, vtep = '192.0.2.2'",
        "segment = 'b', port = 'vm'",
        "vlan = 1, segment = 'a', port = 'vm'",
        "vlan = 8",
        "vlan = 9, port = 'vm', vtep = '192.0.2.2'",
        "vlan = 10, port = 'vx'",
    ];
    let fdb: Vec<String> = entries.iter().map(|entry| format!("{{ {mac}, {entry} }},\n")).collect();
    let neigh = "{ segment = 'a', address = '10.0.0.1', mac = '02:00:00:00:00:01' },
        { segment = 'a', address = '10.0.0.1', mac = '02:00:00:00:00:02' },
        { segment = 'c', address = '10.0.0.1', mac = '02:00:00:00:00:02' }";
    let text = net(segments, &format!("{VX} {{ name = 'vm' }}"));
    let text = format!("{text}fdb = [\n{}]\nneigh = [\n{neigh}\n]\n", fdb.concat());
    wrong(
        &text,
        &[
            "static entry 02:00:00:00:00:01 in VLAN 1 is given twice",
            "static entry 02:00:00:00:00:01 in segment `l` is given twice",
            "static entry 02:00:00:00:00:01 is behind VTEP 192.0.2.2: segment `l` is of type local, which has no tunnel",
            "static entry 02:00:00:00:00:01 is behind VTEP 192.0.2.2: no segment has VLAN 7",
            "static entry 02:00:00:00:00:01 is in segment `b`, which bridge `br` does not have",
            "static entry 02:00:00:00:00:01 is in segment `a` and in VLAN 1; leave one out",
            "static entry 02:00:00:00:00:01 is nowhere, expected its `port` or `vtep`",
            "static entry 02:00:00:00:00:01 has a `port` and a `vtep`; leave one out",
            "static entry 02:00:00:00:00:01 is behind tunnel port `vx`; say behind which endpoint with `vtep`",
            "10.0.0.1 in segment `a` is 02:00:00:00:00:01's already, and 02:00:00:00:00:02 claims it",
            "neighbour 10.0.0.1 is in segment `c`, which bridge `br` does not have",
        ],
    );
}

#[test]
fn routes_lead_out_once() {
    let route = |keys: &str| format!("[[route]]\n{}\n", keys.replace("; ", "\n"));
    let routes = [
        "to='0.0.0.0/0'; via='198.51.100.1'",
        "to='0.0.0.0/0'; via='192.0.2.254'",
        "to='10.0.0.0/8'",
        "to='10.1.0.0/16'; via='2001:db8::9'",
        "to='10.2.0.0/16'; via='192.0.2.1'",
        "to='10.3.0.0/16'; port='eth'",
        "to='10.4.0.0/16'; port='vtep1'",
        "to='10.5.0.0/16'; port='vtep0'",
    ];
    wrong(
        &(routes.map(route).concat() + &net("", "{ name = 'eth' }")),
        &[
            "no vtep port has an address in the network of 198.51.100.1; say which `port` leads there",
            "there are two routes to 0.0.0.0/0",
            "the route to 10.0.0.0/8 has neither `via` nor `port`",
            "the route to 10.1.0.0/16 is via 2001:db8::9, an address of the other family",
            "the route to 10.2.0.0/16 is via 192.0.2.1, which is our own, of port `vtep0`",
            "the route to 10.3.0.0/16 leaves by port `eth`, expected one of type vtep or internal",
            "the route to 10.4.0.0/16 leaves by port `vtep1`, which does not exist, did you mean `vtep0`?",
        ],
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_overlays_never_panic(damage in prop::collection::vec((0..EVERYTHING.len(), any::<u8>()), 1..12)) {
        let mut bytes = EVERYTHING.as_bytes().to_vec();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        match parse_on(&String::from_utf8_lossy(&bytes), &machine()) {
            Err(problems) => prop_assert!(problems.0.iter().all(|problem| problem.line.is_some())),
            // What is accepted compiles, and its warnings can be told.
            Ok(config) => {
                crate::check::warnings(&config);
                crate::compile::compile(&crate::model::Model::new(config).unwrap());
            }
        }
    }
}
