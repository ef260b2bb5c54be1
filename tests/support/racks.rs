//! Several switches in memory, with wires between them: hypervisors and the network between hypervisors.
//!
//! Ports of one name are one wire, if the fabric was told so, and a switch stands in its middle that knows VLANs and where
//! stations are. All other ports have names of their own and are cables to the test, whichever switch has them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dataplane::poller::Caches;
use dataplane::port::memory::Delivered;
use dataplane::switch::SwitchConfig;
use encap::field::MacAddr;
use flowtable::action::DropReason;
use flowtable::time::Instant;

use crate::frames::frame;
use crate::rack::{Out, Rack, STEP, TIMES, hex, table};

/// The network between hypervisors.
#[derive(Debug, Default)]
struct Wire {
    /// Behind which rack a station of a VLAN was seen.
    known: BTreeMap<(u16, [u8; 6]), usize>,
}

/// Racks, and wires between them.
pub struct Fabric {
    /// The racks.
    pub racks: Vec<Rack>,
    wires: BTreeMap<String, Wire>,
}

/// Plays a scenario with caches on and with caches off: every frame that comes out of any switch, and every counter
/// of every port, must be the same. Ends with the conservation law in each.
#[track_caller]
pub fn both_ways(configs: &[String], wires: &[&str], scenario: impl Fn(&mut Fabric)) {
    let [on, off] = [Caches::On, Caches::Off].map(|caches| {
        let mut fabric = Fabric::new(configs, wires, &SwitchConfig { caches, ..SwitchConfig::default() });
        scenario(&mut fabric);
        fabric.audit();
        fabric.racks.into_iter().map(Rack::outcome).collect::<Vec<_>>()
    });
    on.iter().zip(&off).for_each(|(on, off)| on.assert_same(off));
}

impl Fabric {
    /// A rack for each configuration; `wires` are names of ports. Everybody knows every endpoint.
    pub fn new(configs: &[String], wires: &[&str], settings: &SwitchConfig) -> Fabric {
        let racks = configs.iter().map(|config| Rack::with(config, settings.clone())).collect();
        let wires = wires.iter().map(|name| ((*name).to_owned(), Wire::default())).collect();
        let mut fabric = Fabric { racks, wires };
        fabric.introduce();
        fabric
    }

    /// Every endpoint announces itself, and every rack is told of the others', as address resolution would.
    pub fn introduce(&mut self) {
        let all: Vec<_> = self.racks.iter().map(Rack::endpoints).collect();
        for (at, rack) in self.racks.iter_mut().enumerate() {
            let mine = all[at].clone();
            for (_, address, mac) in all.iter().enumerate().filter(|(i, _)| *i != at).flat_map(|(_, e)| e) {
                mine.iter().for_each(|(port, ..)| rack.neighbour(port, *address, *mac));
            }
        }
        for (port, _, mac) in all.into_iter().flatten() {
            self.send(&port, &[frame(mac, MacAddr::BROADCAST)]);
        }
    }

    /// Gives a rack another configuration.
    pub fn apply(&mut self, rack: usize, config: &str) {
        self.racks[rack].apply(config);
        self.settle();
    }

    /// The rack with this port.
    pub fn rack_of(&self, port: &str) -> usize {
        self.racks.iter().position(|rack| rack.has_cable(port)).unwrap_or_else(|| panic!("no port {port}"))
    }

    /// Sets the time.
    pub fn set_time(&mut self, now: Instant) {
        self.racks.iter_mut().for_each(|rack| rack.now = now);
    }

    /// Turns all pollers and carries frames until nothing moves any more.
    pub fn settle(&mut self) {
        loop {
            self.racks.iter_mut().for_each(Rack::settle);
            let names: Vec<String> = self.wires.keys().cloned().collect();
            let carried: usize = names.iter().map(|name| self.carry(name)).sum();
            if carried == 0 {
                return;
            }
        }
    }

    /// Carries what waits on a wire; how many frames that was.
    fn carry(&mut self, name: &str) -> usize {
        let with: Vec<usize> = (0..self.racks.len()).filter(|at| self.racks[*at].has_cable(name)).collect();
        let mut count = 0;
        for &from in &with {
            for Delivered { bytes, offload } in self.racks[from].drain_port(name) {
                count += 1;
                let to = self.wires.get_mut(name).expect("a wire").switch(from, &bytes);
                for &rack in with.iter().filter(|at| **at != from && to.is_none_or(|to| to == **at)) {
                    assert!(self.racks[rack].cable(name).inject_offload(&bytes, offload), "{name} is full");
                }
            }
        }
        count
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Duration) {
        let end = self.racks[0].now + time;
        while self.racks[0].now < end {
            self.set_time(end.min(self.racks[0].now + STEP));
            self.settle();
        }
    }

    /// Sends frames into a port, all at once; what came out of all racks, but for the wires between them.
    #[track_caller]
    pub fn send(&mut self, port: &str, frames: &[Vec<u8>]) -> Out {
        let rack = self.rack_of(port);
        for frame in frames {
            assert!(self.racks[rack].cable(port).inject(frame), "{port} is full");
        }
        self.settle();
        let mut out = Out::new();
        for (port, frames) in self.racks.iter_mut().flat_map(Rack::drain) {
            out.entry(port).or_default().extend(frames.into_iter().map(|delivered| delivered.bytes));
        }
        out
    }

    /// Sends a frame into a port, [`TIMES`] times, one after the other: it must come out of exactly these each time.
    #[track_caller]
    pub fn expect_at(&mut self, from: &str, frame: &[u8], to: &[&str]) {
        let expected: Out = to.iter().map(|port| ((*port).to_owned(), vec![frame.to_vec()])).collect();
        for time in 1..=TIMES {
            let got = self.send(from, &[frame.to_vec()]);
            assert!(
                got == expected,
                "{} into {from}, time {time}, gives\n{}not\n{}{self:?}",
                hex(frame),
                table(&got),
                table(&expected)
            );
        }
    }

    /// The same, for a frame that comes out nowhere: all racks together drop it for this reason, once each time.
    #[track_caller]
    pub fn expect_drop(&mut self, from: &str, frame: &[u8], reason: DropReason) {
        let before = self.dropped(reason);
        self.expect_at(from, frame, &[]);
        let dropped = self.dropped(reason) - before;
        assert!(dropped == TIMES as u64, "{} into {from}: not {reason:?}\n{self:?}", hex(frame));
    }

    /// Frames dropped for this reason in all racks.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.racks.iter().map(|rack| rack.switch.total_stats().dropped(reason)).sum()
    }

    /// The conservation law holds in each.
    #[track_caller]
    pub fn audit(&self) {
        self.racks.iter().for_each(|rack| {
            rack.audit();
        });
    }
}

impl Wire {
    /// Where a frame that comes from a rack goes; `None`: everywhere else.
    fn switch(&mut self, from: usize, frame: &[u8]) -> Option<usize> {
        let address = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).expect("six bytes");
        let vlan = match frame[12..14] {
            [0x81, 0x00] => u16::from_be_bytes([frame[14], frame[15]]) & 0xfff,
            _ => 0,
        };
        self.known.insert((vlan, address(6)), from);
        self.known.get(&(vlan, address(0))).copied()
    }
}

/// All switches, for a failed test.
impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.racks.iter().enumerate().try_for_each(|(at, rack)| write!(f, "rack {at} {rack:?}"))
    }
}
