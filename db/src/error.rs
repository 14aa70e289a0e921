//! What can go wrong, and where in the file.

use std::io;
use std::path::PathBuf;

use crate::format::HeaderFault;
use crate::lock::LockName;

/// Result of the engine's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// A fault found in a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The range is not inside the file.
    #[error("{len} bytes reach beyond the end of the file at {size}")]
    OutOfFile {
        /// Bytes wanted.
        len: u32,
        /// The file's logical size.
        size: u32,
    },
    /// The file ended while it was being read: it was truncated under us.
    #[error("the file was truncated while it was in use")]
    Truncated,
    /// An offset that is not a multiple of 4, or lies before the first record.
    #[error("a record cannot begin there")]
    BadOffset,
    /// A record whose magic is not that of its list.
    #[error("a record with magic {0:#010x} does not belong there")]
    BadMagic(u32),
    /// A record length that is too small or not a multiple of 4.
    #[error("a record length of {0} is impossible")]
    BadLength(u32),
    /// Key and data are longer than the record.
    #[error("a key of {key_len} and data of {data_len} bytes do not fit their record of {rec_len}")]
    BadPayload {
        /// Length of the key.
        key_len: u32,
        /// Length of the data.
        data_len: u32,
        /// Length of the record.
        rec_len: u32,
    },
    /// The last word of the record is not its length.
    #[error("the tailer is {found:#x}, not {expected:#x}")]
    BadTailer {
        /// What stands there.
        found: u32,
        /// What should.
        expected: u32,
    },
    /// A list that does not end.
    #[error("the list that leads there is circular")]
    Cycle,
    /// The key does not hash to the record's hash word.
    #[error("the key hashes to {computed:#010x}, not to {stored:#010x} as stored")]
    BadHash {
        /// Hash of the key.
        computed: u32,
        /// Hash word of the record.
        stored: u32,
    },
    /// A record in the chain of another hash.
    #[error("the record is linked in chain {found}, not in its own {expected}")]
    WrongChain {
        /// Where it is linked.
        found: u32,
        /// Where it belongs.
        expected: u32,
    },
    /// A record that no list leads to.
    #[error("no list leads to the record")]
    Unreferenced,
    /// A record that two lists, or two links, lead to.
    #[error("the record is linked twice")]
    LinkedTwice,
    /// A list leads into the middle of another record.
    #[error("a list leads there, but no record begins there")]
    NotARecord,
    /// A header word changed that never changes.
    #[error("the header was changed while the file was open")]
    HeaderChanged,
    /// The recovery area's content makes no sense.
    #[error("the recovery area is damaged")]
    BadRecovery,
    /// The file is that long, but the bytes could not be had: the medium failed, is full where the
    /// file has a hole, or the file was shorter for a moment.
    #[error(
        "the bytes cannot be read or written: the medium failed or is full, or the file was shorter for a moment"
    )]
    Unreadable,
    /// A mutex's bytes are not those of one.
    #[error("the mutex area is damaged: a mutex there is none that libtdb makes")]
    BadMutex,
    /// The allocator or a traverse went round too often.
    #[error("the list does not come to rest")]
    Restless,
}

/// Why an operation failed. Nothing was changed unless the variant says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("cannot {doing} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a TDB file that we can open.
    #[error("{path} is not a usable TDB file: {fault}; restore it from a backup", path = .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with the header.
        fault: HeaderFault,
    },
    /// The file is not a regular file.
    #[error("{path} is not a regular file", path = .path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file's content contradicts itself.
    #[error("{path} is corrupt at offset {offset:#x}: {fault}; run a check, then restore it from a backup", path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Logical offset of what is wrong.
        offset: u32,
        /// What is wrong.
        fault: Fault,
    },
    /// The file is larger than offsets can express.
    #[error("{path} has {size} bytes, more than 32-bit offsets reach", path = .path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its physical size.
        size: u64,
    },
    /// The file has a mutex area, and the handle was not opened for it (A.6 step 7).
    #[error("{path} is locked with mutexes of another kind than this process would use: open it with MUTEX_LOCKING, on a machine like the one that made it, or read-only", path = .path.display())]
    MutexFile {
        /// The file.
        path: PathBuf,
    },
    /// Robust process-shared mutexes do not work on this machine.
    #[error(
        "robust mutexes shared by processes do not work here: open the database without MUTEX_LOCKING"
    )]
    NoMutexes,
    /// Another file has taken the path since the database was opened.
    #[error("{path} is another file than when it was opened", path = .path.display())]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// The file has fewer chains.
    #[error("there is no chain {0}")]
    NoChain(u32),
    /// A mutex must be given back by the thread that took it.
    #[error("{lock} was taken by another thread, which must give it back")]
    WrongThread {
        /// The lock.
        lock: LockName,
    },
    /// Flags that contradict each other or are not supported.
    #[error("open flags {0:#x} do not go together")]
    BadFlags(u32),
    /// Somebody else holds the lock, and the wait is over.
    #[error("{path}: {lock} is held by somebody else", path = .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// The lock.
        lock: LockName,
    },
    /// The lock cannot be taken with what this handle holds already (spec/database.md B.3).
    #[error("{lock} cannot be taken with the locks that this handle holds")]
    LockOrder {
        /// The lock.
        lock: LockName,
    },
    /// A commit crashed, or is under way, and this handle may not write or does not hold the locks to
    /// undo it.
    #[error("{path} holds a half-done commit; a handle that may write and holds the locks must undo it first", path = .path.display())]
    NeedsRecovery {
        /// The file.
        path: PathBuf,
    },
    /// The lock is not held by this handle.
    #[error("{lock} is not held by this handle")]
    NotLocked {
        /// The lock.
        lock: LockName,
    },
    /// INSERT of a key that exists.
    #[error("the key exists")]
    Exists,
    /// MODIFY or DELETE of a key that does not exist.
    #[error("the key does not exist")]
    NotFound,
    /// The handle is open for reading, or a read traverse is running on it.
    #[error("the database is open for reading only")]
    ReadOnly,
    /// Key and data are longer than a record can be, or than the handle's limit.
    #[error("a record of {0} bytes is too large")]
    TooLarge(u64),
    /// There is no memory for what was asked.
    #[error("no memory for {0} bytes")]
    NoMemory(usize),
    /// No room in the file, and it cannot grow.
    #[error("no room for {wanted} bytes in {path}", path = .path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        wanted: u32,
    },
    /// The handle is in a transaction, and may not nest another.
    #[error("a transaction is running")]
    InTransaction,
    /// The transaction is prepared: it can only be committed or cancelled.
    #[error("the transaction is prepared: it can only be committed or cancelled")]
    Prepared,
    /// The handle is in no transaction.
    #[error("no transaction is running")]
    NoTransaction,
    /// A nested transaction was cancelled, so the outer one cannot be committed.
    #[error("a nested transaction was cancelled: the outer one cannot be committed")]
    NestedCancelled,
    /// Not possible while a traverse of this handle is running.
    #[error("not possible during a traverse")]
    InTraverse,
}
