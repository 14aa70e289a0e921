//! Actions as requests, for other nodes.

use ctdb_wire::api::Action;
use ctdb_wire::ids::Pnn;

use super::{HttpCall, connections, encode_segment};

/// The reverse of [`action_of`](super::action_of): the request that asks `node` for `action`.
pub fn http_of(action: &Action, node: Pnn) -> HttpCall {
    let get = |path: &str| HttpCall {
        method: "GET",
        path: path.to_owned(),
        body: String::new(),
    };
    let post = |path: &str, body: serde_json::Value| HttpCall {
        method: "POST",
        path: path.to_owned(),
        body: body.to_string(),
    };
    match action {
        Action::Node {
            verb,
            seconds,
            reason,
        } => {
            let mut body = serde_json::Map::new();
            if let Some(seconds) = seconds {
                body.insert("seconds".into(), (*seconds).into());
            }
            if let Some(reason) = reason {
                body.insert("reason".into(), reason.as_str().into());
            }
            post(&format!("/v1/nodes/{node}/{}", verb.name()), body.into())
        }
        Action::Move { address, to } => post(
            "/v1/ips/move",
            serde_json::json!({"address": address, "to": to}),
        ),
        Action::Reallocate => post("/v1/ips/reallocate", serde_json::json!({})),
        Action::ReloadAddresses => post("/v1/ips/reload", serde_json::json!({})),
        Action::AddAddress {
            address,
            prefix,
            interfaces,
        } => post(
            "/v1/ips/add",
            serde_json::json!({"address": address, "prefix": prefix, "interfaces": interfaces}),
        ),
        Action::RemoveAddress { address } => {
            post("/v1/ips/remove", serde_json::json!({"address": address}))
        }
        Action::Announce { address, interface } => post(
            "/v1/ips/announce",
            serde_json::json!({"address": address, "interface": interface}),
        ),
        Action::InterfaceLink { name, up } => {
            let path = format!("/v1/interfaces/{}/link", encode_segment(name));
            post(&path, serde_json::json!({"up": up}))
        }
        Action::LogLevel { level } => post("/v1/log/level", serde_json::json!({"level": level})),
        Action::Leader => get("/v1/cluster/leader"),
        Action::History => get("/v1/cluster/history"),
        Action::NodesSource => get("/v1/nodes/source"),
        Action::ReloadNodes { dry_run } => {
            post("/v1/nodes/reload", serde_json::json!({"dry_run": dry_run}))
        }
        Action::ApplyNodes { nodes, part } => post(
            "/v1/nodes/apply",
            serde_json::json!({"nodes": nodes, "part": part}),
        ),
        Action::Lock => get("/v1/cluster/lock"),
        Action::DatabaseClients => get("/v1/databases/clients"),
        Action::Processes => get("/v1/processes"),
        Action::Process { id } => get(&format!("/v1/processes/{id}")),
        Action::Events { history: false } => get("/v1/events"),
        Action::Events { history: true } => get("/v1/events/history"),
        Action::EventStatus { component, event } => {
            get(&below("/v1/events/status", &[component, event]))
        }
        Action::EventRun {
            component,
            event,
            args,
            seconds,
            all,
        } => post(
            &below("/v1/events/run", &[component, event]),
            serde_json::json!({"args": args, "seconds": seconds, "all": all}),
        ),
        Action::EventScripts { component } => get(&below("/v1/events/scripts", &[component])),
        Action::EventScript {
            component,
            script,
            enable,
        } => post(
            &below("/v1/events/scripts", &[component, script]),
            serde_json::json!({"enable": enable}),
        ),
        Action::Plan => get("/v1/ips/plan"),
        Action::Why { address } => get(&format!("/v1/ips/{address}/why")),
        Action::Capabilities { leader, lmaster } => post(
            "/v1/capabilities",
            serde_json::json!({"leader": leader, "lmaster": lmaster}),
        ),
        Action::Read { path } => get(path),
        Action::Connections(action) => connections::http_of(action),
    }
}

/// A path with variable segments at its end.
fn below(path: &str, segments: &[&str]) -> String {
    segments.iter().fold(path.to_owned(), |path, segment| {
        path + "/" + &encode_segment(segment)
    })
}
