//! What does it cost to write the outer headers of a tunnel in front of a frame?
//!
//! Names are `encap/kind-family/size`, with the size of the inner frame: it does not matter unless a checksum is
//! wanted. `tagged`: behind one VLAN tag of the underlay. `no-df`: with an identification of its own.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use encap::field::{EtherType, Pcp, VlanId, VlanTag};
use encap::template::{Outer, Template};
use encap::tunnel::TunnelKind;

#[path = "support/batches.rs"]
mod batches;
#[path = "../tests/support/tunnels.rs"]
mod tunnels;

use batches::{BATCH, measure};

fn write(c: &mut Criterion, (case, inner): (&str, usize), outer: &Outer) {
    let template = Template::new(outer).expect("headers that can be");
    let mut frames = vec![vec![0x5a; template.len() + inner]; BATCH];
    measure(c, ("encap", case, inner), || {
        for (frame, entropy) in frames.iter_mut().zip(0..) {
            black_box(&template).write(black_box(frame), entropy).expect("it fits");
        }
    });
    assert_eq!(frames[7], tunnels::encapsulated(outer, &vec![0x5a; inner], 7));
}

fn headers(c: &mut Criterion) {
    for kind in TunnelKind::ALL {
        for (family, outer) in [("ipv4", tunnels::over_ipv4(kind)), ("ipv6", tunnels::over_ipv6(kind))] {
            write(c, (&format!("{kind}-{family}"), 60), &outer);
            let summed = Outer { csum: true, ..outer };
            for inner in [60, 1514] {
                write(c, (&format!("{kind}-{family}-csum"), inner), &summed);
            }
        }
    }
    let outer = tunnels::over_ipv4(TunnelKind::Vxlan);
    let tag = VlanTag::new(EtherType::VLAN, VlanId::from_tci(7), Pcp::default());
    write(c, ("vxlan-ipv4-tagged", 60), &Outer { tags: [tag].into_iter().collect(), ..outer.clone() });
    write(c, ("vxlan-ipv4-no-df", 60), &Outer { df: false, ..outer });
}

criterion_group!(benches, headers);
criterion_main!(benches);
