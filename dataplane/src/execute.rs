//! Executing a decision over a group of frames of one flow: one loop per action.

use encap::field::{VlanId, VlanTag};
use encap::rewrite;
use flowtable::action::{Action, DropReason};
use flowtable::id::PortId;

use crate::batch::Batch;
use crate::frame::Frame;
use crate::wires::Wires;

/// Bytes of a VLAN tag.
const TAG: usize = 4;

/// Takes every frame of the group through `actions`; the group is empty after. The last output gets the
/// frames themselves, earlier ones copies. Drops on the way are counted on `in_port`.
pub fn execute(actions: &[Action], in_port: PortId, group: &mut Batch, wires: &mut Wires) {
    let last = actions.iter().rposition(|action| matches!(action, Action::Output(_)));
    for (i, action) in actions.iter().enumerate() {
        match *action {
            Action::Output(port) if Some(i) == last => wires.send(port, group),
            Action::Output(port) => copy_out(port, in_port, group, wires),
            Action::PushVlan(tag) => edit(in_port, group, wires, |frame| push(frame, tag)),
            Action::PopVlan => edit(in_port, group, wires, pop),
            Action::SetVid(vid) => edit(in_port, group, wires, |frame| set_vid(frame, vid)),
            Action::Drop(reason) => {
                group.drain(..).for_each(|frame| wires.drop_frame(in_port, frame, reason))
            }
        }
    }
    group.drain(..).for_each(|frame| wires.drop_frame(in_port, frame, DropReason::NoDestination));
}

fn copy_out(port: PortId, in_port: PortId, group: &Batch, wires: &mut Wires) {
    let mut copies: Batch = group.iter().filter_map(|frame| wires.copy(in_port, frame)).collect();
    wires.send(port, &mut copies);
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
