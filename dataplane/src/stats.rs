//! Counters: one writer each, read by anyone, no read-modify-write on the data path.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use flowtable::action::DropReason;
use flowtable::id::PortId;

use crate::perf::Perf;

/// A counter that one thread adds to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning thread may.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Overwrites; only the owning thread may.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many drop reasons there are.
pub const REASONS: usize = DropReason::ALL.len();

/// What one poller counted on one port.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames received.
    pub rx_frames: Counter,
    /// Bytes received, without FCS.
    pub rx_bytes: Counter,
    /// Frames sent (a GSO frame is one).
    pub tx_frames: Counter,
    /// Bytes sent, without FCS.
    pub tx_bytes: Counter,
    /// Frames that came out of this tunnel.
    pub decapped_frames: Counter,
    /// Bytes that came out of this tunnel, without outer headers.
    pub decapped_bytes: Counter,
    /// Frames that went into this tunnel.
    pub encapped_frames: Counter,
    /// Bytes that went into this tunnel, without outer headers.
    pub encapped_bytes: Counter,
    /// Frames that arrived while the device had no room, by the device's count.
    pub rx_missed: Counter,
    /// Frames that arrived broken, by the device's count.
    pub rx_errors: Counter,
    /// Frames dropped on their way in by, or out by, this port.
    pub drops: [Counter; REASONS],
}

/// The sum over pollers of a port's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received, without FCS.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent, without FCS.
    pub tx_bytes: u64,
    /// Frames that came out of this tunnel. They were received by another port, or in outer headers by this one.
    pub decapped_frames: u64,
    /// Bytes that came out of this tunnel, without outer headers.
    pub decapped_bytes: u64,
    /// Frames that went into this tunnel. They are sent by another port, or in outer headers by this one.
    pub encapped_frames: u64,
    /// Bytes that went into this tunnel, without outer headers.
    pub encapped_bytes: u64,
    /// Frames the device lost for want of room.
    pub rx_missed: u64,
    /// Frames the device found broken.
    pub rx_errors: u64,
    /// Frames dropped, by the number of their [`DropReason`].
    pub drops: [u64; REASONS],
}

impl PortStats {
    fn add(&mut self, c: &PortCounters) {
        self.rx_frames += c.rx_frames.get();
        self.rx_bytes += c.rx_bytes.get();
        self.tx_frames += c.tx_frames.get();
        self.tx_bytes += c.tx_bytes.get();
        self.decapped_frames += c.decapped_frames.get();
        self.decapped_bytes += c.decapped_bytes.get();
        self.encapped_frames += c.encapped_frames.get();
        self.encapped_bytes += c.encapped_bytes.get();
        self.rx_missed += c.rx_missed.get();
        self.rx_errors += c.rx_errors.get();
        self.drops.iter_mut().zip(&c.drops).for_each(|(sum, d)| *sum += d.get());
    }

    /// The same, as people see a tunnel port: received and sent is what came out of the tunnel and went into it.
    pub fn of_tunnel(self) -> PortStats {
        PortStats {
            rx_frames: self.decapped_frames,
            rx_bytes: self.decapped_bytes,
            tx_frames: self.encapped_frames,
            tx_bytes: self.encapped_bytes,
            ..self
        }
    }

    /// Frames dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }
}

/// What a poller counted about itself.
#[derive(Debug, Default)]
pub struct PollerCounters {
    /// Turns of the loop.
    pub turns: Counter,
    /// Batches that held a frame.
    pub batches: Counter,
    /// Frames processed.
    pub frames: Counter,
    /// Frames out of tunnels, decided once more.
    pub inner: Counter,
    /// Copies made, segments a GSO frame was cut into beyond the first, messages to senders of too long frames.
    pub created: Counter,
    /// Frames decided by the exact-match cache, or like the one before them, from which no mask tells them.
    pub exact_hits: Counter,
    /// Frames decided by the megaflow table.
    pub megaflow_hits: Counter,
    /// Frames that were translated.
    pub upcalls: Counter,
    /// Flows not installed: the table was full, had too many masks, or was being written.
    pub not_installed: Counter,
    /// Flows translated again after a change.
    pub revalidated: Counter,
    /// TSC cycles of turns that moved a frame.
    pub busy_cycles: Counter,
    /// TSC cycles of turns that did not, sleep not counted.
    pub idle_cycles: Counter,
    /// Times the poller went to sleep.
    pub sleeps: Counter,
    /// Frames in hand-off rings to this poller, last time it looked.
    pub held: Counter,
    /// Where the cycles go.
    pub perf: Perf,
}

/// All counters of the switch: where pollers register theirs and control reads them.
#[derive(Debug)]
pub struct Registry {
    ports: Mutex<Ports>,
    pollers: Vec<Arc<CachePadded<PollerCounters>>>,
}

/// The counters of ports, one set per poller.
#[derive(Debug, Default)]
struct Ports {
    by_id: Vec<Vec<Arc<PortCounters>>>,
    /// Drops that no port answers for.
    nowhere: Vec<Arc<PortCounters>>,
    /// The sum over ports that are gone.
    departed: PortStats,
}

impl Registry {
    /// For so many pollers.
    pub fn new(pollers: usize) -> Self {
        Registry { ports: Mutex::default(), pollers: (0..pollers).map(|_| Arc::default()).collect() }
    }

    /// The counters of a poller.
    pub fn poller(&self, index: usize) -> &Arc<CachePadded<PollerCounters>> {
        &self.pollers[index]
    }

    /// Makes one poller's counters for a port.
    pub fn port_counters(&self, port: PortId) -> Arc<PortCounters> {
        let counters = Arc::new(PortCounters::default());
        let mut ports = self.lock();
        if ports.by_id.len() <= port.index() {
            ports.by_id.resize_with(port.index() + 1, Vec::new);
        }
        ports.by_id[port.index()].push(Arc::clone(&counters));
        counters
    }

    /// Makes one poller's counters for drops that no port answers for.
    pub fn nowhere(&self) -> Arc<PortCounters> {
        let counters = Arc::new(PortCounters::default());
        self.lock().nowhere.push(Arc::clone(&counters));
        counters
    }

    /// Ends a port's counting: what it counted stays in the total.
    pub fn forget(&self, port: PortId) {
        let mut ports = self.lock();
        let gone = ports.by_id.get_mut(port.index()).map(std::mem::take).unwrap_or_default();
        gone.iter().for_each(|c| ports.departed.add(c));
    }

    /// The sum of what all pollers counted on a port.
    pub fn port(&self, port: PortId) -> PortStats {
        let mut sum = PortStats::default();
        self.lock().by_id.get(port.index()).into_iter().flatten().for_each(|c| sum.add(c));
        sum
    }

    /// The sum over all ports that ever were.
    pub fn total(&self) -> PortStats {
        let ports = self.lock();
        let mut sum = ports.departed;
        ports.by_id.iter().flatten().chain(&ports.nowhere).for_each(|c| sum.add(c));
        sum
    }

    /// The conservation law's sums, with `held` frames between pollers. Exact while the pollers stand still.
    pub fn ledger(&self, held: u64) -> Ledger {
        let total = self.total();
        Ledger {
            rx: total.rx_frames,
            created: self.pollers.iter().map(|p| p.created.get()).sum(),
            tx: total.tx_frames,
            dropped: total.drops.iter().sum(),
            held,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every frame is somewhere: the conservation law of the switch, taken while the pollers stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Frames received.
    pub rx: u64,
    /// Frames made inside: copies for floods, segments of GSO frames, messages to senders of too long ones.
    pub created: u64,
    /// Frames sent.
    pub tx: u64,
    /// Frames dropped, for any reason.
    pub dropped: u64,
    /// Frames in hand-off rings.
    pub held: u64,
}

impl Ledger {
    /// `rx + created == tx + dropped + held`.
    pub fn balances(&self) -> bool {
        self.rx + self.created == self.tx + self.dropped + self.held
    }
}

/// The time stamp counter: what cycles are counted in. Constant rate on every x86-64 of the last decade.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC reads a counter; every x86-64 processor has it.
    #[allow(unsafe_code, unused_unsafe)]
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}
