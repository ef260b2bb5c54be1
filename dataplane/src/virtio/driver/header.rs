//! `struct virtio_net_hdr` as the driver writes and reads it (virtio 1.2 section 5.1.6): any of it, right or wrong.

use encap::offload::Offload;

use crate::port::vnet::{self, VnetError};
use crate::virtio::NET_HEADER;
use crate::virtio::features::Features;

/// The header in front of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The ten bytes that all drivers have.
    pub offload: [u8; vnet::LEN],
    /// `num_buffers`: in how many chains a received frame lies; 0 in a frame that the driver sends.
    pub buffers: u16,
}

impl Header {
    /// What is left to do on a frame.
    pub fn of(offload: &Offload, frame: &[u8]) -> Header {
        Header { offload: vnet::emit(offload, frame), buffers: 0 }
    }

    /// Its length: 12, or 10 without VERSION_1 and MRG_RXBUF.
    pub fn len_of(features: Features) -> usize {
        let short = features.without(Features::VERSION_1 | Features::MRG_RXBUF) == features;
        if short { vnet::LEN } else { NET_HEADER }
    }

    /// As it lies in memory; the short one without the end.
    pub fn bytes(&self) -> [u8; NET_HEADER] {
        let mut bytes = [0; NET_HEADER];
        bytes[..vnet::LEN].copy_from_slice(&self.offload);
        bytes[vnet::LEN..].copy_from_slice(&self.buffers.to_le_bytes());
        bytes
    }

    /// From memory; the short one with zeros at the end.
    pub fn parse(bytes: &[u8; NET_HEADER]) -> Header {
        let mut offload = [0; vnet::LEN];
        offload.copy_from_slice(&bytes[..vnet::LEN]);
        Header { offload, buffers: u16::from_le_bytes([bytes[vnet::LEN], bytes[vnet::LEN + 1]]) }
    }

    /// What is left to do on the frame.
    ///
    /// # Errors
    /// [`VnetError`] if it does not fit the frame.
    pub fn left_to_do(&self, frame: &[u8]) -> Result<Offload, VnetError> {
        vnet::parse(&self.offload, frame)
    }
}
