//! Intent: configuration, API, command line. Everything the outside world says to the switch passes here.

#![forbid(unsafe_code)]

pub mod api;
pub mod check;
pub mod cli;
pub mod client;
pub mod compile;
pub mod config;
pub mod daemon;
pub mod edit;
pub mod host;
pub mod links;
pub mod logging;
pub mod model;
pub mod netlink;
pub mod pktgen;
pub mod problem;
pub mod render;
mod resolve;
pub mod service;
