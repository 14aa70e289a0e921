//! What the daemon takes from its configuration and its host, checked once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ctdb_core::allocation::Policy;
use ctdb_core::authority::{self, LockTimes, Mode, Timing};
use ctdb_core::local::PublicAddress;
use ctdb_netfw::link::Dump;
use ctdb_wire::api::{ConfigOption, ConfigView, Snapshot, TunableView};
use ctdb_wire::client::types::NodeMapEntry;
use ctdb_wire::ids::{Incarnation, NodeFlags, NodeSet, Pnn};
use ctdb_wire::peer::Capabilities;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};

use super::paths;
use crate::clients::{self, Ask, NodesFile};
use crate::config::{
    self, AddressMode, Authority, Config, DetectorPriority, LeasePaths, Origin, OwnNodeError,
    Severity, Tunable, Tunables,
};
use crate::failover::connections::Connections;
use crate::liveness::{MAX_PATHS, Scheduling};
use crate::log::{Location, LogLevel};
use crate::process::Priority;
use crate::transport::key::{KeyError, KeyRing};
use crate::transport::{Security, TransportConfig};

/// A node without right takes its addresses off its interfaces after this many leases.
const GIVE_UP_LEASES: u32 = 4;

/// Reads the public addresses file again.
pub(super) type Reload = Arc<dyn Fn() -> Result<Vec<PublicAddress>, String> + Send + Sync>;

/// Why the daemon cannot serve with this configuration.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Own number.
    #[error(transparent)]
    OwnNode(#[from] OwnNodeError),
    /// Key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The daemon's settings.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) me: Pnn,
    pub(super) release: String,
    pub(super) profile: &'static str,
    pub(super) timing: Timing,
    pub(super) mode: Mode,
    pub(super) authority_word: &'static str,
    pub(super) quorum: usize,
    pub(super) voters: NodeSet,
    pub(super) deleted: NodeSet,
    /// (number, address, deleted), the whole list.
    pub(super) nodes: Vec<(u32, IpAddr, bool)>,
    pub(super) port: u16,
    pub(super) security: Security,
    pub(super) cluster_name: String,
    pub(super) cluster_lock: Option<config::ClusterLock>,
    pub(super) lock_validity: Duration,
    pub(super) capabilities: Capabilities,
    pub(super) start_disabled: bool,
    pub(super) start_stopped: bool,
    pub(super) builtin: bool,
    pub(super) lease_required: bool,
    pub(super) bpf_dir: PathBuf,
    pub(super) addresses: Vec<PublicAddress>,
    pub(super) home_nodes: BTreeMap<IpAddr, Pnn>,
    pub(super) policy: Policy,
    pub(super) failover_disabled: bool,
    pub(super) shutdown_failover_timeout: Duration,
    pub(super) shutdown_extra_timeout: Duration,
    pub(super) firewall: bool,
    pub(super) opening: Duration,
    pub(super) track: bool,
    pub(super) max_connections: u32,
    pub(super) tickle_rounds: u8,
    pub(super) end_first: BTreeSet<u16>,
    pub(super) local_nets: Vec<IpNet>,
    pub(super) scheduling: Scheduling,
    pub(super) priority: Priority,
    pub(super) give_up: Duration,
    pub(super) log: Location,
    pub(super) log_is_default: bool,
    pub(super) log_level: LogLevel,
    pub(super) history: PathBuf,
    /// Two nodes without a lock, each serving for itself.
    pub(super) split_brain: bool,
    /// `[log] record`.
    pub(super) recording: Option<PathBuf>,
    /// The list last acted under (R10).
    pub(super) voters_record: PathBuf,
    /// Is in the run-time directory since the first daemon of this boot.
    pub(super) life_marker: PathBuf,
    pub(super) pid_file: PathBuf,
    /// Where Samba and CTDB's tool connect.
    pub(super) socket: PathBuf,
    /// Values of all tunables.
    pub(super) values: Tunables,
    pub(super) nodes_file: NodesFile,
    pub(super) api_socket: PathBuf,
    pub(super) api_read_socket: PathBuf,
    pub(super) api_group: Option<String>,
    /// Directories that must be there, with their mode.
    pub(super) directories: Vec<(PathBuf, u32)>,
    pub(super) tunables: Vec<TunableView>,
    pub(super) config: Arc<ConfigView>,
    pub(super) reload: Reload,
    pub(super) events: super::events::Settings,
    pub(super) nodes_source: config::NodesSource,
    pub(super) databases: crate::database::Setup,
}

fn public(addresses: &[config::PublicAddress]) -> Vec<PublicAddress> {
    addresses
        .iter()
        .map(|address| PublicAddress {
            net: address.net,
            interfaces: address.interfaces.clone(),
        })
        .collect()
}

impl Settings {
    /// Takes a checked configuration and what is on the host's interfaces.
    pub(super) fn new(
        config: &Config,
        dump: &Dump,
        interactive: bool,
    ) -> Result<Self, SettingsError> {
        let local: Vec<IpAddr> = dump.addresses.iter().map(|(_, net)| net.addr()).collect();
        let me = config::own_node(config, &local)?;
        let security = match config.security.transport {
            config::Transport::Noise => Security::Noise(KeyRing::load(&config.security.key_file)?),
            config::Transport::Plain => Security::Plain,
        };
        let addresses = public(&config.public_addresses);
        let timing = config.timing();
        let paths = &config.paths;
        let run = paths.run.clone();
        Ok(Self {
            me,
            release: release(),
            profile: config.lease.profile.name(),
            timing,
            mode: mode(config),
            authority_word: config.cluster.authority.name(),
            quorum: config.quorum(),
            voters: config.nodes.set(),
            deleted: config
                .nodes
                .entries
                .iter()
                .filter(|node| node.deleted)
                .map(|node| node.pnn)
                .collect(),
            nodes: config
                .nodes
                .entries
                .iter()
                .map(|node| (node.pnn.get(), node.address, node.deleted))
                .collect(),
            port: config.cluster.port,
            security,
            cluster_name: config.cluster.name.clone(),
            cluster_lock: config.cluster.lock.clone(),
            lock_validity: config.cluster.lock_validity,
            capabilities: config.capabilities(),
            start_disabled: config.legacy.start_as_disabled,
            start_stopped: config.legacy.start_as_stopped,
            builtin: config.failover.addresses == AddressMode::Builtin,
            lease_required: config.lease.required,
            bpf_dir: paths.bpf.clone(),
            local_nets: heartbeat_nets(config, me, dump),
            addresses,
            home_nodes: config.home_nodes.clone(),
            policy: config.tunables.policy(),
            failover_disabled: config.failover.disabled,
            shutdown_failover_timeout: config.failover.shutdown_timeout,
            shutdown_extra_timeout: config.failover.shutdown_extra,
            firewall: config.firewall.enabled,
            opening: config.firewall.opening_timeout,
            // The test mode touches nothing of the host.
            track: config.conntrack.enabled && !paths.test_mode,
            max_connections: config.conntrack.max_connections,
            tickle_rounds: config.conntrack.tickle_rounds,
            end_first: config.conntrack.end_first.clone(),
            scheduling: match config.priority.detector {
                DetectorPriority::Normal => Scheduling::Normal,
                DetectorPriority::RoundRobin(priority) => Scheduling::RoundRobin(priority),
            },
            priority: config.priority.daemon,
            give_up: timing.lease * GIVE_UP_LEASES,
            log: config.logging.location.clone(),
            log_is_default: config.logging.location == Location::File(paths.log.clone()),
            log_level: config.logging.level,
            history: config.database.state.join("history.jsonl"),
            split_brain: config.cluster.allow_split_brain
                && config.cluster.lock.is_none()
                && config.cluster.authority == Authority::Majority,
            recording: config.logging.record.clone(),
            voters_record: config.database.state.join("voters"),
            life_marker: paths.pid_file.with_extension("started"),
            pid_file: paths.pid_file.clone(),
            socket: paths.socket.clone(),
            values: config.tunables.clone(),
            nodes_file: nodes_file(config),
            api_socket: paths.api_socket.clone(),
            api_read_socket: paths.api_read_socket.clone(),
            api_group: config.api.group.clone(),
            directories: vec![(run, 0o755)],
            tunables: tunables(config),
            config: Arc::new(shown(config)),
            reload: reload(Arc::new(config.clone())),
            events: super::events::Settings::new(
                config,
                config.failover.addresses == AddressMode::Builtin,
                interactive,
            ),
            nodes_source: config.cluster.nodes_source.clone(),
            databases: crate::database::Setup {
                me,
                volatile: config.database.volatile.clone(),
                persistent: config.database.persistent.clone(),
                mutexes: config.database.tdb_mutexes,
            },
        })
    }

    /// The detector's configuration for this life.
    pub(super) fn authority(
        &self,
        incarnation: Incarnation,
        acted_under: Option<NodeSet>,
    ) -> authority::Config {
        authority::Config {
            mode: self.mode,
            acted_under,
            quorum: self.quorum,
            ..authority::Config::majority(self.me, incarnation, self.voters, self.timing)
        }
    }

    /// The client room's configuration.
    pub(super) fn clients(
        &self,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        asks: mpsc::Sender<Ask>,
        connections: Option<Connections>,
    ) -> clients::Setup {
        clients::Setup {
            me: self.me,
            socket: self.socket.clone(),
            port: self.port,
            tunables: self.values.clone(),
            nodes_file: self.nodes_file.clone(),
            snapshots,
            asks,
            connections,
        }
    }

    /// The links' configuration for this life.
    pub(super) fn transport(&self, incarnation: Incarnation) -> TransportConfig {
        let nodes = self
            .nodes
            .iter()
            .filter(|(_, _, deleted)| !deleted)
            .filter_map(|(number, address, _)| Some((Pnn::new(*number).ok()?, *address)))
            .collect();
        let mut transport = TransportConfig::new(
            self.me,
            nodes,
            self.security.clone(),
            incarnation,
            self.release.clone(),
        );
        transport.port = self.port;
        transport.cluster_name.clone_from(&self.cluster_name);
        transport
    }
}

fn mode(config: &Config) -> Mode {
    let times = LockTimes {
        validity: config.cluster.lock_validity,
        settle: config.cluster.lock_settle,
    };
    match config.cluster.authority {
        Authority::Majority => Mode::Majority,
        Authority::Lock => Mode::Lock(times),
        Authority::Both => Mode::Both(times),
    }
}

/// As `ctdb version` prints it.
pub(super) fn release() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn tunables(config: &Config) -> Vec<TunableView> {
    Tunable::listed()
        .map(|tunable| TunableView {
            name: tunable.name().to_owned(),
            value: config.tunables.get(tunable),
        })
        .collect()
}

fn shown(config: &Config) -> ConfigView {
    let options = config
        .settings
        .iter()
        .map(|(key, setting)| ConfigOption {
            section: key.section.to_owned(),
            key: key.name.to_owned(),
            value: setting.text.clone(),
            default: setting.origin == Origin::Default,
        })
        .collect();
    ConfigView { options }
}

fn heartbeat_nets(config: &Config, me: Pnn, dump: &Dump) -> Vec<IpNet> {
    let own = config
        .nodes
        .address(me)
        .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    let public: Vec<IpAddr> = config
        .public_addresses
        .iter()
        .map(config::PublicAddress::address)
        .collect();
    let (wanted, most): (Vec<u32>, usize) = match &config.lease.paths {
        LeasePaths::Private => (Vec::new(), 1),
        LeasePaths::Auto => {
            let names: Vec<&String> = config
                .public_addresses
                .iter()
                .flat_map(|address| &address.interfaces)
                .collect();
            let indices = dump
                .links
                .iter()
                .filter(|link| names.contains(&&link.name))
                .map(|link| link.index)
                .collect();
            (indices, MAX_PATHS)
        }
        LeasePaths::Addresses(addresses) => {
            let indices = dump
                .addresses
                .iter()
                .filter(|(_, net)| addresses.contains(&net.addr()))
                .map(|(index, _)| *index)
                .collect();
            (indices, MAX_PATHS)
        }
    };
    let candidates: Vec<(u32, IpNet)> = match &config.lease.paths {
        LeasePaths::Addresses(addresses) => dump
            .addresses
            .iter()
            .filter(|(_, net)| net.addr() == own || addresses.contains(&net.addr()))
            .copied()
            .collect(),
        _ => dump.addresses.clone(),
    };
    paths::local_paths(own, &candidates, &wanted, &public, most)
}

fn reload(config: Arc<Config>) -> Reload {
    Arc::new(move || {
        let (list, report) = config::reload_public_addresses(&config);
        let mistakes: Vec<String> = report
            .problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();
        match list {
            Some(list) if mistakes.is_empty() => Ok(public(&list)),
            _ => Err(mistakes.join("; ")),
        }
    })
}

/// GET_NODES_FILE: the list as its file says now, whatever the daemon runs with.
fn nodes_file(config: &Config) -> NodesFile {
    let (paths, port) = (config.paths.clone(), config.cluster.port);
    Arc::new(move || {
        let (nodes, report) = config::load_nodes(&paths);
        for line in report.lines() {
            tracing::warn!("{line}");
        }
        let entries = nodes?.entries;
        let list = entries.iter().map(|node| NodeMapEntry {
            pnn: node.pnn.get(),
            flags: if node.deleted {
                NodeFlags::DELETED.bits()
            } else {
                0
            },
            address: (node.address, port).into(),
        });
        Some(list.collect())
    })
}
