//! `internal` ports: a TAP device that the switch makes for the host's own stack (tuntap of the kernel's
//! `Documentation/networking/tuntap.rst`).
//!
//! The device lives as long as its ports: the kernel takes it away when the last descriptor closes, also
//! after kill -9. Each queue is one descriptor (`IFF_MULTI_QUEUE`) and one port. With `IFF_VNET_HDR` the host
//! leaves checksums and segmentation to us and we leave them to the host, so a TCP stream crosses in frames of
//! up to 64 KiB. Each frame costs one system call and one copy in either direction.
//!
//! An internal port that is set down (`ip link set NAME down`) is not gone: it gives nothing, what is sent to
//! it is refused, and it goes on by itself when it is up again.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use encap::field::MacAddr;
use nix::errno::Errno;
use thiserror::Error;

use super::linkstats::LinkStats;
use super::netdev::{self, Admin, Netdev, NetdevError};
use super::{Counters, LONG_BATCH, Offloads, Port, PortError, Readiness, Sent, vnet};
use crate::batch::Batch;
use crate::frame::{Frame, FrameCache, SMALL};

#[cfg(test)]
mod tests;

/// The character device that makes TAP devices.
const TUN: &str = "/dev/net/tun";
/// The most queues of one device (`MAX_TAP_QUEUES` of the kernel).
pub const QUEUES_MAX: u16 = 256;

/// Checksums and TCP, which every kernel takes.
const TCP_OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP, since Linux 6.2.
const UDP_OFFLOADS: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// The device to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapConfig {
    /// Its name, which nothing else has yet.
    pub name: String,
    /// How many queues, 1 to [`QUEUES_MAX`]; each is a port.
    pub queues: u16,
    /// The MTU; else the kernel's default, 1500.
    pub mtu: Option<u16>,
    /// The hardware address; else a random one.
    pub mac: Option<MacAddr>,
    /// Whether to set it up at once.
    pub admin: Admin,
}

/// The device cannot be made.
#[derive(Debug, Error)]
pub enum TapError {
    /// The kernel has no TAP driver, or the process may not use it.
    #[error(
        "cannot open {TUN}: {0}; load the module with `modprobe tun`, and run as root or with CAP_NET_ADMIN"
    )]
    Driver(io::Error),
    /// The name is taken, by a persistent TAP of old or by a foreign device.
    #[error(
        "interface {name} exists already (driver {driver}); stop the program that uses it, remove it with \
         `ip link delete {name}`, or choose another name"
    )]
    Exists {
        /// The name.
        name: String,
        /// What it is.
        driver: String,
    },
    /// No permission.
    #[error("no permission to make TAP interface {name}; run as root or with CAP_NET_ADMIN")]
    Forbidden {
        /// The name.
        name: String,
    },
    /// More queues than a device has.
    #[error("interface {name} cannot have {queues} queues, expected 1 to {QUEUES_MAX}")]
    Queues {
        /// The name.
        name: String,
        /// How many were asked for.
        queues: u16,
    },
    /// The kernel said no.
    #[error("cannot make TAP interface {name}: {source}")]
    Refused {
        /// The name.
        name: String,
        /// What the kernel said.
        source: Errno,
    },
    /// The device was made but does not take a setting.
    #[error(transparent)]
    Setting(#[from] NetdevError),
}

/// Makes the device, in the network namespace of the calling thread: one port per queue.
///
/// # Errors
/// [`TapError`]; nothing is left behind.
pub fn open(config: &TapConfig) -> Result<Vec<TapPort>, TapError> {
    netdev::check_name(&config.name)?;
    if !(1..=QUEUES_MAX).contains(&config.queues) {
        return Err(TapError::Queues { name: config.name.clone(), queues: config.queues });
    }
    let files = (0..config.queues).map(|queue| open_queue(config, queue)).collect::<Result<Vec<_>, _>>()?;
    let offloads = set_offloads(&files[0]).map_err(|errno| refused(config, errno))?;
    let index = set_up(config)?;
    let stats = LinkStats::open(index).ok();
    let port = |file| TapPort { file, offloads, counters: Counters::default(), stats: None };
    let mut ports: Vec<_> = files.into_iter().map(port).collect();
    ports[0].stats = stats;
    Ok(ports)
}

/// Sets the device as asked. Returns its index.
fn set_up(config: &TapConfig) -> Result<u32, NetdevError> {
    let device = Netdev::open(&config.name)?;
    if let Some(mac) = config.mac {
        device.set_mac(mac)?;
    }
    if let Some(mtu) = config.mtu {
        device.set_mtu(mtu.into())?;
    }
    device.set_admin(config.admin)?;
    device.index()
}

/// One more queue of the device; the first makes it.
fn open_queue(config: &TapConfig, queue: u16) -> Result<File, TapError> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(TUN).map_err(TapError::Driver)?;
    let mut request = netdev::request(&config.name);
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if config.queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if queue == 0 {
        flags |= libc::IFF_TUN_EXCL;
    }
    request.ifr_ifru.ifru_flags = flags as i16;
    let mut len = vnet::LEN as c_int;
    ioctl(&file, libc::TUNSETIFF, &mut request)
        .and_then(|()| ioctl(&file, libc::TUNSETVNETHDRSZ, &mut len))
        .map_err(|errno| refused(config, errno))?;
    Ok(file)
}

fn refused(config: &TapConfig, errno: Errno) -> TapError {
    let name = config.name.clone();
    match errno {
        // EINVAL: the name belongs to a device that is no TAP, or one that was made otherwise.
        Errno::EBUSY | Errno::EEXIST | Errno::EINVAL => match Netdev::open(&name).and_then(|d| d.driver()) {
            Ok(driver) => TapError::Exists { name, driver },
            Err(_) => TapError::Refused { name, source: errno },
        },
        Errno::EPERM | Errno::EACCES => TapError::Forbidden { name },
        source => TapError::Refused { name, source },
    }
}

/// Tells the kernel what the host may leave to us; the answer says what we may leave to the host.
fn set_offloads(file: &File) -> Result<Offloads, Errno> {
    let uso = match ioctl_value(file, libc::TUNSETOFFLOAD, TCP_OFFLOADS | UDP_OFFLOADS) {
        Ok(()) => true,
        Err(Errno::EINVAL) => ioctl_value(file, libc::TUNSETOFFLOAD, TCP_OFFLOADS).map(|()| false)?,
        Err(errno) => return Err(errno),
    };
    Ok(Offloads { csum: true, tso: true, uso })
}

/// Runs one of the ioctls of `linux/if_tun.h` whose argument points to a `T`.
#[allow(unsafe_code)]
fn ioctl<T>(file: &File, command: libc::Ioctl, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: TUNSETIFF takes an ifreq and TUNSETVNETHDRSZ an int, and the kernel keeps neither pointer.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), command, std::ptr::from_mut(argument)) }).map(drop)
}

/// Runs one of the ioctls of `linux/if_tun.h` whose argument is a number.
#[allow(unsafe_code)]
fn ioctl_value(file: &File, command: libc::Ioctl, value: u32) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes its bits by value; no memory is touched.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), command, libc::c_ulong::from(value)) }).map(drop)
}

/// One queue of a TAP device.
#[derive(Debug)]
pub struct TapPort {
    file: File,
    offloads: Offloads,
    counters: Counters,
    /// The device's own counters: the first queue speaks for all.
    stats: Option<LinkStats>,
}

impl TapPort {
    /// Reads one frame. `None`: it had to be dropped, and is counted.
    fn read(&mut self, frames: &mut FrameCache) -> io::Result<Option<Frame>> {
        let Some(mut small) = frames.alloc() else { return Err(io::ErrorKind::WouldBlock.into()) };
        let mut big = frames.alloc_big();
        let mut header = [0; vnet::LEN];
        let read = scatter(&self.file, &mut header, &mut small, big.as_mut());
        let split = small.room();
        let mut frame = match big {
            Some(mut big) if read.as_ref().is_ok_and(|&len| len > split) => {
                big.room_mut()[..split].copy_from_slice(small.room_mut());
                frames.free(small);
                big
            }
            unused => {
                unused.into_iter().for_each(|big| frames.free(big));
                small
            }
        };
        let arrived = read.map(|len| vnet::arrive(&mut frame, len, &header, &mut self.counters));
        match arrived {
            Ok(true) => Ok(Some(frame)),
            Ok(false) => {
                frames.free(frame);
                Ok(None)
            }
            Err(error) => {
                frames.free(frame);
                Err(error)
            }
        }
    }

    fn write(&mut self, frame: &Frame) -> io::Result<()> {
        let header = vnet::emit(&frame.offload, frame.bytes());
        (&self.file).write_vectored(&[IoSlice::new(&header), IoSlice::new(frame.bytes())]).map(drop)
    }
}

/// Reads a frame into `small`, and what it has no room for into `big` at the place it shall have there.
/// Returns the frame's length; if it is more than the room, the frame was cut.
fn scatter(
    mut file: &File,
    header: &mut [u8; vnet::LEN],
    small: &mut Frame,
    big: Option<&mut Frame>,
) -> io::Result<usize> {
    let split = small.room();
    // The kernel cuts silently: only a byte behind the room tells that it did.
    let mut beyond = [0];
    let rest = big.map_or(&mut [][..], |big| &mut big.room_mut()[split..]);
    let mut slices = [&mut header[..], small.room_mut(), rest, &mut beyond].map(IoSliceMut::new);
    let read = file.read_vectored(&mut slices)?;
    read.checked_sub(vnet::LEN).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl Port for TapPort {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        let mut long = 0;
        for _ in 0..batch.remaining_capacity() {
            match self.read(frames) {
                Ok(frame) => {
                    long += usize::from(frame.as_ref().is_some_and(|frame| frame.len() > SMALL));
                    batch.extend(frame);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(PortError::Gone(error)),
            }
            if long == LONG_BATCH {
                break;
            }
        }
        Ok(())
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        let mut sent = Sent::default();
        let mut done = 0;
        for frame in batch.iter() {
            match self.write(frame) {
                Ok(()) => sent.count(frame),
                Err(error) => match errno(&error) {
                    Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => break,
                    Errno::EBADFD if done == 0 => return Err(PortError::Gone(error)),
                    // What was sent is reported first; the next call tells that the device is gone.
                    Errno::EBADFD => break,
                    // The frame's own fault, or the device is down (EIO).
                    _ => {}
                },
            }
            done += 1;
        }
        batch.drain(..done).for_each(|frame| frames.free(frame));
        Ok(sent)
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Call(self.file.as_fd())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn counters(&mut self) -> Counters {
        let no_room = self.stats.as_ref().and_then(LinkStats::tx_dropped).unwrap_or(0);
        Counters { rx_missed: self.counters.rx_missed + no_room, ..self.counters }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
