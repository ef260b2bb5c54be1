//! A guest with one queue pair and its frontend, step by step.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::port::rig::wait;
use crate::port::vhost::socket;
use crate::virtio::NET_HEADER;
use crate::virtio::driver::memory::{Region, SharedMemory};
use crate::virtio::driver::{Buffer, DriverRing, Form, Shape};
use crate::virtio::features::Features;

/// What the guest negotiates unless a test says otherwise.
pub const FEATURES: Features = Features(
    Features::VERSION_1.0 | Features::MRG_RXBUF.0 | Features::EVENT_IDX.0 | Features::PROTOCOL_FEATURES.0,
);
/// Entries of its rings.
pub const SIZE: u16 = 64;
const BUFFER: u32 = 2048;

pub struct Guest {
    pub memory: SharedMemory,
    pub frontend: Frontend,
    /// The frontend's socket, to say by it what a frontend does not say.
    pub line: UnixStream,
    pub features: Features,
    pub rings: [DriverRing; 2],
    pub kicks: [EventFd; 2],
    pub calls: [EventFd; 2],
    pub errors: [EventFd; 2],
    /// Of the receive ring, by token.
    buffers: Vec<u64>,
}

pub fn info(region: &Region) -> VhostUserMemoryRegionInfo {
    let spec = region.spec();
    VhostUserMemoryRegionInfo {
        guest_phys_addr: spec.guest,
        memory_size: spec.len,
        userspace_addr: spec.user,
        mmap_offset: spec.offset,
        mmap_handle: region.file().as_raw_fd(),
    }
}

pub fn dial(path: &std::path::Path) -> UnixStream {
    let line = wait("the backend's socket", || socket::connect(path).ok());
    line.set_nonblocking(false).unwrap();
    line.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    line
}

impl Guest {
    /// Nothing is negotiated yet.
    pub fn new(line: UnixStream, features: Features) -> Guest {
        let memory = SharedMemory::of_len(4 << 20).unwrap();
        let ring = || DriverRing::new(&memory, Shape { size: SIZE, table: 0, features }).unwrap();
        let event = || [EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap()];
        Guest {
            frontend: Frontend::from_stream(line.try_clone().unwrap(), 32),
            rings: [ring(), ring()],
            buffers: (0..SIZE).map(|_| memory.take(BUFFER as usize, 64).unwrap()).collect(),
            memory,
            line,
            features,
            kicks: event(),
            calls: event(),
            errors: event(),
        }
    }

    /// As QEMU does.
    pub fn negotiate(&mut self) {
        self.frontend.set_owner().unwrap();
        let offered = self.frontend.get_features().unwrap();
        assert!(Features(offered).has(self.features), "{}", Features(offered));
        let protocol = self.frontend.get_protocol_features().unwrap();
        self.frontend.set_protocol_features(protocol).unwrap();
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        self.frontend.set_features(self.features.0).unwrap();
        assert!(protocol.contains(Protocol::CONFIGURE_MEM_SLOTS));
    }

    pub fn share(&mut self) {
        let regions: Vec<_> = self.memory.regions().iter().map(|region| info(region)).collect();
        self.frontend.set_mem_table(&regions).unwrap();
    }

    /// Ring 0 receives, ring 1 transmits.
    pub fn start(&mut self, ring: usize, base: u16) {
        self.place(ring, None);
        self.frontend.set_vring_base(ring, base).unwrap();
        self.frontend.set_vring_call(ring, &self.calls[ring]).unwrap();
        self.frontend.set_vring_err(ring, &self.errors[ring]).unwrap();
        self.frontend.set_vring_kick(ring, &self.kicks[ring]).unwrap();
        self.frontend.set_vring_enable(ring, true).unwrap();
    }

    /// Says where a ring is, and where writes to it are logged.
    pub fn place(&mut self, ring: usize, log: Option<u64>) {
        let places = self.rings[ring].places();
        let user = |guest| self.memory.user_of(guest).unwrap();
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: log.is_some().into(),
            desc_table_addr: user(places.descriptors),
            avail_ring_addr: user(places.driver),
            used_ring_addr: user(places.device),
            log_addr: log,
        };
        self.frontend.set_vring_num(ring, SIZE).unwrap();
        self.frontend.set_vring_addr(ring, &config).unwrap();
    }

    /// One that runs.
    pub fn up(line: UnixStream, features: Features) -> Guest {
        let mut guest = Guest::new(line, features);
        guest.negotiate();
        guest.run();
        guest
    }

    /// Starts its rings.
    pub fn run(&mut self) {
        self.share();
        self.fill();
        let begin = if self.features.has(Features::RING_PACKED) { 0x8000 } else { 0 };
        (0..2).for_each(|ring| self.start(ring, begin));
    }

    /// Goes on with another backend.
    pub fn dial(&mut self, line: UnixStream) {
        self.frontend = Frontend::from_stream(line.try_clone().unwrap(), 32);
        self.line = line;
    }

    /// Makes all receive buffers available.
    pub fn fill(&mut self) {
        for &buffer in &self.buffers {
            self.rings[0].add(&[Buffer::write(buffer, BUFFER)], Form::Direct).unwrap();
        }
        self.rings[0].publish();
    }

    /// Makes a frame available to the device, and kicks.
    pub fn send(&mut self, frame: &[u8]) {
        let at = self.memory.take(NET_HEADER + frame.len(), 64).unwrap();
        self.memory.write(at, &[&[0; NET_HEADER], frame].concat());
        let len = (NET_HEADER + frame.len()) as u32;
        while self.rings[1].used().is_some() {}
        self.rings[1].add(&[Buffer::read(at, len)], Form::Direct).unwrap();
        self.rings[1].publish();
        if self.rings[1].wants_kick() {
            self.kicks[1].write(1).unwrap();
        }
    }

    /// The next frame that the device delivered, whose buffer is not made available again.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let used = self.rings[0].used()?;
        let mut frame = vec![0; used.written as usize];
        self.memory.read(self.buffers[usize::from(used.token.0)], &mut frame);
        Some(frame.split_off(NET_HEADER))
    }

    /// Stops a ring; where it stood.
    pub fn stop(&mut self, ring: usize) -> u16 {
        self.frontend.get_vring_base(ring).unwrap() as u16
    }

    /// Says what the library's frontend does not.
    pub fn say(&mut self, request: u32, payload: u64) {
        let header = [request, 1 | 8, 8].map(u32::to_le_bytes).concat();
        self.line.write_all(&[&header[..], &payload.to_le_bytes()].concat()).unwrap();
    }

    /// Whether the last that was said was done.
    pub fn was_done(&mut self) -> bool {
        let mut answer = [0; 20];
        self.line.read_exact(&mut answer).unwrap();
        assert_eq!(answer[4..12], [5, 0, 0, 0, 8, 0, 0, 0]);
        answer[12..] == [0; 8]
    }

    /// Waits until the backend has hung up.
    pub fn is_left(&mut self) -> Duration {
        let began = Instant::now();
        let read = std::io::copy(&mut self.line, &mut std::io::sink());
        assert!(read.is_ok() || read.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
        began.elapsed()
    }
}
