//! Starting, dying, starting again; interfaces that come, go or belong to somebody else.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::daemon::{Daemon, bridge, refused};
use crate::support::host::Site;
use crate::support::lab::{Seat, eventually};
use crate::support::namespace::Namespace;
use crate::support::traffic::{Blast, await_ping};

fn has_xdp(site: &Site, port: &str) -> bool {
    site.switch.ip_json(&format!("link show dev {port}"))[0].get("xdp").is_some()
}

#[test]
fn sigterm_and_sigint_end_it_cleanly() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(1);
    let mut daemon = site.start(&["p1 afxdp", "int0 internal"]);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        eventually("p1 is attached", || has_xdp(&site, "p1") && site.switch.has_link("int0"));
        daemon.signal(signal);
        assert!(daemon.await_end().success(), "{signal}: {}", daemon.log());
        assert!(!has_xdp(&site, "p1"), "{signal} left the XDP program");
        assert!(!site.switch.has_link("int0"), "{signal} left the internal port");
        assert!(!daemon.socket().exists(), "{signal} left the socket");
        daemon.restart(&site.switch);
    }
}

#[test]
fn after_kill_9_the_next_start_works_without_cleaning() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    let mut daemon =
        site.start(&["p1 afxdp", "p2 afxdp xdp-mode = \"generic\"", "p3 afpacket", "int0 internal"]);
    for _ in 0..3 {
        await_ping(&site.hosts[0], site.hosts[1].ip);
        await_ping(&site.hosts[1], site.hosts[2].ip);
        daemon.kill9();
        daemon.restart(&site.switch);
    }
    await_ping(&site.hosts[2], site.hosts[0].ip);
    assert!(daemon.stop().success());
    assert!(!has_xdp(&site, "p1") && !has_xdp(&site, "p2"), "a killed daemon's XDP program is still there");
}

#[test]
fn a_second_daemon_on_the_socket_is_refused() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let daemon = site.start(&["p1 afpacket", "p2 afpacket"]);
    let text = fs::read_to_string(daemon.config()).expect("the configuration");
    let said = refused(&site.switch, &text);
    assert!(said.contains(&daemon.socket().display().to_string()), "{said}");
    await_ping(&site.hosts[0], site.hosts[1].ip);
    daemon.ask("show");
}

/// An XDP program of somebody else, called `stranger`, on an interface.
fn attach_stranger(namespace: &Namespace, interface: &str) {
    let dir = TempDir::new().expect("a directory");
    let (source, object) = (dir.path().join("stranger.c"), dir.path().join("stranger.o"));
    let program = r#"__attribute__((section("xdp"), used)) int stranger(void *frame) { return 2; /* XDP_PASS */ }
        __attribute__((section("license"), used)) char _license[] = "Dual BSD/GPL";"#;
    fs::write(&source, program).expect("a source file");
    let compiled = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&object)
        .status();
    assert!(compiled.expect("clang").success());
    namespace.ip(&format!("link set dev {interface} xdp obj {} sec xdp", object.display()));
}

#[test]
fn a_strangers_xdp_program_is_named_and_left_alone() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    attach_stranger(&site.switch, "p1");
    let program = |site: &Site| {
        site.switch.ip_json("link show dev p1")[0]["xdp"]["prog"]["id"].as_u64().expect("a program")
    };
    let before = program(&site);
    let mut daemon = site.start(&["p1 afxdp", "p2 afpacket", "p3 afxdp"]);
    await_ping(&site.hosts[1], site.hosts[2].ip);
    let said = daemon.port("p1")["error"].to_string();
    assert!(said.contains("stranger"), "the program's name is not in: {said}");
    assert!(daemon.stop().success());
    assert_eq!(program(&site), before, "somebody else's program was replaced");
}

#[test]
fn a_missing_interface_is_named_and_taken_when_it_comes() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    site.hosts[1].cut(&site.switch);
    let daemon = site.start(&["p1 afxdp", "p2 afxdp"]);
    let said = daemon.port("p2")["error"].to_string();
    assert!(
        said.contains("no such interface") && said.contains("comes up"),
        "no cause or no cure in: {said}"
    );
    site.hosts[1].cable(&site.switch);
    await_ping(&site.hosts[0], site.hosts[1].ip);
}

fn comes_back_under_load(kind: &str) {
    let site = Site::new(4);
    let ports: Vec<_> = (1..=4).map(|i| format!("p{i} {kind}")).collect();
    let daemon = site.start(&ports.iter().map(String::as_str).collect::<Vec<_>>());
    await_ping(&site.hosts[0], site.hosts[1].ip);
    await_ping(&site.hosts[2], site.hosts[3].ip);
    let untouched = Blast::start(&site.hosts[0], &site.hosts[1], 1000, 100);
    let into_the_gap = Blast::start(&site.hosts[2], &site.hosts[3], 1000, 100);
    for _ in 0..3 {
        into_the_gap.await_more(200);
        site.hosts[3].cut(&site.switch);
        untouched.await_more(200);
        site.hosts[3].cable(&site.switch);
    }
    into_the_gap.await_more(200);
    into_the_gap.stop();
    let tally = untouched.stop();
    assert_eq!(tally.lost(), 0, "{tally:?}: frames between untouched ports were lost\n{}", daemon.log());
}

#[test]
fn a_deleted_afxdp_interface_comes_back_under_load() {
    let Some(_seat) = Seat::take() else { return };
    comes_back_under_load("afxdp");
}

#[test]
fn a_deleted_afpacket_interface_comes_back_under_load() {
    let Some(_seat) = Seat::take() else { return };
    comes_back_under_load("afpacket");
}

#[test]
fn a_broken_file_does_not_start_and_every_problem_is_told() {
    let Some(_seat) = Seat::take() else { return };
    let text = format!("{}\n[switch]\nidle = \"sometimes\"\n", bridge(&["p1 afxpd tag = 4096"]));
    let said = refused(&Namespace::new(), &text);
    for word in ["afxpd", "4096", "sometimes"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
}

#[test]
fn an_interface_in_use_is_named_and_the_rest_runs() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    let _first = site.start(&["p1 afxdp"]);
    let second = Daemon::start(&site.switch, &bridge(&["p1 afxdp", "p2 afxdp", "p3 afxdp"]));
    await_ping(&site.hosts[1], site.hosts[2].ip);
    let said = second.port("p1")["error"].to_string();
    assert!(said.contains("in use") || said.contains("busy"), "{said}");
}
