//! The old commands about connections (`spec/cli.md` 6.6).

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};

use ctdb_conntrack::tickle::Tickler;
use ctdb_wire::api::connections::{ConnectionsView, Ends, MAX_GIVEN};
use serde_json::json;

use super::text;
use super::{End, Tool};
use crate::api::routes::encode_segment;
use crate::cli::client::ClientError;
use crate::cli::conntrack::parse;

type Result = std::result::Result<u8, End>;

/// Longest list on standard input.
const MAX_INPUT: u64 = 16 << 20;

pub(super) fn get(tool: &mut Tool, args: &[String]) -> Result {
    let (word, port) = match args {
        [word] => (word, None),
        [word, port] => {
            let port: u16 = port
                .parse()
                .map_err(|_| End::error(format!("Invalid port number {port}")))?;
            (word, Some(port))
        }
        _ => return Err(End::Usage),
    };
    let address: IpAddr = word
        .parse()
        .map_err(|_| End::error(format!("Invalid IP address {word}")))?;
    // As the old tool, which asks for port 0 if none is given.
    let port = port.filter(|port| *port != 0);
    let server = match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let path = tool.at(&format!("/v1/connections/{}", encode_segment(&server)));
    let view: ConnectionsView = tool.client.get(&path).map_err(|error| {
        if matches!(&error, ClientError::Refused(refusal) if refusal.status == 404) {
            return End::error(
                "Control GET_TCP_TICKLE_LIST failed, ret=1\nFailed to get list of connections",
            );
        }
        tool.failed("GET_TCP_TICKLE_LIST", &error, || {
            "Failed to get list of connections".to_owned()
        })
    })?;
    let pairs: BTreeSet<(SocketAddr, SocketAddr)> = view
        .connections
        .iter()
        .map(|connection| (connection.client, connection.server))
        .collect();
    let text = text::connections(address, &pairs, tool.style());
    tool.print(&text)
}

pub(super) fn add(tool: &mut Tool, args: &[String]) -> Result {
    change(
        tool,
        args,
        "add",
        "TCP_ADD_DELAYED_UPDATE",
        ["register", "add"],
    )
}

pub(super) fn del(tool: &mut Tool, args: &[String]) -> Result {
    change(tool, args, "del", "TCP_REMOVE", ["unregister", "remove"])
}

/// The pair of the arguments, or the list of standard input.
fn given(args: &[String]) -> std::result::Result<(Vec<Ends>, bool), End> {
    let end = |word: &String| -> std::result::Result<SocketAddr, End> {
        word.parse()
            .map_err(|_| End::error(format!("Invalid IP address {word}")))
    };
    match args {
        [client, server] => Ok((
            vec![Ends {
                client: end(client)?,
                server: end(server)?,
            }],
            false,
        )),
        [] => {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .take(MAX_INPUT)
                .read_to_string(&mut text)
                .map_err(|error| End::error(format!("Failed to read from stdin: {error}")))?;
            Ok((parse(&text).map_err(End::error)?, true))
        }
        _ => Err(End::Usage),
    }
}

fn change(
    tool: &mut Tool,
    args: &[String],
    verb: &str,
    control: &str,
    [one, many]: [&str; 2],
) -> Result {
    let (pairs, list) = given(args)?;
    let path = tool.at(&format!("/v1/connections/{verb}"));
    if !list {
        let body = json!({"connections": pairs});
        tool.post(&path, &body).map_err(|error| {
            tool.failed(control, &error, || format!("Failed to {one} connection"))
        })?;
        return Ok(0);
    }
    let mut failed = 0;
    for piece in pairs.chunks(MAX_GIVEN) {
        let body = json!({"connections": piece});
        if tool.post(&path, &body).is_ok() {
            continue;
        }
        // One that cannot be done does not stop the others.
        for pair in piece {
            failed += usize::from(tool.post(&path, &json!({"connections": [pair]})).is_err());
        }
    }
    if failed > 0 {
        return Err(End::error(format!("Failed to {many} {failed} tickles")));
    }
    Ok(0)
}

/// Sent from here, without a daemon, from the first address to the second.
pub(super) fn tickle(_: &mut Tool, args: &[String]) -> Result {
    let (pairs, list) = given(args)?;
    let mut tickler = Tickler::open().map_err(|error| End::error(error.to_string()))?;
    let connections: Vec<(SocketAddr, SocketAddr)> = pairs
        .iter()
        .map(|pair| (pair.server, pair.client))
        .collect();
    let sent = tickler.send(&connections);
    let failed = sent.iter().filter(|result| result.is_err()).count();
    match (failed, list) {
        (0, _) => Ok(0),
        (_, false) => Err(End::error("Failed to send tickle ack")),
        (_, true) => Err(End::error(format!("Failed to send {failed} tickles"))),
    }
}
