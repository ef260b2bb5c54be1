//! `sluice pktgen`: plugs the generator of [`dataplane::pktgen`] into what is asked for, and reports.
//!
//! Ports of kind `memory` are those of a switch that runs in this process, on the generator's thread ([`in_process`]). All
//! others are plugged in as they are.

pub mod in_process;
pub mod report;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig, PoolError};
use dataplane::pktgen::announce::announce;
use dataplane::pktgen::cable::{Cable, CableError};
use dataplane::pktgen::exchange::{Ends, Outcome, Plan, Question, Source, exchange};
use dataplane::pktgen::frames::{Frames, FramesError, Stamping};
use dataplane::pktgen::reel::{Player, Reel, ReelError};
use dataplane::pktgen::residents::Residents;
use dataplane::pktgen::search::{Found, Goal, Trial, search};
use dataplane::pktgen::terms::{Addresses, Terms, Vxlan};
use dataplane::pktgen::{Observer, Until, Verdict};
use dataplane::port::PortError;
use encap::field::{MacAddr, VlanTag, Vni};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use thiserror::Error;

use self::in_process::InProcessError;
use self::report::Report;

/// Frames of 2 KiB: two ports' rings, and as many under way.
const FRAMES: u32 = 16_384;
/// Frames of 68 KiB.
const BIG_FRAMES: u32 = 256;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to send.
    pub tx: Cable,
    /// Where frames come out; `None`: at the same port.
    pub rx: Option<Cable>,
    /// The switch of `memory` ports.
    pub config: Option<PathBuf>,
    /// What to send.
    pub frames: What,
    /// How.
    pub plan: Plan,
    /// Look for the rate without loss instead; the plan's end is that of a trial.
    pub search: Option<Goal>,
    /// Send for so long before anything counts.
    pub warm_up: Option<Duration>,
    /// Addresses that are answered for where frames come out, beside the destinations'.
    pub answers: Vec<IpAddr>,
    /// The core to run on.
    pub core: Option<usize>,
}

/// What to send.
#[derive(Debug, Clone)]
pub struct What {
    /// Frames to make. The outer headers are in `tunnel`.
    pub terms: Terms,
    /// Outer headers.
    pub tunnel: Option<Tunnel>,
    /// Frames of this file instead.
    pub pcap: Option<PathBuf>,
    /// Destinations make themselves known first.
    pub announce: Announce,
}

/// Whether destinations make themselves known where frames are to come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announce {
    /// In this VLAN.
    Tagged(VlanTag),
    /// Untagged.
    Untagged,
    /// They do not.
    No,
}

/// Outer headers, as far as they were given.
#[derive(Debug, Clone, Copy)]
pub struct Tunnel {
    /// The segment.
    pub vni: Vni,
    /// Outer addresses.
    pub src: Option<IpAddr>,
    /// See there.
    pub dst: Option<IpAddr>,
    /// Outer MAC addresses.
    pub src_mac: MacAddr,
    /// See there.
    pub dst_mac: Option<MacAddr>,
    /// UDP port.
    pub dst_port: u16,
}

/// It cannot be done.
#[derive(Debug, Error)]
pub enum PktgenError {
    /// Frames cannot be.
    #[error(transparent)]
    Frames(#[from] FramesError),
    /// See there.
    #[error(transparent)]
    Reel(#[from] ReelError),
    /// A port cannot be opened.
    #[error(transparent)]
    Cable(#[from] CableError),
    /// The switch in this process cannot be.
    #[error(transparent)]
    InProcess(#[from] InProcessError),
    /// No memory.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A port went away.
    #[error("a port stopped working: {0}")]
    Port(#[from] PortError),
    /// Not every process may run anywhere.
    #[error("cannot run on core {core}: {source}; name one that `taskset -p $$` allows")]
    Core {
        /// Which.
        core: usize,
        /// What the kernel said.
        source: nix::Error,
    },
    /// Outer headers are incomplete.
    #[error("--vxlan needs {0}: outer headers must say from whom and to whom")]
    Tunnel(&'static str),
    /// Memory ports take what comes as fast as it comes.
    #[error(
        "memory ports have no rate to search: they run flat out; leave --search and --rate out, and see cycles_per_frame"
    )]
    Flat,
}

/// Does what is asked; the observer may end it.
///
/// # Errors
/// [`PktgenError`].
pub fn run(request: &Request, observe: Observer<'_>) -> Result<Report, PktgenError> {
    if let Some(core) = request.core {
        pin(core).map_err(|source| PktgenError::Core { core, source })?;
    }
    let rx = request.rx.as_ref().unwrap_or(&request.tx);
    if let (Some(config), Cable::Memory(from), Cable::Memory(to)) = (&request.config, &request.tx, rx) {
        return in_process::run(request, (config, from, to), observe);
    }
    let terms = wrapped(&request.frames, complete)?.settled().map_err(FramesError::from)?;
    let mut source = source(&request.frames, &terms)?;
    let len = match &source {
        Source::Made(frames) => frames.frame_len(),
        Source::Played(player) => player.reel().longest(),
    };
    let pool = FramePool::new(PoolConfig { small: FRAMES, big: BIG_FRAMES, memory: memory(request) })?;
    let mut ends = open(request, &pool, len)?;
    inhabit(&mut ends, &terms, &request.answers);
    if let Some(tag) = request.frames.announce.tag() {
        announce(&mut ends, terms.dst_macs, tag)?;
    }
    let report = Report::new(request, &source);
    if let Some(time) = request.warm_up {
        let until = Until { time: Some(time), count: None };
        exchange(&mut ends, &mut source, Plan { until, ..request.plan }, observe)?;
    }
    match request.search {
        None => {
            let outcome = exchange(&mut ends, &mut source, request.plan, observe)?;
            Ok(report.with(outcome, source.form()))
        }
        Some(goal) => {
            let (found, outcome) = throughput(&mut ends, &mut source, (goal, request.plan), observe)?;
            Ok(report.with(outcome, source.form()).with_search(&found))
        }
    }
}

impl Announce {
    /// The tag of announcements; `None`: there are none.
    pub fn tag(self) -> Option<Option<VlanTag>> {
        match self {
            Announce::Tagged(tag) => Some(Some(tag)),
            Announce::Untagged => Some(None),
            Announce::No => None,
        }
    }
}

fn pin(core: usize) -> nix::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)
}

/// AF_XDP needs frames that it can share with the kernel.
fn memory(request: &Request) -> Memory {
    let cables = [Some(&request.tx), request.rx.as_ref()];
    let xdp = cables.into_iter().flatten().any(|cable| matches!(cable, Cable::Afxdp(_)));
    if xdp { Memory::Umem } else { Memory::Plain }
}

fn open(request: &Request, pool: &Arc<FramePool>, len: usize) -> Result<Ends, PktgenError> {
    let tx = request.tx.open(pool, len)?;
    let rx = request.rx.as_ref().filter(|rx| **rx != request.tx);
    let rx = rx.map(|rx| rx.open(pool, len)).transpose()?;
    let frames = FrameCache::new(Arc::clone(pool));
    Ok(Ends { tx, rx, frames, near: Residents::default(), far: Residents::default() })
}

/// Who answers for which address: sources where frames are sent, destinations where they come out.
fn inhabit(ends: &mut Ends, terms: &Terms, answers: &[IpAddr]) {
    match &terms.vxlan {
        Some(vxlan) => ends.near.add(Addresses::one(vxlan.src), vxlan.src_mac),
        None => ends.near.add(terms.src, terms.src_macs.get(0)),
    }
    ends.far.add(terms.dst, terms.dst_macs.get(0));
    answers.iter().for_each(|address| ends.far.add(Addresses::one(*address), terms.dst_macs.get(0)));
}

/// The terms with their outer headers.
fn wrapped(
    what: &What,
    complete: impl FnOnce(&Tunnel) -> Result<Vxlan, PktgenError>,
) -> Result<Terms, PktgenError> {
    let vxlan = what.tunnel.as_ref().map(complete).transpose()?;
    Ok(Terms { vxlan, ..what.terms.clone() })
}

/// Outer headers that must have been given.
fn complete(tunnel: &Tunnel) -> Result<Vxlan, PktgenError> {
    Ok(Vxlan {
        vni: tunnel.vni,
        src_mac: tunnel.src_mac,
        dst_mac: tunnel.dst_mac.ok_or(PktgenError::Tunnel("--vxlan-dst-mac"))?,
        src: tunnel.src.ok_or(PktgenError::Tunnel("--vxlan-src"))?,
        dst: tunnel.dst.ok_or(PktgenError::Tunnel("--vxlan-dst"))?,
        dst_port: tunnel.dst_port,
    })
}

fn source(what: &What, terms: &Terms) -> Result<Source, PktgenError> {
    Ok(match &what.pcap {
        Some(file) => Source::Played(Player::new(Reel::read(file)?)),
        None => Source::Made(Frames::new(terms, Stamping::Plain)?),
    })
}

/// The fastest trial that passed, or the last one, and all of them.
fn throughput(
    ends: &mut Ends,
    source: &mut Source,
    (goal, plan): (Goal, Plan),
    observe: Observer<'_>,
) -> Result<(Found, Outcome), PktgenError> {
    let mut stopped = false;
    let (mut fastest, mut last) = (None, Outcome::default());
    let found = search(goal, |rate| {
        if stopped {
            return Err(None);
        }
        let plan = Plan { rate, question: Question::Exceeds(goal.loss), ..plan };
        let outcome = exchange(ends, source, plan, &mut |progress| {
            let verdict = observe(progress);
            stopped |= verdict == Verdict::Stop;
            verdict
        })
        .map_err(Some)?;
        let trial = Trial { wished: rate, rate: outcome.mean, sent: outcome.sent, lost: outcome.lost };
        last = outcome;
        if trial.loss() <= goal.loss && fastest.is_none_or(|fastest: Outcome| fastest.mean < outcome.mean) {
            fastest = Some(outcome);
        }
        Ok(trial)
    });
    match found {
        Ok(found) => Ok((found, fastest.unwrap_or(last))),
        Err(None) => Ok((Found::default(), last)),
        Err(Some(error)) => Err(PktgenError::Port(error)),
    }
}
