//! What do pollers gain by being more?
//!
//! Each has memory ports of its own, played as in `forward`, in one switch, and a thread on a core. A round measures each
//! poller alone and then all at once, in short windows one behind the other; the figure is what all forwarded at once over the
//! sum of what each forwarded alone, so 1 is perfect. The median over rounds, the lowest and the highest are printed.
//!
//! * `ports`: pairs of ports, each pair one poller's, its stations talking to each other.
//! * `queues`: one pair of ports, with a queue of both for each poller, and the same flows in all: pollers find the same
//!   entries of the flow table, count on them and confirm what the same stations are.
//! * `crossing`: half of each pair is another poller's, so that every frame is handed over. Alone is here what `ports` is alone.
//!
//! A processor's cores may share more than we know (hyper-threads, a cache, the clock, a neighbour's virtual machine), so controls go
//! along, which tell what the machine gives: `arithmetic` touches no memory, and `memory` reads and writes lines at random, as many
//! as a poller with a thousand pairs of stations has to do with, or as do not fit a core's own cache: each thread has its own. That no
//! cache line is written by one poller and touched by another is what `sharing` shows; that none is beside such a line, which a
//! processor may fetch along with it, is only to be seen here.
//!
//!     cargo bench --bench scaling               60 rounds
//!     cargo bench --bench scaling -- --quick    12

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use dataplane::pktgen::frames::shuffled;
use dataplane::poller::Poller;
use dataplane::run::Clock;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

#[path = "support/crew.rs"]
mod crew;
#[allow(dead_code, reason = "no tunnels here, and no rig that turns")]
#[path = "support/rig.rs"]
mod rig;

use crew::{Crew, Ends};

/// How long a window is: short, so that some have the cores for themselves.
const WINDOW: Duration = Duration::from_millis(10);
/// Additions between two looks at whether the window is over.
const SUMS: u64 = 10_000;
/// Flows each way between two ports.
const FLOWS: [u32; 2] = [1, 1_000];
/// KiB of lines that a control walks.
const WALKS: [usize; 2] = [512, 4_096];

/// Who turns in a window.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Alone(usize),
    All,
}

/// What one thread does of a case.
enum Share {
    Forward(Box<Forwarding>),
    Add,
    Walk(Walk),
}

/// A line.
#[derive(Default, Clone)]
#[repr(align(64))]
struct Line(u64);

/// Lines of one's own, and an order that no prefetcher guesses.
struct Walk {
    lines: Vec<Line>,
    order: Vec<u32>,
    at: usize,
}

impl Walk {
    /// So many KiB.
    fn of(kib: usize) -> Walk {
        let count = kib * 1024 / size_of::<Line>();
        Walk { lines: vec![Line::default(); count], order: shuffled(count as u32), at: 0 }
    }

    /// Adds one to the next lines; how many.
    fn go(&mut self) -> u64 {
        for _ in 0..SUMS / 10 {
            self.at = if self.at + 1 < self.order.len() { self.at + 1 } else { 0 };
            let line = &mut self.lines[self.order[self.at] as usize];
            line.0 = black_box(line.0 + 1);
        }
        SUMS / 10
    }
}

/// A poller with what it needs to be turned.
struct Forwarding {
    poller: Poller,
    clock: Clock,
}

impl Share {
    /// Works until told to stop; how much it did.
    fn work(&mut self, stop: &AtomicBool) -> u64 {
        let mut done = 0;
        match self {
            Share::Forward(forwarding) => {
                let before = forwarding.sent();
                let places: Vec<usize> = (0..forwarding.poller.wires.queues.len()).collect();
                while !stop.load(Ordering::Relaxed) {
                    forwarding.poller.turn(forwarding.clock.now(), &places);
                }
                done += forwarding.sent() - before;
            }
            Share::Add => {
                while !stop.load(Ordering::Relaxed) {
                    done += (0..SUMS).fold(0, |sum, n| black_box(sum + n % 2)) * 2;
                }
            }
            Share::Walk(walk) => {
                while !stop.load(Ordering::Relaxed) {
                    done += walk.go();
                }
            }
        }
        done
    }
}

impl Forwarding {
    /// Frames that this poller sent, to whatever port.
    fn sent(&self) -> u64 {
        let ports = self.poller.wires.queues.iter().flatten().map(|queue| queue.port);
        ports.map(|port| self.poller.wires.counters(port).tx_frames.get()).sum()
    }
}

/// What each thread does of a crew's work.
fn shares(crew: Crew) -> Vec<Share> {
    let clock = crew.clock;
    crew.pollers.into_iter().map(|poller| Share::Forward(Box::new(Forwarding { poller, clock }))).collect()
}

/// A question, and what each thread does.
struct Case {
    name: String,
    shares: Vec<Share>,
    /// Whose figures alone count: of an earlier case.
    alone: Option<usize>,
}

fn cases(threads: usize) -> Vec<Case> {
    let own = |name: &str, shares| Case { name: name.into(), shares, alone: None };
    let mut cases = vec![own("arithmetic", (0..threads).map(|_| Share::Add).collect())];
    for kib in WALKS {
        let walks = (0..threads).map(|_| Share::Walk(Walk::of(kib)));
        cases.push(own(&format!("memory/{kib}K"), walks.collect()));
    }
    for flows in FLOWS {
        let ports = cases.len();
        cases.push(own(&format!("ports/{flows}"), shares(Crew::pairs(threads, flows, Ends::Together))));
        cases.push(own(&format!("queues/{flows}"), shares(Crew::queues(threads, flows))));
        let (name, shares) = (format!("crossing/{flows}"), shares(Crew::pairs(threads, flows, Ends::Apart)));
        cases.push(Case { name, shares, alone: Some(ports) });
    }
    cases
}

/// What the threads and who drives them have in common.
struct Stage {
    /// At the begin and at the end of a window.
    barrier: Barrier,
    stop: AtomicBool,
    /// Which case, and the end if there is none of that number.
    case: AtomicUsize,
    turn: Mutex<Turn>,
    /// What each thread did.
    done: Vec<AtomicUsize>,
}

impl Stage {
    /// What each thread did per second in a window.
    fn window(&self, case: usize, turn: Turn) -> Vec<f64> {
        self.case.store(case, Ordering::Relaxed);
        *self.turn.lock().expect("nobody panics") = turn;
        self.stop.store(false, Ordering::Relaxed);
        self.barrier.wait();
        let begin = Instant::now();
        std::thread::sleep(WINDOW);
        self.stop.store(true, Ordering::Relaxed);
        self.barrier.wait();
        let seconds = begin.elapsed().as_secs_f64();
        self.done.iter().map(|done| done.load(Ordering::Relaxed) as f64 / seconds).collect()
    }

    /// A thread: does its share of every case, when it is its turn.
    fn play(&self, thread: usize, core: usize, mut shares: Vec<Share>) {
        let mut set = CpuSet::new();
        set.set(core).expect("a core there is");
        sched_setaffinity(Pid::from_raw(0), &set).expect("our own thread");
        loop {
            self.barrier.wait();
            let Some(share) = shares.get_mut(self.case.load(Ordering::Relaxed)) else { return };
            let turn = *self.turn.lock().expect("nobody panics");
            let done = match turn {
                Turn::Alone(other) if other != thread => 0,
                _ => share.work(&self.stop),
            };
            self.done[thread].store(done as usize, Ordering::Relaxed);
            self.barrier.wait();
        }
    }
}

/// One round of a case: what each thread did alone, and all at once.
fn round(stage: &Stage, case: usize, threads: usize) -> (f64, f64) {
    let alone = (0..threads).map(|thread| stage.window(case, Turn::Alone(thread))[thread]).sum();
    (alone, stage.window(case, Turn::All).iter().sum())
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Prints what came out of the rounds of a case.
fn report(name: &str, threads: usize, rounds: &[(f64, f64)]) {
    let sorted = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let million = |all: Vec<f64>| median(&all) / 1e6;
    let ratios = sorted(&|(alone, all)| all / alone);
    println!(
        "{name:14} {:9.2} {:9.2} {:9.3}   {:.3} to {:.3}",
        million(sorted(&|(alone, _)| alone / threads as f64)),
        million(sorted(&|(_, all)| *all)),
        median(&ratios),
        ratios[0],
        ratios[ratios.len() - 1],
    );
}

/// The cores that this process may use.
fn cores() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("our own cores");
    (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect()
}

fn main() {
    let (cores, quick) = (cores(), std::env::args().any(|argument| argument == "--quick"));
    let threads = cores.len();
    let cases = cases(threads);
    let names: Vec<(String, Option<usize>)> = cases.iter().map(|c| (c.name.clone(), c.alone)).collect();
    let mut parts: Vec<Vec<Share>> = (0..threads).map(|_| Vec::new()).collect();
    for case in cases {
        parts.iter_mut().zip(case.shares).for_each(|(part, share)| part.push(share));
    }
    let stage = Stage {
        barrier: Barrier::new(threads + 1),
        stop: AtomicBool::new(false),
        case: AtomicUsize::new(0),
        turn: Mutex::new(Turn::All),
        done: (0..threads).map(|_| AtomicUsize::new(0)).collect(),
    };
    let mut rounds: Vec<Vec<(f64, f64)>> = names.iter().map(|_| Vec::new()).collect();
    std::thread::scope(|scope| {
        for ((thread, part), &core) in parts.into_iter().enumerate().zip(&cores) {
            let stage = &stage;
            scope.spawn(move || stage.play(thread, core, part));
        }
        // Stations are learned, flows cached, and what changed by that looked at.
        for case in (0..names.len()).cycle().take(3 * names.len()) {
            stage.window(case, Turn::All);
        }
        for _ in 0..if quick { 12 } else { 60 } {
            for (case, (_, other)) in names.iter().enumerate() {
                let (own, all) = round(&stage, case, threads);
                let alone = other.map_or(own, |other: usize| rounds[other].last().expect("it came before").0);
                rounds[case].push((alone, all));
            }
        }
        stage.case.store(usize::MAX, Ordering::Relaxed);
        stage.barrier.wait();
    });
    println!(
        "{threads} pollers; million a second (frames; additions; lines): each alone, all at once; all over {threads} alone"
    );
    println!("{:14} {:>9} {:>9} {:>9}", "", "alone", "all", "ratio");
    for ((name, _), rounds) in names.iter().zip(&rounds) {
        report(name, threads, rounds);
    }
}
