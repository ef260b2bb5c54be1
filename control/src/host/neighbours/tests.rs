use proptest::prelude::*;

use super::*;

const START: Instant = Instant::from_nanos(1 << 40);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn all(target: IpAddr) -> Question {
    Question { target, to: None }
}

fn ms(ms: u64) -> Instant {
    START + Duration::from_millis(ms)
}

/// A table that knows `MAC` at 10.0.0.128, which is good for 30 s.
fn knowing() -> (Neighbours, IpAddr) {
    let (mut table, address) = (Neighbours::default(), ip("10.0.0.128"));
    assert_eq!(table.ask(address, START), Some(all(address)));
    assert!(table.heard(address, MAC, Weight::Solicited, START));
    (table, address)
}

fn mac(table: &Neighbours) -> Option<MacAddr> {
    table.known().next().map(|(_, mac)| mac)
}

#[test]
fn a_question_is_put_three_times_and_given_up() {
    let (mut table, address) = (Neighbours::default(), ip("10.0.0.1"));
    assert_eq!(table.ask(address, START), Some(all(address)));
    assert_eq!(table.ask(address, ms(500)), None, "it is under way");
    assert_eq!((table.deadline(), table.turn(ms(999))), (Some(ms(1000)), (vec![], false)));
    assert_eq!(table.turn(ms(1000)).0, [all(address)]);
    assert_eq!(table.turn(ms(2000)).0, [all(address)]);
    assert_eq!(table.turn(ms(3000)), (vec![], true));
    assert!(matches!(table.iter().next().unwrap().1.state, State::Failed(_)));
    assert_eq!(table.ask(address, ms(3001)), Some(all(address)), "asked again on demand");
}

#[test]
fn what_did_not_answer_is_forgotten_unless_it_is_wanted() {
    let (wanted, other) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let mut table = Neighbours::default();
    assert_eq!(table.keep([wanted].into(), START), [all(wanted)]);
    assert_eq!(table.keep([wanted].into(), START), [], "nothing new");
    table.ask(other, START);
    (1..=3).for_each(|s| _ = table.turn(ms(s * 1000)));
    assert_eq!(table.iter().count(), 2);
    assert_eq!(table.turn(ms(33_000)).0, [all(wanted)]);
    assert_eq!(table.iter().map(|(address, _)| address).collect::<Vec<_>>(), [wanted]);
    table.keep(BTreeSet::new(), ms(33_000));
    (34..=70).for_each(|s| _ = table.turn(ms(s * 1000)));
    assert_eq!((table.iter().count(), table.deadline()), (0, None));
}

#[test]
fn a_neighbour_is_probed_alone_then_looked_for_then_lost() {
    let (mut table, address) = knowing();
    assert_eq!(table.deadline(), Some(ms(1000)), "a timer that went stale costs one look");
    assert_eq!(table.turn(ms(1000)), (vec![], false));
    assert_eq!(table.deadline(), Some(ms(30_000)));
    let probe = Question { target: address, to: Some(MAC) };
    for s in [30, 31, 32] {
        assert_eq!((table.turn(ms(s * 1000)).0, mac(&table)), (vec![probe], Some(MAC)), "{s}");
    }
    assert_eq!(table.turn(ms(33_000)), (vec![all(address)], true));
    assert_eq!(mac(&table), None);
    assert!(table.heard(address, OTHER, Weight::Solicited, ms(33_500)), "another has it now");
    assert_eq!(mac(&table), Some(OTHER));
}

#[test]
fn an_answer_to_a_probe_keeps_it() {
    let (mut table, address) = knowing();
    table.turn(ms(30_000));
    assert!(!table.heard(address, MAC, Weight::Solicited, ms(30_001)), "nothing new");
    assert_eq!(table.turn(ms(33_000)), (vec![], false));
    assert_eq!(table.deadline(), Some(ms(60_001)));
}

#[test]
fn nobody_is_remembered_who_was_not_asked_for() {
    let mut table = Neighbours::default();
    assert!(!table.heard(ip("10.0.0.1"), MAC, Weight::Solicited, START));
    assert_eq!(table.iter().count(), 0);
}

#[test]
fn a_new_mac_is_taken_once_a_second_and_checked() {
    let (mut table, address) = knowing();
    assert!(!table.heard(address, OTHER, Weight::Override, ms(999)), "too soon");
    assert!(!table.heard(address, OTHER, Weight::Hint, ms(2000)), "RFC 4861 section 7.2.5: no override flag");
    assert!(table.heard(address, OTHER, Weight::Override, ms(2000)));
    assert!(!table.heard(address, MAC, Weight::Override, ms(2001)));
    assert_eq!(mac(&table), Some(OTHER));
    let probe = Question { target: address, to: Some(OTHER) };
    table.turn(ms(6999));
    assert_eq!(table.turn(ms(7000)).0, [probe], "nobody vouched for it");
}

#[test]
fn what_the_operator_says_stays() {
    let (mut table, address) = knowing();
    table.fix(address, OTHER, START);
    assert!(!table.heard(address, MAC, Weight::Override, ms(5000)));
    table.turn(ms(3_600_000));
    assert_eq!((mac(&table), table.deadline()), (Some(OTHER), None));
    table.keep([address].into(), START);
    assert_eq!(table.flush(START), [all(address)]);
}

#[test]
fn a_new_wire_is_asked_at_once() {
    let (mut table, address) = knowing();
    let missing = ip("10.0.0.2");
    table.keep([address, missing].into(), START);
    (1..=3).for_each(|s| _ = table.turn(ms(s * 1000)));
    table.again(ms(5000));
    assert_eq!(table.turn(ms(5000)).0, [all(missing)]);
}

#[test]
fn questions_on_demand_are_bounded_and_those_given_up_make_room() {
    let mut table = Neighbours::default();
    let address = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
    let asked = (0..1000).filter(|n| table.ask(address(*n), START).is_some()).count();
    assert_eq!(asked, UNANSWERED);
    assert!(
        table.keep([ip("192.0.2.1")].into(), START).len() == 1,
        "those wanted all the time are not among them"
    );
    (1..=3).for_each(|s| _ = table.turn(ms(s * 1000)));
    assert!(table.ask(address(5000), ms(3000)).is_some());
    assert_eq!(table.iter().count(), UNANSWERED + 1);
    assert!(table.keep((0..10_000).map(address).collect(), START).len() <= LIMIT);
    assert!(table.iter().count() <= LIMIT);
}

#[derive(Debug, Clone)]
enum Step {
    Ask(u8),
    Heard(u8, u8, u8),
    Keep(Vec<u8>),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let address = 0u8..6;
    prop_oneof![
        address.clone().prop_map(Step::Ask),
        (address.clone(), 0u8..3, 0u8..3).prop_map(|(a, m, w)| Step::Heard(a, m, w)),
        proptest::collection::vec(address, 0..4).prop_map(Step::Keep),
        (0u64..40_000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens, nothing is due in the past after a turn, the wanted are there, nobody else was invented, and
    /// left alone the table comes to hold but the wanted.
    #[test]
    fn the_table_is_sound(steps in proptest::collection::vec(step(), 0..60)) {
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let (mut table, mut now, mut mentioned, mut wanted) = (Neighbours::default(), START, BTreeSet::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Ask(a) => { mentioned.insert(address(a)); table.ask(address(a), now); }
                Step::Heard(a, m, w) => {
                    let weight = [Weight::Solicited, Weight::Override, Weight::Hint][usize::from(w)];
                    table.heard(address(a), MacAddr([2, 0, 0, 0, 0, m]), weight, now);
                }
                Step::Keep(all) => {
                    wanted = all.into_iter().map(address).collect();
                    mentioned.extend(&wanted);
                    table.keep(wanted.clone(), now);
                }
                Step::Wait(ms) => now = now + Duration::from_millis(ms),
            }
            table.turn(now);
            prop_assert!(table.deadline().is_none_or(|due| due > now));
            let there: BTreeSet<_> = table.iter().map(|(a, _)| a).collect();
            prop_assert!(there.is_superset(&wanted) && there.is_subset(&mentioned));
        }
        for _ in 0..200 {
            now = now + PATIENCE;
            table.turn(now);
        }
        let there: BTreeSet<_> = table.iter().map(|(a, _)| a).collect();
        prop_assert_eq!(there, wanted);
    }
}
