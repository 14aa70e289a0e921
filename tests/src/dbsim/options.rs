//! What a run is made of.

use std::fmt;

use ctdb_db::cluster::hold::Hold;
use ctdb_db::cluster::planted::Bug;

/// What gives a partition the right to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authority {
    /// More than half of the nodes.
    Majority,
    /// One node that holds a lock: any number of survivors.
    Lock,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything random comes from it.
    pub seed: u64,
    /// Planted bug.
    pub bug: Option<Bug>,
    /// Lines of trace to keep.
    pub trace: usize,
    /// How long faults go on, in milliseconds.
    pub chaos_ms: u64,
    /// Nothing goes wrong, and all want the same record of a volatile database.
    pub calm: bool,
    /// How long records stay.
    pub hold: Hold,
    /// How long nodes are waited for that reach the leader and not each other; for ever without.
    pub patience_ms: Option<u64>,
    /// Nothing goes wrong but that: two nodes do not reach each other, to the end.
    pub apart: bool,
}

impl Options {
    /// A run as the tests do it.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            bug: None,
            trace: 0,
            chaos_ms: 3000,
            calm: false,
            hold: Hold::default(),
            patience_ms: Some(300),
            apart: false,
        }
    }
}

/// A broken promise.
#[derive(Clone, PartialEq, Debug)]
pub struct Violation {
    /// `DATA-1` ...
    pub promise: &'static str,
    /// Seconds into the run.
    pub at: f64,
    /// What was seen.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} broken at {:.6} s: {}",
            self.promise, self.at, self.text
        )
    }
}

/// What happened in a run.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    /// Events of the simulator.
    pub events: u64,
    /// Changes of records under their lock.
    pub updates: u64,
    /// Records that went to another node.
    pub migrations: u64,
    /// Read-only copies.
    pub delegations: u64,
    /// Records removed by the vacuum.
    pub vacuumed: u64,
    /// Recoveries that ended, of all databases.
    pub recoveries: u64,
    /// Transactions answered as committed.
    pub commits: u64,
    /// Faults.
    pub faults: u64,
    /// Volatile records whose newest copy died with its node.
    pub lost_with_node: u64,
    /// Traverses that ended.
    pub traverses: u64,
    /// Pushed records that were looked for on another node.
    pub pushes: u64,
    /// Change counters that were looked at on another node.
    pub counters: u64,
    /// Records that followed those of another database.
    pub companions: u64,
    /// How often a node heard that another one's right is over.
    pub rights_over: u64,
    /// Nodes that were left out since others did not reach them.
    pub left_apart: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Of a calm run: the longest wait of a call for the first database's record, in microseconds.
    pub worst_call_us: u64,
    /// Calls that were answered on each node.
    pub answered: [u64; 8],
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// Counters.
    pub stats: Stats,
    /// The last lines, if they were asked for.
    pub trace: String,
}
