//! The configuration changes while traffic flows: by SIGHUP, by command, and not at all when it is wrong.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::host::Site;
use crate::support::lab::{Seat, eventually};
use crate::support::traffic::{Blast, assert_apart, await_ping};

fn sighup_loses_nothing(kind: &str) {
    let site = Site::new(3);
    let ports = [format!("p1 {kind}"), format!("p2 {kind}"), format!("p3 {kind} tag = 30")];
    let daemon = site.start(&ports.each_ref().map(String::as_str));
    await_ping(&site.hosts[0], site.hosts[1].ip);
    let blast = Blast::start(&site.hosts[0], &site.hosts[1], 2000, 100);
    for round in 0..5 {
        blast.await_more(200);
        let (old, new) = (30 + round, 31 + round);
        daemon.edit(&format!("tag = {old}"), &format!("tag = {new}"));
        daemon.signal(Signal::SIGHUP);
        eventually("the new tag is in force", || daemon.port("p3")["vlan"] == format!("access {new}"));
        daemon.edit("name = \"br0\"", &format!("name = \"br0\"\nmac-aging-time = {}", 100 + round));
        daemon.ask("apply");
        blast.await_more(200);
        daemon.edit(&format!("\nmac-aging-time = {}", 100 + round), "");
        daemon.signal(Signal::SIGHUP);
        eventually("the aging time is the default again", || {
            daemon.ask("bridge show")[0]["mac_aging_time"] == 300
        });
        daemon.ask("port add br0 int0 type=internal");
        blast.await_more(200);
        daemon.ask("port del int0");
    }
    let tally = blast.stop();
    assert_eq!((tally.lost(), tally.duplicated), (0, 0), "{tally:?}\n{}", daemon.log());
}

#[test]
fn sighup_under_load_loses_nothing_on_untouched_afxdp_ports() {
    let Some(_seat) = Seat::take() else { return };
    sighup_loses_nothing("afxdp");
}

#[test]
fn sighup_under_load_loses_nothing_on_untouched_afpacket_ports() {
    let Some(_seat) = Seat::take() else { return };
    sighup_loses_nothing("afpacket");
}

#[test]
fn a_wrong_file_changes_nothing_and_every_problem_is_told() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let daemon = site.start(&["p1 afxdp tag = 10", "p2 afpacket tag = 10"]);
    await_ping(&site.hosts[0], site.hosts[1].ip);
    daemon.edit("tag = 10", "tag = 4097");
    let said = daemon.ctl(&["apply"]).expect_err("a wrong file was applied");
    let lines = said.matches("4097").count();
    assert!(lines >= 2, "both problems, not the first alone: {said}");
    daemon.signal(Signal::SIGHUP);
    daemon.await_log("4097");
    await_ping(&site.hosts[0], site.hosts[1].ip);
    daemon.edit("tag = 4097", "tag = 11");
    daemon.ask("apply");
    await_ping(&site.hosts[0], site.hosts[1].ip);
}

#[test]
fn commands_change_the_switch_and_the_file_and_keep_its_comments() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    let mut daemon = site.start(&["p1 afpacket tag = 10", "p2 afpacket tag = 10 # the printer"]);
    await_ping(&site.hosts[0], site.hosts[1].ip);
    daemon.ask("port set p1 tag=20");
    assert_apart(&site.hosts[1], site.hosts[0].ip);
    daemon.ask("port add br0 p3 type=afxdp tag=20");
    await_ping(&site.hosts[0], site.hosts[2].ip);
    let text = fs::read_to_string(daemon.config()).expect("the file");
    assert!(text.contains("# the printer") && text.contains("\"p3\""), "{text}");
    assert!(daemon.stop().success());
    daemon.restart(&site.switch);
    await_ping(&site.hosts[0], site.hosts[2].ip);
    daemon.ask("port del p3");
    assert_apart(&site.hosts[0], site.hosts[2].ip);
}
