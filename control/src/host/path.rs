//! Path MTUs as routers tell them (RFC 1191, RFC 8201), in virtual time.
//!
//! Anybody can send such a message, so it counts only if the packet it quotes is one of a tunnel of ours, to an endpoint
//! that we know, and was longer than what it says would fit (RFC 5927 section 7). At most [`LIMIT`] are kept; O(1) each.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use flowtable::time::Instant;

use super::wire::TooBig;

/// After how long a longer packet is tried again (RFC 1191 section 6.3).
const AGE: Duration = Duration::from_secs(600);
/// Every IPv4 host takes so much (RFC 791); who claims less wants to slow us down.
const FLOOR_V4: u32 = 576;
/// The least that an IPv6 link carries (RFC 8200 section 5).
const FLOOR_V6: u32 = 1280;
/// Paths, at most.
pub const LIMIT: usize = 4096;

/// What our tunnels look like from the outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// UDP ports we send to; `None`: GRE.
    pub protocols: BTreeSet<Option<u16>>,
    /// The other ends.
    pub remotes: BTreeSet<IpAddr>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It says nothing new, or nothing to be believed.
    Ignored,
    /// The path's MTU changed.
    Changed,
    /// It is about an endpoint that we do not know (yet).
    Stranger,
}

/// The longest packets to destinations.
#[derive(Debug, Default)]
pub struct PathMtus {
    paths: HashMap<IpAddr, Path>,
}

#[derive(Debug)]
struct Path {
    mtu: u16,
    until: Instant,
}

impl PathMtus {
    /// Takes note of a message, if it is about `traffic` of ours.
    pub fn told(&mut self, message: TooBig, traffic: &Traffic, now: Instant) -> Verdict {
        let TooBig { remote, udp_port, len, mtu, .. } = message;
        let floor = if remote.is_ipv4() { FLOOR_V4 } else { FLOOR_V6 };
        let known = self.paths.get(&remote).map_or(u32::from(u16::MAX), |path| path.mtu.into());
        let full = self.paths.len() >= LIMIT && !self.paths.contains_key(&remote);
        if !traffic.protocols.contains(&udp_port) || mtu >= len || full || mtu.max(floor) > known {
            return Verdict::Ignored;
        }
        if !traffic.remotes.contains(&remote) {
            return Verdict::Stranger;
        }
        let mtu = mtu.max(floor) as u16;
        self.paths.insert(remote, Path { mtu, until: now + AGE });
        if u32::from(mtu) == known { Verdict::Ignored } else { Verdict::Changed }
    }

    /// Takes note of what our own kernel says. True if that is new.
    pub fn measured(&mut self, remote: IpAddr, mtu: u16, now: Instant) -> bool {
        if self.paths.len() >= LIMIT && !self.paths.contains_key(&remote) {
            return false;
        }
        let known = self.paths.insert(remote, Path { mtu, until: now + AGE });
        known.is_none_or(|known| known.mtu != mtu)
    }

    /// Forgets what is old. True if there was something.
    pub fn turn(&mut self, now: Instant) -> bool {
        let before = self.paths.len();
        self.paths.retain(|_, path| path.until > now);
        self.paths.len() != before
    }

    /// When the next one is old.
    pub fn deadline(&self) -> Option<Instant> {
        self.paths.values().map(|path| path.until).min()
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.paths.iter().map(|(remote, path)| (*remote, path.mtu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(1 << 40);

    fn traffic() -> Traffic {
        let remotes = ["192.0.2.2", "2001:db8::2"].map(|a| a.parse().unwrap()).into();
        Traffic { protocols: [Some(4789), None].into(), remotes }
    }

    fn message(remote: &str, udp_port: Option<u16>, len: u32, mtu: u32) -> TooBig {
        let remote: IpAddr = remote.parse().unwrap();
        TooBig { local: remote, remote, udp_port, len, mtu }
    }

    fn known(paths: &PathMtus) -> Vec<u16> {
        paths.iter().map(|(_, mtu)| mtu).collect()
    }

    #[test]
    fn it_shrinks_at_once_and_grows_after_ten_minutes() {
        let mut paths = PathMtus::default();
        assert_eq!(
            Verdict::Changed,
            paths.told(message("192.0.2.2", Some(4789), 1500, 1400), &traffic(), NOW)
        );
        assert_eq!(
            Verdict::Ignored,
            paths.told(message("192.0.2.2", Some(4789), 1500, 1400), &traffic(), NOW + AGE / 2)
        );
        assert_eq!(
            Verdict::Ignored,
            paths.told(message("192.0.2.2", Some(4789), 1500, 1450), &traffic(), NOW),
            "it cannot grow"
        );
        assert_eq!(
            Verdict::Changed,
            paths.told(message("192.0.2.2", None, 1500, 1300), &traffic(), NOW + AGE / 2)
        );
        assert_eq!((known(&paths), paths.deadline()), (vec![1300], Some(NOW + AGE + AGE / 2)));
        assert!(!paths.turn(NOW + AGE));
        assert!(paths.turn(NOW + AGE + AGE / 2));
        assert_eq!((known(&paths), paths.deadline()), (vec![], None));
    }

    #[test]
    fn nobody_makes_it_less_than_every_link_carries() {
        let mut paths = PathMtus::default();
        assert_eq!(Verdict::Changed, paths.told(message("192.0.2.2", None, 1500, 0), &traffic(), NOW));
        assert_eq!(known(&paths), [576]);
        assert_eq!(Verdict::Ignored, paths.told(message("192.0.2.2", None, 1500, 68), &traffic(), NOW));
        let mut paths = PathMtus::default();
        assert_eq!(Verdict::Changed, paths.told(message("2001:db8::2", None, 1500, 296), &traffic(), NOW));
        assert_eq!(known(&paths), [1280]);
    }

    #[test]
    fn our_own_kernel_is_believed_whatever_it_says() {
        let remote: IpAddr = "192.0.2.3".parse().unwrap();
        let mut paths = PathMtus::default();
        for (mtu, new) in [(1300, true), (1300, false), (1400, true), (500, true)] {
            assert_eq!(paths.measured(remote, mtu, NOW), new, "{mtu}");
            assert_eq!(known(&paths), [mtu]);
        }
        assert!(paths.turn(NOW + AGE));
    }

    #[test]
    fn it_must_be_about_a_packet_of_ours() {
        let mut paths = PathMtus::default();
        for (remote, udp_port, len, verdict) in [
            ("192.0.2.2", Some(53), 1500, Verdict::Ignored),    // no tunnel
            ("192.0.2.2", Some(4789), 1400, Verdict::Ignored),  // it would have fitted
            ("192.0.2.3", Some(4789), 1500, Verdict::Stranger), // no endpoint that we know
        ] {
            let message = message(remote, udp_port, len, 1400);
            assert_eq!(paths.told(message, &traffic(), NOW), verdict, "{message:?}");
        }
        assert_eq!(known(&paths), Vec::<u16>::new());
    }
}
