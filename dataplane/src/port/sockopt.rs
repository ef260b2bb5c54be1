//! Socket options (setsockopt(2)), and what is said when the kernel refuses one.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

/// Bytes the kernel may hold for us in either direction (it doubles the number for its own bookkeeping):
/// a thousand full-size frames, or sixty GSO frames.
const BUFFER: c_int = 4 << 20;

/// What could not be done, and why.
#[derive(Debug)]
pub(super) struct Failure {
    pub what: &'static str,
    pub errno: Errno,
}

pub(super) fn failed(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure { what, errno }
}

/// Lets the kernel hold more for us than the system's limits say, if it allows that.
pub(super) fn enlarge_buffers(socket: &OwnedFd) -> Result<(), Failure> {
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        set(socket, libc::SOL_SOCKET, force, &BUFFER)
            .or_else(|_| set(socket, libc::SOL_SOCKET, plain, &BUFFER))
            .map_err(failed("set the buffer size"))?;
    }
    Ok(())
}

/// Lets nothing in: a filter program of the one instruction "return 0" (socket(7), `SO_ATTACH_FILTER`).
pub(super) fn mute(socket: &OwnedFd) -> Result<(), Errno> {
    let mut nothing = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &mut nothing };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

pub(super) fn set<T>(socket: &OwnedFd, level: c_int, option: c_int, value: &T) -> Result<(), Errno> {
    let len = size_of::<T>() as libc::socklen_t;
    let value: *const c_void = ptr::from_ref(value).cast();
    // SAFETY: the value is readable over its length, and the kernel keeps no pointer to it.
    Errno::result(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, len) }).map(drop)
}

/// An option of which any bytes are a value: integers, or a struct of them.
pub(super) fn get<T: Copy>(socket: &OwnedFd, level: c_int, option: c_int) -> Result<T, Errno> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    let to = value.as_mut_ptr().cast();
    // SAFETY: the value is writable over its length.
    Errno::result(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, to, &mut len) })?;
    // SAFETY: all callers ask for integers, of which any bytes are a value.
    Ok(unsafe { value.assume_init() })
}
