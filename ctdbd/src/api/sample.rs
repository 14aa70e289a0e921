//! A state for tests: the one of `spec/cli.md` 6.3 and 6.5.

use std::collections::BTreeMap;
use std::sync::Arc;

use ctdb_wire::api::connections::ConnectionStats;
use ctdb_wire::api::{
    AddressOnNode, AddressView, ConfigOption, ConfigView, Hold, InterfaceView, NodeView, RightView,
    Snapshot, TunableView,
};
use ctdb_wire::ids::{NodeFlags, RunState};

/// One entry of the nodes list.
pub(crate) fn node(pnn: u32, flags: NodeFlags) -> NodeView {
    let deleted = flags.contains(NodeFlags::DELETED);
    NodeView {
        pnn,
        address: if deleted {
            "0.0.0.0".into()
        } else {
            format!("127.0.0.{}", pnn + 1)
        },
        flags,
        flags_text: flags.to_string(),
        this_node: pnn == 0,
        linked: !flags.contains(NodeFlags::DISCONNECTED),
        run_state: RunState::Running,
        release: "0.1.0".into(),
        ..NodeView::default()
    }
}

fn address(text: &str, owner: Option<u32>) -> AddressView {
    let net: ipnet::IpNet = text.parse().unwrap();
    let interfaces = vec!["lo".to_owned()];
    let nodes: BTreeMap<u32, AddressOnNode> = (0..2)
        .map(|pnn| {
            let hosts = owner == Some(pnn);
            let on_node = AddressOnNode {
                interfaces: interfaces.clone(),
                active: hosts.then(|| "lo".to_owned()),
                available: true,
                hosts,
            };
            (pnn, on_node)
        })
        .collect();
    AddressView {
        address: net.addr(),
        net,
        owner,
        here: if owner == Some(0) {
            Hold::Held
        } else {
            Hold::None
        },
        known_here: true,
        interfaces: interfaces.clone(),
        available: interfaces,
        active: (owner == Some(0)).then(|| "lo".to_owned()),
        nodes,
    }
}

/// Two nodes and two deleted ones, three addresses, as node 0 sees them.
pub(crate) fn snapshot() -> Snapshot {
    let gone = NodeFlags::DELETED | NodeFlags::DISCONNECTED;
    Snapshot {
        connections: ConnectionStats {
            enabled: true,
            own: 3,
            ..ConnectionStats::default()
        },
        node: 0,
        release: "0.1.0".into(),
        pid: 7332,
        run_state: RunState::Running,
        // Sun Nov 22 11:58:51 2026 UTC, and 48 s later.
        started_at: 1_795_348_731.0,
        now: 1_795_348_779.0,
        generation: Some(345_762_259),
        vnn_map: vec![0],
        recovery_mode: 0,
        leader: Some(0),
        term: Some(7),
        last_recovery: Some((1_795_348_735.902_013, 1_795_348_736.0)),
        right: RightView {
            held: true,
            epoch: 1,
            remaining_ms: 1400,
            quorum: 1,
            answering: 1,
        },
        nodes: vec![
            node(0, NodeFlags::empty()),
            node(1, NodeFlags::DISCONNECTED | NodeFlags::UNHEALTHY),
            node(2, gone),
            node(3, gone),
        ],
        addresses: vec![
            address("10.77.1.1/24", Some(1)),
            address("10.77.1.2/24", Some(0)),
            address("fd00:77::1/64", None),
        ],
        interfaces: vec![InterfaceView {
            name: "lo".into(),
            up: true,
            references: 3,
            reason: String::new(),
        }],
        capabilities: ctdb_wire::peer::Capabilities::default(),
        cluster_lock: Some("/clusterfs/lock".into()),
        log_level: "NOTICE".into(),
        clients: 1,
        addresses_by: "builtin".into(),
        tunables: vec![
            TunableView {
                name: "SeqnumInterval".into(),
                value: 1000,
            },
            TunableView {
                name: "MonitorInterval".into(),
                value: 15,
            },
        ],
        config: Arc::new(ConfigView {
            options: vec![ConfigOption {
                section: "cluster".into(),
                key: "cluster lock".into(),
                value: Some("/clusterfs/lock".into()),
                default: false,
            }],
        }),
    }
}
