//! The TDB engine: files shared with libtdb (spec/database.md A, B).
//!
//! Here so far: the format ([`format`]: header, records, tailers, geometry, sizes) and the hash
//! functions ([`hash`]). Nothing opens a file yet.
#![forbid(unsafe_code)]

pub mod format;
pub mod hash;
