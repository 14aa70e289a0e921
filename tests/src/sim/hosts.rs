//! Daemons and machines that stand still, die and come back, and the end of the faults.

use std::time::Duration;

use ctdb_core::cold;
use ctdb_wire::heartbeat::Message;
use ctdb_wire::ids::{BootTime, Incarnation, NodeFlags};
use rand::Rng as _;

use super::check::Gap;
use super::clock::Clock;
use super::faults::Fault;
use super::net::Quality;
use super::node::Item;
use super::world::{Event, World};

impl World {
    /// SIGSTOP.
    pub fn freeze(&mut self, node: usize, length: Duration) {
        let at = self.now + length;
        let host = &mut self.hosts[node];
        if host.daemon.is_none() || host.frozen {
            return;
        }
        host.frozen = true;
        host.freezes += 1;
        let freeze = host.freezes;
        let life = host.lives;
        if self.lock.owner == (node, life)
            && let Some(tenure) = self.lock.holder
            && length > self.timing.lease
        {
            // The guard ends the helper of a daemon that is stopped for longer than its right.
            let over = self.now + self.timing.lease.mul_f64(1.1);
            self.schedule(over, Event::LockOver { tenure });
        }
        self.say(|| format!("node {node}: daemon stands still for {length:?}"));
        self.schedule(at, Event::Thaw { node, freeze });
    }

    /// SIGCONT.
    pub fn thaw(&mut self, node: usize, freeze: u64) {
        let host = &mut self.hosts[node];
        if !host.frozen || host.freezes != freeze {
            return;
        }
        host.frozen = false;
        let held = std::mem::take(&mut host.held);
        self.say(|| format!("node {node}: daemon goes on"));
        for event in held {
            // The threads go on in any order.
            let at = self.now + self.upto(Duration::from_millis(2));
            self.schedule(at, event);
        }
    }

    /// The process is over; its kernel is as it was.
    pub fn die(&mut self, node: usize) -> Option<(Incarnation, Vec<Incarnation>)> {
        let host = &mut self.hosts[node];
        host.frozen = false;
        host.held.clear();
        host.interrupt = None;
        let daemon = host.daemon.take()?;
        self.orphan_lock(node, daemon.life);
        self.close_all(node, true);
        Some((daemon.incarnation, daemon.sessions))
    }

    pub fn crash(&mut self, node: usize, guard: bool) {
        let boot = self.hosts[node].boot;
        let Some((incarnation, peers)) = self.die(node) else {
            return;
        };
        self.say(|| format!("node {node}: daemon dies, guard={guard}"));
        if guard {
            let late = if self.rng.random_bool(0.1) {
                100_000
            } else {
                3_000
            };
            let at = self.now + Duration::from_micros(self.rng.random_range(50..late));
            self.schedule(
                at,
                Event::Guard {
                    node,
                    boot,
                    incarnation,
                    left: 4,
                    peers,
                },
            );
        }
    }

    /// The guard ends the deadlines, waits until nothing can be queued, and says so (R19).
    pub fn guard(
        &mut self,
        node: usize,
        boot: u64,
        incarnation: Incarnation,
        left: u32,
        peers: &[Incarnation],
    ) {
        let now = self.now;
        let host = &mut self.hosts[node];
        if host.boot != boot || !host.powered {
            return;
        }
        let mut next = now + Duration::from_millis(10);
        if left == 4 {
            host.kernel.end_all(now, &host.clock);
            next = host
                .clock
                .real(host.clock.local(now) + self.timing.settle());
        } else {
            for (peer, life) in peers.iter().enumerate() {
                self.send(
                    node,
                    peer,
                    incarnation,
                    *life,
                    Message::Gone { incarnation },
                );
            }
        }
        if left > 1 {
            let peers = peers.to_vec();
            self.schedule(
                next,
                Event::Guard {
                    node,
                    boot,
                    incarnation,
                    left: left - 1,
                    peers,
                },
            );
        }
    }

    pub fn power_loss(&mut self, node: usize, again: Option<Duration>) {
        let now = self.now;
        self.say(|| format!("node {node}: power lost"));
        let host = &mut self.hosts[node];
        host.powered = false;
        host.boot += 1;
        host.frozen = false;
        host.held.clear();
        host.interrupt = None;
        let life = host.daemon.take().map(|daemon| daemon.life);
        host.kernel.lost(now);
        host.sessions.end_all();
        if let Some(life) = life {
            self.orphan_lock(node, life);
        }
        // Nobody is told; peers find out.
        if let Some(again) = again {
            self.schedule(now + again, Event::Boot { node });
        }
    }

    /// The machine is up again, with a new clock.
    pub fn boot(&mut self, node: usize) {
        if self.hosts[node].powered {
            return;
        }
        let drift = self.drift_of(self.plan.drift);
        let local = BootTime(self.rng.random_range(8_000_000_000..60_000_000_000));
        let now = self.now;
        let host = &mut self.hosts[node];
        host.powered = true;
        host.wild = false;
        host.ran_since_boot = false;
        host.clock = Clock::new(now, local, drift);
        self.say(|| format!("node {node}: booted"));
        if !self.side.random_ratio(1, 8) {
            self.start(node);
            return;
        }
        // The daemon is started by hand, and perhaps the disk is a new one. The minute after which
        // a first life believes its list is over when promises of before the boot are, just so.
        let promise = self.timing.promise();
        let (host, limit) = (&mut self.hosts[node], BootTime::ZERO + cold::SINCE_BOOT);
        let local = BootTime(limit.0 - (promise * 6 / 5).as_nanos() as u64);
        host.clock = Clock::new(now, local, drift);
        if self.side.random_ratio(1, 2) {
            host.acted_under = None;
        }
        let at = now + promise.mul_f64(self.side.random_range(0.0..3.0));
        self.schedule(at, Event::Start { node });
    }

    /// Faults are over; what is broken now stays broken.
    pub fn quiet(&mut self) {
        let nodes = self.hosts.len();
        let quorum = self.list.len() / 2 + 1;
        self.net.heal();
        self.net.quality = Quality::GOOD;
        self.habits.take = self.habits.take.min(Duration::from_millis(20));
        self.habits.take_fails = 0.0;
        self.habits.startup = Duration::from_millis(5);
        // Who is not on the list ends below.
        let mut good: Vec<usize> = (0..nodes)
            .filter(|node| self.list.contains(super::world::pnn(*node)))
            .collect();
        if self.plan.rough_end {
            // Some stay outside: dead, frozen, or behind a network that is broken in any way.
            while good.len() > quorum && self.rng.random_bool(0.7) {
                let outside = good.remove(self.rng.random_range(0..good.len()));
                match self.rng.random_range(0..4) {
                    0 => {
                        self.power_loss(outside, None);
                        self.hosts[outside].stays_down = true;
                    }
                    1 => {
                        self.crash(outside, false);
                        self.hosts[outside].stays_down = true;
                    }
                    2 => self.freeze(outside, Duration::from_hours(1)),
                    _ => {}
                }
                let share = [1.0, 0.6, 0.2][self.rng.random_range(0..3)];
                for peer in 0..nodes {
                    for (from, to) in [(peer, outside), (outside, peer)] {
                        self.net.datagrams[from][to] = self.rng.random_bool(share);
                        self.net.streams[from][to] = self.rng.random_bool(share);
                    }
                }
            }
        }
        let flags = NodeFlags::BANNED | NodeFlags::DISABLED | NodeFlags::STOPPED;
        for node in 0..nodes {
            if self.hosts[node].wild {
                let drift = self.drift_of(self.plan.drift);
                self.clock_good(node, drift);
            }
            self.hosts[node].disk_until = self.now;
            for address in 0..self.addresses.len() {
                if self.hosts[node].bad[address] && (self.plan.alone || self.rng.random_bool(0.7)) {
                    self.inject(&Fault::Interface {
                        node,
                        address,
                        up: true,
                    });
                }
            }
            self.hosts[node].interrupt = None;
            if !good.contains(&node) {
                continue;
            }
            let now = self.now;
            if !self.hosts[node].powered {
                self.boot(node);
            }
            if self.hosts[node].frozen {
                let freeze = self.hosts[node].freezes;
                self.thaw(node, freeze);
            }
            if let Some(daemon) = &mut self.hosts[node].daemon {
                daemon.inbox.retain(|item| !matches!(item, Item::Stop));
                daemon.main_hung = daemon.main_hung.min(now);
                daemon.detector_stalled = daemon.detector_stalled.min(now);
            }
            self.inject(&Fault::Flag {
                node,
                flag: flags,
                on: false,
            });
            if self.hosts[node]
                .daemon
                .as_ref()
                .is_some_and(|daemon| daemon.leaving.is_some())
            {
                self.crash(node, true);
            }
            self.schedule(now + Duration::from_millis(20), Event::Start { node });
            self.wake_detector(node, now);
            self.wake_main(node, now);
        }
        self.lock.cut = 0;
        self.lock.hangs_until = self.now;
        self.lock.lies_until = self.lock.lies_until.min(self.now);
        for node in (0..nodes).filter(|node| !good.contains(node)) {
            self.lock.cut |= 1 << node;
            if self.lock.owner.0 == node {
                self.lock.holder = None;
            }
        }
        self.end_of_lists(&mut good);
        self.say(|| format!("--- faults are over; good {good:?}"));
        self.check.good = good;
        self.check.quiet_since = Some(self.now);
        self.check.gaps = vec![Gap::default(); self.addresses.len()];
        let now = self.now;
        self.schedule(now, Event::Check);
    }
}
