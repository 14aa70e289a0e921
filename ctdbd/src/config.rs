//! Configuration: every file under `/etc/ctdb`, read and checked at once (`spec/cluster.md` 1,
//! `design.md` section 5).
//!
//! [`load`] gives either a whole [`Config`] or none: what is wrong never half-starts a daemon.
//! Its [`Report`] names file, line and what to do. Reading is blocking; at run time do it on a
//! thread for blocking work.
//!
//! * [`ini`]: the syntax; [`schema`]: the keys; [`settings`]: their texts with origins.
//! * [`nodes`], [`addresses`], [`tunables`]: the other files.
//! * [`legacy`]: what becomes of each of CTDB's settings; [`dump`]: what is in effect.

pub mod addresses;
mod build;
mod check;
mod cluster;
pub mod dump;
pub mod ini;
pub mod legacy;
pub mod nodes;
mod paths;
mod report;
pub mod schema;
pub mod script_options;
pub mod settings;
pub mod tunables;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ctdb_core::authority::Timing;
use ctdb_wire::ids::Pnn;
use ctdb_wire::peer::Capabilities;

use crate::log::{Location, LogLevel};
use crate::process::Priority;
pub use addresses::PublicAddress;
pub use check::{check_key, service_port};
pub use dump::dump;
pub use legacy::Fate;
pub use nodes::{Node, Nodes, NodesSource};
pub use paths::Paths;
pub use report::{Problem, Report, Severity};
pub use settings::{Origin, Settings};
pub use tunables::{Tunable, Tunables};

/// All that is configured on this node, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory layout.
    pub paths: Paths,
    /// The nodes list.
    pub nodes: Nodes,
    /// Public addresses that this node may host, in the order of the file; none on a node that
    /// only votes.
    pub public_addresses: Vec<PublicAddress>,
    /// `home_nodes`.
    pub home_nodes: BTreeMap<IpAddr, Pnn>,
    /// Tunables at start.
    pub tunables: Tunables,
    /// `[logging]`
    pub logging: Logging,
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[database]`
    pub database: Database,
    /// `[event]`
    pub event: EventOptions,
    /// `[failover]`
    pub failover: Failover,
    /// `[lease]`
    pub lease: Lease,
    /// `[security]`
    pub security: Security,
    /// `[priority]`
    pub priority: Priorities,
    /// `[conntrack]`
    pub conntrack: Conntrack,
    /// `[firewall]`
    pub firewall: Firewall,
    /// `[api]`
    pub api: Api,
    /// `[legacy]`
    pub legacy: Legacy,
    /// The texts that all this was made of, with origins.
    pub settings: Settings,
}

/// `[logging]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logging {
    /// Where the log goes.
    pub location: Location,
    /// The same as text: `CTDB_LOGGING` of event scripts.
    pub location_text: String,
    /// Level at start.
    pub level: LogLevel,
    /// `[log] record`: where inputs and decisions are recorded.
    pub record: Option<PathBuf>,
}

/// `[cluster]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// Name that all nodes must agree on; may be empty.
    pub name: String,
    /// Own private address, if it is not to be found among the local ones.
    pub node_address: Option<IpAddr>,
    /// TCP port of the links: service `ctdb/tcp`, else 4379.
    pub port: u16,
    /// The cluster lock.
    pub lock: Option<ClusterLock>,
    /// Where the nodes list comes from.
    pub nodes_source: NodesSource,
    /// Of CTDB; the timing is that of [`Lease::profile`].
    pub leader_timeout: Duration,
    /// May become leader.
    pub leader_capability: bool,
    /// May be location master (`[legacy] lmaster capability`).
    pub lmaster_capability: bool,
    /// Votes and witnesses only: no addresses, no databases.
    pub voter_only: bool,
    /// What gives a partition the right to serve.
    pub authority: Authority,
    /// Two nodes without a lock serve even apart from each other.
    pub allow_split_brain: bool,
    /// V: how long a proved cluster lock counts.
    pub lock_validity: Duration,
    /// How long a new holder waits for one that it cannot reach.
    pub lock_settle: Duration,
    /// Mistakes in the files of tunables are errors.
    pub strict_tunables: bool,
}

/// What gives a partition the right to serve (`design.md` section 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authority {
    /// One of its nodes holds the cluster lock.
    Lock,
    /// It has more than half of the configured nodes.
    Majority,
    /// Both.
    Both,
}

impl Authority {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Majority => "majority",
            Self::Both => "both",
        }
    }
}

/// `[cluster] cluster lock`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterLock {
    /// As configured; nodes compare it.
    pub text: String,
    /// How it is taken.
    pub kind: LockKind,
}

/// How the cluster lock is taken (`spec/cluster.md` 2.8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// A file in a cluster file system.
    File(PathBuf),
    /// A helper program with its arguments, run without a shell.
    Helper(Vec<String>),
}

/// `[database]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Database {
    /// Volatile databases; exists.
    pub volatile: PathBuf,
    /// Persistent databases; exists.
    pub persistent: PathBuf,
    /// The daemon's own databases; exists.
    pub state: PathBuf,
    /// Accepted; there are no lock helper processes.
    pub lock_debug_script: Option<PathBuf>,
    /// Robust mutexes in volatile databases.
    pub tdb_mutexes: bool,
}

/// `[event]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventOptions {
    /// Run when an event times out.
    pub debug_script: Option<PathBuf>,
}

/// `[failover]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failover {
    /// No failover of public addresses.
    pub disabled: bool,
    /// How long a graceful stop waits for the takeover of its addresses; zero: not at all.
    pub shutdown_timeout: Duration,
    /// How long it waits after that.
    pub shutdown_extra: Duration,
    /// Who puts addresses on interfaces.
    pub addresses: AddressMode,
}

/// Who puts addresses on interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressMode {
    /// The daemon, with a lease in the kernel.
    Builtin,
    /// Event scripts, as in CTDB.
    Script,
}

impl AddressMode {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Script => "script",
        }
    }
}

/// `[lease]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Timing profile.
    pub profile: Profile,
    /// Refuse to start where the kernel has no lease.
    pub required: bool,
    /// Where heartbeats travel.
    pub paths: LeasePaths,
    /// q: how long a packet may wait in this host after it was let out.
    pub queue_bound: Duration,
}

/// A timing profile (`design.md` section 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// Heartbeats each second, leases of 5 s.
    Cautious,
    /// 250 ms, 1.5 s.
    Standard,
    /// 50 ms, 300 ms.
    Fast,
}

impl Profile {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cautious => "cautious",
            Self::Standard => "standard",
            Self::Fast => "fast",
        }
    }

    /// Its numbers, with the bound of the host's queues.
    pub fn timing(self, queue_bound: Duration) -> Timing {
        let (interval_ms, lease_ms) = match self {
            Self::Cautious => (1000, 5000),
            Self::Standard => (250, 1500),
            Self::Fast => (50, 300),
        };
        Timing::new(
            Duration::from_millis(interval_ms),
            Duration::from_millis(lease_ms),
            queue_bound,
        )
    }
}

/// Where heartbeats travel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeasePaths {
    /// The private network and the static addresses of the public interfaces.
    Auto,
    /// The private network only.
    Private,
    /// The private network and these own addresses.
    Addresses(Vec<IpAddr>),
}

/// `[security]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Security {
    /// Cluster key; its format is the transport's.
    pub key_file: PathBuf,
    /// How links are protected.
    pub transport: Transport,
}

/// How links are protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Noise with the cluster key.
    Noise,
    /// Not at all: the private network is trusted.
    Plain,
}

impl Transport {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::Plain => "plain",
        }
    }
}

/// `[priority]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Priorities {
    /// The daemon but for the detector.
    pub daemon: Priority,
    /// The detector thread.
    pub detector: DetectorPriority,
}

/// How the detector thread is scheduled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DetectorPriority {
    /// As the rest of the daemon.
    Normal,
    /// Round robin with this real-time priority, 1 to 99.
    RoundRobin(u8),
}

/// `[conntrack]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conntrack {
    /// Connections to public addresses are tracked.
    pub enabled: bool,
    /// Size of the table.
    pub max_connections: u32,
    /// Tickles to each client of an address that moved.
    pub tickle_rounds: u8,
    /// Ports whose sockets end at a release before the address serves elsewhere.
    pub end_first: BTreeSet<u16>,
}

/// `[firewall]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Firewall {
    /// Connection requests to ports without listener are dropped after a takeover (ADDR-4).
    pub enabled: bool,
    /// For at most this long.
    pub opening_timeout: Duration,
}

/// `[api]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Api {
    /// Group that may use the socket that only reads; root's if unset.
    pub group: Option<String>,
}

/// `[legacy]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Legacy {
    /// `realtime scheduling`, if it is set; used for [`Priorities::detector`].
    pub realtime_scheduling: Option<bool>,
    /// Start with the flag STOPPED.
    pub start_as_stopped: bool,
    /// Start with the flag DISABLED.
    pub start_as_disabled: bool,
    /// Level of the output of scripts.
    pub script_log_level: LogLevel,
}

/// Why this node's number is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OwnNodeError {
    /// `node address` is not in the list.
    #[error(
        "[cluster] node address {0} is not in the nodes list; correct one of them (a node that \
         was removed has a line that begins with '#')"
    )]
    NotInList(IpAddr),
    /// None of the local addresses is in the list.
    #[error(
        "no address of this host is in the nodes list ({}); add this node to the list, or give \
         the address to an interface",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoneLocal(Vec<IpAddr>),
}

impl Config {
    /// The numbers of the timing profile.
    pub fn timing(&self) -> Timing {
        self.lease.profile.timing(self.lease.queue_bound)
    }

    /// Q: how many nodes must answer where a majority decides (`authority.md`). Nodes that only
    /// vote count.
    pub fn quorum(&self) -> usize {
        let voters = self.nodes.active().count();
        let split = self.cluster.allow_split_brain
            && self.cluster.lock.is_none()
            && self.cluster.authority == Authority::Majority;
        if voters == 2 && split {
            1
        } else {
            voters / 2 + 1
        }
    }

    /// What this node tells its peers of itself.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            leader: self.cluster.leader_capability,
            lmaster: self.cluster.lmaster_capability && !self.cluster.voter_only,
            voter_only: self.cluster.voter_only,
        }
    }
}

/// This node's number: that of `node address`, else of the first entry of the nodes list that is
/// one of the `local` addresses (`spec/cluster.md` 2.3).
pub fn own_node(config: &Config, local: &[IpAddr]) -> Result<Pnn, OwnNodeError> {
    if let Some(address) = config.cluster.node_address {
        return config
            .nodes
            .find(address)
            .ok_or(OwnNodeError::NotInList(address));
    }
    config
        .nodes
        .active()
        .find(|node| {
            local
                .iter()
                .any(|address| address.to_canonical() == node.address)
        })
        .map(|node| node.pnn)
        .ok_or_else(|| {
            OwnNodeError::NoneLocal(config.nodes.active().map(|node| node.address).collect())
        })
}

/// How strict [`load_for`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A daemon starts: unknown keys warn.
    Start,
    /// `ctdb config validate`, `ctdb-config validate`: unknown sections and keys, and mistakes
    /// in tunables, are errors.
    Validate,
}

/// Reads all files and runs the nodes list's command, if there is one. There is a configuration
/// only if the report has no error.
pub fn load(paths: &Paths) -> (Option<Config>, Report) {
    load_for(paths, Purpose::Start)
}

/// As [`load`], with the strictness of a purpose.
pub fn load_for(paths: &Paths, purpose: Purpose) -> (Option<Config>, Report) {
    build::load(paths, purpose, &interface_exists)
}

/// Reads the public addresses again (`ctdb reloadips`), with all checks: `None` if there is an
/// error, and then the old ones stay. A node that only votes has none.
pub fn reload_public_addresses(config: &Config) -> (Option<Vec<PublicAddress>>, Report) {
    let mut report = Report::default();
    let list = build::public_addresses(&config.paths, &mut report).map(|list| {
        check::public_addresses(config, &list, &interface_exists, &mut report);
        if config.cluster.voter_only {
            Vec::new()
        } else {
            list
        }
    });
    (list.filter(|_| !report.has_errors()), report)
}

/// By its name or an alternative name.
pub(crate) fn interface_exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

/// The nodes list alone, for commands that need nothing else (`ctdb listnodes`, `onnode`).
pub fn load_nodes(paths: &Paths) -> (Option<Nodes>, Report) {
    let mut report = Report::default();
    let mut quiet = Report::default();
    let settings = Settings::read(paths, Severity::Note, &mut quiet);
    let text = settings.get("cluster", "nodes list").unwrap_or_default();
    let nodes = match NodesSource::parse(text) {
        Ok(source) => source.load(nodes::COMMAND_LIMIT, &mut report),
        Err(what) => {
            report.error(&paths.config, None, what, "correct `[cluster] nodes list`");
            None
        }
    };
    (nodes, report)
}

/// A number in C notation: decimal, `0x10`, `010`; 0 to 2^32-1.
fn c_integer(text: &str) -> Option<u32> {
    let (digits, radix) = if let Some(hex) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        (hex, 16)
    } else if let Some(octal) = text.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        (octal, 8)
    } else {
        (text, 10)
    };
    // `from_str_radix` would take a sign.
    digits
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then(|| u32::from_str_radix(digits, radix).ok())
        .flatten()
}

/// A file's bytes; `None` if there is no file. Never reads more than one byte over the limit.
fn read_bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, String> {
    // A pipe in place of a file is empty instead of waited for.
    let mut options = OpenOptions::new();
    let file = match options
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > limit {
        return Err(format!("is longer than {limit} bytes"));
    }
    Ok(Some(bytes))
}

/// A file's text; `None` if there is no file.
fn read_text(path: &Path, limit: u64) -> Result<Option<String>, String> {
    read_bytes(path, limit)?
        .map(|bytes| String::from_utf8(bytes).map_err(|_| "is not text (UTF-8)".to_owned()))
        .transpose()
}

#[cfg(test)]
mod tests;
