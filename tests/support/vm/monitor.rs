//! QEMU's monitor: one JSON object a line, commands in, answers and events out (QEMU's `docs/interop/qmp-spec.txt`).

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::lab::within;

/// How long the machine may take to answer, on two loaded cores; a card that waits for its switch blocks it, too.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to the monitor.
pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// Events that nobody has asked for yet.
    events: Vec<Value>,
}

impl Monitor {
    /// Connects to a monitor, which may be about to listen.
    pub fn connect(path: &Path) -> Monitor {
        let mut stream = None;
        within(ANSWER, "the monitor listens", || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        let stream = stream.expect("just connected");
        stream.set_read_timeout(Some(ANSWER)).expect("a timeout");
        let mut monitor = Monitor { stream: BufReader::new(stream), events: Vec::new() };
        monitor.next(); // its greeting
        monitor.ask("qmp_capabilities", json!({}));
        monitor
    }

    /// A command that must succeed; what it returns.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.try_ask(command, arguments).unwrap_or_else(|said| panic!("{command}: {said}"))
    }

    /// A command; what it returns, or why it did not.
    pub fn try_ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.get_mut().write_all(line.as_bytes()).expect("the monitor listens");
        loop {
            let mut said = self.next();
            if let Some(error) = said.get("error") {
                return Err(error.to_string());
            }
            match said.get_mut("return") {
                Some(value) => return Ok(value.take()),
                None => self.events.push(said),
            }
        }
    }

    /// Waits for an event of this name about a device with this id.
    pub fn await_event(&mut self, name: &str, device: &str) {
        let is_it = |event: &Value| event["event"] == name && event["data"]["device"] == device;
        let seen = self.events.iter().position(is_it);
        if let Some(at) = seen {
            self.events.remove(at);
            return;
        }
        loop {
            let event = self.next();
            if is_it(&event) {
                return;
            }
            self.events.push(event);
        }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => panic!("the monitor hung up"),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the monitor said nothing for {ANSWER:?}")
            }
            read => read.expect("the monitor's socket"),
        };
        serde_json::from_str(&line).expect("JSON")
    }
}
