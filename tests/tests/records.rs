//! Databases of running daemons: clients that lock and change records as Samba does, commit
//! transactions and send messages, while nodes fail. Against Debian's daemon too, which shows that
//! the clients speak the protocol as it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ctdb_tests::dbclient::work::{self, Plan, Record};
use ctdb_tests::dbclient::{Kind, Session};
use ctdb_tests::lab::{Flavor, Freeze, Lab, Links, lacks, reference};
use ctdb_wire::api::HistoryRecord;
use nix::sys::signal::Signal;

const LONG: Duration = Duration::from_secs(60);

fn lab(flavor: Flavor) -> Lab {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let (Flavor::Ctdb, Some(package)) = (flavor, reference::lacks()) {
        panic!("this test cannot run here: {package} is missing");
    }
    let lab = Lab::builder().flavor(flavor);
    // The clients are threads of this process. The guard ends a process that keeps a record locked
    // for 3/4 of the margin after its node's right has ended; on a busy machine a thread may be
    // kept from running for most of the usual 320 ms.
    let lab = match flavor {
        Flavor::Ours => lab.conf("lease", "queue bound", "900ms"),
        Flavor::Ctdb => lab,
    };
    let lab = lab.build().unwrap();
    lab.bring_up(&[], LONG).unwrap();
    lab
}

fn plan() -> Plan {
    Plan {
        delete_one_of: 7,
        transactions: Some(("lists.tdb".into(), Kind::Persistent)),
        messages: true,
        ..Plan::default()
    }
}

/// Until every node has done so much since now.
fn progress(lab: &Lab, record: &Record, nodes: &[u32], more: usize) -> Result<()> {
    let before: Vec<_> = nodes.iter().map(|n| record.changes_on(*n)).collect();
    let commits = record.commits();
    lab.wait("clients to get on", LONG, || {
        record.commits() > commits
            && nodes
                .iter()
                .zip(&before)
                .all(|(node, before)| record.changes_on(*node) >= before + more)
    })
    .map(drop)
}

/// Until every node has changed so many records since now.
fn changes(lab: &Lab, record: &Record, nodes: &[u32], more: usize) -> Result<()> {
    let before: Vec<_> = nodes.iter().map(|n| record.changes_on(*n)).collect();
    let on = |(node, before): (&u32, &usize)| record.changes_on(*node) >= before + more;
    lab.wait("clients to get on", LONG, || {
        nodes.iter().zip(&before).all(on)
    })
    .map(drop)
}

/// One shared counter, raised by all nodes at once.
fn counter(lab: &Lab) -> Result<()> {
    const EACH: u64 = 100;
    let raise = |node: u32| -> Result<()> {
        let mut session = Session::connect(lab.node(node))?;
        let mut db = session.attach("one counter.tdb", Kind::Volatile)?;
        for _ in 0..EACH {
            session.change(&mut db, b"n", |old| {
                let old = old.try_into().map_or(0, u64::from_le_bytes);
                (old + 1).to_le_bytes().to_vec()
            })?;
        }
        Ok(())
    };
    let raise = &raise;
    thread::scope(|scope| {
        let all: Vec<_> = (0..3).map(|n| scope.spawn(move || raise(n))).collect();
        all.into_iter()
            .try_for_each(|thread| thread.join().expect("a client panicked"))
    })?;
    for node in lab.nodes() {
        let mut session = Session::connect(node)?;
        let mut db = session.attach("one counter.tdb", Kind::Volatile)?;
        let read = session.read(&mut db, b"n")?.context("no counter")?;
        ensure!(
            read == (3 * EACH).to_le_bytes(),
            "node {} reads {read:?}",
            node.pnn()
        );
    }
    Ok(())
}

/// Text that a program of libtdb prints about a file.
fn libtdb(words: &[&str], path: &Path, last: &[&str]) -> String {
    let out = Command::new(words[0])
        .args(&words[1..])
        .arg(path)
        .args(last)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{words:?} {}: {text}{errors}",
        path.display()
    );
    text
}

/// What libtdb sees in the files is what we see, and nothing in them is damaged.
fn files(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let mut session = Session::connect(node)?;
        for (name, kind) in [
            ("counters.tdb", Kind::Volatile),
            ("lists.tdb", Kind::Persistent),
        ] {
            let mut db = session.attach(name, kind)?;
            let mut keys: Vec<_> = db.local()?.into_iter().map(|(key, ..)| key).collect();
            keys.retain(|key| !key.ends_with(b"\0"));
            ensure!(!keys.is_empty(), "{name} of node {} is empty", node.pnn());
            let dump = libtdb(&["tdbdump"], &db.path, &[]);
            for key in keys {
                let line = format!("key({}) = \"{}\"", key.len(), String::from_utf8_lossy(&key));
                ensure!(dump.contains(&line), "{name}: no {line} in\n{dump}");
            }
            if kind == Kind::Persistent {
                let text = libtdb(&["tdbtool"], &db.path, &["check"]);
                ensure!(text.contains("integrity is OK"), "{name}: {text}");
            }
        }
    }
    Ok(())
}

/// Every node's traverse shows the same records, each once, as reads do.
fn traverses(lab: &Lab, keys: usize) -> Result<()> {
    let mut writer = Session::connect(lab.node(0))?;
    let mut db = writer.attach("counters.tdb", Kind::Volatile)?;
    for number in 0..keys {
        writer.change(&mut db, &work::key(number), |_| b"the end".to_vec())?;
    }
    for node in lab.nodes() {
        let mut session = Session::connect(node)?;
        let db = session.attach("counters.tdb", Kind::Volatile)?;
        let records = session.traverse(&db)?;
        let once: BTreeMap<_, _> = records.iter().cloned().collect();
        ensure!(
            once.len() == records.len() && once.len() == keys,
            "node {}: {records:?}",
            node.pnn()
        );
        ensure!(once.values().all(|data| data == b"the end"), "{once:?}");
    }
    Ok(())
}

/// Without faults nothing may fail and nothing be lost.
fn steady(flavor: Flavor) {
    let lab = lab(flavor);
    counter(&lab).unwrap();
    let plan = plan();
    let record = work::run(&lab, &plan, |record| progress(&lab, record, &[0, 1, 2], 60)).unwrap();
    let troubles = record.troubles();
    assert!(troubles.is_empty(), "{troubles:?}");
    let verdict = record.verdict().unwrap();
    assert_eq!(verdict.lost, 0);
    assert!(verdict.moves > 10, "{verdict:?}");
    record.judge_transactions(lab.nodes(), &plan).unwrap();
    for node in 0..3 {
        let (came, gaps) = record.post(node);
        assert!(
            came > 0 && gaps == 0,
            "node {node}: {came} came, {gaps} lost"
        );
    }
    files(&lab).unwrap();
    traverses(&lab, plan.keys).unwrap();
}

#[test]
fn clients_share_records_of_ctdbs_daemon() {
    steady(Flavor::Ctdb);
}

#[test]
fn clients_share_records_of_our_daemon() {
    steady(Flavor::Ours);
}

/// What happens to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The daemon is killed and started again.
    Kill,
    /// All links are cut, and joined again.
    Cut,
    /// The daemon is stopped in its tracks, and goes on; its clients run all the while.
    Stop,
}

/// Strikes one node while clients work, and brings it back; the others go on all the while.
fn strike(lab: &Lab, record: &Record, fault: Fault, victim: u32) -> Result<()> {
    let others: Vec<u32> = (0..3).filter(|n| *n != victim).collect();
    progress(lab, record, &[0, 1, 2], 30)?;
    let node = lab.node(victim);
    record.may_lose(victim);
    match fault {
        Fault::Kill => node.kill_daemon(Signal::SIGKILL)?,
        Fault::Cut => node.cut_links(Links::All)?,
        Fault::Stop => node.freeze(Freeze::Daemon)?,
    }
    // Until it is out: nothing of it may be waited for any more.
    lab.wait(&format!("{fault:?}: node {victim} to be out"), LONG, || {
        let views = lab.node(others[0]).nodes_seen();
        views.is_ok_and(|v| v.iter().any(|n| n.pnn == victim && !n.flags.is_empty()))
    })?;
    progress(lab, record, &others, 30)?;
    match fault {
        Fault::Kill => {
            node.wait_daemon_exit(LONG)?;
            node.start_daemon()?;
        }
        Fault::Cut => node.restore_links(Links::All)?,
        Fault::Stop => node.thaw(Freeze::Daemon)?,
    }
    lab.wait_all_healthy(LONG)?;
    if fault == Fault::Stop {
        let log = node.log_tails(1000);
        let told = log.lines().filter(|line| line.contains("the guard"));
        println!("node {victim} of the guard: {:?}", told.collect::<Vec<_>>());
    }
    progress(lab, record, &[0, 1, 2], 30)
}

/// Faults one after another, leader and follower; nothing is lost that must not be.
#[test]
fn records_survive_nodes_that_fail() {
    let lab = lab(Flavor::Ours);
    let plan = Plan {
        patience: Duration::from_secs(10),
        ..plan()
    };
    let mut victims = Vec::new();
    let record = work::run(&lab, &plan, |record| {
        for (fault, of_leader) in [
            (Fault::Kill, false),
            (Fault::Cut, false),
            (Fault::Stop, false),
            (Fault::Kill, true),
            (Fault::Stop, true),
        ] {
            let leader = lab.node(0).leader_seen()?.context("no leader")?;
            let victim = if of_leader { leader } else { (leader + 1) % 3 };
            victims.push(victim);
            strike(&lab, record, fault, victim)?;
        }
        Ok(())
    })
    .unwrap();
    let verdict = record.verdict().unwrap();
    println!("{verdict:?}");
    // Whose node was well has noticed nothing but a wait.
    let mut troubles = record.troubles();
    troubles.retain(|trouble| !victims.contains(&trouble.node));
    assert!(troubles.is_empty(), "{victims:?}: {troubles:?}");
    record.judge_transactions(lab.nodes(), &plan).unwrap();
    files(&lab).unwrap();
    traverses(&lab, plan.keys).unwrap();
}

/// Nothing passes over the link between these two nodes, whose heartbeats are still heard: the databases
/// do without the first one after a while, and it comes back by itself.
fn without_link(lab: &Lab, victim: u32, other: u32) {
    let plan = Plan {
        transactions: Some(("lists.tdb".into(), Kind::Persistent)),
        patience: LONG,
        ..Plan::default()
    };
    let others: Vec<u32> = (0..3).filter(|n| *n != victim).collect();
    let list = std::fs::read_to_string(lab.node(victim).etc().join("nodes")).unwrap();
    let address = list.lines().nth(other as usize).unwrap();
    let netns = lab.node(victim).netns();
    let record = work::run(lab, &plan, |record| {
        changes(lab, record, &[0, 1, 2], 30)?;
        record.may_lose(victim);
        netns.nft(&format!(
            "table inet cut {{ chain input {{ type filter hook input priority 0; \
             ip saddr {address} meta l4proto tcp reject with tcp reset; }}; }}\n"
        ))?;
        // The clients of the others want what it owns.
        changes(lab, record, &others, 30)?;
        let lost = |record: &HistoryRecord| record.kind == "right" && record.text.contains("lost");
        lab.wait("the end of its right", LONG, || {
            let history = lab.node(victim).history();
            history.is_ok_and(|all| all.iter().any(lost))
        })?;
        changes(lab, record, &others, 300)?;
        netns.nft("delete table inet cut")?;
        lab.wait_all_healthy(LONG)?;
        changes(lab, record, &[0, 1, 2], 30)
    })
    .unwrap();
    println!("{:?}", record.verdict().unwrap());
    // Who holds a `g_lock` on the other side of the cut is not dead.
    record.judge_transactions(lab.nodes(), &plan).unwrap();
    let mut troubles = record.troubles();
    troubles.retain(|trouble| trouble.node != victim);
    assert!(troubles.is_empty(), "{victim}: {troubles:?}");
}

#[test]
fn a_node_without_link_that_is_heard_holds_up_nobody_for_long() {
    let lab = lab(Flavor::Ours);
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    without_link(&lab, (leader + 1) % 3, leader);
}

/// The leader reaches both: it leaves out that with the higher number.
#[test]
fn two_nodes_that_do_not_reach_each_other_hold_up_nobody_for_long() {
    let lab = lab(Flavor::Ours);
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
    without_link(&lab, first.max(second), first.min(second));
}
