//! The JSON of the HTTP API over Unix sockets (`design.md` section 5), shared by the daemon and
//! the command line.
//!
//! All times are seconds since 1970 (UTC, fractions kept) unless a name says `_ms`. What a field
//! means is the same on every path; `GET /v1/openapi.json` describes the paths.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{NodeFlags, RunState};

pub mod connections;
pub mod databases;
mod events;
mod processes;

use connections::{ConnectionAction, ConnectionStats};
pub use events::*;
pub use processes::*;

/// Longest request body, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// `GET /v1/status`: the whole state as one node sees it. Every other read is a part of it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// The node that answers.
    pub node: u32,
    /// `ctdb version`.
    pub release: String,
    /// Process number of its daemon.
    pub pid: u32,
    /// Its run state.
    pub run_state: RunState,
    /// When its daemon started.
    pub started_at: f64,
    /// Its wall clock now.
    pub now: f64,
    /// Changes with every recovery; `None` before the first.
    pub generation: Option<u32>,
    /// Location masters by hash.
    pub vnn_map: Vec<u32>,
    /// 0 NORMAL, 1 RECOVERY.
    pub recovery_mode: u32,
    /// The leader that it follows or is.
    pub leader: Option<u32>,
    /// Number of that leader's term.
    pub term: Option<u64>,
    /// Start and end of the last recovery or failover.
    pub last_recovery: Option<(f64, f64)>,
    /// Its right to serve.
    pub right: RightView,
    /// Every entry of the nodes list, deleted ones included.
    pub nodes: Vec<NodeView>,
    /// Every public address that any reachable node names, in the order in which they are shown.
    pub addresses: Vec<AddressView>,
    /// Interfaces of this node that public addresses name.
    pub interfaces: Vec<InterfaceView>,
    /// Its capabilities.
    pub capabilities: crate::peer::Capabilities,
    /// Cluster lock as configured.
    pub cluster_lock: Option<String>,
    /// Log level, as CTDB names them.
    pub log_level: String,
    /// Clients connected to the client socket.
    pub clients: u32,
    /// Where addresses are handled: `builtin` or `script`.
    pub addresses_by: String,
    /// Connections to public addresses.
    pub connections: ConnectionStats,
    /// Tunables that are not obsolete, in the order of `ctdb listvars` (`spec/cli.md` 6.8).
    pub tunables: Vec<TunableView>,
    /// The configuration that the daemon runs with. Not part of `GET /v1/status`; read with
    /// `GET /v1/config`.
    #[serde(skip)]
    pub config: Arc<ConfigView>,
}

/// One tunable.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TunableView {
    /// Its name, as CTDB spells it.
    pub name: String,
    /// Its value.
    pub value: u32,
}

/// `GET /v1/daemon`: the answering daemon alone; short, whatever the cluster's size.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonView {
    /// The node that answers.
    pub node: u32,
    /// `ctdb version`.
    pub release: String,
    /// Process number.
    pub pid: u32,
    /// Run state.
    pub run_state: RunState,
    /// When the daemon started.
    pub started_at: f64,
    /// Its wall clock now.
    pub now: f64,
    /// Clients connected to the client socket.
    pub clients: u32,
    /// The leader that it follows or is.
    pub leader: Option<u32>,
    /// Start and end of the last recovery or failover.
    pub last_recovery: Option<(f64, f64)>,
    /// Its capabilities.
    pub capabilities: crate::peer::Capabilities,
    /// Cluster lock as configured.
    pub cluster_lock: Option<String>,
    /// Log level, as CTDB names them.
    pub log_level: String,
}

/// `GET /v1/cluster`: the cluster in short.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterView {
    /// The node that answers.
    pub node: u32,
    /// The leader that it follows or is.
    pub leader: Option<u32>,
    /// Number of that leader's term.
    pub term: Option<u64>,
    /// Changes with every recovery.
    pub generation: Option<u32>,
    /// Location masters by hash.
    pub vnn_map: Vec<u32>,
    /// 0 NORMAL, 1 RECOVERY.
    pub recovery_mode: u32,
    /// Start and end of the last recovery or failover.
    pub last_recovery: Option<(f64, f64)>,
    /// The answering node's right to serve.
    pub right: RightView,
    /// Cluster lock as configured.
    pub cluster_lock: Option<String>,
    /// Where addresses are handled: `builtin` or `script`.
    pub addresses_by: String,
    /// Nodes of the list, deleted ones not counted.
    pub nodes: u32,
    /// Those without any flag.
    pub healthy: u32,
    /// Public addresses.
    pub addresses: u32,
    /// Those that nobody hosts.
    pub unhosted: u32,
}

/// `GET /v1/nodes`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct NodesView {
    /// The node that answers.
    pub node: u32,
    /// Every entry of the nodes list, deleted ones included.
    pub nodes: Vec<NodeView>,
}

/// `GET /v1/ips`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct AddressesView {
    /// The node that answers.
    pub node: u32,
    /// Every public address, in the order in which they are shown.
    pub addresses: Vec<AddressView>,
}

/// `GET /v1/interfaces`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct InterfacesView {
    /// The node that answers.
    pub node: u32,
    /// Its interfaces that public addresses name.
    pub interfaces: Vec<InterfaceView>,
}

/// `GET /v1/tunables`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TunablesView {
    /// In the order of `ctdb listvars`.
    pub tunables: Vec<TunableView>,
}

/// `GET /v1/log/level`, and the body of the `POST`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LogLevelView {
    /// `ERROR`, `WARNING`, `NOTICE`, `INFO` or `DEBUG`.
    pub level: String,
}

/// `GET /v1/cluster/history`: the answer to [`Action::History`].
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct HistoryView {
    /// Newest last.
    pub records: Vec<HistoryRecord>,
}

/// `GET /v1/config`: what the daemon runs with, which is not always what its files say now.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConfigView {
    /// Every option, in the order of `ctdb config dump`.
    pub options: Vec<ConfigOption>,
}

/// One option of the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConfigOption {
    /// Without brackets.
    pub section: String,
    /// As it stands in the file.
    pub key: String,
    /// Its value as text; `None` while it is unset.
    pub value: Option<String>,
    /// Nobody has set it.
    pub default: bool,
}

/// A node's right to serve.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RightView {
    /// Whether it is held.
    pub held: bool,
    /// Which right of this daemon's life, from 1.
    pub epoch: u32,
    /// How long it lasts without a further answer.
    pub remaining_ms: u64,
    /// How many nodes must answer.
    pub quorum: u32,
    /// How many configured nodes answer now, this one included.
    pub answering: u32,
}

/// One entry of the nodes list.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct NodeView {
    /// Its number.
    pub pnn: u32,
    /// Its address in the nodes list.
    pub address: String,
    /// Flags of `spec/cluster.md` 2.1; UNKNOWN is 64.
    pub flags: NodeFlags,
    /// The flags as `ctdb status` prints them.
    pub flags_text: String,
    /// The node that answers.
    pub this_node: bool,
    /// Its link to the answering node is up.
    pub linked: bool,
    /// Since its last heartbeat; `None` if it was never heard.
    pub heard_ms: Option<u64>,
    /// Silent for several heartbeats.
    pub suspected: bool,
    /// The leader has it answered no more.
    pub evicted: bool,
    /// It says that it holds a right.
    pub has_right: bool,
    /// Its run state.
    pub run_state: RunState,
    /// Its release.
    pub release: String,
    /// Its capabilities.
    pub capabilities: crate::peer::Capabilities,
    /// Why it is banned, stopped, disabled or unhealthy.
    pub reason: String,
    /// When its daemon started.
    pub started_at: f64,
    /// Only where the leader answers: what stands against it.
    #[serde(default)]
    pub ban_credits: Option<BanCredits>,
}

/// How far a node is from a ban (`spec/cluster.md` 2.9).
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct BanCredits {
    /// How often it failed at what it was asked for.
    pub credits: u32,
    /// So many ban it, unless `EnableBans` is 0.
    pub limit: u32,
    /// Time since the last; they are forgiven after `RecoveryGracePeriod`.
    pub last_ms: Option<u64>,
    /// What it failed at then.
    pub why: String,
}

/// One public address.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AddressView {
    /// The address.
    pub address: IpAddr,
    /// With its prefix length.
    pub net: IpNet,
    /// Who hosts it, as the leader says; `None` while unhosted or on its way.
    pub owner: Option<u32>,
    /// What the answering node does with it.
    pub here: Hold,
    /// The answering node's file names it.
    pub known_here: bool,
    /// Interfaces of the answering node's file.
    pub interfaces: Vec<String>,
    /// Those of them whose link is up.
    pub available: Vec<String>,
    /// The interface that carries it here.
    pub active: Option<String>,
    /// For each node that names it: its interfaces.
    pub nodes: BTreeMap<u32, AddressOnNode>,
}

/// A public address on one node.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct AddressOnNode {
    /// Configured interfaces.
    pub interfaces: Vec<String>,
    /// The interface that carries it there.
    pub active: Option<String>,
    /// That node could host it now.
    pub available: bool,
    /// It says itself that it hosts it.
    pub hosts: bool,
}

/// What a node does with a public address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Nothing.
    #[default]
    None,
    /// It takes it over.
    Taking,
    /// It serves it.
    Held,
    /// It is silent and lets go.
    Releasing,
}

/// One interface of the answering node.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Name.
    pub name: String,
    /// Link up, and not set down by the operator.
    pub up: bool,
    /// Addresses hosted on it.
    pub references: u32,
    /// Why it is down.
    pub reason: String,
}

/// `GET /v1/cluster/leader`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LeaderView {
    /// The leader, if one is known.
    pub leader: Option<u32>,
    /// Its term.
    pub term: Option<u64>,
    /// The answering node is the leader and acts.
    pub acting: bool,
    /// The leader's books: for each node what is known of it. Empty on other nodes.
    pub books: Vec<BookView>,
    /// Every order was carried out (of the leader's answer only).
    pub settled: bool,
}

/// What the leader knows of one host (`authority.md` rule 18).
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct BookView {
    /// The node.
    pub node: u32,
    /// `unknown`, `known` or `dead`.
    pub know: String,
    /// Addresses that it may hold.
    pub may_hold: u32,
}

/// `GET /v1/cluster/history`: one record of why and how long (OPS-1), newest last.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// When.
    pub at: f64,
    /// `leader`, `right`, `node`, `takeover`, `release`, `ban` ...
    pub kind: String,
    /// The node that it is about.
    pub node: Option<u32>,
    /// One line.
    pub text: String,
    /// Addresses concerned, at most the first 128.
    pub addresses: Vec<IpAddr>,
    /// Phases with their length in milliseconds.
    pub phases: Vec<(String, f64)>,
}

/// `GET /v1/ips/plan`: what a takeover run would do now.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PlanView {
    /// Addresses that would change their node.
    pub moves: Vec<PlannedMove>,
    /// Addresses that nobody can host.
    pub unhosted: Vec<IpAddr>,
    /// Addresses that stay.
    pub unchanged: u32,
    /// `NoIPTakeover` and the like.
    pub notes: Vec<String>,
}

/// One line of a plan.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PlannedMove {
    /// The address.
    pub address: IpAddr,
    /// Where it is.
    pub from: Option<u32>,
    /// Where it would go.
    pub to: Option<u32>,
    /// Why.
    pub reason: String,
}

/// `GET /v1/ips/{address}/why`: why an address is where it is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WhyView {
    /// The address.
    pub address: IpAddr,
    /// Who hosts it.
    pub owner: Option<u32>,
    /// Where the leader wants it.
    pub wanted: Option<u32>,
    /// Nodes that may still hold it.
    pub may_hold: Vec<u32>,
    /// For each node of the list: why it can host it, or why not.
    pub nodes: BTreeMap<u32, String>,
    /// Why it is hosted there, or nowhere, in one line.
    pub reason: String,
}

/// What a client asks the daemon to change, and reads that are computed in the main loop.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// `POST /v1/nodes/{pnn}/{verb}`; arrives at the node that it is about.
    Node {
        /// What to do.
        verb: NodeVerb,
        /// `ban`: for how many seconds.
        seconds: Option<u32>,
        /// Shown as the node's reason.
        reason: Option<String>,
    },
    /// `POST /v1/ips/move`; arrives at the leader.
    Move {
        /// What.
        address: IpAddr,
        /// Where to.
        to: u32,
    },
    /// `POST /v1/ips/reallocate`; arrives at the leader; answered when all orders are carried out.
    Reallocate,
    /// `POST /v1/ips/reload`: read the public addresses file again.
    ReloadAddresses,
    /// `POST /v1/ips/add`: one more public address of this node, until the file is read again.
    AddAddress {
        /// The address.
        address: IpAddr,
        /// Its prefix length.
        prefix: u8,
        /// Interfaces that may carry it.
        interfaces: Vec<String>,
    },
    /// `POST /v1/ips/remove`: the reverse.
    RemoveAddress {
        /// The address.
        address: IpAddr,
    },
    /// `POST /v1/ips/announce`: gratuitous ARP or neighbour advertisements for held addresses.
    Announce {
        /// One address, or all that this node holds.
        address: Option<IpAddr>,
        /// Where to announce an address that is no public address of the cluster.
        interface: Option<String>,
    },
    /// `POST /v1/interfaces/{name}/link`.
    InterfaceLink {
        /// Its name.
        name: String,
        /// What to take its link for.
        up: bool,
    },
    /// `POST /v1/log/level`.
    LogLevel {
        /// `ERROR`, `WARNING`, `NOTICE`, `INFO` or `DEBUG`.
        level: String,
    },
    /// `GET /v1/cluster/leader`; arrives at the leader where there is one.
    Leader,
    /// `GET /v1/cluster/history`.
    History,
    /// `GET /v1/nodes/source`: read the nodes list, and change nothing.
    NodesSource,
    /// `POST /v1/nodes/reload`: take on a changed nodes list, on all nodes.
    ReloadNodes {
        /// Only say what would change.
        dry_run: bool,
    },
    /// `POST /v1/nodes/apply`: this node's part of a reload.
    ApplyNodes {
        /// The list.
        nodes: Vec<NodeEntry>,
        /// What is to be done now.
        part: ApplyPart,
    },
    /// `GET /v1/cluster/lock`.
    Lock,
    /// `GET /v1/databases/clients`.
    DatabaseClients,
    /// `GET /v1/processes`.
    Processes,
    /// `GET /v1/processes/{id}`.
    Process {
        /// Its number in the list.
        id: u64,
    },
    /// `GET /v1/events` and `GET /v1/events/history`.
    Events {
        /// All runs, not only the last of each event.
        history: bool,
    },
    /// `GET /v1/events/status/{component}/{event}`.
    EventStatus {
        /// Component.
        component: String,
        /// Event.
        event: String,
    },
    /// `POST /v1/events/run/{component}/{event}`; answered when it has ended.
    EventRun {
        /// Component.
        component: String,
        /// Event.
        event: String,
        /// Its arguments.
        args: Vec<String>,
        /// For all scripts together; 0: no limit; `None`: that of the configuration.
        seconds: Option<u32>,
        /// Scripts behind one that failed run too.
        all: bool,
    },
    /// `GET /v1/events/scripts/{component}`.
    EventScripts {
        /// Component.
        component: String,
    },
    /// `POST /v1/events/scripts/{component}/{script}`.
    EventScript {
        /// Component.
        component: String,
        /// Script.
        script: String,
        /// Enable, or disable.
        enable: bool,
    },
    /// `GET /v1/ips/plan`; arrives at the leader.
    Plan,
    /// `GET /v1/ips/{address}/why`; arrives at the leader.
    Why {
        /// The address.
        address: IpAddr,
    },
    /// `POST /v1/capabilities`: roles at run time; `None` leaves one as it is.
    Capabilities {
        /// May lead.
        leader: Option<bool>,
        /// May be location master.
        lmaster: Option<bool>,
    },
    /// A `GET` that a snapshot answers, of another node than the one that was asked
    /// (`GET /v1/ips?node=2`), or one that has to pass through the main loop
    /// (`GET /v1/ping`).
    Read {
        /// The path, without the query.
        path: String,
    },
    /// `/v1/connections` and below.
    Connections(ConnectionAction),
}

impl Action {
    /// Where the action has to arrive.
    pub fn scope(&self) -> Scope {
        match self {
            Self::Move { .. } | Self::Reallocate | Self::Leader | Self::Plan | Self::Why { .. } => {
                Scope::Leader
            }
            _ => Scope::Node,
        }
    }

    /// Whether it changes nothing.
    pub fn is_read(&self) -> bool {
        if let Self::Connections(action) = self {
            return action.is_read();
        }
        matches!(
            self,
            Self::Leader
                | Self::History
                | Self::NodesSource
                | Self::Lock
                | Self::DatabaseClients
                | Self::Processes
                | Self::Process { .. }
                | Self::Events { .. }
                | Self::EventStatus { .. }
                | Self::EventScripts { .. }
                | Self::Plan
                | Self::Why { .. }
                | Self::Read { .. }
        )
    }
}

/// What a node is to do for a reload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplyPart {
    /// Remove the record of the old list, so that nothing waits for a disk later.
    Prepare,
    /// Take the list on as the leader's node, if it still is.
    First,
    /// Take it on; the leader's node has.
    #[default]
    Follow,
}

/// One line of the nodes list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its number.
    pub pnn: u32,
    /// Its private address; unspecified if it is deleted.
    pub address: IpAddr,
    /// Whether its line is commented out.
    pub deleted: bool,
}

/// `GET /v1/nodes/source`: the nodes list as this node's source gives it now.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SourceView {
    /// The node that was asked.
    pub node: u32,
    /// The list.
    pub nodes: Vec<NodeEntry>,
}

/// `POST /v1/nodes/reload`: what it changed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReloadView {
    /// Whether the list differs from the one in force.
    pub changed: bool,
    /// Nodes that are new.
    pub new: Vec<u32>,
    /// Nodes that are deleted.
    pub deleted: Vec<u32>,
    /// Nodes that were deleted and are back.
    pub undeleted: Vec<u32>,
    /// Nodes that have taken it on.
    pub applied: u32,
    /// What the operator has to see to.
    pub warnings: Vec<String>,
}

/// The cluster lock as one node sees it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LockView {
    /// `[cluster] cluster lock`.
    pub setting: String,
    /// `not wanted`, `being taken`, `held`, `held by another node`, `lost`, or what failed.
    pub state: String,
    /// Since when it is held; seconds since 1970.
    pub held_since: Option<f64>,
    /// Process number of the helper that holds it.
    pub pid: Option<u32>,
    /// How long the last attempt took.
    pub latency_ms: Option<f64>,
    /// Age of the last proof that it is held.
    pub proved_ms: Option<u64>,
}

/// Who carries out an [`Action`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The node that is asked.
    Node,
    /// The leader; any node passes it on.
    Leader,
}

/// Verbs of `POST /v1/nodes/{pnn}/{verb}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeVerb {
    /// Give its addresses away and take no new ones.
    Disable,
    /// The reverse.
    Enable,
    /// Leave the cluster's work until `start`.
    Stop,
    /// The reverse (`continue` of the old tool).
    Start,
    /// As `stop`, for a limited time.
    Ban,
    /// The reverse.
    Unban,
    /// End its daemon, gracefully.
    Shutdown,
}

impl NodeVerb {
    /// Every verb.
    pub const ALL: [Self; 7] = [
        Self::Disable,
        Self::Enable,
        Self::Stop,
        Self::Start,
        Self::Ban,
        Self::Unban,
        Self::Shutdown,
    ];

    /// The word in paths and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Ban => "ban",
            Self::Unban => "unban",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The answer to an action that changes something.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// False if the state was already as asked.
    pub changed: bool,
    /// What was done, in one line.
    pub message: String,
}

/// The body of every answer that is not a success (OPS-2).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Stable word, such as `no_leader`.
    pub code: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl ApiError {
    /// An error with its HTTP status, its word and its text.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
        }
    }
}
