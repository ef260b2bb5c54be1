//! The real daemon on the real kernel: every test in namespaces of its own, which vanish with it.
//!
//! Run by root. Conditions are awaited, not slept for; limits are generous, for two loaded cores.

#[allow(dead_code)] // vhost.rs uses the rest
mod support;

#[path = "netns/control.rs"]
mod control;
#[path = "netns/life.rs"]
mod life;
#[path = "netns/overlay/mod.rs"]
mod overlay;
#[path = "netns/pktgen.rs"]
mod pktgen;
#[path = "netns/pollers.rs"]
mod pollers;
#[path = "netns/ports.rs"]
mod ports;
#[path = "netns/reload.rs"]
mod reload;
#[path = "netns/rig.rs"]
mod rig;
#[path = "netns/scale.rs"]
mod scale;
#[path = "netns/underlay.rs"]
mod underlay;
#[path = "netns/vlans.rs"]
mod vlans;
#[path = "netns/wire.rs"]
mod wire;
