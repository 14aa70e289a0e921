//! The lock on all records of a database: the daemon's own, or the guard's (DATA-5, MEM-3).
//!
//! The thread asks for the right to serve itself, at every turn, and does not wait to be told: a
//! daemon that was stopped finds in its queues what came while it had a right. And it never gives
//! the lock on all records back without one.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use ctdb_db::Tdb;
use ctdb_db::cluster::{Input, Kind};
use ctdb_db::waiter::{Grant, Target};
use ctdb_ebpf::deadman::{Deadman, Guarded, Own};

use super::Worker;
use crate::clock::boot_now;

/// The ticket of the lock on all records; the machine's count up from 1.
const ALL_RECORDS: u64 = u64::MAX;
/// How often it is looked whether the guard has the lock, while it is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// Whose lock it is.
enum Holder {
    Own(Grant),
    Guard,
}

/// The lock on all records.
pub(super) struct All {
    deadman: Option<Arc<Deadman>>,
    guarded: Option<Arc<Guarded>>,
    held: Option<Holder>,
    /// The machine waits for it.
    wanted: bool,
    /// The guard's is claimed, perhaps not marked yet.
    claimed: bool,
    /// The machine gave it back and it was kept, for want of a right.
    kept: bool,
}

impl All {
    pub(super) fn new(kind: Kind, tdb: &Tdb, deadman: Option<Arc<Deadman>>) -> Self {
        // Clients change the others by their daemon only.
        let guarded = deadman
            .as_ref()
            .filter(|_| kind == Kind::Volatile)
            .and_then(|deadman| guarded(deadman, tdb));
        Self {
            deadman,
            guarded,
            held: None,
            wanted: false,
            claimed: false,
            kept: false,
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// When to look at the guard again.
    pub(super) fn look(&self) -> Option<Duration> {
        (self.kept || self.wanted && self.guarded.is_some()).then_some(LOOK)
    }

    fn set_own(&self, own: Own) {
        if let Some(guarded) = &self.guarded {
            guarded.set_own(own);
        }
    }

    /// The slot of the right that runs at this moment; `told`: of the one that the main loop knows.
    pub(super) fn running(&self, told: Option<u32>) -> Option<u32> {
        let Some(deadman) = &self.deadman else {
            return told;
        };
        let right = deadman.right();
        (boot_now().0 < right.until).then_some(right.slot)
    }

    /// Whether the right in that slot has ended, or another one runs.
    fn is_over(&self, slot: u32) -> bool {
        self.running(Some(slot)) != Some(slot)
    }
}

fn guarded(deadman: &Arc<Deadman>, tdb: &Tdb) -> Option<Arc<Guarded>> {
    let path = tdb.path();
    let known = std::fs::metadata(path).ok().and_then(|metadata| {
        let name = path.file_name()?.to_str()?;
        deadman.guard_database(name, metadata.dev(), metadata.ino())
    });
    if known.is_none() {
        tracing::error!(
            file = %path.display(),
            "the guard cannot be told of a database: if this daemon is stopped, its clients can go \
             on changing records that the cluster gives away"
        );
    }
    known.map(Arc::new)
}

impl Worker {
    /// Whether the node has the right in which the database was recovered, at this moment.
    fn has_right(&self) -> bool {
        self.joined == self.right && self.right.is_some_and(|slot| !self.all.is_over(slot))
    }

    /// The machine has that right if no operator has frozen the database.
    pub(super) fn follow_right(&mut self) {
        let right = self.has_right() && !self.held;
        if right != self.machine_right {
            self.machine_right = right;
            self.input(if right {
                Input::RightBack
            } else {
                Input::RightLost
            });
        }
    }

    /// The machine wants the lock.
    pub(super) fn wait_for_all(&mut self) {
        self.all.wanted = true;
        if self.all.is_held() {
            // It was to be given back, without a right.
            return;
        }
        if !self.has_right()
            && let Some(guarded) = &self.all.guarded
        {
            guarded.set_served(None);
        }
        self.all.set_own(Own::Freezing);
        if let Err(error) = self.waiters.wait(Target::AllRecords, ALL_RECORDS) {
            tracing::error!(db = %self.id, %error, "nobody can wait for the lock on all records");
        }
    }

    /// The own lock was granted. The waiting thread holds it while it is marked here.
    pub(super) fn all_granted(&mut self, grant: Grant) {
        if !self.all.wanted || self.all.is_held() {
            return;
        }
        if let Err(error) = grant.mark(self.store.tdb()) {
            tracing::error!(db = %self.id, %error, "all records cannot be marked");
            drop(grant);
            self.wait_for_all();
            return;
        }
        self.all.set_own(Own::Frozen);
        self.held_now(Holder::Own(grant));
    }

    fn held_now(&mut self, holder: Holder) {
        self.store.set_frozen(true);
        self.all.held = Some(holder);
        self.has_all();
    }

    fn has_all(&mut self) {
        self.all.wanted = false;
        self.input(Input::Frozen);
        for origin in std::mem::take(&mut self.freezers) {
            self.control(origin, 0, Vec::new());
        }
    }

    /// Looks whether what the machine waits for is there: kept, or the guard's.
    pub(super) fn take_over(&mut self) {
        self.report();
        if !self.all.wanted {
            self.not_needed();
            return;
        }
        if self.all.is_held() {
            self.all.kept = false;
            self.has_all();
            return;
        }
        let Some(guarded) = &self.all.guarded else {
            return;
        };
        if !self.all.claimed && !guarded.claim() {
            return;
        }
        self.all.claimed = true;
        if let Err(error) = self.store.tdb().mark_all() {
            tracing::error!(db = %self.id, %error, "the guard's lock cannot be used");
            return;
        }
        self.waiters.cancel(ALL_RECORDS);
        self.all.set_own(Own::Served);
        tracing::warn!(
            db = %self.id,
            "the guard froze this database while the daemon was silent; it stays so until a recovery"
        );
        self.held_now(Holder::Guard);
    }

    /// The right went on after all, or another one has been there long enough for a recovery.
    fn not_needed(&mut self) {
        if !self.has_right() || !self.machine_right {
            return;
        }
        if self.all.kept {
            self.thaw(false);
        } else if !self.all.is_held()
            && let Some(guarded) = &self.all.guarded
            && guarded.claim()
        {
            guarded.let_go();
        }
    }

    /// What the guard did.
    fn report(&self) {
        let Some(guarded) = &self.all.guarded else {
            return;
        };
        let file = self.store.path().display();
        match guarded.blocked() {
            Some((pid, true)) => tracing::error!(
                db = %self.id, pid, %file,
                "a process kept a record locked beyond the end of the right to serve; it was ended"
            ),
            Some((pid, false)) => tracing::warn!(
                db = %self.id, pid, %file,
                "a process held up the freeze of a database after the end of the right to serve"
            ),
            None => {}
        }
        if guarded.is_unusable() {
            tracing::error!(
                db = %self.id, %file,
                "the guard cannot use a database file: if this daemon is stopped, its clients can go \
                 on changing records that the cluster gives away"
            );
        }
    }

    /// Gives the lock back; without a right to serve only if the database ends.
    pub(super) fn thaw(&mut self, ends: bool) {
        if std::mem::take(&mut self.all.wanted) {
            self.waiters.cancel(ALL_RECORDS);
            if !self.all.is_held() {
                self.all.set_own(Own::Served);
            }
        }
        let guarded = self.all.guarded.clone();
        if let (None, true, Some(guarded)) = (&self.all.held, self.all.claimed, &guarded) {
            self.all.claimed = false;
            guarded.let_go();
        }
        let Some(held) = self.all.held.take() else {
            return;
        };
        if let Some(guarded) = &guarded {
            guarded.begin_thaw();
            if !ends && !self.has_right() {
                // The machine does not know yet; it will want the lock again at once (DATA-5).
                guarded.end_thaw();
                self.all.held = Some(held);
                self.all.kept = true;
                return;
            }
            self.all.kept = false;
            if !ends {
                guarded.set_served(self.joined);
            }
            guarded.set_own(Own::Served);
        }
        self.store.set_frozen(false);
        if let Err(error) = self.store.tdb().unlock_all() {
            tracing::error!(db = %self.id, %error, "all records stay marked");
        }
        match (held, guarded) {
            (Holder::Own(grant), Some(guarded)) => grant.release(move || guarded.end_thaw()),
            (Holder::Own(grant), None) => drop(grant),
            (Holder::Guard, Some(guarded)) => {
                self.all.claimed = false;
                guarded.let_go();
                guarded.end_thaw();
            }
            (Holder::Guard, None) => {}
        }
    }
}
