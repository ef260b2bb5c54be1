//! VLANs: every mode of a port against every way to tag a frame, on the way in and on the way out.
//!
//! The oracle is a second reading of ovs-vswitchd.conf.db(5), Port table, *VLAN Configuration*, in its own terms:
//! a frame that enters loses its outer tag and is in a VLAN; when it leaves, the port says which tag it gets.

use encap::field::EtherType;
use flowtable::action::DropReason;

use crate::frames::{broadcast, frame, mac, tagged, unicast, with_tag};
use crate::rack::{Rack, both_ways};

const VLAN: EtherType = EtherType::VLAN;
pub const QINQ: EtherType = EtherType::QINQ;

/// Type and TCI.
pub type Tag = (EtherType, u16);

#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Access,
    Trunk,
    NativeTagged,
    NativeUntagged,
    Tunnel(EtherType),
}

#[derive(Clone, Copy, PartialEq)]
pub enum Priority {
    Never,
    IfNonzero,
    Always,
}

/// One port's configuration.
pub struct Setting {
    pub name: &'static str,
    pub mode: Mode,
    pub tag: u16,
    /// `trunks`, or `cvlans` of a tunnel; empty: all.
    pub vlans: &'static [u16],
    pub priority: Priority,
}

const fn setting(name: &'static str, mode: Mode, tag: u16, vlans: &'static [u16]) -> Setting {
    Setting { name, mode, tag, vlans, priority: Priority::Never }
}

const fn with_priority(setting: Setting, name: &'static str, priority: Priority) -> Setting {
    Setting { name, priority, ..setting }
}

use Mode::{Access, NativeTagged, NativeUntagged, Trunk, Tunnel};

const A10: Setting = setting("a10", Access, 10, &[]);
const TALL: Setting = setting("tall", Trunk, 0, &[]);
const NU10: Setting = setting("nu10", NativeUntagged, 10, &[]);

pub const PORTS: &[Setting] = &[
    A10,
    setting("a20", Access, 20, &[]),
    setting("a0", Access, 0, &[]),
    with_priority(A10, "a10n", Priority::IfNonzero),
    with_priority(A10, "a10a", Priority::Always),
    TALL,
    setting("t10", Trunk, 0, &[10]),
    setting("t0x20", Trunk, 0, &[0, 20]),
    with_priority(TALL, "talln", Priority::IfNonzero),
    with_priority(TALL, "talla", Priority::Always),
    setting("nt10", NativeTagged, 10, &[]),
    setting("nt10x20", NativeTagged, 10, &[20]),
    NU10,
    setting("nu20x10", NativeUntagged, 20, &[10]),
    with_priority(NU10, "nu10n", Priority::IfNonzero),
    setting("q10", Tunnel(QINQ), 10, &[]),
    setting("q10c", Tunnel(VLAN), 10, &[20]),
    setting("q20", Tunnel(VLAN), 20, &[]),
];

/// How frames come in: their tags, outermost first.
pub const FRAMES: &[&[Tag]] = &[
    &[],
    &[(VLAN, 0)],
    &[(VLAN, 0xa000)],
    &[(VLAN, 0xb000)],
    &[(VLAN, 10)],
    &[(VLAN, 0x600a)],
    &[(VLAN, 0x700a)],
    &[(VLAN, 20)],
    &[(VLAN, 30)],
    &[(VLAN, 4095)],
    &[(QINQ, 10)],
    &[(VLAN, 10), (VLAN, 20)],
    &[(VLAN, 10), (VLAN, 0x4000)],
    &[(VLAN, 20), (VLAN, 0x6010)],
    &[(VLAN, 0), (VLAN, 20)],
    &[(QINQ, 0x200a), (VLAN, 0x4014)],
    &[(QINQ, 30), (VLAN, 10)],
];

/// A frame inside the bridge: the VLAN it is in, the priority and type its tag had or would have, and the tags
/// behind that.
pub struct Inside {
    vlan: u16,
    /// Did the frame bring the tag that says the VLAN, or would have said it?
    tagged: bool,
    priority: u16,
    tpid: EtherType,
    rest: Vec<Tag>,
}

fn vid(tag: Option<&Tag>) -> u16 {
    tag.map_or(0, |(_, tci)| tci & 0xfff)
}

impl Setting {
    fn carries(&self, vlan: u16) -> bool {
        let listed = self.vlans.is_empty() || self.vlans.contains(&vlan);
        let native = matches!(self.mode, NativeTagged | NativeUntagged) && vlan == self.tag;
        listed || native
    }

    pub fn enter(&self, tags: &[Tag]) -> Option<Inside> {
        let outer = vid(tags.first());
        let (tpid, tci) = tags.first().copied().unwrap_or((VLAN, 0));
        let inside = |vlan| Inside {
            vlan,
            tagged: !tags.is_empty(),
            priority: tci & 0xf000,
            tpid,
            rest: tags.get(1..).unwrap_or(&[]).to_vec(),
        };
        match self.mode {
            Access => (outer == 0).then(|| inside(self.tag)),
            Trunk => self.carries(outer).then(|| inside(outer)),
            NativeTagged | NativeUntagged if outer == 0 => Some(inside(self.tag)),
            NativeTagged | NativeUntagged => self.carries(outer).then(|| inside(outer)),
            Tunnel(service) => self.carries(outer).then(|| Inside {
                vlan: self.tag,
                tagged: false,
                priority: 0,
                tpid: service,
                rest: tags.to_vec(),
            }),
        }
    }

    pub fn leave(&self, frame: &Inside) -> Option<Vec<Tag>> {
        let tagged = || vec![(frame.tpid, frame.priority | frame.vlan)];
        let front = match self.mode {
            Access if frame.vlan == self.tag && frame.rest.iter().all(|tag| vid(Some(tag)) == 0) => {
                match self.untagged(frame) {
                    // No 802.1Q header at all.
                    front if front.is_empty() => return Some(front),
                    front => front,
                }
            }
            Tunnel(_) if frame.vlan == self.tag && self.carries(vid(frame.rest.first())) => vec![],
            Access | Tunnel(_) => return None,
            Trunk | NativeTagged | NativeUntagged if !self.carries(frame.vlan) => return None,
            // Nobody could tell it from the native VLAN's.
            NativeTagged | NativeUntagged if frame.vlan == 0 => return None,
            NativeUntagged if frame.vlan == self.tag => self.untagged(frame),
            _ if frame.vlan == 0 => self.untagged(frame),
            Trunk | NativeTagged | NativeUntagged => tagged(),
        };
        Some([front, frame.rest.clone()].concat())
    }

    /// What `priority-tags` leaves of a tag without VLAN.
    fn untagged(&self, frame: &Inside) -> Vec<Tag> {
        let keep = match self.priority {
            Priority::Never => false,
            Priority::IfNonzero => frame.priority & 0xe000 != 0,
            Priority::Always => frame.tagged,
        };
        if keep { vec![(frame.tpid, frame.priority)] } else { vec![] }
    }

    fn toml(&self) -> String {
        let (mode, list, extra) = match self.mode {
            Access => ("access", "", ""),
            Trunk => ("trunk", "trunks", ""),
            NativeTagged => ("native-tagged", "trunks", ""),
            NativeUntagged => ("native-untagged", "trunks", ""),
            Tunnel(QINQ) => ("dot1q-tunnel", "cvlans", ""),
            Tunnel(_) => ("dot1q-tunnel", "cvlans", ", qinq-ethtype = '802.1q'"),
        };
        let tag = if self.mode == Trunk { String::new() } else { format!(", tag = {}", self.tag) };
        let vlans =
            if self.vlans.is_empty() { String::new() } else { format!(", {list} = {:?}", self.vlans) };
        let priority = match self.priority {
            Priority::Never => "never",
            Priority::IfNonzero => "if-nonzero",
            Priority::Always => "always",
        };
        let name = self.name;
        format!(
            "{{ name = '{name}', vlan-mode = '{mode}'{tag}{vlans}{extra}, priority-tags = '{priority}' }}"
        )
    }
}

/// One bridge with all the ports.
fn config() -> String {
    let ports: Vec<String> = PORTS.iter().map(Setting::toml).collect();
    format!("bridge = [{{ name = 'br0', port = [\n{}] }}]", ports.join(",\n"))
}

pub fn with_tags(frame: &[u8], tags: &[Tag]) -> Vec<u8> {
    tags.iter().rev().fold(frame.to_vec(), |frame, &(tpid, tci)| with_tag(&frame, tpid, tci))
}

#[test]
fn every_mode_meets_every_tag() {
    both_ways(&config(), |rack| {
        let plain = broadcast(1);
        for port in PORTS {
            for tags in FRAMES {
                let Some(inside) = port.enter(tags) else {
                    let reason = match port.mode {
                        Tunnel(_) => DropReason::CustomerVlan,
                        _ => DropReason::Vlan,
                    };
                    rack.expect_drop(port.name, &with_tags(&plain, tags), reason);
                    continue;
                };
                let others = PORTS.iter().filter(|other| other.name != port.name);
                let leave = |out: &Setting| Some((out.name, with_tags(&plain, &out.leave(&inside)?)));
                let out: Vec<_> = others.filter_map(leave).collect();
                let out: Vec<(&str, &[u8])> = out.iter().map(|(name, frame)| (*name, &frame[..])).collect();
                rack.expect(port.name, &with_tags(&plain, tags), &out);
            }
        }
    });
}

/// A trunk, an access port and a tunnel, with two static entries behind the access port and one behind the tunnel.
const STATIC: &str = r#"
    [[bridge]]
    name = "br0"
    fdb = [
        { mac = "02:00:00:00:00:02", vlan = 10, port = "a" },
        { mac = "02:00:00:00:00:02", vlan = 20, port = "a" },
        { mac = "02:00:00:00:00:03", vlan = 10, port = "q" },
    ]
    port = [
        { name = "t" },
        { name = "a", tag = 10 },
        { name = "q", vlan-mode = "dot1q-tunnel", tag = 10, cvlans = [5] },
    ]
"#;

#[test]
fn a_known_station_is_not_reached_by_a_port_that_does_not_carry_the_vlan() {
    both_ways(STATIC, |rack| {
        rack.expect("t", &tagged(&unicast(1, 2), 10), &[("a", &unicast(1, 2))]);
        rack.expect_drop("t", &tagged(&unicast(1, 2), 20), DropReason::Vlan);
        let customer = tagged(&unicast(1, 3), 5);
        rack.expect("t", &tagged(&customer, 10), &[("q", &customer)]);
        rack.expect_drop("t", &tagged(&tagged(&unicast(1, 3), 6), 10), DropReason::CustomerVlan);
        rack.expect_drop("t", &tagged(&unicast(1, 3), 10), DropReason::CustomerVlan);
    });
}

#[test]
fn learning_sees_the_vlan_inside_the_bridge_not_the_tag_on_the_wire() {
    both_ways(&config(), |rack| {
        rack.send("a10", &[broadcast(1)]);
        let reply = unicast(2, 1);
        rack.expect("tall", &tagged(&reply, 10), &[("a10", &reply)]);
        rack.expect("nu10", &reply, &[("a10", &reply)]);
        rack.expect("nt10", &reply, &[("a10", &reply)]);
        rack.expect("q10", &reply, &[("a10", &reply)]);
    });
}

/// Isolation, the point of it all: whoever is not in the VLAN gets nothing, known station or not.
#[test]
fn vlans_are_isolated() {
    let config = r#"
        [[bridge]]
        name = "br0"
        port = [{ name = "a", tag = 1 }, { name = "b", tag = 2 }, { name = "c", tag = 1 }, { name = "t", trunks = [1] }]
    "#;
    both_ways(config, |rack: &mut Rack| {
        rack.expect_at("b", &broadcast(2), &[]);
        let sent = frame(mac(1), mac(2));
        rack.expect("a", &sent, &[("c", &sent), ("t", &tagged(&sent, 1))]);
        rack.expect_drop("t", &tagged(&sent, 2), DropReason::Vlan);
    });
}
