//! What any mask looks at: which keys of a batch some mask may tell from the one before, and hashes of that.

use crate::key::{FlowKey, WORDS};
use crate::mask::Mask;
use crate::places::Places;
#[cfg(target_arch = "x86_64")]
use crate::wide;

/// Words that are compared at once.
const GROUP: usize = 4;
/// How often that is.
#[cfg(target_arch = "x86_64")]
const GROUPS: usize = WORDS / GROUP;

/// What any of a reader's masks looks at.
#[derive(Debug)]
pub(super) struct Looks {
    /// The bits.
    pub(super) union: Mask,
    /// The words of that which are not zero, with their indexes.
    pub(super) words: Vec<(usize, u64)>,
    /// How many groups there are up to the last that has such a word.
    groups: usize,
}

impl Looks {
    /// What these masks look at.
    pub(super) fn of<'m>(masks: impl Iterator<Item = &'m Mask>) -> Self {
        let union = masks.fold(Mask::EMPTY, |all, mask| all.union(mask));
        let words: Vec<_> = union.nonzero().collect();
        let groups = words.last().map_or(0, |(last, _)| last / GROUP + 1);
        Looks { union, words, groups }
    }

    /// Is there a bit in which these keys differ?
    #[inline]
    pub(super) fn tell(&self, a: &FlowKey, b: &FlowKey) -> bool {
        self.words.iter().fold(0, |all, &(i, mask)| all | (a.0[i] ^ b.0[i]) & mask) != 0
    }

    /// The places of those of at most [`Places::MAX`] keys that differ from the one before. Behind the first `used` words
    /// all are zero.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) fn told(&self, (keys, used): (&[FlowKey], usize)) -> Places {
        #[cfg(target_arch = "x86_64")]
        if wide::is_there() {
            // SAFETY: the processor has what it needs.
            return unsafe { self.told_wide(keys, self.groups.min(used.div_ceil(GROUP))) };
        }
        self.told_by_word(keys)
    }

    /// Hashes what any mask looks at, of those keys that are `wanted`, one by one, with their place.
    /// Behind the first `used` words all are zero.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) fn hash_each(
        &self,
        (keys, used): (&[FlowKey; Places::MAX], usize),
        wanted: Places,
        mut hashed: impl FnMut(usize, u64),
    ) {
        #[cfg(target_arch = "x86_64")]
        if wide::is_there() {
            // SAFETY: the processor has what it needs.
            return unsafe { self.hash_wide((keys, self.groups.min(used.div_ceil(GROUP))), wanted, hashed) };
        }
        wanted.for_each(|place| hashed(place, keys[place].hash_under(self.words.iter().copied())));
    }

    /// In the first so many groups.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    fn hash_wide(
        &self,
        (keys, groups): (&[FlowKey; Places::MAX], usize),
        wanted: Places,
        mut hashed: impl FnMut(usize, u64),
    ) {
        match groups {
            ..=1 => wanted.for_each(|place| hashed(place, keys[place].hash_wide::<1>(&self.union))),
            2 => wanted.for_each(|place| hashed(place, keys[place].hash_wide::<2>(&self.union))),
            _ => wanted.for_each(|place| hashed(place, keys[place].hash_wide::<GROUPS>(&self.union))),
        }
    }

    fn told_by_word(&self, keys: &[FlowKey]) -> Places {
        let mut told = Places::NONE;
        let pairs = (1..).zip(keys.iter().zip(keys.get(1..).unwrap_or_default()));
        pairs.filter(|(_, (a, b))| self.tell(a, b)).for_each(|(place, _)| told.insert(place));
        told
    }

    /// Four words at a time: 11 instructions a frame instead of 58 (bench `instructions`, `l2/1`).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    fn told_wide(&self, keys: &[FlowKey], groups: usize) -> Places {
        match groups {
            ..=1 => self.told_in::<1>(keys),
            2 => self.told_in::<2>(keys),
            _ => self.told_in::<GROUPS>(keys),
        }
    }

    /// Looks at the first `N` groups.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    fn told_in<const N: usize>(&self, keys: &[FlowKey]) -> Places {
        use std::arch::x86_64::{
            _mm256_and_si256, _mm256_or_si256, _mm256_setzero_si256, _mm256_testz_si256, _mm256_xor_si256,
        };
        let four = |all: &[u64; WORDS], n| wide::words(all, n * GROUP);
        let masks: [_; N] = std::array::from_fn(|n| four(self.union.words(), n));
        let mut told = 0;
        for (place, (before, key)) in (1..).zip(keys.iter().zip(keys.get(1..).unwrap_or_default())) {
            let differs = |n| _mm256_xor_si256(four(before.words(), n), four(key.words(), n));
            let all = (0..N).fold(_mm256_setzero_si256(), |all, n| {
                _mm256_or_si256(all, _mm256_and_si256(differs(n), masks[n]))
            });
            told |= u32::from(_mm256_testz_si256(all, all) == 0) << place;
        }
        Places::from(told)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    proptest! {
        #[test]
        fn wide_or_not_it_tells_the_same(
            words in vec(prop::array::uniform20(select(vec![0u64, 1, 1 << 63])), 0..=32),
            masks in vec(prop::array::uniform20(select(vec![0u64, 0, 0, 1, u64::MAX])), 0..3),
        ) {
            let keys: Vec<FlowKey> = words.into_iter().map(FlowKey).collect();
            let masks: Vec<Mask> = masks.into_iter().map(Mask).collect();
            let looks = Looks::of(masks.iter());
            let differs = |place: &usize| {
                masks.iter().any(|mask| keys[place - 1].masked(mask) != keys[*place].masked(mask))
            };
            prop_assert!(looks.told_by_word(&keys).eq((1..keys.len()).filter(differs)));
            let used = |key: &FlowKey| key.0.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
            let used = keys.iter().map(used).max().unwrap_or(0);
            let wanted = Places::first(keys.len()).without(Places::from(0b1010));
            let hashes = wanted.map(|place| (place, keys[place].masked(&looks.union).hash()));
            let hashes: Vec<_> = hashes.collect();
            let mut all = [FlowKey::default(); Places::MAX];
            all[..keys.len()].copy_from_slice(&keys);
            for used in [used, WORDS] {
                prop_assert_eq!(looks.told((&keys, used)), looks.told_by_word(&keys));
                let mut hashed = Vec::new();
                looks.hash_each((&all, used), wanted, |place, hash| hashed.push((place, hash)));
                prop_assert_eq!(&hashed, &hashes);
            }
        }
    }
}
