//! TAP devices that QEMU or libvirt made: the switch finds them by their names, and they come and go with the machine.

use crate::rig::{Room, SLOWLY, address, assert_balance, await_reach, count, ip, serve};
use crate::support::lab::{Seat, within};
use crate::support::vm::machine::Nic;

/// A machine with a TAP device, at a port of this kind; the bytes of a frame on average that the switch sent to it and
/// got from it.
fn carries_streams(kind: &str) -> [u64; 2] {
    let room = Room::new(1);
    let daemon = room.start(&["p1 afpacket", &format!("tap1 {kind}")]);
    let mut vm = room.machine([Nic::tap("tap1")]).booted();
    address(&mut vm, "eth0", 11);
    await_reach(&mut vm, ip(1));
    serve(&mut vm);
    for direction in ["", "--reverse"] {
        let line = format!("timeout 50 iperf3 -n 4M -c {} {direction}", ip(11));
        within(SLOWLY, &line, || room.site.hosts[0].ns.output(&line).status.success());
    }
    vm.kill9();
    vm.restart(&room.site.switch);
    vm.await_boot();
    address(&mut vm, "eth0", 11);
    await_reach(&mut vm, ip(1));
    assert_balance(&daemon);
    let obtained = daemon.port("tap1")["obtained"].to_string();
    assert!(obtained.contains(kind), "tap1 became {obtained}");
    ["tx", "rx"].map(|direction| {
        let of = |what: &str| count(&daemon, "tap1", &format!("/{direction}/{what}"));
        of("bytes") / of("frames")
    })
}

/// Data goes one way at a time, and acknowledgements the other: half of the frames are short.
const FRAME: u64 = 1514;

#[test]
fn a_tap_device_at_an_afpacket_port_carries_frames_that_nobody_cuts() {
    let Some(_seat) = Seat::take() else { return };
    let [sent, received] = carries_streams("afpacket");
    assert!(sent > FRAME && received > FRAME, "{sent} and {received} bytes a frame: GSO frames were cut");
}

/// XDP sees frames before the guest's offloads are done.
#[test]
fn a_tap_device_at_an_afxdp_port_carries_streams() {
    let Some(_seat) = Seat::take() else { return };
    let [sent, received] = carries_streams("afxdp");
    assert!(sent > 0 && received > 0);
}
