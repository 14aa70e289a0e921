//! The byte ranges that libtdb locks, by open-file-description locks (spec/database.md B.1, B.2).
//!
//! These conflict with libtdb's classic locks in both directions and belong to the open file, not
//! to the process: every handle is a lock owner of its own, also against other handles of this
//! process (B.8.7).

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use crate::format::Geometry;

/// How a lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// With other readers.
    Shared,
    /// With nobody.
    Exclusive,
}

impl LockKind {
    /// Whether holding `self` satisfies a wish for `other`.
    pub(crate) fn covers(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Shared
    }
}

/// How long to wait for a lock that somebody else holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Try,
    /// Until the time is over. The lock is tried at intervals of at most 4 ms, so such a waiter
    /// has no place in the kernel's queue.
    UpTo(Duration),
    /// In the kernel, without end. Only for threads that nothing else depends on: the wait cannot
    /// be cancelled.
    Forever,
}

impl Wait {
    pub(crate) fn patience(self) -> Patience<'static> {
        Patience {
            wait: self,
            until: None,
            cancelled: None,
        }
    }
}

/// A [`Wait`] that is used up. The clock is read only when there is something to wait for.
#[derive(Debug)]
pub(crate) struct Patience<'a> {
    wait: Wait,
    until: Option<Instant>,
    /// Ends every wait.
    cancelled: Option<&'a AtomicBool>,
}

impl<'a> Patience<'a> {
    /// Also ends when `cancelled` is set.
    pub(crate) fn until_cancelled(self, cancelled: Option<&'a AtomicBool>) -> Self {
        Self { cancelled, ..self }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled
            .is_some_and(|cancelled| cancelled.load(Ordering::Acquire))
    }

    /// The lock is busy: the wait begins, if it has not. `false`: no waiting.
    pub(crate) fn begin(&mut self) -> bool {
        if let (Wait::UpTo(time), None) = (self.wait, self.until) {
            self.until = Instant::now().checked_add(time);
            if self.until.is_none() {
                self.wait = Wait::Forever;
            }
        }
        self.wait != Wait::Try && !self.is_cancelled()
    }

    /// How much longer; `None` when it is over.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = match (self.wait, self.until) {
            (Wait::Try, _) => Duration::ZERO,
            (Wait::Forever, _) => Duration::MAX,
            (Wait::UpTo(time), None) => time,
            (Wait::UpTo(_), Some(until)) => until.saturating_duration_since(Instant::now()),
        };
        (!left.is_zero() && !self.is_cancelled()).then_some(left)
    }
}

/// A lock of a file, by its name in spec/database.md B.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockName {
    /// Creation, recovery and commit.
    Open,
    /// Held shared by every user of a `CLEAR_IF_FIRST` file.
    Active,
    /// One writing transaction or traverse at a time.
    Transaction,
    /// Update of the sequence number.
    SequenceNumber,
    /// The freelist and growth.
    Freelist,
    /// A hash chain.
    Chain(u32),
    /// All chains and all record bytes.
    AllRecords,
    /// The record at an offset: somebody's traverse stands on it.
    Record(u32),
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("the open lock"),
            Self::Active => f.write_str("the active lock"),
            Self::Transaction => f.write_str("the transaction lock"),
            Self::SequenceNumber => f.write_str("the sequence number's lock"),
            Self::Freelist => f.write_str("the freelist lock"),
            Self::Chain(chain) => write!(f, "the lock of chain {chain}"),
            Self::AllRecords => f.write_str("the lock of all records"),
            Self::Record(offset) => write!(f, "the lock of the record at {offset:#x}"),
        }
    }
}

/// Start and length of a range of bytes; length 0 reaches to infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl LockName {
    /// The number of its mutex in a file with mutexes (B.6.2), if it is one.
    pub(crate) fn mutex_index(self) -> Option<u32> {
        match self {
            Self::Freelist => Some(0),
            Self::Chain(chain) => Some(chain + 1),
            _ => None,
        }
    }

    /// Whether it is a lock on data: a chain or the freelist.
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Self::Chain(_) | Self::Freelist)
    }

    /// The bytes that stand for the lock. Never shifted by a mutex area.
    pub(crate) fn range(self) -> Range {
        let byte = |start| Range { start, len: 1 };
        match self {
            Self::Open => byte(0),
            Self::Active => byte(4),
            Self::Transaction => byte(8),
            Self::SequenceNumber => byte(48),
            Self::Freelist => byte(164),
            Self::Chain(chain) => byte(168 + 4 * chain),
            Self::AllRecords => Range { start: 168, len: 0 },
            Self::Record(offset) => byte(offset),
        }
    }
}

/// The bytes of all chains.
pub(crate) fn chains_range(geometry: Geometry) -> Range {
    Range {
        start: 168,
        len: 4 * geometry.hash_size(),
    }
}

/// All record bytes.
pub(crate) fn records_range(geometry: Geometry) -> Range {
    Range {
        start: 168 + 4 * geometry.hash_size(),
        len: 0,
    }
}

fn flock(range: Range, kind: Option<LockKind>) -> libc::flock {
    let l_type = match kind {
        Some(LockKind::Shared) => libc::F_RDLCK,
        Some(LockKind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    libc::flock {
        l_type: l_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::from(range.start),
        l_len: i64::from(range.len),
        l_pid: 0,
    }
}

/// Takes or converts a lock. `false`: somebody else holds it and the time is over.
pub(crate) fn acquire(
    file: &File,
    range: Range,
    kind: LockKind,
    patience: &mut Patience<'_>,
) -> io::Result<bool> {
    #[cfg(test)]
    trace::note(range, Some(kind), patience.wait == Wait::Try);
    let lock = flock(range, Some(kind));
    let mut pause = Duration::from_micros(20);
    // Who waits for ever queues in the kernel. Cancelling interrupts that by a signal.
    let mut queue = patience.wait == Wait::Forever;
    loop {
        let arg = if queue {
            FcntlArg::F_OFD_SETLKW(&lock)
        } else {
            FcntlArg::F_OFD_SETLK(&lock)
        };
        match fcntl(file, arg) {
            Ok(_) => return Ok(true),
            Err(nix::Error::EINTR) => {
                if patience.is_cancelled() {
                    return Ok(false);
                }
            }
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                if !patience.begin() {
                    return Ok(false);
                }
                queue = patience.wait == Wait::Forever;
                let Some(left) = patience.left() else {
                    return Ok(false);
                };
                if !queue {
                    thread::sleep(pause.min(left));
                    pause = (pause * 2).min(Duration::from_millis(4));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives a range back.
pub(crate) fn release(file: &File, range: Range) -> io::Result<()> {
    #[cfg(test)]
    trace::note(range, None, false);
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(range, None))) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes a range piece by piece: all of it at once if nobody is there, else its halves (B.4).
pub(crate) fn acquire_gradually(
    file: &File,
    range: Range,
    kind: LockKind,
    patience: &mut Patience<'_>,
) -> io::Result<bool> {
    if range.len <= 4 {
        return acquire(file, range, kind, patience);
    }
    if acquire(file, range, kind, &mut Wait::Try.patience())? {
        return Ok(true);
    }
    let half = range.len / 2;
    let low = Range {
        start: range.start,
        len: half,
    };
    let high = Range {
        start: range.start + half,
        len: range.len - half,
    };
    Ok(acquire_gradually(file, low, kind, patience)?
        && acquire_gradually(file, high, kind, patience)?)
}

/// A counted lock of one handle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) name: LockName,
    pub(crate) kind: LockKind,
    pub(crate) count: u32,
    /// Somebody else holds the bytes for us (B.7).
    pub(crate) marked: bool,
}

/// The lock of all records, as this handle holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldAll {
    pub(crate) kind: LockKind,
    pub(crate) count: u32,
    /// Shared, but counts as exclusive for this handle (B.5).
    pub(crate) upgradable: bool,
    /// Somebody else holds the bytes for us (B.7).
    pub(crate) marked: bool,
}

/// What one handle holds (B.2).
#[derive(Debug, Default)]
pub(crate) struct LockTable {
    /// Few: a chain, the freelist, the transaction.
    held: Vec<Held>,
    pub(crate) all: Option<HeldAll>,
    /// The thread that has the mutex of all records.
    pub(crate) all_thread: Option<thread::ThreadId>,
}

impl LockTable {
    pub(crate) fn find(&mut self, name: LockName) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.name == name)
    }

    pub(crate) fn insert(&mut self, name: LockName, kind: LockKind, marked: bool) {
        self.held.push(Held {
            name,
            kind,
            count: 1,
            marked,
        });
    }

    pub(crate) fn remove(&mut self, name: LockName) {
        if let Some(at) = self.held.iter().position(|held| held.name == name) {
            self.held.swap_remove(at);
        }
    }

    /// Whether a chain or the freelist is held.
    pub(crate) fn holds_data(&self) -> bool {
        self.held
            .iter()
            .any(|held| matches!(held.name, LockName::Chain(_) | LockName::Freelist))
    }

    /// Whether a chain is held, really.
    pub(crate) fn holds_chain(&self) -> bool {
        self.held
            .iter()
            .any(|held| matches!(held.name, LockName::Chain(_)) && !held.marked)
    }

    /// Chains and the freelist that are held, really.
    pub(crate) fn on_data(&self) -> impl Iterator<Item = LockName> {
        self.held
            .iter()
            .filter(|held| !held.marked && held.name.is_data())
            .map(|held| held.name)
    }

    /// Whether anything is held.
    pub(crate) fn holds_any(&self) -> bool {
        self.all.is_some() || !self.held.is_empty()
    }
}

/// What this thread locked and unlocked, as in spec/database.md H.5.
#[cfg(test)]
pub(crate) mod trace {
    use std::cell::RefCell;

    use super::{LockKind, Range};

    thread_local! {
        static TRACE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(range: Range, kind: Option<LockKind>, is_try: bool) {
        let start = range.start;
        let place = match range.len {
            0 => format!("[{start},inf)"),
            1 => start.to_string(),
            len => format!("[{start},{})", start + len),
        };
        let what = match kind {
            Some(LockKind::Shared) => "R",
            Some(LockKind::Exclusive) => "W",
            None => "U",
        };
        let try_it = if is_try { "try " } else { "" };
        TRACE.with_borrow_mut(|trace| trace.push(format!("{try_it}{what} {place}")));
    }

    /// Everything since the last call.
    pub(crate) fn take() -> String {
        TRACE.with_borrow_mut(std::mem::take).join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_opens() -> (tempfile::TempDir, File, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        (dir, open(), open())
    }

    #[test]
    fn ranges_of_b_1() {
        let geometry = Geometry::new(3).unwrap();
        assert_eq!(LockName::Chain(1).range(), Range { start: 172, len: 1 });
        assert_eq!(LockName::Freelist.range(), Range { start: 164, len: 1 });
        assert_eq!(
            chains_range(geometry),
            Range {
                start: 168,
                len: 12
            }
        );
        assert_eq!(records_range(geometry), Range { start: 180, len: 0 });
    }

    #[test]
    fn two_handles_of_one_process_exclude_each_other() {
        let (_dir, a, b) = two_opens();
        let range = LockName::Chain(0).range();
        assert!(acquire(&a, range, LockKind::Shared, &mut Wait::Try.patience()).unwrap());
        assert!(acquire(&b, range, LockKind::Shared, &mut Wait::Try.patience()).unwrap());
        assert!(!acquire(&b, range, LockKind::Exclusive, &mut Wait::Try.patience()).unwrap());
        release(&a, range).unwrap();
        assert!(acquire(&b, range, LockKind::Exclusive, &mut Wait::Try.patience()).unwrap());
        let begun = Instant::now();
        let mut wait = Wait::UpTo(Duration::from_millis(50)).patience();
        assert!(!acquire(&a, range, LockKind::Shared, &mut wait).unwrap());
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn a_waiter_gets_the_lock_when_it_is_free() {
        let (_dir, a, b) = two_opens();
        let range = LockName::Transaction.range();
        assert!(acquire(&a, range, LockKind::Exclusive, &mut Wait::Try.patience()).unwrap());
        let waiter = thread::spawn(move || {
            let mut wait = Wait::UpTo(Duration::from_secs(10)).patience();
            acquire(&b, range, LockKind::Exclusive, &mut wait).unwrap()
        });
        thread::sleep(Duration::from_millis(20));
        release(&a, range).unwrap();
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn a_busy_piece_of_a_range_is_waited_for() {
        let (_dir, a, b) = two_opens();
        let all = Range {
            start: 168,
            len: 40,
        };
        assert!(
            acquire(
                &a,
                LockName::Chain(7).range(),
                LockKind::Exclusive,
                &mut Wait::Try.patience()
            )
            .unwrap()
        );
        assert!(!acquire_gradually(&b, all, LockKind::Shared, &mut Wait::Try.patience()).unwrap());
        release(&a, LockName::Chain(7).range()).unwrap();
        assert!(acquire_gradually(&b, all, LockKind::Shared, &mut Wait::Try.patience()).unwrap());
        assert!(
            !acquire(
                &a,
                LockName::Chain(9).range(),
                LockKind::Exclusive,
                &mut Wait::Try.patience()
            )
            .unwrap()
        );
    }

    /// Every row of H.5.
    #[test]
    fn operations_lock_what_libtdb_locks() {
        use std::ops::ControlFlow;

        use crate::{OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind};

        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, flags| {
            let options = OpenOptions {
                flags,
                hash_size: 3,
                create: true,
                ..OpenOptions::default()
            };
            Tdb::open(dir.path().join(name), &options).unwrap()
        };
        trace::take();
        drop(open("c", OpenFlags::CLEAR_IF_FIRST));
        let first = "W 0; try W 4; W [168,inf); U [168,inf); U 4; R 4; U 0";
        assert_eq!(trace::take(), first);
        let mut tdb = open("f", OpenFlags::empty());
        assert_eq!(trace::take(), "W 0; U 0");
        tdb.store(b"a", b"1", StoreMode::Replace).unwrap();
        assert_eq!(trace::take(), "W 172; W 164; U 164; U 172");
        tdb.store(b"a", b"2", StoreMode::Replace).unwrap();
        assert_eq!(trace::take(), "W 172; U 172");
        tdb.fetch(b"a").unwrap();
        assert_eq!(trace::take(), "R 172; U 172");
        tdb.delete(b"a").unwrap();
        assert_eq!(
            trace::take(),
            "W 172; W 164; try W 4064; U 4064; U 164; U 172"
        );
        tdb.lock_all(LockKind::Exclusive).unwrap();
        tdb.unlock_all().unwrap();
        assert_eq!(trace::take(), "try W [168,180); W [180,inf); U [168,inf)");
        for key in [b"b".as_slice(), b"hello"] {
            tdb.store(key, b"1", StoreMode::Replace).unwrap();
        }
        trace::take();
        // Not libtdb's row, which locks for every record: a chain is copied under one lock.
        let note_callback = || trace::note(Range { start: 0, len: 1 }, None, true);
        tdb.traverse(TraverseKind::Read, |_, _, _| {
            note_callback();
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        let want = "R 168; U 168; R 176; U 176; try U 0; try U 0";
        assert_eq!(trace::take(), want);
        let mut recs = Vec::new();
        tdb.traverse(TraverseKind::Write, |tdb, _, _| {
            recs.push(tdb.positions[0]);
            note_callback();
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        let (a, b) = (recs[0], recs[1]);
        let want = format!(
            "W 8; W 168; U 168; W 176; R {a}; U 176; try U 0; W 176; U {a}; R {b}; U 176; try U 0; \
             W 176; U {b}; U 176; U 8"
        );
        assert_eq!(trace::take(), want);
        tdb.transaction_start().unwrap();
        assert_eq!(trace::take(), "W 8; try R [168,180); R [180,inf)");
        tdb.store(b"a", b"in a transaction", StoreMode::Replace)
            .unwrap();
        assert_eq!(trace::take(), "");
        tdb.transaction_commit().unwrap();
        let commit = trace::take();
        let want = "W [168,inf); W 0; U [168,inf); U 8; U 0";
        assert!(commit.starts_with(want), "{commit}");
    }
}
