//! Every encapsulation, byte by byte and as Wireshark reads it.
//!
//! `tests/golden/` has a capture of each kind of tunnel, over IPv4 and IPv6, without, with one and with two VLAN tags
//! of the underlay, around four inner frames. Template must write these very bytes, and tshark must find in them
//! what went in. After a change that is meant to change them: `SLUICE_GOLDEN=write cargo test --test golden`.

#[path = "support/tunnels.rs"]
mod tunnels;

use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use encap::field::{EtherType, Pcp, VlanId, VlanTag};
use encap::template::Outer;
use encap::tunnel::TunnelKind;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType as Type, PacketBuilder, SingleVlanHeader, VlanHeader,
    VlanId as Vid,
};
use serde_json::Value;

const SRC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DST: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// One frame of a capture.
struct Golden {
    outer: Outer,
    inner: Vec<u8>,
    entropy: u16,
    bytes: Vec<u8>,
}

/// The captures and what stands in the headers of each, but for family and tags.
fn captures() -> Vec<(&'static str, Outer)> {
    let [vxlan, gre, geneve] = TunnelKind::ALL.map(tunnels::over_ipv4);
    vec![
        ("vxlan-checksum", Outer { csum: true, ..vxlan.clone() }),
        ("vxlan", vxlan),
        ("geneve-checksum", Outer { csum: true, ..geneve.clone() }),
        ("geneve", Outer { df: false, ..geneve }),
        ("gre-checksum", Outer { csum: true, ..gre.clone() }),
        ("gre-key-0", Outer { id: Some(0), ..gre.clone() }),
        ("gre-no-key", Outer { id: None, ..gre.clone() }),
        ("gre-key", Outer { id: Some(u32::MAX), ..gre }),
    ]
}

fn golden(outer: &Outer) -> Vec<Golden> {
    let tag = |tpid, id| VlanTag::new(tpid, VlanId::from_tci(id), Pcp::new(5).expect("in range"));
    let tags =
        [vec![], vec![tag(EtherType::VLAN, 101)], vec![tag(EtherType::QINQ, 7), tag(EtherType::VLAN, 4094)]];
    let six = tunnels::over_ipv6(outer.kind);
    let mut frames = Vec::new();
    for (src, dst) in [(outer.src, outer.dst), (six.src, six.dst)] {
        for tags in &tags {
            let outer = Outer { src, dst, tags: tags.iter().copied().collect(), ..outer.clone() };
            for inner in inner_frames() {
                let entropy = (frames.len() as u16).wrapping_mul(0x9e37);
                let bytes = tunnels::encapsulated(&outer, &inner, entropy);
                frames.push(Golden { outer: outer.clone(), inner, entropy, bytes });
            }
        }
    }
    frames
}

/// What guests send: ARP, TCP, UDP over IPv6, and ping in a VLAN of theirs.
fn inner_frames() -> [Vec<u8>; 4] {
    let [mut arp, mut tcp, mut udp6, mut ping] = [const { Vec::new() }; 4];
    let ([a, b], hardware) = ([[10, 0, 0, 1], [10, 0, 0, 2]], ArpHardwareId::ETHERNET);
    let request = ArpPacket::new(hardware, Type::IPV4, ArpOperation::REQUEST, &SRC, &a, &[0; 6], &b);
    let ethernet = || PacketBuilder::ethernet2(SRC, DST);
    let written = [
        PacketBuilder::ethernet2(SRC, [0xff; 6]).arp(request.expect("addresses that fit")).write(&mut arp),
        ethernet().ipv4(a, b, 64).tcp(40000, 80, 0x1000, 8192).write(&mut tcp, b"GET / HTTP/1.0\r\n\r\n"),
        ethernet().ipv6([0xfd; 16], [0xfe; 16], 64).udp(5000, 5001).write(&mut udp6, b"an odd payload."),
        ethernet()
            .vlan(VlanHeader::Single(SingleVlanHeader {
                vlan_id: Vid::try_new(42).expect("in range"),
                ether_type: Type::IPV4,
                ..SingleVlanHeader::default()
            }))
            .ipv4(a, b, 64)
            .icmpv4_echo_request(1, 2)
            .write(&mut ping, b"ping"),
    ];
    written.into_iter().for_each(|result| result.expect("a frame that can be built"));
    [arp, tcp, udp6, ping]
}

/// A classic pcap file, one frame a second.
fn pcap<'a>(frames: impl IntoIterator<Item = &'a Golden>) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut file = words(&[0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 0x10000, 1]);
    for (second, frame) in (0..).zip(frames) {
        let len = frame.bytes.len() as u32;
        file.extend(words(&[second, 0, len, len]));
        file.extend(&frame.bytes);
    }
    file
}

fn path(capture: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(capture).with_extension("pcap")
}

#[test]
fn template_writes_the_golden_bytes() {
    for (capture, outer) in captures() {
        let (path, written) = (path(capture), pcap(&golden(&outer)));
        if std::env::var_os("SLUICE_GOLDEN").is_some_and(|what| what == "write") {
            std::fs::write(&path, &written).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        let read = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(read == written, "{} differs from what Template writes", path.display());
    }
}

#[test]
fn tshark_finds_what_went_in() {
    let frames: Vec<_> = captures().iter().flat_map(|(_, outer)| golden(outer)).collect();
    let Some(dissected) = tshark(pcap(&frames)) else {
        return println!("skipped: tshark is not installed");
    };
    assert_eq!(dissected.len(), frames.len());
    for (frame, dissected) in frames.iter().zip(&dissected) {
        let found = Layers(&dissected["_source"]["layers"]);
        println!("{:?}\n{:#}", frame.outer, found.0); // shown if a check fails
        assert!(!found.0.to_string().contains("malformed"));
        check_outer(frame, &found);
        match frame.outer.kind {
            TunnelKind::Gre => check_gre(frame, &found),
            _ => check_udp(frame, &found),
        }
        check_inner(frame, &found);
    }
}

/// What tshark says about each frame of a file; `None` if there is no tshark.
fn tshark(file: Vec<u8>) -> Option<Vec<Value>> {
    let settings = [
        "ip.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
        "udp.ignore_ipv6_zero_checksum:TRUE",
        "tcp.check_checksum:TRUE",
    ];
    let mut command = Command::new("tshark");
    command.args(["-r", "-", "-T", "json", "--no-duplicate-keys"]).args(settings.map(|s| format!("-o{s}")));
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        spawned => spawned.expect("tshark starts"),
    };
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = std::thread::spawn(move || stdin.write_all(&file));
    let output = child.wait_with_output().expect("tshark ends");
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    writer.join().expect("no panic").unwrap_or_else(|e| panic!("{e}: {complaints}"));
    assert!(output.status.success(), "{complaints}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// The layers of one frame.
struct Layers<'a>(&'a Value);

impl<'a> Layers<'a> {
    /// All layers of a protocol, outermost first.
    fn all(&self, protocol: &str) -> Vec<&'a Value> {
        match &self.0[protocol] {
            Value::Null => Vec::new(),
            Value::Array(layers) => layers.iter().collect(),
            layer => vec![layer],
        }
    }

    fn outermost(&self, protocol: &str) -> &'a Value {
        self.all(protocol).first().copied().unwrap_or_else(|| panic!("no {protocol}"))
    }
}

/// A field of a layer or of one of its trees, numbers and flags as decimals, however this tshark writes them.
fn field(layer: &Value, name: &str) -> Option<String> {
    let text = match layer.get(name) {
        Some(value) => value.as_str()?,
        None => return layer.as_object()?.values().find_map(|tree| field(tree, name)),
    };
    match text.strip_prefix("0x").map(|digits| u32::from_str_radix(digits, 16)) {
        Some(Ok(number)) => Some(number.to_string()),
        _ if text.eq_ignore_ascii_case("true") => Some("1".into()),
        _ if text.eq_ignore_ascii_case("false") => Some("0".into()),
        _ => Some(text.into()),
    }
}

fn assert_fields(layer: &Value, expected: &[(&str, String)]) {
    for (name, expected) in expected {
        assert_eq!(field(layer, name).as_ref(), Some(expected), "{name}");
    }
}

fn check_outer(Golden { outer, bytes, inner, .. }: &Golden, found: &Layers<'_>) {
    let ethernet = found.outermost("eth");
    assert_fields(
        ethernet,
        &[("eth.dst", outer.eth_dst.to_string()), ("eth.src", outer.eth_src.to_string())],
    );
    let (mut customer, mut service) = (found.all("vlan").into_iter(), found.all("ieee8021ad").into_iter());
    for tag in &outer.tags {
        let (name, layers) = match tag.tpid {
            EtherType::QINQ => ("ieee8021ad", &mut service),
            _ => ("vlan", &mut customer),
        };
        let layer = layers.next().expect("a tag");
        let (id, priority) = (format!("{name}.id"), format!("{name}.priority"));
        assert_fields(layer, &[(&id, tag.vid().to_string()), (&priority, tag.pcp().get().to_string())]);
    }
    assert_eq!(customer.count() + service.count(), usize::from(inner[12] == 0x81), "tags of the inner frame");
    let len = bytes.len() - 14 - 4 * outer.tags.len();
    match outer.src {
        IpAddr::V4(_) => assert_fields(
            found.outermost("ip"),
            &[
                ("ip.hdr_len", "20".into()),
                ("ip.dsfield.dscp", (outer.tos >> 2).to_string()),
                ("ip.dsfield.ecn", (outer.tos & 3).to_string()),
                ("ip.len", len.to_string()),
                ("ip.flags.df", u8::from(outer.df).to_string()),
                ("ip.flags.mf", "0".into()),
                ("ip.ttl", outer.ttl.to_string()),
                ("ip.proto", outer.kind.proto().to_string()),
                ("ip.checksum.status", "1".into()),
                ("ip.src", outer.src.to_string()),
                ("ip.dst", outer.dst.to_string()),
            ],
        ),
        IpAddr::V6(_) => assert_fields(
            found.outermost("ipv6"),
            &[
                ("ipv6.tclass.dscp", (outer.tos >> 2).to_string()),
                ("ipv6.tclass.ecn", (outer.tos & 3).to_string()),
                ("ipv6.plen", (len - 40).to_string()),
                ("ipv6.nxt", outer.kind.proto().to_string()),
                ("ipv6.hlim", outer.ttl.to_string()),
                ("ipv6.src", outer.src.to_string()),
                ("ipv6.dst", outer.dst.to_string()),
            ],
        ),
    }
}

fn check_udp(Golden { outer, inner, entropy, .. }: &Golden, found: &Layers<'_>) {
    let udp = found.outermost("udp");
    let vni = outer.id.expect("a VNI").to_string();
    assert_fields(
        udp,
        &[
            ("udp.srcport", (49152 + entropy % 16384).to_string()),
            ("udp.dstport", outer.dst_port.to_string()),
            ("udp.length", (8 + 8 + inner.len()).to_string()),
        ],
    );
    match outer.csum {
        true => assert_fields(udp, &[("udp.checksum.status", "1".into())]),
        false => assert_fields(udp, &[("udp.checksum", "0".into())]),
    }
    match outer.kind {
        TunnelKind::Vxlan => assert_fields(
            found.outermost("vxlan"),
            &[("vxlan.flags", 0x0800.to_string()), ("vxlan.gbp", "0".into()), ("vxlan.vni", vni)],
        ),
        _ => assert_fields(
            found.outermost("geneve"),
            &[
                ("geneve.version", "0".into()),
                ("geneve.flags.oam", "0".into()),
                ("geneve.flags.critical", "0".into()),
                ("geneve.proto_type", 0x6558.to_string()),
                ("geneve.vni", vni),
            ],
        ),
    }
}

fn check_gre(Golden { outer, .. }: &Golden, found: &Layers<'_>) {
    let gre = found.outermost("gre");
    let flag = |set| u8::from(set).to_string();
    assert_fields(
        gre,
        &[
            ("gre.proto", 0x6558.to_string()),
            ("gre.flags.version", "0".into()),
            ("gre.flags.routing", "0".into()),
            ("gre.flags.sequence_number", "0".into()),
            ("gre.flags.key", flag(outer.id.is_some())),
            ("gre.flags.checksum", flag(outer.csum)),
        ],
    );
    assert_eq!(field(gre, "gre.key"), outer.id.map(|key| key.to_string()));
    assert_eq!(field(gre, "gre.checksum.status"), outer.csum.then(|| flag(true)));
}

fn check_inner(Golden { inner, .. }: &Golden, found: &Layers<'_>) {
    let mac = |octets: &[u8]| octets.iter().map(|o| format!("{o:02x}")).collect::<Vec<_>>().join(":");
    let ethernet = found.all("eth");
    let [_, ethernet] = ethernet[..] else { panic!("{} Ethernet headers", ethernet.len()) };
    assert_fields(ethernet, &[("eth.dst", mac(&inner[..6])), ("eth.src", mac(&inner[6..12]))]);
    match &inner[12..] {
        [0x08, 0x06, ..] => {
            assert_fields(found.outermost("arp"), &[("arp.dst.proto_ipv4", "10.0.0.2".into())]);
        }
        [0x86, 0xdd, ..] => {
            let udp = found.all("udp");
            let udp = udp.last().expect("UDP");
            assert_fields(udp, &[("udp.dstport", "5001".into()), ("udp.checksum.status", "1".into())]);
        }
        [0x81, 0x00, ..] => {
            assert_fields(found.outermost("icmp"), &[("icmp.checksum.status", "1".into())]);
        }
        _ => assert_fields(
            found.outermost("tcp"),
            &[("tcp.seq_raw", "4096".into()), ("tcp.checksum.status", "1".into())],
        ),
    }
}
