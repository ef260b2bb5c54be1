//! `sluice pktgen` against the real daemon, over ports of every kind.

use std::io::Read;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::daemon::{Daemon, bridge};
use crate::support::lab::{Leashed, Seat, eventually};
use crate::support::namespace::Namespace;

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
/// An overlay between `p1`, the wire, and `p2`, a VM.
const OVERLAY: &str = r#"
    [[bridge]]
    name = "br-phy"
    port = [
        { name = "p1", type = "afpacket" },
        { name = "vtep", type = "vtep", mac = "02:00:00:00:aa:01", address = ["192.0.2.1/24"] },
    ]
    [[bridge]]
    name = "br-int"
    segment = [{ name = "blue", vlan = 1, type = "vxlan", id = 5001, vteps = ["192.0.2.2"] }]
    port = [
        { name = "vx", type = "vxlan", remote-ip = "flow", key = "flow" },
        { name = "p2", type = "afpacket", tag = 1 },
    ]
"#;

/// Two cables: the switch's ends are `p1` and `p2`, the generator's `g1` and `g2`.
fn cables() -> Namespace {
    let namespace = Namespace::new();
    for n in 1..=2 {
        namespace.ip(&format!("link add p{n} type veth peer name g{n}"));
        namespace.ip(&format!("link set p{n} up"));
        namespace.ip(&format!("link set g{n} up"));
    }
    namespace
}

/// What `sluice --json pktgen ARGUMENTS` says.
pub fn pktgen(namespace: &Namespace, arguments: &str) -> Value {
    let text = namespace.sh(&format!("{SLUICE} --json pktgen {arguments}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("no JSON ({e}): {text}"))
}

/// The same, of a run of which every frame came, once, in order, and was timed.
fn pktgen_whole(namespace: &Namespace, arguments: &str, frames: u64) -> Value {
    let report = pktgen(namespace, arguments);
    for (key, expected) in
        [("sent", frames), ("received", frames), ("lost", 0), ("reordered", 0), ("duplicated", 0)]
    {
        assert_eq!(report[key], expected, "{key} in {report:#}");
    }
    let latency =
        |key: &str| report["latency_us"][key].as_f64().unwrap_or_else(|| panic!("no {key} in {report:#}"));
    assert_eq!(latency("samples"), frames as f64);
    let quantiles = ["min", "p50", "p90", "p99", "p99_9", "max"].map(latency);
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{report:#}");
    report
}

#[test]
fn pktgen_finds_every_frame_over_afpacket_and_afxdp_at_its_rate() {
    let Some(_seat) = Seat::take() else { return };
    let namespace = cables();
    let _daemon = Daemon::start(&namespace, &bridge(&["p1 afpacket", "p2 afpacket"]));
    for kind in ["afpacket", "afxdp"] {
        let ports = format!("--tx {kind}:g1 --rx {kind}:g2");
        // All of it has room in the switch's ring, however long that is kept from its core.
        let plan = format!("{ports} --ratep 1000 --count 400 --flows 20 --warm-up 0.1 --windows 0.1");
        let report = pktgen_whole(&namespace, &plan, 400);
        let median = report["tx_pps"]["median"].as_f64().expect("a rate");
        assert!(median > 0.0 && median < 1100.0, "{report:#}");
        let back = format!("--tx {kind}:g2 --rx {kind}:g1 --ratep 500 --count 100 --pkt-size 1514");
        pktgen_whole(&namespace, &back, 100);
    }
}

#[test]
fn what_comes_while_the_switch_is_held_leaves_when_it_goes_on() {
    const FRAMES: u64 = 480;
    let Some(_seat) = Seat::take() else { return };
    for kind in ["afpacket", "afxdp"] {
        let namespace = cables();
        let daemon = Daemon::start(&namespace, &bridge(&[&format!("p1 {kind}"), &format!("p2 {kind}")]));
        let ports = "--tx afpacket:g1 --rx afpacket:g2";
        pktgen_whole(&namespace, &format!("{ports} --ratep 1000 --count 100"), 100);
        let sent =
            || namespace.ip_json("-s link show g1")[0]["stats64"]["tx"]["packets"].as_u64().expect("a count");
        let before = sent();
        daemon.signal(Signal::SIGSTOP);
        std::thread::scope(|scope| {
            let run = scope.spawn(|| pktgen(&namespace, &format!("{ports} --ratep 10000 --count {FRAMES}")));
            eventually("all to be sent", || sent() >= before + FRAMES);
            daemon.signal(Signal::SIGCONT);
            let report = run.join().expect("a report");
            assert_eq!((&report["sent"], &report["lost"]), (&FRAMES.into(), &0.into()), "{kind}: {report:#}");
        });
    }
}

#[test]
fn pktgen_is_a_guest_at_vhost_user_ports_of_both_kinds() {
    let Some(_seat) = Seat::take() else { return };
    let namespace = Namespace::new();
    let dir = TempDir::with_prefix("sluice-test-pktgen-").expect("a directory");
    let (theirs, ours) = (dir.path().join("v1"), dir.path().join("v2"));
    let client = format!("v2 dpdkvhostuserclient vhost-server-path = \"{}\"", ours.display());
    let sockets = format!("vhost-sock-dir = \"{}\"", dir.path().display());
    let _daemon = Daemon::start_with(&namespace, &sockets, &bridge(&["v1 dpdkvhostuser", &client]));
    let ports = format!("--tx vhost-user:{} --rx vhost-user:{},server", theirs.display(), ours.display());
    pktgen_whole(&namespace, &format!("{ports} --ratep 2000 --count 2000 --warm-up 0.2"), 2000);
    assert!(!ours.exists(), "a socket was left");
    let search = format!("{ports} --search --ratep 2000 --trial 0.2 --precision 0.2 --loss 0.1");
    let is_found = |found: &Value| {
        assert!(found["trials"].as_array().is_some_and(|trials| !trials.is_empty()), "{found:#}");
        found["throughput_pps"].as_f64() > Some(100.0)
    };
    // In a trial that the machine keeps from its core hardly anything is sent.
    let found = (0..4).any(|_| is_found(&pktgen(&namespace, &search)));
    assert!(found, "no throughput");
}

#[test]
fn pktgen_speaks_vxlan_to_a_switch_with_an_underlay_and_answers_for_the_other_end() {
    let Some(_seat) = Seat::take() else { return };
    let namespace = cables();
    let _daemon = Daemon::start(&namespace, OVERLAY);
    // All of it has room in the switch's ring, however long that is kept from its core.
    let rate = "--ratep 150 --count 150 --warm-up 2 --flows 5";
    let out = format!("--tx afpacket:g2 --rx afpacket:g1 --answer 192.0.2.2 --no-announce {rate}");
    let out = pktgen_whole(&namespace, &out, 150);
    let outer = "--vxlan 5001 --vxlan-src 192.0.2.2 --vxlan-dst 192.0.2.1 --vxlan-dst-mac 02:00:00:00:aa:01";
    let back = format!("--tx afpacket:g1 --rx afpacket:g2 {outer} {rate}");
    let back = pktgen_whole(&namespace, &back, 150);
    assert_eq!((&out["frame_bytes"], &back["frame_bytes"]), (&60.into(), &110.into()));
}

#[test]
fn pktgen_measures_a_switch_in_its_own_process() {
    let (_dir, config) = overlay();
    let short = format!("--config {config} --time 0.2 --windows 0.05 --flows 50");
    for ports in ["--tx memory:p2 --rx memory:p1", "--tx memory:p1 --rx memory:p2 --vxlan 5001"] {
        let output = generator(&format!("{ports} {short}")).output().expect("the sluice command");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(report["sent"].as_u64() > Some(1000), "{report:#}");
        assert_eq!((&report["lost"], &report["upcalls"]), (&0.into(), &0.into()), "{report:#}");
        assert!(report["cycles_per_frame"]["best"].as_f64() > Some(10.0), "{report:#}");
        assert_eq!(report["latency_us"], Value::Null);
    }
}

#[test]
fn pktgen_reports_when_it_is_interrupted() {
    let (_dir, config) = overlay();
    let mut command =
        generator(&format!("--tx memory:p2 --rx memory:p1 --config {config} --count 0 --windows 0.05"));
    let mut child = Leashed(command.stdout(Stdio::piped()).spawn().expect("the sluice command"));
    let status = format!("/proc/{}/status", child.0.id());
    // Signals are blocked from then on, to be waited for (proc(5), SigBlk).
    eventually("it waits for signals", || {
        let status = std::fs::read_to_string(&status).expect("its status");
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("signals").trim();
        u64::from_str_radix(blocked, 16).expect("a mask") & 1 << (Signal::SIGINT as u64 - 1) != 0
    });
    kill(Pid::from_raw(child.0.id() as i32), Signal::SIGINT).expect("our own child");
    let mut said = String::new();
    child.0.stdout.take().expect("a pipe").read_to_string(&mut said).expect("what it says");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let status = child.0.wait().expect("its end");
    assert!(status.success() && report["sent"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn pktgen_says_what_is_wrong_and_what_to_do() {
    let (_dir, config) = overlay();
    let memory = format!("--tx memory:p1 --rx memory:p2 --config {config}");
    let cases = [
        (format!("{memory} --search"), "memory ports have no rate to search"),
        (format!("{memory}x"), "cannot read"),
        (format!("--tx memory:p1 --rx memory:p9 --config {config}"), "has no port p9"),
        ("--tx memory:p1".to_owned(), "--config must say which switch"),
        ("--tx eth0".to_owned(), "none of afxdp:INTERFACE"),
        (format!("{memory} --pkt-size 59"), "frame of 59 bytes, expected 60"),
        (format!("{memory} --pcap {config}"), "is no pcap file"),
        ("--tx afpacket:g1 --vxlan 1".to_owned(), "--vxlan needs --vxlan-dst-mac"),
        ("--tx afpacket:no-such-dev".to_owned(), "create it, or correct the name"),
        (format!("{memory} --core 9999"), "cannot run on core 9999"),
    ];
    for (arguments, expected) in cases {
        let output = generator(&arguments).output().expect("the sluice command");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{arguments}: {said}");
    }
}

/// `sluice --json pktgen ARGUMENTS`, outside of all namespaces.
fn generator(arguments: &str) -> Command {
    let mut command = Command::new(SLUICE);
    command.args(["--json", "pktgen"]).args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

/// A file with [`OVERLAY`], and the directory that it is in.
fn overlay() -> (TempDir, String) {
    let dir = TempDir::with_prefix("sluice-test-pktgen-").expect("a directory");
    let file = dir.path().join("overlay.toml");
    std::fs::write(&file, OVERLAY).expect("the configuration");
    (dir, file.display().to_string())
}
