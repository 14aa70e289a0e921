//! The TDB engine: files shared with libtdb (spec/database.md A, B).
#![forbid(unsafe_code)]

mod check;
#[cfg(test)]
mod crash_tests;
mod error;
pub mod format;
mod handle;
pub mod hash;
mod lock;
mod read;
mod recovery;
mod space;
mod storage;
mod transaction;
mod write;

pub use check::CheckReport;
pub use error::{Error, Fault, Result};
pub use handle::{OpenFlags, OpenOptions, Tdb};
pub use lock::{LockKind, LockName, Wait};
pub use read::TraverseKind;
pub use transaction::Transaction;
pub use write::StoreMode;
