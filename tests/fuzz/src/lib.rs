//! What must hold for any input: the bodies of the fuzz targets, which `tests/corpus.rs` runs too.

use encap::offsets::ETHERNET;
use flowtable::id::PortId;
use flowtable::key::FlowKey;
use flowtable::mask::Mask;
use flowtable::text::{parse, print, print_key};

/// A frame of any bytes has a canonical key, which survives being printed and parsed; or it is too short.
pub fn extract(frame: &[u8]) {
    let Ok(key) = flowtable::extract::extract(frame, PortId(1)) else {
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

fn read(text: &str) -> Option<(FlowKey, Mask)> {
    parse(text, &|_| None).ok()
}
