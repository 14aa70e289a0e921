//! The old commands by Debian's tool and by ours, against the same daemons in the same state: output,
//! errors and exit code, byte for byte. What differs stands in `tests/old_tool.differences` with the
//! reason; a line there that is no longer true fails the test, too, unless its reason says that
//! something is not there yet, or is so at times. The same with the tool of CTDB 4.22, and that tool on its own daemon
//! and on ours, in `cargo xtask soak`: they need 40 MB of packages from Debian's mirror.

#[path = "old_tool/lines.rs"]
mod lines;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ctdb_tests::dbclient::{Kind, Session};
use ctdb_tests::lab::{Flavor, Lab, Node, Service, netns, overlay, reference};
use ctdb_wire::client::control::Request;

use lines::{impatient_lines, lines, lines_elsewhere};

const LONG: Duration = Duration::from_secs(60);

/// Their numbers are of the moment: compared without digits and minus signs.
const MOMENTARY: &[&str] = &[
    "uptime",
    "ping",
    "statistics",
    "stats",
    "getpid",
    "dumpmemory",
    "rddumpmemory",
    "dumpdbbackup",
    "restoredb",
];

/// Runs every line of a list, and writes output, errors and exit code of each.
const DRIVER: &str = "n=0\n\
    while IFS= read -r line; do\n\
    n=$((n + 1))\n\
    timeout 30 /usr/bin/ctdb $line >\"$1/$n.out\" 2>\"$1/$n.err\" </dev/null\n\
    echo $? >\"$1/$n.code\"\n\
    done <\"$1/list\"\n";

/// What the tool prints for each line.
fn outputs(node: &Node, ours: bool, lines: &[String], dir: &Path) -> Vec<String> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("list"), lines.join("\n") + "\n").unwrap();
    let words = ["sh", "-c", DRIVER, "driver", dir.to_str().unwrap()];
    let mut command = node.packaged_command(ours, &words).unwrap();
    let done = node.netns().output(&mut command).unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let read = |number: usize, what: &str| {
        let bytes = fs::read(dir.join(format!("{number}.{what}"))).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    (1..=lines.len())
        .map(|number| {
            format!(
                "{}{}exit {}",
                read(number, "out"),
                read(number, "err"),
                read(number, "code")
            )
        })
        .collect()
}

/// Usage texts name `-j`, which is that of CTDB's releases after 4.17.
fn without_json(text: &str) -> String {
    text.replace("[-?YXjv]", "[-?YXv]")
        .replace(" [-j|--json]", "")
}

/// Without digits; the runs of blanks that numbers of different lengths leave are one.
fn without_digits(text: &str) -> String {
    text.lines()
        .map(|line| {
            let kept: String = line
                .chars()
                .filter(|c| !c.is_ascii_digit() && *c != '-')
                .collect();
            kept.split_whitespace().collect::<Vec<_>>().join(" ") + "\n"
        })
        .collect()
}

/// What may differ.
struct Allowed {
    state: String,
    pattern: String,
    /// It will be the same one day, or is the same at times.
    pending: bool,
}

/// State, line and reason, of the part of the file with that title; `*` stands for anything.
fn allowed(part: &str) -> Vec<Allowed> {
    let text = include_str!("../old_tool.differences");
    let title = format!("[{part}]");
    text.lines()
        .skip_while(|line| *line != title)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.splitn(3, '|').map(|field| field.trim().to_owned());
            let (state, pattern) = (fields.next().unwrap(), fields.next().unwrap());
            let reason = fields.next().unwrap_or_default();
            assert!(reason.len() > 10, "no reason: {line}");
            Allowed {
                state,
                pattern,
                pending: ["not yet", "sometimes"]
                    .iter()
                    .any(|word| reason.starts_with(word)),
            }
        })
        .collect()
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((front, rest)) => text.strip_prefix(front).is_some_and(|tail| {
            (0..=tail.len())
                .filter(|at| tail.is_char_boundary(*at))
                .any(|at| matches(rest, &tail[at..]))
        }),
    }
}

struct Matrix {
    allowed: Vec<Allowed>,
    used: BTreeSet<usize>,
    states: BTreeSet<String>,
    wrong: String,
    compared: usize,
    /// Further commands whose numbers are of the moment.
    momentary: &'static [&'static str],
}

impl Matrix {
    fn new(part: &str, momentary: &'static [&'static str]) -> Self {
        Self {
            allowed: allowed(part),
            used: BTreeSet::new(),
            states: BTreeSet::new(),
            wrong: String::new(),
            compared: 0,
            momentary,
        }
    }

    fn state(&mut self, lab: &Lab, state: &str) {
        let address = lab.public_addresses()[0].to_string();
        let dir = lab.dir().to_str().unwrap();
        self.list(lab, state, &lines(&address, dir, state));
    }

    /// What is asked of another node, and done to it.
    fn elsewhere(&mut self, lab: &Lab) {
        let address = lab.public_addresses()[0].to_string();
        let dir = lab.dir().to_str().unwrap();
        self.list(lab, "another node", &lines_elsewhere(&address, dir));
        lab.wait_all_healthy(LONG).unwrap();
        lab.wait_all_served(LONG).unwrap();
    }

    fn impatient(&mut self, lab: &Lab, state: &str) {
        let address = lab.public_addresses()[0].to_string();
        self.list(lab, state, &impatient_lines(&address, state));
    }

    fn list(&mut self, lab: &Lab, state: &str, lines: &[String]) {
        let node = lab.node(0);
        let theirs = outputs(node, false, lines, &lab.dir().join("theirs"));
        let ours = outputs(node, true, lines, &lab.dir().join("ours"));
        let said = theirs.into_iter().zip(ours).collect::<Vec<_>>();
        self.compare(state, &named(lab, lines), &said);
    }

    /// What both said of each line, which stands there as the differences name it.
    fn compare(&mut self, state: &str, lines: &[String], said: &[(String, String)]) {
        self.states.insert(state.to_owned());
        for (line, (theirs, ours)) in lines.iter().zip(said) {
            self.compared += 1;
            let ours = without_json(ours);
            let momentary = |word: &&str| line.split(' ').any(|one| one == *word);
            let same = if MOMENTARY.iter().chain(self.momentary).any(momentary) {
                without_digits(theirs) == without_digits(&ours)
            } else {
                *theirs == ours
            };
            if same {
                continue;
            }
            let known = self
                .allowed
                .iter()
                .position(|one| matches(&one.state, state) && matches(&one.pattern, line));
            match known {
                Some(index) => _ = self.used.insert(index),
                None => {
                    _ = writeln!(
                        self.wrong,
                        "== {state}: ctdb {line}\n-- theirs\n{theirs}-- ours\n{ours}"
                    );
                }
            }
        }
    }

    /// Fails if anything differs that may not, or nothing that may.
    fn judge(mut self, least: usize) {
        for (index, one) in self.allowed.iter().enumerate() {
            if !one.pending && !self.used.contains(&index) {
                let (state, pattern) = (&one.state, &one.pattern);
                _ = writeln!(
                    self.wrong,
                    "== old_tool.differences: '{state} | {pattern}' is no difference (any more)"
                );
            }
        }
        println!("{} comparisons", self.compared);
        assert!(self.compared > least, "{}", self.compared);
        assert!(self.wrong.is_empty(), "{}", self.wrong);
    }
}

/// The lines as the differences name them.
fn named(lab: &Lab, lines: &[String]) -> Vec<String> {
    let address = lab.public_addresses()[0].to_string();
    let dir = format!("{}/", lab.dir().display());
    let name = |line: &String| line.replace(&address, "A").replace(&dir, "D/");
    lines.iter().map(name).collect()
}

/// While a recovery waits for a lock on a record, which this process has.
fn recovering(lab: &Lab, matrix: &mut Matrix) {
    let mut session = Session::connect(lab.node(0)).unwrap();
    let mut db = session.attach("demo.tdb", Kind::Volatile).unwrap();
    let wait = ctdb_db::Wait::UpTo(LONG);
    db.tdb
        .chain_lock(b"held", ctdb_db::LockKind::Exclusive, wait)
        .unwrap();
    session.client.own(&Request::SetRecmode(1)).unwrap();
    let mode = || lab.ctdb(0, &["status"]).unwrap().stdout;
    lab.wait("the recovery to begin", LONG, || {
        mode().contains("Recovery mode:RECOVERY (1)")
    })
    .unwrap();
    matrix.impatient(lab, "recovering");
    assert!(mode().contains("Recovery mode:RECOVERY (1)"), "{}", mode());
    db.tdb.chain_unlock(b"held").unwrap();
    lab.wait("the recovery to end", LONG, || {
        mode().contains("Recovery mode:NORMAL (0)")
    })
    .unwrap();
}

/// Stands for ssh to a node: says where the words would go.
const SSH: &str = "#!/bin/sh\n\
    while [ \"${1#-}\" != \"$1\" ]; do shift; done\n\
    echo \"$*\"\n";

/// `onnode` asks the tool who is there; with ours in its place it goes to the same nodes.
fn onnode_goes_to_the_same_nodes(lab: &Lab) {
    let ssh = lab.dir().join("ssh");
    fs::write(&ssh, SSH).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let variable = format!("ONNODE_SSH={}", ssh.display());
    let said = |ours: bool, nodes: &str| {
        let words = ["env", &variable, "onnode", "-q", nodes, "hello"];
        let mut command = lab.node(0).packaged_command(ours, &words).unwrap();
        let out = lab.node(0).netns().output(&mut command).unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        (text, out.status.code())
    };
    for nodes in ["all", "ok", "con", "any", "0,2", "1-2", "7", "nosuch"] {
        assert_eq!(said(true, nodes), said(false, nodes), "onnode {nodes}");
    }
    let everywhere = "10.99.1.1 hello\n10.99.1.2 hello\n10.99.1.3 hello\n";
    assert_eq!(said(true, "ok"), (everywhere.to_owned(), Some(0)));
}

/// Files and records that the lines of the list find.
fn prepare(lab: &Lab) {
    let dir = lab.dir();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    // Those of a later release are written by its own tool, whose daemon may be there.
    let ours = lab.settings().overlay.is_none();
    // Files of databases are where the packaged places are.
    let done = |pnn: u32, words: &[&str]| {
        let words = [&["/usr/bin/ctdb"], words].concat();
        let mut command = lab.node(pnn).packaged_command(ours, &words).unwrap();
        let out = lab.node(pnn).netns().output(&mut command).unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{words:?}: {said}");
    };
    done(0, &["attach", "quiet.tdb"]);
    // Of this record node 0 has an old copy, which it does not own.
    done(0, &["attach", "spread.tdb"]);
    done(0, &["writekey", "spread.tdb", "key", "old"]);
    done(1, &["writekey", "spread.tdb", "key", "new"]);
    done(0, &["pstore", "pdemo.tdb", "a", "file"]);
    done(0, &["backupdb", "pdemo.tdb", &path("old")]);
    fs::write(
        dir.join("lines"),
        "\"a\" \"1\"\n  \"b\"\t\"0x3132\"\n\"c\" \"\"\n\"d\" \"x y\" more\n\n\"z\" \"last\"",
    )
    .unwrap();
    fs::write(dir.join("malformed"), "\"e\" \"1\"\nmalformed\n").unwrap();
    let options = ctdb_db::OpenOptions {
        create: true,
        ..ctdb_db::OpenOptions::default()
    };
    ctdb_db::Tdb::open(path("file.tdb"), &options).unwrap();
}

fn needs() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let Some(package) = reference::lacks() {
        panic!("this test cannot run here: {package} is missing");
    }
}

/// The packages of a later release, which the mirror may not give: then that is said, loudly.
fn later_release() -> Option<PathBuf> {
    match overlay::overlay("trixie", &["ctdb"]) {
        Ok(root) => {
            let version = overlay::version(&root, "ctdb").unwrap();
            assert!(version.starts_with("2:4.22."), "{version}");
            println!("ctdb {version}");
            Some(root)
        }
        Err(error) => {
            println!("NOT TESTED: the packages of trixie cannot be had: {error:#}");
            None
        }
    }
}

/// Three nodes in the packaged places, all healthy, with two databases.
fn cluster(flavor: Flavor, root: Option<&Path>) -> Lab {
    needs();
    let mut builder = Lab::builder()
        .flavor(flavor)
        .conf("logging", "log level", "NOTICE");
    if flavor == Flavor::Ours {
        builder = builder.packaged(Vec::new());
    }
    if let Some(root) = root {
        // Two clusters are compared: the same addresses are on the same nodes.
        builder = builder
            .overlay(root.to_path_buf())
            .tunable("IPAllocAlgorithm", 0);
    }
    let lab = builder.build().unwrap();
    let etc = root.unwrap_or(Path::new("/")).join("etc/ctdb");
    for node in lab.nodes() {
        node.write("natgw_nodes", "10.99.1.1\n").unwrap();
        // The helpers of natgw and lvs are scripts that source it.
        fs::copy(etc.join("functions"), node.etc().join("functions")).unwrap();
        let legacy = node.etc().join("events/legacy");
        fs::create_dir_all(&legacy).unwrap();
        if root.is_some() {
            // As the package has them on; two more as the lab has them for CTDB's own daemon.
            netns::copy_missing(&etc.join("events/legacy"), &legacy).unwrap();
            for name in ["00.ctdb.script", "10.interface.script"] {
                let link = legacy.join(name);
                if fs::symlink_metadata(&link).is_err() {
                    symlink(format!("/usr/share/ctdb/events/legacy/{name}"), &link).unwrap();
                }
            }
        }
    }
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    for words in [
        &["attach", "demo.tdb"][..],
        &["attach", "pdemo.tdb", "persistent"],
    ] {
        lab.ctdb(0, words).unwrap().success().unwrap();
    }
    prepare(&lab);
    lab
}

/// Through all states, both tools on our daemon.
fn through_all_states(lab: &Lab, mut matrix: Matrix) {
    let done = |words: &[&str]| {
        lab.ctdb(0, words).unwrap().success().unwrap();
    };
    matrix.state(lab, "healthy");
    onnode_goes_to_the_same_nodes(lab);
    matrix.elsewhere(lab);
    for (state, away, back) in [
        ("disabled", &["disable"][..], "enable"),
        ("stopped", &["stop"][..], "continue"),
        ("banned", &["ban", "600"][..], "unban"),
    ] {
        done(away);
        matrix.state(lab, state);
        done(&[back]);
        lab.wait_all_healthy(LONG).unwrap();
    }
    recovering(lab, &mut matrix);
    lab.node(1).stop_graceful(LONG).unwrap();
    lab.wait("node 1 to be away", LONG, || {
        lab.node(0)
            .nodes_seen()
            .is_ok_and(|nodes| nodes[1].flags.iter().any(|flag| flag == "disconnected"))
    })
    .unwrap();
    matrix.state(lab, "peer away");
    lab.node(2).stop_graceful(LONG).unwrap();
    lab.wait("node 0 to have no leader", LONG, || {
        lab.node(0)
            .leader_seen()
            .is_ok_and(|leader| leader.is_none())
    })
    .unwrap();
    matrix.impatient(lab, "no leader");
    lab.node(0).stop_graceful(LONG).unwrap();
    matrix.state(lab, "daemon down");
    matrix.judge(1000);
}

#[test]
fn both_tools_say_the_same() {
    let lab = cluster(Flavor::Ours, None);
    through_all_states(&lab, Matrix::new("4.17", &[]));
    lab.end().unwrap();
}

#[test]
#[ignore = "downloads packages of Debian's next release"]
fn the_tool_of_4_22_says_the_same() {
    let Some(root) = later_release() else {
        return;
    };
    let lab = cluster(Flavor::Ours, Some(&root));
    through_all_states(&lab, Matrix::new("4.22", &["scriptstatus"]));
    lab.end().unwrap();
}

/// States that both daemons can be in, and how to get there and back; by the tool of 4.22 alone.
const OF_BOTH: &[(&str, &[&str], &[&str])] = &[
    ("disabled", &["disable"], &["enable"]),
    ("stopped", &["stop"], &["continue"]),
    ("banned", &["ban", "600"], &["unban"]),
];

/// Numbers of a cluster's own: generations, leaders, hosts of addresses, sequence numbers of records
/// (CTDB's recoveries and migrations count them up more often), times of scripts and vacuuming.
const NUMBERS: &[&str] = &[
    "scriptstatus",
    "status",
    "leader",
    "ip",
    "ipinfo",
    "ifaces",
    "dbstatistics",
    "catdb",
    "cattdb",
];

/// What the tool of 4.22 says in each state of [`OF_BOTH`], and the lines.
fn with_one_tool(flavor: Flavor, root: &Path) -> Vec<(&'static str, Vec<String>, Vec<String>)> {
    let lab = cluster(flavor, Some(root));
    let address = lab.public_addresses()[0].to_string();
    let dir = lab.dir().to_str().unwrap().to_owned();
    let mut said = Vec::new();
    let mut ask = |state| {
        let lines = match state {
            "another node" => lines_elsewhere(&address, &dir),
            _ => lines(&address, &dir, state),
        };
        let texts = outputs(lab.node(0), false, &lines, &lab.dir().join("said"));
        let texts = texts.iter().map(|text| text.replace(&dir, "D"));
        said.push((state, named(&lab, &lines), texts.collect()));
    };
    ask("healthy");
    ask("another node");
    lab.wait_all_healthy(LONG).unwrap();
    for (state, away, back) in OF_BOTH {
        lab.ctdb(0, away).unwrap().success().unwrap();
        ask(state);
        lab.ctdb(0, back).unwrap().success().unwrap();
        lab.wait_all_healthy(LONG).unwrap();
    }
    lab.node(0).stop_graceful(LONG).unwrap();
    ask("daemon down");
    drop(lab);
    said
}

/// The real tool of 4.22 on its own daemon of 4.22 and on ours.
#[test]
#[ignore = "downloads packages of Debian's next release"]
fn the_tool_of_4_22_cannot_tell_the_daemons_apart() {
    let Some(root) = later_release() else {
        return;
    };
    let mut matrix = Matrix::new("4.22 daemons", NUMBERS);
    let theirs = with_one_tool(Flavor::Ctdb, &root);
    let ours = with_one_tool(Flavor::Ours, &root);
    for ((state, lines, theirs), (_, _, ours)) in theirs.into_iter().zip(ours) {
        let said: Vec<_> = theirs.into_iter().zip(ours).collect();
        matrix.compare(state, &lines, &said);
    }
    matrix.judge(500);
}

#[test]
fn patterns() {
    let good: BTreeMap<&str, &str> = [("a*c", "abc"), ("*", "x"), ("a b", "a b")].into();
    for (pattern, text) in good {
        assert!(matches(pattern, text));
    }
    assert!(!matches("a*c", "abd"));
    assert!(!matches("a", "ab"));
}
