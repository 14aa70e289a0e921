//! Read-only copies and their end (D.9).
//!
//! Which nodes have copies is kept in memory: only the owner's daemon uses it, and a recovery ends
//! all copies.

use std::collections::{BTreeMap, VecDeque};

use ctdb_wire::ids::{NodeSet, Pnn};

use super::database::{Cx, Database, MAX_WAITING, Outcome};
use super::message::{Body, Call, Record};
use super::park::Deferred;
use super::store::Store;
use super::types::{ClientId, Key, Note};
use crate::record::{LtdbHeader, RecordFlags};

/// Most records with copies elsewhere. Beyond, readers get the data, but no copy to keep.
const MAX_TRACKED: usize = 100_000;

/// Copies of this node's records, and revocations under way.
#[derive(Debug, Default)]
pub(super) struct ReadOnly {
    tracking: BTreeMap<Key, NodeSet>,
    revocations: BTreeMap<Key, Revocation>,
}

#[derive(Debug)]
struct Revocation {
    number: u64,
    waiting: NodeSet,
    queue: VecDeque<Deferred>,
}

impl ReadOnly {
    pub(super) fn forget(&mut self, client: ClientId) {
        for revocation in self.revocations.values_mut() {
            revocation.queue.retain(|work| !work.of(client));
        }
    }

    /// Ends everything; what waited is returned.
    pub(super) fn drain(&mut self) -> Vec<Deferred> {
        self.tracking.clear();
        std::mem::take(&mut self.revocations)
            .into_values()
            .flat_map(|revocation| revocation.queue)
            .collect()
    }
}

impl Database {
    /// Hands out a read-only copy of an owned record; its data is in `self.scratch`.
    pub(super) fn delegate<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        mut header: LtdbHeader,
        call: &Call,
    ) -> Outcome {
        let Some(readonly) = &mut self.readonly else {
            return Ok(());
        };
        let room = readonly.tracking.len() < MAX_TRACKED || readonly.tracking.contains_key(key);
        if room {
            if !header.flags.contains(RecordFlags::RO_HAVE_DELEGATIONS) {
                // Two between the owner and the copies: the data that ends them fits in between.
                header.rsn.0 += 3;
                header.flags |= RecordFlags::RO_HAVE_DELEGATIONS;
                cx.store.write(key, &header, &self.scratch)?;
            }
            readonly
                .tracking
                .entry(key.to_vec())
                .or_default()
                .insert(call.origin);
            header.rsn.0 = header.rsn.0.saturating_sub(2);
            header.flags |= RecordFlags::RO_HAVE_READONLY;
            self.statistics.delegations += 1;
            self.touched.insert(call.origin);
        }
        header.flags.remove(RecordFlags::RO_HAVE_DELEGATIONS);
        let record = Record::new(key, &header, &self.scratch);
        let reqid = call.reqid;
        self.send(cx, call.origin, Body::Reply { reqid, record });
        Ok(())
    }

    /// Keeps a read-only copy that came, under the record's lock.
    pub(super) fn take_copy<S: Store>(&mut self, cx: &mut Cx<'_, S>, record: &Record) -> Outcome {
        let newer = self
            .read(cx, &record.key)?
            .is_none_or(|known| record.rsn > known.rsn);
        if newer {
            cx.store
                .write(&record.key, &record.header(), &record.data)?;
        }
        Ok(())
    }

    /// Begins to end the copies of an owned record; `work` waits for it.
    pub(super) fn revoke<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        mut header: LtdbHeader,
        work: Deferred,
    ) -> Outcome {
        let number = self.number();
        let others = self.others();
        let readonly = self.readonly.get_or_insert_default();
        let waiting: NodeSet = readonly
            .tracking
            .remove(key)
            .unwrap_or_default()
            .iter()
            .filter(|node| others.contains(*node))
            .collect();
        let revocation = Revocation {
            number,
            waiting,
            queue: VecDeque::from([work]),
        };
        readonly.revocations.insert(key.to_vec(), revocation);
        self.statistics.revocations += 1;
        header.flags |= RecordFlags::RO_REVOKING_READONLY;
        cx.store.write(key, &header, &self.scratch)?;
        if waiting.is_empty() {
            self.later.push_back(Deferred::Revoked(key.to_vec()));
            return Ok(());
        }
        header.rsn.0 = header.rsn.0.saturating_sub(1);
        header.flags.remove(RecordFlags::RO_FLAGS);
        header.flags |= RecordFlags::MIGRATED_WITH_DATA;
        for to in waiting.iter() {
            let record = Record::new(key, &header, &self.scratch);
            self.send(
                cx,
                to,
                Body::Refresh {
                    revocation: number,
                    record,
                },
            );
        }
        Ok(())
    }

    /// Puts something behind the revocation that runs.
    pub(super) fn behind_revocation<S>(&mut self, cx: &mut Cx<'_, S>, key: &[u8], work: Deferred) {
        let running = self
            .readonly
            .as_mut()
            .and_then(|readonly| readonly.revocations.get_mut(key));
        match running {
            Some(revocation) if revocation.queue.len() < MAX_WAITING => {
                revocation.queue.push_back(work);
            }
            Some(_) => {
                let note = Note::Bound("calls behind a revocation");
                cx.out.push(super::types::Effect::Note(note));
                if !work.refuse(cx.out) {
                    self.want_recovery(cx, "too many wait for a revocation");
                }
            }
            None => {
                // A flag without a revocation: a client wrote it. Nobody has copies.
                self.later.push_back(Deferred::Revoked(key.to_vec()));
                self.later.push_back(work);
            }
        }
    }

    /// A read-only copy of this node ends.
    pub(super) fn refresh<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        revocation: u64,
        record: Record,
    ) -> Outcome {
        if !self.lock(cx, &record.key)? {
            let key = record.key.clone();
            let body = Body::Refresh { revocation, record };
            self.park(cx, &key, Deferred::Peer(from, body));
            return Ok(());
        }
        let outcome = match self.read(cx, &record.key) {
            Ok(Some(known)) if known.rsn < record.rsn && known.dmaster != self.config.me.get() => {
                cx.store.write(&record.key, &record.header(), &record.data)
            }
            Ok(_) => Ok(()),
            Err(fault) => Err(fault),
        };
        cx.store.unlock(&record.key);
        outcome?;
        self.send(cx, from, Body::Refreshed { revocation });
        Ok(())
    }

    /// A node has ended its copy.
    pub(super) fn refreshed<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        number: u64,
    ) -> Outcome {
        let Some(readonly) = &mut self.readonly else {
            return Ok(());
        };
        let found = readonly
            .revocations
            .iter_mut()
            .find(|(_, revocation)| revocation.number == number);
        let Some((key, revocation)) = found else {
            return Ok(());
        };
        if revocation.waiting.remove(from) && revocation.waiting.is_empty() {
            let key = key.clone();
            return self.revoked(cx, &key);
        }
        Ok(())
    }

    /// All copies have ended: the record is an ordinary one again.
    pub(super) fn revoked<S: Store>(&mut self, cx: &mut Cx<'_, S>, key: &[u8]) -> Outcome {
        if !self.lock(cx, key)? {
            self.park(cx, key, Deferred::Revoked(key.to_vec()));
            return Ok(());
        }
        let outcome = match self.read(cx, key) {
            Ok(Some(mut header)) if header.dmaster == self.config.me.get() => {
                header.flags.remove(RecordFlags::RO_FLAGS);
                header.rsn.0 += 2;
                cx.store.write(key, &header, &self.scratch)
            }
            Ok(_) => Ok(()),
            Err(fault) => Err(fault),
        };
        cx.store.unlock(key);
        if let Some(readonly) = &mut self.readonly
            && let Some(revocation) = readonly.revocations.remove(key)
        {
            self.later.extend(revocation.queue);
        }
        outcome
    }
}
