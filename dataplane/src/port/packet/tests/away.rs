//! What a queue holds while nobody asks it: frames that come while its poller is away, and leave once it is back.

use super::*;
use crate::port::rig::FarSide;

/// So many frames come while nobody asks; how many of them are there then.
fn comes(port: &PacketPort, far: &RawSocket, count: u16) -> usize {
    let inward = port.inward.as_ref().unwrap();
    for number in 0..count {
        far.send(&numbered(number, 60));
        if number % 64 == 63 {
            wait("frames to arrive", || (inward.waiting() > usize::from(number)).then_some(()));
        }
    }
    inward.waiting()
}

/// Asks until there is no more, and sends what was received; how many arrive, in order.
fn goes(near: &mut PacketPort, away: &mut PacketPort, far: &mut RawSocket) -> u16 {
    let (_, mut frames) = pool();
    let (mut sent, mut arrived) = (0, 0);
    loop {
        let mut batch = Batch::new();
        near.rx(&mut frames, &mut batch).unwrap();
        if batch.is_empty() {
            return arrived;
        }
        sent += batch.len() as u16;
        away.tx(&mut frames, &mut batch).unwrap();
        assert!(batch.is_empty(), "{} found no room", batch.len());
        wait("what was sent", || {
            while let Some(frame) = FarSide::receive(far) {
                assert_eq!(frame, numbered(arrived, 60));
                arrived += 1;
            }
            (arrived == sent).then_some(())
        });
    }
}

#[test]
fn all_that_comes_while_nobody_asks_leaves_later() {
    in_namespace(|| {
        for n in 1..=2 {
            ip(&format!("link add near{n} type veth peer name far{n}"));
            ["near", "far"].iter().for_each(|end| ip(&format!("link set {end}{n} up")));
        }
        let [mut near, mut away] = ["near1", "near2"].map(one);
        let [from, mut to] = ["far1", "far2"].map(RawSocket::open);
        for count in [512, 64, 512] {
            assert_eq!(comes(&near, &from, count), usize::from(count));
            assert_eq!(goes(&mut near, &mut away, &mut to), count);
        }
        assert_eq!(near.counters().rx_missed, 0);
        assert_eq!(comes(&near, &from, 512), 512);
        from.send(&numbered(512, 60));
        wait("one too many to be lost", || (near.counters().rx_missed == 1).then_some(()));
        assert_eq!(goes(&mut near, &mut away, &mut to), 512);
    });
}
