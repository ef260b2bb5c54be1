//! Pollers: asleep when nothing happens, awake at once, and moved while traffic flows.

use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, bridge};
use crate::support::host::{Host, Site};
use crate::support::lab::Seat;
use crate::support::traffic::{Blast, await_ping};

#[test]
fn an_idle_switch_uses_under_one_percent_of_a_core() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(4);
    let daemon = site.start(&["p1 afxdp", "p2 afxdp", "p3 afpacket", "p4 afpacket", "int0 internal"]);
    site.hosts.iter().skip(1).for_each(|host| await_ping(host, site.hosts[0].ip));
    // The first seconds after traffic may poll; the law is about the long run.
    std::thread::sleep(Duration::from_secs(1));
    let (begun, used) = (Instant::now(), daemon.cpu_time());
    std::thread::sleep(Duration::from_secs(5));
    let (wall, used) = (begun.elapsed(), daemon.cpu_time() - used);
    assert!(used < wall / 100, "{used:?} of processor in {wall:?} without traffic");
}

/// The time of one echo after the switch was idle for half a second, in milliseconds.
fn echo_after_idle(from: &Host, to: &Host) -> f64 {
    std::thread::sleep(Duration::from_millis(500));
    let said = from.ns.sh(&format!("ping -n -c 1 -W 5 {}", to.ip));
    let time = said.split("time=").nth(1).and_then(|t| t.split_whitespace().next());
    time.and_then(|t| t.parse().ok()).unwrap_or_else(|| panic!("no time in {said}"))
}

fn first_frame_is_quick(kind: &str) {
    let site = Site::new(2);
    let _daemon = site.start(&[&format!("p1 {kind}"), &format!("p2 {kind}")]);
    await_ping(&site.hosts[0], site.hosts[1].ip);
    // The best of several: other tests use the cores too.
    let best = (0..12).map(|_| echo_after_idle(&site.hosts[0], &site.hosts[1])).fold(f64::INFINITY, f64::min);
    assert!(best < 1.0, "the quickest first echo after idle took {best} ms there and back");
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
