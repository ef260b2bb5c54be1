//! What the kernel counts for a network device, asked over netlink (rtnetlink(7), `RTM_GETSTATS` of
//! `linux/if_link.h`). One question costs two system calls: for statistics, never for the data path.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const NLM_F_REQUEST: u16 = 1;
/// The attribute that holds a `struct rtnl_link_stats64`, and the bit that asks for it.
const LINK_64: u16 = 1;
const LINK_64_MASK: u32 = 1;
/// `struct nlmsghdr` and `struct if_stats_msg`.
const HEADER: usize = 16 + 12;
/// Where in `struct rtnl_link_stats64` the drops on transmit are.
const TX_DROPPED: usize = 7 * 8;

/// The counters of one device.
#[derive(Debug)]
pub struct LinkStats {
    socket: OwnedFd,
    index: u32,
}

impl LinkStats {
    /// For the device of that index, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn open(index: u32) -> io::Result<LinkStats> {
        let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
        let socket = socket(kind.0, kind.1, kind.2, SockProtocol::NetlinkRoute)?;
        Ok(LinkStats { socket, index })
    }

    /// Frames that the host could not send on the device. `None` once the device is gone.
    pub fn tx_dropped(&self) -> Option<u64> {
        let mut question = Vec::with_capacity(HEADER);
        question.extend((HEADER as u32).to_ne_bytes());
        question.extend([RTM_GETSTATS, NLM_F_REQUEST].map(u16::to_ne_bytes).concat());
        // Sequence number, port; family; index, mask.
        question.extend([0, 0, 0, self.index, LINK_64_MASK].map(u32::to_ne_bytes).concat());
        send(self.socket.as_raw_fd(), &question, MsgFlags::empty()).ok()?;
        let mut answer = [0; 1024];
        let len = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
        tx_dropped(&answer[..len])
    }
}

/// Finds the number in the answer.
fn tx_dropped(answer: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if word(4)? != RTM_NEWSTATS {
        return None;
    }
    let mut at = HEADER;
    loop {
        let (len, kind) = (usize::from(word(at)?), word(at + 2)?);
        if kind == LINK_64 {
            let counter = answer.get(at + 4..at + len)?.get(TX_DROPPED..TX_DROPPED + 8)?;
            return Some(u64::from_ne_bytes(counter.try_into().ok()?));
        }
        // Attributes are aligned to 4 bytes; a length of none would hold us here.
        at += len.next_multiple_of(4).max(4);
    }
}

#[cfg(test)]
mod tests {
    use super::super::netdev::Netdev;
    use super::*;

    #[test]
    fn the_loopback_drops_nothing_and_a_missing_device_is_none() {
        let index = Netdev::open("lo").unwrap().index().unwrap();
        assert_eq!(LinkStats::open(index).unwrap().tx_dropped(), Some(0));
        assert_eq!(LinkStats::open(0x7fff_ffff).unwrap().tx_dropped(), None);
    }
}
