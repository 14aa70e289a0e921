//! Transactions (spec/database.md A.10): changes go to copies of blocks, the old content of the
//! blocks to the recovery area, and four syncs make the commit one step, also for a reader that
//! comes after a crash.

use crate::error::{Error, Result};
use crate::format::{RECORD_LEN, RECOVERY_MAGIC, TAILER_LEN, expansion, field};
use crate::handle::Tdb;
use crate::lock::{HeldAll, LockKind, LockName};
use crate::open::OpenFlags;
use crate::recovery::{HASH_AT, MAGIC_AT, area_header, around};

/// A transaction that is running on a handle.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Running {
    /// Nested starts.
    depth: u32,
    /// A nested one was cancelled.
    failed: bool,
    /// It runs under a lock on all records that the handle held before, and keeps.
    borrowed: bool,
    /// The open lock is held.
    opened: bool,
    /// The old content is safe and armed; only writing the new is left.
    prepared: Option<Prepared>,
}

impl Running {
    /// Whether no more changes are allowed.
    pub(crate) fn is_prepared(self) -> bool {
        self.prepared.is_some()
    }
}

/// A commit that has got as far as its recovery area (A.10 step 8).
#[derive(Clone, Copy, Debug)]
struct Prepared {
    /// `None`: there is nothing to write.
    area: Option<Area>,
    /// Size of the file before.
    old_end: u32,
}

/// Where the old content goes.
#[derive(Clone, Copy, Debug)]
struct Area {
    offset: u32,
    capacity: u32,
    /// The area that it replaces, and that becomes free with the commit; 0 for none.
    former: u32,
}

/// A running transaction: cancelled when it is dropped without [`Transaction::commit`].
#[derive(Debug)]
pub struct Transaction<'a> {
    tdb: &'a mut Tdb,
    open: bool,
}

impl Transaction<'_> {
    /// Makes the changes permanent, see [`Tdb::transaction_commit`].
    ///
    /// * Locks: all are given back, whether it succeeds or not.
    /// * Errors: those of [`Tdb::transaction_commit`].
    /// * Cost: that of [`Tdb::transaction_commit`].
    pub fn commit(mut self) -> Result<()> {
        self.open = false;
        self.tdb.transaction_commit()
    }

    /// Drops the changes.
    ///
    /// * Locks: all are given back.
    /// * Errors: those of [`Tdb::transaction_cancel`].
    /// * Cost: that of [`Tdb::transaction_cancel`].
    pub fn cancel(mut self) -> Result<()> {
        self.open = false;
        self.tdb.transaction_cancel()
    }
}

impl std::ops::Deref for Transaction<'_> {
    type Target = Tdb;
    fn deref(&self) -> &Tdb {
        self.tdb
    }
}

impl std::ops::DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut Tdb {
        self.tdb
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            // What fails here is giving locks back, which closing the handle does as well.
            let _ = self.tdb.transaction_cancel();
        }
    }
}

impl Tdb {
    /// Starts a transaction as a guard, see [`Self::transaction_start`].
    ///
    /// * Locks: those of [`Self::transaction_start`].
    /// * Errors: those of [`Self::transaction_start`].
    /// * Cost: that of [`Self::transaction_start`].
    pub fn transaction(&mut self) -> Result<Transaction<'_>> {
        self.transaction_start()?;
        Ok(Transaction {
            tdb: self,
            open: true,
        })
    }

    /// Whether a transaction is running on this handle.
    pub fn in_transaction(&self) -> bool {
        self.running.is_some()
    }

    /// Starts a transaction, or nests one. Waits for the transaction lock, and for all writers to
    /// leave; others can read until the commit. Not inside a traverse or with a lock held - except the
    /// exclusive lock on all records, real or marked: then no other lock is needed, nobody reads
    /// meanwhile, and the lock stays when the transaction is over.
    ///
    /// * Locks: the transaction lock, exclusively, and all records, shared; held until it is
    ///   committed or cancelled.
    /// * Errors: [`Error::InTransaction`] with `DISALLOW_NESTING`, [`Error::InTraverse`],
    ///   [`Error::LockOrder`].
    /// * Cost: the locks; with mutexes a sweep over those of all chains. Changes then cost memory:
    ///   each block (a page) once.
    pub fn transaction_start(&mut self) -> Result<()> {
        self.writable()?;
        if let Some(running) = &mut self.running {
            if self.flags.contains(OpenFlags::DISALLOW_NESTING) {
                return Err(Error::InTransaction);
            }
            running.depth += 1;
            return Ok(());
        }
        if !self.positions.is_empty() {
            return Err(Error::InTraverse);
        }
        let exclusive = |all: HeldAll| all.kind == LockKind::Exclusive;
        let borrowed = self.locks.all.is_some_and(exclusive);
        if self.locks.holds_any() && (!borrowed || self.locks.holds_data()) {
            return Err(Error::LockOrder {
                lock: LockName::Transaction,
            });
        }
        let ready = if borrowed {
            Ok(())
        } else {
            self.lock(LockName::Transaction, LockKind::Exclusive, self.wait)?;
            self.lock_all_as(LockKind::Shared, true, self.wait)
        };
        let ready = ready.and_then(|()| self.storage.refresh()).and_then(|()| {
            if self.is_locking() {
                Ok(false)
            } else {
                self.recover_if_needed()
            }
        });
        if let Err(error) = ready {
            self.give_back(borrowed)?;
            return Err(error);
        }
        self.storage.begin();
        self.running = Some(Running {
            borrowed,
            ..Running::default()
        });
        Ok(())
    }

    /// Drops the changes. Of a nested transaction: the outer one can then only be cancelled too.
    ///
    /// * Locks: all are given back.
    /// * Errors: [`Error::NoTransaction`].
    /// * Cost: nothing is written, unless it was prepared: then the old content.
    pub fn transaction_cancel(&mut self) -> Result<()> {
        let running = self.running.as_mut().ok_or(Error::NoTransaction)?;
        if running.depth > 0 {
            running.depth -= 1;
            running.failed = true;
            return Ok(());
        }
        self.end()
    }

    /// Does all of a commit that can fail for want of locks, space or memory (A.10 steps 1 to 8):
    /// waits for readers to leave, makes room, and puts the old content on stable storage. Only
    /// [`Self::transaction_commit`] or [`Self::transaction_cancel`] may follow; nobody else reads or
    /// writes until then, and a crash brings the old content back. Of a nested transaction: nothing.
    /// If it fails the transaction is cancelled.
    ///
    /// * Locks: all records and the open lock, exclusively, until the end.
    /// * Errors: [`Error::NoTransaction`], [`Error::Prepared`], [`Error::NestedCancelled`],
    ///   [`Error::LockOrder`] with a chain locked, [`Error::NoSpace`].
    /// * Cost: what the changed blocks held is written once; two syncs, one more if the recovery
    ///   area is made or moves.
    pub fn transaction_prepare_commit(&mut self) -> Result<()> {
        let running = self.running.ok_or(Error::NoTransaction)?;
        if running.depth > 0 {
            return Ok(());
        }
        if running.is_prepared() {
            return Err(Error::Prepared);
        }
        self.prepare()
    }

    /// Prepares, or cancels.
    fn prepare(&mut self) -> Result<()> {
        let refused = if self.running.is_some_and(|running| running.failed) {
            Some(Error::NestedCancelled)
        } else if self.locks.holds_data() {
            Some(Error::LockOrder {
                lock: LockName::AllRecords,
            })
        } else {
            None
        };
        if let Some(error) = refused {
            self.end()?;
            return Err(error);
        }
        let old_end = self.storage.size_below();
        let area = if self.storage.has_changes() {
            let armed = self
                .lock_for_commit()
                .and_then(|()| self.save_old_content(old_end));
            match armed {
                Ok(area) => Some(area),
                Err(error) => {
                    self.end()?;
                    return Err(error);
                }
            }
        } else {
            None
        };
        if let Some(running) = &mut self.running {
            running.prepared = Some(Prepared { area, old_end });
        }
        Ok(())
    }

    /// Makes the changes permanent. Waits for readers to leave. When it returns, they are on stable
    /// storage (unless the handle has `NOSYNC`); on an error before the last step the old content
    /// is back, and the error of the last sync alone leaves open which of the two a crash of the
    /// machine would bring.
    ///
    /// * Locks: all records and the open lock, exclusively, meanwhile; then all are given back.
    /// * Errors: as [`Self::transaction_prepare_commit`]; [`Error::Io`] or [`Error::NoSpace`] of
    ///   the writing.
    /// * Cost: each changed block written twice, four syncs (none with `NOSYNC`); a repack if the
    ///   file grew and its free space is scattered.
    pub fn transaction_commit(&mut self) -> Result<()> {
        let running = self.running.as_mut().ok_or(Error::NoTransaction)?;
        if running.depth > 0 {
            running.depth -= 1;
            return Ok(());
        }
        if !running.is_prepared() {
            self.prepare()?;
        }
        let Some(prepared) = self.running.and_then(|running| running.prepared) else {
            return Err(Error::NoTransaction);
        };
        let grew = self.storage.size() > prepared.old_end;
        let result = match prepared.area {
            Some(area) => self.write_new_content(area),
            None => Ok(()),
        };
        // The area is disarmed, or the old content is back.
        if let Some(running) = &mut self.running {
            running.prepared = None;
        }
        let ended = self.end();
        result.and(ended)?;
        if grew && prepared.area.is_some() {
            self.repack_if_scattered();
        }
        Ok(())
    }

    /// Drops what is left of the transaction and gives its locks back.
    fn end(&mut self) -> Result<()> {
        self.storage.abandon();
        let running = self.running.take().unwrap_or_default();
        let recovered = if running
            .prepared
            .is_some_and(|prepared| prepared.area.is_some())
        {
            // Our own crash recovery, while we have the file to ourselves. It also makes what the
            // file grew by free space. If it fails the area stays armed, and the next to lock the
            // file does it.
            self.recover_if_needed().map(|_| ())
        } else {
            Ok(())
        };
        let given = self.give_back(running.borrowed);
        // Given back last, as libtdb does.
        let closed = if running.opened {
            self.unlock_range(LockName::Open)
        } else {
            Ok(())
        };
        recovered.and(given).and(closed)
    }

    fn give_back(&mut self, borrowed: bool) -> Result<()> {
        if borrowed {
            return Ok(());
        }
        let all = if self.locks.all.is_some() {
            self.release_all()
        } else {
            Ok(())
        };
        // Another thread could still give it back.
        if !matches!(all, Err(Error::WrongThread { .. })) {
            self.locks.all = None;
        }
        let transaction = self.unlock(LockName::Transaction);
        all.and(transaction)
    }

    fn lock_for_commit(&mut self) -> Result<()> {
        if !self.running.is_some_and(|running| running.borrowed) {
            self.upgrade_all()?;
        }
        self.lock_range(LockName::Open, LockKind::Exclusive, self.wait)?;
        if let Some(running) = &mut self.running {
            running.opened = true;
        }
        Ok(())
    }

    fn durable(&mut self) -> Result<()> {
        if self.flags.contains(OpenFlags::NOSYNC) {
            return Ok(());
        }
        self.storage.sync()
    }

    /// Saves what the changed blocks hold now, arms the recovery area, and grows the file (A.10
    /// steps 4 to 8).
    fn save_old_content(&mut self, old_end: u32) -> Result<Area> {
        let area = self.place_area(old_end)?;
        let area_end = area.offset + RECORD_LEN + area.capacity;
        let order = self.storage.order();

        // Old content of the blocks, with an area that is not armed yet.
        let mut saved = vec![0; RECORD_LEN as usize];
        let need = self.area_need(old_end, area.offset)? as usize;
        saved
            .try_reserve_exact(need)
            .map_err(|_| Error::NoMemory(need))?;
        for (start, len) in self.old_ranges(old_end, area.offset, area_end) {
            saved.extend_from_slice(&order.bytes(start));
            saved.extend_from_slice(&order.bytes(len));
            let at = saved.len();
            saved.resize(at + len as usize, 0);
            self.storage.read_below(start, &mut saved[at..])?;
        }
        saved.extend_from_slice(&order.bytes(RECORD_LEN + area.capacity));
        let valid = saved.len() as u32 - RECORD_LEN;
        let header = area_header(area.capacity, old_end, valid, area.former);
        saved[..RECORD_LEN as usize].copy_from_slice(&header.encode(order));
        self.storage.write_below(area.offset, &saved)?;
        self.durable()?;

        // Armed: from here on a crash brings the old content back.
        let armed = order.bytes(RECOVERY_MAGIC);
        self.storage.write_below(area.offset + MAGIC_AT, &armed)?;
        let ready = self.durable().and_then(|()| {
            let size = self.storage.size();
            if self.storage.size_below() < size {
                let below = self.storage.size_below().max(old_end);
                self.storage.grow_below(below, size)?;
            }
            Ok(())
        });
        if let Err(error) = ready {
            self.storage.abandon();
            self.recover_if_needed()?;
            return Err(error);
        }
        Ok(area)
    }

    /// Writes the changed blocks and disarms the recovery area (A.10 steps 9 to 12).
    fn write_new_content(&mut self, area: Area) -> Result<()> {
        let area_end = area.offset + RECORD_LEN + area.capacity;
        if let Err(error) = self.write_blocks(area, area_end) {
            self.storage.abandon();
            self.recover_if_needed()?;
            return Err(error);
        }
        // The commit point.
        self.storage.write_last(area.offset + MAGIC_AT, &[0; 4])?;
        self.durable()?;
        if area.former != 0 {
            // The former area is free now.
            self.storage.write_below(area.offset + HASH_AT, &[0; 4])?;
        }
        Ok(())
    }

    fn write_blocks(&mut self, area: Area, area_end: u32) -> Result<()> {
        for (start, len) in self.storage.changed_ranges() {
            for (from, to) in around(start, start + len, area.offset, area_end) {
                let mut block = vec![0; (to - from) as usize];
                self.storage.read(from, &mut block)?;
                self.storage.write_below(from, &block)?;
            }
        }
        self.durable()
    }

    /// Changed ranges that begin in the old file, without the recovery area. What lies between the
    /// old end and the end of such a block is saved too: the file is that long by now.
    fn old_ranges(&self, old_end: u32, area: u32, area_end: u32) -> Vec<(u32, u32)> {
        self.storage
            .changed_ranges()
            .into_iter()
            .filter(|(start, _)| *start < old_end)
            .flat_map(|(start, len)| around(start, start + len, area, area_end))
            .map(|(from, to)| (from, to - from))
            .collect()
    }

    /// Bytes that a recovery area at `area` must hold.
    fn area_need(&self, old_end: u32, area: u32) -> Result<u32> {
        let mut sum = 4u64;
        for (start, len) in self.storage.changed_ranges() {
            if start < old_end {
                sum += 8 + u64::from(len);
                if start < area && area < start + len {
                    // The area splits the block in two: one more descriptor.
                    sum += 8;
                }
            }
        }
        u32::try_from(sum).map_err(|_| Error::TooLarge(sum))
    }

    /// Finds or makes the recovery area (A.10 step 4). The file is grown, and the real header
    /// points to the area.
    fn place_area(&mut self, old_end: u32) -> Result<Area> {
        let existing = self.recovery_record()?;
        if let Some((offset, record)) = existing
            && record.rec_len >= self.area_need(old_end, offset)?
        {
            self.storage.covers(offset, RECORD_LEN)?;
            self.storage.covers(offset + RECORD_LEN, record.rec_len)?;
            return Ok(Area {
                offset,
                capacity: record.rec_len,
                former: 0,
            });
        }
        // A file that was cut at an odd place: an area begins at the next offset where it may.
        let size = self.storage.size();
        let size = size.checked_next_multiple_of(4).unwrap_or(size & !3);
        let mut former = 0;
        let at = match existing {
            Some((offset, record)) if record.end(offset) == Some(size) => offset,
            Some((offset, record)) => {
                // An area that libtdb did not come to describe before it died becomes dead space.
                let described = record.rec_len >= TAILER_LEN && record.rec_len.is_multiple_of(4);
                if described && record.end(offset).is_some_and(|end| end <= size) {
                    self.free(offset, record)?;
                    former = offset;
                } else {
                    // Dead space before it may be too short for a header: a check then takes
                    // this one's words for that header's.
                    self.storage.write(offset, &[0; RECORD_LEN as usize])?;
                }
                size
            }
            None => size,
        };
        let need = self.area_need(old_end, at)?;
        let addition = expansion(at, need.saturating_add(RECORD_LEN), self.storage.page()) & !3;
        let capacity = addition
            .checked_sub(RECORD_LEN)
            .filter(|capacity| *capacity >= need);
        let (Some(capacity), Some(end)) = (capacity, at.checked_add(addition)) else {
            return Err(Error::NoSpace {
                path: self.path().to_path_buf(),
                wanted: need,
            });
        };
        // Never less than what was there, if the area grows in its place.
        let end = end.max(size);
        let capacity = capacity.max(end - at - RECORD_LEN);
        if end > old_end {
            self.storage.grow_below(old_end, end)?;
        }
        // The header must never point beyond the end of the file or to what is no area, not after
        // a power cut either.
        let empty = area_header(capacity, old_end, 0, 0);
        self.storage
            .write_below(at, &empty.encode(self.storage.order()))?;
        self.durable()?;
        self.storage.set_sizes(end);
        self.point_to(at)?;
        Ok(Area {
            offset: at,
            capacity,
            former,
        })
    }

    /// Writes `recovery_start`, to the file and to a changed copy of the header's block.
    fn point_to(&mut self, area: u32) -> Result<()> {
        let at = field::RECOVERY_START as u32;
        let word = self.storage.order().bytes(area);
        self.storage.write_below(at, &word)?;
        if self
            .storage
            .changed_ranges()
            .first()
            .is_some_and(|(start, _)| *start == 0)
        {
            self.storage.write(at, &word)?;
        }
        Ok(())
    }

    /// A commit that grew a file with much scattered free space repacks it. Its failure is not the
    /// commit's.
    fn repack_if_scattered(&mut self) {
        let kind = self.locks.all.map_or(LockKind::Shared, |all| all.kind);
        let scattered = self
            .lock_all_as(kind, false, self.wait)
            .and_then(|()| {
                let sizes = self.free_sizes();
                self.unlock_all()?;
                sizes
            })
            .is_ok_and(|(sum, largest)| sum > 2 * u64::from(largest));
        if scattered {
            let _ = self.repack();
        }
    }

    /// Writes all records anew, without gaps between them, in a transaction.
    ///
    /// * Locks: those of a transaction.
    /// * Errors: those of a transaction, and [`Error::TooLarge`]; the file is then as it was.
    /// * Cost: the memory of all records up to three times, and a commit of nearly the whole file.
    pub fn repack(&mut self) -> Result<()> {
        let mut transaction = self.transaction()?;
        let mut records = Vec::new();
        transaction.traverse(crate::TraverseKind::Read, |_, key, data| {
            records.push((key.to_vec(), data.to_vec()));
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        transaction.wipe_all()?;
        for (key, data) in &records {
            transaction.store(key, data, crate::StoreMode::Insert)?;
        }
        transaction.commit()
    }
}
