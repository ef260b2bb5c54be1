//! Who finds whom, and again.

use std::os::unix::net::UnixListener;

use super::guest::{FEATURES, Guest, dial};
use super::*;
use crate::port::rig::numbered;

/// Much less than anything that a session waits for.
const AT_ONCE: Duration = Duration::from_millis(500);

/// The frontend's end of the next connection to its socket.
fn accept(listener: &UnixListener) -> UnixStream {
    let line = listener.accept().unwrap().0;
    line.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    line
}

fn flows(bench: &mut Bench, line: UnixStream) -> Guest {
    let mut guest = Guest::up(line, FEATURES);
    bench.attach(1);
    guest.send(&numbered(7, 60));
    assert_eq!(bench.rx(), numbered(7, 60));
    guest
}

#[test]
fn a_server_serves_one_frontend_after_another() {
    let mut bench = Bench::new(Role::Server);
    let first = dial(&bench.path);
    let first = flows(&mut bench, first);
    // The second waits for the first to leave.
    let second = dial(&bench.path);
    drop(first);
    bench.attach(0);
    drop(flows(&mut bench, second));
    wait("it to notice", || (!bench.port.status().connected).then_some(()));
    let status = bench.port.status();
    assert_eq!((status.connections, status.resets, status.last_error), (2, 0, None));
    let path = bench.path.clone();
    drop(bench);
    assert!(!path.exists());
}

#[test]
fn a_client_finds_its_frontend_and_finds_it_again() {
    let mut bench = Bench::new(Role::Client);
    wait("it to try", || bench.port.status().last_error.filter(|error| error.contains("No such file")));
    let mut connections = 0;
    let took = quickest(|| {
        let listener = UnixListener::bind(&bench.path).unwrap();
        let began = Instant::now();
        let guest = flows(&mut bench, accept(&listener));
        let took = began.elapsed();
        connections += 1;
        let status = bench.port.status();
        assert_eq!((status.connections, status.resets, status.last_error), (connections, 0, None));
        drop((listener, guest));
        std::fs::remove_file(&bench.path).unwrap();
        bench.attach(0);
        took
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    let listener = UnixListener::bind(&bench.path).unwrap();
    let guest = flows(&mut bench, accept(&listener));
    drop(bench.port);
    assert!(bench.path.exists(), "not ours");
    drop(guest);
}

#[test]
fn a_frontend_goes_on_with_the_next_switch() {
    let mut bench = Bench::new(Role::Client);
    let listener = UnixListener::bind(&bench.path).unwrap();
    let mut guest = flows(&mut bench, accept(&listener));
    bench.port = open(&bench.path, Role::Client);
    guest.is_left();
    flows(&mut bench, accept(&listener));
}

#[test]
fn a_port_that_is_dropped_is_gone_at_once() {
    for role in [Role::Client, Role::Server] {
        let took = quickest(|| dropped(Bench::new(role).port));
        assert!(took < AT_ONCE, "{role:?} {took:?}");
    }
    let took = quickest(|| {
        let mut bench = Bench::new(Role::Server);
        let line = dial(&bench.path);
        let mut guest = flows(&mut bench, line);
        let took = dropped(bench.port);
        guest.is_left();
        // The queues outlive it, and are of no use.
        guest.send(&numbered(0, 60));
        assert!(rig::receive(&mut bench.queues[0], &mut bench.frames, |_| true).is_none());
        took
    });
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let request = |pairs| Request {
        name: "vm".into(),
        path: dir.path().join("no/such"),
        role: Role::Server,
        pairs,
        mtu: 1500,
    };
    let error = |pairs| VhostUser::start(request(pairs), Box::new(|| {})).err().unwrap().to_string();
    assert!(error(0).starts_with("0 queue pairs"));
    assert!(error(17).starts_with("17 queue pairs"));
    assert!(error(1).contains("no/such: "), "{}", error(1));
}

#[test]
fn whoever_waits_for_changes_is_told_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm");
    let (tell, told) = std::sync::mpsc::channel();
    let request = Request { name: "vm".into(), path: path.clone(), role: Role::Server, pairs: 1, mtu: 1500 };
    let port = VhostUser::start(request, Box::new(move || tell.send(()).unwrap_or_default())).unwrap();
    let wait_until = |wanted: &dyn Fn(&Status) -> bool| {
        while !wanted(&port.status()) {
            told.recv_timeout(Duration::from_secs(10)).expect("to be told");
        }
    };
    let guest = Guest::up(dial(&path), FEATURES);
    wait_until(&|status| status.pairs == 1);
    drop(guest);
    wait_until(&|status| !status.connected && status.pairs == 0);
}
