//! What must come of each step, whatever the rings are.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use dataplane::batch::Batch;
use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig};
use dataplane::port::Counters;
use dataplane::virtio::driver::header::Header;
use dataplane::virtio::driver::memory::{Layout, SharedMemory};
use dataplane::virtio::driver::pair::{Chains, Pair, PairShape};
use dataplane::virtio::driver::{Form, Shape};
use dataplane::virtio::features::Features;
use encap::offload::Offload;
use nix::sys::eventfd::EventFd;

use super::device::Device;

/// Where the guest's memory is, and where its two regions touch.
const FIRST: u64 = 16 << 20;
const SEAM: u64 = FIRST + (256 << 10);
/// Where the buffers of the transmit ring are.
const TRANSMIT: u64 = SEAM + (256 << 10);
const TRANSMIT_ROOM: usize = 9100;
/// Where the bytes of frames are from: each begins at another.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let random = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..1 << 15).map(random).collect()
});
/// The shortest frame that a device takes.
const FRAME_MIN: usize = 14;

/// A pair.
#[derive(Debug, Clone)]
pub struct Setting {
    pub features: Features,
    pub size: u16,
    pub receive_cuts: Vec<usize>,
    pub receive_room: usize,
    pub receive_form: Form,
}

/// A frame to send, and how it lies in its chain.
#[derive(Debug, Clone)]
pub struct Kind {
    pub len: usize,
    pub offload: Offload,
    pub cuts: Vec<usize>,
    pub form: Form,
    /// Its header has flags that there are not.
    pub lies: bool,
}

type Expected = VecDeque<(Vec<u8>, Offload)>;

/// Both sides, and what is on its way.
pub struct World {
    pair: Pair,
    device: Device,
    pool: Arc<FramePool>,
    frames: FrameCache,
    counters: Counters,
    serial: u32,
    to_device: Expected,
    to_driver: Expected,
    /// Chains that the driver added, those it flushed, those that are broken.
    added: u64,
    flushed: u64,
    broken: u64,
    /// Frames that the device took, and that the driver took.
    pub taken: u64,
    pub received: u64,
    driver: Side,
    backend: Side,
}

/// Does a side sleep, and did its bell ring since?
#[derive(Default)]
struct Side {
    asleep: bool,
    told: bool,
}

impl Side {
    fn lies_down(&mut self, bell: &EventFd, has_work: bool) {
        let _ = bell.read();
        *self = Side { asleep: !has_work, told: false };
    }

    fn hears(&mut self, bell: &EventFd) {
        self.told |= bell.read().is_ok();
    }

    /// It has work: it must know.
    fn check(&self, whose: &str) {
        assert!(!self.asleep || self.told, "the {whose} sleeps and was not told");
    }
}

impl World {
    pub fn new(setting: &Setting) -> World {
        let first = Layout { guest: FIRST, len: 256 << 10, offset: 0 };
        let last = Layout { guest: SEAM, len: 768 << 10, offset: 4096 };
        let memory = SharedMemory::new(&[first, last]).unwrap();
        let mut pair = Pair::new(&memory, shape(setting)).unwrap();
        pair.poison_gaps();
        pair.refill();
        let device = Device::new(&memory, &pair);
        let pool = FramePool::new(PoolConfig { small: 512, big: 64, memory: Memory::Plain }).unwrap();
        World {
            pair,
            device,
            frames: FrameCache::new(Arc::clone(&pool)),
            pool,
            counters: Counters::default(),
            serial: 0,
            to_device: VecDeque::new(),
            to_driver: VecDeque::new(),
            added: 0,
            flushed: 0,
            broken: 0,
            taken: 0,
            received: 0,
            driver: Side::default(),
            backend: Side::default(),
        }
    }

    fn frame(&mut self, len: usize, offload: Offload) -> (Vec<u8>, Offload) {
        self.serial += 1;
        let mut bytes = PATTERN[self.serial as usize * 7 % (PATTERN.len() / 2)..][..len].to_vec();
        let marked = len.min(4);
        bytes[..marked].copy_from_slice(&self.serial.to_be_bytes()[..marked]);
        // Long enough for the headers that there is work on.
        (bytes, if len >= 60 { offload } else { Offload::NONE })
    }

    /// The driver adds a frame, if there is room.
    pub fn send(&mut self, kind: &Kind) {
        let has_tables = self.pair.shape().ring.table > 0;
        let form = if has_tables { kind.form } else { Form::Direct };
        self.pair.set_transmit(Chains { cuts: kind.cuts.clone(), form, room: TRANSMIT_ROOM, at: None });
        let (bytes, offload) = self.frame(kind.len, kind.offload);
        let mut header = Header::of(&offload, &bytes);
        if kind.lies {
            header.offload[0] = 0x80;
        }
        if !self.pair.send(&header, &bytes) {
            return;
        }
        self.added += 1;
        match kind.lies || bytes.len() < FRAME_MIN {
            true => self.broken += 1,
            false => self.to_device.push_back((bytes, offload)),
        }
    }

    pub fn flush(&mut self) {
        self.pair.flush();
        self.flushed = self.added;
        self.backend.hears(self.pair.transmit.kick());
        if self.flushed > self.taken + self.counters.rx_errors {
            self.backend.check("device");
        }
    }

    /// The driver takes frames and compares.
    pub fn receive(&mut self, most: usize) {
        for _ in 0..most {
            let Some(header) = self.pair.arrived() else { break };
            let mut bytes = vec![0; self.pair.arrived_len()];
            self.pair.copy(&mut bytes);
            self.pair.recycle();
            let (expected, offload) = self.to_driver.pop_front().expect("a frame that nobody sent");
            assert!(
                bytes == expected,
                "frame {}: {} bytes, {} sent",
                self.received,
                bytes.len(),
                expected.len()
            );
            assert_eq!(header.left_to_do(&bytes), Ok(offload));
            let features = self.pair.shape().ring.features;
            let short = Header::len_of(features) == 10;
            assert!(short || header.buffers == 1 || header.buffers > 1 && features.has(Features::MRG_RXBUF));
            self.received += 1;
        }
    }

    pub fn refill(&mut self) {
        self.pair.refill();
        let _ = self.pair.receive.kick().read();
    }

    pub fn sleep(&mut self) {
        let has_work = self.pair.receive.ring.enable_calls();
        assert_eq!(has_work, !self.to_driver.is_empty());
        self.driver.lies_down(self.pair.receive.call(), has_work);
    }

    pub fn wake(&mut self) {
        self.pair.receive.ring.disable_calls();
        self.driver.asleep = false;
    }

    /// The device takes frames and compares.
    pub fn take(&mut self, most: usize) {
        let (frames, counters) = (&mut self.frames, &mut self.counters);
        let batch = self.device.logged(|device| device.take(most, frames, counters));
        for frame in batch {
            let (expected, offload) = self.to_device.pop_front().expect("a frame that nobody sent");
            assert!(frame.bytes() == expected, "frame {} of {} bytes", self.taken, expected.len());
            assert_eq!(frame.offload, offload);
            self.taken += 1;
            self.frames.free(frame);
        }
        assert!(self.taken + self.counters.rx_errors <= self.flushed, "took what was not flushed");
    }

    /// The device sends frames; those that have no room are dropped.
    pub fn give(&mut self, kind: &Kind, count: usize) {
        let len = kind.len.max(FRAME_MIN).min(self.longest());
        let sent: Vec<_> = (0..count).map(|_| self.frame(len, kind.offload)).collect();
        let mut batch = Batch::new();
        for (bytes, offload) in &sent {
            let mut frame = self.frames.from_bytes(bytes).expect("the pool is large enough");
            frame.offload = *offload;
            batch.push(frame);
        }
        let frames = &mut self.frames;
        let said = self.device.logged(|device| device.give(frames, &mut batch));
        let gone = count - batch.len();
        batch.drain(..).for_each(|frame| self.frames.free(frame));
        let fits = self.fits(len);
        let arrived = if fits { gone } else { 0 };
        assert_eq!((said.frames as usize, said.bytes as usize), (arrived, arrived * len));
        self.to_driver.extend(sent.into_iter().take(arrived));
        self.driver.hears(self.pair.receive.call());
        if arrived > 0 {
            self.driver.check("driver");
        }
    }

    /// The longest frame to send: half of what the receive ring can ever hold.
    fn longest(&self) -> usize {
        let shape = self.pair.shape();
        let pieces = if shape.receive.form == Form::Indirect { 1 } else { shape.receive.cuts.len() + 1 };
        usize::from(shape.ring.size) / pieces * shape.receive.room / 2
    }

    /// Without MRG_RXBUF a frame has to fit into one chain.
    fn fits(&self, len: usize) -> bool {
        let shape = self.pair.shape();
        let features = shape.ring.features;
        features.has(Features::MRG_RXBUF) || Header::len_of(features) + len <= shape.receive.room
    }

    pub fn arm(&mut self) {
        let has_work = self.device.logged(|device| device.from_guest.arm());
        assert_eq!(has_work, self.flushed > self.taken + self.counters.rx_errors);
        self.backend.lies_down(self.pair.transmit.kick(), has_work);
    }

    pub fn disarm(&mut self) {
        self.device.logged(|device| device.from_guest.disarm());
        self.backend.asleep = false;
    }

    /// Another device; it asks at first, as a poller with a new queue does.
    pub fn restart(&mut self) {
        self.device.restart(&self.pair);
        self.backend.asleep = false;
    }

    pub fn log(&mut self) {
        self.device.log();
        self.restart();
    }

    pub fn end_log(&mut self) {
        self.device.end_log();
        self.restart();
    }

    /// Everything arrives, and everything is given back.
    pub fn finish(mut self) {
        self.flush();
        while self.flushed > self.taken + self.counters.rx_errors {
            let before = (self.taken, self.counters.rx_errors);
            self.take(32);
            assert_ne!((self.taken, self.counters.rx_errors), before, "frames that do not arrive");
        }
        self.receive(usize::MAX);
        assert!(self.to_device.is_empty() && self.to_driver.is_empty());
        assert_eq!((self.counters.rx_errors, self.counters.rx_missed), (self.broken, 0));
        self.pair.reclaim();
        assert!(self.pair.transmit.ring.is_idle(), "slots of the transmit ring are lost");
        self.refill();
        let kept = self.longest() * 2 / self.pair.shape().receive.room;
        let pieces = self.pair.receive.ring.shape().size / kept as u16;
        assert_eq!(self.pair.receive.ring.free(), self.pair.receive.ring.shape().size - kept as u16 * pieces);
        assert!(self.pair.gaps_are_clean(), "the device wrote between the pieces of chains");
        drop(self.frames);
        assert_eq!(self.pool.available(), (512, 64));
    }
}

fn shape(setting: &Setting) -> PairShape {
    let has_tables = setting.features.has(Features::INDIRECT_DESC);
    let table = if has_tables { 8 } else { 0 };
    let form = if has_tables { setting.receive_form } else { Form::Direct };
    let room = setting.receive_room;
    let all = usize::from(setting.size) * (room + 128).next_multiple_of(64);
    let at = Some(SEAM - (all as u64 / 2).next_multiple_of(64));
    let receive = Chains { cuts: setting.receive_cuts.clone(), form, room, at };
    // As many slots as there may be cuts.
    let transmit = Chains { cuts: vec![1; 4], room: TRANSMIT_ROOM, at: Some(TRANSMIT), form: Form::Direct };
    PairShape { ring: Shape { size: setting.size, table, features: setting.features }, receive, transmit }
}
