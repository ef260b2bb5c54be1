//! The driver's side against a device that others wrote: DPDK's testpmd with a vhost port (`net_vhost`), which sends each frame back.
//! Ignored unless asked for, since it takes a DPDK: `cargo test -p dataplane --test dpdk_driver -- --ignored`.

use std::collections::VecDeque;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dataplane::virtio::driver::Form;
use dataplane::virtio::driver::frontend::{Frontend, Wish};
use dataplane::virtio::driver::header::Header;
use dataplane::virtio::driver::memory::{Layout, Region, SharedMemory};
use dataplane::virtio::driver::pair::{Chains, Pair, PairShape};
use dataplane::virtio::driver::user::lock;
use dataplane::virtio::features::Features;
use encap::field::MacAddr;
use vhost::vhost_user::VhostUserProtocolFeatures;

/// testpmd, stopped when dropped.
struct Testpmd(Child);

impl Testpmd {
    fn start(path: &Path, options: &str) -> Testpmd {
        let vdev = format!("net_vhost0,iface={},queues=2{options}", path.display());
        let prefix = format!("--file-prefix=driver-{}", path.display().to_string().replace('/', "-"));
        let arguments = ["-l", "0,1", &prefix, "--no-pci", "--no-huge", "-m", "256", "--vdev", &vdev];
        let forward = ["--forward-mode=io", "--auto-start", "--total-num-mbufs=4096", "--rxq=2", "--txq=2"];
        let mut command = Command::new("dpdk-testpmd");
        command.args(arguments).args(["--no-telemetry", "--"]).args(forward).args(["--stats-period=1"]);
        let log = std::fs::File::create(path.with_extension("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Testpmd(command.spawn().expect("DPDK is installed"))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn wish(extra: Features, shape: impl FnOnce(&mut PairShape)) -> Wish {
    let base = Features::VERSION_1 | Features::PROTOCOL_FEATURES | Features::MQ | Features::CSUM;
    let features = base | extra;
    let mut pair = PairShape::plain(256, features);
    shape(&mut pair);
    let memory = SharedMemory::of_len(16 << 20).unwrap();
    Wish { features, protocol: VhostUserProtocolFeatures::all(), pairs: 2, shape: pair, memory }
}

fn frame(serial: u32, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|n| (n as u32).wrapping_mul(serial | 1) as u8).collect();
    bytes[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes[14..18].copy_from_slice(&serial.to_be_bytes());
    bytes
}

/// Sends so many frames by the pair, at most a few at a time, and compares what comes back.
fn echo(pair: &mut Pair, count: u32, longest: usize) {
    let (mut sent, mut back, mut flying) = (0, 0, VecDeque::new());
    wait("all frames", || {
        while sent < count && flying.len() < 8 {
            let bytes = frame(sent, 60 + (sent as usize * 37) % (longest - 60));
            if !pair.send(&Header::default(), &bytes) {
                break;
            }
            flying.push_back(bytes);
            sent += 1;
        }
        pair.flush();
        while let Some(received) = pair.receive() {
            assert!(received.bytes == flying.pop_front().unwrap(), "frame {back}");
            back += 1;
        }
        (back == count).then_some(())
    });
}

fn check(extra: Features, shape: impl FnOnce(&mut PairShape), longest: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let testpmd = Testpmd::start(&path, "");
    let stream = wait("testpmd", || UnixStream::connect(&path).ok());
    let mut frontend = Frontend::over(stream, wish(extra, shape)).unwrap();
    eprintln!("{} {:?}", frontend.agreed().features, frontend.agreed().protocol);
    assert!(frontend.agreed().features.has(extra));
    // The first frames are lost while testpmd starts its port.
    for pair in 0..2 {
        let mut pair = lock(&frontend.pairs()[pair]);
        settle(&mut pair);
        echo(&mut pair, 20_000, longest);
    }
    // DPDK says nothing of the used half of a packed ring's base.
    let bases = frontend.stop_pair(0).unwrap();
    let pair = lock(&frontend.pairs()[0]);
    assert_eq!(bases, [&pair.receive, &pair.transmit].map(|queue| queue.ring.base() & 0xffff));
    drop(testpmd);
}

#[test]
#[ignore = "takes a DPDK"]
fn split() {
    check(Features::MRG_RXBUF, |_| {}, 1500);
}

#[test]
#[ignore = "takes a DPDK"]
fn split_with_everything() {
    check(
        Features::EVENT_IDX | Features::INDIRECT_DESC | Features::MRG_RXBUF,
        |shape| {
            shape.ring.table = 8;
            shape.transmit = Chains { cuts: vec![5, 30, 3], form: Form::Indirect, ..Chains::of(4096) };
            shape.receive = Chains { cuts: vec![12, 100], ..Chains::of(300) };
        },
        1500,
    );
}

#[test]
#[ignore = "takes a DPDK"]
fn packed() {
    check(Features::RING_PACKED | Features::MRG_RXBUF, |_| {}, 1500);
}

#[test]
#[ignore = "takes a DPDK"]
fn packed_with_everything() {
    check(
        Features::RING_PACKED | Features::EVENT_IDX | Features::INDIRECT_DESC | Features::MRG_RXBUF,
        |shape| {
            shape.ring.table = 8;
            shape.transmit = Chains { cuts: vec![12], form: Form::Indirect, ..Chains::of(4096) };
            shape.receive = Chains { cuts: vec![12, 100], ..Chains::of(300) };
        },
        1500,
    );
}

#[test]
#[ignore = "takes a DPDK"]
fn in_order() {
    check(Features::IN_ORDER | Features::EVENT_IDX, |_| {}, 1500);
    check(Features::IN_ORDER | Features::RING_PACKED, |_| {}, 1500);
}

/// Kills testpmd twice, and goes on with the rings as they are.
fn killed(extra: Features) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let accept = || {
        let stream = wait("testpmd", || listener.accept().ok()).0;
        stream.set_nonblocking(false).unwrap();
        stream
    };
    let mut testpmd = Testpmd::start(&path, ",client=1");
    let mut frontend = Frontend::over(accept(), wish(extra, |_| {})).unwrap();
    for _ in 0..2 {
        for pair in 0..2 {
            let mut pair = lock(&frontend.pairs()[pair]);
            wait("the first frame", || {
                let _ = pair.send(&Header::default(), &frame(0, 60));
                pair.flush();
                pair.receive()
            });
        }
        drop(testpmd);
        testpmd = Testpmd::start(&path, ",client=1");
        frontend.reconnect(accept()).unwrap();
    }
}

#[test]
#[ignore = "takes a DPDK"]
fn a_backend_that_was_killed_and_came_back() {
    killed(Features::MRG_RXBUF);
    killed(Features::MRG_RXBUF | Features::RING_PACKED);
}

/// Waits until frames come back, and until none does any more.
fn settle(pair: &mut Pair) {
    wait("the first frame", || {
        let _ = pair.send(&Header::default(), &frame(0, 60));
        pair.flush();
        pair.receive()
    });
    let mut quiet = Instant::now();
    wait("silence", || {
        if pair.receive().is_some() {
            quiet = Instant::now();
        }
        (quiet.elapsed() > Duration::from_millis(300)).then_some(())
    });
}

#[test]
#[ignore = "takes a DPDK"]
fn it_migrates_grows_and_reboots() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let _testpmd = Testpmd::start(&path, "");
    let stream = wait("testpmd", || UnixStream::connect(&path).ok());
    let mut frontend = Frontend::over(stream, wish(Features::MRG_RXBUF, |_| {})).unwrap();
    settle(&mut lock(&frontend.pairs()[0]));
    frontend.log().unwrap();
    echo(&mut lock(&frontend.pairs()[0]), 1000, 1500);
    let dirty = frontend.dirty().unwrap().take();
    let used = lock(&frontend.pairs()[0]).receive.ring.places().device;
    assert!(dirty.len() > 50 && dirty.contains(&(used & !0xfff)), "{used:#x} {dirty:x?}");
    frontend.end_log().unwrap();
    frontend.send_rarp(MacAddr([2, 0, 0, 0, 0, 1])).unwrap();
    frontend.set_mtu(1500).unwrap();
    let region = Region::new(Layout { guest: 8 << 30, len: 1 << 20, offset: 0 }).unwrap();
    frontend.add_region(region).unwrap();
    settle(&mut lock(&frontend.pairs()[0]));
    frontend.remove_region(1).unwrap();
    settle(&mut lock(&frontend.pairs()[0]));
    for _ in 0..2 {
        frontend.reboot().unwrap();
        settle(&mut lock(&frontend.pairs()[0]));
        echo(&mut lock(&frontend.pairs()[0]), 1000, 1500);
    }
}
