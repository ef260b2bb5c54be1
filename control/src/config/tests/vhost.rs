//! Ports of VMs.

use super::*;

#[test]
fn vhost_user_ports_have_a_socket_each() {
    reports(
        r#"[switch]
vhost-sock-dir = "/run/sluice"
[[bridge]]
name = "br0"
port = [
  { name = "vm0", type = "dpdkvhostuser", queues = 16, mtu = 9000 },
  { name = "vm1", type = "dpdkvhostuserclient" },
  { name = "vm2", type = "dpdkvhostuser", vhost-server-path = "/tmp/2" },
  { name = "vm3", vhost-server-path = "/tmp/3" },
  { name = "vm4", type = "dpdkvhostuser", queues = 17 },
  { name = "vm5", type = "dpdkvhostuserclient", vhost-server-path = "/run//sluice/vm0" },
  { name = "vm6", type = "dpdkvhostuserclient", vhost-server-path = "vm6" },
  { name = "sluice.sock", type = "dpdkvhostuser" },
  { name = "vm7", type = "dpdkvhostuser", address = ["192.0.2.1/24"], rxq-affinity = "16:3" },
  { name = "vm/8", type = "dpdkvhostuser" },
]
"#,
        &[
            "7:3: port `vm1` is a dpdkvhostuserclient, expected the VM's socket such as \
             vhost-server-path = \"/run/vm/net0.sock\"",
            "8:63: port `vm2` has `vhost-server-path`, and the switch makes its socket: set `vhost-sock-dir` in [switch], \
             or choose type dpdkvhostuserclient",
            "9:39: port `vm3` has `vhost-server-path`, expected type dpdkvhostuserclient",
            "10:52: port `vm4` offers 17 queue pairs to a guest, expected at most 16",
            "11:69: ports `vm0` and `vm5` have one socket, /run//sluice/vm0",
            "12:69: `vhost-server-path`: `vm6` is no absolute path",
            "13:3: the socket /run/sluice/sluice.sock of port `sluice.sock` is the switch's control socket",
            "14:53: port `vm7` has `address` and is no vtep; the kernel has a device's addresses",
            "14:86: port `vm7` has no queue 16, expected one below `queues`, which is 16",
            "15:12: `name`: `vm/8` has `/` in it, expected ASCII without spaces and without / : % , = \" `",
        ],
    );
    let long = format!("/{}", "d".repeat(104));
    reports(
        &format!(
            "[switch]\nvhost-sock-dir = '{long}'\n[[bridge]]\nname = 'b'\nport = [{{ name = 'vm0', type = 'dpdkvhostuser' }}]"
        ),
        &[&format!(
            "5:18: the socket {long}/vm0 of port `vm0` has 109 bytes, expected at most 107; set a shorter \
             `vhost-sock-dir` in [switch]"
        )],
    );
}

#[test]
fn a_guest_may_have_sixteen_queue_pairs_unless_told() {
    let queues = |settings: &str| {
        let config = read(&format!("bridge = [{{ name = 'b', port = [{{ name = 'p', {settings} }}] }}]"));
        config.bridges[0].ports[0].effective_queues()
    };
    assert_eq!(queues("type = 'afxdp'"), 1);
    assert_eq!(queues("type = 'dpdkvhostuser'"), 16);
    assert_eq!(queues("type = 'dpdkvhostuser', queues = 1"), 1);
    assert_eq!(queues("type = 'dpdkvhostuserclient', vhost-server-path = '/tmp/p', queues = 4"), 4);
}
