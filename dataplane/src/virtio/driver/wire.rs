//! The vhost-user socket without its rules (QEMU's `docs/interop/vhost-user.rst`, "Message Specification"): any bytes, any
//! descriptors, halves of messages; and the few requests that rust-vmm's frontend has not.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use thiserror::Error;

/// `VHOST_USER_SET_LOG_BASE`.
pub const SET_LOG_BASE: u32 = 6;
/// `VHOST_USER_SET_VRING_BASE`.
pub const SET_VRING_BASE: u32 = 10;
/// `VHOST_USER_GET_QUEUE_NUM`.
pub const GET_QUEUE_NUM: u32 = 17;
/// `VHOST_USER_SEND_RARP`.
pub const SEND_RARP: u32 = 19;
/// `VHOST_USER_NET_SET_MTU`.
pub const NET_SET_MTU: u32 = 20;
/// `VHOST_USER_SET_STATUS`.
pub const SET_STATUS: u32 = 39;

/// The version that all messages have, a reply, and the wish for one.
pub const VERSION: u32 = 1;
/// See [`VERSION`].
pub const REPLY: u32 = 4;
/// See [`VERSION`].
pub const NEED_REPLY: u32 = 8;

/// Bytes of a message's header.
pub const HEADER: usize = 12;
/// The longest reply there is (a configuration space).
const REPLY_MAX: u32 = 4096;

/// A request failed.
#[derive(Debug, Error)]
pub enum WireError {
    /// The socket is closed, or the backend does not answer in time.
    #[error("vhost-user request {request}: {source}")]
    Socket {
        /// Its number.
        request: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The backend said no.
    #[error("vhost-user request {request} was refused with {code}")]
    Refused {
        /// Its number.
        request: u32,
        /// What it said.
        code: u64,
    },
    /// The answer is none to this request.
    #[error("vhost-user request {request} was answered as {answer} with flags {flags:#x} and {len} bytes")]
    Answer {
        /// Its number.
        request: u32,
        /// The number in the answer.
        answer: u32,
        /// The flags in the answer.
        flags: u32,
        /// Bytes that it says follow.
        len: u32,
    },
}

/// A message as it lies on the wire.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let words = [request, flags, body.len() as u32];
    words.iter().flat_map(|word| word.to_le_bytes()).chain(body.iter().copied()).collect()
}

/// The socket.
#[derive(Debug)]
pub struct Wire(UnixStream);

impl Wire {
    /// Of a connected socket.
    pub fn new(stream: UnixStream) -> Wire {
        Wire(stream)
    }

    /// The socket itself.
    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Sends bytes as they are, with these descriptors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let sent =
            sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        if sent < bytes.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Sends a request and waits for the yes, if the backend may be asked for one.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn request(&self, request: u32, body: &[u8], reply: Acknowledge) -> Result<(), WireError> {
        let flags = if reply == Acknowledge::Wanted { VERSION | NEED_REPLY } else { VERSION };
        self.put(request, flags, body)?;
        if reply == Acknowledge::None {
            return Ok(());
        }
        match self.answer(request)? {
            0 => Ok(()),
            code => Err(WireError::Refused { request, code }),
        }
    }

    /// Sends a request without a body, to be answered with a number.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn ask(&self, request: u32) -> Result<u64, WireError> {
        self.put(request, VERSION, &[])?;
        self.answer(request)
    }

    /// Sends a request with a descriptor, to be answered with anything.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn hand(&self, request: u32, body: &[u8], fd: BorrowedFd<'_>) -> Result<(), WireError> {
        let failed = |source| WireError::Socket { request, source };
        self.send(&message(request, VERSION, body), &[fd]).map_err(failed)?;
        let (answer, flags, body) = self.receive().map_err(failed)?;
        let right = answer == request && flags & REPLY != 0;
        right.then_some(()).ok_or(WireError::Answer { request, answer, flags, len: body.len() as u32 })
    }

    fn put(&self, request: u32, flags: u32, body: &[u8]) -> Result<(), WireError> {
        self.send(&message(request, flags, body), &[]).map_err(|source| WireError::Socket { request, source })
    }

    fn answer(&self, request: u32) -> Result<u64, WireError> {
        let (answer, flags, body) = self.receive().map_err(|source| WireError::Socket { request, source })?;
        let wrong = WireError::Answer { request, answer, flags, len: body.len() as u32 };
        let number = body.try_into().map(u64::from_le_bytes);
        number.ok().filter(|_| answer == request && flags & REPLY != 0).ok_or(wrong)
    }

    /// The next message of the backend: request, flags, body.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` if it is longer than any.
    pub fn receive(&self) -> io::Result<(u32, u32, Vec<u8>)> {
        let mut header = [0; HEADER];
        (&self.0).read_exact(&mut header)?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(8) > REPLY_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; word(8) as usize];
        (&self.0).read_exact(&mut body)?;
        Ok((word(0), word(4), body))
    }
}

/// Whether the backend is to say yes (`VHOST_USER_PROTOCOL_F_REPLY_ACK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// It is.
    Wanted,
    /// It does not know how.
    None,
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Wire::new(ours), theirs)
    }

    #[test]
    fn a_number_is_asked_for() {
        let (wire, mut backend) = pair();
        backend.write_all(&message(GET_QUEUE_NUM, VERSION | REPLY, &16u64.to_le_bytes())).unwrap();
        assert_eq!(wire.ask(GET_QUEUE_NUM).unwrap(), 16);
        let mut asked = [0; HEADER];
        backend.read_exact(&mut asked).unwrap();
        assert_eq!(asked, [17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_no_is_an_error() {
        let (wire, mut backend) = pair();
        backend.write_all(&message(NET_SET_MTU, VERSION | REPLY, &1u64.to_le_bytes())).unwrap();
        let no = wire.request(NET_SET_MTU, &1500u64.to_le_bytes(), Acknowledge::Wanted).unwrap_err();
        assert_eq!(no.to_string(), "vhost-user request 20 was refused with 1");
    }

    #[test]
    fn an_answer_to_something_else_is_an_error() {
        let (wire, mut backend) = pair();
        backend.write_all(&message(1, VERSION | REPLY, &[0; 8])).unwrap();
        assert!(matches!(wire.ask(GET_QUEUE_NUM), Err(WireError::Answer { answer: 1, len: 8, .. })));
        backend.write_all(&message(GET_QUEUE_NUM, VERSION | REPLY, &[0; 4])).unwrap();
        assert!(matches!(wire.ask(GET_QUEUE_NUM), Err(WireError::Answer { len: 4, .. })));
        backend.write_all(&[0xff; HEADER]).unwrap();
        assert!(matches!(wire.ask(GET_QUEUE_NUM), Err(WireError::Socket { .. })));
    }

    #[test]
    fn anything_can_be_sent() {
        let (wire, mut backend) = pair();
        wire.send(&[1, 2, 3], &[backend.as_fd(), backend.as_fd()]).unwrap();
        let mut bytes = [0; 3];
        backend.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3]);
    }
}
