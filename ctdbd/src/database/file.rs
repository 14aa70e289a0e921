//! The file of a database as its machine sees it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ctdb_db::cluster::{Cursor, Kind, Store, StoreFault, Visitor};
use ctdb_db::format::Geometry;
use ctdb_db::record::LtdbHeader;
use ctdb_db::{Error, LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, Wait};

/// How long a scan waits for a chain that a client has locked, before it lets others go first.
const CHAIN_WAIT: Duration = Duration::from_millis(1);
/// How long an operation waits for the free list, which clients hold for microseconds.
const LIST_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a file that one record takes at least, about.
const LEAST_RECORD: u64 = 64;

/// How a database's file is opened, by clients too (C.3).
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The file.
    pub path: PathBuf,
    /// Kind of the database.
    pub kind: Kind,
    /// libtdb's flags.
    pub flags: OpenFlags,
    /// `DatabaseHashSize`.
    pub hash_size: u32,
    /// `DatabaseMaxDead`.
    pub max_dead: u32,
}

impl FileOptions {
    /// The flags of a kind of database.
    pub fn flags_of(kind: Kind, mutexes: bool) -> OpenFlags {
        let shared = OpenFlags::NOSYNC
            | OpenFlags::CLEAR_IF_FIRST
            | OpenFlags::INCOMPATIBLE_HASH
            | OpenFlags::DISALLOW_NESTING;
        match kind {
            Kind::Volatile if mutexes => shared | OpenFlags::MUTEX_LOCKING,
            Kind::Volatile | Kind::Replicated => shared,
            Kind::Persistent => OpenFlags::DISALLOW_NESTING,
        }
    }

    fn options(&self, create: bool) -> OpenOptions {
        OpenOptions {
            flags: self.flags,
            create,
            hash_size: self.hash_size,
            wait: Wait::UpTo(LIST_WAIT),
            ..OpenOptions::default()
        }
    }

    /// A further handle on the file.
    pub fn again(&self) -> Result<Tdb, Error> {
        let mut tdb = Tdb::open(&self.path, &self.options(false))?;
        tdb.set_max_dead(self.max_dead);
        Ok(tdb)
    }

    /// Opens or makes the file. A volatile one is empty then: what somebody from an earlier life of
    /// the daemon still has open keeps its own, unlinked.
    pub fn open(&self) -> Result<Tdb, Error> {
        let mut tdb = Tdb::open(&self.path, &self.options(true))?;
        // The guard empties what a dead daemon leaves, but for its size.
        let grown = Geometry::new(tdb.hash_size())
            .is_some_and(|geometry| tdb.map_size() > geometry.data_start());
        if self.kind != Kind::Persistent && (grown || tdb.next_used_chain(0)?.is_some()) {
            tracing::warn!(
                file = %self.path.display(),
                "processes of an earlier time have this database open; they keep a copy of their own"
            );
            drop(tdb);
            std::fs::remove_file(&self.path).map_err(|source| Error::Io {
                doing: "remove",
                path: self.path.clone(),
                source,
            })?;
            tdb = Tdb::open(&self.path, &self.options(true))?;
        }
        tdb.set_max_dead(self.max_dead);
        Ok(tdb)
    }
}

/// The file, open.
#[derive(Debug)]
pub struct FileStore {
    tdb: Tdb,
    /// The chain that a waiting thread holds for this handle just now.
    marked: Option<u32>,
    frozen: bool,
    /// Nothing is waited for: a record is locked together with the free list, or not at all.
    hasty: bool,
    /// The free list is locked.
    list: bool,
    /// Clients want to see changes by the file's sequence number.
    counts: bool,
    value: Vec<u8>,
}

fn fault(error: &Error) -> StoreFault {
    StoreFault(error.to_string())
}

impl FileStore {
    /// Over an open file.
    pub fn new(tdb: Tdb) -> Self {
        Self {
            tdb,
            marked: None,
            frozen: false,
            hasty: false,
            list: false,
            counts: false,
            value: Vec::new(),
        }
    }

    /// The file.
    pub fn tdb(&mut self) -> &mut Tdb {
        &mut self.tdb
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.tdb.path()
    }

    /// All records are marked, or not any more.
    pub fn set_frozen(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// Whether all records are marked.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// A chain is marked, or not any more.
    pub fn set_marked(&mut self, chain: Option<u32>) {
        self.marked = chain;
    }

    /// Nothing is to be waited for from now on, or it may be again. Between two locks of records.
    pub fn set_hasty(&mut self, hasty: bool) {
        self.hasty = hasty;
    }

    /// Changes are counted from now on.
    pub fn count_changes(&mut self) {
        self.counts = true;
    }

    fn changed(&mut self) -> Result<(), StoreFault> {
        if self.counts {
            self.tdb
                .increment_sequence_number()
                .map_err(|error| fault(&error))?;
        }
        Ok(())
    }
}

impl Store for FileStore {
    fn try_lock(&mut self, key: &[u8]) -> Result<bool, StoreFault> {
        // Under a mark no other chain can be had: a waiting thread gets it afterwards.
        if !self.frozen
            && self
                .marked
                .is_some_and(|chain| chain != self.tdb.chain_of(key))
        {
            return Ok(false);
        }
        match self.tdb.chain_lock(key, LockKind::Exclusive, Wait::Try) {
            Ok(()) => {}
            Err(Error::Busy { .. }) => return Ok(false),
            Err(error) => return Err(fault(&error)),
        }
        if self.hasty && !self.frozen && !self.list {
            match self.tdb.try_free_list() {
                Ok(()) => self.list = true,
                Err(error) => {
                    self.unlock(key);
                    return match error {
                        Error::Busy { .. } => Ok(false),
                        error => Err(fault(&error)),
                    };
                }
            }
        }
        Ok(true)
    }

    fn unlock(&mut self, key: &[u8]) {
        if std::mem::take(&mut self.list)
            && let Err(error) = self.tdb.unlock_free_list()
        {
            tracing::error!(file = %self.tdb.path().display(), %error, "the free list stays locked");
        }
        if let Err(error) = self.tdb.chain_unlock(key) {
            tracing::error!(file = %self.tdb.path().display(), %error, "a record's lock stays");
        }
    }

    fn read(&mut self, key: &[u8], data: &mut Vec<u8>) -> Result<Option<LtdbHeader>, StoreFault> {
        data.clear();
        self.value.clear();
        if !self
            .tdb
            .fetch_into(key, &mut self.value)
            .map_err(|error| fault(&error))?
        {
            return Ok(None);
        }
        Ok(LtdbHeader::split(&self.value).map(|(header, rest)| {
            data.extend_from_slice(rest);
            header
        }))
    }

    fn write(&mut self, key: &[u8], header: &LtdbHeader, data: &[u8]) -> Result<(), StoreFault> {
        let value = header.join(data);
        self.tdb
            .store(key, &value, StoreMode::Replace)
            .map_err(|error| fault(&error))?;
        self.changed()
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StoreFault> {
        match self.tdb.delete(key) {
            Ok(()) => self.changed(),
            Err(Error::NotFound) => Ok(()),
            Err(error) => Err(fault(&error)),
        }
    }

    fn scan(
        &mut self,
        cursor: &mut Cursor,
        budget: usize,
        each: &mut Visitor<'_>,
    ) -> Result<bool, StoreFault> {
        let wait = if self.frozen {
            Wait::Try
        } else {
            Wait::UpTo(CHAIN_WAIT)
        };
        let mut seen = 0;
        while seen < budget {
            let Ok(chain) = u32::try_from(cursor.0) else {
                return Ok(true);
            };
            // The first one is always looked at: that also sees what a crash left.
            let next = if chain == 0 {
                Some(0)
            } else {
                self.tdb
                    .next_used_chain(chain)
                    .map_err(|error| fault(&error))?
            };
            let Some(next) = next else {
                *cursor = Cursor(u64::MAX);
                return Ok(true);
            };
            let visited = self.tdb.visit_chain(next, wait, &mut |key, value| {
                seen += 1;
                if let Some((header, data)) = LtdbHeader::split(value) {
                    each(key, &header, data);
                }
            });
            match visited {
                Ok(()) => *cursor = Cursor(u64::from(next) + 1),
                Err(Error::Busy { .. }) => {
                    *cursor = Cursor(u64::from(next));
                    return Ok(false);
                }
                Err(error) => return Err(fault(&error)),
            }
        }
        Ok(false)
    }

    fn records(&mut self) -> u64 {
        u64::from(self.tdb.map_size()).saturating_sub(4 * u64::from(self.tdb.hash_size()))
            / LEAST_RECORD
    }

    fn wipe(&mut self) -> Result<(), StoreFault> {
        self.tdb.wipe_all().map_err(|error| fault(&error))?;
        self.changed()
    }

    fn sequence(&mut self) -> u32 {
        // Only a hint for clients: an unreadable file shows elsewhere.
        self.tdb.sequence_number().unwrap_or(0)
    }

    fn raise_sequence(&mut self) {
        if let Err(error) = self.tdb.increment_sequence_number() {
            tracing::warn!(file = %self.tdb.path().display(), %error, "a change is not counted");
        }
    }
}
