//! Many guests at one switch: what they cost while they are silent, and what one that is busy does to that.

use std::fs;
use std::time::{Duration, Instant};

use dataplane::virtio::driver::frontend::Frontend;

use crate::driven::{FAR, NEAR, SPLIT, TARGET, frame, guest, send};
use crate::rig::{Room, SLOWLY};
use crate::support::daemon::Daemon;
use crate::support::lab::{Seat, within};

const GUESTS: usize = 100;
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_secs(5);

/// Ports that are up.
fn up(daemon: &Daemon) -> usize {
    let shown = daemon.ask("port show");
    shown.as_array().expect("ports").iter().filter(|port| port["state"] == "up").count()
}

/// What a switch that nobody bothers may use of a processor.
const IDLE: f64 = 0.01;
/// How often that is measured: a virtual machine that is held up counts that as the time of whoever ran.
const TIMES: usize = 3;

/// Processor time of a daemon that nobody bothers, as a share of one processor: the first that is little, or the last.
fn load(daemon: &Daemon) -> f64 {
    let once = || {
        let (before, began) = (daemon.cpu_time(), Instant::now());
        std::thread::sleep(SILENCE);
        (daemon.cpu_time() - before).as_secs_f64() / began.elapsed().as_secs_f64()
    };
    let first = (1..TIMES).map(|_| once()).find(|load| *load < IDLE);
    first.unwrap_or_else(once)
}

fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its descriptors").count()
}

#[test]
fn a_hundred_silent_guests_cost_nothing() {
    let Some(_seat) = Seat::take_all() else { return };
    let room = Room::new(0);
    let ports: Vec<_> = (0..GUESTS).map(|i| format!("vm{i} dpdkvhostuser")).collect();
    let daemon = room.start(&ports.iter().map(String::as_str).collect::<Vec<_>>());
    // What is made for the first guest of all.
    drop(guest(&room.path("vm0"), SPLIT).expect("a guest"));
    within(SLOWLY, "its port is down", || up(&daemon) == 0);
    let (alone, empty) = (load(&daemon), daemon.resident_kib());
    let held = descriptors(&daemon);
    println!("{GUESTS} ports: {:.2} % of a processor, {empty} KiB, {held} descriptors", 100.0 * alone);

    let began = Instant::now();
    let connect = |i| guest(&room.path(&format!("vm{i}")), SPLIT).expect("a guest");
    let guests: Vec<Frontend> = (0..GUESTS).map(connect).collect();
    within(SLOWLY, "all ports are up", || up(&daemon) == GUESTS);
    let took = began.elapsed();
    let silent = load(&daemon);
    let full = daemon.resident_kib();
    println!(
        "{GUESTS} guests, after {took:.1?}: {:.2} % of a processor, {full} KiB, {} descriptors",
        100.0 * silent,
        descriptors(&daemon)
    );
    assert!(alone < IDLE && silent < IDLE, "{alone} and {silent} of a processor for nothing");

    let (near, far) = (&guests[0].pairs()[0], &guests[1].pairs()[0]);
    within(SLOWLY, "the switch has learned", || {
        send(far, &frame(NEAR, FAR, 0));
        send(near, &frame(FAR, NEAR, 0));
        far.lock().expect("a pair").receive().is_some()
    });
    let busy = Instant::now();
    let mut sent = 0;
    while busy.elapsed() < SILENCE {
        sent += u64::from(send(near, &frame(FAR, NEAR, sent)));
        while far.lock().expect("a pair").receive().is_some() {}
    }
    println!("one busy among them: {:.0} frames a second", sent as f64 / busy.elapsed().as_secs_f64());
    assert!(send(&guests[2].pairs()[0], &frame(NEAR, TARGET, 0)), "the others have room");

    drop(guests);
    within(SLOWLY, "all ports are down", || up(&daemon) == 0);
    within(SLOWLY, "their descriptors are closed", || descriptors(&daemon) <= held);
    assert!(daemon.resident_kib() < full + 1024, "{} KiB after {full}", daemon.resident_kib());
}
