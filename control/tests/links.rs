//! Interfaces as netlink reports them, in a network namespace of each test's own. Needs root.

#[path = "support/namespace.rs"]
mod namespace;

use std::collections::BTreeSet;

use control::links::Links;

use namespace::{in_namespace, ip};

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// Netlink messages of a change are queued before the command that made it returns.
fn changes(links: &mut Links, command: &str) -> BTreeSet<String> {
    ip(command);
    links.refresh().unwrap()
}

#[test]
fn what_is_there_at_the_start_is_known() {
    in_namespace(|| {
        ip("link add a1 type veth peer name b1");
        ip("link set a1 up mtu 1400");
        let links = Links::open().unwrap();
        let a1 = links.get("a1").unwrap();
        assert_eq!((a1.up, a1.running, a1.mtu), (true, false, 1400));
        assert!(!links.get("b1").unwrap().up);
        assert!(links.get("c1").is_none());
    });
}

#[test]
fn coming_going_renaming_and_returning_are_noticed() {
    in_namespace(|| {
        let mut links = Links::open().unwrap();
        assert!(changes(&mut links, "link add a1 type veth peer name b1").is_superset(&names(["a1", "b1"])));
        let first = links.get("a1").unwrap().index;
        assert!(changes(&mut links, "link set a1 up").contains("a1"));
        assert!(links.get("a1").unwrap().up);
        assert_eq!(changes(&mut links, "link set b1 name c1"), names(["b1", "c1"]));
        assert!(links.get("b1").is_none());
        assert_eq!(changes(&mut links, "link set c1 address 02:00:00:00:00:01"), names(["c1"]));
        assert_eq!(links.get("c1").unwrap().mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!(changes(&mut links, "link set c1 alias other"), names([]), "no concern of ours");
        assert_eq!(changes(&mut links, "link del a1"), names(["a1", "c1"]));
        assert!(links.get("a1").is_none());
        changes(&mut links, "link add a1 type veth peer name b1");
        assert_ne!(links.get("a1").unwrap().index, first);
    });
}

#[test]
fn after_an_overrun_everything_is_known_again() {
    in_namespace(|| {
        ip("link add a1 type veth peer name b1");
        let mut links = Links::open().unwrap();
        // Each batch line makes at least one message of some 1.5 KiB; the buffer holds 8 MiB at most.
        let toggles: String = (0..6000).map(|i| format!("link set b1 mtu {}\n", 1000 + i % 400)).collect();
        let script = std::env::temp_dir().join(format!("sluice-links-{}", std::process::id()));
        std::fs::write(&script, toggles + "link del a1\nlink add z1 type veth peer name z2\n").unwrap();
        ip(&format!("-batch {}", script.display()));
        std::fs::remove_file(&script).unwrap();
        let changed = links.refresh().unwrap();
        assert!(changed.is_superset(&names(["a1", "b1", "z1", "z2"])), "{changed:?}");
        assert!(links.get("a1").is_none() && links.get("z1").is_some());
    });
}
