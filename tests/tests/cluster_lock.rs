//! The cluster lock in a whole cluster: who holds it, and that a daemon that is stopped or killed
//! does not keep it.

use std::time::Duration;

use ctdb_tests::lab::cluster_lock::Keeper;
use ctdb_tests::lab::{Freeze, Lab, Links, Service};
use nix::sys::signal::Signal;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

fn built(authority: &str, profile: &str) -> Lab {
    built_with(3, authority, profile)
}

/// A lab with a lock in a file system that all nodes see, as a cluster file system is.
fn built_with(nodes: u32, authority: &str, profile: &str) -> Lab {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let lab = Lab::builder()
        .nodes(nodes)
        .profile(profile)
        .conf("cluster", "authority", authority)
        .conf("cluster", "lock validity", "2s")
        .build()
        .unwrap();
    lab.keep_lock(Keeper::File).unwrap();
    lab
}

fn lab() -> Lab {
    let lab = built("majority", "standard");
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

/// A lab whose right comes from the lock, with the profile's own times.
fn lock_lab(authority: &str) -> Lab {
    let lab = built(authority, "standard");
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    lab
}

/// Waits until every public address is served by nodes among these.
fn wait_served_by(lab: &Lab, nodes: &[u32]) -> Duration {
    lab.wait(&format!("all addresses to be on {nodes:?}"), LONG, || {
        let owners = lab.node(nodes[0]).ip_owners().unwrap_or_default();
        !owners.is_empty()
            && owners
                .values()
                .all(|owner| owner.is_some_and(|owner| nodes.contains(&owner)))
    })
    .unwrap()
}

/// `authority = lock`: any number of survivors serves, and no two ever answer for one address.
#[test]
fn with_the_lock_any_survivor_serves() {
    let lab = lock_lab("lock");
    let observer = lab.observe(None).unwrap();
    let first = wait_holder(&lab, &[0, 1, 2]);
    assert_eq!(lab.node(0).leader_seen().unwrap(), Some(first));

    // A node without the lock dies: the holder gives its addresses away.
    let follower = (first + 1) % 3;
    lab.node(follower).kill_daemon(Signal::SIGKILL).unwrap();
    let took = wait_served_by(&lab, &without(follower));
    println!("lock, kill -9 of a follower: {took:?}");
    lab.node(follower).wait_daemon_exit(LONG).unwrap();
    lab.node(follower).start_daemon().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();

    // The holder dies: the guard lets go of the lock, and the next holder waits for the settling.
    lab.node(first).kill_daemon(Signal::SIGKILL).unwrap();
    let took = wait_served_by(&lab, &without(first));
    println!("lock, kill -9 of the holder: {took:?}");
    lab.node(first).wait_daemon_exit(LONG).unwrap();
    lab.node(first).start_daemon().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();

    // The holder is stopped in its tracks, and wakes.
    let second = wait_holder(&lab, &[0, 1, 2]);
    lab.node(second).freeze(Freeze::Daemon).unwrap();
    let took = wait_served_by(&lab, &without(second));
    println!("lock, SIGSTOP of the holder: {took:?}");
    lab.node(second).thaw(Freeze::Daemon).unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();

    // Two of three are cut off and one of them dies: whoever has the lock serves all.
    let third = wait_holder(&lab, &[0, 1, 2]);
    for pnn in without(third) {
        lab.node(pnn).cut_links(Links::All).unwrap();
    }
    let took = wait_served_by(&lab, &[third]);
    println!("lock, two of three cut off: {took:?}");
    for pnn in without(third) {
        lab.node(pnn).restore_links(Links::All).unwrap();
    }
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}

/// `authority = both`: the majority that has the lock serves.
#[test]
fn with_both_the_majority_with_the_lock_serves() {
    let lab = lock_lab("both");
    let observer = lab.observe(None).unwrap();
    let first = wait_holder(&lab, &[0, 1, 2]);
    lab.partition(&[first], Links::All).unwrap();
    let took = wait_served_by(&lab, &without(first));
    println!("both, the holder cut off alone: {took:?}");
    lab.heal().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}

/// Two nodes and a lock, without a third that votes: CTDB's usual pair.
#[test]
fn two_nodes_with_a_lock() {
    let lab = built_with(2, "lock", "standard");
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let observer = lab.observe(None).unwrap();
    let holder = wait_holder(&lab, &[0, 1]);
    lab.node(holder).power_loss().unwrap();
    let other = 1 - holder;
    let took = wait_served_by(&lab, &[other]);
    println!("lock, two nodes, power loss of the holder: {took:?}");
    lab.node(holder).restore_power().unwrap();
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}
