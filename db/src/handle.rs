//! The handle of a database: options, opening, locks (spec/database.md A.5, A.6, B).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Fault, Result};
use crate::format::{
    ByteOrder, DEFAULT_HASH_SIZE, Geometry, HEADER_LEN, Header, HeaderFault, RECORD_LEN,
    RecordHeader,
};
use crate::hash::HashKind;
use crate::lock::{
    HeldAll, LockKind, LockName, LockTable, Wait, acquire, acquire_gradually, chains_range,
    records_range, release,
};
use crate::storage::{Backing, Storage};
use crate::transaction::Running;

bitflags::bitflags! {
    /// Open flags of libtdb, with its numbers (A.5).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// Clear the file unless somebody else has it open.
        const CLEAR_IF_FIRST = 0x001;
        /// Memory only; see [`Tdb::internal`].
        const INTERNAL = 0x002;
        /// Take no locks.
        const NOLOCK = 0x004;
        /// Accepted; this engine maps nothing.
        const NOMMAP = 0x008;
        /// Create in the other byte order.
        const CONVERT = 0x010;
        /// Commit without waiting for the medium.
        const NOSYNC = 0x040;
        /// Count changes of this handle in the header.
        const SEQNUM = 0x080;
        /// Keep up to 5 dead records per chain.
        const VOLATILE = 0x100;
        /// A transaction may be started inside another (the default).
        const ALLOW_NESTING = 0x200;
        /// It may not.
        const DISALLOW_NESTING = 0x400;
        /// Create with the Jenkins hash.
        const INCOMPATIBLE_HASH = 0x800;
        /// Robust mutexes instead of chain locks: refused, not built yet.
        const MUTEX_LOCKING = 0x1000;
    }
}

/// How to open a database.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// libtdb's flags.
    pub flags: OpenFlags,
    /// Create the file if it does not exist, or is no more than the beginning of a new one. (libtdb
    /// overwrites whatever does not begin with the magic.)
    pub create: bool,
    /// Open for reading: no lock is taken, so what is read may be half written.
    pub read_only: bool,
    /// Chains of a new file, 0: 131. An existing file keeps its own.
    pub hash_size: u32,
    /// Permissions of a new file.
    pub mode: u32,
    /// How long operations wait for a lock, opening included. Default 30 s.
    pub wait: Wait,
    /// Largest record, key and data, that is read into memory or stored. Default 256 MiB.
    pub max_record_len: u32,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            flags: OpenFlags::empty(),
            create: false,
            read_only: false,
            hash_size: 0,
            mode: 0o600,
            wait: Wait::UpTo(Duration::from_secs(30)),
            max_record_len: 256 << 20,
        }
    }
}

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
}

/// Rules out contradicting flags and adds the implied ones.
fn effective_flags(options: &OpenOptions) -> Result<OpenFlags> {
    let mut flags = options.flags;
    if options.read_only {
        flags.remove(OpenFlags::CLEAR_IF_FIRST | OpenFlags::MUTEX_LOCKING);
        flags.insert(OpenFlags::NOLOCK);
    }
    let nesting = OpenFlags::ALLOW_NESTING | OpenFlags::DISALLOW_NESTING;
    if flags.contains(nesting)
        || flags.contains(OpenFlags::MUTEX_LOCKING)
        || flags.contains(OpenFlags::INTERNAL)
    {
        return Err(Error::BadFlags(flags.bits()));
    }
    if std::env::var_os("TDB_NO_FSYNC").is_some() {
        flags.insert(OpenFlags::NOSYNC);
    }
    Ok(flags)
}

/// The file while it is being opened.
struct Opening<'a> {
    file: File,
    path: &'a Path,
    options: &'a OpenOptions,
    flags: OpenFlags,
}

impl Opening<'_> {
    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = self.path.to_path_buf();
        move |source| Error::Io {
            doing,
            path,
            source,
        }
    }

    fn locked(&self) -> bool {
        !self.flags.contains(OpenFlags::NOLOCK)
    }

    fn try_lock(&self, name: LockName, kind: LockKind, wait: Wait) -> Result<bool> {
        if !self.locked() {
            return Ok(true);
        }
        acquire(&self.file, name.range(), kind, wait.deadline()).map_err(self.io("lock"))
    }

    fn lock(&self, name: LockName, kind: LockKind) -> Result<()> {
        if self.try_lock(name, kind, self.options.wait)? {
            return Ok(());
        }
        Err(Error::Busy {
            path: self.path.to_path_buf(),
            lock: name,
        })
    }

    fn unlock(&self, name: LockName) -> Result<()> {
        if !self.locked() {
            return Ok(());
        }
        release(&self.file, name.range()).map_err(self.io("unlock"))
    }

    /// Truncates and writes an empty database (A.6 step 4).
    fn create(&self) -> Result<()> {
        let (header, geometry) = new_header(self.options, self.flags, self.path)?;
        self.file.set_len(0).map_err(self.io("truncate"))?;
        // The heads are written, not left as a hole: a full disk must show here.
        let zeros = [0u8; 8192];
        let (mut at, end) = (u64::from(HEADER_LEN), u64::from(geometry.data_start()));
        while at < end {
            let piece = (end - at).min(zeros.len() as u64) as usize;
            self.file
                .write_all_at(&zeros[..piece], at)
                .map_err(self.io("create"))?;
            at += piece as u64;
        }
        self.file
            .write_all_at(&header.encode(), 0)
            .map_err(self.io("create"))
    }

    /// The header, `None` if there is none yet.
    fn read_header(&self) -> Result<Option<Header>> {
        let mut bytes = [0; HEADER_LEN as usize];
        let fault = match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => match Header::decode(&bytes) {
                Ok(header) => return Ok(Some(header)),
                Err(fault) => fault,
            },
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => HeaderFault::Short,
            Err(error) => return Err(self.io("read")(error)),
        };
        // libtdb makes a new database of anything without the magic. Here only of what can be no
        // more than the beginning of one: a wrong path or a damaged first page costs no data.
        let blank = bytes.iter().all(|b| *b == 0);
        let is_new = fault == HeaderFault::Short || (fault == HeaderFault::Magic && blank);
        if is_new && self.options.create && !self.options.read_only {
            return Ok(None);
        }
        Err(Error::Header {
            path: self.path.to_path_buf(),
            fault,
        })
    }
}

/// The header that `options` ask for in a new file.
fn new_header(options: &OpenOptions, flags: OpenFlags, path: &Path) -> Result<(Header, Geometry)> {
    let hash_size = if options.hash_size == 0 {
        DEFAULT_HASH_SIZE
    } else {
        options.hash_size
    };
    let geometry = Geometry::new(hash_size).ok_or_else(|| Error::Header {
        path: path.to_path_buf(),
        fault: HeaderFault::HashSize(hash_size),
    })?;
    let order = match (ByteOrder::NATIVE, flags.contains(OpenFlags::CONVERT)) {
        (order, false) => order,
        (ByteOrder::Little, true) => ByteOrder::Big,
        (ByteOrder::Big, true) => ByteOrder::Little,
    };
    let hash = if flags.contains(OpenFlags::INCOMPATIBLE_HASH) {
        HashKind::Jenkins
    } else {
        HashKind::Old
    };
    Ok((Header::new(order, hash, hash_size), geometry))
}

impl Tdb {
    /// Opens or creates the file at `path` (A.6). Waits for the open lock; recovers what a crashed
    /// commit left. Cost: some ten system calls.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let flags = effective_flags(options)?;
        let file = File::options()
            .read(true)
            .write(!options.read_only)
            .create(options.create && !options.read_only)
            .mode(options.mode)
            // A FIFO or device in place of the file must not make us wait.
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
            .open(path)
            .map_err(|source| Error::Io {
                doing: "open",
                path: path.to_path_buf(),
                source,
            })?;
        let opening = Opening {
            file,
            path,
            options,
            flags,
        };
        let metadata = opening
            .file
            .metadata()
            .map_err(opening.io("ask the size of"))?;
        if !metadata.is_file() {
            return Err(Error::NotAFile {
                path: path.to_path_buf(),
            });
        }
        opening.lock(LockName::Open, LockKind::Exclusive)?;
        // From here every way out closes the file, and with it gives up its locks.
        let clear = flags.contains(OpenFlags::CLEAR_IF_FIRST);
        let first = clear && opening.try_lock(LockName::Active, LockKind::Exclusive, Wait::Try)?;
        if first {
            opening.lock(LockName::AllRecords, LockKind::Exclusive)?;
            opening.create()?;
            opening.unlock(LockName::AllRecords)?;
        }
        let header = if let Some(header) = opening.read_header()? {
            header
        } else {
            opening.create()?;
            opening.read_header()?.ok_or_else(|| Error::Header {
                path: path.to_path_buf(),
                fault: HeaderFault::Short,
            })?
        };
        if header.has_mutexes() && !flags.contains(OpenFlags::NOLOCK) {
            return Err(Error::MutexFile {
                path: path.to_path_buf(),
            });
        }
        if clear {
            if first {
                opening.unlock(LockName::Active)?;
            }
            opening.lock(LockName::Active, LockKind::Shared)?;
        }
        let mut tdb = Self::assemble(Backing::File(opening.file), path, &header, options, flags)?;
        if !tdb.read_only {
            tdb.recover_if_needed()?;
        }
        tdb.unlock_range(LockName::Open)?;
        Ok(tdb)
    }

    /// An empty database in memory, with the Jenkins hash unless `options` say otherwise.
    pub fn internal(options: &OpenOptions) -> Result<Self> {
        let flags = options.flags | OpenFlags::NOLOCK | OpenFlags::INCOMPATIBLE_HASH;
        let path = PathBuf::from("(memory)");
        let (header, geometry) = new_header(options, flags, &path)?;
        let mut bytes = Vec::new();
        let len = geometry.data_start() as usize;
        bytes
            .try_reserve_exact(len)
            .map_err(|_| Error::NoMemory(len))?;
        bytes.resize(len, 0);
        bytes[..HEADER_LEN as usize].copy_from_slice(&header.encode());
        Self::assemble(Backing::Memory(bytes), &path, &header, options, flags)
    }

    /// A database in memory from the bytes of a file, whatever they are. Changes stay in memory.
    pub fn from_bytes(bytes: Vec<u8>, options: &OpenOptions) -> Result<Self> {
        let path = PathBuf::from("(memory)");
        let header = Header::decode(&bytes).map_err(|fault| Error::Header {
            path: path.clone(),
            fault,
        })?;
        let flags = options.flags | OpenFlags::NOLOCK;
        Self::assemble(Backing::Memory(bytes), &path, &header, options, flags)
    }

    pub(crate) fn assemble(
        backing: Backing,
        path: &Path,
        header: &Header,
        options: &OpenOptions,
        flags: OpenFlags,
    ) -> Result<Self> {
        let refuse = |fault| Error::Header {
            path: path.to_path_buf(),
            fault,
        };
        let geometry = Geometry::new(header.hash_size)
            .ok_or(refuse(HeaderFault::HashSize(header.hash_size)))?;
        let hash = header.hash().map_err(refuse)?;
        let mut storage = Storage::new(backing, path, header.mutex_size, header.order)?;
        storage.covers(0, geometry.data_start())?;
        if header.has_mutexes() {
            // The second header is the one that counts from here on.
            let mut bytes = [0; HEADER_LEN as usize];
            storage.read(0, &mut bytes)?;
            let second = Header::decode(&bytes).map_err(refuse)?;
            if second.hash_size != header.hash_size || second.order != header.order {
                return Err(storage.corrupt(0, Fault::HeaderChanged));
            }
        }
        Ok(Self {
            storage,
            geometry,
            hash,
            flags,
            read_only: options.read_only,
            max_dead: if flags.contains(OpenFlags::VOLATILE) {
                5
            } else {
                0
            },
            max_record_len: options.max_record_len,
            wait: options.wait,
            locks: LockTable::default(),
            positions: Vec::new(),
            read_traverses: 0,
            running: None,
        })
    }

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
    pub fn sequence_number(&mut self) -> Result<u32> {
        self.storage
            .read_word(crate::format::field::SEQUENCE_NUMBER as u32)
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
        Ok(())
    }

    fn busy(&self, lock: LockName) -> Error {
        Error::Busy {
            path: self.path().to_path_buf(),
            lock,
        }
    }

    /// The file to lock, if locks are taken at all.
    fn lock_file(&self) -> Option<&File> {
        if self.flags.contains(OpenFlags::NOLOCK) {
            None
        } else {
            self.storage.file()
        }
    }

    /// Takes the bytes of a lock, without counting.
    pub(crate) fn lock_range(&self, name: LockName, kind: LockKind, wait: Wait) -> Result<()> {
        let Some(file) = self.lock_file() else {
            return Ok(());
        };
        match acquire(file, name.range(), kind, wait.deadline()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.busy(name)),
            Err(error) => Err(self.storage.io_error("lock", error)),
        }
    }

    /// Gives the bytes of a lock back.
    pub(crate) fn unlock_range(&self, name: LockName) -> Result<()> {
        let Some(file) = self.lock_file() else {
            return Ok(());
        };
        release(file, name.range()).map_err(|e| self.storage.io_error("unlock", e))
    }

    /// Takes or counts a lock (B.2). The first lock on data triggers recovery if a commit crashed.
    pub(crate) fn lock(&mut self, name: LockName, kind: LockKind, wait: Wait) -> Result<()> {
        let on_data = matches!(name, LockName::Chain(_) | LockName::Freelist);
        if on_data && let Some(all) = self.locks.all {
            return if all.kind.covers(kind) || all.upgradable {
                Ok(())
            } else {
                Err(Error::LockOrder { lock: name })
            };
        }
        if let Some(held) = self.locks.find(name) {
            if held.kind.covers(kind) {
                held.count += 1;
                return Ok(());
            }
            self.lock_range(name, kind, wait)?;
            if let Some(held) = self.locks.find(name) {
                held.kind = kind;
                held.count += 1;
            }
            return Ok(());
        }
        let first = on_data && !self.locks.holds_data();
        // A recovery lets others in between, who may crash again: a few rounds, then give up.
        for _ in 0..4 {
            self.lock_range(name, kind, wait)?;
            self.locks.insert(name, kind);
            if !first {
                return Ok(());
            }
            match self.needs_recovery() {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    self.locks.remove(name);
                    self.unlock_range(name)?;
                    self.recover_lazily()?;
                }
                Err(error) => {
                    self.locks.remove(name);
                    self.unlock_range(name)?;
                    return Err(error);
                }
            }
        }
        Err(self.busy(name))
    }

    /// Uncounts a lock, gives it back with the last count.
    pub(crate) fn unlock(&mut self, name: LockName) -> Result<()> {
        let Some(held) = self.locks.find(name) else {
            let on_data = matches!(name, LockName::Chain(_) | LockName::Freelist);
            return if on_data && self.locks.all.is_some() {
                Ok(())
            } else {
                Err(Error::NotLocked { lock: name })
            };
        };
        held.count -= 1;
        if held.count > 0 {
            return Ok(());
        }
        self.locks.remove(name);
        self.unlock_range(name)
    }

    /// Runs `work` with a lock, which is given back whatever happens.
    pub(crate) fn with_lock<T>(
        &mut self,
        name: LockName,
        kind: LockKind,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.lock(name, kind, self.wait)?;
        let result = work(self);
        let unlocked = self.unlock(name);
        result.and_then(|value| unlocked.map(|()| value))
    }

    /// Takes the lock on all records (B.2, B.4).
    pub(crate) fn lock_all_as(
        &mut self,
        kind: LockKind,
        upgradable: bool,
        wait: Wait,
    ) -> Result<()> {
        let lock = LockName::AllRecords;
        if let Some(all) = &mut self.locks.all {
            if all.kind == kind && !upgradable {
                all.count += 1;
                return Ok(());
            }
            return Err(Error::LockOrder { lock });
        }
        if self.locks.holds_data() {
            return Err(Error::LockOrder { lock });
        }
        for _ in 0..4 {
            if let Some(file) = self.lock_file() {
                let until = wait.deadline();
                let all = acquire_gradually(file, chains_range(self.geometry), kind, until)
                    .and_then(|got| {
                        Ok(got && acquire(file, records_range(self.geometry), kind, until)?)
                    });
                match all {
                    Ok(true) => {}
                    Ok(false) => {
                        self.release_all_bytes()?;
                        return Err(self.busy(lock));
                    }
                    Err(error) => {
                        self.release_all_bytes()?;
                        return Err(self.storage.io_error("lock", error));
                    }
                }
            }
            self.locks.all = Some(HeldAll {
                kind,
                count: 1,
                upgradable,
            });
            match self.needs_recovery() {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    self.locks.all = None;
                    self.release_all_bytes()?;
                    self.recover_lazily()?;
                }
                Err(error) => {
                    self.locks.all = None;
                    self.release_all_bytes()?;
                    return Err(error);
                }
            }
        }
        Err(self.busy(lock))
    }

    /// Gives back `[168, infinity)`, and takes the record locks of our own traverses again, which
    /// were part of it.
    pub(crate) fn release_all_bytes(&self) -> Result<()> {
        self.unlock_range(LockName::AllRecords)?;
        for position in &self.positions {
            self.lock_range(LockName::Record(*position), LockKind::Shared, self.wait)?;
        }
        Ok(())
    }

    /// Makes an upgradable lock on all records exclusive (B.5).
    pub(crate) fn upgrade_all(&mut self) -> Result<()> {
        let lock = LockName::AllRecords;
        match self.locks.all {
            Some(all) if all.upgradable && all.count == 1 => {}
            _ => return Err(Error::LockOrder { lock }),
        }
        self.lock_range(lock, LockKind::Exclusive, self.wait)?;
        self.locks.all = Some(HeldAll {
            kind: LockKind::Exclusive,
            count: 1,
            upgradable: false,
        });
        Ok(())
    }

    /// Locks all records, for reading or changing. Excludes every other writer, and with
    /// [`LockKind::Exclusive`] every reader. Not with a chain locked.
    pub fn lock_all(&mut self, kind: LockKind) -> Result<()> {
        if kind == LockKind::Exclusive {
            self.writable()?;
        }
        self.lock_all_as(kind, false, self.wait)
    }

    /// Gives the lock of [`Self::lock_all`] back.
    pub fn unlock_all(&mut self) -> Result<()> {
        let Some(all) = &mut self.locks.all else {
            return Err(Error::NotLocked {
                lock: LockName::AllRecords,
            });
        };
        if all.upgradable {
            return Err(Error::InTransaction);
        }
        all.count -= 1;
        if all.count > 0 {
            return Ok(());
        }
        self.locks.all = None;
        self.release_all_bytes()
    }

    /// Locks the chain of `key`: what follows under it is one atomic step to others. Locks are
    /// counted; give each back with [`Self::chain_unlock`]. At most one chain at a time.
    pub fn chain_lock(&mut self, key: &[u8], kind: LockKind, wait: Wait) -> Result<()> {
        let name = LockName::Chain(self.chain_of(key));
        if self.locks.holds_data() && self.locks.find(name).is_none() && wait != Wait::Try {
            // Two blocking chain locks of one owner are how deadlocks begin (B.3.4).
            return Err(Error::LockOrder { lock: name });
        }
        self.lock(name, kind, wait)
    }

    /// Gives a lock of [`Self::chain_lock`] back.
    pub fn chain_unlock(&mut self, key: &[u8]) -> Result<()> {
        self.unlock(LockName::Chain(self.chain_of(key)))
    }

    /// The record at `offset`, after all checks that a reader makes (A.3).
    pub(crate) fn read_checked(&mut self, offset: u32) -> Result<RecordHeader> {
        if offset < self.geometry.data_start() || !offset.is_multiple_of(4) {
            return Err(self.storage.corrupt(offset, Fault::BadOffset));
        }
        self.storage.covers(offset, RECORD_LEN)?;
        let record = self.storage.read_record(offset)?;
        if record.rec_len < 4 || !record.rec_len.is_multiple_of(4) {
            return Err(self
                .storage
                .corrupt(offset, Fault::BadLength(record.rec_len)));
        }
        let Some(_) = record.end(offset) else {
            let fault = Fault::OutOfFile {
                len: record.rec_len,
                size: self.storage.size(),
            };
            return Err(self.storage.corrupt(offset, fault));
        };
        self.storage.covers(offset, RECORD_LEN + record.rec_len)?;
        if record.next != 0 {
            if record.next < self.geometry.data_start() {
                return Err(self.storage.corrupt(record.next, Fault::BadOffset));
            }
            self.storage.covers(record.next, RECORD_LEN)?;
        }
        Ok(record)
    }
}

/// Finds out that a list is circular, without reading anything twice (Brent), and bounds it even
/// if somebody changes it under us.
#[derive(Debug)]
pub(crate) struct LoopGuard {
    mark: u32,
    steps: u32,
    next_mark: u32,
    left: u32,
}

impl LoopGuard {
    /// For a list of records in a file of `size` bytes.
    pub(crate) fn new(size: u32) -> Self {
        Self {
            mark: 0,
            steps: 0,
            next_mark: 1,
            left: size / (RECORD_LEN + 4) + 1,
        }
    }

    /// The walk comes to `offset`. `false`: it was there before.
    pub(crate) fn step(&mut self, offset: u32) -> bool {
        if (offset == self.mark && self.steps > 0) || self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.steps += 1;
        if self.steps == self.next_mark {
            self.mark = offset;
            self.next_mark = self.next_mark.saturating_mul(2);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_noticed_and_a_list_is_not_a_loop() {
        let mut guard = LoopGuard::new(1 << 20);
        assert!((1..30_000).all(|i| guard.step(i * 28)));
        for (lead, round) in [(0u32, 1u32), (5, 3), (100, 1000)] {
            let mut guard = LoopGuard::new(u32::MAX);
            let noticed = (0..10_000u32).find(|i| {
                let at = if *i < lead {
                    *i
                } else {
                    lead + (i - lead) % round
                };
                !guard.step(1000 + at)
            });
            assert!(noticed.is_some(), "lead {lead} round {round}");
        }
        let mut guard = LoopGuard::new(28);
        assert!(guard.step(4) && guard.step(8) && !guard.step(12));
    }

    #[test]
    fn contradicting_flags_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for flags in [
            OpenFlags::ALLOW_NESTING | OpenFlags::DISALLOW_NESTING,
            OpenFlags::MUTEX_LOCKING,
            OpenFlags::INTERNAL,
        ] {
            let options = OpenOptions {
                flags,
                create: true,
                ..OpenOptions::default()
            };
            let error = Tdb::open(dir.path().join("x"), &options).unwrap_err();
            assert!(matches!(error, Error::BadFlags(_)), "{error}");
        }
        assert!(!dir.path().join("x").exists());
    }
}
