//! The connection table of one node: its own connections, copies of its peers', and what nodes
//! left behind that were lost. A pure state machine.
//!
//! Each node speaks for its own connections. What changed is named in a log that all links read,
//! each at its own pace; a frame says how the named connections are when it is made. A link that
//! falls too far behind, and each new one, compares digests instead and asks for what differs. So
//! nothing is repeated on time-outs, nothing grows with a slow peer, and whatever went wrong is
//! found by the next comparison.
//!
//! The host of an address that lets it go keeps what was connected as it was at that moment
//! (*frozen*), until somebody takes the address: the new host tickles all clients that any node
//! had on it, and says to all that it holds it, upon which the rest forgets them.

mod entries;
mod receive;
mod send;
mod tickling;

#[cfg(test)]
mod scale;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ctdb_wire::connections::{ConnectionFrame, Key, Meta, Sources, Tenure};
use ctdb_wire::ids::{BootTime, Incarnation, MAX_NODES, NodeSet, Pnn};

pub use entries::Entries;
use send::{Log, Stream};
use tickling::Tickling;

/// Changes wait at most this long for others to travel with (ADDR-3: 100 ms to all nodes).
pub const COALESCE: Duration = Duration::from_millis(10);
/// Digests are compared this often.
pub const COMPARE: Duration = Duration::from_secs(5);

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub me: Pnn,
    /// Most connections of this node, of each peer, and of all lost nodes together. What is
    /// beyond it is counted and not known.
    pub max_connections: usize,
    /// Tickles for each connection.
    pub tickle_rounds: u8,
    /// Between the first two tickles; doubled for each further one. More than 500 ms, since
    /// Linux answers no oftener (`spec/kernel.md` 5).
    pub tickle_pause: Duration,
}

/// The two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ends {
    /// The client's.
    pub client: SocketAddr,
    /// The server's: a public address.
    pub server: SocketAddr,
}

impl Ends {
    fn split(self) -> (IpAddr, Key) {
        let key = Key {
            client: self.client.ip().to_canonical(),
            client_port: self.client.port(),
            server_port: self.server.port(),
        };
        (self.server.ip().to_canonical(), key)
    }
}

/// What happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The public addresses of all nodes that are known.
    Public(BTreeSet<IpAddr>),
    /// A link came up.
    LinkUp(Pnn, Incarnation),
    /// It ended.
    LinkDown(Pnn),
    /// Frames of this peer were lost on this node.
    Lost(Pnn),
    /// A frame of the peer, its bounds checked.
    Frame(Pnn, ConnectionFrame),
    /// A connection is there, or known from another source too.
    Opened(Ends, Meta),
    /// A source does not know it any more.
    Closed(Ends, Sources),
    /// The kernel's connections were read anew: exactly these to this address have ends here.
    Read(IpAddr, Vec<(Key, u32)>),
    /// This node serves these addresses now.
    Taken(Vec<IpAddr>, Tenure),
    /// This node is silent on these addresses.
    Frozen(Vec<IpAddr>),
    /// Time passes.
    Tick,
}

/// What shall be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Send one tickle to each client.
    Tickle {
        /// Which of the rounds of these connections it is, from 0.
        round: u8,
        /// The connections.
        connections: Vec<Ends>,
    },
    /// Destroy this node's sockets on these addresses, which another node serves.
    Kill(Vec<IpAddr>),
}

/// Counts since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Connections that began here.
    pub opened: u64,
    /// Those that ended here.
    pub closed: u64,
    /// Changes sent, once for each peer.
    pub changes_out: u64,
    /// Changes received.
    pub changes_in: u64,
    /// Pieces of tables sent.
    pub parts_out: u64,
    /// Pieces of tables received.
    pub parts_in: u64,
    /// Addresses on which a comparison found a difference.
    pub diverged: u64,
    /// Links that fell behind the log.
    pub fell_behind: u64,
    /// Connections of peers that were refused: to no public address, or of two families.
    pub refused: u64,
    /// Connections beyond the bound, own and of peers.
    pub overflowed: u64,
    /// Tickles asked for.
    pub tickles: u64,
    /// Connections of moved addresses whose clients were to be told.
    pub tickled: u64,
}

/// The connections to one address with their end here.
#[derive(Clone, Debug, Default)]
struct Own {
    entries: Entries,
    /// Since the address was let go: those whose sockets ended after that.
    frozen: Option<BTreeSet<Key>>,
}

/// What a peer said.
#[derive(Clone, Debug, Default)]
struct Replica {
    incarnation: Incarnation,
    addresses: BTreeMap<IpAddr, Entries>,
    count: usize,
    /// More than the bound came; no repair helps.
    full: bool,
}

/// The table.
#[derive(Clone, Debug)]
pub struct Table {
    config: Config,
    public: BTreeSet<IpAddr>,
    own: BTreeMap<IpAddr, Own>,
    own_count: usize,
    replicas: Vec<Replica>,
    orphans: BTreeMap<IpAddr, BTreeSet<Key>>,
    orphan_count: usize,
    /// The newest host of each address that was heard of.
    hosts: BTreeMap<IpAddr, (Tenure, Pnn)>,
    log: Log,
    streams: BTreeMap<Pnn, Stream>,
    tickling: Tickling,
    counters: Counters,
}

/// One connection for display.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The node whose end it is; `None` for what lost nodes left behind.
    pub node: Option<Pnn>,
    /// The public address.
    pub address: IpAddr,
    /// The connection.
    pub key: Key,
    /// What is known.
    pub meta: Meta,
    /// The node does not serve the address any more, and nobody has taken it yet.
    pub waiting: bool,
}

impl Table {
    /// An empty table.
    pub fn new(config: Config) -> Self {
        Self {
            tickling: Tickling::new(config.tickle_rounds, config.tickle_pause),
            config,
            public: BTreeSet::new(),
            own: BTreeMap::new(),
            own_count: 0,
            replicas: vec![Replica::default(); MAX_NODES],
            orphans: BTreeMap::new(),
            orphan_count: 0,
            hosts: BTreeMap::new(),
            log: Log::default(),
            streams: BTreeMap::new(),
            counters: Counters::default(),
        }
    }

    /// One step.
    pub fn handle(&mut self, now: BootTime, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Public(addresses) => self.set_public(addresses),
            Input::LinkUp(pnn, incarnation) => self.link_up(now, pnn, incarnation),
            Input::LinkDown(pnn) => {
                self.streams.remove(&pnn);
            }
            Input::Lost(pnn) => {
                if let Some(stream) = self.streams.get_mut(&pnn) {
                    stream.ask_compare = true;
                }
            }
            Input::Frame(pnn, frame) => self.receive(now, pnn, frame, &mut out),
            Input::Opened(ends, meta) => self.opened(ends, meta),
            Input::Closed(ends, source) => self.closed(ends, source),
            Input::Read(address, found) => self.read(address, &found, &mut out),
            Input::Taken(addresses, tenure) => self.taken(now, addresses, tenure),
            Input::Frozen(addresses) => {
                for address in addresses {
                    self.freeze(address.to_canonical());
                }
                self.log.flush();
            }
            Input::Tick => {}
        }
        self.tickle_due(now, &mut out);
        out
    }

    fn set_public(&mut self, addresses: BTreeSet<IpAddr>) {
        let gone: Vec<IpAddr> = self.own.keys().copied().collect();
        self.public = addresses;
        for address in gone {
            if !self.public.contains(&address) {
                self.drop_own(address);
            }
        }
        let public = &self.public;
        for replica in &mut self.replicas {
            for (_, entries) in replica
                .addresses
                .extract_if(.., |address, _| !public.contains(address))
            {
                replica.count -= entries.len();
            }
        }
        let dropped = self
            .orphans
            .extract_if(.., |address, _| !public.contains(address));
        self.orphan_count -= dropped.map(|(_, keys)| keys.len()).sum::<usize>();
        self.hosts.retain(|address, _| public.contains(address));
        self.tickling.retain(|address| public.contains(&address));
    }

    fn opened(&mut self, ends: Ends, meta: Meta) {
        let (address, key) = ends.split();
        if !self.public.contains(&address) || key.client.is_ipv4() != address.is_ipv4() {
            return;
        }
        let own = self.own.entry(address).or_default();
        let known = own.entries.get(&key);
        if known.is_none() && self.own_count >= self.config.max_connections {
            self.counters.overflowed += 1;
            return;
        }
        if let Some(ended) = &mut own.frozen {
            ended.remove(&key);
        }
        let meta = known.map_or(meta, |known| Meta {
            // A second sight of the same one; the first time counts.
            since: known.since,
            sources: known.sources.union(meta.sources),
        });
        if known == Some(meta) {
            return;
        }
        own.entries.insert(key, meta);
        if known.is_none() {
            self.own_count += 1;
            self.counters.opened += 1;
            self.remove_orphan(address, &key);
        }
        self.log.push(address, key);
    }

    fn closed(&mut self, ends: Ends, source: Sources) {
        let (address, key) = ends.split();
        let Some(own) = self.own.get_mut(&address) else {
            return;
        };
        let Some(known) = own.entries.get(&key) else {
            return;
        };
        // A Samba process that ends has no connection either; what an operator registered stays.
        let ends = if source.has(Sources::KERNEL) {
            Sources::KERNEL.union(Sources::SAMBA)
        } else {
            source
        };
        if let Some(ended) = &mut own.frozen
            && !source.has(Sources::MANUAL)
        {
            // Its client has not been told: the next host needs to know it. That a process has
            // gone says little while the kernel shows the socket.
            if source.has(Sources::KERNEL) || !known.sources.has(Sources::KERNEL) {
                ended.insert(key);
            }
            return;
        }
        let sources = known.sources.without(ends);
        if sources.is_empty() {
            own.entries.remove(&key);
            if let Some(ended) = &mut own.frozen {
                ended.remove(&key);
            }
            self.own_count -= 1;
            self.counters.closed += 1;
        } else if sources == known.sources {
            return;
        } else {
            own.entries.insert(key, Meta { sources, ..known });
        }
        self.log.push(address, key);
    }

    fn read(&mut self, address: IpAddr, found: &[(Key, u32)], out: &mut Vec<Effect>) {
        let address = address.to_canonical();
        let host = self.hosts.get(&address).map(|(_, host)| *host);
        if !found.is_empty() && host.is_some_and(|host| host != self.config.me) {
            // From before this daemon: its clients have been told by the address's host.
            out.push(Effect::Kill(vec![address]));
        }
        let there: BTreeSet<Key> = found.iter().map(|(key, _)| *key).collect();
        let gone: Vec<Key> = self.own.get(&address).map_or_else(Vec::new, |own| {
            own.entries
                .iter()
                .filter(|(key, meta)| meta.sources.has(Sources::KERNEL) && !there.contains(key))
                .map(|(key, _)| *key)
                .collect()
        });
        for key in gone {
            self.closed(ends(address, &key), Sources::KERNEL);
        }
        for (key, since) in found {
            let meta = Meta {
                since: *since,
                sources: Sources::KERNEL,
            };
            self.opened(ends(address, key), meta);
        }
    }

    /// Whoever has not been told to the end yet is the next host's too.
    fn freeze(&mut self, address: IpAddr) {
        let own = self.own.entry(address).or_default();
        let ended = own.frozen.get_or_insert_default();
        for key in self.tickling.take(address) {
            if own.entries.get(&key).is_some() {
                continue;
            }
            if self.own_count >= self.config.max_connections {
                self.counters.overflowed += 1;
                continue;
            }
            let meta = Meta {
                since: 0,
                sources: Sources::KERNEL,
            };
            own.entries.insert(key, meta);
            self.own_count += 1;
            ended.insert(key);
            self.log.push(address, key);
        }
    }

    fn taken(&mut self, now: BootTime, addresses: Vec<IpAddr>, tenure: Tenure) {
        let mut held = Vec::new();
        for address in addresses {
            let address = address.to_canonical();
            self.hosts.insert(address, (tenure, self.config.me));
            held.push((address, tenure));
            let mut tell: BTreeSet<Key> = BTreeSet::new();
            for replica in &mut self.replicas {
                if let Some(entries) = replica.addresses.remove(&address) {
                    replica.count -= entries.len();
                    tell.extend(entries.iter().map(|(key, _)| *key));
                }
            }
            if let Some(keys) = self.orphans.remove(&address) {
                self.orphan_count -= keys.len();
                tell.extend(keys);
            }
            if let Some(own) = self.own.get_mut(&address) {
                // Sockets that were not destroyed meanwhile go on as if nothing had been; the
                // clients of the others are told.
                for key in own.frozen.take().unwrap_or_default() {
                    if own.entries.remove(&key).is_some() {
                        self.own_count -= 1;
                        self.counters.closed += 1;
                        self.log.push(address, key);
                        tell.insert(key);
                    }
                }
                tell.retain(|key| own.entries.get(key).is_none());
            }
            self.counters.tickled += tell.len() as u64;
            self.tickling.add(now, address, tell);
        }
        for stream in self.streams.values_mut() {
            stream.held.extend(held.iter().copied());
        }
        self.log.flush();
    }

    fn tickle_due(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let own = &self.own;
        let alive = |address: &IpAddr, key: &Key| {
            own.get(address)
                .is_some_and(|own| own.entries.get(key).is_some())
        };
        for (round, connections) in self.tickling.due(now, alive) {
            self.counters.tickles += connections.len() as u64;
            out.push(Effect::Tickle { round, connections });
        }
    }

    /// Another node serves the address: nothing of what this one had is left. Peers that heard
    /// of it have forgotten it by themselves; the next digests tell the others. False if it had
    /// none.
    fn drop_own(&mut self, address: IpAddr) -> bool {
        if let Some(own) = self.own.remove(&address) {
            self.own_count -= own.entries.len();
            self.counters.closed += own.entries.len() as u64;
            for stream in self.streams.values_mut() {
                stream.said_empty = false;
            }
            return true;
        }
        false
    }

    fn remove_orphan(&mut self, address: IpAddr, key: &Key) {
        if let Some(keys) = self.orphans.get_mut(&address)
            && keys.remove(key)
        {
            self.orphan_count -= 1;
            if keys.is_empty() {
                self.orphans.remove(&address);
            }
        }
    }

    /// When [`Input::Tick`] or [`Table::next_frame`] is worth a call, if nothing happens before.
    pub fn next_due(&self) -> Option<BootTime> {
        let streams = self
            .streams
            .values()
            .map(|stream| stream.due(&self.log, self.own_count));
        streams.chain([self.tickling.next_due()]).flatten().min()
    }

    /// Whether this node serves the address, as far as it was told.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.hosts
            .get(&address)
            .is_some_and(|(_, host)| *host == self.config.me)
            && self
                .own
                .get(&address)
                .is_none_or(|own| own.frozen.is_none())
    }

    /// All connections, own ones first, then those of each peer, then what lost nodes left.
    pub fn connections(&self) -> impl Iterator<Item = Shown> {
        let own = self.own.iter().flat_map(|(address, own)| {
            own.entries.iter().map(|(key, meta)| Shown {
                node: Some(self.config.me),
                address: *address,
                key: *key,
                meta,
                waiting: own.frozen.is_some(),
            })
        });
        let peers = self.replicas.iter().zip(0u32..);
        let peers = peers.filter_map(|(replica, number)| Some((replica, Pnn::new(number).ok()?)));
        let replicas = peers.flat_map(|(replica, pnn)| {
            replica
                .addresses
                .iter()
                .flat_map(move |(address, entries)| {
                    entries.iter().map(move |(key, meta)| Shown {
                        node: Some(pnn),
                        address: *address,
                        key: *key,
                        meta,
                        waiting: false,
                    })
                })
        });
        let orphans = self.orphans.iter().flat_map(|(address, keys)| {
            keys.iter().map(|key| Shown {
                node: None,
                address: *address,
                key: *key,
                meta: Meta::default(),
                waiting: true,
            })
        });
        own.chain(replicas).chain(orphans)
    }

    /// All connections to one address, each once, whoever has them.
    pub fn connections_to(&self, address: IpAddr) -> BTreeSet<Ends> {
        let own = self.own.get(&address).map(|own| &own.entries);
        let replicas = self.replicas.iter();
        let replicas = replicas.filter_map(|replica| replica.addresses.get(&address));
        let known = own.into_iter().chain(replicas).flat_map(Entries::iter);
        let orphans = self.orphans.get(&address).into_iter().flatten();
        let keys = known.map(|(key, _)| key).chain(orphans);
        keys.map(|key| ends(address, key)).collect()
    }

    /// This node's connections to one address.
    pub fn own_to(&self, address: IpAddr) -> impl Iterator<Item = (Ends, Meta)> {
        let entries = self.own.get(&address).map(|own| own.entries.iter());
        let entries = entries.into_iter().flatten();
        entries.map(move |(key, meta)| (ends(address, key), meta))
    }

    /// What is known of an own connection.
    pub fn own(&self, ends: Ends) -> Option<Meta> {
        let (address, key) = ends.split();
        self.own.get(&address)?.entries.get(&key)
    }

    /// The number of own connections of each address that has some.
    pub fn own_counts(&self) -> impl Iterator<Item = (IpAddr, usize)> {
        self.own
            .iter()
            .map(|(address, own)| (*address, own.entries.len()))
            .filter(|(_, count)| *count > 0)
    }

    /// Own connections; of all peers; left behind by lost nodes; still being told.
    pub fn counts(&self) -> [usize; 4] {
        let replicated = self.replicas.iter().map(|replica| replica.count).sum();
        [
            self.own_count,
            replicated,
            self.orphan_count,
            self.tickling.len(),
        ]
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether an address is a public one of the cluster.
    pub fn is_public(&self, address: IpAddr) -> bool {
        self.public.contains(&address)
    }

    /// Peers that have not been sent all changes yet.
    pub fn behind(&self) -> NodeSet {
        let behind = self.streams.iter();
        behind
            .filter(|(_, stream)| stream.is_behind(&self.log))
            .map(|(pnn, _)| *pnn)
            .collect()
    }
}

fn ends(address: IpAddr, key: &Key) -> Ends {
    Ends {
        client: key.client(),
        server: key.server(address),
    }
}
