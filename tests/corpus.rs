//! Runs what the fuzzers found, and the seeds they started from, through the same checks.

#[path = "fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

/// Every file of a target's corpus; at least its seeds.
fn run(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = directory.read_dir().unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let files: Vec<_> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    assert!(files.len() > 20, "{} has {} files", directory.display(), files.len());
    for file in files {
        println!("{}", file.display()); // shown if the check panics
        check(&std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
    }
}

#[test]
fn decap() {
    run("decap", targets::decap);
}

#[test]
fn extract() {
    run("extract", targets::extract);
}

#[test]
fn flow_text() {
    run("flow_text", targets::flow_text);
}

#[test]
fn vhost_message() {
    run("vhost_message", targets::vhost_message);
}
