//! The segmentation stage: which segment a frame is in when it enters a bridge, and what it looks like where it leaves.
//!
//! Inside a bridge a frame of a segment with a local VLAN carries (or is treated as if it carried) that VLAN's tag; one of a
//! segment without has no tag but perhaps a priority tag. At a VM's port, on a provider's wire and in a tunnel the same
//! segment has other names; both directions are here, side by side.

use encap::field::VlanId;
use flowtable::id::{PortId, SegmentId};

use super::vlan::{Refused, Tags};
use super::{Ingress, Steps, Walk};
use crate::segment::Network;
use crate::tables::{PortEntry, PriorityTags};

impl<'a, S: Steps> Walk<'a, S> {
    /// The segment of a frame that enters by a port, and its tags inside.
    pub(super) fn join(
        &mut self,
        ingress: &Ingress,
        entry: &'a PortEntry,
    ) -> Result<(SegmentId, Tags), Refused> {
        let tags = ingress.tags.clone();
        if let Some(mapped) = ingress.mapped.map(|mapped| mapped.segment).or(entry.segment) {
            // Behind the outer headers, as at a VM's port, a frame has no VLAN (RFC 7348 section 6.1).
            let untagged = tags.vlan(&mut self.probe) == VlanId::NONE;
            untagged.then_some(()).ok_or(Refused::Vlan)?;
            return Ok((mapped, tags.retag(mapped.vlan(), &mut self.probe)?));
        }
        if self.lookout.is_uplink(ingress.port) {
            let wire = tags.vlan(&mut self.probe);
            let segment = self.lookout.on_wire(ingress.port, wire).ok_or(Refused::Vlan)?;
            return Ok((segment.id, tags.retag(segment.id.vlan(), &mut self.probe)?));
        }
        let tags = tags.enter(&entry.vlan, &mut self.probe)?;
        Ok((tags.vlan(&mut self.probe).into(), tags))
    }

    /// The tags of a frame of this segment, tagged so inside, when it leaves by a port.
    pub(super) fn part(
        &mut self,
        (segment, tags): (SegmentId, &Tags),
        (port, entry): (PortId, &PortEntry),
    ) -> Result<Tags, Refused> {
        let tags = tags.clone();
        if let Some(own) = entry.segment {
            (own == segment).then_some(()).ok_or(Refused::Vlan)?;
            return tags.leave_bare(entry.vlan.priority_tags, &mut self.probe);
        }
        if entry.is_flow_based() || self.lookout.is_uplink(port) {
            return match self.lookout.segment(entry.bridge, segment).map(|segment| &segment.network) {
                // Bare: a second tag would come out on the wire as another segment's.
                Some(&Network::Provider { uplink, vlan: VlanId::NONE }) if uplink == port => {
                    tags.leave_bare(entry.vlan.priority_tags, &mut self.probe)
                }
                Some(&Network::Provider { uplink, vlan }) if uplink == port => {
                    tags.leave_as(vlan, &mut self.probe)
                }
                Some(Network::Tunnel { port: tunnel, .. }) if *tunnel == port => {
                    tags.leave_bare(PriorityTags::Never, &mut self.probe)
                }
                _ => Err(Refused::Vlan),
            };
        }
        match segment.vlan() {
            Some(_) => tags.leave(&entry.vlan, &mut self.probe),
            None => Err(Refused::Vlan),
        }
    }
}
