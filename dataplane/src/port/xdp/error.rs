//! Why an interface cannot be an AF_XDP port, and what to do.

use std::io;

use nix::errno::Errno;
use thiserror::Error;

use super::super::netdev::NetdevError;

/// An interface cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No such interface, or the kernel does not tell about it.
    #[error(transparent)]
    Netdev(#[from] NetdevError),
    /// The interface is not up.
    #[error("{interface} is down; set it up: ip link set dev {interface} up")]
    Down {
        /// The interface.
        interface: String,
    },
    /// There is no memory to share with the kernel.
    #[error(
        "{interface}: no memory to share with the kernel: {why}; run with CAP_NET_RAW and CAP_IPC_LOCK (or \
         LimitMEMLOCK=infinity) on a kernel with CONFIG_XDP_SOCKETS, or use type = \"afpacket\""
    )]
    NoUmem {
        /// The interface.
        interface: String,
        /// What [`crate::frame::FramePool::umem_refused`] says.
        why: String,
    },
    /// Another socket would leave too few frames for the rest of the switch.
    #[error("{interface}: the frame pool is large enough for {most} AF_XDP queues; raise `frames` in [pool]")]
    Pool {
        /// The interface.
        interface: String,
        /// How many sockets there may be.
        most: usize,
    },
    /// One socket per receive queue, and each sends on the transmit queue of its number.
    #[error(
        "{interface} has {rx} receive and {tx} transmit queues, but {asked} asked for: frames of the other \
         queues would be missed; set queues = {rx}, or run: ethtool -L {interface} combined {asked} (or rx \
         {asked} tx {asked})"
    )]
    Queues {
        /// The interface.
        interface: String,
        /// How many queues were asked for.
        asked: u16,
        /// Receive queues in use.
        rx: u32,
        /// Transmit queues in use.
        tx: u32,
    },
    /// Somebody else's XDP program is there.
    #[error(
        "{interface} has an XDP program that is not ours: {name} (id {id}); stop who loaded it, or remove it \
         with: ip link set dev {interface} xdp off"
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// The kernel's number of the program.
        id: u32,
        /// Its name, as `bpftool prog` shows it.
        name: String,
    },
    /// Another process has what we need, for longer than a predecessor takes to go away.
    #[error(
        "{interface}: {what} is in use by another process; stop the other switch on this interface, or run: \
         ip link set dev {interface} xdp off"
    )]
    InUse {
        /// The interface.
        interface: String,
        /// The program, or a queue.
        what: String,
    },
    /// Frames may be longer than a chunk, and the kernel or driver does not divide them.
    #[error(
        "{interface}: frames of MTU {mtu} do not fit into a buffer and {why}; lower the MTU to {most}, or use \
         type = \"afpacket\""
    )]
    Mtu {
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The longest that fits.
        most: u32,
        /// Why frames are not divided.
        why: &'static str,
    },
    /// The kernel refused a step.
    #[error("{interface}: cannot {step}: {source}; {cure}")]
    Refused {
        /// The interface.
        interface: String,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        cure: &'static str,
    },
}

impl OpenError {
    /// The error of a step, with the cure for what the kernel said.
    pub(super) fn refused(interface: &str, step: &'static str, source: io::Error) -> OpenError {
        let errno = source.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        let cure = match errno {
            Errno::EPERM | Errno::EACCES => "run as root or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF",
            Errno::EBUSY => "stop the other process that uses AF_XDP or XDP on this interface",
            Errno::ENODEV | Errno::ENXIO => "check that the interface exists",
            Errno::ENOMEM | Errno::ENOBUFS => "raise LimitMEMLOCK, or lower `frames` in [pool]",
            Errno::ENOSPC => "give the interface as many receive queues as its peer sends on: ethtool -L",
            Errno::ERANGE => "lower the MTU of the interface and its peer",
            Errno::EBADF => "wait until the ports of the removed interfaces are closed",
            _ => "use xdp-mode = \"generic\", or type = \"afpacket\"",
        };
        OpenError::Refused { interface: interface.to_owned(), step, source, cure }
    }

    /// May it be different in a moment? What a process that just ended had is freed in the background.
    pub(super) fn passes(&self) -> bool {
        match self {
            OpenError::InUse { .. } => true,
            OpenError::Refused { source, .. } => {
                [Errno::EBUSY, Errno::EBADF].map(|e| Some(e as i32)).contains(&source.raw_os_error())
            }
            _ => false,
        }
    }
}
