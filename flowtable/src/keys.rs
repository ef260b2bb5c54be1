//! The keys of a batch, extracted in one go.
//!
//! The idea: room for the keys is kept from batch to batch, and of a key only those words are written that its frame may
//! have. The upper words, of ARP, IPv6 and tunnels, are zero for most frames and stay so; where a frame had some, they are
//! cleared when the next batch comes.
//!
//! Cost: of a frame with TCP, UDP or SCTP in plain IPv4 eight loads and four stores, or seven on a processor without wide ones;
//! of any other the walk's (see [`extract`]), and that of clearing. That takes two fifths less time than to make each key on the stack and copy it (`batch/udp4` in
//! `benches/extract`).
//!
//! [`extract`]: mod@crate::extract

use std::ops::Deref;

use crate::extract::{self, LOW, plain, walked};
use crate::id::PortId;
use crate::key::{FlowKey, TUNNEL, TunnelFields, WORDS};
use crate::places::Places;
use crate::wide;

/// The keys of up to [`Places::MAX`] frames, in their order.
#[derive(Debug, Clone)]
pub struct Keys {
    keys: [FlowKey; Places::MAX],
    len: usize,
    /// Where words from [`LOW`] on may not be zero.
    tall: Places,
    /// Those of the tunnel may not be zero in any place.
    tunnelled: bool,
}

impl Default for Keys {
    fn default() -> Self {
        Keys { keys: [FlowKey::default(); Places::MAX], len: 0, tall: Places::NONE, tunnelled: false }
    }
}

impl Keys {
    /// Takes the keys of these frames, as of ones that came in on `in_port`, in the place of those that are here. Says which
    /// frames have one: those with a whole Ethernet header. The others' mean nothing, and frames beyond [`Places::MAX`] are
    /// not looked at.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub fn extract<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>, in_port: PortId) -> Places {
        #[cfg(target_arch = "x86_64")]
        if wide::is_there() {
            // SAFETY: the processor has what it needs.
            return unsafe { self.extract_wide(frames, in_port) };
        }
        self.extract_by(frames, in_port, plain)
    }

    /// As [`Keys::extract`], on a processor that [can](wide::is_there).
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    fn extract_wide<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>, in_port: PortId) -> Places {
        self.extract_by(frames, in_port, |words, frame, port| extract::wide::plain(words, frame, port))
    }

    /// As [`Keys::extract`], where `plain` writes the words of most.
    #[inline(always)]
    fn extract_by<'a>(
        &mut self,
        frames: impl Iterator<Item = &'a [u8]>,
        in_port: PortId,
        plain: impl Fn(&mut [u64; WORDS], &[u8], PortId) -> bool,
    ) -> Places {
        self.clear();
        let mut unsound = Places::NONE;
        let mut len = 0;
        for (frame, key) in frames.zip(&mut self.keys) {
            if !plain(&mut key.0, frame, in_port) {
                self.tall.insert(len);
                if !other(key, frame, in_port) {
                    unsound.insert(len);
                }
            }
            len += 1;
        }
        self.len = len;
        Places::first(len).without(unsound)
    }

    /// Makes them keys of frames that came out of tunnels: for each in turn, the port it came in by and what its outer
    /// headers said.
    #[inline]
    pub fn set_tunnels<'a>(&mut self, outers: impl Iterator<Item = (PortId, &'a TunnelFields)>) {
        for (key, (port, outer)) in self.keys[..self.len].iter_mut().zip(outers) {
            self.tunnelled = true;
            key.0[0] = key.0[0] & 0xffff_ffff | u64::from(port.0) << 32;
            key.set_tunnel(outer);
        }
    }

    /// All places; what is behind the last key means nothing.
    #[inline]
    pub fn all(&self) -> &[FlowKey; Places::MAX] {
        &self.keys
    }

    /// How many words, from the first on, any of the keys may have: all others are zero.
    #[inline]
    pub fn used(&self) -> usize {
        if self.tunnelled || !self.tall.is_empty() { WORDS } else { LOW }
    }

    /// Makes the upper words zero again.
    #[inline]
    fn clear(&mut self) {
        if std::mem::take(&mut self.tunnelled) {
            self.keys[..self.len].iter_mut().for_each(|key| key.0[TUNNEL..].fill(0));
        }
        std::mem::take(&mut self.tall).for_each(|place| self.keys[place].0[LOW..].fill(0));
    }
}

impl Deref for Keys {
    type Target = [FlowKey];

    #[inline]
    fn deref(&self) -> &[FlowKey] {
        &self.keys[..self.len]
    }
}

/// Any frame that is not plain; false if it has no key.
#[inline(never)]
fn other(key: &mut FlowKey, frame: &[u8], in_port: PortId) -> bool {
    walked(&mut key.0, frame, in_port).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::extract::extract;
    use crate::field::TunnelFlags;
    use crate::key::Hop;

    /// Something like an IPv4 frame with ports, with or without a tag, and a few octets changed.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let head = prop_oneof![Just(&[8, 0, 0x45][..]), Just(&[0x81, 0, 1, 2, 8, 0, 0x45][..])];
        let proto = prop_oneof![Just(6), Just(17), Just(132), any::<u8>()];
        let changes = vec((0usize..54, any::<u8>()), 0..3);
        (head, vec(any::<u8>(), 34..60), 24u8..50, proto, changes).prop_map(
            |(head, rest, len, proto, changes)| {
                let mut frame = [&[7; 6][..], &[9; 6], head, &rest].concat();
                let ip = 11 + head.len();
                frame[ip + 2..ip + 8].copy_from_slice(&[0, len, 1, 2, 0x40, 0]);
                frame[ip + 9] = proto;
                let n = frame.len();
                changes.into_iter().for_each(|(at, octet)| frame[at % n] = octet);
                frame
            },
        )
    }

    /// Frames whose keys have upper words, or none at all: a neighbour's answer over IPv6, ARP, MPLS, and too few octets.
    fn upper() -> impl Strategy<Value = Vec<u8>> {
        let ipv6 = [&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255][..], &[3; 32], &[136, 0], &[4; 22]].concat();
        let arp = [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..], &[5; 20]].concat();
        let mpls = [&[0x88, 0x47][..], &[6; 30]].concat();
        let lla = [&ipv6[..], &[2, 1, 8, 8, 8, 8, 8, 8]].concat();
        let kinds = proptest::sample::select(vec![ipv6, lla, arp, mpls, vec![]]);
        (kinds, any::<u8>()).prop_map(|(rest, octet)| {
            let mut frame = [&[octet; 6][..], &[9; 6], &rest].concat();
            *frame.last_mut().expect("there are addresses") ^= octet;
            frame
        })
    }

    fn outer(n: u8) -> TunnelFields {
        let ends = [u128::from(n), u128::MAX].map(std::net::Ipv6Addr::from_bits);
        TunnelFields::new(Some(n.into()), ends, Hop { tos: 4, ttl: n, flags: TunnelFlags::DF })
    }

    proptest! {
        /// Batches of all kinds, long and short, in and out of tunnels, one after the other.
        #[test]
        fn what_was_there_before_leaves_nothing_behind(
            batches in vec((vec(prop_oneof![frame(), upper()], 0..40), proptest::option::of(any::<u8>())), 1..6),
        ) {
            let mut keys = Keys::default();
            for (frames, tunnel) in &batches {
                let sound = keys.extract(frames.iter().map(|frame| &frame[..]), PortId(7));
                let outer = tunnel.map(outer);
                keys.set_tunnels(outer.iter().cycle().take(frames.len()).map(|outer| (PortId(8), outer)));
                prop_assert_eq!(keys.len(), frames.len().min(Places::MAX));
                for (place, (key, frame)) in keys.iter().zip(frames).enumerate() {
                    prop_assert!(key.0[keys.used()..].iter().all(|word| *word == 0), "heads look no further");
                    let alone = extract(frame, if outer.is_some() { PortId(8) } else { PortId(7) });
                    prop_assert_eq!(alone.is_ok(), sound.contains(place));
                    if let Ok(mut alone) = alone {
                        outer.iter().for_each(|outer| alone.set_tunnel(outer));
                        prop_assert_eq!(*key, alone);
                    }
                }
            }
        }

        #[test]
        fn wide_or_not_the_keys_are_the_same(frames in vec(frame(), 1..40)) {
            let (mut keys, mut narrow) = (Keys::default(), Keys::default());
            let bytes = || frames.iter().map(|frame| &frame[..]);
            let sound = keys.extract(bytes(), PortId(7));
            prop_assert_eq!(narrow.extract_by(bytes(), PortId(7), plain), sound);
            prop_assert_eq!(&keys[..], &narrow[..]);
            prop_assert!(keys.iter().all(|key| key.0[keys.used()..] == [0; WORDS][keys.used()..]));
            let is_plain = |frame: &Vec<u8>| plain(&mut [0; WORDS], frame, PortId(7));
            prop_assert!(frames.iter().enumerate().all(|(n, frame)| n >= 32 || is_plain(frame) != keys.tall.contains(n)));
        }
    }
}
