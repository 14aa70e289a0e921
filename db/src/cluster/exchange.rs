//! A node's part in a recovery: it stops, tells the location masters of the new generation which
//! copies it has, decides about those that it is location master of, and goes on (E; `db/CLUSTER.md`
//! "Recovery"). Of persistent and replicated databases the middle part is in `content.rs`.

use std::collections::BTreeMap;

use ctdb_wire::ids::{BootTime, NodeSet, Pnn};
use serde_bytes::ByteBuf;

use super::content::Provide;
use super::database::{AllRecords, Cx, Database, Outcome};
use super::message::{Award, Body, Claim, Message, PIECE, Report};
use super::planted::Bug;
use super::pushed::Pushed;
use super::rights::ViewId;
use super::rule;
use super::store::{Cursor, Store};
use super::types::{Effect, Generation, Key, Kind};
use crate::hash::jenkins;
use crate::record::{LtdbHeader, RecordFlags, Rsn};

/// Records that one step looks at.
const BUDGET: usize = 512;

/// A recovery that this node takes part in.
#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) generation: Generation,
    /// The report that was sent; it is sent again if the leader asks again.
    pub(super) report: Option<Report>,
    exchange: Option<Exchange>,
    /// Slices that are done.
    settled: u32,
    /// Messages of the next slice, from nodes that are faster.
    early: Vec<(Pnn, Body)>,
    pub(super) provide: Option<Provide>,
}

#[derive(Debug)]
struct Exchange {
    slice: u32,
    slices: u32,
    members: NodeSet,
    donors: NodeSet,
    lmasters: Vec<Pnn>,
    cursor: Option<Cursor>,
    outgoing: BTreeMap<Pnn, (Vec<Claim>, usize)>,
    best: BTreeMap<Key, Best>,
    ended: NodeSet,
    awards: BTreeMap<Pnn, (Vec<Award>, usize)>,
    applied: bool,
    awarded: NodeSet,
}

/// The best copy of a record that was claimed so far, and who believes to own it.
#[derive(Debug)]
struct Best {
    node: Pnn,
    claim: Claim,
    owners: NodeSet,
}

impl Best {
    /// The newest copy wins; of equal ones the owner's, since owners change data without counting;
    /// then one with data; then that of the lowest node.
    fn order(node: Pnn, claim: &Claim) -> (Rsn, bool, bool, std::cmp::Reverse<Pnn>) {
        (
            claim.rsn,
            claim.owner,
            claim.filled,
            std::cmp::Reverse(node),
        )
    }
}

impl Recovery {
    fn new(generation: Generation) -> Self {
        Self {
            generation,
            report: None,
            exchange: None,
            settled: 0,
            early: Vec::new(),
            provide: None,
        }
    }

    pub(super) fn next_wake(&self) -> Option<BootTime> {
        let exchange = self.exchange.as_ref()?;
        let deciding = !exchange.applied && exchange.complete();
        (exchange.cursor.is_some() || deciding).then_some(BootTime::ZERO)
    }
}

impl Exchange {
    /// All copies of this slice are known.
    fn complete(&self) -> bool {
        let missing = (self.members.0 | self.donors.0) & !self.ended.0;
        missing == 0
    }
}

impl Database {
    /// Whether the daemon must hold the lock on all records.
    fn needs_all_records(&self) -> bool {
        !self.right
            || self.evicted
            || (self.recovery.is_some() && self.config.kind == Kind::Volatile)
    }

    pub(super) fn ask_all_records<S>(&mut self, cx: &mut Cx<'_, S>) {
        let planted = self.config.planted.has(Bug::StaleOwnerWrites) && self.recovery.is_none();
        if self.all_records == AllRecords::Free && !planted {
            self.all_records = AllRecords::Asked {
                since: cx.now,
                warned: false,
            };
            cx.out.push(Effect::Freeze);
        }
    }

    /// Gives the lock on all records back if nothing needs it, and goes on.
    pub(super) fn release_all_records<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        if self.needs_all_records() {
            return Ok(());
        }
        if self.all_records != AllRecords::Free {
            self.all_records = AllRecords::Free;
            cx.out.push(Effect::Thaw);
        }
        if !self.serving() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for (from, message) in std::mem::take(&mut self.inbox) {
            if message.generation == self.generation
                && let Err(fault) = self.served_message(cx, from, message.body)
            {
                outcome = Err(fault);
            }
        }
        self.serve_waiting(cx)?;
        outcome
    }

    /// The lock on all records is held.
    pub(super) fn frozen<S: Store>(&mut self, cx: &mut Cx<'_, S>) {
        if !matches!(self.all_records, AllRecords::Asked { .. }) {
            return;
        }
        self.all_records = AllRecords::Held;
        if self.config.kind == Kind::Volatile {
            self.report(cx);
        }
    }

    /// This node was evicted. What it has of volatile records is wiped when it rejoins.
    pub(super) fn evict<S>(&mut self, cx: &mut Cx<'_, S>) {
        self.evicted = true;
        self.generation = Generation::NONE;
        self.settled = Generation::NONE;
        self.recovery = None;
        self.stop_serving();
        self.pending.clear();
        self.collapsed.clear();
        self.waiting.clear();
        cx.out.push(Effect::CloseClients);
        self.ask_all_records(cx);
    }

    /// Everything of the old generation ends; what clients want waits for the next.
    fn stop_serving(&mut self) {
        let mut stopped = self.parked.drain();
        stopped.extend(std::mem::take(&mut self.later));
        if let Some(readonly) = &mut self.readonly {
            stopped.extend(readonly.drain());
        }
        stopped.retain(super::park::Deferred::of_client);
        self.waiting.extend(stopped);
        self.held.clear();
        self.tenures.clear();
        self.left_for.clear();
        // Pushes of the old generation are not taken any more.
        self.pushed = Pushed::default();
        self.inbox.clear();
        self.vacuum.stop();
        self.commits.drop_queued();
    }

    pub(super) fn send_in<S>(
        &self,
        cx: &mut Cx<'_, S>,
        generation: Generation,
        to: Pnn,
        body: Body,
    ) {
        let message = Message {
            db: self.config.id,
            generation,
            body,
        };
        cx.out.push(Effect::Send { to, message });
    }

    /// To the leader of the recovery that this node promised to follow.
    pub(super) fn tell_leader<S>(&self, cx: &mut Cx<'_, S>, body: Body) {
        self.send_in(cx, self.promised, self.promised.term.leader, body);
    }

    /// A message of a recovery. Older ones than the newest that was joined are refused.
    pub(super) fn recovery_message<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        message: Message,
    ) -> Outcome {
        let generation = message.generation;
        if let Body::Freeze { view, may, .. } = message.body {
            self.freeze(cx, from, generation, view, may);
            return Ok(());
        }
        if let Body::Seal { lineage } = message.body {
            self.seal(cx, from, generation, lineage);
            return Ok(());
        }
        if generation != self.promised {
            return Ok(());
        }
        if let Body::Thaw {
            view,
            may,
            members,
            lmasters,
            writable,
            history,
            since,
        } = message.body
        {
            rights(cx, generation, view, may);
            if self.recovery.is_some() {
                self.commits.resolve(cx.out, history, since, writable);
                return self.thaw(cx, members, lmasters);
            }
            if self.generation == generation {
                self.tell_leader(cx, Body::Thawed);
            }
            return Ok(());
        }
        let Some(mut recovery) = self.recovery.take() else {
            return Ok(());
        };
        let outcome = self.joined_message(cx, &mut recovery, from, message.body);
        self.recovery = Some(recovery);
        outcome
    }

    /// The leader wants this node to stop.
    fn freeze<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        generation: Generation,
        view: u64,
        may: NodeSet,
    ) {
        if generation < self.promised {
            let body = Body::Newer(self.promised);
            self.send_in(cx, generation, from, body);
            return;
        }
        // Before anything waits for a lock, and before the leader hears that this node has stopped.
        rights(cx, generation, view, may);
        if generation > self.promised {
            self.promised = generation;
            self.wanted = false;
            self.statistics.recoveries += 1;
            self.recovery = Some(Recovery::new(generation));
            self.stop_serving();
            if self.config.kind != Kind::Volatile {
                self.inspect(cx);
                return;
            }
            self.ask_all_records(cx);
        }
        if self.config.kind == Kind::Volatile && self.all_records == AllRecords::Held {
            self.report(cx);
        } else if let Some(report) = self.recovery.as_ref().and_then(|r| r.report.clone()) {
            self.tell_leader(cx, Body::Stopped(Box::new(report)));
        }
    }

    /// Reports a volatile database that has stopped.
    fn report<S: Store>(&mut self, cx: &mut Cx<'_, S>) {
        let report = Report {
            committed: self.generation,
            settled: self.settled,
            valid: !self.evicted,
            records: cx.store.records(),
            copy: None,
        };
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        if recovery.exchange.is_none() {
            recovery.report = Some(report.clone());
            self.tell_leader(cx, Body::Stopped(Box::new(report)));
        }
    }

    fn joined_message<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        recovery: &mut Recovery,
        from: Pnn,
        body: Body,
    ) -> Outcome {
        match body {
            Body::Exchange {
                slice,
                slices,
                members,
                donors,
                valid,
                lmasters,
            } => {
                if slice < recovery.settled {
                    self.tell_leader(cx, Body::Settled { slice });
                    return Ok(());
                }
                let running = recovery.exchange.as_ref().map(|exchange| exchange.slice);
                if running == Some(slice) || self.all_records != AllRecords::Held || slices == 0 {
                    return Ok(());
                }
                if slice == 0 && !valid.contains(self.config.me) {
                    if self.generation != Generation::NONE {
                        // It was left out: what its clients believe to hold is others' (MEM-3).
                        cx.out.push(Effect::CloseClients);
                    }
                    cx.store.wipe()?;
                }
                let donor = donors.contains(self.config.me);
                recovery.exchange = Some(Exchange {
                    slice,
                    slices,
                    members,
                    donors,
                    applied: donor || !lmasters.contains(&self.config.me),
                    lmasters,
                    cursor: Some(Cursor::default()),
                    outgoing: BTreeMap::new(),
                    best: BTreeMap::new(),
                    ended: NodeSet::EMPTY,
                    awards: BTreeMap::new(),
                    awarded: NodeSet::EMPTY,
                });
                for (from, body) in std::mem::take(&mut recovery.early) {
                    self.joined_message(cx, recovery, from, body)?;
                }
                Ok(())
            }
            Body::Claims { slice, claims, end } => {
                match &mut recovery.exchange {
                    Some(exchange) if exchange.slice == slice => {
                        exchange.take_claims(from, claims, end);
                    }
                    _ if slice >= recovery.settled => {
                        // At most what the others send in one slice: a bounded number of records.
                        let body = Body::Claims { slice, claims, end };
                        recovery.early.push((from, body));
                    }
                    _ => {}
                }
                Ok(())
            }
            Body::Awards { slice, awards, end } => {
                let fits = recovery
                    .exchange
                    .as_ref()
                    .is_some_and(|exchange| exchange.slice == slice);
                if !fits {
                    if slice >= recovery.settled {
                        let body = Body::Awards { slice, awards, end };
                        recovery.early.push((from, body));
                    }
                    return Ok(());
                }
                for award in awards {
                    self.take_award(cx, &award)?;
                }
                if end && let Some(exchange) = &mut recovery.exchange {
                    exchange.awarded.insert(from);
                }
                self.maybe_settled(cx, recovery);
                Ok(())
            }
            Body::Provide { targets } => self.provide(cx, recovery, targets),
            Body::Content {
                piece,
                backup,
                records,
                end,
            } => {
                self.content(cx, from, piece, backup, records, end);
                Ok(())
            }
            Body::Taken { piece, ok } => self.taken(cx, recovery, from, piece, ok),
            _ => Ok(()),
        }
    }

    /// The next piece of the work of a recovery.
    pub(super) fn recovery_step<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        let Some(mut recovery) = self.recovery.take() else {
            return Ok(());
        };
        let outcome = self.exchange_step(cx, &mut recovery);
        self.recovery = Some(recovery);
        outcome
    }

    fn exchange_step<S: Store>(&mut self, cx: &mut Cx<'_, S>, recovery: &mut Recovery) -> Outcome {
        let Some(exchange) = &mut recovery.exchange else {
            return Ok(());
        };
        if let Some(cursor) = exchange.cursor {
            self.claim_piece(cx, recovery.generation, exchange, cursor)?;
        } else if !exchange.applied && exchange.complete() {
            self.decide_piece(cx, recovery.generation, exchange)?;
        }
        self.maybe_settled(cx, recovery);
        Ok(())
    }

    /// Tells the location masters about the next records.
    fn claim_piece<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        generation: Generation,
        exchange: &mut Exchange,
        mut cursor: Cursor,
    ) -> Outcome {
        let me = self.config.me;
        let leaves = exchange.donors.contains(me);
        // Read-only copies end here: their nodes are asked for nothing, and owners forget them.
        let mut delegated = Vec::new();
        let wrong = self.config.planted.has(Bug::MergeByWrongNode) && !self.lmasters.is_empty();
        let end = cx
            .store
            .scan(&mut cursor, BUDGET, &mut |key, header, data| {
                if jenkins(key) % exchange.slices != exchange.slice {
                    return;
                }
                if header.flags.intersects(RecordFlags::RO_FLAGS) {
                    delegated.push(key.to_vec());
                }
                let map = if wrong {
                    &self.lmasters
                } else {
                    &exchange.lmasters
                };
                let Some(lmaster) = rule::lmaster(key, map) else {
                    return;
                };
                let content = leaves.then(|| (header.flags, ByteBuf::from(data)));
                let claim = Claim {
                    key: key.to_vec(),
                    rsn: header.rsn,
                    owner: header.dmaster == me.get(),
                    filled: !data.is_empty(),
                    content,
                };
                let size = key.len() + 32 + if leaves { data.len() } else { 0 };
                let (claims, sum) = exchange.outgoing.entry(lmaster).or_default();
                claims.push(claim);
                *sum += size;
            })?;
        for key in delegated {
            if let Some(mut header) = self.read(cx, &key)? {
                header.flags.remove(RecordFlags::RO_FLAGS);
                cx.store.write(&key, &header, &self.scratch)?;
            }
        }
        exchange.cursor = (!end).then_some(cursor);
        let slice = exchange.slice;
        for (lmaster, (claims, size)) in &mut exchange.outgoing {
            if *size >= PIECE && !end {
                *size = 0;
                let claims = std::mem::take(claims);
                let body = Body::Claims {
                    slice,
                    claims,
                    end: false,
                };
                self.send_in(cx, generation, *lmaster, body);
            }
        }
        if end {
            let mut outgoing = std::mem::take(&mut exchange.outgoing);
            for lmaster in &exchange.lmasters {
                let (claims, _) = outgoing.remove(lmaster).unwrap_or_default();
                let body = Body::Claims {
                    slice,
                    claims,
                    end: true,
                };
                self.send_in(cx, generation, *lmaster, body);
            }
        }
        Ok(())
    }

    /// Decides about the next records that this node is location master of.
    fn decide_piece<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        generation: Generation,
        exchange: &mut Exchange,
    ) -> Outcome {
        for _ in 0..BUDGET {
            let Some((key, best)) = exchange.best.pop_first() else {
                break;
            };
            self.decide(cx, exchange, &key, &best)?;
        }
        let end = exchange.best.is_empty();
        let slice = exchange.slice;
        for node in exchange.members.iter() {
            let (awards, size) = exchange.awards.entry(node).or_default();
            if *size >= PIECE || end {
                *size = 0;
                let awards = std::mem::take(awards);
                self.send_in(cx, generation, node, Body::Awards { slice, awards, end });
            }
        }
        exchange.applied = end;
        Ok(())
    }

    fn decide<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        exchange: &mut Exchange,
        key: &[u8],
        best: &Best,
    ) -> Outcome {
        let me = self.config.me;
        let owner = if let Some((flags, data)) = &best.claim.content {
            // The newest copy is on a node that leaves: it stays here.
            let header = LtdbHeader {
                rsn: Rsn(best.claim.rsn.0 + 1),
                dmaster: me.get(),
                reserved: 0,
                flags: arrived(*flags, data.is_empty()),
            };
            cx.store.write(key, &header, data)?;
            me
        } else if best.node == me {
            if !best.claim.owner {
                self.take_award(
                    cx,
                    &Award {
                        key: key.to_vec(),
                        owner: me,
                    },
                )?;
            }
            me
        } else {
            let known = self.read(cx, key)?;
            let mut header = known.unwrap_or_default();
            header.dmaster = best.node.get();
            cx.store.write(key, &header, &self.scratch)?;
            if !best.claim.owner {
                exchange.award(best.node, key, best.node);
            }
            best.node
        };
        for node in best.owners.iter() {
            if node != owner && node != me && exchange.members.contains(node) {
                exchange.award(node, key, owner);
            }
        }
        Ok(())
    }

    /// A decision about a copy of this node.
    fn take_award<S: Store>(&mut self, cx: &mut Cx<'_, S>, award: &Award) -> Outcome {
        let Some(mut header) = self.read(cx, &award.key)? else {
            return Ok(());
        };
        if award.owner == self.config.me {
            // Others may have copies that are as new: the owner's is newer than all.
            header.rsn.0 += 1;
            header.flags = arrived(header.flags, self.scratch.is_empty());
        }
        header.dmaster = award.owner.get();
        cx.store.write(&award.key, &header, &self.scratch)
    }

    fn maybe_settled<S>(&mut self, cx: &mut Cx<'_, S>, recovery: &mut Recovery) {
        let Some(exchange) = &recovery.exchange else {
            return;
        };
        let member = exchange.members.contains(self.config.me);
        let awarded = !member
            || exchange
                .lmasters
                .iter()
                .all(|lmaster| exchange.awarded.contains(*lmaster));
        if exchange.cursor.is_some() || !exchange.applied || !awarded {
            return;
        }
        let slice = exchange.slice;
        if recovery.settled > slice {
            return;
        }
        recovery.settled = slice + 1;
        // Who only gave what it had is not of the new generation.
        if recovery.settled == exchange.slices && member {
            self.settled = recovery.generation;
        }
        self.tell_leader(cx, Body::Settled { slice });
    }

    /// The recovery is done: go on in its generation.
    fn thaw<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        members: NodeSet,
        lmasters: Vec<Pnn>,
    ) -> Outcome {
        self.generation = self.promised;
        self.members = members;
        self.lmasters = lmasters;
        self.recovery = None;
        self.evicted = false;
        self.touched = NodeSet::EMPTY;
        self.tell_leader(cx, Body::Thawed);
        self.traverses_restart(cx);
        self.collect_pending();
        self.release_all_records(cx)
    }
}

/// What a recovery proves (DATA-5).
fn rights<S>(cx: &mut Cx<'_, S>, generation: Generation, view: u64, may: NodeSet) {
    let view = ViewId {
        term: generation.term,
        number: view,
    };
    cx.out.push(Effect::Rights { view, may });
}

impl Exchange {
    fn take_claims(&mut self, from: Pnn, claims: Vec<Claim>, end: bool) {
        for claim in claims {
            let owner = claim.owner;
            match self.best.get_mut(&claim.key) {
                None => {
                    let mut owners = NodeSet::EMPTY;
                    if owner {
                        owners.insert(from);
                    }
                    self.best.insert(
                        claim.key.clone(),
                        Best {
                            node: from,
                            claim,
                            owners,
                        },
                    );
                }
                Some(best) => {
                    if owner {
                        best.owners.insert(from);
                    }
                    if Best::order(from, &claim) > Best::order(best.node, &best.claim) {
                        best.node = from;
                        best.claim = claim;
                    }
                }
            }
        }
        if end {
            self.ended.insert(from);
        }
    }

    fn award(&mut self, node: Pnn, key: &[u8], owner: Pnn) {
        let (awards, size) = self.awards.entry(node).or_default();
        awards.push(Award {
            key: key.to_vec(),
            owner,
        });
        *size += key.len() + 8;
    }
}

/// Flags of a record whose owner a recovery has set: copies may be anywhere.
fn arrived(mut flags: RecordFlags, empty: bool) -> RecordFlags {
    flags.remove(RecordFlags::RO_FLAGS);
    if !empty {
        flags |= RecordFlags::MIGRATED_WITH_DATA;
    }
    flags
}
