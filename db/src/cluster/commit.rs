//! Transactions on persistent and replicated databases (F): `TRANS3_COMMIT`.
//!
//! One round: the coordinating node sends the records to every node of the generation, each stores
//! them in one transaction of its file, durably, and says so; the client is answered when all have.
//! What a node that dies midway leaves undecided the recovery decides: a transaction is in if the
//! copy that it keeps has it (`db/CLUSTER.md`, "Transactions").

use std::collections::{BTreeMap, VecDeque};

use ctdb_wire::ids::{NodeSet, Pnn};
use serde::{Deserialize, Serialize};

use super::content::{Jobs, Purpose};
use super::database::{Cx, Database, Outcome};
use super::message::{Body, Lineage, MAX_HISTORY, Record};
use super::park::Deferred;
use super::planted::Bug;
use super::store::Store;
use super::types::{ClientId, Effect, Generation, Key, Kind, Note, Work};
use crate::record::{LtdbHeader, RecordFlags, Rsn};

/// Key of the sequence number of a persistent database (C.7).
pub const SEQNUM_KEY: &[u8] = b"__db_sequence_number__\0";

/// Most transactions of this node's clients that are under way in one database. Clients of a
/// database exclude each other by a lock of their own, so more than one is a fault.
const MAX_RUNNING: usize = 64;

/// A record of a transaction, header included; without data it is deleted.
pub type Change = Record;

/// A transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TxId {
    /// The generation that it was begun in.
    pub generation: Generation,
    /// The node whose client committed it.
    pub node: Pnn,
    /// Counts there.
    pub number: u64,
}

/// Why a transaction does not fit a copy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Conflict {
    /// The sequence number is not the one before the transaction.
    #[error("the database is at sequence number {found}, not {expected}")]
    Sequence {
        /// Expected before the transaction.
        expected: u64,
        /// Found.
        found: u64,
    },
    /// A record is as new as the transaction's, and differs.
    #[error("record {key:02x?} was changed to sequence number {rsn:?} meanwhile")]
    Record {
        /// Its key.
        key: Key,
        /// Its sequence number.
        rsn: Rsn,
    },
}

/// Checks a transaction against a copy (F.3): the copy's sequence number must be `base`, and no
/// record as new as the transaction's with other data. `Ok(true)` if all of it is there already,
/// which makes a repetition harmless. `read` gives header and data of a record.
pub fn verify(
    base: u64,
    changes: &[Change],
    mut read: impl FnMut(&[u8]) -> Option<(LtdbHeader, Vec<u8>)>,
) -> Result<bool, Conflict> {
    let found = read(SEQNUM_KEY).map_or(0, |(_, data)| sequence_of(&data));
    let there = changes.iter().all(|change| {
        read(&change.key).map_or(change.data.is_empty(), |(_, data)| data == change.data)
    });
    if there && found == base.wrapping_add(1) {
        return Ok(true);
    }
    if found != base {
        return Err(Conflict::Sequence {
            expected: base,
            found,
        });
    }
    for change in changes {
        if let Some((header, data)) = read(&change.key)
            && header.rsn >= change.rsn
            && data != change.data
        {
            return Err(Conflict::Record {
                key: change.key.clone(),
                rsn: header.rsn,
            });
        }
    }
    Ok(false)
}

/// The sequence number in the data of its record; 0 if it has another length than 8.
pub fn sequence_of(data: &[u8]) -> u64 {
    data.try_into().map_or(0, u64::from_ne_bytes)
}

/// Transactions of one database on one node.
#[derive(Debug)]
pub(super) struct Commits {
    pub(super) jobs: Jobs,
    running: BTreeMap<TxId, Running>,
    /// What was stored here, newest last.
    pub(super) history: VecDeque<TxId>,
    /// The history is complete from this generation on.
    pub(super) since: Option<Generation>,
    /// The lineage that was read or sealed last.
    pub(super) lineage: Lineage,
    /// Transactions are taken: the newest lineage is here.
    writable: bool,
}

impl Default for Commits {
    fn default() -> Self {
        Self {
            jobs: Jobs::default(),
            running: BTreeMap::new(),
            history: VecDeque::new(),
            since: None,
            lineage: Lineage::NONE,
            writable: false,
        }
    }
}

/// A transaction that this node coordinates.
#[derive(Debug)]
struct Running {
    /// `None` once it has gone, or was answered.
    client: Option<(ClientId, u32)>,
    waiting: NodeSet,
    stored: bool,
    refused: bool,
}

impl Commits {
    pub(super) fn under_way(&self) -> bool {
        !self.running.is_empty()
    }

    pub(super) fn drop_queued(&mut self) {
        self.jobs.drop_queued();
    }

    pub(super) fn forget(&mut self, client: ClientId) {
        for running in self.running.values_mut() {
            if running.client.is_some_and(|(other, _)| other == client) {
                running.client = None;
            }
        }
    }

    fn note(&mut self, tx: TxId) {
        if self.history.len() >= MAX_HISTORY {
            // Nobody asks for it any more: a later one is in, so this one is in everywhere.
            self.history.pop_front();
        }
        self.history.push_back(tx);
    }

    /// A recovery has decided: `history` is that of the copy that all nodes have now.
    pub(super) fn resolve(
        &mut self,
        out: &mut Vec<Effect>,
        history: Vec<TxId>,
        since: Generation,
        writable: bool,
    ) {
        for (tx, running) in std::mem::take(&mut self.running) {
            let status = if !writable {
                // This copy may not be the one that stays.
                2
            } else if history.contains(&tx) {
                0
            } else if tx.generation >= since {
                1
            } else {
                2
            };
            if let Some((client, reqid)) = running.client {
                out.push(Effect::Committed {
                    client,
                    reqid,
                    status,
                });
            }
        }
        self.history = history.into_iter().take(MAX_HISTORY).collect();
        self.since = Some(since);
        self.writable = writable;
    }
}

impl Database {
    /// Whether transactions are taken.
    pub fn writable(&self) -> bool {
        self.commits.writable
    }

    /// A client commits.
    pub(super) fn commit<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        client: ClientId,
        reqid: u32,
        mut changes: Vec<Change>,
    ) -> Outcome {
        if !self.serving() {
            self.wait(cx, Deferred::Commit(client, reqid, changes));
            return Ok(());
        }
        let refuse = if self.config.kind == Kind::Volatile {
            Some("transactions on volatile databases")
        } else if !self.commits.writable {
            Some("transactions without the newest lineage")
        } else if self.commits.running.len() >= MAX_RUNNING {
            Some("transactions under way")
        } else {
            None
        };
        if let Some(why) = refuse {
            cx.out.push(Effect::Note(Note::Bound(why)));
            cx.out.push(Effect::Committed {
                client,
                reqid,
                status: 1,
            });
            return Ok(());
        }
        let given = changes.iter().find(|change| change.key == SEQNUM_KEY);
        let base = if let Some(change) = given {
            sequence_of(&change.data).wrapping_sub(1)
        } else {
            // Every client of CTDB counts; one that does not is counted for.
            if !self.lock(cx, SEQNUM_KEY)? {
                self.park(cx, SEQNUM_KEY, Deferred::Commit(client, reqid, changes));
                return Ok(());
            }
            let header = self.read(cx, SEQNUM_KEY);
            cx.store.unlock(SEQNUM_KEY);
            let header = header?.unwrap_or_default();
            let base = sequence_of(&self.scratch);
            changes.push(Change {
                key: SEQNUM_KEY.to_vec(),
                rsn: Rsn(header.rsn.0 + 1),
                dmaster: self.config.me.get(),
                flags: RecordFlags::empty(),
                data: base.wrapping_add(1).to_ne_bytes().to_vec(),
            });
            base
        };
        let tx = TxId {
            generation: self.generation,
            node: self.config.me,
            number: self.number(),
        };
        self.commits.running.insert(
            tx,
            Running {
                client: Some((client, reqid)),
                waiting: self.members,
                stored: false,
                refused: false,
            },
        );
        let after = self.commits.history.back().copied();
        for to in self.others().iter() {
            let changes = changes.clone();
            let body = Body::Apply {
                tx,
                base,
                after,
                changes,
            };
            self.send(cx, to, body);
        }
        let work = Work::Apply { tx, base, changes };
        self.apply(cx, self.config.me, tx, after, work);
        Ok(())
    }

    /// A transaction to store here.
    pub(super) fn apply<S>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        tx: TxId,
        after: Option<TxId>,
        work: Work,
    ) {
        if self.config.kind != Kind::Volatile && tx.node == from {
            self.job(cx, Purpose::Apply(from, tx, after), work);
        }
    }

    /// It is stored here, or was refused.
    pub(super) fn stored<S>(&mut self, cx: &mut Cx<'_, S>, coordinator: Pnn, tx: TxId, ok: bool) {
        if ok {
            self.commits.note(tx);
            self.statistics.commits += 1;
        }
        if tx.generation != self.generation || self.recovery.is_some() {
            // The recovery decides.
            return;
        }
        if coordinator == self.config.me {
            self.applied(cx, coordinator, tx, ok);
        } else {
            self.send(cx, coordinator, Body::Applied { tx, ok });
        }
    }

    /// A node has stored a transaction that this one coordinates, or refused it.
    pub(super) fn applied<S>(&mut self, cx: &mut Cx<'_, S>, from: Pnn, tx: TxId, ok: bool) {
        let Some(running) = self.commits.running.get_mut(&tx) else {
            return;
        };
        if !running.waiting.remove(from) {
            return;
        }
        running.stored |= ok;
        running.refused |= !ok;
        let early = self.config.planted.has(Bug::AnswerBeforeLastSync) && !running.refused;
        if running.waiting.len() > usize::from(early) {
            return;
        }
        if running.stored && running.refused {
            self.want_recovery(cx, "a transaction is stored on some nodes only");
            return;
        }
        let status = i32::from(running.refused);
        let client = running.client.take();
        self.commits.running.remove(&tx);
        if let Some((client, reqid)) = client {
            cx.out.push(Effect::Committed {
                client,
                reqid,
                status,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &[u8], rsn: u64, data: &[u8]) -> Change {
        Change {
            key: key.to_vec(),
            rsn: Rsn(rsn),
            dmaster: 0,
            flags: RecordFlags::empty(),
            data: data.to_vec(),
        }
    }

    #[test]
    fn a_transaction_fits_once_and_may_be_repeated() {
        let mut copy: BTreeMap<Key, (LtdbHeader, Vec<u8>)> = BTreeMap::new();
        let changes = [
            change(b"k", 1, b"v"),
            change(SEQNUM_KEY, 1, &1u64.to_ne_bytes()),
        ];
        let check = |copy: &BTreeMap<Key, (LtdbHeader, Vec<u8>)>, base| {
            verify(base, &changes, |key| copy.get(key).cloned())
        };
        assert_eq!(check(&copy, 0), Ok(false));
        for change in &changes {
            copy.insert(change.key.clone(), (change.header(), change.data.clone()));
        }
        assert_eq!(check(&copy, 0), Ok(true), "there already");
        assert_eq!(
            check(&copy, 5),
            Err(Conflict::Sequence {
                expected: 5,
                found: 1
            })
        );
        let other = [
            change(b"k", 1, b"w"),
            change(SEQNUM_KEY, 2, &2u64.to_ne_bytes()),
        ];
        let conflict = verify(1, &other, |key| copy.get(key).cloned());
        assert!(matches!(conflict, Err(Conflict::Record { .. })));
    }
}
