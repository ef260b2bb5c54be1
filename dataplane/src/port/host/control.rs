//! What an IP header says, or shall say, as control messages (cmsg(3), ip(7), ipv6(7)) and as a socket address: values
//! into octets, and back.

use std::ffi::c_int;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// `struct cmsghdr`: a length of the machine's size, level and type.
const LENGTH: usize = size_of::<usize>();
const HEADER: usize = LENGTH + 8;
/// Room for three messages; the longest, `in6_pktinfo`, has 20 bytes of value.
const ROOM: usize = 128;
/// `struct sockaddr_in6`, the longer of the two.
const NAME: usize = 28;

/// The fields of an IP header that who uses a socket has to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fields {
    /// Our own address; `None`: what the route says.
    pub local: Option<IpAddr>,
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
}

/// Control messages.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control {
    octets: [u8; ROOM],
    len: usize,
}

impl Control {
    /// None, and room for some.
    pub const EMPTY: Control = Control { octets: [0; ROOM], len: 0 };

    /// What asks for these fields in a packet to `to`.
    pub fn asking(fields: Fields, to: IpAddr) -> Control {
        let [tos, ttl] = [fields.tos, fields.ttl].map(|octet| c_int::from(octet).to_ne_bytes());
        let mut control = Control::EMPTY;
        match to {
            IpAddr::V4(_) => {
                control.push(libc::IPPROTO_IP, libc::IP_TOS, &tos);
                control.push(libc::IPPROTO_IP, libc::IP_TTL, &ttl);
            }
            IpAddr::V6(_) => {
                control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &tos);
                control.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &ttl);
            }
        }
        match fields.local {
            // `in_pktinfo`: interface, source, destination. `in6_pktinfo`: source, interface.
            Some(IpAddr::V4(local)) => {
                let info = [[0; 4], local.octets(), [0; 4]].concat();
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(local)) => {
                let info = [&local.octets()[..], &[0; 4]].concat();
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        control
    }

    fn push(&mut self, level: c_int, kind: c_int, value: &[u8]) {
        let message = &mut self.octets[self.len..];
        message[..LENGTH].copy_from_slice(&(HEADER + value.len()).to_ne_bytes());
        message[LENGTH..][..4].copy_from_slice(&level.to_ne_bytes());
        message[LENGTH + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER..][..value.len()].copy_from_slice(value);
        self.len += (HEADER + value.len()).next_multiple_of(LENGTH);
    }

    /// The messages.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }

    /// Room for messages; how long they are [`Control::fields`] must know.
    pub fn room_mut(&mut self) -> &mut [u8] {
        &mut self.octets
    }

    /// The fields that the first `len` bytes tell of a packet that was received.
    pub fn fields(&self, len: usize) -> Fields {
        let mut fields = Fields { local: None, tos: 0, ttl: 0 };
        let mut rest = &self.octets[..len.min(ROOM)];
        while let Some(header) = rest.first_chunk::<HEADER>() {
            let int = |at: usize| {
                c_int::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let mut len = [0; LENGTH];
            len.copy_from_slice(&header[..LENGTH]);
            let len = usize::from_ne_bytes(len);
            let Some(value) = rest.get(HEADER..len) else { break };
            fields.read((int(LENGTH), int(LENGTH + 4)), value);
            rest = rest.get(len.next_multiple_of(LENGTH)..).unwrap_or_default();
        }
        fields
    }
}

impl Fields {
    fn read(&mut self, kind: (c_int, c_int), value: &[u8]) {
        let int = || value.first_chunk().map_or(0, |octets| c_int::from_ne_bytes(*octets) as u8);
        match (kind, value) {
            ((libc::IPPROTO_IP, libc::IP_PKTINFO), [.., a, b, c, d]) => {
                self.local = Some(Ipv4Addr::new(*a, *b, *c, *d).into());
            }
            // One octet only: ip(7).
            ((libc::IPPROTO_IP, libc::IP_TOS), [tos, ..]) => self.tos = *tos,
            ((libc::IPPROTO_IP, libc::IP_TTL), _) => self.ttl = int(),
            ((libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), _) => {
                self.local = value.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into());
            }
            ((libc::IPPROTO_IPV6, libc::IPV6_TCLASS), _) => self.tos = int(),
            ((libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT), _) => self.ttl = int(),
            _ => {}
        }
    }
}

/// A socket address: `struct sockaddr_in` or `sockaddr_in6`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Name {
    octets: [u8; NAME],
    len: usize,
}

impl Name {
    /// None, and room for one.
    pub const EMPTY: Name = Name { octets: [0; NAME], len: NAME };

    pub fn of(address: SocketAddr) -> Name {
        let mut name = Name::EMPTY;
        name.octets[2..4].copy_from_slice(&address.port().to_be_bytes());
        let family = match address {
            SocketAddr::V4(v4) => {
                name.octets[4..8].copy_from_slice(&v4.ip().octets());
                name.len = size_of::<libc::sockaddr_in>();
                libc::AF_INET
            }
            SocketAddr::V6(v6) => {
                name.octets[8..24].copy_from_slice(&v6.ip().octets());
                name.octets[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                libc::AF_INET6
            }
        };
        name.octets[..2].copy_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
        name
    }

    /// The octets as long as the address is; all the room if it is none.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }

    /// Room for an address.
    pub fn room_mut(&mut self) -> &mut [u8] {
        &mut self.octets
    }

    /// The address that was written here.
    pub fn address(&self) -> Option<SocketAddr> {
        let (family, rest) = self.octets.split_first_chunk()?;
        let (port, rest) = rest.split_first_chunk()?;
        let port = u16::from_be_bytes(*port);
        match c_int::from(libc::sa_family_t::from_ne_bytes(*family)) {
            libc::AF_INET => Some((Ipv4Addr::from(*rest.first_chunk::<4>()?), port).into()),
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(*rest[4..].first_chunk::<16>()?);
                let scope = u32::from_ne_bytes(*rest.last_chunk()?);
                Some(SocketAddrV6::new(address, port, 0, scope).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_are_read_as_written(v4: bool, octets: [u8; 16], port: u16, scope: u32) {
            let ip = Ipv6Addr::from(octets);
            let address = match v4 {
                true => (Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]), port).into(),
                false => SocketAddrV6::new(ip, port, 0, scope).into(),
            };
            prop_assert_eq!(Name::of(address).address(), Some(address));
        }

        #[test]
        fn whatever_is_written_is_read_without_harm(noise in vec(any::<u8>(), ROOM), len in 0usize..200) {
            let mut control = Control::EMPTY;
            control.room_mut().copy_from_slice(&noise);
            control.fields(len);
        }
    }

    #[test]
    fn what_is_asked_for_is_what_the_kernel_tells() {
        // The kernel tells the destination where we ask for the source, and TOS as one octet.
        let local: [IpAddr; 2] = [[1, 2, 3, 4].into(), Ipv6Addr::LOCALHOST.into()];
        for local in local {
            let fields = Fields { local: Some(local), tos: 0xb9, ttl: 255 };
            let mut control = Control::asking(fields, local);
            let len = control.octets().len();
            if local.is_ipv4() {
                // Of 12 bytes, padded to 16, the middle and the last four.
                control.octets.copy_within(len - 12..len - 8, len - 8);
            }
            assert_eq!(control.fields(len), fields);
            assert_eq!(control.fields(len - 5).local, None, "the last message is cut");
        }
    }
}
