//! Which chunks the kernel has: a bit each.
//!
//! So a closed port can give them all back, and a chunk that the kernel names without having it is not taken.

use crate::frame::Chunk;

/// A set of small chunks. Two instructions and a cache line of 512 chunks per operation.
pub struct Lent(Box<[u64]>);

impl Lent {
    /// None of a pool of `chunks`.
    pub fn new(chunks: usize) -> Self {
        Lent(vec![0; chunks.div_ceil(64)].into())
    }

    /// The kernel has this chunk from now on.
    #[inline]
    pub fn lend(&mut self, chunk: Chunk) {
        let n = chunk.number();
        self.0[n / 64] |= 1 << (n % 64);
    }

    /// The kernel says it is done with this chunk. False: it did not have it.
    #[inline]
    pub fn take_back(&mut self, chunk: Chunk) -> bool {
        let n = chunk.number();
        let Some(word) = self.0.get_mut(n / 64) else { return false };
        let bit = 1 << (n % 64);
        let had = *word & bit != 0;
        *word &= !bit;
        had
    }

    /// All that it has.
    pub fn iter(&self) -> impl Iterator<Item = Chunk> + '_ {
        let bits = |(i, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| Chunk::small(i * 64 + bit))
        };
        self.0.iter().enumerate().flat_map(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_comes_back_once() {
        let mut lent = Lent::new(100);
        let chunks: Vec<Chunk> = [0, 63, 64, 99].map(Chunk::small).into();
        chunks.iter().for_each(|c| lent.lend(*c));
        assert_eq!(lent.iter().collect::<Vec<_>>(), chunks);
        assert!(lent.take_back(chunks[1]));
        assert!(!lent.take_back(chunks[1]));
        assert!(!lent.take_back(Chunk::small(1_000_000)));
        assert_eq!(lent.iter().count(), 3);
    }
}
