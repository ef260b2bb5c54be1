//! Frames to the byte: tags on the wire, frames that bridges must not forward, and garbage.

use crate::support::host::Site;
use crate::support::lab::{Seat, eventually};
use crate::support::traffic::await_ping;
use crate::support::wire::{EXPERIMENT, Wire, frame};

/// Priority 5, VLAN 10.
const TAG: u16 = 5 << 13 | 10;

fn tags_come_and_go(kind: &str) {
    let site = Site::new(3);
    let _daemon = site.start(&[
        &format!("p1 {kind} tag = 10"),
        &format!("p2 {kind} trunks = [10, 20]"),
        &format!("p3 {kind} tag = 20"),
    ]);
    let [mut access, mut trunk, mut other] = [0, 1, 2].map(|i| Wire::of(&site.hosts[i]));
    access.send(&frame(1, 255, &[], b"out"));
    assert_eq!(trunk.next(), frame(1, 255, &[10], b"out"));
    trunk.send(&frame(2, 1, &[TAG], b"in"));
    assert_eq!(access.next(), frame(2, 1, &[], b"in"));
    // What a port does not carry does not pass it; the last frames show that the earlier ones are gone.
    trunk.send(&frame(2, 1, &[TAG, 7], b"two tags fit no access port"));
    trunk.send(&frame(2, 255, &[30], b"no such VLAN here"));
    trunk.send(&frame(2, 255, &[], b"VLAN 0 neither"));
    trunk.send(&frame(2, 255, &[20], b"yes"));
    trunk.send(&frame(2, 1, &[TAG], b"the last"));
    assert_eq!(other.next(), frame(2, 255, &[], b"yes"));
    assert_eq!(access.next(), frame(2, 1, &[], b"the last"));
}

#[test]
fn tags_come_and_go_on_afxdp() {
    let Some(_seat) = Seat::take() else { return };
    tags_come_and_go("afxdp");
}

#[test]
fn tags_come_and_go_on_afpacket() {
    let Some(_seat) = Seat::take() else { return };
    tags_come_and_go("afpacket");
}

#[test]
fn reserved_addresses_and_group_sources_are_not_forwarded() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(2);
    let daemon = site.start(&["p1 afxdp", "p2 afpacket"]);
    let [mut near, mut far] = [0, 1].map(|i| Wire::of(&site.hosts[i]));
    let mut bpdu = frame(1, 255, &[], b"spanning tree");
    bpdu[..6].copy_from_slice(&[0x01, 0x80, 0xc2, 0, 0, 0]);
    let mut forged = frame(1, 255, &[], b"from a group");
    forged[6] |= 1;
    for bytes in [&bpdu, &forged, &frame(1, 255, &[], b"a good one")] {
        near.send(bytes);
    }
    // The first that comes is not the first that was sent.
    assert_eq!(far.next(), frame(1, 255, &[], b"a good one"));
    let drops = || daemon.port("p1")["drops"].as_object().expect("drops by reason").len();
    eventually("both are counted", || drops() >= 2);
    assert_eq!(drops(), 2, "two reasons: {}", daemon.port("p1"));
    daemon.ask("bridge set br0 forward-bpdu=true");
    near.send(&bpdu);
    assert_eq!(far.next(), bpdu);
}

/// Frames whose headers lie about what follows, and noise.
fn hostile(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    let mut bytes = frame(1, 255, &[], &[]);
    bytes.truncate(12);
    let types: [&[u8]; 8] = [
        &[0x08, 0x00, 0x45, 0x00, 0xff, 0xff],
        &[0x08, 0x00, 0x4f],
        &[0x08, 0x06],
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0xff, 0xff, 0],
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 44],
        &[0x81, 0x00, 0x00, 0x0a, 0x81, 0x00, 0x00, 0x0b, 0x81, 0x00],
        &[0x88, 0x47],
        &[0x00, 0x40],
    ];
    bytes.extend(types[seed as usize % types.len()]);
    let length = usize::from(byte()) * 5;
    bytes.extend((0..length).map(|_| byte()));
    bytes.resize(bytes.len().max(14), 0);
    bytes
}

#[test]
fn garbage_is_counted_or_switched_and_nothing_else_happens() {
    let Some(_seat) = Seat::take() else { return };
    let site = Site::new(3);
    let daemon = site.start(&["p1 afxdp", "p2 afpacket", "p3 afxdp"]);
    let [mut first, mut second] = [0, 1].map(|i| Wire::of(&site.hosts[i]));
    let before = received(&daemon.port("p1")) + received(&daemon.port("p2"));
    for seed in 0..1000 {
        first.send(&hostile(seed));
        second.send(&hostile(seed + 1000));
    }
    eventually("all of it is seen", || {
        received(&daemon.port("p1")) + received(&daemon.port("p2")) >= before + 2000
    });
    // Nobody has read what was flooded, and a full ring loses what comes.
    while !first.seen().is_empty() {}
    second.send(&frame(2, 255, &[], &EXPERIMENT));
    first.next();
    await_ping(&site.hosts[2], site.hosts[1].ip);
}

fn received(port: &serde_json::Value) -> u64 {
    let count = |of: &serde_json::Value| of.as_u64().expect("a counter");
    count(&port["rx"]["frames"]) + count(&port["rx_missed"]) + count(&port["rx_errors"])
}
