//! As [`plain`](super::plain), sixteen octets at a time.

use std::arch::x86_64::{
    _mm_insert_epi8, _mm_insert_epi32, _mm_or_si128, _mm_set_epi64x, _mm_shuffle_epi8, _mm256_set_m128i,
};

use encap::field::{EtherType, IpProto};
use encap::offsets::{ETHERNET, TAG};

use super::{LEAST, tag};
use crate::id::PortId;
use crate::key::WORDS;
use crate::wide;

/// Octets of a frame up to the end of TCP's flags, which are the last that may be looked at: untagged, and with a tag.
const UNTAGGED: usize = ETHERNET + 34;
const TAGGED: usize = UNTAGGED + TAG;

/// Which bits of the octets where TCP has its flags are those of such a protocol: read without a branch, for protocols vary.
static FLAGS: [u16; 256] = {
    let mut flags = [0; 256];
    flags[IpProto::TCP.0 as usize] = 0xfff;
    flags
};

/// See [`plain`](super::plain).
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
pub(crate) fn plain(words: &mut [u64; WORDS], frame: &[u8], in_port: PortId) -> bool {
    let port = u64::from(in_port.0) << 32;
    if ipv4::<UNTAGGED>(words, frame, port) {
        return true;
    }
    match frame.get(ETHERNET - 2..ETHERNET) {
        Some([0x81, 0x00] | [0x88, 0xa8]) => ipv4::<TAGGED>(words, frame, port | tag(frame, 0)),
        _ => false,
    }
}

/// The same, if `N` octets end where TCP's flags do.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
fn ipv4<const N: usize>(words: &mut [u64; WORDS], frame: &[u8], first: u64) -> bool {
    let Some(headers) = frame.first_chunk::<N>() else { return false };
    let l3 = N - 34;
    let pair = |at: usize| u16::from_be_bytes([headers[at], headers[at + 1]]);
    let start = u32::from_be_bytes(std::array::from_fn(|i| headers[l3 - 2 + i])); // type, version, TOS
    let (len, proto) = (usize::from(pair(l3 + 2)), headers[l3 + 9]);
    let is_known = start & 0xffff_ff00 == 0x0800_4500 && pair(l3 + 6) & 0x3fff == 0;
    if !(is_known && len >= LEAST[usize::from(proto)] as usize && len <= frame.len() - l3) {
        return false;
    }
    let flags = pair(l3 + 32) & FLAGS[usize::from(proto)];
    let low = u32::from(flags) << 16 | (start & 0xff) << 8 | u32::from(headers[l3 + 8]);
    // Indexes with the highest bit set give zeros.
    let ends = _mm_shuffle_epi8(
        wide::octets(headers, 0),
        _mm_set_epi64x(0x0607_0809_0a0b_ffff_u64 as i64, 0x0001_0203_0405_ffff_u64 as i64),
    );
    let ends = _mm_or_si128(ends, _mm_set_epi64x(0, i64::from(EtherType::IPV4.0)));
    let ends = _mm_insert_epi8::<9>(ends, i32::from(proto));
    let inner = _mm_shuffle_epi8(
        wide::octets(headers, l3 + 8),
        _mm_set_epi64x(0x0c0d_0e0f_ffff_ffff_u64 as i64, 0x0405_0607_0809_0a0b_u64 as i64),
    );
    let inner = _mm_insert_epi32::<2>(inner, low as i32);
    words[0] = first;
    wide::write(words, 1, _mm256_set_m128i(inner, ends));
    (words[5], words[6]) = (0, 0);
    true
}
