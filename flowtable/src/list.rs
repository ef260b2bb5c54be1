//! Lists that flows share, behind one pointer that is one word long: so a flow's list can be changed by a single store.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use triomphe::ThinArc;

/// A list that does not change, and that anybody may keep a share of.
pub struct List<T>(pub(crate) ThinArc<(), T>);

impl<T> List<T> {
    /// Is it the very same list, not only an equal one?
    #[inline]
    pub fn is_same(&self, other: &List<T>) -> bool {
        self.0.as_ptr() == other.0.as_ptr()
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
        List(ThinArc::from_header_and_iter((), items.into_iter()))
    }
}

impl<T> From<Box<[T]>> for List<T> {
    fn from(items: Box<[T]>) -> Self {
        items.into_vec().into()
    }
}

impl<T, const N: usize> From<[T; N]> for List<T> {
    fn from(items: [T; N]) -> Self {
        List(ThinArc::from_header_and_iter((), items.into_iter()))
    }
}

impl<T: Clone> From<&[T]> for List<T> {
    fn from(items: &[T]) -> Self {
        List(ThinArc::from_header_and_iter((), items.iter().cloned()))
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
