//! `ctdb node`

use std::time::{Duration, Instant};

use ctdb_wire::api::{DaemonView, Done, NodeVerb, NodeView, NodesView, ReloadView, Snapshot};
use ctdb_wire::ids::NodeFlags;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::failure::{Exit, Failure};
use super::table::{columns, facts, milliseconds, or_dash};
use super::{Asking, args, pretty};

pub(super) fn run(asking: &Asking, verb: &args::Node) -> Result<String, Failure> {
    match verb {
        args::Node::List => asking.show(&asking.at("/v1/nodes"), nodes),
        args::Node::Status { pnn } => {
            let pnn = asking.node(*pnn)?;
            asking.show(&asking.at(&format!("/v1/nodes/{pnn}")), node)
        }
        args::Node::Disable(change) => flag(asking, NodeVerb::Disable, change, None),
        args::Node::Stop(change) => flag(asking, NodeVerb::Stop, change, None),
        args::Node::Ban { change, time } => flag(asking, NodeVerb::Ban, change, Some(*time)),
        args::Node::Enable(target) => set(asking, NodeVerb::Enable, target, &json!({})),
        args::Node::Start(target) => set(asking, NodeVerb::Start, target, &json!({})),
        args::Node::Credits => {
            let leader = asking.client.get::<Snapshot>("/v1/status")?.leader;
            let leader = leader.ok_or_else(|| {
                Failure::new(
                    Exit::NotNow,
                    "no_leader",
                    "there is no leader, and only it counts",
                )
            })?;
            asking.show(&format!("/v1/nodes?node={leader}"), credits)
        }
        args::Node::Unban(target) => set(asking, NodeVerb::Unban, target, &json!({})),
        args::Node::Reload { dry_run } => {
            let body = json!({"dry_run": dry_run});
            let view: ReloadView = asking.client.post("/v1/nodes/reload", &body)?;
            if asking.global.json {
                return Ok(pretty(&json!(view)));
            }
            Ok(reloaded(&view))
        }
        args::Node::Shutdown(target) => {
            let own = asking.client.get::<DaemonView>("/v1/daemon")?.node;
            let target = target.pnn.or(asking.global.node).unwrap_or(own);
            let done = shut_down(&asking.client, target, target == own)?;
            Ok(asking.done(&done))
        }
    }
}

/// `ctdb node reload`
pub fn reloaded(view: &ReloadView) -> String {
    if !view.changed {
        return "the nodes list has not changed\n".to_owned();
    }
    let mut text = changes(view);
    for warning in &view.warnings {
        text.push_str(warning);
        text.push('\n');
    }
    text
}

/// What the old tool prints of a changed list.
pub fn changes(view: &ReloadView) -> String {
    let mut lines: Vec<(u32, &str)> = Vec::new();
    for (nodes, word) in [
        (&view.new, "NEW"),
        (&view.deleted, "DELETED"),
        (&view.undeleted, "UNDELETED"),
    ] {
        lines.extend(nodes.iter().map(|pnn| (*pnn, word)));
    }
    lines.sort_unstable();
    lines.iter().fold(String::new(), |text, (pnn, word)| {
        text + &format!("Node {pnn} is {word}\n")
    })
}

fn flag(
    asking: &Asking,
    verb: NodeVerb,
    change: &args::Change,
    seconds: Option<u32>,
) -> Result<String, Failure> {
    let mut body = serde_json::Map::new();
    if let Some(seconds) = seconds {
        body.insert("seconds".into(), seconds.into());
    }
    if let Some(reason) = &change.reason {
        body.insert("reason".into(), reason.as_str().into());
    }
    set(asking, verb, &change.target, &body.into())
}

fn set(
    asking: &Asking,
    verb: NodeVerb,
    target: &args::Target,
    body: &Value,
) -> Result<String, Failure> {
    let target = asking.node(target.pnn)?;
    asking.change(&format!("/v1/nodes/{target}/{}", verb.name()), body)
}

/// Ends a daemon. The own one answers first and ends then, or ends without an answer; both are
/// waited for, within the run time.
pub fn shut_down(client: &Client, target: u32, own: bool) -> Result<Done, ClientError> {
    let path = format!("/v1/nodes/{target}/shutdown");
    let done = match client.post(&path, &json!({})) {
        Err(ClientError::Closed) if own => Done {
            changed: true,
            message: format!("node {target} is shutting down"),
        },
        other => other?,
    };
    while own && client.reachable() {
        if Instant::now() >= client.end {
            return Err(ClientError::RunTime(client.run));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(done)
}

/// `ctdb node list`
pub fn nodes(view: &NodesView) -> String {
    let rows: Vec<[String; 5]> = view
        .nodes
        .iter()
        .filter(|node| !node.flags.contains(NodeFlags::DELETED))
        .map(|node| {
            let mark = if node.pnn == view.node { " *" } else { "" };
            [
                format!("{}{mark}", node.pnn),
                node.address.clone(),
                node.flags_text.clone(),
                node.run_state.to_string(),
                node.reason.clone(),
            ]
        })
        .collect();
    columns(["NODE", "ADDRESS", "STATE", "RUN STATE", "REASON"], &rows)
}

/// `ctdb node credits`
pub fn credits(view: &NodesView) -> String {
    let rows: Vec<[String; 5]> = view
        .nodes
        .iter()
        .filter_map(|node| {
            let credits = node.ban_credits.as_ref()?;
            let last = credits
                .last_ms
                .map(|ms| format!("{} ago", milliseconds(ms as f64)));
            Some([
                node.pnn.to_string(),
                credits.credits.to_string(),
                credits.limit.to_string(),
                or_dash(last),
                credits.why.clone(),
            ])
        })
        .collect();
    columns(["NODE", "CREDITS", "BANNED AT", "LAST", "WHY"], &rows)
}

/// `ctdb node status`
pub fn node(node: &NodeView) -> String {
    let heard = node
        .heard_ms
        .filter(|_| !node.this_node)
        .map(|ms| format!("{} ago", milliseconds(ms as f64)));
    let link = match (node.this_node, node.linked) {
        (true, _) => "this node",
        (false, true) => "up",
        (false, false) => "down",
    };
    let capabilities = [
        (node.capabilities.leader, "leader"),
        (node.capabilities.lmaster, "location master"),
        (node.capabilities.voter_only, "voter only"),
    ];
    let roles = capabilities
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name));
    let answered = match (node.evicted, node.suspected) {
        (true, _) => "evicted: answered no more until a leader admits it",
        (false, true) => "suspected: silent for several heartbeats",
        (false, false) => "member",
    };
    let credits = node.ban_credits.as_ref().map(|credits| {
        let (count, limit) = (credits.credits, credits.limit);
        format!("{count} of {limit}")
    });
    let mut rows = vec![
        ("Node", node.pnn.to_string()),
        ("Address", node.address.clone()),
        ("State", node.flags_text.clone()),
        ("Reason", node.reason.clone()),
        ("Run state", node.run_state.to_string()),
        ("Release", node.release.clone()),
        ("Link", link.to_owned()),
        ("Heard", or_dash(heard)),
        ("Membership", answered.to_owned()),
        (
            "Right to serve",
            if node.has_right { "held" } else { "not held" }.to_owned(),
        ),
        ("May be", super::table::list(roles)),
    ];
    rows.extend(credits.map(|credits| ("Ban credits", credits)));
    facts(&rows)
}

#[cfg(test)]
mod tests {
    use ctdb_wire::api::BanCredits;

    use super::*;
    use crate::api::sample;

    #[test]
    fn deleted_nodes_are_left_out() {
        let snapshot = sample::snapshot();
        let mut nodes_ = snapshot.nodes;
        nodes_[1].reason = "50.samba: smbd does not run".into();
        let view = NodesView {
            node: 0,
            nodes: nodes_,
        };
        let wanted = "\
NODE  ADDRESS    STATE                            RUN STATE  REASON
0 *   127.0.0.1  OK                               RUNNING
1     127.0.0.2  DISCONNECTED|UNHEALTHY|INACTIVE  RUNNING    50.samba: smbd does not run
";
        assert_eq!(nodes(&view), wanted);
    }

    #[test]
    fn credits_are_the_leaders() {
        let mut nodes = sample::snapshot().nodes;
        let mut view = NodesView {
            node: 0,
            nodes: nodes.clone(),
        };
        assert_eq!(credits(&view).lines().count(), 1);
        let none = BanCredits {
            limit: 4,
            ..BanCredits::default()
        };
        nodes[0].ban_credits = Some(none);
        nodes[1].ban_credits = Some(BanCredits {
            credits: 3,
            limit: 4,
            last_ms: Some(1500),
            why: "takeover of 10.1.1.1 failed: no lease on eth0".into(),
        });
        view.nodes = nodes;
        let wanted = "\
NODE  CREDITS  BANNED AT  LAST         WHY
0     0        4          -
1     3        4          1500 ms ago  takeover of 10.1.1.1 failed: no lease on eth0
";
        assert_eq!(credits(&view), wanted);
        assert!(node(&view.nodes[1]).ends_with("Ban credits     3 of 4\n"));
    }

    #[test]
    fn one_node() {
        let mut shown = sample::node(1, NodeFlags::BANNED);
        shown.reason = "by the operator".into();
        shown.heard_ms = Some(120);
        shown.evicted = true;
        let wanted = "\
Node            1
Address         127.0.0.2
State           BANNED|INACTIVE
Reason          by the operator
Run state       RUNNING
Release         0.1.0
Link            up
Heard           120 ms ago
Membership      evicted: answered no more until a leader admits it
Right to serve  not held
May be          leader, location master
";
        assert_eq!(node(&shown), wanted);
        shown.this_node = true;
        assert!(node(&shown).contains("\nLink            this node\nHeard           -\n"));
    }
}
