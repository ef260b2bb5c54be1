//! Where each packed ring of a port is, in memory that outlives the process.
//!
//! Of a packed ring a frontend without inflight region (QEMU has none for network devices) does not know where its backend was
//! when that goes without a word. So we write it down: two places per batch in one word, where it begins and
//! where the next one does, before the guest can see the batch. It costs one store, and no fence: a process that is killed
//! loses none of the stores before. Whether the batch was shown, the ring says (`packed::resume`), which also says if it
//! is another ring by now. The word is nobody's but ours: no guest and no frontend can reach it.
//!
//! The memory is a file that only our user may open, one per port, in a directory of the daemon's; [`Places::open`] locks it, so a
//! second daemon does not share it, and writes behind the places whose it is, so that no other takes it away. Without such a
//! file it is memory of the process, good for frontends that come back.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{Flock, FlockArg, OFlag, posix_fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::geteuid;
use thiserror::Error;

use super::fault::{Mapping, MappingError};
use crate::virtio::PAIRS_MAX;

/// Bytes of each ring, a cache line: pollers of different rings write at the same time.
const STRIDE: usize = 64;
/// Bytes of all rings that a port can have, whatever its `queues` are today.
const BYTES: u64 = 2 * PAIRS_MAX as u64 * STRIDE as u64;
/// The bit of a word that tells it from one that nobody has written.
const WRITTEN: u64 = 1 << 32;

/// Places cannot be kept.
#[derive(Debug, Error)]
pub enum PlacesError {
    /// No file can be had there.
    #[error("cannot open it: {0}")]
    Open(io::Error),
    /// Somebody else made it, or may write to it.
    #[error("it is no regular file that is ours alone; remove it")]
    NotOurs,
    /// Another process keeps its places there.
    #[error("another switch uses it")]
    Taken,
    /// The memory cannot be had.
    #[error(transparent)]
    Map(#[from] MappingError),
}

/// The places of all rings of a port.
#[derive(Debug)]
pub struct Places {
    mapping: Arc<Mapping>,
    /// Locked as long as this lives.
    _file: Option<Flock<File>>,
}

impl Places {
    /// Those in a file, which is made if there is none, and is the `owner`'s from then on. It outlives this: [`Places::remove`].
    ///
    /// # Errors
    /// [`PlacesError`].
    pub fn open(path: &Path, owner: &str) -> Result<Places, PlacesError> {
        let file = lock(OpenOptions::new().create(true).truncate(false).mode(0o600), path)?;
        // Pages that are there: a full disk is found now.
        posix_fallocate(&*file, 0, BYTES as i64).map_err(|errno| PlacesError::Open(errno.into()))?;
        file.set_len(BYTES).map_err(PlacesError::Open)?;
        file.write_all_at(mark(owner).as_bytes(), BYTES).map_err(PlacesError::Open)?;
        let mapping = Mapping::new(file.try_clone().map_err(PlacesError::Open)?, 0, BYTES)?;
        Ok(Places { mapping: Arc::new(mapping), _file: Some(file) })
    }

    /// Those of this process, which end with it.
    ///
    /// # Errors
    /// [`PlacesError`], without memory or descriptors.
    pub fn private() -> Result<Places, PlacesError> {
        let make = || {
            let file = File::from(memfd_create("vhost-places", MFdFlags::MFD_CLOEXEC)?);
            file.set_len(BYTES)?;
            Ok(file)
        };
        let mapping = Mapping::new(make().map_err(PlacesError::Open)?, 0, BYTES)?;
        Ok(Places { mapping: Arc::new(mapping), _file: None })
    }

    /// Takes the file of a port that is no more away, unless it is in use, or not such a file, or another's than `owner`'s. True
    /// if it is gone.
    pub fn remove(path: &Path, owner: &str) -> bool {
        let Ok(file) = lock(&mut OpenOptions::new(), path) else { return false };
        is_owned(&file, owner) && fs::remove_file(path).is_ok()
    }

    /// The place of ring `index` (receive 0, transmit 0, receive 1, ...).
    ///
    /// # Panics
    /// If no port has as many rings.
    pub fn keeper(&self, index: usize) -> Keeper {
        assert!(index < 2 * usize::from(PAIRS_MAX), "ring {index}");
        // SAFETY: the mapping is of as many strides, and begins with a page.
        let cells = unsafe { self.mapping.base().add(index * STRIDE) }.cast();
        Keeper { cells, _mapping: Arc::clone(&self.mapping) }
    }
}

/// What stands behind the places.
fn mark(owner: &str) -> String {
    format!("places of vhost-user rings of {owner}\n")
}

/// Does the file have places, and those of this owner?
fn is_owned(file: &File, owner: &str) -> bool {
    let mark = mark(owner).into_bytes();
    let mut found = vec![0; mark.len()];
    let is_as_long = file.metadata().is_ok_and(|file| file.len() == BYTES + mark.len() as u64);
    is_as_long && file.read_exact_at(&mut found, BYTES).is_ok() && found == mark
}

/// A file that is ours alone, and nobody's else as long as this lives.
fn lock(options: &mut OpenOptions, path: &Path) -> Result<Flock<File>, PlacesError> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = options.read(true).write(true).custom_flags(flags.bits()).open(path);
    let file = Flock::lock(file.map_err(PlacesError::Open)?, FlockArg::LockExclusiveNonblock)
        .map_err(|_| PlacesError::Taken)?;
    // Not before: whoever had it may have removed it.
    let found = file.metadata().map_err(PlacesError::Open)?;
    let is_ours = found.uid() == geteuid().as_raw() && found.nlink() == 1 && found.mode() & 0o077 == 0;
    if found.is_file() && is_ours { Ok(file) } else { Err(PlacesError::NotOurs) }
}

/// Which ring it is, as far as that can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Where it is in the guest's memory.
    pub guest: u64,
    /// Entries.
    pub size: u16,
}

/// The last batch of a ring, by places and wrap counters as in an event suppression structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastBatch {
    /// Where it begins. The guest need not have seen it.
    pub from: u16,
    /// Where the next one does.
    pub to: u16,
}

/// Keeps the place of one ring.
#[derive(Debug)]
pub struct Keeper {
    /// The last batch, the ring's address, and its size.
    cells: NonNull<[AtomicU64; 3]>,
    _mapping: Arc<Mapping>,
}

// SAFETY: the cells are atomic, and live as long as the mapping.
unsafe impl Send for Keeper {}

impl Keeper {
    fn cells(&self) -> &[AtomicU64; 3] {
        // SAFETY: `Places::keeper` saw that they are in the mapping and aligned; atomics may be shared.
        unsafe { self.cells.as_ref() }
    }

    /// The last batch of this ring; `None` if nothing was written of it.
    pub(super) fn last(&self, ring: Identity) -> Option<LastBatch> {
        let [last, guest, size] = self.cells().each_ref().map(|cell| cell.load(Ordering::Acquire));
        let is_it = last & WRITTEN != 0 && (guest, size) == (ring.guest, ring.size.into());
        is_it.then_some(LastBatch { from: (last >> 16) as u16, to: last as u16 })
    }

    /// From now on it is about this ring.
    pub(super) fn begin(&self, ring: Identity, place: u16) {
        self.forget();
        let [_, guest, size] = self.cells();
        guest.store(ring.guest, Ordering::Release);
        size.store(ring.size.into(), Ordering::Release);
        self.put(LastBatch { from: place, to: place });
    }

    /// A batch that the guest cannot see yet.
    #[inline(always)]
    pub(super) fn put(&self, batch: LastBatch) {
        let word = WRITTEN | u64::from(batch.from) << 16 | u64::from(batch.to);
        self.cells()[0].store(word, Ordering::Release);
    }

    /// The frontend knows better.
    pub(super) fn forget(&self) {
        self.cells()[0].store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const RING: Identity = Identity { guest: 0x1000, size: 256 };

    #[test]
    fn a_file_keeps_each_ring_of_a_port_for_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".vm.rings");
        let places = Places::open(&path, "a").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(matches!(Places::open(&path, "a"), Err(PlacesError::Taken)));
        assert!(!Places::remove(&path, "a") && path.exists(), "it is in use");
        let last = |index: u16| LastBatch { from: index, to: 0x8000 + index };
        for index in 0..2 * PAIRS_MAX {
            let keeper = places.keeper(index.into());
            assert_eq!(keeper.last(RING), None);
            keeper.begin(RING, 7);
            assert_eq!(keeper.last(RING), Some(LastBatch { from: 7, to: 7 }));
            keeper.put(last(index));
        }
        drop(places);
        let places = Places::open(&path, "a").unwrap();
        for index in 0..2 * PAIRS_MAX {
            let keeper = places.keeper(index.into());
            assert_eq!(keeper.last(RING), Some(last(index)));
            assert_eq!(keeper.last(Identity { size: 128, ..RING }), None);
            assert_eq!(keeper.last(Identity { guest: 0x2000, ..RING }), None);
            keeper.forget();
            assert_eq!(keeper.last(RING), None);
        }
        drop(places);
        assert!(!Places::remove(&path, "b") && path.exists(), "it is another's");
        drop(Places::open(&path, "bb").unwrap());
        assert!(!Places::remove(&path, "a") && !Places::remove(&path, "b"));
        assert!(Places::remove(&path, "bb") && !path.exists(), "whoever had it last");
    }

    #[test]
    fn what_is_not_ours_alone_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [target, link, open, twice] = ["target", "link", "open", "twice"].map(|n| dir.path().join(n));
        fs::write(&target, "precious").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&target, &link).unwrap();
        assert!(matches!(Places::open(&link, "a"), Err(PlacesError::Open(_))));
        fs::write(&open, "").unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o660)).unwrap();
        assert!(matches!(Places::open(&open, "a"), Err(PlacesError::NotOurs)));
        fs::hard_link(&target, &twice).unwrap();
        assert!(matches!(Places::open(&twice, "a"), Err(PlacesError::NotOurs)));
        assert!(matches!(Places::open(dir.path(), "a"), Err(PlacesError::Open(_))));
        assert!(matches!(Places::open(&dir.path().join("none/vm"), "a"), Err(PlacesError::Open(_))));
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        let zeros = dir.path().join("zeros");
        fs::write(&zeros, vec![0; BYTES as usize + mark("a").len()]).unwrap();
        fs::set_permissions(&zeros, fs::Permissions::from_mode(0o600)).unwrap();
        for path in [&target, &link, &open, &twice, &zeros] {
            assert!(!Places::remove(path, "a") && path.symlink_metadata().is_ok(), "{path:?}");
        }
    }
}
