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
use super::lab::{Leashed, PATIENCE, eventually};
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

/// How many datagrams may be under way. Of several blasts together that is less than any ring on their way holds (256, of a
/// veth pair with XDP): whoever is kept from its core loses none, however long that takes.
const UNDER_WAY: u64 = 64;
/// How long none is sent while so many are under way, or lost.
const PAUSE: Duration = Duration::from_millis(50);
/// The number of a datagram that comes after all others.
const END: u64 = u64::MAX;

/// What both ends and the test know.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    /// Nothing is to come any more.
    ended: AtomicBool,
    sent: AtomicU64,
    /// Different ones.
    arrived: AtomicU64,
    /// The highest number that arrived, and one.
    reached: AtomicU64,
}

/// Numbered datagrams on their way, until stopped.
pub struct Blast {
    counts: Arc<Counts>,
    threads: Option<(JoinHandle<()>, JoinHandle<Tally>)>,
}

impl Blast {
    /// Sends up to `rate` datagrams a second of `size` bytes (at least 8) from one host to another.
    pub fn start(from: &Host, to: &Host, rate: u32, size: usize) -> Blast {
        let rx = to.ns.run(|| UdpSocket::bind((to.ip, 0)).expect("a UDP socket"));
        setsockopt(&rx, RcvBufForce, &(16 << 20)).expect("a deep receive buffer");
        rx.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let tx = from.ns.run(|| UdpSocket::bind((from.ip, 0)).expect("a UDP socket"));
        tx.connect(rx.local_addr().expect("its address")).expect("a route");
        let counts = Arc::<Counts>::default();
        let sender = std::thread::spawn({
            let counts = counts.clone();
            move || {
                send_numbered(&tx, (rate, size), &counts);
                send_end(&tx, size, &counts);
            }
        });
        let receiver = std::thread::spawn({
            let counts = counts.clone();
            move || receive_numbered(&rx, &counts)
        });
        Blast { counts, threads: Some((sender, receiver)) }
    }

    /// How many were sent. The next may be on its way already.
    pub fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// Waits until `n` more have arrived than had when called.
    pub fn await_more(&self, n: u64) {
        let arrived = || self.counts.arrived.load(Ordering::Relaxed);
        let goal = arrived() + n;
        eventually(&format!("{n} more datagrams arrive"), || arrived() >= goal);
    }

    /// Stops sending, waits for the last to arrive, and counts.
    pub fn stop(mut self) -> Tally {
        self.counts.stop.store(true, Ordering::Relaxed);
        let (sender, receiver) = self.threads.take().expect("nobody else takes them");
        sender.join().expect("the sender");
        let tally = receiver.join().expect("the receiver");
        Tally { sent: self.sent(), ..tally }
    }
}

impl Drop for Blast {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        self.counts.ended.store(true, Ordering::Relaxed);
    }
}

fn datagram(number: u64, size: usize) -> Vec<u8> {
    let mut datagram = vec![0; size];
    datagram[..8].copy_from_slice(&number.to_be_bytes());
    datagram
}

fn send_numbered(tx: &UdpSocket, (rate, size): (u32, usize), counts: &Counts) {
    let begun = Instant::now();
    let mut paused = begun;
    while !counts.stop.load(Ordering::Relaxed) {
        let sent = counts.sent.load(Ordering::Relaxed);
        let due = ((begun.elapsed().as_secs_f64() * f64::from(rate)) as u64).saturating_sub(sent);
        let mut room = (counts.reached.load(Ordering::Relaxed) + UNDER_WAY).saturating_sub(sent);
        if room == 0 && paused.elapsed() > PAUSE {
            room = 1;
        }
        // After a pause of the machine, catch up gently: a burst would test its buffers, not the switch.
        for number in sent..sent + due.min(room).min(u64::from(rate) / 200 + 1) {
            paused = Instant::now();
            // A cable that is cut answers with an error: not sent, then.
            if tx.send(&datagram(number, size)).is_err() {
                break;
            }
            counts.sent.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Says that it was the last, until that has arrived: what is not there by then is lost.
fn send_end(tx: &UdpSocket, size: usize, counts: &Counts) {
    let begun = Instant::now();
    while !counts.ended.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
        let _ = tx.send(&datagram(END, size));
        std::thread::sleep(Duration::from_millis(20));
    }
    counts.ended.store(true, Ordering::Relaxed);
}

fn receive_numbered(rx: &UdpSocket, counts: &Counts) -> Tally {
    let mut tally = Tally::default();
    let mut seen = std::collections::HashSet::new();
    let (mut next, mut buffer) = (0, vec![0; 65536]);
    while !counts.ended.load(Ordering::Relaxed) {
        let Ok(len) = rx.recv(&mut buffer) else { continue };
        assert!(len >= 8, "a datagram of {len} bytes that nobody sent");
        let number = u64::from_be_bytes(buffer[..8].try_into().expect("eight bytes"));
        if number == END {
            counts.ended.store(true, Ordering::Relaxed);
            break;
        }
        tally.duplicated += u64::from(!seen.insert(number));
        tally.reordered += u64::from(number < next);
        next = next.max(number + 1);
        counts.arrived.store(seen.len() as u64, Ordering::Relaxed);
        counts.reached.store(next, Ordering::Relaxed);
    }
    tally.received = seen.len() as u64;
    tally
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
    let server = to.ns.run(|| {
        let mut command = Command::new("iperf3");
        command.args(["-s", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("iperf3")
    });
    let server = Leashed(server);
    eventually("iperf3 listens", || !to.ns.sh("ss -Hltn sport = :5201").is_empty());
    let output = from.ns.output(&format!("timeout 60 iperf3 -J -c {} {options}", to.ip));
    drop(server);
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
