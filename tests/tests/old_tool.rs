//! The old commands by Debian's tool and by ours, against the same daemons in the same state: output,
//! errors and exit code, byte for byte. What differs stands in `tests/old_tool.differences` with the
//! reason; a line there that is no longer true fails the test, too, unless its reason says that
//! something is not there yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use ctdb_tests::lab::{Lab, Node, reference};

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
    "dbstatistics demo.tdb",
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
];

/// Runs every line of a list, and writes output, errors and exit code of each.
const DRIVER: &str = "n=0\n\
    while IFS= read -r line; do\n\
    n=$((n + 1))\n\
    timeout 30 /usr/bin/ctdb $line >\"$1/$n.out\" 2>\"$1/$n.err\" </dev/null\n\
    echo $? >\"$1/$n.code\"\n\
    done <\"$1/list\"\n";

fn lines(address: &str, options: &[&str]) -> Vec<String> {
    let each = COMMANDS.iter().flat_map(|command| {
        options
            .iter()
            .map(move |option| format!("{option} {command}"))
    });
    each.chain(ONCE.iter().map(|line| (*line).to_owned()))
        .map(|line| {
            let words = line.split_whitespace();
            words
                .map(|word| if word == "A" { address } else { word })
                .collect::<Vec<_>>()
                .join(" ")
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
        let options = if state == "healthy" { OPTIONS } else { FEW };
        let lines = lines(&address, options);
        let node = lab.node(0);
        let theirs = outputs(node, false, &lines, &lab.dir().join("theirs"));
        let ours = outputs(node, true, &lines, &lab.dir().join("ours"));
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
            let named = line.replace(&address, "A");
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
    lab.node(1).stop_graceful(LONG).unwrap();
    lab.wait("node 1 to be away", LONG, || {
        lab.node(0)
            .nodes_seen()
            .is_ok_and(|nodes| nodes[1].flags.iter().any(|flag| flag == "disconnected"))
    })
    .unwrap();
    matrix.state(&lab, "peer away");
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
