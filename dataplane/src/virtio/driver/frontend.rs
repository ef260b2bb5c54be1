//! The vhost-user session from the frontend's side (QEMU's `docs/interop/vhost-user.rst`): what QEMU says to a backend while
//! a guest boots, migrates, gets memory, reboots, and when the backend comes back.
//!
//! The messages are rust-vmm's (`vhost::vhost_user::Frontend`), in QEMU's order. Written by hand ([`Wire`]) are those that it
//! has not (RARP, MTU, status), that it cuts (the base of a packed ring has 32 bits), the log, to which QEMU and DPDK want an
//! answer without a body, and the number of queues, which it takes for
//! rings where network devices mean pairs.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use encap::field::MacAddr;
use nix::sys::eventfd::EventFd;
use thiserror::Error;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend as Messages, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use super::memory::{MemoryError, Region, SharedMemory};
use super::migration::DirtyPages;
use super::pair::{Pair, PairShape};
use super::queue::{Queue, QueueError};
use super::user::lock;
use super::wire::{self, Acknowledge, Wire, WireError};
use crate::virtio::PAIRS_MAX;
use crate::virtio::features::Features;

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// `VHOST_VRING_F_LOG`.
const VRING_LOG: u32 = 1;
/// Device status (virtio 1.2 section 2.1): ACKNOWLEDGE, DRIVER and FEATURES_OK; and with DRIVER_OK.
const FEATURES_OK: u64 = 0x0b;
const DRIVER_OK: u64 = 0x0f;

/// A session failed.
#[derive(Debug, Error)]
pub enum FrontendError {
    /// There is no backend.
    #[error("cannot reach a vhost-user backend: {0}")]
    Socket(#[from] io::Error),
    /// A message failed.
    #[error(transparent)]
    Message(#[from] vhost::Error),
    /// A message of our own failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A queue cannot be made.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Memory cannot be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The backend cannot go on where another ended.
    #[error("backend lacks features that were in use: {0}")]
    Lacks(Features),
    /// The backend has fewer pairs.
    #[error("backend has {0} queue pairs")]
    Pairs(u64),
}

/// What to ask of a backend.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The most features.
    pub features: Features,
    /// The most protocol features.
    pub protocol: VhostUserProtocolFeatures,
    /// Queue pairs, 1 to [`PAIRS_MAX`].
    pub pairs: u16,
    /// Each of them; the features in it are replaced by those negotiated.
    pub shape: PairShape,
    /// The guest's memory.
    pub memory: SharedMemory,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Features.
    pub features: Features,
    /// Protocol features.
    pub protocol: VhostUserProtocolFeatures,
    /// The most queue pairs of the backend.
    pub pairs: u64,
}

impl Agreed {
    fn has(&self, wanted: VhostUserProtocolFeatures) -> bool {
        self.protocol.contains(wanted)
    }
}

/// A session, its rings and its memory.
pub struct Frontend {
    wish: Wish,
    messages: Messages,
    wire: Wire,
    agreed: Agreed,
    memory: SharedMemory,
    pairs: Vec<Arc<Mutex<Pair>>>,
    inflight: Option<(VhostUserInflight, File)>,
    backend: Option<UnixStream>,
    log: Option<DirtyPages>,
}

impl Frontend {
    /// Connects to a backend that listens, and starts all pairs.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn connect(path: &Path, wish: Wish) -> Result<Frontend, FrontendError> {
        Frontend::over(UnixStream::connect(path)?, wish)
    }

    /// Waits for a backend that connects, and starts all pairs.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn accept(listener: &UnixListener, wish: Wish) -> Result<Frontend, FrontendError> {
        Frontend::over(listener.accept()?.0, wish)
    }

    /// Starts all pairs with the backend at the other end.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn over(stream: UnixStream, wish: Wish) -> Result<Frontend, FrontendError> {
        let mut frontend = Frontend::negotiate(stream, wish)?;
        frontend.start()?;
        Ok(frontend)
    }

    /// Agrees with the backend and makes the rings, as while a guest's firmware runs: nothing is started.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn negotiate(stream: UnixStream, wish: Wish) -> Result<Frontend, FrontendError> {
        let (mut messages, wire) = open(stream)?;
        let agreed = agree(&mut messages, &wire, &wish)?;
        assert!((1..=PAIRS_MAX).contains(&wish.pairs), "{} pairs", wish.pairs);
        if agreed.pairs < u64::from(wish.pairs) {
            return Err(FrontendError::Pairs(agreed.pairs));
        }
        let mut shape = wish.shape.clone();
        shape.ring.features = agreed.features;
        let pair = |_| Ok(Arc::new(Mutex::new(Pair::new(&wish.memory, shape.clone())?)));
        let pairs = (0..wish.pairs).map(pair).collect::<Result<Vec<_>, QueueError>>()?;
        let memory = wish.memory.clone();
        let mut frontend = Frontend {
            wish,
            messages,
            wire,
            agreed,
            memory,
            pairs,
            inflight: None,
            backend: None,
            log: None,
        };
        frontend.own()?;
        Ok(frontend)
    }

    /// Goes on with another backend, which may be the same after a restart, with the rings as they are and all that is
    /// in them: as QEMU does when its backend was killed.
    ///
    /// # Errors
    /// [`FrontendError::Lacks`] if the rings need features that this backend has not.
    pub fn reconnect(&mut self, stream: UnixStream) -> Result<(), FrontendError> {
        let (mut messages, wire) = open(stream)?;
        let features = self.agreed.features;
        let agreed = agree(&mut messages, &wire, &Wish { features, ..self.wish.clone() })?;
        if agreed.features != features {
            return Err(FrontendError::Lacks(features.without(agreed.features)));
        }
        (self.messages, self.wire, self.agreed) = (messages, wire, agreed);
        self.own()?;
        self.start()
    }

    /// What was negotiated.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// The queue pairs. A [`super::user::VirtioUser`] may have one at the same time.
    pub fn pairs(&self) -> &[Arc<Mutex<Pair>>] {
        &self.pairs
    }

    /// The guest's memory.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// The socket, to break its rules.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Where the backend sends requests of its own, if that was agreed.
    pub fn backend(&self) -> Option<&UnixStream> {
        self.backend.as_ref()
    }

    /// What it tracks chains in, if that was agreed.
    pub fn inflight(&self) -> Option<&(VhostUserInflight, File)> {
        self.inflight.as_ref()
    }

    /// Messages that this session has no verb for.
    pub fn messages(&mut self) -> &mut Messages {
        &mut self.messages
    }

    fn own(&mut self) -> Result<(), FrontendError> {
        if self.agreed.has(VhostUserProtocolFeatures::BACKEND_REQ) {
            let (ours, theirs) = UnixStream::pair()?;
            self.messages.set_backend_request_fd(&theirs)?;
            self.backend = Some(ours);
        }
        self.messages.set_owner()?;
        Ok(())
    }

    /// Starts all pairs where their rings are, and enables them: the guest's driver is ready.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn start(&mut self) -> Result<(), FrontendError> {
        self.share()?;
        for pair in 0..self.pairs.len() {
            self.start_pair(pair, None)?;
        }
        (0..self.pairs.len()).try_for_each(|pair| self.enable(pair))?;
        self.set_status(DRIVER_OK)
    }

    /// What the guest's driver wrote into the device's status, if the backend wants to know.
    fn set_status(&self, status: u64) -> Result<(), FrontendError> {
        if self.agreed.has(VhostUserProtocolFeatures::STATUS) {
            self.wire.request(wire::SET_STATUS, &status.to_le_bytes(), self.acknowledge())?;
        }
        Ok(())
    }

    /// Features, memory and the place for chains in flight, which the rings need.
    fn share(&mut self) -> Result<(), FrontendError> {
        self.set_features()?;
        self.set_status(FEATURES_OK)?;
        if self.agreed.has(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            for region in self.memory.regions() {
                self.messages.add_mem_region(&info(region))?;
            }
        } else {
            self.share_table()?;
        }
        if self.agreed.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            self.share_inflight()?;
        }
        Ok(())
    }

    fn share_table(&self) -> Result<(), FrontendError> {
        let infos: Vec<_> = self.memory.regions().iter().map(|region| info(region)).collect();
        self.messages.set_mem_table(&infos)?;
        Ok(())
    }

    /// The first backend makes it; each gets it.
    fn share_inflight(&mut self) -> Result<(), FrontendError> {
        let shared = match self.inflight.take() {
            Some(shared) => shared,
            None => {
                let (num_queues, queue_size) = (2 * self.wish.pairs, self.wish.shape.ring.size);
                let wish = VhostUserInflight { num_queues, queue_size, ..Default::default() };
                self.messages.get_inflight_fd(&wish)?
            }
        };
        let (place, file) = self.inflight.insert(shared);
        self.messages.set_inflight_fd(place, file.as_raw_fd())?;
        Ok(())
    }

    /// Starts the two rings of a pair, at these bases or where they are.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn start_pair(&mut self, pair: usize, bases: Option<[u32; 2]>) -> Result<(), FrontendError> {
        let shared = Arc::clone(&self.pairs[pair]);
        let mut shared = lock(&shared);
        let at = bases.unwrap_or([shared.receive.ring.base(), shared.transmit.ring.base()]);
        self.start_ring(2 * pair, &shared.receive, at[0])?;
        self.start_ring(2 * pair + 1, &shared.transmit, at[1])?;
        shared.refill();
        // The backend does not know what it missed.
        shared.receive.ring_bell();
        shared.transmit.ring_bell();
        Ok(())
    }

    fn start_ring(&self, index: usize, queue: &Queue, base: u32) -> Result<(), FrontendError> {
        self.messages.set_vring_num(index, queue.ring.shape().size)?;
        let state: Vec<u8> = [index as u32, base].iter().flat_map(|word| word.to_le_bytes()).collect();
        self.wire.request(wire::SET_VRING_BASE, &state, self.acknowledge())?;
        self.messages.set_vring_addr(index, &self.config(queue))?;
        self.messages.set_vring_kick(index, &lent(queue.kick())?)?;
        self.messages.set_vring_call(index, &lent(queue.call())?)?;
        Ok(())
    }

    fn config(&self, queue: &Queue) -> VringConfigData {
        let (size, parts) = (queue.ring.shape().size, queue.parts());
        VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: if self.log.is_some() { VRING_LOG } else { 0 },
            desc_table_addr: parts.descriptors,
            used_ring_addr: parts.used,
            avail_ring_addr: parts.available,
            log_addr: self.log.as_ref().and(parts.log),
        }
    }

    /// Lets a pair's frames flow. Without protocol features they flow from the start.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn enable(&mut self, pair: usize) -> Result<(), FrontendError> {
        self.set_enable(pair, true)
    }

    /// Stops a pair's frames, as a guest that uses fewer of its pairs.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn disable(&mut self, pair: usize) -> Result<(), FrontendError> {
        self.set_enable(pair, false)
    }

    fn set_enable(&mut self, pair: usize, enable: bool) -> Result<(), FrontendError> {
        if self.agreed.features.has(Features::PROTOCOL_FEATURES) {
            self.messages.set_vring_enable(2 * pair, enable)?;
            self.messages.set_vring_enable(2 * pair + 1, enable)?;
        }
        Ok(())
    }

    /// Stops both rings of a pair, as when the guest is paused; where they stopped.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn stop_pair(&mut self, pair: usize) -> Result<[u32; 2], FrontendError> {
        Ok([self.messages.get_vring_base(2 * pair)?, self.messages.get_vring_base(2 * pair + 1)?])
    }

    /// The guest reboots: stops all pairs, forgets what is in their rings, and starts anew.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn reboot(&mut self) -> Result<(), FrontendError> {
        for pair in 0..self.pairs.len() {
            self.disable(pair)?;
            self.stop_pair(pair)?;
            lock(&self.pairs[pair]).reset();
        }
        if self.agreed.has(VhostUserProtocolFeatures::RESET_DEVICE) {
            self.messages.reset_device()?;
        }
        self.set_status(0)?;
        // All of it is forgotten but the memory; and of chains in flight there are none.
        self.set_features()?;
        self.set_status(FEATURES_OK)?;
        self.inflight = None;
        if self.agreed.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            self.share_inflight()?;
        }
        for pair in 0..self.pairs.len() {
            self.start_pair(pair, None)?;
            self.enable(pair)?;
        }
        self.set_status(DRIVER_OK)
    }

    /// Plugs memory in while frames flow.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn add_region(&mut self, region: Arc<Region>) -> Result<(), FrontendError> {
        self.memory = self.memory.with(Arc::clone(&region));
        if !self.agreed.has(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            return self.share_table();
        }
        self.messages.add_mem_region(&info(&region))?;
        Ok(())
    }

    /// Takes memory away again, which no chain lies in.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn remove_region(&mut self, place: usize) -> Result<(), FrontendError> {
        let region = Arc::clone(&self.memory.regions()[place]);
        self.memory = self.memory.without(place);
        if !self.agreed.has(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            return self.share_table();
        }
        self.messages.remove_mem_region(&info(&region))?;
        Ok(())
    }

    /// Begins a migration: the backend logs what it writes from now on.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn log(&mut self) -> Result<&DirtyPages, FrontendError> {
        let pages = DirtyPages::of(&self.memory)?;
        let spec = pages.region().spec();
        let place: Vec<u8> = [spec.len, spec.offset].iter().flat_map(|word| word.to_le_bytes()).collect();
        self.wire.hand(wire::SET_LOG_BASE, &place, pages.region().file().as_fd())?;
        self.log = Some(pages);
        self.set_features()?;
        self.set_addresses()?;
        Ok(self.log.as_ref().expect("it was just set"))
    }

    /// The log of the migration that is going on.
    pub fn dirty(&self) -> Option<&DirtyPages> {
        self.log.as_ref()
    }

    /// The migration is over, or failed: the backend logs no more.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn end_log(&mut self) -> Result<(), FrontendError> {
        self.log = None;
        self.set_features()?;
        self.set_addresses()
    }

    fn set_features(&self) -> Result<(), FrontendError> {
        let log = if self.log.is_some() { Features::LOG_ALL } else { Features::NONE };
        Ok(self.messages.set_features((self.agreed.features | log).0)?)
    }

    fn set_addresses(&self) -> Result<(), FrontendError> {
        for (pair, shared) in self.pairs.iter().enumerate() {
            let shared = lock(shared);
            self.messages.set_vring_addr(2 * pair, &self.config(&shared.receive))?;
            self.messages.set_vring_addr(2 * pair + 1, &self.config(&shared.transmit))?;
        }
        Ok(())
    }

    /// After a migration: asks the backend to announce the guest by RARP.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn send_rarp(&self, mac: MacAddr) -> Result<(), FrontendError> {
        let mut body = [0; 8];
        body[..6].copy_from_slice(&mac.0);
        Ok(self.wire.request(wire::SEND_RARP, &body, self.acknowledge())?)
    }

    /// Tells the backend the guest's MTU, in bytes.
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn set_mtu(&self, mtu: u16) -> Result<(), FrontendError> {
        Ok(self.wire.request(wire::NET_SET_MTU, &u64::from(mtu).to_le_bytes(), self.acknowledge())?)
    }

    /// `len` bytes of the device's configuration space (`struct virtio_net_config`).
    ///
    /// # Errors
    /// [`FrontendError`].
    pub fn net_config(&mut self, len: u32) -> Result<Vec<u8>, FrontendError> {
        let room = vec![0; len as usize];
        Ok(self.messages.get_config(0, len, VhostUserConfigFlags::WRITABLE, &room)?.1)
    }

    fn acknowledge(&self) -> Acknowledge {
        match self.agreed.has(VhostUserProtocolFeatures::REPLY_ACK) {
            true => Acknowledge::Wanted,
            false => Acknowledge::None,
        }
    }
}

fn open(stream: UnixStream) -> Result<(Messages, Wire), FrontendError> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let wire = Wire::new(stream.try_clone()?);
    Ok((Messages::from_stream(stream, 2 * u64::from(PAIRS_MAX)), wire))
}

fn agree(messages: &mut Messages, wire: &Wire, wish: &Wish) -> Result<Agreed, FrontendError> {
    let features = Features(messages.get_features()?) & wish.features;
    let (mut protocol, mut pairs) = (VhostUserProtocolFeatures::empty(), 1);
    if features.has(Features::PROTOCOL_FEATURES) {
        protocol = messages.get_protocol_features()? & wish.protocol;
        messages.set_protocol_features(protocol)?;
    }
    if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        messages.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    if protocol.contains(VhostUserProtocolFeatures::MQ) {
        pairs = wire.ask(wire::GET_QUEUE_NUM)?;
    }
    Ok(Agreed { features, protocol, pairs })
}

fn info(region: &Region) -> VhostUserMemoryRegionInfo {
    let spec = region.spec();
    VhostUserMemoryRegionInfo {
        guest_phys_addr: spec.guest,
        memory_size: spec.len,
        userspace_addr: spec.user,
        mmap_offset: spec.offset,
        mmap_handle: region.file().as_raw_fd(),
    }
}

/// The bell in the form that rust-vmm wants.
#[allow(unsafe_code)]
fn lent(bell: &EventFd) -> io::Result<vmm_sys_util::eventfd::EventFd> {
    let fd = BorrowedFd::try_clone_to_owned(&bell.as_fd())?.into_raw_fd();
    // SAFETY: the descriptor was just made, and is nobody else's.
    Ok(unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(fd) })
}
