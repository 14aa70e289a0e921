//! What all connections share: packets come in, answers, deliveries and frames for other nodes
//! come out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ctdb_wire::api::Snapshot;
use ctdb_wire::api::databases::DatabaseClientView;
use ctdb_wire::client::packet::{
    Body, Header, INVALID_GENERATION, Message, Packet, Padding, Tunnel, TunnelFlags,
};
use ctdb_wire::client::srvid;
use ctdb_wire::client::types::{Connection, Statistics};
use ctdb_wire::ids::{BootTime, MAX_NODES, NodeFlags, NodeSet, Pnn};
use ctdb_wire::relay::{Assembler, Relay};
use tokio::sync::watch;

use super::AskKind;
use super::databases::Databases;
use super::parked::{Parked, Question};
use crate::bell::Bell;
use crate::config::{Tunable, Tunables};
use crate::failover::connections::Said;
use crate::messaging::processes::Processes;
use crate::messaging::registry::{ClientId, Registry};
use crate::messaging::routing::{Nodes, Route};

/// Bytes that one client may leave unread.
pub const MAX_UNREAD: usize = 256 << 20;
/// Bytes that all clients together may leave unread.
pub const MAX_UNREAD_ALL: usize = 1 << 30;
/// Controls that may wait for other nodes; at the bound they fail.
pub const MAX_FORWARDED: usize = 65_536;
/// Effects whose room is kept for the next ones.
const EFFECTS_KEPT: usize = 256;
/// Intervals of `ctdb stats`.
pub const HISTORY: usize = 100;

/// Texts of errors that CTDB's daemon gives (3.6).
pub(super) const DISCONNECTED: &str = "ctdb_control to disconnected node";
pub(super) const NODE_LOST: &str = "node is disconnected";
pub(super) const TIMED_OUT: &str = "ctdb_control timed out";

/// Who gets the answer to a control.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A client of this node, under its request number.
    Client(ClientId, u32),
    /// A client of this node that wants no answer.
    Silent(ClientId),
    /// Another node, under its number; 0 wants no answer.
    Peer(Pnn, u32),
}

impl Origin {
    /// The local client, which some controls need.
    pub(super) fn client(self) -> Option<ClientId> {
        match self {
            Self::Client(client, _) | Self::Silent(client) => Some(client),
            Self::Peer(..) => None,
        }
    }
}

/// What came of a control.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// This status, with what stands in the hub's payload.
    Status(i32),
    /// Status -1 without a word.
    Failed,
    /// The answer comes later.
    Later,
}

/// What to do with the main loop's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// Answer a control: status 0 or -1.
    Control(Origin),
    /// Answer GET_BAN_STATE.
    Ban(Origin),
    /// Send the own number, or -1, as a message; to nobody if its address is 0.
    Message {
        /// To that node.
        pnn: u32,
        /// There.
        srvid: u64,
    },
}

/// What is to be done outside.
#[derive(Debug)]
pub enum Effect {
    /// A frame for other nodes.
    Frame(NodeSet, Vec<u8>),
    /// A question for the main loop.
    Ask(AskKind, Then),
    /// GET_NODES_FILE.
    NodesFile(Origin),
    /// Something for the connection table.
    Connection(Said),
    /// GET_TCP_TICKLE_LIST: connections to an address, of one port unless it is 0.
    Connections(Origin, SocketAddr),
}

/// One connection.
pub(super) struct Client {
    pub(super) pid: i32,
    out: Vec<u8>,
    packets: u32,
    /// There is something to write, or it is to be closed.
    wake: Arc<Bell>,
    closing: bool,
    pub(super) notify: HashMap<u64, Vec<u8>>,
    pub(super) connections: Vec<Connection>,
    pub(super) persistent_updates: u32,
}

/// A control that waits for another node.
pub(super) struct Forwarded {
    pub(super) to: Pnn,
    pub(super) origin: Origin,
    pub(super) until: BootTime,
    /// What was asked, if it has to be asked again when the link is lost meanwhile.
    pub(super) question: Option<Question>,
}

/// See the module.
pub struct Hub {
    pub(super) me: Pnn,
    pub(super) port: u16,
    pub(super) tunables: Tunables,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) nodes: Nodes,
    pub(super) linked: NodeSet,
    pub(super) clients: HashMap<ClientId, Client>,
    pub(super) last_client: u32,
    /// Its packets are being taken in.
    serving: Option<ClientId>,
    /// The daemon ends.
    ended: bool,
    pub(super) registry: Registry,
    pub(super) processes: Processes,
    pub(super) databases: Databases,
    pub(super) forwarded: HashMap<u32, Forwarded>,
    pub(super) last_forwarded: u32,
    pub(super) parked: Parked,
    pub(super) assemblers: [Assembler; MAX_NODES],
    pub(super) unread: usize,
    pub(super) statistics: Statistics,
    pub(super) history: VecDeque<Statistics>,
    /// At the last sample of the history.
    pub(super) sampled: Statistics,
    pub(super) effects: Vec<Effect>,
    /// Payload of the answer that is being made.
    pub(super) payload: Vec<u8>,
    pub(super) now: BootTime,
    pub(super) second: BootTime,
    /// Since the last sample of the history.
    pub(super) seconds: u32,
}

impl Hub {
    /// A hub without clients and links.
    pub fn new(
        me: Pnn,
        port: u16,
        tunables: Tunables,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        wall_now: f64,
    ) -> Self {
        let snapshot = Arc::clone(&snapshots.borrow());
        let own: NodeSet = [me].into_iter().collect();
        let mut hub = Self {
            me,
            port,
            tunables,
            snapshots,
            snapshot,
            nodes: Nodes {
                me,
                listed: own,
                connected: own,
                active: own,
            },
            linked: own,
            clients: HashMap::new(),
            last_client: 0,
            serving: None,
            ended: false,
            registry: Registry::default(),
            processes: Processes::default(),
            databases: Databases::default(),
            forwarded: HashMap::new(),
            last_forwarded: 0,
            parked: Parked::default(),
            assemblers: std::array::from_fn(|_| Assembler::default()),
            unread: 0,
            statistics: Statistics::default(),
            history: VecDeque::new(),
            sampled: Statistics::default(),
            effects: Vec::new(),
            payload: Vec::new(),
            now: BootTime::ZERO,
            second: BootTime::ZERO,
            seconds: 0,
        };
        hub.statistics.start_time = wall_now.into();
        hub.statistics.current_time = wall_now.into();
        hub.sampled = hub.statistics;
        hub.look_at_nodes();
        hub
    }

    /// What is to be done outside, since the last time.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Gives their room back, when all are carried out.
    pub(super) fn keep_room(&mut self, mut effects: Vec<Effect>) {
        if self.effects.capacity() == 0 && effects.capacity() <= EFFECTS_KEPT {
            effects.clear();
            self.effects = effects;
        }
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn ask(&mut self, kind: AskKind, origin: Origin) -> Verdict {
        self.effects.push(Effect::Ask(kind, Then::Control(origin)));
        Verdict::Later
    }

    // ---- State of the node

    /// The newest state; nothing is copied unless it has changed.
    pub(super) fn refresh(&mut self) {
        if self.snapshots.has_changed().unwrap_or(false) {
            self.snapshot = Arc::clone(&self.snapshots.borrow_and_update());
            self.look_at_nodes();
        }
    }

    pub(super) fn look_at_nodes(&mut self) {
        let mut nodes = Nodes {
            me: self.me,
            listed: NodeSet::EMPTY,
            connected: NodeSet::EMPTY,
            active: NodeSet::EMPTY,
        };
        for node in &self.snapshot.nodes {
            let Ok(pnn) = Pnn::new(node.pnn) else {
                continue;
            };
            if node.flags.contains(NodeFlags::DELETED) {
                continue;
            }
            nodes.listed.insert(pnn);
            if self.linked.contains(pnn) {
                nodes.connected.insert(pnn);
                if !node.flags.intersects(NodeFlags::INACTIVE) {
                    nodes.active.insert(pnn);
                }
            }
        }
        // Before the first snapshot.
        nodes.listed.insert(self.me);
        nodes.connected.insert(self.me);
        if self.snapshot.nodes.is_empty() {
            nodes.active.insert(self.me);
        }
        self.nodes = nodes;
    }

    /// No node is active, and this one is to say so: the lowest that can be reached.
    pub(super) fn nobody_is_active(&self) -> bool {
        self.nodes.active.is_empty() && self.nodes.connected.iter().next() == Some(self.me)
    }

    pub(super) fn is_inactive(&self) -> bool {
        !self.nodes.active.contains(self.me)
    }

    /// Of the location masters' map; INVALID before the first recovery and on an inactive node.
    pub(super) fn generation(&self) -> u32 {
        if self.is_inactive() {
            INVALID_GENERATION
        } else {
            let generation = self.snapshot.generation.unwrap_or(INVALID_GENERATION);
            match self.recoveries() {
                0 => generation,
                // Other than every small number, and the same on all nodes that have recovered.
                more => (generation ^ more.wrapping_mul(0x9E37_79B9)).max(INVALID_GENERATION + 1),
            }
        }
    }

    // ---- Connections

    /// How many clients there are.
    pub fn count(&self) -> u32 {
        self.clients.len() as u32
    }

    /// The processes that are connected, by their number.
    pub fn list(&self) -> Vec<DatabaseClientView> {
        let mut counts: BTreeMap<i32, u32> = BTreeMap::new();
        for client in self.clients.values() {
            *counts.entry(client.pid).or_default() += 1;
        }
        let view = |(pid, connections)| DatabaseClientView { pid, connections };
        counts.into_iter().map(view).collect()
    }

    /// A process has connected. The handle says when there is something to write.
    pub fn connected(&mut self, pid: i32) -> (ClientId, Arc<Bell>) {
        loop {
            self.last_client = self.last_client.wrapping_add(1).max(1);
            if !self.clients.contains_key(&ClientId(self.last_client)) {
                break;
            }
        }
        let id = ClientId(self.last_client);
        let wake = Arc::new(Bell::default());
        self.clients.insert(
            id,
            Client {
                pid,
                out: Vec::new(),
                packets: 0,
                wake: Arc::clone(&wake),
                closing: self.ended,
                notify: HashMap::new(),
                connections: Vec::new(),
                persistent_updates: 0,
            },
        );
        self.registry.connected(id, pid);
        self.statistics.clients = self.count();
        (id, wake)
    }

    pub(super) fn client(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(&id)
    }

    /// The connection is over (1.5).
    pub fn gone(&mut self, id: ClientId) {
        self.refresh();
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        self.unread -= client.out.len();
        self.statistics.clients = self.count();
        for connection in &client.connections {
            self.connection_over(*connection);
        }
        self.registry.gone(id);
        if let Some(table) = &mut self.databases.table {
            table.gone(id);
        }
        self.forwarded
            .retain(|_, forwarded| forwarded.origin.client() != Some(id));
        self.parked.gone(id);
        if client.persistent_updates > 0 {
            tracing::warn!(
                pid = client.pid,
                "a client ended during a persistent update of the obsolete kind"
            );
        }
        for (srvid, data) in client.notify {
            self.message(self.nodes.connected, srvid, &data);
        }
    }

    /// Takes what waits to be written; `None` if the connection is to be closed. What cannot be
    /// written comes back with [`Hub::unwritten`].
    pub fn take_output(&mut self, id: ClientId) -> Option<Vec<u8>> {
        let client = self.clients.get_mut(&id)?;
        if client.closing {
            return None;
        }
        self.unread -= client.out.len();
        client.packets = 0;
        Some(std::mem::take(&mut client.out))
    }

    /// Bytes that the socket did not take: they go first.
    pub fn unwritten(&mut self, id: ClientId, rest: Vec<u8>) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let mut out = rest;
        self.unread += out.len();
        out.append(&mut client.out);
        client.out = out;
        client.packets = client.packets.max(1);
    }

    pub(super) fn close(&mut self, id: ClientId, why: &str) {
        if let Some(client) = self.clients.get_mut(&id)
            && !client.closing
        {
            tracing::warn!(pid = client.pid, "client is disconnected: {why}");
            client.closing = true;
            client.wake.ring();
        }
    }

    /// Every connection is to be closed, those that come from now on, too.
    pub fn end(&mut self) {
        self.ended = true;
        for client in self.clients.values_mut() {
            client.closing = true;
            client.wake.ring();
        }
    }

    /// Whether the connection is to be closed.
    pub fn is_closing(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_none_or(|client| client.closing)
    }

    /// Takes packets of one client in, whose output is taken afterwards, so it is not woken for it.
    pub fn serve<T>(&mut self, id: ClientId, take_in: impl FnOnce(&mut Self) -> T) -> T {
        self.serving = Some(id);
        let result = take_in(self);
        self.serving = None;
        result
    }

    /// Queues a packet for a client.
    pub(super) fn send(&mut self, id: ClientId, reqid: u32, body: Body<'_>) {
        self.send_from(id, self.me.get(), reqid, body);
    }

    pub(super) fn send_from(&mut self, id: ClientId, srcnode: u32, reqid: u32, body: Body<'_>) {
        let generation = self.generation();
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        if client.closing {
            return;
        }
        let before = client.out.len();
        let packet = Packet {
            header: Header {
                generation,
                destnode: 0,
                srcnode,
                reqid,
            },
            body,
        };
        packet.encode(Padding::Eight, &mut client.out);
        self.unread += client.out.len() - before;
        client.packets += 1;
        self.statistics.client_packets_sent = self.statistics.client_packets_sent.wrapping_add(1);
        let many = matches!(body, Body::Message(_))
            && client.packets > self.tunables.get(Tunable::MaxQueueDropMsg);
        let full = many || client.out.len() > MAX_UNREAD || self.unread > MAX_UNREAD_ALL;
        if before == 0 && self.serving != Some(id) {
            client.wake.ring();
        }
        if full {
            self.close(id, "it does not read what it is sent");
        }
    }

    // ---- Packets from clients

    /// A whole packet of a client. What is no packet of this protocol is ignored (1.3).
    pub fn packet(&mut self, id: ClientId, bytes: &[u8]) {
        self.refresh();
        let statistics = &mut self.statistics;
        statistics.client_packets_recv = statistics.client_packets_recv.wrapping_add(1);
        let packet = match Packet::decode(bytes) {
            Ok(packet) => packet,
            Err(error) => {
                tracing::debug!(%error, "a client's packet is ignored");
                return;
            }
        };
        let Packet { header, body } = packet;
        let count = &mut statistics.client;
        match body {
            Body::Control(control) => {
                count.req_control = count.req_control.wrapping_add(1);
                self.control(id, header, &control);
            }
            Body::Message(message) => {
                count.req_message = count.req_message.wrapping_add(1);
                let to = match self.nodes.route(header.destnode) {
                    Route::Here => [self.me].into_iter().collect(),
                    Route::Node(pnn) => [pnn].into_iter().collect(),
                    Route::Nodes(nodes) => nodes,
                    Route::Nowhere => return,
                };
                self.message(to, message.srvid, message.data);
            }
            Body::Tunnel(tunnel) => {
                count.req_tunnel = count.req_tunnel.wrapping_add(1);
                self.tunnel(header, &tunnel);
            }
            Body::Call(call) => {
                count.req_call = count.req_call.wrapping_add(1);
                self.call(id, header.reqid, &call);
            }
            _ => {}
        }
    }

    /// Sends a message to nodes, this one perhaps among them.
    pub(super) fn message(&mut self, to: NodeSet, srvid: u64, data: &[u8]) {
        let mut others = to;
        let here = others.remove(self.me);
        if !others.is_empty() {
            let frame = Relay::Message { srvid, data }.to_vec();
            self.frame_to(others, frame);
        }
        if here {
            self.deliver(srvid, data);
        }
    }

    /// Sends a message to one node.
    pub(super) fn message_to(&mut self, node: u32, srvid: u64, data: &[u8]) {
        match self.nodes.route(node) {
            Route::Here => self.deliver(srvid, data),
            Route::Node(pnn) => self.message([pnn].into_iter().collect(), srvid, data),
            Route::Nodes(_) | Route::Nowhere => {}
        }
    }

    pub(super) fn frame_to(&mut self, to: NodeSet, frame: Vec<u8>) {
        let sent = &mut self.statistics.node_packets_sent;
        *sent = sent.wrapping_add(to.len() as u32);
        self.effects.push(Effect::Frame(to, frame));
    }

    /// Delivers a message to those that have registered its address here (6.2).
    pub fn deliver(&mut self, srvid: u64, data: &[u8]) {
        if self.pushed(srvid, data) {
            return;
        }
        self.steward(srvid, data);
        for address in [srvid, srvid::ALL] {
            // One by one: each may be the last that fits.
            let mut at = 0;
            while let Some(client) = self.registry.handlers(address).get(at).copied() {
                self.send(client, 0, Body::Message(Message { srvid, data }));
                at += 1;
            }
            if srvid == srvid::ALL {
                return;
            }
        }
    }

    fn tunnel(&mut self, header: Header, tunnel: &Tunnel<'_>) {
        // Only real nodes, and only who has registered the tunnel on its own node (7).
        let Ok(to) = Pnn::new(header.destnode) else {
            return;
        };
        if self.registry.tunnel(tunnel.id).is_none() {
            return;
        }
        if to == self.me {
            self.tunnelled(
                self.me,
                tunnel.id,
                tunnel.flags.bits(),
                header.reqid,
                tunnel.data,
            );
        } else if self.nodes.connected.contains(to) {
            let frame = Relay::Tunnel {
                id: tunnel.id,
                flags: tunnel.flags.bits(),
                reqid: header.reqid,
                data: tunnel.data,
            }
            .to_vec();
            self.frame_to([to].into_iter().collect(), frame);
        }
    }

    /// Delivers a tunnel packet with its request number and its sender: CTDB loses both, so that
    /// request and reply do not find each other.
    pub(super) fn tunnelled(&mut self, from: Pnn, id: u64, flags: u32, reqid: u32, data: &[u8]) {
        if let Some(client) = self.registry.tunnel(id) {
            let flags = TunnelFlags::from_bits_retain(flags);
            let body = Body::Tunnel(Tunnel { id, flags, data });
            self.send_from(client, from.get(), reqid, body);
        }
    }

    // ---- Time

    /// Time passes: a tenth of a second between two calls is enough.
    pub fn tick(&mut self, now: BootTime) {
        self.refresh();
        self.now = now;
        self.deferred_attaches();
        let changes = self.registry.take_changes();
        let mut others = self.nodes.connected;
        others.remove(self.me);
        if !changes.is_empty() && !others.is_empty() {
            self.tell_processes(others, false, &changes);
        }
        if now.since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.every_second();
        }
    }

    fn every_second(&mut self) {
        let late: Vec<u32> = self
            .forwarded
            .iter()
            .filter(|(_, forwarded)| forwarded.until <= self.now)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            if let Some(forwarded) = self.forwarded.remove(&number) {
                self.statistics.timeouts.control += 1;
                self.fail(forwarded.origin, TIMED_OUT);
            }
        }
        self.parked_too_long();
        self.announce_leader();
        self.seconds += 1;
        if self.seconds >= self.tunables.get(Tunable::StatHistoryInterval) {
            self.seconds = 0;
            self.take_sample();
        }
    }

    /// What the leader's recovery daemon says in CTDB every second.
    fn announce_leader(&mut self) {
        if !self.registry.handlers(srvid::LEADER).is_empty() {
            let leader = self.leader_number().to_ne_bytes();
            self.deliver(srvid::LEADER, &leader);
        }
    }

    pub(super) fn leader_number(&self) -> u32 {
        self.snapshot
            .leader
            .unwrap_or(ctdb_wire::client::node::UNKNOWN)
    }

    /// Tells one client at once who leads, instead of up to a second later.
    pub(super) fn tell_leader(&mut self, client: ClientId) {
        if self.snapshot.leader.is_some() {
            let data = &self.leader_number().to_ne_bytes();
            let srvid = srvid::LEADER;
            self.send(client, 0, Body::Message(Message { srvid, data }));
        }
    }
}
