//! `GET /metrics`: the figures of a snapshot for Prometheus (its text format, version 0.0.4).

use std::fmt::Write as _;

use ctdb_wire::api::{Hold, Snapshot};
use ctdb_wire::ids::NodeFlags;

/// Content type of the answer.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP ctdb_{name} {help}");
        let _ = writeln!(self.text, "# TYPE ctdb_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.text, "ctdb_{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }
}

/// A label's value (backslash, quote and line end escaped).
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// All figures of a snapshot.
pub fn render(snapshot: &Snapshot) -> String {
    let mut page = Page {
        text: String::with_capacity(8192),
    };
    page.family("info", "gauge", "Release and number of this node.");
    let labels = format!(
        "{{node=\"{}\",release=\"{}\"}}",
        snapshot.node,
        escaped(&snapshot.release)
    );
    page.sample("info", &labels, 1);
    page.gauge(
        "start_time_seconds",
        "When the daemon started, in seconds since 1970.",
        snapshot.started_at,
    );
    cluster(&mut page, snapshot);
    connections(&mut page, snapshot);
    page.text
}

fn cluster(page: &mut Page, snapshot: &Snapshot) {
    let right = &snapshot.right;
    page.gauge(
        "right_held",
        "1 while this node has the right to serve.",
        u8::from(right.held),
    );
    page.gauge(
        "right_remaining_seconds",
        "How long the right lasts if nobody answers any more.",
        right.remaining_ms as f64 / 1000.0,
    );
    page.gauge(
        "witnesses_answering",
        "Nodes that answer heartbeats, this one included.",
        right.answering,
    );
    page.gauge("witnesses_needed", "Nodes that must answer.", right.quorum);
    page.gauge(
        "leader",
        "Number of the leader; -1 if there is none.",
        snapshot.leader.map_or(-1, i64::from),
    );
    page.gauge(
        "term",
        "Number of the leader's term: counts elections.",
        snapshot.term.unwrap_or(0),
    );
    page.gauge(
        "recovery_mode",
        "0 normal, 1 in recovery.",
        snapshot.recovery_mode,
    );
    let nodes: Vec<_> = snapshot
        .nodes
        .iter()
        .filter(|node| !node.flags.contains(NodeFlags::DELETED))
        .collect();
    page.family(
        "node_flags",
        "gauge",
        "Flags of each node as a number; 0 is OK.",
    );
    for node in &nodes {
        page.sample(
            "node_flags",
            &format!("{{node=\"{}\"}}", node.pnn),
            node.flags.bits(),
        );
    }
    page.family(
        "node_heard_seconds",
        "gauge",
        "Since when a node has not been heard.",
    );
    for node in &nodes {
        if let Some(heard_ms) = node.heard_ms {
            let labels = format!("{{node=\"{}\"}}", node.pnn);
            page.sample("node_heard_seconds", &labels, heard_ms as f64 / 1000.0);
        }
    }
    page.family(
        "node_ban_credits",
        "gauge",
        "Failures that stand against a node; only the leader has them.",
    );
    for node in &nodes {
        if let Some(credits) = &node.ban_credits {
            let labels = format!("{{node=\"{}\"}}", node.pnn);
            page.sample("node_ban_credits", &labels, credits.credits);
        }
    }
    let addresses = &snapshot.addresses;
    page.gauge(
        "addresses",
        "Public addresses that reachable nodes name.",
        addresses.len(),
    );
    let unhosted = addresses.iter().filter(|address| address.owner.is_none());
    page.gauge(
        "addresses_unhosted",
        "Those that nobody serves.",
        unhosted.count(),
    );
    let held = addresses
        .iter()
        .filter(|address| address.here == Hold::Held);
    page.gauge(
        "addresses_held",
        "Those that this node serves.",
        held.count(),
    );
}

fn connections(page: &mut Page, snapshot: &Snapshot) {
    let stats = &snapshot.connections;
    page.gauge(
        "connections_tracked",
        "1 if connections are tracked.",
        u8::from(stats.enabled),
    );
    page.family(
        "connections",
        "gauge",
        "Connections to public addresses that are known.",
    );
    for (of, count) in [
        ("this_node", stats.own),
        ("peers", stats.replicated),
        ("lost_nodes", stats.orphans),
    ] {
        page.sample("connections", &format!("{{of=\"{of}\"}}"), count);
    }
    page.gauge(
        "connections_telling",
        "Connections of moved addresses whose clients are being told.",
        stats.telling,
    );
    page.gauge(
        "connections_max",
        "Most that a node may have.",
        stats.max_connections,
    );
    for (name, help, value) in [
        (
            "connections_opened_total",
            "Connections that began.",
            stats.opened,
        ),
        (
            "connections_closed_total",
            "Connections that ended.",
            stats.closed,
        ),
        (
            "connection_changes_sent_total",
            "Changes sent to peers.",
            stats.changes_sent,
        ),
        (
            "connection_changes_received_total",
            "Changes received from peers.",
            stats.changes_received,
        ),
        (
            "connection_parts_sent_total",
            "Pieces of tables sent.",
            stats.parts_sent,
        ),
        (
            "connection_parts_received_total",
            "Pieces of tables received.",
            stats.parts_received,
        ),
        (
            "connection_differences_total",
            "Differences that comparisons with peers found and repaired.",
            stats.diverged,
        ),
        (
            "connection_links_behind_total",
            "Links that fell behind the changes and compare instead.",
            stats.fell_behind,
        ),
        (
            "connection_frames_lost_total",
            "Frames of peers that found no room.",
            stats.frames_lost,
        ),
        (
            "connection_entries_refused_total",
            "Entries of peers that were refused.",
            stats.refused,
        ),
        (
            "connections_overflowed_total",
            "Connections beyond the most that a node may have.",
            stats.overflowed,
        ),
        (
            "connections_told_total",
            "Connections whose clients were to be told.",
            stats.told,
        ),
        ("tickles_sent_total", "Tickles sent.", stats.tickles),
        (
            "tickle_errors_total",
            "Tickles that were refused.",
            stats.tickle_errors,
        ),
        (
            "sockets_killed_total",
            "Server sockets destroyed.",
            stats.killed,
        ),
        (
            "udp_services_silenced_total",
            "UDP sockets that answered on released addresses.",
            stats.udp_silenced,
        ),
        (
            "tracker_overruns_total",
            "Times that events of the kernel were lost and its table read anew.",
            stats.overruns,
        ),
        (
            "tracker_table_full_total",
            "Connections that the kernel's table had no room for.",
            stats.table_full,
        ),
        (
            "tracker_repairs_total",
            "Times that the kernel's programs were gone and put back.",
            stats.repairs,
        ),
    ] {
        page.counter(name, help, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;

    #[test]
    fn each_sample_has_its_family_and_a_number() {
        let text = render(&sample::snapshot());
        let mut family = String::new();
        let mut families = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                rest.split(' ').next().unwrap().clone_into(&mut family);
                assert!(!families.contains(&family), "{family} twice");
                families.push(family.clone());
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(name.split('{').next().unwrap(), family, "{line}");
                value.parse::<f64>().unwrap();
            }
        }
        assert!(families.len() > 30, "{}", families.len());
        assert!(text.contains("ctdb_connections{of=\"peers\"}"));
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
