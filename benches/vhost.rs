//! What does a frame cost at the device's side of virtio rings?
//!
//! `receive` takes frames out of a guest's transmit ring and frees them, `send` allocates frames and puts them into a guest's receive
//! ring, `both` is what a switch does between two guests, without the switch. Frames are not looked at, so of an allocated
//! one no byte comes into the cache but by the copy. The rings and their driver are those of `support/guest.rs`.
//!
//! Names are `vhost/format-case/bytes`. Beside criterion's own figures each prints TSC cycles per frame.

use criterion::{Criterion, criterion_group, criterion_main};
use dataplane::batch::Batch;
use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig};

#[path = "support/batches.rs"]
mod batches;
#[path = "support/guest.rs"]
mod guest;

use batches::{BATCH, measure};
use guest::{Format, Guest};

fn rings(c: &mut Criterion) {
    let pool = FramePool::new(PoolConfig { small: 4096, big: 64, memory: Memory::Plain }).expect("memory");
    let mut frames = FrameCache::new(pool);
    for (format, name) in [(Format::Split, "split"), (Format::Packed, "packed")] {
        for len in [60, 1514] {
            let mut from = Guest::sending(format, len);
            let mut to = Guest::receiving(format);
            let mut batch = Batch::new();
            measure(c, ("vhost", &format!("{name}-receive"), len), || {
                from.receive(&mut frames, &mut batch);
                batch.drain(..).for_each(|frame| frames.free(frame));
            });
            measure(c, ("vhost", &format!("{name}-send"), len), || {
                for _ in 0..BATCH {
                    let mut frame = frames.alloc().expect("a frame");
                    frame.set_len(len);
                    batch.push(frame);
                }
                to.send(&mut frames, &mut batch);
            });
            measure(c, ("vhost", &format!("{name}-both"), len), || {
                from.receive(&mut frames, &mut batch);
                to.send(&mut frames, &mut batch);
            });
        }
    }
}

criterion_group!(benches, rings);
criterion_main!(benches);
