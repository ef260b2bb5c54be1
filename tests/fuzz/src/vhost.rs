//! What a frontend may say to a vhost-user session: messages, halves of messages and anything else, with descriptors.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dataplane::port::vhost::converse;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// How long the session waits for the rest of a message.
const PATIENCE: Duration = Duration::from_millis(2);
/// A session that takes longer hangs, whatever else the machine does.
const HANG: Duration = Duration::from_secs(10);
/// Bytes of the memory that is shared.
const MEMORY: u64 = 1 << 20;

/// Chunks one after the other: an octet says which and how many descriptors go with it, one how long it is; in front of a
/// whole message, one says which request it is. The session ends: because the frontend left, or within its patience.
pub fn vhost_message(input: &[u8]) {
    let (theirs, ours) = UnixStream::pair().expect("a pair of sockets");
    let mut rest = input;
    while let Some((&[form, len], more)) = rest.split_first_chunk() {
        let (body, more) = more.split_at(more.len().min(len.into()));
        rest = more;
        let bytes = if form & 0x80 == 0 { body.to_vec() } else { whole(body) };
        // Of a session that listens no more, or to so much, nothing new is learned.
        if send(&theirs, &bytes, &descriptors(form)).is_err() {
            break;
        }
    }
    let stays = input.first().is_some_and(|form| form & 0x40 != 0);
    let began = Instant::now();
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It is left, or it leaves.
            let _ = stays.then(|| is_done.recv_timeout(3 * PATIENCE));
            drop(theirs);
        });
        let _how = converse(&ours, PATIENCE);
        drop(done);
    });
    assert!(began.elapsed() < HANG, "{:?}", began.elapsed());
}

/// The first octet is the request, the rest the payload.
fn whole(body: &[u8]) -> Vec<u8> {
    let (request, payload) = body.split_first().unwrap_or((&1, &[]));
    let flags = if request & 0x80 == 0 { 1 } else { 9 };
    let header = [u32::from(request & 0x7f), flags, payload.len() as u32].map(u32::to_le_bytes).concat();
    [&header, payload].concat()
}

/// Up to seven; memory or events.
fn descriptors(form: u8) -> Vec<OwnedFd> {
    let make = |_| {
        if form & 8 == 0 {
            return OwnedFd::from(EventFd::new().expect("an eventfd"));
        }
        let memory = File::from(memfd_create(c"guest", MFdFlags::empty()).expect("a memfd"));
        memory.set_len(MEMORY).expect("a megabyte");
        memory.into()
    };
    (0..form & 7).map(make).collect()
}

fn send(line: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> nix::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = if raw.is_empty() { vec![] } else { vec![ControlMessage::ScmRights(&raw)] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(line.as_raw_fd(), &[IoSlice::new(bytes)], &control, flags, None)
}
