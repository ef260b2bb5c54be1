//! Executing a decision over a group of frames of one flow: one loop per action.

mod decap;
mod encap;
#[cfg(test)]
mod tests;

use ::encap::answer;
use ::encap::field::{MacAddr, VlanId, VlanTag};
use ::encap::offload::Offload;
use ::encap::rewrite;
use flowtable::action::{Action, DropReason};
use flowtable::id::PortId;
use flowtable::key::FlowKey;

use self::decap::Door;
use crate::batch::Batch;
use crate::departure::{Departure, Way};
use crate::frame::Frame;
use crate::wires::Wires;

/// Bytes of a VLAN tag.
const TAG: usize = 4;

/// Where the frames of a group come from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The port they came in by: drops on the way are counted there.
    pub port: PortId,
    /// Their keys, in their order.
    pub keys: &'a [FlowKey],
}

/// Takes every frame of the group through `actions`; the group is empty after.
pub fn execute(actions: &[Action], origin: Origin<'_>, group: &mut Batch, wires: &mut Wires) {
    let mut departure = Departure::of(group);
    execute_next(actions, origin, &mut departure, wires);
    departure.leave(wires);
}

/// Takes the next frames, as many as `origin` has keys, through `actions`. What most flows do needs no call: 29 instructions a
/// frame (bench `instructions`, `l2/1000`).
#[inline(always)]
pub fn execute_next(
    actions: &[Action],
    origin: Origin<'_>,
    departure: &mut Departure<'_>,
    wires: &mut Wires,
) {
    match *actions {
        [Action::Output(port)] => departure.send(Way::Out(port), origin.keys.len(), wires),
        _ => change_next(actions, origin, departure, wires),
    }
}

/// Takes the next frames through actions that change them.
#[inline(never)]
fn change_next(actions: &[Action], origin: Origin<'_>, departure: &mut Departure<'_>, wires: &mut Wires) {
    match *actions {
        // One way out, and one thing to change, where the frames lie.
        [Action::Encap(ref way)] => encap::send_next(way, origin, departure, wires),
        [Action::Decap { kind, listener }] => {
            decap::strip_next(Door { kind, listener }, origin, departure, wires)
        }
        [Action::PushVlan(tag), Action::Output(port)] => {
            edit_next((origin, Way::Out(port)), departure, wires, |frame, _, _| done(push(frame, tag)))
        }
        [Action::PopVlan, Action::Output(port)] => {
            edit_next((origin, Way::Out(port)), departure, wires, |frame, _, _| done(pop(frame)))
        }
        [Action::SetVid(vid), Action::Output(port)] => {
            edit_next((origin, Way::Out(port)), departure, wires, |frame, _, _| done(set_vid(frame, vid)))
        }
        _ => execute_each(actions, origin, &mut departure.take(origin.keys.len(), wires), wires),
    }
}

/// Edits the next frames where they lie and sends them on; one that cannot take the edit is dropped.
#[inline]
fn edit_next(
    (origin, way): (Origin<'_>, Way),
    departure: &mut Departure<'_>,
    wires: &mut Wires,
    mut edit: impl FnMut(&mut Frame, &FlowKey, &mut Wires) -> Result<(), DropReason>,
) {
    let mut keys = origin.keys;
    while !keys.is_empty() {
        let frames = departure.run(keys.len());
        let (mut done, mut reason) = (0, None);
        for (frame, key) in frames.iter_mut().zip(keys) {
            reason = edit(frame, key, wires).err();
            if reason.is_some() {
                break;
            }
            done += 1;
        }
        departure.send(way, done, wires);
        keys = &keys[done..];
        if let Some(reason) = reason {
            departure.drop_next(origin.port, reason, wires);
            keys = &keys[1..];
        }
    }
}

/// One action after the other. The last that takes frames gets them themselves, those before copies.
fn execute_each(actions: &[Action], origin: Origin<'_>, group: &mut Batch, wires: &mut Wires) {
    let in_port = origin.port;
    let takes =
        |action: &Action| matches!(action, Action::Output(_) | Action::Encap(_) | Action::Decap { .. });
    let last = actions.iter().rposition(takes);
    for (i, action) in actions.iter().enumerate() {
        match *action {
            Action::Output(port) if Some(i) == last => wires.send(port, group),
            Action::Output(port) => {
                let mut copies = copies(in_port, group, wires);
                wires.send(port, &mut copies);
            }
            Action::Encap(ref way) if Some(i) == last => encap::send(way, origin, group, wires),
            Action::Encap(ref way) => {
                let mut copies = copies(in_port, group, wires);
                encap::send(way, origin, &mut copies, wires);
            }
            Action::PushVlan(tag) => edit(in_port, group, wires, |frame| push(frame, tag)),
            Action::PopVlan => edit(in_port, group, wires, pop),
            Action::SetVid(vid) => edit(in_port, group, wires, |frame| set_vid(frame, vid)),
            Action::SetEcn(ecn) => edit(in_port, group, wires, |frame| set_ecn(frame, ecn)),
            Action::Answer(mac) => edit(in_port, group, wires, |frame| answer(frame, mac)),
            Action::Decap { kind, listener } => decap::strip(Door { kind, listener }, in_port, group, wires),
            Action::Drop(reason) => {
                group.drain(..).for_each(|frame| wires.drop_frame(in_port, frame, reason))
            }
        }
    }
    group.drain(..).for_each(|frame| wires.drop_frame(in_port, frame, DropReason::NoDestination));
}

fn copies(in_port: PortId, group: &Batch, wires: &mut Wires) -> Batch {
    group.iter().filter_map(|frame| wires.copy(in_port, frame)).collect()
}

/// Edits every frame; one that cannot take the edit is dropped.
fn edit(in_port: PortId, group: &mut Batch, wires: &mut Wires, edit: impl Fn(&mut Frame) -> Option<()>) {
    let mut at = 0;
    while let Some(frame) = group.get_mut(at) {
        match edit(frame) {
            Some(()) => at += 1,
            None => {
                let frame = group.remove(at);
                wires.drop_frame(in_port, frame, DropReason::Unsupported);
            }
        }
    }
}

/// What an edit is to [`edit_next`].
#[inline]
fn done(edit: Option<()>) -> Result<(), DropReason> {
    edit.ok_or(DropReason::Unsupported)
}

fn push(frame: &mut Frame, tag: VlanTag) -> Option<()> {
    rewrite::push_vlan(frame.push_front(TAG)?, tag).ok()
}

fn pop(frame: &mut Frame) -> Option<()> {
    rewrite::pop_vlan(frame.bytes_mut()).ok()?;
    frame.pull_front(TAG).map(drop)
}

fn set_vid(frame: &mut Frame, vid: VlanId) -> Option<()> {
    rewrite::set_vid(frame.bytes_mut(), vid).ok()
}

fn set_ecn(frame: &mut Frame, ecn: u8) -> Option<()> {
    rewrite::set_ecn(frame.bytes_mut(), ecn).ok()
}

/// Turns a question into its answer. What is no question that one may answer cannot take the action.
fn answer(frame: &mut Frame, mac: MacAddr) -> Option<()> {
    let mut answer = [0; answer::MAX_LEN];
    let len = answer::reply(frame.bytes(), mac, &mut answer).ok().filter(|len| *len <= frame.room())?;
    frame.set_len(len);
    frame.bytes_mut().copy_from_slice(&answer[..len]);
    frame.offload = Offload::NONE;
    Some(())
}
