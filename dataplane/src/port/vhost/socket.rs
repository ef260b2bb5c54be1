//! Where a frontend is found: a socket of ours, or one that it made.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};

/// Who may connect: the owner and the group of the switch. (OVS leaves it to its umask.)
const MODE: u32 = 0o660;
/// Frontends that may wait while another is connected. One port has one guest: the second is served when the first has gone.
const BACKLOG: i32 = 4;

/// A socket of ours, removed when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode, to know it by.
    id: (u64, u64),
}

impl Listener {
    /// Makes it, in place of one that nobody listens at.
    pub(super) fn bind(path: &Path) -> io::Result<Listener> {
        clear(path)?;
        let socket = unix_socket()?;
        // Before it has a name, so that it never has a laxer mode.
        fchmod(&socket, Mode::from_bits_truncate(MODE))?;
        socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        // Whatever the umask took.
        fs::set_permissions(path, Permissions::from_mode(MODE))?;
        socket::listen(&socket, Backlog::new(BACKLOG)?)?;
        let metadata = fs::symlink_metadata(path)?;
        let id = (metadata.dev(), metadata.ino());
        Ok(Listener { listener: UnixListener::from(socket), path: path.to_owned(), id })
    }

    /// Is it where frontends look for it? Somebody may have removed the file, or put his own there.
    pub(super) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == self.id)
    }

    /// A frontend that waits.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept()?.0)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Unless another process has put its own in place of it.
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn unix_socket() -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// Takes a socket away that a killed process left.
fn clear(path: &Path) -> io::Result<()> {
    let Ok(there) = fs::symlink_metadata(path) else { return Ok(()) };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    match connect(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
    }
}

/// Connects to a frontend's socket. Does not wait, not even for one that has too many connections to accept.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = unix_socket()?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_owner_and_group_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let _frontend = connect(&path).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm");
        drop(UnixListener::bind(&path).unwrap());
        let _listener = Listener::bind(&path).unwrap();
        connect(&path).unwrap();
    }

    #[test]
    fn what_is_in_use_or_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm");
        let first = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(first.accept().is_ok(), "that was the probe");
        // Another process puts its own there: it is not ours to remove.
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        connect(&path).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "data").unwrap();
        assert!(Listener::bind(&file).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "data");
    }

    #[test]
    fn a_socket_with_too_many_in_front_of_it_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm");
        let _listener = Listener::bind(&path).unwrap();
        let waiting: Vec<_> = (0..2 * BACKLOG).map(|_| connect(&path)).collect();
        let error = waiting.into_iter().find_map(Result::err).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
