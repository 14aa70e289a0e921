use std::net::SocketAddr;

use ctdb_wire::api::connections::{ConnectionAction, Ends, MAX_GIVEN};

use super::*;

fn parse(method: &str, target: &str, body: &str) -> Result<Parsed, ApiError> {
    action_of_target(method, target, body.as_bytes())
}

fn code(result: Result<Parsed, ApiError>) -> (u16, String) {
    let error = result.unwrap_err();
    (error.status, error.code)
}

#[test]
fn every_action_survives_the_way_to_another_node() {
    let address: IpAddr = "fd00:77::1".parse().unwrap();
    let node = Pnn::new(3).unwrap();
    let mut actions = vec![
        Action::Move { address, to: 2 },
        Action::Reallocate,
        Action::DatabaseClients,
        Action::ReloadAddresses,
        Action::AddAddress {
            address,
            prefix: 64,
            interfaces: vec!["eth0".into(), "bond 1".into()],
        },
        Action::RemoveAddress { address },
        Action::Announce {
            address: Some(address),
            interface: Some("eth0".into()),
        },
        Action::Announce {
            address: None,
            interface: None,
        },
        Action::InterfaceLink {
            name: "eth0.5/x %".into(),
            up: false,
        },
        Action::LogLevel {
            level: "NOTICE".into(),
        },
        Action::Leader,
        Action::History,
        Action::Plan,
        Action::Why { address },
        Action::Capabilities {
            leader: Some(true),
            lmaster: None,
        },
    ];
    let ends = Ends {
        client: "[fd00:77::9]:50000".parse().unwrap(),
        server: SocketAddr::new(address, 445),
    };
    let connections = [
        ConnectionAction::List {
            address: None,
            port: None,
        },
        ConnectionAction::List {
            address: Some(address),
            port: Some(445),
        },
        ConnectionAction::List {
            address: Some("10.0.0.1".parse().unwrap()),
            port: None,
        },
        ConnectionAction::Clients,
        ConnectionAction::Show(ends),
        ConnectionAction::Udp,
        ConnectionAction::Stats,
        ConnectionAction::Add(vec![ends]),
        ConnectionAction::Del(vec![ends; 2]),
        ConnectionAction::Kill {
            connections: Vec::new(),
            address: Some(address),
        },
        ConnectionAction::Tickle(vec![ends]),
    ];
    actions.extend(connections.map(Action::Connections));
    for verb in NodeVerb::ALL {
        let seconds = (verb == NodeVerb::Ban).then_some(300);
        actions.push(Action::Node {
            verb,
            seconds,
            reason: Some("a \"b\"".into()),
        });
        actions.push(Action::Node {
            verb,
            seconds,
            reason: None,
        });
    }
    for action in actions {
        let call = http_of(&action, node);
        let parsed = action_of_target(call.method, &call.path, call.body.as_bytes()).unwrap();
        let about = matches!(action, Action::Node { .. }).then_some(node);
        assert_eq!(
            parsed,
            Parsed {
                wanted: Wanted::Action(action),
                node: about
            }
        );
    }
}

#[test]
fn every_read_survives_the_way_to_another_node() {
    let reads = [
        Read::Status,
        Read::Daemon,
        Read::Cluster,
        Read::Nodes,
        Read::Node(5),
        Read::Addresses,
        Read::Address("fd00::1".parse().unwrap()),
        Read::Address("10.0.0.1".parse().unwrap()),
        Read::Interfaces,
        Read::Tunables,
        Read::LogLevel,
        Read::Config,
        Read::OpenApi,
    ];
    let node = Pnn::new(3).unwrap();
    for read in reads {
        let call = http_of(&Action::Read { path: read.path() }, node);
        let parsed = action_of_target(call.method, &call.path, b"").unwrap();
        assert_eq!(
            parsed,
            Parsed {
                wanted: Wanted::Read(read),
                node: None
            }
        );
    }
    let ping = parse("GET", "/v1/ping?node=2", "").unwrap();
    assert_eq!(
        ping.wanted,
        Wanted::Action(Action::Read {
            path: "/v1/daemon".into()
        })
    );
    assert_eq!(ping.node.map(Pnn::get), Some(2));
}

#[test]
fn wrong_requests_say_what_is_wrong() {
    for (method, target, body, status, word) in [
        ("GET", "/", "", 404, "not_found"),
        ("GET", "/v1/status/", "", 404, "not_found"),
        ("GET", "/v1/ips//why", "", 404, "not_found"),
        ("GET", "/v1/ips/10.0.0/why", "", 400, "bad_request"),
        ("POST", "/v1/status", "", 405, "method_not_allowed"),
        ("DELETE", "/v1/nodes/1", "", 405, "method_not_allowed"),
        ("GET", "/v1/ips/move", "", 400, "bad_request"),
        ("GET", "/v1/nodes/1/ban", "", 405, "method_not_allowed"),
        ("GET", "/v1/status?node=64", "", 404, "no_such_node"),
        ("GET", "/v1/status?node=x", "", 400, "bad_request"),
        ("GET", "/v1/status?nod=1", "", 400, "bad_request"),
        ("GET", "/v1/ips/plan?node=1", "", 400, "bad_request"),
        ("POST", "/v1/nodes/64/stop", "", 404, "no_such_node"),
        ("POST", "/v1/nodes/1/dance", "", 404, "not_found"),
        ("POST", "/v1/nodes/1/ban", "", 400, "bad_request"),
        (
            "POST",
            "/v1/nodes/1/ban",
            r#"{"seconds":0}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/nodes/1/stop",
            r#"{"seconds":5}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/nodes/1/stop",
            r#"{"secs":5}"#,
            400,
            "bad_request",
        ),
        ("POST", "/v1/nodes/1/stop", "[", 400, "bad_request"),
        (
            "POST",
            "/v1/ips/move",
            r#"{"address":"10.0.0.1"}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/ips/move",
            r#"{"address":"10.0.0.1","to":64}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/ips/reallocate",
            r#"{"x":1}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/log/level",
            r#"{"level":"LOUD"}"#,
            400,
            "bad_request",
        ),
        ("POST", "/v1/capabilities", "", 400, "bad_request"),
        (
            "POST",
            "/v1/interfaces/%zz/link",
            r#"{"up":true}"#,
            404,
            "not_found",
        ),
    ] {
        let got = code(parse(method, target, body));
        assert_eq!(got, (status, word.to_owned()), "{method} {target} {body}");
    }
}

#[test]
fn methods_of_paths() {
    assert_eq!(methods_of("/v1/log/level"), ["GET", "POST"]);
    assert_eq!(methods_of("/v1/status"), ["GET"]);
    assert_eq!(methods_of("/v1/nodes/1/ban"), ["POST"]);
    assert!(methods_of("/v2").is_empty());
}

#[test]
fn fixed_paths_go_before_variable_ones() {
    let plan = parse("GET", "/v1/ips/plan", "").unwrap();
    assert_eq!(plan.wanted, Wanted::Action(Action::Plan));
    let level = parse("POST", "/v1/log/level", r#"{"level":"debug"}"#).unwrap();
    assert_eq!(
        level.wanted,
        Wanted::Action(Action::LogLevel {
            level: "DEBUG".into()
        })
    );
}

#[test]
fn connections_are_checked() {
    let many = |count: usize| {
        let one = r#"{"client":"10.0.0.9:1","server":"10.0.0.1:1"}"#;
        format!("{{\"connections\":[{}]}}", vec![one; count].join(","))
    };
    let add = "/v1/connections/add";
    assert!(parse("POST", add, &many(MAX_GIVEN)).is_ok());
    let refused = (400, "bad_request".to_owned());
    assert_eq!(code(parse("POST", add, &many(MAX_GIVEN + 1))), refused);
    let mixed = r#"{"connections":[{"client":"[fd00::9]:1","server":"10.0.0.1:1"}]}"#;
    assert_eq!(code(parse("POST", add, mixed)), refused);
    let address = r#"{"address":"10.0.0.1"}"#;
    assert_eq!(code(parse("POST", add, address)), refused);
    assert!(parse("POST", "/v1/connections/kill", address).is_ok());
    assert_eq!(code(parse("POST", "/v1/connections/kill", "{}")), refused);
    assert_eq!(code(parse("GET", "/v1/connections/nowhere", "")), refused);
}
