//! Clients: processes that lock and change records of volatile databases as smbd does (D.6), and
//! writers that change persistent and replicated ones by transactions (F.1).

use ctdb_db::cluster::message::Record;
use ctdb_db::cluster::{
    CallFlags, CallKind, ClientId, Input, Kind, SEQNUM_KEY, State, sequence_of,
};
use ctdb_db::record::{LtdbHeader, RecordFlags, Rsn};
use rand::Rng as _;

use super::world::{Event, MS, US, World, pnn};

/// Keys of a volatile database.
pub const KEYS: usize = 4;

/// The name of a key.
pub fn key(index: usize) -> Vec<u8> {
    format!("key{index}").into_bytes()
}

/// The two records that each transaction changes alike.
pub const LISTS: [&[u8]; 2] = [b"list a", b"list b"];

/// What a client wants of the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    Update,
    Delete,
    Read,
}

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Idle,
    /// Tries to lock the chain.
    Lock,
    /// Holds it, and changes the record when it gives it back.
    Hold,
    /// Waits for the daemon's answer.
    Call,
    Dead,
}

/// A client of a volatile database.
#[derive(Clone, Debug)]
pub struct Client {
    pub node: usize,
    pub side: usize,
    pub id: ClientId,
    pub state: Place,
    pub wish: Wish,
    pub key: usize,
    pub number: u64,
    /// Length of the key's history when the call began.
    pub low: usize,
    /// When it last did what it wanted.
    pub done: u64,
    /// When the call was made.
    pub asked: u64,
    /// Sends the record to all nodes when it has changed it.
    pub push: bool,
    /// Holds locks for long.
    pub slow: bool,
}

/// A client of a persistent or replicated database.
#[derive(Clone, Debug)]
pub struct Writer {
    pub node: usize,
    pub side: usize,
    pub id: ClientId,
    pub number: u64,
    /// The transaction that waits for its answer.
    pub tx: Option<u32>,
    /// Does not care for the lock that keeps transactions apart.
    pub rude: bool,
    pub done: u64,
}

const WRITER: u64 = 1 << 40;

impl World {
    pub fn make_clients(&mut self) {
        let rude = self.rng.random_bool(0.2) && !self.options.calm;
        for node in 0..self.nodes.len() {
            for side in 0..self.kinds.len() {
                let count = if self.kinds[side] == Kind::Volatile {
                    2
                } else {
                    1
                };
                for _ in 0..count {
                    if self.kinds[side] == Kind::Volatile {
                        let index = self.clients.len();
                        let slow = self.rng.random_bool(0.1) && !self.options.calm;
                        self.clients.push(Client {
                            node,
                            side,
                            id: ClientId((index as u64) << 20),
                            state: Place::Idle,
                            wish: Wish::Update,
                            key: 0,
                            number: 0,
                            low: 0,
                            done: 0,
                            asked: 0,
                            push: false,
                            slow,
                        });
                        self.client_in(index, 1000 * US);
                    } else {
                        let index = self.writers.len();
                        self.writers.push(Writer {
                            node,
                            side,
                            id: ClientId(WRITER | (index as u64) << 20),
                            number: 0,
                            tx: None,
                            rude,
                            done: 0,
                        });
                        self.writer_in(index, 1000 * US);
                    }
                }
            }
        }
    }

    fn client_in(&mut self, client: usize, delay: u64) {
        self.clients[client].number += 1;
        let number = self.clients[client].number;
        self.after(delay, Event::Client { client, number });
    }

    fn writer_in(&mut self, client: usize, delay: u64) {
        self.writers[client].number += 1;
        let number = self.writers[client].number;
        self.after(delay, Event::Writer { client, number });
    }

    /// A client goes on.
    pub fn client(&mut self, index: usize, number: u64) {
        let client = self.clients[index].clone();
        if client.number != number {
            return;
        }
        match client.state {
            Place::Idle => {
                let wish = match self.rng.random_range(0..10) {
                    0..=5 => Wish::Update,
                    6 => Wish::Delete,
                    _ => Wish::Read,
                };
                // One key is in demand.
                let key = if self.rng.random_bool(0.5) {
                    0
                } else {
                    self.rng.random_range(0..KEYS)
                };
                let (wish, key) = if self.options.calm {
                    (Wish::Update, 0)
                } else {
                    (wish, key)
                };
                let push = wish == Wish::Update && self.pushes(client.side);
                let client = &mut self.clients[index];
                client.wish = wish;
                client.key = key;
                client.push = push;
                client.state = Place::Lock;
                self.try_to_lock(index);
            }
            Place::Lock => self.try_to_lock(index),
            Place::Hold => self.change(index),
            Place::Call | Place::Dead => {}
        }
    }

    fn try_to_lock(&mut self, index: usize) {
        let client = self.clients[index].clone();
        let (node, side) = (client.node, client.side);
        let name = key(client.key);
        let place = &mut self.nodes[node].sides[side];
        if place.freezing || place.holders.contains_key(&name) {
            let delay = self.rng.random_range(30..300) * US;
            self.client_in(index, delay);
            return;
        }
        let record = self.copy(node, side, &name);
        let me = pnn(node).get();
        let flags = record.as_ref().map(|record| record.flags);
        let owned = record.as_ref().is_some_and(|record| record.dmaster == me);
        let delegated = RecordFlags::RO_HAVE_DELEGATIONS | RecordFlags::RO_REVOKING_READONLY;
        let readable = owned || flags.is_some_and(|f| f.contains(RecordFlags::RO_HAVE_READONLY));
        let writable = owned && !flags.is_some_and(|f| f.intersects(delegated));
        match (client.wish, record) {
            (Wish::Read, Some(record)) if readable => {
                self.check_read(node, side, client.key, &record, owned);
                self.wish_done(index);
            }
            (Wish::Update | Wish::Delete, Some(record)) if writable => {
                let place = &mut self.nodes[node].sides[side];
                place.holders.insert(name.clone(), index);
                place.store.locked.insert(name);
                self.check_owner(node, side, client.key, &record);
                self.clients[index].state = Place::Hold;
                let delay = if client.slow && self.rng.random_bool(0.1) {
                    self.rng.random_range(1000..60_000) * US
                } else {
                    self.rng.random_range(2..80) * US
                };
                self.client_in(index, delay);
            }
            (wish, _) => {
                let low = self.check.history_len(side, client.key);
                let client = &mut self.clients[index];
                client.state = Place::Call;
                client.number += 1;
                client.low = low;
                client.asked = self.now;
                let number = client.number;
                let life = self.nodes[node].life;
                let delay = self.rng.random_range(2..20) * US;
                self.after(
                    delay,
                    Event::Call {
                        node,
                        life,
                        client: index,
                        number,
                        read: wish == Wish::Read,
                    },
                );
            }
        }
    }

    /// The daemon reads a client's call.
    pub fn call(&mut self, node: usize, index: usize, number: u64, read: bool) {
        let client = self.clients[index].clone();
        if client.number != number || client.state != Place::Call {
            return;
        }
        let (call, flags) = if read {
            (CallKind::FetchWithHeader, CallFlags::WANT_READONLY)
        } else {
            (CallKind::Null, CallFlags::IMMEDIATE_MIGRATION)
        };
        let name = key(client.key);
        self.input(
            node,
            client.side,
            Input::Call {
                client: client.id,
                reqid: number as u32,
                key: &name,
                call,
                flags,
            },
        );
    }

    /// The daemon's answer.
    pub fn reply(&mut self, id: ClientId, reqid: u32, status: i32, data: &[u8]) {
        let index = (id.0 >> 20) as usize;
        let client = self.clients[index].clone();
        if client.id != id || client.state != Place::Call || client.number as u32 != reqid {
            return;
        }
        if status != 0 {
            let text = format!("client {index} was answered with {status}");
            self.broken("G.20", text);
            return;
        }
        if self.options.calm && client.side == 0 && client.asked > 500 * MS {
            let waited = (self.now - client.asked) / US;
            self.stats.worst_call_us = self.stats.worst_call_us.max(waited);
            self.stats.answered[client.node] += 1;
        }
        let delay = self.rng.random_range(2..60) * US;
        if client.wish == Wish::Read {
            match LtdbHeader::split(data) {
                Some((header, data)) => {
                    let record = Record::new(&key(client.key), &header, data);
                    self.check_fetch(client.side, client.key, client.low, &record);
                }
                None => self.broken(
                    "G.20",
                    format!("client {index} was answered without a header"),
                ),
            }
            self.wish_done(index);
        } else {
            self.clients[index].state = Place::Lock;
            self.client_in(index, delay);
        }
    }

    /// Changes the record that it has locked, and gives the lock back.
    fn change(&mut self, index: usize) {
        let client = self.clients[index].clone();
        let (node, side) = (client.node, client.side);
        let name = key(client.key);
        let Some(mut record) = self.copy(node, side, &name) else {
            self.broken(
                "G.11",
                format!("{name:?} was removed under a client's lock"),
            );
            return;
        };
        self.check_owner(node, side, client.key, &record);
        let version = self.check.next_version();
        record.data = if client.wish == Wish::Delete {
            Vec::new()
        } else {
            version.to_le_bytes().to_vec()
        };
        if client.push {
            record.rsn.0 += 1;
        }
        self.check_write(node, side, client.key, &record);
        self.stats.updates += 1;
        self.nodes[node].sides[side].store.put(&record);
        self.changed(node, side);
        if client.push && !self.nodes[node].frozen {
            self.push(node, side, client.key, &record);
        }
        self.unlock(node, side, &name);
        if client.wish == Wish::Delete {
            let life = self.nodes[node].life;
            let header = record.header();
            self.after(
                5 * US,
                Event::Deleted {
                    node,
                    life,
                    side,
                    key: client.key,
                    header,
                },
            );
        }
        self.wish_done(index);
    }

    fn wish_done(&mut self, index: usize) {
        let now = self.now;
        let client = &mut self.clients[index];
        client.state = Place::Idle;
        client.done = now;
        let delay = if self.options.calm {
            self.rng.random_range(5..50)
        } else if self.rng.random_bool(0.2) {
            self.rng.random_range(1000..20_000)
        } else {
            self.rng.random_range(10..2000)
        };
        self.client_in(index, delay * US);
    }

    fn unlock(&mut self, node: usize, side: usize, name: &[u8]) {
        let place = &mut self.nodes[node].sides[side];
        place.holders.remove(name);
        place.store.locked.remove(name);
        self.wake_waits(node, side, Some(name));
        self.maybe_frozen(node, side);
    }

    /// A client's process ends, wherever it is; another takes its place after a while.
    pub fn end_client(&mut self, index: usize, back: u64) {
        let client = self.clients[index].clone();
        if client.state == Place::Hold {
            self.unlock(client.node, client.side, &key(client.key));
        }
        self.tell_gone(index);
        let client = &mut self.clients[index];
        client.id.0 += 1;
        client.state = Place::Idle;
        self.client_in(index, back);
    }

    pub fn kill_a_client(&mut self) {
        let index = self.rng.random_range(0..self.clients.len());
        if self.clients[index].state != Place::Dead {
            self.trace(|| format!("client {index} is killed"));
            self.end_client(index, 5000 * US);
        }
    }

    /// The clients of a database end, because the daemon died or closed them.
    pub fn close_clients(&mut self, node: usize, side: usize) {
        let up = self.nodes[node].up;
        self.check.evictions[node] += 1;
        self.end_walks(node, side);
        for index in 0..self.clients.len() {
            if self.clients[index].node == node && self.clients[index].side == side {
                self.end_client(index, 10_000 * US);
                if !up {
                    self.clients[index].state = Place::Dead;
                }
            }
        }
        for index in 0..self.writers.len() {
            let writer = self.writers[index].clone();
            if writer.node == node && writer.side == side {
                if self.check.tx_lock[side] == Some(index) {
                    self.check.tx_lock[side] = None;
                }
                let writer = &mut self.writers[index];
                writer.tx = None;
                writer.id.0 += 1;
                self.writer_in(index, 10_000 * US);
            }
        }
    }

    /// A daemon has started: its clients come back.
    pub fn revive_clients(&mut self, node: usize) {
        for index in 0..self.clients.len() {
            if self.clients[index].node == node {
                self.clients[index].state = Place::Idle;
                self.clients[index].id.0 += 1;
                self.client_in(index, 5000 * US);
            }
        }
        for index in 0..self.writers.len() {
            if self.writers[index].node == node {
                self.writer_in(index, 5000 * US);
            }
        }
    }

    // ---- Transactions

    /// A writer goes on: it begins the next transaction.
    pub fn writer(&mut self, index: usize, number: u64) {
        let writer = self.writers[index].clone();
        if writer.number != number || writer.tx.is_some() {
            return;
        }
        let (node, side) = (writer.node, writer.side);
        let place = &self.nodes[node].sides[side];
        let served = self.nodes[node].up
            && !self.nodes[node].frozen
            && place.database.state() == State::Serving
            && place.database.writable();
        let locked = !writer.rude && self.check.tx_lock[side].is_some();
        if !served || locked {
            let delay = self.rng.random_range(500..6000) * US;
            self.writer_in(index, delay);
            return;
        }
        if !writer.rude {
            self.check.tx_lock[side] = Some(index);
        }
        self.check_list(node, side);
        let tx = self.check.next_version() as u32;
        let mut changes: Vec<Record> = Vec::new();
        let mut change = |key: &[u8], update: &mut dyn FnMut(&mut Vec<u8>)| {
            let known = self.copy(node, side, key);
            let (rsn, mut data) = known.map_or((0, Vec::new()), |r| (r.rsn.0, r.data));
            update(&mut data);
            changes.push(Record {
                key: key.to_vec(),
                rsn: Rsn(rsn + 1),
                dmaster: pnn(node).get(),
                flags: RecordFlags::empty(),
                data,
            });
        };
        for list in LISTS {
            change(list, &mut |data| data.extend_from_slice(&tx.to_le_bytes()));
        }
        change(SEQNUM_KEY, &mut |data| {
            *data = (sequence_of(data) + 1).to_ne_bytes().to_vec();
        });
        let life = self.nodes[node].life;
        self.writers[index].tx = Some(tx);
        self.after(
            10 * US,
            Event::Commit {
                node,
                life,
                client: index,
                tx,
                changes,
            },
        );
    }

    /// The daemon reads a commit.
    pub fn commit(&mut self, node: usize, index: usize, tx: u32, changes: Vec<Record>) {
        let writer = self.writers[index].clone();
        if writer.tx != Some(tx) {
            return;
        }
        self.input(
            node,
            writer.side,
            Input::Commit {
                client: writer.id,
                reqid: tx,
                changes,
            },
        );
    }

    /// A commit is answered.
    pub fn committed(&mut self, id: ClientId, reqid: u32, status: i32) {
        let index = ((id.0 & !WRITER) >> 20) as usize;
        let writer = self.writers[index].clone();
        if writer.id != id || writer.tx != Some(reqid) {
            return;
        }
        let (node, side) = (writer.node, writer.side);
        self.trace(|| format!("node {node} db {side}: transaction {reqid} answered {status}"));
        match status {
            0 => self.check_acknowledged(node, side, reqid),
            1 => {
                self.check.denied[side].insert(reqid);
            }
            _ => {}
        }
        if self.check.tx_lock[side] == Some(index) {
            self.check.tx_lock[side] = None;
        }
        self.writers[index].tx = None;
        self.writers[index].done = self.now;
        let delay = self.rng.random_range(500..20_000) * US;
        self.writer_in(index, delay);
    }
}
