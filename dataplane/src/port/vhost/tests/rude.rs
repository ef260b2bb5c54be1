//! Frontends and guests that break the rules.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use super::conversation::{MESSAGES, WINDOW};
use super::guest::{FEATURES, Guest, dial};
use super::*;
use crate::port::rig::numbered;
use crate::virtio::driver::{Buffer, Form};
use crate::virtio::features::Features;

/// What a session says when it is told these bytes and then nothing more.
fn told(bytes: &[u8]) -> Result<(), String> {
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    theirs.write_all(bytes).unwrap();
    converse(&ours, Duration::from_millis(50))
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = [request, flags, payload.len() as u32].map(u32::to_le_bytes).concat();
    [&header, payload].concat()
}

#[test]
fn garbage_ends_the_session_and_says_why() {
    let reasons = [
        (message(1, 1, &[])[..7].to_vec(), "in the middle of a message"),
        (message(9, 1, &[0; 40])[..30].to_vec(), "in the middle of a message"),
        ([1, 1, 5000].map(u32::to_le_bytes).concat(), "message of 5000 bytes"),
        (vec![0xff; 100], "message of 4294967295 bytes"),
        (message(0, 1, &[]), "message 0: not offered"),
        (message(99, 1, &[]), "message 99: not offered"),
        (message(33, 1, &[]), "GPU_SET_SOCKET: not offered"),
        (message(1, 2, &[]), "GET_FEATURES: not a request of version 1"),
        (message(1, 1 | 4, &[]), "GET_FEATURES: not a request of version 1"),
        (message(1, 1 | 1 << 31, &[]), "GET_FEATURES: not a request of version 1"),
        (message(1, 1, &[0; 3]), "GET_FEATURES: "),
        (message(5, 1, &[0; 8]), "SET_MEM_TABLE: "),
        (message(2, 1, &u64::MAX.to_le_bytes()), "SET_FEATURES: features that were not offered: "),
        (message(16, 1, &u64::MAX.to_le_bytes()), "SET_PROTOCOL_FEATURES: "),
        (message(8, 1, &[200, 0, 0, 0, 64, 0, 0, 0]), "SET_VRING_NUM: ring 200 of a device with 32"),
        (message(8, 1, &[0, 0, 0, 0, 0, 0, 1, 0]), "SET_VRING_NUM: ring of 65536 entries"),
        (message(18, 1, &[0, 0, 0, 0, 2, 0, 0, 0]), "SET_VRING_ENABLE: "),
        (message(18, 1, &[0; 4]), "SET_VRING_ENABLE: "),
        (message(18, 1, &[0xff; 8]), "SET_VRING_ENABLE: "),
        (message(12, 1, &[0; 8]), "SET_VRING_KICK: "),
        (message(31, 1, &[0; 24]), "GET_INFLIGHT_FD: "),
    ];
    for (bytes, reason) in reasons {
        let said = told(&bytes).unwrap_err();
        assert!(said.contains(reason), "{bytes:?}: {said}");
    }
}

#[test]
fn whoever_leaves_between_messages_has_done_nothing_wrong() {
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    theirs.write_all(&message(1, 1, &[])).unwrap();
    theirs.write_all(&message(3, 1, &[])).unwrap();
    drop(theirs);
    assert_eq!(converse(&ours, Duration::from_millis(50)), Ok(()));
}

#[test]
fn whoever_talks_without_end_has_to_wait() {
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    let began = Instant::now();
    let session = std::thread::spawn(move || converse(&ours, Duration::from_millis(50)));
    (0..MESSAGES).for_each(|_| theirs.write_all(&message(3, 1, &[])).unwrap());
    theirs.write_all(&message(1, 1, &[])).unwrap();
    theirs.read_exact(&mut [0; 20]).unwrap();
    assert!(began.elapsed() > WINDOW / 2, "{:?}", began.elapsed());
    drop(theirs);
    assert_eq!(session.join().unwrap(), Ok(()));
}

#[test]
fn whoever_reads_no_answers_is_left() {
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    let session = std::thread::spawn(move || converse(&ours, Duration::from_millis(50)));
    let asks = message(1, 1, &[]);
    while theirs.write_all(&asks).is_ok() {}
    assert_eq!(session.join().unwrap(), Err("the frontend does not read".to_owned()));
}

#[test]
fn a_hang_in_the_middle_of_a_message_is_a_reset_and_the_next_frontend_is_served() {
    let mut bench = Bench::new(Role::Server);
    let mut guest = Guest::up(dial(&bench.path), FEATURES);
    bench.attach(1);
    let began = Instant::now();
    guest.line.write_all(&message(1, 1, &[])[..11]).unwrap();
    guest.send(&numbered(0, 60));
    assert_eq!(bench.rx(), numbered(0, 60), "frames go on meanwhile");
    // Who waits for that has ten seconds of patience.
    guest.is_left();
    assert!(began.elapsed() > PATIENCE / 2, "{:?}", began.elapsed());
    assert!(bench.reset().contains("stopped in the middle of a message"));
    assert_eq!((bench.port.status().resets, bench.port.status().pairs), (1, 0));
    let _next = Guest::up(dial(&bench.path), FEATURES);
    bench.attach(1);
}

#[test]
fn a_port_with_a_frontend_that_hangs_can_be_dropped() {
    let took = quickest(|| {
        let mut bench = Bench::new(Role::Server);
        let mut guest = Guest::up(dial(&bench.path), FEATURES);
        bench.attach(1);
        guest.line.write_all(&message(1, 1, &[])[..11]).unwrap();
        dropped(bench.port)
    });
    assert!(took < PATIENCE / 2, "{took:?}");
}

#[test]
fn a_guest_that_breaks_its_ring_is_reset_and_told() {
    let mut bench = Bench::new(Role::Server);
    let mut guest = Guest::up(dial(&bench.path), FEATURES);
    bench.attach(1);
    guest.rings[1].add(&[Buffer::read(0xdead_0000, 100)], Form::Direct).unwrap();
    let began = Instant::now();
    guest.rings[1].publish();
    assert!(rig::receive(&mut bench.queues[0], &mut bench.frames, |_| true).is_none());
    let reason = bench.reset();
    assert!(reason.contains("queue pair 0: ") && reason.contains("0xdead0000"), "{reason}");
    assert_eq!(guest.errors[1].read().unwrap(), 1);
    guest.is_left();
    assert!(!bench.tx(&numbered(0, 60)));
    let mut next = Guest::up(dial(&bench.path), FEATURES);
    assert!(began.elapsed() > Duration::from_millis(500), "not at once: {:?}", began.elapsed());
    bench.attach(1);
    next.send(&numbered(1, 60));
    assert_eq!(bench.rx(), numbered(1, 60));
    assert_eq!((bench.port.status().connections, bench.port.status().resets), (2, 1));
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut bench = Bench::new(Role::Server);
    let mut guest = Guest::up(dial(&bench.path), FEATURES);
    bench.attach(1);
    assert!(guest.frontend.set_features((FEATURES | Features::MAC).0).is_err());
    assert!(guest.frontend.set_vring_num(9, 64).is_err());
    let regions: Vec<_> = guest.memory.regions().iter().map(|region| guest::info(region)).collect();
    let part = VhostUserMemoryRegionInfo {
        memory_size: regions[0].memory_size / 2,
        ..guest::info(&guest.memory.regions()[0])
    };
    assert!(guest.frontend.add_mem_region(&part).is_err(), "it overlaps another");
    guest.say(99, 0);
    assert!(!guest.was_done());
    guest.send(&numbered(1, 60));
    assert_eq!(bench.rx(), numbered(1, 60));
    assert_eq!(bench.port.status().resets, 0);
}

#[test]
fn a_descriptor_that_is_no_eventfd_is_not_written_to() {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let fds = vec![writer.as_fd().try_clone_to_owned().unwrap()];
    let mut kick = inbox::Message { bytes: message(12, 1, &[0; 8]), fds };
    inbox::send(&theirs, &mut kick).unwrap();
    let said = converse(&ours, Duration::from_millis(50)).unwrap_err();
    assert_eq!(said, "SET_VRING_KICK: a descriptor for signals that is no eventfd");
}

#[test]
fn more_descriptors_than_any_message_has_are_closed() {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let fds = (0..40).map(|_| writer.try_clone().unwrap()).collect();
    inbox::send(&theirs, &mut inbox::Message { bytes: message(5, 1, &[0; 8]), fds }).unwrap();
    drop(writer);
    let said = converse(&ours, Duration::from_millis(50)).unwrap_err();
    assert_eq!(said, "message with 40 descriptors");
    let mut end = [0];
    assert_eq!(nix::unistd::read(&reader, &mut end), Ok(0), "nobody has the other end any more");
}
