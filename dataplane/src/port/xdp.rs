//! AF_XDP ports: frames go between a network device and the pool without passing the kernel's stack.
//!
//! One socket per receive queue, all on the one UMEM of the [`FramePool`]: forwarding between two of them moves
//! a descriptor. Native mode runs our XDP program in the driver; generic mode, for drivers without, in the
//! kernel's stack. Kernel: Documentation/networking/af_xdp.rst. Worst case of a poll: 32 frames and one refill of
//! the fill ring in, one system call per 32 frames out, or
//! per 64 under load.

mod error;
mod instructions;
mod lent;
mod program;
mod queue;
#[cfg(test)]
mod tests;
mod unfinished;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::InterfaceFlags;
use xsk_rs::config::BindFlags;

pub use self::error::OpenError;
pub use self::program::{Program, Target};
use self::queue::{CHUNK_ROOM, Queue};
use self::unfinished::Unfinished;
use super::netdev::Netdev;
use super::{Counters, Port, PortError, Readiness, Sent};
use crate::batch::Batch;
use crate::frame::umem::{Rings, SharedUmem};
use crate::frame::{FrameCache, FramePool};

/// How long a predecessor's sockets and program may take to go away: the kernel frees them in the background,
/// all of them at the same time.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// An Ethernet header and two VLAN tags: what a frame may have beyond the MTU.
const L2: u32 = 14 + 2 * 4;

/// Where the XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's stack, for any driver.
    Generic,
}

impl Mode {
    fn flag(self) -> u32 {
        match self {
            Mode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Mode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        }
    }

    fn attach_step(self) -> &'static str {
        match self {
            Mode::Native => "attach the XDP program in native mode",
            Mode::Generic => "attach the XDP program in generic mode",
        }
    }
}

/// What to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The interface, in the network namespace of the calling thread.
    pub interface: &'a str,
    /// How many queues: all that the interface uses.
    pub queues: u16,
    /// Only this mode. `None`: native, else generic.
    pub mode: Option<Mode>,
    /// How long to wait for what a predecessor had: [`PATIENCE`], or less if that was waited already.
    pub patience: Duration,
}

/// An open interface.
pub struct Opened {
    /// One per queue, in order.
    pub ports: Vec<XdpPort>,
    /// The mode it got.
    pub mode: Mode,
    /// The driver reads and writes the frames in place.
    pub zero_copy: bool,
    /// Why native mode is not used although it was allowed.
    pub native_refused: Option<OpenError>,
}

/// One queue of an interface.
pub struct XdpPort {
    open: Option<(Queue, Arc<Hold>)>,
}

/// What the interface has as long as any queue is open.
struct Hold {
    program: Program,
    _promiscuous: OwnedFd,
}

/// Opens an interface. Waits for what a predecessor had to be free.
///
/// # Errors
/// See [`OpenError`]. Nothing is left behind.
pub fn open(pool: &Arc<FramePool>, request: Request<'_>) -> Result<Opened, OpenError> {
    let no_umem = || OpenError::NoUmem {
        interface: request.interface.to_owned(),
        why: pool.umem_refused().unwrap_or("the pool was made without").to_owned(),
    };
    let umem = pool.umem().ok_or_else(no_umem)?;
    match request.mode {
        Some(mode) => open_in(umem, request, mode),
        None => match open_in(umem, request, Mode::Native) {
            Err(refused @ OpenError::Refused { .. }) if !refused.passes() => {
                let generic = open_in(umem, request, Mode::Generic)?;
                Ok(Opened { native_refused: Some(refused), ..generic })
            }
            other => other,
        },
    }
}

fn open_in(umem: &Arc<SharedUmem>, request: Request<'_>, mode: Mode) -> Result<Opened, OpenError> {
    let device = Netdev::open(request.interface)?;
    if !device.flags()?.contains(InterfaceFlags::IFF_UP) {
        return Err(OpenError::Down { interface: request.interface.to_owned() });
    }
    check_queues(&device, request.queues)?;
    check_pool(umem, request)?;
    let mtu = device.mtu()?;
    let target = Target { name: device.name(), index: device.index()?.cast_signed() };
    let program = patiently(request.patience, || Program::attach(target, mode, request.queues))?;
    if !program.restores_tags && device.strips_tags()? {
        warn_of_lost_tags(target.name);
    }
    let hold = Arc::new(Hold { program, _promiscuous: device.promiscuous()? });
    let unfinished = Unfinished::of(&device.driver()?, mtu);
    let mut ports = Vec::new();
    let mut zero_copy = false;
    for number in 0..request.queues.into() {
        let rings = patiently(request.patience, || bind(umem, (target.name, number), flags(mode, mtu)))?;
        check_mtu(target.name, mtu, &rings)?;
        let refused = |e| OpenError::refused(target.name, "add a socket to the map", e);
        hold.program.serve(number, rings.fd()).map_err(refused)?;
        zero_copy = rings.features.zero_copy;
        let queue = Queue::new(umem.clone(), rings, unfinished);
        ports.push(XdpPort { open: Some((queue, hold.clone())) });
    }
    Ok(Opened { ports, mode, zero_copy, native_refused: None })
}

fn warn_of_lost_tags(interface: &str) {
    tracing::warn!(
        "{interface}: VLAN tags that the card, or the kernel at the other end of a veth, keeps out of the frame are \
         lost; run: ethtool -K {interface} rxvlan off (veth: ethtool -K PEER txvlan off), or use type = \"afpacket\""
    );
}

fn check_queues(device: &Netdev, asked: u16) -> Result<(), OpenError> {
    let (rx, tx) = (device.queues()?, device.tx_queues()?);
    if rx == u32::from(asked) && tx >= rx {
        return Ok(());
    }
    Err(OpenError::Queues { interface: device.name().to_owned(), asked, rx, tx })
}

fn check_pool(umem: &SharedUmem, request: Request<'_>) -> Result<(), OpenError> {
    let (most, now) = (umem.most_sockets(), umem.sockets());
    let enough = now + usize::from(request.queues) <= most;
    enough.then_some(()).ok_or_else(|| OpenError::Pool { interface: request.interface.to_owned(), most })
}

fn check_mtu(interface: &str, mtu: u32, rings: &Rings) -> Result<(), OpenError> {
    let most = CHUNK_ROOM as u32 - L2;
    if mtu <= most || rings.features.multi_buffer {
        return Ok(());
    }
    let why = "the process's AF_XDP sockets have no multi-buffer support (Linux 6.6, and in zero-copy mode the driver)";
    Err(OpenError::Mtu { interface: interface.to_owned(), mtu, most, why })
}

/// The ways to bind the first socket, best first: without copying, with frames of several chunks. Those that
/// come later are bound the same way, whatever is asked.
fn flags(mode: Mode, mtu: u32) -> impl Iterator<Item = BindFlags> {
    let several = BindFlags::XDP_USE_SG;
    let (zero, copy) = (BindFlags::XDP_ZEROCOPY, BindFlags::XDP_COPY);
    let fits = mtu <= CHUNK_ROOM as u32 - L2;
    [zero | several, zero, copy | several, copy]
        .into_iter()
        .filter(move |f| mode == Mode::Native || f.contains(copy))
        .filter(move |f| fits || f.contains(several) || f.contains(copy))
        .map(|f| f | BindFlags::XDP_USE_NEED_WAKEUP)
}

fn bind(
    umem: &Arc<SharedUmem>,
    at: (&str, u32),
    ways: impl Iterator<Item = BindFlags>,
) -> Result<Rings, OpenError> {
    let mut last = Errno::EINVAL.into();
    for way in ways {
        match umem.bind(at, way) {
            Ok(rings) => return Ok(rings),
            Err(e)
                if [Errno::EINVAL, Errno::EOPNOTSUPP].map(|e| Some(e as i32)).contains(&e.raw_os_error()) =>
            {
                last = e;
            }
            Err(e) => return Err(OpenError::refused(at.0, "bind an AF_XDP socket", e)),
        }
    }
    Err(OpenError::refused(at.0, "bind an AF_XDP socket", last))
}

/// Tries again what may be different in a moment.
fn patiently<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(5);
    loop {
        match attempt() {
            Err(e) if e.passes() && Instant::now() < end => thread::sleep(pause),
            other => return other,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

impl XdpPort {
    fn queue(&mut self) -> Result<&mut Queue, PortError> {
        match &mut self.open {
            Some((queue, _)) => Ok(queue),
            None => Err(PortError::Gone(Errno::EBADF.into())),
        }
    }
}

impl Port for XdpPort {
    fn rx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.queue()?.rx(frames, batch)
    }

    fn tx(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.queue()?.tx(frames, batch)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.open.as_ref().map_or(Readiness::Unknown, |(queue, _)| Readiness::Ring(queue.rings().fd()))
    }

    /// The socket's descriptor is readable while there is a frame, so there is nothing to say. But to a fill ring that is
    /// empty none comes: the pool was, and only who asks fills it. Nothing waits for another turn: there may be none. And what
    /// a busy interface did not take is tried again only by who asks.
    fn arm(&mut self) -> bool {
        let Some((queue, _)) = &mut self.open else { return false };
        queue.release();
        queue.is_starved() || queue.is_behind()
    }

    fn counters(&mut self) -> Counters {
        self.queue().map(|queue| queue.counters()).unwrap_or_default()
    }

    /// On a thread of its own, which returns the chunks to the pool: the kernel waits for its own readers before
    /// it lets go of a socket and a program, tens of milliseconds that a poller does not have.
    fn close(&mut self, frames: &mut FrameCache) {
        let Some((queue, hold)) = self.open.take() else { return };
        let mut frames = FrameCache::new(frames.pool().clone());
        let close = move || {
            queue.close(&mut frames);
            drop(hold);
        };
        if let Err(error) = thread::Builder::new().name("xdp-close".into()).spawn(close) {
            tracing::error!("frames are lost, an AF_XDP socket was closed without a thread: {error}");
        }
    }
}
