//! What to send, in the terms of the kernel's pktgen (Documentation/networking/pktgen.rst): lengths are without FCS,
//! ranges have both ends in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::field::{MacAddr, VlanTag, Vni};
use encap::offsets::{ETHERNET, TAG};
use thiserror::Error;

/// The most flows: their headers are built beforehand.
pub const FLOWS_MAX: u64 = 1 << 24;
/// The shortest frame of Ethernet, without FCS.
pub const SIZE_MIN: usize = 60;
/// The longest, as long as the longest IP packet.
pub const SIZE_MAX: usize = 65_535 + ETHERNET;
/// Where frames of a test are from and to unless told otherwise: the networks of RFC 2544 for benchmarks (appendix C.2.2).
pub const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
/// See [`SOURCE`].
pub const DESTINATION: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 1));
/// The UDP port that discards what it gets (RFC 863), the default of the kernel's pktgen.
pub const DISCARD: u16 = 9;
/// Source ports that flows take unless there is a range.
const SOME_PORTS: u64 = 256;

/// These frames cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TermsError {
    /// Too short or too long.
    #[error("frame of {0} bytes, expected {least} to {SIZE_MAX}", least = .1)]
    Size(usize, usize),
    /// The end of a range comes before its start, or has another address family.
    #[error("range from {0} to {1} is none; give the lower address first")]
    Addresses(IpAddr, IpAddr),
    /// As above.
    #[error("range of ports from {0} to {1} is none; give the lower port first")]
    Ports(u16, u16),
    /// Sources and destinations have different families.
    #[error("frames from {0} to {1} mix address families")]
    Families(IpAddr, IpAddr),
    /// Too many flows.
    #[error("{0} flows, expected 1 to {FLOWS_MAX}; make the ranges smaller or set the number of flows")]
    Flows(u64),
    /// The ranges have fewer.
    #[error("{flows} flows, but the ranges have {there_are} 5-tuples only; widen them, or leave them out")]
    Ranges {
        /// Asked for.
        flows: u64,
        /// Different ones.
        there_are: u64,
    },
    /// No address, or so many that they would not be unicast.
    #[error("{0} MAC addresses from {1} on, expected 1 to {FLOWS_MAX} and all of them unicast")]
    Macs(u32, MacAddr),
    /// A switch would take a destination for a station where frames come from.
    #[error(
        "sources from {0} on and destinations from {1} on have MAC addresses in common; move one of them away"
    )]
    Overlap(MacAddr, MacAddr),
}

/// Addresses that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    first: IpAddr,
    count: u64,
}

impl Addresses {
    /// From the first to the last, both in it.
    ///
    /// # Errors
    /// [`TermsError::Addresses`].
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Addresses, TermsError> {
        let wrong = TermsError::Addresses(first, last);
        let more = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                last.to_bits().checked_sub(first.to_bits()).map(u128::from)
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits().checked_sub(first.to_bits()),
            _ => None,
        };
        let count = u64::try_from(more.ok_or(wrong)?).unwrap_or(u64::MAX).saturating_add(1);
        Ok(Addresses { first, count })
    }

    /// Only this one.
    pub fn one(address: IpAddr) -> Addresses {
        Addresses { first: address, count: 1 }
    }

    /// The first of them.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The `n`th, from 0 on; behind the last the first again.
    pub fn get(&self, n: u64) -> IpAddr {
        let n = n % self.count;
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + n as u32).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(n)).into(),
        }
    }

    /// Is it one of them?
    pub fn contains(&self, address: IpAddr) -> bool {
        Addresses::new(self.first, address).is_ok_and(|up_to| up_to.count <= self.count)
    }
}

/// UDP ports that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    count: u64,
}

impl Ports {
    /// From the first to the last, both in it.
    ///
    /// # Errors
    /// [`TermsError::Ports`].
    pub fn new(first: u16, last: u16) -> Result<Ports, TermsError> {
        let more = last.checked_sub(first).ok_or(TermsError::Ports(first, last))?;
        Ok(Ports { first, count: u64::from(more) + 1 })
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The `n`th, from 0 on; behind the last the first again.
    pub fn get(&self, n: u64) -> u16 {
        self.first + (n % self.count) as u16
    }
}

/// MAC addresses that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Macs {
    first: MacAddr,
    count: u32,
}

impl Macs {
    /// So many from the first on.
    ///
    /// # Errors
    /// [`TermsError::Macs`].
    pub fn new(first: MacAddr, count: u32) -> Result<Macs, TermsError> {
        let last = MacAddr::from_u64(first.to_u64() + u64::from(count.saturating_sub(1)));
        let sound = (1..=FLOWS_MAX).contains(&u64::from(count)) && !last.is_multicast() && last >= first;
        let sound = sound && (count == 1 || !first.is_multicast());
        sound.then_some(Macs { first, count }).ok_or(TermsError::Macs(count, first))
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Have the two some in common?
    fn meets(&self, other: &Macs) -> bool {
        let begin_before = |a: &Macs, b: &Macs| a.first.to_u64() < b.first.to_u64() + u64::from(b.count);
        begin_before(self, other) && begin_before(other, self)
    }

    /// The `n`th, from 0 on; behind the last the first again.
    pub fn get(&self, n: u64) -> MacAddr {
        MacAddr::from_u64(self.first.to_u64() + n % u64::from(self.count))
    }
}

/// Outer headers, as the other end of a tunnel writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The segment.
    pub vni: Vni,
    /// The outer source, which the switch takes for the other end's.
    pub src_mac: MacAddr,
    /// The outer destination: the switch's own.
    pub dst_mac: MacAddr,
    /// The other end.
    pub src: IpAddr,
    /// The switch's end.
    pub dst: IpAddr,
    /// UDP port.
    pub dst_port: u16,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of a frame without FCS, tag included; with VXLAN of the inner frame.
    pub size: usize,
    /// Distinct 5-tuples; `None`: as many as the ranges have.
    pub flows: Option<u64>,
    /// Sources.
    pub src_macs: Macs,
    /// Destinations.
    pub dst_macs: Macs,
    /// Source addresses.
    pub src: Addresses,
    /// Destination addresses, of the same family.
    pub dst: Addresses,
    /// UDP source ports.
    pub udp_src: Ports,
    /// UDP destination ports.
    pub udp_dst: Ports,
    /// Of the frame, or of the inner frame.
    pub tag: Option<VlanTag>,
    /// Around the frame.
    pub vxlan: Option<Vxlan>,
}

impl Terms {
    /// Frames of 60 bytes of one flow between two stations.
    pub fn plain() -> Terms {
        let one = |mac| Macs { first: MacAddr(mac), count: 1 };
        let discard = Ports { first: DISCARD, count: 1 };
        Terms {
            size: SIZE_MIN,
            flows: None,
            src_macs: one([2, 0, 0, 0, 0, 1]),
            dst_macs: one([2, 0, 0, 0, 0, 2]),
            src: Addresses::one(SOURCE),
            dst: Addresses::one(DESTINATION),
            udp_src: discard,
            udp_dst: discard,
            tag: None,
            vxlan: None,
        }
    }

    /// As they are meant: the number of flows is known, and who gave no ranges gets some that have as many, in source address
    /// and source port.
    ///
    /// # Errors
    /// [`TermsError`]: such frames cannot be.
    pub fn settled(mut self) -> Result<Terms, TermsError> {
        let least = self.headers().max(SIZE_MIN);
        if !(least..=SIZE_MAX).contains(&self.size) {
            return Err(TermsError::Size(self.size, least));
        }
        if self.src.first.is_ipv4() != self.dst.first.is_ipv4() {
            return Err(TermsError::Families(self.src.first, self.dst.first));
        }
        if self.src_macs.meets(&self.dst_macs) {
            return Err(TermsError::Overlap(self.src_macs.first, self.dst_macs.first));
        }
        if let Some(flows) = self.flows.filter(|flows| self.tuples() == 1 && *flows > 1) {
            self.udp_src = Ports { first: 1024, count: flows.min(SOME_PORTS) };
            self.src.count = flows.div_ceil(SOME_PORTS);
        }
        let there_are = self.tuples();
        let flows = self.flows.unwrap_or(there_are);
        if !(1..=FLOWS_MAX).contains(&flows) {
            return Err(TermsError::Flows(flows));
        }
        self.flows = Some(flows);
        if flows <= there_are { Ok(self) } else { Err(TermsError::Ranges { flows, there_are }) }
    }

    /// Bytes in front of the payload, without outer headers.
    pub fn headers(&self) -> usize {
        let ip = if self.src.first.is_ipv4() { 20 } else { 40 };
        ETHERNET + self.tag.map_or(0, |_| TAG) + ip + 8
    }

    fn tuples(&self) -> u64 {
        let counts = [self.src.count, self.dst.count, self.udp_src.count, self.udp_dst.count];
        counts.into_iter().fold(1, u64::saturating_mul)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(first: &str, last: &str) -> Result<Addresses, TermsError> {
        Addresses::new(first.parse().unwrap(), last.parse().unwrap())
    }

    #[test]
    fn ranges_have_both_ends() {
        let range = addresses("10.0.0.254", "10.0.1.1").unwrap();
        assert_eq!((range.count(), range.get(3).to_string()), (4, "10.0.1.1".to_owned()));
        assert_eq!(range.get(4), range.first());
        let inside = ["10.0.0.253", "10.0.0.254", "10.0.1.1", "10.0.1.2", "fe80::1"]
            .map(|address| range.contains(address.parse().unwrap()));
        assert_eq!(inside, [false, true, true, false, false]);
        assert_eq!(addresses("fd00::", "fdff::").unwrap().count(), u64::MAX);
        let wrong = addresses("10.0.0.2", "10.0.0.1").unwrap_err().to_string();
        assert_eq!(wrong, "range from 10.0.0.2 to 10.0.0.1 is none; give the lower address first");
        assert!(addresses("10.0.0.1", "fe80::1").is_err() && Ports::new(2, 1).is_err());
        let macs = Macs::new(MacAddr([2, 0, 0, 0, 0, 0xff]), 2).unwrap();
        assert_eq!(macs.get(1), MacAddr([2, 0, 0, 0, 1, 0]));
        assert!(Macs::new(MacAddr([2, 0xff, 0xff, 0xff, 0xff, 0xff]), 2).is_err(), "multicast");
        assert!(Macs::new(MacAddr([2; 6]), 0).is_err());
    }

    #[test]
    fn flows_without_ranges_get_some() {
        let flows = |flows| Terms { flows: Some(flows), ..Terms::plain() }.settled();
        let settled = flows(1_000_000).unwrap();
        assert_eq!((settled.udp_src.count, settled.src.count()), (256, 3907));
        assert_eq!(flows(1).unwrap(), Terms { flows: Some(1), ..Terms::plain() });
        assert_eq!(flows(0), Err(TermsError::Flows(0)));
        assert!(flows(1 << 25).is_err());
    }

    #[test]
    fn what_cannot_be_is_said() {
        let four = Terms { udp_src: Ports::new(1, 4).unwrap(), ..Terms::plain() };
        assert_eq!(four.clone().settled().unwrap().flows, Some(4));
        let more = Terms { flows: Some(5), ..four }.settled().unwrap_err().to_string();
        assert_eq!(more, "5 flows, but the ranges have 4 5-tuples only; widen them, or leave them out");
        let short = Terms { size: 59, ..Terms::plain() }.settled().unwrap_err().to_string();
        assert_eq!(short, "frame of 59 bytes, expected 60 to 65549");
        let six = addresses("fd00::1", "fd00::1").unwrap();
        let sixes = Terms { src: six, dst: six, ..Terms::plain() };
        assert_eq!(sixes.settled(), Err(TermsError::Size(60, 62)));
        assert!(matches!(Terms { src: six, ..Terms::plain() }.settled(), Err(TermsError::Size(..))));
        let macs = |last, count| Macs::new(MacAddr([2, 0, 0, 0, 0, last]), count).unwrap();
        let met = |src, dst| Terms { src_macs: src, dst_macs: dst, ..Terms::plain() }.settled().is_err();
        assert!(met(macs(1, 2), macs(2, 1)) && met(macs(2, 1), macs(1, 2)) && met(macs(1, 1), macs(1, 1)));
        assert!(!met(macs(1, 2), macs(3, 9)) && !met(macs(3, 9), macs(1, 2)));
        let mixed = Terms { src: six, size: 100, ..Terms::plain() }.settled();
        assert!(matches!(mixed, Err(TermsError::Families(..))));
    }
}
