//! Descriptors to signal by: those of the frontend (kick, call, error), and what a queue's poller sleeps on.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// What the kernel calls an eventfd in `/proc/self/fd`.
const EVENTFD: &str = "anon_inode:[eventfd]";

/// An event descriptor of the frontend's. `None` if it is anything else: a pipe or a terminal could block who writes.
///
/// It is set not to block, which lasts as long as the frontend leaves it so: see [`super::call`] for how to write to it.
#[allow(unsafe_code)]
pub(super) fn eventfd_of(file: File) -> Option<Arc<EventFd>> {
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    if kind.to_str() != Some(EVENTFD) {
        return None;
    }
    let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL).ok()?);
    fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).ok()?;
    // SAFETY: the kernel says that it is an eventfd.
    Some(Arc::new(unsafe { EventFd::from_owned_fd(OwnedFd::from(file)) }))
}

/// An event descriptor of our own, which does not block.
pub(super) fn eventfd() -> Result<EventFd, Errno> {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
}

/// Signals. One that is signalled already (EAGAIN) is as good.
pub(super) fn signal(eventfd: &EventFd) {
    let _ = eventfd.write(1);
}

/// What the poller of one queue sleeps on: the guest's kicks, and a bell of ours. Neither is ever read: each is watched for
/// edges, so that one call takes back whatever was signalled, and no counter or flag of the guest matters.
#[derive(Debug)]
pub(super) struct Sleep {
    epoll: Epoll,
    bell: EventFd,
}

impl Sleep {
    pub(super) fn new() -> Result<Sleep, Errno> {
        let sleep = Sleep { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, bell: eventfd()? };
        sleep.watch(&sleep.bell)?;
        Ok(sleep)
    }

    /// Signals of this one wake from now on.
    pub(super) fn watch(&self, eventfd: &EventFd) -> Result<(), Errno> {
        self.epoll.add(eventfd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))
    }

    /// They wake no more.
    pub(super) fn forget(&self, eventfd: &EventFd) {
        let _ = self.epoll.delete(eventfd);
    }

    /// Wakes.
    pub(super) fn ring(&self) {
        signal(&self.bell);
    }

    /// Takes back all signals so far.
    pub(super) fn hush(&self) {
        let _ = self.epoll.wait(&mut [EpollEvent::empty(); 4], EpollTimeout::ZERO);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// How a session is told by other threads: that it is to stop, or that a ring of its guest is at fault.
#[derive(Debug)]
pub(super) struct Alarm {
    bell: EventFd,
    stop: AtomicBool,
    fault: AtomicBool,
}

impl Alarm {
    pub(super) fn new() -> Result<Alarm, Errno> {
        Ok(Alarm { bell: eventfd()?, stop: AtomicBool::new(false), fault: AtomicBool::new(false) })
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        signal(&self.bell);
    }

    #[cold]
    pub(super) fn fault(&self) {
        self.fault.store(true, Ordering::Release);
        signal(&self.bell);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Was there a fault since the last time?
    pub(super) fn take_fault(&self) -> bool {
        let _ = self.bell.read();
        self.fault.swap(false, Ordering::AcqRel)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn rings(sleep: &Sleep) -> bool {
        poll(&mut [PollFd::new(sleep.fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }

    #[test]
    fn only_an_eventfd_is_taken_and_it_does_not_block() {
        assert!(eventfd_of(tempfile::tempfile().unwrap()).is_none());
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert!(eventfd_of(File::from(reader)).is_none());
        let blocking = EventFd::from_flags(EfdFlags::empty()).unwrap();
        let taken = eventfd_of(File::from(blocking.as_fd().try_clone_to_owned().unwrap())).unwrap();
        blocking.write(u64::MAX - 1).unwrap();
        assert_eq!(taken.write(1), Err(Errno::EAGAIN));
    }

    #[test]
    fn a_signal_wakes_until_it_is_hushed_and_the_next_wakes_again() {
        let sleep = Sleep::new().unwrap();
        let kick = eventfd().unwrap();
        sleep.watch(&kick).unwrap();
        assert!(!rings(&sleep));
        for eventfd in [&kick, &kick, &sleep.bell] {
            signal(eventfd);
            assert!(rings(&sleep) && rings(&sleep));
            sleep.hush();
            assert!(!rings(&sleep));
        }
        sleep.forget(&kick);
        signal(&kick);
        assert!(!rings(&sleep));
    }
}
