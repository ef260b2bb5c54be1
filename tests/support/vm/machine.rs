//! What a virtual machine is made of, and QEMU's command line for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// A machine to be started, any number of times: every time it has the same cards with the same addresses.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Makes its addresses.
    number: u8,
    /// In the guest: `eth0`, `eth1`, …
    pub nics: Vec<Nic>,
    /// Where its memory is.
    pub memory: Memory,
    /// How many processors the guest sees.
    pub cpus: u8,
    /// A Unix socket by which it gets its state from another machine, instead of booting.
    pub incoming: Option<PathBuf>,
}

/// A network card of the guest.
#[derive(Debug, Clone)]
pub struct Nic {
    /// What it is plugged into.
    pub backend: Backend,
    /// Properties of QEMU's `virtio-net-pci`: `packed=on,host_mtu=9000`.
    pub properties: String,
}

/// What a card is plugged into.
#[derive(Debug, Clone)]
pub enum Backend {
    /// The TAP device of this name, which is made when the machine starts, if it is not there.
    Tap(String),
    /// A vhost-user port with this many queue pairs.
    VhostUser(Socket, u8),
}

/// A Unix socket between QEMU and a switch.
#[derive(Debug, Clone)]
pub enum Socket {
    /// QEMU makes it; the switch connects (`dpdkvhostuserclient`).
    Listening(PathBuf),
    /// The switch makes it; QEMU connects (`dpdkvhostuser`), and again every second.
    Connecting(PathBuf),
}

/// Where the guest's memory is. A vhost-user port must share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// memfd_create(2), as libvirt does it.
    Memfd,
    /// memfd_create(2) of huge pages, which somebody has reserved.
    Huge,
    /// A file in this directory.
    File(PathBuf),
}

/// The memory a machine boots with, in MiB.
pub const MEMORY: u32 = 256;

impl Nic {
    /// At a TAP device.
    pub fn tap(name: &str) -> Nic {
        Nic { backend: Backend::Tap(name.into()), properties: String::new() }
    }

    /// At a vhost-user port, with one queue pair.
    pub fn at(socket: Socket) -> Nic {
        Nic { backend: Backend::VhostUser(socket, 1), properties: String::new() }
    }

    /// With so many queue pairs.
    pub fn queues(mut self, pairs: u8) -> Nic {
        if let Backend::VhostUser(_, queues) = &mut self.backend {
            *queues = pairs;
        }
        self
    }

    /// With more properties, as [`Nic::properties`].
    pub fn with(mut self, properties: &str) -> Nic {
        self.properties = properties.into();
        self
    }

    /// The properties of its `virtio-net-pci`, which is `n<index>` of a machine.
    pub(super) fn device(&self, index: usize, mac: &str) -> String {
        let mut text = format!("virtio-net-pci,id=d{index},netdev=n{index},mac={mac},romfile=");
        if let Backend::VhostUser(_, queues) = self.backend {
            // Without KVM, QEMU 7.2 crashes when the guest unmasks a vector of such a card (it looks for KVM's routes):
            // all its queues share an INTx interrupt.
            text += ",vectors=0";
            text += if queues > 1 { ",mq=on" } else { "" };
        }
        if !self.properties.is_empty() {
            text += &format!(",{}", self.properties);
        }
        text
    }
}

impl Machine {
    /// A machine with these cards, one processor and [`MEMORY`]. No other has its addresses.
    pub fn new(nics: impl Into<Vec<Nic>>) -> Machine {
        static MADE: AtomicU8 = AtomicU8::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Machine { number, nics: nics.into(), memory: Memory::Memfd, cpus: 1, incoming: None }
    }

    /// The address of card `index`.
    pub fn mac(&self, index: usize) -> String {
        format!("02:00:00:56:{:02x}:{index:02x}", self.number)
    }

    /// The same machine elsewhere: with cards at other sockets, and waiting for its state at `incoming`.
    pub fn twin(&self, nics: impl Into<Vec<Nic>>, incoming: PathBuf) -> Machine {
        Machine { nics: nics.into(), incoming: Some(incoming), ..self.clone() }
    }

    /// QEMU, whose console goes to a file, whose commands come from and go to standard input and output, and whose
    /// monitor is a socket.
    pub(super) fn command(&self, files: &Path, run: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        // A kernel that panics reboots; the machine then ends instead.
        command.args(["-action", "reboot=shutdown"]);
        command.args(["-machine", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max"]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &format!("{MEMORY},slots=5,maxmem=1G")]);
        command.args(["-object", &self.memory.object("ram", MEMORY)]);
        command.arg("-kernel").arg(files.join("kernel")).arg("-initrd").arg(files.join("initramfs"));
        // On a machine that does other things, too, the kernel may find that a clock without KVM does not tick, and look for ways
        // around that until it crashes: as with KVM, it shall not look.
        let clock = "no_timer_check";
        let line = format!("console=ttyS0 panic=-1 mitigations=off cryptomgr.notests {clock}");
        command.args(["-append", &line]);
        command.args(["-serial", &format!("file:{}", run.join("console").display())]);
        command.args(["-chardev", "stdio,id=commands,signal=off"]);
        command.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=commands"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", run.join("monitor").display())]);
        self.nics.iter().enumerate().for_each(|(i, nic)| self.plug(&mut command, (i, nic)));
        // Where a card can be plugged in later.
        command.args(["-device", "pcie-root-port,id=spare,chassis=1"]);
        if let Some(socket) = &self.incoming {
            command.args(["-incoming", &format!("unix:{}", socket.display())]);
        }
        command
    }

    fn plug(&self, command: &mut Command, (index, nic): (usize, &Nic)) {
        let netdev = match &nic.backend {
            Backend::Tap(name) => format!("tap,id=n{index},ifname={name},script=no,downscript=no,vhost=off"),
            Backend::VhostUser(socket, queues) => {
                command.args(["-chardev", &socket.chardev(index)]);
                format!("vhost-user,id=n{index},chardev=c{index},queues={queues}")
            }
        };
        command.args(["-netdev", &netdev, "-device", &nic.device(index, &self.mac(index))]);
    }
}

impl Backend {
    /// The name of the TAP device.
    pub(super) fn tap(&self) -> Option<&str> {
        match self {
            Backend::Tap(name) => Some(name),
            Backend::VhostUser(..) => None,
        }
    }
}

impl Socket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        let (Socket::Listening(path) | Socket::Connecting(path)) = self;
        path
    }

    fn chardev(&self, index: usize) -> String {
        let path = self.path().display();
        match self {
            Socket::Listening(_) => format!("socket,id=c{index},path={path},server=on,wait=off"),
            Socket::Connecting(_) => format!("socket,id=c{index},path={path},reconnect=1"),
        }
    }
}

impl Memory {
    /// QEMU's object `id` of so many MiB.
    fn object(&self, id: &str, size: u32) -> String {
        let what = match self {
            Memory::Memfd => "memory-backend-memfd".into(),
            Memory::Huge => "memory-backend-memfd,hugetlb=on,hugetlbsize=2M".into(),
            Memory::File(directory) => format!("memory-backend-file,mem-path={}", directory.display()),
        };
        format!("{what},id={id},size={size}M,share=on")
    }
}
