//! The log of a migration from the side that reads it (vhost-user, "Migration"): a bit for each page that the device wrote.

use std::sync::Arc;

use super::memory::{Block, Layout, MemoryError, PAGE, Region, SharedMemory};

/// A log to share with a device.
#[derive(Debug)]
pub struct DirtyPages {
    region: Arc<Region>,
    bits: Block,
}

impl DirtyPages {
    /// One that covers all addresses of the memory.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn of(memory: &SharedMemory) -> Result<DirtyPages, MemoryError> {
        let pages = memory.end() as usize / PAGE;
        let len = pages.div_ceil(8).next_multiple_of(PAGE);
        let region = Region::new(Layout { guest: 0, len, offset: 0 })?;
        let bits = SharedMemory::default().with(Arc::clone(&region)).block(len, 4)?;
        Ok(DirtyPages { region, bits })
    }

    /// What to share.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The guest physical addresses of all pages written since this was last asked.
    pub fn take(&self) -> Vec<u64> {
        let words = self.region.spec().len as usize / 4;
        let word = |place: usize| (place as u64 * 32, self.bits.take32(4 * place));
        let pages = |(first, bits): (u64, u32)| {
            let set = (0..32).filter(move |bit| bits >> bit & 1 == 1);
            set.map(move |bit| (first + bit) * PAGE as u64)
        };
        (0..words).map(word).flat_map(pages).collect()
    }
}
