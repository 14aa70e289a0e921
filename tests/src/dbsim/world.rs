//! The event loop: nodes, links, files.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use ctdb_db::cluster::memory::MemoryStore;
use ctdb_db::cluster::message::Record;
use ctdb_db::cluster::planted::Planted;
use ctdb_db::cluster::{
    Config, Database, Effect, Input, JobId, JobResult, Kind, Leader, Lineage, Message, Note,
    SEQNUM_KEY, StoreFault, Ticket, Tunables, View, Work, verify,
};
use ctdb_db::record::{DbId, LtdbHeader};
use ctdb_wire::ids::{BootTime, Pnn};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::check::Checker;
use super::client::{Client, Writer};
use super::membership::Membership;
use super::node::{Node, Side};
use super::options::{Authority, Options, Outcome, Stats, Violation};

/// A microsecond.
pub const US: u64 = 1_000;
/// A millisecond.
pub const MS: u64 = 1_000_000;

/// Node number of an index.
pub fn pnn(index: usize) -> Pnn {
    Pnn::new(index as u32).expect("a few nodes")
}

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Event {
    Membership,
    Fault,
    Heal(super::faults::Fault),
    Quiet,
    /// A message over a link, or to the node itself (`session` 0).
    Deliver {
        from: usize,
        to: usize,
        session: u64,
        message: Box<Message>,
    },
    LinkReset {
        node: usize,
        peer: usize,
    },
    Tick {
        node: usize,
        life: u64,
        side: usize,
        at: u64,
    },
    Granted {
        node: usize,
        life: u64,
        side: usize,
        ticket: Ticket,
    },
    Job {
        node: usize,
        life: u64,
        side: usize,
        job: JobId,
    },
    Start {
        node: usize,
    },
    /// A client goes on; `number` is that of its wait.
    Client {
        client: usize,
        number: u64,
    },
    Writer {
        client: usize,
        number: u64,
    },
    /// A call, a deletion, a commit arrives at the daemon.
    Call {
        node: usize,
        life: u64,
        client: usize,
        number: u64,
        read: bool,
    },
    Deleted {
        node: usize,
        life: u64,
        side: usize,
        key: usize,
        header: LtdbHeader,
    },
    Commit {
        node: usize,
        life: u64,
        client: usize,
        tx: u32,
        changes: Vec<Record>,
    },
}

impl Event {
    /// The daemon that has to run for it.
    fn daemon(&self) -> Option<usize> {
        match self {
            Self::Deliver { to, .. } => Some(*to),
            Self::LinkReset { node, .. }
            | Self::Tick { node, .. }
            | Self::Granted { node, .. }
            | Self::Call { node, .. }
            | Self::Deleted { node, .. }
            | Self::Commit { node, .. }
            | Self::Job { node, .. } => Some(*node),
            _ => None,
        }
    }
}

struct Scheduled(u64, u64, Event);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The link between two nodes.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub cut: bool,
    /// Counts the connections; messages of older ones are lost.
    pub session: u64,
    /// When the last message of each direction arrives.
    last: [u64; 2],
}

/// A whole cluster.
pub struct World {
    pub now: u64,
    pub rng: ChaCha8Rng,
    pub options: Options,
    pub authority: Authority,
    pub kinds: Vec<Kind>,
    pub readonly: Vec<bool>,
    pub lmaster_capable: Vec<bool>,
    pub nodes: Vec<Node>,
    pub links: BTreeMap<(usize, usize), Link>,
    pub membership: Membership,
    pub clients: Vec<Client>,
    pub writers: Vec<Writer>,
    pub check: Checker,
    pub stats: Stats,
    pub violation: Option<Violation>,
    pub quiet: bool,
    /// Links have spikes of up to this.
    pub spike: u64,
    trace: VecDeque<String>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
}

impl World {
    pub fn new(options: Options) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let count = [2, 3, 3, 3, 4, 5][rng.random_range(0..6)];
        let kinds = vec![
            Kind::Volatile,
            Kind::Volatile,
            Kind::Persistent,
            Kind::Replicated,
        ];
        let authority = if count > 2 && rng.random_bool(0.7) {
            Authority::Majority
        } else {
            Authority::Lock
        };
        let mut world = Self {
            now: MS,
            authority,
            readonly: vec![rng.random_bool(0.5), false, false, false],
            lmaster_capable: (0..count).map(|_| rng.random_bool(0.85)).collect(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            membership: Membership::default(),
            clients: Vec::new(),
            writers: Vec::new(),
            check: Checker::new(kinds.len()),
            stats: Stats::default(),
            violation: None,
            quiet: false,
            spike: [0, 0, 2 * MS, 20 * MS][rng.random_range(0..4)],
            trace: VecDeque::new(),
            queue: BinaryHeap::new(),
            number: 0,
            kinds,
            options,
            rng,
        };
        for node in 0..count {
            let sides = (0..world.kinds.len())
                .map(|side| {
                    let (database, leader) = world.machines(node, side);
                    Side {
                        database,
                        leader,
                        store: MemoryStore::default(),
                        lineage: Lineage::NONE,
                        replacing: None,
                        freezing: false,
                        asked: false,
                        holders: BTreeMap::new(),
                        waits: VecDeque::new(),
                        job: None,
                        wake: None,
                    }
                })
                .collect();
            world.nodes.push(Node {
                up: true,
                life: 1,
                frozen: false,
                stalled: Vec::new(),
                sides,
                right_until: 0,
                told_right: true,
                evicted: false,
                stopped: false,
                disk_fails_until: 0,
            });
            for other in 0..node {
                let link = Link {
                    cut: false,
                    session: 1,
                    last: [0; 2],
                };
                world.links.insert((other, node), link);
            }
        }
        for node in 0..count {
            for side in 0..world.kinds.len() {
                world.set_up(node, side);
            }
        }
        world.make_clients();
        world
    }

    fn machines(&self, node: usize, side: usize) -> (Database, Leader) {
        let planted = self.options.bug.map_or_else(Planted::default, Planted::one);
        let name = format!("db{side}.tdb");
        let id = DbId::of(&name);
        let config = Config {
            id,
            name: name.clone(),
            kind: self.kinds[side],
            me: pnn(node),
            tunables: Tunables {
                vacuum_interval: std::time::Duration::from_millis(60),
                vacuum_fast_path: 3,
                ..Tunables::default()
            },
            planted,
        };
        (
            Database::new(config),
            Leader::new(id, name, self.kinds[side], planted),
        )
    }

    fn set_up(&mut self, node: usize, side: usize) {
        if self.readonly[side] {
            self.input(node, side, Input::Readonly);
        }
    }

    /// Runs it to the end.
    pub fn run(mut self) -> Outcome {
        self.after(0, Event::Membership);
        self.after(self.options.chaos_ms * MS, Event::Quiet);
        self.after(300 * MS, Event::Fault);
        let end = self.now + (self.options.chaos_ms + 4000) * MS;
        while let Some(Reverse(Scheduled(at, _, event))) = self.queue.pop() {
            if at > end || self.violation.is_some() {
                break;
            }
            self.now = self.now.max(at);
            self.stats.events += 1;
            self.event(event);
        }
        if self.violation.is_none() {
            self.final_check();
        }
        for node in &self.nodes {
            for side in &node.sides {
                let statistics = side.database.statistics();
                self.stats.migrations += statistics.migrations_out;
                self.stats.delegations += statistics.delegations;
                self.stats.vacuumed += statistics.vacuumed;
            }
        }
        Outcome {
            violation: self.violation,
            stats: self.stats,
            trace: self.trace.into_iter().collect::<Vec<_>>().join("\n"),
        }
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.options.trace > 0 {
            if self.trace.len() >= self.options.trace {
                self.trace.pop_front();
            }
            let line = format!("{:>12.6} {}", self.now as f64 / 1e9, line());
            self.trace.push_back(line);
        }
    }

    pub fn broken(&mut self, promise: &'static str, text: String) {
        self.trace(|| format!("{promise} BROKEN: {text}"));
        if self.violation.is_none() {
            self.violation = Some(Violation {
                promise,
                at: self.now as f64 / 1e9,
                text,
            });
        }
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.number += 1;
        self.queue
            .push(Reverse(Scheduled(self.now + delay, self.number, event)));
    }

    fn event(&mut self, event: Event) {
        if let Some(node) = event.daemon()
            && self.nodes[node].frozen
        {
            self.nodes[node].stalled.push(event);
            return;
        }
        match event {
            Event::Membership => self.membership_tick(),
            Event::Fault => self.fault(),
            Event::Heal(fault) => self.heal(fault),
            Event::Quiet => self.calm(),
            Event::Deliver {
                from,
                to,
                session,
                message,
            } => self.deliver(from, to, session, *message),
            Event::LinkReset { node, peer } => {
                if self.nodes[node].up {
                    self.all_sides(node, || Input::LinkReset(pnn(peer)));
                }
            }
            Event::Tick {
                node,
                life,
                side,
                at,
            } => {
                if self.alive(node, life) && self.nodes[node].sides[side].wake == Some(at) {
                    self.nodes[node].sides[side].wake = None;
                    let mut out = Vec::new();
                    let now = BootTime(self.now);
                    self.nodes[node].sides[side].leader.tick(now, &mut out);
                    self.effects(node, side, out);
                    self.input(node, side, Input::Tick);
                }
            }
            Event::Granted {
                node,
                life,
                side,
                ticket,
            } => {
                if self.alive(node, life) {
                    self.grant(node, side, ticket);
                }
            }
            Event::Job {
                node,
                life,
                side,
                job,
            } => {
                if self.alive(node, life) {
                    self.finish_job(node, side, job);
                }
            }
            Event::Start { node } => self.start(node),
            Event::Call {
                node,
                life,
                client,
                number,
                read,
            } => {
                if self.alive(node, life) {
                    self.call(node, client, number, read);
                }
            }
            Event::Deleted {
                node,
                life,
                side,
                key,
                header,
            } => {
                if self.alive(node, life) {
                    let key = super::client::key(key);
                    let key = &key;
                    self.input(node, side, Input::Delete { key, header });
                }
            }
            Event::Commit {
                node,
                life,
                client,
                tx,
                changes,
            } => {
                if self.alive(node, life) {
                    self.commit(node, client, tx, changes);
                }
            }
            Event::Client { client, number } => self.client(client, number),
            Event::Writer { client, number } => self.writer(client, number),
        }
    }

    fn alive(&self, node: usize, life: u64) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    pub fn connected(&self, a: usize, b: usize) -> bool {
        a == b || !self.links[&(a.min(b), a.max(b))].cut
    }

    /// The connection between two nodes ends; a new one comes when the link is not cut.
    pub fn break_link(&mut self, a: usize, b: usize) {
        let link = self.links.get_mut(&(a.min(b), a.max(b))).expect("a link");
        link.session += 1;
        link.last = [0; 2];
        if !link.cut {
            for (node, peer) in [(a, b), (b, a)] {
                // Both know before the first message of the new connection.
                let event = Event::LinkReset { node, peer };
                self.event(event);
            }
        }
    }

    pub fn all_sides(&mut self, node: usize, input: impl Fn() -> Input<'static>) {
        for side in 0..self.nodes[node].sides.len() {
            self.input(node, side, input());
        }
    }

    pub fn input(&mut self, node: usize, side: usize, input: Input<'_>) {
        let now = BootTime(self.now);
        let mut out = Vec::new();
        let place = &mut self.nodes[node].sides[side];
        let before = place.database.generation();
        place
            .database
            .handle(now, input, &mut place.store, &mut out);
        let after = place.database.generation();
        if after != before {
            self.generation_changed(node, side, after);
        }
        self.effects(node, side, out);
    }

    pub fn give_view(&mut self, node: usize, side: usize, view: Option<View>) {
        let mut out = Vec::new();
        let now = BootTime(self.now);
        self.nodes[node].sides[side]
            .leader
            .view(now, view, &mut out);
        self.effects(node, side, out);
    }

    fn effects(&mut self, node: usize, side: usize, out: Vec<Effect>) {
        let life = self.nodes[node].life;
        for effect in out {
            match effect {
                Effect::Reply {
                    client,
                    reqid,
                    status,
                    data,
                } => self.reply(client, reqid, status, &data),
                Effect::Committed {
                    client,
                    reqid,
                    status,
                } => self.committed(client, reqid, status),
                Effect::Send { to, message } => self.send(node, to.index(), &message),
                Effect::WaitChain { ticket, key } => {
                    let place = &mut self.nodes[node].sides[side];
                    let free = !place.holders.contains_key(&key);
                    place.waits.push_back((ticket, key));
                    if free {
                        let delay = self.rng.random_range(5..40) * US;
                        self.after(
                            delay,
                            Event::Granted {
                                node,
                                life,
                                side,
                                ticket,
                            },
                        );
                    }
                }
                Effect::Freeze => {
                    self.trace(|| format!("node {node} db {side}: freeze asked"));
                    let place = &mut self.nodes[node].sides[side];
                    place.freezing = true;
                    place.asked = true;
                    self.maybe_frozen(node, side);
                }
                Effect::Thaw => {
                    self.trace(|| format!("node {node} db {side}: thaw"));
                    let place = &mut self.nodes[node].sides[side];
                    place.freezing = false;
                    place.asked = false;
                    place.store.frozen = false;
                    self.wake_waits(node, side, None);
                }
                Effect::Job { job, work } => {
                    self.nodes[node].sides[side].job = Some((job, work));
                    let delay = self.rng.random_range(50..4000) * US;
                    self.after(
                        delay,
                        Event::Job {
                            node,
                            life,
                            side,
                            job,
                        },
                    );
                }
                Effect::CloseClients => self.close_clients(node, side),
                Effect::Note(Note::WantRecovery(why)) => {
                    self.trace(|| format!("node {node} db {side}: wants a recovery: {why}"));
                }
                Effect::Note(note) => {
                    self.trace(|| format!("node {node} db {side}: {note:?}"));
                }
                Effect::Went { .. } | Effect::Traversed { .. } => {}
            }
        }
        self.schedule(node, side);
    }

    /// The next wake-up of a machine and of its leader's side.
    fn schedule(&mut self, node: usize, side: usize) {
        let place = &self.nodes[node].sides[side];
        let wakes = [place.database.next_wake(), place.leader.next_wake()];
        let Some(at) = wakes.into_iter().flatten().min() else {
            return;
        };
        let at = at.0.max(self.now + 20 * US);
        if place.wake.is_some_and(|wake| wake <= at && wake > self.now) {
            return;
        }
        self.nodes[node].sides[side].wake = Some(at);
        let life = self.nodes[node].life;
        self.after(
            at - self.now,
            Event::Tick {
                node,
                life,
                side,
                at,
            },
        );
    }

    fn send(&mut self, from: usize, to: usize, message: &Message) {
        // What travels is bytes.
        let mut bytes = Vec::new();
        message.encode(&mut bytes).expect("a message of ours");
        let message = Box::new(Message::decode(&bytes).expect("what was encoded"));
        let session = self.links.get(&(from.min(to), from.max(to))).copied();
        let Some(link) = session else {
            self.after(
                US,
                Event::Deliver {
                    from,
                    to,
                    session: 0,
                    message,
                },
            );
            return;
        };
        if link.cut {
            return;
        }
        let mut latency = self.rng.random_range(20..120) * US;
        if self.spike > 0 && self.rng.random_bool(0.02) {
            latency += self.rng.random_range(0..self.spike);
        }
        let direction = usize::from(from > to);
        let at = (self.now + latency).max(link.last[direction] + 1);
        let entry = self.links.get_mut(&(from.min(to), from.max(to)));
        entry.expect("it was there").last[direction] = at;
        self.after(
            at - self.now,
            Event::Deliver {
                from,
                to,
                session: link.session,
                message,
            },
        );
    }

    fn deliver(&mut self, from: usize, to: usize, session: u64, message: Message) {
        if !self.nodes[to].up {
            return;
        }
        if session != 0 && self.links[&(from.min(to), from.max(to))].session != session {
            return;
        }
        let Some(side) = (0..self.kinds.len())
            .find(|side| self.nodes[to].sides[*side].database.config().id == message.db)
        else {
            return;
        };
        let text = if self.options.trace > 0 {
            let mut text = format!("{:?} {:?}", message.generation, message.body);
            text.truncate(160);
            text
        } else {
            String::new()
        };
        self.trace(|| format!("{from} -> {to} db {side}: {text}"));
        if message.body.for_leader() {
            let mut out = Vec::new();
            let now = BootTime(self.now);
            let leader = &mut self.nodes[to].sides[side].leader;
            let before = leader.progress();
            leader.peer(now, pnn(from), message, &mut out);
            let after = leader.progress();
            let done = matches!(after, ctdb_db::cluster::Progress::Done { .. });
            if done && after != before {
                self.stats.recoveries += 1;
            }
            self.effects(to, side, out);
        } else {
            let from = pnn(from);
            self.input(to, side, Input::Peer { from, message });
        }
    }

    // ---- Locks of the file

    /// The lock on all records is had when the last holder of a chain is gone.
    pub fn maybe_frozen(&mut self, node: usize, side: usize) {
        let place = &mut self.nodes[node].sides[side];
        if !place.freezing || !place.holders.is_empty() {
            return;
        }
        place.store.frozen = true;
        if place.asked && !self.nodes[node].frozen {
            self.nodes[node].sides[side].asked = false;
            self.input(node, side, Input::Frozen);
        }
    }

    /// The guard of a daemon that is stopped in its tracks takes the locks in its place.
    pub fn guard_freezes(&mut self, node: usize) {
        if self.options.bug == Some(ctdb_db::cluster::planted::Bug::StaleOwnerWrites) {
            return;
        }
        for side in 0..self.kinds.len() {
            if !self.nodes[node].sides[side].freezing {
                self.nodes[node].sides[side].freezing = true;
                self.trace(|| format!("the guard of node {node} freezes db {side}"));
            }
        }
        self.end_holders(node);
        for side in 0..self.kinds.len() {
            self.maybe_frozen(node, side);
        }
    }

    /// A chain is free: the daemon's first wait for it, or for all of them after a thaw.
    pub fn wake_waits(&mut self, node: usize, side: usize, key: Option<&[u8]>) {
        let life = self.nodes[node].life;
        let tickets: Vec<Ticket> = self.nodes[node].sides[side]
            .waits
            .iter()
            .filter(|(_, waited)| key.is_none_or(|key| waited == key))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in tickets {
            let delay = self.rng.random_range(2..40) * US;
            self.after(
                delay,
                Event::Granted {
                    node,
                    life,
                    side,
                    ticket,
                },
            );
        }
    }

    fn grant(&mut self, node: usize, side: usize, ticket: Ticket) {
        let place = &mut self.nodes[node].sides[side];
        let Some(index) = place.waits.iter().position(|(other, _)| *other == ticket) else {
            return;
        };
        // Somebody was faster, or all is frozen: the wait goes on.
        let busy = place.holders.contains_key(&place.waits[index].1);
        if busy || place.freezing {
            return;
        }
        place.waits.remove(index);
        self.input(node, side, Input::Granted(ticket));
    }

    // ---- Jobs

    fn finish_job(&mut self, node: usize, side: usize, job: JobId) {
        let place = &mut self.nodes[node].sides[side];
        let Some((_, work)) = place.job.take_if(|(running, _)| *running == job) else {
            return;
        };
        let fails = self.now < self.nodes[node].disk_fails_until && self.rng.random_bool(0.3);
        let result = if fails && !matches!(work, Work::Sync) {
            JobResult::Failed(StoreFault("no space left on device".to_owned()))
        } else {
            self.do_job(node, side, work)
        };
        self.input(node, side, Input::Done { job, result });
    }

    /// What a job does to the file, all at once.
    pub fn do_job(&mut self, node: usize, side: usize, work: Work) -> JobResult {
        let place = &mut self.nodes[node].sides[side];
        match work {
            Work::Sync => JobResult::Ok,
            Work::Inspect => {
                place.replacing = None;
                let seq = place.store.records.get(SEQNUM_KEY);
                JobResult::Inspected {
                    lineage: place.lineage,
                    seq: seq.map_or(0, |(_, data)| ctdb_db::cluster::sequence_of(data)),
                    digest: place.store.digest(),
                }
            }
            Work::Apply { tx, base, changes } => {
                let records = &place.store.records;
                if let Err(conflict) = verify(base, &changes, |key| records.get(key).cloned()) {
                    self.trace(|| format!("node {node} db {side}: {tx:?}: {conflict}"));
                    return JobResult::Conflict(conflict);
                }
                for change in &changes {
                    place.store.put(change);
                }
                JobResult::Ok
            }
            Work::ReplaceBegin { .. } => {
                place.replacing = Some(Vec::new());
                JobResult::Ok
            }
            Work::ReplacePiece { records } => match &mut place.replacing {
                Some(all) => {
                    all.extend(records);
                    JobResult::Ok
                }
                None => JobResult::Failed(StoreFault("no replacement has begun".to_owned())),
            },
            Work::ReplaceCommit => match place.replacing.take() {
                Some(all) => {
                    place.store.records.clear();
                    for record in &all {
                        place.store.put(record);
                    }
                    JobResult::Ok
                }
                None => JobResult::Failed(StoreFault("no replacement has begun".to_owned())),
            },
            Work::Seal { lineage } => {
                place.lineage = lineage;
                JobResult::Ok
            }
        }
    }

    // ---- Lives

    /// The daemon dies, and its clients with it.
    pub fn crash(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        self.trace(|| format!("node {node} dies"));
        self.nodes[node].up = false;
        for side in 0..self.kinds.len() {
            // What the disk did at that moment is anybody's guess.
            if let Some((_, work)) = self.nodes[node].sides[side].job.take()
                && self.kinds[side] == Kind::Persistent
                && self.rng.random_bool(0.5)
            {
                self.do_job(node, side, work);
            }
            self.close_clients(node, side);
        }
        let host = &mut self.nodes[node];
        host.frozen = false;
        host.stalled.clear();
        host.right_until = host.right_until.min(self.now);
        for other in 0..self.nodes.len() {
            if other != node {
                self.break_link(node, other);
            }
        }
    }

    /// A daemon starts: volatile files are empty, persistent ones as they were.
    fn start(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        let life = self.nodes[node].life + 1;
        self.trace(|| format!("node {node} starts its life {life}"));
        for side in 0..self.kinds.len() {
            let (database, leader) = self.machines(node, side);
            let kind = self.kinds[side];
            let place = &mut self.nodes[node].sides[side];
            place.database = database;
            place.leader = leader;
            if kind != Kind::Persistent {
                place.store = MemoryStore::default();
                place.lineage = Lineage::NONE;
            }
            place.store.frozen = false;
            place.replacing = None;
            place.freezing = false;
            place.asked = false;
            place.holders.clear();
            place.store.locked.clear();
            place.waits.clear();
            place.job = None;
            place.wake = None;
        }
        let host = &mut self.nodes[node];
        host.up = true;
        host.life = life;
        host.told_right = true;
        host.evicted = false;
        host.right_until = 0;
        for side in 0..self.kinds.len() {
            self.set_up(node, side);
        }
        for other in 0..self.nodes.len() {
            if other != node {
                self.break_link(node, other);
            }
        }
        self.revive_clients(node);
    }

    /// A daemon that was stopped in its tracks goes on.
    pub fn resume(&mut self, node: usize) {
        if !self.nodes[node].frozen {
            return;
        }
        self.trace(|| format!("node {node} goes on"));
        self.nodes[node].frozen = false;
        // The first thing that a daemon does is to look at its right.
        let ended = self.now >= self.nodes[node].right_until;
        if ended && self.nodes[node].told_right {
            self.nodes[node].told_right = false;
            self.all_sides(node, || Input::RightLost);
        }
        for event in std::mem::take(&mut self.nodes[node].stalled) {
            self.event(event);
        }
        for side in 0..self.kinds.len() {
            self.maybe_frozen(node, side);
        }
    }

    /// Records of a store, for the checks.
    pub fn copy(&self, node: usize, side: usize, key: &[u8]) -> Option<Record> {
        let (header, data) = self.nodes[node].sides[side].store.records.get(key)?;
        Some(Record::new(key, header, data))
    }
}
