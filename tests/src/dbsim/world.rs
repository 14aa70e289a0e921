//! The event loop: nodes, links, files.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use ctdb_db::cluster::memory::MemoryStore;
use ctdb_db::cluster::message::Record;
use ctdb_db::cluster::planted::Planted;
use ctdb_db::cluster::rights::{Rights, Views};
use ctdb_db::cluster::{
    Body, Config, Database, Effect, Input, JobId, Kind, Leader, Lineage, Message, Note, Ticket,
    Tunables, View,
};
use ctdb_db::record::{DbId, LtdbHeader};
use ctdb_wire::ids::{BootTime, Pnn};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::check::Checker;
use super::client::{Client, Writer};
use super::extras::{Arrival, Features, Walk};
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
    Apart,
    /// Somebody wants all records.
    Walk,
    /// Something must have arrived.
    Arrived(Box<Arrival>),
    /// A record of a database that is used together with this one went to a node.
    Companion {
        node: usize,
        life: u64,
        side: usize,
        key: Vec<u8>,
        to: usize,
    },
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
            | Self::Companion { node, .. }
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
    pub features: Features,
    /// For what was thought of later, so that runs without it are what they were.
    pub extra: ChaCha8Rng,
    pub walks: BTreeMap<u64, Walk>,
    pub walked: u64,
    /// How often a node (second) raised the change counter of another one (last).
    pub told: BTreeMap<(usize, usize, usize), u64>,
    /// When something went wrong or was mended last.
    pub disturbed_at: u64,
    trace: VecDeque<String>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
}

impl World {
    pub fn new(options: Options) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let mut extra = ChaCha8Rng::seed_from_u64(options.seed ^ 0x6578_7472_6173);
        let features = if options.calm {
            Features::default()
        } else {
            Features::draw(&mut extra)
        };
        let mut count = [2, 3, 3, 3, 4, 5][rng.random_range(0..6)];
        if options.apart {
            count = count.max(3);
        }
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
            features,
            extra,
            walks: BTreeMap::new(),
            walked: 0,
            told: BTreeMap::new(),
            disturbed_at: 0,
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
            let rights = world.rights();
            world.nodes.push(Node {
                views: Views::default(),
                rights,
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
        if world.options.calm {
            world.quiet = true;
            world.spike = 0;
            world.readonly.fill(false);
        }
        world.stats.nodes = count;
        world.make_clients();
        world
    }

    fn planted(&self) -> Planted {
        self.options.bug.map_or_else(Planted::default, Planted::one)
    }

    pub fn rights(&self) -> Rights {
        Rights::new(self.planted())
    }

    pub fn machines(&self, node: usize, side: usize) -> (Database, Leader) {
        let planted = self.planted();
        let name = format!("db{side}.tdb");
        let id = DbId::of(&name);
        let mut tunables = Tunables {
            vacuum_interval: std::time::Duration::from_millis(60),
            vacuum_fast_path: 3,
            hold: self.options.hold,
            ..Tunables::default()
        };
        self.features.tune(&mut tunables);
        let config = Config {
            id,
            name: name.clone(),
            kind: self.kinds[side],
            me: pnn(node),
            tunables,
            planted,
        };
        (
            Database::new(config),
            Leader::new(id, name, self.kinds[side], planted),
        )
    }

    pub fn set_up(&mut self, node: usize, side: usize) {
        if self.readonly[side] {
            self.input(node, side, Input::Readonly);
        }
        if self.features.sticky {
            self.input(node, side, Input::Sticky);
        }
        if self.features.sequences {
            self.input(node, side, Input::EnableSeqnum);
        }
    }

    /// Runs it to the end.
    pub fn run(mut self) -> Outcome {
        self.after(0, Event::Membership);
        let mut end = self.now + (self.options.chaos_ms + 4000) * MS;
        if self.options.calm {
            end = self.now + 1500 * MS;
        } else if self.options.apart {
            self.after(300 * MS, Event::Apart);
        } else {
            self.after(self.options.chaos_ms * MS, Event::Quiet);
            self.after(300 * MS, Event::Fault);
        }
        if self.features.traverses {
            self.after(50 * MS, Event::Walk);
        }
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

    pub fn event(&mut self, event: Event) {
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
            Event::Apart => self.set_apart(),
            Event::Walk => self.walk(),
            Event::Arrived(arrival) => self.arrived(&arrival),
            Event::Companion {
                node,
                life,
                side,
                key,
                to,
            } => {
                if self.alive(node, life) {
                    self.companion(node, side, &key, to);
                }
            }
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
                Effect::Rights { view, may } => {
                    if self.nodes[node].rights.heard(view, may) {
                        self.stats.rights_over += 1;
                    }
                }
                Effect::Went { key, to } => self.went(node, side, key, to.index()),
                Effect::Traversed {
                    client,
                    records,
                    end,
                    ..
                } => self.traversed(client, records, end),
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
            let counter = self.nodes[to].sides[side].store.sequence;
            let of_change = matches!(message.body, Body::Sequence);
            let peer = pnn(from);
            self.input(
                to,
                side,
                Input::Peer {
                    from: peer,
                    message,
                },
            );
            if of_change && self.nodes[to].sides[side].store.sequence > counter {
                *self.told.entry((side, from, to)).or_default() += 1;
            }
        }
    }

    /// Records of a store, for the checks.
    pub fn copy(&self, node: usize, side: usize, key: &[u8]) -> Option<Record> {
        let (header, data) = self.nodes[node].sides[side].store.records.get(key)?;
        Some(Record::new(key, header, data))
    }
}
