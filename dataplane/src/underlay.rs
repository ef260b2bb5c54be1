//! The network under the tunnels: our own addresses, and where an outer frame must go next.
//!
//! Control keeps it (from the configuration, or from the kernel where the addresses live there) and publishes it with
//! the tables; nothing here asks anybody.

use std::collections::HashMap;
use std::net::IpAddr;

use encap::field::MacAddr;
use flowtable::id::PortId;
use flowtable::lpm::Lpm;

/// A port with addresses of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The port's own MAC address.
    pub mac: MacAddr,
    /// The first of each family is the source where the route names none.
    pub addresses: Vec<IpAddr>,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The endpoint it leaves by.
    pub endpoint: PortId,
    /// The next hop; `None`: the destination itself.
    pub via: Option<IpAddr>,
    /// The address to send from, if the route has a wish.
    pub source: Option<IpAddr>,
}

/// A destination's next hop, resolved as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The endpoint to leave by.
    pub endpoint: PortId,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The address to send from.
    pub source: IpAddr,
    /// Who takes the frame next.
    pub address: IpAddr,
    /// Its MAC address, once known.
    pub neighbour: Option<MacAddr>,
    /// The longest IP packet on the path, if it was told. Bytes.
    pub path_mtu: Option<u16>,
}

/// All that is known of the underlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Ports with addresses of ours.
    pub endpoints: HashMap<PortId, Endpoint>,
    /// Where to.
    pub routes: Lpm<Route>,
    /// Who was found on the wire behind an endpoint.
    pub neighbours: HashMap<(PortId, IpAddr), MacAddr>,
    /// Longest packets to destinations whose path carries less than the first hop (RFC 1191, RFC 8201). Bytes.
    pub path_mtus: HashMap<IpAddr, u16>,
}

impl Underlay {
    /// The endpoint with this address.
    pub fn owner(&self, address: IpAddr) -> Option<PortId> {
        self.endpoints.iter().find(|(_, e)| e.addresses.contains(&address)).map(|(port, _)| *port)
    }

    /// The way to a destination, from `local` if a tunnel wishes so. `None` without a route.
    pub fn hop(&self, remote: IpAddr, local: Option<IpAddr>) -> Option<Hop> {
        let route = self.routes.lookup(remote)?;
        let endpoint = self.endpoints.get(&route.endpoint)?;
        let same_family = |a: &&IpAddr| a.is_ipv4() == remote.is_ipv4();
        let first = || endpoint.addresses.iter().find(same_family).copied();
        let source = local.or(route.source).or_else(first).filter(|source| same_family(&source))?;
        let address = route.via.unwrap_or(remote);
        Some(Hop {
            endpoint: route.endpoint,
            mac: endpoint.mac,
            source,
            address,
            neighbour: self.neighbours.get(&(route.endpoint, address)).copied(),
            path_mtu: self.path_mtus.get(&remote).copied(),
        })
    }
}
