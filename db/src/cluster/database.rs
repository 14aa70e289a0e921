//! One database on one node: what it is made of, and where inputs go.

use std::collections::{BTreeMap, VecDeque};

use ctdb_wire::ids::{BootTime, NodeSet, Pnn};

use super::call::{ClientCall, Pending};
use super::commit::Commits;
use super::exchange::Recovery;
use super::hold::{Habit, Tenure};
use super::hot::{Hot, Statistics};
use super::message::{Body, Message};
use super::migrate::Held;
use super::park::{Deferred, Parked};
use super::planted::{Bug, Planted};
use super::pushed::Pushed;
use super::readonly::ReadOnly;
use super::rule;
use super::store::{Store, StoreFault};
use super::traverse::Traverses;
use super::types::{Effect, Generation, Input, Key, Kind, Note, Tunables, Work, earlier};
use super::vacuum::Vacuum;
use crate::record::{DbId, LtdbHeader};

/// Most client calls, and most messages of the next generation, that wait for a database to be
/// served again. Calls beyond are answered with -1; a message beyond is dropped and a recovery asked
/// for, which has the call sent again.
pub(super) const MAX_WAITING: usize = 100_000;

/// What a database is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its id.
    pub id: DbId,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// This node.
    pub me: Pnn,
    /// Tunables.
    pub tunables: Tunables,
    /// For the simulator.
    pub planted: Planted,
}

/// The lock on all records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AllRecords {
    Free,
    Asked { since: BootTime, warned: bool },
    Held,
}

/// Whether a database is served, for `db show` and the like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Before its first recovery.
    New,
    /// Served.
    Serving,
    /// A recovery runs.
    Recovering,
    /// This node has no right to serve.
    NoRight,
}

/// What a function needs besides the machine.
pub(super) struct Cx<'a, S> {
    pub(super) now: BootTime,
    pub(super) store: &'a mut S,
    pub(super) out: &'a mut Vec<Effect>,
}

pub(super) type Outcome = Result<(), StoreFault>;

/// One database on one node.
#[derive(Debug)]
pub struct Database {
    pub(super) config: Config,
    /// What it serves in.
    pub(super) generation: Generation,
    pub(super) members: NodeSet,
    pub(super) lmasters: Vec<Pnn>,
    /// Newest recovery that was joined; older ones are refused.
    pub(super) promised: Generation,
    /// Newest recovery in which each record found its owner.
    pub(super) settled: Generation,
    pub(super) recovery: Option<Recovery>,
    pub(super) all_records: AllRecords,
    pub(super) right: bool,
    /// Evicted, and not yet recovered.
    pub(super) evicted: bool,
    /// A recovery was asked for in this generation.
    pub(super) wanted: bool,
    /// Ownership of records was exchanged with these in this generation.
    pub(super) touched: NodeSet,
    next: u64,
    /// What clients want, until the database is served.
    pub(super) waiting: VecDeque<Deferred>,
    /// What comes when the locks of the input at hand are given back.
    pub(super) later: VecDeque<Deferred>,
    /// Messages of the next generation, or for a node whose right is away.
    pub(super) inbox: VecDeque<(Pnn, Message)>,
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Keys that calls of this node are under way for, with the calls that wait behind them.
    pub(super) collapsed: BTreeMap<Key, VecDeque<ClientCall>>,
    pub(super) parked: Parked,
    pub(super) tenures: BTreeMap<Key, Tenure>,
    pub(super) habits: BTreeMap<Key, Habit>,
    /// Where records went of which nothing is kept here.
    pub(super) left_for: BTreeMap<Key, Pnn>,
    pub(super) held: BTreeMap<Key, Held>,
    pub(super) sticky: Option<BTreeMap<Key, BootTime>>,
    pub(super) pushed: Pushed,
    pub(super) readonly: Option<ReadOnly>,
    pub(super) vacuum: Vacuum,
    pub(super) traverses: Traverses,
    pub(super) hot: Hot,
    pub(super) commits: Commits,
    pub(super) statistics: Statistics,
    /// The file's sequence number when it was last told, if clients want that.
    pub(super) seqnum: Option<(u32, BootTime)>,
    /// Buffer for a record's data.
    pub(super) scratch: Vec<u8>,
}

impl Database {
    /// A database that was just attached. It is served after its first recovery.
    pub fn new(config: Config) -> Self {
        Self {
            generation: Generation::NONE,
            members: NodeSet::EMPTY,
            lmasters: Vec::new(),
            promised: Generation::NONE,
            settled: Generation::NONE,
            recovery: None,
            all_records: AllRecords::Free,
            right: true,
            evicted: false,
            wanted: false,
            touched: NodeSet::EMPTY,
            next: 1,
            waiting: VecDeque::new(),
            later: VecDeque::new(),
            inbox: VecDeque::new(),
            pending: BTreeMap::new(),
            collapsed: BTreeMap::new(),
            parked: Parked::default(),
            tenures: BTreeMap::new(),
            habits: BTreeMap::new(),
            left_for: BTreeMap::new(),
            held: BTreeMap::new(),
            sticky: None,
            pushed: Pushed::default(),
            readonly: None,
            vacuum: Vacuum::new(),
            traverses: Traverses::default(),
            hot: Hot::default(),
            commits: Commits::default(),
            statistics: Statistics::default(),
            seqnum: None,
            scratch: Vec::new(),
            config,
        }
    }

    /// What the database is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The generation that it serves in.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The nodes of that generation.
    pub fn members(&self) -> NodeSet {
        self.members
    }

    /// Its location masters: the VNN map.
    pub fn lmasters(&self) -> &[Pnn] {
        &self.lmasters
    }

    /// Whether it is served.
    pub fn state(&self) -> State {
        if self.recovery.is_some() {
            State::Recovering
        } else if !self.right {
            State::NoRight
        } else if self.generation == Generation::NONE {
            State::New
        } else {
            State::Serving
        }
    }

    /// Counters.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Calls of this node that wait for another node's answer.
    pub fn pending_calls(&self) -> usize {
        self.pending.len()
    }

    /// When [`Input::Tick`] is due.
    pub fn next_wake(&self) -> Option<BootTime> {
        earlier(self.next_hold(), self.next_slow_wake())
    }

    /// When [`Input::Holds`] is due: soon, and quick to take in.
    pub fn next_hold(&self) -> Option<BootTime> {
        if !self.serving() {
            return None;
        }
        self.held.values().map(|held| held.due).min()
    }

    /// When [`Input::Tick`] is due for anything else.
    pub fn next_slow_wake(&self) -> Option<BootTime> {
        let mut wake = self
            .vacuum
            .next_wake(self.serving(), self.config.tunables.vacuum_max_run);
        wake = earlier(wake, self.traverses.next_wake());
        wake = earlier(wake, self.recovery.as_ref().and_then(Recovery::next_wake));
        if let AllRecords::Asked {
            since,
            warned: false,
        } = self.all_records
        {
            wake = earlier(wake, Some(since + self.config.tunables.freeze_warn));
        }
        if let Some((_, told)) = self.seqnum {
            wake = earlier(wake, Some(told + self.config.tunables.seqnum_interval));
        }
        wake
    }

    /// Takes an input in.
    pub fn handle<S: Store>(
        &mut self,
        now: BootTime,
        input: Input<'_>,
        store: &mut S,
        out: &mut Vec<Effect>,
    ) {
        let mut cx = Cx { now, store, out };
        let mut outcome = self.input(&mut cx, input);
        loop {
            if let Err(fault) = outcome {
                cx.out.push(Effect::Note(Note::Fault(fault)));
                self.want_recovery(&mut cx, "the file failed");
            }
            let Some(work) = self.later.pop_front() else {
                return;
            };
            outcome = self.again(&mut cx, work);
        }
    }

    fn input<S: Store>(&mut self, cx: &mut Cx<'_, S>, input: Input<'_>) -> Outcome {
        match input {
            Input::Call {
                client,
                reqid,
                key,
                call,
                flags,
            } => {
                self.statistics.calls += 1;
                let key = key.to_vec();
                self.client_call(
                    cx,
                    ClientCall {
                        client,
                        reqid,
                        key,
                        call,
                        flags,
                    },
                )
            }
            Input::ClientGone(client) => {
                self.client_gone(cx, client);
                Ok(())
            }
            Input::Commit {
                client,
                reqid,
                changes,
            } => self.commit(cx, client, reqid, changes),
            Input::Delete { key, header } => {
                self.vacuum.schedule(key, &header);
                Ok(())
            }
            Input::Push { key, header, data } => {
                self.push_to_all(cx, key, &header, data);
                Ok(())
            }
            Input::Peer { from, message } => self.peer(cx, from, message),
            Input::LinkReset(peer) => self.link_reset(cx, peer),
            Input::Granted(ticket) => self.granted(cx, ticket),
            Input::Frozen => {
                self.frozen(cx);
                Ok(())
            }
            Input::Done { job, result } => {
                self.job_done(cx, job, &result);
                Ok(())
            }
            Input::RightLost => {
                self.right = false;
                self.ask_all_records(cx);
                Ok(())
            }
            Input::RightBack => {
                self.right = true;
                self.release_all_records(cx)
            }
            Input::Evicted => {
                self.evict(cx);
                Ok(())
            }
            Input::Companion { key, to } => self.companion(cx, key, to),
            Input::Traverse {
                client,
                reqid,
                empty,
            } => self.traverse(cx, client, reqid, empty),
            Input::Recover => {
                self.wanted = false;
                self.want_recovery(cx, "it was asked for");
                Ok(())
            }
            Input::Readonly => {
                if self.config.kind == Kind::Volatile && self.readonly.is_none() {
                    self.readonly = Some(ReadOnly::default());
                }
                Ok(())
            }
            Input::Sticky => {
                if self.config.kind == Kind::Volatile && self.sticky.is_none() {
                    self.sticky = Some(BTreeMap::new());
                }
                Ok(())
            }
            Input::EnableSeqnum => {
                if self.seqnum.is_none() {
                    self.seqnum = Some((cx.store.sequence(), cx.now));
                }
                Ok(())
            }
            Input::Vacuum { full } => {
                self.vacuum.demand(cx.now, full);
                self.tick(cx)
            }
            Input::Holds => self.holds_due(cx),
            Input::Tick => self.tick(cx),
        }
    }

    fn tick<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        if let AllRecords::Asked { since, warned } = &mut self.all_records
            && !*warned
            && cx.now.since(*since) >= self.config.tunables.freeze_warn
        {
            *warned = true;
            let delay = cx.now.since(*since);
            cx.out.push(Effect::Note(Note::FreezeDelayed(delay)));
        }
        self.recovery_step(cx)?;
        self.holds_due(cx)?;
        self.vacuum_step(cx)?;
        self.traverse_step(cx)?;
        self.seqnum_step(cx);
        Ok(())
    }

    /// Whether calls are served now.
    pub(super) fn serving(&self) -> bool {
        self.recovery.is_none()
            && self.right
            && !self.evicted
            && self.all_records == AllRecords::Free
            && self.generation != Generation::NONE
    }

    /// A number that is used once.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The location master of a key in this generation.
    pub(super) fn lmaster(&self, key: &[u8]) -> Option<Pnn> {
        rule::lmaster(key, &self.lmasters)
    }

    pub(super) fn send<S>(&self, cx: &mut Cx<'_, S>, to: Pnn, body: Body) {
        let message = Message {
            db: self.config.id,
            generation: self.generation,
            body,
        };
        cx.out.push(Effect::Send { to, message });
    }

    /// All nodes of the generation but this one.
    pub(super) fn others(&self) -> NodeSet {
        let mut others = self.members;
        others.remove(self.config.me);
        others
    }

    /// Reads a record under its lock; its data is in `self.scratch`.
    pub(super) fn read<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        key: &[u8],
    ) -> Result<Option<LtdbHeader>, StoreFault> {
        let header = cx.store.read(key, &mut self.scratch)?;
        if header.is_none() {
            self.scratch.clear();
        }
        Ok(header)
    }

    /// Asks the leader for a recovery, once in each generation.
    pub(super) fn want_recovery<S>(&mut self, cx: &mut Cx<'_, S>, reason: &'static str) {
        if self.wanted || self.promised == Generation::NONE {
            return;
        }
        self.wanted = true;
        cx.out.push(Effect::Note(Note::WantRecovery(reason)));
        self.tell_want(cx);
    }

    pub(super) fn tell_want<S>(&self, cx: &mut Cx<'_, S>) {
        let message = Message {
            db: self.config.id,
            generation: self.promised,
            body: Body::WantRecovery,
        };
        let to = self.promised.term.leader;
        cx.out.push(Effect::Send { to, message });
    }

    /// A message of another node. The one place where generations are compared.
    fn peer<S: Store>(&mut self, cx: &mut Cx<'_, S>, from: Pnn, message: Message) -> Outcome {
        if message.body.of_recovery() {
            return self.recovery_message(cx, from, message);
        }
        let old = self.config.planted.has(Bug::OldGenerationAccepted)
            && message.generation < self.promised
            && self.generation != Generation::NONE;
        if let Some(recovery) = &self.recovery
            && !old
        {
            // A node that goes on already speaks to one that is still stopped.
            if message.generation == recovery.generation {
                self.keep_for_later(cx, from, message);
            }
            return Ok(());
        }
        if message.generation != self.generation && !old {
            self.statistics.old_generation += 1;
            return Ok(());
        }
        if !self.serving() && !old {
            self.keep_for_later(cx, from, message);
            return Ok(());
        }
        self.served_message(cx, from, message.body)
    }

    fn keep_for_later<S>(&mut self, cx: &mut Cx<'_, S>, from: Pnn, message: Message) {
        if self.inbox.len() < MAX_WAITING {
            self.inbox.push_back((from, message));
        } else {
            cx.out
                .push(Effect::Note(Note::Bound("messages of the next generation")));
            self.want_recovery(cx, "too many messages wait");
        }
    }

    /// A message of this generation, on a node that serves.
    pub(super) fn served_message<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        body: Body,
    ) -> Outcome {
        match body {
            Body::Call(call) => self.peer_call(cx, from, call),
            Body::Reply { reqid, record } => self.reply(cx, from, reqid, record),
            Body::Moved {
                reqid,
                owner,
                record,
            } => self.moved(cx, from, reqid, owner, record),
            Body::Grant { reqid, record } => self.grant(cx, from, reqid, record),
            Body::Refresh { revocation, record } => self.refresh(cx, from, revocation, record),
            Body::Refreshed { revocation } => self.refreshed(cx, from, revocation),
            Body::VacuumFetch { keys } => {
                self.vacuum.fetch(keys);
                Ok(())
            }
            Body::TryDelete {
                run,
                records,
                remove,
            } => self.try_delete(cx, from, run, &records, remove),
            Body::Kept { run, kept } => self.kept(cx, from, run, &kept),
            Body::Traverse { id, empty } => {
                self.traverse_for(from, id, empty);
                self.traverse_step(cx)
            }
            Body::Traversed { id, records, end } => {
                self.traversed(cx, from, id, records, end);
                Ok(())
            }
            Body::TraverseMore { id } => self.traverse_more(cx, from, id),
            Body::TraverseStop { id } => {
                self.traverses.stop(from, id);
                Ok(())
            }
            Body::Sequence => {
                self.raise_sequence(cx);
                Ok(())
            }
            Body::Push { record } => self.push(cx, from, record),
            Body::Apply {
                tx,
                base,
                after,
                changes,
            } => {
                let work = Work::Apply { tx, base, changes };
                self.apply(cx, from, tx, after, work);
                Ok(())
            }
            Body::Applied { tx, ok } => {
                self.applied(cx, from, tx, ok);
                Ok(())
            }
            // For the leader, or of a recovery: never come here.
            _ => Ok(()),
        }
    }

    /// Something that waited, from the beginning.
    pub(super) fn again<S: Store>(&mut self, cx: &mut Cx<'_, S>, work: Deferred) -> Outcome {
        match work {
            Deferred::Client(call) => self.client_call(cx, call),
            Deferred::Peer(from, body) => {
                if self.serving() {
                    self.served_message(cx, from, body)
                } else {
                    Ok(())
                }
            }
            Deferred::Revoked(key) => self.revoked(cx, &key),
            Deferred::Commit(client, reqid, changes) => self.commit(cx, client, reqid, changes),
            Deferred::Traverse(client, reqid, empty) => self.traverse(cx, client, reqid, empty),
        }
    }

    /// The link to `peer` may have lost messages.
    fn link_reset<S: Store>(&mut self, cx: &mut Cx<'_, S>, peer: Pnn) -> Outcome {
        if self.recovery.is_some() {
            // Claims may be missing; and a wish for a recovery, if the peer leads.
            self.wanted = false;
            self.want_recovery(cx, "a link was lost during a recovery");
            return Ok(());
        }
        if self.generation == Generation::NONE || !self.members.contains(peer) {
            return Ok(());
        }
        if self.touched.contains(peer) || self.commits.under_way() {
            self.wanted = false;
            self.want_recovery(cx, "a link was lost on which records travel");
            return Ok(());
        }
        if self.wanted && peer == self.promised.term.leader {
            self.tell_want(cx);
        }
        self.traverse_link_reset(cx, peer);
        self.send_again(cx)
    }
}
