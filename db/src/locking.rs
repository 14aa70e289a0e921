//! What a handle locks, counts and unlocks (spec/database.md B.2 - B.5).

use std::fs::File;
use std::thread;

use crate::error::{Error, Fault, Result};
use crate::handle::Tdb;
use crate::lock::{
    HeldAll, LockKind, LockName, Patience, Wait, acquire, acquire_gradually, chains_range,
    records_range, release,
};
use crate::mutex::{MutexArea, MutexError};
use crate::open::OpenFlags;
use crate::robust;

impl Tdb {
    fn busy(&self, lock: LockName) -> Error {
        Error::Busy {
            path: self.path().to_path_buf(),
            lock,
        }
    }

    /// The file to lock, if locks are taken at all.
    fn lock_file(&self) -> Option<&File> {
        if self.flags.contains(OpenFlags::NOLOCK) {
            None
        } else {
            self.storage.file()
        }
    }

    /// The mutexes of the file, if this handle locks by them.
    fn mutexes(&self) -> Option<&MutexArea> {
        if self.flags.contains(OpenFlags::NOLOCK) {
            None
        } else {
            self.mutexes.as_ref()
        }
    }

    fn patience(&self, wait: Wait) -> Patience<'_> {
        wait.patience().until_cancelled(self.cancelled.as_deref())
    }

    fn mutex_error(&self, lock: LockName, error: MutexError) -> Error {
        match error {
            MutexError::Busy => self.busy(lock),
            MutexError::NotOwner => Error::WrongThread { lock },
            MutexError::Damaged => self.storage.corrupt(0, Fault::BadMutex),
            MutexError::Faulted => self.storage.corrupt(0, Fault::Truncated),
            MutexError::System(source) => self.storage.io_error("use a mutex of", source),
        }
    }

    /// Takes the bytes or the mutex of a lock, without counting.
    pub(crate) fn lock_range(&self, name: LockName, kind: LockKind, wait: Wait) -> Result<()> {
        if let (Some(mutexes), Some(index)) = (self.mutexes(), name.mutex_index()) {
            let nested = self.locks.holds_chain();
            return robust::lock_one(mutexes, index, kind, nested, &mut self.patience(wait))
                .map_err(|error| self.mutex_error(name, error));
        }
        let Some(file) = self.lock_file() else {
            return Ok(());
        };
        match acquire(file, name.range(), kind, &mut self.patience(wait)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.busy(name)),
            Err(error) => Err(self.storage.io_error("lock", error)),
        }
    }

    /// Gives the bytes or the mutex of a lock back.
    pub(crate) fn unlock_range(&self, name: LockName) -> Result<()> {
        if let (Some(mutexes), Some(index)) = (self.mutexes(), name.mutex_index()) {
            return robust::Mutexes::unlock(mutexes, robust::Which::Nth(index))
                .map_err(|error| self.mutex_error(name, error));
        }
        let Some(file) = self.lock_file() else {
            return Ok(());
        };
        release(file, name.range()).map_err(|e| self.storage.io_error("unlock", e))
    }

    /// Makes a shared lock that this handle holds exclusive.
    fn convert(&self, name: LockName, wait: Wait) -> Result<()> {
        match self.mutexes() {
            // The mutex is ours either way. But who has all records for reading counts on nobody
            // writing, and cannot be waited for: they may be waiting for us.
            Some(mutexes) if name.is_data() => {
                if robust::may_upgrade(mutexes) {
                    Ok(())
                } else {
                    Err(self.busy(name))
                }
            }
            _ => self.lock_range(name, LockKind::Exclusive, wait),
        }
    }

    /// Takes or counts a lock (B.2). The first lock on data triggers recovery if a commit crashed.
    pub(crate) fn lock(&mut self, name: LockName, kind: LockKind, wait: Wait) -> Result<()> {
        let on_data = name.is_data();
        if on_data && let Some(all) = self.locks.all {
            return if all.kind.covers(kind) || all.upgradable {
                Ok(())
            } else {
                Err(Error::LockOrder { lock: name })
            };
        }
        if let Some(held) = self.locks.find(name) {
            if held.kind.covers(kind) {
                held.count += 1;
                return Ok(());
            }
            self.convert(name, wait)?;
            if let Some(held) = self.locks.find(name) {
                held.kind = kind;
                held.count += 1;
            }
            return Ok(());
        }
        let first = on_data && !self.locks.holds_data();
        // A recovery lets others in between, who may crash again: a few rounds, then give up.
        for _ in 0..4 {
            self.lock_range(name, kind, wait)?;
            self.locks.insert(name, kind, false);
            if !first {
                return Ok(());
            }
            match self.needs_recovery() {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    self.locks.remove(name);
                    self.unlock_range(name)?;
                    self.recover_lazily()?;
                }
                Err(error) => {
                    self.locks.remove(name);
                    self.unlock_range(name)?;
                    return Err(error);
                }
            }
        }
        Err(self.busy(name))
    }

    /// Uncounts a lock, gives it back with the last count.
    pub(crate) fn unlock(&mut self, name: LockName) -> Result<()> {
        let Some(held) = self.locks.find(name) else {
            let on_data = name.is_data();
            return if on_data && self.locks.all.is_some() {
                Ok(())
            } else {
                Err(Error::NotLocked { lock: name })
            };
        };
        if held.count > 1 {
            held.count -= 1;
            return Ok(());
        }
        if !held.marked
            && let Err(error) = self.unlock_range(name)
        {
            // Another thread has it, and can still give it back.
            if !matches!(error, Error::WrongThread { .. }) {
                self.locks.remove(name);
            }
            return Err(error);
        }
        self.locks.remove(name);
        Ok(())
    }

    /// Runs `work` with a lock, which is given back whatever happens.
    pub(crate) fn with_lock<T>(
        &mut self,
        name: LockName,
        kind: LockKind,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if self.flags.contains(OpenFlags::NOLOCK) && self.locks.all.is_none() {
            // Nothing to take, and nothing that `work` does asks what is counted.
            return work(self);
        }
        self.lock(name, kind, self.wait)?;
        let result = work(self);
        let unlocked = self.unlock(name);
        result.and_then(|value| unlocked.map(|()| value))
    }

    /// Takes the lock on all records (B.2, B.4).
    pub(crate) fn lock_all_as(
        &mut self,
        kind: LockKind,
        upgradable: bool,
        wait: Wait,
    ) -> Result<()> {
        let lock = LockName::AllRecords;
        if let Some(all) = &mut self.locks.all {
            if all.kind == kind && !upgradable {
                all.count += 1;
                return Ok(());
            }
            return Err(Error::LockOrder { lock });
        }
        if self.locks.holds_data() {
            return Err(Error::LockOrder { lock });
        }
        for _ in 0..4 {
            self.take_all(kind, wait)?;
            self.locks.all = Some(HeldAll {
                kind,
                count: 1,
                upgradable,
                marked: false,
            });
            match self.needs_recovery() {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    self.locks.all = None;
                    self.release_all()?;
                    self.recover_lazily()?;
                }
                Err(error) => {
                    self.locks.all = None;
                    self.release_all()?;
                    return Err(error);
                }
            }
        }
        Err(self.busy(lock))
    }

    /// Takes all records, without counting.
    fn take_all(&mut self, kind: LockKind, wait: Wait) -> Result<()> {
        let lock = LockName::AllRecords;
        if let Some(mutexes) = self.mutexes() {
            let mut patience = self.patience(wait);
            let taken = robust::lock_all(mutexes, kind, &mut patience)
                .map_err(|error| self.mutex_error(lock, error))?;
            if !taken {
                return Err(self.busy(lock));
            }
            let rest = self.take_records(kind, &mut patience);
            self.locks.all_thread = Some(thread::current().id());
            if let Err(error) = rest {
                self.release_all()?;
                return Err(error);
            }
            return Ok(());
        }
        let Some(file) = self.lock_file() else {
            return Ok(());
        };
        let mut patience = self.patience(wait);
        let chains = chains_range(self.geometry);
        let all = match acquire_gradually(file, chains, kind, &mut patience) {
            Ok(true) => self.take_records(kind, &mut patience),
            Ok(false) => Err(self.busy(lock)),
            Err(error) => Err(self.storage.io_error("lock", error)),
        };
        if all.is_err() {
            self.release_all_bytes()?;
        }
        all
    }

    /// The second part of the lock on all records: the bytes of the records.
    fn take_records(&self, kind: LockKind, patience: &mut Patience<'_>) -> Result<()> {
        let Some(file) = self.lock_file() else {
            return Ok(());
        };
        match acquire(file, records_range(self.geometry), kind, patience) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.busy(LockName::AllRecords)),
            Err(error) => Err(self.storage.io_error("lock", error)),
        }
    }

    /// Gives all records back, as [`Self::take_all`] took them.
    pub(crate) fn release_all(&mut self) -> Result<()> {
        let lock = LockName::AllRecords;
        let unlocked = if let Some(mutexes) = self.mutexes() {
            // The state is not to be touched by who does not have the mutex.
            if self.locks.all_thread != Some(thread::current().id()) {
                return Err(Error::WrongThread { lock });
            }
            robust::unlock_all(mutexes).map_err(|error| self.mutex_error(lock, error))
        } else {
            Ok(())
        };
        self.locks.all_thread = None;
        unlocked.and(self.release_all_bytes())
    }

    /// Gives back `[168, infinity)`, and takes the record locks of our own traverses again, which
    /// were part of it.
    pub(crate) fn release_all_bytes(&self) -> Result<()> {
        self.unlock_range(LockName::AllRecords)?;
        for position in &self.positions {
            self.lock_range(LockName::Record(*position), LockKind::Shared, self.wait)?;
        }
        Ok(())
    }

    /// Gives back the mutexes of a handle that is being dropped. What another thread holds stays:
    /// it goes to the next who wants it when that thread ends.
    pub(crate) fn abandon_mutexes(&mut self) {
        if self.mutexes().is_none() {
            return;
        }
        let held: Vec<LockName> = self.locks.on_data().collect();
        for name in held {
            let _ = self.unlock_range(name);
        }
        if self.locks.all_thread.is_some() {
            let _ = self.release_all();
        }
    }

    /// Makes an upgradable lock on all records exclusive (B.5).
    pub(crate) fn upgrade_all(&mut self) -> Result<()> {
        let lock = LockName::AllRecords;
        match self.locks.all {
            Some(all) if all.upgradable && all.count == 1 => {}
            _ => return Err(Error::LockOrder { lock }),
        }
        if let Some(mutexes) = self.mutexes() {
            let mut patience = self.patience(self.wait);
            robust::upgrade_all(mutexes, &mut patience)
                .map_err(|error| self.mutex_error(lock, error))?;
            self.take_records(LockKind::Exclusive, &mut patience)?;
        } else {
            self.lock_range(lock, LockKind::Exclusive, self.wait)?;
        }
        self.locks.all = Some(HeldAll {
            kind: LockKind::Exclusive,
            count: 1,
            upgradable: false,
            marked: false,
        });
        Ok(())
    }

    /// Locks all records, for reading or changing. Excludes every other writer, and with
    /// [`LockKind::Exclusive`] every reader. Not with a chain locked.
    ///
    /// * Locks: all records, until [`Self::unlock_all`]; counted.
    /// * Errors: [`Error::LockOrder`] with a chain locked, or held in another kind.
    /// * Cost: two system calls or more if chains are busy; with mutexes a sweep over those of all
    ///   chains.
    pub fn lock_all(&mut self, kind: LockKind) -> Result<()> {
        if kind == LockKind::Exclusive {
            self.writable()?;
        }
        self.lock_all_as(kind, false, self.wait)
    }

    /// Gives the lock of [`Self::lock_all`] back.
    ///
    /// * Locks: all records are given back with the last count.
    /// * Errors: [`Error::NotLocked`], [`Error::InTransaction`], [`Error::WrongThread`] with
    ///   mutexes.
    /// * Cost: one system call.
    pub fn unlock_all(&mut self) -> Result<()> {
        let Some(all) = &mut self.locks.all else {
            return Err(Error::NotLocked {
                lock: LockName::AllRecords,
            });
        };
        if self.running.is_some() {
            return Err(Error::InTransaction);
        }
        if all.count > 1 {
            all.count -= 1;
            return Ok(());
        }
        if !all.marked
            && let Err(error) = self.release_all()
        {
            if !matches!(error, Error::WrongThread { .. }) {
                self.locks.all = None;
            }
            return Err(error);
        }
        self.locks.all = None;
        Ok(())
    }

    /// Locks the chain of `key`: what follows under it is one atomic step to others. Locks are
    /// counted; give each back with [`Self::chain_unlock`]. At most one chain at a time.
    ///
    /// * Locks: that chain, until [`Self::chain_unlock`].
    /// * Errors: [`Error::LockOrder`] with another chain locked, unless it is only tried.
    /// * Cost: one system call; with mutexes as a rule none. The first lock that is held looks
    ///   whether a commit crashed, and undoes it.
    pub fn chain_lock(&mut self, key: &[u8], kind: LockKind, wait: Wait) -> Result<()> {
        let name = LockName::Chain(self.chain_of(key));
        if self.locks.holds_data() && self.locks.find(name).is_none() && wait != Wait::Try {
            // Two blocking chain locks of one owner are how deadlocks begin (B.3.4).
            return Err(Error::LockOrder { lock: name });
        }
        self.lock(name, kind, wait)
    }

    /// Gives a lock of [`Self::chain_lock`] back.
    ///
    /// * Locks: that chain is given back with the last count.
    /// * Errors: [`Error::NotLocked`], [`Error::WrongThread`] with mutexes.
    /// * Cost: one system call; with mutexes as a rule none.
    pub fn chain_unlock(&mut self, key: &[u8]) -> Result<()> {
        self.unlock(LockName::Chain(self.chain_of(key)))
    }

    /// Takes the lock of the free list if it is free, so that stores and deletions until
    /// [`Self::unlock_free_list`] wait for nobody. Counted, like every lock.
    ///
    /// * Locks: the freelist, until [`Self::unlock_free_list`].
    /// * Errors: [`Error::Busy`] at once.
    /// * Cost: one system call; with mutexes none.
    pub fn try_free_list(&mut self) -> Result<()> {
        self.lock(LockName::Freelist, LockKind::Exclusive, Wait::Try)
    }

    /// Gives the lock of [`Self::try_free_list`] back.
    ///
    /// * Locks: the freelist is given back with the last count.
    /// * Errors: [`Error::NotLocked`], [`Error::WrongThread`] with mutexes.
    /// * Cost: one system call; with mutexes as a rule none.
    pub fn unlock_free_list(&mut self) -> Result<()> {
        self.unlock(LockName::Freelist)
    }

    /// From now on works as if it held all records exclusively, because another handle or process
    /// does, on its behalf (B.7). No system call but the look whether recovery is needed, which a
    /// marked handle cannot do: then [`Error::NeedsRecovery`]. Undone by [`Self::unlock_all`].
    ///
    /// The caller vouches for the real lock: without it, others see half-written records.
    ///
    /// * Locks: none; the caller's counts as this handle's.
    /// * Errors: [`Error::LockOrder`] with any lock on data held, [`Error::NeedsRecovery`].
    /// * Cost: two words read.
    pub fn mark_all(&mut self) -> Result<()> {
        self.writable()?;
        if self.locks.all.is_some() || self.locks.holds_data() {
            return Err(Error::LockOrder {
                lock: LockName::AllRecords,
            });
        }
        self.refuse_crashed()?;
        self.locks.all = Some(HeldAll {
            kind: LockKind::Exclusive,
            count: 1,
            upgradable: false,
            marked: true,
        });
        Ok(())
    }

    /// As [`Self::mark_all`], for the chain of `key`. Undone by [`Self::chain_unlock`].
    ///
    /// * Locks: none; the caller's counts as this handle's.
    /// * Errors: as [`Self::mark_all`].
    /// * Cost: two words read.
    pub fn mark_chain(&mut self, key: &[u8]) -> Result<()> {
        self.mark_chain_number(self.chain_of(key))
    }

    /// As [`Self::mark_chain`], for the chain with that number.
    ///
    /// * Locks: none; the caller's counts as this handle's.
    /// * Errors: as [`Self::mark_all`].
    /// * Cost: two words read.
    pub fn mark_chain_number(&mut self, chain: u32) -> Result<()> {
        self.writable()?;
        let lock = LockName::Chain(chain);
        if self.locks.all.is_some() || self.locks.find(lock).is_some() {
            return Err(Error::LockOrder { lock });
        }
        self.refuse_crashed()?;
        self.locks.insert(lock, LockKind::Exclusive, true);
        Ok(())
    }

    fn refuse_crashed(&mut self) -> Result<()> {
        if self.needs_recovery()? {
            return Err(Error::NeedsRecovery {
                path: self.path().to_path_buf(),
            });
        }
        Ok(())
    }
}
