//! What a device offers, and what it says of itself (virtio 1.2 section 5.1.3 and 5.1.4, vhost-user "Protocol features").

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::virtio::features::Features;

/// The features of virtio and of its network device.
///
/// QEMU lets its own properties of the device (`csum=off`, `mq=on`) and this set decide, of the bits that a backend has a
/// say in (`user_feature_bits` of its `net/vhost-user.c`); the control queue, the address and the link's state it does
/// itself. DPDK's virtio-user does likewise, but takes nothing that is not offered here. So CTRL_VQ and CTRL_RX are offered,
/// as DPDK's own backend does, although we never see that queue; CTRL_VLAN and CTRL_MAC_ADDR are not, since they promise
/// that we filter frames by what the guest says there. UFO (deprecated) and GSO (superseded) are not either.
pub(super) const FEATURES: Features = Features(
    Features::VERSION_1.0
        | Features::MRG_RXBUF.0
        | Features::EVENT_IDX.0
        | Features::INDIRECT_DESC.0
        | Features::ANY_LAYOUT.0
        | Features::CSUM.0
        | Features::GUEST_CSUM.0
        | Features::HOST_TSO4.0
        | Features::HOST_TSO6.0
        | Features::HOST_ECN.0
        | Features::HOST_USO.0
        | Features::GUEST_TSO4.0
        | Features::GUEST_TSO6.0
        | Features::GUEST_ECN.0
        | Features::GUEST_USO4.0
        | Features::GUEST_USO6.0
        | Features::CTRL_VQ.0
        | Features::CTRL_RX.0
        | Features::GUEST_ANNOUNCE.0
        | Features::MQ.0
        | Features::STATUS.0
        | Features::MTU.0
        | Features::RING_PACKED.0
        | Features::IN_ORDER.0
        | Features::LOG_ALL.0
        | Features::PROTOCOL_FEATURES.0,
);

/// The features of the protocol.
///
/// CONFIG is asked for by few network frontends; QEMU warns that it does not use it. BACKEND_REQ is taken for the frontends
/// that insist on it: the one message that a network device could send there, CONFIG_CHANGE, would tell of another MTU,
/// which a port does not get while it lives, and QEMU has no use for it in a network device.
pub(super) const PROTOCOL: Protocol = Protocol::REPLY_ACK
    .union(Protocol::MQ)
    .union(Protocol::CONFIG)
    .union(Protocol::MTU)
    .union(Protocol::RARP)
    .union(Protocol::LOG_SHMFD)
    .union(Protocol::INFLIGHT_SHMFD)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::RESET_DEVICE);

/// Bytes of `struct virtio_net_config` up to the MTU.
const CONFIG_LEN: usize = 12;

/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;

/// `len` bytes at `offset` of the configuration space: no address (MAC is not offered), link up, pairs, MTU. What is behind
/// that is zero.
pub(super) fn config(offset: u32, len: u32, pairs: u16, mtu: u16) -> Vec<u8> {
    let mut space = [0; CONFIG_LEN];
    space[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
    space[8..10].copy_from_slice(&pairs.to_le_bytes());
    space[10..12].copy_from_slice(&mtu.to_le_bytes());
    let at = |place: u32| space.get(place as usize).copied().unwrap_or(0);
    (offset..offset.saturating_add(len)).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_says_pairs_and_mtu() {
        assert_eq!(config(0, 14, 4, 1500), [0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0xdc, 5, 0, 0]);
        assert_eq!(config(10, 2, 4, 9000), 9000u16.to_le_bytes());
        assert_eq!(config(u32::MAX - 1, 2, 1, 1), [0]);
    }

    #[test]
    fn what_means_work_for_us_that_we_do_not_do_is_not_offered() {
        let filters = Features::CTRL_VLAN | Features::CTRL_MAC_ADDR | Features::MAC;
        assert_eq!(FEATURES & filters, Features::NONE);
    }
}
