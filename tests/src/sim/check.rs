//! The promises, looked at after every event.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ctdb_core::members::life;
use ctdb_wire::ids::{Epoch, Incarnation, NodeFlags};

use super::clock::Real;
use super::options::Authority;
use super::world::{Event, World};

/// How often addresses are looked at when faults are over.
const LOOK: Duration = Duration::from_millis(5);

/// Silence that the model's slow executor may cause in a planned move.
const MOVE: Duration = Duration::from_millis(400);

/// What the checkers remember.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    /// When faults ended.
    pub quiet_since: Option<Real>,
    /// Nodes that reach each other and are not to be touched any more.
    pub good: Vec<usize>,
    /// When all addresses were first served, and still are.
    pub served_since: Option<Real>,
    /// Longest time that an address was not served since this was reset, and since when it is not.
    pub gaps: Vec<Gap>,
    /// Who was ever a member of the databases, in which life.
    pub admitted: BTreeSet<(usize, Incarnation)>,
}

/// Silence of one address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gap {
    /// Not served since.
    pub since: Option<Real>,
    /// Longest.
    pub longest: Duration,
}

impl World {
    /// ADDR-1 and MEM-1.
    pub fn check_rights(&mut self) {
        let excused = self.lock_excuses() || self.clocks_excuse();
        let now = self.now;
        let queue = self.timing.queue;
        for host in &mut self.hosts {
            if host.powered {
                let clock = host.clock;
                host.kernel.settle(now, &clock);
            }
        }
        for index in 0..self.addresses.len() {
            let address = self.addresses[index];
            let serving = self.serving(address);
            if let Some(gap) = self.check.gaps.get_mut(index) {
                match (serving, gap.since) {
                    (None, None) => gap.since = Some(now),
                    (Some(_), Some(since)) => {
                        gap.longest = gap.longest.max(now.since(since));
                        gap.since = None;
                    }
                    _ => {}
                }
            }
            let Some(first) = serving.filter(|_| !excused) else {
                continue;
            };
            let other = self.hosts.iter().enumerate().find(|(other, host)| {
                *other != first && host.powered && host.kernel.silent_at(address, queue) > now
            });
            if let Some((other, host)) = other {
                let passes = host.kernel.passes(address, host.clock.local(now));
                let text = format!(
                    "{address} is answered for by node {first} {:?} and node {other} {:?} ({})",
                    self.hosts[first].kernel.show(address),
                    host.kernel.show(address),
                    if passes {
                        "both pass the check"
                    } else {
                        "a packet may still be queued"
                    },
                );
                self.broken("ADDR-1", text);
                return;
            }
        }
        if excused {
            // Who serves beside others has what the others do not know of.
            for host in &mut self.hosts {
                host.sessions.end_all();
            }
            return;
        }
        self.check_sessions();
        let mut acting = None;
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(daemon) = &host.daemon else { continue };
            let local = host.clock.local(now);
            // A daemon that stands still acts no more than one that looks at its clock.
            let detector = daemon.authority.acting(local).map(|(term, _)| term);
            let main = daemon.coordinator.acting(local);
            let Some(term) = detector.or(main) else {
                continue;
            };
            if let Some((other, first)) = acting {
                let text = format!("node {other} acts in {first:?} and node {index} in {term:?}");
                self.broken("MEM-1", text);
                return;
            }
            acting = Some((index, term));
        }
    }

    /// DATA-5: whom the databases leave out can change nothing any more.
    pub fn check_members(&mut self, leader: usize) {
        if !self.options.databases || self.lock_excuses() || self.clocks_excuse() {
            return;
        }
        let local = self.local(leader);
        let Some(daemon) = &self.hosts[leader].daemon else {
            return;
        };
        let Some(members) = daemon.coordinator.members(local) else {
            return;
        };
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(other) = &host.daemon else { continue };
            let now = life(Epoch {
                incarnation: other.incarnation,
                number: other.published.epoch.number,
            });
            if members.members.get(&host.pnn) == Some(&now) {
                self.check.admitted.insert((index, now));
                continue;
            }
            let serves = other
                .authority
                .states()
                .1
                .held_at(host.clock.local(self.now))
                && self.check.admitted.contains(&(index, now));
            if serves && !members.donors.contains(host.pnn) {
                let text =
                    format!("node {leader} leaves node {index} out, whose right runs: {members:?}");
                self.broken("DATA-5", text);
                return;
            }
        }
    }

    /// A node that answers for the address now.
    pub fn serving(&self, address: IpAddr) -> Option<usize> {
        self.hosts.iter().position(|host| {
            host.powered && host.kernel.passes(address, host.clock.local(self.now))
        })
    }

    /// Addresses that some good, willing node could host.
    fn required(&self) -> Vec<usize> {
        let quorum = if self.options.authority == Authority::Lock {
            1
        } else {
            self.list.len() / 2 + 1
        };
        if self.check.good.len() < quorum {
            return Vec::new();
        }
        let willing: Vec<usize> = self
            .check
            .good
            .iter()
            .copied()
            .filter(|node| {
                self.hosts[*node].daemon.as_ref().is_some_and(|daemon| {
                    daemon.leaving.is_none()
                        && !daemon.info.flags.intersects(
                            NodeFlags::DISABLED | NodeFlags::BANNED | NodeFlags::STOPPED,
                        )
                })
            })
            .collect();
        (0..self.addresses.len())
            .filter(|address| {
                let mut fit = willing.iter().map(|node| !self.hosts[*node].bad[*address]);
                if self.plan.rough_end {
                    // A leader outside may reach a quorum and yet not every good node.
                    !willing.is_empty() && fit.all(|fit| fit)
                } else {
                    fit.any(|fit| fit)
                }
            })
            .collect()
    }

    /// Why an address is not served, as the daemons see it.
    fn explain(&mut self, address: IpAddr) {
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            let Some(daemon) = &host.daemon else {
                self.say(|| format!("node {index}: no daemon"));
                continue;
            };
            let info = &daemon.info;
            let mut line = format!(
                "node {index}: {:?} flags={:?} frozen={} epoch={:?} holds={:?}",
                info.run_state,
                info.flags,
                host.frozen,
                daemon.published.epoch,
                daemon.coordinator.holder().holds(),
            );
            if let Some(leader) = daemon.coordinator.leader() {
                let (target, may) = leader.whereabouts(address);
                let able = daemon.coordinator.situation().able.get(&address).copied();
                let refusals: Vec<_> = (0..self.hosts.len())
                    .map(|node| leader.refusal(super::world::pnn(node), address))
                    .collect();
                let _ = std::fmt::Write::write_fmt(
                    &mut line,
                    format_args!(
                        " leads {:?} target={target:?} may={may:?} able={able:?} {refusals:?}",
                        leader.term()
                    ),
                );
            }
            self.say(|| line);
        }
    }

    /// ADDR-2, when faults are over.
    pub fn check_addresses(&mut self) {
        let at = self.now + LOOK;
        self.schedule(at, Event::Check);
        let Some(since) = self.check.quiet_since else {
            return;
        };
        let required = self.required();
        if required.is_empty() {
            return;
        }
        let missing = required
            .iter()
            .find(|index| self.serving(self.addresses[**index]).is_none());
        let Some(missing) = missing else {
            if self.check.served_since.is_none() {
                self.check.served_since = Some(self.now);
                let took = self.now.since(since);
                self.stats.recovery_ms = self.stats.recovery_ms.max(took.as_millis() as u64);
                self.stats.recovered = true;
                self.say(|| format!("all required addresses are served after {took:?}"));
            }
            return;
        };
        let address = self.addresses[*missing];
        let mut bound = self.options.profile.recovery_bound();
        if self.options.authority != Authority::Majority {
            // Whoever held it before, and then the waiting for its validity; one claim may
            // disturb another.
            bound += self.lock_times().settle + self.validity() * 2;
        }
        if self.plan.rough_end {
            // A leader outside with half of its links broken notices when they break, and waits
            // for who does not talk; then the same again by the next one.
            bound += self.habits.idle + Duration::from_secs(4);
        }
        // What was served may move; what was never served, or not for long, is missing.
        let gap = self
            .check
            .gaps
            .get(*missing)
            .and_then(|gap| gap.since)
            .unwrap_or(since);
        if self.now.since(gap) > MOVE {
            self.check.served_since = None;
        }
        if self.now.since(since) > bound && self.now.since(gap) > MOVE {
            self.explain(address);
            let good = &self.check.good;
            let text =
                format!("{address} is not served {bound:?} after the last fault; good {good:?}");
            self.broken("ADDR-2", text);
        }
    }
}
