//! The dirty log of live migration (vhost-user, "Migration"): a bit for each 4 KiB page of the guest that we wrote to, in
//! memory of the frontend.
//!
//! Bit `(address / 4096) % 8` of byte `address / 4096 / 8`, set by an atomic OR, since the frontend takes bits out meanwhile.
//! It is an OR even if the bit is set: a look before would pass the write that it is about, and the frontend could take the
//! bit and copy the page between the two. One OR per 32 KiB written.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::fault::Mapping;
use super::memory::MemoryError;

/// `VHOST_LOG_PAGE`, in bits.
const PAGE_SHIFT: u32 = 12;

/// A mapped log.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
}

impl DirtyLog {
    /// Maps `len` bytes at `offset` of the file.
    ///
    /// # Errors
    /// [`MemoryError::Log`].
    pub fn map(file: File, offset: u64, len: u64) -> Result<Arc<DirtyLog>, MemoryError> {
        let mapping = Mapping::new(file, offset, len).map_err(MemoryError::Log)?;
        Ok(Arc::new(DirtyLog { mapping }))
    }

    /// `len` bytes from `guest` on were written. What lies outside the log is ignored.
    #[inline]
    pub fn mark(&self, guest: u64, len: usize) {
        let pages = self.mapping.len() as u64 * 8;
        if len == 0 || guest >> PAGE_SHIFT >= pages {
            return;
        }
        let first = guest >> PAGE_SHIFT;
        let last = (guest.saturating_add(len as u64 - 1) >> PAGE_SHIFT).min(pages - 1);
        for byte in first / 8..=last / 8 {
            let from = first.max(byte * 8) % 8;
            let to = last.min(byte * 8 + 7) % 8;
            self.set(byte as usize, (0xff << from) & (0xff >> (7 - to)));
        }
    }

    /// Sets these bits of a byte of the log.
    #[inline]
    #[allow(unsafe_code)]
    fn set(&self, byte: usize, bits: u8) {
        debug_assert!(byte < self.mapping.len());
        // SAFETY: the byte is in the mapping (`mark` sees to it), which lives as long as `self`; all who share it use
        // atomic operations. The release puts what was written to the pages before the bits.
        unsafe {
            AtomicU8::from_ptr(self.mapping.base().as_ptr().add(byte)).fetch_or(bits, Ordering::Release)
        };
    }

    /// Did the frontend take a part of it away? Then marks go nowhere.
    pub fn is_torn(&self) -> bool {
        self.mapping.is_torn()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::FileExt;
    use std::thread;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    use super::*;

    /// Odd, so that the log does not begin at a page or end at a word.
    const OFFSET: u64 = 4096 + 40;
    const LEN: u64 = 9;

    fn log() -> (File, Arc<DirtyLog>) {
        let file = File::from(memfd_create("log", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(OFFSET + LEN + 8).unwrap();
        let log = DirtyLog::map(file.try_clone().unwrap(), OFFSET, LEN).unwrap();
        (file, log)
    }

    /// The pages whose bits are set, in the log and the bytes around it.
    fn marked(file: &File) -> BTreeSet<i64> {
        let mut bytes = [0; LEN as usize + 16];
        file.read_exact_at(&mut bytes, OFFSET - 8).unwrap();
        let bit = |i: &usize| bytes[i / 8] >> (i % 8) & 1 == 1;
        (0..bytes.len() * 8).filter(bit).map(|i| i as i64 - 64).collect()
    }

    proptest! {
        #[test]
        fn exactly_the_pages_written_to_are_marked(
            writes in proptest::collection::vec((0u64..80 * 4096, 0usize..12 * 4096), 0..6),
        ) {
            let (file, log) = log();
            let mut model = BTreeSet::new();
            for (guest, len) in writes {
                log.mark(guest, len);
                let written = guest..guest + len as u64;
                model.extend((0..100).filter(|page| (page * 4096).max(guest) < written.end.min((page + 1) * 4096)).map(|page| page as i64));
            }
            model.retain(|&page| page < LEN as i64 * 8);
            prop_assert_eq!(marked(&file), model);
        }
    }

    #[test]
    fn what_is_outside_is_ignored() {
        let (file, log) = log();
        log.mark(LEN * 8 * 4096, 1);
        log.mark(u64::MAX, usize::MAX);
        assert_eq!(marked(&file), BTreeSet::new());
        log.mark(71 * 4096 + 4095, usize::MAX);
        assert_eq!(marked(&file), BTreeSet::from([71]));
        assert!(DirtyLog::map(file, OFFSET, LEN + 9).unwrap_err().to_string().starts_with("dirty log: "));
    }

    #[test]
    fn marks_of_several_threads_are_all_there() {
        let (file, log) = log();
        thread::scope(|scope| {
            for thread in 0..4 {
                let log = &log;
                scope.spawn(move || (thread..72).step_by(4).for_each(|page| log.mark(page * 4096, 1)));
            }
        });
        assert_eq!(marked(&file), (0..72).collect());
    }

    #[test]
    fn a_log_cut_short_is_torn() {
        let (file, log) = log();
        assert!(!log.is_torn());
        file.set_len(0).unwrap();
        log.mark(0, 1);
        assert!(log.is_torn());
    }
}
