//! A set of places in a batch of up to 32.

use std::num::NonZeroU32;

/// Places 0 to 31, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Places(u32);

impl Places {
    /// How many places there are.
    pub const MAX: usize = 32;

    /// No place.
    pub const NONE: Places = Places(0);

    /// The first `n` places, at most [`Places::MAX`].
    #[inline]
    pub fn first(n: usize) -> Places {
        Places(u32::MAX.checked_shr((Self::MAX - n) as u32).unwrap_or(0))
    }

    /// Adds a place below [`Places::MAX`].
    #[inline]
    pub fn insert(&mut self, place: usize) {
        self.0 |= 1 << place;
    }

    /// Takes a place below [`Places::MAX`] out.
    #[inline]
    pub fn remove(&mut self, place: usize) {
        self.0 &= !(1 << place);
    }

    /// The places behind those of the set, as far as there are.
    #[inline]
    pub fn next_ones(self) -> Places {
        Places(self.0 << 1)
    }

    /// Those that are in `others`, too.
    #[inline]
    pub fn and(self, others: Places) -> Places {
        Places(self.0 & others.0)
    }

    /// Those that are not in `others`.
    #[inline]
    pub fn without(self, others: Places) -> Places {
        Places(self.0 & !others.0)
    }

    /// Is this place, below [`Places::MAX`], in the set?
    #[inline]
    pub fn contains(self, place: usize) -> bool {
        self.0 >> place & 1 != 0
    }

    /// How many are in the set.
    #[inline]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// True if none is.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The places whose bits are set.
impl From<u32> for Places {
    #[inline]
    fn from(bits: u32) -> Self {
        Places(bits)
    }
}

/// The places of the set, ascending.
impl Iterator for Places {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let place = NonZeroU32::new(self.0)?.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        for n in 0..=Places::MAX {
            assert!(Places::first(n).eq(0..n));
        }
        let mut places = Places::NONE;
        [31, 3, 0, 3].into_iter().for_each(|place| places.insert(place));
        assert!(places.eq([0, 3, 31]) && places.contains(31) && !places.contains(30));
        places.remove(3);
        assert_eq!((places.len(), places.is_empty(), Places::NONE.is_empty()), (2, false, true));
        assert!(Places::first(4).without(places).eq([1, 2, 3]));
        places.insert(3);
        assert!(places.next_ones().eq([1, 4]) && places.and(Places::first(4)).eq([0, 3]));
        assert!(Places::from(1 << 31 | 1).eq([0, 31]));
    }
}
