//! The driver's side as a port, with a device that sends back what it takes.

use std::sync::{Arc, Mutex};

use dataplane::batch::Batch;
use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig};
use dataplane::port::{Counters, Offloads, Port, Readiness, Sent};
use dataplane::virtio::driver::memory::SharedMemory;
use dataplane::virtio::driver::pair::{Pair, PairShape};
use dataplane::virtio::driver::user::VirtioUser;
use dataplane::virtio::features::Features;
use encap::offload::{Csum, Gso, Offload};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::device::Device;

struct Rig {
    user: VirtioUser,
    device: Device,
    frames: FrameCache,
    pool: Arc<FramePool>,
}

fn rig(features: Features) -> Rig {
    let memory = SharedMemory::of_len(1 << 20).unwrap();
    let mut pair = Pair::new(&memory, PairShape::plain(64, features)).unwrap();
    pair.refill();
    let device = Device::new(&memory, &pair);
    let pool = FramePool::new(PoolConfig { small: 256, big: 8, memory: Memory::Plain }).unwrap();
    let user = VirtioUser::new(Arc::new(Mutex::new(pair)));
    Rig { user, device, frames: FrameCache::new(Arc::clone(&pool)), pool }
}

impl Rig {
    fn batch(&mut self, count: u8, len: usize) -> Batch {
        let frame = |n| {
            let mut frame = self.frames.from_bytes(&vec![n; len]).unwrap();
            frame.offload = OFFLOAD;
            frame
        };
        (0..count).map(frame).collect()
    }

    /// The device sends back what it took.
    fn echo(&mut self) -> usize {
        let mut batch = self.device.take(32, &mut self.frames, &mut Counters::default());
        self.device.give(&mut self.frames, &mut batch).frames as usize
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        let mut batch = Batch::new();
        self.user.rx(&mut self.frames, &mut batch).unwrap();
        assert!(batch.iter().all(|frame| frame.offload == OFFLOAD));
        let bytes = batch.iter().map(|frame| frame.bytes().to_vec()).collect();
        batch.drain(..).for_each(|frame| self.frames.free(frame));
        bytes
    }

    fn is_ready(&self) -> bool {
        let Readiness::Ring(fd) = self.user.readiness() else { panic!("a ring can be slept on") };
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }
}

const OFFLOAD: Offload =
    Offload { csum: Csum::Partial { start: 34, offset: 16 }, gso: Gso::Tcp4 { mss: 1000 } };
const TAKES: Features = Features(
    Features::CSUM.0
        | Features::HOST_TSO4.0
        | Features::HOST_TSO6.0
        | Features::VERSION_1.0
        | Features::EVENT_IDX.0,
);

#[test]
fn frames_go_there_and_back() {
    for format in [Features::NONE, Features::RING_PACKED] {
        let mut rig = rig(TAKES | format);
        assert_eq!(rig.user.offloads(), Offloads { csum: true, tso: true, uso: false });
        for _ in 0..10 {
            let mut batch = rig.batch(32, 1500);
            assert_eq!(rig.user.tx(&mut rig.frames, &mut batch).unwrap(), Sent { frames: 32, bytes: 48_000 });
            assert_eq!(rig.echo(), 32);
            let expected: Vec<_> = (0..32).map(|n| vec![n; 1500]).collect();
            assert_eq!(rig.received(), expected);
        }
        assert_eq!(rig.user.counters(), Counters::default());
        drop(rig.frames);
        assert_eq!(rig.pool.available(), (256, 8));
    }
}

#[test]
fn what_has_no_room_stays_and_what_never_has_is_freed() {
    let mut rig = rig(TAKES);
    for sent in [32, 32, 0] {
        let mut batch = rig.batch(32, 100);
        assert_eq!(rig.user.tx(&mut rig.frames, &mut batch).unwrap().frames, sent);
        assert_eq!(batch.len(), 32 - sent as usize);
        batch.drain(..).for_each(|frame| rig.frames.free(frame));
    }
    let mut batch = rig.batch(1, 4000);
    assert_eq!(rig.user.tx(&mut rig.frames, &mut batch).unwrap(), Sent::default());
    assert!(batch.is_empty());
}

#[test]
fn it_is_called_while_armed_and_only_then() {
    for format in [Features::NONE, Features::RING_PACKED] {
        for event in [Features::NONE, Features::EVENT_IDX] {
            let mut rig = rig(TAKES.without(Features::EVENT_IDX) | format | event);
            let mut batch = rig.batch(1, 100);
            rig.user.tx(&mut rig.frames, &mut batch).unwrap();
            assert_eq!((rig.echo(), rig.is_ready()), (1, false));
            assert!(rig.user.arm(), "there is a frame already");
            rig.user.disarm();
            assert_eq!(rig.received().len(), 1);
            assert!(!rig.user.arm());
            let mut batch = rig.batch(1, 100);
            rig.user.tx(&mut rig.frames, &mut batch).unwrap();
            assert_eq!((rig.echo(), rig.is_ready()), (1, true));
            rig.user.disarm();
            assert!(!rig.is_ready());
        }
    }
}
