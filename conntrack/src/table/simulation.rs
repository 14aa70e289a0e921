//! Some tables, the links between them, and everything that can happen to those. However it was,
//! when it is over all copies are equal to what they are copies of.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ctdb_wire::connections::{ConnectionFrame, Key, Meta, Sources};
use ctdb_wire::ids::{BootTime, Incarnation, NodeSet};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::tests::{address, config, pnn, public, tenure};
use super::*;

const NODES: u32 = 4;

struct World {
    random: ChaCha8Rng,
    now: BootTime,
    tables: Vec<Table>,
    /// Which life of its daemon each node is in.
    lives: Vec<u64>,
    /// Frames on their way, by (from, to); there is an entry while the link is up.
    links: BTreeMap<(u32, u32), VecDeque<ConnectionFrame>>,
    /// What the kernel of each node has.
    sockets: Vec<BTreeSet<Ends>>,
    /// Who serves each address.
    hosts: BTreeMap<IpAddr, Option<u32>>,
    orders: u64,
    /// The first tickle to each client is lost.
    deaf: bool,
    /// Every client whose connection was ended behind its back, until it is tickled.
    untold: BTreeSet<Ends>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            now: BootTime::from_millis(1),
            tables: (0..NODES).map(|me| Table::new(config(me))).collect(),
            lives: vec![1; NODES as usize],
            links: BTreeMap::new(),
            sockets: vec![BTreeSet::new(); NODES as usize],
            hosts: public()
                .into_iter()
                .map(|address| (address, None))
                .collect(),
            orders: 0,
            deaf: false,
            untold: BTreeSet::new(),
        };
        for node in 0..NODES {
            world.input(node, Input::Public(public()));
        }
        world.join();
        world
    }

    fn input(&mut self, node: u32, input: Input) {
        for effect in self.tables[node as usize].handle(self.now, input) {
            match effect {
                Effect::Kill(addresses) => {
                    let gone: Vec<Ends> = self.sockets[node as usize]
                        .iter()
                        .filter(|ends| addresses.contains(&ends.server.ip()))
                        .copied()
                        .collect();
                    for ends in gone {
                        self.sockets[node as usize].remove(&ends);
                        self.input(node, Input::Closed(ends, Sources::KERNEL));
                    }
                }
                Effect::Tickle { round: 0, .. } if self.deaf => {}
                Effect::Tickle { connections, .. } => {
                    for ends in connections {
                        self.untold.remove(&ends);
                    }
                }
            }
        }
    }

    fn up(&self, a: u32, b: u32) -> bool {
        self.links.contains_key(&(a, b))
    }

    fn link_up(&mut self, a: u32, b: u32, lives: [u64; 2]) {
        self.links.insert((a, b), VecDeque::new());
        self.links.insert((b, a), VecDeque::new());
        self.input(a, Input::LinkUp(pnn(b), Incarnation(lives[1])));
        self.input(b, Input::LinkUp(pnn(a), Incarnation(lives[0])));
    }

    fn link_down(&mut self, a: u32, b: u32) {
        self.links.remove(&(a, b));
        self.links.remove(&(b, a));
        self.input(a, Input::LinkDown(pnn(b)));
        self.input(b, Input::LinkDown(pnn(a)));
    }

    fn join(&mut self) {
        for a in 0..NODES {
            for b in 0..a {
                if !self.up(a, b) {
                    let lives = [a, b].map(|node| self.lives[node as usize]);
                    self.link_up(a, b, lives);
                }
            }
        }
    }

    /// The daemon is started anew; `lost` if the host was, and its sockets with it.
    fn restart(&mut self, node: u32, lost: bool) {
        for other in 0..NODES {
            if other != node && self.up(node, other) {
                self.link_down(node, other);
            }
        }
        self.lives[node as usize] += 1;
        self.tables[node as usize] = Table::new(config(node));
        self.input(node, Input::Public(public()));
        if lost {
            let gone = std::mem::take(&mut self.sockets[node as usize]);
            self.untold.extend(gone);
        }
        for host in self.hosts.values_mut().filter(|host| **host == Some(node)) {
            *host = None;
        }
        for ends in self.sockets[node as usize].clone() {
            self.input(node, Input::Opened(ends, meta()));
        }
    }

    fn take(&mut self, node: u32, address: IpAddr) {
        self.orders += 1;
        self.hosts.insert(address, Some(node));
        self.input(node, Input::Taken(vec![address], tenure(self.orders)));
    }

    /// In order: silent, last words, sockets destroyed.
    fn release(&mut self, node: u32, address: IpAddr) {
        self.hosts.insert(address, None);
        self.input(node, Input::Frozen(vec![address]));
        // However long the queues are.
        self.pull_for(node, NodeSet(u64::MAX));
        let gone: Vec<Ends> = self.sockets[node as usize]
            .iter()
            .filter(|ends| ends.server.ip() == address)
            .copied()
            .collect();
        for ends in gone {
            self.sockets[node as usize].remove(&ends);
            self.untold.insert(ends);
            self.input(node, Input::Closed(ends, Sources::KERNEL));
        }
    }

    fn pull(&mut self, node: u32) {
        // Now and then a link's queue is long.
        let ready = if self.random.random_bool(0.8) {
            NodeSet(u64::MAX)
        } else {
            NodeSet(self.random.random())
        };
        self.pull_for(node, ready);
    }

    fn pull_for(&mut self, node: u32, ready: NodeSet) {
        while let Some((peers, frame)) = self.tables[node as usize].next_frame(self.now, ready) {
            for peer in peers.iter() {
                if let Some(link) = self.links.get_mut(&(node, peer.get())) {
                    link.push_back(frame.clone());
                }
            }
        }
    }

    fn deliver(&mut self, from: u32, to: u32, lose: bool) {
        if let Some(frame) = self
            .links
            .get_mut(&(from, to))
            .and_then(VecDeque::pop_front)
        {
            if lose {
                self.input(to, Input::Lost(pnn(from)));
            } else {
                self.input(to, Input::Frame(pnn(from), frame));
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        for node in 0..NODES {
            self.input(node, Input::Tick);
            self.pull(node);
        }
    }

    fn node(&mut self) -> u32 {
        self.random.random_range(0..NODES)
    }

    fn step(&mut self) {
        let (a, b) = (self.node(), self.node());
        let last = self.random.random_range(1..=4);
        match self.random.random_range(0..100) {
            0..30 => {
                let client = self.random.random_range(0..400u32);
                if let Some(host) = self.hosts[&address(last)] {
                    let ends = Ends {
                        client: (IpAddr::V4((0x0a02_0000 + client).into()), 1000).into(),
                        server: (address(last), 445).into(),
                    };
                    self.untold.remove(&ends);
                    self.sockets[host as usize].insert(ends);
                    self.input(host, Input::Opened(ends, meta()));
                }
            }
            30..45 => {
                let count = self.sockets[a as usize].len();
                if count > 0 {
                    let at = self.random.random_range(0..count);
                    let ends = *self.sockets[a as usize].iter().nth(at).unwrap();
                    self.sockets[a as usize].remove(&ends);
                    self.input(a, Input::Closed(ends, Sources::KERNEL));
                }
            }
            45..80 => {
                let lose = self.random.random_bool(0.02);
                self.deliver(a, b, lose);
            }
            80..90 => {
                let ms = self.random.random_range(1..50);
                self.pass(ms);
            }
            90..92 if a != b && self.up(a, b) => self.link_down(a, b),
            92..95 => self.join(),
            95..97 => match self.hosts[&address(last)] {
                Some(host) => self.release(host, address(last)),
                None => self.take(a, address(last)),
            },
            97 if self.random.random_bool(0.2) => {
                let lost = self.random.random_bool(0.5);
                self.restart(a, lost);
            }
            _ => {}
        }
    }

    /// Some time, and all frames.
    fn run(&mut self, ms: u64) {
        self.pass(ms);
        for from in 0..NODES {
            for to in 0..NODES {
                while self
                    .links
                    .get(&(from, to))
                    .is_some_and(|link| !link.is_empty())
                {
                    self.deliver(from, to, false);
                }
            }
        }
    }

    fn settle(&mut self) {
        self.join();
        for _ in 0..400 {
            self.run(100);
        }
    }

    fn known(&self, at: u32, node: u32) -> BTreeMap<(IpAddr, Key), Meta> {
        let table = &self.tables[at as usize];
        let of = |shown: &Shown| shown.node == Some(pnn(node));
        let shown = table.connections().filter(of);
        shown
            .map(|shown| ((shown.address, shown.key), shown.meta))
            .collect()
    }
}

fn meta() -> Meta {
    Meta {
        since: 5,
        sources: Sources::KERNEL,
    }
}

#[test]
fn all_copies_become_equal() {
    let mut talked = 0;
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..3000 {
            world.step();
        }
        // Somebody serves everything in the end.
        for last in 1..=4 {
            if world.hosts[&address(last)].is_none() {
                let node = world.node();
                world.take(node, address(last));
            }
        }
        world.settle();
        let counters = world.tables.iter().map(Table::counters);
        talked += counters
            .map(|counters| counters.changes_in + counters.parts_in)
            .sum::<u64>();
        for node in 0..NODES {
            let own = world.known(node, node);
            let sockets: BTreeSet<(IpAddr, Key)> = world.sockets[node as usize]
                .iter()
                .map(|ends| ends.split())
                .collect();
            assert_eq!(
                own.keys().copied().collect::<BTreeSet<_>>(),
                sockets,
                "seed {seed}"
            );
            for other in 0..NODES {
                assert_eq!(
                    world.known(other, node),
                    own,
                    "seed {seed}: {node} at {other}"
                );
            }
            assert_eq!(
                world.tables[node as usize].counts()[2],
                0,
                "seed {seed}: orphans"
            );
        }
    }
    assert!(talked > 10_000, "{talked} changes and pieces of tables");
}

#[test]
fn in_a_whole_cluster_nobody_stays_untold() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.deaf = true;
        for round in 0..20 {
            for last in 1..=4 {
                let node = world.node();
                match world.hosts[&address(last)] {
                    Some(host) => world.release(host, address(last)),
                    None => world.take(node, address(last)),
                }
            }
            for client in 0..50u32 {
                let last = world.random.random_range(1..=4);
                let Some(host) = world.hosts[&address(last)] else {
                    continue;
                };
                let ends = Ends {
                    client: (IpAddr::V4((0x0a03_0000 + round * 100 + client).into()), 1).into(),
                    server: (address(last), 2049).into(),
                };
                world.sockets[host as usize].insert(ends);
                world.input(host, Input::Opened(ends, meta()));
            }
            // An address may go on before its new host has told everybody.
            for last in 1..=4 {
                if let Some(host) = world.hosts[&address(last)]
                    && world.random.random_bool(0.3)
                {
                    for _ in 0..5 {
                        world.run(5);
                    }
                    world.release(host, address(last));
                    let node = world.node();
                    world.take(node, address(last));
                }
            }
            // Replicated; then a host may be lost.
            world.settle();
            if world.random.random_bool(0.5) {
                let node = world.node();
                world.restart(node, true);
                world.settle();
            }
        }
        for last in 1..=4 {
            if world.hosts[&address(last)].is_none() {
                let node = world.node();
                world.take(node, address(last));
            }
        }
        world.settle();
        assert_eq!(world.untold, BTreeSet::new(), "seed {seed}");
    }
}
