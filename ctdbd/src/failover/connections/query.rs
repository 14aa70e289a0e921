//! What operators ask about connections, and do to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ctdb_conntrack::owners::owners;
use ctdb_conntrack::table::{Ends, Input, Shown};
use ctdb_wire::api::connections::{
    self as api, ClientView, ClientsView, ConnectionAction, ConnectionDetail, ConnectionView,
    ConnectionsView, MAX_GIVEN, MAX_SHOWN, UdpServicesView, UdpView,
};
use ctdb_wire::api::{ApiError, Done};
use ctdb_wire::connections::{Meta, Sources};
use serde::Serialize;

use super::thread::Thread;
use super::{Answer, Said};
use crate::clock::wall_now;

impl Thread {
    pub(super) fn query(&mut self, action: ConnectionAction) -> Answer {
        // What the kernel saw up to now counts.
        self.drain();
        match action {
            ConnectionAction::List { address, port } => self.list(address, port),
            ConnectionAction::Clients => self.clients(),
            ConnectionAction::Show(ends) => self.show(ends),
            ConnectionAction::Udp => self.udp(),
            ConnectionAction::Stats => json(&self.stats()),
            ConnectionAction::Add(list) => self.add(&list),
            ConnectionAction::Del(list) => self.del(&list),
            ConnectionAction::Kill {
                connections,
                address,
            } => self.kill(&connections, address),
            ConnectionAction::Tickle(list) => {
                let list: Vec<Ends> = list.into_iter().map(ends).collect();
                match self.tickle(&list) {
                    0 => done(!list.is_empty(), format!("{} tickles sent", list.len())),
                    failed => Err(ApiError::new(
                        500,
                        "not_sent",
                        format!(
                            "{failed} of {} tickles were not sent; the log says why",
                            list.len()
                        ),
                    )),
                }
            }
        }
    }

    fn list(&self, address: Option<IpAddr>, port: Option<u16>) -> Answer {
        if let Some(address) = address {
            self.check_public(address)?;
        }
        let fits = |shown: &Shown| {
            address.is_none_or(|address| address == shown.address)
                && port.is_none_or(|port| port == shown.key.server_port)
        };
        let mut view = ConnectionsView {
            node: self.setup.me.get(),
            ..ConnectionsView::default()
        };
        for shown in self.table.connections().filter(fits) {
            view.total += 1;
            if view.connections.len() < MAX_SHOWN {
                view.connections.push(connection(&shown));
            }
        }
        json(&view)
    }

    fn clients(&self) -> Answer {
        let mut clients: BTreeMap<IpAddr, Vec<Shown>> = BTreeMap::new();
        for shown in self.table.connections() {
            clients.entry(shown.key.client).or_default().push(shown);
        }
        let total = clients.len() as u64;
        let mut clients: Vec<(IpAddr, Vec<Shown>)> = clients.into_iter().collect();
        // In a stable order: those with as many by address.
        clients.sort_by_key(|(_, list)| std::cmp::Reverse(list.len()));
        let mut room = MAX_SHOWN;
        let clients = clients
            .into_iter()
            .map_while(|(client, list)| {
                let shown = list.len().min(MAX_GIVEN);
                room = room.checked_sub(shown)?;
                Some(ClientView {
                    client,
                    count: list.len() as u64,
                    connections: list.iter().take(shown).map(connection).collect(),
                })
            })
            .collect();
        json(&ClientsView {
            node: self.setup.me.get(),
            total,
            clients,
        })
    }

    fn show(&mut self, wanted: api::Ends) -> Answer {
        let wanted = ends(wanted);
        let found = self.table.connections().find(|shown| {
            shown.key.client() == wanted.client && shown.key.server(shown.address) == wanted.server
        });
        let Some(found) = found else {
            return Err(ApiError::new(
                404,
                "no_such_connection",
                format!(
                    "no connection of {} to {} is known; `ctdb conntrack list` shows them",
                    wanted.client, wanted.server
                ),
            ));
        };
        let mut detail = ConnectionDetail {
            connection: connection(&found),
            state: None,
            pid: None,
            command: None,
            cgroup: None,
            bytes_received: None,
            bytes_acked: None,
        };
        if found.node == Some(self.setup.me) {
            let address: BTreeSet<IpAddr> = [found.address].into();
            let sockets = self
                .sockets
                .connections_with_info(&address)
                .map_err(|error| kernel(&error))?;
            let socket = sockets.into_iter().find(|connection| {
                connection.client == wanted.client && connection.server == wanted.server
            });
            if let Some(socket) = socket {
                detail.state = Some(state_name(socket.state).to_owned());
                detail.bytes_received = socket.info.map(|info| info.bytes_received);
                detail.bytes_acked = socket.info.map(|info| info.bytes_acked);
                if let Some(owner) = owners(&[socket.inode].into()).remove(&socket.inode) {
                    detail.cgroup = cgroup(owner.pid);
                    detail.pid = Some(owner.pid);
                    detail.command = Some(owner.comm);
                }
            }
        }
        json(&detail)
    }

    fn udp(&mut self) -> Answer {
        let held: BTreeSet<IpAddr> = self.public().iter().copied().collect();
        let sockets = self.sockets.udp(&held).map_err(|error| kernel(&error))?;
        let inodes: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
        let owners = owners(&inodes);
        let services = sockets.iter().map(|socket| {
            let owner = owners.get(&socket.inode);
            UdpView {
                local: socket.local,
                service: udp_service(socket.local.port()).map(str::to_owned),
                pid: owner.map(|owner| owner.pid),
                command: owner.map(|owner| owner.comm.clone()),
            }
        });
        json(&UdpServicesView {
            node: self.setup.me.get(),
            services: services.collect(),
        })
    }

    /// What a client of the client socket says.
    pub(super) fn said(&mut self, said: Said) {
        match said {
            Said::Opened(ends, sources) => self.registered(ends, sources),
            Said::Closed(ends, sources) => self.input(Input::Closed(ends, sources)),
            Said::Exactly(address, list) => {
                let list: BTreeSet<Ends> = list.into_iter().collect();
                let known: Vec<Ends> = self
                    .table
                    .own_to(address)
                    .filter(|(_, meta)| meta.sources.has(Sources::MANUAL))
                    .map(|(ends, _)| ends)
                    .filter(|ends| !list.contains(ends))
                    .collect();
                for ends in known {
                    self.input(Input::Closed(ends, Sources::MANUAL));
                }
                for ends in list {
                    self.registered(ends, Sources::MANUAL);
                }
            }
        }
    }

    fn registered(&mut self, ends: Ends, sources: Sources) {
        let since = wall_now() as u32;
        self.input(Input::Opened(ends, Meta { since, sources }));
    }

    /// GET_TCP_TICKLE_LIST: all that are known to an address, of one port unless it is 0.
    pub(super) fn list_of(&mut self, address: IpAddr, port: u16) -> Vec<Ends> {
        self.drain();
        let mut list = self.table.connections_to(address);
        list.retain(|ends| port == 0 || ends.server.port() == port);
        list.into_iter().collect()
    }

    fn check_public(&self, address: IpAddr) -> Result<(), ApiError> {
        if self.table.is_public(address.to_canonical()) {
            return Ok(());
        }
        Err(ApiError::new(
            404,
            "no_such_address",
            format!("no node names the public address {address}; see `ctdb ip list`"),
        ))
    }

    fn add(&mut self, list: &[api::Ends]) -> Answer {
        for ends in list {
            self.check_public(ends.server.ip())?;
        }
        let before = self.table.counters().opened;
        for given in list {
            self.registered(ends(*given), Sources::MANUAL);
        }
        let missing = list
            .iter()
            .filter(|given| self.table.own(ends(**given)).is_none())
            .count();
        if missing > 0 {
            return Err(ApiError::new(
                507,
                "table_full",
                format!("{missing} connections found no room; raise [conntrack] max connections"),
            ));
        }
        let added = self.table.counters().opened - before;
        done(added > 0, format!("{} connections registered", list.len()))
    }

    fn del(&mut self, list: &[api::Ends]) -> Answer {
        for ends in list {
            self.check_public(ends.server.ip())?;
        }
        let mut known = 0;
        for given in list {
            known += usize::from(self.table.own(ends(*given)).is_some());
            let sources = Sources::MANUAL.union(Sources::SAMBA);
            self.input(Input::Closed(ends(*given), sources));
        }
        done(known > 0, format!("{known} connections were registered"))
    }

    fn kill(&mut self, list: &[api::Ends], address: Option<IpAddr>) -> Answer {
        let pairs: Vec<(SocketAddr, SocketAddr)> =
            list.iter().map(|ends| (ends.client, ends.server)).collect();
        let mut destroyed = 0;
        if let Some(address) = address {
            self.check_public(address)?;
            let killed = self
                .killer
                .kill(&[address].into())
                .map_err(|error| kernel(&error))?;
            destroyed += killed.destroyed;
        }
        if !pairs.is_empty() {
            let killed = self
                .killer
                .kill_connections(&pairs)
                .map_err(|error| kernel(&error))?;
            destroyed += killed.destroyed;
        }
        self.killed += destroyed as u64;
        done(destroyed > 0, format!("{destroyed} sockets destroyed"))
    }
}

fn ends(given: api::Ends) -> Ends {
    let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    Ends {
        client: canonical(given.client),
        server: canonical(given.server),
    }
}

fn connection(shown: &Shown) -> ConnectionView {
    ConnectionView {
        client: shown.key.client(),
        server: shown.key.server(shown.address),
        node: shown.node.map(ctdb_wire::ids::Pnn::get),
        since: shown.meta.since,
        sources: shown
            .meta
            .sources
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        waiting: shown.waiting,
    }
}

/// The kernel's name of a state of TCP.
fn state_name(state: u8) -> &'static str {
    match state {
        1 => "ESTABLISHED",
        2 => "SYN_SENT",
        3 | 12 => "SYN_RECV",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        6 => "TIME_WAIT",
        7 => "CLOSE",
        8 => "CLOSE_WAIT",
        9 => "LAST_ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        _ => "UNKNOWN",
    }
}

/// Services that answer over UDP on file servers.
fn udp_service(port: u16) -> Option<&'static str> {
    Some(match port {
        111 => "rpcbind",
        137 => "NetBIOS names",
        138 => "NetBIOS datagrams",
        443 => "SMB over QUIC",
        2049 => "NFS",
        4045 | 32803 | 32769 => "NFS lock manager",
        892 | 20048 => "NFS mount",
        662 | 32765 => "NFS status monitor",
        875 => "NFS quota",
        _ => return None,
    })
}

/// The control group of a process, as systemd names it.
fn cgroup(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.to_owned())
}

fn json(value: &impl Serialize) -> Answer {
    serde_json::to_value(value)
        .map_err(|error| ApiError::new(500, "internal", format!("cannot be put in JSON: {error}")))
}

fn done(changed: bool, message: String) -> Answer {
    json(&Done { changed, message })
}

fn kernel(error: &ctdb_conntrack::Error) -> ApiError {
    ApiError::new(500, "kernel", error.to_string())
}
