//! Finding and fetching records, and walking over all of them (spec/database.md A.7, A.8, B.4).

use std::ops::ControlFlow;

use crate::error::{Error, Fault, Result};
use crate::format::{RECORD_LEN, RecordHeader, RecordKind};
use crate::handle::Tdb;
use crate::lock::{LockKind, LockName, Wait};
use crate::storage::Search;
use crate::walk::LoopGuard;

/// A record and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) offset: u32,
    pub(crate) record: RecordHeader,
    /// Offset of the word that leads to the record.
    pub(crate) link: u32,
}

/// Key and data of a visited record.
type Visited = (Vec<u8>, Vec<u8>);

/// How often a walk through one chain may lose its place because others moved records.
const MAX_RESTARTS: u32 = 100;

/// Largest buffer that a handle keeps.
const KEPT_BUFFER: usize = 256 << 10;

/// Key and data bytes of one chain that a read traverse copies at a time, and records.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_RECORDS: usize = 1024;

/// Records copied from a chain: keys and data, one after another.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Lengths of key and data.
    records: Vec<(u32, u32)>,
}

/// A traverse's way through one chain.
#[derive(Debug)]
struct Walk {
    chain: u32,
    kind: LockKind,
    /// The record on which it stands.
    position: Option<u32>,
    guard: LoopGuard,
    restarts: u32,
}

impl Walk {
    fn new(chain: u32, kind: LockKind, size: u32) -> Self {
        Self {
            chain,
            kind,
            position: None,
            guard: LoopGuard::new(size),
            restarts: 0,
        }
    }
}

/// Whether a traverse may change records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraverseKind {
    /// Locks shared; the handle refuses changes meanwhile.
    Read,
    /// Takes the transaction lock, chains exclusively; the callback may change anything.
    Write,
}

/// Chain heads read many at a time, to find out which chains are empty: a damaged header may tell
/// of a billion.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    first: u32,
    words: Vec<u32>,
}

impl Heads {
    /// Heads read at once.
    const BATCH: u32 = 1024;

    /// The head of `chain`, as it was a moment ago.
    pub(crate) fn get(&mut self, tdb: &mut Tdb, chain: u32) -> Result<u32> {
        let known = |this: &Self| {
            let at = chain.checked_sub(this.first)?;
            this.words.get(at as usize).copied()
        };
        if let Some(head) = known(self) {
            return Ok(head);
        }
        let mut bytes = [0; 4 * Self::BATCH as usize];
        let count = Self::BATCH.min(tdb.geometry.hash_size() - chain);
        let bytes = &mut bytes[..4 * count as usize];
        tdb.storage.read(tdb.geometry.head(chain), bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        self.words = words
            .iter()
            .map(|word| tdb.storage.order().word(*word))
            .collect();
        self.first = chain;
        Ok(known(self).unwrap_or(0))
    }
}

impl Tdb {
    /// Walks the records of a chain, dead ones too, until `visit` breaks. Chain locked.
    pub(crate) fn walk_chain<T>(
        &mut self,
        chain: u32,
        mut visit: impl FnMut(&mut Self, Found) -> Result<ControlFlow<T>>,
    ) -> Result<Option<T>> {
        let mut link = self.geometry.head(chain);
        let mut guard = LoopGuard::new(self.storage.size());
        let mut offset = self.storage.read_word(link)?;
        while offset != 0 {
            if !guard.step(offset) {
                return Err(self.storage.corrupt(offset, Fault::Cycle));
            }
            let record = self.read_checked(offset)?;
            match record.kind() {
                RecordKind::Used | RecordKind::Dead => {}
                _ => return Err(self.storage.corrupt(offset, Fault::BadMagic(record.magic))),
            }
            if !record.payload_fits() {
                let fault = Fault::BadPayload {
                    key_len: record.key_len,
                    data_len: record.data_len,
                    rec_len: record.rec_len,
                };
                return Err(self.storage.corrupt(offset, fault));
            }
            if let ControlFlow::Break(found) = visit(
                self,
                Found {
                    offset,
                    record,
                    link,
                },
            )? {
                return Ok(Some(found));
            }
            link = offset;
            offset = record.next;
        }
        Ok(None)
    }

    /// The record of `key`. Chain locked.
    pub(crate) fn find(&mut self, key: &[u8], hash: u32) -> Result<Option<Found>> {
        let head = self.geometry.head(self.geometry.chain(hash));
        let data_start = self.geometry.data_start();
        match self.storage.find_in_map(head, data_start, hash, key) {
            Search::Found(found) => return Ok(Some(found)),
            Search::Absent => return Ok(None),
            Search::Unclear => {}
        }
        self.walk_chain(self.geometry.chain(hash), |tdb, found| {
            let record = &found.record;
            let same = record.kind() == RecordKind::Used
                && record.full_hash == hash
                && record.key_len as usize == key.len()
                && tdb.storage.equals(found.offset + RECORD_LEN, key)?;
            Ok(if same {
                ControlFlow::Break(found)
            } else {
                ControlFlow::Continue(())
            })
        })
    }

    /// Part of a record's payload, within the handle's limit.
    pub(crate) fn payload(&mut self, offset: u32, from: u32, len: u32) -> Result<Vec<u8>> {
        if len > self.max_record_len {
            return Err(Error::TooLarge(u64::from(len)));
        }
        self.storage.read_vec(offset + RECORD_LEN + from, len)
    }

    /// The data of a found record.
    pub(crate) fn data_of(&mut self, found: &Found) -> Result<Vec<u8>> {
        self.payload(found.offset, found.record.key_len, found.record.data_len)
    }

    /// The data of `key`. Locks its chain shared.
    ///
    /// * Locks: the chain of the key, shared.
    /// * Errors: [`Error::TooLarge`] of a record beyond the handle's limit.
    /// * Cost: the lock, a walk along the chain, a copy of the data.
    pub fn fetch(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut data = Vec::new();
        if let Some(found) = self.fetch_fast(key, &mut data)? {
            return Ok(found.then_some(data));
        }
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Shared, |tdb| {
            match tdb.find(key, hash)? {
                Some(found) => tdb.data_of(&found).map(Some),
                None => Ok(None),
            }
        })
    }

    /// Appends the data of `key` to `data`; whether it exists. As [`Self::fetch`], without a vector of
    /// its own.
    ///
    /// * Locks: the chain of the key, shared.
    /// * Errors: [`Error::TooLarge`], with `data` as it was.
    /// * Cost: as [`Self::fetch`].
    pub fn fetch_into(&mut self, key: &[u8], data: &mut Vec<u8>) -> Result<bool> {
        if let Some(found) = self.fetch_fast(key, data)? {
            return Ok(found);
        }
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Shared, |tdb| {
            let Some(found) = tdb.find(key, hash)? else {
                return Ok(false);
            };
            let RecordHeader {
                key_len, data_len, ..
            } = found.record;
            if data_len > tdb.max_record_len {
                return Err(Error::TooLarge(u64::from(data_len)));
            }
            let at = found.offset + RECORD_LEN + key_len;
            tdb.storage.append_to(at, data_len, data)?;
            Ok(true)
        })
    }

    /// What `look` makes of the data of `key`. It gets a copy, in a buffer that the handle keeps: the
    /// file's own bytes can change at any time. The chain is no longer locked when it runs.
    ///
    /// * Locks: the chain of the key, shared, while the data is copied.
    /// * Errors: [`Error::TooLarge`].
    /// * Cost: as [`Self::fetch`], as a rule without an allocation.
    pub fn fetch_with<T>(
        &mut self,
        key: &[u8],
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let found = self.fetch_into(key, &mut buffer);
        let seen = found.map(|found| found.then(|| look(&buffer)));
        // One record of many megabytes must not be kept for ever.
        if buffer.capacity() <= KEPT_BUFFER {
            self.buffer = buffer;
        }
        seen
    }

    /// Whether `key` exists. Locks its chain shared.
    ///
    /// * Locks: the chain of the key, shared.
    /// * Errors: none of its own.
    /// * Cost: the lock and a walk along the chain.
    pub fn exists(&mut self, key: &[u8]) -> Result<bool> {
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Shared, |tdb| {
            Ok(tdb.find(key, hash)?.is_some())
        })
    }

    /// Calls `visit` with every record until it breaks; the number of records visited.
    ///
    /// While `visit` runs no chain is locked. A record that others store or delete meanwhile is visited
    /// or not, and as it was at some moment of the traverse; every other exactly once - except beside
    /// a libtdb handle with `VOLATILE`, which reuses deleted records without looking whether somebody
    /// stands there: then records of that chain can come twice.
    ///
    /// A read traverse copies a chain's records (256 KiB or 1,024 of them at a time) and then shows
    /// them: a lock and an unlock per chain, where libtdb needs four system calls per record. A
    /// write traverse locks for every record, so that `visit` never sees one that it has deleted; the
    /// record that it sees cannot be freed.
    ///
    /// * Locks: to read, a chain shared while it is copied, and a record shared where more of its
    ///   chain is to come; to write, the transaction lock, and per record its chain exclusively and
    ///   the record shared.
    /// * Errors: what `visit` says, which ends it; [`Error::TooLarge`]; [`Error::LockOrder`] to
    ///   write with all records locked shared.
    /// * Cost: all records copied once; the heads of empty chains are only looked at.
    pub fn traverse(
        &mut self,
        kind: TraverseKind,
        mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<u64> {
        let chain_kind = match kind {
            TraverseKind::Read => {
                self.read_traverses += 1;
                LockKind::Shared
            }
            TraverseKind::Write => {
                self.writable()?;
                // With all records locked, waiting for a transaction would be a deadlock (B.3.8).
                let wait = if self.locks.all.is_some() {
                    Wait::Try
                } else {
                    self.wait
                };
                self.lock(LockName::Transaction, LockKind::Exclusive, wait)?;
                LockKind::Exclusive
            }
        };
        let result = match kind {
            TraverseKind::Read => self.traverse_batches(&mut visit),
            TraverseKind::Write => self.traverse_chains(chain_kind, &mut visit),
        };
        let unlocked = match kind {
            TraverseKind::Read => {
                self.read_traverses -= 1;
                Ok(())
            }
            TraverseKind::Write => self.unlock(LockName::Transaction),
        };
        result.and_then(|count| unlocked.map(|()| count))
    }

    /// Shows `visit` the records of one chain, under its lock, for which it waits as `wait` says. One
    /// record is copied at a time. `visit` must not use the file.
    ///
    /// * Locks: that chain, shared.
    /// * Errors: [`Error::NoChain`], [`Error::TooLarge`].
    /// * Cost: the lock, and a copy of each record.
    pub fn visit_chain(
        &mut self,
        chain: u32,
        wait: Wait,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<()> {
        if chain >= self.geometry.hash_size() {
            return Err(Error::NoChain(chain));
        }
        let name = LockName::Chain(chain);
        self.lock(name, LockKind::Shared, wait)?;
        let walked = self.walk_chain(chain, |tdb, found| {
            if found.record.kind() == RecordKind::Used {
                let RecordHeader {
                    key_len, data_len, ..
                } = found.record;
                let length = u64::from(key_len) + u64::from(data_len);
                if length > u64::from(tdb.max_record_len) {
                    return Err(Error::TooLarge(length));
                }
                let mut bytes = std::mem::take(&mut tdb.buffer);
                bytes.clear();
                let at = found.offset + RECORD_LEN;
                tdb.storage.append_to(at, key_len + data_len, &mut bytes)?;
                let (key, data) = bytes.split_at(key_len as usize);
                visit(key, data);
                if bytes.capacity() <= KEPT_BUFFER {
                    tdb.buffer = bytes;
                }
            }
            Ok(ControlFlow::<()>::Continue(()))
        });
        let unlocked = self.unlock(name);
        walked.map(|_| ()).and(unlocked)
    }

    /// The first chain from `chain` on that has records, as it was a moment ago; no lock.
    ///
    /// * Locks: none.
    /// * Errors: none of its own.
    /// * Cost: the heads up to that chain are read, 4 bytes each.
    pub fn next_used_chain(&mut self, chain: u32) -> Result<Option<u32>> {
        let mut heads = Heads::default();
        for chain in chain..self.geometry.hash_size() {
            if heads.get(self, chain)? != 0 {
                return Ok(Some(chain));
            }
        }
        Ok(None)
    }

    fn traverse_batches(
        &mut self,
        visit: &mut impl FnMut(&mut Self, &[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<u64> {
        let mut count = 0;
        let mut heads = Heads::default();
        let mut batch = Batch::default();
        for chain in 0..self.geometry.hash_size() {
            if chain != 0 && heads.get(self, chain)? == 0 {
                continue;
            }
            let mut walk = Walk::new(chain, LockKind::Shared, self.storage.size());
            loop {
                let more = match self.copy_batch(&mut walk, &mut batch) {
                    Ok(more) => more,
                    Err(error) => {
                        self.leave(walk.position)?;
                        return Err(error);
                    }
                };
                let mut at = 0;
                for (key_len, data_len) in &batch.records {
                    let (key_len, data_len) = (*key_len as usize, *data_len as usize);
                    let key = &batch.bytes[at..at + key_len];
                    let data = &batch.bytes[at + key_len..at + key_len + data_len];
                    at += key_len + data_len;
                    count += 1;
                    let flow = visit(self, key, data);
                    if !matches!(flow, Ok(ControlFlow::Continue(()))) {
                        self.leave(walk.position)?;
                        return flow.map(|_| count);
                    }
                }
                if !more {
                    break;
                }
            }
        }
        Ok(count)
    }

    /// Copies the next records of a chain. `true`: there may be more; we stand on the last of these.
    fn copy_batch(&mut self, walk: &mut Walk, batch: &mut Batch) -> Result<bool> {
        batch.bytes.clear();
        batch.records.clear();
        self.with_lock(LockName::Chain(walk.chain), walk.kind, |tdb| {
            let mut offset = tdb.traverse_from(walk)?;
            while offset != 0 {
                if !walk.guard.step(offset) {
                    tdb.restart(walk)?;
                }
                let record = tdb.read_checked(offset)?;
                match record.kind() {
                    RecordKind::Dead => {}
                    RecordKind::Used if record.payload_fits() => {
                        let payload = record.key_len + record.data_len;
                        if payload > tdb.max_record_len {
                            return Err(Error::TooLarge(u64::from(payload)));
                        }
                        let at = offset + RECORD_LEN;
                        tdb.storage.append_to(at, payload, &mut batch.bytes)?;
                        batch.records.push((record.key_len, record.data_len));
                        let full = batch.bytes.len() >= BATCH_BYTES
                            || batch.records.len() >= BATCH_RECORDS;
                        if full && record.next != 0 {
                            tdb.stand_on(walk, offset)?;
                            return Ok(true);
                        }
                    }
                    _ => return Err(tdb.storage.corrupt(offset, Fault::BadMagic(record.magic))),
                }
                offset = record.next;
            }
            let before = walk.position.take();
            tdb.leave(before)?;
            Ok(false)
        })
    }

    /// The walk's place is the record at `offset` from here on: it cannot be freed. Chain locked, so
    /// nothing can be freed between the former place and this.
    fn stand_on(&mut self, walk: &mut Walk, offset: u32) -> Result<()> {
        let before = walk.position.take();
        self.leave(before)?;
        if self.locks.all.is_none() {
            let name = LockName::Record(offset);
            self.lock_range(name, LockKind::Shared, self.wait)?;
        }
        self.positions.push(offset);
        walk.position = Some(offset);
        Ok(())
    }

    fn traverse_chains(
        &mut self,
        kind: LockKind,
        visit: &mut impl FnMut(&mut Self, &[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<u64> {
        let mut count = 0;
        let mut heads = Heads::default();
        for chain in 0..self.geometry.hash_size() {
            // The only unlocked look that libtdb allows itself too (B.8.2).
            if chain != 0 && heads.get(self, chain)? == 0 {
                continue;
            }
            let mut walk = Walk::new(chain, kind, self.storage.size());
            loop {
                let (key, data) = match self.traverse_step(&mut walk) {
                    Ok(Some(record)) => record,
                    Ok(None) => break,
                    Err(error) => {
                        self.leave(walk.position)?;
                        return Err(error);
                    }
                };
                count += 1;
                let flow = visit(self, &key, &data);
                if !matches!(flow, Ok(ControlFlow::Continue(()))) {
                    self.leave(walk.position)?;
                    return flow.map(|_| count);
                }
            }
        }
        Ok(count)
    }

    /// The next live record of a chain, on which we then stand.
    fn traverse_step(&mut self, walk: &mut Walk) -> Result<Option<Visited>> {
        self.with_lock(LockName::Chain(walk.chain), walk.kind, |tdb| {
            let mut offset = tdb.traverse_from(walk)?;
            while offset != 0 {
                if !walk.guard.step(offset) {
                    tdb.restart(walk)?;
                }
                let record = tdb.read_checked(offset)?;
                match record.kind() {
                    RecordKind::Dead => offset = record.next,
                    RecordKind::Used if record.payload_fits() => {
                        let key = tdb.payload(offset, 0, record.key_len)?;
                        let data = tdb.payload(offset, record.key_len, record.data_len)?;
                        tdb.stand_on(walk, offset)?;
                        return Ok(Some((key, data)));
                    }
                    _ => return Err(tdb.storage.corrupt(offset, Fault::BadMagic(record.magic))),
                }
            }
            let before = walk.position.take();
            tdb.leave(before)?;
            Ok(None)
        })
    }

    /// The record after the one on which we stand. Our lock on it kept it linked, perhaps dead -
    /// unless a libtdb handle with `VOLATILE` has reused it, which does not look at locks.
    fn traverse_from(&mut self, walk: &mut Walk) -> Result<u32> {
        let head = self.geometry.head(walk.chain);
        let Some(position) = walk.position else {
            return self.storage.read_word(head);
        };
        let record = self.read_checked(position)?;
        let ours = matches!(record.kind(), RecordKind::Used | RecordKind::Dead)
            && self.geometry.chain(record.full_hash) == walk.chain;
        if ours {
            return Ok(record.next);
        }
        self.restart(walk)?;
        self.storage.read_word(head)
    }

    /// The chain changed under the walk, if it is sound: go on with a new guard.
    fn restart(&mut self, walk: &mut Walk) -> Result<()> {
        self.walk_chain(walk.chain, |_, _| Ok(ControlFlow::<()>::Continue(())))?;
        walk.restarts += 1;
        if walk.restarts > MAX_RESTARTS {
            let head = self.geometry.head(walk.chain);
            return Err(self.storage.corrupt(head, Fault::Restless));
        }
        walk.guard = LoopGuard::new(self.storage.size());
        Ok(())
    }

    /// A traverse of ours leaves a record.
    fn leave(&mut self, position: Option<u32>) -> Result<()> {
        let Some(offset) = position else {
            return Ok(());
        };
        if let Some(i) = self.positions.iter().rposition(|p| *p == offset) {
            self.positions.remove(i);
        }
        if self.positions.contains(&offset) || self.locks.all.is_some() {
            return Ok(());
        }
        self.unlock_range(LockName::Record(offset))
    }
}
