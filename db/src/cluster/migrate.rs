//! How a record gets to another node (D.8), how long it stays, and pushed records (D.16).

use std::collections::VecDeque;

use ctdb_wire::ids::{BootTime, Pnn};

use super::database::{Cx, Database, Outcome};
use super::hold::{Habit, Tenure, Verdict, fingerprint};
use super::message::{Body, Call, Record};
use super::park::Deferred;
use super::planted::Bug;
use super::rule::{self, Stored};
use super::store::Store;
use super::types::{Effect, Key, Note, Work};
use crate::record::{LtdbHeader, RecordFlags};

/// Most records whose stay, or way, is remembered. Beyond, a record goes when it is asked for.
pub(super) const MAX_TENURES: usize = 16_384;

/// Nodes that wait for a record that stays: those whose calls went the longest way first, then in the
/// order of their arrival. A call that waited where the record was before comes behind it, over the
/// location master; one of the node that has just given it away comes straight, and faster.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) due: BootTime,
    pub(super) queue: VecDeque<(Pnn, Call)>,
}

impl Held {
    pub(super) fn push(&mut self, from: Pnn, call: Call) {
        let before = |(_, other): &&(Pnn, Call)| other.hops >= call.hops;
        let place = self.queue.iter().take_while(before).count();
        self.queue.insert(place, (from, call));
    }
}

impl Database {
    /// Stores a record by the rule of D.2; `raise` where it has just arrived.
    fn store<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        header: &mut LtdbHeader,
        data: &[u8],
        raise: bool,
    ) -> Outcome {
        let lmaster = self.lmaster(key);
        match rule::store(header, data.is_empty(), self.config.me, lmaster, raise) {
            Stored::Keep { delete_later } => {
                cx.store.write(key, header, data)?;
                if delete_later {
                    self.vacuum.schedule(key, header);
                } else {
                    self.vacuum.unschedule(key);
                }
            }
            Stored::Remove => cx.store.remove(key)?,
        }
        Ok(())
    }

    /// Gives an owned record away; its data is in `self.scratch`, its chain is locked.
    pub(super) fn migrate<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        mut header: LtdbHeader,
        to: Pnn,
        reqid: u64,
    ) -> Outcome {
        let data = std::mem::take(&mut self.scratch);
        if !data.is_empty() {
            header.flags |= RecordFlags::MIGRATED_WITH_DATA;
        }
        header.dmaster = to.get();
        let record = Record::new(key, &header, &data);
        let lmaster = self.lmaster(key);
        self.store(cx, key, &mut header, &data, false)?;
        if data.is_empty() {
            self.remember(key, to);
        }
        self.scratch = data;
        self.tenures.remove(key);
        self.statistics.migrations_out += 1;
        cx.out.push(Effect::Went {
            key: key.to_vec(),
            to,
        });
        match lmaster {
            Some(lmaster) if lmaster != self.config.me => {
                self.touched.insert(lmaster);
                let owner = to;
                self.send(
                    cx,
                    lmaster,
                    Body::Moved {
                        reqid,
                        owner,
                        record,
                    },
                );
            }
            _ => {
                self.touched.insert(to);
                self.send(cx, to, Body::Grant { reqid, record });
            }
        }
        Ok(())
    }

    /// Remembers where a record went whose copy may not be kept (D.2): only a hint, as a copy's pointer is.
    fn remember(&mut self, key: &[u8], to: Pnn) {
        if self.left_for.len() >= MAX_TENURES && !self.left_for.contains_key(key) {
            // All is learned again.
            self.left_for.clear();
        }
        self.left_for.insert(key.to_vec(), to);
    }

    /// `REQ_DMASTER`: the location master hears that a record moves, and sees to it.
    pub(super) fn moved<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        reqid: u64,
        owner: Pnn,
        record: Record,
    ) -> Outcome {
        let me = self.config.me;
        self.touched.insert(from);
        if self.lmaster(&record.key) != Some(me) || !self.members.contains(owner) {
            self.want_recovery(
                cx,
                "a record was moved over a node that is not its location master",
            );
            return Ok(());
        }
        if !self.lock(cx, &record.key)? {
            let key = record.key.clone();
            let body = Body::Moved {
                reqid,
                owner,
                record,
            };
            self.park(cx, &key, Deferred::Peer(from, body));
            return Ok(());
        }
        let outcome = self.moved_locked(cx, from, reqid, owner, &record);
        cx.store.unlock(&record.key);
        outcome
    }

    fn moved_locked<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        reqid: u64,
        owner: Pnn,
        record: &Record,
    ) -> Outcome {
        let known = self.read_or_create(cx, &record.key)?;
        let me = self.config.me;
        if known.dmaster != from.get() {
            self.want_recovery(cx, "a record was moved by a node that does not own it");
            return Ok(());
        }
        if owner == me {
            return self.become_owner(cx, reqid, record);
        }
        let mut header = LtdbHeader {
            dmaster: owner.get(),
            ..record.header()
        };
        self.store(cx, &record.key, &mut header, &record.data, false)?;
        self.touched.insert(owner);
        let record = record.clone();
        self.send(cx, owner, Body::Grant { reqid, record });
        Ok(())
    }

    /// `REPLY_DMASTER`: a record arrives.
    pub(super) fn grant<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        reqid: u64,
        record: Record,
    ) -> Outcome {
        self.touched.insert(from);
        let old = self.config.planted.has(Bug::OldGenerationAccepted);
        if self.lmaster(&record.key) != Some(from) && !old {
            self.want_recovery(
                cx,
                "a record was granted by a node that is not its location master",
            );
            return Ok(());
        }
        if !self.lock(cx, &record.key)? {
            let key = record.key.clone();
            self.park(
                cx,
                &key,
                Deferred::Peer(from, Body::Grant { reqid, record }),
            );
            return Ok(());
        }
        let outcome = self.become_owner(cx, reqid, &record);
        cx.store.unlock(&record.key);
        outcome
    }

    /// This node owns the record from now on.
    fn become_owner<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        reqid: u64,
        record: &Record,
    ) -> Outcome {
        let mut header = LtdbHeader {
            dmaster: self.config.me.get(),
            ..record.header()
        };
        let raise = !self.config.planted.has(Bug::RsnNotRaised);
        self.store(cx, &record.key, &mut header, &record.data, raise)?;
        self.left_for.remove(&record.key);
        self.statistics.migrations_in += 1;
        if let Some(count) = self.hot.arrived(cx.now, &record.key) {
            let key = record.key.clone();
            cx.out.push(Effect::Note(Note::Hot { key, count }));
        }
        self.begin_tenure(cx.now, &record.key, &record.data);
        let arrived = Record {
            rsn: header.rsn,
            dmaster: header.dmaster,
            flags: header.flags,
            ..record.clone()
        };
        self.complete(cx, reqid, &arrived);
        Ok(())
    }

    fn begin_tenure(&mut self, now: BootTime, key: &[u8], data: &[u8]) {
        let hold = self.config.tunables.hold;
        if self.tenures.len() >= MAX_TENURES {
            let lasting = hold.limit.max(hold.first);
            self.tenures
                .retain(|_, tenure| now < tenure.since + lasting || now < tenure.pinned);
            if self.tenures.len() >= MAX_TENURES {
                return;
            }
        }
        let sticky = self
            .sticky
            .as_ref()
            .and_then(|sticky| sticky.get(key))
            .is_some_and(|until| now < *until);
        let pinned = if sticky {
            now + self.config.tunables.sticky_pindown
        } else {
            BootTime::ZERO
        };
        let seen = fingerprint(data);
        self.tenures.insert(
            key.to_vec(),
            Tenure {
                since: now,
                seen,
                asked: None,
                pinned,
            },
        );
    }

    /// May the record in `self.scratch` go?
    pub(super) fn verdict(&mut self, now: BootTime, key: &[u8]) -> Verdict {
        let Some(tenure) = self.tenures.get_mut(key) else {
            return Verdict::Go;
        };
        let hold = self.config.tunables.hold;
        let mut habit = self.habits.get(key).copied().unwrap_or_default();
        let before = habit;
        let verdict = hold.verdict(now, tenure, &mut habit, fingerprint(&self.scratch));
        if habit != before {
            self.set_habit(key, habit);
        }
        if verdict != Verdict::Go {
            self.statistics.holds += 1;
        }
        verdict
    }

    fn set_habit(&mut self, key: &[u8], habit: Habit) {
        if habit == Habit::default() {
            self.habits.remove(key);
            return;
        }
        if self.habits.len() >= MAX_TENURES && !self.habits.contains_key(key) {
            // All is learned again.
            self.habits.clear();
        }
        self.habits.insert(key.to_vec(), habit);
    }

    /// Others want a record that is in use here.
    pub(super) fn wanted_in_use(&mut self, now: BootTime, key: &[u8]) {
        let grace = self.config.tunables.hold.grace;
        let tenure = self.tenures.get(key);
        if tenure.is_some_and(|tenure| now >= tenure.since + grace) {
            self.habits.remove(key);
        }
    }

    /// A record that went round for long is kept a while each time that it comes (D.10).
    pub(super) fn maybe_sticky(&mut self, now: BootTime, key: &[u8], hops: u16) {
        let tunables = &self.config.tunables;
        if hops < tunables.hopcount_make_sticky {
            return;
        }
        if let Some(sticky) = &mut self.sticky {
            if sticky.len() >= MAX_TENURES {
                sticky.retain(|_, until| now < *until);
            }
            if sticky.len() < MAX_TENURES {
                sticky.insert(key.to_vec(), now + tunables.sticky_duration);
            }
        }
    }

    /// Puts a call into the queue of a record that stays until `due`.
    pub(super) fn hold(&mut self, key: Key, due: BootTime, from: Pnn, call: Call) {
        self.held
            .entry(key)
            .or_insert_with(|| Held {
                due,
                queue: VecDeque::new(),
            })
            .push(from, call);
    }

    /// Records whose time is up.
    pub(super) fn holds_due<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        if !self.serving() {
            return Ok(());
        }
        let due: Vec<Key> = self
            .held
            .iter()
            .filter(|(_, held)| held.due <= cx.now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.hold_due(cx, &key)?;
        }
        Ok(())
    }

    /// Looks at a record that others wait for.
    pub(super) fn hold_due<S: Store>(&mut self, cx: &mut Cx<'_, S>, key: &[u8]) -> Outcome {
        if !self.held.contains_key(key) {
            return Ok(());
        }
        if !self.lock(cx, key)? {
            // Busy: it is in use. Whoever waits has waited enough to be next.
            self.wanted_in_use(cx.now, key);
            if let Some(held) = self.held.remove(key) {
                for (from, call) in held.queue {
                    self.park(cx, key, Deferred::Peer(from, Body::Call(call)));
                }
            }
            return Ok(());
        }
        let outcome = self.read(cx, key).map(|_| self.verdict(cx.now, key));
        cx.store.unlock(key);
        match outcome? {
            Verdict::Until(due) => {
                if let Some(held) = self.held.get_mut(key) {
                    held.due = due;
                }
                Ok(())
            }
            Verdict::Go => self.let_go(cx, key),
        }
    }

    /// Serves the queue of a record: the first gets it, the others follow it.
    fn let_go<S: Store>(&mut self, cx: &mut Cx<'_, S>, key: &[u8]) -> Outcome {
        self.tenures.remove(key);
        let queue = self.held.remove(key).map(|held| held.queue);
        for (from, call) in queue.unwrap_or_default() {
            self.peer_call(cx, from, call)?;
        }
        Ok(())
    }

    /// In a database that is used together with this one the record of the same key went to `to`:
    /// this one's record follows if it is here, since it will be asked for next.
    pub(super) fn companion<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        to: Pnn,
    ) -> Outcome {
        if !self.serving() || to == self.config.me || !self.members.contains(to) {
            return Ok(());
        }
        if self.held.contains_key(key) {
            return self.let_go(cx, key);
        }
        if self.parked.waits(key) || !self.lock(cx, key)? {
            return Ok(());
        }
        let header = match self.read(cx, key) {
            Ok(header) => header,
            Err(fault) => {
                cx.store.unlock(key);
                return Err(fault);
            }
        };
        let outcome = match header {
            Some(header)
                if header.dmaster == self.config.me.get()
                    && !header.flags.intersects(RecordFlags::RO_FLAGS)
                    && !self.scratch.is_empty() =>
            {
                // No call waits for it there: 0 is never the number of one.
                self.migrate(cx, key, header, to, 0)
            }
            _ => Ok(()),
        };
        cx.store.unlock(key);
        outcome
    }

    /// A client of this node wants a record on all nodes.
    pub(super) fn push_to_all<S>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        header: &LtdbHeader,
        data: &[u8],
    ) {
        let record = Record::new(key, header, data);
        let until = cx.now + self.config.tunables.push_arrives;
        self.pushed.note(cx.now, key, until);
        for to in self.others().iter() {
            let record = record.clone();
            self.send(cx, to, Body::Push { record });
        }
    }

    /// `PUSH_RECORD` of another node. A copy that is as new, or that owns the record, is left alone:
    /// the push may have been overtaken. It is kept with a number below the owner's, as every copy is
    /// (`db/CLUSTER.md`, invariant 2), since the owner may change the record again without counting; the
    /// pusher has raised the number, so this one is above those of all older copies.
    pub(super) fn push<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        record: Record,
    ) -> Outcome {
        if !self.lock(cx, &record.key)? {
            let key = record.key.clone();
            self.park(cx, &key, Deferred::Peer(from, Body::Push { record }));
            return Ok(());
        }
        let me = self.config.me.get();
        let replaces = self.config.planted.has(Bug::PushReplaces);
        let outcome = match self.read(cx, &record.key) {
            Ok(Some(known)) if !replaces && (known.rsn >= record.rsn || known.dmaster == me) => {
                Ok(())
            }
            Ok(None) if record.dmaster == me => Ok(()),
            Ok(known) => {
                let mut header = record.header();
                header.flags |= RecordFlags::MIGRATED_WITH_DATA;
                if !replaces {
                    header.rsn.0 = header.rsn.0.saturating_sub(1);
                }
                // The location master knows better than the pusher who owns the record.
                if let Some(known) = known {
                    header.dmaster = known.dmaster;
                }
                self.store(cx, &record.key, &mut header, &record.data, false)
            }
            Err(fault) => Err(fault),
        };
        cx.store.unlock(&record.key);
        outcome?;
        self.run_job(cx, Work::Sync);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
