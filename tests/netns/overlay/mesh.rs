//! Tenants with the same addresses in every kind of network at once, on hypervisors of every footing.

use std::thread;

use crate::support::fabric::{EVERYBODY, Fabric, Footing, Tenant};
use crate::support::host::Host;
use crate::support::lab::Seat;
use crate::support::traffic::{await_ping, tcp};

const KIB: usize = 1 << 10;

/// Every VM of a tenant reaches every other. Whoever answers a stream has its listener, so no VM of another tenant
/// with the same address took it.
fn assert_whole(fabric: &Fabric, tenant: &Tenant) {
    let vms: Vec<&Host> = fabric.nodes.iter().map(|node| node.vm(tenant)).collect();
    for from in &vms {
        for to in vms.iter().filter(|to| to.ip != from.ip) {
            await_ping(from, to.ip);
            tcp(from, to, 64 * KIB);
        }
    }
}

/// No VM reaches an address that only another tenant has, on no hypervisor.
fn assert_apart_from_others(fabric: &Fabric, tenant: &Tenant) {
    let others = EVERYBODY.iter().filter(|other| **other != tenant);
    let targets: Vec<_> =
        others.flat_map(|other| fabric.nodes.iter().map(|n| other.own_ip(n.number))).collect();
    let from = fabric.vm(tenant, 1);
    thread::scope(|scope| {
        for to in targets {
            scope.spawn(move || assert!(!from.pings(to), "{} reaches {to}, and must not", from.port));
        }
    });
}

fn by_tenant(fabric: &Fabric, check: impl Fn(&Fabric, &Tenant) + Sync) {
    thread::scope(|scope| {
        EVERYBODY.iter().for_each(|tenant| drop(scope.spawn(|| check(fabric, tenant))));
    });
}

fn assert_tenants(footings: &[Footing]) {
    let fabric = Fabric::new(footings, &EVERYBODY);
    by_tenant(&fabric, assert_whole);
    by_tenant(&fabric, assert_apart_from_others);
    fabric.assert_balance();
}

#[test]
fn tenants_with_the_same_addresses_are_apart() {
    let Some(_seat) = Seat::take() else { return };
    assert_tenants(&[Footing::Vtep, Footing::Internal, Footing::Host]);
}
