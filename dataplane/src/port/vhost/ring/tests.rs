//! Rings laid by hand: what both formats must do alike, and what each does by itself.

use encap::offload::Offload;

use super::*;
use crate::frame::Frame;
use crate::port::rig::{numbered, pool};
use crate::virtio::NET_HEADER;

mod faults;
mod guest;
mod inflight;
mod layouts;
mod notify;
mod oracle;

use guest::*;

/// What a modern driver has.
const MODERN: Features = Features(Features::VERSION_1.0 | Features::MRG_RXBUF.0 | Features::INDIRECT_DESC.0);
/// The same, without chains of chains.
const SINGLE: Features = Features(Features::VERSION_1.0 | Features::INDIRECT_DESC.0);
const HEADER: u32 = NET_HEADER as u32;

/// A header that leaves nothing to do, with the frame behind it.
fn headed(frame: &[u8]) -> Vec<u8> {
    [&[0; NET_HEADER], frame].concat()
}

/// A frame that came, and what is left to do on it.
type Received = (Vec<u8>, Offload);

/// What a ring and its pool see and count.
struct Device {
    ring: Ring,
    frames: FrameCache,
    counters: Counters,
}

impl Device {
    fn new(guest: &Guest) -> Device {
        Device::of(guest.ring())
    }

    fn of(ring: Ring) -> Device {
        Device { ring, frames: pool().1, counters: Counters::default() }
    }

    /// Receives once: the frames, and how it ended.
    fn try_receive(&mut self) -> (Vec<Received>, Result<(), Fault>) {
        let mut batch = Batch::new();
        let result = self.ring.receive(&mut self.frames, &mut batch, &mut self.counters);
        (self.free(batch), result)
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let (frames, result) = self.try_receive();
        result.unwrap();
        frames.into_iter().map(|(bytes, _)| bytes).collect()
    }

    fn free(&mut self, batch: Batch) -> Vec<Received> {
        let free = |frame: Frame| {
            let copy = (frame.bytes().to_vec(), frame.offload);
            self.frames.free(frame);
            copy
        };
        batch.into_iter().map(free).collect()
    }

    /// Sends these, and returns what was sent and how many stayed.
    fn try_send(&mut self, list: &[Received]) -> (Result<Sent, Fault>, usize) {
        let mut batch = Batch::new();
        for (bytes, offload) in list {
            let mut frame = self.frames.from_bytes(bytes).unwrap();
            frame.offload = *offload;
            batch.push(frame);
        }
        let sent = self.ring.send(&mut self.frames, &mut batch);
        (sent, self.free(batch).len())
    }

    fn send(&mut self, frames: &[Vec<u8>]) -> (u32, usize) {
        let list: Vec<_> = frames.iter().map(|bytes| (bytes.clone(), Offload::NONE)).collect();
        let (sent, stayed) = self.try_send(&list);
        (sent.unwrap().frames, stayed)
    }
}

#[test]
fn frames_come_out_of_plain_chains_in_order() {
    for format in BOTH {
        let mut guest = Guest::new(format, 64, MODERN);
        let mut device = Device::new(&guest);
        // Many rounds, so that indices and wrap counters turn over.
        for round in 0..1500u16 {
            let list: Vec<_> = (0..50).map(|n| numbered(round + n, 60 + usize::from(n))).collect();
            let mut offered = Vec::new();
            for (frame, n) in list.iter().zip(0..) {
                let at = BUFFERS + n * 0x400;
                guest.write(at, &headed(frame));
                offered.push((guest.offer(&[(at, HEADER + frame.len() as u32)]), 0));
            }
            let mut got = device.receive();
            assert_eq!((got.len(), guest.used().len()), (32, 32));
            got.extend(device.receive());
            assert_eq!(got, list, "{format:?}");
            assert_eq!(guest.used(), offered[32..]);
        }
        assert_eq!(device.receive(), [[0u8; 0]; 0]);
        assert_eq!(device.counters, Counters::default());
    }
}

#[test]
fn frames_go_into_plain_chains_in_order() {
    for format in BOTH {
        for features in [MODERN, SINGLE] {
            let mut guest = Guest::receiving(format, 64, features);
            let mut device = Device::new(&guest);
            for round in 0..1500u16 {
                let list: Vec<_> = (0..32).map(|n| numbered(round + n, 60 + usize::from(n))).collect();
                let offered: Vec<_> = (0..30).map(|n| guest.offer(&[(BUFFERS + n * 0x800, 1526)])).collect();
                assert_eq!(device.send(&list), (30, 2));
                let used = guest.used();
                let expected =
                    offered.iter().zip(&list).map(|(&id, frame)| (id, HEADER + frame.len() as u32));
                assert_eq!(used, expected.collect::<Vec<_>>(), "{format:?}");
                for (frame, n) in list[..30].iter().zip(0..) {
                    let mut expected = headed(frame);
                    expected[10] = 1;
                    assert_eq!(guest.read(BUFFERS + n * 0x800, expected.len()), expected);
                }
            }
        }
    }
}
