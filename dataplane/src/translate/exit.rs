//! Ways out of the switch, and how the actions of a decision follow from them.

use std::net::IpAddr;

use encap::field::MacAddr;
use encap::tunnel::TunnelKind;
use flowtable::action::{Action, Encap};
use flowtable::id::PortId;
use smallvec::SmallVec;

use super::vlan::Tags;

/// One way out.
#[derive(PartialEq, Eq)]
pub(super) enum Exit {
    /// By a port.
    Port(PortId),
    /// Through a tunnel.
    Tunnel(Box<Encap>),
    /// Back to the sender, whose question is answered: this is the address.
    Answer(MacAddr, PortId),
    /// Out of its outer headers, and in again by the listener.
    Inner(TunnelKind, PortId),
}

/// Ways out, with the tags that the frame has there. Most frames have one, and nobody allocates for it.
pub(super) type Exits = SmallVec<[(Tags, Exit); 2]>;

/// The order of exits: it has no meaning, but equal ones come together, and what consumes the frame comes last.
type Rank = (u8, PortId, Option<(PortId, IpAddr, Option<u32>)>);

impl Exit {
    fn rank(&self) -> Rank {
        match self {
            Exit::Port(port) => (0, *port, None),
            Exit::Tunnel(encap) => {
                let outer = encap.template.outer();
                (0, encap.output, Some((encap.tunnel, outer.dst, outer.id)))
            }
            Exit::Answer(_, port) => (1, *port, None),
            Exit::Inner(_, listener) => (2, *listener, None),
        }
    }

    fn consumes(&self) -> bool {
        matches!(self, Exit::Answer(..) | Exit::Inner(..))
    }

    fn into_actions(self) -> impl Iterator<Item = Action> {
        let (first, then) = match self {
            Exit::Port(port) => (Action::Output(port), None),
            Exit::Tunnel(encap) => (Action::Encap(encap), None),
            Exit::Answer(mac, port) => (Action::Answer(mac), Some(Action::Output(port))),
            Exit::Inner(kind, listener) => (Action::Decap { kind, listener }, None),
        };
        std::iter::once(first).chain(then)
    }
}

/// Turns exits into actions, behind the one that comes `first`. Sorted so that tags only ever come off the original frame,
/// each once. At most one exit consumes the frame.
pub(super) fn emit(first: Option<Action>, mut exits: Exits) -> Vec<Action> {
    exits.sort_by(|(t, a), (u, b)| (a.consumes(), t, a.rank()).cmp(&(b.consumes(), u, b.rank())));
    exits.dedup_by(|a, b| a == b);
    if let Some(at) = exits.iter().position(|(_, exit)| exit.consumes()) {
        exits.truncate(at + 1);
    }
    let mut actions = Vec::with_capacity(exits.len() + 2);
    actions.extend(first);
    let mut current = Tags::default();
    for (tags, exit) in exits {
        if !exit.consumes() {
            current.become_(&tags, &mut actions);
            current = tags;
        }
        actions.extend(exit.into_actions());
    }
    actions
}
