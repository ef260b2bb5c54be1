//! Taking outer headers off: what stands in them becomes part of the inner frame's key.
//!
//! Cost: reading the outer headers, and a sum over the frame if they have a checksum.

use encap::decap::{DecapError, Decapped, decap, plain};
use encap::offload::{Csum, Offload};
use encap::tunnel::TunnelKind;
use encap::wire::geneve::GeneveError;
use encap::wire::gre::GreError;
use encap::wire::vxlan::VxlanError;
use flowtable::action::DropReason;
use flowtable::field::TunnelFlags;
use flowtable::id::PortId;
use flowtable::key::{Hop, TunnelFields};

use super::{Origin, edit_next};
use crate::batch::Batch;
use crate::departure::{Departure, Way};
use crate::frame::Frame;
use crate::offload;
use crate::wires::Wires;

/// Where frames are to be stripped.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    /// What the outer headers are.
    pub kind: TunnelKind,
    /// The port that the inner frames come in by.
    pub listener: PortId,
}

/// Takes the outer headers of every frame off and puts the inner frames among those to be decided anew. What is none of
/// this kind is dropped on `in_port`.
pub fn strip(door: Door, in_port: PortId, group: &mut Batch, wires: &mut Wires) {
    let mut at = 0;
    while let Some(frame) = group.get_mut(at) {
        match take_off(door, frame, wires) {
            Ok(()) => at += 1,
            Err(error) => {
                let frame = group.remove(at);
                wires.drop_frame(in_port, frame, reason(error));
            }
        }
    }
    wires.inner.frames.extend(group.drain(..));
}

/// As [`strip`], for the next frames of a batch.
#[inline]
pub fn strip_next(door: Door, origin: Origin<'_>, departure: &mut Departure<'_>, wires: &mut Wires) {
    edit_next((origin, Way::In), departure, wires, |frame, _, wires| {
        take_off(door, frame, wires).map_err(reason)
    });
}

/// Takes the outer headers off, and notes what they said.
#[inline(always)]
fn take_off(door: Door, frame: &mut Frame, wires: &mut Wires) -> Result<(), DecapError> {
    let outers = &mut wires.inner.outers;
    match plain(frame.bytes(), door.kind, frame.offload) {
        // What is in registers goes right into its place: on any detour it is written in parts and read as a whole.
        Some(outer) => bare(frame, &outer).map(|()| outers.push((door.listener, fields(&outer)))),
        None => peel(frame, door.kind).map(|outer| outers.push((door.listener, fields(&outer)))),
    }
}

/// Reads whatever outer headers, and takes them off.
#[inline(never)]
fn peel(frame: &mut Frame, kind: TunnelKind) -> Result<Decapped, DecapError> {
    let outer = decap(frame.bytes(), kind, frame.offload)?;
    bare(frame, &outer).map(|()| outer)
}

/// Leaves the inner frame, with what is left to do on it.
#[inline(always)]
fn bare(frame: &mut Frame, outer: &Decapped) -> Result<(), DecapError> {
    if matches!(frame.offload.csum, Csum::Partial { start, .. } if usize::from(start) < outer.inner_at) {
        // The checksum of an outer header goes with it.
        frame.offload = Offload::NONE;
    }
    frame.set_len(outer.inner_end);
    frame.pull_front(outer.inner_at).ok_or(DecapError::Inner(0))?;
    if frame.unsaid && frame.offload.csum == Csum::None {
        frame.offload = offload::unsaid(frame.bytes());
    }
    Ok(())
}

/// What outer headers said.
#[inline(always)]
fn fields(outer: &Decapped) -> TunnelFields {
    let flag = |set, flag| if set { flag } else { TunnelFlags::NONE };
    let flags = flag(outer.df, TunnelFlags::DF)
        | flag(outer.csum, TunnelFlags::CSUM)
        | flag(outer.oam, TunnelFlags::OAM);
    let Decapped { id, src, dst, tos, ttl, .. } = *outer;
    TunnelFields::new(id, [src, dst], Hop { tos, ttl, flags })
}

#[cold]
fn reason(error: DecapError) -> DropReason {
    match error {
        DecapError::HeaderChecksum | DecapError::Checksum => DropReason::TunnelChecksum,
        DecapError::Geneve(GeneveError::Critical { .. }) => DropReason::TunnelOption,
        DecapError::Protocol(_)
        | DecapError::Vxlan(VxlanError::NoVni(_) | VxlanError::Gpe(_) | VxlanError::GroupPolicy(_))
        | DecapError::Gre(
            GreError::Version(_) | GreError::Routing(_) | GreError::Erspan(_) | GreError::Protocol(_),
        )
        | DecapError::Geneve(GeneveError::Version(_) | GeneveError::Protocol(_)) => {
            DropReason::TunnelProtocol
        }
        DecapError::NotIp(_)
        | DecapError::Fragment
        | DecapError::UdpLength { .. }
        | DecapError::Uncut
        | DecapError::Inner(_)
        | DecapError::Vxlan(VxlanError::Truncated(_))
        | DecapError::Gre(GreError::Truncated(_))
        | DecapError::Geneve(GeneveError::Truncated(_) | GeneveError::Option { .. }) => {
            DropReason::TunnelMalformed
        }
    }
}
