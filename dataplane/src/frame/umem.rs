//! The UMEM, and the AF_XDP sockets that share it (kernel: Documentation/networking/af_xdp.rst).
//!
//! libxdp uses the descriptor that holds the UMEM as the first socket, and shares from it ever after. Left
//! alone, that has two consequences: the first interface's queue stays taken until the process ends, and once
//! that interface is removed no other can be added, for the kernel shares only from a socket that is bound. So
//! we put another socket behind the descriptor's number (dup3(2)) when its own has to go: one of the others,
//! or, if there is none, a new one that holds the same memory.
//!
//! The first socket also decides for all that share: zero-copy or not, multi-buffer or not.
//! Everything here is set-up: a lock, and system calls.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::{Chunk, SMALL, chatter};

/// Slots of the fill and receive rings of a socket: its [`SharedUmem::ample_share`] of the pool at most. As many as Open
/// vSwitch's have (`XSK_RING_PROD__DEFAULT_NUM_DESCS`).
pub const RX_RING: u32 = 2048;
/// Slots of the transmit and completion rings. With the other two 72 KiB a socket.
pub const TX_RING: u32 = 1024;
/// The most chunks that every socket has from the start.
const SHARE_MAX: usize = 1024;
/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h` (Linux 6.17): how many descriptors a wake-up sends in copy mode, at most.
const MAX_TX_SKB_BUDGET: libc::c_int = 9;

// SAFETY: the pointer is to the UMEM's memory, which lives as long; chunks have one owner at a time.
unsafe impl Send for SharedUmem {}
// SAFETY: as above; the rest is behind a lock or never changes.
unsafe impl Sync for SharedUmem {}

/// The memory of the small chunks, and who uses it.
pub struct SharedUmem {
    umem: Umem,
    descs: Vec<FrameDesc>,
    base: NonNull<u8>,
    sockets: Mutex<Sockets>,
    /// See [`SharedUmem::ample_share`].
    ample: AtomicUsize,
}

/// The sockets of a [`SharedUmem`].
#[derive(Default)]
struct Sockets {
    /// The number of the descriptor that libxdp shares from; known from the first socket on.
    root: Option<RawFd>,
    /// Our duplicates of the live sockets' descriptors: their libxdp numbers may come to mean another socket.
    live: Vec<RawFd>,
    /// What the first socket chose.
    multi_buffer: bool,
}

/// What the first socket chooses for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The driver reads and writes the frames in place.
    pub zero_copy: bool,
    /// A frame may lie in several chunks.
    pub multi_buffer: bool,
}

/// The rings of one socket. They go before the seat does, which frees the interface's queue.
pub struct Rings {
    /// Frames that arrived.
    pub rx: RxQueue,
    /// Frames to send.
    pub tx: TxQueue,
    /// Chunks to receive into.
    pub fill: FillQueue,
    /// Chunks that were sent.
    pub comp: CompQueue,
    /// What the socket can do.
    pub features: Features,
    /// One wake-up sends all of the transmit ring: else, in copy mode, 32 descriptors.
    pub sends_all: bool,
    seat: Seat,
}

/// A socket's place among those that share the memory.
struct Seat {
    umem: Arc<SharedUmem>,
    fd: OwnedFd,
}

impl Rings {
    /// The socket. Not the number that xsk-rs has: that may come to mean another socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.seat.fd.as_fd()
    }

    /// Makes the kernel work on the transmit ring (sendto(2)).
    ///
    /// # Errors
    /// ENXIO or ENETDOWN if the interface is gone or down; others say that it did not get through the ring.
    #[inline]
    pub fn wake_transmit(&self) -> Result<(), Errno> {
        let fd = self.seat.fd.as_raw_fd();
        // SAFETY: an empty send has no buffer.
        let sent = unsafe { libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
        Errno::result(sent).map(drop)
    }

    /// Makes the kernel look at the fill ring (recvfrom(2)); zero-copy drivers only want that.
    pub fn wake_receive(&self) {
        let (fd, null) = (self.seat.fd.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: an empty receive has no buffer.
        unsafe { libc::recvfrom(fd, null, 0, libc::MSG_DONTWAIT, null.cast(), null.cast()) };
    }

    /// What the kernel lost on this socket since it was opened; zeros if it does not say.
    pub fn statistics(&self) -> libc::xdp_statistics {
        // SAFETY: integers only, for which zeros are a value.
        let zeros = unsafe { std::mem::zeroed() };
        get_option(&self.seat.fd, libc::XDP_STATISTICS, zeros).unwrap_or(zeros)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.umem.leave(self.fd.as_raw_fd());
    }
}

impl SharedUmem {
    /// Memory of `count` chunks, registered with the kernel; or why not.
    pub(super) fn new(count: u32) -> Result<Self, String> {
        chatter::to_log();
        let count = NonZeroU32::new(count).ok_or("a pool of no frames")?;
        let config = umem_config().map_err(|e| e.to_string())?;
        let (umem, mut descs) = Umem::new(config, count, false).map_err(|e| {
            let source = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            format!("{e}{source}")
        })?;
        let first = &mut descs[0];
        // SAFETY: nobody else uses the frame yet; only its address is taken.
        let data = unsafe { umem.data_mut(first) }.as_mut().as_mut_ptr();
        // SAFETY: the descriptor's address is its distance from the start of the region.
        let base = unsafe { data.sub(descs[0].addr()) };
        let base = NonNull::new(base).ok_or("a UMEM at address zero")?;
        Ok(SharedUmem { umem, descs, base, sockets: Mutex::default(), ample: AtomicUsize::new(0) })
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> usize {
        self.descs.len()
    }

    /// The first byte of the first chunk.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// A descriptor of `len` bytes, [`super::HEADROOM`] bytes into a chunk.
    ///
    /// # Panics
    /// If the chunk is not one of this memory.
    #[inline]
    pub fn desc(&self, chunk: Chunk, len: usize) -> FrameDesc {
        let mut desc = self.descs[chunk.0 as usize];
        // SAFETY: no byte is looked at; this is how xsk-rs sets a descriptor's length.
        unsafe { self.umem.data_mut(&mut desc) }.cursor().set_pos(len);
        desc
    }

    /// How many chunks one socket keeps for receiving: 512 of the default pool.
    #[inline]
    pub fn share(&self) -> usize {
        (self.descs.len() / 32).clamp(64, SHARE_MAX)
    }

    /// How many chunks one that had a backlog keeps, as long as the pool has them: what three quarters of it are for each of
    /// the sockets that there are. Of the default pool that is 2,048 for up to six.
    #[inline]
    pub fn ample_share(&self) -> usize {
        self.ample.load(Ordering::Relaxed)
    }

    /// The chunks of all sockets together: a quarter remains for all other uses.
    fn for_sockets(&self) -> usize {
        self.descs.len() / 4 * 3
    }

    /// How many sockets there may be.
    pub fn most_sockets(&self) -> usize {
        self.for_sockets() / self.share()
    }

    /// Divides the chunks anew.
    fn divide(&self, sockets: &Sockets) {
        let each = self.for_sockets() / sockets.live.len().max(1);
        self.ample.store(each.min(RX_RING as usize).max(self.share()), Ordering::Relaxed);
    }

    /// How many sockets there are.
    pub fn sockets(&self) -> usize {
        self.lock().live.len()
    }

    /// Opens a socket on a queue. `flags` counts only for the first of all.
    ///
    /// # Errors
    /// What bind(2) says: EBUSY if the queue is taken, EBADF if all interfaces with a socket were removed and
    /// none of the sockets is closed yet; both pass.
    pub fn bind(self: &Arc<Self>, at: (&str, u32), flags: BindFlags) -> io::Result<Rings> {
        let mut sockets = self.lock();
        sockets.share_from_bound()?;
        let interface: Interface = at.0.parse().map_err(|_| Errno::EINVAL)?;
        // SAFETY: libxdp loads no program, so there is none to free twice.
        let made = unsafe { Socket::new(socket_config(flags)?, &self.umem, &interface, at.1) };
        let rings = made.map_err(|e| errno_of(&e)).and_then(|(tx, rx, other)| {
            let (fill, comp) = other.ok_or(Errno::EBUSY)?;
            let number = rx.fd().as_raw_fd();
            sockets.root.get_or_insert(number);
            let fd = duplicate(number)?;
            let zero_copy = is_zero_copy(&fd)?;
            if sockets.live.is_empty() {
                sockets.multi_buffer = flags.contains(BindFlags::XDP_USE_SG);
            }
            let features = Features { zero_copy, multi_buffer: sockets.multi_buffer };
            sockets.live.push(fd.as_raw_fd());
            self.divide(&sockets);
            let sends_all = set_option(&fd, MAX_TX_SKB_BUDGET, &TX_RING).is_ok();
            Ok(Rings { rx, tx, fill, comp, features, sends_all, seat: Seat { umem: self.clone(), fd } })
        });
        if rings.is_err() {
            self.settle(&sockets);
        }
        rings
    }

    /// A socket is closed: its descriptor must not live on behind the root's number.
    fn leave(&self, fd: RawFd) {
        let mut sockets = self.lock();
        sockets.live.retain(|&other| other != fd);
        self.divide(&sockets);
        self.settle(&sockets);
    }

    /// Puts a socket behind the root's number that may stay there.
    fn settle(&self, sockets: &Sockets) {
        let Some(root) = sockets.root else { return };
        let done = match sockets.live.first() {
            Some(&socket) => replace(root, socket),
            None => self.unbound().and_then(|socket| replace(root, socket.as_raw_fd())),
        };
        if let Err(error) = done {
            tracing::error!("no new AF_XDP port can be opened until a restart: {error}");
        }
    }

    /// A new socket that holds the memory, in the state that libxdp thinks its first is in: with a receive and
    /// a transmit ring, without the other two, not bound.
    fn unbound(&self) -> io::Result<OwnedFd> {
        // SAFETY: a plain system call.
        let number =
            Errno::result(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the kernel just gave it to us.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        let memory = libc::xdp_umem_reg {
            addr: self.base.as_ptr() as u64,
            len: (self.descs.len() * SMALL) as u64,
            chunk_size: SMALL as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set_option(&socket, libc::XDP_UMEM_REG, &memory)?;
        set_option(&socket, libc::XDP_RX_RING, &RX_RING)?;
        set_option(&socket, libc::XDP_TX_RING, &TX_RING)?;
        Ok(socket)
    }

    fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sockets {
    /// Sees to it that the socket libxdp will share from is bound, if any is.
    fn share_from_bound(&self) -> io::Result<()> {
        match self.root {
            Some(root) if !self.live.is_empty() && !is_bound(root) => {
                let bound = self.live.iter().find(|&&fd| is_bound(fd)).ok_or(Errno::EBADF)?;
                replace(root, *bound)
            }
            _ => Ok(()),
        }
    }
}

fn umem_config() -> Result<UmemConfig, Box<dyn std::error::Error>> {
    Ok(UmemConfig::builder()
        .frame_size(FrameSize::new(SMALL as u32)?)
        .fill_queue_size(QueueSize::new(RX_RING)?)
        .comp_queue_size(QueueSize::new(TX_RING)?)
        .build()?)
}

fn socket_config(flags: BindFlags) -> io::Result<SocketConfig> {
    Ok(SocketConfig::builder()
        .rx_queue_size(QueueSize::new(RX_RING).map_err(io::Error::other)?)
        .tx_queue_size(QueueSize::new(TX_RING).map_err(io::Error::other)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flags)
        .build())
}

/// The reason inside an error of xsk-rs.
fn errno_of(error: &dyn std::error::Error) -> io::Error {
    let reason = error.source().and_then(|s| s.downcast_ref::<io::Error>()?.raw_os_error());
    reason.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// Did a bound socket get zero-copy mode?
fn is_zero_copy(socket: &OwnedFd) -> io::Result<bool> {
    let options = get_option(socket, libc::XDP_OPTIONS, libc::xdp_options { flags: 0 })?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// Reads an option; `T` is the struct that if_xdp.h documents it with.
fn get_option<T: Copy>(socket: &OwnedFd, option: libc::c_int, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let to = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the kernel writes at most `len` bytes to a plain C struct.
    Errno::result(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, to, &mut len) })?;
    Ok(value)
}

fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of a plain C struct or integer.
    Errno::result(unsafe {
        let from = std::ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, from, len)
    })?;
    Ok(())
}

/// False for a socket whose interface was removed, and for one that was never bound.
fn is_bound(fd: RawFd) -> bool {
    // SAFETY: an empty send has no buffer; on a bound socket it moves on what its ring holds anyway.
    let sent = unsafe { libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    Errno::result(sent) != Err(Errno::ENXIO)
}

/// A second descriptor for the same socket.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the kernel checks the number. The first is not for children either.
    let second = unsafe {
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0)
    };
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(Errno::result(second)?) })
}

/// Closes what is behind `number` and puts another socket there.
fn replace(number: RawFd, socket: RawFd) -> io::Result<()> {
    // SAFETY: a plain system call; `number` is libxdp's, which asks only for what all these sockets share.
    Errno::result(unsafe { libc::dup3(socket, number, libc::O_CLOEXEC) })?;
    Ok(())
}
