//! A virtual machine that runs Debian's kernel, which has the tunnels and the VLANs that the kernel under a test may
//! lack. QEMU emulates its processor, so it needs no KVM and is slow: two to four seconds to boot on an idle core.
//!
//! `tests/setup/vm.sh` makes its kernel and its file system, once. A line through its console is a command.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use super::namespace::Namespace;

/// How long it may take to boot, on two loaded cores.
const BOOT: Duration = Duration::from_secs(120);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);
/// Ends an answer; a command's status and a line feed follow (ASCII's record separator).
const END: u8 = 0x1e;

/// A machine with root's shell; ends when dropped, or when the test's process does.
pub struct Vm {
    qemu: Child,
    commands: ChildStdin,
    answers: ChildStdout,
    dir: TempDir,
}

impl Vm {
    /// Boots one whose `eth0`, `eth1`, … are at TAP devices of these names, which it makes in `namespace` and sets
    /// up. In the machine they are down. They hand checksums and segments over unfinished, as virtio does.
    pub fn boot(namespace: &Namespace, taps: &[&str]) -> Vm {
        static BOOTED: AtomicU8 = AtomicU8::new(0);
        let number = BOOTED.fetch_add(1, Ordering::Relaxed);
        let dir = TempDir::with_prefix("sluice-test-vm-").expect("a directory");
        let mut command = machine(&files(), &dir.path().join("console"));
        for (i, tap) in taps.iter().enumerate() {
            namespace.ip(&format!("tuntap add dev {tap} mode tap vnet_hdr"));
            namespace.ip(&format!("link set {tap} up"));
            let mac = format!("02:00:00:56:{number:02x}:{i:02x}");
            let backend = format!("tap,id=n{i},ifname={tap},script=no,downscript=no,vhost=off");
            let device = format!("virtio-net-pci,netdev=n{i},mac={mac},romfile=");
            command.args(["-netdev", &backend, "-device", &device]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut qemu =
            namespace.run(|| command.spawn().expect("qemu-system-x86_64: install qemu-system-x86"));
        let (commands, answers) = (qemu.stdin.take().expect("a pipe"), qemu.stdout.take().expect("a pipe"));
        let mut vm = Vm { qemu, commands, answers, dir };
        vm.answer(BOOT, "the machine boots");
        vm
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

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            let console = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
            eprintln!("the machine's console:\n{}", String::from_utf8_lossy(&console));
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

/// A machine with nothing but a console, whose commands come from and go to standard input and output.
fn machine(files: &Path, console: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256"]);
    command.arg("-kernel").arg(files.join("kernel")).arg("-initrd").arg(files.join("initramfs"));
    command.args(["-append", "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests"]);
    command.args(["-serial", &format!("file:{}", console.display())]);
    command.args(["-chardev", "stdio,id=commands,signal=off"]);
    command.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=commands"]);
    command
}
