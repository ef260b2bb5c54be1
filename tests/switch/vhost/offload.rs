//! What guests leave to the switch, and what the switch leaves to guests: whole to who takes it, done for who does not.

use dataplane::port::memory::Delivered;
use dataplane::virtio::features::Features;
use encap::field::EtherType;
use encap::offload::{Csum, Gso, Offload};
use flowtable::action::DropReason;
use proptest::prelude::*;

use super::giants::{Giant, checked, datagram6, giants, partial6, tcp4};
use super::vm::{ALL, BARE, Build, CSUM, Vm, WHOLE};
use super::{Vms, drain, offload, plain, send};
use crate::frames::{mac, partial, tagged, tcp, tcp6, udp, unicast, with_tag};
use crate::overlay::big::payload;
use crate::rack::{Rack, both_ways};

/// The ports with VMs, and what these are.
fn builds() -> Vec<(&'static str, Build)> {
    let some = CSUM | Features::GUEST_TSO4 | Features::GUEST_ECN;
    vec![
        ("a", Build::of(ALL)),
        ("merged", Build::of(ALL)),
        ("packed", Build::of(ALL | Features::IN_ORDER).packed()),
        ("whole", Build::of(ALL.without(Features::MRG_RXBUF)).receiving(WHOLE).indirect()),
        ("sum", Build::of(CSUM)),
        ("some", Build::of(some).packed()),
        ("bare", Build::of(BARE)),
        ("legacy", Build::of(BARE.without(Features::VERSION_1 | Features::MQ))),
    ]
}

/// Those that take giants, those that take checksums, and all others; `card` and `wire` are cables.
const WHOLES: [&str; 4] = ["merged", "packed", "whole", "card"];
const SUMS: [&str; 2] = ["sum", "some"];
const BARES: [&str; 3] = ["bare", "legacy", "wire"];

/// All of them trunks, so that guests may have tags of their own.
fn config(settings: &str) -> String {
    let names = builds().into_iter().map(|(name, _)| name).chain(["card", "wire"]);
    let ports: Vec<String> = names.map(|name| format!("{{ name = '{name}'{settings} }}")).collect();
    format!("[[bridge]]\nname = 'br0'\nport = [{}]", ports.join(", "))
}

fn boot(rack: &mut Rack) -> Vms {
    offload(rack, "card", super::ALL);
    builds().into_iter().map(|(name, build)| (name, Vm::new(rack, name, &build))).collect()
}

/// The segments of a giant are complete, carry the same, fit a standard wire behind `tags` bytes of tags, and only the first
/// of them still says that the sender has slowed down (RFC 3168 section 6.1.2).
#[track_caller]
fn assert_cut(port: &str, segments: &[Delivered], giant: &Giant, tags: usize) {
    assert_eq!(segments.len(), giant.segments(), "{port}");
    assert!(segments.iter().all(|s| s.offload.is_none() && s.bytes.len() <= 1514 + tags), "{port}");
    let parts: Vec<_> = segments.iter().map(|segment| checked(&segment.bytes)).collect();
    let cut: Vec<u8> = parts.iter().flat_map(|(payload, _)| payload.iter().copied()).collect();
    assert!(cut == giant.payload, "{port}: another payload");
    let tcp = matches!(giant.work.gso, Gso::Tcp4 { .. } | Gso::Tcp6 { .. });
    // The CWR flag is in byte 13 of the TCP header.
    let Csum::Partial { start, .. } = giant.work.csum else { unreachable!("giants have one") };
    let cwr = tcp && giant.frame[usize::from(start) + 13] & 0x80 != 0;
    assert!(parts.iter().enumerate().all(|(place, part)| part.1 == (cwr && place == 0)), "{port}: CWR");
}

#[test]
fn a_giant_of_a_guest_goes_whole_to_who_takes_it_and_is_cut_for_who_does_not() {
    both_ways(&config(""), |rack| {
        let vms = boot(rack);
        for giant in giants().into_iter().flat_map(|giant| [giant.tagged(0x600a), giant]) {
            let tags = if giant.frame[12..14] == [0x81, 0x00] { 4 } else { 0 };
            let out = send(rack, &vms, "a", &giant.frame, giant.work);
            assert_eq!(out.len(), 9, "{rack:?}");
            for port in WHOLES {
                let whole = Delivered { bytes: giant.frame.clone(), offload: giant.work };
                assert!(out[port] == [whole], "{port}: {} frames of {:?}", out[port].len(), giant.work);
            }
            for port in SUMS.into_iter().chain(BARES) {
                assert_cut(port, &out[port], &giant, tags);
            }
        }
    });
}

#[test]
fn a_partial_checksum_is_left_to_who_takes_it_and_completed_for_who_does_not() {
    both_ways(&config(", mtu = 9000"), |rack| {
        let vms = boot(rack);
        let frames = [
            (tcp((1, 40_000), (2, 80), &payload(333)), 16),
            (udp((mac(1), 4000), (mac(2), 53), &payload(8000)), 6),
            (tcp6(1, 2, &payload(1200)), 16),
            (datagram6(&payload(1)), 6),
        ];
        for (whole, offset) in frames {
            let v6 = whole[12..14] == [0x86, 0xdd];
            let proto = if offset == 16 { 6 } else { 17 };
            let (frame, csum) =
                if v6 { partial6(whole.clone(), proto, offset) } else { partial(whole.clone(), offset) };
            let work = Offload { csum, gso: Gso::None };
            for (frame, whole, work) in
                [(tagged(&frame, 7), tagged(&whole, 7), work.shifted(4).unwrap()), (frame, whole, work)]
            {
                let mut out = send(rack, &vms, "a", &frame, work);
                for port in WHOLES.into_iter().chain(SUMS) {
                    // Who has buffers of 2 KiB that cannot be merged has no room for the long one.
                    let fits = !SUMS.contains(&port) || frame.len() <= 2036;
                    let got = out.remove(port).unwrap_or_default();
                    assert_eq!(
                        got,
                        vec![Delivered { bytes: frame.clone(), offload: work }; usize::from(fits)],
                        "{port}"
                    );
                }
                for port in BARES {
                    let fits = port == "wire" || frame.len() <= 2036;
                    let got = out.remove(port).unwrap_or_default();
                    assert_eq!(got, vec![plain(&whole); usize::from(fits)], "{port}");
                }
            }
        }
    });
}

#[test]
fn what_a_card_delivers_whole_reaches_guests_as_what_guests_send() {
    both_ways(&config(""), |rack| {
        let vms = boot(rack);
        for giant in giants() {
            assert!(rack.cable("card").inject_offload(&giant.frame, giant.work));
            rack.settle();
            let out = drain(rack, &vms);
            for port in ["a", "merged", "packed", "whole"] {
                assert!(
                    out[port] == [Delivered { bytes: giant.frame.clone(), offload: giant.work }],
                    "{port}"
                );
            }
            for port in SUMS.into_iter().chain(BARES) {
                assert_cut(port, &out[port], &giant, 0);
            }
        }
    });
}

#[test]
fn jumbo_frames_need_a_buffer_or_many() {
    both_ways(&config(", mtu = 9000"), |rack| {
        let vms = boot(rack);
        let mut frame = unicast(1, 2);
        frame.resize(9014, 0x5a);
        for sent in [frame.clone(), tagged(&frame, 7)] {
            let before = rack.switch.total_stats().dropped(DropReason::TxError);
            let out = send(rack, &vms, "a", &sent, Offload::NONE);
            assert_eq!(out.keys().collect::<Vec<_>>(), ["card", "merged", "packed", "whole", "wire"]);
            assert!(out.values().all(|got| *got == [plain(&sent)]));
            // Those without a place for it: it will never fit, so nothing waits for room.
            let lost = rack.switch.total_stats().dropped(DropReason::TxError) - before;
            assert_eq!(lost, 4, "{rack:?}");
        }
        // And what is too long for the ports goes nowhere.
        frame.resize(9015, 0);
        let before = rack.switch.total_stats().dropped(DropReason::OverMtu);
        assert!(send(rack, &vms, "a", &frame, Offload::NONE).is_empty());
        assert_eq!(rack.switch.total_stats().dropped(DropReason::OverMtu) - before, 9);
    });
}

#[test]
fn a_port_with_a_small_mtu_gets_nothing_longer_of_giants_the_segments_count() {
    let config = r#"
        [[bridge]]
        name = "br0"
        port = [{ name = "a", mtu = 9000 }, { name = "b" }, { name = "c", mtu = 9000 }]
    "#;
    both_ways(config, |rack| {
        let vms: Vms =
            ["a", "b", "c"].into_iter().map(|port| (port, Vm::new(rack, port, &Build::of(ALL)))).collect();
        let mut frame = unicast(1, 2);
        frame.resize(1515, 0);
        for (mss, len, to) in
            [(0, 1514, 2), (0, 1515, 1), (1460, 0, 2), (1461, 0, 1), (8960, 0, 1), (8961, 0, 0)]
        {
            let before = rack.switch.total_stats().dropped(DropReason::OverMtu);
            let out = match mss {
                0 => send(rack, &vms, "a", &frame[..len], Offload::NONE),
                _ => {
                    let giant = tcp4(40_000, mss, 0);
                    send(rack, &vms, "a", &giant.frame, giant.work)
                }
            };
            assert_eq!(out.len(), to, "{mss} {len}: {rack:?}");
            assert!(out.values().all(|got| got.len() == 1));
            let lost = rack.switch.total_stats().dropped(DropReason::OverMtu) - before;
            assert_eq!(lost, 2 - to as u64);
        }
    });
}

/// Access ports, a trunk, native VLANs and tunnels of QinQ: guests on all of them, all of which take everything.
const MODES: &str = r#"
    [[bridge]]
    name = "br0"
    port = [
        { name = "access", tag = 10 },
        { name = "other", tag = 10 },
        { name = "trunk" },
        { name = "native", vlan-mode = "native-untagged", tag = 10 },
        { name = "qinq", vlan-mode = "dot1q-tunnel", tag = 10 },
        { name = "wire" },
        { name = "plainqinq", vlan-mode = "dot1q-tunnel", tag = 10 },
    ]
"#;

#[test]
fn the_place_of_the_checksum_moves_with_tags() {
    both_ways(MODES, |rack| {
        let ports = ["access", "other", "trunk", "native", "qinq"];
        let vms: Vms = ports.into_iter().map(|port| (port, Vm::new(rack, port, &Build::of(ALL)))).collect();
        for giant in giants() {
            let whole = |frame: Vec<u8>, more: i32| {
                let offload = giant.work.shifted(more as isize).unwrap();
                vec![Delivered { bytes: frame, offload }]
            };
            // Pushed: for the trunk, and no other.
            let mut out = send(rack, &vms, "access", &giant.frame, giant.work);
            assert!(out.remove("trunk") == Some(whole(tagged(&giant.frame, 10), 4)));
            assert!(
                ["other", "native", "qinq"].iter().all(|port| out[*port] == whole(giant.frame.clone(), 0))
            );
            assert_cut("wire", &out["wire"], &giant.tagged(10), 4);
            assert!(out["wire"].iter().all(|segment| segment.bytes[12..16] == [0x81, 0, 0, 10]));
            assert_cut("plainqinq", &out["plainqinq"], &giant, 0);
            // Popped: from the trunk.
            let sent = giant.tagged(10);
            let out = send(rack, &vms, "trunk", &sent.frame, sent.work);
            assert!(
                ["access", "other", "native", "qinq"]
                    .iter()
                    .all(|port| out[*port] == whole(giant.frame.clone(), 0))
            );
            // In another tag: what a customer of QinQ has is its own affair.
            let sent = giant.tagged(77);
            let out = send(rack, &vms, "qinq", &sent.frame, sent.work);
            let double = with_tag(&sent.frame, EtherType::QINQ, 10);
            assert!(out["trunk"] == whole(double.clone(), 8), "{:?}", &out["trunk"][0].bytes[..24]);
            assert_cut("wire", &out["wire"], &giant, 8);
            assert_cut("plainqinq", &out["plainqinq"], &giant, 4);
            let out = send(rack, &vms, "trunk", &double, giant.work.shifted(8).unwrap());
            assert!(out["qinq"] == whole(sent.frame, 4));
        }
    });
}

/// What may be left to do, right or wrong: a guest may write anything.
fn lie() -> impl Strategy<Value = Offload> {
    let csum = (14u16..200, prop_oneof![Just(16u16), Just(6), 0..100u16])
        .prop_map(|(start, offset)| Csum::Partial { start, offset });
    let size = prop_oneof![1..2000u16, any::<u16>()];
    let gso = (size, 0..4).prop_map(|(size, kind)| match kind {
        0 => Gso::None,
        1 => Gso::Tcp4 { mss: size },
        2 => Gso::Tcp6 { mss: size },
        _ => Gso::Udp { size },
    });
    (csum, gso).prop_map(|(csum, gso)| Offload { csum, gso })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    /// Whatever a guest says of its frames, they arrive as it said, or are cut, or are dropped and counted.
    #[test]
    fn lies_about_frames_are_counted(lies in prop::collection::vec((lie(), 0..11usize, 60..70_000usize), 1..40)) {
        let mut rack = Rack::new(&config(""), dataplane::poller::Caches::On);
        let vms = boot(&mut rack);
        let giants = giants();
        for (lie, giant, len) in lies {
            let frame = &giants[giant].frame;
            let frame = &frame[..len.min(frame.len())];
            let out = send(&mut rack, &vms, "a", frame, lie);
            for port in ["merged", "packed", "whole"] {
                let as_said = |got: &Vec<Delivered>| got.iter().all(|got| got.bytes == frame && got.offload == lie);
                prop_assert!(out.get(port).is_none_or(as_said));
            }
            prop_assert!(BARES.iter().filter_map(|port| out.get(*port)).flatten().all(|got| got.offload.is_none()));
        }
        let honest = unicast(1, 2);
        let out = send(&mut rack, &vms, "a", &honest, Offload::NONE);
        prop_assert!(out.len() == 9 && out.values().all(|got| *got == [plain(&honest)]));
        rack.audit();
    }
}

#[test]
fn a_full_ring_of_giants_goes_through() {
    both_ways(&config(""), |rack| {
        let vms = boot(rack);
        let giant = tcp4(65_495, 1448, 0);
        let mut got = [0; 3];
        for round in 0..4 {
            // As many as wait for the guest at `packed`, whose mergeable buffers hold three of them, or a few.
            let sent = (0..2 + round % 2).filter(|_| vms["a"].send_by(0, &giant.frame, giant.work)).count();
            rack.settle();
            let out = drain(rack, &vms);
            for (got, port) in got.iter_mut().zip(WHOLES) {
                assert_eq!(out[port].len(), sent, "{port} {rack:?}");
                *got += out[port].len();
            }
        }
        assert_eq!(got, [10; 3]);
        assert_eq!(rack.stats("merged").dropped(DropReason::TxFull), 0);
    });
}
