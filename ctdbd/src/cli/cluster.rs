//! `ctdb cluster`

use std::fmt::Write as _;

use ctdb_wire::api::{ClusterView, HistoryView, LeaderView, LockView};
use jiff::tz::TimeZone;
use serde_json::Value;

use super::failure::{Exit, Failure};
use super::table::{columns, facts, list, milliseconds, moment, or_dash};
use super::{Asking, args, pretty};

pub(super) fn run(asking: &Asking, verb: &args::Cluster) -> Result<String, Failure> {
    match verb {
        args::Cluster::Status => asking.show(&asking.at("/v1/cluster"), |view| {
            cluster(view, &TimeZone::system())
        }),
        args::Cluster::Leader => {
            let value: Value = asking.client.get("/v1/cluster/leader")?;
            if value["leader"].is_null() {
                let text = "the cluster has no leader; `ctdb cluster status` shows who answers";
                return Err(Failure::new(Exit::NotFound, "no_leader", text));
            }
            if asking.global.json {
                return Ok(pretty(&value));
            }
            let view = serde_json::from_value(value)
                .map_err(|error| super::ClientError::Malformed(error.to_string()))?;
            Ok(leader(&view))
        }
        args::Cluster::Lock => asking.show(&asking.at("/v1/cluster/lock"), |view| {
            lock(view, &TimeZone::system())
        }),
        args::Cluster::Recover => asking.change("/v1/cluster/recover", &serde_json::json!({})),
        args::Cluster::History { last } => {
            let mut view: HistoryView = asking.client.get(&asking.at("/v1/cluster/history"))?;
            if let Some(last) = last {
                let first = view.records.len().saturating_sub(*last);
                view.records.drain(..first);
            }
            if asking.global.json {
                return Ok(pretty(&serde_json::json!(view)));
            }
            Ok(history(&view, &TimeZone::system()))
        }
    }
}

/// `ctdb cluster status`
pub fn cluster(view: &ClusterView, zone: &TimeZone) -> String {
    let leader = match (view.leader, view.term) {
        (None, _) => "none".to_owned(),
        (Some(leader), Some(term)) => format!("node {leader}, term {term}"),
        (Some(leader), None) => format!("node {leader}"),
    };
    let right = if view.right.held {
        format!(
            "held, {} left without a further answer",
            milliseconds(view.right.remaining_ms as f64)
        )
    } else {
        "not held: this node serves nothing".to_owned()
    };
    let recovery = if view.recovery_mode == 0 {
        "NORMAL"
    } else {
        "RECOVERY"
    };
    let last = view.last_recovery.map(|(began, ended)| {
        let length = milliseconds((ended - began).max(0.0) * 1000.0);
        format!("{}, took {length}", moment(ended, zone))
    });
    facts(&[
        ("Leader", leader),
        ("Right", right),
        (
            "Answering",
            format!(
                "{} nodes, {} needed",
                view.right.answering, view.right.quorum
            ),
        ),
        ("Nodes", format!("{}, {} healthy", view.nodes, view.healthy)),
        (
            "Addresses",
            format!("{}, {} not served", view.addresses, view.unhosted),
        ),
        ("Addresses by", view.addresses_by.clone()),
        ("Recovery mode", recovery.to_owned()),
        (
            "Generation",
            view.generation
                .map_or_else(|| "INVALID".to_owned(), |g| g.to_string()),
        ),
        ("Location masters", list(&view.vnn_map)),
        ("Cluster lock", or_dash(view.cluster_lock.as_deref())),
        ("Last failover", or_dash(last)),
    ])
}

/// `ctdb cluster lock`
pub fn lock(view: &LockView, zone: &TimeZone) -> String {
    facts(&[
        ("Lock", view.setting.clone()),
        ("State", view.state.clone()),
        ("Since", or_dash(view.held_since.map(|at| moment(at, zone)))),
        (
            "Helper",
            or_dash(view.pid.map(|pid| format!("process {pid}"))),
        ),
        ("Taking it took", or_dash(view.latency_ms.map(milliseconds))),
        (
            "Last proof",
            or_dash(
                view.proved_ms
                    .map(|age| format!("{} ago", milliseconds(age as f64))),
            ),
        ),
    ])
}

/// `ctdb cluster leader`
pub fn leader(view: &LeaderView) -> String {
    let acting = if view.acting {
        "acts"
    } else {
        "does not act: too few nodes answer it"
    };
    let mut text = facts(&[
        ("Leader", or_dash(view.leader)),
        ("Term", or_dash(view.term)),
        ("State", acting.to_owned()),
        (
            "Orders",
            if view.settled {
                "all carried out"
            } else {
                "under way"
            }
            .to_owned(),
        ),
    ]);
    if !view.books.is_empty() {
        let rows: Vec<[String; 3]> = view
            .books
            .iter()
            .map(|book| {
                [
                    book.node.to_string(),
                    book.know.clone(),
                    book.may_hold.to_string(),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&columns(["NODE", "KNOWN", "MAY HOLD"], &rows));
    }
    text
}

/// `ctdb cluster history`
pub fn history(view: &HistoryView, zone: &TimeZone) -> String {
    let mut text = String::new();
    for record in &view.records {
        let node = record
            .node
            .map_or_else(String::new, |node| format!(" node {node}"));
        let _ = writeln!(
            text,
            "{} {:<9}{node}: {}",
            moment(record.at, zone),
            record.kind,
            record.text
        );
        if !record.addresses.is_empty() {
            let _ = writeln!(text, "    addresses: {}", list(&record.addresses));
        }
        if !record.phases.is_empty() {
            let phases = record
                .phases
                .iter()
                .map(|(name, ms)| format!("{name} {}", milliseconds(*ms)));
            let _ = writeln!(text, "    phases: {}", list(phases));
        }
    }
    if text.is_empty() {
        text.push_str("nothing has happened since the daemon started\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Read, render, sample};
    use ctdb_wire::api::{BookView, HistoryRecord};

    #[test]
    fn the_cluster_in_short() {
        let value = render(&sample::snapshot(), &Read::Cluster).unwrap();
        let view: ClusterView = serde_json::from_value(value).unwrap();
        let wanted = "\
Leader            node 0, term 7
Right             held, 1400 ms left without a further answer
Answering         1 nodes, 1 needed
Nodes             2, 1 healthy
Addresses         3, 1 not served
Addresses by      builtin
Recovery mode     NORMAL
Generation        345762259
Location masters  0
Cluster lock      /clusterfs/lock
Last failover     2026-11-22 11:58:56.000, took 98 ms
";
        assert_eq!(cluster(&view, &TimeZone::UTC), wanted);
        let alone = cluster(&ClusterView::default(), &TimeZone::UTC);
        assert!(
            alone.starts_with("Leader            none\nRight             not held"),
            "{alone}"
        );
    }

    #[test]
    fn the_leader_and_its_books() {
        let view = LeaderView {
            leader: Some(1),
            term: Some(4),
            acting: true,
            books: vec![BookView {
                node: 2,
                know: "dead".into(),
                may_hold: 0,
            }],
            settled: false,
        };
        let wanted = "\
Leader  1
Term    4
State   acts
Orders  under way

NODE  KNOWN  MAY HOLD
2     dead   0
";
        assert_eq!(leader(&view), wanted);
    }

    #[test]
    fn a_lock_that_is_held() {
        let view = LockView {
            setting: "/clusterfs/lock".into(),
            state: "held".into(),
            held_since: Some(1_795_348_731.25),
            pid: Some(7),
            latency_ms: Some(3.25),
            proved_ms: Some(800),
        };
        let wanted = "\
Lock            /clusterfs/lock
State           held
Since           2026-11-22 11:58:51.250
Helper          process 7
Taking it took  3.2 ms
Last proof      800 ms ago
";
        assert_eq!(lock(&view, &TimeZone::UTC), wanted);
    }

    #[test]
    fn history_says_why_and_how_long() {
        let view = HistoryView {
            records: vec![HistoryRecord {
                at: 1_795_348_731.5,
                kind: "takeover".into(),
                node: Some(1),
                text: "node 0 has not been heard for 1.5 s".into(),
                addresses: vec!["10.0.0.1".parse().unwrap()],
                phases: vec![("evict".into(), 1500.0), ("take".into(), 2.25)],
            }],
        };
        let wanted = "\
2026-11-22 11:58:51.500 takeover  node 1: node 0 has not been heard for 1.5 s
    addresses: 10.0.0.1
    phases: evict 1500 ms, take 2.2 ms
";
        assert_eq!(history(&view, &TimeZone::UTC), wanted);
        assert!(history(&HistoryView::default(), &TimeZone::UTC).starts_with("nothing"));
    }
}
