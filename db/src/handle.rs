//! The handle of a database.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::format::{ByteOrder, Geometry};
use crate::hash::HashKind;
use crate::lock::{LockTable, Wait};
use crate::mutex::MutexArea;
use crate::open::OpenFlags;
use crate::storage::Storage;
use crate::transaction::Running;

/// An open database.
///
/// One handle is one lock owner, used by one thread at a time (every operation takes `&mut self`;
/// the handle may move between threads). Open the file once per independent user: handles of one
/// process exclude each other like processes do.
#[derive(Debug)]
pub struct Tdb {
    pub(crate) storage: Storage,
    pub(crate) geometry: Geometry,
    pub(crate) hash: HashKind,
    pub(crate) flags: OpenFlags,
    pub(crate) read_only: bool,
    pub(crate) max_dead: u32,
    pub(crate) max_record_len: u32,
    pub(crate) wait: Wait,
    pub(crate) locks: LockTable,
    /// Records on which traverses of this handle stand, each with a shared record lock.
    pub(crate) positions: Vec<u32>,
    /// Read traverses running: no changes meanwhile.
    pub(crate) read_traverses: u32,
    pub(crate) running: Option<Running>,
    /// For [`Tdb::fetch_with`].
    pub(crate) buffer: Vec<u8>,
    /// The mutex area, if chains are locked by mutexes.
    pub(crate) mutexes: Option<MutexArea>,
    /// Ends every wait of this handle when set.
    pub(crate) cancelled: Option<Arc<AtomicBool>>,
}

impl Drop for Tdb {
    fn drop(&mut self) {
        self.abandon_mutexes();
    }
}

impl Tdb {
    /// Path of the file.
    pub fn path(&self) -> &Path {
        self.storage.path()
    }

    /// Number of hash chains.
    pub fn hash_size(&self) -> u32 {
        self.geometry.hash_size()
    }

    /// The file's hash function.
    pub fn hash_kind(&self) -> HashKind {
        self.hash
    }

    /// Byte order of the file's words.
    pub fn byte_order(&self) -> ByteOrder {
        self.storage.order()
    }

    /// Logical size in bytes, as last seen.
    pub fn map_size(&self) -> u32 {
        self.storage.size()
    }

    /// The flags in force.
    pub fn flags(&self) -> OpenFlags {
        self.flags
    }

    /// How many dead records a chain may keep, 0 by default, 5 with `VOLATILE`.
    pub fn max_dead(&self) -> u32 {
        self.max_dead
    }

    /// Sets [`Self::max_dead`], a property of this handle (`DatabaseMaxDead`).
    pub fn set_max_dead(&mut self, max_dead: u32) {
        self.max_dead = max_dead;
    }

    /// How long the next operations wait for locks.
    pub fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    /// The bytes of a database in memory.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.storage.memory()
    }

    /// The change counter. No lock.
    ///
    /// * Locks: none.
    /// * Errors: none of its own.
    /// * Cost: one word read.
    pub fn sequence_number(&mut self) -> Result<u32> {
        self.storage
            .read_word(crate::format::field::SEQUENCE_NUMBER as u32)
    }

    /// Whether a transaction was ever committed to the file: then it has a recovery area. No lock.
    ///
    /// * Locks: none.
    /// * Errors: none of its own.
    /// * Cost: one word read.
    pub fn has_recovery_area(&mut self) -> Result<bool> {
        self.storage
            .read_word(crate::format::field::RECOVERY_START as u32)
            .map(|offset| offset != 0)
    }

    /// The chain of `key`.
    pub fn chain_of(&self, key: &[u8]) -> u32 {
        self.geometry.chain(self.hash.hash(key))
    }

    /// Whether changes are allowed.
    pub(crate) fn writable(&self) -> Result<()> {
        if self.read_only || self.read_traverses > 0 {
            return Err(Error::ReadOnly);
        }
        if self.running.is_some_and(Running::is_prepared) {
            return Err(Error::Prepared);
        }
        Ok(())
    }
}
