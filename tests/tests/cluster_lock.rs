//! The cluster lock in a whole cluster: who holds it, and that a daemon that is stopped or killed
//! does not keep it.

use std::time::Duration;

use ctdb_tests::lab::{Freeze, Lab};
use nix::sys::signal::Signal;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

fn lab() -> Lab {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    // A file system that all nodes see, as a cluster file system is.
    let lab = Lab::builder()
        .nodes(3)
        .public_addresses(3)
        .conf("cluster", "authority", "majority")
        .conf("cluster", "lock validity", "2s")
        .build()
        .unwrap();
    let lock = lab.shared_dir().join("lock");
    for node in lab.nodes() {
        let conf = node.etc().join("ctdb.conf");
        let text = std::fs::read_to_string(conf).unwrap();
        let line = format!("[cluster]\n\tcluster lock = {}\n", lock.display());
        let text = text.replacen("[cluster]\n", &line, 1);
        node.write("ctdb.conf", &text).unwrap();
    }
    lab.start_daemons().unwrap();
    lab.wait_all_served(LONG).unwrap();
    lab
}

fn lock(lab: &Lab, pnn: u32) -> Option<Value> {
    lab.node(pnn).ctdb_json(&["cluster", "lock"]).ok()
}

/// The node among these that holds the lock.
fn holder(lab: &Lab, among: &[u32]) -> Option<u32> {
    among
        .iter()
        .copied()
        .find(|pnn| lock(lab, *pnn).is_some_and(|view| view["state"] == "held"))
}

fn wait_holder(lab: &Lab, among: &[u32]) -> u32 {
    let mut found = None;
    lab.wait("a holder of the lock", LONG, || {
        found = holder(lab, among);
        found.is_some()
    })
    .unwrap();
    found.unwrap()
}

fn without(pnn: u32) -> Vec<u32> {
    (0..3).filter(|other| *other != pnn).collect()
}

#[test]
fn a_stopped_or_killed_holder_does_not_keep_it() {
    let lab = lab();
    let first = wait_holder(&lab, &[0, 1, 2]);
    let processes = lab.node(first).ctdb_json(&["process", "list"]).unwrap();
    let helper = &processes["processes"][0];
    assert_eq!(helper["owner"], "lock", "{processes}");
    assert_eq!(helper["pid"], lock(&lab, first).unwrap()["pid"]);

    // Its daemon is stopped: the guard ends the helper, and the next leader gets the lock.
    lab.node(first).freeze(Freeze::Daemon).unwrap();
    let second = wait_holder(&lab, &without(first));
    lab.node(first).thaw(Freeze::Daemon).unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    assert_eq!(holder(&lab, &[0, 1, 2]), Some(second));

    // Killed: likewise, at once.
    lab.node(second).kill_daemon(Signal::SIGKILL).unwrap();
    let third = wait_holder(&lab, &without(second));
    lab.node(second).start_daemon().unwrap();
    lab.wait_all_served(LONG).unwrap();

    // The history of the killed daemon's life is still there.
    let history = lab
        .node(second)
        .ctdb(&["cluster", "history"])
        .unwrap()
        .success()
        .unwrap();
    assert!(history.contains("cluster lock taken"), "{history}");

    // In order: let go, and nothing is left of it.
    lab.node(third).stop_graceful(LONG).unwrap();
    wait_holder(&lab, &without(third));
}
