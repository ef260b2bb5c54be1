//! The tags of a frame on its way through the bridges, and what 802.1Q makes of them at each port.
//!
//! A [`Tags`] is the difference to the tags the frame arrived with: how many of these are off, what the
//! outermost remaining one's VLAN id became, and which tags came on top. So a field that no decision needs is
//! never looked at, and the edits of a whole walk cancel out before any of them touches a byte.

use arrayvec::ArrayVec;
use encap::field::{EtherType, Pcp, VlanId, VlanTag};
use flowtable::action::Action;
use flowtable::mask::Probe;

use crate::tables::{PriorityTags, VlanConfig, VlanMode};

/// How many tags a frame can gain on its way: one per `dot1q-tunnel` port passed.
const MAX_PUSHED: usize = 4;
/// How many of a frame's own tags the key knows.
const OWN: u8 = 2;

/// Tags relative to those the frame arrived with.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tags {
    /// How many of the frame's own tags are off.
    popped: u8,
    /// The VLAN id that replaces that of the outermost own tag.
    vid: Option<VlanId>,
    /// Tags put in front of the own ones, outermost last.
    pushed: ArrayVec<Pushed, MAX_PUSHED>,
}

/// A tag in an order that sorts (its value is of no meaning, but equal ones come together).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pushed {
    tpid: EtherType,
    tci: u16,
}

impl From<VlanTag> for Pushed {
    fn from(tag: VlanTag) -> Self {
        Pushed { tpid: tag.tpid, tci: tag.tci }
    }
}

impl From<Pushed> for VlanTag {
    fn from(tag: Pushed) -> Self {
        VlanTag { tpid: tag.tpid, tci: tag.tci }
    }
}

/// The frame does not enter, or leave, by this port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The port does not carry the VLAN.
    Vlan,
    /// The port does not carry the customer VLAN.
    CustomerVlan,
    /// More tags than a frame can gain.
    TooDeep,
}

impl Tags {
    /// The VLAN id of the outermost tag; `None` without a tag.
    fn outer(&self, probe: &mut Probe<'_>) -> Option<VlanId> {
        match self.pushed.last() {
            Some(tag) => Some(VlanTag::from(*tag).vid()),
            None => self.own(0, probe),
        }
    }

    /// The VLAN id of the tag behind the outermost.
    fn second(&self, probe: &mut Probe<'_>) -> Option<VlanId> {
        match self.pushed.len() {
            0 => self.own(1, probe),
            1 => self.own(0, probe),
            n => Some(VlanTag::from(self.pushed[n - 2]).vid()),
        }
    }

    /// The VLAN id of the `nth` own tag that is still on.
    fn own(&self, nth: u8, probe: &mut Probe<'_>) -> Option<VlanId> {
        let index = self.popped + nth;
        match self.vid {
            Some(vid) if nth == 0 => Some(vid),
            _ if index < OWN => probe.vlan_vid(index.into()),
            _ => None,
        }
    }

    /// The VLAN the frame is in: 0 without a tag or with a mere priority tag.
    pub fn vlan(&self, probe: &mut Probe<'_>) -> VlanId {
        self.outer(probe).unwrap_or(VlanId::NONE)
    }

    fn outer_pcp(&self, probe: &mut Probe<'_>) -> Pcp {
        match self.pushed.last() {
            Some(tag) => VlanTag::from(*tag).pcp(),
            None if self.popped < OWN => probe.vlan_pcp(self.popped.into()).unwrap_or_default(),
            None => Pcp::default(),
        }
    }

    fn push(&mut self, tag: VlanTag) -> Result<(), Refused> {
        self.pushed.try_push(tag.into()).map_err(|_| Refused::TooDeep)
    }

    fn pop(&mut self) {
        if self.pushed.pop().is_none() {
            self.popped += 1;
            self.vid = None;
        }
    }

    /// Gives the outermost tag, or a new one if there is none, this VLAN id; the priority stays.
    fn set(&mut self, vid: VlanId, probe: &mut Probe<'_>) -> Result<(), Refused> {
        let old = self.outer(probe);
        match (old, self.pushed.last_mut()) {
            (Some(old), _) if old == vid => {}
            (Some(_), Some(tag)) => tag.tci = tag.tci & 0xf000 | vid.get(),
            (Some(_), None) => self.vid = Some(vid),
            (None, _) => self.push(VlanTag::new(EtherType::VLAN, vid, Pcp::default()))?,
        }
        Ok(())
    }

    /// The frame enters by a port: its tags as they are inside the bridge, or why it is refused
    /// (802.1Q ingress rules, ovs-vswitchd.conf.db(5) `vlan_mode`).
    ///
    /// # Errors
    /// [`Refused`]: the port does not take the frame.
    pub fn enter(mut self, port: &VlanConfig, probe: &mut Probe<'_>) -> Result<Tags, Refused> {
        let vlan = self.vlan(probe);
        let untagged = vlan == VlanId::NONE;
        match port.mode {
            VlanMode::Access if untagged => self.set(port.tag, probe)?,
            VlanMode::NativeTagged | VlanMode::NativeUntagged if untagged => self.set(port.tag, probe)?,
            VlanMode::NativeTagged | VlanMode::NativeUntagged if vlan == port.tag => {}
            VlanMode::Access => return Err(Refused::Vlan),
            VlanMode::Trunk | VlanMode::NativeTagged | VlanMode::NativeUntagged => {
                port.trunks.contains(vlan).then_some(()).ok_or(Refused::Vlan)?;
            }
            VlanMode::Dot1qTunnel => {
                port.cvlans.contains(vlan).then_some(()).ok_or(Refused::CustomerVlan)?;
                self.push(VlanTag::new(port.qinq_ethtype, port.tag, Pcp::default()))?;
            }
        }
        Ok(self)
    }

    /// The frame leaves by a port: its tags on the wire, or why it is refused.
    ///
    /// # Errors
    /// [`Refused`]: the port does not carry the frame.
    pub fn leave(&self, port: &VlanConfig, probe: &mut Probe<'_>) -> Result<Tags, Refused> {
        let mut tags = self.clone();
        let vlan = tags.vlan(probe);
        let trunked = port.trunks.contains(vlan);
        let carried = match port.mode {
            VlanMode::Access => vlan == port.tag,
            VlanMode::Trunk => trunked,
            // Not VLAN 0: without a tag it would come out as the native VLAN.
            VlanMode::NativeTagged | VlanMode::NativeUntagged => {
                vlan == port.tag || trunked && vlan != VlanId::NONE
            }
            VlanMode::Dot1qTunnel => vlan == port.tag,
        };
        carried.then_some(()).ok_or(Refused::Vlan)?;
        match port.mode {
            VlanMode::Dot1qTunnel => {
                let customer = tags.second(probe).unwrap_or(VlanId::NONE);
                port.cvlans.contains(customer).then_some(()).ok_or(Refused::CustomerVlan)?;
                tags.pop();
            }
            VlanMode::Access => tags.bare(port.priority_tags, probe)?,
            VlanMode::NativeUntagged if vlan == port.tag => tags.untag(port.priority_tags, probe)?,
            _ if vlan == VlanId::NONE => tags.untag(port.priority_tags, probe)?,
            _ => {}
        }
        Ok(tags)
    }

    /// The frame enters a segment with this local VLAN: its tag is changed, or put on
    /// if there is none, and its priority stays. `None`: no local VLAN, and at most a priority tag stays.
    ///
    /// # Errors
    /// [`Refused`]: there is no room for a tag.
    pub fn retag(mut self, vlan: Option<VlanId>, probe: &mut Probe<'_>) -> Result<Tags, Refused> {
        match vlan {
            Some(vlan) => self.set(vlan, probe)?,
            None if self.outer(probe).is_some() => self.set(VlanId::NONE, probe)?,
            None => {}
        }
        Ok(self)
    }

    /// The frame leaves for a wire where the segment is VLAN `wire`; its priority stays.
    ///
    /// # Errors
    /// [`Refused`]: there is no room for a tag.
    pub fn leave_as(mut self, wire: VlanId, probe: &mut Probe<'_>) -> Result<Tags, Refused> {
        self.set(wire, probe)?;
        Ok(self)
    }

    /// The frame leaves for a place that knows no VLANs.
    ///
    /// # Errors
    /// [`Refused`]: it has one more.
    pub fn leave_bare(mut self, priority: PriorityTags, probe: &mut Probe<'_>) -> Result<Tags, Refused> {
        self.bare(priority, probe)?;
        Ok(self)
    }

    /// What makes a frame with these tags one with the tags it arrived with, but for priorities: how many tags to take off,
    /// and the tag to put on. `None` if it takes more.
    pub fn undo(&self, probe: &mut Probe<'_>) -> Option<(u8, Option<VlanTag>)> {
        let pushed = self.pushed.len() as u8;
        let replaced = u8::from(self.vid.is_some());
        match self.popped + replaced {
            0 => Some((pushed, None)),
            1 => {
                let vid = probe.vlan_vid(0)?;
                Some((pushed + replaced, Some(VlanTag::new(EtherType::VLAN, vid, Pcp::default()))))
            }
            _ => None,
        }
    }

    /// The tags on top of those the frame arrived with, outermost first; `None` if it lost or changed one.
    pub fn added(&self) -> Option<impl Iterator<Item = VlanTag> + '_> {
        (self.popped == 0 && self.vid.is_none()).then(|| self.pushed.iter().rev().map(|tag| (*tag).into()))
    }

    /// Takes the VLAN off the outside, leaving a priority tag where the port wants one.
    fn untag(&mut self, priority: PriorityTags, probe: &mut Probe<'_>) -> Result<(), Refused> {
        match self.keeps_priority(priority, probe) {
            true => self.set(VlanId::NONE, probe)?,
            false if self.outer(probe).is_some() => self.pop(),
            false => {}
        }
        Ok(())
    }

    /// As [`Tags::untag`], and priority tags behind the VLAN's go too: no tag is left. A frame that has yet
    /// another VLAN behind it is refused.
    fn bare(&mut self, priority: PriorityTags, probe: &mut Probe<'_>) -> Result<(), Refused> {
        let mut bare = self.clone();
        if bare.outer(probe).is_some() {
            bare.pop();
        }
        while let Some(vid) = bare.outer(probe) {
            (vid == VlanId::NONE).then(|| bare.pop()).ok_or(Refused::Vlan)?;
        }
        match self.keeps_priority(priority, probe) {
            true => self.set(VlanId::NONE, probe)?,
            false => *self = bare,
        }
        Ok(())
    }

    /// Does a tag without VLAN stay for its priority?
    fn keeps_priority(&self, priority: PriorityTags, probe: &mut Probe<'_>) -> bool {
        match priority {
            PriorityTags::Never => false,
            PriorityTags::IfNonzero => self.outer_pcp(probe) != Pcp::default(),
            PriorityTags::Always => self.pushed.is_empty() && self.outer(probe).is_some(),
        }
    }

    /// The actions that turn a frame with tags `self` into one with tags `to`, which must not sort before.
    pub fn become_(&self, to: &Tags, actions: &mut Vec<Action>) {
        debug_assert!(self <= to, "tags that are off cannot come back");
        let same_own = (self.popped, self.vid) == (to.popped, to.vid);
        let common =
            if same_own { self.pushed.iter().zip(&to.pushed).take_while(|(a, b)| a == b).count() } else { 0 };
        let pops = self.pushed.len() - common + usize::from(to.popped - self.popped);
        actions.extend(std::iter::repeat_n(Action::PopVlan, pops));
        if !same_own {
            actions.extend(to.vid.map(Action::SetVid));
        }
        actions.extend(to.pushed[common..].iter().map(|tag| Action::PushVlan((*tag).into())));
    }
}
