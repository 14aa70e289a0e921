//! The guard's half of DATA-5, with clients in processes of their own. Times are given to it, not
//! waited for.

use std::env;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Lines, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use ctdb_db::{LockKind, OpenFlags, OpenOptions, Tdb, Wait};
use ctdb_ebpf::deadman::{Deadman, Guarded};
use nix::fcntl::{FcntlArg, fcntl};

use super::*;

const ROLE: &str = "CTDBT_GUARD_ROLE";
const NAME: &str = "a.tdb.0";
const MARGIN: Duration = Duration::from_secs(8);
const SECOND: Duration = Duration::from_secs(1);
/// The end of the right in these tests.
const END: BootTime = BootTime(1_000_000_000_000);

fn open(path: &Path, mutexes: bool) -> Tdb {
    let mut flags = OpenFlags::NOSYNC | OpenFlags::CLEAR_IF_FIRST | OpenFlags::INCOMPATIBLE_HASH;
    if mutexes {
        flags |= OpenFlags::MUTEX_LOCKING;
    }
    let options = OpenOptions {
        flags,
        create: true,
        hash_size: 101,
        ..OpenOptions::default()
    };
    Tdb::open(path, &options).unwrap()
}

/// A process that does what it is told, line by line.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(path: &Path, mutexes: bool, role: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "guard::databases::tests::process", "--nocapture"])
            .env(ROLE, role)
            .env("CTDBT_GUARD_FILE", path)
            .env("CTDBT_GUARD_MUTEXES", if mutexes { "1" } else { "" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn ask(&mut self, word: &str) -> String {
        self.tell(word);
        self.hear()
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    fn hear(&mut self) -> String {
        let found = self
            .lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("says ").map(str::to_owned));
        found.expect("the process is gone")
    }

    fn ended_by(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        self.child.wait().unwrap().signal()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of [`Process`]; nothing when run as a test.
#[test]
fn process() {
    let Ok(role) = env::var(ROLE) else { return };
    let path = PathBuf::from(env::var_os("CTDBT_GUARD_FILE").unwrap());
    let mutexes = env::var("CTDBT_GUARD_MUTEXES").unwrap() == "1";
    let mut tdb = open(&path, mutexes);
    let plain = File::options().read(true).write(true).open(&path).unwrap();
    let (_deadman, guarded) = if role == "daemon" {
        let deadman = Arc::new(Deadman::create().unwrap());
        let guarded = guard(&deadman, &path);
        end(&deadman, 1);
        println!("\nsays {}", deadman.fd().as_raw_fd());
        (Some(deadman), Some(guarded))
    } else {
        println!("\nsays ready");
        (None, None)
    };
    for line in io::stdin().lines().map_while(Result::ok) {
        let (word, key) = line.split_once(' ').unwrap_or((&line, ""));
        let key = key.as_bytes();
        let said = match word {
            // As libtdb does: a lock of the process.
            "keep" if !mutexes => {
                let at = 168 + 4 * tdb.chain_of(key);
                let range = libc_flock(at);
                fcntl(&plain, FcntlArg::F_SETLK(&range)).unwrap();
                "locked"
            }
            "lock" | "keep" => {
                tdb.chain_lock(key, LockKind::Exclusive, Wait::Forever)
                    .unwrap();
                "locked"
            }
            "try" => match tdb.chain_lock(key, LockKind::Exclusive, Wait::Try) {
                Ok(()) => "locked",
                Err(ctdb_db::Error::Busy { .. }) => "busy",
                Err(error) => panic!("{error}"),
            },
            "read" => {
                let value = tdb.fetch(key).unwrap();
                let value = value.map(|value| String::from_utf8(value).unwrap());
                println!("\nsays {}", value.as_deref().unwrap_or("nothing"));
                continue;
            }
            "unlock" => {
                tdb.chain_unlock(key).unwrap();
                "unlocked"
            }
            "all" => {
                tdb.lock_all(LockKind::Exclusive).unwrap();
                "locked"
            }
            "thaw" => {
                guarded.as_ref().unwrap().begin_thaw();
                "thawing"
            }
            other => panic!("{other}"),
        };
        println!("\nsays {said}");
    }
}

fn libc_flock(at: u32) -> nix::libc::flock {
    nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: i64::from(at),
        l_len: 1,
        l_pid: 0,
    }
}

fn guard(deadman: &Arc<Deadman>, path: &Path) -> Guarded {
    let file = std::fs::metadata(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    deadman
        .guard_database(name, file.dev(), file.ino())
        .unwrap()
}

/// A right in that slot, which ends at [`END`].
fn end(deadman: &Deadman, slot: u32) {
    deadman.set_right(Right { slot, until: END.0 });
}

/// A daemon, which this process is, and its guard.
struct Node {
    directory: tempfile::TempDir,
    tdb: Tdb,
    deadman: Arc<Deadman>,
    guarded: Guarded,
    guard: Databases,
}

fn guard_of(memory: OwnedFd, directory: &Path) -> Databases {
    let watcher = Arc::new(Watcher::from_fd(memory).unwrap());
    Databases::new(watcher, directory.to_path_buf(), MARGIN)
}

impl Node {
    fn new(mutexes: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let tdb = open(&path, mutexes);
        let deadman = Arc::new(Deadman::create().unwrap());
        let guarded = guard(&deadman, &path);
        end(&deadman, 1);
        let memory = deadman.fd().try_clone_to_owned().unwrap();
        Self {
            guard: guard_of(memory, directory.path()),
            directory,
            tdb,
            deadman,
            guarded,
        }
    }

    fn client(&self) -> Process {
        let mutexes = self.tdb.flags().contains(OpenFlags::MUTEX_LOCKING);
        let path = self.directory.path().join(NAME);
        let mut client = Process::start(&path, mutexes, "client");
        assert_eq!(client.hear(), "ready");
        client
    }
}

/// With mutexes, and without.
fn both(test: fn(bool)) {
    test(true);
    test(false);
}

#[test]
fn a_silent_daemons_databases_are_closed_and_handed_over_without_a_gap() {
    both(|mutexes| {
        let mut node = Node::new(mutexes);
        let mut client = node.client();
        // While the right holds, nothing is done.
        node.guard.step(BootTime(END.0 - 1));
        assert!(!node.guarded.claim());
        assert_eq!(client.ask("try k"), "locked");
        assert_eq!(client.ask("unlock k"), "unlocked");
        node.guard.step(END + SECOND / 2);
        assert_eq!(client.ask("try k"), "locked", "the daemon has its eighth");
        assert_eq!(client.ask("unlock k"), "unlocked");
        node.guard.step(END + SECOND);
        for key in ["k", "l", "m"] {
            assert_eq!(client.ask(&format!("try {key}")), "busy");
        }
        client.tell("lock k");
        // The daemon is back, without a right: it works under the guard's lock.
        assert!(node.guarded.claim());
        node.tdb.mark_all().unwrap();
        node.tdb
            .store(b"k", b"v", ctdb_db::StoreMode::Replace)
            .unwrap();
        node.tdb.unlock_all().unwrap();
        // What it lets go of without a right stays held, and is there for it again.
        node.guarded.let_go();
        node.guard.step(END + SECOND * 20);
        assert!(node.guarded.claim());
        // Another right, and a recovery in it.
        node.deadman.set_right(Right {
            slot: 3,
            until: (END + SECOND * 60).0,
        });
        node.guard.step(END + SECOND * 30);
        let mut other = node.client();
        assert_eq!(other.ask("try l"), "busy", "it is the daemon's");
        node.guarded.let_go();
        node.guard.step(END + SECOND * 31);
        assert_eq!(client.hear(), "locked", "who waited goes on");
        assert_eq!(other.ask("try l"), "locked");
        assert_eq!(node.guarded.blocked(), None);
    });
}

#[test]
fn a_right_that_goes_on_was_never_away() {
    both(|mutexes| {
        let mut node = Node::new(mutexes);
        let mut client = node.client();
        node.guard.step(END + SECOND);
        assert_eq!(client.ask("try k"), "busy");
        // An answer to an earlier heartbeat was read late.
        let until = (END + SECOND * 3).0;
        node.deadman.set_right(Right { slot: 1, until });
        node.guard.step(END + SECOND * 2);
        assert!(!node.guarded.claim());
        assert_eq!(client.ask("try k"), "locked");
    });
}

/// Daemon and guard wake at once; the daemon freezes, rejoins and serves, and the guard comes late.
#[test]
fn what_is_taken_behind_a_recovery_is_given_back() {
    both(|mutexes| {
        let mut node = Node::new(mutexes);
        let mut client = node.client();
        let second_right = Right {
            slot: 3,
            until: (END + SECOND * 60).0,
        };
        // It holds all records, and offers that, when another right is there.
        node.guard.step(END + SECOND);
        node.deadman.set_right(second_right);
        node.guard.step(END + SECOND * 2);
        assert_eq!(client.ask("try k"), "busy", "nothing is recovered yet");
        node.guarded.set_served(Some(1));
        node.guard.step(END + SECOND * 3);
        assert_eq!(client.ask("try k"), "busy", "that was before");
        node.guarded.set_served(Some(3));
        node.guard.step(END + SECOND * 4);
        assert_eq!(client.ask("try k"), "locked");
        assert!(!node.guarded.claim(), "the offer is withdrawn");
        assert_eq!(client.ask("unlock k"), "unlocked");
        // As soon as that right has ended it is closed as ever, and stays so for the next.
        node.guard.step(END + SECOND * 62);
        node.deadman.set_right(Right {
            slot: 4,
            until: (END + SECOND * 90).0,
        });
        node.guard.step(END + SECOND * 63);
        assert_eq!(client.ask("try k"), "busy");
        assert!(node.guarded.claim());
    });
}

#[test]
fn what_was_closed_while_the_daemon_had_it_is_open_when_the_daemon_is_through() {
    let mut node = Node::new(true);
    let mut client = node.client();
    // The guard finds the daemon's lock and closes the file beside it; then it does not run for a while.
    node.guarded.set_own(Own::Freezing);
    node.tdb.lock_all(LockKind::Exclusive).unwrap();
    node.guard.step(END + SECOND);
    node.guarded.set_own(Own::Frozen);
    node.deadman.set_right(Right {
        slot: 3,
        until: (END + SECOND * 60).0,
    });
    node.guarded.set_served(Some(3));
    node.guarded.set_own(Own::Served);
    // The lock has not been given back yet.
    node.guard.step(END + SECOND * 2);
    assert_eq!(client.ask("try k"), "busy");
    node.tdb.unlock_all().unwrap();
    node.guard.step(END + SECOND * 3);
    assert!(!node.guard.is_engaged());
    assert_eq!(client.ask("try k"), "locked");
}

#[test]
fn who_keeps_a_record_locked_is_named_then_ended() {
    both(|mutexes| {
        let mut node = Node::new(mutexes);
        let (mut keeper, mut client) = (node.client(), node.client());
        assert_eq!(keeper.ask("keep k"), "locked");
        node.guard.step(END + SECOND);
        assert_eq!(node.guarded.blocked(), None);
        node.guard.step(END + SECOND * 4);
        assert_eq!(node.guarded.blocked(), Some((keeper.child.id(), false)));
        assert!(!node.guarded.claim());
        for key in ["k", "l", "m"] {
            let said = client.ask(&format!("try {key}"));
            assert_eq!(said, "busy", "nobody new comes in");
        }
        node.guard.step(END + SECOND * 5);
        assert!(
            keeper.child.try_wait().unwrap().is_none(),
            "it has its time"
        );
        node.guard.step(END + SECOND * 6);
        assert_eq!(keeper.ended_by(), Some(libc_sigkill()));
        assert_eq!(node.guarded.blocked(), Some((keeper.child.id(), true)));
        node.guard.step(END + SECOND * 6);
        assert!(node.guarded.claim());
        assert_eq!(client.ask("try k"), "busy");
    });
}

#[test]
fn only_who_has_the_file_is_ended_for_it() {
    let node = Node::new(true);
    let mut client = node.client();
    // It has opened the file when it answers.
    assert_eq!(client.ask("try k"), "locked");
    let inode = node.tdb.path().metadata().unwrap().ino();
    assert!(has_mapped(client.child.id(), inode));
    assert!(has_mapped(std::process::id(), inode));
    assert!(!has_mapped(client.child.id(), u64::MAX));
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    let has = has_mapped(stranger.id(), inode);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(!has);
    assert!(!has_mapped(u32::MAX, inode), "there is no such process");
}

fn libc_sigkill() -> i32 {
    Signal::KILL.as_raw()
}

#[test]
fn what_the_daemon_has_locked_lets_nobody_in() {
    let mut node = Node::new(true);
    let mut client = node.client();
    node.tdb
        .chain_lock(b"k", LockKind::Exclusive, Wait::Try)
        .unwrap();
    client.tell("lock k");
    node.guard.step(END + SECOND);
    node.guard.step(END + SECOND * 7);
    assert!(!node.guarded.claim(), "not all of it is the guard's");
    assert_eq!(node.client().ask("try l"), "busy");
    // The daemon wakes and goes on where it was.
    node.tdb.chain_unlock(b"k").unwrap();
    node.guard.step(END + SECOND * 8);
    assert_eq!(node.client().ask("try k"), "busy");
    node.guard.step(END + SECOND * 9);
    assert!(node.guarded.claim());
}

#[test]
fn a_frozen_daemon_is_left_alone_and_one_that_hangs_in_a_thaw_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(NAME);
    let mut daemon = Process::start(&path, true, "daemon");
    let fd = daemon.hear();
    let memory = format!("/proc/{}/fd/{fd}", daemon.child.id());
    let memory = File::options().read(true).write(true).open(memory).unwrap();
    let mut guard = guard_of(memory.into(), directory.path());
    assert_eq!(daemon.ask("all"), "locked");
    let mut client = Process::start(&path, true, "client");
    assert_eq!(client.hear(), "ready");
    client.tell("lock k");
    guard.step(END + SECOND * 7);
    assert_eq!(daemon.ask("thaw"), "thawing", "it lives");
    // It has all records, but is about to give them back.
    guard.step(END + SECOND * 6);
    assert!(
        daemon.child.try_wait().unwrap().is_none(),
        "it has its time"
    );
    guard.step(END + SECOND * 7);
    assert_eq!(daemon.ended_by(), Some(libc_sigkill()));
    guard.step(END + SECOND * 7);
    let mut other = Process::start(&path, true, "client");
    assert_eq!(other.hear(), "ready");
    assert_eq!(other.ask("try l"), "busy");
    let freezer = guard.watched[0].as_mut().unwrap().freezer.as_mut().unwrap();
    assert!(freezer.thaw().unwrap());
    assert_eq!(client.hear(), "locked");
}

#[test]
fn what_a_dead_daemon_leaves_is_emptied() {
    both(|mutexes| {
        let mut node = Node::new(mutexes);
        let mut client = node.client();
        for key in [b"k", b"l"] {
            node.tdb
                .store(key, b"v", ctdb_db::StoreMode::Replace)
                .unwrap();
        }
        assert_eq!(client.ask("read l"), "v");
        assert_eq!(client.ask("lock k"), "locked");
        node.guard.follow();
        assert!(
            !node.guard.give_up(END, END, |_| false),
            "somebody is inside"
        );
        let mut other = node.client();
        for key in ["k", "l", "m"] {
            assert_eq!(other.ask(&format!("try {key}")), "busy", "{key}");
        }
        assert_eq!(client.ask("unlock k"), "unlocked");
        assert!(node.guard.give_up(END, END, |_| false));
        assert_eq!(other.ask("try k"), "locked");
        assert_eq!(other.ask("read k"), "nothing");
        assert_eq!(client.ask("read l"), "nothing");
        assert!(
            node.tdb.map_size() > ctdb_db::format::Geometry::new(101).unwrap().data_start(),
            "by which the next daemon knows it"
        );
    });
}

#[test]
fn databases_come_and_go() {
    let mut node = Node::new(true);
    node.guard.step(END + SECOND);
    let mut client = node.client();
    assert_eq!(client.ask("try k"), "busy");
    // Detached, and attached again: another life, which the guard's lock was not meant for.
    drop(std::mem::replace(
        &mut node.guarded,
        guard(
            &Arc::new(Deadman::create().unwrap()),
            &node.directory.path().join(NAME),
        ),
    ));
    node.guard.step(END + SECOND);
    assert_eq!(client.ask("try k"), "locked");
    // One that the guard cannot use says so.
    std::fs::write(node.directory.path().join("bad.tdb.0"), b"short").unwrap();
    let bad = guard(&node.deadman, &node.directory.path().join("bad.tdb.0"));
    node.guard.step(END + SECOND);
    assert!(bad.is_unusable());
    assert!(!bad.is_unusable());
}

/// Not a test of a time: prints what a pass costs with files as they are. Run it with `--ignored`.
#[test]
#[ignore = "a figure"]
fn cost_of_closing() {
    for databases in [1, 40] {
        let directory = tempfile::tempdir().unwrap();
        let deadman = Arc::new(Deadman::create().unwrap());
        let mut open = Vec::new();
        for number in 0..databases {
            let path = directory.path().join(format!("{number}.tdb.0"));
            let flags = OpenFlags::NOSYNC
                | OpenFlags::CLEAR_IF_FIRST
                | OpenFlags::INCOMPATIBLE_HASH
                | OpenFlags::MUTEX_LOCKING;
            let options = OpenOptions {
                flags,
                create: true,
                hash_size: 100_001,
                ..OpenOptions::default()
            };
            let mut tdb = Tdb::open(&path, &options).unwrap();
            let value = vec![7; 100 << 10];
            for key in 0..1024_u32 {
                tdb.store(&key.to_le_bytes(), &value, ctdb_db::StoreMode::Replace)
                    .unwrap();
            }
            open.push((tdb, guard(&deadman, &path)));
        }
        end(&deadman, 1);
        let memory = deadman.fd().as_fd().try_clone_to_owned().unwrap();
        let mut guard = guard_of(memory, directory.path());
        let begun = std::time::Instant::now();
        guard.step(BootTime(END.0 - 1));
        let opening = begun.elapsed();
        let begun = std::time::Instant::now();
        guard.step(END + SECOND);
        println!(
            "{databases} databases of 100 MB: opened in {opening:?}, closed in {:?}",
            begun.elapsed()
        );
        assert!(open.iter().all(|(_, guarded)| guarded.claim()));
    }
}
