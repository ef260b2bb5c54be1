//! GRE (RFC 2784) with key and sequence number (RFC 2890), as it carries Ethernet frames.
//!
//! No key and key 0 are different things. A sequence number is accepted and not looked at: frames may arrive
//! in any order, as in Ethernet. ERSPAN looks the same but for its type, and its key is a number of the mirror
//! session, so it is refused under its own name.

use thiserror::Error;

use crate::checksum::{Field, Sum};
use crate::field::{EtherType, GreKey};

/// The fewest bytes: flags and type.
pub const MIN_HEADER: usize = 4;
/// The most bytes: with checksum, key and sequence number.
pub const MAX_HEADER: usize = 16;
/// Bytes from the start of the header to the checksum.
pub const CHECKSUM_FIELD: usize = 4;

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
/// Routing and what belongs to it in RFC 1701, bits 1, 4 and 5: a receiver that does not know them must
/// discard (RFC 2784 section 2.3).
const ROUTING: u16 = 0x4c00;
const VERSION: u16 = 0x0007;

/// No GRE header that carries Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GreError {
    /// It ends before its flags are satisfied.
    #[error("GRE header of {0} bytes is truncated")]
    Truncated(usize),
    /// A version other than 0, such as PPTP's 1.
    #[error("GRE version {0} is unknown, expected 0")]
    Version(u8),
    /// Source routing, of RFC 1701.
    #[error("GRE flags 0x{0:04x} ask for source routing, which is obsolete")]
    Routing(u16),
    /// A mirror session.
    #[error("GRE protocol {0} is ERSPAN")]
    Erspan(EtherType),
    /// It carries no Ethernet.
    #[error("GRE protocol {0} is not Ethernet, 0x6558")]
    Protocol(EtherType),
}

/// A header of version 0 without routing, with all the fields that its flags announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gre<'a> {
    flags: u16,
    /// [`Gre::header_len`] bytes.
    bytes: &'a [u8],
}

impl<'a> Gre<'a> {
    /// The header at the start of these bytes.
    ///
    /// # Errors
    /// [`GreError::Version`], [`GreError::Routing`], [`GreError::Truncated`].
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Self, GreError> {
        let truncated = GreError::Truncated(bytes.len());
        let fixed: &[u8; MIN_HEADER] = bytes.first_chunk().ok_or(truncated)?;
        let flags = u16::from_be_bytes([fixed[0], fixed[1]]);
        if flags & VERSION != 0 {
            return Err(GreError::Version((flags & VERSION) as u8));
        }
        if flags & ROUTING != 0 {
            return Err(GreError::Routing(flags));
        }
        let bytes = bytes.get(..header_len(flags)).ok_or(truncated)?;
        Ok(Gre { flags, bytes })
    }

    /// Bytes in front of the payload: 4 to 16.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.bytes.len()
    }

    /// What the payload is.
    #[inline]
    pub fn protocol(&self) -> EtherType {
        EtherType(u16::from_be_bytes([self.bytes[2], self.bytes[3]]))
    }

    /// The checksum over header and payload, if there is one.
    #[inline]
    pub fn checksum(&self) -> Option<Field> {
        self.word(CHECKSUM).map(|[a, b, ..]| [a, b])
    }

    /// The key, if there is one.
    #[inline]
    pub fn key(&self) -> Option<GreKey> {
        self.word(KEY).map(|octets| GreKey(u32::from_be_bytes(octets)))
    }

    /// The sequence number, if there is one.
    #[inline]
    pub fn sequence(&self) -> Option<u32> {
        self.word(SEQUENCE).map(u32::from_be_bytes)
    }

    /// The field that `flag` announces. It stands behind those of the higher flags.
    #[inline]
    fn word(&self, flag: u16) -> Option<[u8; 4]> {
        let higher = self.flags & !(flag | (flag - 1));
        (self.flags & flag != 0).then(|| self.bytes.get(header_len(higher)..)?.first_chunk().copied())?
    }
}

/// Bytes of a header with these flags.
#[inline]
const fn header_len(flags: u16) -> usize {
    MIN_HEADER + 4 * (flags & (CHECKSUM | KEY | SEQUENCE)).count_ones() as usize
}

/// What the header of an Ethernet frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// Which tunnel or segment.
    pub key: Option<GreKey>,
    /// The number of the frame.
    pub sequence: Option<u32>,
    /// Whether header and payload are summed.
    pub checksum: bool,
}

impl Repr {
    /// Reads a header. The checksum is not verified: that is up to who holds the payload.
    ///
    /// # Errors
    /// [`GreError::Erspan`], [`GreError::Protocol`].
    #[inline]
    pub fn parse(header: &Gre<'_>) -> Result<Repr, GreError> {
        match header.protocol() {
            EtherType::TEB => Ok(Repr {
                key: header.key(),
                sequence: header.sequence(),
                checksum: header.checksum().is_some(),
            }),
            erspan @ (EtherType::ERSPAN | EtherType::ERSPAN_3) => Err(GreError::Erspan(erspan)),
            other => Err(GreError::Protocol(other)),
        }
    }

    fn flags(&self) -> u16 {
        let bit = |set: bool, flag| if set { flag } else { 0 };
        bit(self.checksum, CHECKSUM) | bit(self.key.is_some(), KEY) | bit(self.sequence.is_some(), SEQUENCE)
    }

    /// Bytes that [`Repr::emit`] writes in front of the payload.
    pub fn header_len(&self) -> usize {
        header_len(self.flags())
    }

    /// Writes the header in front of the payload that already stands in `message`, and the checksum over both.
    ///
    /// # Panics
    /// If `message` is shorter than [`Repr::header_len`].
    pub fn emit(&self, message: &mut [u8]) {
        let checksum = self.checksum.then_some([0; 4]);
        let key = self.key.map(|key| key.0.to_be_bytes());
        let sequence = self.sequence.map(u32::to_be_bytes);
        let (header, _) = message.split_at_mut(self.header_len());
        let (fixed, mut rest) = header.split_at_mut(MIN_HEADER);
        fixed[..2].copy_from_slice(&self.flags().to_be_bytes());
        fixed[2..].copy_from_slice(&EtherType::TEB.0.to_be_bytes());
        for word in [checksum, key, sequence].into_iter().flatten() {
            rest[..4].copy_from_slice(&word);
            rest = &mut rest[4..];
        }
        if self.checksum {
            let checksum = Sum::of(message).checksum();
            message[CHECKSUM_FIELD..CHECKSUM_FIELD + 2].copy_from_slice(&checksum);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn parse(bytes: &[u8]) -> Result<Repr, GreError> {
        Gre::new(bytes).and_then(|header| Repr::parse(&header))
    }

    fn any_repr() -> impl Strategy<Value = Repr> {
        (option::of(any::<u32>().prop_map(GreKey)), option::of(any::<u32>()), any::<bool>())
            .prop_map(|(key, sequence, checksum)| Repr { key, sequence, checksum })
    }

    const PLAIN: Repr = Repr { key: None, sequence: None, checksum: false };

    #[test]
    fn no_key_and_key_zero_are_different() {
        assert_eq!(parse(&[0, 0, 0x65, 0x58]), Ok(PLAIN));
        let zero = Repr { key: Some(GreKey(0)), ..PLAIN };
        assert_eq!(parse(&[0x20, 0, 0x65, 0x58, 0, 0, 0, 0]), Ok(zero));
    }

    #[test]
    fn the_fields_of_rfc_2890_stand_in_order() {
        let bytes = [0xb0, 0, 0x65, 0x58, 1, 2, 0, 0, 3, 4, 5, 6, 7, 8, 9, 10, 0xee];
        let header = Gre::new(&bytes).unwrap();
        assert_eq!(header.header_len(), MAX_HEADER);
        assert_eq!(header.checksum(), Some([1, 2]));
        assert_eq!(header.key(), Some(GreKey(0x0304_0506)));
        assert_eq!(header.sequence(), Some(0x0708_090a));
        let bytes = [0x10, 0, 0x65, 0x58, 7, 8, 9, 10];
        assert_eq!(parse(&bytes), Ok(Repr { sequence: Some(0x0708_090a), ..PLAIN }));
    }

    #[test]
    fn other_kinds_of_gre_are_refused() {
        let header = |flags: u16, protocol: u16| {
            parse(&[flags.to_be_bytes(), protocol.to_be_bytes(), [0; 2], [0; 2]].concat())
        };
        assert_eq!(header(0x0001, 0x6558), Err(GreError::Version(1)), "PPTP");
        assert_eq!(header(0x4000, 0x6558), Err(GreError::Routing(0x4000)));
        assert_eq!(header(0x0800, 0x6558), Err(GreError::Routing(0x0800)), "strict source route");
        assert_eq!(header(0x0400, 0x6558), Err(GreError::Routing(0x0400)), "recursion control");
        assert_eq!(header(0x02f8, 0x6558), Ok(PLAIN), "reserved bits 6 to 12 are ignored");
        assert_eq!(header(0x1000, 0x88be), Err(GreError::Erspan(EtherType::ERSPAN)));
        assert_eq!(header(0x1000, 0x22eb), Err(GreError::Erspan(EtherType::ERSPAN_3)));
        assert_eq!(header(0, 0x0800), Err(GreError::Protocol(EtherType::IPV4)));
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(repr in any_repr(), payload in vec(any::<u8>(), 0..40)) {
            let mut message = vec![0xee; repr.header_len()];
            message.extend(&payload);
            repr.emit(&mut message);
            prop_assert_eq!(parse(&message), Ok(repr));
            prop_assert_eq!(&message[repr.header_len()..], &payload[..]);
            prop_assert!(!repr.checksum || Sum::of(&message).verifies());
            for len in 0..repr.header_len() {
                prop_assert_eq!(parse(&message[..len]), Err(GreError::Truncated(len)));
            }
        }

        #[test]
        fn any_bytes_are_read_within_bounds(bytes in vec(any::<u8>(), 0..20)) {
            if let Ok(header) = Gre::new(&bytes) {
                prop_assert!(header.header_len() <= bytes.len());
                let fields = [header.checksum().is_some(), header.key().is_some(), header.sequence().is_some()];
                let fields = fields.into_iter().filter(|there| *there).count();
                prop_assert_eq!(header.header_len(), MIN_HEADER + 4 * fields);
            }
        }
    }
}
