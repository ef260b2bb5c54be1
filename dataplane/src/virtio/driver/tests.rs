//! The driver's rings against devices that copy what they read into what they may write: one of rust-vmm for split rings,
//! and for packed rings the shortest there is. Chains of all shapes, random histories, many times around the ring.

use proptest::prelude::*;

use self::mirror::Mirror;
use super::memory::Layout;
use super::*;

mod mirror;

/// Two regions that touch, so that buffers at the seam lie in both.
fn memory() -> SharedMemory {
    let region = |guest, offset| Layout { guest, len: 1 << 18, offset };
    SharedMemory::new(&[region(1 << 30, 0), region((1 << 30) + (1 << 18), 8192)]).unwrap()
}

const SEAM: u64 = (1 << 30) + (1 << 18);

/// What the driver expects back: for each chain the bytes it sent, and where the answer goes.
struct Sent {
    token: Token,
    bytes: Vec<u8>,
    answer: Vec<Buffer>,
}

/// A driver that knows what it sent.
struct Bench {
    memory: SharedMemory,
    ring: DriverRing,
    device: Mirror,
    sent: Vec<Sent>,
    /// A place for the buffers of each token.
    places: u64,
    serial: u8,
    answered: usize,
}

/// Bytes of a token's place.
const PLACE: u64 = 256;

impl Bench {
    fn new(shape: Shape) -> Bench {
        let memory = memory();
        let ring = DriverRing::new(&memory, shape).unwrap();
        let device = Mirror::new(&memory, &ring);
        let places = SEAM - PLACE * u64::from(shape.size) / 2;
        Bench { memory, ring, device, sent: Vec::new(), places, serial: 0, answered: 0 }
    }

    /// Adds a chain with buffers of these lengths to read and to write. `false`: full.
    fn add(&mut self, read: &[u8], write: &[u8], form: Form) -> bool {
        let free_place = (0..).find(|place| self.sent.iter().all(|sent| sent.place(self.places) != *place));
        let mut at = self.places + PLACE * free_place.unwrap();
        let mut buffer = |&len: &u8, access| {
            at += u64::from(len);
            Buffer { addr: at - u64::from(len), len: u32::from(len), access }
        };
        let mut chain: Vec<Buffer> = read.iter().map(|len| buffer(len, Access::Read)).collect();
        chain.extend(write.iter().map(|len| buffer(len, Access::Write)));
        let len = read.iter().map(|&len| usize::from(len)).sum();
        let bytes: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(3).wrapping_add(self.serial)).collect();
        self.memory.write(chain[0].addr, &bytes);
        let before = self.ring.free();
        let Ok(token) = self.ring.add(&chain, form) else { return false };
        let need = if form == Form::Indirect { 1 } else { chain.len() as u16 };
        assert_eq!(before - self.ring.free(), need);
        self.serial = self.serial.wrapping_add(1);
        self.sent.push(Sent { token, bytes, answer: chain[read.len()..].to_vec() });
        true
    }

    /// Takes what came back, and compares.
    fn take(&mut self) {
        while let Some(used) = self.ring.used() {
            let place = self.sent.iter().position(|sent| sent.token == used.token).unwrap();
            if self.ring.shape().features.has(Features::IN_ORDER) {
                assert_eq!(place, 0);
            }
            self.sent.remove(place).compare(&self.memory, used.written);
            self.answered += 1;
        }
    }
}

impl Sent {
    fn place(&self, places: u64) -> u64 {
        (self.answer[0].addr - places) / PLACE
    }

    fn compare(&self, memory: &SharedMemory, written: u32) {
        let room: u32 = self.answer.iter().map(|buffer| buffer.len).sum();
        let expected = &self.bytes[..self.bytes.len().min(room as usize)];
        assert_eq!(written, room, "the mirror fills up with zeros");
        let mut bytes = vec![0; room as usize];
        memory.read(self.answer[0].addr, &mut bytes);
        assert_eq!(&bytes[..expected.len()], expected);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(Vec<u8>, Vec<u8>, Form),
    Publish,
    /// The device takes so many chains, and gives back those it has, the newest first if the features allow.
    Device(u8),
    Take,
    Sleep,
    Doze,
}

fn step() -> impl Strategy<Value = Step> {
    let form = prop_oneof![Just(Form::Direct), Just(Form::Indirect)];
    let pieces = |least: usize| prop::collection::vec(1u8..40, least..4);
    prop_oneof![
        6 => (pieces(0), pieces(1), form).prop_map(|(read, write, form)| Step::Add(read, write, form)),
        2 => Just(Step::Publish),
        4 => (0u8..6).prop_map(Step::Device),
        3 => Just(Step::Take),
        1 => Just(Step::Sleep),
        1 => Just(Step::Doze),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let bit = |feature: Features| prop_oneof![Just(Features::NONE), Just(feature)];
    (2u32..7, bit(Features::RING_PACKED), bit(Features::EVENT_IDX), bit(Features::IN_ORDER))
        .prop_map(|(size, a, b, c)| Shape { size: 1 << size, table: 6, features: a | b | c })
}

/// Plays the steps; at the end everything was answered, and no side slept over work.
fn play(shape: Shape, steps: &[Step]) -> usize {
    let mut bench = Bench::new(shape);
    let (mut device_sleeps, mut kicked) = (false, false);
    let (mut driver_sleeps, mut called) = (false, false);
    for step in steps {
        match step {
            Step::Add(read, write, form) => _ = bench.add(read, write, *form),
            Step::Publish => {
                bench.ring.publish();
                kicked |= bench.ring.wants_kick();
                assert!(!device_sleeps || kicked || !bench.device.has_work());
            }
            Step::Device(most) => {
                device_sleeps = false;
                let served = bench.device.serve(usize::from(*most));
                called |= served.call;
                assert!(!driver_sleeps || called || served.chains == 0);
            }
            Step::Take => {
                driver_sleeps = false;
                bench.ring.disable_calls();
                bench.take();
            }
            Step::Sleep => (driver_sleeps, called) = (!bench.ring.enable_calls(), false),
            Step::Doze => (device_sleeps, kicked) = (!bench.device.sleep(), false),
        }
    }
    bench.ring.publish();
    bench.device.serve(usize::MAX);
    bench.take();
    assert!(bench.sent.is_empty() && bench.ring.is_idle());
    bench.answered
}

proptest! {
    #[test]
    fn every_chain_is_answered_once(shape in shape(), steps in prop::collection::vec(step(), 0..600)) {
        play(shape, &steps);
    }
}

fn forms() -> impl Iterator<Item = Shape> {
    let features =
        [Features::NONE, Features::EVENT_IDX, Features::IN_ORDER, Features::EVENT_IDX | Features::IN_ORDER];
    let both = move |format| features.into_iter().map(move |set| set | format);
    let formats = [Features::NONE, Features::RING_PACKED].into_iter();
    formats.flat_map(both).map(|features| Shape { size: 16, table: 4, features })
}

#[test]
fn indices_wrap_many_times() {
    let round = [
        Step::Add(vec![10, 20], vec![30], Form::Direct),
        Step::Add(vec![7], vec![9, 9], Form::Indirect),
        Step::Doze,
        Step::Sleep,
        Step::Publish,
        Step::Device(5),
        Step::Take,
    ];
    for shape in forms() {
        // The indices of split rings are of 16 bits: once around in one of the cases is enough.
        let rounds = if shape.features == Features::EVENT_IDX { 33_000 } else { 500 };
        let steps: Vec<Step> = round.iter().cycle().take(round.len() * rounds).cloned().collect();
        assert_eq!(play(shape, &steps), 2 * rounds, "{shape:?}");
    }
}

#[test]
fn a_full_ring_says_so_and_is_not_changed() {
    for shape in forms() {
        let mut bench = Bench::new(shape);
        let added = (0..100).filter(|_| bench.add(&[1, 2], &[3], Form::Direct)).count();
        assert_eq!((added, bench.ring.free()), (5, 1), "{shape:?}");
        let chain = [Buffer::read(SEAM, 1); 5];
        for form in [Form::Direct, Form::Indirect] {
            assert_eq!(bench.ring.add(&chain, form), Err(Full { buffers: 5, free: 1, table: 4 }));
        }
        assert!(bench.add(&[1, 2], &[3], Form::Indirect));
        assert!(!bench.add(&[1], &[3], Form::Indirect));
        bench.ring.publish();
        assert_eq!(bench.device.serve(usize::MAX).chains, 6);
        bench.take();
        assert!(bench.ring.is_idle());
    }
}

#[test]
fn a_ring_that_was_reset_begins_anew() {
    for shape in forms() {
        let mut bench = Bench::new(shape);
        for _ in 0..3 {
            assert!(bench.add(&[5], &[5], Form::Direct) && bench.add(&[5], &[5], Form::Direct));
            bench.ring.publish();
            bench.device.serve(1);
            bench.take();
            bench.ring.reset();
            bench.sent.clear();
            assert!(bench.ring.is_idle() && bench.ring.used().is_none());
            bench.device = Mirror::new(&bench.memory, &bench.ring);
        }
    }
}

#[test]
#[should_panic(expected = "which it does not have")]
fn a_device_that_gives_back_what_it_does_not_have_is_found_out() {
    let mut bench = Bench::new(Shape { size: 4, table: 0, features: Features::NONE });
    assert!(bench.add(&[1], &[1], Form::Direct));
    bench.ring.publish();
    bench.device.serve(1);
    let used = bench.ring.places().device;
    bench.memory.write(used + 4, &3u32.to_le_bytes());
    bench.take();
}
