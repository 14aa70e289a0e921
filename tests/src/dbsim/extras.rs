//! What clients do beside locking records and committing (traverses, pushed records, change counters),
//! and what databases that are used together tell each other.

use std::collections::BTreeSet;
use std::time::Duration;

use ctdb_db::cluster::message::Record;
use ctdb_db::cluster::{ClientId, Generation, Input, Kind, State, Tunables};
use ctdb_db::record::Rsn;
use ctdb_wire::ids::Pnn;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use super::check::{list, version};
use super::client::{KEYS, LISTS, key};
use super::world::{Event, MS, US, World, pnn};

/// When a traverse gives up.
pub const TRAVERSE: u64 = 1000 * MS;
/// How often a changed counter is told.
const SEQUENCE: u64 = 50 * MS;
/// What is under way for so long has arrived, if nothing was disturbed.
const ARRIVED: u64 = 150 * MS;
const WALKER: u64 = 1 << 41;
/// The volatile database whose records are pushed, and whose counter is told.
const PUSHED: usize = 1;

/// What a run has of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    pub traverses: bool,
    pub sequences: bool,
    pub pushes: bool,
    pub sticky: bool,
    pub companions: bool,
}

impl Features {
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        Self {
            traverses: rng.random(),
            sequences: rng.random(),
            pushes: rng.random(),
            sticky: rng.random(),
            companions: rng.random(),
        }
    }

    pub fn tune(self, tunables: &mut Tunables) {
        tunables.seqnum_interval = Duration::from_nanos(SEQUENCE);
        tunables.traverse_timeout = Duration::from_nanos(TRAVERSE);
        tunables.push_arrives = Duration::from_nanos(ARRIVED);
        if self.sticky {
            tunables.hopcount_make_sticky = 2;
            tunables.sticky_duration = Duration::from_millis(300);
            tunables.sticky_pindown = Duration::from_millis(8);
        }
    }
}

/// A record when a traverse began.
#[derive(Clone, Copy, Debug)]
struct Start {
    /// Who owned it; the number rises when it moves.
    owner: Option<(usize, Rsn)>,
    /// Length of its history; `None`: its newest copy was lost, anything may be found.
    low: Option<usize>,
}

/// A traverse under way.
#[derive(Clone, Debug)]
pub struct Walk {
    node: usize,
    life: u64,
    side: usize,
    since: u64,
    /// The generation, if it was the newest and served.
    generation: Option<Generation>,
    keys: Vec<Start>,
    acknowledged: BTreeSet<u32>,
    records: Vec<Record>,
    /// Its client has gone.
    closed: bool,
}

/// Something that must have arrived on all nodes, if nothing was disturbed meanwhile.
#[derive(Clone, Debug)]
pub struct Arrival {
    node: usize,
    side: usize,
    since: u64,
    generation: Generation,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// How often this node had told each of the others that records changed, when one did.
    Sequence(Vec<u64>),
    /// A record was pushed; the position of its value in its history.
    Push { key: usize, position: usize },
}

impl World {
    fn newest_served(&self, node: usize, side: usize) -> Option<Generation> {
        let database = &self.nodes[node].sides[side].database;
        let newest = self.check.newest(side);
        let serves = database.state() == State::Serving && database.generation() == newest;
        (serves && newest != Generation::NONE).then_some(newest)
    }

    fn owner_of(&self, side: usize, index: usize) -> Option<(usize, Rsn)> {
        let name = key(index);
        (0..self.nodes.len()).find_map(|node| {
            let copy = self.copy(node, side, &name)?;
            // Who was left out still has what it had.
            let member = self.newest_served(node, side).is_some() && self.nodes[node].up;
            (member && copy.dmaster == pnn(node).get()).then_some((node, copy.rsn))
        })
    }

    // ---- Traverses

    /// Some client wants all records of a database.
    pub fn walk(&mut self) {
        let pause = self.extra.random_range(20..120) * MS;
        self.after(pause, Event::Walk);
        let node = self.extra.random_range(0..self.nodes.len());
        let side = self.extra.random_range(0..self.kinds.len());
        if !self.nodes[node].up || self.nodes[node].frozen {
            return;
        }
        self.walked += 1;
        let number = self.walked;
        let keys = (0..KEYS)
            .map(|index| Start {
                owner: self.owner_of(side, index),
                low: self.check.settled_len(side, index),
            })
            .collect();
        let walk = Walk {
            node,
            life: self.nodes[node].life,
            side,
            since: self.now,
            generation: self.newest_served(node, side),
            keys,
            acknowledged: self.check.acknowledged(side).clone(),
            records: Vec::new(),
            closed: false,
        };
        self.walks.insert(number, walk);
        self.input(
            node,
            side,
            Input::Traverse {
                client: ClientId(WALKER | number << 20),
                reqid: number as u32,
                empty: false,
            },
        );
    }

    /// A piece of a traverse.
    pub fn traversed(&mut self, client: ClientId, records: Vec<Record>, end: bool) {
        let number = (client.0 & !WALKER) >> 20;
        let Some(walk) = self.walks.get_mut(&number) else {
            self.broken(
                "D.14",
                format!("records after the end of traverse {number}"),
            );
            return;
        };
        if walk.closed {
            return;
        }
        walk.records.extend(records);
        if end && let Some(walk) = self.walks.remove(&number) {
            self.stats.traverses += 1;
            self.check_walk(&walk);
        }
    }

    /// The clients of a database end.
    pub fn end_walks(&mut self, node: usize, side: usize) {
        let of = |walk: &Walk| (walk.node, walk.side) == (node, side) && !walk.closed;
        let numbers: Vec<u64> = self
            .walks
            .iter()
            .filter(|(_, walk)| of(walk))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            if let Some(walk) = self.walks.get_mut(&number) {
                walk.closed = true;
            }
            if self.nodes[node].up && !self.nodes[node].frozen {
                let client = ClientId(WALKER | number << 20);
                self.input(node, side, Input::ClientGone(client));
            }
        }
    }

    fn check_walk(&mut self, walk: &Walk) {
        let (node, side) = (walk.node, walk.side);
        let steady = walk.generation.is_some()
            && walk.generation == self.newest_served(node, side)
            && self.now - walk.since < TRAVERSE;
        if self.kinds[side] != Kind::Volatile {
            // Without a member of the newest lineage an older copy may be read (DATA-2).
            let newest = self.nodes[node].sides[side].database.writable();
            if !steady || !newest {
                return;
            }
            let lists = LISTS.map(|name| {
                let found = walk.records.iter().rev().find(|record| record.key == name);
                list(found.cloned())
            });
            let there: BTreeSet<u32> = lists[0].iter().copied().collect();
            // A replicated database lives as long as one of the nodes that have its newest copy.
            let kept = self.kinds[side] != Kind::Persistent || walk.acknowledged.is_subset(&there);
            if lists[0] != lists[1] || !kept {
                let text = format!("db {side}: a traverse of node {node} shows {lists:?}");
                self.broken("D.14", text);
            }
            return;
        }
        for (index, start) in walk.keys.iter().enumerate() {
            let name = key(index);
            let (Some(low), Some(_)) = (start.low, self.check.settled_len(side, index)) else {
                continue;
            };
            let since = self.check.values_since(side, index, low);
            let found: Vec<Option<u64>> = walk
                .records
                .iter()
                .filter(|record| record.key == name)
                .map(|record| version(&record.data))
                .collect();
            if !steady {
                continue;
            }
            if let Some(wrong) = found.iter().find(|value| !since.contains(value)) {
                let text = format!(
                    "db {side} key {index}: a traverse of node {node} shows {wrong:?}, since its \
                     begin it was {since:?}"
                );
                self.broken("D.14", text);
                return;
            }
            let stayed = start.owner.is_some() && start.owner == self.owner_of(side, index);
            let existed = low > 0 && since.iter().all(Option::is_some);
            if stayed && existed && found.is_empty() {
                let text = format!(
                    "db {side} key {index}: a traverse of node {node} does not show it, though it was \
                     {since:?} on node {:?} all the time",
                    start.owner
                );
                self.broken("D.14", text);
                return;
            }
        }
    }

    /// Every traverse of a daemon that lives has ended.
    pub fn check_walks(&mut self) {
        let late = self.now.saturating_sub(TRAVERSE + 500 * MS);
        let hangs = self.walks.iter().find(|(_, walk)| {
            let host = &self.nodes[walk.node];
            // Who is left out to the end waits for that long.
            let inside = !self.options.apart || self.membership.members.contains_key(&walk.node);
            inside && host.up && host.life == walk.life && walk.since < late && !walk.closed
        });
        if let Some((number, walk)) = hangs {
            let text = format!("traverse {number} hangs: {walk:?}");
            self.broken("G.20", text);
        }
    }

    // ---- Pushed records and change counters

    /// Whether a client that is about to change a record pushes it.
    pub fn pushes(&mut self, side: usize) -> bool {
        self.features.pushes && side == PUSHED && self.extra.random_bool(0.2)
    }

    /// A client that holds the record's lock, and has stored it, sends it to all nodes.
    pub fn push(&mut self, node: usize, side: usize, index: usize, record: &Record) {
        let (name, header) = (key(index), record.header());
        let position = self.check.history_len(side, index) - 1;
        let generation = self.newest_served(node, side);
        self.input(
            node,
            side,
            Input::Push {
                key: &name,
                header,
                data: &record.data,
            },
        );
        if let Some(generation) = generation {
            let what = What::Push {
                key: index,
                position,
            };
            self.arrives(node, side, generation, what);
        }
    }

    /// A client has changed a record.
    pub fn changed(&mut self, node: usize, side: usize) {
        if !self.features.sequences || side != PUSHED || !self.extra.random_bool(0.1) {
            return;
        }
        if let Some(generation) = self.newest_served(node, side) {
            let told = (0..self.nodes.len())
                .map(|other| self.told_changes(side, node, other))
                .collect();
            self.arrives(node, side, generation, What::Sequence(told));
        }
    }

    fn told_changes(&self, side: usize, from: usize, to: usize) -> u64 {
        self.told.get(&(side, from, to)).copied().unwrap_or(0)
    }

    fn arrives(&mut self, node: usize, side: usize, generation: Generation, what: What) {
        let arrival = Arrival {
            node,
            side,
            since: self.now,
            generation,
            what,
        };
        self.after(ARRIVED, Event::Arrived(Box::new(arrival)));
    }

    /// It is time that it has arrived.
    pub fn arrived(&mut self, arrival: &Arrival) {
        let (from, side) = (arrival.node, arrival.side);
        if self.disturbed_at >= arrival.since {
            return;
        }
        let members = self.nodes[from].sides[side].database.members();
        for to in members.iter().map(Pnn::index).filter(|to| *to != from) {
            let served = [from, to].map(|node| {
                !self.nodes[node].frozen
                    && self.nodes[node].up
                    && self.newest_served(node, side) == Some(arrival.generation)
            });
            if served != [true; 2] || !self.connected(from, to) {
                continue;
            }
            match &arrival.what {
                What::Sequence(before) => {
                    self.stats.counters += 1;
                    if self.told_changes(side, from, to) == before[to] {
                        let text = format!(
                            "db {side}: node {from} changed a record and did not tell node {to}"
                        );
                        self.broken("D.15", text);
                        return;
                    }
                }
                What::Push {
                    key: index,
                    position,
                } => {
                    self.stats.pushes += 1;
                    if !self.check.gone_since(side, *index, *position) {
                        let copy = self.copy(to, side, &key(*index));
                        let value = copy.as_ref().and_then(|copy| version(&copy.data));
                        if self.check.position(side, *index, value) < Some(*position) {
                            let text = format!(
                                "db {side} key {index}: node {from} pushed it, node {to} has {copy:?}"
                            );
                            self.broken("D.16", text);
                            return;
                        }
                    }
                }
            }
        }
    }

    // ---- Databases that are used together

    /// A record went to another node: the other volatile database hears of it.
    pub fn went(&mut self, node: usize, side: usize, name: Vec<u8>, to: usize) {
        if !self.features.companions || side > 1 {
            return;
        }
        let life = self.nodes[node].life;
        let event = Event::Companion {
            node,
            life,
            side: 1 - side,
            key: name,
            to,
        };
        self.after(2 * US, event);
    }

    /// The database acts on it.
    pub fn companion(&mut self, node: usize, side: usize, name: &[u8], to: usize) {
        let before = self.nodes[node].sides[side]
            .database
            .statistics()
            .migrations_out;
        let to = pnn(to);
        self.input(node, side, Input::Companion { key: name, to });
        let after = self.nodes[node].sides[side]
            .database
            .statistics()
            .migrations_out;
        self.stats.companions += after - before;
    }
}
