//! What the machines need of a database file.

use crate::record::LtdbHeader;

/// Why a file did not do what was asked. The engine's error as text: the machines only pass it on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreFault(pub String);

/// Where a scan stands. The store decides what the number means; 0 is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(pub u64);

/// Is shown the key, header and data of a record.
pub type Visitor<'a> = dyn FnMut(&[u8], &LtdbHeader, &[u8]) + 'a;

/// One database file, used by one thread. No method waits for anybody.
///
/// While the daemon holds the lock on all records (between [`Effect::Freeze`](super::Effect::Freeze)
/// and [`Effect::Thaw`](super::Effect::Thaw)), or has marked a chain that a waiter locked for it,
/// `try_lock` succeeds.
pub trait Store {
    /// Tries the lock of the chain of `key`; `false` if somebody else holds it.
    fn try_lock(&mut self, key: &[u8]) -> Result<bool, StoreFault>;

    /// Gives it back.
    fn unlock(&mut self, key: &[u8]);

    /// Reads the record of `key` under its lock: the header, and the user data into `data`. `None`
    /// if there is none, or one that is shorter than a header.
    fn read(&mut self, key: &[u8], data: &mut Vec<u8>) -> Result<Option<LtdbHeader>, StoreFault>;

    /// Stores header and data under the record's lock.
    fn write(&mut self, key: &[u8], header: &LtdbHeader, data: &[u8]) -> Result<(), StoreFault>;

    /// Removes the record under its lock; fine if it does not exist.
    fn remove(&mut self, key: &[u8]) -> Result<(), StoreFault>;

    /// Shows up to `budget` records from `cursor` on and moves it; `true` at the end. Records that
    /// are there throughout are seen at least once. Locks at most one chain at a time, and passes
    /// over none because it is locked.
    fn scan(
        &mut self,
        cursor: &mut Cursor,
        budget: usize,
        each: &mut Visitor<'_>,
    ) -> Result<bool, StoreFault>;

    /// Number of records, or a guess that is not far too low.
    fn records(&mut self) -> u64;

    /// Removes all records. Only under the lock on all records.
    fn wipe(&mut self) -> Result<(), StoreFault>;

    /// The file's own change counter (A.8.1).
    fn sequence(&mut self) -> u32;

    /// Counts a change that another node reported (D.15).
    fn raise_sequence(&mut self);
}
