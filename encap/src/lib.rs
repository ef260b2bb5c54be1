//! Bytes: header fields, views over them, and every in-place edit a switch makes.
//!
//! No I/O, no state, no clock. All input is hostile: every parse either yields a view whose accessors
//! cannot fail, or an error that says what was wrong.

pub mod answer;
pub mod checksum;
pub mod decap;
pub mod ecn;
pub mod field;
pub mod gso;
pub mod offload;
pub mod offsets;
#[cfg(test)]
mod packets;
mod reply;
pub mod rewrite;
pub mod template;
pub mod too_big;
pub mod tunnel;
pub mod wire;
