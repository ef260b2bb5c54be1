//! The ports of virtual machines, with the real daemon and real machines: vhost-user ports of QEMU's and DPDK's, and TAP
//! devices that QEMU makes.
//!
//! Run by root. Conditions are awaited, not slept for; limits are generous, for two loaded cores that emulate processors.

#[allow(dead_code)] // netns.rs uses the rest
mod support;

#[path = "vhost/crowd.rs"]
mod crowd;
#[path = "vhost/driven.rs"]
mod driven;
#[path = "vhost/guests.rs"]
mod guests;
#[path = "vhost/hostile.rs"]
mod hostile;
#[path = "vhost/kills.rs"]
mod kills;
#[path = "vhost/life.rs"]
mod life;
#[path = "vhost/motion.rs"]
mod motion;
#[path = "vhost/pktgen.rs"]
mod pktgen;
#[path = "vhost/rig.rs"]
mod rig;
#[path = "vhost/rings.rs"]
mod rings;
#[path = "vhost/rude.rs"]
mod rude;
#[path = "vhost/taps.rs"]
mod taps;
#[path = "vhost/testpmd.rs"]
mod testpmd;
