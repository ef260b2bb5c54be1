//! The real daemon in a namespace, and its operator.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::Value;
use tempfile::TempDir;

use super::lab::{eventually, within};
use super::namespace::Namespace;

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// A daemon and the directory with its configuration, socket and log. Dropping it ends it.
pub struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts it in `namespace` with this text as its bridges, and waits until it answers.
    pub fn start(namespace: &Namespace, bridges: &str) -> Daemon {
        Daemon::start_with(namespace, "", bridges)
    }

    /// As [`Daemon::start`], with more settings for `[switch]`.
    pub fn start_with(namespace: &Namespace, switch: &str, bridges: &str) -> Daemon {
        let dir = TempDir::with_prefix("sluice-test-").expect("a directory");
        let text = format!(
            "[switch]\nsocket = \"{}\"\nlog = \"debug\"\n{switch}\n\n{bridges}",
            dir.path().join("sock").display()
        );
        fs::write(dir.path().join("sluice.toml"), text).expect("the configuration file");
        let child = spawn(namespace, &dir);
        let mut daemon = Daemon { child, dir };
        daemon.await_answer();
        daemon
    }

    /// Starts it again, after it ended, on the same file and socket.
    pub fn restart(&mut self, namespace: &Namespace) {
        assert!(!self.is_running(), "it still runs");
        self.child = spawn(namespace, &self.dir);
        self.await_answer();
    }

    /// A thousand ports take it ten seconds and more on loaded cores.
    fn await_answer(&mut self) {
        within(Duration::from_secs(90), "the daemon answers", || {
            if let Some(status) = self.child.try_wait().expect("its status") {
                panic!("the daemon ended at once: {status}\n{}", self.log());
            }
            self.ctl(&["show"]).is_ok()
        });
    }

    /// `sluice --json ARGUMENTS`: the answer, or what it says on standard error.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = Command::new(SLUICE)
            .arg("--socket")
            .arg(self.socket())
            .arg("--json")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the sluice command");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|e| format!("sluice {arguments:?} printed no JSON ({e}): {text}"))
    }

    /// As [`Daemon::ctl`], for what must succeed; arguments split at blanks.
    pub fn ask(&self, line: &str) -> Value {
        let arguments: Vec<_> = line.split_whitespace().collect();
        self.ctl(&arguments).unwrap_or_else(|e| panic!("sluice {line}: {e}\n{}", self.log()))
    }

    /// What `sluice port show` says of one port.
    pub fn port(&self, name: &str) -> Value {
        self.ask(&format!("port show {name}"))[0].take()
    }

    /// `ovs-appctl -t SOCKET ARGUMENTS`, which must succeed.
    pub fn appctl(&self, arguments: &[&str]) -> String {
        let output = Command::new("ovs-appctl")
            .arg("-t")
            .arg(self.socket())
            .args(arguments)
            .output()
            .expect("ovs-appctl: install openvswitch-common");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ovs-appctl {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("sluice.toml")
    }

    /// Changes the configuration file: `from` becomes `to`, once at least.
    pub fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).expect("the configuration file");
        assert!(text.contains(from), "no {from:?} in:\n{text}");
        fs::write(self.config(), text.replace(from, to)).expect("the configuration file");
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until the log says `text`.
    pub fn await_log(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || self.log().contains(text));
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("our own child");
    }

    /// Has it not ended?
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its status").is_none()
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.await_end()
    }

    /// Waits until it ends. The kernel takes 10 to 20 ms for each port.
    pub fn await_end(&mut self) -> ExitStatus {
        within(Duration::from_secs(90), "the daemon ends", || {
            self.child.try_wait().expect("its status").is_some()
        });
        self.child.wait().expect("its status")
    }

    /// SIGKILL: no chance to clean anything up.
    pub fn kill9(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("its status");
    }

    /// Processor time it used so far, all threads, in steps of 10 ms (proc(5), stat: utime and stime).
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("its stat");
        let after_name = stat.rsplit_once(')').expect("a name in brackets").1;
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK).expect("known").expect("set") as u64;
        Duration::from_millis(ticks * 1000 / per_second)
    }

    /// How often its threads went to sleep so far (proc(5), status: voluntary_ctxt_switches).
    pub fn sleeps(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        let statuses =
            threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
        let count = |status: String| -> Option<u64> {
            status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
        };
        statuses.filter_map(count).sum()
    }

    /// Resident memory beside program and libraries, whose size is a matter of how they were built, in KiB (proc(5), smaps).
    pub fn memory_kib(&self) -> u64 {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", self.pid())).expect("its memory");
        let (mut total, mut counts) = (0, true);
        for line in maps.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["Rss:", kib, _] if counts => total += kib.parse::<u64>().expect("a number"),
                [range, _, _, _, _, ref name @ ..] if range.contains('-') => {
                    counts = !name.first().is_some_and(|name| *name == SLUICE || name.contains(".so"));
                }
                _ => {}
            }
        }
        total
    }

    /// Resident memory in KiB (proc(5), status: VmRSS).
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "the daemon's configuration:\n{}",
                fs::read_to_string(self.config()).unwrap_or_default()
            );
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

fn spawn(namespace: &Namespace, dir: &TempDir) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log")).expect("the log");
    let mut command = Command::new(SLUICE);
    command.arg("run").arg("--config").arg(dir.path().join("sluice.toml"));
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
    namespace.run(|| command.spawn().expect("the sluice command"))
}

/// Runs `sluice run` on a configuration that must not start; what it says on standard error.
pub fn refused(namespace: &Namespace, text: &str) -> String {
    let dir = TempDir::with_prefix("sluice-test-").expect("a directory");
    let config = dir.path().join("sluice.toml");
    fs::write(&config, text).expect("the configuration file");
    let output = namespace.output(&format!("timeout 20 {SLUICE} run --config {}", config.display()));
    assert!(!output.status.success(), "the daemon started on:\n{text}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A bridge `br0` with these ports; each is `NAME TYPE SETTING; SETTING …`.
pub fn bridge(ports: &[&str]) -> String {
    let mut text = String::from("[[bridge]]\nname = \"br0\"\n");
    for port in ports {
        let mut words = port.splitn(3, ' ');
        let (name, kind) = (words.next().expect("a name"), words.next().expect("a type"));
        let settings = words.next().unwrap_or_default().replace("; ", "\n");
        text += &format!("\n[[bridge.port]]\nname = \"{name}\"\ntype = \"{kind}\"\n{settings}\n");
    }
    text
}

/// Gives an internal port, which is an interface of the switch's own namespace, an address.
pub fn address_internal(switch: &Namespace, name: &str, ip: Ipv4Addr) {
    eventually(&format!("{name} appears"), || switch.has_link(name));
    switch.ip(&format!("addr add {ip}/16 dev {name}"));
    switch.ip(&format!("link set {name} up"));
}
