//! Event scripts under real daemons (`spec/cluster.md` 4).

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ctdb_tests::lab::{Lab, Node, Service};

const LONG: Duration = Duration::from_secs(30);

fn lab(nodes: u32) -> Lab {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    Lab::builder()
        .nodes(nodes)
        .tunable("MonitorInterval", 1)
        .build()
        .unwrap()
}

/// Notes every event in `events.log` of the node's configuration directory, then does `more`.
fn script(node: &Node, name: &str, more: &str) {
    let dir = node.etc().join("events/legacy");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(format!("{name}.script"));
    let text =
        format!("#!/bin/sh\necho \"{name} $*\" >>\"$CTDB_BASE/events.log\"\n{more}\nexit 0\n");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn events(node: &Node) -> Vec<String> {
    fs::read_to_string(node.etc().join("events.log"))
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn at(events: &[String], wanted: &str) -> usize {
    events
        .iter()
        .position(|event| event == wanted)
        .unwrap_or_else(|| panic!("no '{wanted}' in {events:#?}"))
}

fn of(lab: &Lab, node: u32) -> usize {
    let owners = lab.node(0).ip_owners().unwrap_or_default();
    owners
        .values()
        .filter(|owner| **owner == Some(node))
        .count()
}

#[test]
fn a_node_is_as_healthy_as_its_scripts_say() {
    let lab = lab(3);
    for node in lab.nodes() {
        script(
            node,
            "50.test",
            "[ \"$1\" != monitor ] || [ ! -e \"$CTDB_BASE/sick\" ] || { echo 'no service'; exit 7; }",
        );
        fs::write(
            node.etc().join("notify.sh"),
            "#!/bin/sh\necho \"notify $1\" >>\"$CTDB_BASE/events.log\"\n",
        )
        .unwrap();
        fs::set_permissions(
            node.etc().join("notify.sh"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
    }
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let first = events(lab.node(1));
    let order = [
        "init",
        "setup",
        "startrecovery",
        "recovered",
        "startup",
        "monitor",
    ];
    let places: Vec<usize> = order
        .iter()
        .map(|name| at(&first, &format!("50.test {name}")))
        .collect();
    assert!(places.is_sorted(), "{first:#?}");
    lab.wait("takeip and ipreallocated", LONG, || {
        let seen = events(lab.node(1));
        seen.iter()
            .any(|event| event.starts_with("50.test takeip pub0 10.99.2."))
            && seen
                .iter()
                .any(|event| event.starts_with("50.test takeip pub0 fd00:"))
            && seen.iter().any(|event| event == "50.test ipreallocated")
            && ["init", "setup", "startup", "healthy"]
                .iter()
                .all(|word| seen.contains(&format!("notify {word}")))
    })
    .unwrap();

    // It fails: unhealthy, its addresses go, and the old commands show why.
    fs::write(lab.node(1).etc().join("sick"), "").unwrap();
    lab.wait("node 1 to be unhealthy", LONG, || {
        lab.node(0)
            .nodes_seen()
            .is_ok_and(|nodes| nodes[1].flags.iter().any(|flag| flag == "unhealthy"))
            && of(&lab, 1) == 0
    })
    .unwrap();
    lab.wait_all_served(LONG).unwrap();
    lab.wait("releaseip and the notification", LONG, || {
        let seen = events(lab.node(1));
        seen.iter()
            .any(|event| event.starts_with("50.test releaseip pub0 10.99.2."))
            && seen.iter().any(|event| event == "notify unhealthy")
    })
    .unwrap();
    let shown = lab
        .ctdb(1, &["event", "status", "legacy", "monitor"])
        .unwrap();
    assert_eq!(shown.code, Some(7), "{shown:?}");
    assert!(
        shown
            .stdout
            .starts_with("50.test              ERROR      0."),
        "{shown:?}"
    );
    assert!(
        shown.stdout.ends_with("  OUTPUT: no service\n"),
        "{shown:?}"
    );
    let old = lab.ctdb(1, &["scriptstatus"]).unwrap();
    assert_eq!(
        (old.code, old.stdout.as_str()),
        (Some(0), shown.stdout.as_str())
    );
    // Debian's own program reads the same from our socket.
    let base = lab.dir().join("base");
    fs::create_dir(&base).unwrap();
    symlink(lab.node(1).root().join("run/ctdb"), base.join("run")).unwrap();
    fs::write(base.join("ctdb.conf"), "").unwrap();
    let theirs = |args: &[&str]| {
        let output = Command::new("/usr/libexec/ctdb/ctdb-event")
            .args(args)
            .envs([
                ("CTDB_TEST_MODE", "1".as_ref()),
                ("CTDB_BASE", base.as_os_str()),
            ])
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, text) = theirs(&["status", "legacy", "monitor"]);
    assert_eq!(code, Some(7), "{text}");
    // A run may lie between the two: the times are apart.
    assert!(
        text.starts_with("50.test              ERROR      0."),
        "{text}"
    );
    // 4.17 prints the output's own end of line, too.
    assert!(text.trim_end().ends_with("  OUTPUT: no service"), "{text}");
    assert_eq!(
        theirs(&["run", "10", "legacy", "nothing"]),
        (Some(0), String::new())
    );
    assert_eq!(theirs(&["status", "legacy", "never"]).0, Some(22));
    at(&events(lab.node(1)), "50.test nothing");

    fs::remove_file(lab.node(1).etc().join("sick")).unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait("addresses to come back", LONG, || of(&lab, 1) > 0)
        .unwrap();
    assert!(lab.node(1).stop_graceful(LONG).unwrap().success());
    let last = events(lab.node(1));
    assert_eq!(
        last.last().map(String::as_str),
        Some("50.test shutdown"),
        "{last:#?}"
    );
    assert!(!lab.node(1).root().join("run/ctdb/eventd.socket").exists());
    lab.end().unwrap();
}

/// `startrecovery` and `recovered` in a node's log, in their order.
fn recoveries(node: &Node) -> Vec<String> {
    let of = |event: &String| event.ends_with("startrecovery") || event.ends_with("recovered");
    events(node).into_iter().filter(of).collect()
}

/// How many takeover runs a node's log has, begun and ended.
fn runs(node: &Node) -> [usize; 2] {
    let seen = events(node);
    ["startipreallocate", "ipreallocated"].map(|name| {
        let name = format!("50.test {name}");
        seen.iter().filter(|event| **event == name).count()
    })
}

/// At every recovery, in pairs; one that hangs holds up no address. So it is with takeover runs that
/// move nothing.
#[test]
fn scripts_hear_of_every_recovery() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    // Nothing that hangs here ends by itself.
    let lab = Lab::builder()
        .tunable("EventScriptTimeout", 600)
        .build()
        .unwrap();
    for node in lab.nodes() {
        script(
            node,
            "50.test",
            "[ \"$1\" != recovered ] || [ ! -e \"$CTDB_BASE/hang\" ] || sleep 600",
        );
    }
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    lab.ctdb(0, &["attach", "some.tdb"])
        .unwrap()
        .success()
        .unwrap();
    let heard = |pnn: u32| recoveries(lab.node(pnn)).len();
    let counts = || (0..3).map(heard).collect::<Vec<_>>();
    let whole = |pnn: usize, than: &[usize]| {
        let seen = recoveries(&lab.nodes()[pnn]);
        seen.len() > than[pnn] && seen.last().is_some_and(|last| last.ends_with("recovered"))
    };
    let wait = |what: &str, pnn: usize, than: &[usize]| {
        let what = format!("node {pnn} to hear of {what}");
        lab.wait(&what, LONG, || whole(pnn, than)).unwrap();
    };
    let ran = |what: &str, than: &[[usize; 2]]| {
        for pnn in 0..3 {
            let both = || {
                runs(lab.node(pnn))
                    .iter()
                    .zip(than[pnn as usize])
                    .all(|(now, then)| *now > then)
            };
            let what = format!("node {pnn} to hear of the takeover run at {what}");
            lab.wait(&what, LONG, both).unwrap();
        }
    };
    let all_runs = || (0..3).map(|pnn| runs(lab.node(pnn))).collect::<Vec<_>>();
    let told = |words: &[&str]| {
        let before = all_runs();
        lab.ctdb(0, words).unwrap().success().unwrap();
        ran(&words.join(" "), &before);
    };
    // Where the leader's scripts have heard of the recovery, which is before the run.
    let behind = || {
        let leader = lab.node(0).leader_seen().ok().flatten();
        leader.is_some_and(|leader| {
            let seen = events(lab.node(leader));
            let last = |name: &str| seen.iter().rposition(|event| event.ends_with(name));
            last(" recovered") < last(" startipreallocate")
        })
    };
    for (what, words, who) in [
        ("recover", &["recover"][..], [0, 1, 2].as_slice()),
        ("stop", &["-n", "2", "stop"], &[0, 1]),
        ("continue", &["-n", "2", "continue"], &[0, 1, 2]),
    ] {
        let before = counts();
        lab.ctdb(0, words).unwrap().success().unwrap();
        for pnn in who {
            wait(what, *pnn, &before);
        }
        lab.wait("a takeover run behind it", LONG, behind).unwrap();
        // Of runs a stopped node hears, too.
        told(&["ipreallocate"]);
    }
    let before = counts();
    lab.node(2)
        .kill_daemon(nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    wait("a lost node", 1, &before);
    let before = counts();
    lab.node(2).start_daemon().unwrap();
    wait("one that joins", 1, &before);
    lab.wait_all_healthy(LONG).unwrap();
    for node in &lab.nodes()[..2] {
        for (number, event) in recoveries(node).into_iter().enumerate() {
            let name = ["startrecovery", "recovered"][number % 2];
            assert_eq!(event, format!("50.test {name}"), "{number}");
        }
    }

    fs::write(lab.node(0).etc().join("hang"), "").unwrap();
    let before = counts();
    lab.ctdb(0, &["recover"]).unwrap().success().unwrap();
    wait("its end, and to hang", 0, &before);
    let hangs = heard(0);
    let owners = lab.node(0).ip_owners().unwrap();
    let there = owners.iter().find(|(_, owner)| **owner == Some(1));
    let address = there.unwrap().0.to_string();
    let taken = || {
        let text = format!("50.test takeip pub0 {address} ");
        let seen = events(lab.node(0));
        seen.iter().filter(|one| one.starts_with(&text)).count()
    };
    let before = taken();
    lab.ctdb(0, &["moveip", &address, "0"])
        .unwrap()
        .success()
        .unwrap();
    lab.wait("takeip beside it", LONG, || taken() > before)
        .unwrap();
    assert_eq!(heard(0), hangs, "it hangs still");
    lab.end().unwrap();
}

/// One address's script hangs: others come and go, and services answer.
#[test]
fn a_hung_takeip_holds_up_no_other_address() {
    let lab = lab(3);
    for node in lab.nodes() {
        script(
            node,
            "50.test",
            "[ \"$1 $3\" != \"takeip 10.99.2.100\" ] || sleep 600",
        );
    }
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    for to in [1, 2] {
        for address in ["10.99.2.101", "10.99.2.102"] {
            lab.ctdb(0, &["moveip", address, &to.to_string()])
                .unwrap()
                .success()
                .unwrap();
            lab.wait(&format!("takeip of {address} on node {to}"), LONG, || {
                events(lab.node(to))
                    .iter()
                    .any(|event| event.contains(&format!("takeip pub0 {address}")))
            })
            .unwrap();
        }
    }
    lab.wait_all_served(LONG).unwrap();
    let prober = lab.probe(&[Service::Plain], None).unwrap();
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
    lab.end().unwrap();
    let left = Command::new("pgrep")
        .args(["-f", "sleep 600"])
        .output()
        .unwrap();
    assert!(left.stdout.is_empty(), "a hung script outlived its daemon");
}

/// `takeip` comes before connection requests are let in (design.md section 4), for its own address
/// alone.
#[test]
fn requests_wait_for_the_scripts_of_their_address() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let lab = Lab::builder()
        .tunable("MonitorInterval", 1)
        .conf("firewall", "opening timeout", "600")
        .build()
        .unwrap();
    for node in lab.nodes() {
        script(
            node,
            "50.test",
            "[ \"$1 $3\" != \"takeip 10.99.2.100\" ] || while [ ! -e \"$CTDB_BASE/go\" ]; do sleep 0.05; done",
        );
        fs::write(node.etc().join("go"), "").unwrap();
    }
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let answers = |address: &str| {
        let port = Service::Plain.port();
        let line = format!("exec 3<>/dev/tcp/{address}/{port}");
        let tried = lab.client().run("timeout", &["0.5", "bash", "-c", &line]);
        tried.is_ok()
    };
    let from = lab.node(0).ip_owners().unwrap()[&"10.99.2.100".parse().unwrap()].unwrap();
    let to = (from + 1) % 3;
    fs::remove_file(lab.node(to).etc().join("go")).unwrap();
    for address in ["10.99.2.100", "10.99.2.101"] {
        lab.ctdb(0, &["moveip", address, &to.to_string()])
            .unwrap()
            .success()
            .unwrap();
    }
    lab.wait("the other address to be served there", LONG, || {
        answers("10.99.2.101")
    })
    .unwrap();
    for _ in 0..3 {
        assert!(!answers("10.99.2.100"), "let in before its script ended");
    }
    fs::write(lab.node(to).etc().join("go"), "").unwrap();
    lab.wait("the address to be let in", LONG, || answers("10.99.2.100"))
        .unwrap();
    lab.end().unwrap();
}

/// `[failover] addresses = script`: a script puts addresses on interfaces, as with CTDB.
#[test]
fn scripts_can_carry_the_addresses() {
    let lab = lab(3);
    for node in lab.nodes() {
        node.write("ctdb.conf", "[failover]\n\taddresses = script\n")
            .unwrap();
        script(
            node,
            "10.interface",
            "case $1 in takeip) ip addr add \"$3/$4\" dev \"$2\" ;; releaseip) ip addr del \"$3/$4\" dev \"$2\" ;; esac",
        );
    }
    lab.start_daemons().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    let carries = |node: &Node, address: &str| {
        node.netns()
            .ip("-o address")
            .unwrap()
            .contains(&format!(" {address}/"))
    };
    let address = "10.99.2.101";
    lab.wait("the address to be somewhere", LONG, || {
        lab.nodes()
            .iter()
            .filter(|node| carries(node, address))
            .count()
            == 1
    })
    .unwrap();
    // The scripts do not announce what they put there; the daemon does, as CTDB's.
    let observer = lab.observe(None).unwrap();
    for to in [2, 0, 1] {
        lab.ctdb(0, &["moveip", address, &to.to_string()])
            .unwrap()
            .success()
            .unwrap();
        for node in lab.nodes() {
            assert_eq!(
                carries(node, address),
                node.pnn() == to,
                "node {}",
                node.pnn()
            );
        }
        lab.wait("the address to be announced", LONG, || {
            observer.owner(address.parse().unwrap()) == Some(to)
        })
        .unwrap();
    }
    drop(observer);
    assert!(lab.node(1).stop_graceful(LONG).unwrap().success());
    assert!(!carries(lab.node(1), address));
    lab.wait("the address to be elsewhere", LONG, || {
        carries(lab.node(0), address) || carries(lab.node(2), address)
    })
    .unwrap();
    lab.end().unwrap();
}

/// A daemon whose `setup` fails does not run, and says which script it was.
#[test]
fn a_failing_setup_or_init_ends_the_start() {
    let lab = lab(1);
    let node = lab.node(0);
    for event in ["init", "setup"] {
        script(node, "20.bad", &format!("[ \"$1\" != {event} ] || exit 3"));
        node.start_daemon().unwrap();
        assert_eq!(node.wait_daemon_exit(LONG).unwrap().code(), Some(1));
        let said = node.log_tails(30);
        assert!(
            said.contains(&format!("the {event} event failed: 20.bad: exit code 3")),
            "{said}"
        );
    }
    assert!(!Path::new(&node.root().join("run/ctdb/ctdbd.pid")).exists());
    lab.end().unwrap();
}

/// `1,000 events in a row leave no process, file or memory behind`.
#[test]
fn a_thousand_events_leave_nothing() {
    let lab = lab(1);
    let node = lab.node(0);
    script(node, "50.test", "sleep 0.01 &");
    node.start_daemon().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    let pid = node.daemon_pid().unwrap();
    let measure = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
        (
            kib,
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        )
    };
    let round = |count: usize| {
        for _ in 0..count {
            lab.ctdb(0, &["event", "run", "30", "legacy", "test"])
                .unwrap()
                .success()
                .unwrap();
        }
    };
    // The lists of ended runs and children fill up first.
    round(300);
    let (memory, files) = measure();
    round(1000);
    let (memory_after, files_after) = measure();
    assert!(
        memory_after < memory + 2048,
        "{memory} KiB, then {memory_after} KiB"
    );
    assert!(
        files_after <= files + 2,
        "{files} files, then {files_after}"
    );
    let count = events(node)
        .iter()
        .filter(|event| *event == "50.test test")
        .count();
    assert_eq!(count, 1300);
    lab.wait("its children to have ended", LONG, || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        // The guard alone.
        children.split_whitespace().count() <= 1
    })
    .unwrap();
    lab.end().unwrap();
}
