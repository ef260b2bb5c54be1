//! What a kernel at the other end of a virtual cable leaves to the card it thinks it has.
//!
//! Between virtual devices no checksum is summed and no TCP segment cut unless somebody asks: the frame's
//! metadata says what is left to do. AF_XDP hands over the bytes without the metadata, so we find it again: a
//! checksum field that holds the pseudo header's sum ([`is_partial`]), a packet longer than the MTU. Only for
//! drivers of virtual devices: one walk over the headers a frame, and those of a frame in it, if it is a tunnel's. What a
//! tunnelled frame that is too long hides is looked for when its outer headers come off ([`Frame::unsaid`]).

use encap::checksum::is_partial;
use encap::offload::{Csum, Gso, Offload};
use encap::offsets::walk;

use crate::frame::Frame;
use crate::offload::{left_undone, tcp_gso};

/// Drivers whose other end is a kernel and not a wire, as `ethtool -i` names them.
const VIRTUAL: [&str; 4] = ["veth", "tun", "virtio_net", "vif"];

/// The frame stands for several and does not say how long each is: only TCP can be cut anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uncuttable;

/// Finds unfinished work on the frames of one interface.
#[derive(Debug, Clone, Copy)]
pub struct Unfinished {
    mtu: usize,
}

impl Unfinished {
    /// For an interface of this driver and MTU. `None` if its frames come from a wire.
    pub fn of(driver: &str, mtu: u32) -> Option<Unfinished> {
        VIRTUAL.contains(&driver).then_some(Unfinished { mtu: mtu as usize })
    }

    /// Writes down what is left to do on a frame.
    ///
    /// # Errors
    /// [`Uncuttable`].
    pub fn mark(&self, frame: &mut Frame) -> Result<(), Uncuttable> {
        frame.unsaid = true;
        let Ok(offsets) = walk(frame.bytes()) else { return Ok(()) };
        let packet = frame.len() - offsets.payload();
        let csum = match packet <= self.mtu {
            true => left_undone(frame.bytes()),
            false => is_partial(frame.bytes(), &offsets),
        };
        let csum = csum.unwrap_or_default();
        let gso = match (packet <= self.mtu, csum) {
            // One that is too long, yet summed, has the big frame in a tunnel.
            (true, _) | (false, Csum::None) => Gso::None,
            (false, _) => tcp_gso(frame.bytes(), &offsets, self.mtu).ok_or(Uncuttable)?,
        };
        frame.offload = Offload { csum, gso };
        Ok(())
    }
}
