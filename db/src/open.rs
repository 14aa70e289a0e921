//! Opening and creating databases (spec/database.md A.5, A.6).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::backing::Backing;
use crate::error::{Error, Fault, Result};
use crate::format::{
    ByteOrder, DEFAULT_HASH_SIZE, FEATURE_MUTEX, Geometry, HEADER_LEN, Header, HeaderFault,
    RWLOCKS_FEATURES,
};
use crate::handle::Tdb;
use crate::hash::HashKind;
use crate::lock::{LockKind, LockName, LockTable, Wait, acquire, release};
use crate::mutex::{self, MutexArea};
use crate::storage::{Access, Storage};

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
        /// Do not map the file: a system call for every access.
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
        /// Robust mutexes instead of chain locks.
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
    /// Open for reading: no lock is taken, so what is read may be half written. A file with a commit
    /// that is half done at that moment is refused ([`Error::NeedsRecovery`]), as libtdb does.
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

/// Rules out contradicting flags and adds the implied ones.
fn effective_flags(options: &OpenOptions) -> Result<OpenFlags> {
    let mut flags = options.flags;
    if options.read_only {
        flags.remove(OpenFlags::CLEAR_IF_FIRST | OpenFlags::MUTEX_LOCKING);
        flags.insert(OpenFlags::NOLOCK);
    }
    let nesting = OpenFlags::ALLOW_NESTING | OpenFlags::DISALLOW_NESTING;
    let unmapped = OpenFlags::MUTEX_LOCKING | OpenFlags::NOMMAP;
    let swapped = OpenFlags::MUTEX_LOCKING | OpenFlags::CONVERT;
    if flags.contains(nesting)
        || flags.contains(unmapped)
        || flags.contains(swapped)
        || flags.contains(OpenFlags::INTERNAL)
    {
        return Err(Error::BadFlags(flags.bits()));
    }
    if flags.contains(OpenFlags::MUTEX_LOCKING) {
        if !mutex::supported() {
            return Err(Error::NoMutexes);
        }
        flags.insert(OpenFlags::INCOMPATIBLE_HASH);
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
    cancelled: Option<&'a AtomicBool>,
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
        let mut patience = wait.patience().until_cancelled(self.cancelled);
        acquire(&self.file, name.range(), kind, &mut patience).map_err(self.io("lock"))
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
        if header.has_mutexes() {
            // The first header is for recognising the file only. Written last: until then the
            // file is no more than the beginning of one.
            self.write_empty(u64::from(header.mutex_size), &header, geometry)?;
            MutexArea::map(&self.file, header.hash_size)
                .and_then(|area| area.initialise())
                .map_err(self.io("make the mutexes of"))?;
            return self
                .file
                .write_all_at(&header.encode(), 0)
                .map_err(self.io("create"));
        }
        self.write_empty(0, &header, geometry)
    }

    /// Writes header, freelist head and chain heads.
    fn write_empty(&self, base: u64, header: &Header, geometry: Geometry) -> Result<()> {
        // All of it is written, nothing left as a hole: a full disk must show here, not as a SIGBUS.
        let zeros = [0u8; 8192];
        let (mut at, end) = (0, base + u64::from(geometry.data_start()));
        while at < end {
            let piece = (end - at).min(zeros.len() as u64) as usize;
            self.file
                .write_all_at(&zeros[..piece], at)
                .map_err(self.io("create"))?;
            at += piece as u64;
        }
        self.file
            .write_all_at(&header.encode(), base)
            .map_err(self.io("create"))
    }

    /// The mutex area of a file that has one and that this handle locks (A.6 step 7). `alone`:
    /// nobody else has it open.
    fn mutexes(&self, header: &Header, alone: bool) -> Result<Option<MutexArea>> {
        if !header.has_mutexes() || !self.locked() {
            return Ok(None);
        }
        let ours = self.flags.contains(OpenFlags::MUTEX_LOCKING)
            && header.order == ByteOrder::NATIVE
            && mutex::area_size(header.hash_size) == Some(header.mutex_size);
        if !ours {
            return Err(Error::MutexFile {
                path: self.path.to_path_buf(),
            });
        }
        let physical = self
            .file
            .metadata()
            .map_err(self.io("ask the size of"))?
            .len();
        if physical < u64::from(header.mutex_size) {
            return Err(Error::Corrupt {
                path: self.path.to_path_buf(),
                offset: 0,
                fault: Fault::Truncated,
            });
        }
        let area =
            MutexArea::map(&self.file, header.hash_size).map_err(self.io("map the mutexes of"))?;
        if alone {
            area.initialise().map_err(self.io("make the mutexes of"))?;
        }
        Ok(Some(area))
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
    let mut header = Header::new(order, hash, hash_size);
    if flags.contains(OpenFlags::MUTEX_LOCKING) {
        header.rwlocks = RWLOCKS_FEATURES;
        header.features = FEATURE_MUTEX;
        header.mutex_size = mutex::area_size(hash_size).ok_or_else(|| Error::Header {
            path: path.to_path_buf(),
            fault: HeaderFault::HashSize(hash_size),
        })?;
    }
    Ok((header, geometry))
}

impl Tdb {
    /// Opens or creates the file at `path` (A.6). Waits for the open lock; recovers what a crashed
    /// commit left.
    ///
    /// * Locks: the open lock meanwhile; with `CLEAR_IF_FIRST` or mutexes the active lock, shared,
    ///   until the handle is dropped; none if read-only or `NOLOCK`.
    /// * Errors: [`Error::Header`] of what is no TDB file, [`Error::NotAFile`],
    ///   [`Error::FileTooLarge`], [`Error::MutexFile`], [`Error::NoMutexes`], [`Error::BadFlags`];
    ///   read-only, [`Error::NeedsRecovery`].
    /// * Cost: some ten system calls; the writing of the heads if the file is made, of what a
    ///   crashed commit changed if one is undone.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        Self::open_cancelled_by(path.as_ref(), options, None)
    }

    /// Opens a database; `cancelled` ends this and every later wait of the handle.
    pub(crate) fn open_cancelled_by(
        path: &Path,
        options: &OpenOptions,
        cancelled: Option<&Arc<AtomicBool>>,
    ) -> Result<Self> {
        let flags = effective_flags(options)?;
        let file = File::options()
            .read(true)
            .write(!options.read_only)
            .create(options.create && !options.read_only)
            .mode(options.mode)
            // A FIFO or device in place of the file must not make us wait.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
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
            cancelled: cancelled.map(|flag| &**flag),
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
        let by_mutexes = header.has_mutexes() && opening.locked();
        // libtdb takes the active lock of such a file only if it comes first, so that the next to
        // find it free makes the mutexes new under those who came second (I.3). Here all take it.
        let alone = by_mutexes
            && !clear
            && opening.try_lock(LockName::Active, LockKind::Exclusive, Wait::Try)?;
        let mutexes = opening.mutexes(&header, alone)?;
        if clear || by_mutexes {
            if first || alone {
                opening.unlock(LockName::Active)?;
            }
            opening.lock(LockName::Active, LockKind::Shared)?;
        }
        let mut tdb = Self::assemble(Backing::File(opening.file), path, &header, options, flags)?;
        tdb.mutexes = mutexes;
        tdb.cancelled = cancelled.cloned();
        if tdb.read_only {
            tdb.refuse_half_done()?;
        } else {
            tdb.recover_if_needed()?;
        }
        tdb.unlock_range(LockName::Open)?;
        Ok(tdb)
    }

    /// An empty database in memory, with the Jenkins hash unless `options` say otherwise.
    ///
    /// * Locks: none.
    /// * Errors: [`Error::Header`] if that many chains are impossible, [`Error::NoMemory`].
    /// * Cost: memory for the heads.
    pub fn internal(options: &OpenOptions) -> Result<Self> {
        let flags = (options.flags | OpenFlags::NOLOCK | OpenFlags::INCOMPATIBLE_HASH)
            .difference(OpenFlags::MUTEX_LOCKING);
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
    ///
    /// * Locks: none.
    /// * Errors: [`Error::Header`], [`Error::FileTooLarge`], [`Error::Corrupt`] if the heads are
    ///   not all there.
    /// * Cost: the bytes stay where they are.
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
        let access = match (flags.contains(OpenFlags::NOMMAP), options.read_only) {
            (true, _) => Access::Calls,
            (false, true) => Access::MapToRead,
            (false, false) => Access::MapToWrite,
        };
        let mut storage = Storage::new(backing, path, header.mutex_size, header.order, access)?;
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
            buffer: Vec::new(),
            mutexes: None,
            cancelled: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradicting_flags_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for flags in [
            OpenFlags::ALLOW_NESTING | OpenFlags::DISALLOW_NESTING,
            OpenFlags::MUTEX_LOCKING | OpenFlags::NOMMAP,
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
