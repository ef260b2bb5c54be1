use dataplane::batch::Batch;
use dataplane::frame::{FrameCache, FramePool, Memory, PoolConfig};
use flowtable::lpm::Prefix;

use super::super::wire::{self, Said, Speaker};
use super::*;
use crate::config::Cidr;

const PORT: PortId = PortId(3);
const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xaa]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xbb]);
const HOP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

/// The switch's side of one endpoint.
struct Bench {
    endpoints: Endpoints,
    port: Box<dyn Port>,
    frames: FrameCache,
}

fn demand(hops: &[IpAddr]) -> BTreeMap<PortId, Demand> {
    let address = IpAddr::from([192, 0, 2, 1]);
    let cidr = Cidr { address, network: Prefix::new(address, 24).unwrap() };
    let identity = Identity { mac: OURS, addresses: vec![cidr] };
    [(PORT, Demand { identity, next_hops: hops.iter().copied().collect() })].into()
}

fn bench(hops: &[IpAddr]) -> Bench {
    let pool = FramePool::new(PoolConfig { small: 1024, big: 4, memory: Memory::Plain }).unwrap();
    let endpoints = Endpoints::new(Arc::clone(&pool)).unwrap();
    endpoints.demand(demand(hops), Traffic::default());
    let port = endpoints.open(PORT).unwrap();
    Bench { endpoints, port, frames: FrameCache::new(pool) }
}

impl Bench {
    fn send(&mut self, bytes: &[u8]) {
        let mut batch = Batch::new();
        batch.push(self.frames.from_bytes(bytes).unwrap());
        assert_eq!(self.port.tx(&mut self.frames, &mut batch).unwrap().frames, 1);
    }

    /// Waits for the endpoint to say something of a kind.
    fn until<T>(&mut self, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        wait("the endpoint to speak", || {
            let mut batch = Batch::new();
            self.port.rx(&mut self.frames, &mut batch).unwrap();
            let found = batch.iter().find_map(|frame| wanted(frame.bytes()));
            batch.drain(..).for_each(|frame| self.frames.free(frame));
            found
        })
    }
}

fn wait<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begin = std::time::Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn question(bytes: &[u8]) -> Option<IpAddr> {
    match wire::read(bytes)? {
        Said::Question { target, .. } => Some(target),
        _ => None,
    }
}

#[test]
fn an_open_port_is_announced_and_answers() {
    let mut bench = bench(&[]);
    let announced = |bytes: &[u8]| match wire::read(bytes)? {
        Said::Answer { address, mac: OURS, .. } => Some(address),
        _ => None,
    };
    assert_eq!(bench.until(announced), IpAddr::from([192, 0, 2, 1]));
    let peer = Speaker { mac: PEER, address: HOP };
    bench.send(&wire::question(peer, [192, 0, 2, 1].into(), None).unwrap());
    bench.until(|bytes| (bytes[..6] == PEER.0).then_some(()));
}

#[test]
fn a_wanted_next_hop_is_asked_for_and_its_answer_is_news() {
    let mut bench = bench(&[HOP]);
    assert_eq!(bench.until(question), HOP);
    let peer = Speaker { mac: PEER, address: HOP };
    bench.send(&wire::answer(peer, [192, 0, 2, 1].into(), Some(OURS)).unwrap());
    let mut fds = [PollFd::new(bench.endpoints.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)), Ok(1));
    assert_eq!(bench.endpoints.findings().neighbours, [((PORT, HOP), PEER)].into());
    assert!(bench.endpoints.has_news() && !bench.endpoints.has_news());
    bench.endpoints.demand(BTreeMap::new(), Traffic::default());
    assert!(bench.endpoints.findings().neighbours.is_empty(), "the endpoint is gone");
}

#[test]
fn a_next_hop_is_asked_for_on_demand_and_after_a_flush() {
    let mut bench = bench(&[]);
    bench.endpoints.resolve(PORT, HOP);
    assert_eq!(bench.until(question), HOP);
    assert!(bench.endpoints.set_neighbour(PORT, HOP, PEER));
    assert!(!bench.endpoints.set_neighbour(PortId(9), HOP, PEER), "no such endpoint");
    assert_eq!(bench.endpoints.findings().neighbours.len(), 1);
    bench.endpoints.flush_neighbours();
    assert_eq!(bench.endpoints.neighbours().0.len(), 0);
    bench.endpoints.demand(demand(&[HOP]), Traffic::default());
    assert_eq!(bench.until(question), HOP);
}

#[test]
fn a_flood_is_taken_in_slices_and_a_port_opened_again_works() {
    let mut bench = bench(&[]);
    let noise = wire::announcement(Speaker { mac: PEER, address: HOP });
    let mut sent = 0;
    while sent < 2 * QUEUE {
        let mut batch = Batch::new();
        batch.push(bench.frames.from_bytes(&noise).unwrap());
        sent += bench.port.tx(&mut bench.frames, &mut batch).unwrap().frames as usize;
        batch.drain(..).for_each(|frame| bench.frames.free(frame));
    }
    bench.port = bench.endpoints.open(PORT).unwrap();
    let peer = Speaker { mac: PEER, address: HOP };
    bench.send(&wire::question(peer, [192, 0, 2, 1].into(), None).unwrap());
    bench.until(|bytes| (bytes[..6] == PEER.0).then_some(()));
    assert!(bench.endpoints.open(PortId(9)).is_err(), "nobody demanded it");
}
