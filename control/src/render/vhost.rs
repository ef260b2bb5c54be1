//! The VM at a vhost-user port.

use super::{bytes, count};
use crate::api::report::VhostReport;

fn words(words: &[String]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(" ") }
}

/// What `sluice port show NAME` says of it.
pub(super) fn lines(v: &VhostReport) -> Vec<(&'static str, String)> {
    let guest = if v.connected { "connected" } else { "not connected" };
    let rings: Vec<String> = v.rings.iter().map(u16::to_string).collect();
    let mut lines = vec![
        ("socket", format!("{} ({})", v.socket, v.role)),
        ("vm", format!("{guest}, {} connections, {} resets", count(v.connections), count(v.resets))),
    ];
    if v.connected {
        lines.extend([
            ("features", words(&v.features)),
            ("protocol", words(&v.protocol_features)),
            ("rings", format!("{} queue pairs, entries: {}", v.pairs, words(&rings))),
            ("memory", bytes(v.memory)),
        ]);
    }
    lines.extend(v.last_error.clone().map(|error| ("last", error)));
    lines
}
