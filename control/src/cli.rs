//! The command line: `sluice run` is the daemon, `check`, `pktgen` and `completions` work alone, every other verb is one
//! call on the control socket (`call`).
//!
//! Exit status 0: done; 1: refused or failed, with one line on standard error; 2: the command line is wrong.

mod call;
mod overlay;
mod pktgen;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::{Value, json};

use self::call::Call;
use self::overlay::{FdbVerb, NeighVerb, RouteVerb, SegmentVerb, TunnelVerb};
use crate::config::SwitchConfig;
use crate::daemon;
use crate::model::Model;
use crate::problem::{Problem, Problems};
use crate::{check, client, config};

/// A userspace virtual switch
#[derive(Debug, Parser)]
#[command(name = "sluice", version, propagate_version = true)]
pub struct Cli {
    /// The switch's control socket [default: /run/sluice/sluice.sock; for `run`: as the configuration says]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Be the switch, until SIGTERM
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration file; needs no running switch
    Check { file: PathBuf },
    /// Generate frames, count them where they come out, and say what was lost, how long it took, and what it cost
    ///
    /// The terms are those of the kernel's pktgen: sizes without FCS, ranges with both ends, rates in Mbit/s of frame bytes or in frames
    /// per second. Without --count and --time it runs for 10 seconds; Ctrl-C ends it early, and prints.
    Pktgen(Box<pktgen::Pktgen>),
    /// Print a completion script
    Completions { shell: Shell },
    #[command(flatten)]
    Ask(Ask),
}

/// What is asked of a running switch.
#[derive(Debug, Subcommand)]
enum Ask {
    /// Read the configuration file again and apply what changed
    Apply {
        /// Put this file's text into the switch's configuration file first, if it has no error
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Bridges and ports at a glance
    Show,
    /// Bridges
    #[command(subcommand)]
    Bridge(BridgeVerb),
    /// Ports
    #[command(subcommand)]
    Port(PortVerb),
    /// Segments: tenant networks, and what they are called beyond this switch
    #[command(subcommand)]
    Segment(SegmentVerb),
    /// Tunnel ports
    #[command(subcommand)]
    Tunnel(TunnelVerb),
    /// Learned and static MAC addresses
    #[command(subcommand)]
    Fdb(FdbVerb),
    /// Who has which address: in segments, where the switch answers, and in the underlay
    #[command(subcommand)]
    Neigh(NeighVerb),
    /// Routes of the underlay
    #[command(subcommand)]
    Route(RouteVerb),
    /// The flow cache
    #[command(subcommand)]
    Flow(FlowVerb),
    /// Multicast groups and queriers
    #[command(subcommand)]
    Mdb(MdbVerb),
    /// Explain what happens to a frame
    Trace {
        bridge: String,
        /// As in `in_port=1,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02`
        flow: String,
        /// Learn from the frame as if it had come
        #[arg(long)]
        learn: bool,
    },
    /// Poller threads
    #[command(subcommand)]
    Poller(PollerVerb),
    /// Our addresses under the tunnels, the neighbours there, and path MTUs
    Underlay,
    /// Dropped frames by port and reason
    Drops,
    /// Stop the pollers for a moment and prove that every frame is accounted for
    Ledger,
    /// Show or set the log level
    Log {
        /// error, warn, info, debug or trace
        level: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum BridgeVerb {
    /// Add a bridge
    Add {
        bridge: String,
        /// As in the configuration file
        #[arg(value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Delete a bridge and its ports
    Del { bridge: String },
    /// Change settings; `KEY=` takes one back to its default
    Set {
        bridge: String,
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Show bridges
    Show { bridge: Option<String> },
}

#[derive(Debug, Subcommand)]
enum PortVerb {
    /// Add a port to a bridge
    Add {
        bridge: String,
        port: String,
        /// As in the configuration file
        #[arg(value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Delete a port
    Del { port: String },
    /// Change settings; `KEY=` takes one back to its default
    Set {
        port: String,
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Show ports
    Show { port: Option<String> },
}

#[derive(Debug, Subcommand)]
enum FlowVerb {
    /// Show megaflows
    Show {
        /// Only those whose text contains this
        filter: Option<String>,
    },
    /// Forget all megaflows
    Flush,
}

#[derive(Debug, Subcommand)]
enum MdbVerb {
    /// Show groups and queriers
    Show { bridge: Option<String> },
}

#[derive(Debug, Subcommand)]
enum PollerVerb {
    /// Show what pollers do
    Show {
        /// Where their cycles go: by stage, batch size and cache layer, and what upcalls cost
        #[arg(long)]
        perf: bool,
        /// Of so many seconds from now on, instead of all since the start
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        over: Option<Duration>,
    },
    /// Move a queue to the poller of another core
    Place { port: String, queue: usize, core: usize },
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(lines) => {
            let _ = writeln!(io::stderr(), "{lines}");
            ExitCode::FAILURE
        }
    }
}

fn complaint(what: impl Display) -> String {
    format!("sluice: {what}")
}

fn run(cli: &Cli) -> Result<(), String> {
    match &cli.verb {
        Verb::Run { config } => daemon::run(config, cli.socket.as_deref()).map_err(complaint_lines),
        Verb::Check { file } => check_file(cli, file),
        Verb::Pktgen(pktgen) => generate(cli, pktgen),
        Verb::Completions { shell } => completions(*shell),
        Verb::Ask(ask @ Ask::Poller(PollerVerb::Show { over: Some(time), .. })) => {
            pollers(cli, &call::of(ask).map_err(complaint)?, *time)
        }
        Verb::Ask(ask) => answer(cli, &call::of(ask).map_err(complaint)?),
    }
}

/// Makes the call and prints its answer.
fn answer(cli: &Cli, call: &Call) -> Result<(), String> {
    let value = ask(cli, call)?;
    call::warnings(&value).for_each(|warning| eprintln!("sluice: warning: {warning}"));
    show(cli, call, value)
}

/// Asks twice, and prints what happened between.
fn pollers(cli: &Cli, call: &Call, time: Duration) -> Result<(), String> {
    let before = ask(cli, call)?;
    std::thread::sleep(time);
    let between = call::between(&before, &ask(cli, call)?).map_err(|e| garbled(cli, &e))?;
    show(cli, call, between)
}

fn ask(cli: &Cli, call: &Call) -> Result<Value, String> {
    client::call(&socket(cli), call.method, &call.params).map_err(complaint)
}

fn show(cli: &Cli, call: &Call, answer: Value) -> Result<(), String> {
    if cli.json {
        return print(&pretty(&answer));
    }
    print(&(call.render)(answer).map_err(|e| garbled(cli, &e))?)
}

fn socket(cli: &Cli) -> PathBuf {
    cli.socket.clone().unwrap_or_else(|| SwitchConfig::default().socket)
}

fn garbled(cli: &Cli, error: &serde_json::Error) -> String {
    complaint(format_args!("{} speaks another version of sluice: {error}", socket(cli).display()))
}

/// A time in seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{text} seconds: {e}"))
}

/// Problems of a file name it already, as compilers do; everything else is ours.
fn complaint_lines(error: daemon::RunError) -> String {
    match error {
        daemon::RunError::Config(file, problems) => problems.in_file(&file),
        other => complaint(other),
    }
}

/// As compilers do: a line per problem on standard error. Warnings do not make it fail.
fn check_file(cli: &Cli, file: &Path) -> Result<(), String> {
    let read = config::file::text(file);
    let text = read.map_err(|e| complaint(format_args!("cannot read {}: {e}", file.display())))?;
    let model = config::parse(&text).and_then(Model::new);
    let warnings = model.as_ref().map_or_else(|_| Vec::new(), |model| check::warnings(model.config()));
    if cli.json {
        let problems = model.as_ref().err().map_or(&[][..], |problems| &problems.0);
        let list = |problems: &[Problem]| problems.iter().map(problem_json).collect::<Value>();
        print(&pretty(&json!({ "errors": list(problems), "warnings": list(&warnings) })))?;
    }
    warnings.iter().for_each(|warning| eprintln!("{}: warning: {warning}", file.display()));
    let model = model.map_err(|problems: Problems| problems.in_file(file))?;
    let (bridges, ports) = (model.bridges().count(), model.ports().count());
    let verdict = format!("{}: ok, bridges: {bridges}, ports: {ports}\n", file.display());
    if cli.json { Ok(()) } else { print(&verdict) }
}

fn problem_json(p: &Problem) -> Value {
    json!({ "line": p.line, "column": p.column, "message": p.message })
}

fn generate(cli: &Cli, pktgen: &pktgen::Pktgen) -> Result<(), String> {
    let report = pktgen.run().map_err(complaint)?;
    if cli.json { print(&pretty(&json!(report))) } else { print(&report.render()) }
}

fn completions(shell: Shell) -> Result<(), String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sluice", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// To standard output; a reader that has seen enough is no error.
fn print(text: &str) -> Result<(), String> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(complaint(format_args!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::verbs::VERBS;

    fn call_of(line: &str) -> call::Call {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}"));
        let Verb::Ask(ask) = cli.verb else { panic!("{line} is no call") };
        call::of(&ask).unwrap()
    }

    #[test]
    fn every_verb_is_a_call_that_the_daemon_knows() {
        let lines = [
            "sluice apply",
            "sluice apply --config /etc/other.toml",
            "sluice show",
            "sluice bridge add br0 mac-aging-time=60",
            "sluice bridge del br0",
            "sluice bridge set br0 forward-bpdu=true",
            "sluice bridge show",
            "sluice bridge show br0",
            "sluice port add br0 eth1 tag=10 type=afxdp",
            "sluice port del eth1",
            "sluice port set eth1 tag=",
            "sluice port show",
            "sluice port show eth1",
            "sluice fdb show",
            "sluice fdb show br0",
            "sluice fdb add br0 02:00:00:00:00:01 vlan=10 port=eth1",
            "sluice fdb del br0 02:00:00:00:00:01 vlan=10",
            "sluice fdb flush",
            "sluice fdb flush br0 eth1",
            "sluice flow show",
            "sluice flow show in_port=eth1",
            "sluice flow flush",
            "sluice mdb show",
            "sluice segment add br0 blue type=vxlan id=5001 vteps=192.0.2.2,192.0.2.3",
            "sluice segment del blue",
            "sluice segment set blue id=6001",
            "sluice segment show",
            "sluice segment show br0",
            "sluice tunnel add br0 vx0 type=vxlan remote-ip=flow key=flow",
            "sluice tunnel del vx0",
            "sluice tunnel set vx0 ttl=inherit",
            "sluice tunnel show",
            "sluice tunnel show vx0",
            "sluice neigh add br0 10.0.0.5 segment=blue mac=02:00:00:00:00:05",
            "sluice neigh del br0 10.0.0.5 segment=blue",
            "sluice neigh show",
            "sluice neigh show br0",
            "sluice route add default via=192.0.2.254 port=vtep0",
            "sluice route del default",
            "sluice route show",
            "sluice trace br0 in_port=1,dl_src=02:00:00:00:00:01",
            "sluice trace br0 in_port=1 --learn",
            "sluice poller show",
            "sluice poller show --perf",
            "sluice poller place eth1 0 2",
            "sluice underlay",
            "sluice drops",
            "sluice ledger",
            "sluice log",
            "sluice --socket /tmp/s --json log debug",
        ];
        for line in lines {
            let call = call_of(line);
            let verb = VERBS.iter().find(|verb| verb.name == call.method);
            let (least, most) = verb.unwrap_or_else(|| panic!("{line}: {} is no verb", call.method)).params;
            assert!((least..=most).contains(&call.params.len()), "{line}: {:?}", call.params);
        }
        let own = VERBS.iter().filter(|verb| verb.name.starts_with("sluice/"));
        for verb in own {
            assert!(
                lines.iter().any(|line| call_of(line).method == verb.name),
                "nothing calls {}",
                verb.name
            );
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["sluice", "port", "set", "eth1"]).is_err(), "no settings");
        assert!(Cli::try_parse_from(["sluice", "poller", "place", "eth1", "-1", "0"]).is_err());
    }

    #[test]
    fn settings_that_look_like_options_are_taken_as_they_are() {
        let call = call_of("sluice port add br0 eth1 trunks=[10,\"20-29\"] upcall-rate=0");
        assert_eq!(call.params, ["br0", "eth1", "trunks=[10,\"20-29\"]", "upcall-rate=0"]);
    }

    #[test]
    fn troubles_are_told_whatever_the_form_of_the_answer() {
        let report = json!({
            "opened": ["eth9"], "closed": [], "reopened": [], "untouched": 0, "needs_restart": ["switch.cores"],
            "troubles": [{ "port": "eth9", "error": "no such interface" }], "warnings": ["odd"]
        });
        let warnings: Vec<_> = call::warnings(&report).collect();
        assert_eq!(
            warnings,
            ["switch.cores changes only at the next start", "port eth9: no such interface", "odd"]
        );
        assert_eq!(call::warnings(&json!([])).count(), 0);
    }
}
