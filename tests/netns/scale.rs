//! Many ports, and load from a tool that is not ours.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, address_internal, bridge};
use crate::support::host::{Host, Site};
use crate::support::lab::{Seat, eventually, within};
use crate::support::traffic::{await_ping, iperf3, tcp};

/// Mostly containers' ports, for the kernel takes 20 ms to remove each TAP device.
#[test]
fn a_bridge_of_a_thousand_ports_starts_floods_and_ends() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let mut text = bridge(&["p1 afxdp", "p2 afpacket"]);
    let mut links = String::new();
    for i in 0..898 {
        write!(links, "link add c{i} up type veth peer name d{i}\nlink set d{i} up\n")
            .expect("a string grows");
        write!(text, "\n[[bridge.port]]\nname = \"c{i}\"\ntype = \"afpacket\"\n").expect("a string grows");
    }
    for i in 0..100 {
        write!(text, "\n[[bridge.port]]\nname = \"int{i}\"\ntype = \"internal\"\n").expect("a string grows");
    }
    site.switch.ip_batch(&links);
    let begun = Instant::now();
    let mut daemon = Daemon::start(&site.switch, &text);
    within(Duration::from_secs(60), "the last port appears", || site.switch.has_link("int99"));
    let last = Ipv4Addr::new(10, 9, 2, 1);
    address_internal(&site.switch, "int99", last);
    await_ping(&site.hosts[0], last);
    eprintln!(
        "1,000 ports: {:?} to the first answer, {} KiB resident",
        begun.elapsed(),
        daemon.resident_kib()
    );
    let flooded =
        || daemon.ask("port show").as_array().expect("ports").iter().all(|port| port["tx"]["frames"] != 0);
    eventually("the first request has reached every port", || {
        site.hosts[0].pings(Ipv4Addr::new(10, 9, 3, 3));
        flooded()
    });
    await_ping(&site.hosts[0], site.hosts[1].ip);
    tcp(&site.hosts[0], &site.hosts[1], 4 << 20);
    let begun = Instant::now();
    assert!(daemon.stop().success());
    eprintln!("1,000 ports: {:?} to end", begun.elapsed());
}

#[test]
fn iperf3_finds_nothing_missing() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    let _daemon = site.start(&["p1 afxdp", "p2 afxdp", "p3 afpacket"]);
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let (from, to) = (&site.hosts[from], &site.hosts[to]);
        await_ping(from, to.ip);
        let end = &iperf3(from, to, "-t 3 -P 4")["end"];
        let (sent, received) = (end["sum_sent"]["bytes"].as_u64(), end["sum_received"]["bytes"].as_u64());
        assert!(received > Some(1 << 20), "TCP {} to {}: {received:?} of {sent:?} bytes", from.port, to.port);
        udp_arrives(from, to);
    }
}

/// A poller that the machine keeps from its core overruns its rings: one clean run of a few shows that the switch
/// itself loses nothing. The socket of iperf3 holds a hundred datagrams, a quarter of a second.
fn udp_arrives(from: &Host, to: &Host) {
    let lost = || {
        iperf3(from, to, "-t 3 -u -b 4M -l 1400")["end"]["sum"]["lost_percent"]
            .as_f64()
            .expect("a percentage")
    };
    let runs: Vec<f64> = (0..5).map(|_| lost()).take_while(|lost| *lost >= 1.0).collect();
    assert!(runs.len() < 5, "UDP {} to {}: {runs:?} % lost", from.port, to.port);
}
