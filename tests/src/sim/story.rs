//! Faults that take several steps, each waiting for what the one before has brought about: rare
//! meetings that single faults drawn at random hardly ever bring together.

use std::time::Duration;

use ctdb_wire::ids::NodeSet;

use super::clock::Real;
use super::faults::Fault;
use super::node::Item;
use super::world::{Event, World, pnn};

/// How often a story looks whether it can go on.
const LOOK: Duration = Duration::from_millis(50);

impl World {
    /// A clock's rate changes, and the threads look at it.
    pub fn set_clock(&mut self, node: usize, drift_ppm: i64) {
        let now = self.now;
        let host = &mut self.hosts[node];
        host.kernel.settle(now, &host.clock);
        host.clock.change_rate(now, drift_ppm);
        // Timers run by the new rate.
        self.wake_detector(node, now);
        self.wake_main(node, now);
    }

    /// A clock is within the margin again. What was promised, answered and granted by it runs
    /// out within three promises.
    pub fn clock_good(&mut self, node: usize, drift_ppm: i64) {
        if !self.hosts[node].wild {
            return; // It has booted meanwhile.
        }
        self.hosts[node].wild = false;
        self.set_clock(node, drift_ppm);
        let until = self.now + self.timing.promise() * 3;
        self.clocks_excused_until = self.clocks_excused_until.max(until);
    }

    /// Whether a clock beyond the margin excuses what is seen now.
    pub fn clocks_excuse(&self) -> bool {
        self.now < self.clocks_excused_until || self.hosts.iter().any(|host| host.wild)
    }

    fn later(&mut self, fault: Fault) {
        let at: Real = self.now + LOOK;
        self.schedule(at, Event::Do(Box::new(fault)));
    }

    /// One step of a story.
    pub fn story(&mut self, fault: &Fault) {
        match *fault {
            Fault::Strand => {
                let Some(leader) = self.acting_node() else {
                    return;
                };
                let mut voters = self.list;
                voters.remove(pnn(leader));
                if voters.len() < 2 || voters.len() == self.list.len() {
                    return;
                }
                self.say(|| format!("operator: files say {voters:?}"));
                self.list = voters;
                for other in voters.iter() {
                    self.hosts[other.index()].file = voters;
                }
                let again = self.upto(Duration::from_millis(100));
                let nodes = voters.0;
                self.inject(&Fault::Blackout { nodes, again });
            }
            Fault::Stale { node } => {
                let spare = self.hosts.len() - self.list.len();
                if spare >= 2 && self.list.contains(pnn(node)) && self.acting_node() != Some(node) {
                    let cut = Fault::Isolate {
                        node,
                        hears: false,
                        heard: false,
                    };
                    self.inject(&cut);
                    let old = self.list;
                    self.later(Fault::StaleWatch {
                        node,
                        old,
                        left: 400,
                    });
                }
            }
            Fault::StaleWatch { node, old, left } => self.stale(node, old, left),
            Fault::Stuck { node } => {
                let Some(leader) = self.acting_node().filter(|leader| *leader != node) else {
                    return;
                };
                self.net.streams[leader][node] = true;
                for address in self.addresses.clone() {
                    self.give(leader, Item::Move(address, pnn(node)));
                }
                // The orders are given; then only the leader's datagrams fail.
                for peer in 0..self.hosts.len() {
                    let at = self.now + Duration::from_millis(150);
                    let block = Fault::Block {
                        from: leader,
                        to: peer,
                        datagrams: true,
                        streams: false,
                        blocked: true,
                    };
                    self.schedule(at, Event::Do(Box::new(block)));
                }
                self.later(Fault::StuckWatch {
                    leader,
                    node,
                    left: 100,
                });
            }
            Fault::StuckWatch { leader, node, left } => {
                let other = self.hosts[node]
                    .daemon
                    .as_ref()
                    .and_then(|daemon| daemon.coordinator.holder().term())
                    .is_some_and(|term| term.leader != pnn(leader));
                if other || left == 0 {
                    self.net.streams[leader][node] = false;
                    let at = self.now + self.timing.interval;
                    self.schedule(at, Event::Do(Box::new(Fault::Heal)));
                } else {
                    let left = left - 1;
                    self.later(Fault::StuckWatch { leader, node, left });
                }
            }
            _ => {}
        }
    }

    fn stale(&mut self, node: usize, old: NodeSet, left: u32) {
        if left == 0 {
            return;
        }
        let again = Fault::StaleWatch {
            node,
            old,
            left: left - 1,
        };
        let added = self.list.len().saturating_sub(old.len());
        let leader = self.acting_node();
        if added < 2 {
            let spare = (0..self.hosts.len()).find(|spare| !self.list.contains(pnn(*spare)));
            if let Some(spare) = spare.filter(|_| leader.is_some()) {
                self.reload_list(spare, Some(node));
            }
            return self.later(again);
        }
        // All that are new have to work before the network breaks in two.
        let Some(leader) = leader else {
            return self.later(again);
        };
        let ready = self.list.iter().all(|other| {
            let daemon = self.hosts[other.index()].daemon.as_ref();
            other == pnn(node)
                || daemon.is_some_and(|daemon| daemon.published.right_until.is_some())
        });
        if !ready {
            return self.later(again);
        }
        let mut half = NodeSet::from_iter([pnn(node)]);
        for other in old.iter() {
            if half.len() < old.len() / 2 + 1 && other != pnn(leader) {
                half.insert(other);
            }
        }
        self.inject(&Fault::Split { half: half.0 });
    }
}
