//! What can be changed.

use flowtable::lpm::Prefix;

use crate::config::{FdbConfig, NeighConfig, RouteConfig};

/// One change of a configuration. Settings are `key=value` with the file's keys; `key=` takes the key out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new bridge.
    AddBridge {
        /// Its name.
        bridge: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A bridge goes, with its ports.
    DelBridge {
        /// Its name.
        bridge: String,
    },
    /// Settings of a bridge.
    SetBridge {
        /// Its name.
        bridge: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A new port.
    AddPort {
        /// Where.
        bridge: String,
        /// Its name.
        port: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A port goes.
    DelPort {
        /// Its name.
        port: String,
    },
    /// Settings of a port.
    SetPort {
        /// Its name.
        port: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A new segment.
    AddSegment {
        /// Where.
        bridge: String,
        /// Its name.
        segment: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// A segment goes.
    DelSegment {
        /// Its name.
        segment: String,
    },
    /// Settings of a segment.
    SetSegment {
        /// Its name.
        segment: String,
        /// `key=value`
        settings: Vec<String>,
    },
    /// New static FDB entries.
    AddFdb {
        /// Where.
        bridge: String,
        /// They.
        entries: Vec<FdbConfig>,
    },
    /// Static FDB entries go.
    DelFdb {
        /// Where.
        bridge: String,
        /// They; where they lead is not looked at.
        entries: Vec<FdbConfig>,
    },
    /// Stations whose address is known.
    AddNeigh {
        /// Where.
        bridge: String,
        /// They.
        entries: Vec<NeighConfig>,
    },
    /// Stations whose address is not known any more.
    DelNeigh {
        /// Where.
        bridge: String,
        /// They; whose the addresses are is not looked at.
        entries: Vec<NeighConfig>,
    },
    /// A new route.
    AddRoute(RouteConfig),
    /// A route goes.
    DelRoute(Prefix),
}
