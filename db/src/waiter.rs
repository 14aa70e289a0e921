//! Waiting for locks without blocking who wants them (spec/database.md B.8.16, D.5).
//!
//! A daemon tries a lock in place. If it is busy it leaves a ticket here: one thread per lock waits
//! for it, later requests for the same lock join that wait, and when it is granted all tickets come
//! back together, in the order of their arrival, with a [`Grant`]. The waiting thread holds the real
//! lock until the grant is dropped; meanwhile the daemon's own handle works under a mark (B.7).
//!
//! Nothing here blocks its caller. Waits end early when their last ticket is cancelled, or all
//! of them when [`Waiters`] is dropped: a wait for a mutex looks up every 100 ms, one for a byte range is
//! interrupted by a signal.
//!
//! Bounds ([`WaiterOptions`]): threads per database, locks that wait for a thread, tickets per lock.
//! Beyond them a request is refused, and its sender has to be told to come again.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::handle::Tdb;
use crate::interrupt;
use crate::lock::{LockKind, LockName, Wait};
use crate::open::OpenOptions;

/// What is waited for, always exclusively.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// All records: a freeze. Served before chains when threads are short.
    AllRecords,
    /// A hash chain, [`Tdb::chain_of`].
    Chain(u32),
}

/// Bounds of one database's waits.
#[derive(Clone, Copy, Debug)]
pub struct WaiterOptions {
    /// Threads: locks that are waited for or granted at a time. Default 200, CTDB's
    /// `LockProcessesPerDB`. Each has the file open once.
    pub max_threads: usize,
    /// Locks that wait for a thread. Default 10,000.
    pub max_queued: usize,
    /// Tickets of one lock. Default 10,000.
    pub max_tickets: usize,
    /// How long a thread without work stays. Default 10 s.
    pub keep_idle: Duration,
}

impl Default for WaiterOptions {
    fn default() -> Self {
        Self {
            max_threads: 200,
            max_queued: 10_000,
            max_tickets: 10_000,
            keep_idle: Duration::from_secs(10),
        }
    }
}

/// How long a busy mutex is looked at closely: most are held for some tens of microseconds.
const LOOK: Duration = Duration::from_micros(60);
/// How long it is slept for after the first look.
const FIRST_SLICE: Duration = Duration::from_millis(1);
/// And at most.
const LAST_SLICE: Duration = Duration::from_millis(100);

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Too many locks are waited for.
    #[error("{0} locks of this database are waited for already")]
    TooManyLocks(usize),
    /// Too many requests wait for this lock.
    #[error("{0} requests wait for this lock already")]
    TooManyTickets(usize),
    /// The system gives no thread, and none is there.
    #[error("no thread to wait in: {0}")]
    NoThread(std::io::Error),
}

/// How a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A thread waits for the lock from now on.
    Begun,
    /// It joined a wait.
    Joined,
    /// All threads are busy; the lock is in their queue.
    Queued,
}

/// A lock that was waited for.
#[derive(Debug)]
pub struct Granted {
    /// The lock.
    pub target: Target,
    /// Who waited for it, first come first.
    pub tickets: Vec<u64>,
    /// Since the first came.
    pub waited: Duration,
    /// The lock, or why it cannot be had.
    pub grant: Result<Grant>,
}

/// A lock that a waiting thread holds for whoever has this. Dropping it gives the lock back, soon.
#[derive(Debug)]
pub struct Grant {
    target: Target,
    release: Arc<Release>,
}

#[derive(Default)]
struct Release {
    done: Mutex<bool>,
    told: Condvar,
    /// Called when the lock was given back.
    after: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl fmt::Debug for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Release").finish_non_exhaustive()
    }
}

impl Grant {
    /// The handle works under the lock from now on, see [`Tdb::mark_all`].
    ///
    /// * Locks: none; the waiting thread holds it.
    /// * Errors: those of [`Tdb::mark_all`] and [`Tdb::mark_chain`].
    /// * Cost: two words read.
    pub fn mark(&self, tdb: &mut Tdb) -> Result<()> {
        match self.target {
            Target::AllRecords => tdb.mark_all(),
            Target::Chain(chain) => tdb.mark_chain_number(chain),
        }
    }

    /// Gives the lock back; `then` is called by the waiting thread when that is done.
    pub fn release(self, then: impl FnOnce() + Send + 'static) {
        *lock(&self.release.after) = Some(Box::new(then));
    }

    /// Undoes [`Self::mark`].
    ///
    /// * Locks: none; the waiting thread holds it until [`Self::release`].
    /// * Errors: [`Error::NotLocked`].
    /// * Cost: no system call.
    pub fn unmark(&self, tdb: &mut Tdb) -> Result<()> {
        match self.target {
            Target::AllRecords => tdb.unlock_all(),
            Target::Chain(chain) => tdb.unlock(LockName::Chain(chain)),
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        *lock(&self.release.done) = true;
        self.release.told.notify_all();
    }
}

/// Nothing here panics while it has a lock, and if it did the data would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One lock that is waited for.
struct Request {
    tickets: Vec<u64>,
    since: Instant,
    /// Set to end the wait of the thread that took it.
    cancelled: Option<Arc<AtomicBool>>,
}

#[derive(Default)]
struct Inner {
    requests: BTreeMap<Target, Request>,
    /// Locks that no thread waits for yet.
    queue: VecDeque<Target>,
    granted: VecDeque<Granted>,
    threads: Vec<Worker>,
    idle: usize,
    closing: bool,
}

struct Worker {
    handle: JoinHandle<()>,
    cancelled: Arc<AtomicBool>,
}

struct Shared {
    inner: Mutex<Inner>,
    work: Condvar,
    wake: Box<dyn Fn() + Send + Sync>,
    path: PathBuf,
    /// Device and inode, so that a file that took the path since is not locked in place of ours.
    file: Option<(u64, u64)>,
    open: OpenOptions,
    keep_idle: Duration,
}

/// The waits of one database.
pub struct Waiters {
    shared: Arc<Shared>,
    options: WaiterOptions,
}

impl fmt::Debug for Waiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiters")
            .field("path", &self.shared.path)
            .field("waits", &self.waits())
            .finish_non_exhaustive()
    }
}

impl Waiters {
    /// For the file that `tdb` has open. `wake` is called by a waiting thread, with no lock held,
    /// when [`Self::granted`] has something.
    pub fn new(tdb: &Tdb, options: WaiterOptions, wake: impl Fn() + Send + Sync + 'static) -> Self {
        interrupt::prepare();
        let metadata = tdb.storage.file().and_then(|file| file.metadata().ok());
        let open = OpenOptions {
            flags: tdb.flags(),
            wait: Wait::Forever,
            max_record_len: tdb.max_record_len,
            ..OpenOptions::default()
        };
        Self {
            shared: Arc::new(Shared {
                inner: Mutex::default(),
                work: Condvar::new(),
                wake: Box::new(wake),
                path: tdb.path().to_path_buf(),
                file: metadata.map(|m| (m.dev(), m.ino())),
                open,
                keep_idle: options.keep_idle,
            }),
            options,
        }
    }

    /// `ticket` waits for a lock that was found busy. Tickets are the caller's; each should wait for
    /// one lock only.
    ///
    /// * Locks: none in this thread; the lock is taken by a waiting one, which holds it until it is
    ///   released.
    /// * Errors: [`Refused`] at the bounds of [`WaiterOptions`], or if no thread can be had.
    /// * Cost: a thread is started if none is idle; it never waits.
    pub fn wait(&mut self, target: Target, ticket: u64) -> std::result::Result<Waiting, Refused> {
        let mut inner = lock(&self.shared.inner);
        inner.interrupt_cancelled();
        if let Some(request) = inner.requests.get_mut(&target) {
            if request.tickets.len() >= self.options.max_tickets {
                return Err(Refused::TooManyTickets(request.tickets.len()));
            }
            if request.tickets.is_empty() {
                // Cancelled, but its thread has not noticed: it goes on.
                request.since = Instant::now();
                if let Some(cancelled) = &request.cancelled {
                    cancelled.store(false, Ordering::Release);
                }
            }
            request.tickets.push(ticket);
            return Ok(Waiting::Joined);
        }
        let queued = inner.queue.len();
        let mut waiting = if inner.idle > queued {
            Waiting::Begun
        } else {
            Waiting::Queued
        };
        if waiting == Waiting::Queued {
            inner.forget_ended();
            if inner.threads.len() < self.options.max_threads {
                match self.spawn() {
                    Ok(worker) => {
                        inner.threads.push(worker);
                        waiting = Waiting::Begun;
                    }
                    Err(error) if inner.threads.is_empty() => {
                        return Err(Refused::NoThread(error));
                    }
                    Err(_) => {}
                }
            }
        }
        if waiting == Waiting::Queued && queued >= self.options.max_queued {
            return Err(Refused::TooManyLocks(inner.requests.len()));
        }
        inner.requests.insert(
            target,
            Request {
                tickets: vec![ticket],
                since: Instant::now(),
                cancelled: None,
            },
        );
        match target {
            Target::AllRecords => inner.queue.push_front(target),
            Target::Chain(_) => inner.queue.push_back(target),
        }
        drop(inner);
        self.shared.work.notify_one();
        Ok(waiting)
    }

    fn spawn(&self) -> std::io::Result<Worker> {
        let shared = Arc::clone(&self.shared);
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        let handle = thread::Builder::new()
            .name("tdb-wait".to_owned())
            .stack_size(256 << 10)
            .spawn(move || shared.work(&flag))?;
        Ok(Worker { handle, cancelled })
    }

    /// The next lock that was granted, or cannot be had.
    pub fn granted(&mut self) -> Option<Granted> {
        let mut inner = lock(&self.shared.inner);
        inner.interrupt_cancelled();
        inner.granted.pop_front()
    }

    /// Takes a ticket back, unless it was granted already: then `false`, and it comes (or came) by
    /// [`Self::granted`].
    pub fn cancel(&mut self, ticket: u64) -> bool {
        let mut inner = lock(&self.shared.inner);
        let found = inner.requests.iter_mut().find_map(|(target, request)| {
            let at = request.tickets.iter().position(|t| *t == ticket)?;
            request.tickets.remove(at);
            Some((
                *target,
                request.tickets.is_empty(),
                request.cancelled.clone(),
            ))
        });
        let Some((target, last, cancelled)) = found else {
            return false;
        };
        if last {
            if let Some(cancelled) = cancelled {
                cancelled.store(true, Ordering::Release);
            } else {
                inner.requests.remove(&target);
                inner.queue.retain(|queued| *queued != target);
            }
        }
        inner.interrupt_cancelled();
        true
    }

    /// Locks that are waited for.
    pub fn waits(&self) -> usize {
        lock(&self.shared.inner).requests.len()
    }

    /// The lock that is waited for longest, and how long: what a log line every 10 s names (D.5).
    pub fn oldest(&self) -> Option<(Target, Duration)> {
        let inner = lock(&self.shared.inner);
        let oldest = inner
            .requests
            .iter()
            .min_by_key(|(_, request)| request.since);
        oldest.map(|(target, request)| (*target, request.since.elapsed()))
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        let mut inner = lock(&self.shared.inner);
        inner.closing = true;
        inner.queue.clear();
        inner.requests.clear();
        inner.granted.clear();
        for worker in &inner.threads {
            worker.cancelled.store(true, Ordering::Release);
        }
        drop(inner);
        self.shared.work.notify_all();
        // A thread that holds a lock ends when its grant is dropped. Signals that come too early
        // are lost, so somebody must repeat them, and it must not be the caller.
        let shared = Arc::clone(&self.shared);
        let repeat = move || {
            loop {
                let mut inner = lock(&shared.inner);
                inner.forget_ended();
                inner.interrupt_cancelled();
                if inner.threads.is_empty() {
                    return;
                }
                drop(inner);
                thread::sleep(Duration::from_millis(5));
            }
        };
        // Without it a thread whose signal was lost ends when it gets its lock.
        let _ = thread::Builder::new()
            .name("tdb-wait-end".to_owned())
            .stack_size(64 << 10)
            .spawn(repeat);
    }
}

impl Inner {
    /// Signals every thread whose wait was cancelled.
    fn interrupt_cancelled(&self) {
        for worker in &self.threads {
            if worker.cancelled.load(Ordering::Acquire) {
                interrupt::interrupt(&worker.handle);
            }
        }
    }

    fn forget_ended(&mut self) {
        self.threads.retain(|worker| !worker.handle.is_finished());
    }
}

/// Takes the mutex of a chain. A sleeper is woken when its owner gives it back, and finds it taken again
/// if the owner does that at once, as often as it likes: so it is looked at closely for a moment
/// ([`LOOK`]), then slept for, each time longer.
fn seize(tdb: &mut Tdb, chain: u32, cancelled: &AtomicBool) -> Result<()> {
    let name = LockName::Chain(chain);
    let mut slice = FIRST_SLICE;
    loop {
        let begun = Instant::now();
        while begun.elapsed() < LOOK {
            match tdb.lock(name, LockKind::Exclusive, Wait::Try) {
                Err(Error::Busy { .. }) => std::hint::spin_loop(),
                other => return other,
            }
        }
        match tdb.lock(name, LockKind::Exclusive, Wait::UpTo(slice)) {
            Err(Error::Busy { .. }) if !cancelled.load(Ordering::Acquire) => {
                slice = (slice * 2).min(LAST_SLICE);
            }
            other => return other,
        }
    }
}

impl Shared {
    /// A thread's life: locks from the queue, one after another.
    fn work(&self, cancelled: &Arc<AtomicBool>) {
        let mut tdb = None;
        while let Some((target, since)) = self.next(cancelled) {
            self.serve(target, since, cancelled, &mut tdb);
        }
    }

    /// The next lock to wait for; `None`: no more work.
    fn next(&self, cancelled: &Arc<AtomicBool>) -> Option<(Target, Instant)> {
        let mut inner = lock(&self.inner);
        inner.idle += 1;
        let until = Instant::now() + self.keep_idle;
        let found = loop {
            if inner.closing {
                break None;
            }
            if let Some(target) = inner.queue.pop_front() {
                cancelled.store(false, Ordering::Release);
                let Some(request) = inner.requests.get_mut(&target) else {
                    continue;
                };
                request.cancelled = Some(Arc::clone(cancelled));
                break Some((target, request.since));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break None;
            }
            inner = self
                .work
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        inner.idle -= 1;
        found
    }

    /// Waits for a lock, hands it out, and gives it back.
    fn serve(
        &self,
        target: Target,
        since: Instant,
        cancelled: &Arc<AtomicBool>,
        kept: &mut Option<Tdb>,
    ) {
        let mut granted = None;
        let taken = loop {
            let taken = self.take(target, cancelled, kept);
            let mut inner = lock(&self.inner);
            let wanted = inner
                .requests
                .get(&target)
                .is_some_and(|request| !request.tickets.is_empty());
            if wanted && matches!(taken, Err(Error::Busy { .. })) {
                // Cancelled, and joined again before we noticed. Or this thread cannot have it, which
                // it can only not have because it has it: not so here.
                cancelled.store(false, Ordering::Release);
                continue;
            }
            let request = inner.requests.remove(&target).filter(|_| wanted);
            let Some(request) = request else {
                cancelled.store(false, Ordering::Release);
                break taken.ok();
            };
            cancelled.store(false, Ordering::Release);
            let release = Arc::new(Release::default());
            granted = Some(Arc::clone(&release));
            let (grant, tdb) = match taken {
                Ok(tdb) => {
                    let release = Arc::clone(&release);
                    (Ok(Grant { target, release }), Some(tdb))
                }
                Err(error) => (Err(error), None),
            };
            inner.granted.push_back(Granted {
                target,
                tickets: request.tickets,
                waited: since.elapsed(),
                grant,
            });
            drop(inner);
            (self.wake)();
            if tdb.is_some() {
                let mut done = lock(&release.done);
                while !*done {
                    done = release
                        .told
                        .wait(done)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
            break tdb;
        };
        if let Some(mut tdb) = taken {
            let given = match target {
                Target::AllRecords => tdb.unlock_all(),
                Target::Chain(chain) => tdb.unlock(LockName::Chain(chain)),
            };
            // Closing the file gives the lock back in any case.
            *kept = given.is_ok().then_some(tdb);
        }
        let after = granted.and_then(|release| lock(&release.after).take());
        if let Some(after) = after {
            after();
        }
    }

    /// Takes the real lock, with a handle of this thread's own.
    fn take(
        &self,
        target: Target,
        cancelled: &Arc<AtomicBool>,
        kept: &mut Option<Tdb>,
    ) -> Result<Tdb> {
        let mut tdb = match kept.take() {
            Some(tdb) => tdb,
            None => Tdb::open_cancelled_by(&self.path, &self.open, Some(cancelled))?,
        };
        let metadata = tdb.storage.file().and_then(|file| file.metadata().ok());
        if metadata.map(|m| (m.dev(), m.ino())) != self.file {
            return Err(Error::Replaced {
                path: self.path.clone(),
            });
        }
        match target {
            Target::AllRecords => {
                tdb.lock_all_as(LockKind::Exclusive, false, Wait::Forever)?;
            }
            Target::Chain(chain) => {
                if chain >= tdb.hash_size() {
                    return Err(Error::NoChain(chain));
                }
                if tdb.mutexes.is_some() {
                    seize(&mut tdb, chain, cancelled)?;
                } else {
                    tdb.lock(LockName::Chain(chain), LockKind::Exclusive, Wait::Forever)?;
                }
            }
        }
        Ok(tdb)
    }
}
