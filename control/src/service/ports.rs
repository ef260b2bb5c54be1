//! Each configured device and whether it is open: what is wanted meets what the kernel has.
//!
//! An interface that vanishes or is set down takes its port down; one that returns brings it up. A device that
//! cannot be opened keeps its error until its interface changes. An internal port is a device of our own: when
//! somebody deletes it, it is made again. A port for a VM comes up when the guest's driver runs, and goes down with it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::port::xdp;
use dataplane::switch::Switch;
use flowtable::id::PortId;

use super::open::{Opened, Opener};
use super::vhost::Presence;
use crate::api::report::{Trouble, VhostReport};
use crate::compile::{AttachKind, Attachment};
use crate::links::{Link, Links};

/// How long after a port broke we look at it again, if netlink does not tell us sooner: a driver that resets
/// itself takes its queues down for moments.
const RETRY: Duration = Duration::from_millis(100);

/// How often a port that hangs on no interface is tried again: nobody tells when it may work.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Threads that close devices when many go at once.
const CLOSERS: usize = 16;

/// What a predecessor had is freed all at once: of ports settled together, one waits for it. The others wait only
/// for what this process itself has just closed; forty of them must not keep the watchdog from its turn.
const LAST_PATIENCE: Duration = Duration::from_millis(200);

/// Whether a device is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is.
    Up {
        /// What it became.
        obtained: String,
        /// Why nothing better.
        because: Option<String>,
        /// How many queues.
        queues: usize,
    },
    /// It waits for its interface; why.
    Down(String),
    /// All that can be done is done: a VM is to come.
    Awaiting(String),
    /// It could not be opened; why.
    Failed(String),
}

/// What of an interface, or of a guest, decides whether a port on it can be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Missing,
    Down(u32),
    /// Its number, and its MTU if the port depends on it.
    Up(u32, Option<u32>),
    /// The guest's driver runs; counts changes of its queues.
    Guest(u64),
}

impl Seen {
    /// An AF_XDP socket is bound for frames of a certain length: another MTU takes another socket.
    fn of(link: Option<&Link>, kind: &AttachKind) -> Seen {
        let mtu = |link: &Link| matches!(kind, AttachKind::Afxdp | AttachKind::System).then_some(link.mtu);
        match link {
            None => Seen::Missing,
            Some(link) if link.up => Seen::Up(link.index, mtu(link)),
            Some(link) => Seen::Down(link.index),
        }
    }

    /// The same with the MTU that opening the port has set.
    fn with(self, set: Option<u16>) -> Seen {
        match (self, set) {
            (Seen::Up(index, Some(_)), Some(mtu)) => Seen::Up(index, Some(mtu.into())),
            _ => self,
        }
    }
}

/// What to do about a port now.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Keep,
    Open,
    Reopen,
    /// Close it if it is open; it is like this then.
    Wait(State),
}

fn wait(reason: &str) -> Step {
    Step::Wait(State::Down(reason.to_owned()))
}

/// One configured device.
#[derive(Debug)]
struct Slot {
    want: Attachment,
    state: State,
    /// The interface when `state` was entered.
    seen: Seen,
    retry: Option<Instant>,
}

impl Slot {
    fn new(want: Attachment) -> Self {
        Slot { want, state: State::Down("not opened yet".into()), seen: Seen::Missing, retry: None }
    }

    /// Says what is new, unless the port is up. Of guests their sessions have spoken already, and not too often.
    fn enter(&mut self, state: State) {
        let port = &self.want.name;
        match &state {
            State::Down(reason) if state != self.state => tracing::info!(port, "port is down: {reason}"),
            State::Awaiting(reason) if state != self.state => tracing::debug!(port, "port is down: {reason}"),
            State::Failed(error) if state != self.state => tracing::error!(port, "cannot open port: {error}"),
            _ => {}
        }
        self.state = state;
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    fn step(&self, now: Seen) -> Step {
        match (&self.want.kind, &self.state, now) {
            (AttachKind::Vhost(_), State::Up { .. }, _) if now != self.seen => Step::Reopen,
            (kind, State::Up { .. }, _) if !kind.has_netdev() => Step::Keep,
            (kind, ..) if !kind.has_netdev() => Step::Open,
            (AttachKind::Internal, State::Up { .. }, Seen::Missing) => Step::Reopen,
            (AttachKind::Internal, State::Up { .. }, _) => Step::Keep,
            (AttachKind::Internal, State::Down(_), _) => Step::Open,
            (_, State::Up { .. }, Seen::Up(..)) if now == self.seen => Step::Keep,
            (_, State::Up { .. }, Seen::Up(..) | Seen::Guest(_)) => Step::Reopen,
            (_, State::Failed(_), _) if now == self.seen => Step::Keep,
            (_, _, Seen::Up(..) | Seen::Guest(_)) | (AttachKind::Internal, _, _) => Step::Open,
            (_, _, Seen::Missing) => wait("no such interface; the port comes up when there is one"),
            (_, _, Seen::Down(_)) => wait("interface is set down; the port comes up with it"),
        }
    }
}

/// What a change did to ports, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// New ones.
    pub opened: Vec<String>,
    /// Removed ones.
    pub closed: Vec<String>,
    /// Changed ones.
    pub reopened: Vec<String>,
    /// All others.
    pub untouched: usize,
}

/// All devices.
pub struct Ports {
    switch: Arc<Switch>,
    opener: Opener,
    slots: BTreeMap<PortId, Slot>,
}

impl Ports {
    /// None yet.
    pub fn new(switch: Arc<Switch>, opener: Opener) -> Self {
        Ports { switch, opener, slots: BTreeMap::new() }
    }

    /// How a device is, if the port has one.
    pub fn state(&self, port: PortId) -> Option<&State> {
        self.slots.get(&port).map(|slot| &slot.state)
    }

    /// Every port that has a netdev, with its name.
    pub fn devices(&self) -> impl Iterator<Item = (PortId, &str)> {
        let with_netdev = self.slots.iter().filter(|(_, slot)| slot.want.kind.has_netdev());
        with_netdev.map(|(id, slot)| (*id, slot.want.name.as_str()))
    }

    /// Every port whose device is not open.
    pub fn down(&self) -> impl Iterator<Item = PortId> {
        self.slots.iter().filter(|(_, slot)| !slot.is_up()).map(|(id, _)| *id)
    }

    /// Devices that should be open and are not.
    pub fn troubles(&self) -> impl Iterator<Item = Trouble> {
        self.slots.values().filter_map(|slot| match &slot.state {
            State::Up { .. } | State::Awaiting(_) => None,
            State::Down(error) | State::Failed(error) => {
                Some(Trouble { port: slot.want.name.clone(), error: error.clone() })
            }
        })
    }

    /// Closes what is no longer wanted, or wanted otherwise; the wanted ones are opened by [`Ports::settle`].
    /// Between the two the new tables are published, so that no frame meets a device under an old port's id.
    pub fn adopt(&mut self, wanted: BTreeMap<PortId, Attachment>) -> Moves {
        let mut moves = Moves::default();
        let old = std::mem::take(&mut self.slots);
        let unwanted = |(id, slot): &(&PortId, &Slot)| slot.is_up() && wanted.get(id) != Some(&slot.want);
        self.close_several(&old.iter().filter(unwanted).map(|(id, _)| *id).collect::<Vec<_>>());
        self.opener.guests.keep(|id| match &wanted.get(&id)?.kind {
            AttachKind::Vhost(request) => Some(request),
            _ => None,
        });
        for (id, slot) in old {
            if wanted.get(&id) == Some(&slot.want) {
                moves.untouched += 1;
                self.slots.insert(id, slot);
                continue;
            }
            if !wanted.values().any(|want| want.name == slot.want.name) {
                moves.closed.push(slot.want.name);
            } else {
                moves.reopened.push(slot.want.name);
            }
        }
        for (id, want) in wanted {
            if self.slots.contains_key(&id) {
                continue;
            }
            if !moves.reopened.contains(&want.name) {
                moves.opened.push(want.name.clone());
            }
            self.slots.insert(id, Slot::new(want));
        }
        moves
    }

    /// Takes away what ports for VMs left that were removed while no switch ran.
    pub fn tidy(&self) {
        let is_vm = |slot: &Slot| matches!(slot.want.kind, AttachKind::Vhost(_));
        self.opener.guests.tidy(|name| self.slots.values().any(|slot| slot.want.name == name && is_vm(slot)));
    }

    /// Brings every port to where its interface allows.
    pub fn settle(&mut self, links: &Links) {
        let ids: Vec<PortId> = self.slots.keys().copied().collect();
        let mut patience = xdp::PATIENCE;
        for id in ids {
            let began = Instant::now();
            self.settle_one(id, links, patience);
            patience = patience.saturating_sub(began.elapsed()).max(LAST_PATIENCE);
        }
    }

    /// Readable when [`Ports::settle_changed`] has something to do.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.opener.guests.as_fd()
    }

    /// When [`Ports::settle_changed`] is due although nothing is readable.
    pub fn guests_deadline(&self) -> Option<Instant> {
        self.opener.guests.deadline()
    }

    /// Brings ports to where their guests are now. False if nothing changed.
    pub fn settle_changed(&mut self, links: &Links) -> bool {
        let changed = self.opener.guests.changed(Instant::now());
        changed.iter().for_each(|id| self.settle_one(*id, links, LAST_PATIENCE));
        !changed.is_empty()
    }

    /// How the session of a vhost-user port is.
    pub fn vhost_report(&self, port: PortId) -> Option<VhostReport> {
        self.opener.guests.report(port)
    }

    /// The data plane lost a port: closes it, and looks again soon.
    pub fn lost(&mut self, id: PortId, error: String, now: Instant) {
        let Some(mut slot) = self.slots.remove(&id) else { return };
        if slot.is_up() {
            tracing::warn!(port = slot.want.name, "port is down: {error}");
            self.close(id, &slot);
            slot.state = State::Down(error);
            slot.retry = Some(now + RETRY);
        }
        self.slots.insert(id, slot);
    }

    /// When [`Ports::settle`] is due without a change of interfaces.
    pub fn deadline(&self) -> Option<Instant> {
        self.slots.values().filter_map(|slot| slot.retry).min()
    }

    /// Closes all.
    pub fn close_all(&mut self) {
        let slots = std::mem::take(&mut self.slots);
        let open = slots.iter().filter(|(_, slot)| slot.is_up());
        self.close_several(&open.map(|(id, _)| *id).collect::<Vec<_>>());
    }

    /// Closes ports side by side: the kernel takes some twenty milliseconds to remove a device, but several
    /// hardly longer than one.
    fn close_several(&self, ports: &[PortId]) {
        let share = ports.len().div_ceil(CLOSERS).max(1);
        std::thread::scope(|scope| {
            for part in ports.chunks(share) {
                scope.spawn(move || part.iter().for_each(|id| self.switch.detach(*id)));
            }
        });
    }

    fn settle_one(&mut self, id: PortId, links: &Links, patience: Duration) {
        let Some(mut slot) = self.slots.remove(&id) else { return };
        let (now, step) = self.look(id, &slot, links);
        match step {
            Step::Keep => {}
            Step::Open => self.open(id, &mut slot, patience),
            Step::Reopen => {
                self.close(id, &slot);
                self.open(id, &mut slot, patience);
            }
            Step::Wait(state) => {
                self.close(id, &slot);
                slot.enter(state);
            }
        }
        slot.seen = if slot.is_up() { now.with(slot.want.mtu) } else { now };
        let told = slot.want.kind.has_netdev() || matches!(slot.state, State::Awaiting(_));
        let deaf = !slot.is_up() && !told;
        slot.retry = deaf.then(|| Instant::now() + TRY_AGAIN);
        self.slots.insert(id, slot);
    }

    /// What there is for a port to be on, and what to do about it.
    fn look(&mut self, id: PortId, slot: &Slot, links: &Links) -> (Seen, Step) {
        let AttachKind::Vhost(request) = &slot.want.kind else {
            let now = Seen::of(links.get(&slot.want.name), &slot.want.kind);
            return (now, slot.step(now));
        };
        let wait = match self.opener.guests.follow(id, request) {
            Ok(Presence::Running(epoch)) => return (Seen::Guest(epoch), slot.step(Seen::Guest(epoch))),
            Ok(Presence::Awaited(reason)) => State::Awaiting(reason),
            Ok(Presence::Hindered(reason)) => State::Down(reason),
            Err(error) => State::Failed(error),
        };
        (Seen::Missing, Step::Wait(wait))
    }

    fn open(&self, id: PortId, slot: &mut Slot, patience: Duration) {
        let want = &slot.want;
        let state = match self.opener.open(id, want, patience) {
            Ok(opened) if opened.queues.is_empty() => {
                State::Awaiting("the guest has just stopped its queues".into())
            }
            Ok(Opened { queues, obtained, because }) => {
                let why = because.iter().map(|reason| format!(" because {reason}")).collect::<String>();
                match want.kind {
                    AttachKind::Vhost(_) => tracing::debug!(port = want.name, "port is up: {obtained}"),
                    _ => tracing::info!(port = want.name, "port is up: {obtained}{why}"),
                }
                let count = queues.len();
                self.switch.attach(id, queues, &placement(want, count));
                State::Up { obtained, because, queues: count }
            }
            Err(error) => State::Failed(error),
        };
        slot.enter(state);
    }

    fn close(&self, id: PortId, slot: &Slot) {
        if slot.is_up() {
            self.switch.detach(id);
        }
    }
}

/// The core of each queue, where one is asked for.
fn placement(want: &Attachment, queues: usize) -> Vec<Option<usize>> {
    let core = |queue: usize| {
        want.rxq_affinity.iter().find(|(q, _)| usize::from(*q) == queue).map(|(_, core)| *core)
    };
    (0..queues).map(core).collect()
}

#[cfg(test)]
mod tests {
    use dataplane::port::vhost::{Request, Role};

    use super::*;
    use crate::config::XdpMode;

    fn slot(kind: AttachKind, state: State, seen: Seen) -> Slot {
        let name = "eth1".to_owned();
        let xdp_mode = XdpMode::BestEffort;
        let want = Attachment { name, kind, mtu: None, mac: None, queues: 1, xdp_mode, rxq_affinity: vec![] };
        Slot { want, state, seen, retry: None }
    }

    fn up() -> State {
        State::Up { obtained: "afpacket".into(), because: None, queues: 1 }
    }

    #[test]
    fn a_port_follows_its_interface() {
        let step = |state, seen, now| slot(AttachKind::System, state, seen).step(now);
        assert_eq!(step(up(), Seen::Up(3, None), Seen::Up(3, None)), Step::Keep);
        assert_eq!(
            step(up(), Seen::Up(3, None), Seen::Up(4, None)),
            Step::Reopen,
            "made again under its old name"
        );
        assert!(matches!(step(up(), Seen::Up(3, None), Seen::Down(3)), Step::Wait(_)));
        assert!(matches!(step(up(), Seen::Up(3, None), Seen::Missing), Step::Wait(_)));
        assert_eq!(step(State::Down("".into()), Seen::Missing, Seen::Up(4, None)), Step::Open);
        assert_eq!(
            step(State::Down("".into()), Seen::Up(3, None), Seen::Up(3, None)),
            Step::Open,
            "after the data plane lost it"
        );
        assert!(matches!(step(State::Down("".into()), Seen::Missing, Seen::Down(4)), Step::Wait(_)));
    }

    #[test]
    fn a_port_that_depends_on_the_mtu_follows_it() {
        let link = |mtu| Link { index: 3, name: "eth1".into(), up: true, running: true, mtu, mac: None };
        let seen = |kind: &AttachKind, mtu| Seen::of(Some(&link(mtu)), kind);
        for kind in [AttachKind::Afxdp, AttachKind::System] {
            let opened = slot(kind.clone(), up(), seen(&kind, 1500));
            assert_eq!(opened.step(seen(&kind, 1500)), Step::Keep);
            assert_eq!(opened.step(seen(&kind, 9000)), Step::Reopen);
            let failed = slot(kind.clone(), State::Failed("too long".into()), seen(&kind, 9000));
            assert_eq!(failed.step(seen(&kind, 1500)), Step::Open);
            let setting = slot(kind.clone(), up(), seen(&kind, 1500).with(Some(9000)));
            assert_eq!(setting.step(seen(&kind, 9000)), Step::Keep, "our own doing");
        }
        let packet = |mtu| seen(&AttachKind::Afpacket, mtu);
        assert_eq!(slot(AttachKind::Afpacket, up(), packet(1500)).step(packet(9000)), Step::Keep);
    }

    #[test]
    fn a_failure_is_kept_until_the_interface_changes() {
        let step = |now| slot(AttachKind::Afxdp, State::Failed("busy".into()), Seen::Up(3, None)).step(now);
        assert_eq!(step(Seen::Up(3, None)), Step::Keep);
        assert_eq!(step(Seen::Up(4, None)), Step::Open);
        assert!(matches!(step(Seen::Missing), Step::Wait(_)));
        let taken = slot(AttachKind::Internal, State::Failed("exists already".into()), Seen::Up(3, None));
        assert_eq!(taken.step(Seen::Up(3, None)), Step::Keep);
        assert_eq!(taken.step(Seen::Missing), Step::Open);
    }

    #[test]
    fn an_internal_port_needs_no_interface_to_come_up() {
        let step = |state, now| slot(AttachKind::Internal, state, Seen::Up(3, None)).step(now);
        assert_eq!(step(State::Down("".into()), Seen::Missing), Step::Open);
        assert_eq!(step(up(), Seen::Missing), Step::Reopen, "somebody deleted it");
        assert_eq!(step(up(), Seen::Down(3)), Step::Keep, "the host may set its end down");
    }

    #[test]
    fn a_port_follows_its_guest() {
        let request =
            Request { name: "vm".into(), path: "/run/vm".into(), role: Role::Server, pairs: 2, mtu: 1500 };
        let step = |state, seen, now| slot(AttachKind::Vhost(request.clone()), state, seen).step(now);
        assert_eq!(step(up(), Seen::Guest(3), Seen::Guest(3)), Step::Keep);
        assert_eq!(step(up(), Seen::Guest(3), Seen::Guest(4)), Step::Reopen, "other queues");
        assert_eq!(step(State::Awaiting("".into()), Seen::Missing, Seen::Guest(4)), Step::Open);
        assert_eq!(step(State::Failed("no socket".into()), Seen::Missing, Seen::Guest(4)), Step::Open);
        assert_eq!(
            step(State::Down("".into()), Seen::Guest(4), Seen::Guest(4)),
            Step::Open,
            "after the data plane lost it"
        );
    }

    #[test]
    fn queues_go_to_the_cores_asked_for() {
        let mut want = slot(AttachKind::Afxdp, up(), Seen::Missing).want;
        want.rxq_affinity = vec![(2, 7), (0, 3)];
        assert_eq!(placement(&want, 3), [Some(3), None, Some(7)]);
    }
}
