//! Frames in memory, one behind the other, to be sent round and round: made ones, or those of a pcap file.
//!
//! A [`Player`] is a port that plays them: it allocates and copies each frame it gives, and frees each that it gets, which is
//! what Open vSwitch's looping `net_pcap` and its `net_null` do. So a switch between two of them does the same work for each
//! frame as that one does.

use std::path::Path;

use thiserror::Error;

use super::frames::Frames;
use super::stamp::Stamp;
use crate::batch::Batch;
use crate::frame::{BIG, Frame, FrameCache, HEADROOM};
use crate::port::{Port, PortError, Sent};

/// The most bytes of a reel.
pub const BYTES_MAX: usize = 4 << 30;
/// Bytes in front of each frame: its length.
const LENGTH: usize = 4;
/// Magic numbers of pcap files, with micro- and nanoseconds (draft-ietf-opsawg-pcap section 4).
const MAGIC: [u32; 2] = [0xa1b2_c3d4, 0xa1b2_3c4d];
/// Bytes of a pcap file's header, and of a record's.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// A reel cannot be made.
#[derive(Debug, Error)]
pub enum ReelError {
    /// The file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error(
        "{0} is no pcap file of Ethernet frames; write one with `tcpdump -w`, or convert it with `editcap -F pcap`"
    )]
    Format(String),
    /// A record ends behind the file, or is none.
    #[error(
        "{file}: frame {number} has {len} bytes, expected {ETHERNET_MIN} to {LEN_MAX}, all of them in the file"
    )]
    Record {
        /// The file.
        file: String,
        /// Which, from 1.
        number: usize,
        /// What it says.
        len: usize,
    },
    /// Nothing to play.
    #[error("{0} has no frame")]
    Empty(String),
    /// Too much to hold.
    #[error(
        "{frames} frames of {len} bytes are more than {BYTES_MAX} bytes; send fewer flows, or shorter frames"
    )]
    TooLong {
        /// How many.
        frames: usize,
        /// Bytes of each.
        len: usize,
    },
}

/// The shortest frame of a file: an Ethernet header.
const ETHERNET_MIN: usize = 14;
/// The longest frame.
const LEN_MAX: usize = BIG - HEADROOM;

/// Frames, at least one unless it is empty.
#[derive(Debug, Clone, Default)]
pub struct Reel {
    bytes: Vec<u8>,
    frames: usize,
    longest: usize,
}

impl Reel {
    /// One frame of each flow.
    ///
    /// # Errors
    /// [`ReelError::TooLong`].
    pub fn of(frames: &Frames) -> Result<Reel, ReelError> {
        let (count, len) = (frames.flows(), frames.frame_len());
        if count.saturating_mul(len + LENGTH) > BYTES_MAX {
            return Err(ReelError::TooLong { frames: count, len });
        }
        let mut reel = Reel::default();
        let mut bytes = vec![0; len];
        for sequence in 0..count as u64 {
            frames.write_bytes(Stamp { sequence, sent: 0 }, &mut bytes);
            reel.push(&bytes);
        }
        Ok(reel)
    }

    /// The frames of a pcap file, of either byte order and any time stamps.
    ///
    /// # Errors
    /// [`ReelError`].
    pub fn read(path: &Path) -> Result<Reel, ReelError> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| ReelError::Read { file: file.clone(), source })?;
        Reel::parse(&bytes, &file)
    }

    fn parse(bytes: &[u8], file: &str) -> Result<Reel, ReelError> {
        let format = || ReelError::Format(file.to_owned());
        let (header, mut rest) = bytes.split_at_checked(FILE_HEADER).ok_or_else(format)?;
        let word: fn(&[u8], usize) -> u32 = match MAGIC.contains(&little(header, 0)) {
            true => little,
            false => |bytes, at| little(bytes, at).swap_bytes(),
        };
        // Above the link type are bits for the length of an FCS.
        if !MAGIC.contains(&word(header, 0)) || word(header, 20) & 0xffff != ETHERNET {
            return Err(format());
        }
        let mut reel = Reel::default();
        while !rest.is_empty() {
            let len = rest.get(..RECORD_HEADER).map_or(0, |header| word(header, 8) as usize);
            let record = ReelError::Record { file: file.to_owned(), number: reel.frames + 1, len };
            let frame = rest.get(RECORD_HEADER..).and_then(|rest| rest.get(..len)).ok_or(record)?;
            if !(ETHERNET_MIN..=LEN_MAX).contains(&len) {
                return Err(ReelError::Record { file: file.to_owned(), number: reel.frames + 1, len });
            }
            reel.push(frame);
            rest = &rest[RECORD_HEADER + len..];
        }
        if reel.frames == 0 { Err(ReelError::Empty(file.to_owned())) } else { Ok(reel) }
    }

    pub(super) fn push(&mut self, frame: &[u8]) {
        self.bytes.extend((frame.len() as u32).to_ne_bytes());
        self.bytes.extend(frame);
        self.frames += 1;
        self.longest = self.longest.max(frame.len());
    }

    /// How many frames there are.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Bytes of the longest.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The frame that begins at `at`, where 0 is the first, and where the next one begins; behind the last the first again.
    #[inline(always)]
    fn frame_at(&self, at: usize) -> (&[u8], usize) {
        let (length, rest) = self.bytes[at..].split_first_chunk().expect("a length before each frame");
        let len = u32::from_ne_bytes(*length) as usize;
        let next = at + LENGTH + len;
        (&rest[..len], if next == self.bytes.len() { 0 } else { next })
    }
}

impl<B: AsRef<[u8]>> FromIterator<B> for Reel {
    fn from_iter<F: IntoIterator<Item = B>>(frames: F) -> Self {
        let mut reel = Reel::default();
        frames.into_iter().for_each(|frame| reel.push(frame.as_ref()));
        reel
    }
}

fn little(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A reel and where it is.
#[derive(Debug, Default)]
pub struct Player {
    reel: Reel,
    at: usize,
}

impl Player {
    /// Plays from the start.
    pub fn new(reel: Reel) -> Player {
        Player { reel, at: 0 }
    }

    /// What it plays.
    pub fn reel(&self) -> &Reel {
        &self.reel
    }

    /// The next frame; `None` if the reel or the pool is empty. Inlined, so that the frame is written where it belongs.
    #[inline(always)]
    pub fn next(&mut self, frames: &mut FrameCache) -> Option<Frame> {
        if self.reel.frames == 0 {
            return None;
        }
        let (bytes, next) = self.reel.frame_at(self.at);
        let frame = frames.from_bytes(bytes)?;
        self.at = next;
        Some(frame)
    }
}

impl Port for Player {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        while self.reel.frames > 0 {
            let (bytes, next) = self.reel.frame_at(self.at);
            if !frames.push_copy(bytes, batch) {
                break;
            }
            self.at = next;
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let bytes = batch.iter().map(|frame| frame.len() as u64).sum();
        let sent = Sent { frames: batch.len() as u32, bytes };
        frames.free_all(batch);
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::frames::Stamping;
    use super::super::terms::Terms;
    use super::*;
    use crate::port::pcap::{Capture, Pcap};
    use crate::port::rig;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What our own pcap port writes of these frames.
    fn captured(all: &[Vec<u8>]) -> Vec<u8> {
        let (_pool, mut frames) = rig::pool();
        let file = Shared::default();
        let mut port = Pcap::new(Box::new(Player::default()), file.clone(), Capture::Both).unwrap();
        for bytes in all {
            let mut batch = Batch::from_iter(frames.from_bytes(bytes));
            port.tx(&mut frames, &mut batch).unwrap();
        }
        port.close(&mut frames);
        std::mem::take(&mut file.0.lock().unwrap())
    }

    fn played(reel: Reel, count: usize) -> Vec<Vec<u8>> {
        let (_pool, mut frames) = rig::pool();
        let mut player = Player::new(reel);
        let mut all = Vec::new();
        for _ in 0..count {
            let frame = player.next(&mut frames).unwrap();
            all.push(frame.bytes().to_vec());
            frames.free(frame);
        }
        all
    }

    proptest! {
        #[test]
        fn what_was_captured_is_played_round_and_round(all in vec(vec(any::<u8>(), 14..2000), 1..10)) {
            let reel = Reel::parse(&captured(&all), "a file").unwrap();
            prop_assert_eq!(reel.frames(), all.len());
            prop_assert_eq!(played(reel, 2 * all.len()), [&all[..], &all[..]].concat());
        }

        #[test]
        fn no_file_makes_it_panic(bytes in vec(any::<u8>(), 0..300), cut in 0usize..200) {
            let _ = Reel::parse(&bytes, "a file");
            let file = captured(&[vec![1; 60], vec![2; 60]]);
            let whole = [24, 24 + 76].contains(&cut);
            prop_assert_eq!(Reel::parse(&file[..cut.min(file.len() - 1)], "a file").is_ok(), whole && cut > 24);
        }
    }

    #[test]
    fn either_byte_order_is_read_and_other_links_are_not() {
        let mut file = captured(&[vec![1; 60]]);
        file[20] = 101;
        let error = Reel::parse(&file, "raw.pcap").unwrap_err().to_string();
        assert!(error.starts_with("raw.pcap is no pcap file of Ethernet frames"), "{error}");
        file[20] = 1;
        for at in (0..24).step_by(4).chain((24..40).step_by(4)) {
            // Version numbers have 16 bits, which nobody reads.
            file[at..at + 4].reverse();
        }
        assert_eq!(played(Reel::parse(&file, "big endian").unwrap(), 1), [vec![1; 60]]);
        assert!(matches!(Reel::parse(&file[..24], "none"), Err(ReelError::Empty(_))));
    }

    #[test]
    fn a_player_gives_every_flow_and_frees_what_it_gets() {
        let (pool, mut frames) = rig::pool();
        let terms = Terms { flows: Some(40), ..Terms::plain() };
        let made = Frames::new(&terms, Stamping::Plain).unwrap();
        let mut player = Player::new(Reel::of(&made).unwrap());
        let mut batch = Batch::new();
        player.rx(&mut frames, &mut batch).unwrap();
        assert!(batch.is_full());
        assert_eq!(player.tx(&mut frames, &mut batch).unwrap(), Sent { frames: 32, bytes: 32 * 60 });
        drop(frames);
        assert_eq!(pool.available(), (2048, 64));
        let huge = Terms { flows: Some(1 << 20), size: 9000, ..Terms::plain() };
        let huge = Frames::new(&huge, Stamping::Plain).unwrap();
        assert!(matches!(Reel::of(&huge), Err(ReelError::TooLong { .. })));
    }
}
