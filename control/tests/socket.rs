//! The control socket from outside: friendly clients, hostile ones, and Debian's `ovs-appctl`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::api::message::LIMIT;
use control::api::server::{CLIENTS, Server};
use control::api::socket::Claim;
use control::api::{Verb, dispatch};
use control::client::{self, ClientError};
use nix::poll::{PollFd, PollTimeout, poll};
use serde_json::{Value, json};

const VERBS: &[Verb<u64>] = &[
    Verb { name: "count", usage: "", params: (0, 0), run: |n, _| Ok(json!(n.to_string())) },
    Verb { name: "echo", usage: "text [more]", params: (1, 2), run: |_, p| Ok(json!(p.join(" "))) },
    Verb { name: "fail", usage: "", params: (0, 0), run: |_, _| Err("no such luck".to_owned()) },
    Verb { name: "flood", usage: "", params: (0, 0), run: |_, _| Ok(json!("x".repeat(2 << 20))) },
    Verb { name: "sluice/value", usage: "", params: (0, 0), run: |_, _| Ok(json!({ "n": [1, 2] })) },
];

/// A server in a thread of its own, which counts the requests it answered.
struct Rig {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sluice.sock");
        let (claim, listener) = Claim::new(&socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut server, mut answered) = (Server::new(listener), 0);
            while !stopped.load(Ordering::Relaxed) {
                wait(&server);
                server.turn(Instant::now(), &mut |request| {
                    answered += 1;
                    dispatch(VERBS, &mut answered, request)
                });
            }
            server.finish();
            drop(claim);
        });
        Rig { socket, stop, thread: Some(thread), _dir: dir }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn call(&self, method: &str, params: &[&str]) -> Result<Value, ClientError> {
        let params: Vec<String> = params.iter().map(|p| p.to_string()).collect();
        client::call(&self.socket, method, &params)
    }

    fn appctl(&self, args: &[&str]) -> Output {
        let run = Command::new("ovs-appctl").arg("-t").arg(&self.socket).args(args).output();
        run.expect("ovs-appctl is installed (Debian package openvswitch-common)")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _wake = UnixStream::connect(&self.socket);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn wait(server: &Server) {
    let patience = server.patience(Instant::now()).unwrap_or(Duration::from_secs(3600));
    let mut fds: Vec<_> = server.interests().map(|(fd, flags)| PollFd::new(fd, flags)).collect();
    poll(&mut fds, PollTimeout::try_from(patience).unwrap()).unwrap();
}

fn reply(stream: &mut UnixStream) -> Value {
    let mut values = serde_json::Deserializer::from_reader(stream).into_iter();
    values.next().expect("a reply").unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn ovs_appctl_drives_it() {
    let rig = Rig::new();
    let out = rig.appctl(&["echo", "hello", "world"]);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "hello world"));
    let out = rig.appctl(&["list-commands"]);
    let expected =
        "The available commands are:\n  count                   \n  echo                    text [more]\n";
    assert!(text(&out.stdout).starts_with(expected), "{}", text(&out.stdout));
    let refusals: [(&[&str], &str); 4] = [
        (
            &["nosuch"],
            "\"nosuch\" is not a valid command (use \"list-commands\" to see a list of valid commands)\n",
        ),
        (&["echo"], "\"echo\" command requires at least 1 arguments\n"),
        (&["echo", "1", "2", "3"], "\"echo\" command takes at most 2 arguments\n"),
        (&["fail"], "no such luck\n"),
    ];
    for (args, refusal) in refusals {
        let out = rig.appctl(args);
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).starts_with(refusal), "{}", text(&out.stderr));
    }
}

#[test]
fn our_client_gets_values_and_refusals() {
    let rig = Rig::new();
    assert_eq!(rig.call("sluice/value", &[]).unwrap(), json!({ "n": [1, 2] }));
    assert_eq!(rig.call("fail", &[]).unwrap_err().to_string(), "no such luck");
    assert_eq!(rig.call("flood", &[]).unwrap().as_str().unwrap().len(), 2 << 20);
    let nobody = client::call(Path::new("/nonexistent/sock"), "x", &[]).unwrap_err().to_string();
    assert!(nobody.contains("/nonexistent/sock") && nobody.contains("sluice run"), "{nobody}");
}

#[test]
fn requests_may_come_in_pieces_or_in_heaps() {
    let rig = Rig::new();
    let mut stream = rig.connect();
    let request = br#"{"id":7,"method":"echo","params":["a"]}"#;
    for byte in request {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(reply(&mut stream), json!({ "id": 7, "result": "a", "error": null }));
    stream.write_all(&request.repeat(100)).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all.split_whitespace().count(), 100, "all are answered, then the connection ends");
}

#[test]
fn garbage_is_refused_and_the_connection_ends() {
    let rig = Rig::new();
    let deep = format!("{{\"id\":{}", "[".repeat(4000)) + &"]".repeat(4000) + "}";
    let cases = [
        "GET / HTTP/1.1\r\n\r\n",
        "{\"id\":0}",
        "{\"id\":0,\"method\":\"echo\",\"params\":{}}",
        "{\u{1}}",
        &deep,
    ];
    for garbage in cases {
        let mut stream = rig.connect();
        stream.write_all(garbage.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"].is_string() && answer["id"].is_null(), "{answer}");
    }
    let mut stream = rig.connect();
    stream.write_all(br#"{"id":0,"method":"echo","params":[1]}"#).unwrap();
    assert_eq!(reply(&mut stream)["error"], "\"echo\" command has non-string argument\n");
}

#[test]
fn a_request_that_never_ends_is_cut_off_and_others_are_served() {
    let rig = Rig::new();
    let mut hostile = rig.connect();
    hostile.write_all(b"{\"id\":\"").unwrap();
    let chunk = [b'x'; 65536];
    let cut = (0..1600).position(|_| hostile.write_all(&chunk).is_err());
    assert!(cut.is_some_and(|chunks| chunks * chunk.len() < 4 * LIMIT), "cut off after {cut:?} chunks");
    assert_eq!(rig.call("echo", &["still here"]).unwrap(), "still here");
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody() {
    let rig = Rig::new();
    let mut slow: Vec<_> = (0..4).map(|_| rig.connect()).collect();
    for stream in &mut slow {
        stream.write_all(&br#"{"id":0,"method":"flood","params":[]}"#.repeat(50)).unwrap();
    }
    for i in 0..20 {
        assert_eq!(rig.call("echo", &[&i.to_string()]).unwrap(), i.to_string());
    }
    assert_eq!(reply(&mut slow[0])["result"].as_str().unwrap().len(), 2 << 20);
}

#[test]
fn the_quietest_client_makes_room() {
    let rig = Rig::new();
    let mut crowd: Vec<_> = (0..CLIENTS).map(|_| rig.connect()).collect();
    for stream in &mut crowd[1..] {
        stream.write_all(br#"{"id":0,"method":"count","params":[]}"#).unwrap();
        assert!(reply(stream)["error"].is_null());
    }
    assert_eq!(rig.call("echo", &["one more"]).unwrap(), "one more");
    assert_eq!(crowd[0].read(&mut [0]).unwrap(), 0, "the one that never spoke was closed");
    crowd[1].write_all(br#"{"id":0,"method":"count","params":[]}"#).unwrap();
    assert!(reply(&mut crowd[1])["error"].is_null());
}
