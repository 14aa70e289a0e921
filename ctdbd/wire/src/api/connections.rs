//! JSON of connections to public addresses: `/v1/connections` and below.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Most connections, and most clients, in one answer; `total` says how many there are.
pub const MAX_SHOWN: usize = 20_000;

/// Most connections in one request.
pub const MAX_GIVEN: usize = 512;

/// The two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ends {
    /// The client's.
    pub client: SocketAddr,
    /// The server's: a public address.
    pub server: SocketAddr,
}

/// One connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectionView {
    /// The client's end.
    pub client: SocketAddr,
    /// The server's end.
    pub server: SocketAddr,
    /// The node whose connection it is; `null` for what a lost node left behind.
    pub node: Option<u32>,
    /// Since when, in seconds since 1970; 0 if unknown.
    pub since: u32,
    /// Who made it known: `kernel`, `samba`, `manual`.
    pub sources: Vec<String>,
    /// Its node does not serve the address any more, and nobody has taken it yet.
    pub waiting: bool,
}

/// `GET /v1/connections` and `GET /v1/connections/{server}`
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ConnectionsView {
    /// The node that answers.
    pub node: u32,
    /// How many there are.
    pub total: u64,
    /// The first [`MAX_SHOWN`] of them.
    pub connections: Vec<ConnectionView>,
}

/// All connections of one client: the channels of an SMB multichannel session among them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClientView {
    /// The client's address.
    pub client: IpAddr,
    /// How many connections it has.
    pub count: u64,
    /// The first [`MAX_GIVEN`] of them, of all addresses and nodes.
    pub connections: Vec<ConnectionView>,
}

/// `GET /v1/connections/clients`
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ClientsView {
    /// The node that answers.
    pub node: u32,
    /// How many clients there are.
    pub total: u64,
    /// Those with most connections first.
    pub clients: Vec<ClientView>,
}

/// `POST /v1/connections/show`: everything that is known of one connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectionDetail {
    /// As in the list.
    pub connection: ConnectionView,
    /// `TCP_*` of the kernel in words, while this node has its socket.
    pub state: Option<String>,
    /// Process that holds the socket.
    pub pid: Option<u32>,
    /// Its name.
    pub command: Option<String>,
    /// Control group of the service.
    pub cgroup: Option<String>,
    /// Bytes received from the client.
    pub bytes_received: Option<u64>,
    /// Bytes sent to the client and acknowledged by it.
    pub bytes_acked: Option<u64>,
}

/// A UDP socket that answers on a public address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UdpView {
    /// Where it is bound; an unspecified address answers on all of its family.
    pub local: SocketAddr,
    /// The service that usually has this port.
    pub service: Option<String>,
    /// Process that holds it.
    pub pid: Option<u32>,
    /// Its name.
    pub command: Option<String>,
}

/// `GET /v1/connections/udp`
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct UdpServicesView {
    /// The node that answers.
    pub node: u32,
    /// Its services.
    pub services: Vec<UdpView>,
}

/// `GET /v1/connections/stats`, and a part of the snapshot. Counts are since the daemon's start.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ConnectionStats {
    /// `[conntrack] enabled`.
    pub enabled: bool,
    /// How connections are seen: `kernel`, or why not.
    pub source: String,
    /// How sockets are destroyed: `bpf_sock_destroy` or `sock_diag`.
    pub kill_method: String,
    /// `[conntrack] max connections`.
    pub max_connections: u32,
    /// Connections of this node now.
    pub own: u64,
    /// Those of its peers.
    pub replicated: u64,
    /// Those that lost nodes left behind.
    pub orphans: u64,
    /// Those whose clients are being told now.
    pub telling: u64,
    /// Connections that began here.
    pub opened: u64,
    /// Those that ended here.
    pub closed: u64,
    /// Changes sent to peers.
    pub changes_sent: u64,
    /// Changes received.
    pub changes_received: u64,
    /// Pieces of tables sent.
    pub parts_sent: u64,
    /// Pieces of tables received.
    pub parts_received: u64,
    /// Differences that comparisons found.
    pub diverged: u64,
    /// Links that fell behind.
    pub fell_behind: u64,
    /// Frames of peers that this node had no room for.
    pub frames_lost: u64,
    /// Entries of peers that were refused.
    pub refused: u64,
    /// Connections beyond `max connections`.
    pub overflowed: u64,
    /// Connections whose clients were to be told.
    pub told: u64,
    /// Tickles sent.
    pub tickles: u64,
    /// Tickles that the kernel refused.
    pub tickle_errors: u64,
    /// Sockets destroyed.
    pub killed: u64,
    /// UDP sockets that answered on addresses when these were released: their flows fell silent.
    pub udp_silenced: u64,
    /// Times that the kernel's events were lost and the table was read anew.
    pub overruns: u64,
    /// Connections that the kernel's table had no room for.
    pub table_full: u64,
    /// Times that the kernel's programs or tables were found gone and were put back.
    pub repairs: u64,
}

/// What is asked about connections, or done to them; at the node that it is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ConnectionAction {
    /// `GET /v1/connections`, `GET /v1/connections/{server}`
    List {
        /// To this address.
        address: Option<IpAddr>,
        /// And this port.
        port: Option<u16>,
    },
    /// `GET /v1/connections/clients`
    Clients,
    /// `GET /v1/connections/{server}/{client}`
    Show(Ends),
    /// `GET /v1/connections/udp`
    Udp,
    /// `GET /v1/connections/stats`
    Stats,
    /// `POST /v1/connections/add`
    Add(Vec<Ends>),
    /// `POST /v1/connections/del`
    Del(Vec<Ends>),
    /// `POST /v1/connections/kill`: destroy sockets of this node.
    Kill {
        /// These.
        connections: Vec<Ends>,
        /// And all on this address.
        address: Option<IpAddr>,
    },
    /// `POST /v1/connections/tickle`: one tickle from each server to its client.
    Tickle(Vec<Ends>),
}

impl ConnectionAction {
    /// Whether it changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::List { .. } | Self::Clients | Self::Show(_) | Self::Udp | Self::Stats
        )
    }
}

/// Body of the changes.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionsBody {
    /// At most [`MAX_GIVEN`].
    pub connections: Vec<Ends>,
    /// `kill` only: all connections of this node to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}
