//! What does it cost to read the outer headers of a tunnelled frame?
//!
//! Names are `decap/kind-family/size`, with the size of the inner frame: it does not matter unless there is a
//! checksum to verify. `tagged`: behind one VLAN tag of the underlay.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use encap::decap::{Decapped, decap, plain};
use encap::field::{EtherType, Pcp, VlanId, VlanTag};
use encap::offload::Offload;
use encap::template::Outer;
use encap::tunnel::TunnelKind;

#[path = "support/batches.rs"]
mod batches;
#[path = "../tests/support/tunnels.rs"]
mod tunnels;

use batches::{BATCH, measure};

/// As the switch reads them.
#[inline(always)]
fn headers_of(frame: &[u8], kind: TunnelKind) -> Option<Decapped> {
    plain(frame, kind, Offload::NONE).or_else(|| decap(frame, kind, Offload::NONE).ok())
}

fn read(c: &mut Criterion, (case, inner): (&str, usize), outer: &Outer) {
    let frame = |entropy| tunnels::encapsulated(outer, &vec![0x5a; inner], entropy);
    let frames: Vec<_> = (0..BATCH as u16).map(frame).collect();
    let decapped = headers_of(&frames[0], outer.kind).expect("what was encapsulated");
    assert_eq!(decapped.inner_end - decapped.inner_at, inner);
    measure(c, ("decap", case, inner), || {
        for frame in &frames {
            let _ = black_box(headers_of(black_box(frame), black_box(outer.kind)));
        }
    });
}

fn headers(c: &mut Criterion) {
    for kind in TunnelKind::ALL {
        for (family, outer) in [("ipv4", tunnels::over_ipv4(kind)), ("ipv6", tunnels::over_ipv6(kind))] {
            read(c, (&format!("{kind}-{family}"), 60), &outer);
            let summed = Outer { csum: true, ..outer };
            for inner in [60, 1514] {
                read(c, (&format!("{kind}-{family}-csum"), inner), &summed);
            }
        }
    }
    let tag = VlanTag::new(EtherType::VLAN, VlanId::from_tci(7), Pcp::default());
    let outer = tunnels::over_ipv4(TunnelKind::Vxlan);
    read(c, ("vxlan-ipv4-tagged", 60), &Outer { tags: [tag].into_iter().collect(), ..outer });
}

criterion_group!(benches, headers);
criterion_main!(benches);
