//! A flow: key under mask, what to do, what to remember, how much it was used, and how current it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::action::{Action, Effect};
use crate::id::PortId;
use crate::key::{FlowKey, WORDS};
use crate::mask::Mask;
use crate::time::Instant;

/// What `translate` decided: everything about a flow but its history.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C)]
pub struct Decision {
    /// What happens to a frame; at least one. Flows may share a list.
    pub actions: Arc<[Action]>,
    /// The bits that were looked at.
    pub mask: Mask,
    /// What is remembered because of it.
    pub effects: Box<[Effect]>,
    /// Which learned entries were looked up, as a 64-bit Bloom filter of [`dependency`] bits: a change of
    /// any of them asks for this flow to be translated again.
    pub depends: u64,
    /// The port the frame came in by: that of its key, or the tunnel port which its outer headers name.
    pub in_port: PortId,
    /// May the decision be cached? Not when every frame of the flow must be read (IGMP, MLD).
    pub cacheable: bool,
}

/// The Bloom bit of one learned entry, from any hash of its name.
#[inline]
pub const fn dependency(hash: u64) -> u64 {
    1 << (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// The most words of a key that are compared one by one: all of them at once, in vector registers, cost as much as five
/// (bench `forward`, `vxlan-decap`).
const FEW: u32 = 5;
/// Stands for more than those.
const MANY: u32 = u32::MAX;

/// The generation of a flow that was removed: no published generation has this number.
pub const DEAD: u64 = 0;

/// One poller's counters of a flow: a single writer, many readers, no read-modify-write.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct FlowStats {
    frames: AtomicU64,
    bytes: AtomicU64,
    used: AtomicU64,
    tcp_flags: AtomicU64,
}

impl FlowStats {
    /// Adds `frames` of `bytes` in all, seen at `now`. Only the poller that owns this slot may call it.
    #[inline]
    pub fn add(&self, frames: u64, bytes: u64, tcp_flags: u16, now: Instant) {
        self.frames.store(self.frames.load(Ordering::Relaxed) + frames, Ordering::Relaxed);
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
        self.used.store(now.as_nanos(), Ordering::Relaxed);
        if tcp_flags != 0 {
            let flags = self.tcp_flags.load(Ordering::Relaxed) | u64::from(tcp_flags);
            self.tcp_flags.store(flags, Ordering::Relaxed);
        }
    }
}

/// The sum over all pollers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowTotals {
    /// Frames.
    pub frames: u64,
    /// Bytes, without preamble and FCS.
    pub bytes: u64,
    /// The last use; `None` if never used.
    pub used: Option<Instant>,
    /// All TCP flags seen, OR-ed.
    pub tcp_flags: u16,
}

/// A cached decision.
///
/// What a frame of it needs is in two cache lines: the first, with the words of the key that switching looks at, and
/// that of the actions.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Flow {
    generation: AtomicU64,
    stats: Box<[FlowStats]>,
    /// Where its frames come in: the port whose budget pays for it.
    pub in_port: PortId,
    /// Which words of the mask are not zero; [`MANY`] if those are many.
    words: u32,
    /// The key, already masked.
    pub key: FlowKey,
    /// The decision.
    pub decision: Decision,
    /// When it was made.
    pub created: Instant,
}

impl Flow {
    /// A flow for `key` under `decision`, valid for `generation` (not [`DEAD`]), with one statistics slot for
    /// each of `pollers`.
    pub fn new(key: &FlowKey, in_port: PortId, decision: Decision, birth: Birth) -> Self {
        let stats = (0..birth.pollers).map(|_| FlowStats::default()).collect();
        let key = key.masked(&decision.mask);
        let words = decision.mask.nonzero().fold(0, |words: u32, (i, _)| words | 1 << i);
        let words = if words.count_ones() > FEW { MANY } else { words };
        Flow {
            key,
            decision,
            in_port,
            words,
            created: birth.now,
            generation: AtomicU64::new(birth.generation),
            stats,
        }
    }

    /// Is this the flow of a frame with this key: do they agree in what the decision looked at? Cost: the words
    /// of the mask that are not zero, or if those are many, all.
    #[inline]
    pub fn matches(&self, key: &FlowKey) -> bool {
        let (key, mask, own) = (key.words(), self.decision.mask.words(), self.key.words());
        let mut words = self.words;
        if words == MANY {
            return (0..WORDS).fold(0, |difference, i| difference | (key[i] & mask[i] ^ own[i])) == 0;
        }
        while words != 0 {
            let i = words.trailing_zeros() as usize;
            if key[i] & mask[i] != own[i] {
                return false;
            }
            words &= words - 1;
        }
        true
    }

    /// The generation of the tables the decision was last checked against; [`DEAD`] after removal.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Says that the decision holds for `generation`. A dead flow stays dead.
    pub fn confirm(&self, generation: u64) {
        let _ = self
            .generation
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |g| (g != DEAD).then_some(generation));
    }

    /// Takes the flow out of use: nobody who still holds it will follow it.
    pub fn kill(&self) {
        self.generation.store(DEAD, Ordering::Release);
    }

    /// The counters of poller `index`.
    #[inline]
    pub fn stats(&self, index: usize) -> &FlowStats {
        &self.stats[index]
    }

    /// The sum of all pollers' counters.
    pub fn totals(&self) -> FlowTotals {
        self.stats.iter().fold(FlowTotals::default(), |t, s| {
            let frames = s.frames.load(Ordering::Relaxed);
            let used = (frames > 0).then(|| Instant::from_nanos(s.used.load(Ordering::Relaxed)));
            FlowTotals {
                frames: t.frames + frames,
                bytes: t.bytes + s.bytes.load(Ordering::Relaxed),
                used: t.used.max(used),
                tcp_flags: t.tcp_flags | s.tcp_flags.load(Ordering::Relaxed) as u16,
            }
        })
    }
}

/// The circumstances of a flow's making.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    /// The generation of the tables it was translated against.
    pub generation: u64,
    /// How many pollers may count on it.
    pub pollers: usize,
    /// Now.
    pub now: Instant,
}
