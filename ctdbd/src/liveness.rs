//! The detector: one thread that sends and answers heartbeats and moves the lease deadline.
//!
//! It allocates nothing after its start, touches no disk and waits for nobody (MEM-2): commands
//! come through a bounded queue that it drains, its state goes out through a copy that it only
//! tries to lock. Decisions are [`ctdb_core::authority`]'s.

mod sockets;
mod thread;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex};

use ctdb_core::authority::{self, Books, List, LockNews, Status};
use ctdb_ebpf::deadman::Deadman;
use ctdb_ebpf::lease::DeadlineCell;
use ctdb_wire::ids::{BootTime, Incarnation, MAX_NODES, Pnn};
use rustix::fd::OwnedFd;
use tokio::sync::Notify;

use crate::clock::boot_now;
use crate::recorder::Tap;
use crate::transport::datagram::SessionKeys;
pub use sockets::{MAX_PATHS, PathSet};
pub use thread::give_back_memory;

/// Commands that may wait for the detector; it drains all of them at every wake-up. At the
/// bound the sender tries again at its next tick.
const COMMANDS: usize = 512;

/// What the main loop tells the detector.
pub enum Command {
    /// A link handshake fixed the peer's incarnation and keys (R1).
    Session {
        /// The peer.
        pnn: Pnn,
        /// Its life.
        incarnation: Incarnation,
        /// Keys of the session.
        keys: Box<SessionKeys>,
        /// Where to reach it.
        paths: PathSet,
    },
    /// The peer's addresses changed.
    Paths(Pnn, PathSet),
    /// Whether this node may lead.
    Eligible(bool),
    /// What the main loop knows and the detector does not.
    Books(Books),
    /// The cluster lock was taken, proved or lost.
    Lock(LockNews),
    /// Another nodes list; the coordinator has been told (R24).
    List(List),
    /// The right ends now and is not renewed.
    Leave,
    /// Tell all that this incarnation is over; only after [`Command::Leave`] and 1.2·q.
    SayGone,
    /// End the thread.
    Stop,
}

/// How the detector is scheduled (`[priority] detector`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheduling {
    /// As any thread.
    Normal,
    /// Round robin with this priority.
    RoundRobin(u8),
}

/// What the detector starts with.
pub struct Setup {
    /// The state machine.
    pub authority: authority::Authority,
    /// Local addresses to send heartbeats from, the private one first.
    pub local: Vec<SocketAddr>,
    /// The lease map's deadlines; `None` where no address is guarded here (voter, script mode).
    pub deadline: Option<DeadlineCell>,
    /// Held by the thread for its life, so that the guard notices its death.
    pub deadman: Option<Arc<Deadman>>,
    /// Scheduling class.
    pub scheduling: Scheduling,
    /// What the guard says in our name when this daemon dies (R19).
    pub incarnation: Incarnation,
    /// With a cluster lock: how long a proof of it counts. The guard ends the lock helper of a
    /// daemon that is silent for longer.
    pub lock_validity: Option<std::time::Duration>,
    /// `[log] record`.
    pub tap: Option<Tap>,
}

/// Counters of the detector, for metrics.
#[derive(Default, Debug)]
pub struct Counters {
    /// Datagrams that were opened and decoded.
    pub received: AtomicU64,
    /// Datagrams sent.
    pub sent: AtomicU64,
    /// Datagrams refused: truncated, replayed, of another session, undecodable.
    pub refused: AtomicU64,
    /// Sends that the kernel refused.
    pub send_errors: AtomicU64,
}

pub(crate) struct Shared {
    pub status: Mutex<Status>,
    pub notify: Notify,
    pub progress: AtomicU64,
    pub stopped: AtomicBool,
    pub counters: Counters,
}

/// The main loop's end.
pub struct Detector {
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Why the detector cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LivenessError {
    /// A heartbeat socket.
    #[error(
        "cannot open the heartbeat socket {address}: {source}; is the node's address on this host and the port free?"
    )]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Thread, event descriptor.
    #[error("cannot start the detector thread: {0}")]
    Start(std::io::Error),
}

impl Detector {
    /// Opens the sockets and starts the thread.
    pub fn start(setup: Setup) -> Result<Self, LivenessError> {
        let now = boot_now();
        let authority = setup.authority.clone();
        let shared = Arc::new(Shared {
            status: Mutex::new(authority.status(now)),
            notify: Notify::new(),
            progress: AtomicU64::new(now.0),
            stopped: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let (commands, queue) = std::sync::mpsc::sync_channel(COMMANDS);
        let wake = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC,
        )
        .map_err(|errno| LivenessError::Start(errno.into()))?;
        let wake = Arc::new(wake);
        let sockets = sockets::Sockets::open(&setup.local)?;
        let thread = std::thread::Builder::new()
            .name("detector".to_owned())
            .spawn({
                let (shared, wake) = (Arc::clone(&shared), Arc::clone(&wake));
                move || thread::run(&setup, authority, &sockets, &shared, &queue, &wake)
            })
            .map_err(LivenessError::Start)?;
        Ok(Self {
            shared,
            commands,
            wake,
            thread: Some(thread),
        })
    }

    /// Gives a command; handed back if the detector does not drain its queue.
    pub fn command(&self, command: Command) -> Result<(), Box<Command>> {
        match self.commands.try_send(command) {
            Ok(()) => {
                // A full counter wakes as well; an error can only be that.
                let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => {
                Err(Box::new(command))
            }
        }
    }

    /// The main loop made progress (MEM-4).
    pub fn progress(&self, now: BootTime) {
        self.shared.progress.store(now.0, Ordering::Release);
    }

    /// A copy of the newest state.
    pub fn status(&self) -> Status {
        match self.shared.status.lock() {
            Ok(status) => status.clone(),
            Err(poisoned) => poisoned.into_inner().clone(),
        }
    }

    /// Resolves when something that matters has changed.
    pub async fn changed(&self) {
        self.shared.notify.notified().await;
    }

    /// Counters.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Ends the thread and waits for it.
    pub fn stop(&mut self) {
        let _ = self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether two states differ in something that the main loop acts on at once.
fn significant(a: &Status, b: &Status) -> bool {
    a.epoch != b.epoch
        || a.right_until.is_some() != b.right_until.is_some()
        || a.leader != b.leader
        || a.acting.map(|(term, _)| term) != b.acting.map(|(term, _)| term)
        || a.abstaining != b.abstaining
        || a.lock_wanted != b.lock_wanted
        || a.led != b.led
        || a.claimed != b.claimed
        || a.list != b.list
        || (0..MAX_NODES).any(|i| {
            let (x, y) = (&a.peers[i], &b.peers[i]);
            x.incarnation != y.incarnation
                || x.suspected != y.suspected
                || x.evicted != y.evicted
                || x.evidence != y.evidence
                || x.has_right != y.has_right
        })
}
