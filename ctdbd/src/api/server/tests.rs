use super::*;
use crate::api::sample;
use ctdb_wire::api::NodeVerb;
use serde_json::json;
use std::collections::BTreeMap;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A running API with a main loop that answers what it was asked.
struct Room {
    directory: TempDir,
    handle: Option<ApiHandle>,
    state: watch::Sender<Arc<Snapshot>>,
    _main: JoinHandle<()>,
}

const QUICK: Times = Times {
    request: Duration::from_millis(300),
    action: Duration::from_millis(600),
    write: Duration::from_millis(300),
    reclaim: Duration::from_millis(100),
};

impl Room {
    /// The fake main loop never answers `History`, and drops `Plan`.
    fn with(times: Times, state: Snapshot) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (state, snapshot) = watch::channel(Arc::new(state));
        let (commands, mut queue) = mpsc::channel::<Command>(64);
        let main = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(command) = queue.recv().await {
                let node = command.node.map(Pnn::get);
                match command.action {
                    Action::History => kept.push(command.reply),
                    Action::Plan => drop(command.reply),
                    Action::Why { .. } => {
                        let error = ApiError::new(503, "no_leader", "there is no leader");
                        let _ = command.reply.send(Err(error));
                    }
                    action => {
                        let _ = command
                            .reply
                            .send(Ok(json!({"action": action, "node": node})));
                    }
                }
            }
        });
        let config = ApiConfig {
            socket: directory.path().join("api.sock"),
            read_socket: directory.path().join("api-ro.sock"),
            group: None,
        };
        let handle = start_with(&config, &snapshot, &commands, times).unwrap();
        Self {
            directory,
            handle: Some(handle),
            state,
            _main: main,
        }
    }

    fn new() -> Self {
        Self::with(Times::default(), sample::snapshot())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn connect(&self, name: &str) -> UnixStream {
        UnixStream::connect(self.path(name)).await.unwrap()
    }

    async fn ask(&self, socket: &str, method: &str, target: &str, body: &str) -> (u16, Value) {
        let mut stream = self.connect(socket).await;
        let text = format!(
            "{method} {target} HTTP/1.1\r\nhost: ctdbd\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        answer_of(&mut stream).await.unwrap()
    }
}

/// Status and body; `None` if the connection ended without an answer.
async fn answer_of(stream: &mut UnixStream) -> Option<(u16, Value)> {
    let mut bytes = Vec::new();
    // A reset is an end like any other here.
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes))
        .await
        .unwrap();
    if bytes.is_empty() {
        return None;
    }
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

#[tokio::test]
async fn every_route_answers_on_the_socket_for_root() {
    let room = Room::new();
    let bodies: BTreeMap<&str, &str> = [
        ("NodeRequest", r#"{"seconds":60}"#),
        ("MoveRequest", r#"{"address":"10.77.1.1","to":0}"#),
        (
            "AddAddressRequest",
            r#"{"address":"10.77.1.1","prefix":24,"interfaces":["eth0"]}"#,
        ),
        ("RemoveAddressRequest", r#"{"address":"10.77.1.1"}"#),
        ("LinkRequest", r#"{"up":false}"#),
        ("ApplyRequest", r#"{"nodes":[]}"#),
        ("CapabilitiesRequest", r#"{"leader":false}"#),
        ("LogLevel", r#"{"level":"DEBUG"}"#),
        ("EventRun", r#"{"args":["x"],"seconds":5}"#),
        ("EventScript", r#"{"enable":true}"#),
        (
            "ConnectionsBody",
            r#"{"connections":[{"client":"10.77.1.9:50000","server":"10.77.1.1:445"}]}"#,
        ),
        ("AttachRequest", r#"{"name":"a.tdb","kind":"volatile"}"#),
        ("DatabaseSetRequest", r#"{"sticky":true}"#),
        ("KeyRequest", r#"{"key":"k"}"#),
        ("RecordRequest", r#"{"key":"k","data":"v"}"#),
        (
            "TransactionRequest",
            r#"{"changes":[{"key":"k","data":"v"}]}"#,
        ),
    ]
    .into();
    for route in crate::api::routes::routes() {
        if route.path.ends_with("/history") || route.path.ends_with("/plan") {
            continue;
        }
        let path = route
            .path
            .replace("{pnn}", "1")
            .replace("{verb}", "ban")
            .replace("{address}", "10.77.1.1")
            .replace("{name}", "lo")
            .replace("{id}", "1")
            .replace("{component}", "legacy")
            .replace("{event}", "monitor")
            .replace("{script}", "50.samba")
            .replace("{db}", "a.tdb")
            .replace("{server}", "10.77.1.1:445")
            .replace("{client}", "10.77.1.9:50000");
        let body = route
            .body
            .and_then(|name| bodies.get(name))
            .copied()
            .unwrap_or("");
        let (status, value) = room.ask("api.sock", route.method, &path, body).await;
        // Nobody listens on the client socket here.
        let database = path.starts_with("/v1/databases") && path != "/v1/databases/clients"
            || path == "/v1/cluster/recover";
        let wanted = if path.ends_with("/why") || database {
            503
        } else {
            200
        };
        assert_eq!(status, wanted, "{} {path}: {value}", route.method);
        let (status, value) = room.ask("api-ro.sock", route.method, &path, body).await;
        if route.method == "GET" {
            assert_eq!(status, wanted, "{path}: {value}");
        } else {
            assert_eq!(
                (status, &value["code"]),
                (405, &json!("read_only")),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn requests_reach_the_right_place() {
    let room = Room::new();
    let get = |target: &'static str| room.ask("api-ro.sock", "GET", target, "");
    // Of this node: from the snapshot, also when it is named.
    for target in ["/v1/ips", "/v1/ips?node=0"] {
        let (_, value) = get(target).await;
        assert_eq!(value["addresses"][0]["address"], "10.77.1.1");
    }
    // Of another one: by the main loop.
    let (_, value) = get("/v1/ips?node=1").await;
    assert_eq!(
        value,
        json!({"action": {"action": "read", "path": "/v1/ips"}, "node": 1})
    );
    let (_, value) = get("/v1/ping").await;
    assert_eq!(value["action"]["path"], "/v1/daemon");
    assert_eq!(value["node"], Value::Null);
    let (_, daemon) = get("/v1/daemon").await;
    assert!(
        (daemon["now"].as_f64().unwrap() - room.state.borrow().now).abs() > 1.0,
        "the moment itself"
    );
    for (pnn, node) in [(0, Value::Null), (1, json!(1))] {
        let path = format!("/v1/nodes/{pnn}/stop");
        let (_, value) = room.ask("api.sock", "POST", &path, "").await;
        assert_eq!(value["node"], node);
        assert_eq!(
            value["action"]["verb"],
            serde_json::to_value(NodeVerb::Stop).unwrap()
        );
    }
    // Errors of the main loop come through.
    let (status, value) = get("/v1/ips/10.0.0.1/why").await;
    assert_eq!((status, &value["code"]), (503, &json!("no_leader")));
    let (status, value) = get("/v1/ips/plan").await;
    assert_eq!((status, &value["code"]), (503, &json!("stopping")));
    // A new snapshot is seen at once.
    room.state
        .send_modify(|state| Arc::make_mut(state).log_level = "DEBUG".into());
    assert_eq!(get("/v1/log/level").await.1["level"], "DEBUG");
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let room = Room::new();
    for (socket, head, allow) in [
        ("api.sock", "POST /v1/status", "allow: GET\r\n"),
        ("api.sock", "DELETE /v1/log/level", "allow: GET, POST\r\n"),
        ("api-ro.sock", "POST /v1/log/level", "allow: GET\r\n"),
    ] {
        let mut stream = room.connect(socket).await;
        let text = format!("{head} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains(allow),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn modes_and_stale_sockets() {
    let mut room = Room::new();
    let mode = |name: &str| fs::metadata(room.path(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("api.sock"), mode("api-ro.sock")), (0o600, 0o660));
    let config = ApiConfig {
        socket: room.path("api.sock"),
        read_socket: room.path("other.sock"),
        group: None,
    };
    let again = |config: &ApiConfig| {
        let (_, snapshot) = watch::channel(Arc::new(Snapshot::default()));
        let (commands, _) = mpsc::channel(1);
        start_with(config, &snapshot, &commands, QUICK)
    };
    assert!(matches!(again(&config), Err(ApiStartError::InUse { .. })));
    assert!(
        room.path("api.sock").exists(),
        "the other daemon's socket stays"
    );

    room.handle.take().unwrap().shutdown(Duration::ZERO).await;
    assert!(!room.path("api.sock").exists() && !room.path("api-ro.sock").exists());

    // A daemon that was killed leaves its sockets behind.
    drop(std::os::unix::net::UnixListener::bind(room.path("api.sock")).unwrap());
    assert!(room.path("api.sock").exists());
    let handle = again(&config).unwrap();
    handle.shutdown(Duration::ZERO).await;

    fs::write(room.path("api.sock"), "precious").unwrap();
    assert!(matches!(
        again(&config),
        Err(ApiStartError::NotASocket { .. })
    ));
    assert_eq!(fs::read(room.path("api.sock")).unwrap(), b"precious");
    fs::remove_file(room.path("api.sock")).unwrap();

    let group = ApiConfig {
        group: Some("no such group".into()),
        ..config
    };
    assert!(matches!(again(&group), Err(ApiStartError::NoGroup { .. })));
    assert!(!room.path("other.sock").exists() && !room.path("api.sock").exists());
}

#[tokio::test]
async fn sizes_are_bounded() {
    let room = Room::new();
    let long = " ".repeat(MAX_BODY + 1);
    let (status, value) = room
        .ask("api.sock", "POST", "/v1/ips/reallocate", &long)
        .await;
    assert_eq!((status, &value["code"]), (413, &json!("too_large")));
    // Without a length.
    let mut stream = room.connect("api.sock").await;
    let head = "POST /v1/ips/reallocate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000)).repeat(5);
    let _ = stream.write_all(chunk.as_bytes()).await;
    assert_eq!(answer_of(&mut stream).await.unwrap().0, 413);
    // A head without end.
    let mut stream = room.connect("api.sock").await;
    let line = format!("GET /v1/status HTTP/1.1\r\nx: {}", "y".repeat(2 * MAX_HEAD));
    let _ = stream.write_all(line.as_bytes()).await;
    assert_eq!(
        answer_of(&mut stream).await.map(|(status, _)| status),
        Some(431)
    );
    // And what is no HTTP.
    let mut stream = room.connect("api.sock").await;
    stream.write_all(b"\0\0\0\0\r\n\r\n").await.unwrap();
    assert!(
        answer_of(&mut stream)
            .await
            .is_none_or(|(status, _)| status == 400)
    );
    assert_eq!(room.ask("api.sock", "GET", "/v1/status", "").await.0, 200);
}

#[tokio::test]
async fn slow_clients_are_closed() {
    let room = Room::with(QUICK, sample::snapshot());
    for part in [
        "",
        "GET /v1/sta",
        "POST /v1/ips/move HTTP/1.1\r\ncontent-length: 9\r\n\r\n{",
    ] {
        let mut stream = room.connect("api-ro.sock").await;
        stream.write_all(part.as_bytes()).await.unwrap();
        let begun = Instant::now();
        let answer = answer_of(&mut stream).await.map(|(status, _)| status);
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{part}: {:?}",
            begun.elapsed()
        );
        assert!(
            answer.is_none_or(|status| status >= 400),
            "{part}: {answer:?}"
        );
    }
    // Drop by drop does not help.
    let mut stream = room.connect("api.sock").await;
    let begun = Instant::now();
    let text =
        "GET /v1/status HTTP/1.1\r\nhost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    for byte in text.bytes() {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let _ = answer_of(&mut stream).await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    // A main loop that does not answer.
    let (status, value) = room.ask("api.sock", "GET", "/v1/cluster/history", "").await;
    assert_eq!((status, &value["code"]), (504, &json!("timed_out")));
}

/// An answer that no socket buffer holds.
fn large() -> Snapshot {
    let mut state = sample::snapshot();
    let one = state.addresses[0].clone();
    state.addresses = vec![one; 8192];
    state
}

#[tokio::test]
async fn clients_that_never_read_are_closed_and_others_served() {
    // Nothing but the time of a write is short: a busy machine is slow to make such an answer.
    let times = Times {
        write: QUICK.write,
        ..Times::default()
    };
    let room = Room::with(times, large());
    let mut silent = Vec::new();
    for _ in 0..8 {
        let mut stream = room.connect("api-ro.sock").await;
        stream
            .write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        silent.push(stream);
    }
    let (status, value) = room.ask("api-ro.sock", "GET", "/v1/daemon", "").await;
    assert_eq!((status, &value["node"]), (200, &json!(0)));
    sleep(Duration::from_secs(3)).await;
    for stream in &mut silent {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        assert!(
            bytes.len() < 4 << 20,
            "{} bytes: it was cut off",
            bytes.len()
        );
    }
    // One that reads gets everything.
    let room = Room::with(Times::default(), large());
    let (status, value) = room.ask("api-ro.sock", "GET", "/v1/ips", "").await;
    assert_eq!(
        (status, value["addresses"].as_array().unwrap().len()),
        (200, 8192)
    );
}

#[tokio::test]
async fn many_clients_do_not_lock_out_others() {
    // The usual time for a request, so that only the reclaiming of places helps.
    let times = Times {
        reclaim: Duration::from_millis(100),
        ..Times::default()
    };
    let room = Room::with(times, sample::snapshot());
    let mut idle = Vec::new();
    for _ in 0..3 * MAX_CONNECTIONS {
        idle.push(room.connect("api-ro.sock").await);
    }
    let begun = Instant::now();
    for socket in ["api-ro.sock", "api.sock"] {
        assert_eq!(
            room.ask(socket, "GET", "/v1/status", "").await.0,
            200,
            "{socket}"
        );
    }
    assert!(begun.elapsed() < REQUEST_TIME, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn requests_that_wait_are_bounded_and_keep_their_place() {
    let times = Times {
        reclaim: Duration::from_millis(50),
        ..Times::default()
    };
    let room = Room::with(times, sample::snapshot());
    let mut waiting = Vec::new();
    for _ in 0..MAX_WAITING {
        let mut stream = room.connect("api.sock").await;
        stream
            .write_all(b"GET /v1/cluster/history HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        waiting.push(stream);
    }
    sleep(Duration::from_millis(200)).await;
    let (status, value) = room.ask("api.sock", "GET", "/v1/cluster/history", "").await;
    assert_eq!((status, &value["code"]), (503, &json!("busy")));
    // Idle ones push each other out, never those that wait.
    let mut idle = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        idle.push(room.connect("api.sock").await);
    }
    assert_eq!(room.ask("api.sock", "GET", "/v1/status", "").await.0, 200);
    for stream in &mut waiting {
        let mut byte = [0];
        let read = timeout(Duration::from_millis(1), stream.read(&mut byte)).await;
        assert!(read.is_err(), "still waits");
    }
    // Who leaves makes room.
    drop(waiting);
    sleep(Duration::from_millis(200)).await;
    let (status, _) = room.ask("api.sock", "POST", "/v1/ips/reallocate", "").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_shutdown_lets_the_answer_out() {
    let mut room = Room::with(QUICK, sample::snapshot());
    let mut stream = room.connect("api.sock").await;
    stream
        .write_all(b"GET /v1/cluster/history HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    sleep(Duration::from_millis(100)).await;
    room.handle
        .take()
        .unwrap()
        .shutdown(Duration::from_secs(5))
        .await;
    assert_eq!(
        answer_of(&mut stream).await.map(|(status, _)| status),
        Some(504)
    );
    assert!(UnixStream::connect(room.path("api.sock")).await.is_err());
}
