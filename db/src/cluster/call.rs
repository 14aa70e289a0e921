//! Calls: of this node's clients, and of other nodes (D.6, D.7).

use std::collections::VecDeque;

use ctdb_wire::ids::{BootTime, Pnn};

use super::database::{Cx, Database, MAX_WAITING, Outcome};
use super::hold::Verdict;
use super::message::{Body, Call, Record};
use super::park::Deferred;
use super::rule;
use super::store::{Store, StoreFault};
use super::types::{CallFlags, CallKind, ClientId, Effect, Key, Kind, Note};
use crate::record::{LtdbHeader, RecordFlags, Rsn};

/// Hops after which the pointers of a record are taken for a circle. In one generation a call needs
/// a handful: each node passes it on behind the message that made it right to do so.
const MAX_HOPS: u16 = 1000;

/// A call of a client of this node.
#[derive(Clone, Debug)]
pub(super) struct ClientCall {
    pub(super) client: ClientId,
    pub(super) reqid: u32,
    pub(super) key: Key,
    pub(super) call: CallKind,
    pub(super) flags: CallFlags,
}

impl ClientCall {
    pub(super) fn refuse(&self, out: &mut Vec<Effect>) {
        out.push(Effect::Reply {
            client: self.client,
            reqid: self.reqid,
            status: -1,
            data: Vec::new(),
        });
    }

    fn answer(&self, header: &LtdbHeader, data: &[u8], out: &mut Vec<Effect>) {
        let data = match self.call {
            CallKind::Null => Vec::new(),
            CallKind::Fetch => data.to_vec(),
            CallKind::FetchWithHeader => header.join(data),
        };
        out.push(Effect::Reply {
            client: self.client,
            reqid: self.reqid,
            status: 0,
            data,
        });
    }
}

/// Who waits for a call that is under way.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// A client; `None` once it has gone: the record is taken all the same.
    Client(Option<ClientCall>),
    /// The vacuum.
    Vacuum,
}

/// A call of this node that is under way to others.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) key: Key,
    pub(super) caller: Caller,
    since: BootTime,
}

impl Database {
    /// A client's call, when it comes and each time that it is looked at again.
    pub(super) fn client_call<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        call: ClientCall,
    ) -> Outcome {
        if !self.serving() {
            self.wait(cx, Deferred::Client(call));
            return Ok(());
        }
        if self.config.tunables.fetch_collapse
            && let Some(queue) = self.collapsed.get_mut(&call.key)
        {
            if queue.len() < MAX_WAITING {
                queue.push_back(call);
            } else {
                call.refuse(cx.out);
            }
            return Ok(());
        }
        if !self.lock(cx, &call.key)? {
            let key = call.key.clone();
            self.park(cx, &key, Deferred::Client(call));
            return Ok(());
        }
        let key = call.key.clone();
        let outcome = self.client_call_locked(cx, call);
        cx.store.unlock(&key);
        outcome
    }

    fn client_call_locked<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        mut call: ClientCall,
    ) -> Outcome {
        if self.config.kind != Kind::Volatile {
            let header = self.read(cx, &call.key)?.unwrap_or_default();
            call.answer(&header, &self.scratch, cx.out);
            return Ok(());
        }
        if self.readonly.is_none() {
            call.flags.remove(CallFlags::WANT_READONLY);
        }
        let header = self.read_or_create(cx, &call.key)?;
        let readonly = call.flags.contains(CallFlags::WANT_READONLY);
        if header.flags.contains(RecordFlags::RO_REVOKING_READONLY) {
            let key = call.key.clone();
            self.behind_revocation(cx, &key, Deferred::Client(call));
            return Ok(());
        }
        let me = self.config.me;
        if header.dmaster == me.get() {
            if !readonly && header.flags.contains(RecordFlags::RO_HAVE_DELEGATIONS) {
                let key = call.key.clone();
                return self.revoke(cx, &key, header, Deferred::Client(call));
            }
            self.statistics.local_calls += 1;
            call.answer(&header, &self.scratch, cx.out);
            return Ok(());
        }
        let (key, kind, flags) = (call.key.clone(), call.call, call.flags);
        self.call_others(cx, &key, &header, kind, flags, Caller::Client(Some(call)));
        Ok(())
    }

    /// Sends a call for a record that is elsewhere. Its last known owner is asked first, which saves
    /// the hop over the location master.
    pub(super) fn call_others<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
        header: &LtdbHeader,
        call: CallKind,
        flags: CallFlags,
        caller: Caller,
    ) {
        let reqid = self.number();
        self.pending.insert(
            reqid,
            Pending {
                key: key.to_vec(),
                caller,
                since: cx.now,
            },
        );
        self.collapsed.entry(key.to_vec()).or_default();
        // Of a record that was never here, or of which nothing was kept, there is only a default header.
        let kept = !header.flags.contains(RecordFlags::AUTOMATIC);
        let left_for = self.left_for.get(key).copied().filter(|_| !kept);
        let known = left_for
            .filter(|owner| self.members.contains(*owner))
            .or_else(|| self.member(header.dmaster))
            .filter(|owner| *owner != self.config.me);
        let Some(to) = known
            .or_else(|| self.lmaster(key))
            .filter(|to| *to != self.config.me)
        else {
            // The location master points to a node that is not there. The call is sent again when
            // that is mended.
            self.want_recovery(cx, "a record's owner is no member");
            return;
        };
        // A read-only copy comes with its header, whatever the client wants to see of it.
        let call = if flags.contains(CallFlags::WANT_READONLY) {
            CallKind::FetchWithHeader
        } else {
            call
        };
        let body = Body::Call(Call {
            origin: self.config.me,
            reqid,
            call,
            flags,
            hops: 0,
            key: key.to_vec(),
        });
        self.statistics.remote_calls += 1;
        self.send(cx, to, body);
    }

    /// The node number if it is a member.
    fn member(&self, number: u32) -> Option<Pnn> {
        Pnn::new(number)
            .ok()
            .filter(|pnn| self.members.contains(*pnn))
    }

    /// Reads a record, as its location master would first create it; stored if that is this node.
    pub(super) fn read_or_create<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
    ) -> Result<LtdbHeader, StoreFault> {
        if let Some(header) = self.read(cx, key)? {
            return Ok(header);
        }
        let me = self.config.me;
        let mut header = rule::initial(self.lmaster(key).unwrap_or(me));
        if header.dmaster == me.get() {
            header.flags.remove(RecordFlags::AUTOMATIC);
            // Newer than the empty pointers that a recovery leaves on location masters.
            header.rsn = Rsn(1);
            cx.store.write(key, &header, &[])?;
            self.vacuum.schedule(key, &header);
        }
        Ok(header)
    }

    /// A call of another node, or one of ours that comes back because the record has come meanwhile.
    pub(super) fn peer_call<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        call: Call,
    ) -> Outcome {
        if !self.members.contains(call.origin) || self.config.kind != Kind::Volatile {
            return Ok(());
        }
        if let Some(held) = self.held.get_mut(&call.key)
            && !call.flags.contains(CallFlags::WANT_READONLY)
            && call.origin != self.config.me
        {
            if held.queue.len() < MAX_WAITING {
                held.push(from, call);
            } else {
                self.want_recovery(cx, "too many wait for a record");
            }
            return Ok(());
        }
        if !self.lock(cx, &call.key)? {
            let key = call.key.clone();
            self.wanted_in_use(cx.now, &key);
            self.park(cx, &key, Deferred::Peer(from, Body::Call(call)));
            return Ok(());
        }
        let key = call.key.clone();
        let outcome = self.peer_call_locked(cx, from, call);
        cx.store.unlock(&key);
        outcome
    }

    fn peer_call_locked<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        mut call: Call,
    ) -> Outcome {
        let header = self.read_or_create(cx, &call.key)?;
        let key = call.key.clone();
        if header.flags.contains(RecordFlags::RO_REVOKING_READONLY) {
            self.behind_revocation(cx, &key, Deferred::Peer(from, Body::Call(call)));
            return Ok(());
        }
        if header.dmaster != self.config.me.get() {
            self.pass_on(cx, &header, call);
            return Ok(());
        }
        if call.origin == self.config.me {
            let record = Record::new(&key, &header, &self.scratch);
            self.complete(cx, call.reqid, &record);
            return Ok(());
        }
        if self.readonly.is_none() {
            call.flags.remove(CallFlags::WANT_READONLY);
        }
        self.statistics.hops(call.hops);
        let readonly = call.flags.contains(CallFlags::WANT_READONLY);
        if readonly && call.call == CallKind::FetchWithHeader {
            return self.delegate(cx, &key, header, &call);
        }
        if header.flags.contains(RecordFlags::RO_HAVE_DELEGATIONS) {
            return self.revoke(cx, &key, header, Deferred::Peer(from, Body::Call(call)));
        }
        self.maybe_sticky(cx.now, &key, call.hops);
        if let Verdict::Until(due) = self.verdict(cx.now, &key) {
            self.hold(key, due, from, call);
            return Ok(());
        }
        self.migrate(cx, &key, header, call.origin, call.reqid)
    }

    /// Passes a call on towards the record's owner: over the location master, which knows it.
    fn pass_on<S: Store>(&mut self, cx: &mut Cx<'_, S>, header: &LtdbHeader, mut call: Call) {
        let me = self.config.me;
        let to = match self.lmaster(&call.key) {
            Some(lmaster) if lmaster != me => Some(lmaster),
            _ => self.member(header.dmaster),
        };
        call.hops = call.hops.saturating_add(1);
        if call.hops % 100 == 99 {
            cx.out.push(Effect::Note(Note::Hops(call.hops)));
        }
        match to {
            Some(to) if call.hops < MAX_HOPS => {
                self.statistics.redirects += 1;
                self.send(cx, to, Body::Call(call));
            }
            _ => self.want_recovery(cx, "a record's owner is not found"),
        }
    }

    /// `REPLY_CALL`.
    pub(super) fn reply<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        reqid: u64,
        record: Record,
    ) -> Outcome {
        if record.flags.contains(RecordFlags::RO_HAVE_READONLY) && self.readonly.is_some() {
            if !self.lock(cx, &record.key)? {
                let key = record.key.clone();
                self.park(
                    cx,
                    &key,
                    Deferred::Peer(from, Body::Reply { reqid, record }),
                );
                return Ok(());
            }
            let outcome = self.take_copy(cx, &record);
            cx.store.unlock(&record.key);
            outcome?;
        }
        self.complete(cx, reqid, &record);
        Ok(())
    }

    /// A call of this node is done: answer, and look at those that waited behind it.
    pub(super) fn complete<S>(&mut self, cx: &mut Cx<'_, S>, reqid: u64, record: &Record) {
        let fits = self
            .pending
            .get(&reqid)
            .is_some_and(|pending| pending.key == record.key);
        if !fits {
            return;
        }
        let Some(pending) = self.pending.remove(&reqid) else {
            return;
        };
        let took = cx.now.since(pending.since);
        self.statistics.call_latency(took);
        let limit = self.config.tunables.log_latency;
        if !limit.is_zero() && took > limit {
            cx.out.push(Effect::Note(Note::Slow(took)));
        }
        match pending.caller {
            Caller::Client(Some(call)) => call.answer(&record.header(), &record.data, cx.out),
            Caller::Client(None) => {}
            Caller::Vacuum => self.vacuum.fetched(&record.key, &record.header()),
        }
        // They need the lock that is held here: they come when it is given back.
        let queue = self.collapsed.remove(&pending.key).unwrap_or_default();
        self.later.extend(queue.into_iter().map(Deferred::Client));
    }

    /// Client calls that waited, in order.
    pub(super) fn serve_waiting<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        let mut outcome = Ok(());
        if !self.serving() {
            return outcome;
        }
        for work in std::mem::take(&mut self.waiting) {
            if let Err(fault) = self.again(cx, work) {
                outcome = Err(fault);
            }
        }
        outcome
    }

    /// Calls under way are sent again, when a link may have lost them.
    pub(super) fn send_again<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        self.collect_pending();
        self.serve_waiting(cx)
    }

    /// Calls under way wait to be sent again.
    pub(super) fn collect_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let mut collapsed = std::mem::take(&mut self.collapsed);
        let mut calls: VecDeque<Deferred> = VecDeque::new();
        for pending in pending.into_values() {
            if let Caller::Client(Some(call)) = pending.caller {
                calls.push_back(Deferred::Client(call));
            }
            let queue = collapsed.remove(&pending.key).unwrap_or_default();
            calls.extend(queue.into_iter().map(Deferred::Client));
        }
        calls.append(&mut self.waiting);
        self.waiting = calls;
        self.vacuum.fetches_lost();
    }

    /// A client has gone.
    pub(super) fn client_gone<S>(&mut self, cx: &mut Cx<'_, S>, client: ClientId) {
        self.waiting.retain(|work| !work.of(client));
        self.later.retain(|work| !work.of(client));
        for queue in self.collapsed.values_mut() {
            queue.retain(|call| call.client != client);
        }
        for pending in self.pending.values_mut() {
            if matches!(&pending.caller, Caller::Client(Some(call)) if call.client == client) {
                pending.caller = Caller::Client(None);
            }
        }
        self.parked.forget(client);
        if let Some(readonly) = &mut self.readonly {
            readonly.forget(client);
        }
        self.commits.forget(client);
        self.traverse_gone(cx, client);
    }
}
