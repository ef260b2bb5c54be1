//! Whom a change of the tables concerns: nobody else's cached decision may be another one after it.

use flowtable::flow::{Birth, Flow};
use proptest::prelude::*;

use super::lab::{Draft, Lab, mac, reader};
use super::megaflow::{BITS, Shape, frame, shape};
use super::{FROM_2, TO_2, TO_ALL, out_of, overlay};
use crate::revalidate::is_still_so;
use crate::segment::Network;
use crate::translate::{Silent, translate};

/// The flow that a frame would make.
fn flow(lab: &Lab, frame: &str) -> Flow {
    let birth = Birth { generation: lab.snapshot.generation, pollers: 1, now: lab.now };
    let decision = lab.decide(frame);
    Flow::new(&lab.key(frame), decision, birth)
}

/// Is the flow what a frame would make now?
fn is_current(lab: &Lab, flow: &Flow) -> bool {
    is_still_so(flow, &translate(lab.view(), &flow.key(), &mut Silent), lab.view(), &reader())
}

fn renumber(draft: &mut Draft, segment: &str, to: u32) {
    let Network::Tunnel { id, .. } = &mut draft.named(segment).network else { panic!("{segment}") };
    *id = to;
}

/// Frames into and out of blue, and into and out of red.
fn four() -> [String; 4] {
    [
        format!("in_port=vm1,{TO_ALL}"),
        format!("{},{TO_ALL}", out_of("vx0", "192.0.2.2", 5001)),
        format!("in_port=vm2,{TO_ALL}"),
        format!("{},{TO_ALL}", out_of("gre0", "192.0.2.2", 7)),
    ]
}

#[test]
fn a_renumbered_segment_concerns_its_own_flows_only() {
    let mut lab = Lab::new(overlay);
    let flows = four().map(|frame| flow(&lab, &frame));
    lab.change(|draft| renumber(draft, "blue", 5002));
    assert_eq!(flows.each_ref().map(|flow| lab.snapshot.holds(flow)), [false, false, true, true]);
    assert_eq!(flows[2].generation(), lab.snapshot.generation, "confirmed");
}

#[test]
fn who_was_not_there_is_looked_at_too() {
    let mut lab = Lab::new(overlay);
    let unknown = flow(&lab, &format!("{},{TO_ALL}", out_of("vx0", "192.0.2.2", 5009)));
    let flood = flow(&lab, &format!("in_port=vm1,{TO_2}"));
    lab.change(|draft| {
        draft.segment("more", 9, "vx0 5009");
    });
    assert!(!lab.snapshot.holds(&unknown));
    assert!(lab.snapshot.holds(&flood));
    lab.change(|draft| {
        draft.access("late", 1);
    });
    assert!(!lab.snapshot.holds(&flood), "there is one more to be flooded");
}

#[test]
fn what_is_forgotten_with_a_segment_concerns_who_found_it() {
    let mut lab = Lab::new(overlay);
    lab.send(&format!("{},{FROM_2}", out_of("vx0", "192.0.2.4", 5001)));
    let to_2 = flow(&lab, &format!("in_port=vm1,{TO_2}"));
    lab.change(|draft| draft.named("blue").learning = false);
    assert!(!lab.snapshot.holds(&to_2) && !is_current(&lab, &to_2));
}

/// A table full of static entries learns nobody, so a flow could not teach what it would.
#[test]
fn who_could_not_be_learned_is_looked_at_once_there_is_room() {
    let mut lab = Lab::new(overlay);
    lab.change(|draft| {
        draft.bridges[1].fdb.size = 1;
        let place = draft.id("vm3").into();
        draft.station(1, mac(9), place);
    });
    let frame = format!("in_port=vm1,{TO_ALL}");
    lab.send(&frame);
    let flow = flow(&lab, &frame);
    assert!(!is_current(&lab, &flow));
    lab.change(|draft| _ = draft.bridges[1].static_fdb.pop());
    assert!(!lab.snapshot.holds(&flow), "its next frame must teach");
}

#[test]
fn a_flow_that_missed_many_publications_is_looked_at() {
    let mut lab = Lab::new(overlay);
    let [flow, checked] = [(); 2].map(|()| flow(&lab, &format!("in_port=vm2,{TO_ALL}")));
    for n in 0..100 {
        lab.change(|draft| renumber(draft, "blue", 5001 + n % 2));
        assert!(lab.snapshot.holds(&checked), "{n}");
    }
    assert!(!lab.snapshot.holds(&flow));
    checked.kill();
    assert!(!lab.snapshot.holds(&checked), "the dead stay dead");
}

#[test]
fn what_newer_tables_say_is_of_no_use_to_older_ones() {
    let mut lab = Lab::new(overlay);
    let older = std::mem::take(&mut lab.snapshot);
    lab.snapshot = crate::learn::succeed(&older, older.tables.clone());
    let newer = flow(&lab, &format!("in_port=vm2,{TO_ALL}"));
    assert!(lab.snapshot.holds(&newer) && !older.holds(&newer));
}

#[test]
fn segments_that_share_a_bit_are_both_looked_at() {
    let mut lab = Lab::new(|draft| {
        overlay(draft);
        draft.joined("vm9", 1 + 64 * 64);
        draft.segment("far", 1 + 64 * 64, "gre0 9");
    });
    let frame = format!("in_port=vm9,{TO_ALL}");
    lab.send(&frame);
    let far = flow(&lab, &frame);
    assert!(is_current(&lab, &far));
    lab.change(|draft| renumber(draft, "blue", 5002));
    assert!(
        !lab.snapshot.holds(&far) && is_current(&lab, &far),
        "needlessly, but it costs no more than that"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Some things change, one after the other; some frames come in between.
    #[test]
    fn whom_changes_do_not_concern_is_decided_as_before(
        mut shape in shape(),
        frames in proptest::collection::vec(frame(), 4..24),
        changes in proptest::collection::vec((0..BITS, any::<bool>()), 1..5),
    ) {
        let mut lab = Lab::new(|draft| shape.draw(draft));
        frames.iter().for_each(|frame| drop(lab.send(frame)));
        let flows: Vec<Flow> = frames.iter().map(|frame| flow(&lab, frame)).collect();
        for (bit, look) in changes {
            // What the flows taught, another may have unlearned: that is told otherwise.
            let known: Vec<bool> = flows.iter().map(|flow| is_current(&lab, flow)).collect();
            shape.bits ^= 1 << bit;
            lab.change(|draft| {
                *draft = Draft::default();
                Shape::draw(&shape, draft);
            });
            for ((flow, known), frame) in flows.iter().zip(known).zip(&frames) {
                if look && lab.snapshot.holds(flow) && known {
                    prop_assert!(is_current(&lab, flow), "{} after bit {}", frame, bit);
                }
            }
        }
    }
}
