//! What each old command does: one or two requests, and a text of [`super::text`].

use std::net::IpAddr;
use std::time::Instant;

use ctdb_wire::api::{
    AddressView, DaemonView, Done, EventRunView, InterfacesView, NodeVerb, NodeView, NodesView,
    ReloadView, Snapshot, TunablesView,
};
use ctdb_wire::client::packet::INVALID_GENERATION;
use ctdb_wire::ids::{NodeFlags, RunState};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::controls;
use super::text::{self, Shown};
use super::{End, Tool};
use crate::api::routes::encode_segment;
use crate::cli::RELEASE;
use crate::cli::client::ClientError;
use crate::cli::{event, node};
use crate::log::LogLevel;

type Result = std::result::Result<u8, End>;

/// EINVAL.
const INVALID: u8 = 22;
/// Longest name of an interface (IFNAMSIZ - 1).
const INTERFACE_NAME: usize = 15;

pub(super) fn version(tool: &mut Tool, _: &[String]) -> Result {
    if tool.options.json {
        tool.print(&text::version_json(RELEASE))
    } else {
        tool.print(&format!("{RELEASE}\n"))
    }
}

pub(super) fn status(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let mut snapshot: Snapshot = tool.get("GET_NODEMAP", "/v1/status")?;
    if !tool.options.machine
        && let Some((mode, map)) = controls::databases(tool)
    {
        snapshot.recovery_mode = mode;
        snapshot.generation = (map.generation != INVALID_GENERATION).then_some(map.generation);
        snapshot.vnn_map = map.map;
    }
    let text = if tool.options.json {
        text::status_json(&snapshot)
    } else {
        text::status(&snapshot, tool.style())
    };
    tool.print(&text)
}

/// Always exit code 0 (`spec/cli.md` 6.9).
pub(super) fn script_status(tool: &mut Tool, args: &[String]) -> Result {
    let event = at_most_one(args)?.unwrap_or("monitor");
    let path = format!("/v1/events/status/legacy/{}", encode_segment(event));
    match tool.client.get::<EventRunView>(&path) {
        Ok(view) => tool.print(&event::status(&view, &TimeZone::system())),
        Err(ClientError::Refused(error)) if error.code == "never_ran" => {
            tool.print(&format!("Event {event} has never run in legacy\n"))
        }
        Err(ClientError::Refused(error)) if error.code == "no_such_component" => {
            tool.print("Event dir for legacy does not exist\n")
        }
        Err(ClientError::Connect { path, .. }) => {
            let socket = path.with_file_name("eventd.socket");
            tool.complain(&format!("socket connect failed - {}", socket.display()));
            tool.complain("Failed to initialize event client, ret=5");
            Ok(0)
        }
        Err(error) => {
            tool.complain(&error.to_string());
            Ok(0)
        }
    }
}

pub(super) fn node_status(tool: &mut Tool, args: &[String]) -> Result {
    let list = at_most_one(args)?;
    let view: NodesView = tool.get("GET_NODEMAP", "/v1/nodes")?;
    let shown = match list {
        None => Shown::These(vec![view.node]),
        Some("all") => Shown::All,
        Some(list) => Shown::These(numbers(list, &view.nodes)?),
    };
    let (text, flags) = text::node_status(&view.nodes, view.node, &shown, tool.style());
    tool.print(&text)?;
    Ok(flags.bits() as u8)
}

/// A list of node numbers, all of which exist.
fn numbers(list: &str, nodes: &[NodeView]) -> std::result::Result<Vec<u32>, End> {
    let mut numbers = Vec::new();
    for word in list.split(',') {
        let number: u32 = word
            .parse()
            .map_err(|_| End::error(format!("Invalid node {word}")))?;
        if !nodes.iter().any(|node| node.pnn == number) {
            return Err(End::error(format!("Node {number} does not exist")));
        }
        numbers.push(number);
    }
    Ok(numbers)
}

pub(super) fn uptime(tool: &mut Tool, _: &[String]) -> Result {
    let daemon: DaemonView = tool.get("UPTIME", "/v1/daemon")?;
    tool.print(&text::uptime(&daemon, &TimeZone::system()))
}

pub(super) fn ping(tool: &mut Tool, _: &[String]) -> Result {
    let begun = Instant::now();
    let daemon: DaemonView = tool.get("PING", "/v1/ping")?;
    tool.print(&text::ping(
        daemon.node,
        begun.elapsed().as_secs_f64(),
        daemon.clients,
    ))
}

pub(super) fn run_state(tool: &mut Tool, args: &[String]) -> Result {
    let states = [
        RunState::Init,
        RunState::Setup,
        RunState::FirstRecovery,
        RunState::Startup,
        RunState::Running,
        RunState::Shutdown,
    ];
    let mut wanted = Vec::new();
    for word in args {
        let known = states
            .iter()
            .find(|state| state.to_string().eq_ignore_ascii_case(word));
        let Some(state) = known else {
            return Err(End::stdout(format!("Invalid run state ({word})")));
        };
        wanted.push(*state);
    }
    let state = tool.daemon("GET_RUNSTATE")?.run_state;
    if !wanted.is_empty() && !wanted.contains(&state) {
        return Err(End::stdout(format!(
            "CTDB not in required run state (got {state})"
        )));
    }
    tool.print(&format!("{state}\n"))
}

pub(super) fn pnn(tool: &mut Tool, _: &[String]) -> Result {
    let node = tool.daemon("GET_PNN")?.node;
    tool.print(&format!("{node}\n"))
}

pub(super) fn leader(tool: &mut Tool, _: &[String]) -> Result {
    let leader = tool.daemon("GET_LEADER")?.leader;
    tool.print(&text::leader(leader))
}

pub(super) fn pid(tool: &mut Tool, _: &[String]) -> Result {
    let pid = tool.daemon("GET_PID")?.pid;
    tool.print(&format!("{pid}\n"))
}

pub(super) fn cluster_lock(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    match tool.daemon("GET_RECLOCK_FILE")?.cluster_lock {
        Some(lock) => tool.print(&format!("{lock}\n")),
        None => Ok(0),
    }
}

pub(super) fn capabilities(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let capabilities = tool.daemon("GET_CAPABILITIES")?.capabilities;
    tool.print(&text::capabilities(capabilities, tool.style()))
}

pub(super) fn get_debug(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let level = tool.daemon("GET_DEBUG")?.log_level;
    tool.print(&format!("{level}\n"))
}

pub(super) fn set_debug(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let Some(level) = LogLevel::parse(word) else {
        return Err(End::error(format!(
            "Invalid debug level '{word}'. Valid levels are:\n\
             \tERROR | WARNING | NOTICE | INFO | DEBUG"
        )));
    };
    let path = tool.at("/v1/log/level");
    tool.post(&path, &json!({"level": level.name()}))
        .map_err(|error| tool.refused("SET_DEBUG", &error))?;
    Ok(0)
}

pub(super) fn list_nodes(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let nodes = (tool.nodes_list)()
        .map_err(|source| End::error(format!("Failed to read nodes from \"{source}\"")))?;
    tool.print(&text::list_nodes(&nodes, tool.style()))
}

pub(super) fn get_variable(tool: &mut Tool, args: &[String]) -> Result {
    let [name] = args else { return Err(End::Usage) };
    let view: TunablesView = tool.get("GET_TUNABLE", "/v1/tunables")?;
    match view
        .tunables
        .iter()
        .find(|tunable| tunable.name.eq_ignore_ascii_case(name))
    {
        Some(tunable) => tool.print(&text::tunable(name, tunable.value)),
        None => Err(End::stdout(format!("No such tunable {name}"))),
    }
}

pub(super) fn list_variables(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let view: TunablesView = tool.get("GET_ALL_TUNABLES", "/v1/tunables")?;
    tool.print(&text::tunables(&view.tunables))
}

pub(super) fn ip(tool: &mut Tool, args: &[String]) -> Result {
    let all = match at_most_one(args)? {
        None => false,
        Some("all") => true,
        Some(_) => return Err(End::Usage),
    };
    let snapshot: Snapshot = tool.get("GET_PUBLIC_IPS", "/v1/status")?;
    tool.print(&text::ip(&snapshot, all, tool.style()))
}

fn address(word: &str) -> std::result::Result<IpAddr, End> {
    word.parse()
        .map_err(|_| End::error(format!("Invalid IP address {word}")))
}

pub(super) fn ip_info(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let address = address(word)?;
    let interfaces: InterfacesView = tool.get("GET_IFACES", "/v1/interfaces")?;
    let path = tool.at(&format!("/v1/ips/{address}"));
    match tool.client.get::<AddressView>(&path) {
        Ok(view) if view.known_here => tool.print(&text::ip_info(
            interfaces.node,
            &view,
            &interfaces.interfaces,
        )),
        Err(error) if !is_absent(&error) => Err(tool.refused("GET_PUBLIC_IP_INFO", &error)),
        _ => {
            let node = interfaces.node;
            tool.print(&format!("Node {node} does not know about IP {address}\n"))?;
            Err(End::error("Control GET_PUBLIC_IP_INFO failed, ret=-1"))
        }
    }
}

fn is_absent(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(refusal) if refusal.status == 404)
}

pub(super) fn interfaces(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let view: InterfacesView = tool.get("GET_IFACES", "/v1/interfaces")?;
    tool.print(&text::interfaces(&view, tool.style()))
}

pub(super) fn set_interface_link(tool: &mut Tool, args: &[String]) -> Result {
    let [name, link] = args else {
        return Err(End::Usage);
    };
    if name.len() > INTERFACE_NAME {
        return Err(End::error(format!("Interface name '{name}' too long")));
    }
    let up = match link.as_str() {
        "up" => true,
        "down" => false,
        _ => return Err(End::Usage),
    };
    let view: InterfacesView = tool.get("GET_IFACES", "/v1/interfaces")?;
    if !view
        .interfaces
        .iter()
        .any(|interface| interface.name == *name)
    {
        let text = format!("Interface {name} not configured on node {}", view.node);
        return Err(End::stdout(text));
    }
    let path = tool.at(&format!("/v1/interfaces/{}/link", encode_segment(name)));
    tool.post(&path, &json!({"up": up}))
        .map_err(|error| tool.refused("SET_IFACE_LINK_STATE", &error))?;
    Ok(0)
}

pub(super) fn announce(tool: &mut Tool, args: &[String]) -> Result {
    let [word, interface] = args else {
        return Err(End::Usage);
    };
    let address = address(word)?;
    let path = tool.at("/v1/ips/announce");
    let body = json!({"address": address, "interface": interface});
    tool.post(&path, &body).map_err(|error| {
        let node = tool.target();
        tool.failed("SEND_GRATUITOUS_ARP", &error, || match node {
            Some(node) => format!("Unable to send gratuitous arp from node {node}"),
            None => "Unable to send gratuitous arp".to_owned(),
        })
    })?;
    Ok(0)
}

pub(super) fn move_ip(tool: &mut Tool, args: &[String]) -> Result {
    let [word, node] = args else {
        return Err(End::Usage);
    };
    let address = address(word)?;
    let to: u32 = node
        .parse()
        .map_err(|_| End::error(format!("Invalid PNN {node}")))?;
    let give_up = format!("Failed to move IP {address} to node {to}");
    let view: NodesView = tool.get("GET_NODEMAP", "/v1/nodes")?;
    if !view
        .nodes
        .iter()
        .any(|node| node.pnn == to && !node.flags.is_inactive())
    {
        return Err(End::error(format!(
            "Control GET_PUBLIC_IPS failed, ret=-1\nFailed to get Public IPs from node {to}\n\
             {give_up}"
        )));
    }
    let known = match tool
        .client
        .get::<AddressView>(&format!("/v1/ips/{address}"))
    {
        Ok(view) => view.nodes.contains_key(&to),
        Err(error) if is_absent(&error) => false,
        Err(error) => return Err(tool.failed("GET_PUBLIC_IPS", &error, || give_up)),
    };
    if !known {
        let text = format!("Node {to} CANNOT host IP address {address}\n{give_up}");
        return Err(End::error(text));
    }
    tool.post("/v1/ips/move", &json!({"address": address, "to": to}))
        .map_err(|error| tool.failed("TAKEOVER_IP", &error, || give_up))?;
    Ok(0)
}

pub(super) fn reload(tool: &mut Tool, args: &[String]) -> Result {
    let view: NodesView = tool.get("GET_NODEMAP", "/v1/nodes")?;
    let nodes = match at_most_one(args)? {
        None => vec![view.node],
        Some("all") => {
            let active = view.nodes.iter().filter(|node| !node.flags.is_inactive());
            active.map(|node| node.pnn).collect()
        }
        Some(list) => numbers(list, &view.nodes)?,
    };
    let mut failed = false;
    for node in nodes {
        if let Err(error) = tool.post(&format!("/v1/ips/reload?node={node}"), &json!({})) {
            failed = true;
            tool.complain(&format!("Node {node}: {error}"));
        }
    }
    if failed {
        tool.complain("Failed to reload IPs on some nodes.");
    }
    let status = reallocate(tool, &[])?;
    Ok(if failed { 1 } else { status }) // OPS-2
}

/// `ctdb reloadnodes`: its texts on the streams that the old tool writes them to
/// (`spec/cli.md` 6.4).
pub(super) fn reload_nodes(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let view: ReloadView = match tool
        .client
        .post("/v1/nodes/reload", &json!({"dry_run": false}))
    {
        Ok(view) => view,
        Err(ClientError::Refused(refusal)) => {
            for line in refusal.message.split("; ") {
                tool.complain(line);
            }
            return Err(End::error(
                "ERROR: Nodes will not be reloaded due to previous error",
            ));
        }
        Err(error) => return Err(tool.refused("RELOAD_NODES_FILE", &error)),
    };
    if !view.changed {
        tool.complain("No change in nodes file, skipping unnecessary reload");
        return Ok(0);
    }
    for warning in &view.warnings {
        tool.complain(warning);
    }
    tool.print(&node::changes(&view))
}

pub(super) fn reallocate(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    tool.post("/v1/ips/reallocate", &json!({}))
        .map_err(|error| tool.refused("TAKEOVER_RUN", &error))?;
    Ok(0)
}

pub(super) fn set_leader_role(tool: &mut Tool, args: &[String]) -> Result {
    set_role(tool, args, "leader", "SET_LEADER_ROLE")
}

pub(super) fn set_lmaster_role(tool: &mut Tool, args: &[String]) -> Result {
    set_role(tool, args, "lmaster", "SET_LMASTER_ROLE")
}

fn set_role(tool: &mut Tool, args: &[String], role: &str, control: &str) -> Result {
    let on = match args {
        [word] if word == "on" => true,
        [word] if word == "off" => false,
        _ => return Err(End::Usage),
    };
    let path = tool.at("/v1/capabilities");
    tool.post(&path, &json!({role: on}))
        .map_err(|error| tool.refused(control, &error))?;
    Ok(0)
}

pub(super) fn disable(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    set_flag(
        tool,
        NodeVerb::Disable,
        NodeFlags::DISABLED,
        "is already disabled",
        "disable",
    )
}

pub(super) fn enable(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    set_flag(
        tool,
        NodeVerb::Enable,
        NodeFlags::DISABLED,
        "is not disabled",
        "enable",
    )
}

pub(super) fn stop(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    set_flag(
        tool,
        NodeVerb::Stop,
        NodeFlags::STOPPED,
        "is already stopped",
        "stop",
    )
}

pub(super) fn start(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    set_flag(
        tool,
        NodeVerb::Start,
        NodeFlags::STOPPED,
        "is not stopped",
        "continue stopped",
    )
}

pub(super) fn unban(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    set_flag(
        tool,
        NodeVerb::Unban,
        NodeFlags::BANNED,
        "is not banned",
        "unban",
    )
}

pub(super) fn ban(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    // The old tool looks at the node before it reads the time.
    if has_flag(tool, NodeFlags::BANNED)?.1 {
        return set_flag(
            tool,
            NodeVerb::Ban,
            NodeFlags::BANNED,
            "is already banned",
            "ban",
        );
    }
    // Without a text, as the old tool does.
    let Ok(seconds) = word.parse::<u32>() else {
        return Ok(INVALID);
    };
    if seconds == 0 {
        return Err(End::Error {
            text: "Ban time cannot be zero".into(),
            code: INVALID,
        });
    }
    let body = json!({"seconds": seconds});
    change(
        tool,
        NodeVerb::Ban,
        NodeFlags::BANNED,
        "is already banned",
        "ban",
        &body,
    )
}

fn set_flag(
    tool: &mut Tool,
    verb: NodeVerb,
    flag: NodeFlags,
    already: &str,
    failed: &str,
) -> Result {
    change(tool, verb, flag, already, failed, &json!({}))
}

/// The target, and whether it has that flag.
fn has_flag(tool: &Tool, flag: NodeFlags) -> std::result::Result<(u32, bool), End> {
    let view: NodesView = tool
        .client
        .get("/v1/nodes")
        .map_err(|error| tool.refused("GET_NODEMAP", &error))?;
    let target = tool.options.node.unwrap_or(view.node);
    let set = view
        .nodes
        .iter()
        .any(|node| node.pnn == target && node.flags.contains(flag));
    Ok((target, set))
}

/// Sets or clears a flag of the target, unless it is so already.
fn change(
    tool: &mut Tool,
    verb: NodeVerb,
    flag: NodeFlags,
    already: &str,
    failed: &str,
    body: &Value,
) -> Result {
    let (target, set) = has_flag(tool, flag)?;
    let sets = matches!(verb, NodeVerb::Disable | NodeVerb::Stop | NodeVerb::Ban);
    if set == sets {
        tool.complain(&format!("Node {target} {already}"));
        return Ok(0);
    }
    let path = format!("/v1/nodes/{target}/{}", verb.name());
    tool.post(&path, body).map_err(|error| {
        tool.failed("SET_FLAGS", &error, || {
            format!("Failed to {failed} node {target}")
        })
    })?;
    Ok(0)
}

pub(super) fn shutdown(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let view: NodesView = tool
        .client
        .get("/v1/nodes")
        .map_err(|error| tool.refused("GET_NODEMAP", &error))?;
    let target = tool.options.node.unwrap_or(view.node);
    let own = target == view.node;
    node::shut_down(tool.client, target, own).map_err(|error| {
        tool.failed("SHUTDOWN", &error, || {
            format!("Unable to shutdown node {target}")
        })
    })?;
    Ok(0)
}

fn no_args(args: &[String]) -> std::result::Result<(), End> {
    if args.is_empty() {
        Ok(())
    } else {
        Err(End::Usage)
    }
}

fn at_most_one(args: &[String]) -> std::result::Result<Option<&str>, End> {
    match args {
        [] => Ok(None),
        [word] => Ok(Some(word)),
        _ => Err(End::Usage),
    }
}

impl Tool<'_> {
    fn daemon(&self, control: &str) -> std::result::Result<DaemonView, End> {
        self.get(control, "/v1/daemon")
    }

    /// Has something changed; what the daemon says about it is not printed.
    pub(super) fn post(&self, path: &str, body: &Value) -> std::result::Result<Done, ClientError> {
        self.client.post(path, body)
    }
}
