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
    components(&lab);
    over_http(&lab);
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

/// What our command line prints; `code` is its exit code.
fn ours(node: &Node, words: &[&str], code: i32) -> String {
    let answer = node.ctdb(words).unwrap();
    assert_eq!(answer.code, Some(code), "ctdb {words:?}: {answer:?}");
    answer.stdout
}

/// `ctdb db ...` and `ctdb cluster recover`.
fn components(lab: &Lab) {
    let [a, b, c] = [0, 1, 2].map(|index| lab.node(index));
    let path = |name: &str| lab.dir().join(name).to_str().unwrap().to_owned();
    ours(a, &["db", "attach", "new.tdb"], 0);
    ours(b, &["db", "attach", "safe.tdb", "--kind", "persistent"], 0);
    for node in [a, b, c] {
        eventually("both are attached", || {
            let list = node.ctdb_json(&["db", "list"]).unwrap();
            let names = list["databases"].as_array().unwrap().iter();
            names
                .filter(|db| db["name"] == "new.tdb" || db["name"] == "safe.tdb")
                .count()
                == 2
        });
    }
    let shown = ours(a, &["db", "list"], 0);
    assert!(shown.starts_with("NAME"), "{shown}");
    for (name, nodes) in [("new.tdb", [a, b, c]), ("safe.tdb", [c, a, b])] {
        ours(nodes[0], &["db", "put", name, "k\\00", "a\\FFb"], 0);
        for node in nodes {
            assert_eq!(ours(node, &["db", "get", name, "k\\00"], 0), "a\\FFb\n");
        }
        let dump = nodes[1].ctdb_json(&["db", "dump", name]).unwrap();
        let records = dump["records"].as_array().unwrap();
        let found = records.iter().find(|record| record["key"] == "k\\00");
        assert_eq!(found.unwrap()["data"], "a\\FFb", "{dump}");
        ours(nodes[2], &["db", "backup", name, &path("backup")], 0);
        let text = ours(a, &["db", "backup-dump", &path("backup")], 0);
        assert!(text.contains("data(3) = \"a\\FFb\"\nrsn = "), "{text}");
        ours(nodes[1], &["db", "wipe", name], 0);
        ours(nodes[0], &["db", "get", name, "k\\00"], 2);
        // CTDB's tool reads ours, and ours what CTDB's wrote.
        good(nodes[0], &["restoredb", &path("backup")]);
        assert_eq!(ours(nodes[1], &["db", "get", name, "k\\00"], 0), "a\\FFb\n");
        good(nodes[1], &["backupdb", name, &path("backup")]);
        ours(nodes[2], &["db", "wipe", name], 0);
        ours(nodes[2], &["db", "restore", &path("backup")], 0);
        assert_eq!(ours(nodes[0], &["db", "get", name, "k\\00"], 0), "a\\FFb\n");
        ours(nodes[0], &["db", "del", name, "k\\00"], 0);
        ours(nodes[1], &["db", "get", name, "k\\00"], 2);
        ours(nodes[1], &["db", "check", name], 0);
        ours(nodes[1], &["db", "stats", name], 0);
        ours(nodes[1], &["db", "show", name], 0);
    }
    // A backup that ends too early changes nothing.
    ours(a, &["db", "put", "safe.tdb", "still", "there"], 0);
    ours(a, &["db", "backup", "safe.tdb", &path("backup")], 0);
    let whole = std::fs::read(path("backup")).unwrap();
    std::fs::write(path("cut"), &whole[..whole.len() - 1]).unwrap();
    ours(a, &["db", "restore", &path("cut")], 1);
    assert_eq!(ours(b, &["db", "get", "safe.tdb", "still"], 0), "there\n");
    // Transactions, and how often there was one.
    let number = |node: &Node| {
        let text = ours(node, &["db", "seqnum", "safe.tdb"], 0);
        text.trim().parse::<u64>().unwrap()
    };
    let before = number(c);
    std::fs::write(path("lines"), "\"one\" \"1\"\n\"two\" \"2\"\n").unwrap();
    ours(c, &["db", "transaction", "safe.tdb", &path("lines")], 0);
    assert_eq!(ours(a, &["db", "get", "safe.tdb", "two"], 0), "2\n");
    assert_eq!(number(b), before + 1);
    std::fs::write(path("lines"), "\"three\" \"3\"\nno pair\n").unwrap();
    ours(c, &["db", "transaction", "safe.tdb", &path("lines")], 64);
    ours(a, &["db", "get", "safe.tdb", "three"], 2);
    assert_eq!(number(b), before + 1);
    ours(a, &["db", "transaction", "new.tdb", &path("nothing")], 2);
    std::fs::write(path("lines"), "\"three\" \"3\"\n").unwrap();
    ours(a, &["db", "transaction", "new.tdb", &path("lines")], 3);
    // Switches, copies, health, clients.
    ours(a, &["db", "set", "new.tdb", "sticky"], 0);
    ours(a, &["db", "set", "safe.tdb", "readonly"], 3);
    let view = b.ctdb_json(&["db", "show", "new.tdb"]).unwrap();
    assert_eq!(view["sticky"], true, "{view}");
    ours(a, &["db", "push", "new.tdb", "pushed", "everywhere"], 0);
    eventually("a copy to be on another node", || {
        ours(c, &["db", "dump", "new.tdb", "--local"], 0).contains("everywhere")
    });
    ours(a, &["db", "push", "safe.tdb", "k", "v"], 3);
    ours(a, &["db", "health"], 0);
    ours(a, &["db", "client", "exists", "1"], 2);
    eventually("all clients to have ended", || {
        let clients = a.ctdb_json(&["db", "client", "list"]).unwrap();
        clients["clients"] == serde_json::json!([])
    });
    ours(a, &["db", "show", "nosuch.tdb"], 2);
    // A recovery loses nothing.
    for node in [a, b] {
        ours(node, &["cluster", "recover"], 0);
        ours(node, &["recover"], 0);
        assert_eq!(ours(c, &["db", "get", "safe.tdb", "one"], 0), "1\n");
    }
    ours(a, &["db", "detach", "new.tdb"], 3);
    for node in [a, b, c] {
        ours(node, &["setvar", "AllowClientDBAttach", "0"], 0);
    }
    ours(a, &["db", "detach", "new.tdb"], 0);
    for node in [a, b, c] {
        eventually("it is detached", || {
            !ours(node, &["db", "list"], 0).contains("new.tdb")
        });
        ours(node, &["setvar", "AllowClientDBAttach", "1"], 0);
    }
}

/// Status and body of an answer of the API.
fn http(node: &Node, socket: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let socket = node.root().join("run/ctdb").join(socket);
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: ctdbd\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// Records over the API: for root only.
fn over_http(lab: &Lab) {
    let [a, b] = [0, 1].map(|index| lab.node(index));
    let changes = r#"{"changes":[{"key":"x","data":"1"},{"key":"y","data":"\\00"}]}"#;
    let path = "/v1/databases/safe.tdb/transaction";
    let (status, body) = http(a, "api.sock", "POST", path, changes);
    assert_eq!(status, 200, "{body}");
    let get = "/v1/databases/safe.tdb/get";
    let (status, body) = http(b, "api.sock", "POST", get, r#"{"key":"y"}"#);
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(r#""data":"\\00""#), "{body}");
    let (status, body) = http(b, "api.sock", "POST", get, r#"{"key":"z"}"#);
    assert_eq!(status, 404, "{body}");
    let (status, body) = http(b, "api-ro.sock", "POST", get, r#"{"key":"y"}"#);
    assert_eq!(status, 405, "{body}");
    let (status, body) = http(b, "api-ro.sock", "GET", "/v1/databases/safe.tdb", "");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(r#""persistent":true"#), "{body}");
    let dump = "/v1/databases/safe.tdb/dump";
    let (status, body) = http(b, "api.sock", "POST", dump, "");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(r#""key":"x""#), "{body}");
    let (status, body) = http(a, "api.sock", "POST", "/v1/cluster/recover", "");
    assert_eq!(status, 200, "{body}");
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
