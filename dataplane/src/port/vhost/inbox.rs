//! One message at a time from a frontend that may stop in the middle of it, and answers to one that may not read them.
//!
//! rust-vmm's reader waits in the middle of a message for as long as it takes. So the bytes and descriptors of a message are
//! collected here, without waiting, and it gets them when they are all there ([`super::relay`]).

use std::io::IoSlice;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use thiserror::Error;
use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

/// Bytes of a message's header: request, flags, size of what follows (vhost-user, "Header").
pub(super) const HEADER: usize = 12;
/// The most descriptors that the kernel passes at once (`SCM_MAX_FD`).
const FDS_AT_ONCE: usize = 253;

/// What is no message.
#[derive(Debug, Error)]
pub(super) enum InboxError {
    /// Longer than any message.
    #[error("message of {0} bytes")]
    Oversized(u32),
    /// More descriptors than any message has.
    #[error("message with {0} descriptors")]
    Descriptors(usize),
    /// It ended in the middle.
    #[error("the connection ended in the middle of a message")]
    Torn,
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] Errno),
}

/// A message, or an answer: header and payload, and descriptors.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    fn word(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    }

    /// Which request it is. Of a whole message only, as what follows.
    pub(super) fn request(&self) -> u32 {
        self.word(0)
    }

    pub(super) fn flags(&self) -> u32 {
        self.word(4)
    }

    /// Bytes that follow the header.
    fn size(&self) -> u32 {
        self.word(8)
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }
}

/// What a look into the inbox found.
#[derive(Debug)]
pub(super) enum Mail {
    /// A whole message.
    Message(Message),
    /// Not all of one yet.
    Nothing,
    /// The frontend went away, between messages.
    End,
}

/// A message that is being collected.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    message: Message,
    since: Option<Instant>,
}

impl Inbox {
    /// When the message began that is not all there yet.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Collects what has arrived, up to the end of one message. Does not wait.
    pub(super) fn look(&mut self, stream: &UnixStream) -> Result<Mail, InboxError> {
        loop {
            let wanted = self.wanted()?;
            if wanted == 0 {
                self.since = None;
                return Ok(Mail::Message(std::mem::take(&mut self.message)));
            }
            let got = match receive(stream, wanted) {
                Err(Errno::EAGAIN) => return Ok(Mail::Nothing),
                Err(Errno::EINTR) => continue,
                // Killed with messages of ours unread.
                Err(Errno::ECONNRESET) => Message::default(),
                got => got?,
            };
            if got.bytes.is_empty() {
                return if self.message.bytes.is_empty() { Ok(Mail::End) } else { Err(InboxError::Torn) };
            }
            self.since.get_or_insert_with(Instant::now);
            self.message.bytes.extend(got.bytes);
            self.message.fds.extend(got.fds);
            if self.message.fds.len() > MAX_ATTACHED_FD_ENTRIES {
                return Err(InboxError::Descriptors(self.message.fds.len()));
            }
        }
    }

    /// Bytes that are missing: of the header, then of the rest.
    fn wanted(&self) -> Result<usize, InboxError> {
        let len = self.message.bytes.len();
        if len < HEADER {
            return Ok(HEADER - len);
        }
        let size = self.message.size();
        if size as usize > MAX_MSG_SIZE {
            return Err(InboxError::Oversized(size));
        }
        Ok(HEADER + size as usize - len)
    }
}

/// What has arrived, at most so many bytes; none at the end.
///
/// (nix would lose the descriptors of a message that did not all come, and never close them.)
#[allow(unsafe_code)]
pub(super) fn receive(stream: &UnixStream, most: usize) -> Result<Message, Errno> {
    let mut bytes = vec![0; most];
    let mut control = cmsg_space!([RawFd; FDS_AT_ONCE]);
    let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: most };
    // SAFETY: all zeros is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut slice, 1);
    (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), control.capacity());
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header refers to both buffers and their lengths, and they outlive the call.
    let len = Errno::result(unsafe { libc::recvmsg(stream.as_raw_fd(), &mut header, flags) })?;
    // SAFETY: the kernel has just filled it.
    let fds = unsafe { rights(&header) };
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        // There is room for all that a message can have: the process has no more descriptors.
        return Err(Errno::EMFILE);
    }
    bytes.truncate(len as usize);
    Ok(Message { bytes, fds })
}

/// The descriptors that came with a message.
///
/// # Safety
/// The kernel has filled the header, and nobody has taken them out yet.
#[allow(unsafe_code)]
unsafe fn rights(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the caller's word; each message begins in the buffer, and has as many descriptors as its length says.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = message.as_ref() {
            if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let count = (found.cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                let first = libc::CMSG_DATA(found).cast::<RawFd>();
                fds.extend((0..count).map(|index| OwnedFd::from_raw_fd(first.add(index).read_unaligned())));
            }
            message = libc::CMSG_NXTHDR(header, found);
        }
    }
    fds
}

/// Sends as much of an answer as there is room for, with all its descriptors, and takes that out of it. Does not wait.
pub(super) fn send(stream: &UnixStream, answer: &mut Message) -> Result<(), Errno> {
    while !answer.bytes.is_empty() {
        let raw: Vec<RawFd> = answer.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = if raw.is_empty() { vec![] } else { vec![ControlMessage::ScmRights(&raw)] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let slices = [IoSlice::new(&answer.bytes)];
        match sendmsg::<()>(stream.as_raw_fd(), &slices, &control, flags, None) {
            Ok(sent) => {
                answer.bytes.drain(..sent);
                answer.fds.clear();
            }
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::fcntl::OFlag;
    use nix::sys::socket::{setsockopt, sockopt};
    use nix::unistd::{pipe2, read};

    use super::*;

    #[test]
    fn descriptors_that_did_not_all_come_are_closed() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        // As if the process had room for some descriptors only: the sender's name takes their place.
        setsockopt(&ours, sockopt::PassCred, &true).unwrap();
        let (reader, writer) = pipe2(OFlag::O_NONBLOCK).unwrap();
        let fds = (0..FDS_AT_ONCE).map(|_| writer.try_clone().unwrap()).collect();
        send(&theirs, &mut Message { bytes: vec![0], fds }).unwrap();
        drop(writer);
        assert!(receive(&ours, 1).is_err());
        assert_eq!(read(&reader, &mut [0]), Ok(0), "nobody has the other end any more");
    }
}
