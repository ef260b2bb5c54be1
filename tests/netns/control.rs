//! The operator's side: Open vSwitch's own client on our socket, explanations, and books that balance.

use std::net::{TcpListener, TcpStream};

use crate::support::daemon::{Daemon, bridge};
use crate::support::host::Site;
use crate::support::lab::{Seat, eventually};
use crate::support::traffic::{Blast, await_ping, tcp};
use crate::support::wire::{Wire, frame};

#[test]
fn ovs_appctl_drives_the_switch() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let mut daemon = site.start(&["p1 afxdp tag = 10", "p2 afpacket tag = 10"]);
    await_ping(&site.hosts[0], site.hosts[1].ip);
    let (first, second) = (site.hosts[0].mac(), site.hosts[1].mac());

    let commands = daemon.appctl(&["list-commands"]);
    for command in ["fdb/show", "fdb/flush", "dpctl/dump-flows", "ofproto/trace", "version", "exit"] {
        assert!(commands.contains(command), "{command} is not in: {commands}");
    }
    assert!(daemon.appctl(&["version"]).to_lowercase().contains("sluice"));

    let fdb = daemon.appctl(&["fdb/show", "br0"]);
    let learned = fdb.lines().any(|l| l.split_whitespace().nth(1) == Some("10") && l.contains(&first));
    assert!(learned && fdb.contains(&second), "{fdb}");

    let flows = daemon.appctl(&["dpctl/dump-flows"]);
    assert!(flows.contains("actions:"), "{flows}");

    let flow = format!("in_port=p1,dl_src={first},dl_dst={second},dl_type=0x0800");
    let trace = daemon.appctl(&["ofproto/trace", "br0", &flow]);
    assert!(trace.contains("Datapath actions"), "{trace}");

    eventually("it is forgotten, unless it speaks just then", || {
        daemon.appctl(&["fdb/flush", "br0"]);
        !daemon.appctl(&["fdb/show", "br0"]).contains(&first)
    });
    daemon.appctl(&["exit"]);
    assert!(daemon.await_end().success());
}

#[test]
fn a_trace_names_the_way_out_and_touches_nothing() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let daemon = site.start(&["p1 afpacket tag = 10", "p2 afpacket tag = 10"]);
    await_ping(&site.hosts[0], site.hosts[1].ip);
    let flow = format!("in_port=p1,dl_src=02:00:00:00:00:99,dl_dst={},dl_type=0x0800", site.hosts[1].mac());
    let trace = daemon.ctl(&["trace", "br0", &flow]).expect("a trace");
    assert!(trace["actions"].as_str().is_some_and(|actions| actions.contains("p2")), "{trace}");
    let learned = |daemon: &Daemon| daemon.ask("fdb show br0").to_string().contains("02:00:00:00:00:99");
    assert!(!learned(&daemon), "a trace taught the switch an address");
    daemon.ctl(&["trace", "br0", &flow, "--learn"]).expect("a trace");
    assert!(learned(&daemon), "--learn taught the switch nothing");
}

#[test]
fn many_connections_between_two_hosts_are_few_flows() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let daemon = site.start(&["p1 afpacket", "p2 afpacket"]);
    let (from, to) = (&site.hosts[0], &site.hosts[1]);
    await_ping(from, to.ip);
    let listener = to.ns.run(|| TcpListener::bind((to.ip, 0)).expect("a TCP socket"));
    let address = listener.local_addr().expect("its address");
    let connections: Vec<_> = from.ns.run(|| {
        (0..200)
            .map(|_| {
                (TcpStream::connect(address).expect("a connection"), listener.accept().expect("its end"))
            })
            .collect()
    });
    let flows = daemon.ask("flow show");
    let count = flows.as_array().expect("an array of flows").len();
    assert!((2..=8).contains(&count), "{} connections made {count} flows: {flows}", connections.len());
}

/// With floods (VLAN 5) and drops (VLAN 6) in the traffic, at any moment and at rest.
#[test]
fn every_frame_is_accounted_for() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    let daemon = site.start(&["p1 afxdp trunks = [0, 5]", "p2 afpacket", "p3 afxdp", "int0 internal"]);
    let mut far = Wire::of(&site.hosts[0]);
    let blast = Blast::start(&site.hosts[0], &site.hosts[1], 2000, 100);
    for unwanted in 0..200 {
        far.send(&frame(1, 255, &[5 + unwanted % 2], b"to all or to nobody"));
        if unwanted % 20 == 0 {
            let ledger = daemon.ask("ledger");
            assert_eq!(ledger["balances"], true, "{ledger}");
        }
    }
    blast.await_more(1000);
    let tally = blast.stop();
    assert_eq!(tally.lost(), 0, "{tally:?}");
    eventually("all of it is in the books", || {
        let ledger = daemon.ask("ledger");
        let at_least = |name: &str, least: u64| ledger[name].as_u64().expect("a number") >= least;
        ledger["balances"] == true
            && at_least("received", tally.sent + 200)
            && at_least("created", 200)
            && at_least("dropped", 100)
            && ledger["held"] == 0
    });
}

#[test]
fn an_idle_flow_is_forgotten_and_made_again() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let daemon = Daemon::start_with(&site.switch, "max-idle = 500", &bridge(&["p1 afpacket", "p2 afpacket"]));
    await_ping(&site.hosts[0], site.hosts[1].ip);
    eventually("idle flows go", || daemon.ask("flow show").as_array().is_some_and(Vec::is_empty));
    tcp(&site.hosts[0], &site.hosts[1], 1 << 20);
    // Until somebody looks, it may be idle again.
    eventually("it is there again", || {
        site.hosts[0].pings(site.hosts[1].ip);
        !daemon.ask("flow show").as_array().expect("flows").is_empty()
    });
}
