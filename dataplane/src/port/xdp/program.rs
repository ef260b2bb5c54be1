//! The XDP program: frames of a queue that has a socket go to it, those of other queues to the host.
//!
//! A VLAN tag that the sender or the card took out of the frame would be lost with the kernel's metadata. In
//! native mode the program puts it back, where driver and kernel (6.8) tell it
//! (Documentation/networking/xdp-rx-metadata.rst).
//!
//! It is attached by a BPF link, which the kernel closes with the process however that ends. An interface takes
//! one program; somebody else's is never replaced. bpf(2); Documentation/bpf/map_xskmap.rst. Set-up only.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use libbpf_sys as bpf;
use nix::errno::Errno;

use super::Mode;
use super::error::OpenError;
use super::instructions::{redirect, restore_tag};

/// The program's name: how we know our own.
pub const NAME: &CStr = c"sluice_xsk";

/// The kernel function that tells the tag, and the name that the program gives its own licence: the kernel
/// lets only programs under the GPL call it.
const READ_TAG: &CStr = c"bpf_xdp_metadata_rx_vlan_tag";
const LICENSE: &CStr = c"Dual MIT/GPL";

/// The attached program and its map. The kernel detaches it when this is dropped.
#[derive(Debug)]
pub struct Program {
    map: OwnedFd,
    _link: OwnedFd,
    /// Tags that are not in the frame are put back, if the driver tells them.
    pub restores_tags: bool,
}

/// An interface.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// What the operator calls it.
    pub name: &'a str,
    /// What the kernel calls it.
    pub index: c_int,
}

impl Program {
    /// Loads the program and attaches it. A program of our name that no link holds is replaced.
    ///
    /// # Errors
    /// [`OpenError::Foreign`]; [`OpenError::InUse`], which passes if a predecessor is about to end;
    /// [`OpenError::Refused`].
    pub fn attach(target: Target<'_>, mode: Mode, queues: u16) -> Result<Program, OpenError> {
        let refused = |step| move |e| OpenError::refused(target.name, step, e);
        let map = create_map(queues).map_err(refused("make a map of sockets"))?;
        let restoring = match mode {
            Mode::Native => load_restoring(&map, target.index),
            Mode::Generic => None,
        };
        let restores_tags = restoring.is_some();
        let program = restoring.map_or_else(|| load(&redirect(&map), None), Ok);
        let program = program.map_err(refused("load the XDP program"))?;
        let busy = |e: &io::Error| matches!(errno(e), Errno::EBUSY | Errno::EEXIST);
        let link = match link(&program, target, mode) {
            Err(e) if busy(&e) => {
                clear(target)?;
                link(&program, target, mode)
            }
            other => other,
        };
        Ok(Program { map, _link: link.map_err(refused(mode.attach_step()))?, restores_tags })
    }

    /// Sends a queue's frames to a socket.
    ///
    /// # Errors
    /// As bpf(2), `BPF_MAP_UPDATE_ELEM`.
    pub fn serve(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd();
        let key = std::ptr::from_ref(&queue).cast();
        // SAFETY: key and value are four bytes each, as the map was made.
        check(unsafe {
            bpf::bpf_map_update_elem(self.map.as_raw_fd(), key, std::ptr::from_ref(&value).cast(), 0)
        })?;
        Ok(())
    }
}

fn create_map(queues: u16) -> io::Result<OwnedFd> {
    let (kind, name) = (bpf::BPF_MAP_TYPE_XSKMAP, c"sluice_xsks");
    // SAFETY: the name is a C string; no options.
    own(unsafe { bpf::bpf_map_create(kind, name.as_ptr(), 4, 4, queues.into(), std::ptr::null()) })
}

/// The kernel's number of the function that tells the tag. Its type information is megabytes: read once.
fn tag_function() -> Option<i32> {
    static NUMBER: OnceLock<i32> = OnceLock::new();
    let number = *NUMBER.get_or_init(|| {
        // SAFETY: null, for a kernel without type information, is not passed on; else freed after its last use.
        unsafe {
            let types = bpf::btf__load_vmlinux_btf();
            if types.is_null() {
                return 0;
            }
            let number = bpf::btf__find_by_name_kind(types, READ_TAG.as_ptr(), bpf::BTF_KIND_FUNC);
            bpf::btf__free(types);
            number
        }
    });
    (number > 0).then_some(number)
}

/// Loads the program that puts tags back. `None` if kernel or driver cannot.
fn load_restoring(map: &OwnedFd, index: c_int) -> Option<OwnedFd> {
    let read_tag = tag_function()?;
    let program: Vec<_> = restore_tag(read_tag).into_iter().chain(redirect(map)).collect();
    load(&program, Some(index)).inspect_err(|e| tracing::debug!("no VLAN tags from the driver: {e}")).ok()
}

/// Loads a program; one that asks the driver about frames is for that device only.
fn load(program: &[bpf::bpf_insn], device: Option<c_int>) -> io::Result<OwnedFd> {
    let bound = if device.is_some() { bpf::BPF_F_XDP_DEV_BOUND_ONLY } else { 0 };
    let mut options = bpf::bpf_prog_load_opts {
        sz: size_of::<bpf::bpf_prog_load_opts>() as _,
        expected_attach_type: bpf::BPF_XDP,
        prog_flags: bpf::BPF_F_XDP_HAS_FRAGS | bound,
        prog_ifindex: device.unwrap_or(0).cast_unsigned(),
        ..Default::default()
    };
    let (kind, count) = (bpf::BPF_PROG_TYPE_XDP, program.len() as _);
    // SAFETY: C strings, an array with its length, and options with their size.
    own(unsafe {
        bpf::bpf_prog_load(kind, NAME.as_ptr(), LICENSE.as_ptr(), program.as_ptr(), count, &mut options)
    })
}

fn link(program: &OwnedFd, target: Target<'_>, mode: Mode) -> io::Result<OwnedFd> {
    let options = bpf::bpf_link_create_opts {
        sz: size_of::<bpf::bpf_link_create_opts>() as _,
        flags: mode.flag(),
        ..Default::default()
    };
    // SAFETY: options with their size.
    own(unsafe { bpf::bpf_link_create(program.as_raw_fd(), target.index, bpf::BPF_XDP, &options) })
}

/// Makes room on the interface if a predecessor's program is in the way.
fn clear(target: Target<'_>) -> Result<(), OpenError> {
    let refused = |step| move |e| OpenError::refused(target.name, step, e);
    for (mode, id) in attached(target.index).map_err(refused("ask for the XDP program"))? {
        let in_use = |what| OpenError::InUse { interface: target.name.to_owned(), what };
        // SAFETY: a number; the result is checked.
        let program = match own(unsafe { bpf::bpf_prog_get_fd_by_id(id) }) {
            Err(e) if errno(&e) == Errno::ENOENT => continue, // it went away by itself
            Err(e) => return Err(in_use(format!("XDP program {id} (its name is unknown: {e})"))),
            Ok(program) => program,
        };
        let name = name_of(&program).map_err(refused("read the name of the XDP program"))?;
        if name.as_bytes() != NAME.to_bytes() {
            return Err(OpenError::Foreign { interface: target.name.to_owned(), id, name });
        }
        let busy = |_| in_use(format!("XDP program {name} (id {id})"));
        detach(target.index, mode, &program).map_err(busy)?;
    }
    Ok(())
}

/// The programs on an interface, and how they are attached.
fn attached(index: c_int) -> io::Result<impl Iterator<Item = (u32, u32)>> {
    let mut state =
        bpf::bpf_xdp_query_opts { sz: size_of::<bpf::bpf_xdp_query_opts>() as _, ..Default::default() };
    // SAFETY: options with their size.
    check(unsafe { bpf::bpf_xdp_query(index, 0, &mut state) })?;
    let programs = [
        (bpf::XDP_FLAGS_DRV_MODE, state.drv_prog_id),
        (bpf::XDP_FLAGS_SKB_MODE, state.skb_prog_id),
        (bpf::XDP_FLAGS_HW_MODE, state.hw_prog_id),
    ];
    Ok(programs.into_iter().filter(|(_, id)| *id != 0))
}

fn name_of(program: &OwnedFd) -> io::Result<String> {
    let mut info = bpf::bpf_prog_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: a zeroed struct and its size.
    check(unsafe { bpf::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut len) })?;
    let name = info.name.map(|c| c as u8);
    Ok(CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned())
}

/// Takes a program off that no link holds, if it still is the one there.
fn detach(index: c_int, mode: u32, program: &OwnedFd) -> io::Result<c_int> {
    let options = bpf::bpf_xdp_attach_opts {
        sz: size_of::<bpf::bpf_xdp_attach_opts>() as _,
        old_prog_fd: program.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: options with their size.
    check(unsafe { bpf::bpf_xdp_detach(index, mode, &options) })
}

/// libbpf returns the negative error.
fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

fn own(result: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the kernel just gave us this descriptor.
    check(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}
