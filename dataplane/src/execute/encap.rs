//! Sending into a tunnel: outer headers in front of each frame, and out by the port that the underlay says.
//!
//! A GSO frame is cut first, one outer header to each segment; so one whose sender believed in longer segments than
//! the tunnel carries is merely cut shorter. What else is too long is dropped, and its sender told (RFC 1191, RFC
//! 8201): an outer packet is never fragmented.
//!
//! Cost of a frame that fits: the template's. A checksum of the inner frame that is left to do stays left to do,
//! unless the outer headers have one, which must cover the completed frame.

use encap::field::VlanTag;
use encap::offload::Gso;
use encap::{gso, too_big};
use flowtable::action::{Complaint, DropReason, Encap};
use flowtable::id::PortId;
use flowtable::key::FlowKey;
use flowtable::keys::Keys;

use super::{Origin, edit, edit_next, pop, push};
use crate::batch::{Batch, extract_each};
use crate::departure::{Departure, Way};
use crate::frame::Frame;
use crate::offload;
use crate::wires::Wires;

/// Sends frames into a tunnel; `frames` is empty after.
pub fn send(way: &Encap, origin: Origin<'_>, frames: &mut Batch, wires: &mut Wires) {
    let in_port = origin.port;
    mark(frames, origin.keys);
    match frames.iter().all(|frame| fits(way, frame)) {
        true => wrap(way, in_port, frames, wires),
        false => send_each(way, in_port, frames, wires),
    }
}

/// Sends the next frames of a batch into a tunnel.
#[inline]
pub fn send_next(way: &Encap, origin: Origin<'_>, departure: &mut Departure<'_>, wires: &mut Wires) {
    let n = origin.keys.len();
    if !departure.run(n).iter().all(|frame| fits(way, frame)) {
        return send(way, origin, &mut departure.take(n, wires), wires);
    }
    let (mut count, mut bytes) = (0, 0);
    let route = (origin, Way::Out(way.output));
    edit_next(route, departure, wires, |frame, key, _| {
        let len = frame.len() as u64;
        frame.entropy = key.flow_hash() as u16;
        dress(way, frame).ok_or(DropReason::Unsupported)?;
        (count, bytes) = (count + 1, bytes + len);
        Ok(())
    });
    let counters = wires.counters(way.tunnel);
    counters.encapped_frames.add(count);
    counters.encapped_bytes.add(bytes);
}

/// Writes down what stands for each frame's flow.
fn mark(frames: &mut Batch, keys: &[FlowKey]) {
    let mut fresh = Keys::default();
    let keys = match frames.len() == keys.len() {
        true => keys,
        // Some were dropped on their way here, so places say nothing.
        false => {
            extract_each(frames, PortId::default(), &mut fresh);
            &fresh
        }
    };
    frames.iter_mut().zip(keys).for_each(|(frame, key)| frame.entropy = key.flow_hash() as u16);
}

/// Can the frame be wrapped as it is?
#[inline]
fn fits(way: &Encap, frame: &Frame) -> bool {
    frame.len() <= usize::from(way.frame_max)
        && frame.offload.gso == Gso::None
        && frame.headroom() >= way.template.len()
}

/// Puts the outer headers in front of frames that fit.
fn wrap(way: &Encap, in_port: PortId, frames: &mut Batch, wires: &mut Wires) {
    edit(in_port, frames, wires, |frame| dress(way, frame));
    let bytes: usize = frames.iter().map(|frame| frame.len() - way.template.len()).sum();
    let counters = wires.counters(way.tunnel);
    counters.encapped_frames.add(frames.len() as u64);
    counters.encapped_bytes.add(bytes as u64);
    wires.send(way.output, frames);
}

#[inline]
fn dress(way: &Encap, frame: &mut Frame) -> Option<()> {
    if way.template.wants_checksum() {
        offload::complete(frame).ok()?;
    }
    let entropy = frame.entropy;
    way.template.write(frame.push_front(way.template.len())?, entropy).ok()
}

/// Sends frames of which some are too long, to be cut, or without room for outer headers.
#[cold]
fn send_each(way: &Encap, in_port: PortId, frames: &mut Batch, wires: &mut Wires) {
    let mut ready = Batch::new();
    let mut add = |frame, wires: &mut Wires| {
        ready.push(frame);
        if ready.is_full() {
            wrap(way, in_port, &mut ready, wires);
        }
    };
    for frame in frames.drain(..) {
        if fits(way, &frame) {
            add(frame, wires);
        } else if frame.offload.gso != Gso::None {
            let Some(frame) = shorten(way, in_port, frame, wires) else { continue };
            wires.cut(in_port, frame, |wires, segment| add(segment, wires));
        } else if frame.len() > usize::from(way.frame_max) {
            refuse(way, in_port, frame, wires);
        } else if let Some(copy) = wires.frames.copy(&frame) {
            wires.frames.free(frame);
            add(copy, wires);
        } else {
            wires.drop_frame(in_port, frame, DropReason::NoFrame);
        }
    }
    wrap(way, in_port, &mut ready, wires);
}

/// A GSO frame whose segments fit.
fn shorten(way: &Encap, in_port: PortId, mut frame: Frame, wires: &mut Wires) -> Option<Frame> {
    let bytes = frame.bytes();
    match gso::fit(bytes, frame.offload, l3_max(way, bytes).into()) {
        Some(offload) => {
            frame.offload = offload;
            Some(frame)
        }
        // It can be cut, but not so short: a datagram (UDP), or a lie about the size.
        None if gso::segments(bytes, frame.offload).is_ok() => {
            refuse(way, in_port, frame, wires);
            None
        }
        None => {
            wires.drop_frame(in_port, frame, DropReason::Unsupported);
            None
        }
    }
}

/// The longest packet in such a frame that fits, IP header included. Bytes.
fn l3_max(way: &Encap, frame: &[u8]) -> u16 {
    way.frame_max.saturating_sub(offload::l3(frame) as u16)
}

/// Drops a frame that is too long and tells its sender.
fn refuse(way: &Encap, in_port: PortId, frame: Frame, wires: &mut Wires) {
    if let Some(complaint) = way.complaint
        && wires.may_complain()
        && let Some(reply) = reply(way, &complaint, frame.bytes(), wires)
    {
        wires.complain(complaint.port, reply);
    }
    wires.drop_frame(in_port, frame, DropReason::OverMtu);
}

/// What tells the sender, tagged as it tags its frames.
fn reply(way: &Encap, complaint: &Complaint, frame: &[u8], wires: &mut Wires) -> Option<Frame> {
    let mut message = [0; too_big::MAX_LEN];
    let len = too_big::reply(frame, l3_max(way, frame), &mut message)?;
    let mut reply = wires.frames.from_bytes(&message[..len])?;
    match retag(&mut reply, complaint) {
        Some(()) => Some(reply),
        None => {
            wires.frames.free(reply);
            None
        }
    }
}

fn retag(reply: &mut Frame, complaint: &Complaint) -> Option<()> {
    (0..complaint.pop).try_for_each(|_| pop(reply))?;
    complaint.push.map_or(Some(()), |tag: VlanTag| push(reply, tag))
}
