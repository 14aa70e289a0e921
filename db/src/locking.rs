//! What a handle locks, counts and unlocks (spec/database.md B.2 - B.5).

use std::fs::File;

use crate::error::{Error, Result};
use crate::handle::Tdb;
use crate::lock::{
    HeldAll, LockKind, LockName, Wait, acquire, acquire_gradually, chains_range, records_range,
    release,
};
use crate::open::OpenFlags;

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

    /// Takes the bytes of a lock, without counting.
    pub(crate) fn lock_range(&self, name: LockName, kind: LockKind, wait: Wait) -> Result<()> {
        let Some(file) = self.lock_file() else {
            return Ok(());
        };
        match acquire(file, name.range(), kind, wait.deadline()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.busy(name)),
            Err(error) => Err(self.storage.io_error("lock", error)),
        }
    }

    /// Gives the bytes of a lock back.
    pub(crate) fn unlock_range(&self, name: LockName) -> Result<()> {
        let Some(file) = self.lock_file() else {
            return Ok(());
        };
        release(file, name.range()).map_err(|e| self.storage.io_error("unlock", e))
    }

    /// Takes or counts a lock (B.2). The first lock on data triggers recovery if a commit crashed.
    pub(crate) fn lock(&mut self, name: LockName, kind: LockKind, wait: Wait) -> Result<()> {
        let on_data = matches!(name, LockName::Chain(_) | LockName::Freelist);
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
            self.lock_range(name, kind, wait)?;
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
            let on_data = matches!(name, LockName::Chain(_) | LockName::Freelist);
            return if on_data && self.locks.all.is_some() {
                Ok(())
            } else {
                Err(Error::NotLocked { lock: name })
            };
        };
        held.count -= 1;
        if held.count > 0 {
            return Ok(());
        }
        let marked = held.marked;
        self.locks.remove(name);
        if marked {
            Ok(())
        } else {
            self.unlock_range(name)
        }
    }

    /// Runs `work` with a lock, which is given back whatever happens.
    pub(crate) fn with_lock<T>(
        &mut self,
        name: LockName,
        kind: LockKind,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
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
            if let Some(file) = self.lock_file() {
                let until = wait.deadline();
                let all = acquire_gradually(file, chains_range(self.geometry), kind, until)
                    .and_then(|got| {
                        Ok(got && acquire(file, records_range(self.geometry), kind, until)?)
                    });
                match all {
                    Ok(true) => {}
                    Ok(false) => {
                        self.release_all_bytes()?;
                        return Err(self.busy(lock));
                    }
                    Err(error) => {
                        self.release_all_bytes()?;
                        return Err(self.storage.io_error("lock", error));
                    }
                }
            }
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
                    self.release_all_bytes()?;
                    self.recover_lazily()?;
                }
                Err(error) => {
                    self.locks.all = None;
                    self.release_all_bytes()?;
                    return Err(error);
                }
            }
        }
        Err(self.busy(lock))
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

    /// Makes an upgradable lock on all records exclusive (B.5).
    pub(crate) fn upgrade_all(&mut self) -> Result<()> {
        let lock = LockName::AllRecords;
        match self.locks.all {
            Some(all) if all.upgradable && all.count == 1 => {}
            _ => return Err(Error::LockOrder { lock }),
        }
        self.lock_range(lock, LockKind::Exclusive, self.wait)?;
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
    pub fn lock_all(&mut self, kind: LockKind) -> Result<()> {
        if kind == LockKind::Exclusive {
            self.writable()?;
        }
        self.lock_all_as(kind, false, self.wait)
    }

    /// Gives the lock of [`Self::lock_all`] back.
    pub fn unlock_all(&mut self) -> Result<()> {
        let Some(all) = &mut self.locks.all else {
            return Err(Error::NotLocked {
                lock: LockName::AllRecords,
            });
        };
        if self.running.is_some() {
            return Err(Error::InTransaction);
        }
        all.count -= 1;
        if all.count > 0 {
            return Ok(());
        }
        let marked = all.marked;
        self.locks.all = None;
        if marked {
            Ok(())
        } else {
            self.release_all_bytes()
        }
    }

    /// Locks the chain of `key`: what follows under it is one atomic step to others. Locks are
    /// counted; give each back with [`Self::chain_unlock`]. At most one chain at a time.
    pub fn chain_lock(&mut self, key: &[u8], kind: LockKind, wait: Wait) -> Result<()> {
        let name = LockName::Chain(self.chain_of(key));
        if self.locks.holds_data() && self.locks.find(name).is_none() && wait != Wait::Try {
            // Two blocking chain locks of one owner are how deadlocks begin (B.3.4).
            return Err(Error::LockOrder { lock: name });
        }
        self.lock(name, kind, wait)
    }

    /// Gives a lock of [`Self::chain_lock`] back.
    pub fn chain_unlock(&mut self, key: &[u8]) -> Result<()> {
        self.unlock(LockName::Chain(self.chain_of(key)))
    }

    /// From now on works as if it held all records exclusively, because another handle or process
    /// does, on its behalf (B.7). No system call but the look whether recovery is needed, which a
    /// marked handle cannot do: then [`Error::NeedsRecovery`]. Undone by [`Self::unlock_all`].
    ///
    /// The caller vouches for the real lock: without it, others see half-written records.
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
    pub fn mark_chain(&mut self, key: &[u8]) -> Result<()> {
        self.writable()?;
        let lock = LockName::Chain(self.chain_of(key));
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
