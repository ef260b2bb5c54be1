//! How a snapshot reaches the pollers: one mailbox each, one pointer swap, no lock on either side.
//!
//! The publisher swaps the new value into every mailbox; a poller looks at its mailbox once per turn (one
//! load of a line that nobody writes while nothing changes) and swaps a new value out. Either side that
//! finds the other's old value there owns and frees it. A poller that takes over says so by
//! [`Subscriber::acknowledge`], so that control knows when nobody uses the old value any more.
#![allow(unsafe_code)]

use crossbeam::utils::CachePadded;

/// What values are published in: std's, or loom's under the model checker.
pub use crate::sync::Arc;
use crate::sync::{AtomicPtr, AtomicU64, Ordering};

/// One poller's mailbox.
struct Mailbox<T> {
    /// A value published and not yet taken, as from `Arc::into_raw`; null if taken.
    mail: AtomicPtr<T>,
    /// The last generation the poller said it uses.
    seen: AtomicU64,
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        drop(take(&self.mail));
    }
}

fn take<T>(mail: &AtomicPtr<T>) -> Option<Arc<T>> {
    let raw = mail.swap(std::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: every non-null pointer in a mailbox came from `Arc::into_raw`, and the swap makes it ours alone.
    (!raw.is_null()).then(|| unsafe { Arc::from_raw(raw) })
}

/// The publishing end.
pub struct Published<T> {
    boxes: Vec<Arc<CachePadded<Mailbox<T>>>>,
}

/// One poller's end.
pub struct Subscriber<T> {
    mailbox: Arc<CachePadded<Mailbox<T>>>,
    current: Arc<T>,
}

/// A publisher and `count` subscribers, which all start with `first`.
pub fn channel<T>(first: Arc<T>, count: usize) -> (Published<T>, Vec<Subscriber<T>>) {
    let mailbox = || Mailbox { mail: AtomicPtr::new(std::ptr::null_mut()), seen: AtomicU64::new(0) };
    let boxes: Vec<_> = (0..count).map(|_| Arc::new(CachePadded::new(mailbox()))).collect();
    let subscriber = |b: &Arc<_>| Subscriber { mailbox: Arc::clone(b), current: Arc::clone(&first) };
    let subscribers = boxes.iter().map(subscriber).collect();
    (Published { boxes }, subscribers)
}

impl<T> Published<T> {
    /// Puts a value into every mailbox. A value that a poller never took is replaced.
    pub fn publish(&self, value: &Arc<T>) {
        for mailbox in &self.boxes {
            let new = Arc::into_raw(Arc::clone(value)).cast_mut();
            let old = mailbox.mail.swap(new, Ordering::AcqRel);
            if !old.is_null() {
                // SAFETY: it came from `Arc::into_raw`, and the swap made it ours alone.
                drop(unsafe { Arc::from_raw(old) });
            }
        }
    }

    /// The oldest generation that some subscriber may still use.
    pub fn oldest_in_use(&self) -> u64 {
        self.boxes.iter().map(|b| b.seen.load(Ordering::Acquire)).min().unwrap_or(u64::MAX)
    }
}

impl<T> Subscriber<T> {
    /// Takes over a newly published value. True if there was one.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        if self.mailbox.mail.load(Ordering::Relaxed).is_null() {
            return false;
        }
        match take(&self.mailbox.mail) {
            Some(new) => self.current = new,
            None => return false,
        }
        true
    }

    /// The value in use.
    #[inline]
    pub fn current(&self) -> &Arc<T> {
        &self.current
    }

    /// Is a value waiting?
    #[inline]
    pub fn has_mail(&self) -> bool {
        !self.mailbox.mail.load(Ordering::Acquire).is_null()
    }

    /// Says that nothing older than `generation` is in use by this poller.
    pub fn acknowledge(&self, generation: u64) {
        self.mailbox.seen.store(generation, Ordering::Release);
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn subscribers_see_the_newest_value_and_old_ones_are_freed() {
        let first = Arc::new(0);
        let (published, mut subscribers) = channel(Arc::clone(&first), 2);
        let second = Arc::new(1);
        published.publish(&second);
        published.publish(&Arc::new(2));
        assert_eq!(Arc::strong_count(&second), 1, "a value nobody took is dropped");
        assert!(subscribers[0].refresh());
        assert!(!subscribers[0].refresh());
        assert_eq!((**subscribers[0].current(), **subscribers[1].current()), (2, 0));
        assert_eq!(Arc::strong_count(&first), 2, "the other subscriber still uses the first");
        subscribers[0].acknowledge(2);
        assert_eq!(published.oldest_in_use(), 0);
        subscribers[1].acknowledge(2);
        assert_eq!(published.oldest_in_use(), 2);
    }
}
