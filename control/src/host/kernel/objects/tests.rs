use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia,
};
use proptest::prelude::*;

use super::*;

fn object(kind: u16, message: &impl Emitable) -> Object {
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    Object { kind, payload }
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn cidr(address: IpAddr, len: u8) -> Cidr {
    Cidr { address, network: Prefix::new(address, len).unwrap() }
}

fn an_address() -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 24;
    message.header.index = 7;
    message.attributes = vec![AddressAttribute::Address(v4(2).into()), AddressAttribute::Local(v4(1).into())];
    message
}

#[test]
fn addresses_are_the_local_ones_and_wait_for_their_check() {
    let fact = |gone| Some(Fact::Address { device: 7, cidr: cidr(v4(1).into(), 24), gone });
    assert_eq!(read(&object(libc::RTM_NEWADDR, &an_address())), fact(false));
    assert_eq!(read(&object(libc::RTM_DELADDR, &an_address())), fact(true));
    let mut tentative = an_address();
    tentative.attributes.push(AddressAttribute::Flags(AddressFlags::Tentative));
    assert_eq!(read(&object(libc::RTM_NEWADDR, &tentative)), fact(true));
}

fn a_neighbour(state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = 7;
    message.header.state = state;
    let address = NeighbourAddress::Inet6(Ipv6Addr::LOCALHOST);
    message.attributes = vec![
        NeighbourAttribute::Destination(address),
        NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
    ];
    message
}

#[test]
fn a_neighbour_counts_while_its_mac_holds() {
    let fact = |known| Some(Fact::Neighbour { device: 7, address: Ipv6Addr::LOCALHOST.into(), known });
    let mac = Some(MacAddr([2, 0, 0, 0, 0, 9]));
    for (state, number, mac) in [
        (NeighbourState::Reachable, libc::NUD_REACHABLE, mac),
        (NeighbourState::Stale, libc::NUD_STALE, mac),
        (NeighbourState::Permanent, libc::NUD_PERMANENT, mac),
        (NeighbourState::Incomplete, libc::NUD_INCOMPLETE, None),
        (NeighbourState::Failed, libc::NUD_FAILED, None),
    ] {
        let read = read(&object(libc::RTM_NEWNEIGH, &a_neighbour(state)));
        assert_eq!(read, fact(Some(Neighbour { mac, state: number })), "{state:?}");
    }
    assert_eq!(read(&object(libc::RTM_DELNEIGH, &a_neighbour(NeighbourState::Stale))), fact(None));
    let mut bridge = a_neighbour(NeighbourState::Reachable);
    bridge.header.family = AddressFamily::Bridge;
    assert_eq!(read(&object(libc::RTM_NEWNEIGH, &bridge)), None);
}

fn a_route() -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 8;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 0))),
        RouteAttribute::Priority(100),
        RouteAttribute::PrefSource(RouteAddress::Inet(v4(1))),
        RouteAttribute::Gateway(RouteAddress::Inet(v4(254))),
        RouteAttribute::Oif(7),
    ];
    message
}

#[test]
fn routes_are_unicast_and_of_the_main_table() {
    let to = Prefix::new(IpAddr::from([10, 0, 0, 0]), 8).unwrap();
    let hop = Nexthop { device: 7, via: Some(v4(254).into()), source: Some(v4(1).into()) };
    let fact = |hops: &[Nexthop], gone| Some(Fact::Route { to, metric: 100, hops: hops.to_vec(), gone });
    assert_eq!(read(&object(libc::RTM_NEWROUTE, &a_route())), fact(&[hop], false));
    assert_eq!(read(&object(libc::RTM_DELROUTE, &a_route())), fact(&[hop], true));
    let mut local = a_route();
    local.header.kind = RouteType::Local;
    assert_eq!(read(&object(libc::RTM_NEWROUTE, &local)), None);
    let mut other = a_route();
    other.attributes.push(RouteAttribute::Table(1000));
    assert_eq!(read(&object(libc::RTM_NEWROUTE, &other)), None);
}

#[test]
fn a_gateway_may_be_one_of_several_or_of_the_other_family() {
    let mut several = a_route();
    several.attributes.truncate(3);
    let next = |index, last| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = index;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(v4(last)))];
        hop
    };
    several.attributes.push(RouteAttribute::MultiPath(vec![next(7, 253), next(8, 254)]));
    let Some(Fact::Route { hops, .. }) = read(&object(libc::RTM_NEWROUTE, &several)) else { panic!() };
    let hop = |device, last| Nexthop { device, via: Some(v4(last).into()), source: Some(v4(1).into()) };
    assert_eq!(hops, [hop(7, 253), hop(8, 254)]);
    let mut six = a_route();
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    six.attributes[3] = RouteAttribute::Via(RouteVia::Inet6(router));
    let Some(Fact::Route { hops, .. }) = read(&object(libc::RTM_NEWROUTE, &six)) else { panic!() };
    assert_eq!(hops[0].via, Some(router.into()));
}

#[test]
fn a_default_route_has_no_destination() {
    let mut default = a_route();
    default.header.destination_prefix_length = 0;
    default.attributes.remove(0);
    let Some(Fact::Route { to, .. }) = read(&object(libc::RTM_NEWROUTE, &default)) else { panic!() };
    assert_eq!(to.to_string(), "0.0.0.0/0");
}

proptest! {
    #[test]
    fn odd_bytes_are_read_without_harm(
        which in 0usize..3,
        edits in proptest::collection::vec((0usize..80, any::<u8>()), 0..6),
        len in 0usize..120,
    ) {
        let mut object = [
            object(libc::RTM_NEWADDR, &an_address()),
            object(libc::RTM_NEWNEIGH, &a_neighbour(NeighbourState::Stale)),
            object(libc::RTM_NEWROUTE, &a_route()),
        ].into_iter().nth(which).unwrap();
        for (at, byte) in edits {
            let size = object.payload.len();
            object.payload[at % size] = byte;
        }
        object.payload.truncate(len);
        read(&object);
    }
}
