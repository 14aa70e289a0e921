//! Node-to-node transport: one authenticated stream per pair of nodes, and the keys for datagrams
//! (`design.md` section 5).
//!
//! * [`key`]: the cluster key file; [`distribute`]: copying it to the nodes.
//! * [`handshake`]: Noise with the cluster key; versions, node numbers and cluster bound in.
//! * [`crypt`]: framing and encryption; [`link`]: one stream's queue and loop.
//! * [`datagram`]: sealing of heartbeats under keys of the link's session.
//! * [`refusal`]: why a connection is refused, counted, logged once per peer and reason.
//!
//! The node with the higher number dials, from its own address to the other's. A new
//! authenticated connection replaces the peer's old one, so that a restarted peer is not locked
//! out by a stream that is half dead.
//!
//! Bounds: [`link::MAX_QUEUED_FRAMES`] and [`link::MAX_QUEUED_BYTES`] per peer, at which the link
//! is closed and made anew, since its frames are state that is repeated; [`TransportConfig::events`]
//! events towards the main loop, at which links are read no further; [`listen::MAX_PENDING`]
//! connections that are not authenticated, at which the oldest of the source with most is closed.

pub mod crypt;
pub mod datagram;
mod dial;
pub mod distribute;
mod handle;
pub mod handshake;
pub mod key;
pub mod link;
pub mod listen;
pub mod refusal;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ctdb_wire::{
    ids::{Incarnation, MAX_NODES, Pnn},
    peer::PeerFrame,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Notify, mpsc, watch},
    time::timeout,
};

pub use datagram::SessionKeys;
pub use handle::TransportHandle;
use handshake::{Established, Identity};
pub use handshake::{Security, VersionRange};
pub use link::{DownReason, Relayed, Timings};
use link::{Link, Outgoing, Traffic};
use refusal::Refusals;

/// TCP port of the links (`spec/cluster.md`).
pub const DEFAULT_PORT: u16 = 4379;

/// Takes frames that carry clients' traffic ([`ctdb_wire::relay`]) where they are read, without
/// the detour over the main loop's events. Called in order: `up`, frames, `down`.
pub trait Relays: Send + Sync {
    /// A link stands.
    fn up(&self, pnn: Pnn);
    /// A frame came; its first byte is [`FIRST`](ctdb_wire::relay::FIRST) or more. False closes the
    /// link: it is no frame.
    fn frame(&self, pnn: Pnn, bytes: &[u8]) -> bool;
    /// What was queued has left; there is room again for those that were refused.
    fn room(&self, pnn: Pnn);
    /// The link is over.
    fn down(&self, pnn: Pnn);
}

/// Nobody takes such frames; a link that brings one is closed.
#[derive(Debug)]
pub struct NoRelays;

impl Relays for NoRelays {
    fn up(&self, _: Pnn) {}
    fn frame(&self, _: Pnn, _: &[u8]) -> bool {
        false
    }
    fn room(&self, _: Pnn) {}
    fn down(&self, _: Pnn) {}
}

/// What the transport is told at start.
#[derive(Clone)]
pub struct TransportConfig {
    /// Own node number.
    pub me: Pnn,
    /// All nodes that are not deleted, this one included, with their private addresses.
    pub nodes: Vec<(Pnn, IpAddr)>,
    /// TCP port, the same on all nodes.
    pub port: u16,
    /// Noise with the cluster key, or plain.
    pub security: Security,
    /// `[cluster] name`, or empty.
    pub cluster_name: String,
    /// This daemon's life; drawn at random, not zero.
    pub incarnation: Incarnation,
    /// As `ctdb version` prints it; longer than [`handshake::MAX_RELEASE`] bytes it is cut.
    pub release: String,
    /// Whether a connection must come from the address of the node that it claims. False only
    /// where addresses are translated in test set-ups.
    pub check_source: bool,
    /// Protocol versions; other than [`VersionRange::OURS`] only in tests.
    pub versions: VersionRange,
    /// Timing.
    pub timings: Timings,
    /// Events that may wait for the main loop.
    pub events: usize,
    /// Where frames of clients' traffic go.
    pub relays: Arc<dyn Relays>,
}

impl TransportConfig {
    /// A configuration with the usual port, timing and bounds.
    pub fn new(
        me: Pnn,
        nodes: Vec<(Pnn, IpAddr)>,
        security: Security,
        incarnation: Incarnation,
        release: impl Into<String>,
    ) -> Self {
        Self {
            me,
            nodes,
            port: DEFAULT_PORT,
            security,
            cluster_name: String::new(),
            incarnation,
            release: release.into(),
            check_source: true,
            versions: VersionRange::OURS,
            timings: Timings::default(),
            events: 256,
            relays: Arc::new(NoRelays),
        }
    }
}

/// Why the transport did not start.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The own number is not in the list.
    #[error("this node's number {0} is not in the nodes list; correct the list on this node")]
    NotInNodes(Pnn),
    /// A number or an address occurs twice.
    #[error("node {0} or its address occurs twice in the nodes list; correct the list")]
    Duplicate(Pnn),
    /// An incarnation of zero means "none known".
    #[error("the daemon's incarnation is zero; draw another")]
    NoIncarnation,
    /// Not called from within a tokio runtime.
    #[error("the transport was started outside of a tokio runtime")]
    NoRuntime,
    /// Listening failed.
    #[error(
        "listening on {address}: {source}; check that the address of this node in the nodes list \
         is on an interface, and that no other ctdbd runs"
    )]
    Listen {
        /// Own address and port.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
}

/// What the main loop is told. Events of one peer are in order: `Up`, its frames, `Down`.
#[derive(Debug)]
pub enum LinkEvent {
    /// A link stands.
    Up {
        /// The peer.
        pnn: Pnn,
        /// The peer's life.
        incarnation: Incarnation,
        /// The agreed protocol version.
        version: u16,
        /// The peer's release.
        release: String,
        /// Keys for datagrams; earlier ones of this peer are over.
        session: SessionKeys,
    },
    /// A frame came. Pings are not passed on, a goodbye is.
    Frame {
        /// The peer.
        pnn: Pnn,
        /// The life that sent it.
        incarnation: Incarnation,
        /// The frame, its bounds checked.
        frame: PeerFrame,
    },
    /// The link is over.
    Down {
        /// The peer.
        pnn: Pnn,
        /// The life that the link was with.
        incarnation: Incarnation,
        /// Why.
        reason: DownReason,
    },
}

/// One peer for display.
#[derive(Clone, PartialEq, Debug)]
pub struct LinkStatus {
    /// The peer.
    pub pnn: Pnn,
    /// Its private address.
    pub address: IpAddr,
    /// Whether this node dials it; else it dials this node.
    pub dials: bool,
    /// The link, if it is up.
    pub link: Option<LinkInfo>,
    /// Links since the start.
    pub links: u64,
    /// Why there is no link, or why the last one ended.
    pub last_problem: Option<String>,
    /// Frames that wait.
    pub queued_frames: usize,
    /// Bytes that wait.
    pub queued_bytes: usize,
    /// Frames sent since the start.
    pub frames_out: u64,
    /// Bytes sent since the start.
    pub bytes_out: u64,
    /// Frames received since the start.
    pub frames_in: u64,
    /// Bytes received since the start.
    pub bytes_in: u64,
}

/// A link that is up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// The peer's life.
    pub incarnation: Incarnation,
    /// The agreed protocol version.
    pub version: u16,
    /// The peer's release.
    pub release: String,
    /// Length of the peer's nodes list; another than ours is worth a look.
    pub nodes: u16,
    /// How long it has been up.
    pub up_for: Duration,
    /// Whether it is encrypted.
    pub encrypted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    /// Goodbyes leave; nothing new begins.
    Leaving,
    Ended,
}

struct Slot {
    outgoing: Arc<Outgoing>,
    /// From just before its `Up` event.
    up: bool,
    info: LinkInfo,
    since: Instant,
}

/// One other node.
struct Peer {
    pnn: Pnn,
    address: IpAddr,
    /// The link that counts: the newest that was authenticated.
    newest: Mutex<Option<Slot>>,
    /// The peer asks to be dialed without delay.
    knock: Notify,
    removed: watch::Sender<bool>,
    traffic: Arc<Traffic>,
    history: Mutex<History>,
}

#[derive(Default)]
struct History {
    links: u64,
    last_problem: Option<String>,
}

struct Shared {
    identity: Identity,
    own: IpAddr,
    port: u16,
    check_source: bool,
    timings: Timings,
    peers: Mutex<[Option<Arc<Peer>>; MAX_NODES]>,
    /// Of each node number; held from `Up` to `Down`, so that events of two links never mix.
    turns: [tokio::sync::Mutex<()>; MAX_NODES],
    events: mpsc::Sender<LinkEvent>,
    relays: Arc<dyn Relays>,
    refusals: Refusals,
    phase: watch::Sender<Phase>,
    tasks: watch::Sender<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    fn new(pnn: Pnn, address: IpAddr) -> Self {
        Self {
            pnn,
            address,
            newest: Mutex::new(None),
            knock: Notify::new(),
            removed: watch::Sender::new(false),
            traffic: Arc::default(),
            history: Mutex::default(),
        }
    }

    fn close(&self, reason: DownReason) {
        if let Some(slot) = &*lock(&self.newest) {
            slot.outgoing.close(reason);
        }
    }

    fn remove(&self) {
        self.removed.send_replace(true);
        self.close(DownReason::Removed);
    }

    /// Remembers why there is no link; logs it if it is news.
    fn problem(&self, text: String, log: bool) {
        let mut history = lock(&self.history);
        if history.last_problem.as_ref() != Some(&text) {
            if log {
                tracing::info!(node = %self.pnn, peer = %self.address, "no link: {text}");
            }
            history.last_problem = Some(text);
        }
    }
}

impl Shared {
    fn peer(&self, pnn: Pnn) -> Option<Arc<Peer>> {
        lock(&self.peers)[pnn.index()].clone()
    }

    fn all_peers(&self) -> Vec<Arc<Peer>> {
        lock(&self.peers).iter().flatten().cloned().collect()
    }

    fn is_running(&self) -> bool {
        *self.phase.borrow() == Phase::Running
    }

    /// Waits until nothing new shall begin.
    async fn leaving(&self) {
        let mut phase = self.phase.subscribe();
        // The sender is in self.
        let _ = phase.wait_for(|phase| *phase != Phase::Running).await;
    }

    /// Waits for room in the event channel; gives up when the transport has ended.
    async fn emit(&self, event: LinkEvent) {
        let mut phase = self.phase.subscribe();
        tokio::select! {
            _ = self.events.send(event) => {}
            _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
        }
    }

    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        struct Counted(Arc<Shared>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.tasks.send_modify(|tasks| *tasks -= 1);
            }
        }
        self.tasks.send_modify(|tasks| *tasks += 1);
        let counted = Counted(Arc::clone(self));
        tokio::spawn(async move {
            let _counted = counted;
            task.await;
        });
    }

    fn add_peer(self: &Arc<Self>, pnn: Pnn, address: IpAddr) {
        let peer = Arc::new(Peer::new(pnn, address));
        lock(&self.peers)[pnn.index()] = Some(Arc::clone(&peer));
        if pnn < self.identity.me {
            self.spawn(dial::run(Arc::clone(self), peer));
        } else {
            self.spawn(dial::knock(Arc::clone(self), peer));
        }
    }

    /// Runs an authenticated link to its end; returns how long it was up.
    async fn serve(&self, peer: &Peer, stream: TcpStream, established: Established) -> Duration {
        let Established {
            crypt,
            sent,
            received,
            ..
        } = established;
        let incarnation = established.incarnation;
        let outgoing = Arc::new(Outgoing::default());
        let slot = Slot {
            outgoing: Arc::clone(&outgoing),
            up: false,
            info: LinkInfo {
                incarnation,
                version: established.version,
                release: established.release.clone(),
                nodes: established.nodes,
                up_for: Duration::ZERO,
                encrypted: matches!(crypt, crypt::Crypt::Noise(_)),
            },
            since: Instant::now(),
        };
        if let Some(old) = lock(&peer.newest).replace(slot) {
            old.outgoing.close(DownReason::Replaced);
        }
        // Looked at after the slot is visible: whoever ends the transport or removes the peer
        // does it the other way round.
        if !self.is_running() {
            outgoing.close(DownReason::Shutdown);
        } else if *peer.removed.borrow() {
            outgoing.close(DownReason::Removed);
        }
        let turn = tokio::select! {
            turn = self.turns[peer.pnn.index()].lock() => Some(turn),
            _ = outgoing.closed() => None,
        };
        let mut up_for = Duration::ZERO;
        if turn.is_some() && outgoing.close_reason().is_none() {
            up_for = self
                .serve_in_turn(peer, stream, &outgoing, incarnation, |outgoing| {
                    (
                        Link {
                            peer: peer.pnn,
                            incarnation,
                            crypt,
                            sent,
                            received,
                            outgoing,
                            traffic: Arc::clone(&peer.traffic),
                            events: self.events.clone(),
                            relays: Arc::clone(&self.relays),
                            timings: self.timings,
                        },
                        LinkEvent::Up {
                            pnn: peer.pnn,
                            incarnation,
                            version: established.version,
                            release: established.release,
                            session: established.session,
                        },
                    )
                })
                .await;
        }
        let mut newest = lock(&peer.newest);
        if newest
            .as_ref()
            .is_some_and(|slot| Arc::ptr_eq(&slot.outgoing, &outgoing))
        {
            *newest = None;
        }
        up_for
    }

    async fn serve_in_turn(
        &self,
        peer: &Peer,
        stream: TcpStream,
        outgoing: &Arc<Outgoing>,
        incarnation: Incarnation,
        make: impl FnOnce(Arc<Outgoing>) -> (Link, LinkEvent),
    ) -> Duration {
        let start = Instant::now();
        {
            let mut newest = lock(&peer.newest);
            if let Some(slot) = &mut *newest
                && Arc::ptr_eq(&slot.outgoing, outgoing)
            {
                slot.up = true;
                slot.since = start;
            }
        }
        {
            let mut history = lock(&peer.history);
            history.links += 1;
            history.last_problem = None;
        }
        self.refusals.clear(peer.address);
        let (link, up) = make(Arc::clone(outgoing));
        if let LinkEvent::Up {
            version, release, ..
        } = &up
        {
            tracing::info!(
                node = %peer.pnn, peer = %peer.address, ?incarnation, version, release, "link up"
            );
        }
        self.emit(up).await;
        self.relays.up(peer.pnn);
        let (reader, writer) = stream.into_split();
        let reason = link.run(reader, writer).await;
        self.relays.down(peer.pnn);
        tracing::info!(node = %peer.pnn, peer = %peer.address, ?incarnation, %reason, "link down");
        peer.problem(reason.to_string(), false);
        self.emit(LinkEvent::Down {
            pnn: peer.pnn,
            incarnation,
            reason,
        })
        .await;
        start.elapsed()
    }
}

/// No delay for small frames, and a kernel that gives up when our time-out has passed.
fn prepare(stream: &TcpStream, timings: &Timings) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(timings.idle))
}

/// Starts transports.
#[derive(Debug)]
pub struct Transport;

impl Transport {
    /// Listens, dials the nodes with lower numbers, and returns the handle and the events. Must
    /// be called within a tokio runtime. A daemon that obeys `authority.md` rule 3 starts its
    /// detector on its own; links carry no right.
    pub fn start(
        config: TransportConfig,
    ) -> Result<(TransportHandle, mpsc::Receiver<LinkEvent>), TransportError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(TransportError::NoRuntime);
        }
        if config.incarnation == Incarnation::NONE {
            return Err(TransportError::NoIncarnation);
        }
        let me = config.me;
        check_nodes(&config.nodes)?;
        let own = config
            .nodes
            .iter()
            .find(|(pnn, _)| *pnn == me)
            .map(|(_, address)| *address)
            .ok_or(TransportError::NotInNodes(me))?;
        let address = SocketAddr::new(own, config.port);
        let listener =
            listen::bind(address).map_err(|source| TransportError::Listen { address, source })?;
        let (events, receiver) = mpsc::channel(config.events.max(1));
        let shared = Arc::new(Shared {
            identity: Identity {
                me,
                incarnation: config.incarnation,
                release: config.release,
                nodes: config.nodes.len() as u16,
                cluster_name: config.cluster_name,
                versions: config.versions,
                security: config.security,
            },
            own,
            port: config.port,
            check_source: config.check_source,
            timings: config.timings,
            peers: Mutex::new([const { None }; MAX_NODES]),
            turns: [const { tokio::sync::Mutex::const_new(()) }; MAX_NODES],
            events,
            relays: config.relays,
            refusals: Refusals::default(),
            phase: watch::Sender::new(Phase::Running),
            tasks: watch::Sender::new(0),
        });
        for (pnn, address) in config.nodes {
            if pnn != me {
                shared.add_peer(pnn, address);
            }
        }
        shared.spawn(listen::run(Arc::clone(&shared), listener));
        let handle = TransportHandle {
            _end: Arc::new(EndOnDrop(Arc::clone(&shared))),
            shared,
        };
        Ok((handle, receiver))
    }
}

fn check_nodes(nodes: &[(Pnn, IpAddr)]) -> Result<(), TransportError> {
    for (index, (pnn, address)) in nodes.iter().enumerate() {
        let before = &nodes[..index];
        if before
            .iter()
            .any(|(other, there)| other == pnn || there == address)
        {
            return Err(TransportError::Duplicate(*pnn));
        }
    }
    Ok(())
}

struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Shared {
    /// Ends everything at once, without goodbyes.
    fn end(&self) {
        self.phase.send_replace(Phase::Ended);
        for peer in self.all_peers() {
            peer.close(DownReason::Shutdown);
        }
    }
}

/// Opens a connection to `peer` from the own address.
async fn connect(shared: &Shared, peer: &Peer) -> io::Result<TcpStream> {
    let socket = match shared.own {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(shared.own, 0))?;
    let connecting = socket.connect(SocketAddr::new(peer.address, shared.port));
    let stream = timeout(shared.timings.connect, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    prepare(&stream, &shared.timings)?;
    Ok(stream)
}
