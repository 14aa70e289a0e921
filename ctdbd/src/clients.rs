//! The client socket: Samba's processes and CTDB's tool (`spec/client-protocol.md`).
//!
//! * [`hub`]: what all connections share; takes packets in, answers, delivers, forwards. Without
//!   sockets and clocks, so that two of them can be joined in a test.
//! * `control`: where controls go and how they are answered; `peers`: frames of other nodes.
//! * `answers`: controls that the state answers; `acts`: those that change something.
//! * `databases`: calls and controls about databases, and what databases say
//!   ([`crate::database`]).
//! * `alarms`: a timer of the databases that is finer than the runtime's.
//! * `steward`: messages that CTDB's recovery daemon took.
//! * `links`: frames to other nodes, in order, within the bounds of the links.
//! * `socket`: the Unix socket and the task of each connection.
//!
//! Everything runs on the main loop's thread: a packet is read, decided and answered there. What
//! comes in one read is taken in at once, and the answers leave in one write.
//!
//! Bounds: [`socket::MAX_CLIENTS`] connections, beyond which new ones wait in the listen queue;
//! packets ([`MAX_PACKET`](ctdb_wire::client::packet::MAX_PACKET)) and unfinished bytes of all
//! clients ([`socket::MAX_UNFINISHED`]), beyond which the connection is closed; bytes that a client
//! does not read ([`hub::MAX_UNREAD`] each, [`hub::MAX_UNREAD_ALL`] together, `MaxQueueDropMsg`
//! packets), beyond which it is closed; frames that wait for another node
//! (`links::BACKLOG`), beyond which the clients that send to it are read no further.

mod acts;
mod alarms;
mod answers;
mod control;
mod databases;
pub mod hub;
mod links;
mod parked;
mod peers;
pub mod socket;
mod steward;
mod stream;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ctdb_conntrack::table::Ends;
use ctdb_core::holder::Fate;
use ctdb_db::cluster::View;
use ctdb_ebpf::deadman::Deadman;
use ctdb_wire::api::databases::DatabaseClientView;
use ctdb_wire::api::{Action, ApiError, Snapshot};
use ctdb_wire::client::srvid;
use ctdb_wire::client::types::NodeMapEntry;
use ctdb_wire::ids::{BootTime, NodeSet, Pnn};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::config::{Tunable, Tunables};
use crate::database::table::Table;
use crate::database::{self, Outlet, Output};
use crate::failover::connections::{Connections, Teller};
use crate::messaging::registry::ClientId;
use crate::transport::{Relays, TransportHandle};
use alarms::Alarms;
use hub::{Effect, Hub, Origin};
use links::Links;
pub use socket::StartError;

/// Asks that may wait for the main loop; at the bound a control is answered with an error.
pub const ASKS: usize = 1024;

/// What a client asks of the main loop.
#[derive(Debug)]
pub enum AskKind {
    /// An action of the API, for this node or the leader. Verbs of a node are answered as soon as
    /// they are taken in: CTDB's tool waits for their effect itself.
    Act(Action),
    /// A tunable is set.
    SetTunable(Tunable, u32),
    /// How many seconds this node's ban lasts; 0 if there is none.
    BanSeconds,
}

/// A client's question with the way for its answer.
#[derive(Debug)]
pub struct Ask {
    /// The question.
    pub kind: AskKind,
    /// The answer.
    pub reply: oneshot::Sender<Result<Value, ApiError>>,
}

/// Reads the nodes list again; may take its time.
pub type NodesFile = Arc<dyn Fn() -> Option<Vec<NodeMapEntry>> + Send + Sync>;

/// What the room is told at start.
pub struct Setup {
    /// This node.
    pub me: Pnn,
    /// Where clients connect.
    pub socket: PathBuf,
    /// Port of the links, as it stands in node maps.
    pub port: u16,
    /// Values from the configuration.
    pub tunables: Tunables,
    /// Reads the nodes list.
    pub nodes_file: NodesFile,
    /// The node's state.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// To the main loop.
    pub asks: mpsc::Sender<Ask>,
    /// To the connection table, if there is one.
    pub connections: Option<Connections>,
}

struct Inner {
    hub: Hub,
    links: Links,
    table: Teller,
}

struct Shared {
    inner: Mutex<Inner>,
    asks: mpsc::Sender<Ask>,
    nodes_file: NodesFile,
    /// A backlog has become short enough.
    room: Notify,
    /// The daemon ends.
    ended: watch::Sender<bool>,
    /// Where there are databases.
    alarms: OnceLock<Arc<Alarms>>,
    me: Pnn,
}

/// The room. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "clients of node {}", self.shared.me)
    }
}

impl Clients {
    /// The room without its socket: other nodes' frames are served from now on.
    pub fn new(setup: Setup) -> Self {
        let hub = Hub::new(
            setup.me,
            setup.port,
            setup.tunables,
            setup.snapshots,
            crate::clock::wall_now(),
        );
        Self {
            shared: Arc::new(Shared {
                inner: Mutex::new(Inner {
                    hub,
                    links: Links::default(),
                    table: Teller::new(setup.connections),
                }),
                asks: setup.asks,
                nodes_file: setup.nodes_file,
                room: Notify::new(),
                ended: watch::Sender::new(false),
                alarms: OnceLock::new(),
                me: setup.me,
            }),
        }
    }

    /// For the transport.
    pub fn relays(&self) -> Arc<dyn Relays> {
        Arc::new(self.clone())
    }

    /// The links, once they are there.
    pub fn connect(&self, transport: TransportHandle) {
        self.lock().links.connect(transport);
    }

    /// This node has databases from now on; persistent ones are attached as their files are found.
    pub fn open_databases(
        &self,
        setup: database::Setup,
        deadman: Arc<Deadman>,
    ) -> std::io::Result<()> {
        let names = Table::found(&setup)?;
        if let Some(alarms) = Alarms::start(self)? {
            // Databases are opened once.
            let _ = self.shared.alarms.set(alarms);
        }
        let table = Table::new(setup, Some(deadman), Arc::new(self.clone()));
        self.with(|hub| hub.open_databases(table, &names));
        Ok(())
    }

    /// The slot of the right to serve that this node has, and what it sees of the cluster if it
    /// leads.
    pub fn follow_cluster(&self, right: Option<u32>, view: Option<View>) {
        self.with(|hub| hub.follow_cluster(right, view));
    }

    /// Whether databases are attached.
    pub fn has_databases(&self) -> bool {
        self.lock().hub.has_databases()
    }

    /// Whether all databases are served.
    pub fn databases_ready(&self) -> bool {
        self.lock().hub.databases_ready()
    }

    /// The newest recovery of the databases, if there are any, and whether one is under way.
    pub fn recoveries_seen(&self) -> (Option<(u64, u32)>, bool) {
        self.lock().hub.recoveries_seen()
    }

    /// What became of connections from a former right to these addresses, of those of which it is known
    /// in the right with this slot. Of the others there will be news ([`Clients::fates_known`]).
    pub fn fates(&self, right: u32, addresses: &[IpAddr]) -> Vec<(IpAddr, Fate)> {
        self.lock().hub.fates(right, addresses)
    }

    /// The databases have said something that was waited for.
    pub fn fates_known(&self) -> Arc<Notify> {
        self.lock().hub.fates_known()
    }

    /// Nothing that was connected to these addresses in a former right is here any more.
    pub fn ended(&self, addresses: &[IpAddr]) {
        self.lock().hub.ended(addresses);
    }

    /// Opens the socket and serves clients. Must be called in a tokio runtime.
    pub fn listen(&self, path: &std::path::Path) -> Result<(), StartError> {
        socket::start(self, path)
    }

    /// Closes the socket and every connection: for `ctdb shutdown` that is the answer.
    pub fn shutdown(&self) {
        self.shared.ended.send_replace(true);
        self.with(Hub::close_databases);
        self.with(Hub::end);
        self.lock().links.disconnect();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the hub take something in, and carries out what follows; returns also which nodes
    /// were sent something.
    fn with<T>(&self, take_in: impl FnOnce(&mut Hub) -> T) -> (T, NodeSet) {
        let mut inner = self.lock();
        let Inner { hub, links, table } = &mut *inner;
        let result = take_in(hub);
        let mut sent_to = NodeSet::EMPTY;
        let mut rest = Vec::new();
        let mut lists = Vec::new();
        let mut effects = hub.take_effects();
        for effect in effects.drain(..) {
            match effect {
                Effect::Frame(to, frame) => {
                    for pnn in to.iter() {
                        sent_to.insert(pnn);
                    }
                    links.send(to, frame);
                }
                Effect::Connection(said) => table.say(said),
                Effect::Connections(origin, address) => {
                    let (reply, answer) = oneshot::channel();
                    table.list(address.ip(), address.port(), reply);
                    lists.push((origin, address, answer));
                }
                other => rest.push(other),
            }
        }
        hub.keep_room(effects);
        drop(inner);
        for effect in rest {
            self.carry_out(effect);
        }
        for (origin, address, answer) in lists {
            self.await_list(origin, address, answer);
        }
        (result, sent_to)
    }

    fn await_list(
        &self,
        origin: Origin,
        address: SocketAddr,
        answer: oneshot::Receiver<Vec<Ends>>,
    ) {
        let clients = self.clone();
        tokio::spawn(async move {
            let list = answer.await.ok();
            clients.with(|hub| hub.connection_list(origin, address, list));
        });
    }

    fn carry_out(&self, effect: Effect) {
        match effect {
            Effect::Frame(..) | Effect::Connection(_) | Effect::Connections(..) => {}
            Effect::Ask(kind, then) => {
                let (reply, answer) = oneshot::channel();
                if self.shared.asks.try_send(Ask { kind, reply }).is_err() {
                    tracing::warn!("the main loop takes no more questions of clients");
                    self.with(|hub| hub.answered(then, Err(())));
                    return;
                }
                let clients = self.clone();
                tokio::spawn(async move {
                    let answer = match answer.await {
                        Ok(Ok(value)) => Ok(value),
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "a client's control failed");
                            Err(())
                        }
                        Err(_) => Err(()),
                    };
                    clients.with(|hub| hub.answered(then, answer));
                });
            }
            Effect::NodesFile(origin) => {
                let clients = self.clone();
                let read = Arc::clone(&self.shared.nodes_file);
                tokio::spawn(async move {
                    let nodes = tokio::task::spawn_blocking(move || read()).await;
                    clients.with(|hub| hub.nodes_file(origin, nodes.ok().flatten()));
                });
            }
        }
    }

    /// Whether one of these nodes has more waiting for it than its backlog shall have.
    fn is_congested(&self, nodes: NodeSet) -> bool {
        self.lock().links.is_congested(nodes)
    }

    /// Time passes; the main loop calls it with each of its ticks.
    pub fn tick(&self, now: BootTime) {
        self.with(|hub| hub.tick(now));
        self.lock().table.flush();
    }

    /// How many clients are connected.
    pub fn count(&self) -> u32 {
        self.lock().hub.count()
    }

    /// The processes that are connected, by their number.
    pub fn list(&self) -> Vec<DatabaseClientView> {
        self.lock().hub.list()
    }

    /// An address has fallen silent here (6.4).
    pub fn released(&self, address: IpAddr) {
        self.address_message(srvid::RELEASE_IP, address);
    }

    /// An address is served here.
    pub fn taken(&self, address: IpAddr) {
        self.address_message(srvid::TAKE_IP, address);
    }

    fn address_message(&self, srvid: u64, address: IpAddr) {
        let mut text = address.to_string().into_bytes();
        text.push(0);
        self.with(|hub| hub.deliver(srvid, &text));
    }

    /// Addresses have been distributed.
    pub fn reallocated(&self) {
        self.with(|hub| hub.deliver(srvid::IPREALLOCATED, &[]));
    }

    /// The cluster has a new generation. Where there are databases, clients are told when these are
    /// served in it.
    pub fn reconfigured(&self) {
        self.with(|hub| {
            if !hub.has_databases() {
                hub.deliver(srvid::RECONFIGURE, &[]);
            }
        });
    }

    fn gone(&self, client: ClientId) {
        self.with(|hub| hub.gone(client));
    }
}

impl Outlet for Clients {
    fn alarm(&self, db: u32, at: BootTime) -> bool {
        let alarms = self.shared.alarms.get();
        alarms.is_some_and(|alarms| alarms.set(db, at))
    }

    fn deliver(&self, outputs: Vec<Output>) {
        self.with(|hub| hub.database_says(outputs));
    }
}

impl Relays for Clients {
    fn up(&self, pnn: Pnn) {
        self.with(|hub| hub.link_up(pnn));
    }

    fn frame(&self, pnn: Pnn, bytes: &[u8]) -> bool {
        self.with(|hub| hub.frame(pnn, bytes)).0
    }

    fn room(&self, pnn: Pnn) {
        let congested = {
            let links = &mut self.lock().links;
            links.room(pnn);
            links.is_congested([pnn].into_iter().collect())
        };
        if !congested {
            self.shared.room.notify_waiters();
        }
    }

    fn down(&self, pnn: Pnn) {
        self.lock().links.down(pnn);
        self.shared.room.notify_waiters();
        self.with(|hub| hub.link_down(pnn));
    }
}
