//! Up to 32 frames that travel together.

use arrayvec::ArrayVec;

use crate::frame::Frame;

/// The most frames in a batch (the burst of DPDK and OVS; `benches/forward` compares others).
pub const BATCH: usize = 32;

/// Frames in order of arrival. Not freed when dropped: empty it into a port or a `FrameCache`.
pub type Batch = ArrayVec<Frame, BATCH>;
