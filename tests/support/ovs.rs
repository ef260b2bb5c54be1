//! A private Open vSwitch: its own database, daemon and directory, so that it meets no other on the machine.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Where Debian has the daemon and the schema.
const DAEMON: &str = "/usr/lib/openvswitch-switch/ovs-vswitchd";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// How long either daemon may take to start, on two loaded cores.
const START: Duration = Duration::from_secs(20);

/// One, without a bridge; ends when dropped.
pub struct Ovs {
    dir: TempDir,
    children: Vec<Child>,
}

impl Ovs {
    /// Starts one in the network namespace of the calling thread; `options` are for ovs-vswitchd(8). The error says
    /// why there is none.
    pub fn start(options: &[&str]) -> Result<Ovs, String> {
        if !Path::new(DAEMON).exists() {
            return Err(format!("{DAEMON} is not here: install openvswitch-switch"));
        }
        let dir = TempDir::with_prefix("sluice-test-ovs-").map_err(|e| e.to_string())?;
        let mut ovs = Ovs { dir, children: Vec::new() };
        ovs.ask("ovsdb-tool", &["create", &ovs.path("conf.db"), SCHEMA])?;
        let listen = format!("--remote=punix:{}", ovs.path("db.sock"));
        ovs.spawn("ovsdb-server", "database", &[&ovs.path("conf.db"), &listen])?;
        ovs.await_file("db.sock")?;
        // Without the first it parses one tag only.
        let settings = "vlan-limit=2 other_config:n-handler-threads=1 other_config:n-revalidator-threads=1";
        ovs.vsctl(&format!("--no-wait set Open_vSwitch . other_config:{settings}"))?;
        ovs.spawn(DAEMON, "switch", &[&[ovs.db().as_str(), "--disable-system"], options].concat())?;
        ovs.await_file("switch.ctl")?;
        Ok(ovs)
    }

    /// `ovs-vsctl LINE`, split at blanks; what it prints, or what it says on standard error.
    pub fn vsctl(&self, line: &str) -> Result<String, String> {
        let db = format!("--db={}", self.db());
        let mut args = vec![db.as_str(), "--timeout=20"];
        args.extend(line.split_whitespace());
        self.ask("ovs-vsctl", &args)
    }

    /// `ovs-appctl LINE`, split at blanks, of the switch; what it prints, or what it says on standard error.
    pub fn appctl(&self, line: &str) -> Result<String, String> {
        let target = format!("--target={}", self.path("switch.ctl"));
        let mut args = vec![target.as_str(), "--timeout=20"];
        args.extend(line.split_whitespace());
        self.ask("ovs-appctl", &args)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("a plain path").to_owned()
    }

    fn db(&self) -> String {
        format!("unix:{}", self.path("db.sock"))
    }

    /// Starts a daemon whose control socket is `NAME.ctl` and whose log is `NAME`.
    fn spawn(&mut self, program: &str, name: &str, args: &[&str]) -> Result<(), String> {
        let mut command = self.command(program);
        command.args(args).args(["--no-chdir", "-vconsole:off"]);
        command.arg(format!("--log-file={}", self.path(name)));
        command.arg(format!("--unixctl={}.ctl", self.path(name)));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.children.push(command.spawn().map_err(|e| format!("{program}: {e}"))?);
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, self.dir.path());
        }
        command.stdin(Stdio::null());
        command
    }

    fn ask(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let output = self.command(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    fn await_file(&self, name: &str) -> Result<(), String> {
        let begun = Instant::now();
        while !Path::new(&self.path(name)).exists() {
            if begun.elapsed() > START {
                return Err(format!("no {name} within {START:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!(
                "Open vSwitch's log:\n{}",
                std::fs::read_to_string(self.path("switch")).unwrap_or_default()
            );
        }
    }
}
