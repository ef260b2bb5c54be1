//! Machines that move to another process, and get memory and cards, while traffic flows.

use std::time::{Duration, Instant};

use crate::rig::{MIB, Room, SLOWLY, address, assert_balance, await_reached, count, ip, port, stream};
use crate::support::lab::{Seat, within};
use crate::support::pulse::Pulse;
use crate::support::traffic::Blast;
use crate::support::vm::Vm;
use crate::support::vm::machine::{Machine, Nic, Socket};

/// The outage of a guest that moves, and every other gap.
const SECOND: Duration = Duration::from_secs(1);
const OFTEN: Duration = Duration::from_millis(10);

/// The moves of a machine.
const MOVES: usize = 3;
/// How many more there are if none was quick: whatever else the machine does takes cores from both sides.
const MORE: usize = 4;

/// How often a card may come and go, or memory be added, until nobody notices it.
const ROUNDS: usize = 5;

/// How often a guest may lose its mind. While a machine that QEMU 7.2 emulates without KVM moves, some of what it writes to its
/// memory gets lost: of 45 moves of a machine without any network card, with nothing of ours near it, one ended in a crash of
/// its kernel; others hung, shell and all.
const TRIES: usize = 4;

/// Moves a guest to and fro, between a port of either role. A host asks it for echoes all the time. It answers again after each
/// move, and once at least within a second in all.
fn moves(properties: &str) {
    let is_sane = (0..TRIES).any(|_| moves_whole(properties));
    assert!(is_sane, "the guest's kernel crashed or hung in each of {TRIES} tries");
}

/// False if the guest's kernel crashed on the way, or does nothing any more.
fn moves_whole(properties: &str) -> bool {
    let room = Room::new(1);
    let (left, right) = (room.listening("left"), room.connecting("right"));
    let daemon = room.start(&["p1 afpacket", &port(&left, ""), &port(&right, "")]);
    let card = |socket: &Socket| [Nic::at(socket.clone()).with(properties)];
    let machine = Machine::new(card(&left));
    let mut vm = Vm::start(&room.site.switch, machine.clone()).booted();
    address(&mut vm, "eth0", 11);
    let host = &room.site.hosts[0];
    await_reached(host, ip(11));
    let mut best = Duration::MAX;
    let mut done = 0;
    while done < MOVES || best >= SECOND && done < MOVES + MORE {
        let there = [&right, &left][done % 2];
        let incoming = room.path(&format!("move{done}"));
        let mut target = Vm::start(&room.site.switch, machine.twin(card(there), incoming));
        let pulse = Pulse::start(host, ip(11), OFTEN, 1000);
        pulse.await_more(50, SLOWLY);
        let downtime = vm.move_to(&mut target);
        let goal = pulse.count() + 50;
        let begun = Instant::now();
        while pulse.count() < goal {
            if target.has_crashed() || begun.elapsed() > SLOWLY {
                assert!(target.is_dead(), "the guest is well and gives no answers");
                eprintln!("the guest's kernel crashed as it moved, or hangs");
                return false;
            }
            std::thread::sleep(OFTEN);
        }
        let gap = pulse.stop();
        eprintln!(
            "{properties:?} to {there:?}: no answer for {gap:?}, in which QEMU was down for {downtime:?}"
        );
        best = best.min(gap);
        done += 1;
        vm = target;
        assert!(!vm.is_dead());
    }
    assert!(best < SECOND, "no move took less than {best:?}");
    for name in ["left", "right"] {
        assert_eq!(count(&daemon, name, "/vhost/resets"), 0, "{}", daemon.port(name));
    }
    assert_balance(&daemon);
    true
}

#[test]
fn a_guest_that_moves_is_away_for_less_than_a_second() {
    let Some(_seats) = Seat::take_all() else { return };
    moves("");
}

/// QEMU then asks us to, by a message with its address (`VHOST_USER_SEND_RARP`).
#[test]
fn a_guest_that_moves_and_cannot_announce_itself_is_announced() {
    let Some(_seats) = Seat::take_all() else { return };
    moves("guest_announce=off");
}

#[test]
fn a_guest_with_packed_rings_moves() {
    let Some(_seats) = Seat::take_all() else { return };
    moves("packed=on");
}

/// The longest time between two answers while something is done. What one of them is by chance, on a machine that does other
/// things, too, says little: see the least of several.
fn longest_gap(pulse: &Pulse, work: impl FnOnce()) -> Duration {
    pulse.await_more(50, SLOWLY);
    let begun = pulse.count();
    work();
    pulse.await_more(50, SLOWLY);
    pulse.gap_since(begun)
}

/// Linux takes memory above 4 GiB first, so all that is received from then on goes there.
#[test]
fn traffic_goes_into_memory_that_was_added_while_it_flowed() {
    let Some(_seats) = Seat::take_all() else { return };
    let room = Room::new(1);
    let (left, right) = (room.listening("vm1"), room.connecting("vm2"));
    let daemon = room.start(&["p1 afpacket", &port(&left, ""), &port(&right, "")]);
    let (left, right) = (room.machine([Nic::at(left)]), room.machine([Nic::at(right)]));
    let (mut left, mut right) = (left.booted(), right.booted());
    address(&mut left, "eth0", 11);
    address(&mut right, "eth0", 12);
    let host = &room.site.hosts[0];
    await_reached(host, ip(11));
    let before = count(&daemon, "vm1", "/vhost/memory");
    let pulse = Pulse::start(host, ip(11), OFTEN, 1400);
    let mut gaps = Vec::new();
    while gaps.len() < 2 || gaps.iter().min() >= Some(&SECOND) && gaps.len() < ROUNDS {
        gaps.push(longest_gap(&pulse, || left.add_memory(128)));
        assert_eq!(count(&daemon, "vm1", "/vhost/memory"), before + gaps.len() as u64 * (128 << 20));
    }
    pulse.stop();
    assert!(gaps.iter().min() < Some(&SECOND), "{gaps:?} without an answer while memory was added");
    stream(&mut right, &mut left, ip(11), 8 * MIB);
    stream(&mut left, &mut right, ip(12), 8 * MIB);
    let normal = "/zone +Normal/ { on = 1 } on && /free/ { f = $NF } on && /managed/ { print $NF - f; exit }";
    let used = left.run(&format!("awk '{normal}' /proc/zoneinfo"));
    let pages: u64 = used.trim().parse().expect("pages");
    assert!(pages > 1024, "{pages} pages of the new memory are in use");
    assert_eq!(count(&daemon, "vm1", "/vhost/resets"), 0, "{}", daemon.port("vm1"));
}

#[test]
fn cards_come_and_go_and_nobody_else_loses_a_frame() {
    let Some(_seats) = Seat::take_all() else { return };
    let room = Room::new(3);
    let (own, client, server) = (room.connecting("vm1"), room.listening("vm2"), room.connecting("vm3"));
    let ports = [port(&own, ""), port(&client, ""), port(&server, "")];
    let daemon = room.start(&["p1 afpacket", "p2 afxdp", "p3 afpacket", &ports[0], &ports[1], &ports[2]]);
    let mut vm = room.machine([Nic::at(own)]).booted();
    address(&mut vm, "eth0", 11);
    let hosts = &room.site.hosts;
    await_reached(&hosts[2], ip(11));
    let pulse = Pulse::start(&hosts[2], ip(11), OFTEN, 1000);
    let mut come_and_go = |socket: &Socket, name: &str| {
        let mac = vm.plug(&Nic::at(socket.clone()), "eth1");
        assert!(vm.run("cat /sys/class/net/eth1/address").contains(&mac));
        vm.run("ip addr add 10.8.0.11/24 dev eth1 && ip link set eth1 up");
        let before = count(&daemon, name, "/rx/frames");
        within(SLOWLY, "the new card sends", || {
            let _ = vm.try_run("ping -n -q -c 1 -W 1 10.8.0.1");
            count(&daemon, name, "/rx/frames") > before
        });
        vm.unplug("eth1");
        within(SLOWLY, "its port is down", || daemon.port(name)["state"] == "down");
    };
    for (socket, name) in [(&client, "vm2"), (&server, "vm3"), (&client, "vm2")] {
        // Frames lost between other ports, and for how long the guest's other card was silent. A poller that the machine keeps from
        // its core overruns its rings: one clean round of a few shows that it is not the switch.
        let mut round = || {
            let blast = Blast::start(&hosts[0], &hosts[1], 2000, 200);
            blast.await_more(500);
            let gap = longest_gap(&pulse, || come_and_go(socket, name));
            (blast.stop().lost(), gap)
        };
        let noticed = |(lost, gap): &(u64, Duration)| *lost > 0 || *gap >= SECOND;
        let rounds: Vec<_> = (0..ROUNDS).map(|_| round()).take_while(noticed).collect();
        assert!(rounds.len() < ROUNDS, "{name} was noticed each time: {rounds:?}");
    }
    pulse.stop();
    assert_balance(&daemon);
}
