//! What became of numbered frames: how many came out of order, how many twice.
//!
//! Order is kept within a flow and not between flows, so each flow is a stream of its own. A frame is *reordered* if one
//! that was sent after it came before (RFC 4737 section 3: its number is below the next one expected); a frame that
//! came before is *duplicated* and is not reordered whatever its place. Whether it came before, a window of bits behind the
//! highest number tells: at least 64, and up to 65,536 where there are few flows. What is older than the window counts as
//! reordered. Lost is what never came, which only the sender can tell.
//!
//! Memory: 16 to 24 bytes for each of many flows. A frame costs one bit; one behind a gap as many words as the gap has, at most the
//! window's.

/// Bits of all windows together, unless flows are so many that 64 for each are more.
const BITS: usize = 1 << 22;
/// Bits of the longest window.
const WINDOW_MAX: usize = 1 << 16;

/// What an arrival was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Higher than all before.
    InOrder,
    /// One that was sent later came before.
    Reordered,
    /// It came before.
    Duplicated,
}

/// The streams of a run.
#[derive(Debug, Clone)]
pub struct Streams {
    /// Per flow, one behind the highest number.
    next: Vec<u64>,
    /// Per flow, `words` words: bit n % window says whether n came, for the `window` numbers below `next`.
    came: Vec<u64>,
    words: usize,
    /// Of all flows together, the highest numbers' places: how many frames were sent up to them.
    reached: u64,
}

impl Streams {
    /// For so many flows, at least one, of which nothing came yet.
    pub fn new(flows: usize) -> Streams {
        let window = (BITS / flows.max(1)).clamp(64, WINDOW_MAX);
        let words = 1 << (window / 64).ilog2();
        Streams { next: vec![0; flows], came: vec![0; flows * words], words, reached: 0 }
    }

    /// How many frames would have come if every flow had all up to the highest number of it that came.
    pub fn reached(&self) -> u64 {
        self.reached
    }

    /// How far back a duplicate is told from a reordered frame.
    pub fn window(&self) -> u64 {
        self.words as u64 * 64
    }

    /// Takes note of the frame with this number in a flow.
    ///
    /// # Panics
    /// If there is no such flow.
    #[inline]
    pub fn note(&mut self, flow: usize, number: u64) -> Arrival {
        let next = self.next[flow];
        if number >= next {
            if number > next {
                self.skip(flow, number);
            }
            self.reached += number + 1 - next;
            self.next[flow] = number + 1;
            self.set(flow, number);
            return Arrival::InOrder;
        }
        if next - number > self.window() {
            return Arrival::Reordered;
        }
        let came = self.has(flow, number);
        self.set(flow, number);
        if came { Arrival::Duplicated } else { Arrival::Reordered }
    }

    #[inline]
    fn place(&self, flow: usize, number: u64) -> (usize, u64) {
        let bit = (number & (self.window() - 1)) as usize;
        (flow * self.words + bit / 64, 1 << (bit % 64))
    }

    #[inline]
    fn has(&self, flow: usize, number: u64) -> bool {
        let (word, bit) = self.place(flow, number);
        self.came[word] & bit != 0
    }

    /// The number came. The bit of one a whole window older is taken over.
    #[inline]
    fn set(&mut self, flow: usize, number: u64) {
        let (word, bit) = self.place(flow, number);
        self.came[word] |= bit;
    }

    /// Those between the next one and `number` did not come.
    #[cold]
    fn skip(&mut self, flow: usize, number: u64) {
        let next = self.next[flow];
        if number - next >= self.window() {
            return self.came[flow * self.words..][..self.words].fill(0);
        }
        let mut at = next;
        while at < number {
            let (word, bit) = self.place(flow, at);
            if bit == 1 && number - at >= 64 {
                self.came[word] = 0;
                at += 64;
            } else {
                self.came[word] &= !bit;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// All that ever came, by flow.
    #[derive(Default)]
    struct Oracle(BTreeMap<usize, BTreeSet<u64>>);

    impl Oracle {
        fn note(&mut self, flow: usize, number: u64, window: u64) -> Arrival {
            let came = self.0.entry(flow).or_default();
            let highest = came.last().copied();
            match highest {
                Some(highest) if number <= highest && highest + 1 - number > window => Arrival::Reordered,
                _ if !came.insert(number) => Arrival::Duplicated,
                Some(highest) if number < highest => Arrival::Reordered,
                _ => Arrival::InOrder,
            }
        }
    }

    /// Numbers that mostly go on, now and then jump or go back.
    fn steps() -> impl Strategy<Value = Vec<(usize, i64)>> {
        let step = prop_oneof![8 => Just(1i64), 2 => -80i64..80, 1 => -70_000i64..70_000];
        vec((0usize..3, step), 0..600)
    }

    proptest! {
        #[test]
        fn it_agrees_with_who_remembers_everything(steps in steps(), flows in prop_oneof![Just(3usize), Just(100_000)]) {
            let mut streams = Streams::new(flows);
            let mut oracle = Oracle::default();
            let mut at = [0u64; 3];
            for (flow, step) in steps {
                at[flow] = at[flow].saturating_add_signed(step);
                let expected = oracle.note(flow, at[flow], streams.window());
                prop_assert_eq!(streams.note(flow, at[flow]), expected, "number {} of flow {}", at[flow], flow);
            }
        }
    }

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 4737 section 3.3: 4 comes behind 5 to 8.
        let mut streams = Streams::new(1);
        let arrivals = [1, 2, 3, 5, 6, 7, 8, 4, 9, 10].map(|number| streams.note(0, number));
        let reordered = arrivals.iter().filter(|arrival| **arrival == Arrival::Reordered).count();
        assert_eq!((reordered, arrivals[7], streams.reached()), (1, Arrival::Reordered, 11));
        assert_eq!(streams.note(0, 4), Arrival::Duplicated);
    }

    #[test]
    fn windows_are_long_for_few_flows_and_bounded_for_many() {
        assert_eq!(
            [1, 64, 1000, 1 << 20].map(|flows| Streams::new(flows).window()),
            [65_536, 65_536, 4096, 64]
        );
        let streams = Streams::new(1 << 20);
        assert_eq!(streams.came.len() * 8 + streams.next.len() * 8, 16 << 20);
    }
}
