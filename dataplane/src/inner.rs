//! Frames out of tunnels, on their way back into the pipeline.

use arrayvec::ArrayVec;
use flowtable::id::PortId;
use flowtable::key::TunnelFields;

use crate::batch::{BATCH, Batch};

/// Frames that lost their outer headers: no more than the batch had that they came in.
#[derive(Debug, Default)]
pub struct Inner {
    /// The frames, in the order of their coming.
    pub frames: Batch,
    /// For each, the port it comes in by and what its outer headers said.
    pub outers: ArrayVec<(PortId, TunnelFields), BATCH>,
}
