//! Files with robust mutexes, shared with the real libtdb (spec/database.md A.2.3, B.6, H.4.4).

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ctdb_db::{Error, LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind, Wait};

/// The flags of H.4.4: CLEAR_IF_FIRST, NOSYNC, DISALLOW_NESTING, INCOMPATIBLE_HASH, MUTEX_LOCKING.
const FLAGS: OpenFlags = OpenFlags::from_bits_retain(0x1C41);

/// libtdb by its C interface, one command a line.
const SERVER: &str = r"
import sys, os, random, ctypes as c
lib = c.CDLL('libtdb.so.1')
class D(c.Structure):
    _fields_ = [('p', c.c_char_p), ('n', c.c_size_t)]
lib.tdb_open.restype = c.c_void_p
lib.tdb_open.argtypes = [c.c_char_p, c.c_int, c.c_int, c.c_int, c.c_int]
for f in 'chainlock chainunlock chainlock_nonblock chainlock_read chainunlock_read delete'.split():
    getattr(lib, 'tdb_' + f).argtypes = [c.c_void_p, D]
lib.tdb_store.argtypes = [c.c_void_p, D, D, c.c_int]
for f in ('lockall lockall_nonblock unlockall lockall_read unlockall_read transaction_start'
          ' transaction_commit transaction_cancel transaction_prepare_commit wipe_all repack').split():
    getattr(lib, 'tdb_' + f).argtypes = [c.c_void_p]
lib.tdb_check.argtypes = [c.c_void_p, c.c_void_p, c.c_void_p]
path, flags, hash_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
t = lib.tdb_open(path.encode(), hash_size, flags, os.O_RDWR | os.O_CREAT, 0o600)
print('ready' if t else 'cannot open', flush=True)
def d(s): s = s.encode(); return D(s, len(s))
for line in sys.stdin:
    w = line.split()
    if w[0] in ('store',): r = lib.tdb_store(t, d(w[1]), d(w[2]), 0)
    elif w[0] == 'check': r = lib.tdb_check(t, None, None)
    elif w[0] == 'hammer':
        r = 0
        rnd = random.Random(int(w[2])); i = 0
        while w[3] == '0' or i < int(w[3]):
            i += 1
            k = d('%s%d' % (w[1], rnd.randrange(30)))
            if rnd.randrange(4) == 0: lib.tdb_delete(t, k)
            else: r += lib.tdb_store(t, k, d('x' * rnd.randrange(1, 300)), 0)
    elif w[0] == 'shared':
        # the counters of both sides, each changed under its chain lock by a real fetch
        lib.tdb_fetch.argtypes = [c.c_void_p, D]
        class V(c.Structure): _fields_ = [('p', c.c_void_p), ('n', c.c_size_t)]
        lib.tdb_fetch.restype = V
        r = 0
        for i in range(int(w[2])):
            k = d('count%d' % (i % int(w[1])))
            r += lib.tdb_chainlock(t, k)
            v = lib.tdb_fetch(t, k)
            n = int(c.string_at(v.p, v.n)) if v.p else 0
            r += lib.tdb_store(t, k, d('%d' % (n + 1)), 0)
            r += lib.tdb_chainunlock(t, k)
    else: r = getattr(lib, 'tdb_' + w[0])(t, *map(d, w[1:]))
    print(r, flush=True)
";

struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn try_open(path: &Path, flags: OpenFlags, hash_size: u32) -> Option<Self> {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", SERVER])
            .arg(path)
            .args([flags.bits().to_string(), hash_size.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs /usr/bin/python3");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self {
            child,
            input,
            output,
        };
        (this.answer() == "ready").then_some(this)
    }

    fn open(path: &Path, flags: OpenFlags, hash_size: u32) -> Self {
        Self::try_open(path, flags, hash_size).expect("libtdb opens the file")
    }

    fn send(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.answer()
    }

    fn does(&mut self, line: &str) {
        let answer = self.ask(line);
        assert_eq!(answer, "0", "libtdb on {line}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open(path: &Path, flags: OpenFlags, hash_size: u32) -> Tdb {
    let options = OpenOptions {
        flags,
        hash_size,
        create: true,
        ..OpenOptions::default()
    };
    Tdb::open(path, &options).unwrap()
}

fn put(tdb: &mut Tdb, key: &str, data: &str) {
    tdb.store(key.as_bytes(), data.as_bytes(), StoreMode::Replace)
        .unwrap();
}

fn is_busy<T: std::fmt::Debug>(result: Result<T, Error>) -> bool {
    match result {
        Err(Error::Busy { .. }) => true,
        Ok(_) => false,
        Err(error) => panic!("{error}"),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// H.4.4: word by word, and to the byte what libtdb makes by the same operations.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_file_of_h_4_4() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let mut tdb = open(&ours, FLAGS, 2);
    put(&mut tdb, "hello", "world");
    put(&mut tdb, "key1", "v1");
    let mut peer = Peer::open(&theirs, FLAGS, 2);
    peer.does("store hello world");
    peer.does("store key1 v1");
    let bytes = std::fs::read(&ours).unwrap();
    assert_eq!(bytes, std::fs::read(&theirs).unwrap());
    assert_eq!(bytes.len(), 12288);
    for (at, want) in [
        (0x28, 0x0bad_1a52),
        (0x3c, 1),
        (0x40, 0x1000),
        (0xa8, 0),
        (0xb8, 0x92),
        (0xd0, 2),
        (0xd8, 0),
        (0xdc, 1),
        (0xe8, 0x92),
        (0x104, 1),
        (0x110, 0x92),
        (0x12c, 1),
        (0x138, 0x92),
        (0x10a8, 0xb4),
        (0x10ac, 0x1fd8),
        (0x10b0, 0x1fb4),
    ] {
        assert_eq!(word(&bytes, at), want, "{at:#x}");
    }
    assert_eq!(bytes[..168], bytes[0x1000..0x10a8]);
    let report = tdb.check().unwrap();
    assert_eq!((report.used, report.lost_bytes), (2, 0));
}

#[test]
fn each_side_respects_the_others_locks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    let mut tdb = open(&path, FLAGS, 7);
    put(&mut tdb, "a", "1");
    let mut peer = Peer::open(&path, FLAGS, 7);
    let exclusive = LockKind::Exclusive;

    peer.does("chainlock a");
    assert!(is_busy(tdb.chain_lock(b"a", exclusive, Wait::Try)));
    assert!(is_busy(tdb.chain_lock(b"a", LockKind::Shared, Wait::Try)));
    tdb.set_wait(Wait::UpTo(Duration::from_millis(30)));
    assert!(is_busy(tdb.fetch(b"a")));
    peer.does("chainunlock a");
    tdb.chain_lock(b"a", exclusive, Wait::Try).unwrap();
    assert_eq!(peer.ask("chainlock_nonblock a"), "-1");
    assert_eq!(peer.ask("lockall_nonblock"), "-1");
    tdb.chain_unlock(b"a").unwrap();

    tdb.lock_all(exclusive).unwrap();
    assert_eq!(peer.ask("chainlock_nonblock a"), "-1");
    assert_eq!(peer.ask("lockall_nonblock"), "-1");
    tdb.unlock_all().unwrap();
    peer.does("lockall");
    assert!(is_busy(tdb.chain_lock(b"a", exclusive, Wait::Try)));
    assert!(is_busy(tdb.lock_all(LockKind::Shared)));
    peer.does("unlockall");

    // A transaction's lock on all records lets readers in, writers not, on both sides.
    peer.does("transaction_start");
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"1");
    assert!(is_busy(tdb.store(b"a", b"2", StoreMode::Replace)));
    // A read lock cannot become a write lock meanwhile.
    tdb.chain_lock(b"a", LockKind::Shared, Wait::Try).unwrap();
    assert!(is_busy(tdb.store(b"a", b"2", StoreMode::Replace)));
    tdb.chain_unlock(b"a").unwrap();
    peer.does("store a 3");
    peer.does("transaction_commit");
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"3");
    let mut transaction = tdb.transaction().unwrap();
    put(&mut transaction, "a", "4");
    peer.does("chainlock_read a");
    peer.does("chainunlock_read a");
    assert_eq!(peer.ask("chainlock_nonblock a"), "-1");
    transaction.commit().unwrap();
    peer.does("chainlock_nonblock a");
    peer.does("chainunlock a");
    peer.does("check");
}

#[test]
fn flags_and_files_that_do_not_go_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    let mut tdb = open(&path, OpenFlags::MUTEX_LOCKING, 7);
    put(&mut tdb, "a", "1");
    let error = Tdb::open(&path, &OpenOptions::default()).unwrap_err();
    assert!(matches!(error, Error::MutexFile { .. }), "{error}");
    assert!(Peer::try_open(&path, OpenFlags::empty(), 7).is_none());
    let reading = OpenOptions {
        read_only: true,
        flags: OpenFlags::MUTEX_LOCKING,
        ..OpenOptions::default()
    };
    let mut reader = Tdb::open(&path, &reading).unwrap();
    assert_eq!(reader.fetch(b"a").unwrap().unwrap(), b"1");
    drop((tdb, reader));
    // The flag on a file without mutexes means nothing.
    let plain = dir.path().join("plain.tdb");
    drop(open(&plain, OpenFlags::empty(), 7));
    let mut tdb = open(&plain, OpenFlags::MUTEX_LOCKING, 7);
    put(&mut tdb, "a", "1");
    Peer::open(&plain, OpenFlags::empty(), 7).does("check");
}

/// Without CLEAR_IF_FIRST whoever comes alone makes the mutexes new; we are never "alone" to others
/// while open, also if we came second (I.3).
#[test]
fn the_second_to_open_keeps_the_mutexes_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    let first = Peer::open(&path, OpenFlags::MUTEX_LOCKING, 7);
    let mut ours = open(&path, OpenFlags::MUTEX_LOCKING, 7);
    first.kill();
    ours.chain_lock(b"a", LockKind::Exclusive, Wait::Try)
        .unwrap();
    let mut third = Peer::open(&path, OpenFlags::MUTEX_LOCKING, 7);
    assert_eq!(third.ask("chainlock_nonblock a"), "-1");
    ours.chain_unlock(b"a").unwrap();
    third.does("chainlock_nonblock a");
    third.does("chainunlock a");
    drop(ours);
    third.kill();
    // Alone after a crash: the mutexes of the dead are made new.
    let mut peer = Peer::open(&path, OpenFlags::MUTEX_LOCKING, 7);
    peer.does("chainlock a");
    peer.kill();
    let file = std::fs::File::open(&path).unwrap();
    let mut state = [0; 2];
    open(&path, OpenFlags::MUTEX_LOCKING, 7)
        .lock_all(LockKind::Exclusive)
        .unwrap();
    file.read_exact_at(&mut state, 208).unwrap();
    assert_eq!(state, [2, 0], "given back when the handle was dropped");
}

/// kill -9 of libtdb with a chain, the freelist's neighbours, or all records locked.
#[test]
fn a_dead_libtdb_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    let mut tdb = open(&path, FLAGS, 3);
    put(&mut tdb, "a", "1");
    for lock in [
        "chainlock a",
        "lockall",
        "lockall_read",
        "transaction_start",
    ] {
        // Tried after its death.
        let mut peer = Peer::open(&path, FLAGS, 3);
        peer.does(lock);
        assert!(is_busy(tdb.chain_lock(
            b"a",
            LockKind::Exclusive,
            Wait::Try
        )));
        peer.kill();
        tdb.chain_lock(b"a", LockKind::Exclusive, Wait::Try)
            .unwrap();
        tdb.chain_unlock(b"a").unwrap();
        // It dies while we wait.
        let mut peer = Peer::open(&path, FLAGS, 3);
        peer.does(lock);
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            peer.kill();
        });
        let begun = Instant::now();
        tdb.set_wait(Wait::UpTo(Duration::from_secs(60)));
        put(&mut tdb, "a", lock);
        killer.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30));
        tdb.lock_all(LockKind::Exclusive).unwrap();
        tdb.unlock_all().unwrap();
    }
    // It dies with its commit prepared: the next to lock anything puts the old content back.
    put(&mut tdb, "a", "old");
    for _ in 0..3 {
        let mut peer = Peer::open(&path, FLAGS, 3);
        for command in [
            "transaction_start",
            "store a new",
            "transaction_prepare_commit",
        ] {
            peer.does(command);
        }
        peer.kill();
        assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"old");
        tdb.check().unwrap();
    }
    let mut peer = Peer::open(&path, FLAGS, 3);
    peer.does("lockall");
    peer.does("unlockall");
    peer.does("check");
}

/// This test's own binary as a process that locks and hangs.
const ROLE: &str = "CTDB_TEST_LOCK_AND_HANG";

#[test]
fn hold_for_another_test() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    let role = role.into_string().unwrap();
    let (lock, path) = role.split_once(' ').unwrap();
    let mut tdb = open(Path::new(path), FLAGS, 3);
    match lock {
        "chain" => tdb.chain_lock(b"a", LockKind::Exclusive, Wait::Forever),
        "all" => tdb.lock_all(LockKind::Exclusive),
        "read" => tdb.lock_all(LockKind::Shared),
        "transaction" => tdb
            .transaction_start()
            .and_then(|()| tdb.store(b"a", b"never", StoreMode::Replace)),
        "prepared" => tdb
            .transaction_start()
            .and_then(|()| tdb.store(b"a", b"never", StoreMode::Replace))
            .and_then(|()| tdb.transaction_prepare_commit()),
        "hammer" => loop {
            for i in 0..u64::MAX {
                let key = format!("ours{}", i * i % 37);
                if i % 3 == 0 {
                    let _ = tdb.delete(key.as_bytes());
                } else {
                    put(&mut tdb, &key, &"y".repeat((i * 7 % 300) as usize));
                }
                if i == 200 {
                    std::fs::write(format!("{path}.ready"), b"").unwrap();
                }
            }
        },
        other => panic!("{other}"),
    }
    .unwrap();
    std::fs::write(format!("{path}.ready"), b"").unwrap();
    thread::sleep(Duration::from_secs(120));
}

struct Ours(Child);

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ours_that_holds(lock: &str, path: &Path) -> Ours {
    let ready = format!("{}.ready", path.display());
    let _ = std::fs::remove_file(&ready);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_for_another_test"])
        .env(ROLE, format!("{lock} {}", path.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Ours(child);
    let begun = Instant::now();
    while !Path::new(&ready).exists() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert!(child.0.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    child
}

/// kill -9 of ours with a lock held, while libtdb waits for it.
#[test]
fn our_death_frees_libtdb() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    // Somebody must stay, or the next to come clears the file.
    let mut peer = Peer::open(&path, FLAGS, 3);
    peer.does("store a 1");
    for lock in ["chain", "all", "read", "transaction", "prepared"] {
        let ours = ours_that_holds(lock, &path);
        let (lock_all, chain) = (
            peer.ask("lockall_nonblock"),
            peer.ask("chainlock_nonblock a"),
        );
        assert_eq!((&*lock_all, &*chain), ("-1", "-1"), "{lock}");
        peer.send("chainlock a");
        thread::sleep(Duration::from_millis(30));
        drop(ours);
        assert_eq!(peer.answer(), "0", "{lock}");
        peer.does("chainunlock a");
        peer.does("lockall");
        peer.does("unlockall");
        peer.does("check");
        let mut tdb = open(&path, FLAGS, 3);
        assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"1", "{lock}");
    }
}

/// Both sides count under chain locks: no update is lost.
#[test]
fn counters_of_both_sides_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    let mut tdb = open(&path, FLAGS, 3);
    let mut peers: Vec<_> = (0..2).map(|_| Peer::open(&path, FLAGS, 3)).collect();
    for peer in &mut peers {
        peer.send("shared 4 1000");
    }
    for i in 0..1000 {
        let key = format!("count{}", i % 4);
        tdb.chain_lock(key.as_bytes(), LockKind::Exclusive, Wait::Forever)
            .unwrap();
        let old = tdb
            .fetch(key.as_bytes())
            .unwrap()
            .map_or(0, |v| String::from_utf8(v).unwrap().parse::<u64>().unwrap());
        put(&mut tdb, &key, &(old + 1).to_string());
        tdb.chain_unlock(key.as_bytes()).unwrap();
        if i % 100 == 0 {
            tdb.check().unwrap();
        }
    }
    for peer in &mut peers {
        assert_eq!(peer.answer(), "0");
    }
    let mut counts = BTreeMap::new();
    tdb.traverse(TraverseKind::Read, |_, key, data| {
        counts.insert(key.to_vec(), data.to_vec());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(counts.len(), 4);
    assert!(counts.values().all(|n| n == b"750"), "{counts:?}");
    peers[0].does("check");
}

/// kill -9 of either side at random moments while both write. Unlike a transaction, a store that is
/// cut off may cost its own chain; what must hold is that nobody waits for the dead.
#[test]
fn killed_while_writing_nobody_waits_for_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    let mut tdb = open(&path, FLAGS, 3);
    tdb.set_wait(Wait::UpTo(Duration::from_secs(60)));
    for round in 0..6 {
        let ours = ours_that_holds("hammer", &path);
        let mut peer = Peer::open(&path, FLAGS, 3);
        peer.send(&format!("hammer libtdb {round} 0"));
        thread::sleep(Duration::from_millis(40 + 13 * round));
        if round % 2 == 0 {
            drop(ours);
            peer.kill();
        } else {
            peer.kill();
            drop(ours);
        }
        let begun = Instant::now();
        let all = tdb.lock_all(LockKind::Exclusive);
        assert!(begun.elapsed() < Duration::from_secs(30));
        all.unwrap();
        tdb.wipe_all().unwrap();
        tdb.check().unwrap();
        tdb.unlock_all().unwrap();
    }
}

#[test]
fn a_lock_is_given_back_by_the_thread_that_took_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    let mut tdb = open(&path, FLAGS, 3);
    let mut other = open(&path, FLAGS, 3);
    tdb.chain_lock(b"a", LockKind::Exclusive, Wait::Try)
        .unwrap();
    let mut tdb = thread::spawn(move || {
        let error = tdb.chain_unlock(b"a").unwrap_err();
        assert!(matches!(error, Error::WrongThread { .. }), "{error}");
        tdb
    })
    .join()
    .unwrap();
    tdb.chain_unlock(b"a").unwrap();
    tdb.lock_all(LockKind::Exclusive).unwrap();
    let mut tdb = thread::spawn(move || {
        let error = tdb.unlock_all().unwrap_err();
        assert!(matches!(error, Error::WrongThread { .. }), "{error}");
        tdb
    })
    .join()
    .unwrap();
    assert!(is_busy(other.chain_lock(
        b"a",
        LockKind::Exclusive,
        Wait::Try
    )));
    tdb.unlock_all().unwrap();

    // A thread ends with a lock, and another drops the handle: the next is not held up.
    let tdb = thread::spawn(move || {
        tdb.chain_lock(b"a", LockKind::Exclusive, Wait::Try)
            .unwrap();
        tdb
    })
    .join()
    .unwrap();
    drop(tdb);
    other
        .chain_lock(b"a", LockKind::Exclusive, Wait::Try)
        .unwrap();
    other.chain_unlock(b"a").unwrap();
    // Two handles of one thread cannot wait for each other.
    let mut third = open(&path, FLAGS, 3);
    other
        .chain_lock(b"a", LockKind::Exclusive, Wait::Try)
        .unwrap();
    assert!(is_busy(third.chain_lock(
        b"a",
        LockKind::Exclusive,
        Wait::Forever
    )));
}

/// Whatever stands in the mutex area gives an error, not a crash and no endless wait.
#[test]
fn a_damaged_mutex_area_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.tdb");
    let mut tdb = open(&path, FLAGS, 3);
    tdb.set_wait(Wait::UpTo(Duration::from_millis(50)));
    put(&mut tdb, "a", "1");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    for fill in [0u8, 0xff, 0x20, 0x92] {
        file.write_all_at(&[fill; 4096 - 168], 168).unwrap();
        let result = tdb.fetch(b"a");
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::Corrupt { .. } | Error::Busy { .. }),
            "{error}"
        );
        assert!(tdb.lock_all(LockKind::Exclusive).is_err());
    }
    file.write_all_at(&good[..4096], 0).unwrap();
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"1");
    // Truncated under us, a lock held.
    tdb.chain_lock(b"a", LockKind::Exclusive, Wait::Try)
        .unwrap();
    file.set_len(0).unwrap();
    assert!(matches!(tdb.fetch(b"a"), Err(Error::Corrupt { .. })));
    assert!(tdb.chain_unlock(b"a").is_err());
    assert!(matches!(tdb.fetch(b"b"), Err(Error::Corrupt { .. })));
    assert!(matches!(
        tdb.lock_all(LockKind::Shared),
        Err(Error::Corrupt { .. })
    ));
    drop(tdb);
    // The thread that held it can go on to lock other files.
    let mut fresh = open(&dir.path().join("fresh.tdb"), FLAGS, 3);
    put(&mut fresh, "a", "1");
    fresh.lock_all(LockKind::Exclusive).unwrap();
}
