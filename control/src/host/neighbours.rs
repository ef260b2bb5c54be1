//! Who has which address on the wire behind an endpoint: a neighbour table as RFC 4861 section 7.3 has it, in virtual
//! time.
//!
//! An entry begins with a question of ours and with nothing else: what nobody here asked for is not remembered, so a
//! hostile host cannot fill the table. A neighbour that is known is asked again, alone, every half minute or so; if it
//! does not answer, everybody is asked; if nobody does, it is forgotten. A new MAC address for a known neighbour is
//! taken, once a second at most: fail-over works that way.
//!
//! Cost: O(1) per message; a pass over the table when something is due.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use encap::field::MacAddr;
use flowtable::time::Instant;

use super::wire::Weight;

/// How long an answer may take (RFC 4861 section 10: RETRANS_TIMER).
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a question is put (MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT).
const TRIES: u8 = 3;
/// How long an answer holds, on the average (REACHABLE_TIME).
const REACHABLE: Duration = Duration::from_secs(30);
/// After how long a claim nobody asked for is checked (DELAY_FIRST_PROBE_TIME).
const DELAY: Duration = Duration::from_secs(5);
/// When those that did not answer are asked again if they are wanted all the time, else forgotten.
const REST: Duration = Duration::from_secs(30);
/// How long a MAC address stays at least (`locktime` of arp(7)).
const LOCK: Duration = Duration::from_secs(1);
/// Neighbours, at most.
pub const LIMIT: usize = 4096;
/// Of which so many may be without an answer that are not wanted all the time.
pub const UNANSWERED: usize = 512;

/// How much is known of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was asked `tries` times; it will be again, or given up, at `next`.
    Asking {
        /// How often.
        tries: u8,
        /// When it goes on.
        next: Instant,
    },
    /// It answered; it is asked again then.
    Reachable(Instant),
    /// It did not answer; until then nobody asks again without being told to.
    Failed(Instant),
    /// The operator said so.
    Fixed,
}

/// A neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its MAC address, once known.
    pub mac: Option<MacAddr>,
    /// How much is known.
    pub state: State,
    /// When it last answered, or else when it was first asked.
    pub confirmed: Instant,
    /// Is it to be known at all times?
    pub wanted: bool,
    /// When its MAC address changed.
    changed: Instant,
}

/// A question to be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who has this address?
    pub target: IpAddr,
    /// Asked of this station; `None`: of all.
    pub to: Option<MacAddr>,
}

/// The neighbours of one endpoint.
#[derive(Debug, Default)]
pub struct Neighbours {
    entries: HashMap<IpAddr, Entry>,
    wanted: BTreeSet<IpAddr>,
    /// Nothing is due before then.
    due: Option<Instant>,
}

impl Neighbours {
    /// All, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Entry)> {
        self.entries.iter().map(|(address, entry)| (*address, entry))
    }

    /// Those whose MAC address is known.
    pub fn known(&self) -> impl Iterator<Item = (IpAddr, MacAddr)> {
        self.entries.iter().filter_map(|(address, entry)| Some((*address, entry.mac?)))
    }

    /// Which neighbours are to be known at all times. The questions this raises.
    pub fn keep(&mut self, wanted: BTreeSet<IpAddr>, now: Instant) -> Vec<Question> {
        if wanted == self.wanted {
            return Vec::new();
        }
        for (address, entry) in &mut self.entries {
            entry.wanted = wanted.contains(address);
        }
        self.wanted = wanted;
        let new = self.wanted.iter().filter(|address| !self.entries.contains_key(*address));
        let new: Vec<IpAddr> = new.copied().collect();
        new.into_iter().filter_map(|address| self.ask(address, now)).collect()
    }

    /// Somebody needs this neighbour now. The question to put, unless it is known or under way, or the table is full.
    pub fn ask(&mut self, target: IpAddr, now: Instant) -> Option<Question> {
        match self.entries.get(&target) {
            Some(Entry { state: State::Failed(_), .. }) => {}
            Some(_) => return None,
            None => self.make_room(self.wanted.contains(&target))?,
        }
        let next = now + PATIENCE;
        let wanted = self.wanted.contains(&target);
        let state = State::Asking { tries: 1, next };
        self.entries
            .insert(target, Entry { mac: None, state, confirmed: now, wanted, changed: Instant::ZERO });
        self.due_by(next);
        Some(Question { target, to: None })
    }

    /// Asks at once for all that are wanted and were not found: the wire is not what it was.
    pub fn again(&mut self, now: Instant) {
        let unknown = self.entries.values_mut().filter(|entry| entry.wanted && entry.mac.is_none());
        unknown.for_each(|entry| entry.state = State::Asking { tries: 0, next: now });
        self.due_by(now);
    }

    /// `None`: there is no room for one more.
    fn make_room(&mut self, wanted: bool) -> Option<()> {
        let unanswered = |entry: &Entry| entry.mac.is_none() && !entry.wanted;
        let crowded = self.entries.len() >= LIMIT
            || !wanted && self.entries.values().filter(|e| unanswered(e)).count() >= UNANSWERED;
        if crowded {
            let failed = |entry: &Entry| unanswered(entry) && matches!(entry.state, State::Failed(_));
            let victim = *self.entries.iter().find(|(_, entry)| failed(entry))?.0;
            self.entries.remove(&victim);
        }
        Some(())
    }

    /// Somebody said that `mac` has `address`. True if that changes what is known.
    pub fn heard(&mut self, address: IpAddr, mac: MacAddr, weight: Weight, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&address).filter(|e| e.state != State::Fixed) else {
            return false;
        };
        let new = entry.mac != Some(mac);
        let locked = entry.mac.is_some() && (weight == Weight::Hint || now.since(entry.changed) < LOCK);
        if new && locked {
            return false;
        }
        let until = match weight {
            Weight::Solicited => now + lifetime(address),
            _ => now + DELAY,
        };
        if new || weight == Weight::Solicited {
            entry.state = State::Reachable(until);
        }
        if weight == Weight::Solicited {
            entry.confirmed = now;
        }
        if new {
            (entry.mac, entry.changed) = (Some(mac), now);
        }
        let due = entry.due();
        if let Some(due) = due {
            self.due_by(due);
        }
        new
    }

    /// The operator says who has an address.
    pub fn fix(&mut self, address: IpAddr, mac: MacAddr, now: Instant) {
        let wanted = self.wanted.contains(&address);
        let entry = Entry { mac: Some(mac), state: State::Fixed, confirmed: now, wanted, changed: now };
        self.entries.insert(address, entry);
    }

    /// Forgets all. The questions this raises.
    pub fn flush(&mut self, now: Instant) -> Vec<Question> {
        self.entries.clear();
        let wanted = std::mem::take(&mut self.wanted);
        self.keep(wanted, now)
    }

    /// Does what is due: questions to put, and whether a neighbour was lost or given up.
    pub fn turn(&mut self, now: Instant) -> (Vec<Question>, bool) {
        let mut questions = Vec::new();
        if self.due.is_none_or(|due| due > now) {
            return (questions, false);
        }
        let mut lost = false;
        self.entries.retain(|address, entry| {
            if entry.due().is_some_and(|due| due <= now) {
                let question = entry.advance(*address, now);
                lost |= question.is_none_or(|question| question.to.is_none());
                questions.extend(question);
            }
            entry.wanted || !matches!(entry.state, State::Failed(until) if until <= now)
        });
        self.due = self.entries.values().filter_map(Entry::due).min();
        (questions, lost)
    }

    /// When [`Neighbours::turn`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn due_by(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

impl Entry {
    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Asking { next: at, .. } | State::Reachable(at) | State::Failed(at) => Some(at),
            State::Fixed => None,
        }
    }

    /// The time it waited for has come.
    fn advance(&mut self, target: IpAddr, now: Instant) -> Option<Question> {
        let tries = match self.state {
            State::Asking { tries, .. } if tries < TRIES => tries + 1,
            // The one that had it is silent: perhaps another has it now.
            State::Asking { .. } if self.mac.take().is_some() => 1,
            State::Asking { .. } => {
                self.state = State::Failed(now + REST);
                return None;
            }
            State::Failed(_) if !self.wanted => return None,
            State::Reachable(_) | State::Failed(_) => 1,
            State::Fixed => return None,
        };
        self.state = State::Asking { tries, next: now + PATIENCE };
        Some(Question { target, to: self.mac })
    }
}

/// RFC 4861 section 6.3.2 wants it between one half and one and a half of [`REACHABLE`], so that not all are asked at
/// once: here the address decides.
fn lifetime(address: IpAddr) -> Duration {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    REACHABLE / 2 + REACHABLE * u32::from(last) / 256
}

#[cfg(test)]
mod tests;
