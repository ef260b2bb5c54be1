//! What the tests of every port kind share: network namespaces, the far side of the cable, and the contract
//! of [`Port`] as a test.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use encap::field::MacAddr;
use encap::offload::{Csum, Gso, Offload};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::memory::Delivered;
use super::netdev::Netdev;
use super::{Port, PortError, Readiness, Sent};
use crate::batch::{BATCH, Batch};
use crate::frame::{FrameCache, FramePool, Memory, PoolConfig};

/// The EtherType of our own frames (IEEE 802 local experimental 1): the kernel's own chatter has others.
pub(crate) const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// Runs a test in a network namespace of its own. Who is not root gets a user namespace too; where those are
/// forbidden, the test is skipped, and says so.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    if !geteuid().is_root() {
        return in_user_namespace();
    }
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        // No neighbour discovery of the kernel's own between our frames.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
            .expect("IPv6 can be switched off");
        ip("link set lo up");
        test();
    };
    let result = std::thread::scope(|scope| scope.spawn(run).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A process with threads cannot make a user namespace for itself: run this one test in a process that can.
fn in_user_namespace() {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]);
        command
    };
    let thread = std::thread::current();
    let name = thread.name().filter(|&name| name != "main");
    let (Some(name), true) = (name, unshare().arg("true").status().is_ok_and(|s| s.success())) else {
        eprintln!("skipped: neither root nor user namespaces");
        return;
    };
    let program = std::env::current_exe().expect("the test program has a path");
    let status = unshare().arg(program).args(["--exact", name, "--nocapture"]).status();
    assert!(status.expect("unshare runs").success(), "{name} failed in a user namespace");
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A pool for one test, and a stock from it.
pub(crate) fn pool() -> (Arc<FramePool>, FrameCache) {
    let pool = FramePool::new(PoolConfig { small: 2048, big: 64, memory: Memory::Plain }).unwrap();
    (pool.clone(), FrameCache::new(pool))
}

/// Asks until there is an answer; fails after ten seconds.
pub(crate) fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A frame of `len` bytes (at least 16) with our EtherType and a number.
pub(crate) fn numbered(number: u16, len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len];
    frame[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&EXPERIMENTAL);
    frame[14..16].copy_from_slice(&number.to_be_bytes());
    frame
}

/// Receives one frame that `wanted` says yes to, and copies it out; frees all others.
pub(crate) fn receive(
    port: &mut dyn Port,
    frames: &mut FrameCache,
    wanted: impl Fn(&[u8]) -> bool,
) -> Option<Delivered> {
    let mut batch = Batch::new();
    port.rx(frames, &mut batch).unwrap();
    let mut found = None;
    for frame in batch.drain(..) {
        if found.is_none() && wanted(frame.bytes()) {
            found = Some(Delivered { bytes: frame.bytes().to_vec(), offload: frame.offload });
        }
        frames.free(frame);
    }
    found
}

/// Sends one frame, which the port must take.
pub(crate) fn send(port: &mut dyn Port, frames: &mut FrameCache, bytes: &[u8], offload: Offload) {
    let mut frame = frames.from_bytes(bytes).unwrap();
    frame.offload = offload;
    let mut batch = Batch::new();
    batch.push(frame);
    let sent = port.tx(frames, &mut batch).unwrap();
    assert!(batch.is_empty());
    assert_eq!(sent, Sent { frames: 1, bytes: bytes.len() as u64 });
}

/// A socket that sends and receives whole frames on an interface, as tcpdump would.
pub(crate) struct RawSocket(OwnedFd);

impl RawSocket {
    pub(crate) fn open(interface: &str) -> RawSocket {
        let index = Netdev::open(interface).unwrap().index().unwrap();
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just opened and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zero is a sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is one sockaddr_ll of that length.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), len) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        RawSocket(socket)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        self.try_send(frame).unwrap();
    }

    pub(crate) fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the bytes are readable.
        match unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// The next frame that came from the other side, if there is one.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 70_000];
        // SAFETY: the bytes are writable.
        let len = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        bytes.truncate(usize::try_from(len).ok()?);
        Some(bytes)
    }
}

/// The side of a TAP device, which exists and has vnet headers, that programs are on.
pub(crate) fn tap(name: &str) -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = super::netdev::request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    file
}

/// The far side of a port's cable.
pub(crate) trait FarSide {
    fn send(&mut self, frame: &[u8]);
    fn receive(&mut self) -> Option<Vec<u8>>;
}

impl FarSide for RawSocket {
    fn send(&mut self, frame: &[u8]) {
        RawSocket::send(self, frame);
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        RawSocket::receive(self).filter(|frame| frame[12..14] == EXPERIMENTAL)
    }
}

/// The contract of [`Port`], for any kind: nothing when nothing came, order and bytes kept in both
/// directions, full batches left alone, a descriptor that wakes, and every chunk given back.
pub(crate) fn conforms(mut port: impl Port, mut far: impl FarSide, stock: (Arc<FramePool>, FrameCache)) {
    let (pool, mut frames) = stock;
    nothing_comes_of_nothing(&mut port, &mut frames);
    arrives_in_order(&mut port, &mut far, &mut frames);
    leaves_in_order(&mut port, &mut far, &mut frames);
    wakes(&mut port, &mut far, &mut frames);
    port.close(&mut frames);
    drop((port, far, frames));
    wait_for_chunks(&pool);
}

/// Every chunk comes back; some ports close in the background.
pub(crate) fn wait_for_chunks(pool: &FramePool) {
    let all = (pool.config().small as usize, pool.config().big as usize);
    wait("every chunk to come back", || (pool.available() == all).then_some(()));
}

fn nothing_comes_of_nothing(port: &mut dyn Port, frames: &mut FrameCache) {
    assert_eq!(receive(port, frames, |frame| frame[12..14] == EXPERIMENTAL), None);
    let mut empty = Batch::new();
    assert_eq!(port.tx(frames, &mut empty).unwrap(), Sent::default());
}

fn length(number: u16) -> usize {
    [60, 64, 1000, 1514][usize::from(number % 4)]
}

fn arrives_in_order(port: &mut dyn Port, far: &mut dyn FarSide, frames: &mut FrameCache) {
    let mut next = 0;
    while next < 100 {
        let until = next + 20;
        (next..until).for_each(|number| far.send(&numbered(number, length(number))));
        wait("frames that were sent to the port", || {
            // A batch that has a frame already is added to.
            let mut batch: Batch = frames.alloc().into_iter().collect();
            port.rx(frames, &mut batch).unwrap();
            assert!(batch[0].is_empty());
            for frame in batch.drain(..) {
                if !frame.is_empty() && frame.bytes()[12..14] == EXPERIMENTAL {
                    assert_eq!(frame.bytes(), numbered(next, length(next)));
                    assert!(frame.offload.is_none());
                    next += 1;
                }
                frames.free(frame);
            }
            (next == until).then_some(())
        });
    }
    let mut full: Batch = (0..BATCH).map(|_| frames.alloc().unwrap()).collect();
    far.send(&numbered(0, 60));
    port.rx(frames, &mut full).unwrap();
    full.drain(..).for_each(|frame| frames.free(frame));
    wait("the frame that found no room", || receive(port, frames, |frame| frame == numbered(0, 60)));
}

fn leaves_in_order(port: &mut dyn Port, far: &mut dyn FarSide, frames: &mut FrameCache) {
    let mut expected = 0;
    for round in 0..5 {
        let numbers = round * 20..(round + 1) * 20;
        let mut batch: Batch =
            numbers.clone().map(|n| frames.from_bytes(&numbered(n, length(n))).unwrap()).collect();
        let sent = port.tx(frames, &mut batch).unwrap();
        assert!(batch.is_empty());
        let bytes = numbers.map(|n| length(n) as u64).sum();
        assert_eq!(sent, Sent { frames: 20, bytes });
        for _ in 0..20 {
            let got = wait("frames that the port sent", || far.receive());
            assert_eq!(got, numbered(expected, length(expected)));
            expected += 1;
        }
    }
}

/// What to sleep on.
pub(crate) fn descriptor(port: &dyn Port) -> BorrowedFd<'_> {
    match port.readiness() {
        Readiness::Ring(fd) | Readiness::Call(fd) => fd,
        Readiness::Unknown => panic!("the port has no descriptor"),
    }
}

fn wakes(port: &mut dyn Port, far: &mut dyn FarSide, frames: &mut FrameCache) {
    if matches!(port.readiness(), Readiness::Unknown) {
        return;
    }
    while receive(port, frames, |_| true).is_some() {}
    let ready = |port: &dyn Port, timeout: PollTimeout| {
        poll(&mut [PollFd::new(descriptor(port), PollFlags::POLLIN)], timeout).unwrap() == 1
    };
    assert!(!port.arm(), "no reason to be asked");
    assert!(!ready(port, PollTimeout::ZERO), "readable although nothing came");
    far.send(&numbered(7, 60));
    assert!(ready(port, PollTimeout::from(10_000u16)), "not readable although a frame came");
    port.disarm();
    wait("the frame that woke us", || receive(port, frames, |frame| frame == numbered(7, 60)));
}

/// A UDP datagram over IPv4 from 10.0.0.2 to 10.0.0.1 with the checksum left to do, and that offload.
pub(crate) fn udp_with_partial_csum(to: MacAddr, port: u16, payload: &[u8]) -> (Vec<u8>, Offload) {
    let udp_len = 8 + payload.len() as u16;
    let mut frame = to.0.to_vec();
    frame.extend([2, 0, 0, 0, 0, 2, 0x08, 0x00]);
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    let sum = !ones_sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    let [length, port] = [udp_len.to_be_bytes(), port.to_be_bytes()];
    let pseudo = [&ip[12..20], &[0, 17], &length].concat();
    frame.extend([&[0x12, 0x34], &port[..], &length, &ones_sum(&pseudo).to_be_bytes(), payload].concat());
    (frame, Offload { csum: Csum::Partial { start: 34, offset: 6 }, gso: Gso::None })
}

/// The ones' complement sum of 16-bit words.
fn ones_sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded + (folded >> 16)) as u16
}

/// The largest frame of a run that left segmentation to do.
pub(crate) type Longest = (usize, Gso);

/// Two hosts, each a namespace, and a TCP stream of four megabytes from one to the other through two ports
/// that `open` makes on `left` and `right` (to be 10.0.0.1 and 10.0.0.2). The stream arrives whole.
pub(crate) fn tcp_between(open: impl FnMut(&str) -> Box<dyn Port>) -> Longest {
    tcp_carried(&mut pool().1, open)
}

/// As [`tcp_between`], with frames of a certain pool.
pub(crate) fn tcp_carried(frames: &mut FrameCache, mut open: impl FnMut(&str) -> Box<dyn Port>) -> Longest {
    const BYTES: usize = 4 << 20;
    let mut left = open("left");
    ip("address add 10.0.0.1/24 dev left");
    let (listening, go) = std::sync::mpsc::channel::<()>();
    let sender = std::thread::spawn(move || {
        go.recv().unwrap();
        let mut stream = TcpStream::connect("10.0.0.2:5001").unwrap();
        stream.write_all(&pattern(BYTES)).unwrap();
    });
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut right = open("right");
    ip("address add 10.0.0.2/24 dev right");
    let receiver = std::thread::spawn(move || {
        let listener = TcpListener::bind("10.0.0.2:5001").unwrap();
        listening.send(()).unwrap();
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        assert!(bytes == pattern(BYTES), "the stream arrived changed");
    });
    let longest = carry([&mut *left, &mut *right], frames, || !receiver.is_finished());
    receiver.join().unwrap();
    sender.join().unwrap();
    [left, right].iter_mut().for_each(|port| port.close(frames));
    longest
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Carries frames between two ports while there is something to do.
fn carry([a, b]: [&mut dyn Port; 2], frames: &mut FrameCache, busy: impl Fn() -> bool) -> Longest {
    let mut longest = (0, Gso::None);
    let [mut to_a, mut to_b] = [Batch::new(), Batch::new()];
    let start = Instant::now();
    while busy() {
        assert!(start.elapsed() < Duration::from_secs(30), "the ends do not finish");
        a.rx(frames, &mut to_b).unwrap();
        b.rx(frames, &mut to_a).unwrap();
        for frame in to_a.iter().chain(&to_b).filter(|frame| frame.offload.gso != Gso::None) {
            if frame.len() > longest.0 {
                longest = (frame.len(), frame.offload.gso);
            }
        }
        a.tx(frames, &mut to_a).unwrap();
        b.tx(frames, &mut to_b).unwrap();
        std::thread::yield_now();
    }
    to_a.drain(..).chain(to_b.drain(..)).for_each(|frame| frames.free(frame));
    longest
}

/// Sends until the port says that it is gone.
pub(crate) fn goes(port: &mut dyn Port, frames: &mut FrameCache) -> PortError {
    wait("the port to be gone", || {
        let mut batch = Batch::new();
        batch.extend(frames.from_bytes(&numbered(0, 60)));
        let result = port.tx(frames, &mut batch);
        if result.is_err() {
            assert_eq!(batch.len(), 1, "what was not sent stays in the batch");
        }
        batch.drain(..).for_each(|frame| frames.free(frame));
        result.err()
    })
}
