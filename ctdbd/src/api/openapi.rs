//! The OpenAPI 3.1 document: paths from the routing table, schemas by hand, checked by tests.

use serde_json::{Map, Value, json};

use super::routes::routes;

/// The schemas of `components`, kept by hand.
const SCHEMAS: &str = include_str!("schemas.json");

/// The whole document.
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in routes() {
        let mut parameters = variables(route.path);
        if route.takes_node {
            parameters.push(json!({
                "name": "node",
                "in": "query",
                "required": false,
                "description": "The node that is to answer; the one that is asked if absent.",
                "schema": {"type": "integer", "minimum": 0, "maximum": 63},
            }));
        }
        let mut operation = json!({
            "summary": route.summary,
            "parameters": parameters,
            "responses": {
                "200": {
                    "description": "Done.",
                    "content": {"application/json": {"schema": reference(route.answer)}},
                },
                "default": {
                    "description": "Why not, and what to do.",
                    "content": {"application/json": {"schema": reference("Error")}},
                },
            },
        });
        if let Some(body) = route.body {
            operation["requestBody"] = json!({
                "content": {"application/json": {"schema": reference(body)}},
            });
        }
        let method = route.method.to_ascii_lowercase();
        let operations = paths.entry(route.path).or_insert_with(|| json!({}));
        operations[method] = operation;
    }
    paths.insert(
        "/metrics".to_owned(),
        json!({"get": {
            "summary": "Figures for Prometheus",
            "responses": {"200": {
                "description": "The text format, version 0.0.4.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            }},
        }}),
    );
    // The file is a part of the program and parsed by a test.
    let schemas: Value = serde_json::from_str(SCHEMAS).unwrap_or_default();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ctdbd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "HTTP/1.1 over Unix sockets: api.sock takes every request, \
                api-ro.sock only GET. One request per connection. Times are seconds since 1970 \
                unless a name says _ms.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A parameter for each variable segment of `path`.
fn variables(path: &str) -> Vec<Value> {
    path.split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            let kind = if name == "pnn" { "integer" } else { "string" };
            json!({"name": name, "in": "path", "required": true, "schema": {"type": kind}})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Read, sample};
    use ctdb_wire::api::*;

    fn schemas() -> Value {
        serde_json::from_str(SCHEMAS).unwrap()
    }

    /// Every property of `schema` stands in `value`, and the reverse, all the way down.
    fn check(schemas: &Value, schema: &Value, value: &Value, at: &str) {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap();
            assert!(schemas[name].is_object(), "{at}: no schema {name}");
            return check(schemas, &schemas[name], value, name);
        }
        let kinds = match &schema["type"] {
            Value::String(kind) => vec![kind.as_str()],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => panic!("{at}: no type"),
        };
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        assert!(
            kinds.contains(&kind),
            "{at}: {kind} is not one of {kinds:?}"
        );
        match value {
            Value::Array(items) => {
                if let Some(places) = schema["prefixItems"].as_array() {
                    assert_eq!(places.len(), items.len(), "{at}");
                    for (place, item) in places.iter().zip(items) {
                        check(schemas, place, item, at);
                    }
                } else {
                    for item in items {
                        check(schemas, &schema["items"], item, at);
                    }
                }
            }
            Value::Object(fields) => {
                if schema["additionalProperties"].is_object() {
                    for field in fields.values() {
                        check(schemas, &schema["additionalProperties"], field, at);
                    }
                    return;
                }
                let properties = schema["properties"].as_object().unwrap();
                for (name, field) in fields {
                    let property = properties
                        .get(name)
                        .unwrap_or_else(|| panic!("{at}: '{name}' is not described"));
                    check(schemas, property, field, &format!("{at}.{name}"));
                }
                for name in properties.keys() {
                    assert!(fields.contains_key(name), "{at}: there is no '{name}'");
                }
            }
            _ => {}
        }
    }

    mod connections {
        use ctdb_wire::api::connections::*;
        use serde_json::{Value, json};

        fn ends() -> Ends {
            Ends {
                client: "10.0.0.9:50000".parse().unwrap(),
                server: "10.0.0.1:445".parse().unwrap(),
            }
        }

        fn connection() -> ConnectionView {
            ConnectionView {
                client: ends().client,
                server: ends().server,
                node: Some(1),
                since: 7,
                sources: vec!["kernel".to_owned()],
                waiting: false,
            }
        }

        pub(super) fn connections() -> Value {
            json!(ConnectionsView {
                connections: vec![connection()],
                ..ConnectionsView::default()
            })
        }

        pub(super) fn clients() -> Value {
            json!(ClientsView {
                clients: vec![ClientView {
                    client: ends().client.ip(),
                    count: 1,
                    connections: vec![connection()],
                }],
                ..ClientsView::default()
            })
        }

        pub(super) fn detail() -> Value {
            json!(ConnectionDetail {
                connection: connection(),
                state: None,
                pid: Some(1),
                command: None,
                cgroup: None,
                bytes_received: Some(1),
                bytes_acked: None,
            })
        }

        pub(super) fn udp() -> Value {
            json!(UdpServicesView {
                node: 0,
                services: vec![UdpView {
                    local: ends().server,
                    service: None,
                    pid: None,
                    command: None,
                }],
            })
        }

        pub(super) fn body() -> Value {
            json!(ConnectionsBody {
                connections: vec![ends()],
                address: Some(ends().server.ip()),
            })
        }
    }

    fn databases() -> Vec<(&'static str, Value)> {
        use ctdb_wire::api::databases::*;
        let record = || RecordView {
            key: "k".to_owned(),
            ..RecordView::default()
        };
        vec![
            (
                "Databases",
                json!(DatabasesView {
                    node: 0,
                    databases: vec![DatabaseView::default()],
                }),
            ),
            (
                "Database",
                json!(DatabaseView {
                    sequence_number: Some(7),
                    ..DatabaseView::default()
                }),
            ),
            (
                "DatabaseStats",
                json!(DatabaseStatsView {
                    hop_count_buckets: vec![0; 16],
                    hot_keys: vec![HotKeyView::default()],
                    ..DatabaseStatsView::default()
                }),
            ),
            (
                "DatabaseClients",
                json!(DatabaseClientsView {
                    node: 0,
                    clients: vec![DatabaseClientView::default()],
                }),
            ),
            ("Record", json!(record())),
            (
                "Records",
                json!(RecordsView {
                    records: vec![record()],
                }),
            ),
            (
                "AttachRequest",
                json!(AttachBody {
                    name: "a.tdb".to_owned(),
                    kind: "volatile".to_owned(),
                }),
            ),
            ("DatabaseSetRequest", json!(SetBody::default())),
            ("KeyRequest", json!(KeyBody { key: String::new() })),
            (
                "TransactionRequest",
                json!(TransactionBody {
                    changes: vec![RecordBody {
                        key: String::new(),
                        data: String::new(),
                    }],
                }),
            ),
        ]
    }

    #[test]
    fn schemas_describe_what_is_sent() {
        let schemas = schemas();
        let snapshot = sample::snapshot();
        let plan = PlanView {
            moves: vec![PlannedMove {
                address: "10.0.0.1".parse().unwrap(),
                from: Some(1),
                to: None,
                reason: String::new(),
            }],
            unhosted: vec!["10.0.0.2".parse().unwrap()],
            ..PlanView::default()
        };
        let why = WhyView {
            address: "10.0.0.1".parse().unwrap(),
            owner: Some(1),
            wanted: None,
            may_hold: vec![1],
            nodes: [(1, "hosts it".to_owned())].into(),
            reason: String::new(),
        };
        let leader = LeaderView {
            books: vec![BookView::default()],
            ..LeaderView::default()
        };
        let history = HistoryView {
            records: vec![HistoryRecord {
                addresses: vec!["10.0.0.1".parse().unwrap()],
                phases: vec![("silence".into(), 1.5)],
                ..HistoryRecord::default()
            }],
        };
        let read = |read| crate::api::render(&snapshot, &read).unwrap();
        for (name, value) in [
            ("Snapshot", read(Read::Status)),
            ("Daemon", read(Read::Daemon)),
            ("Cluster", read(Read::Cluster)),
            ("Nodes", read(Read::Nodes)),
            ("Node", read(Read::Node(0))),
            ("Addresses", read(Read::Addresses)),
            ("Interfaces", read(Read::Interfaces)),
            ("Tunables", read(Read::Tunables)),
            ("LogLevel", read(Read::LogLevel)),
            ("Config", read(Read::Config)),
            ("Plan", serde_json::to_value(plan).unwrap()),
            ("Why", serde_json::to_value(why).unwrap()),
            ("Leader", serde_json::to_value(leader).unwrap()),
            ("History", serde_json::to_value(history).unwrap()),
            ("Lock", serde_json::to_value(LockView::default()).unwrap()),
            (
                "Processes",
                serde_json::to_value(ProcessesView {
                    processes: vec![ProcessView::default()],
                })
                .unwrap(),
            ),
            (
                "Events",
                serde_json::to_value(EventsView {
                    events: vec![EventRunView {
                        scripts: vec![EventScriptView::default()],
                        ..EventRunView::default()
                    }],
                })
                .unwrap(),
            ),
            (
                "Scripts",
                serde_json::to_value(ScriptsView {
                    scripts: vec![ScriptView::default()],
                })
                .unwrap(),
            ),
            ("Connections", connections::connections()),
            ("Clients", connections::clients()),
            ("ConnectionDetail", connections::detail()),
            ("UdpServices", connections::udp()),
            ("ConnectionsBody", connections::body()),
            ("Done", serde_json::to_value(Done::default()).unwrap()),
            (
                "Error",
                serde_json::to_value(ApiError::new(404, "x", "y")).unwrap(),
            ),
        ]
        .into_iter()
        .chain(databases())
        {
            check(&schemas, &schemas[name], &value, name);
        }
    }

    #[test]
    fn every_route_stands_in_the_document() {
        let document = document();
        let schemas = schemas();
        for route in routes() {
            let operation = &document["paths"][route.path][route.method.to_ascii_lowercase()];
            assert_eq!(operation["summary"], route.summary, "{}", route.path);
            assert!(
                schemas[route.answer].is_object(),
                "{}: {}",
                route.path,
                route.answer
            );
            if let Some(body) = route.body {
                assert!(schemas[body].is_object(), "{}: {body}", route.path);
            }
        }
        let ban = &document["paths"]["/v1/nodes/{pnn}/{verb}"]["post"]["parameters"];
        assert_eq!(ban.as_array().unwrap().len(), 2);
    }
}
