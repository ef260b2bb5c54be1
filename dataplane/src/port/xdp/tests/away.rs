//! What a queue holds while nobody asks it: frames that come while its poller is away, and leave once it is back.

use super::*;

/// Two ports of a pool, as a switch would have them, and the far ends of their cables.
struct Pair {
    near: Side,
    away: Side,
    from: RawSocket,
    to: RawSocket,
}

impl Pair {
    fn new(pool: &Arc<FramePool>) -> Pair {
        ["1", "2"].iter().for_each(|n| veth(&format!("va{n}"), &format!("vb{n}"), 1));
        let [near, away] = ["va1", "va2"].map(|name| Side::on(pool, name, Mode::Native));
        let [from, to] = ["vb1", "vb2"].map(RawSocket::open);
        Pair { near, away, from, to }
    }

    /// So many frames come while nobody asks: how many of them, in order, are there then.
    fn comes(&mut self, count: u16) -> usize {
        let mut waiting = 0;
        for number in 0..count {
            self.from.send(&numbered(number, 60));
            if number % 64 == 63 || number + 1 == count {
                waiting = self.near.waits_for(usize::from(number) + 1);
            }
        }
        waiting
    }

    /// Asks until there is no more, and sends what was received; how many arrive, in order.
    fn goes(&mut self) -> u16 {
        let (mut sent, mut arrived) = (0, 0);
        loop {
            let mut batch = Batch::new();
            self.near.port.rx(&mut self.near.frames, &mut batch).unwrap();
            let count = batch.len() as u16;
            sent += count;
            self.away.port.tx(&mut self.away.frames, &mut batch).unwrap();
            assert!(batch.is_empty(), "{} found no room", batch.len());
            assert!(!self.away.port.arm() || count > 0, "nothing is left to do");
            wait("what was sent", || {
                while let Some(frame) = FarSide::receive(&mut self.to) {
                    assert_eq!(frame, numbered(arrived, 60));
                    arrived += 1;
                }
                (arrived == sent).then_some(())
            });
            if count == 0 {
                return arrived;
            }
        }
    }

    fn lost(&mut self) -> u64 {
        self.near.port.counters().rx_missed
    }

    fn close(self) {
        let pool = self.near.frames.pool().clone();
        let Pair { near, away, .. } = self;
        for mut side in [near, away] {
            side.port.close(&mut side.frames);
        }
        rig::wait_for_chunks(&pool);
    }
}

impl Side {
    /// How many frames wait, once that is so many, or others were lost.
    fn waits_for(&mut self, count: usize) -> usize {
        wait("frames to arrive, or to be lost", || {
            let queue = self.port.queue().unwrap();
            let (waiting, lost) = (queue.waiting(), queue.counters().rx_missed as usize);
            (waiting + lost >= count).then_some(waiting)
        })
    }
}

/// Frames of a pool that somebody else has.
struct Hoard {
    frames: FrameCache,
    taken: Vec<Frame>,
}

impl Hoard {
    fn of(pool: &Arc<FramePool>, count: usize) -> Hoard {
        let mut frames = FrameCache::new(pool.clone());
        let taken = (0..count).map(|_| frames.alloc().unwrap()).collect();
        Hoard { frames, taken }
    }

    fn give_back(mut self) {
        self.taken.into_iter().for_each(|frame| self.frames.free(frame));
    }
}

#[test]
fn all_that_comes_while_nobody_asks_leaves_later() {
    as_root(|| {
        let pool = FramePool::new(PoolConfig { small: 16_384, big: 16, memory: Memory::Umem }).unwrap();
        let mut pair = Pair::new(&pool);
        // A queue that never had a backlog holds its share of the pool,
        assert_eq!((pair.comes(513), pair.lost(), pair.goes()), (512, 1, 512));
        // and one that had some holds by and by what Open vSwitch's does.
        for count in [512, 1024, 1024, 2048] {
            assert_eq!((pair.comes(count), pair.goes()), (count.into(), count));
        }
        assert_eq!((pair.comes(2049), pair.lost(), pair.goes()), (2048, 2, 2048));
        pair.close();
    });
}

#[test]
fn who_had_no_backlog_for_long_holds_its_share_again() {
    as_root(|| {
        let pool = FramePool::new(PoolConfig { small: 16_384, big: 16, memory: Memory::Umem }).unwrap();
        let mut pair = Pair::new(&pool);
        for count in [512, 512, 1024] {
            assert_eq!((pair.comes(count), pair.goes()), (count.into(), count));
        }
        (0..30).for_each(|_| assert_eq!(pair.lost(), 0));
        // What the kernel has it has until it is used.
        for _ in 0..32 {
            assert_eq!((pair.comes(64), pair.goes()), (64, 64));
        }
        assert_eq!((pair.comes(513), pair.lost(), pair.goes()), (512, 1, 512));
        pair.close();
    });
}

#[test]
fn a_pool_that_has_no_plenty_is_not_drained() {
    as_root(|| {
        let pool = FramePool::new(PoolConfig { small: 4096, big: 16, memory: Memory::Umem }).unwrap();
        let mut pair = Pair::new(&pool);
        let others = Hoard::of(&pool, 3000);
        for _ in 0..4 {
            assert_eq!((pair.comes(128), pair.goes()), (128, 128));
        }
        assert!(pair.comes(256) < 256, "more than the share of a pool that others need");
        pair.goes();
        others.give_back();
        for _ in 0..4 {
            pair.comes(128);
            pair.goes();
        }
        assert_eq!((pair.comes(256), pair.goes()), (256, 256));
        pair.close();
    });
}

#[test]
fn a_newcomer_leaves_the_last_of_a_pool_to_others() {
    as_root(|| {
        let pool = FramePool::new(PoolConfig { small: 4096, big: 16, memory: Memory::Umem }).unwrap();
        let others = Hoard::of(&pool, 3800);
        let mut pair = Pair::new(&pool);
        assert_eq!((pair.comes(128), pair.lost(), pair.goes()), (64, 64, 64));
        others.give_back();
        pair.goes();
        assert_eq!((pair.comes(128), pair.goes()), (128, 128));
        pair.close();
    });
}
