//! `sluice pktgen`: from words to a request, and from Ctrl-C to an end.

use std::io::{IsTerminal, Write, stderr};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dataplane::batch::BATCH;
use dataplane::pktgen::cable::Cable;
use dataplane::pktgen::exchange::{Plan, Question};
use dataplane::pktgen::search::Goal;
use dataplane::pktgen::terms::{self, Addresses, Macs, Ports, Terms, TermsError};
use dataplane::pktgen::{Progress, Until, Verdict};
use encap::field::{EtherType, FieldError, MacAddr, Pcp, VlanId, VlanTag, Vni};
use encap::tunnel::TunnelKind;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

use crate::pktgen::report::Report;
use crate::pktgen::{Announce, PktgenError, Request, Tunnel, What, run};
use crate::render::count;

/// How often a trial may be made again: beyond that a pass says nothing.
const AGAIN_MAX: i64 = 10;
/// How long it runs if nobody says.
const TIME: Duration = Duration::from_secs(10);
/// From where outer headers come if nobody says.
const OTHER_END: MacAddr = MacAddr([2, 0, 0, 0, 0xaa, 2]);

/// The destination if nobody says; and where there are so many sources that it would be one of them.
const NEAR: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const FAR: MacAddr = MacAddr([2, 1, 0, 0, 0, 2]);

#[derive(Debug, Args)]
pub(super) struct Pktgen {
    /// Where to send: afxdp:IFNAME, afpacket:IFNAME, vhost-user:SOCKET[,server] (we are the guest; `server`: we make the
    /// socket) or memory:NAME (a port of the switch of --config, which then runs in this process)
    #[arg(long, value_name = "PORT")]
    tx: String,
    /// Where frames come out [default: the port of --tx]
    #[arg(long, value_name = "PORT")]
    rx: Option<String>,
    /// The switch whose ports `memory:NAME` are
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    pace: PaceArgs,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    frames: FrameArgs,
    #[command(flatten)]
    tunnel: TunnelArgs,
    /// Play the frames of this pcap file round and round, as they are, instead of making some
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Answer ARP and neighbour discovery for this address too where frames come out: the other end of a tunnel, say. Sources
    /// and destinations are always answered for
    #[arg(long, value_name = "IP")]
    answer: Vec<IpAddr>,
    /// The core to run on [default: where the kernel likes]
    #[arg(long, value_name = "CORE")]
    core: Option<usize>,
}

#[derive(Debug, Args)]
struct PaceArgs {
    /// Frames to send; 0: for ever
    #[arg(long, value_name = "FRAMES")]
    count: Option<u64>,
    /// How long to send
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    time: Option<Duration>,
    /// Send for so long before anything counts, so that the switch knows all flows
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    warm_up: Option<Duration>,
    /// Mbit/s of frames without FCS [default: as fast as it gets]
    #[arg(long, value_name = "MBIT/S", value_parser = positive, conflicts_with = "ratep")]
    rate: Option<f64>,
    /// Frames per second [default: as fast as it gets]
    #[arg(long, value_name = "PPS", value_parser = positive)]
    ratep: Option<f64>,
    /// Frames that may be sent at once, 1 to 32: those that are due, so that low rates have one
    #[arg(long, value_name = "FRAMES", default_value_t = BATCH as u8, value_parser = clap::value_parser!(u8).range(1..=BATCH as i64))]
    burst: u8,
    /// Length of a window of which there are a best and a median
    #[arg(long, value_name = "SECONDS", default_value = "0.25", value_parser = seconds)]
    windows: Duration,
}

#[derive(Debug, Args)]
struct SearchArgs {
    /// Look for the highest rate without loss (RFC 2544 section 26.1); --rate or --ratep is the highest that is tried
    #[arg(long, conflicts_with_all = ["count", "time"])]
    search: bool,
    /// The fraction of frames that may be lost, 0 to 1
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0, value_parser = fraction, requires = "search")]
    loss: f64,
    /// How long a trial sends
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds, requires = "search")]
    trial: Duration,
    /// How near to the answer, as a fraction of it
    #[arg(long, value_name = "FRACTION", default_value_t = 0.01, value_parser = fraction, requires = "search")]
    precision: f64,
    /// Make a trial that lost too much again, so often at most (ETSI TST 009: loss verification; RFC 2544: 0)
    #[arg(long, value_name = "TIMES", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=AGAIN_MAX), requires = "search")]
    again: u8,
}

#[derive(Debug, Args)]
struct FrameArgs {
    /// Bytes of a frame without FCS, tag included; with --vxlan of the inner frame
    #[arg(long, value_name = "BYTES", default_value_t = terms::SIZE_MIN)]
    pkt_size: usize,
    /// Distinct 5-tuples [default: as many as the ranges have]; without ranges, addresses and ports of the source vary
    #[arg(long, value_name = "FLOWS")]
    flows: Option<u64>,
    /// The source's MAC address
    #[arg(long, value_name = "MAC", default_value = "02:00:00:00:00:01")]
    src_mac: MacAddr,
    /// Sources, with MAC addresses that follow each other
    #[arg(long, value_name = "STATIONS", default_value_t = 1)]
    src_mac_count: u32,
    /// The destination's MAC address [default: 02:00:00:00:00:02; with several sources 02:01:00:00:00:02]
    #[arg(long, value_name = "MAC")]
    dst_mac: Option<MacAddr>,
    /// Destinations, with MAC addresses that follow each other
    #[arg(long, value_name = "STATIONS", default_value_t = 1)]
    dst_mac_count: u32,
    /// The first source address, IPv4 or IPv6
    #[arg(long, value_name = "IP", default_value_t = terms::SOURCE)]
    src_min: IpAddr,
    /// The last source address [default: the first]
    #[arg(long, value_name = "IP")]
    src_max: Option<IpAddr>,
    /// The first destination address
    #[arg(long, value_name = "IP", default_value_t = terms::DESTINATION)]
    dst_min: IpAddr,
    /// The last destination address [default: the first]
    #[arg(long, value_name = "IP")]
    dst_max: Option<IpAddr>,
    /// The first UDP source port
    #[arg(long, value_name = "PORT", default_value_t = terms::DISCARD)]
    udp_src_min: u16,
    /// The last UDP source port [default: the first]
    #[arg(long, value_name = "PORT")]
    udp_src_max: Option<u16>,
    /// The first UDP destination port
    #[arg(long, value_name = "PORT", default_value_t = terms::DISCARD)]
    udp_dst_min: u16,
    /// The last UDP destination port [default: the first]
    #[arg(long, value_name = "PORT")]
    udp_dst_max: Option<u16>,
    /// Send in this VLAN, tagged
    #[arg(long, value_name = "VLAN")]
    vlan_id: Option<u16>,
    /// Priority of the tag, 0 to 7
    #[arg(long, value_name = "PRIORITY", default_value_t = 0, requires = "vlan_id")]
    vlan_p: u8,
    /// Destinations make themselves known where frames come out, in this VLAN instead of untagged
    #[arg(long, value_name = "VLAN")]
    rx_vlan_id: Option<u16>,
    /// Destinations do not make themselves known: the switch floods, or knows them
    #[arg(long)]
    no_announce: bool,
}

#[derive(Debug, Args)]
struct TunnelArgs {
    /// Put VXLAN headers with this VNI around frames
    #[arg(long, value_name = "VNI")]
    vxlan: Option<u32>,
    /// The other end's address [default with memory ports: a remote endpoint of the configuration]
    #[arg(long, value_name = "IP", requires = "vxlan")]
    vxlan_src: Option<IpAddr>,
    /// The switch's address under the tunnel [default with memory ports: that of the configuration]
    #[arg(long, value_name = "IP", requires = "vxlan")]
    vxlan_dst: Option<IpAddr>,
    /// The other end's MAC address
    #[arg(long, value_name = "MAC", default_value_t = OTHER_END, requires = "vxlan")]
    vxlan_src_mac: MacAddr,
    /// The switch's MAC address under the tunnel [default with memory ports: that of the configuration]
    #[arg(long, value_name = "MAC", requires = "vxlan")]
    vxlan_dst_mac: Option<MacAddr>,
    /// UDP port of the tunnel
    #[arg(long, value_name = "PORT", default_value_t = TunnelKind::Vxlan.default_port().unwrap_or_default(), requires = "vxlan")]
    vxlan_port: u16,
}

/// It cannot be done, or what was said means nothing.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Pktgen(#[from] PktgenError),
    #[error(transparent)]
    Terms(#[from] TermsError),
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Cable(#[from] dataplane::pktgen::cable::CableError),
}

impl Pktgen {
    /// Does it; Ctrl-C ends it.
    pub(super) fn run(&self) -> Result<Report, Failure> {
        let request = self.request()?;
        let mut watch = Watch { signals: None, told: 0, talks: stderr().is_terminal() };
        Ok(run(&request, &mut |progress| watch.look(progress))?)
    }

    fn request(&self) -> Result<Request, Failure> {
        let terms = self.frames.terms()?;
        let bits = 8.0 * self.frames.pkt_size as f64;
        let PaceArgs { count, time, rate, ratep, burst, windows, warm_up } = &self.pace;
        let rate = rate.map(|mbits| mbits * 1e6 / bits).or(*ratep);
        let SearchArgs { search, loss, trial, precision, again } = self.search;
        let goal = Goal { loss, precision: precision.max(1e-6), most: rate, again: usize::from(again) };
        let until = match (search, count, time) {
            (true, ..) => Until { count: None, time: Some(trial) },
            (false, None, None) => Until { count: None, time: Some(TIME) },
            (false, count, time) => Until { count: count.filter(|count| *count > 0), time: *time },
        };
        let plan =
            Plan { until, rate, burst: usize::from(*burst), window: *windows, question: Question::HowMany };
        Ok(Request {
            tx: self.tx.parse()?,
            rx: self.rx.as_deref().map(str::parse::<Cable>).transpose()?,
            config: self.config.clone(),
            frames: What {
                terms,
                tunnel: self.tunnel.tunnel()?,
                pcap: self.pcap.clone(),
                announce: self.frames.announce()?,
            },
            plan,
            search: search.then_some(goal),
            warm_up: *warm_up,
            answers: self.answer.clone(),
            core: self.core,
        })
    }
}

impl FrameArgs {
    fn terms(&self) -> Result<Terms, Failure> {
        let range = |min, max: Option<IpAddr>| Addresses::new(min, max.unwrap_or(min));
        let ports = |min, max: Option<u16>| Ports::new(min, max.unwrap_or(min));
        let dst_mac = if self.src_mac_count > 1 { FAR } else { NEAR };
        Ok(Terms {
            size: self.pkt_size,
            flows: self.flows,
            src_macs: Macs::new(self.src_mac, self.src_mac_count)?,
            dst_macs: Macs::new(self.dst_mac.unwrap_or(dst_mac), self.dst_mac_count)?,
            src: range(self.src_min, self.src_max)?,
            dst: range(self.dst_min, self.dst_max)?,
            udp_src: ports(self.udp_src_min, self.udp_src_max)?,
            udp_dst: ports(self.udp_dst_min, self.udp_dst_max)?,
            tag: self.vlan_id.map(|vlan| tag(vlan, self.vlan_p)).transpose()?,
            vxlan: None,
        })
    }

    fn announce(&self) -> Result<Announce, FieldError> {
        match self.rx_vlan_id {
            _ if self.no_announce => Ok(Announce::No),
            Some(vlan) => Ok(Announce::Tagged(tag(vlan, 0)?)),
            None => Ok(Announce::Untagged),
        }
    }
}

impl TunnelArgs {
    fn tunnel(&self) -> Result<Option<Tunnel>, FieldError> {
        let Some(vni) = self.vxlan else { return Ok(None) };
        Ok(Some(Tunnel {
            vni: Vni::new(vni)?,
            src: self.vxlan_src,
            dst: self.vxlan_dst,
            src_mac: self.vxlan_src_mac,
            dst_mac: self.vxlan_dst_mac,
            dst_port: self.vxlan_port,
        }))
    }
}

fn tag(vlan: u16, priority: u8) -> Result<VlanTag, FieldError> {
    Ok(VlanTag::new(EtherType::VLAN, VlanId::new(vlan)?, Pcp::new(priority)?))
}

/// Looks whether it is to end, and says how it goes.
struct Watch {
    /// Blocked once ports are open: until then Ctrl-C ends the process.
    signals: Option<SignalFd>,
    /// Seconds that were told.
    told: u64,
    talks: bool,
}

impl Watch {
    fn look(&mut self, progress: Progress) -> Verdict {
        if progress.elapsed.as_secs() < self.told {
            self.told = 0;
        }
        if self.talks && progress.elapsed.as_secs() > self.told {
            self.told = progress.elapsed.as_secs();
            let (sent, received) = (count(progress.sent), count(progress.received));
            let _ = writeln!(stderr(), "{:>5} s: {sent} sent, {received} received", self.told);
        }
        // Without signals to wait for Ctrl-C ends it at once, without a report.
        let interrupted = match &mut self.signals {
            Some(signals) => matches!(signals.read_signal(), Ok(Some(_))),
            none => {
                *none = signals().ok();
                false
            }
        };
        if interrupted { Verdict::Stop } else { Verdict::GoOn }
    }
}

fn signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text)
        .and_then(|n| if n > 0.0 && n.is_finite() { Ok(n) } else { Err(format!("{n} is not above 0")) })
}

fn fraction(text: &str) -> Result<f64, String> {
    let within = |n| if (0.0..=1.0).contains(&n) { Ok(n) } else { Err(format!("{n} is not within 0 to 1")) };
    number(text).and_then(within)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = positive(text)?;
    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{text}: {e}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        pktgen: Pktgen,
    }

    fn request(line: &str) -> Result<Request, String> {
        let words = ["pktgen"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|e| e.to_string())?;
        line.pktgen.request().map_err(|e| e.to_string())
    }

    #[test]
    fn rates_and_ends_are_as_the_words_say() {
        let plain = request("--tx afpacket:a").unwrap();
        assert_eq!(plain.plan.until, Until { count: None, time: Some(TIME) });
        assert_eq!((plain.plan.rate, plain.plan.burst, plain.rx), (None, BATCH, None));
        let many = request("--tx afpacket:a --src-mac-count 1000 --dst-mac-count 1000 --flows 5").unwrap();
        assert!(many.frames.terms.settled().is_ok());
        let mbits = request("--tx afpacket:a --rate 480 --pkt-size 600 --count 7").unwrap();
        assert_eq!(mbits.plan.rate, Some(100_000.0));
        assert_eq!(mbits.plan.until, Until { count: Some(7), time: None });
        let endless = request("--tx afpacket:a --ratep 5.5 --count 0").unwrap();
        assert_eq!((endless.plan.rate, endless.plan.until), (Some(5.5), Until::default()));
        let search = request("--tx afpacket:a --search --ratep 1e6 --trial 0.5 --again 2").unwrap();
        assert_eq!(search.plan.until.time, Some(Duration::from_millis(500)));
        assert_eq!(search.search, Some(Goal { loss: 0.0, precision: 0.01, most: Some(1e6), again: 2 }));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (line, expected) in [
            ("--tx afpacket:a --rate 1 --ratep 1", "cannot be used with"),
            ("--tx afpacket:a --search --count 5", "cannot be used with"),
            ("--tx afpacket:a --loss 0.1", "--search"),
            ("--tx afpacket:a --time -1", "unexpected argument"),
            ("--tx afpacket:a --time 0", "is not above 0"),
            ("--tx afpacket:a --burst 33", "33 is not in 1..=32"),
            ("--tx afpacket:a --vlan-id 4096", "4096"),
            ("--tx afpacket:a --src-min 10.0.0.2 --src-max 10.0.0.1", "give the lower address first"),
            ("--rx afpacket:a", "--tx"),
        ] {
            let said = request(line).unwrap_err();
            assert!(said.contains(expected), "{line}: {said}");
        }
    }
}
