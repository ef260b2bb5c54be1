//! Whole messages to the device, and its answers.
//!
//! Most are read by rust-vmm's `vhost`, which wants a socket: it gets one end of a pair of ours, into the other end of which
//! each message is put when it is all there, so it never waits. What it does not know is read here.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use encap::field::MacAddr;
use nix::errno::Errno;
use thiserror::Error;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::announce;
use super::device::{Device, DeviceError};
use super::inbox::{self, HEADER, Message};

/// Flags of a header: the version of the protocol, "this is an answer", "answer this" (vhost-user, "Header").
const VERSION: u32 = 1;
/// See [`VERSION`].
const REPLY: u32 = 1 << 2;
/// See [`VERSION`].
const NEED_REPLY: u32 = 1 << 3;

/// The longest answer: a configuration space of 4 KiB.
const ANSWER_MAX: usize = 2 * 4096;

/// A message that was not done.
#[derive(Debug, Error)]
#[error("{name}: {reason}")]
pub(super) struct Refusal {
    name: String,
    reason: String,
}

/// What became of a message.
#[derive(Debug)]
pub(super) struct Outcome {
    /// To send; empty if there is nothing to say.
    pub(super) answer: Message,
    /// It was refused.
    pub(super) refusal: Option<Refusal>,
}

impl Outcome {
    /// The frontend does not know that it was refused: it would go on as if it had been done.
    pub(super) fn is_fatal(&self) -> bool {
        self.refusal.is_some() && self.answer.bytes.is_empty()
    }
}

/// A device at the end of a line.
pub(super) struct Relay {
    device: Arc<Mutex<Device>>,
    reader: BackendReqHandler<Mutex<Device>>,
    line: UnixStream,
}

impl Relay {
    pub(super) fn new(device: Arc<Mutex<Device>>) -> io::Result<Relay> {
        let (line, end) = UnixStream::pair()?;
        Ok(Relay { reader: BackendReqHandler::from_stream(end, Arc::clone(&device)), device, line })
    }

    /// Does what a whole message asks for.
    pub(super) fn handle(&mut self, message: Message) -> Outcome {
        let name = FrontendReq::try_from(message.request())
            .map_or_else(|_| format!("message {}", message.request()), |known| format!("{known:?}"));
        let (answer, result) = if is_request(&message) {
            self.sort(message)
        } else {
            (Message::default(), Err("not a request of version 1".to_owned()))
        };
        Outcome { answer, refusal: result.err().map(|reason| Refusal { name, reason }) }
    }

    fn sort(&mut self, message: Message) -> (Message, Result<(), String>) {
        match FrontendReq::try_from(message.request()) {
            Ok(
                FrontendReq::SET_VRING_ENABLE
                | FrontendReq::SEND_RARP
                | FrontendReq::NET_SET_MTU
                | FrontendReq::SET_LOG_FD,
            ) => self.read(&message),
            Ok(known) if is_read_by_crate(known) => self.pass_on(message),
            _ => (self.acknowledge(&message, Ack::Refused), Err("not offered".to_owned())),
        }
    }

    /// Has the crate read it.
    fn pass_on(&mut self, mut message: Message) -> (Message, Result<(), String>) {
        let mut relay = || {
            inbox::send(&self.line, &mut message).map_err(|errno| errno.to_string())?;
            let done = self.reader.handle_request().map_err(reason);
            let answer = match inbox::receive(&self.line, ANSWER_MAX) {
                Err(Errno::EAGAIN) => Message::default(),
                answer => answer.map_err(|errno| errno.to_string())?,
            };
            Ok((answer, done))
        };
        relay().unwrap_or_else(|error| (Message::default(), Err(error)))
    }

    /// Reads one of those that the crate does not know, or is too strict with: QEMU may enable rings before it has
    /// acknowledged that there are protocol features.
    fn read(&mut self, message: &Message) -> (Message, Result<(), String>) {
        let done = self.act(message).map_err(|error| error.to_string());
        (self.acknowledge(message, if done.is_ok() { Ack::Done } else { Ack::Refused }), done)
    }

    fn act(&mut self, message: &Message) -> Result<(), DeviceError> {
        let payload: [u8; 8] = message.payload().try_into().map_err(|_| DeviceError::Foreign)?;
        let [low, high] = [&payload[..4], &payload[4..]]
            .map(|half| half.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)));
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        match FrontendReq::try_from(message.request()) {
            Ok(FrontendReq::SET_VRING_ENABLE) if high <= 1 => {
                device.change_ring(low, |vring| vring.enabled = high == 1)
            }
            Ok(FrontendReq::SEND_RARP) => {
                let [a, b, c, d, e, f, ..] = payload;
                let guest = MacAddr([a, b, c, d, e, f]);
                let station = announce::is_station(guest).then_some(guest);
                device.announce(&announce::rarp(station.ok_or(DeviceError::Announcement)?))
            }
            Ok(FrontendReq::NET_SET_MTU) => device.check_mtu(u64::from_le_bytes(payload)),
            // A descriptor to tell of writes to the log, which QEMU does not use: nobody has to be told.
            Ok(FrontendReq::SET_LOG_FD) => Ok(()),
            _ => Err(DeviceError::Foreign),
        }
    }

    /// What a message asks for that has no answer of its own.
    fn acknowledge(&self, message: &Message, ack: Ack) -> Message {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let acks = device.state.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        if !acks || message.flags() & NEED_REPLY == 0 {
            return Message::default();
        }
        let header = [message.request(), VERSION | REPLY, 8].map(u32::to_le_bytes).concat();
        Message {
            bytes: [header, u64::from(ack == Ack::Refused).to_le_bytes().to_vec()].concat(),
            fds: vec![],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ack {
    Done,
    Refused,
}

fn is_request(message: &Message) -> bool {
    message.bytes.len() >= HEADER && message.flags() & !NEED_REPLY == VERSION
}

/// Those for devices of other kinds are not, nor what needs a protocol feature that is not offered.
fn is_read_by_crate(request: FrontendReq) -> bool {
    use FrontendReq as Req;
    matches!(
        request,
        Req::GET_FEATURES
            | Req::SET_FEATURES
            | Req::SET_OWNER
            | Req::RESET_OWNER
            | Req::SET_MEM_TABLE
            | Req::SET_LOG_BASE
            | Req::SET_VRING_NUM
            | Req::SET_VRING_ADDR
            | Req::SET_VRING_BASE
            | Req::GET_VRING_BASE
            | Req::SET_VRING_KICK
            | Req::SET_VRING_CALL
            | Req::SET_VRING_ERR
            | Req::GET_PROTOCOL_FEATURES
            | Req::SET_PROTOCOL_FEATURES
            | Req::GET_QUEUE_NUM
            | Req::SET_BACKEND_REQ_FD
            | Req::GET_CONFIG
            | Req::SET_CONFIG
            | Req::GET_INFLIGHT_FD
            | Req::SET_INFLIGHT_FD
            | Req::RESET_DEVICE
            | Req::GET_MAX_MEM_SLOTS
            | Req::ADD_MEM_REG
            | Req::REM_MEM_REG
    )
}

/// What the device said, without what the crate says about it.
fn reason(error: VhostError) -> String {
    match error {
        VhostError::ReqHandlerError(ours) => ours.to_string(),
        other => other.to_string(),
    }
}
