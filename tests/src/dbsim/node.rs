//! One node: its databases, files, clients' locks.

use std::collections::{BTreeMap, VecDeque};

use ctdb_db::cluster::memory::MemoryStore;
use ctdb_db::cluster::rights::{Rights, Views};
use ctdb_db::cluster::{Database, Key, Leader, Lineage, Ticket, Work};
use ctdb_db::cluster::{JobId, message::Record};

use super::world::Event;

/// A database file and what the daemon has for it.
pub struct Side {
    pub database: Database,
    pub leader: Leader,
    pub store: MemoryStore,
    /// The lineage beside the file.
    pub lineage: Lineage,
    /// Content that is being put in place.
    pub replacing: Option<Vec<Record>>,
    /// The daemon, or the guard, waits for the lock on all records: no new locks.
    pub freezing: bool,
    /// The machine wants to hear when it is held.
    pub asked: bool,
    /// Who holds which chain.
    pub holders: BTreeMap<Key, usize>,
    /// Waits of the daemon for chains.
    pub waits: VecDeque<(Ticket, Key)>,
    /// The job that runs.
    pub job: Option<(JobId, Work)>,
    /// The newest wake-up that was scheduled.
    pub wake: Option<u64>,
}

/// A node.
pub struct Node {
    /// The daemon runs; its number of lives.
    pub up: bool,
    pub life: u64,
    /// The daemon is stopped in its tracks; what arrives for it meanwhile.
    pub frozen: bool,
    pub stalled: Vec<Event>,
    pub sides: Vec<Side>,
    /// Numbers what it gives to its databases while it leads.
    pub views: Views,
    /// Whose right may run, as it heard.
    pub rights: Rights,
    /// The right ends then.
    pub right_until: u64,
    /// What the databases were told.
    pub told_right: bool,
    /// Left out, and not yet told so.
    pub evicted: bool,
    /// Taken out by the operator.
    pub stopped: bool,
    /// The disk fails until then.
    pub disk_fails_until: u64,
}
