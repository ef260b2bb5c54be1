//! Random histories of a driver and a device on the two rings of a pair, against a model: every frame arrives once, in order
//! and byte for byte, with what is left to do on it; no slot of a ring is lost; whoever sleeps is told when there is work; and
//! the dirty log has every page that the device wrote.

#[path = "world"]
mod world {
    pub mod device;
    pub mod model;
    pub mod user;
}

use dataplane::virtio::driver::Form;
use dataplane::virtio::features::Features;
use encap::offload::{Csum, Gso, Offload};
use proptest::prelude::*;

use self::world::model::{Kind, Setting, World};

/// One thing that one side does.
#[derive(Debug, Clone)]
enum Step {
    /// The driver sends frames of this kind.
    Send(Kind, u8),
    /// The driver's frames become visible.
    Flush,
    /// The driver takes so many frames.
    Receive(u8),
    /// The driver offers its receive buffers again.
    Refill,
    /// The driver waits for a call, and stops waiting.
    Sleep,
    Wake,
    /// The device takes so many frames.
    Take(u8),
    /// The device sends frames of this kind.
    Give(Kind, u8),
    /// The device waits for a kick, and stops waiting.
    Arm,
    Disarm,
    /// The device goes, and another takes over.
    Restart,
    /// It writes down what it writes from now on, and no more.
    Log,
    EndLog,
}

impl Step {
    fn play(&self, world: &mut World) {
        match self {
            Step::Send(kind, count) => (0..*count).for_each(|_| world.send(kind)),
            Step::Flush => world.flush(),
            Step::Receive(most) => world.receive(usize::from(*most)),
            Step::Refill => world.refill(),
            Step::Sleep => world.sleep(),
            Step::Wake => world.wake(),
            Step::Take(most) => world.take(usize::from(*most)),
            Step::Give(kind, count) => world.give(kind, usize::from(*count)),
            Step::Arm => world.arm(),
            Step::Disarm => world.disarm(),
            Step::Restart => world.restart(),
            Step::Log => world.log(),
            Step::EndLog => world.end_log(),
        }
    }
}

fn offload() -> impl Strategy<Value = Offload> {
    let partial = |offset| Csum::Partial { start: 34, offset };
    let csum = Offload { csum: partial(6), gso: Gso::None };
    prop_oneof![
        4 => Just(Offload::NONE),
        1 => Just(csum),
        1 => (1u16..2000).prop_map(move |mss| Offload { csum: partial(16), gso: Gso::Tcp4 { mss } }),
        1 => (1u16..2000).prop_map(move |mss| Offload { csum: partial(16), gso: Gso::Tcp6 { mss } }),
        1 => (1u16..2000).prop_map(move |size| Offload { csum: partial(6), gso: Gso::Udp { size } }),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    let len = prop_oneof![8 => 60usize..200, 4 => 200usize..2000, 1 => 2000usize..9000, 1 => 0usize..60];
    let cuts = prop_oneof![
        3 => Just(vec![]),
        2 => Just(vec![12]),
        1 => Just(vec![10]),
        2 => prop::collection::vec(1usize..300, 1..4),
    ];
    let form = prop_oneof![2 => Just(Form::Direct), 1 => Just(Form::Indirect)];
    (len, offload(), cuts, form, prop::bool::weighted(0.03))
        .prop_map(|(len, offload, cuts, form, lies)| Kind { len, offload, cuts, form, lies })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (kind(), 1u8..12).prop_map(|(kind, count)| Step::Send(kind, count)),
        8 => Just(Step::Flush),
        8 => (0u8..40).prop_map(Step::Receive),
        6 => Just(Step::Refill),
        2 => Just(Step::Sleep),
        2 => Just(Step::Wake),
        8 => (0u8..33).prop_map(Step::Take),
        8 => (kind(), 1u8..33).prop_map(|(kind, count)| Step::Give(kind, count)),
        2 => Just(Step::Arm),
        2 => Just(Step::Disarm),
        1 => Just(Step::Restart),
        1 => Just(Step::Log),
        4 => Just(Step::EndLog),
    ]
}

fn setting() -> impl Strategy<Value = Setting> {
    let bit = |feature: Features| prop_oneof![Just(Features::NONE), Just(feature)];
    let features = (
        bit(Features::VERSION_1),
        bit(Features::RING_PACKED | Features::VERSION_1),
        bit(Features::EVENT_IDX),
        bit(Features::IN_ORDER),
        bit(Features::INDIRECT_DESC),
        bit(Features::MRG_RXBUF),
    );
    let features = features.prop_map(|(a, b, c, d, e, f)| a | b | c | d | e | f);
    let cuts = prop_oneof![2 => Just(vec![]), 1 => Just(vec![12]), 1 => Just(vec![3, 20, 7])];
    let room = prop_oneof![Just(2048usize), Just(9100), 100usize..600];
    (features, 3u32..6, cuts, room, any::<bool>()).prop_map(|(features, size, cuts, room, indirect)| {
        Setting {
            features,
            size: 1 << size,
            receive_cuts: cuts,
            receive_room: room,
            receive_form: if indirect { Form::Indirect } else { Form::Direct },
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_time: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_arrives_once(setting in setting(), steps in prop::collection::vec(step(), 0..4000)) {
        let mut world = World::new(&setting);
        for step in &steps {
            step.play(&mut world);
        }
        world.finish();
    }
}

/// Long enough that the indices of a split ring, and the wrap counters of a packed one, go around.
#[test]
fn indices_go_around() {
    let kind = |len| Kind { len, offload: Offload::NONE, cuts: vec![], form: Form::Direct, lies: false };
    for features in [Features::EVENT_IDX, Features::RING_PACKED | Features::VERSION_1 | Features::EVENT_IDX] {
        let setting = Setting {
            features,
            size: 32,
            receive_cuts: vec![],
            receive_room: 600,
            receive_form: Form::Direct,
        };
        let mut world = World::new(&setting);
        let steps = [
            Step::Arm,
            Step::Send(kind(60), 32),
            Step::Flush,
            Step::Take(32),
            Step::Sleep,
            Step::Give(kind(200), 32),
            Step::Receive(32),
            Step::Refill,
        ];
        // All entries of either ring in each round.
        for _ in 0..2100 {
            steps.iter().for_each(|step| step.play(&mut world));
        }
        assert_eq!((world.taken, world.received), (2100 * 32, 2100 * 32));
        world.finish();
    }
}
