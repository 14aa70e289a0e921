//! A process of ours that works on a database by random operations and says what it begins and what is
//! done: what `worker.py` does with libtdb.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ctdb_db::{Error, LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind, Wait};

/// Soak runs beside other work, with the least priority: who has a lock may not run for minutes.
fn long_wait() -> Wait {
    let soak = std::env::var_os("CTDB_SOAK").is_some();
    Wait::UpTo(Duration::from_secs(if soak { 1800 } else { 60 }))
}

/// The variable that tells a worker what to do.
pub const WORK: &str = "CTDB_DB_TEST_WORKER";

pub type Records = BTreeMap<Vec<u8>, Vec<u8>>;
/// `None`: deleted.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// What the processes of a round do, and who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Changes in transactions and outside; nobody is killed.
    Everything,
    /// Changes in transactions only; everybody is killed, one after the other.
    Commits,
    /// As `Everything`, while ever new processes of ours are killed and replaced.
    OursDie(u32),
    /// As `OursDie`, of libtdb's.
    TheirsDie(u32),
}

impl Style {
    fn of(word: &str) -> Self {
        match word {
            "everything" => Self::Everything,
            "commits" => Self::Commits,
            "killed" => Self::OursDie(0),
            _ => panic!("{word}"),
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Commits => "commits",
            Self::OursDie(_) | Self::TheirsDie(_) => "killed",
        }
    }

    /// Changes outside transactions too.
    pub fn is_plain(self) -> bool {
        self != Self::Commits
    }

    /// Somebody dies in a change that nothing protects.
    pub fn tears(self) -> bool {
        matches!(self, Self::OursDie(_) | Self::TheirsDie(_))
    }
}

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        write!(s, "{b:02x}").unwrap();
        s
    })
}

pub fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).unwrap();
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|d| (digit(d[0]) * 16 + digit(d[1])) as u8)
        .collect()
}

struct Worker {
    tdb: Tdb,
    name: String,
    random: Random,
    mine: Records,
    style: Style,
    path: String,
    options: OpenOptions,
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

    /// A key of ours, and what becomes of it.
    fn some_change(&mut self, i: u32) -> (Vec<u8>, Change) {
        let key = self.own();
        let change = match self.random.below(12) {
            0..4 => Change::Delete,
            4..6 => Change::Append(vec![b'z'; self.random.below(300) as usize]),
            _ => Change::Store(self.value(i)),
        };
        let change = match change {
            // Only more of the same letter is sound.
            Change::Append(mut more) if self.mine.contains_key(&key) => {
                let fill = self.mine[&key].last().copied().filter(|b| *b != b':');
                more.fill(fill.unwrap_or(b'z'));
                Change::Append(more)
            }
            Change::Append(_) => Change::Store(self.value(i)),
            other => other,
        };
        (key, change)
    }

    /// What a key of ours holds after a change.
    fn after(&self, key: &[u8], change: &Change) -> Option<Vec<u8>> {
        match change {
            Change::Delete => None,
            Change::Store(value) => Some(value.clone()),
            Change::Append(more) => Some([&self.mine[key], more.as_slice()].concat()),
        }
    }

    /// Makes a change; whether a lock was to be had. Without one, nothing is changed.
    fn apply(tdb: &mut Tdb, mine: &mut Records, key: &[u8], change: &Change) -> bool {
        let done = match change {
            Change::Store(value) => tdb.store(key, value, StoreMode::Replace),
            Change::Append(more) => tdb.append(key, more),
            Change::Delete => tdb.delete(key),
        };
        match (done, change) {
            (Err(Error::Busy { .. }), _) => return false,
            (Ok(()), Change::Store(value)) => {
                mine.insert(key.to_vec(), value.clone());
            }
            (Ok(()), Change::Append(more)) => {
                let value = mine.get_mut(key).expect("only what is there is added to");
                value.extend_from_slice(more);
            }
            (Ok(()), Change::Delete) => {
                assert!(mine.remove(key).is_some(), "{key:?} was deleted twice");
            }
            (Err(Error::NotFound), Change::Delete) => {
                assert!(!mine.contains_key(key), "{key:?} was lost");
            }
            (Err(error), _) => panic!("{change:?} of {key:?}: {error:?}"),
        }
        true
    }

    /// A change of one key, outside transactions.
    fn plainly(&mut self, i: u32) {
        let (key, change) = self.some_change(i);
        let value = self.after(&key, &change);
        say(&("B".to_owned() + &told((&key, &value))));
        let done = Self::apply(&mut self.tdb, &mut self.mine, &key, &change);
        say(if done { "A" } else { "C" });
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
        let mut changes = Changes::new();
        for _ in 0..=self.random.below(4) {
            let (key, change) = self.some_change(i);
            assert!(Self::apply(&mut self.tdb, &mut self.mine, &key, &change));
            changes.insert(key.clone(), self.mine.get(&key).cloned());
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
        let prepared = self.random.below(4) == 0 && {
            match self.tdb.transaction_prepare_commit() {
                Err(Error::Busy { .. }) => {
                    self.mine = before;
                    say("C");
                    return;
                }
                prepared => prepared.unwrap(),
            }
            true
        };
        let done = if self.random.below(6) == 0 {
            self.tdb.transaction_cancel().unwrap();
            false
        } else {
            match self.tdb.transaction_commit() {
                // A libtdb traverse keeps its record locked for as long as it likes.
                Err(Error::Busy { .. }) if !prepared => false,
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

    /// Everything else is sound, and of our own exactly what we know.
    fn traverse(&mut self) {
        let mut seen = Records::new();
        let prefix = format!("{}-", self.name).into_bytes();
        let tears = self.style.tears();
        let walked = self.tdb.traverse(TraverseKind::Read, |_, key, value| {
            if key.starts_with(&prefix) {
                seen.insert(key.to_vec(), value.to_vec());
            } else {
                let sound = tears || key == b"counter" || is_sound(value);
                assert!(sound, "{key:?}: {value:?}");
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

    /// A traverse that changes some of our records where it stands.
    fn traverse_and_change(&mut self, i: u32) {
        let prefix = format!("{}-", self.name).into_bytes();
        let mut missed: BTreeSet<_> = self.mine.keys().cloned().collect();
        let plain = self.style.is_plain();
        let Self {
            tdb,
            mine,
            random,
            name,
            ..
        } = self;
        let walked = tdb.traverse(TraverseKind::Write, |tdb, key, value| {
            if !key.starts_with(&prefix) {
                return Ok(ControlFlow::Continue(()));
            }
            assert_eq!(mine.get(key).map(Vec::as_slice), Some(value), "{key:?}");
            missed.remove(key);
            if plain && random.below(6) == 0 {
                let change = if random.below(2) == 0 {
                    Change::Delete
                } else {
                    let fill = vec![b'T'; random.below(900) as usize];
                    Change::Store([format!("{name}:{i}:").as_bytes(), &fill].concat())
                };
                let after = match &change {
                    Change::Store(value) => Some(value.clone()),
                    _ => None,
                };
                say(&("B".to_owned() + &told((&key.to_vec(), &after))));
                let done = Self::apply(tdb, mine, key, &change);
                say(if done { "A" } else { "C" });
            }
            Ok(ControlFlow::Continue(()))
        });
        match walked {
            Err(Error::Busy { .. }) => {}
            walked => {
                walked.unwrap();
                assert!(missed.is_empty(), "not seen: {missed:?}");
            }
        }
    }

    /// What is done under a lock on a chain is one step to others.
    fn chain_locked(&mut self, i: u32) {
        let wait = long_wait();
        let key = format!("shared-{}", self.random.below(10)).into_bytes();
        if self.random.below(2) == 0 {
            self.tdb.chain_lock(&key, LockKind::Shared, wait).unwrap();
            let first = self.tdb.fetch(&key).unwrap();
            assert_eq!(first, self.tdb.fetch(&key).unwrap(), "changed under a lock");
            self.tdb.chain_unlock(&key).unwrap();
        } else if self.style.tears() {
            let key = self.own();
            self.tdb
                .chain_lock(&key, LockKind::Exclusive, wait)
                .unwrap();
            let value = self.value(i);
            say(&("B".to_owned() + &told((&key, &Some(value.clone())))));
            let store = Change::Store(value);
            assert!(Self::apply(&mut self.tdb, &mut self.mine, &key, &store));
            self.tdb.chain_unlock(&key).unwrap();
            say("A");
        } else if self.style.is_plain() {
            let lock = b"counter";
            self.tdb
                .chain_lock(lock, LockKind::Exclusive, wait)
                .unwrap();
            say("B +");
            self.count();
            self.tdb.chain_unlock(lock).unwrap();
            say("A");
        }
    }

    fn reopen(&mut self) {
        // The old handle goes when the new one is there: of the same thread, it holds nothing.
        self.tdb = Tdb::open(&self.path, &self.options).unwrap();
    }

    /// A key that everybody changes.
    fn shared(&mut self, i: u32) {
        let key = format!("shared-{}", self.random.below(10)).into_bytes();
        let value = self.value(i);
        match self.random.below(8) {
            0..3 if self.style.is_plain() => {
                self.tdb.store(&key, &value, StoreMode::Replace).unwrap();
            }
            3 if self.style.is_plain() => match self.tdb.delete(&key) {
                Err(Error::NotFound) => {}
                deleted => deleted.unwrap(),
            },
            // What others append is not sound to us.
            4 if self.style.tears() => self.tdb.append(&key, &value).unwrap(),
            _ => {
                if let Some(value) = self.tdb.fetch(&key).unwrap() {
                    let sound = self.style.tears() || is_sound(&value);
                    assert!(sound, "{key:?}: {value:?}");
                }
            }
        }
    }

    fn all_locked(&mut self, kind: LockKind, i: u32) {
        match self.tdb.lock_all(kind) {
            Err(Error::Busy { .. }) => return,
            locked => locked.unwrap(),
        }
        if kind == LockKind::Exclusive && self.style.tears() {
            // A count that is cut off would not be our own loss alone.
            self.plainly(i);
            self.tdb.unlock_all().unwrap();
        } else if kind == LockKind::Exclusive {
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
        let long = long_wait();
        match self.random.below(100) {
            0..45 if self.style.is_plain() => self.plainly(i),
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
            60..75 => self.shared(i),
            n @ 85..95 => {
                self.tdb.set_wait(brief);
                match n {
                    85..89 => self.traverse(),
                    89..91 => self.traverse_and_change(i),
                    91..93 if self.style.is_plain() => self.all_locked(LockKind::Exclusive, i),
                    _ => self.all_locked(LockKind::Shared, i),
                }
                self.tdb.set_wait(long);
            }
            95..98 => self.chain_locked(i),
            98 => self.reopen(),
            _ => {}
        }
    }
}

/// A change of one key.
#[derive(Debug)]
enum Change {
    Store(Vec<u8>),
    /// To a key of ours that exists.
    Append(Vec<u8>),
    Delete,
}

/// Does what [`WORK`] says, if this process is a worker.
pub fn work_if_told() {
    let Ok(told) = std::env::var(WORK) else {
        return;
    };
    let words: Vec<&str> = told.split('\n').collect();
    let [path, flags, hash_size, name, seed, ops, style] = words[..] else {
        panic!("{told}");
    };
    // A typed error of a damaged file is told as such; who has caused it is for the checker.
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string().replace('\n', " ");
        let mark = if text.contains("Corrupt {") { 'D' } else { '!' };
        say(&format!("{mark} {text}"));
        std::process::exit(1);
    }));
    let options = OpenOptions {
        flags: OpenFlags::from_bits_retain(flags.parse().unwrap()),
        hash_size: hash_size.parse().unwrap(),
        create: true,
        wait: long_wait(),
        ..OpenOptions::default()
    };
    let mut worker = Worker {
        tdb: Tdb::open(path, &options).unwrap(),
        name: name.to_owned(),
        random: Random::new(seed.parse().unwrap()),
        mine: Records::new(),
        style: Style::of(style),
        path: path.to_owned(),
        options,
    };
    let stop = stop_file(Path::new(path));
    let ops: u32 = ops.parse().unwrap();
    say("ready");
    let mut i = 0;
    while if ops == 0 { !stop.exists() } else { i < ops } {
        i += 1;
        worker.step(i);
    }
    say("done");
    drop(worker);
    std::process::exit(0);
}

/// While it exists, processes that would work until they are killed end.
pub fn stop_file(path: &Path) -> PathBuf {
    path.with_extension("stop")
}
