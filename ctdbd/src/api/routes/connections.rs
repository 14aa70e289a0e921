//! `/v1/connections` and below.

use std::net::{IpAddr, SocketAddr};

use ctdb_wire::api::connections::{ConnectionAction, ConnectionsBody, Ends, MAX_GIVEN};
use ctdb_wire::api::{Action, ApiError};

use super::{HttpCall, Input, Parsed, act, bad_request, encode_segment};

type Made = Result<Parsed, ApiError>;

fn make(action: ConnectionAction) -> Made {
    act(Action::Connections(action))
}

pub(super) fn all() -> Made {
    make(ConnectionAction::List {
        address: None,
        port: None,
    })
}

pub(super) fn clients() -> Made {
    make(ConnectionAction::Clients)
}

pub(super) fn udp() -> Made {
    make(ConnectionAction::Udp)
}

pub(super) fn stats() -> Made {
    make(ConnectionAction::Stats)
}

pub(super) fn to(input: &Input) -> Made {
    let text = input.segment(0);
    let (address, port) = match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
        (Ok(address), _) => (address, None),
        (_, Ok(end)) => (end.ip(), Some(end.port())),
        _ => {
            return Err(bad_request(format!(
                "'{text}' is neither an IP address nor ADDRESS:PORT"
            )));
        }
    };
    make(ConnectionAction::List {
        address: Some(address),
        port,
    })
}

pub(super) fn show(input: &Input) -> Made {
    let end = |index| {
        let text = input.segment(index);
        text.parse()
            .map_err(|_| bad_request(format!("'{text}' is not ADDRESS:PORT")))
    };
    make(ConnectionAction::Show(Ends {
        server: end(0)?,
        client: end(1)?,
    }))
}

/// At least one, of one family each, and not too many.
fn given(input: &Input) -> Result<ConnectionsBody, ApiError> {
    let body: ConnectionsBody = input.json()?;
    if body.connections.len() > MAX_GIVEN {
        return Err(bad_request(format!(
            "{} connections are more than {MAX_GIVEN}; ask more than once",
            body.connections.len()
        )));
    }
    for ends in &body.connections {
        let [client, server] = [ends.client, ends.server].map(|end| end.ip().to_canonical());
        if client.is_ipv4() != server.is_ipv4() {
            return Err(bad_request(format!(
                "{} and {} are of two families",
                ends.client, ends.server
            )));
        }
    }
    Ok(body)
}

fn only_connections(input: &Input) -> Result<Vec<Ends>, ApiError> {
    let body = given(input)?;
    if body.address.is_some() {
        return Err(bad_request("'address' is for 'kill' only"));
    }
    Ok(body.connections)
}

pub(super) fn add(input: &Input) -> Made {
    make(ConnectionAction::Add(only_connections(input)?))
}

pub(super) fn del(input: &Input) -> Made {
    make(ConnectionAction::Del(only_connections(input)?))
}

pub(super) fn tickle(input: &Input) -> Made {
    make(ConnectionAction::Tickle(only_connections(input)?))
}

pub(super) fn kill(input: &Input) -> Made {
    let body = given(input)?;
    if body.connections.is_empty() && body.address.is_none() {
        return Err(bad_request("name 'connections' or an 'address'"));
    }
    make(ConnectionAction::Kill {
        connections: body.connections,
        address: body.address,
    })
}

/// The request that asks for it.
pub(super) fn http_of(action: &ConnectionAction) -> HttpCall {
    let get = |path: String| HttpCall {
        method: "GET",
        path,
        body: String::new(),
    };
    let post = |verb: &str, connections: &[Ends], address: Option<IpAddr>| {
        let body = ConnectionsBody {
            connections: connections.to_vec(),
            address,
        };
        HttpCall {
            method: "POST",
            path: format!("/v1/connections/{verb}"),
            body: serde_json::json!(body).to_string(),
        }
    };
    match action {
        ConnectionAction::List { address: None, .. } => get("/v1/connections".to_owned()),
        ConnectionAction::List {
            address: Some(address),
            port,
        } => {
            let server = match port {
                Some(port) => SocketAddr::new(*address, *port).to_string(),
                None => address.to_string(),
            };
            get(format!("/v1/connections/{}", encode_segment(&server)))
        }
        ConnectionAction::Clients => get("/v1/connections/clients".to_owned()),
        ConnectionAction::Show(ends) => get(path_of(ends)),
        ConnectionAction::Udp => get("/v1/connections/udp".to_owned()),
        ConnectionAction::Stats => get("/v1/connections/stats".to_owned()),
        ConnectionAction::Add(list) => post("add", list, None),
        ConnectionAction::Del(list) => post("del", list, None),
        ConnectionAction::Kill {
            connections,
            address,
        } => post("kill", connections, *address),
        ConnectionAction::Tickle(list) => post("tickle", list, None),
    }
}

/// Where one connection is shown.
fn path_of(ends: &Ends) -> String {
    let [server, client] = [ends.server, ends.client].map(|end| encode_segment(&end.to_string()));
    format!("/v1/connections/{server}/{client}")
}
