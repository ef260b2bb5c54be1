//! Explicit congestion notification across a tunnel (RFC 6040).
//!
//! A router of the underlay marks the outer header; what it says must reach the inner one, whose receiver is the
//! only one that acts on it. All arguments are TOS or traffic class octets, of which the low two bits count.

use thiserror::Error;

/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, second codepoint.
pub const ECT_1: u8 = 0b01;
/// ECN-capable.
pub const ECT_0: u8 = 0b10;
/// Congestion was experienced.
pub const CE: u8 = 0b11;

/// The low two bits of the octet.
const MASK: u8 = 0b11;

/// The outer header says congestion, and the inner packet's ends do not know what that is: dropping the packet is the
/// only way to tell them (RFC 6040 section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("congestion on the way of a packet that is not ECN-capable")]
pub struct Congested;

/// The ECN bits of the outer header for a packet with these: a copy, the normal mode (RFC 6040 section 4.1).
#[inline]
pub const fn outer(inner: u8) -> u8 {
    inner & MASK
}

/// The ECN bits of the inner header after both arrived (RFC 6040 figure 4).
///
/// # Errors
/// [`Congested`]: drop the packet.
#[inline]
pub const fn inner(outer: u8, inner: u8) -> Result<u8, Congested> {
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => Err(Congested),
        (ECT_0 | ECT_1, CE) => Ok(CE),
        (ECT_0, ECT_1) => Ok(ECT_1),
        (inner, _) => Ok(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_rfc_6040_figure_4() {
        let outer = [NOT_ECT, ECT_0, ECT_1, CE];
        let rows = [
            (NOT_ECT, [Ok(NOT_ECT), Ok(NOT_ECT), Ok(NOT_ECT), Err(Congested)]),
            (ECT_0, [Ok(ECT_0), Ok(ECT_0), Ok(ECT_1), Ok(CE)]),
            (ECT_1, [Ok(ECT_1), Ok(ECT_1), Ok(ECT_1), Ok(CE)]),
            (CE, [Ok(CE), Ok(CE), Ok(CE), Ok(CE)]),
        ];
        for (arriving, expected) in rows {
            assert_eq!(outer.map(|outer| inner(outer, arriving)), expected, "inner {arriving:02b}");
        }
    }

    #[test]
    fn the_rest_of_the_octet_is_ignored() {
        assert_eq!(outer(0xfc | ECT_1), ECT_1);
        assert_eq!(inner(0xfc | CE, 0xb8 | ECT_0), Ok(CE));
        assert_eq!(inner(0xfc | CE, 0xb8), Err(Congested));
    }

    #[test]
    fn what_no_router_marked_arrives_as_it_was_sent() {
        for sent in 0..4 {
            assert_eq!(inner(outer(sent), sent), Ok(sent));
        }
    }
}
