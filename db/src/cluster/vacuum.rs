//! Deletion (D.13): empty records leave the nodes, the location master last.
//!
//! A run works in pieces of [`BUDGET`] records, each under the lock of one chain that is only tried,
//! so no client waits for it longer than for another client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ctdb_wire::ids::{BootTime, NodeSet, Pnn};
use serde_bytes::ByteBuf;

use super::call::Caller;
use super::database::{Cx, Database, Outcome};
use super::message::Body;
use super::store::{Cursor, Store, StoreFault};
use super::types::{CallFlags, CallKind, Effect, Key, Kind, Note};
use crate::record::{LtdbHeader, RecordFlags, Rsn};

/// Records that one step looks at.
const BUDGET: usize = 128;

/// Most records in each queue. What finds no room is found by the next full run.
const MAX_QUEUE: usize = 500_000;

/// Most records that a run asks the others about at a time: so many they, and this node at the end, look
/// at in one step.
const MAX_ASKED: usize = 512;

/// The vacuum of one database.
#[derive(Debug)]
pub(super) struct Vacuum {
    /// Records reported empty, with their sequence numbers then.
    queue: BTreeMap<Key, Rsn>,
    /// Records that another node wants fetched to be deleted.
    fetch: BTreeSet<Key>,
    run: Option<Run>,
    runs: u32,
    number: u64,
    due: Option<BootTime>,
    demanded: Option<bool>,
}

#[derive(Debug)]
struct Run {
    started: BootTime,
    scan: Option<Cursor>,
    fetch: VecDeque<Key>,
    fetching: BTreeSet<Key>,
    delete: VecDeque<(Key, Rsn)>,
    /// For other location masters.
    elsewhere: BTreeMap<Pnn, Vec<ByteBuf>>,
    /// To be removed when all others have. First all copies with data are replaced by empty ones,
    /// and only when there is none left are the empty ones removed: whoever dies in between, no old
    /// data comes back.
    asked: Vec<(Key, Rsn)>,
    emptied: bool,
    waiting: NodeSet,
    kept: BTreeSet<u32>,
    removed: u64,
}

impl Vacuum {
    pub(super) fn new() -> Self {
        Self {
            queue: BTreeMap::new(),
            fetch: BTreeSet::new(),
            run: None,
            runs: 0,
            number: 0,
            due: None,
            demanded: None,
        }
    }

    /// A record was emptied.
    pub(super) fn schedule(&mut self, key: &[u8], header: &LtdbHeader) {
        if self.queue.len() < MAX_QUEUE || self.queue.contains_key(key) {
            self.queue.insert(key.to_vec(), header.rsn);
        }
    }

    /// It is in use again.
    pub(super) fn unschedule(&mut self, key: &[u8]) {
        self.queue.remove(key);
    }

    /// Another node wants these deleted by this one, their location master.
    pub(super) fn fetch(&mut self, keys: Vec<ByteBuf>) {
        for key in keys {
            if self.fetch.len() < MAX_QUEUE {
                self.fetch.insert(key.into_vec());
            }
        }
    }

    /// It has come, or a client's call for it was answered.
    pub(super) fn fetched(&mut self, key: &[u8], header: &LtdbHeader) {
        if let Some(run) = &mut self.run
            && run.fetching.remove(key)
        {
            self.schedule(key, header);
        }
    }

    /// Calls under way may be lost: those of the vacuum are not sent again.
    pub(super) fn fetches_lost(&mut self) {
        if let Some(run) = &mut self.run {
            run.fetching.clear();
        }
    }

    /// A run as soon as may be.
    pub(super) fn demand(&mut self, now: BootTime, full: bool) {
        self.demanded = Some(full || self.demanded == Some(true));
        self.due = Some(now);
    }

    /// A recovery: nothing that is known here holds any more.
    pub(super) fn stop(&mut self) {
        self.run = None;
        self.fetch.clear();
    }

    pub(super) fn next_wake(&self, serving: bool, max_run: Duration) -> Option<BootTime> {
        if !serving {
            return None;
        }
        match &self.run {
            Some(run) if run.waiting.is_empty() && run.fetching.is_empty() => Some(BootTime::ZERO),
            Some(run) => Some(run.started + max_run),
            None => self.due,
        }
    }
}

impl Database {
    /// Records reported empty and not yet looked at, and those to be fetched.
    pub fn vacuum_queues(&self) -> (usize, usize) {
        (self.vacuum.queue.len(), self.vacuum.fetch.len())
    }

    /// The next piece of a run, or the next run.
    pub(super) fn vacuum_step<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        let interval = self.config.tunables.vacuum_interval;
        if self.config.kind != Kind::Volatile || !self.serving() {
            return Ok(());
        }
        let Some(run) = &mut self.vacuum.run else {
            if interval.is_zero() && self.vacuum.demanded.is_none() {
                return Ok(());
            }
            match self.vacuum.due {
                None => self.vacuum.due = Some(cx.now + interval),
                Some(due) if due <= cx.now => self.vacuum_begin(cx.now),
                Some(_) => {}
            }
            return Ok(());
        };
        if cx.now.since(run.started) > self.config.tunables.vacuum_max_run {
            self.vacuum_end(cx);
            return Ok(());
        }
        if !run.waiting.is_empty() || !run.fetching.is_empty() {
            return Ok(());
        }
        if let Some(mut cursor) = run.scan {
            let me = self.config.me.get();
            let queue = &mut run.delete;
            let end = cx
                .store
                .scan(&mut cursor, BUDGET, &mut |key, header, data| {
                    if data.is_empty() && header.dmaster == me && queue.len() < MAX_QUEUE {
                        queue.push_back((key.to_vec(), header.rsn));
                    }
                })?;
            run.scan = (!end).then_some(cursor);
            return Ok(());
        }
        if !run.fetch.is_empty() {
            return self.vacuum_fetch(cx);
        }
        if !run.delete.is_empty() && run.asked.len() < MAX_ASKED && !run.emptied {
            for _ in 0..BUDGET {
                let Some(run) = &mut self.vacuum.run else {
                    break;
                };
                let Some((key, rsn)) = run.delete.pop_front() else {
                    break;
                };
                self.vacuum_look(cx, key, rsn)?;
            }
            return Ok(());
        }
        if !run.asked.is_empty() {
            return self.vacuum_ask(cx);
        }
        for (lmaster, keys) in std::mem::take(&mut run.elsewhere) {
            for keys in keys.chunks(MAX_ASKED) {
                let keys = keys.to_vec();
                self.send(cx, lmaster, Body::VacuumFetch { keys });
            }
        }
        self.vacuum_end(cx);
        Ok(())
    }

    fn vacuum_begin(&mut self, now: BootTime) {
        let fast = self.config.tunables.vacuum_fast_path;
        let vacuum = &mut self.vacuum;
        vacuum.runs += 1;
        vacuum.number += 1;
        let full = vacuum.demanded.take() == Some(true) || (fast > 0 && vacuum.runs > fast);
        if full {
            vacuum.runs = 0;
        }
        vacuum.run = Some(Run {
            started: now,
            scan: full.then_some(Cursor::default()),
            fetch: std::mem::take(&mut vacuum.fetch).into_iter().collect(),
            fetching: BTreeSet::new(),
            delete: std::mem::take(&mut vacuum.queue).into_iter().collect(),
            elsewhere: BTreeMap::new(),
            asked: Vec::new(),
            emptied: false,
            waiting: NodeSet::EMPTY,
            kept: BTreeSet::new(),
            removed: 0,
        });
    }

    fn vacuum_end<S>(&mut self, cx: &mut Cx<'_, S>) {
        let interval = self.config.tunables.vacuum_interval;
        self.vacuum.due = (!interval.is_zero()).then(|| cx.now + interval);
        if let Some(run) = self.vacuum.run.take() {
            self.statistics.vacuumed += run.removed;
            cx.out.push(Effect::Note(Note::Vacuumed {
                removed: run.removed,
                took: cx.now.since(run.started),
            }));
        }
    }

    /// Fetches records of which others say that they are empty.
    fn vacuum_fetch<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        for _ in 0..BUDGET {
            let Some(run) = &mut self.vacuum.run else {
                break;
            };
            let Some(key) = run.fetch.pop_front() else {
                break;
            };
            if self.collapsed.contains_key(&key) || !self.lock(cx, &key)? {
                continue;
            }
            let header = self.read(cx, &key);
            cx.store.unlock(&key);
            let Some(header) = header? else { continue };
            if header.dmaster == self.config.me.get() {
                continue;
            }
            if let Some(run) = &mut self.vacuum.run {
                run.fetching.insert(key.clone());
            }
            self.call_others(
                cx,
                &key,
                &header,
                CallKind::Null,
                CallFlags::VACUUM_MIGRATION,
                Caller::Vacuum,
            );
        }
        Ok(())
    }

    /// Looks at a record that was empty.
    fn vacuum_look<S: Store>(&mut self, cx: &mut Cx<'_, S>, key: Key, rsn: Rsn) -> Outcome {
        if self.pushed.keeps(cx.now, &key) || !self.lock(cx, &key)? {
            // In use, or a push is under way: the next run looks again.
            self.vacuum.queue.entry(key).or_insert(rsn);
            return Ok(());
        }
        let outcome = self.vacuum_look_locked(cx, &key, rsn);
        cx.store.unlock(&key);
        outcome
    }

    fn vacuum_look_locked<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        rsn: Rsn,
    ) -> Outcome {
        let me = self.config.me;
        let Some(mut header) = self.deletable(cx, key, rsn)? else {
            return Ok(());
        };
        let lmaster = self.lmaster(key);
        let Some(run) = &mut self.vacuum.run else {
            return Ok(());
        };
        match lmaster {
            Some(lmaster) if lmaster != me => run
                .elsewhere
                .entry(lmaster)
                .or_default()
                .push(ByteBuf::from(key)),
            // Always with the others: an earlier location master may have an empty copy with a higher
            // number than the record's next life begins with.
            // The others' tombstones fit between this copy and theirs.
            _ => {
                header.rsn.0 += 1;
                cx.store.write(key, &header, &[])?;
                run.asked.push((key.to_vec(), header.rsn));
            }
        }
        Ok(())
    }

    /// The header of a record that is empty, owned, without copies and unchanged since.
    fn deletable<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        rsn: Rsn,
    ) -> Result<Option<LtdbHeader>, StoreFault> {
        let header = self.read(cx, key)?;
        Ok(header.filter(|header| {
            self.scratch.is_empty()
                && header.dmaster == self.config.me.get()
                && header.rsn == rsn
                && !header.flags.intersects(RecordFlags::RO_FLAGS)
                && !self.held.contains_key(key)
        }))
    }

    /// Asks all others to delete their copies first.
    fn vacuum_ask<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        let others = self.others();
        let run_number = self.vacuum.number;
        let Some(run) = &mut self.vacuum.run else {
            return Ok(());
        };
        run.kept.clear();
        run.waiting = others;
        let remove = run.emptied;
        let records: Vec<_> = run
            .asked
            .iter()
            .map(|(key, rsn)| (ByteBuf::from(key.clone()), *rsn))
            .collect();
        for to in others.iter() {
            let records = records.clone();
            let body = Body::TryDelete {
                run: run_number,
                records,
                remove,
            };
            self.send(cx, to, body);
        }
        if others.is_empty() {
            return self.vacuum_remove(cx);
        }
        Ok(())
    }

    /// `TRY_DELETE_RECORDS` of another node.
    pub(super) fn try_delete<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        run: u64,
        records: &[(ByteBuf, Rsn)],
        remove: bool,
    ) -> Outcome {
        let mut kept = Vec::new();
        for (index, (key, rsn)) in records.iter().enumerate() {
            let stays = self.pushed.keeps(cx.now, key);
            if stays || self.lmaster(key) != Some(from) || !self.lock(cx, key)? {
                kept.push(index as u32);
                continue;
            }
            let known = self.read(cx, key);
            let outcome = match known {
                Ok(None) => Ok(true),
                Ok(Some(mut header)) => {
                    let refuse = header.rsn >= *rsn
                        || (remove && !self.scratch.is_empty())
                        || header.flags.intersects(RecordFlags::RO_FLAGS)
                        || header.dmaster == self.config.me.get()
                        || self.collapsed.contains_key(key.as_slice());
                    if refuse {
                        Ok(false)
                    } else if remove {
                        cx.store.remove(key).map(|()| true)
                    } else {
                        header.rsn = Rsn(rsn.0 - 1);
                        cx.store.write(key, &header, &[]).map(|()| true)
                    }
                }
                Err(fault) => Err(fault),
            };
            cx.store.unlock(key);
            if !outcome? {
                kept.push(index as u32);
            }
        }
        self.send(cx, from, Body::Kept { run, kept });
        Ok(())
    }

    /// What a node could not delete.
    pub(super) fn kept<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        number: u64,
        kept: &[u32],
    ) -> Outcome {
        if number != self.vacuum.number {
            return Ok(());
        }
        let Some(run) = &mut self.vacuum.run else {
            return Ok(());
        };
        run.kept.extend(kept.iter().copied());
        if !run.waiting.remove(from) || !run.waiting.is_empty() {
            return Ok(());
        }
        if run.emptied {
            return self.vacuum_remove(cx);
        }
        run.emptied = true;
        let kept = std::mem::take(&mut run.kept);
        let mut index = 0;
        run.asked.retain(|_| {
            index += 1;
            !kept.contains(&(index - 1))
        });
        Ok(())
    }

    /// All others have deleted their copies of these.
    fn vacuum_remove<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        let Some(run) = &mut self.vacuum.run else {
            return Ok(());
        };
        run.emptied = false;
        let (asked, kept) = (
            std::mem::take(&mut run.asked),
            std::mem::take(&mut run.kept),
        );
        for (index, (key, rsn)) in asked.into_iter().enumerate() {
            if kept.contains(&(index as u32)) {
                continue;
            }
            if !self.lock(cx, &key)? {
                self.vacuum.queue.entry(key).or_insert(rsn);
                continue;
            }
            let outcome = match self.deletable(cx, &key, rsn) {
                Ok(Some(_)) => cx.store.remove(&key).map(|()| 1),
                Ok(None) => Ok(0),
                Err(fault) => Err(fault),
            };
            cx.store.unlock(&key);
            let removed = outcome?;
            if let Some(run) = &mut self.vacuum.run {
                run.removed += removed;
            }
        }
        Ok(())
    }
}
