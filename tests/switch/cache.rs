//! The flow cache seen from outside: how wide its entries are, how many there may be, and who pays for them.

use std::time::Duration;

use dataplane::poller::Caches;
use dataplane::switch::SwitchConfig;
use encap::field::MacAddr;
use flowtable::action::DropReason;
use flowtable::flow::Flow;
use flowtable::text::print;

use crate::THREE;
use crate::frames::{broadcast, frame, mac, tagged, tcp, udp, unicast};
use crate::rack::{CABLE, Rack};

/// Connections made in each direction.
const CONNECTIONS: u32 = 50_000;

fn rack(settings: SwitchConfig) -> Rack {
    Rack::with(THREE, settings)
}

fn with_flows(flows: usize) -> Rack {
    rack(SwitchConfig { flows, ..SwitchConfig::default() })
}

/// A host that was never seen.
fn stranger(n: u32) -> MacAddr {
    let [_, a, b, c] = n.to_be_bytes();
    MacAddr([2, 1, 0, a, b, c])
}

/// Sends broadcasts of this many new hosts; how many came out of `b`.
fn strangers(rack: &mut Rack, from: &str, numbers: std::ops::Range<u32>) -> usize {
    numbers
        .map(|n| rack.send(from, &[frame(stranger(n), MacAddr::BROADCAST)]).get("b").map_or(0, Vec::len))
        .sum()
}

/// What the poller counted.
fn count(rack: &Rack, counter: impl Fn(&dataplane::stats::PollerCounters) -> u64) -> u64 {
    rack.pollers.iter().map(|poller| counter(poller.counters())).sum()
}

#[test]
fn connections_between_two_hosts_are_two_megaflows() {
    let mut rack = rack(SwitchConfig::default());
    rack.send("a", &[broadcast(1)]);
    rack.send("b", &[broadcast(2)]);
    rack.switch.flush_flows();
    let before = count(&rack, |c| c.upcalls.get());
    let connection = |n: u32, (from, to)| match (n % 2, n as u16, (n >> 16) as u16 + 1) {
        (0, port, other) => tcp((from, port), (to, other), &[]),
        (_, port, other) => udp((mac(from), port), (mac(to), other), &[]),
    };
    for chunk in (0..CONNECTIONS).collect::<Vec<_>>().chunks(CABLE) {
        for (port, hosts) in [("a", (1, 2)), ("b", (2, 1))] {
            chunk.iter().for_each(|n| assert!(rack.cable(port).inject(&connection(*n, hosts))));
        }
        rack.settle();
        rack.drain();
    }
    let flows = rack.switch.flows();
    assert_eq!(flows.len(), 2, "{rack:?}");
    assert_eq!(count(&rack, |c| c.upcalls.get()) - before, 2);
    assert!(flows.iter().all(|flow| flow.totals().frames == u64::from(CONNECTIONS)), "{rack:?}");
    // So a million connections are two megaflows as well: no decision looked at anything but these fields.
    let text = |flow: &Flow| print(&flow.key(), flow.mask(), &|_| None);
    let mut texts: Vec<String> = flows.iter().map(text).collect();
    texts.sort();
    let there = "in_port=0,vlan_tci=0x0000/0x1000,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02";
    let back = "in_port=1,vlan_tci=0x0000/0x1000,dl_src=02:00:00:00:00:02,dl_dst=02:00:00:00:00:01";
    assert_eq!(texts, [there, back]);
    rack.audit();
}

#[test]
fn the_flow_limit_holds_and_costs_no_frame() {
    let mut rack = with_flows(20);
    assert_eq!(strangers(&mut rack, "a", 0..100), 100);
    assert_eq!(rack.switch.flows().len(), 20, "{rack:?}");
    assert_eq!(count(&rack, |c| c.not_installed.get()), 80);
    assert_eq!(rack.switch.megaflows().counters().full, 80);
    rack.audit();
}

#[test]
fn the_mask_limit_holds_and_costs_no_frame() {
    let mut rack = rack(SwitchConfig { masks: 1, ..SwitchConfig::default() });
    rack.expect_at("a", &broadcast(1), &["b", "c"]);
    rack.expect_at("a", &tagged(&broadcast(1), 10), &["b", "c"]);
    rack.expect_drop("a", &frame(MacAddr::BROADCAST, mac(1)), DropReason::SourceMulticast);
    assert_eq!(rack.switch.megaflows().masks(), 1, "{rack:?}");
    assert!(rack.switch.megaflows().counters().mask_limit > 0);
    rack.audit();
}

#[test]
fn who_holds_few_flows_takes_the_place_of_who_holds_many() {
    let mut rack = with_flows(20);
    strangers(&mut rack, "a", 0..50);
    assert_eq!(rack.flows("a").len(), 20);
    rack.expect_at("b", &broadcast(2), &["a", "c"]);
    rack.expect_at("c", &broadcast(3), &["a", "b"]);
    assert_eq!(["a", "b", "c"].map(|port| rack.flows(port).len()), [18, 1, 1], "{rack:?}");
    strangers(&mut rack, "a", 50..100);
    assert_eq!(["a", "b", "c"].map(|port| rack.flows(port).len()), [18, 1, 1], "{rack:?}");
    assert_eq!(rack.switch.megaflows().counters().evicted, 2);
    rack.audit();
}

#[test]
fn a_flow_goes_after_ten_seconds_without_a_frame() {
    let mut rack = rack(SwitchConfig::default());
    rack.send("b", &[broadcast(2)]);
    rack.expect_at("a", &unicast(1, 2), &["b"]);
    for _ in 0..6 {
        rack.wait(Duration::from_secs(5));
        rack.send("a", &[unicast(1, 2)]);
    }
    assert_eq!((rack.flows("a").len(), rack.flows("b").len()), (1, 0), "{rack:?}");
    rack.wait(Duration::from_secs(9));
    assert_eq!(rack.flows("a").len(), 1, "{rack:?}");
    rack.wait(Duration::from_secs(3));
    assert_eq!(rack.switch.flows().len(), 0, "{rack:?}");
    assert_eq!(rack.switch.megaflows().masks(), 0);
}

/// New stations all the time mean changes to look at all the time; the unused flows go nonetheless, and the
/// stations of used ones stay known.
#[test]
fn a_stream_of_strangers_does_not_keep_the_cache_from_its_upkeep() {
    let mut rack = rack(SwitchConfig::default());
    rack.send("c", &[broadcast(3)]);
    rack.send("b", &[broadcast(2)]);
    rack.expect_at("b", &unicast(2, 3), &["c"]);
    rack.expect_at("a", &unicast(1, 2), &["b"]);
    for n in 0..700 {
        rack.now = rack.now + Duration::from_millis(500);
        // One turn at a time: a change is still being looked at when the next one comes.
        assert!(rack.cable("a").inject(&frame(stranger(n), mac(9))));
        assert!(rack.cable("b").inject(&unicast(2, 3)));
        rack.turn(0);
        rack.drain();
    }
    rack.settle();
    rack.drain();
    assert!(rack.flows("a").len() < 40, "{} flows, of 20 in the last ten seconds", rack.flows("a").len());
    rack.expect_at("a", &unicast(1, 2), &["b"]);
    rack.audit();
}

/// `a` and `b` may cause 100 upcalls a second, in bursts of ten.
const BUDGET: &str = r#"
    [[bridge]]
    name = "br0"
    port = [{ name = "a", upcall-rate = 100 }, { name = "b", upcall-rate = 100 }, { name = "c" }]
"#;

#[test]
fn a_port_that_floods_new_stations_spends_its_own_budget() {
    let mut rack = Rack::new(BUDGET, Caches::On);
    assert_eq!(strangers(&mut rack, "a", 0..200), 10);
    assert_eq!(rack.stats("a").dropped(DropReason::UpcallBudget), 190, "{rack:?}");
    rack.expect_at("b", &broadcast(2), &["a", "c"]);
    rack.expect_at("c", &broadcast(3), &["a", "b"]);
    assert_eq!(strangers(&mut rack, "a", 0..10), 10, "what is cached needs no budget");
    rack.wait(Duration::from_millis(50));
    assert_eq!(strangers(&mut rack, "a", 200..300), 5);
    rack.wait(Duration::from_secs(1));
    assert_eq!(strangers(&mut rack, "a", 300..400), 10);
    rack.audit();
}

#[test]
fn every_layer_of_the_cache_decides_its_share() {
    let mut rack = rack(SwitchConfig::default());
    rack.send("b", &[broadcast(2)]);
    let connection = |port| tcp((1, port), (2, 80), &[]);
    for port in [1, 1, 1, 2, 2, 3] {
        rack.send("a", &[connection(port)]);
    }
    let counted = [
        count(&rack, |c| c.upcalls.get()),
        count(&rack, |c| c.megaflow_hits.get()),
        count(&rack, |c| c.exact_hits.get()),
    ];
    // The first of all, and the broadcast, are new to both caches, the second frame to the exact-match cache. That
    // compares what some mask looks at: to it another connection is the same again.
    assert_eq!(counted, [2, 1, 4], "{rack:?}");
}

#[test]
fn a_batch_of_one_flow_is_one_group_and_keeps_its_order() {
    let mut rack = rack(SwitchConfig::default());
    rack.send("b", &[broadcast(2), broadcast(4)]);
    let frames: Vec<Vec<u8>> = (0..64).map(|n| tcp((1, 1), (2 + 2 * (n % 2), 80), &[n])).collect();
    for _ in 0..2 {
        let out = rack.send("a", &frames).remove("b").unwrap();
        let of = |to: u8| out.iter().filter(move |frame| frame[5] == to).cloned().collect::<Vec<_>>();
        let sent = |odd: usize| frames.iter().skip(odd).step_by(2).cloned().collect::<Vec<_>>();
        assert_eq!((of(2), of(4)), (sent(0), sent(1)));
    }
    rack.audit();
}
