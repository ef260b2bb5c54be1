//! Configuration files are read whole, so a file must have an end, and reading it must not wait for anybody.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The longest file, in bytes: a thousand times the longest that anybody would write.
pub const LIMIT: u64 = 16 << 20;

/// The text of a regular file of at most [`LIMIT`] bytes. Never waits for a writer, as on a FIFO.
///
/// # Errors
/// The kernel's; what else is wrong with the file, in words.
pub fn text(path: &Path) -> io::Result<String> {
    let wrong = |what| Err(io::Error::new(ErrorKind::InvalidInput, what));
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return wrong("not a regular file".to_owned());
    }
    let mut text = String::new();
    let length = file.take(LIMIT + 1).read_to_string(&mut text)?;
    if length as u64 > LIMIT { wrong(format!("longer than {} MiB", LIMIT >> 20)) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn a_text_is_read_and_a_missing_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.toml");
        assert_eq!(text(&path).unwrap_err().kind(), ErrorKind::NotFound);
        fs::write(&path, "# ü\n").unwrap();
        assert_eq!(text(&path).unwrap(), "# ü\n");
        assert_eq!(text(dir.path()).unwrap_err().kind(), ErrorKind::IsADirectory);
    }

    #[test]
    fn what_has_no_end_or_no_writer_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(text(&fifo).unwrap_err().to_string(), "not a regular file");
        assert_eq!(text(Path::new("/dev/zero")).unwrap_err().to_string(), "not a regular file");
        assert!(text(&socket).is_err());
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.toml");
        let file = File::create(&path).unwrap();
        file.set_len(LIMIT).unwrap();
        assert_eq!(text(&path).unwrap().len() as u64, LIMIT);
        file.set_len(LIMIT + 1).unwrap();
        assert_eq!(text(&path).unwrap_err().to_string(), "longer than 16 MiB");
    }
}
