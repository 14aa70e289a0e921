//! Many SMB sessions over three nodes that open, lock, rename and watch while nodes move addresses,
//! drain, are killed and, in `soak`, stand still: nothing goes wrong that does not go wrong without that,
//! but that sessions end. Half a minute with a few sessions in the test command, ten minutes with 200 in
//! `soak`. The seed is printed; `CTDB_SEED` repeats one.
//!
//! To look for a cause by hand, each with its default: `CTDB_SMB_SESSIONS`, `CTDB_SMB_SECONDS`,
//! `CTDB_SMB_FAULTS` (`FreezeNode,Kill`), `CTDB_LAB_FLAVOR` (`ctdb` for Debian's daemon), `CTDB_SMB_WORKS` and
//! `CTDB_SMB_HELD` (what sessions do, and for how many seconds they hold a lock), `CTDB_SMB_CONF` (lines of
//! smb.conf's global section, `;` between them), and `CTDB_SMB_HOLD`, with which everything stands when sessions
//! stay away, until a file is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ctdb_tests::lab::{Flavor, Freeze, Lab, Node, Service, lacks};
use nix::sys::signal::Signal;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

const LONG: Duration = Duration::from_secs(90);
/// Samba's processes on a node: smbd, nmbd, winbindd.
const PROCESSES: usize = 3;

/// What sessions do.
const WORKS: &str = "locks,own_file,share_mode,watch";

/// How much is done.
struct Plan {
    flavor: Flavor,
    sessions: usize,
    /// Without a fault, then with faults, seconds.
    quiet: u64,
    seconds: u64,
    faults: Vec<Fault>,
}

impl Plan {
    fn new() -> Self {
        let told = |name: &str| std::env::var(name).ok();
        let number = |name: &str| Some(told(name)?.parse::<u32>().expect(name));
        let soaking = told("CTDB_SOAK").is_some();
        let (sessions, quiet, seconds) = if soaking { (200, 60, 600) } else { (18, 5, 30) };
        let all: &[Fault] = if soaking { &ALL } else { &SHORT };
        let faults = told("CTDB_SMB_FAULTS").map_or(all.to_vec(), |names| {
            let named = |name| ALL.into_iter().find(|fault| format!("{fault:?}") == name);
            names.split(',').map(|n| named(n).expect(n)).collect()
        });
        Self {
            flavor: Flavor::wanted(),
            sessions: number("CTDB_SMB_SESSIONS").map_or(sessions, |n| n as usize),
            quiet,
            seconds: number("CTDB_SMB_SECONDS").map_or(seconds, u64::from),
            faults,
        }
    }
}

/// What the sessions say at their end.
#[derive(Deserialize, Debug)]
struct Outcome {
    done: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    disconnects: u64,
    violations: Vec<String>,
    stuck: u64,
    longest: f64,
}

/// How far they are.
#[derive(Deserialize, Debug)]
struct Progress {
    connected: usize,
    done: u64,
    /// Of each session that is not there: what it waits for, and why it ended.
    absent: Vec<String>,
    errors: BTreeMap<String, u64>,
}

/// The sessions.
struct Load {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    sessions: usize,
}

impl Load {
    fn start(lab: &Lab, sessions: usize) -> Self {
        let addresses: Vec<_> = lab
            .public_addresses()
            .iter()
            .map(IpAddr::to_string)
            .collect();
        let mut command = lab.smb_load(sessions, &addresses).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = lab.client().spawn(&mut command).unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            input: child.stdin.take(),
            output,
            child,
            sessions,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn say(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(line.as_bytes()).unwrap();
    }

    /// What happens to the servers from now on: violations name it.
    fn note(&mut self, text: &str) {
        self.say(&format!("note {text}\n"));
    }

    fn progress(&mut self) -> Progress {
        self.say("how far\n");
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// All sessions are there, and all of them together have done something since. Samba that ended
    /// meanwhile with its daemon, or because its node was evicted, is started again.
    fn settle(&mut self, lab: &Lab) {
        let sessions = self.sessions;
        let all = lab.wait("all SMB sessions", LONG, || {
            for node in lab.nodes() {
                revive(lab, node);
            }
            self.progress().connected == sessions
        });
        if let Err(error) = all {
            let Progress { absent, errors, .. } = self.progress();
            let absent = absent.join("\n");
            println!("errors {errors:?}; absent:\n{absent}");
            hold(lab);
            panic!("{error:#}: {errors:?}\n{absent}");
        }
        let before = self.progress().done;
        let enough = before + sessions as u64;
        lab.wait("SMB sessions to go on", LONG, || {
            self.progress().done >= enough
        })
        .unwrap();
    }

    fn finish(mut self) -> Outcome {
        drop(self.input.take());
        let line = self.line();
        let outcome =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        self.child.wait().unwrap();
        outcome
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets everything stand, if that is wanted.
fn hold(lab: &Lab) {
    if std::env::var_os("CTDB_SMB_HOLD").is_some() {
        let file = lab.dir().join("hold");
        std::fs::write(&file, "").unwrap();
        println!(
            "{}held until {} is gone",
            lab.how_to_enter(),
            file.display()
        );
        while file.exists() {
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Nothing but ends of sessions.
fn judge(outcome: &Outcome, what: &str) {
    println!("{what}: {outcome:?}");
    assert!(outcome.violations.is_empty(), "{what}: {outcome:?}");
    assert!(outcome.errors.is_empty(), "{what}: {outcome:?}");
    assert_eq!(outcome.stuck, 0, "{what}: {outcome:?}");
    let kinds: BTreeSet<&str> = outcome.done.keys().map(String::as_str).collect();
    let wanted = std::env::var("CTDB_SMB_WORKS").unwrap_or_else(|_| WORKS.to_owned());
    let all: BTreeSet<&str> = wanted.split(',').collect();
    assert_eq!(kinds, all, "{what}: {outcome:?}");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Move,
    Drain,
    Kill,
    FreezeDaemon,
    FreezeNode,
}

/// In the test command.
const SHORT: [Fault; 3] = [Fault::Move, Fault::Drain, Fault::Kill];
/// In `soak`.
const ALL: [Fault; 5] = [
    Fault::Move,
    Fault::Drain,
    Fault::Kill,
    Fault::FreezeDaemon,
    Fault::FreezeNode,
];

/// Starts Samba again that ended, since the node's daemon did or because the node was evicted. It may
/// end a while after that.
fn revive(lab: &Lab, node: &Node) {
    if node.service_processes(Service::ClusteredSmb) < PROCESSES {
        lab.wait_all_healthy(LONG).unwrap();
        node.stop_service(Service::ClusteredSmb).unwrap();
        node.start_service(Service::ClusteredSmb).unwrap();
        node.wait_service(Service::ClusteredSmb, LONG).unwrap();
    }
}

fn inflict(lab: &Lab, fault: Fault, victim: u32, stands: Duration) {
    let node = lab.node(victim);
    let ctdb = |words: &[&str]| drop(node.ctdb(words).unwrap().success().unwrap());
    match fault {
        Fault::Move => {
            let owners = node.ip_owners().unwrap();
            let mine = owners.iter().find(|(_, owner)| **owner == Some(victim));
            let Some((address, _)) = mine else { return };
            let to = ((victim + 1) % 3).to_string();
            ctdb(&["moveip", &address.to_string(), &to]);
        }
        Fault::Drain => {
            ctdb(&["disable"]);
            thread::sleep(stands);
            ctdb(&["enable"]);
        }
        Fault::Kill => {
            node.kill_daemon(Signal::SIGKILL).unwrap();
            node.wait_daemon_exit(LONG).unwrap();
            thread::sleep(stands);
            node.start_daemon().unwrap();
        }
        Fault::FreezeDaemon | Fault::FreezeNode => {
            let what = if fault == Fault::FreezeNode {
                Freeze::Node
            } else {
                Freeze::Daemon
            };
            node.freeze(what).unwrap();
            thread::sleep(stands);
            node.thaw(what).unwrap();
        }
    }
    lab.wait_all_healthy(LONG).unwrap();
}

/// Every database file that a node has.
fn database_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.join("var/lib/ctdb")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.contains(".tdb.") && name.ends_with(|c: char| c.is_ascii_digit()) {
                found.push(path);
            }
        }
    }
    found
}

/// Samba's own reader of these files and ours find nothing wrong with any of them.
fn files_are_clean(lab: &Lab) {
    for node in lab.nodes() {
        let files = database_files(node.root());
        let has = |name: &str| {
            files.iter().any(|file| {
                file.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with(name)
            })
        };
        for name in ["locking.tdb", "brlock.tdb", "registry.tdb", "passdb.tdb"] {
            assert!(has(name), "node {}: no {name} in {files:?}", node.pnn());
        }
        for file in files {
            let out = Command::new("tdbtool")
                .arg(&file)
                .arg("check")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(
                text.contains("integrity is OK"),
                "{}: {text}",
                file.display()
            );
            let path = file.to_str().unwrap();
            if lab.settings().flavor == Flavor::Ours {
                let answer = node.ctdb(&["db", "file", "check", path]).unwrap();
                answer.success().unwrap();
            }
        }
    }
}

#[test]
fn sessions_go_on_through_failovers() {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let Some(package) = Service::ClusteredSmb.lacks() {
        panic!("this test cannot run here: {package} is missing");
    }
    let seed = std::env::var("CTDB_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::rng().random::<u32>().into());
    println!("seed {seed}: CTDB_SEED={seed} repeats the same faults");
    let plan = Plan::new();
    let (sessions, faults) = (plan.sessions, &plan.faults);
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let conf = std::env::var("CTDB_SMB_CONF").unwrap_or_default();
    let wishes = Lab::builder().flavor(plan.flavor).ipv6(false);
    let wishes = wishes.smb_conf(&conf.replace(';', "\n"));
    let lab = Lab::with_samba_of(wishes, LONG).unwrap();

    let mut load = Load::start(&lab, sessions);
    load.settle(&lab);
    thread::sleep(Duration::from_secs(plan.quiet));
    let before = load.finish();
    judge(&before, "without a fault");
    assert_eq!(before.disconnects, 0, "{before:?}");

    let mut load = Load::start(&lab, sessions);
    load.settle(&lab);
    let began = Instant::now();
    let until = began + Duration::from_secs(plan.seconds);
    let mut seen: Vec<Fault> = Vec::new();
    // Each kind once, in an order of chance, then as it comes.
    while Instant::now() < until || seen.len() < faults.len() {
        let fresh: Vec<Fault> = faults
            .iter()
            .copied()
            .filter(|f| !seen.contains(f))
            .collect();
        let fault = *fresh
            .choose(&mut chance)
            .unwrap_or(&faults[chance.random_range(0..faults.len())]);
        seen.push(fault);
        let victim = chance.random_range(0..3);
        let stands = Duration::from_millis(chance.random_range(300..4000));
        let at = began.elapsed().as_secs_f64();
        println!("{at:.1} s: {fault:?} of node {victim} for {stands:?}");
        let owners = lab.node(victim).ip_owners();
        load.note(&format!(
            "{fault:?} of {victim} for {stands:?} with {owners:?}"
        ));
        inflict(&lab, fault, victim, stands);
        load.note("over");
        load.settle(&lab);
    }
    let after = load.finish();
    judge(&after, "with faults");
    assert!(after.disconnects > 0, "no fault met a session: {after:?}");
    println!("{} faults, longest answer {} s", seen.len(), after.longest);

    for node in lab.nodes() {
        node.stop_service(Service::ClusteredSmb).unwrap();
        let status = node.stop_graceful(LONG).unwrap();
        assert!(status.success(), "{status}");
    }
    files_are_clean(&lab);
    assert_eq!(lab.samba_panics(), Vec::<String>::new(), "seed {seed}");
    assert_eq!(lab.destroy(), Vec::<String>::new());
}
