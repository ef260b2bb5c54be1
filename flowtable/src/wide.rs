//! What x86-64 processors of the last decade can do beyond the oldest.
//!
//! The switch is built for any x86-64. Where eight and more bytes at a time pay, a function exists twice: as it is for any processor,
//! and, chosen once a batch, for those of x86-64-v3 (x86-64 psABI, section 3.1.1), which load in network order and
//! work on 32 bytes. Bench `instructions`, `l2/1`, a frame: extraction takes 58 instructions instead of 81, the comparison of
//! neighbours 11 instead of 58.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m128i, __m256i, _mm_loadu_si128, _mm256_loadu_si256, _mm256_storeu_si256};

/// Has the processor what functions with these features need: AVX2, BMI1, BMI2, MOVBE?
#[inline]
pub(crate) fn is_there() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("movbe")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Sixteen octets at `at`.
///
/// # Panics
/// If there are fewer.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
#[allow(unsafe_code)]
pub(crate) fn octets(bytes: &[u8], at: usize) -> __m128i {
    let octets: &[u8; 16] = bytes[at..].first_chunk().expect("sixteen octets");
    // SAFETY: there are as many, and no alignment is asked for.
    unsafe { _mm_loadu_si128(octets.as_ptr().cast()) }
}

/// Four words at `at`.
///
/// # Panics
/// If there are fewer.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
#[allow(unsafe_code)]
pub(crate) fn words(words: &[u64], at: usize) -> __m256i {
    let words: &[u64; 4] = words[at..].first_chunk().expect("four words");
    // SAFETY: there are as many, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

/// Writes four words at `at`.
///
/// # Panics
/// If there is no room for them.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
#[allow(unsafe_code)]
pub(crate) fn write(words: &mut [u64], at: usize, four: __m256i) {
    let words: &mut [u64; 4] = words[at..].first_chunk_mut().expect("room for four words");
    // SAFETY: there is room for as many, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), four) }
}
