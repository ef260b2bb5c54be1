//! VMs at the other end of vhost-user ports. Each wanted port has a session from when it is wanted until it no longer is,
//! whether or not its queues are attached: the socket must be there before the VM is, and outlive it.
//!
//! A session has a thread of its own, which tells that its port changed by a bell. A port that comes up or goes down
//! makes new tables, which have every cached flow checked again; so that no guest that starts its driver over and over costs
//! others much, the bell is answered once in [`PACE`], for all ports together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane::port::vhost::places::Places;
use dataplane::port::vhost::{Request, Role, Status, VhostUser};
use dataplane::port::{self, Port};
use dataplane::virtio::features::Features;
use flowtable::id::PortId;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::descriptors;
use super::open::Opened;
use crate::api::report::VhostReport;

/// The least time between two answers to the bell.
const PACE: Duration = Duration::from_millis(10);

/// `VHOST_USER_PROTOCOL_F_*` by the number of the bit (QEMU's `docs/interop/vhost-user.rst`, "Protocol features").
const PROTOCOL_FEATURES: [&str; 20] = [
    "MQ",
    "LOG_SHMFD",
    "RARP",
    "REPLY_ACK",
    "MTU",
    "BACKEND_REQ",
    "CROSS_ENDIAN",
    "CRYPTO_SESSION",
    "PAGEFAULT",
    "CONFIG",
    "BACKEND_SEND_FD",
    "HOST_NOTIFIER",
    "INFLIGHT_SHMFD",
    "RESET_DEVICE",
    "INBAND_NOTIFICATIONS",
    "CONFIGURE_MEM_SLOTS",
    "STATUS",
    "XEN_MMAP",
    "SHARED_OBJECT",
    "DEVICE_STATE",
];

/// The sessions of all vhost-user ports.
pub struct Guests {
    /// Where the control socket is: relative paths are from there.
    home: PathBuf,
    /// The control socket's name, by which files in `home` are known for ours.
    owner: String,
    sessions: BTreeMap<PortId, Session>,
    bell: Arc<Bell>,
    /// Ports that changed and wait for the next answer.
    waiting: BTreeSet<PortId>,
    /// When that may be.
    next: Instant,
}

struct Session {
    request: Request,
    port: VhostUser,
}

/// Ports whose status is another than when control last looked.
struct Bell {
    rung: EventFd,
    ports: Mutex<BTreeSet<PortId>>,
}

impl Bell {
    fn ring(&self, port: PortId) {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        let _ = self.rung.write(1);
    }

    fn answer(&self) -> BTreeSet<PortId> {
        let _ = self.rung.read();
        std::mem::take(&mut self.ports.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Readable when a port changed.
impl AsFd for Guests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.rung.as_fd()
    }
}

/// What there is of a VM.
#[derive(Debug, PartialEq, Eq)]
pub enum Presence {
    /// Its driver runs; counts changes of its queues.
    Running(u64),
    /// It does not; what for we wait.
    Awaited(String),
    /// It cannot come before somebody does something; what.
    Hindered(String),
}

impl Guests {
    /// None yet. Sockets without a directory are made in that of the `control` socket.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new(control: &Path) -> io::Result<Self> {
        let rung = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let bell = Arc::new(Bell { rung, ports: Mutex::default() });
        let (sessions, waiting) = (BTreeMap::new(), BTreeSet::new());
        let home = control.parent().unwrap_or(Path::new("/")).to_owned();
        let owner = control.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Guests { home, owner, sessions, bell, waiting, next: Instant::now() })
    }

    /// The ports that changed, if it is time to look at them.
    pub fn changed(&mut self, now: Instant) -> BTreeSet<PortId> {
        self.waiting.extend(self.bell.answer());
        if self.waiting.is_empty() || now < self.next {
            return BTreeSet::new();
        }
        self.next = now + PACE;
        std::mem::take(&mut self.waiting)
    }

    /// When [`Guests::changed`] has ports without the bell.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.next)
    }

    /// Ends the sessions of all ports but those that are wanted as they are. Their sockets are gone then.
    pub fn keep<'a>(&mut self, wanted: impl Fn(PortId) -> Option<&'a Request>) {
        let (home, owner) = (&self.home, &self.owner);
        let gone = self.sessions.extract_if(.., |id, session| {
            !wanted(*id).is_some_and(|request| placed(home, request) == session.request)
        });
        for (id, Session { request, port }) in gone {
            drop(port);
            // A VM finds its port again with other settings, and its rings where they were.
            if wanted(id).is_none_or(|wanted| wanted.name != request.name) {
                Places::remove(&places_of(home, &request.name), owner);
            }
        }
    }

    /// Takes away what ports left that were removed while no switch ran: the places of all but those that are wanted, by name.
    pub fn tidy(&self, is_wanted: impl Fn(&str) -> bool) {
        let Ok(files) = fs::read_dir(self.home.join(".")) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            let port = name.to_str().and_then(port_of).filter(|port| !is_wanted(port));
            if let Some(port) = port.filter(|_| Places::remove(&file.path(), &self.owner)) {
                tracing::info!(port, "vhost-user: forgot the places of a port that is no more");
            }
        }
    }

    /// How the VM of a port is. Starts the session if there is none.
    ///
    /// # Errors
    /// One line: why there is no socket.
    pub fn follow(&mut self, id: PortId, request: &Request) -> Result<Presence, String> {
        if !self.sessions.contains_key(&id) {
            descriptors::check(request.pairs)?;
            let request = placed(&self.home, request);
            let bell = Arc::clone(&self.bell);
            let changed = Box::new(move || bell.ring(id));
            let (places, trouble) = places(&places_of(&self.home, &request.name), &self.owner)?;
            let port = VhostUser::start_at(request.clone(), places, changed).map_err(|e| e.to_string())?;
            // Once: a port that cannot start is tried again each second.
            if let Some(trouble) = trouble {
                tracing::warn!(port = request.name, "{trouble}");
            }
            self.sessions.insert(id, Session { request, port });
        }
        let session = &self.sessions[&id];
        Ok(presence(&session.request, &session.port.status()))
    }

    /// The queues of a VM whose driver runs. Those given before are dead from then on.
    pub fn open(&self, id: PortId) -> Opened {
        let Some(session) = self.sessions.get(&id) else { return opened(Vec::new(), Features::NONE) };
        let queues = session.port.queues().into_iter().map(port::boxed);
        opened(queues.collect(), session.port.status().features)
    }

    /// How a port's session is, if it has one.
    pub fn report(&self, id: PortId) -> Option<VhostReport> {
        let session = self.sessions.get(&id)?;
        let status = session.port.status();
        Some(VhostReport {
            socket: session.request.path.display().to_string(),
            role: match session.request.role {
                Role::Server => "server".to_owned(),
                Role::Client => "client".to_owned(),
            },
            connected: status.connected,
            features: status.features.to_string().split_whitespace().map(str::to_owned).collect(),
            protocol_features: protocol_features(status.protocol_features),
            pairs: status.pairs,
            rings: status.rings,
            memory: status.memory,
            connections: status.connections,
            resets: status.resets,
            last_error: status.last_error,
        })
    }
}

fn placed(home: &Path, request: &Request) -> Request {
    Request { path: home.join(&request.path), ..request.clone() }
}

/// Where a port's places are. Hidden, since sockets have the names of their ports.
fn places_of(home: &Path, port: &str) -> PathBuf {
    home.join(format!(".{port}.rings"))
}

/// The port of such a file.
fn port_of(places: &str) -> Option<&str> {
    places.strip_prefix('.')?.strip_suffix(".rings")
}

/// The places of a port: a file, or if there cannot be one, memory that ends with the session, and what that means.
fn places(path: &Path, owner: &str) -> Result<(Places, Option<String>), String> {
    Places::open(path, owner).map(|places| (places, None)).or_else(|error| {
        let path = path.display();
        let trouble =
            format!("{path}: {error}; a VM with packed rings may be cut off if the switch is killed");
        Ok((Places::private().map_err(|error| error.to_string())?, Some(trouble)))
    })
}

fn opened(queues: Vec<Box<dyn Port>>, features: Features) -> Opened {
    let rings = if features.has(Features::RING_PACKED) { "packed" } else { "split" };
    Opened { queues, obtained: format!("vhost-user {rings}"), because: None }
}

fn presence(request: &Request, status: &Status) -> Presence {
    let path = request.path.display();
    if status.pairs > 0 {
        return Presence::Running(status.epoch);
    }
    if status.connected {
        return Presence::Awaited(format!("connected to {path}, waiting for the guest's driver"));
    }
    let prefix = format!("{path}: ");
    let why =
        status.last_error.iter().map(|error| format!("; {}", error.strip_prefix(&prefix).unwrap_or(error)));
    let why = why.collect::<String>();
    match request.role {
        Role::Server => Presence::Awaited(format!("waiting for a VM to connect to {path}{why}")),
        Role::Client if request.path.parent().is_some_and(|dir| !dir.exists()) => {
            Presence::Hindered(format!("no VM can listen at {path} yet: there is no such directory"))
        }
        Role::Client => Presence::Awaited(format!("waiting for a VM to listen at {path}{why}")),
    }
}

fn protocol_features(bits: u64) -> Vec<String> {
    let name = |bit: usize| {
        PROTOCOL_FEATURES.get(bit).map_or_else(|| format!("bit{bit}"), |name| (*name).to_owned())
    };
    (0..64).filter(|bit| bits >> bit & 1 == 1).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(role: Role, path: &str) -> Request {
        Request { name: "vm".into(), path: path.into(), role, pairs: 2, mtu: 1500 }
    }

    #[test]
    fn a_port_says_what_it_waits_for() {
        let none = Status::default();
        let awaited = |role, status: &Status| match presence(&request(role, "/tmp/vm"), status) {
            Presence::Awaited(reason) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(awaited(Role::Server, &none), "waiting for a VM to connect to /tmp/vm");
        assert_eq!(awaited(Role::Client, &none), "waiting for a VM to listen at /tmp/vm");
        let failed = Status { last_error: Some("ring 3 is broken".into()), ..Status::default() };
        assert_eq!(
            awaited(Role::Server, &failed),
            "waiting for a VM to connect to /tmp/vm; ring 3 is broken"
        );
        let refused = Status { last_error: Some("/tmp/vm: refused".into()), ..Status::default() };
        assert_eq!(awaited(Role::Client, &refused), "waiting for a VM to listen at /tmp/vm; refused");
        let connected = Status { connected: true, ..failed };
        assert_eq!(awaited(Role::Client, &connected), "connected to /tmp/vm, waiting for the guest's driver");
        let running = Status { pairs: 2, epoch: 7, ..connected };
        assert_eq!(presence(&request(Role::Server, "/tmp/vm"), &running), Presence::Running(7));
    }

    #[test]
    fn places_stay_while_the_port_is_wanted_in_whatever_way() {
        let home = tempfile::tempdir().unwrap();
        let control = home.path().join("sluice.sock");
        let mut guests = Guests::new(&control).unwrap();
        let (id, path) = (PortId(1), home.path().join(".vm.rings"));
        let first = request(Role::Server, "vm");
        guests.follow(id, &first).unwrap();
        assert!(path.exists());
        let other = Request { mtu: 9000, ..first.clone() };
        guests.keep(|_| Some(&other));
        assert!(guests.sessions.is_empty() && path.exists());
        guests.follow(id, &other).unwrap();
        drop(guests);
        let mut guests = Guests::new(&control).unwrap();
        guests.follow(id, &other).unwrap();
        guests.keep(|_| None);
        assert!(!path.exists());
    }

    #[test]
    fn places_of_ports_that_went_while_no_switch_ran_go_and_nobody_elses() {
        let home = tempfile::tempdir().unwrap();
        let [ours, other] = ["sluice.sock", "other.sock"].map(|name| home.path().join(name));
        let follow = |control: &Path, name: &str, id| {
            let request = Request { name: name.into(), ..request(Role::Server, name) };
            let mut guests = Guests::new(control).unwrap();
            guests.follow(PortId(id), &request).unwrap();
            guests
        };
        ["gone", "kept", "running"].into_iter().for_each(|name| drop(follow(&ours, name, 1)));
        drop(follow(&other, "others", 1));
        fs::write(home.path().join(".vm.rings"), "precious").unwrap();
        let guests = follow(&ours, "running", 2);
        guests.tidy(|name| name == "kept");
        let left =
            fs::read_dir(home.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut left: Vec<_> = left.filter(|name| name.starts_with('.')).collect();
        left.sort_unstable();
        assert_eq!(left, [".kept.rings", ".others.rings", ".running.rings", ".vm.rings"]);
    }

    #[test]
    fn a_port_without_a_file_for_its_places_works_all_the_same() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".vm.rings")).unwrap();
        let mut guests = Guests::new(&home.path().join("sluice.sock")).unwrap();
        guests.follow(PortId(1), &request(Role::Server, "vm")).unwrap();
        guests.keep(|_| None);
        assert!(home.path().join(".vm.rings").exists());
    }

    #[test]
    fn a_client_without_the_directory_is_hindered() {
        let lost = request(Role::Client, "/no/such/directory/vm");
        assert!(matches!(presence(&lost, &Status::default()), Presence::Hindered(_)));
    }

    #[test]
    fn protocol_features_have_names() {
        assert_eq!(protocol_features(1 << 0 | 1 << 12 | 1 << 40), ["MQ", "INFLIGHT_SHMFD", "bit40"]);
    }

    #[test]
    fn the_bell_tells_of_each_port_once_and_not_too_often() {
        let mut guests = Guests::new(Path::new("/sluice.sock")).unwrap();
        let now = guests.next;
        [3, 1, 3].into_iter().for_each(|port| guests.bell.ring(PortId(port)));
        assert_eq!(guests.changed(now), [PortId(1), PortId(3)].into());
        assert_eq!((guests.changed(now + PACE), guests.deadline()), (BTreeSet::new(), None));
        guests.bell.ring(PortId(2));
        assert!(guests.changed(now + PACE / 2).is_empty());
        assert_eq!(guests.deadline(), Some(now + PACE));
        assert_eq!(guests.changed(now + PACE), [PortId(2)].into());
    }
}
