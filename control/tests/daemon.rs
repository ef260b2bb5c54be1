//! The whole daemon in a network namespace of each test's own: interfaces that come and go, changes of the
//! configuration, two daemons on one socket, and Debian's `ovs-appctl`. Needs root.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::client;
use control::daemon::{RunError, run};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// Runs `test` in a thread with an empty network namespace, which ends with it.
fn in_namespace(test: fn()) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a network namespace takes root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    thread.join().unwrap();
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {args}");
}

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
        assert!(exists("host1") && !exists("host0"));
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
        rig.call("sluice/fdb/add br0 10 02:00:00:00:00:01 host0");
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
