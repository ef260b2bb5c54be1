//! The switch is killed at any moment while guests send as fast as they can, in both roles; they go on with the next one.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dataplane::virtio::driver::frontend::{Frontend, Wish};
use dataplane::virtio::driver::user::lock;
use dataplane::virtio::features::Features;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::driven::{FAR, NEAR, PACKED, SPLIT, frame, send, wish};
use crate::rig::Room;
use crate::support::lab::{PATIENCE, Seat, within};

const KILLS: u64 = 12;

/// Where a guest finds its switch.
enum Way {
    At(PathBuf),
    By(UnixListener),
}

impl Way {
    fn stream(&self) -> UnixStream {
        let mut found = None;
        within(PATIENCE, "a switch at the socket", || {
            found = match self {
                Way::At(path) => UnixStream::connect(path).ok(),
                Way::By(listener) => listener.accept().ok().map(|accepted| accepted.0),
            };
            found.is_some()
        });
        found.expect("there was one")
    }
}

/// Sends as fast as it can; how many arrived.
fn rush(guests: &[Frontend], how_long: Duration) -> u64 {
    let [near, far] = [0, 1].map(|guest: usize| &guests[guest].pairs()[0]);
    let (began, mut arrived) = (Instant::now(), 0);
    while began.elapsed() < how_long {
        send(far, &frame(NEAR, FAR, 0));
        (0..32).for_each(|number| _ = send(near, &frame(FAR, NEAR, number)));
        while lock(near).receive().is_some() {}
        while lock(far).receive().is_some() {
            arrived += 1;
        }
    }
    arrived
}

fn killed(role: &str, wish: impl Fn() -> Wish) {
    let Some(_seat) = Seat::take() else { return };
    let room = Room::new(0);
    let paths = ["near", "far"].map(|name| room.path(name));
    let ports = paths.each_ref().map(|path| {
        let name = path.file_name().expect("a name").display();
        match role {
            "client" => format!("{name} dpdkvhostuserclient vhost-server-path = \"{}\"", path.display()),
            _ => format!("{name} dpdkvhostuser"),
        }
    });
    let ways = paths.map(|path| match role {
        "client" => Way::By(UnixListener::bind(path).expect("a socket")),
        _ => Way::At(path),
    });
    let mut daemon = room.start(&[&ports[0], &ports[1]]);
    let start = |way: &Way| Frontend::over(way.stream(), wish()).expect("a guest");
    let mut guests = ways.each_ref().map(start);
    for kill in 0..KILLS {
        within(PATIENCE, "frames flow", || rush(&guests, Duration::from_millis(10)) > 10);
        std::thread::scope(|scope| {
            scope.spawn(|| rush(&guests, Duration::from_millis(40 + 7 * kill)));
            std::thread::sleep(Duration::from_millis(20 + 7 * kill));
            daemon.kill9();
        });
        daemon.restart(&room.site.switch);
        for (guest, way) in guests.iter_mut().zip(&ways) {
            guest.reconnect(way.stream()).expect("the switch goes on");
        }
    }
    within(PATIENCE, "frames flow", || rush(&guests, Duration::from_millis(10)) > 10);
}

#[test]
fn a_switch_that_makes_the_sockets_is_killed_under_load() {
    killed("server", || wish(SPLIT));
}

#[test]
fn a_switch_that_connects_is_killed_under_load() {
    killed("client", || wish(SPLIT));
}

#[test]
fn a_switch_with_packed_rings_is_killed_under_load() {
    killed("server", || wish(PACKED));
}

#[test]
fn a_switch_with_packed_rings_and_an_inflight_region_is_killed_under_load() {
    killed("client", || with_inflight(PACKED));
}

#[test]
fn a_switch_with_an_inflight_region_is_killed_under_load() {
    killed("server", || with_inflight(SPLIT));
}

fn with_inflight(features: Features) -> Wish {
    let mut wish = wish(features);
    wish.protocol |= Protocol::INFLIGHT_SHMFD;
    wish
}
