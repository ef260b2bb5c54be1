//! Open files are a limit that ports use up: what is left must do for clients, edits and the pollers.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::api::server::CLIENTS;

/// What a process under an ample limit keeps for everything but ports: clients, and a file or two for each of
/// thirty pollers.
const SPARE: u64 = CLIENTS as u64 + 64;

/// Takes all that the hard limit allows: the soft one is low for the sake of select(2), which nobody here uses.
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

/// May a port of so many queues be opened?
///
/// # Errors
/// One line with the cure.
pub fn check(queues: u16) -> Result<(), String> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    // The kernel gives the lowest number that is free.
    let next = File::open("/").map_or(limit, |file| u64::from(file.as_raw_fd().unsigned_abs()));
    if fits(next, queues, limit) {
        return Ok(());
    }
    Err(format!("too many open files: the limit is {limit}; raise it with LimitNOFILE or `ulimit -n`"))
}

/// A port takes a socket and its like per queue, and a few for itself.
fn fits(next: u64, queues: u16, limit: u64) -> bool {
    next + 4 + 2 * u64::from(queues) + SPARE.min(limit / 4) <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_leave_files_for_the_rest() {
        assert!(fits(20, 1, 1024) && fits(20, 256, 1024));
        assert!(!fits(1024 - SPARE, 1, 1024) && !fits(20, 500, 1024));
        assert!(fits(20, 1, 64) && !fits(43, 1, 64), "a low limit is divided as well");
        assert!(!fits(64, 1, 64), "none left");
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
        assert_eq!(check(1), Ok(()));
    }
}
