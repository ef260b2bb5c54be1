//! What hostile frontends say, and hostile guests do beside breaking their rings.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::virtio::driver::frontend::Frontend;
use dataplane::virtio::driver::memory::{Layout, Region};
use dataplane::virtio::driver::user::lock;
use dataplane::virtio::driver::wire::{VERSION, Wire, message};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::driven::{SPLIT, TARGET, frame, send};
use crate::hostile::Scene;
use crate::support::lab::PATIENCE;

/// How an attack ends.
#[derive(Debug, Clone, Copy)]
pub enum Ends {
    /// With one reset, whose reason has these words.
    Reset(&'static str),
    /// Without.
    Well,
    /// With any number of them.
    Somehow,
}

/// A hostile frontend or guest.
pub struct Attack {
    pub name: &'static str,
    pub play: fn(&Scene),
    pub ends: Ends,
}

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(2);

/// Requests (vhost-user, "Front-end message types").
const GET_FEATURES: u32 = 1;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_CALL: u32 = 13;
const ADD_MEM_REG: u32 = 37;

const fn attack(name: &'static str, play: fn(&Scene), ends: Ends) -> Attack {
    Attack { name, play, ends }
}

/// At the socket.
pub const FRONTENDS: &[Attack] = &[
    attack("garbage", garbage, Ends::Reset("")),
    attack("half a message, then gone", half_and_gone, Ends::Reset("middle of a message")),
    attack("half a message, then nothing", half_and_silence, Ends::Reset("middle of a message")),
    attack("silence", silence, Ends::Well),
    attack("a message of 4 GiB", oversized, Ends::Reset("")),
    attack("too many descriptors", too_many_descriptors, Ends::Reset("descriptors")),
    attack("descriptors for nothing", descriptors_for_nothing, Ends::Somehow),
    attack("many connections", many_connections, Ends::Well),
    attack("answers that nobody reads", never_reads, Ends::Reset("does not read")),
    attack("a region beyond its file", |scene| region(scene, 4096, 1 << 30), Ends::Reset("its file has")),
    attack("a region of 2^63 bytes", |scene| region(scene, 4096, 1 << 63), Ends::Reset("")),
    attack("a sparse region of 8 TiB", |scene| region(scene, 1 << 43, 1 << 43), Ends::Somehow),
    attack("regions that overlap", overlap, Ends::Reset("overlap")),
    attack("connections at full rate", connects, Ends::Well),
];

/// At rings that run.
pub const GUESTS: &[Attack] = &[
    attack("a guest that stops to read", stops_to_read, Ends::Well),
    attack("kicks at full rate", kick_storm, Ends::Well),
    attack("a call eventfd that is full", full_call, Ends::Well),
    attack("memory cut under the rings", cut_all, Ends::Reset("memory shrank")),
    attack("memory cut under the buffers", cut_buffers, Ends::Reset("memory shrank")),
    attack("SET_VRING_CALL at full rate", call_flood, Ends::Well),
    attack("SET_MEM_TABLE at full rate", table_flood, Ends::Well),
    attack("regions added and removed", region_flood, Ends::Well),
    attack("enable and disable at full rate", enable_flood, Ends::Well),
    attack("a driver that restarts", reboots, Ends::Well),
    attack("frames at full rate", frame_flood, Ends::Well),
    attack("a call eventfd that blocks", blocking_call, Ends::Well),
];

fn connect(scene: &Scene) -> Wire {
    let stream = UnixStream::connect(scene.target()).expect("the port listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    Wire::new(stream)
}

/// Waits until the switch has hung up.
fn await_end(wire: &Wire) {
    let _ = std::io::copy(&mut wire.stream(), &mut std::io::sink());
}

fn say(scene: &Scene, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let wire = connect(scene);
    wire.send(bytes, fds).expect("the switch reads");
    await_end(&wire);
}

/// As often as there is time for.
fn flood(mut once: impl FnMut()) {
    let (began, mut times) = (Instant::now(), 0u64);
    while began.elapsed() < FLOOD {
        once();
        times += 1;
    }
    println!("  {:.0} times a second", times as f64 / began.elapsed().as_secs_f64());
}

/// Long enough for what the honest guests do to be seen.
fn meanwhile() {
    std::thread::sleep(FLOOD);
}

fn garbage(scene: &Scene) {
    let bytes: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    say(scene, &bytes, &[]);
}

fn half_and_gone(scene: &Scene) {
    let wire = connect(scene);
    wire.send(&message(GET_FEATURES, VERSION, &[])[..7], &[]).expect("the switch reads");
}

fn half_and_silence(scene: &Scene) {
    say(scene, &message(SET_MEM_TABLE, VERSION, &[0; 40])[..30], &[]);
}

fn silence(scene: &Scene) {
    let _wire = connect(scene);
    meanwhile();
}

fn oversized(scene: &Scene) {
    let words = [GET_FEATURES, VERSION, u32::MAX];
    say(scene, &words.map(u32::to_le_bytes).concat(), &[]);
}

fn event() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd")
}

fn too_many_descriptors(scene: &Scene) {
    let event = event();
    say(scene, &message(SET_MEM_TABLE, VERSION, &[0; 40]), &[event.as_fd(); 200]);
}

fn descriptors_for_nothing(scene: &Scene) {
    let (wire, event) = (connect(scene), event());
    for _ in 0..200 {
        if wire.send(&message(GET_FEATURES, VERSION, &[]), &[event.as_fd(); 8]).is_err() {
            break;
        }
    }
}

fn many_connections(scene: &Scene) {
    let mut streams = Vec::new();
    for _ in 0..64 {
        let Ok(socket) = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_NONBLOCK,
            None,
        ) else {
            break;
        };
        let address = nix::sys::socket::UnixAddr::new(&scene.target()).expect("a short path");
        let _ = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address);
        streams.push(socket);
    }
    meanwhile();
}

fn never_reads(scene: &Scene) {
    let wire = connect(scene);
    wire.stream().set_nonblocking(true).expect("a socket");
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        match wire.send(&message(GET_FEATURES, VERSION, &[]), &[]) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
            Ok(()) => {}
        }
    }
}

/// A table of memory regions, each of guest address, bytes, user address and offset.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let head = (regions.len() as u64).to_le_bytes();
    head.into_iter().chain(regions.iter().flatten().flat_map(|word| word.to_le_bytes())).collect()
}

fn file_of(len: u64) -> File {
    let region = Region::new(Layout { guest: 0, len: 4096, offset: 0 }).expect("a region");
    let file = region.file().try_clone().expect("its file");
    file.set_len(len).expect("a sparse file");
    file
}

fn region(scene: &Scene, have: u64, len: u64) {
    let (wire, file) = (connect(scene), file_of(have));
    let body = table(&[[0, len, 1 << 40, 0]]);
    wire.send(&message(SET_MEM_TABLE, VERSION, &body), &[file.as_fd()]).expect("the switch reads");
    std::thread::sleep(Duration::from_millis(200));
}

fn overlap(scene: &Scene) {
    let file = file_of(1 << 20);
    let body = table(&[[0, 1 << 20, 1 << 40, 0], [1 << 19, 1 << 19, 1 << 41, 0]]);
    say(scene, &message(SET_MEM_TABLE, VERSION, &body), &[file.as_fd(); 2]);
}

fn connects(scene: &Scene) {
    flood(|| drop(UnixStream::connect(scene.target())));
}

fn stops_to_read(scene: &Scene) {
    let _guest = scene.guest(SPLIT);
    meanwhile();
    meanwhile();
}

fn kick_storm(scene: &Scene) {
    let guest = scene.guest(SPLIT);
    let pair = lock(&guest.pairs()[0]);
    flood(|| {
        pair.transmit.ring_bell();
        pair.receive.ring_bell();
    });
}

/// Receives, and wants to be called for each frame.
fn wants_calls(guest: &Frontend) {
    flood(|| {
        let mut pair = lock(&guest.pairs()[0]);
        while pair.receive().is_some() {}
        pair.receive.ring.enable_calls();
        drop(pair);
        std::thread::sleep(Duration::from_millis(1));
    });
}

/// The bells of a guest.
fn calls(guest: &Frontend) -> [Arc<EventFd>; 2] {
    let pair = lock(&guest.pairs()[0]);
    [&pair.receive, &pair.transmit].map(|queue| Arc::clone(queue.call()))
}

fn full_call(scene: &Scene) {
    let guest = scene.guest(SPLIT);
    let calls = calls(&guest);
    for call in &calls {
        let _ = call.read();
        let _ = call.write(u64::MAX - 1);
    }
    wants_calls(&guest);
}

fn blocking_call(scene: &Scene) {
    let guest = scene.guest(SPLIT);
    for call in calls(&guest) {
        let _ = call.read();
        let _ = call.write(u64::MAX - 1);
        fcntl(&call, FcntlArg::F_SETFL(OFlag::empty())).expect("its flags");
    }
    wants_calls(&guest);
}

fn cut(scene: &Scene, keep: u64) {
    let guest = scene.guest(SPLIT);
    guest.memory().regions()[0].truncate(keep).expect("a file");
    lock(&guest.pairs()[0]).transmit.ring_bell();
    await_end(guest.wire());
}

fn cut_all(scene: &Scene) {
    cut(scene, 0);
}

/// The rings lie in front, and behind them the buffers.
fn cut_buffers(scene: &Scene) {
    cut(scene, 4096 + 16384);
}

fn call_flood(scene: &Scene) {
    let guest = scene.guest(SPLIT);
    let event = event();
    let body = message(SET_VRING_CALL, VERSION, &1u64.to_le_bytes());
    flood(|| guest.wire().send(&body, &[event.as_fd()]).expect("the switch reads"));
}

fn table_flood(scene: &Scene) {
    let guest = scene.guest(SPLIT);
    let region = &guest.memory().regions()[0];
    let spec = region.spec();
    let body = message(SET_MEM_TABLE, VERSION, &table(&[[spec.guest, spec.len, spec.user, spec.offset]]));
    flood(|| guest.wire().send(&body, &[region.file().as_fd()]).expect("the switch reads"));
}

fn region_flood(scene: &Scene) {
    let guest = scene.guest(SPLIT);
    let file = file_of(1 << 20);
    let words = [0, 1 << 40, 1 << 20, 1 << 40, 0];
    let body: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    let (add, remove) = (message(ADD_MEM_REG, VERSION, &body), message(ADD_MEM_REG + 1, VERSION, &body));
    flood(|| {
        guest.wire().send(&add, &[file.as_fd()]).expect("the switch reads");
        guest.wire().send(&remove, &[]).expect("the switch reads");
    });
}

fn enable_flood(scene: &Scene) {
    let mut guest = scene.guest(SPLIT);
    flood(|| {
        guest.disable(0).expect("the switch answers");
        guest.enable(0).expect("the switch answers");
    });
}

fn reboots(scene: &Scene) {
    let mut guest = scene.guest(SPLIT);
    flood(|| guest.reboot().expect("the switch answers"));
}

fn frame_flood(scene: &Scene) {
    let guest = scene.guest(SPLIT);
    // Which go nowhere: the switch has learned that they are for the port they are from.
    flood(|| {
        send(&guest.pairs()[0], &frame(TARGET, TARGET, 0));
    });
}
