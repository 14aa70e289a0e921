//! Clients of the databases: what libctdb and Samba's processes do with a node's socket and with
//! its database files (spec/client-protocol.md 8, 9; spec/database.md F.1). They speak to ours and
//! to Debian's daemon alike. What they saw and did is recorded and judged by [`history`].
//!
//! * [`Session`]: a process's connection. [`Database`]: a file of its node, opened by our engine.
//! * [`Session::lock`]: a record under its chain lock, owned by this node.
//! * [`transaction`]: `g_lock` and TRANS3. [`work`]: many clients at once, while nodes fail.

pub mod history;
mod session;
pub mod transaction;
pub mod work;

pub use session::{Database, Kind, LocalRecord, Locked, Session};
