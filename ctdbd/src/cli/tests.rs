//! Whole command lines against a real API server with a fake main loop behind it.

use super::*;
use crate::api::{self, ApiConfig, Command, sample};
use ctdb_wire::api::{
    Action, ApiError, HistoryRecord, HistoryView, LeaderView, NodeVerb, PlanView, Snapshot, WhyView,
};
use ctdb_wire::ids::NodeFlags;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// Actions and the nodes that they were for.
type Asked = Vec<(Action, Option<u32>)>;

/// A daemon: the real API, and a main loop that writes down what it is asked.
struct Daemon {
    directory: tempfile::TempDir,
    surroundings: Surroundings,
    asked: Arc<Mutex<Asked>>,
    state: watch::Sender<Arc<Snapshot>>,
    _runtime: Runtime,
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "the arms of reply() share one type"
)]
fn view(value: impl serde::Serialize) -> Result<Value, ApiError> {
    Ok(serde_json::to_value(value).unwrap())
}

/// What the main loop answers.
fn reply(state: &Snapshot, command: &Command) -> Result<Value, ApiError> {
    let mut other = state.clone();
    other.node = 1;
    match &command.action {
        Action::Read { path } if command.node.is_some() => api::render_path(&other, path),
        Action::Read { path } => api::render_path(state, path),
        Action::Leader => view(LeaderView {
            leader: state.leader,
            term: state.term,
            ..LeaderView::default()
        }),
        Action::Plan => view(PlanView {
            unchanged: 3,
            ..PlanView::default()
        }),
        Action::History => view(HistoryView {
            records: (0..3)
                .map(|n| HistoryRecord {
                    text: format!("event {n}"),
                    ..HistoryRecord::default()
                })
                .collect(),
        }),
        Action::Why { address } => view(WhyView {
            address: *address,
            owner: Some(1),
            wanted: Some(1),
            may_hold: vec![1],
            nodes: [(1, "yes".to_owned())].into(),
            reason: "node 1 serves it".into(),
        }),
        // Some are refused, to have errors.
        Action::Node {
            verb: NodeVerb::Unban,
            ..
        } => Err(ApiError::new(
            409,
            "leaving",
            "the node is leaving; wait until it is back",
        )),
        Action::Node {
            verb: NodeVerb::Start,
            ..
        } if command.node.is_none() => Err(ApiError::new(
            504,
            "not_settled",
            "the cluster has not settled",
        )),
        Action::Announce { .. } => {
            Err(ApiError::new(409, "not_held", "this node does not host it"))
        }
        _ => view(Done {
            changed: true,
            message: "so it is".into(),
        }),
    }
}

impl Daemon {
    fn new() -> Self {
        Self::with(sample::snapshot())
    }

    fn with(state: Snapshot) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::under(directory.path());
        std::fs::create_dir_all(&paths.run).unwrap();
        std::fs::create_dir_all(&paths.etc).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (state, snapshot) = watch::channel(Arc::new(state));
        let (commands, mut queue) = mpsc::channel::<Command>(16);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, now) = (Arc::clone(&asked), state.subscribe());
        let config = ApiConfig {
            socket: paths.api_socket.clone(),
            read_socket: paths.api_read_socket.clone(),
            group: None,
        };
        runtime.spawn(async move {
            let mut handle = Some(api::start(&config, &snapshot, &commands).unwrap());
            while let Some(command) = queue.recv().await {
                let state = Arc::clone(&now.borrow());
                let answer = reply(&state, &command);
                let shutdown = matches!(
                    command.action,
                    Action::Node {
                        verb: NodeVerb::Shutdown,
                        ..
                    }
                ) && command.node.is_none();
                log.lock().unwrap().push((
                    command.action.clone(),
                    command.node.map(ctdb_wire::ids::Pnn::get),
                ));
                let _ = command.reply.send(answer);
                if shutdown && let Some(handle) = handle.take() {
                    handle.shutdown(Duration::from_secs(1)).await;
                }
            }
        });
        let daemon = Self {
            surroundings: Surroundings {
                paths,
                timeout: None,
            },
            directory,
            asked,
            state,
            _runtime: runtime,
        };
        let client = client(&daemon.surroundings.paths, 1, Duration::from_secs(5));
        // The second socket is made after the first.
        let second = daemon.surroundings.paths.api_read_socket.clone();
        while !client.reachable() || std::os::unix::net::UnixStream::connect(&second).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// Standard output, standard error, exit code.
    fn run(&self, line: &str) -> (String, String, u8) {
        run_in(&self.surroundings, line)
    }

    fn asked(&self) -> Asked {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn set(&self, change: impl FnOnce(&mut Snapshot)) {
        self.state.send_modify(|state| change(Arc::make_mut(state)));
    }
}

fn run_in(surroundings: &Surroundings, line: &str) -> (String, String, u8) {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(&args, surroundings, &mut out, &mut err);
    (
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
        code,
    )
}

#[test]
fn old_commands_print_and_exit_as_the_package_does() {
    let daemon = Daemon::new();
    daemon.set(|state| state.nodes[1].flags = NodeFlags::DISABLED);
    let usage = legacy::table::usage_of(legacy::table::find("ban").unwrap());
    // Expected texts were asked of the package 4.17.
    for (line, out, err, code) in [
        ("pnn", "0\n", "", 0),
        ("pnn x", "0\n", "", 0),
        ("leader", "0\n", "", 0),
        ("getpid", "7332\n", "", 0),
        ("getreclock", "/clusterfs/lock\n", "", 0),
        ("getdebug", "NOTICE\n", "", 0),
        ("runstate", "RUNNING\n", "", 0),
        ("runstate running", "RUNNING\n", "", 0),
        (
            "runstate startup",
            "CTDB not in required run state (got RUNNING)\n",
            "",
            1,
        ),
        ("runstate foo", "Invalid run state (foo)\n", "", 1),
        (
            "getvar monitorinterval",
            "monitorinterval            = 15\n",
            "",
            0,
        ),
        ("getvar foo", "No such tunable foo\n", "", 1),
        (
            "nodestatus",
            "pnn:0 127.0.0.1        OK (THIS NODE)\n",
            "",
            0,
        ),
        ("nodestatus 1", "pnn:1 127.0.0.2        DISABLED\n", "", 4),
        ("nodestatus 2", "", "", 0),
        ("nodestatus 7", "", "Node 7 does not exist\n", 1),
        ("nodestatus 0,foo", "", "Invalid node foo\n", 1),
        (
            "-n 1 nodestatus",
            "pnn:1 127.0.0.2        DISABLED (THIS NODE)\n",
            "",
            4,
        ),
        ("-n -1 pnn", "0\n", "", 0),
        ("-n 0 pnn", "0\n", "", 0),
        (
            "-n 1 pnn",
            "",
            "Node cannot be specified for command pnn\n",
            1,
        ),
        ("-n 7 status", "", "Node 7 does not exist\n", 1),
        (
            "-n 2 status",
            "",
            "Node 2 has status DISCONNECTED|DELETED|INACTIVE\n",
            1,
        ),
        (
            "-n 1 listnodes",
            "",
            "Cannot specify node for command listnodes\n",
            1,
        ),
        (
            "version -n 0",
            "",
            "Cannot specify node for command version\n",
            1,
        ),
        (
            "ip -X",
            "|Public IP|Node|\n|10.77.1.1|1|\n|10.77.1.2|0|\n|fd00:77::1|-1|\n",
            "",
            0,
        ),
        ("ipinfo foo", "", "Invalid IP address foo\n", 1),
        (
            "ipinfo 1.2.3.4",
            "Node 0 does not know about IP 1.2.3.4\n",
            "Control GET_PUBLIC_IP_INFO failed, ret=-1\n",
            1,
        ),
        (
            "ifaces -X",
            "|Name|LinkStatus|References|\n|lo|1|3|\n",
            "",
            0,
        ),
        (
            "setifacelink eth9 up",
            "Interface eth9 not configured on node 0\n",
            "",
            1,
        ),
        (
            "setifacelink abcdefghijklmnopqrst up",
            "",
            "Interface name 'abcdefghijklmnopqrst' too long\n",
            1,
        ),
        ("setifacelink lo up", "", "", 0),
        ("setdebug notice", "", "", 0),
        (
            "setdebug foo",
            "",
            "Invalid debug level 'foo'. Valid levels are:\n\
             \tERROR | WARNING | NOTICE | INFO | DEBUG\n",
            1,
        ),
        ("setleaderrole on", "", "", 0),
        ("ban", &*usage, "", 1),
        ("ban 0", "", "Ban time cannot be zero\n", 22),
        ("ban foo", "", "", 22),
        ("ban 60", "", "", 0),
        ("unban", "", "Node 0 is not banned\n", 0),
        ("enable", "", "Node 0 is not disabled\n", 0),
        ("continue", "", "Node 0 is not stopped\n", 0),
        ("-n 1 disable", "", "Node 1 is already disabled\n", 0),
        ("-n 1 enable", "", "", 0),
        ("stop", "", "", 0),
        ("ipreallocate", "", "", 0),
        ("sync", "", "", 0),
        ("reloadips", "", "", 0),
        ("reloadips all", "", "", 0),
        ("reloadips 7", "", "Node 7 does not exist\n", 1),
        ("moveip foo 1", "", "Invalid IP address foo\n", 1),
        ("moveip 10.77.1.1 foo", "", "Invalid PNN foo\n", 1),
        ("moveip 10.77.1.1 0", "", "", 0),
        (
            "moveip 1.2.3.4 1",
            "",
            "Node 1 CANNOT host IP address 1.2.3.4\nFailed to move IP 1.2.3.4 to node 1\n",
            1,
        ),
        (
            "moveip 10.77.1.1 7",
            "",
            "Control GET_PUBLIC_IPS failed, ret=-1\nFailed to get Public IPs from node 7\n\
             Failed to move IP 10.77.1.1 to node 7\n",
            1,
        ),
        ("gratarp foo lo", "", "Invalid IP address foo\n", 1),
        (
            "gratarp 10.77.1.1 lo -n 0",
            "",
            "Control SEND_GRATUITOUS_ARP failed, ret=-1\nthis node does not host it\n\
             Unable to send gratuitous arp from node 0\n",
            1,
        ),
        ("foo", "", "Unknown command 'foo'\n", 1),
        (
            "nosuchcommand x",
            "",
            "Unknown command 'nosuchcommand'\n",
            1,
        ),
        (
            "-j -X status",
            "",
            "--json and -Y options are mutually exclusive\n",
            1,
        ),
        (
            "-j ip",
            "",
            "--json not supported by the ip subcommand\n",
            1,
        ),
        (
            "-t abc pnn",
            "",
            "Invalid option abc: invalid numeric value\n",
            1,
        ),
    ] {
        assert_eq!(
            daemon.run(line),
            (out.into(), err.into(), code),
            "ctdb {line}"
        );
    }
    let (ping, _, code) = daemon.run("-n 1 ping");
    assert!(
        ping.starts_with("response from 1 time=0.0") && code == 0,
        "{ping}"
    );
    let (status, _, code) = daemon.run("-n 1 status");
    assert!(
        status.contains("DISABLED (THIS NODE)\n") && code == 0,
        "{status}"
    );
    let (json, _, code) = daemon.run("-j status");
    assert!(json.starts_with("{\n  \"node_status\"") && json.ends_with('}') && code == 0);
    let version = (format!("{RELEASE}\n"), String::new(), 0);
    assert_eq!(daemon.run("version extra"), version);
}

#[test]
fn old_commands_ask_for_the_right_things() {
    let daemon = Daemon::new();
    daemon.set(|state| state.nodes[1].flags = NodeFlags::empty());
    let node = |verb, seconds| Action::Node {
        verb,
        seconds,
        reason: None,
    };
    let level = || Action::LogLevel {
        level: "DEBUG".into(),
    };
    for (line, wanted) in [
        ("disable", vec![(node(NodeVerb::Disable, None), None)]),
        ("-n 1 stop", vec![(node(NodeVerb::Stop, None), Some(1))]),
        ("ban 60 -n1", vec![(node(NodeVerb::Ban, Some(60)), Some(1))]),
        (
            "-n 1 shutdown",
            vec![(node(NodeVerb::Shutdown, None), Some(1))],
        ),
        ("setdebug 10", vec![(level(), None)]),
        ("setdebug debug -n 1", vec![(level(), Some(1))]),
        (
            "setlmasterrole off",
            vec![(
                Action::Capabilities {
                    leader: None,
                    lmaster: Some(false),
                },
                None,
            )],
        ),
        (
            "setifacelink lo down",
            vec![(
                Action::InterfaceLink {
                    name: "lo".into(),
                    up: false,
                },
                None,
            )],
        ),
        (
            "moveip fd00:77::1 1",
            vec![(
                Action::Move {
                    address: "fd00:77::1".parse().unwrap(),
                    to: 1,
                },
                None,
            )],
        ),
        (
            "reloadips all",
            vec![
                (Action::ReloadAddresses, None),
                (Action::ReloadAddresses, Some(1)),
                (Action::Reallocate, None),
            ],
        ),
        ("pnn", vec![]),
        ("ip all", vec![]),
    ] {
        let (_, err, code) = daemon.run(line);
        assert_eq!((err.as_str(), code), ("", 0), "{line}");
        assert_eq!(daemon.asked(), wanted, "{line}");
    }
}

#[test]
fn an_effect_that_is_late_is_no_failure_yet() {
    let daemon = Daemon::new();
    daemon.set(|state| state.nodes[0].flags = NodeFlags::STOPPED);
    let err = "Control SET_FLAGS failed, ret=110\nthe cluster has not settled\n";
    assert_eq!(daemon.run("continue"), (String::new(), err.into(), 110));
    let err = "ctdb: the cluster has not settled\n";
    assert_eq!(daemon.run("node start"), (String::new(), err.into(), 4));
}

#[test]
fn old_and_new_form_are_told_apart() {
    for (line, new) in [
        ("", false),
        ("--help", true),
        ("-?", false),
        ("--version", true),
        ("ip", false),
        ("ip all", false),
        ("-X ip", false),
        ("ip list", true),
        ("-n 1 ip list", true),
        ("ip --help", true),
        ("status --json", false),
        ("status --help", true),
        ("node list", true),
        ("--json node", true),
        ("nodestatus", false),
        ("nonsense", false),
    ] {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        assert_eq!(is_new_form(&args), new, "ctdb {line}");
    }
}

#[test]
fn new_commands_print_text_and_json() {
    let daemon = Daemon::new();
    for (line, part) in [
        ("node list", "0 *   127.0.0.1"),
        ("node status", "Node            0\n"),
        ("node status 1", "Node            1\n"),
        ("cluster status", "Leader            node 0, term 7\n"),
        ("cluster leader", "Leader  0\n"),
        ("cluster history --last 1", ": event 2\n"),
        ("ip list", "10.77.1.1/24   1"),
        ("ip show 10.77.1.2", "This node  serves it\n"),
        ("ip plan", "Nothing would move.\n"),
        (
            "ip why --all 10.77.1.1",
            "Why              node 1 serves it\n",
        ),
        ("ip why 10.77.1.1", "10.77.1.1: node 1 serves it"),
        ("interface list", "lo         up    3\n"),
        ("log level", "NOTICE\n"),
        ("-n 1 log level", "NOTICE\n"),
        (
            "config dump --running",
            "\tcluster lock = /clusterfs/lock\n",
        ),
        ("ip move 10.77.1.1 1", "so it is\n"),
        ("ip reallocate", "so it is\n"),
        ("ip reload", "so it is\n"),
        ("interface link lo down", "so it is\n"),
        ("log level debug", "so it is\n"),
        ("node disable", "so it is\n"),
        ("node enable 1", "so it is\n"),
        ("node stop 1 --reason why", "so it is\n"),
        ("node start -n 1", "so it is\n"),
        ("node ban 1 --time 60", "so it is\n"),
    ] {
        let (out, err, code) = daemon.run(line);
        assert_eq!((err.as_str(), code), ("", 0), "ctdb {line}");
        assert!(out.contains(part), "ctdb {line}: {out}");
        assert!(
            !out.lines().any(|line| line.ends_with(' ')),
            "ctdb {line}: {out}"
        );
        let (out, err, code) = daemon.run(&format!("--json {line}"));
        assert_eq!((err.as_str(), code), ("", 0), "ctdb --json {line}");
        let value: Value = serde_json::from_str(&out).unwrap();
        assert!(value.is_object(), "ctdb --json {line}: {out}");
    }
    let history: Value =
        serde_json::from_str(&daemon.run("--json cluster history --last 2").0).unwrap();
    assert_eq!(history["records"].as_array().unwrap().len(), 2);
    daemon.asked();
    daemon.run("node ban 1 --time 60 --reason testing");
    let ban = Action::Node {
        verb: NodeVerb::Ban,
        seconds: Some(60),
        reason: Some("testing".into()),
    };
    assert_eq!(daemon.asked(), [(ban, Some(1))]);
}

#[test]
fn new_commands_fail_with_their_codes() {
    let daemon = Daemon::new();
    daemon.set(|state| state.leader = None);
    for (line, code, word) in [
        ("node status 9", 2, "no_such_node"),
        ("ip show 10.9.9.9", 2, "no_such_address"),
        ("cluster leader", 2, "no_leader"),
        ("node unban", 3, "leaving"),
        ("ip announce 10.77.1.1", 3, "not_held"),
        ("log level LOUD", 64, "usage"),
    ] {
        let (out, err, got) = daemon.run(line);
        assert_eq!((out.as_str(), got), ("", code), "ctdb {line}: {err}");
        assert!(err.starts_with("ctdb: ") && err.len() > 20, "{err}");
        let (out, _, got) = daemon.run(&format!("{line} --json"));
        let value: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (got, &value["error"]["code"]),
            (code, &json!(word)),
            "ctdb {line}: {out}"
        );
    }
    for line in [
        "node dance",
        "ip move 10.0.0.1",
        "ip show x",
        "node ban 1 --time 0",
        "ip",
    ] {
        let args = if line == "ip" {
            "ip --bogus list"
        } else {
            line
        };
        let (out, err, code) = daemon.run(args);
        assert_eq!((out.as_str(), code), ("", 64), "ctdb {args}: {err}");
        assert!(!err.is_empty());
    }
}

#[test]
fn help_teaches() {
    let daemon = Daemon::new();
    for (line, part) in [
        ("--help", "Exit codes:"),
        ("node disable --help", "ctdb node enable 2"),
        ("config keygen --help", "--distribute"),
        ("help ip move", "falls silent"),
        ("status --help", "Never waits"),
        ("--version", RELEASE),
    ] {
        let (out, _, code) = daemon.run(line);
        assert!(out.contains(part) && code == 0, "ctdb {line}: {out}");
    }
    let (out, _, code) = daemon.run("");
    assert!(
        out.contains("\n  ipinfo          <ip>") && code == 1,
        "{out}"
    );
    assert!(
        out.contains("\n  cluster         status | leader | lock | history | recover\n"),
        "{out}"
    );
    let (out, _, code) = daemon.run("disable --usage");
    assert!(out.contains("\n  disable ") && code == 0);
    let (out, _, code) = daemon.run("completions bash");
    assert!(out.contains("_ctdb") && code == 0);
}

#[test]
fn a_shutdown_is_waited_for() {
    let daemon = Daemon::new();
    let (out, err, code) = daemon.run("shutdown");
    assert_eq!((out.as_str(), err.as_str(), code), ("", "", 0));
    assert!(!daemon.surroundings.paths.api_socket.exists());
    let (_, err, code) = daemon.run("status");
    let paths = &daemon.surroundings.paths;
    let (socket, nodes) = (paths.socket.display(), paths.nodes.display());
    let text = format!(
        "connect() failed, errno=2\nFailed to connect to CTDB daemon ({socket})\n\
         Failed to read nodes file \"{nodes}\"\nIs this node part of CTDB cluster?\n"
    );
    assert_eq!((err, code), (text, 1));
    let (out, err, code) = daemon.run("--json node list");
    assert_eq!(code, 1);
    assert!(err.contains("systemctl start ctdb"), "{err}");
    assert!(out.contains("\"no_daemon\""), "{out}");
    assert!(daemon.directory.path().exists());
}

#[test]
fn who_may_only_read_reads() {
    let daemon = Daemon::new();
    // As root every mode lets us in; a socket in a place that does not exist does the same.
    let paths = &daemon.surroundings.paths;
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&paths.api_socket), mode(&paths.api_read_socket)),
        (0o600, 0o660)
    );
    let mut only_reads = Surroundings {
        paths: paths.clone(),
        timeout: None,
    };
    only_reads.paths.api_socket = paths.api_read_socket.clone();
    assert_eq!(run_in(&only_reads, "pnn").0, "0\n");
    let (_, err, code) = run_in(&only_reads, "ip reallocate");
    assert!(err.contains("api.sock, as root") && code == 1, "{err}");
}

#[test]
fn node_lists_need_no_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths::under(directory.path());
    std::fs::create_dir_all(&paths.etc).unwrap();
    let nodes = paths.nodes.clone();
    let surroundings = Surroundings {
        paths,
        timeout: None,
    };
    let missing = format!("Failed to read nodes from \"{}\"\n", nodes.display());
    assert_eq!(
        run_in(&surroundings, "listnodes"),
        (String::new(), missing, 1)
    );
    std::fs::write(&nodes, "192.0.2.1\n#192.0.2.2\n192.0.2.3\n").unwrap();
    let list = "192.0.2.1\n192.0.2.3\n".to_owned();
    assert_eq!(run_in(&surroundings, "listnodes"), (list, String::new(), 0));
    let rows = "|0|192.0.2.1|\n|2|192.0.2.3|\n".to_owned();
    assert_eq!(
        run_in(&surroundings, "-X listnodes"),
        (rows, String::new(), 0)
    );
    let (_, err, code) = run_in(&surroundings, "status");
    assert!(
        err.ends_with("\nIs this node part of CTDB cluster?\n") && code == 1,
        "{err}"
    );
}

#[test]
fn time_limits_end_a_command() {
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths::under(directory.path());
    std::fs::create_dir_all(&paths.run).unwrap();
    // Takes connections and never answers.
    let _listener = std::os::unix::net::UnixListener::bind(&paths.api_socket).unwrap();
    let mut surroundings = Surroundings {
        paths,
        timeout: None,
    };
    let (_, err, code) = run_in(&surroundings, "-t 1 pnn");
    assert_eq!(
        (err.as_str(), code),
        ("Control GET_PNN failed, ret=110\n", 110)
    );
    let (_, err, code) = run_in(&surroundings, "-T 1 pnn");
    assert_eq!(
        (err.as_str(), code),
        ("Maximum runtime exceeded - exiting\n", 1)
    );
    let (_, err, code) = run_in(&surroundings, "-T 1 ip reallocate");
    assert!(
        err.contains("still not done after 1 s") && code == 4,
        "{err}"
    );
    surroundings.timeout = Some("1".into());
    assert_eq!(
        run_in(&surroundings, "pnn").1,
        "Maximum runtime exceeded - exiting\n"
    );
    surroundings.timeout = Some("abc".into());
    assert_eq!(
        run_in(&surroundings, "pnn").1,
        "Invalid value CTDB_TIMEOUT\n"
    );
}

#[test]
fn configuration_commands_need_no_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths::under(directory.path());
    std::fs::create_dir_all(&paths.etc).unwrap();
    let surroundings = Surroundings {
        paths,
        timeout: None,
    };
    std::fs::write(
        &surroundings.paths.config,
        "[cluster]\n\tleader timeout = soon\n",
    )
    .unwrap();
    let (_, err, code) = run_in(&surroundings, "config check");
    assert!(err.contains("ctdb.conf:2: error") && code == 1, "{err}");
    std::fs::remove_file(&surroundings.paths.config).unwrap();
    let (out, err, code) = run_in(&surroundings, "config keygen");
    assert!(out.contains("--distribute") && code == 0, "{out}{err}");
    assert!(surroundings.paths.key_file.exists());
    let (_, err, code) = run_in(&surroundings, "config keygen");
    assert!(err.contains("--force") && code == 3, "{err}");
}
