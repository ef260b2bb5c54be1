//! virtio 1.2 as both sides of a ring see it: feature bits, the layout of split and packed rings, the header in front of
//! each frame. The device's side is [`crate::port::vhost`], the driver's is [`driver`].

pub mod driver;
pub mod features;
pub mod layout;

/// Bytes of `struct virtio_net_hdr` with `num_buffers` (virtio 1.2 section 5.1.6): in front of every frame for a driver
/// that has VERSION_1 or MRG_RXBUF. Without both it is [`crate::port::vnet::LEN`].
pub const NET_HEADER: usize = 12;

/// The most queue pairs of a device.
pub const PAIRS_MAX: u16 = 16;

/// The most entries of a ring (virtio 1.2 section 2.7: a power of two for split rings, up to 32,768).
pub const RING_MAX: u16 = 32_768;
