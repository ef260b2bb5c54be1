//! Sends by one port, receives by another or the same, on one thread, and holds one against the other.
//!
//! A turn of the loop sends what is due, then asks for what has come. At low rates that is one frame at a time: it is stamped right
//! before the port takes it, and the clock is read right after frames came, so what the generator adds to a latency is what it
//! takes to ask a port that has nothing. Frames of one burst share a stamp's time.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use super::frames::{Frames, Stamping};
use super::meter::{Latency, Quantiles, Rates, Spread};
use super::pace::Pace;
use super::reel::Player;
use super::residents::{self, Residents};
use super::sequence::{Arrival, Streams};
use super::stamp::{Finder, Form, Stamp, Token};
use super::{Observer, Progress, Until, Verdict};
use crate::batch::{BATCH, Batch};
use crate::frame::FrameCache;
use crate::port::{Port, PortError, Readiness};

/// How long to wait for frames once the last was sent, as long as none come and it is known that some were lost.
const SILENCE: Duration = Duration::from_millis(200);
/// How long at most: what RFC 2544 waits (section 23). And as long as all that are missing may only be late: a neighbour can hold
/// a switch's core, and what is in its rings, for half a second.
const PATIENCE: Duration = Duration::from_secs(2);
/// Batches that are still taken once patience is over: as many as a long ring holds, and not for ever.
const LAST_LOOKS: usize = 4096 / BATCH;
/// How often the observer is told.
const OBSERVE: Duration = Duration::from_millis(100);
/// The port that only sends is asked for frames so seldom, in turns, if that costs a system call.
const SELDOM: u64 = 256;

/// The ports.
pub struct Ends {
    /// Where frames are sent.
    pub tx: Box<dyn Port>,
    /// Where they come out; `None`: at the same port.
    pub rx: Option<Box<dyn Port>>,
    /// What frames are made of.
    pub frames: FrameCache,
    /// Who is behind `tx`, and answers.
    pub near: Residents,
    /// Who is behind `rx`.
    pub far: Residents,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Tx,
    Rx,
}

impl Ends {
    /// Answers a question, if it is one for somebody behind the port where it came.
    #[cold]
    fn answer(&mut self, at: End, question: &[u8]) -> Result<bool, PortError> {
        let stock = &mut self.frames;
        let answer = match (at, &self.rx) {
            (End::Tx, _) => self.near.answer(question, stock),
            (End::Rx, Some(_)) => self.far.answer(question, stock),
            // Everybody is behind the only port.
            (End::Rx, None) => self.far.answer(question, stock).or_else(|| self.near.answer(question, stock)),
        };
        let Some(answer) = answer else { return Ok(false) };
        let port = match (at, &mut self.rx) {
            (End::Rx, Some(rx)) => rx,
            _ => &mut self.tx,
        };
        let mut batch = Batch::from_iter([answer]);
        port.tx(&mut self.frames, &mut batch)?;
        batch.drain(..).for_each(|frame| self.frames.free(frame));
        Ok(true)
    }

    fn receiver(&mut self) -> (&mut dyn Port, &mut FrameCache) {
        let port = self.rx.as_mut().unwrap_or(&mut self.tx);
        (port.as_mut(), &mut self.frames)
    }

    /// Throws away what has come, so that it is not taken for what is to come: at most some thousand frames.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn clear(&mut self) -> Result<(), PortError> {
        for _ in 0..SELDOM {
            let (port, frames) = self.receiver();
            let mut batch = Batch::new();
            port.rx(frames, &mut batch)?;
            if batch.is_empty() {
                break;
            }
            batch.drain(..).for_each(|frame| frames.free(frame));
        }
        Ok(())
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.tx.close(&mut self.frames);
        self.rx.iter_mut().for_each(|rx| rx.close(&mut self.frames));
    }
}

/// What to send.
// There is one of it.
#[allow(clippy::large_enum_variant)]
pub enum Source {
    /// Made frames, told apart by stamps.
    Made(Frames),
    /// Frames as they are, which are only counted.
    Played(Player),
}

impl Source {
    /// What stamps frames have.
    pub fn form(&self) -> Form {
        match self {
            Source::Made(frames) => frames.form(),
            Source::Played(_) => Form::None,
        }
    }
}

/// How to send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// When it is enough.
    pub until: Until,
    /// Frames per second; `None`: as fast as it gets.
    pub rate: Option<f64>,
    /// Frames at once at most, 1 to [`BATCH`].
    pub burst: usize,
    /// Length of the windows that rates are measured in.
    pub window: Duration,
    /// What is asked about frames that do not come.
    pub question: Question,
}

/// What a run is to find out about frames that do not come: so long are late ones waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Question {
    /// How many they are.
    HowMany,
    /// Whether they are more than this fraction, 0 to 1, of what was sent: a trial of a search.
    Exceeds(f64),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outcome {
    /// Frames that the port took.
    pub sent: u64,
    /// Frames that came, duplicates too; without stamps all that came but questions for an address, whosever they are.
    pub received: u64,
    /// Frames that never came.
    pub lost: u64,
    /// Frames behind one of their flow that was sent later; `None` without stamps, and below.
    pub reordered: Option<u64>,
    /// Frames that came again.
    pub duplicated: Option<u64>,
    /// Frames that came and are not ours.
    pub foreign: u64,
    /// Sent per second.
    pub tx: Spread,
    /// Received per second.
    pub rx: Spread,
    /// Sent per second over all of the time.
    pub mean: f64,
    /// How long frames took; `None` if stamps have no time.
    pub latency: Option<Quantiles>,
}

/// Sends and receives as planned. Late frames of one before are nobody's.
///
/// # Errors
/// [`PortError`] if a port goes away.
pub fn exchange(
    ends: &mut Ends,
    source: &mut Source,
    plan: Plan,
    observe: Observer<'_>,
) -> Result<Outcome, PortError> {
    let token = Token::random();
    if let Source::Made(frames) = source {
        frames.set_stamping(Stamping::By(token));
    }
    ends.clear()?;
    let mut run = Run::new(ends, source, plan, token);
    let result = run.all(observe);
    run.release();
    result.map(|()| run.outcome())
}

/// What has come.
struct Sink {
    finder: Finder,
    form: Form,
    streams: Streams,
    latency: Latency,
    received: u64,
    reordered: u64,
    duplicated: u64,
    foreign: u64,
}

struct Run<'a> {
    ends: &'a mut Ends,
    source: &'a mut Source,
    plan: Plan,
    pace: Pace,
    start: Instant,
    /// Frames that are to be sent; what the port had no room for stays here.
    batch: Batch,
    /// Frames given to the port: the next one's number.
    sequence: u64,
    /// Of them those it took.
    sent: u64,
    sink: Sink,
    rates: [Rates; 2],
    /// When the last was sent.
    ended: Duration,
    turns: u64,
    /// The port that only sends is asked every so many turns.
    tend: u64,
}

impl<'a> Run<'a> {
    fn new(ends: &'a mut Ends, source: &'a mut Source, plan: Plan, token: Token) -> Run<'a> {
        let form = source.form();
        let flows = match source {
            Source::Made(frames) if !form.is_empty() => frames.flows(),
            _ => 1,
        };
        let sink = Sink {
            finder: Finder::new(token, form),
            form,
            streams: Streams::new(flows),
            latency: Latency::default(),
            received: 0,
            reordered: 0,
            duplicated: 0,
            foreign: 0,
        };
        let tend = if matches!(ends.tx.readiness(), Readiness::Call(_)) { SELDOM } else { 1 };
        let burst = plan.burst.clamp(1, BATCH);
        let pace = plan.rate.map_or(Pace::unlimited(burst), |rate| Pace::even(rate, burst, Duration::ZERO));
        let rates = [Rates::new(plan.window, Duration::ZERO), Rates::new(plan.window, Duration::ZERO)];
        Run {
            ends,
            source,
            plan,
            pace,
            start: Instant::now(),
            batch: Batch::new(),
            sequence: 0,
            sent: 0,
            sink,
            rates,
            ended: Duration::ZERO,
            turns: 0,
            tend,
        }
    }

    #[inline]
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn all(&mut self, observe: Observer<'_>) -> Result<(), PortError> {
        let mut observed = Duration::ZERO;
        self.start = Instant::now();
        loop {
            let now = self.now();
            if self.plan.until.is_over(now, self.sequence) {
                break;
            }
            self.turn(now)?;
            self.rates[0].look(now, self.sent);
            self.rates[1].look(now, self.sink.received);
            if now - observed >= OBSERVE {
                observed = now;
                if observe(self.progress(now)) == Verdict::Stop {
                    break;
                }
            }
        }
        self.ended = self.now();
        self.rates[0].end(self.ended, self.sent);
        self.rates[1].end(self.ended, self.sink.received);
        self.drain()
    }

    fn progress(&self, elapsed: Duration) -> Progress {
        Progress { elapsed, sent: self.sent, received: self.sink.received }
    }

    #[inline]
    fn turn(&mut self, now: Duration) -> Result<(), PortError> {
        self.turns += 1;
        let left = self.plan.until.count.map_or(u64::MAX, |count| count - self.sequence);
        let due = (self.pace.due(now) as u64).min(left) as usize;
        if due > 0 {
            self.send(due)?;
        }
        self.receive()?;
        if self.ends.rx.is_some() && self.turns.is_multiple_of(self.tend) {
            self.tend()?;
        }
        Ok(())
    }

    /// Fills the batch up to what is due, stamps it and gives it to the port. Without memory for frames it is shorter.
    #[inline]
    fn send(&mut self, due: usize) -> Result<(), PortError> {
        let stock = &mut self.ends.frames;
        match self.source {
            Source::Made(frames) => {
                let missing = due.saturating_sub(self.batch.len());
                self.batch.extend((0..missing).map_while(|_| stock.alloc_for(frames.frame_len())));
                let sent = self.start.elapsed().as_nanos() as u64;
                for (sequence, frame) in (self.sequence..).zip(&mut self.batch) {
                    frames.write(Stamp { sequence, sent }, frame);
                }
            }
            Source::Played(player) => {
                let missing = due.saturating_sub(self.batch.len());
                self.batch.extend((0..missing).map_while(|_| player.next(stock)));
            }
        }
        let offered = self.batch.len();
        let sent = self.ends.tx.tx(stock, &mut self.batch)?;
        let taken = offered - self.batch.len();
        self.sequence += taken as u64;
        self.sent += u64::from(sent.frames);
        self.pace.sent(taken);
        Ok(())
    }

    /// Takes what has come; how many frames.
    #[inline]
    fn receive(&mut self) -> Result<usize, PortError> {
        let (port, frames) = self.ends.receiver();
        let mut batch = Batch::new();
        port.rx(frames, &mut batch)?;
        if batch.is_empty() {
            return Ok(0);
        }
        let (now, count) = (self.start.elapsed().as_nanos() as u64, batch.len());
        for frame in batch.drain(..) {
            if !self.sink.take(frame.bytes(), (now, self.sequence), self.source)
                && !self.ends.answer(End::Rx, frame.bytes())?
            {
                self.sink.foreign += 1;
            }
            self.ends.frames.free(frame);
        }
        Ok(count)
    }

    /// Asks the port that only sends: some want to be asked to know what was sent. What comes there is for nobody, or a question.
    fn tend(&mut self) -> Result<(), PortError> {
        let mut batch = Batch::new();
        self.ends.tx.rx(&mut self.ends.frames, &mut batch)?;
        for frame in batch.drain(..) {
            self.ends.answer(End::Tx, frame.bytes())?;
            self.ends.frames.free(frame);
        }
        Ok(())
    }

    /// Waits for what is under way.
    fn drain(&mut self) -> Result<(), PortError> {
        let mut heard = self.now();
        while self.sink.unique() < self.sent
            && self.now() - heard < self.silence()
            && self.now() - self.ended < PATIENCE
        {
            if self.receive()? > 0 {
                heard = self.now();
            }
            if self.ends.rx.is_some() {
                self.tend()?;
            }
        }
        self.look_again()
    }

    /// What came while this thread stood still is not lost.
    fn look_again(&mut self) -> Result<(), PortError> {
        for _ in 0..LAST_LOOKS {
            if self.sink.unique() >= self.sent || self.receive()? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// How long a silence ends the run. A flow keeps its order, so a frame that was overtaken by one of its flow is lost, as a
    /// rule; all others may be late. What answers the question already need not be waited for.
    fn silence(&self) -> Duration {
        let overtaken = self.sink.overtaken();
        let is_answered = match self.plan.question {
            Question::HowMany => overtaken > 0,
            Question::Exceeds(part) => overtaken as f64 > part * self.sent as f64 || self.sink.received == 0,
        };
        if is_answered || self.sink.form.is_empty() { SILENCE } else { PATIENCE }
    }

    fn release(&mut self) {
        self.batch.drain(..).for_each(|frame| self.ends.frames.free(frame));
    }

    fn outcome(&self) -> Outcome {
        let sink = &self.sink;
        let stamped = !sink.form.is_empty();
        Outcome {
            sent: self.sent,
            received: sink.received,
            lost: self.sent.saturating_sub(sink.unique()),
            reordered: stamped.then_some(sink.reordered),
            duplicated: stamped.then_some(sink.duplicated),
            foreign: sink.foreign,
            tx: self.rates[0].spread(),
            rx: self.rates[1].spread(),
            mean: self.sent as f64 / self.ended.as_secs_f64().max(f64::MIN_POSITIVE),
            latency: sink.latency.quantiles(),
        }
    }
}

impl Sink {
    /// A frame has come: `now`, when so many were given to the port. False: it is not ours.
    #[inline]
    fn take(&mut self, bytes: &[u8], (now, given): (u64, u64), source: &Source) -> bool {
        let frames = match source {
            Source::Made(frames) if !self.form.is_empty() => frames,
            _ => {
                let ours = !residents::may_ask(bytes);
                self.received += u64::from(ours);
                return ours;
            }
        };
        let Some(stamp) = self.finder.find(bytes).filter(|stamp| stamp.sequence < given) else {
            return false;
        };
        self.received += 1;
        let (flow, number) = frames.place(stamp.sequence);
        match self.streams.note(flow, number) {
            Arrival::InOrder => {}
            Arrival::Reordered => self.reordered += 1,
            Arrival::Duplicated => self.duplicated += 1,
        }
        if self.form == Form::Whole {
            self.latency.record(now.saturating_sub(stamp.sent));
        }
        true
    }

    /// Frames that did not come, though one of their flow that was sent later did.
    fn overtaken(&self) -> u64 {
        self.streams.reached().saturating_sub(self.unique())
    }

    /// Frames that came, each once.
    fn unique(&self) -> u64 {
        self.received - self.duplicated
    }
}
