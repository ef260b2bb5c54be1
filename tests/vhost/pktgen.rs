//! The kernel's packet generator in a guest: every frame that it sent is in the switch's books.

use std::path::Path;

use crate::rig::{Room, SLOWLY, address, assert_balance, await_reach, await_reached, count, ip, port};
use crate::support::lab::{Seat, within};
use crate::support::vm::machine::Nic;

const FRAMES: u64 = 20_000;
/// Where the guest has the script.
const SCRIPT: &str = "/tmp/pktgen.sh";

/// The script of the project, as a line of shell that writes it in the guest.
fn script() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pktgen/pktgen.sh");
    let text = std::fs::read_to_string(path).expect("the script");
    let lines = text.lines().map(|line| format!("'{}'", line.replace('\'', r"'\''")));
    format!("printf '%s\\n' {} >{SCRIPT}", lines.collect::<Vec<_>>().join(" "))
}

#[test]
fn pktgen_in_a_guest_drives_the_switch_and_every_frame_is_counted() {
    let Some(_seats) = Seat::take_all() else { return };
    let room = Room::new(1);
    let socket = room.listening("vm1");
    let daemon = room.start(&["p1 afpacket", &port(&socket, "")]);
    let mut vm = room.machine([Nic::at(socket)]).booted();
    address(&mut vm, "eth0", 11);
    await_reach(&mut vm, ip(1));
    await_reached(&room.site.hosts[0], ip(11));
    vm.run(&script());
    let (rx, tx) = (count(&daemon, "vm1", "/rx/frames"), count(&daemon, "p1", "/tx/frames"));
    let mac = room.site.hosts[0].mac();
    let said =
        vm.run(&format!("DEV=eth0 DST_MAC={mac} DST_IP={} COUNT={FRAMES} SIZE=200 sh {SCRIPT}", ip(1)));
    assert!(said.contains("pps"), "{said}");
    let arrived = || count(&daemon, "vm1", "/rx/frames") - rx;
    within(SLOWLY, "all frames arrive", || arrived() >= FRAMES);
    let dropped = || -> u64 {
        daemon.port("p1")["drops"].as_object().expect("drops").values().filter_map(|n| n.as_u64()).sum()
    };
    let left = || count(&daemon, "p1", "/tx/frames") - tx + dropped();
    within(SLOWLY, "all frames leave", || left() >= FRAMES);
    // A few ARP requests may be among them.
    assert!(arrived() < FRAMES + 50, "{} frames of {FRAMES}", arrived());
    assert_balance(&daemon);
}
