//! What hosts and routers say about multicast groups, whether in IGMP or in MLD.
//!
//! The idea: MLD is IGMP with longer addresses (RFC 3810 section 1), so a switch that snoops reads one value.
//! Whoever holds a [`Membership`] holds lengths and a checksum that were verified: its accessors cannot fail.
//! Cost: one pass over the message; a report has at most one record per eight bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// A message that says nothing about a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MembershipError {
    /// It ends before its own counts are satisfied.
    #[error("membership message of {0} bytes is truncated")]
    Truncated(usize),
    /// It was damaged on its way.
    #[error("membership message has a wrong checksum")]
    Checksum,
    /// It is of another type.
    #[error("message type {0} is not about membership")]
    Type(u8),
    /// The group is no multicast address.
    #[error("{0} is not a multicast group")]
    Group(IpAddr),
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership<'a> {
    /// A router asks who is there; of all groups, if there is none here.
    Query(Option<IpAddr>),
    /// A host wants a group (IGMPv1, IGMPv2, MLDv1).
    Report(IpAddr),
    /// A host left a group.
    Leave(IpAddr),
    /// A host says which sources of which groups it wants (IGMPv3, MLDv2).
    Records(Records<'a>),
}

impl Membership<'_> {
    /// The meaning of a message about exactly one group.
    pub(super) fn single(
        kind: fn(IpAddr) -> Membership<'static>,
        group: IpAddr,
    ) -> Result<Membership<'static>, MembershipError> {
        multicast(group).map(kind).ok_or(MembershipError::Group(group))
    }

    /// The meaning of a query: the unspecified address asks for all groups.
    pub(super) fn query(group: IpAddr) -> Result<Membership<'static>, MembershipError> {
        if group.is_unspecified() {
            return Ok(Membership::Query(None));
        }
        Self::single(|group| Membership::Query(Some(group)), group)
    }
}

fn multicast(group: IpAddr) -> Option<IpAddr> {
    group.is_multicast().then_some(group)
}

/// What a record says about the sources of its group (RFC 3376 section 4.2.12, RFC 3810 section 5.2.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Wants the listed sources only.
    IsInclude = 1,
    /// Wants all but the listed sources.
    IsExclude = 2,
    /// From now on wants the listed sources only.
    ToInclude = 3,
    /// From now on wants all but the listed sources.
    ToExclude = 4,
    /// Wants the listed sources too.
    Allow = 5,
    /// Does not want the listed sources any more.
    Block = 6,
}

impl RecordKind {
    const ALL: [RecordKind; 6] = [
        RecordKind::IsInclude,
        RecordKind::IsExclude,
        RecordKind::ToInclude,
        RecordKind::ToExclude,
        RecordKind::Allow,
        RecordKind::Block,
    ];

    fn new(octet: u8) -> Option<RecordKind> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == octet)
    }
}

/// What a host says about one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: RecordKind,
    /// The group.
    pub group: IpAddr,
    /// How many sources are listed.
    pub sources: u16,
}

impl Record {
    /// True if the host wants the group from nobody: it lists no source to include.
    pub fn is_leave(&self) -> bool {
        self.sources == 0 && matches!(self.kind, RecordKind::IsInclude | RecordKind::ToInclude)
    }
}

/// How long the addresses in a report are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    fn address_len(self) -> usize {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }
}

/// The records of one report, in their order. Those of unknown kind, which are to be ignored (RFC 3376 section
/// 4.2.12), and those of groups that are none are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records<'a> {
    family: Family,
    /// How many are still to come; all of them lie inside `rest`.
    count: u16,
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// A view of `count` records at the start of `records`, or nothing if they are not all there.
    pub(super) fn new(family: Family, count: u16, records: &'a [u8]) -> Option<Self> {
        let mut rest = records;
        for _ in 0..count {
            rest = split(family, rest)?.1;
        }
        Some(Records { family, count, rest: records })
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        while self.count > 0 {
            let (record, rest) = split(self.family, self.rest)?;
            (self.count, self.rest) = (self.count - 1, rest);
            if let Some(record) = parse(record) {
                return Some(record);
            }
        }
        None
    }
}

/// One record's fixed part, and what follows the record.
fn split(family: Family, records: &[u8]) -> Option<(&[u8], &[u8])> {
    let [_, auxiliary, high, low] = *records.first_chunk()?;
    let address = family.address_len();
    let sources = usize::from(u16::from_be_bytes([high, low])) * address;
    let rest = records.get(4 + address + sources + usize::from(auxiliary) * 4..)?;
    Some((&records[..4 + address], rest))
}

/// The value of a record's fixed part, if it is one to heed.
fn parse(record: &[u8]) -> Option<Record> {
    let ([kind, _, high, low], group) = record.split_first_chunk()?;
    let group = match *group {
        [a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(*group.first_chunk::<16>()?).into(),
    };
    let sources = u16::from_be_bytes([*high, *low]);
    Some(Record { kind: RecordKind::new(*kind)?, group: multicast(group)?, sources })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record on the wire: its kind, auxiliary words, sources and group, of `N` bytes.
    #[derive(Debug, Clone)]
    pub struct Wire<const N: usize> {
        kind: u8,
        auxiliary: u8,
        sources: u16,
        group: [u8; N],
    }

    /// A record of any kind, known or not, for a group or not.
    pub fn any_record<const N: usize>() -> impl Strategy<Value = Wire<N>> {
        let first = prop_oneof![Just(0xff), Just(239), any::<u8>()];
        (0u8..9, 0u8..3, 0u16..4, any::<[u8; N]>(), first).prop_map(
            |(kind, auxiliary, sources, mut group, first)| {
                group[0] = first;
                Wire { kind, auxiliary, sources, group }
            },
        )
    }

    pub fn bytes_of<const N: usize>(records: &[Wire<N>]) -> Vec<u8> {
        let bytes = |r: &Wire<N>| {
            let [high, low] = r.sources.to_be_bytes();
            let rest = usize::from(r.sources) * N + usize::from(r.auxiliary) * 4;
            [&[r.kind, r.auxiliary, high, low], &r.group[..], &vec![0xab; rest]].concat()
        };
        records.iter().flat_map(bytes).collect()
    }

    /// What a reader must make of them.
    pub fn heeded<const N: usize>(records: &[Wire<N>]) -> Vec<Record> {
        use RecordKind::*;
        let kinds = [IsInclude, IsExclude, ToInclude, ToExclude, Allow, Block];
        let value = |r: &Wire<N>| {
            let kind = *kinds.get(usize::from(r.kind).checked_sub(1)?)?;
            let group = match <[u8; 4]>::try_from(&r.group[..]) {
                Ok(octets) => IpAddr::from(octets),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(&r.group[..]).unwrap()),
            };
            group.is_multicast().then_some(Record { kind, group, sources: r.sources })
        };
        records.iter().filter_map(value).collect()
    }

    #[test]
    fn including_nobody_is_leaving() {
        let group = IpAddr::from([239, 0, 0, 1]);
        let leaves = |kind, sources| Record { kind, group, sources }.is_leave();
        assert!(leaves(RecordKind::ToInclude, 0) && leaves(RecordKind::IsInclude, 0));
        assert!(!leaves(RecordKind::ToInclude, 1), "it wants one source");
        assert!(!leaves(RecordKind::ToExclude, 0), "it wants all sources");
        assert!(!leaves(RecordKind::Block, 0));
    }
}
