//! A network namespace of each test's own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a thread with an empty network namespace, which ends with it.
pub fn in_namespace(test: fn()) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a network namespace takes root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    thread.join().unwrap();
}

/// Runs `ip` there.
pub fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {args}");
}
