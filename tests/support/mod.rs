//! What the tests in network namespaces stand on.

pub mod daemon;
pub mod dpdk;
pub mod fabric;
pub mod frames;
pub mod host;
pub mod lab;
pub mod namespace;
pub mod ovs;
pub mod peers;
pub mod pulse;
pub mod traffic;
pub mod vm;
pub mod wire;
