//! Verbs about segments, tunnels, stations and routes, and the calls they make.

use std::io;

use clap::Subcommand;

use super::call::{Call, call, list, rows, silent};
use crate::render;

#[derive(Debug, Subcommand)]
pub(super) enum SegmentVerb {
    /// Add a segment to a bridge
    Add {
        bridge: String,
        segment: String,
        /// As in the configuration file: type=vxlan id=5001 vlan=1 vteps=192.0.2.2,192.0.2.3
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Delete a segment
    Del { segment: String },
    /// Change settings; no frame leaves by the old ones once this returns
    Set {
        segment: String,
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Show segments: what they are called in the bridge and beyond, and who is in them
    Show { bridge: Option<String> },
}

#[derive(Debug, Subcommand)]
pub(super) enum TunnelVerb {
    /// Add a tunnel port to a bridge
    Add {
        bridge: String,
        port: String,
        /// As in the configuration file: type=vxlan remote-ip=flow key=flow local-ip=192.0.2.1
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Delete a tunnel port
    Del { port: String },
    /// Change settings; `KEY=` takes one back to its default
    Set {
        port: String,
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Show tunnel ports and their traffic
    Show { port: Option<String> },
}

#[derive(Debug, Subcommand)]
pub(super) enum FdbVerb {
    /// Show entries
    Show { bridge: Option<String> },
    /// Add static entries
    Add {
        bridge: String,
        /// A MAC address; `-`: read entries from standard input, one `MAC KEY=VALUE...` a line
        mac: String,
        /// vlan=N or segment=NAME, and port=NAME or vtep=ADDRESS
        #[arg(value_name = "KEY=VALUE")]
        keys: Vec<String>,
    },
    /// Delete static entries
    Del {
        bridge: String,
        /// A MAC address; `-`: read entries from standard input
        mac: String,
        /// vlan=N or segment=NAME
        #[arg(value_name = "KEY=VALUE")]
        keys: Vec<String>,
    },
    /// Forget what was learned
    Flush { bridge: Option<String>, port: Option<String> },
}

#[derive(Debug, Subcommand)]
pub(super) enum NeighVerb {
    /// Show addresses the switch answers for, and those found in the underlay
    Show { bridge: Option<String> },
    /// Have the switch answer for an address: ARP and neighbour discovery are not flooded for it
    Add {
        bridge: String,
        /// An IP address; `-`: read entries from standard input, one `ADDRESS KEY=VALUE...` a line
        address: String,
        /// segment=NAME mac=MAC
        #[arg(value_name = "KEY=VALUE")]
        keys: Vec<String>,
    },
    /// Have it not answer any more
    Del {
        bridge: String,
        /// An IP address; `-`: read entries from standard input
        address: String,
        /// segment=NAME
        #[arg(value_name = "KEY=VALUE")]
        keys: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RouteVerb {
    /// Show the routes of the underlay
    Show,
    /// Add a route, for endpoints whose addresses are configured
    Add {
        /// Such as 198.51.100.0/24, or default
        prefix: String,
        /// via=ADDRESS, port=NAME
        #[arg(value_name = "KEY=VALUE", required = true)]
        keys: Vec<String>,
    },
    /// Delete a configured route
    Del { prefix: String },
}

pub(super) fn segment(verb: &SegmentVerb) -> Call {
    match verb {
        SegmentVerb::Add { bridge, segment, settings } => {
            call("sluice/segment/add", [bridge, segment], silent).with(settings)
        }
        SegmentVerb::Del { segment } => call("sluice/segment/del", [segment], silent),
        SegmentVerb::Set { segment, settings } => {
            call("sluice/segment/set", [segment], silent).with(settings)
        }
        SegmentVerb::Show { bridge } => list("sluice/segment/show", |v| rows(v, render::segments), bridge),
    }
}

pub(super) fn tunnel(verb: &TunnelVerb) -> Call {
    match verb {
        TunnelVerb::Add { bridge, port, settings } => {
            call("sluice/tunnel/add", [bridge, port], silent).with(settings)
        }
        TunnelVerb::Del { port } => call("sluice/tunnel/del", [port], silent),
        TunnelVerb::Set { port, settings } => call("sluice/tunnel/set", [port], silent).with(settings),
        TunnelVerb::Show { port } => list("sluice/tunnel/show", |v| rows(v, render::tunnels), port),
    }
}

pub(super) fn fdb(verb: &FdbVerb) -> Result<Call, String> {
    Ok(match verb {
        FdbVerb::Show { bridge } => list("sluice/fdb/show", |v| rows(v, render::fdb), bridge),
        FdbVerb::Add { bridge, mac, keys } => {
            call("sluice/fdb/add", [bridge], silent).with(&entries(mac, keys)?)
        }
        FdbVerb::Del { bridge, mac, keys } => {
            call("sluice/fdb/del", [bridge], silent).with(&entries(mac, keys)?)
        }
        FdbVerb::Flush { bridge, port } => {
            call("sluice/fdb/flush", [], super::call::flushed).with(bridge).with(port)
        }
    })
}

pub(super) fn neigh(verb: &NeighVerb) -> Result<Call, String> {
    Ok(match verb {
        NeighVerb::Show { bridge } => list("sluice/neigh/show", |v| rows(v, render::neighbours), bridge),
        NeighVerb::Add { bridge, address, keys } => {
            call("sluice/neigh/add", [bridge], silent).with(&entries(address, keys)?)
        }
        NeighVerb::Del { bridge, address, keys } => {
            call("sluice/neigh/del", [bridge], silent).with(&entries(address, keys)?)
        }
    })
}

pub(super) fn route(verb: &RouteVerb) -> Call {
    match verb {
        RouteVerb::Show => call("sluice/route/show", [], |v| rows(v, render::routes)),
        RouteVerb::Add { prefix, keys } => call("sluice/route/add", [prefix], silent).with(keys),
        RouteVerb::Del { prefix } => call("sluice/route/del", [prefix], silent),
    }
}

/// The entry of the command line, or those of standard input.
fn entries(what: &str, keys: &[String]) -> Result<Vec<String>, String> {
    match what {
        "-" if !keys.is_empty() => Err(format!("`-` reads whole entries; leave {} out", keys.join(" "))),
        "-" => {
            let text =
                io::read_to_string(io::stdin()).map_err(|e| format!("cannot read standard input: {e}"))?;
            words(&text)
        }
        what => Ok([what.to_owned()].into_iter().chain(keys.iter().cloned()).collect()),
    }
}

/// The words of a text of entries, one a line; `#` begins a comment.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for (line, text) in text.lines().enumerate() {
        let words = text.split('#').next().unwrap_or_default().split_whitespace();
        let (what, keys): (Vec<&str>, Vec<&str>) = words.partition(|word| !word.contains('='));
        match what[..] {
            [] if keys.is_empty() => continue,
            [what] => all.extend([what].into_iter().chain(keys).map(str::to_owned)),
            _ => return Err(format!("line {}: expected one entry, as in `WHAT KEY=VALUE...`", line + 1)),
        }
    }
    if all.is_empty() { Err("standard input has no entries".to_owned()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_one_a_line() {
        let text =
            "# stations\n02:00:00:00:00:01 vlan=1 port=a\n\n vlan=2 02:00:00:00:00:02 port=b # there\n";
        let expected = ["02:00:00:00:00:01", "vlan=1", "port=a", "02:00:00:00:00:02", "vlan=2", "port=b"];
        assert_eq!(words(text).unwrap(), expected);
        assert_eq!(words("a=1\n").unwrap_err(), "line 1: expected one entry, as in `WHAT KEY=VALUE...`");
        assert_eq!(words("\na b\n").unwrap_err(), "line 2: expected one entry, as in `WHAT KEY=VALUE...`");
        assert_eq!(words("# none\n").unwrap_err(), "standard input has no entries");
    }
}
