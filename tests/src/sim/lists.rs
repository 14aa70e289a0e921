//! Nodes lists: what stands in the files, and the operator who changes them, one node at a time.

use std::time::Duration;

use ctdb_core::authority::{List, Mode};
use ctdb_core::reload::{self, Refused};
use ctdb_wire::ids::NodeSet;
use rand::Rng as _;

use super::faults::Fault;
use super::node::Item;
use super::world::{Event, World};

/// How often the leader's node is told until one takes the list on.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a node that is told before the first waits for it.
const WAITS: Duration = Duration::from_millis(20);

/// The list with its quorum.
fn list_of(voters: NodeSet) -> List {
    let quorum = voters.len() / 2 + 1;
    List { voters, quorum }
}

/// Why the daemon does not take the list on; its detector may not have heard of the last one yet.
fn refusal(daemon: &super::node::Daemon, mode: Mode, list: &List, first: bool) -> Option<Refused> {
    if daemon.published.list.voters != daemon.coordinator.config().voters {
        return Some(Refused::NotSettled);
    }
    reload::check(&daemon.published, mode, list, first).err()
}

impl World {
    /// `ctdb nodes reload`: the leader's node first, then all that can be reached. Files of
    /// machines that are down, or that the operator does not reach, stay as they are. `missed` is
    /// not reached in any case.
    pub fn reload_list(&mut self, node: usize, missed: Option<usize>) -> bool {
        let pnn = super::world::pnn(node);
        let mut voters = self.list;
        if voters.contains(pnn) {
            voters.remove(pnn);
        } else {
            voters.insert(pnn);
        }
        if voters.len() < 2 {
            return false;
        }
        let Some(leader) = self.acting_node().filter(|leader| *leader != node) else {
            return false;
        };
        let list = list_of(voters);
        let mode = self.mode();
        let refused = match &self.hosts[leader].daemon {
            Some(daemon) => refusal(daemon, mode, &list, true),
            None => return false,
        };
        if let Some(refused) = refused {
            self.say(|| format!("operator: {refused}"));
            return false;
        }
        self.say(|| format!("operator: list is {voters:?}"));
        self.list = voters;
        self.list_begun = false;
        self.stats.reloads += 1;
        self.write_list(leader, voters, true);
        self.schedule(
            self.now + AGAIN,
            Event::Do(Box::new(Fault::TellFirst(voters))),
        );
        for index in (0..self.hosts.len()).filter(|index| *index != leader) {
            if self.hosts[index].powered && self.rng.random_bool(0.9) && missed != Some(index) {
                self.write_list(index, voters, false);
            }
        }
        true
    }

    /// The leader's node is the first; if it leads no more, it is another.
    pub fn tell_first(&mut self, voters: NodeSet) {
        if self.list_begun || voters != self.list {
            return;
        }
        if let Some(leader) = self.acting_node() {
            self.write_list(leader, voters, true);
        }
        self.schedule(
            self.now + AGAIN,
            Event::Do(Box::new(Fault::TellFirst(voters))),
        );
    }

    /// The node whose main loop acts as leader.
    pub fn acting_node(&self) -> Option<usize> {
        (0..self.hosts.len()).find(|index| {
            let local = self.local(*index);
            let daemon = self.hosts[*index].daemon.as_ref();
            daemon.is_some_and(|daemon| daemon.coordinator.acting(local).is_some())
        })
    }

    /// The file is written, and the daemon reads it.
    fn write_list(&mut self, node: usize, voters: NodeSet, first: bool) {
        self.hosts[node].file = voters;
        self.give(node, Item::List { voters, first });
        if self.hosts[node].daemon.is_none() && voters.contains(super::world::pnn(node)) {
            let at = self.now + Duration::from_millis(30);
            self.schedule(at, Event::Start { node });
        }
    }

    /// The main loop reloads; false if the daemon was stopped meanwhile.
    pub fn reload_daemon(&mut self, node: usize, voters: NodeSet, first: bool) -> bool {
        let list = list_of(voters);
        let mode = self.mode();
        let Some(daemon) = self.hosts[node].daemon.as_deref_mut() else {
            return false;
        };
        if !first && voters == self.list && !self.list_begun {
            let fault = Fault::TakeOn {
                node,
                voters,
                first,
            };
            self.schedule(self.now + WAITS, Event::Do(Box::new(fault)));
            return true;
        }
        if let Some(refused) = refusal(daemon, mode, &list, first) {
            self.say(|| format!("node {node}: reload refused: {refused}"));
            return true;
        }
        if self.now < self.hosts[node].disk_until {
            // The record of the old list has to go first, and the disk takes its time.
            let fault = Fault::TakeOn {
                node,
                voters,
                first,
            };
            let at = self.hosts[node].disk_until;
            self.schedule(at, Event::Do(Box::new(fault)));
            return true;
        }
        self.list_begun |= first && voters == self.list;
        // The record is removed before another list counts (R10).
        self.hosts[node].acted_under = None;
        let input = ctdb_core::coordinator::Input::List {
            list,
            deleted: NodeSet::EMPTY,
            list_length: self.hosts.len(),
        };
        self.feed(node, input)
    }

    /// R24: the detector is told of a list after the coordinator, whenever they differ. Level
    /// triggered, as in the daemon: a stop between the two loses nothing.
    pub fn tell_list(&mut self, node: usize) {
        let Some(daemon) = self.hosts[node].daemon.as_deref_mut() else {
            return;
        };
        let voters = daemon.coordinator.config().voters;
        if daemon.listed == voters {
            return;
        }
        daemon.listed = voters;
        self.command(node, super::node::Command::List(list_of(voters)));
        if !voters.contains(super::world::pnn(node)) {
            self.give(node, Item::Stop);
        }
    }

    /// The record of the list that was acted under, when that is certain.
    pub fn keep_record(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.hosts[node];
        let Some(daemon) = host.daemon.as_ref().filter(|_| now >= host.disk_until) else {
            return;
        };
        let status = &daemon.published;
        let voters = daemon.coordinator.config().voters;
        // The detector may not have heard of the newest list yet.
        let settled = status.list.settled && status.list.voters == voters;
        if settled && status.leader.is_some() {
            host.acted_under = Some(voters);
        }
    }

    /// Faults are over: the operator brings all files and daemons to the newest list.
    pub fn end_of_lists(&mut self, good: &mut Vec<usize>) {
        if !self.plan.lists {
            return;
        }
        good.retain(|node| self.list.contains(super::world::pnn(*node)));
        let voters = self.list;
        for node in 0..self.hosts.len() {
            let stale = self.hosts[node]
                .daemon
                .as_ref()
                .is_some_and(|daemon| daemon.coordinator.config().voters != voters);
            self.hosts[node].file = voters;
            if stale && good.contains(&node) {
                self.crash(node, true);
            }
            // What a frozen daemon was told before is not the last word any more.
            if let Some(daemon) = &mut self.hosts[node].daemon {
                daemon.inbox.retain(
                    |item| !matches!(item, Item::List { voters: old, .. } if *old != voters),
                );
            }
            if !voters.contains(super::world::pnn(node)) {
                self.crash(node, true);
                self.hosts[node].stays_down = true;
            }
        }
    }

    /// In some runs nodes begin without a record of the list: new clusters, replaced hosts.
    pub fn start_of_records(&mut self) {
        if !self.side.random_ratio(1, 6) {
            return;
        }
        let all = self.side.random_ratio(1, 2);
        for node in 0..self.hosts.len() {
            if all || self.side.random_ratio(1, 2) {
                self.hosts[node].acted_under = None;
            }
        }
    }

    /// What is drawn for a run with changing lists.
    pub fn start_of_lists(&mut self, spare: usize) {
        self.plan.lists = true;
        let nodes = self.hosts.len();
        let all: NodeSet = (0..nodes - spare).map(super::world::pnn).collect();
        self.list = all;
        for host in &mut self.hosts {
            host.file = all;
            host.acted_under = Some(all);
        }
    }
}
