//! One host with its daemon: detector thread, main loop, executor thread.

use std::collections::VecDeque;
use std::net::IpAddr;

use ctdb_core::authority::{Authority, Books, List, LockNews, Sink, Status};
use ctdb_core::coordinator::{Coordinator, Effect};
use ctdb_core::holder::Work;
use ctdb_wire::heartbeat::Message;
use ctdb_wire::ids::{BootTime, Epoch, Incarnation, NodeFlags, NodeSet, Pnn};
use ctdb_wire::peer::{NodeInfo, PeerFrame};

use super::clock::{Clock, Real};
use super::kernel::Kernel;
use super::sessions::Sessions;
use super::world::Event;

/// Threads of a daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thread {
    /// Heartbeats and the deadline.
    Detector,
    /// Frames, orders, books.
    Main,
    /// Addresses.
    Executor,
}

/// The daemon stands still in the middle of a step of this thread.
#[derive(Clone, Copy, Debug)]
pub struct Interrupt {
    /// Which thread.
    pub thread: Thread,
    /// After so many of its effects.
    pub after: u32,
    /// For how long.
    pub length: std::time::Duration,
}

/// A machine.
#[derive(Debug)]
pub struct Host {
    /// Its number.
    pub pnn: Pnn,
    /// It has power.
    pub powered: bool,
    /// Counts boots, so that what belonged to an earlier one is dropped.
    pub boot: u64,
    /// Its boot-time clock.
    pub clock: Clock,
    /// Its kernel.
    pub kernel: Kernel,
    /// What is connected to its addresses.
    pub sessions: Sessions,
    /// Its daemon.
    pub daemon: Option<Box<Daemon>>,
    /// The daemon stands still (SIGSTOP).
    pub frozen: bool,
    /// Counts freezes, so that the thaw of an earlier one is dropped.
    pub freezes: u64,
    /// What happens to the daemon when it goes on.
    pub held: Vec<Event>,
    /// The next freeze comes in the middle of a step.
    pub interrupt: Option<Interrupt>,
    /// Addresses whose interface is bad.
    pub bad: Vec<bool>,
    /// Its nodes file.
    pub file: NodeSet,
    /// The record of the list that it acted under (R10).
    pub acted_under: Option<NodeSet>,
    /// The marker in its run-time directory, which a boot empties.
    pub ran_since_boot: bool,
    /// Its disk answers nothing until then.
    pub disk_until: Real,
    /// Its clock is beyond the margin.
    pub wild: bool,
    /// Lives so far.
    pub lives: u64,
    /// Nobody starts it again.
    pub stays_down: bool,
}

/// A datagram in the socket: who sent it, in which life, for which life of this node.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    pub from: usize,
    pub from_life: Incarnation,
    pub to_life: Incarnation,
    pub message: Message,
}

/// What the main loop tells the detector.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    Session(Pnn, Incarnation),
    Eligible(bool),
    Books(Books),
    Lock(LockNews),
    List(List),
    Leave,
    SayGone,
}

/// What waits for the main loop.
#[derive(Clone, Debug)]
pub enum Item {
    LinkUp(u64, usize, Incarnation),
    LinkDown(u64, usize),
    Frame(u64, usize, PeerFrame),
    Taken(Epoch, Vec<(IpAddr, Result<(), String>)>),
    Released(Vec<IpAddr>),
    Move(IpAddr, Pnn),
    Reallocate(NodeSet),
    Flag(NodeFlags, bool),
    Availability(usize, bool),
    /// The lock client's answer, or none.
    LockSaid(Option<LockNews>),
    /// What the client found by itself.
    Lock(LockNews),
    /// The nodes file is to be read again.
    List {
        /// Its voters.
        voters: NodeSet,
        /// As the leader's node, before all others.
        first: bool,
    },
    Stop,
}

/// Effects of the detector, carried out one by one.
#[derive(Clone, Copy, Debug)]
pub enum DetectorEffect {
    Send(Pnn, Message),
    Deadline(u32, BootTime),
}

/// Collects what the detector wants.
pub struct Out<'a>(pub &'a mut VecDeque<DetectorEffect>);

impl Sink for Out<'_> {
    fn send(&mut self, to: Pnn, message: &Message) {
        self.0.push_back(DetectorEffect::Send(to, *message));
    }
    fn deadline(&mut self, slot: u32, until: BootTime) {
        self.0.push_back(DetectorEffect::Deadline(slot, until));
    }
}

/// Leaving in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaving {
    /// Addresses go to others; not longer than until then.
    Handover(BootTime),
    /// The right is over; GONE is said then.
    Silent(BootTime),
    /// The process ends then.
    End(BootTime),
}

/// A takeover that the executor is at.
#[derive(Clone, Debug)]
pub struct Taking {
    pub epoch: Epoch,
    pub slot: u32,
    /// What is connected from a former right ends first.
    pub end: bool,
    pub rest: VecDeque<IpAddr>,
    pub results: Vec<(IpAddr, Result<(), String>)>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Which life of the host's daemons.
    pub life: u64,
    pub incarnation: Incarnation,
    pub started: BootTime,
    pub authority: Authority,
    pub coordinator: Coordinator,

    // Detector thread.
    pub socket: VecDeque<Datagram>,
    pub commands: VecDeque<Command>,
    pub sessions: Vec<Incarnation>,
    pub detector_effects: VecDeque<DetectorEffect>,
    /// The copy that the detector published last, and whether it matters.
    pub published: Box<Status>,
    pub news: bool,
    /// Scheduled wake-up and its number.
    pub detector_due: (Real, u64),
    pub detector_stalled: Real,
    /// Role and right at the last turn, for coverage.
    pub seen: (usize, usize),
    /// Since the last tick of the main loop.
    pub wakeups: u64,

    // Main loop.
    pub inbox: VecDeque<Item>,
    pub main_effects: VecDeque<Effect>,
    pub links: Vec<Option<u64>>,
    pub info: NodeInfo,
    pub eligible: Option<bool>,
    /// The list that the detector was told of.
    pub listed: NodeSet,
    pub books: Books,
    pub leaving: Option<Leaving>,
    pub lock: super::lock::Client,
    pub main_due: (Real, u64),
    pub main_hung: Real,
    pub next_tick: BootTime,
    pub progress: u64,
    pub progress_seen: u64,

    /// The right in which its databases have been through a recovery.
    pub through: Option<Epoch>,

    // Executor thread.
    pub jobs: VecDeque<Work>,
    pub taking: Option<Taking>,
    pub executor_due: (Real, u64),
}
