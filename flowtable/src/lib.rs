//! Flows: keys, masks, caches, learned state. No I/O, no clock: time is an argument.

pub mod action;
mod aged;
mod blocks;
pub mod epoch;
pub mod exact;
pub mod extract;
pub mod fdb;
pub mod field;
pub mod flow;
pub mod grounds;
pub mod id;
pub mod intern;
pub mod key;
pub mod keys;
pub mod list;
pub mod lpm;
pub mod mask;
pub mod mcast;
pub mod megaflow;
pub mod places;
mod sync;
pub mod text;
pub mod time;
pub mod vteps;
mod wide;

pub use blocks::prefetch;
