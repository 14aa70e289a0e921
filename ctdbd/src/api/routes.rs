//! The routing table: which method and path asks for what. Pure; used for the local sockets and
//! for requests that another node passes on.

use std::net::IpAddr;

use ctdb_wire::api::databases::DatabaseAsk;
use ctdb_wire::api::{Action, ApiError, NodeVerb};
use ctdb_wire::ids::Pnn;
use serde::de::DeserializeOwned;

use crate::log::LogLevel;

mod bodies;
mod connections;
mod databases;
mod http;
mod segment;

use bodies::{
    AddBody, AnnounceBody, ApplyBody, CapabilitiesBody, EventBody, LevelBody, LinkBody, MoveBody,
    NodeBody, Nothing, ReloadBody, RemoveBody, ScriptBody,
};
pub use http::http_of;
use segment::decode_segment;
pub use segment::encode_segment;

/// A read that a snapshot answers, without the main loop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// `GET /v1/status`
    Status,
    /// `GET /v1/daemon`
    Daemon,
    /// `GET /v1/cluster`
    Cluster,
    /// `GET /v1/nodes`
    Nodes,
    /// `GET /v1/nodes/{pnn}`
    Node(u32),
    /// `GET /v1/ips`
    Addresses,
    /// `GET /v1/ips/{address}`
    Address(IpAddr),
    /// `GET /v1/interfaces`
    Interfaces,
    /// `GET /v1/tunables`
    Tunables,
    /// `GET /v1/log/level`
    LogLevel,
    /// `GET /v1/config`
    Config,
    /// `GET /v1/openapi.json`
    OpenApi,
}

impl Read {
    /// The path that asks for it.
    pub fn path(&self) -> String {
        match self {
            Self::Status => "/v1/status".into(),
            Self::Daemon => "/v1/daemon".into(),
            Self::Cluster => "/v1/cluster".into(),
            Self::Nodes => "/v1/nodes".into(),
            Self::Node(pnn) => format!("/v1/nodes/{pnn}"),
            Self::Addresses => "/v1/ips".into(),
            Self::Address(address) => format!("/v1/ips/{address}"),
            Self::Interfaces => "/v1/interfaces".into(),
            Self::Tunables => "/v1/tunables".into(),
            Self::LogLevel => "/v1/log/level".into(),
            Self::Config => "/v1/config".into(),
            Self::OpenApi => "/v1/openapi.json".into(),
        }
    }
}

/// What a request asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Wanted {
    /// A part of the snapshot.
    Read(Read),
    /// Something that the main loop does or computes.
    Action(Action),
    /// Something about databases, which needs no main loop.
    Database(DatabaseAsk),
}

/// A request that has been understood.
#[derive(Clone, PartialEq, Debug)]
pub struct Parsed {
    /// What is asked for.
    pub wanted: Wanted,
    /// The node that is to answer: `?node=N`, or the node of `POST /v1/nodes/{pnn}/{verb}`.
    pub node: Option<Pnn>,
}

/// An [`Action`] as an HTTP request, for `Operation::Api` to another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpCall {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path; never with a query, since the receiver answers about itself.
    pub path: String,
    /// JSON, or empty.
    pub body: String,
}

/// One line of the table.
#[derive(Clone, Copy)]
pub struct Route {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// With `{name}` for a variable segment.
    pub path: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Schema of the body, by its name in the OpenAPI document.
    pub body: Option<&'static str>,
    /// Schema of the answer.
    pub answer: &'static str,
    /// Whether `?node=N` is taken.
    pub takes_node: bool,
    make: fn(&Input) -> Result<Parsed, ApiError>,
}

/// Variable segments and body of a request.
struct Input<'a> {
    /// Decoded variable segments, in their order.
    segments: Vec<String>,
    body: &'a [u8],
}

fn bad_request(message: impl Into<String>) -> ApiError {
    ApiError::new(400, "bad_request", message)
}

impl Input<'_> {
    fn segment(&self, index: usize) -> &str {
        self.segments.get(index).map_or("", String::as_str)
    }

    fn pnn(&self) -> Result<u32, ApiError> {
        self.segment(0)
            .parse()
            .map_err(|_| bad_request(format!("'{}' is not a node number", self.segment(0))))
    }

    fn address(&self) -> Result<IpAddr, ApiError> {
        self.segment(0)
            .parse()
            .map_err(|_| bad_request(format!("'{}' is not an IP address", self.segment(0))))
    }

    /// The body; an empty one stands for `{}`.
    fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let body = if self.body.trim_ascii().is_empty() {
            b"{}"
        } else {
            self.body
        };
        serde_json::from_slice(body)
            .map_err(|error| bad_request(format!("the body is not what this path takes: {error}")))
    }

    fn no_body(&self) -> Result<(), ApiError> {
        self.json::<Nothing>().map(|Nothing {}| ())
    }
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "the table's functions share one type"
)]
fn read(read: Read) -> Result<Parsed, ApiError> {
    Ok(Parsed {
        wanted: Wanted::Read(read),
        node: None,
    })
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "the table's functions share one type"
)]
fn act(action: Action) -> Result<Parsed, ApiError> {
    Ok(Parsed {
        wanted: Wanted::Action(action),
        node: None,
    })
}

fn node_verb(input: &Input) -> Result<Parsed, ApiError> {
    let number = input.pnn()?;
    let node = Pnn::new(number).map_err(|_| no_such_node(number))?;
    let word = input.segment(1);
    let verb = NodeVerb::ALL
        .into_iter()
        .find(|verb| verb.name() == word)
        .ok_or_else(|| {
            let verbs = NodeVerb::ALL.map(NodeVerb::name).join(", ");
            ApiError::new(
                404,
                "not_found",
                format!("there is no '{word}'; a node takes {verbs}"),
            )
        })?;
    let body: NodeBody = input.json()?;
    match (verb, body.seconds) {
        (NodeVerb::Ban, None) => {
            return Err(bad_request("a ban needs its length: {\"seconds\": 300}"));
        }
        (NodeVerb::Ban, Some(0)) => return Err(bad_request("Ban time cannot be zero")),
        (NodeVerb::Ban, Some(_)) | (_, None) => {}
        (_, Some(_)) => return Err(bad_request("'seconds' is for 'ban' only")),
    }
    let action = Action::Node {
        verb,
        seconds: body.seconds,
        reason: body.reason,
    };
    Ok(Parsed {
        wanted: Wanted::Action(action),
        node: Some(node),
    })
}

fn capabilities(input: &Input) -> Result<Parsed, ApiError> {
    let CapabilitiesBody { leader, lmaster } = input.json()?;
    if leader.is_none() && lmaster.is_none() {
        return Err(bad_request("name 'leader' or 'lmaster'"));
    }
    act(Action::Capabilities { leader, lmaster })
}

fn log_level(input: &Input) -> Result<Parsed, ApiError> {
    let LevelBody { level } = input.json()?;
    let known = LogLevel::parse(&level).ok_or_else(|| {
        bad_request(format!(
            "'{level}' is not a log level; one of ERROR, WARNING, NOTICE, INFO, DEBUG"
        ))
    })?;
    act(Action::LogLevel {
        level: known.name().to_owned(),
    })
}

/// A read, in the table.
const fn get(
    path: &'static str,
    answer: &'static str,
    summary: &'static str,
    make: fn(&Input) -> Result<Parsed, ApiError>,
) -> Route {
    Route {
        method: "GET",
        path,
        summary,
        body: None,
        answer,
        takes_node: true,
        make,
    }
}

/// A change, in the table.
const fn post(
    path: &'static str,
    body: Option<&'static str>,
    summary: &'static str,
    make: fn(&Input) -> Result<Parsed, ApiError>,
) -> Route {
    Route {
        method: "POST",
        path,
        summary,
        body,
        answer: "Done",
        takes_node: true,
        make,
    }
}

/// Answered by one place whoever is asked, so that `?node=N` would say nothing.
const fn anywhere(route: Route) -> Route {
    Route {
        takes_node: false,
        ..route
    }
}

/// Every request that the API knows.
pub fn routes() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().chain(databases::ROUTES)
}

/// Those that the main loop or a snapshot answers.
const ROUTES: &[Route] = &[
    get(
        "/v1/status",
        "Snapshot",
        "The whole state as one node sees it",
        |_| read(Read::Status),
    ),
    get("/v1/daemon", "Daemon", "The answering daemon alone", |_| {
        read(Read::Daemon)
    }),
    get(
        "/v1/ping",
        "Daemon",
        "As /v1/daemon, by way of the daemon's main loop",
        |_| {
            act(Action::Read {
                path: Read::Daemon.path(),
            })
        },
    ),
    get("/v1/cluster", "Cluster", "The cluster in short", |_| {
        read(Read::Cluster)
    }),
    anywhere(get(
        "/v1/cluster/leader",
        "Leader",
        "The leader and its books",
        |_| act(Action::Leader),
    )),
    get(
        "/v1/cluster/history",
        "History",
        "Failovers, elections, bans: why and how long",
        |_| act(Action::History),
    ),
    get(
        "/v1/cluster/lock",
        "Lock",
        "The cluster lock as this node sees it",
        |_| act(Action::Lock),
    ),
    get(
        "/v1/processes",
        "Processes",
        "Child processes of the daemon: those that run, and the last that ended",
        |_| act(Action::Processes),
    ),
    get(
        "/v1/processes/{id}",
        "Process",
        "One child process, with the head of its output once it has ended",
        |input| {
            let id = input.segment(0).parse().map_err(|_| {
                bad_request(format!(
                    "'{}' is not a number of the list",
                    input.segment(0)
                ))
            })?;
            act(Action::Process { id })
        },
    ),
    get("/v1/events", "Events", "The last run of each event", |_| {
        act(Action::Events { history: false })
    }),
    get(
        "/v1/events/history",
        "Events",
        "The last runs of all events, the oldest first",
        |_| act(Action::Events { history: true }),
    ),
    get(
        "/v1/events/status/{component}/{event}",
        "Event",
        "The last run of one event, with what its scripts printed",
        |input| {
            act(Action::EventStatus {
                component: input.segment(0).to_owned(),
                event: input.segment(1).to_owned(),
            })
        },
    ),
    post(
        "/v1/events/run/{component}/{event}",
        Some("EventRun"),
        "Run an event; answered when its scripts have ended",
        |input| {
            let body: EventBody = input.json()?;
            act(Action::EventRun {
                component: input.segment(0).to_owned(),
                event: input.segment(1).to_owned(),
                args: body.args.unwrap_or_default(),
                seconds: body.seconds,
                all: body.all.unwrap_or(false),
            })
        },
    ),
    get(
        "/v1/events/scripts/{component}",
        "Scripts",
        "Scripts of a component, shipped ones first",
        |input| {
            act(Action::EventScripts {
                component: input.segment(0).to_owned(),
            })
        },
    ),
    post(
        "/v1/events/scripts/{component}/{script}",
        Some("EventScript"),
        "Enable or disable a script, from the next event on",
        |input| {
            let body: ScriptBody = input.json()?;
            act(Action::EventScript {
                component: input.segment(0).to_owned(),
                script: input.segment(1).to_owned(),
                enable: body.enable,
            })
        },
    ),
    get(
        "/v1/nodes",
        "Nodes",
        "Every entry of the nodes list",
        |_| read(Read::Nodes),
    ),
    get(
        "/v1/nodes/source",
        "NodesSource",
        "The nodes list as its file or command gives it now",
        |_| act(Action::NodesSource),
    ),
    Route {
        answer: "Reload",
        ..post(
            "/v1/nodes/reload",
            Some("ReloadRequest"),
            "Takes on a changed nodes list, on all nodes; at most one node more or less",
            |input| {
                let ReloadBody { dry_run } = input.json()?;
                act(Action::ReloadNodes { dry_run })
            },
        )
    },
    post(
        "/v1/nodes/apply",
        Some("ApplyRequest"),
        "One node's part of a reload; for the daemons among themselves",
        |input| {
            let ApplyBody { nodes, part } = input.json()?;
            act(Action::ApplyNodes { nodes, part })
        },
    ),
    get(
        "/v1/nodes/{pnn}",
        "Node",
        "One entry of the nodes list",
        |input| read(Read::Node(input.pnn()?)),
    ),
    anywhere(post(
        "/v1/nodes/{pnn}/{verb}",
        Some("NodeRequest"),
        "disable, enable, stop, start, ban, unban or shutdown; answered when it has its effect",
        node_verb,
    )),
    get("/v1/ips", "Addresses", "Every public address", |_| {
        read(Read::Addresses)
    }),
    anywhere(get(
        "/v1/ips/plan",
        "Plan",
        "What a takeover run would do now",
        |_| act(Action::Plan),
    )),
    get(
        "/v1/ips/{address}",
        "Address",
        "One public address",
        |input| read(Read::Address(input.address()?)),
    ),
    anywhere(get(
        "/v1/ips/{address}/why",
        "Why",
        "Why an address is where it is, and who else could host it",
        |input| {
            act(Action::Why {
                address: input.address()?,
            })
        },
    )),
    anywhere(post(
        "/v1/ips/move",
        Some("MoveRequest"),
        "Moves a public address; answered when the new node serves it",
        |input| {
            let MoveBody { address, to } = input.json()?;
            act(Action::Move {
                address,
                to: to.get(),
            })
        },
    )),
    anywhere(post(
        "/v1/ips/reallocate",
        None,
        "A takeover run; answered when every order is carried out",
        |input| {
            input.no_body()?;
            act(Action::Reallocate)
        },
    )),
    post(
        "/v1/ips/reload",
        None,
        "Reads the public addresses file again",
        |input| {
            input.no_body()?;
            act(Action::ReloadAddresses)
        },
    ),
    post(
        "/v1/ips/add",
        Some("AddAddressRequest"),
        "One more public address of this node, until the file is read again",
        |input| {
            let AddBody {
                address,
                prefix,
                interfaces,
            } = input.json()?;
            act(Action::AddAddress {
                address,
                prefix,
                interfaces,
            })
        },
    ),
    post(
        "/v1/ips/remove",
        Some("RemoveAddressRequest"),
        "One public address of this node less, until the file is read again",
        |input| {
            let RemoveBody { address } = input.json()?;
            act(Action::RemoveAddress { address })
        },
    ),
    post(
        "/v1/ips/announce",
        Some("AnnounceRequest"),
        "Gratuitous ARP or neighbour advertisements for one held address, for all, or for one that \
         is no public address, on the interface that is named",
        |input| {
            let AnnounceBody { address, interface } = input.json()?;
            act(Action::Announce { address, interface })
        },
    ),
    get(
        "/v1/interfaces",
        "Interfaces",
        "Interfaces that public addresses name",
        |_| read(Read::Interfaces),
    ),
    post(
        "/v1/interfaces/{name}/link",
        Some("LinkRequest"),
        "Takes the interface's link for up or down",
        |input| {
            let LinkBody { up } = input.json()?;
            act(Action::InterfaceLink {
                name: input.segment(0).to_owned(),
                up,
            })
        },
    ),
    post(
        "/v1/capabilities",
        Some("CapabilitiesRequest"),
        "Roles at run time",
        capabilities,
    ),
    get(
        "/v1/tunables",
        "Tunables",
        "Tunables and their values",
        |_| read(Read::Tunables),
    ),
    get(
        "/v1/log/level",
        "LogLevel",
        "The daemon's log level",
        |_| read(Read::LogLevel),
    ),
    post(
        "/v1/log/level",
        Some("LogLevel"),
        "Sets the daemon's log level",
        log_level,
    ),
    get(
        "/v1/config",
        "Config",
        "The configuration that the daemon runs with",
        |_| read(Read::Config),
    ),
    anywhere(get(
        "/v1/openapi.json",
        "OpenApi",
        "This description",
        |_| read(Read::OpenApi),
    )),
    get(
        "/v1/connections",
        "Connections",
        "Connections to all public addresses, of all nodes",
        |_| connections::all(),
    ),
    get(
        "/v1/connections/clients",
        "Clients",
        "The same by client: the channels of a multichannel session together",
        |_| connections::clients(),
    ),
    get(
        "/v1/connections/udp",
        "UdpServices",
        "Services that answer on public addresses over UDP",
        |_| connections::udp(),
    ),
    get(
        "/v1/connections/stats",
        "ConnectionStats",
        "How connections are tracked, and counts",
        |_| connections::stats(),
    ),
    get(
        "/v1/connections/{server}",
        "Connections",
        "Connections to one address, or to one ADDRESS:PORT",
        connections::to,
    ),
    get(
        "/v1/connections/{server}/{client}",
        "ConnectionDetail",
        "Everything that the node knows of one connection, by both ends",
        connections::show,
    ),
    post(
        "/v1/connections/add",
        Some("ConnectionsBody"),
        "Register connections, so that their clients are told when the address moves",
        connections::add,
    ),
    post(
        "/v1/connections/del",
        Some("ConnectionsBody"),
        "Forget registered connections",
        connections::del,
    ),
    post(
        "/v1/connections/kill",
        Some("ConnectionsBody"),
        "Destroy this node's sockets: some connections, or all to an address",
        connections::kill,
    ),
    post(
        "/v1/connections/tickle",
        Some("ConnectionsBody"),
        "Send one tickle from each server to its client",
        connections::tickle,
    ),
];

/// The error for a node number that the nodes list does not have.
pub fn no_such_node(number: u32) -> ApiError {
    ApiError::new(
        404,
        "no_such_node",
        format!("there is no node {number}; `ctdb node list` shows the nodes"),
    )
}

/// Understands a request. `query` is what stands behind the `?`.
pub fn action_of(
    method: &str,
    path: &str,
    query: Option<&str>,
    body: &[u8],
) -> Result<Parsed, ApiError> {
    let mut allowed = Vec::new();
    for route in routes() {
        let Some(segments) = matches(route.path, path) else {
            continue;
        };
        // A fixed path (`/v1/ips/plan`) goes before a variable one (`/v1/ips/{address}`).
        let hidden = !segments.is_empty()
            && routes().any(|other| other.path == path && other.method == method);
        if hidden {
            continue;
        }
        if route.method != method {
            allowed.push(route.method);
            continue;
        }
        let node = node_of(query.unwrap_or(""))?;
        if node.is_some() && !route.takes_node {
            return Err(bad_request(format!(
                "{method} {} takes no ?node=",
                route.path
            )));
        }
        let mut parsed = (route.make)(&Input { segments, body })?;
        parsed.node = node.or(parsed.node);
        return Ok(parsed);
    }
    allowed.dedup();
    if allowed.is_empty() {
        let text = format!("there is no {path}; GET /v1/openapi.json lists what there is");
        return Err(ApiError::new(404, "not_found", text));
    }
    let text = format!("{path} takes {} only", allowed.join(", "));
    Err(ApiError::new(405, "method_not_allowed", text))
}

/// The methods that `path` takes, for the `Allow` header (RFC 9110, 15.5.6).
pub fn methods_of(path: &str) -> Vec<&'static str> {
    let fitting = routes().filter(|route| matches(route.path, path).is_some());
    let mut methods: Vec<&str> = fitting.map(|route| route.method).collect();
    methods.sort_unstable();
    methods.dedup();
    methods
}

/// [`action_of`] for path and query in one, as `Operation::Api` carries them.
pub fn action_of_target(method: &str, target: &str, body: &[u8]) -> Result<Parsed, ApiError> {
    match target.split_once('?') {
        Some((path, query)) => action_of(method, path, Some(query), body),
        None => action_of(method, target, None, body),
    }
}

/// The variable segments of `path` if it fits `pattern`.
fn matches(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut variables = Vec::new();
    let mut given = path.split('/');
    for wanted in pattern.split('/') {
        let given = given.next()?;
        if wanted.starts_with('{') {
            variables.push(decode_segment(given).filter(|text| !text.is_empty())?);
        } else if wanted != given {
            return None;
        }
    }
    given.next().is_none().then_some(variables)
}

fn node_of(query: &str) -> Result<Option<Pnn>, ApiError> {
    let mut node = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some(("node", text)) = pair.split_once('=') else {
            return Err(bad_request(format!(
                "'{pair}' is unknown; ?node=N is all there is"
            )));
        };
        let number: u32 = text
            .parse()
            .map_err(|_| bad_request(format!("'{text}' is not a node number")))?;
        node = Some(Pnn::new(number).map_err(|_| no_such_node(number))?);
    }
    Ok(node)
}

#[cfg(test)]
mod tests;
