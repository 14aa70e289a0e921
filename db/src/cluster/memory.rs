//! A store in memory, for the simulator and for tests.

use std::collections::{BTreeMap, BTreeSet};

use super::message::{Digest, Record};
use super::store::{Cursor, Store, StoreFault, Visitor};
use super::types::Key;
use crate::record::LtdbHeader;

/// A record in memory.
pub type Stored = (LtdbHeader, Vec<u8>);

/// Records in a map, and the locks that a test's clients hold. The daemon's own locks last only
/// while it handles an input, so only others' are to be known.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    /// The records.
    pub records: BTreeMap<Key, Stored>,
    /// Keys whose chain somebody else has locked.
    pub locked: BTreeSet<Key>,
    /// All records are locked by the daemon.
    pub frozen: bool,
    /// The next accesses fail.
    pub broken: bool,
    /// Counts changes.
    pub sequence: u32,
    held: BTreeSet<Key>,
}

impl MemoryStore {
    /// The digest of the content.
    pub fn digest(&self) -> u128 {
        let mut digest = Digest::default();
        for (key, (_, data)) in &self.records {
            digest.add(key, data);
        }
        digest.0
    }

    /// Puts a record in without a lock, as a test does.
    pub fn put(&mut self, record: &Record) {
        self.records
            .insert(record.key.clone(), (record.header(), record.data.clone()));
        self.sequence += 1;
    }

    fn works(&self) -> Result<(), StoreFault> {
        if self.broken {
            Err(StoreFault("the file is damaged".to_owned()))
        } else {
            Ok(())
        }
    }
}

impl Store for MemoryStore {
    fn try_lock(&mut self, key: &[u8]) -> Result<bool, StoreFault> {
        self.works()?;
        if self.locked.contains(key) {
            assert!(!self.frozen, "a client holds a lock of a frozen database");
            return Ok(false);
        }
        assert!(self.held.insert(key.to_vec()), "locked twice");
        Ok(true)
    }

    fn unlock(&mut self, key: &[u8]) {
        assert!(self.held.remove(key), "unlocked without a lock");
    }

    fn read(&mut self, key: &[u8], data: &mut Vec<u8>) -> Result<Option<LtdbHeader>, StoreFault> {
        self.works()?;
        assert!(
            self.frozen || self.held.contains(key),
            "read without a lock"
        );
        data.clear();
        Ok(self.records.get(key).map(|(header, stored)| {
            data.extend_from_slice(stored);
            *header
        }))
    }

    fn write(&mut self, key: &[u8], header: &LtdbHeader, data: &[u8]) -> Result<(), StoreFault> {
        self.works()?;
        assert!(
            self.frozen || self.held.contains(key),
            "written without a lock"
        );
        self.records.insert(key.to_vec(), (*header, data.to_vec()));
        self.sequence += 1;
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StoreFault> {
        self.works()?;
        assert!(
            self.frozen || self.held.contains(key),
            "removed without a lock"
        );
        self.records.remove(key);
        self.sequence += 1;
        Ok(())
    }

    fn scan(
        &mut self,
        cursor: &mut Cursor,
        budget: usize,
        each: &mut Visitor<'_>,
    ) -> Result<bool, StoreFault> {
        self.works()?;
        // By position: what is removed between two pieces moves others before the cursor, so the
        // pieces overlap by going back to the start of a bucket of the hash, as a file does.
        let mut buckets: BTreeMap<u64, Vec<&Key>> = BTreeMap::new();
        for key in self.records.keys() {
            buckets
                .entry(u64::from(crate::hash::jenkins(key)))
                .or_default()
                .push(key);
        }
        let mut seen = 0;
        for (bucket, keys) in buckets.range(cursor.0..) {
            if seen >= budget {
                *cursor = Cursor(*bucket);
                return Ok(false);
            }
            for key in keys {
                let (header, data) = &self.records[*key];
                each(key, header, data);
                seen += 1;
            }
        }
        *cursor = Cursor(u64::MAX);
        Ok(true)
    }

    fn records(&mut self) -> u64 {
        self.records.len() as u64
    }

    fn wipe(&mut self) -> Result<(), StoreFault> {
        self.works()?;
        assert!(self.frozen, "wiped without the lock on all records");
        self.records.clear();
        Ok(())
    }

    fn sequence(&mut self) -> u32 {
        self.sequence
    }

    fn raise_sequence(&mut self) {
        self.sequence += 1;
    }
}
