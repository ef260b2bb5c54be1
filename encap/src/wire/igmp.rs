//! IGMP versions 1 (RFC 1112), 2 (RFC 2236) and 3 (RFC 3376), as a snooping switch reads it (RFC 4541).

use std::net::{IpAddr, Ipv4Addr};

use etherparse::IgmpSlice;

use super::membership::{Family, Membership, MembershipError, Records};
use crate::checksum::Sum;

/// Reads one message: the bytes behind the IPv4 header up to the end of the packet, which decides whether a
/// query is of version 3.
///
/// # Errors
/// [`MembershipError`]; other types of IGMP (DVMRP, PIMv1 …) are [`MembershipError::Type`].
pub fn parse(message: &[u8]) -> Result<Membership<'_>, MembershipError> {
    let truncated = MembershipError::Truncated(message.len());
    let igmp = IgmpSlice::from_slice(message).map_err(|_| truncated)?;
    if !Sum::of(message).verifies() {
        return Err(MembershipError::Checksum);
    }
    let group = IpAddr::V4(Ipv4Addr::from(igmp.bytes4to7()));
    match &igmp {
        IgmpSlice::MembershipQuery(_) | IgmpSlice::MembershipQueryWithSources(_) => Membership::query(group),
        IgmpSlice::MembershipReportV1(_) | IgmpSlice::MembershipReportV2(_) => {
            Membership::single(Membership::Report, group)
        }
        IgmpSlice::LeaveGroup(_) => Membership::single(Membership::Leave, group),
        IgmpSlice::MembershipReportV3(report) => {
            let records = Records::new(Family::V4, report.num_of_records(), report.payload());
            records.map(Membership::Records).ok_or(truncated)
        }
        IgmpSlice::Unknown(_) => Err(MembershipError::Type(igmp.type_u8())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::membership::tests::{any_record, bytes_of, heeded};
    use super::*;

    const GROUP: [u8; 4] = [239, 1, 2, 3];

    /// A message with its checksum, which is etherparse's.
    fn message(kind: u8, last: [u8; 4], body: &[u8]) -> Vec<u8> {
        let mut message = [&[kind, 0, 0, 0], &last, body].concat();
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&message);
        message[2..4].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        message
    }

    #[test]
    fn messages_about_one_group() {
        let group = IpAddr::from(GROUP);
        assert_eq!(parse(&message(0x11, [0; 4], &[])), Ok(Membership::Query(None)));
        assert_eq!(parse(&message(0x11, GROUP, &[])), Ok(Membership::Query(Some(group))));
        assert_eq!(parse(&message(0x11, GROUP, &[2, 125, 0, 0])), Ok(Membership::Query(Some(group))), "v3");
        assert_eq!(parse(&message(0x12, GROUP, &[])), Ok(Membership::Report(group)), "v1");
        assert_eq!(parse(&message(0x16, GROUP, &[])), Ok(Membership::Report(group)), "v2");
        assert_eq!(parse(&message(0x17, GROUP, &[])), Ok(Membership::Leave(group)));
        let unicast = MembershipError::Group(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(parse(&message(0x16, [10, 0, 0, 1], &[])), Err(unicast));
        assert_eq!(parse(&message(0x13, GROUP, &[])), Err(MembershipError::Type(0x13)), "DVMRP");
    }

    #[test]
    fn lengths_that_lie_are_an_error() {
        assert_eq!(parse(&message(0x16, GROUP, &[])[..7]), Err(MembershipError::Truncated(7)));
        let query = message(0x11, GROUP, &[2, 125, 0, 1, 10, 0, 0]);
        assert_eq!(parse(&query), Err(MembershipError::Truncated(15)), "a source is not all there");
        let query = message(0x11, GROUP, &[2, 125]);
        assert_eq!(parse(&query), Err(MembershipError::Truncated(10)), "neither version 2 nor 3");
    }

    #[test]
    fn damage_is_noticed() {
        let mut report = message(0x16, GROUP, &[]);
        report[7] ^= 1;
        assert_eq!(parse(&report), Err(MembershipError::Checksum));
    }

    proptest! {
        #[test]
        fn records_are_read_as_written(records in vec(any_record::<4>(), 0..6)) {
            let message = message(0x22, [0, 0, 0, records.len() as u8], &bytes_of(&records));
            let Ok(Membership::Records(read)) = parse(&message) else { panic!("not read") };
            prop_assert_eq!(read.collect::<Vec<_>>(), heeded(&records));
        }

        #[test]
        fn truncated_records_are_an_error(records in vec(any_record::<4>(), 1..4), cut in 1usize..8) {
            let body = bytes_of(&records);
            let message = message(0x22, [0, 0, 0, records.len() as u8], &body[..body.len() - cut]);
            prop_assert_eq!(parse(&message), Err(MembershipError::Truncated(message.len())));
        }

        #[test]
        fn any_message_is_read_within_bounds(
            kind in 0x10u8..0x24, last in any::<[u8; 4]>(), body in vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..40)
        ) {
            let message = message(kind, last, &body);
            if let Ok(Membership::Records(records)) = parse(&message) {
                prop_assert!(records.count() <= body.len() / 8);
            }
            prop_assert!(parse(&body).is_err() || body.len() >= 8);
        }
    }
}
