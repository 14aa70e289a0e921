//! What waits for the thread of a database.

use ctdb_db::cluster::{CallFlags, CallKind, Change, JobId, JobResult, Key, View};
use ctdb_db::record::LtdbHeader;
use ctdb_wire::ids::{BootTime, NodeSet, Pnn};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::clients::hub::Origin;
use crate::clock::boot_now;
use crate::messaging::registry::ClientId;

/// Items that wait for one database.
pub const MAX_ITEMS: usize = 65_536;
/// Bytes of keys, records and messages that wait for one database.
pub const MAX_BYTES: usize = 256 << 20;

/// What a control asks a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// GET_DB_SEQNUM.
    Seqnum,
    /// GET_DB_STATISTICS.
    Statistics,
    /// DB_FREEZE: answered when it is frozen.
    Freeze,
    /// DB_THAW.
    Thaw,
    /// WIPE_DATABASE, of a frozen one.
    Wipe,
    /// DB_PUSH_START.
    PushStart,
    /// DB_PUSH_CONFIRM: how many records came.
    PushConfirm,
    /// DB_TRANSACTION_START, of a frozen one.
    TransactionStart,
    /// DB_TRANSACTION_COMMIT.
    TransactionCommit,
    /// DB_TRANSACTION_CANCEL.
    TransactionCancel,
}

/// Something that happens to a database.
#[derive(Debug)]
pub enum Item {
    /// REQ_CALL of a client.
    Call {
        /// Whose.
        client: ClientId,
        /// Its number.
        reqid: u32,
        /// Key.
        key: Key,
        /// What is wanted.
        call: CallKind,
        /// How.
        flags: CallFlags,
    },
    /// TRANS3_COMMIT.
    Commit {
        /// Who gets the answer.
        origin: Origin,
        /// Whose.
        client: ClientId,
        /// The records.
        changes: Vec<Change>,
    },
    /// SCHEDULE_FOR_DELETION.
    Delete {
        /// Key.
        key: Key,
        /// The record as it was emptied.
        header: LtdbHeader,
    },
    /// PUSH_RECORD.
    Push {
        /// Key.
        key: Key,
        /// As the client stored it.
        header: LtdbHeader,
        /// Data.
        data: Vec<u8>,
    },
    /// TRAVERSE_START.
    Traverse {
        /// Whose.
        client: ClientId,
        /// Where the records go.
        srvid: u64,
        /// Repeated in each.
        reqid: u32,
        /// Empty ones too.
        empty: bool,
    },
    /// A control that the database answers.
    Ask(Origin, Question),
    /// Records of a restore, as DB_PUSH_START announced.
    Records(Vec<Change>),
    /// A client is gone.
    Gone(ClientId),
    /// Bytes of another node's message.
    Peer(Pnn, Vec<u8>),
    /// A link was made anew.
    LinkReset(Pnn),
    /// Whether this node has the right to serve.
    Right(Option<u32>),
    /// The cluster, while this node leads.
    View(Option<Arc<View>>),
    /// A record of a database used together with this one went to a node.
    Companion(Key, Pnn),
    /// SET_DB_READONLY.
    Readonly,
    /// SET_DB_STICKY.
    Sticky,
    /// ENABLE_SEQNUM.
    EnableSeqnum,
    /// A recovery is wanted.
    Recover,
    /// A run of the vacuum; its control is answered at once.
    Vacuum {
        /// All records.
        full: bool,
    },
    /// A job is done.
    Done(JobId, JobResult),
    /// A lock that was waited for is held.
    Granted,
    /// The database is detached, or the daemon ends.
    Stop,
}

impl Item {
    /// Bytes that it keeps waiting.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Call { key, .. } | Self::Delete { key, .. } => key.len(),
            Self::Push { key, data, .. } => key.len() + data.len(),
            Self::Commit { changes, .. } | Self::Records(changes) => {
                changes.iter().map(Change::size).sum()
            }
            Self::Peer(_, bytes) => bytes.len(),
            _ => 0,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    items: VecDeque<Item>,
    bytes: usize,
    /// Nodes of which messages had to be dropped.
    lost: NodeSet,
    /// When the database's thread has something to do though nothing comes.
    alarm: Option<BootTime>,
    closed: bool,
}

/// The queue of one database.
#[derive(Debug, Default)]
pub struct Mailbox {
    inner: Mutex<Inner>,
    arrived: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts in what must not get lost and cannot be many.
    pub fn post(&self, item: Item) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        inner.bytes += item.size();
        inner.items.push_back(item);
        drop(inner);
        self.arrived.notify_one();
    }

    /// Puts in what may be refused: `false` at the bound.
    pub fn offer(&self, item: Item) -> bool {
        let mut inner = self.lock();
        let size = item.size();
        if inner.closed || inner.items.len() >= MAX_ITEMS || inner.bytes + size > MAX_BYTES {
            return false;
        }
        inner.bytes += size;
        inner.items.push_back(item);
        drop(inner);
        self.arrived.notify_one();
        true
    }

    /// Puts in what must not get lost and cannot be many, without waking anybody.
    pub(super) fn put(&self, item: Item) {
        let mut inner = self.lock();
        if !inner.closed {
            inner.bytes += item.size();
            inner.items.push_back(item);
        }
    }

    /// Wakes the database's thread.
    pub(super) fn wake(&self) {
        self.arrived.notify_one();
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.items.is_empty() && inner.lost.is_empty()
    }

    /// The thread is to wake then, if nothing comes. Said by who has the worker.
    pub(super) fn set_alarm(&self, alarm: Option<BootTime>) {
        let mut inner = self.lock();
        let old = std::mem::replace(&mut inner.alarm, alarm);
        drop(inner);
        if alarm.is_some_and(|at| old.is_none_or(|old| at < old)) {
            self.arrived.notify_one();
        }
    }

    /// Waits until something has come or the alarm is due.
    pub(super) fn wait(&self) {
        let mut inner = self.lock();
        while inner.items.is_empty() && inner.lost.is_empty() && !inner.closed {
            inner = if let Some(at) = inner.alarm {
                let left = at.since(boot_now());
                if left.is_zero() {
                    return;
                }
                let waited = self.arrived.wait_timeout(inner, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let waited = self.arrived.wait(inner);
                waited.unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    /// A message of another node. One that has no room counts as lost with its link.
    pub fn peer(&self, from: Pnn, bytes: Vec<u8>) {
        if !self.offer(Item::Peer(from, bytes)) {
            self.lock().lost.insert(from);
        }
    }

    /// All that has come, and whose messages were lost.
    pub fn take(&self) -> (VecDeque<Item>, NodeSet) {
        let mut inner = self.lock();
        inner.bytes = 0;
        let lost = std::mem::take(&mut inner.lost);
        (std::mem::take(&mut inner.items), lost)
    }

    /// Nobody takes anything any more.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.items.clear();
        inner.bytes = 0;
        drop(inner);
        self.arrived.notify_all();
    }
}
