//! What goes wrong.

use ctdb_db::cluster::Input;
use rand::Rng as _;

use super::world::{Event, MS, World};

/// A fault that ends again.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A dead daemon starts.
    Restart(usize),
    /// A frozen daemon goes on.
    Resume(usize),
    /// All links work.
    Links,
    /// The operator lets a node in again.
    Continue(usize),
}

impl World {
    /// The next fault.
    pub fn fault(&mut self) {
        if self.quiet {
            return;
        }
        self.stats.faults += 1;
        self.disturbed_at = self.now;
        let node = self.rng.random_range(0..self.nodes.len());
        let other = (node + self.rng.random_range(1..self.nodes.len())) % self.nodes.len();
        let mut time = self.rng.random_range(10..900) * MS;
        match self.rng.random_range(0..100) {
            0..=19 => {
                self.crash(node);
                self.after(time, Event::Heal(Fault::Restart(node)));
            }
            20..=36 => {
                if self.nodes[node].up && !self.nodes[node].frozen {
                    if self.rng.random_bool(0.5) {
                        time /= 8;
                    }
                    self.trace(|| format!("node {node} is stopped in its tracks"));
                    self.nodes[node].frozen = true;
                    self.after(time, Event::Heal(Fault::Resume(node)));
                }
            }
            37..=54 => {
                let side: Vec<bool> = self.nodes.iter().map(|_| self.rng.random()).collect();
                self.trace(|| format!("the net is cut: {side:?}"));
                let pairs: Vec<(usize, usize)> = self.links.keys().copied().collect();
                for (a, b) in pairs {
                    let cut = side[a] != side[b];
                    self.set_cut(a, b, cut);
                }
                self.after(time, Event::Heal(Fault::Links));
            }
            55..=64 => {
                self.trace(|| format!("{node} and {other} do not reach each other"));
                self.set_cut(node, other, true);
                self.after(time, Event::Heal(Fault::Links));
            }
            65..=76 => {
                if self.connected(node, other) {
                    self.trace(|| format!("the connection of {node} and {other} is made anew"));
                    self.break_link(node, other);
                }
            }
            77..=84 => {
                self.trace(|| format!("the disk of node {node} fails"));
                self.nodes[node].disk_fails_until = self.now + time;
            }
            85..=92 => {
                self.trace(|| format!("the operator stops node {node}"));
                self.nodes[node].stopped = true;
                self.after(time, Event::Heal(Fault::Continue(node)));
            }
            _ => self.kill_a_client(),
        }
        let pause = self.rng.random_range(20..500) * MS;
        self.after(pause, Event::Fault);
    }

    /// Two nodes do not reach each other any more; the leader reaches both.
    pub fn set_apart(&mut self) {
        self.disturbed_at = self.now;
        let leader = self.membership.leader.expect("somebody leads");
        let others: Vec<usize> = (0..self.nodes.len()).filter(|n| *n != leader).collect();
        let at = self.rng.random_range(1..others.len());
        self.trace(|| format!("{} and {} do not reach each other", others[0], others[at]));
        self.set_cut(others[0], others[at], true);
    }

    fn set_cut(&mut self, a: usize, b: usize, cut: bool) {
        let link = self.links.get_mut(&(a.min(b), a.max(b))).expect("a link");
        if link.cut != cut {
            link.cut = cut;
            self.break_link(a, b);
        }
    }

    /// The end of a fault.
    pub fn heal(&mut self, fault: Fault) {
        self.disturbed_at = self.now;
        match fault {
            Fault::Restart(node) => self.after(0, Event::Start { node }),
            Fault::Resume(node) => self.resume(node),
            Fault::Links => {
                let pairs: Vec<(usize, usize)> = self.links.keys().copied().collect();
                for (a, b) in pairs {
                    self.set_cut(a, b, false);
                }
            }
            Fault::Continue(node) => {
                self.trace(|| format!("the operator continues node {node}"));
                self.nodes[node].stopped = false;
            }
        }
    }

    /// No more faults; the cluster is whole again.
    pub fn calm(&mut self) {
        self.trace(|| "quiet".to_owned());
        self.quiet = true;
        self.heal(Fault::Links);
        for node in 0..self.nodes.len() {
            self.nodes[node].disk_fails_until = 0;
            self.heal(Fault::Continue(node));
            self.heal(Fault::Resume(node));
            self.heal(Fault::Restart(node));
        }
    }

    /// Clients that hold a lock longer than the margin allows are ended.
    pub fn end_holders(&mut self, node: usize) {
        if self.options.bug == Some(ctdb_db::cluster::planted::Bug::StaleOwnerWrites) {
            return;
        }
        let holders: Vec<usize> = self.nodes[node]
            .sides
            .iter()
            .flat_map(|side| side.holders.values().copied())
            .collect();
        for client in holders {
            self.end_client(client, 20 * MS);
        }
    }

    /// A client's process has gone: the daemon hears of it.
    pub fn tell_gone(&mut self, client: usize) {
        let (node, side) = (self.clients[client].node, self.clients[client].side);
        let id = self.clients[client].id;
        if self.nodes[node].up && !self.nodes[node].frozen {
            self.input(node, side, Input::ClientGone(id));
        }
    }
}
