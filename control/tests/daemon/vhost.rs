//! Ports for VMs: they wait, come up with a guest's driver, go down with it, and leave the others alone.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use ::vhost::vhost_user::message::VhostUserProtocolFeatures;
use dataplane::virtio::driver::frontend::{Frontend, Wish};
use dataplane::virtio::driver::header::Header;
use dataplane::virtio::driver::memory::SharedMemory;
use dataplane::virtio::driver::pair::PairShape;
use dataplane::virtio::features::Features;
use serde_json::{Value, json};

use super::*;

/// A bridge with two ports whose sockets we make, and an internal one.
const VMS: &str = r#"
[[bridge]]
name = "br0"
port = [
  { name = "vm0", type = "dpdkvhostuser", queues = 4 },
  { name = "vm1", type = "dpdkvhostuser", mtu = 1400 },
  { name = "host0", type = "internal" },
]
"#;

impl Rig {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn port(&self, name: &str) -> Value {
        self.call(&format!("sluice/port/show {name}"))[0].take()
    }

    fn is(&self, port: &str, state: &str) {
        eventually(&format!("{port} is {state}: {}", self.port(port)), || self.state(port) == state);
    }

    /// Why a port is down.
    fn waits(&self, port: &str, reason: &str) {
        let error = || self.port(port)["error"].as_str().unwrap_or_default().to_owned();
        eventually(&format!("{port} waits: {reason}"), || error().contains(reason));
    }
}

fn wish(pairs: u16) -> Wish {
    let features = Features(u64::MAX).without(Features::LOG_ALL | Features::RING_PACKED);
    let memory = SharedMemory::of_len(64 << 20).unwrap();
    Wish {
        features,
        protocol: VhostUserProtocolFeatures::all(),
        pairs,
        shape: PairShape::plain(256, features),
        memory,
    }
}

fn guest(socket: &Path, pairs: u16) -> Frontend {
    Frontend::connect(socket, wish(pairs)).unwrap()
}

/// A broadcast by station `n`.
fn broadcast(n: u8) -> Vec<u8> {
    let mut frame = [vec![0xff; 6], vec![2, 0, 0, 0, 0, n], vec![0x88, 0xb5]].concat();
    frame.resize(60, n);
    frame
}

fn send(guest: &Frontend, frame: &[u8]) {
    let mut pair = guest.pairs()[0].lock().unwrap();
    let header = Header { offload: [0; 10], buffers: 0 };
    assert!(pair.send(&header, frame));
    pair.flush();
}

/// Waits for a frame like this one; others may come before it.
fn receive(guest: &Frontend, frame: &[u8]) {
    eventually("the frame arrives", || {
        let mut pair = guest.pairs()[0].lock().unwrap();
        let found = std::iter::from_fn(|| pair.receive()).any(|received| received.bytes == frame);
        pair.refill();
        pair.flush();
        found
    });
}

#[test]
fn a_port_waits_comes_up_with_its_guest_and_goes_down_with_it() {
    in_namespace(|| {
        let rig = Rig::start(VMS);
        assert_eq!(rig.state("vm0"), "down");
        rig.waits("vm0", "waiting for a VM to connect to ");
        let stream = UnixStream::connect(rig.path("vm0")).unwrap();
        rig.waits("vm0", "waiting for the guest's driver");
        drop(stream);
        rig.waits("vm0", "waiting for a VM to connect to ");
        for pairs in [1, 4, 2] {
            let vm = guest(&rig.path("vm0"), pairs);
            rig.is("vm0", "up");
            eventually("all pairs", || rig.port("vm0")["queues"] == pairs);
            let port = rig.port("vm0");
            assert_eq!(
                (&port["obtained"], &port["vhost"]["connected"], &port["vhost"]["role"]),
                (&json!("vhost-user split"), &json!(true), &json!("server"))
            );
            assert_eq!(port["vhost"]["rings"], json!(vec![256; usize::from(pairs) * 2]), "{port}");
            assert_eq!(port["vhost"]["memory"], 64 << 20);
            let has =
                |list: &str, feature: &str| port["vhost"][list].as_array().unwrap().contains(&json!(feature));
            assert!(has("features", "VERSION_1") && has("protocol_features", "MQ"), "{port}");
            drop(vm);
            rig.is("vm0", "down");
        }
        let port = rig.port("vm0");
        assert_eq!(
            (&port["vhost"]["connections"], &port["vhost"]["resets"]),
            (&json!(4), &json!(0)),
            "{port}"
        );
        assert_eq!((rig.state("vm1"), rig.state("host0")), ("down".to_owned(), "up".to_owned()));
    });
}

#[test]
fn stations_of_a_guest_that_went_are_looked_for_anew() {
    in_namespace(|| {
        let rig = Rig::start(VMS);
        let known = |mac: &str| {
            let fdb = rig.call("sluice/fdb/show br0");
            fdb.as_array().unwrap().iter().any(|entry| entry["mac"] == mac)
        };
        let (vm0, vm1) = (guest(&rig.path("vm0"), 1), guest(&rig.path("vm1"), 1));
        rig.is("vm0", "up");
        rig.is("vm1", "up");
        send(&vm0, &broadcast(1));
        receive(&vm1, &broadcast(1));
        send(&vm1, &broadcast(2));
        receive(&vm0, &broadcast(2));
        assert!(known("02:00:00:00:00:01") && known("02:00:00:00:00:02"));
        drop(vm1);
        rig.is("vm1", "down");
        assert!(known("02:00:00:00:00:01") && !known("02:00:00:00:00:02"));
        // The other guest saw nothing of it, and the next is served as the first was.
        let vm1 = guest(&rig.path("vm1"), 1);
        rig.is("vm1", "up");
        send(&vm0, &broadcast(3));
        receive(&vm1, &broadcast(3));
        assert_eq!(rig.port("vm0")["vhost"]["connections"], 1);
        assert_eq!(rig.call("sluice/ledger")["balances"], true);
    });
}

#[test]
fn queue_pairs_are_placed_as_queues_are() {
    in_namespace(|| {
        let rig = Rig::start(VMS);
        let core = rig.call("sluice/poller/show")[0]["core"].clone();
        rig.call(&format!("sluice/port/set vm0 rxq-affinity=1:{core}"));
        let error = rig.try_call(&format!("sluice/poller/place vm0 0 {core}")).unwrap_err();
        assert!(error.contains("vm0"), "{error}");
        let vm0 = guest(&rig.path("vm0"), 2);
        eventually("two pairs", || rig.port("vm0")["queues"] == 2);
        let queues = rig.call("sluice/poller/show")[0]["queues"].clone();
        let of_vm0: Vec<_> =
            queues.as_array().unwrap().iter().filter(|queue| queue["port"] == "vm0").collect();
        assert_eq!(of_vm0.len(), 2, "{queues}");
        rig.call(&format!("sluice/poller/place vm0 1 {core}"));
        // The socket and the guest's connection do not depend on where queues are served.
        rig.call("sluice/port/set vm0 rxq-affinity=");
        rig.is("vm0", "up");
        assert_eq!(rig.port("vm0")["vhost"]["connections"], 1);
        send(&vm0, &broadcast(1));
        eventually("the frame is counted", || rig.port("vm0")["rx"]["frames"] == 1);
    });
}

#[test]
fn what_a_port_is_made_of_changes_its_socket_and_no_other() {
    in_namespace(|| {
        let rig = Rig::start(VMS);
        let vm1 = guest(&rig.path("vm1"), 1);
        rig.is("vm1", "up");
        let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(rig.path(name)).unwrap());
        let (before, other) = (inode("vm0"), inode("vm1"));
        rig.call("sluice/port/set vm0 tag=5");
        assert_eq!(inode("vm0"), before, "VLANs are no matter of the socket's");
        assert_eq!(rig.call("sluice/port/set vm0 queues=2")["reopened"], json!(["vm0"]));
        UnixStream::connect(rig.path("vm0")).unwrap();
        rig.call("sluice/port/del vm0");
        assert!(!rig.path("vm0").exists());
        assert_eq!((rig.state("vm1"), inode("vm1")), ("up".to_owned(), other));
        let moved = tempfile::tempdir_in(rig.dir.path()).unwrap();
        let text = rig.text();
        fs::write(rig.file(), format!("[switch]\nvhost-sock-dir = {:?}\n{text}", moved.path())).unwrap();
        let report = rig.call("sluice/apply");
        assert_eq!(
            (&report["reopened"], &report["needs_restart"]),
            (&json!(["vm1"]), &json!([])),
            "{report}"
        );
        assert!(moved.path().join("vm1").exists() && !rig.path("vm1").exists());
        rig.is("vm1", "down");
        drop(vm1);
    });
}

#[test]
fn a_socket_that_somebody_removes_is_made_anew_and_a_guest_sees_nothing_of_it() {
    in_namespace(|| {
        let rig = Rig::start(VMS);
        let vm1 = guest(&rig.path("vm1"), 1);
        rig.is("vm1", "up");
        fs::remove_file(rig.path("vm0")).unwrap();
        fs::remove_file(rig.path("vm1")).unwrap();
        eventually("a socket", || rig.path("vm0").exists());
        let vm0 = guest(&rig.path("vm0"), 1);
        rig.is("vm0", "up");
        send(&vm1, &broadcast(1));
        receive(&vm0, &broadcast(1));
        assert_eq!(rig.port("vm1")["vhost"]["connections"], 1);
        drop(vm1);
        eventually("a socket", || rig.path("vm1").exists());
        // What somebody else put there stays, and the port says so until it is gone.
        drop(vm0);
        rig.is("vm0", "down");
        let other = UnixListener::bind(rig.path("other")).unwrap();
        fs::rename(rig.path("other"), rig.path("vm0")).unwrap();
        rig.waits("vm0", "another process listens there");
        drop(other);
        eventually("a guest", || Frontend::connect(&rig.path("vm0"), wish(1)).is_ok());
        eventually("no error", || !rig.port("vm0")["error"].to_string().contains("another"));
    });
}

#[test]
fn a_client_finds_its_vm_whenever_it_comes() {
    in_namespace(|| {
        let rig = Rig::start(VMS);
        let (dir, port) = (rig.path("qemu"), "c0");
        let socket = dir.join("net0");
        let add =
            format!("sluice/port/add br0 c0 type=dpdkvhostuserclient vhost-server-path={}", socket.display());
        let report = rig.call(&add);
        assert!(report["troubles"][0]["error"].as_str().unwrap().contains("no such directory"), "{report}");
        rig.waits(port, "no such directory");
        fs::create_dir(&dir).unwrap();
        rig.waits(port, "waiting for a VM to listen at ");
        assert_eq!(rig.call("sluice/apply")["troubles"], json!([]), "to wait is no trouble");
        for _ in 0..2 {
            let listener = UnixListener::bind(&socket).unwrap();
            let vm = Frontend::accept(&listener, wish(2)).unwrap();
            rig.is(port, "up");
            assert_eq!(rig.port(port)["vhost"]["role"], "client");
            send(&vm, &broadcast(1));
            eventually("the frame is counted", || rig.port(port)["rx"]["frames"] != 0);
            drop((vm, listener));
            fs::remove_file(&socket).unwrap();
            rig.is(port, "down");
        }
    });
}

#[test]
fn a_socket_that_cannot_be_made_is_tried_again_and_stops_no_other() {
    in_namespace(|| {
        let rig = Rig::start(VMS);
        fs::write(rig.path("vm2"), "a file").unwrap();
        let report = rig.call("sluice/port/add br0 vm2 type=dpdkvhostuser");
        assert_eq!(report["troubles"][0]["port"], "vm2");
        assert_eq!(rig.state("vm2"), "error");
        let vm0 = guest(&rig.path("vm0"), 1);
        rig.is("vm0", "up");
        fs::remove_file(rig.path("vm2")).unwrap();
        rig.is("vm2", "down");
        drop(guest(&rig.path("vm2"), 1));
        drop(vm0);
    });
}
