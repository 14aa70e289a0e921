//! Our engine and the real libtdb on one file at the same time, several processes of each, random
//! operations; some are killed at random moments. Every process says what it begins and what is
//! done, and a checker that reads all of it knows what must be in the file at the end.
//!
//! This stands in for libtdb's `tdbtorture`, which Debian does not package: several processes on few
//! keys store, append, delete, fetch, traverse to read and to write (and change what they stand on),
//! hold chain locks and locks on all records, shared and exclusive, run transactions that are
//! committed, prepared first or cancelled, close the file and open it again, and are killed and replaced;
//! by a seed that a failure names.
//!
//! `CTDB_SOAK` in the environment: ever new rounds for ten minutes a test.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[path = "common/libtdb.rs"]
#[allow(dead_code, reason = "only part of it is used here")]
mod libtdb;
#[path = "common/torture.rs"]
mod torture;

use ctdb_db::format::RecordKind;
use ctdb_db::{CheckReport, Error, Fault, OpenFlags, OpenOptions, Tdb, TraverseKind};
use libtdb::Libtdb;
use torture::{Changes, Random, Records, Style, WORK, stop_file, unhex, work_if_told};

/// The other side.
const THEIRS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/worker.py");
/// The test that a worker of ours is a copy of.
const OURS: &str = "everybody_finds_what_was_acknowledged";
/// Wakes everybody who sleeps on a mutex of a file, ten times a second: who wants it looks again, and
/// sleeps again if it is taken. Someone who is woken and killed before he takes the mutex takes the
/// wake-up with him, and one who took it in between sees no waiter when he gives it back. That is in
/// the C library and the kernel. Ours look again by themselves; libtdb sleeps on a free mutex until
/// somebody else has to wait for it.
const NUDGE: &str = r"
import ctypes, mmap, os, sys, time
chains = int(sys.argv[2])
f = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(f, 216 + 40 * (chains + 1))
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
syscall = ctypes.CDLL(None).syscall
while True:
    for word in [168] + [216 + 40 * i for i in range(chains + 1)]:
        syscall(ctypes.c_long(202), ctypes.c_void_p(at + word), 1, 2 ** 31 - 1, None, None, 0)
    time.sleep(0.1)
";
/// A process that has not ended by then hangs. Soak runs beside other work, with the least priority.
fn hang() -> Duration {
    Duration::from_secs(if is_soak() { 1800 } else { 120 })
}

fn is_soak() -> bool {
    std::env::var_os("CTDB_SOAK").is_some()
}

/// One round.
#[derive(Clone, Copy, Debug)]
struct Round {
    flags: OpenFlags,
    hash_size: u32,
    style: Style,
    ours: u32,
    theirs: u32,
    /// Operations of each process; 0: until it is killed.
    ops: u32,
    seed: u64,
}

// ---- The checker

/// A process at work.
struct Process {
    name: String,
    child: Child,
    lines: JoinHandle<Vec<String>>,
    killed: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process said in the end.
struct History {
    records: Records,
    counted: u64,
    /// Began and did not end: the changes, and whether the counter is among them.
    pending: Option<(Changes, bool)>,
    /// What it said of a file that is damaged.
    damage: Option<String>,
}

impl History {
    fn read(name: &str, lines: &[String], killed: bool) -> Self {
        let mut this = Self {
            records: Records::new(),
            counted: 0,
            pending: None,
            damage: None,
        };
        let mut ended = false;
        for line in lines {
            match line.split(' ').next() {
                Some("B") => {
                    let words = line.split(' ').skip(1);
                    let counts = line.split(' ').any(|word| word == "+");
                    let changes = words.filter_map(|word| word.split_once('='));
                    let changes = changes
                        .map(|(key, value)| (unhex(key), (value != "-").then(|| unhex(value))))
                        .collect();
                    this.pending = Some((changes, counts));
                }
                Some("A") => {
                    let (changes, counts) = this.pending.take().expect("begun before it ended");
                    this.counted += u64::from(counts);
                    this.records.apply(&changes);
                }
                Some("C") => this.pending = None,
                Some("!") => panic!("{name} {line}"),
                Some("D") => this.damage = Some(line.clone()),
                Some("done") => ended = true,
                _ => {}
            }
        }
        let may = ended || killed || this.damage.is_some();
        assert!(may, "{name} ended early: {:?}", lines.last());
        this
    }

    /// Whether what was found of its keys is what it was told, and of a change under way what may be.
    fn explains(&self, own: &Records, style: Style) -> bool {
        let Some((changes, counts)) = &self.pending else {
            return *own == self.records;
        };
        let mut or = self.records.clone();
        or.apply(changes);
        if *own == self.records || *own == or {
            return true;
        }
        if *counts || !style.tears() {
            return false;
        }
        // One key outside a transaction: all but it is as it was.
        let Some((key, new)) = changes.first_key_value() else {
            return false;
        };
        let (mut others, mut found) = (self.records.clone(), own.clone());
        let (old, found_of_key) = (others.remove(key), found.remove(key));
        found == others && may_hold(old.as_deref(), new.as_deref(), found_of_key.as_deref())
    }
}

/// Whether a key can hold `found` when somebody died who made `new` of `old`: it was being moved, or
/// overwritten where it is, new bytes over old ones and then the new length.
fn may_hold(old: Option<&[u8]>, new: Option<&[u8]>, found: Option<&[u8]>) -> bool {
    let (Some(old), Some(new)) = (old, new) else {
        return found == old || found == new;
    };
    let Some(found) = found else {
        return true;
    };
    let mixed = |(i, byte): (usize, &u8)| old.get(i) == Some(byte) || new.get(i) == Some(byte);
    (found.len() == old.len() || found.len() == new.len()) && found.iter().enumerate().all(mixed)
}

trait Apply {
    fn apply(&mut self, changes: &Changes);
}

impl Apply for Records {
    fn apply(&mut self, changes: &Changes) {
        for (key, value) in changes {
            match value {
                Some(value) => self.insert(key.clone(), value.clone()),
                None => self.remove(key),
            };
        }
    }
}

fn kill_all(processes: &mut [Process], random: &mut Random) {
    while let Some(left) = processes
        .iter()
        .filter(|p| !p.killed)
        .count()
        .checked_sub(1)
    {
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let victim = random.below(left as u64 + 1) as usize;
        let victim = processes.iter_mut().filter(|p| !p.killed).nth(victim);
        let victim = victim.expect("counted before");
        victim.child.kill().unwrap();
        victim.killed = true;
    }
}

impl Round {
    fn start(&self, path: &Path, number: u32, ours: bool) -> (Process, mpsc::Receiver<()>) {
        let name = format!("{}{number}", if ours { "rs" } else { "py" });
        let seed = self.seed * 100 + u64::from(number);
        let (flags, style) = (self.flags.bits().to_string(), self.style.word());
        let mutexes = u8::from(self.flags.contains(OpenFlags::MUTEX_LOCKING));
        let (hash_size, ops) = (self.hash_size, self.ops);
        let mut command = if ours {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let told = format!(
                "{}\n{flags}\n{hash_size}\n{name}\n{seed}\n{ops}\n{style}",
                path.display()
            );
            command
                .args(["--exact", OURS, "--nocapture"])
                .env(WORK, told);
            command
        } else {
            let mut command = Command::new("/usr/bin/python3");
            command.arg(THEIRS).arg(path).args([
                flags,
                hash_size.to_string(),
                name.clone(),
                seed.to_string(),
                ops.to_string(),
                style.to_owned(),
                mutexes.to_string(),
            ]);
            command
        };
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (sender, first) = mpsc::channel();
        let lines = std::thread::spawn(move || {
            let mut lines = Vec::new();
            let mut line = String::new();
            // Half a line of a killed process is not told: nothing follows what it was about.
            while out.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
                let text = line.trim_end();
                if text == "A" {
                    // Nobody listens any more after the first.
                    let _ = sender.send(());
                }
                lines.push(text.to_owned());
                line.clear();
            }
            lines
        });
        let process = Process {
            name,
            child,
            lines,
            killed: false,
        };
        (process, first)
    }

    /// See [`NUDGE`]. The files of [`kinds`] have their mutexes where the platform's rules put them
    /// (spec/database.md B.6.1).
    fn nudge(&self, path: &Path) -> Option<Process> {
        let chains = self.hash_size.to_string();
        self.flags
            .contains(OpenFlags::MUTEX_LOCKING)
            .then(|| Process {
                name: "nudger".to_owned(),
                child: Command::new("/usr/bin/python3")
                    .args(["-c", NUDGE])
                    .arg(path)
                    .arg(chains)
                    .spawn()
                    .unwrap(),
                lines: std::thread::spawn(Vec::new),
                killed: true,
            })
    }

    /// Waits until a process has acknowledged something.
    fn wait_for_first(&self, process: &mut Process, first: &mpsc::Receiver<()>) {
        if let Err(error) = first.recv_timeout(hang()) {
            let _ = process.child.kill();
            let lines = std::mem::replace(&mut process.lines, std::thread::spawn(Vec::new));
            let lines = lines.join().unwrap();
            let last = lines.iter().rev().take(3).collect::<Vec<_>>();
            panic!("{self:?}: {}: {error}: {last:?}", process.name);
        }
    }

    fn run(&self) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.tdb");
        // The one that makes the file; with CLEAR_IF_FIRST, the one that keeps it.
        let keeper = self.open(&path);
        let mut random = Random::new(self.seed);
        let (mut processes, acknowledged): (Vec<_>, Vec<_>) = (0..self.ours + self.theirs)
            .map(|number| self.start(&path, number, number < self.ours))
            .unzip();
        if self.ops == 0 {
            for (process, first) in processes.iter_mut().zip(acknowledged) {
                self.wait_for_first(process, &first);
            }
        }
        let mut nudger = None;
        match self.style {
            Style::Everything => {}
            Style::Commits => kill_all(&mut processes, &mut random),
            Style::OursDie(deaths) | Style::TheirsDie(deaths) => {
                nudger = self.nudge(&path);
                let ours = matches!(self.style, Style::OursDie(_));
                // Two at a time, so that one can die while another waits for what it holds.
                let mut alive: Vec<(Process, mpsc::Receiver<()>)> = Vec::new();
                for number in 0..=deaths {
                    if number < deaths {
                        alive.push(self.start(&path, 10 + number, ours));
                    }
                    if alive.len() < 2 && number < deaths {
                        continue;
                    }
                    let (mut victim, first) = alive.remove(0);
                    self.wait_for_first(&mut victim, &first);
                    std::thread::sleep(Duration::from_micros(random.below(40_000)));
                    victim.child.kill().unwrap();
                    victim.killed = true;
                    processes.push(victim);
                }
                std::fs::write(stop_file(&path), "").unwrap();
            }
        }
        let end = Instant::now() + hang();
        let mut histories = Vec::new();
        for mut process in processes {
            loop {
                if process.child.try_wait().unwrap().is_some() {
                    break;
                }
                assert!(Instant::now() < end, "{} hangs: {self:?}", process.name);
                std::thread::sleep(Duration::from_millis(5));
            }
            let lines = std::mem::replace(&mut process.lines, std::thread::spawn(Vec::new));
            let lines = lines.join().unwrap();
            let killed = process.killed;
            let name = process.name.clone();
            histories.push((History::read(&name, &lines, killed), name));
        }
        drop(nudger);
        self.check(&path, &histories);
        drop(keeper);
    }

    fn open(&self, path: &Path) -> Tdb {
        let options = OpenOptions {
            flags: self.flags,
            hash_size: self.hash_size,
            create: true,
            ..OpenOptions::default()
        };
        Tdb::open(path, &options).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// Whether a check finds the file sound. What deaths in plain changes leave is lost, or, in the
    /// list of free records, put right by who takes it; libtdb's own can leave more.
    fn is_sound(&self, checked: &ctdb_db::Result<CheckReport>) -> bool {
        let Err(error) = checked else {
            return true;
        };
        let Error::Corrupt { fault, .. } = error else {
            panic!("{self:?}: {error}");
        };
        let lost = match fault {
            Fault::Unreferenced | Fault::BadTailer { .. } => true,
            Fault::BadMagic(magic) => RecordKind::of(*magic) == RecordKind::Used,
            _ => false,
        };
        let may = self.style.tears() && (lost || matches!(self.style, Style::TheirsDie(_)));
        assert!(may, "{self:?}: {error}");
        lost
    }

    fn check(&self, path: &Path, histories: &[(History, String)]) {
        let mut tdb = self.open(path);
        let checked = tdb.check();
        let sound = self.is_sound(&checked);
        let damage = histories.iter().find_map(|(h, _)| h.damage.as_ref());
        if damage.is_some() || !sound {
            // The order of libtdb's writes is not ours to choose. What must hold even then: everybody
            // has come to an end, by a typed error, and so does a traverse.
            let theirs = matches!(self.style, Style::TheirsDie(_));
            assert!(theirs, "{self:?}: {damage:?}, {checked:?}");
            println!("{self:?}: damaged by a death of libtdb: {damage:?}, {checked:?}");
            let walked = tdb.traverse(TraverseKind::Read, |_, _, _| Ok(ControlFlow::Continue(())));
            let typed = matches!(walked, Ok(_) | Err(Error::Corrupt { .. }));
            assert!(typed, "{self:?}: {walked:?}");
            return;
        }
        let mut content = Records::new();
        tdb.traverse(TraverseKind::Read, |_, key, value| {
            let again = content.insert(key.to_vec(), value.to_vec());
            assert!(again.is_none(), "{key:?} comes twice");
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        for (history, name) in histories {
            let prefix = format!("{name}-").into_bytes();
            let own = content.iter().filter(|(key, _)| key.starts_with(&prefix));
            let own: Records = own.map(|(k, v)| (k.clone(), v.clone())).collect();
            assert!(
                history.explains(&own, self.style),
                "{self:?}: {name}: {:?}, pending {:?}",
                differences(&own, &history.records),
                history.pending.as_ref().map(|(changes, _)| changes.keys()),
            );
        }
        let most = |(history, _): &(History, String)| {
            history.counted + history.pending.as_ref().map_or(0, |(_, c)| u64::from(*c))
        };
        let counter = content.get(b"counter".as_slice());
        let counter: u64 = counter.map_or(0, |text| {
            String::from_utf8_lossy(text).parse().expect("a number")
        });
        let least: u64 = histories.iter().map(|(history, _)| history.counted).sum();
        let most: u64 = histories.iter().map(most).sum();
        assert!(
            (least..=most).contains(&counter),
            "{self:?}: {counter} of {least}..={most}"
        );
        assert_eq!(
            content.get(b"left".as_slice()),
            content.get(b"right".as_slice())
        );
        // And libtdb sees the same.
        let mut libtdb = Libtdb::open(path, self.flags, self.hash_size);
        let answer = libtdb.ask("all");
        let theirs: Records = answer
            .split(' ')
            .skip(1)
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(key, value)| (unhex(key), unhex(value)))
            .collect();
        assert!(theirs == content, "{self:?}: libtdb sees something else");
        drop(libtdb);
        if self.style.tears() {
            let deaths = |(h, _): &&(History, String)| h.pending.is_some();
            let count = histories.iter().filter(deaths).count();
            println!("{self:?}: {count} died in a change, {checked:?}");
            // Repacking brings back what was lost, and changes nothing else.
            tdb.repack().unwrap();
            tdb.check().unwrap_or_else(|e| panic!("{self:?}: {e}"));
            for (key, value) in &content {
                assert_eq!(tdb.fetch(key).unwrap().as_ref(), Some(value), "{self:?}");
            }
        }
    }
}

/// What is there, and what was wanted, in short.
fn differences(found: &Records, wanted: &Records) -> Vec<String> {
    let keys: BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    let show = |value: Option<&Vec<u8>>| {
        let text = value.map(|value| String::from_utf8_lossy(&value[..value.len().min(12)]));
        text.unwrap_or_default().into_owned()
    };
    keys.into_iter()
        .filter(|key| found.get(*key) != wanted.get(*key))
        .map(|key| {
            let key_text = String::from_utf8_lossy(key);
            format!(
                "{key_text}: {} not {}",
                show(found.get(key)),
                show(wanted.get(key))
            )
        })
        .collect()
}

/// The kinds of files.
fn kinds() -> [(OpenFlags, u32); 4] {
    [
        (OpenFlags::NOSYNC, 3),
        (
            OpenFlags::NOSYNC
                .union(OpenFlags::INCOMPATIBLE_HASH)
                .union(OpenFlags::CLEAR_IF_FIRST)
                .union(OpenFlags::SEQNUM),
            17,
        ),
        (OpenFlags::NOSYNC.union(OpenFlags::VOLATILE), 5),
        // Volatile databases as CTDB has them.
        (
            OpenFlags::NOSYNC
                .union(OpenFlags::INCOMPATIBLE_HASH)
                .union(OpenFlags::CLEAR_IF_FIRST)
                .union(OpenFlags::MUTEX_LOCKING),
            7,
        ),
    ]
}

/// Runs `round` with ever new seeds: as often as given, or for ten minutes.
fn repeat(times: u64, round: impl Fn(u64)) {
    if !is_soak() {
        (1..=times).for_each(round);
        return;
    }
    let end = Instant::now() + Duration::from_mins(10);
    let mut seed = u64::from(std::process::id()) * 1000;
    while Instant::now() < end {
        seed += 1;
        round(seed);
    }
}

/// Nobody is killed: everything that was acknowledged is there, nothing else, and the file is
/// sound.
#[test]
fn everybody_finds_what_was_acknowledged() {
    work_if_told();
    repeat(1, |seed| {
        for (flags, hash_size) in kinds() {
            for (ours, theirs) in [(2, 2), (3, 0), (1, 1)] {
                Round {
                    flags,
                    hash_size,
                    style: Style::Everything,
                    ours,
                    theirs,
                    ops: 250,
                    seed,
                }
                .run();
            }
        }
    });
}

/// Processes of both sides are killed in the middle of their transactions, one after the other,
/// while the others go on: a commit is there whole or not at all, whoever recovers it.
#[test]
fn the_killed_leave_whole_commits() {
    repeat(4, |seed| {
        for (flags, hash_size) in kinds() {
            Round {
                flags,
                hash_size,
                style: Style::Commits,
                ours: 2,
                theirs: 2,
                ops: 0,
                seed,
            }
            .run();
        }
    });
}

/// Processes are killed in the middle of stores, appends and deletes that nothing protects, while
/// others go on, and replaced by new ones. Nobody crashes or hangs; everything that was acknowledged
/// is there; the key in hand is old, new, missing if it was moved, or a mixture if it was overwritten in
/// place; and what is lost is space.
#[test]
fn the_killed_lose_no_more_than_what_they_held() {
    repeat(1, |seed| {
        for (flags, hash_size) in kinds() {
            for style in [Style::OursDie(4), Style::TheirsDie(3)] {
                Round {
                    flags,
                    hash_size,
                    style,
                    ours: 1,
                    theirs: 1,
                    ops: 0,
                    seed,
                }
                .run();
            }
        }
    });
}
