//! Work on a frame that its sender left to the network card, as virtio-net describes it
//! (virtio 1.2 section 5.1.6.2, `struct virtio_net_hdr`).

/// The checksum of the innermost transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Csum {
    /// Nothing is left to do: what stands in the frame is what goes on the wire.
    #[default]
    None,
    /// The checksum field holds the sum of the pseudo header only. To complete it, sum from `start` to the
    /// end of the frame and store the complement at `start + offset`.
    Partial {
        /// Bytes from the start of the frame to where the sum begins (the transport header).
        start: u16,
        /// Bytes from `start` to the 16-bit checksum field.
        offset: u16,
    },
}

/// The frame stands for several: how to cut it. Sizes are payload bytes per segment, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gso {
    /// One frame.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4 {
        /// Payload bytes per segment.
        mss: u16,
    },
    /// TCP over IPv6.
    Tcp6 {
        /// Payload bytes per segment.
        mss: u16,
    },
    /// UDP over either (UDP_SEGMENT, virtio `VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp {
        /// Payload bytes per datagram.
        size: u16,
    },
}

/// All that is left to do on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The checksum.
    pub csum: Csum,
    /// The cutting. Not `None` only together with a partial checksum.
    pub gso: Gso,
}

impl Offload {
    /// Nothing left to do.
    pub const NONE: Offload = Offload { csum: Csum::None, gso: Gso::None };

    /// True if the frame can go on any wire as it is.
    #[inline]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// Zero if that is so, and only then; so the values of many frames can be put together without a branch.
    #[inline]
    pub fn kinds(&self) -> u16 {
        let csum = match self.csum {
            Csum::None => 0,
            Csum::Partial { .. } => 1,
        };
        let gso = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 { .. } => 1,
            Gso::Tcp6 { .. } => 2,
            Gso::Udp { .. } => 3,
        };
        csum | gso
    }

    /// The offload after `delta` bytes were put in front of the frame (taken off it, if negative).
    /// `None` if the checksum would then begin before the frame.
    #[inline]
    pub fn shifted(self, delta: isize) -> Option<Offload> {
        match self.csum {
            Csum::None => Some(self),
            Csum::Partial { start, offset } => {
                let start = u16::try_from(start as isize + delta).ok()?;
                Some(Offload { csum: Csum::Partial { start, offset }, gso: self.gso })
            }
        }
    }
}
