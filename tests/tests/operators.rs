//! What operators do to a running cluster, and what they see: verbs, bans, interfaces, reloads.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ctdb_tests::lab::{Lab, Node};

const LONG: Duration = Duration::from_secs(30);

fn needs() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
}

fn cluster() -> Lab {
    needs();
    let lab = Lab::builder().build().unwrap();
    lab.start_daemons().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    lab
}

fn done(node: &Node, words: &[&str]) -> String {
    node.ctdb(words).unwrap().success().unwrap()
}

fn held_by(lab: &Lab, asked: u32, pnn: u32) -> usize {
    let owners = lab.node(asked).ip_owners().unwrap();
    owners.values().filter(|owner| **owner == Some(pnn)).count()
}

fn flags(node: &Node, of: u32) -> String {
    let json = node.ctdb_json(&["node", "list"]).unwrap();
    let nodes = json["nodes"].as_array().unwrap();
    nodes[of as usize]["flags_text"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn verbs_are_done_when_they_return() {
    let lab = cluster();
    let (one, two) = (lab.node(0), lab.node(1));
    for (away, back, flag) in [
        (
            ["node", "disable", "1"],
            ["node", "enable", "1"],
            "DISABLED",
        ),
        (
            ["node", "stop", "1"],
            ["node", "start", "1"],
            "STOPPED|INACTIVE",
        ),
    ] {
        done(one, &away);
        assert_eq!(flags(one, 1), flag);
        assert_eq!(held_by(&lab, 0, 1), 0, "after {away:?}");
        assert!(
            lab.node(2)
                .ip_owners()
                .unwrap()
                .values()
                .all(Option::is_some),
            "after {away:?}"
        );
        done(one, &back);
        assert_eq!(flags(two, 1), "OK");
        assert!(held_by(&lab, 0, 1) > 0, "after {back:?}");
    }
    // The old words, on another node's behalf.
    done(one, &["-n", "2", "disable"]);
    assert_eq!(held_by(&lab, 0, 2), 0);
    done(one, &["enable", "-n", "2"]);
    assert!(held_by(&lab, 0, 2) > 0);
}

#[test]
fn a_ban_has_a_reason_and_an_end() {
    let lab = cluster();
    let one = lab.node(0);
    let start = Instant::now();
    done(
        one,
        &["node", "ban", "1", "--time", "2", "--reason", "a test"],
    );
    assert_eq!(flags(one, 1), "BANNED|INACTIVE");
    assert_eq!(held_by(&lab, 0, 1), 0);
    let json = one.ctdb_json(&["node", "list"]).unwrap();
    assert!(
        json["nodes"][1]["reason"]
            .as_str()
            .unwrap()
            .starts_with("banned: a test"),
        "{json}"
    );
    lab.wait("the ban to end", LONG, || flags(one, 1) == "OK")
        .unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2));
    lab.wait("addresses to come back", LONG, || held_by(&lab, 0, 1) > 0)
        .unwrap();
    let history = one
        .ctdb(&["cluster", "history"])
        .unwrap()
        .success()
        .unwrap();
    let banned = lab
        .node(1)
        .ctdb(&["cluster", "history"])
        .unwrap()
        .success()
        .unwrap();
    assert!(
        history.contains("BANNED") || banned.contains("banned"),
        "{history}{banned}"
    );
}

#[test]
fn the_last_node_lets_go_when_it_is_disabled() {
    needs();
    let lab = Lab::builder().nodes(1).build().unwrap();
    lab.start_daemons().unwrap();
    lab.wait_all_served(LONG).unwrap();
    let node = lab.node(0);
    for (away, back) in [("disable", "enable"), ("stop", "continue")] {
        done(node, &[away]);
        let addresses = node.netns().ip("-o address show dev pub0").unwrap();
        for address in lab.public_addresses() {
            lab.wait("the address to be off", LONG, || {
                !node
                    .netns()
                    .ip("-o address")
                    .unwrap()
                    .contains(&format!(" {address}/"))
            })
            .unwrap_or_else(|error| panic!("after {away}: {error}: {addresses}"));
        }
        assert!(
            node.ip_owners().unwrap().values().all(Option::is_none),
            "after {away}"
        );
        done(node, &[back]);
        assert!(
            node.ip_owners().unwrap().values().all(Option::is_some),
            "after {back}"
        );
    }
}

#[test]
fn a_link_set_down_by_the_operator_counts() {
    let lab = cluster();
    let node = lab.node(1);
    let name = lab.settings().public_interface_names()[0].clone();
    done(node, &["setifacelink", &name, "down"]);
    assert_eq!(held_by(&lab, 0, 1), 0);
    assert!(done(node, &["ifaces"]).contains(&format!("name:{name} link:down")));
    assert_eq!(flags(lab.node(0), 1), "PARTIALLYONLINE");
    done(node, &["interface", "link", &name, "up"]);
    assert!(held_by(&lab, 0, 1) > 0);
}

#[test]
fn public_addresses_are_read_again() {
    let lab = cluster();
    let gone = lab.public_addresses()[0];
    let new: IpAddr = "10.99.2.177".parse().unwrap();
    let name = &lab.settings().public_interface_names()[0];
    for node in lab.nodes() {
        let file = node.etc().join("public_addresses");
        let old = fs::read_to_string(&file).unwrap();
        let mut lines: Vec<String> = old
            .lines()
            .filter(|line| !line.starts_with(&format!("{gone}/")))
            .map(str::to_owned)
            .collect();
        assert_eq!(lines.len() + 1, old.lines().count());
        lines.push(format!("{new}/24 {name}\n"));
        fs::write(&file, lines.join("\n")).unwrap();
        done(node, &["ip", "reload"]);
    }
    lab.wait("the new address to be served", LONG, || {
        let owners = lab.node(0).ip_owners().unwrap();
        owners.get(&new).is_some_and(Option::is_some) && !owners.contains_key(&gone)
    })
    .unwrap();
    for node in lab.nodes() {
        lab.wait("the old address to be off", LONG, || {
            !node
                .netns()
                .ip("-o address")
                .unwrap()
                .contains(&format!(" {gone}/"))
        })
        .unwrap();
    }
    // A mistake in the file changes nothing.
    let node = lab.node(0);
    node.write("public_addresses", "10.99.2.300/24 nowhere\n")
        .unwrap();
    let refused = node.ctdb(&["ip", "reload"]).unwrap();
    assert!(!refused.ok(), "{refused:?}");
    assert!(lab.node(1).ip_owners().unwrap()[&new].is_some());
}

#[test]
fn what_cannot_be_done_is_said() {
    let lab = cluster();
    let node = lab.node(0);
    for words in [
        &["ip", "move", "10.99.2.250", "1"][..],
        &["ip", "move", "10.99.2.100", "9"],
        &["ip", "why", "10.99.2.250"],
        &["node", "disable", "7"],
        &["node", "ban", "1", "--time", "0"],
        &["interface", "link", "nowhere", "up"],
        &["log", "level", "LOUD"],
    ] {
        let answer = node.ctdb(words).unwrap();
        assert!(
            !answer.ok() && !answer.stderr.is_empty(),
            "{words:?}: {answer:?}"
        );
    }
    let why = node.ctdb_json(&["ip", "why", "10.99.2.100"]).unwrap();
    assert_eq!(why["nodes"].as_object().unwrap().len(), 3, "{why}");
    let plan = node.ctdb_json(&["ip", "plan"]).unwrap();
    assert_eq!(plan["moves"].as_array().unwrap().len(), 0, "{plan}");
}

#[test]
fn a_voter_makes_the_majority_and_hosts_nothing() {
    needs();
    let lab = Lab::builder().nodes(3).voters_only(1).build().unwrap();
    lab.start_daemons().unwrap();
    lab.wait_all_served(LONG).unwrap();
    lab.wait("both hosts to have their share", LONG, || {
        held_by(&lab, 0, 0) > 0 && held_by(&lab, 0, 1) > 0
    })
    .unwrap();
    assert_eq!(held_by(&lab, 0, 2), 0);
    lab.node(0).power_loss().unwrap();
    lab.wait("the other host to serve everything", LONG, || {
        lab.node(2)
            .ip_owners()
            .is_ok_and(|owners| owners.values().all(|owner| *owner == Some(1)))
    })
    .unwrap();
}

#[test]
fn addresses_follow_the_link_on_one_node() {
    needs();
    let lab = Lab::builder()
        .nodes(1)
        .public_addresses(2)
        .public_interfaces(2)
        .build()
        .unwrap();
    lab.start_daemons().unwrap();
    lab.wait_all_served(LONG).unwrap();
    let node = lab.node(0);
    let names = lab.settings().public_interface_names();
    let on = |name: &str| {
        node.netns()
            .ip(&format!("-o address show dev {name}"))
            .unwrap()
    };
    for name in &names {
        let carried = lab
            .public_addresses()
            .iter()
            .any(|a| on(name).contains(&format!(" {a}/")));
        assert!(carried, "{name} carries its share");
    }
    node.set_cable(&names[0], false).unwrap();
    lab.wait("all addresses on the other interface", LONG, || {
        lab.public_addresses()
            .iter()
            .all(|a| on(&names[1]).contains(&format!(" {a}/")))
    })
    .unwrap();
    assert!(
        node.ip_owners()
            .unwrap()
            .values()
            .all(|owner| *owner == Some(0))
    );
    node.set_cable(&names[1], false).unwrap();
    lab.wait("nobody to host anything", LONG, || {
        node.ip_owners()
            .is_ok_and(|owners| owners.values().all(Option::is_none))
    })
    .unwrap();
    node.set_cable(&names[0], true).unwrap();
    lab.wait("all addresses to be served again", LONG, || {
        node.ip_owners()
            .is_ok_and(|owners| owners.values().all(|owner| *owner == Some(0)))
    })
    .unwrap();
}

/// Home nodes are the deterministic algorithm's (`spec/cluster.md` 3.6.1).
#[test]
fn home_nodes_are_kept_to() {
    needs();
    let lab = Lab::builder()
        .tunable("IPAllocAlgorithm", 0)
        .build()
        .unwrap();
    let addresses = lab.public_addresses();
    let mut lines = String::new();
    for address in &addresses {
        writeln!(lines, "{address} 2").unwrap();
    }
    for node in lab.nodes() {
        node.write("home_nodes", &lines).unwrap();
    }
    lab.start_daemons().unwrap();
    lab.wait("all addresses at home", LONG, || {
        held_by_or_none(&lab, 2) == addresses.len()
    })
    .unwrap();
    done(lab.node(0), &["node", "disable", "2"]);
    assert_eq!(held_by(&lab, 0, 2), 0);
    done(lab.node(0), &["node", "enable", "2"]);
    assert_eq!(held_by(&lab, 0, 2), addresses.len());
}

fn held_by_or_none(lab: &Lab, pnn: u32) -> usize {
    let owners = lab.node(0).ip_owners().unwrap_or_default();
    owners.values().filter(|owner| **owner == Some(pnn)).count()
}

/// `ctdb addip` and `delip` on every node: served without a file, and gone again.
#[test]
fn addresses_come_and_go_at_run_time() {
    let lab = cluster();
    let new: IpAddr = "10.99.2.188".parse().unwrap();
    let name = &lab.settings().public_interface_names()[0];
    for node in lab.nodes() {
        done(node, &["addip", &format!("{new}/24"), name]);
    }
    lab.wait("the new address to be served", LONG, || {
        let owners = lab.node(0).ip_owners().unwrap();
        owners.get(&new).is_some_and(Option::is_some)
    })
    .unwrap();
    let again = lab
        .node(0)
        .ctdb(&["addip", &format!("{new}/24"), name])
        .unwrap();
    assert_eq!(
        (again.code, again.stderr.as_str()),
        (Some(0), "Node already knows about IP 10.99.2.188\n")
    );
    for node in lab.nodes() {
        done(node, &["delip", &new.to_string()]);
    }
    for node in lab.nodes() {
        lab.wait("the address to be off", LONG, || {
            !node
                .netns()
                .ip("-o address")
                .unwrap()
                .contains(&format!(" {new}/"))
        })
        .unwrap();
    }
    assert!(!lab.node(0).ip_owners().unwrap().contains_key(&new));
    let gone = lab.node(0).ctdb(&["delip", &new.to_string()]).unwrap();
    assert_eq!(
        (gone.code, gone.stderr.as_str()),
        (Some(0), "Node does not know about IP address 10.99.2.188\n")
    );
    lab.end().unwrap();
}
