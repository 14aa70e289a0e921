//! The promises and invariants.

use std::collections::{BTreeMap, BTreeSet};

use ctdb_db::cluster::message::Record;
use ctdb_db::cluster::{Generation, Kind, State};
use ctdb_wire::ids::{NodeSet, Pnn};

use super::client::{KEYS, LISTS, Place, key};
use super::options::Authority;
use super::world::{MS, World, pnn};

/// A node in one of its lives, between two evictions.
type Tenant = (usize, u64, u64);

/// What a record must be.
#[derive(Clone, Debug, Default)]
struct Model {
    /// All values so far; `None`: deleted.
    history: Vec<Option<u64>>,
    /// Who saw or changed it last as its owner.
    owner: Option<Tenant>,
    /// Its owner was lost with the newest value. What comes next must be as new as this position.
    open: Option<Survivor>,
}

/// What may come next of a record whose owner was lost: a value as new as this position of its
/// history; anything, if no copy with data survived.
#[derive(Clone, Copy, Debug)]
struct Survivor(Option<usize>);

impl Model {
    fn current(&self) -> Option<u64> {
        self.history.last().copied().flatten()
    }

    fn position(&self, version: u64) -> Option<usize> {
        self.history
            .iter()
            .rposition(|value| *value == Some(version))
    }
}

/// What the checkers remember.
#[derive(Debug)]
pub struct Checker {
    models: BTreeMap<(usize, usize), Model>,
    version: u64,
    newest: Vec<Generation>,
    /// Who was a member when a generation was first served.
    tenants: BTreeMap<(usize, Generation), BTreeSet<Tenant>>,
    pub evictions: Vec<u64>,
    /// Keeps transactions of one database apart, as `g_lock` does.
    pub tx_lock: Vec<Option<usize>>,
    acknowledged: Vec<BTreeSet<u32>>,
    /// Transactions that were answered as not done.
    pub denied: Vec<BTreeSet<u32>>,
}

impl Checker {
    pub fn new(sides: usize) -> Self {
        Self {
            models: BTreeMap::new(),
            version: 0,
            newest: vec![Generation::NONE; sides],
            tenants: BTreeMap::new(),
            evictions: vec![0; 64],
            tx_lock: vec![None; sides],
            acknowledged: vec![BTreeSet::new(); sides],
            denied: vec![BTreeSet::new(); sides],
        }
    }

    pub fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub fn history_len(&self, side: usize, key: usize) -> usize {
        self.models
            .get(&(side, key))
            .map_or(0, |model| model.history.len())
    }

    /// The same, unless its newest copy was lost.
    pub fn settled_len(&self, side: usize, key: usize) -> Option<usize> {
        match self.models.get(&(side, key)) {
            None => Some(0),
            Some(model) if model.open.is_some() => None,
            Some(model) => Some(model.history.len()),
        }
    }

    /// What a record was since its history was that long.
    pub fn values_since(&self, side: usize, key: usize, low: usize) -> Vec<Option<u64>> {
        let history = self
            .models
            .get(&(side, key))
            .map_or(&[][..], |model| &model.history);
        history[low.saturating_sub(1).min(history.len())..].to_vec()
    }

    /// Whether it was deleted since it had the value at this position, or lost.
    pub fn gone_since(&self, side: usize, key: usize, position: usize) -> bool {
        self.models
            .get(&(side, key))
            .is_none_or(|model| model.open.is_some() || model.history[position..].contains(&None))
    }

    /// Where a value stands in a record's history.
    pub fn position(&self, side: usize, key: usize, value: Option<u64>) -> Option<usize> {
        self.models.get(&(side, key))?.position(value?)
    }

    /// The newest generation that was served.
    pub fn newest(&self, side: usize) -> Generation {
        self.newest[side]
    }

    /// Transactions that were acknowledged.
    pub fn acknowledged(&self, side: usize) -> &BTreeSet<u32> {
        &self.acknowledged[side]
    }
}

pub fn version(data: &[u8]) -> Option<u64> {
    data.try_into().ok().map(u64::from_le_bytes)
}

pub fn list(record: Option<Record>) -> Vec<u32> {
    record.map_or_else(Vec::new, |record| {
        record
            .data
            .chunks_exact(4)
            .map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]))
            .collect()
    })
}

impl World {
    fn tenant(&self, node: usize) -> Tenant {
        (node, self.nodes[node].life, self.check.evictions[node])
    }

    /// A client holds a record's lock on a node that owns it: nobody else may, and its content must be
    /// the newest.
    pub fn check_owner(&mut self, node: usize, side: usize, index: usize, record: &Record) {
        let newest = self.check.newest[side];
        let generation = self.nodes[node].sides[side].database.generation();
        if generation != newest {
            let text = format!(
                "a client of node {node} has a record of db {side} in generation {generation:?}, \
                 while {newest:?} is served"
            );
            self.broken("DATA-5", text);
            return;
        }
        let name = key(index);
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let place = &self.nodes[other].sides[side];
            if place.database.generation() != newest || !self.nodes[other].up {
                continue;
            }
            // Whose process holds a record is not gone for anybody who could take it over.
            if !self.nodes[other].rights.may_live(pnn(node)) {
                let text = format!(
                    "a client of node {node} has a record of db {side}, node {other} takes it for gone"
                );
                self.broken("false dead", text);
                return;
            }
            let Some(copy) = self.copy(other, side, &name) else {
                continue;
            };
            if copy.dmaster == pnn(other).get() && place.database.state() == State::Serving {
                let text = format!("db {side} key {index}: nodes {node} and {other} own it");
                self.broken("G.13", text);
                return;
            }
            if copy.rsn > record.rsn || (copy.rsn == record.rsn && copy.data != record.data) {
                let text = format!(
                    "db {side} key {index}: node {other} has {copy:?}, the owner {node} {record:?}"
                );
                self.broken("G.16", text);
                return;
            }
        }
        let tenant = self.tenant(node);
        let found = version(&record.data);
        let model = self.check.models.entry((side, index)).or_default();
        model.owner = Some(tenant);
        let fits = match model.open.take() {
            None => found == model.current(),
            Some(Survivor(at_least)) => {
                let deleted_since = |from: Option<usize>| {
                    from.is_none_or(|from| model.history[from..].contains(&None))
                };
                let fits = match found {
                    Some(found) => {
                        model.position(found) >= at_least && model.position(found).is_some()
                    }
                    None => deleted_since(at_least),
                };
                if fits && found != model.current() {
                    model.history.push(found);
                }
                fits
            }
        };
        if !fits {
            let text = format!(
                "db {side} key {index}: node {node} finds {found:?}, the newest is {:?}",
                model.current()
            );
            self.broken("DATA-1", text);
        }
    }

    /// A client changes a record.
    pub fn check_write(&mut self, node: usize, side: usize, index: usize, record: &Record) {
        let value = version(&record.data);
        self.trace(|| format!("node {node} db {side} key {index} := {value:?} {record:?}"));
        let model = self.check.models.entry((side, index)).or_default();
        model.history.push(value);
    }

    /// A client reads the copy of its node: its owner's, or a read-only one.
    pub fn check_read(
        &mut self,
        node: usize,
        side: usize,
        index: usize,
        record: &Record,
        owned: bool,
    ) {
        let generation = self.nodes[node].sides[side].database.generation();
        let model = self.check.models.entry((side, index)).or_default();
        if generation != self.check.newest[side] || model.open.is_some() {
            // A reader on a node without right reads what it had: no promise.
            return;
        }
        if version(&record.data) != model.current() {
            let promise = if owned { "DATA-1" } else { "G.24" };
            let text = format!(
                "db {side} key {index}: node {node} reads {record:?}, the newest is {:?}",
                model.current()
            );
            self.broken(promise, text);
        }
    }

    /// A client was told a record's value: it must have been the newest at some time since the call.
    pub fn check_fetch(&mut self, side: usize, index: usize, low: usize, record: &Record) {
        let model = self.check.models.entry((side, index)).or_default();
        if model.open.is_some() {
            return;
        }
        let found = version(&record.data);
        let since = &model.history[low.saturating_sub(1).min(model.history.len())..];
        let fits = since.contains(&found) || (found.is_none() && low == 0);
        if !fits {
            let text = format!(
                "db {side} key {index}: a client was told {found:?}, since its call it was {since:?}"
            );
            self.broken("linearizable reads", text);
        }
    }

    /// A node serves in a new generation. The first one shows what the recovery made of the records.
    pub fn generation_changed(&mut self, node: usize, side: usize, generation: Generation) {
        if generation <= self.check.newest[side] {
            return;
        }
        self.check.newest[side] = generation;
        let members = self.nodes[node].sides[side].database.members();
        self.trace(|| format!("db {side}: generation {generation:?} of {members:?} is served"));
        let tenants = members
            .iter()
            .map(Pnn::index)
            .filter(|member| {
                let database = &self.nodes[*member].sides[side].database;
                self.nodes[*member].up && database.state() != State::New
            })
            .map(|member| self.tenant(member))
            .collect();
        self.check.tenants.insert((side, generation), tenants);
        if self.kinds[side] != Kind::Volatile {
            return;
        }
        for index in 0..KEYS {
            self.survived(side, index, members);
        }
    }

    fn survived(&mut self, side: usize, index: usize, members: NodeSet) {
        let Some(mut model) = self.check.models.remove(&(side, index)) else {
            return;
        };
        let name = key(index);
        let best = (0..self.nodes.len())
            .filter(|node| members.contains(pnn(*node)) && self.nodes[*node].up)
            .filter_map(|node| self.copy(node, side, &name))
            .filter_map(|copy| model.position(version(&copy.data)?))
            .max();
        let newest = model.history.len().checked_sub(1);
        let lost = model.owner.is_none_or(|owner| {
            let stays = members.contains(pnn(owner.0)) || self.membership.donors.contains(&owner.0);
            !stays || self.tenant(owner.0) != owner
        });
        if model.open.is_some() {
            model.open = Some(Survivor(best));
        } else if lost {
            if model.current().is_none() || best != newest {
                model.open = Some(Survivor(best));
                self.stats.lost_with_node += 1;
            }
        } else if model.current().is_some() && best != newest {
            let text = format!(
                "db {side} key {index}: {:?} is lost, though its owner {:?} stays",
                model.current(),
                model.owner
            );
            self.broken("DATA-1", text);
        }
        self.check.models.insert((side, index), model);
    }

    // ---- Transactions

    /// The lists of a copy that is served: alike, with all that was acknowledged and nothing that was
    /// denied.
    pub fn check_list(&mut self, node: usize, side: usize) {
        if self.nodes[node].sides[side].database.generation() != self.check.newest[side] {
            return;
        }
        let lists = LISTS.map(|name| list(self.copy(node, side, name)));
        let there: BTreeSet<u32> = lists[0].iter().copied().collect();
        if lists[0] != lists[1] || there.len() != lists[0].len() {
            self.broken(
                "G.37",
                format!("db {side} node {node}: half a transaction: {lists:?}"),
            );
        }
        let lost = self.check.acknowledged[side].difference(&there).next();
        if let Some(tx) = lost.copied() {
            if self.kinds[side] == Kind::Persistent {
                let text =
                    format!("db {side} node {node}: {tx} was acknowledged, and is not there");
                self.broken("DATA-2", text);
            } else {
                // A replicated database lives as long as one of its nodes: all that had the newest copy
                // are gone, an older one is all that is left, with what was decided about since.
                self.check.denied[side].retain(|tx| !there.contains(tx));
                self.check.acknowledged[side].clone_from(&there);
            }
        }
        if let Some(tx) = self.check.denied[side].intersection(&there).next() {
            let text =
                format!("db {side} node {node}: {tx} was answered as not done, and is there");
            self.broken("DATA-2", text);
        }
    }

    /// A transaction is acknowledged: it must be on the disk of every node of its generation.
    pub fn check_acknowledged(&mut self, node: usize, side: usize, tx: u32) {
        let database = &self.nodes[node].sides[side].database;
        let (members, generation) = (database.members(), database.generation());
        self.stats.commits += 1;
        for other in members.iter().map(Pnn::index) {
            // Who has begun anew since has nothing before its next recovery; the answer may be late.
            let stays = self
                .check
                .tenants
                .get(&(side, generation))
                .is_some_and(|tenants| tenants.contains(&self.tenant(other)));
            let lives = self.nodes[other].up
                && self.membership.members.get(&other) == Some(&self.nodes[other].life);
            if self.kinds[side] != Kind::Persistent && !(lives && stays) {
                continue;
            }
            if !list(self.copy(other, side, LISTS[0])).contains(&tx) {
                let text =
                    format!("db {side}: {tx} was acknowledged, node {other} does not have it");
                self.broken("DATA-2", text);
                return;
            }
        }
        self.check.acknowledged[side].insert(tx);
    }

    /// When faults have been over for long.
    pub fn final_check(&mut self) {
        self.check_walks();
        // All nodes, but for one that is left out to the end.
        let inside: Vec<usize> = self.membership.members.keys().copied().collect();
        if inside.len() + usize::from(self.options.apart) < self.nodes.len() {
            self.broken("recovery", format!("the members are {inside:?} at last"));
        }
        for node in inside.iter().copied() {
            let all = || inside.iter().copied().map(pnn);
            if let Some(other) = all().find(|other| !self.nodes[node].rights.may_live(*other)) {
                self.broken(
                    "false dead",
                    format!("node {node} takes node {other} for gone"),
                );
            }
        }
        let late = self.now.saturating_sub(1500 * MS);
        for (index, client) in self.clients.clone().into_iter().enumerate() {
            let counts = inside.contains(&client.node) && client.state != Place::Dead;
            if counts && client.done < late {
                let text = format!("client {index} hangs: {client:?}");
                self.broken("G.20", text);
            }
        }
        for (index, writer) in self.writers.clone().into_iter().enumerate() {
            if !inside.contains(&writer.node) {
                continue;
            }
            let place = &self.nodes[writer.node].sides[writer.side];
            let served = place.database.state() == State::Serving;
            let writable = place.database.writable();
            if writable && writer.done < late {
                self.broken("G.20", format!("writer {index} hangs: {writer:?}"));
            }
            // Writers without the common lock keep a database in recoveries.
            let refused = !writable && self.authority == Authority::Majority;
            if (!served || refused) && writer.done < late {
                let text = format!(
                    "db {} is not served on node {}: {:?}",
                    writer.side, writer.node, writer
                );
                self.broken("recovery", text);
            }
        }
        for side in 0..self.kinds.len() {
            if self.kinds[side] == Kind::Volatile {
                continue;
            }
            for node in inside.iter().copied() {
                // All nodes are back: whatever was acknowledged is there again.
                self.check_list(node, side);
            }
        }
    }
}
