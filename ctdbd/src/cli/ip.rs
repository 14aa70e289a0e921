//! `ctdb ip`

use std::fmt::Write as _;

use std::net::IpAddr;

use ctdb_wire::api::{
    AddressView, AddressesView, HistoryRecord, HistoryView, Hold, NodesView, PlanView, WhyView,
};
use jiff::tz::TimeZone;
use serde_json::json;

use super::failure::Failure;
use super::table::{columns, facts, list, milliseconds, moment, or_dash};
use super::{Asking, args, pretty};

pub(super) fn run(asking: &Asking, verb: &args::Ip) -> Result<String, Failure> {
    match verb {
        args::Ip::List => asking.show(&asking.at("/v1/ips"), addresses),
        args::Ip::Show { address: ip } => {
            asking.show(&asking.at(&format!("/v1/ips/{ip}")), address)
        }
        args::Ip::Plan => asking.show("/v1/ips/plan", plan),
        args::Ip::Why { address, all } => {
            let path = format!("/v1/ips/{address}/why");
            if asking.global.json || *all {
                return asking.show(&path, why);
            }
            let view: WhyView = asking.client.get(&path)?;
            let past = records(asking, Some(*address));
            Ok(why_line(&view, past.last(), &TimeZone::system()))
        }
        args::Ip::History { address, last } => {
            let mut records = records(asking, *address);
            if let Some(last) = last {
                let first = records.len().saturating_sub(*last);
                records.drain(..first);
            }
            let view = HistoryView { records };
            if asking.global.json {
                return Ok(pretty(&json!(view)));
            }
            Ok(super::cluster::history(&view, &TimeZone::system()))
        }
        args::Ip::Move { address, pnn } => {
            asking.change("/v1/ips/move", &json!({"address": address, "to": pnn}))
        }
        args::Ip::Reallocate => asking.change("/v1/ips/reallocate", &json!({})),
        args::Ip::Reload => asking.change(&asking.at("/v1/ips/reload"), &json!({})),
        args::Ip::Announce { address, interface } => asking.change(
            &asking.at("/v1/ips/announce"),
            &json!({"address": address, "interface": interface}),
        ),
    }
}

/// What all nodes that answer remember of an address, or of all, oldest first.
fn records(asking: &Asking, address: Option<IpAddr>) -> Vec<HistoryRecord> {
    // Without the list of nodes this node's own memory has to do.
    let nodes = asking.client.get::<NodesView>("/v1/nodes").map(|view| {
        let linked = view.nodes.into_iter().filter(|node| node.linked);
        linked.map(|node| node.pnn).collect()
    });
    let nodes: Vec<u32> = nodes.unwrap_or_default();
    let mut records: Vec<HistoryRecord> = nodes
        .iter()
        .filter_map(|node| {
            let path = format!("/v1/cluster/history?node={node}");
            asking.client.get::<HistoryView>(&path).ok()
        })
        .flat_map(|view| view.records)
        .filter(|record| match address {
            Some(address) => record.addresses.contains(&address),
            None => !record.addresses.is_empty(),
        })
        .collect();
    records.sort_by(|a, b| a.at.total_cmp(&b.at));
    records
}

/// `ctdb ip why`
pub fn why_line(view: &WhyView, last: Option<&HistoryRecord>, zone: &TimeZone) -> String {
    let mut line = format!("{}: {}", view.address, view.reason);
    if let Some(record) = last {
        let node = record
            .node
            .map_or_else(String::new, |node| format!("node {node} "));
        // Writing to a string does not fail.
        let _ = write!(line, "; {} {node}{}", moment(record.at, zone), record.text);
        let took: f64 = record.phases.iter().map(|(_, length)| length).sum();
        if took > 0.0 {
            let _ = write!(line, " in {}", milliseconds(took));
        }
    }
    line.push('\n');
    line
}

/// The interface that carries an address, on whichever node.
fn active(view: &AddressView) -> Option<&str> {
    let there = view
        .owner
        .and_then(|owner| view.nodes.get(&owner)?.active.as_deref());
    there.or(view.active.as_deref())
}

/// `ctdb ip list`
pub fn addresses(view: &AddressesView) -> String {
    let rows: Vec<[String; 4]> = view
        .addresses
        .iter()
        .map(|address| {
            let able = address
                .nodes
                .iter()
                .filter(|(_, on)| on.available)
                .map(|(pnn, _)| pnn);
            [
                address.net.to_string(),
                or_dash(address.owner),
                or_dash(active(address)),
                list(able),
            ]
        })
        .collect();
    columns(["ADDRESS", "NODE", "INTERFACE", "POSSIBLE ON"], &rows)
}

fn hold(hold: Hold) -> &'static str {
    match hold {
        Hold::None => "nothing",
        Hold::Taking => "takes it over",
        Hold::Held => "serves it",
        Hold::Releasing => "silent, lets go",
    }
}

/// `ctdb ip show`
pub fn address(view: &AddressView) -> String {
    let mut text = facts(&[
        ("Address", view.net.to_string()),
        ("Node", or_dash(view.owner)),
        ("Interface", or_dash(active(view))),
        ("This node", hold(view.here).to_owned()),
    ]);
    let rows: Vec<[String; 4]> = view
        .nodes
        .iter()
        .map(|(pnn, on)| {
            let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
            [
                pnn.to_string(),
                list(&on.interfaces),
                yes(on.available),
                yes(on.hosts),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&columns(["NODE", "INTERFACES", "POSSIBLE", "HOSTS"], &rows));
    text
}

/// `ctdb ip plan`
pub fn plan(view: &PlanView) -> String {
    let mut text = String::new();
    if view.moves.is_empty() {
        text.push_str("Nothing would move.\n");
    } else {
        let rows: Vec<[String; 4]> = view
            .moves
            .iter()
            .map(|planned| {
                [
                    planned.address.to_string(),
                    or_dash(planned.from),
                    or_dash(planned.to),
                    planned.reason.clone(),
                ]
            })
            .collect();
        text.push_str(&columns(["ADDRESS", "FROM", "TO", "WHY"], &rows));
    }
    // Writing to a string does not fail.
    let _ = writeln!(text, "{} addresses stay where they are.", view.unchanged);
    if !view.unhosted.is_empty() {
        let _ = writeln!(text, "Nobody can host: {}", list(&view.unhosted));
    }
    for note in &view.notes {
        text.push_str(note);
        text.push('\n');
    }
    text
}

/// `ctdb ip why --all`
pub fn why(view: &WhyView) -> String {
    let mut text = facts(&[
        ("Address", view.address.to_string()),
        ("Why", view.reason.clone()),
        ("Node", or_dash(view.owner)),
        ("Wanted on", or_dash(view.wanted)),
        ("May still be on", list(&view.may_hold)),
    ]);
    let rows: Vec<[String; 2]> = view
        .nodes
        .iter()
        .map(|(pnn, reason)| [pnn.to_string(), reason.clone()])
        .collect();
    text.push('\n');
    text.push_str(&columns(["NODE", "CAN HOST IT"], &rows));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::sample;
    use ctdb_wire::api::PlannedMove;

    #[test]
    fn addresses_and_their_nodes() {
        let snapshot = sample::snapshot();
        let view = AddressesView {
            node: 0,
            addresses: snapshot.addresses,
        };
        let wanted = "\
ADDRESS        NODE  INTERFACE  POSSIBLE ON
10.77.1.1/24   1     lo         0, 1
10.77.1.2/24   0     lo         0, 1
fd00:77::1/64  -     -          0, 1
";
        assert_eq!(addresses(&view), wanted);
        let wanted = "\
Address    10.77.1.2/24
Node       0
Interface  lo
This node  serves it

NODE  INTERFACES  POSSIBLE  HOSTS
0     lo          yes       yes
1     lo          yes       no
";
        assert_eq!(address(&view.addresses[1]), wanted);
    }

    #[test]
    fn plans() {
        let nothing = PlanView {
            unchanged: 3,
            ..PlanView::default()
        };
        assert_eq!(
            plan(&nothing),
            "Nothing would move.\n3 addresses stay where they are.\n"
        );
        let some = PlanView {
            moves: vec![PlannedMove {
                address: "10.0.0.1".parse().unwrap(),
                from: None,
                to: Some(2),
                reason: "not served".into(),
            }],
            unhosted: vec!["10.0.0.2".parse().unwrap()],
            unchanged: 0,
            notes: vec!["NoIPFailback is set".into()],
        };
        let wanted = "\
ADDRESS   FROM  TO  WHY
10.0.0.1  -     2   not served
0 addresses stay where they are.
Nobody can host: 10.0.0.2
NoIPFailback is set
";
        assert_eq!(plan(&some), wanted);
    }

    #[test]
    fn reasons() {
        let view = WhyView {
            address: "10.0.0.1".parse().unwrap(),
            owner: None,
            wanted: Some(1),
            may_hold: vec![0],
            nodes: [(0, "no: DISABLED".to_owned()), (1, "yes".to_owned())].into(),
            reason: "on its way to node 1".into(),
        };
        let wanted = "\
Address          10.0.0.1
Why              on its way to node 1
Node             -
Wanted on        1
May still be on  0

NODE  CAN HOST IT
0     no: DISABLED
1     yes
";
        assert_eq!(why(&view), wanted);
    }
}
