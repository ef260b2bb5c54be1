//! Reports of problems, word by word, and what a good file means.

mod overlay;
mod vhost;

use proptest::prelude::*;

use super::*;

fn machine() -> Machine {
    Machine { cores: vec![0, 1, 2, 3] }
}

fn read(text: &str) -> Config {
    parse_on(text, &machine()).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

fn problems(text: &str) -> String {
    match parse_on(text, &machine()) {
        Ok(config) => panic!("no problem in {config:?}"),
        Err(problems) => problems.to_string(),
    }
}

#[track_caller]
fn reports(text: &str, expected: &[&str]) {
    assert_eq!(problems(text), expected.join("\n"), "\n{text}");
}

fn vlans(ids: &[u16]) -> VlanSet {
    ids.iter().map(|id| VlanId::new(*id).unwrap()).collect()
}

const EVERYTHING: &str = r#"
[switch]
socket = "/tmp/s.sock"
vhost-sock-dir = "/tmp/vm"
cores = [1, 3]
idle = "spin"
flow-limit = 1000
mask-limit = 64
max-idle = 1500
caches = false
log = "debug"

[pool]
frames = 8192
big-frames = 32

[[bridge]]
name = "br0"
mac-aging-time = 60
mac-table-size = 100
forward-bpdu = true
flood-vlans = [5, "7-9"]
mcast-snooping-enable = true
mcast-snooping-table-size = 20
mcast-snooping-aging-time = 30
mcast-snooping-disable-flood-unregistered = true
datapath-id = "0x0200000000ab"
fdb = [{ mac = "02:00:00:00:00:01", vlan = 10, port = "eth1" }]

[[bridge.port]]
name = "eth1"
type = "afxdp"
tag = 10
trunks = [10, "20-22"]
vlan_mode = "native-tagged"
priority-tags = true
protected = true
mcast-snooping-flood = true
mcast_snooping_flood_reports = true
ofport = 7
mtu = 9000
queues = 2
rxq-affinity = "0:1, 1:3"
xdp-mode = "generic"
upcall-rate = 0

[[bridge.port]]
name = "c0"
type = "internal"
tag = 99
vlan-mode = "dot1q-tunnel"
cvlans = [7]
qinq-ethtype = "802.1q"
mac = "02:00:00:00:00:02"
"#;

#[test]
fn every_key_is_taken_in() {
    let config = read(EVERYTHING);
    let switch = SwitchConfig {
        socket: "/tmp/s.sock".into(),
        vhost_sock_dir: Some("/tmp/vm".into()),
        cores: vec![1, 3],
        idle: Idle::Spin,
        flow_limit: 1000,
        mask_limit: 64,
        max_idle: Duration::from_millis(1500),
        caches: false,
        log: tracing::Level::DEBUG,
    };
    let eth1 = PortConfig {
        name: "eth1".into(),
        kind: PortKind::Afxdp,
        tag: Some(VlanId::new(10).unwrap()),
        trunks: vlans(&[10, 20, 21, 22]),
        vlan_mode: Some(VlanMode::NativeTagged),
        priority_tags: PriorityTags::IfNonzero,
        protected: true,
        mcast_snooping_flood: true,
        mcast_snooping_flood_reports: true,
        ofport: Some(7),
        mtu: Some(9000),
        queues: Some(2),
        rxq_affinity: vec![(0, 1), (1, 3)],
        xdp_mode: XdpMode::Generic,
        upcall_rate: 0,
        ..PortConfig::default()
    };
    let c0 = PortConfig {
        name: "c0".into(),
        kind: PortKind::Internal,
        tag: Some(VlanId::new(99).unwrap()),
        vlan_mode: Some(VlanMode::Dot1qTunnel),
        cvlans: vlans(&[7]),
        qinq_ethtype: EtherType::VLAN,
        mac: Some(MacAddr([2, 0, 0, 0, 0, 2])),
        ..PortConfig::default()
    };
    let entry = FdbConfig {
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        vlan: Some(VlanId::new(10).unwrap()),
        port: Some("eth1".into()),
        ..FdbConfig::default()
    };
    let bridge = BridgeConfig {
        name: "br0".into(),
        mac_aging_time: Duration::from_secs(60),
        mac_table_size: 100,
        forward_bpdu: true,
        flood_vlans: vlans(&[5, 7, 8, 9]),
        mcast_snooping_enable: true,
        mcast_snooping_table_size: 20,
        mcast_snooping_aging_time: Duration::from_secs(30),
        mcast_snooping_disable_flood_unregistered: true,
        datapath_id: Some(0x0200_0000_00ab),
        segments: vec![],
        fdb: vec![entry],
        neighbours: vec![],
        ports: vec![eth1, c0],
    };
    let pool = PoolConfig { frames: 8192, big_frames: 32 };
    assert_eq!(config, Config { switch, pool, routes: vec![], bridges: vec![bridge] });
}

#[test]
fn an_empty_file_is_all_defaults() {
    let mut expected = Config::default();
    expected.switch.cores = vec![3];
    assert_eq!(read(""), expected);
}

#[test]
fn inline_tables_mean_the_same() {
    let headers =
        "[[bridge]]\nname='br0'\n[[bridge.port]]\nname='a'\ntag=1\n[[bridge.fdb]]\nmac='2::'\nport='a'\n";
    let headers = headers.replace("2::", "02:0:0:0:0:1");
    let inline = "bridge = [{name='br0', port=[{name='a', tag=1}], fdb=[{mac='02:0:0:0:0:1', port='a'}]}]\npool.frames=16384";
    assert_eq!(read(&headers), read(inline));
}

#[test]
fn unknown_keys_are_named_with_the_likeliest() {
    reports(
        "colour = 1\n[switch]\ncore = [1]\n[pool]\nhuge = true\n[[bridge]]\nname = 'b'\nmac_ageing_time = 60\n",
        &[
            "1:1: unknown key `colour`, expected one of switch, pool, route, bridge",
            "3:1: unknown key `core`, did you mean `cores`?",
            "5:1: unknown key `huge`, expected one of frames, big-frames",
            "8:1: unknown key `mac_ageing_time`, did you mean `mac-aging-time`?",
        ],
    );
}

#[test]
fn wrong_types_and_ranges_are_all_reported() {
    reports(
        r#"switch = 5
pool = { frames = 10, big-frames = -1 }
[[bridge]]
name = 7
mac-aging-time = 14
mac-table-size = 99999999999999999999
forward-bpdu = "yes"
flood-vlans = [1, 4096, "9-2", "x", true]
datapath-id = "12"
fdb = [{ mac = "01:00:5e:00:00:01", vlan = 1 }, 3]
port = "none"
"#,
        &[
            "1:10: `switch`: found an integer, expected a table",
            "2:19: `frames`: 10 is out of range, expected 1024 to 4194304",
            "2:36: `big-frames`: -1 is out of range, expected 16 to 65536",
            "4:8: `name`: found an integer, expected a name as a string",
            "5:18: `mac-aging-time`: 14 is out of range, expected 15 to 3600",
            "6:18: `mac-table-size`: 99999999999999999999 is out of range, expected 10 to 1000000",
            "7:16: `forward-bpdu`: found the string `yes`, expected true or false",
            "8:19: `flood-vlans`: 4096 is out of range, expected 0 to 4095",
            "8:25: `flood-vlans`: `9-2` is no range of VLANs, expected such as \"20-29\" within 0 to 4095",
            "8:32: `flood-vlans`: `x` is no range of VLANs, expected such as \"20-29\" within 0 to 4095",
            "8:37: `flood-vlans`: found `true`, expected an integer from 0 to 4095",
            "9:15: `datapath-id`: `12` is not 16 hexadecimal digits, not all zero",
            "10:16: `mac`: 01:00:5e:00:00:01 is no unicast address",
            "10:49: `fdb`: found an integer, expected a table",
            "11:8: `port`: found the string `none`, expected a list of tables, each with a header [[…port]]",
        ],
    );
}

#[test]
fn wrong_switch_settings() {
    reports(
        r#"[switch]
socket = "sluice.sock"
vhost-sock-dir = "vm"
cores = [0, 9, 0, "1"]
idle = "adaptiv"
caches = 1
log = "loud"
max-idle = 1
flow-limit = 0
"#,
        &[
            "2:10: `socket`: `sluice.sock` is no absolute path",
            "3:18: `vhost-sock-dir`: `vm` is no absolute path",
            "4:13: `cores`: core 9 is not available here, expected some of 0-3",
            "4:16: `cores`: core 0 is listed twice",
            "4:19: `cores`: found the string `1`, expected an integer from 0 to 4095",
            "5:8: `idle`: found the string `adaptiv`, did you mean `adaptive`? expected one of adaptive, spin",
            "6:10: `caches`: found an integer, expected true or false",
            "7:7: `log`: found the string `loud`, expected one of error, warn, info, debug, trace",
            "8:12: `max-idle`: 1 is out of range, expected 500 to 3600000",
            "9:14: `flow-limit`: 0 is out of range, expected 1 to 8388608",
        ],
    );
    reports("[switch]\ncores = []", &["2:9: `cores`: the list is empty, expected at least one core"]);
    let many: Vec<usize> = (0..501).collect();
    let found =
        parse_on(&format!("[switch]\ncores = {many:?}"), &Machine { cores: many }).unwrap_err().to_string();
    assert!(
        found.contains("2:9: `cores`: found 501 cores, each for a poller, expected at most 500"),
        "{found}"
    );
}

#[test]
fn wrong_port_settings() {
    reports(
        r#"[[bridge]]
name = "br0"
[[bridge.port]]
type = "pach"
tag = "x"
[[bridge.port]]
name = "an-interface-too-long"
vlan-mode = "acces"
mac = "02:00"
rxq-affinity = "0-1"
[[bridge.port]]
name = "a b"
ofport = 65534
mtu = 67
queues = 0
xdp-mode = "fast"
priority-tags = 1
rxq-affinity = "0:1,0:2"
"#,
        &[
            "3:1: `name` is missing",
            "4:8: `type`: found the string `pach`, did you mean `patch`? \
             expected one of system, afxdp, afpacket, internal, patch, vxlan, gre, geneve, vtep, dpdkvhostuser, \
             dpdkvhostuserclient",
            "5:7: `tag`: found the string `x`, expected an integer from 0 to 4095",
            "7:8: `name`: `an-interface-too-long` is 21 bytes long, expected at most 15",
            "8:13: `vlan-mode`: found the string `acces`, did you mean `access`? \
             expected one of access, trunk, native-tagged, native-untagged, dot1q-tunnel",
            "9:7: `mac`: `02:00` is not a MAC address, expected six hexadecimal octets such as 02:00:00:00:00:01",
            "10:16: `rxq-affinity`: `0-1` is no queue:core pair such as 0:1",
            "12:8: `name`: `a b` has ` ` in it, expected ASCII without spaces and without / : % , = \" `",
            "13:10: `ofport`: 65534 is out of range, expected 1 to 65279",
            "14:7: `mtu`: 67 is out of range, expected 68 to 65535",
            "15:10: `queues`: 0 is out of range, expected 1 to 256",
            "16:12: `xdp-mode`: found the string `fast`, expected one of best-effort, native, generic",
            "17:17: `priority-tags`: found an integer, expected one of never, if-nonzero, always",
            "18:16: `rxq-affinity`: queue 0 is listed twice",
        ],
    );
}

#[test]
fn names_are_unique() {
    reports(
        r#"[[bridge]]
name = "br0"
datapath-id = "0000000000000001"
port = [{ name = "a" }, { name = "a" }, { name = "br0", type = "afpacket" }, { name = "br1", type = "internal" }]
[[bridge]]
name = "br1"
datapath-id = "0x1"
[[bridge.port]]
name = "a"
[[bridge]]
name = "br1"
"#,
        &[
            "4:34: port `a` is defined twice, it is in bridge `br0` already",
            "4:50: port `br0` has its bridge's name, expected type internal for it",
            "4:87: port `br1` has another bridge's name",
            "7:15: bridges `br0` and `br1` have one datapath-id",
            "9:8: port `a` is defined twice, it is in bridge `br0` already",
            "11:8: bridge `br1` is defined twice",
        ],
    );
}

#[test]
fn openflow_numbers_are_unique() {
    reports(
        r#"[[bridge]]
name = "br0"
port = [
  { name = "a", ofport = 1 },
  { name = "b", ofport = 1 },
  { name = "br0", type = "internal", ofport = 2 },
]
"#,
        &[
            "5:26: ofport 1 is port `a`'s in bridge `br0` already",
            "6:47: port `br0` is its bridge's own, its ofport is always 65534",
        ],
    );
}

#[test]
fn static_entries_name_ports_once() {
    reports(
        r#"[[bridge]]
name = "br0"
fdb = [
  { mac = "02:00:00:00:00:01", vlan = 1, port = "eth2" },
  { mac = "02:00:00:00:00:01", vlan = 1, port = "eth1" },
  { mac = "02:00:00:00:00:01", vlan = 2, port = "far" },
]
port = [{ name = "eth1" }]
[[bridge]]
name = "br1"
port = [{ name = "far" }]
"#,
        &[
            "4:49: static entry 02:00:00:00:00:01 is for port `eth2`, which bridge `br0` does not have, \
             did you mean `eth1`?",
            "5:11: static entry 02:00:00:00:00:01 in VLAN 1 is given twice",
            "6:49: static entry 02:00:00:00:00:01 is for port `far`, which bridge `br0` does not have",
        ],
    );
}

#[test]
fn vlan_settings_fit_the_mode() {
    reports(
        r#"[[bridge]]
name = "br0"
[[bridge.port]]
name = "a"
tag = 1
vlan-mode = "trunk"
[[bridge.port]]
name = "b"
vlan-mode = "dot1q-tunnel"
"#,
        &[
            "5:7: port `a` is a trunk with a tag; leave `tag` out, or choose vlan-mode native-tagged or native-untagged",
            "9:13: port `b` is a dot1q-tunnel, expected its service VLAN as `tag`",
        ],
    );
}

#[test]
fn peers_are_mutual_and_elsewhere() {
    reports(
        r#"[[bridge]]
name = "br0"
port = [
  { name = "p0", type = "patch" },
  { name = "p1", peer = "p2" },
  { name = "p2", type = "patch", peer = "p3" },
  { name = "p3", type = "patch", peer = "p2" },
  { name = "p4", type = "patch", peer = "p1" },
  { name = "p5", type = "patch", peer = "q0" },
  { name = "p6", type = "patch", peer = "q0" },
]
[[bridge]]
name = "br1"
[[bridge.port]]
name = "q0"
type = "patch"
peer = "p5"
"#,
        &[
            "4:3: patch port `p0` has no `peer`",
            "5:25: port `p1` has a `peer` and is no patch port",
            "6:41: the peer `p3` of patch port `p2` is in the same bridge",
            "7:41: the peer `p2` of patch port `p3` is in the same bridge",
            "8:41: the peer `p1` of patch port `p4` is no patch port",
            "10:41: the peer `q0` of patch port `p6` has another peer itself, expected `p6`",
        ],
    );
}

#[test]
fn queues_are_polled_by_pollers() {
    reports(
        "switch.cores = [1]\n[[bridge]]\nname = 'b'\nport = [{ name = 'a', rxq-affinity = '0:1,1:1,2:2' }]\n",
        &[
            "4:38: no poller runs on core 2 for queue 2 of port `a`; add it to `cores` in [switch]",
            "4:38: port `a` has no queue 1, expected one below `queues`, which is 1",
            "4:38: port `a` has no queue 2, expected one below `queues`, which is 1",
        ],
    );
}

#[test]
fn frames_suffice_for_rings() {
    reports(
        "[pool]\nframes = 1024\n[[bridge]]\nname = 'b'\nport = [{ name = 'a', type = 'afxdp', queues = 2 }]\n",
        &["2:10: 1024 frames are too few for 1 pollers and 2 afxdp queues, expected at least 1280"],
    );
}

#[test]
fn syntax_errors_do_not_hide_other_problems() {
    reports(
        "[[bridge]]\nname = \nmac-aging-time = 1\n[[bridge.port]]\nname = 'a'\ntag = = 1\ntrunks = 1\n",
        &[
            "2:8: string values must be quoted, expected literal string",
            "3:18: `mac-aging-time`: 1 is out of range, expected 15 to 3600",
            "6:7: extra `=`, expected nothing",
            "7:10: `trunks`: found an integer, expected a list of VLANs such as [10, \"20-29\"]",
        ],
    );
}

#[test]
fn a_key_is_given_once_however_it_is_spelled() {
    reports("[pool]\nbig_frames = 64\nbig-frames = 32\n", &["2:1: `big-frames` is given twice"]);
}

#[test]
fn the_reference_describes_every_key() {
    let reference = include_str!("../../CONFIG.md");
    let tables: [(&str, Vec<&str>); 8] = [
        ("[switch]", keys::SWITCH.iter().map(|key| key.name).collect()),
        ("[pool]", keys::POOL.iter().map(|key| key.name).collect()),
        ("[[bridge]]", BRIDGE.iter().map(|key| key.name).collect()),
        ("[[route]]", keys::ROUTE.iter().map(|key| key.name).collect()),
        ("segment", SEGMENT.iter().map(|key| key.name).collect()),
        ("neigh", keys::NEIGH.iter().map(|key| key.name).collect()),
        ("fdb", keys::FDB.iter().map(|key| key.name).collect()),
        ("[[bridge.port]]", PORT.iter().map(|key| key.name).collect()),
    ];
    for (table, keys) in tables {
        let start = reference.find(&format!("## `{table}`")).unwrap_or_else(|| panic!("no section {table}"));
        let section = reference[start + 3..].split("\n## ").next().unwrap();
        for key in &keys {
            assert!(section.contains(&format!("| `{key}` |")), "{table} {key}");
        }
        let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(rows.len(), keys.len(), "{table} describes what there is not: {rows:?}");
    }
}

#[test]
fn the_example_of_the_reference_is_valid() {
    let reference = include_str!("../../CONFIG.md");
    for example in reference.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        read(example);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_files_never_panic(damage in prop::collection::vec((0..EVERYTHING.len(), any::<u8>()), 1..20)) {
        let mut bytes = EVERYTHING.as_bytes().to_vec();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        if let Err(problems) = parse_on(&String::from_utf8_lossy(&bytes), &machine()) {
            prop_assert!(!problems.0.is_empty());
            prop_assert!(problems.0.iter().all(|problem| problem.line.is_some() && !problem.message.contains('\n')));
        }
    }

    #[test]
    fn moved_pieces_never_panic(cuts in prop::collection::vec((0..EVERYTHING.len(), 0..60usize, 0..EVERYTHING.len()), 1..6)) {
        let mut bytes = EVERYTHING.as_bytes().to_vec();
        for (from, length, to) in cuts {
            let piece: Vec<u8> = bytes.drain(from..(from + length).min(bytes.len())).collect();
            let to = to.min(bytes.len());
            bytes.splice(to..to, piece);
            bytes.resize(EVERYTHING.len(), b'\n');
        }
        let _ = parse_on(std::str::from_utf8(&bytes).unwrap(), &machine());
    }
}
