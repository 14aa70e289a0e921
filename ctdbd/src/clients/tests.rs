//! Hubs of two nodes joined, without sockets.

mod processes;

use std::net::SocketAddr;

use ctdb_conntrack::table::Ends;
use ctdb_wire::api::{AddressView, Hold, NodeView};
use ctdb_wire::client::codec::{decode_all, encode_to_vec};
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::{
    Body, Call, CallFlags, CallId, Control, ControlFlags, Framed, Header, Message, Packet, Padding,
    Tunnel, TunnelFlags, framed,
};
use ctdb_wire::client::types::{
    Connection, DisableMessage, NotifyData, PidSrvid, SetTunable, SrvidMessage, TickleList,
    TunableName,
};
use ctdb_wire::connections::Sources;
use ctdb_wire::ids::{NodeFlags, NodeSet};

use super::*;
use crate::failover::connections::Said;

mod odd;
mod places;

const GENERATION: u32 = 0x1234_5678;

struct Node {
    hub: Hub,
    snapshots: watch::Sender<Arc<Snapshot>>,
    asks: Vec<(AskKind, hub::Then)>,
    said: Vec<Said>,
    /// Lists that were asked of the connection table.
    lists: Vec<(Origin, SocketAddr)>,
}

struct Pair {
    nodes: [Node; 2],
    now: BootTime,
}

fn pnn(number: usize) -> Pnn {
    Pnn::new(number as u32).unwrap()
}

fn snapshot(node: u32) -> Snapshot {
    let view = |pnn: u32| NodeView {
        pnn,
        address: format!("10.0.0.{}", pnn + 1),
        ..NodeView::default()
    };
    let address = "10.1.0.1".parse().unwrap();
    Snapshot {
        node,
        generation: Some(GENERATION),
        leader: Some(0),
        nodes: vec![view(0), view(1)],
        vnn_map: vec![0, 1],
        addresses: vec![AddressView {
            address,
            net: "10.1.0.1/24".parse().unwrap(),
            owner: Some(0),
            here: if node == 0 { Hold::Held } else { Hold::None },
            known_here: true,
            interfaces: Vec::new(),
            available: Vec::new(),
            active: None,
            nodes: std::collections::BTreeMap::new(),
        }],
        ..Snapshot::default()
    }
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            nodes: [0, 1].map(|number| {
                let (snapshots, receiver) = watch::channel(Arc::new(snapshot(number)));
                let tunables = Tunables::default();
                Node {
                    hub: Hub::new(pnn(number as usize), 4379, tunables, receiver, 1000.0),
                    snapshots,
                    asks: Vec::new(),
                    said: Vec::new(),
                    lists: Vec::new(),
                }
            }),
            now: BootTime::from_millis(1000),
        };
        for number in 0..2 {
            pair.nodes[number].hub.link_up(pnn(1 - number));
        }
        pair.settle();
        pair
    }

    /// Carries frames until there are none.
    fn settle(&mut self) {
        loop {
            let mut frames = Vec::new();
            for (number, node) in self.nodes.iter_mut().enumerate() {
                for effect in node.hub.take_effects() {
                    match effect {
                        Effect::Frame(to, frame) => {
                            assert_eq!(to, [pnn(1 - number)].into_iter().collect());
                            frames.push((number, frame));
                        }
                        Effect::Ask(kind, then) => node.asks.push((kind, then)),
                        Effect::Connection(said) => node.said.push(said),
                        Effect::Connections(origin, address) => node.lists.push((origin, address)),
                        Effect::NodesFile(origin) => node.hub.nodes_file(origin, None),
                    }
                }
            }
            if frames.is_empty() {
                return;
            }
            for (from, frame) in frames {
                assert!(self.nodes[1 - from].hub.frame(pnn(from), &frame));
            }
        }
    }

    fn tick(&mut self, ms: u64) {
        self.now += std::time::Duration::from_millis(ms);
        for node in &mut self.nodes {
            node.hub.tick(self.now);
        }
        self.settle();
    }

    fn client(&mut self, node: usize, pid: i32) -> ClientId {
        self.nodes[node].hub.connected(pid).0
    }

    fn packet(&mut self, node: usize, client: ClientId, header: Header, body: Body<'_>) {
        let bytes = Packet { header, body }.to_vec(Padding::Exact);
        self.nodes[node].hub.packet(client, &bytes);
        self.settle();
    }

    fn control_with(
        &mut self,
        at: (usize, ClientId),
        to: u32,
        srvid: u64,
        flags: ControlFlags,
        request: &Request<'_>,
    ) {
        let header = Header {
            destnode: to,
            ..Header::to_own(7)
        };
        let body = Body::Control(Control {
            opcode: request.opcode() as u32,
            srvid,
            client_id: 0,
            flags,
            data: &encode_to_vec(request),
        });
        self.packet(at.0, at.1, header, body);
    }

    /// Status, payload and error text of the one reply.
    fn control(
        &mut self,
        at: (usize, ClientId),
        to: u32,
        srvid: u64,
        request: &Request<'_>,
    ) -> (i32, Vec<u8>, String) {
        self.control_with(at, to, srvid, ControlFlags::empty(), request);
        let [one] = self.received(at).try_into().unwrap();
        let packet = Packet::decode(&one).unwrap();
        let Body::ReplyControl(reply) = packet.body else {
            panic!("no reply: {packet:?}");
        };
        assert_eq!(packet.header.reqid, 7);
        assert_eq!(packet.header.srcnode, at.0 as u32);
        (
            reply.status,
            reply.data.to_vec(),
            String::from_utf8(reply.error.to_vec()).unwrap(),
        )
    }

    fn register(&mut self, at: (usize, ClientId), srvid: u64) {
        let reply = self.control(at, node::CURRENT, srvid, &Request::RegisterSrvid);
        assert_eq!(reply.0, 0);
    }

    fn send(&mut self, at: (usize, ClientId), to: u32, srvid: u64, data: &[u8]) {
        let header = Header {
            destnode: to,
            ..Header::to_own(0)
        };
        self.packet(at.0, at.1, header, Body::Message(Message { srvid, data }));
    }

    /// Whole packets that wait for a client.
    fn received(&mut self, (node, client): (usize, ClientId)) -> Vec<Vec<u8>> {
        let bytes = self.nodes[node].hub.take_output(client).unwrap();
        let mut rest = &bytes[..];
        let mut packets = Vec::new();
        while !rest.is_empty() {
            let Framed::Packet(length) = framed(rest) else {
                panic!("half a packet");
            };
            assert_eq!(length % 8, 0);
            packets.push(rest[..length].to_vec());
            rest = &rest[length..];
        }
        packets
    }

    fn messages(&mut self, at: (usize, ClientId)) -> Vec<(u64, Vec<u8>)> {
        let list = self.received(at);
        list.iter()
            .map(|packet| match Packet::decode(packet).unwrap() {
                Packet {
                    header,
                    body: Body::Message(message),
                } => {
                    assert_eq!(
                        (header.srcnode, header.destnode, header.reqid),
                        (at.0 as u32, 0, 0)
                    );
                    (message.srvid, message.data.to_vec())
                }
                other => panic!("no message: {other:?}"),
            })
            .collect()
    }

    fn change(&mut self, node: usize, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = (**self.nodes[node].snapshots.borrow()).clone();
        change(&mut snapshot);
        self.nodes[node].snapshots.send_replace(Arc::new(snapshot));
    }
}

#[test]
fn messages_go_where_they_should() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let b = (1, pair.client(1, 20));
    for at in [a, b] {
        pair.register(at, 5);
    }
    pair.send(a, 1, 5, b"there");
    pair.send(a, node::CURRENT, 5, b"here");
    pair.send(a, 0, 5, b"own");
    pair.send(a, 9, 5, b"nowhere");
    pair.send(a, node::MULTICAST, 5, b"nowhere");
    pair.send(a, node::BROADCAST_CONNECTED, 5, b"all");
    let message = |text: &str| (5, text.as_bytes().to_vec());
    assert_eq!(
        pair.messages(a),
        [message("here"), message("own"), message("all")]
    );
    assert_eq!(pair.messages(b), [message("there"), message("all")]);
    // A stopped node is not active, but connected.
    for at in 0..2 {
        pair.change(at, |snapshot| snapshot.nodes[1].flags = NodeFlags::STOPPED);
    }
    pair.send(a, node::BROADCAST_ACTIVE, 5, b"active");
    pair.send(a, node::BROADCAST_ALL, 5, b"all");
    assert_eq!(pair.messages(b), [message("all")]);
    assert_eq!(pair.messages(a), [message("active"), message("all")]);
}

#[test]
fn a_megabyte_and_every_registration_arrive() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let b = (1, pair.client(1, 20));
    for srvid in [5, 5, srvid::ALL] {
        pair.register(b, srvid);
    }
    let long = vec![7; 3 << 20];
    pair.send(a, 1, 5, &long);
    let got = pair.messages(b);
    assert_eq!(got.len(), 3, "twice, and once for every message");
    assert!(got.iter().all(|(srvid, data)| *srvid == 5 && *data == long));
}

#[test]
fn controls_of_other_nodes_and_their_errors() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    assert_eq!(pair.control(a, 1, 0, &Request::GetPnn).0, 1);
    let (status, data, _) = pair.control(a, 1, 0, &Request::GetNodeMap);
    let Ok(Reply::NodeMap(map)) = Reply::decode(Opcode::GetNodeMap, &data) else {
        panic!("no map");
    };
    assert_eq!((status, map.len()), (0, 2));
    assert_eq!(map[1].address.to_string(), "10.0.0.2:4379");
    let gone = "ctdb_control to disconnected node".to_owned();
    for to in [2, 77, node::MULTICAST, node::UNKNOWN] {
        let failed = (-1, Vec::new(), gone.clone());
        assert_eq!(pair.control(a, to, 0, &Request::GetPnn), failed);
    }
    // What needs a client of the node that carries it out.
    assert_eq!(pair.control(a, 1, 9, &Request::RegisterSrvid).0, -1);
    // Broadcasts: carried out everywhere without an answer; with one they are not.
    let ask = &Request::GetPnn;
    pair.control_with(a, node::BROADCAST_ALL, 0, ControlFlags::NO_REPLY, ask);
    pair.control_with(a, node::BROADCAST_ALL, 0, ControlFlags::empty(), ask);
    assert!(pair.received(a).is_empty());
    assert_eq!(pair.nodes[1].hub.statistics.node.req_control, 4);

    // The node goes while it is asked.
    let header = Header {
        destnode: 1,
        ..Header::to_own(7)
    };
    let control = Control {
        opcode: Opcode::GetPnn as u32,
        srvid: 0,
        client_id: 0,
        flags: ControlFlags::empty(),
        data: &[],
    };
    let bytes = Packet {
        header,
        body: Body::Control(control),
    }
    .to_vec(Padding::Exact);
    let hub = &mut pair.nodes[0].hub;
    hub.packet(a.1, &bytes);
    assert_eq!(hub.take_effects().len(), 1);
    hub.packet(a.1, &bytes);
    hub.link_down(pnn(1));
    let replies = pair.received(a);
    assert_eq!(replies.len(), 2);
    for reply in replies {
        let Body::ReplyControl(reply) = Packet::decode(&reply).unwrap().body else {
            panic!("no reply");
        };
        assert_eq!(
            (reply.status, reply.error),
            (-1, &b"node is disconnected"[..])
        );
    }
}

#[test]
fn a_node_that_does_not_answer_is_waited_for_as_long_as_the_tunable_says() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    pair.tick(1000);
    let header = Header {
        destnode: 1,
        ..Header::to_own(3)
    };
    let body = Body::Control(Control {
        opcode: Opcode::GetPnn as u32,
        srvid: 0,
        client_id: 0,
        flags: ControlFlags::empty(),
        data: &[],
    });
    let bytes = Packet { header, body }.to_vec(Padding::Exact);
    let hub = &mut pair.nodes[0].hub;
    hub.packet(a.1, &bytes);
    hub.take_effects();
    pair.tick(59_000);
    assert!(pair.received(a).is_empty());
    pair.tick(2000);
    let [reply] = pair.received(a).try_into().unwrap();
    let Body::ReplyControl(reply) = Packet::decode(&reply).unwrap().body else {
        panic!("no reply");
    };
    assert_eq!(reply.error, b"ctdb_control timed out");
    assert_eq!(pair.nodes[0].hub.statistics.timeouts.control, 1);
}

#[test]
fn tunnels_carry_request_and_reply() {
    let id = 0xFFFF_FFFF_0000_0000;
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let b = (1, pair.client(1, 20));
    let tunnel = |flags, data| Body::Tunnel(Tunnel { id, flags, data });
    let to = |destnode, reqid| Header {
        destnode,
        ..Header::to_own(reqid)
    };
    // Not registered by the sender: dropped.
    let own = |pair: &mut Pair, at| {
        pair.control(at, node::CURRENT, id, &Request::TunnelRegister)
            .0
    };
    assert_eq!(own(&mut pair, b), 0);
    pair.packet(0, a.1, to(1, 41), tunnel(TunnelFlags::REQUEST, b"x"));
    assert!(pair.received(b).is_empty());
    assert_eq!(own(&mut pair, a), 0);
    let other = (0, pair.client(0, 11));
    assert_eq!(own(&mut pair, other), -1, "taken");
    pair.packet(0, a.1, to(1, 41), tunnel(TunnelFlags::REQUEST, b"x"));
    let [request] = pair.received(b).try_into().unwrap();
    let request = Packet::decode(&request).unwrap();
    assert_eq!((request.header.srcnode, request.header.reqid), (0, 41));
    assert_eq!(request.body, tunnel(TunnelFlags::REQUEST, b"x"));
    let back = to(request.header.srcnode, request.header.reqid);
    pair.packet(1, b.1, back, tunnel(TunnelFlags::REPLY, b"y"));
    let [reply] = pair.received(a).try_into().unwrap();
    let reply = Packet::decode(&reply).unwrap();
    assert_eq!((reply.header.srcnode, reply.header.reqid), (1, 41));
    for nowhere in [node::CURRENT, node::BROADCAST_ALL, 9] {
        pair.packet(0, a.1, to(nowhere, 1), tunnel(TunnelFlags::REQUEST, b"x"));
    }
    assert!(pair.received(a).is_empty() && pair.received(b).is_empty());
}

#[test]
fn who_goes_is_announced_and_leaves_nothing() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let b = (1, pair.client(1, 20));
    pair.register(b, 77);
    let notify = NotifyData {
        srvid: 77,
        data: b"gone",
    };
    let own = node::CURRENT;
    assert_eq!(
        pair.control(a, own, 0, &Request::RegisterNotify(notify)).0,
        0
    );
    assert_eq!(
        pair.control(a, own, 0, &Request::RegisterNotify(notify)).0,
        -1
    );
    let second = NotifyData {
        srvid: 78,
        data: b"",
    };
    pair.control(a, own, 0, &Request::RegisterNotify(second));
    assert_eq!(pair.control(a, own, 0, &Request::DeregisterNotify(78)).0, 0);
    assert_eq!(
        pair.control(a, own, 0, &Request::DeregisterNotify(78)).0,
        -1
    );
    assert_eq!(pair.control(a, own, 1, &Request::DeregisterSrvid).0, 2);
    pair.nodes[0].hub.gone(a.1);
    pair.settle();
    assert_eq!(pair.messages(b), [(77, b"gone".to_vec())]);
    assert_eq!(pair.nodes[0].hub.count(), 0);
}

#[test]
fn connections_of_a_public_address_go_to_the_table() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let b = (1, pair.client(1, 20));
    let connection = |server: &str| Connection {
        client: "10.9.9.9:40000".parse().unwrap(),
        server: server.parse().unwrap(),
    };
    let held = connection("[::ffff:10.1.0.1]:445");
    let ends = Ends {
        client: "10.9.9.9:40000".parse().unwrap(),
        server: "10.1.0.1:445".parse().unwrap(),
    };
    let own = node::CURRENT;
    let said = |pair: &mut Pair, node: usize| std::mem::take(&mut pair.nodes[node].said);
    let opened = Said::Opened(ends, Sources::SAMBA);
    let closed = Said::Closed(ends, Sources::SAMBA);
    assert_eq!(pair.control(a, own, 0, &Request::TcpClient(held)).0, 0);
    assert_eq!(said(&mut pair, 0), std::slice::from_ref(&opened));
    // Hosted elsewhere; not public.
    assert_eq!(pair.control(b, own, 0, &Request::TcpClient(held)).0, -1);
    let foreign = Request::TcpClient(connection("10.5.5.5:445"));
    assert_eq!(pair.control(a, own, 0, &foreign).0, 0);
    assert_eq!((said(&mut pair, 0), said(&mut pair, 1)), (vec![], vec![]));
    // Another process has it now: nothing is forgotten, also when the first one goes.
    let passed = Request::TcpClientPassed(held);
    assert_eq!(pair.control(a, own, 0, &passed).0, 0);
    pair.nodes[0].hub.gone(a.1);
    pair.settle();
    assert_eq!(said(&mut pair, 0), []);
    // One that ends, and one that says that it has no connection any more.
    let a = (0, pair.client(0, 11));
    pair.control(a, own, 0, &Request::TcpClient(held));
    pair.nodes[0].hub.gone(a.1);
    pair.settle();
    assert_eq!(said(&mut pair, 0), [opened.clone(), closed.clone()]);
    let a = (0, pair.client(0, 12));
    pair.control(a, own, 0, &Request::TcpClient(held));
    let over = Request::TcpClientDisconnected(held);
    assert_eq!(pair.control(a, own, 0, &over).0, 0);
    pair.nodes[0].hub.gone(a.1);
    pair.settle();
    assert_eq!(said(&mut pair, 0), [opened, closed]);
    // By hand, on either node.
    let a = (0, pair.client(0, 13));
    for request in [Request::TcpAdd(held), Request::TcpAddDelayedUpdate(held)] {
        assert_eq!(pair.control(b, own, 0, &request).0, 0);
        assert_eq!(said(&mut pair, 1), [Said::Opened(ends, Sources::MANUAL)]);
    }
    assert_eq!(pair.control(b, own, 0, &Request::TcpRemove(held)).0, 0);
    let by_hand = Sources::MANUAL.union(Sources::SAMBA);
    assert_eq!(said(&mut pair, 1), [Said::Closed(ends, by_hand)]);
    assert_eq!(pair.control(a, 1, 0, &Request::TcpAdd(held)).0, 0);
    assert_eq!(said(&mut pair, 1).len(), 1, "through another node");
    let refused = Request::TcpAdd(connection("10.5.5.5:445"));
    assert_eq!(pair.control(b, own, 0, &refused).0, -1);
    // A whole list, of which the address's host does not want to hear.
    let list = Request::SetTcpTickleList(TickleList {
        address: "10.1.0.1:0".parse().unwrap(),
        connections: vec![held, connection("10.1.0.2:445")],
    });
    assert_eq!(pair.control(a, own, 0, &list).0, 0);
    assert_eq!(pair.control(b, own, 0, &list).0, 0);
    assert_eq!(said(&mut pair, 0), []);
    assert_eq!(
        said(&mut pair, 1),
        [Said::Exactly(ends.server.ip(), vec![ends])]
    );
}

#[test]
fn lists_of_connections_are_answered_by_the_table() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let own = node::CURRENT;
    let unknown = Request::GetTcpTickleList("10.5.5.5:0".parse().unwrap());
    assert_eq!(pair.control(a, own, 0, &unknown).0, 1);
    let server: SocketAddr = "10.1.0.1:445".parse().unwrap();
    let ask = Request::GetTcpTickleList(SocketAddr::new("::ffff:10.1.0.1".parse().unwrap(), 445));
    let client = "10.9.9.9:40000".parse().unwrap();
    for (to, at) in [(own, 0), (1, 1)] {
        pair.control_with(a, to, 0, ControlFlags::empty(), &ask);
        let (origin, address) = pair.nodes[at].lists.pop().unwrap();
        assert_eq!(address, server);
        let hub = &mut pair.nodes[at].hub;
        hub.connection_list(origin, address, Some(vec![Ends { client, server }]));
        pair.settle();
        let [reply] = pair.received(a).try_into().unwrap();
        let Body::ReplyControl(reply) = Packet::decode(&reply).unwrap().body else {
            panic!("no reply");
        };
        let Ok(Reply::Tickles(list)) = Reply::decode(Opcode::GetTcpTickleList, reply.data) else {
            panic!("no list");
        };
        assert_eq!((list.address, reply.status), (server, 0));
        assert_eq!(list.connections, [Connection { client, server }]);
    }
    // The table is gone.
    pair.control_with(a, own, 0, ControlFlags::empty(), &ask);
    let (origin, address) = pair.nodes[0].lists.pop().unwrap();
    pair.nodes[0].hub.connection_list(origin, address, None);
    let [reply] = pair.received(a).try_into().unwrap();
    let Body::ReplyControl(reply) = Packet::decode(&reply).unwrap().body else {
        panic!("no reply");
    };
    assert_eq!(reply.status, -1);
}

#[test]
fn tunables_and_actions_reach_the_main_loop() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let own = node::CURRENT;
    let set = |name: &'static str| {
        Request::SetTunable(SetTunable {
            value: 31,
            name: TunableName(name.as_bytes()),
        })
    };
    assert_eq!(pair.control(a, own, 0, &set("NoSuchThing")).0, -1);
    assert_eq!(pair.control(a, own, 0, &set("VerifyRecoveryLock")).0, 1);
    pair.control_with(a, own, 0, ControlFlags::empty(), &set("RecoverTimeout"));
    let (kind, then) = pair.nodes[0].asks.pop().unwrap();
    assert!(matches!(
        kind,
        AskKind::SetTunable(Tunable::RecoverTimeout, 31)
    ));
    assert!(pair.received(a).is_empty(), "answered when it is done");
    pair.nodes[0].hub.answered(then, Ok(Value::Null));
    assert_eq!(pair.received(a).len(), 1);
    let get = Request::GetTunable(TunableName(b"recovertimeout"));
    let (status, data, _) = pair.control(a, own, 0, &get);
    assert_eq!((status, decode_all(&data)), (0, Ok(31_u32)));
    let unknown = Request::GetTunable(TunableName(b"x"));
    assert_eq!(pair.control(a, own, 0, &unknown).0, -22);
    // Through another node; refused there.
    pair.control_with(a, 1, 0, ControlFlags::empty(), &Request::StopNode);
    let (kind, then) = pair.nodes[1].asks.pop().unwrap();
    assert!(matches!(kind, AskKind::Act(Action::Node { .. })));
    pair.nodes[1].hub.answered(then, Err(()));
    pair.settle();
    let [reply] = pair.received(a).try_into().unwrap();
    let Body::ReplyControl(reply) = Packet::decode(&reply).unwrap().body else {
        panic!("no reply");
    };
    assert_eq!(reply.status, -1);
}

#[test]
fn what_the_recovery_daemon_answered_is_answered() {
    let mut pair = Pair::new();
    let b = (1, pair.client(1, 20));
    pair.register(b, 99);
    let run = encode_to_vec(&SrvidMessage { pnn: 1, srvid: 99 });
    pair.send(b, node::BROADCAST_CONNECTED, srvid::TAKEOVER_RUN, &run);
    assert!(pair.nodes[1].asks.is_empty(), "the leader alone acts");
    let (kind, then) = pair.nodes[0].asks.pop().unwrap();
    assert!(matches!(kind, AskKind::Act(Action::Reallocate)));
    pair.nodes[0].hub.answered(then, Ok(Value::Null));
    pair.settle();
    assert_eq!(pair.messages(b), [(99, 0_i32.to_ne_bytes().to_vec())]);
    let disable = encode_to_vec(&DisableMessage {
        pnn: 1,
        srvid: 99,
        timeout_s: 20,
    });
    pair.send(b, 0, srvid::DISABLE_TAKEOVER_RUNS, &disable);
    assert_eq!(pair.messages(b), [(99, 0_i32.to_ne_bytes().to_vec())]);
    // Who leads is said at once, and every second.
    let reply = pair.received(b);
    assert!(reply.is_empty());
    let request = &Request::RegisterSrvid;
    pair.control_with(
        b,
        node::CURRENT,
        srvid::LEADER,
        ControlFlags::empty(),
        request,
    );
    let packets = pair.received(b);
    assert!(matches!(
        Packet::decode(&packets[0]).unwrap().body,
        Body::ReplyControl(_)
    ));
    assert_eq!(packets.len(), 2);
    pair.tick(1000);
    let leader = (srvid::LEADER, 0_u32.to_ne_bytes().to_vec());
    assert_eq!(pair.messages(b), [leader]);
}

#[test]
fn a_client_of_an_inactive_node_does_not_exist() {
    let mut pair = Pair::new();
    let pid = std::process::id().cast_signed();
    let a = (0, pair.client(0, pid));
    let b = (1, pair.client(1, 20));
    let exists = Request::ProcessExists(pid);
    assert_eq!(pair.control(b, 0, 0, &exists).0, 0);
    assert_eq!(
        pair.control(b, 0, 0, &Request::ProcessExists(i32::MAX)).0,
        -1
    );
    for at in 0..2 {
        pair.change(at, |snapshot| snapshot.nodes[0].flags = NodeFlags::BANNED);
    }
    assert_eq!(pair.control(b, 0, 0, &exists).0, -1);
    assert!(pair.nodes[0].hub.take_output(a.1).is_none(), "it is closed");
}

#[test]
fn a_client_that_does_not_read_is_closed_at_the_bound() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let b = (0, pair.client(0, 11));
    pair.register(a, 5);
    let hub = &mut pair.nodes[0].hub;
    hub.tunables.set(Tunable::MaxQueueDropMsg, 3);
    for _ in 0..3 {
        hub.deliver(5, b"x");
    }
    assert_eq!(pair.received(a).len(), 3);
    for _ in 0..4 {
        pair.nodes[0].hub.deliver(5, b"x");
    }
    assert!(pair.nodes[0].hub.take_output(a.1).is_none());
    pair.nodes[0]
        .hub
        .tunables
        .set(Tunable::MaxQueueDropMsg, u32::MAX);
    pair.register(b, 6);
    let long = vec![0; hub::MAX_UNREAD / 4];
    for _ in 0..3 {
        pair.nodes[0].hub.deliver(6, &long);
    }
    pair.nodes[0].hub.gone(a.1);
    let out = pair.nodes[0].hub.take_output(b.1).unwrap();
    pair.nodes[0].hub.unwritten(b.1, out);
    for _ in 0..2 {
        pair.nodes[0].hub.deliver(6, &long);
    }
    assert!(pair.nodes[0].hub.take_output(b.1).is_none());
}

#[test]
fn packets_of_no_use_are_ignored() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let hub = &mut pair.nodes[0].hub;
    hub.packet(a.1, &[4, 0, 0, 0]);
    hub.packet(a.1, &[0; 100]);
    let odd = Control {
        opcode: 9999,
        srvid: 0,
        client_id: 0,
        flags: ControlFlags::empty(),
        data: b"x",
    };
    pair.packet(0, a.1, Header::to_own(1), Body::Control(odd));
    let [reply] = pair.received(a).try_into().unwrap();
    let Body::ReplyControl(reply) = Packet::decode(&reply).unwrap().body else {
        panic!("no reply");
    };
    assert_eq!(
        (reply.status, reply.data, reply.error),
        (-1, &b""[..], &b""[..])
    );
    assert!(!pair.nodes[0].hub.frame(pnn(1), &[0x90]), "no frame");
    // A call for an unknown database: an answer, always.
    let call = Call {
        flags: CallFlags::IMMEDIATE_MIGRATION,
        db_id: 1,
        call_id: CallId::Null as u32,
        hop_count: 0,
        key: b"key",
        data: b"",
    };
    pair.packet(0, a.1, Header::to_own(9), Body::Call(call));
    let [reply] = pair.received(a).try_into().unwrap();
    let reply = Packet::decode(&reply).unwrap();
    assert_eq!(reply.header.reqid, 9);
    assert!(matches!(reply.body, Body::ReplyError(_)));
}
