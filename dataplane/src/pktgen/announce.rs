//! Stations make themselves known before anybody sends to them, so that a switch that learns need not flood (RFC 2544
//! section 23 calls these learning frames): one RARP frame each, as QEMU sends for a guest that has moved.

use std::time::{Duration, Instant};

use encap::field::{EtherType, MacAddr, VlanTag};

use super::exchange::Ends;
use super::reel::{Player, Reel};
use super::terms::{Macs, SIZE_MIN};
use crate::batch::Batch;
use crate::port::PortError;

/// Ethernet and IPv4, addresses of 6 and 4 bytes, "who am I" (RFC 903).
const WHO_AM_I: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 3];
/// How long to wait for announcements to come out of the switch, as long as none do.
const SILENCE: Duration = Duration::from_millis(50);
/// How long the first station is repeated.
const PATIENCE: Duration = Duration::from_secs(1);

/// One frame from each of these stations to all, in this VLAN.
pub fn announcements(stations: Macs, tag: Option<VlanTag>) -> Reel {
    let mut reel = Reel::default();
    for n in 0..u64::from(stations.count()) {
        reel.push(&announcement(stations.get(n), tag));
    }
    reel
}

fn announcement(station: MacAddr, tag: Option<VlanTag>) -> Vec<u8> {
    let mut frame = [MacAddr::BROADCAST.0, station.0].concat();
    if let Some(tag) = tag {
        frame.extend([tag.tpid.0.to_be_bytes(), tag.tci.to_be_bytes()].concat());
    }
    frame.extend(EtherType::RARP.0.to_be_bytes());
    frame.extend(WHO_AM_I);
    for _ in 0..2 {
        frame.extend([&station.0[..], &[0; 4]].concat());
    }
    frame.resize(SIZE_MIN, 0);
    frame
}

/// Has these stations announce themselves by the port where frames are to come out. With one port only there is nothing to learn.
///
/// Ports may need a moment until frames pass (a guest's rings are there before the switch forwards to them), so the first
/// station is repeated until it is heard at the other port; if it never is, as where announcements do not get that far, that
/// takes a second.
///
/// # Errors
/// [`PortError`] if a port goes away.
pub fn announce(ends: &mut Ends, stations: Macs, tag: Option<VlanTag>) -> Result<(), PortError> {
    if ends.rx.is_none() {
        return Ok(());
    }
    let begin = Instant::now();
    let mut first = Reel::default();
    first.push(&announcement(stations.get(0), tag));
    while play(ends, first.clone())? == 0 && begin.elapsed() < PATIENCE {}
    if stations.count() > 1 {
        play(ends, announcements(stations, tag))?;
    }
    Ok(())
}

/// Sends a reel once by the port where frames are to come out, and waits until it came out at the other, or does not; how many
/// frames came out.
fn play(ends: &mut Ends, reel: Reel) -> Result<usize, PortError> {
    let Ends { tx, rx: Some(rx), frames, .. } = ends else { return Ok(0) };
    let (mut left, mut heard) = (reel.frames(), 0);
    let total = left;
    let (mut player, mut batch) = (Player::new(reel), Batch::new());
    let mut last = Instant::now();
    while heard < total && last.elapsed() < SILENCE {
        while left > batch.len()
            && !batch.is_full()
            && let Some(frame) = player.next(frames)
        {
            batch.push(frame);
        }
        let before = batch.len();
        rx.tx(frames, &mut batch)?;
        let taken = before - batch.len();
        left -= taken;
        let mut came = Batch::new();
        tx.rx(frames, &mut came)?;
        if taken > 0 || !came.is_empty() {
            last = Instant::now();
        }
        heard += came.len();
        came.drain(..).for_each(|frame| frames.free(frame));
    }
    batch.drain(..).for_each(|frame| frames.free(frame));
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use encap::field::{Pcp, VlanId};

    use super::super::residents::Residents;
    use super::*;
    use crate::port::memory::pair;
    use crate::port::rig;

    #[test]
    fn stations_are_repeated_until_they_are_heard() {
        let (pool, frames) = rig::pool();
        let ((tx, near), (rx, far)) = (pair(&pool, 64), pair(&pool, 64));
        let (near_side, far_side) = (Residents::default(), Residents::default());
        let mut ends =
            Ends { tx: Box::new(tx), rx: Some(Box::new(rx)), frames, near: near_side, far: far_side };
        // A switch that forwards nothing before the third frame.
        let switch = std::thread::spawn(move || {
            let mut seen = Vec::new();
            rig::wait("announcements", || {
                while let Some(frame) = far.take() {
                    seen.push(frame.bytes().to_vec());
                    if seen.len() > 2 {
                        near.put(frame).expect("room");
                    }
                }
                (seen.len() == 43).then_some(())
            });
            // The cables stay plugged in until all is over.
            (seen, near, far)
        });
        let stations = Macs::new(MacAddr([2, 0, 0, 0, 0, 1]), 40).unwrap();
        let tag = VlanTag::new(EtherType::VLAN, VlanId::new(7).unwrap(), Pcp::new(0).unwrap());
        announce(&mut ends, stations, Some(tag)).unwrap();
        let (seen, _near, _far) = switch.join().unwrap();
        let sources: Vec<u8> = seen.iter().map(|frame| frame[11]).collect();
        assert_eq!(sources, [&[1, 1, 1][..], &(1..=40).collect::<Vec<u8>>()].concat());
        assert!(
            seen.iter().all(|frame| frame[..6] == [0xff; 6] && frame[12..18] == [0x81, 0, 0, 7, 0x80, 0x35])
        );
    }
}
