//! Devices that write down where they are, killed at each of their stores, with a QEMU that serves the ring meanwhile.

use super::*;
use crate::port::vhost::places::Places;
use crate::port::vhost::ring::Witness;

/// Which store was the last.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// Before the batch was written down.
    Unwritten,
    /// Before it was shown.
    Unshown,
    /// After.
    Shown,
}

/// A device that is killed, and what happens before the next one.
#[derive(Debug, Clone)]
struct Kill {
    /// Chains of its last batch.
    given: u32,
    death: Death,
    /// Chains that the driver makes meanwhile.
    made: Vec<(u8, Form)>,
    /// Of the chains that are out, the one where QEMU believes the ring to be.
    qemu: Option<u32>,
    /// What it says then.
    base: u32,
    /// Chains that each of some devices gives back that die while they recover.
    tries: Vec<u32>,
}

struct Kept {
    history: History,
    places: Places,
    /// Where each chain begins, and where the next one would.
    begins: Vec<u32>,
}

impl Kept {
    fn new(size: u16, features: Features) -> Kept {
        let history = History::new(size, features);
        let mut kept = Kept { history, places: Places::private().unwrap(), begins: vec![0] };
        kept.start(at(0, size));
        kept
    }

    /// As a ring starts.
    fn start(&mut self, base: Place) {
        let History { memory, guest, driver, .. } = &self.history;
        let mut device = start(memory, guest, driver, base);
        let ring = Identity { guest: driver.places().descriptors, size: device.size };
        device.go_on(Some((self.places.keeper(0), ring)), Witness::Frontend, None);
        self.history.device = device;
    }

    fn make(&mut self, (len, form): (u8, Form)) {
        let (made, size) = (self.history.made, u32::from(self.history.device.size));
        let slots = if matches!(form, Form::Indirect) { 1 } else { u32::from(len) };
        let end = self.begins[made as usize] + slots;
        // The case that is given up: a full ring whose beginning is inside of a chain.
        let is_doubtful = end % (2 * size) == size && self.begins.binary_search(&(end - size)).is_err();
        if !is_doubtful {
            self.history.make(len, form);
            self.begins.extend((self.history.made > made).then_some(end));
        }
    }

    fn place_of(&self, chain: u32) -> Place {
        at(self.begins[chain as usize], self.history.device.size)
    }

    /// QEMU takes all chains from one on, and drops them.
    fn meddle(&mut self, chain: u32) {
        let (place, history) = (self.place_of(chain), &mut self.history);
        let mut device = start(&history.memory, &history.guest, &history.driver, place);
        std::mem::swap(&mut device, &mut history.device);
        history.use_some(u32::MAX);
        history.device.publish(None);
        history.device = device;
    }

    fn kill(&mut self, kill: &Kill) {
        let history = &mut self.history;
        let (begun, from) = (history.done, history.device.next);
        let given = history.use_some(kill.given).len() as u32;
        let (to, last) =
            (history.device.next, LastBatch { from: from.bits(), to: history.device.next.bits() });
        let shown = match kill.death {
            Death::Shown => {
                history.device.publish(None);
                begun + given
            }
            Death::Unshown if given > 0 => {
                self.places.keeper(0).put(last);
                begun
            }
            _ => begun,
        };
        assert!(given > 0 || from == to);
        kill.made.iter().for_each(|chain| self.make(*chain));
        // What is used behind the chains that the guest was shown, and so goes back empty.
        let first_hidden = if shown == begun && given > 1 { begun + given } else { shown };
        self.history.done = first_hidden;
        let (free, made) = (first_hidden.max(shown + 1), self.history.made);
        if let Some(qemu) = kill.qemu.filter(|_| free < made) {
            self.meddle(free + qemu % (made - free));
            self.history.done = made;
        }
        for n in shown..self.history.done {
            self.history.sent[(n - self.history.back) as usize].1 = true;
        }
        for &stores in &kill.tries {
            self.start_and_die((shown, self.history.done), stores);
        }
        let (size, done) = (self.history.device.size, self.history.done);
        self.start(at(kill.base, size));
        assert_eq!(self.history.device.next, self.place_of(done), "{kill:?}");
    }

    /// A device that finds these chains and dies while it gives them back.
    fn start_and_die(&mut self, (from, to): (u32, u32), stores: u32) {
        let place = self.place_of(from);
        let History { memory, guest, driver, .. } = &self.history;
        let mut device = start(memory, guest, driver, place);
        for chain in from..to.min(from.saturating_add(stores)) {
            let slots = (self.begins[chain as usize + 1] - self.begins[chain as usize]) as u16;
            let last = self.begins[chain as usize + 1] - 1;
            let id = device.descriptor(at(last, device.size).index).id;
            device.give_back(Chain { id, slots, len: 0 }, 0);
        }
    }

    /// The guest loads its driver anew, which makes chains. What was written down is of the ring before.
    fn reload(&mut self, chains: &[(u8, Form)]) {
        let History { driver, sent, made, done, back, .. } = &mut self.history;
        driver.reset();
        sent.clear();
        (*made, *done, *back) = (0, 0, 0);
        self.begins = vec![0];
        chains.iter().for_each(|chain| self.make(*chain));
        self.start(at(0, self.history.device.size));
        assert_eq!(self.history.device.next, self.place_of(0), "{chains:?}");
    }
}

fn any_form() -> impl Strategy<Value = (u8, Form)> {
    (1u8..4, prop_oneof![Just(Form::Direct), Just(Form::Indirect)])
}

fn kill() -> impl Strategy<Value = Kill> {
    let death = prop_oneof![Just(Death::Unwritten), Just(Death::Unshown), Just(Death::Shown)];
    let made = prop::collection::vec(any_form(), 0..20);
    let base = prop_oneof![Just(0u32), any::<u32>()];
    (0u32..12, death, made, prop::option::of(any::<u32>()), base, prop::collection::vec(0u32..30, 0..3))
        .prop_map(|(given, death, made, qemu, base, tries)| Kill { given, death, made, qemu, base, tries })
}

#[derive(Debug, Clone)]
enum Event {
    Make((u8, Form)),
    Collect,
    Serve(u32),
    Kill(Kill),
    Reload(Vec<(u8, Form)>),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => any_form().prop_map(Event::Make),
        3 => Just(Event::Collect),
        3 => (0u32..40).prop_map(Event::Serve),
        3 => kill().prop_map(Event::Kill),
        1 => prop::collection::vec(any_form(), 0..70).prop_map(Event::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the chains are, whichever store was the last, whatever QEMU says and wherever it meddled: some 20,000 kills.
    #[test]
    fn a_ring_whose_place_was_written_down_always_goes_on(
        size in 2u32..7, features in features(), events in prop::collection::vec(event(), 0..400),
    ) {
        let mut kept = Kept::new(1 << size, features);
        for event in events {
            match event {
                Event::Make(chain) => kept.make(chain),
                Event::Collect => kept.history.collect(),
                Event::Serve(most) => kept.history.serve(most),
                Event::Kill(kill) => kept.kill(&kill),
                Event::Reload(chains) => kept.reload(&chains),
            }
        }
        kept.history.finish();
    }
}
