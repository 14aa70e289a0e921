//! Our engine and the real libtdb (python3-tdb, tdb-tools) on the same operations and files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[path = "common/libtdb.rs"]
mod libtdb;

use ctdb_db::{Error, LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind, Wait};
use libtdb::Libtdb;

fn open(path: &Path, flags: OpenFlags, hash_size: u32) -> Tdb {
    let options = OpenOptions {
        flags,
        hash_size,
        create: true,
        ..OpenOptions::default()
    };
    Tdb::open(path, &options).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        write!(s, "{b:02x}").unwrap();
        s
    })
}

fn all(tdb: &mut Tdb) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    tdb.traverse(TraverseKind::Read, |_, key, data| {
        assert!(
            all.insert(key.to_vec(), data.to_vec()).is_none(),
            "a key came twice"
        );
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    all
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits.chunks(2).map(|d| (d[0] * 16 + d[1]) as u8).collect()
}

/// An answer `all k=v k=v ...`.
fn parse_all(answer: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    answer
        .split(' ')
        .skip(1)
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(key, data)| (unhex(key), unhex(data)))
        .collect()
}

/// Small deterministic random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

#[derive(Debug)]
enum Op {
    Put(Vec<u8>, Vec<u8>),
    Append(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Get(Vec<u8>),
    Wipe,
}

fn some_op(random: &mut Random, keys: u64) -> Op {
    let key = format!("key-{}", random.below(keys)).into_bytes();
    let len = match random.below(20) {
        0 => random.below(20_000),
        1..5 => random.below(1000),
        _ => random.below(60),
    };
    let data = vec![b'a' + random.below(26) as u8; len as usize];
    match random.below(100) {
        0 => Op::Wipe,
        1..55 => Op::Put(key, data),
        55..60 => Op::Append(key, data),
        60..90 => Op::Delete(key),
        _ => Op::Get(key),
    }
}

fn ours(tdb: &mut Tdb, op: &Op) -> String {
    let done = |result: Result<(), Error>| match result {
        Ok(()) => "ok".to_owned(),
        Err(Error::NotFound) => "none".to_owned(),
        Err(error) => panic!("{op:?}: {error}"),
    };
    match op {
        Op::Put(key, data) => done(tdb.store(key, data, StoreMode::Replace)),
        Op::Append(key, data) => done(tdb.append(key, data)),
        Op::Delete(key) => done(tdb.delete(key)),
        Op::Wipe => done(tdb.wipe_all()),
        Op::Get(key) => match tdb.fetch(key).unwrap() {
            Some(data) => format!("data {}", hex(&data)).trim_end().to_owned(),
            None => "none".to_owned(),
        },
    }
}

fn theirs(libtdb: &mut Libtdb, op: &Op) -> String {
    match op {
        Op::Put(key, data) => libtdb.ask(&format!("put {} {}", hex(key), hex(data))),
        Op::Append(key, data) => libtdb.ask(&format!("app {} {}", hex(key), hex(data))),
        Op::Delete(key) => libtdb.ask(&format!("del {}", hex(key))),
        Op::Get(key) => libtdb.ask(&format!("get {}", hex(key))),
        Op::Wipe => libtdb.ask("wipe"),
    }
}

const FLAG_SETS: [OpenFlags; 4] = [
    OpenFlags::empty(),
    OpenFlags::INCOMPATIBLE_HASH
        .union(OpenFlags::VOLATILE)
        .union(OpenFlags::SEQNUM),
    OpenFlags::SEQNUM
        .union(OpenFlags::CLEAR_IF_FIRST)
        .union(OpenFlags::NOSYNC),
    OpenFlags::CONVERT.union(OpenFlags::NOSYNC),
];

/// The same operations in the same order give the same bytes.
#[test]
fn files_equal_those_of_libtdb() {
    for (round, flags) in FLAG_SETS.into_iter().enumerate() {
        for hash_size in [1, 7, 131] {
            let dir = tempfile::tempdir().unwrap();
            let (a, b) = (dir.path().join("ours"), dir.path().join("theirs"));
            let mut tdb = open(&a, flags, hash_size);
            let mut libtdb = Libtdb::open(&b, flags, hash_size);
            let mut random = Random(0x9E37_79B9 + round as u64 * 1000 + u64::from(hash_size));
            for i in 0..600 {
                let op = some_op(&mut random, 40);
                assert_eq!(ours(&mut tdb, &op), theirs(&mut libtdb, &op), "{i} {op:?}");
                if i % 50 == 49 {
                    let (a, b) = (std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
                    assert_eq!(a.len(), b.len(), "{flags:?} {hash_size} op {i}: size");
                    let differs = (0..a.len()).find(|at| a[*at] != b[*at]);
                    assert_eq!(differs, None, "{flags:?} {hash_size} op {i} {op:?}");
                }
            }
            tdb.check().unwrap();
        }
    }
}

/// Both work on one file, in turn, with transactions; each sees what the other did.
#[test]
fn both_work_on_one_file_in_turn() {
    for flags in [
        OpenFlags::empty(),
        OpenFlags::INCOMPATIBLE_HASH | OpenFlags::VOLATILE,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.tdb");
        let mut tdb = open(&path, flags, 5);
        let mut libtdb = Libtdb::open(&path, flags, 5);
        let mut random = Random(77 + u64::from(flags.bits()));
        for round in 0..40 {
            let transaction = round % 3 == 0;
            let cancel = round % 9 == 0;
            let before = all(&mut tdb);
            if round % 2 == 0 {
                if transaction {
                    tdb.transaction_start().unwrap();
                }
                for _ in 0..25 {
                    ours(&mut tdb, &some_op(&mut random, 40));
                }
                match (transaction, cancel) {
                    (true, true) => tdb.transaction_cancel().unwrap(),
                    (true, false) => tdb.transaction_commit().unwrap(),
                    _ => {}
                }
            } else {
                if transaction {
                    libtdb.ask("begin");
                }
                for _ in 0..25 {
                    theirs(&mut libtdb, &some_op(&mut random, 40));
                }
                match (transaction, cancel) {
                    (true, true) => libtdb.ask("cancel"),
                    (true, false) => libtdb.ask("commit"),
                    _ => String::new(),
                };
            }
            let content = all(&mut tdb);
            if transaction && cancel {
                assert_eq!(
                    content, before,
                    "round {round}: a cancelled change is there"
                );
            }
            assert_eq!(parse_all(&libtdb.ask("all")), content, "round {round}");
            tdb.check()
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
            if round == 20 {
                tdb.repack().unwrap();
                assert_eq!(parse_all(&libtdb.ask("all")), content);
            }
            if round == 30 {
                libtdb.ask("repack");
                assert_eq!(all(&mut tdb), content);
            }
        }
        drop(libtdb);
        tool_check(&path);
    }
}

/// `tdbtool FILE check` and `tdbdump`, `tdbbackup` accept the file.
fn tool_check(path: &Path) {
    let run = |tool: &str, args: &[&str]| {
        let output = Command::new(tool)
            .args(args)
            .output()
            .expect("this test needs tdb-tools");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {args:?}: {text}");
        text
    };
    let file = path.to_str().unwrap();
    let text = run("tdbtool", &[file, "check"]);
    assert!(text.contains("integrity is OK"), "{text}");
    let mut tdb = open(path, OpenFlags::empty(), 0);
    let content = all(&mut tdb);
    let dump = run("tdbdump", &[file]);
    assert_eq!(
        dump.lines().filter(|l| l.starts_with("key(")).count(),
        content.len()
    );
    run("tdbbackup", &[file]);
    let mut backup = open(&path.with_extension("tdb.bak"), OpenFlags::empty(), 0);
    assert_eq!(all(&mut backup), content);
}

/// Two libtdb processes and two handles of ours at the same time: everybody finds their own records
/// as they left them, and the file is sound.
#[test]
fn all_at_once() {
    for flags in [OpenFlags::NOSYNC, OpenFlags::NOSYNC | OpenFlags::VOLATILE] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.tdb");
        let mut tdb = open(&path, flags, 3);
        let mut libtdbs: Vec<_> = (0..2).map(|_| Libtdb::open(&path, flags, 3)).collect();
        for (i, libtdb) in libtdbs.iter_mut().enumerate() {
            libtdb.send(&format!("hammer py{i}- {i} 1500"));
        }
        let threads: Vec<_> = (0..2)
            .map(|n| {
                let mut tdb = open(&path, flags, 3);
                std::thread::spawn(move || hammer(&mut tdb, n))
            })
            .collect();
        // And a reader that sees only sound records.
        for _ in 0..20 {
            tdb.traverse(TraverseKind::Read, |_, key, data| {
                assert!(key.starts_with(b"py") || key.starts_with(b"rs"), "{key:?}");
                let uniform = data.windows(2).all(|w| w[0] == w[1]);
                assert!(
                    uniform || data == b"committed" || data.is_ascii(),
                    "{data:?}"
                );
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
        let mut want = BTreeMap::new();
        for thread in threads {
            want.extend(thread.join().unwrap());
        }
        for libtdb in &mut libtdbs {
            let answer = libtdb.answer();
            assert!(answer.starts_with("all"), "{answer}");
            want.extend(parse_all(&answer));
        }
        assert_eq!(all(&mut tdb), want);
        tdb.check().unwrap();
        drop(libtdbs);
        tool_check(&path);
    }
}

fn hammer(tdb: &mut Tdb, n: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut random = Random(4711 + n);
    let mut mine = BTreeMap::new();
    for i in 0..1500u64 {
        let key = format!("rs{n}-{}", random.below(30)).into_bytes();
        match random.below(4) {
            0 => match tdb.delete(&key) {
                Ok(()) => assert!(mine.remove(&key).is_some()),
                Err(Error::NotFound) => assert!(!mine.contains_key(&key)),
                Err(error) => panic!("{error}"),
            },
            1 if i % 16 == 1 => {
                let mut transaction = tdb.transaction().unwrap();
                transaction
                    .store(&key, b"committed", StoreMode::Replace)
                    .unwrap();
                transaction.commit().unwrap();
                mine.insert(key.clone(), b"committed".to_vec());
            }
            _ => {
                let data = vec![b'a' + (i % 26) as u8; random.below(400) as usize];
                tdb.store(&key, &data, StoreMode::Replace).unwrap();
                mine.insert(key.clone(), data);
            }
        }
        assert_eq!(tdb.fetch(&key).unwrap().as_ref(), mine.get(&key));
    }
    mine
}

#[test]
fn locks_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    let mut tdb = open(&path, OpenFlags::empty(), 3);
    tdb.store(b"a", b"1", StoreMode::Replace).unwrap();
    let mut libtdb = Libtdb::open(&path, OpenFlags::empty(), 3);
    tdb.set_wait(Wait::Try);

    libtdb.ask("begin");
    assert!(matches!(
        tdb.store(b"a", b"2", StoreMode::Replace),
        Err(Error::Busy { .. })
    ));
    assert!(matches!(tdb.transaction_start(), Err(Error::Busy { .. })));
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"1");
    libtdb.ask("put 61 33");
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"1");
    libtdb.ask("commit");
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"3");

    libtdb.ask("lockall");
    assert!(matches!(tdb.fetch(b"a"), Err(Error::Busy { .. })));
    assert!(matches!(
        tdb.lock_all(LockKind::Shared),
        Err(Error::Busy { .. })
    ));
    libtdb.ask("unlockall");
    libtdb.ask("readlockall");
    tdb.lock_all(LockKind::Shared).unwrap();
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"3");
    assert!(matches!(
        tdb.store(b"a", b"2", StoreMode::Replace),
        Err(Error::LockOrder { .. })
    ));
    tdb.unlock_all().unwrap();
    libtdb.ask("readunlockall");

    // Ours makes libtdb wait.
    tdb.chain_lock(b"a", LockKind::Exclusive, Wait::Try)
        .unwrap();
    libtdb.send("put 61 34");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"3");
    tdb.chain_unlock(b"a").unwrap();
    assert_eq!(libtdb.answer(), "ok");
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"4");

    // A read traverse shows a copy: what it stands on can be deleted, and its space used.
    tdb.set_wait(Wait::UpTo(Duration::from_secs(5)));
    let seen = tdb
        .traverse(TraverseKind::Read, |tdb, key, data| {
            assert!(matches!(tdb.delete(key), Err(Error::ReadOnly)));
            assert_eq!(libtdb.ask("del 61"), "ok");
            assert_eq!((key, data), (&b"a"[..], &b"4"[..]));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert_eq!(seen, 1);
    assert_eq!(tdb.check().unwrap().dead, 0);
    // A write traverse keeps its record's space.
    libtdb.ask("put 61 34");
    let seen = tdb
        .traverse(TraverseKind::Write, |_, _, _| {
            assert_eq!(libtdb.ask("del 61"), "ok");
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert_eq!(seen, 1);
    assert_eq!(tdb.check().unwrap().dead, 1);
    let seen = tdb
        .traverse(TraverseKind::Write, |_, _, _| Ok(ControlFlow::Continue(())))
        .unwrap();
    assert_eq!(seen, 0);
}

#[test]
fn clear_if_first_clears_only_for_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    let flags = OpenFlags::CLEAR_IF_FIRST | OpenFlags::INCOMPATIBLE_HASH;
    let mut tdb = open(&path, flags, 3);
    tdb.store(b"a", b"1", StoreMode::Replace).unwrap();
    let mut libtdb = Libtdb::open(&path, flags, 3);
    assert_eq!(
        libtdb.ask("get 61"),
        "data 31",
        "libtdb cleared a file in use by us"
    );
    drop(tdb);
    let mut tdb = open(&path, flags, 3);
    assert_eq!(
        tdb.fetch(b"a").unwrap().unwrap(),
        b"1",
        "we cleared a file in use by libtdb"
    );
    drop((libtdb, tdb));
    assert_eq!(open(&path, flags, 3).fetch(b"a").unwrap(), None);
}

#[test]
fn a_record_deleted_under_a_write_traverse_stays_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    let mut tdb = open(&path, OpenFlags::empty(), 2);
    for i in 0..100u32 {
        tdb.store(&i.to_le_bytes(), &[0; 50], StoreMode::Insert)
            .unwrap();
    }
    let mut left = 100;
    let seen = tdb
        .traverse(TraverseKind::Write, |tdb, key, _| {
            tdb.delete(key)?;
            left -= 1;
            Ok(if left == 50 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })
        .unwrap();
    assert_eq!(seen, 50);
    assert_eq!(tdb.check().unwrap().used, 50);
    assert_eq!(all(&mut tdb).len(), 50);
}

/// With chain locks as byte ranges and as mutexes.
fn by_turns(round: u64) -> OpenFlags {
    if round.is_multiple_of(2) {
        OpenFlags::empty()
    } else {
        OpenFlags::MUTEX_LOCKING
    }
}

/// libtdb dies in the middle of its commits; the next to open, we, finds a whole state.
#[test]
fn libtdb_is_killed_while_it_commits() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0u64;
    for round in 0..12 {
        let flags = by_turns(round);
        let path = dir.path().join(format!("{}.tdb", flags.bits()));
        let mut libtdb = Libtdb::open(&path, flags, 3);
        libtdb.send("pairs");
        let begun = libtdb.answer();
        assert!(begun.parse::<u64>().is_ok(), "{begun}");
        std::thread::sleep(Duration::from_millis(5 + 7 * round));
        libtdb.child.kill().unwrap();
        libtdb.child.wait().unwrap();
        let mut acknowledged = begun;
        for line in libtdb.output.by_ref().lines() {
            acknowledged = line.unwrap();
        }
        let acknowledged: u64 = acknowledged.parse().unwrap();
        let mut tdb = open(&path, flags, 0);
        let left = tdb.fetch(b"left").unwrap().unwrap();
        let right = tdb.fetch(b"right").unwrap().unwrap();
        assert_eq!(left, right, "round {round}: half a transaction");
        let is = |i: u64| left == i.to_string().repeat(i as usize % 50 + 1).as_bytes();
        assert!(
            is(acknowledged) || is(acknowledged + 1),
            "round {round}: a commit was lost"
        );
        tdb.check()
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        last = last.max(acknowledged);
    }
    assert!(last > 3, "libtdb hardly ran");
}

/// The other way round: we die in the middle of our commits (a copy of this test does), and libtdb
/// is the next to open.
#[test]
fn we_are_killed_while_we_commit() {
    const CHILD: &str = "CTDB_DB_TEST_COMMITTER";
    if let Some(path) = std::env::var_os(CHILD) {
        let path = path.into_string().unwrap();
        let (path, turn) = path.split_once('|').unwrap();
        let mut tdb = open(Path::new(path), by_turns(turn.parse().unwrap()), 3);
        for i in 1u64.. {
            let data = i.to_string().repeat(i as usize % 50 + 1);
            let mut transaction = tdb.transaction().unwrap();
            transaction
                .store(b"left", data.as_bytes(), StoreMode::Replace)
                .unwrap();
            transaction
                .store(b"right", data.as_bytes(), StoreMode::Replace)
                .unwrap();
            transaction.commit().unwrap();
            println!("committed {i}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for round in 0..12 {
        let flags = by_turns(round);
        let path = dir.path().join(format!("{}.tdb", flags.bits()));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "we_are_killed_while_we_commit", "--nocapture"])
            .env(CHILD, format!("{}|{round}", path.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let number = |line: &str| {
            line.split_once("committed ")
                .map(|(_, i)| i.parse::<u64>().unwrap())
        };
        let mut acknowledged = lines
            .by_ref()
            .find_map(|line| number(&line.unwrap()))
            .unwrap();
        std::thread::sleep(Duration::from_millis(3 + 5 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            acknowledged = number(&line.unwrap()).unwrap_or(acknowledged);
        }
        let mut libtdb = Libtdb::open(&path, flags, 0);
        let left = libtdb.ask("get 6c656674");
        assert_eq!(
            left,
            libtdb.ask("get 7269676874"),
            "round {round}: half a transaction"
        );
        let is = |i: u64| {
            left == format!(
                "data {}",
                hex(i.to_string().repeat(i as usize % 50 + 1).as_bytes())
            )
        };
        assert!(
            is(acknowledged) || is(acknowledged + 1),
            "round {round}: a commit was lost"
        );
        open(&path, flags, 0).check().unwrap();
    }
}

/// One handle freezes the database, another one works under its lock (B.7).
#[test]
fn a_marked_handle_works_under_the_lock_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    let (mut freezer, mut worker) = (
        open(&path, OpenFlags::empty(), 3),
        open(&path, OpenFlags::empty(), 3),
    );
    worker.set_wait(Wait::Try);
    worker.store(b"old", b"1", StoreMode::Insert).unwrap();
    freezer.lock_all(LockKind::Exclusive).unwrap();
    assert!(matches!(worker.fetch(b"old"), Err(Error::Busy { .. })));
    worker.mark_all().unwrap();
    assert!(matches!(worker.mark_all(), Err(Error::LockOrder { .. })));
    for round in 0..3 {
        let mut transaction = worker.transaction().unwrap();
        assert!(matches!(
            transaction.unlock_all(),
            Err(Error::InTransaction)
        ));
        transaction.wipe_all().unwrap();
        for i in 0..50u32 {
            transaction
                .store(&i.to_le_bytes(), &[round; 100], StoreMode::Insert)
                .unwrap();
        }
        transaction.commit().unwrap();
    }
    worker.store(b"plain", b"too", StoreMode::Insert).unwrap();
    worker.repack().unwrap();
    worker.unlock_all().unwrap();
    assert!(matches!(worker.fetch(b"old"), Err(Error::Busy { .. })));
    // The freezer can do the same itself.
    let mut transaction = freezer.transaction().unwrap();
    transaction
        .store(b"frozen", b"2", StoreMode::Insert)
        .unwrap();
    transaction.commit().unwrap();
    assert!(
        matches!(worker.fetch(b"old"), Err(Error::Busy { .. })),
        "the lock went with the commit"
    );
    freezer.unlock_all().unwrap();
    assert_eq!(all(&mut worker).len(), 52);
    worker.check().unwrap();

    let key = b"frozen";
    freezer
        .chain_lock(key, LockKind::Exclusive, Wait::Try)
        .unwrap();
    worker.mark_chain(key).unwrap();
    worker.store(key, &[5; 5000], StoreMode::Modify).unwrap();
    worker.chain_unlock(key).unwrap();
    assert!(matches!(worker.fetch(key), Err(Error::Busy { .. })));
    freezer.chain_unlock(key).unwrap();
    assert_eq!(worker.fetch(key).unwrap().unwrap(), [5; 5000]);
    drop((freezer, worker));
    tool_check(&path);
}

/// What is not a database is not overwritten, and what was begun is finished.
#[test]
fn creating_costs_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    let options = OpenOptions {
        create: true,
        ..OpenOptions::default()
    };
    let text = b"not a database ".repeat(30);
    std::fs::write(&path, &text).unwrap();
    assert!(matches!(
        Tdb::open(&path, &options),
        Err(Error::Header { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), text);
    for begun in [&[][..], b"TDB file\n", &[0; 500]] {
        std::fs::write(&path, begun).unwrap();
        Tdb::open(&path, &options).unwrap().check().unwrap();
    }
    assert!(matches!(
        Tdb::open(dir.path(), &options),
        Err(Error::Io { .. })
    ));
    let other = OpenOptions::default();
    assert!(matches!(
        Tdb::open(dir.path().join("none"), &other),
        Err(Error::Io { .. })
    ));
    let mut reader = Tdb::open(
        &path,
        &OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    assert!(matches!(
        reader.store(b"k", b"v", StoreMode::Replace),
        Err(Error::ReadOnly)
    ));
    assert_eq!(reader.fetch(b"k").unwrap(), None);
}

/// Arms the recovery area of a file that was committed to: its state before the last step of the commit.
fn arm(path: &Path) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let area = u32::from_ne_bytes(bytes[44..48].try_into().unwrap());
    file.write_all_at(&0xF53B_C0E7u32.to_ne_bytes(), u64::from(area) + 20)
        .unwrap();
}

/// libtdb crashes in its first commit, recovers, and commits again: its check then sees damage where
/// there is none (I.1). Ours finds the file sound, and says how much space is lost.
#[test]
fn libtdbs_false_alarm_is_none_here() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    let mut libtdb = Libtdb::open(&path, OpenFlags::empty(), 3);
    for line in ["put 61 01", "begin", "put 61 02", "commit"] {
        libtdb.ask(line);
    }
    drop(libtdb);
    arm(&path);
    let mut libtdb = Libtdb::open(&path, OpenFlags::empty(), 3);
    assert_eq!(libtdb.ask("get 61"), "data 01");
    for line in ["begin", "put 62 03", "commit"] {
        libtdb.ask(line);
    }
    drop(libtdb);
    let libtdbs = Command::new("tdbtool")
        .arg(&path)
        .arg("check")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&libtdbs.stdout);
    assert!(
        text.contains("check for the opened database failed"),
        "{text}"
    );
    let mut tdb = open(&path, OpenFlags::empty(), 0);
    let report = tdb.check().unwrap();
    assert!(report.used == 2 && report.lost_bytes > 0, "{report:?}");
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), [1]);
    assert_eq!(tdb.fetch(b"b").unwrap().unwrap(), [3]);
    // Repacked, both are content.
    tdb.repack().unwrap();
    assert_eq!(tdb.check().unwrap().lost_bytes, 0);
    drop(tdb);
    tool_check(&path);
}

/// A commit that is half done: who can only read the file is told so, by libtdb too, and shown no
/// mixture (A.11); who may write undoes it.
#[test]
fn a_half_done_commit_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    {
        let mut tdb = open(&path, OpenFlags::empty(), 3);
        tdb.store(b"a", b"old", StoreMode::Replace).unwrap();
        let mut transaction = tdb.transaction().unwrap();
        transaction.store(b"a", b"new", StoreMode::Replace).unwrap();
        transaction.commit().unwrap();
    }
    arm(&path);
    let reading = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let error = Tdb::open(&path, &reading).unwrap_err();
    assert!(matches!(error, Error::NeedsRecovery { .. }), "{error}");
    let libtdb = Command::new("/usr/bin/python3")
        .args([
            "-c",
            "import os, sys, tdb; tdb.Tdb(sys.argv[1], 0, 0, os.O_RDONLY)",
        ])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!libtdb.status.success(), "{libtdb:?}");
    let mut tdb = open(&path, OpenFlags::empty(), 3);
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"old");
    let mut reader = Tdb::open(&path, &reading).unwrap();
    assert_eq!(reader.fetch(b"a").unwrap().unwrap(), b"old");
}

/// The tools read our dumps and we read theirs.
#[test]
fn dumps_are_those_of_the_tools() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    let mut tdb = open(&path, OpenFlags::empty(), 3);
    let bytes: Vec<u8> = (0..=255).collect();
    for i in 0..60usize {
        let key = &bytes[i..i + i % 5];
        tdb.store(key, &bytes[..i * 4], StoreMode::Replace).unwrap();
    }
    tdb.store(&bytes, &bytes, StoreMode::Replace).unwrap();
    let mut ours = Vec::new();
    ctdb_db::dump::dump(&mut tdb, &mut ours).unwrap();
    let theirs = Command::new("tdbdump").arg(&path).output().unwrap();
    assert!(theirs.status.success(), "this test needs tdb-tools");
    assert_eq!(
        String::from_utf8(ours.clone()),
        String::from_utf8(theirs.stdout)
    );

    let copy = dir.path().join("copy.tdb");
    let mut restore = Command::new("tdbrestore")
        .arg(&copy)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    restore.stdin.take().unwrap().write_all(&ours).unwrap();
    assert!(restore.wait().unwrap().success());
    assert_eq!(all(&mut open(&copy, OpenFlags::empty(), 0)), all(&mut tdb));
}
