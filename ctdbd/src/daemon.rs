//! The node daemon: start, main loop, orderly end (`spec/cluster.md` 2.13, 2.15).
//!
//! Start-up checks everything that can be checked before anything is touched, so that wrong input
//! never half-starts a daemon. Then, in this order: pid file, log, priority; the executor, whose
//! start zeroes the lease deadlines and removes what an earlier run left; the detector with its
//! guard; the links; the API.

mod actions;
mod addresses;
mod database;
mod events;
mod explain;
mod generation;
mod history;
mod node;
mod nodes;
mod paths;
mod record;
mod replies;
mod settings;
mod snapshot;
mod stop;
mod ticker;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ctdb_core::authority::{Authority, LockNews};
use ctdb_core::cold;
use ctdb_core::coordinator::{self, Coordinator};
use ctdb_core::local::{Birth, Local};
use ctdb_core::recording::{Head, Machines};
use ctdb_ebpf::deadman::Deadman;
use ctdb_netfw::link;
use ctdb_wire::api::Snapshot;
use ctdb_wire::ids::Incarnation;
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::api::{self, ApiConfig, ApiHandle, ApiStartError, Command};
use crate::clients::{self, Ask, Clients};
use crate::config::{self, Paths};
use crate::events::socket::{self as event_socket, Wish};
use crate::events::store::Store;
use crate::failover::{self, Executor, FailoverError, Outcome};
use crate::guard;
use crate::liveness::{self, Detector, LivenessError};
use crate::lock::{self, LockClient};
use crate::log::{Location, Log, LogError};
use crate::process::{self, Children, PidFile, PidFileError};
use crate::recorder;
use crate::transport::{LinkEvent, Transport, TransportError};
use events::Finished;
use history::History;
use node::{Node, Parts};
use settings::Settings;
use ticker::Ticker;

/// Commands of the API that may wait for the main loop; at the bound clients wait.
const COMMANDS: usize = 128;

/// Least time between two attempts at the cluster lock.
const LOCK_RETRY: Duration = Duration::from_millis(250);

/// How the daemon was started.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Stay in the foreground.
    pub interactive: bool,
    /// This process is the background child.
    pub background_child: bool,
}

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Configuration; the report has been printed.
    #[error("the configuration has errors; `ctdb config check` lists them")]
    Configuration,
    /// Settings that this release cannot serve with.
    #[error("{0}")]
    Settings(#[from] settings::SettingsError),
    /// A directory.
    #[error("cannot make the directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Pid file.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// Log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// API sockets.
    #[error(transparent)]
    Api(#[from] ApiStartError),
    /// Client socket.
    #[error(transparent)]
    Clients(#[from] clients::StartError),
    /// Addresses, lease, firewall.
    #[error(transparent)]
    Failover(#[from] FailoverError),
    /// The guard's shared memory.
    #[error(transparent)]
    Lease(#[from] ctdb_ebpf::Error),
    /// Heartbeats.
    #[error(transparent)]
    Liveness(#[from] LivenessError),
    /// Links.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// `init` or `setup` failed.
    #[error("{0}; `ctdb event status legacy` and the log show what the script said")]
    Event(String),
    /// The system.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl DaemonError {
    /// The process's exit code (`spec/cluster.md` 2.13).
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::PidFile(_) => process::EXIT_PID_FILE,
            Self::Api(_) | Self::Clients(_) => process::EXIT_SOCKET,
            _ => 1,
        })
    }
}

fn system(doing: &'static str) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |source| DaemonError::System { doing, source }
}

/// Runs the daemon to its end; in the background mode the caller's process only starts it.
pub fn run(options: Options) -> Result<ExitCode, DaemonError> {
    let paths = Paths::from_env();
    let (config, report) = config::load(&paths);
    for line in report.lines() {
        eprintln!("ctdbd: {line}");
    }
    let config = config.ok_or(DaemonError::Configuration)?;
    let dump = link::dump().map_err(FailoverError::from)?;
    let settings = Settings::new(&config, &dump, options.interactive)?;
    if !options.interactive && !options.background_child {
        return process::into_background().map_err(system("cannot start in the background"));
    }
    if options.background_child {
        process::detach().map_err(system("cannot detach from the terminal"))?;
    }
    make_directories(&settings)?;
    let pid_file = PidFile::take(&settings.pid_file)?;
    // A daemon in the foreground logs where its operator looks.
    let location = if options.interactive && settings.log_is_default {
        Location::Stderr
    } else {
        settings.log.clone()
    };
    let log = Log::open(&location, settings.log_level)?;
    process::set_priority(settings.priority);
    process::take_open_files();
    for line in report.lines() {
        tracing::warn!("{line}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot start the main loop"))?;
    let ended = runtime.block_on(async {
        let (children, store) = (Children::default(), Store::default());
        let init = settings.events.init(children.clone(), &store).await;
        init.map_err(DaemonError::Event)?;
        let daemon = Daemon::start(settings, log, children, store)?;
        if options.background_child {
            process::say_ready().map_err(system("cannot tell the starting process"))?;
        }
        // A task of its own: waking what `block_on` runs costs a write and a second poll each time.
        let main_loop = tokio::spawn(daemon.main_loop());
        match main_loop.await {
            Ok(ended) => ended,
            // It panicked: nobody aborts it, and the runtime lives until it has ended.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    });
    drop(pid_file);
    ended
}

fn make_directories(settings: &Settings) -> Result<(), DaemonError> {
    for (path, mode) in &settings.directories {
        make_directory(path, *mode).map_err(|source| DaemonError::Directory {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
}

/// Everything that runs.
struct Daemon {
    node: Node,
    settings: Settings,
    links: mpsc::Receiver<LinkEvent>,
    outcomes: mpsc::Receiver<Outcome>,
    commands: mpsc::Receiver<Command>,
    finished: mpsc::Receiver<Finished>,
    wishes: mpsc::Receiver<Wish>,
    event_socket: (PathBuf, tokio::task::JoinHandle<()>),
    asks: mpsc::Receiver<Ask>,
    watch: Option<link::Watch>,
    api: ApiHandle,
    lock: Option<mpsc::Receiver<LockNews>>,
    deadman: Arc<Deadman>,
    guard: Option<Child>,
    /// What a guard is started with.
    guard_with: guard::Arguments,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Daemon {
    fn start(
        settings: Settings,
        log: Log,
        children: Children,
        store: Store,
    ) -> Result<Self, DaemonError> {
        // Before anything that a stop would have to undo.
        let terminate = signal(SignalKind::terminate()).map_err(system("signal handler"))?;
        let interrupt = signal(SignalKind::interrupt()).map_err(system("signal handler"))?;
        let hangup = signal(SignalKind::hangup()).map_err(system("signal handler"))?;
        // CTDB ignores it (`spec/cluster.md`, start-up order); the handler stays when this goes.
        drop(signal(SignalKind::user_defined1()).map_err(system("signal handler"))?);
        let incarnation = draw_incarnation()?;
        tracing::warn!(
            node = %settings.me, release = settings.release, profile = settings.profile,
            authority = settings.authority_word, nodes = settings.nodes.len(), "ctdbd starts"
        );
        warn_of_virtual_machine();
        let (connections, inbox) = if settings.track {
            let (connections, inbox) = failover::connections::channel()
                .map_err(system("cannot make a descriptor for waking a thread"))?;
            (Some(connections), Some(inbox))
        } else {
            (None, None)
        };
        let (executor, outcomes, deadline) = Executor::start(failover::Setup {
            builtin: settings.builtin,
            lease_required: settings.lease_required,
            bpf_dir: settings.bpf_dir.clone(),
            addresses: settings.addresses.clone(),
            settle: settings.timing.settle(),
            opening: settings.opening,
            firewall: settings.firewall,
            connections: connections.clone(),
            end_first: settings.end_first.clone(),
        })?;
        let deadman = Arc::new(Deadman::create()?);
        let ran_since_boot = record::ran_since_boot(&settings.life_marker)
            .map_err(system("cannot mark that a daemon has run on this host"))?;
        let host = cold::Host {
            record: record::take(&settings.voters_record),
            ran_since_boot,
            list: settings.voters,
        };
        let acted_under = cold::acted_under(crate::clock::boot_now(), &settings.timing, &host);
        let authority = Authority::new(
            settings.authority(incarnation, acted_under),
            crate::clock::boot_now(),
        );
        let (recording, tap) = settings.recording.as_deref().map(recorder::prepare).unzip();
        let guard_with = guard::Arguments {
            pins: deadline.is_some().then(|| settings.bpf_dir.clone()),
            settle: settings.timing.settle(),
            lock: settings.cluster_lock.is_some(),
            margin: settings.timing.margin,
            volatile: settings.databases.volatile.clone(),
        };
        let detector = Detector::start(liveness::Setup {
            authority: authority.clone(),
            tap,
            local: settings
                .local_nets
                .iter()
                .map(|net| (net.addr(), settings.port).into())
                .collect(),
            deadline,
            deadman: Some(Arc::clone(&deadman)),
            scheduling: settings.scheduling,
            incarnation,
            lock_validity: settings
                .cluster_lock
                .as_ref()
                .map(|_| settings.lock_validity),
        })?;
        let guard =
            guard::spawn(&deadman, &guard_with).map_err(system("cannot start the guard"))?;
        let (snapshot, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let (ask, asks) = mpsc::channel(clients::ASKS);
        let clients = Clients::new(settings.clients(snapshots.clone(), ask, connections.clone()));
        let mut transport = settings.transport(incarnation);
        transport.relays = clients.relays();
        let (transport, links) = Transport::start(transport)?;
        if !settings.capabilities.voter_only {
            clients
                .open_databases(settings.databases.clone(), Arc::clone(&deadman))
                .map_err(system("cannot read the directory of persistent databases"))?;
        }
        clients.connect(transport.clone());
        if let Some(inbox) = inbox {
            failover::connections::start(
                inbox,
                failover::connections::Setup {
                    me: settings.me,
                    bpf_dir: settings.bpf_dir.clone(),
                    max_connections: settings.max_connections,
                    tickle_rounds: settings.tickle_rounds,
                    end_first: settings.end_first.clone(),
                },
                transport.clone(),
            )?;
        }
        let (sender, commands) = mpsc::channel(COMMANDS);
        let local = Local::new(Birth {
            capabilities: settings.capabilities,
            addresses: settings.addresses.clone(),
            disabled: settings.start_disabled,
            stopped: settings.start_stopped,
            started_at: crate::clock::wall_now() as i64,
            release: settings.release.clone(),
            paths: settings
                .local_nets
                .iter()
                .map(|net| (net.addr(), settings.port).into())
                .collect(),
        });
        let coordinator = Coordinator::new(
            coordinator::Config {
                me: settings.me,
                voters: settings.voters,
                quorum: if settings.mode.lock_alone() {
                    1
                } else {
                    settings.quorum
                },
                deleted: settings.deleted,
                list_length: settings.nodes.len(),
                give_up: settings.give_up,
                home_nodes: settings.home_nodes.clone(),
                failover_disabled: settings.failover_disabled,
                planted: ctdb_core::planted::Planted::default(),
            },
            local.info(),
        );
        let (finish, finished) = mpsc::channel(events::FINISHED);
        let node_events = events::NodeEvents::new(
            settings.events.clone(),
            children.clone(),
            store.clone(),
            finish,
        );
        let recorder = recording.map(|recording| {
            let head = Head {
                release: settings.release.clone(),
                node: settings.me,
                incarnation,
                begun_at: 0,
                part: 0,
            };
            let machines = Machines {
                authority,
                coordinator: coordinator.clone(),
                events: node_events.machine().clone(),
            };
            recording.start(head, machines)
        });
        let recorder = recorder
            .transpose()
            .map_err(system("cannot start the thread that records"))?;
        let (wish, wishes) = mpsc::channel(COMMANDS);
        let socket = settings.events.socket.clone();
        let listener = event_socket::bind(&socket).map_err(system("the event socket"))?;
        let serve = event_socket::serve(listener, settings.events.context(store, wish));
        let event_socket = (socket, tokio::spawn(serve));
        let (lock, lock_events) = settings
            .cluster_lock
            .clone()
            .map(|lock| {
                LockClient::start(
                    children.clone(),
                    lock::Setup {
                        lock,
                        validity: settings.lock_validity,
                        retry: (settings.timing.lease / 4).max(LOCK_RETRY),
                        deadman: Arc::clone(&deadman),
                    },
                )
            })
            .unzip();
        let mut node = Node::new(Parts {
            me: settings.me,
            incarnation,
            quorum: settings.quorum,
            port: settings.port,
            nodes: settings.nodes.clone(),
            local_nets: settings.local_nets.clone(),
            local,
            coordinator,
            detector,
            transport,
            clients: clients.clone(),
            executor,
            connections: failover::connections::Feed::new(connections),
            children,
            deadman: Some(Arc::clone(&deadman)),
            snapshot,
            log,
            log_level: settings.log_level,
            cluster_lock: settings.cluster_lock.as_ref().map(|lock| lock.text.clone()),
            lock,
            lock_decides: settings.mode.lock().is_some(),
            mode: settings.mode,
            split_brain: settings.split_brain,
            voters_record: settings.voters_record.clone(),
            recorder,
            history: History::open(&settings.history),
            events: node_events,
            builtin: settings.builtin,
            tunables: settings.tunables.clone(),
            values: settings.values.clone(),
            config: Arc::clone(&settings.config),
            reload: settings.reload.clone(),
            nodes_source: settings.nodes_source.clone(),
        });
        node.input(coordinator::Input::Policy(settings.policy));
        node.step();
        let api = api::start(
            &ApiConfig {
                socket: settings.api_socket.clone(),
                read_socket: settings.api_read_socket.clone(),
                group: settings.api_group.clone(),
            },
            &snapshots,
            &sender,
        )?;
        clients.listen(&settings.socket)?;
        let watch = match settings.builtin.then(link::Watch::open).transpose() {
            Ok(watch) => watch,
            Err(error) => return Err(FailoverError::from(error).into()),
        };
        Ok(Self {
            node,
            links,
            outcomes,
            commands,
            finished,
            wishes,
            event_socket,
            asks,
            watch,
            api,
            lock: lock_events,
            deadman,
            guard: Some(guard),
            guard_with,
            terminate,
            interrupt,
            hangup,
            settings,
        })
    }

    /// Until it is told to stop; then the orderly end.
    async fn main_loop(mut self) -> Result<ExitCode, DaemonError> {
        self.node.event(ctdb_core::events::Input::Ready);
        notify(&[sd_notify::NotifyState::Ready]);
        let ticker =
            Ticker::start(node::TICK).map_err(system("cannot set the main loop's timer"))?;
        let mut stop = None;
        loop {
            self.turn(&ticker).await;
            self.node.step();
            if self.node.parts.local.run_state() == ctdb_wire::ids::RunState::Shutdown {
                let stopping = stop.get_or_insert_with(|| {
                    tracing::warn!("Shutdown sequence commencing.");
                    notify(&[sd_notify::NotifyState::Stopping]);
                    stop::Stopping::begin()
                });
                if stopping.is_over(&self.node, &self.settings) {
                    // Services end after the addresses have gone.
                    self.node.events_leave();
                }
                if self.node.parts.events.down {
                    break;
                }
            }
            if self.node.parts.events.fatal.is_some() {
                break;
            }
        }
        let fatal = self.node.parts.events.fatal.take();
        Box::pin(self.end()).await;
        match fatal {
            Some(text) => {
                tracing::error!("{text}");
                Err(DaemonError::Event(text))
            }
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// Waits for one thing to happen and takes it in.
    async fn turn(&mut self, ticker: &Ticker) {
        let guard = async {
            match &mut self.guard {
                Some(guard) => drop(guard.wait().await),
                None => std::future::pending().await,
            }
        };
        let links = async {
            match &mut self.watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let lock = async {
            match &mut self.lock {
                Some(events) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        let known = self.node.parts.clients.fates_known();
        tokio::select! {
            biased;
            () = self.node.parts.detector.changed() => {}
            Some(event) = lock => self.node.lock_event(event),
            Some(event) = self.links.recv() => self.node.link(event),
            Some(outcome) = self.outcomes.recv() => self.node.outcome(outcome),
            () = ticker.tick() => {
                self.node.tick();
                notify(&[sd_notify::NotifyState::Watchdog]);
            }
            Some(finished) = self.finished.recv() => self.node.event_finished(finished),
            Some(wish) = self.wishes.recv() => self.node.event_wish(wish),
            Some(command) = self.commands.recv() => self.node.command(command),
            Some(ask) = self.asks.recv() => self.node.ask(ask),
            () = known.notified() => {}
            result = links => match result {
                Ok(()) => self.node.parts.executor.submit(failover::Job::Rescan),
                Err(error) => {
                    tracing::error!(%error, "links are not watched any more; restart the daemon");
                    self.watch = None;
                }
            },
            _ = self.terminate.recv() => self.node.shutdown("SIGTERM"),
            _ = self.interrupt.recv() => self.node.shutdown("SIGINT"),
            _ = self.hangup.recv() => {
                tracing::warn!("SIGHUP: log file reopened");
                self.node.parts.log.reopen();
            }
            () = guard => self.guard_ended(),
        }
    }

    /// Without its guard the daemon's death would cost the length of a right; so there is a new
    /// one, at most one per turn of the loop.
    fn guard_ended(&mut self) {
        tracing::error!("the guard has ended; starting another");
        match guard::spawn(&self.deadman, &self.guard_with) {
            Ok(guard) => self.guard = Some(guard),
            Err(error) => {
                tracing::error!(%error, "no guard: if this daemon dies, its addresses are silent only when its right ends");
                self.guard = None;
            }
        }
    }
}

/// The service manager is told if there is one.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    // Without NOTIFY_SOCKET there is nobody to tell.
    let _ = sd_notify::notify(states);
}

fn draw_incarnation() -> Result<Incarnation, DaemonError> {
    loop {
        let number = getrandom::u64().map_err(|error| DaemonError::System {
            doing: "cannot draw a random number",
            source: std::io::Error::other(error.to_string()),
        })?;
        if number != 0 {
            return Ok(Incarnation(number));
        }
    }
}

/// A paused or migrated virtual machine's clock stands still (`spec/kernel.md` 8.9).
fn warn_of_virtual_machine() {
    let virtual_machine = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .any(|line| line.starts_with("flags") && line.contains(" hypervisor"))
    });
    if virtual_machine {
        tracing::warn!(
            "this host is a virtual machine: while it is paused or migrated its clock stands still, \
             and it can answer for addresses that were given away (ADDR-1 assumes a running clock)"
        );
    }
}
