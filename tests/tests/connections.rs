//! Connections to public addresses, in whole clusters: known on all nodes, and ended on both
//! sides when their address moves (ADDR-3): idle and sending clients, IPv4 and IPv6, in every
//! kind of failure.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ctdb_tests::lab::cli::wait_until;
use ctdb_tests::lab::held::{Held, Kind, Told, Wanted};
use ctdb_tests::lab::scenario::{Fail, Plan, Role, Scene};
use ctdb_tests::lab::{Lab, Node, Service, Stamp, plain};
use nix::sys::signal::Signal;

const LONG: Duration = Duration::from_secs(30);
/// From the bound of the takeover to the last client that was told: all rounds of tickles, on a
/// busy machine.
const TOLD: Duration = Duration::from_secs(10);

fn build() -> Lab {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let lab = Lab::builder().build().unwrap();
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    lab
}

fn server(address: IpAddr) -> SocketAddr {
    (address, plain::PORT).into()
}

/// One idle and one sending connection to each address.
fn both_kinds(addresses: &[IpAddr]) -> Vec<Wanted> {
    let kinds = [Kind::Idle, Kind::Sending];
    addresses
        .iter()
        .flat_map(|address| {
            kinds.map(|kind| Wanted {
                server: server(*address),
                kind,
                again: true,
            })
        })
        .collect()
}

/// A command that goes on until it is dropped.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The connections that a node knows: (client, server, node).
fn known(node: &Node) -> Vec<(SocketAddr, SocketAddr, Option<u32>)> {
    let list = node.connections().unwrap().into_iter();
    list.map(|one| (one.client, one.server, one.node)).collect()
}

fn counts(node: &Node) -> serde_json::Value {
    node.ctdb_json(&["conntrack", "stats"]).unwrap()
}

/// Server sockets of the plain service on an address of a node.
fn sockets(node: &Node, address: IpAddr) -> usize {
    // `ss` reads IPv6 only in brackets, and takes IPv4 there too.
    let filter = format!("src [{address}]");
    let words = ["-Htn", "state", "established", &filter];
    node.netns().run("ss", &words).unwrap().lines().count()
}

/// Holds connections over a failure; everybody on the addresses that move is told, and nobody
/// else; the server's sockets are gone.
fn told(fail: Fail, role: Role) {
    let lab = build();
    let plan = Plan::new(fail, role);
    let scene = Scene::set(&lab, plan, &[], None).unwrap();
    let victim = scene.victim();
    let affected = scene.affected().to_vec();
    let held = Held::open(lab.client(), &both_kinds(&lab.public_addresses()), None).unwrap();
    held.wait_known(&lab, LONG).unwrap();
    let fault = scene.strike().unwrap();
    scene
        .settle(plan.bound("standard") + Duration::from_secs(10))
        .unwrap();
    let served = Stamp::now();
    let moved = affected.len() * 2;
    wait_until(
        "all clients to be told and to be served again",
        LONG,
        || {
            let records = held.records();
            let done = records.iter().filter(|told| told.again.is_some());
            held.told() >= moved && done.count() >= moved
        },
    )
    .unwrap();
    scene.heal(LONG).unwrap();
    let records = held.finish().unwrap();
    let aftermath = scene.finish(fault).unwrap();
    assert_eq!(aftermath.report.conflicts(), [], "ADDR-1");
    let is_affected = |told: &&Told| affected.contains(&told.wanted.server.ip());
    for told in records.iter().filter(is_affected) {
        let (at, how) = told.told.clone().expect("it was told");
        println!(
            "{fail:?} {role:?}: {} {} told {how} {:.0} ms after the fault, again after {:.0} ms",
            told.wanted.kind.name(),
            told.wanted.server,
            at.since(fault).as_secs_f64() * 1e3,
            told.again.unwrap().since(fault).as_secs_f64() * 1e3,
        );
        assert!(
            at.since(fault) < plan.bound("standard") + TOLD,
            "{told:?}, fault {fault:?}, served {served:?}"
        );
        assert_eq!(how, "ECONNRESET", "{told:?}");
    }
    if fail.planned() {
        let others = records.iter().filter(|told| !is_affected(told));
        for other in others {
            // Healing moves addresses back; before that nobody else is disturbed.
            if let Some((at, how)) = &other.told {
                assert!(*at > served, "{other:?} {how}");
            }
        }
        wait_until("the server's sockets to be gone", LONG, || {
            affected.iter().all(|address| {
                let owners = lab.node(victim).ip_owners().unwrap_or_default();
                owners.get(address) == Some(&Some(victim))
                    || sockets(lab.node(victim), *address) == 0
            })
        })
        .unwrap();
    }
    lab.end().unwrap();
}

#[test]
fn told_of_a_move() {
    told(Fail::Move, Role::Follower);
}

#[test]
fn told_of_a_drain() {
    told(Fail::Drain, Role::Follower);
}

#[test]
fn told_of_a_graceful_stop_of_the_leader() {
    told(Fail::Stop, Role::Leader);
}

#[test]
fn told_of_a_killed_daemon() {
    told(Fail::Daemon, Role::Follower);
}

#[test]
fn told_of_a_power_loss_of_the_leader() {
    told(Fail::Power, Role::Leader);
}

#[test]
fn told_of_a_frozen_node() {
    told(Fail::Freeze, Role::Follower);
}

#[test]
fn told_of_cut_links() {
    told(Fail::Links, Role::Follower);
}

#[test]
fn connections_are_known_on_all_nodes_shown_and_forgotten() {
    let lab = build();
    let addresses = lab.public_addresses();
    let owners = lab.node(0).ip_owners().unwrap();
    let held = Held::open(lab.client(), &both_kinds(&addresses), None).unwrap();
    held.wait_known(&lab, LONG).unwrap();
    for node in lab.hosts() {
        for (_, server, at) in known(node) {
            assert_eq!(at, owners[&server.ip()], "{server} on {}", node.pnn());
        }
    }
    // Of one client: all its connections, on all addresses and nodes.
    let by_client = lab
        .node(1)
        .ctdb_json(&["conntrack", "list", "--by", "client"])
        .unwrap();
    let total: u64 = by_client["clients"]
        .as_array()
        .unwrap()
        .iter()
        .map(|client| client["count"].as_u64().unwrap())
        .sum();
    assert_eq!(total as usize, 2 * addresses.len());
    assert_eq!(by_client["total"], 2, "one of each family");
    // Old and new names of the same.
    let first = held.records()[0].clone();
    let (client, server) = (first.client.to_string(), first.wanted.server.to_string());
    let ip = first.wanted.server.ip().to_string();
    let port = plain::PORT.to_string();
    let old = lab
        .node(2)
        .ctdb(&["gettickles", &ip, &port])
        .unwrap()
        .success()
        .unwrap();
    assert!(
        old.starts_with(&format!("Connections for IP: {ip}\nNum connections: 2\n")),
        "{old}"
    );
    assert!(
        old.contains(&format!("SRC: {client}   DST: {server}\n")),
        "{old}"
    );
    let other_port = lab
        .node(2)
        .ctdb(&["gettickles", &ip, "1"])
        .unwrap()
        .success()
        .unwrap();
    assert!(other_port.ends_with("Num connections: 0\n"), "{other_port}");
    let foreign = lab.node(2).ctdb(&["gettickles", "192.0.2.1"]).unwrap();
    assert!(!foreign.ok() && foreign.stderr.contains("Failed to get list of connections"));
    // All that its node knows.
    let owner = owners[&first.wanted.server.ip()].unwrap();
    let words = [
        "conntrack",
        "show",
        &client,
        &server,
        "-n",
        &owner.to_string(),
    ];
    let detail = lab.node(0).ctdb_json(&words).unwrap();
    assert_eq!(detail["state"], "ESTABLISHED");
    // The service has greeted its client, which has said nothing.
    assert!(detail["pid"].as_u64().unwrap() > 1, "{detail}");
    assert!(detail["command"].is_string(), "{detail}");
    assert!(detail["bytes_acked"].as_u64().unwrap() > 0, "{detail}");
    assert_eq!(detail["bytes_received"], 0, "{detail}");
    let group = detail["cgroup"].as_str();
    assert!(group.is_none_or(|group| group.starts_with('/')), "{detail}");
    assert!(
        detail["connection"]["sources"]
            .as_array()
            .unwrap()
            .contains(&"kernel".into())
    );
    drop(held);
    wait_until("all nodes to forget them", LONG, || {
        lab.hosts().iter().all(|node| known(node).is_empty())
    })
    .unwrap();
    lab.end().unwrap();
}

#[test]
fn registered_connections_are_replicated_and_taken_out() {
    let lab = build();
    let ip = lab.public_addresses()[0];
    let server = format!("{ip}:445");
    let client = "192.0.2.9:50000";
    let seen = lab.dir().join("watch.txt");
    let script = format!("exec \"$0\" \"$@\" > {}", seen.display());
    let mut command = lab
        .node(1)
        .ctdb_in_shell(&script, &["conntrack", "watch"])
        .unwrap();
    let mut watch = Running(lab.node(1).netns().spawn(&mut command).unwrap());
    let watched = |what: &str| {
        let line = format!("{what} {client} -> {server} node ");
        let text = std::fs::read_to_string(&seen).unwrap_or_default();
        text.lines().any(|other| other.starts_with(&line))
    };
    lab.node(0)
        .ctdb(&["addtickle", client, &server])
        .unwrap()
        .success()
        .unwrap();
    let ip = ip.to_string();
    let shown = |pnn: u32| {
        lab.node(pnn)
            .ctdb(&["-X", "gettickles", &ip])
            .unwrap()
            .stdout
    };
    let row = format!("|192.0.2.9|50000|{ip}|445|\n");
    wait_until("another node to know it", LONG, || shown(2).contains(&row)).unwrap();
    wait_until("watch to show it", LONG, || watched("opened")).unwrap();
    assert!(!watched("closed"));
    lab.node(0)
        .ctdb(&["deltickle", client, &server])
        .unwrap()
        .success()
        .unwrap();
    wait_until("another node to forget it", LONG, || {
        !shown(2).contains(&row)
    })
    .unwrap();
    wait_until("watch to show its end", LONG, || watched("closed")).unwrap();
    assert_eq!(watch.0.try_wait().unwrap(), None, "watch goes on");
    drop(watch);
    let refused = lab
        .node(0)
        .ctdb(&["addtickle", client, "192.0.2.1:445"])
        .unwrap();
    assert!(!refused.ok() && refused.stderr.contains("Failed to register connection"));
    let refused = lab
        .node(0)
        .ctdb(&["conntrack", "add", client, "192.0.2.1:445"])
        .unwrap();
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    lab.end().unwrap();
}

#[test]
fn killed_by_the_operator() {
    let lab = build();
    let ip = lab.public_addresses()[0];
    let owner = lab.node(0).ip_owners().unwrap()[&ip].unwrap();
    // One that came back at once could be met by the second pass.
    let wanted = both_kinds(&[ip])
        .into_iter()
        .map(|wanted| Wanted {
            again: false,
            ..wanted
        })
        .collect::<Vec<_>>();
    let held = Held::open(lab.client(), &wanted, None).unwrap();
    held.wait_known(&lab, LONG).unwrap();
    let words = [
        "conntrack",
        "kill",
        "--address",
        &ip.to_string(),
        "-n",
        &owner.to_string(),
    ];
    let text = lab
        .node((owner + 1) % 3)
        .ctdb(&words)
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(text, "2 sockets destroyed\n");
    wait_until("both clients to be told", LONG, || held.told() == 2).unwrap();
    lab.end().unwrap();
}

#[test]
fn a_daemon_that_is_started_anew_knows_what_is_there() {
    let lab = build();
    let owners = lab.node(0).ip_owners().unwrap();
    let held = Held::open(lab.client(), &both_kinds(&lab.public_addresses()), None).unwrap();
    held.wait_known(&lab, LONG).unwrap();
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let victim = (leader + 1) % 3;
    lab.node(victim).kill_daemon(Signal::SIGKILL).unwrap();
    lab.node(victim).wait_daemon_exit(LONG).unwrap();
    lab.node(victim).start_daemon().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    let moved = owners
        .values()
        .filter(|owner| **owner == Some(victim))
        .count()
        * 2;
    wait_until("clients to be told, or to be served on", LONG, || {
        let again = held
            .records()
            .iter()
            .filter(|told| told.again.is_some())
            .count();
        let other = lab.node(leader).ip_owners().unwrap_or_default();
        let stayed = owners
            .iter()
            .filter(|(ip, owner)| **owner == Some(victim) && other.get(ip) == Some(&Some(victim)))
            .count();
        again + 2 * stayed >= moved
    })
    .unwrap();
    // Whatever became of each: it was told, or it is known to the new daemon as to the others.
    let alive = || -> Vec<(SocketAddr, SocketAddr)> {
        let records = held.records();
        let untold = records.iter().filter(|told| told.told.is_none());
        untold
            .map(|told| (told.client, told.wanted.server))
            .collect()
    };
    let of = |pnn: u32| {
        let mut list = known(lab.node(pnn));
        list.sort();
        list
    };
    let same = wait_until("the new daemon to know them", LONG, || {
        let there = of(victim);
        let is_known = |ends: &(SocketAddr, SocketAddr)| {
            there
                .iter()
                .any(|(client, server, _)| (*client, *server) == *ends)
        };
        alive().iter().all(is_known) && of(leader) == there
    });
    let owners = lab.node(leader).ip_owners().unwrap();
    assert!(
        same.is_ok(),
        "{:?} alive, node {victim} knows {:?},\nnode {leader} {:?},\n{owners:?}",
        alive(),
        of(victim),
        of(leader)
    );
    lab.end().unwrap();
}

#[test]
fn a_node_that_joins_gets_the_whole_table() {
    let lab = build();
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let late = (leader + 1) % 3;
    lab.node(late).stop_graceful(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    let mut wanted = both_kinds(&lab.public_addresses());
    wanted.extend([wanted[0]; 300]);
    let held = Held::open(lab.client(), &wanted, None).unwrap();
    // Addresses stay where they are when the node comes.
    lab.node(leader)
        .ctdb(&["setvar", "NoIPFailback", "1"])
        .unwrap();
    lab.node(late).start_daemon().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    // Whose address moved to the newcomer after all connects anew.
    let alive = || {
        let records = held.records();
        let untold = records.iter().filter(|told| told.told.is_none());
        untold.count()
    };
    assert!(alive() >= 100, "{}", alive());
    let mut last = String::new();
    let same = wait_until("the newcomer to know all", LONG, || {
        let [newcomer, other] = [late, leader].map(|pnn| {
            let list = known(lab.node(pnn)).into_iter();
            list.collect::<std::collections::BTreeSet<_>>()
        });
        last = format!(
            "{} alive, {} and {} known\nnewcomer only: {:?}\nother only: {:?}",
            alive(),
            newcomer.len(),
            other.len(),
            newcomer.difference(&other).collect::<Vec<_>>(),
            other.difference(&newcomer).collect::<Vec<_>>()
        );
        newcomer == other && newcomer.len() >= alive()
    });
    assert!(
        same.is_ok(),
        "{last}\n{}\n{}",
        counts(lab.node(late)),
        counts(lab.node(leader))
    );
    lab.end().unwrap();
}

#[test]
fn figures_for_prometheus_are_on_the_read_only_socket() {
    let lab = build();
    let ip = lab.public_addresses()[0];
    let held = Held::open(lab.client(), &both_kinds(&[ip]), None).unwrap();
    held.wait_known(&lab, LONG).unwrap();
    let owner = lab.node(0).ip_owners().unwrap()[&ip].unwrap();
    let socket = lab.node(owner).root().join("run/ctdb/api-ro.sock");
    let mut text = String::new();
    wait_until("the figures to follow", LONG, || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: ctdb\r\n\r\n")
            .unwrap();
        text.clear();
        stream.read_to_string(&mut text).unwrap();
        text.contains("\nctdb_connections{of=\"this_node\"} 2\n")
    })
    .unwrap();
    assert!(
        text.contains("content-type: text/plain; version=0.0.4"),
        "{text}"
    );
    assert!(text.contains("\nctdb_right_held 1\n"), "{text}");
    assert_eq!(counts(lab.node(owner))["own"], 2);
    lab.end().unwrap();
}
