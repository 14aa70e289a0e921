//! The nodes list of a running cluster (`spec/cluster.md` 2.14): added to, taken from, wrong,
//! from a command that fails or hangs.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use ctdb_tests::client::Client;
use ctdb_tests::lab::{Lab, Node, lacks};
use ctdb_wire::client::control::Request;
use ctdb_wire::client::node;

const LONG: Duration = Duration::from_secs(30);

fn needs() {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
}

/// Writes the first `count` lines of the lab's list, `deleted` ones commented out.
fn write_list(lab: &Lab, full: &[String], count: usize, deleted: &[usize]) {
    let mut text = String::new();
    for (index, line) in full.iter().take(count).enumerate() {
        if deleted.contains(&index) {
            text.push('#');
        }
        text.push_str(line);
        text.push('\n');
    }
    for node in lab.nodes() {
        node.write("nodes", &text).unwrap();
    }
}

/// Flags of all nodes as `node` shows them.
fn flags(node: &Node) -> Vec<String> {
    let json = node.ctdb_json(&["node", "list"]).unwrap();
    json["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["flags_text"].as_str().unwrap().to_owned())
        .collect()
}

fn served_by(node: &Node) -> Vec<Option<u32>> {
    // While a node goes, asking all of them may fail.
    let owners = node.ip_owners().unwrap_or_default();
    owners.into_values().collect()
}

/// What is not settled yet may be tried again; everything else is an error.
fn reload(lab: &Lab, node: &Node, words: &[&str]) -> String {
    let mut text = String::new();
    lab.wait("the nodes list to be taken on", LONG, || {
        let answer = node.ctdb(words).unwrap();
        let again = answer.stderr.contains("not settled yet")
            || answer.stderr.contains("not all running nodes");
        assert!(answer.ok() || again, "{answer:?}");
        text = format!("{}{}", answer.stdout, answer.stderr);
        answer.ok()
    })
    .unwrap();
    text
}

#[test]
fn nodes_come_and_go_while_the_others_serve() {
    needs();
    let lab = Lab::builder().nodes(4).build().unwrap();
    let full: Vec<String> = fs::read_to_string(lab.node(0).etc().join("nodes"))
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    write_list(&lab, &full, 3, &[]);
    for node in &lab.nodes()[..3] {
        node.start_daemon().unwrap();
    }
    let one = lab.node(0);
    let served = |among: &[u32]| {
        let served = served_by(one);
        !served.is_empty()
            && served
                .iter()
                .all(|owner| owner.is_some_and(|owner| among.contains(&owner)))
            && among.iter().all(|pnn| served.contains(&Some(*pnn)))
    };
    lab.wait("three nodes to serve", LONG, || served(&[0, 1, 2]))
        .unwrap();
    let observer = lab.observe(None).unwrap();

    // One more; its machine comes up afterwards.
    write_list(&lab, &full, 4, &[]);
    reload(&lab, one, &["node", "reload"]);
    for node in &lab.nodes()[..3] {
        assert_eq!(flags(node).len(), 4);
    }
    lab.node(3).start_daemon().unwrap();
    lab.wait("the new node to be one of them", LONG, || {
        lab.nodes()
            .iter()
            .all(|node| flags(node) == ["OK", "OK", "OK", "OK"])
    })
    .unwrap();
    let address = lab.public_addresses()[0].to_string();
    let moved = one.ctdb(&["ip", "move", &address, "3"]).unwrap();
    assert!(moved.ok() && served_by(one).contains(&Some(3)), "{moved:?}");

    // A node that runs is not removed.
    write_list(&lab, &full, 4, &[3]);
    let refused = one.ctdb(&["reloadnodes"]).unwrap();
    assert!(
        !refused.ok() && refused.stderr.contains("Node 3 is still connected"),
        "{refused:?}"
    );
    // Nor two changed at once.
    lab.node(3).stop_graceful(LONG).unwrap();
    lab.wait("the others to serve", LONG, || {
        let served = served_by(one);
        !served.is_empty() && served.iter().all(|owner| owner.is_some_and(|pnn| pnn < 3))
    })
    .unwrap();
    let mut more = full.clone();
    more.push("192.0.2.77".to_owned());
    write_list(&lab, &more, 5, &[3]);
    let refused = one.ctdb(&["node", "reload"]).unwrap();
    assert!(
        !refused.ok() && refused.stderr.contains("one node at a time"),
        "{refused:?}"
    );
    write_list(&lab, &full, 4, &[3]);
    let said = reload(&lab, one, &["reloadnodes"]);
    for (number, node) in lab.nodes()[..3].iter().enumerate() {
        let shown = flags(node);
        assert!(
            shown[3].contains("DELETED"),
            "node {number} shows {shown:?} after {said:?}: {}",
            node.log_tails(20)
        );
    }
    // Told again, it is nothing new to anybody.
    let said = reload(&lab, one, &["reloadnodes"]);
    assert!(said.contains("No change in nodes file"), "{said}");
    // Of the three that are left two are a majority; of four they were not.
    lab.node(2).power_loss().unwrap();
    lab.wait("two of three to serve", LONG, || {
        let served = served_by(one);
        !served.is_empty() && served.iter().all(|owner| owner.is_some_and(|pnn| pnn < 2))
    })
    .unwrap();
    let report = observer.finish().unwrap();
    assert_eq!(report.conflicts(), []);
    lab.destroy();
}

#[test]
fn a_list_from_a_command_costs_nothing_when_it_fails() {
    needs();
    let lab = Lab::builder().nodes(3).build().unwrap();
    let full: Vec<String> = fs::read_to_string(lab.node(0).etc().join("nodes"))
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    write_list(&lab, &full, 2, &[]);
    let script = lab.dir().join("nodes.sh");
    let list = lab.dir().join("nodes.list");
    fs::write(&list, format!("{}\n{}\n{}\n", full[0], full[1], full[2])).unwrap();
    let says = |text: &str| fs::write(&script, text).unwrap();
    let good = format!("cat {}\n", list.display());
    says(&good);
    for node in lab.nodes() {
        let path = node.etc().join("ctdb.conf");
        let mut conf = fs::read_to_string(&path).unwrap();
        let _ = writeln!(
            conf,
            "[cluster]\n\tnodes list = !/bin/sh {}",
            script.display()
        );
        fs::write(&path, conf).unwrap();
    }
    lab.start_daemons().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    let one = lab.node(0);
    for (text, error) in [
        ("exit 3\n", "exit code 3"),
        ("echo x.y\n", "not an IP address"),
    ] {
        says(text);
        let answer = one.ctdb(&["node", "reload"]).unwrap();
        assert!(
            !answer.ok() && answer.stderr.contains(error),
            "{text:?}: {answer:?}"
        );
    }
    // One that hangs is ended, and nothing waits for it meanwhile.
    says("sleep 600\n");
    let started = Instant::now();
    std::thread::scope(|scope| {
        let hangs = scope.spawn(|| one.ctdb(&["node", "reload"]).unwrap());
        lab.wait("the command to run", LONG, || {
            let list = one.ctdb(&["process", "list"]).unwrap();
            list.stdout.contains("nodes list")
        })
        .unwrap();
        assert_eq!(flags(one), ["OK", "OK", "OK"]);
        let answer = hangs.join().unwrap();
        assert!(!answer.ok(), "{answer:?}");
    });
    assert!(started.elapsed() < LONG);
    assert_eq!(flags(one), ["OK", "OK", "OK"]);
    assert!(served_by(one).iter().all(Option::is_some));

    // What Samba's side sends does the same: first nothing new, then a node that is gone.
    says(&good);
    let mut client = Client::connect(&one.root().join("run/ctdb/ctdbd.socket")).unwrap();
    let answer = client
        .control(node::CURRENT, 0, &Request::ReloadNodesFile)
        .unwrap();
    assert_eq!(answer.status, 0, "{answer:?}");
    lab.node(2).stop_graceful(LONG).unwrap();
    fs::write(&list, format!("{}\n{}\n#{}\n", full[0], full[1], full[2])).unwrap();
    lab.wait("the list to be taken on", LONG, || {
        let answer = client
            .control(node::CURRENT, 0, &Request::ReloadNodesFile)
            .unwrap();
        answer.status == 0
    })
    .unwrap();
    for node in &lab.nodes()[..2] {
        assert!(flags(node)[2].contains("DELETED"), "{:?}", flags(node));
    }
    lab.wait("the others to serve", LONG, || {
        let served = served_by(one);
        !served.is_empty() && served.iter().all(Option::is_some)
    })
    .unwrap();
    lab.destroy();
}
