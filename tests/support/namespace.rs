//! Network namespaces without a name: held by a descriptor, so that the kernel removes one, and every interface
//! in it, when the test is over, however it ends.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace; gone when this is dropped and no process lives in it.
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// A fresh one, with `lo` up and IPv6 off, so that no host speaks before it is told to.
    pub fn new() -> Namespace {
        let handle = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: the test needs CAP_SYS_ADMIN");
            File::open("/proc/thread-self/ns/net").expect("its own namespace")
        });
        let namespace = Namespace { handle: handle.join().expect("the thread that makes a namespace") };
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        // An address answers on its own interface only: a switch's host hears its ports' traffic, too.
        namespace.sysctl("net/ipv4/conf/all/arp_ignore", "1");
        namespace.ip("link set lo up");
        namespace
    }

    /// Where `ip` finds it: for `ip link set … netns PATH`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    /// Runs `f` on a thread inside; sockets and processes that it makes stay inside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("entering a namespace of our own");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command line (split at blanks) inside and waits for it.
    pub fn output(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a program");
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null());
        self.run(|| command.output().unwrap_or_else(|e| panic!("{program}: {e}")))
    }

    /// As [`Namespace::output`], for a command that must succeed; its standard output.
    pub fn sh(&self, line: &str) -> String {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `ip ARGUMENTS`.
    pub fn ip(&self, arguments: &str) {
        self.sh(&format!("ip {arguments}"));
    }

    /// Many `ip` commands, one a line, in one process.
    pub fn ip_batch(&self, lines: &str) {
        let (status, said) = self.run(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("ip");
            child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("ip reads its lines");
            let output = child.wait_with_output().expect("ip ends");
            (output.status, output.stderr)
        });
        assert!(status.success(), "ip -batch: {}", String::from_utf8_lossy(&said));
    }

    /// Writes `/proc/sys/KEY`.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// What `ip -json ARGUMENTS` says.
    pub fn ip_json(&self, arguments: &str) -> serde_json::Value {
        let text = self.sh(&format!("ip -json {arguments}"));
        if text.trim().is_empty() {
            serde_json::Value::Null
        } else {
            serde_json::from_str(&text).expect("JSON")
        }
    }

    /// Is there an interface of this name?
    pub fn has_link(&self, name: &str) -> bool {
        self.output(&format!("ip link show dev {name}")).status.success()
    }
}
