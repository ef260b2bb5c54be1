//! The tunnels that carry Ethernet frames over IP.

use std::fmt;

use crate::field::IpProto;

/// What stands between the outer IP header and the inner Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TunnelKind {
    /// UDP and VXLAN (RFC 7348).
    Vxlan,
    /// GRE (RFC 2784, RFC 2890) with Ethernet in it: NVGRE's form (RFC 7637) without its meaning of the key.
    Gre,
    /// UDP and Geneve (RFC 8926).
    Geneve,
}

impl TunnelKind {
    /// All there are.
    pub const ALL: [TunnelKind; 3] = [TunnelKind::Vxlan, TunnelKind::Gre, TunnelKind::Geneve];

    /// The UDP port that IANA assigned; none for GRE, which has no ports.
    pub const fn default_port(self) -> Option<u16> {
        match self {
            TunnelKind::Vxlan => Some(4789),
            TunnelKind::Gre => None,
            TunnelKind::Geneve => Some(6081),
        }
    }

    /// What the outer IP header says it carries.
    pub const fn proto(self) -> IpProto {
        match self {
            TunnelKind::Gre => IpProto::GRE,
            TunnelKind::Vxlan | TunnelKind::Geneve => IpProto::UDP,
        }
    }
}

impl fmt::Display for TunnelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TunnelKind::Vxlan => "vxlan",
            TunnelKind::Gre => "gre",
            TunnelKind::Geneve => "geneve",
        })
    }
}
