//! The oracle of the VLAN matrix against Open vSwitch itself: `ofproto/trace` of a private instance whose datapath
//! is a dummy, so it touches no interface.
//!
//! Where Open vSwitch is not installed, or cannot start, there is nothing to compare with: the test says so.

use std::collections::BTreeMap;

use encap::field::EtherType;

use super::vlans::{FRAMES, Mode, PORTS, Priority, QINQ, Setting, Tag, with_tags};
use crate::frames::broadcast;
use crate::ovs::Ovs;

/// Open vSwitch with the bridge of the matrix: port `i` is `p{i + 1}`, and has that number in the datapath too.
fn start() -> Result<Ovs, String> {
    let ovs = Ovs::start(&["--enable-dummy=override"])?;
    let mut line = "add-br br0 -- set bridge br0 datapath_type=dummy fail-mode=standalone".to_owned();
    for (i, port) in PORTS.iter().enumerate() {
        let (number, columns) = (i + 1, columns(port).join(" "));
        line += &format!(" -- add-port br0 p{number} {columns}");
        line += &format!(" -- set interface p{number} type=dummy ofport_request={number}");
    }
    ovs.vsctl(&line)?;
    Ok(ovs)
}

/// The actions of its datapath for a frame.
fn trace(ovs: &Ovs, in_port: usize, frame: &[u8]) -> String {
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = ovs.appctl(&format!("ofproto/trace br0 in_port={} {hex}", in_port + 1));
    let text = text.unwrap_or_else(|e| panic!("{e}"));
    let actions = text.lines().find_map(|line| line.strip_prefix("Datapath actions: "));
    actions.unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// A setting as columns of the Port table.
fn columns(port: &Setting) -> Vec<String> {
    let (mode, list) = match port.mode {
        Mode::Access => ("access", "trunks"),
        Mode::Trunk => ("trunk", "trunks"),
        Mode::NativeTagged => ("native-tagged", "trunks"),
        Mode::NativeUntagged => ("native-untagged", "trunks"),
        Mode::Tunnel(_) => ("dot1q-tunnel", "cvlans"),
    };
    let mut columns = vec![format!("vlan_mode={mode}")];
    if port.mode != Mode::Trunk {
        columns.push(format!("tag={}", port.tag));
    }
    if !port.vlans.is_empty() {
        let vlans: Vec<String> = port.vlans.iter().map(u16::to_string).collect();
        columns.push(format!("{list}={}", vlans.join(",")));
    }
    if let Mode::Tunnel(service) = port.mode {
        columns.push(format!(
            "other_config:qinq-ethtype={}",
            if service == QINQ { "802.1ad" } else { "802.1q" }
        ));
    }
    match port.priority {
        Priority::Never => {}
        Priority::IfNonzero => columns.push("other_config:priority-tags=if-nonzero".into()),
        Priority::Always => columns.push("other_config:priority-tags=always".into()),
    }
    columns
}

/// Whom the actions give the frame to, and with which tags. Port 100 is the bridge's own, which we have not.
fn outputs(actions: &str, tags: &[Tag]) -> BTreeMap<&'static str, Vec<Tag>> {
    let (mut outputs, mut tags) = (BTreeMap::new(), tags.to_vec());
    let mut rest = actions;
    while !rest.is_empty() {
        let end =
            if rest.starts_with("push_vlan(") { rest.find(')').map(|at| at + 1) } else { rest.find(',') };
        let (action, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind.strip_prefix(',').unwrap_or(behind);
        match action {
            "drop" | "100" => {}
            "pop_vlan" => drop(tags.remove(0)),
            push if push.starts_with("push_vlan(") => tags.insert(0, pushed(push)),
            port => {
                let number: usize = port.parse().unwrap_or_else(|_| panic!("{port} in {actions}"));
                outputs.insert(PORTS[number - 1].name, tags.clone());
            }
        }
    }
    outputs
}

/// The tag of `push_vlan(tpid=0x88a8,vid=10,pcp=0)`.
fn pushed(action: &str) -> Tag {
    let field = |name: &str| {
        let (_, value) = action.split_once(name)?;
        Some(&value[..value.find([',', ')'])?])
    };
    let number = |name| field(name).map_or(0, |text| text.parse::<u16>().unwrap());
    let tpid = field("tpid=0x").map_or(0x8100, |text| u16::from_str_radix(text, 16).unwrap());
    (EtherType(tpid), number("pcp=") << 13 | number("vid="))
}

/// Does Open vSwitch do with such frames what its manual page says? It forgets the third of three tags and what
/// stands behind a priority tag, and forwards priority tags from trunk to trunk whatever `priority-tags` says.
fn is_comparable(port: &Setting, tags: &[Tag]) -> bool {
    let is_tunnel = matches!(port.mode, Mode::Tunnel(_));
    match tags {
        [] => true,
        [(_, tci)] => tci & 0xfff != 0 || *tci == 0 && !is_tunnel,
        [(_, tci), ..] => tci & 0xfff != 0 && !is_tunnel,
    }
}

/// It also forgets the drop-eligible bit.
fn without_dei(tags: &[Tag]) -> Vec<Tag> {
    tags.iter().map(|(tpid, tci)| (*tpid, tci & 0xefff)).collect()
}

#[test]
fn open_vswitch_agrees() {
    let ovs = match start() {
        Ok(ovs) => ovs,
        Err(why) => return eprintln!("skipped: no Open vSwitch to compare with: {why}"),
    };
    for (i, port) in PORTS.iter().enumerate() {
        for tags in FRAMES.iter().filter(|tags| is_comparable(port, tags)) {
            let actions = trace(&ovs, i, &with_tags(&broadcast(1), tags));
            let theirs = outputs(&actions, tags);
            let inside = port.enter(tags);
            for out in PORTS.iter().filter(|out| out.name != port.name && out.priority == Priority::Never) {
                let ours = inside.as_ref().and_then(|inside| out.leave(inside));
                let [ours, theirs] =
                    [ours.as_ref(), theirs.get(out.name)].map(|tags| tags.map(|t| without_dei(t)));
                assert_eq!(ours, theirs, "{} to {} with {tags:x?}: {actions}", port.name, out.name);
            }
        }
    }
}
