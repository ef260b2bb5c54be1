//! Guests without a machine: a process of ours plays frontend and driver. Two honest ones that send each other a frame
//! every few milliseconds, and see how long each takes and whether one is lost.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::virtio::driver::frontend::{Frontend, FrontendError, Wish};
use dataplane::virtio::driver::header::Header;
use dataplane::virtio::driver::memory::SharedMemory;
use dataplane::virtio::driver::pair::{Pair, PairShape};
use dataplane::virtio::driver::user::lock;
use dataplane::virtio::features::Features;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::support::lab::PATIENCE;

/// What guests of ours negotiate, with split rings.
pub const SPLIT: Features = Features(
    Features::VERSION_1.0
        | Features::MRG_RXBUF.0
        | Features::EVENT_IDX.0
        | Features::INDIRECT_DESC.0
        | Features::PROTOCOL_FEATURES.0,
);
/// The same with packed ones.
pub const PACKED: Features = Features(SPLIT.0 | Features::RING_PACKED.0);
/// Entries of their rings.
pub const SIZE: u16 = 256;

/// How often an honest guest sends.
const TICK: Duration = Duration::from_millis(5);
/// How many frames to the far one may be under way, and as many to the third station that reach both: they have room in its ring,
/// however long the switch is kept from its core.
const UNDER_WAY: usize = SIZE as usize / 4;
/// What a frame of theirs is.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// What a guest of ours asks for.
pub fn wish(features: Features) -> Wish {
    Wish {
        features,
        protocol: Protocol::REPLY_ACK | Protocol::MQ | Protocol::CONFIGURE_MEM_SLOTS,
        pairs: 1,
        shape: PairShape::plain(SIZE, features),
        memory: SharedMemory::of_len(2 << 20).expect("memory to share"),
    }
}

/// A guest that runs, at a port that listens.
pub fn guest(path: &Path, features: Features) -> Result<Frontend, FrontendError> {
    Frontend::connect(path, wish(features))
}

/// A frame with a number from one station to another. Stations are 02:00:00:00:00:xx.
pub fn frame(to: u8, from: u8, number: u64) -> Vec<u8> {
    let stations = [[2, 0, 0, 0, 0, to], [2, 0, 0, 0, 0, from]].concat();
    let mut frame = [&stations[..], &ETHERTYPE, &number.to_be_bytes()].concat();
    frame.resize(60, 0);
    frame
}

/// Sends one; false if the ring is full.
pub fn send(pair: &Mutex<Pair>, frame: &[u8]) -> bool {
    let mut pair = lock(pair);
    let sent = pair.send(&Header::default(), frame);
    pair.flush();
    sent
}

/// Number of a frame to `to`, and the station it is from.
fn number_of(frame: &[u8], to: u8) -> Option<(u8, u64)> {
    let is_ours = frame.len() >= 22 && frame[5] == to && frame[12..14] == ETHERTYPE;
    is_ours.then(|| (frame[11], u64::from_be_bytes(frame[14..22].try_into().expect("eight bytes"))))
}

/// Stations.
pub const NEAR: u8 = 1;
/// See [`NEAR`].
pub const FAR: u8 = 2;
/// The third, at the port that is attacked.
pub const TARGET: u8 = 3;

#[derive(Default)]
struct Record {
    /// When each was sent, and how long it took.
    frames: Mutex<Vec<(Instant, Option<Duration>)>>,
    /// Those of them that came.
    came: AtomicUsize,
    /// Frames of the third station that the far one has got.
    of_target: AtomicU64,
    stop: AtomicBool,
}

/// Two honest guests. The near one sends to the far one, and as much to the third station.
pub struct Honest {
    record: Arc<Record>,
    thread: Option<JoinHandle<()>>,
}

/// What happened to honest frames in a time.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Frames sent.
    pub sent: usize,
    /// Of them those that never came.
    pub lost: usize,
    /// How long half of them took at most.
    pub p50: Duration,
    /// How long 99 of 100 took at most.
    pub p99: Duration,
    /// How long the slowest took.
    pub max: Duration,
}

impl Honest {
    /// Starts them at two ports that listen. They send once those are up.
    pub fn start([near, far]: [&Path; 2], await_up: impl FnOnce()) -> Honest {
        let guests = [near, far].map(|path| guest(path, SPLIT).expect("an honest guest"));
        await_up();
        let record = Arc::new(Record::default());
        let thread = std::thread::spawn({
            let record = Arc::clone(&record);
            move || exchange(&guests, &record)
        });
        Honest { record, thread: Some(thread) }
    }

    /// How many frames of the third station have come.
    pub fn of_target(&self) -> u64 {
        self.record.of_target.load(Ordering::Relaxed)
    }

    /// Where the record is now.
    pub fn mark(&self) -> usize {
        self.frames().len()
    }

    fn frames(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, Option<Duration>)>> {
        self.record.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen since a mark. Waits until what is on its way is there, or lost.
    pub fn since(&self, mark: usize) -> Seen {
        let end = self.mark();
        let began = Instant::now();
        while self.frames()[mark..end].iter().any(|frame| frame.1.is_none()) && began.elapsed() < PATIENCE {
            std::thread::sleep(TICK);
        }
        let frames = self.frames()[mark..end].to_vec();
        let mut times: Vec<_> = frames.iter().filter_map(|frame| frame.1).collect();
        times.sort_unstable();
        let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
        let [p50, p99, max] = [50, 99, 100].map(|share| at(share).copied().unwrap_or_default());
        Seen { sent: frames.len(), lost: frames.len() - times.len(), p50, p99, max }
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.record.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn exchange(guests: &[Frontend; 2], record: &Record) {
    let [near, far] = [0, 1].map(|guest| Arc::clone(&guests[guest].pairs()[0]));
    let call = Arc::clone(lock(&far).receive.call());
    // So that the switch knows where the far one is.
    send(&far, &frame(NEAR, FAR, 0));
    let mut next = Instant::now();
    while !record.stop.load(Ordering::Relaxed) {
        while lock(&near).receive().is_some() {}
        send_next(&near, record);
        next = (next + TICK).max(Instant::now());
        loop {
            let _ = call.read();
            lock(&far).receive.ring.enable_calls();
            take(&far, record);
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let millis = PollTimeout::try_from(left.as_micros().div_ceil(1000) as u32).expect("few");
            let _ = poll(&mut [PollFd::new(call.as_fd(), PollFlags::POLLIN)], millis);
        }
    }
}

/// Sends one to the far one and one to the third, unless too many are under way or the ring is full.
fn send_next(near: &Mutex<Pair>, record: &Record) {
    let mut frames = record.frames.lock().unwrap_or_else(PoisonError::into_inner);
    let (number, now) = (frames.len(), Instant::now());
    let has_room = number < record.came.load(Ordering::Relaxed) + UNDER_WAY;
    if has_room && send(near, &frame(FAR, NEAR, number as u64)) {
        frames.push((now, None));
        send(near, &frame(TARGET, NEAR, number as u64));
    }
}

fn take(far: &Mutex<Pair>, record: &Record) {
    while let Some(received) = lock(far).receive() {
        let now = Instant::now();
        match number_of(&received.bytes, FAR) {
            Some((NEAR, number)) => {
                let mut frames = record.frames.lock().unwrap_or_else(PoisonError::into_inner);
                let frame = &mut frames[number as usize];
                assert!(frame.1.is_none(), "frame {number} came twice");
                frame.1 = Some(now - frame.0);
                record.came.fetch_add(1, Ordering::Relaxed);
            }
            Some((TARGET, _)) => {
                record.of_target.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}
