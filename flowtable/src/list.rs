//! Lists that flows share, behind one pointer that is one word long: so a flow's list can be changed by a single store.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::atomic::AtomicU64;

use triomphe::ThinArc;

/// A list that does not change, and that anybody may keep a share of.
///
/// It may be of a [kind](List::kind): then it is for flows of that kind only, and no other list has to be looked at to know it. And
/// whoever finds something out about it may [mark](List::mark) it.
pub struct List<T>(pub(crate) ThinArc<Notes, T>);

/// What is known of a list.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    kind: u64,
    mark: AtomicU64,
}

impl<T> List<T> {
    /// Is it the very same list, not only an equal one?
    #[inline]
    pub fn is_same(&self, other: &List<T>) -> bool {
        self.0.as_ptr() == other.0.as_ptr()
    }

    /// For flows of what kind it is; zero if for any.
    #[inline]
    pub fn kind(&self) -> u64 {
        self.0.header.header.kind
    }

    /// A number that whoever has a share may change; zero at first. It says nothing of other memory.
    #[inline]
    pub fn mark(&self) -> &AtomicU64 {
        &self.0.header.header.mark
    }

    /// How many shares of it there are.
    pub(crate) fn shares(&self) -> usize {
        ThinArc::strong_count(&self.0)
    }

    /// Has somebody else a share of it?
    pub(crate) fn is_shared(&self) -> bool {
        self.shares() > 1
    }
}

impl<T: Clone> List<T> {
    /// A list of these, for flows of this kind only.
    pub fn of_kind(kind: u64, items: &[T]) -> List<T> {
        List(ThinArc::from_header_and_iter(Notes { kind, ..Notes::default() }, items.iter().cloned()))
    }
}

impl<T> Clone for List<T> {
    #[inline]
    fn clone(&self) -> Self {
        List(self.0.clone())
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.0.slice
    }
}

impl<T> Borrow<[T]> for List<T> {
    fn borrow(&self) -> &[T] {
        self
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        List(ThinArc::from_header_and_iter(Notes::default(), items.into_iter()))
    }
}

impl<T> From<Box<[T]>> for List<T> {
    fn from(items: Box<[T]>) -> Self {
        items.into_vec().into()
    }
}

impl<T, const N: usize> From<[T; N]> for List<T> {
    fn from(items: [T; N]) -> Self {
        List(ThinArc::from_header_and_iter(Notes::default(), items.into_iter()))
    }
}

impl<T: Clone> From<&[T]> for List<T> {
    fn from(items: &[T]) -> Self {
        List(ThinArc::from_header_and_iter(Notes::default(), items.iter().cloned()))
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || **self == **other
    }
}

impl<T: Eq> Eq for List<T> {}

impl<T: Hash> Hash for List<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<T: fmt::Debug> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
