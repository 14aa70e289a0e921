//! `statistics` and `stats` (`spec/cli.md` 6.8).

use std::fmt::Write as _;

use ctdb_wire::client::types::{Latency, Statistics, Timeval};
use jiff::tz::TimeZone;

use super::{Style, ctime, since};

/// Number of the protocol, which the old tool calls the version.
const VERSION: u32 = 1;

/// The counters in the order of the old tool: group (empty: none) and name, with their values.
fn counters(of: &Statistics) -> Vec<(&'static str, &'static str, u32)> {
    vec![
        ("", "num_clients", of.clients),
        ("", "frozen", of.frozen),
        ("", "recovering", of.recovering),
        ("", "num_recoveries", of.recoveries),
        ("", "client_packets_sent", of.client_packets_sent),
        ("", "client_packets_recv", of.client_packets_recv),
        ("", "node_packets_sent", of.node_packets_sent),
        ("", "node_packets_recv", of.node_packets_recv),
        ("", "keepalive_packets_sent", of.keepalive_packets_sent),
        ("", "keepalive_packets_recv", of.keepalive_packets_recv),
        ("node", "req_call", of.node.req_call),
        ("node", "reply_call", of.node.reply_call),
        ("node", "req_dmaster", of.node.req_dmaster),
        ("node", "reply_dmaster", of.node.reply_dmaster),
        ("node", "reply_error", of.node.reply_error),
        ("node", "req_message", of.node.req_message),
        ("node", "req_control", of.node.req_control),
        ("node", "reply_control", of.node.reply_control),
        ("node", "req_tunnel", of.node.req_tunnel),
        ("client", "req_call", of.client.req_call),
        ("client", "req_message", of.client.req_message),
        ("client", "req_control", of.client.req_control),
        ("client", "req_tunnel", of.client.req_tunnel),
        ("timeouts", "call", of.timeouts.call),
        ("timeouts", "control", of.timeouts.control),
        ("timeouts", "traverse", of.timeouts.traverse),
        ("locks", "num_calls", of.locks.calls),
        ("locks", "num_current", of.locks.current),
        ("locks", "num_pending", of.locks.pending),
        ("locks", "num_failed", of.locks.failed),
        ("", "total_calls", of.total_calls),
        ("", "pending_calls", of.pending_calls),
        ("", "childwrite_calls", of.childwrite_calls),
        ("", "pending_childwrite_calls", of.pending_childwrite_calls),
        ("", "memory_used", of.memory_used),
        ("", "max_hop_count", of.max_hop_count),
        ("", "total_ro_delegations", of.ro_delegations),
        ("", "total_ro_revokes", of.ro_revokes),
    ]
}

/// Latencies of the machine-readable form.
fn latencies(of: &Statistics) -> [(&'static str, Latency); 5] {
    [
        ("reclock_ctdbd_latency", of.reclock_ctdbd),
        ("reclock_recd_latency", of.reclock_recd),
        ("call_latency", of.call_latency),
        ("lockwait_latency", of.locks.latency),
        ("childwrite_latency", of.childwrite_latency),
    ]
}

fn average(latency: &Latency) -> f64 {
    if latency.count == 0 {
        0.0
    } else {
        latency.total / f64::from(latency.count)
    }
}

fn seconds(time: Timeval) -> f64 {
    time.seconds as f64
}

/// Statistics as the old tool prints them; `header`: with the row of names, if there is one.
pub fn print(of: &Statistics, style: Style, header: bool, zone: &TimeZone) -> String {
    match style.machine {
        Some(separator) => machine(of, separator, header),
        None => plain(of, zone),
    }
}

/// Without a separator in front.
fn machine(of: &Statistics, separator: &str, header: bool) -> String {
    let mut text = String::new();
    if header {
        for name in [
            "CTDB version",
            "Current time of statistics",
            "Statistics collected since",
        ] {
            _ = write!(text, "{name}{separator}");
        }
        for (group, name, _) in counters(of) {
            let dot = if group.is_empty() { "" } else { "." };
            _ = write!(text, "{group}{dot}{name}{separator}");
        }
        for (name, _) in latencies(of) {
            for what in ["num", "min", "avg", "max"] {
                _ = write!(text, "{what}_{name}{separator}");
            }
        }
        text.push('\n');
    }
    _ = write!(
        text,
        "{VERSION}{separator}{}{separator}{}{separator}",
        of.current_time.seconds, of.start_time.seconds
    );
    for (_, _, value) in counters(of) {
        _ = write!(text, "{value}{separator}");
    }
    for (_, latency) in latencies(of) {
        _ = write!(
            text,
            "{}{separator}{:.6}{separator}{:.6}{separator}{:.6}{separator}",
            latency.count,
            latency.min,
            average(&latency),
            latency.max
        );
    }
    text.push('\n');
    text
}

fn plain(of: &Statistics, zone: &TimeZone) -> String {
    let (now, then) = (seconds(of.current_time), seconds(of.start_time));
    let mut text = format!(
        "CTDB version {VERSION}\n\
         Current time of statistics  :                {}\n\
         Statistics collected since  : {}\n",
        ctime(now, zone),
        since(then, now, zone)
    );
    let mut last = "";
    for (group, name, value) in counters(of) {
        if group != last && !group.is_empty() {
            _ = writeln!(text, " {group}");
        }
        last = group;
        let indent = if group.is_empty() { " " } else { "     " };
        let gap = if group.is_empty() { "    " } else { "" };
        _ = writeln!(text, "{indent}{name:<22}{gap}{value:>10}");
    }
    for (name, buckets) in [
        ("hop_count_buckets", &of.hop_count_bucket),
        ("lock_buckets", &of.locks.buckets),
    ] {
        _ = write!(text, " {name}:");
        for value in buckets {
            _ = write!(text, " {value}");
        }
        text.push('\n');
    }
    for (name, latency) in [
        ("locks_latency", of.locks.latency),
        ("reclock_ctdbd", of.reclock_ctdbd),
        ("reclock_recd", of.reclock_recd),
        ("call_latency", of.call_latency),
        ("childwrite_latency", of.childwrite_latency),
    ] {
        _ = writeln!(
            text,
            " {name:<18} MIN/AVG/MAX     {:.6}/{:.6}/{:.6} sec out of {}",
            latency.min,
            average(&latency),
            latency.max,
            latency.count
        );
    }
    text
}
