//! A virtual machine that runs Debian's kernel, which has the tunnels and the VLANs that the kernel under a test may
//! lack. QEMU emulates its processor, so it needs no KVM and is slow: two to four seconds to boot on an idle core.
//!
//! `tests/setup/vm.sh` makes its kernel and its file system, once. A line through its console is a command.

pub mod change;
pub mod machine;
pub mod monitor;

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use self::machine::{Machine, Nic};
use self::monitor::Monitor;
use super::namespace::Namespace;

/// How long it may take to boot, on two loaded cores.
const BOOT: Duration = Duration::from_secs(120);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);
/// How long a shell that lives takes for nothing, at most.
const SHELL: Duration = Duration::from_secs(20);
/// Ends an answer; a command's status and a line feed follow (ASCII's record separator).
const END: u8 = 0x1e;

/// A machine with root's shell; ends when dropped, or when the test's process does.
pub struct Vm {
    machine: Machine,
    qemu: Child,
    commands: ChildStdin,
    answers: ChildStdout,
    dir: TempDir,
}

impl Vm {
    /// Boots one whose `eth0`, `eth1`, … are at TAP devices of these names, which it makes in `namespace` and sets
    /// up. In the machine they are down. They hand checksums and segments over unfinished, as virtio does.
    pub fn boot(namespace: &Namespace, taps: &[&str]) -> Vm {
        let nics: Vec<Nic> = taps.iter().map(|name| Nic::tap(name)).collect();
        Vm::start(namespace, Machine::new(nics)).booted()
    }

    /// Starts one, which need not have booted, nor got its state: a card at a vhost-user port waits for its switch.
    pub fn start(namespace: &Namespace, machine: Machine) -> Vm {
        let dir = TempDir::with_prefix("sluice-test-vm-").expect("a directory");
        let (qemu, commands, answers) = spawn(namespace, &machine, dir.path());
        Vm { machine, qemu, commands, answers, dir }
    }

    /// Waits until it has booted.
    pub fn booted(mut self) -> Vm {
        self.await_boot();
        self
    }

    /// As [`Vm::booted`].
    pub fn await_boot(&mut self) {
        self.answer(BOOT, "the machine boots");
    }

    /// Its address on card `index`.
    pub fn mac(&self, index: usize) -> String {
        self.machine.mac(index)
    }

    fn monitor(&self) -> Monitor {
        Monitor::connect(&self.dir.path().join("monitor"))
    }

    /// Runs a line of shell that must succeed; what it prints, errors as well.
    pub fn run(&mut self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|said| panic!("{line}: {said}"))
    }

    /// Runs a line of shell; what it prints, errors as well, is `Err` if its status is not 0. What it leaves running
    /// must not keep its standard output.
    pub fn try_run(&mut self, line: &str) -> Result<String, String> {
        assert!(!line.contains('\n'), "one line, not {line:?}");
        self.commands.write_all(format!("{line}\n").as_bytes()).expect("the machine listens");
        let (said, status) = self.answer(COMMAND, line);
        if status == 0 { Ok(said) } else { Err(format!("status {status}: {said}")) }
    }

    /// Is `to` there? One echo request, up to one second.
    pub fn pings(&mut self, to: Ipv4Addr) -> bool {
        self.try_run(&format!("ping -n -q -c 1 -W 1 {to}")).is_ok()
    }

    /// The next answer and its status.
    fn answer(&mut self, limit: Duration, what: &str) -> (String, i32) {
        let begun = Instant::now();
        let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            let left = PollTimeout::try_from(limit.saturating_sub(begun.elapsed())).expect("minutes");
            let mut wait = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut wait, left).expect("a pipe to wait for");
            assert!(ready > 0, "not within {limit:?}: {what}");
            let read = self.answers.read(&mut chunk).expect("a pipe to read");
            assert!(read > 0, "the machine ended: {what}");
            said.extend_from_slice(&chunk[..read]);
            if let Some(answer) = split(&said) {
                return answer;
            }
        }
    }
}

impl Vm {
    /// Did its kernel say on the console that it could not go on?
    pub fn has_crashed(&self) -> bool {
        self.console().contains("Kernel panic - not syncing")
    }

    /// Has its kernel crashed, or does not even its shell answer any more?
    pub fn is_dead(&mut self) -> bool {
        if self.has_crashed() || self.commands.write_all(b"true\n").is_err() {
            return true;
        }
        let limit = PollTimeout::try_from(SHELL).expect("seconds");
        let answers = poll(&mut [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)], limit);
        let is_dead = answers == Ok(0) || self.has_crashed();
        if !is_dead {
            self.answer(COMMAND, "true");
        }
        is_dead
    }

    fn console(&self) -> String {
        let console = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            eprintln!("the machine's console:\n{}", self.console());
        }
    }
}

/// Output and status, once an answer has come to its end.
fn split(said: &[u8]) -> Option<(String, i32)> {
    let line = said.strip_suffix(b"\n")?;
    let end = line.iter().rposition(|byte| *byte == END)?;
    let status = str::from_utf8(&line[end + 1..]).ok()?.parse().ok()?;
    Some((String::from_utf8_lossy(&line[..end]).into_owned(), status))
}

/// The directory of the kernel and the file system; made, if they are not there.
fn files() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
        let script = Command::new(project.join("tests/setup/vm.sh")).arg(&directory).output();
        let output = script.expect("bash");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tests/setup/vm.sh {}: {said}", directory.display());
        directory
    };
    MADE.get_or_init(make).clone()
}

/// Starts QEMU; where its shell reads commands and writes answers.
fn spawn(namespace: &Namespace, machine: &Machine, run: &Path) -> (Child, ChildStdin, ChildStdout) {
    for name in machine.nics.iter().filter_map(|nic| nic.backend.tap()) {
        if !namespace.has_link(name) {
            namespace.ip(&format!("tuntap add dev {name} mode tap vnet_hdr"));
            namespace.ip(&format!("link set {name} up"));
        }
    }
    let mut command = machine.command(&files(), run);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut qemu = namespace.run(|| command.spawn().expect("qemu-system-x86_64: install qemu-system-x86"));
    let pipes = (qemu.stdin.take().expect("a pipe"), qemu.stdout.take().expect("a pipe"));
    (qemu, pipes.0, pipes.1)
}
