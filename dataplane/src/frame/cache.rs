//! A thread's stock of free chunks.

use std::sync::Arc;

use encap::offload::Offload;

use super::{BIG_ROOM, Chunk, Frame, FramePool, HEADROOM, SMALL_ROOM};
use crate::batch::{BATCH, Batch};

/// How many chunks a thread keeps for itself before it gives some back.
const CACHE_MAX: usize = 512;
/// How many chunks move between a thread and the pool at a time.
const CACHE_STEP: usize = 64;
/// The same for big chunks. There are few: a thread that frees what others allocate must not hoard them.
const BIG_CACHE_MAX: usize = 8;

/// One thread's stock of free chunks: taking and giving back costs no atomic operation in the common case.
///
/// What makes a small frame is inlined wherever frames are made, so that each is written where it is to be, field by field. One
/// that is passed on instead is read at once in pieces other than it was written in, and waits for the writes to get
/// through to the cache (bench `forward`, `l2/1`: 57 % of the time in `rx`).
pub struct FrameCache {
    pool: Arc<FramePool>,
    small: Vec<u32>,
    big: Vec<u32>,
}

impl FrameCache {
    /// A stock, empty at first. Memory for it is taken by the thread that uses it, beside other things of that thread.
    pub fn new(pool: Arc<FramePool>) -> Self {
        FrameCache { pool, small: Vec::new(), big: Vec::new() }
    }

    /// The pool behind it.
    pub fn pool(&self) -> &Arc<FramePool> {
        &self.pool
    }

    /// An empty small frame, [`HEADROOM`] bytes in. `None` if the pool is empty.
    #[inline(always)]
    pub fn alloc(&mut self) -> Option<Frame> {
        let chunk = match self.small.pop() {
            Some(chunk) => chunk,
            None => self.refill()?,
        };
        Some(self.small_frame(chunk, 0))
    }

    /// An empty big frame, [`HEADROOM`] bytes in. `None` if the pool is empty.
    pub fn alloc_big(&mut self) -> Option<Frame> {
        let chunk = self.big.pop().or_else(|| self.pool.take_big())?;
        Some(self.frame(Chunk(chunk), HEADROOM, 0))
    }

    /// An empty frame of the class that holds `len` bytes.
    #[inline]
    pub fn alloc_for(&mut self, len: usize) -> Option<Frame> {
        match len {
            _ if len <= SMALL_ROOM => self.alloc(),
            _ if len <= BIG_ROOM => self.alloc_big(),
            _ => None,
        }
    }

    /// A frame with these bytes and no offload. `None` if the pool is empty or `bytes` exceed a big frame.
    #[inline(always)]
    pub fn from_bytes(&mut self, bytes: &[u8]) -> Option<Frame> {
        if bytes.len() > SMALL_ROOM {
            return self.big_from_bytes(bytes);
        }
        let chunk = match self.small.pop() {
            Some(chunk) => chunk,
            None => self.refill()?,
        };
        let mut frame = self.small_frame(chunk, bytes.len() as u32);
        copy(frame.bytes_mut(), bytes);
        Some(frame)
    }

    /// Puts a frame with these bytes and no offload at the end of a batch. False, and nothing changes, if the batch is full, the
    /// pool is empty or `bytes` exceed a big frame.
    ///
    /// A small one is written right where it is to be: with [`FrameCache::from_bytes`] and a push, reception takes 78
    /// instructions a frame instead of 45 (bench `instructions`, `l2/1`).
    #[inline(always)]
    #[allow(unsafe_code)]
    pub fn push_copy(&mut self, bytes: &[u8], batch: &mut Batch) -> bool {
        if batch.is_full() {
            return false;
        }
        if bytes.len() > SMALL_ROOM {
            return self.big_from_bytes(bytes).map(|frame| batch.push(frame)).is_some();
        }
        if self.small.is_empty() && !self.stock_up() {
            return false;
        }
        let Some(chunk) = self.small.pop() else { return false };
        let mut frame = self.small_frame(chunk, bytes.len() as u32);
        copy(frame.bytes_mut(), bytes);
        // SAFETY: the batch is not full, as was seen above.
        unsafe { batch.push_unchecked(frame) };
        true
    }

    #[cold]
    fn big_from_bytes(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.alloc_for(bytes.len())?;
        frame.set_len(bytes.len());
        frame.bytes_mut().copy_from_slice(bytes);
        Some(frame)
    }

    /// A second frame with the same bytes and the same work left to do.
    #[inline]
    pub fn copy(&mut self, frame: &Frame) -> Option<Frame> {
        let mut copy = self.from_bytes(frame.bytes())?;
        (copy.offload, copy.entropy, copy.unsaid) = (frame.offload, frame.entropy, frame.unsaid);
        Some(copy)
    }

    /// The frame of a chunk that comes back from the kernel: `len` bytes, `head` bytes in.
    ///
    /// # Safety
    /// The caller owns the chunk (it came from [`FrameCache::release`]) and the kernel is done with it.
    ///
    /// # Panics
    /// If head and length do not fit into the chunk.
    #[inline]
    #[allow(unsafe_code)]
    pub(crate) unsafe fn reclaim(&self, chunk: Chunk, head: usize, len: usize) -> Frame {
        self.frame(chunk, head, len)
    }

    #[inline]
    fn frame(&self, chunk: Chunk, head: usize, len: usize) -> Frame {
        assert!(head + len <= chunk.size(), "{len} bytes at {head} in a chunk of {}", chunk.size());
        let base = self.pool.base(chunk);
        let head = u16::try_from(head).expect("frames begin near the front of their chunk");
        Frame { base, chunk, len: len as u32, head, entropy: 0, offload: Offload::NONE, unsaid: false }
    }

    /// A frame in a small chunk of our stock, of at most [`SMALL_ROOM`] bytes.
    #[inline(always)]
    fn small_frame(&self, chunk: u32, len: u32) -> Frame {
        let base = self.pool.small_base(chunk);
        let (chunk, head) = (Chunk(chunk), HEADROOM as u16);
        Frame { base, chunk, len, head, entropy: 0, offload: Offload::NONE, unsaid: false }
    }

    /// Takes the frame apart: its chunk is now the caller's (the kernel's) until it comes back.
    #[inline]
    pub(crate) fn release(frame: Frame) -> Chunk {
        frame.chunk
    }

    /// Ends a frame.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        self.free_chunk(frame.chunk);
    }

    /// Ends all frames of a batch; it is empty after.
    #[inline]
    pub fn free_all(&mut self, batch: &mut Batch) {
        // Mostly there is no big one among them.
        let (before, mut all) = (self.small.len(), 0);
        self.small.extend(batch.iter().map(|frame| {
            all |= frame.chunk.0;
            frame.chunk.0
        }));
        batch.clear();
        if Chunk(all).is_big() {
            self.sort_out(before);
        }
        self.trim();
    }

    /// Gives back a chunk that was released.
    #[inline]
    pub(crate) fn free_chunk(&mut self, chunk: Chunk) {
        match chunk.is_big() {
            true => self.free_big(chunk),
            false => {
                self.small.push(chunk.0);
                self.trim();
            }
        }
    }

    /// Puts the big chunks among the small ones, from a place on, where they belong.
    #[cold]
    fn sort_out(&mut self, from: usize) {
        let mixed: Vec<u32> = self.small.drain(from..).collect();
        mixed.into_iter().for_each(|chunk| self.free_chunk(Chunk(chunk)));
    }

    #[inline]
    fn trim(&mut self) {
        if self.small.len() > CACHE_MAX {
            self.give_back();
        }
    }

    #[cold]
    fn give_back(&mut self) {
        self.small.drain(CACHE_MAX - CACHE_MAX / 8..).for_each(|chunk| self.pool.put(Chunk(chunk)));
    }

    #[cold]
    fn free_big(&mut self, chunk: Chunk) {
        self.big.push(chunk.0);
        if self.big.len() > BIG_CACHE_MAX {
            let last = BIG_CACHE_MAX - BIG_CACHE_MAX / 8;
            self.big.drain(last..).for_each(|chunk| self.pool.put(Chunk(chunk)));
        }
    }

    #[cold]
    fn refill(&mut self) -> Option<u32> {
        self.stock_up();
        self.small.pop()
    }

    /// Takes small chunks from the pool; false if it has none.
    #[cold]
    fn stock_up(&mut self) -> bool {
        self.small.reserve(CACHE_MAX + BATCH);
        self.small.extend((0..CACHE_STEP).map_while(|_| self.pool.free_small.pop()));
        !self.small.is_empty()
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        let stock = self.small.drain(..).chain(self.big.drain(..));
        stock.for_each(|c| self.pool.put(Chunk(c)));
    }
}

/// Copies as many bytes as there are into as many. Few of them without a call: as two pieces of a fixed length, that overlap
/// (bench `forward`, `l2/1`: 3.5 % of all in the C library's).
#[inline(always)]
fn copy(to: &mut [u8], from: &[u8]) {
    match from.len() {
        32..=64 => copy_ends::<32>(to, from),
        65..=128 => copy_ends::<64>(to, from),
        _ => to.copy_from_slice(from),
    }
}

/// Copies the first and the last `N` bytes.
#[inline(always)]
fn copy_ends<const N: usize>(to: &mut [u8], from: &[u8]) {
    if let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) {
        let end = to.len() - N;
        to[..N].copy_from_slice(first);
        to[end..].copy_from_slice(last);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BIG, Memory, PoolConfig, SMALL};
    use super::*;

    fn cache() -> FrameCache {
        FrameCache::new(FramePool::new(PoolConfig { small: 8, big: 2, memory: Memory::Plain }).unwrap())
    }

    #[test]
    fn the_pool_gives_each_chunk_once_and_takes_all_back() {
        let mut cache = cache();
        let frames: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
        assert_eq!(frames.len(), 8);
        frames.into_iter().for_each(|f| cache.free(f));
        let pool = cache.pool().clone();
        drop(cache);
        assert_eq!(pool.available(), (8, 2));
    }

    #[test]
    fn no_more_big_chunks_are_touched_than_are_in_use_at_once() {
        let pool = FramePool::new(PoolConfig { small: 8, big: 64, memory: Memory::Plain }).unwrap();
        let mut cache = FrameCache::new(pool);
        let mut touched = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let frames: Vec<_> = (0..20).map(|_| cache.alloc_big().unwrap()).collect();
            touched.extend(frames.iter().map(|frame| frame.chunk.0));
            frames.into_iter().for_each(|frame| cache.free(frame));
        }
        assert_eq!(touched.len(), 20);
    }

    #[test]
    fn who_frees_what_others_allocate_hoards_little() {
        let pool = FramePool::new(PoolConfig { small: 2048, big: 16, memory: Memory::Plain }).unwrap();
        let [mut giver, mut taker] = [pool.clone(), pool].map(FrameCache::new);
        for _ in 0..10_000 {
            taker.free(giver.alloc().unwrap());
            taker.free(giver.alloc_big().unwrap());
        }
    }

    #[test]
    fn bytes_choose_their_class_and_copies_are_equal() {
        let mut cache = cache();
        let short = (0..=130).step_by(7);
        for len in short.chain([32, 64, 65, 128, SMALL - HEADROOM, SMALL - HEADROOM + 1, BIG - HEADROOM]) {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let frame = cache.from_bytes(&bytes).unwrap();
            assert_eq!(frame.bytes(), &bytes[..]);
            assert_eq!(frame.chunk().is_big(), len > SMALL - HEADROOM);
            let copy = cache.copy(&frame).unwrap();
            assert_eq!(copy.bytes(), frame.bytes());
            cache.free(copy);
            let mut batch = Batch::new();
            assert!(cache.push_copy(&bytes, &mut batch));
            assert_eq!((batch[0].bytes(), batch[0].offload), (&bytes[..], Offload::NONE));
            assert_eq!(batch[0].chunk().is_big(), len > SMALL - HEADROOM);
            cache.free_all(&mut batch);
            cache.free(frame);
        }
        assert!(cache.from_bytes(&vec![0; BIG]).is_none());
    }

    #[test]
    fn what_finds_no_room_changes_nothing() {
        let mut cache = cache();
        let mut batch = Batch::new();
        while cache.push_copy(b"frame", &mut batch) {}
        assert_eq!(batch.len(), 8, "all that the pool has");
        assert!(!cache.push_copy(&[0; BIG], &mut batch));
        cache.free_all(&mut batch);
        let pool = FramePool::new(PoolConfig { small: 40, big: 1, memory: Memory::Plain }).unwrap();
        let mut cache = FrameCache::new(pool);
        while cache.push_copy(b"frame", &mut batch) {}
        assert!(batch.is_full());
        cache.free_all(&mut batch);
        let pool = cache.pool().clone();
        drop(cache);
        assert_eq!(pool.available(), (40, 1));
    }

    #[test]
    fn a_batch_is_freed_whole() {
        let mut cache = cache();
        let small: Batch = (0..8).map_while(|_| cache.alloc()).collect();
        let big = (0..2).map_while(|_| cache.alloc_big());
        let mut mixed: Batch = big.collect();
        mixed.extend(small);
        assert_eq!(mixed.len(), 10);
        cache.free_all(&mut mixed);
        let mut small: Batch = (0..8).map_while(|_| cache.alloc()).collect();
        assert_eq!((small.len(), mixed.len()), (8, 0));
        cache.free_all(&mut small);
        let pool = cache.pool().clone();
        drop(cache);
        assert_eq!(pool.available(), (8, 2));
    }

    #[test]
    fn the_front_moves_within_the_headroom_only() {
        let mut cache = cache();
        let mut frame = cache.from_bytes(b"payload").unwrap();
        assert!(frame.push_front(HEADROOM + 1).is_none());
        frame.push_front(4).unwrap()[..4].copy_from_slice(b"tag:");
        assert_eq!(frame.bytes(), b"tag:payload");
        assert_eq!(frame.pull_front(4).unwrap(), b"payload");
        assert!(frame.pull_front(8).is_none());
        cache.free(frame);
    }
}
