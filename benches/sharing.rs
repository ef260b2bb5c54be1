//! Two pollers write no cache line per frame that the other touches.
//!
//! A processor's counters may not be ours to read, so it is counted: valgrind's lackey tells of every load and every store of a
//! program. Its child is a switch with two pollers, each in a thread of its own, that turn one after the other;
//! stores to known places mark whose turn it is. So for every line there is who wrote it and who read it, while frames
//! are forwarded as the caches know. Time stands still there, for what is done twice a second is not the question.
//!
//! * `ports`: each poller has its own ports. No line may be written by one and touched by the other.
//! * `queues`: each has a queue of the same ports, with the same flows. The same holds, with one flow table.
//! * `crossing`: every frame is handed from one to the other. That cannot be had for nothing; a limit says what it costs.
//!
//! Things of two pollers that are neighbours in the heap would share a line too, in one run and not in the next. So that it is the
//! same in each, the child's allocator ([`arenas`]) gives each block lines of its own, and tells who made it. What a poller writes it
//! must have made itself, or it must be of a type that has lines of its own: only then no allocator can put it beside
//! what another poller uses.
//!
//!     cargo bench --bench sharing     prints the table; fails if there is more

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dataplane::batch::BATCH;
use dataplane::poller::Poller;
use flowtable::time::Instant;

#[path = "support/arenas.rs"]
mod arenas;
#[path = "support/crew.rs"]
mod crew;
#[allow(dead_code, reason = "no tunnels here, and no rig that turns")]
#[path = "support/rig.rs"]
mod rig;

use crew::{Crew, Ends};

#[global_allocator]
static ALLOCATOR: arenas::Arenas = arenas::Arenas;

/// Flows each way between two ports: several for every batch. A square: each station that is spoken to speaks, so none is
/// looked for by a flood.
const FLOWS: u32 = 64;
/// Turns of each poller until its caches know all and the round that looks all flows over, a few a turn, is through.
const WARM: usize = 100;
/// Turns of each poller that are looked at: one of 64 is measured by its stopwatch.
const TURNS: usize = 70;
/// Bytes of a cache line.
const LINE: u64 = 64;
/// Bytes of a thread's stack, and more.
const STACK: u64 = 2 << 20;
/// Writes to shared lines for each frame that a poller takes in, from a port or from the other (0.84 when this was written): a
/// frame's first bytes, its slot in the ring, the indexes of the ring, and the shared stock of chunks.
const CROSSING: f64 = 1.2;

/// How a crew is made.
type Make = fn() -> Crew;

/// What is asked: a name, a crew, and how many writes to shared lines a frame may cost.
const CASES: [(&str, Make, f64); 3] = [
    ("ports", || Crew::pairs(2, FLOWS, Ends::Together), 0.0),
    ("queues", || Crew::queues(2, FLOWS), 0.0),
    ("crossing", || Crew::pairs(2, FLOWS, Ends::Apart), CROSSING),
];

/// A word with lines of its own.
#[repr(align(128))]
struct Word(AtomicU64);

/// A store to one of these: the turn of a poller begins, or (the last) is over.
static MARKS: [Word; 3] = [const { Word(AtomicU64::new(0)) }; 3];
/// Whose turn it is.
static TURN: Word = Word(AtomicU64::new(0));

fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of) as u64
}

/// A thread of the child.
struct Player {
    own: usize,
    poller: Poller,
}

impl Player {
    /// The child: has a crew turn, poller by poller. Says where marks and program are, and for each poller, where its stack is and
    /// how many frames it moved.
    fn play_all(make: Make) {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("our own memory");
        let base = maps.split('-').next().expect("an address");
        println!("{:x} {:x} {base} {:x}", address(&MARKS), address(&TURN), arenas::open());
        std::io::stdin().read_line(&mut String::new()).expect("the parent");
        let Crew { pollers, clock } = make();
        let start = clock.now();
        let threads = pollers
            .into_iter()
            .enumerate()
            .map(|(own, poller)| std::thread::spawn(move || Player { own, poller }.play(start)));
        let threads: Vec<_> = threads.collect();
        // The first to be ready does not end while the other turns.
        let done: Vec<Player> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        drop(done);
    }

    fn play(mut self, now: Instant) -> Player {
        arenas::enter(1 + self.own);
        let later = now + Duration::from_secs(1);
        (0..WARM).for_each(|_| _ = self.take_turn(None, now));
        (0..WARM).for_each(|_| _ = self.take_turn(None, later));
        let upcalls = self.poller.counters().upcalls.get();
        let frames: usize = (0..TURNS).map(|_| self.take_turn(Some(&MARKS[self.own]), later)).sum();
        assert_eq!(self.poller.counters().upcalls.get(), upcalls, "a flow was not cached");
        println!("{:x} {:x} {frames:x}", self.own, address(&self));
        self
    }

    /// Waits for the turn, turns, and passes it on.
    fn take_turn(&mut self, mark: Option<&Word>, now: Instant) -> usize {
        while TURN.0.load(Ordering::Acquire) != self.own as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let places: Vec<usize> = (0..self.poller.wires.queues.len()).collect();
        mark.into_iter().for_each(|mark| mark.0.store(1, Ordering::Relaxed));
        let moved = self.poller.turn(now, &places);
        MARKS[2].0.store(1, Ordering::Relaxed);
        drop(places);
        TURN.0.store(1 - self.own as u64, Ordering::Release);
        moved
    }
}

/// What one poller did to a line.
#[derive(Debug, Clone, Copy, Default)]
struct Touched {
    loads: u64,
    stores: u64,
    /// Turns in which there was a store.
    turns: u64,
    /// The last of them, counted over both.
    last: u64,
    /// The code of the first store, or load.
    code: u64,
}

/// What was done to each line in the turns that are looked at, by poller.
#[derive(Debug)]
struct Trace<'m> {
    /// Where they are, once it is known.
    marks: &'m OnceLock<u64>,
    whose: Option<usize>,
    turn: u64,
    code: u64,
    lines: HashMap<u64, [Touched; 2]>,
    /// What else was said.
    told: String,
}

impl Trace<'_> {
    /// Reads what lackey says: `I  address,size` for an instruction, and behind it ` L`, ` S` or ` M` for what it does.
    fn read(mut self, mut from: impl BufRead) -> Self {
        let mut line = Vec::new();
        while {
            line.clear();
            from.read_until(b'\n', &mut line).expect("what valgrind says")
        } > 0
        {
            match *line.as_slice() {
                [b'I', b' ', b' ', ref rest @ ..] if self.whose.is_some() => self.code = access(rest).0,
                [b' ', kind @ (b'L' | b'S' | b'M'), b' ', ref rest @ ..] => {
                    if self.whose.is_some() || kind == b'S' {
                        self.access(kind, access(rest));
                    }
                }
                [b'I', ..] => {}
                ref other => self.told += &String::from_utf8_lossy(other),
            }
        }
        self
    }

    fn access(&mut self, kind: u8, (at, size): (u64, u64)) {
        let Some(marks) = self.marks.get() else { return };
        let mark = at.wrapping_sub(*marks) / size_of::<Word>() as u64;
        if kind != b'L' && mark < MARKS.len() as u64 {
            self.whose = Some(mark as usize).filter(|whose| *whose < 2);
            self.turn += 1;
            return;
        }
        let Some(whose) = self.whose else { return };
        for line in at / LINE..=(at + size - 1) / LINE {
            let touched = &mut self.lines.entry(line).or_default()[whose];
            if touched.code == 0 || touched.stores == 0 && kind != b'L' {
                touched.code = self.code;
            }
            if kind != b'S' {
                touched.loads += 1;
            }
            if kind != b'L' {
                touched.stores += 1;
                touched.turns += u64::from(touched.last != self.turn);
                touched.last = self.turn;
            }
        }
    }
}

/// `hexadecimal,decimal` and the end of the line: there are a hundred million.
fn access(text: &[u8]) -> (u64, u64) {
    let (mut at, mut size, mut comma) = (0, 0, false);
    for byte in text {
        match byte {
            b'0'..=b'9' if comma => size = size * 10 + u64::from(byte - b'0'),
            b'0'..=b'9' => at = at << 4 | u64::from(byte - b'0'),
            b'a'..=b'f' => at = at << 4 | u64::from(byte - b'a' + 10),
            b',' => comma = true,
            _ => {}
        }
    }
    (at, size)
}

fn number(hexadecimal: &str) -> u64 {
    u64::from_str_radix(hexadecimal, 16).unwrap_or_else(|_| panic!("{hexadecimal:?} is no number"))
}

/// What came out of a case.
struct Outcome {
    /// Frames that each poller moved.
    frames: [u64; 2],
    /// Lines that each wrote.
    written: [usize; 2],
    /// Lines that one wrote and the other touched.
    shared: BTreeMap<u64, [Touched; 2]>,
    /// Lines that a poller wrote in memory that another thread made, and that might share lines with anything.
    exposed: BTreeMap<u64, [Touched; 2]>,
    /// Where the program lies.
    base: u64,
}

impl Outcome {
    /// Lines, for each frame, that one poller wrote in a turn and the other touches in others.
    fn per_frame(&self) -> f64 {
        let turns: u64 = self.shared.values().flatten().map(|touched| touched.turns).sum();
        turns as f64 / self.frames.iter().sum::<u64>() as f64
    }
}

/// Has a child play a case under lackey.
fn observe(name: &str) -> Outcome {
    let mut child = Command::new("valgrind")
        .args(["--tool=lackey", "--trace-mem=yes", "--fair-sched=yes"])
        .arg(std::env::current_exe().expect("our own path"))
        .args(["--play", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("valgrind, of the Debian package of that name");
    let told = BufReader::with_capacity(1 << 20, child.stderr.take().expect("a pipe"));
    let mut said =
        BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    let marks = OnceLock::new();
    let trace =
        Trace { marks: &marks, whose: None, turn: 0, code: 0, lines: HashMap::new(), told: String::new() };
    std::thread::scope(|scope| {
        let trace = scope.spawn(|| trace.read(told));
        let begin = said.next().map(|line| line.split(' ').map(number).collect::<Vec<_>>());
        if let Some([at, ..]) = begin.as_deref() {
            marks.set(*at).expect("set once");
            writeln!(child.stdin.take().expect("a pipe")).expect("the child listens");
        }
        let ends: Vec<Vec<u64>> = said.map(|line| line.split(' ').map(number).collect()).collect();
        let trace = trace.join().expect("a trace");
        let ended = child.wait().expect("our child");
        match (begin.as_deref(), ends.as_slice()) {
            (Some(&[_, turn, base, arenas]), [_, _]) if ended.success() => {
                outcome((turn, base, arenas), &ends, trace)
            }
            _ => panic!("{name}: {ended}: {}", trace.told),
        }
    })
}

/// Leaves away what does not count: whose turn it is, and stacks, on which the one waits while the other turns.
fn outcome((turn, base, arenas): (u64, u64, u64), ends: &[Vec<u64>], trace: Trace<'_>) -> Outcome {
    let (mut frames, mut written) = ([0; 2], [0; 2]);
    let mut lines = trace.lines;
    lines.remove(&(turn / LINE));
    for end in ends {
        let &[own, stack, moved] = end.as_slice() else { panic!("three numbers: {end:?}") };
        frames[own as usize] = moved;
        lines.retain(|line, _| !(stack - STACK..stack + STACK / 16).contains(&(line * LINE)));
    }
    for touched in lines.values() {
        written
            .iter_mut()
            .zip(touched)
            .for_each(|(written, touched)| *written += usize::from(touched.stores > 0));
    }
    let strange =
        |line: u64, poller: usize| arenas::maker(arenas, line * LINE).is_some_and(|m| m != 1 + poller);
    let writes = |touched: &[Touched; 2], poller: usize| touched[poller].stores > 0;
    let is_exposed =
        |line: u64, touched| (0..2).any(|poller| writes(touched, poller) && strange(line, poller));
    let exposed = lines.iter().filter(|(line, touched)| is_exposed(**line, touched));
    let exposed = exposed.map(|(line, touched)| (*line, *touched)).collect();
    let touches = |one: &Touched| one.loads + one.stores > 0;
    lines.retain(|_, [a, b]| a.stores > 0 && touches(b) || b.stores > 0 && touches(a));
    Outcome { frames, written, shared: lines.into_iter().collect(), exposed, base }
}

/// Where the code is that touched a line, as far as binutils are there to tell.
fn place(code: u64, base: u64) -> String {
    let own = std::env::current_exe().expect("our own path");
    let command =
        Command::new("addr2line").args(["-Cfspe"]).arg(own).arg(format!("{:x}", code - base)).output();
    let text = command.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|_| format!("{:x}", code - base))
}

/// Lines of which more is said than that they are shared.
const SHOWN: usize = 16;

/// Prints the first of the lines that are shared, and who touches them.
fn show(lines: &BTreeMap<u64, [Touched; 2]>, base: u64) {
    for (line, touched) in lines.iter().take(SHOWN) {
        println!("    line {:x}", line * LINE);
        for (poller, Touched { loads, stores, code, .. }) in touched.iter().enumerate() {
            println!("      poller {poller}: {loads} loads, {stores} stores; {}", place(*code, base));
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [play, name] = &arguments[..]
        && play == "--play"
    {
        let (_, make, _) = CASES.iter().find(|(case, ..)| case == name).expect("a case");
        Player::play_all(*make);
        return ExitCode::SUCCESS;
    }
    println!(
        "{:10} {:>8} {:>15} {:>7} {:>10} {:>7}",
        "lines", "frames", "written by each", "shared", "a frame", "exposed"
    );
    let mut failed = false;
    let outcomes = CASES.map(|(name, ..)| std::thread::spawn(move || observe(name)));
    for ((name, _, limit), outcome) in CASES.iter().zip(outcomes) {
        let outcome = outcome.join().expect("an outcome");
        let Outcome { frames, written, shared, exposed, base } = &outcome;
        let ([a, b], count, each) = (written, frames.iter().sum::<u64>(), outcome.per_frame());
        println!("{name:10} {count:8} {a:7} {b:7} {:7} {each:10.2} {:7}", shared.len(), exposed.len());
        assert!(
            frames.iter().all(|moved| *moved as usize >= TURNS * 2 * BATCH),
            "{name}: few frames: {frames:?}"
        );
        if each > *limit {
            failed = true;
            show(shared, *base);
        }
        if *limit == 0.0 && !exposed.is_empty() {
            failed = true;
            println!("  exposed:");
            show(exposed, *base);
        }
    }
    ExitCode::from(u8::from(failed))
}
