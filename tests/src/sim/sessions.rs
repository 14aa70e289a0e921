//! What is connected to public addresses, and what the databases say of it.
//!
//! The model takes the worst case: on every address that is answered for somebody holds locks, and the
//! process that serves it stands still when its node is left out, so that nothing but the daemon ends the
//! connection. Databases are a recovery of some length whenever a leader lets a life in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ctdb_core::coordinator::Input;
use ctdb_core::holder::Fate;
use ctdb_core::members::life;
use ctdb_wire::ids::{Epoch, Incarnation};
use rand::Rng as _;

use super::world::{Event, World};

/// Of one host.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    /// The life in which it was last let in: what the databases keep for its clients is of it.
    member: Option<Incarnation>,
    /// Lives that were left out: others may have what they held.
    dropped: BTreeSet<Incarnation>,
    /// The life that keeps what the client of an address holds.
    connected: BTreeMap<IpAddr, Incarnation>,
}

impl Sessions {
    /// What was connected to an address has ended.
    pub fn end(&mut self, address: IpAddr) {
        self.connected.remove(&address);
    }

    /// All of it has.
    pub fn end_all(&mut self) {
        self.connected.clear();
    }

    /// Some connection whose locks are gone, of those that `answers` says packets pass for.
    fn robbed(&self, answers: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let mut lost = self.connected.iter();
        lost.find(|(address, life)| self.dropped.contains(life) && answers(**address))
            .map(|(address, _)| *address)
    }
}

impl World {
    /// Each address works on one node only.
    pub fn one_host_each(&mut self) {
        for address in 0..self.addresses.len() {
            let host = self.side.random_range(0..self.hosts.len());
            for node in 0..self.hosts.len() {
                self.hosts[node].bad[address] = node != host;
            }
        }
    }

    /// What this node, if it leads, says of the members of the databases.
    pub fn follow_view(&mut self, leader: usize) {
        if !self.options.databases {
            return;
        }
        let local = self.local(leader);
        let daemon = self.hosts[leader].daemon.as_ref();
        let Some(view) = daemon.and_then(|daemon| daemon.coordinator.members(local).cloned())
        else {
            return;
        };
        for node in 0..self.hosts.len() {
            let host = &mut self.hosts[node];
            let sessions = &mut host.sessions;
            let Some(new) = view.members.get(&host.pnn).copied() else {
                if !view.donors.contains(host.pnn) {
                    sessions.dropped.extend(sessions.member);
                }
                continue;
            };
            if sessions.member == Some(new) {
                continue;
            }
            let old = sessions.member.replace(new);
            if let Some(old) = old.filter(|old| !sessions.dropped.contains(old)) {
                let kept = sessions.connected.values_mut().filter(|l| **l == old);
                for life in kept {
                    *life = new;
                }
            }
            let Some(daemon) = &host.daemon else { continue };
            let (number, epoch) = (daemon.life, daemon.published.epoch);
            if life(epoch) != new {
                continue; // Its right is over again.
            }
            let longest = if self.side.random_ratio(1, 8) {
                3000
            } else {
                100
            };
            let took = Duration::from_millis(self.side.random_range(2..longest));
            let recovered = Event::Recovered {
                node,
                life: number,
                epoch,
            };
            self.schedule(self.now + took, recovered);
        }
    }

    /// All databases of this node have been through a recovery in the right of `epoch`.
    pub fn recovered(&mut self, node: usize, epoch: Epoch) {
        if let Some(daemon) = &mut self.hosts[node].daemon {
            daemon.through = Some(epoch);
        }
        let now = self.now;
        self.wake_main(node, now);
    }

    /// What they say to the holder; false if the daemon was stopped meanwhile.
    pub fn tell_fates(&mut self, node: usize) -> bool {
        let host = &self.hosts[node];
        let Some(daemon) = &host.daemon else {
            return false;
        };
        let (epoch, _, asking) = daemon.coordinator.holder().asking();
        let through = daemon.through == Some(epoch);
        let fate = |address| match host.sessions.connected.get(&address) {
            None => Some((address, Fate::Kept)),
            Some(kept) if through && *kept == life(epoch) => Some((address, Fate::Kept)),
            Some(_) if through => Some((address, Fate::Lost)),
            Some(_) => None,
        };
        let fates: Vec<_> = asking.filter_map(fate).collect();
        if fates.is_empty() {
            return true;
        }
        self.say(|| format!("node {node}: databases say in {epoch:?} {fates:?}"));
        self.feed(node, Input::Fates { epoch, fates })
    }

    /// Clients come to what is answered for, and take locks.
    pub fn connect(&mut self, node: usize) {
        let local = self.local(node);
        let host = &mut self.hosts[node];
        let Some(daemon) = &host.daemon else { return };
        let epoch = daemon.published.epoch;
        let served = life(epoch);
        let sessions = &mut host.sessions;
        if daemon.through != Some(epoch)
            || sessions.member != Some(served)
            || sessions.dropped.contains(&served)
        {
            return;
        }
        for address in &self.addresses {
            if host.kernel.passes(*address, local) {
                sessions.connected.entry(*address).or_insert(served);
            }
        }
    }

    /// MEM-3: nobody whose locks are gone is answered for.
    pub fn check_sessions(&mut self) {
        for (node, host) in self.hosts.iter().enumerate() {
            if host.sessions.connected.is_empty() || !host.powered {
                continue;
            }
            let local = host.clock.local(self.now);
            let answers = |address| host.kernel.passes(address, local);
            if let Some(address) = host.sessions.robbed(answers) {
                let text = format!(
                    "node {node} answers on {address} {:?} for clients whose locks the databases have \
                     given away: {:?}",
                    host.kernel.show(address),
                    host.sessions
                );
                self.broken("MEM-3", text);
                return;
            }
        }
    }
}
