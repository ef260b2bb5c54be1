//! Feature bits of virtio (1.2 section 6) and of its network device (section 5.1.3).

use std::fmt;
use std::ops::{BitAnd, BitOr};

/// A set of feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Features(pub u64);

macro_rules! features {
    ($($name:ident = $bit:literal, $text:literal;)*) => {
        impl Features {
            $(#[doc = $text] pub const $name: Features = Features(1 << $bit);)*
            /// Every bit that has a name here, with that name.
            const NAMES: &'static [(Features, &'static str)] = &[$((Features::$name, stringify!($name))),*];
        }
    };
}

features! {
    CSUM = 0, "The device completes checksums.";
    GUEST_CSUM = 1, "The driver completes checksums.";
    MTU = 3, "The device says its MTU.";
    MAC = 5, "The device has an address.";
    GUEST_TSO4 = 7, "The driver takes TSO over IPv4.";
    GUEST_TSO6 = 8, "The driver takes TSO over IPv6.";
    GUEST_ECN = 9, "The driver takes TSO with ECN.";
    HOST_TSO4 = 11, "The device takes TSO over IPv4.";
    HOST_TSO6 = 12, "The device takes TSO over IPv6.";
    HOST_ECN = 13, "The device takes TSO with ECN.";
    MRG_RXBUF = 15, "A received frame may lie in several chains.";
    STATUS = 16, "The device says whether its link is up.";
    CTRL_VQ = 17, "There is a control queue.";
    CTRL_RX = 18, "The control queue sets receive modes.";
    CTRL_VLAN = 19, "The control queue filters VLANs.";
    GUEST_ANNOUNCE = 21, "The driver announces itself when told, as after a migration.";
    MQ = 22, "There are several queue pairs.";
    CTRL_MAC_ADDR = 23, "The control queue sets the address.";
    NOTIFY_ON_EMPTY = 24, "Legacy: the device calls when it ran out of chains.";
    LOG_ALL = 26, "vhost: writes are logged.";
    ANY_LAYOUT = 27, "Legacy: the header need not be a descriptor of its own.";
    INDIRECT_DESC = 28, "A descriptor may refer to a table of descriptors.";
    EVENT_IDX = 29, "Both sides say at which entry they want to be told.";
    PROTOCOL_FEATURES = 30, "vhost-user: there are protocol features.";
    VERSION_1 = 32, "Not a legacy device.";
    RING_PACKED = 34, "Packed rings.";
    IN_ORDER = 35, "Chains are used in the order in which they were made available.";
    GUEST_USO4 = 54, "The driver takes UDP segmentation over IPv4.";
    GUEST_USO6 = 55, "The driver takes UDP segmentation over IPv6.";
    HOST_USO = 56, "The device takes UDP segmentation.";
}

impl Features {
    /// None.
    pub const NONE: Features = Features(0);

    /// Are all of `wanted` in the set?
    #[inline]
    pub fn has(self, wanted: Features) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// The set without these.
    pub fn without(self, unwanted: Features) -> Features {
        Features(self.0 & !unwanted.0)
    }
}

impl BitOr for Features {
    type Output = Features;

    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Features;

    fn bitand(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

/// The names of the bits, those without a name as numbers: `CSUM EVENT_IDX bit63`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |bit: u32| {
            let known = Self::NAMES.iter().find(|(feature, _)| feature.0 == 1 << bit);
            known.map_or_else(|| format!("bit{bit}"), |(_, name)| (*name).to_owned())
        };
        let names: Vec<String> = (0..64).filter(|bit| self.0 >> bit & 1 == 1).map(name).collect();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_printed_by_name() {
        let set = Features::CSUM | Features::RING_PACKED | Features(1 << 63);
        assert_eq!(set.to_string(), "CSUM RING_PACKED bit63");
        assert!(set.has(Features::CSUM) && !set.has(Features::CSUM | Features::MQ));
        assert_eq!(set.without(Features::CSUM) & Features::CSUM, Features::NONE);
    }
}
