//! What a frame of ours carries in its payload: whose it is, which one, and when it was sent.
//!
//! ```text
//! 0      4            10                 18
//! | token | sequence   | sent, ns         |      all big endian
//! ```
//!
//! 18 bytes, which is just what a frame of 60 bytes has room for behind Ethernet, IPv4 and UDP. A frame with less has no
//! time, so no latency; one with less than 10 has none of it, and its kind is only counted. The token is drawn for each run:
//! late frames of another run are nobody's.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Bytes of a stamp.
pub const LEN: usize = 18;
/// Bytes of a stamp without the time.
pub const UNTIMED: usize = 10;
/// Bytes of token.
const TOKEN: usize = 4;
/// The stamp is looked for in this many bytes: outer headers, two tags each, and whatever a switch may put in front.
const REACH: usize = 256;

/// Whose frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; TOKEN]);

impl Token {
    /// One that nobody else has, but by chance.
    pub fn random() -> Token {
        let random = RandomState::new().build_hasher().finish().to_be_bytes();
        Token([random[0], random[1], random[2], random[3]])
    }
}

/// How much of a stamp a frame has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// All of it.
    Whole,
    /// Token and sequence: no latency.
    Untimed,
    /// None: frames are counted, and that is all.
    None,
}

impl Form {
    /// What fits into a payload of so many bytes.
    pub fn fitting(payload: usize) -> Form {
        match payload {
            LEN.. => Form::Whole,
            UNTIMED.. => Form::Untimed,
            _ => Form::None,
        }
    }

    /// Bytes of it.
    pub fn len(self) -> usize {
        match self {
            Form::Whole => LEN,
            Form::Untimed => UNTIMED,
            Form::None => 0,
        }
    }

    /// Is there nothing?
    pub fn is_empty(self) -> bool {
        self == Form::None
    }
}

/// Which frame, sent when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Counts the frames of a run from 0; the low 48 bits.
    pub sequence: u64,
    /// In nanoseconds of the run.
    pub sent: u64,
}

impl Stamp {
    /// As it stands in a payload; of a shorter form the first bytes.
    #[inline]
    pub fn emit(self, Token(token): Token) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..TOKEN].copy_from_slice(&token);
        bytes[TOKEN..UNTIMED].copy_from_slice(&self.sequence.to_be_bytes()[2..]);
        bytes[UNTIMED..].copy_from_slice(&self.sent.to_be_bytes());
        bytes
    }
}

/// Finds stamps in frames that a switch may have changed in front: tags, outer headers.
#[derive(Debug, Clone)]
pub struct Finder {
    token: Token,
    form: Form,
    /// Where the last one was. Nearly all are at the same place.
    at: usize,
}

impl Finder {
    /// Of stamps with this token.
    pub fn new(token: Token, form: Form) -> Finder {
        Finder { token, form, at: 0 }
    }

    /// The stamp of a frame, if it has one; `sent` is 0 if stamps have no time. Costs one comparison, or [`REACH`] where the stamp is not where the
    /// last one was.
    #[inline]
    pub fn find(&mut self, frame: &[u8]) -> Option<Stamp> {
        if self.form == Form::None {
            return None;
        }
        if !frame.get(self.at..).is_some_and(|rest| rest.starts_with(&self.token.0)) {
            self.at = self.search(frame)?;
        }
        let bytes = &frame[self.at..];
        let sequence = bytes.get(TOKEN..UNTIMED)?;
        let sequence = sequence.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let sent = match self.form {
            Form::Whole => u64::from_be_bytes(*bytes.get(UNTIMED..)?.first_chunk()?),
            _ => 0,
        };
        Some(Stamp { sequence, sent })
    }

    #[cold]
    fn search(&self, frame: &[u8]) -> Option<usize> {
        let reach = &frame[..frame.len().min(REACH)];
        reach.windows(TOKEN).position(|window| window == self.token.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_emitted_is_found_behind_any_headers(
            sequence in 0u64..1 << 48, sent: u64, token: [u8; 4], fronts in vec(vec(0u8..=0x7f, 0..200), 1..4),
        ) {
            // Headers of seven bits cannot hold the token by chance.
            let token = Token([token[0] | 0x80, token[1], token[2], token[3]]);
            for form in [Form::Whole, Form::Untimed] {
                let mut finder = Finder::new(token, form);
                for front in &fronts {
                    let stamp = Stamp { sequence, sent };
                    let frame = [&front[..], &stamp.emit(token)[..form.len()]].concat();
                    let expected = Stamp { sent: if form == Form::Whole { sent } else { 0 }, ..stamp };
                    prop_assert_eq!(finder.find(&frame), Some(expected));
                    prop_assert_eq!(finder.find(&frame[..frame.len() - 1]), None);
                }
            }
        }

        #[test]
        fn foreign_frames_are_nobodys(frame in vec(0u8..=0x7f, 0..400)) {
            prop_assert_eq!(Finder::new(Token([0x80; 4]), Form::Whole).find(&frame), None);
        }
    }

    #[test]
    fn short_payloads_have_less() {
        assert_eq!(
            [18, 17, 10, 9, 0].map(Form::fitting),
            [Form::Whole, Form::Untimed, Form::Untimed, Form::None, Form::None]
        );
        assert_eq!(Finder::new(Token([1; 4]), Form::None).find(&[1; 60]), None);
    }
}
