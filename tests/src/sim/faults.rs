//! What goes wrong, and what operators do meanwhile.

use std::time::Duration;

use ctdb_wire::ids::{NodeFlags, NodeSet};
use rand::Rng as _;

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
    /// The record of the old list is gone at last, and the daemon takes the new one on.
    TakeOn {
        node: usize,
        voters: NodeSet,
        first: bool,
    },
    /// The operator's command tells the leader's node, until one has taken the list on.
    TellFirst(NodeSet),
    /// A clock runs beyond the margin, or all but stands still, for that long.
    Clock {
        node: usize,
        drift_ppm: i64,
        length: Duration,
    },
    /// It runs within the margin again.
    ClockGood { node: usize },
    /// The disk answers nothing for that long.
    DiskHangs { node: usize, length: Duration },
    /// What was on the disk is lost.
    DiskLost { node: usize },
    /// All nodes are stopped in order and started again, one after the other.
    Rolling { gap: Duration, again: Duration },
    /// Power of many is lost at once, and comes back at once.
    Blackout { nodes: u64, again: Duration },
    /// The leader is removed from the files of all others, and before anybody reloads them the
    /// others lose power, so that they start with the new list while it acts by the old one.
    Strand,
    /// A node is cut off while two others are added, and meets with as many as its old list
    /// needs when the new one's majority is elsewhere.
    Stale { node: usize },
    /// Waiting for that.
    StaleWatch {
        node: usize,
        old: NodeSet,
        left: u32,
    },
    /// An order is stuck on its way while another leader is elected, and comes then.
    Stuck { node: usize },
    /// Waiting for that.
    StuckWatch {
        leader: usize,
        node: usize,
        left: u32,
    },
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
    pub drift: i64,
    /// The nodes list changes.
    pub lists: bool,
    /// V of the cluster lock.
    pub validity: Duration,
    /// Whether some nodes are left behind a broken network or without power at the end.
    pub rough_end: bool,
    /// Each address is one node's until the faults are over: it comes back there, and nowhere else.
    pub alone: bool,
    /// The node that had the last fault.
    focus: usize,
}

pub const KINDS: usize = 27;

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
            alone: false,
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
        // Clocks beyond the margin excuse much, so they are in few runs.
        if !rng.random_bool(0.2) {
            plan.weights[21] = 0;
        }
        plan.weights[25] = if lists { rng.random_range(0..3) } else { 0 };
        let directed = lists && rng.random_bool(0.3);
        if directed {
            // One long story at a time, with little beside it.
            plan.weights = [0; KINDS];
            plan.weights[rng.random_range(0..17)] = 1;
            plan.weights[20] = 1;
            plan.weights[25] = 4;
            plan.mean = Duration::from_millis(2500);
        }
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
        if !directed && rng.random_bool(0.35) {
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
        plan.alone = options.databases && world.side.random_ratio(1, 4);
        world.plan = plan;
        if world.plan.alone {
            world.one_host_each();
        }
        if lists {
            world.start_of_lists(spare);
        }
        world.start_of_records();
        let chaos_end = Real(0) + options.chaos;
        world.schedule(Real(0) + ms(3000), Event::Chaos);
        world.schedule(chaos_end, Event::Quiet);
        world.end = chaos_end + options.profile.recovery_bound() + Duration::from_secs(12);
        world
    }

    pub fn drift_of(&mut self, most: i64) -> i64 {
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
            21 => Fault::Clock {
                node,
                drift_ppm: [-990_000, -500_000, -150_000, 150_000, 1_000_000]
                    [self.rng.random_range(0..5)],
                length: self.some_time(),
            },
            22 if self.rng.random_bool(0.5) => Fault::DiskHangs {
                node,
                length: self.some_time(),
            },
            22 => Fault::DiskLost { node },
            23 => Fault::Rolling {
                gap: self.some_time(),
                again: self.upto(self.timing.promise()),
            },
            24 => Fault::Blackout {
                nodes: self.rng.random_range(0..1 << nodes),
                again: self.upto(Duration::from_millis(500)),
            },
            25 if self.rng.random_bool(0.5) => Fault::Strand,
            25 => Fault::Stale { node },
            26 => Fault::Stuck { node },
            19 => Fault::LockCut {
                node,
                cut: self.rng.random_bool(0.5),
            },
            _ => {
                let flag = [NodeFlags::DISABLED, NodeFlags::BANNED, NodeFlags::STOPPED]
                    [self.rng.random_range(0..3)];
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
            Fault::Rate { node, drift_ppm } if !self.hosts[node].wild => {
                self.set_clock(node, drift_ppm);
            }
            Fault::Rate { .. } => {}
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
            Fault::Reload { node } => {
                self.reload_list(node, None);
            }
            Fault::TakeOn {
                node,
                voters,
                first,
            } => self.give(node, Item::List { voters, first }),
            Fault::TellFirst(voters) => self.tell_first(voters),
            Fault::Clock {
                node,
                drift_ppm,
                length,
            } => {
                self.hosts[node].wild = true;
                self.set_clock(node, drift_ppm);
                self.schedule(now + length, Event::Do(Box::new(Fault::ClockGood { node })));
            }
            Fault::ClockGood { node } => {
                let drift = self.drift_of(self.plan.drift);
                self.clock_good(node, drift);
            }
            Fault::DiskHangs { node, length } => {
                let host = &mut self.hosts[node];
                host.disk_until = host.disk_until.max(now + length);
            }
            Fault::DiskLost { node } => self.hosts[node].acted_under = None,
            Fault::Rolling { gap, again } => {
                for node in 0..self.hosts.len() {
                    let stop = Fault::Stop {
                        node,
                        again: Some(again),
                    };
                    let at = now + gap * node as u32;
                    self.schedule(at, Event::Do(Box::new(stop)));
                }
            }
            Fault::Blackout { nodes, again } => {
                for node in (0..self.hosts.len()).filter(|node| nodes >> node & 1 == 1) {
                    self.power_loss(node, Some(again));
                }
            }
            Fault::Strand
            | Fault::Stale { .. }
            | Fault::StaleWatch { .. }
            | Fault::Stuck { .. }
            | Fault::StuckWatch { .. } => self.story(fault),
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
}
