//! One port's guest or frontend is hostile: what the others notice, and what is left of it in the daemon.
//!
//! Two honest guests send each other a frame every 5 ms. None may be lost, whatever the third does; how long they take is
//! printed, and must not be absurd. Each attack ends with an honest guest at the same port.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dataplane::virtio::driver::frontend::Frontend;
use dataplane::virtio::features::Features;
use nix::sys::signal::Signal;

use crate::driven::{FAR, Honest, PACKED, SPLIT, Seen, TARGET, frame, guest, send};
use crate::rig::{Room, count};
use crate::rings::{self, Side};
use crate::rude::{Attack, Ends};
use crate::support::daemon::Daemon;
use crate::support::lab::{PATIENCE, Seat, within};

/// What half of the honest frames must not exceed, on two cores that others use, too.
const HALF: Duration = Duration::from_millis(20);
/// Of so many frames, which take two seconds: of few, half are slow if something else takes the switch's core for a moment.
const ENOUGH: usize = 400;
/// How often an attack is played until they do not.
const TIMES: usize = 3;
/// Less than a session waits for a frontend that hangs.
const AT_ONCE: Duration = Duration::from_millis(700);

/// A switch with two honest guests and a port to attack.
pub struct Scene {
    room: Room,
    pub daemon: Daemon,
    honest: Honest,
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    kib: u64,
}

impl Scene {
    /// One with `more` ports beside the three.
    pub fn new(more: &[&str]) -> Scene {
        let room = Room::new(0);
        let ports = ["near dpdkvhostuser", "far dpdkvhostuser", "target dpdkvhostuser queues = 2"];
        let daemon = room.start(&[&ports[..], more].concat());
        let is_up = |port| daemon.port(port)["state"] == "up";
        let honest = Honest::start([&room.path("near"), &room.path("far")], || {
            within(PATIENCE, "both ports are up", || is_up("near") && is_up("far"));
        });
        let scene = Scene { room, daemon, honest };
        within(PATIENCE, "honest frames flow", || scene.honest.since(0).sent > 0);
        assert_eq!(scene.honest.since(0).lost, 0, "{}", scene.daemon.port("far"));
        scene.is_usable(SPLIT);
        scene
    }

    /// The socket of the port to attack.
    pub fn target(&self) -> PathBuf {
        self.room.path("target")
    }

    /// A guest there that runs, and whose port is up.
    pub fn guest(&self, features: Features) -> Frontend {
        let guest = within_patience("a guest at the port", || guest(&self.target(), features).ok());
        within(PATIENCE, "its port is up", || self.daemon.port("target")["state"] == "up");
        guest
    }

    /// Sees that an honest guest there reaches another.
    fn is_usable(&self, features: Features) {
        let guest = self.guest(features);
        let before = self.honest.of_target();
        within(PATIENCE, "a frame of an honest guest at the port arrives", || {
            send(&guest.pairs()[0], &frame(FAR, TARGET, 0));
            self.honest.of_target() > before
        });
        drop(guest);
        within(PATIENCE, "its port is down", || self.daemon.port("target")["state"] == "down");
        // The others must find the third by flooding again, as long as it has not spoken.
        self.daemon.ask("fdb flush");
    }

    fn held(&self) -> Held {
        let entries = |what| fs::read_dir(format!("/proc/{}/{what}", self.daemon.pid())).expect("its files");
        let (descriptors, threads) = (entries("fd").count(), entries("task").count());
        Held { descriptors, threads, kib: self.daemon.resident_kib() }
    }

    /// Waits until the daemon holds as few descriptors and threads as before, and not much more memory.
    fn assert_held(&self, before: Held, what: &str) {
        within(PATIENCE, &format!("after {what} nothing is left of it"), || {
            let now = self.held();
            now.descriptors <= before.descriptors && now.threads <= before.threads
        });
        let now = self.held();
        assert!(now.kib < before.kib + 16 * 1024, "{what}: {before:?} became {now:?}");
    }

    /// Plays an attack, and sees that the others noticed nothing: they lost nothing, and were not slow at least once of a few times,
    /// for something else may take the switch's core at any other.
    fn watch(&mut self, name: &str, attack: impl Fn(&Scene)) {
        let slow: Vec<_> =
            (0..TIMES).map(|_| self.play(name, &attack)).take_while(|seen| seen.p50 >= HALF).collect();
        assert!(slow.len() < TIMES, "{name}: {slow:?}");
    }

    fn play(&mut self, name: &str, attack: impl Fn(&Scene)) -> Seen {
        let (mark, stop) = (self.honest.mark(), AtomicBool::new(false));
        let cpu = (Instant::now(), self.daemon.cpu_time());
        let answer = std::thread::scope(|scope| {
            let control = scope.spawn(|| slowest_answer(&self.daemon, &stop));
            // Whatever becomes of the attack, or the scope would wait for ever.
            let attacked = std::panic::catch_unwind(AssertUnwindSafe(|| attack(self)));
            stop.store(true, Ordering::Relaxed);
            attacked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            control.join().expect("control answers")
        });
        let busy = (self.daemon.cpu_time() - cpu.1).as_secs_f64() / cpu.0.elapsed().as_secs_f64();
        let seen = self.seen_since(mark);
        println!(
            "{name:32} {:5} sent {:3} lost  p50 {:7.0?} p99 {:7.0?} max {:7.0?}  control {answer:7.0?}  cpu {:3.0} %",
            seen.sent,
            seen.lost,
            seen.p50,
            seen.p99,
            seen.max,
            100.0 * busy
        );
        assert!(self.daemon.is_running(), "{name}: the daemon has ended");
        assert_eq!(seen.lost, 0, "{name}: {seen:?}\n{}", self.daemon.port("far"));
        seen
    }

    /// What honest guests saw since a mark; for longer than the attack took, if that was too short to judge by.
    fn seen_since(&self, mark: usize) -> Seen {
        let seen = self.honest.since(mark);
        if seen.lost > 0 || seen.p50 < HALF || seen.sent >= ENOUGH {
            return seen;
        }
        within(PATIENCE, "more honest frames", || self.honest.mark() >= mark + ENOUGH);
        self.honest.since(mark)
    }

    fn resets(&self) -> u64 {
        count(&self.daemon, "target", "/vhost/resets")
    }

    /// Waits until the port was reset once more, and says why.
    fn await_reset(&self, name: &str, before: u64, says: &str) {
        within(PATIENCE, &format!("{name}: the port is reset"), || self.resets() > before);
        assert_eq!(self.resets(), before + 1, "{name}");
        let shown = self.daemon.port("target");
        let why = shown["vhost"]["last_error"].to_string();
        assert!(why.contains("reset") && why.contains(says), "{name}: {shown}");
    }
}

/// Tries until there is one.
fn within_patience<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let mut got = None;
    within(PATIENCE, what, || {
        got = attempt();
        got.is_some()
    });
    got.expect("it was there")
}

/// How long the slowest answer of the control socket took, until stopped.
fn slowest_answer(daemon: &Daemon, stop: &AtomicBool) -> Duration {
    let mut slowest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut stream = UnixStream::connect(daemon.socket()).expect("the control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(br#"{"id":1,"method":"list-commands","params":[]}"#).expect("control reads");
        let mut answer = Vec::new();
        while serde_json::from_slice::<serde_json::Value>(&answer).is_err() {
            let mut some = [0; 4096];
            let got = stream.read(&mut some).expect("control answers");
            assert!(got > 0, "control hung up");
            answer.extend(&some[..got]);
        }
        slowest = slowest.max(began.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    slowest
}

fn guests_that_break_rings(features: Features) {
    let Some(_seat) = Seat::take() else { return };
    let mut scene = Scene::new(&[]);
    let before = scene.held();
    for attack in rings::attacks(features) {
        for side in [Side::Transmit, Side::Receive] {
            let name = format!("{}, {side:?}", attack.name);
            scene.watch(&name, |scene| {
                let resets = scene.resets();
                let guest = scene.guest(features);
                attack.play(&guest, side);
                scene.await_reset(&name, resets, attack.says);
            });
        }
    }
    scene.is_usable(features);
    scene.assert_held(before, "all breaches");
}

#[test]
fn guests_that_break_split_rings_are_reset_and_nobody_else_notices() {
    guests_that_break_rings(SPLIT);
}

#[test]
fn guests_that_break_packed_rings_are_reset_and_nobody_else_notices() {
    guests_that_break_rings(PACKED);
}

fn rudeness(attacks: &[Attack]) {
    let Some(_seat) = Seat::take() else { return };
    let mut scene = Scene::new(&[]);
    let before = scene.held();
    for Attack { name, play, ends } in attacks {
        scene.watch(name, |scene| {
            let resets = scene.resets();
            play(scene);
            match ends {
                Ends::Reset(says) => scene.await_reset(name, resets, says),
                Ends::Well => assert_eq!(scene.resets(), resets, "{name}: {}", scene.daemon.port("target")),
                Ends::Somehow => {}
            }
            scene.is_usable(SPLIT);
        });
        scene.assert_held(before, name);
    }
}

#[test]
fn rude_frontends_bother_nobody_else() {
    rudeness(crate::rude::FRONTENDS);
}

#[test]
fn rude_guests_bother_nobody_else() {
    rudeness(crate::rude::GUESTS);
}

/// `prlimit(1)`: the most open files of the daemon.
fn limit_files(daemon: &Daemon, most: usize) {
    let status = Command::new("prlimit")
        .args(["--pid", &daemon.pid().to_string(), &format!("--nofile={most}:")])
        .status();
    assert!(status.expect("prlimit").success());
}

/// Guests come to a daemon that may open hardly any more files: those that were there notice nothing.
#[test]
fn without_descriptors_the_switch_keeps_the_guests_it_has() {
    let Some(_seat) = Seat::take() else { return };
    let more: Vec<_> = (0..8).map(|i| format!("vm{i} dpdkvhostuser")).collect();
    let mut scene = Scene::new(&more.iter().map(String::as_str).collect::<Vec<_>>());
    let before = scene.held();
    // The clients of the control socket take some, too.
    limit_files(&scene.daemon, before.descriptors + 24);
    scene.watch("no descriptors", |scene| {
        let come = |i| {
            let path = scene.room.path(&format!("vm{i}"));
            std::thread::spawn(move || guest(&path, SPLIT).is_ok())
        };
        let guests: Vec<_> = (0..8).map(come).collect();
        let came = guests.into_iter().filter_map(|guest| guest.join().ok()).filter(|came| *came).count();
        println!("  {came} of 8 guests came");
        std::thread::sleep(Duration::from_secs(1));
    });
    limit_files(&scene.daemon, 1024);
    scene.is_usable(SPLIT);
    for i in 0..8 {
        within_patience("a guest comes", || guest(&scene.room.path(&format!("vm{i}")), SPLIT).ok());
    }
    scene.assert_held(before, "guests without descriptors");
}

/// The switch is frozen, a port is taken away under its guest and made again, and its end is not delayed by frontends that hang.
#[test]
fn an_operator_at_work_bothers_no_guest() {
    let Some(_seat) = Seat::take() else { return };
    let mut scene = Scene::new(&[]);
    scene.watch("frozen", |scene| {
        let before = scene.honest.mark();
        scene.daemon.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(300));
        scene.daemon.signal(Signal::SIGCONT);
        // Those that waited are a third.
        let waited = scene.honest.mark() - before;
        within(PATIENCE, "more honest frames", || scene.honest.mark() > before + 3 * waited);
    });
    scene.watch("port deleted and added under its guest", |scene| {
        for _ in 0..5 {
            let _guest = scene.guest(SPLIT);
            scene.daemon.ask("port del target");
            scene.daemon.ask("port add br0 target type=dpdkvhostuser");
        }
    });
    scene.watch("another MTU, another number of queues", |scene| {
        for (from, to) in [
            ("name = \"target\"", "name = \"target\"\nmtu = 1400"),
            ("mtu = 1400", "queues = 4"),
            ("\nqueues = 4", ""),
        ] {
            let _guest = scene.guest(SPLIT);
            scene.daemon.edit(from, to);
            scene.daemon.ask("apply");
        }
    });
    scene.is_usable(SPLIT);
    // How long it takes once says little on a machine that does other things, too.
    let quickest = (0..5).map(|_| stop_beside_one_that_hangs(&mut scene)).find(|took| *took < AT_ONCE);
    assert!(quickest.is_some(), "it waits for a frontend that hangs\n{}", scene.daemon.log());
}

/// How long a switch takes to end while a frontend has said half a message; starts it again.
fn stop_beside_one_that_hangs(scene: &mut Scene) -> Duration {
    let hangs = UnixStream::connect(scene.target()).expect("the port listens");
    (&hangs).write_all(&[1, 0, 0]).expect("the switch reads");
    within(PATIENCE, "it is served", || scene.daemon.port("target")["vhost"]["connected"] == true);
    let began = Instant::now();
    assert!(scene.daemon.stop().success(), "{}", scene.daemon.log());
    let took = began.elapsed();
    assert!(!scene.target().exists(), "its sockets are gone");
    scene.daemon.restart(&scene.room.site.switch);
    took
}
