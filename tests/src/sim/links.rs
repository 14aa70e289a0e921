//! Links between daemons: made by a handshake that fixes the incarnations, in order while they
//! stand, and noticed by each end on its own when they are over.

use std::time::Duration;

use ctdb_wire::ids::Incarnation;
use ctdb_wire::peer::PeerFrame;
use rand::Rng as _;

use super::node::Item;
use super::world::{Event, World};

/// How often links are looked at.
const LOOK: Duration = Duration::from_millis(150);

impl World {
    /// The link that `node` believes in, with its end.
    fn believed(&self, node: usize, peer: usize) -> Option<u64> {
        self.net.links.iter().rev().find_map(|(id, link)| {
            let mine = link.nodes.contains(&node) && link.nodes.contains(&peer);
            (mine && link.open[link.end(node)]).then_some(*id)
        })
    }

    /// A pair without link tries to get one, again and again.
    pub fn dial(&mut self, a: usize, b: usize) {
        let pause = Duration::from_millis(self.rng.random_range(100..500));
        let again = self.now + pause;
        self.schedule(again, Event::Dial { a, b });
        self.try_link(a, b);
    }

    /// Links two daemons that have no link, if they can reach each other.
    pub fn try_link(&mut self, a: usize, b: usize) {
        // Only who stands in both lists is dialled and let in.
        let listed = |node: usize, peer: usize| {
            self.hosts[node].daemon.as_ref().is_some_and(|daemon| {
                daemon
                    .coordinator
                    .config()
                    .voters
                    .contains(super::world::pnn(peer))
            })
        };
        if !listed(a, b) || !listed(b, a) {
            return;
        }
        if self.believed(a, b).is_some() && self.believed(a, b) == self.believed(b, a) {
            return;
        }
        if !self.net.way(a, b) || self.hosts[a].frozen || self.hosts[b].frozen {
            return;
        }
        let life = |node: usize| {
            self.hosts[node]
                .daemon
                .as_ref()
                .filter(|daemon| daemon.leaving.is_none())
                .map(|daemon| (daemon.life, daemon.incarnation))
        };
        let (Some(of_a), Some(of_b)) = (life(a), life(b)) else {
            return;
        };
        for (node, peer) in [(a, b), (b, a)] {
            if let Some(old) = self.believed(node, peer) {
                self.close_end(old, node, false); // Replaced.
            }
        }
        let link = self.net.link(self.now, [a, b], [of_a.0, of_b.0]);
        self.up(a, link, b, of_b.1);
        self.up(b, link, a, of_a.1);
    }

    fn up(&mut self, node: usize, link: u64, peer: usize, incarnation: Incarnation) {
        self.give(node, Item::LinkUp(link, peer, incarnation));
    }

    /// One end gives up; the other one hears of it if the way is open.
    fn close_end(&mut self, id: u64, node: usize, tell: bool) {
        let Some(link) = self.net.links.get_mut(&id) else {
            return;
        };
        let end = link.end(node);
        let peer = link.nodes[1 - end];
        if !link.open[end] {
            return;
        }
        link.open[end] = false;
        let (life, last) = (link.lives[end], link.last[end]);
        let alive = self.hosts[node]
            .daemon
            .as_ref()
            .is_some_and(|daemon| daemon.life == life);
        if alive {
            self.give(node, Item::LinkDown(id, peer));
        }
        if tell && !self.net.streams[node][peer] {
            let delay = self.net.quality.delay(&mut self.rng);
            let at = last.max(self.now + delay);
            self.schedule(
                at,
                Event::Closed {
                    link: id,
                    end: 1 - end,
                },
            );
        }
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        if self
            .net
            .links
            .get(&id)
            .is_some_and(|link| link.open == [false; 2])
        {
            self.net.links.remove(&id);
        }
    }

    /// The other end's close arrives.
    pub fn closed(&mut self, id: u64, end: usize) {
        let Some(link) = self.net.links.get(&id) else {
            return;
        };
        let node = link.nodes[end];
        self.close_end(id, node, false);
    }

    /// A frame leaves; without link it is lost.
    pub fn send_frame(&mut self, node: usize, peer: usize, frame: PeerFrame) {
        let believed = self.hosts[node]
            .daemon
            .as_ref()
            .and_then(|daemon| daemon.links[peer]);
        match &frame {
            PeerFrame::Assign(order) => {
                self.say(|| format!("node {node} => {peer}: {order:?} link={believed:?}"));
            }
            PeerFrame::State(state) => {
                self.say(|| format!("node {node} => {peer}: {state:?} link={believed:?}"));
            }
            _ => {}
        }
        let Some(id) = believed else { return };
        let delay = self.net.quality.delay(&mut self.rng);
        let now = self.now;
        let Some(link) = self.net.links.get_mut(&id) else {
            return;
        };
        let end = link.end(node);
        if !link.open[end] {
            return;
        }
        let at = link.last[end].max(now + delay);
        link.last[end] = at;
        self.schedule(
            at,
            Event::Frame {
                link: id,
                end: 1 - end,
                frame,
            },
        );
    }

    /// A frame arrives at an end.
    pub fn frame(&mut self, id: u64, end: usize, frame: PeerFrame) {
        let Some(link) = self.net.links.get_mut(&id) else {
            return;
        };
        let (from, to) = (link.nodes[1 - end], link.nodes[end]);
        let blocked = self.net.streams[from][to] || !self.hosts[to].powered;
        if blocked || !link.stalled[1 - end].is_empty() {
            link.stalled[1 - end].push_back(frame);
            return;
        }
        self.arrive(id, end, frame);
    }

    fn arrive(&mut self, id: u64, end: usize, frame: PeerFrame) {
        let Some(link) = self.net.links.get(&id) else {
            return;
        };
        let (node, peer) = (link.nodes[end], link.nodes[1 - end]);
        let life = link.lives[end];
        let here = self.hosts[node]
            .daemon
            .as_ref()
            .is_some_and(|daemon| daemon.life == life);
        if here && link.open[end] {
            self.give(node, Item::Frame(id, peer, frame));
        }
    }

    /// What stalled goes on when the way is open; an end that hears nothing for long gives up.
    pub fn look_at_links(&mut self) {
        let at = self.now + LOOK;
        self.schedule(at, Event::Links);
        let ids: Vec<u64> = self.net.links.keys().copied().collect();
        for id in ids {
            for end in 0..2 {
                let Some(link) = self.net.links.get(&id) else {
                    break;
                };
                let (node, peer) = (link.nodes[end], link.nodes[1 - end]);
                let (life, peer_life) = (link.lives[end], link.lives[1 - end]);
                let lives = |node: usize, life: u64| {
                    self.hosts[node]
                        .daemon
                        .as_ref()
                        .is_some_and(|daemon| daemon.life == life)
                };
                if !lives(node, life) {
                    // The process is gone, and its sockets with it.
                    if let Some(link) = self.net.links.get_mut(&id) {
                        link.open[end] = false;
                    }
                    self.forget(id);
                    continue;
                }
                // Without answers to what is sent nothing new comes either.
                let speaks = lives(peer, peer_life)
                    && !self.hosts[peer].frozen
                    && self.net.way(node, peer)
                    && link.open[1 - end];
                let (now, idle) = (self.now, self.habits.idle);
                let frozen = self.hosts[node].frozen;
                let Some(link) = self.net.links.get_mut(&id) else {
                    break;
                };
                if speaks {
                    link.quiet[end] = None;
                    while let Some(frame) = self
                        .net
                        .links
                        .get_mut(&id)
                        .and_then(|link| link.stalled[1 - end].pop_front())
                    {
                        self.arrive(id, end, frame);
                    }
                } else {
                    let since = *link.quiet[end].get_or_insert(now);
                    if !frozen && now.since(since) > idle {
                        self.close_end(id, node, true);
                    }
                }
            }
        }
    }

    /// All links of a daemon whose process ends; the kernel closes them.
    pub fn close_all(&mut self, node: usize, tell: bool) {
        let ids: Vec<u64> = self
            .net
            .links
            .iter()
            .filter(|(_, link)| link.nodes.contains(&node) && link.open[link.end(node)])
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.close_end(id, node, tell);
        }
    }
}
