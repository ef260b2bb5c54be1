//! What the tests in network namespaces stand on.

pub mod daemon;
pub mod fabric;
pub mod host;
pub mod lab;
pub mod namespace;
pub mod ovs;
pub mod peers;
pub mod traffic;
pub mod vm;
pub mod wire;
