//! What goes wrong, and what operators do meanwhile.

use std::time::Duration;

use ctdb_wire::heartbeat::Message;
use ctdb_wire::ids::{BootTime, Incarnation, NodeFlags, NodeSet};
use rand::Rng as _;

use super::check::Gap;
use super::clock::{Clock, Real};
use super::net::Quality;
use super::node::{Interrupt, Item, Thread};
use super::options::Authority;
use super::world::{Event, World, pnn};

/// One thing that goes wrong, or that an operator does.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The daemon dies, with or without its guard; started again after that, if at all.
    Crash {
        node: usize,
        guard: bool,
        again: Option<Duration>,
    },
    /// Power is lost; it boots after that, if at all.
    PowerLoss {
        node: usize,
        again: Option<Duration>,
    },
    /// The daemon stands still for that long: at once, or in the middle of a step.
    Freeze {
        node: usize,
        length: Duration,
        within: Option<(Thread, u32)>,
    },
    /// The main loop stands still while the detector lives.
    Hang { node: usize, length: Duration },
    /// The detector thread is not run.
    Stall { node: usize, length: Duration },
    /// Nothing passes from one node to another.
    Block {
        from: usize,
        to: usize,
        datagrams: bool,
        streams: bool,
        blocked: bool,
    },
    /// Two halves, by bit mask.
    Split { half: u64 },
    /// One node against all others.
    Isolate {
        node: usize,
        hears: bool,
        heard: bool,
    },
    /// A way into a node chokes (what goes to it takes that long) before it breaks.
    Choke { node: usize, by: Duration },
    /// Every way is open again.
    Heal,
    /// The network as a whole is better or worse.
    Quality(Quality),
    /// An interface of a node works or not.
    Interface {
        node: usize,
        address: usize,
        up: bool,
    },
    /// A clock runs at another rate.
    Rate { node: usize, drift_ppm: i64 },
    /// Leaves in order; started again after that.
    Stop {
        node: usize,
        again: Option<Duration>,
    },
    /// `ctdb moveip`.
    Move { address: usize, to: usize },
    /// `ctdb ipreallocate` and forced rebalance.
    Reallocate { nodes: u64 },
    /// A node is added to the nodes list, or removed.
    Reload { node: usize },
    /// The lock service answers nobody, or not this node.
    LockHangs { length: Duration },
    /// Its holder loses it without being told.
    LockExpires,
    /// It says yes to everybody.
    LockLies { length: Duration },
    /// This node does not reach it, or does again.
    LockCut { node: usize, cut: bool },
    /// DISABLED, BANNED.
    Flag {
        node: usize,
        flag: NodeFlags,
        on: bool,
    },
}

/// What is drawn from, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Weights of the kinds; their order is that of `World::draw`.
    weights: [u32; KINDS],
    /// Mean distance of faults.
    mean: Duration,
    /// Longest drift, in millionths.
    drift: i64,
    /// The nodes list changes.
    pub lists: bool,
    /// V of the cluster lock.
    pub validity: Duration,
    /// Whether some nodes are left behind a broken network or without power at the end.
    pub rough_end: bool,
    /// The node that had the last fault.
    focus: usize,
}

pub const KINDS: usize = 21;

impl Plan {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self {
            weights: [0; KINDS],
            mean: Duration::MAX,
            drift: 0,
            lists: false,
            validity: Duration::from_secs(5),
            rough_end: false,
            focus: 0,
        }
    }
}

impl World {
    /// A run of random faults, everything drawn from the seed.
    pub fn random(options: super::Options) -> Self {
        use rand::SeedableRng as _;
        // Other numbers than those of the run itself, or the first drawings would be the same.
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(options.seed ^ 0x5eed_0f9a_17b3);
        let drawn = [3, 3, 3, 5, 3, 5, 2, 4, 7, 3][rng.random_range(0..10)];
        let nodes = options.nodes.unwrap_or(drawn);
        let mut world = Self::new(options, nodes, rng.random_range(1..=5));
        let mut plan = Plan::none();
        // Swarm: each run has only some of the kinds, so that rare ones meet.
        for weight in &mut plan.weights {
            *weight = if rng.random_bool(0.5) {
                rng.random_range(1..10)
            } else {
                0
            };
        }
        let longest = [400, 1500, 4000][rng.random_range(0..3)];
        plan.mean = Duration::from_millis(rng.random_range(100..longest));
        plan.drift = [0, 1_000, 90_000, 90_000][rng.random_range(0..4)];
        plan.rough_end = rng.random_bool(0.5);
        plan.validity = Duration::from_millis([1000, 2000, 5000][rng.random_range(0..3)]);
        if options.authority == Authority::Majority {
            plan.weights[17..20].fill(0);
        }
        let lists = options.authority != Authority::Lock && nodes > 2 && rng.random_bool(0.25);
        plan.weights[20] = if lists { 10 } else { 0 };
        let spare = rng.random_range(0..=nodes - 2.min(nodes)).min(2);
        let ms = Duration::from_millis;
        world.habits.wakeup = [ms(1) / 20, ms(1), ms(8)][rng.random_range(0..3)];
        world.habits.take = [ms(2), ms(10), ms(300)][rng.random_range(0..3)];
        world.habits.take_fails = [0.0, 0.0, 0.02, 0.2][rng.random_range(0..4)];
        world.habits.startup = [ms(5), ms(500)][rng.random_range(0..2)];
        world.habits.idle = [ms(1500), ms(5000)][rng.random_range(0..2)];
        if rng.random_bool(0.6) {
            world.net.quality = Quality {
                loss: [0.0, 0.01, 0.1, 0.3][rng.random_range(0..4)],
                double: [0.0, 0.05][rng.random_range(0..2)],
                late: [0.0, 0.01, 0.2, 0.5][rng.random_range(0..4)],
                late_by: [ms(3), ms(60), ms(600), ms(1200), ms(3000)][rng.random_range(0..5)],
            };
        }
        if rng.random_bool(0.35) {
            // Slow answers, clocks at both ends of what is allowed, and nodes cut off: what the
            // margin is for.
            plan.drift = 90_000;
            plan.weights[8] = 30;
            plan.weights[9] = 10;
            world.net.quality.late = 0.7;
            world.net.quality.late_by = ms(rng.random_range(100..1000));
        }
        let together = rng.random_bool(0.5);
        for node in 0..nodes {
            let drift = world.drift_of(plan.drift);
            let local = world.local(node);
            world.hosts[node].clock = Clock::new(Real(0), local, drift);
            let wait = if together {
                ms(0)
            } else {
                ms(rng.random_range(0..6000))
            };
            world.schedule(Real(0) + wait, Event::Start { node });
        }
        world.plan = plan;
        if lists {
            world.start_of_lists(spare);
        }
        let chaos_end = Real(0) + options.chaos;
        world.schedule(Real(0) + ms(3000), Event::Chaos);
        world.schedule(chaos_end, Event::Quiet);
        world.end = chaos_end + options.profile.recovery_bound() + Duration::from_secs(12);
        world
    }

    fn drift_of(&mut self, most: i64) -> i64 {
        match self.rng.random_range(0..4) {
            0 => most,
            1 => -most,
            _ => self.rng.random_range(-most..=most),
        }
    }

    /// Lengths around those where something ends are more interesting than others.
    fn some_time(&mut self) -> Duration {
        let timing = self.timing;
        let base = match self.rng.random_range(0..7) {
            0 => timing.queue * 3,
            1 => timing.interval,
            2 => timing.lease,
            3 => timing.promise(),
            4 => timing.promise() * 2,
            5 => Duration::from_secs(6),
            _ => return self.upto(timing.promise() * 3),
        };
        base.mul_f64(self.rng.random_range(0.5..1.5))
    }

    /// The next fault of the plan.
    pub fn chaos(&mut self) {
        if self.check.quiet_since.is_some() {
            return;
        }
        let mean = if self.rng.random_bool(0.3) {
            self.plan.mean / 8
        } else {
            self.plan.mean
        };
        let wait = mean.mul_f64(-self.rng.random_range(0.0001_f64..1.0).ln());
        let at = self.now + wait;
        self.schedule(at, Event::Chaos);
        let total: u32 = self.plan.weights.iter().sum();
        if total == 0 {
            return;
        }
        let mut point = self.rng.random_range(0..total);
        let kind = self.plan.weights.iter().position(|weight| {
            let here = point < *weight;
            point = point.saturating_sub(*weight);
            here
        });
        self.stats.coverage.faults[kind.unwrap_or_default()] += 1;
        let fault = self.draw(kind.unwrap_or_default());
        self.stats.faults += 1;
        self.inject(&fault);
    }

    fn draw(&mut self, kind: usize) -> Fault {
        let nodes = self.hosts.len();
        // Troubles come together: often the node that had the last one has the next one, too.
        let node = if self.rng.random_bool(0.5) {
            self.plan.focus.min(nodes - 1)
        } else {
            self.rng.random_range(0..nodes)
        };
        self.plan.focus = node;
        let other = (node + self.rng.random_range(1..nodes.max(2))) % nodes;
        let address = self.rng.random_range(0..self.addresses.len());
        let later = |world: &mut Self| {
            let time = world.some_time();
            let quick = Duration::from_millis(world.rng.random_range(5..300));
            Some(if world.rng.random_bool(0.5) {
                quick
            } else {
                time
            })
        };
        match kind {
            0 => {
                let guard = self.rng.random_bool(0.8);
                Fault::Crash {
                    node,
                    guard,
                    again: later(self),
                }
            }
            1 => Fault::PowerLoss {
                node,
                again: later(self),
            },
            2 => Fault::Freeze {
                node,
                length: self.some_time(),
                within: None,
            },
            3 => {
                let thread =
                    [Thread::Detector, Thread::Main, Thread::Executor][self.rng.random_range(0..3)];
                let within = Some((thread, self.rng.random_range(0..12)));
                Fault::Freeze {
                    node,
                    length: self.some_time(),
                    within,
                }
            }
            4 => Fault::Hang {
                node,
                length: self.some_time(),
            },
            5 => Fault::Stall {
                node,
                length: self.some_time(),
            },
            6 | 7 => {
                let blocked = self.rng.random_bool(0.7);
                let (datagrams, streams) =
                    [(true, true), (true, true), (true, false), (false, true)]
                        [self.rng.random_range(0..4)];
                Fault::Block {
                    from: node,
                    to: other,
                    datagrams,
                    streams,
                    blocked,
                }
            }
            8 => match self.rng.random_range(0..4) {
                0 => Fault::Split {
                    half: self.rng.random_range(0..1 << nodes),
                },
                1 => Fault::Isolate {
                    node,
                    hears: false,
                    heard: true,
                },
                2 => Fault::Isolate {
                    node,
                    hears: true,
                    heard: false,
                },
                _ => Fault::Isolate {
                    node,
                    hears: false,
                    heard: false,
                },
            },
            9 => Fault::Heal,
            10 => {
                let ms = Duration::from_millis;
                Fault::Quality(Quality {
                    loss: [0.0, 0.02, 0.3, 0.7][self.rng.random_range(0..4)],
                    double: 0.02,
                    late: [0.0, 0.05, 0.5][self.rng.random_range(0..3)],
                    late_by: [ms(5), ms(200), ms(2500)][self.rng.random_range(0..3)],
                })
            }
            11 => Fault::Interface {
                node,
                address,
                up: self.rng.random_bool(0.6),
            },
            12 => Fault::Rate {
                node,
                drift_ppm: self.drift_of(self.plan.drift),
            },
            13 => Fault::Stop {
                node,
                again: later(self),
            },
            14 if self.rng.random_bool(0.7) => Fault::Move { address, to: other },
            14 => Fault::Reallocate {
                nodes: self.rng.random_range(0..1 << nodes),
            },
            15 => {
                let by = self.timing.lease.mul_f64(self.rng.random_range(0.1..1.0));
                Fault::Choke { node, by }
            }
            17 => Fault::LockHangs {
                length: self.some_time(),
            },
            18 if self.rng.random_bool(0.1) => Fault::LockLies {
                length: self.some_time(),
            },
            18 => Fault::LockExpires,
            20 => Fault::Reload { node },
            19 => Fault::LockCut {
                node,
                cut: self.rng.random_bool(0.5),
            },
            _ => {
                let flag = [NodeFlags::DISABLED, NodeFlags::BANNED][self.rng.random_range(0..2)];
                Fault::Flag {
                    node,
                    flag,
                    on: self.rng.random_bool(0.4),
                }
            }
        }
    }

    /// Makes it happen.
    pub fn inject(&mut self, fault: &Fault) {
        self.say(|| format!("--- {fault:?}"));
        let now = self.now;
        match *fault {
            Fault::Crash { node, guard, again } => {
                self.crash(node, guard);
                if let Some(again) = again {
                    self.schedule(now + again, Event::Start { node });
                }
            }
            Fault::PowerLoss { node, again } => self.power_loss(node, again),
            Fault::Freeze {
                node,
                length,
                within: None,
            } => self.freeze(node, length),
            Fault::Freeze {
                node,
                length,
                within: Some((thread, after)),
            } => {
                self.hosts[node].interrupt = Some(Interrupt {
                    thread,
                    after,
                    length,
                });
            }
            Fault::Hang { node, length } => {
                if let Some(daemon) = &mut self.hosts[node].daemon {
                    daemon.main_hung = daemon.main_hung.max(now + length);
                }
            }
            Fault::Stall { node, length } => {
                if let Some(daemon) = &mut self.hosts[node].daemon {
                    daemon.detector_stalled = daemon.detector_stalled.max(now + length);
                }
            }
            Fault::Block {
                from,
                to,
                datagrams,
                streams,
                blocked,
            } => {
                if datagrams {
                    self.net.datagrams[from][to] = blocked;
                }
                if streams {
                    self.net.streams[from][to] = blocked;
                }
            }
            Fault::Split { half } => {
                let nodes = self.hosts.len();
                for a in 0..nodes {
                    for b in 0..nodes {
                        self.net.block(a, b, (half >> a ^ half >> b) & 1 == 1);
                    }
                }
            }
            Fault::Isolate { node, hears, heard } => {
                for peer in 0..self.hosts.len() {
                    self.net.block(peer, node, !hears);
                    self.net.block(node, peer, !heard);
                }
            }
            Fault::Choke { node, by } => {
                // One or two heartbeats are still answered, late; later ones do not leave.
                let length = self
                    .timing
                    .interval
                    .mul_f64(self.rng.random_range(0.5..2.0));
                self.net.choked = Some((node, by, now + length));
                let cut = Fault::Isolate {
                    node,
                    hears: true,
                    heard: false,
                };
                self.schedule(now + length, Event::Do(Box::new(cut)));
            }
            Fault::Heal => self.net.heal(),
            Fault::Quality(quality) => self.net.quality = quality,
            Fault::Interface { node, address, up } => {
                self.hosts[node].bad[address] = !up;
                self.give(node, Item::Availability(address, up));
            }
            Fault::Rate { node, drift_ppm } => {
                let host = &mut self.hosts[node];
                host.kernel.settle(now, &host.clock);
                host.clock.change_rate(now, drift_ppm);
            }
            Fault::Stop { node, again } => {
                self.give(node, Item::Stop);
                if let Some(again) = again {
                    let at = now + again + Duration::from_secs(4);
                    self.schedule(at, Event::Start { node });
                }
            }
            Fault::Move { address, to } => {
                let address = self.addresses[address];
                for node in 0..self.hosts.len() {
                    self.give(node, Item::Move(address, pnn(to)));
                }
            }
            Fault::Reallocate { nodes } => {
                for node in 0..self.hosts.len() {
                    self.give(node, Item::Reallocate(NodeSet(nodes)));
                }
            }
            Fault::Reload { node } => self.reload_list(node),
            Fault::LockHangs { length } => {
                self.lock.hangs_until = self.lock.hangs_until.max(now + length);
            }
            Fault::LockExpires => self.lock.holder = None,
            Fault::LockLies { length } => self.lock_lies(length),
            Fault::LockCut { node, cut } => {
                self.lock.cut = self.lock.cut & !(1 << node) | u64::from(cut) << node;
            }
            Fault::Flag { node, flag, on } => self.give(node, Item::Flag(flag, on)),
        }
    }

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

    fn power_loss(&mut self, node: usize, again: Option<Duration>) {
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
        host.clock = Clock::new(now, local, drift);
        self.say(|| format!("node {node}: booted"));
        self.start(node);
    }

    /// Faults are over; what is broken now stays broken.
    pub fn quiet(&mut self) {
        let nodes = self.hosts.len();
        let quorum = nodes / 2 + 1;
        self.net.heal();
        self.net.quality = Quality::GOOD;
        self.habits.take = self.habits.take.min(Duration::from_millis(20));
        self.habits.take_fails = 0.0;
        self.habits.startup = Duration::from_millis(5);
        let mut good: Vec<usize> = (0..nodes).collect();
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
        let flags = NodeFlags::BANNED | NodeFlags::DISABLED;
        for node in 0..nodes {
            for address in 0..self.addresses.len() {
                if self.hosts[node].bad[address] && self.rng.random_bool(0.7) {
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
