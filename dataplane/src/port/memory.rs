//! A port without a kernel: two bounded queues in memory, for tests and benches.
//!
//! [`pair`] gives the port and its [`Peer`], the other end of the cable. Frames move through the queues whole:
//! nothing is copied, so a bench that puts back what it takes out measures the switch and not `memcpy`.
//! The two ends may be on different threads. Each frame costs one atomic push and one pop.
//! A [`ringing_pair`] is also how control sits on the underlay: there the peer sleeps until the port sends.
//!
//! A full queue is a full wire: what the port sends then stays in its batch. Dropping the peer is what
//! deleting the interface is elsewhere: the port reports [`PortError::Gone`].

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use encap::offload::Offload;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Offloads, Port, PortError, Readiness, Sent};
use crate::batch::Batch;
use crate::frame::{Frame, FrameCache, FramePool};

/// Tells the port's poller of a frame, if it wants to be told: as a guest kicks, to see that nobody misses a kick.
struct Wake {
    bell: EventFd,
    armed: AtomicBool,
}

impl Wake {
    /// Armed: who never says otherwise is told of every frame.
    fn new() -> io::Result<Wake> {
        Ok(Wake { bell: eventfd()?, armed: AtomicBool::new(true) })
    }

    /// Tells of what was put into the queue before. Either the fence of this lets us see that the port is armed, or that of
    /// [`Wake::arm`] lets the port see the frame.
    fn tell(&self) {
        fence(Ordering::SeqCst);
        if self.is_armed() {
            let _ = self.bell.write(1);
        }
    }

    fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
        let _ = self.bell.read();
    }
}

/// What both ends hold.
struct Wire {
    to_port: ArrayQueue<Frame>,
    from_port: ArrayQueue<Frame>,
    unplugged: AtomicBool,
    wake: Option<Wake>,
    /// Rung when the port has sent.
    bell: Option<Arc<EventFd>>,
}

impl Wire {
    fn ends(wire: Wire, pool: &Arc<FramePool>) -> (MemoryPort, Peer) {
        let wire = Arc::new(wire);
        let port = MemoryPort { wire: wire.clone(), offloads: Offloads::default() };
        (port, Peer { wire, cache: FrameCache::new(pool.clone()) })
    }

    fn new(capacity: usize, wake: Option<Wake>) -> Wire {
        let queue = || ArrayQueue::new(capacity);
        Wire { to_port: queue(), from_port: queue(), unplugged: AtomicBool::new(false), wake, bell: None }
    }

    /// Ends all frames that are under way.
    fn empty(&self, frames: &mut FrameCache) {
        let under_way = std::iter::from_fn(|| self.to_port.pop().or_else(|| self.from_port.pop()));
        under_way.for_each(|frame| frames.free(frame));
    }
}

/// A port and its peer, `capacity` frames deep (at least 1) in either direction. The port has no
/// descriptor to sleep on.
pub fn pair(pool: &Arc<FramePool>, capacity: usize) -> (MemoryPort, Peer) {
    Wire::ends(Wire::new(capacity, None), pool)
}

/// As [`pair`], with a descriptor to sleep on, at the price of a system call per frame while the port is armed.
///
/// # Errors
/// If the process has no descriptor left.
pub fn waking_pair(pool: &Arc<FramePool>, capacity: usize) -> io::Result<(MemoryPort, Peer)> {
    Ok(Wire::ends(Wire::new(capacity, Some(Wake::new()?)), pool))
}

/// As [`waking_pair`], with a bell that the port rings whenever it has sent: several peers may share it.
///
/// # Errors
/// If the process has no descriptor left.
pub fn ringing_pair(
    pool: &Arc<FramePool>,
    capacity: usize,
    bell: &Arc<EventFd>,
) -> io::Result<(MemoryPort, Peer)> {
    let bell = Some(Arc::clone(bell));
    Ok(Wire::ends(Wire { bell, ..Wire::new(capacity, Some(Wake::new()?)) }, pool))
}

fn eventfd() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

/// The switch's end.
pub struct MemoryPort {
    wire: Arc<Wire>,
    offloads: Offloads,
}

impl MemoryPort {
    /// What the peer takes; nothing at first.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
    }

    fn plugged(&self) -> Result<(), PortError> {
        match self.wire.unplugged.load(Ordering::Acquire) {
            true => Err(PortError::Gone(io::Error::new(io::ErrorKind::NotConnected, "the peer was dropped"))),
            false => Ok(()),
        }
    }
}

impl Port for MemoryPort {
    fn rx(&mut self, _: &mut FrameCache, batch: &mut Batch) -> Result<(), PortError> {
        self.plugged()?;
        let armed = self.wire.wake.as_ref().filter(|wake| wake.is_armed());
        if let Some(wake) = armed {
            // Before the queue is looked at, so that a frame that comes meanwhile wakes us again.
            let _ = wake.bell.read();
        }
        batch.extend((0..batch.remaining_capacity()).map_while(|_| self.wire.to_port.pop()));
        if let Some(wake) = armed.filter(|_| !self.wire.to_port.is_empty()) {
            let _ = wake.bell.write(1);
        }
        Ok(())
    }

    fn tx(&mut self, _: &mut FrameCache, batch: &mut Batch) -> Result<Sent, PortError> {
        self.plugged()?;
        let mut sent = Sent::default();
        let room = self.wire.from_port.capacity() - self.wire.from_port.len();
        for frame in batch.drain(..room.min(batch.len())) {
            sent.count(&frame);
            self.wire.from_port.push(frame).expect("only this port fills the queue");
        }
        if let Some(bell) = self.wire.bell.as_ref().filter(|_| sent.frames > 0) {
            let _ = bell.write(1);
        }
        Ok(sent)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.wire.wake.as_ref().map_or(Readiness::Unknown, |wake| Readiness::Ring(wake.bell.as_fd()))
    }

    fn arm(&mut self) -> bool {
        self.wire.wake.iter().for_each(Wake::arm);
        !self.wire.to_port.is_empty() || self.plugged().is_err()
    }

    fn disarm(&mut self) {
        self.wire.wake.iter().for_each(Wake::disarm);
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn close(&mut self, frames: &mut FrameCache) {
        self.wire.empty(frames);
    }
}

/// What a peer gets out of the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The frame's bytes.
    pub bytes: Vec<u8>,
    /// What was left to do on them.
    pub offload: Offload,
}

/// The other end: what a guest or the wire would be. Dropping it unplugs the port.
pub struct Peer {
    wire: Arc<Wire>,
    cache: FrameCache,
}

impl Peer {
    /// Sends bytes to the switch. `false` if the queue is full or the pool empty.
    #[must_use = "a full queue takes nothing"]
    pub fn inject(&mut self, bytes: &[u8]) -> bool {
        self.inject_offload(bytes, Offload::NONE)
    }

    /// Sends bytes on which something is left to do.
    #[must_use = "a full queue takes nothing"]
    pub fn inject_offload(&mut self, bytes: &[u8], offload: Offload) -> bool {
        let Some(mut frame) = self.cache.from_bytes(bytes) else { return false };
        frame.offload = offload;
        match self.put(frame) {
            Ok(()) => true,
            Err(frame) => {
                self.cache.free(frame);
                false
            }
        }
    }

    /// Takes all that the switch has sent.
    pub fn drain(&mut self) -> Vec<Delivered> {
        self.receive(usize::MAX)
    }

    /// Takes so many frames that the switch has sent, or as many as there are.
    pub fn receive(&mut self, most: usize) -> Vec<Delivered> {
        let mut all = Vec::new();
        while all.len() < most
            && let Some(frame) = self.take()
        {
            all.push(Delivered { bytes: frame.bytes().to_vec(), offload: frame.offload });
            self.cache.free(frame);
        }
        all
    }

    /// Sends a frame to the switch, without a copy.
    ///
    /// # Errors
    /// The frame, if the queue is full.
    pub fn put(&self, frame: Frame) -> Result<(), Frame> {
        self.wire.to_port.push(frame)?;
        self.wire.wake.iter().for_each(Wake::tell);
        Ok(())
    }

    /// Takes a frame that the switch has sent, without a copy.
    pub fn take(&self) -> Option<Frame> {
        self.wire.from_port.pop()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.wire.unplugged.store(true, Ordering::Release);
        self.wire.wake.iter().for_each(Wake::tell);
        self.wire.empty(&mut self.cache);
    }
}

#[cfg(test)]
mod tests {
    use encap::offload::Csum;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::super::rig::{self, FarSide, conforms, numbered, pool};
    use super::*;

    impl FarSide for Peer {
        fn send(&mut self, frame: &[u8]) {
            assert!(self.inject(frame));
        }

        fn receive(&mut self) -> Option<Vec<u8>> {
            let frame = self.take()?;
            let bytes = frame.bytes().to_vec();
            self.cache.free(frame);
            Some(bytes)
        }
    }

    #[test]
    fn it_conforms() {
        let stock = pool();
        let (port, peer) = pair(&stock.0, 64);
        conforms(port, peer, stock);
    }

    #[test]
    fn it_conforms_with_a_descriptor() {
        let stock = pool();
        let (port, peer) = waking_pair(&stock.0, 64).unwrap();
        conforms(port, peer, stock);
    }

    #[test]
    fn a_descriptor_stays_readable_while_frames_wait() {
        let (pool, mut frames) = pool();
        let (mut port, mut peer) = waking_pair(&pool, 64).unwrap();
        (0..40).for_each(|n| assert!(peer.inject(&numbered(n, 60))));
        for left in [32, 8] {
            let fd = rig::descriptor(&port);
            assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1));
            let mut batch = Batch::new();
            port.rx(&mut frames, &mut batch).unwrap();
            assert_eq!(batch.len(), left);
            batch.drain(..).for_each(|frame| frames.free(frame));
        }
        let fd = rig::descriptor(&port);
        assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO), Ok(0));
    }

    #[test]
    fn a_full_wire_leaves_frames_in_the_batch_and_bytes_with_the_peer() {
        let (pool, mut frames) = pool();
        let (mut port, mut peer) = pair(&pool, 3);
        assert_eq!((0..5).filter(|&n| peer.inject(&numbered(n, 60))).count(), 3);
        let mut batch: Batch = (0..5).map(|n| frames.from_bytes(&numbered(n, 60)).unwrap()).collect();
        assert_eq!(port.tx(&mut frames, &mut batch).unwrap(), Sent { frames: 3, bytes: 180 });
        assert_eq!(batch.len(), 2);
        assert_eq!(peer.drain().len(), 3);
        assert_eq!(port.tx(&mut frames, &mut batch).unwrap().frames, 2);
        assert_eq!(peer.drain()[1].bytes, numbered(4, 60));
    }

    #[test]
    fn offloads_cross_in_both_directions() {
        let (pool, mut frames) = pool();
        let (mut port, mut peer) = pair(&pool, 4);
        let offload = Offload { csum: Csum::Partial { start: 34, offset: 6 }, ..Offload::NONE };
        assert!(peer.inject_offload(&numbered(0, 60), offload));
        assert_eq!(rig::receive(&mut port, &mut frames, |_| true).unwrap().offload, offload);
        assert_eq!(port.offloads(), Offloads::default());
        port.set_offloads(Offloads { csum: true, ..Offloads::default() });
        assert!(port.offloads().csum);
        rig::send(&mut port, &mut frames, &numbered(0, 60), offload);
        assert_eq!(peer.drain(), [Delivered { bytes: numbered(0, 60), offload }]);
    }

    #[test]
    fn dropping_the_peer_unplugs_the_port_and_loses_no_chunk() {
        let (pool, mut frames) = pool();
        let (mut port, mut peer) = pair(&pool, 8);
        assert!(peer.inject(&numbered(0, 60)));
        rig::send(&mut port, &mut frames, &numbered(0, 60), Offload::NONE);
        drop(peer);
        assert!(matches!(port.rx(&mut frames, &mut Batch::new()), Err(PortError::Gone(_))));
        rig::goes(&mut port, &mut frames);
        port.close(&mut frames);
        drop(frames);
        assert_eq!(pool.available(), (2048, 64));
    }

    #[test]
    fn a_port_that_sends_rings_the_bell() {
        let (pool, mut frames) = pool();
        let bell = Arc::new(eventfd().unwrap());
        let (mut one, mut peer) = ringing_pair(&pool, 4, &bell).unwrap();
        let (mut other, _peer) = ringing_pair(&pool, 4, &bell).unwrap();
        assert_eq!(bell.read(), Err(nix::Error::EAGAIN));
        rig::send(&mut one, &mut frames, &numbered(0, 60), Offload::NONE);
        assert_eq!((bell.read(), peer.drain().len()), (Ok(1), 1));
        rig::send(&mut other, &mut frames, &numbered(0, 60), Offload::NONE);
        assert_eq!(bell.read(), Ok(1));
    }

    #[test]
    fn the_ends_may_be_on_two_threads() {
        let (pool, mut frames) = pool();
        let (mut port, mut peer) = pair(&pool, 16);
        let echo = std::thread::spawn(move || {
            let mut batch = Batch::new();
            let mut echoed = 0;
            while echoed < 1000 {
                port.rx(&mut frames, &mut batch).unwrap();
                echoed += port.tx(&mut frames, &mut batch).unwrap().frames;
                std::thread::yield_now();
            }
        });
        let (mut put, mut got) = (0, 0);
        rig::wait("the echo", || {
            while put < 1000 && peer.inject(&numbered(put, 60)) {
                put += 1;
            }
            for delivered in peer.drain() {
                assert_eq!(delivered.bytes, numbered(got, 60));
                got += 1;
            }
            (got == 1000).then_some(())
        });
        echo.join().unwrap();
    }
}
