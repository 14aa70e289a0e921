//! The model of membership: who leads, who is in, whose right runs.
//!
//! It is what `authority.md` arrives at, without the way there: a right lasts [`RIGHT`] and is renewed
//! while the node is connected to the leader; a node that is not is left out when its right has been
//! over for [`MARGIN`]; a new leader acts when that is true of the old one. Of nodes that reach the leader
//! and not each other one has its right renewed no more after a while ([`members::out_of_reach`]).

use std::collections::BTreeMap;

use ctdb_core::members::{self, Reach};
use ctdb_db::cluster::{Input, View};
use ctdb_wire::ids::{Incarnation, NodeSet, Pnn, Term};
use rand::Rng as _;

use super::options::Authority;
use super::world::{Event, MS, World, pnn};

/// How long a right lasts without being renewed.
pub const RIGHT: u64 = 150 * MS;
/// Between the end of a right and the moment when its node may be left out.
pub const MARGIN: u64 = 40 * MS;
/// How often all this is looked at.
pub const TICK: u64 = 20 * MS;

/// What the cluster has agreed on.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    pub term: u64,
    pub leader: Option<usize>,
    /// Members with the lives of their daemons.
    pub members: BTreeMap<usize, u64>,
    pub donors: Vec<usize>,
    /// Who does not reach others that take part, since when.
    pub apart: BTreeMap<usize, u64>,
}

impl World {
    fn acts(&self, node: usize) -> bool {
        self.nodes[node].up && !self.nodes[node].frozen
    }

    /// Whether a node that leads, or wants to, has enough behind it.
    fn enough(&self, leader: usize) -> bool {
        match self.authority {
            Authority::Lock => true,
            Authority::Majority => {
                let reached = (0..self.nodes.len())
                    .filter(|other| self.acts(*other) && self.connected(leader, *other))
                    .count();
                reached * 2 > self.nodes.len()
            }
        }
    }

    /// One look at the cluster.
    pub fn membership_tick(&mut self) {
        let old = self.membership.leader;
        let fit = old.is_some_and(|leader| {
            let node = &self.nodes[leader];
            self.acts(leader) && !node.evicted && !node.stopped && self.enough(leader)
        });
        if fit && let Some(leader) = old {
            self.renew(leader);
        }
        // Rights end by themselves: the daemon, or its guard, freezes the databases.
        for node in 0..self.nodes.len() {
            self.end_right(node);
        }
        if !fit {
            self.elect();
        }
        if let Some(leader) = self.membership.leader
            && self.acts(leader)
            && self.enough(leader)
        {
            self.admit_and_evict(leader);
        }
        self.after(TICK, Event::Membership);
    }

    fn renew(&mut self, leader: usize) {
        let until = self.now + RIGHT;
        let members: Vec<usize> = self.membership.members.keys().copied().collect();
        for node in members {
            let same_life = self.membership.members.get(&node) == Some(&self.nodes[node].life);
            if self.acts(node)
                && same_life
                && !self.nodes[node].evicted
                && self.connected(leader, node)
                && !self.too_long_apart(node)
            {
                self.nodes[node].right_until = until;
                if !self.nodes[node].told_right {
                    self.nodes[node].told_right = true;
                    self.trace(|| format!("node {node} has its right back"));
                    self.all_sides(node, || Input::RightBack);
                }
            }
        }
    }

    fn end_right(&mut self, node: usize) {
        let ended = self.now >= self.nodes[node].right_until;
        if !self.nodes[node].up || !ended {
            return;
        }
        if self.nodes[node].frozen {
            self.guard_freezes(node);
            return;
        }
        if self.nodes[node].told_right {
            self.nodes[node].told_right = false;
            self.trace(|| format!("node {node} has no right any more"));
            self.all_sides(node, || Input::RightLost);
            // The daemon ends clients that hold it up for longer than the margin allows.
            self.end_holders(node);
        }
        if self.nodes[node].evicted {
            self.nodes[node].evicted = false;
            self.trace(|| format!("node {node} learns that it was evicted"));
            self.all_sides(node, || Input::Evicted);
            self.clear_views(node);
        }
    }

    fn too_long_apart(&self, node: usize) -> bool {
        let since = self.membership.apart.get(&node);
        let patience = self.options.patience_ms.map(|ms| ms * MS);
        since
            .zip(patience)
            .is_some_and(|(since, patience)| self.now - since > patience)
    }

    /// The other nodes that work and are not reached.
    fn lacks(&self, node: usize) -> NodeSet {
        let others = (0..self.nodes.len()).filter(|other| !self.connected(node, *other));
        others.map(pnn).collect()
    }

    fn look_at_links(&mut self, leader: usize) {
        let taking_part = (0..self.nodes.len()).filter(|node| {
            let member = self.membership.members.contains_key(node);
            let donor = self.membership.donors.contains(node);
            (member || donor) && self.acts(*node) && self.connected(leader, *node)
        });
        let reach: Vec<Reach> = taking_part
            .map(|node| Reach {
                pnn: pnn(node),
                lacks: self.lacks(node),
                gives: !self.membership.members.contains_key(&node),
            })
            .collect();
        let out = members::out_of_reach(pnn(leader), &reach);
        let now = self.now;
        let apart = &mut self.membership.apart;
        apart.retain(|node, _| out.contains(pnn(*node)));
        for node in out.iter() {
            apart.entry(node.index()).or_insert(now);
        }
    }

    fn choose(&mut self, candidates: &[usize]) -> Option<usize> {
        if candidates.is_empty() {
            return None;
        }
        Some(candidates[self.rng.random_range(0..candidates.len())])
    }

    fn free(&self, node: usize, life: u64) -> bool {
        // A dead daemon's guard has ended its right, and its clients are gone.
        self.nodes[node].life != life
            || !self.nodes[node].up
            || self.now >= self.nodes[node].right_until + MARGIN
    }

    fn elect(&mut self) {
        let old = self.membership.leader;
        let old_life = old.and_then(|node| self.membership.members.get(&node).copied());
        if let Some(node) = old
            && !self.free(node, old_life.unwrap_or(self.nodes[node].life))
        {
            return;
        }
        if let Some(node) = old
            && self.acts(node)
        {
            self.clear_views(node);
        }
        // Only who has no right of an older view that others may have taken away can lead: here any
        // node that is in order and, if it was a member, still has its right or was told.
        let candidates: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.acts(*node) && !self.nodes[*node].evicted && self.enough(*node))
            .filter(|node| !self.nodes[*node].stopped)
            .collect();
        let Some(leader) = self.choose(&candidates) else {
            self.membership.leader = None;
            return;
        };
        self.membership.term += 1;
        self.membership.donors.retain(|node| *node != leader);
        self.membership.leader = Some(leader);
        // A leader that was not a member of the last view begins without its own past.
        let life = self.nodes[leader].life;
        if self.membership.members.get(&leader) != Some(&life) {
            self.membership.members.insert(leader, life);
        }
        let term = self.membership.term;
        self.trace(|| format!("node {leader} leads in term {term}"));
        self.renew(leader);
    }

    fn admit_and_evict(&mut self, leader: usize) {
        self.look_at_links(leader);
        let mut members = self.membership.members.clone();
        for node in 0..self.nodes.len() {
            let life = self.nodes[node].life;
            let known = members.get(&node).copied();
            let fit = self.acts(node)
                && self.connected(leader, node)
                && !self.nodes[node].evicted
                && !self.nodes[node].stopped
                && !self.too_long_apart(node);
            let taking_part = || members.keys().chain(&self.membership.donors);
            let reaches = self.options.patience_ms.is_none()
                || taking_part().all(|other| self.connected(node, *other));
            match known {
                Some(old) if old != life && self.free(node, old) => {
                    members.remove(&node);
                    if fit && reaches {
                        members.insert(node, life);
                    }
                }
                Some(old) => {
                    let stopped = self.nodes[node].stopped && self.acts(node);
                    if stopped && self.connected(leader, node) {
                        // In order: it gives what it has.
                        members.remove(&node);
                        if !self.membership.donors.contains(&node) {
                            self.membership.donors.push(node);
                        }
                    } else if !fit && self.free(node, old) {
                        members.remove(&node);
                        if self.nodes[node].up {
                            self.nodes[node].evicted = true;
                        }
                        if self.too_long_apart(node) {
                            self.stats.left_apart += 1;
                        }
                        self.trace(|| format!("node {node} is left out"));
                    }
                }
                None if fit && reaches && !self.membership.donors.contains(&node) => {
                    self.trace(|| format!("node {node} is let in"));
                    members.insert(node, life);
                }
                None => {}
            }
        }
        let donors = self.membership.donors.clone();
        let gone: Vec<usize> = donors
            .into_iter()
            .filter(|node| !self.acts(*node) || !self.connected(leader, *node))
            // It may not have stopped yet: its right must have ended.
            .filter(|node| self.free(*node, self.nodes[*node].life))
            .collect();
        for node in gone {
            self.donor_done(node);
        }
        self.membership.members = members;
        self.renew(leader);
        self.give_views(leader);
        // Donors have given when each database is served again.
        if self.all_done(leader) {
            for node in std::mem::take(&mut self.membership.donors) {
                self.donor_done(node);
            }
            self.give_views(leader);
        }
    }

    /// A node that left in order has nothing any more that counts.
    fn donor_done(&mut self, node: usize) {
        self.membership.donors.retain(|other| *other != node);
        if self.nodes[node].up {
            self.nodes[node].evicted = true;
            self.nodes[node].right_until = self.nodes[node].right_until.min(self.now);
        }
    }

    fn all_done(&self, leader: usize) -> bool {
        self.nodes[leader].sides.iter().all(|side| {
            matches!(
                side.leader.progress(),
                ctdb_db::cluster::Progress::Done { .. }
            )
        })
    }

    fn clear_views(&mut self, node: usize) {
        self.follow_view(node, None);
    }

    fn follow_view(&mut self, node: usize, view: Option<View>) {
        if let Some(view) = self.nodes[node].views.follow(view) {
            for side in 0..self.nodes[node].sides.len() {
                self.give_view(node, side, view.clone());
            }
        }
    }

    fn give_views(&mut self, leader: usize) {
        let members: BTreeMap<Pnn, Incarnation> = self
            .membership
            .members
            .iter()
            .map(|(node, life)| (pnn(*node), Incarnation(*life)))
            .collect();
        if !self.membership.members.contains_key(&leader) {
            return;
        }
        let donors: NodeSet = self
            .membership
            .donors
            .iter()
            .map(|node| pnn(*node))
            .collect();
        let capable: Vec<Pnn> = members
            .keys()
            .copied()
            .filter(|node| self.lmaster_capable[node.index()])
            .collect();
        let lmasters = if capable.is_empty() {
            members.keys().copied().collect()
        } else {
            capable
        };
        let witnesses: NodeSet = (0..self.nodes.len())
            .filter(|node| self.acts(*node) && self.connected(leader, *node))
            .map(pnn)
            .filter(|node| !members.contains_key(node) && !donors.contains(*node))
            .collect();
        let view = View {
            term: Term {
                number: self.membership.term,
                leader: pnn(leader),
                session: Incarnation(self.nodes[leader].life),
            },
            number: 0,
            members,
            donors,
            witnesses,
            lmasters,
            complete: self.authority == Authority::Majority,
        };
        self.follow_view(leader, Some(view));
    }
}
