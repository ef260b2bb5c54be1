//! A switch in this process, of a configuration file, that the generator's thread turns itself.
//!
//! Nothing is attached to the kernel: the port where frames come in plays them from memory, all others free what they get. The
//! underlay is quiet, so whoever our tunnels lead to is a neighbour from the start, by one address that all of them have.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataplane::frame::{FramePool, Memory, PoolConfig, PoolError};
use dataplane::pktgen::Observer;
use dataplane::pktgen::announce::announcements;
use dataplane::pktgen::circuit::Circuit;
use dataplane::pktgen::exchange::Source;
use dataplane::pktgen::reel::Reel;
use dataplane::pktgen::terms::Vxlan;
use dataplane::switch::{StartError, Switch};
use dataplane::underlay::Underlay;
use encap::field::MacAddr;
use flowtable::id::PortId;
use thiserror::Error;

use super::report::Report;
use super::{PktgenError, Request, Tunnel, wrapped};
use crate::compile::{Compiled, compile};
use crate::config;
use crate::host::endpoints::Findings;
use crate::host::map;
use crate::model::Model;
use crate::problem::Problems;
use crate::service::switch_config;

/// Who is at the other end of tunnels, and at every next hop to there.
pub const NEIGHBOUR: MacAddr = MacAddr([2, 0, 0, 0, 0xaa, 2]);

/// There is no such switch.
#[derive(Debug, Error)]
pub enum InProcessError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file has errors.
    #[error("{}", problems.in_file(file))]
    Config {
        /// The file.
        file: PathBuf,
        /// Which.
        problems: Problems,
    },
    /// No such port.
    #[error("{} has no port {name}", file.display())]
    Port {
        /// The file.
        file: PathBuf,
        /// The port.
        name: String,
    },
    /// No switch.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No memory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Frames in a tunnel need one.
    #[error("{} has no vtep port with an address; give --vxlan-dst and --vxlan-dst-mac, or add one", .0.display())]
    NoEndpoint(PathBuf),
}

/// Measures what a frame costs the switch from one port to the other.
///
/// # Errors
/// [`PktgenError`].
pub fn run(
    request: &Request,
    (file, from, to): (&Path, &str, &str),
    observe: Observer<'_>,
) -> Result<Report, PktgenError> {
    if request.search.is_some() || request.plan.rate.is_some() {
        return Err(PktgenError::Flat);
    }
    let model = model(file)?;
    let compiled = compile(&model);
    let terms = wrapped(&request.frames, |tunnel| Ok(complete(tunnel, &compiled, file)?))?;
    let source = super::source(&request.frames, &terms)?;
    let reel = match source {
        Source::Made(ref frames) => Reel::of(frames)?,
        Source::Played(ref player) => player.reel().clone(),
    };
    let report = Report::new(request, &source);
    let id = |name: &str| {
        let missing = || InProcessError::Port { file: file.to_owned(), name: name.to_owned() };
        model.port(name).map(|port| port.id).ok_or_else(missing)
    };
    let ends = (id(from)?, id(to)?);
    let mut circuit = circuit(&model, compiled, ends)?;
    if let Some(tag) = request.frames.announce.tag().filter(|_| ends.0 != ends.1) {
        circuit.announce(ends.1, announcements(terms.dst_macs, tag));
    }
    circuit.play(reel);
    Ok(report.with_cost(circuit.measure(request.plan.until, request.plan.window, observe)))
}

fn model(file: &Path) -> Result<Model, InProcessError> {
    let wrong = |problems| InProcessError::Config { file: file.to_owned(), problems };
    let text =
        config::file::text(file).map_err(|source| InProcessError::Read { file: file.to_owned(), source })?;
    config::parse(&text).and_then(Model::new).map_err(wrong)
}

/// The switch with one poller, and all its ports in memory.
fn circuit(model: &Model, mut compiled: Compiled, ends: (PortId, PortId)) -> Result<Circuit, InProcessError> {
    let config = model.config();
    let pool = PoolConfig { small: config.pool.frames, big: config.pool.big_frames, memory: Memory::Plain };
    let mut settings = switch_config(config);
    settings.cores.truncate(1);
    let (switch, mut pollers) = Switch::assemble(settings, FramePool::new(pool)?)?;
    let poller = pollers.pop().ok_or(StartError::NoCore)?;
    compiled.tables.underlay = Arc::new(underlay(&compiled));
    switch.publish(compiled.tables);
    let mut circuit = Circuit::new(switch, poller, ends);
    circuit.ground(compiled.attachments.keys().copied());
    Ok(circuit)
}

/// What is configured, and a neighbour at each next hop.
fn underlay(compiled: &Compiled) -> Underlay {
    let plan = map::plan(compiled);
    let alone = map::underlay(&plan, None, Findings::default());
    let hops = map::next_hops(&alone, &plan.traffic.remotes);
    let all = hops.iter().flat_map(|(port, addresses)| addresses.iter().map(|address| (*port, *address)));
    let neighbours: HashMap<_, _> = all.map(|hop| (hop, NEIGHBOUR)).collect();
    map::underlay(&plan, None, Findings { neighbours, ..Findings::default() })
}

/// Outer headers from the other end to ours, as the configuration has it.
fn complete(tunnel: &Tunnel, compiled: &Compiled, file: &Path) -> Result<Vxlan, InProcessError> {
    let endpoint = compiled.endpoints.values().find(|endpoint| !endpoint.addresses.is_empty());
    let none = || InProcessError::NoEndpoint(file.to_owned());
    let dst = tunnel.dst.or(endpoint.map(|endpoint| endpoint.addresses[0].address)).ok_or_else(none)?;
    let remotes = map::traffic(&compiled.tables).remotes;
    let remote = remotes.into_iter().find(|remote| remote.is_ipv4() == dst.is_ipv4());
    Ok(Vxlan {
        vni: tunnel.vni,
        src_mac: tunnel.src_mac,
        dst_mac: tunnel.dst_mac.or(endpoint.map(|endpoint| endpoint.mac)).ok_or_else(none)?,
        src: tunnel.src.or(remote).ok_or_else(none)?,
        dst,
        dst_port: tunnel.dst_port,
    })
}
