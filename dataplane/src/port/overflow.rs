//! Receiving what may be long: the ends of long frames land in an overflow, before it is known that a big frame is
//! needed. One copy for such a frame, none for the others.

use std::cell::RefCell;

use crate::batch::BATCH;
use crate::frame::{BIG, Frame, FrameCache, SMALL};

/// Bytes of one message beyond a small frame: what a big frame has more.
const LEN: usize = BIG - SMALL;

thread_local! {
    /// One for all ports of a poller: it is used only while one of them receives.
    static OVERFLOW: RefCell<Overflow> = RefCell::new(Overflow(vec![0; BATCH * LEN]));
}

/// Room for the ends of a batch of frames. Memory is used only once it is written to.
pub(super) struct Overflow(Vec<u8>);

impl Overflow {
    /// Lends the thread's overflow.
    pub fn with<R>(receive: impl FnOnce(&mut Overflow) -> R) -> R {
        OVERFLOW.with_borrow_mut(receive)
    }

    /// Room for the end of each frame of a batch.
    pub fn parts_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.0.chunks_mut(LEN)
    }

    /// The end of the frame at this place of the batch.
    pub fn of(&self, place: usize) -> &[u8] {
        &self.0[place * LEN..][..LEN]
    }
}

/// The frame of `len` bytes whose beginning lies in `small` and whose end, if that has no room for it, in `rest`: then a
/// big one, unless there is none. The length is not set.
pub(super) fn join(mut small: Frame, len: usize, rest: &[u8], frames: &mut FrameCache) -> Frame {
    let split = small.room();
    let big = if len > split { frames.alloc_big() } else { None };
    let Some(mut big) = big else { return small };
    let room = big.room_mut();
    let end = len.min(room.len());
    room[..split].copy_from_slice(small.room_mut());
    room[split..end].copy_from_slice(&rest[..end - split]);
    frames.free(small);
    big
}
