//! Our engine and the real libtdb on one file at the same time, several processes of each, random
//! operations; some are killed at random moments. Every process says what it begins and what is
//! done, and a checker that reads all of it knows what must be in the file at the end.
//!
//! `CTDB_SOAK` in the environment: ever new rounds for ten minutes a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[path = "common/libtdb.rs"]
#[allow(dead_code, reason = "only part of it is used here")]
mod libtdb;

use ctdb_db::{Error, LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind, Wait};
use libtdb::Libtdb;

/// The other side.
const THEIRS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/worker.py");
/// The test that a worker of ours is a copy of, and the variable that tells it what to do.
const OURS: &str = "everybody_finds_what_was_acknowledged";
const WORK: &str = "CTDB_DB_TEST_WORKER";
/// A process that has not ended by then hangs.
const HANG: Duration = Duration::from_secs(120);

type Records = BTreeMap<Vec<u8>, Vec<u8>>;
/// `None`: deleted.
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// One round.
#[derive(Clone, Copy, Debug)]
struct Round {
    flags: OpenFlags,
    hash_size: u32,
    /// Changes outside transactions too.
    plain: bool,
    ours: u32,
    theirs: u32,
    /// Operations of each process; 0: until it is killed.
    ops: u32,
    seed: u64,
}

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        write!(s, "{b:02x}").unwrap();
        s
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).unwrap();
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|d| (digit(d[0]) * 16 + digit(d[1])) as u8)
        .collect()
}

// ---- A worker of ours

struct Worker {
    tdb: Tdb,
    name: String,
    random: Random,
    mine: Records,
    plain: bool,
}

/// A line for the checker. The harness prints something of its own on the first line.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{text}").unwrap();
    out.flush().unwrap();
}

/// What any worker stores: its name, a number, and the same letter again and again.
fn is_sound(value: &[u8]) -> bool {
    let mut parts = value.splitn(3, |b| *b == b':');
    let (_, number, fill) = (parts.next(), parts.next(), parts.next());
    number.is_some_and(|n| n.iter().all(u8::is_ascii_digit))
        && fill.is_some_and(|fill| fill.windows(2).all(|w| w[0] == w[1]))
}

fn told((key, value): (&Vec<u8>, &Option<Vec<u8>>)) -> String {
    let value = value.as_deref().map_or_else(|| "-".to_owned(), hex);
    format!(" {}={value}", hex(key))
}

impl Worker {
    fn own(&mut self) -> Vec<u8> {
        format!("{}-{}", self.name, self.random.below(25)).into_bytes()
    }

    fn value(&mut self, i: u32) -> Vec<u8> {
        let most = [60, 800, 5000][self.random.below(3) as usize];
        let len = self.random.below(most) as usize;
        let mut value = format!("{}:{i}:", self.name).into_bytes();
        value.extend(std::iter::repeat_n(b'A' + self.random.below(26) as u8, len));
        value
    }

    fn some_change(&mut self, i: u32) -> (Vec<u8>, Option<Vec<u8>>) {
        let key = self.own();
        let value = (self.random.below(3) > 0).then(|| self.value(i));
        (key, value)
    }

    fn apply(&mut self, key: &[u8], value: Option<&[u8]>) {
        if let Some(value) = value {
            self.tdb.store(key, value, StoreMode::Replace).unwrap();
            self.mine.insert(key.to_vec(), value.to_vec());
            return;
        }
        let found = match self.tdb.delete(key) {
            Ok(()) => true,
            Err(Error::NotFound) => false,
            Err(error) => panic!("delete: {error}"),
        };
        assert_eq!(found, self.mine.remove(key).is_some(), "delete of {key:?}");
    }

    fn count(&mut self) {
        let counter = self.tdb.fetch(b"counter").unwrap().unwrap_or(b"0".to_vec());
        let counter: u64 = String::from_utf8(counter).unwrap().parse().unwrap();
        let counter = (counter + 1).to_string();
        self.tdb
            .store(b"counter", counter.as_bytes(), StoreMode::Replace)
            .unwrap();
    }

    fn transaction(&mut self, i: u32) {
        let before = self.mine.clone();
        match self.tdb.transaction_start() {
            Err(Error::Busy { .. }) => return,
            started => started.unwrap(),
        }
        let changes: BTreeMap<_, _> = (0..=self.random.below(4))
            .map(|_| self.some_change(i))
            .collect();
        for (key, value) in &changes {
            self.apply(key, value.as_deref());
        }
        let value = self.value(i);
        for key in [b"left".as_slice(), b"right"] {
            self.tdb.store(key, &value, StoreMode::Replace).unwrap();
        }
        self.count();
        say(&changes
            .iter()
            .map(told)
            .fold("B +".to_owned(), |a, b| a + &b));
        let done = if self.random.below(6) == 0 {
            self.tdb.transaction_cancel().unwrap();
            false
        } else {
            match self.tdb.transaction_commit() {
                // A libtdb traverse keeps its record locked for as long as it likes.
                Err(Error::Busy { .. }) => false,
                committed => {
                    committed.unwrap();
                    true
                }
            }
        };
        if !done {
            self.mine = before;
        }
        say(if done { "A" } else { "C" });
    }

    /// Everything else is not sound, and of our own exactly what we know.
    fn traverse(&mut self, kind: TraverseKind) {
        let mut seen = Records::new();
        let prefix = format!("{}-", self.name).into_bytes();
        let walked = self.tdb.traverse(kind, |_, key, value| {
            assert!(key == b"counter" || is_sound(value), "{key:?}: {value:?}");
            if key.starts_with(&prefix) {
                seen.insert(key.to_vec(), value.to_vec());
            }
            Ok(ControlFlow::Continue(()))
        });
        match walked {
            // Who locks all records waits for our position, and we for the next chain.
            Err(Error::Busy { .. }) => {}
            walked => {
                walked.unwrap();
                let keys = |records: &Records| records.keys().cloned().collect::<BTreeSet<_>>();
                assert_eq!(keys(&seen), keys(&self.mine), "own keys");
                assert!(seen == self.mine, "own records");
            }
        }
    }

    fn all_locked(&mut self, kind: LockKind) {
        match self.tdb.lock_all(kind) {
            Err(Error::Busy { .. }) => return,
            locked => locked.unwrap(),
        }
        if kind == LockKind::Exclusive {
            say("B +");
            self.count();
            self.tdb.unlock_all().unwrap();
            say("A");
        } else {
            let (first, left) = (self.tdb.fetch(b"counter").unwrap(), self.tdb.fetch(b"left"));
            assert_eq!(
                left.unwrap(),
                self.tdb.fetch(b"right").unwrap(),
                "half a commit"
            );
            assert_eq!(
                first,
                self.tdb.fetch(b"counter").unwrap(),
                "changed under a lock"
            );
            self.tdb.unlock_all().unwrap();
        }
    }

    fn step(&mut self, i: u32) {
        let brief = Wait::UpTo(Duration::from_millis(500));
        let long = Wait::UpTo(Duration::from_secs(60));
        match self.random.below(100) {
            0..45 if self.plain => {
                let (key, value) = self.some_change(i);
                say(&("B".to_owned() + &told((&key, &value))));
                self.apply(&key, value.as_deref());
                say("A");
            }
            0..20 | 75..85 => {
                self.tdb.set_wait(brief);
                self.transaction(i);
                self.tdb.set_wait(long);
            }
            45..60 => {
                let key = self.own();
                let found = self.tdb.fetch(&key).unwrap();
                assert_eq!(found.as_ref(), self.mine.get(&key), "fetch of {key:?}");
            }
            60..75 => {
                let key = format!("shared-{}", self.random.below(10));
                if self.plain && self.random.below(2) == 0 {
                    let value = self.value(i);
                    self.tdb
                        .store(key.as_bytes(), &value, StoreMode::Replace)
                        .unwrap();
                } else if let Some(value) = self.tdb.fetch(key.as_bytes()).unwrap() {
                    assert!(is_sound(&value), "{key}: {value:?}");
                }
            }
            n @ 85..97 => {
                self.tdb.set_wait(brief);
                match n {
                    85..90 => self.traverse(TraverseKind::Read),
                    90 => self.traverse(TraverseKind::Write),
                    91..94 if self.plain => self.all_locked(LockKind::Exclusive),
                    _ => self.all_locked(LockKind::Shared),
                }
                self.tdb.set_wait(long);
            }
            _ => {}
        }
    }
}

/// Does what [`WORK`] says, if this process is a worker.
fn work_if_told() {
    let Ok(told) = std::env::var(WORK) else {
        return;
    };
    let words: Vec<&str> = told.split('\n').collect();
    let [path, flags, hash_size, name, seed, ops, plain] = words[..] else {
        panic!("{told}");
    };
    let options = OpenOptions {
        flags: OpenFlags::from_bits_retain(flags.parse().unwrap()),
        hash_size: hash_size.parse().unwrap(),
        create: true,
        wait: Wait::UpTo(Duration::from_secs(60)),
        ..OpenOptions::default()
    };
    let mut worker = Worker {
        tdb: Tdb::open(path, &options).unwrap(),
        name: name.to_owned(),
        random: Random::new(seed.parse().unwrap()),
        mine: Records::new(),
        plain: plain == "1",
    };
    let ops: u32 = ops.parse().unwrap();
    say("ready");
    let mut i = 0;
    while ops == 0 || i < ops {
        i += 1;
        worker.step(i);
    }
    say("done");
    drop(worker);
    std::process::exit(0);
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
}

impl History {
    fn read(name: &str, lines: &[String], killed: bool) -> Self {
        let mut this = Self {
            records: Records::new(),
            counted: 0,
            pending: None,
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
                Some("done") => ended = true,
                _ => {}
            }
        }
        assert!(ended || killed, "{name} ended early: {:?}", lines.last());
        this
    }
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

impl Round {
    fn start(&self, path: &Path, number: u32) -> (Process, mpsc::Receiver<()>) {
        let ours = number < self.ours;
        let name = format!("{}{number}", if ours { "rs" } else { "py" });
        let seed = self.seed * 100 + u64::from(number);
        let (flags, plain) = (self.flags.bits().to_string(), u8::from(self.plain));
        let mutexes = u8::from(self.flags.contains(OpenFlags::MUTEX_LOCKING));
        let (hash_size, ops) = (self.hash_size, self.ops);
        let mut command = if ours {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let told = format!(
                "{}\n{flags}\n{hash_size}\n{name}\n{seed}\n{ops}\n{plain}",
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
                plain.to_string(),
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

    fn run(&self) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.tdb");
        // The one that makes the file; with CLEAR_IF_FIRST, the one that keeps it.
        let keeper = self.open(&path);
        let mut random = Random::new(self.seed);
        let (mut processes, acknowledged): (Vec<_>, Vec<_>) = (0..self.ours + self.theirs)
            .map(|number| self.start(&path, number))
            .unzip();
        if self.ops == 0 {
            for first in acknowledged {
                first.recv_timeout(HANG).expect("nothing was acknowledged");
            }
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
        let end = Instant::now() + HANG;
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

    fn check(&self, path: &Path, histories: &[(History, String)]) {
        let mut tdb = self.open(path);
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
            let mut or = history.records.clone();
            if let Some((changes, _)) = &history.pending {
                or.apply(changes);
            }
            assert!(
                own == history.records || own == or,
                "{self:?}: {name}: {:?} and {:?}",
                differences(&own, &history.records),
                differences(&own, &or)
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
        tdb.check()
            .unwrap_or_else(|error| panic!("{self:?}: {error}"));
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
    if std::env::var_os("CTDB_SOAK").is_none() {
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
                    plain: true,
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
                plain: false,
                ours: 2,
                theirs: 2,
                ops: 0,
                seed,
            }
            .run();
        }
    });
}
