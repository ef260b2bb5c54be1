//! VMs in shared memory: the driver's side of virtio and a vhost-user frontend in front of a port of the rack.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ::vhost::vhost_user::message::VhostUserProtocolFeatures;
use dataplane::port::Port;
use dataplane::port::memory::Delivered;
use dataplane::port::vhost::{Request, Role, Status, VhostUser};
use dataplane::virtio::driver::Form;
use dataplane::virtio::driver::frontend::{Frontend, FrontendError, Wish};
use dataplane::virtio::driver::header::Header;
use dataplane::virtio::driver::memory::SharedMemory;
use dataplane::virtio::driver::pair::{Chains, Pair, PairShape};
use dataplane::virtio::driver::user::lock;
use dataplane::virtio::features::Features;
use encap::offload::Offload;
use tempfile::TempDir;

use crate::rack::Rack;

/// How long anything may take that another thread does.
const PATIENCE: Duration = Duration::from_secs(10);
/// Entries of each ring, unless a test wants others.
pub const SIZE: u16 = 128;
/// What a buffer holds that takes any frame whole: 64 KiB of IP, Ethernet header, two tags, net header.
pub const WHOLE: usize = 66_000;

/// A guest that takes checksums.
pub const CSUM: Features = Features(BARE.0 | Features::GUEST_CSUM.0 | Features::CSUM.0);
/// A guest that takes and leaves everything, into mergeable buffers.
pub const ALL: Features = Features(
    CSUM.0
        | Features::MRG_RXBUF.0
        | Features::EVENT_IDX.0
        | Features::INDIRECT_DESC.0
        | Features::HOST_TSO4.0
        | Features::HOST_TSO6.0
        | Features::HOST_ECN.0
        | Features::HOST_USO.0
        | Features::GUEST_TSO4.0
        | Features::GUEST_TSO6.0
        | Features::GUEST_ECN.0
        | Features::GUEST_USO4.0
        | Features::GUEST_USO6.0,
);
/// A guest that takes and leaves nothing.
pub const BARE: Features = Features(Features::VERSION_1.0 | Features::PROTOCOL_FEATURES.0 | Features::MQ.0);

/// What a VM is to be: many, and one buffer each of 2 KiB to receive into and of 64 KiB to send from, in rings of [`SIZE`].
#[derive(Debug, Clone)]
pub struct Build {
    /// What its driver asks for.
    pub features: Features,
    /// Queue pairs.
    pub pairs: u16,
    /// Entries of each ring.
    pub size: u16,
    /// What its frontend asks for.
    pub protocol: VhostUserProtocolFeatures,
    /// Received frames.
    pub receive: Chains,
    /// Sent frames.
    pub transmit: Chains,
}

impl Build {
    /// One with these features.
    pub fn of(features: Features) -> Build {
        Build {
            features,
            pairs: 1,
            size: SIZE,
            protocol: VhostUserProtocolFeatures::all(),
            receive: Chains::of(2048),
            transmit: Chains { cuts: vec![12, 100, 4096], ..Chains::of(WHOLE) },
        }
    }

    /// The same with packed rings.
    pub fn packed(self) -> Build {
        Build { features: self.features | Features::RING_PACKED, ..self }
    }

    /// The same with receive buffers of so many bytes, header included.
    pub fn receiving(self, room: usize) -> Build {
        Build { receive: Chains::of(room), ..self }
    }

    /// The same with chains in tables.
    pub fn indirect(mut self) -> Build {
        (self.receive.form, self.transmit.form) = (Form::Indirect, Form::Indirect);
        self
    }

    /// The same with a frontend that does not track chains.
    pub fn without_inflight(self) -> Build {
        Build { protocol: self.protocol - VhostUserProtocolFeatures::INFLIGHT_SHMFD, ..self }
    }

    /// The same with so many pairs.
    pub fn pairs(self, pairs: u16) -> Build {
        Build { pairs, ..self }
    }

    fn wish(&self) -> Wish {
        let mut shape = PairShape::plain(self.size, self.features);
        shape.ring.table = 8;
        (shape.receive, shape.transmit) = (self.receive.clone(), self.transmit.clone());
        let buffers = usize::from(self.size) * (self.receive.room + self.transmit.room + 512);
        let memory = SharedMemory::of_len(usize::from(self.pairs) * (buffers + (1 << 18))).unwrap();
        Wish { features: self.features, protocol: self.protocol, pairs: self.pairs, shape, memory }
    }
}

/// A vhost-user port of the rack, and what control does for one.
pub struct Bay {
    name: String,
    port: VhostUser,
    path: PathBuf,
    changes: Receiver<()>,
    /// Where its queues are served, by pair; those behind the last anywhere.
    pub cores: Vec<Option<usize>>,
    _dir: TempDir,
}

impl Bay {
    /// Makes a port of the rack one for VMs with up to so many pairs.
    pub fn new(rack: &mut Rack, name: &str, pairs: u16) -> Bay {
        if rack.has_cable(name) {
            drop(rack.take_cable(name));
        }
        rack.switch.detach(rack.id(name));
        rack.settle();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let (tell, changes) = channel();
        let request = Request { name: "vm".into(), path: path.clone(), role: Role::Server, pairs, mtu: 9000 };
        // Nobody listens once the test is over.
        let port = VhostUser::start(request, Box::new(move || _ = tell.send(()))).unwrap();
        Bay { name: name.to_owned(), port, path, changes, cores: Vec::new(), _dir: dir }
    }

    /// How the port is.
    pub fn status(&self) -> Status {
        self.port.status()
    }

    /// Waits until the port is so.
    #[track_caller]
    pub fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        loop {
            let status = self.port.status();
            if is_so(&status) {
                return status;
            }
            let told = self.changes.recv_timeout(PATIENCE);
            assert!(told.is_ok(), "{}: no {what}: {status:?}", self.name);
        }
    }

    /// Waits until so many pairs run, and attaches them in place of those that were there.
    #[track_caller]
    pub fn attach(&self, rack: &mut Rack, pairs: u16) {
        self.until("queues", |status| status.pairs == pairs);
        let queues: Vec<_> =
            self.port.queues().into_iter().map(|queue| Box::new(queue) as Box<dyn Port>).collect();
        assert_eq!(queues.len(), usize::from(pairs));
        rack.switch.attach(rack.id(&self.name), queues, &self.cores);
        rack.settle();
    }

    /// Waits until the port was reset for a fault, and does as control does then; what was said of it.
    #[track_caller]
    pub fn reset(&self, rack: &mut Rack, resets: u64) -> String {
        let status = self.until("reset", |status| status.resets == resets && !status.connected);
        self.attach(rack, 0);
        status.last_error.expect("a reset says why")
    }

    /// Boots a guest.
    #[track_caller]
    pub fn boot(self, rack: &mut Rack, build: &Build) -> Vm {
        let guest = self.connect(build.wish()).unwrap();
        assert_eq!(guest.agreed().features, build.features);
        self.attach(rack, build.pairs);
        Vm { guest, bay: self }
    }

    /// A guest whose queues nobody attaches yet.
    ///
    /// # Errors
    /// Of the session.
    pub fn connect(&self, wish: Wish) -> Result<Frontend, FrontendError> {
        Frontend::connect(&self.path, wish)
    }

    /// A connection to it.
    pub fn dial(&self) -> std::os::unix::net::UnixStream {
        std::os::unix::net::UnixStream::connect(&self.path).unwrap()
    }
}

/// A VM, and the port it is at.
pub struct Vm {
    /// QEMU, and the guest's driver.
    pub guest: Frontend,
    /// The port.
    pub bay: Bay,
}

impl Vm {
    /// Makes a port of the rack a VM's, and boots it.
    #[track_caller]
    pub fn new(rack: &mut Rack, port: &str, build: &Build) -> Vm {
        Bay::new(rack, port, build.pairs).boot(rack, build)
    }

    /// A queue pair of the guest.
    pub fn pair(&self, pair: usize) -> MutexGuard<'_, Pair> {
        lock(&self.guest.pairs()[pair])
    }

    /// Makes a frame available to the switch. False: the ring is full.
    #[must_use]
    pub fn send_by(&self, pair: usize, frame: &[u8], work: Offload) -> bool {
        let mut pair = self.pair(pair);
        let sent = pair.send(&Header::of(&work, frame), frame);
        pair.flush();
        sent
    }

    /// The same by the first pair, whose ring has room.
    #[track_caller]
    pub fn send(&self, frame: &[u8], work: Offload) {
        assert!(self.send_by(0, frame, work), "the ring is full");
    }

    /// What came by a pair. Its headers must be those of their frames.
    #[track_caller]
    pub fn take_by(&self, pair: usize) -> Vec<Delivered> {
        take(&self.guest.pairs()[pair])
    }

    /// The same of all pairs.
    #[track_caller]
    pub fn take(&self) -> Vec<Delivered> {
        self.guest.pairs().iter().flat_map(take).collect()
    }
}

#[track_caller]
fn take(pair: &Arc<Mutex<Pair>>) -> Vec<Delivered> {
    let mut pair = lock(pair);
    let received = std::iter::from_fn(|| pair.receive());
    let checked = received.map(|frame| {
        let offload = frame.header.left_to_do(&frame.bytes).unwrap();
        assert_eq!(frame.header.offload, Header::of(&offload, &frame.bytes).offload);
        Delivered { bytes: frame.bytes, offload }
    });
    checked.collect()
}
