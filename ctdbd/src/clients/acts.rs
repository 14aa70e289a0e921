//! Controls that register or change something (`spec/client-protocol.md` 5, 6, 7).

use std::net::SocketAddr;

use ctdb_conntrack::table::Ends;
use ctdb_wire::api::{Action, NodeVerb};
use ctdb_wire::client::codec::Encode as _;
use ctdb_wire::client::control::{Reply, Request};
use ctdb_wire::client::packet::Control;
use ctdb_wire::client::srvid;
use ctdb_wire::client::types::{
    AddressInfo, Connection, Interface, PublicIp, SetTunable, TickleList,
};
use ctdb_wire::connections::Sources;

use super::AskKind;
use super::answers::{LEVELS, tunable};
use super::hub::{Effect, Hub, Origin, Then, Verdict};
use crate::failover::connections::Said;
use crate::log::LogLevel;
use crate::messaging::registry::MAX_LIST;

/// Status of SET_TUNABLE for one that has no effect any more.
const OBSOLETE: i32 = 1;
/// Status of DEREGISTER_SRVID for what is not registered.
const NOT_REGISTERED: i32 = 2;

fn done(good: bool) -> Verdict {
    if good {
        Verdict::Status(0)
    } else {
        Verdict::Failed
    }
}

fn verb(verb: NodeVerb, seconds: Option<u32>) -> AskKind {
    AskKind::Act(Action::Node {
        verb,
        seconds,
        reason: None,
    })
}

impl Hub {
    pub(super) fn act(
        &mut self,
        origin: Origin,
        control: &Control<'_>,
        request: &Request<'_>,
    ) -> Verdict {
        match request {
            Request::RegisterSrvid
            | Request::DeregisterSrvid
            | Request::TunnelRegister
            | Request::TunnelDeregister
            | Request::RegisterNotify(_)
            | Request::DeregisterNotify(_)
            | Request::StartPersistentUpdate
            | Request::CancelPersistentUpdate
            | Request::TcpClient(_)
            | Request::TcpClientDisconnected(_)
            | Request::TcpClientPassed(_) => self.of_client(origin, control.srvid, request),

            Request::TcpAdd(connection) | Request::TcpAddDelayedUpdate(connection) => {
                let connection = connection.canonical();
                if self.own_address(connection.server.ip()).is_none() {
                    return Verdict::Failed;
                }
                let said = Said::Opened(ends(connection), Sources::MANUAL);
                self.effect(Effect::Connection(said));
                Verdict::Status(0)
            }
            Request::TcpRemove(connection) => {
                let connection = ends(connection.canonical());
                let said = Said::Closed(connection, Sources::MANUAL.union(Sources::SAMBA));
                self.effect(Effect::Connection(said));
                Verdict::Status(0)
            }
            Request::SetTcpTickleList(list) => self.set_tickles(list),

            Request::SetTunable(set) => self.set_tunable(origin, *set),
            // CTDB takes any number; one between two levels means the lower one.
            Request::SetDebug(number) => {
                let named = LEVELS.iter().filter(|(known, _)| known <= number);
                let level = named
                    .max_by_key(|(known, _)| *known)
                    .map_or(LogLevel::Error, |(_, level)| *level);
                let level = level.name().to_owned();
                self.ask(AskKind::Act(Action::LogLevel { level }), origin)
            }
            Request::SetLmasterRole(on) => self.capabilities(origin, None, Some(*on != 0)),
            Request::SetRecmasterRole(on) => self.capabilities(origin, Some(*on != 0), None),

            Request::Shutdown => self.ask(verb(NodeVerb::Shutdown, None), origin),
            Request::StopNode => self.ask(verb(NodeVerb::Stop, None), origin),
            Request::ContinueNode => self.ask(verb(NodeVerb::Start, None), origin),
            Request::DisableNode => self.ask(verb(NodeVerb::Disable, None), origin),
            Request::EnableNode => self.ask(verb(NodeVerb::Enable, None), origin),
            Request::SetBanState(ban) if ban.pnn != self.me.get() => Verdict::Failed,
            Request::SetBanState(ban) if ban.seconds == 0 => {
                self.ask(verb(NodeVerb::Unban, None), origin)
            }
            Request::SetBanState(ban) => self.ask(verb(NodeVerb::Ban, Some(ban.seconds)), origin),

            // Whoever is asked first has all nodes take it on; the others then find it in force.
            Request::ReloadNodesFile => {
                self.ask(AskKind::Act(Action::ReloadNodes { dry_run: false }), origin)
            }
            Request::ReloadPublicIps => self.ask(AskKind::Act(Action::ReloadAddresses), origin),
            Request::AddPublicIp(info) => self.add_address(origin, info),
            Request::DelPublicIp(info) => {
                let address = info.address.ip().to_canonical();
                self.ask(AskKind::Act(Action::RemoveAddress { address }), origin)
            }
            Request::SetIfaceLinkState(interface) => self.set_link(origin, interface),
            Request::SendGratuitousArp(info) => {
                let Ok(interface) = std::str::from_utf8(info.interface) else {
                    return Verdict::Failed;
                };
                let action = Action::Announce {
                    address: Some(info.address.ip().to_canonical()),
                    interface: Some(interface.to_owned()).filter(|name| !name.is_empty()),
                };
                self.ask(AskKind::Act(action), origin)
            }
            Request::TakeoverIp(ip) => self.takeover(origin, ip),
            Request::IpReallocated => {
                self.deliver(srvid::IPREALLOCATED, &[]);
                Verdict::Status(0)
            }
            Request::StartIpReallocate => {
                self.deliver(srvid::START_IPREALLOCATE, &[]);
                Verdict::Status(0)
            }
            // The leader has an address released where it is, as a part of the move that
            // TAKEOVER_IP asks for. The others are what CTDB's daemons tell each other, and have
            // no part in this cluster.
            Request::ModifyFlags(change)
                if !self.snapshot.nodes.iter().any(|n| n.pnn == change.pnn) =>
            {
                Verdict::Failed
            }
            Request::ReleaseIp(_)
            | Request::ModifyFlags(_)
            | Request::Startup
            | Request::RecdPing
            | Request::RecdReclockLatency(_) => Verdict::Status(0),
            _ => self.of_database(origin, control, request),
        }
    }

    fn add_address(&mut self, origin: Origin, info: &AddressInfo<'_>) -> Verdict {
        let (Ok(interface), Ok(prefix)) =
            (std::str::from_utf8(info.interface), u8::try_from(info.mask))
        else {
            return Verdict::Failed;
        };
        let action = Action::AddAddress {
            address: info.address.ip().to_canonical(),
            prefix,
            interfaces: interface.split(',').map(str::to_owned).collect(),
        };
        self.ask(AskKind::Act(action), origin)
    }

    /// Controls that only a client of this node can send.
    fn of_client(&mut self, origin: Origin, srvid: u64, request: &Request<'_>) -> Verdict {
        let Some(client) = origin.client() else {
            return Verdict::Failed;
        };
        match request {
            Request::RegisterSrvid => {
                if !self.registry.register(client, srvid) {
                    return Verdict::Failed;
                }
                if srvid == srvid::LEADER {
                    // Behind the reply: who waits for it reads nothing else before.
                    self.finish(origin, Verdict::Status(0));
                    self.tell_leader(client);
                    return Verdict::Later;
                }
                Verdict::Status(0)
            }
            Request::DeregisterSrvid => {
                Verdict::Status(if self.registry.deregister(client, srvid) {
                    0
                } else {
                    NOT_REGISTERED
                })
            }
            Request::TunnelRegister => done(self.registry.register_tunnel(client, srvid)),
            Request::TunnelDeregister => done(self.registry.deregister_tunnel(client, srvid)),
            Request::TcpClient(connection) => self.tcp_client(origin, connection.canonical()),
            _ => {
                let Some(known) = self.client(client) else {
                    return Verdict::Failed;
                };
                match request {
                    Request::RegisterNotify(notify) => {
                        if known.notify.len() >= MAX_LIST
                            || known.notify.contains_key(&notify.srvid)
                        {
                            return Verdict::Failed;
                        }
                        known.notify.insert(notify.srvid, notify.data.to_vec());
                        Verdict::Status(0)
                    }
                    Request::DeregisterNotify(srvid) => done(known.notify.remove(srvid).is_some()),
                    Request::StartPersistentUpdate => {
                        known.persistent_updates = known.persistent_updates.saturating_add(1);
                        Verdict::Status(0)
                    }
                    Request::CancelPersistentUpdate => {
                        known.persistent_updates = known.persistent_updates.saturating_sub(1);
                        Verdict::Status(0)
                    }
                    Request::TcpClientDisconnected(connection) => {
                        let connection = connection.canonical();
                        if forget(&mut known.connections, &connection) {
                            self.connection_over(connection);
                        }
                        Verdict::Status(0)
                    }
                    Request::TcpClientPassed(connection) => {
                        forget(&mut known.connections, &connection.canonical());
                        Verdict::Status(0)
                    }
                    _ => Verdict::Failed,
                }
            }
        }
    }

    // ---- Connections of public addresses (5.11)

    fn tcp_client(&mut self, origin: Origin, connection: Connection) -> Verdict {
        if !self.has_addresses() {
            return Verdict::Status(0);
        }
        let address = connection.server.ip();
        if self.own_address(address).is_none() {
            tracing::debug!(%address, "a client's connection is to no public address");
            return Verdict::Status(0);
        }
        if !self.is_held(address) {
            return Verdict::Failed;
        }
        let Some(known) = origin.client().and_then(|client| self.client(client)) else {
            return Verdict::Failed;
        };
        if known.connections.len() >= MAX_LIST {
            return Verdict::Failed;
        }
        known.connections.push(connection);
        let said = Said::Opened(ends(connection), Sources::SAMBA);
        self.effect(Effect::Connection(said));
        Verdict::Status(0)
    }

    /// The process that had a connection has it no more. If the address has moved meanwhile, the
    /// table keeps it for the next host.
    pub(super) fn connection_over(&mut self, connection: Connection) {
        let said = Said::Closed(ends(connection), Sources::SAMBA);
        self.effect(Effect::Connection(said));
    }

    /// The connection table has answered GET_TCP_TICKLE_LIST.
    pub fn connection_list(
        &mut self,
        origin: Origin,
        address: SocketAddr,
        list: Option<Vec<Ends>>,
    ) {
        self.payload.clear();
        let Some(list) = list else {
            self.finish(origin, Verdict::Failed);
            return;
        };
        let connections = list.iter().map(|ends| Connection {
            client: ends.client,
            server: ends.server,
        });
        let list = TickleList {
            address,
            connections: connections.collect(),
        };
        Reply::Tickles(list).encode(&mut self.payload);
        self.finish(origin, Verdict::Status(0));
    }

    fn set_tickles(&mut self, list: &TickleList) -> Verdict {
        let ip = list.address.ip().to_canonical();
        if self.own_address(ip).is_none() {
            return Verdict::Status(1);
        }
        // Its host knows better.
        if !self.is_held(ip) {
            let connections = list.connections.iter().map(|one| one.canonical());
            let connections = connections.filter(|one| one.server.ip() == ip).map(ends);
            let said = Said::Exactly(ip, connections.collect());
            self.effect(Effect::Connection(said));
        }
        Verdict::Status(0)
    }

    // ---- Settings and addresses

    fn set_tunable(&mut self, origin: Origin, set: SetTunable<'_>) -> Verdict {
        let Some(tunable) = tunable(set.name) else {
            return Verdict::Failed;
        };
        self.tunables.set(tunable, set.value);
        let kind = AskKind::SetTunable(tunable, set.value);
        if let Some(advice) = tunable.advice() {
            tracing::warn!("a client sets a tunable: {advice}");
        }
        if tunable.is_obsolete() {
            let nobody = Origin::Peer(self.me, 0);
            self.effect(Effect::Ask(kind, Then::Control(nobody)));
            return Verdict::Status(OBSOLETE);
        }
        self.ask(kind, origin)
    }

    fn capabilities(
        &mut self,
        origin: Origin,
        leader: Option<bool>,
        lmaster: Option<bool>,
    ) -> Verdict {
        self.ask(
            AskKind::Act(Action::Capabilities { leader, lmaster }),
            origin,
        )
    }

    fn set_link(&mut self, origin: Origin, interface: &Interface) -> Verdict {
        let Some(name) = interface.name.as_str() else {
            return Verdict::Failed;
        };
        if interface.link_state > 1 || interface.references != 0 {
            return Verdict::Failed;
        }
        let action = Action::InterfaceLink {
            name: name.to_owned(),
            up: interface.link_state == 1,
        };
        self.ask(AskKind::Act(action), origin)
    }

    fn takeover(&mut self, origin: Origin, ip: &PublicIp) -> Verdict {
        if ip.pnn != self.me.get() {
            return Verdict::Failed;
        }
        let address = ip.address.ip();
        if self.own_address(address).is_none() {
            return Verdict::Status(0);
        }
        let to = ip.pnn;
        self.ask(AskKind::Act(Action::Move { address, to }), origin)
    }
}

fn ends(connection: Connection) -> Ends {
    Ends {
        client: connection.client,
        server: connection.server,
    }
}

fn forget(list: &mut Vec<Connection>, connection: &Connection) -> bool {
    let at = list.iter().position(|known| known == connection);
    if let Some(at) = at {
        list.swap_remove(at);
    }
    at.is_some()
}
