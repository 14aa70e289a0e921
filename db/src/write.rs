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
    pub fn store(&mut self, key: &[u8], data: &[u8], mode: StoreMode) -> Result<()> {
        self.writable()?;
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Exclusive, |tdb| {
            tdb.store_locked(key, data, hash, mode)
        })
    }

    /// Appends `data` to what is stored under `key`, if anything. One atomic step to others.
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
            self.link_record(place, key, data, hash)?;
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
        self.delete_found(found, hash)?;
        match self.allocate(hash, payload) {
            Ok(place) => self.link_record(place, key, data, hash),
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
            match tdb.take_free(found.record.rec_len)? {
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

    /// Fills an allocated record and links it at the head of its chain, with the last word
    /// written.
    fn link_record(
        &mut self,
        (offset, rec_len): (u32, u32),
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
    pub fn increment_sequence_number(&mut self) -> Result<()> {
        self.writable()?;
        let flags = self.flags;
        self.flags.insert(OpenFlags::SEQNUM);
        let result = self.count_change();
        self.flags = flags;
        result
    }

    /// Empties the database. Locks all records. Not during a traverse of this handle.
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
