//! The frame that tells a network where a migrated guest is now, for a guest that does not announce itself
//! (`VHOST_USER_SEND_RARP`): a reverse ARP request (RFC 903), which nobody answers and every switch learns from.

use encap::field::MacAddr;

/// Bytes of the shortest Ethernet frame, without FCS.
const LEN: usize = 60;

/// The request of a guest with this address, broadcast.
pub(super) fn rarp(guest: MacAddr) -> [u8; LEN] {
    let mut frame = [0; LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&guest.0);
    frame[12..14].copy_from_slice(&[0x80, 0x35]);
    // Ethernet, IPv4, their lengths, "request reverse".
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&guest.0);
    frame[32..38].copy_from_slice(&guest.0);
    frame
}

/// Can it be the address of a station?
pub(super) fn is_station(mac: MacAddr) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_reverse_arp_request_of_the_guest() {
        let guest = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let frame = rarp(guest);
        let hex: String = frame[..42].iter().map(|byte| format!("{byte:02x}")).collect();
        let address = "525400123456";
        let expected = format!("ffffffffffff{address}80350001080006040003{address}00000000{address}00000000");
        assert_eq!(hex, expected);
        assert!(is_station(guest) && !is_station(MacAddr([0; 6])) && !is_station(MacAddr([0xff; 6])));
    }
}
