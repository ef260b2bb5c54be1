//! The place of a split ring.

use std::mem::{offset_of, size_of};

use super::cells::{Cells, Number};
use super::{Format, InflightError, Past, Queue, VERSION};

/// `QueueRegionSplit`, without its entries, which follow.
#[repr(C)]
pub struct QueueRegion {
    pub features: u64,
    pub version: u16,
    pub desc_num: u16,
    pub last_batch_head: u16,
    pub used_idx: u16,
}

/// `DescStateSplit`: an entry, by the index of the descriptor.
#[repr(C)]
pub struct DescState {
    pub inflight: u8,
    pub padding: [u8; 5],
    pub next: u16,
    pub counter: u64,
}

const _: () = assert!(size_of::<QueueRegion>() == 16 && size_of::<DescState>() == 16);

/// The chains of a split ring that are in flight, each by its head: the index of its first descriptor.
#[derive(Debug)]
pub struct Split {
    cells: Cells,
    /// How many chains there were.
    counter: u64,
    last_batch_head: u16,
    used: u16,
    /// Heads to give back with the next batch.
    batch: Vec<u16>,
}

impl Split {
    /// What is to be done after whoever had the ring before, whose used ring is at index `used`: the heads of the chains that
    /// it took and did not give back, in the order in which they were made available. They are in flight still; the next
    /// available entry is the one `used` plus their number.
    ///
    /// # Errors
    /// Any of [`InflightError`] about what is in a region. It is of no use then, and the ring better started without.
    pub fn recover(queue: Queue, used: u16) -> Result<(Split, Vec<u16>), InflightError> {
        let size = queue.size;
        let (cells, past) = queue.open(Format::Split)?;
        let batch = Vec::with_capacity(size.into());
        let mut split = Split { cells, counter: 0, last_batch_head: 0, used, batch };
        match past {
            Past::Unused => split.clear(size),
            Past::Used => split.end_batch(size)?,
        }
        let heads = split.in_flight(size);
        split.counter = heads.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        Ok((split, heads.into_iter().map(|(_, head)| head).collect()))
    }

    /// A region that nobody has used. The version comes last.
    fn clear(&self, size: u16) {
        (0..size).for_each(|head| self.put_entry(head, offset_of!(DescState, inflight), 0u8));
        self.cells.put(offset_of!(QueueRegion, features), 0u64);
        self.cells.put(offset_of!(QueueRegion, desc_num), size);
        self.cells.put(offset_of!(QueueRegion, last_batch_head), 0u16);
        self.cells.put(offset_of!(QueueRegion, used_idx), self.used);
        self.cells.put(offset_of!(QueueRegion, version), VERSION);
    }

    /// Does what was left to do of a batch that reached the ring.
    fn end_batch(&mut self, size: u16) -> Result<(), InflightError> {
        let region: u16 = self.cells.get(offset_of!(QueueRegion, used_idx));
        let count = self.used.wrapping_sub(region);
        if count > size {
            return Err(InflightError::UsedIndex { ring: self.used, region });
        }
        self.last_batch_head = self.cells.get(offset_of!(QueueRegion, last_batch_head));
        let mut head = self.last_batch_head;
        for _ in 0..count {
            if head >= size {
                return Err(InflightError::Broken(head));
            }
            self.put_entry(head, offset_of!(DescState, inflight), 0u8);
            head = self.cells.get(entry(head) + offset_of!(DescState, next));
        }
        self.cells.put(offset_of!(QueueRegion, used_idx), self.used);
        Ok(())
    }

    /// Counters and heads of what is in flight, in that order.
    fn in_flight(&self, size: u16) -> Vec<(u64, u16)> {
        let is_in_flight = |&head: &u16| {
            let mark: u8 = self.cells.get(entry(head) + offset_of!(DescState, inflight));
            mark != 0
        };
        let counter = |head| self.cells.get(entry(head) + offset_of!(DescState, counter));
        let mut heads: Vec<_> = (0..size).filter(is_in_flight).map(|head| (counter(head), head)).collect();
        heads.sort_unstable();
        heads
    }

    /// A chain was taken from the available ring, and nothing done with it yet. A head that is none is not tracked.
    #[inline]
    pub fn begin(&mut self, head: u16) {
        self.put_entry(head, offset_of!(DescState, counter), self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.put_entry(head, offset_of!(DescState, inflight), 1u8);
    }

    /// A chain that goes back with the next batch.
    #[inline]
    pub fn done(&mut self, head: u16) {
        self.batch.push(head);
    }

    /// Gives the chains that are done back: `store` writes the used ring's index, which grows by their number.
    #[inline]
    pub fn publish(&mut self, store: impl FnOnce()) {
        for &head in &self.batch {
            self.put_entry(head, offset_of!(DescState, next), self.last_batch_head);
            self.cells.put(offset_of!(QueueRegion, last_batch_head), head);
            self.last_batch_head = head;
        }
        store();
        for &head in &self.batch {
            self.put_entry(head, offset_of!(DescState, inflight), 0u8);
        }
        self.used = self.used.wrapping_add(self.batch.len() as u16);
        self.cells.put(offset_of!(QueueRegion, used_idx), self.used);
        self.batch.clear();
    }

    /// Did the frontend take the region away? Then it tells a successor nothing.
    pub fn is_torn(&self) -> bool {
        self.cells.is_torn()
    }

    #[inline]
    fn put_entry<N: Number>(&self, head: u16, field: usize, value: N) {
        self.cells.put(entry(head) + field, value);
    }
}

/// Where an entry begins.
#[inline]
fn entry(head: u16) -> usize {
    size_of::<QueueRegion>() + usize::from(head) * size_of::<DescState>()
}
