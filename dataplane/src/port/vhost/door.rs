//! A door between a poller, which steps in for each batch, and a session, which now and then wants the room for itself.
//!
//! The poller must not wait, take a lock or pay for a fence per batch; the session may. So the poller announces itself by a
//! plain store and looks whether the door is open by a plain load, and the session, after closing, has the kernel put a
//! fence into every running thread (`membarrier(2)`, `PRIVATE_EXPEDITED`) before it looks who is inside: Dekker's algorithm
//! with the cost on the side that is rare. Without that system call (seccomp) the poller pays a fence.
//!
//! To close costs one such call, some microseconds, and then what the poller's batch still takes.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};

use crossbeam::utils::CachePadded;

#[cfg(not(feature = "loom"))]
use crate::sync::CellExt;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, UnsafeCell, fence, yield_now};

/// A room for one at a time.
#[derive(Debug)]
pub struct Door<T> {
    closed: AtomicBool,
    barrier: Barrier,
    /// Is there a [`Visitor`]?
    has_visitor: AtomicBool,
    /// One closer at a time.
    closers: Mutex<()>,
    /// Is the visitor inside? A line of its own, since it is written for each batch.
    inside: CachePadded<AtomicBool>,
    content: UnsafeCell<T>,
}

// SAFETY: the content is touched by the visitor, of whom there is one, while it is inside, and by a closer, of whom the
// mutex lets in one, after it saw that the visitor is not; that these exclude each other is what the door is for.
unsafe impl<T: Send> Sync for Door<T> {}

impl<T: Send> Door<T> {
    /// An open door.
    pub fn new(content: T) -> Arc<Door<T>> {
        Door::with_barrier(content, Barrier::best())
    }

    fn with_barrier(content: T, barrier: Barrier) -> Arc<Door<T>> {
        Arc::new(Door {
            closed: AtomicBool::new(false),
            barrier,
            has_visitor: AtomicBool::new(false),
            closers: Mutex::new(()),
            inside: CachePadded::new(AtomicBool::new(false)),
            content: UnsafeCell::new(content),
        })
    }

    /// Who may step in. `None` while another is alive.
    pub fn visitor(self: &Arc<Self>) -> Option<Visitor<T>> {
        let is_first = !self.has_visitor.swap(true, Ordering::AcqRel);
        is_first.then(|| Visitor { door: Arc::clone(self) })
    }

    /// Closes it, and waits until the visitor and other closers are out.
    pub fn close(&self) -> Closed<'_, T> {
        let alone = self.closers.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Relaxed);
        self.barrier.rare();
        // Pairs with the release of who left: what was done inside has happened before.
        for turn in 0u32.. {
            if !self.inside.load(Ordering::Acquire) {
                break;
            }
            pause(turn);
        }
        Closed { door: self, keep_shut: KeepShut::No, _alone: alone, _content: PhantomData }
    }
}

/// The one who steps in and out.
#[derive(Debug)]
pub struct Visitor<T> {
    door: Arc<Door<T>>,
}

impl<T> Visitor<T> {
    /// Steps in, unless the door is closed.
    #[inline]
    pub fn enter(&mut self) -> Option<Inside<'_, T>> {
        let door = &*self.door;
        door.inside.store(true, Ordering::Relaxed);
        door.barrier.frequent();
        // Pairs with the release of who opened: what was changed meanwhile has happened before.
        if door.closed.load(Ordering::Acquire) {
            door.inside.store(false, Ordering::Release);
            return None;
        }
        Some(Inside { door, _content: PhantomData })
    }
}

impl<T> Drop for Visitor<T> {
    fn drop(&mut self) {
        // It is outside, even if its `Inside` was forgotten rather than dropped.
        self.door.inside.store(false, Ordering::Release);
        self.door.has_visitor.store(false, Ordering::Release);
    }
}

/// The visitor is inside. Leaves when dropped.
#[derive(Debug)]
pub struct Inside<'a, T> {
    door: &'a Door<T>,
    /// To share this is to share the content.
    _content: PhantomData<&'a mut T>,
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the visitor is inside, so no closer is, and whoever has the visitor has it exclusively.
        self.door.content.with(|content| unsafe { &*content })
    }
}

impl<T> DerefMut for Inside<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        self.door.content.with_mut(|content| unsafe { &mut *content })
    }
}

impl<T> Drop for Inside<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.door.inside.store(false, Ordering::Release);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeepShut {
    Yes,
    No,
}

/// The door is closed and nobody else inside. Opens when dropped.
#[derive(Debug)]
pub struct Closed<'a, T> {
    door: &'a Door<T>,
    keep_shut: KeepShut,
    _alone: MutexGuard<'a, ()>,
    /// To share this is to share the content.
    _content: PhantomData<&'a mut T>,
}

impl<T> Closed<'_, T> {
    /// Leaves it closed: until another closer opens it, the visitor cannot enter.
    pub fn keep_shut(mut self) {
        self.keep_shut = KeepShut::Yes;
    }
}

impl<T> Deref for Closed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the door is closed and the visitor out, and the mutex keeps other closers out.
        self.door.content.with(|content| unsafe { &*content })
    }
}

impl<T> DerefMut for Closed<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        self.door.content.with_mut(|content| unsafe { &mut *content })
    }
}

impl<T> Drop for Closed<'_, T> {
    fn drop(&mut self) {
        // The mutex is released after this.
        self.door.closed.store(self.keep_shut == KeepShut::Yes, Ordering::Release);
    }
}

/// Waits a little: first as long as another thread needs to run, then, since the visitor may have lost its core, longer.
fn pause(turn: u32) {
    #[cfg(not(feature = "loom"))]
    if turn >= 64 {
        return std::thread::sleep(std::time::Duration::from_micros(50));
    }
    let _ = turn;
    yield_now();
}

/// What stands on both sides between the store and the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Barrier {
    /// The rare side has the kernel put a fence into all threads, the frequent side only keeps the compiler from reordering.
    #[cfg(not(feature = "loom"))]
    Asymmetric,
    /// Both sides pay a fence.
    Fence,
}

#[cfg(feature = "loom")]
impl Barrier {
    /// The model knows no system calls.
    fn best() -> Barrier {
        Barrier::Fence
    }

    fn frequent(self) {
        fence(Ordering::SeqCst);
    }

    fn rare(self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(not(feature = "loom"))]
impl Barrier {
    /// What the kernel allows.
    fn best() -> Barrier {
        static BEST: std::sync::OnceLock<Barrier> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| {
            let allowed = membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
                && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
            if allowed { Barrier::Asymmetric } else { Barrier::Fence }
        })
    }

    #[inline]
    fn frequent(self) {
        match self {
            Barrier::Asymmetric => std::sync::atomic::compiler_fence(Ordering::SeqCst),
            Barrier::Fence => fence(Ordering::SeqCst),
        }
    }

    fn rare(self) {
        fence(Ordering::SeqCst);
        if self == Barrier::Asymmetric {
            // It worked before; since then it can only lack memory for a moment. Without it nobody may go on.
            while !membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
}

/// True if the kernel did it.
#[cfg(not(feature = "loom"))]
fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: `membarrier` touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests;
