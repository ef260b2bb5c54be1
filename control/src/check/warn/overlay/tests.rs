use crate::check::warnings;
use crate::config::{Machine, parse_on};

#[track_caller]
fn warns(segments: &str, ports: &str, expected: &[&str]) {
    let text = format!(
        "[[bridge]]\nname = 'phy'\nport = [{{ name = 'eth' }}, {{ name = 'vtep0', type = 'vtep', address = ['192.0.2.1/24'] }}]\n\
         [[bridge]]\nname = 'br'\nsegment = [\n{segments}\n]\nport = [\n{ports}\n]\n"
    );
    let config = parse_on(&text, &Machine { cores: vec![0] }).unwrap_or_else(|problems| panic!("{problems}"));
    let messages: Vec<String> = warnings(&config).into_iter().map(|problem| problem.message).collect();
    assert_eq!(messages, expected, "\n{text}");
}

const VX: &str = "{ name = 'vx', type = 'vxlan', remote-ip = 'flow', key = 'flow' },";
const BLUE: &str = "{ name = 'blue', vlan = 1, type = 'vxlan', id = 5001, vteps = ['192.0.2.2'] },";

#[test]
fn a_sound_overlay_gives_none() {
    let ports = "{ name = 'vm1', tag = 1 }, { name = 'vm2', segment = 'red' }, { name = 'eth2' }, { name = 'vm3', tag = 9 }";
    let red = "{ name = 'red', type = 'vxlan', id = 7, vteps = ['192.0.2.2'] },";
    let prov = "{ name = 'prov', vlan = 9, type = 'vlan', id = 101, uplink = 'eth2' }";
    warns(&format!("{BLUE} {red} {prov}"), &format!("{VX} {ports}"), &[]);
}

#[test]
fn packets_that_do_not_fit_into_a_tunnel() {
    let too_long = |port: &str, most: u16, overhead: u16| {
        format!(
            "port `{port}` may send longer packets than tunnel port `vx` carries, {most} bytes (the underlay's 1500 less \
             {overhead} of headers): they are refused or dropped; set `mtu` to {most}, or raise the underlay's"
        )
    };
    let host = "{ name = 'host', type = 'internal', tag = 1 }";
    warns(BLUE, &format!("{VX} {host}"), &[&too_long("host", 1450, 50)]);
    warns(BLUE, &format!("{VX} {}", host.replace("tag", "mtu = 1450, tag")), &[]);
    let six = BLUE.replace("192.0.2.2", "2001:db8::2");
    warns(
        &six,
        &format!("{VX} {{ name = 'vm', mtu = 1450, segment = 'blue' }}"),
        &[&too_long("vm", 1430, 70)],
    );
    let gre = VX.replace("vxlan", "gre");
    warns(&BLUE.replace("vxlan", "gre"), &format!("{gre} {host}"), &[&too_long("host", 1458, 42)]);
    let elsewhere =
        "{ name = 'vm', mtu = 1500, tag = 2 }, { name = 'vm2', tag = 2 }, { name = 'vm3', tag = 1 }";
    warns(BLUE, &format!("{VX} {elsewhere}"), &[]);
}

#[test]
fn what_rides_on_the_host() {
    let far = VX.replace("key =", "local-ip = '198.51.100.1', key =");
    let warning = "tunnel port `vx` rides on the host's IP stack, as this switch has no vtep port with 198.51.100.1: every \
                   outer packet passes the kernel's stack and a socket, at more cost; add a vtep port, or say \
                   underlay = \"host\" if that is meant, or \"switch\" if an internal port has the address";
    let vm = "{ name = 'vm', tag = 1 }";
    warns(BLUE, &format!("{far} {vm}"), &[warning]);
    for said in ["host", "switch"] {
        warns(BLUE, &format!("{} {vm}", far.replace("key =", &format!("underlay = '{said}', key ="))), &[]);
    }
}

#[test]
fn what_nobody_uses() {
    let names: Vec<String> =
        (1..6).map(|n| format!("{{ name = 's{n}', type = 'local', learning = true }},")).collect();
    warns(
        &names.concat(),
        &format!("{VX} {{ name = 'vm', tag = 5 }}, {{ name = 'vm2', tag = 5 }}"),
        &[
            "no segment uses tunnel port `vx`",
            "no port is in segments `s1`, `s2`, `s3` and 2 more of bridge `br`",
        ],
    );
}

#[test]
fn segments_that_reach_nobody() {
    let segments = "{ name = 'a', vlan = 1, type = 'vxlan', id = 1, strict-peers = true },
        { name = 'b', vlan = 2, type = 'vxlan', id = 2, learning = false },
        { name = 'c', vlan = 3, type = 'local', learning = false }";
    warns(
        segments,
        &format!("{VX} {{ name = 'trunk' }}"),
        &[
            "segment `a` has strict-peers and no `vteps`: all that comes from tunnels is dropped",
            "segment `b` has no `vteps` and learns none: nothing leaves by its tunnel",
            "segment `c` ignores `learning`: it is in no tunnel",
        ],
    );
}
