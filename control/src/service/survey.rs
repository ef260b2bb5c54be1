//! The map of the underlay, kept true: what is configured, what the kernel says and what was found out become one
//! [`Underlay`], and who is missing on it is looked for.
//!
//! A new map is a new generation of the tables, which has every cached flow checked again. So there is one only when
//! something on it changed, and at most one in [`PACE`]: what is found out in between comes together.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use dataplane::frame::FramePool;
use dataplane::port::host::{Overlong, path_mtu};
use dataplane::run::Clock;
use dataplane::switch::Switch;
use dataplane::underlay::Underlay;
use flowtable::id::PortId;
use flowtable::time::Instant;

use crate::host::endpoints::Endpoints;
use crate::host::kernel::Kernel;
use crate::host::map::{self, Plan};
use crate::host::path::PathMtus;
use crate::links::Links;

/// The least time between two maps.
const PACE: Duration = Duration::from_millis(10);
/// Who has not answered by then will not: three questions, a second each, and the kernel is no faster.
const PATIENCE: Duration = Duration::from_secs(4);
/// The least time between two looks at all endpoints that were learned.
const SCAN: Duration = Duration::from_secs(1);

/// The map and its makers.
pub struct Survey {
    switch: Arc<Switch>,
    clock: Clock,
    endpoints: Arc<Endpoints>,
    /// Whose path a packet of the host's stack was too long for, and how much such paths carry.
    overlong: Arc<Overlong>,
    host_paths: PathMtus,
    /// Only if there are ports that it may hold addresses of.
    kernel: Option<Kernel>,
    plan: Plan,
    map: Arc<Underlay>,
    /// When the map was last drawn, and whether it must be again.
    drawn: Instant,
    stale: bool,
    /// Endpoints that the data plane had learned when it was last asked.
    learned: (BTreeSet<IpAddr>, Instant),
    /// Next hops that the data plane waits for, since when.
    asked: BTreeMap<(PortId, IpAddr), Instant>,
}

impl Survey {
    /// An empty map.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new(switch: Arc<Switch>, pool: Arc<FramePool>) -> io::Result<Self> {
        Ok(Survey {
            switch,
            clock: Clock::start(),
            endpoints: Arc::new(Endpoints::new(pool)?),
            overlong: Arc::new(Overlong::new()?),
            host_paths: PathMtus::default(),
            kernel: None,
            plan: Plan::default(),
            map: Arc::default(),
            drawn: Instant::ZERO,
            stale: false,
            learned: (BTreeSet::new(), Instant::ZERO),
            asked: BTreeMap::new(),
        })
    }

    /// The endpoints whose addresses are configured.
    pub fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }

    /// Whose path a packet of the host's stack was too long for.
    pub fn overlong(&self) -> &Arc<Overlong> {
        &self.overlong
    }

    /// What the kernel knows of the others.
    pub fn kernel(&self) -> Option<&Kernel> {
        self.kernel.as_ref()
    }

    /// What is configured.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The map, as the tables in force have it.
    pub fn map(&self) -> &Arc<Underlay> {
        &self.map
    }

    /// Readable when [`Survey::look`] is due.
    pub fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.kernel.iter().map(Kernel::as_fd).chain([self.endpoints.as_fd(), self.overlong.as_fd()])
    }

    /// Another configuration: the map is drawn anew at once.
    pub fn follow(&mut self, plan: Plan, links: &Links) {
        self.plan = plan;
        self.watch_kernel();
        self.hear_kernel(links);
        self.draw();
    }

    /// Endpoints are on another wire than before.
    pub fn rewire(&self) {
        self.endpoints.wake();
    }

    /// A frame waits for a next hop.
    pub fn resolve(&mut self, endpoint: PortId, address: IpAddr) {
        if self.plan.endpoints.contains_key(&endpoint) {
            self.endpoints.resolve(endpoint, address);
        } else if let Some(kernel) = &mut self.kernel {
            kernel.resolve(endpoint, address);
        }
        self.asked.insert((endpoint, address), self.clock.now());
        // It may have been found since the frame was told that it is not known.
        self.stale = true;
    }

    /// Takes in what is new. True if there is a new map.
    pub fn look(&mut self, links: &Links) -> bool {
        self.hear_kernel(links);
        self.stale |= self.endpoints.has_news();
        let now = self.clock.now();
        self.measure(now);
        let drawn = self.stale && self.due() <= now && self.draw();
        self.answer(now);
        drawn
    }

    /// When [`Survey::look`] is due although nothing was reported.
    pub fn deadline(&self) -> Option<std::time::Instant> {
        let kernel = self.kernel.as_ref().and_then(Kernel::deadline);
        let impatient = self.asked.values().min().map(|since| *since + PATIENCE);
        let draw = self.stale.then(|| self.due());
        let at = [kernel, impatient, draw, self.host_paths.deadline()].into_iter().flatten().min()?;
        Some(std::time::Instant::now() + at.since(self.clock.now()))
    }

    fn due(&self) -> Instant {
        self.drawn + PACE
    }

    fn watch_kernel(&mut self) {
        if self.plan.devices.is_empty() {
            self.kernel = None;
        } else if self.kernel.is_none() {
            let kernel = Kernel::open().inspect_err(|error| tracing::error!("{error}"));
            self.kernel = kernel.ok();
        }
    }

    fn hear_kernel(&mut self, links: &Links) {
        let Some(kernel) = &mut self.kernel else { return };
        let device = |(port, name): (&PortId, &String)| {
            let link = links.get(name)?;
            Some((link.index, *port, link.mac?))
        };
        self.stale |= kernel.follow(self.plan.devices.iter().filter_map(device));
        match kernel.refresh() {
            Ok(changed) => self.stale |= changed,
            Err(error) => tracing::error!("{error}"),
        }
        kernel.turn(self.clock.now());
    }

    /// Asks the kernel how much the paths carry that a packet was too long for.
    fn measure(&mut self, now: Instant) {
        self.stale |= self.host_paths.turn(now);
        for remote in self.overlong.take() {
            if let Some(mtu) = path_mtu(remote) {
                self.stale |= self.host_paths.measured(remote, mtu, now);
            }
        }
    }

    /// True if the map is another one.
    fn draw(&mut self) -> bool {
        let now = self.clock.now();
        (self.stale, self.drawn) = (false, now);
        let mut findings = self.endpoints.findings();
        findings.path_mtus.extend(self.host_paths.iter());
        if findings.stranger && now.since(self.learned.1) >= SCAN {
            self.learned = (self.learned_vteps(), now);
        }
        let mut traffic = self.plan.traffic.clone();
        traffic.remotes.extend(&self.learned.0);
        let map = map::underlay(&self.plan, self.kernel.as_ref().map(Kernel::host), findings);
        let hops = map::next_hops(&map, &self.plan.traffic.remotes);
        self.endpoints.demand(map::demands(&self.plan, &hops), traffic);
        if let Some(kernel) = &mut self.kernel {
            kernel.keep(&hops, now);
        }
        let new = map != *self.map;
        if new {
            self.map = Arc::new(map);
        }
        new
    }

    /// The endpoints that the data plane learned. O(all of them).
    fn learned_vteps(&self) -> BTreeSet<IpAddr> {
        let (now, snapshot) = (self.switch.now(), self.switch.snapshot());
        let mut all = BTreeSet::new();
        for learned in snapshot.learned.iter().flatten() {
            all.extend(learned.vteps().entries(now).map(|entry| entry.address));
        }
        all
    }

    /// Tells the data plane of those that were found, or will not be.
    fn answer(&mut self, now: Instant) {
        self.asked.retain(|(endpoint, address), since| {
            let found = self.map.neighbours.contains_key(&(*endpoint, *address));
            let over = found || now.since(*since) >= PATIENCE;
            if over {
                self.switch.resolved(*endpoint, *address);
            }
            !over
        });
    }
}
