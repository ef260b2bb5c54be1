//! Frames whose flow a cache knows: looked up together, executed flow by flow.
//!
//! Frames mostly come in trains: neighbours that no mask tells from each other. Of such a train only the first is
//! looked up, its *head*; where there seem to be few, each frame is its own (bench `forward`, `l2` and `vxlan-decap`).

use std::slice::from_ref;

use arrayvec::ArrayVec;
use flowtable::flow::FlowRef;
use flowtable::key::FlowKey;
use flowtable::keys::Keys;
use flowtable::places::Places;

use super::{Arrival, Missed, Poller};
use crate::batch::{BATCH, Batch};
use crate::departure::Departure;
use crate::execute::{Origin, execute_next};
use crate::frame::Frame;
use crate::perf::Stage;
use crate::translate::View;
use crate::translate::precedent::Which;

impl Poller {
    /// Executes all frames that a cache knows; neighbours of one flow make a group. The others go to `missed`.
    pub(super) fn hits(
        &mut self,
        arrival: Arrival,
        (keys, sound): (&Keys, Places),
        batch: &mut Batch,
        missed: &mut Missed,
    ) {
        self.wires.stopwatch.enter(Stage::Lookup);
        let snapshot = self.subscriber.current();
        let generation = snapshot.generation;
        let heads = self.reader.heads((keys, keys.used()), sound);
        let (mut flows, mut hashes, mut unknown) = ([None; BATCH], [0; BATCH], heads);
        let asks_exact = self.exact.is_awake(heads.len());
        if asks_exact {
            self.reader.hash_each((keys.all(), keys.used()), heads, |place, hash| {
                self.exact.prefetch(hash);
                hashes[place] = hash;
            });
            let current = (generation, self.reader.seat());
            self.exact.get_each((keys.all(), &hashes), current, &mut unknown, |place, flow| {
                flows[place] = Some(flow);
            });
        }
        let mut found = ArrayVec::<(u64, FlowRef<'_>), BATCH>::new();
        let mut stale = ArrayVec::<(usize, FlowRef<'_>), BATCH>::new();
        self.reader.lookup_each(keys.all(), unknown, |place, flow| {
            if snapshot.holds(&flow) {
                flows[place] = Some(flow);
                found.push((hashes[place], flow));
            } else {
                stale.push((place, flow));
            }
        });
        let mut followed = ArrayVec::<Option<Which>, BATCH>::new();
        if !stale.is_empty() {
            followed.extend([None; BATCH]);
            let view = View { snapshot, now: arrival.now };
            self.revalidator.follow_each((&stale, keys), view, &self.reader, |place, flow, which| {
                flows[place] = Some(flow);
                found.push((hashes[place], flow));
                followed[place] = which;
                self.counters.revalidated.add(u64::from(which.is_none()));
            });
        }
        self.wires.stopwatch.enter(Stage::Execute);
        let mut departure = Departure::of(batch);
        let mut starts = Places::first(keys.len()).without(sound.without(heads));
        while let Some(start) = starts.next() {
            let end = { starts }.next().unwrap_or(keys.len());
            // Somebody else may amend it meanwhile, by tables that are not ours yet.
            let found = flows[start].as_ref().and_then(|flow| {
                let own = self.reader.actions_at(flow, generation);
                let actions = own.or_else(|| self.revalidator.actions((*followed.get(start)?)?))?;
                Some((flow, actions))
            });
            // A mask that came only now may tell from its head what no other did.
            let known = match found {
                Some((flow, _)) if end - start == 1 || self.reader.covers(flow) => end,
                Some(_) => start + 1,
                None => start,
            };
            if let Some((flow, actions)) = found {
                let origin = Origin { port: flow.in_port(), keys: &keys[start..known] };
                let count = Count::of(departure.run(known - start), origin.keys);
                flow.stats(self.index).add(count.frames, count.bytes, count.tcp_flags, arrival.now);
                arrival.account(origin.port, &count, &self.wires);
                execute_next(actions, origin, &mut departure, &mut self.wires);
            }
            for place in known..end {
                missed.extend(departure.take_one(&mut self.wires).map(|frame| (place, frame)));
            }
        }
        departure.leave(&mut self.wires);
        let hits = keys.len() - missed.len();
        self.counters.megaflow_hits.add(found.len() as u64);
        self.counters.exact_hits.add(hits.saturating_sub(found.len()) as u64);
        if asks_exact {
            for (hash, flow) in &found {
                self.exact.insert(*hash, || flow.share());
            }
        }
    }
}

/// What is counted of frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    /// Those of all.
    pub(super) tcp_flags: u16,
}

impl Count {
    #[inline]
    pub(super) fn of(frames: &[Frame], keys: &[FlowKey]) -> Count {
        // Where there are no trains all are like this.
        if let ([frame], [key]) = (frames, keys) {
            let tcp_flags = FlowKey::all_tcp_flags(from_ref(key)).get();
            return Count { frames: 1, bytes: frame.len() as u64, tcp_flags };
        }
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        Count { frames: frames.len() as u64, bytes, tcp_flags: FlowKey::all_tcp_flags(keys).get() }
    }
}
