//! Carries out what the holder decided: addresses, leases, firewall, announcements, and the end
//! of connections to what went away.
//!
//! One thread of its own ([`executor`]) does all of it, since every step is a system call that
//! waits for the kernel. Takeovers and silences go first, the clean-up behind a release runs in
//! small pieces when nothing else waits. The order of steps is that of `design.md` section 4.

pub mod connections;
mod executor;
mod herald;
mod net;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use ctdb_core::local::{PublicAddress, Relocation};
use ctdb_ebpf::lease::DeadlineCell;
use ctdb_wire::connections::Tenure;
use ctdb_wire::ids::Epoch;
use ipnet::IpNet;
use tokio::sync::mpsc;

use connections::Connections;

/// Jobs that may wait in the channel. Beyond it they wait in the sender's own list, which the
/// holder bounds: it has at most one piece of work for each address.
const JOBS: usize = 1024;
/// Outcomes that may wait for the main loop; at the bound the executor waits for it.
const OUTCOMES: usize = 1024;

/// What the executor starts with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `[failover] addresses`: whether addresses are handled here at all.
    pub builtin: bool,
    /// `[lease] required`: without eBPF the daemon does not start.
    pub lease_required: bool,
    /// Pins of the lease.
    pub bpf_dir: PathBuf,
    /// Public addresses of this node's file.
    pub addresses: Vec<PublicAddress>,
    /// 1.2·q: how long packets that passed the check may wait in a queue.
    pub settle: Duration,
    /// How long connection requests to ports without listener are dropped after a takeover.
    pub opening: Duration,
    /// `[firewall] enabled`.
    pub firewall: bool,
    /// Who is told what is taken and what is silent; `None` if connections are not tracked.
    pub connections: Option<Connections>,
    /// Ports of services whose sockets here must have ended before the address serves elsewhere.
    pub end_first: BTreeSet<u16>,
}

/// One address to take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Address with its prefix length.
    pub net: IpNet,
    /// The interface that shall carry it.
    pub interface: String,
}

/// A piece of work.
#[derive(Debug)]
pub enum Job {
    /// Add, grant in `slot`, announce.
    Take {
        /// Named in the outcome.
        epoch: Epoch,
        /// Slot of the lease map.
        slot: u32,
        /// The order that it is.
        tenure: Option<Tenure>,
        /// What.
        addresses: Vec<Placed>,
        /// Connection requests wait for [`Job::LetIn`], at most as long as the opening.
        hold: bool,
        /// They are here from an earlier right, and what is connected to them is to end before the
        /// grant (MEM-3).
        end: bool,
    },
    /// Their scripts have run: listeners of these addresses may be asked.
    LetIn(Vec<IpAddr>),
    /// Take the grant away, say so when nothing can be queued any more, then clean up.
    Release {
        /// What.
        addresses: Vec<IpAddr>,
    },
    /// Clean up what is silent already.
    Discard {
        /// What.
        addresses: Vec<IpAddr>,
    },
    /// Other interfaces of this node.
    Relocate(Vec<Relocation>),
    /// Announce what is held: these, or all.
    Announce(Option<IpAddr>),
    /// Announce one address that the thread does not carry: an event script put it there, or it
    /// is no public address. Three times, as CTDB does.
    AnnounceOn {
        /// Which.
        address: IpAddr,
        /// Where.
        interface: String,
    },
    /// Announce that one no more: a script is about to release it.
    Hush(IpAddr),
    /// Links or addresses of the host changed: look again.
    Rescan,
    /// The public addresses file was read again.
    SetAddresses(Vec<PublicAddress>),
    /// The end: everything that this daemon made is taken away.
    Close,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Job::Take`].
    Taken {
        /// As ordered.
        epoch: Epoch,
        /// Result of each address.
        results: Vec<(IpAddr, Result<(), String>)>,
        /// Length of each phase.
        phases: Vec<(&'static str, Duration)>,
    },
    /// Of [`Job::Release`]: silent, and nothing in a queue.
    Released {
        /// What.
        addresses: Vec<IpAddr>,
        /// Length of each phase.
        phases: Vec<(&'static str, Duration)>,
    },
    /// Clean-up is done: off the interfaces, connections ended.
    Removed {
        /// What.
        addresses: Vec<IpAddr>,
        /// Server sockets that were destroyed.
        connections: usize,
        /// UDP sockets that answered on them.
        udp: usize,
    },
    /// The host's links: name and whether the link is up and guarded by the lease.
    Links(Vec<(String, bool)>),
    /// [`Job::Close`] is done.
    Closed,
}

/// Why the executor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum FailoverError {
    /// eBPF is refused.
    #[error(
        "no address lease: {0}. Without it an address could be answered twice (ADDR-1). If this \
         host shall run without it, set [lease] required = false"
    )]
    Lease(ctdb_ebpf::Error),
    /// nftables is refused.
    #[error(
        "no firewall: {0}. Load nf_tables, or set [firewall] enabled = false; new connections \
         are then refused while a service starts (ADDR-4)"
    )]
    Firewall(ctdb_netfw::Error),
    /// Netlink, raw sockets.
    #[error(transparent)]
    Network(#[from] ctdb_netfw::Error),
    /// Socket diagnosis.
    #[error(transparent)]
    Connections(#[from] ctdb_conntrack::Error),
    /// The thread.
    #[error("cannot start the thread for address work: {0}")]
    Thread(std::io::Error),
}

/// The main loop's end.
#[derive(Debug)]
pub struct Executor {
    jobs: SyncSender<Job>,
    waiting: VecDeque<Job>,
}

impl Executor {
    /// Opens what is needed, removes what an earlier run left, attaches the lease everywhere and
    /// starts the thread. Blocks for some milliseconds. The deadlines are all zero when this
    /// returns (R3).
    pub fn start(
        setup: Setup,
    ) -> Result<(Self, mpsc::Receiver<Outcome>, Option<DeadlineCell>), FailoverError> {
        let (outcomes, receiver) = mpsc::channel(OUTCOMES);
        let (jobs, queue) = std::sync::mpsc::sync_channel(JOBS);
        let mut deadline = None;
        let mut net = None;
        if setup.builtin {
            let opened = net::Net::open(&setup)?;
            deadline = opened.deadline_cell().map_err(FailoverError::Lease)?;
            net = Some(opened);
        }
        let thread = executor::Thread::new(net, setup, queue, outcomes);
        std::thread::Builder::new()
            .name("failover".to_owned())
            .spawn(move || thread.run())
            .map_err(FailoverError::Thread)?;
        Ok((
            Self {
                jobs,
                waiting: VecDeque::new(),
            },
            receiver,
            deadline,
        ))
    }

    /// Hands over a job; never blocks.
    pub fn submit(&mut self, job: Job) {
        self.waiting.push_back(job);
        self.flush();
    }

    /// Tries again what found the channel full; called at every tick.
    pub fn flush(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            match self.jobs.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) => {
                    self.waiting.push_front(job);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => {
                    tracing::error!(
                        "the thread for address work has ended; the daemon must restart"
                    );
                    self.waiting.clear();
                    return;
                }
            }
        }
    }
}
