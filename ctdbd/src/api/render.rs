//! What a snapshot answers to each read. Pure.

use ctdb_wire::api::{
    AddressesView, ApiError, ClusterView, DaemonView, InterfacesView, LogLevelView, NodesView,
    Snapshot, TunablesView,
};
use serde::Serialize;
use serde_json::Value;

use super::openapi;
use super::routes::{Read, Wanted, action_of, no_such_node};

/// The answer of `snapshot` to `read`.
pub fn render(snapshot: &Snapshot, read: &Read) -> Result<Value, ApiError> {
    match read {
        Read::Status => value(snapshot),
        Read::Daemon => value(&daemon(snapshot)),
        Read::Cluster => value(&cluster(snapshot)),
        Read::Nodes => value(&NodesView {
            node: snapshot.node,
            nodes: snapshot.nodes.clone(),
        }),
        Read::Node(number) => snapshot
            .nodes
            .iter()
            .find(|node| node.pnn == *number)
            .ok_or_else(|| no_such_node(*number))
            .and_then(value),
        Read::Addresses => value(&AddressesView {
            node: snapshot.node,
            addresses: snapshot.addresses.clone(),
        }),
        Read::Address(wanted) => snapshot
            .addresses
            .iter()
            .find(|address| address.address == *wanted)
            .ok_or_else(|| {
                let text = format!(
                    "{wanted} is not a public address; `ctdb ip list` shows those of the cluster"
                );
                ApiError::new(404, "no_such_address", text)
            })
            .and_then(value),
        Read::Interfaces => value(&InterfacesView {
            node: snapshot.node,
            interfaces: snapshot.interfaces.clone(),
        }),
        Read::Tunables => value(&TunablesView {
            tunables: snapshot.tunables.clone(),
        }),
        Read::LogLevel => value(&LogLevelView {
            level: snapshot.log_level.clone(),
        }),
        Read::Config => value(&*snapshot.config),
        Read::OpenApi => Ok(openapi::document()),
    }
}

/// The answer to `Action::Read`: the read that `path` names.
pub fn render_path(snapshot: &Snapshot, path: &str) -> Result<Value, ApiError> {
    match action_of("GET", path, None, b"")?.wanted {
        Wanted::Read(read) => render(snapshot, &read),
        Wanted::Action(_) | Wanted::Database(_) => {
            let text = format!("{path} is not a part of the snapshot");
            Err(ApiError::new(400, "bad_request", text))
        }
    }
}

fn value(view: &impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(view)
        .map_err(|error| ApiError::new(500, "internal", format!("writing the answer: {error}")))
}

fn daemon(snapshot: &Snapshot) -> DaemonView {
    DaemonView {
        node: snapshot.node,
        release: snapshot.release.clone(),
        pid: snapshot.pid,
        run_state: snapshot.run_state,
        started_at: snapshot.started_at,
        now: snapshot.now,
        clients: snapshot.clients,
        leader: snapshot.leader,
        last_recovery: snapshot.last_recovery,
        capabilities: snapshot.capabilities,
        cluster_lock: snapshot.cluster_lock.clone(),
        log_level: snapshot.log_level.clone(),
    }
}

fn cluster(snapshot: &Snapshot) -> ClusterView {
    use ctdb_wire::ids::NodeFlags;
    let present = snapshot
        .nodes
        .iter()
        .filter(|node| !node.flags.contains(NodeFlags::DELETED));
    ClusterView {
        node: snapshot.node,
        leader: snapshot.leader,
        term: snapshot.term,
        generation: snapshot.generation,
        vnn_map: snapshot.vnn_map.clone(),
        recovery_mode: snapshot.recovery_mode,
        last_recovery: snapshot.last_recovery,
        right: snapshot.right.clone(),
        cluster_lock: snapshot.cluster_lock.clone(),
        addresses_by: snapshot.addresses_by.clone(),
        nodes: present.clone().count() as u32,
        healthy: present.filter(|node| node.flags.is_empty()).count() as u32,
        addresses: snapshot.addresses.len() as u32,
        unhosted: snapshot
            .addresses
            .iter()
            .filter(|address| address.owner.is_none())
            .count() as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn every_part_is_rendered() {
        let snapshot = sample::snapshot();
        let status = render(&snapshot, &Read::Status).unwrap();
        assert_eq!(serde_json::from_value::<Snapshot>(status).unwrap(), {
            // The configuration is not a part of the status.
            let mut plain = snapshot.clone();
            plain.config = std::sync::Arc::default();
            plain
        });
        let cluster = render(&snapshot, &Read::Cluster).unwrap();
        assert_eq!(cluster["nodes"], 2, "deleted ones are not counted");
        assert_eq!(cluster["healthy"], 1);
        assert_eq!(cluster["unhosted"], 1);
        assert_eq!(
            render(&snapshot, &Read::Node(1)).unwrap()["address"],
            "127.0.0.2"
        );
        let missing = render(&snapshot, &Read::Node(9)).unwrap_err();
        assert_eq!(
            (missing.status, missing.code.as_str()),
            (404, "no_such_node")
        );
        let address = Read::Address("10.77.1.2".parse().unwrap());
        assert_eq!(render(&snapshot, &address).unwrap()["owner"], 0);
        let other = Read::Address("10.77.1.9".parse().unwrap());
        assert_eq!(
            render(&snapshot, &other).unwrap_err().code,
            "no_such_address"
        );
        let config = render(&snapshot, &Read::Config).unwrap();
        assert_eq!(config["options"][0]["key"], "cluster lock");
        assert_eq!(
            render_path(&snapshot, "/v1/log/level").unwrap()["level"],
            "NOTICE"
        );
        assert_eq!(
            render_path(&snapshot, "/v1/ips/plan").unwrap_err().status,
            400
        );
    }
}
