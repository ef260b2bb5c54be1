//! The overlay: tenants' segments over several hypervisors, in memory.
//!
//! Whole hypervisors where it matters that both ends agree ([`fabric`](crate::fabric)), one and hand-made outer frames
//! where it matters what stands on the wire ([`outer`]).

mod arrive;
pub mod big;
mod change;
mod headers;
mod many;
mod neighbours;
pub mod outer;
mod pollers;
mod reach;

use std::net::IpAddr;

use encap::field::MacAddr;

/// The flow-based tunnel ports every hypervisor here has.
pub const TUNNELS: &str = r#"
    { name = "vx", type = "vxlan", remote-ip = "flow", key = "flow" },
    { name = "gre", type = "gre", remote-ip = "flow", key = "flow" },
    { name = "gnv", type = "geneve", remote-ip = "flow", key = "flow" },
"#;

/// Hypervisor `number`: an uplink `eth1` and our address `vtepN` in one bridge, tenants in the other.
pub fn node(number: u8, segments: &str, ports: &str) -> String {
    node_over("", number, segments, &format!("{TUNNELS}{ports}"))
}

/// The same; the address has these `settings` as a port, and tunnel ports are among `ports`.
pub fn node_over(settings: &str, number: u8, segments: &str, ports: &str) -> String {
    let addresses = format!("'{}/24', '{}/64'", v4(number), v6(number));
    let endpoint =
        format!("type = 'vtep', mac = '{}', address = [{addresses}]{settings}", endpoint_mac(number));
    format!(
        "bridge = [
            {{ name = 'br-phy', port = [{{ name = 'eth1' }}, {{ name = 'vtep{number}', {endpoint} }}] }},
            {{ name = 'br-int', segment = [{segments}], port = [{ports}] }},
        ]"
    )
}

/// The addresses of hypervisor `number` (RFC 5737, RFC 3849).
pub fn v4(number: u8) -> IpAddr {
    [192, 0, 2, number].into()
}

pub fn v6(number: u8) -> IpAddr {
    [0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()].into()
}

pub fn endpoint_mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0xfe, number])
}
