//! From an attachment to open queues: which kind of port a netdev gets, and why.

use std::sync::Arc;
use std::time::Duration;

use dataplane::frame::FramePool;
use dataplane::port::netdev::{Admin, Netdev};
use dataplane::port::tap::{self, TapConfig};
use dataplane::port::{self, Port, host, packet, xdp};
use flowtable::id::PortId;

use super::descriptors;
use super::vhost::Guests;
use crate::compile::{AttachKind, Attachment};
use crate::config::XdpMode;
use crate::host::endpoints::Endpoints;

/// An open device.
pub struct Opened {
    /// One per queue.
    pub queues: Vec<Box<dyn Port>>,
    /// What it became.
    pub obtained: String,
    /// Why nothing better.
    pub because: Option<String>,
}

/// What ports are made of.
pub struct Opener {
    /// Frames.
    pub pool: Arc<FramePool>,
    /// Who is at the other end of ports with configured addresses.
    pub endpoints: Arc<Endpoints>,
    /// Who is told whose path a packet of the host's stack was too long for.
    pub overlong: Arc<host::Overlong>,
    /// VMs.
    pub guests: Guests,
}

impl Opener {
    /// Opens a device as asked, and waits at most so long for what another process has. The error is one line with the
    /// cure.
    pub fn open(&self, id: PortId, want: &Attachment, patience: Duration) -> Result<Opened, String> {
        descriptors::check(want.queues)?;
        match &want.kind {
            AttachKind::Internal => internal(want),
            AttachKind::Vtep => self.vtep(id),
            AttachKind::HostTunnel(request) => self.host_tunnel(*request),
            AttachKind::Vhost(_) => Ok(self.guests.open(id)),
            AttachKind::System | AttachKind::Afxdp | AttachKind::Afpacket => {
                netdev(want, &self.pool, patience)
            }
        }
    }

    fn vtep(&self, id: PortId) -> Result<Opened, String> {
        let queue =
            self.endpoints.open(id).map_err(|e| format!("cannot start the switch's own stack: {e}"))?;
        Ok(Opened { queues: vec![queue], obtained: "vtep".to_owned(), because: None })
    }

    fn host_tunnel(&self, request: host::Request) -> Result<Opened, String> {
        let queue = host::open(request, &self.overlong).map_err(|e| e.to_string())?;
        Ok(Opened { queues: boxed(vec![queue]), obtained: "sockets of the host".to_owned(), because: None })
    }
}

fn netdev(want: &Attachment, pool: &Arc<FramePool>, patience: Duration) -> Result<Opened, String> {
    if let Some(mtu) = want.mtu {
        let device = Netdev::open(&want.name).map_err(|e| e.to_string())?;
        device.set_mtu(mtu.into()).map_err(|e| e.to_string())?;
    }
    match want.kind {
        AttachKind::Afxdp => afxdp(want, pool, patience),
        AttachKind::Afpacket => afpacket(want),
        _ => afxdp(want, pool, patience).or_else(|refused| {
            let because = Some(refused);
            Ok(Opened { because, ..afpacket(want)? })
        }),
    }
}

fn boxed<P: Port + 'static>(queues: Vec<P>) -> Vec<Box<dyn Port>> {
    queues.into_iter().map(port::boxed).collect()
}

fn internal(want: &Attachment) -> Result<Opened, String> {
    let (name, queues) = (want.name.clone(), want.queues);
    let config = TapConfig { name, queues, mtu: want.mtu, mac: want.mac, admin: Admin::Up };
    let queues = tap::open(&config).map_err(|e| e.to_string())?;
    Ok(Opened { queues: boxed(queues), obtained: "internal".to_owned(), because: None })
}

fn afpacket(want: &Attachment) -> Result<Opened, String> {
    let queues = packet::open(&want.name, want.queues).map_err(|e| e.to_string())?;
    Ok(Opened { queues: boxed(queues), obtained: "afpacket".to_owned(), because: None })
}

fn afxdp(want: &Attachment, pool: &Arc<FramePool>, patience: Duration) -> Result<Opened, String> {
    let mode = match want.xdp_mode {
        XdpMode::BestEffort => None,
        XdpMode::Native => Some(xdp::Mode::Native),
        XdpMode::Generic => Some(xdp::Mode::Generic),
    };
    let request = xdp::Request { interface: &want.name, queues: want.queues, mode, patience };
    let opened = xdp::open(pool, request).map_err(|e| e.to_string())?;
    let obtained = match (opened.mode, opened.zero_copy) {
        (xdp::Mode::Native, true) => "afxdp native zero-copy",
        (xdp::Mode::Native, false) => "afxdp native",
        (xdp::Mode::Generic, _) => "afxdp generic",
    };
    let because = opened.native_refused.map(|refused| refused.to_string());
    Ok(Opened { queues: boxed(opened.ports), obtained: obtained.to_owned(), because })
}
