//! The databases of running daemons, by CTDB's own tool.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use ctdb_tests::lab::{Flavor, Lab, Node, lacks, reference};

const LONG: Duration = Duration::from_secs(60);

fn lab() -> Lab {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let Some(package) = reference::lacks() {
        panic!("this test cannot run here: {package} is missing");
    }
    let lab = Lab::builder()
        .flavor(Flavor::Ours)
        .conf("logging", "log level", "NOTICE")
        .build()
        .unwrap();
    lab.bring_up(&[], LONG).unwrap();
    lab
}

fn socket(node: &Node) -> PathBuf {
    node.root().join("run/ctdb/ctdbd.socket")
}

/// CTDB's tool; what it printed, and its exit code.
fn tool(node: &Node, words: &[&str]) -> (String, Option<i32>) {
    let mut command = Command::new("/usr/bin/ctdb");
    command
        .args(words)
        .env("CTDB_TEST_MODE", "yes")
        .env("CTDB_BASE", node.etc())
        .env("CTDB_SOCKET", socket(node));
    let out = node.netns().output(&mut command).unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    (text, out.status.code())
}

fn good(node: &Node, words: &[&str]) -> String {
    let (text, code) = tool(node, words);
    assert_eq!(code, Some(0), "node {}: ctdb {words:?}: {text}", node.pnn());
    text
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !check() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Attached everywhere; records go to the node that writes them; transactions reach all nodes.
#[test]
fn ctdbs_tool_works_with_databases_of_three_nodes() {
    let lab = lab();
    let [a, b, c] = [0, 1, 2].map(|index| lab.node(index));
    good(a, &["attach", "volatile.tdb"]);
    good(b, &["attach", "kept.tdb", "persistent"]);
    good(c, &["attach", "copied.tdb", "replicated"]);
    for node in [a, b, c] {
        let mut map = String::new();
        eventually("all databases are attached everywhere", || {
            map = good(node, &["getdbmap"]);
            map.contains("Number of databases:3")
        });
        assert!(map.contains("name:kept.tdb path:"), "{map}");
        assert!(map.contains(" PERSISTENT"), "{map}");
        assert!(map.contains(" REPLICATED"), "{map}");
    }
    // A record goes from node to node, and is changed on each.
    for (round, node) in [a, b, c, a, c, b].into_iter().enumerate() {
        good(
            node,
            &["writekey", "volatile.tdb", "key", &format!("value {round}")],
        );
        for other in [a, b, c] {
            let read = good(other, &["readkey", "volatile.tdb", "key"]);
            assert!(read.contains(&format!("ptr:[value {round}]")), "{read}");
        }
    }
    let all = good(b, &["catdb", "volatile.tdb"]);
    assert!(all.contains("Dumped 1 records"), "{all}");
    // A transaction is on all nodes when it is answered.
    for (round, (name, node)) in [("kept.tdb", a), ("copied.tdb", b), ("kept.tdb", c)]
        .into_iter()
        .enumerate()
    {
        let value = format!("value {round}");
        good(node, &["pstore", name, "key", &value]);
        for other in [a, b, c] {
            let read = good(other, &["pfetch", name, "key"]);
            assert!(read.contains(&value), "{read}");
        }
    }
    assert!(good(a, &["getdbseqnum", "kept.tdb"]).contains('2'));
    good(b, &["pdelete", "kept.tdb", "key"]);
    let (gone, _) = tool(c, &["pfetch", "kept.tdb", "key"]);
    assert!(!gone.contains("value"), "{gone}");
    for words in [
        &["getdbstatus", "kept.tdb"][..],
        &["setdbreadonly", "volatile.tdb"],
        &["setdbsticky", "volatile.tdb"],
        &["dbstatistics", "volatile.tdb"],
    ] {
        good(a, words);
    }
    operators_commands(&lab);
    restart(&lab);
    damaged(&lab);
}

/// Backups, restores, wipes, detaching, and the commands that read a file by themselves.
fn operators_commands(lab: &Lab) {
    let [a, b, c] = [0, 1, 2].map(|index| lab.node(index));
    for name in ["kept.tdb", "volatile.tdb"] {
        let file = lab.dir().join(format!("{name}.backup"));
        let file = file.to_str().unwrap();
        if name == "kept.tdb" {
            good(a, &["pstore", name, "restored", "as it was"]);
        } else {
            good(a, &["writekey", name, "restored", "as it was"]);
        }
        good(a, &["backupdb", name, file]);
        let dump = good(a, &["dumpdbbackup", file]);
        assert!(dump.contains("as it was"), "{dump}");
        good(b, &["wipedb", name]);
        for node in [a, b, c] {
            let all = good(node, &["catdb", name]);
            assert!(!all.contains("as it was"), "{all}");
        }
        good(c, &["restoredb", file, name]);
        for node in [a, b, c] {
            let read = if name == "kept.tdb" {
                good(node, &["pfetch", name, "restored"])
            } else {
                good(node, &["readkey", name, "restored"])
            };
            assert!(read.contains("as it was"), "{name}: {read}");
        }
    }
    // It goes on after that.
    good(b, &["pstore", "kept.tdb", "restored", "anew"]);
    assert!(good(c, &["pfetch", "kept.tdb", "restored"]).contains("anew"));
    assert!(good(c, &["cattdb", "kept.tdb"]).contains("anew"));
    let input = lab.dir().join("transaction");
    std::fs::write(&input, "\"one\" \"1\"\n\"two\" \"2\"\n").unwrap();
    good(a, &["ptrans", "kept.tdb", input.to_str().unwrap()]);
    assert!(good(b, &["pfetch", "kept.tdb", "two"]).contains('2'));
    // Detaching is allowed where attaching is not.
    let (refused, code) = tool(a, &["detach", "volatile.tdb"]);
    assert_ne!(code, Some(0), "{refused}");
    for node in [a, b, c] {
        good(node, &["setvar", "AllowClientDBAttach", "0"]);
    }
    good(a, &["detach", "volatile.tdb"]);
    for node in [a, b, c] {
        eventually("it is detached everywhere", || {
            !good(node, &["getdbmap"]).contains("volatile.tdb")
        });
        good(node, &["setvar", "AllowClientDBAttach", "1"]);
    }
}

/// All daemons end and start again: what was acknowledged is there, what is volatile is not.
fn restart(lab: &Lab) {
    for node in lab.nodes() {
        node.stop_graceful(LONG).unwrap();
    }
    lab.start_daemons().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    for node in lab.nodes() {
        let read = good(node, &["pfetch", "kept.tdb", "one"]);
        assert!(read.contains('1'), "node {}: {read}", node.pnn());
        let map = good(node, &["getdbmap"]);
        assert!(!map.contains("copied.tdb"), "{map}");
    }
}

/// A damaged copy is kept aside and replaced by another node's.
fn damaged(lab: &Lab) {
    let victim = lab.node(2);
    let map = good(victim, &["getdbmap"]);
    let path = map
        .lines()
        .find_map(|line| {
            let (_, path) = line.split_once("name:kept.tdb path:")?;
            path.split_whitespace().next()
        })
        .expect("its path");
    let path = std::path::Path::new(path);
    victim.stop_graceful(LONG).unwrap();
    let length = std::fs::metadata(path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    // The heads of all chains lead nowhere.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xEE; 4096], 168 + 8).unwrap();
    assert_eq!(file.metadata().unwrap().len(), length);
    victim.start_daemon().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    let read = good(victim, &["pfetch", "kept.tdb", "one"]);
    assert!(read.contains('1'), "{read}");
    let directory = std::fs::read_dir(path.parent().unwrap()).unwrap();
    let aside = directory
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .any(|name| name.contains(".corrupted."));
    assert!(aside, "the damaged file is kept");
    good(victim, &["pstore", "kept.tdb", "after", "that"]);
    let read = good(lab.node(0), &["pfetch", "kept.tdb", "after"]);
    assert!(read.contains("that"), "{read}");
}
