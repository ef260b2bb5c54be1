//! Who owns the control socket.
//!
//! A lock on `SOCKET.lock` (flock(2)) decides: it ends with the process that holds it, however that dies. Its
//! holder alone may replace the socket, so a stale one is never mistaken for a live one, nor the reverse.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// The socket cannot be had.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Another process has it.
    #[error(
        "a switch is already running on {} as process {pid}; stop that one, or set another `socket` in [switch]",
        socket.display()
    )]
    Running {
        /// The socket.
        socket: PathBuf,
        /// The other process, as it wrote itself down.
        pid: String,
    },
    /// The path is taken by something else.
    #[error("{} exists and is no socket; move it away, or set another `socket` in [switch]", .0.display())]
    NotSocket(PathBuf),
    /// The file system refused.
    #[error("cannot make {}: {source}; run as root, or set another `socket` in [switch]", path.display())]
    Io {
        /// What was to be made.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The right to a socket path. Gives up path and lock when dropped.
#[derive(Debug)]
pub struct Claim {
    socket: PathBuf,
    _lock: Lock,
}

/// The lock, and the file it is on.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Claim {
    /// Takes the path, replacing the socket of a dead process, and listens. Only root can connect (mode 0600).
    ///
    /// # Errors
    /// [`ClaimError`]; nothing of another process is touched then.
    pub fn new(socket: &Path) -> Result<(Claim, UnixListener), ClaimError> {
        if let Some(dir) = socket.parent() {
            fs::create_dir_all(dir).map_err(refused(dir))?;
        }
        let path = beside(socket, "lock");
        let lock = Lock { _file: lock(&path, socket)?, path };
        let listener = listen(socket)?;
        Ok((Claim { socket: socket.to_owned(), _lock: lock }, listener))
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn refused(path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    move |source| ClaimError::Io { path: path.to_owned(), source }
}

fn beside(socket: &Path, suffix: &str) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".");
    path.push(suffix);
    path.into()
}

fn lock(path: &Path, socket: &Path) -> Result<Flock<File>, ClaimError> {
    loop {
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let mut lock = match Flock::lock(open.map_err(refused(path))?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, _)) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(ClaimError::Running { socket: socket.to_owned(), pid: pid.trim().to_owned() });
            }
        };
        // The last holder may have removed the file between our open and our lock: then we hold a file that
        // nobody else will see.
        let ours = lock.metadata().map_err(refused(path))?;
        if fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            write_pid(&mut lock).map_err(refused(path))?;
            return Ok(lock);
        }
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Binds under another name and renames, so that the socket never exists with a laxer mode.
fn listen(socket: &Path) -> Result<UnixListener, ClaimError> {
    match fs::symlink_metadata(socket) {
        Ok(there) if !there.file_type().is_socket() => return Err(ClaimError::NotSocket(socket.to_owned())),
        _ => {}
    }
    let new = beside(socket, "new");
    let _ = fs::remove_file(&new);
    let bind = || {
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        fs::rename(&new, socket)?;
        Ok(listener)
    };
    bind().map_err(refused(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_second_claim_names_the_first_and_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/sluice.sock");
        let (claim, _listener) = Claim::new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Claim::new(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(claim);
        assert!(fs::read_dir(path.parent().unwrap()).unwrap().next().is_none(), "nothing stays behind");
    }

    #[test]
    fn what_a_killed_process_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.sock");
        drop(UnixListener::bind(&path).unwrap());
        fs::write(beside(&path, "lock"), "4194304\n").unwrap();
        fs::write(beside(&path, "new"), "").unwrap();
        let (_claim, _listener) = Claim::new(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(Claim::new(&path), Err(ClaimError::NotSocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn of_many_at_once_exactly_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.sock");
        for _ in 0..20 {
            let barrier = Barrier::new(4);
            let compete = || {
                barrier.wait();
                let claim = Claim::new(&path);
                barrier.wait();
                claim.is_ok()
            };
            let winners = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(compete)).collect();
                threads.into_iter().map(|t| t.join().unwrap()).filter(|won| *won).count()
            });
            assert_eq!(winners, 1);
        }
    }
}
