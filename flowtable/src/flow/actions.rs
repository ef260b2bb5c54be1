//! The actions of a flow, in sixteen bytes.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::action::Action;

/// What happens to a frame: most often one thing, and that is at hand.
pub(crate) enum Actions {
    One(Action),
    List(List),
}

/// An `Arc<[Action]>` in parts, packed so that it fits beside the tag of [`Actions`].
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub(crate) struct List {
    len: u32,
    first: NonNull<Action>,
}

impl List {
    fn as_ptr(self) -> *const [Action] {
        ptr::slice_from_raw_parts(self.first.as_ptr(), self.len as usize)
    }
}

impl Actions {
    /// An action that owns nothing is worth a copy; a list, or one that does, is shared.
    pub(crate) fn new(list: Arc<[Action]>) -> Self {
        match &*list {
            [action] if !matches!(action, Action::Encap(_)) => Actions::One(action.clone()),
            _ => {
                let len = u32::try_from(list.len()).expect("fewer ports than 2^32");
                let first = Arc::into_raw(list).cast::<Action>().cast_mut();
                Actions::List(List { len, first: NonNull::new(first).expect("an Arc is never null") })
            }
        }
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[Action] {
        match self {
            Actions::One(action) => std::slice::from_ref(action),
            // SAFETY: an `Arc<[Action]>` that is ours.
            Actions::List(list) => unsafe { &*list.as_ptr() },
        }
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        if let Actions::List(list) = self {
            // SAFETY: an `Arc<[Action]>` that is ours, and dropped once.
            drop(unsafe { Arc::from_raw(list.as_ptr()) });
        }
    }
}
