//! Waits for locks that block nobody.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ctdb_db::waiter::{Granted, Refused, Target, WaiterOptions, Waiters, Waiting};
use ctdb_db::{Error, LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, Wait};

const KINDS: [OpenFlags; 2] = [
    OpenFlags::CLEAR_IF_FIRST,
    OpenFlags::CLEAR_IF_FIRST.union(OpenFlags::MUTEX_LOCKING),
];

fn open(path: &Path, flags: OpenFlags) -> Tdb {
    let options = OpenOptions {
        flags,
        hash_size: 64,
        create: true,
        ..OpenOptions::default()
    };
    Tdb::open(path, &options).unwrap()
}

fn waiters(tdb: &Tdb, options: WaiterOptions) -> (Waiters, Receiver<()>) {
    let (tell, told) = channel();
    let tell = std::sync::Mutex::new(tell);
    let wake = move || {
        let _ = tell.lock().unwrap().send(());
    };
    (Waiters::new(tdb, options, wake), told)
}

fn next(waiters: &mut Waiters, told: &Receiver<()>) -> Granted {
    told.recv_timeout(Duration::from_secs(60)).expect("a wake");
    waiters.granted().expect("what the wake was for")
}

/// Waits for something that happens in another thread.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn threads_that_wait() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim_end() == "tdb-wait")
        .count()
}

/// All in one test: the threads of the process are counted at the end.
#[test]
fn waits() {
    let dir = tempfile::tempdir().unwrap();
    for (i, flags) in KINDS.into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.tdb"));
        later_requests_join_and_come_in_order(&path, flags);
        a_freeze_waits_for_all(&path, flags);
        a_cancelled_wait_ends(&path, flags);
        bounds(&path, flags);
        a_dropped_waiter_leaves_nothing(&path, flags);
    }
    a_replaced_file_is_not_locked(dir.path());
    until("all threads end", || threads_that_wait() == 0);
}

fn later_requests_join_and_come_in_order(path: &Path, flags: OpenFlags) {
    let (mut daemon, mut other) = (open(path, flags), open(path, flags));
    let (mut waiters, told) = waiters(&daemon, WaiterOptions::default());
    other
        .chain_lock(b"k", LockKind::Exclusive, Wait::Try)
        .unwrap();
    assert!(matches!(
        daemon.chain_lock(b"k", LockKind::Exclusive, Wait::Try),
        Err(Error::Busy { .. })
    ));
    let target = Target::Chain(daemon.chain_of(b"k"));
    let begun = Instant::now();
    assert_eq!(waiters.wait(target, 3).unwrap(), Waiting::Begun);
    assert_eq!(waiters.wait(target, 1).unwrap(), Waiting::Joined);
    assert_eq!(waiters.wait(target, 2).unwrap(), Waiting::Joined);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "it does not block"
    );
    assert!(waiters.cancel(1) && !waiters.cancel(7));
    assert_eq!(waiters.oldest().unwrap().0, target);
    std::thread::sleep(Duration::from_millis(30));
    assert!(waiters.granted().is_none());
    other.chain_unlock(b"k").unwrap();
    let granted = next(&mut waiters, &told);
    assert_eq!((granted.target, &*granted.tickets), (target, &[3, 2][..]));
    assert!(granted.waited >= Duration::from_millis(30));
    assert_eq!(waiters.waits(), 0);

    let grant = granted.grant.unwrap();
    grant.mark(&mut daemon).unwrap();
    daemon.store(b"k", b"v", StoreMode::Replace).unwrap();
    // A request that comes now waits for the grant to end.
    waiters.wait(target, 4).unwrap();
    other.set_wait(Wait::UpTo(Duration::from_millis(20)));
    assert!(matches!(other.fetch(b"k"), Err(Error::Busy { .. })));
    grant.unmark(&mut daemon).unwrap();
    drop(grant);
    let granted = next(&mut waiters, &told);
    assert_eq!(granted.tickets, [4]);
    drop(granted);
    other.set_wait(Wait::UpTo(Duration::from_secs(60)));
    assert_eq!(other.fetch(b"k").unwrap().unwrap(), b"v");
}

fn a_freeze_waits_for_all(path: &Path, flags: OpenFlags) {
    let (mut daemon, mut other) = (open(path, flags), open(path, flags));
    let (mut waiters, told) = waiters(&daemon, WaiterOptions::default());
    other
        .chain_lock(b"k", LockKind::Exclusive, Wait::Try)
        .unwrap();
    waiters.wait(Target::AllRecords, 1).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(waiters.granted().is_none());
    other.chain_unlock(b"k").unwrap();
    let grant = next(&mut waiters, &told).grant.unwrap();
    assert!(
        other
            .chain_lock(b"x", LockKind::Exclusive, Wait::Try)
            .is_err()
    );
    grant.mark(&mut daemon).unwrap();
    daemon.transaction_start().unwrap();
    daemon.store(b"k", b"frozen", StoreMode::Replace).unwrap();
    daemon.transaction_commit().unwrap();
    grant.unmark(&mut daemon).unwrap();
    drop(grant);
    other.set_wait(Wait::UpTo(Duration::from_secs(60)));
    assert_eq!(other.fetch(b"k").unwrap().unwrap(), b"frozen");
}

fn a_cancelled_wait_ends(path: &Path, flags: OpenFlags) {
    let (daemon, mut other) = (open(path, flags), open(path, flags));
    let (mut waiters, told) = waiters(&daemon, WaiterOptions::default());
    other
        .chain_lock(b"k", LockKind::Exclusive, Wait::Try)
        .unwrap();
    let target = Target::Chain(daemon.chain_of(b"k"));
    for round in 0..20 {
        waiters.wait(target, 1).unwrap();
        if round % 3 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(waiters.cancel(1));
        if round % 2 == 0 {
            until("the wait ends", || {
                waiters.granted().is_none() && waiters.waits() == 0
            });
        }
    }
    // Joined again before the thread noticed.
    waiters.wait(target, 2).unwrap();
    waiters.cancel(2);
    waiters.wait(target, 5).unwrap();
    other.chain_unlock(b"k").unwrap();
    assert_eq!(next(&mut waiters, &told).tickets, [5]);
    assert!(waiters.granted().is_none());
}

fn bounds(path: &Path, flags: OpenFlags) {
    let (daemon, mut other) = (open(path, flags), open(path, flags));
    let options = WaiterOptions {
        max_threads: 2,
        max_queued: 1,
        max_tickets: 2,
        keep_idle: Duration::from_millis(1),
    };
    let (mut waiters, told) = waiters(&daemon, options);
    other.lock_all(LockKind::Exclusive).unwrap();
    let chain = Target::Chain;
    assert_eq!(waiters.wait(chain(1), 1).unwrap(), Waiting::Begun);
    assert_eq!(waiters.wait(chain(1), 2).unwrap(), Waiting::Joined);
    assert!(matches!(
        waiters.wait(chain(1), 3),
        Err(Refused::TooManyTickets(2))
    ));
    assert_eq!(waiters.wait(chain(2), 3).unwrap(), Waiting::Begun);
    until("both threads wait", || match waiters.wait(chain(3), 4) {
        Ok(Waiting::Queued) => true,
        Ok(_) => {
            waiters.cancel(4);
            false
        }
        Err(_) => false,
    });
    assert!(matches!(
        waiters.wait(chain(4), 5),
        Err(Refused::TooManyLocks(3))
    ));
    other.unlock_all().unwrap();
    let mut tickets = Vec::new();
    for _ in 0..3 {
        tickets.extend(next(&mut waiters, &told).tickets);
    }
    tickets.sort_unstable();
    assert_eq!(tickets, [1, 2, 3, 4]);
    let granted = {
        waiters.wait(chain(1000), 9).unwrap();
        next(&mut waiters, &told)
    };
    assert!(matches!(granted.grant, Err(Error::NoChain(1000))));
}

fn a_dropped_waiter_leaves_nothing(path: &Path, flags: OpenFlags) {
    let (daemon, mut other) = (open(path, flags), open(path, flags));
    let before = Arc::new(());
    let held = Arc::clone(&before);
    let mut waiters = Waiters::new(&daemon, WaiterOptions::default(), move || {
        let _ = &held;
    });
    other
        .chain_lock(b"k", LockKind::Exclusive, Wait::Try)
        .unwrap();
    for chain in 0..5 {
        waiters
            .wait(Target::Chain(chain), u64::from(chain))
            .unwrap();
    }
    waiters
        .wait(Target::Chain(daemon.chain_of(b"k")), 10)
        .unwrap();
    drop(waiters);
    until("nothing is left of it", || Arc::strong_count(&before) == 1);
    other.chain_unlock(b"k").unwrap();
    other.lock_all(LockKind::Exclusive).unwrap();
}

fn a_replaced_file_is_not_locked(dir: &Path) {
    let path = dir.join("replaced.tdb");
    let daemon = open(&path, OpenFlags::empty());
    let (mut waiters, told) = waiters(&daemon, WaiterOptions::default());
    std::fs::remove_file(&path).unwrap();
    drop(open(&path, OpenFlags::empty()));
    waiters.wait(Target::Chain(1), 1).unwrap();
    let granted = next(&mut waiters, &told);
    assert!(matches!(granted.grant, Err(Error::Replaced { .. })));
}
