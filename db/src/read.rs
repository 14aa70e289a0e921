//! Finding and fetching records, and walking over all of them (spec/database.md A.7, A.8, B.4).

use std::ops::ControlFlow;

use crate::error::{Error, Fault, Result};
use crate::format::{RECORD_LEN, RecordHeader, RecordKind};
use crate::handle::Tdb;
use crate::lock::{LockKind, LockName, Wait};
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
    /// record that others store or delete meanwhile is visited or not; every other exactly once -
    /// except beside a libtdb handle with `VOLATILE`, which reuses deleted records without looking
    /// whether somebody stands there: then records of that chain can come twice.
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
        let mut heads = Heads::default();
        for chain in 0..self.geometry.hash_size() {
            // The only unlocked look that libtdb allows itself too (B.8.2).
            if chain != 0 && heads.get(self, chain)? == 0 {
                continue;
            }
            let mut walk = Walk {
                chain,
                kind,
                position: None,
                guard: LoopGuard::new(self.storage.size()),
                restarts: 0,
            };
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
                        // The chain is locked: nothing can be freed between the two.
                        let before = walk.position.take();
                        tdb.leave(before)?;
                        if tdb.locks.all.is_none() {
                            let name = LockName::Record(offset);
                            tdb.lock_range(name, LockKind::Shared, tdb.wait)?;
                        }
                        tdb.positions.push(offset);
                        walk.position = Some(offset);
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
