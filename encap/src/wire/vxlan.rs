//! VXLAN (RFC 7348 section 5): eight bytes between UDP and the inner frame.
//!
//! RFC 7348 has one flag, I, and wants the other bits ignored. Two of them came to mean something since, and
//! taking such a frame for plain VXLAN would be a mistake: P says that what follows may be no Ethernet
//! (draft-ietf-nvo3-vxlan-gpe), G carries a policy group that we would lose (draft-smith-vxlan-group-policy).

use thiserror::Error;

use crate::field::Vni;

/// Bytes of the header.
pub const HEADER: usize = 8;

/// I: the VNI is valid.
const VALID: u8 = 0x08;
/// P of VXLAN-GPE: there is a next-protocol field.
const NEXT_PROTOCOL: u8 = 0x04;
/// G of the group policy extension.
const GROUP_POLICY: u8 = 0x80;

/// Do these flags say that there is a VNI, and none of those that change the meaning of the rest?
#[inline]
pub(crate) const fn has_plain_vni(flags: u8) -> bool {
    flags & (VALID | NEXT_PROTOCOL | GROUP_POLICY) == VALID
}

/// No plain VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VxlanError {
    /// No whole header.
    #[error("VXLAN header of {0} bytes is truncated, expected 8")]
    Truncated(usize),
    /// The I flag is clear.
    #[error("VXLAN flags 0x{0:02x} say that there is no VNI")]
    NoVni(u8),
    /// VXLAN-GPE.
    #[error("VXLAN flags 0x{0:02x} announce VXLAN-GPE")]
    Gpe(u8),
    /// The group policy extension.
    #[error("VXLAN flags 0x{0:02x} announce a group policy")]
    GroupPolicy(u8),
}

/// A whole header, of whatever flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan<'a>(&'a [u8; HEADER]);

impl<'a> Vxlan<'a> {
    /// The header at the start of these bytes.
    ///
    /// # Errors
    /// [`VxlanError::Truncated`].
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Self, VxlanError> {
        bytes.first_chunk().map(Vxlan).ok_or(VxlanError::Truncated(bytes.len()))
    }

    /// The first octet, which has all flags that mean something.
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0[0]
    }

    /// The network identifier.
    #[inline]
    pub fn vni(&self) -> Vni {
        Vni::from_octets([self.0[4], self.0[5], self.0[6]])
    }
}

/// What the header means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repr {
    /// The network identifier.
    pub vni: Vni,
}

impl Repr {
    /// Reads a header.
    ///
    /// # Errors
    /// [`VxlanError`]: the I flag is not set, or a flag is that changes the meaning of the rest.
    #[inline]
    pub fn parse(header: &Vxlan<'_>) -> Result<Repr, VxlanError> {
        let flags = header.flags();
        match flags & (VALID | NEXT_PROTOCOL | GROUP_POLICY) {
            VALID => Ok(Repr { vni: header.vni() }),
            bits if bits & NEXT_PROTOCOL != 0 => Err(VxlanError::Gpe(flags)),
            bits if bits & GROUP_POLICY != 0 => Err(VxlanError::GroupPolicy(flags)),
            _ => Err(VxlanError::NoVni(flags)),
        }
    }

    /// The header, with reserved bits clear.
    pub fn emit(&self) -> [u8; HEADER] {
        let [a, b, c] = self.vni.to_octets();
        [VALID, 0, 0, 0, a, b, c, 0]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::field::tests::vni;

    fn parse(bytes: &[u8]) -> Result<Repr, VxlanError> {
        Vxlan::new(bytes).and_then(|header| Repr::parse(&header))
    }

    #[test]
    fn the_header_of_rfc_7348_figure_1() {
        let repr = Repr { vni: Vni::new(0x12_3456).unwrap() };
        assert_eq!(repr.emit(), [0b0000_1000, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(parse(&[0b0000_1000, 0, 0, 0, 0x12, 0x34, 0x56, 0]), Ok(repr));
    }

    #[test]
    fn reserved_bits_are_ignored() {
        let repr = Repr { vni: Vni::new(5).unwrap() };
        assert_eq!(parse(&[0b0111_1011, 0xff, 0xff, 0xff, 0, 0, 5, 0xff]), Ok(repr));
    }

    #[test]
    fn other_dialects_are_refused() {
        let flags = |flags| parse(&[flags, 0, 0, 3, 0, 0, 5, 0]);
        assert_eq!(flags(0), Err(VxlanError::NoVni(0)));
        assert_eq!(flags(0x0c), Err(VxlanError::Gpe(0x0c)));
        assert_eq!(flags(0x04), Err(VxlanError::Gpe(0x04)));
        assert_eq!(flags(0x88), Err(VxlanError::GroupPolicy(0x88)));
        assert_eq!(parse(&[0x08, 0, 0, 0, 0, 0, 5]), Err(VxlanError::Truncated(7)));
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(vni in vni()) {
            prop_assert_eq!(parse(&Repr { vni }.emit()), Ok(Repr { vni }));
        }
    }
}
