//! A client of the client socket that reads and writes records: what libctdb does
//! (`spec/client-protocol.md` 5.6 to 5.10, 8, 9; `spec/database.md` C.8, F.1). Used by the command
//! line, and by the API, which does for its callers what the command does.
//!
//! * [`Connection`]: packets, controls, calls, messages. Blocking; every answer has a limit.
//! * [`Session`]: a process that has registered itself, and what it does with databases.
//! * [`transaction`]: `g_lock` and TRANS3.
//! * [`backup`]: the file of `ctdb backupdb`, and restoring and wiping whole databases.
//!
//! Files are opened by our engine with the flags that the daemon gives, as smbd does; so this works
//! only on the daemon's own host, as root.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub mod backup;
mod connection;
mod session;
pub mod transaction;
mod whole;

pub use connection::{Answer, Connection};
pub use session::{Database, Found, Kind, Locked, NodeEntry, Session};

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens on the client socket.
    #[error("no daemon answers on {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The daemon gave no answer.
    #[error("{control}: no answer within {} s", .limit.as_secs_f32())]
    TimedOut {
        /// What was asked for.
        control: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection ended, or what came is no packet.
    #[error("the connection to the daemon failed: {0}")]
    Broken(String),
    /// The daemon refused.
    #[error("{control} failed with status {status}{}", colon(.text))]
    Refused {
        /// What was asked for.
        control: &'static str,
        /// The status; never 0.
        status: i32,
        /// What the daemon says about it; may be empty.
        text: String,
    },
    /// There is no database of that name or number.
    #[error("there is no database '{0}'; see `ctdb db list`")]
    NoDatabase(String),
    /// The database cannot be attached: the node is inactive, AllowClientDBAttach is 0, or one of
    /// another kind has its name.
    #[error(
        "the database {name} cannot be attached (status {status}): the node is stopped or banned, the \
         tunable AllowClientDBAttach is 0, or the database is of another kind"
    )]
    NotAttached {
        /// Its name.
        name: String,
        /// The daemon's status.
        status: i32,
    },
    /// It does not come to its kind.
    #[error("{name} is {} database, and {wanted}", .kind.with_article())]
    WrongKind {
        /// The database.
        name: String,
        /// What it is.
        kind: Kind,
        /// What would be needed, as a half sentence.
        wanted: &'static str,
    },
    /// Its last copy is damaged.
    #[error("the database {name} is not healthy: {health}")]
    Unhealthy {
        /// The database.
        name: String,
        /// What is wrong.
        health: String,
    },
    /// The record or the lock stays with somebody else.
    #[error("{0}")]
    Busy(String),
    /// A transaction of which nobody can tell whether it is there.
    #[error(
        "the daemon gave no answer that decides whether the transaction is there ({0}); read the \
         records to see"
    )]
    Unknown(String),
    /// Another client committed in between, which the lock should have kept out.
    #[error("another transaction came between; nothing was changed")]
    Overtaken,
    /// Nothing may be detached now.
    #[error("{0}")]
    NotDetachable(NotDetachable),
    /// A backup that cannot be used.
    #[error("the backup {path}: {why}")]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system refused something about a file.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The database's file.
    #[error(transparent)]
    File(#[from] ctdb_db::Error),
}

fn colon(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

/// Why nothing may be detached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotDetachable {
    /// Databases are being recovered.
    #[error("databases are not detached while they are recovered; try again")]
    Recovering,
    /// A node is stopped or banned.
    #[error("node {0} is stopped or banned; a database is detached when all nodes are active")]
    Inactive(u32),
    /// Clients of a node may attach.
    #[error(
        "clients of node {0} may attach databases; `ctdb setvar AllowClientDBAttach 0` on all nodes \
         first"
    )]
    Attachable(u32),
}
