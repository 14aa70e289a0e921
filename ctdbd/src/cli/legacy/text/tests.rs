use super::*;
use crate::api::sample;

const HUMAN: Style = Style {
    machine: None,
    verbose: false,
};
const LONG: Style = Style {
    machine: None,
    verbose: true,
};
const ROWS: Style = Style {
    machine: Some("|"),
    verbose: false,
};
const LONG_ROWS: Style = Style {
    machine: Some("|"),
    verbose: true,
};

#[test]
fn status_of_the_specification() {
    let snapshot = sample::snapshot();
    let human = "\
Number of nodes:4 (including 2 deleted nodes)
pnn:0 127.0.0.1        OK (THIS NODE)
pnn:1 127.0.0.2        DISCONNECTED|UNHEALTHY|INACTIVE
Generation:345762259
Size:1
hash:0 lmaster:0
Recovery mode:NORMAL (0)
Leader:0
";
    assert_eq!(status(&snapshot, HUMAN), human);
    let rows = "\
|Node|IP|Disconnected|Unknown|Banned|Disabled|Unhealthy|Stopped|Inactive|PartiallyOnline|ThisNode|
|0|127.0.0.1|0|0|0|0|0|0|0|0|Y|
|1|127.0.0.2|1|0|0|0|1|0|1|0|N|
";
    assert_eq!(status(&snapshot, ROWS), rows);
    let colons = status(
        &snapshot,
        Style {
            machine: Some(":"),
            verbose: false,
        },
    );
    assert!(
        colons.ends_with(":1:127.0.0.2:1:0:0:0:1:0:1:0:N:\n"),
        "{colons}"
    );
}

#[test]
fn status_in_recovery_without_leader() {
    let mut snapshot = sample::snapshot();
    snapshot.nodes.truncate(2);
    snapshot.node = 1;
    snapshot.generation = None;
    snapshot.recovery_mode = 1;
    snapshot.leader = None;
    snapshot.vnn_map = Vec::new();
    snapshot.nodes[0].flags_text = "PARTIALLYONLINE".into();
    let human = "\
Number of nodes:2
pnn:0 127.0.0.1        PARTIALLYONLINE
pnn:1 127.0.0.2        DISCONNECTED|UNHEALTHY|INACTIVE (THIS NODE)
Generation:INVALID
Size:0
Recovery mode:RECOVERY (1)
Leader:UNKNOWN
";
    assert_eq!(status(&snapshot, HUMAN), human);
    assert!(status(&snapshot, ROWS).contains("\n|0|127.0.0.1|0|0|0|0|0|0|0|1|N|\n"));
    let json: serde_json::Value = serde_json::from_str(&status_json(&snapshot)).unwrap();
    assert_eq!(json["leader"], 4_294_967_295_u32);
    assert!(json["vnn_status"]["generation"].is_null());
    assert_eq!(json["node_status"]["nodes"]["0"]["partially_online"], true);
}

#[test]
fn status_as_json_keeps_the_order_of_the_specification() {
    let mut snapshot = sample::snapshot();
    snapshot.nodes.remove(1);
    let wanted = r#"{
  "node_status": {
    "node_count": 3,
    "deleted_node_count": 2,
    "nodes": {
      "0": {
        "pnn": 0,
        "address": "127.0.0.1",
        "partially_online": false,
        "flags_raw": 0,
        "flags_ok": true,
        "flags": {
          "disconnected": false,
          "unknown": false,
          "disabled": false,
          "banned": false,
          "unhealthy": false,
          "deleted": false,
          "stopped": false,
          "inactive": false
        },
        "this_node": true
      }
    }
  },
  "vnn_status": {
    "generation": 345762259,
    "size": 1,
    "vnn_map": [
      {
        "hash": 0,
        "lmaster": 0
      }
    ]
  },
  "recovery_mode": "NORMAL",
  "recovery_mode_raw": 0,
  "leader": 0
}"#;
    assert_eq!(status_json(&snapshot), wanted);
    assert_eq!(version_json("1.2"), "{\n  \"version\": \"1.2\"\n}");
}

#[test]
fn node_status_and_its_flags() {
    let nodes = [
        sample::node(0, NodeFlags::empty()),
        sample::node(1, NodeFlags::BANNED),
        sample::node(2, NodeFlags::DELETED | NodeFlags::DISCONNECTED),
    ];
    let (text, flags) = node_status(&nodes, 0, &Shown::All, HUMAN);
    let wanted = "\
Number of nodes:3 (including 1 deleted nodes)
pnn:0 127.0.0.1        OK (THIS NODE)
pnn:1 127.0.0.2        BANNED|INACTIVE
";
    assert_eq!((text.as_str(), flags.bits()), (wanted, 8));
    let stopped = [sample::node(1, NodeFlags::STOPPED)];
    let (text, flags) = node_status(&stopped, 0, &Shown::These(vec![1]), ROWS);
    let wanted = "\
|Node|IP|Disconnected|Unknown|Banned|Disabled|Unhealthy|Stopped|Inactive|PartiallyOnline|ThisNode|
|1|127.0.0.2|0|0|0|0|0|1|1|0|N|
";
    assert_eq!((text.as_str(), flags.bits()), (wanted, 32));
    // A deleted one prints nothing and counts for nothing.
    let (text, flags) = node_status(&nodes, 0, &Shown::These(vec![2]), HUMAN);
    assert_eq!((text.as_str(), flags.bits()), ("", 0));
    let silent = [sample::node(1, NodeFlags::UNKNOWN)];
    assert_eq!(
        node_status(&silent, 0, &Shown::These(vec![1]), HUMAN)
            .1
            .bits(),
        64
    );
}

#[test]
fn uptime_of_the_specification() {
    let mut daemon = DaemonView {
        node: 0,
        now: 1_795_348_779.4,
        started_at: 1_795_348_731.2,
        last_recovery: Some((1_795_348_735.902_013, 1_795_348_736.0)),
        ..DaemonView::default()
    };
    let wanted = "\
Current time of node 0        :                Sun Nov 22 11:59:39 2026
Ctdbd start time              : (000 00:00:48) Sun Nov 22 11:58:51 2026
Time of last recovery/failover: (000 00:00:43) Sun Nov 22 11:58:56 2026
Duration of last recovery/failover: 0.097987 seconds
";
    assert_eq!(uptime(&daemon, &TimeZone::UTC), wanted);
    daemon.node = 12;
    daemon.now += 86400.0 * 101.0 + 3600.0 * 5.0;
    let later = uptime(&daemon, &TimeZone::UTC);
    assert!(
        later.starts_with("Current time of node 12       :"),
        "{later}"
    );
    assert!(
        later.contains(": (101 05:00:48) Sun Nov 22 11:58:51 2026\n"),
        "{later}"
    );
    assert!(later.contains("Wed Mar  3 16:59:39 2027"), "{later}");
}

#[test]
fn short_texts() {
    assert_eq!(
        ping(1, 0.000_105, 1),
        "response from 1 time=0.000105 sec  (1 clients)\n"
    );
    assert_eq!(leader(Some(3)), "3\n");
    assert_eq!(leader(None), "UNKNOWN\n");
    let all = Capabilities::default();
    assert_eq!(capabilities(all, HUMAN), "LEADER: YES\nLMASTER: YES\n");
    let follower = Capabilities {
        leader: false,
        ..all
    };
    assert_eq!(capabilities(follower, HUMAN), "LEADER: NO\nLMASTER: YES\n");
    assert_eq!(capabilities(follower, ROWS), "|LEADER|LMASTER|\n|0|1|\n");
    let list = [
        (0, "127.0.0.1".parse().unwrap()),
        (2, "fd00::2".parse().unwrap()),
    ];
    assert_eq!(list_nodes(&list, HUMAN), "127.0.0.1\nfd00::2\n");
    assert_eq!(list_nodes(&list, ROWS), "|0|127.0.0.1|\n|2|fd00::2|\n");
    assert_eq!(
        tunable("monitorinterval", 15),
        "monitorinterval            = 15\n"
    );
    let wanted = "SeqnumInterval             = 1000\nMonitorInterval            = 15\n";
    assert_eq!(tunables(&sample::snapshot().tunables), wanted);
}

#[test]
fn addresses_of_one_node() {
    let snapshot = sample::snapshot();
    let human = "\
Public IPs on node 0
10.77.1.1 1
10.77.1.2 0
fd00:77::1 -1
";
    assert_eq!(ip(&snapshot, false, HUMAN), human);
    let rows = "|Public IP|Node|\n|10.77.1.1|1|\n|10.77.1.2|0|\n|fd00:77::1|-1|\n";
    assert_eq!(ip(&snapshot, false, ROWS), rows);
    // As the package 4.17 prints it: active only if hosted on the node that answers.
    let long = "\
Public IPs on node 0
10.77.1.1 node[1] active[] available[lo] configured[lo]
10.77.1.2 node[0] active[lo] available[lo] configured[lo]
fd00:77::1 node[-1] active[] available[] configured[]
";
    assert_eq!(ip(&snapshot, false, LONG), long);
    let long_rows = "\
|Public IP|Node|ActiveInterfaces|AvailableInterfaces|ConfiguredInterfaces|
|10.77.1.1|1||lo|lo|
|10.77.1.2|0|lo|lo|lo|
|fd00:77::1|-1||||
";
    assert_eq!(ip(&snapshot, false, LONG_ROWS), long_rows);
    let mut partly = snapshot;
    partly.addresses[0].known_here = false;
    partly.addresses.reverse();
    let wanted = "Public IPs on node 0\n10.77.1.2 0\nfd00:77::1 -1\n";
    assert_eq!(ip(&partly, false, HUMAN), wanted);
}

#[test]
fn addresses_of_all_nodes() {
    let mut snapshot = sample::snapshot();
    snapshot.nodes[1].flags = NodeFlags::empty();
    let long = "\
Public IPs on ALL nodes
10.77.1.1 node[1] active[lo] available[lo] configured[lo]
10.77.1.2 node[0] active[lo] available[lo] configured[lo]
fd00:77::1 node[-1] active[] available[] configured[]
";
    assert_eq!(ip(&snapshot, true, LONG), long);
    // What an inactive node says of itself does not count.
    snapshot.nodes[1].flags = NodeFlags::STOPPED;
    let wanted = "|Public IP|Node|\n|10.77.1.1|-1|\n|10.77.1.2|0|\n|fd00:77::1|-1|\n";
    assert_eq!(ip(&snapshot, true, ROWS), wanted);
    snapshot.addresses[0].nodes.remove(&0);
    assert!(
        !ip(&snapshot, true, ROWS).contains("10.77.1.1"),
        "only an inactive node names it"
    );
}

#[test]
fn one_address() {
    let snapshot = sample::snapshot();
    let info = |index: usize| ip_info(0, &snapshot.addresses[index], &snapshot.interfaces);
    let wanted = "\
Public IP[10.77.1.1] info on node 0
IP:10.77.1.1
CurrentNode:1
NumInterfaces:1
Interface[1]: Name:lo Link:up References:3
";
    assert_eq!(info(0), wanted);
    assert!(info(1).ends_with("Interface[1]: Name:lo Link:up References:3 (active)\n"));
    assert!(info(2).contains("\nCurrentNode:4294967295\n"));
}

#[test]
fn interfaces_and_none() {
    let mut view = InterfacesView {
        node: 0,
        interfaces: sample::snapshot().interfaces,
    };
    let human = "Interfaces on node 0\nname:lo link:up references:3\n";
    assert_eq!(interfaces(&view, HUMAN), human);
    view.interfaces[0].up = false;
    assert_eq!(
        interfaces(&view, ROWS),
        "|Name|LinkStatus|References|\n|lo|0|3|\n"
    );
    view.interfaces.clear();
    for style in [HUMAN, ROWS] {
        assert_eq!(
            interfaces(&view, style),
            "No interfaces configured on node 0\n"
        );
    }
}

#[test]
fn gettickles_as_in_the_specification() {
    let pairs = [(
        "10.0.0.99:50001".parse().unwrap(),
        "10.0.0.1:445".parse().unwrap(),
    )]
    .into();
    let address = "10.0.0.1".parse().unwrap();
    assert_eq!(
        connections(address, &pairs, HUMAN),
        "Connections for IP: 10.0.0.1\nNum connections: 1\n\
         SRC: 10.0.0.99:50001   DST: 10.0.0.1:445\n"
    );
    assert_eq!(
        connections(address, &pairs, ROWS),
        "|Source IP|Port|Destination IP|Port|\n|10.0.0.99|50001|10.0.0.1|445|\n"
    );
    let pairs = [(
        "[fd00::99]:1".parse().unwrap(),
        "[fd00::1]:2049".parse().unwrap(),
    )]
    .into();
    assert!(
        connections("fd00::1".parse().unwrap(), &pairs, HUMAN)
            .ends_with("SRC: [fd00::99]:1   DST: [fd00::1]:2049\n")
    );
}
