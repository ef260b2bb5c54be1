//! Paths that a packet was too long for. The kernel only says so; how much a path carries is asked apart, by who may wait.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::port::sockopt;

/// Destinations that wait to be looked after; others are told of again when the next packet is too long.
const LIMIT: usize = 256;

/// Destinations that a packet was too long for: ports tell, control asks.
#[derive(Debug)]
pub struct Overlong {
    remotes: Mutex<BTreeSet<IpAddr>>,
    bell: EventFd,
}

impl AsFd for Overlong {
    /// Readable when there is one.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Overlong {
    /// None yet.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Overlong { remotes: Mutex::default(), bell })
    }

    /// Adds one, unless that would mean to wait.
    #[cold]
    pub(super) fn add(&self, remote: IpAddr) {
        if let Ok(mut remotes) = self.remotes.try_lock()
            && remotes.len() < LIMIT
            && remotes.insert(remote)
        {
            let _ = self.bell.write(1);
        }
    }

    /// Those told of since this was last asked.
    pub fn take(&self) -> BTreeSet<IpAddr> {
        match self.bell.read() {
            Ok(_) => std::mem::take(&mut *self.remotes.lock().unwrap_or_else(PoisonError::into_inner)),
            Err(_) => BTreeSet::new(),
        }
    }
}

/// The longest packet that the kernel takes the path to `remote` to carry (ip(7), `IP_MTU`). Bytes. `None` without a way
/// there.
pub fn path_mtu(remote: IpAddr) -> Option<u16> {
    let (any, level, option) = match remote {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (IpAddr::from(Ipv6Addr::UNSPECIFIED), libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing: the port is of no meaning.
    socket.connect((remote, 1)).ok()?;
    let mtu: c_int = sockopt::get(&OwnedFd::from(socket), level, option).ok()?;
    u16::try_from(mtu.min(u16::MAX.into())).ok()
}
