//! What the tests in network namespaces stand on.

pub mod daemon;
pub mod host;
pub mod lab;
pub mod namespace;
pub mod traffic;
pub mod wire;
