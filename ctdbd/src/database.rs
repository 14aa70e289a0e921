//! The databases of this node: files shared with Samba, driven by the machines of
//! [`ctdb_db::cluster`] (`spec/database.md` C to F, `db/CLUSTER.md`).
//!
//! * [`table`]: which databases are attached, and under which id, name, file.
//! * `worker`: what works for one database. It owns the machine, the leader's side of it and the
//!   file. [`seat`]: on which thread it does: that of the database, fed by its [`mailbox`], in order; or
//!   the one that read a call or a message, when nothing waits.
//! * `file`: the file as the machine sees it. Locks are only tried; what is busy is waited for by
//!   [`ctdb_db::waiter`].
//! * `jobs`: what waits for a disk: transactions, copies, syncs, on a thread beside.
//! * [`lineage`]: who had the last commits of a persistent database, in a file beside it (DATA-2).
//!
//! A slow lock, a long scan or a slow disk in one database delays nothing but that database. What
//! a worker has to say leaves through an [`Outlet`], all of one turn at once.
//!
//! Bounds: [`mailbox::MAX_ITEMS`] and [`mailbox::MAX_BYTES`] that wait for one database. Beyond
//! them a client's call or control is refused, and another node's message is dropped as if the link
//! had been lost, which the machine is told. [`table::MAX_DATABASES`] databases.

mod file;
mod jobs;
pub mod lineage;
pub mod mailbox;
pub mod seat;
pub mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::path::PathBuf;

use ctdb_db::cluster::Key;
use ctdb_db::cluster::rights::ViewId;
use ctdb_wire::ids::{BootTime, NodeSet, Pnn};

use crate::clients::hub::Origin;
use crate::messaging::registry::ClientId;

/// Where databases stand and how their files are made.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This node.
    pub me: Pnn,
    /// `[database] volatile database directory`: volatile and replicated ones.
    pub volatile: PathBuf,
    /// `[database] persistent database directory`.
    pub persistent: PathBuf,
    /// `[database] tdb mutexes`.
    pub mutexes: bool,
}

/// What a database has to say.
#[derive(Debug)]
pub enum Output {
    /// Its file is open, or cannot be opened.
    Opened {
        /// The database.
        db: u32,
        /// What stands in the way; or why the copy is not healthy.
        result: Result<Option<String>, String>,
    },
    /// Answers a call.
    Reply {
        /// Whose.
        client: ClientId,
        /// Its number.
        reqid: u32,
        /// 0, or -1.
        status: i32,
        /// As the call has it.
        data: Vec<u8>,
    },
    /// Answers a control.
    Control {
        /// Whose.
        origin: Origin,
        /// Its status.
        status: i32,
        /// Payload.
        data: Vec<u8>,
        /// Text of an error.
        error: &'static str,
    },
    /// A message for another node's database.
    Frame {
        /// Where to.
        to: Pnn,
        /// A relay frame.
        bytes: Vec<u8>,
    },
    /// A record, or the end, of a traverse.
    Record {
        /// Where it goes, on this node.
        srvid: u64,
        /// A record as messages have it.
        data: Vec<u8>,
    },
    /// It is served in a new generation.
    Served {
        /// The database.
        db: u32,
        /// For the first time.
        first: bool,
        /// The slot of the right in which the recovery began.
        right: Option<u32>,
    },
    /// Of all other nodes than these it is proved that their right is over.
    Rights {
        /// By this view of a leader.
        view: ViewId,
        /// Whose may still run.
        may: NodeSet,
    },
    /// The node was left out meanwhile: what its clients believe to have is worth nothing.
    CloseClients,
    /// A record went to another node.
    Went {
        /// The database.
        db: u32,
        /// The record.
        key: Key,
        /// Where to.
        to: Pnn,
    },
}

/// Takes what databases say, from their threads.
pub trait Outlet: Send + Sync {
    /// In order.
    fn deliver(&self, outputs: Vec<Output>);

    /// [`seat::Seat::due`] of the database is to be called then, from the thread that reads calls and
    /// messages, and not by its own. `false`: it has no such timer.
    fn alarm(&self, db: u32, at: BootTime) -> bool;
}
