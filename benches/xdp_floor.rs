//! The least a process can do between two AF_XDP sockets: the limit that a switch is measured against.
//!
//! `xdp_floor IFACE IFACE` opens one socket on queue 0 of each interface, both on one UMEM, the way the switch's ports do
//! (our XDP program in native mode, else generic; need-wakeup; promiscuous), and moves descriptors from the receive ring
//! of one to the transmit ring of the other, up to 64 at a time, with one system call each (32 before Linux 6.17). The kernel
//! copies each frame: so it is asked for its bytes beforehand, all of a batch at the same time (`prefetch`). No frame is
//! looked at, counted or copied here; what a full ring has no room for is lost. It spins until a signal ends it; the kernel then detaches the
//! program and closes the sockets.
//!
//! Build it with `cargo build --release --example xdp_floor`; it needs CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW.

#![allow(unsafe_code)]

use std::error::Error;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use dataplane::port::netdev::Netdev;
use dataplane::port::xdp::{Mode, Program, Target};
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

/// Frames moved at a time: as many as the switch sends with one call.
const BATCH: usize = 64;
/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h`: how many frames one call sends.
const MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Slots of every ring.
const RING: u32 = 1024;
/// Chunks each socket starts with for receiving.
const SHARE: usize = 512;
/// Bytes of a chunk.
const CHUNK: u32 = 2048;

/// One interface.
struct Side {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    comp: CompQueue,
    /// The kernel did not take all of the transmit ring.
    unsent: bool,
    _program: Program,
    _promiscuous: OwnedFd,
}

impl Side {
    fn open(name: &str, umem: &Umem) -> Result<Side, Box<dyn Error>> {
        let device = Netdev::open(name)?;
        let target = Target { name, index: device.index()?.cast_signed() };
        let native = Program::attach(target, Mode::Native, 1);
        let program = native.or_else(|_| Program::attach(target, Mode::Generic, 1))?;
        let interface: Interface = name.parse()?;
        // SAFETY: libxdp is told to load no program, so it has none to free twice.
        let (tx, rx, rings) = unsafe { Socket::new(socket_config()?, umem, &interface, 0) }?;
        let (fill, comp) = rings.ok_or("the queue is taken")?;
        let (budget, len) = (RING, size_of::<u32>() as libc::socklen_t);
        // SAFETY: the kernel reads an integer. One that does not know the option sends 32 frames a call.
        unsafe {
            let value = std::ptr::from_ref(&budget).cast();
            libc::setsockopt(rx.fd().as_raw_fd(), libc::SOL_XDP, MAX_TX_SKB_BUDGET, value, len);
        }
        // SAFETY: the socket is open as long as its ring lives.
        program.serve(0, unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) })?;
        let _promiscuous = device.promiscuous()?;
        Ok(Side { rx, tx, fill, comp, unsent: false, _program: program, _promiscuous })
    }

    /// Makes the kernel send what the transmit ring holds.
    fn kick(&mut self) {
        let fd = self.tx.fd().as_raw_fd();
        // SAFETY: an empty send has no buffer.
        let sent = unsafe { libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
        self.unsent = sent < 0;
    }
}

fn socket_config() -> Result<SocketConfig, Box<dyn Error>> {
    Ok(SocketConfig::builder()
        .rx_queue_size(QueueSize::new(RING)?)
        .tx_queue_size(QueueSize::new(RING)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP)
        .build())
}

#[cfg(target_arch = "x86_64")]
fn prefetch(at: *const u8) {
    // SAFETY: a prefetch of any address is allowed and changes nothing.
    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_: *const u8) {}

/// Moves a batch from one side to the other, and what the other has sent back to the first.
fn carry(umem: &Umem, from: &mut Side, to: &mut Side) {
    let mut descs = [FrameDesc::default(); BATCH];
    // SAFETY: all rings are of one UMEM; a descriptor is in one ring at a time.
    unsafe {
        let received = from.rx.consume(&mut descs);
        for desc in &descs[..received] {
            prefetch(umem.data(desc).contents().as_ptr());
        }
        if received > 0 {
            let taken = to.tx.produce(&descs[..received]);
            if taken < received {
                from.fill.produce(&descs[..received]);
            }
        }
        if received > 0 || to.unsent {
            to.kick();
        }
        let sent = to.comp.consume(&mut descs);
        from.fill.produce(&descs[..sent]);
    }
}

/// Forwards between two interfaces for ever.
fn forward(names: [&str; 2]) -> Result<(), Box<dyn Error>> {
    let count = NonZeroU32::new(2 * SHARE as u32).ok_or("no chunks")?;
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(CHUNK)?)
        .fill_queue_size(QueueSize::new(RING)?)
        .comp_queue_size(QueueSize::new(RING)?)
        .build()?;
    let (umem, descs) = Umem::new(config, count, false)?;
    let mut first = Side::open(names[0], &umem)?;
    let mut second = Side::open(names[1], &umem)?;
    // SAFETY: fresh chunks of the rings' UMEM, half to each.
    unsafe {
        first.fill.produce(&descs[..SHARE]);
        second.fill.produce(&descs[SHARE..]);
    }
    loop {
        carry(&umem, &mut first, &mut second);
        carry(&umem, &mut second, &mut first);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    match &names[..] {
        [first, second] => forward([first, second]),
        _ => Err("usage: xdp_floor IFACE IFACE".into()),
    }
}
