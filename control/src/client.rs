//! The other end of the control socket: one request, one reply.

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::api::message::{Reply, Request};

/// How long the daemon may take before we call it stuck. Publishing and dumping a full flow table take
/// milliseconds to a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// No answer, or not the one we wanted.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "cannot reach the switch at {}: {source}; start it with `sluice run --config FILE`, or name its socket \
         with --socket", socket.display()
    )]
    Unreachable {
        /// Where we looked.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody listens and does not talk.
    #[error("the switch at {} does not answer: {reason}", socket.display())]
    Silent {
        /// Where we looked.
        socket: PathBuf,
        /// What came instead of an answer.
        reason: String,
    },
    /// The switch refuses.
    #[error("{0}")]
    Refused(String),
}

/// Calls `method` of the switch that listens on `socket`.
///
/// # Errors
/// [`ClientError`].
pub fn call(socket: &Path, method: &str, params: &[String]) -> Result<Value, ClientError> {
    let silent = |reason: String| ClientError::Silent { socket: socket.to_owned(), reason };
    let stream = UnixStream::connect(socket)
        .map_err(|source| ClientError::Unreachable { socket: socket.to_owned(), source })?;
    let params = params.iter().cloned().map(Value::String).collect();
    let request = Request { id: Value::from(0), method: method.to_owned(), params };
    let reply = exchange(stream, &request).map_err(|e| silent(e.to_string()))?;
    match reply.error {
        Value::Null => Ok(reply.result),
        Value::String(error) => Err(ClientError::Refused(error.trim_end().to_owned())),
        other => Err(ClientError::Refused(other.to_string())),
    }
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Reply> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    let mut replies = serde_json::Deserializer::from_reader(BufReader::new(stream));
    Ok(Reply::deserialize(&mut replies)?)
}
