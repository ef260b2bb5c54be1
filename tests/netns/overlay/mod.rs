//! The overlay: tenants across hypervisors, ours and those of others.

mod changes;
mod control;
mod guest;
mod hostile;
mod mesh;
mod open_vswitch;
mod sizes;
mod vxlan_device;
