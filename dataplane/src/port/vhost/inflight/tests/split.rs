use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const SIZE: u16 = SPLIT.size;

/// A split ring as both sides see it, and what the device does with it. What is here is in the guest's memory.
#[derive(Default)]
struct Ring {
    /// All that the driver ever made available.
    available: Vec<u16>,
    /// All that the device ever gave back.
    used: Vec<u16>,
}

impl Ring {
    /// The driver makes each chain available again that it got back.
    fn drive(&mut self) {
        let first: Vec<u16> = (0..SIZE).collect();
        self.available.splice(.., first.into_iter().chain(self.used.iter().copied()));
    }

    fn used_index(&self) -> u16 {
        START.wrapping_add(self.used.len() as u16)
    }

    /// What was taken and not given back must be what a successor finds, in order.
    fn check(&self, in_flight: &[u16]) {
        let mut back = self.used.clone();
        let is_out = |head: &u16| match back.iter().position(|b| b == head) {
            Some(at) => {
                back.remove(at);
                false
            }
            None => true,
        };
        let taken = &self.available[..self.used.len() + in_flight.len()];
        let out: Vec<u16> = taken.iter().copied().filter(is_out).collect();
        assert_eq!(in_flight, out, "each chain once, in order of submission");
    }
}

/// Near the end of the index, so that it wraps.
const START: u16 = 65_530;

/// A batch: how many chains are taken, and which are done with, in which order.
#[derive(Debug, Clone)]
struct Batch {
    take: usize,
    done: Vec<Index>,
}

fn batch() -> impl Strategy<Value = Batch> {
    (0usize..6, proptest::collection::vec(any::<Index>(), 0..6)).prop_map(|(take, done)| Batch { take, done })
}

/// A process of the device's: recovers, and goes on with batches.
fn device(region: &Region, ring: &mut Ring, batches: &[Batch]) {
    let (mut split, mut in_flight) =
        Split::recover(region.queue(1, SIZE).unwrap(), ring.used_index()).unwrap();
    ring.check(&in_flight);
    for batch in batches {
        ring.drive();
        let from = ring.used.len() + in_flight.len();
        for &head in ring.available[from..].iter().take(batch.take) {
            split.begin(head);
            in_flight.push(head);
        }
        let mut done = Vec::new();
        for index in batch.done.iter().take(in_flight.len()) {
            done.push(in_flight.remove(index.index(in_flight.len())));
        }
        done.iter().for_each(|&head| split.done(head));
        split.publish(|| {
            store();
            ring.used.extend(&done);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Processes that die after any store, one after the other: no chain is lost or given back twice.
    #[test]
    fn whatever_store_was_the_last_each_chain_is_given_back_once(
        lives in proptest::collection::vec((0u32..120, proptest::collection::vec(batch(), 0..6)), 1..6),
    ) {
        let (_, region) = region(SPLIT);
        let mut ring = Ring::default();
        for (stores, batches) in lives {
            ring.drive();
            let _ = killed_after(stores, || device(&region, &mut ring, &batches));
        }
        device(&region, &mut ring, &[]);
    }

    /// Whatever a frontend writes there: an error or heads that the ring has, each once.
    #[test]
    fn a_hostile_region_gives_heads_of_the_ring_or_an_error(
        batches in proptest::collection::vec(batch(), 0..4),
        pokes in proptest::collection::vec((12u64..144, any::<u8>()), 0..12),
        used in 0u16..9,
    ) {
        let (file, region) = region(SPLIT);
        let mut ring = Ring::default();
        ring.drive();
        device(&region, &mut ring, &batches);
        pokes.iter().for_each(|&(at, byte)| file.write_all_at(&[byte], 192 + at).unwrap());
        let queue = region.queue(1, SIZE).unwrap();
        if let Ok((_, mut heads)) = Split::recover(queue, ring.used_index().wrapping_add(used)) {
            let count = heads.len();
            heads.sort_unstable();
            heads.dedup();
            prop_assert!(heads.len() == count && heads.iter().all(|&head| head < SIZE));
        }
    }
}

/// Every single store of a history with all that can happen, rather than some at random.
#[test]
fn each_store_may_be_the_last() {
    let batch = |take, done: &[usize]| (take, done.to_vec());
    let history = [batch(3, &[1]), batch(2, &[0, 2, 0]), batch(5, &[]), batch(0, &[4, 0]), batch(1, &[0; 4])];
    let mut killed = 0;
    for stores in 0.. {
        let (_, region) = region(SPLIT);
        let mut ring = Ring::default();
        ring.drive();
        let alive = killed_after(stores, || {
            let (mut split, mut in_flight) = Split::recover(region.queue(1, SIZE).unwrap(), START).unwrap();
            for (take, done) in &history {
                ring.drive();
                let from = ring.used.len() + in_flight.len();
                for &head in &ring.available[from..from + take] {
                    split.begin(head);
                    in_flight.push(head);
                }
                let done: Vec<u16> = done.iter().map(|&at| in_flight.remove(at)).collect();
                done.iter().for_each(|&head| split.done(head));
                split.publish(|| {
                    store();
                    ring.used.extend(&done);
                });
            }
        });
        device(&region, &mut ring, &[]);
        killed += u32::from(alive.is_none());
        if alive.is_some() {
            break;
        }
    }
    assert!(killed > 60, "{killed} stores");
}

#[test]
fn the_region_says_what_the_specification_says() {
    let (file, region) = region(SPLIT);
    let (mut split, _) = Split::recover(region.queue(0, SIZE).unwrap(), 7).unwrap();
    split.begin(3);
    split.begin(5);
    split.begin(1);
    split.done(5);
    split.done(3);
    split.publish(|| {});
    let mut bytes = [0; 16 + 16 * 8];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 9, 0]);
    let entry = |i: usize| (bytes[16 + 16 * i], bytes[16 + 16 * i + 6], bytes[16 + 16 * i + 8]);
    assert_eq!(entry(3), (0, 5, 0), "inflight, next, counter");
    assert_eq!(entry(5), (0, 0, 1));
    assert_eq!(entry(1), (1, 0, 2));

    let queue = || region.queue(0, SIZE).unwrap();
    assert_eq!(Split::recover(queue(), 9).unwrap().1, [1]);
    let other = Split::recover(queue(), 9 + 9).unwrap_err().to_string();
    assert_eq!(other, "the ring is at used index 18, its inflight region at 9: they do not belong together");
}
