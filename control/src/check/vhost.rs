//! Rules of vhost-user ports: each has a socket of its own, that a socket's address can hold.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dataplane::port::vhost::Role;
use dataplane::virtio::PAIRS_MAX;

use super::Check;
use crate::config::{Entity, PortConfig, PortKind, SOCKET_PATH_MAX};
use crate::resolve::vhost_socket;

impl<'a> Check<'a> {
    /// Vhost-user ports, each for itself and against each other.
    pub(super) fn vhost(&mut self) {
        let mut takers = BTreeMap::new();
        for (entity, port) in self.each_port() {
            self.server_path(entity, port);
            let switch = &self.config.switch;
            let home = switch.socket.parent().unwrap_or(Path::new("/"));
            let Some(path) = vhost_socket(switch, port).map(|path| home.join(path)) else { continue };
            self.pairs(entity, port);
            self.sun_path((entity, port), &path);
            self.unique((entity, port), path, &mut takers);
        }
    }

    fn server_path(&mut self, entity: Entity, port: &PortConfig) {
        let name = &port.name;
        let message = match (port.kind, &port.vhost_server_path) {
            (PortKind::Vhost(Role::Client), None) => format!(
                "port `{name}` is a dpdkvhostuserclient, expected the VM's socket such as \
                 vhost-server-path = \"/run/vm/net0.sock\""
            ),
            (PortKind::Vhost(Role::Server), Some(_)) => format!(
                "port `{name}` has `vhost-server-path`, and the switch makes its socket: set `vhost-sock-dir` in [switch], or \
                 choose type dpdkvhostuserclient"
            ),
            (PortKind::Vhost(Role::Client), Some(_)) | (_, None) => return,
            (_, Some(_)) => {
                format!("port `{name}` has `vhost-server-path`, expected type dpdkvhostuserclient")
            }
        };
        self.report(entity, &["vhost-server-path", "type"], message);
    }

    fn pairs(&mut self, entity: Entity, port: &PortConfig) {
        let pairs = port.effective_queues();
        if pairs > PAIRS_MAX {
            let name = &port.name;
            let message =
                format!("port `{name}` offers {pairs} queue pairs to a guest, expected at most {PAIRS_MAX}");
            self.report(entity, &["queues", "type"], message);
        }
    }

    fn sun_path(&mut self, (entity, port): (Entity, &PortConfig), path: &Path) {
        let length = path.as_os_str().as_bytes().len();
        if length > SOCKET_PATH_MAX {
            let message = format!(
                "the socket {} of port `{}` has {length} bytes, expected at most {SOCKET_PATH_MAX}; set a shorter \
                 `vhost-sock-dir` in [switch]",
                path.display(),
                port.name
            );
            self.report(entity, &["name", "type"], message);
        }
    }

    fn unique(
        &mut self,
        (entity, port): (Entity, &'a PortConfig),
        path: PathBuf,
        takers: &mut BTreeMap<PathBuf, &'a str>,
    ) {
        let keys = &["vhost-server-path", "name", "type"];
        let (name, shown) = (&port.name, path.display());
        if path == self.config.switch.socket {
            let message = format!("the socket {shown} of port `{name}` is the switch's control socket");
            self.report(entity, keys, message);
        } else if let Some(other) = takers.get(&path).filter(|other| **other != port.name) {
            let message = format!("ports `{other}` and `{name}` have one socket, {shown}");
            self.report(entity, keys, message);
        }
        takers.entry(path).or_insert(&port.name);
    }
}
