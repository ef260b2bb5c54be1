//! The whole switch in memory, in virtual time: frames in, and what comes out where, byte by byte.
//!
//! What is right, ovs-vswitchd.conf.db(5), IEEE 802.1Q and RFC 4541 say. A scenario is played with caches on and
//! with caches off, and must leave the same frames and the same counters behind; then every frame must be
//! accounted for ([`rack::both_ways`]).

#[path = "support/racks.rs"]
mod fabric;
#[path = "support/frames.rs"]
mod frames;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/live.rs"]
mod live;
#[path = "support/ovs.rs"]
mod ovs;
#[path = "support/rack.rs"]
mod rack;

#[path = "switch/cache.rs"]
mod cache;
#[path = "switch/change.rs"]
mod change;
#[path = "switch/guests.rs"]
mod guests;
#[path = "switch/hostile.rs"]
mod hostile;
#[path = "switch/learning.rs"]
mod learning;
#[path = "switch/offload.rs"]
mod offload;
#[path = "switch/overlay/mod.rs"]
mod overlay;
#[path = "switch/patch.rs"]
mod patch;
#[path = "switch/peer.rs"]
mod peer;
#[path = "switch/pollers.rs"]
mod pollers;
#[path = "switch/ports.rs"]
mod ports;
#[path = "switch/queues.rs"]
mod queues;
#[path = "switch/snooping.rs"]
mod snooping;
#[path = "switch/vhost/mod.rs"]
mod vhost;
#[path = "switch/vlans.rs"]
mod vlans;

/// Three ports that carry everything.
const THREE: &str = r#"
    [[bridge]]
    name = "br0"
    port = [{ name = "a" }, { name = "b" }, { name = "c" }]
"#;
