//! The device's two rings of a pair, with their log, outside of any session.

use std::sync::Arc;

use dataplane::batch::{BATCH, Batch};
use dataplane::frame::FrameCache;
use dataplane::port::vhost::log::DirtyLog;
use dataplane::port::vhost::memory::{GuestMemory, Region};
use dataplane::port::vhost::places::Places;
use dataplane::port::vhost::ring::{Ring, Setup, Witness};
use dataplane::port::{Counters, Sent};
use dataplane::virtio::driver::memory::{PAGE, SharedMemory};
use dataplane::virtio::driver::migration::DirtyPages;
use dataplane::virtio::driver::pair::Pair;
use dataplane::virtio::driver::queue::Queue;

/// A device.
pub struct Device {
    memory: SharedMemory,
    guest: Arc<GuestMemory>,
    /// The guest's transmit ring.
    pub from_guest: Ring,
    /// The guest's receive ring.
    pub to_guest: Ring,
    pages: Option<DirtyPages>,
    /// What the guest's memory was, and is.
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Device {
    /// One that begins where the driver does.
    pub fn new(memory: &SharedMemory, pair: &Pair) -> Device {
        let map = |region: &Arc<dataplane::virtio::driver::memory::Region>| {
            Region::map(region.file().try_clone().unwrap(), region.spec()).unwrap()
        };
        let guest = Arc::new(GuestMemory::new(memory.regions().iter().map(map).collect()).unwrap());
        let start = |queue: &Queue| ring(&guest, queue, queue.ring.base(), None);
        let (from_guest, to_guest) = (start(&pair.transmit), start(&pair.receive));
        Device {
            memory: memory.clone(),
            from_guest,
            to_guest,
            guest,
            pages: None,
            before: Vec::new(),
            after: Vec::new(),
        }
    }

    /// Another takes over where it stopped, with a log or without.
    pub fn restart(&mut self, pair: &Pair) {
        let log = self.pages.as_ref().map(|pages| {
            let file = pages.region().file().try_clone().unwrap();
            DirtyLog::map(file, 0, pages.region().spec().len).unwrap()
        });
        self.from_guest = ring(&self.guest, &pair.transmit, self.from_guest.base(), log.clone());
        self.to_guest = ring(&self.guest, &pair.receive, self.to_guest.base(), log);
    }

    /// It is to write down what it writes, from its next start on.
    pub fn log(&mut self) {
        self.pages = Some(DirtyPages::of(&self.memory).unwrap());
    }

    /// No more, from its next start on.
    pub fn end_log(&mut self) {
        self.pages = None;
    }

    /// Does something, and finds what it wrote in the log.
    pub fn logged<T>(&mut self, what: impl FnOnce(&mut Device) -> T) -> T {
        if self.pages.is_none() {
            return what(self);
        }
        let first = self.memory.regions()[0].spec().guest;
        let len = (self.memory.end() - first) as usize;
        self.before.resize(len, 0);
        self.after.resize(len, 0);
        self.memory.read(first, &mut self.before);
        let done = what(self);
        self.memory.read(first, &mut self.after);
        let dirty = self.pages.as_ref().unwrap().take();
        let pages = self.before.chunks(PAGE).zip(self.after.chunks(PAGE)).enumerate();
        for (page, _) in pages.filter(|(_, (before, after))| before != after) {
            let guest = first + (page * PAGE) as u64;
            assert!(dirty.contains(&guest), "page {guest:#x} was written and is not in the log: {dirty:x?}");
        }
        done
    }

    /// Takes at most so many frames.
    pub fn take(&mut self, most: usize, frames: &mut FrameCache, counters: &mut Counters) -> Batch {
        let filled = BATCH - most.min(BATCH);
        let mut batch: Batch = (0..filled).map(|_| frames.alloc().unwrap()).collect();
        self.from_guest.receive(frames, &mut batch, counters).unwrap();
        batch.drain(..filled).for_each(|frame| frames.free(frame));
        batch
    }

    /// Sends what it can of the batch.
    pub fn give(&mut self, frames: &mut FrameCache, batch: &mut Batch) -> Sent {
        self.to_guest.send(frames, batch).unwrap()
    }
}

fn ring(guest: &Arc<GuestMemory>, queue: &Queue, base: u32, log: Option<Arc<DirtyLog>>) -> Ring {
    let shape = queue.ring.shape();
    let setup = Setup {
        memory: Arc::clone(guest),
        parts: queue.parts(),
        size: shape.size,
        base,
        witness: Witness::Ring,
        features: shape.features,
        call: Some(Arc::clone(queue.call())),
        log,
        inflight: None,
        keeper: Some(Places::private().unwrap().keeper(0)),
    };
    Ring::start(setup).unwrap()
}
