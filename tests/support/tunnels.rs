//! Tunnels for tests and benches: their outer headers, and inner frames in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::field::MacAddr;
use encap::template::{Outer, Template};
use encap::tunnel::TunnelKind;

/// This end and the other.
const ENDS4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
const ENDS6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)];

/// A tunnel over IPv4: default port, untagged, no checksum, with an id that any kind has room for.
pub fn over_ipv4(kind: TunnelKind) -> Outer {
    Outer {
        kind,
        id: Some(0x12_3456),
        eth_src: MacAddr([2, 0, 0, 0, 0xaa, 1]),
        eth_dst: MacAddr([2, 0, 0, 0, 0xaa, 2]),
        tags: Default::default(),
        src: IpAddr::V4(ENDS4[0]),
        dst: IpAddr::V4(ENDS4[1]),
        tos: 0xb9, // expedited forwarding, ECT(1)
        ttl: 63,
        df: true,
        dst_port: kind.default_port().unwrap_or(0),
        csum: false,
    }
}

/// The same over IPv6.
pub fn over_ipv6(kind: TunnelKind) -> Outer {
    Outer { src: IpAddr::V6(ENDS6[0]), dst: IpAddr::V6(ENDS6[1]), ..over_ipv4(kind) }
}

/// The inner frame behind these outer headers.
pub fn encapsulated(outer: &Outer, inner: &[u8], entropy: u16) -> Vec<u8> {
    let template = Template::new(outer).expect("headers that can be");
    let mut frame = [&vec![0; template.len()], inner].concat();
    template.write(&mut frame, entropy).expect("a frame that fits");
    frame
}
