//! The TDB engine: files shared with libtdb (spec/database.md A, B).
//!
//! A [`Tdb`] is an open database: `fetch`, `store`, `append`, `delete`, `traverse`, `wipe_all`,
//! `repack`, `check`, counted chain locks and the lock on all records, transactions. Unmodified
//! libtdb processes may use the same file at the same time: format, allocation, locks and crash
//! recovery are theirs, and for the same operations in the same order the file is the same to the
//! byte (`tests/interop.rs`).
//!
//! # What is here
//!
//! * [`mod@format`] and [`hash`]: headers, records, geometry, sizes, both hash functions, both byte
//!   orders. Pure.
//! * Files with the old or the Jenkins hash, of either byte order, with and without a mutex area.
//!   Databases in memory.
//! * A mapped file. Truncated under us it gives a typed error.
//! * Robust mutexes in place of chain locks, laid out and used as libtdb does.
//! * The locks of libtdb as open-file-description locks: open, active (`CLEAR_IF_FIRST`),
//!   transaction, chains, freelist, all records, record positions, sequence number; tried, waited for
//!   up to a time, or waited for in the kernel ([`Wait`]).
//! * The whole write path: free list with merging, dead records, growth, wipe, sequence number.
//! * Transactions, nested and prepared too, with libtdb's recovery area and sync order, and recovery of its
//!   crashes as of ours, at open and at the first lock.
//! * [`freezer`]: the lock on all records for a watchman that must not wait.
//! * Marking (B.7), and transactions under an exclusive lock on all records, real or marked.
//! * A check that names offset and fault.
//! * [`waiter`]: waits for locks that block nobody, and that later requests join.
//! * [`dump`]: text dumps, interchangeable with `tdbdump` and `tdbrestore`.
//! * [`cluster`]: what makes one database out of the files of all nodes: the record protocol,
//!   recovery, transactions, vacuuming (D, E, F), as pure state machines. `db/CLUSTER.md`.
//! * [`record`]: CTDB's record header (C.1) and buffers of records (C.8). Pure.
//!
//! # Where it differs from libtdb on purpose
//!
//! * Crash recovery keeps the recovery area (`recovery_start` stays, where libtdb writes 0: the last
//!   line of H.4.6) and frees what the crashed commit added; libtdb forgets both, and its own check
//!   then may fail (I.1). For that the hash word of an armed area, 0 in libtdb's, names the smaller
//!   area that it replaces; libtdb does not read it. [`Tdb::check`] knows exactly what is lost space.
//! * A commit that makes a new recovery area describes and syncs it before the header points to it:
//!   one sync more, only then.
//! * A store that finds no room leaves the old record in place.
//! * A free record at the end of the file that fell out of the freelist, and would swallow all new
//!   space, is put back.
//! * A dead record on which somebody's traverse stands is not reused.
//! * A file is made new only if it is empty, shorter than a header, or zeros.
//! * Opening the same file twice in a process is allowed: handles are independent lock owners.
//! * Every handle on a file with mutexes keeps the active lock, so that none is taken for the only
//!   one (I.3).
//!
//! # One handle, one user
//!
//! Every operation takes `&mut self`: a handle serves one thread at a time, and may move between
//! threads, also with locks held - except that of a file with mutexes a lock must be given back by
//! the thread that took it ([`Error::WrongThread`]). For concurrent use open the file once per user. Locks are counted
//! per handle and belong to its file description; dropping the handle gives them up. Between `fork`
//! and `exec` a child shares the description, so a dropped handle's locks can last that moment
//! longer. Lock order, of which the handle refuses the worst violations: transaction, all records,
//! one chain, freelist.
//!
//! # Locks, errors, cost
//!
//! Each operation that can fail says which locks it takes (given back when it returns, unless it says
//! otherwise), which errors are its own, and what it costs. Besides, every one that touches a
//! file can end with [`Error::Busy`] (a lock was not to be had within the handle's wait),
//! [`Error::LockOrder`] (it does not go with those that the handle holds),
//! [`Error::Corrupt`], [`Error::Io`], [`Error::NoMemory`]; to every change [`Error::ReadOnly`] and
//! [`Error::Prepared`]. A lock is one system call to take and one to give back if nobody has it; a
//! mutex none. The first lock on data looks whether a commit crashed (two words) and undoes it. Reads
//! and writes go through the map, without system calls; with `NOMMAP` each is one.
//!
//! # A full disk
//!
//! What finds no room is [`Error::NoSpace`], and the file is as it was, also where the disk is full
//! under a hole of a file that somebody copied sparsely. One case is left: with `NOMMAP` on a file
//! system that cannot reserve space (`fallocate`), an overwrite in place of more than a page can
//! end between two pages.
//!
//! # What is read is not believed
//!
//! Every offset, length and link is checked before use; lists are bounded and loops noticed; memory
//! is asked for only after the file was found to have that many bytes, and within
//! [`OpenOptions::max_record_len`]. A damaged or truncated file gives [`Error::Corrupt`].
#![deny(unsafe_code)]

mod backing;
mod check;
pub mod cluster;
#[cfg(test)]
mod crash_tests;
pub mod dump;
mod error;
mod fast;
pub mod format;
pub mod freezer;
mod handle;
pub mod hash;
mod interrupt;
mod lock;
mod locking;
mod map;
mod mutex;
mod open;
#[cfg(test)]
mod plain_tests;
mod read;
pub mod record;
mod recovery;
mod robust;
#[cfg(test)]
mod robust_tests;
mod sigbus;
mod space;
mod storage;
mod transaction;
pub mod waiter;
mod walk;
mod write;

pub use check::CheckReport;
pub use error::{Error, Fault, Result};
pub use handle::Tdb;
pub use lock::{LockKind, LockName, Wait};
pub use open::{OpenFlags, OpenOptions};
pub use read::TraverseKind;
pub use transaction::Transaction;
pub use write::StoreMode;
