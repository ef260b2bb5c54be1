//! Pollers: asleep when nothing happens, awake at once, content with little memory, and moved while traffic flows.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::pktgen::pktgen;
use crate::support::daemon::{Daemon, address_internal, bridge};
use crate::support::host::{Host, Site};
use crate::support::lab::{Seat, eventually};
use crate::support::namespace::Namespace;
use crate::support::traffic::{Blast, await_ping, tcp};

/// Ten ports of every kind, four of them to hosts.
const TEN: [&str; 10] = [
    "p1 afxdp",
    "p2 afxdp",
    "p3 afpacket",
    "p4 afpacket",
    "int0 internal",
    "int1 internal",
    "int2 internal",
    "vm0 dpdkvhostuser",
    "vm1 dpdkvhostuser",
    "vm2 dpdkvhostuser",
];

/// A directory for the sockets of virtual machines, and the setting that says so.
fn sockets() -> (TempDir, String) {
    let dir = TempDir::with_prefix("sluice-test-vms-").expect("a directory");
    let setting = format!("vhost-sock-dir = \"{}\"", dir.path().display());
    (dir, setting)
}

#[test]
fn an_idle_switch_uses_under_one_percent_of_a_core() {
    let Some(_seat) = Seat::take() else { return };
    let (site, (_dir, setting)) = (Site::new(4), sockets());
    let daemon = Daemon::start_with(&site.switch, &setting, &bridge(&TEN));
    site.hosts.iter().skip(1).for_each(|host| await_ping(host, site.hosts[0].ip));
    // The first seconds after traffic may poll; the law is about the long run.
    std::thread::sleep(Duration::from_secs(1));
    // A virtual machine that is held up counts that as the time of whoever ran: once of a few times.
    let rests: Vec<_> = (0..3).map(|_| rest(&daemon)).take_while(|rest| !rest.is_idle()).collect();
    assert!(rests.len() < 3, "without traffic: {rests:?}");
}

/// What a switch did in a time.
#[derive(Debug)]
struct Rest {
    wall: Duration,
    /// Of processor.
    used: Duration,
    /// How often it woke up.
    woken: u64,
}

fn rest(daemon: &Daemon) -> Rest {
    let (begun, used, woken) = (Instant::now(), daemon.cpu_time(), daemon.sleeps());
    std::thread::sleep(Duration::from_secs(5));
    Rest { wall: begun.elapsed(), used: daemon.cpu_time() - used, woken: daemon.sleeps() - woken }
}

impl Rest {
    fn is_idle(&self) -> bool {
        // Two a second of the poller; and what the kernel says on its own on new interfaces (IPv6).
        self.used < self.wall / 100 && u128::from(self.woken) < self.wall.as_millis() * 3 / 100
    }
}

/// What a switch may have of memory beside its program (6 MiB in a release build), in KiB: 64 MiB in all.
const RESIDENT_MAX: u64 = 58 << 10;

/// Has TCP flow between pairs of hosts at once, in frames as long as their stacks make them.
fn long_frames(site: &Site) {
    let (from, to) = site.hosts.split_at(site.hosts.len() / 2);
    let streams = |pair: (&Host, &Host)| tcp(pair.0, pair.1, 32 << 20);
    std::thread::scope(|scope| {
        from.iter().zip(to).for_each(|pair| drop(scope.spawn(move || streams(pair))));
    });
}

fn ten_fit_in_64_mib(kind: &str) {
    let site = Site::new(10);
    let ports: Vec<String> = site.hosts.iter().map(|host| format!("{} {kind}", host.port)).collect();
    let daemon = site.start(&ports.iter().map(String::as_str).collect::<Vec<_>>());
    site.hosts.iter().skip(1).for_each(|host| await_ping(host, site.hosts[0].ip));
    let idle = daemon.memory_kib();
    long_frames(&site);
    let used = daemon.memory_kib();
    eprintln!("10 {kind} ports: {idle} KiB, {used} KiB after TCP");
    assert!(used < RESIDENT_MAX, "10 {kind} ports: {idle} KiB, {used} KiB after TCP");
}

#[test]
fn ten_afxdp_ports_fit_in_64_mib() {
    let Some(_seat) = Seat::take() else { return };
    ten_fit_in_64_mib("afxdp");
}

#[test]
fn ten_afpacket_ports_fit_in_64_mib() {
    let Some(_seat) = Seat::take() else { return };
    ten_fit_in_64_mib("afpacket");
}

#[test]
fn ten_internal_or_vhost_user_ports_fit_in_64_mib() {
    let Some(_seat) = Seat::take() else { return };
    for kind in ["internal", "dpdkvhostuser"] {
        let (namespace, (dir, setting)) = (Namespace::new(), sockets());
        let ports: Vec<String> = (0..10).map(|n| format!("port{n} {kind}")).collect();
        let ports = bridge(&ports.iter().map(String::as_str).collect::<Vec<_>>());
        let daemon = Daemon::start_with(&namespace, &setting, &ports);
        let is_there = |port: String| namespace.has_link(&port) || dir.path().join(port).exists();
        eventually("all ports are there", || (0..10).all(|n| is_there(format!("port{n}"))));
        let used = daemon.memory_kib();
        eprintln!("10 {kind} ports: {used} KiB");
        assert!(used < RESIDENT_MAX, "10 {kind} ports: {used} KiB");
    }
}

/// The time of one echo after the switch was idle for half a second, in milliseconds.
fn echo_after_idle(from: &Namespace, to: Ipv4Addr) -> f64 {
    std::thread::sleep(Duration::from_millis(500));
    let said = from.sh(&format!("ping -n -c 1 -W 5 {to}"));
    let time = said.split("time=").nth(1).and_then(|t| t.split_whitespace().next());
    time.and_then(|t| t.parse().ok()).unwrap_or_else(|| panic!("no time in {said}"))
}

/// There and back, in milliseconds.
fn assert_quick(from: &Namespace, to: Ipv4Addr) {
    // The best of several: other tests use the cores too.
    let best = (0..12).map(|_| echo_after_idle(from, to)).fold(f64::INFINITY, f64::min);
    assert!(best < 1.0, "the quickest first echo after idle took {best} ms there and back");
}

fn first_frame_is_quick(kind: &str) {
    let site = Site::new(2);
    let _daemon = site.start(&[&format!("p1 {kind}"), &format!("p2 {kind}")]);
    await_ping(&site.hosts[0], site.hosts[1].ip);
    assert_quick(&site.hosts[0].ns, site.hosts[1].ip);
}

#[test]
fn the_first_afxdp_frame_after_idle_is_quick() {
    let Some(_seat) = Seat::take() else { return };
    first_frame_is_quick("afxdp");
}

#[test]
fn the_first_afpacket_frame_after_idle_is_quick() {
    let Some(_seat) = Seat::take() else { return };
    first_frame_is_quick("afpacket");
}

#[test]
fn the_first_frame_of_an_internal_port_after_idle_is_quick() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(1);
    let _daemon = site.start(&["p1 afpacket", "int0 internal"]);
    let own = Ipv4Addr::new(10, 9, 0, 100);
    address_internal(&site.switch, "int0", own);
    await_ping(&site.hosts[0], own);
    assert_quick(&site.switch, site.hosts[0].ip);
}

#[test]
fn the_first_vhost_user_frame_after_idle_is_quick() {
    const FRAMES: u64 = 12;
    let Some(_seat) = Seat::take() else { return };
    let (namespace, (dir, setting)) = (Namespace::new(), sockets());
    let daemon =
        Daemon::start_with(&namespace, &setting, &bridge(&["vm0 dpdkvhostuser", "vm1 dpdkvhostuser"]));
    let [from, to] = ["vm0", "vm1"].map(|name| format!("vhost-user:{}", dir.path().join(name).display()));
    let asleep = daemon.sleeps();
    let seldom = format!("--ratep 4 --count {FRAMES} --warm-up 0.5");
    let report = pktgen(&namespace, &format!("--tx {from} --rx {to} {seldom}"));
    assert_eq!((&report["received"], &report["lost"]), (&FRAMES.into(), &0.into()), "{report:#}");
    assert!(daemon.sleeps() >= asleep + FRAMES, "it did not sleep between frames");
    let best = report["latency_us"]["min"].as_f64().expect("a time");
    assert!(best < 500.0, "the quickest first frame after idle took {best} µs one way");
}

/// The cores this process may use.
fn cores() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("our own cores");
    (0..nix::sched::CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect()
}

#[test]
fn queues_move_between_pollers_while_traffic_flows() {
    let Some(_seat) = Seat::take() else { return };
    let [first, second, ..] = cores()[..] else {
        eprintln!("skipped: one core, so one poller");
        return;
    };
    let site = Site::new(3);
    let daemon = Daemon::start_with(
        &site.switch,
        &format!("cores = [{first}, {second}]"),
        &bridge(&["p1 afxdp", "p2 afpacket", "p3 afxdp"]),
    );
    await_ping(&site.hosts[0], site.hosts[1].ip);
    await_ping(&site.hosts[2], site.hosts[1].ip);
    let blasts = [0, 2].map(|from| Blast::start(&site.hosts[from], &site.hosts[1], 1000, 100));
    for core in [first, second, first, second] {
        for port in ["p1", "p2", "p3"] {
            daemon.ask(&format!("poller place {port} 0 {core}"));
            blasts.iter().for_each(|blast| blast.await_more(100));
        }
    }
    for blast in blasts {
        let tally = blast.stop();
        assert_eq!((tally.lost(), tally.duplicated, tally.reordered), (0, 0, 0), "{tally:?}");
    }
}
