//! Motion: frames, ports, pollers, translation. The only crate with threads and I/O on the data path.

pub mod batch;
mod budget;
pub mod execute;
pub mod frame;
pub mod handoff;
mod inner;
mod learn;
mod offload;
pub mod poller;
pub mod port;
pub mod publish;
mod revalidate;
pub mod run;
pub mod segment;
pub mod shared;
pub mod snapshot;
pub mod stats;
pub mod switch;
mod sync;
pub mod tables;
pub mod trace;
pub mod translate;
pub mod tunnel;
pub mod underlay;
mod upcall;
mod waker;
pub mod wires;
