//! What waits for a chain lock. Nothing here blocks: the wait is the shell's, and what waits is
//! processed again from the beginning, in order, when the chain is marked (D.5).

use std::collections::{BTreeMap, VecDeque};

use ctdb_wire::ids::Pnn;

use super::call::ClientCall;
use super::commit::Change;
use super::database::{Cx, Database, MAX_WAITING, Outcome};
use super::message::Body;
use super::store::{Store, StoreFault};
use super::types::{ClientId, Effect, Key, Note, Ticket};

/// Something that waits, to be processed from the beginning.
#[derive(Debug)]
pub(super) enum Deferred {
    /// A client's call.
    Client(ClientCall),
    /// A node's message of this generation.
    Peer(Pnn, Body),
    /// All read-only copies have ended.
    Revoked(Key),
    /// A client's transaction.
    Commit(ClientId, u32, Vec<Change>),
    /// A client's traverse.
    Traverse(ClientId, u32, bool),
}

impl Deferred {
    /// Whether it is a client's.
    pub(super) fn of(&self, client: ClientId) -> bool {
        match self {
            Self::Client(call) => call.client == client,
            Self::Commit(other, ..) | Self::Traverse(other, ..) => *other == client,
            Self::Peer(..) | Self::Revoked(_) => false,
        }
    }

    /// Whether it is any client's: it survives a recovery.
    pub(super) fn of_client(&self) -> bool {
        matches!(
            self,
            Self::Client(_) | Self::Commit(..) | Self::Traverse(..)
        )
    }

    /// What its client is told at a bound; `false` if it has no client.
    pub(super) fn refuse(&self, out: &mut Vec<Effect>) -> bool {
        match self {
            Self::Client(call) => call.refuse(out),
            Self::Commit(client, reqid, _) => out.push(Effect::Committed {
                client: *client,
                reqid: *reqid,
                status: 1,
            }),
            Self::Traverse(client, reqid, _) => out.push(Effect::Traversed {
                client: *client,
                reqid: *reqid,
                records: Vec::new(),
                end: true,
            }),
            Self::Peer(..) | Self::Revoked(_) => return false,
        }
        true
    }
}

/// All that waits for chain locks, one queue for each key.
#[derive(Debug, Default)]
pub(super) struct Parked {
    queues: BTreeMap<Key, (Ticket, VecDeque<Deferred>)>,
    keys: BTreeMap<Ticket, Key>,
    /// The key whose queue is being processed, its chain marked.
    draining: Option<Key>,
    count: usize,
}

impl Parked {
    /// Whether something waits for this key.
    pub(super) fn waits(&self, key: &[u8]) -> bool {
        self.queues.contains_key(key)
    }

    /// Takes everything out; the waits that the shell still has end without effect.
    pub(super) fn drain(&mut self) -> Vec<Deferred> {
        self.keys.clear();
        self.count = 0;
        std::mem::take(&mut self.queues)
            .into_values()
            .flat_map(|(_, queue)| queue)
            .collect()
    }

    /// Drops what a client waits for.
    pub(super) fn forget(&mut self, client: ClientId) {
        for (_, queue) in self.queues.values_mut() {
            queue.retain(|work| !work.of(client));
        }
    }
}

impl Database {
    /// Tries the lock of a key's chain. `false` if it is taken, or if others came first.
    pub(super) fn lock<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
    ) -> Result<bool, StoreFault> {
        if self.parked.waits(key) && self.parked.draining.as_deref() != Some(key) {
            return Ok(false);
        }
        let locked = cx.store.try_lock(key)?;
        if !locked {
            self.statistics.busy_chains += 1;
        }
        Ok(locked)
    }

    /// Puts something behind the wait for a key's chain, and begins the wait if it is the first.
    pub(super) fn park<S: Store>(&mut self, cx: &mut Cx<'_, S>, key: &[u8], work: Deferred) {
        if self.parked.count >= MAX_WAITING {
            cx.out
                .push(Effect::Note(Note::Bound("waits for chain locks")));
            if !work.refuse(cx.out) {
                self.want_recovery(cx, "too many wait for chain locks");
            }
            return;
        }
        self.parked.count += 1;
        if let Some((_, queue)) = self.parked.queues.get_mut(key) {
            queue.push_back(work);
            return;
        }
        let ticket = Ticket(self.number());
        self.parked
            .queues
            .insert(key.to_vec(), (ticket, VecDeque::from([work])));
        self.parked.keys.insert(ticket, key.to_vec());
        cx.out.push(Effect::WaitChain {
            ticket,
            key: key.to_vec(),
        });
    }

    /// Puts something of a client away until the database is served.
    pub(super) fn wait<S>(&mut self, cx: &mut Cx<'_, S>, work: Deferred) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(work);
        } else {
            cx.out
                .push(Effect::Note(Note::Bound("clients during a recovery")));
            work.refuse(cx.out);
        }
    }

    /// The chain is marked: all that waits for the key, in order.
    pub(super) fn granted<S: Store>(&mut self, cx: &mut Cx<'_, S>, ticket: Ticket) -> Outcome {
        let Some(key) = self.parked.keys.remove(&ticket) else {
            return Ok(());
        };
        let Some((_, queue)) = self.parked.queues.remove(&key) else {
            return Ok(());
        };
        self.parked.count -= queue.len().min(self.parked.count);
        self.parked.draining = Some(key);
        let mut outcome = Ok(());
        for work in queue {
            if let Err(fault) = self.again(cx, work) {
                outcome = Err(fault);
            }
        }
        self.parked.draining = None;
        outcome
    }
}
