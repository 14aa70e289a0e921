//! The event loop: one thread, one seed, virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ctdb_core::authority::{self, Authority, Timing};
use ctdb_core::cold;
use ctdb_core::coordinator::{self, Coordinator};
use ctdb_core::planted::Planted;
use ctdb_wire::ids::{BootTime, Epoch, Incarnation, NodeFlags, NodeSet, Pnn, RunState};
use ctdb_wire::peer::{AddressInfo, NodeInfo, PeerFrame};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::check::Checker;
use super::clock::{Clock, Real};
use super::faults::Plan;
use super::kernel::Kernel;
use super::net::Net;
use super::node::{Daemon, Datagram, Host, Item};
use super::options::{Authority as Decides, Options, Outcome, Stats, Violation};
use super::sessions::Sessions;
use super::trace::Trace;

/// Something that happens at a moment of real time. `life` is that of the daemon concerned.
#[derive(Clone, Debug)]
pub enum Event {
    /// The detector thread wakes up; of two scheduled wake-ups the newer number counts.
    Detector { node: usize, life: u64, number: u64 },
    /// The main loop wakes up.
    Main { node: usize, life: u64, number: u64 },
    /// The executor thread goes on.
    Executor { node: usize, life: u64, number: u64 },
    /// Packets of released addresses have left.
    Settled {
        node: usize,
        life: u64,
        addresses: Vec<IpAddr>,
    },
    /// The databases of a node have been through a recovery in the right of that epoch.
    Recovered {
        node: usize,
        life: u64,
        epoch: Epoch,
    },
    /// A datagram arrives.
    Datagram { to: usize, datagram: Box<Datagram> },
    /// A frame arrives.
    Frame {
        link: u64,
        end: usize,
        frame: PeerFrame,
    },
    /// The other end of a link closed.
    Closed { link: u64, end: usize },
    /// Links are looked at: what stalled goes on, what is silent breaks.
    Links,
    /// Two nodes without link try to get one.
    Dial { a: usize, b: usize },
    /// The same, once: a daemon that starts dials at once.
    Link { a: usize, b: usize },
    /// The guard of a dead daemon: ends the deadlines, then says so `left` times.
    Guard {
        node: usize,
        boot: u64,
        incarnation: Incarnation,
        left: u32,
        peers: Vec<Incarnation>,
    },
    /// A daemon starts.
    Start { node: usize },
    /// A machine has booted.
    Boot { node: usize },
    /// A frozen daemon goes on.
    Thaw { node: usize, freeze: u64 },
    /// The next fault.
    Chaos,
    /// The second half of a fault.
    Do(Box<super::faults::Fault>),
    /// A question reaches the lock service.
    LockAsked {
        node: usize,
        life: u64,
        asked_at: BootTime,
        question: super::lock::Question,
    },
    /// Its answer reaches the daemon.
    LockSaid {
        node: usize,
        life: u64,
        news: Option<authority::LockNews>,
    },
    /// The service notices that a tenure is over.
    LockOver { tenure: u64 },
    /// Faults are over.
    Quiet,
    /// Addresses are looked at.
    Check,
}

struct Scheduled {
    at: Real,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// How the hosts behave, drawn once for each run.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Wake-ups of threads are late by up to this.
    pub wakeup: Duration,
    /// An address takes up to this to be taken.
    pub take: Duration,
    /// Share of takeovers that fail.
    pub take_fails: f64,
    /// From the start of a daemon to its first monitor event and the like.
    pub startup: Duration,
    /// An idle link breaks after this.
    pub idle: Duration,
}

/// A whole cluster.
pub struct World {
    pub now: Real,
    pub rng: ChaCha8Rng,
    /// For what was thought of later, so that runs without it are what they were.
    pub side: ChaCha8Rng,
    pub timing: Timing,
    pub hosts: Vec<Host>,
    pub net: Net,
    pub lock: super::lock::Service,
    /// The newest nodes list.
    pub list: NodeSet,
    /// Whether the leader's node has taken it on; only then the others are told.
    pub list_begun: bool,
    /// A clock was beyond the margin, so that nothing about rights is promised before that.
    pub clocks_excused_until: Real,
    pub addresses: Vec<IpAddr>,
    pub habits: Habits,
    pub plan: Plan,
    pub check: Checker,
    pub trace: Trace,
    pub stats: Stats,
    pub options: Options,
    pub violation: Option<Violation>,
    pub end: Real,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
}

impl World {
    /// A cluster of `nodes` hosts, powered off; a scenario or plan brings it to life.
    pub fn new(options: Options, nodes: usize, addresses: usize) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(options.seed);
        let side = ChaCha8Rng::seed_from_u64(options.seed ^ 0x7369_6465);
        let mut world = Self {
            now: Real(0),
            rng,
            side,
            timing: options.profile.timing(),
            hosts: Vec::new(),
            net: Net::new(nodes),
            lock: super::lock::Service::default(),
            list: (0..nodes).map(pnn).collect(),
            list_begun: true,
            clocks_excused_until: Real(0),
            addresses: (0..addresses)
                .map(|i| IpAddr::V4(Ipv4Addr::new(10, 0, 0, i as u8 + 1)))
                .collect(),
            habits: Habits {
                wakeup: Duration::from_micros(200),
                take: Duration::from_millis(5),
                take_fails: 0.0,
                startup: Duration::from_millis(20),
                idle: Duration::from_secs(5),
            },
            plan: Plan::none(),
            check: Checker::default(),
            trace: Trace::new(options.trace),
            stats: Stats::default(),
            options,
            violation: None,
            end: Real::NEVER,
            queue: BinaryHeap::new(),
            number: 0,
        };
        for index in 0..nodes {
            let local = BootTime(
                world
                    .rng
                    .random_range(20_000_000_000..1_000_000_000_000_000),
            );
            world.hosts.push(Host {
                // Node counts are small.
                pnn: pnn(index),
                powered: true,
                boot: 0,
                clock: Clock::new(Real(0), local, 0),
                kernel: Kernel::default(),
                sessions: Sessions::default(),
                daemon: None,
                frozen: false,
                freezes: 0,
                held: Vec::new(),
                interrupt: None,
                bad: vec![false; addresses],
                file: (0..nodes).map(pnn).collect(),
                acted_under: Some((0..nodes).map(pnn).collect()),
                ran_since_boot: false,
                disk_until: Real(0),
                wild: false,
                lives: 0,
                stays_down: false,
            });
        }
        for a in 0..nodes {
            for b in a + 1..nodes {
                world.schedule(Real(0), Event::Dial { a, b });
            }
        }
        world.schedule(Real(0), Event::Links);
        world
    }

    /// Puts an event into the queue.
    pub fn schedule(&mut self, at: Real, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Scheduled {
            at: at.max(self.now),
            number: self.number,
            event,
        }));
    }

    /// Adds a line to the trace.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        if self.trace.on() {
            let line = line();
            self.trace.push(self.now, line);
        }
    }

    /// A random duration below `below`.
    pub fn upto(&mut self, below: Duration) -> Duration {
        below.mul_f64(self.rng.random::<f64>())
    }

    /// This host's clock.
    pub fn local(&self, node: usize) -> BootTime {
        self.hosts[node].clock.local(self.now)
    }

    /// Runs until the end or the first broken promise.
    pub fn run(mut self) -> Outcome {
        self.run_until(self.end);
        self.stats.simulated_ms = self.now.0 / 1_000_000;
        Outcome {
            violation: self.violation,
            stats: self.stats,
            trace: self.trace.text(),
        }
    }

    /// Runs until `end`, or the first broken promise.
    pub fn run_until(&mut self, end: Real) {
        while self.violation.is_none() {
            let due = self
                .queue
                .peek()
                .is_some_and(|Reverse(next)| next.at <= end);
            if !due {
                break;
            }
            let Some(Reverse(next)) = self.queue.pop() else {
                break;
            };
            self.now = next.at;
            self.stats.events += 1;
            self.step(next.event);
            self.check_rights();
        }
        self.now = self.now.max(end.min(self.end));
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Detector { node, life, .. }
            | Event::Main { node, life, .. }
            | Event::Executor { node, life, .. }
            | Event::Recovered { node, life, .. }
            | Event::Settled { node, life, .. } => {
                let host = &mut self.hosts[node];
                if host
                    .daemon
                    .as_ref()
                    .is_none_or(|daemon| daemon.life != life)
                {
                    return;
                }
                if host.frozen {
                    host.held.push(event);
                    return;
                }
                match event {
                    Event::Detector { number, .. } => self.detector(node, number),
                    Event::Main { number, .. } => self.main_loop(node, number),
                    Event::Executor { number, .. } => self.executor(node, number),
                    Event::Recovered { epoch, .. } => self.recovered(node, epoch),
                    Event::Settled { addresses, .. } => {
                        self.give(node, Item::Released(addresses));
                    }
                    _ => {}
                }
            }
            Event::Datagram { to, datagram } => self.datagram(to, *datagram),
            Event::Frame { link, end, frame } => self.frame(link, end, frame),
            Event::Closed { link, end } => self.closed(link, end),
            Event::Links => self.look_at_links(),
            Event::Dial { a, b } => self.dial(a, b),
            Event::Link { a, b } => self.try_link(a, b),
            Event::Guard {
                node,
                boot,
                incarnation,
                left,
                peers,
            } => {
                self.guard(node, boot, incarnation, left, &peers);
            }
            Event::Start { node } => self.start(node),
            Event::Boot { node } => self.boot(node),
            Event::Thaw { node, freeze } => self.thaw(node, freeze),
            Event::Chaos => self.chaos(),
            Event::Do(fault) => {
                if self.check.quiet_since.is_none() {
                    self.inject(&fault);
                }
            }
            Event::LockAsked {
                node,
                life,
                asked_at,
                question,
            } => self.lock_asked(node, life, asked_at, question),
            Event::LockSaid { node, life, news } => self.lock_said(node, life, news),
            Event::LockOver { tenure } => self.release_lock(tenure),
            Event::Quiet => self.quiet(),
            Event::Check => self.check_addresses(),
        }
    }

    /// The first broken promise ends the run.
    pub fn broken(&mut self, promise: &'static str, text: String) {
        if self.violation.is_none() {
            self.say(|| format!("*** {promise}: {text}"));
            self.violation = Some(Violation {
                promise,
                at: self.now.seconds(),
                text,
            });
        }
    }

    /// What decides, with its times.
    pub fn mode(&self) -> authority::Mode {
        let times = self.lock_times();
        match self.options.authority {
            Decides::Majority => authority::Mode::Majority,
            Decides::Lock => authority::Mode::Lock(times),
            Decides::Both => authority::Mode::Both(times),
        }
    }

    /// Starts a daemon, if there is none.
    pub fn start(&mut self, node: usize) {
        let planted = self.options.bug.map_or_else(Planted::default, Planted::one);
        let (voters, nodes) = (self.hosts[node].file, self.hosts.len());
        let incarnation = Incarnation(self.rng.random::<u64>() | 1);
        let (now, timing) = (self.now, self.timing);
        let mode = self.mode();
        let host = &mut self.hosts[node];
        if !host.powered || host.daemon.is_some() || host.stays_down || !voters.contains(host.pnn) {
            return;
        }
        host.lives += 1;
        host.frozen = false;
        host.held.clear();
        host.interrupt = None;
        host.kernel.clear(now, &host.clock);
        host.sessions.end_all();
        let local = host.clock.local(now);
        let mut config = authority::Config::majority(host.pnn, incarnation, voters, timing);
        config.planted = planted;
        config.mode = mode;
        let found = cold::Host {
            record: host
                .acted_under
                .take()
                .map_or(cold::Record::Absent, cold::Record::Taken),
            ran_since_boot: std::mem::replace(&mut host.ran_since_boot, true),
            list: voters,
        };
        config.acted_under = cold::acted_under(local, &timing, &found);
        if found.record == cold::Record::Absent {
            let believed = usize::from(config.acted_under.is_some());
            self.stats.unrecorded[believed] += 1;
        }
        let authority = Authority::new(config, local);
        let info = NodeInfo {
            flags: NodeFlags::UNHEALTHY,
            run_state: RunState::FirstRecovery,
            addresses: self
                .addresses
                .iter()
                .zip(&host.bad)
                .map(|(address, bad)| AddressInfo {
                    net: (*address).into(),
                    interfaces: Vec::new(),
                    active: None,
                    available: !bad,
                })
                .collect(),
            ..NodeInfo::default()
        };
        let mut coordinator = Coordinator::new(
            coordinator::Config {
                me: host.pnn,
                voters,
                quorum: if self.options.authority == Decides::Lock {
                    1
                } else {
                    voters.len() / 2 + 1
                },
                deleted: NodeSet::EMPTY,
                list_length: nodes,
                give_up: Duration::from_secs(10),
                home_nodes: BTreeMap::new(),
                failover_disabled: false,
                planted,
            },
            info.clone(),
        );
        // It wants nothing yet.
        coordinator.handle(local, coordinator::Input::Databases(self.options.databases));
        let life = host.lives;
        host.daemon = Some(Box::new(Daemon {
            life,
            incarnation,
            started: local,
            published: Box::new(authority.status(local)),
            authority,
            coordinator,
            socket: std::collections::VecDeque::new(),
            commands: std::collections::VecDeque::new(),
            sessions: vec![Incarnation::NONE; nodes],
            detector_effects: std::collections::VecDeque::new(),
            news: true,
            detector_due: (Real::NEVER, 0),
            detector_stalled: now,
            seen: (0, 2),
            wakeups: 0,
            inbox: std::collections::VecDeque::new(),
            main_effects: std::collections::VecDeque::new(),
            links: vec![None; nodes],
            info,
            eligible: None,
            listed: voters,
            books: authority::Books::default(),
            leaving: None,
            lock: super::lock::Client::default(),
            main_due: (Real::NEVER, 0),
            main_hung: now,
            next_tick: local,
            progress: 0,
            progress_seen: 0,
            through: None,
            jobs: std::collections::VecDeque::new(),
            taking: None,
            executor_due: (Real::NEVER, 0),
        }));
        for peer in (0..nodes).filter(|peer| *peer != node) {
            let at = now + self.upto(Duration::from_millis(30));
            let (a, b) = (node.min(peer), node.max(peer));
            self.schedule(at, Event::Link { a, b });
        }
        self.say(|| format!("node {node}: daemon starts, life {life} {incarnation:?}"));
        self.wake_detector(node, now);
        self.wake_main(node, now);
    }
}

/// Node number of an index.
pub fn pnn(index: usize) -> Pnn {
    match Pnn::new(index as u32) {
        Ok(pnn) => pnn,
        Err(error) => unreachable!("a simulated cluster is small: {error}"),
    }
}
