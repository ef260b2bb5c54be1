//! What happens to machines that run: they are reset, killed, moved, and get and lose cards and memory.

use std::time::Duration;

use serde_json::json;

use super::machine::{Backend, Nic, Socket};
use super::{BOOT, Vm};
use crate::support::lab::within;
use crate::support::namespace::Namespace;

/// How long a machine may take to move, on two loaded cores.
const MOVE: Duration = Duration::from_secs(60);

impl Vm {
    /// Presses the reset button, and waits until the machine has booted.
    pub fn reset(&mut self) {
        let mut monitor = self.monitor();
        monitor.ask("set-action", json!({ "reboot": "reset" }));
        monitor.ask("system_reset", json!({}));
        self.answer(BOOT, "the machine boots again");
        monitor.ask("set-action", json!({ "reboot": "shutdown" }));
    }

    /// Ends QEMU with no chance to clean anything up.
    pub fn kill9(&mut self) {
        self.qemu.kill().expect("our own child");
        self.qemu.wait().expect("its status");
    }

    /// Starts the same machine again, after [`Vm::kill9`]; it need not have booted.
    pub fn restart(&mut self, namespace: &Namespace) {
        (self.qemu, self.commands, self.answers) = super::spawn(namespace, &self.machine, self.dir.path());
    }

    /// Moves the running machine into one that waits for it; how long no processor ran, by QEMU's own measure.
    pub fn move_to(self, target: &mut Vm) -> Duration {
        let (mut monitor, mut there) = (self.monitor(), target.monitor());
        within(BOOT, "a machine waits for its state", || {
            there.ask("query-status", json!({}))["status"] == "inmigrate"
        });
        let socket = target.machine.incoming.as_ref().expect("a machine that waits for its state");
        monitor.ask("migrate-set-parameters", json!({ "max-bandwidth": 1 << 30 }));
        monitor.ask("migrate", json!({ "uri": format!("unix:{}", socket.display()) }));
        let mut report = json!(null);
        within(MOVE, "the machine moves", || {
            report = monitor.ask("query-migrate", json!({}));
            assert_ne!(report["status"], "failed", "{report}");
            report["status"] == "completed"
        });
        within(MOVE, "the moved machine runs", || {
            there.ask("query-status", json!({}))["status"] == "running"
        });
        Duration::from_millis(report["downtime"].as_u64().expect("milliseconds"))
    }

    /// Adds so many MiB of memory (a multiple of 128, x86's block), and waits until the guest uses them.
    pub fn add_memory(&mut self, size: u32) {
        let before = self.memory();
        self.run("echo online >/sys/devices/system/memory/auto_online_blocks");
        let mut monitor = self.monitor();
        let bytes = u64::from(size) << 20;
        let more = format!("more{before}");
        let object = json!({ "qom-type": "memory-backend-memfd", "id": more, "size": bytes, "share": true });
        monitor.ask("object-add", object);
        let dimm = json!({ "driver": "pc-dimm", "id": format!("dimm{before}"), "memdev": more });
        monitor.ask("device_add", dimm);
        let more = before + u64::from(size) * 1024 * 9 / 10;
        within(BOOT, "the guest has its new memory", || self.memory() >= more);
    }

    /// The guest's memory in KiB.
    pub fn memory(&mut self) -> u64 {
        let said = self.run("grep MemTotal /proc/meminfo");
        said.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// Plugs in one more card, and waits until the guest has it, as `name`; its address. One at a time.
    pub fn plug(&mut self, nic: &Nic, name: &str) -> String {
        let index = self.machine.nics.len();
        let Backend::VhostUser(socket, queues) = &nic.backend else {
            panic!("{nic:?} is no vhost-user card")
        };
        let mut monitor = self.monitor();
        let (id, path) = (format!("c{index}"), socket.path());
        let addr = json!({ "type": "unix", "data": { "path": path } });
        let data = match socket {
            Socket::Listening(_) => json!({ "addr": addr, "server": true, "wait": false }),
            Socket::Connecting(_) => json!({ "addr": addr, "server": false, "reconnect": 1 }),
        };
        monitor.ask("chardev-add", json!({ "id": id, "backend": { "type": "socket", "data": data } }));
        let netdev =
            json!({ "type": "vhost-user", "id": format!("n{index}"), "chardev": id, "queues": queues });
        monitor.ask("netdev_add", netdev);
        let mac = self.machine.mac(index);
        let mut device = json!({ "bus": "spare" });
        for pair in nic.device(index, &mac).split(',') {
            let (key, value) = pair.split_once('=').unwrap_or(("driver", pair));
            device[key] = value.into();
        }
        monitor.ask("device_add", device);
        within(BOOT, &format!("the guest has {name}"), || self.has(name));
        mac
    }

    /// Pulls out the card that [`Vm::plug`] plugged in.
    pub fn unplug(&mut self, name: &str) {
        let index = self.machine.nics.len();
        let mut monitor = self.monitor();
        let device = format!("d{index}");
        monitor.ask("device_del", json!({ "id": device }));
        monitor.await_event("DEVICE_DELETED", &device);
        // It takes its chardev along.
        monitor.ask("netdev_del", json!({ "id": format!("n{index}") }));
        within(BOOT, &format!("{name} is gone"), || !self.has(name));
    }

    fn has(&mut self, interface: &str) -> bool {
        self.try_run(&format!("test -e /sys/class/net/{interface}")).is_ok()
    }
}
