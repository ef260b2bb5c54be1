//! What of a flow can change while others read it: what it does, and what that rests on.
//!
//! A reader takes it for what it is only if the flow is of the same generation before and after; who amends it makes it
//! first of none, and then of the newer one (`Flow::amend`). So nobody follows by one generation what was decided by another, and
//! nobody waits. What a flow did before is one pointer to a list, which the epoch keeps until nobody can be reading it.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ops::Deref;

use triomphe::ThinArc;

use crate::action::Action;
use crate::grounds::Grounds;
use crate::list::List;
use crate::sync::{AtomicPtr, AtomicU64, Ordering};

/// What a flow does from now on, and what that rests on.
#[derive(Debug, Clone)]
pub struct Amendment {
    /// [`Decision::actions`](super::Decision::actions).
    pub actions: List<Action>,
    /// [`Decision::depends`](super::Decision::depends).
    pub depends: u64,
    /// [`Decision::rests_on`](super::Decision::rests_on).
    pub rests_on: Grounds,
}

/// What a flow does: a share of a list.
pub(super) struct Course(AtomicPtr<c_void>);

impl Course {
    pub(super) fn new(actions: List<Action>) -> Self {
        Course(AtomicPtr::new(actions.0.into_raw().cast_mut()))
    }

    /// The list; its share stays the course's.
    ///
    /// # Safety
    /// Nobody exchanges it, or it is kept after that, for as long as this is used.
    #[inline]
    unsafe fn list(&self) -> ManuallyDrop<List<Action>> {
        let raw = self.0.load(Ordering::Acquire);
        // SAFETY: what is stored comes from `into_raw`, and this share is not dropped.
        ManuallyDrop::new(List(unsafe { ThinArc::from_raw(raw) }))
    }

    /// What is to be done.
    ///
    /// # Safety
    /// As long as the result lives, the list that is exchanged for another is kept.
    #[inline]
    pub(super) unsafe fn actions<'r>(&self) -> &'r [Action] {
        // SAFETY: the caller's promise, by which the list is not freed for that long.
        unsafe { &*std::ptr::from_ref(self.list().deref().deref()) }
    }

    /// The list's kind.
    ///
    /// # Safety
    /// As for [`Course::actions`], for as long as this takes.
    #[inline]
    pub(super) unsafe fn kind(&self) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { self.list() }.kind()
    }

    /// A share of the list.
    ///
    /// # Safety
    /// As for [`Course::actions`], for as long as this takes.
    pub(super) unsafe fn share(&self) -> List<Action> {
        // SAFETY: the caller's promise.
        unsafe { self.list() }.deref().clone()
    }

    /// Puts another list in the place of this one, which goes to the caller.
    ///
    /// # Safety
    /// Nobody else exchanges it meanwhile, and the caller keeps what he gets until nobody can be reading it.
    pub(super) unsafe fn exchange(&self, actions: List<Action>) -> List<Action> {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(actions.0.into_raw().cast_mut(), Ordering::Release);
        // SAFETY: it comes from `into_raw`, and its link is gone.
        List(unsafe { ThinArc::from_raw(before) })
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        // SAFETY: it comes from `into_raw`, and the link goes with us.
        drop(List::<Action>(unsafe { ThinArc::from_raw(self.0.load(Ordering::Relaxed)) }));
    }
}

/// What a flow rests on.
pub(super) struct Notes {
    depends: AtomicU64,
    grounds: [AtomicU64; 2],
}

impl Notes {
    pub(super) fn new(depends: u64, rests_on: Grounds) -> Self {
        Notes { depends: AtomicU64::new(depends), grounds: rests_on.to_words().map(AtomicU64::new) }
    }

    pub(super) fn set(&self, depends: u64, rests_on: Grounds) {
        self.depends.store(depends, Ordering::Relaxed);
        let words = self.grounds.iter().zip(rests_on.to_words());
        words.for_each(|(ground, word)| ground.store(word, Ordering::Relaxed));
    }

    #[inline]
    pub(super) fn depends(&self) -> u64 {
        self.depends.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn rests_on(&self) -> Grounds {
        Grounds::from_words(self.grounds.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }
}
