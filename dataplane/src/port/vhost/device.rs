//! What a frontend has negotiated, and the rings that run by it.
//!
//! A change of whatever a ring depends on goes the same way each time ([`Device::change`]): the doors of the pairs close, their
//! rings stop where they are, the change is made, the rings that can run start again where they were, the doors open. A
//! change that is refused changes nothing, unless it is a ring that refuses: that one stands still until it is told otherwise.
//! So a batch sees a ring before or after a change, and the frontend gets its answer when nothing of before is in use any
//! more. It costs some microseconds per pair.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use thiserror::Error;
use vhost::vhost_user::Backend;

use super::call;
use super::inflight::{self, Format, InflightError, Layout};
use super::lanes::{self, Lanes, Running};
use super::log::DirtyLog;
use super::memory::{GuestMemory, MemoryError, Region, RegionSpec};
use super::offer;
use super::places::Places;
use super::queue::{self, Pair};
use super::ring::{Fault, Ring, Setup, SetupError, Witness};
use super::vring::Vring;
use crate::virtio::features::Features;

/// A frontend asked for what cannot be.
#[derive(Debug, Error)]
pub(super) enum DeviceError {
    /// Of a ring that the device does not have.
    #[error("ring {index} of a device with {rings}; raise the port's `queues` if the VM has more")]
    NoRing {
        /// Which.
        index: u32,
        /// How many there are.
        rings: usize,
    },
    /// Features that were not offered.
    #[error("features that were not offered: {0}")]
    Features(Features),
    /// Protocol features that were not offered.
    #[error("protocol features that were not offered: {0:#x}")]
    Protocol(u64),
    /// A size that no ring has.
    #[error("ring of {0} entries")]
    Size(u32),
    /// A descriptor to signal by that is something else.
    #[error("a descriptor for signals that is no eventfd")]
    NotEventFd,
    /// Memory that cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An inflight region that cannot be used.
    #[error("inflight region: {0}")]
    Inflight(#[from] InflightError),
    /// A ring cannot start.
    #[error("ring {index}: {source}")]
    Ring {
        /// Which.
        index: usize,
        /// Why.
        source: SetupError,
    },
    /// Its kicks cannot be waited for.
    #[error("cannot wait for kicks: {0}")]
    Kick(Errno),
    /// An MTU beyond ours.
    #[error("MTU of {asked}, this port has {ours}; set `mtu` of the port, or `host_mtu` of the VM's device")]
    Mtu {
        /// What the guest would have.
        asked: u64,
        /// The port's.
        ours: u16,
    },
    /// An address to announce that no station has.
    #[error("announcement of a group address")]
    Announcement,
    /// A message for other kinds of devices.
    #[error("not of a network device")]
    Foreign,
}

/// The smallest MTU of IPv4 (RFC 791), and of a virtio device (virtio 1.2 section 5.1.4.1).
const MTU_MIN: u64 = 68;

/// What was negotiated, all of which ends with the connection.
#[derive(Default)]
pub(super) struct State {
    pub(super) acked: Features,
    pub(super) protocol: u64,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    inflight: Option<Arc<inflight::Region>>,
    pub(super) vrings: Vec<Vring>,
}

impl State {
    fn new(pairs: u16) -> State {
        State { vrings: (0..2 * pairs).map(|_| Vring::default()).collect(), ..State::default() }
    }

    /// What ring `index` starts with; `None`: it is not to run.
    fn setup(&self, index: usize) -> Option<Setup> {
        let vring = &self.vrings[index];
        // A frontend that knows of protocol features enables each ring; for others all are.
        let enabled = vring.enabled || !self.acked.has(Features::PROTOCOL_FEATURES);
        let runs = enabled && vring.is_started();
        let log = self.log.clone().filter(|_| self.acked.has(Features::LOG_ALL));
        runs.then_some(vring.parts).flatten().map(|parts| Setup {
            memory: Arc::clone(&self.memory),
            parts,
            size: vring.size,
            base: vring.base(self.acked),
            witness: vring.witness,
            features: self.acked,
            call: vring.call.clone(),
            log,
            inflight: None,
            keeper: None,
        })
    }

    /// Sees to it that a ring that is to run does.
    fn start(&self, index: usize, places: &Places) -> Result<Option<Ring>, DeviceError> {
        let Some(mut setup) = self.setup(index) else { return Ok(None) };
        let place = |region: &Arc<inflight::Region>| region.queue(index as u16, setup.size);
        setup.inflight = self.inflight.as_ref().map(place).transpose()?;
        setup.keeper = Some(places.keeper(index));
        let call = setup.call.clone();
        let mut ring = Ring::start(setup).map_err(|source| DeviceError::Ring { index, source })?;
        ring.disarm();
        if let Some(call) = call {
            // Whoever gave chains back before us may have died before it called.
            call::signal(&call);
        }
        Ok(Some(ring))
    }

    fn start_pair(&self, pair: usize, room: &mut Pair, places: &Places) -> Result<(), DeviceError> {
        room.receive = self.start(2 * pair, places)?;
        room.transmit = self.start(2 * pair + 1, places)?;
        room.kicks = self.vrings[2 * pair + 1].kicks();
        Ok(())
    }

    fn stop_pair(&mut self, pair: usize, room: &mut Pair) {
        for (index, ring) in [(2 * pair, room.receive.take()), (2 * pair + 1, room.transmit.take())] {
            if let Some(ring) = ring {
                self.vrings[index].begin_at(ring.base(), Witness::Ring);
            }
        }
    }
}

/// One device, for one connection.
pub(super) struct Device {
    pub(super) state: State,
    pub(super) pairs: u16,
    pub(super) mtu: u16,
    /// The channel on which we could ask the frontend.
    pub(super) channel: Option<Backend>,
    lanes: Arc<Mutex<Lanes>>,
    /// Where packed rings are, for who serves them after us.
    pub(super) places: Arc<Places>,
}

impl Device {
    pub(super) fn new(pairs: u16, mtu: u16, lanes: Arc<Mutex<Lanes>>, places: Arc<Places>) -> Device {
        Device { state: State::new(pairs), pairs, mtu, channel: None, lanes, places }
    }

    /// The pairs that have this ring.
    pub(super) fn pair_of(&self, index: u32) -> Result<Range<usize>, DeviceError> {
        let rings = self.state.vrings.len();
        let pair = index as usize / 2;
        if index as usize >= rings { Err(DeviceError::NoRing { index, rings }) } else { Ok(pair..pair + 1) }
    }

    /// All pairs of which the frontend has said anything, and the first: a door costs something to close.
    pub(super) fn all(&self) -> Range<usize> {
        let known = self.state.vrings.iter().rposition(Vring::is_known).unwrap_or(0);
        0..known / 2 + 1
    }

    /// Changes what rings of these pairs depend on.
    pub(super) fn change<T>(
        &mut self,
        pairs: Range<usize>,
        change: impl FnOnce(&mut State) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let Device { state, lanes, places, .. } = self;
        let mut lanes = lanes::lock(lanes);
        let mut running = lanes.running();
        let mut rooms = lanes.close(pairs.clone());
        for (pair, room) in pairs.clone().zip(&mut rooms) {
            state.stop_pair(pair, room);
        }
        let changed = change(state);
        let mut started = Ok(());
        for (pair, room) in pairs.clone().zip(&mut rooms) {
            started = started.and(state.start_pair(pair, room, places));
            let bit = 1 << pair;
            running.pairs = if room.runs() { running.pairs | bit } else { running.pairs & !bit };
        }
        drop(rooms);
        running.offloads = queue::offloads(state.acked);
        let idle = Running::default();
        lanes.run(if running.pairs == 0 { idle } else { running });
        let runs = |pair: usize| running.pairs >> pair & 1 == 1;
        for pair in pairs {
            let kick = state.vrings[2 * pair + 1].kick().filter(|_| runs(pair));
            started = started.and(lanes.settle(pair, kick).map_err(DeviceError::Kick));
        }
        started.and(changed)
    }

    /// Changes one ring.
    pub(super) fn change_ring<T>(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Vring) -> T,
    ) -> Result<T, DeviceError> {
        self.change(self.pair_of(index)?, |state| Ok(change(&mut state.vrings[index as usize])))
    }

    pub(super) fn acknowledge(&mut self, asked: Features) -> Result<(), DeviceError> {
        let foreign = asked.without(offer::FEATURES);
        if foreign != Features::NONE {
            return Err(DeviceError::Features(foreign));
        }
        // QEMU says so once for each pair, while others run already.
        if asked == self.state.acked {
            return Ok(());
        }
        self.change(self.all(), |state| {
            state.acked = asked;
            Ok(())
        })
    }

    pub(super) fn set_memory(&mut self, regions: Vec<Arc<Region>>) -> Result<(), DeviceError> {
        self.use_memory(GuestMemory::new(regions)?)
    }

    fn use_memory(&mut self, memory: GuestMemory) -> Result<(), DeviceError> {
        let changed = self.change(self.all(), |state| {
            state.memory = Arc::new(memory);
            Ok(())
        });
        match changed {
            // A region that changes goes and comes again (QEMU's `vhost_user_add_remove_regions`): its rings wait for it.
            Err(DeviceError::Ring { source: SetupError::Address(_), .. }) => Ok(()),
            changed => changed,
        }
    }

    /// QEMU up to 7.2 at least says so once for each queue pair: what is there, is there.
    pub(super) fn add_region(&mut self, region: Arc<Region>) -> Result<(), DeviceError> {
        let memory = &self.state.memory;
        if memory.regions().iter().any(|known| known.spec() == region.spec()) {
            return Ok(());
        }
        self.use_memory(memory.with(region)?)
    }

    /// Its place in the file does not count (vhost-user, "VHOST_USER_REM_MEM_REG"). This, too, QEMU repeats: what is not
    /// there, is gone.
    pub(super) fn remove_region(&mut self, gone: RegionSpec) -> Result<(), DeviceError> {
        let memory = &self.state.memory;
        let is_it = |region: &Arc<Region>| {
            let spec = region.spec();
            (spec.guest, spec.len, spec.user) == (gone.guest, gone.len, gone.user)
        };
        if !memory.regions().iter().any(is_it) {
            return Ok(());
        }
        self.use_memory(memory.without(gone.guest, gone.len)?)
    }

    pub(super) fn set_log(&mut self, log: Arc<DirtyLog>) -> Result<(), DeviceError> {
        self.change(self.all(), |state| {
            state.log = Some(log);
            Ok(())
        })
    }

    /// The region that the frontend keeps for our successor.
    pub(super) fn set_inflight(&mut self, region: inflight::Region) -> Result<(), DeviceError> {
        self.change(self.all(), |state| {
            state.inflight = Some(Arc::new(region));
            Ok(())
        })
    }

    /// What an inflight region is for.
    pub(super) fn inflight_layout(&self, queues: u16, size: u16) -> Layout {
        let is_packed = self.state.acked.has(Features::RING_PACKED);
        Layout { format: if is_packed { Format::Packed } else { Format::Split }, queues, size }
    }

    /// Stops all rings, and disables them: what `VHOST_USER_RESET_OWNER` is good for these days.
    pub(super) fn stop(&mut self) -> Result<(), DeviceError> {
        self.change(self.all(), |state| {
            for vring in &mut state.vrings {
                vring.stop();
                vring.enabled = false;
            }
            Ok(())
        })
    }

    /// Forgets where a ring was: its frontend knows, or its driver is gone.
    pub(super) fn forget(&self, index: usize) {
        self.places.keeper(index).forget();
    }

    /// Forgets the guest's driver. The memory is not its affair: QEMU sends only what changes of it.
    pub(super) fn reset(&mut self) -> Result<(), DeviceError> {
        let fresh = State::new(self.pairs);
        self.change(self.all(), |state| {
            let memory = Arc::clone(&state.memory);
            *state = State { protocol: state.protocol, memory, ..fresh };
            Ok(())
        })?;
        (0..self.state.vrings.len()).for_each(|index| self.forget(index));
        Ok(())
    }

    /// The connection is over. Faults and announcements of its guest are forgotten with it.
    pub(super) fn close(&mut self) {
        let (fresh, pairs) = (State::new(self.pairs), self.all());
        // Nothing starts, so nothing fails.
        let _ = self.change(pairs.clone(), |state| {
            *state = fresh;
            Ok(())
        });
        for mut room in lanes::lock(&self.lanes).close(pairs) {
            *room = Pair::default();
        }
    }

    /// The first fault that a poller found; the frontend is told by the ring's error eventfd.
    pub(super) fn fault(&self) -> Option<(usize, Fault)> {
        let lanes = lanes::lock(&self.lanes);
        // Of a pair, too, that was forgotten since.
        let faults = lanes.close(0..usize::from(self.pairs)).into_iter().enumerate();
        let (pair, fault) = faults.filter_map(|(pair, room)| Some((pair, room.fault?))).next()?;
        let errors = self.state.vrings[2 * pair..][..2].iter().filter_map(|vring| vring.error.as_ref());
        errors.for_each(|error| call::signal(error));
        Some((pair, fault))
    }

    /// Has a frame enter the switch as if the guest had sent it.
    pub(super) fn announce(&self, frame: &[u8]) -> Result<(), DeviceError> {
        let mut lanes = lanes::lock(&self.lanes);
        for mut room in lanes.close(0..1) {
            room.announcement = Some(frame.into());
        }
        let kick = self.state.vrings[1].kick().filter(|_| lanes.running().pairs & 1 == 1);
        lanes.settle(0, kick).map_err(DeviceError::Kick)
    }

    /// May the guest have this MTU? A smaller one than ours is its own affair; with a greater one it would send frames that the
    /// port's networks do not carry. (DPDK, which knows no networks, takes 68 to 65,535.)
    pub(super) fn check_mtu(&self, asked: u64) -> Result<(), DeviceError> {
        let fits = (MTU_MIN..=self.mtu.into()).contains(&asked);
        if fits { Ok(()) } else { Err(DeviceError::Mtu { asked, ours: self.mtu }) }
    }

    /// Entries of each ring that runs.
    pub(super) fn sizes(&self) -> Vec<u16> {
        let runs = |index: &usize| self.state.setup(*index).is_some();
        (0..self.state.vrings.len()).filter(runs).map(|index| self.state.vrings[index].size).collect()
    }

    /// Bytes of the guest's memory.
    pub(super) fn memory(&self) -> u64 {
        self.state.memory.bytes()
    }
}
