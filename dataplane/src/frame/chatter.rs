//! What libxdp and libbpf have to say goes to the log: by default they write to standard error.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Once;

/// `libxdp_print_fn_t` and `libbpf_print_fn_t`. A C `va_list` parameter is a pointer on every 64-bit ABI that
/// xsk-rs supports (x86-64: it decays; AArch64 and RISC-V: a large argument, or one, by reference).
type Print = unsafe extern "C" fn(level: c_int, format: *const c_char, args: *mut c_void) -> c_int;

unsafe extern "C" {
    fn libxdp_set_print(print: Option<Print>) -> Option<Print>;
    fn libbpf_set_print(print: Option<Print>) -> Option<Print>;
    fn vsnprintf(to: *mut c_char, size: usize, format: *const c_char, args: *mut c_void) -> c_int;
}

/// Sends the libraries' messages to `tracing`, from the first call on. Call it before any other of theirs.
pub fn to_log() {
    static ONCE: Once = Once::new();
    // SAFETY: both take a callback that stays valid for ever, and `Once` keeps other threads out.
    ONCE.call_once(|| unsafe {
        libxdp_set_print(Some(print));
        libbpf_set_print(Some(print));
    });
}

/// The levels of both libraries: warn, info, debug.
unsafe extern "C" fn print(level: c_int, format: *const c_char, args: *mut c_void) -> c_int {
    let mut line = [0_u8; 512];
    // SAFETY: the library's own format and arguments; vsnprintf writes at most the size and a final zero.
    let written = unsafe { vsnprintf(line.as_mut_ptr().cast(), line.len(), format, args) };
    let text = CStr::from_bytes_until_nul(&line).unwrap_or_default().to_string_lossy();
    let text = text.trim_end();
    match level {
        0 => tracing::warn!(target: "libxdp", "{text}"),
        1 => tracing::info!(target: "libxdp", "{text}"),
        _ => tracing::debug!(target: "libxdp", "{text}"),
    }
    written
}
