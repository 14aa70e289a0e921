//! `ctdb conntrack`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ctdb_wire::api::Done;
use ctdb_wire::api::connections::{
    ClientsView, ConnectionDetail, ConnectionStats, ConnectionView, ConnectionsView, Ends,
    MAX_GIVEN, UdpServicesView,
};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::table::{columns, facts, list, moment, or_dash};
use super::{Asking, args};
use crate::api::routes::encode_segment;

/// Between two looks of `watch`.
const LOOK: Duration = Duration::from_millis(500);
/// Longest list on standard input.
const MAX_INPUT: u64 = 16 << 20;

pub(super) fn run(
    asking: &Asking,
    verb: &args::Conntrack,
    out: &mut dyn Write,
) -> Result<String, Failure> {
    match verb {
        args::Conntrack::List {
            server: Some(server),
            ..
        } => {
            let path = format!("/v1/connections/{}", encode_segment(server));
            asking.show(&asking.at(&path), connections)
        }
        args::Conntrack::List { by: None, .. } => {
            asking.show(&asking.at("/v1/connections"), connections)
        }
        args::Conntrack::List { by: Some(_), .. } => {
            asking.show(&asking.at("/v1/connections/clients"), clients)
        }
        args::Conntrack::Show { client, server } => {
            let [server, client] = [server, client].map(|end| encode_segment(&end.to_string()));
            let path = asking.at(&format!("/v1/connections/{server}/{client}"));
            asking.show(&path, |view| show(view, &TimeZone::system()))
        }
        args::Conntrack::Udp => asking.show(&asking.at("/v1/connections/udp"), udp),
        args::Conntrack::Stats => asking.show(&asking.at("/v1/connections/stats"), stats),
        args::Conntrack::Add(pairs) => change(asking, "add", pairs),
        args::Conntrack::Del(pairs) => change(asking, "del", pairs),
        args::Conntrack::Tickle(pairs) => change(asking, "tickle", pairs),
        args::Conntrack::Kill {
            address: Some(address),
            ..
        } => asking.change(
            &asking.at("/v1/connections/kill"),
            &json!({"address": address}),
        ),
        args::Conntrack::Kill { pairs, .. } => change(asking, "kill", pairs),
        args::Conntrack::Watch { seconds } => watch(asking, *seconds, out),
    }
}

/// The pair of the arguments, or those on standard input.
fn given(pairs: &args::Pairs) -> Result<Vec<Ends>, Failure> {
    let usage = |text: String| Failure::new(Exit::Usage, "usage", text);
    match (pairs.client, pairs.server) {
        (Some(client), Some(server)) => Ok(vec![Ends { client, server }]),
        (None, None) => {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .take(MAX_INPUT)
                .read_to_string(&mut text)
                .map_err(|error| usage(format!("standard input cannot be read: {error}")))?;
            parse(&text).map_err(usage)
        }
        _ => Err(usage(
            "name both ends, CLIENT:PORT and SERVER:PORT".to_owned(),
        )),
    }
}

/// Lines of two ends each; empty ones and those with `#` are skipped (`spec/cli.md` 6.6).
pub fn parse(text: &str) -> Result<Vec<Ends>, String> {
    let lines = text.lines().zip(1..);
    lines
        .filter(|(line, _)| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(|(line, number)| {
            let ends: Vec<SocketAddr> = line
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map_err(|_| format!("line {number}: '{line}' is not CLIENT:PORT SERVER:PORT"))?;
            match ends[..] {
                [client, server] => Ok(Ends { client, server }),
                _ => Err(format!(
                    "line {number}: '{line}' is not CLIENT:PORT SERVER:PORT"
                )),
            }
        })
        .collect()
}

fn change(asking: &Asking, verb: &str, pairs: &args::Pairs) -> Result<String, Failure> {
    let list = given(pairs)?;
    let path = asking.at(&format!("/v1/connections/{verb}"));
    let mut total = Done::default();
    for piece in list.chunks(MAX_GIVEN) {
        let done: Done = asking.client.post(&path, &json!({"connections": piece}))?;
        total.changed |= done.changed;
        total.message = done.message;
    }
    if list.len() > MAX_GIVEN {
        total.message = format!("{} connections", list.len());
    }
    Ok(asking.done(&total))
}

fn node(connection: &ConnectionView) -> String {
    match (connection.node, connection.waiting) {
        (None, _) => "lost".to_owned(),
        (Some(node), true) => format!("{node} (let go)"),
        (Some(node), false) => node.to_string(),
    }
}

fn row(connection: &ConnectionView) -> [String; 5] {
    let since = if connection.since == 0 {
        "-".to_owned()
    } else {
        moment(f64::from(connection.since), &TimeZone::system())
    };
    [
        connection.client.to_string(),
        connection.server.to_string(),
        node(connection),
        since,
        list(&connection.sources),
    ]
}

/// What a list that was cut ends with.
fn rest(text: &mut String, shown: usize, total: u64, what: &str) {
    if total > shown as u64 {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{} more {what}; name an address, or ADDRESS:PORT",
            total - shown as u64
        );
    }
}

/// `ctdb conntrack list`
pub fn connections(view: &ConnectionsView) -> String {
    let rows: Vec<[String; 5]> = view.connections.iter().map(row).collect();
    let mut text = columns(["CLIENT", "SERVER", "NODE", "SINCE", "KNOWN FROM"], &rows);
    rest(&mut text, rows.len(), view.total, "connections");
    text
}

/// `ctdb conntrack list --by client`
pub fn clients(view: &ClientsView) -> String {
    let mut text = String::new();
    for client in &view.clients {
        let of = |part: fn(&ConnectionView) -> String| {
            let parts: BTreeSet<String> = client.connections.iter().map(part).collect();
            list(&parts)
        };
        let _ = writeln!(
            text,
            "{}  {} connections, addresses {}, nodes {}",
            client.client,
            client.count,
            of(|connection| connection.server.ip().to_string()),
            of(node),
        );
        for connection in &client.connections {
            let _ = writeln!(
                text,
                "    port {:<5}  {}  node {}",
                connection.client.port(),
                connection.server,
                node(connection)
            );
        }
    }
    rest(&mut text, view.clients.len(), view.total, "clients");
    text
}

/// `ctdb conntrack show`
pub fn show(view: &ConnectionDetail, zone: &TimeZone) -> String {
    let connection = &view.connection;
    facts(&[
        ("Client", connection.client.to_string()),
        ("Server", connection.server.to_string()),
        ("Node", node(connection)),
        (
            "Since",
            if connection.since == 0 {
                "-".to_owned()
            } else {
                moment(f64::from(connection.since), zone)
            },
        ),
        ("Known from", list(&connection.sources)),
        ("State", or_dash(view.state.as_ref())),
        ("Process", or_dash(view.pid)),
        ("Command", or_dash(view.command.as_ref())),
        ("Control group", or_dash(view.cgroup.as_ref())),
        ("Bytes received", or_dash(view.bytes_received)),
        ("Bytes sent", or_dash(view.bytes_acked)),
    ])
}

/// `ctdb conntrack udp`
pub fn udp(view: &UdpServicesView) -> String {
    let rows: Vec<[String; 4]> = view
        .services
        .iter()
        .map(|service| {
            [
                service.local.to_string(),
                or_dash(service.service.as_ref()),
                or_dash(service.pid),
                or_dash(service.command.as_ref()),
            ]
        })
        .collect();
    columns(["LOCAL", "SERVICE", "PID", "COMMAND"], &rows)
}

/// `ctdb conntrack stats`
pub fn stats(view: &ConnectionStats) -> String {
    if !view.enabled {
        return "Connections are not tracked ([conntrack] enabled).\n".to_owned();
    }
    facts(&[
        ("Tracked by", view.source.clone()),
        ("Killed by", view.kill_method.clone()),
        (
            "Connections",
            format!("{} of at most {}", view.own, view.max_connections),
        ),
        ("Of peers", view.replicated.to_string()),
        ("Of lost nodes", view.orphans.to_string()),
        ("Being told", view.telling.to_string()),
        (
            "Opened, closed",
            format!("{}, {}", view.opened, view.closed),
        ),
        (
            "Changes sent, received",
            format!("{}, {}", view.changes_sent, view.changes_received),
        ),
        (
            "Pieces sent, received",
            format!("{}, {}", view.parts_sent, view.parts_received),
        ),
        ("Differences repaired", view.diverged.to_string()),
        (
            "Links behind, frames lost",
            format!("{}, {}", view.fell_behind, view.frames_lost),
        ),
        (
            "Entries refused, beyond",
            format!("{}, {}", view.refused, view.overflowed),
        ),
        ("Clients told", view.told.to_string()),
        (
            "Tickles sent, refused",
            format!("{}, {}", view.tickles, view.tickle_errors),
        ),
        ("Sockets killed", view.killed.to_string()),
        ("UDP sockets silenced", view.udp_silenced.to_string()),
        (
            "Kernel: overruns, full, repairs",
            format!("{}, {}, {}", view.overruns, view.table_full, view.repairs),
        ),
    ])
}

/// Prints what begins and ends, until it is interrupted or the time is over.
fn watch(asking: &Asking, seconds: Option<u64>, out: &mut dyn Write) -> Result<String, Failure> {
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut known: Option<BTreeMap<(SocketAddr, SocketAddr), ConnectionView>> = None;
    loop {
        let view: ConnectionsView = asking.client.get(&asking.at("/v1/connections"))?;
        let there: BTreeMap<(SocketAddr, SocketAddr), ConnectionView> = view
            .connections
            .into_iter()
            .map(|connection| ((connection.server, connection.client), connection))
            .collect();
        let old = known.take().unwrap_or_default();
        let began = there.iter().filter(|(ends, _)| !old.contains_key(*ends));
        let ended = old.iter().filter(|(ends, _)| !there.contains_key(*ends));
        let lines = began
            .map(|(_, connection)| line(asking, "opened", connection))
            .chain(ended.map(|(_, connection)| line(asking, "closed", connection)));
        for line in lines {
            if out.write_all(line.as_bytes()).is_err() {
                return Ok(String::new()); // The reader has gone.
            }
        }
        let _ = out.flush();
        known = Some(there);
        if end.is_some_and(|end| end <= Instant::now() + LOOK) {
            return Ok(String::new());
        }
        std::thread::sleep(LOOK);
    }
}

fn line(asking: &Asking, what: &str, connection: &ConnectionView) -> String {
    if asking.global.json {
        let mut value: Value = json!(connection);
        value["event"] = what.into();
        return format!("{value}\n");
    }
    format!(
        "{what} {} -> {} node {}\n",
        connection.client,
        connection.server,
        node(connection)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(client: &str, server: &str, node: Option<u32>) -> ConnectionView {
        ConnectionView {
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
            node,
            since: 0,
            sources: vec!["kernel".to_owned()],
            waiting: false,
        }
    }

    #[test]
    fn lists_of_pairs_are_read_and_mistakes_are_named() {
        let text = "# clients\n10.0.0.9:1000 10.0.0.1:445\n\n[fd00::9]:1 [fd00::1]:2049\n";
        let pairs = parse(text).unwrap();
        assert_eq!(pairs.len(), 2);
        assert_eq!(pairs[1].server, "[fd00::1]:2049".parse().unwrap());
        assert!(parse("10.0.0.9:1000\n").unwrap_err().contains("line 1"));
        assert!(
            parse("\n10.0.0.9 10.0.0.1:445\n")
                .unwrap_err()
                .contains("line 2")
        );
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn channels_of_a_client_stand_together() {
        let view = ClientsView {
            node: 0,
            total: 3,
            clients: vec![ctdb_wire::api::connections::ClientView {
                client: "10.0.0.9".parse().unwrap(),
                count: 2,
                connections: vec![
                    connection("10.0.0.9:1000", "10.0.0.1:445", Some(0)),
                    connection("10.0.0.9:1001", "10.0.0.2:445", Some(1)),
                ],
            }],
        };
        let text = clients(&view);
        assert!(
            text.starts_with("10.0.0.9  2 connections, addresses 10.0.0.1, 10.0.0.2, nodes 0, 1\n"),
            "{text}"
        );
        assert!(text.contains("port 1001   10.0.0.2:445  node 1"), "{text}");
        assert!(
            text.ends_with("2 more clients; name an address, or ADDRESS:PORT\n"),
            "{text}"
        );
    }

    #[test]
    fn where_a_connection_is_is_said() {
        let mut shown = connection("10.0.0.9:1000", "10.0.0.1:445", None);
        assert_eq!(node(&shown), "lost");
        shown.node = Some(2);
        shown.waiting = true;
        assert_eq!(node(&shown), "2 (let go)");
    }
}
