//! A port that loses, repeats and reorders what arrives through another one, for tests: bad luck, but the
//! same bad luck for the same seed.
//!
//! Only what is received suffers, and before the switch counts it, so the switch's own books stay balanced;
//! wrap both ports of a path to have both directions suffer.

use super::{Counters, Offloads, Port, PortError, Readiness, Sent};
use crate::batch::Batch;
use crate::frame::FrameCache;

/// How likely each misfortune is, per frame, 0.0 to 1.0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Misfortune {
    /// The frame is lost.
    pub drop: f64,
    /// The frame arrives twice (once only, if the batch has no room for two).
    pub duplicate: f64,
    /// The frame changes places with the one that arrived before it in the same batch.
    pub reorder: f64,
}

/// A port with bad luck.
pub struct Lossy {
    port: Box<dyn Port>,
    misfortune: Misfortune,
    state: u64,
}

impl Lossy {
    /// Wraps a port.
    pub fn new(port: Box<dyn Port>, misfortune: Misfortune, seed: u64) -> Self {
        Lossy { port, misfortune, state: seed }
    }

    /// True with this probability (SplitMix64, Steele, Lea and Flood 2014).
    fn strikes(&mut self, probability: f64) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64;
        unit < probability
    }
}

impl Port for Lossy {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        let before = batch.len();
        self.port.rx(frames, batch)?;
        let arrived: Batch = batch.drain(before..).collect();
        let mut to_come = arrived.len();
        for frame in arrived {
            to_come -= 1;
            if self.strikes(self.misfortune.drop) {
                frames.free(frame);
                continue;
            }
            let twice = self.strikes(self.misfortune.duplicate) && batch.remaining_capacity() > to_come + 1;
            let copy = if twice { frames.copy(&frame) } else { None };
            batch.push(frame);
            let last = batch.len() - 1;
            if self.strikes(self.misfortune.reorder) && last > before {
                batch.swap(last - 1, last);
            }
            batch.extend(copy);
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.port.tx(frames, batch)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.port.readiness()
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }

    fn disarm(&mut self) {
        self.port.disarm();
    }

    fn offloads(&self) -> Offloads {
        self.port.offloads()
    }

    fn counters(&mut self) -> Counters {
        self.port.counters()
    }

    fn close(&mut self, frames: &mut FrameCache) {
        self.port.close(frames);
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::pair;
    use super::super::rig::{conforms, numbered, pool};
    use super::*;

    /// The numbers that arrive when 0 to 999 are sent, twenty at a time.
    fn arrivals(misfortune: Misfortune, seed: u64) -> Vec<u16> {
        let (pool, mut frames) = pool();
        let (port, mut peer) = pair(&pool, 32);
        let mut port = Lossy::new(Box::new(port), misfortune, seed);
        let mut got = Vec::new();
        for first in (0..1000).step_by(20) {
            (first..first + 20).for_each(|n| assert!(peer.inject(&numbered(n, 60))));
            let mut batch = Batch::new();
            port.rx(&mut frames, &mut batch).unwrap();
            for frame in batch.drain(..) {
                got.push(u16::from_be_bytes([frame.bytes()[14], frame.bytes()[15]]));
                frames.free(frame);
            }
        }
        port.close(&mut frames);
        drop((peer, frames));
        assert_eq!(pool.available(), (2048, 64));
        got
    }

    #[test]
    fn good_luck_changes_nothing() {
        let stock = pool();
        let (port, peer) = pair(&stock.0, 64);
        conforms(Lossy::new(Box::new(port), Misfortune::default(), 1), peer, stock);
    }

    #[test]
    fn each_misfortune_strikes_about_as_often_as_asked() {
        let none = Misfortune::default();
        let lost = 1000 - arrivals(Misfortune { drop: 0.1, ..none }, 1).len();
        assert!((50..200).contains(&lost), "{lost} lost");
        let more = arrivals(Misfortune { duplicate: 0.1, ..none }, 1).len() - 1000;
        assert!((50..200).contains(&more), "{more} repeated");
        let got = arrivals(Misfortune { reorder: 0.1, ..none }, 1);
        let swaps = got.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((50..200).contains(&swaps), "{swaps} swapped");
        let mut sorted = got;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn the_seed_is_the_luck() {
        let misfortune = Misfortune { drop: 0.3, duplicate: 0.3, reorder: 0.3 };
        assert_eq!(arrivals(misfortune, 7), arrivals(misfortune, 7));
        assert_ne!(arrivals(misfortune, 7), arrivals(misfortune, 8));
        assert!(arrivals(Misfortune { drop: 1.0, ..misfortune }, 7).is_empty());
        assert_eq!(arrivals(Misfortune { drop: 0.0, duplicate: 1.0, reorder: 0.0 }, 7).len(), 50 * 32);
    }
}
