//! Mappings of files that others can shorten, and how we survive it.
//!
//! A touch behind the end of a shortened file is a SIGBUS, as is one of a huge page when none is left. Our handler of that
//! signal looks for the address in a table of all [`Mapping`]s, puts empty memory of our own in place of the mapping, marks
//! it torn and goes on: the instruction that was interrupted reads zeros. Whoever uses the mapping looks at the mark
//! after each batch ([`Mapping::is_torn`]). A SIGBUS at any other address goes to whoever had the signal before us, so a bug
//! still ends the process.
//!
//! The table is a list of chunks that never move and are never freed, as long as the most mappings at a time. An entry is a
//! sequence lock: the handler skips one that changes just now, which cannot be the one it looks for, because whoever touches
//! a mapping keeps it alive. An entry is made after its mapping and removed before it, so entries never overlap.
//! A fault costs one look at each entry and a system call; nothing else costs more than a load.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, compiler_fence, fence};

use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{SysconfVar, sysconf};
use thiserror::Error;
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

use super::backing::is_prompt;

/// A file cannot be mapped.
#[derive(Debug, Error)]
pub enum MappingError {
    /// Nothing to map.
    #[error("it has no bytes")]
    Empty,
    /// Its end is beyond all addresses.
    #[error("{len:#x} bytes at offset {offset:#x} of its file wrap around")]
    Wraps {
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The file ends before the mapping does.
    #[error("its file has {have} bytes and {need} are needed; is the file as large as the frontend says?")]
    Short {
        /// Bytes in the file.
        have: u64,
        /// Offset and length.
        need: u64,
    },
    /// Its pages are somebody else's to give.
    #[error(
        "its file is in FUSE, on a network or in a mount unknown here: expected a memfd, hugetlbfs, tmpfs or a disk"
    )]
    Foreign,
    /// The file says nothing about itself.
    #[error("its file is unusable: {0}")]
    Stat(io::Error),
    /// The kernel refused.
    #[error(
        "cannot map {len} bytes of its file, which must be shared memory open for reading and writing: {reason}"
    )]
    Map {
        /// Bytes.
        len: usize,
        /// What the kernel said.
        reason: String,
    },
}

/// A part of a file, mapped shared, readable and writable, as long as this lives. Others write to it at any time.
#[derive(Debug)]
pub struct Mapping {
    /// Whole pages around the part.
    pages: MmapRegion,
    /// Where in the pages the part begins.
    lead: usize,
    len: usize,
    entry: &'static Entry,
}

impl Mapping {
    /// Maps `len` bytes, at least 1, from `offset` on, which need not be a multiple of a page.
    ///
    /// # Errors
    /// [`MappingError`].
    pub fn new(file: File, offset: u64, len: u64) -> Result<Mapping, MappingError> {
        if len == 0 {
            return Err(MappingError::Empty);
        }
        if !is_prompt(&file) {
            return Err(MappingError::Foreign);
        }
        let page = page_size(&file).map_err(MappingError::Stat)?;
        let wraps = MappingError::Wraps { offset, len };
        let Some(need) = offset.checked_add(len).filter(|need| need.checked_add(page).is_some()) else {
            return Err(wraps);
        };
        let have = file.metadata().map_err(MappingError::Stat)?.len();
        if have < need {
            return Err(MappingError::Short { have, need });
        }
        let start = offset - offset % page;
        // As long as the kernel makes it: of huge pages it unmaps whole ones only.
        let size = need.next_multiple_of(page) - start;
        let pages = map(file, start, size as usize)?;
        let entry = TABLE.enter(pages.as_ptr() as usize, size as usize, page as usize);
        Ok(Mapping { pages, lead: (offset - start) as usize, len: len as usize, entry })
    }

    /// Its first byte. The others follow, up to [`Mapping::len`].
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        // SAFETY: the pages are mapped, so their address is not null, and the lead is inside of them.
        unsafe { NonNull::new_unchecked(self.pages.as_ptr().add(self.lead)) }
    }

    /// Bytes, at least 1.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Was a part of it taken away? Then all of it is memory that nobody else sees.
    #[inline]
    pub fn is_torn(&self) -> bool {
        any_torn() && self.entry.torn.load(Ordering::Relaxed)
    }
}

/// Is any mapping of the process torn? One load, of a line that nobody writes as long as none is.
#[inline]
pub fn any_torn() -> bool {
    // The handler ran in the middle of what this thread did before; the compiler must not look ahead of that.
    compiler_fence(Ordering::SeqCst);
    TORN.load(Ordering::Relaxed) > 0
}

impl Drop for Mapping {
    fn drop(&mut self) {
        TABLE.remove(self.entry); // the pages are unmapped after this
    }
}

fn map(file: File, start: u64, size: usize) -> Result<MmapRegion, MappingError> {
    install();
    let pages = MmapRegionBuilder::new(size)
        .with_file_offset(FileOffset::new(file, start))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .build()
        .map_err(|error| MappingError::Map { len: size, reason: error.to_string() })?;
    // A core of ours is no place for what is in a tenant's memory. Kernels that do not know this lose nothing else.
    // SAFETY: exactly the pages mapped above; their content is not changed.
    unsafe { libc::madvise(pages.as_ptr().cast(), size, libc::MADV_DONTDUMP) };
    Ok(pages)
}

/// What offsets and lengths of mappings of this file are multiples of: of hugetlbfs the huge page.
fn page_size(file: &File) -> io::Result<u64> {
    let fs = fstatfs(file)?;
    if fs.filesystem_type() == HUGETLBFS_MAGIC {
        return Ok(fs.block_size() as u64);
    }
    Ok(sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096) as u64)
}

/// Entries per chunk of the table: 16 guests of 4 regions.
const CHUNK: usize = 64;

/// All mappings of the process.
static TABLE: Chunk = Chunk::new();

/// How many of them are torn.
static TORN: AtomicUsize = AtomicUsize::new(0);

/// A mapping as the signal handler sees it.
#[derive(Debug)]
struct Entry {
    /// Does a mapping have it?
    taken: AtomicBool,
    /// Odd while the three fields after it change.
    sequence: AtomicUsize,
    start: AtomicUsize,
    /// Bytes; 0: none.
    len: AtomicUsize,
    page: AtomicUsize,
    torn: AtomicBool,
}

struct Chunk {
    entries: [Entry; CHUNK],
    next: OnceLock<Box<Chunk>>,
}

/// Whole pages in our memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pages {
    start: usize,
    len: usize,
    page: usize,
}

impl Entry {
    const fn new() -> Entry {
        Entry {
            taken: AtomicBool::new(false),
            sequence: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            torn: AtomicBool::new(false),
        }
    }

    /// Only by who has taken it.
    fn set(&self, pages: Pages) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(pages.start, Ordering::Relaxed);
        self.len.store(pages.len, Ordering::Relaxed);
        self.page.store(pages.page, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Its pages if it is not being changed.
    fn get(&self) -> Option<Pages> {
        let before = self.sequence.load(Ordering::Acquire);
        let pages = Pages {
            start: self.start.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            page: self.page.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        (before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before).then_some(pages)
    }
}

impl Chunk {
    const fn new() -> Chunk {
        Chunk { entries: [const { Entry::new() }; CHUNK], next: OnceLock::new() }
    }

    /// Of this chunk and those behind it. No lock, no allocation: a signal handler asks.
    fn entries(&'static self) -> impl Iterator<Item = &'static Entry> {
        std::iter::successors(Some(self), |chunk| chunk.next.get().map(|next| &**next))
            .flat_map(|chunk| &chunk.entries)
    }

    fn enter(&'static self, start: usize, len: usize, page: usize) -> &'static Entry {
        let mut chunk = self;
        loop {
            if let Some(entry) = chunk.entries.iter().find(|e| !e.taken.swap(true, Ordering::Acquire)) {
                entry.set(Pages { start, len, page });
                return entry;
            }
            chunk = chunk.next.get_or_init(|| Box::new(Chunk::new()));
        }
    }

    fn remove(&'static self, entry: &Entry) {
        entry.set(Pages { start: 0, len: 0, page: 0 });
        if entry.torn.swap(false, Ordering::Relaxed) {
            TORN.fetch_sub(1, Ordering::Relaxed);
        }
        entry.taken.store(false, Ordering::Release);
    }

    /// The entry with this address.
    fn find(&'static self, address: usize) -> Option<(&'static Entry, Pages)> {
        let with_pages = |entry: &'static Entry| entry.get().map(|pages| (entry, pages));
        let has = |(_, pages): &(_, Pages)| address.wrapping_sub(pages.start) < pages.len;
        self.entries().filter_map(with_pages).find(has)
    }
}

/// Whose the signal was before; never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// Takes over SIGBUS, once.
fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        PREVIOUS.store(Box::into_raw(Box::new(action(None))), Ordering::Release);
        // SAFETY: all zeros is a valid `sigaction`.
        let mut ours: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        ours.sa_sigaction = on_sigbus as *const () as usize;
        // On the stack for signals where a thread has one, as those of std have: ours may be the overflown stack.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        action(Some(&ours));
    });
}

/// Sets what SIGBUS does, if anything, and says what it did before.
fn action(new: Option<&libc::sigaction>) -> libc::sigaction {
    // SAFETY: all zeros is a valid `sigaction`.
    let mut old: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: both point to a whole `sigaction` or are null; what is installed is the handler below or was installed before.
    unsafe { libc::sigaction(libc::SIGBUS, new.map_or(ptr::null(), ptr::from_ref), &mut old) };
    old
}

/// Async-signal-safe: atomics, `mmap`, `sigaction`, `raise`.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the errno of this thread, which the interrupted code may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole `siginfo_t`.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Only the kernel has codes above 0, and only it says an address.
    if code <= 0 || !tear(address) {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts empty memory in place of the mapping with this address. False if there is none or no memory.
fn tear(address: usize) -> bool {
    let Some((entry, pages)) = TABLE.find(address) else { return false };
    if !entry.torn.swap(true, Ordering::Relaxed) {
        TORN.fetch_add(1, Ordering::Relaxed);
    }
    // All of it, or the rest would fault page by page. A kernel that counts what we may ask for may still grant the one.
    let one = Pages { start: address - address % pages.page, len: pages.page, ..pages };
    replace(pages) || replace(one)
}

/// Several threads may do it to the same pages at once: each then finds the zeros of the last.
fn replace(pages: Pages) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the pages are a `Mapping`'s, whole, and stay so: the thread that faulted in them keeps it alive. Nobody has a
    // reference to their content, only pointers, which stay valid.
    let at = unsafe { libc::mmap(pages.start as *mut _, pages.len, prot, flags, -1, 0) };
    at != libc::MAP_FAILED
}

/// To the handler before us, or what the kernel does without one.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: it was set before the handler was installed, and never freed.
    let previous = unsafe { &*PREVIOUS.load(Ordering::Acquire) };
    // SAFETY: a field of `siginfo_t` that all signals have.
    let sent = unsafe { (*info).si_code } <= 0;
    match previous.sa_sigaction {
        libc::SIG_IGN if sent => {}
        // std's handler takes a signal that was sent for a fault, which would come again; it has to end the process.
        previous if sent || [libc::SIG_DFL, libc::SIG_IGN].contains(&previous) => {
            // SAFETY: all zeros is a valid `sigaction`: the default.
            action(Some(&unsafe { MaybeUninit::zeroed().assume_init() }));
            // Blocked until we return, then it ends the process.
            // SAFETY: `raise` has no preconditions.
            unsafe { libc::raise(signal) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed with SA_SIGINFO, so it is a function of this type.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was installed without SA_SIGINFO, so it is a function of this type.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests;
