//! Controls that the state answers at once (`spec/client-protocol.md` 5).

use std::net::{IpAddr, SocketAddr};

use ctdb_wire::api::{AddressView, Hold};
use ctdb_wire::client::codec::Encode as _;
use ctdb_wire::client::control::{Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::{Control, ControlFlags};
use ctdb_wire::client::types::{
    BanState, Interface, InterfaceName, NodeMapEntry, PublicIp, PublicIpInfo, Text, TunableName,
    TunableNames, Uptime, VnnMap,
};
use ctdb_wire::ids::{NodeFlags, Pnn, RunState};

use super::AskKind;
use super::hub::{Effect, HISTORY, Hub, Origin, Then, Verdict};
use crate::config::Tunable;
use crate::log::LogLevel;

/// EINVAL, for a tunable that there is none of.
const UNKNOWN_TUNABLE: i32 = -22;
/// Capabilities of every daemon of 4.17 and later: parallel recovery, fragmented controls.
const ALWAYS_CAPABLE: u32 = 0x0003_0000;
const CAPABLE_LEADER: u32 = 1;
const CAPABLE_LMASTER: u32 = 2;

/// Levels of GET_DEBUG and SET_DEBUG.
pub(super) const LEVELS: [(i32, LogLevel); 5] = [
    (0, LogLevel::Error),
    (1, LogLevel::Warning),
    (3, LogLevel::Notice),
    (5, LogLevel::Info),
    (10, LogLevel::Debug),
];

impl Hub {
    /// Puts a payload beside status 0.
    fn with(&mut self, reply: &Reply<'_>) -> Verdict {
        reply.encode(&mut self.payload);
        Verdict::Status(0)
    }

    /// Carries out a control, whoever sent it.
    pub(super) fn carry_out(
        &mut self,
        origin: Origin,
        control: &Control<'_>,
        request: &Request<'_>,
    ) -> Verdict {
        match request {
            Request::GetPnn => Verdict::Status(self.me.get().cast_signed()),
            Request::GetPid => Verdict::Status(std::process::id().cast_signed()),
            Request::Ping => Verdict::Status(self.count().cast_signed()),
            Request::GetRecmode => {
                let recovering = self.snapshot.recovery_mode != 0 || self.is_recovering();
                Verdict::Status(i32::from(recovering))
            }
            Request::GetVnnMap => {
                let map = VnnMap {
                    generation: self.generation(),
                    map: self.snapshot.vnn_map.clone(),
                };
                self.with(&Reply::VnnMap(map))
            }
            Request::GetNodeMap => {
                let nodes = self.node_map();
                self.with(&Reply::NodeMap(nodes))
            }
            Request::GetRunstate => {
                let state = match self.snapshot.run_state {
                    RunState::Unknown => 0,
                    RunState::Init => 1,
                    RunState::Setup => 2,
                    RunState::FirstRecovery => 3,
                    RunState::Startup => 4,
                    RunState::Running => 5,
                    RunState::Shutdown => 6,
                };
                self.with(&Reply::U32(state))
            }
            Request::GetCapabilities => {
                let own = self.snapshot.capabilities;
                let mut capabilities = ALWAYS_CAPABLE;
                if own.leader {
                    capabilities |= CAPABLE_LEADER;
                }
                if own.lmaster && !own.voter_only {
                    capabilities |= CAPABLE_LMASTER;
                }
                self.with(&Reply::U32(capabilities))
            }
            Request::Uptime => {
                let (started, finished) = self.snapshot.last_recovery.unwrap_or_default();
                let uptime = Uptime {
                    now: crate::clock::wall_now().into(),
                    started: self.snapshot.started_at.into(),
                    recovery_started: started.into(),
                    recovery_finished: finished.into(),
                };
                self.with(&Reply::Uptime(uptime))
            }
            Request::GetReclockFile => {
                let lock = self.snapshot.cluster_lock.clone();
                let text = lock.as_ref().map(|text| Text(text.as_bytes()));
                self.with(&Reply::OptionalText(text))
            }
            Request::GetDebug => {
                let level = LEVELS
                    .iter()
                    .find(|(_, level)| level.name() == self.snapshot.log_level)
                    .map_or(3, |(number, _)| *number);
                self.with(&Reply::I32(level))
            }
            Request::DumpMemory => {
                let report = self.memory_report();
                self.with(&Reply::Bytes(report.as_bytes()))
            }
            Request::GetNodesFile => {
                self.effect(Effect::NodesFile(origin));
                Verdict::Later
            }
            Request::GetBanState => {
                self.effect(Effect::Ask(AskKind::BanSeconds, Then::Ban(origin)));
                Verdict::Later
            }
            Request::EchoData(echo) => self.with(&Reply::Echo(*echo)),
            Request::GetTunable(TunableName(b"")) => Verdict::Failed,
            Request::GetTunable(name) => match tunable(*name) {
                Some(tunable) => {
                    let value = self.tunables.get(tunable);
                    self.with(&Reply::U32(value))
                }
                None => Verdict::Status(UNKNOWN_TUNABLE),
            },
            Request::ListTunables => {
                let names = Tunable::listed()
                    .map(|tunable| tunable.name().to_owned())
                    .collect();
                self.with(&Reply::TunableNames(TunableNames(names)))
            }
            Request::GetAllTunables => {
                let all = *self.tunables.wire();
                self.with(&Reply::Tunables(all))
            }
            Request::Statistics => {
                let statistics = Box::new(self.current_statistics());
                self.with(&Reply::Statistics(statistics))
            }
            Request::GetStatHistory => {
                let mut history: Vec<_> = self.history.iter().copied().collect();
                history.resize(HISTORY, ctdb_wire::client::types::Statistics::default());
                self.with(&Reply::History(history))
            }
            Request::StatisticsReset => {
                self.reset_statistics();
                Verdict::Status(0)
            }
            Request::GetPublicIps => {
                let only_available = control.flags.contains(ControlFlags::ONLY_AVAILABLE);
                let list = self
                    .own_addresses()
                    .filter(|view| !only_available || !view.available.is_empty())
                    .map(|view| public_ip(view, self.me))
                    .collect();
                self.with(&Reply::PublicIps(list))
            }
            Request::GetPublicIpInfo(address) => match self.public_ip_info(address.ip()) {
                Some(info) => self.with(&Reply::PublicIpInfo(info)),
                None => Verdict::Failed,
            },
            Request::GetIfaces => {
                let list = self
                    .snapshot
                    .interfaces
                    .iter()
                    .map(|view| self.interface(&view.name))
                    .collect();
                self.with(&Reply::Interfaces(list))
            }
            Request::GetTcpTickleList(address) => {
                let ip = address.ip().to_canonical();
                if self.own_address(ip).is_none() {
                    return Verdict::Status(1);
                }
                let address = SocketAddr::new(ip, address.port());
                self.effect(Effect::Connections(origin, address));
                Verdict::Later
            }
            Request::ProcessExists(pid) => self.process_exists(*pid),
            Request::CheckPidSrvid(asked) => {
                Verdict::Status(if self.registry.has(asked.pid, asked.srvid) {
                    0
                } else {
                    -1
                })
            }
            other => self.act(origin, control, other),
        }
    }

    pub(super) fn ban_state(&mut self, seconds: u32) -> Verdict {
        let pnn = self.me.get();
        self.with(&Reply::BanState(BanState { pnn, seconds }))
    }

    fn node_map(&self) -> Vec<NodeMapEntry> {
        self.snapshot
            .nodes
            .iter()
            .map(|view| {
                let ip: IpAddr = view.address.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
                NodeMapEntry {
                    pnn: view.pnn,
                    flags: view.flags.difference(NodeFlags::UNKNOWN).bits(),
                    address: SocketAddr::new(ip, self.port),
                }
            })
            .collect()
    }

    /// PROCESS_EXISTS: a client with that number, and a process (5.9).
    fn process_exists(&mut self, pid: i32) -> Verdict {
        let clients = self.registry.of_process(pid).to_vec();
        if clients.is_empty() {
            return Verdict::Status(-1);
        }
        if self.is_inactive() {
            for client in clients {
                self.close(client, "this node is inactive");
            }
            return Verdict::Status(-1);
        }
        let process = nix::unistd::Pid::from_raw(pid);
        let alive = nix::sys::signal::kill(process, None) != Err(nix::errno::Errno::ESRCH);
        Verdict::Status(if alive { 0 } else { -1 })
    }

    // ---- Public addresses

    fn own_addresses(&self) -> impl Iterator<Item = &AddressView> {
        self.snapshot
            .addresses
            .iter()
            .filter(|view| view.known_here)
    }

    /// A public address of this node's file.
    pub(super) fn own_address(&self, ip: IpAddr) -> Option<&AddressView> {
        self.own_addresses().find(|view| view.address == ip)
    }

    /// Whether any public address is configured here.
    pub(super) fn has_addresses(&self) -> bool {
        self.own_addresses().next().is_some()
    }

    /// Whether this node serves the address.
    pub(super) fn is_held(&self, ip: IpAddr) -> bool {
        self.own_address(ip)
            .is_some_and(|view| matches!(view.here, Hold::Held | Hold::Taking))
    }

    fn interface(&self, name: &str) -> Interface {
        let view = self
            .snapshot
            .interfaces
            .iter()
            .find(|view| view.name == name);
        Interface {
            name: InterfaceName::new(name),
            link_state: u16::from(view.is_some_and(|view| view.up)),
            references: view.map_or(0, |view| view.references),
        }
    }

    fn public_ip_info(&self, ip: IpAddr) -> Option<PublicIpInfo> {
        let view = self.own_address(ip.to_canonical())?;
        let active = view
            .active
            .as_ref()
            .and_then(|active| view.interfaces.iter().position(|name| name == active))
            .map_or(u32::MAX, |at| at as u32);
        Some(PublicIpInfo {
            ip: public_ip(view, self.me),
            active,
            interfaces: view
                .interfaces
                .iter()
                .map(|name| self.interface(name))
                .collect(),
        })
    }

    // ---- Statistics

    fn current_statistics(&self) -> ctdb_wire::client::types::Statistics {
        let mut statistics = self.statistics;
        statistics.clients = self.count();
        statistics.recovering = self.snapshot.recovery_mode;
        statistics.current_time = crate::clock::wall_now().into();
        statistics
    }

    fn reset_statistics(&mut self) {
        let now = crate::clock::wall_now().into();
        self.statistics = ctdb_wire::client::types::Statistics {
            clients: self.count(),
            start_time: now,
            current_time: now,
            ..Default::default()
        };
        // The intervals that are over stay, as with CTDB.
        self.sampled = self.statistics;
    }

    /// What was counted since the last time; `ctdb stats` shows the newest first.
    pub(super) fn take_sample(&mut self) {
        let now = self.current_statistics();
        let mut sample = now;
        let before = self.sampled;
        let less = |value: &mut u32, before: u32| *value = value.wrapping_sub(before);
        less(&mut sample.client_packets_sent, before.client_packets_sent);
        less(&mut sample.client_packets_recv, before.client_packets_recv);
        less(&mut sample.node_packets_sent, before.node_packets_sent);
        less(&mut sample.node_packets_recv, before.node_packets_recv);
        let (node, old) = (&mut sample.node, before.node);
        less(&mut node.req_message, old.req_message);
        less(&mut node.req_control, old.req_control);
        less(&mut node.reply_control, old.reply_control);
        less(&mut node.req_tunnel, old.req_tunnel);
        let (client, old) = (&mut sample.client, before.client);
        less(&mut client.req_call, old.req_call);
        less(&mut client.req_message, old.req_message);
        less(&mut client.req_control, old.req_control);
        less(&mut client.req_tunnel, old.req_tunnel);
        less(&mut sample.timeouts.control, before.timeouts.control);
        sample.start_time = before.current_time;
        self.sampled = now;
        self.history.push_front(sample);
        self.history.truncate(HISTORY);
    }

    /// What DUMP_MEMORY and the message MEM_DUMP answer.
    pub(super) fn memory_report(&self) -> String {
        let mut report = format!("ctdbd of node {}: {} clients\n", self.me, self.count());
        // Where there is no procfs the report is short.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        for line in status.lines() {
            if line.starts_with("Vm") || line.starts_with("Rss") {
                report.push_str(line);
                report.push('\n');
            }
        }
        report
    }
}

/// A tunable by the name that a client sends.
pub(super) fn tunable(name: TunableName<'_>) -> Option<Tunable> {
    Tunable::by_name(std::str::from_utf8(name.0).ok()?)
}

/// What node `me` says of an address. Of itself it knows best: the placement comes by way of the leader, and
/// who is told of a new one asks at once (rpcd_witness, `spec/client-protocol.md` 8.10).
fn public_ip(view: &AddressView, me: Pnn) -> PublicIp {
    let owner = match view.here {
        Hold::Held => Some(me.get()),
        Hold::Taking => view.owner,
        Hold::Releasing | Hold::None => view.owner.filter(|owner| *owner != me.get()),
    };
    PublicIp {
        pnn: owner.unwrap_or(node::UNKNOWN),
        address: SocketAddr::new(view.address, 0),
    }
}
