//! The running switch as control sees it: the configuration in force, its file, its devices.
//!
//! The file is the state: a change is checked whole, then written, then applied; whatever fails before the last
//! step changes nothing. A device that cannot be opened is no failure of a change: its error is kept and
//! shown, and the rest of the switch runs.

mod descriptors;
mod open;
mod overlay;
mod pollers;
mod ports;
mod report;
mod survey;
mod underlay;
mod vhost;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use dataplane::frame::{FramePool, Memory, PoolConfig, PoolError};
use dataplane::poller::Caches;
use dataplane::run::Idle;
use dataplane::shared::Event;
use dataplane::switch::{StartError, Switch, SwitchConfig};
use dataplane::tables::Tables;
use flowtable::id::PortId;
use thiserror::Error;

use crate::api::report::ApplyReport;
use crate::check;
use crate::compile::compile;
use crate::config::{self, Config};
use crate::edit::{self, Change};
use crate::host::map;
use crate::links::{Links, LinksError};
use crate::logging::Log;
use crate::model::Model;
use crate::problem::{Problem, Problems};

use open::Opener;
use ports::{Moves, Ports};
use survey::Survey;
use vhost::Guests;

pub use overlay::FdbStats;
pub use underlay::{Listener, RouteEntry};

/// The switch cannot start.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// No frames.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// No pollers.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No netlink.
    #[error(transparent)]
    Links(#[from] LinksError),
    /// No descriptors.
    #[error("cannot watch the underlay: {0}")]
    Survey(io::Error),
    /// No descriptors.
    #[error("cannot watch vhost-user ports: {0}")]
    Guests(io::Error),
}

/// A change was refused; nothing changed.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {source}; nothing was changed", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is wrong.
    #[error("{} has problems, nothing was changed:\n{}", path.display(), problems.in_file(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problems: Problems,
    },
    /// The change is wrong.
    #[error("{0}; nothing was changed")]
    Change(Problems),
    /// The file is not what runs.
    #[error("{} has changes that are not in force; run `sluice apply` first, or take them back", .0.display())]
    Stale(PathBuf),
}

/// What a service is made of.
pub struct Parts {
    /// The configuration file.
    pub file: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// What it says.
    pub model: Model,
    /// The log.
    pub log: Log,
}

/// The running switch.
pub struct Service {
    file: PathBuf,
    /// The text of the file that `model` was made of, if we wrote it.
    written: Option<String>,
    model: Model,
    switch: Arc<Switch>,
    pool: Arc<FramePool>,
    ports: Ports,
    links: Links,
    survey: Survey,
    log: Log,
    /// What the pollers and the pool were made of.
    began: Config,
    /// What the model demands of pollers, without what depends on devices.
    tables: Tables,
    /// Of the tables in force.
    generation: u64,
    /// What the tables in force say of devices.
    devices: Devices,
    /// Interfaces changed while ports were being settled.
    unsettled: bool,
    started: Instant,
}

/// How devices really are, as far as the tables depend on it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Devices {
    /// What each carries.
    mtus: BTreeMap<PortId, u16>,
    /// Those that nothing can be sent to: they are left out of floods.
    down: BTreeSet<PortId>,
}

impl Service {
    /// Starts the pollers, publishes the tables and opens what can be opened.
    ///
    /// # Errors
    /// [`ServiceError`]; nothing is left behind.
    pub fn start(parts: Parts) -> Result<Service, ServiceError> {
        let Parts { file, socket, model, log } = parts;
        descriptors::raise_limit();
        let began = model.config().clone();
        let (small, big) = (began.pool.frames, began.pool.big_frames);
        let pool = FramePool::new(PoolConfig { small, big, memory: Memory::Umem })?;
        let links = Links::open()?;
        let switch = Arc::new(Switch::start(switch_config(&began), Arc::clone(&pool))?);
        let survey = Survey::new(Arc::clone(&switch), Arc::clone(&pool)).map_err(ServiceError::Survey)?;
        let opener = Opener {
            pool: Arc::clone(&pool),
            endpoints: Arc::clone(survey.endpoints()),
            overlong: Arc::clone(survey.overlong()),
            guests: Guests::new(&socket).map_err(ServiceError::Guests)?,
        };
        let ports = Ports::new(Arc::clone(&switch), opener);
        let started = Instant::now();
        let mut service = Service {
            file,
            written: None,
            model,
            switch,
            pool,
            ports,
            links,
            survey,
            log,
            began,
            tables: Tables::default(),
            generation: 0,
            devices: Devices::default(),
            unsettled: false,
            started,
        };
        service.enforce();
        service.ports.tidy();
        service.warn();
        Ok(service)
    }

    /// Reads the file again and applies what changed.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing changed.
    pub fn apply(&mut self) -> Result<ApplyReport, ChangeError> {
        let model = self.check(&self.file, &read(&self.file)?)?;
        self.written = None;
        Ok(self.adopt(model))
    }

    /// Puts another file's text into the configuration file and applies what changed.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing changed.
    pub fn replace(&mut self, source: &Path) -> Result<ApplyReport, ChangeError> {
        let text = read(source)?;
        let model = self.check(source, &text)?;
        self.write(&text)?;
        Ok(self.adopt(model))
    }

    /// Makes one change of the running configuration and of its file. Reported is what concerns the change.
    ///
    /// # Errors
    /// [`ChangeError`]; neither changed.
    pub fn edit(&mut self, change: &Change) -> Result<ApplyReport, ChangeError> {
        let text = read(&self.file)?;
        self.is_in_force(&text)?;
        let (text, config) = edit::edit(&text, self.model.config(), change).map_err(ChangeError::Change)?;
        let model = self.model.change(config).map_err(ChangeError::Change)?;
        self.write(&text)?;
        let known = warnings(self.model.config());
        let mut report = self.adopt(model);
        let concerned = |port| report.opened.contains(port) || report.reopened.contains(port);
        report.troubles = report.troubles.iter().filter(|t| concerned(&t.port)).cloned().collect();
        report.warnings.retain(|warning| !known.contains(warning));
        report.needs_restart.clear();
        Ok(report)
    }

    /// The data plane reports.
    pub fn on_event(&mut self, event: Event) {
        match event {
            Event::PortGone { port, error } => {
                self.ports.lost(port, error, Instant::now());
                self.publish();
            }
            Event::Resolve { endpoint, address } => self.survey.resolve(endpoint, address),
        }
    }

    /// The kernel reports, or it is time to look again: see [`Service::deadline`].
    pub fn on_links(&mut self) {
        let due = self.links_deadline().is_some_and(|at| at <= Instant::now());
        if self.news() || due {
            self.settle();
        }
    }

    /// The underlay reports, or it is time to look again: see [`Service::deadline`].
    pub fn on_underlay(&mut self) {
        if self.survey.look(&self.links) {
            self.publish();
        }
    }

    /// VMs come and go: see [`Service::interests`].
    pub fn on_guests(&mut self) {
        if self.ports.settle_changed(&self.links) {
            self.reflect();
        }
    }

    /// Takes in what the kernel reports; true if that may concern a port.
    fn news(&mut self) -> bool {
        let news = self.links.refresh();
        news.inspect_err(|error| tracing::error!("{error}")).map_or(true, |changed| !changed.is_empty())
    }

    /// When one of the `on_` functions is due although nothing was reported.
    pub fn deadline(&self) -> Option<Instant> {
        let all = [self.links_deadline(), self.ports.guests_deadline(), self.survey.deadline()];
        all.into_iter().flatten().min()
    }

    fn links_deadline(&self) -> Option<Instant> {
        if self.unsettled { Some(Instant::now()) } else { self.ports.deadline() }
    }

    /// What to wait on: interfaces, VMs and the underlay.
    pub fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.survey.interests().chain([self.links.as_fd(), self.ports.as_fd()])
    }

    /// The data plane.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The configuration in force.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Closes every device.
    pub fn stop(mut self) {
        self.ports.close_all();
    }

    fn wrong(&self, path: &Path, problems: Problems) -> ChangeError {
        ChangeError::File { path: path.to_owned(), problems }
    }

    fn check(&self, path: &Path, text: &str) -> Result<Model, ChangeError> {
        let model = config::parse(text).and_then(|config| self.model.change(config));
        model.map_err(|problems| self.wrong(path, problems))
    }

    /// Does the file say what runs? The text we wrote ourselves does, without a look at it.
    fn is_in_force(&self, text: &str) -> Result<(), ChangeError> {
        if self.written.as_deref() == Some(text) {
            return Ok(());
        }
        let on_disk = config::parse(text).map_err(|problems| self.wrong(&self.file, problems))?;
        if on_disk == *self.model.config() { Ok(()) } else { Err(ChangeError::Stale(self.file.clone())) }
    }

    /// Writes what is to be adopted next.
    fn write(&mut self, text: &str) -> Result<(), ChangeError> {
        let failed = |source| ChangeError::Write { path: self.file.clone(), source };
        edit::write_atomically(&self.file, text).map_err(failed)?;
        self.written = Some(text.to_owned());
        Ok(())
    }

    fn adopt(&mut self, model: Model) -> ApplyReport {
        let old = std::mem::replace(&mut self.model, model);
        if old.config().switch.log != self.model.config().switch.log {
            self.log.set(self.model.config().switch.log);
        }
        let moves = self.enforce();
        let gone = old.ports().filter(|old| self.model.ports().all(|new| new.id != old.id));
        gone.for_each(|port| self.switch.forget(port.id));
        tracing::info!(generation = self.generation, "configuration applied");
        let warnings = self.warn();
        ApplyReport {
            opened: moves.opened,
            closed: moves.closed,
            reopened: moves.reopened,
            untouched: moves.untouched,
            needs_restart: needs_restart(&self.began, self.model.config()),
            troubles: self.ports.troubles().collect(),
            warnings,
        }
    }

    /// Logs what is legal, and likely not meant.
    fn warn(&self) -> Vec<String> {
        let warnings = warnings(self.model.config());
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        warnings
    }

    /// Makes the data plane what the model says: close, publish, open.
    fn enforce(&mut self) -> Moves {
        let compiled = compile(&self.model);
        self.survey.follow(map::plan(&compiled), &self.links);
        self.tables = compiled.tables;
        let moves = self.ports.adopt(compiled.attachments);
        self.publish();
        self.settle();
        moves
    }

    /// Opens and closes devices as their interfaces allow. What that did to them is published.
    fn settle(&mut self) {
        self.ports.settle(&self.links);
        // Our own doing comes back as news (an MTU we set, a device we made), and so does what others did
        // meanwhile.
        self.unsettled = self.news();
        self.reflect();
    }

    /// Publishes how devices are, if that is another.
    fn reflect(&mut self) {
        let devices = self.devices();
        if devices == self.devices {
            return;
        }
        if !devices.down.is_superset(&self.devices.down) {
            self.survey.rewire();
        }
        self.publish();
    }

    /// Puts the tables in force, as the devices really are. Who lived behind one that went is looked for anew: a VM may
    /// be elsewhere by now.
    fn publish(&mut self) {
        let devices = self.devices();
        let gone: Vec<PortId> = devices.down.difference(&self.devices.down).copied().collect();
        self.devices = devices;
        let mut tables = self.tables.clone();
        for (port, mtu) in &self.devices.mtus {
            if let Some(entry) = tables.ports.get_mut(port.index()).and_then(Option::as_mut) {
                entry.mtu = *mtu;
            }
        }
        for bridge in tables.bridges.iter_mut().flatten() {
            bridge.ports.retain(|port| !self.devices.down.contains(port));
        }
        tables.underlay = Arc::clone(self.survey.map());
        self.generation = self.switch.publish(tables);
        for (port, entry) in gone.into_iter().filter_map(|port| Some((port, self.tables.port(port)?))) {
            self.switch.fdb_flush(entry.bridge, Some(port));
        }
    }

    fn devices(&self) -> Devices {
        let mtu = |name| self.links.get(name).map(|link| link.mtu.try_into().unwrap_or(u16::MAX));
        let mtus = self.ports.devices().filter_map(|(port, name)| Some((port, mtu(name)?))).collect();
        Devices { mtus, down: self.ports.down().collect() }
    }
}

fn warnings(config: &Config) -> Vec<String> {
    check::warnings(config).iter().map(Problem::to_string).collect()
}

fn read(path: &Path) -> Result<String, ChangeError> {
    config::file::text(path).map_err(|source| ChangeError::Read { path: path.to_owned(), source })
}

/// How the data plane is to be.
pub(crate) fn switch_config(config: &Config) -> SwitchConfig {
    let switch = &config.switch;
    SwitchConfig {
        cores: switch.cores.clone(),
        idle: match switch.idle {
            config::Idle::Adaptive => Idle::Adaptive,
            config::Idle::Spin => Idle::Spin,
        },
        caches: if switch.caches { Caches::On } else { Caches::Off },
        flows: switch.flow_limit,
        masks: switch.mask_limit,
        max_idle: switch.max_idle,
    }
}

/// The settings that differ from those at the start, and are read only there.
fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let differs = [
        ("switch.socket", old.switch.socket != new.switch.socket),
        ("switch.cores", old.switch.cores != new.switch.cores),
        ("switch.idle", old.switch.idle != new.switch.idle),
        ("switch.flow-limit", old.switch.flow_limit != new.switch.flow_limit),
        ("switch.mask-limit", old.switch.mask_limit != new.switch.mask_limit),
        ("switch.max-idle", old.switch.max_idle != new.switch.max_idle),
        ("switch.caches", old.switch.caches != new.switch.caches),
        ("pool.frames", old.pool.frames != new.pool.frames),
        ("pool.big-frames", old.pool.big_frames != new.pool.big_frames),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_at_the_start_needs_one() {
        let old = Config::default();
        let mut new = old.clone();
        new.switch.log = tracing::Level::DEBUG;
        new.bridges.push(config::BridgeConfig::default());
        assert!(needs_restart(&old, &new).is_empty());
        new.switch.cores = vec![0, 1];
        new.pool.frames += 1;
        assert_eq!(needs_restart(&old, &new), ["switch.cores", "pool.frames"]);
    }
}
