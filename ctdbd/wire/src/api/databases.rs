//! Databases and their records (`spec/cli.md` 7.3).
//!
//! Keys and data are text in the form of tdbdump: printable ASCII stands for itself, every other byte, `"`
//! and `\` as `\` and two hex digits.

use serde::{Deserialize, Serialize};

/// `GET /v1/databases`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabasesView {
    /// The node that answers.
    pub node: u32,
    /// What is attached there.
    pub databases: Vec<DatabaseView>,
}

/// `GET /v1/databases/{db}`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseView {
    /// `0x` and eight hex digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// The node's file.
    pub path: String,
    /// On disk, and on every node.
    pub persistent: bool,
    /// On every node, as long as one lives.
    pub replicated: bool,
    /// Contended records stay.
    pub sticky: bool,
    /// Read-only copies are given.
    pub readonly: bool,
    /// `OK`, or what is wrong with the node's copy.
    pub health: String,
    /// Transactions so far; `None` of a volatile one, and while it cannot be told.
    pub sequence_number: Option<u64>,
}

impl DatabaseView {
    /// The word of its kind.
    pub fn kind(&self) -> &'static str {
        match (self.persistent, self.replicated) {
            (true, _) => "persistent",
            (false, true) => "replicated",
            (false, false) => "volatile",
        }
    }

    /// Whether nothing is wrong with it.
    pub fn is_healthy(&self) -> bool {
        self.health == "OK"
    }
}

/// A span of times, in seconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyView {
    /// How many.
    pub num: u32,
    /// Shortest.
    pub min: f64,
    /// On average.
    pub avg: f64,
    /// Longest.
    pub max: f64,
}

/// `GET /v1/databases/{db}/stats`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseStatsView {
    /// Name.
    pub name: String,
    /// Read-only copies that were given.
    pub ro_delegations: u32,
    /// And taken back.
    pub ro_revokes: u32,
    /// Waits for locks on records.
    pub locks: LocksView,
    /// Calls by the number of nodes that they passed: powers of two.
    pub hop_count_buckets: Vec<u32>,
    /// Runs of the vacuum.
    pub vacuum: LatencyView,
    /// The records that moved most.
    pub hot_keys: Vec<HotKeyView>,
}

/// Waits for locks on records.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LocksView {
    /// All.
    pub calls: u32,
    /// Under way.
    pub current: u32,
    /// Queued behind others.
    pub pending: u32,
    /// Failed.
    pub failed: u32,
    /// How long they took.
    pub latency: LatencyView,
    /// How many took so long: powers of two.
    pub buckets: Vec<u32>,
}

/// A record that moves much.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HotKeyView {
    /// Its key.
    pub key: String,
    /// How many nodes a call for it passed.
    pub count: u32,
}

/// `POST /v1/databases/{db}/get`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordView {
    /// Key.
    pub key: String,
    /// Data.
    pub data: String,
    /// Bytes of the data.
    pub length: usize,
}

/// `POST /v1/databases/{db}/dump`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordsView {
    /// Records that are not empty, in no order.
    pub records: Vec<RecordView>,
}

/// `GET /v1/databases/clients`
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseClientsView {
    /// The node that answers.
    pub node: u32,
    /// Processes that are connected to its client socket.
    pub clients: Vec<DatabaseClientView>,
}

/// A process that is connected.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseClientView {
    /// Its number.
    pub pid: i32,
    /// How many connections it has.
    pub connections: u32,
}

/// What is asked of `/v1/databases` and below.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DatabaseAsk {
    /// All that are attached.
    List,
    /// One.
    Show(String),
    /// Its counters.
    Stats(String),
    /// Attach or make one.
    Attach(AttachBody),
    /// Detach a volatile one, on all nodes.
    Detach(String),
    /// Switch something on.
    Set(String, SetBody),
    /// Read a record.
    Get(String, KeyBody),
    /// Write a record; in a transaction where the database has such.
    Put(String, RecordBody),
    /// Delete a record.
    Del(String, KeyBody),
    /// Write a record of a volatile database, and send a copy to all nodes.
    Push(String, RecordBody),
    /// Several records at once.
    Transaction(String, TransactionBody),
    /// All records of all nodes.
    Dump(String),
    /// Empty it, on all nodes.
    Wipe(String),
    /// Recover all databases.
    Recover,
}

/// Body of `attach`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachBody {
    /// Name.
    pub name: String,
    /// `volatile`, `persistent` or `replicated`.
    pub kind: String,
}

/// Body of `set`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetBody {
    /// Give read-only copies, on all nodes.
    pub readonly: bool,
    /// Have contended records stay, on all nodes.
    pub sticky: bool,
}

/// Body of `get` and `del`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyBody {
    /// Key.
    pub key: String,
}

/// Body of `put`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordBody {
    /// Key.
    pub key: String,
    /// Data; empty data deletes.
    pub data: String,
}

/// Body of `transaction`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransactionBody {
    /// What is to be so.
    pub changes: Vec<RecordBody>,
}
