//! Several pollers of one switch, with ports in memory whose stations talk to each other.

use dataplane::pktgen::frames::shuffled;
use dataplane::poller::Poller;
use dataplane::port::{self, Port};
use dataplane::run::Clock;

use super::rig::{self, Datagram, Rig, SHORT, bridge, station};

/// Pollers to be turned, each in a thread of its own, and their time. In its first turn one takes its ports in.
pub struct Crew {
    pub pollers: Vec<Poller>,
    pub clock: Clock,
}

/// Who has the two ends of a pair of ports?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// The same poller.
    Together,
    /// Two, so that every frame is handed over.
    Apart,
}

impl Crew {
    /// A bridge with a pair of ports for each poller, and so many flows each way.
    pub fn pairs(pollers: usize, flows: u32, ends: Ends) -> Crew {
        let names: Vec<String> = (0..2 * pollers).map(|n| format!("port{n}")).collect();
        let (rig, others) = Rig::crew(&small(&names.join("\n")), pollers);
        for (n, name) in names.iter().enumerate() {
            let (pair, end) = (n / 2, n % 2);
            let poller = match ends {
                Ends::Together => pair,
                Ends::Apart => (pair + end) % pollers,
            };
            let reel = reel([n as u8, (n ^ 1) as u8], flows);
            rig.switch.attach(rig.id(name), vec![reel], &[Some(poller)]);
        }
        Crew::of(rig, others)
    }

    /// A bridge with two ports, and a queue of each for each poller, all with the same flows.
    pub fn queues(pollers: usize, flows: u32) -> Crew {
        let (rig, others) = Rig::crew(&small("a\nb"), pollers);
        let cores: Vec<Option<usize>> = (0..pollers).map(Some).collect();
        for (port, ends) in [("a", [0, 1]), ("b", [1, 0])] {
            let queues = cores.iter().map(|_| reel(ends, flows)).collect();
            rig.switch.attach(rig.id(port), queues, &cores);
        }
        Crew::of(rig, others)
    }

    /// What is left of a switch that nobody controls any more.
    fn of(rig: Rig, others: Vec<Poller>) -> Crew {
        let Rig { poller, clock, .. } = rig;
        Crew { pollers: [poller].into_iter().chain(others).collect(), clock }
    }
}

/// A bridge that knows no more stations than one does by default.
fn small(ports: &str) -> String {
    bridge(ports).replace("mac-table-size = 1000000\n", "")
}

/// What the stations behind one port say to those behind another, in an order that no prefetcher guesses.
fn reel([from, to]: [u8; 2], flows: u32) -> Box<dyn Port> {
    let side = f64::from(flows).sqrt().ceil() as u32;
    let frame = |n: u32| {
        let (from, to) = (station(from, n / side), station(to, n % side));
        Datagram { from, to, flow: n, len: SHORT }.bytes()
    };
    let frames: Vec<Vec<u8>> = shuffled(flows).into_iter().map(frame).collect();
    port::boxed(rig::reel(&frames))
}
