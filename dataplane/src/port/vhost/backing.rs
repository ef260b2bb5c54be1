//! What file may be a guest's memory: one whose pages the kernel gives by itself.
//!
//! A page of a file in FUSE comes from a process, one in a network filesystem from another machine; a poller that touches it
//! waits, if need be for ever. So does whoever asks such a file anything. Hence nothing is asked of the filesystem before it is
//! known: memory is what has seals, sealed or not, and for the rest the kernel says which mount a descriptor is of
//! (`/proc/self/fdinfo`, `/proc/self/mountinfo`, proc(5)). A mount that is none of ours is refused.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, fcntl};

/// Filesystems that others serve; FUSE's have what they are for behind a point.
const SERVED: [&str; 9] = ["fuse", "fuseblk", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph"];

/// Does the kernel give the pages of this file by itself?
pub(super) fn is_prompt(file: &File) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS).is_ok() || filesystem(file).is_some_and(|kind| !is_served(&kind))
}

fn is_served(kind: &str) -> bool {
    SERVED.contains(&kind.split('.').next().unwrap_or(kind))
}

/// The type of the filesystem that an open file is in, if its mount is one of ours.
fn filesystem(file: &File) -> Option<String> {
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    kind_of(&fs::read_to_string("/proc/self/mountinfo").ok()?, mount)
}

/// The first field is the mount's number; its type follows a field that is a hyphen.
fn kind_of(mountinfo: &str, mount: &str) -> Option<String> {
    let line = mountinfo.lines().find(|line| line.split(' ').next() == Some(mount))?;
    line.split(' ').skip_while(|field| *field != "-").nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn memory_and_files_on_disk_are_prompt() {
        assert!(is_prompt(&File::from(memfd_create(c"memory", MFdFlags::empty()).unwrap())));
        assert!(is_prompt(&tempfile::tempfile().unwrap()));
    }

    #[test]
    fn what_others_serve_or_nobody_knows_is_not() {
        let mounts =
            "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:5 / /mnt rw shared:3 - fuse.sshfs host: rw\n";
        let prompt = |mount: &str| kind_of(mounts, mount).is_some_and(|kind| !is_served(&kind));
        assert_eq!(["21", "22", "23"].map(prompt), [true, false, false]);
        assert!(["fuse", "nfs4", "9p"].into_iter().all(is_served));
        // A socket is of a mount that is in no namespace.
        let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_prompt(&File::from(std::os::fd::OwnedFd::from(ours))));
    }
}
