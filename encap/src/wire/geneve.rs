//! Geneve (RFC 8926 section 3.4): eight bytes and options between UDP and the inner frame.
//!
//! We know no option. Those that may be ignored are, once their lengths were found to add up; a critical one
//! makes the frame undeliverable. Worst case: 63 options of four bytes each.

use thiserror::Error;

use crate::field::{EtherType, Vni};

/// Bytes of the header without options.
pub const HEADER: usize = 8;
/// Bytes of an option without its data.
const OPTION_HEADER: usize = 4;

const VERSION_SHIFT: u8 = 6;
const OPTIONS_LEN: u8 = 0x3f;
const OAM: u8 = 0x80;
const CRITICAL: u8 = 0x40;
const OPTION_CRITICAL: u8 = 0x80;
const OPTION_LEN: u8 = 0x1f;

/// No Geneve header of a frame that we can deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GeneveError {
    /// It ends before its own length is satisfied.
    #[error("Geneve header of {0} bytes is truncated")]
    Truncated(usize),
    /// A version other than 0.
    #[error("Geneve version {0} is unknown, expected 0")]
    Version(u8),
    /// It carries no Ethernet.
    #[error("Geneve protocol {0} is not Ethernet, 0x6558")]
    Protocol(EtherType),
    /// An option is longer than what is left of all.
    #[error("Geneve option of {len} bytes in the last {left} bytes of options")]
    Option {
        /// Its length with its header.
        len: usize,
        /// Bytes of options from its start on.
        left: usize,
    },
    /// An option that its receiver must know, and we do not.
    #[error("Geneve option 0x{kind:02x} of class 0x{class:04x} is critical and unknown")]
    Critical {
        /// Who defined it.
        class: u16,
        /// Which it is. The header alone may say that it is critical, not its high bit.
        kind: u8,
    },
}

/// A header of version 0 with all its options, whose lengths add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geneve<'a> {
    fixed: &'a [u8; HEADER],
    options: &'a [u8],
}

impl<'a> Geneve<'a> {
    /// The header at the start of these bytes.
    ///
    /// # Errors
    /// [`GeneveError::Version`], [`GeneveError::Truncated`], [`GeneveError::Option`].
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Self, GeneveError> {
        let truncated = GeneveError::Truncated(bytes.len());
        let (fixed, rest) = bytes.split_first_chunk::<HEADER>().ok_or(truncated)?;
        let version = fixed[0] >> VERSION_SHIFT;
        if version != 0 {
            return Err(GeneveError::Version(version));
        }
        let options = rest.get(..usize::from(fixed[0] & OPTIONS_LEN) * 4).ok_or(truncated)?;
        check(options)?;
        Ok(Geneve { fixed, options })
    }

    /// Bytes in front of the inner frame: 8 to 260.
    #[inline]
    pub fn header_len(&self) -> usize {
        HEADER + self.options.len()
    }

    /// A control message, not for the inner network.
    #[inline]
    pub fn oam(&self) -> bool {
        self.fixed[1] & OAM != 0
    }

    /// Whether the header says that an option is critical.
    #[inline]
    pub fn critical(&self) -> bool {
        self.fixed[1] & CRITICAL != 0
    }

    /// What the payload is.
    #[inline]
    pub fn protocol(&self) -> EtherType {
        EtherType(u16::from_be_bytes([self.fixed[2], self.fixed[3]]))
    }

    /// The network identifier.
    #[inline]
    pub fn vni(&self) -> Vni {
        Vni::from_octets([self.fixed[4], self.fixed[5], self.fixed[6]])
    }

    /// The options in order.
    #[inline]
    pub fn options(&self) -> Options<'a> {
        Options { rest: self.options }
    }
}

/// Whether the lengths of all options add up.
#[inline]
fn check(options: &[u8]) -> Result<(), GeneveError> {
    let mut left = options.len();
    while left > 0 {
        // `options` and every option are whole words, so the header of each is there.
        let len = option_len(options[options.len() - left + 3]);
        left = left.checked_sub(len).ok_or(GeneveError::Option { len, left })?;
    }
    Ok(())
}

/// Bytes of an option whose fourth octet this is, header included.
#[inline]
fn option_len(octet: u8) -> usize {
    OPTION_HEADER + usize::from(octet & OPTION_LEN) * 4
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opt<'a> {
    /// Who defined it.
    pub class: u16,
    /// Which it is; with the high bit set, critical.
    pub kind: u8,
    /// Its data: whole words.
    pub data: &'a [u8],
}

impl Opt<'_> {
    /// Whether who does not know this option must drop the frame.
    #[inline]
    pub fn is_critical(&self) -> bool {
        self.kind & OPTION_CRITICAL != 0
    }
}

/// The options of a header, whose lengths were checked.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Opt<'a>;

    #[inline]
    fn next(&mut self) -> Option<Opt<'a>> {
        let [class_high, class_low, kind, len] = *self.rest.first_chunk()?;
        let (option, rest) = self.rest.split_at_checked(option_len(len))?;
        self.rest = rest;
        let class = u16::from_be_bytes([class_high, class_low]);
        Some(Opt { class, kind, data: &option[OPTION_HEADER..] })
    }
}

/// What the header of an Ethernet frame without options means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// The network identifier.
    pub vni: Vni,
    /// A control message, not for the inner network.
    pub oam: bool,
}

impl Repr {
    /// Reads a header, and leaves out options that may be ignored.
    ///
    /// # Errors
    /// [`GeneveError::Protocol`], [`GeneveError::Critical`]: an option says so itself, or the header of any.
    #[inline]
    pub fn parse(header: &Geneve<'_>) -> Result<Repr, GeneveError> {
        if header.protocol() != EtherType::TEB {
            return Err(GeneveError::Protocol(header.protocol()));
        }
        let critical = header.options().find(|option| option.is_critical() || header.critical());
        match critical {
            None => Ok(Repr { vni: header.vni(), oam: header.oam() }),
            Some(Opt { class, kind, .. }) => Err(GeneveError::Critical { class, kind }),
        }
    }

    /// The header.
    pub fn emit(&self) -> [u8; HEADER] {
        let [a, b, c] = self.vni.to_octets();
        let [high, low] = EtherType::TEB.0.to_be_bytes();
        [0, if self.oam { OAM } else { 0 }, high, low, a, b, c, 0]
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::field::tests::vni;

    fn parse(bytes: &[u8]) -> Result<Repr, GeneveError> {
        Geneve::new(bytes).and_then(|header| Repr::parse(&header))
    }

    /// A header with these flags in front of these options.
    fn with_options(flags: u8, options: &[u8]) -> Vec<u8> {
        [&[(options.len() / 4) as u8, flags, 0x65, 0x58, 0x12, 0x34, 0x56, 0][..], options].concat()
    }

    fn repr() -> Repr {
        Repr { vni: Vni::new(0x12_3456).unwrap(), oam: false }
    }

    #[test]
    fn the_header_of_rfc_8926_section_3_4() {
        assert_eq!(repr().emit(), [0, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0]);
        assert_eq!(parse(&[0, 0x3f, 0x65, 0x58, 0x12, 0x34, 0x56, 0xff]), Ok(repr()), "reserved bits");
        assert_eq!(parse(&[0, 0x80, 0x65, 0x58, 0x12, 0x34, 0x56, 0]), Ok(Repr { oam: true, ..repr() }));
        assert_eq!(parse(&[0x40, 0, 0x65, 0x58, 0, 0, 0, 0]), Err(GeneveError::Version(1)));
        assert_eq!(parse(&[0, 0, 0x08, 0, 0, 0, 0, 0]), Err(GeneveError::Protocol(EtherType::IPV4)));
        assert_eq!(parse(&[0, 0, 0x65, 0x58, 0, 0, 0]), Err(GeneveError::Truncated(7)));
    }

    #[test]
    fn options_that_are_not_critical_are_passed_over() {
        // Class 0x0102 is Open Virtual Network's, with its two ports in it; then one without data.
        let bytes = with_options(0, &[1, 2, 0x7f, 1, 0, 1, 0, 2, 0xff, 0xf0, 3, 0xe0]);
        let header = Geneve::new(&bytes).unwrap();
        let ports = Opt { class: 0x0102, kind: 0x7f, data: &[0, 1, 0, 2] };
        let empty = Opt { class: 0xfff0, kind: 3, data: &[] };
        assert_eq!(header.options().collect::<Vec<_>>(), [ports, empty]);
        assert_eq!((header.header_len(), parse(&bytes)), (20, Ok(repr())));
    }

    #[test]
    fn critical_options_are_refused() {
        let option = [1, 2, 0x80, 0];
        let critical = Err(GeneveError::Critical { class: 0x0102, kind: 0x80 });
        assert_eq!(parse(&with_options(CRITICAL, &option)), critical);
        assert_eq!(parse(&with_options(0, &option)), critical, "the header forgot to say so");
        assert_eq!(parse(&with_options(0, &[&[0; 4], &option[..]].concat())), critical, "the second one");
        let first = Err(GeneveError::Critical { class: 0x0102, kind: 0 });
        assert_eq!(parse(&with_options(CRITICAL, &[1, 2, 0, 0])), first, "the option forgot to say so");
        assert_eq!(parse(&with_options(CRITICAL, &[])), Ok(repr()), "there is none");
    }

    #[test]
    fn lengths_that_lie_are_an_error() {
        let one = with_options(0, &[1, 2, 3, 1]);
        assert_eq!(parse(&one), Err(GeneveError::Option { len: 8, left: 4 }));
        let second = with_options(0, &[1, 2, 3, 0, 1, 2, 3, 0x1f, 0, 0, 0, 0]);
        assert_eq!(parse(&second), Err(GeneveError::Option { len: 128, left: 8 }));
        let all = with_options(0, &[0; 8]);
        assert_eq!(parse(&all[..15]), Err(GeneveError::Truncated(15)));
        assert_eq!(Geneve::new(&with_options(0, &[0; 252])).unwrap().options().count(), 63);
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(vni in vni(), oam in any::<bool>()) {
            let repr = Repr { vni, oam };
            prop_assert_eq!(parse(&repr.emit()), Ok(repr));
        }

        #[test]
        fn any_bytes_are_read_within_bounds(
            words in 0u8..64, flags in any::<u8>(), rest in vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..300)
        ) {
            let bytes = [&[words, flags, 0x65, 0x58, 0, 0, 0, 0][..], &rest].concat();
            if let Ok(header) = Geneve::new(&bytes) {
                let options: usize = header.options().map(|option| OPTION_HEADER + option.data.len()).sum();
                prop_assert_eq!(header.header_len(), HEADER + options, "options are not all there is");
                prop_assert!(header.header_len() <= bytes.len());
            }
            prop_assert_eq!(parse(&bytes[..7]), Err(GeneveError::Truncated(7)));
        }
    }
}
