//! What a kernel at the other end of a virtual cable leaves to the card it thinks it has.
//!
//! Between virtual devices no checksum is summed and no TCP segment cut unless somebody asks: the frame's
//! metadata says what is left to do. AF_XDP hands over the bytes without the metadata, so we find it again: a
//! checksum field that holds the pseudo header's sum ([`is_partial`]), a packet longer than the MTU. Only for
//! drivers of virtual devices: one walk over the headers a frame.

use encap::checksum::is_partial;
use encap::field::{EtherType, IpProto};
use encap::offload::{Csum, Gso, Offload};
use encap::offsets::{Ip, walk};

use crate::frame::Frame;

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
        let Ok(offsets) = walk(frame.bytes()) else { return Ok(()) };
        let csum = is_partial(frame.bytes(), &offsets).unwrap_or_default();
        let packet = frame.len() - offsets.payload();
        let gso = match offsets.ip {
            _ if packet <= self.mtu => Gso::None,
            Some(ip) if ip.proto == IpProto::TCP && csum != Csum::None => {
                self.tcp(frame.bytes(), offsets.ether_type, ip).ok_or(Uncuttable)?
            }
            _ => return Err(Uncuttable),
        };
        frame.offload = Offload { csum, gso };
        Ok(())
    }

    /// Segments that fill the MTU.
    #[cold]
    fn tcp(&self, frame: &[u8], ether_type: EtherType, ip: Ip) -> Option<Gso> {
        let l4 = ip.l4()?;
        let tcp_header = usize::from(frame.get(l4 + 12)? >> 4) * 4;
        let mss = self.mtu.checked_sub(l4 - ip.l3() + tcp_header).filter(|&mss| mss != 0)?;
        let mss = u16::try_from(mss).ok()?;
        Some(if ether_type == EtherType::IPV4 { Gso::Tcp4 { mss } } else { Gso::Tcp6 { mss } })
    }
}
