//! How many instructions does a frame take from port to port?
//!
//! Where time is noisy this is not: the same build counts the same to a fraction of a percent. Each case is a switch with
//! ports in memory as in `forward`, warmed up, then turned for a while under `valgrind --tool=callgrind`, which counts the
//! instructions of those turns and nothing else: reception (an allocation and a copy), extraction, lookup, execution,
//! sending (a free), and the poller's upkeep. `vhost` cases have no switch: a frame of 60 bytes comes out of one guest's ring
//! and goes into another's, as in the bench `vhost`. The recorded numbers stand in `instructions.txt`; a case that takes over
//! 5 % more fails, and then either what was changed goes, or the new number is recorded, with the reason in the commit:
//!
//!     cargo bench --bench instructions              compare (CI does)
//!     cargo bench --bench instructions -- --record  write down
//!
//! Valgrind shows programs a processor without AVX-512, so what is chosen at run time by processor is measured as on one
//! with AVX2.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, ExitCode};

use dataplane::batch::{BATCH, Batch};
use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig};
use encap::tunnel::TunnelKind;

#[path = "support/guest.rs"]
mod guest;
#[path = "support/rig.rs"]
mod rig;

use guest::{Format, Guest};
use rig::{Overlay, Rig, SHORT, bridge, hellos, pairs, reel, tagged};

/// Where the numbers stand.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
/// How much more than the record is taken for chance.
const TOLERANCE: f64 = 0.05;
/// Turns that are counted.
const TURNS: usize = 256;
/// The segment of the tunnel cases.
const ID: u32 = 5001;

/// Moves a batch of frames; how many.
type Turn = Box<dyn FnMut() -> usize>;
/// How what turns is made.
type Make = fn() -> Turn;

/// What is measured: a name, and how what turns is made.
const CASES: &[(&str, Make)] = &[
    ("l2/1", || turns(plain(1))),
    ("l2/1000", || turns(plain(1_000))),
    ("l2/4000", || turns(plain(4_000))),
    ("push/1", || turns(vlan("a tag = 10\nb trunks = [10]", [None, Some(10)]))),
    ("retag/1", || turns(retag())),
    ("pop/1", || turns(vlan("a trunks = [10]\nb tag = 10", [Some(10), None]))),
    ("vxlan-encap/1", || turns(encap(1))),
    ("vxlan-encap/1000", || turns(encap(1_000))),
    ("vxlan-decap/1", || turns(decap(1))),
    ("vxlan-decap/1000", || turns(decap(1_000))),
    ("upcall/l2", || turns(upcalls(20_000))),
    ("vhost/split", || guests(Format::Split)),
    ("vhost/packed", || guests(Format::Packed)),
];

/// A switch that knows who is behind port `b`, and every flow of what port `a` plays.
fn warm(config: &str, hello: &[Vec<u8>], frames: &[Vec<u8>]) -> Rig {
    let mut rig = Rig::new(config);
    rig.learn(hello);
    rig.warm_up(frames);
    rig
}

fn plain(flows: u32) -> Rig {
    let (frames, hello) = pairs(flows, SHORT);
    warm(&bridge("a\nb"), &hello, &frames)
}

fn retag() -> Rig {
    let segment = "segment = [{ name = 's1', vlan = 1, type = 'vlan', id = 101, uplink = 'b' }]";
    vlan_in(
        &bridge("a trunks = [1]\nb").replacen("\n[[", &format!("\n{segment}\n[["), 1),
        [Some(1), Some(101)],
    )
}

fn vlan(ports: &str, tags: [Option<u16>; 2]) -> Rig {
    vlan_in(&bridge(ports), tags)
}

fn vlan_in(config: &str, [here, there]: [Option<u16>; 2]) -> Rig {
    let tag = |frames: Vec<Vec<u8>>, vlan: Option<u16>| match vlan {
        Some(vlan) => frames.iter().map(|frame| tagged(frame, vlan)).collect(),
        None => frames,
    };
    let (frames, hello) = pairs(1, SHORT);
    warm(config, &tag(hello, there), &tag(frames, here))
}

fn encap(flows: u32) -> Rig {
    let overlay = Overlay { kind: TunnelKind::Vxlan, ids: &[ID], vm: "a", wire: "b" };
    let (frames, hello) = pairs(flows, SHORT);
    warm(&overlay.config(), &overlay.far(ID, &hello), &frames)
}

fn decap(flows: u32) -> Rig {
    let overlay = Overlay { kind: TunnelKind::Vxlan, ids: &[ID], vm: "b", wire: "a" };
    let (frames, hello) = pairs(flows, SHORT);
    warm(&overlay.config(), &hello, &overlay.far(ID, &frames))
}

/// Every frame that is counted is the first of its flow, between stations that are known.
fn upcalls(flows: u32) -> Rig {
    let (frames, _) = pairs(flows, SHORT);
    let back: Vec<Vec<u8>> = hellos((f64::from(flows).sqrt().ceil()) as u32);
    let mut rig = Rig::new(&bridge("a\nb"));
    rig.learn(&back);
    rig.attach("a", Box::new(reel(&frames)));
    assert!(flows as usize >= (TURNS + 1) * BATCH);
    rig.turn();
    rig
}

fn turns(mut rig: Rig) -> Turn {
    Box::new(move || rig.turn())
}

/// From one guest to another.
fn guests(format: Format) -> Turn {
    let pool = FramePool::new(PoolConfig { small: 4096, big: 64, memory: Memory::Plain }).expect("memory");
    let (mut frames, mut batch) = (FrameCache::new(pool), Batch::new());
    let (mut from, mut to) = (Guest::sending(format, SHORT), Guest::receiving(format));
    Box::new(move || {
        from.receive(&mut frames, &mut batch);
        to.send(&mut frames, &mut batch);
        BATCH
    })
}

/// What is counted: callgrind knows it by its name.
#[inline(never)]
fn counted_turns(turn: &mut Turn) -> usize {
    (0..TURNS).map(|_| turn()).sum()
}

/// The child: plays one case. Under callgrind, unless somebody calls it by hand.
fn play(name: &str) {
    let (_, make) = CASES.iter().find(|(case, _)| *case == name).unwrap_or_else(|| panic!("no case {name}"));
    let mut turn = make();
    assert_eq!(counted_turns(&mut turn), TURNS * BATCH);
}

/// Instructions per frame of a case.
fn count(name: &str) -> f64 {
    let own = std::env::current_exe().expect("our own path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_turns*"])
        .arg(own)
        .args(["--play", name])
        .output()
        .expect("valgrind, of the Debian package of that name");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {told}");
    let collected = told.lines().find_map(|line| line.split_once("Collected :")).expect("a number");
    let instructions: f64 = collected.1.trim().parse().expect("a number");
    assert!(instructions > 0.0, "{name}: nothing was counted");
    instructions / (TURNS * BATCH) as f64
}

/// The recorded numbers.
fn record() -> BTreeMap<String, f64> {
    let text = fs::read_to_string(RECORD).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(name, n)| (name.into(), number(n))).collect()
}

fn number(text: &str) -> f64 {
    text.trim().parse().unwrap_or_else(|_| panic!("{RECORD}: {text:?} is no number"))
}

fn write_down(counted: &[(&str, f64)]) {
    let mut text = String::from(
        "# Instructions per frame. Written by `cargo bench --bench instructions -- --record`.\n",
    );
    counted.iter().for_each(|(name, n)| writeln!(text, "{name:18} {n:.1}").expect("a string takes all"));
    fs::write(RECORD, text).expect("the record");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--play") {
        play(&arguments[at + 1]);
        return ExitCode::SUCCESS;
    }
    let record = record();
    let mut counted = Vec::new();
    let mut failed = false;
    println!("{:18} {:>9} {:>9}", "instructions", "recorded", "now");
    for &(name, _) in CASES {
        let now = count(name);
        let more = record.get(name).is_none_or(|before| now > before * (1.0 + TOLERANCE));
        let before = record.get(name).map_or("-".into(), |before| format!("{before:.1}"));
        println!(
            "{name:18} {before:>9} {now:>9.1}{}",
            if more { "  over 5 % more than recorded" } else { "" }
        );
        failed |= more;
        counted.push((name, now));
    }
    if arguments.iter().any(|argument| argument == "--record") {
        write_down(&counted);
        return ExitCode::SUCCESS;
    }
    ExitCode::from(u8::from(failed))
}
