//! Who is behind a port and answers when asked for an address (ARP, neighbour discovery): a switch with an underlay asks for
//! the other ends of its tunnels, a router for its neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::answer::{self, MAX_LEN};
use encap::field::{EtherType, IpProto, MacAddr};
use encap::offsets::walk;

use super::terms::{Addresses, SIZE_MIN};
use crate::frame::{Frame, FrameCache};

/// Neighbour solicitation (RFC 4861 section 4.3).
const SOLICIT: u8 = 135;

/// Stations by their addresses.
#[derive(Debug, Clone, Default)]
pub struct Residents(Vec<(Addresses, MacAddr)>);

impl Residents {
    /// These addresses are this station's.
    pub fn add(&mut self, addresses: Addresses, mac: MacAddr) {
        self.0.push((addresses, mac));
    }

    /// The answer to a question for one of them; `None` if it is none, or the pool is empty.
    pub fn answer(&self, question: &[u8], frames: &mut FrameCache) -> Option<Frame> {
        let wanted = target(question)?;
        let (_, mac) = self.0.iter().find(|(addresses, _)| addresses.contains(wanted))?;
        let mut bytes = [0; MAX_LEN];
        let len = answer::reply(question, *mac, &mut bytes).ok()?;
        frames.from_bytes(&bytes[..len.max(SIZE_MIN)])
    }
}

/// Might the frame be a question? A cheap look that says yes to more than questions: all of ARP, and ICMPv6.
#[inline]
pub fn may_ask(frame: &[u8]) -> bool {
    let at = if matches!(frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8])) { 16 } else { 12 };
    match frame.get(at..at + 2) {
        Some([0x08, 0x06]) => true,
        Some([0x86, 0xdd]) => frame.get(at + 8) == Some(&IpProto::ICMPV6.0),
        _ => false,
    }
}

/// Whose address is asked for. Not if a station announces or probes its own (RFC 5227).
fn target(frame: &[u8]) -> Option<IpAddr> {
    let offsets = walk(frame).ok()?;
    let l3 = frame.get(offsets.payload()..)?;
    match (offsets.ether_type, offsets.ip) {
        (EtherType::ARP, _) => {
            let (sender, target): ([u8; 4], [u8; 4]) =
                (l3.get(14..18)?.try_into().ok()?, l3.get(24..28)?.try_into().ok()?);
            (sender != target && sender != [0; 4]).then(|| Ipv4Addr::from(target).into())
        }
        (EtherType::IPV6, Some(ip)) if ip.proto == IpProto::ICMPV6 => {
            let message = frame.get(ip.l4()?..)?;
            let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
            (message[0] == SOLICIT).then(|| Ipv6Addr::from(target).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use encap::checksum::Sum;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::port::rig;

    const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn residents() -> Residents {
        let mut residents = Residents::default();
        for (first, last) in [("10.0.0.1", "10.0.0.9"), ("fd00::1", "fd00::9")] {
            let range = Addresses::new(first.parse().unwrap(), last.parse().unwrap()).unwrap();
            residents.add(range, OURS);
        }
        residents
    }

    fn arp(tag: &[u8], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let front =
            [&[0xff; 6], &ASKER[..], tag, &[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1], &ASKER].concat();
        [&front[..], &sender, &[0; 6], &target].concat()
    }

    /// A neighbour solicitation for `target`, as from a host.
    fn solicitation(target: &str) -> Vec<u8> {
        let [source, target] = ["fd00::77", target].map(|a| a.parse::<Ipv6Addr>().unwrap().octets());
        let mut message = [&[SOLICIT, 0, 0, 0, 0, 0, 0, 0][..], &target].concat();
        let sum = Sum::pseudo_header(&[source, target].concat(), IpProto::ICMPV6, 24) + Sum::of(&message);
        message[2..4].copy_from_slice(&sum.checksum());
        let ip = [&[0x60, 0, 0, 0, 0, 24, IpProto::ICMPV6.0, 255][..], &source, &target].concat();
        [&OURS.0[..], &ASKER, &[0x86, 0xdd], &ip, &message].concat()
    }

    fn answer(question: &[u8]) -> Option<Vec<u8>> {
        let (_pool, mut frames) = rig::pool();
        let frame = residents().answer(question, &mut frames)?;
        let bytes = frame.bytes().to_vec();
        frames.free(frame);
        Some(bytes)
    }

    #[test]
    fn they_answer_for_their_addresses_and_no_others() {
        let told = answer(&arp(&[], [10, 0, 0, 77], [10, 0, 0, 9])).unwrap();
        assert_eq!((&told[..6], &told[22..32]), (&ASKER[..], &[2, 0, 0, 0, 0, 9, 10, 0, 0, 9][..]));
        assert_eq!(told.len(), SIZE_MIN);
        let tagged = answer(&arp(&[0x81, 0, 0, 5], [10, 0, 0, 77], [10, 0, 0, 1])).unwrap();
        assert_eq!(tagged[12..16], [0x81, 0, 0, 5]);
        assert_eq!(answer(&arp(&[], [10, 0, 0, 77], [10, 0, 0, 10])), None);
        assert_eq!(answer(&arp(&[], [0; 4], [10, 0, 0, 1])), None, "a probe");
        assert_eq!(answer(&arp(&[], [10, 0, 0, 1], [10, 0, 0, 1])), None, "an announcement");
        assert!(answer(&solicitation("fd00::9")).is_some());
        assert_eq!(answer(&solicitation("fd00::a")), None);
        let all: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(target(&arp(&[], [10, 0, 0, 77], [10, 0, 0, 1])), Some(all));
    }

    #[test]
    fn a_cheap_look_misses_no_question() {
        let tagged = arp(&[0x88, 0xa8, 0, 5], [1; 4], [2; 4]);
        assert!(may_ask(&tagged) && may_ask(&arp(&[], [1; 4], [2; 4])) && may_ask(&solicitation("fd00::1")));
        assert!(!may_ask(&[0; 60]) && !may_ask(&[]));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(mut frame in vec(any::<u8>(), 0..120), kind in 0usize..3) {
            if let Some(at) = frame.get_mut(12..14) {
                at.copy_from_slice(&[[0x08, 0x06], [0x86, 0xdd], [0x81, 0x00]][kind]);
            }
            let answered = answer(&frame).is_some();
            prop_assert!(!answered || may_ask(&frame) || kind == 2);
        }
    }
}
