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
}
