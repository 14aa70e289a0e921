//! Words that the machines share: identifiers, inputs, effects, tunables.

use std::time::Duration;

use ctdb_wire::ids::{BootTime, Incarnation, NodeSet, Pnn, Term};
use serde::{Deserialize, Serialize};

use super::commit::{Change, Conflict, TxId};
use super::hold::Hold;
use super::message::{Lineage, Message, Record};
use super::rights::ViewId;
use super::store::StoreFault;
use crate::record::LtdbHeader;

/// A record's key.
pub type Key = Vec<u8>;

/// Number of a recovery, and of the time that follows it until the next one. Totally ordered: a
/// leader counts `seq` up, and leaders are ordered by their terms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// Term of the leader that led the recovery.
    pub term: Term,
    /// Counts its recoveries of this database.
    pub seq: u32,
}

impl Generation {
    /// Before the first recovery.
    pub const NONE: Self = Self {
        term: Term {
            number: 0,
            leader: match Pnn::new(0) {
                Ok(pnn) => pnn,
                Err(_) => unreachable!(),
            },
            session: Incarnation::NONE,
        },
        seq: 0,
    };

    /// The generation as clients see it: 31 bits, 1 (INVALID) before the first recovery, and never
    /// 0 or 1 after it (spec/database.md E.2).
    pub fn number(self) -> u32 {
        if self == Self::NONE {
            return 1;
        }
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.term.number.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.term.leader.get().to_le_bytes());
        bytes[12..20].copy_from_slice(&self.term.session.0.to_le_bytes());
        bytes[20..].copy_from_slice(&self.seq.to_le_bytes());
        (crate::hash::jenkins(&bytes) & 0x7FFF_FFFF).max(2)
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}.{}", self.term, self.seq)
    }
}

/// What kind of database it is (C.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// Records move to the node that uses them; gone when all daemons stop.
    Volatile,
    /// A copy on every node, changed by transactions; gone when all daemons stop.
    Replicated,
    /// A copy on every node, changed by transactions, on disk.
    Persistent,
}

/// A connected client of this node; chosen by the shell, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// A wait for a chain lock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// A piece of work that may take long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId(pub u64);

/// The calls that exist (D.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CallKind {
    /// No data; brings the record here.
    Null,
    /// The data.
    Fetch,
    /// Header and data.
    FetchWithHeader,
}

bitflags::bitflags! {
    /// Flags of a call (D.3), with the numbers of the client protocol.
    #[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct CallFlags: u32 {
        /// Set by clients; the record always moves.
        const IMMEDIATE_MIGRATION = 1;
        /// The vacuum fetches it to delete it.
        const VACUUM_MIGRATION = 2;
        /// A read-only copy will do.
        const WANT_READONLY = 4;
    }
}

/// What happens to a database on this node.
#[derive(Debug)]
pub enum Input<'a> {
    /// A client's call.
    Call {
        /// Whose.
        client: ClientId,
        /// Its number for the answer.
        reqid: u32,
        /// Key.
        key: &'a [u8],
        /// What is wanted.
        call: CallKind,
        /// How.
        flags: CallFlags,
    },
    /// A client has gone; what waited for it is dropped.
    ClientGone(ClientId),
    /// `TRANS3_COMMIT` of a client.
    Commit {
        /// Whose.
        client: ClientId,
        /// Its number for the answer.
        reqid: u32,
        /// All changed records.
        changes: Vec<Change>,
    },
    /// `SCHEDULE_FOR_DELETION`.
    Delete {
        /// Key.
        key: &'a [u8],
        /// The record's header when it was emptied.
        header: LtdbHeader,
    },
    /// A client of this node pushes a record to all nodes (D.16).
    Push {
        /// Key.
        key: &'a [u8],
        /// As the client stored it.
        header: LtdbHeader,
        /// Data.
        data: &'a [u8],
    },
    /// A message of another node.
    Peer {
        /// Its sender.
        from: Pnn,
        /// The message.
        message: Message,
    },
    /// The link to this node was lost and made anew: messages may be missing, in both directions.
    LinkReset(Pnn),
    /// A chain that was waited for is locked and marked while this input is handled.
    Granted(Ticket),
    /// The lock on all records is held, as [`Effect::Freeze`] asked.
    Frozen,
    /// A job is done.
    Done {
        /// Which.
        job: JobId,
        /// How it went.
        result: JobResult,
    },
    /// This node's right to serve has ended.
    RightLost,
    /// It is back, and nothing was given away meanwhile.
    RightBack,
    /// This node was evicted: what it has of volatile records is worth nothing any more.
    Evicted,
    /// In a database used together with this one, the record of this key went to a node.
    Companion {
        /// Key.
        key: &'a [u8],
        /// Where it went.
        to: Pnn,
    },
    /// A traverse of all nodes' records for a client.
    Traverse {
        /// Whose.
        client: ClientId,
        /// Its number; also of the answers.
        reqid: u32,
        /// Empty records too.
        empty: bool,
    },
    /// The operator wants a recovery.
    Recover,
    /// `SET_DB_READONLY`.
    Readonly,
    /// `SET_DB_STICKY`.
    Sticky,
    /// `ENABLE_SEQNUM`.
    EnableSeqnum,
    /// A vacuum run on demand.
    Vacuum {
        /// Look at all records, not only at those that were reported empty.
        full: bool,
    },
    /// [`Database::next_hold`](super::Database::next_hold) has come.
    Holds,
    /// [`Database::next_wake`](super::Database::next_wake) has come.
    Tick,
}

/// What the shell is asked to do, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Answer a call.
    Reply {
        /// Whose.
        client: ClientId,
        /// Its number.
        reqid: u32,
        /// 0, or -1 for a call that cannot be served.
        status: i32,
        /// Result.
        data: Vec<u8>,
    },
    /// Answer a commit: 0 done and durable on every active node, 1 not done, 2 interrupted and the
    /// client shall look at the sequence number (F.1.5).
    Committed {
        /// Whose.
        client: ClientId,
        /// Its number.
        reqid: u32,
        /// See above.
        status: i32,
    },
    /// Send a message to another node, in order.
    Send {
        /// To whom. It may be this node, in a recovery: then the shell hands it back as an input
        /// after this one's effects.
        to: Pnn,
        /// The message.
        message: Message,
    },
    /// Wait for the lock of the chain of `key`, then [`Input::Granted`].
    WaitChain {
        /// Which wait.
        ticket: Ticket,
        /// Key.
        key: Key,
    },
    /// Get the lock on all records, then [`Input::Frozen`].
    Freeze,
    /// Give it back.
    Thaw,
    /// Do something that may take long.
    Job {
        /// For the answer.
        job: JobId,
        /// What.
        work: Work,
    },
    /// The node was evicted: close the clients of this database, whose locks are worth nothing.
    CloseClients,
    /// A record went to another node: tell the databases that are used together with this one.
    Went {
        /// Key.
        key: Key,
        /// Where it went.
        to: Pnn,
    },
    /// A recovery begins here, or goes on: of all other nodes than these it is proved that their right is
    /// over, for [`Rights`](super::rights::Rights).
    Rights {
        /// By this view of the leader.
        view: ViewId,
        /// Its members and donors.
        may: NodeSet,
    },
    /// Part of a traverse.
    Traversed {
        /// Whose.
        client: ClientId,
        /// Its number.
        reqid: u32,
        /// Records, headers included.
        records: Vec<Record>,
        /// Nothing follows.
        end: bool,
    },
    /// For the log.
    Note(Note),
}

/// Work that waits for a disk or takes long. One at a time for each database.
#[derive(Clone, PartialEq, Debug)]
pub enum Work {
    /// Read lineage, sequence number and digest (see [`Digest`](super::message::Digest)) of the copy.
    Inspect,
    /// Check with [`verify`](super::verify) and store, in one transaction of the file; durable for
    /// a persistent database.
    Apply {
        /// Which transaction.
        tx: TxId,
        /// Sequence number that the database must have.
        base: u64,
        /// What to store.
        changes: Vec<Change>,
    },
    /// Begin to replace the whole content by another node's, in one transaction of the file.
    ReplaceBegin {
        /// The old content is no ancestor of the new one: keep a copy of it aside first.
        backup: bool,
    },
    /// More of it.
    ReplacePiece {
        /// The records.
        records: Vec<Record>,
    },
    /// That was all: commit, durable for a persistent database.
    ReplaceCommit,
    /// Store the lineage durably beside the database.
    Seal {
        /// The lineage.
        lineage: Lineage,
    },
    /// Sync the file, after a pushed record.
    Sync,
}

/// How a job went.
#[derive(Clone, PartialEq, Debug)]
pub enum JobResult {
    /// Done.
    Ok,
    /// [`Work::Inspect`].
    Inspected {
        /// Lineage as it was sealed last.
        lineage: Lineage,
        /// Sequence number (C.7).
        seq: u64,
        /// Digest of the content.
        digest: u128,
    },
    /// [`Work::Inspect`]: the content cannot be read; its lineage can.
    Damaged {
        /// Lineage as it was sealed last.
        lineage: Lineage,
    },
    /// [`Work::Apply`]: the transaction does not fit this copy; nothing was stored.
    Conflict(Conflict),
    /// The file or the disk failed; nothing was stored.
    Failed(StoreFault),
}

/// Worth a line in the log or a counter; nothing depends on it.
#[derive(Clone, PartialEq, Debug)]
pub enum Note {
    /// A recovery of this database was asked for.
    WantRecovery(&'static str),
    /// The file failed.
    Fault(StoreFault),
    /// A bound was met: what was dropped or refused.
    Bound(&'static str),
    /// The lock on all records is not had: since when.
    FreezeDelayed(Duration),
    /// A hot record (D.11).
    Hot {
        /// Key.
        key: Key,
        /// How often it came within a second.
        count: u32,
    },
    /// A call went round for long.
    Hops(u16),
    /// A call took longer than [`Tunables::log_latency`].
    Slow(Duration),
    /// A vacuum run ended.
    Vacuumed {
        /// Records removed.
        removed: u64,
        /// Time it took.
        took: Duration,
    },
}

/// Tunables (`spec/database.md` E.10), and ours.
#[derive(Clone, Copy, Debug)]
pub struct Tunables {
    /// Calls of one node for one key travel once.
    pub fetch_collapse: bool,
    /// How long records stay.
    pub hold: Hold,
    /// Hops that make a record sticky.
    pub hopcount_make_sticky: u16,
    /// How long it is.
    pub sticky_duration: Duration,
    /// How long a sticky record stays each time.
    pub sticky_pindown: Duration,
    /// A record that was pushed is not removed for this long: then the push has arrived, or its link has gone.
    pub push_arrives: Duration,
    /// Between two vacuum runs; zero for none.
    pub vacuum_interval: Duration,
    /// Runs until the next one looks at all records.
    pub vacuum_fast_path: u32,
    /// A run that lasts longer is given up.
    pub vacuum_max_run: Duration,
    /// Calls that take longer are noted; zero for none.
    pub log_latency: Duration,
    /// How often a change of the file's sequence number is told.
    pub seqnum_interval: Duration,
    /// Time-out of a traverse.
    pub traverse_timeout: Duration,
    /// When the wait for the lock on all records is worth a line in the log.
    pub freeze_warn: Duration,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            fetch_collapse: true,
            hold: Hold::default(),
            hopcount_make_sticky: 50,
            sticky_duration: Duration::from_secs(600),
            sticky_pindown: Duration::from_millis(200),
            push_arrives: Duration::from_secs(10),
            vacuum_interval: Duration::from_secs(10),
            vacuum_fast_path: 60,
            vacuum_max_run: Duration::from_secs(120),
            log_latency: Duration::ZERO,
            seqnum_interval: Duration::from_secs(1),
            traverse_timeout: Duration::from_secs(20),
            freeze_warn: Duration::from_secs(1),
        }
    }
}

/// The earlier of two optional moments.
pub(super) fn earlier(a: Option<BootTime>, b: Option<BootTime>) -> Option<BootTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
