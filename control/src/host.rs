//! The switch on the underlay: which addresses are ours there, who is next to us, and how far our packets may reach.
//!
//! An *endpoint* is a port with addresses. Where the configuration gives them (`type = "vtep"`) the switch is the host:
//! [`stack`] answers for it, in a thread of its own ([`endpoints`]), so that nothing the control socket does delays a
//! reply. Where the kernel has them (an `internal` port) the kernel is the host, and [`kernel`] listens to what it knows.
//! [`map`] makes one [`Underlay`](dataplane::underlay::Underlay) of both, which the data plane goes by.

pub mod endpoints;
pub mod kernel;
pub mod map;
pub mod neighbours;
pub mod path;
pub mod stack;
pub mod wire;

use std::net::IpAddr;

/// Addresses that mean another station on every link are no endpoint's.
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
