//! MLD versions 1 (RFC 2710) and 2 (RFC 3810), as a snooping switch reads it (RFC 4541).

use std::net::{IpAddr, Ipv6Addr};

use super::membership::{Family, Membership, MembershipError, Records};
use crate::checksum::Sum;
use crate::field::IpProto;

/// ICMPv6 types.
const QUERY: u8 = 130;
const REPORT: u8 = 131;
const DONE: u8 = 132;
const REPORT_V2: u8 = 143;

/// Reads one message: the ICMPv6 bytes up to the end of the packet. `addresses` are source and destination as
/// they stand in the IPv6 header, for the checksum.
///
/// # Errors
/// [`MembershipError`]; other ICMPv6 is [`MembershipError::Type`], whatever its checksum.
pub fn parse<'a>(message: &'a [u8], addresses: &[u8]) -> Result<Membership<'a>, MembershipError> {
    let truncated = MembershipError::Truncated(message.len());
    let (header, body) = message.split_first_chunk::<8>().ok_or(truncated)?;
    let kind = header[0];
    if !matches!(kind, QUERY | REPORT | DONE | REPORT_V2) {
        return Err(MembershipError::Type(kind));
    }
    let pseudo = Sum::pseudo_header(addresses, IpProto::ICMPV6, message.len());
    if !(pseudo + Sum::of(message)).verifies() {
        return Err(MembershipError::Checksum);
    }
    if kind == REPORT_V2 {
        let count = u16::from_be_bytes([header[6], header[7]]);
        return Records::new(Family::V6, count, body).map(Membership::Records).ok_or(truncated);
    }
    let group = IpAddr::V6(Ipv6Addr::from(*body.first_chunk::<16>().ok_or(truncated)?));
    match kind {
        QUERY if !is_query(body) => Err(truncated),
        QUERY => Membership::query(group),
        REPORT => Membership::single(Membership::Report, group),
        _ => Membership::single(Membership::Leave, group),
    }
}

/// Whether what follows a query's ICMPv6 header has the length of one: 16 bytes in version 1; in version 2 at
/// least 20, and all the sources (RFC 3810 section 8.1).
fn is_query(body: &[u8]) -> bool {
    let sources = body.get(18..20).map(|n| usize::from(u16::from_be_bytes([n[0], n[1]])));
    body.len() == 16 || sources.is_some_and(|n| body.len() >= 20 + 16 * n)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::membership::tests::{any_record, bytes_of, heeded};
    use super::*;

    const SOURCE: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const GROUP: [u8; 16] = [0xff, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

    /// An IPv6 packet with this ICMPv6 message in it; its checksum is etherparse's.
    fn packet(kind: u8, last: [u8; 4], body: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let ip = PacketBuilder::ipv6(SOURCE, GROUP, 1);
        ip.icmpv6_raw(kind, 0, last).write(&mut packet, body).unwrap();
        packet
    }

    fn read(packet: &[u8]) -> Result<Membership<'_>, MembershipError> {
        parse(&packet[40..], &packet[8..40])
    }

    #[test]
    fn messages_about_one_group() {
        let group = IpAddr::from(GROUP);
        assert_eq!(read(&packet(130, [0; 4], &[0; 16])), Ok(Membership::Query(None)));
        assert_eq!(read(&packet(130, [0; 4], &GROUP)), Ok(Membership::Query(Some(group))));
        assert_eq!(read(&packet(131, [0; 4], &GROUP)), Ok(Membership::Report(group)));
        assert_eq!(read(&packet(132, [0; 4], &GROUP)), Ok(Membership::Leave(group)));
        let unicast = MembershipError::Group(IpAddr::from(SOURCE));
        assert_eq!(read(&packet(131, [0; 4], &SOURCE)), Err(unicast));
        assert_eq!(read(&packet(131, [0; 4], &GROUP[1..])), Err(MembershipError::Truncated(23)));
        assert_eq!(read(&packet(135, [0; 4], &GROUP)), Err(MembershipError::Type(135)), "ND");
    }

    #[test]
    fn a_version_2_query_has_all_its_sources() {
        let query = |rest: &[u8]| read(&packet(130, [0; 4], &[&[0; 16], rest].concat())).is_ok();
        assert!(query(&[2, 125, 0, 0]));
        assert!(query(&[&[2, 125, 0, 2][..], &[1; 32]].concat()));
        assert!(!query(&[&[2, 125, 0, 2][..], &[1; 31]].concat()));
        assert!(!query(&[2, 125, 0]), "neither version");
    }

    #[test]
    fn damage_is_noticed() {
        let mut packet = packet(131, [0; 4], &GROUP);
        packet[50] ^= 1;
        assert_eq!(read(&packet), Err(MembershipError::Checksum));
    }

    proptest! {
        #[test]
        fn records_are_read_as_written(records in vec(any_record::<16>(), 0..6)) {
            let body = bytes_of(&records);
            let packet = packet(143, [0, 0, 0, records.len() as u8], &body);
            let Ok(Membership::Records(read)) = read(&packet) else { panic!("not read") };
            prop_assert_eq!(read.collect::<Vec<_>>(), heeded(&records));
        }

        #[test]
        fn truncated_records_are_an_error(records in vec(any_record::<16>(), 1..4), cut in 1usize..20) {
            let body = bytes_of(&records);
            let packet = packet(143, [0, 0, 0, records.len() as u8], &body[..body.len() - cut]);
            prop_assert_eq!(read(&packet), Err(MembershipError::Truncated(packet.len() - 40)));
        }

        #[test]
        fn any_message_is_read_within_bounds(
            kind in 128u8..145, last in any::<[u8; 4]>(), body in vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..80)
        ) {
            let packet = packet(kind, last, &body);
            if let Ok(Membership::Records(records)) = read(&packet) {
                prop_assert!(records.count() <= body.len() / 20);
            }
            prop_assert!(parse(&body, &packet[8..40]).is_err() || body.len() >= 8);
        }
    }
}
