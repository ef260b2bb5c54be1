//! DPDK's testpmd as the guests at the other end of two vhost-user ports: frames of a capture go in by one card, and what
//! comes out of the other is a capture again.
//!
//! Its memory is a memfd, not huge pages, so it needs none. It polls, one core all the time.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::lab::within;
use super::vm::machine::Socket;

/// How long it may take to start, and to do what it is told, on two loaded cores.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a buffer of testpmd's has room for: 2176 bytes, of which 128 stay free in front.
const BUFFER: u16 = 2048;

/// A card of testpmd's: a virtio-user device at a vhost-user port.
#[derive(Debug, Clone)]
pub struct Card {
    /// Whose socket.
    pub socket: Socket,
    /// Descriptors in each ring.
    pub size: u16,
    /// Properties of `net_virtio_user`: `packed_vq=1,mrg_rxbuf=0`.
    pub properties: String,
}

/// What testpmd is to be, apart from its cards.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Queue pairs of each card.
    pub queues: u8,
    /// The longest frame, without FCS.
    pub longest: u16,
}

/// A running testpmd; ends when dropped.
pub struct Testpmd {
    child: Child,
    commands: ChildStdin,
    dir: TempDir,
}

/// Frames and what became of them at one of testpmd's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Received.
    pub rx: u64,
    /// Sent.
    pub tx: u64,
}

impl Testpmd {
    /// Two cards between which nothing is done but to send back by one what came by the other, once it is told to.
    /// They are ports 0 and 1. Returns when it takes commands: then both are connected.
    pub fn mirror(cards: &[Card; 2], shape: Shape) -> Testpmd {
        let vdevs: Vec<String> = cards.iter().enumerate().map(|(i, card)| card.vdev(i, shape)).collect();
        Testpmd::start(&vdevs, shape)
    }

    /// A sender of the frames in `captures`, one for each queue, and a receiver that writes captures: ports 1 and 2.
    pub fn relay(cards: &[Card; 2], shape: Shape, captures: &[PathBuf]) -> Testpmd {
        let dir = TempDir::with_prefix("sluice-test-dpdk-").expect("a directory");
        let (mut source, mut sink) = ("net_pcap0".to_owned(), "net_pcap1".to_owned());
        for (queue, capture) in captures.iter().enumerate() {
            source += &format!(",rx_pcap={}", capture.display());
            sink += &format!(",tx_pcap={}", dir.path().join(format!("out{queue}")).display());
        }
        let [from, to] = [0, 1].map(|i| cards[i].vdev(i, shape));
        Testpmd::start_in(dir, &[source, from, to, sink], shape)
    }

    fn start(vdevs: &[String], shape: Shape) -> Testpmd {
        Testpmd::start_in(TempDir::with_prefix("sluice-test-dpdk-").expect("a directory"), vdevs, shape)
    }

    fn start_in(dir: TempDir, vdevs: &[String], shape: Shape) -> Testpmd {
        // It would keep what it says to itself until it is a page.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd"]);
        command.args(["--lcores", &format!("(0,1)@({})", cores()), "--no-huge", "-m", "256", "--no-pci"]);
        command.args(["--no-telemetry", "--log-level=pmd.net.virtio.init:debug"]);
        // Vectors of 512 bits are used where the processor has them and the card's properties ask.
        command.arg("--force-max-simd-bitwidth=512");
        let prefix = dir.path().file_name().expect("a name").to_str().expect("a plain name");
        command.arg(format!("--file-prefix={prefix}"));
        command.args(vdevs.iter().flat_map(|vdev| ["--vdev", vdev]));
        command.args(["--", "-i", "--nb-cores=1", "--no-mlockall", "--no-lsc-interrupt"]);
        // What is there when it starts to forward is not thrown away: it has read the captures by then.
        command.arg("--no-flush-rx");
        command.args(["--total-num-mbufs=32768", "--rxd=4096", "--forward-mode=io"]);
        command.args([format!("--rxq={}", shape.queues), format!("--txq={}", shape.queues)]);
        command.args([format!("--max-pkt-len={}", shape.longest + 4), "--disable-device-start".into()]);
        let log = File::create(dir.path().join("log")).expect("the log");
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("the log")).stderr(log);
        let mut child = command.spawn().expect("stdbuf, which starts dpdk-testpmd: install dpdk-dev");
        let commands = child.stdin.take().expect("a pipe");
        let mut testpmd = Testpmd { child, commands, dir };
        testpmd.await_said("testpmd>");
        let cards = vdevs.iter().zip(0..).filter(|(vdev, _)| vdev.starts_with("net_virtio_user"));
        cards.for_each(|(_, port)| testpmd.shape(port, shape));
        testpmd.tell("port start all");
        testpmd.await_said("Done");
        testpmd
    }

    /// Lets a frame be in several buffers, if it is longer than one.
    fn shape(&mut self, port: u8, shape: Shape) {
        if shape.longest > BUFFER {
            self.tell(&format!("port config {port} rx_offload scatter on"));
        }
    }

    /// Gives it a line.
    pub fn tell(&mut self, line: &str) {
        self.commands.write_all(format!("{line}\n").as_bytes()).expect("testpmd listens");
    }

    /// Everything it said.
    pub fn log(&self) -> String {
        fs::read(self.dir.path().join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .expect("the log")
    }

    fn await_said(&mut self, text: &str) {
        within(PATIENCE, &format!("testpmd says {text:?}"), || {
            assert!(self.is_running(), "testpmd ended:\n{}", self.log());
            self.log().contains(text)
        });
    }

    /// Has it not ended?
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its status").is_none()
    }

    /// What a port has counted since testpmd started.
    pub fn count(&mut self, port: u8) -> Count {
        let before = self.log().len();
        self.tell(&format!("show port stats {port}"));
        let mut count = None;
        within(PATIENCE, "testpmd counts", || {
            let log = self.log();
            let said = &log[before..];
            // The line after both has come, so both are whole.
            count = said
                .contains("Tx-bps")
                .then(|| Count { rx: number(said, "RX-packets:"), tx: number(said, "TX-packets:") });
            count.is_some()
        });
        count.expect("counted")
    }

    /// Ends it; the frames that its sink wrote, queue by queue.
    pub fn finish(mut self, queues: u8) -> Vec<Vec<Vec<u8>>> {
        self.tell("stop");
        self.tell("quit");
        within(PATIENCE, "testpmd ends", || !self.is_running());
        (0..queues).map(|queue| read_capture(&self.dir.path().join(format!("out{queue}")))).collect()
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("testpmd:\n{}", self.log());
        }
    }
}

impl Card {
    fn vdev(&self, index: usize, shape: Shape) -> String {
        let mut text = format!("net_virtio_user{index},path={}", self.socket.path().display());
        text += &format!(",queues={},queue_size={}", shape.queues, self.size);
        if let Socket::Listening(_) = self.socket {
            text += ",server=1";
        }
        if !self.properties.is_empty() {
            text += &format!(",{}", self.properties);
        }
        text
    }
}

/// The cores this process may use, as EAL writes them.
fn cores() -> String {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("our own cores");
    let cores = (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false));
    cores.map(|core| core.to_string()).collect::<Vec<_>>().join(",")
}

/// The first number after `label`.
fn number(text: &str, label: &str) -> u64 {
    let rest = text.split(label).nth(1).unwrap_or_else(|| panic!("no {label} in {text}"));
    rest.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{label}: {rest}"))
}

/// Writes frames as a capture (pcap, microseconds, Ethernet; draft-ietf-opsawg-pcap).
pub fn write_capture(path: &Path, frames: &[Vec<u8>]) {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65535, 1_u32] {
        bytes.extend(word.to_ne_bytes());
    }
    for frame in frames {
        let length = frame.len() as u32;
        [0, 0, length, length].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(frame);
    }
    fs::write(path, bytes).expect("a capture");
}

/// The frames of a capture that this machine wrote.
fn read_capture(path: &Path) -> Vec<Vec<u8>> {
    let mut file = File::open(path).expect("a capture");
    file.read_exact(&mut [0; 24]).expect("its header");
    let mut frames = Vec::new();
    let mut header = [0; 16];
    while file.read_exact(&mut header).is_ok() {
        let length = u32::from_ne_bytes(header[8..12].try_into().expect("four bytes"));
        let mut frame = vec![0; length as usize];
        file.read_exact(&mut frame).expect("a whole frame");
        frames.push(frame);
    }
    frames
}
