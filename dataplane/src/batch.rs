//! Up to 32 frames that travel together.

use std::slice;

use arrayvec::ArrayVec;
use flowtable::id::PortId;
use flowtable::keys::Keys;
use flowtable::places::Places;

use crate::frame::Frame;

/// The most frames in a batch: the burst of DPDK and OVS.
pub const BATCH: usize = 32;

/// Frames in order of arrival. Not freed when dropped: empty it into a port or a `FrameCache`.
pub type Batch = ArrayVec<Frame, BATCH>;

/// Takes the key of each frame, as of one that came in by `port`; the places of the frames that have one, for the others'
/// keys mean nothing.
///
/// A function of its own: extraction pays only where all of it is inlined, and has all registers (5 of 115 cycles a frame in
/// `benches/forward`, l2/1).
#[inline(never)]
pub fn extract_each(batch: &[Frame], port: PortId, keys: &mut Keys) -> Places {
    keys.extract(batch.iter().map(Frame::bytes), port)
}

/// The frames of a batch on their way out of it, in their order. The batch is empty from the first moment on; frames that
/// are not taken out are not freed.
///
/// A run of frames moves in one copy. A `drain` moves one frame after the other, each in pieces (bench `forward`,
/// `l2/1`).
pub struct Leaving<'b> {
    batch: &'b mut Batch,
    /// The frames from here on ...
    at: usize,
    /// ... to here are still ours.
    end: usize,
}

#[allow(unsafe_code)]
impl<'b> Leaving<'b> {
    /// All frames of a batch.
    #[inline]
    pub fn of(batch: &'b mut Batch) -> Self {
        let end = batch.len();
        // SAFETY: nothing is longer than before; what lies behind the end now belongs to `Leaving`.
        unsafe { batch.set_len(0) };
        Leaving { batch, at: 0, end }
    }

    /// Those that are still here.
    #[inline]
    pub fn rest(&mut self) -> &mut [Frame] {
        // SAFETY: frames from `at` to `end` were initialized when the batch had that length, and nobody else has them.
        unsafe { slice::from_raw_parts_mut(self.batch.as_mut_ptr().add(self.at), self.end - self.at) }
    }

    /// The next frame.
    #[inline]
    pub fn take_one(&mut self) -> Option<Frame> {
        let next: *const Frame = self.rest().first()?;
        self.at += 1;
        // SAFETY: it is a frame of the rest, which from now on begins behind it: it is moved out once.
        Some(unsafe { next.read() })
    }

    /// Moves the next `n` to the end of `to`.
    ///
    /// # Panics
    /// If there are fewer, or `to` has no room for them.
    #[inline]
    pub fn move_to(&mut self, n: usize, to: &mut Batch) {
        let from = self.rest()[..n].as_ptr();
        assert!(n <= to.remaining_capacity(), "{n} frames for {} places", to.remaining_capacity());
        self.at += n;
        // SAFETY: `n` frames of the rest, which from now on begins behind them, to another batch with room for as many.
        unsafe {
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().add(to.len()), n);
            to.set_len(to.len() + n);
        }
    }

    /// Moves the next `n` to a batch of their own.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn take(&mut self, n: usize) -> Batch {
        let mut batch = Batch::new();
        self.move_to(n, &mut batch);
        batch
    }
}
