//! Rings as they lie in the guest's memory: split (virtio 1.2 section 2.7) and packed (section 2.8).
//!
//! All fields are little-endian, which [`crate::virtio`] takes for the machine's own order.

const _: () = assert!(cfg!(target_endian = "little"), "virtio rings are little-endian");

/// `VIRTQ_DESC_F_NEXT`: the chain goes on.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device writes it.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: it refers to a table of descriptors.
pub const INDIRECT: u16 = 4;
/// `VIRTQ_DESC_F_AVAIL` of packed rings.
pub const AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED` of packed rings.
pub const USED: u16 = 1 << 15;

/// `VIRTQ_USED_F_NO_NOTIFY`: the device asks not to be kicked.
pub const NO_NOTIFY: u16 = 1;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver asks not to be called.
pub const NO_INTERRUPT: u16 = 1;

/// `RING_EVENT_FLAGS_ENABLE`, `_DISABLE`, `_DESC` of packed rings (section 2.8.14).
pub const EVENT_ENABLE: u16 = 0;
/// See [`EVENT_ENABLE`].
pub const EVENT_DISABLE: u16 = 1;
/// See [`EVENT_ENABLE`].
pub const EVENT_DESC: u16 = 2;

/// `struct virtq_desc` of split rings and of all indirect tables of split rings.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next of the chain.
    pub next: u16,
}

/// `struct virtq_used_elem`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsedElement {
    /// The first descriptor of the chain.
    pub id: u32,
    /// Bytes the device wrote.
    pub len: u32,
}

/// `struct pvirtq_desc` of packed rings, and of their indirect tables (whose `id` and AVAIL, USED mean nothing).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackedDescriptor {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The driver's name for the chain, in its last descriptor.
    pub id: u16,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`], [`AVAIL`], [`USED`].
    pub flags: u16,
}

/// `struct pvirtq_event_suppress`: when one side wants to be told.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventSuppression {
    /// The descriptor's place, and in bit 15 the wrap counter.
    pub place: u16,
    /// [`EVENT_ENABLE`], [`EVENT_DISABLE`] or [`EVENT_DESC`].
    pub flags: u16,
}

/// Bytes of a split ring's descriptor table.
pub const fn descriptors_len(size: u16) -> usize {
    size as usize * size_of::<Descriptor>()
}

/// Bytes of a split ring's driver area: flags, idx, the ring, used_event.
pub const fn available_len(size: u16) -> usize {
    4 + 2 * size as usize + 2
}

/// Bytes of a split ring's device area: flags, idx, the ring, avail_event.
pub const fn used_len(size: u16) -> usize {
    4 + size_of::<UsedElement>() * size as usize + 2
}
