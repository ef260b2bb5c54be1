//! The whole daemon in a network namespace of each test's own: interfaces that come and go, changes of the
//! configuration, two daemons on one socket, and Debian's `ovs-appctl`. Needs root.

#[path = "support/namespace.rs"]
mod namespace;
#[path = "daemon/vhost.rs"]
mod vhost;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::client;
use control::daemon::{RunError, run};
use serde_json::{Value, json};

use namespace::{in_namespace, ip};

/// Waits until `condition` holds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon in a thread, and its files.
struct Rig {
    dir: tempfile::TempDir,
    daemon: Option<JoinHandle<Result<(), RunError>>>,
}

impl Rig {
    fn start(config: &str) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sluice.toml"), config).unwrap();
        let mut rig = Rig { dir, daemon: None };
        rig.daemon = Some(rig.spawn());
        eventually("the daemon answers", || client::call(&rig.socket(), "version", &[]).is_ok());
        rig
    }

    fn spawn(&self) -> JoinHandle<Result<(), RunError>> {
        let (file, socket) = (self.file(), self.socket());
        std::thread::spawn(move || run(&file, Some(&socket)))
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("sluice.toml")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sluice.sock")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn try_call(&self, line: &str) -> Result<Value, String> {
        let mut words = line.split_whitespace();
        let method = words.next().unwrap();
        let params: Vec<String> = words.map(str::to_owned).collect();
        client::call(&self.socket(), method, &params).map_err(|e| e.to_string())
    }

    fn call(&self, line: &str) -> Value {
        self.try_call(line).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// A port's state: up, down or error.
    fn state(&self, port: &str) -> String {
        self.call(&format!("sluice/port/show {port}"))[0]["state"].as_str().unwrap().to_owned()
    }

    fn appctl(&self, args: &[&str]) -> String {
        let run = Command::new("ovs-appctl").arg("-t").arg(self.socket()).args(args).output();
        let out = run.expect("ovs-appctl is installed (Debian package openvswitch-common)");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = client::call(&self.socket(), "exit", &[]);
        let ended = self.daemon.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
        assert!(std::thread::panicking() || !self.socket().exists());
    }
}

fn exists(interface: &str) -> bool {
    fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains(&format!("{interface}:"))
}

const TWO: &str = r#"
# the uplink
[[bridge]]
name = "br0"

[[bridge.port]]
name = "a0"
type = "afpacket"
tag = 10 # tenant

[[bridge.port]]
name = "host0"
type = "internal"
mtu = 1400
"#;

#[test]
fn a_port_follows_its_interface() {
    in_namespace(|| {
        let rig = Rig::start(TWO);
        assert_eq!(rig.state("a0"), "down");
        let error = &rig.call("sluice/port/show a0")[0]["error"];
        assert!(error.as_str().unwrap().contains("no such interface"), "{error}");
        assert_eq!(rig.state("host0"), "up");
        assert_eq!(rig.call("sluice/port/show host0")[0]["mtu"], 1400);
        for _ in 0..3 {
            ip("link add a0 type veth peer name a1");
            assert_eq!(rig.state("a0"), "down", "it exists but is not set up");
            ip("link set a0 up");
            eventually("a0 comes up", || rig.state("a0") == "up");
            ip("link set a0 mtu 1300");
            eventually("the MTU is taken over", || rig.call("sluice/port/show a0")[0]["mtu"] == 1300);
            ip("link set a0 down");
            eventually("a0 goes down", || rig.state("a0") == "down");
            ip("link set a0 up");
            eventually("a0 comes up again", || rig.state("a0") == "up");
            ip("link del a0");
            eventually("a0 vanishes", || rig.state("a0") == "down");
        }
        ip("link del host0");
        eventually("an internal port is made again", || exists("host0") && rig.state("host0") == "up");
    });
}

#[test]
fn a_verb_changes_the_switch_and_the_file_or_neither() {
    in_namespace(|| {
        ip("link add b0 type veth peer name b1");
        ip("link set b0 up");
        let rig = Rig::start(TWO);
        let report = rig.call("sluice/port/add br0 b0 type=afpacket tag=20");
        assert_eq!(report["opened"], json!(["b0"]));
        assert_eq!(report["untouched"], 2);
        assert_eq!(rig.call("sluice/port/show b0")[0]["vlan"], "access 20");
        rig.call("sluice/port/set b0 tag=30");
        assert_eq!(rig.call("sluice/port/show b0")[0]["vlan"], "access 30");
        let text = rig.text();
        assert!(
            text.contains("# the uplink") && text.contains("tag = 10 # tenant") && text.contains("tag = 30")
        );
        for wrong in ["sluice/port/set b0 tag=5000", "sluice/port/add br0 b0", "sluice/port/del nosuch"] {
            rig.try_call(wrong).unwrap_err();
            assert_eq!(rig.text(), text, "{wrong}");
        }
        fs::write(rig.file(), format!("{text}\n[switch]\nmax-idle = 20000\n")).unwrap();
        let stale = rig.try_call("sluice/port/del b0").unwrap_err();
        assert!(stale.contains("sluice apply"), "{stale}");
        assert_eq!(rig.call("sluice/apply")["needs_restart"], json!(["switch.max-idle"]));
        assert_eq!(rig.call("sluice/apply")["needs_restart"], json!(["switch.max-idle"]), "still");
        rig.call("sluice/port/del b0");
        assert!(rig.try_call("sluice/port/show b0").unwrap_err().contains("b0"));
        assert!(!rig.text().contains("\"b0\""));
    });
}

#[test]
fn a_wrong_file_changes_nothing_and_every_problem_is_told() {
    in_namespace(|| {
        let rig = Rig::start(TWO);
        let before = rig.call("sluice/port/show");
        fs::write(rig.file(), TWO.replace("tag = 10", "tag = 9999").replace("1400", "\"big\"")).unwrap();
        let error = rig.try_call("sluice/apply").unwrap_err();
        assert!(error.contains("sluice.toml:9:") && error.contains("sluice.toml:14:"), "{error}");
        assert_eq!(rig.call("sluice/port/show"), before);
        fs::write(rig.file(), TWO.replace("tag = 10", "tag = 11")).unwrap();
        let report = rig.call("sluice/apply");
        assert_eq!((&report["untouched"], &report["reopened"]), (&json!(2), &json!([])), "{report}");
        assert_eq!(rig.call("sluice/port/show a0")[0]["vlan"], "access 11");
    });
}

#[test]
fn another_file_takes_the_place_of_the_configuration() {
    in_namespace(|| {
        let rig = Rig::start(TWO);
        let other = rig.dir.path().join("other.toml");
        let text = TWO.replace("host0", "host1");
        fs::write(&other, &text).unwrap();
        let report = rig.call(&format!("sluice/apply {}", other.display()));
        assert_eq!((&report["opened"], &report["closed"]), (&json!(["host1"]), &json!(["host0"])));
        assert_eq!(rig.text(), text);
        assert!(exists("host1"));
        // A process that another test is just starting may still hold the descriptor between fork and exec.
        eventually("host0 goes", || !exists("host0"));
    });
}

#[test]
fn an_interface_that_cannot_be_opened_stops_no_other() {
    in_namespace(|| {
        ip("tuntap add host0 mode tap");
        let rig = Rig::start(&TWO.replace("a0", "host9").replace("afpacket", "internal"));
        assert_eq!(rig.state("host9"), "up");
        assert_eq!(rig.state("host0"), "error");
        let report = rig.call("sluice/apply");
        assert_eq!(report["troubles"][0]["port"], "host0");
        ip("link del host0");
        eventually("it is tried again when its name is free", || rig.state("host0") == "up");
    });
}

#[test]
fn a_second_daemon_refuses_and_the_first_goes_on() {
    in_namespace(|| {
        let rig = Rig::start(TWO);
        let error = rig.spawn().join().unwrap().unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()) && error.contains("sluice.sock"), "{error}");
        assert_eq!(rig.state("host0"), "up");
    });
}

#[test]
fn nothing_starts_from_a_wrong_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sluice.toml");
    fs::write(&file, "[switch]\nlog = \"loud\"\n[pool]\nframes = -1\n").unwrap();
    let socket = dir.path().join("sluice.sock");
    match run(&file, Some(&socket)) {
        Err(RunError::Config(_, problems)) => assert_eq!(problems.0.len(), 2, "{problems}"),
        other => panic!("{other:?}"),
    }
    assert!(!socket.exists());
}

#[test]
fn ovs_appctl_drives_the_switch() {
    in_namespace(|| {
        let rig = Rig::start(TWO);
        rig.call("sluice/fdb/add br0 02:00:00:00:00:01 vlan=10 port=host0");
        assert!(rig.appctl(&["version"]).starts_with("sluice "));
        let commands = rig.appctl(&["list-commands"]);
        let wanted = [
            "fdb/show",
            "fdb/flush",
            "mdb/show",
            "dpctl/dump-flows",
            "ofproto/trace",
            "list-commands",
            "version",
            "exit",
        ];
        for verb in wanted {
            assert!(commands.lines().any(|line| line.split_whitespace().next() == Some(verb)), "{verb}");
        }
        let ofport = rig.call("sluice/port/show host0")[0]["ofport"].to_string();
        let fdb = rig.appctl(&["fdb/show", "br0"]);
        let entry = format!("{ofport:>5}    10  02:00:00:00:00:01  static");
        assert_eq!(fdb.lines().next(), Some(" port  VLAN  MAC                Age"));
        assert!(fdb.lines().any(|line| line == entry), "{entry} in\n{fdb}");
        assert_eq!(rig.appctl(&["fdb/flush", "br0"]), "table successfully flushed\n");
        assert_eq!(rig.appctl(&["mdb/show", "br0"]), " port  VLAN  GROUP                Age\n");
        rig.appctl(&["dpctl/dump-flows"]);
        let flow = format!("in_port={ofport},dl_vlan=10,dl_src=02:00:00:00:00:02,dl_dst=02:00:00:00:00:03");
        let trace = rig.appctl(&["ofproto/trace", "br0", &flow]);
        assert!(
            trace.contains("bridge(\"br0\")\n-------------\n") && trace.contains("Datapath actions: "),
            "{trace}"
        );
        assert_eq!(rig.appctl(&["log", "debug"]), "debug\n");
        assert!(exists("host0"));
    });
}

const OVERLAY: &str = r#"
[[bridge]]
name = "br0"
segment = [
  { name = "blue", vlan = 1, type = "vxlan", id = 5001, vteps = ["192.0.2.2"] }, # tenant
]
port = [
  { name = "vm0", type = "internal", tag = 1, mtu = 1400 },
  { name = "vx0", type = "vxlan", remote-ip = "flow", key = "flow", local-ip = "192.0.2.1", underlay = "switch" },
]
"#;

#[test]
fn segments_come_change_and_go_while_it_runs() {
    in_namespace(|| {
        let rig = Rig::start(OVERLAY);
        let show = |name: &str| {
            let all = rig.call("sluice/segment/show br0");
            all.as_array().unwrap().iter().find(|segment| segment["name"] == name).cloned()
        };
        let blue = show("blue").unwrap();
        assert_eq!(
            (&blue["id"], &blue["outside"], &blue["ports"]),
            (&json!(5001), &json!("vx0"), &json!(["vm0"]))
        );
        assert_eq!(blue["vteps"], json!([{ "address": "192.0.2.2", "age_s": null }]));
        rig.call("sluice/segment/add br0 red type=vxlan id=5002 vteps=192.0.2.2,192.0.2.3");
        assert_eq!(show("red").unwrap()["number"], 4096);
        rig.call("sluice/segment/set blue id=6001");
        assert_eq!(show("blue").unwrap()["id"], 6001);
        let text = rig.text();
        assert!(text.contains("id = 6001") && text.contains("# tenant"), "{text}");
        let refusals = [
            ("sluice/segment/set blue id=5002", "one id 5002 on tunnel port `vx0`"),
            ("sluice/segment/set bleu id=5", "did you mean `blue`?"),
            ("sluice/segment/add br0 red type=local", "segment `red` is in bridge `br0` already"),
            ("sluice/segment/add br0 green type=gre id=1", "add one of type gre with key = \"flow\""),
            ("sluice/segment/set blue vteps=192.0.2.1", "a tunnel loop"),
            ("sluice/segment/show br9", "no bridge \"br9\""),
            ("sluice/tunnel/set vm0 ttl=3", "no tunnel port"),
            ("sluice/tunnel/add br0 x type=internal", "type=vxlan"),
            ("sluice/port/del vx0", "needs a tunnel port"),
        ];
        for (line, reason) in refusals {
            let error = rig.try_call(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
            assert_eq!(rig.text(), text, "{line}");
        }
        rig.call("sluice/segment/del red");
        assert!(show("red").is_none());
        rig.call("sluice/tunnel/add br0 p2p type=gre remote-ip=198.51.100.7 key=42 tag=9 underlay=switch");
        rig.call("sluice/tunnel/set p2p ttl=inherit tos=4");
        let p2p = &rig.call("sluice/tunnel/show p2p")[0];
        assert_eq!(
            (&p2p["remote"], &p2p["key"], &p2p["ttl"]),
            (&json!("198.51.100.7"), &json!("42"), &json!("inherit"))
        );
        assert_eq!(
            (&p2p["carrier"], &p2p["listener"], &p2p["dst_port"]),
            (&json!("switch"), &json!("p2p"), &Value::Null)
        );
        let vx0 = &rig.call("sluice/tunnel/show vx0")[0];
        assert_eq!(
            (&vx0["segments"], &vx0["dst_port"], &vx0["local"]),
            (&json!(1), &json!(4789), &json!("192.0.2.1"))
        );
        rig.call("sluice/tunnel/del p2p");
        assert!(rig.try_call("sluice/tunnel/show p2p").is_err());
    });
}

#[test]
fn stations_are_pushed_many_at_a_time_and_shown_by_name() {
    in_namespace(|| {
        let rig = Rig::start(OVERLAY);
        rig.call("sluice/segment/add br0 red type=vxlan id=5002");
        let entry = |n: u32| {
            format!(" 02:00:00:00:{:02x}:{:02x} segment=red vtep=192.0.2.{}", n >> 8, n & 0xff, 2 + n % 250)
        };
        let thousand: String = (0..1000).map(entry).collect();
        rig.call(&format!("sluice/fdb/add br0{thousand}"));
        rig.call("sluice/fdb/add br0 02:00:00:00:ff:01 vlan=1 port=vm0");
        // The kernel speaks on vm0 as soon as it is up; what is learned of that is not counted.
        let fixed = || {
            let mut entries = rig.call("sluice/fdb/show br0").as_array().unwrap().clone();
            entries.retain(|entry| entry["age_s"].is_null());
            entries
        };
        let fdb = fixed();
        let find = |mac: &str| fdb.iter().find(|entry| entry["mac"] == mac).unwrap();
        assert_eq!(fdb.len(), 1001);
        let remote = find("02:00:00:00:00:07");
        assert_eq!(
            (&remote["segment"], &remote["vtep"], &remote["port"]),
            (&json!("red"), &json!("192.0.2.9"), &json!("vx0"))
        );
        let local = find("02:00:00:00:ff:01");
        assert_eq!(
            (&local["segment"], &local["vtep"], &local["vlan"]),
            (&json!("blue"), &Value::Null, &json!(1))
        );
        assert_eq!(rig.call("sluice/segment/show br0")[1]["stations"], 1000);
        rig.call(&format!("sluice/fdb/del br0{}", (0..999).map(entry).collect::<String>()));
        assert_eq!(fixed().len(), 2);
        let wrong = rig.try_call("sluice/fdb/add br0 02:00:00:00:00:01 segment=rde port=vm0").unwrap_err();
        assert!(wrong.contains("did you mean `red`?"), "{wrong}");

        rig.call("sluice/neigh/add br0 10.0.0.5 segment=red mac=02:00:00:00:00:05 2001:db8::5 segment=red mac=02:00:00:00:00:05");
        let neighbours = rig.call("sluice/neigh/show br0");
        assert_eq!(
            neighbours[1],
            json!({
                "bridge": "br0", "segment": "red", "port": null, "address": "2001:db8::5", "mac": "02:00:00:00:00:05"
            })
        );
        rig.call("sluice/neigh/del br0 10.0.0.5 segment=red");
        let all = rig.call("sluice/neigh/show");
        assert_eq!(
            all.as_array().unwrap().iter().filter(|entry| !entry["segment"].is_null()).count(),
            1,
            "{all}"
        );
        assert!(rig.try_call("sluice/neigh/del br0 10.0.0.5 segment=red").is_err());

        rig.appctl(&["fdb/add", "br0", "vm0", "1", "02:00:00:00:ff:02"]);
        let shown = rig.appctl(&["fdb/show", "br0"]);
        assert!(shown.contains("02:00:00:00:ff:02  static"), "{shown}");
        let stats = rig.appctl(&["fdb/stats-show", "br0"]);
        assert!(stats.contains("  Current static MAC entries in the table : 3\n"), "{stats}");
        rig.appctl(&["fdb/del", "br0", "1", "02:00:00:00:ff:02"]);
        assert!(!rig.appctl(&["fdb/show", "br0"]).contains("ff:02"));
    });
}

#[test]
fn routes_of_endpoints_come_and_go() {
    in_namespace(|| {
        let rig = Rig::start(
            "[[bridge]]\nname = \"phy\"\nport = [{ name = \"vtep0\", type = \"vtep\", address = [\"192.0.2.1/24\"] }]\n",
        );
        let routes = || {
            let all = rig.call("sluice/route/show");
            let pair = |route: &Value| {
                format!("{} {} {}", route["to"], route["via"], route["origin"]).replace('"', "")
            };
            all.as_array().unwrap().iter().map(pair).collect::<Vec<_>>()
        };
        eventually("its own network is known", || routes() == ["192.0.2.0/24 null connected"]);
        rig.call("sluice/route/add default via=192.0.2.254");
        let both = ["0.0.0.0/0 192.0.2.254 configured", "192.0.2.0/24 null connected"];
        eventually("the route is in force", || routes() == both);
        assert!(
            rig.text().contains("[[route]]\nto = \"0.0.0.0/0\"\nvia = \"192.0.2.254\""),
            "{}",
            rig.text()
        );
        let error = rig.try_call("sluice/route/add 10.0.0.0/8 via=198.51.100.1").unwrap_err();
        assert!(error.contains("say which `port` leads there"), "{error}");
        rig.call("sluice/route/del default");
        eventually("the route is gone", || routes() == both[1..]);
    });
}

#[test]
fn a_trace_goes_into_tunnels_and_out_of_them() {
    in_namespace(|| {
        let rig = Rig::start(OVERLAY);
        let trace = |flow: &str| {
            rig.call(&format!("sluice/trace br0 {flow},dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02"))
        };
        let steps = |trace: &Value| trace["steps"].to_string();
        let out = trace("in_port=vx0,tun_id=5001,tun_src=192.0.2.2,tun_dst=192.0.2.1");
        assert!(steps(&out).contains("by tunnel port `vx0`") && out["actions"] == "vm0", "{out}");
        let unknown = trace("in_port=vx0,tun_id=5002,tun_src=192.0.2.2,tun_dst=192.0.2.1");
        assert!(unknown["actions"].to_string().contains("unknown-segment"), "{unknown}");
        let into = trace("in_port=vm0");
        assert!(steps(&into).contains("into vxlan 5001 to 192.0.2.2"), "{into}");
        let error = rig.try_call("sluice/trace br0 in_port=vx0,dl_src=02:00:00:00:00:01").unwrap_err();
        assert!(error.contains("tun_src, tun_dst and tun_id"), "{error}");
    });
}

#[test]
fn after_exit_nothing_is_left() {
    in_namespace(|| {
        let rig = Rig::start(TWO);
        assert!(exists("host0"));
        let files = rig.dir.path().to_owned();
        assert_eq!(rig.appctl(&["exit"]), "");
        eventually("the socket goes", || !rig.socket().exists());
        eventually("the device goes", || !exists("host0"));
        let left: Vec<_> = fs::read_dir(files).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["sluice.toml"]);
    });
}
