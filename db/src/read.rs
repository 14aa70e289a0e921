//! Finding and fetching records, and walking over all of them (spec/database.md A.7, A.8, B.4).

use std::ops::ControlFlow;

use crate::error::{Error, Fault, Result};
use crate::format::{RECORD_LEN, RecordHeader, RecordKind};
use crate::handle::{LoopGuard, Tdb};
use crate::lock::{LockKind, LockName, Wait};

/// A record and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) offset: u32,
    pub(crate) record: RecordHeader,
    /// Offset of the word that leads to the record.
    pub(crate) link: u32,
}

/// Offset, key and data of a visited record.
type Visited = (u32, Vec<u8>, Vec<u8>);

/// Whether a traverse may change records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraverseKind {
    /// Locks shared; the handle refuses changes meanwhile.
    Read,
    /// Takes the transaction lock, chains exclusively; the callback may change anything.
    Write,
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

    /// Whether the record's key is `key`.
    fn key_is(&mut self, found: &Found, key: &[u8]) -> Result<bool> {
        let mut buf = [0; 256];
        let mut at = found.offset + RECORD_LEN;
        for part in key.chunks(buf.len()) {
            let buf = &mut buf[..part.len()];
            self.storage.read(at, buf)?;
            if buf != part {
                return Ok(false);
            }
            at += part.len() as u32;
        }
        Ok(true)
    }

    /// The record of `key`. Chain locked.
    pub(crate) fn find(&mut self, key: &[u8], hash: u32) -> Result<Option<Found>> {
        self.walk_chain(self.geometry.chain(hash), |tdb, found| {
            let record = &found.record;
            let same = record.kind() == RecordKind::Used
                && record.full_hash == hash
                && record.key_len as usize == key.len()
                && tdb.key_is(&found, key)?;
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
    pub fn fetch(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Shared, |tdb| {
            match tdb.find(key, hash)? {
                Some(found) => tdb.data_of(&found).map(Some),
                None => Ok(None),
            }
        })
    }

    /// Whether `key` exists. Locks its chain shared.
    pub fn exists(&mut self, key: &[u8]) -> Result<bool> {
        let hash = self.hash.hash(key);
        let chain = LockName::Chain(self.geometry.chain(hash));
        self.with_lock(chain, LockKind::Shared, |tdb| {
            Ok(tdb.find(key, hash)?.is_some())
        })
    }

    /// Calls `visit` with every record until it breaks; the number of records visited.
    ///
    /// While `visit` runs no chain is locked, but the record that it sees cannot be freed. A
    /// record that others store or delete meanwhile is visited or not; every other exactly once.
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
        let result = self.traverse_chains(chain_kind, &mut visit);
        let unlocked = match kind {
            TraverseKind::Read => {
                self.read_traverses -= 1;
                Ok(())
            }
            TraverseKind::Write => self.unlock(LockName::Transaction),
        };
        result.and_then(|count| unlocked.map(|()| count))
    }

    fn traverse_chains(
        &mut self,
        kind: LockKind,
        visit: &mut impl FnMut(&mut Self, &[u8], &[u8]) -> Result<ControlFlow<()>>,
    ) -> Result<u64> {
        let mut count = 0;
        for chain in 0..self.geometry.hash_size() {
            // The only unlocked look that libtdb allows itself too (B.8.2).
            if chain != 0 && self.storage.read_word(self.geometry.head(chain))? == 0 {
                continue;
            }
            let mut position = None;
            let mut guard = LoopGuard::new(self.storage.size());
            loop {
                let step = self.traverse_step(chain, kind, position, &mut guard);
                let (offset, key, data) = match step {
                    Ok(Some(record)) => record,
                    Ok(None) => break,
                    Err(error) => {
                        if let Some(offset) = position {
                            self.leave(offset)?;
                        }
                        return Err(error);
                    }
                };
                position = Some(offset);
                count += 1;
                let flow = visit(self, &key, &data);
                if !matches!(flow, Ok(ControlFlow::Continue(()))) {
                    self.leave(offset)?;
                    return flow.map(|_| count);
                }
            }
        }
        Ok(count)
    }

    /// The next live record of a chain after `from`, on which we then stand.
    fn traverse_step(
        &mut self,
        chain: u32,
        kind: LockKind,
        from: Option<u32>,
        guard: &mut LoopGuard,
    ) -> Result<Option<Visited>> {
        self.with_lock(LockName::Chain(chain), kind, |tdb| {
            let mut offset = match from {
                // Our lock on it kept it linked, perhaps dead.
                Some(from) => tdb.read_checked(from)?.next,
                None => tdb.storage.read_word(tdb.geometry.head(chain))?,
            };
            while offset != 0 {
                if !guard.step(offset) {
                    return Err(tdb.storage.corrupt(offset, Fault::Cycle));
                }
                let record = tdb.read_checked(offset)?;
                match record.kind() {
                    RecordKind::Dead => offset = record.next,
                    RecordKind::Used if record.payload_fits() => {
                        let key = tdb.payload(offset, 0, record.key_len)?;
                        let data = tdb.payload(offset, record.key_len, record.data_len)?;
                        if tdb.locks.all.is_none() {
                            let name = LockName::Record(offset);
                            tdb.lock_range(name, LockKind::Shared, tdb.wait)?;
                        }
                        tdb.positions.push(offset);
                        if let Some(from) = from {
                            tdb.leave(from)?;
                        }
                        return Ok(Some((offset, key, data)));
                    }
                    _ => return Err(tdb.storage.corrupt(offset, Fault::BadMagic(record.magic))),
                }
            }
            if let Some(from) = from {
                tdb.leave(from)?;
            }
            Ok(None)
        })
    }

    /// A traverse of ours leaves a record.
    fn leave(&mut self, offset: u32) -> Result<()> {
        if let Some(i) = self.positions.iter().rposition(|p| *p == offset) {
            self.positions.remove(i);
        }
        if self.positions.contains(&offset) || self.locks.all.is_some() {
            return Ok(());
        }
        self.unlock_range(LockName::Record(offset))
    }
}
