//! Edits: what the text looks like afterwards, what is refused, and that nothing else is touched.

use encap::field::{MacAddr, VlanId};
use proptest::prelude::*;

use super::*;
use crate::config::{FdbConfig, NeighConfig, RouteConfig};

const FILE: &str = r#"# the switch of host 7

[switch]
log = "warn" # quiet

# bridges

[[bridge]]
name = "br0"
mac_aging_time = 60   # short

# the uplink
[[bridge.port]]
name = "eth1"
trunks = [10, "20-29"]

# office
[[bridge.port]]
name = "veth1"
# their VLAN
tag = 10 # was 11
protected = true

[[bridge]]
name = "br1"
fdb = [{ mac = "02:00:00:00:00:01", port = "veth2" }]

[[bridge.port]]
name = "veth2"
# the end
"#;

fn strings(settings: &[&str]) -> Vec<String> {
    settings.iter().map(|setting| setting.to_string()).collect()
}

fn set_port(port: &str, settings: &[&str]) -> Change {
    Change::SetPort { port: port.into(), settings: strings(settings) }
}

fn add_port(bridge: &str, port: &str, settings: &[&str]) -> Change {
    Change::AddPort { bridge: bridge.into(), port: port.into(), settings: strings(settings) }
}

/// A static entry, and its place if it has one.
fn entry(vlan: u16, last: u8, port: Option<&str>) -> FdbConfig {
    let (vlan, mac) = (VlanId::new(vlan).unwrap(), MacAddr([2, 0, 0, 0, 0, last]));
    FdbConfig { mac, vlan: Some(vlan), port: port.map(str::to_owned), ..Default::default() }
}

fn add_fdb(bridge: &str, vlan: u16, last: u8, port: &str) -> Change {
    Change::AddFdb { bridge: bridge.into(), entries: vec![entry(vlan, last, Some(port))] }
}

fn del_fdb(bridge: &str, vlan: u16, last: u8) -> Change {
    Change::DelFdb { bridge: bridge.into(), entries: vec![entry(vlan, last, None)] }
}

/// The change of a file as it stands there.
fn edit(text: &str, change: &Change) -> Result<String, Problems> {
    let (edited, config) = super::edit(text, &config::parse(text)?, change)?;
    assert_eq!(config::parse(&edited).as_ref(), Ok(&config), "{edited}");
    Ok(edited)
}

fn edited(text: &str, change: &Change) -> String {
    edit(text, change).unwrap_or_else(|problems| panic!("{change:?}: {problems}\n{text}"))
}

/// The edit turns `before`, which is in the file once, into `after`.
#[track_caller]
fn replaces(text: &str, change: &Change, (before, after): (&str, &str)) {
    assert_eq!(text.matches(before).count(), 1, "{before}");
    assert_eq!(edited(text, change), text.replace(before, after), "{change:?}");
}

#[track_caller]
fn refuses(change: &Change, message: &str) {
    assert_eq!(
        edit(FILE, change).map_err(|problems| problems.to_string()),
        Err(message.to_owned()),
        "{change:?}"
    );
}

#[test]
fn a_set_value_keeps_its_comment() {
    replaces(FILE, &set_port("veth1", &["tag=12"]), ("tag = 10 #", "tag = 12 #"));
    replaces(FILE, &set_port("eth1", &["trunks=1,2,20-29"]), (r#"[10, "20-29"]"#, r#"[1, 2, "20-29"]"#));
    let bridge = Change::SetBridge { bridge: "br0".into(), settings: strings(&["mac-aging-time=90"]) };
    replaces(FILE, &bridge, ("mac_aging_time = 60   #", "mac_aging_time = 90   #"));
}

#[test]
fn a_new_key_stands_behind_the_others() {
    let port = set_port("veth1", &["vlan_mode=native-tagged", "mtu=9000", "rxq-affinity="]);
    replaces(
        FILE,
        &port,
        ("protected = true\n", "protected = true\nvlan-mode = \"native-tagged\"\nmtu = 9000\n"),
    );
    let bridge = Change::SetBridge { bridge: "br0".into(), settings: strings(&["flood-vlans=5"]) };
    replaces(FILE, &bridge, ("# short\n", "# short\nflood-vlans = [5]\n"));
}

#[test]
fn a_removed_key_leaves_the_comment_above() {
    replaces(FILE, &set_port("veth1", &["tag="]), ("tag = 10 # was 11\n", ""));
    assert_eq!(edited(FILE, &set_port("eth1", &["tag="])), FILE);
}

#[test]
fn a_new_port_stands_behind_the_others_of_its_bridge() {
    let port = "\n[[bridge.port]]\nname = \"p\"\ntype = \"internal\"\nmtu = 1400\n";
    replaces(
        FILE,
        &add_port("br0", "p", &["type=internal", "mtu=1400"]),
        ("protected = true\n", &format!("protected = true\n{port}")),
    );
    replaces(
        FILE,
        &add_port("br1", "p", &[]),
        ("\"veth2\"\n#", "\"veth2\"\n\n[[bridge.port]]\nname = \"p\"\n#"),
    );
}

#[test]
fn a_removed_port_takes_its_comment_along() {
    let veth1 = &FILE[FILE.find("\n# office").unwrap()..FILE.find("\n[[bridge]]\nname = \"br1\"").unwrap()];
    replaces(FILE, &Change::DelPort { port: "veth1".into() }, (veth1, ""));
    let eth1 = &FILE[FILE.find("\n# the uplink").unwrap()..FILE.find("\n# office").unwrap()];
    replaces(FILE, &Change::DelPort { port: "eth1".into() }, (eth1, ""));
}

#[test]
fn a_removed_bridge_takes_its_ports_along() {
    let start = FILE.find("[[bridge]]\nname = \"br0\"").unwrap();
    let end = FILE.find("\n[[bridge]]\nname = \"br1\"").unwrap();
    let expected = [FILE[..start].trim_end_matches('\n'), "\n", &FILE[end..]].concat();
    assert_eq!(edited(FILE, &Change::DelBridge { bridge: "br0".into() }), expected);
}

#[test]
fn bridges_come_and_go() {
    let add = Change::AddBridge { bridge: "br2".into(), settings: strings(&["mcast-snooping-enable=true"]) };
    let with = edited(FILE, &add);
    let bridge = "\n[[bridge]]\nname = \"br2\"\nmcast-snooping-enable = true\n";
    assert_eq!(with, FILE.replace("# the end\n", &format!("{bridge}# the end\n")));
    assert_eq!(edited("", &add), bridge.trim_start());
    let with_port = edited(&with, &add_port("br2", "x", &[]));
    let without = edited(&with_port, &Change::DelBridge { bridge: "br2".into() });
    assert_eq!(without, FILE.replace("# the end", "\n# the end"));
}

#[test]
fn static_entries_come_and_go() {
    let first = r#"fdb = [{ mac = "02:00:00:00:00:07", vlan = 10, port = "eth1" }]"#;
    replaces(FILE, &add_fdb("br0", 10, 7, "eth1"), ("# short\n", &format!("# short\n{first}\n")));
    let second = r#""veth2" }, { mac = "02:00:00:00:00:02", vlan = 0, port = "veth2" }]"#;
    replaces(FILE, &add_fdb("br1", 0, 2, "veth2"), (r#""veth2" }]"#, second));
    assert_eq!(edited(FILE, &add_fdb("br1", 0, 1, "veth2")), FILE);
    replaces(FILE, &del_fdb("br1", 0, 1), (r#"[{ mac = "02:00:00:00:00:01", port = "veth2" }]"#, "[]"));
    let two = edited(FILE, &add_fdb("br1", 0, 2, "veth2"));
    assert_eq!(edited(&two, &del_fdb("br1", 0, 2)), FILE);
    replaces(&two, &del_fdb("br1", 0, 1), (r#"{ mac = "02:00:00:00:00:01", port = "veth2" }, "#, ""));
}

#[test]
fn static_entries_with_a_line_each_stay_so() {
    let text = "[[bridge]]\nname = \"b\"\nfdb = [\n  # one\n  { mac = \"02:00:00:00:00:01\", port = \"p\" },END]\n\
                [[bridge.port]]\nname = \"p\"\n";
    let entry = "{ mac = \"02:00:00:00:00:02\", vlan = 3, port = \"p\" }";
    let (comma, no_comma) = (text.replace("END", "\n"), text.replace(",END", "\n"));
    let add = add_fdb("b", 3, 2, "p");
    replaces(&comma, &add, ("\"p\" },\n]", &format!("\"p\" }},\n  {entry},\n]")));
    replaces(&no_comma, &add, ("\"p\" }\n]", &format!("\"p\" }},\n  {entry}\n]")));
}

#[test]
fn inline_files_are_edited_inline() {
    let text = "bridge = [{ name = \"b\", port = [{ name = \"p\", tag = 1 }] }]\n";
    replaces(text, &set_port("p", &["tag=2"]), ("tag = 1", "tag = 2"));
    replaces(text, &set_port("p", &["tag="]), (", tag = 1", ""));
    replaces(text, &add_port("b", "q", &[]), ("tag = 1 }]", "tag = 1 }, { name = \"q\" }]"));
    replaces(text, &Change::DelPort { port: "p".into() }, ("[{ name = \"p\", tag = 1 }]", "[]"));
    let bare = "bridge = [{ name = \"b\" }]\n";
    replaces(bare, &add_port("b", "q", &["tag=1"]), ("\"b\"", "\"b\", port = [{ name = \"q\", tag = 1 }]"));
}

#[test]
fn windows_line_ends_stay() {
    let text = FILE.replace('\n', "\r\n");
    for change in
        [set_port("veth1", &["tag=12", "mtu=1400"]), set_port("veth1", &["tag="]), add_port("br0", "p", &[])]
    {
        assert_eq!(edited(&text, &change), edited(FILE, &change).replace('\n', "\r\n"));
    }
}

#[test]
fn patch_ports_come_one_after_the_other() {
    let one = edited(FILE, &add_port("br0", "pa", &["type=patch", "peer=pb"]));
    let both = edited(&one, &add_port("br1", "pb", &["type=patch", "peer=pa"]));
    edited(&both, &Change::DelPort { port: "pa".into() });
    edited(&both, &Change::DelBridge { bridge: "br0".into() });
}

#[test]
fn conflicts_are_refused_with_a_cure() {
    refuses(
        &Change::AddBridge { bridge: "br0".into(), settings: vec![] },
        "bridge `br0` exists already; change it with `set`",
    );
    refuses(&Change::DelBridge { bridge: "br9".into() }, "there is no bridge `br9`, did you mean `br0`?");
    refuses(
        &add_port("br1", "eth1", &[]),
        "port `eth1` is in bridge `br0` already; change it with `set`, or delete it first",
    );
    refuses(&Change::DelPort { port: "veth3".into() }, "there is no port `veth3`, did you mean `veth1`?");
    refuses(
        &Change::DelPort { port: "veth2".into() },
        "static entry 02:00:00:00:00:01 is for port `veth2`, which bridge `br1` does not have",
    );
    refuses(
        &add_fdb("br1", 0, 1, "other"),
        "02:00:00:00:00:01 in VLAN 0 of bridge `br1` is at port `veth2` already; delete that entry first",
    );
    refuses(&del_fdb("br0", 4, 1), "bridge `br0` has no static entry 02:00:00:00:00:01 in VLAN 4");
}

#[test]
fn bad_settings_are_refused_as_in_a_file() {
    refuses(&set_port("eth1", &["tag=x"]), "`tag`: found the string `x`, expected an integer from 0 to 4095");
    refuses(&set_port("eth1", &["trunks=5000"]), "`trunks`: 5000 is out of range, expected 0 to 4095");
    refuses(
        &set_port("eth1", &["protected=yes"]),
        "`protected`: found the string `yes`, expected true or false",
    );
    refuses(
        &set_port("eth1", &["tagg=1", "name=x", "mtu"]),
        "unknown key `tagg`, did you mean `tag`?\n\
         `name` cannot be changed; delete it and add another\n\
         `mtu` is no setting, expected key=value",
    );
    refuses(
        &Change::SetBridge { bridge: "br0".into(), settings: strings(&["port=x"]) },
        "`port` is a table of its own, not a setting",
    );
    refuses(
        &add_port("br0", "much-too-long-a-name", &[]),
        "`name`: `much-too-long-a-name` is 20 bytes long, expected at most 15",
    );
}

#[test]
fn a_file_with_errors_is_not_edited() {
    let problems = edit("[[bridge]]\nname = 1\n", &add_port("b", "p", &[])).unwrap_err();
    assert_eq!(problems.to_string(), "2:8: `name`: found an integer, expected a name as a string");
}

const OVERLAY: &str = r#"
[[bridge]]
name = "br-int"
segment = [
  { name = "blue", vlan = 1, type = "vxlan", id = 5001 }, # tenant 1
  # tenant 2
  { name = "red", type = "vxlan", id = 5002, vteps = ["192.0.2.2"] },
]
port = [
  { name = "vx", type = "vxlan", remote-ip = "flow", key = "flow" },
  { name = "vm", segment = "red" },
]

[[bridge]]
name = "br-phy"
port = [{ name = "vtep0", type = "vtep", address = ["192.0.2.1/24"] }]
"#;

#[test]
fn segments_come_change_and_go() {
    let add = Change::AddSegment {
        bridge: "br-int".into(),
        segment: "green".into(),
        settings: strings(&["type=vxlan", "id=5003", "vteps=192.0.2.2,192.0.2.3"]),
    };
    let green = r#"{ name = "green", type = "vxlan", id = 5003, vteps = ["192.0.2.2", "192.0.2.3"] }"#;
    replaces(OVERLAY, &add, ("] },\n]\nport", &format!("] }},\n  {green},\n]\nport")));
    let set = |settings: &[&str]| Change::SetSegment { segment: "blue".into(), settings: strings(settings) };
    replaces(OVERLAY, &set(&["id=6001"]), ("id = 5001 }, # tenant 1", "id = 6001 }, # tenant 1"));
    replaces(
        OVERLAY,
        &set(&["vlan=", "learning=false"]),
        (
            r#""blue", vlan = 1, type = "vxlan", id = 5001 }"#,
            r#""blue", type = "vxlan", id = 5001, learning = false }"#,
        ),
    );
    let refused = |change: &Change| edit(OVERLAY, change).unwrap_err().to_string();
    let del = |segment: &str| Change::DelSegment { segment: segment.into() };
    assert_eq!(refused(&del("bleu")), "there is no segment `bleu`, did you mean `blue`?");
    assert!(
        refused(&del("red"))
            .starts_with("port `vm` joins segment `red`, which bridge `br-int` does not have")
    );
    assert_eq!(refused(&set(&["id=5002"])), "segments `blue` and `red` have one id 5002 on tunnel port `vx`");
    let blue = "  { name = \"blue\", vlan = 1, type = \"vxlan\", id = 5001 }, # tenant 1\n";
    replaces(OVERLAY, &del("blue"), (blue, ""));
    let red = "  # tenant 2\n  { name = \"red\", type = \"vxlan\", id = 5002, vteps = [\"192.0.2.2\"] },\n";
    let alone = OVERLAY.replace("  { name = \"vm\", segment = \"red\" },\n", "");
    replaces(&alone, &del("red"), (red, ""));
}

#[test]
fn the_first_segment_of_a_bridge_gets_a_header() {
    let add = Change::AddSegment {
        bridge: "br1".into(),
        segment: "loc".into(),
        settings: strings(&["type=local"]),
    };
    let header = "\n[[bridge.segment]]\nname = \"loc\"\ntype = \"local\"\n";
    replaces(FILE, &add, ("\"veth2\"\n#", &format!("\"veth2\"\n{header}#")));
}

#[test]
fn many_stations_come_and_go_in_one_change() {
    let at = |last: u8| FdbConfig {
        mac: MacAddr([2, 0, 0, 0, 0, last]),
        segment: Some("red".into()),
        vtep: Some([192, 0, 2, last].into()),
        ..Default::default()
    };
    let entries: Vec<FdbConfig> = (2..200).map(at).collect();
    let add = Change::AddFdb { bridge: "br-int".into(), entries: entries.clone() };
    let with = edited(OVERLAY, &add);
    assert_eq!(config::parse(&with).unwrap().bridges[0].fdb, entries);
    assert_eq!(edited(&with, &add), with, "what is there stays");
    let some = Change::DelFdb { bridge: "br-int".into(), entries: entries[..150].to_vec() };
    assert_eq!(config::parse(&edited(&with, &some)).unwrap().bridges[0].fdb, entries[150..]);
    let moved = FdbConfig { vtep: Some([192, 0, 2, 9].into()), ..at(2) };
    let moved = Change::AddFdb { bridge: "br-int".into(), entries: vec![moved] };
    assert_eq!(
        edit(&with, &moved).unwrap_err().to_string(),
        "02:00:00:00:00:02 in segment `red` of bridge `br-int` is behind VTEP 192.0.2.2 already; delete that entry first"
    );
}

#[test]
fn a_station_is_the_same_by_vlan_and_by_segment() {
    let place = |vlan, segment: Option<&str>| FdbConfig {
        vlan,
        segment: segment.map(str::to_owned),
        ..entry(1, 7, Some("vx"))
    };
    let vtep = |entry: FdbConfig| FdbConfig { port: None, vtep: Some([192, 0, 2, 2].into()), ..entry };
    let by_name = vtep(place(None, Some("blue")));
    let add = |entry: &FdbConfig| Change::AddFdb { bridge: "br-int".into(), entries: vec![entry.clone()] };
    let with = edited(OVERLAY, &add(&by_name));
    let by_vlan = vtep(place(VlanId::new(1).ok(), None));
    assert_eq!(edited(&with, &add(&by_vlan)), with);
    let del = Change::DelFdb { bridge: "br-int".into(), entries: vec![by_vlan] };
    assert!(config::parse(&edited(&with, &del)).unwrap().bridges[0].fdb.is_empty());
}

#[test]
fn neighbours_and_routes_come_and_go() {
    let entry = |last: u8| NeighConfig {
        segment: "red".into(),
        address: [10, 0, 0, 5].into(),
        mac: MacAddr([2, 0, 0, 0, 0, last]),
    };
    let add = |last| Change::AddNeigh { bridge: "br-int".into(), entries: vec![entry(last)] };
    let with = edited(OVERLAY, &add(5));
    let line = r#"neigh = [{ segment = "red", address = "10.0.0.5", mac = "02:00:00:00:00:05" }]"#;
    assert!(with.contains(line), "{with}");
    assert_eq!(edited(&with, &add(5)), with);
    let refused = edit(&with, &add(6)).unwrap_err().to_string();
    assert_eq!(refused, "10.0.0.5 in segment `red` is 02:00:00:00:00:05's already; delete that entry first");
    let del = Change::DelNeigh { bridge: "br-int".into(), entries: vec![entry(0)] };
    assert_eq!(edited(&with, &del), with.replace(line, "neigh = []"));
    let refused = edit(OVERLAY, &del).unwrap_err().to_string();
    assert_eq!(refused, "bridge `br-int` has no neighbour 10.0.0.5 in segment `red`");

    let to = config::read_prefix("0.0.0.0/0").unwrap();
    let add = Change::AddRoute(RouteConfig { to, via: Some([192, 0, 2, 254].into()), port: None });
    let with = edited(OVERLAY, &add);
    assert!(with.contains("[[route]]\nto = \"0.0.0.0/0\"\nvia = \"192.0.2.254\"\n"), "{with}");
    assert_eq!(edited(&with, &add), with);
    assert!(config::parse(&edited(&with, &Change::DelRoute(to))).unwrap().routes.is_empty());
    let refused = edit(OVERLAY, &Change::DelRoute(to)).unwrap_err().to_string();
    assert_eq!(refused, "there is no configured route to 0.0.0.0/0");
}

/// A valid file in various layouts.
fn file() -> impl Strategy<Value = String> {
    let port = (any::<bool>(), any::<bool>(), prop::option::of(0..4096u16), "( # [a-z]{1,5})?");
    let bridge = prop::collection::vec(port, 0..4);
    prop::collection::vec(bridge, 1..4).prop_map(|bridges| {
        let mut text = String::from("# head\n\n[switch]\nlog = 'info'\n\n");
        for (b, ports) in bridges.iter().enumerate() {
            text += &format!("# bridge {b}\n[[bridge]]\nname = \"br{b}\"\n");
            for (p, (blank, above, tag, comment)) in ports.iter().enumerate() {
                text += if *blank { "\n" } else { "" };
                text += if *above { "# above\n" } else { "" };
                text += &format!("[[bridge.port]]{comment}\nname = \"p{b}x{p}\"{comment}\n");
                text += &tag.map(|tag| format!("tag = {tag}{comment}\n")).unwrap_or_default();
            }
            text += "\n";
        }
        text
    })
}

/// The change of a port that is likely there, or of a new one.
fn change() -> impl Strategy<Value = Change> {
    let old = (0..3usize, 0..3usize).prop_map(|(b, p)| format!("p{b}x{p}"));
    let tag = prop::option::of(0..4096u16).prop_map(|tag| match tag {
        Some(tag) => format!("tag={tag}"),
        None => "tag=".to_owned(),
    });
    prop_oneof![
        (old.clone(), tag.clone()).prop_map(|(port, tag)| Change::SetPort { port, settings: vec![tag] }),
        old.clone().prop_map(|port| Change::DelPort { port }),
        (0..3usize, tag).prop_map(|(b, tag)| Change::AddPort {
            bridge: format!("br{b}"),
            port: "new".into(),
            settings: vec![tag],
        }),
        (0..3usize).prop_map(|b| Change::DelBridge { bridge: format!("br{b}") }),
        (0..3usize, 0..4096u16, old).prop_map(|(b, vlan, port)| add_fdb(&format!("br{b}"), vlan, 5, &port)),
    ]
}

/// What a change means, said without any text.
fn changed(mut config: Config, change: &Change) -> Config {
    let tagged =
        |settings: &[String]| settings[0].strip_prefix("tag=").unwrap().parse().ok().map(VlanId::from_tci);
    let find =
        |config: &Config, name: &str| config.bridges.iter().position(|bridge| bridge.name == name).unwrap();
    match change {
        Change::SetPort { port, settings } => {
            let mut ports = config.bridges.iter_mut().flat_map(|bridge| &mut bridge.ports);
            ports.find(|other| other.name == *port).unwrap().tag = tagged(settings);
        }
        Change::DelPort { port } => {
            config.bridges.iter_mut().for_each(|bridge| bridge.ports.retain(|other| other.name != *port));
        }
        Change::AddPort { bridge, port, settings } => {
            let b = find(&config, bridge);
            let port = config::PortConfig { name: port.clone(), tag: tagged(settings), ..Default::default() };
            config.bridges[b].ports.push(port);
        }
        Change::DelBridge { bridge } => config.bridges.retain(|other| other.name != *bridge),
        Change::AddFdb { bridge, entries } => {
            let b = find(&config, bridge);
            config.bridges[b].fdb.extend(entries.iter().cloned());
        }
        other => panic!("not made by `change`: {other:?}"),
    }
    config
}

/// The lines that are only in `a` and those that are only in `b`: all but a longest common subsequence.
fn difference<'a>(a: &'a str, b: &'a str) -> (Vec<&'a str>, Vec<&'a str>) {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
    let mut common = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            let skip = common[i + 1][j].max(common[i][j + 1]);
            common[i][j] = if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { skip };
        }
    }
    let (mut i, mut j, mut gone, mut come) = (0, 0, Vec::new(), Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && common[i + 1][j] >= common[i][j + 1] {
            gone.push(a[i]);
            i += 1;
        } else {
            come.push(b[j]);
            j += 1;
        }
    }
    (gone, come)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn an_edit_means_its_change_and_touches_nothing_else(text in file(), change in change()) {
        let before = config::parse(&text).unwrap();
        let Ok(after) = edit(&text, &change) else { return Ok(()) };
        prop_assert_eq!(config::parse(&after).unwrap(), changed(before, &change), "{}", after);
        let about = |line: &&str| match &change {
            Change::SetPort { .. } => line.starts_with("tag = "),
            Change::AddFdb { .. } => line.starts_with("fdb = "),
            Change::AddPort { .. } => {
                ["", "[[bridge.port]]", "name = \"new\""].contains(line) || line.starts_with("tag = ")
            }
            _ => !line.contains("head") && !line.contains("log"),
        };
        let (gone, come) = difference(&text, &after);
        prop_assert!(gone.iter().chain(&come).all(about), "{:?} {:?}\n{}\n{}", gone, come, text, after);
        match &change {
            Change::AddPort { .. } | Change::AddFdb { .. } => prop_assert!(gone.is_empty(), "{:?}", gone),
            Change::DelPort { .. } | Change::DelBridge { .. } => prop_assert!(come.is_empty(), "{:?}", come),
            _ => prop_assert!(gone.len() <= 1 && come.len() <= 1, "{:?} {:?}", gone, come),
        }
    }

    #[test]
    fn edits_of_damaged_files_never_panic(
        damage in prop::collection::vec((0..FILE.len(), any::<u8>()), 1..4),
        change in prop_oneof![
            Just(set_port("veth1", &["tag=3", "protected="])),
            Just(add_port("br1", "p", &["tag=3"])),
            Just(Change::DelPort { port: "eth1".into() }),
            Just(Change::DelBridge { bridge: "br0".into() }),
            Just(add_fdb("br0", 1, 1, "eth1")),
        ],
    ) {
        let mut bytes = FILE.as_bytes().to_vec();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        if let Ok(text) = edit(&String::from_utf8_lossy(&bytes), &change) {
            prop_assert!(config::parse(&text).is_ok());
        }
    }
}
