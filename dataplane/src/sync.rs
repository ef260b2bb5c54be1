//! The atomics of this crate's lock-free parts: std's, or loom's when they are model-checked.

#[cfg(not(feature = "loom"))]
pub use std::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Arc, Mutex, MutexGuard},
    thread::yield_now,
};

#[cfg(feature = "loom")]
pub use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Arc, Mutex, MutexGuard},
    thread::yield_now,
};

/// Access to a cell with the interface that loom checks.
#[cfg(not(feature = "loom"))]
pub trait CellExt<T> {
    /// Shared access to the content.
    fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R;
    /// Exclusive access to the content.
    fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R;
}

#[cfg(not(feature = "loom"))]
impl<T> CellExt<T> for UnsafeCell<T> {
    #[inline]
    fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.get())
    }

    #[inline]
    fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.get())
    }
}
