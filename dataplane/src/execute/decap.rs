//! Taking outer headers off: what stands in them becomes part of the inner frame's key.
//!
//! Cost: reading the outer headers, and a sum over the frame if they have a checksum.

use encap::decap::{DecapError, Decapped, decap};
use encap::offload::{Csum, Offload};
use encap::tunnel::TunnelKind;
use encap::wire::geneve::GeneveError;
use encap::wire::gre::GreError;
use encap::wire::vxlan::VxlanError;
use flowtable::action::DropReason;
use flowtable::field::TunnelFlags;
use flowtable::id::PortId;
use flowtable::key::TunnelFields;

use crate::batch::Batch;
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
        match peel(frame, door.kind) {
            Ok(outer) => {
                wires.inner.outers.push((door.listener, outer));
                at += 1;
            }
            Err(error) => {
                let frame = group.remove(at);
                wires.drop_frame(in_port, frame, reason(error));
            }
        }
    }
    wires.inner.frames.extend(group.drain(..));
}

/// Leaves the inner frame, with what is left to do on it; what the outer headers said.
#[inline]
fn peel(frame: &mut Frame, kind: TunnelKind) -> Result<TunnelFields, DecapError> {
    let outer = decap(frame.bytes(), kind, frame.offload)?;
    if matches!(frame.offload.csum, Csum::Partial { start, .. } if usize::from(start) < outer.inner_at) {
        // The checksum of an outer header goes with it.
        frame.offload = Offload::NONE;
    }
    frame.set_len(outer.inner_end);
    frame.pull_front(outer.inner_at).ok_or(DecapError::Inner(0))?;
    if frame.unsaid && frame.offload.csum == Csum::None {
        frame.offload = offload::unsaid(frame.bytes());
    }
    Ok(fields(&outer))
}

#[inline]
fn fields(outer: &Decapped) -> TunnelFields {
    let flag = |set, flag| if set { flag } else { TunnelFlags::NONE };
    let flags = flag(outer.df, TunnelFlags::DF)
        | flag(outer.csum, TunnelFlags::CSUM)
        | flag(outer.oam, TunnelFlags::OAM);
    let Decapped { id, src, dst, tos, ttl, .. } = *outer;
    TunnelFields { id, src, dst, tos, ttl, flags }
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
