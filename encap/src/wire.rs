//! Views over the messages that etherparse has no type for, or not the one a switch wants.

pub mod geneve;
pub mod gre;
pub mod igmp;
pub mod membership;
pub mod mld;
pub mod vxlan;
