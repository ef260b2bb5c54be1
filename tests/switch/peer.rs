//! The oracle of the VLAN matrix against Open vSwitch itself: `ofproto/trace` of a private instance whose datapath
//! is a dummy, so it touches no interface.
//!
//! Where Open vSwitch is not installed, or cannot start, there is nothing to compare with: the test says so.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use encap::field::EtherType;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::vlans::{FRAMES, Mode, PORTS, Priority, QINQ, Setting, Tag, with_tags};
use crate::frames::broadcast;

/// Where Debian has the daemon and the schema.
const DAEMON: &str = "/usr/lib/openvswitch-switch/ovs-vswitchd";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A private Open vSwitch.
struct Ovs {
    dir: TempDir,
    children: Vec<Child>,
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ovs {
    fn start() -> Option<Ovs> {
        if !Path::new(DAEMON).exists() {
            return None;
        }
        let mut ovs = Ovs { dir: TempDir::new().ok()?, children: Vec::new() };
        ovs.run("ovsdb-tool", &["create", &ovs.path("conf.db"), SCHEMA])?;
        let remote = format!("--remote=punix:{}", ovs.path("db.sock"));
        let ctl = format!("--unixctl={}", ovs.path("ovsdb.ctl"));
        ovs.spawn("ovsdb-server", &[&ovs.path("conf.db"), &remote, &ctl])?;
        ovs.await_file("db.sock")?;
        // It parses one tag unless told otherwise.
        ovs.vsctl(&["--no-wait", "set", "Open_vSwitch", ".", "other_config:vlan-limit=2"])?;
        let (db, ctl) = (ovs.db(), format!("--unixctl={}", ovs.path("switch.ctl")));
        ovs.spawn(DAEMON, &[&db, &ctl, "--enable-dummy=override", "--disable-system"])?;
        ovs.await_file("switch.ctl")?;
        ovs.configure()?;
        Some(ovs)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("a plain path").to_owned()
    }

    fn db(&self) -> String {
        format!("unix:{}", self.path("db.sock"))
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        let dir: PathBuf = self.dir.path().into();
        for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, &dir);
        }
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Option<()> {
        self.command(program, args).status().ok()?.success().then_some(())
    }

    fn spawn(&mut self, program: &str, args: &[&str]) -> Option<()> {
        let child = self.command(program, args).args(["--no-chdir", "-vconsole:off"]).spawn().ok()?;
        self.children.push(child);
        Some(())
    }

    fn vsctl(&self, args: &[&str]) -> Option<()> {
        let db = format!("--db={}", self.db());
        self.run("ovs-vsctl", &[&[&db, "--timeout=20"], args].concat())
    }

    fn await_file(&self, name: &str) -> Option<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if Path::new(&self.path(name)).exists() {
                return Some(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Makes the bridge of the matrix: port `i` is `p{i + 1}`, and has that number in the datapath too.
    fn configure(&self) -> Option<()> {
        let mut args = vec!["add-br".to_owned(), "br0".into(), "--".into(), "set".into(), "bridge".into()];
        args.extend(["br0", "datapath_type=dummy", "fail-mode=standalone"].map(String::from));
        for (i, port) in PORTS.iter().enumerate() {
            args.extend(["--", "add-port", "br0"].map(String::from));
            args.push(format!("p{}", i + 1));
            args.extend(columns(port));
            args.extend(["--", "set", "interface"].map(String::from));
            args.extend([format!("p{}", i + 1), "type=dummy".into(), format!("ofport_request={}", i + 1)]);
        }
        self.vsctl(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The actions of the datapath for a frame.
    fn trace(&self, in_port: usize, frame: &[u8]) -> String {
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let params = json!(["br0", format!("in_port={}", in_port + 1), hex]);
        let request = json!({"id": 0, "method": "ofproto/trace", "params": params});
        let mut socket = UnixStream::connect(self.path("switch.ctl")).unwrap();
        socket.write_all(request.to_string().as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        let answer: Value = loop {
            let read = socket.read(&mut chunk).unwrap();
            assert!(read > 0, "no answer but {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&chunk[..read]);
            if let Ok(answer) = serde_json::from_slice(&answer) {
                break answer;
            }
        };
        let text = answer["result"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let actions = text.lines().find_map(|line| line.strip_prefix("Datapath actions: "));
        actions.unwrap_or_else(|| panic!("{text}")).to_owned()
    }
}

/// A setting as columns of the Port table.
fn columns(port: &Setting) -> Vec<String> {
    let (mode, list) = match port.mode {
        Mode::Access => ("access", "trunks"),
        Mode::Trunk => ("trunk", "trunks"),
        Mode::NativeTagged => ("native-tagged", "trunks"),
        Mode::NativeUntagged => ("native-untagged", "trunks"),
        Mode::Tunnel(_) => ("dot1q-tunnel", "cvlans"),
    };
    let mut columns = vec![format!("vlan_mode={mode}")];
    if port.mode != Mode::Trunk {
        columns.push(format!("tag={}", port.tag));
    }
    if !port.vlans.is_empty() {
        let vlans: Vec<String> = port.vlans.iter().map(u16::to_string).collect();
        columns.push(format!("{list}={}", vlans.join(",")));
    }
    if let Mode::Tunnel(service) = port.mode {
        columns.push(format!(
            "other_config:qinq-ethtype={}",
            if service == QINQ { "802.1ad" } else { "802.1q" }
        ));
    }
    match port.priority {
        Priority::Never => {}
        Priority::IfNonzero => columns.push("other_config:priority-tags=if-nonzero".into()),
        Priority::Always => columns.push("other_config:priority-tags=always".into()),
    }
    columns
}

/// Whom the actions give the frame to, and with which tags. Port 100 is the bridge's own, which we have not.
fn outputs(actions: &str, tags: &[Tag]) -> BTreeMap<&'static str, Vec<Tag>> {
    let (mut outputs, mut tags) = (BTreeMap::new(), tags.to_vec());
    let mut rest = actions;
    while !rest.is_empty() {
        let end =
            if rest.starts_with("push_vlan(") { rest.find(')').map(|at| at + 1) } else { rest.find(',') };
        let (action, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind.strip_prefix(',').unwrap_or(behind);
        match action {
            "drop" | "100" => {}
            "pop_vlan" => drop(tags.remove(0)),
            push if push.starts_with("push_vlan(") => tags.insert(0, pushed(push)),
            port => {
                let number: usize = port.parse().unwrap_or_else(|_| panic!("{port} in {actions}"));
                outputs.insert(PORTS[number - 1].name, tags.clone());
            }
        }
    }
    outputs
}

/// The tag of `push_vlan(tpid=0x88a8,vid=10,pcp=0)`.
fn pushed(action: &str) -> Tag {
    let field = |name: &str| {
        let (_, value) = action.split_once(name)?;
        Some(&value[..value.find([',', ')'])?])
    };
    let number = |name| field(name).map_or(0, |text| text.parse::<u16>().unwrap());
    let tpid = field("tpid=0x").map_or(0x8100, |text| u16::from_str_radix(text, 16).unwrap());
    (EtherType(tpid), number("pcp=") << 13 | number("vid="))
}

/// Does Open vSwitch do with such frames what its manual page says? It forgets the third of three tags and what
/// stands behind a priority tag, and forwards priority tags from trunk to trunk whatever `priority-tags` says.
fn is_comparable(port: &Setting, tags: &[Tag]) -> bool {
    let is_tunnel = matches!(port.mode, Mode::Tunnel(_));
    match tags {
        [] => true,
        [(_, tci)] => tci & 0xfff != 0 || *tci == 0 && !is_tunnel,
        [(_, tci), ..] => tci & 0xfff != 0 && !is_tunnel,
    }
}

/// It also forgets the drop-eligible bit.
fn without_dei(tags: &[Tag]) -> Vec<Tag> {
    tags.iter().map(|(tpid, tci)| (*tpid, tci & 0xefff)).collect()
}

#[test]
fn open_vswitch_agrees() {
    let Some(ovs) = Ovs::start() else {
        return eprintln!(
            "skipped: Open vSwitch (Debian's openvswitch-switch) is not here, or does not start"
        );
    };
    for (i, port) in PORTS.iter().enumerate() {
        for tags in FRAMES.iter().filter(|tags| is_comparable(port, tags)) {
            let actions = ovs.trace(i, &with_tags(&broadcast(1), tags));
            let theirs = outputs(&actions, tags);
            let inside = port.enter(tags);
            for out in PORTS.iter().filter(|out| out.name != port.name && out.priority == Priority::Never) {
                let ours = inside.as_ref().and_then(|inside| out.leave(inside));
                let [ours, theirs] =
                    [ours.as_ref(), theirs.get(out.name)].map(|tags| tags.map(|t| without_dei(t)));
                assert_eq!(ours, theirs, "{} to {} with {tags:x?}: {actions}", port.name, out.name);
            }
        }
    }
}
