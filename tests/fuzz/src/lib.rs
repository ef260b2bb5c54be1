//! What must hold for any input: the bodies of the fuzz targets, which `tests/corpus.rs` runs too.

use encap::decap::Decapped;
use encap::field::{EtherType, MacAddr};
use encap::offload::{Csum, Gso, Offload};
use encap::offsets::{ETHERNET, walk};
use encap::template::{Outer, Template};
use encap::tunnel::TunnelKind;
use flowtable::id::PortId;
use flowtable::key::FlowKey;
use flowtable::keys::Keys;
use flowtable::mask::Mask;
use flowtable::text::{parse, print, print_key};

mod vhost;

pub use self::vhost::vhost_message;

/// A frame of any bytes has a canonical key, which survives being printed and parsed; or it is too short.
pub fn extract(frame: &[u8]) {
    let key = flowtable::extract::extract(frame, PortId(1));
    let mut keys = Keys::default();
    let sound = keys.extract(std::iter::once(frame), PortId(1));
    assert_eq!(sound.contains(0).then(|| keys[0]), key.ok(), "in a batch and alone");
    let Ok(key) = key else {
        assert!(frame.len() < ETHERNET, "{} bytes refused", frame.len());
        return;
    };
    assert_eq!(key.masked(&Mask::of_fields(&key)), key, "bits outside the fields that it has");
    let text = print_key(&key, &|_| None);
    assert_eq!(read(&text).map(|(key, _)| key), Some(key), "{text}");
}

/// Any text is refused at a place inside it, or read as a flow that survives being printed and parsed.
pub fn flow_text(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match parse(text, &|_| None) {
        Ok((key, mask)) => {
            assert_eq!(key.masked(&mask), key, "bits outside the mask");
            let printed = print(&key, &mask, &|_| None);
            assert_eq!(read(&printed), Some((key, mask)), "{printed}");
        }
        Err(error) => assert!((1..=text.chars().count()).contains(&error.column), "{error}"),
    }
}

/// Three octets say what to expect of the frame behind them. It is refused; or its inner frame lies within, and put into
/// such a tunnel again it comes out with all that was read.
pub fn decap(input: &[u8]) {
    let Some(([expect, start, offset], frame)) = input.split_first_chunk() else { return };
    let kind = TunnelKind::ALL[usize::from(expect % 3)];
    let partial = Csum::Partial { start: u16::from(*start), offset: u16::from(*offset) };
    let offload = Offload {
        csum: if expect & 0x40 == 0 { Csum::None } else { partial },
        gso: if expect & 0x80 == 0 { Gso::None } else { Gso::Tcp4 { mss: 1000 } },
    };
    let decapped = encap::decap::decap(frame, kind, offload);
    let plain = encap::decap::plain(frame, kind, offload);
    assert!(plain.is_none() || plain == decapped.ok(), "{plain:?}, not {decapped:?}");
    let Ok(decapped) = decapped else { return };
    let Decapped { id, src, dst, tos, ttl, df, csum, inner_at, inner_end, .. } = decapped;
    assert!(inner_at + ETHERNET <= inner_end && inner_end <= frame.len(), "{decapped:?}");
    let is_ipv4 = walk(frame).is_ok_and(|offsets| offsets.ether_type == EtherType::IPV4);
    let [src, dst] = [src, dst].map(|ip| if is_ipv4 { ip.to_canonical() } else { ip.into() });
    let [eth_src, eth_dst] = [MacAddr([2; 6]); 2];
    let (tags, dst_port) = (Default::default(), 9);
    let outer = Outer { kind, id, eth_src, eth_dst, tags, src, dst, tos, ttl, df, dst_port, csum };
    let template = Template::new(&outer).expect("headers such as were read");
    let mut again = [&vec![0; template.len()], &frame[inner_at..inner_end]].concat();
    template.write(&mut again, 7).expect("a frame as long as was read");
    let (inner_at, inner_end) = (template.len(), again.len());
    let expected = Decapped { inner_at, inner_end, oam: false, ..decapped };
    assert_eq!(encap::decap::decap(&again, kind, Offload::NONE), Ok(expected));
}

fn read(text: &str) -> Option<(FlowKey, Mask)> {
    parse(text, &|_| None).ok()
}
