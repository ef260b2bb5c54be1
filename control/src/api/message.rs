//! JSON-RPC 1.0 as Open vSwitch's unixctl speaks it: a stream of JSON objects without framing, one request
//! `{"id", "method", "params": [strings]}` answered by one reply `{"id", "result", "error"}`
//! (ovs-appctl(8); RFC 7047, section 4, has the same messages).
//!
//! [`Splitter`] finds where an object ends. It looks at each byte once, and holds at most [`LIMIT`] bytes.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The longest request, in bytes.
pub const LIMIT: usize = 1 << 20;

/// A method call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, echoed in the reply.
    pub id: Value,
    /// The verb.
    pub method: String,
    /// Its arguments: strings, for every verb there is.
    pub params: Vec<Value>,
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's.
    pub id: Value,
    /// `null` after an error. Text for the verbs that Open vSwitch has too, a value for our own.
    pub result: Value,
    /// `null`, or text.
    pub error: Value,
}

impl Reply {
    /// The reply to request `id`. Errors end with a newline, as Open vSwitch's do: `ovs-appctl` prints them as
    /// they are.
    pub fn new(id: Value, outcome: Result<Value, String>) -> Self {
        match outcome {
            Ok(result) => Reply { id, result, error: Value::Null },
            Err(error) => Reply { id, result: Value::Null, error: Value::String(format!("{error}\n")) },
        }
    }

    /// The bytes on the socket.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a reply is plain JSON");
        bytes.push(b'\n');
        bytes
    }
}

/// What came is no request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// Something else than an object.
    #[error("expected a JSON object, found byte 0x{0:02x}")]
    NotObject(u8),
    /// Too long.
    #[error("request longer than {LIMIT} bytes")]
    TooLong,
    /// No JSON, or not the members of a request.
    #[error("not a JSON-RPC request: {0}")]
    NotRequest(String),
}

/// Where in an object the scan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scan {
    /// Between tokens.
    Plain,
    /// Inside a string.
    String,
    /// Behind a backslash in a string.
    Escape,
}

/// Cuts a stream of bytes into requests.
#[derive(Debug)]
pub struct Splitter {
    buffer: Vec<u8>,
    scanned: usize,
    depth: usize,
    scan: Scan,
    end: Option<usize>,
}

impl Default for Splitter {
    fn default() -> Self {
        Splitter { buffer: Vec::new(), scanned: 0, depth: 0, scan: Scan::Plain, end: None }
    }
}

impl Splitter {
    /// Takes what arrived.
    ///
    /// # Errors
    /// [`MessageError`] when it can no longer become a request; the stream is then of no more use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        self.buffer.extend_from_slice(bytes);
        self.find_end()
    }

    /// Is a whole object there?
    pub fn is_ready(&self) -> bool {
        self.end.is_some()
    }

    /// Has an object begun that is not whole yet?
    pub fn is_partial(&self) -> bool {
        self.end.is_none() && self.depth > 0
    }

    /// The next request, if a whole one is there.
    ///
    /// # Errors
    /// [`MessageError`] as for [`Splitter::push`].
    pub fn next_request(&mut self) -> Result<Option<Request>, MessageError> {
        let Some(end) = self.end.take() else { return Ok(None) };
        let request = serde_json::from_slice(&self.buffer[..end]);
        self.buffer.drain(..end);
        self.scanned = 0;
        self.find_end()?;
        request.map(Some).map_err(|e| MessageError::NotRequest(e.to_string()))
    }

    fn find_end(&mut self) -> Result<(), MessageError> {
        while self.end.is_none() && self.scanned < self.buffer.len() {
            let byte = self.buffer[self.scanned];
            if self.depth == 0 && byte != b'{' && !byte.is_ascii_whitespace() {
                return Err(MessageError::NotObject(byte));
            }
            self.scanned += 1;
            if self.step(byte) {
                self.end = Some(self.scanned);
            }
        }
        if self.end.is_none() && self.buffer.len() > LIMIT { Err(MessageError::TooLong) } else { Ok(()) }
    }

    /// Moves over one byte; true if it closes the outermost object.
    fn step(&mut self, byte: u8) -> bool {
        self.scan = match (self.scan, byte) {
            (Scan::Plain, b'{' | b'[') => {
                self.depth += 1;
                Scan::Plain
            }
            (Scan::Plain, b'}' | b']') => {
                self.depth -= 1;
                return self.depth == 0;
            }
            (Scan::Plain, b'"') | (Scan::Escape, _) => Scan::String,
            (Scan::String, b'"') => Scan::Plain,
            (Scan::String, b'\\') => Scan::Escape,
            (state, _) => state,
        };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn requests(splitter: &mut Splitter) -> Vec<Request> {
        std::iter::from_fn(|| splitter.next_request().unwrap()).collect()
    }

    #[test]
    fn objects_follow_each_other_without_framing() {
        let mut splitter = Splitter::default();
        splitter
            .push(br#" {"id":0,"method":"a","params":[]}{"id":"x","method":"b","params":["}{\"["]} {"#)
            .unwrap();
        let got = requests(&mut splitter);
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].method.as_str(), got[1].params[0].clone()), ("a", json!("}{\"[")));
        assert!(splitter.is_partial());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert_eq!(Splitter::default().push(b"GET / HTTP/1.1"), Err(MessageError::NotObject(b'G')));
        let mut splitter = Splitter::default();
        splitter.push(br#"{"id":0,"method":7,"params":[]}"#).unwrap();
        assert!(matches!(splitter.next_request(), Err(MessageError::NotRequest(_))));
        let mut splitter = Splitter::default();
        splitter.push(b"{\"a\"]}").unwrap();
        assert!(splitter.next_request().is_err());
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let mut splitter = Splitter::default();
        splitter.push(b"{\"id\":\"").unwrap();
        let refused = (0..).find(|_| splitter.push(&[b'x'; 65536]).is_err()).unwrap();
        assert_eq!(refused * 65536, LIMIT - 65536);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_cut_of_the_stream_gives_the_same_requests(
            texts in prop::collection::vec("[ -~\\n\\\\\"{}é]{0,12}", 1..6), cut in 1usize..17
        ) {
            let sent: Vec<_> = texts.iter().enumerate()
                .map(|(id, t)| Request { id: json!(id), method: t.clone(), params: vec![json!(t)] }).collect();
            let stream: Vec<u8> = sent.iter().flat_map(|r| serde_json::to_vec(r).unwrap()).collect();
            let mut splitter = Splitter::default();
            let mut got = Vec::new();
            for part in stream.chunks(cut) {
                splitter.push(part).unwrap();
                got.extend(requests(&mut splitter));
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut splitter = Splitter::default();
            if splitter.push(&bytes).is_ok() {
                while let Ok(Some(_)) = splitter.next_request() {}
            }
        }
    }
}
