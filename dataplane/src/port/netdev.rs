//! Facts about a network device and its settings, by name: what `ip link` and `ethtool` show and set.
//!
//! All of it is ioctls on a socket of the network namespace that the calling thread is in when the
//! [`Netdev`] is opened (netdevice(7), `linux/ethtool.h`); a handle keeps working when the thread moves on.
//! Each call is one or two system calls under the kernel's RTNL lock: for set-up, never for the data path.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_ulong};
use std::os::fd::{AsRawFd, OwnedFd};

use encap::field::MacAddr;
use nix::errno::Errno;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

/// The longest name of an interface (`IFNAMSIZ` less the final zero).
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// `SIOCETHTOOL` of `linux/sockios.h`.
const SIOCETHTOOL: c_ulong = 0x8946;
/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`.
const ETHTOOL_GDRVINFO: u32 = 0x03;
/// `ETHTOOL_GCHANNELS` of `linux/ethtool.h`.
const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// `ETHTOOL_GFLAGS` of `linux/ethtool.h`, and what it says about VLAN tags.
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// A network device could not be read or set.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetdevError {
    /// No name that an interface can have.
    #[error("`{0}` is no interface name, expected 1 to {NAME_MAX} characters without space, `/` and `:`")]
    BadName(String),
    /// No such interface in this network namespace.
    #[error("interface {0} does not exist; create it, or correct the name")]
    Missing(String),
    /// The process may not do that.
    #[error("no permission to {what} of interface {name}; run as root or with CAP_NET_ADMIN")]
    Forbidden {
        /// The interface.
        name: String,
        /// What was tried, as in "set the MTU".
        what: &'static str,
    },
    /// Not a device that carries Ethernet frames.
    #[error(
        "interface {name} carries no Ethernet frames (hardware type {hardware}); only Ethernet can be a port"
    )]
    NotEthernet {
        /// The interface.
        name: String,
        /// Its `ARPHRD_` number (`linux/if_arp.h`).
        hardware: u16,
    },
    /// The kernel or the driver said no.
    #[error("cannot {what} of interface {name}: {source}")]
    Refused {
        /// The interface.
        name: String,
        /// What was tried, as in "set the MTU to 9000".
        what: String,
        /// What the kernel said.
        source: Errno,
    },
}

/// The state that the operator asked for (`ip link set NAME up|down`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admin {
    /// Frames may pass.
    Up,
    /// Frames may not pass.
    Down,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    /// Version, firmware, bus and what else we do not read.
    rest: [u32; 40],
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    /// rx, tx, other, combined.
    max: [u32; 4],
    /// rx, tx, other, combined.
    count: [u32; 4],
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// A network device, by name.
#[derive(Debug)]
pub struct Netdev {
    name: String,
    socket: OwnedFd,
}

impl Netdev {
    /// Looks for the interface in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetdevError::BadName`], [`NetdevError::Missing`].
    pub fn open(name: &str) -> Result<Netdev, NetdevError> {
        check_name(name)?;
        let refused =
            |source| NetdevError::Refused { name: name.into(), what: "open a socket".into(), source };
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .or_else(|_| socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None))
            .map_err(refused)?;
        let netdev = Netdev { name: name.to_owned(), socket };
        netdev.index()?;
        Ok(netdev)
    }

    /// The name it was opened with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface index; a device that was made anew has another one.
    ///
    /// # Errors
    /// [`NetdevError::Missing`] once the device is gone (so for all that follow).
    pub fn index(&self) -> Result<u32, NetdevError> {
        let answer = self.ask(libc::SIOCGIFINDEX, "read the index")?;
        // SAFETY: SIOCGIFINDEX fills this member.
        Ok(unsafe { answer.ifr_ifru.ifru_ifindex }.cast_unsigned())
    }

    /// The MTU: bytes of payload behind the Ethernet header.
    ///
    /// # Errors
    /// As [`Netdev::index`].
    pub fn mtu(&self) -> Result<u32, NetdevError> {
        let answer = self.ask(libc::SIOCGIFMTU, "read the MTU")?;
        // SAFETY: SIOCGIFMTU fills this member.
        Ok(unsafe { answer.ifr_ifru.ifru_mtu }.cast_unsigned())
    }

    /// Sets the MTU.
    ///
    /// # Errors
    /// [`NetdevError::Forbidden`] without CAP_NET_ADMIN; [`NetdevError::Refused`] if the driver does not take
    /// the value.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), NetdevError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_mtu = i32::try_from(mtu).unwrap_or(i32::MAX);
        self.ioctl(libc::SIOCSIFMTU, &mut request)
            .map_err(|errno| self.error("set the MTU", errno).with(|| format!("set the MTU to {mtu}")))
    }

    /// The hardware address.
    ///
    /// # Errors
    /// [`NetdevError::NotEthernet`].
    pub fn mac(&self) -> Result<MacAddr, NetdevError> {
        let answer = self.ask(libc::SIOCGIFHWADDR, "read the MAC address")?;
        // SAFETY: SIOCGIFHWADDR fills this member.
        let address = unsafe { answer.ifr_ifru.ifru_hwaddr };
        if address.sa_family != libc::ARPHRD_ETHER {
            return Err(NetdevError::NotEthernet { name: self.name.clone(), hardware: address.sa_family });
        }
        Ok(MacAddr(std::array::from_fn(|i| address.sa_data[i].cast_unsigned())))
    }

    /// Sets the hardware address.
    ///
    /// # Errors
    /// As [`Netdev::set_mtu`]; many drivers take a new address only while the interface is down.
    pub fn set_mac(&self, mac: MacAddr) -> Result<(), NetdevError> {
        let mut request = self.request();
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, octet) in address.sa_data.iter_mut().zip(mac.0) {
            *to = octet.cast_signed();
        }
        request.ifr_ifru.ifru_hwaddr = address;
        self.ioctl(libc::SIOCSIFHWADDR, &mut request).map_err(|errno| {
            self.error("set the MAC address", errno).with(|| format!("set the MAC address to {mac}"))
        })
    }

    /// The flags of `ip link`: up, running (has a carrier), promiscuous and so on (the low 16 only).
    ///
    /// # Errors
    /// As [`Netdev::index`].
    pub fn flags(&self) -> Result<InterfaceFlags, NetdevError> {
        let answer = self.ask(libc::SIOCGIFFLAGS, "read the flags")?;
        // SAFETY: SIOCGIFFLAGS fills this member.
        let bits = unsafe { answer.ifr_ifru.ifru_flags }.cast_unsigned();
        Ok(InterfaceFlags::from_bits_truncate(bits.into()))
    }

    /// Sets the interface up or down.
    ///
    /// # Errors
    /// As [`Netdev::set_mtu`].
    pub fn set_admin(&self, admin: Admin) -> Result<(), NetdevError> {
        let mut flags = self.flags()?;
        flags.set(InterfaceFlags::IFF_UP, admin == Admin::Up);
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = flags.bits() as i16;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request).map_err(|errno| self.error("set the state", errno))
    }

    /// The driver's name, such as `veth` or `virtio_net`; empty if the device has none.
    ///
    /// # Errors
    /// As [`Netdev::index`].
    pub fn driver(&self) -> Result<String, NetdevError> {
        let mut info = DriverInfo { cmd: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 40] };
        match self.ethtool(&mut info) {
            Ok(()) => Ok(String::from_utf8_lossy(&info.driver).trim_end_matches('\0').to_owned()),
            Err(Errno::EOPNOTSUPP) => Ok(String::new()),
            Err(errno) => Err(self.error("read the driver", errno)),
        }
    }

    /// How many receive queues are in use: the `queues` of AF_XDP. A driver that does not say has one.
    ///
    /// # Errors
    /// As [`Netdev::index`].
    pub fn queues(&self) -> Result<u32, NetdevError> {
        let [rx, _, _, combined] = self.channels()?;
        Ok((rx + combined).max(1))
    }

    /// How many transmit queues are in use. A driver that does not say has one.
    ///
    /// # Errors
    /// As [`Netdev::index`].
    pub fn tx_queues(&self) -> Result<u32, NetdevError> {
        let [_, tx, _, combined] = self.channels()?;
        Ok((tx + combined).max(1))
    }

    /// True if the device may take the outer VLAN tag out of a frame it receives (`ethtool -K NAME rxvlan`).
    ///
    /// # Errors
    /// As [`Netdev::index`].
    pub fn strips_tags(&self) -> Result<bool, NetdevError> {
        let mut value = Value { cmd: ETHTOOL_GFLAGS, data: 0 };
        match self.ethtool(&mut value) {
            Ok(()) => Ok(value.data & ETH_FLAG_RXVLAN != 0),
            Err(Errno::EOPNOTSUPP) => Ok(false),
            Err(errno) => Err(self.error("read the features", errno)),
        }
    }

    /// Has the device receive frames for all addresses as long as the socket is held, by whatever end
    /// (packet(7), `PACKET_MR_PROMISC`).
    ///
    /// # Errors
    /// [`NetdevError::Forbidden`] without CAP_NET_RAW; as [`Netdev::index`].
    pub fn promiscuous(&self) -> Result<OwnedFd, NetdevError> {
        let what = "switch on promiscuous mode";
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Packet, kind, flags, None).map_err(|e| self.error(what, e))?;
        let member = libc::packet_mreq {
            mr_ifindex: self.index()?.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        let (from, len) = (std::ptr::from_ref(&member).cast(), size_of_val(&member) as libc::socklen_t);
        let option = libc::PACKET_ADD_MEMBERSHIP;
        // SAFETY: the option is documented with this struct, of this length.
        let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, from, len) };
        Errno::result(set).map(|_| socket).map_err(|e| self.error(what, e))
    }

    /// Queues in use: rx, tx, other, combined.
    fn channels(&self) -> Result<[u32; 4], NetdevError> {
        let mut channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
        match self.ethtool(&mut channels) {
            Ok(()) => Ok(channels.count),
            Err(Errno::EOPNOTSUPP) => Ok([0; 4]),
            Err(errno) => Err(self.error("read the queues", errno)),
        }
    }

    fn request(&self) -> libc::ifreq {
        request(&self.name)
    }

    fn ask(&self, command: c_ulong, what: &'static str) -> Result<libc::ifreq, NetdevError> {
        let mut request = self.request();
        self.ioctl(command, &mut request).map_err(|errno| self.error(what, errno))?;
        Ok(request)
    }

    fn ioctl(&self, command: c_ulong, request: &mut libc::ifreq) -> Result<(), Errno> {
        // SAFETY: the socket is open, and every command of this module reads and writes one ifreq.
        Errno::result(unsafe { libc::ioctl(self.socket.as_raw_fd(), command as _, request) }).map(drop)
    }

    /// Runs an ethtool command; `T` is the struct that the command in its first word stands for.
    fn ethtool<T>(&self, command: &mut T) -> Result<(), Errno> {
        let mut request = self.request();
        request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast::<c_char>();
        self.ioctl(SIOCETHTOOL, &mut request)
    }

    fn error(&self, what: &'static str, errno: Errno) -> NetdevError {
        let name = self.name.clone();
        match errno {
            Errno::ENODEV | Errno::ENXIO => NetdevError::Missing(name),
            Errno::EPERM | Errno::EACCES => NetdevError::Forbidden { name, what },
            source => NetdevError::Refused { name, what: what.into(), source },
        }
    }
}

impl NetdevError {
    /// The same error with the refused value in it.
    fn with(self, say: impl FnOnce() -> String) -> Self {
        match self {
            NetdevError::Refused { name, source, .. } => NetdevError::Refused { name, what: say(), source },
            other => other,
        }
    }
}

/// Checks a name as the kernel does (`dev_valid_name`).
///
/// # Errors
/// [`NetdevError::BadName`].
pub fn check_name(name: &str) -> Result<(), NetdevError> {
    let legal = |b: u8| b > b' ' && b != b'/' && b != b':' && b != 0x7f;
    let ok = (1..=NAME_MAX).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(legal);
    ok.then_some(()).ok_or_else(|| NetdevError::BadName(name.to_owned()))
}

/// An ifreq for the device of that name, all else zero. The name must have passed [`check_name`].
pub(super) fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is integers, bytes and pointers: all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..NAME_MAX].iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_known_by_its_facts() {
        let lo = Netdev::open("lo").unwrap();
        assert!(lo.index().unwrap() > 0);
        assert!(lo.flags().unwrap().contains(InterfaceFlags::IFF_LOOPBACK));
        assert!(lo.mtu().unwrap() > 0);
        assert_eq!(lo.queues().unwrap(), 1);
        assert_eq!(
            lo.mac(),
            Err(NetdevError::NotEthernet { name: "lo".into(), hardware: libc::ARPHRD_LOOPBACK })
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(
            Netdev::open("no-such-dev").unwrap_err().to_string(),
            "interface no-such-dev does not exist; create it, or correct the name"
        );
        for name in ["", "a/b", "a b", "sixteen-letters!", "..", "a:1"] {
            assert_eq!(Netdev::open(name).unwrap_err(), NetdevError::BadName(name.into()));
        }
    }
}
