//! The outer headers of a tunnel as `tnl_push` of `ovs-appctl dpctl/dump-flows` words them, without what follows from
//! the rest: lengths, types, protocol numbers.

use std::net::IpAddr;

use encap::template::Outer;
use encap::tunnel::TunnelKind;

use super::print::tag_text;

/// Each header a group, the outermost first.
pub(super) fn header(outer: &Outer) -> String {
    let mut headers = vec![format!("eth(dst={},src={})", outer.eth_dst, outer.eth_src)];
    headers.extend(outer.tags.iter().map(|tag| format!("vlan({})", tag_text(*tag))));
    headers.push(network(outer));
    if outer.kind != TunnelKind::Gre {
        headers.push(group("udp", [Some(format!("dst={}", outer.dst_port)), csum(outer)]));
    }
    headers.push(tunnel(outer));
    format!("header({})", headers.join(","))
}

fn network(outer: &Outer) -> String {
    let Outer { src, dst, tos, ttl, df, .. } = outer;
    match dst {
        IpAddr::V4(_) => {
            let df = if *df { ",df" } else { "" };
            format!("ipv4(src={src},dst={dst},tos={tos:#x},ttl={ttl}{df})")
        }
        IpAddr::V6(_) => format!("ipv6(src={src},dst={dst},tclass={tos:#x},hlimit={ttl})"),
    }
}

fn tunnel(outer: &Outer) -> String {
    let id = |name: &str| outer.id.map(|id| format!("{name}={id:#x}"));
    match outer.kind {
        TunnelKind::Gre => group("gre", [csum(outer), id("key")]),
        TunnelKind::Vxlan | TunnelKind::Geneve => group(&outer.kind.to_string(), [id("vni"), None]),
    }
}

fn csum(outer: &Outer) -> Option<String> {
    outer.csum.then(|| "csum".to_owned())
}

fn group(name: &str, members: [Option<String>; 2]) -> String {
    format!("{name}({})", members.into_iter().flatten().collect::<Vec<_>>().join(","))
}
