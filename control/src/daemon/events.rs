//! The data plane's events as a descriptor to poll: a thread moves them from their channel into a list.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::Receiver;
use dataplane::shared::Event;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Events that control has yet to see.
pub struct Events {
    waiting: Arc<Mutex<Vec<Event>>>,
    bell: Arc<EventFd>,
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Events {
    /// Starts the thread. It ends with the switch.
    pub fn forward(channel: &Receiver<Event>) -> std::io::Result<Events> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let waiting: Arc<Mutex<Vec<Event>>> = Arc::default();
        let (channel, theirs, ring) = (channel.clone(), Arc::clone(&waiting), Arc::clone(&bell));
        std::thread::Builder::new().name("events".to_owned()).spawn(move || {
            for event in channel {
                theirs.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                let _ = ring.write(1);
            }
        })?;
        Ok(Events { waiting, bell })
    }

    /// What happened since the last time.
    pub fn drain(&self) -> impl Iterator<Item = Event> + use<> {
        let _ = self.bell.read();
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use flowtable::id::PortId;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn an_event_makes_the_descriptor_readable_once() {
        let (sender, channel) = crossbeam::channel::unbounded();
        let events = Events::forward(&channel).unwrap();
        sender.send(Event::PortGone { port: PortId(7), error: "gone".into() }).unwrap();
        let ready = |timeout: PollTimeout| {
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], timeout).unwrap() == 1
        };
        assert!(ready(PollTimeout::from(10_000u16)));
        let seen: Vec<_> = events.drain().collect();
        assert!(matches!(&seen[..], [Event::PortGone { port: PortId(7), .. }]));
        assert!(!ready(PollTimeout::ZERO) && events.drain().next().is_none());
    }
}
