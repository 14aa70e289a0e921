//! The old commands by Debian's tool and by ours, against the same daemons in the same state: output,
//! errors and exit code, byte for byte. What differs stands in `tests/old_tool.differences` with the
//! reason; a line there that is no longer true fails the test, too, unless its reason says that
//! something is not there yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use ctdb_tests::dbclient::{Kind, Session};
use ctdb_tests::lab::{Lab, Node, reference};
use ctdb_wire::client::control::Request;

const LONG: Duration = Duration::from_secs(60);

/// Each with each of [`OPTIONS`]. `A` stands for a public address that node 0 knows.
const COMMANDS: &[&str] = &[
    "status",
    "nodestatus",
    "nodestatus all",
    "nodestatus 1",
    "nodestatus 0,2",
    "runstate",
    "pnn",
    "leader",
    "getcapabilities",
    "getreclock",
    "listnodes",
    "ip",
    "ip all",
    "ipinfo A",
    "ifaces",
    "getvar monitorinterval",
    "listvars",
    "getdebug",
    "gettickles A",
    "getdbmap",
    "uptime",
    "statistics",
];

const OPTIONS: &[&str] = &[
    "", "-Y", "-X -x ,", "-v", "-Xv", "-n 1", "-X -n 0", "-n 9", "-t 5", "-T 30",
];

/// Of these in the states behind the first.
const FEW: &[&str] = &["", "-X", "-n 1"];

/// Once in every state.
const ONCE: &[&str] = &[
    "",
    "--usage",
    "nosuchcommand",
    "--bogus status",
    "-n x status",
    "-t",
    "-j -Y status",
    "-j ip",
    "status extra",
    "pnn extra",
    "nodestatus 9",
    "nodestatus x",
    "nodestatus 0 1",
    "runstate running",
    "runstate setup first_recovery",
    "runstate foo",
    "ip foo",
    "ip all extra",
    "ipinfo",
    "ipinfo foo",
    "ipinfo 192.0.2.77",
    "ipinfo fd00:99::1",
    "getvar",
    "getvar NoSuchThing",
    "getvar VacuumLimit",
    "setvar",
    "setvar MonitorInterval",
    "setvar NoSuchThing 1",
    "setvar MonitorInterval xyz",
    "setvar MonitorInterval 15",
    "setvar VacuumLimit 1",
    "stats 1",
    "-X stats 1",
    "ping",
    "-n 1 ping",
    "getpid",
    "process-exists",
    "process-exists 1",
    "process-exists 1 0x1234567890",
    "process-exists 1 0",
    "process-exists abc",
    "-n 1 process-exists 1",
    "-n 1 pnn",
    "-n 0 listnodes",
    "-n 0 version",
    "setdebug foo",
    "setdebug",
    "setifacelink",
    "setifacelink nosuch up",
    "setifacelink pub0 sideways",
    "setifacelink averyveryverylongname up",
    "setifacelink pub0 up",
    "gratarp",
    "gratarp foo pub0",
    "gratarp 192.0.2.9 pub0",
    "moveip",
    "moveip foo 1",
    "moveip A x",
    "addtickle",
    "deltickle",
    "gettickles",
    "gettickles foo",
    "gettickles 192.0.2.77",
    "gettickles A 445",
    "ban",
    "ban 0",
    "ban x",
    "unban extra",
    "disable extra",
    "enable extra",
    "setleaderrole",
    "setleaderrole maybe",
    "setlmasterrole maybe",
    "checktcpport",
    "checktcpport 7",
    "checktcpport 7000",
    "natgw",
    "natgw leader",
    "natgw list",
    "natgw foo",
    "lvs",
    "lvs leader",
    "lvs list",
    "scriptstatus",
    "scriptstatus nosuchevent",
    "event status legacy nosuchevent",
    "event status nosuch monitor",
    "event script list nosuch",
    "event run 10 legacy nothing",
    "event run 10 nosuch nothing",
    "event script enable legacy nosuch",
    "event script enable legacy 99.nosuch",
    "dumpmemory",
    "rddumpmemory",
    "getdbstatus nosuch.tdb",
    "getdbstatus demo.tdb",
    "getdbstatus pdemo.tdb",
    "getdbstatus",
    "-X getdbmap",
    "getdbseqnum pdemo.tdb",
    "getdbseqnum",
    "dbstatistics quiet.tdb",
    "setdbreadonly pdemo.tdb",
    "setdbsticky pdemo.tdb",
    "attach demo.tdb",
    "attach demo.tdb wrongword",
    "catdb nosuch.tdb",
    "cattdb nosuch.tdb",
    "getdbseqnum nosuch.tdb",
    "dbstatistics nosuch.tdb",
    "backupdb nosuch.tdb /nonexistent/x",
    "wipedb nosuch.tdb",
    "pfetch nosuch.tdb k",
    "readkey nosuch.tdb k",
    "setdbreadonly nosuch.tdb",
    "attach",
    "detach nosuch.tdb",
    "reloadips 9",
    "reloadips x",
    "reloadips all extra",
];

/// Records, once while all is well; each line finds what the lines before it left, so the
/// first ones empty the databases. `D` is a directory of the test's.
const RECORDS: &[&str] = &[
    "wipedb demo.tdb",
    "wipedb pdemo.tdb",
    "wipedb demo.tdb extra",
    "catdb demo.tdb",
    "cattdb demo.tdb",
    "cattdb",
    "writekey demo.tdb k1 hello",
    "writekey demo.tdb 0x6b32 0x00ff22",
    "writekey demo.tdb 0x6b3 v",
    "writekey demo.tdb k 0xzz",
    "writekey demo.tdb k",
    "readkey demo.tdb k1",
    "readkey demo.tdb k1 readonly",
    "readkey demo.tdb k1 foo",
    "readkey demo.tdb k2",
    "readkey demo.tdb 0x6b1",
    "catdb demo.tdb",
    "-X catdb demo.tdb",
    "-v cattdb demo.tdb",
    "-n 1 catdb demo.tdb",
    "backupdb demo.tdb D/volatile",
    "backupdb demo.tdb /nonexistent/x",
    "backupdb demo.tdb",
    "dumpdbbackup D/volatile",
    "deletekey demo.tdb k1",
    "deletekey demo.tdb neverthere",
    "deletekey demo.tdb",
    "readkey demo.tdb k1",
    "readkey demo.tdb nokey",
    "catdb demo.tdb",
    "restoredb D/volatile",
    "catdb demo.tdb",
    "cattdb spread.tdb",
    "catdb spread.tdb",
    "backupdb spread.tdb D/spread",
    "dumpdbbackup D/spread",
    "getdbseqnum pdemo.tdb",
    "pfetch pdemo.tdb k",
    "pstore pdemo.tdb k v1",
    "pfetch pdemo.tdb k",
    "pstore pdemo.tdb k v1",
    "pstore pdemo.tdb k",
    "pstore pdemo.tdb 0x6b1 v",
    "pstore pdemo.tdb bin 0x4100ff0a",
    "pfetch pdemo.tdb bin",
    "pfetch pdemo.tdb",
    "getdbseqnum pdemo.tdb",
    "catdb pdemo.tdb",
    "cattdb pdemo.tdb",
    "tfetch /var/lib/ctdb/persistent/pdemo.tdb.0 k",
    "tfetch /var/lib/ctdb/persistent/pdemo.tdb.0 0x62696e",
    "tfetch /var/lib/ctdb/persistent/pdemo.tdb.0 nokey",
    "tfetch /var/lib/ctdb/persistent/pdemo.tdb.0 0x6",
    "tfetch /nonexistent k",
    "tfetch",
    "tstore D/file.tdb a NEW",
    "tfetch D/file.tdb a",
    "tstore D/file.tdb 0x61 0x4e00 7 3",
    "tfetch D/file.tdb a",
    "tstore D/file.tdb a b x",
    "tstore /nonexistent a b",
    "tstore D/file.tdb a b 1 2 3",
    "pdelete pdemo.tdb k",
    "pdelete pdemo.tdb k",
    "pdelete pdemo.tdb neverthere",
    "pdelete pdemo.tdb",
    "getdbseqnum pdemo.tdb",
    "catdb pdemo.tdb",
    "ptrans pdemo.tdb D/lines",
    "ptrans pdemo.tdb /nonexistent",
    "ptrans pdemo.tdb",
    "ptrans pdemo.tdb a b",
    "catdb pdemo.tdb",
    "backupdb pdemo.tdb D/persistent",
    "wipedb pdemo.tdb",
    "cattdb pdemo.tdb",
    "getdbseqnum pdemo.tdb",
    "restoredb D/persistent",
    "cattdb pdemo.tdb",
    "getdbseqnum pdemo.tdb",
    "dumpdbbackup D/persistent",
    "ptrans pdemo.tdb D/malformed",
    "wipedb pdemo.tdb",
    "pfetch demo.tdb k",
    "pstore demo.tdb k v",
    "pdelete demo.tdb k",
    "ptrans demo.tdb",
    "readkey pdemo.tdb k",
    "writekey pdemo.tdb k v",
    "deletekey pdemo.tdb k",
    "detach",
    "detach demo.tdb",
    "setvar AllowClientDBAttach 0",
    "detach demo.tdb",
    "catdb demo.tdb",
    "setvar AllowClientDBAttach 1",
    "reloadips",
    "reloadips 0",
    "reloadips all",
];

/// What needs databases, once in the other states.
const RECORDS_ELSEWHERE: &[&str] = &[
    "restoredb D/old",
    // Now this node has them, whoever had them before.
    "readkey demo.tdb k1",
    "readkey demo.tdb k2",
    "catdb demo.tdb",
    "cattdb pdemo.tdb",
    "pfetch pdemo.tdb k",
    "backupdb pdemo.tdb D/elsewhere",
    "detach demo.tdb",
];

/// Of files, once in every state.
const FILES: &[&str] = &[
    "dumpdbbackup D/old",
    "dumpdbbackup",
    "dumpdbbackup /nonexistent",
    "dumpdbbackup /etc/debian_version",
    "restoredb /nonexistent",
    "restoredb /etc/debian_version",
    "restoredb",
];

/// In states in which requests may wait: nothing that waits for databases but the last ones, and no
/// longer than a second.
const IMPATIENT: &[&str] = &["-t 1", "-t 1 -X"];

const IMPATIENT_ONCE: &[&str] = &[
    "-t 1 runstate running",
    "-t 1 getdbstatus demo.tdb",
    "-t 1 getdbstatus nosuch.tdb",
    "-t 1 process-exists 1",
    "-t 1 ping",
    "-t 1 getpid",
    "-t 1 setvar MonitorInterval 15",
    "-t 1 detach demo.tdb",
    "-t 1 cattdb nosuch.tdb",
    "-t 1 cattdb pdemo.tdb",
];

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

/// The lines of a state in which requests may wait.
fn impatient_lines(address: &str, state: &str) -> Vec<String> {
    // Without a leader the daemon names the hosts that the last one told it, and what the databases
    // are doing changes while the tools run.
    let of_the_leader = ["status", "ip", "ip all", "ipinfo A", "gettickles A"];
    let shown = COMMANDS
        .iter()
        .filter(|command| state != "no leader" || !of_the_leader.contains(command));
    let each = shown.flat_map(|command| {
        IMPATIENT
            .iter()
            .map(move |with| format!("{with} {command}"))
    });
    each.chain(IMPATIENT_ONCE.iter().map(|line| (*line).to_owned()))
        .map(|line| line.replace(" A", &format!(" {address}")))
        .collect()
}

fn lines(address: &str, dir: &str, state: &str) -> Vec<String> {
    let options = if state == "healthy" { OPTIONS } else { FEW };
    let records = if state == "healthy" {
        RECORDS
    } else {
        RECORDS_ELSEWHERE
    };
    let each = COMMANDS.iter().flat_map(|command| {
        options
            .iter()
            .map(move |option| format!("{option} {command}"))
    });
    // First of all, so that what the other tool left is gone.
    let once = records.iter().chain(FILES).chain(ONCE);
    let once = once.map(|line| (*line).to_owned());
    once.chain(each)
        .map(|line| {
            let words = line.split_whitespace().map(|word| match word {
                "A" => address.to_owned(),
                _ => match word.strip_prefix("D/") {
                    Some(name) => format!("{dir}/{name}"),
                    None => word.to_owned(),
                },
            });
            words.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

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

fn is_momentary(line: &str) -> bool {
    line.split(' ').any(|word| MOMENTARY.contains(&word))
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
    /// It will be the same one day.
    pending: bool,
}

/// State, line and reason; `*` stands for anything.
fn allowed() -> Vec<Allowed> {
    let text = include_str!("../old_tool.differences");
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.splitn(3, '|').map(|field| field.trim().to_owned());
            let (state, pattern) = (fields.next().unwrap(), fields.next().unwrap());
            let reason = fields.next().unwrap_or_default();
            assert!(reason.len() > 10, "no reason: {line}");
            Allowed {
                state,
                pattern,
                pending: reason.starts_with("not yet"),
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
}

impl Matrix {
    fn state(&mut self, lab: &Lab, state: &str) {
        let address = lab.public_addresses()[0].to_string();
        let dir = lab.dir().to_str().unwrap();
        self.list(lab, state, &lines(&address, dir, state));
    }

    fn impatient(&mut self, lab: &Lab, state: &str) {
        let address = lab.public_addresses()[0].to_string();
        self.list(lab, state, &impatient_lines(&address, state));
    }

    fn list(&mut self, lab: &Lab, state: &str, lines: &[String]) {
        let address = lab.public_addresses()[0].to_string();
        let dir = format!("{}/", lab.dir().display());
        let node = lab.node(0);
        let theirs = outputs(node, false, lines, &lab.dir().join("theirs"));
        let ours = outputs(node, true, lines, &lab.dir().join("ours"));
        self.states.insert(state.to_owned());
        for ((line, theirs), ours) in lines.iter().zip(theirs).zip(ours) {
            self.compared += 1;
            let ours = without_json(&ours);
            let same = if is_momentary(line) {
                without_digits(&theirs) == without_digits(&ours)
            } else {
                theirs == ours
            };
            if same {
                continue;
            }
            let named = line.replace(&address, "A").replace(&dir, "D/");
            let known = self
                .allowed
                .iter()
                .position(|one| matches(&one.state, state) && matches(&one.pattern, &named));
            match known {
                Some(index) => _ = self.used.insert(index),
                None => {
                    _ = writeln!(
                        self.wrong,
                        "== {state}: ctdb {named}\n-- theirs\n{theirs}-- ours\n{ours}"
                    );
                }
            }
        }
    }
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

/// Files and records that the lines of the list find.
fn prepare(lab: &Lab) {
    let dir = lab.dir();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    // Files of databases are where the packaged places are.
    let done = |pnn: u32, words: &[&str]| {
        let words = [&["/usr/bin/ctdb"], words].concat();
        let mut command = lab.node(pnn).packaged_command(true, &words).unwrap();
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

#[test]
fn both_tools_say_the_same() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let Some(package) = reference::lacks() {
        panic!("this test cannot run here: {package} is missing");
    }
    let lab = Lab::builder().packaged(Vec::new()).build().unwrap();
    for node in lab.nodes() {
        node.write("natgw_nodes", "10.99.1.1\n").unwrap();
        // The helpers of natgw and lvs are scripts that source it.
        fs::copy("/etc/ctdb/functions", node.etc().join("functions")).unwrap();
        fs::create_dir_all(node.etc().join("events/legacy")).unwrap();
    }
    lab.bring_up(&[ctdb_tests::lab::Service::Plain], LONG)
        .unwrap();
    let mut matrix = Matrix {
        allowed: allowed(),
        used: BTreeSet::new(),
        states: BTreeSet::new(),
        wrong: String::new(),
        compared: 0,
    };
    let done = |words: &[&str]| {
        lab.ctdb(0, words).unwrap().success().unwrap();
    };
    done(&["attach", "demo.tdb"]);
    done(&["attach", "pdemo.tdb", "persistent"]);
    prepare(&lab);
    matrix.state(&lab, "healthy");
    for (state, away, back) in [
        ("disabled", &["disable"][..], "enable"),
        ("stopped", &["stop"][..], "continue"),
        ("banned", &["ban", "600"][..], "unban"),
    ] {
        done(away);
        matrix.state(&lab, state);
        done(&[back]);
        lab.wait_all_healthy(LONG).unwrap();
    }
    recovering(&lab, &mut matrix);
    lab.node(1).stop_graceful(LONG).unwrap();
    lab.wait("node 1 to be away", LONG, || {
        lab.node(0)
            .nodes_seen()
            .is_ok_and(|nodes| nodes[1].flags.iter().any(|flag| flag == "disconnected"))
    })
    .unwrap();
    matrix.state(&lab, "peer away");
    lab.node(2).stop_graceful(LONG).unwrap();
    lab.wait("node 0 to have no leader", LONG, || {
        lab.node(0)
            .leader_seen()
            .is_ok_and(|leader| leader.is_none())
    })
    .unwrap();
    matrix.impatient(&lab, "no leader");
    lab.node(0).stop_graceful(LONG).unwrap();
    matrix.state(&lab, "daemon down");
    for (index, one) in matrix.allowed.iter().enumerate() {
        if !one.pending && !matrix.used.contains(&index) {
            let (state, pattern) = (&one.state, &one.pattern);
            _ = writeln!(
                matrix.wrong,
                "== old_tool.differences: '{state} | {pattern}' is no difference (any more)"
            );
        }
    }
    println!("{} comparisons", matrix.compared);
    assert!(matrix.compared > 1000, "{}", matrix.compared);
    assert!(matrix.wrong.is_empty(), "{}", matrix.wrong);
    lab.end().unwrap();
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
