//! Traffic that checks itself: numbered datagrams and a stream whose every byte is known.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use serde_json::Value;

use super::host::Host;
use super::lab::{PATIENCE, eventually};
use super::namespace::Namespace;

/// Waits until `from` reaches `to`.
pub fn await_ping(from: &Host, to: Ipv4Addr) {
    eventually(&format!("{} reaches {to}", from.port), || from.reaches(to));
}

/// Asserts that none of three echo requests is answered.
pub fn assert_apart(from: &Host, to: Ipv4Addr) {
    assert!((0..3).all(|_| !from.pings(to)), "{} reaches {to}, and must not", from.port);
}

/// What became of numbered datagrams.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// How many were sent.
    pub sent: u64,
    /// How many different ones arrived.
    pub received: u64,
    /// How many arrived more than once.
    pub duplicated: u64,
    /// How many arrived after a later one.
    pub reordered: u64,
}

impl Tally {
    /// How many never arrived.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// Numbered datagrams on their way, until stopped.
pub struct Blast {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    arrived: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Tally>,
}

impl Blast {
    /// Sends `rate` datagrams a second of `size` bytes (at least 8) from one host to another.
    pub fn start(from: &Host, to: &Host, rate: u32, size: usize) -> Blast {
        let rx = to.ns.run(|| UdpSocket::bind((to.ip, 0)).expect("a UDP socket"));
        setsockopt(&rx, RcvBufForce, &(16 << 20)).expect("a deep receive buffer");
        rx.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let tx = from.ns.run(|| UdpSocket::bind((from.ip, 0)).expect("a UDP socket"));
        tx.connect(rx.local_addr().expect("its address")).expect("a route");
        let (stop, sent, arrived) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let sender = std::thread::spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            move || send_numbered(&tx, rate, size, &stop, &sent)
        });
        let receiver = std::thread::spawn({
            let (stop, sent, arrived) = (stop.clone(), sent.clone(), arrived.clone());
            move || receive_numbered(&rx, &stop, &sent, &arrived)
        });
        Blast { stop, sent, arrived, sender, receiver }
    }

    /// Waits until `n` more have arrived than had when called.
    pub fn await_more(&self, n: u64) {
        let goal = self.arrived.load(Ordering::Relaxed) + n;
        eventually(&format!("{n} more datagrams arrive"), || self.arrived.load(Ordering::Relaxed) >= goal);
    }

    /// Stops sending, waits for the last to arrive, and counts.
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().expect("the sender");
        let tally = self.receiver.join().expect("the receiver");
        Tally { sent: self.sent.load(Ordering::Relaxed), ..tally }
    }
}

fn send_numbered(tx: &UdpSocket, rate: u32, size: usize, stop: &AtomicBool, sent: &AtomicU64) {
    let begun = Instant::now();
    let mut datagram = vec![0; size];
    while !stop.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        // After a pause of the machine, catch up gently: a burst would test its buffers, not the switch.
        for _ in 0..due.saturating_sub(sent.load(Ordering::Relaxed)).min(u64::from(rate) / 200 + 1) {
            datagram[..8].copy_from_slice(&sent.load(Ordering::Relaxed).to_be_bytes());
            // A cable that is cut answers with an error: not sent, then.
            if tx.send(&datagram).is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn receive_numbered(rx: &UdpSocket, stop: &AtomicBool, sent: &AtomicU64, arrived: &AtomicU64) -> Tally {
    let mut tally = Tally::default();
    let mut seen = std::collections::HashSet::new();
    let (mut next, mut buffer) = (0, vec![0; 65536]);
    loop {
        match rx.recv(&mut buffer) {
            Ok(len) => {
                assert!(len >= 8, "a datagram of {len} bytes that nobody sent");
                let number = u64::from_be_bytes(buffer[..8].try_into().expect("eight bytes"));
                tally.duplicated += u64::from(!seen.insert(number));
                tally.reordered += u64::from(number < next);
                next = next.max(number + 1);
                arrived.store(seen.len() as u64, Ordering::Relaxed);
            }
            // Half a second of silence after the end: whatever is not here is lost.
            Err(_) if stop.load(Ordering::Relaxed) && silent(rx, &mut buffer, sent, seen.len() as u64) => {
                break;
            }
            Err(_) => {}
        }
    }
    tally.received = seen.len() as u64;
    tally
}

/// Is everything here, or does nothing more come?
fn silent(rx: &UdpSocket, buffer: &mut [u8], sent: &AtomicU64, seen: u64) -> bool {
    seen == sent.load(Ordering::Relaxed) || (0..5).all(|_| rx.peek(buffer).is_err())
}

/// Sends `bytes` bytes over TCP and checks every one of them; how long it took.
pub fn tcp(from: &Host, to: &Host, bytes: usize) -> Duration {
    tcp_between(&from.ns, &to.ns, to.ip, bytes)
}

/// As [`tcp`], to an address in a namespace.
pub fn tcp_between(from: &Namespace, to: &Namespace, ip: Ipv4Addr, bytes: usize) -> Duration {
    let listener = to.run(|| TcpListener::bind((ip, 0)).expect("a TCP socket"));
    let address = listener.local_addr().expect("its address");
    let sink = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        check_stream(stream, bytes)
    });
    let begun = Instant::now();
    let mut stream = from
        .run(|| TcpStream::connect_timeout(&address, PATIENCE))
        .unwrap_or_else(|e| panic!("connecting to {address} through the switch: {e}"));
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let mut left = bytes;
    for block in pattern() {
        let n = left.min(block.len());
        stream.write_all(&block[..n]).expect("the stream takes the next block");
        left -= n;
        if left == 0 {
            break;
        }
    }
    drop(stream);
    sink.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    begun.elapsed()
}

/// Runs iperf3 from one host to another with more options; its report.
pub fn iperf3(from: &Host, to: &Host, options: &str) -> Value {
    let mut server = to.ns.run(|| {
        let mut command = Command::new("iperf3");
        command.args(["-s", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("iperf3")
    });
    eventually("iperf3 listens", || !to.ns.sh("ss -Hltn sport = :5201").is_empty());
    let output = from.ns.output(&format!("timeout 60 iperf3 -J -c {} {options}", to.ip));
    let _ = server.kill();
    let _ = server.wait();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("iperf3 {options} from {} took a minute, or: {e}", from.port));
    assert!(report.get("error").is_none(), "iperf3 {options}: {}", report["error"]);
    report
}

fn check_stream(mut stream: TcpStream, bytes: usize) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut got = 0;
    for expected in pattern() {
        let n = (bytes - got).min(expected.len());
        let mut block = vec![0; n];
        stream.read_exact(&mut block).unwrap_or_else(|e| panic!("after {got} of {bytes} bytes: {e}"));
        assert!(block == expected[..n], "a byte was changed between {got} and {}", got + n);
        got += n;
        if got == bytes {
            break;
        }
    }
    assert_eq!(stream.read(&mut [0]).expect("the end of the stream"), 0, "more bytes than were sent");
}

/// Endless blocks of 64 KiB, each different (xorshift64*).
fn pattern() -> impl Iterator<Item = Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        let words = std::iter::repeat_with(|| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
        });
        words.take(8192).flatten().collect()
    })
}
