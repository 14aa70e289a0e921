//! The state as the API shows it: a copy that is made when something has changed, so that a
//! reader never waits for anything (`spec/cluster.md` 5.10).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ctdb_core::coordinator::Coordinator;
use ctdb_core::holder;
use ctdb_core::leader::credits;
use ctdb_core::local::Local;
use ctdb_wire::api::connections::ConnectionStats;
use ctdb_wire::api::{
    AddressOnNode, AddressView, BanCredits, ConfigView, Hold, InterfaceView, NodeView, RightView,
    Snapshot, TunableView,
};
use ctdb_wire::ids::{BootTime, NodeFlags, Pnn, RunState, address_key};
use ctdb_wire::peer::NodeInfo;

use super::generation::Generation;

/// What a snapshot is made of.
pub(super) struct View<'a> {
    pub(super) now: BootTime,
    pub(super) coordinator: &'a Coordinator,
    pub(super) local: &'a Local,
    /// (number, address, deleted), the whole list.
    pub(super) nodes: &'a [(u32, IpAddr, bool)],
    pub(super) quorum: usize,
    pub(super) generation: &'a Generation,
    pub(super) cluster_lock: Option<&'a str>,
    pub(super) log_level: &'a str,
    pub(super) builtin: bool,
    pub(super) started_at: f64,
    pub(super) clients: u32,
    pub(super) tunables: &'a [TunableView],
    pub(super) config: &'a Arc<ConfigView>,
    pub(super) connections: ConnectionStats,
}

/// `tool`'s rule of UNKNOWN (`spec/cluster.md` 2.1): a node that has not finished its first
/// recovery knows nothing of the others.
fn shown_flags(view: &View<'_>, pnn: Pnn) -> NodeFlags {
    let flags = view.coordinator.flags(view.now, pnn);
    let me = view.coordinator.config().me;
    let young = view.local.run_state() <= RunState::FirstRecovery;
    if young && pnn != me && !flags.intersects(NodeFlags::DISCONNECTED | NodeFlags::DELETED) {
        NodeFlags::UNKNOWN
    } else {
        flags
    }
}

fn info_of<'a>(view: &View<'a>, pnn: Pnn) -> Option<&'a NodeInfo> {
    if pnn == view.coordinator.config().me {
        Some(view.coordinator.info())
    } else {
        view.coordinator.peer(pnn).info.as_ref()
    }
}

fn node(view: &View<'_>, number: u32, address: IpAddr) -> NodeView {
    let mut shown = NodeView {
        pnn: number,
        address: address.to_string(),
        ..NodeView::default()
    };
    let Ok(pnn) = Pnn::new(number) else {
        return shown;
    };
    let config = view.coordinator.config();
    let me = pnn == config.me;
    shown.flags = shown_flags(view, pnn);
    shown.flags_text = shown.flags.to_string();
    shown.this_node = me;
    shown.linked = me || view.coordinator.peer(pnn).linked;
    if let Some(info) = info_of(view, pnn) {
        shown.run_state = info.run_state;
        shown.release.clone_from(&info.release);
        shown.capabilities = info.capabilities;
        shown.reason.clone_from(&info.reason);
        shown.started_at = info.started_at as f64;
        // What `ctdb status` finds out by asking the node (`spec/cluster.md` 2.1).
        if shown.flags.is_empty() && info.interfaces.iter().any(|interface| !interface.up) {
            "PARTIALLYONLINE".clone_into(&mut shown.flags_text);
        }
    }
    if let Some(status) = view.coordinator.status() {
        let peer = &status.peers[pnn.index()];
        shown.heard_ms = if me {
            Some(0)
        } else {
            (peer.heard_at != BootTime::ZERO)
                .then(|| view.now.since(peer.heard_at).as_millis() as u64)
        };
        shown.suspected = peer.suspected && !me;
        shown.evicted = peer.evicted;
        shown.has_right = if me {
            status.right_until.is_some()
        } else {
            peer.has_right
        };
    }
    if let Some(leader) = view.coordinator.leader() {
        let credit = leader.credits().of(pnn);
        shown.ban_credits = Some(BanCredits {
            credits: credit.map_or(0, |credit| credit.count),
            limit: credits::limit(config.voters.len()),
            last_ms: credit.map(|credit| view.now.since(credit.last).as_millis() as u64),
            why: credit.map_or_else(String::new, |credit| credit.why.clone()),
        });
    }
    shown
}

fn right(view: &View<'_>) -> RightView {
    let Some(status) = view.coordinator.status() else {
        return RightView::default();
    };
    let config = view.coordinator.config();
    let answering = config
        .voters
        .iter()
        .filter(|pnn| {
            let peer = &status.peers[pnn.index()];
            *pnn == config.me || peer.heard_at != BootTime::ZERO && !peer.suspected
        })
        .count();
    RightView {
        held: status.right_until.is_some(),
        epoch: status.epoch.number,
        remaining_ms: status
            .right_until
            .map_or(0, |until| until.since(view.now).as_millis() as u64),
        quorum: view.quorum as u32,
        answering: answering as u32,
    }
}

fn addresses(view: &View<'_>) -> Vec<AddressView> {
    let coordinator = view.coordinator;
    let me = coordinator.config().me;
    let owners: BTreeMap<IpAddr, Pnn> = coordinator
        .placement()
        .map(|placement| {
            placement
                .owners
                .iter()
                .filter_map(|(ip, owner)| owner.map(|pnn| (*ip, pnn)))
                .collect()
        })
        .unwrap_or_default();
    let mut shown: BTreeMap<(bool, u128), AddressView> = BTreeMap::new();
    for pnn in coordinator.config().voters.iter() {
        let Some(info) = info_of(view, pnn) else {
            continue;
        };
        if pnn != me && !coordinator.peer(pnn).linked {
            continue;
        }
        for public in &info.addresses {
            let address = public.net.addr();
            let entry = shown
                .entry(address_key(address))
                .or_insert_with(|| AddressView {
                    address,
                    net: public.net,
                    owner: owners.get(&address).map(|owner| owner.get()),
                    here: Hold::None,
                    known_here: false,
                    interfaces: Vec::new(),
                    available: Vec::new(),
                    active: None,
                    nodes: BTreeMap::new(),
                });
            entry.nodes.insert(
                pnn.get(),
                AddressOnNode {
                    interfaces: public.interfaces.clone(),
                    active: public.active.clone(),
                    available: public.available,
                    hosts: public.active.is_some(),
                },
            );
        }
    }
    for public in view.local.addresses() {
        let Some(entry) = shown.get_mut(&address_key(public.net.addr())) else {
            continue;
        };
        entry.known_here = true;
        entry.interfaces.clone_from(&public.interfaces);
        entry.available = view.local.available(public);
        entry.here = match coordinator.holder().holds().get(&public.net.addr()) {
            None => Hold::None,
            Some(holder::Hold::Taking(_)) => Hold::Taking,
            Some(holder::Hold::Held) => Hold::Held,
            Some(holder::Hold::Releasing) => Hold::Releasing,
        };
        if entry.here == Hold::Held {
            entry.active = view
                .local
                .interface_of(public.net.addr())
                .map(str::to_owned);
        }
    }
    shown.into_values().collect()
}

/// Makes the copy.
pub(super) fn make(view: &View<'_>) -> Snapshot {
    let status = view.coordinator.status();
    let leader = status.and_then(|status| status.leader);
    let serving = leader.is_some() && status.is_some_and(|status| status.right_until.is_some());
    let info = view.coordinator.info();
    Snapshot {
        node: view.coordinator.config().me.get(),
        release: info.release.clone(),
        pid: std::process::id(),
        run_state: view.local.run_state(),
        started_at: view.started_at,
        now: crate::clock::wall_now(),
        generation: view.generation.current(),
        vnn_map: view.generation.members().to_vec(),
        recovery_mode: u32::from(!serving || view.local.run_state() < RunState::Startup),
        leader: leader.map(|term| term.leader.get()),
        term: leader.map(|term| term.number),
        last_recovery: view.generation.last_change(),
        right: right(view),
        nodes: view
            .nodes
            .iter()
            .map(|(number, address, _)| node(view, *number, *address))
            .collect(),
        addresses: addresses(view),
        interfaces: view
            .local
            .interfaces()
            .into_iter()
            .map(|(interface, reason)| InterfaceView {
                name: interface.name,
                up: interface.up,
                references: interface.references,
                reason: reason.to_owned(),
            })
            .collect(),
        capabilities: info.capabilities,
        cluster_lock: view.cluster_lock.map(str::to_owned),
        log_level: view.log_level.to_owned(),
        clients: view.clients,
        connections: view.connections.clone(),
        tunables: view.tunables.to_vec(),
        config: Arc::clone(view.config),
        addresses_by: if view.builtin { "builtin" } else { "script" }.to_owned(),
    }
}

/// Active nodes that may be location masters; the leader alone if there is none
/// (`spec/cluster.md` 2.2, 2.6).
pub(super) fn active_lmasters(coordinator: &Coordinator, now: BootTime) -> Vec<u32> {
    let mut masters = BTreeSet::new();
    let config = coordinator.config();
    for pnn in config.voters.iter() {
        if coordinator
            .flags(now, pnn)
            .intersects(NodeFlags::INACTIVE | NodeFlags::UNKNOWN)
        {
            continue;
        }
        let info = if pnn == config.me {
            Some(coordinator.info())
        } else {
            coordinator.peer(pnn).info.as_ref()
        };
        if info.is_some_and(|info| info.capabilities.lmaster && !info.capabilities.voter_only) {
            masters.insert(pnn.get());
        }
    }
    if masters.is_empty()
        && let Some(term) = coordinator.status().and_then(|status| status.leader)
    {
        masters.insert(term.leader.get());
    }
    masters.into_iter().collect()
}
