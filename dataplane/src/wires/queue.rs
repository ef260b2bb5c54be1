//! A queue of a port, and what its poller knows about it.

use flowtable::id::PortId;

use crate::budget::Budget;
use crate::port::{Counters, Port};

/// One queue of a port, owned by this poller.
pub struct Queue {
    /// Its port.
    pub port: PortId,
    /// Which of the port's queues it is.
    pub index: u16,
    /// The attachment.
    pub io: Box<dyn Port>,
    /// What upcalls it may still cause.
    pub budget: Budget,
    /// Cleared when the interface went away.
    pub up: bool,
    /// How many frames it gave when it was last asked: if that is a batch, likely it has more.
    pub gave: usize,
    /// It is not asked, for its descriptor tells of its next frame ([`Port::arm`]).
    pub armed: bool,
    /// What it had lost when that was last counted.
    pub lost: Counters,
}

impl Queue {
    /// One that is up and is asked.
    pub fn new(port: PortId, index: u16, io: Box<dyn Port>, budget: Budget) -> Queue {
        Queue { port, index, io, budget, up: true, gave: 0, armed: false, lost: Counters::default() }
    }

    /// Has the descriptor tell of the next frame; false, and it does not, if there is one already.
    pub fn arm(&mut self) -> bool {
        self.armed = !self.io.arm();
        if !self.armed {
            self.io.disarm();
        }
        self.armed
    }

    /// Has the descriptor be silent.
    pub fn disarm(&mut self) {
        self.armed = false;
        self.io.disarm();
    }
}
