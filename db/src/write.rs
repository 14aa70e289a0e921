//! Storing and deleting records (spec/database.md A.8, B.4).

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::format::{
    DEAD_MAGIC, RECORD_LEN, RecordHeader, RecordKind, TAILER_LEN, USED_MAGIC, field,
};
use crate::handle::Tdb;
use crate::lock::{LockKind, LockName};
use crate::open::OpenFlags;
use crate::read::Found;
use crate::space::Place;

/// What a store expects of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMode {
    /// Nothing.
    Replace,
    /// That it does not exist.
    Insert,
    /// That it exists.
    Modify,
}

impl Tdb {
    /// Stores `data` under `key`. Locks its chain exclusively, and the freelist if the record needs
    /// another place.
    ///
    /// A process that dies meanwhile can leave the key without a record; use a transaction where
    /// that matters. If the file cannot grow, the old record stays.
    ///
    /// * Locks: the chain of the key, exclusively; the freelist if the record needs another place,
    ///   and for a moment, if it is free, a record that becomes free.
    /// * Errors: [`Error::Exists`] to insert, [`Error::NotFound`] to modify, [`Error::TooLarge`],
    ///   [`Error::NoSpace`]. After any of these the record is as it was.
    /// * Cost: the locks, a walk along the chain, a copy of the data; in another place a walk along
    ///   the freelist; sometimes the file grows, by a quarter or more.
    pub fn store(&mut self, key: &[u8], data: &[u8], mode: StoreMode) -> Result<()> {
        self.writable()?;
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Exclusive, |tdb| {
            tdb.store_locked(key, data, hash, mode)
        })
    }

    /// Appends `data` to what is stored under `key`, if anything. One atomic step to others.
    ///
    /// * Locks: as [`Self::store`], all the time.
    /// * Errors: as [`Self::store`].
    /// * Cost: as a fetch and a store.
    pub fn append(&mut self, key: &[u8], data: &[u8]) -> Result<()> {
        self.writable()?;
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Exclusive, |tdb| {
            let mut all = match tdb.find(key, hash)? {
                Some(found) => tdb.data_of(&found)?,
                None => Vec::new(),
            };
            all.try_reserve(data.len())
                .map_err(|_| Error::NoMemory(data.len()))?;
            all.extend_from_slice(data);
            tdb.store_locked(key, &all, hash, StoreMode::Replace)
        })
    }

    /// Deletes `key`; [`Error::NotFound`] if it does not exist. Locks its chain exclusively and, if
    /// the space becomes free, the freelist.
    ///
    /// * Locks: the chain of the key, exclusively; if space becomes free the freelist, and for a
    ///   moment the record.
    /// * Errors: [`Error::NotFound`].
    /// * Cost: the locks, and a walk along the chain; with dead records kept (`VOLATILE`) the
    ///   freelist is seldom needed.
    pub fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.writable()?;
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Exclusive, |tdb| {
            let found = tdb.find(key, hash)?.ok_or(Error::NotFound)?;
            tdb.delete_found(&found, hash)
        })
    }

    fn store_locked(&mut self, key: &[u8], data: &[u8], hash: u32, mode: StoreMode) -> Result<()> {
        let total = key.len() as u64 + data.len() as u64;
        if total > u64::from(self.max_record_len) {
            return Err(Error::TooLarge(total));
        }
        let payload = total as u32;
        let found = self.find(key, hash)?;
        match (&found, mode) {
            (Some(_), StoreMode::Insert) => return Err(Error::Exists),
            (None, StoreMode::Modify) => return Err(Error::NotFound),
            _ => {}
        }
        let Some(found) = found else {
            let place = self.allocate(hash, payload)?;
            self.link_or_free(place, key, data, hash)?;
            return self.count_change();
        };
        if self.update_in_place(&found, key, data)? {
            return self.count_change();
        }
        if self.max_dead > 0 {
            self.move_record(&found, key, data, hash, payload)?;
        } else {
            // The freelist is needed anyway. Taken before anything is changed, a wait that ends
            // without it does no harm.
            self.with_lock(LockName::Freelist, LockKind::Exclusive, |tdb| {
                tdb.move_record(&found, key, data, hash, payload)
            })?;
        }
        self.count_change()
    }

    /// Deletes the old record and stores the new one elsewhere; if there is no room, puts the old
    /// one back.
    fn move_record(
        &mut self,
        found: &Found,
        key: &[u8],
        data: &[u8],
        hash: u32,
        payload: u32,
    ) -> Result<()> {
        let old = self.data_of(found)?;
        // So that it can be put back.
        let whole = RECORD_LEN + found.record.rec_len;
        self.storage.make_room(found.offset, whole)?;
        self.delete_found(found, hash)?;
        let placed = self
            .allocate(hash, payload)
            .and_then(|place| self.link_or_free(place, key, data, hash));
        match placed {
            Ok(()) => Ok(()),
            Err(full) => {
                self.put_back(found, key, &old, hash)?;
                Err(full)
            }
        }
    }

    /// Undoes a delete: the record is still dead in its chain, or its space is free.
    fn put_back(&mut self, found: &Found, key: &[u8], old: &[u8], hash: u32) -> Result<()> {
        let dead = self.walk_chain(self.geometry.chain(hash), |_, at| {
            let is_it = at.offset == found.offset && at.record.kind() == RecordKind::Dead;
            Ok(if is_it {
                ControlFlow::Break(at)
            } else {
                ControlFlow::Continue(())
            })
        })?;
        if let Some(dead) = dead {
            let alive = RecordHeader {
                magic: USED_MAGIC,
                ..dead.record
            };
            return self.storage.write_record(dead.offset, &alive);
        }
        self.with_lock(LockName::Freelist, LockKind::Exclusive, |tdb| {
            // Elsewhere only if others have taken it meanwhile.
            let place = match tdb.take_back(found.offset, found.record.rec_len)? {
                Some(place) => Some(place),
                None => tdb.take_free(found.record.rec_len)?,
            };
            match place {
                Some(place) => tdb.link_record(place, key, old, hash),
                None => Ok(()),
            }
        })
    }

    /// Overwrites the data if the record has room for it.
    fn update_in_place(&mut self, found: &Found, key: &[u8], data: &[u8]) -> Result<bool> {
        let record = &found.record;
        let same_len = record.data_len as usize == data.len();
        let data_at = found.offset + RECORD_LEN + record.key_len;
        if same_len && self.storage.equals(data_at, data)? {
            return Ok(true);
        }
        let needed = key.len() as u64 + data.len() as u64 + u64::from(TAILER_LEN);
        if u64::from(record.rec_len) < needed {
            return Ok(false);
        }
        let needed = RECORD_LEN + record.key_len + data.len() as u32;
        // A single page takes all or nothing.
        if found.offset % self.storage.page() + needed > self.storage.page() {
            self.storage.make_room(found.offset, needed)?;
        }
        self.storage.write(data_at, data)?;
        if !same_len {
            let changed = RecordHeader {
                data_len: data.len() as u32,
                ..*record
            };
            self.storage.write_record(found.offset, &changed)?;
        }
        Ok(true)
    }

    /// As [`Self::link_record`]; if the medium does not take it, the place becomes free again.
    fn link_or_free(&mut self, place: Place, key: &[u8], data: &[u8], hash: u32) -> Result<()> {
        let linked = self.link_record(place, key, data, hash);
        if linked.is_err() {
            let (offset, rec_len) = place;
            let unused = RecordHeader {
                rec_len,
                ..RecordHeader::default()
            };
            // Space is lost if this fails too; why the first failed is what is told.
            let head = self.geometry.head(self.geometry.chain(hash));
            let _ = self.with_lock(LockName::Freelist, LockKind::Exclusive, |tdb| {
                // Never what the chain leads to.
                if tdb.storage.read_word(head)? == offset {
                    return Ok(());
                }
                tdb.free(offset, unused)
            });
        }
        linked
    }

    /// Fills an allocated record and links it at the head of its chain, with the last word
    /// written.
    fn link_record(
        &mut self,
        (offset, rec_len): Place,
        key: &[u8],
        data: &[u8],
        hash: u32,
    ) -> Result<()> {
        let head = self.geometry.head(self.geometry.chain(hash));
        let record = RecordHeader {
            next: self.storage.read_word(head)?,
            rec_len,
            key_len: key.len() as u32,
            data_len: data.len() as u32,
            full_hash: hash,
            magic: USED_MAGIC,
        };
        if self.storage.is_mapped() {
            self.storage.write_record(offset, &record)?;
            let key_at = offset + RECORD_LEN;
            self.storage.write(key_at, key)?;
            self.storage.write(key_at + record.key_len, data)?;
            return self.storage.write_word(head, offset);
        }
        // One system call instead of three.
        let mut bytes = Vec::new();
        let len = RECORD_LEN as usize + key.len() + data.len();
        bytes
            .try_reserve_exact(len)
            .map_err(|_| Error::NoMemory(len))?;
        bytes.extend_from_slice(&record.encode(self.storage.order()));
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(data);
        self.storage.write(offset, &bytes)?;
        self.storage.write_word(head, offset)
    }

    /// Marks a record dead and frees what dead records the chain has too many.
    fn delete_found(&mut self, found: &Found, hash: u32) -> Result<()> {
        let dead = RecordHeader {
            magic: DEAD_MAGIC,
            ..found.record
        };
        self.storage.write_record(found.offset, &dead)?;
        self.count_change()?;
        self.trim(self.geometry.chain(hash), self.max_dead)
    }

    /// Counts a change in the header, if this handle does that (A.8.1).
    ///
    /// Outside a transaction in one step in the map, as libtdb does; under the lock of byte 48 if
    /// there is no map.
    pub(crate) fn count_change(&mut self) -> Result<()> {
        if !self.flags.contains(OpenFlags::SEQNUM) {
            return Ok(());
        }
        let increment = |tdb: &mut Self| {
            let at = field::SEQUENCE_NUMBER as u32;
            let number = tdb.storage.read_word(at)?;
            tdb.storage.write_word(at, number.wrapping_add(1))
        };
        if self.running.is_some() {
            return increment(self);
        }
        if self.storage.increment(field::SEQUENCE_NUMBER as u32)? {
            return Ok(());
        }
        self.with_lock(LockName::SequenceNumber, LockKind::Exclusive, increment)
    }

    /// Counts a change in the header whether or not the handle does that by itself.
    ///
    /// * Locks: none; without a map, the sequence number's.
    /// * Errors: none of its own.
    /// * Cost: one step in the map.
    pub fn increment_sequence_number(&mut self) -> Result<()> {
        self.writable()?;
        let flags = self.flags;
        self.flags.insert(OpenFlags::SEQNUM);
        let result = self.count_change();
        self.flags = flags;
        result
    }

    /// Empties the database. Locks all records. Not during a traverse of this handle.
    ///
    /// * Locks: all records, exclusively.
    /// * Errors: [`Error::InTraverse`], [`Error::LockOrder`] with a chain locked.
    /// * Cost: the lock, and all heads written; the records are not touched.
    pub fn wipe_all(&mut self) -> Result<()> {
        self.writable()?;
        if !self.positions.is_empty() {
            return Err(Error::InTraverse);
        }
        let locked = match self.locks.all {
            Some(all) if all.kind == LockKind::Exclusive || all.upgradable => false,
            _ => {
                self.lock_all_as(LockKind::Exclusive, false, self.wait)?;
                true
            }
        };
        let result = self.wipe_locked();
        if locked {
            let unlocked = self.unlock_all();
            return result.and(unlocked);
        }
        result
    }
}
