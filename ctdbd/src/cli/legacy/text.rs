//! What the old commands print, byte for byte (`spec/cli.md` 6.3 to 6.5, 6.8). Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ctdb_wire::api::{
    AddressView, DaemonView, InterfaceView, InterfacesView, NodeView, Snapshot, TunableView,
};
use ctdb_wire::ids::{NodeFlags, address_key};
use ctdb_wire::peer::Capabilities;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

pub mod statistics;

/// How a command is to print.
#[derive(Clone, Copy, Debug)]
pub struct Style<'a> {
    /// The separator of machine-readable output; `None` for people.
    pub machine: Option<&'a str>,
    /// More columns.
    pub verbose: bool,
}

/// One machine-readable row: a separator before, between and behind the fields.
pub fn row<S: AsRef<str>>(separator: &str, fields: &[S]) -> String {
    let mut line = separator.to_owned();
    for field in fields {
        line.push_str(field.as_ref());
        line.push_str(separator);
    }
    line.push('\n');
    line
}

fn is_deleted(node: &NodeView) -> bool {
    node.flags.contains(NodeFlags::DELETED)
}

/// No flag, but an interface without link.
fn is_partially_online(node: &NodeView) -> bool {
    node.flags.is_empty() && node.flags_text == "PARTIALLYONLINE"
}

fn flags_text(node: &NodeView) -> String {
    if is_partially_online(node) {
        node.flags_text.clone()
    } else {
        node.flags.to_string()
    }
}

/// `Number of nodes:4 (including 2 deleted nodes)`
fn node_count(nodes: &[NodeView]) -> String {
    match nodes.iter().filter(|node| is_deleted(node)).count() {
        0 => format!("Number of nodes:{}\n", nodes.len()),
        deleted => {
            format!(
                "Number of nodes:{} (including {deleted} deleted nodes)\n",
                nodes.len()
            )
        }
    }
}

fn node_line(node: &NodeView, this_node: u32) -> String {
    let mark = if node.pnn == this_node {
        " (THIS NODE)"
    } else {
        ""
    };
    format!(
        "pnn:{} {:<16} {}{mark}\n",
        node.pnn,
        node.address,
        flags_text(node)
    )
}

const NODE_COLUMNS: [&str; 11] = [
    "Node",
    "IP",
    "Disconnected",
    "Unknown",
    "Banned",
    "Disabled",
    "Unhealthy",
    "Stopped",
    "Inactive",
    "PartiallyOnline",
    "ThisNode",
];

fn node_row(separator: &str, node: &NodeView, this_node: u32) -> String {
    let bit = |set: bool| if set { "1" } else { "0" }.to_owned();
    let flag = |flag: NodeFlags| bit(node.flags.intersects(flag));
    let fields = [
        node.pnn.to_string(),
        node.address.clone(),
        flag(NodeFlags::DISCONNECTED),
        flag(NodeFlags::UNKNOWN),
        flag(NodeFlags::BANNED),
        flag(NodeFlags::DISABLED),
        flag(NodeFlags::UNHEALTHY),
        flag(NodeFlags::STOPPED),
        flag(NodeFlags::INACTIVE),
        bit(is_partially_online(node)),
        if node.pnn == this_node { "Y" } else { "N" }.to_owned(),
    ];
    row(separator, &fields)
}

/// `status`
pub fn status(snapshot: &Snapshot, style: Style) -> String {
    let present = snapshot.nodes.iter().filter(|node| !is_deleted(node));
    if let Some(separator) = style.machine {
        let mut text = row(separator, &NODE_COLUMNS);
        text.extend(present.map(|node| node_row(separator, node, snapshot.node)));
        return text;
    }
    let mut text = node_count(&snapshot.nodes);
    text.extend(present.map(|node| node_line(node, snapshot.node)));
    match generation(snapshot) {
        Some(generation) => _ = writeln!(text, "Generation:{generation}"),
        None => text.push_str("Generation:INVALID\n"),
    }
    _ = writeln!(text, "Size:{}", snapshot.vnn_map.len());
    for (hash, lmaster) in snapshot.vnn_map.iter().enumerate() {
        _ = writeln!(text, "hash:{hash} lmaster:{lmaster}");
    }
    let mode = recovery_mode(snapshot.recovery_mode);
    _ = writeln!(text, "Recovery mode:{mode} ({})", snapshot.recovery_mode);
    text + "Leader:" + &leader(snapshot.leader)
}

/// An inactive node has no part in the databases, so that none is valid there.
fn generation(snapshot: &Snapshot) -> Option<u32> {
    let inactive = |node: &NodeView| node.pnn == snapshot.node && node.flags.is_inactive();
    snapshot
        .generation
        .filter(|_| !snapshot.nodes.iter().any(inactive))
}

fn recovery_mode(mode: u32) -> &'static str {
    if mode == 0 { "NORMAL" } else { "RECOVERY" }
}

/// `leader`
pub fn leader(leader: Option<u32>) -> String {
    leader.map_or_else(|| "UNKNOWN\n".to_owned(), |pnn| format!("{pnn}\n"))
}

#[derive(Serialize)]
struct StatusJson<'a> {
    node_status: NodeStatusJson<'a>,
    vnn_status: VnnStatusJson,
    recovery_mode: &'static str,
    recovery_mode_raw: u32,
    leader: u32,
}

#[derive(Serialize)]
struct NodeStatusJson<'a> {
    node_count: usize,
    deleted_node_count: usize,
    nodes: NodesJson<'a>,
}

/// Keyed by node number, in its order.
struct NodesJson<'a>(Vec<(String, NodeJson<'a>)>);

impl Serialize for NodesJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (pnn, node) in &self.0 {
            map.serialize_entry(pnn, node)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct NodeJson<'a> {
    pnn: u32,
    address: &'a str,
    partially_online: bool,
    flags_raw: u32,
    flags_ok: bool,
    flags: FlagsJson,
    this_node: bool,
}

#[derive(Serialize)]
struct FlagsJson {
    disconnected: bool,
    unknown: bool,
    disabled: bool,
    banned: bool,
    unhealthy: bool,
    deleted: bool,
    stopped: bool,
    inactive: bool,
}

#[derive(Serialize)]
struct VnnStatusJson {
    generation: Option<u32>,
    size: usize,
    vnn_map: Vec<VnnJson>,
}

#[derive(Serialize)]
struct VnnJson {
    hash: usize,
    lmaster: u32,
}

/// `-j status`: two spaces of indent, no newline at the end.
pub fn status_json(snapshot: &Snapshot) -> String {
    let nodes = snapshot
        .nodes
        .iter()
        .filter(|node| !is_deleted(node))
        .map(|node| {
            let flag = |flag: NodeFlags| node.flags.intersects(flag);
            let json = NodeJson {
                pnn: node.pnn,
                address: &node.address,
                partially_online: is_partially_online(node),
                flags_raw: node.flags.bits(),
                flags_ok: node.flags.is_empty(),
                flags: FlagsJson {
                    disconnected: flag(NodeFlags::DISCONNECTED),
                    unknown: flag(NodeFlags::UNKNOWN),
                    disabled: flag(NodeFlags::DISABLED),
                    banned: flag(NodeFlags::BANNED),
                    unhealthy: flag(NodeFlags::UNHEALTHY),
                    deleted: flag(NodeFlags::DELETED),
                    stopped: flag(NodeFlags::STOPPED),
                    inactive: flag(NodeFlags::INACTIVE),
                },
                this_node: node.pnn == snapshot.node,
            };
            (node.pnn.to_string(), json)
        });
    let vnn_map = snapshot.vnn_map.iter().enumerate();
    let status = StatusJson {
        node_status: NodeStatusJson {
            node_count: snapshot.nodes.len(),
            deleted_node_count: snapshot
                .nodes
                .iter()
                .filter(|node| is_deleted(node))
                .count(),
            nodes: NodesJson(nodes.collect()),
        },
        vnn_status: VnnStatusJson {
            generation: generation(snapshot),
            size: snapshot.vnn_map.len(),
            vnn_map: vnn_map
                .map(|(hash, lmaster)| VnnJson {
                    hash,
                    lmaster: *lmaster,
                })
                .collect(),
        },
        recovery_mode: recovery_mode(snapshot.recovery_mode),
        recovery_mode_raw: snapshot.recovery_mode,
        leader: snapshot.leader.unwrap_or(u32::MAX),
    };
    // Strings, numbers and string keys always serialize.
    serde_json::to_string_pretty(&status).unwrap_or_default()
}

/// `-j version`
pub fn version_json(release: &str) -> String {
    let version = serde_json::json!({"version": release});
    format!("{version:#}")
}

/// Which nodes `nodestatus` shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shown {
    /// All, with their number first.
    All,
    /// These.
    These(Vec<u32>),
}

/// `nodestatus`, and the flags of all nodes that it shows.
pub fn node_status(
    nodes: &[NodeView],
    this_node: u32,
    shown: &Shown,
    style: Style,
) -> (String, NodeFlags) {
    let mut text = match (style.machine, shown) {
        (Some(separator), _) => row(separator, &NODE_COLUMNS),
        (None, Shown::All) => node_count(nodes),
        (None, Shown::These(_)) => String::new(),
    };
    let mut flags = NodeFlags::empty();
    for node in nodes.iter().filter(|node| !is_deleted(node)) {
        let wanted = match shown {
            Shown::All => true,
            Shown::These(numbers) => numbers.contains(&node.pnn),
        };
        if wanted {
            flags |= node.flags;
            match style.machine {
                Some(separator) => text.push_str(&node_row(separator, node, this_node)),
                None => text.push_str(&node_line(node, this_node)),
            }
        }
    }
    (text, flags)
}

/// `ctime`, in the time zone of the reader.
fn ctime(seconds: f64, zone: &TimeZone) -> String {
    jiff::Timestamp::from_second(seconds as i64)
        .map(|moment| {
            moment
                .to_zoned(zone.clone())
                .strftime("%a %b %e %H:%M:%S %Y")
                .to_string()
        })
        .unwrap_or_default()
}

/// `(000 00:00:48) Sun Nov 22 11:58:51 2026`: the time since `then`, and `then`.
fn since(then: f64, now: f64, zone: &TimeZone) -> String {
    let seconds = (now as i64).saturating_sub(then as i64).max(0);
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    format!(
        "({days:03} {hours:02}:{minutes:02}:{seconds:02}) {}",
        ctime(then, zone)
    )
}

/// `uptime`
pub fn uptime(daemon: &DaemonView, zone: &TimeZone) -> String {
    let (began, ended) = daemon.last_recovery.unwrap_or_default();
    let label = format!("Current time of node {}", daemon.node);
    format!(
        "{label:<30}:                {}\n\
         Ctdbd start time              : {}\n\
         Time of last recovery/failover: {}\n\
         Duration of last recovery/failover: {:.6} seconds\n",
        ctime(daemon.now, zone),
        since(daemon.started_at, daemon.now, zone),
        since(ended, daemon.now, zone),
        (ended - began).max(0.0),
    )
}

/// `ping`
pub fn ping(node: u32, seconds: f64, clients: u32) -> String {
    format!("response from {node} time={seconds:.6} sec  ({clients} clients)\n")
}

/// `getcapabilities`
pub fn capabilities(capabilities: Capabilities, style: Style) -> String {
    let Capabilities {
        leader, lmaster, ..
    } = capabilities;
    if let Some(separator) = style.machine {
        let bit = |set: bool| if set { "1" } else { "0" };
        return row(separator, &["LEADER", "LMASTER"])
            + &row(separator, &[bit(leader), bit(lmaster)]);
    }
    let word = |set: bool| if set { "YES" } else { "NO" };
    format!("LEADER: {}\nLMASTER: {}\n", word(leader), word(lmaster))
}

/// `listnodes`: node number and address of each entry that is not deleted.
pub fn list_nodes(nodes: &[(u32, IpAddr)], style: Style) -> String {
    nodes
        .iter()
        .map(|(pnn, address)| match style.machine {
            Some(separator) => row(separator, &[pnn.to_string(), address.to_string()]),
            None => format!("{address}\n"),
        })
        .collect()
}

/// One line of `ip`.
struct IpLine {
    address: IpAddr,
    owner: Option<u32>,
    active: String,
    available: String,
    configured: String,
}

impl IpLine {
    /// As the node that was asked sees it.
    fn of_node(view: &AddressView) -> Self {
        let mut line = Self {
            address: view.address,
            owner: view.owner,
            active: view.active.clone().unwrap_or_default(),
            available: view.available.join(","),
            configured: view.interfaces.join(","),
        };
        if view.owner.is_none() {
            line.active.clear();
            line.available.clear();
            line.configured.clear();
        }
        line
    }

    /// As the node that hosts it sees it; `None` if no active node names it.
    fn of_all(view: &AddressView, nodes: &[NodeView]) -> Option<Self> {
        let active = |pnn: u32| {
            nodes
                .iter()
                .any(|node| node.pnn == pnn && !node.flags.is_inactive())
        };
        let mut known = view
            .nodes
            .iter()
            .filter(|(pnn, _)| active(**pnn))
            .peekable();
        known.peek()?;
        let mut line = Self {
            address: view.address,
            owner: None,
            active: String::new(),
            available: String::new(),
            configured: String::new(),
        };
        if let Some((pnn, on_node)) = known.find(|(_, on_node)| on_node.hosts) {
            line.owner = Some(*pnn);
            line.active = on_node.active.clone().unwrap_or_default();
            line.configured = on_node.interfaces.join(",");
            line.available = if on_node.available {
                line.configured.clone()
            } else {
                line.active.clone()
            };
        }
        Some(line)
    }

    fn print(&self, style: Style) -> String {
        let owner = self.owner.map_or(-1, i64::from);
        match (style.machine, style.verbose) {
            (Some(separator), false) => {
                row(separator, &[self.address.to_string(), owner.to_string()])
            }
            (Some(separator), true) => row(
                separator,
                &[
                    self.address.to_string(),
                    owner.to_string(),
                    self.active.clone(),
                    self.available.clone(),
                    self.configured.clone(),
                ],
            ),
            (None, false) => format!("{} {owner}\n", self.address),
            (None, true) => format!(
                "{} node[{owner}] active[{}] available[{}] configured[{}]\n",
                self.address, self.active, self.available, self.configured
            ),
        }
    }
}

/// `ip`, `ip all`
pub fn ip(snapshot: &Snapshot, all: bool, style: Style) -> String {
    let mut lines: Vec<IpLine> = if all {
        let views = snapshot.addresses.iter();
        views
            .filter_map(|view| IpLine::of_all(view, &snapshot.nodes))
            .collect()
    } else {
        let views = snapshot.addresses.iter().filter(|view| view.known_here);
        views.map(IpLine::of_node).collect()
    };
    lines.sort_by_key(|line| address_key(line.address));
    let mut text = match style.machine {
        Some(separator) if style.verbose => row(
            separator,
            &[
                "Public IP",
                "Node",
                "ActiveInterfaces",
                "AvailableInterfaces",
                "ConfiguredInterfaces",
            ],
        ),
        Some(separator) => row(separator, &["Public IP", "Node"]),
        None if all => "Public IPs on ALL nodes\n".to_owned(),
        None => format!("Public IPs on node {}\n", snapshot.node),
    };
    text.extend(lines.iter().map(|line| line.print(style)));
    text
}

/// `ipinfo`
pub fn ip_info(node: u32, view: &AddressView, interfaces: &[InterfaceView]) -> String {
    let mut text = format!(
        "Public IP[{address}] info on node {node}\nIP:{address}\nCurrentNode:{owner}\n\
         NumInterfaces:{count}\n",
        address = view.address,
        owner = view.owner.unwrap_or(u32::MAX),
        count = view.interfaces.len(),
    );
    for (index, name) in view.interfaces.iter().enumerate() {
        let known = interfaces.iter().find(|interface| interface.name == *name);
        let active = if view.active.as_ref() == Some(name) {
            " (active)"
        } else {
            ""
        };
        _ = writeln!(
            text,
            "Interface[{}]: Name:{name} Link:{} References:{}{active}",
            index + 1,
            if known.is_some_and(|interface| interface.up) {
                "up"
            } else {
                "down"
            },
            known.map_or(0, |interface| interface.references),
        );
    }
    text
}

/// `ifaces`
pub fn interfaces(view: &InterfacesView, style: Style) -> String {
    if view.interfaces.is_empty() {
        return format!("No interfaces configured on node {}\n", view.node);
    }
    let mut text = match style.machine {
        Some(separator) => row(separator, &["Name", "LinkStatus", "References"]),
        None => format!("Interfaces on node {}\n", view.node),
    };
    for interface in &view.interfaces {
        let references = interface.references.to_string();
        if let Some(separator) = style.machine {
            let link = if interface.up { "1" } else { "0" };
            text.push_str(&row(separator, &[&*interface.name, link, &*references]));
        } else {
            let link = if interface.up { "up" } else { "down" };
            _ = writeln!(
                text,
                "name:{} link:{link} references:{references}",
                interface.name
            );
        }
    }
    text
}

/// One line of `getvar` and `listvars`.
pub fn tunable(name: &str, value: u32) -> String {
    format!("{name:<26} = {value}\n")
}

/// `listvars`
pub fn tunables(tunables: &[TunableView]) -> String {
    tunables
        .iter()
        .map(|each| tunable(&each.name, each.value))
        .collect()
}

/// `ctdb gettickles`
pub fn connections(
    address: IpAddr,
    pairs: &BTreeSet<(SocketAddr, SocketAddr)>,
    style: Style<'_>,
) -> String {
    let mut text = match style.machine {
        Some(separator) => row(separator, &["Source IP", "Port", "Destination IP", "Port"]),
        None => format!(
            "Connections for IP: {address}\nNum connections: {}\n",
            pairs.len()
        ),
    };
    for (client, server) in pairs {
        match style.machine {
            Some(separator) => {
                let [client, server] =
                    [client, server].map(|end| [end.ip().to_string(), end.port().to_string()]);
                text.push_str(&row(separator, &[client, server].concat()));
            }
            None => {
                // Writing to a string does not fail.
                let _ = writeln!(text, "SRC: {client}   DST: {server}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
